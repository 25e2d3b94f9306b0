//! One shard's storage: a log, memtables, and the tables of its tablets. Knows no socket, command or
//! other shard.
//!
//! - A write goes into the open block of the log and into the active memtable in one synchronous step
//!   (`write`). Its block tells when it is durable; until then nobody may hear of it.
//! - A read looks at the memtables, newest first, then at the tables of the key's tablet, newest first
//!   (`read`). It is synchronous unless a block must come from disk.
//! - A key may expire: reads, flushes and merges see its entry as a tombstone from then on (`expiry`).
//! - A range of keys is deleted by one operation, which hides what it removes until that is dropped (`ranges`,
//!   `purge`).
//! - In the background full memtables become tables (`flush`), tables become fewer (`compact`) and come down to
//!   the last level (`descend`), at the pace of what is written (`pace`), and those that nobody needs go
//!   (`obsolete`). What can't be read of them stops none of that (`around`).
//! - A start replays the logs of earlier starts (`recovery`).
//! - Tablets come from other shards, go to them, and split (`transfer`).
//!
//! Invariants:
//! - What a table holds was durable in the log before the manifest named the table.
//! - A log, or a part of one, is given up only after the manifest has recorded that tables hold it.
//! - Memtables are bounded: a full active one and `sealed_max` sealed ones stop writers, not memory.

mod around;
pub mod cache;
pub mod checkpoint;
mod compact;
pub mod compaction;
mod damage;
mod descend;
pub mod expiry;
mod fetch;
mod flush;
mod load;
pub mod manifest;
mod marker;
pub mod memtable;
pub mod merge;
mod obsolete;
mod options;
mod pace;
mod purge;
pub mod ranges;
mod read;
pub mod recovery;
mod rows;
pub mod run;
pub mod scan;
mod scrub;
pub mod snapshot;
pub mod sstable;
mod startable;
mod transfer;
pub mod version;
pub mod wal;
mod write;

#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::{Rc, Weak};
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64_with_seed;

pub use self::load::TabletReport;
pub use self::options::{EngineError, EngineOptions};
pub use self::read::{Found, Key, Loaded, Lookup, MissingBlock};
pub use self::transfer::TransferError;
pub use self::write::{Room, Sealed, Staged, WRITE_OVERHEAD};

use self::around::Avoided;
use self::cache::BlockCache;
use self::damage::Damage;
use self::expiry::Clock;
use self::load::Load;
use self::manifest::{Change, Edit, ShardManifest};
use self::memtable::Memtable;
use self::pace::Pace;
use self::ranges::RangeDeletes;
use self::recovery::OldLog;
use self::rows::RowCache;
use self::snapshot::Snapshot;
use self::sstable::{AheadBytes, IndexBudget, Table, TableError, TableMeta};
use self::transfer::{Leaving, Presence};
use self::version::{Totals, Version};
use self::wal::{Wal, WalTablet};
use crate::base::{EntryIndex, FileId, LogId, Lsn, TableName, TabletId};
use crate::env::{Env, Gate, Lock, Notify};
use crate::metrics::{Metrics, MetricsSnapshot};
use crate::slot::SlotRange;

/// A tablet that this shard owns.
struct Tablet<E: Env> {
    id: TabletId,
    /// Fewer after a split.
    slots: Cell<SlotRange>,
    term: u64,
    log: WalTablet,
    version: RefCell<Rc<Version<E>>>,
    flushed: Cell<EntryIndex>,
    /// The last write applied.
    last_lsn: Cell<Lsn>,
    /// What it was when the last snapshot was taken: that version of a key, and no later one, may still be asked for when
    /// there is a newer one.
    snapshot_lsn: Cell<Lsn>,
    /// Range deletes, as reads see them.
    ranges: RefCell<Rc<RangeDeletes>>,
    /// Those up to the last flush, as the manifest has them: only by these may anything be dropped from tables.
    flushed_ranges: RefCell<Rc<RangeDeletes>>,
    /// The last entry that came from old logs; flushed past it, the tablet needs them no more.
    recovered: EntryIndex,
    old_logs: RefCell<Vec<std::sync::Arc<OldLog>>>,
    /// When a merge that failed may be tried again, by [`Env::now`].
    no_merge_until: Cell<Duration>,
    /// How long it waited after its last failure.
    merge_delay: Cell<Duration>,
    /// Tables that merges go around.
    avoided: Avoided,
    /// What of [`Pace`]'s debt and allowance is its own.
    dues: Cell<(u64, u64)>,
    presence: Cell<Presence>,
    /// Memtables before this one don't count for it: tables hold all that they hold of its keys, and perhaps
    /// newer versions. It was elsewhere since, or a part of another tablet.
    memtables_from: Cell<u64>,
    /// Its requests go to another shard, which has it. Here it is about to be forgotten.
    is_handed_over: Cell<bool>,
    load: Load,
    /// Entered by whoever merges its tables; it ends soon once the tablet is leaving.
    merging: Gate,
}

