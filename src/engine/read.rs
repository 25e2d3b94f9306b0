//! The read path: memtables newest first, then the tables of the key's tablet newest first.
//!
//! A lookup is synchronous as long as every block it needs is in memory. Where one is missing, it says
//! which; the caller loads it and looks again *from the start*. So whoever reads in order to write
//! decides on what is current at the moment of the decision, whatever happened while it waited.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::sstable::{Block, BlockHandle, Table};
use super::{Engine, EngineError};
use crate::base::{BlockSeq, Entry, FileId, OpKind};
use crate::env::Env;
use crate::metrics::Metrics;

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

/// A block that a lookup needs and that is not in memory.
pub struct MissingBlock<E: Env> {
    table: Rc<Table<E>>,
    handle: BlockHandle,
}

impl<E: Env> MissingBlock<E> {
    /// Bytes to be read.
    pub fn len(&self) -> usize {
        self.handle.len
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

/// Blocks loaded for one request. Holding them here lets the request come to its end even if the cache
/// evicts them at once.
#[derive(Default)]
pub struct Loaded {
    blocks: BTreeMap<(FileId, u64), Rc<Block>>,
}

impl Loaded {
    /// With nothing loaded.
    pub const fn new() -> Loaded {
        Loaded { blocks: BTreeMap::new() }
    }

    fn get(&self, file: FileId, offset: u64) -> Option<Rc<Block>> {
        self.blocks.get(&(file, offset)).cloned()
    }
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
        if let Some(entry) = self.active.borrow().get(key.hash, key.bytes) {
            return Ok(Lookup::Done(visit(self.found(key, entry))));
        }
        for sealed in self.sealed.borrow().iter().rev() {
            if let Some(entry) = sealed.memtable.get(key.hash, key.bytes) {
                return Ok(Lookup::Done(visit(self.found(key, entry))));
            }
        }
        self.lookup_tables(key, loaded, visit)
    }

    fn found<'a>(&self, key: &Key<'_>, entry: Entry<'a>) -> Found<'a> {
        let wait = self.wal.block_of(self.tablet(key.tablet).log, entry.lsn.index());
        Found { entry: self.live(entry), wait }
    }

    fn lookup_tables<R>(
        &self,
        key: &Key<'_>,
        loaded: &Loaded,
        visit: impl FnOnce(Found<'_>) -> R,
    ) -> Result<Lookup<R, E>, EngineError> {
        let version = self.tablet(key.tablet).version();
        for member in version.candidates(key.bytes) {
            let table = &member.table;
            Metrics::add(&self.metrics.filter_checks, 1);
            if !table.may_contain(key.hash) {
                Metrics::add(&self.metrics.filter_negatives, 1);
                continue;
            }
            let Some(handle) = table.locate(key.bytes) else { continue };
            let block = match loaded.get(table.file(), handle.offset) {
                Some(block) => Some(block),
                None => self.cache.get(table.file(), handle.offset),
            };
            let Some(block) = block else {
                Metrics::add(&self.metrics.cache_misses, 1);
                return Ok(Lookup::Missing(MissingBlock { table: table.clone(), handle }));
            };
            Metrics::add(&self.metrics.cache_hits, 1);
            if let Some(entry) = block.get(key.hash, key.bytes) {
                // Tables hold only what was durable when they were written.
                return Ok(Lookup::Done(visit(Found { entry: self.live(entry), wait: None })));
            }
            Metrics::add(&self.metrics.filter_false_positives, 1);
        }
        Ok(Lookup::Done(visit(Found { entry: None, wait: None })))
    }

    /// Reads a missing block into `loaded` and the cache. Suspends; afterwards anything may have changed,
    /// so the caller looks up again.
    pub async fn load(&self, missing: MissingBlock<E>, loaded: &mut Loaded) -> Result<(), EngineError> {
        let place = (missing.table.file(), missing.handle.offset);
        if loaded.blocks.contains_key(&place) {
            return Ok(()); // two keys of one request are in it
        }
        Metrics::add(&self.metrics.disk_reads, 1);
        let block = self.cache.read(&missing.table, missing.handle).await?;
        loaded.blocks.insert(place, block);
        Ok(())
    }

    /// What a reader sees of a key's newest entry: nothing, if it is a tombstone or its time is past. The
    /// wait for its block stays: that the key is absent is news as well.
    #[inline]
    fn live<'a>(&self, entry: Entry<'a>) -> Option<Entry<'a>> {
        let is_live = entry.kind == OpKind::Put && !entry.is_expired(self.now_ms());
        is_live.then_some(entry)
    }
}
