//! Flush: a sealed memtable becomes one table per tablet, one manifest edit names them all and moves the
//! flushed indexes, and the log is released up to there. Range deletes become part of the manifest with it.
//!
//! Order, and what a crash in between leaves: tables written and synced (orphans, removed at start), their
//! directory synced, manifest edit durable (from here on the tables are the truth), log released.

use std::rc::Rc;
use std::time::Duration;

use super::expiry::Cutoff;
use super::manifest::{Change, Edit, ManifestError, TableRef};
use super::rows::Removals;
use super::sstable::{TableBuilder, TableError, TableMeta};
use super::version::Member;
use super::write::Sealed;
use super::{Engine, EngineError};
use crate::base::{Bug, FileId, Lsn, TableName, planted};
use crate::disk::Disk;
use crate::env::{Env, Pacer, Queue};
use crate::metrics::Metrics;

/// After a flush failed: long enough not to burn the disk, short enough that "space is back" is noticed.
const RETRY: Duration = Duration::from_millis(500);

/// After this the first of new range deletes is flushed, with what came after it: then the tables that it
/// emptied can go. Many in a row share one flush.
const RANGES_DELAY: Duration = Duration::from_secs(1);
/// The same, if a tablet has so many that some should be forgotten soon.
const CROWDED_DELAY: Duration = Duration::from_millis(100);

/// Entries between two looks at the clock: about 10 µs of work.
const STEP: usize = 24;
/// Bytes between two looks at the clock, if entries are large.
const STEP_BYTES: usize = 64 << 10;

impl<E: Env> Engine<E> {
    /// Flushes sealed memtables, oldest first, until the engine stops.
    pub(super) async fn flush_loop(self: Rc<Self>) {
        loop {
            let is_due = || self.is_stopping.get() || !self.sealed.borrow().is_empty();
            self.changed.until(|| is_due() || self.has_new_ranges.get()).await;
            if !is_due() {
                self.delay_for_ranges(is_due).await;
            }
            if self.is_stopping.get() {
                return;
            }
            if !is_due() {
                self.rotate();
            }
            let Some(sealed) = self.sealed.borrow().front().cloned() else { continue };
            if !self.durable(&sealed).await {
                return;
            }
            let turn = self.flushing.lock().await;
            if self.is_stopping.get() {
                return;
            }
            let flushed = self.flush(&sealed).await;
            drop(turn);
            match flushed {
                Ok(()) => {
                    self.flush_trouble.replace(None);
                    // The active one may have been full all along.
                    self.rotate_if_full();
                    if self.has_remains.get() {
                        self.flush_remains();
                    }
                    self.changed.notify();
                    self.dispose(sealed).await;
                }
                Err(error) => {
                    Metrics::add(&self.metrics.flush_failures, 1);
                    if self.manifest.failed().is_some() {
                        tracing::error!("flush failed, this shard takes no more writes: {error}");
                        self.changed.notify();
                        return;
                    }
                    tracing::error!("flush failed, trying again: {error}");
                    self.flush_trouble.replace(Some(error));
                    self.changed.notify();
                    self.env.sleep(RETRY).await;
                }
            }
        }
    }

    /// Waits until all of `sealed` is in the log for good. `false`: it never will be, or the engine stops.
    pub(super) async fn durable(&self, sealed: &Sealed) -> bool {
        self.wal.request_sync(sealed.block);
        let changed = self.wal.durable_changed();
        changed
            .until(|| {
                self.wal.durable() >= sealed.block || self.wal.failed().is_some() || self.is_stopping.get()
            })
            .await;
        self.wal.durable() >= sealed.block && !self.is_stopping.get()
    }

    pub(super) async fn flush(&self, sealed: &Rc<Sealed>) -> Result<(), EngineError> {
        if let Some(cause) = self.manifest.failed() {
            return Err(ManifestError::Failed(cause).into()); // tables that nothing can name are in vain
        }
        let started = self.env.now();
        let mut files = Vec::new();
        self.flush_begins(sealed);
        let result = self.flush_tables(sealed, &mut files).await;
        self.flush_ends();
        // The next start may find an edit whose write failed: then it needs the tables that it names.
        let is_undecided = matches!(&result, Err(EngineError::Manifest(error)) if error.is_undecided());
        if result.is_err() && !is_undecided {
            // Best effort: what stays is an orphan, and the next start removes it.
            for path in files {
                let _ = self.env.disk().remove(&path).await;
            }
        }
        let (bytes, tables) = result?;
        let micros = (self.env.now() - started).as_micros() as u64;
        Metrics::add(&self.metrics.flushes, 1);
        Metrics::add(&self.metrics.flush_bytes, bytes);
        Metrics::add(&self.metrics.flush_micros, micros);
        tracing::info!(bytes, tables, micros, entries = sealed.memtable.entries(), "flushed a memtable");
        Ok(())
    }

