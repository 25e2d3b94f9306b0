//! Requests for another shard leave together at the end of a turn, in order, and sooner if they are many.

use super::store::{Answer, Connection, Store};
use crate::env::sim::SimEnv;
use crate::protocol::{Condition, Durability, Expiry, Request};
use crate::slot::Slot;

/// A key of `shard`.
fn key_of(store: &Store, shard: usize) -> Vec<u8> {
    let keys = (0..).map(|n| format!("key {n}").into_bytes());
    keys.into_iter().find(|key| store.shards[0].slots.shard(Slot::of_key(key)) == shard).unwrap()
}

fn set<'a>(key: &'a [u8], value: &'a [u8]) -> Request<'a> {
    let (expiry, condition, durability) = (Expiry::Never, Condition::None, Durability::Default);
    Request::Set { key, value, expiry, condition, durability }
}

#[test]
fn reads_of_one_turn_are_one_message_and_each_connection_keeps_its_order() {
    let (world, env) = SimEnv::fresh(11);
    world.run(async {
        let store = Store::open(&env, 2).await;
        let (own, other) = (key_of(&store, 0), key_of(&store, 1));
        let clients: Vec<Connection> = (0..10).map(|_| store.connect(0)).collect();
        let sent = || store.shards[0].port.sent();
        let before = sent();
        let mut asked = Vec::new();
        for (n, client) in clients.iter().enumerate() {
            let value = [n as u8];
            // Two reads of the same connection, with another's in between.
            let first = client.read(&store, &[set(&other, &value), Request::Get { key: &own }]);
            clients[(n + 1) % clients.len()].read(&store, &[Request::Get { key: &own }]);
            let second = client.read(&store, &[Request::Get { key: &other }]);
            asked.push((client, value, first[0], second[0]));
        }
        assert_eq!(sent(), before, "nothing leaves before the end of the turn");
        store.shards[0].end_turn();
        assert_eq!(sent(), before + 1, "all of them leave in one message");
        for (client, value, first, second) in asked {
            let version = client.answer(first).await.version();
            let read = client.answer(second).await;
            assert_eq!(read, Answer::Value(value.to_vec(), version), "it reads what it wrote just before");
        }
        store.close().await;
    });
    world.kill();
}

#[test]
fn many_bytes_do_not_wait_for_the_end_of_the_turn() {
    let (world, env) = SimEnv::fresh(12);
    world.run(async {
        let store = Store::open(&env, 2).await;
        let (client, other, value) = (store.connect(0), key_of(&store, 1), vec![b'v'; 3 << 10]);
        let before = store.shards[0].port.sent();
        let requests: Vec<Request<'_>> = (0..16).map(|_| set(&other, &value)).collect();
        let ids = client.read(&store, &requests);
        // 48 KiB of values: what leaves at once is 16 KiB and up to a frame more.
        let sent = store.shards[0].port.sent() - before;
        assert!((2..=3).contains(&sent), "{sent} messages");
        store.shards[0].end_turn();
        let mut last = None;
        for id in ids {
            let version = client.answer(id).await.version();
            assert!(Some(version) > last, "in the order sent");
            last = Some(version);
        }
        store.close().await;
    });
    world.kill();
}

/// Whoever sends something else has the requests before it sent as well: a connection that is gone is not forgotten
/// before its requests have come.
#[test]
fn what_follows_requests_does_not_overtake_them() {
    let (world, env) = SimEnv::fresh(13);
    world.run(async {
        let store = Store::open(&env, 2).await;
        let (client, other) = (store.connect(0), key_of(&store, 1));
        client.read(&store, &[set(&other, b"1")]);
        let before = store.shards[0].port.sent();
        store.shards[0].forget_everywhere(client.token());
        assert_eq!(store.shards[0].port.sent(), before + 2, "the request, then that its connection is gone");
        assert!(matches!(store.get(&other).await, Answer::Value(value, _) if value == b"1"));
        store.close().await;
    });
    world.kill();
}
