//! One run: a store from its creation through many lives, each with another shape, ended by a stop or a power cut.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use atlaskv::env::sim::{SimEnv, SimWorld};
use atlaskv::env::{Env, Gate, Queue};
use atlaskv::metrics::MetricsSnapshot;
use atlaskv::shard::Trouble;

use crate::keys::{Key, Pool};
use crate::pipeline::{Flight, Landed};
use crate::plan::{COPY, PAGE, RANGE};
use crate::reference::{Live, MARGIN_MS, Op, Reference, Span};
use crate::report::{Log, Met, shown};
use crate::scans::{Scan, Snap, Window};
use crate::script::Script;
use crate::shape::Shape;
use crate::store::{Inbox, Store};
use crate::verify::{Difference, check_atomic, check_copy, read_all, scan_all};
use crate::workload::Workload;

/// Scans that are open at a time: fewer than the store keeps.
const SCANS_MAX: usize = 24;
/// How long the store keeps a scan that nobody goes on with, and a little less.
const SCAN_LIFE: Duration = Duration::from_secs(45);
/// Shards' clocks may differ so much while the wall clock is behind them.
const SKEW_MS: u64 = 500;
/// Most tablets that splits may make.
pub const TABLETS_MAX: usize = 64;

/// A number from `first` on, below one of the bounds.
fn below_one(rng: &mut fastrand::Rng, first: u64, bounds: [u64; 3]) -> u64 {
    let bound = bounds[rng.usize(..bounds.len())];
    rng.u64(first..bound)
}

/// What a power cut left undecided.
#[derive(Clone, Default)]
pub struct Unsure {
    pub window: Window,
    pub batches: Vec<(usize, Vec<Key>)>,
}

/// A run in progress.
pub struct Run {
    pub seed: u64,
    pub work: Workload,
    pub shapes: fastrand::Rng,
    pub reference: Reference,
    /// The latest time that a shard's clock showed, and when that was.
    latest: (u64, Duration),
    /// Requests so far.
    pub step: u64,
    pub log: Log,
    /// What a storm is to do.
    pub script: Script,
    pub scans: Vec<Scan>,
    next_scan: u64,
    pub flight: Option<Flight>,
    /// Grows as pipelines begin and end.
    pub progress: Rc<Cell<u64>>,
    /// Moves and splits under way.
    pub changing: Gate,
    changes: Rc<Cell<u32>>,
    /// Whether there was one when the pipeline began.
    pub changing_at_start: bool,
    trouble: Rc<RefCell<Option<String>>>,
    pub unsure: Option<Unsure>,
    copies: u32,
    pub tablets: u16,
    /// Requests that may come at once, few, some or many.
    pub burst: [u64; 3],
    tablets_max: usize,
    pub entry_bytes_max: usize,
    /// Requests may be refused, and tablets stay where they are, since the disk fails.
    pub may_fail: bool,
    pub met: Met,
}

impl Run {
    pub fn new(seed: u64) -> Run {
        let mut rng = fastrand::Rng::with_seed(seed);
        // Some have keys and values as long as may be, and logs to match.
        let is_large = rng.u8(..4) == 0;
        let longest = if is_large && rng.bool() { atlaskv::base::KEY_BYTES_MAX } else { 0 };
        let count = [40, 300, 300, 1500, 4000][rng.usize(..5)];
        let pool = Pool::new(&mut rng, count, longest);
        let value_bytes_max = if is_large { 600 << 10 } else { 9000 };
        let tablets = [1, 2, 5, 16, 64][rng.usize(..5)];
        Run::with(seed, rng, pool, value_bytes_max, tablets, TABLETS_MAX)
    }

