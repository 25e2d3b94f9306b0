//! The hash index: linear probing over (hash bits, place) in small tables that split one by one.
//!
//! Extendible hashing: a directory, indexed by the upper bits of the hash, names the table of a key. A
//! table that is full hands half of its slots to a new one; that moves some hundred slots whatever the
//! size of the index, and frees nothing. Tables that double instead stop the shard longer the larger they
//! are, and leave behind as many bytes of old tables as they have new ones.

use super::arena::Place;
use crate::base::prefetch;

/// Slots of a table: two pages, and little enough to divide between two writes.
const SLOTS: usize = 1024;
/// Slots in use at which a table is divided. A successful search looks at 2.5 slots then, a vain one at 9.
const SLOTS_USED_MAX: u16 = SLOTS as u16 / 4 * 3;
/// Bits of the hash that the directory may use; the rest of a tag tells keys of one table apart.
const DEPTH_MAX: u32 = 20;
/// Directory entries a table, at most. Far more than chance needs; only equal hashes come here.
const DIRECTORY_SPREAD_MAX: usize = 64;
/// Tables freed in one step.
const DROP_TABLES: usize = 64;

/// One slot: the upper 32 bits of the hash above 32 bits of place; 0 is free. The hash bits let a split
/// leave the arena alone, and drop nearly every false candidate without a cache miss.
type Slot = u64;

/// Maps hashes to records. Nothing is ever removed.
pub struct Index {
    /// Table by the upper `depth` bits of the hash.
    directory: Vec<u32>,
    depth: u32,
    tables: Vec<Table>,
    /// Slots of hashes so many of which are equal that no split parts them. Empty unless someone
    /// knows the hash seed.
    overflow: Vec<Slot>,
}

struct Table {
    slots: Box<[Slot]>,
    used: u16,
    /// Upper bits of the hash that all its keys share.
    depth: u8,
}

impl Index {
    /// An empty one.
    pub fn new() -> Index {
        Index { directory: vec![0], depth: 0, tables: vec![Table::new(0)], overflow: Vec::new() }
    }

    #[inline]
    fn table(&self, tag: u32) -> usize {
        self.directory[(u64::from(tag) << self.depth >> 32) as usize] as usize
    }

    /// The record with this hash for which `is_it` holds.
    #[inline]
    pub fn find(&self, hash: u64, is_it: impl Fn(Place) -> bool) -> Option<Place> {
        let tag = tag(hash);
        let slots = &self.tables[self.table(tag)].slots;
        let mut at = home(tag);
        loop {
            let slot = slots[at];
            if slot == 0 {
                break;
            }
            if slot_tag(slot) == tag && is_it(Place(slot as u32)) {
                return Some(Place(slot as u32));
            }
            at = (at + 1) % SLOTS;
        }
        let is_equal = |slot: &&Slot| slot_tag(**slot) == tag && is_it(Place(**slot as u32));
        self.overflow.iter().find(is_equal).map(|slot| Place(*slot as u32))
    }

    /// Adds a record that is not in here.
    #[inline]
    pub fn insert(&mut self, hash: u64, record: Place) {
        assert!(record != Place::NONE, "a record has a place");
        let tag = tag(hash);
        let slot = u64::from(tag) << 32 | u64::from(record.0);
        let mut number = self.table(tag);
        while self.tables[number].used == SLOTS_USED_MAX {
            if !self.split(tag, number) {
                self.overflow.push(slot);
                return;
            }
            number = self.table(tag);
        }
        self.tables[number].insert(slot);
    }

    /// Divides a table by the next bit of the hash; `tag` is one that belongs there.
    #[cold]
    fn split(&mut self, tag: u32, number: usize) -> bool {
        let depth = u32::from(self.tables[number].depth);
        if depth == self.depth {
            let len = self.directory.len() * 2;
            if depth == DEPTH_MAX || len > self.tables.len() * DIRECTORY_SPREAD_MAX {
                return false;
            }
            self.directory = self.directory.iter().flat_map(|&table| [table, table]).collect();
            self.depth += 1;
        }
        let table = &mut self.tables[number];
        let upper = table.split();
        assert_eq!(table.used + upper.used, SLOTS_USED_MAX, "a split loses no slot");
        // All that pointed to the table lies together; the upper half now points to the new one.
        let pointers = 1 << (self.depth - depth);
        let first = (u64::from(tag) << depth >> 32) as usize * pointers;
        self.directory[first + pointers / 2..first + pointers].fill(self.tables.len() as u32);
        self.tables.push(upper);
        true
    }

