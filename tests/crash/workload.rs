//! Clients that write until their server dies, and know afterwards what it may hold.

use std::net::SocketAddr;

use atlaskv::base::Lsn;
use atlaskv::client::{Batch, Client, Condition, Config, Error, Options, Outcome, Response, Versioned};

use crate::model::{Contended, Op, SharedCounter, Unit};

/// Units that are written often, so that versions pile up in one memtable and over tables.
const HOT: usize = 12;
/// Units that are written now and then, so that most of what they hold is in tables.
const COLD: usize = 700;
/// Units of several keys with one hash tag.
const TAGGED: usize = 60;
const TAGGED_KEYS: usize = 4;
/// Units that hold numbers, most of the time.
const NUMBERS: usize = 40;
/// Keys that all clients write.
pub const CONTENDED: usize = 6;
/// Numbers that all clients increment.
pub const COUNTERS: usize = 3;
/// Requests sent together at most.
const PIPELINE_MAX: usize = 24;
/// Keys asked for together when everything is compared.
const CHECK_AT_ONCE: usize = 256;

/// One client's own keys, and what it may find there.
pub struct Owned {
    name: usize,
    units: Vec<Unit>,
    /// Values written so far: each is a new one.
    written: u64,
}

/// What all clients write: each keeps a part of the record.
#[derive(Default)]
pub struct Shared {
    pub contended: Vec<Contended>,
    pub counters: Vec<SharedCounter>,
}

/// What went on in a round.
#[derive(Default)]
pub struct Tally {
    pub answered: u64,
    pub lost: u64,
}

/// A client that is not patient: the first broken connection ends its round.
pub fn connect(address: SocketAddr) -> Result<Client, Error> {
    Client::connect(Config { retries: 0, ..Config::new(&address.to_string()) })
}

pub fn contended_key(at: usize) -> Vec<u8> {
    format!("contended:{at}").into_bytes()
}

pub fn counter_key(at: usize) -> Vec<u8> {
    format!("counter:{at}").into_bytes()
}

impl Shared {
    pub fn new() -> Shared {
        Shared {
            contended: (0..CONTENDED).map(|_| Contended::default()).collect(),
            counters: (0..COUNTERS).map(|_| SharedCounter::default()).collect(),
        }
    }

    /// Adds what one client recorded.
    pub fn merge(&mut self, other: Shared) {
        self.contended.iter_mut().zip(other.contended).for_each(|(all, one)| all.merge(one));
        for (all, one) in self.counters.iter_mut().zip(other.counters) {
            all.sums.extend(one.sums);
            all.unknown += one.unknown;
        }
    }

    /// Compares all shared keys with what the server has.
    pub fn check(&mut self, client: &mut Client) -> Result<(), String> {
        let keys: Vec<_> = (0..CONTENDED).map(contended_key).chain((0..COUNTERS).map(counter_key)).collect();
        let found = client.mget(&keys).map_err(|error| error.to_string())?;
        for (at, all) in self.contended.iter_mut().enumerate() {
            all.check(found[at].as_ref()).map_err(|why| format!("contended key {at}: {why}"))?;
        }
        for (at, counter) in self.counters.iter_mut().enumerate() {
            counter.check(found[CONTENDED + at].as_ref()).map_err(|why| format!("counter {at}: {why}"))?;
        }
        Ok(())
    }
}

