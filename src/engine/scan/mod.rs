//! Scans: the live keys of one tablet, or of all tablets of the shard, in order or in reverse order, as of a
//! [`Snapshot`].
//!
//! A scan merges sources: of each tablet each memtable, each table above the last level, and the last level as
//! one, since its tables do not overlap. Each source gives of a key the newest version that the snapshot sees; of
//! sources on one key the newest has the word (`Ranking`). What a scan passes over: tombstones, what has expired or is
//! in a range that was deleted later, and what lies outside of the part of a table that counts.
//!
//! - [`Scan::fill`] never suspends. It goes on while blocks are in memory and work is allowed, then says what it
//!   waits for; [`Scan::load`] reads what all sources miss, side by side. [`Scan::run`] does both, at a pace.
//! - No borrow of a memtable outlives a step, and writers go on meanwhile: of a memtable a scan copies keys in
//!   small chunks, and begins each with a search for where it is (`memory`). Values are copied once, to where the
//!   caller wants them.
//! - When a memtable becomes tables, the scan goes on with those from where it is. The other sources stay.
//! - Memory: of each memtable and tablet a chunk of keys, of each table some blocks; what all scans of a shard
//!   read ahead is bounded by [`AHEAD_BYTES_MAX`] and a little for each of their tables.

mod memory;
mod tables;
#[cfg(test)]
mod tests;

use std::rc::Rc;

use self::memory::MemorySource;
use self::tables::TableSource;
use super::damage::MetBy;
use super::merge::Ranking;
use super::snapshot::Snapshot;
use super::sstable::{Block, Bound, Partition, TableError, Wanted};
use super::{Engine, EngineError};
use crate::base::{Entry, FileId, KEY_BYTES_MAX, OpKind};
use crate::env::{Env, Pacer, join_all};
use crate::metrics::Metrics;

/// Bytes that all scans of a shard may have read ahead; beyond, each table reads little at a time.
pub const AHEAD_BYTES_MAX: usize = 16 << 20;
/// Bytes that one scan reads ahead of all its tables, and as many that it walks meanwhile.
const AHEAD_BYTES_OF_SCAN: usize = 4 << 20;
/// Bytes that one table reads ahead.
const AHEAD_BYTES_OF_TABLE: usize = 256 << 10;
/// And at least.
const AHEAD_BYTES_MIN: usize = 16 << 10;
/// Reads of one scan that are on their way together.
const READS_MAX: usize = 64;
/// Steps between two looks at the clock: about 15 µs.
const SLICE: u32 = 64;

/// Which keys, and in which order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanRange {
    /// The smallest.
    pub start: Vec<u8>,
    /// The first that is not in it any more; empty: all from the start on are.
    pub end: Vec<u8>,
    /// From the last to the first.
    pub is_reverse: bool,
}

impl ScanRange {
    /// Whether `key` lies behind the range, on the way that the scan takes.
    #[inline]
    fn is_behind(&self, key: &[u8]) -> bool {
        if self.is_reverse { key < &self.start[..] } else { !self.end.is_empty() && key >= &self.end[..] }
    }

    /// Where a scan of it begins.
    fn bound(&self) -> Bound {
        match self.is_reverse {
            false => Bound::Key(self.start.clone()),
            true if self.end.is_empty() => Bound::None,
            true => Bound::Key(self.end.clone()),
        }
    }

    /// Whether keys from `smallest` to `largest` may be in it.
    fn overlaps(&self, smallest: &[u8], largest: &[u8]) -> bool {
        largest >= &self.start[..] && (self.end.is_empty() || smallest < &self.end[..])
    }

    /// What is left of it once `key` was passed.
    #[must_use]
    pub fn after(&self, key: &[u8]) -> ScanRange {
        let mut rest = self.clone();
        let bound = if self.is_reverse { &mut rest.end } else { &mut rest.start };
        bound.clear();
        bound.extend_from_slice(key);
        if !self.is_reverse && !to_next(bound) {
            // Nothing is above it.
            rest.end.clone_from(&rest.start);
        }
        rest
    }
}

/// Makes a key the least one above it. `false`: there is none, and it stays as it is.
fn to_next(key: &mut Vec<u8>) -> bool {
    if key.len() < KEY_BYTES_MAX {
        key.push(0);
        return true;
    }
    // None that begins with it is a key: it was longer than one can be.
    let Some(last) = key.iter().rposition(|byte| *byte != 0xFF) else { return false };
    key.truncate(last + 1);
    key[last] += 1;
    true
}

/// Why a scan has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filled {
    /// The caller took no more.
    Full,
    /// There is no more.
    End,
    /// Blocks are missing; [`Scan::load`] reads them.
    Missing,
    /// The work that was allowed is done.
    Paused,
}

