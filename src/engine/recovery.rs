//! Start: from what is on disk to engines that serve.
//!
//! Whoever starts the store calls, in this order: [`load`] (one executor); [`scan`] (phase one: the old
//! logs may be divided among executors); [`plan`] (pure: new placement, new logs, where old ones end);
//! [`install`] (one executor: the new generation becomes live); [`Engine::open`] (each shard's own
//! executor: phase two).
//!
//! Until `install` nothing on disk has changed, so a crash before it leaves everything as it was. `install`
//! switches generations atomically. After it, old logs stay until every tablet with entries in them was
//! flushed, so a crash in or after `open` starts again from the same logs. Which shard wrote a log is of
//! no importance: each shard replays, from all logs, the entries of the tablets that it owns now.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use smallvec::SmallVec;

use super::cache::BlockCache;
use super::damage::MetBy;
use super::expiry::Clock;
use super::manifest::{self, LogMeta, ManifestError, ShardManifest, State, TableRef, TabletState};
use super::marker::refuse_incomplete;
use super::memtable::{Memtable, PREFETCH_MAX, SpareChunks};
use super::pace::Pace;
use super::ranges::RangeDelete;
use super::rows::RowCache;
use super::scan::AHEAD_BYTES_MAX;
use super::sstable::{AheadTotals, IndexBudget, Table};
use super::startable::check_startable;
use super::version::Version;
use super::wal::{
    LogReader, LogScan, ReplayPlan, SegmentFile, Wal, WalError, WalOptions, begin_logs, list_logs,
    parse_segment_name, remove_log, scan_log,
};
use super::{Engine, EngineError, EngineOptions, Tablet};
use crate::base::{
    BlockSeq, Bug, EntryIndex, FileId, LogId, Lsn, Op, OpIter, OpKind, TableName, TabletId, planted,
};
use crate::disk::{DirEntry, Disk};
use crate::env::{Env, Gate, Lock, Notify, join_all};
use crate::metrics::Metrics;
use crate::placement;
use crate::slot::Slot;

/// Recovered entries above this part of a memtable are flushed at once; fewer wait for more to come.
const FLUSH_PART: usize = 8;
/// With this many old logs everything recovered is flushed at once, so that they don't pile up over
/// restarts.
const OLD_LOGS_MAX: usize = 4;

/// Tables that are opened at a time.
const OPENS_MAX: usize = 16;

/// What is on disk.
pub struct OnDisk {
    /// The manifest's state; a new one for a new store.
    pub state: State,
    /// Segments of the logs that some tablet needs.
    pub logs: BTreeMap<LogId, Vec<SegmentFile>>,
}

/// An old log that is being replayed, or waits for its tablets to be flushed. Shared by the shards.
#[derive(Debug)]
pub struct OldLog {
    scan: LogScan,
    /// Tablets that may still need it.
    needed_by: AtomicUsize,
}

/// Everything a shard needs to open its engine. Shared by the shards.
#[derive(Debug)]
pub struct Start {
    /// The new generation's state.
    pub state: State,
    /// The log that each shard opens.
    pub new_logs: Vec<LogId>,
    plan: ReplayPlan,
    old_logs: Vec<Arc<OldLog>>,
}

impl OldLog {
    /// Which.
    pub fn id(&self) -> LogId {
        self.scan.log
    }

    /// Its files.
    pub fn segments(&self) -> &[SegmentFile] {
        &self.scan.segments
    }

    /// One tablet less needs it. Whether it was the last.
    pub fn release(&self) -> bool {
        let before = self.needed_by.fetch_sub(1, Ordering::AcqRel);
        assert!(before > 0, "a log is released once per tablet");
        before == 1
    }
}

