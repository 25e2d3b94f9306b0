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
//! ATLASKV_STORM_CRASHES=1000000 cargo test --release --test model storms -- --nocapture   stores in trouble ([`storm`])
//! ATLASKV_STORM_SEED=17 cargo test --release --test model storms           one that failed
//! ATLASKV_STORM_SEED=17 ATLASKV_STORM_MINIMISE=5 cargo test --release --test model storms -- --nocapture   the same, made
//!     as short as it can be within five minutes ([`minimise`]), told in whole, with a plan ([`plan`]) of what is left
//! ATLASKV_STORM_SEED=17 ATLASKV_STORM_PLAN=2:4,9.0@9+14 cargo test --release --test model storms -- --nocapture   that
//! cargo test --features planted --test model planted -- --nocapture       deliberate bugs, one after the other
//! ```
//!
//! With `ATLASKV_MODEL_OPS`, `ATLASKV_MODEL_SEED` is the first of the seeds. Storms have other seeds each time, and
//! say which; `ATLASKV_STORM_SEED` is the only one, or with `ATLASKV_STORM_CRASHES` the first.

mod damage;
mod fates;
mod keys;
mod minimise;
mod pipeline;
mod plan;
#[cfg(feature = "planted")]
mod planted;
mod reference;
mod report;
mod run;
mod scans;
mod script;
mod shape;
mod store;
mod storm;
mod verify;
mod workload;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::plan::Plan;
use crate::report::{Met, Telling};
use crate::run::Run;

/// The server's: a simulated store lives on small allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Power cuts of a storm.
const CRASHES_OF_STORM: u64 = 6;
/// Storms of a short test, each the beginning of one: that many stores are seen counts for more than how old they
/// become.
const SHORT_STORMS: u64 = 2_000;
const CRASHES_OF_SHORT_STORM: [u64; 2] = [1, 2];

/// What names a plan of the storm with the seed that is named.
const STORM_PLAN: &str = "ATLASKV_STORM_PLAN";

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
struct Told(&'static str, u64, Option<Plan>);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Told(name, seed, plan) = self;
            let plan = plan.as_ref().map_or(String::new(), |plan| format!(" {STORM_PLAN}={plan}"));
            let storms = if plan.is_empty() { "" } else { " storms -- --nocapture" };
            eprintln!("to repeat: {name}={seed}{plan} cargo test --release --test model{storms}");
        }
    }
}

/// The storm of a seed, as the environment wants it.
fn one_storm(seed: u64) {
    let mut plan = std::env::var(STORM_PLAN)
        .ok()
        .map(|text| text.parse::<Plan>().unwrap_or_else(|why| panic!("{STORM_PLAN}={text}: {why}")));
    let mut is_failing = false;
    if let Some(minutes) = from_env("ATLASKV_STORM_MINIMISE") {
        let longest = Duration::from_secs(60 * minutes);
        let Some(shortest) = minimise::minimise(seed, CRASHES_OF_STORM, plan, longest) else {
            return println!("storm {seed} does not fail");
        };
        plan = Some(shortest);
        is_failing = true;
    }
    let repeat = Told("ATLASKV_STORM_SEED", seed, plan.clone());
    let mut run = Run::in_storm(seed);
    if let Some(plan) = plan {
        run = run.by_plan(plan);
        run.log.telling = Telling::Whole;
    }
    println!("{:?}", run.storm(CRASHES_OF_STORM));
    assert!(!is_failing, "it failed before, and not by the plan that was noted");
    drop(repeat);
}

#[test]
fn every_answer_is_what_the_reference_says() {
    let (seed, ops) = (from_env("ATLASKV_MODEL_SEED"), from_env("ATLASKV_MODEL_OPS"));
    let wanted = ops.unwrap_or(if seed.is_some() { 1 } else { SHORT_OPS });
    let (mut seed, mut all) = (seed.unwrap_or(1), Met::default());
    let (begun, mut told) = (Instant::now(), Instant::now());
    while all.ops < wanted {
        let repeat = Told("ATLASKV_MODEL_SEED", seed, None);
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

#[test]
fn storms_lose_nothing_that_was_answered_or_shown() {
    let (first, wanted) = (from_env("ATLASKV_STORM_SEED"), from_env("ATLASKV_STORM_CRASHES"));
    if let (Some(seed), None) = (first, wanted) {
        return one_storm(seed);
    }
    let first = first.unwrap_or_else(|| fastrand::u64(..1 << 40));
    assert!(
        std::env::var_os(STORM_PLAN).is_none(),
        "{STORM_PLAN} is of one storm: ATLASKV_STORM_SEED says which"
    );
    println!("storms from seed {first} on");
    let (next, sum, begun) = (AtomicU64::new(first), Mutex::new(Met::default()), Instant::now());
    let work = || {
        let mut told = Instant::now();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let repeat = Told("ATLASKV_STORM_SEED", seed, None);
            let shorter = CRASHES_OF_SHORT_STORM[seed as usize % CRASHES_OF_SHORT_STORM.len()];
            let met = Run::in_storm(seed).storm(if wanted.is_some() { CRASHES_OF_STORM } else { shorter });
            drop(repeat);
            let mut sum = sum.lock().expect("no other storm failed");
            sum.add_storm(&met);
            let is_over = match wanted {
                Some(crashes) => sum.crashes >= crashes,
                None => seed - first + 1 >= SHORT_STORMS,
            };
            if told.elapsed() > Duration::from_secs(20) || is_over {
                told = Instant::now();
                let rate = sum.crashes as f64 / begun.elapsed().as_secs_f64() * 60.0;
                println!("{} storms: {sum:?}, {rate:.0} power cuts a minute", seed - first + 1);
            }
            if is_over {
                return;
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
}
