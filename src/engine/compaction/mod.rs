//! Compaction: fewer tables, each key once. [`pick`] chooses, [`merge`] does it; neither knows the engine.

mod job;
mod picker;

pub use job::{Merged, merge};
pub use picker::{INPUTS_MAX, Run, pick};
