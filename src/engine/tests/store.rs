//! A store of several shards in one simulated world, opened as the server opens it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use super::model::{KeyId, Model, Version, key_bytes};
use crate::base::{BlockSeq, Codec, Compression, TabletId};
use crate::disk::sim::SimDisk;
use crate::engine::recovery;
use crate::engine::{Engine, EngineError, EngineOptions, Key, Loaded, Lookup, TransferError};
use crate::env::Env;
pub use crate::env::join_all;
use crate::env::sim::{SimEnv, SimWorld};
use crate::metrics::{Metrics, MetricsSnapshot};
use crate::placement::SlotTable;
use crate::slot::{Slot, SlotRange};

/// Tablets of a new store: more than shards, and no multiple of them.
pub const TABLETS: u16 = 7;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Shape {
    pub shards: usize,
    pub options: EngineOptions,
}

/// An open store.
pub struct Store {
    pub env: SimEnv,
    pub engines: Vec<Rc<Engine<SimEnv>>>,
    pub slots: SlotTable,
    /// Tablets that nobody serves before the next start.
    pub lost: RefCell<BTreeSet<TabletId>>,
    next_tablet: Cell<u32>,
    pub moves: Cell<u32>,
    pub splits: Cell<u32>,
}

/// Where a key is.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub shard: usize,
    pub local: usize,
    pub tablet: TabletId,
}

impl Shape {
    /// Everything small: segments of a few blocks, one sealed memtable, a cache of a few blocks. Memtables
    /// are sealed by [`Store::seal`]; their own limit is above what a test writes.
    pub fn small(shards: usize) -> Shape {
        let options = EngineOptions {
            memtable_bytes: 64 << 20,
            sealed_max: 1,
            cache_bytes: 64 << 10,
            row_bytes: 32 << 10,
            reads_max: 8,
            index_bytes: 1 << 20,
            compression: Compression::default(),
            segment_bytes: 32 << 10,
            window: 3,
            lazy: None,
            compaction_fan: 3,
            snapshot_life: std::time::Duration::from_secs(60),
            snapshot_bytes: 1 << 30,
            scrub_bytes_per_s: 0,
            level_ratio: 4,
            last_table_bytes: 16 << 10,
            reserve_bytes: 0,
        };
        Shape { shards, options }
    }

    /// A random one.
    pub fn random(rng: &mut fastrand::Rng) -> Shape {
        let mut shape = Shape::small(rng.usize(1..=4));
        let options = &mut shape.options;
        // A memtable takes a mebibyte as soon as it holds anything. So the first limit has each write
        // flushed alone, the second has a start flush what it recovers, and the third has it wait for more.
        options.memtable_bytes = [1, 2 << 20, 2 << 20, 64 << 20, 64 << 20, 64 << 20][rng.usize(..6)];
        options.sealed_max = rng.usize(1..=2);
        options.segment_bytes = [12 << 10, 16 << 10, 32 << 10, 64 << 10][rng.usize(..4)];
        options.window = rng.usize(1..=3);
        // No index is resident, some are, all are.
        options.index_bytes = [0, 12 << 10, 1 << 20][rng.usize(..3)];
        options.row_bytes = [0, 8 << 10, 32 << 10][rng.usize(..3)];
        let mut codec = || Codec::ALL[rng.usize(..3)];
        options.compression = Compression { upper: codec(), last: codec() };
        options.lazy = (rng.u8(..5) == 0).then_some(Duration::from_millis(3));
        options.compaction_fan = rng.usize(2..=4);
        options.reads_max = [1, 2, 8][options.compaction_fan % 3];
        options.level_ratio = rng.u64(1..=4);
        options.last_table_bytes = [1, 8 << 10, 16 << 10, 1 << 20][rng.usize(..4)];
        shape
    }
}

/// Runs `work` to its end, or until the disk goes down. `None`: it did.
pub async fn unless_down<T>(env: &SimEnv, work: impl Future<Output = T>) -> Option<T> {
    let down = async {
        while !env.disk().is_down() {
            env.sleep(Duration::from_millis(1)).await;
        }
        None
    };
    futures_lite::future::or(async { Some(work.await) }, down).await
}

/// The disk as it is, for a new world: every write that was begun has come to its end.
pub fn same_disk(disk: &SimDisk, world: &SimWorld) -> SimDisk {
    disk.crash(world, &mut fastrand::Rng::with_seed(0), 100)
}

impl Store {
    /// As `server::run` does it: the old logs are scanned by all shards side by side, one installs, and all
    /// open side by side. What is found then is there to stay, and `model` is told.
    pub async fn open(env: &SimEnv, shape: &Shape, model: &RefCell<Model>) -> Result<Store, EngineError> {
        let store = Store::open_alone(env, shape).await?;
        let tablets = || store.engines.iter().flat_map(|engine| engine.all_tablets());
        model.borrow_mut().find(&tablets().map(|tablet| tablet.id).collect::<Vec<_>>());
        for engine in &store.engines {
            for tablet in engine.all_tablets() {
                model.borrow_mut().settle(tablet.id, engine.wal.last_index(tablet.log));
            }
        }
        Ok(store)
    }

