//! What many reads touch is fetched for all at once: they find what each would find alone, and count as that.

use std::collections::BTreeMap;

use super::store::{Answer, Store};
use crate::disk::sim::SimDisk;
use crate::env::sim::{SimEnv, SimWorld};
use crate::protocol::{Condition, Durability, Expiry, Request};

const KEYS: usize = 150;

fn key(at: usize) -> Vec<u8> {
    format!("fetched {at}").into_bytes()
}

/// Sets and deletes some keys.
async fn change(store: &Store, rng: &mut fastrand::Rng, reference: &mut BTreeMap<usize, Vec<u8>>) {
    for _ in 0..KEYS {
        let at = rng.usize(..KEYS);
        if rng.u8(..8) == 0 {
            let (condition, durability) = (Condition::None, Durability::Default);
            let key = key(at);
            let connection = store.connect(0);
            let id = connection.send(store, &Request::Delete { key: &key, condition, durability }).await;
            connection.answer(id).await;
            reference.remove(&at);
            continue;
        }
        let len = *rng.choice(&[0, 1, 30, 100]).expect("there are some");
        let value: Vec<u8> = (0..len).map(|_| rng.u8(..)).collect();
        store.set(&key(at), &value, Expiry::Never).await.version();
        reference.insert(at, value);
    }
}

/// Reads all keys, and some that never were, in pipelines; with `at_once` as clients of Redis have it. Everything is in
/// memory by then.
async fn check(store: &Store, rng: &mut fastrand::Rng, reference: &BTreeMap<usize, Vec<u8>>, at_once: bool) {
    let before = store.shards[0].engine.metrics();
    let mut left: Vec<usize> = (0..KEYS + 50).collect();
    rng.shuffle(&mut left);
    let mut asked = 0;
    while !left.is_empty() {
        let some: Vec<usize> = left.drain(..left.len().min(rng.usize(1..40))).collect();
        let keys: Vec<Vec<u8>> = some.iter().map(|at| key(*at)).collect();
        let mut found = Vec::new();
        if at_once {
            let keys: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
            let take = &mut |value: Option<&[u8]>| found.push(value.map(<[u8]>::to_vec));
            let given = store.shards[0].read_at_once(&keys[..keys.len().min(16)], take);
            assert_eq!(given, keys.len().min(16), "all of it is in memory");
        } else {
            let connection = store.connect(0);
            let requests: Vec<Request<'_>> = keys.iter().map(|key| Request::Get { key }).collect();
            for id in connection.send_all(store, &requests) {
                found.push(match connection.answer(id).await {
                    Answer::Value(value, _) => Some(value),
                    Answer::Absent => None,
                    other => panic!("{other:?}"),
                });
            }
        }
        asked += found.len() as u64;
        for (at, found) in some.iter().zip(found) {
            assert!(found.as_ref() == reference.get(at), "key {at}");
        }
    }
    let after = store.shards[0].engine.metrics();
    assert_eq!(after.gets - before.gets, asked);
    let in_tables = |metrics: &crate::metrics::MetricsSnapshot| {
        metrics.upper_hits + metrics.last_hits + metrics.filter_false_positives
    };
    assert_eq!(
        after.cache_hits - before.cache_hits,
        in_tables(&after) - in_tables(&before),
        "each counts once"
    );
    assert_eq!(after.disk_reads, before.disk_reads);
}

#[test]
fn many_reads_find_what_each_alone_would_and_count_once() {
    for seed in 1..4 {
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let world = SimWorld::new(seed);
        let env = SimEnv::new(&world, SimDisk::new(&world));
        world.run(async {
            let store = Store::open(&env, 1).await;
            let mut reference = BTreeMap::new();
            for _ in 0..3 {
                change(&store, &mut rng, &mut reference).await;
                store.flush().await;
                // Some of it stays in the memtable.
                change(&store, &mut rng, &mut reference).await;
                for at in 0..KEYS + 50 {
                    store.get(&key(at)).await;
                }
                for at_once in [true, false, true, false] {
                    check(&store, &mut rng, &reference, at_once).await;
                }
            }
            store.close().await;
        });
        world.kill();
    }
}
