//! Tablets that move and split under requests of several connections: their order stays, nothing is lost or
//! done twice, nobody is refused.
//!
//! `ATLASKV_MOVES_SEED=17 cargo test --lib shard::tests::moves` repeats a seed; `100..900` looks further.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::store::{Answer, Connection, Store};
use crate::base::TabletId;
use crate::disk::sim::SimDisk;
use crate::env::sim::{SimEnv, SimWorld};
use crate::env::{Env, Gate, Queue};
use crate::error::Code;
use crate::protocol::binary::KeyList;
use crate::protocol::{Condition, Durability, Expiry, Request, ScanRequest};
use crate::shard::topology::COORDINATOR;
use crate::shard::{Shard, Trouble};
use crate::slot::Slot;

fn seeds(usual: std::ops::Range<u64>) -> std::ops::Range<u64> {
    match std::env::var("ATLASKV_MOVES_SEED") {
        Ok(text) => {
            let number = |text: &str| text.parse().expect("ATLASKV_MOVES_SEED is a number, or two with ..");
            match text.split_once("..") {
                Some((first, end)) => number(first)..number(end),
                None => number(&text)..number(&text) + 1,
            }
        }
        Err(_) => usual,
    }
}

fn set<'a>(key: &'a [u8], value: &'a [u8]) -> Request<'a> {
    let (condition, durability) = (Condition::None, Durability::Default);
    Request::Set { key, value, expiry: Expiry::Never, condition, durability }
}

/// A connection that only it writes these keys: sets, counts and reads, many requests at once, and what each is
/// answered follows from the order.
async fn work(store: Rc<Store>, connection: Rc<Connection>, number: usize, rounds: u64, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let keys: Vec<Vec<u8>> = (0..6).map(|k| format!("key-{number}-{k}").into_bytes()).collect();
    let counter = format!("counter-{number}").into_bytes();
    let mut values = vec![None; keys.len()];
    for round in 1..=rounds {
        let mut expected = Vec::new();
        for _ in 0..rng.usize(1..8) {
            let which = rng.usize(..keys.len());
            let value = rng.u64(..).to_string().into_bytes();
            let asked = connection.send(&store, &set(&keys[which], &value)).await;
            expected.push((asked, None));
            values[which] = Some(value);
            let read = rng.usize(..keys.len());
            let asked = connection.send(&store, &Request::Get { key: &keys[read] }).await;
            expected.push((asked, Some(values[read].clone())));
        }
        let incr = Request::Incr { key: &counter, amount: 1, durability: Durability::Default };
        let counted = connection.send(&store, &incr).await;
        let mut list = KeyList::default();
        keys.iter().for_each(|key| list.push(key));
        let all = connection.send(&store, &Request::Mget { keys: list.keys() }).await;
        for (asked, value) in expected {
            match (connection.answer(asked).await, value) {
                (Answer::Written(_), None) | (Answer::Absent, Some(None)) => {}
                (Answer::Value(found, _), Some(Some(value))) => assert_eq!(found, value, "seed {seed}"),
                (answer, value) => panic!("seed {seed}: {answer:?} for {value:?}"),
            }
        }
        assert_eq!(connection.answer(counted).await, Answer::Sum(round as i64), "seed {seed}");
        // Its parts are not ordered against the writes, but those were answered.
        let Answer::Values(found) = connection.answer(all).await else { panic!("seed {seed}") };
        assert_eq!(found.len(), keys.len());
        if rng.u8(..4) == 0 {
            store.sleep(Duration::from_micros(rng.u64(..3000))).await;
        }
    }
    for (key, value) in keys.iter().zip(&values) {
        let asked = connection.send(&store, &Request::Get { key }).await;
        match (connection.answer(asked).await, value) {
            (Answer::Value(found, _), Some(value)) => assert_eq!(&found, value, "seed {seed}"),
            (answer, value) => {
                assert!(answer == Answer::Absent && value.is_none(), "seed {seed}: {answer:?}")
            }
        }
    }
}

