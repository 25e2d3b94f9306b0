//! Kinds of requests, and what it takes to measure them.

use std::fmt::{self, Display, Formatter};

use atlaskv::env::sim::SimEnv;
use atlaskv::slot::Slot;

use crate::cost::Measured;
use crate::sites;
use crate::store::Store;
use crate::wire::{Op, Pipeline, Protocol, Wire};

/// Requests that are read at once; of those of several keys it is one, of so many.
pub const TURN: usize = 16;
/// Turns that are measured, of small values. Each has keys of its own.
const TURNS: usize = 64;
/// The same of reads from disk.
const COLD_TURNS: usize = 16;
/// The same of large values.
const LARGE_TURNS: usize = 16;
/// A value of most kinds.
const VALUE: [u8; 100] = [b'v'; 100];
/// Of those in tables: four of them fill a block.
const TABLE_VALUE_BYTES: usize = 1000;
/// So far apart two keys of a table are in different blocks.
const APART: usize = 8;
/// A value that is copied in slices, and whose frame is handed on as it was read.
pub const LARGE_BYTES: usize = 1 << 20;

/// Requests of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// GET of what is in the memtable.
    GetMemtable,
    /// GET of what is in a table, whose block is not in the cache.
    GetCold,
    /// GET of what is in a table, whose block is in the cache.
    GetCached,
    /// GET of a key that is nowhere, in a tablet that has a table.
    GetAbsent,
    /// SET of a key that is in the memtable.
    Set,
    /// INCR.
    Incr,
    /// MGET of what is in the memtable.
    Mget,
    /// BATCH or MSET of keys of one slot.
    Batch,
    /// GET of a large value in the memtable, one a turn.
    GetLarge,
    /// SET of a large value, one a turn.
    SetLarge,
}

impl Kind {
    /// All of them, in the order in which they are measured.
    pub const ALL: [Kind; 10] = [
        Kind::GetCold,
        Kind::GetCached,
        Kind::GetAbsent,
        Kind::GetMemtable,
        Kind::Set,
        Kind::Incr,
        Kind::Mget,
        Kind::Batch,
        Kind::GetLarge,
        Kind::SetLarge,
    ];
}

/// Where requests come in, and whose keys they are about.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    pub protocol: Protocol,
    pub shards: usize,
    /// Connections are to shard 0.
    pub owner: usize,
}

impl Display for Way {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Way { protocol, shards, owner } = self;
        write!(f, "{protocol:?} {} of {shards}", if *owner == 0 { "own" } else { "other" })
    }
}

/// Whether it is asked where this allocates.
fn is_traced(name: &str) -> bool {
    std::env::var("ATLASKV_COSTS_WHERE").is_ok_and(|text| name.contains(&text))
}

/// Keys by what they are for, all of one shard.
struct Keyed {
    fresh: Vec<Vec<u8>>,
    counters: Vec<Vec<u8>>,
    absent: Vec<Vec<u8>>,
    large: Vec<Vec<u8>>,
    /// In tables, in different blocks: for the turns before, and for those that are measured.
    cold: [Vec<Vec<u8>>; 2],
    of_slot: Vec<Vec<u8>>,
}

impl Keyed {
    /// Writes what they need.
    async fn prepare(store: &Store, owner: usize) -> Keyed {
        const COLD: usize = 2 * COLD_TURNS * TURN;
        let mut keys = store.keys(owner, 2 * TURNS * TURN + TURN + 1 + COLD * APART);
        let mut take = |count: usize| keys.drain(..count).collect::<Vec<_>>();
        let (fresh, absent) = (take(TURNS * TURN), take(TURNS * TURN));
        let (counters, large, mut in_tables) = (take(TURN), take(1), take(COLD * APART));
        let slots = &store.shards[owner].slots;
        in_tables.sort_by_cached_key(|key| (slots.local(Slot::of_key(key)), key.clone()));
        let mut rng = fastrand::Rng::with_seed(1);
        // Not to be compressed, so that it is known how many a block holds.
        let value = (0..TABLE_VALUE_BYTES).map(|_| rng.u8(..)).collect::<Vec<u8>>();
        store.fill(&in_tables, |at| [&at.to_be_bytes()[..], &value[8..]].concat()).await;
        store.flush().await;
        let of_slot = store.keys_of_slot(owner, TURN);
        store.fill(&fresh, |_| VALUE.to_vec()).await;
        store.fill(&of_slot, |_| VALUE.to_vec()).await;
        store.fill(&counters, |_| b"1000000000".to_vec()).await;
        store.fill(&large, |_| vec![b'v'; LARGE_BYTES]).await;
        let mut cold = in_tables.into_iter().step_by(APART);
        let cold = [cold.by_ref().take(COLD / 2).collect(), cold.collect()];
        Keyed { fresh, counters, absent, large, cold, of_slot }
    }
}

