//! What tables cost, by codec: nanoseconds an entry to write one and to take up its blocks, nanoseconds a
//! search in a block, and what compression saves.
//!
//! `cargo bench --bench block [-- ENTRIES]`; 200,000 entries unless told otherwise. Keys and values come from a
//! fixed seed: keys `user:` and a number, values of 100 bytes, of which 40 can't be compressed. Times are CPU
//! time of the thread. Writing goes to the simulated disk, so it includes a copy or two of the whole, and
//! nothing of a device.

#[allow(dead_code)] // other benchmarks use the rest
mod common;

use std::hint::black_box;
use std::time::Duration;

use atlaskv::base::{Codec, Entry, FileId, Lsn, OpKind, TableName, TabletId};
use atlaskv::disk::Disk;
use atlaskv::engine::sstable::{Block, TableBuilder, TableMeta, TableOptions, inspect_table};
use atlaskv::env::Env;
use atlaskv::env::sim::SimEnv;
use atlaskv::slot::SlotRange;
use xxhash_rust::xxh3::xxh3_64;

use self::common::cpu_time;

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const FILE: FileId = FileId(1);
const TABLET: TabletId = TabletId(1);

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

fn main() {
    let pairs = pairs(common::arguments().or(200_000, 5_000));
    println!("{} entries; ns an entry, and a search", pairs.len());
    println!("codec   write  parse  present  absent   records a block  payload B  ratio");
    for codec in Codec::ALL {
        run(codec, &pairs);
    }
}

fn pairs(count: usize) -> Pairs {
    let mut rng = fastrand::Rng::with_seed(1);
    let mut value = || (0..100).map(|at| if at < 40 { rng.u8(..) } else { b'v' }).collect();
    (0..count).map(|n| (format!("user:{n:011}").into_bytes(), value())).collect()
}

fn run(codec: Codec, pairs: &Pairs) {
    let (world, env) = SimEnv::fresh(1);
    let (write, meta) = world.run(write(&env, codec, pairs));
    let path = TableName::new(TABLET, FILE).path();
    let bytes = env.disk().peek(&path).unwrap_or_default();
    let report = inspect_table(&path, &bytes).unwrap_or_else(|error| panic!("{error}"));
    let stored: Vec<(u64, &[u8])> = report
        .blocks
        .iter()
        .map(|(offset, len, _)| (*offset, &bytes[*offset as usize..*offset as usize + len]))
        .collect();
    let parse = |(offset, stored): &(u64, &[u8])| {
        Block::parse(FILE, *offset, *stored).unwrap_or_else(|(_, found)| panic!("{found}"))
    };
    let mut blocks = Vec::new();
    let (parsed, ()) = timed(|| blocks = stored.iter().map(parse).collect());
    let (present, absent) = search(&blocks);
    let entries = pairs.len() as f64;
    println!(
        "{:<5} {:>7.0} {:>6.0} {present:>8.1} {absent:>7.1} {:>17.1} {:>10.0} {:>6.2}",
        codec.name(),
        nanos(write) / entries,
        nanos(parsed) / entries,
        entries / blocks.len() as f64,
        meta.shape.raw_bytes as f64 / meta.shape.blocks as f64,
        meta.shape.raw_bytes as f64 / meta.shape.stored_bytes as f64,
    );
}

async fn write(env: &SimEnv, codec: Codec, pairs: &Pairs) -> (Duration, TableMeta) {
    let failed = |error: atlaskv::engine::sstable::TableError| panic!("{error}");
    env.disk().create_dir("sst").await.unwrap_or_else(|error| panic!("{error}"));
    let started = cpu_time();
    let options = TableOptions::last(codec);
    let mut builder = TableBuilder::create(env, FILE, TABLET, SlotRange::ALL, options)
        .await
        .unwrap_or_else(|error| panic!("{error}"));
    for (key, value) in pairs {
        let entry = Entry { lsn: Lsn(1), kind: OpKind::Put, expiry_ms: 0, value };
        builder.add(key, xxh3_64(key), &entry).await.unwrap_or_else(failed);
    }
    let meta = builder.finish().await.unwrap_or_else(|error| panic!("{error}"));
    (cpu_time() - started, meta)
}

/// Nanoseconds of a search for a key that is there, and for one that is not, in blocks that the CPU's caches
/// hold: a few of them, searched again and again.
fn search(blocks: &[Block]) -> (f64, f64) {
    const ROUNDS: usize = 200;
    let some = &blocks[..blocks.len().min(8)];
    let keys = |suffix: &[u8]| -> Vec<Vec<(u64, Vec<u8>)>> {
        let key = |key: &[u8]| [key, suffix].concat();
        some.iter()
            .map(|block| {
                let keys = (0..block.len()).map(|record| key(block.entry(record).0));
                keys.map(|key| (xxh3_64(&key), key)).collect()
            })
            .collect()
    };
    let measure = |keys: &[Vec<(u64, Vec<u8>)>], is_present: bool| {
        let (taken, found) = timed(|| {
            let mut found = 0;
            for _ in 0..ROUNDS {
                for (block, keys) in some.iter().zip(keys) {
                    for (hash, key) in keys {
                        found += usize::from(black_box(block.get(*hash, key)).is_some());
                    }
                }
            }
            found
        });
        let count = ROUNDS * keys.iter().map(Vec::len).sum::<usize>();
        assert_eq!(found, if is_present { count } else { 0 });
        nanos(taken) / count as f64
    };
    (measure(&keys(b""), true), measure(&keys(b"-"), false))
}

fn timed<R>(work: impl FnOnce() -> R) -> (Duration, R) {
    let started = cpu_time();
    let result = work();
    (cpu_time() - started, result)
}

fn nanos(time: Duration) -> f64 {
    time.as_nanos() as f64
}