impl Owned {
    pub fn new(name: usize) -> Owned {
        let single = |kind: &'static str, count: usize| {
            (0..count).map(move |at| Unit::new(vec![format!("{name}:{kind}:{at}").into_bytes()]))
        };
        let tagged = (0..TAGGED).map(|at| {
            let key = |part| format!("{part}{{{name}:tag:{at}}}").into_bytes();
            Unit::new((0..TAGGED_KEYS).map(key).collect())
        });
        let units = single("hot", HOT).chain(single("number", NUMBERS)).chain(single("cold", COLD));
        Owned { name, units: units.chain(tagged).collect(), written: 0 }
    }

    /// Compares every key with what the server has.
    pub fn check(&mut self, client: &mut Client) -> Result<(), String> {
        let keys: Vec<&[u8]> =
            self.units.iter().flat_map(|unit| unit.keys.iter().map(Vec::as_slice)).collect();
        let mut found: Vec<Option<Versioned>> = Vec::with_capacity(keys.len());
        for some in keys.chunks(CHECK_AT_ONCE) {
            let mut pipeline = client.pipeline();
            some.iter().for_each(|key| {
                pipeline.get(key);
            });
            for answer in pipeline.run() {
                match answer {
                    Ok(Response::Value(value)) => found.push(value),
                    other => return Err(format!("a read was answered {other:?}")),
                }
            }
        }
        let mut found = &found[..];
        for unit in &mut self.units {
            let (own, rest) = found.split_at(unit.keys.len());
            unit.check(own).map_err(|why| {
                let keys: Vec<_> = unit.keys.iter().map(|key| String::from_utf8_lossy(key)).collect();
                format!("{keys:?}: {why}")
            })?;
            found = rest;
        }
        Ok(())
    }

    /// Writes until the server is gone. `Err` is an answer that was wrong.
    pub fn run(&mut self, client: &mut Client, rng: &mut fastrand::Rng) -> Result<(Shared, Tally), String> {
        let mut shared = Shared::new();
        let mut tally = Tally::default();
        let mut is_up = true;
        while is_up {
            is_up = match rng.u8(..10) {
                0..8 => self.run_owned(client, rng, &mut tally)?,
                8 => self.run_contended(client, rng, &mut shared, &mut tally)?,
                _ => run_counters(client, rng, &mut shared, &mut tally)?,
            };
        }
        Ok((shared, tally))
    }

    fn run_owned(
        &mut self,
        client: &mut Client,
        rng: &mut fastrand::Rng,
        tally: &mut Tally,
    ) -> Result<bool, String> {
        let mut sent: Vec<(usize, Op)> = Vec::new();
        for _ in 0..rng.usize(1..=PIPELINE_MAX) {
            let at = self.pick(rng);
            // Requests for one key keep their order; those for different keys need not.
            let is_tagged = self.units[at].keys.len() > 1;
            if is_tagged && sent.iter().any(|(other, _)| *other == at) {
                continue;
            }
            let op = self.invent(rng, at);
            sent.push((at, op));
        }
        let mut pipeline = client.pipeline();
        for (at, op) in &sent {
            let keys = &self.units[*at].keys;
            let with = |condition| Options { condition, ..Options::default() };
            match op {
                Op::Get(key) => pipeline.get(&keys[*key]),
                Op::Set(key, value, condition) => pipeline.set_with(&keys[*key], value, with(*condition)),
                Op::Delete(key, condition) => pipeline.delete_with(&keys[*key], with(*condition)),
                Op::Incr(key, amount) => pipeline.incr(&keys[*key], *amount),
                Op::Batch(ops) => {
                    let mut batch = Batch::new();
                    for (key, value) in ops {
                        let added = match value {
                            Some(value) => batch.put(&keys[*key], value),
                            None => batch.delete(&keys[*key]),
                        };
                        added.expect("keys of one slot");
                    }
                    pipeline.batch(&batch)
                }
            };
        }
        let mut is_up = true;
        for ((at, op), answer) in sent.iter().zip(pipeline.run()) {
            is_up &= tally.count(&answer);
            let unit = &mut self.units[*at];
            unit.take_in(op, &answer)
                .map_err(|why| format!("{:?}: {why}", String::from_utf8_lossy(&unit.keys[0])))?;
        }
        Ok(is_up)
    }

    fn pick(&self, rng: &mut fastrand::Rng) -> usize {
        match rng.u8(..10) {
            0..3 => rng.usize(..HOT),
            3 => HOT + rng.usize(..NUMBERS),
            4..8 => HOT + NUMBERS + rng.usize(..COLD),
            _ => HOT + NUMBERS + COLD + rng.usize(..TAGGED),
        }
    }

    /// A random operation on a unit.
    fn invent(&mut self, rng: &mut fastrand::Rng, at: usize) -> Op {
        let is_number = (HOT..HOT + NUMBERS).contains(&at);
        let key = rng.usize(..self.units[at].keys.len());
        let condition = self.condition(rng, at, key);
        if self.units[at].keys.len() > 1 && rng.u8(..4) > 0 {
            let count = rng.usize(1..=TAGGED_KEYS + 1);
            let op = |_| {
                let value = (rng.u8(..4) > 0).then(|| self.value(rng));
                (rng.usize(..TAGGED_KEYS), value)
            };
            return Op::Batch((0..count).map(op).collect());
        }
        match rng.u8(..20) {
            0..3 => Op::Get(key),
            3..6 => {
                Op::Delete(key, if condition == Condition::IfAbsent { Condition::None } else { condition })
            }
            6..18 if is_number => Op::Incr(key, rng.i64(-5..100)),
            18 if is_number => Op::Set(key, rng.i32(..).to_string().into_bytes(), condition),
            _ => Op::Set(key, self.value(rng), condition),
        }
    }

    fn condition(&self, rng: &mut fastrand::Rng, at: usize, key: usize) -> Condition {
        let known = self.units[at].last()[key].floor;
        match rng.u8(..10) {
            0 => Condition::IfAbsent,
            1 => Condition::IfPresent,
            2..4 if known > Lsn::ZERO => Condition::IfVersion(known),
            _ => Condition::None,
        }
    }

    /// A value that was never written before: most are small, a few as large as allowed.
    fn value(&mut self, rng: &mut fastrand::Rng) -> Vec<u8> {
        self.written += 1;
        let mut value = format!("v{}:{}:", self.name, self.written).into_bytes();
        let len = match rng.u8(..40) {
            0..28 => rng.usize(..200),
            28..39 => rng.usize(200..8000),
            _ => rng.usize(8000..(64 << 10) - 32),
        };
        value.resize(value.len() + len, b'a' + (self.written % 26) as u8);
        value
    }

    fn run_contended(
        &mut self,
        client: &mut Client,
        rng: &mut fastrand::Rng,
        shared: &mut Shared,
        tally: &mut Tally,
    ) -> Result<bool, String> {
        let at = rng.usize(..CONTENDED);
        let (key, all) = (contended_key(at), &mut shared.contended[at]);
        let found = client.get(&key);
        let Ok(found) = found else { return Ok(tally.count(&found)) };
        if let Some(found) = &found {
            // Nobody may be told what a crash can take back.
            all.known.push((found.version, Some(found.value.clone())));
        }
        let value = (rng.u8(..5) > 0).then(|| self.value(rng));
        let condition = match &found {
            Some(found) if rng.bool() => Condition::IfVersion(found.version),
            _ => Condition::None,
        };
        let options = Options { condition, ..Options::default() };
        let answer = match &value {
            Some(value) => client.set_with(&key, value, options),
            None => client.delete_with(&key, options),
        };
        let is_up = tally.count(&answer);
        match answer {
            Ok(Outcome::Written { version }) => {
                all.known.push((version, value));
                if let Condition::IfVersion(before) = condition {
                    all.swaps.push((before, version));
                }
            }
            Ok(Outcome::ConditionFailed { current }) if condition != Condition::None => {
                if current.is_some() && current == found.map(|found| found.version) {
                    return Err(format!("contended key {at}: a condition failed that held"));
                }
            }
            Ok(Outcome::Absent) if value.is_none() => {}
            Ok(other) => return Err(format!("contended key {at}: answered {other:?}")),
            Err(error) if error.may_be_applied() => all.unknown.push(value),
            Err(error) => check_not_refused(&error)?,
        }
        Ok(is_up)
    }
}

