//! A tablet's tables at one moment: immutable, replaced as a whole. Whoever reads keeps the version that it
//! took, and with it the files.
//!
//! Invariants:
//! - `upper` holds tables that may overlap, newest first: of one key, the entry in the first table that has it
//!   is the newest.
//! - `last` holds tables that do not overlap, ascending; everything in there is older than what `upper` has
//!   of the same key.
//! - A descent takes the oldest tables of `upper` down the keys, step by step. Those that take part are the
//!   ones with a smallest key in their clip, they are the oldest, and all have come equally far. So a version
//!   says all there is to know of a descent, after a restart as well.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::manifest::{Bounds, Clip, TableRef, TabletState};
use super::ranges::{RangeDelete, RangeDeletes};
use super::sstable::{Table, TableMeta};
use crate::base::{FileId, Lsn};
use crate::env::Env;
use crate::slot::SlotRange;

/// What some tables hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// How many they are.
    pub tables: u64,
    /// Bytes of their files that count; about, where tables are clipped.
    pub bytes: u64,
    /// Entries that count, tombstones included; likewise.
    pub entries: u64,
    /// Tombstones that count; likewise.
    pub tombstones: u64,
}

impl Totals {
    /// Adds others.
    pub fn add(&mut self, other: Totals) {
        self.tables += other.tables;
        self.bytes += other.bytes;
        self.entries += other.entries;
        self.tombstones += other.tombstones;
    }

    /// Of several.
    pub fn of<'a, E: Env>(members: impl IntoIterator<Item = &'a Rc<Member<E>>>) -> Totals {
        let mut sum = Totals::default();
        members.into_iter().for_each(|member| sum.add(member.totals));
        sum
    }
}

/// A table as a tablet refers to it.
pub struct Member<E: Env> {
    /// The open table, which other members may share.
    pub table: Rc<Table<E>>,
    /// Which part of it counts; `None`: all.
    pub clip: Option<Clip>,
    /// When it was written, what range deletes up to this LSN had removed was left out.
    pub cleared: Lsn,
    /// What of it counts.
    totals: Totals,
}

/// The tables of a tablet.
pub struct Version<E: Env> {
    upper: Vec<Rc<Member<E>>>,
    last: Vec<Rc<Member<E>>>,
    upper_totals: Totals,
    last_totals: Totals,
}

impl<E: Env> Member<E> {
    /// What `clip` leaves of `table`, which was written without what range deletes up to `cleared` had removed.
    pub fn new(table: Rc<Table<E>>, clip: Option<Clip>, cleared: Lsn) -> Rc<Member<E>> {
        let meta = table.meta();
        let whole =
            Totals { tables: 1, bytes: meta.bytes, entries: meta.entries, tombstones: meta.tombstones };
        let totals = clip.as_ref().map_or(whole, |clip| clipped(&table, clip, whole));
        Rc::new(Member { table, clip, cleared, totals })
    }

    /// All of `table`, likewise.
    pub fn whole(table: Rc<Table<E>>, cleared: Lsn) -> Rc<Member<E>> {
        Member::new(table, None, cleared)
    }

    /// As the manifest names all of it, above the last level.
    pub fn whole_ref(&self) -> TableRef {
        TableRef { cleared: self.cleared, ..TableRef::from(self.meta()) }
    }

    /// Whether range deletes have left nothing of it.
    pub fn is_gone(&self, ranges: &RangeDeletes) -> bool {
        let meta = self.meta();
        ranges.covers_all(self.smallest(), &meta.largest, meta.max_lsn)
    }

    /// Whether it may hold something that `range` removed.
    pub fn may_hold(&self, range: &RangeDelete) -> bool {
        let meta = self.meta();
        range.may_cover(self.smallest(), &meta.largest, meta.min_lsn, self.cleared)
    }

    /// The table's facts, whatever the clip.
    pub fn meta(&self) -> &TableMeta {
        self.table.meta()
    }