    async fn flush_tables(
        &self,
        sealed: &Rc<Sealed>,
        files: &mut Vec<String>,
    ) -> Result<(u64, usize), EngineError> {
        let mut pacer = Pacer::new(&self.env);
        while sealed.memtable.sort_step() {
            pacer.breathe().await;
        }
        let mut changes = Vec::new();
        let mut tables: Vec<(usize, TableMeta, Lsn)> = Vec::new();
        let mut bytes = 0;
        let (mut expired, mut removed, now_ms) = (0, 0, self.flush_time(sealed));
        let tablets: Vec<_> =
            self.all_tablets().into_iter().enumerate().filter(|(_, tablet)| tablet.is_here()).collect();
        let mut flushed = Vec::new();
        for (local, tablet) in &tablets {
            let (local, last) = (*local, sealed.last(*local));
            if last >= tablet.recovered && !tablet.old_logs.borrow().is_empty() {
                changes.push(Change::LogsDone { tablet: tablet.id, oldest: self.wal.log() });
            }
            // Of a tablet that has split everything in here may be in tables already.
            if last <= tablet.flushed.get() {
                continue;
            }
            changes.push(Change::Flushed { tablet: tablet.id, index: last, term: tablet.term });
            changes.extend(tablet.range_changes(&sealed.ranges(local)));
            flushed.push((local, tablet.clone(), last));
            if sealed.memtable.tablet_entries(local) == 0 {
                continue;
            }
            let file = self.next_file();
            files.push(tablet.table_path(file));
            let ranges = if planted(Bug::RangeNotFlushed) { Rc::default() } else { sealed.ranges(local) };
            let cutoff = Cutoff::new(now_ms, ranges);
            let written = self.write_table(sealed, local, file, &cutoff, &mut pacer).await?;
            expired += cutoff.expired();
            removed += cutoff.removed();
            let Some(meta) = written else { continue };
            bytes += meta.bytes;
            self.count_written(&meta);
            // What it holds for snapshots alone, merges drop later.
            let cleared = if cutoff.has_kept() { Lsn::ZERO } else { Lsn::new(last, u16::MAX) };
            let table = TableRef { cleared, ..TableRef::from(&meta) };
            changes.push(Change::AddTable { tablet: tablet.id, position: 0, table });
            tables.push((local, meta, cleared));
        }
        if !planted(Bug::TableNameForgotten) {
            self.env.disk().sync_dir(TableName::DIR).await?;
        }
        let mut opened = Vec::new();
        for (local, meta, cleared) in &tables {
            let name = TableName::new(meta.tablet, meta.file);
            opened.push((*local, Member::whole(self.open_table(name).await?, *cleared)));
        }
        if planted(Bug::LogReleasedEarly) {
            flushed.iter().for_each(|(_, tablet, last)| self.wal.set_flushed(tablet.log, *last));
        }
        self.manifest.commit(Edit { changes }).await?;
        Metrics::add(&self.metrics.expired_entries, expired);
        Metrics::add(&self.metrics.range_entries, removed);
        // No await from here on: readers see the tables and the end of the memtable in one step.
        self.swap_in(sealed, &opened);
        for (local, member) in opened {
            self.install(&self.tablet(local), |version| version.with_newest(member));
        }
        for (local, tablet, last) in flushed {
            tablet.ranges_flushed(&sealed.ranges(local));
            tablet.flushed.set(last);
            self.wal.set_flushed(tablet.log, last);
        }
        let front = self.sealed.borrow_mut().pop_front();
        assert!(front.is_some_and(|front| Rc::ptr_eq(&front, sealed)), "memtables are flushed in order");
        self.capture_after(sealed);
        self.release_old_logs();
        Ok((bytes, tables.len()))
    }

