//! Two levels: what descents do to tables, and that they change no answer.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::store::{Shape, Store, unless_down};
use super::{Told, seeds};
use crate::base::{Lsn, Op, OpKind};
use crate::disk::sim::SimDisk;
use crate::engine::manifest::Clip;
use crate::engine::run::RunIter;
use crate::engine::scan::ScanRange;
use crate::engine::version::{Member, Version};
use crate::engine::{Engine, EngineError, Key, Loaded, Lookup};
use crate::env::Env;
use crate::env::sim::{SimEnv, SimWorld};
use crate::slot::{SLOT_COUNT, Slot, SlotRange};

/// Live keys of one tablet.
pub(super) type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// One shard with small tables, of which one tablet is written to.
pub(super) struct Town {
    pub store: Store,
    pub map: Map,
    pub local: usize,
}

/// A key of the tablet that is written to, in the order of numbers.
pub(super) fn key(number: u32) -> Vec<u8> {
    format!("{{town}}{number:06}").into_bytes()
}

impl Town {
    pub async fn open(env: &SimEnv, shape: &Shape, map: Map) -> Town {
        let store = Store::open_alone(env, shape).await.unwrap();
        let local = store.slots.local(Slot::of_key(&key(0)));
        Town { store, map, local }
    }

    pub fn engine(&self) -> &Rc<Engine<SimEnv>> {
        &self.store.engines[0]
    }

    pub fn version(&self) -> Rc<Version<SimEnv>> {
        self.engine().tablet(self.local).version()
    }

    pub fn write(&mut self, number: u32, value: Option<Vec<u8>>) {
        let (key, kind) = (key(number), if value.is_some() { OpKind::Put } else { OpKind::Delete });
        let op = Op { kind, key: &key, value: value.as_deref().unwrap_or_default(), expiry_ms: 0 };
        self.engine().write(self.local, &[op], &[self.engine().hash(&key)]).unwrap();
        match value {
            Some(value) => self.map.insert(key, value),
            None => self.map.remove(&key),
        };
    }

    /// What is in memory becomes a table.
    pub async fn flush(&self) {
        let engine = self.engine();
        engine.changed().until(|| engine.sealed.borrow().len() < engine.options.sealed_max).await;
        engine.rotate();
        engine.changed().until(|| engine.sealed.borrow().is_empty()).await;
    }

    pub async fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, EngineError> {
        let engine = self.engine();
        let wanted = Key { bytes: key, hash: engine.hash(key), tablet: self.local };
        let mut loaded = Loaded::new();
        loop {
            let visit = |found: crate::engine::Found<'_>| found.entry.map(|entry| entry.value.to_vec());
            match engine.lookup(&wanted, &loaded, visit)? {
                Lookup::Done(value) => return Ok(value),
                Lookup::Missing(block) => engine.load(block, &mut loaded).await?,
            }
        }
    }

    /// Live keys of a range, in order.
    pub async fn scan(&self, range: ScanRange) -> Result<Map, EngineError> {
        let mut scan = self.engine().scan(Some(self.local), range);
        let mut found = Map::new();
        let visit = |key: &[u8], entry: &crate::base::Entry<'_>| {
            found.insert(key.to_vec(), entry.value.to_vec());
            true
        };
        scan.run(self.engine(), &mut u32::MAX.clone(), visit).await?;
        Ok(found)
    }

    /// Compares every answer, one by one and in order. Returns the entries that the scan passed over.
    pub async fn check(&self, numbers: u32) -> u64 {
        for number in 0..numbers {
            let key = key(number);
            assert_eq!(self.get(&key).await.unwrap().as_ref(), self.map.get(&key), "key {number}");
        }
        let before = self.store.metrics().scan_skipped;
        assert_eq!(self.scan(ScanRange::default()).await.unwrap(), self.map);
        self.store.metrics().scan_skipped - before
    }
}

pub(super) fn value(rng: &mut fastrand::Rng) -> Vec<u8> {
    vec![rng.u8(..); rng.usize(50..150)]
}

pub(super) fn shape() -> Shape {
    let mut shape = Shape::small(1);
    shape.options.last_table_bytes = 16 << 10;
    shape.options.segment_bytes = 1 << 20;
    shape
}

#[test]
fn keys_in_order_are_written_once() {
    let (world, env) = SimEnv::fresh(1);
    world.run(async {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut town = Town::open(&env, &shape(), Map::new()).await;
        for number in 0..6000 {
            town.write(number, Some(value(&mut rng)));
            if number % 120 == 119 {
                town.flush().await;
            }
        }
        town.store.quiesce().await;
        let metrics = town.store.metrics();
        assert_eq!(metrics.compaction_bytes_out, 0, "nothing is rewritten: {metrics:?}");
        assert_eq!((metrics.table_moves, metrics.last_tables), (50, 50));
        assert_eq!(metrics.upper_tables, 0);
        assert_eq!(town.check(6000).await, 0);
    });
}