/// Where a source is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// On a key.
    Ready,
    /// At its end.
    End,
    /// Short of a block.
    Missing,
    /// On its way: it has more to do than one step may take.
    Busy,
}

/// What a source must know to move.
struct Context<'a, E: Env> {
    engine: &'a Engine<E>,
    range: &'a ScanRange,
}

/// Which source it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    /// Of a view, the memtable with this number.
    Memory(usize, u64),
    /// Of a view, a table.
    Table(usize, FileId),
    /// Of a view, the last level.
    Last(usize),
}

impl Name {
    /// Of which view.
    #[inline]
    fn view(self) -> usize {
        match self {
            Name::Memory(view, _) | Name::Table(view, _) | Name::Last(view) => view,
        }
    }
}

enum Kind<E: Env> {
    Memory(MemorySource),
    Table(TableSource<E>),
}

struct Source<E: Env> {
    name: Name,
    kind: Kind<E>,
    standing: Standing,
}

impl<E: Env> Source<E> {
    #[inline]
    fn key(&self) -> &[u8] {
        match &self.kind {
            Kind::Memory(source) => source.key(),
            Kind::Table(source) => source.key(),
        }
    }

    /// Leaves the key it stands on.
    #[inline]
    fn advance(&mut self, context: &Context<'_, E>) -> Result<Standing, TableError> {
        self.standing = match &mut self.kind {
            Kind::Memory(source) => source.advance(context),
            Kind::Table(source) => source.advance(context)?,
        };
        Ok(self.standing)
    }

    /// Goes on, where it was short of a block or busy.
    fn settle(&mut self, context: &Context<'_, E>) -> Result<Standing, TableError> {
        self.standing = match &mut self.kind {
            Kind::Memory(source) => source.settle(context),
            Kind::Table(source) => source.settle(context)?,
        };
        Ok(self.standing)
    }
}

/// A scan on its way.
pub struct Scan<E: Env> {
    snapshot: Rc<Snapshot<E>>,
    range: ScanRange,
    /// Newest first, as far as one tablet is concerned.
    sources: Vec<Source<E>>,
    /// Those that stand on a key.
    ranking: Ranking,
    /// Those that must be looked at before anything else, since their next key may come first.
    unsettled: Vec<usize>,
    /// Those that are short of a block.
    starved: Vec<usize>,
    /// Of the snapshot, when the sources were put together.
    epoch: Option<u64>,
    /// The last key that was given or passed over; empty: none was.
    left: Vec<u8>,
}

impl<E: Env> Scan<E> {
    /// A scan of a snapshot.
    pub fn new(snapshot: Rc<Snapshot<E>>, range: ScanRange) -> Scan<E> {
        Scan {
            snapshot,
            ranking: Ranking::new(range.is_reverse, 0),
            range,
            sources: Vec::new(),
            unsettled: Vec::new(),
            starved: Vec::new(),
            epoch: None,
            left: Vec::new(),
        }
    }

    /// What it scans.
    pub fn snapshot(&self) -> &Rc<Snapshot<E>> {
        &self.snapshot
    }

    /// Which keys it gives.
    pub fn range(&self) -> &ScanRange {
        &self.range
    }

    /// The last key that was given or passed over; `None`: none was.
    pub fn position(&self) -> Option<&[u8]> {
        (!self.left.is_empty()).then_some(&self.left[..])
    }

