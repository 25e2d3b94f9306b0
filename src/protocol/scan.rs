//! What a scan asks for, and the pages that answer it.

use super::binary::{Cursor, ScanEntries};
use crate::slot::Slot;

/// A page of a scan, as it is asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanRequest<'a> {
    /// The smallest key that is wanted.
    pub start: &'a [u8],
    /// The first key that is not wanted any more; empty: all from the start on are.
    pub end: &'a [u8],
    /// From the last key to the first.
    pub is_reverse: bool,
    /// Without values.
    pub is_keys_only: bool,
    /// Only keys of the shard that serves the connection.
    pub is_local: bool,
    /// Most entries in this page; 0 leaves it to the server.
    pub entries_max: u32,
    /// Most bytes of entries in this page, unless it is one entry; 0 leaves it to the server.
    pub bytes_max: u32,
    /// Entries that are wanted from here on in all; 0 is no limit.
    pub limit: u64,
    /// Where the page before this one ended; `None`: the first.
    pub cursor: Option<Cursor<'a>>,
}

impl ScanRequest<'_> {
    /// The slot of all keys that are wanted, if that is known: if they share a hash tag.
    pub fn slot(&self) -> Option<Slot> {
        if self.is_local { None } else { Slot::of_range(self.start, self.end) }
    }
}

/// A page of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanPage<'a> {
    /// In order. May be none though there are more, where much that was deleted lay in between.
    pub entries: ScanEntries<'a>,
    /// Where to go on, as it is sent back; `None`: there is no more.
    pub cursor: Option<&'a [u8]>,
    /// From somewhere in this page on, the scan shows the keys of a later moment: the snapshot that it had is gone.
    pub is_new_snapshot: bool,
}

/// A key of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScanEntry<'a> {
    /// The key.
    pub key: &'a [u8],
    /// Its value's version.
    pub version: crate::base::Lsn,
    /// When it expires, in milliseconds since the epoch; 0 is never.
    pub expiry_ms: u64,
    /// Its value; empty if only keys were asked for.
    pub value: &'a [u8],
}