    /// Starts to fetch the first slot that `find` looks at.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        let tag = tag(hash);
        prefetch(&self.tables[self.table(tag)].slots[home(tag)]);
    }

    /// The first record whose slot has the hash bits: nearly always the one that `find` returns.
    #[inline]
    pub fn candidate(&self, hash: u64) -> Option<Place> {
        self.find(hash, |_| true)
    }

    /// Bytes allocated.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.tables.len() * SLOTS * size_of::<Slot>()
            + self.tables.capacity() * size_of::<Table>()
            + self.directory.capacity() * size_of::<u32>()
            + self.overflow.capacity() * size_of::<Slot>()
    }

    /// Frees some tables; `false` if none is left. Nothing can be found any more.
    pub fn drop_step(&mut self) -> bool {
        self.tables.truncate(self.tables.len().saturating_sub(DROP_TABLES));
        !self.tables.is_empty()
    }
}

/// The upper half of the hash: its upper bits choose the table, its lower ones the slot.
#[inline]
fn tag(hash: u64) -> u32 {
    (hash >> 32) as u32
}

#[inline]
fn slot_tag(slot: Slot) -> u32 {
    (slot >> 32) as u32
}

/// Where a slot's probing starts.
#[inline]
fn home(tag: u32) -> usize {
    tag as usize % SLOTS
}

impl Table {
    fn new(depth: u8) -> Table {
        Table { slots: vec![0; SLOTS].into_boxed_slice(), used: 0, depth }
    }

    #[inline]
    fn insert(&mut self, slot: Slot) {
        let mut at = home(slot_tag(slot));
        while self.slots[at] != 0 {
            at = (at + 1) % SLOTS;
        }
        self.slots[at] = slot;
        self.used += 1;
    }

    /// Keeps the slots whose next hash bit is 0 and returns a table of the others.
    fn split(&mut self) -> Table {
        let bit = 1 << (31 - self.depth);
        self.depth += 1;
        let mut upper = Table::new(self.depth);
        let mut old = [0; SLOTS];
        old.copy_from_slice(&self.slots);
        self.slots.fill(0);
        self.used = 0;
        for slot in old.into_iter().filter(|slot| *slot != 0) {
            let half = if slot_tag(slot) & bit == 0 { &mut *self } else { &mut upper };
            half.insert(slot);
        }
        upper
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_directory(index: &Index) {
        assert_eq!(index.directory.len(), 1 << index.depth);
        let mut first = 0;
        while first < index.directory.len() {
            let number = index.directory[first];
            let pointers = 1 << (index.depth - u32::from(index.tables[number as usize].depth));
            assert_eq!(first % pointers, 0, "pointers to a table start where its hash bits do");
            assert!(index.directory[first..first + pointers].iter().all(|&other| other == number));
            first += pointers;
        }
    }

    #[test]
    fn what_is_inserted_is_found_and_nothing_else() {
        for seed in 0..3 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut index = Index::new();
            let hashes: Vec<u64> = (0..50_000).map(|_| rng.u64(..)).collect();
            for (n, &hash) in hashes.iter().enumerate() {
                index.insert(hash, Place(n as u32 + 1));
            }
            check_directory(&index);
            assert!(index.overflow.is_empty(), "seed {seed}");
            for (n, &hash) in hashes.iter().enumerate() {
                let place = Place(n as u32 + 1);
                assert_eq!(index.find(hash, |found| found == place), Some(place), "seed {seed}");
                assert_eq!(index.find(hash, |_| false), None);
            }
            while index.drop_step() {}
        }
    }

    #[test]
    fn equal_and_lopsided_hashes_are_found_within_bounded_memory() {
        let spread: fn(u64) -> u64 = |n| n << 40;
        let shapes: [fn(u64) -> u64; 3] = [|_| u64::MAX, |n| n, spread];
        for hash in shapes {
            let mut index = Index::new();
            for n in 1..=3000 {
                index.insert(hash(n), Place(n as u32));
            }
            check_directory(&index);
            for n in 1..=3000u64 {
                let place = Place(n as u32);
                assert_eq!(index.find(hash(n), |found| found == place), Some(place));
            }
            assert!(index.bytes() < 1 << 20, "{}", index.bytes());
        }
    }
}
