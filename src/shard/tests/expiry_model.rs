//! Random requests with expiries against a model, while time passes and jumps, memtables are flushed, tables
//! merged, and the store closed, crashed and opened again with another number of shards. A failure names its
//! seed; `ATLASKV_EXPIRY_SEED=17 cargo test --lib expiry_model` repeats it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::store::{Answer, Store};
use crate::base::Lsn;
use crate::env::Env;
use crate::env::sim::{SimEnv, SimWorld};
use crate::error::Code;
use crate::protocol::binary::KeyList;
use crate::protocol::{Condition, Deadline, Durability, Expiry, Request};

const KEYS: usize = 24;
const SECOND: u64 = 1_000;
const HOUR: u64 = 3_600 * SECOND;
/// Longer than any request takes. No key that is asked for expires meanwhile, so that the model need not
/// know when exactly it was executed.
const MARGIN: u64 = 5 * SECOND;

#[derive(Clone, Debug)]
struct Live {
    value: Vec<u8>,
    version: Lsn,
    /// 0: never.
    expiry_ms: u64,
}

struct Run {
    seed: u64,
    rng: fastrand::Rng,
    keys: BTreeMap<usize, Live>,
    /// The latest time that any shard has seen.
    seen_ms: u64,
    expired: u64,
}

fn key(number: usize) -> Vec<u8> {
    format!("key-{number}").into_bytes()
}

impl Run {
    /// The key as it is now, and what time it is for its owner.
    async fn settle(&mut self, store: &Store, number: usize) -> (Option<Live>, u64) {
        let engine = &store.owner(&key(number)).engine;
        loop {
            let now_ms = engine.tick();
            self.seen_ms = self.seen_ms.max(now_ms);
            match self.keys.get(&number) {
                Some(live) if live.expiry_ms != 0 && live.expiry_ms <= now_ms => {
                    self.keys.remove(&number);
                    self.expired += 1;
                }
                Some(live) if live.expiry_ms != 0 && live.expiry_ms <= now_ms + MARGIN => {
                    store.sleep(Duration::from_secs(1)).await;
                }
                current => return (current.cloned(), now_ms),
            }
        }
    }

    fn deadline(&mut self, now_ms: u64) -> Deadline {
        let ms = [MARGIN * 2, 60 * SECOND, HOUR, 30 * HOUR][self.rng.usize(..4)];
        let ms = ms + self.rng.u64(..ms);
        match self.rng.u8(..8) {
            0 => Deadline::At(now_ms - self.rng.u64(..now_ms)),
            1..4 => Deadline::At(now_ms + ms),
            _ => Deadline::In(ms),
        }
    }

    fn condition(&mut self, current: Option<&Live>) -> Condition {
        match (self.rng.u8(..10), current) {
            (0, _) => Condition::IfPresent,
            (1, Some(live)) => Condition::IfVersion(live.version),
            (2, _) => Condition::IfVersion(Lsn(1 + self.rng.u64(..1 << 20))),
            _ => Condition::None,
        }
    }

    /// Notes a write. A time to live was made a time by the owner, when it executed it.
    async fn wrote(
        &mut self,
        store: &Store,
        number: usize,
        live: Live,
        began_ms: u64,
        deadline: Option<Deadline>,
    ) {
        let ended_ms = store.owner(&key(number)).engine.tick();
        assert!(ended_ms - began_ms < MARGIN, "seed {}: a request took {began_ms}..{ended_ms}", self.seed);
        let mut live = live;
        match deadline {
            Some(Deadline::At(at_ms)) => live.expiry_ms = at_ms,
            Some(Deadline::In(ttl_ms)) => {
                live.expiry_ms = store.expires_at(&key(number)).await;
                let range = began_ms + ttl_ms..=ended_ms + ttl_ms;
                assert!(range.contains(&live.expiry_ms), "seed {}: {live:?} not in {range:?}", self.seed);
            }
            None => {}
        }
        if live.expiry_ms != 0 && live.expiry_ms <= began_ms {
            self.keys.remove(&number);
            self.expired += 1;
        } else {
            self.keys.insert(number, live);
        }
    }

