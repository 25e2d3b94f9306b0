//! Compaction: fewer tables, each key once. [`pick`] and
//! [`pick_expired`] choose, [`merge`] does it; none of them knows the engine.

mod expired;
mod job;
mod picker;

pub use expired::{Aged, pick_expired};
pub use job::{Merged, Target, merge};
pub use picker::{INPUTS_MAX, Run, pick};