/// Reads manifest and log directory. A new store gets `tablets` tablets.
pub async fn load<E: Env>(env: &E, tablets: u16) -> Result<OnDisk, EngineError> {
    refuse_incomplete(env).await?;
    let Some(state) = manifest::load(env).await? else {
        refuse_remains(env).await?;
        let cluster = u128::from(env.random()) << 64 | u128::from(env.random());
        let state = State::create(cluster, env.random(), tablets);
        return Ok(OnDisk { state, logs: BTreeMap::new() });
    };
    let generation = state.generation;
    check_startable(&state).map_err(|what| ManifestError::Inconsistent { generation, what })?;
    let needed = state.needed_logs();
    let mut logs = list_logs(env).await?;
    logs.retain(|log, _| needed.contains(log));
    for log in needed {
        // A log has a file before the manifest names it, and until no tablet needs it.
        let end = state.logs.get(&log).and_then(|meta| meta.end);
        if end.is_none_or(|end| end > BlockSeq::ZERO) && !logs.contains_key(&log) {
            return Err(WalError::Missing(log).into());
        }
    }
    Ok(OnDisk { state, logs })
}

/// Refuses a directory without `CURRENT` that is no new one: a generation that is begun there would name nothing of
/// what is there, and all that would be removed. A first start writes to a log, and makes tables, only when its
/// `CURRENT` is durable; whatever else it leaves when it ends before that is no loss.
async fn refuse_remains<E: Env>(env: &E) -> Result<(), EngineError> {
    let first = 1;
    for dir in [manifest::format::DIR, "wal", TableName::DIR] {
        let entries = match env.disk().list(dir).await {
            Err(error) if error.is_not_found() => continue,
            entries => entries?,
        };
        let is_remains = |entry: &DirEntry| match dir {
            manifest::format::DIR => {
                manifest::format::FileKey::parse(&entry.name).is_some_and(|key| key.generation > first)
            }
            "wal" => parse_segment_name(&entry.name).is_some() && entry.bytes > 0,
            _ => TableName::parse(&entry.name).is_some(),
        };
        if let Some(entry) = entries.iter().find(|entry| is_remains(entry)) {
            return Err(ManifestError::NoCurrent { found: format!("{dir}/{}", entry.name) }.into());
        }
    }
    Ok(())
}

/// Phase one, for some of the logs.
pub async fn scan<E: Env>(
    env: &E,
    state: &State,
    logs: Vec<(LogId, Vec<SegmentFile>)>,
) -> Result<Vec<LogScan>, EngineError> {
    let flushed = |tablet: TabletId| state.tablets.get(&tablet).map_or(EntryIndex(u64::MAX), |t| t.flushed);
    let mut scans = Vec::with_capacity(logs.len());
    for (log, segments) in logs {
        let end = state.logs.get(&log).and_then(|meta| meta.end);
        let scan = scan_log(env, log, segments, end, &flushed).await?;
        if let Some(torn) = &scan.torn {
            tracing::info!(
                file = torn.path,
                offset = torn.offset,
                log = log.0,
                "the log ends before a torn tail"
            );
        }
        scans.push(scan);
    }
    Ok(scans)
}

/// Decides the new generation: who owns what, which logs are opened, where the old ones end.
pub fn plan(mut state: State, mut scans: Vec<LogScan>, shards: u32) -> Result<Start, EngineError> {
    scans.sort_by_key(|scan| scan.log);
    let flushed: BTreeMap<TabletId, EntryIndex> =
        state.tablets.iter().map(|(id, t)| (*id, t.flushed)).collect();
    let plan = ReplayPlan::merge(
        scans.iter().map(|scan| &scan.runs),
        |tablet| flushed.get(&tablet).copied().unwrap_or(EntryIndex(u64::MAX)),
        |tablet, log| state.tablets.get(&tablet).is_some_and(|tablet| tablet.logs.contains(&log)),
    )?;
    placement::assign(&mut state, shards);
    state.generation += 1;
    let new_logs: Vec<LogId> =
        (0..u64::from(shards)).map(|shard| LogId(state.store.next_log + shard)).collect();
    state.store.next_log += u64::from(shards);
    for scan in &scans {
        state.logs.insert(scan.log, LogMeta { end: Some(scan.end) });
    }
    for tablet in state.tablets.values_mut() {
        let last = plan.last(tablet.id).map_or(EntryIndex::ZERO, |(last, _)| last);
        if last <= tablet.flushed {
            tablet.logs.clear(); // tables hold it all
        }
        // Nor are logs needed that hold nothing else, or nothing at all: starts that failed again and again
        // would leave a new one each time.
        let holds_more = |scan: &LogScan| {
            let run = scan.runs.tablets().get(&tablet.id).and_then(|runs| runs.last());
            run.is_some_and(|run| run.last > tablet.flushed)
        };
        tablet.logs.retain(|log| scans.iter().any(|scan| scan.log == *log && holds_more(scan)));
        tablet.logs.push(new_logs[tablet.shard as usize]);
    }
    let needed = state.needed_logs();
    state.logs.retain(|log, _| needed.contains(log));
    for log in &new_logs {
        state.logs.insert(*log, LogMeta { end: None });
    }
    let old_logs = scans
        .into_iter()
        .filter(|scan| needed.contains(&scan.log))
        .map(|scan| {
            let users = state.tablets.values().filter(|tablet| tablet.logs.contains(&scan.log)).count();
            Arc::new(OldLog { scan, needed_by: AtomicUsize::new(users) })
        })
        .collect();
    Ok(Start { state, new_logs, plan, old_logs })
}

