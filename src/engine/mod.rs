//! One shard's storage. Knows no socket, command or other shard.

pub mod cache;
pub mod compaction;
pub mod manifest;
pub mod memtable;
pub mod merge;
pub mod sstable;
pub mod wal;