    /// One with such keys, values and tablets.
    pub fn with(
        seed: u64,
        mut rng: fastrand::Rng,
        pool: Pool,
        value_bytes_max: usize,
        tablets: u16,
        tablets_max: usize,
    ) -> Run {
        let entry_bytes_max = value_bytes_max + pool.longest() + (16 << 10);
        let shapes = rng.fork();
        Run {
            seed,
            work: Workload::new(rng, pool, value_bytes_max),
            shapes,
            reference: Reference::default(),
            latest: (0, Duration::ZERO),
            step: 0,
            log: Log::default(),
            script: Script::new(seed, None),
            scans: Vec::new(),
            next_scan: 1,
            flight: None,
            progress: Rc::default(),
            changing: Gate::new(),
            changes: Rc::default(),
            changing_at_start: false,
            trouble: Rc::default(),
            unsure: None,
            copies: 0,
            tablets,
            burst: [4, 60, 250],
            tablets_max,
            entry_bytes_max,
            may_fail: false,
            met: Met::default(),
        }
    }

    /// Runs to its end. Panics where the store differs from the reference.
    pub fn run(mut self, ops: u64) -> Met {
        let (mut world, mut env) = SimEnv::fresh(self.seed);
        while self.step < ops {
            let shape = Shape::random(&mut self.shapes, self.tablets, self.entry_bytes_max);
            let is_cut = shape.is_durable && self.shapes.u8(..3) > 0;
            let end = self.step + below_one(&mut self.shapes, 200, [600, 3000, 12_000]);
            self.event(format!("opened as {shape:?}"));
            let inbox: RefCell<Rc<Inbox>> = RefCell::default();
            let lived = world.run(self.live(&world, &env, &shape, end, is_cut, &inbox));
            if let Err(difference) = lived.and_then(|()| self.note_cut(&env, &inbox.take())) {
                self.report(&difference, &shape);
            }
            world.kill();
            self.met.lives += 1;
            (world, env) = self.next_world(&env, is_cut);
        }
        self.met.ops = self.step;
        self.met
    }

    /// The world after this one has ended, by a power cut or not, and some time has passed.
    pub fn next_world(&mut self, env: &SimEnv, is_cut: bool) -> (SimWorld, SimEnv) {
        let next = SimWorld::new(self.shapes.u64(..));
        let keep = if is_cut { self.shapes.u32(..=100) } else { 100 };
        let disk = env.disk().crash(&next, &mut self.shapes.fork(), keep);
        let after = SimEnv::new(&next, disk);
        let pause_ms = below_one(&mut self.shapes, 1, [1000, 600_000, 600_000]);
        // Clocks begin with the wall clock. What was expired may be there again if that shows an earlier time.
        next.jump_wall((self.time_ms(env) - after.wall_ms() + pause_ms) as i64);
        self.latest = (0, Duration::ZERO);
        (next, after)
    }

    pub fn event(&mut self, what: String) {
        self.log.event(self.step, what);
    }

    pub fn report(&self, difference: &Difference, shape: &Shape) -> ! {
        self.script.done.borrow_mut().difference = Some(difference.what.clone());
        self.log.print(&difference.keys);
        let keys: Vec<String> =
            difference.keys.iter().map(|key| shown(&key.escape_ascii().to_string())).collect();
        panic!("seed {}, step {}, {keys:?}: {}; opened as {shape:?}", self.seed, self.step, difference.what);
    }

    /// One life of the store.
    async fn live(
        &mut self,
        world: &SimWorld,
        env: &SimEnv,
        shape: &Shape,
        end: u64,
        is_cut: bool,
        inbox: &RefCell<Rc<Inbox>>,
    ) -> Result<(), Difference> {
        let trouble = |what: &str, error| Difference::of(Vec::new(), format!("{what}: {error}"));
        let store = Store::open(env, shape).await.map_err(|error| trouble("no start", error))?;
        inbox.replace(store.inbox.clone());
        self.begin_life(env, shape);
        self.decide(world, &store).await?;
        while self.step < end {
            self.step_once(world, &store, shape).await?;
        }
        if is_cut {
            self.met.crashes += 1;
            let after = Duration::from_micros(below_one(&mut self.shapes, 0, [200, 600, 4000]));
            self.event(format!("the power goes {after:?} after a pipeline has begun"));
            self.count(&MetricsSnapshot::default(), &store.metrics());
            self.maybe_change(&store);
            let last = async { self.pipeline(world, &store, shape).await };
            let cut = async {
                env.sleep(after).await;
                Ok(())
            };
            return futures_lite::future::or(last, cut).await;
        }
        self.changing.empty().await;
        self.event("stopped".to_owned());
        self.count(&MetricsSnapshot::default(), &store.metrics());
        store.close().await.map_err(|error| trouble("no stop", error))
    }

