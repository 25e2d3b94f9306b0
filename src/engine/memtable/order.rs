//! Order on the side: per tablet, the first records of its keys as they came, in runs that are sorted in
//! small steps and merged when they are read.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use super::arena::{Arena, Place};
use super::record::Record;
use crate::base::Entry;

/// Entries of a run: sorting one nearly always takes less than a disk read.
pub const RUN_ENTRIES: usize = 1024;
/// Entries that the first run of a tablet has room for at first: one with few keys must not pay for a
/// whole run.
const RUN_ENTRIES_MIN: usize = 16;
/// Runs freed in one step.
const DROP_RUNS: usize = 16;

/// The first bytes of a key, zero-padded, as numbers that compare like them.
type Prefix = (u128, u32);
const PREFIX_BYTES: usize = 20;

/// A record with the first bytes of its key, so that most comparisons don't touch the arena. The prefix
/// lies in pieces, because a tuple of it would be padded.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Item {
    prefix_0: u64,
    prefix_8: u64,
    prefix_16: u32,
    record: Place,
}

const _: () = assert!(size_of::<Item>() == PREFIX_BYTES + size_of::<Place>());

/// The keys of one tablet. Runs are sorted behind a `RefCell`, since a sealed memtable is shared with
/// readers while the flush sorts it; no borrow leaves a call.
#[derive(Default)]
pub struct Order {
    runs: RefCell<Vec<Vec<Item>>>,
    /// Runs before this one are full and sorted.
    sorted: Cell<usize>,
    /// Items of the run behind those that are sorted, from its first on; scans sort it as far as it is filled.
    tail_sorted: Cell<usize>,
    len: usize,
}

/// Up to so many new items are each put into their place; more are sorted and merged.
const INSERTED_MAX: usize = 16;

/// The first 16 bytes, zero-padded.
#[inline]
fn leading(bytes: &[u8]) -> u128 {
    let mut padded = [0; 16];
    let len = bytes.len().min(16);
    padded[..len].copy_from_slice(&bytes[..len]);
    u128::from_be_bytes(padded)
}

#[inline]
fn prefix(key: &[u8]) -> Prefix {
    (leading(key), (leading(key.get(16..).unwrap_or_default()) >> 96) as u32)
}

impl Item {
    #[inline]
    fn new(key: &[u8], record: Place) -> Item {
        let (upper, prefix_16) = prefix(key);
        Item { prefix_0: (upper >> 64) as u64, prefix_8: upper as u64, prefix_16, record }
    }

    #[inline]
    fn prefix(&self) -> Prefix {
        (u128::from(self.prefix_0) << 64 | u128::from(self.prefix_8), self.prefix_16)
    }

    #[inline]
    fn key<'a>(&self, arena: &'a Arena) -> &'a [u8] {
        Record::at(arena, self.record).key()
    }
}

#[inline]
fn compare(arena: &Arena, a: &Item, b: &Item) -> Ordering {
    a.prefix().cmp(&b.prefix()).then_with(|| a.key(arena).cmp(b.key(arena)))
}

fn sort(arena: &Arena, run: &mut [Item]) {
    run.sort_unstable_by_key(Item::prefix);
    for group in run.chunk_by_mut(|a, b| a.prefix() == b.prefix()).filter(|group| group.len() > 1) {
        sort_equal_prefix(arena, group);
    }
}

/// Keys that share their prefix are told apart by what follows all that they share. Each costs a cache
/// miss once, so all are fetched together first.
#[cold]
fn sort_equal_prefix(arena: &Arena, group: &mut [Item]) {
    group.iter().for_each(|item| Record::at(arena, item.record).prefetch());
    let first = group[0].key(arena);
    let shared = |item: &Item| first.iter().zip(item.key(arena)).take_while(|(a, b)| a == b).count();
    let shared = group.iter().map(shared).min().unwrap_or_default();
    let mut keyed: Vec<(u128, Item)> =
        group.iter().map(|item| (leading(&item.key(arena)[shared..]), *item)).collect();
    keyed.sort_unstable_by(|(a, a_item), (b, b_item)| {
        a.cmp(b).then_with(|| a_item.key(arena).cmp(b_item.key(arena)))
    });
    group.iter_mut().zip(keyed).for_each(|(item, (_, sorted))| *item = sorted);
}

