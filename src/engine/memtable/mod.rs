//! The memtable: what was written since the last flush, of all tablets of a shard.
//!
//! A hash index over an arena, with order made on the side:
//! - The arena (`arena`) holds one `record` for each version that may be asked for. The first one of a key names the
//!   newest, every other one the version before it; both by a 32-bit word number. A version that no snapshot sees gives
//!   its record to the next one, if that fits: what is written over and over stays where it is.
//! - The index (`index`) leads from a hash to the first record. It grows in small tables that split one
//!   by one: doubling one big table of a million entries would stop the shard for 18 ms.
//! - Each tablet keeps the first records of its keys as they came (`order`); runs of [`RUN_ENTRIES`]
//!   are sorted in small steps ([`Memtable::sort_step`]) and merged when they are read.
//!
//! A point operation is 5 to 8 times faster than in an ordered map, the sorting included. One shard owns
//! it all, so there is no lock and no atomic.
//!
//! Invariants: a key has one first record, hence one place in one order log; versions of a key have
//! falling LSNs from the newest on; `bytes()` is what is allocated, and only grows until
//! [`Memtable::drop_step`].

mod arena;
mod index;
mod order;
mod record;
#[cfg(test)]
mod tests;

pub use self::arena::{Place, SpareChunks};
pub use self::order::{MemtableIter, RUN_ENTRIES};
pub use self::record::StagedRecord;

use self::arena::Arena;
use self::index::Index;
use self::order::Order;
use self::record::{Link, Record};
use crate::base::{Entry, Lsn, OpKind};

/// Lookups that are prefetched together, at most: about as many misses as a core keeps in flight.
pub const PREFETCH_MAX: usize = 32;

/// What a lookup waits for, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// The slot of the index.
    Slot,
    /// The first record of the key, which the slot names.
    Record,
}

impl Half {
    /// In the order in which they are to be fetched.
    pub const ALL: [Half; 2] = [Half::Slot, Half::Record];
}

/// What of a key a reader of an earlier moment sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visible {
    /// The version at this place.
    At(Place),
    /// Nothing: all that is in here is newer.
    Nothing,
    /// The versions looked at are newer; go on from this one.
    More(Place),
}

/// What was written since the last flush.
pub struct Memtable {
    arena: Arena,
    index: Index,
    orders: Vec<Order>,
    /// Of `orders`, allocated. Counted along, because writers ask for the sum at every write.
    order_bytes: usize,
    entries: usize,
}

impl Memtable {
    /// An empty one for tablets `0..tablets`.
    pub fn new(tablets: usize) -> Memtable {
        Memtable::with_spare(tablets, SpareChunks::default())
    }

    /// The same, which takes its memory from `spare` first and leaves it there, as do those after it.
    pub fn with_spare(tablets: usize, spare: SpareChunks) -> Memtable {
        Memtable {
            arena: Arena::new(spare),
            index: Index::new(),
            orders: (0..tablets).map(|_| Order::default()).collect(),
            order_bytes: tablets * size_of::<Order>(),
            entries: 0,
        }
    }

    /// An empty one that comes after this one.
    pub fn successor(&self, tablets: usize) -> Memtable {
        Memtable::with_spare(tablets, self.arena.spare().clone())
    }

    /// Makes room for tablets up to `tablets`: one has come.
    pub fn grow(&mut self, tablets: usize) {
        let more = tablets.saturating_sub(self.orders.len());
        self.orders.extend((0..more).map(|_| Order::default()));
        self.order_bytes += more * size_of::<Order>();
    }

    /// Adds a version of `key`, newer than every one in here. One after `kept` may take the place of the version before
    /// it: nobody asks for what was the newest at a moment between the two.
    #[allow(clippy::too_many_arguments)] // they are the fields of an entry, and stay in registers
    pub fn insert(
        &mut self,
        tablet: usize,
        hash: u64,
        key: &[u8],
        lsn: Lsn,
        kind: OpKind,
        expiry_ms: u64,
        value: &[u8],
        kept: Lsn,
    ) {
        let entry = Entry { lsn, kind, expiry_ms, value };
        self.insert_by(tablet, hash, key, lsn, |arena, link| match link {
            Link::Behind(previous)
                if Record::at(arena, previous).lsn() > kept && record::replace(arena, previous, &entry) =>
            {
                previous
            }
            link => record::push(arena, link, key, &entry),
        });
    }

    /// The same of a large value that was staged.
    pub fn insert_staged(
        &mut self,
        tablet: usize,
        hash: u64,
        key: &[u8],
        lsn: Lsn,
        expiry_ms: u64,
        staged: StagedRecord,
    ) {
        self.insert_by(tablet, hash, key, lsn, |arena, link| staged.adopt(arena, link, lsn, expiry_ms));
    }

    #[inline]
    fn insert_by(
        &mut self,
        tablet: usize,
        hash: u64,
        key: &[u8],
        lsn: Lsn,
        write: impl FnOnce(&mut Arena, Link) -> Place,
    ) {
        if let Some(first) = self.find(hash, key) {
            let previous = Record::at(&self.arena, first).link();
            let last = Record::at(&self.arena, previous).lsn();
            assert!(lsn > last, "versions of a key are added in order: {lsn} after {last}");
            let newest = write(&mut self.arena, Link::Behind(previous));
            if newest != previous {
                self.arena.set_u32(first, newest.0);
            }
        } else {
            let first = write(&mut self.arena, Link::First);
            self.arena.set_u32(first, first.0);
            self.index.insert(hash, first);
            self.order_bytes += self.orders[tablet].push(key, first);
            self.entries += 1;
        }
    }

