//! SSTables: immutable sorted files, each of one tablet.
//!
//! The top of an open table's index is resident. Below it partitions say which blocks there are and, by a
//! filter, which keys can't be in them; they are resident as long as an [`IndexBudget`] has room, and come
//! through the block cache otherwise. So do blocks, which are compressed on disk and not in memory. Every byte
//! that is read is checked against a checksum that is bound to its place, once, when it is read.

mod block;
mod block_builder;
mod builder;
mod codec;
mod cursor;
mod expiries;
pub mod filter;
pub mod format;
mod inspect;
mod iterator;
mod partition;
mod pins;
mod reader;
mod salvage;
mod top;

#[cfg(test)]
mod tests;

pub use block::{Block, Span};
pub use builder::{TableBuilder, TableOptions};
pub use cursor::{AheadBytes, AheadTotals, Bound, InMemory, TableCursor, Walked, Wanted};
pub use expiries::Expiries;
pub use inspect::{TableReport, inspect_table};
pub use iterator::TableIter;
pub use partition::Partition;
pub use pins::IndexBudget;
pub use reader::Table;
pub use salvage::{LostBytes, SalvageIter};

use crate::base::{Codec, FileId, Lsn, TabletId};
use crate::disk::DiskError;
use crate::slot::SlotRange;

/// Where a block or a partition stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHandle {
    /// In the file.
    pub offset: u64,
    /// Whole pages.
    pub len: usize,
}

/// The facts of a table: what its footer says, and its key bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableMeta {
    /// Its file.
    pub file: FileId,
    /// Whose entries it holds.
    pub tablet: TabletId,
    /// Slots of that tablet when it was written.
    pub slots: SlotRange,
    /// Size of the file.
    pub bytes: u64,
    /// Entries, tombstones included.
    pub entries: u64,
    /// Tombstones.
    pub tombstones: u64,
    /// Entries with an expiry time.
    pub expiring: u64,
    /// When those expire.
    pub expiries: Expiries,
    /// Smallest LSN.
    pub min_lsn: Lsn,
    /// Largest LSN.
    pub max_lsn: Lsn,
    /// Smallest key.
    pub smallest: Box<[u8]>,
    /// Largest key.
    pub largest: Box<[u8]>,
    /// How it is stored.
    pub shape: TableShape,
}

/// How a table is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableShape {
    /// Whether it was written for the last level.
    pub is_last: bool,
    /// What its blocks are compressed with, where that is worth it.
    pub codec: Codec,
    /// Bits of filter for each key.
    pub bits_per_key: u8,
    /// Blocks.
    pub blocks: u64,
    /// Of those, blocks that are not compressed.
    pub plain_blocks: u64,
    /// Bytes of all blocks' payloads, decompressed.
    pub raw_bytes: u64,
    /// Bytes that the blocks take in the file.
    pub stored_bytes: u64,
    /// Partitions.
    pub partitions: u64,
    /// Bytes that they take in the file.
    pub partition_bytes: u64,
}

/// Why a table can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// A disk operation failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Damage.
    #[error(
        "{path}: {part} at byte {offset}: expected {expected}, found {found}; run: atlaskv-inspect sst {path}"
    )]
    Corrupt {
        /// The file.
        path: String,
        /// Which part of it.
        part: &'static str,
        /// Where it starts.
        offset: u64,
        /// What should be there.
        expected: String,
        /// What is.
        found: String,
    },
    /// Another format.
    #[error(
        "{path}: table format version {version} is not one that this build reads ({}); start it with the version that wrote it",
        format::VERSION
    )]
    OtherVersion {
        /// The file.
        path: String,
        /// What it says.
        version: u32,
    },
}

impl TableError {
    /// Whether what was written is not there any more, or the device does not give it. It concerns the keys in
    /// that place; what else a disk refuses, and files of other versions, concern the whole store.
    pub fn is_unreadable(&self) -> bool {
        match self {
            TableError::Corrupt { .. } => true,
            TableError::Disk(error) => error.is_unreadable(),
            TableError::OtherVersion { .. } => false,
        }
    }

    /// The same once more, for the next one who meets it.
    fn again(&self) -> TableError {
        match self {
            TableError::Disk(error) => TableError::Disk(error.again()),
            TableError::Corrupt { path, part, offset, expected, found } => TableError::Corrupt {
                path: path.clone(),
                part,
                offset: *offset,
                expected: expected.clone(),
                found: found.clone(),
            },
            TableError::OtherVersion { path, version } => {
                TableError::OtherVersion { path: path.clone(), version: *version }
            }
        }
    }
}
