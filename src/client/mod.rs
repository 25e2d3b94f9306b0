//! The client library: blocking, pipelined, shard-aware. The tools are built on it; it needs nothing of
//! the server but its protocol, and no async runtime.
//!
//! A [`Client`] belongs to one thread at a time; a program with several threads makes one for each. It
//! keeps one connection to each shard, opened when first needed, and sends a key's requests to the shard
//! that owns it, by the slot table that the server gave when the connection was made. A reply that names
//! a newer table makes the client fetch it before its next request. A stale table costs a hop in the
//! server, never a wrong answer.
//!
//! What happens when a connection breaks:
//! - Reads are repeated on a new connection, as often as [`Config::retries`] says, with growing pauses.
//! - A write is repeated only if it cannot have reached the server whole. Otherwise it fails with
//!   [`Error::UnknownOutcome`]: it may or may not have been applied, and may still be applied.
//! - A request that got no answer in time fails and takes its connection with it.
//!
//! A request that is refused as overloaded, of which nothing was done, is tried again for a while: see
//! [`Config::overload_patience`].
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use atlaskv::client::{
//!     Batch, Client, Condition, Config, Deadline, Expiry, KeyRange, Options, Outcome, SetOptions,
//! };
//!
//! # fn main() -> Result<(), atlaskv::client::Error> {
//! let mut client = Client::connect(Config::new("127.0.0.1:7379"))?;
//! client.set(b"greeting", b"hello")?;
//! if let Some(found) = client.get(b"greeting")? {
//!     // Compare and swap: only if nobody wrote in between.
//!     let options = Options { condition: Condition::IfVersion(found.version), ..Options::default() };
//!     match client.set_with(b"greeting", b"good morning", options)? {
//!         Outcome::Written { version } => println!("now at version {version}"),
//!         other => println!("somebody was quicker: {other:?}"),
//!     }
//! }
//!
//! // A key that goes by itself, and one minute more for it.
//! let ttl = SetOptions { expiry: Expiry::after(Duration::from_secs(30)), ..SetOptions::default() };
//! client.set_with(b"session", b"ann", ttl)?;
//! client.expire(b"session", Deadline::after(Duration::from_secs(90)))?;
//! println!("{:?}", client.ttl(b"session")?);
//!
//! // All or nothing, for keys of one slot: the part in braces is what is hashed.
//! let mut batch = Batch::new();
//! batch.put(b"{ann}.balance", b"90")?.delete(b"{ann}.pending")?;
//! batch.check(b"{ann}.account", Condition::IfPresent)?;
//! match client.batch(&batch)? {
//!     Outcome::BatchFailed { item, .. } => println!("nothing is done: item {item} is not as it should be"),
//!     done => println!("{done:?}"),
//! }
//!
//! // Keys in order, as many as one likes: pages are fetched as they are needed.
//! for entry in client.scan(KeyRange::prefix(b"user:")).limit(100) {
//!     let entry = entry?;
//!     println!("{:?} = {:?}", entry.key, entry.value);
//! }
//!
//! // All keys of a range at once, however many.
//! client.delete_range(&KeyRange::prefix(b"session:"))?;
//!
//! // Many requests on the wire at once.
//! let mut pipeline = client.pipeline();
//! for i in 0..1000 {
//!     pipeline.incr(format!("counter{i}").as_bytes(), 1);
//! }
//! for response in pipeline.run() {
//!     response?;
//! }
//! # Ok(())
//! # }
//! ```

mod batch;
mod config;
mod connection;
mod error;
mod pipeline;
mod response;
mod scan;
mod session;
#[cfg(test)]
mod tests;

pub use crate::protocol::{Condition, Deadline, Durability, Expiry, Lifetime};
pub use batch::Batch;
pub use config::Config;
pub use connection::Connection;
pub use error::Error;
pub use pipeline::Pipeline;
pub use response::{Counter, Outcome, Response, Ttl, Versioned};
pub use scan::{Entry, KeyRange, Scan};
pub use session::{Client, Options, SetOptions};
