//! What others wrote for Redis, against AtlasKV.
//!
//! - [`differential`]: random commands to AtlasKV and to a real redis-server, replies compared byte for byte;
//!   where they differ on purpose is listed in [`differences`].
//! - [`clients`]: clients of several languages and the tools of Redis, unmodified.
//!
//! ```text
//! cargo test --test redis                                       all of it, short
//! ATLASKV_REDIS_COMMANDS=5000000 cargo test --release --test redis random_commands -- --nocapture
//! ATLASKV_REDIS_SEED=17 cargo test --test redis random_commands        one that failed
//! ATLASKV_REDIS_SEED=17 ATLASKV_REDIS_ROUND=4 cargo test --test redis random_commands        its round
//! ATLASKV_REDIS_FINDINGS=100 …                                  that many different differences, not ten
//! ATLASKV_REDIS_SUBJECT=redis-server …                          Redis for AtlasKV: there is no difference
//! ATLASKV_REDIS_SUBJECT=127.0.0.1:7379 ATLASKV_REDIS_CLUSTER=127.0.0.1:7380 …     servers that run already
//! ATLASKV_REDIS_SOAK_SECONDS=3600 cargo test --release --test redis mixed_crowd -- --nocapture
//! ```
//!
//! What the tests need beside a Rust toolchain is installed by `tests/run`.

mod clients;
mod differences;
mod differential;
#[allow(dead_code)] // the tests of the server use the rest
#[path = "../server/harness.rs"]
mod harness;
mod servers;
mod wire;

use std::str::FromStr;

fn from_env<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

/// The seed of a random test: a new one, or that of `ATLASKV_REDIS_SEED`. Printed with how to repeat it.
fn seed(test: &str) -> u64 {
    let seed = from_env("ATLASKV_REDIS_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!("to repeat: ATLASKV_REDIS_SEED={seed} cargo test --test redis {test}");
    seed
}
