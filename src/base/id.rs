//! Identifiers. Each is a newtype, so that one can't be passed for another.

use std::fmt;

/// A tablet: a contiguous slot range with files and a version space of its own. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TabletId(pub u32);

/// One incarnation of a shard's write-ahead log. Taken from a counter in the manifest: unique in the
/// data directory for ever, and larger than that of every log opened before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogId(pub u64);

/// A block's place in its log: 1, 2, 3 and so on. 0 is "before the first block".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockSeq(pub u64);

/// A table file. The high 32 bits are the log incarnation under which it was written and the low 32 a
/// counter, so ids are unique in the data directory, grow with time, and name no core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u64);

impl BlockSeq {
    /// Before the first block.
    pub const ZERO: BlockSeq = BlockSeq(0);

    /// The block after this one.
    #[must_use]
    pub fn next(self) -> BlockSeq {
        BlockSeq(self.0 + 1)
    }
}

impl FileId {
    /// The `number`-th file written under `log`.
    ///
    /// # Panics
    /// If `log` does not fit 32 bits: four billion starts of one data directory.
    pub fn new(log: LogId, number: u32) -> FileId {
        assert!(log.0 <= u64::from(u32::MAX), "log ids are allocated one per start and shard");
        FileId(log.0 << 32 | u64::from(number))
    }

    /// Path of the table file below the data directory.
    pub fn table_path(self) -> String {
        format!("sst/{self}.sst")
    }
}

impl fmt::Display for TabletId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08}", self.0)
    }
}

impl fmt::Display for BlockSeq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
