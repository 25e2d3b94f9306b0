//! The read path: memtables newest first, then the row cache, then the tables of the key's tablet newest first.
//! An entry whose range was deleted later is absent, and tables that hold only such of the key are passed over.
//!
//! A lookup is synchronous as long as every block it needs is in memory. Where one is missing, it says
//! which; the caller loads it and looks again *from the start*. So whoever reads in order to write
//! decides on what is current at the moment of the decision, whatever happened while it waited.
//! Only tables that the tablet had then and has now, all of them, are not asked again: they do not change.

use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;

use smallvec::SmallVec;

use super::cache::Place;
use super::damage::MetBy;
use super::sstable::{Block, Partition, Table};
use super::version::Version;
use super::{Engine, EngineError};
use crate::base::{BlockSeq, Bug, Entry, FileId, Lsn, OpKind, TableName, planted};
use crate::env::{Env, join_all};
use crate::metrics::{Metrics, note_slow};

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
    stop: Stop,
}

/// Where among a tablet's tables a lookup found a part missing.
struct Stop {
    key: SmallVec<[u8; 16]>,
    /// The tablet's [`Version`], kept so that no other comes to stand at its address.
    version: Rc<dyn Any>,
    /// Of the table among the key's candidates: those before it do not have the key.
    at: u32,
    /// What it took to know that.
    reads: Reads,
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
    /// The last block, and where the lookup stopped that needs it.
    last: Option<(Stop, Rc<Block>)>,
    reads: Cell<Reads>,
}

/// What lookups do.
#[derive(Clone, Copy)]
enum Read {
    MemtableHit,
    RowHit,
    UpperHit,
    LastHit,
    FilterCheck,
    FilterNegative,
    FilterFalsePositive,
    PartitionHit,
    PartitionMiss,
    CacheHit,
    CacheMiss,
}

const READS: usize = Read::CacheMiss as usize + 1;

/// How often lookups did what. An attempt that misses a block is made again, so this is counted only once an attempt
/// has come to its end: what had to be loaded for it is a miss then, and only that.
#[derive(Clone, Copy, Default)]
struct Reads([u32; READS]);

/// See [`Loaded::mark`].
#[derive(Clone, Copy)]
pub struct Mark(Reads);

impl Loaded {
    /// With nothing loaded.
    pub const fn new() -> Loaded {
        Loaded {
            blocks: BTreeMap::new(),
            partitions: BTreeMap::new(),
            last: None,
            reads: Cell::new(Reads::NONE),
        }
    }

    fn note(&self, read: Read) {
        let mut reads = self.reads.get();
        reads.0[read as usize] += 1;
        self.reads.set(reads);
    }

    /// Where the lookup of `key` stopped, if its tablet has had `version` since.
    fn stopped<E: Env>(&self, version: &Rc<Version<E>>, key: &[u8]) -> Option<&(Stop, Rc<Block>)> {
        let (stop, _) = self.last.as_ref()?;
        let is_same =
            stop.key[..] == *key && std::ptr::addr_eq(Rc::as_ptr(&stop.version), Rc::as_ptr(version));
        self.last.as_ref().filter(|_| is_same)
    }

    /// What was looked up so far, for [`Loaded::back_to`].
    pub fn mark(&self) -> Mark {
        Mark(self.reads.get())
    }

    /// What was looked up since then will be looked up again.
    pub fn back_to(&self, mark: Mark) {
        self.reads.set(mark.0);
    }

    /// The next lookup is made from the start: it may be long until then, and what this knows of the last one keeps all
    /// files that its tablet had.
    pub fn forget_place(&mut self) {
        self.last = None;
    }

    /// What was looked up will be looked up again.
    pub fn forget_reads(&self) {
        self.reads.set(Reads::NONE);
    }
}

impl Reads {
    const NONE: Reads = Reads([0; READS]);

    /// What was done since there were only those `before`.
    fn since(self, before: Reads) -> Reads {
        Reads(std::array::from_fn(|read| self.0[read] - before.0[read]))
    }

