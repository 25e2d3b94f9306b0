//! Writes that wait for memory go on in the order in which they came, whoever sends most.

use std::time::Duration;

use super::store::{Connection, Store};
use crate::disk::sim::SimDisk;
use crate::env::Env;
use crate::env::sim::{SimEnv, SimWorld};
use crate::protocol::{Condition, Durability, Expiry, Request};

/// Connections that wait before the one that is looked at.
const BEFORE: usize = 20;

fn set<'a>(key: &'a [u8], value: &'a [u8]) -> Request<'a> {
    let (expiry, condition, durability) = (Expiry::Never, Condition::None, Durability::Default);
    Request::Set { key, value, expiry, condition, durability }
}

/// One more client, and its write, of a tablet that all share.
async fn write(store: &Store, number: usize) -> (Connection, u64) {
    let connection = store.connect(0);
    let id = connection.send(store, &set(format!("{{t}}{number}").as_bytes(), &[7; 20_000])).await;
    (connection, id)
}

#[test]
fn who_comes_later_gets_no_memory_first() {
    for seed in 0..10 {
        let world = SimWorld::new(seed);
        let env = SimEnv::new(&world, SimDisk::new(&world));
        world.run(async {
            let store = Store::open(&env, 1).await;
            let (mut flood, mut waiting) = (Vec::new(), 0);
            while waiting < BEFORE {
                flood.push(write(&store, flood.len()).await);
                waiting += usize::from(flood.last().is_some_and(|(last, _)| last.is_stalled_at(0)));
                assert!(flood.len() < 10_000, "seed {seed}: memory is used up some time");
            }
            let paced = store.connect(0);
            let id = paced.send(&store, &set(b"{t}paced", b"1")).await;
            assert!(paced.is_stalled_at(0), "seed {seed}: it waits behind the others");
            let mut later = Vec::new();
            while !paced.is_answered(id) {
                later.push(write(&store, later.len()).await);
                env.sleep(Duration::from_micros(20)).await;
                assert!(later.len() < 100_000, "seed {seed}: it starves");
            }
            let version = paced.answer(id).await.version();
            assert!(!later.is_empty(), "seed {seed}");
            for (connection, id) in later {
                assert!(connection.answer(id).await.version() > version, "seed {seed}: it came later");
            }
            for (connection, id) in flood {
                assert!(connection.answer(id).await.version() < version, "seed {seed}: it came before");
            }
            store.close().await;
        });
        world.kill();
    }
}
