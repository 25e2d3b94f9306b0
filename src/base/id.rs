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
}

/// A tablet's name for a table file. A tablet that splits off another's slots links the files that it takes
/// along under names of its own, so each tablet removes only what is its own, and the file goes with the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableName {
    /// Who refers to it.
    pub tablet: TabletId,
    /// To what.
    pub file: FileId,
}

impl TableName {
    /// Directory of table files below the data directory.
    pub const DIR: &str = "sst";

    /// The name by which `tablet` knows `file`.
    pub fn new(tablet: TabletId, file: FileId) -> TableName {
        TableName { tablet, file }
    }

    /// Path below the data directory.
    pub fn path(self) -> String {
        format!("{}/{self}", Self::DIR)
    }

    /// From a file name.
    pub fn parse(name: &str) -> Option<TableName> {
        let (tablet, file) = name.strip_suffix(".sst")?.split_once('-')?;
        let tablet = TabletId(u32::from_str_radix(tablet, 16).ok()?);
        let parsed = TableName::new(tablet, FileId(u64::from_str_radix(file, 16).ok()?));
        // Only names that this code writes: others would be removed under the name of another.
        (parsed.to_string() == name).then_some(parsed)
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{}.sst", self.tablet.0, self.file)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_are_written_are_read() {
        let name = TableName::new(TabletId(5), FileId(0x1_0000_0002));
        assert_eq!(name.path(), "sst/00000005-0000000100000002.sst");
        assert_eq!(TableName::parse("00000005-0000000100000002.sst"), Some(name));
        for other in
            ["5-0000000100000002.sst", "+0000005-0000000100000002.sst", "0000000100000002.sst", "a.sst"]
        {
            assert_eq!(TableName::parse(other), None, "{other}");
        }
    }
}
