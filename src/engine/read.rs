//! The read path: memtables newest first, then the row cache, then the tables of the key's tablet newest first.
//! An entry whose range was deleted later is absent, and tables that hold only such of the key are passed over.
//!
//! A lookup is synchronous as long as every block it needs is in memory. Where one is missing, it says
//! which; the caller loads it and looks again *from the start*. So whoever reads in order to write
//! decides on what is current at the moment of the decision, whatever happened while it waited.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use smallvec::SmallVec;

use super::cache::Place;
use super::damage::MetBy;
use super::sstable::{Block, Partition, Table};
use super::{Engine, EngineError};
use crate::base::{BlockSeq, Bug, Entry, FileId, Lsn, OpKind, TableName, planted};
use crate::env::{Env, join_all};
use crate::metrics::Metrics;

/// Reads of one request that are on their way together.
const READS_MAX: usize = 32;

/// A key with what was computed from it once.
#[derive(Clone, Copy, Debug)]
pub struct Key<'a> {
    /// The key.
    pub bytes: &'a [u8],
    /// Its seeded hash ([`Engine::hash`]).
    pub hash: u64,
    /// Local number of its tablet.
    pub tablet: usize,
}

/// What a lookup found.
pub struct Found<'a> {
    /// The live entry; `None` where the key is absent, deleted or expired.
    pub entry: Option<Entry<'a>>,
    /// The block that must be durable before anyone may be told, if it is not yet.
    pub wait: Option<BlockSeq>,
}

/// A block, or a partition of an index, that a lookup needs and that is not in memory.
pub struct MissingBlock<E: Env> {
    table: Rc<Table<E>>,
    place: Place,
}

impl<E: Env> MissingBlock<E> {
    /// Bytes to be read.
    pub fn len(&self) -> usize {
        self.place.handle(&self.table).len
    }

    /// Tells it from others.
    fn key(&self) -> (TableName, bool, u64) {
        match self.place {
            Place::Block(handle) => (self.table.name(), false, handle.offset),
            Place::Partition(number) => (self.table.name(), true, number as u64),
        }
    }

    /// Never: a block is a page at least.
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// Result of a lookup.
pub enum Lookup<R, E: Env> {
    /// What the visitor made of it.
    Done(R),
    /// Load this, then look again.
    Missing(MissingBlock<E>),
}

/// Parts of tables loaded for one request. Holding them here lets the request come to its end even if the
/// cache evicts them at once.
#[derive(Default)]
pub struct Loaded {
    blocks: BTreeMap<(FileId, u64), Rc<Block>>,
    partitions: BTreeMap<(FileId, usize), Rc<Partition>>,
    reads: Cell<Reads>,
}

/// What lookups did. An attempt that misses a block is made again from the start, so this is counted only once
/// an attempt has come to its end: what had to be loaded for it is a miss then, and only that.
#[derive(Clone, Copy, Default)]
struct Reads {
    memtable_hits: u32,
    row_hits: u32,
    upper_hits: u32,
    last_hits: u32,
    filter_checks: u32,
    filter_negatives: u32,
    filter_false_positives: u32,
    partition_hits: u32,
    partition_misses: u32,
    cache_hits: u32,
    cache_misses: u32,
}

/// See [`Loaded::mark`].
#[derive(Clone, Copy)]
pub struct Mark(Reads);

impl Loaded {
    /// With nothing loaded.
    pub const fn new() -> Loaded {
        Loaded { blocks: BTreeMap::new(), partitions: BTreeMap::new(), reads: Cell::new(Reads::NONE) }
    }

    fn note(&self, change: impl FnOnce(&mut Reads)) {
        let mut reads = self.reads.get();
        change(&mut reads);
        self.reads.set(reads);
    }

    /// What was looked up so far, for [`Loaded::back_to`].
    pub fn mark(&self) -> Mark {
        Mark(self.reads.get())
    }

    /// What was looked up since then will be looked up again.
    pub fn back_to(&self, mark: Mark) {
        self.reads.set(mark.0);
    }