/// Makes the new generation live, then removes what nothing refers to any more: logs, tables of
/// interrupted flushes and merges.
pub async fn install<E: Env>(env: &E, start: &Start) -> Result<(), EngineError> {
    begin_logs(env, &start.new_logs).await?;
    manifest::install(env, &start.state).await?;
    let needed: BTreeSet<LogId> = start.state.needed_logs();
    for (log, segments) in list_logs(env).await? {
        if !needed.contains(&log) {
            tracing::debug!(log = log.0, "removing a log that nothing needs");
            remove_log(env, &segments).await?;
        }
    }
    let live = start.state.live_tables();
    for entry in env.disk().list(TableName::DIR).await? {
        if let Some(name) = TableName::parse(&entry.name)
            && !live.contains(&name)
            && !start.state.is_pinned(name.file)
        {
            tracing::debug!(%name, "removing a table that nothing refers to");
            env.disk().remove(&name.path()).await?;
        }
    }
    Ok(())
}

/// A tablet's tables, by file.
type OpenTables<E> = BTreeMap<FileId, Rc<Table<E>>>;

/// Opens all tables of a shard, some side by side: each takes several reads that depend on each other.
async fn open_tables<E: Env>(
    env: &E,
    state: &State,
    budget: &Rc<IndexBudget>,
) -> Result<BTreeMap<TabletId, OpenTables<E>>, EngineError> {
    let all: Vec<(&TabletState, &TableRef)> = state
        .tablets
        .values()
        .flat_map(|tablet| tablet.tables.iter().map(move |table| (tablet, table)))
        .collect();
    let mut opened: BTreeMap<TabletId, OpenTables<E>> = BTreeMap::new();
    for some in all.chunks(OPENS_MAX) {
        let opening = some.iter().map(async |(tablet, table)| {
            // What is damaged of one table is no reason to do without all others.
            let (name, known) =
                (TableName::new(tablet.id, table.file), || table.meta(tablet.id, tablet.slots));
            Table::open_known(env, name, budget, known).await
        });
        for ((tablet, table), result) in some.iter().zip(join_all(opening.collect()).await) {
            opened.entry(tablet.id).or_default().insert(table.file, Rc::new(result?));
        }
    }
    Ok(opened)
}