    /// The same without a model.
    pub async fn open_alone(env: &SimEnv, shape: &Shape) -> Result<Store, EngineError> {
        let found = recovery::load(env, TABLETS).await?;
        let mut logs_of = vec![Vec::new(); shape.shards];
        for (number, log) in found.logs.into_iter().enumerate() {
            logs_of[number % shape.shards].push(log);
        }
        let state = &found.state;
        let scans = logs_of.into_iter().map(|logs| recovery::scan(env, state, logs)).collect();
        let mut scanned = Vec::new();
        for scans in join_all(scans).await {
            scanned.extend(scans?);
        }
        let start = recovery::plan(found.state, scanned, shape.shards as u32)?;
        recovery::install(env, &start).await?;
        let opens = (0..shape.shards as u32)
            .map(|shard| Engine::open(env, shape.options.clone(), &start, shard, Rc::new(Metrics::default())))
            .collect();
        let mut engines = Vec::new();
        for engine in join_all(opens).await {
            engines.push(engine?);
        }
        let next_tablet = start.state.tablets.keys().map(|tablet| tablet.0 + 1).max().unwrap_or(0);
        Ok(Store {
            env: env.clone(),
            engines,
            slots: SlotTable::new(&start.state),
            lost: RefCell::default(),
            next_tablet: next_tablet.into(),
            moves: Cell::new(0),
            splits: Cell::new(0),
        })
    }

    /// Where a tablet is served: shard, local number, slots.
    pub fn find(&self, id: TabletId) -> Option<(usize, usize, SlotRange)> {
        self.engines.iter().enumerate().find_map(|(shard, engine)| {
            let local = engine.locate(id)?;
            Some((shard, local, engine.tablet(local).slots.get()))
        })
    }

    /// Every tablet that is served, with its slots.
    pub fn tablets(&self) -> Vec<(TabletId, SlotRange)> {
        let all = self.engines.iter().flat_map(|engine| engine.all_tablets());
        all.filter(|tablet| tablet.is_here()).map(|tablet| (tablet.id, tablet.slots.get())).collect()
    }

    /// Moves a tablet as the shards do it. `meanwhile` runs before requests are held back.
    pub async fn move_tablet(
        &self,
        id: TabletId,
        to: usize,
        model: &RefCell<Model>,
        meanwhile: impl AsyncFnOnce(),
    ) -> Result<(), TransferError> {
        let (from, _, slots) = self.find(id).ok_or(TransferError::NotHere(id))?;
        let (source, target) = (&self.engines[from], &self.engines[to]);
        source.prepare_to_leave(id).await?;
        meanwhile().await;
        let moved = async {
            target.prepare_to_take(id, &source.tables_of(id)).await?;
            let state = source.pack(id, to as u32).await?;
            self.acknowledge(model);
            assert!(model.borrow().is_settled(id), "all of a tablet is durable when it moves");
            target.take(state).await
        };
        match moved.await {
            Ok(local) => {
                self.slots.assign(slots, to, local, self.slots.epoch() + 1);
                self.moves.set(self.moves.get() + 1);
                source.part(id).await.map_err(TransferError::from)
            }
            Err(error @ TransferError::Undecided(_)) => {
                self.lost.borrow_mut().insert(id);
                let _ = source.lose(id).await;
                Err(error)
            }
            Err(error) => {
                source.keep(id).await;
                target.forget_arriving().await;
                Err(error)
            }
        }
    }

    /// Splits a tablet as its shard does it.
    pub async fn split(
        &self,
        id: TabletId,
        at: u16,
        model: &RefCell<Model>,
        meanwhile: impl AsyncFnOnce(),
    ) -> Result<(), TransferError> {
        let (shard, _, slots) = self.find(id).ok_or(TransferError::NotHere(id))?;
        let engine = &self.engines[shard];
        let into = TabletId(self.next_tablet.get());
        self.next_tablet.set(into.0 + 1);
        engine.prepare_to_leave(id).await?;
        meanwhile().await;
        let divided = async {
            engine.prepare_to_split(id, into).await?;
            model.borrow_mut().split = Some((id, at, into));
            engine.split(id, at, into).await
        };
        match divided.await {
            Ok(local) => {
                self.acknowledge(model);
                model.borrow_mut().split(id, at, into);
                let upper = SlotRange::new(at, slots.last()).unwrap();
                self.slots.assign(upper, shard, local, self.slots.epoch() + 1);
                self.splits.set(self.splits.get() + 1);
                Ok(())
            }
            Err(error) => {
                if !matches!(error, TransferError::Undecided(_)) {
                    model.borrow_mut().split = None;
                }
                engine.keep(id).await;
                engine.forget_arriving().await;
                Err(error)
            }
        }
    }

