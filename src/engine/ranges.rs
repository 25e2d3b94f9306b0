//! Range deletes of one tablet: which keys are gone up to which LSN. Immutable, replaced as a whole; whoever
//! reads keeps the list that it took.
//!
//! A range delete is one operation of the log, whatever it removes. It is not an entry: it stands in this
//! list, and an entry in its range with a smaller LSN counts as absent, wherever it is found. So deleting a
//! million keys is as quick as deleting ten. What it hides is dropped when a flush or a merge comes by; once
//! no table of the tablet holds anything that it hides, it is forgotten.
//!
//! Where ranges overlap, the newer one counts, and the older keeps what is left of it. So the list is one of
//! disjoint *fragments* in the order of keys, and a lookup is one binary search.
//!
//! Invariants:
//! - Fragments are not empty, ascend, and do not overlap; two that touch have different LSNs.
//! - Adding is commutative and can be repeated: the order in which edits of the manifest are applied is of no
//!   importance.
//! - At most [`FRAGMENTS_MAX`] fragments and [`BOUNDS_BYTES_MAX`] bytes of bounds, of what clients ask for
//!   ([`RangeDeletes::has_room`]): a list is copied when it changes.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::base::Lsn;

/// Fragments of one tablet above which range deletes are refused until some are forgotten: each one more copies
/// the list.
pub const FRAGMENTS_MAX: usize = 1024;
/// Bytes of their bounds together above which range deletes are refused.
pub const BOUNDS_BYTES_MAX: usize = 256 << 10;

/// Keys from `start` on, before `end`, are gone up to `lsn`. Bounds are shared, not copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeDelete {
    /// First key.
    pub start: Arc<[u8]>,
    /// First key behind it; empty: it goes to the last one.
    pub end: Arc<[u8]>,
    /// Of the operation.
    pub lsn: Lsn,
}

/// A tablet's range deletes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeDeletes {
    fragments: Vec<RangeDelete>,
    /// Bytes of all bounds.
    bounds_bytes: usize,
}

impl RangeDelete {
    /// A range delete; `None`: an empty range.
    pub fn new(start: &[u8], end: &[u8], lsn: Lsn) -> Option<RangeDelete> {
        let is_range = end.is_empty() || start < end;
        is_range.then(|| RangeDelete { start: start.into(), end: end.into(), lsn })
    }

    /// Whether `key` is in front of its end.
    #[inline]
    fn ends_behind(&self, key: &[u8]) -> bool {
        self.end.is_empty() || key < &self.end[..]
    }

    /// Whether it may have removed something of a table with these bounds, which holds entries from `min_lsn`
    /// on, and from which those that were gone up to `cleared` were dropped when it was written.
    pub fn may_cover(&self, smallest: &[u8], largest: &[u8], min_lsn: Lsn, cleared: Lsn) -> bool {
        let is_newer = min_lsn < self.lsn && cleared < self.lsn;
        is_newer && &self.start[..] <= largest && self.ends_behind(smallest)
    }

    /// The part of it before `key`.
    fn before(&self, key: &Arc<[u8]>) -> Option<RangeDelete> {
        let end = if self.ends_behind(key) { key.clone() } else { self.end.clone() };
        (self.start < *key).then(|| RangeDelete { end, ..self.clone() })
    }

    /// The part of it from `key` on; an empty key: none.
    fn behind(&self, key: &Arc<[u8]>) -> Option<RangeDelete> {
        let start = key.max(&self.start).clone();
        (!key.is_empty() && self.ends_behind(&start)).then(|| RangeDelete { start, ..self.clone() })
    }
}