impl<E: Env> Engine<E> {
    /// Opens the engine of `shard`: its tables, its new log, and phase two of the replay.
    pub async fn open(
        env: &E,
        options: EngineOptions,
        start: &Start,
        shard: u32,
        metrics: Rc<Metrics>,
    ) -> Result<Rc<Engine<E>>, EngineError> {
        let (generation, shards) = (start.state.generation, start.state.shards);
        let manifest = ShardManifest::open(env, generation, shards, shard).await?;
        let wal_options = WalOptions {
            segment_bytes: options.segment_bytes,
            window: options.window,
            lazy: options.lazy,
            cluster: start.state.store.cluster,
        };
        let wal = Wal::create(env, start.new_logs[shard as usize], wal_options).await?;
        let index_budget = IndexBudget::new(options.index_bytes);
        let mut tablets = Vec::new();
        let mut last = Vec::new();
        let of_shard = start.state.of_shard(shard);
        let mut opened = open_tables(env, &of_shard, &index_budget).await?;
        for state in of_shard.tablets.values() {
            let tables = opened.remove(&state.id).unwrap_or_default();
            let in_logs = start.plan.last(state.id).map_or(EntryIndex::ZERO, |(last, _)| last);
            let recovered = in_logs.max(state.flushed);
            let old_logs =
                start.old_logs.iter().filter(|log| state.logs.contains(&log.id())).cloned().collect();
            let again = EntryIndex(recovered.0.saturating_sub(1)).max(state.flushed);
            let next = if planted(Bug::VersionReused) { again } else { recovered };
            let log = wal.add_tablet(state.id, state.term, next, state.flushed);
            let version = Version::of(state, &tables);
            tablets.push(Rc::new(Tablet::new(state, log, version, recovered, old_logs)));
            last.push(state.flushed);
        }
        let engine = Rc::new(Engine {
            env: env.clone(),
            clock: Clock::new(env),
            hash_seed: start.state.store.hash_seed,
            wal,
            manifest,
            // With what is spare, two memtables, as their part of the budget has it.
            active: Memtable::with_spare(tablets.len(), SpareChunks::up_to(options.memtable_bytes)).into(),
            active_number: std::cell::Cell::new(1),
            active_log: std::cell::Cell::new(0),
            placed_before: std::cell::Cell::new(0),
            snapshots: std::cell::RefCell::default(),
            staged_bytes: std::rc::Rc::default(),
            ahead_bytes: AheadTotals::new(AHEAD_BYTES_MAX),
            pace: Pace::new(&options, tablets.len()),
            tablets: tablets.into(),
            last: last.into(),
            has_new_ranges: std::cell::Cell::new(false),
            has_remains: std::cell::Cell::new(false),
            sealed: std::cell::RefCell::default(),
            cache: BlockCache::new(options.cache_bytes, options.reads_max),
            rows: RowCache::new(options.row_bytes).into(),
            finds_blocks: std::cell::Cell::new(false),
            index_budget,
            options,
            metrics,
            obsolete: std::cell::RefCell::default(),
            finished_logs: std::cell::RefCell::default(),
            flushing: Lock::new(),
            damage: super::damage::Damage::default(),
            checkpoint: std::cell::RefCell::new(None),
            leaving: std::cell::RefCell::new(None),
            arriving: std::cell::RefCell::default(),
            departed: std::cell::RefCell::default(),
            shortage: std::cell::RefCell::new(None),
            flush_trouble: std::cell::RefCell::new(None),
            changed: Notify::new(),
            is_stopping: std::cell::Cell::new(false),
            background: Gate::new(),
            next_file: std::cell::Cell::new(0),
        });
        for tablet in engine.all_tablets() {
            engine.count_tables(&Version::default(), &tablet.version());
            engine.tell_faulty(&tablet);
            engine.count_debt(&tablet);
        }
        tracing::debug!(tables = engine.metrics().tables, "the tables are open");
        engine.replay(start).await?;
        engine.wal.start();
        engine.spawn_background();
        Ok(engine)
    }

    /// Reads the indexes of the tables that were live at the start into memory, as far as there is room: those of upper
    /// levels first, which nearly every lookup asks. Until then reads get what they need of them through the cache.
    pub(super) async fn pin_recovered(&self) {
        let mut live: Vec<Rc<Table<E>>> = Vec::new();
        for tablet in self.all_tablets() {
            live.extend(tablet.version().members().map(|member| member.table.clone()));
        }
        // Members may share one.
        live.sort_by_key(|table| table.name());
        live.dedup_by_key(|table| table.name());
        let (upper, last): (Vec<_>, Vec<_>) = live.into_iter().partition(|table| !table.meta().shape.is_last);
        // Those that merges replace meanwhile need none.
        let tables: Vec<Weak<Table<E>>> = upper.iter().chain(&last).map(Rc::downgrade).collect();
        drop((upper, last));
        self.metrics.index_pending.set(tables.len() as u64);
        for table in &tables {
            if let Some(table) = table.upgrade() {
                table.pin(&self.index_budget).await;
            }
            self.metrics.index_pending.set(self.metrics.index_pending.get() - 1);
            if self.is_stopping.get() {
                return;
            }
        }
        tracing::debug!(tables = tables.len(), bytes = self.index_budget.used(), "indexes are in memory");
    }