/// One shard's storage.
pub struct Engine<E: Env> {
    env: E,
    options: EngineOptions,
    hash_seed: u64,
    clock: Clock<E>,
    wal: Rc<Wal<E>>,
    manifest: ShardManifest<E>,
    /// By local number, which a tablet keeps as long as it is here.
    tablets: RefCell<Vec<Rc<Tablet<E>>>>,
    active: RefCell<Memtable>,
    /// Memtables are numbered as they come.
    active_number: Cell<u64>,
    /// Bytes of keys and values that the active one has in the log, about.
    active_log: Cell<usize>,
    /// Bytes of the log before it, modulo 2^64: less those that it has of old logs.
    placed_before: Cell<u64>,
    /// Per tablet, the last entry applied.
    last: RefCell<Vec<EntryIndex>>,
    /// Whether a range was deleted since the last memtable was sealed.
    has_new_ranges: Cell<bool>,
    /// Whether the active memtable has so much that a start recovered that it is sealed as soon as it may be.
    has_remains: Cell<bool>,
    /// Oldest first.
    sealed: RefCell<VecDeque<Rc<Sealed>>>,
    cache: BlockCache,
    rows: RefCell<RowCache>,
    /// Whether the last lookups found blocks in memory.
    finds_blocks: Cell<bool>,
    index_budget: Rc<IndexBudget>,
    metrics: Rc<Metrics>,
    pace: Pace,
    /// Those that are open, and maybe some that were.
    snapshots: RefCell<Vec<Weak<Snapshot<E>>>>,
    /// What scans have read ahead.
    ahead_bytes: AheadBytes,
    staged_bytes: Rc<Cell<usize>>,
    /// Tables that are live no more, until their last reader is done.
    obsolete: RefCell<Vec<Rc<Table<E>>>>,
    /// Old logs whose last tablet has been flushed, until their files are gone.
    finished_logs: RefCell<Vec<std::sync::Arc<OldLog>>>,
    /// Held by whoever writes memtables to tables.
    flushing: Lock,
    /// Damage that was met lately.
    damage: Damage,
    /// The checkpoint that was begun.
    checkpoint: RefCell<Option<checkpoint::Pending<E>>>,
    /// The tablet that is about to leave or to split.
    leaving: RefCell<Option<Leaving>>,
    /// Tables of the tablet that is about to come, or to be split off.
    arriving: RefCell<BTreeMap<TableName, Rc<Table<E>>>>,
    /// Tables that are another shard's now, until their last reader is done.
    departed: RefCell<Vec<Rc<Table<E>>>>,
    /// Too little space for puts, in words.
    shortage: RefCell<Option<String>>,
    /// Why the last flush failed.
    flush_trouble: RefCell<Option<EngineError>>,
    changed: Notify,
    is_stopping: Cell<bool>,
    background: Gate,
    next_file: Cell<u32>,
}

impl<E: Env> Tablet<E> {
    /// Its tables at this moment.
    fn version(&self) -> Rc<Version<E>> {
        self.version.borrow().clone()
    }

    /// Whether it is here to stay: otherwise nobody merges its tables.
    fn stays(&self) -> bool {
        self.presence.get() == Presence::Here
    }

    /// Whether this shard serves it.
    fn is_here(&self) -> bool {
        matches!(self.presence.get(), Presence::Here | Presence::Leaving)
    }

    /// Whether requests for it come to this shard: once they go to another, what is done to it here is lost.
    fn is_served(&self) -> bool {
        self.is_here() && !self.is_handed_over.get()
    }

    /// Its range deletes at this moment.
    fn ranges(&self) -> Rc<RangeDeletes> {
        self.ranges.borrow().clone()
    }