    /// Nothing of an earlier life goes on.
    pub fn begin_life(&mut self, env: &SimEnv, shape: &Shape) {
        (self.changing, self.changes) = (Gate::new(), Rc::default());
        self.watch(env);
        self.scans.retain(|scan| !scan.ask.is_local);
        for scan in &mut self.scans {
            scan.connection %= shape.shards;
            scan.may_renew = true;
        }
    }

    /// Counts what has happened between two looks at the store's counters.
    pub fn count(&mut self, before: &MetricsSnapshot, now: &MetricsSnapshot) {
        self.met.flushes += now.flushes - before.flushes;
        self.met.merges += now.compactions - before.compactions;
        self.met.trivial_moves += now.table_moves - before.table_moves;
        self.met.moves += now.tablet_moves - before.tablet_moves;
        self.met.splits += now.tablet_splits - before.tablet_splits;
        self.met.checkpoints += now.checkpoints - before.checkpoints;
        self.met.disk_waits += now.disk_waits - before.disk_waits;
    }

    /// Panics if a pipeline does not end.
    fn watch(&self, env: &SimEnv) {
        let (progress, env2, seed) = (self.progress.clone(), env.clone(), self.seed);
        env.spawn(Queue::Compaction, async move {
            loop {
                let before = progress.get();
                env2.sleep(Duration::from_secs(300)).await;
                let is_stuck = before == progress.get() && before % 2 == 1;
                assert!(!is_stuck, "seed {seed}: requests are not answered for five minutes");
            }
        });
    }

    /// Notes what was on its way when the power went.
    pub fn note_cut(&mut self, env: &SimEnv, inbox: &Inbox) -> Result<(), Difference> {
        self.progress.set(self.progress.get().next_multiple_of(2));
        let Some(flight) = self.flight.take() else { return Ok(()) };
        self.met.cut_off += 1;
        let now = (flight.since.0.0, self.time_ms(env));
        let answers = inbox.answers.take();
        let Landed { unsure: window, batches, .. } = self.cut_off(&flight, &answers, now)?;
        self.unsure = Some(Unsure { window, batches });
        Ok(())
    }

    /// Right after a start: everything is compared, and what a power cut left undecided is what is found.
    pub async fn decide(&mut self, world: &SimWorld, store: &Store) -> Result<(), Difference> {
        // It stays undecided until all of it was seen.
        let mut unsure = self.unsure.clone().unwrap_or_default();
        loop {
            self.settle(world, store);
            let (now, wall_ms) = (self.clocks(store), store.env.wall_ms());
            let states = || unsure.window.values().flatten().filter_map(|state| state.live.as_ref());
            let soon =
                states().map(|live| live.expiry.1).filter(|at| (now.0..=now.1 + 2 * MARGIN_MS).contains(at));
            let Some(at_ms) = soon.max() else { break };
            world.jump_wall((at_ms - wall_ms) as i64 + 1);
        }
        let now_ms = self.clocks(store).0;
        for state in unsure.window.values_mut().flatten() {
            state.live = state.live.take().filter(|live| !live.is_past(now_ms));
        }
        let Unsure { window, batches } = unsure;
        let snap = Snap { base: Rc::new(self.reference.live.clone()), maybe: Rc::new(window) };
        let connection = self.work.rng.usize(..store.connections.len());
        let found = scan_all(store, connection, &snap).await?;
        check_atomic(&snap.maybe, &batches, &found)?;
        for (key, states) in &*snap.maybe {
            let live = found.get(key).map(|(version, expiry_ms, value)| Live {
                value: value.as_slice().into(),
                version: *version,
                expiry: (*expiry_ms, *expiry_ms),
            });
            let is_known =
                |version| states.iter().flat_map(|state| &state.live).any(|old| old.version == version);
            if let Some(live) = live.as_ref().filter(|live| !is_known(live.version)) {
                let noted = self.reference.note(key, live.version);
                noted.map_err(|what| Difference::of(vec![key.clone()], what))?;
            }
            self.reference.set(key, live);
        }
        self.unsure = None;
        self.resolve(store, self.reference.live.keys().cloned().collect()).await?;
        read_all(store, connection, &self.work.pool.keys, &found).await
    }