impl RangeDeletes {
    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.fragments.is_empty()
    }

    /// What they are made of, ascending.
    pub fn fragments(&self) -> &[RangeDelete] {
        &self.fragments
    }

    /// Up to which LSN `key` is gone.
    #[inline]
    pub fn covering(&self, key: &[u8]) -> Option<Lsn> {
        if self.fragments.is_empty() {
            return None;
        }
        let behind = self.fragments.partition_point(|fragment| &fragment.start[..] <= key);
        let fragment = &self.fragments[behind.checked_sub(1)?];
        fragment.ends_behind(key).then_some(fragment.lsn)
    }

    /// Whether an entry of `key` with this LSN is gone.
    #[inline]
    pub fn covers(&self, key: &[u8], lsn: Lsn) -> bool {
        self.covering(key).is_some_and(|covering| lsn < covering)
    }

    /// Whether everything that a table with these bounds holds is gone, whatever that is.
    pub fn covers_all(&self, smallest: &[u8], largest: &[u8], max_lsn: Lsn) -> bool {
        let behind = self.fragments.partition_point(|fragment| &fragment.start[..] <= smallest);
        let Some(first) = behind.checked_sub(1) else { return false };
        let mut from = smallest;
        for fragment in &self.fragments[first..] {
            if &fragment.start[..] > from || !fragment.ends_behind(from) || fragment.lsn <= max_lsn {
                return false;
            }
            if fragment.ends_behind(largest) {
                return true;
            }
            from = &fragment.end;
        }
        false
    }

    fn of(fragments: Vec<RangeDelete>) -> RangeDeletes {
        let bounds_bytes = fragments.iter().map(|fragment| fragment.start.len() + fragment.end.len()).sum();
        RangeDeletes { fragments, bounds_bytes }
    }

    /// Whether a client may delete these keys now. It adds two fragments at most, and takes away those that lie
    /// wholly in it: so there is always room for deleting everything.
    pub fn has_room(&self, start: &[u8], end: &[u8]) -> bool {
        if start.is_empty() && end.is_empty() {
            return true;
        }
        let fragments = self.fragments.len() + 2;
        let bytes = self.bounds_bytes + 2 * (start.len() + end.len());
        if fragments <= FRAGMENTS_MAX && bytes <= BOUNDS_BYTES_MAX {
            return true;
        }
        let first = self.fragments.partition_point(|fragment| &fragment.start[..] < start);
        let inside = self.fragments[first..].iter();
        let inside = inside.take_while(|f| end.is_empty() || (!f.end.is_empty() && &f.end[..] <= end));
        let freed = inside.fold((0, 0), |(count, bytes), f| (count + 1, bytes + f.start.len() + f.end.len()));
        fragments - freed.0 <= FRAGMENTS_MAX && bytes - freed.1 <= BOUNDS_BYTES_MAX
    }

    /// Whether so much of the room is used that some should be forgotten soon.
    pub fn is_crowded(&self) -> bool {
        self.fragments.len() >= FRAGMENTS_MAX / 4 || self.bounds_bytes >= BOUNDS_BYTES_MAX / 4
    }

    /// With a range delete more.
    #[must_use]
    pub fn with(&self, new: &RangeDelete) -> RangeDeletes {
        let mut fragments: Vec<RangeDelete> = Vec::with_capacity(self.fragments.len() + 2);
        // What is left of the new one.
        let mut rest = Some(new.clone());
        for known in &self.fragments {
            if known.lsn >= new.lsn {
                fragments.extend(rest.as_ref().and_then(|rest| rest.before(&known.start)));
                rest = rest.and_then(|rest| rest.behind(&known.end));
                fragments.push(known.clone());
                continue;
            }
            fragments.extend(known.before(&new.start));
            if let Some(behind) = known.behind(&new.end) {
                fragments.extend(rest.take().and_then(|rest| rest.before(&behind.start)));
                fragments.push(behind);
            }
        }
        fragments.extend(rest);
        fragments.dedup_by(|next, last| {
            let is_one = next.lsn == last.lsn && next.start == last.end;
            if is_one {
                last.end = next.end.clone();
            }
            is_one
        });
        let changed = RangeDeletes::of(fragments);
        debug_assert!(changed.is_sound(), "{changed:?}");
        changed
    }

    /// Without those of the operations with these LSNs.
    #[must_use]
    pub fn without(&self, lsns: &[Lsn]) -> RangeDeletes {
        let lsns: BTreeSet<Lsn> = lsns.iter().copied().collect();
        let mut fragments = self.fragments.clone();
        fragments.retain(|fragment| !lsns.contains(&fragment.lsn));
        RangeDeletes::of(fragments)
    }

    /// The operations of which something is left and of which `is_needed` says no of each fragment.
    pub fn unneeded(&self, is_needed: impl Fn(&RangeDelete) -> bool) -> Vec<Lsn> {
        let mut lsns: BTreeSet<Lsn> = self.fragments.iter().map(|fragment| fragment.lsn).collect();
        for fragment in self.fragments.iter().filter(|fragment| is_needed(fragment)) {
            lsns.remove(&fragment.lsn);
        }
        lsns.into_iter().collect()
    }

    fn is_sound(&self) -> bool {
        let are_ranges = self.fragments.iter().all(|f| f.end.is_empty() || f.start < f.end);
        let is_ordered = self.fragments.windows(2).all(|pair| {
            let (one, next) = (&pair[0], &pair[1]);
            let touch = one.end == next.start;
            !one.end.is_empty() && one.end <= next.start && !(touch && one.lsn == next.lsn)
        });
        are_ranges && is_ordered
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn range(start: &[u8], end: &[u8], lsn: u64) -> RangeDelete {
        RangeDelete::new(start, end, Lsn(lsn)).unwrap()
    }

    fn shown(list: &RangeDeletes) -> String {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let one = |f: &RangeDelete| format!("{}-{}@{}", text(&f.start), text(&f.end), f.lsn.0);
        list.fragments.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn of_ranges_that_overlap_the_newer_counts() {
        let list = RangeDeletes::default().with(&range(b"c", b"g", 10));
        assert_eq!(shown(&list), "c-g@10");
        assert_eq!(shown(&list.with(&range(b"d", b"e", 11))), "c-d@10 d-e@11 e-g@10");
        assert_eq!(shown(&list.with(&range(b"a", b"d", 11))), "a-d@11 d-g@10");
        assert_eq!(shown(&list.with(&range(b"e", b"", 11))), "c-e@10 e-@11");
        assert_eq!(shown(&list.with(&range(b"", b"", 11))), "-@11");
        assert_eq!(shown(&list.with(&range(b"g", b"h", 11))), "c-g@10 g-h@11");
        assert_eq!(shown(&list.with(&range(b"a", b"", 9))), "a-c@9 c-g@10 g-@9");
        assert_eq!(shown(&list.with(&range(b"d", b"f", 9))), "c-g@10");
        assert_eq!(RangeDelete::new(b"b", b"b", Lsn(1)), None);
    }

    #[test]
    fn lists_are_as_a_map_of_all_keys_in_any_order_of_adding() {
        for seed in 0..500 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let ranges: Vec<RangeDelete> = (1..=rng.u64(1..12))
                .filter_map(|lsn| {
                    let (start, end) = ([rng.u8(..20)], [rng.u8(..20)]);
                    let start = if start[0] == 0 { &[][..] } else { &start[..] };
                    RangeDelete::new(start, if end[0] == 0 { &[] } else { &end }, Lsn(lsn * 10))
                })
                .collect();
            let mut model: BTreeMap<u8, u64> = BTreeMap::new();
            for range in &ranges {
                for key in (0..25).filter(|key| [*key][..] >= range.start[..] && range.ends_behind(&[*key])) {
                    model.insert(key, range.lsn.0);
                }
            }
            let add = |list: RangeDeletes, range: &RangeDelete| list.with(range);
            let list = ranges.iter().fold(RangeDeletes::default(), add);
            assert!(list.is_sound(), "seed {seed}");
            for key in 0..25 {
                let covering = list.covering(&[key]).map(|lsn| lsn.0);
                assert_eq!(covering, model.get(&key).copied(), "seed {seed}: key {key} of {list:?}");
            }
            let mut shuffled = ranges.clone();
            rng.shuffle(&mut shuffled);
            shuffled.extend(ranges.first().cloned());
            assert_eq!(shuffled.iter().fold(RangeDeletes::default(), add), list, "seed {seed}");
            let (from, to) = (rng.u8(..25), rng.u8(..25));
            let (from, to) = (from.min(to), from.max(to));
            for lsn in [15, 35, 75] {
                // Between two keys of one byte there are others, which the same fragments cover.
                let all = (from..=to).all(|key| model.get(&key).is_some_and(|covering| *covering > lsn));
                assert_eq!(list.covers_all(&[from], &[to], Lsn(lsn)), all, "seed {seed}: {list:?}");
                let some = (from..=to).any(|key| model.get(&key).is_some_and(|covering| *covering > lsn));
                let any = |min_lsn, cleared| {
                    list.fragments.iter().any(|f| f.may_cover(&[from], &[to], min_lsn, cleared))
                };
                assert_eq!(any(Lsn(lsn), Lsn::ZERO), some, "seed {seed}");
                assert_eq!(any(Lsn::ZERO, Lsn(lsn)), some, "seed {seed}");
            }
        }
    }

    #[test]
    fn an_operation_is_forgotten_only_with_all_its_fragments() {
        let list = RangeDeletes::default().with(&range(b"c", b"g", 10)).with(&range(b"d", b"e", 11));
        assert_eq!(list.unneeded(|_| false), [Lsn(10), Lsn(11)]);
        assert_eq!(list.unneeded(|fragment| &fragment.start[..] == b"e"), [Lsn(11)]);
        assert_eq!(shown(&list.without(&[Lsn(11), Lsn(99)])), "c-d@10 e-g@10");
        assert!(list.without(&[Lsn(10), Lsn(11)]).is_empty());
    }

    #[test]
    fn room_is_bounded_in_fragments_and_in_bytes_but_for_what_makes_some() {
        let mut list = RangeDeletes::default();
        let mut count = 0u64;
        let bounds = |count: u64| ((count * 2).to_be_bytes(), (count * 2 + 1).to_be_bytes());
        while list.has_room(&bounds(count).0, &bounds(count).1) {
            list = list.with(&range(&bounds(count).0, &bounds(count).1, count + 1));
            count += 1;
        }
        assert!(list.is_crowded() && (FRAGMENTS_MAX as u64 - 2..=FRAGMENTS_MAX as u64).contains(&count));
        assert!(list.has_room(b"", b"") && list.has_room(&bounds(7).0, b""));
        assert!(list.has_room(&bounds(7).0, &bounds(9).1) && !list.has_room(&bounds(8).1, &bounds(9).0));
        let all = list.with(&range(b"", b"", count + 1));
        assert_eq!((all.fragments.len(), all.bounds_bytes), (1, 0));
        let (one, two, long) = ([1; 60_000], [2; 60_000], [3; 10_000]);
        let list = RangeDeletes::default().with(&range(&one, &two, 1));
        assert_eq!(list.bounds_bytes, 120_000);
        assert!(!list.has_room(&two, &long.repeat(5)) && list.has_room(&two, &long) && list.is_crowded());
    }
}