    /// What was looked up will be looked up again.
    pub fn forget_reads(&self) {
        self.reads.set(Reads::NONE);
    }
}

impl Reads {
    const NONE: Reads = Reads {
        memtable_hits: 0,
        row_hits: 0,
        upper_hits: 0,
        last_hits: 0,
        filter_checks: 0,
        filter_negatives: 0,
        filter_false_positives: 0,
        partition_hits: 0,
        partition_misses: 0,
        cache_hits: 0,
        cache_misses: 0,
    };
}

/// What one table has of a key.
enum Probe {
    /// Nothing, for certain.
    Absent,
    /// If anything, it is in this block, which was loaded for the request.
    Loaded(Rc<Block>),
    /// If anything, it is in this block, which was in memory.
    Cached(Rc<Block>),
    /// Load this first.
    Missing(Place),
}

impl<E: Env> Engine<E> {
    /// Looks `key` up. `visit` is called at most once, and not if a block is missing. It must not call
    /// back into the engine.
    pub fn lookup<R>(
        &self,
        key: &Key<'_>,
        loaded: &Loaded,
        visit: impl FnOnce(Found<'_>) -> R,
    ) -> Result<Lookup<R, E>, EngineError> {
        let covering = self.tablets.borrow()[key.tablet].ranges.borrow().covering(key.bytes);
        if let Some(entry) = self.active.borrow().get(key.hash, key.bytes) {
            loaded.note(|reads| reads.memtable_hits += 1);
            return Ok(Lookup::Done(visit(self.found(key, entry, covering))));
        }
        let sealed = self.sealed.borrow();
        let first = if sealed.is_empty() { 0 } else { self.tablet(key.tablet).memtables_from.get() };
        for sealed in sealed.iter().rev().take_while(|sealed| sealed.number >= first) {
            if let Some(entry) = sealed.memtable.get(key.hash, key.bytes) {
                loaded.note(|reads| reads.memtable_hits += 1);
                return Ok(Lookup::Done(visit(self.found(key, entry, covering))));
            }
        }
        drop(sealed);
        if let Some(entry) = self.rows.borrow_mut().get(key.hash, key.bytes) {
            loaded.note(|reads| reads.row_hits += 1);
            return Ok(Lookup::Done(visit(self.found_in_tables(key, entry, covering))));
        }
        self.lookup_tables(key, covering, loaded, visit)
    }

    fn found<'a>(&self, key: &Key<'_>, entry: Entry<'a>, covering: Option<Lsn>) -> Found<'a> {
        if covering.is_some_and(|covering| entry.lsn < covering) {
            return self.not_found(key, covering);
        }
        let wait = self.wal.block_of(self.tablet(key.tablet).log, entry.lsn.index());
        Found { entry: self.live(entry), wait }
    }

    /// Tables hold only what was durable when they were written.
    #[inline]
    fn found_in_tables<'a>(&self, key: &Key<'_>, entry: Entry<'a>, covering: Option<Lsn>) -> Found<'a> {
        match covering {
            Some(covering) if entry.lsn < covering => self.not_found(key, Some(covering)),
            _ => Found { entry: self.live(entry), wait: None },
        }
    }

    /// A key that is absent, maybe because its range was deleted at `covering`: that is news as well.
    fn not_found(&self, key: &Key<'_>, covering: Option<Lsn>) -> Found<'static> {
        let log = self.tablet(key.tablet).log;
        Found { entry: None, wait: covering.and_then(|covering| self.wal.block_of(log, covering.index())) }
    }

    fn lookup_tables<R>(
        &self,
        key: &Key<'_>,
        covering: Option<Lsn>,
        loaded: &Loaded,
        visit: impl FnOnce(Found<'_>) -> R,
    ) -> Result<Lookup<R, E>, EngineError> {
        let version = self.tablet(key.tablet).version();
        for (member, is_last) in version.candidates(key.bytes) {
            if covering.is_some_and(|covering| member.meta().max_lsn < covering) {
                continue; // whatever it has of the key is gone
            }
            let (block, is_cached) = match self.probe(&member.table, key, loaded) {
                Probe::Absent => continue,
                Probe::Loaded(block) => (block, false),
                Probe::Cached(block) => (block, true),
                Probe::Missing(place) => {
                    return Ok(Lookup::Missing(MissingBlock { table: member.table.clone(), place }));
                }
            };
            if let Some(entry) = block.get(key.hash, key.bytes) {
                loaded.note(|reads| match is_last {
                    true => reads.last_hits += 1,
                    false => reads.upper_hits += 1,
                });
                let is_covered = covering.is_some_and(|covering| entry.lsn < covering);
                // What is read from disk for the first time may be all that is wanted of its block. And nothing may
                // come in here that a range delete hides: rows outlive those.
                if is_cached && !is_covered && entry.kind == OpKind::Put {
                    self.rows.borrow_mut().insert(key.hash, key.bytes, &entry);
                }
                return Ok(Lookup::Done(visit(self.found_in_tables(key, entry, covering))));
            }
            loaded.note(|reads| reads.filter_false_positives += 1);
        }
        Ok(Lookup::Done(visit(self.not_found(key, covering))))
    }

    /// Asks one table's index and filter for `key`.
    fn probe(&self, table: &Table<E>, key: &Key<'_>, loaded: &Loaded) -> Probe {
        let Some(number) = table.find_partition(key.bytes) else { return Probe::Absent };
        let Some(partition) = self.partition(table, number, loaded) else {
            return Probe::Missing(Place::Partition(number));
        };
        let may_contain = partition.may_contain(key.hash);
        loaded.note(|reads| {
            reads.filter_checks += 1;
            reads.filter_negatives += u32::from(!may_contain);
        });
        if !may_contain {
            return Probe::Absent;
        }
        let Some(block) = partition.find(key.bytes) else { return Probe::Absent };
        let handle = partition.handle(block);
        if let Some(block) = loaded.blocks.get(&(table.file(), handle.offset)) {
            loaded.note(|reads| reads.cache_misses += 1);
            return Probe::Loaded(block.clone());
        }
        match self.cache.get(table, handle) {
            Some(block) => {
                loaded.note(|reads| reads.cache_hits += 1);
                Probe::Cached(block)
            }
            None => Probe::Missing(Place::Block(handle)),
        }
    }

    /// A partition, if it is in memory.
    fn partition(&self, table: &Table<E>, number: usize, loaded: &Loaded) -> Option<Rc<Partition>> {
        if let Some(pinned) = table.pinned(number) {
            return Some(pinned);
        }
        if table.has_fault() {
            return None; // what another name of the same file has is not asked for it
        }
        if let Some(partition) = loaded.partitions.get(&(table.file(), number)) {
            loaded.note(|reads| reads.partition_misses += 1);
            return Some(partition.clone());
        }
        let partition = self.cache.get_partition(table, number)?;
        loaded.note(|reads| reads.partition_hits += 1);
        Some(partition)
    }

    /// Counts what was looked up with `loaded` since the last time, unless that is
    /// [to be looked up again](Loaded::forget_reads).
    pub fn count_reads(&self, loaded: &Loaded) {
        let reads = loaded.reads.replace(Reads::NONE);
        self.finds_blocks.set(reads.cache_hits > 0);
        let counts = [
            (&self.metrics.memtable_hits, reads.memtable_hits),
            (&self.metrics.row_hits, reads.row_hits),
            (&self.metrics.upper_hits, reads.upper_hits),
            (&self.metrics.last_hits, reads.last_hits),
            (&self.metrics.filter_checks, reads.filter_checks),
            (&self.metrics.filter_negatives, reads.filter_negatives),
            (&self.metrics.filter_false_positives, reads.filter_false_positives),
            (&self.metrics.partition_hits, reads.partition_hits),
            (&self.metrics.partition_misses, reads.partition_misses),
            (&self.metrics.cache_hits, reads.cache_hits),
            (&self.metrics.cache_misses, reads.cache_misses),
        ];
        for (counter, count) in counts {
            Metrics::add(counter, u64::from(count));
        }
    }

    /// Reads a missing part into `loaded` and the cache. Suspends; afterwards anything may have changed,
    /// so the caller looks up again.
    pub async fn load(&self, missing: MissingBlock<E>, loaded: &mut Loaded) -> Result<(), EngineError> {
        let result = self.load_part(missing, loaded).await;
        result.inspect_err(|error| self.note_damage(MetBy::Read, error))
    }

    /// As [`Engine::load`], of all parts that one request misses: their reads are on their way together, up to
    /// `READS_MAX` of them. After an error some may be missing still.
    pub async fn load_all(
        &self,
        missing: impl IntoIterator<Item = MissingBlock<E>>,
        loaded: &mut Loaded,
    ) -> Result<(), EngineError> {
        let mut wanted: SmallVec<[MissingBlock<E>; 1]> = missing.into_iter().collect();
        if wanted.len() == 1
            && let Some(part) = wanted.pop()
        {
            return self.load(part, loaded).await;
        }
        // Several keys of one request may be in the same.
        wanted.sort_by_key(MissingBlock::key);
        wanted.dedup_by_key(|part| part.key());
        while !wanted.is_empty() {
            let some = wanted.drain(..wanted.len().min(READS_MAX));
            let reads = some.map(async |part| {
                let mut one = Loaded::new();
                self.load(part, &mut one).await.map(|()| one)
            });
            for mut one in join_all(reads.collect()).await.into_iter().collect::<Result<Vec<_>, _>>()? {
                loaded.blocks.append(&mut one.blocks);
                loaded.partitions.append(&mut one.partitions);
            }
        }
        Ok(())
    }

    async fn load_part(&self, missing: MissingBlock<E>, loaded: &mut Loaded) -> Result<(), EngineError> {
        let table = &missing.table;
        if let Some(fault) = table.fault() {
            return Err(fault.into());
        }
        match missing.place {
            Place::Block(handle) => {
                let place = (table.file(), handle.offset);
                if loaded.blocks.contains_key(&place) {
                    return Ok(()); // two keys of one request are in it
                }
                loaded.blocks.insert(place, self.cache.block(table, handle).await?);
            }
            Place::Partition(number) => {
                let place = (table.file(), number);
                if loaded.partitions.contains_key(&place) {
                    return Ok(());
                }
                loaded.partitions.insert(place, self.cache.partition(table, number).await?);
            }
        }
        Ok(())
    }

    /// What a reader sees of a key's newest entry: nothing, if it is a tombstone or its time is past. The
    /// wait for its block stays: that the key is absent is news as well.
    #[inline]
    fn live<'a>(&self, entry: Entry<'a>) -> Option<Entry<'a>> {
        let is_live =
            entry.kind == OpKind::Put && (!entry.is_expired(self.now_ms()) || planted(Bug::ExpiredShown));
        is_live.then_some(entry)
    }
}
