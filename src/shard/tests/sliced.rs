//! Reads that take long let others in between, keep the order of their connection, and give back what they took.

use std::cell::Cell;
use std::time::Duration;

use super::store::{Answer, Store};
use crate::disk::sim::SimDisk;
use crate::env::Env;
use crate::env::sim::{SimEnv, SimWorld};
use crate::protocol::binary::KeyList;
use crate::protocol::{Condition, Deadline, Durability, Expiry, Request};
use crate::shard::{Origin, sliced};

fn run(seed: u64, shards: usize, test: impl AsyncFn(&Store)) {
    let world = SimWorld::new(seed);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    world.run(async {
        let store = Store::open(&env, shards).await;
        test(&store).await;
        for shard in &store.shards {
            let used = (shard.reply_budget.used(), shard.gather_budget.used(), shard.gathered.get());
            assert_eq!(used, (0, 0, 0), "seed {seed}: what was granted was given back");
        }
        store.close().await;
    });
    world.kill();
}

fn key(at: usize) -> Vec<u8> {
    format!("sliced {at}").into_bytes()
}

fn set<'a>(key: &'a [u8], value: &'a [u8]) -> Request<'a> {
    let (expiry, condition, durability) = (Expiry::Never, Condition::None, Durability::Default);
    Request::Set { key, value, expiry, condition, durability }
}

/// `count` keys with values of `bytes`, but every third. Returns them as a list, and what is to be found.
async fn fill(store: &Store, count: usize, bytes: usize) -> (KeyList, Vec<Option<Vec<u8>>>) {
    let (mut list, mut values) = (KeyList::default(), Vec::new());
    for at in 0..count {
        list.push(&key(at));
        let value = (at % 3 != 0).then(|| vec![at as u8; bytes]);
        if let Some(value) = &value {
            store.set(&key(at), value, Expiry::Never).await.version();
        }
        values.push(value);
    }
    (list, values)
}

#[test]
fn many_keys_let_other_requests_in_between_and_keep_their_place() {
    for (seed, shards) in [(1, 1), (2, 1), (3, 2), (4, 3)] {
        run(seed, shards, async |store| {
            let (list, values) = fill(store, 8 * sliced::KEYS_MAX * shards, 10).await;
            let (slow, quick) = (store.connect(0), store.connect(0));
            let mget = slow.send(store, &Request::Mget { keys: list.keys() }).await;
            // Of another connection, and one that comes behind it on its own and changes what it reads.
            let get = quick.send(store, &Request::Get { key: &key(1) }).await;
            let seven = key(7);
            let replaces = set(&seven, b"new");
            let later = slow.send(store, &replaces);
            assert_eq!(quick.answer(get).await, Answer::Value(vec![1; 10], value_version(store, 1).await));
            assert!(!slow.is_answered(mget), "seed {seed}: it lets others in between");
            let later = later.await;
            assert!(slow.answer(mget).await == Answer::Values(values), "seed {seed}");
            slow.answer(later).await.version();
            assert!(matches!(store.get(&seven).await, Answer::Value(value, _) if value == b"new"));
        });
    }
}

async fn value_version(store: &Store, at: usize) -> crate::base::Lsn {
    match store.get(&key(at)).await {
        Answer::Value(_, version) => version,
        other => panic!("{other:?}"),
    }
}

#[test]
fn large_values_let_others_in_between_and_come_whole_though_they_are_replaced() {
    for seed in 0..20 {
        run(seed, 1, async |store| {
            let (old, new) = (vec![1; 3 * sliced::BYTES_MAX + 17], vec![2; 2 * sliced::BYTES_MAX + 1]);
            let before = store.set(b"large", &old, Expiry::Never).await.version();
            store.set(b"small", b"1", Expiry::Never).await.version();
            let (slow, quick) = (store.connect(0), store.connect(0));
            let large = slow.send(store, &Request::Get { key: b"large" }).await;
            let small = quick.send(store, &Request::Get { key: b"small" }).await;
            quick.answer(small).await;
            assert!(!slow.is_answered(large), "seed {seed}: it lets others in between");
            let mut versions = vec![(before, old)];
            for _ in 0..seed {
                let replaced = quick.send(store, &set(b"large", &new)).await;
                versions.push((quick.answer(replaced).await.version(), new.clone()));
            }
            let Answer::Value(value, version) = slow.answer(large).await else { panic!("seed {seed}") };
            assert!(versions.contains(&(version, value)), "seed {seed}: a value that was there, whole");
            let gone = slow.send(store, &Request::Get { key: b"large" }).await;
            store.delete(b"large").await.version();
            assert!(!matches!(slow.answer(gone).await, Answer::Refused(_)), "seed {seed}");
        });
    }
}