/// Uniform overwrites: most data stands in the last level, in tables of the wanted size, and what is rewritten
/// is bounded.
#[test]
fn overwrites_end_in_one_run_of_tables_of_a_size() {
    for seed in seeds(1..4) {
        let _told = Told::seed(seed);
        let (world, env) = SimEnv::fresh(seed);
        world.run(async {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut town = Town::open(&env, &shape(), Map::new()).await;
            for round in 0..60 {
                for _ in 0..400 {
                    let (number, value) = (rng.u32(..4000), value(&mut rng));
                    town.write(number, Some(value));
                }
                town.flush().await;
                if round % 10 == 9 {
                    town.store.quiesce().await;
                    town.check(4000).await;
                }
            }
            town.store.quiesce().await;
            let metrics = town.store.metrics();
            assert!(metrics.last_tables > 10, "{metrics:?}");
            // A quarter of the last level and what came since: a few flushes make no merge due.
            let few = 4 * metrics.flush_bytes / metrics.flushes;
            assert!(metrics.upper_bytes <= metrics.last_bytes / 4 + few, "{metrics:?}");
            let written = metrics.compaction_bytes_out as f64 / metrics.flush_bytes as f64;
            assert!((1.0..9.0).contains(&written), "each byte is rewritten {written} times");
            // Idle, what is above the last level comes down but for a tenth.
            env.sleep(Duration::from_secs(10)).await;
            let metrics = town.store.metrics();
            assert!(metrics.upper_bytes * 10 <= metrics.last_bytes, "{metrics:?}");
            let sizes: Vec<u64> = town.version().last().iter().map(|m| m.meta().bytes).collect();
            // What the builder holds back when it is asked comes on top: a block, index, filter and footer.
            assert!(sizes.iter().all(|bytes| *bytes <= 40 << 10), "{sizes:?}");
            town.check(4000).await;
        });
    }
}

#[test]
fn a_queue_does_not_make_scans_walk_what_is_gone() {
    let (world, env) = SimEnv::fresh(1);
    world.run(async {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut town = Town::open(&env, &shape(), Map::new()).await;
        let (window, mut worst) = (1000, 0.0f64);
        for number in 0..20_000 {
            town.write(number, Some(value(&mut rng)));
            if number >= window {
                town.write(number - window, None);
            }
            if number % 250 == 249 {
                town.flush().await;
                town.store.quiesce().await;
                let skipped = town.check(0).await;
                worst = worst.max(skipped as f64 / town.map.len() as f64);
            }
        }
        assert!(worst < 1.5, "a scan passes over {worst} entries for each that lives");
        let metrics = town.store.metrics();
        let held = (metrics.upper_entries + metrics.last_entries) as f64 / f64::from(window);
        assert!(held < 2.5, "tables hold {held} entries for each that lives");
        let written = metrics.compaction_bytes_out as f64 / metrics.flush_bytes as f64;
        assert!(written < 5.0, "each byte is rewritten {written} times");
    });
}

/// A store in which a descent is due, and will take several steps, once it is opened with this shape.
async fn before_a_descent(env: &SimEnv, rng: &mut fastrand::Rng) -> Map {
    // A last level of several tables, or one step would do.
    let mut town = Town::open(env, &shape(), Map::new()).await;
    for number in 0..800 {
        town.write(number, Some(value(rng)));
        if number % 100 == 99 {
            town.flush().await;
        }
    }
    town.store.quiesce().await;
    assert!(town.version().last().len() > 3 && town.version().upper().is_empty());
    let map = town.map.clone();
    town.store.close().await.unwrap();
    // So far nothing is merged.
    let mut quiet = shape();
    (quiet.options.compaction_fan, quiet.options.last_table_bytes) = (16, 1 << 30);
    let mut town = Town::open(env, &quiet, map).await;
    for _ in 0..4 {
        for _ in 0..200 {
            let (number, value) = (rng.u32(..800), value(rng));
            town.write(number, (rng.u8(..6) > 0).then_some(value));
        }
        town.flush().await;
    }
    let map = town.map.clone();
    town.store.close().await.unwrap();
    map
}

