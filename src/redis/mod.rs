//! Redis' commands on strings and keys: what they mean.
//!
//! Arguments become a [`Command`] by [`Command::parse`], and a command becomes a reply by [`evaluate()`],
//! which reads and writes a [`Keyspace`]. Replies and errors are those of Redis 7.0, to the byte.
//!
//! ```text
//! arguments ── Command::parse ──► Command ── evaluate(Keyspace) ──► reply, puts and deletes
//!                   └──► Fault ── write ──► error reply ◄── Fault ──┘
//! ```
//!
//! What is known of each command (arity, flags, keys, how far it is supported) stands in one [`table`], of which
//! [`introspect`] answers COMMAND and [`document`] writes README.md's. Patterns are [`glob`]'s.
//!
//! Invariants:
//! - Nothing here does I/O, keeps state, or reads a clock: time is the keyspace's.
//! - An evaluation whose lookup stops has no effect that matters: it can be done again, as often as need be.
//! - A command finds its faults before it writes, and in Redis' order. It writes only what changes something.
//! - An expiry that is past is a delete, never a put.
//!
//! Left to the caller: the lengths of keys, whether a command may be executed at all (AUTH, MULTI), where its
//! keys are, and all commands that are no reading or writing of keys that they name.
//!
//! Where it differs from Redis:
//! - SET has SYNC and NOSYNC; what they ask for is the caller's to do.
//! - An expiry later than the store can hold becomes the latest that it can.
//! - A value is an integer to OBJECT ENCODING and REFCOUNT whenever it reads as one; in Redis it depends on
//!   how it came about (after APPEND it is not).
//! - A field of BITFIELD that begins in the last byte that a value may have must end there as well.
//! - OBJECT IDLETIME is 0, MEMORY USAGE an estimate of our own, OBJECT HELP our own words.

mod command;
pub mod document;
mod evaluate;
mod extended;
mod fault;
pub mod glob;
pub mod introspect;
mod keyspace;
mod number;
mod parse;
pub mod session;
pub mod table;
#[cfg(test)]
mod tests;

pub use command::{
    BitField, BitOperation, BitRange, Command, Condition, Expire, ExpiryChange, FieldAction, FieldOverflow,
    FieldStep, Keys, Lcs, LcsAnswer, ObjectQuestion, Set, SetExpiry, SyncWish, Than, Time,
};
pub use evaluate::{LCS_CELLS_MAX, evaluate};
pub use extended::Extended;
pub use fault::{Fault, unknown_command};
pub use keyspace::{Cell, Keyspace, MemoryKeyspace, Meta};
pub use number::parse_i64;
