//! A shard's write-ahead log: one stream for all its tablets, in recycled, pre-written segments.
//!
//! Every start opens a log of its own ([`Wal::create`], a new `LogId`); logs of earlier starts are only
//! read (`scan`, `replay`) and removed once everything in them was flushed. So recovery changes nothing,
//! and a tail that was cut can't come back: where an old log ends is fixed in the manifest before the
//! new one takes its first write.
//!
//! Invariants:
//! - `durable ≤ sealed ≤ appended`, and each only grows.
//! - Blocks are written in order of their numbers, none further than `window` beyond the last durable one,
//!   and become durable in order: one is durable when it and all before it are.
//! - After a failed write nothing is appended or acknowledged any more.
//! - A segment is reused only when every tablet with records in it has flushed past them.

mod ahead;
pub mod format;
mod plan;
mod replay;
mod scan;
mod segment;
mod writer;

#[cfg(test)]
mod tests;

pub use format::parse_segment_name;
pub use plan::{Place, ReplayPlan, Run, RunBuilder};
pub use replay::LogReader;
pub use scan::{
    LogScan, SegmentFile, TornTail, inspect_segment, list_logs, remove_log, scan_log, scan_log_behind,
};
pub use segment::begin_logs;
pub use writer::{Appended, Wal, WalOptions, WalRoom, WalTablet};

use crate::base::{EntryIndex, LogId, TabletId};
use crate::disk::DiskError;

/// Blocks that may be in flight at once, at most. A reader takes this for every log, whatever the
/// setting was when it was written.
pub const WINDOW_MAX: usize = 3;

/// Why the log can't be written or read.
#[derive(Debug, thiserror::Error)]
pub enum WalError {
    /// A disk operation failed. For a write of the log this is final.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// An atomic group is too large for one entry.
    #[error(
        "an atomic batch of {ops} operations and {bytes} bytes is more than a log entry takes ({} operations, {} bytes)",
        crate::base::ENTRY_OPS_MAX,
        crate::base::ENTRY_BYTES_MAX
    )]
    TooLarge {
        /// Operations asked for.
        ops: usize,
        /// Encoded bytes asked for.
        bytes: usize,
    },
    /// A write is longer than what a segment holds: it would wait for room for ever.
    #[error(
        "a write of {bytes} bytes is more than a segment of this log holds ({most} bytes): what is stored is longer than --max-value-size; start with the size that it was written with"
    )]
    LongerThanSegment {
        /// Encoded bytes asked for, at most.
        bytes: usize,
        /// What a segment has room for.
        most: usize,
    },
    /// Damage in the middle of a log: acknowledged writes are lost.
    #[error(
        "{path}: damaged at byte {offset}, and it is not the end of the log; lost: {lost}; restore this file from a copy, or save the rest with atlaskv-inspect salvage; atlaskv-inspect wal {path} shows what is readable"
    )]
    Rot {
        /// The segment.
        path: String,
        /// Where the first bad block stands.
        offset: u64,
        /// Which entries, as far as their headers tell.
        lost: String,
    },
    /// Entries of a tablet are missing between two logs, or before the first.
    #[error("the logs lack entries {} to {} of tablet {tablet}: a file below wal/ is missing, or the first block of one is damaged; restore wal/ from a copy", .first.0, .last.0)]
    Gap {
        /// Whose.
        tablet: TabletId,
        /// First missing entry.
        first: EntryIndex,
        /// Last missing entry.
        last: EntryIndex,
    },
    /// A log has no file any more, or not those that it begins with.
    #[error(
        "files of log {0} below wal/ are missing, and with them what tables don't hold yet; restore them from a copy, or save the rest with atlaskv-inspect salvage"
    )]
    Missing(LogId),
    /// A segment or record of a later version.
    #[error(
        "{path}: format version {version} is newer than this build reads ({}); start it with the version that wrote it",
        format::VERSION
    )]
    Newer {
        /// The segment.
        path: String,
        /// What it says.
        version: u32,
    },
}
