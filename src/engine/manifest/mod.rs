//! The manifest: what is live. Tablets with their slots, flushed indexes and tables; logs with their ends.
//!
//! One file per shard and *generation*. Every start writes a new generation completely (a snapshot per
//! shard) and then switches `CURRENT` to it; so another number of shards is only another division of the
//! tablets, and a crash anywhere leaves the old generation or the new one, both whole. While it runs, a
//! shard appends edits to its file; each is atomic over all the tablets it names.
//!
//! Invariants:
//! - An edit that was acknowledged is found by the next start; one that was not is there wholly or not.
//! - A failed write is final: later commits are refused with the first cause.
//! - Space is reserved ahead, so a full disk is met *before* an edit is begun, and can be waited out.
//!
//! Clips of table references (left by splits) are stored and returned; applying them is the reader's
//! part, and no table has one until tablets split.

mod edit;
pub mod format;
mod log;
mod state;

#[cfg(test)]
mod tests;

pub use edit::{Change, Clip, Edit, TableRef};
pub use log::{InspectedEdit, ShardManifest, inspect_manifest, install, load};
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
    #[error("no space to extend {path}: {source}")]
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
    /// A file that `CURRENT` names is not there.
    #[error("{path} is missing, though CURRENT names its generation; restore it from a copy")]
    Missing {
        /// The file.
        path: String,
    },
    /// A later format.
    #[error(
        "{path} was written by a newer version (format {found}, this build reads {}); start it with that version",
        format::VERSION
    )]
    Newer {
        /// The file.
        path: String,
        /// What it says.
        found: u32,
    },
    /// An earlier commit failed.
    #[error("the manifest takes no more edits since an earlier write failed: {0}")]
    Failed(Rc<ManifestError>),
}