    /// Lets time pass until no key expires soon.
    pub fn settle(&mut self, world: &SimWorld, store: &Store) {
        loop {
            let (now, wall_ms) = (self.clocks(store), store.env.wall_ms());
            if now.1 - now.0 > SKEW_MS {
                world.jump_wall((now.1 - wall_ms) as i64 + 1);
                continue;
            }
            match self.reference.settle(now) {
                Ok(expired) => {
                    self.met.expired += expired;
                    return;
                }
                Err(at_ms) => world.jump_wall((at_ms - wall_ms) as i64 + 1),
            }
        }
    }

    /// What the shards' clocks show now.
    pub fn clocks(&mut self, store: &Store) -> Span {
        let now = store.clocks();
        self.latest = (now.1, store.env.now());
        now
    }

    /// No shard's clock shows a later time.
    pub fn time_ms(&self, env: &SimEnv) -> u64 {
        let (latest_ms, at) = self.latest;
        // Both times are rounded down, each by itself.
        env.wall_ms().max(latest_ms + env.now().saturating_sub(at).as_millis() as u64 + 1)
    }

    /// Sets the wall clock back. Mostly all shards have seen the time that it showed.
    fn turn_back(&mut self, world: &SimWorld, store: &Store, ms: u64) {
        if self.work.rng.u8(..4) > 0 {
            for shard in &store.shards {
                shard.engine.tick();
            }
        }
        self.clocks(store);
        world.jump_wall(-(ms as i64));
        self.met.turned_back += 1;
    }

    /// Asks when keys expire whose time to live the store has made a time.
    async fn resolve(&mut self, store: &Store, keys: Vec<Key>) -> Result<(), Difference> {
        let vague = self.reference.vague(keys.into_iter());
        if vague.is_empty() {
            return Ok(());
        }
        let flight = self.flight(store, |flight| {
            vague.iter().map(|key| (flight.connection(key), Op::Ttl(key.clone()))).collect()
        });
        self.exchange(store, flight).await.map(drop)
    }

    fn flight(&mut self, store: &Store, ops: impl FnOnce(&Flight) -> Vec<(usize, Op)>) -> Flight {
        let mut flight = Flight {
            ops: Rc::default(),
            since: (self.clocks(store), store.env.now()),
            base: None,
            salt: self.work.rng.usize(..64),
            connections: store.connections.len(),
            range_bytes_max: store.range_bytes_max,
        };
        flight.ops = Rc::new(ops(&flight));
        flight
    }

    /// Something random.
    pub async fn step_once(
        &mut self,
        world: &SimWorld,
        store: &Store,
        shape: &Shape,
    ) -> Result<(), Difference> {
        match self.work.rng.u8(..100) {
            0..6 => {
                let shard = self.work.rng.usize(..store.shards.len());
                self.event(format!("shard {shard} seals its memtable"));
                store.shards[shard].engine.rotate();
            }
            6..10 => {
                let micros = below_one(&mut self.work.rng, 0, [200, 5000, 60_000]);
                store.env.sleep(Duration::from_micros(micros)).await;
            }
            10 if self.work.rng.u8(..4) == 0 => {
                let pause = Duration::from_secs(below_one(&mut self.work.rng, 1, [4, 30, 130]));
                self.event(format!("nothing happens for {pause:?}"));
                store.env.sleep(pause).await;
            }
            11 => {
                let ms = below_one(&mut self.work.rng, 0, [10_000, 3_600_000, 30 * 3_600_000]);
                if self.work.rng.u8(..3) == 0 {
                    self.event(format!("the clock is set back by {ms} ms"));
                    self.turn_back(world, store, ms);
                } else {
                    self.event(format!("{ms} ms pass"));
                    world.jump_wall(ms as i64);
                }
            }
            12..17 => self.maybe_change(store),
            _ => self.pipeline(world, store, shape).await?,
        }
        match self.trouble.take() {
            Some(what) => Err(Difference::of(Vec::new(), what)),
            None => Ok(()),
        }
    }

