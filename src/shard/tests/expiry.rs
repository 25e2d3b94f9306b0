//! Keys that expire: gone at once for every request, never back, and in the end gone from disk.

use std::time::Duration;

use super::store::{Answer, Store};
use crate::base::Lsn;
use crate::disk::sim::SimDisk;
use crate::env::Env;
use crate::env::sim::{SimEnv, SimWorld};
use crate::error::Code;
use crate::protocol::binary::KeyList;
use crate::protocol::{Condition, Deadline, Durability, Expiry, Request};

const SECOND: u64 = 1_000;
const HOUR: u64 = 3_600 * SECOND;

fn after(ms: u64) -> Expiry {
    Expiry::Set(Deadline::In(ms))
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn key(number: usize) -> Vec<u8> {
    format!("key-{number}").into_bytes()
}

/// Each request, asked of a key that has expired, says that there is none.
async fn expect_absent(store: &Store, key: &[u8]) {
    assert_eq!(store.get(key).await, Answer::Absent);
    assert_eq!(store.ttl(key).await, Answer::Absent);
    assert_eq!(store.persist(key).await, Answer::Absent);
    assert_eq!(store.expire(key, Deadline::In(HOUR)).await, Answer::Absent);
    assert_eq!(store.delete(key).await, Answer::Absent);
    let unmet = Answer::Unmet(None);
    for condition in [Condition::IfPresent, Condition::IfVersion(Lsn(1 << 16))] {
        assert_eq!(store.set_if(key, b"no", Expiry::Never, condition).await, unmet);
        let durability = Durability::Default;
        assert_eq!(store.ask(&Request::Delete { key, condition, durability }).await, unmet);
        assert_eq!(store.ask(&Request::Persist { key, condition, durability }).await, unmet);
        let expire = Request::Expire { key, deadline: Deadline::In(HOUR), condition, durability };
        assert_eq!(store.ask(&expire).await, unmet);
    }
    let mut list = KeyList::default();
    list.push(key);
    list.push(b"another");
    let mget = store.ask(&Request::Mget { keys: list.keys() }).await;
    assert_eq!(mget, Answer::Values(vec![None, None]));
}

#[test]
fn expired_keys_are_absent_for_every_request_wherever_they_are() {
    let places = ["memtable", "log", "table", "table of a merge", "table after a restart"];
    for (number, place) in places.into_iter().enumerate() {
        let shards = 1 + number % 2;
        let (world, env) = SimEnv::fresh(number as u64);
        world.run(async {
            let mut store = Store::open(&env, shards).await;
            for number in 0..8 {
                store.set(&key(number), b"7", after(1000 * SECOND)).await.version();
            }
            if place.contains("table of") {
                // Of like size, so that a fourth one makes them merge.
                for _ in 0..3 {
                    store.flush().await;
                    for number in 0..8 {
                        store.set(&key(number), b"7", Expiry::Keep).await.version();
                    }
                }
                store.flush().await;
                store.until("merges", |metrics| metrics.tables <= 8 && metrics.compactions > 0).await;
            } else if place.starts_with("table") {
                store.flush().await;
            }
            if place == "log" || place.ends_with("restart") {
                store.close().await;
                store = Store::open(&env, shards).await;
            }
            let mut left = store.expires_at(&key(0)).await - env.wall_ms();
            assert!((900 * SECOND..=1000 * SECOND).contains(&left), "{place}: {left}");
            for number in 0..8 {
                assert!(matches!(store.get(&key(number)).await, Answer::Value(value, _) if value == b"7"));
                left = left.max(store.expires_at(&key(number)).await - env.wall_ms());
            }
            store.sleep(ms(left)).await;
            for number in 0..8 {
                expect_absent(&store, &key(number)).await;
            }
            // What is written anew has nothing of what was.
            assert_eq!(store.incr(&key(0), 1).await, Answer::Sum(1), "{place}");
            assert_eq!(store.expires_at(&key(0)).await, 0);
            store.set_if(&key(1), b"new", Expiry::Never, Condition::IfAbsent).await.version();
            store.set(&key(2), b"new", Expiry::Keep).await.version();
            assert_eq!(store.expires_at(&key(2)).await, 0, "{place}: there was nothing to keep");
            store.close().await;
        });
    }
}

#[test]
fn expiry_is_set_kept_and_taken_away() {
    for shards in [1, 2] {
        let (world, env) = SimEnv::fresh(7);
        world.run(async {
            let store = Store::open(&env, shards).await;
            for number in 0..8 {
                let key = &key(number)[..];
                let first = store.set(key, b"1", Expiry::Never).await.version();
                assert_eq!(store.ttl(key).await, Answer::Lifetime(None));
                // A persistent key is what PERSIST makes of it: nothing is written.
                assert_eq!(store.persist(key).await, Answer::Written(first));
                let at = env.wall_ms() + HOUR;
                let second = store.expire(key, Deadline::At(at)).await.version();
                assert!(second > first, "a write has a new version");
                assert_eq!(store.get(key).await, Answer::Value(b"1".to_vec(), second));
                assert_eq!(store.incr(key, 4).await, Answer::Sum(5));
                assert_eq!(store.expires_at(key).await, at, "INCR keeps it");
                store.set(key, b"9", Expiry::Keep).await.version();
                assert_eq!(store.expires_at(key).await, at);
                let Answer::Lifetime(Some(lifetime)) = store.ttl(key).await else { panic!("it has one") };
                let (least, most) = (HOUR - SECOND, HOUR);
                assert!((least..=most).contains(&lifetime.remaining_ms), "{lifetime:?}");
                let before = store.persist(key).await.version();
                assert_eq!(store.get(key).await, Answer::Value(b"9".to_vec(), before));
                assert_eq!(store.expires_at(key).await, 0);
                store.set(key, b"9", after(HOUR)).await.version();
                store.set(key, b"9", Expiry::Never).await.version();
                assert_eq!(store.expires_at(key).await, 0, "a plain SET takes it away");
                // A time that is past removes the key, by SET as by EXPIRE.
                store.expire(key, Deadline::At(1)).await.version();
                assert_eq!(store.get(key).await, Answer::Absent);
                store.set(key, b"9", Expiry::Never).await.version();
                store.set(key, b"9", Expiry::Set(Deadline::At(env.wall_ms()))).await.version();
                assert_eq!(store.get(key).await, Answer::Absent);
                let condition = Condition::IfVersion(before);
                let durability = Durability::Always;
                let latest = store.set(key, b"9", after(HOUR)).await.version();
                let deadline = Deadline::In(1);
                let expire = Request::Expire { key, deadline, condition, durability };
                assert_eq!(store.ask(&expire).await, Answer::Unmet(Some(latest)));
                let condition = Condition::IfVersion(latest);
                let persist = Request::Persist { key, condition, durability };
                assert!(store.ask(&persist).await.version() > latest);
                // No clock reaches that far; only the owner can tell.
                let beyond = Deadline::In(crate::base::EXPIRY_MS_MAX);
                assert_eq!(store.expire(key, beyond).await, Answer::Refused(Code::InvalidExpiry));
            }
            store.close().await;
        });
    }
}

#[test]
fn what_nobody_reads_is_reclaimed() {
    for shards in [1, 2] {
        let (world, env) = SimEnv::fresh(11);
        world.run(async {
            let store = Store::open(&env, shards).await;
            for number in 0..400 {
                store.set(&key(number), &[7; 200], after(HOUR)).await.version();
            }
            store.flush().await;
            assert_eq!(store.metrics().table_entries, 400);
            store.sleep(ms(HOUR - 60 * SECOND)).await;
            assert_eq!(store.metrics().table_entries, 400, "it is not their time yet");
            store.sleep(ms(60 * SECOND)).await;
            store.until("nothing is left", |metrics| metrics.tables == 0).await;
            assert_eq!(store.metrics().expired_entries, 400);
            store.until("no file", |_| !env.disk().paths().iter().any(|path| path.ends_with(".sst"))).await;
            store.close().await;
            // And nothing comes back from the log.
            let store = Store::open(&env, shards).await;
            assert_eq!(store.get(&key(0)).await, Answer::Absent);
            store.close().await;
        });
    }
}

#[test]
fn the_living_stay_when_others_are_reclaimed() {
    let (world, env) = SimEnv::fresh(12);
    world.run(async {
        let store = Store::open(&env, 1).await;
        for number in 0..400 {
            // Three quarters go, at different times; a few stay for ever, others long.
            let expiry = match number % 8 {
                0 => Expiry::Never,
                1 => after(1000 * HOUR),
                n => after(HOUR + n as u64 * 60 * SECOND),
            };
            store.set(&key(number), &[7; 200], expiry).await.version();
        }
        store.flush().await;
        store.sleep(ms(2 * HOUR)).await;
        // What is less than half of a tablet's tables is not worth a merge.
        store.until("mostly the living are left", |metrics| metrics.table_entries <= 200).await;
        assert!(store.metrics().table_entries >= 100);
        for number in 0..400 {
            let is_there = matches!(store.get(&key(number)).await, Answer::Value(..));
            assert_eq!(is_there, number % 8 < 2, "key {number}");
        }
        let merges = store.metrics().compactions;
        store.sleep(ms(HOUR)).await;
        assert_eq!(store.metrics().compactions, merges, "there is nothing more to do");
        store.close().await;
    });
}

/// The version below has no expiry: dropping only the expired one would bring it back.
#[test]
fn no_older_version_comes_back() {
    /// All in one tablet.
    fn key(number: usize) -> Vec<u8> {
        format!("{{t}}{number}").into_bytes()
    }
    let (world, env) = SimEnv::fresh(13);
    world.run(async {
        let mut store = Store::open(&env, 1).await;
        // A last level of living keys, so large that what comes later stays above it.
        let mut rng = fastrand::Rng::with_seed(13);
        for number in 0..400 {
            // Nothing that compresses.
            let value: Vec<u8> = (0..2000).map(|_| rng.u8(..)).collect();
            store.set(&key(number), &value, Expiry::Never).await.version();
        }
        store.flush().await;
        store.until("they come down", |metrics| metrics.last_tables > 0).await;
        for number in 0..40 {
            store.set(&key(number), &[2; 200], after(HOUR)).await.version();
        }
        store.flush().await;
        store.sleep(ms(HOUR)).await;
        let expired = 40;
        store.until("the upper tables are rewritten", |metrics| metrics.expired_entries == expired).await;
        let metrics = store.metrics();
        assert_eq!(metrics.table_entries, 440, "tombstones took the place of what expired");
        assert!(metrics.table_bytes > 400 * 2000, "and the lower tables were left alone");
        for round in 0..3 {
            for number in 0..400 {
                let is_there = matches!(store.get(&key(number)).await, Answer::Value(..));
                assert_eq!(is_there, number >= 40, "round {round}, key {number}");
            }
            if round == 0 {
                store.close().await;
                store = Store::open(&env, 1).await;
            } else if round == 1 {
                // Everything into one table: most keys are deleted, which makes a quarter tombstones.
                for number in 200..400 {
                    store.delete(&key(number)).await.version();
                    store.set(&key(number), b"short", Expiry::Never).await.version();
                }
                for number in 40..200 {
                    store.delete(&key(number)).await.version();
                }
                store.flush().await;
                store.until("all is merged", |metrics| metrics.table_entries == 200).await;
                for number in 40..200 {
                    store.set(&key(number), b"again", Expiry::Never).await.version();
                }
            }
        }
        store.close().await;
    });
}

#[test]
fn what_was_seen_expired_does_not_return_when_the_clock_jumps_back() {
    for shards in [1, 2] {
        let (world, env) = SimEnv::fresh(14);
        world.run(async {
            let store = Store::open(&env, shards).await;
            for number in 0..8 {
                store.set(&key(number), b"v", after(60 * SECOND)).await.version();
                store.set(&key(100 + number), b"v", after(HOUR)).await.version();
            }
            store.sleep(ms(60 * SECOND)).await;
            for number in 0..8 {
                assert_eq!(store.get(&key(number)).await, Answer::Absent);
            }
            world.jump_wall(-(10 * HOUR as i64));
            for number in 0..8 {
                expect_absent(&store, &key(number)).await;
                // What is set now lasts, and not for ten hours.
                store.set(&key(number), b"v", after(60 * SECOND)).await.version();
            }
            store.sleep(ms(55 * SECOND)).await;
            for number in 0..8 {
                assert!(matches!(store.get(&key(number)).await, Answer::Value(..)));
            }
            store.sleep(ms(66 * SECOND)).await;
            for number in 0..8 {
                assert_eq!(store.get(&key(number)).await, Answer::Absent, "at most twice its time");
                assert!(matches!(store.get(&key(100 + number)).await, Answer::Value(..)));
            }
            // Forward again, and beyond.
            world.jump_wall(12 * HOUR as i64);
            for number in 0..8 {
                assert_eq!(store.get(&key(100 + number)).await, Answer::Absent);
            }
            store.close().await;
        });
    }
}

#[test]
fn a_crash_and_its_replay_keep_expiries() {
    for seed in 0..20 {
        let (world, env) = SimEnv::fresh(seed);
        let (mut at, mut wall_ms) = (0, 0);
        world.run(async {
            let store = Store::open(&env, 2).await;
            at = env.wall_ms() + HOUR;
            for number in 0..20 {
                store.set(&key(number), b"v", Expiry::Set(Deadline::At(at))).await.version();
                if number % 2 == 0 {
                    store.persist(&key(number)).await.version();
                }
            }
            // Its replay must not ask what time it is: the crash comes after the hour.
            wall_ms = env.wall_ms();
        });
        let keep = [0, 50, 100][seed as usize % 3];
        let is_late = seed % 2 == 0;
        let (crashed, env_before) = (SimWorld::new(seed), env);
        let disk: SimDisk = env_before.disk().crash(&crashed, &mut fastrand::Rng::with_seed(seed), keep);
        let env = SimEnv::new(&crashed, disk);
        let ahead = wall_ms.saturating_sub(env.wall_ms()) + if is_late { HOUR } else { 0 };
        crashed.jump_wall(i64::try_from(ahead).unwrap());
        crashed.run(async {
            let store = Store::open(&env, 1 + seed as usize % 3).await;
            for number in 0..20 {
                if number % 2 == 0 {
                    assert_eq!(store.expires_at(&key(number)).await, 0, "seed {seed}");
                } else if is_late {
                    assert_eq!(store.get(&key(number)).await, Answer::Absent, "seed {seed}");
                } else {
                    assert_eq!(store.expires_at(&key(number)).await, at, "seed {seed}");
                }
            }
            store.close().await;
        });
    }
}