    /// What of it counts, about.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The keys that may count.
    #[inline]
    pub fn bounds(&self) -> Bounds<'_> {
        let meta = self.meta();
        Bounds::new(&meta.smallest, &meta.largest, self.clip.as_ref())
    }

    /// The smallest key that may count.
    pub fn smallest(&self) -> &[u8] {
        self.bounds().first()
    }

    /// Whether a key may be in the part that counts, by its place in the order of keys. The slot is the
    /// caller's affair: a tablet is asked for its own keys only.
    #[inline]
    pub fn covers(&self, key: &[u8]) -> bool {
        self.bounds().covers(key)
    }

    /// Whether it takes part in a descent that is under way.
    pub fn is_sinking(&self) -> bool {
        self.clip.as_ref().is_some_and(|clip| !clip.smallest.is_empty())
    }

    /// The slots that count, if the table may hold keys of others.
    pub fn foreign_to(&self) -> Option<SlotRange> {
        let (clip, own) = (self.clip.as_ref()?.slots, self.meta().slots);
        (clip.first() > own.first() || clip.last() < own.last()).then_some(clip)
    }

    /// As it is once a descent has come to `from`: only keys from there on count. `None`: no key does.
    fn advanced(&self, slots: SlotRange, from: &[u8]) -> Option<Rc<Member<E>>> {
        let end = self.clip.as_ref().map_or(Box::default(), |clip| clip.end.clone());
        let slots = self.clip.as_ref().map_or(slots, |clip| clip.slots);
        let clip = Clip { slots, smallest: from.into(), end };
        let member = Member::new(self.table.clone(), Some(clip), self.cleared);
        (!member.bounds().is_empty()).then_some(member)
    }
}

/// What `clip` leaves of `whole`: as much of it as of the slots, and of the blocks between its ends.
fn clipped<E: Env>(table: &Table<E>, clip: &Clip, whole: Totals) -> Totals {
    let meta = table.meta();
    let end = if clip.end.is_empty() { meta.bytes } else { table.bytes_before(&clip.end) };
    let bytes = u128::from(end.saturating_sub(table.bytes_before(&clip.smallest)));
    let (first, last) =
        (clip.slots.first().max(meta.slots.first()), clip.slots.last().min(meta.slots.last()));
    let slots = u128::from((u32::from(last) + 1).saturating_sub(first.into()));
    let (all_bytes, all_slots) = (u128::from(meta.bytes), u128::from(meta.slots.count()));
    // At least 1, so that a table of which something counts is never taken for nothing.
    let part = |all: u64| (u128::from(all) * bytes / all_bytes * slots / all_slots).max(1) as u64;
    Totals {
        bytes: part(whole.bytes),
        entries: part(whole.entries),
        tombstones: part(whole.tombstones).min(whole.tombstones),
        ..whole
    }
}

impl<E: Env> Default for Version<E> {
    fn default() -> Version<E> {
        Version::new(Vec::new(), Vec::new())
    }
}

impl<E: Env> Clone for Version<E> {
    fn clone(&self) -> Version<E> {
        Version {
            upper: self.upper.clone(),
            last: self.last.clone(),
            upper_totals: self.upper_totals,
            last_totals: self.last_totals,
        }
    }
}

impl<E: Env> Version<E> {
    /// Of tables newest first, and of the last level's, ascending.
    pub fn new(upper: Vec<Rc<Member<E>>>, last: Vec<Rc<Member<E>>>) -> Version<E> {
        let is_ordered = last.windows(2).all(|pair| pair[0].bounds().ends_before(pair[1].smallest()));
        assert!(is_ordered, "the last level's tables ascend and share no keys");
        let (upper_totals, last_totals) = (Totals::of(&upper), Totals::of(&last));
        Version { upper, last, upper_totals, last_totals }
    }

    /// That of a tablet as the manifest knows it, whose tables are open.
    ///
    /// # Panics
    /// If one of its tables is not among `tables`.
    pub fn of(state: &TabletState, tables: &BTreeMap<FileId, Rc<Table<E>>>) -> Version<E> {
        let member = |table: &TableRef| {
            let open = tables.get(&table.file).expect("every table that the manifest names was opened");
            Member::new(open.clone(), table.clip.clone(), table.cleared)
        };
        let (upper, last) = state.tables.split_at(state.upper());
        Version::new(upper.iter().map(member).collect(), last.iter().map(member).collect())
    }