    async fn request(&mut self, store: &Store) {
        let number = self.rng.usize(..KEYS);
        let (current, now_ms) = self.settle(store, number).await;
        let (seed, bytes) = (self.seed, key(number));
        let key = &bytes[..];
        let durability = Durability::Default;
        let condition = self.condition(current.as_ref());
        let version = current.as_ref().map(|live| live.version);
        let unmet = (!condition.holds(version)).then_some(Answer::Unmet(version));
        match self.rng.u8(..20) {
            0..6 => {
                let value = match self.rng.bool() {
                    true => self.rng.u16(..).to_string().into_bytes(),
                    false => vec![b'v'; self.rng.usize(..3000)],
                };
                let condition = if self.rng.u8(..8) == 0 { Condition::IfAbsent } else { condition };
                let expiry = match self.rng.u8(..6) {
                    0 => Expiry::Never,
                    1 => Expiry::Keep,
                    _ => Expiry::Set(self.deadline(now_ms)),
                };
                let answer = store.set_if(key, &value, expiry, condition).await;
                if !condition.holds(version) {
                    assert_eq!(answer, Answer::Unmet(version), "seed {seed}: SET {number} {condition:?}");
                    return;
                }
                let version = answer.version();
                let kept_ms = current.map_or(0, |live| live.expiry_ms);
                let (expiry_ms, deadline) = match expiry {
                    Expiry::Never => (0, None),
                    Expiry::Keep => (kept_ms, None),
                    Expiry::Set(deadline) => (0, Some(deadline)),
                };
                self.wrote(store, number, Live { value, version, expiry_ms }, now_ms, deadline).await;
            }
            6 | 7 => {
                let answer = store.ask(&Request::Delete { key, condition, durability }).await;
                match unmet {
                    Some(unmet) => assert_eq!(answer, unmet, "seed {seed}: DELETE {number}"),
                    None if current.is_none() => assert_eq!(answer, Answer::Absent, "seed {seed}: {number}"),
                    None => {
                        answer.version();
                        self.keys.remove(&number);
                    }
                }
            }
            8 | 9 => {
                let text = current.as_ref().map_or(&b"0"[..], |live| &live.value);
                let sum = std::str::from_utf8(text).ok().and_then(|text| text.parse::<i64>().ok());
                let answer = store.incr(key, 3).await;
                let Some(sum) = sum else {
                    assert_eq!(answer, Answer::Refused(Code::NotAnInteger), "seed {seed}: INCR {number}");
                    return;
                };
                assert_eq!(answer, Answer::Sum(sum + 3), "seed {seed}: INCR {number}");
                let Answer::Value(value, version) = store.get(key).await else {
                    panic!("seed {seed}: {number}")
                };
                let expiry_ms = current.map_or(0, |live| live.expiry_ms);
                self.wrote(store, number, Live { value, version, expiry_ms }, now_ms, None).await;
            }
            10..13 => {
                let deadline = self.deadline(now_ms);
                let answer = store.ask(&Request::Expire { key, deadline, condition, durability }).await;
                match (unmet, current) {
                    (Some(unmet), _) => assert_eq!(answer, unmet, "seed {seed}: EXPIRE {number}"),
                    (None, None) => assert_eq!(answer, Answer::Absent, "seed {seed}: EXPIRE {number}"),
                    (None, Some(live)) => {
                        let version = answer.version();
                        assert!(version > live.version, "seed {seed}: EXPIRE {number}");
                        self.wrote(store, number, Live { version, ..live }, now_ms, Some(deadline)).await;
                    }
                }
            }
            13 => {
                let answer = store.ask(&Request::Persist { key, condition, durability }).await;
                match (unmet, current) {
                    (Some(unmet), _) => assert_eq!(answer, unmet, "seed {seed}: PERSIST {number}"),
                    (None, None) => assert_eq!(answer, Answer::Absent, "seed {seed}: PERSIST {number}"),
                    (None, Some(live)) => {
                        let version = answer.version();
                        assert_eq!(version == live.version, live.expiry_ms == 0, "seed {seed}: {number}");
                        let live = Live { version, expiry_ms: 0, ..live };
                        self.wrote(store, number, live, now_ms, None).await;
                    }
                }
            }
            _ => self.check(store, number).await,
        }
    }

