//! The model test: random requests of every kind to shards in a simulated world, and every answer compared with
//! what a plain map says.
//!
//! Everything that the server runs above its sockets is real: requests as bytes, routing, the mesh, commits,
//! memtables, tables, compaction, moves and splits of tablets, checkpoints, recovery. Disk, clock and the order of
//! tasks are simulated and follow from the seed, so a failure comes back with it.
//!
//! - [`reference`] says what each request does and is answered; [`workload`] and [`keys`] make requests.
//! - [`pipeline`] sends some at once and compares answers, with what each key may be then ([`fates`]); [`scans`] does so for pages; [`verify`] compares whole
//!   stores: after each start, and copies that checkpoints made.
//! - [`run`] is the story of one store: memtables are sealed, time passes, tablets move and split, the store is
//!   stopped or loses its power, and opens with another number of shards and in another shape ([`shape`]).
//!
//! ```text
//! cargo test --test model                                                 a short one
//! ATLASKV_MODEL_OPS=10000000 cargo test --release --test model -- --nocapture   a long one
//! ATLASKV_MODEL_SEED=17 cargo test --release --test model                 one that failed
//! cargo test --features planted --test model planted -- --nocapture       deliberate bugs, one after the other
//! ```
//!
//! With `ATLASKV_MODEL_OPS`, `ATLASKV_MODEL_SEED` is the first of the seeds.

mod fates;
mod keys;
mod pipeline;
#[cfg(feature = "planted")]
mod planted;
mod reference;
mod report;
mod run;
mod scans;
mod shape;
mod store;
mod verify;
mod workload;

use std::time::{Duration, Instant};

use crate::report::Met;
use crate::run::Run;

/// Requests of a short test.
const SHORT_OPS: u64 = 30_000;

fn from_env(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

/// Requests of the run with this seed: most are short, so that many stores are seen young; some are old.
fn ops_of(seed: u64) -> u64 {
    [100_000, 20_000, 20_000, 5_000][seed as usize % 4]
}

/// Tells how to repeat what failed.
struct Told(u64);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("to repeat: ATLASKV_MODEL_SEED={} cargo test --release --test model", self.0);
        }
    }
}

#[test]
fn every_answer_is_what_the_reference_says() {
    let (seed, ops) = (from_env("ATLASKV_MODEL_SEED"), from_env("ATLASKV_MODEL_OPS"));
    let wanted = ops.unwrap_or(if seed.is_some() { 1 } else { SHORT_OPS });
    let (mut seed, mut all) = (seed.unwrap_or(1), Met::default());
    let (begun, mut told) = (Instant::now(), Instant::now());
    while all.ops < wanted {
        let repeat = Told(seed);
        all.add(&Run::new(seed).run(ops_of(seed)));
        drop(repeat);
        seed += 1;
        if told.elapsed() > Duration::from_secs(20) || all.ops >= wanted {
            told = Instant::now();
            let rate = all.ops as f64 / begun.elapsed().as_secs_f64();
            println!("seeds up to {}: {all:?}, {rate:.0} requests a second", seed - 1);
        }
    }
    if wanted >= SHORT_OPS {
        all.check();
    }
}
