//! The engine as a whole, on the simulated disk: shards are opened as the server opens them, written to,
//! closed or crashed, and opened again by another number of shards. A model knows what must be there.
//!
//! Each test goes through a range of seeds. One that fails names its seed;
//! `ATLASKV_ENGINE_SEED=17 cargo test --lib engine::tests` repeats that one alone, and `1000..9000` in its
//! place looks further.

mod around;
mod behind;
mod checkpoint;
mod crash;
mod damage;
mod faults;
mod levels;
mod long;
mod missing;
mod model;
mod pace;
mod ranges;
mod restart;
mod rows;
mod scrub;
mod store;
mod transfer;
mod workload;

use std::ops::Range;

/// The seeds to go through: those asked for, or `usual`.
fn seeds(usual: Range<u64>) -> Range<u64> {
    let Ok(wanted) = std::env::var("ATLASKV_ENGINE_SEED") else { return usual };
    let number = |text: &str| text.parse().expect("ATLASKV_ENGINE_SEED is a number, or two with .. between");
    match wanted.split_once("..") {
        Some((first, end)) => number(first)..number(end),
        None => number(&wanted)..number(&wanted) + 1,
    }
}

/// Says how to repeat it when a test panics.
struct Told(String);

impl Told {
    fn seed(seed: u64) -> Told {
        Told(format!("to repeat: ATLASKV_ENGINE_SEED={seed} cargo test --lib engine::tests"))
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0);
        }
    }
}
