//! SSTables: immutable sorted files, each of one tablet.
//!
//! Index and filter of an open table are resident; blocks come through the block cache. Every byte that
//! is read is checked against a checksum that is bound to its place, once, when it is read.

mod block;
mod builder;
mod cursor;
mod expiries;
mod filter;
pub mod format;
mod index;
mod inspect;
mod iterator;
mod reader;

#[cfg(test)]
mod tests;

pub use block::Block;
pub use builder::TableBuilder;
pub use cursor::{AheadBytes, Bound, TableCursor, Walked, Wanted};
pub use expiries::Expiries;
pub use index::BlockHandle;
pub use inspect::{TableReport, inspect_table};
pub use iterator::TableIter;
pub use reader::Table;

use crate::base::{FileId, Lsn, TabletId};
use crate::disk::DiskError;
use crate::slot::SlotRange;

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
    /// A later format.
    #[error(
        "{path}: table format version {version} is newer than this build reads ({}); start it with the version that wrote it",
        format::VERSION
    )]
    Newer {
        /// The file.
        path: String,
        /// What it says.
        version: u32,
    },
}