impl Order {
    /// Adds a key, and returns how many bytes more are allocated.
    #[inline]
    pub fn push(&mut self, key: &[u8], record: Place) -> usize {
        let mut allocated = 0;
        let runs = self.runs.get_mut();
        if runs.last().is_none_or(|run| run.len() == RUN_ENTRIES) {
            let first = if runs.is_empty() { RUN_ENTRIES_MIN } else { RUN_ENTRIES };
            runs.push(Vec::with_capacity(first));
            allocated = first * size_of::<Item>() + size_of::<Vec<Item>>();
        }
        if let Some(run) = runs.last_mut() {
            let before = run.capacity();
            run.push(Item::new(key, record));
            allocated += (run.capacity() - before) * size_of::<Item>();
        }
        self.len += 1;
        allocated
    }

    /// Keys in here.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Sorts one full run, if one is left.
    pub fn sort_step(&self, arena: &Arena) -> bool {
        let next = self.sorted.get();
        match self.runs.borrow_mut().get_mut(next) {
            Some(run) if run.len() == RUN_ENTRIES => {
                sort(arena, run);
                self.sorted.set(next + 1);
                self.tail_sorted.set(0);
                true
            }
            _ => false,
        }
    }

    /// All keys that are not below `from`, in order. Sorts what is left to sort; after
    /// [`Order::sort_step`] said that nothing is, that is one run at the most.
    pub fn iter<'a>(&'a self, arena: &'a Arena, from: &[u8]) -> MemtableIter<'a> {
        while self.sort_step(arena) {}
        let runs = self.runs.borrow();
        let full = self.sorted.get();
        let mut tail = runs.get(full).cloned().unwrap_or_default();
        sort(arena, &mut tail);
        let least = prefix(from);
        let is_below = |item: &Item| {
            let keys = || item.key(arena).cmp(from);
            item.prefix().cmp(&least).then_with(keys).is_lt()
        };
        let start = |run: &Vec<Item>| if from.is_empty() { 0 } else { run.partition_point(is_below) };
        let cursors: Vec<usize> = runs[..full].iter().chain([&tail]).map(start).collect();
        drop(runs);
        let mut iter = MemtableIter { order: self, arena, tail, cursors, heap: BinaryHeap::new() };
        let heads = (0..iter.cursors.len()).filter_map(|source| iter.head(source)).collect();
        iter.heap = heads;
        iter
    }

    /// Visits keys in order, or in reverse order, until told to stop: from the first not below `bound` on, or
    /// from the last below it. Full runs must be sorted ([`Order::sort_step`]). What came since the last walk is
    /// sorted first: at most one run.
    pub fn walk<'a>(
        &self,
        arena: &'a Arena,
        bound: Option<&[u8]>,
        is_reverse: bool,
        mut visit: impl FnMut(&'a [u8], Place) -> bool,
    ) {
        self.sort_tail(arena);
        let runs = self.runs.borrow();
        assert!(self.sorted.get() + 1 >= runs.len(), "a walk finds full runs sorted");
        let least = bound.map(prefix);
        let is_below = |item: &Item| match (bound, &least) {
            (Some(bound), Some(least)) => {
                item.prefix().cmp(least).then_with(|| item.key(arena).cmp(bound)).is_lt()
            }
            _ => is_reverse,
        };
        // By run, how many items are left on the way.
        let mut heads = BinaryHeap::with_capacity(runs.len());
        for (source, run) in runs.iter().enumerate() {
            let at = run.partition_point(is_below);
            let next = if is_reverse { at.checked_sub(1) } else { Some(at) };
            if let Some((at, item)) = next.and_then(|at| Some((at, *run.get(at)?))) {
                heads.push(WalkHead { item, source, at, is_reverse, arena });
            }
        }
        while let Some(mut top) = heads.peek_mut() {
            if !visit(top.item.key(arena), top.item.record) {
                return;
            }
            let next = if is_reverse { top.at.checked_sub(1) } else { Some(top.at + 1) };
            match next.and_then(|at| Some((at, *runs[top.source].get(at)?))) {
                Some((at, item)) => (top.at, top.item) = (at, item),
                None => drop(PeekMut::pop(top)),
            }
        }
    }

