//! What a shape of the levels costs: bytes written and held per byte of data, tables that a read meets.
//!
//! `cargo bench --bench compaction [-- KEYS]`; 300,000 keys of 16 bytes with values of 100 unless told otherwise,
//! in one tablet with memtables of 1 MiB: the proportions of a tablet of 145 MB, whose part of a memtable is 4 MB.
//! A real engine on the simulated disk: it counts bytes, which depend on nothing but the seed, not time. Keys come
//! in random order, then are overwritten uniformly, five times as many writes as keys; then nobody writes.

#[allow(dead_code)] // other benchmarks use the rest
mod common;

use std::rc::Rc;
use std::time::Duration;

use atlaskv::base::{Codec, Compression, Op, OpKind};
use atlaskv::disk::sim::SimDisk;
use atlaskv::engine::recovery;
use atlaskv::engine::{Engine, EngineOptions, Key, Loaded, Lookup, Room};
use atlaskv::env::Env;
use atlaskv::env::sim::{SimEnv, SimWorld};
use atlaskv::metrics::{Metrics, MetricsSnapshot};

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SEED: u64 = 1;
const VALUE_BYTES: usize = 100;
/// Writes of each key after the load, on average.
const ROUNDS: u64 = 5;
/// Writes between two pauses, in which the background goes on.
const TURN: u64 = 500;

fn main() {
    let arguments = common::arguments();
    let keys = arguments.or(300_000, 3_000) as u64;
    let ratios: &[u64] = if arguments.is_bench { &[2, 3, 4, 6, 8] } else { &[4] };
    println!("{keys} keys, seed {SEED}; bytes written to tables per byte of keys and values");
    println!(
        "fan ratio   load  overwrite   space: mean  worst  idle   tables: mean worst   filters/get reads/get"
    );
    for fan in [2, 4, 8] {
        for ratio in ratios {
            measure(keys, fan, *ratio);
        }
    }
}

fn options(fan: usize, ratio: u64) -> EngineOptions {
    EngineOptions {
        memtable_bytes: 1 << 20,
        sealed_max: 1,
        cache_bytes: 1 << 20,
        row_bytes: 1 << 20,
        reads_max: 128,
        index_bytes: 64 << 20,
        compression: Compression { upper: Codec::None, last: Codec::None },
        segment_bytes: 4 << 20,
        window: 3,
        lazy: None,
        compaction_fan: fan,
        snapshot_life: Duration::from_secs(60),
        snapshot_bytes: 1 << 30,
        scrub_bytes_per_s: 0,
        level_ratio: ratio,
        last_table_bytes: 8 << 20,
        reserve_bytes: 0,
    }
}

/// Keys in an order that has nothing to do with their bytes' order.
fn key(number: u64) -> [u8; 16] {
    let mut key = [b'k'; 16];
    key[..8].copy_from_slice(&number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
    key
}

struct Run {
    env: SimEnv,
    engine: Rc<Engine<SimEnv>>,
    rng: fastrand::Rng,
}

impl Run {
    async fn put(&mut self, number: u64) {
        let key = key(number);
        let value: [u8; VALUE_BYTES] = std::array::from_fn(|_| self.rng.u8(..));
        while self.engine.room(true, 200).expect("the disk has no faults") == Room::Wait {
            let (changed, durable) = (self.engine.changed(), self.engine.wal().durable_changed());
            futures_lite::future::or(changed.notified(), durable.notified()).await;
        }
        let op = Op { kind: OpKind::Put, key: &key, value: &value, expiry_ms: 0 };
        self.engine.write(0, &[op], &[self.engine.hash(&key)]).expect("there is room");
    }

    async fn get(&self, number: u64) {
        let bytes = key(number);
        let key = Key { bytes: &bytes, hash: self.engine.hash(&bytes), tablet: 0 };
        let mut loaded = Loaded::new();
        loop {
            match self.engine.lookup(&key, &loaded, |found| found.entry.is_some()).expect("no damage") {
                Lookup::Done(is_there) => return assert!(is_there, "key {number} was written"),
                Lookup::Missing(block) => self.engine.load(block, &mut loaded).await.expect("no faults"),
            }
        }
    }
}

/// Bytes written to tables per byte of user data, between two moments.
fn written(before: &MetricsSnapshot, after: &MetricsSnapshot) -> f64 {
    let tables = |metrics: &MetricsSnapshot| metrics.flush_bytes + metrics.compaction_bytes_out;
    (tables(after) - tables(before)) as f64 / (after.write_bytes - before.write_bytes) as f64
}

fn measure(keys: u64, fan: usize, ratio: u64) {
    let world = SimWorld::new(SEED);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    world.run(async {
        let found = recovery::load(&env, 1).await.expect("a new store");
        let start = recovery::plan(found.state, Vec::new(), 1).expect("a new store");
        recovery::install(&env, &start).await.expect("the disk has no faults");
        let metrics = Rc::new(Metrics::default());
        let engine = Engine::open(&env, options(fan, ratio), &start, 0, metrics).await.expect("a new store");
        let mut run = Run { env: env.clone(), engine, rng: fastrand::Rng::with_seed(SEED) };
        let empty = run.engine.metrics();
        for number in 0..keys {
            run.put(number).await;
            if number % TURN == 0 {
                run.env.sleep(Duration::from_millis(2)).await;
            }
        }
        let loaded = run.engine.metrics();
        let (mut held, mut tables) = (Vec::new(), Vec::new());
        for n in 0..keys * ROUNDS {
            let number = run.rng.u64(..keys);
            run.put(number).await;
            if n % TURN == 0 {
                run.env.sleep(Duration::from_millis(2)).await;
                let metrics = run.engine.metrics();
                held.push(metrics.table_bytes);
                tables.push(metrics.upper_tables);
            }
        }
        let before = run.engine.metrics();
        for _ in 0..10_000.min(keys) {
            let number = run.rng.u64(..keys);
            run.get(number).await;
        }
        let after = run.engine.metrics();
        let gets = 10_000.min(keys) as f64;
        run.env.sleep(Duration::from_secs(30)).await;
        let idle = run.engine.metrics();
        let ideal = (keys * (16 + VALUE_BYTES as u64 + 17)) as f64;
        let mean = |values: &[u64]| values.iter().sum::<u64>() as f64 / values.len() as f64;
        let worst = |values: &[u64]| values.iter().max().copied().unwrap_or(0);
        println!(
            "{fan:3} {ratio:5} {:6.2} {:10.2} {:13.2} {:6.2} {:5.2} {:14.1} {:5} {:13.2} {:9.3}",
            written(&empty, &loaded),
            written(&loaded, &before),
            mean(&held) / ideal,
            worst(&held) as f64 / ideal,
            idle.table_bytes as f64 / ideal,
            mean(&tables),
            worst(&tables),
            (after.filter_checks - before.filter_checks) as f64 / gets,
            (after.filter_checks - before.filter_checks - (after.filter_negatives - before.filter_negatives))
                as f64
                / gets,
        );
    });
    world.kill();
}