    /// The tables that may overlap, newest first.
    pub fn upper(&self) -> &[Rc<Member<E>>] {
        &self.upper
    }

    /// The last level's, ascending.
    pub fn last(&self) -> &[Rc<Member<E>>] {
        &self.last
    }

    /// What those hold that may overlap.
    pub fn upper_totals(&self) -> Totals {
        self.upper_totals
    }

    /// What those of the last level hold.
    pub fn last_totals(&self) -> Totals {
        self.last_totals
    }

    /// All of them, those above the last level newest first.
    pub fn members(&self) -> impl Iterator<Item = &Rc<Member<E>>> {
        self.upper.iter().chain(&self.last)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.upper.is_empty() && self.last.is_empty()
    }

    /// Those that may hold `key`, newest first, and whether they are of the last level: of that at most one is.
    #[inline]
    pub fn candidates(&self, key: &[u8]) -> impl Iterator<Item = (&Rc<Member<E>>, bool)> {
        let behind = self.last.partition_point(|member| member.smallest() <= key);
        let last = behind.checked_sub(1).map(|at| &self.last[at]);
        let upper = self.upper.iter().map(|member| (member, false));
        upper.chain(last.map(|member| (member, true))).filter(move |(member, _)| member.covers(key))
    }

    /// With each member replaced.
    #[must_use]
    pub fn map(&self, change: impl Fn(&Member<E>) -> Rc<Member<E>>) -> Version<E> {
        let all = |members: &[Rc<Member<E>>]| members.iter().map(|member| change(member)).collect();
        Version::new(all(&self.upper), all(&self.last))
    }

    /// Those of the last level that may share keys with `bounds`.
    pub fn reached_by(&self, bounds: &Bounds<'_>) -> &[Rc<Member<E>>] {
        let first = self.last.partition_point(|member| member.bounds().ends_before(bounds.first()));
        let rest = &self.last[first..];
        &rest[..rest.partition_point(|member| !bounds.ends_before(member.smallest()))]
    }

    /// How many tables of `upper` are in front of those that take part in a descent that is under way.
    pub fn front(&self) -> usize {
        self.upper.iter().position(|member| member.is_sinking()).unwrap_or(self.upper.len())
    }

    /// With a table more, newer than all others.
    #[must_use]
    pub fn with_newest(&self, member: Rc<Member<E>>) -> Version<E> {
        let mut changed = self.clone();
        changed.upper_totals.add(member.totals);
        changed.upper.insert(0, member);
        changed
    }

    /// With the outcome of a merge in the place of its inputs, which stand next to each other in `upper`.
    /// Flushes may have put newer tables in front of them since they were taken; nothing else moves them.
    #[must_use]
    pub fn with_merged(&self, inputs: &[Rc<Member<E>>], output: Option<Rc<Member<E>>>) -> Version<E> {
        let mut upper = self.upper.clone();
        let at = upper.iter().position(|member| Rc::ptr_eq(&member.table, &inputs[0].table));
        let at = at.expect("inputs of a merge stay until it is installed");
        upper.splice(at..at + inputs.len(), output);
        Version::new(upper, self.last.clone())
    }

    /// After a step of a descent: `gone` go from either level, tables of `upper` named in `advanced` count from
    /// `from` on, and `added` join the last level. As [`Change::Descend`](super::manifest::Change) has it.
    #[must_use]
    pub fn descended(
        &self,
        gone: &[FileId],
        advanced: &[FileId],
        slots: SlotRange,
        from: &[u8],
        added: Vec<Rc<Member<E>>>,
    ) -> Version<E> {
        let stays = |member: &&Rc<Member<E>>| !gone.contains(&member.table.file());
        let upper = self.upper.iter().filter(stays).map(|member| {
            if advanced.contains(&member.table.file()) {
                member.advanced(slots, from).expect("a table of which nothing is left goes")
            } else {
                member.clone()
            }
        });
        let mut last: Vec<_> = self.last.iter().filter(stays).cloned().collect();
        last.extend(added);
        last.sort_by(|a, b| a.smallest().cmp(b.smallest()));
        Version::new(upper.collect(), last)
    }
}