/// Of SETs of large values that come together, with others and a flush in between, each takes effect at one moment:
/// a condition that holds when it comes and not when it is done does not hold.
#[test]
fn large_values_are_written_in_steps_and_take_effect_in_one() {
    for seed in 0..24 {
        let shards = 1 + seed as usize % 3;
        run(seed, shards, async |store| {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (writers, quick) = ([0, 0, shards - 1].map(|shard| store.connect(shard)), store.connect(0));
            let large = |byte: u8| vec![byte; sliced::BYTES_MAX * 3 + usize::from(byte)];
            let (expiring, ttl) = (key(5), Expiry::Set(Deadline::In(3_600_000)));
            store.set(&key(3), b"small", ttl).await.version();
            let mut sent = Vec::new();
            for (n, writer) in writers.iter().enumerate() {
                let value = large(n as u8);
                // All want to be the first; and one each keeps an expiry, gets one, or replaces.
                let first = key(1);
                let absent = Request::Set {
                    key: &first,
                    value: &value,
                    expiry: Expiry::Never,
                    condition: Condition::IfAbsent,
                    durability: Durability::Default,
                };
                let (three, four) = (key(3), key(4));
                let other = match n {
                    0 => Request::Set {
                        key: &three,
                        value: &value,
                        expiry: Expiry::Keep,
                        condition: Condition::IfPresent,
                        durability: Durability::Default,
                    },
                    1 => Request::Set {
                        key: &expiring,
                        value: &value,
                        expiry: ttl,
                        condition: Condition::None,
                        durability: Durability::Default,
                    },
                    _ => set(&four, &value),
                };
                sent.push((writer.send(store, &absent).await, writer.send(store, &other).await));
            }
            // Others go on, and so does the memtable.
            let nine = key(9);
            let get = quick.send(store, &Request::Get { key: &nine }).await;
            if rng.bool() {
                store.shards[rng.usize(..shards)].engine.rotate();
            }
            assert_eq!(quick.answer(get).await, Answer::Absent);
            assert!(!writers[0].is_answered(sent[0].0), "seed {seed}: it lets others in between");
            let mut winner = None;
            for (n, (writer, (absent, other))) in writers.iter().zip(sent).enumerate() {
                match writer.answer(absent).await {
                    Answer::Written(_) => {
                        assert_eq!(winner.replace(n as u8), None, "seed {seed}: one is first")
                    }
                    Answer::Unmet(Some(_)) => {}
                    answer => panic!("seed {seed}: {answer:?}"),
                }
                writer.answer(other).await.version();
            }
            let expect = [(1, winner.unwrap()), (3, 0), (5, 1), (4, 2)];
            for (at, byte) in expect {
                let found = store.get(&key(at)).await;
                assert!(
                    matches!(found, Answer::Value(value, _) if value == large(byte)),
                    "seed {seed}: {at}"
                );
            }
            for (at, expires) in [(1, false), (3, true), (4, false), (5, true)] {
                let lifetime = store.ask(&Request::Ttl { key: &key(at) }).await;
                assert!(
                    matches!(lifetime, Answer::Lifetime(left) if left.is_some() == expires),
                    "seed {seed}"
                );
            }
        });
    }
}

