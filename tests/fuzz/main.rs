//! Hostile input: every decoder that reads what a peer or a disk gives, with inputs that are nearly right.
//!
//! Inputs come of the crate's own encoders and of `tests/data/fuzz`, are changed ([`mutate`]), and of half of them the
//! checksums are made to fit again, so that a change gets past those. What leads to an outcome not seen before
//! (another refusal, another place of it, more items) is kept and changed further. Of every execution it is checked
//! that
//! - nothing panics, and nothing takes half a minute;
//! - what comes of an input is bounded by its length, in number and in the largest single allocation, whatever the
//!   lengths and counts in it claim;
//! - what is decoded is encoded to something that decodes to the same.
//!
//! The suite has a short run of each, the same every time. Longer ones:
//!
//! ```text
//! ATLASKV_FUZZ_EXECUTIONS=100000000 ATLASKV_FUZZ_DECODER=request cargo test --release --test fuzz -- --nocapture
//! ```
//!
//! | variable, all with ATLASKV_FUZZ_ in front | |
//! |---|---|
//! | DECODER | only this one: `NAME` of those below; without it, all |
//! | EXECUTIONS | how many |
//! | SEED | where from: the same seed, decoder and number do the same again |
//! | INPUT | with DECODER, nothing but this input, in hexadecimal, or `@` and a file with one a line: what a failure prints |
//! | KEEP | a file to which the shortest inputs go that were kept, for `tests/data/fuzz` |
//!
//! In the release profile numbers wrap silently. With `CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true` and
//! `CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true` they don't, and a run takes little longer. With
//! `CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16` it is sooner built.

mod allocator;
mod corpus;
mod driver;
mod keys;
mod manifest;
mod mutate;
mod reply;
mod request;
mod resp;
mod store;
mod table;
mod text;
mod wal;

#[global_allocator]
static ALLOCATOR: allocator::Observed = allocator::Observed;

#[test]
fn requests() {
    driver::run(request::Requests::new());
}

#[test]
fn replies() {
    driver::run(reply::Replies::new());
}

#[test]
fn resp_requests() {
    driver::run(resp::RespRequests::new());
}

#[test]
fn resp_replies() {
    driver::run(resp::RespReplies);
}

#[test]
fn log_records() {
    driver::run(wal::LogRecords::new());
}

#[test]
fn logs() {
    driver::run(wal::Logs::new());
}

#[test]
fn table_blocks() {
    driver::run(table::Blocks);
}

#[test]
fn table_partitions() {
    driver::run(table::Partitions);
}

#[test]
fn table_files() {
    driver::run(table::Files::new());
}

#[test]
fn manifest_edits() {
    driver::run(manifest::Edits);
}

#[test]
fn manifest_files() {
    driver::run(manifest::Files);
}

#[test]
fn currents() {
    driver::run(manifest::Currents);
}

#[test]
fn texts() {
    driver::run(text::Texts);
}

#[test]
fn stores() {
    driver::run(store::Stores);
}