#[test]
fn a_crash_at_any_operation_of_a_descent_changes_no_answer() {
    let (mut between, mut ended) = (0, false);
    for at in 1..2000 {
        let (world, env) = SimEnv::fresh(7);
        let mut rng = fastrand::Rng::with_seed(7);
        let map = world.run(before_a_descent(&env, &mut rng));
        world.kill();
        let _told = Told(format!("the crash is at operation {at} after the start"));
        let world = SimWorld::new(at);
        let disk = env.disk().crash(&world, &mut rng, 100);
        let env = SimEnv::new(&world, disk);
        let lived = world.run(async {
            let town = Town::open(&env, &shape(), map.clone()).await;
            env.disk().crash_at(env.disk().operations() + at);
            let work = async {
                town.store.quiesce().await;
                assert!(town.version().upper().is_empty(), "all of it came down");
            };
            unless_down(&env, work).await.is_some()
        });
        world.kill();
        ended = lived;
        if lived {
            break;
        }
        let world = SimWorld::new(at + 1);
        let mut rng = fastrand::Rng::with_seed(at);
        let keep = [0, 50, 100][at as usize % 3];
        let disk: SimDisk = env.disk().crash(&world, &mut rng, keep);
        let env = SimEnv::new(&world, disk);
        world.run(async {
            let town = Town::open(&env, &shape(), map).await;
            let version = town.version();
            between += u32::from(version.front() < version.upper().len() && !version.last().is_empty());
            drop(version);
            town.check(800).await;
            town.store.quiesce().await;
            town.check(800).await;
            town.store.close().await.unwrap();
        });
        world.kill();
    }
    assert!(ended, "a descent ends within 2000 operations");
    assert!(between > 10, "{between} crashes hit between two steps");
}

/// Walks and lookups of clipped tables see what the clip leaves, no more and no less.
#[test]
fn a_run_shows_what_clips_leave() {
    for seed in seeds(1..6) {
        let _told = Told::seed(seed);
        let (world, env) = SimEnv::fresh(seed);
        world.run(async {
            let mut rng = fastrand::Rng::with_seed(seed);
            let store = Store::open_alone(&env, &shape()).await.unwrap();
            let engine = &store.engines[0];
            // Without tags, so that a tablet has keys of many slots.
            for number in 0..3000u32 {
                let key = format!("{:05}", number * 7 % 5000).into_bytes();
                let local = store.slots.local(Slot::of_key(&key));
                let op = Op { kind: OpKind::Put, key: &key, value: &[1; 60], expiry_ms: 0 };
                engine.write(local, &[op], &[engine.hash(&key)]).unwrap();
            }
            engine.rotate();
            engine.changed().until(|| engine.sealed.borrow().is_empty()).await;
            let version = engine.tablet(0).version();
            let table = version.members().next().unwrap().table.clone();
            let mut whole =
                RunIter::seek(vec![Member::whole(table.clone(), Lsn::default())], b"", b"").await.unwrap();
            let mut keys = Vec::new();
            while let Some((key, _)) = whole.current() {
                keys.push(key.to_vec());
                whole.advance().await.unwrap();
            }
            assert!(keys.len() > 100);
            for _ in 0..100 {
                let bound = |rng: &mut fastrand::Rng| match rng.u8(..4) {
                    0 => Vec::new(),
                    _ => format!("{:04}", rng.u32(..500)).into_bytes(),
                };
                let own = table.meta().slots;
                let first = rng.u16(own.first()..=own.last());
                let last = if rng.bool() { SLOT_COUNT - 1 } else { rng.u16(first..=own.last()) };
                let slots = SlotRange::new(if rng.bool() { 0 } else { first }, last).unwrap();
                let (smallest, end) = (bound(&mut rng), bound(&mut rng));
                let clip = Clip { slots, smallest: smallest.into(), end: end.into() };
                let (from, until) = (bound(&mut rng), bound(&mut rng));
                let counts = |key: &&Vec<u8>| {
                    clip.covers(key)
                        && slots.contains(Slot::of_key(key))
                        && **key >= from
                        && (until.is_empty() || **key < until)
                };
                let expected: Vec<_> = keys.iter().filter(counts).cloned().collect();
                let member = Member::new(table.clone(), Some(clip.clone()), Lsn::default());
                let mut run = RunIter::seek(vec![member.clone()], &from, &until).await.unwrap();
                let mut found = Vec::new();
                while let Some((key, _)) = run.current() {
                    assert!(member.covers(key));
                    found.push(key.to_vec());
                    run.advance().await.unwrap();
                }
                assert_eq!(found, expected, "{clip:?} from {from:?} until {until:?}");
                let share = member.totals().entries;
                assert!(share >= 1 && share <= table.meta().entries);
            }
        });
    }
}