    /// Tells of a tablet's tables of which nothing can be read, and has merges go around them.
    fn tell_faulty(&self, tablet: &Tablet<E>) {
        tablet.avoid_faulty();
        for member in tablet.version().members() {
            let Some(error) = member.table.fault().map(EngineError::from) else { continue };
            self.note_damage(MetBy::Start, &error);
            tracing::error!(
                tablet = tablet.id.0,
                entries = member.totals().entries,
                "{error}; reads and scans that need this table are refused, all else is served: restore a backup, or stop and have atlaskv-inspect salvage write what is left"
            );
        }
    }

    /// Phase two: applies the entries of this shard's tablets that count and that tables lack.
    async fn replay(&self, start: &Start) -> Result<(), EngineError> {
        let started = self.env.now();
        let locals: BTreeMap<TabletId, usize> =
            self.all_tablets().iter().enumerate().map(|(local, tablet)| (tablet.id, local)).collect();
        let mine = |log: &Arc<OldLog>| {
            self.all_tablets()
                .iter()
                .any(|tablet| tablet.old_logs.borrow().iter().any(|old| old.id() == log.id()))
        };
        let (mut bytes, mut entries, mut logs) = (0u64, 0u64, 0);
        for log in start.old_logs.iter().filter(|log| mine(log)) {
            logs += 1;
            let mut reader = LogReader::new(&self.env, Rc::new(log.scan.clone()));
            loop {
                let before = entries;
                let block = reader.next_block(&start.plan, |tablet, index, body| {
                    let Some(&local) = locals.get(&tablet) else { return Ok(()) };
                    if index <= self.tablet(local).flushed.get() {
                        return Ok(());
                    }
                    entries += 1;
                    self.apply(local, index, body)
                });
                let Some(len) = block.await? else { break };
                bytes += len as u64;
                if entries > before {
                    self.note_replayed(len as u64);
                }
                if self.active_fill() >= self.options.memtable_bytes {
                    self.seal_recovered().await?;
                }
            }
        }
        for (local, tablet) in self.all_tablets().iter().enumerate() {
            let last = self.last.borrow()[local];
            if last != tablet.recovered {
                // Entries of a kind that is kept for later have an index, and nothing that could be applied.
                let (first, last) = (last.next(), tablet.recovered);
                return Err(WalError::Gap { tablet: tablet.id, first, last }.into());
            }
        }
        let micros = (self.env.now() - started).as_micros() as u64;
        Metrics::add(&self.metrics.replay_bytes, bytes);
        Metrics::add(&self.metrics.replay_micros, micros);
        if logs > 0 {
            tracing::info!(logs, entries, bytes, micros, "replayed old logs");
        }
        let is_much = self.active_fill() >= self.options.memtable_bytes / FLUSH_PART;
        if is_much || logs >= OLD_LOGS_MAX {
            self.flush_remains();
        }
        Ok(())
    }

    /// Seals what was recovered so far. As many sealed memtables as may wait for their flush at any time do so, behind
    /// the start: until tables hold what is in them the old logs stay. Those before them are flushed now.
    async fn seal_recovered(&self) -> Result<(), EngineError> {
        while self.sealed.borrow().len() >= self.options.sealed_max {
            let Some(sealed) = self.sealed.borrow().front().cloned() else { break };
            self.flush(&sealed).await?;
            self.dispose(sealed).await;
        }
        self.rotate();
        Ok(())
    }

    /// Has what was recovered last flushed as soon as a memtable more may be sealed.
    pub(super) fn flush_remains(&self) {
        let may_seal = self.sealed.borrow().len() < self.options.sealed_max;
        self.has_remains.set(!may_seal);
        if may_seal {
            self.rotate();
        }
    }