#[test]
fn requests_keep_their_order_while_their_tablets_move_and_split() {
    let (moves, splits) = (Cell::new(0), Cell::new(0));
    for seed in seeds(1..9) {
        let world = SimWorld::new(seed);
        let env = SimEnv::new(&world, SimDisk::new(&world));
        let mut rng = fastrand::Rng::with_seed(seed);
        let shards = 2 + seed as usize % 2;
        world.run(async {
            let store = Rc::new(Store::open(&env, shards).await);
            let (running, over) = (Gate::new(), Rc::new(Cell::new(false)));
            for number in 0..6 {
                let connection = Rc::new(store.connect(number % shards));
                let (store, guard) = (store.clone(), running.enter());
                let seed = rng.u64(..);
                env.spawn(Queue::Foreground, async move {
                    work(store, connection, number, 400, seed).await;
                    drop(guard);
                });
            }
            let (ended, waited) = (over.clone(), running.clone());
            env.spawn(Queue::Foreground, async move {
                waited.empty().await;
                ended.set(true);
            });
            let coordinator = &store.shards[COORDINATOR];
            while !over.get() {
                let all = coordinator.survey().await.unwrap();
                let tablet = all[rng.usize(..all.len())];
                let result = if rng.u8(..6) == 0 && tablet.slots.count() > 1 && all.len() < 30 {
                    splits.set(splits.get() + 1);
                    coordinator.split_tablet(tablet.id, None).await
                } else {
                    moves.set(moves.get() + 1);
                    coordinator.move_tablet(tablet.id, rng.usize(..shards)).await
                };
                let changed = result.unwrap_or_else(|trouble| panic!("seed {seed}: {trouble}"));
                assert!(changed.pause < Duration::from_millis(60), "seed {seed}: {:?}", changed.pause);
                if rng.bool() {
                    store.flush().await;
                }
                store.sleep(Duration::from_micros(rng.u64(..2000))).await;
            }
            let all = coordinator.survey().await.unwrap();
            let slots: u32 = all.iter().map(|tablet| u32::from(tablet.slots.count())).sum();
            assert_eq!(slots, 16_384, "seed {seed}: every slot is in one tablet");
            let metrics = store.metrics();
            assert_eq!((metrics.move_failures, metrics.refusals), (0, 0), "seed {seed}");
            Rc::into_inner(store).expect("all have ended").close().await;
        });
        world.kill();
    }
    assert!(moves.get() > splits.get() && splits.get() > 0, "{moves:?} {splits:?}");
}

/// One shard has all the load. The balancer takes some of it away, and then leaves everything where it is.
#[test]
fn a_hot_shard_is_relieved_by_itself() {
    let seed = 3;
    let world = SimWorld::new(seed);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    world.run(async {
        let store = Rc::new(Store::open(&env, 2).await);
        let owner = |key: &[u8]| {
            let slot = Slot::of_key(key);
            (store.shards[0].slots.shard(slot), slot)
        };
        // Keys of several tablets, all on shard 0.
        let all = (0..).map(|number| format!("key-{number}").into_bytes());
        let keys: Rc<Vec<Vec<u8>>> = Rc::new(all.filter(|key| owner(key).0 == 0).take(40).collect());
        let ended = Gate::new();
        env.spawn(Queue::Foreground, store.shards[COORDINATOR].clone().balance_loop());
        for number in 0..8 {
            let connection = store.connect(number % 2);
            let (store, keys, guard) = (store.clone(), keys.clone(), ended.enter());
            env.spawn(Queue::Foreground, async move {
                for round in 0..30_000usize {
                    let key = &keys[(round * 7 + number) % keys.len()];
                    let asked = connection.send(&store, &Request::Get { key }).await;
                    assert_eq!(connection.answer(asked).await, Answer::Absent);
                    store.sleep(Duration::from_millis(2)).await;
                }
                drop(guard);
            });
        }
        ended.empty().await;
        let tablets = store.shards[COORDINATOR].survey().await.unwrap();
        let rate = |shard| tablets.iter().filter(|t| t.shard == shard).map(|t| t.rate).sum::<f64>();
        assert!(rate(1) > rate(0) * 0.5 && rate(0) > rate(1) * 0.5, "{} and {}", rate(0), rate(1));
        let metrics = store.metrics();
        assert!((1..8).contains(&metrics.tablet_moves), "{} moves", metrics.tablet_moves);
        assert_eq!(metrics.move_failures, 0);
        store.shards[COORDINATOR].stop_changes();
        store.sleep(Duration::from_millis(1)).await;
        Rc::into_inner(store).expect("all have ended").close().await;
    });
    world.kill();
}