    /// Waits until new range deletes are to be flushed, or until `is_due` says that a flush is due anyway.
    async fn delay_for_ranges(&self, is_due: impl Fn() -> bool) {
        let is_crowded = || is_due() || self.is_crowded();
        futures_lite::future::or(self.changed.until(is_crowded), self.env.sleep(RANGES_DELAY)).await;
        if !is_due() && self.is_crowded() {
            futures_lite::future::or(self.changed.until(is_due), self.env.sleep(CROWDED_DELAY)).await;
        }
    }

    /// Writes what a sealed memtable holds of a tablet; `None`: range deletes have left nothing of it.
    pub(super) async fn write_table(
        &self,
        sealed: &Sealed,
        local: usize,
        file: FileId,
        cutoff: &Cutoff,
        pacer: &mut Pacer<E>,
    ) -> Result<Option<TableMeta>, EngineError> {
        let tablet = self.tablet(local);
        let (slots, options) = (tablet.slots.get(), self.options.upper_tables());
        let mut builder = TableBuilder::create(&self.env, file, tablet.id, slots, options).await?;
        let lsns = self.snapshot_lsns(sealed, local);
        let written = self.write_entries(sealed, local, &lsns, cutoff, &mut builder, pacer).await;
        if let Err(error) = written {
            builder.abandon().await;
            return Err(error.into());
        }
        if builder.entries() == 0 {
            builder.abandon().await;
            return Ok(None);
        }
        Ok(Some(builder.finish().await?))
    }

    /// Writes of each key the newest version, and the newest not after each of `lsns`, which descend: without
    /// those that are gone for the reader. Rows of these keys go: until tables have what is written here, lookups find
    /// it in the memtable, so none of them comes back before that.
    async fn write_entries(
        &self,
        sealed: &Sealed,
        local: usize,
        lsns: &[Lsn],
        cutoff: &Cutoff,
        builder: &mut TableBuilder<E>,
        pacer: &mut Pacer<E>,
    ) -> Result<(), TableError> {
        let (mut steps, mut bytes, mut keys) = (0, 0, 0);
        let mut rows = Removals::default();
        for (key, newest) in sealed.memtable.iter(local, b"") {
            let hash = self.hash(key);
            if !planted(Bug::RowStale) {
                rows.push(&mut self.rows.borrow_mut(), hash);
            }
            if !cutoff.removes(key, &newest, lsns) {
                builder.add(key, hash, &cutoff.apply(newest)).await?;
            }
            let lsns = if planted(Bug::SnapshotForgotten) { &[][..] } else { lsns };
            let mut wanted = lsns.iter().filter(|lsn| **lsn < newest.lsn).peekable();
            if wanted.peek().is_some() {
                for older in sealed.memtable.versions(hash, key).skip(1) {
                    let is_wanted = wanted.peek().is_some_and(|lsn| **lsn >= older.lsn);
                    if is_wanted {
                        if !cutoff.removes(key, &older, lsns) {
                            builder.add(key, hash, &cutoff.apply(older)).await?;
                        }
                        while wanted.next_if(|lsn| **lsn >= older.lsn).is_some() {}
                    }
                    steps += 1;
                    if steps % STEP == 0 {
                        pacer.breathe().await;
                    }
                    if wanted.peek().is_none() {
                        break;
                    }
                }
            }
            steps += 1;
            bytes += key.len() + newest.value.len();
            if steps % STEP == 0 || bytes >= STEP_BYTES {
                bytes = 0;
                pacer.breathe().await;
            }
            keys += 1;
            if keys % STEP == 0 {
                self.flush_goes_on(STEP);
            }
        }
        rows.finish(&mut self.rows.borrow_mut());
        self.flush_goes_on(keys % STEP);
        Ok(())
    }

    /// Gives up old logs that nobody on this shard needs any more. The last shard to do so has the files
    /// removed.
    pub(super) fn release_old_logs(&self) {
        let tablets = self.all_tablets();
        for tablet in tablets.iter().filter(|tablet| tablet.flushed.get() >= tablet.recovered) {
            for log in tablet.old_logs.take() {
                if log.release() {
                    self.finished_logs.borrow_mut().push(log);
                }
            }
        }
    }

    /// Frees a flushed memtable in steps: unmapping hundreds of megabytes at once would stop the shard.
    pub(super) async fn dispose(&self, sealed: Rc<Sealed>) {
        // Lookups borrow it only within a turn, so this is the last reference.
        let Ok(mut sealed) = Rc::try_unwrap(sealed) else { return };
        let mut pacer = Pacer::new(&self.env);
        while sealed.memtable.drop_step() {
            pacer.breathe().await;
        }
    }