    /// Sorts what came into the run that is not full since this was last called.
    fn sort_tail(&self, arena: &Arena) {
        let mut runs = self.runs.borrow_mut();
        let Some(tail) = runs.get_mut(self.sorted.get()) else { return };
        let sorted = self.tail_sorted.replace(tail.len());
        if tail.len() - sorted > INSERTED_MAX {
            sort(arena, &mut tail[sorted..]);
            // Finds two sorted pieces, which it merges.
            tail.sort_by(|a, b| compare(arena, a, b));
            return;
        }
        for at in sorted..tail.len() {
            let item = tail[at];
            let place = tail[..at].partition_point(|other| compare(arena, other, &item).is_lt());
            tail.copy_within(place..at, place + 1);
            tail[place] = item;
        }
    }

    /// Frees some runs; `false` if none is left.
    pub fn drop_step(&mut self) -> bool {
        let runs = self.runs.get_mut();
        runs.truncate(runs.len().saturating_sub(DROP_RUNS));
        self.sorted.set(self.sorted.get().min(runs.len()));
        !runs.is_empty()
    }
}

/// The next item of a run.
struct Head<'a> {
    item: Item,
    source: usize,
    arena: &'a Arena,
}

impl Ord for Head<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        // Reversed: the heap gives the largest first. A key has one item, so keys never tie.
        compare(self.arena, &other.item, &self.item)
    }
}

impl PartialOrd for Head<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.item == other.item
    }
}

impl Eq for Head<'_> {}

/// The next item of a run on a walk.
struct WalkHead<'a> {
    item: Item,
    source: usize,
    at: usize,
    is_reverse: bool,
    arena: &'a Arena,
}

impl Ord for WalkHead<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let order = compare(self.arena, &self.item, &other.item);
        // The heap gives the largest first.
        if self.is_reverse { order } else { order.reverse() }
    }
}

impl PartialOrd for WalkHead<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for WalkHead<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.item == other.item
    }
}

impl Eq for WalkHead<'_> {}

/// Keys of a tablet in order, each with its newest version. May be kept while the caller suspends, as long
/// as the memtable takes no writes.
pub struct MemtableIter<'a> {
    order: &'a Order,
    arena: &'a Arena,
    /// The run that is not full, sorted.
    tail: Vec<Item>,
    /// Next item of each full run, and of the tail.
    cursors: Vec<usize>,
    heap: BinaryHeap<Head<'a>>,
}

impl<'a> MemtableIter<'a> {
    /// The next item of a run. Starts to fetch the record of the one after it, which takes its turn some
    /// hundred entries later.
    #[inline]
    fn head(&self, source: usize) -> Option<Head<'a>> {
        let at = self.cursors[source];
        let runs = self.order.runs.borrow();
        let run = if source + 1 == self.cursors.len() { &self.tail } else { &runs[source] };
        if let Some(later) = run.get(at + 1) {
            Record::at(self.arena, later.record).prefetch();
        }
        Some(Head { item: *run.get(at)?, source, arena: self.arena })
    }
}

impl<'a> Iterator for MemtableIter<'a> {
    type Item = (&'a [u8], Entry<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let Head { item, source, .. } = *self.heap.peek()?;
        self.cursors[source] += 1;
        let next = self.head(source);
        if let Some(mut top) = self.heap.peek_mut() {
            match next {
                Some(next) => *top = next,
                None => drop(PeekMut::pop(top)),
            }
        }
        let first = Record::at(self.arena, item.record);
        let newest = first.link();
        let entry = if newest == item.record { first } else { Record::at(self.arena, newest) }.entry();
        Some((first.key(), entry))
    }
}
