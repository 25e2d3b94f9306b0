//! The manifest: what is live. Tablets with their slots, flushed indexes and tables; logs with their ends.
//!
//! One file per shard and *generation*. Every start writes a new generation completely (a snapshot per
//! shard) and then switches `CURRENT` to it; so another number of shards is only another division of the
//! tablets, and a crash anywhere leaves the old generation or the new one, both whole. While it runs, a
//! shard appends edits to its file; each is atomic over all the tablets it names.
//!
//! Invariants:
//! - An edit that was acknowledged is found by the next start; one that was not is there wholly or not.
//! - A failed write is final: later commits are refused with the first cause. Such an edit *may* be found by
//!   the next start, so nothing that it names may be removed ([`ManifestError::is_undecided`]).
//! - Space is reserved ahead, so a full disk is met *before* an edit is begun, and can be waited out.
//! - A tablet's tables of the upper level are listed newest first, and their LSNs do not overlap. Those of
//!   the last level follow in the order of keys, and their keys do not overlap. Where a table of the upper
//!   level and one of the last may hold the same key, all of the upper one is newer. What a clip leaves out
//!   does not count in this. Each is checked when a change is applied, at a commit and at a start.
//! - The tablets of a generation cover every slot once.
//!
//! A table reference may be clipped: by a split, or by a descent that has come so far. Whoever opens a table
//! applies the clip ([`Clip`]). Pins are stored, returned and keep a file among the live
//! ones; nothing sets one yet.

mod bounds;
mod edit;
pub mod format;
mod inspect;
mod install;
mod log;
mod read;
mod state;

#[cfg(test)]
mod tests;

pub use bounds::{Bounds, Clip};
pub use edit::{Change, Edit, EditError, LAST, TableRef, UPPER};
pub use inspect::{
    InspectedEdit, Inspection, Item, ItemState, inspect_current, inspect_file, inspect_manifest,
};
pub(super) use install::TEMPORARY;
pub use install::install;
pub use log::ShardManifest;
pub use read::{generations, load, load_generation, merge_shards};
pub use state::{LogMeta, State, Store, TabletState};

use std::rc::Rc;

use crate::disk::DiskError;

/// Why the manifest can't be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A disk operation failed.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// No space for more edits; nothing was written, and it may be tried again.
    #[error("no space to extend {path} ({source}); free some, and it goes on by itself")]
    Full {
        /// The manifest file.
        path: String,
        /// The cause.
        source: DiskError,
    },
    /// Damage.
    #[error(
        "{path}: damaged at byte {offset} ({what}); restore this file from a copy; atlaskv-inspect manifest {path} shows what is readable"
    )]
    Corrupt {
        /// The file.
        path: String,
        /// Where.
        offset: u64,
        /// How.
        what: String,
    },
    /// Whole files that do not fit each other.
    #[error(
        "the files of manifest generation {generation} contradict each other ({what}); restore CURRENT and manifest/ together from one copy"
    )]
    Inconsistent {
        /// Which generation.
        generation: u64,
        /// How.
        what: String,
    },
    /// A file that `CURRENT` names is not there.
    #[error("{path} is missing, though CURRENT names its generation; restore it from a copy")]
    Missing {
        /// The file.
        path: String,
    },
    /// There is no `CURRENT`, but what only a store has that once had it.
    #[error(
        "CURRENT is missing, though {found} is there, so this is no new data directory; restore CURRENT and manifest/ together from a copy, or write the data to a fresh directory with atlaskv-inspect salvage"
    )]
    NoCurrent {
        /// A file of that store.
        found: String,
    },
    /// A later format.
    #[error(
        "{path} was written by a newer version (format {found}, this build reads {supported}); start it with that version"
    )]
    NewerFormat {
        /// The file.
        path: String,
        /// What it says.
        found: u32,
        /// What this build reads.
        supported: u32,
    },
    /// A store that uses features which this build does not have.
    #[error(
        "{path} uses features of a newer version (level {found}, this build reads {supported}); start it with that version"
    )]
    NewerFeatures {
        /// The file.
        path: String,
        /// What it says.
        found: u32,
        /// What this build reads.
        supported: u32,
    },
    /// A change that must be understood, and is not.
    #[error(
        "{path}: the edit at byte {offset} makes a change of kind {kind}, which only a newer version knows; start it with that version"
    )]
    NewerChange {
        /// The file.
        path: String,
        /// Where the edit stands.
        offset: u64,
        /// What it says.
        kind: u8,
    },
    /// More than a block can hold.
    #[error("{path}: an edit of {bytes} bytes is more than the {} that fit", format::PAYLOAD_BYTES_MAX)]
    TooLarge {
        /// The file.
        path: String,
        /// Its size.
        bytes: usize,
    },
    /// A commit was dropped before it had ended.
    #[error("{path}: an edit was abandoned half-way, so it may or may not be there; restart")]
    Abandoned {
        /// The file.
        path: String,
    },
    /// An earlier commit failed.
    #[error(
        "the manifest takes no more edits since an earlier write failed: {0}; check the disk, then restart"
    )]
    Failed(Rc<ManifestError>),
}

impl ManifestError {
    /// Whether the edit that got this error may still be found by the next start. Then the files that it
    /// names must stay, the added ones as well as the removed ones.
    pub fn is_undecided(&self) -> bool {
        !matches!(self, ManifestError::Full { .. } | ManifestError::TooLarge { .. })
    }
}
