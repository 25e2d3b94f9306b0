//! Compaction: fewer tables, each key once, and most of them in one run that is in order. [`pick`] and
//! [`pick_expired`] choose, [`merge`] does it; none of them knows the engine.

mod expired;
mod job;
mod picker;

pub use expired::{Aged, AgedChoice, pick_expired};
pub use job::{Merge, Merged, merge};
pub use picker::{Choice, INPUTS_MAX, Policy, Run, Shape, pick};