    /// Whether nobody serves a key.
    pub fn is_lost(&self, key: KeyId) -> bool {
        let place = self.place(key);
        self.lost.borrow().contains(&place.tablet)
    }

    pub fn place(&self, key: KeyId) -> Place {
        let slot = Slot::of_key(&key_bytes(key));
        let (shard, local) = (self.slots.shard(slot), self.slots.local(slot));
        Place { shard, local, tablet: self.engines[shard].tablet(local).id }
    }

    /// Reads a key as a shard does. With the version the block on which it depends.
    pub async fn get(&self, key: KeyId) -> Result<(Option<Version>, Option<BlockSeq>), EngineError> {
        let place = self.place(key);
        let (engine, bytes) = (&self.engines[place.shard], key_bytes(key));
        let key = Key { bytes: &bytes, hash: engine.hash(&bytes), tablet: place.local };
        let mut loaded = Loaded::new();
        loop {
            let lookup = engine.lookup(&key, &loaded, |found| {
                let entry = found.entry.map(|e| Version { lsn: e.lsn, value: e.value.into() });
                (entry, found.wait)
            })?;
            match lookup {
                Lookup::Done(found) => return Ok(found),
                Lookup::Missing(block) => engine.load(block, &mut loaded).await?,
            }
        }
    }

    /// Reads a key and compares it with the model. Only what is durable may be shown without waiting.
    pub async fn check(&self, key: KeyId, model: &RefCell<Model>) -> Result<(), EngineError> {
        if self.is_lost(key) {
            return Ok(());
        }
        let (found, wait) = self.get(key).await?;
        let place = self.place(key);
        let (expected, block) = model.borrow().current(place.tablet, key);
        assert_eq!(found, expected, "key {key:?} at {place:?}");
        let durable = self.engines[place.shard].wal.durable();
        match block.filter(|block| *block > durable) {
            Some(block) => assert_eq!(wait, Some(block), "key {key:?} at {place:?} is shown too early"),
            None => assert_eq!(wait, None, "key {key:?} at {place:?} waits for nothing"),
        }
        Ok(())
    }

    /// Tells the model what has become durable.
    pub fn acknowledge(&self, model: &RefCell<Model>) {
        for (shard, engine) in self.engines.iter().enumerate() {
            model.borrow_mut().acknowledge(shard, engine.wal.durable());
        }
    }

    /// Has what a shard holds in memory flushed, if another memtable may wait for that.
    pub fn seal(&self, shard: usize) {
        let engine = &self.engines[shard];
        if engine.sealed.borrow().len() < engine.options.sealed_max {
            engine.rotate();
        }
    }

    /// Waits until every write so far is durable and flushed, tables that need merging are merged, and
    /// what nobody needs is removed.
    pub async fn quiesce(&self) {
        for engine in &self.engines {
            let changed = engine.changed();
            changed.until(|| engine.sealed.borrow().len() < engine.options.sealed_max).await;
            engine.rotate();
            changed.until(|| engine.sealed.borrow().is_empty()).await;
        }
        let is_busy = |engine: &Rc<Engine<SimEnv>>| {
            engine.pick(false).is_some()
                || !engine.obsolete.borrow().is_empty()
                || !engine.finished_logs.borrow().is_empty()
        };
        let mut rounds = 0;
        while self.engines.iter().any(is_busy) {
            self.env.sleep(Duration::from_millis(10)).await;
            rounds += 1;
            assert!(rounds < 10_000, "background work never ends");
        }
        // Removals that have begun come to their end.
        self.env.sleep(Duration::from_millis(50)).await;
    }

    /// Closes it as the server does.
    pub async fn close(self) -> Result<(), EngineError> {
        for closed in join_all(self.engines.into_iter().map(Engine::close).collect()).await {
            closed?;
        }
        Ok(())
    }

    pub fn metrics(&self) -> MetricsSnapshot {
        let mut sum = MetricsSnapshot::default();
        self.engines.iter().for_each(|engine| sum.merge(&engine.metrics()));
        sum
    }

    /// Paths of the tables that are live now.
    pub fn live_tables(&self) -> BTreeSet<String> {
        let tablets = self.engines.iter().flat_map(|engine| engine.all_tablets());
        tablets
            .flat_map(|tablet| {
                tablet.version().members().map(|member| member.table.name().path()).collect::<Vec<_>>()
            })
            .collect()
    }
}

/// Paths of the files in a directory.
pub fn files(disk: &SimDisk, dir: &str) -> BTreeSet<String> {
    disk.paths().into_iter().filter(|path| path.starts_with(dir)).collect()
}
