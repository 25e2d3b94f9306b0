//! Shards in an observed world, as the server runs them, and keys of each.

use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use atlaskv::base::Compression;
use atlaskv::engine::{Engine, EngineOptions, recovery};
use atlaskv::env::sim::SimEnv;
use atlaskv::env::{Env, Queue};
use atlaskv::metrics::Metrics;
use atlaskv::placement::SlotTable;
use atlaskv::protocol::Limits;
use atlaskv::redis::session::{Context, ContextParts, Host, Nodes, Reader, SaveStatus};
use atlaskv::shard::mesh::mesh;
use atlaskv::shard::{Settings, Shard};
use atlaskv::slot::Slot;

use crate::cost::Cost;
use crate::wire::{Op, Protocol, Wire};
use crate::world::CostEnv;

/// Tablets of a store: two for each shard of the largest.
const TABLETS: u16 = 16;
/// Messages that a ring of the mesh holds, as in the server.
const RING_MESSAGES: usize = 256;
/// Requests of a pipeline while a store is filled.
const FILL: usize = 256;

/// Shards that serve.
pub struct Store {
    env: CostEnv,
    pub shards: Vec<Rc<Shard<CostEnv>>>,
    contexts: Vec<Rc<Context>>,
}

/// Who owns which slot, as the server tells its sessions.
struct Owners {
    slots: Rc<SlotTable>,
    local: usize,
}

impl Nodes for Owners {
    fn local(&self) -> usize {
        self.local
    }

    fn owner(&self, slot: Slot) -> usize {
        self.slots.shard(slot)
    }

    fn is_moving(&self, slot: Slot) -> bool {
        self.slots.held().is_some_and(|slots| slots.contains(slot))
    }

    fn count(&self) -> usize {
        self.slots.shards
    }

    fn ranges(&self) -> Vec<(u16, u16, usize)> {
        let ranges = self.slots.ranges().into_iter();
        ranges.map(|(first, last, shard)| (first, last, usize::from(shard))).collect()
    }

    fn epoch(&self) -> u64 {
        self.slots.epoch()
    }
}

struct Unstoppable;

impl Host for Unstoppable {
    fn wall_ms(&self) -> u64 {
        0
    }

    fn stop(&self) {
        panic!("nobody asks for that");
    }
}

fn options() -> EngineOptions {
    EngineOptions {
        memtable_bytes: 64 << 20,
        sealed_max: 1,
        cache_bytes: 64 << 20,
        row_bytes: 16 << 20,
        reads_max: 128,
        // All indexes and filters are resident.
        index_bytes: 64 << 20,
        compression: Compression::default(),
        segment_bytes: 16 << 20,
        window: 3,
        lazy: None,
        compaction_fan: 4,
        snapshot_life: Duration::from_secs(60),
        snapshot_bytes: 1 << 30,
        // Its reads would count as those of requests.
        scrub_bytes_per_s: 0,
        level_ratio: 4,
        last_table_bytes: 32 << 20,
        reserve_bytes: 0,
    }
}

impl Store {
    /// An empty one, which answers writes once they are durable.
    pub async fn open(env: &SimEnv, shards: usize) -> Store {
        let env = CostEnv::new(env);
        let found = recovery::load(&env, TABLETS).await.unwrap();
        let scans = recovery::scan(&env, &found.state, found.logs.into_iter().collect()).await.unwrap();
        let start = recovery::plan(found.state, scans, shards as u32).unwrap();
        recovery::install(&env, &start).await.unwrap();
        let mut store = Store { env: env.clone(), shards: Vec::new(), contexts: Vec::new() };
        for (id, port) in mesh(shards, RING_MESSAGES).into_iter().enumerate() {
            let metrics = Rc::new(Metrics::default());
            let engine = Engine::open(&env, options(), &start, id as u32, metrics.clone()).await.unwrap();
            let slots = Rc::new(SlotTable::new(&start.state));
            let limits = Limits::for_values(16 << 20).with_pipeline(64 << 10);
            let settings = Settings { is_durable: true, connection_bytes: 256 << 20 };
            let shard = Shard::new(id, &env, engine, slots, limits, settings, metrics, port);
            store.contexts.push(Rc::new(context(&shard)));
            spawn_loops(&env, &shard);
            store.shards.push(shard);
        }
        store
    }