    /// The first record of `key`.
    #[inline]
    fn find(&self, hash: u64, key: &[u8]) -> Option<Place> {
        self.index.find(hash, |first| Record::at(&self.arena, first).key() == key)
    }

    /// The newest version of `key`.
    #[inline]
    pub fn get(&self, hash: u64, key: &[u8]) -> Option<Entry<'_>> {
        let first = Record::at(&self.arena, self.find(hash, key)?);
        Some(Record::at(&self.arena, first.link()).entry())
    }

    /// All versions of `key`, newest first.
    pub fn versions(&self, hash: u64, key: &[u8]) -> impl Iterator<Item = Entry<'_>> {
        let first = self.find(hash, key);
        let mut next = first.map(|first| Record::at(&self.arena, first).link());
        std::iter::from_fn(move || {
            let record = Record::at(&self.arena, next?);
            next = if record.is_first() { None } else { Some(record.link()) };
            Some(record.entry())
        })
    }

    /// Fetches what lookups of these hashes will touch, all of one kind before the next depends on it:
    /// index slots, then first records, then newest ones. A lookup alone waits for each of these in turn.
    pub fn prefetch(&self, hashes: &[u64]) {
        let mut firsts = [Place::NONE; PREFETCH_MAX];
        let hashes = &hashes[..hashes.len().min(PREFETCH_MAX)];
        hashes.iter().for_each(|hash| self.index.prefetch(*hash));
        for (first, hash) in firsts.iter_mut().zip(hashes) {
            if let Some(candidate) = self.index.candidate(*hash) {
                *first = candidate;
                Record::at(&self.arena, candidate).prefetch();
            }
        }
        for first in firsts.into_iter().filter(|first| *first != Place::NONE) {
            let newest = Record::at(&self.arena, first).link();
            if newest != first {
                Record::at(&self.arena, newest).prefetch();
            }
        }
    }

    /// Whether a key with this hash is in here, for nearly certain.
    #[inline]
    pub fn may_contain(&self, hash: u64) -> bool {
        self.index.candidate(hash).is_some()
    }

    /// A half of [`Memtable::prefetch`] for one hash.
    #[inline]
    pub fn prefetch_half(&self, hash: u64, half: Half) {
        match half {
            Half::Slot => self.index.prefetch(hash),
            Half::Record => {
                if let Some(candidate) = self.index.candidate(hash) {
                    Record::at(&self.arena, candidate).prefetch();
                }
            }
        }
    }

    /// Bytes allocated.
    #[inline]
    pub fn bytes(&self) -> usize {
        self.arena.bytes() + self.index.bytes() + self.order_bytes
    }

    /// Keys.
    pub fn entries(&self) -> usize {
        self.entries
    }

    /// Keys of one tablet; none of one that came after this memtable was sealed.
    pub fn tablet_entries(&self, tablet: usize) -> usize {
        self.orders.get(tablet).map_or(0, Order::len)
    }

    /// Sorts at most one run: about 40 µs, but 200 where keys share more than 20 bytes, since each is then
    /// fetched. `false`: all full runs are sorted.
    pub fn sort_step(&self) -> bool {
        self.orders.iter().any(|order| order.sort_step(&self.arena))
    }

    /// The newest version of every key of a tablet from `from` on, in the order of keys. The memtable must
    /// not take writes meanwhile.
    pub fn iter<'a>(&'a self, tablet: usize, from: &[u8]) -> MemtableIter<'a> {
        self.orders[tablet].iter(&self.arena, from)
    }

    /// Sorts at most one full run of a tablet, as [`Memtable::sort_step`] does. `false`: none is left.
    pub fn sort_tablet_step(&self, tablet: usize) -> bool {
        self.orders[tablet].sort_step(&self.arena)
    }

    /// Visits the keys of a tablet in order, or in reverse order, until told to stop: from the first not below
    /// `bound` on, or from the last below it. With each key comes the place of its newest version. Full runs
    /// must have been sorted by [`Memtable::sort_tablet_step`].
    pub fn walk<'a>(
        &'a self,
        tablet: usize,
        bound: Option<&[u8]>,
        is_reverse: bool,
        mut visit: impl FnMut(&'a [u8], Place) -> bool,
    ) {
        let newest = |first| Record::at(&self.arena, first).link();
        self.orders[tablet].walk(&self.arena, bound, is_reverse, |key, first| visit(key, newest(first)));
    }

    /// The newest version not after `lsn` of the key that has a version at `from`, there or before it. Looks at
    /// `steps` versions at most: a key may have been written a million times.
    pub fn visible(&self, mut from: Place, lsn: Lsn, steps: usize) -> Visible {
        for _ in 0..steps {
            let record = Record::at(&self.arena, from);
            if record.lsn() <= lsn {
                return Visible::At(from);
            }
            if record.is_first() {
                return Visible::Nothing;
            }
            from = record.link();
        }
        Visible::More(from)
    }

    /// The version at a place that [`Memtable::visible`] told.
    #[inline]
    pub fn entry_at(&self, place: Place) -> Entry<'_> {
        Record::at(&self.arena, place).entry()
    }

    /// Frees a piece of a memtable that is no longer needed and takes no more calls but this. `false`:
    /// nothing is left. Giving hundreds of megabytes back at once would stop the shard.
    pub fn drop_step(&mut self) -> bool {
        self.arena.drop_step() || self.index.drop_step() || self.orders.iter_mut().any(Order::drop_step)
    }
}