    fn apply(&self, local: usize, index: EntryIndex, body: &[u8]) -> Result<(), String> {
        let tablet = self.tablet(local);
        let mut waiting = SmallVec::<[(Lsn, Op<'_>, u64); PREFETCH_MAX]>::new();
        for (ordinal, op) in OpIter::new(body).enumerate() {
            let op = op.map_err(|error| error.to_string())?;
            if planted(Bug::EntryTorn)
                && index == tablet.recovered
                && OpIter::new(body).count() == ordinal + 1
            {
                break;
            }
            let ordinal =
                u16::try_from(ordinal).map_err(|_| "more operations than an entry takes".to_owned())?;
            let lsn = Lsn::new(index, ordinal);
            tablet.last_lsn.set(lsn);
            if op.kind == OpKind::RangeDelete {
                self.insert_all(local, &mut waiting);
                let range = RangeDelete::new(op.key, op.value, lsn).ok_or("an empty range")?;
                self.take_range(local, &range);
                continue;
            }
            if !tablet.slots.get().contains(Slot::of_key(op.key)) {
                return Err(format!("a key of another tablet than {}", tablet.id));
            }
            waiting.push((lsn, op, self.hash(op.key)));
            if waiting.len() == PREFETCH_MAX {
                self.insert_all(local, &mut waiting);
            }
        }
        self.insert_all(local, &mut waiting);
        let mut last = self.last.borrow_mut();
        if index != last[local].next() {
            return Err(format!("entry {index} follows {}", last[local]));
        }
        last[local] = index;
        Ok(())
    }

    /// Inserts operations, and takes them; what they touch of the memtable is fetched for all of them first.
    fn insert_all(&self, local: usize, ops: &mut SmallVec<[(Lsn, Op<'_>, u64); PREFETCH_MAX]>) {
        let mut active = self.active.borrow_mut();
        let hashes: SmallVec<[u64; PREFETCH_MAX]> = ops.iter().map(|(_, _, hash)| *hash).collect();
        active.prefetch(&hashes);
        self.note_logged(ops.len(), ops.iter().map(|(_, op, _)| op.key.len() + op.value.len()).sum());
        for (lsn, op, hash) in ops.drain(..) {
            // Snapshots don't outlive a server.
            active.insert(local, hash, op.key, lsn, op.kind, op.expiry_ms, op.value, Lsn::ZERO);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::SimDisk;
    use crate::env::sim::{SimEnv, SimWorld};

    async fn begin(env: &SimEnv) -> Start {
        let found = load(env, 16).await.unwrap();
        let scans = scan(env, &found.state, found.logs.into_iter().collect()).await.unwrap();
        let start = plan(found.state, scans, 1).unwrap();
        install(env, &start).await.unwrap();
        start
    }

    /// A start opens a log, and the next one took it for needed though nothing stood in it. A start that
    /// fails for want of space would have used up what is left, 64 MiB a time.
    #[test]
    fn starts_that_fail_leave_no_logs_behind() {
        let world = SimWorld::new(1);
        let env = SimEnv::new(&world, SimDisk::new(&world));
        world.run(async {
            let options = |start: &Start| WalOptions {
                segment_bytes: 1 << 20,
                window: 3,
                lazy: None,
                cluster: start.state.store.cluster,
            };
            let start = begin(&env).await;
            let wal = Wal::create(&env, start.new_logs[0], options(&start)).await.unwrap();
            let tablet = wal.add_tablet(TabletId(0), 1, EntryIndex::ZERO, EntryIndex::ZERO);
            wal.start();
            let op = Op { kind: OpKind::Put, key: b"key", value: b"value", expiry_ms: 0 };
            wal.append(tablet, &[op]).unwrap();
            wal.close().await.unwrap();
            for _ in 0..5 {
                let start = begin(&env).await;
                assert_eq!(start.plan.last(TabletId(0)), Some((EntryIndex(1), 1)), "it is not lost");
                Wal::create(&env, start.new_logs[0], options(&start)).await.unwrap();
                let logs = list_logs(&env).await.unwrap();
                assert_eq!(logs.len(), 2, "the one that holds the entry, and the new one: {logs:?}");
            }
        });
    }
}
