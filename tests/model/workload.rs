//! Random requests. What they are depends on the seed and on what the reference holds, never on the store.

use std::rc::Rc;

use atlaskv::base::Lsn;
use atlaskv::protocol::{Condition, Deadline, Expiry};

use crate::keys::{Key, Pool};
use crate::reference::{Act, Item, MARGIN_MS, Op, Reference, Span};

const SECOND_MS: u64 = 1000;
const HOUR_MS: u64 = 3_600_000;
/// About.
const WRITES_OF_TURN: usize = 3;

/// Makes requests.
pub struct Workload {
    pub rng: fastrand::Rng,
    pub pool: Pool,
    /// Values so far, so that no two of them are equal.
    values: u64,
    /// Most bytes of a value.
    pub value_bytes_max: usize,
    /// Usual bytes of a value.
    value_bytes: usize,
    /// In percent, of all requests.
    reads: u8,
    deletes: u8,
    left: u32,
}

impl Workload {
    pub fn new(rng: fastrand::Rng, pool: Pool, value_bytes_max: usize) -> Workload {
        Workload { rng, pool, values: 0, value_bytes_max, value_bytes: 0, reads: 0, deletes: 0, left: 0 }
    }

    fn choose(&mut self, habits: &mut fastrand::Rng) {
        self.value_bytes = [20, 120, 120, 600][habits.usize(..4)];
        self.reads = [10, 40, 80][habits.usize(..3)];
        self.deletes = [3, 10, 40][habits.usize(..3)];
    }

    /// Begins anew, so that nothing that comes depends on requests before. With the same habits `turns` turns came
    /// before it.
    pub fn renew(&mut self, rng: fastrand::Rng, mut habits: fastrand::Rng, turns: u32) {
        self.rng = rng;
        // As unlikely to be equal as counted ones of a few bytes.
        self.values = self.rng.u64(..1 << 62);
        self.left = u32::MAX;
        self.choose(&mut habits);
        self.pool.settle_on(&mut habits, turns as usize * WRITES_OF_TURN);
    }