/// EXPIRE and PERSIST of a large value store it once more, as it is at one moment, whatever takes its place meanwhile.
#[test]
fn the_expiry_of_large_values_is_changed_in_steps_and_takes_effect_in_one() {
    let (condition, durability) = (Condition::None, Durability::Default);
    let seen = Cell::new(0);
    for seed in 0..30 {
        run(seed, 1, async |store| {
            let mut rng = fastrand::Rng::with_seed(seed);
            let value = |round: u64| vec![round as u8; (1 + rng_of(seed, round)) * sliced::BYTES_MAX + 17];
            let is_persist = rng.bool();
            let before = Expiry::Set(Deadline::In(7_200_000));
            let first = store.set(b"large", &value(0), if is_persist { before } else { Expiry::Never }).await;
            if rng.bool() {
                store.shards[0].engine.rotate();
            }
            if seed % 3 == 0 {
                // In a table, and read from there.
                store.env.sleep(Duration::from_secs(5)).await;
            }
            let request = |condition| match is_persist {
                true => Request::Persist { key: b"large", condition, durability },
                false => Request::Expire {
                    key: b"large",
                    deadline: Deadline::In(3_600_000),
                    condition,
                    durability,
                },
            };
            let (slow, quick) = (store.connect(0), store.connect(0));
            let changing = slow.send(store, &request(condition)).await;
            let absent = quick.send(store, &Request::Get { key: b"small" }).await;
            assert_eq!(quick.answer(absent).await, Answer::Absent);
            let is_begun = store.shards[0].waiting.borrow().values().any(|waiting| waiting.sliced.is_some());
            seen.set(seen.get() + usize::from(is_begun));
            let (mut last, rounds) = (first.version(), seed % 6);
            for round in 1..=rounds {
                let expiry = if is_persist { before } else { Expiry::Never };
                last = store.set(b"large", &value(round), expiry).await.version();
            }
            let changed = slow.answer(changing).await.version();
            let Answer::Value(found, version) = store.get(b"large").await else {
                panic!("seed {seed}: gone")
            };
            assert!(found == value(rounds), "seed {seed}: what was written last");
            assert_eq!(version, changed.max(last), "seed {seed}");
            let Answer::Lifetime(left) = store.ask(&Request::Ttl { key: b"large" }).await else {
                panic!("seed {seed}: it is there")
            };
            // What came later has its own expiry; or an hour is left, or no end.
            let left = left.map(|left| left.remaining_ms > 3_600_000);
            let expected = match (is_persist, changed > last) {
                (false, true) => Some(false),
                (true, false) => Some(true),
                _ => None,
            };
            assert_eq!(left, expected, "seed {seed}");
            // None of these takes long, since none stores it again.
            let unmet = store.ask(&request(Condition::IfVersion(first.version()))).await;
            assert_eq!(unmet, Answer::Unmet(Some(version)), "seed {seed}");
            let gone = Request::Expire { key: b"large", deadline: Deadline::At(1), condition, durability };
            store.ask(&gone).await.version();
            assert_eq!(store.get(b"large").await, Answer::Absent, "seed {seed}");
            assert_eq!(store.ask(&request(condition)).await, Answer::Absent, "seed {seed}");
        });
    }
    assert!(seen.get() > 3, "a GET was answered between two steps with {} of the seeds", seen.get());
}

/// A number below 3 that belongs to both.
fn rng_of(seed: u64, round: u64) -> usize {
    fastrand::Rng::with_seed(seed * 100 + round).usize(..3)
}

/// More large values than may be staged at a time, and than memory takes before a flush: who waits for the one is in
/// line with who waits for the other, and neither keeps the other from going on.
#[test]
fn more_large_values_than_may_be_staged_all_get_their_turn() {
    for seed in 0..12 {
        run(seed, 1, async |store| {
            let mut rng = fastrand::Rng::with_seed(seed);
            let disk = store.env.disk();
            disk.delay("write", "sst", rng.u64(..4), Duration::from_secs(2));
            let value = vec![seed as u8; 1 << 20];
            let clients: Vec<_> = (0..24).map(|_| store.connect(0)).collect();
            let answers = async {
                let mut sent = Vec::new();
                for round in 0..4 {
                    for (at, client) in clients.iter().enumerate() {
                        let key = key(round * clients.len() + at);
                        sent.push((client, client.send(store, &set(&key, &value)).await));
                        if rng.u8(..4) == 0 {
                            store.env.yield_now().await;
                        }
                    }
                }
                for (client, id) in sent {
                    client.answer(id).await.version();
                }
                true
            };
            let late = async {
                store.env.sleep(Duration::from_secs(600)).await;
                false
            };
            assert!(futures_lite::future::or(answers, late).await, "seed {seed}: someone waits for ever");
        });
    }
}

