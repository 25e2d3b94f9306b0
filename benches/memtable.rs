//! What a memtable costs: nanoseconds an operation, bytes an entry, and the worst stall of each.
//!
//! `cargo bench --bench memtable [-- ENTRIES…]`; 1 and 4 million entries unless told otherwise. Keys and
//! order come from a fixed seed. Times are CPU time of the thread, so that other work on the machine costs
//! only cache and memory bandwidth: run it more than once all the same.

#[allow(dead_code)] // other benchmarks use the rest
mod common;

use std::fs;
use std::hint::black_box;
use std::time::Duration;

use atlaskv::base::{Lsn, OpKind};
use atlaskv::engine::memtable::{Memtable, PREFETCH_MAX};
use xxhash_rust::xxh3::xxh3_64;

use self::common::cpu_time;

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SEED: u64 = 1;
const TABLETS: usize = 8;
const VALUE: [u8; 100] = [7; 100];
/// Writes of one turn; a stall is the worst time of these.
const TURN: usize = 16;

struct Key {
    bytes: Vec<u8>,
    hash: u64,
}

fn main() {
    let common::Arguments { is_bench, numbers: mut sizes } = common::arguments();
    if sizes.is_empty() {
        sizes = if is_bench { vec![1_000_000, 4_000_000] } else { vec![10_000] };
    }
    for entries in sizes {
        run("16 random bytes", entries, |rng, _| rng.u128(..).to_be_bytes().to_vec());
        let long = |_: &mut fastrand::Rng, n: usize| {
            format!("tenant:production:session:{:012}", n * 2_654_435_761 % 1_000_000_007).into_bytes()
        };
        run("a common prefix of 26 bytes", entries, long);
        run("user:N", entries, |_, n| format!("user:{:012}", n * 2_654_435_761 % 1_000_000_007).into_bytes());
    }
}

fn run(name: &str, entries: usize, mut key: impl FnMut(&mut fastrand::Rng, usize) -> Vec<u8>) {
    let mut rng = fastrand::Rng::with_seed(SEED);
    let mut keys: Vec<Key> = (0..entries)
        .map(|n| {
            let bytes = key(&mut rng, n);
            Key { hash: xxh3_64(&bytes), bytes }
        })
        .collect();
    println!("\n{entries} entries, {name}, 100-byte values, {TABLETS} tablets (seed {SEED})");
    let resident = resident_bytes();
    let mut memtable = Memtable::new(TABLETS);
    let mut lsn = 0;
    report("insert", entries, steps(keys.chunks(TURN), |turn| put(&mut memtable, turn, &mut lsn, Lsn::ZERO)));
    let payload: usize = keys.iter().map(|key| key.bytes.len() + VALUE.len()).sum();
    let overhead = (memtable.bytes() - payload) / entries;
    let held = resident_bytes().saturating_sub(resident) as f64 / memtable.bytes() as f64;
    println!("  {:24} {overhead:6} B an entry beyond key and value; resident {held:.2} of bytes()", "memory");
    rng.shuffle(&mut keys);
    lookups(&memtable, &keys);
    report(
        "bytes()",
        entries,
        steps(keys.chunks(TURN), |turn| {
            turn.iter().for_each(|_| {
                black_box(black_box(&memtable).bytes());
            });
        }),
    );
    let overwritten = &keys[..entries / 10];
    report(
        "overwrite a tenth",
        overwritten.len(),
        steps(overwritten.chunks(TURN), |turn| put(&mut memtable, turn, &mut lsn, Lsn(u64::MAX))),
    );
    report("get, a tenth overwritten", entries, steps(keys.chunks(TURN), |turn| get(&memtable, turn)));
    report(
        "overwrite a tenth in place",
        overwritten.len(),
        steps(overwritten.chunks(TURN), |turn| put(&mut memtable, turn, &mut lsn, Lsn::ZERO)),
    );
    order(&memtable, entries);
    report("drop, in steps", entries, steps(std::iter::repeat_n((), usize::MAX), |()| memtable.drop_step()));
    report("drop, the rest", entries, steps([memtable], drop));
}

fn put(memtable: &mut Memtable, turn: &[Key], lsn: &mut u64, kept: Lsn) {
    for key in turn {
        *lsn += 1;
        let tablet = key.hash as usize % TABLETS;
        memtable.insert(tablet, key.hash, &key.bytes, Lsn(*lsn), OpKind::Put, 0, &VALUE, kept);
    }
}

fn get(memtable: &Memtable, turn: &[Key]) {
    for key in turn {
        let entry = memtable.get(key.hash, &key.bytes).expect("every key is in");
        black_box(entry.value[0]);
    }
}

fn lookups(memtable: &Memtable, keys: &[Key]) {
    report("get", keys.len(), steps(keys.chunks(TURN), |turn| get(memtable, turn)));
    let absent: Vec<u64> = keys.iter().map(|key| xxh3_64(&key.hash.to_le_bytes())).collect();
    let miss = |turn: &[u64]| {
        turn.iter().for_each(|hash| assert!(memtable.get(*hash, b"absent").is_none(), "no such key"));
    };
    report("get, absent", keys.len(), steps(absent.chunks(TURN), miss));
    let batched = |turn: &[Key]| {
        let mut hashes = [0; PREFETCH_MAX];
        hashes.iter_mut().zip(turn).for_each(|(hash, key)| *hash = key.hash);
        memtable.prefetch(&hashes[..turn.len()]);
        get(memtable, turn);
    };
    report("get, 32 prefetched", keys.len(), steps(keys.chunks(PREFETCH_MAX), batched));
}

fn order(memtable: &Memtable, entries: usize) {
    let sort = steps(std::iter::repeat_n((), usize::MAX), |()| memtable.sort_step());
    report("sort_step", entries, sort);
    let start = cpu_time();
    let mut worst = Duration::ZERO;
    let mut count = 0;
    for tablet in 0..TABLETS {
        let opened = cpu_time();
        let iter = memtable.iter(tablet, b"");
        worst = worst.max(cpu_time() - opened);
        for (_, entry) in iter {
            black_box(entry.value[0]);
            count += 1;
        }
    }
    assert_eq!(count, entries, "iteration gives every key once");
    report("iterate (stall: iter())", entries, (cpu_time() - start, worst));
}

/// Whether a step was not the last one.
trait More {
    fn more(self) -> bool;
}

impl More for () {
    fn more(self) -> bool {
        true
    }
}

impl More for bool {
    fn more(self) -> bool {
        self
    }
}

/// Time of all steps, and of the slowest.
fn steps<T, R: More>(
    items: impl IntoIterator<Item = T>,
    mut step: impl FnMut(T) -> R,
) -> (Duration, Duration) {
    let (mut total, mut worst) = (Duration::ZERO, Duration::ZERO);
    let clock = (0..100).map(|_| cpu_time().abs_diff(cpu_time())).min().unwrap_or_default();
    for item in items {
        let start = cpu_time();
        let more = step(item).more();
        let took = (cpu_time() - start).saturating_sub(clock);
        total += took;
        worst = worst.max(took);
        if !more {
            break;
        }
    }
    (total, worst)
}

fn report(name: &str, operations: usize, (total, worst): (Duration, Duration)) {
    let each = total.as_nanos() as f64 / operations.max(1) as f64;
    println!("  {name:24} {each:6.0} ns each   worst stall {:6} us", worst.as_micros());
}

/// Resident bytes of this process, 0 where there is no such file.
fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}