    /// Begins to move or split a tablet, unless some change is under way.
    fn maybe_change(&mut self, store: &Store) {
        if self.changes.get() > 0 {
            return;
        }
        self.event("a tablet moves or splits".to_owned());
        for scan in &mut self.scans {
            scan.may_renew = true;
        }
        self.scans.retain(|scan| !scan.ask.is_local);
        self.changes.set(self.changes.get() + 1);
        let (guard, changes, trouble) = (self.changing.enter(), self.changes.clone(), self.trouble.clone());
        let coordinator = store.coordinator().clone();
        let mut rng = self.work.rng.fork();
        let (shards, tablets_max, may_fail) = (store.shards.len(), self.tablets_max, self.may_fail);
        store.env.spawn(Queue::Foreground, async move {
            let changed = async {
                let all = coordinator.survey().await?;
                if all.is_empty() {
                    // The only one was on its way when the manifest failed.
                    return Err(Trouble::Failed("nobody serves a tablet".to_owned()));
                }
                let tablet = all[rng.usize(..all.len())];
                let slots = tablet.slots;
                if slots.count() > 1 && all.len() < tablets_max && (shards == 1 || rng.u8(..4) == 0) {
                    let at = rng.bool().then(|| rng.u16(slots.first() + 1..=slots.last()));
                    coordinator.split_tablet(tablet.id, at).await
                } else {
                    let to = (tablet.shard + rng.usize(..shards).max(1)) % shards;
                    coordinator.move_tablet(tablet.id, to).await
                }
            };
            match changed.await {
                Ok(_) => {}
                // Where requests wait for the disk for long, the change gives up, and says so.
                Err(Trouble::Failed(why)) if why.contains("try again") => {}
                Err(_) if may_fail => {}
                Err(error) => {
                    trouble.replace(Some(format!("a tablet neither moved nor split: {error}")));
                }
            }
            changes.set(changes.get() - 1);
            drop(guard);
        });
    }

    /// Some requests at once; now and then a checkpoint is made meanwhile.
    async fn pipeline(&mut self, world: &SimWorld, store: &Store, shape: &Shape) -> Result<(), Difference> {
        self.settle(world, store);
        let now = self.clocks(store);
        let rng = &mut self.work.rng;
        let count = below_one(rng, 1, self.burst) as usize;
        let is_quiet = rng.u8(..6) == 0;
        let has_pages = is_quiet || rng.u8(..4) == 0;
        let is_copied = rng.u16(..300) == 0;
        // How much is drawn for pages depends on the scans that are open. The rest must not.
        let mut rest = rng.fork();
        let pages = if has_pages { self.pages(store) } else { Vec::new() };
        let mut ops = Vec::new();
        // A scan that begins in a quiet one has a snapshot that is known exactly.
        while !is_quiet && ops.len() < count {
            self.work.rng = rest.fork();
            ops.push(self.work.op(&self.reference, now));
        }
        self.work.rng = rest;
        let mut flight = self.flight(store, |flight| {
            let connection = |op: &Op| flight.connection(op.keys()[0]);
            ops.into_iter().map(|op| (connection(&op), op)).collect()
        });
        let ops = Rc::unwrap_or_clone(flight.ops);
        let mut parts: Vec<(u32, (usize, Op))> = (0..).zip(ops).collect();
        // Rather while a tablet moves: then its parts may have to be sent anew.
        let odds = if self.changes.get() > 0 { 3 } else { 10 };
        if !is_quiet && self.work.rng.u8(..odds) == 0 {
            let place = (self.work.rng.usize(..store.connections.len()), self.work.range());
            parts.insert(self.work.rng.usize(..=parts.len()), (RANGE, place));
        }
        for page in (PAGE..).zip(pages) {
            parts.insert(self.work.rng.usize(..=parts.len()), page);
        }
        let copy = is_copied.then_some(COPY);
        let chosen = self.script.choose(parts.iter().map(|(part, _)| *part).chain(copy).collect());
        let is_copied = chosen.contains(&COPY);
        let is_chosen = |(part, place)| chosen.contains(&part).then_some(place);
        let ops: Vec<(usize, Op)> = parts.into_iter().filter_map(is_chosen).collect();
        if chosen.is_empty() {
            return Ok(());
        }
        let has_pages = ops.iter().any(|(_, op)| matches!(op, Op::Page(_)));
        let base = (is_copied || has_pages).then(|| Rc::new(self.reference.live.clone()));
        let written =
            if is_quiet { Vec::new() } else { ops.iter().flat_map(|(_, op)| op.keys()).cloned().collect() };
        (flight.ops, flight.base) = (Rc::new(ops), base);
        self.changing_at_start = self.changes.get() > 0;
        if !is_copied {
            self.exchange(store, flight).await?;
            return self.resolve(store, written).await;
        }
        self.copies += 1;
        let dir = format!("copy-{}", self.copies);
        self.event(format!("a checkpoint in {dir}"));
        let coordinator = store.coordinator().clone();
        let copied = coordinator.take_checkpoint(&dir);
        let (landed, copied) = futures_lite::future::zip(self.exchange(store, flight), copied).await;
        let landed = landed?;
        if let Err(error) = copied {
            let what = format!("no checkpoint: {error}");
            return Err(Difference { is_fault: self.may_fail, ..Difference::of(Vec::new(), what) });
        }
        let mut other = Shape::random(&mut self.shapes, self.tablets, self.entry_bytes_max);
        other.options.segment_bytes = shape.options.segment_bytes;
        let (seed, keys) = (self.shapes.u64(..), &self.work.pool.keys);
        let time_ms = self.time_ms(&store.env);
        check_copy(&store.env, time_ms, &dir, &other, seed, keys, &landed)?;
        self.remove(store, &dir).await;
        self.resolve(store, written).await
    }