/// The shard of a key, the tablet, and another shard.
async fn place(store: &Store, key: &[u8]) -> (usize, TabletId, usize) {
    let slot = Slot::of_key(key);
    let all = store.shards[COORDINATOR].survey().await.unwrap();
    let tablet = all.iter().find(|tablet| tablet.slots.contains(slot)).unwrap();
    (tablet.shard, tablet.id, 1 - tablet.shard)
}

/// The target's manifest fails while it writes that the tablet is its own. Until the next start nobody knows
/// whether it did, and nobody serves the tablet.
#[test]
fn a_tablet_whose_owner_nobody_knows_is_refused_until_the_next_start() {
    for seed in 1..7 {
        let world = SimWorld::new(seed);
        let env = SimEnv::new(&world, SimDisk::new(&world));
        let mut rng = fastrand::Rng::with_seed(seed);
        world.run(async {
            let store = Store::open(&env, 2).await;
            let key = b"some key".as_slice();
            assert!(matches!(store.set(key, b"value", Expiry::Never).await, Answer::Written(_)));
            let (owner, tablet, target) = place(&store, key).await;
            // The edits of the source are those of its flush; the other manifest belongs to the target.
            store.flush().await;
            env.disk().fail("dsync", &format!("-{target:04}-"), 0, libc::EIO, true);
            let coordinator: &Rc<Shard<SimEnv>> = &store.shards[COORDINATOR];
            let moved = coordinator.move_tablet(tablet, target).await;
            assert!(matches!(moved, Err(Trouble::Undecided(_))), "seed {seed}: {moved:?}");
            assert_eq!(store.get(key).await, Answer::Refused(Code::ShardFailed), "seed {seed}");
            // Nor can a copy tell.
            let refused = coordinator.take_checkpoint("copy").await.unwrap_err();
            assert!(refused.message.contains("restart"), "seed {seed}: {refused}");
            assert!(
                env.disk().peek("copy/INCOMPLETE").is_some() && env.disk().peek("copy/CURRENT").is_none()
            );
            // Nor does a scan leave it out as if it were not there.
            let scan = store.ask(&Request::Scan(ScanRequest::default())).await;
            assert_eq!(scan, Answer::Refused(Code::ShardFailed), "seed {seed}");
            assert_eq!(store.shards[owner].metrics.tablet_moves.get(), 0);
        });
        world.kill();
        let world = SimWorld::new(seed);
        let keep = [0, 50, 100][seed as usize % 3];
        let env = SimEnv::new(&world, env.disk().crash(&world, &mut rng, keep));
        world.run(async {
            let store = Store::open(&env, 2).await;
            let found = store.get(b"some key").await;
            assert!(matches!(&found, Answer::Value(value, _) if value == b"value"), "seed {seed}: {found:?}");
            store.close().await;
        });
        world.kill();
    }
}