    fn with(self, others: Reads) -> Reads {
        Reads(std::array::from_fn(|read| self.0[read] + others.0[read]))
    }
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
            loaded.note(Read::MemtableHit);
            return Ok(Lookup::Done(visit(self.found(key, entry, covering))));
        }
        let sealed = self.sealed.borrow();
        let first = if sealed.is_empty() { 0 } else { self.tablet(key.tablet).memtables_from.get() };
        for sealed in sealed.iter().rev().take_while(|sealed| sealed.number >= first) {
            if let Some(entry) = sealed.memtable.get(key.hash, key.bytes) {
                loaded.note(Read::MemtableHit);
                return Ok(Lookup::Done(visit(self.found(key, entry, covering))));
            }
        }
        drop(sealed);
        if let Some(entry) = self.rows.borrow_mut().get(key.hash, key.bytes) {
            loaded.note(Read::RowHit);
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
        let before = loaded.reads.get();
        let stopped = loaded.stopped(&version, key.bytes);
        let asked = stopped.map_or(0, |(stop, _)| stop.at as usize);
        let mut known = stopped.map(|(stop, block)| (stop.reads, block.clone()));
        for (at, (member, is_last)) in version.candidates(key.bytes).enumerate().skip(asked) {
            let known = known.take();
            if covering.is_some_and(|covering| member.meta().max_lsn < covering) {
                continue; // whatever it has of the key is gone
            }
            let probe = match known {
                Some((reads, block)) => {
                    loaded.reads.set(before.with(reads));
                    loaded.note(Read::CacheMiss);
                    Probe::Loaded(block)
                }
                None => self.probe(&member.table, key, loaded),
            };
            let (block, is_cached) = match probe {
                Probe::Absent => continue,
                Probe::Loaded(block) => (block, false),
                Probe::Cached(block) => (block, true),
                Probe::Missing(place) => {
                    let reads = loaded.reads.get().since(before);
                    let (key, version, at) = (key.bytes.into(), version.clone(), at as u32);
                    let stop = Stop { key, version, at, reads };
                    return Ok(Lookup::Missing(MissingBlock { table: member.table.clone(), place, stop }));
                }
            };
            if let Some(entry) = block.get(key.hash, key.bytes) {
                loaded.note(if is_last { Read::LastHit } else { Read::UpperHit });
                let is_covered = covering.is_some_and(|covering| entry.lsn < covering);
                // What is read from disk for the first time may be all that is wanted of its block. And nothing may
                // come in here that a range delete hides: rows outlive those.
                if is_cached && !is_covered && entry.kind == OpKind::Put {
                    self.rows.borrow_mut().insert(key.hash, key.bytes, &entry);
                }
                return Ok(Lookup::Done(visit(self.found_in_tables(key, entry, covering))));
            }
            loaded.note(Read::FilterFalsePositive);
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
        loaded.note(Read::FilterCheck);
        if !may_contain {
            loaded.note(Read::FilterNegative);
            return Probe::Absent;
        }
        let Some(block) = partition.find(key.bytes) else { return Probe::Absent };
        let handle = partition.handle(block);
        if let Some(block) = loaded.blocks.get(&(table.file(), handle.offset)) {
            loaded.note(Read::CacheMiss);
            return Probe::Loaded(block.clone());
        }
        match self.cache.get(table, handle) {
            Some(block) => {
                loaded.note(Read::CacheHit);
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
            loaded.note(Read::PartitionMiss);
            return Some(partition.clone());
        }
        let partition = self.cache.get_partition(table, number)?;
        loaded.note(Read::PartitionHit);
        Some(partition)
    }

    /// Counts what was looked up with `loaded` since the last time, unless that is
    /// [to be looked up again](Loaded::forget_reads).
    pub fn count_reads(&self, loaded: &Loaded) {
        let reads = loaded.reads.replace(Reads::NONE);
        let count = |read: Read| reads.0[read as usize];
        self.finds_blocks.set(count(Read::CacheHit) > 0);
        let counts = [
            (&self.metrics.memtable_hits, Read::MemtableHit),
            (&self.metrics.row_hits, Read::RowHit),
            (&self.metrics.upper_hits, Read::UpperHit),
            (&self.metrics.last_hits, Read::LastHit),
            (&self.metrics.filter_checks, Read::FilterCheck),
            (&self.metrics.filter_negatives, Read::FilterNegative),
            (&self.metrics.filter_false_positives, Read::FilterFalsePositive),
            (&self.metrics.partition_hits, Read::PartitionHit),
            (&self.metrics.partition_misses, Read::PartitionMiss),
            (&self.metrics.cache_hits, Read::CacheHit),
            (&self.metrics.cache_misses, Read::CacheMiss),
        ];
        for (counter, read) in counts {
            Metrics::add(counter, u64::from(count(read)));
        }
    }

    /// Reads a missing part into `loaded` and the cache. Suspends; afterwards anything may have changed,
    /// so the caller looks up again.
    pub async fn load(&self, missing: MissingBlock<E>, loaded: &mut Loaded) -> Result<(), EngineError> {
        let begin = self.env.now();
        let result = self.load_part(missing, loaded).await;
        note_slow(self.env.now() - begin, &self.metrics.slow_reads, &self.metrics.slow_read_micros);
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
                let block = self.cache.block(table, handle).await?;
                loaded.last = Some((missing.stop, block.clone()));
                loaded.blocks.insert(place, block);
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