    /// A new connection of a client to a shard.
    pub fn connect(&self, shard: usize, protocol: Protocol) -> Wire {
        Wire::new(&self.shards[shard], &self.contexts[shard], protocol)
    }

    /// The first keys of `shard`.
    pub fn keys(&self, shard: usize, count: usize) -> Vec<Vec<u8>> {
        let slots = &self.shards[0].slots;
        let keys = (0..).map(|n: u64| format!("key:{n:012}").into_bytes());
        keys.filter(|key| slots.shard(Slot::of_key(key)) == shard).take(count).collect()
    }

    /// Keys of one slot of `shard`.
    pub fn keys_of_slot(&self, shard: usize, count: usize) -> Vec<Vec<u8>> {
        let tag = self.keys(shard, 1).remove(0);
        (0..count).map(|n| [&b"{"[..], &tag, b"}", format!("{n:06}").as_bytes()].concat()).collect()
    }

    /// Writes `keys`, each with the value that it is given.
    pub async fn fill(&self, keys: &[Vec<u8>], value: impl Fn(usize) -> Vec<u8>) {
        let wire = self.connect(0, Protocol::Binary);
        for (number, turn) in keys.chunks(FILL).enumerate() {
            let values: Vec<Vec<u8>> = (0..turn.len()).map(|at| value(number * FILL + at)).collect();
            let ops = turn.iter().zip(&values).map(|(key, value)| Op::Set(key, value));
            wire.exchange(&wire.pipeline(ops)).await;
        }
    }

    /// Moves what was written into tables, one of each tablet.
    pub async fn flush(&self) {
        for shard in &self.shards {
            shard.engine.rotate();
            while shard.engine.metrics().memtable_entries > 0 {
                self.env.sleep(Duration::from_millis(1)).await;
            }
        }
    }

    /// Waits until nothing that requests have begun is under way.
    pub async fn rest(&self) {
        self.env.sleep(Duration::from_millis(20)).await;
    }

    /// What all shards have cost so far.
    pub fn cost(&self) -> Cost {
        let messages = self.shards.iter().map(|shard| shard.metrics.mesh_messages.get()).sum();
        Cost::so_far(self.env.asked(), messages)
    }
}

/// Reads that are answered at once, as the server has them.
struct Memory(Weak<Shard<CostEnv>>);

impl Reader for Memory {
    fn read(&self, keys: &[&[u8]], take: &mut dyn FnMut(Option<&[u8]>)) -> usize {
        self.0.upgrade().map_or(0, |shard| shard.read_at_once(keys, take))
    }
}

fn context(shard: &Rc<Shard<CostEnv>>) -> Context {
    Context::new(ContextParts {
        limits: shard.limits,
        nodes: Box::new(Owners { slots: shard.slots.clone(), local: shard.id }),
        cluster: None,
        metrics: shard.metrics.clone(),
        host: Box::new(Unstoppable),
        reader: Box::new(Memory(Rc::downgrade(shard))),
        saves: Arc::new(SaveStatus::new(0)),
        config: Vec::new(),
        port: 7379,
        run_id: "0".repeat(40),
        started_at_ms: 0,
        clients_max: 1000,
        seed: 1,
    })
}

fn spawn_loops(env: &CostEnv, shard: &Rc<Shard<CostEnv>>) {
    let served = shard.clone();
    env.spawn(Queue::Foreground, async move {
        served.serve_mesh(|_| unreachable!("only requests and replies")).await;
    });
    env.spawn(Queue::Foreground, shard.clone().release_loop());
    env.spawn(Queue::Foreground, shard.clone().room_loop());
}
