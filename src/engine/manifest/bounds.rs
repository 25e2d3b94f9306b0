//! Which keys a reference to a table may be about: the table's own range, cut to what its clip leaves.

use crate::slot::SlotRange;

/// Which part of a table counts, when not all of it does: it is referred to from a part of the tablet that
/// wrote it, or a descent has merged the keys below `smallest` into the last level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clip {
    /// Slots that count.
    pub slots: SlotRange,
    /// Smallest key that counts.
    pub smallest: Box<[u8]>,
    /// First key that does not count any more; empty: none.
    pub end: Box<[u8]>,
}

impl Clip {
    /// The part of a table that counts for a tablet of these slots, which takes over what `known` lets count.
    pub fn within(slots: SlotRange, known: Option<&Clip>) -> Clip {
        let (smallest, end) = known.map(|clip| (clip.smallest.clone(), clip.end.clone())).unwrap_or_default();
        Clip { slots, smallest, end }
    }

    /// Whether a key counts, by its place in the order of keys alone.
    #[inline]
    pub fn covers(&self, key: &[u8]) -> bool {
        key >= &self.smallest[..] && (self.end.is_empty() || key < &self.end[..])
    }
}

/// A range of keys: from the first that may be there to the last.
#[derive(Clone, Copy, Debug)]
pub struct Bounds<'a> {
    first: &'a [u8],
    /// Included.
    last: &'a [u8],
    /// Not included; empty: there is no such bound.
    end: &'a [u8],
}

impl<'a> Bounds<'a> {
    /// Of a table from `smallest` to `largest`, and what of it counts.
    #[inline]
    pub fn new(smallest: &'a [u8], largest: &'a [u8], clip: Option<&'a Clip>) -> Bounds<'a> {
        match clip {
            None => Bounds { first: smallest, last: largest, end: &[] },
            Some(clip) => Bounds { first: smallest.max(&clip.smallest), last: largest, end: &clip.end },
        }
    }

    /// The smallest key that may be there.
    #[inline]
    pub fn first(&self) -> &'a [u8] {
        self.first
    }

    /// Whether it ends before `key`.
    #[inline]
    pub fn ends_before(&self, key: &[u8]) -> bool {
        self.last < key || (!self.end.is_empty() && self.end <= key)
    }

    /// Whether no key can be there.
    pub fn is_empty(&self) -> bool {
        self.ends_before(self.first)
    }

    /// Whether `key` may be there.
    #[inline]
    pub fn covers(&self, key: &[u8]) -> bool {
        key >= self.first && !self.ends_before(key)
    }

    /// Whether a key may be in both.
    pub fn overlaps(&self, other: &Bounds<'_>) -> bool {
        !self.ends_before(other.first) && !other.ends_before(self.first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clip(smallest: &str, end: &str) -> Clip {
        Clip { slots: SlotRange::ALL, smallest: smallest.as_bytes().into(), end: end.as_bytes().into() }
    }

    #[test]
    fn bounds_are_those_of_the_table_within_the_clip() {
        let whole = Bounds::new(b"c", b"m", None);
        assert!(whole.covers(b"c") && whole.covers(b"m") && !whole.covers(b"b") && !whole.covers(b"ma"));
        assert!(!whole.is_empty() && whole.ends_before(b"ma") && !whole.ends_before(b"m"));
        let clipped = clip("e", "k");
        let part = Bounds::new(b"c", b"m", Some(&clipped));
        assert_eq!(part.first(), b"e");
        assert!(part.covers(b"e") && part.covers(b"jz") && !part.covers(b"d") && !part.covers(b"k"));
        // The end is not included, the largest key is.
        assert!(part.ends_before(b"k") && !part.ends_before(b"j"));
        assert!(
            !part.overlaps(&Bounds::new(b"k", b"z", None)) && part.overlaps(&Bounds::new(b"j", b"z", None))
        );
        assert!(
            whole.overlaps(&Bounds::new(b"m", b"z", None)) && whole.overlaps(&part) && part.overlaps(&whole)
        );
        assert!(!part.overlaps(&Bounds::new(b"a", b"d", None)));
        for (smallest, end) in [("n", ""), ("", "c"), ("", "b"), ("m", "m")] {
            let nothing = clip(smallest, end);
            assert!(Bounds::new(b"c", b"m", Some(&nothing)).is_empty(), "{smallest} {end}");
        }
        let open = clip("", "");
        assert!(Bounds::new(b"c", b"m", Some(&open)).covers(b"m"));
    }
}