    /// One in a thousand is large, one in forty larger than usual.
    fn value(&mut self) -> Rc<[u8]> {
        self.values += 1;
        let rng = &mut self.rng;
        let len = match rng.u32(..2000) {
            0 => rng.usize(..=self.value_bytes_max),
            1..50 => rng.usize(..=self.value_bytes_max.min(9000)),
            50..150 => rng.usize(..4),
            _ => rng.usize(..=self.value_bytes),
        };
        let mut value = self.values.to_le_bytes().to_vec();
        let filler = rng.u64(..).to_le_bytes();
        value.resize(len, filler[0]);
        if rng.bool() {
            // What no codec shrinks.
            let mut state = u64::from_le_bytes(filler) | 1;
            for chunk in value.iter_mut().skip(8) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                *chunk = (state >> 56) as u8;
            }
        }
        value.into()
    }

    fn number(&mut self) -> Rc<[u8]> {
        let number = match self.rng.u8(..8) {
            0 => i64::MAX - self.rng.i64(0..3),
            1 => i64::MIN + self.rng.i64(0..3),
            _ => self.rng.i64(-1000..1000),
        };
        number.to_string().into_bytes().into()
    }

    /// A time that is past, or far enough ahead of the end of the pipeline.
    fn deadline(&mut self, now: Span) -> Deadline {
        let ms = [3 * MARGIN_MS, 60 * SECOND_MS, HOUR_MS, 30 * HOUR_MS][self.rng.usize(..4)];
        let ms = ms + self.rng.u64(..ms);
        match self.rng.u8(..8) {
            0 => Deadline::At(now.0 - self.rng.u64(..now.0)),
            1..4 => Deadline::At(now.1 + ms),
            _ => Deadline::In(ms),
        }
    }

    fn expiry(&mut self, now: Span) -> Expiry {
        match self.rng.u8(..10) {
            0..6 => Expiry::Never,
            6 | 7 => Expiry::Keep,
            _ => Expiry::Set(self.deadline(now)),
        }
    }

    /// A condition on a key as it was before the pipeline.
    fn condition(&mut self, key: &Key, reference: &Reference, may_be_absent: bool) -> Condition {
        let version = reference.live.get(key).map(|live| live.version);
        match (self.rng.u8(..16), version) {
            (0, _) => Condition::IfPresent,
            (1, _) if may_be_absent => Condition::IfAbsent,
            (2, Some(version)) => Condition::IfVersion(version),
            // One that it had before, or that no key ever has.
            (3, Some(version)) if version.0 > 1 => Condition::IfVersion(Lsn(version.0 - 1)),
            (3, _) => Condition::IfVersion(Lsn(u64::MAX >> 1)),
            _ => Condition::None,
        }
    }

    /// What a batch does to a key, mostly under conditions that hold, or there would be little else than refusals.
    fn item(&mut self, key: Key, reference: &Reference, now: Span, is_plain: bool) -> Item {
        let act = match self.rng.u8(..16) {
            0..4 => Act::Delete,
            4 | 5 if !is_plain => Act::Expire(self.deadline(now)),
            6 if !is_plain => Act::Persist,
            7 if !is_plain => Act::Check,
            _ if is_plain => Act::Put(self.value(), Expiry::Never),
            _ => Act::Put(self.value(), self.expiry(now)),
        };
        let current = reference.live.get(&key).map(|live| live.version);
        let may_be_absent = matches!(act, Act::Put(..) | Act::Check);
        let condition = match (self.rng.u8(..12), current) {
            (0, _) if !is_plain => self.condition(&key, reference, may_be_absent),
            (1 | 2, Some(version)) if !is_plain => Condition::IfVersion(version),
            (3, Some(_)) if !is_plain => Condition::IfPresent,
            (1..4, None) if !is_plain && may_be_absent => Condition::IfAbsent,
            _ => Condition::None,
        };
        let condition = match (&act, condition) {
            (Act::Check, Condition::None) => current.map_or(Condition::IfAbsent, Condition::IfVersion),
            _ => condition,
        };
        Item { key, condition, act }
    }

    fn batch(&mut self, reference: &Reference, now: Span) -> Op {
        let keys = self.pool.pick_group(&mut self.rng);
        let is_plain = self.rng.bool();
        let mut bytes = 0;
        let mut items: Vec<Item> = Vec::new();
        for key in keys {
            let item = self.item(key, reference, now, is_plain);
            bytes += item.key.len() + item.act.value().map_or(0, |value| value.len()) + 64;
            if bytes <= self.batch_bytes() || items.is_empty() {
                items.push(item);
            }
        }
        if items.iter().all(|item| !item.act.is_write()) {
            items[0].act = Act::Put(self.number(), Expiry::Never);
        }
        Op::Batch(items)
    }

    /// An entry of the log takes so much, whatever the log.
    pub fn batch_bytes(&self) -> usize {
        self.value_bytes_max.max(4096)
    }

    /// Removes some keys that are neighbours, mostly few of them: so that there are others left.
    pub fn range(&mut self) -> Op {
        let rng = &mut self.rng;
        let (mut start, mut end) = (Vec::new(), Vec::new());
        match rng.u8(..40) {
            0 => {}
            1..4 => (start, end) = (self.pool.bound(rng), self.pool.bound(rng)),
            4..8 => {
                let mut prefix = self.pool.bound(rng);
                prefix.truncate(1 + rng.usize(..4));
                (start, end) = (prefix.clone(), crate::scans::prefix_end(prefix));
            }
            _ => {
                let first = rng.usize(..self.pool.keys.len());
                let last = (first + rng.usize(1..10)).min(self.pool.keys.len() - 1);
                start = self.pool.keys[first].to_vec();
                end = self.pool.keys[last].to_vec();
                if rng.bool() {
                    end.push(0);
                }
            }
        }
        let longest = atlaskv::base::KEY_BYTES_MAX;
        start.truncate(longest);
        end.truncate(longest);
        if start >= end && !end.is_empty() {
            // From one on, or up to it, is much: rather one key.
            end = start.clone();
            end.truncate(longest - 1);
            end.push(0);
            start.truncate(longest - 1);
        }
        Op::DeleteRange { start, end }
    }

    /// The next request.
    pub fn op(&mut self, reference: &Reference, now: Span) -> Op {
        if self.left == 0 {
            self.left = self.rng.u32(200..5000);
            let mut habits = self.rng.fork();
            self.choose(&mut habits);
        }
        self.left -= 1;
        if self.rng.u8(..100) < self.reads {
            let key = self.pool.pick(&mut self.rng, false);
            return match self.rng.u8(..12) {
                0 => Op::Ttl(key),
                1 => {
                    let more = (0..self.rng.usize(..8)).map(|_| self.pool.pick(&mut self.rng, false));
                    Op::Mget(std::iter::once(key).chain(more).collect())
                }
                _ => Op::Get(key),
            };
        }
        if self.rng.u8(..100) < self.deletes {
            let key = self.pool.pick(&mut self.rng, false);
            let condition = self.condition(&key, reference, false);
            return Op::Delete { key, condition };
        }
        let key = self.pool.pick(&mut self.rng, true);
        match self.rng.u8(..20) {
            0 | 1 => self.batch(reference, now),
            2 | 3 => {
                let amount = if self.rng.u8(..20) == 0 { self.rng.i64(..) } else { self.rng.i64(-5..100) };
                Op::Incr { key, amount }
            }
            4 | 5 => {
                let (deadline, condition) = (self.deadline(now), self.condition(&key, reference, false));
                Op::Expire { key, deadline, condition }
            }
            6 => {
                let condition = self.condition(&key, reference, false);
                Op::Persist { key, condition }
            }
            n => {
                let value = if n == 7 { self.number() } else { self.value() };
                let condition = self.condition(&key, reference, true);
                Op::Set { value, expiry: self.expiry(now), condition, key }
            }
        }
    }
}
