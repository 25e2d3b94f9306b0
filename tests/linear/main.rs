//! Whether the store is linearizable, key by key: clients of the real server record what they ask and are
//! answered, and when, while it is killed with SIGKILL and started again with another number of cores every few
//! hundred milliseconds, and tablets move and split. Then a checker decides on all of it at once.
//!
//! [`chain`] is the checker and says what is promised; it is tested against a general one in [`agree`]. What is
//! recorded is in [`record`] and [`campaign`]; [`history`] has the text that a history is written in.
//!
//! The seed decides what is asked and when to kill; when what is answered, the machine decides as well. So a
//! failure comes back with its seed sometimes. But its history is written to a file, for the keys concerned,
//! and that is judged again by itself.
//!
//! ```text
//! cargo test --test linear                                    a few seconds
//! ATLASKV_LINEAR_SECONDS=600 cargo test --release --test linear killed -- --nocapture
//! ATLASKV_LINEAR_OPS=5000000 cargo test --release --test linear killed -- --nocapture
//! ATLASKV_LINEAR_SEED=17 cargo test --test linear             one that failed
//! ATLASKV_LINEAR_FILE=/var/tmp/atlaskv-linear-17-99.txt \
//!     cargo test --test linear a_recorded_history -- --nocapture
//! ATLASKV_LINEAR_HISTORIES=20000 cargo test --release --test linear alike -- --nocapture
//! cargo test --features planted --test linear planted -- --nocapture    that deliberate bugs are found
//! ```
//!
//! A campaign keeps all operations in memory, about 100 bytes each.

mod agree;
mod campaign;
mod chain;
mod generate;
#[allow(dead_code)] // the tests of the server use the rest
#[path = "../server/harness.rs"]
mod harness;
mod history;
#[cfg(feature = "planted")]
mod planted;
mod record;
mod reference;
mod zones;

use std::str::FromStr;
use std::time::Duration;

use crate::campaign::Extent;
use crate::history::History;

fn from_env<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

/// The seed of a random test: a new one, or that of `ATLASKV_LINEAR_SEED`. Printed with how to repeat it.
fn seed(test: &str) -> u64 {
    let seed = from_env("ATLASKV_LINEAR_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("to repeat: ATLASKV_LINEAR_SEED={seed} cargo test --test linear {test}");
    seed
}

#[test]
fn a_server_that_is_killed_again_and_again_is_linearizable() {
    let seed = seed("a_server_that_is_killed_again_and_again_is_linearizable");
    let seconds = from_env("ATLASKV_LINEAR_SECONDS");
    let ops = from_env("ATLASKV_LINEAR_OPS").unwrap_or(0);
    let time = Duration::from_secs(seconds.unwrap_or(if ops > 0 { 0 } else { 3 }));
    campaign::run(seed, Extent { time, ops, kills: 4 });
}

/// Judges the history in the file that `ATLASKV_LINEAR_FILE` names, if it does.
#[test]
fn a_recorded_history_is_linearizable() {
    let Ok(path) = std::env::var("ATLASKV_LINEAR_FILE") else { return };
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let history = History::parse(&text).unwrap_or_else(|error| panic!("{path}: {error}"));
    println!("{path}: {} keys, {} operations", history.keys.len(), history.len());
    let keys = history.keys.iter().map(|(key, ops)| (key, ops));
    campaign::unless_wrong(campaign::judge(&history.starts, keys, 0));
}
