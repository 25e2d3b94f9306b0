//! What one shard's engine may use, and why it refuses.

use std::rc::Rc;
use std::time::Duration;

use super::manifest::ManifestError;
use super::ranges::{BOUNDS_BYTES_MAX, FRAGMENTS_MAX};
use super::sstable::{TableError, TableOptions};
use super::wal::WalError;
use crate::base::{Compression, TabletId};
use crate::disk::DiskError;

/// Limits of one shard's engine. All sizes in bytes.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Size at which the active memtable is sealed.
    pub memtable_bytes: usize,
    /// Sealed memtables that may wait for their flush; with that many and a full active one, writes wait.
    pub sealed_max: usize,
    /// Block cache.
    pub cache_bytes: usize,
    /// Row cache; 0: there is none.
    pub row_bytes: usize,
    /// Indexes and filters that stay in memory. Those that don't fit go through the block cache.
    pub index_bytes: usize,
    /// Blocks and partitions that requests wait for which are read at a time. What scans and merges read ahead is not
    /// counted.
    pub reads_max: usize,
    /// How blocks of tables are compressed.
    pub compression: Compression,
    /// Write-ahead log segment.
    pub segment_bytes: u64,
    /// Commits in flight: 2 or 3.
    pub window: usize,
    /// How long an acknowledged write may stay in memory; `None`: it is durable before it is acknowledged.
    pub lazy: Option<Duration>,
    /// Tables of like size that are merged into one, above the last level.
    pub compaction_fan: usize,
    /// How long a snapshot that nobody uses keeps its files.
    pub snapshot_life: Duration,
    /// Bytes of tables that snapshots alone may keep, beyond as many as all live ones have. Above that the oldest
    /// gives up its files.
    pub snapshot_bytes: u64,
    /// Bytes of tables a second that are read again to see whether they are whole; 0: none are.
    pub scrub_bytes_per_s: u64,
    /// How many times what is above it the last level may be before that is merged into it.
    pub level_ratio: u64,
    /// Size of a table of the last level, at most.
    pub last_table_bytes: u64,
    /// Free space of the file system below which puts are refused, so that what was accepted can always
    /// be flushed.
    pub reserve_bytes: u64,
}

impl EngineOptions {
    /// How tables of the upper levels are written.
    pub fn upper_tables(&self) -> TableOptions {
        TableOptions::upper(self.compression.upper)
    }

    /// How tables of the last level are written.
    pub fn last_tables(&self) -> TableOptions {
        TableOptions::last(self.compression.last)
    }
}

/// Why the engine can't do what was asked. Split by what the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The log failed. Final: the shard takes no writes until restart.
    #[error("writes stopped: {0}; check the disk, then restart")]
    Log(Rc<WalError>),
    /// No space. Goes away when there is some.
    #[error("the disk is full: {0}; free some space, writing resumes by itself")]
    Full(String),
    /// Memtables are full, and can't be flushed. Goes away when they can.
    #[error("memtables are full and flushing them fails: {0}; check the disk, writing resumes by itself")]
    Flush(String),
    /// A snapshot was not used for too long, or its tablet has left. Another one can be taken.
    #[error("the snapshot is over: it was not used for too long, or its tablet has moved; begin a new one")]
    SnapshotOver,
    /// A tablet has as many range deletes as it may. Goes away as merges drop what they removed.
    #[error(
        "too many ranges of tablet {tablet} were deleted of late: {fragments} of {FRAGMENTS_MAX}, or with bounds \
         beyond {} KiB; try again when merges have dropped what those removed",
        BOUNDS_BYTES_MAX >> 10
    )]
    TooManyRanges {
        /// Which.
        tablet: TabletId,
        /// How many it has.
        fragments: usize,
    },
    /// A range delete of all tablets would take too much of the log.
    #[error(
        "deleting this range takes {bytes} bytes of the log, once for each of {tablets} tablets, and {limit} are allowed; use shorter bounds, or start with more --cores or --memory"
    )]
    RangeTooLong {
        /// How many tablets.
        tablets: usize,
        /// In all.
        bytes: usize,
        /// A part of a segment.
        limit: usize,
    },
    /// Data on disk is damaged. Concerns the keys in it only.
    #[error(transparent)]
    Table(#[from] TableError),
    /// No checkpoint came of it, or a copy was never completed.
    #[error("{0}")]
    Checkpoint(String),
    /// The manifest can't be read or written.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The log can't be read or written.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// The engine closes.
    #[error("this shard is stopping")]
    Stopping,
    /// A disk operation failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl EngineError {
    /// Whether data on disk is at fault: trying again meets it again.
    pub fn is_damage(&self) -> bool {
        matches!(self, EngineError::Table(error) if !matches!(error, TableError::Disk(_)))
    }

    /// Whether some free space would have helped.
    pub fn is_full(&self) -> bool {
        match self {
            EngineError::Full(_) | EngineError::Manifest(ManifestError::Full { .. }) => true,
            EngineError::Disk(error) | EngineError::Table(TableError::Disk(error)) => error.is_full(),
            _ => false,
        }
    }
}