#[test]
fn what_is_on_disk_is_found_however_long_the_list_is() {
    for (seed, shards) in [(1, 1), (2, 2)] {
        run(seed, shards, async |store| {
            // Larger than the cache.
            let (list, values) = fill(store, 3 * sliced::KEYS_MAX, 200).await;
            store.flush().await;
            let request = Request::Mget { keys: list.keys() };
            assert!(store.ask(&request).await == Answer::Values(values.clone()), "seed {seed}");
            // Some in memory, some not.
            store.set(&key(0), b"new", Expiry::Never).await.version();
            let mut values = values;
            values[0] = Some(b"new".to_vec());
            assert!(store.ask(&request).await == Answer::Values(values), "seed {seed}");
        });
    }
}

/// Each of two that had copied something from memory gave that room back to ask for the blocks it missed, took the
/// other's, and began again.
#[test]
fn what_is_partly_on_disk_is_answered_though_there_is_little_room() {
    for seed in 0..10 {
        let world = SimWorld::new(seed);
        let env = SimEnv::new(&world, SimDisk::new(&world));
        world.run(async {
            // A quarter of it is for replies.
            let store = Store::open_with(&env, 1, 2 << 20).await;
            let (list, mut values) = fill(&store, 300, 3000).await;
            store.flush().await;
            for (at, value) in values.iter_mut().enumerate().take(200) {
                *value = Some(vec![7; 3500]);
                store.set(&key(at), value.as_ref().unwrap(), Expiry::Never).await.version();
            }
            let all: Vec<_> = (0..4).map(|_| store.connect(0)).collect();
            let mut ids = Vec::new();
            for connection in &all {
                ids.push(connection.send(&store, &Request::Mget { keys: list.keys() }).await);
            }
            for (connection, id) in all.iter().zip(ids) {
                let ended = async {
                    assert!(connection.answer(id).await == Answer::Values(values.clone()), "seed {seed}");
                };
                let late = async {
                    env.sleep(std::time::Duration::from_secs(10)).await;
                    panic!("seed {seed}: somebody waits for ever");
                };
                futures_lite::future::or(ended, late).await;
            }
            assert_eq!(store.shards[0].reply_budget.used(), 0, "seed {seed}");
            store.close().await;
        });
        world.kill();
    }
}

#[test]
fn a_reply_that_is_longer_than_a_frame_is_refused() {
    run(1, 1, async |store| {
        let (list, _) = fill(store, 9, 900_000).await;
        let limit = store.shards[0].limits.frame_bytes_max as usize;
        assert!(6 * 900_000 > limit, "a test of too little");
        let Answer::Refused(code) = store.ask(&Request::Mget { keys: list.keys() }).await else { panic!() };
        assert_eq!(code, crate::error::Code::ReplyTooLarge);
    });
}

#[test]
fn whoever_leaves_leaves_nothing_behind() {
    for steps in 0..12 {
        run(steps, 1, async |store| {
            let (list, _) = fill(store, 4 * sliced::KEYS_MAX, 500).await;
            let slow = store.connect(0);
            let mget = slow.send(store, &Request::Mget { keys: list.keys() }).await;
            for _ in 0..steps {
                store.env.yield_now().await;
            }
            if !slow.is_answered(mget) {
                store.shards[0].forget(Origin { peer: 0, token: slow.token() });
            }
            // Whoever comes next is served.
            let next = store.connect(0);
            let get = next.send(store, &Request::Get { key: &key(1) }).await;
            assert!(matches!(next.answer(get).await, Answer::Value(..)));
        });
    }
}