    /// Those of them by which entries may be dropped from tables, and the LSN up to which these are all.
    fn flushed_ranges(&self) -> (Rc<RangeDeletes>, Lsn) {
        (self.flushed_ranges.borrow().clone(), Lsn::new(self.flushed.get(), u16::MAX))
    }

    /// Its name for a table file.
    fn table_path(&self, file: FileId) -> String {
        TableName::new(self.id, file).path()
    }
}

/// The hash of a key by which the tables of a store with this [seed](manifest::Store::hash_seed) know it.
#[inline]
pub fn key_hash(key: &[u8], seed: u64) -> u64 {
    xxh3_64_with_seed(key, seed)
}

impl<E: Env> Engine<E> {
    /// The hash of a key by which memtables, filters and blocks know it.
    #[inline]
    pub fn hash(&self, key: &[u8]) -> u64 {
        key_hash(key, self.hash_seed)
    }

    /// Reads the clock by which keys expire; whoever executes requests does so once per turn.
    #[inline]
    pub fn tick(&self) -> u64 {
        self.clock.tick()
    }

    /// Keys come that another shard may have hidden by its clock, at this time.
    pub fn catch_up(&self, now_ms: u64) {
        self.clock.catch_up(now_ms);
    }

    /// The time by which lookups hide expired keys, in milliseconds since the epoch: that of the last
    /// [`Engine::tick`].
    #[inline]
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// The log.
    pub fn wal(&self) -> &Rc<Wal<E>> {
        &self.wal
    }

    /// Notified when a memtable was sealed or flushed, tables changed, or space came or went.
    pub fn changed(&self) -> &Notify {
        &self.changed
    }

    /// Replaces a tablet's tables.
    fn install(&self, tablet: &Tablet<E>, change: impl FnOnce(&Version<E>) -> Version<E>) {
        let changed = change(&tablet.version());
        self.count_tables(&tablet.version.replace(Rc::new(changed)), &tablet.version());
        tablet.forget_avoided();
        self.count_debt(tablet);
    }

    /// Keeps the counters of live tables: `before` has become `after`.
    fn count_tables(&self, before: &Version<E>, after: &Version<E>) {
        let metrics = &self.metrics;
        let count = |gone: Totals, new: Totals, counters: [&Cell<u64>; 4]| {
            let of = |totals: Totals| [totals.tables, totals.bytes, totals.entries, totals.tombstones];
            for (counter, (gone, new)) in counters.into_iter().zip(of(gone).into_iter().zip(of(new))) {
                // Modulo 2^64: what was added before is subtracted.
                Metrics::add(counter, new.wrapping_sub(gone));
            }
        };
        let upper =
            [&metrics.upper_tables, &metrics.upper_bytes, &metrics.upper_entries, &metrics.upper_tombstones];
        let last =
            [&metrics.last_tables, &metrics.last_bytes, &metrics.last_entries, &metrics.last_tombstones];
        count(before.upper_totals(), after.upper_totals(), upper);
        count(before.last_totals(), after.last_totals(), last);
    }

    /// Local numbers in use: those of tablets that are here, or were.
    pub fn tablets(&self) -> usize {
        self.tablets.borrow().len()
    }

    /// Local number of a tablet that is here.
    pub fn locate(&self, id: TabletId) -> Option<usize> {
        self.tablets.borrow().iter().position(|tablet| tablet.id == id && tablet.is_here())
    }

    /// The tablet with this local number.
    #[inline]
    fn tablet(&self, local: usize) -> Rc<Tablet<E>> {
        self.tablets.borrow()[local].clone()
    }

    /// All tablets at this moment, by local number. Those that have left are among them, with no tables.
    fn all_tablets(&self) -> Vec<Rc<Tablet<E>>> {
        self.tablets.borrow().clone()
    }

    fn next_file(&self) -> FileId {
        let number = self.next_file.get();
        self.next_file.set(number + 1);
        FileId::new(self.wal.log(), number)
    }

    /// Opens a table, whose index and filter stay in memory if there is room.
    async fn open_table(&self, name: TableName) -> Result<Rc<Table<E>>, TableError> {
        Table::open(&self.env, name, &self.index_budget).await.map(Rc::new)
    }

