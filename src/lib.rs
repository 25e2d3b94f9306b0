//! AtlasKV: a durable, larger-than-memory, sharded key-value store.
//!
//! One pinned core runs one executor that owns one shard: its write-ahead log, its memtable, its
//! tables and its cache. Nothing is shared between shards; what one wants of another crosses a mesh
//! of bounded queues.
//!
//! Modules in import order; a module imports only from modules above it (`tests/tidy.rs` checks):
//!
//! | module | owns |
//! |---|---|
//! | [`base`] | numbers and limits that everything shares: `Lsn`, ids, key and value bounds, checksums |
//! | [`slot`] | key → slot → tablet, pure |
//! | [`error`] | the codes and sentences a client sees |
//! | [`metrics`] | per-shard counters |
//! | [`disk`], [`mod@env`] | what the engine asks of the world, with a real and a simulated implementation |
//! | [`config`] | flags and defaults, validated once |
//! | [`protocol`] | bytes ↔ requests and replies, no I/O |
//! | [`redis`] | Redis' commands: what they mean, and connections that speak its protocol, without their sockets |
//! | [`engine`] | one shard's storage |
//! | [`shard`] | one executor: executes requests, knows who waits for which block, speaks to the mesh |
//! | [`placement`] | slot → tablet → shard: the stored table and its mapping to another core count |
//! | [`server`] | sockets, acceptor, signals, start and stop |
//! | [`client`] | the library that the tools are built on |
#![deny(missing_docs)]

pub mod base;
pub mod client;
pub mod config;
pub mod disk;
pub mod engine;
pub mod env;
pub mod error;
pub mod metrics;
pub mod placement;
pub mod protocol;
pub mod redis;
pub mod server;
pub mod shard;
pub mod slot;