    /// Gives entries to `visit` until that returns `false`: the entry was not taken, and comes first next time.
    /// `visit` must not call back into the engine. Each step takes one of `work`. After an error the scan is of no
    /// further use.
    pub fn fill(
        &mut self,
        engine: &Engine<E>,
        work: &mut u32,
        visit: impl FnMut(&[u8], &Entry<'_>) -> bool,
    ) -> Result<Filled, EngineError> {
        self.fill_some(engine, work, visit).inspect_err(|error| engine.note_damage(MetBy::Scan, error))
    }

    fn fill_some(
        &mut self,
        engine: &Engine<E>,
        work: &mut u32,
        mut visit: impl FnMut(&[u8], &Entry<'_>) -> bool,
    ) -> Result<Filled, EngineError> {
        self.snapshot.touch(engine.env.now())?;
        let snapshot = self.snapshot.clone();
        if self.epoch != Some(snapshot.epoch()) {
            self.gather_sources(engine);
        }
        let now_ms = snapshot.now_ms();
        let (mut given, mut passed) = (0, 0);
        let filled = loop {
            if let Some(stop) = self.settle(engine, work)? {
                break stop;
            }
            let Some(first) = self.ranking.first() else { break Filled::End };
            let source = &self.sources[first];
            let ranges = snapshot.views()[source.name.view()].ranges();
            let mut show = |key: &[u8], entry: Entry<'_>| {
                let is_live =
                    entry.kind == OpKind::Put && !entry.is_expired(now_ms) && !ranges.covers(key, entry.lsn);
                is_live.then(|| visit(key, &entry))
            };
            let shown = match &source.kind {
                Kind::Memory(source) => {
                    source.with_entry(engine, |entry| show(source.key(), entry)).flatten()
                }
                Kind::Table(source) => source.current().and_then(|(key, entry)| show(key, entry)),
            };
            match shown {
                Some(false) => break Filled::Full,
                Some(true) => given += 1,
                None => passed += 1,
            }
            self.leave_key(engine, first, work)?;
        };
        Metrics::add(&engine.metrics.scan_entries, given);
        Metrics::add(&engine.metrics.scan_skipped, passed);
        Ok(filled)
    }

    /// Has each source that stands on the key of `first` leave it.
    #[inline]
    fn leave_key(&mut self, engine: &Engine<E>, first: usize, work: &mut u32) -> Result<(), EngineError> {
        self.left.clear();
        self.left.extend_from_slice(self.sources[first].key());
        let context = Context { engine, range: &self.range };
        let mut is_tied = self.ranking.may_be_tied();
        while let Some(number) = self.ranking.pop() {
            *work = work.saturating_sub(1);
            match self.sources[number].advance(&context)? {
                Standing::Ready => self.ranking.enlist(number, |number| self.sources[number].key()),
                Standing::End => {}
                Standing::Busy | Standing::Missing => self.unsettled.push(number),
            }
            let next = if is_tied { self.ranking.first() } else { None };
            match next {
                Some(next) if self.sources[next].key() == self.left => is_tied = true,
                _ => break,
            }
        }
        Ok(())
    }

    /// Has all sources stand on a key or be at their end. If that can't be had now: why.
    fn settle(&mut self, engine: &Engine<E>, work: &mut u32) -> Result<Option<Filled>, EngineError> {
        let context = Context { engine, range: &self.range };
        while let Some(number) = self.unsettled.pop() {
            if *work == 0 {
                self.unsettled.push(number);
                return Ok(Some(Filled::Paused));
            }
            *work = work.saturating_sub(2);
            match self.sources[number].settle(&context)? {
                Standing::Ready => self.ranking.enlist(number, |number| self.sources[number].key()),
                Standing::End => {}
                Standing::Missing => self.starved.push(number),
                Standing::Busy => {
                    // Sorting a run, or looking at many versions: as long as all else of a slice.
                    *work = work.saturating_sub(SLICE / 2);
                    self.unsettled.push(number);
                }
            }
        }
        Ok(match () {
            () if !self.starved.is_empty() => Some(Filled::Missing),
            () if *work == 0 => Some(Filled::Paused),
            () => None,
        })
    }

    /// Puts the sources together, as they are now. Those that were there before go on where they are.
    fn gather_sources(&mut self, engine: &Engine<E>) {
        self.epoch = Some(self.snapshot.epoch());
        let rest = if self.left.is_empty() { self.range.clone() } else { self.range.after(&self.left) };
        let bound = rest.bound();
        let mut before: Vec<Option<Source<E>>> =
            std::mem::take(&mut self.sources).into_iter().map(Some).collect();
        let mut reuse = |name: Name, make: &mut dyn FnMut() -> Option<Kind<E>>| {
            let known =
                before.iter_mut().find(|source| source.as_ref().is_some_and(|known| known.name == name));
            match known.and_then(Option::take) {
                Some(source) => Some(source),
                None => make().map(|kind| Source { name, kind, standing: Standing::Busy }),
            }
        };
        let mut sources = Vec::new();
        let memtables = engine.memtables_of(&self.snapshot);
        for (number, view) in self.snapshot.views().iter().enumerate() {
            for memtable in memtables.iter().filter(|memtable| view.counts(**memtable)) {
                let mut make = || {
                    let local = view.local();
                    let keys = engine.with_memtable(*memtable, |memtable| memtable.tablet_entries(local));
                    let source = || MemorySource::new(local, view.lsn(), *memtable, bound.clone());
                    keys.filter(|keys| *keys > 0).map(|_| Kind::Memory(source()))
                };
                sources.extend(reuse(Name::Memory(number, *memtable), &mut make));
            }
            let version = view.version();
            for member in version.upper() {
                let mut make = || {
                    let is_in = rest.overlaps(member.smallest(), &member.meta().largest)
                        && !member.is_gone(view.ranges());
                    is_in.then(|| Kind::Table(TableSource::one(member.clone(), view.lsn(), bound.clone())))
                };
                sources.extend(reuse(Name::Table(number, member.table.file()), &mut make));
            }
            let mut make =
                || TableSource::last(&version, view.lsn(), &bound, rest.is_reverse).map(Kind::Table);
            sources.extend(reuse(Name::Last(number), &mut make));
        }
        self.sources = sources;
        self.ranking = Ranking::new(self.range.is_reverse, self.sources.len());
        self.starved.clear();
        self.unsettled.clear();
        for (number, source) in self.sources.iter().enumerate() {
            match source.standing {
                Standing::Ready => self.ranking.enlist(number, |number| self.sources[number].key()),
                Standing::End => {}
                Standing::Missing | Standing::Busy => self.unsettled.push(number),
            }
        }
    }

    /// Reads what sources miss, side by side. Suspends; blocks that were read stay with the scan. After an error
    /// it is of no further use.
    pub async fn load(&mut self, engine: &Engine<E>) -> Result<(), EngineError> {
        self.load_some(engine).await.inspect_err(|error| engine.note_damage(MetBy::Scan, error))
    }

    async fn load_some(&mut self, engine: &Engine<E>) -> Result<(), EngineError> {
        let tables =
            self.sources.iter().filter(|source| matches!(source.kind, Kind::Table(_))).count().max(1);
        let ahead_max = match engine.ahead_bytes.held.get() < AHEAD_BYTES_MAX {
            true => (AHEAD_BYTES_OF_SCAN / tables).clamp(AHEAD_BYTES_MIN, AHEAD_BYTES_OF_TABLE),
            false => AHEAD_BYTES_MIN,
        };
        let starved = std::mem::take(&mut self.starved);
        for some in starved.chunks(READS_MAX) {
            let mut reads = Vec::with_capacity(some.len());
            for &number in some {
                if let Kind::Table(source) = &mut self.sources[number].kind
                    && let Some((table, wanted)) = source.wanted(ahead_max)
                {
                    reads.push(async move {
                        Ok::<_, TableError>(match wanted {
                            Wanted::Block(handle) => {
                                (number, Read::Block(engine.cache.block(&table, handle).await?))
                            }
                            Wanted::Large(handle) => {
                                engine.ahead_bytes.note(handle.len);
                                (number, Read::Block(table.read_block(handle).await?))
                            }
                            Wanted::Partition(partition) => {
                                let read = engine.cache.partition(&table, partition).await?;
                                (number, Read::Partition(read))
                            }
                            Wanted::Ahead { offset, len } => {
                                engine.ahead_bytes.note(len);
                                (number, Read::Ahead(offset, table.read_bytes(offset, len).await?))
                            }
                            Wanted::Flight(flight) => {
                                let (offset, bytes) = flight.land().await?;
                                (number, Read::Ahead(offset, bytes))
                            }
                        })
                    });
                }
            }
            for read in join_all(reads).await {
                let (number, read) = read?;
                if let Kind::Table(source) = &mut self.sources[number].kind {
                    match read {
                        Read::Block(block) => source.supply_block(block),
                        Read::Partition(partition) => source.supply_partition(partition),
                        Read::Ahead(offset, bytes) => source.supply_ahead(offset, bytes, &engine.ahead_bytes),
                    }
                }
            }
        }
        self.unsettled.extend(starved);
        Ok(())
    }

    /// Nobody may go on with it for some time.
    pub fn rest(&mut self) {
        for source in &mut self.sources {
            if let Kind::Table(source) = &mut source.kind {
                source.rest();
            }
        }
    }

    /// Gives entries to `visit` until that returns `false`, there are no more, or `work` is done, at the pace of
    /// background work. Suspends; writes go on meanwhile, and are not seen.
    pub async fn run(
        &mut self,
        engine: &Engine<E>,
        work: &mut u32,
        mut visit: impl FnMut(&[u8], &Entry<'_>) -> bool,
    ) -> Result<Filled, EngineError> {
        let mut pacer = Pacer::new(&engine.env);
        loop {
            let mut slice = SLICE.min(*work);
            let given = slice;
            let filled = self.fill(engine, &mut slice, &mut visit)?;
            *work -= given - slice;
            match filled {
                Filled::Full | Filled::End => return Ok(filled),
                Filled::Missing => self.load(engine).await?,
                Filled::Paused if *work == 0 => return Ok(filled),
                Filled::Paused => pacer.breathe().await,
            }
        }
    }
}

/// What was read.
enum Read {
    Block(Rc<Block>),
    Partition(Rc<Partition>),
    Ahead(u64, Vec<u8>),
}

impl<E: Env> Engine<E> {
    /// A scan of one tablet, or of all, as they are now.
    pub fn scan(&self, local: Option<usize>, range: ScanRange) -> Scan<E> {
        Metrics::add(&self.metrics.scans, 1);
        Scan::new(self.snapshot(local), range)
    }
}
