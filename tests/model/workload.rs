//! Random requests. What they are depends on the seed and on what the reference holds, never on the store.

use std::rc::Rc;

use atlaskv::base::Lsn;
use atlaskv::protocol::{Condition, Deadline, Expiry};

use crate::keys::{Key, Pool};
use crate::reference::{MARGIN_MS, Op, Reference};

const SECOND_MS: u64 = 1000;
const HOUR_MS: u64 = 3_600_000;

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
    fn deadline(&mut self, now_ms: u64) -> Deadline {
        let ms = [3 * MARGIN_MS, 60 * SECOND_MS, HOUR_MS, 30 * HOUR_MS][self.rng.usize(..4)];
        let ms = ms + self.rng.u64(..ms);
        match self.rng.u8(..8) {
            0 => Deadline::At(now_ms - self.rng.u64(..now_ms)),
            1..4 => Deadline::At(now_ms + ms),
            _ => Deadline::In(ms),
        }
    }

    fn expiry(&mut self, now_ms: u64) -> Expiry {
        match self.rng.u8(..10) {
            0..6 => Expiry::Never,
            6 | 7 => Expiry::Keep,
            _ => Expiry::Set(self.deadline(now_ms)),
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

    fn batch(&mut self) -> Op {
        let keys = self.pool.pick_group(&mut self.rng);
        let mut bytes = 0;
        let mut ops = Vec::new();
        for key in keys {
            let value = (self.rng.u8(..4) > 0).then(|| self.value());
            bytes += key.len() + value.as_ref().map_or(0, |value| value.len()) + 64;
            // An entry of the log takes so much, whatever the log.
            if bytes <= self.value_bytes_max.max(4096) || ops.is_empty() {
                ops.push((key, value));
            }
        }
        Op::Batch(ops)
    }

    /// The next request.
    pub fn op(&mut self, reference: &Reference, now_ms: u64) -> Op {
        if self.left == 0 {
            self.left = self.rng.u32(200..5000);
            self.value_bytes = [20, 120, 120, 600][self.rng.usize(..4)];
            self.reads = [10, 40, 80][self.rng.usize(..3)];
            self.deletes = [3, 10, 40][self.rng.usize(..3)];
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
            0 | 1 => self.batch(),
            2 | 3 => {
                let amount = if self.rng.u8(..20) == 0 { self.rng.i64(..) } else { self.rng.i64(-5..100) };
                Op::Incr { key, amount }
            }
            4 | 5 => {
                let (deadline, condition) = (self.deadline(now_ms), self.condition(&key, reference, false));
                Op::Expire { key, deadline, condition }
            }
            6 => {
                let condition = self.condition(&key, reference, false);
                Op::Persist { key, condition }
            }
            n => {
                let value = if n == 7 { self.number() } else { self.value() };
                let condition = self.condition(&key, reference, true);
                Op::Set { value, expiry: self.expiry(now_ms), condition, key }
            }
        }
    }
}