    async fn check(&mut self, store: &Store, number: usize) {
        let (current, now_ms) = self.settle(store, number).await;
        let (seed, key) = (self.seed, key(number));
        let got = store.get(&key).await;
        let mut list = KeyList::default();
        list.push(&key);
        let mget = store.ask(&Request::Mget { keys: list.keys() }).await;
        let ttl = store.ttl(&key).await;
        match current {
            None => {
                assert_eq!((got, ttl), (Answer::Absent, Answer::Absent), "seed {seed}: {number} at {now_ms}");
                assert_eq!(mget, Answer::Values(vec![None]), "seed {seed}: {number}");
            }
            Some(live) => {
                let expected = Answer::Value(live.value.clone(), live.version);
                assert_eq!(got, expected, "seed {seed}: {number} at {now_ms}");
                assert_eq!(mget, Answer::Values(vec![Some(live.value)]), "seed {seed}: {number}");
                let Answer::Lifetime(lifetime) = ttl else { panic!("seed {seed}: {number}: {ttl:?}") };
                assert_eq!(lifetime.map_or(0, |l| l.expires_at_ms), live.expiry_ms, "seed {seed}: {number}");
                let left = lifetime.map_or(1, |lifetime| lifetime.remaining_ms);
                assert!((1..=60 * HOUR).contains(&left), "seed {seed}: {number}: {left}");
            }
        }
    }

    /// One life of a store: opened, used, and its end, of which the disk is left as it then is.
    async fn live(&mut self, world: &SimWorld, env: &SimEnv, shards: usize, is_closed: bool) {
        let store = Store::open(env, shards).await;
        for number in 0..KEYS {
            self.check(&store, number).await;
        }
        for _ in 0..self.rng.usize(20..150) {
            match self.rng.u8(..40) {
                0 => store.sleep(Duration::from_secs(self.rng.u64(..200))).await,
                1 => world.jump_wall(self.rng.i64(0..2 * HOUR as i64)),
                2 => world.jump_wall(-self.rng.i64(0..HOUR as i64)),
                3 | 4 => store.flush().await,
                _ => self.request(&store).await,
            }
        }
        for shard in &store.shards {
            self.seen_ms = self.seen_ms.max(shard.engine.tick());
        }
        if is_closed {
            store.close().await;
        }
    }
}

#[test]
fn keys_expire_as_the_model_says() {
    let seeds = match std::env::var("ATLASKV_EXPIRY_SEED") {
        Ok(seed) => {
            let first = seed.parse().expect("ATLASKV_EXPIRY_SEED is a number");
            first..first + 1
        }
        Err(_) => 0..16,
    };
    let mut reclaimed = 0;
    for seed in seeds {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut shape = rng.fork();
        let mut run = Run { seed, rng, keys: BTreeMap::new(), seen_ms: 0, expired: 0 };
        let (mut world, mut env) = SimEnv::fresh(seed);
        for _ in 0..shape.usize(2..6) {
            let is_closed = shape.bool();
            let shards = shape.usize(1..=3);
            world.run(run.live(&world, &env, shards, is_closed));
            world.kill();
            let next = SimWorld::new(shape.u64(..));
            let disk =
                env.disk().crash(&next, &mut shape.fork(), if is_closed { 100 } else { shape.u32(..=100) });
            (world, env) = (next.clone(), SimEnv::new(&next, disk));
            // The shard's time is kept in memory only: where the wall clock was set back before a restart,
            // keys may live a second time.
            let ahead = run.seen_ms.saturating_sub(env.wall_ms()) + shape.u64(..HOUR);
            world.jump_wall(i64::try_from(ahead).expect("a few days"));
        }
        reclaimed += run.expired;
    }
    assert!(reclaimed > 0, "nothing ever expired");
}