    async fn remove(&self, store: &Store, dir: &str) {
        use atlaskv::disk::Disk;
        let disk = store.env.disk();
        for path in disk.paths().into_iter().filter(|path| path.starts_with(&format!("{dir}/"))) {
            let removed = disk.remove(&path).await;
            assert!(removed.is_ok() || self.may_fail, "it was listed");
        }
    }

    /// Next pages of some scans, and of new ones.
    fn pages(&mut self, store: &Store) -> Vec<(usize, Op)> {
        let now = store.env.now();
        for scan in &mut self.scans {
            scan.may_renew |= now.saturating_sub(scan.used) > SCAN_LIFE;
        }
        // Whose tablets those are is known only while none moves.
        let may_be_local = self.changes.get() == 0;
        let is_stale = |scan: &Scan| scan.ask.is_local && (scan.may_renew || !may_be_local);
        self.scans.retain(|scan| !is_stale(scan));
        let rng = &mut self.work.rng;
        let mut chosen: Vec<usize> = (0..self.scans.len()).filter(|_| rng.u8(..3) == 0).collect();
        if self.scans.len() < SCANS_MAX {
            let connection = rng.usize(..store.connections.len());
            let mut scan = Scan::random(self.next_scan, connection, rng, &self.work.pool);
            scan.ask.is_local &= may_be_local;
            scan.used = now;
            self.next_scan += 1;
            chosen.push(self.scans.len());
            self.scans.push(scan);
        }
        let mut pages = Vec::new();
        for place in chosen {
            let scan = &mut self.scans[place];
            let is_short = rng.bool();
            scan.ask.entries_max = if is_short { rng.u32(1..20) } else { 0 };
            scan.ask.bytes_max = if rng.u8(..4) == 0 { rng.u32(1..4000) } else { 0 };
            pages.push((scan.connection, Op::Page(scan.ask.clone())));
        }
        pages
    }
}

/// What fails by an assertion of the engine has a story as well.
impl Drop for Run {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        if let Some(flight) = self.flight.take() {
            for (id, (_, op)) in (self.step..).zip(&*flight.ops) {
                self.log.note(id, op.clone(), None);
            }
        }
        self.log.print(&[]);
    }
}