/// Turns of requests for one key each.
fn each<'a>(wire: &Wire, keys: &'a [Vec<u8>], op: impl Fn(&'a [u8]) -> Op<'a>) -> Vec<Pipeline> {
    keys.chunks(TURN).map(|turn| wire.pipeline(turn.iter().map(|key| op(key)))).collect()
}

/// What goes before, so that buffers have grown, and what is measured.
fn turns_of(kind: Kind, wire: &Wire, keys: &Keyed) -> [Vec<Pipeline>; 2] {
    let large = vec![b'w'; LARGE_BYTES];
    let turns = || match kind {
        Kind::GetCold => unreachable!("each is read once"),
        Kind::GetCached => each(wire, &keys.cold[1], Op::Get),
        Kind::GetAbsent => each(wire, &keys.absent, Op::Get),
        Kind::GetMemtable => each(wire, &keys.fresh, Op::Get),
        Kind::Set => each(wire, &keys.fresh, |key| Op::Set(key, &VALUE)),
        Kind::Incr => (0..TURNS).flat_map(|_| each(wire, &keys.counters, Op::Incr)).collect(),
        Kind::Mget => keys.fresh.chunks(TURN).map(|turn| wire.pipeline([Op::Mget(turn)])).collect(),
        Kind::Batch => (0..TURNS).map(|_| wire.pipeline([Op::Batch(&keys.of_slot, &VALUE)])).collect(),
        Kind::GetLarge => (0..LARGE_TURNS).flat_map(|_| each(wire, &keys.large, Op::Get)).collect(),
        Kind::SetLarge => {
            (0..LARGE_TURNS).flat_map(|_| each(wire, &keys.large, |key| Op::Set(key, &large))).collect()
        }
    };
    match kind {
        Kind::GetCold => [0, 1].map(|part| each(wire, &keys.cold[part], Op::Get)),
        _ => [turns(), turns()],
    }
}

/// Takes all `turns`, and measures them. Nothing else goes on meanwhile.
async fn take(store: &Store, wire: &Wire, name: String, turns: &[Pipeline]) -> Measured {
    store.rest().await;
    sites::note(is_traced(&name));
    let start = store.cost();
    for turn in turns {
        wire.exchange(turn).await;
    }
    store.rest().await;
    let cost = store.cost() - start;
    sites::note(false);
    for (count, site) in sites::take() {
        println!("{name}: {:6.2} allocations a turn at {site}", count as f64 / turns.len() as f64);
    }
    Measured { name, turns: turns.len() as u64, cost }
}

/// Measures all kinds of requests that go one way.
pub async fn measure(env: &SimEnv, way: Way) -> Vec<(Kind, Measured)> {
    let store = Store::open(env, way.shards).await;
    let keys = Keyed::prepare(&store, way.owner).await;
    let wire = store.connect(0, way.protocol);
    let mut all = Vec::new();
    for kind in Kind::ALL {
        let [before, turns] = turns_of(kind, &wire, &keys);
        for turn in &before {
            wire.exchange(turn).await;
        }
        all.push((kind, take(&store, &wire, format!("{kind:?} {way}"), &turns).await));
    }
    all
}

/// Measures reads from the memtable of keys of all shards.
pub async fn measure_spread(env: &SimEnv, shards: usize) -> Vec<Measured> {
    let store = Store::open(env, shards).await;
    let keys: Vec<Vec<u8>> = (0..TURNS * TURN).map(|n| format!("key:{n:012}").into_bytes()).collect();
    store.fill(&keys, |_| VALUE.to_vec()).await;
    let wire = store.connect(0, Protocol::Binary);
    let gets = each(&wire, &keys, Op::Get);
    let mgets: Vec<_> = keys.chunks(TURN).map(|turn| wire.pipeline([Op::Mget(turn)])).collect();
    let gets = take(&store, &wire, format!("GetMemtable of all {shards}"), &gets).await;
    vec![gets, take(&store, &wire, format!("Mget of all {shards}"), &mgets).await]
}
