//! DELRANGE over several shards: parts that come by another slot table than the shard knows, and shards that refuse.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::store::{Answer, Store};
use crate::disk::sim::SimDisk;
use crate::env::sim::{SimEnv, SimWorld};
use crate::env::{Env, Gate, Queue};
use crate::error::Code;
use crate::protocol::{DeleteRange, Durability, Expiry, Request};
use crate::shard::topology::COORDINATOR;
use crate::slot::Slot;

fn range<'a>(start: &'a [u8], end: &'a [u8]) -> Request<'a> {
    Request::DeleteRange(DeleteRange {
        start,
        end,
        is_local: false,
        epoch: 0,
        durability: Durability::Default,
    })
}

/// A key of each shard.
fn keys(store: &Store) -> Vec<Vec<u8>> {
    let all = || (0..).map(|number| format!("key-{number}").into_bytes());
    let owner = |key: &Vec<u8>| store.shards[0].slots.shard(Slot::of_key(key));
    (0..store.shards.len()).map(|shard| all().find(|key| owner(key) == shard).unwrap()).collect()
}

/// A part goes by the slot table that its request was sent by: a newer one refuses it, and an older one has it wait.
#[test]
fn a_part_is_done_by_one_slot_table_or_not_at_all() {
    let world = SimWorld::new(1);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    world.run(async {
        let store = Store::open(&env, 2).await;
        let key = keys(&store).remove(1);
        let connection = store.connect(0);
        let epoch = store.shards[1].slots.epoch();
        let part = |epoch| {
            let (start, end) = (&b"k"[..], &b"l"[..]);
            Request::DeleteRange(DeleteRange {
                start,
                end,
                is_local: false,
                epoch,
                durability: Durability::Default,
            })
        };
        store.set(&key, b"value", Expiry::Never).await.version();
        let coordinator = &store.shards[COORDINATOR];
        let tablets = coordinator.survey().await.unwrap();
        // One that the key is not in.
        let other = tablets.iter().find(|tablet| !tablet.slots.contains(Slot::of_key(&key))).unwrap();
        coordinator.move_tablet(other.id, 1 - other.shard).await.unwrap();
        assert!(store.shards[1].slots.epoch() > epoch);
        let asked = connection.send_part(&store, 1, &part(epoch));
        assert_eq!(
            connection.answer(asked).await,
            Answer::Refused(Code::SlotMoving),
            "it is of an older table"
        );
        assert!(matches!(store.get(&key).await, Answer::Value(..)), "nothing is done");
        let ahead = store.shards[1].slots.epoch() + 1;
        let asked = connection.send_part(&store, 1, &part(ahead));
        store.sleep(Duration::from_secs(1)).await;
        assert!(!connection.is_answered(asked), "it waits for the table that it was sent by");
        assert!(matches!(store.get(&key).await, Answer::Value(..)));
        coordinator.move_tablet(other.id, other.shard).await.unwrap();
        assert_eq!(connection.answer(asked).await, Answer::Done);
        assert_eq!(store.get(&key).await, Answer::Absent);
        store.close().await;
    });
    world.kill();
}

/// Range deletes of several connections while tablets move all the time: each is done, though its parts are sent anew.
#[test]
fn range_deletes_are_sent_anew_until_all_parts_go_by_one_table() {
    for seed in 1..5 {
        let world = SimWorld::new(seed);
        let env = SimEnv::new(&world, SimDisk::new(&world));
        let mut rng = fastrand::Rng::with_seed(seed);
        world.run(async {
            let store = Rc::new(Store::open(&env, 3).await);
            let (running, over) = (Gate::new(), Rc::new(Cell::new(false)));
            for number in 0..4 {
                let connection = store.connect(number % 3);
                let (store, guard) = (store.clone(), running.enter());
                env.spawn(Queue::Foreground, async move {
                    let key = |n: usize| format!("{number}-{n:03}").into_bytes();
                    let (start, end) = (format!("{number}-").into_bytes(), format!("{number}.").into_bytes());
                    for _ in 0..60 {
                        for n in 0..20 {
                            let (condition, durability) = Default::default();
                            let (key, value, expiry) = (&key(n)[..], &b"v"[..], Expiry::Never);
                            let set = Request::Set { key, value, expiry, condition, durability };
                            let asked = connection.send(&store, &set).await;
                            connection.answer(asked).await.version();
                        }
                        let asked = connection.send(&store, &range(&start, &end)).await;
                        assert_eq!(connection.answer(asked).await, Answer::Done, "seed {seed}");
                        for n in 0..20 {
                            let asked = connection.send(&store, &Request::Get { key: &key(n) }).await;
                            assert_eq!(connection.answer(asked).await, Answer::Absent, "seed {seed}");
                        }
                    }
                    drop(guard);
                });
            }
            let (ended, waited) = (over.clone(), running.clone());
            env.spawn(Queue::Foreground, async move {
                waited.empty().await;
                ended.set(true);
            });
            let coordinator = &store.shards[COORDINATOR];
            let mut moves = 0;
            while !over.get() {
                let all = coordinator.survey().await.unwrap();
                let tablet = all[rng.usize(..all.len())];
                coordinator.move_tablet(tablet.id, rng.usize(..3)).await.unwrap();
                moves += 1;
            }
            assert!(moves > 20, "seed {seed}: {moves} moves");
            Rc::into_inner(store).expect("all have ended").close().await;
        });
        world.kill();
    }
}

/// One shard's log has failed: the others do their part, and the answer says that it was a part.
#[test]
fn what_some_shards_refuse_is_partly_done() {
    let world = SimWorld::new(5);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    world.run(async {
        let store = Store::open(&env, 2).await;
        let keys = keys(&store);
        for key in &keys {
            store.set(key, b"value", Expiry::Never).await.version();
        }
        // Both in tables: what is only in a log that has failed is not told.
        store.flush().await;
        env.disk().fail("dsync", &format!("wal/{}", store.shards[1].engine.wal().log()), 0, libc::EIO, true);
        assert_eq!(store.set(&keys[1], b"lost", Expiry::Never).await, Answer::Refused(Code::WriteFailed));
        assert_eq!(store.ask(&range(b"k", b"l")).await, Answer::Refused(Code::PartlyDone));
        assert_eq!(store.get(&keys[0]).await, Answer::Absent);
        assert_eq!(store.ask(&range(b"", b"")).await, Answer::Refused(Code::PartlyDone), "again");
        let other = store.ask(&Request::Get { key: &keys[1] }).await;
        assert!(!matches!(other, Answer::Absent), "its part is not done: {other:?}");
    });
    world.kill();
}

/// One shard's log has failed before, the other's fails under its part. The first refuses for sure, and had the word:
/// the client was told that nothing was done, and after a restart the keys could be gone.
#[test]
fn a_part_that_may_have_been_done_is_told_whatever_others_refuse() {
    let world = SimWorld::new(6);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    world.run(async {
        let store = Store::open(&env, 2).await;
        let keys = keys(&store);
        for key in &keys {
            store.set(key, b"value", Expiry::Never).await.version();
        }
        let fail = |shard: usize| {
            let log = format!("wal/{}", store.shards[shard].engine.wal().log());
            env.disk().fail("dsync", &log, 0, libc::EIO, true);
        };
        fail(1);
        assert_eq!(store.set(&keys[1], b"lost", Expiry::Never).await, Answer::Refused(Code::WriteFailed));
        fail(0);
        assert_eq!(store.ask(&range(b"k", b"l")).await, Answer::Refused(Code::WriteFailed));
    });
    world.kill();
}
