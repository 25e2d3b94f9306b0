//! Bytes ↔ requests and replies. No I/O.
//!
//! [`Request`] and [`Reply`] are what the rest of the server sees; [`binary`] is how they look on the
//! wire. [`resp`] is Redis' protocol: arguments of commands, and replies. Everything here borrows from the
//! bytes it was decoded from.

mod batch;
pub mod binary;
mod command;
mod expiry;
mod reply;
pub mod resp;
mod scan;

pub use batch::{Action, BatchOp};
pub use command::{
    BGSAVE, ClientsAction, ClientsRequest, Condition, DeleteRange, Durability, HelloRequest, Limits, OpCode,
    Paused, Request, Route, SAVE, Transaction,
};
pub use expiry::{Deadline, Expiry};
pub use reply::{Hello, Lifetime, Reply, ShardRange};
pub use scan::{ScanEntry, ScanPage, ScanRequest};
