//! Clients that write until their server dies, and know afterwards what it may hold.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::RwLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use atlaskv::base::Lsn;
use atlaskv::client::{
    Batch, Client, Condition, Config, Deadline, Durability, Entry, Error, Expiry, KeyRange, Options, Outcome,
    Response, SetOptions,
};
use atlaskv::error::Code;

use crate::model::{Change, Contended, Op, PAST, Seen, SharedCounter, Stay, Unit};

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

/// Keys that expire do so this much later at the earliest: after the test.
const FAR_OFF: Duration = Duration::from_secs(86_400);

/// Removals of all keys in this round, and whether they were answered. Whoever removes them holds it for writing,
/// since what is written at the same time may be removed or not; whoever writes, for reading.
pub type Flushes = RwLock<Vec<bool>>;

/// Every key that a start found.
pub type Found = BTreeMap<Vec<u8>, Entry>;

/// One client's own keys, and what it may find there.
pub struct Owned {
    name: usize,
    units: Vec<Unit>,
    /// Values written so far: each is a new one.
    written: u64,
    /// Of the round's [`Flushes`], those that it knows of.
    flushes: usize,
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

/// All keys, in one scan.
pub fn find_all(client: &mut Client) -> Result<Found, String> {
    let mut found = Found::new();
    for entry in client.scan(KeyRange::all()) {
        let entry = entry.map_err(|error| format!("a scan: {error}"))?;
        found.insert(entry.key.clone(), entry);
    }
    Ok(found)
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
            all.may_be_removed |= one.may_be_removed;
        }
    }

    /// Takes in that all keys were removed, or perhaps were, if no answer has come.
    pub fn remove(&mut self, is_answered: bool) {
        self.contended.iter_mut().for_each(|all| all.remove(is_answered));
        for counter in &mut self.counters {
            match is_answered {
                true => *counter = SharedCounter::default(),
                false => counter.may_be_removed = true,
            }
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
        Owned { name, units: units.chain(tagged).collect(), written: 0, flushes: 0 }
    }

    /// Compares every key with what the server has, as a GET finds it and as a scan has `found_all`.
    pub fn check(&mut self, client: &mut Client, found_all: &Found) -> Result<(), String> {
        self.flushes = 0;
        let keys: Vec<&[u8]> =
            self.units.iter().flat_map(|unit| unit.keys.iter().map(Vec::as_slice)).collect();
        for some in keys.chunks(CHECK_AT_ONCE) {
            let mut pipeline = client.pipeline();
            some.iter().for_each(|key| {
                pipeline.get(key);
            });
            for (key, answer) in some.iter().zip(pipeline.run()) {
                let Ok(Response::Value(got)) = answer else {
                    return Err(format!("a read was answered {answer:?}"));
                };
                let scanned = found_all.get(*key).map(|entry| (&entry.value, entry.version));
                if got.as_ref().map(|got| (&got.value, got.version)) != scanned {
                    return Err(format!("{:?}: a GET and a scan differ", String::from_utf8_lossy(key)));
                }
            }
        }
        self.units.iter_mut().try_for_each(|unit| check_unit(unit, found_all))
    }

    /// Whether the key is one of its own.
    pub fn owns(&self, key: &[u8]) -> bool {
        self.units.iter().any(|unit| unit.keys.iter().any(|own| own == key))
    }

    /// Writes until the server is gone. `Err` is an answer that was wrong.
    pub fn run(
        &mut self,
        client: &mut Client,
        rng: &mut fastrand::Rng,
        flushes: &Flushes,
    ) -> Result<(Shared, Tally), String> {
        let mut shared = Shared::new();
        let mut tally = Tally::default();
        let mut is_up = true;
        while is_up {
            let flushes = flushes.read().expect("who writes it does not panic");
            self.take_in_flushes(&flushes, &mut shared);
            is_up = match rng.u8(..64) {
                0..48 => self.run_owned(client, rng, &mut tally)?,
                48..54 => self.run_contended(client, rng, &mut shared, &mut tally)?,
                54..60 => run_counters(client, rng, &mut shared, &mut tally)?,
                60..62 => self.run_mget(client, rng, &mut tally)?,
                62 => self.run_scan(client, rng, &mut tally)?,
                _ => self.run_delete_range(client, rng, &mut tally)?,
            };
        }
        self.take_in_flushes(&flushes.read().expect("who writes it does not panic"), &mut shared);
        Ok((shared, tally))
    }

    fn take_in_flushes(&mut self, flushes: &[bool], shared: &mut Shared) {
        for is_answered in &flushes[self.flushes..] {
            self.units.iter_mut().for_each(|unit| unit.remove(*is_answered));
            shared.remove(*is_answered);
        }
        self.flushes = flushes.len();
    }

    /// Reads many keys of all kinds at once.
    fn run_mget(
        &mut self,
        client: &mut Client,
        rng: &mut fastrand::Rng,
        tally: &mut Tally,
    ) -> Result<bool, String> {
        let ats: Vec<usize> = (0..rng.usize(1..60)).map(|_| self.pick(rng)).collect();
        let keys: Vec<&Vec<u8>> = ats.iter().flat_map(|at| &self.units[*at].keys).collect();
        let found = client.mget(&keys);
        let is_up = tally.count(&found);
        let Ok(found) = found else { return Ok(is_up) };
        let mut found = found.into_iter();
        for at in ats {
            for key in 0..self.units[at].keys.len() {
                let value = found.next().expect("one for each key");
                self.units[at].take_in(&Op::Get(key), &Ok(Response::Value(value)))?;
            }
        }
        Ok(is_up)
    }

    /// Reads all keys of one kind, in order or backwards.
    fn run_scan(
        &mut self,
        client: &mut Client,
        rng: &mut fastrand::Rng,
        tally: &mut Tally,
    ) -> Result<bool, String> {
        let prefix = self.prefix(rng);
        let scan = client.scan(KeyRange::prefix(&prefix)).page(rng.u32(..40), 0);
        let scan = if rng.bool() { scan.reverse() } else { scan };
        let mut found = Found::new();
        for entry in scan {
            if !tally.count(&entry) {
                return Ok(false);
            }
            let entry = entry.map_err(|error| format!("a scan was refused: {error}"))?;
            found.insert(entry.key.clone(), entry);
        }
        let own = self.units.iter_mut().filter(|unit| unit.keys[0].starts_with(&prefix));
        let mut known = 0;
        for unit in own {
            known += usize::from(found.contains_key(&unit.keys[0]));
            check_unit(unit, &found)?;
        }
        if known != found.len() {
            return Err(format!("a scan found {} keys, of which {known} are known", found.len()));
        }
        Ok(true)
    }

    /// Removes some of its keys with a range delete.
    fn run_delete_range(
        &mut self,
        client: &mut Client,
        rng: &mut fastrand::Rng,
        tally: &mut Tally,
    ) -> Result<bool, String> {
        let prefix = self.prefix(rng);
        let answer = client.delete_range(&KeyRange::prefix(&prefix));
        let is_up = tally.count(&answer);
        let is_answered = match &answer {
            Ok(()) => true,
            // A thousand ranges are the most, until merges have dropped some; nothing is done.
            Err(Error::Refused(refusal)) if refusal.code == Code::Overloaded => return Ok(true),
            Err(error) if error.may_be_applied() && !is_up => false,
            Err(error) => {
                check_not_refused(error)?;
                return Ok(is_up);
            }
        };
        let own = self.units.iter_mut().filter(|unit| unit.keys[0].starts_with(&prefix));
        own.for_each(|unit| unit.remove(is_answered));
        Ok(is_up)
    }

    /// What a part of its keys begins with, those with tags apart.
    fn prefix(&self, rng: &mut fastrand::Rng) -> Vec<u8> {
        let name = self.name;
        match rng.u8(..8) {
            0 => format!("{name}:hot:"),
            1 => format!("{name}:number:"),
            2 => format!("{name}:cold:"),
            _ => format!("{name}:cold:{}", rng.u8(1..10)),
        }
        .into_bytes()
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
            // The server's default is the same; asked for, it goes another way.
            let durability = if rng.u8(..4) == 0 { Durability::Always } else { Durability::Default };
            let with = |condition| Options { condition, durability };
            match op {
                Op::Get(key) => pipeline.get(&keys[*key]),
                Op::Ttl(key) => pipeline.ttl(&keys[*key]),
                Op::Set(key, value, condition, stay) => {
                    let expiry = match stay {
                        Stay::Forever => Expiry::Never,
                        Stay::Until(time) => Expiry::Set(Deadline::At(*time)),
                        Stay::AsBefore => Expiry::Keep,
                    };
                    let options = SetOptions { expiry, ..with(*condition).into() };
                    pipeline.set_with(&keys[*key], value, options)
                }
                Op::Delete(key, condition) => pipeline.delete_with(&keys[*key], with(*condition)),
                Op::Incr(key, amount) => pipeline.incr_with(&keys[*key], *amount, durability),
                Op::Expire(key, time, condition) => {
                    pipeline.expire_with(&keys[*key], Deadline::At(*time), with(*condition))
                }
                Op::Persist(key, condition) => pipeline.persist_with(&keys[*key], with(*condition)),
                Op::Batch(ops, check) => {
                    let mut batch = Batch::new();
                    for (key, change) in ops {
                        let added = match change {
                            Change::Put(value, expires) => {
                                let expiry =
                                    expires.map_or(Expiry::Never, |time| Expiry::Set(Deadline::At(time)));
                                batch.put_with(&keys[*key], value, expiry, Condition::None)
                            }
                            Change::Delete => batch.delete(&keys[*key]),
                        };
                        added.expect("keys of one slot");
                    }
                    if let Some((key, condition)) = check {
                        batch.check(&keys[*key], *condition).expect("keys of one slot");
                    }
                    pipeline.batch(batch.durability(durability))
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
                let change = match rng.u8(..4) {
                    0 => Change::Delete,
                    1 => Change::Put(self.value(rng), Some(far_off(rng))),
                    _ => Change::Put(self.value(rng), None),
                };
                (rng.usize(..TAGGED_KEYS), change)
            };
            let ops = (0..count).map(op).collect();
            return Op::Batch(ops, (condition != Condition::None).then_some((key, condition)));
        }
        // Nothing else than a SET may depend on a key's absence.
        let present = if condition == Condition::IfAbsent { Condition::None } else { condition };
        let stay = match rng.u8(..6) {
            0 => Stay::Until(far_off(rng)),
            1 => Stay::AsBefore,
            _ => Stay::Forever,
        };
        match rng.u8(..24) {
            0..3 => Op::Get(key),
            3..6 => Op::Delete(key, present),
            6 => Op::Ttl(key),
            7 => Op::Persist(key, present),
            8 if rng.u8(..4) == 0 => Op::Expire(key, PAST, present),
            8..10 => Op::Expire(key, far_off(rng), present),
            10..22 if is_number => Op::Incr(key, rng.i64(-5..100)),
            22 if is_number => Op::Set(key, rng.i32(..).to_string().into_bytes(), condition, stay),
            _ => Op::Set(key, self.value(rng), condition, stay),
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

/// Compares a unit's keys with what was found.
fn check_unit(unit: &mut Unit, found: &Found) -> Result<(), String> {
    let own: Vec<Option<Seen<'_>>> = unit.keys.iter().map(|key| found.get(key).map(Seen::from)).collect();
    unit.check(&own).map_err(|why| {
        let keys: Vec<_> = unit.keys.iter().map(|key| String::from_utf8_lossy(key)).collect();
        format!("{keys:?}: {why}")
    })
}

/// A time that no test lives to see.
fn far_off(rng: &mut fastrand::Rng) -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    (now + FAR_OFF).as_millis() as u64 + rng.u64(..1 << 36)
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
    pub fn count<T>(&mut self, answer: &Result<T, Error>) -> bool {
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
