//! The log sequence number: a write's place in its tablet's log, and its version everywhere else.

use std::fmt;

/// Index of an entry in its tablet's log: dense from 1. 0 is "before the first entry".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EntryIndex(pub u64);

/// `index · 2^16 + ordinal in the entry`. One turn of the shard's loop makes one entry of all the
/// writes of a tablet, so that an entry can be one proposal to a consensus group later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl EntryIndex {
    /// Before the first entry.
    pub const ZERO: EntryIndex = EntryIndex(0);
    /// Largest index that an [`Lsn`] can hold.
    pub const MAX: EntryIndex = EntryIndex((1 << 48) - 1);
    /// Largest index that is believed of a file. A log that takes a million entries a second gets there in four
    /// years; whatever goes on from it has as many left.
    pub const BELIEVED_MAX: EntryIndex = EntryIndex(1 << 47);

    /// The entry after this one.
    #[must_use]
    pub fn next(self) -> EntryIndex {
        EntryIndex(self.0 + 1)
    }
}

impl Lsn {
    /// Before the first write; also "no such key" where a version is expected.
    pub const ZERO: Lsn = Lsn(0);

    /// The `ordinal`-th write of entry `index`.
    ///
    /// # Panics
    /// If `index` needs more than 48 bits.
    #[inline]
    pub fn new(index: EntryIndex, ordinal: u16) -> Lsn {
        assert!(index <= EntryIndex::MAX, "entry index overflow");
        Lsn(index.0 << 16 | u64::from(ordinal))
    }

    /// The entry this write belongs to.
    #[inline]
    pub fn index(self) -> EntryIndex {
        EntryIndex(self.0 >> 16)
    }

    /// Its ordinal in the entry.
    #[inline]
    pub fn ordinal(self) -> u16 {
        (self.0 & 0xFFFF) as u16
    }
}

impl fmt::Display for EntryIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index(), self.ordinal())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_and_ordinal_come_back() {
        let lsn = Lsn::new(EntryIndex(7), 65_534);
        assert_eq!((lsn.index(), lsn.ordinal()), (EntryIndex(7), 65_534));
        assert!(Lsn::new(EntryIndex(8), 0) > lsn);
    }
}