fn run_counters(
    client: &mut Client,
    rng: &mut fastrand::Rng,
    shared: &mut Shared,
    tally: &mut Tally,
) -> Result<bool, String> {
    let ats: Vec<usize> = (0..rng.usize(1..8)).map(|_| rng.usize(..COUNTERS)).collect();
    let mut pipeline = client.pipeline();
    ats.iter().for_each(|at| {
        pipeline.incr(&counter_key(*at), 1);
    });
    let mut is_up = true;
    for (at, answer) in ats.iter().zip(pipeline.run()) {
        is_up &= tally.count(&answer);
        match answer {
            Ok(Response::Counter(counter)) => shared.counters[*at].sums.push(counter.value),
            Ok(other) => return Err(format!("counter {at}: answered {other:?}")),
            Err(error) if error.may_be_applied() => shared.counters[*at].unknown += 1,
            Err(error) => check_not_refused(&error)?,
        }
    }
    Ok(is_up)
}

/// A server under no more than this load refuses nothing.
fn check_not_refused(error: &Error) -> Result<(), String> {
    match error {
        Error::Refused(refusal) => Err(format!("refused: {refusal}")),
        _ => Ok(()),
    }
}

impl Tally {
    /// Counts an answer; whether the server is still there.
    fn count<T>(&mut self, answer: &Result<T, Error>) -> bool {
        match answer {
            Ok(_) | Err(Error::Refused(_)) => {
                self.answered += 1;
                true
            }
            Err(error) => {
                self.lost += u64::from(error.may_be_applied());
                false
            }
        }
    }
}
