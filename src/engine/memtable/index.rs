//! The hash index: linear probing over (hash bits, place), in tables that grow one by one.

use super::SEGMENTS;
use super::arena::Place;
use crate::base::prefetch;

/// Slots of a fresh table.
const SLOTS_MIN: usize = 64;

/// One slot: 32 bits of the hash above 32 bits of place; 0 is free. The hash bits let growth leave the
/// arena alone, and drop nearly every false candidate without a cache miss.
type Slot = u64;

/// Maps hashes to nodes. Nothing is ever removed.
pub struct Index {
    tables: Vec<Table>,
}

struct Table {
    slots: Box<[Slot]>,
    used: usize,
}

impl Index {
    /// An empty one.
    pub fn new() -> Index {
        Index { tables: (0..SEGMENTS).map(|_| Table { slots: Box::default(), used: 0 }).collect() }
    }

    #[inline]
    fn table(hash: u64) -> usize {
        (hash >> 57) as usize % SEGMENTS
    }

    /// The node with this hash for which `is_it` holds.
    #[inline]
    pub fn find(&self, hash: u64, is_it: impl Fn(Place) -> bool) -> Option<Place> {
        let table = &self.tables[Self::table(hash)];
        if table.slots.is_empty() {
            return None;
        }
        let mask = table.slots.len() - 1;
        let mut at = home(u64::from(tag(hash)) << 32, mask);
        loop {
            let slot = table.slots[at];
            if slot == 0 {
                return None;
            }
            if (slot >> 32) as u32 == tag(hash) && is_it(Place(slot as u32)) {
                return Some(Place(slot as u32));
            }
            at = (at + 1) & mask;
        }
    }

    /// Adds a node that is not in here.
    #[inline]
    pub fn insert(&mut self, hash: u64, node: Place) {
        assert!(node != Place::NONE, "a node has a place");
        let table = &mut self.tables[Self::table(hash)];
        if (table.used + 1) * 3 > table.slots.len() * 2 {
            table.grow();
        }
        table.insert(u64::from(tag(hash)) << 32 | u64::from(node.0));
        table.used += 1;
    }

    /// Starts to fetch the first slot that `find` looks at.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        let slots = &self.tables[Self::table(hash)].slots;
        if !slots.is_empty() {
            prefetch(&slots[home(u64::from(tag(hash)) << 32, slots.len() - 1)]);
        }
    }

    /// The first node whose slot has the hash bits: nearly always the one that `find` returns.
    #[inline]
    pub fn candidate(&self, hash: u64) -> Option<Place> {
        self.find(hash, |_| true)
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.tables.iter().map(|table| table.slots.len() * size_of::<Slot>()).sum()
    }

    /// Frees one table; `false` if none is left.
    pub fn drop_step(&mut self) -> bool {
        self.tables.pop().is_some()
    }
}

/// Bits 25 to 56, the lowest forced to one so that a tag is never 0. They don't overlap those that choose
/// the table. The slot is derived from the tag, so growth needs nothing but the slots.
#[inline]
fn tag(hash: u64) -> u32 {
    (hash >> 25) as u32 | 1
}

impl Table {
    fn insert(&mut self, slot: Slot) {
        let mask = self.slots.len() - 1;
        let mut at = home(slot, mask);
        while self.slots[at] != 0 {
            at = (at + 1) & mask;
        }
        self.slots[at] = slot;
    }

    fn grow(&mut self) {
        let len = (self.slots.len() * 2).max(SLOTS_MIN);
        let old = std::mem::replace(&mut self.slots, vec![0; len].into_boxed_slice());
        for slot in old.into_iter().filter(|slot| *slot != 0) {
            self.insert(slot);
        }
    }
}

/// Where a slot's probing starts.
#[inline]
fn home(slot: Slot, mask: usize) -> usize {
    (slot >> 33) as usize & mask
}