/// A table that can't be written for the move, or a target that can't open one: the tablet stays where it is and
/// is served, and the next try succeeds.
#[test]
fn a_move_that_fails_before_its_commit_changes_nothing() {
    for (seed, operation, errno) in
        [(1, "write", libc::EIO), (2, "sync", libc::EIO), (3, "sync_dir", libc::EIO), (4, "open", libc::EIO)]
    {
        let world = SimWorld::new(seed);
        let env = SimEnv::new(&world, SimDisk::new(&world));
        world.run(async {
            let store = Store::open(&env, 2).await;
            let key = b"some key".as_slice();
            store.set(key, b"one", Expiry::Never).await;
            let (owner, tablet, target) = place(&store, key).await;
            env.disk().fail(operation, "sst", 0, errno, true);
            let coordinator = &store.shards[COORDINATOR];
            let moved = coordinator.move_tablet(tablet, target).await;
            assert!(matches!(moved, Err(Trouble::Failed(_))), "{operation}: {moved:?}");
            env.disk().heal();
            assert!(matches!(store.get(key).await, Answer::Value(value, _) if value == b"one"));
            assert!(matches!(store.set(key, b"two", Expiry::Never).await, Answer::Written(_)));
            assert_eq!(place(&store, key).await.0, owner);
            coordinator.move_tablet(tablet, target).await.unwrap();
            assert_eq!(place(&store, key).await.0, target);
            assert!(matches!(store.get(key).await, Answer::Value(value, _) if value == b"two"));
            store.close().await;
        });
        world.kill();
    }
}

/// Frames that wait for their client to take replies do not keep a tablet from moving, and may go on in the moment in
/// which it is written down for its next owner: what would be done then would stay behind. They are refused, and nothing
/// is done.
#[test]
fn what_comes_while_a_tablet_is_packed_is_refused() {
    for seed in 1..6 {
        let world = SimWorld::new(seed);
        let env = SimEnv::new(&world, SimDisk::new(&world));
        world.run(async {
            let store = Rc::new(Store::open(&env, 2).await);
            // Of the shard at which the client is not: it has its frames in one message.
            let mut keys = (0..).map(|number| format!("{{{number}}}").into_bytes());
            let key = keys.find(|key| store.shards[0].slots.shard(Slot::of_key(key)) == 1).unwrap();
            let large = [&key[..], b"large"].concat();
            store.set(&large, &vec![b'x'; 300 << 10], Expiry::Never).await.version();
            let connection = Rc::new(store.connect(0));
            let (get, write) = (Request::Get { key: &large }, set(&key, b"late"));
            let asked = connection.send_all(&store, &[get, write, Request::Get { key: &key }]);
            while !connection.is_stalled_at(1) {
                store.sleep(Duration::from_micros(10)).await;
            }
            let (owner, tablet, target) = place(&store, &key).await;
            assert_eq!(owner, 1);
            let met = Rc::new(Cell::new(false));
            let (again, late, seen) = (store.clone(), connection.clone(), met.clone());
            env.spawn(Queue::Foreground, async move {
                while !again.shards[1].is_packing() {
                    again.sleep(Duration::from_micros(1)).await;
                }
                late.resume(&again, 1);
                seen.set(again.shards[1].is_packing());
                drop((again, late));
            });
            store.shards[COORDINATOR].move_tablet(tablet, target).await.unwrap();
            assert!(met.get(), "seed {seed}: it was packed for some time");
            assert!(matches!(connection.answer(asked[0]).await, Answer::Value(..)), "seed {seed}");
            for id in &asked[1..] {
                assert_eq!(connection.answer(*id).await, Answer::Refused(Code::SlotMoving), "seed {seed}");
            }
            assert_eq!(store.get(&key).await, Answer::Absent, "seed {seed}: nothing was done");
            assert!(matches!(store.get(&large).await, Answer::Value(..)));
            drop(connection);
            store.sleep(Duration::from_millis(1)).await;
            Rc::into_inner(store).expect("all have ended").close().await;
        });
        world.kill();
    }
}