    /// Spawns the background tasks of an engine that is about to serve.
    pub(super) fn spawn_background(self: &Rc<Self>) {
        let (engine, guard) = (self.clone(), self.background.enter());
        self.env.spawn(Queue::Flush, async move {
            engine.flush_loop().await;
            drop(guard);
        });
        let (engine, guard) = (self.clone(), self.background.enter());
        self.env.spawn(Queue::Compaction, async move {
            engine.compaction_loop().await;
            drop(guard);
        });
        let (engine, guard) = (self.clone(), self.background.enter());
        self.env.spawn(Queue::Foreground, async move {
            engine.pace_loop().await;
            drop(guard);
        });
        let (engine, guard) = (self.clone(), self.background.enter());
        self.env.spawn(Queue::Compaction, async move {
            engine.pin_recovered().await;
            drop(guard);
        });
        let (engine, guard) = (self.clone(), self.background.enter());
        self.env.spawn(Queue::Compaction, async move {
            engine.space_loop().await;
            drop(guard);
        });
        let (engine, guard) = (self.clone(), self.background.enter());
        self.env.spawn(Queue::Compaction, async move {
            engine.scrub_loop().await;
            drop(guard);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::EngineOptions;
    use super::super::recovery;
    use super::super::write::{LOG_FACTOR, PLACED_FACTOR, Room};
    use super::*;
    use crate::base::{Compression, Op, OpKind, PAGE_SIZE};
    use crate::disk::sim::SimDisk;
    use crate::env::sim::{SimEnv, SimWorld};
    use crate::placement::SlotTable;
    use crate::slot::Slot;

    async fn start(env: &SimEnv) -> Result<(Rc<Engine<SimEnv>>, SlotTable), EngineError> {
        start_with(env, 64 << 20).await
    }

    async fn start_with(
        env: &SimEnv,
        memtable_bytes: usize,
    ) -> Result<(Rc<Engine<SimEnv>>, SlotTable), EngineError> {
        let found = recovery::load(env, 16).await?;
        let scans = recovery::scan(env, &found.state, found.logs.into_iter().collect()).await?;
        let start = recovery::plan(found.state, scans, 1)?;
        recovery::install(env, &start).await?;
        let options = EngineOptions {
            memtable_bytes,
            sealed_max: 1,
            cache_bytes: 1 << 20,
            row_bytes: 1 << 20,
            reads_max: 64,
            index_bytes: 1 << 20,
            compression: Compression::default(),
            segment_bytes: 4 << 20,
            window: 2,
            lazy: None,
            compaction_fan: 4,
            level_ratio: 4,
            last_table_bytes: 32 << 20,
            snapshot_life: std::time::Duration::from_secs(60),
            snapshot_bytes: 1 << 30,
            scrub_bytes_per_s: 0,
            reserve_bytes: 0,
        };
        let engine = Engine::open(env, options, &start, 0, Rc::new(Metrics::default())).await?;
        Ok((engine, SlotTable::new(&start.state)))
    }

    fn put(engine: &Engine<SimEnv>, table: &SlotTable, key: &[u8]) {
        put_value(engine, table, key, b"value");
    }

    fn put_value(engine: &Engine<SimEnv>, table: &SlotTable, key: &[u8], value: &[u8]) {
        let op = Op { kind: OpKind::Put, key, value, expiry_ms: 0 };
        engine.write(table.local(Slot::of_key(key)), &[op], &[engine.hash(key)]).unwrap();
    }

    /// A flush whose manifest edit failed once removed the tables that the edit named. But a write that
    /// failed may be on disk all the same: the next start read that edit, missed the tables, and refused.
    #[test]
    fn tables_stay_when_the_fate_of_their_edit_is_unknown() {
        for (keep, seed) in [(100, 1), (0, 2), (50, 3), (50, 4), (50, 5)] {
            let world = SimWorld::new(seed);
            let env = SimEnv::new(&world, SimDisk::new(&world));
            world.run(async {
                let (engine, table) = start(&env).await.unwrap();
                for number in 0..200 {
                    put(&engine, &table, format!("key-{number}").as_bytes());
                }
                env.disk().fail("dsync", "manifest/", 0, libc::EIO, true);
                engine.rotate();
                while engine.metrics.flush_failures.get() == 0 {
                    env.sleep(RETRY).await;
                }
                env.sleep(3 * RETRY).await;
                assert_eq!(engine.metrics.flush_failures.get(), 1, "another try would be in vain");
                let refusal = engine.room(false, 1).unwrap_err();
                assert!(matches!(refusal, EngineError::Manifest(ManifestError::Failed(_))), "{refusal}");
                let tables = env.disk().paths().iter().filter(|path| path.ends_with(".sst")).count();
                assert_eq!(tables, engine.tablets());
            });
            let world = SimWorld::new(seed);
            let disk = env.disk().crash(&world, &mut fastrand::Rng::with_seed(seed), keep);
            let env = SimEnv::new(&world, disk);
            world.run(async {
                let (engine, _) = start(&env).await.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                let in_memory = engine.active.borrow().entries()
                    + engine.sealed.borrow().iter().map(|s| s.memtable.entries()).sum::<usize>();
                let in_tables = engine.metrics().table_entries;
                assert_eq!(in_memory as u64 + in_tables, 200, "seed {seed}");
            });
        }
    }

    /// What is written over and over takes no memory, but a start must not have to read for ever.
    #[test]
    fn a_memtable_that_stays_small_is_flushed_when_its_log_is_long() {
        const MEMTABLE: usize = 2 << 20;
        const LOG_MAX: u64 = (3 * LOG_FACTOR * MEMTABLE) as u64;
        let seed = 6;
        let world = SimWorld::new(seed);
        let env = SimEnv::new(&world, SimDisk::new(&world));
        let writes = 80_000;
        world.run(async {
            let (engine, table) = start_with(&env, MEMTABLE).await.unwrap();
            for number in 0..writes {
                while engine.room(true, 64).unwrap() == Room::Wait {
                    engine.changed().notified().await;
                }
                put_value(&engine, &table, format!("key-{}", number % 10).as_bytes(), &[b'v'; 400]);
                if number % 100 == 0 {
                    env.sleep(Duration::from_micros(50)).await;
                    assert!(engine.active.borrow().bytes() < MEMTABLE, "seed {seed}: it stays small");
                    let live = engine.wal.live_bytes();
                    assert!(live <= LOG_MAX + (4 << 20), "seed {seed}: {live} bytes of the log");
                }
            }
            let logged = engine.metrics().wal_bytes;
            assert!(logged > 2 * LOG_MAX, "seed {seed}: {logged} bytes are more than may stay");
            let flushes = engine.metrics.flushes.get();
            assert!((2..=20).contains(&flushes), "seed {seed}: {flushes} flushes");
            // Small ones that come one at a time take a page of the log each.
            for _ in 0..PLACED_FACTOR as usize * MEMTABLE / PAGE_SIZE + 1 {
                put(&engine, &table, b"key-1");
                let block = engine.wal.appended();
                engine.wal.durable_changed().until(|| engine.wal.durable() >= block).await;
            }
            env.sleep(Duration::from_secs(1)).await;
            assert!(engine.metrics.flushes.get() > flushes, "seed {seed}: a start would read all of it");
        });
        // The same of what a start replays.
        let world = SimWorld::new(seed);
        let disk = env.disk().crash(&world, &mut fastrand::Rng::with_seed(seed), 100);
        let env = SimEnv::new(&world, disk);
        world.run(async {
            let (engine, table) = start_with(&env, MEMTABLE / 16).await.unwrap();
            assert!(!engine.sealed.borrow().is_empty(), "seed {seed}: it is much for so small a memtable");
            for number in 0..10 {
                let key = format!("key-{number}").into_bytes();
                let place = (table.local(Slot::of_key(&key)), engine.hash(&key));
                let sealed = engine.sealed.borrow();
                let found = sealed.iter().find_map(|sealed| sealed.memtable.get(place.1, &key));
                let active = engine.active.borrow();
                let found = active.get(place.1, &key).or(found);
                let in_tables = engine.tablet(place.0).version().members().next().is_some();
                let expected = if number == 1 { b"value".to_vec() } else { vec![b'v'; 400] };
                assert!(found.is_some_and(|entry| entry.value == expected) || in_tables, "seed {seed}");
            }
        });
    }
}
