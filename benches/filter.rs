//! What filters cost: nanoseconds to add a key to one, and to ask one for a key, where the CPU's caches hold it and
//! where they don't.
//!
//! `cargo bench --bench filter [-- ROUNDS]`; 200 rounds unless told otherwise. Filters are of 2,300 keys, as a partition
//! of an index has them; 4,000 of them, of 14 MB and more in all, are asked in random order. Hashes come from a fixed
//! seed. Times are CPU time of the thread.

#[allow(dead_code)] // other benchmarks use the rest
mod common;

use std::hint::black_box;

use atlaskv::engine::sstable::filter::{Line, build, may_contain};

use self::common::Table;

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keys of a filter.
const KEYS: usize = 2_300;
/// Questions of a round.
const COUNT: usize = 10_000;

fn main() {
    let arguments = common::arguments();
    let filters = if arguments.is_bench { 4_000 } else { 10 };
    let table = Table::begin(arguments.or(200, 2));
    let mut rng = fastrand::Rng::with_seed(1);
    let hashes: Vec<Vec<u64>> = (0..filters).map(|_| (0..KEYS).map(|_| rng.u64(..)).collect()).collect();
    // Of tables above the last level, and of those in it.
    for bits in [12, 16] {
        table.row(&format!("add a key, {bits} bits each"), KEYS, || {
            black_box(build(black_box(&hashes[0]), bits));
        });
        let all: Vec<Vec<Line>> = hashes.iter().map(|hashes| build(hashes, bits)).collect();
        let absent: Vec<u64> = (0..COUNT).map(|_| rng.u64(..)).collect();
        let present: Vec<u64> = (0..COUNT).map(|at| hashes[0][at % KEYS]).collect();
        ask(&table, &format!("ask for one that is there, {bits} bits"), &present, |_| &all[0]);
        ask(&table, &format!("ask for one that is not, {bits} bits"), &absent, |_| &all[0]);
        let order: Vec<usize> = (0..COUNT).map(|_| rng.usize(..filters)).collect();
        ask(&table, &format!("the same of {filters} filters, {bits} bits"), &absent, |at| &all[order[at]]);
    }
}

/// Asks for each hash the filter of its turn.
fn ask<'a>(table: &Table, name: &str, hashes: &[u64], filter: impl Fn(usize) -> &'a [Line]) {
    let mut found = 0;
    table.row(name, hashes.len(), || {
        let contains = |(at, hash): (usize, &u64)| may_contain(filter(at), *hash);
        found = hashes.iter().enumerate().filter(|asked| black_box(contains(*asked))).count();
    });
    println!("    {:.2} % found", found as f64 * 100.0 / hashes.len() as f64);
}