    /// Counts how a table was stored that a flush or merge wrote.
    fn count_written(&self, meta: &TableMeta) {
        let (shape, metrics) = (&meta.shape, &self.metrics);
        Metrics::add(&metrics.block_raw_bytes, shape.raw_bytes);
        Metrics::add(&metrics.block_stored_bytes, shape.stored_bytes);
        Metrics::add(&metrics.blocks_written, shape.blocks);
        Metrics::add(&metrics.blocks_plain, shape.plain_blocks);
    }

    /// Its counters, with what is only known here.
    pub fn metrics(&self) -> MetricsSnapshot {
        let mut snapshot = self.metrics.snapshot();
        (snapshot.wal_blocks, snapshot.wal_bytes) = self.wal.written();
        (snapshot.slow_commits, snapshot.slow_commit_micros) = self.wal.slow_writes();
        snapshot.wal_live_bytes = self.wal.live_bytes();
        let sealed: usize = self.sealed.borrow().iter().map(|sealed| sealed.memtable.bytes()).sum();
        snapshot.memtable_bytes = (self.active.borrow().bytes() + sealed) as u64;
        snapshot.cache_bytes = self.cache.bytes();
        snapshot.row_bytes = self.rows.borrow().bytes();
        snapshot.disk_reads = self.cache.disk_reads();
        let (open, oldest) = self.snapshot_ages();
        (snapshot.snapshots, snapshot.snapshot_age_ms) = (open, oldest.as_millis() as u64);
        snapshot.scan_bytes = self.ahead_bytes.read.get();
        snapshot.scan_ahead_bytes = self.ahead_bytes.held.get() as u64;
        snapshot.index_bytes = self.index_budget.used() as u64;
        let fragments = self
            .tablets
            .borrow()
            .iter()
            .map(|tablet| tablet.ranges.borrow().fragments().len())
            .sum::<usize>();
        snapshot.range_fragments = fragments as u64;
        snapshot.tables = snapshot.upper_tables + snapshot.last_tables;
        snapshot.table_bytes = snapshot.upper_bytes + snapshot.last_bytes;
        snapshot.table_entries = snapshot.upper_entries + snapshot.last_entries;
        let sealed: usize = self.sealed.borrow().iter().map(|sealed| sealed.memtable.entries()).sum();
        snapshot.memtable_entries = (self.active.borrow().entries() + sealed) as u64;
        snapshot.keys_estimate = (snapshot.table_entries + snapshot.memtable_entries)
            .saturating_sub(2 * (snapshot.upper_tombstones + snapshot.last_tombstones));
        snapshot
    }

    /// Ends background work, commits what is in the log, closes all files. No one else may use the engine
    /// any more. Memtables stay in the log; the next start replays them.
    pub async fn close(self: Rc<Self>) -> Result<(), EngineError> {
        self.is_stopping.set(true);
        self.changed.notify();
        self.wal.durable_changed().notify();
        // A flush may wait for a move that nobody ends any more.
        drop(self.leaving.take());
        self.background.empty().await;
        self.wal.close().await?;
        self.note_end_of_log().await;
        let Ok(engine) = Rc::try_unwrap(self) else {
            tracing::warn!("the engine is still in use; its files are closed by the end of the process");
            return Ok(());
        };
        engine.manifest.close().await?;
        let mut tables = engine.departed.into_inner();
        tables.extend(engine.arriving.into_inner().into_values());
        for tablet in engine.tablets.into_inner() {
            tables.extend(tablet.version().members().map(|member| member.table.clone()));
        }
        for table in tables {
            if let Ok(table) = Rc::try_unwrap(table) {
                table.close().await?;
            }
        }
        Ok(())
    }

    /// Has the manifest say where the log ends, now that it is closed, so that the next start misses what is gone of
    /// it by then. Without that it would take a lost end for one that was never written.
    async fn note_end_of_log(&self) {
        if self.wal.failed().is_some() || self.manifest.failed().is_some() {
            return;
        }
        let changes = vec![Change::Log { log: self.wal.log(), end: Some(self.wal.end()) }];
        if let Err(error) = self.manifest.commit(Edit { changes }).await {
            tracing::warn!("the end of the log is not noted: {error}");
        }
    }

    /// The log of this start.
    pub fn log(&self) -> LogId {
        self.wal.log()
    }
}
