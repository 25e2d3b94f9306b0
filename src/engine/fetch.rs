//! Fetches into the processor's cache what lookups of several keys will touch, all of one kind before what depends on
//! it. A lookup alone waits for each of these in turn: two or three lines for what is in a memtable or a row, and of a
//! table in memory some ten, each of which lies anywhere.
//!
//! Nothing is looked up for good here, and nothing counts as used: a lookup that follows does both, and finds what
//! it needs near by. So it does not matter what of this is left out: tables whose index is not resident are.

use std::rc::Rc;

use smallvec::SmallVec;

use super::Engine;
use super::memtable::{Half, PREFETCH_MAX};
use super::read::Key;
use super::sstable::{BlockHandle, Partition};
use crate::base::FileId;
use crate::env::Env;

/// A part of a table that may have a key.
struct Candidate {
    /// Which of the keys.
    key: usize,
    file: FileId,
    partition: Rc<Partition>,
}

impl<E: Env> Engine<E> {
    /// Fetches what requests will touch whose keys have these `hashes`; `read` are those of them that are read. At most
    /// [`PREFETCH_MAX`] of each.
    pub fn fetch(&self, hashes: &[u64], read: &[Key<'_>]) {
        let read = &read[..read.len().min(PREFETCH_MAX)];
        let rows = self.rows.borrow();
        // On their way while the memtable is seen to.
        read.iter().for_each(|key| rows.prefetch_slots(key.hash));
        let active = self.active.borrow();
        active.prefetch(hashes);
        if rows.is_empty() && !self.finds_blocks.get() {
            return;
        }
        let of_tables =
            read.iter().filter(|key| !active.may_contain(key.hash) && !rows.prefetch_row(key.hash));
        let of_tables: SmallVec<[Key<'_>; PREFETCH_MAX]> = of_tables.copied().collect();
        if !of_tables.is_empty() && self.finds_blocks.get() {
            self.fetch_of_tables(&of_tables);
        }
    }

    /// The same of one request that reads, in two halves, between which others should have their turn.
    #[inline]
    pub fn fetch_half(&self, hash: u64, half: Half) {
        self.active.borrow().prefetch_half(hash, half);
        let rows = self.rows.borrow();
        match half {
            Half::Slot => rows.prefetch_slots(hash),
            Half::Record => {
                rows.prefetch_row(hash);
            }
        }
    }

    /// Of keys that no memtable has and no row.
    fn fetch_of_tables(&self, keys: &[Key<'_>]) {
        let mut candidates = self.candidates_of(keys);
        candidates.retain(|one| one.partition.may_contain(keys[one.key].hash));
        // The newest of each key. Another one is needed only if the filter has erred.
        candidates.dedup_by_key(|one| one.key);
        let places = candidates.iter().filter_map(|one| {
            let block = one.partition.find(keys[one.key].bytes)?;
            Some((keys[one.key].hash, one.file, one.partition.handle(block)))
        });
        let places: SmallVec<[(u64, FileId, BlockHandle); PREFETCH_MAX]> = places.collect();
        let blocks = places.iter().filter_map(|(hash, file, handle)| {
            let block = self.cache.peek(*file, *handle)?;
            block.prefetch_tags();
            Some((*hash, block))
        });
        let blocks: SmallVec<[_; PREFETCH_MAX]> = blocks.collect();
        for (hash, block) in &blocks {
            block.prefetch_record(*hash);
        }
    }

    /// Parts of tables that are in memory and may have one of `keys`; by key, newest first.
    fn candidates_of(&self, keys: &[Key<'_>]) -> SmallVec<[Candidate; PREFETCH_MAX]> {
        let mut candidates = SmallVec::new();
        for (at, key) in keys.iter().enumerate() {
            for (member, _) in self.tablet(key.tablet).version().candidates(key.bytes) {
                let table = &member.table;
                let found = table.find_partition(key.bytes).and_then(|number| table.pinned(number));
                if let Some(partition) = found {
                    candidates.push(Candidate { key: at, file: table.file(), partition });
                }
            }
        }
        candidates
    }
}
