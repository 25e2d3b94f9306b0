//! Fetches into the processor's cache what lookups of several keys will touch, all of one kind before what depends on
//! it. A lookup alone waits for each of these in turn: of a table in memory some ten lines, each of which lies anywhere.
//!
//! Nothing is looked up for good here, and nothing counts as used: a lookup that follows does both, and finds what
//! it needs near by. So it does not matter what of this is left out: tables whose index is not resident are.

use std::rc::Rc;

use smallvec::SmallVec;

use super::Engine;
use super::memtable::PREFETCH_MAX;
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
    /// Fetches what lookups of `keys` will touch of tables, at most [`PREFETCH_MAX`] of them, if the lookups before
    /// these found blocks in memory. What they touch of the memtable was [fetched](Engine::prefetch) before.
    pub fn fetch_of_tables(&self, keys: &[Key<'_>]) {
        if !self.finds_blocks.get() {
            return;
        }
        let keys = &keys[..keys.len().min(PREFETCH_MAX)];
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

    /// Parts of tables that are in memory and may have one of `keys`, of which the memtable has none; by key, newest
    /// first.
    fn candidates_of(&self, keys: &[Key<'_>]) -> SmallVec<[Candidate; PREFETCH_MAX]> {
        let active = self.active.borrow();
        let mut candidates = SmallVec::new();
        for (at, key) in keys.iter().enumerate() {
            if active.get(key.hash, key.bytes).is_some() {
                continue;
            }
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
