//! Clients that ask for a few hot keys and many cold ones until their server is gone, and note what was asked
//! and answered, and when.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use atlaskv::base::Lsn;
use atlaskv::client::{Client, Condition, Error, Options, Outcome, Response, Versioned};

use crate::history::{Answer, Cond, NEVER, Op, Request};

const HOT: usize = 8;
const COLD: usize = 1500;
/// Requests sent together at most.
const PIPELINE_MAX: usize = 16;
/// Values are numbered so that each client has its own.
pub const CLIENTS_MAX: u64 = 64;
/// No value is longer. From 256 KiB on they are staged, and written and read in steps.
const LARGE_BYTES: usize = 400 << 10;

/// Names of all keys, the hot ones first.
pub fn keys() -> Arc<[Vec<u8>]> {
    let hot = (0..HOT).map(|at| format!("hot:{at}"));
    hot.chain((0..COLD).map(|at| format!("cold:{at}"))).map(String::into_bytes).collect()
}

/// A client's part of the record. It outlives servers, its connections don't.
pub struct Recorder {
    pub client: u16,
    keys: Arc<[Vec<u8>]>,
    /// When time began.
    clock: Instant,
    rng: fastrand::Rng,
    /// Values so far.
    written: u64,
    /// The last version of each key that this client was told; 0 if none, or if that is gone.
    known: Vec<u64>,
    /// What was done since it was taken, by key.
    pub ops: Vec<(u32, Op)>,
    /// How often which refusal came.
    pub refused: BTreeMap<&'static str, u64>,
}

impl Recorder {
    pub fn new(client: u16, keys: Arc<[Vec<u8>]>, clock: Instant, seed: u64) -> Recorder {
        assert!(u64::from(client) < CLIENTS_MAX);
        Recorder {
            client,
            clock,
            rng: fastrand::Rng::with_seed(seed ^ u64::from(client + 1) << 40),
            written: 0,
            known: vec![0; keys.len()],
            keys,
            ops: Vec::new(),
            refused: BTreeMap::new(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_nanos()).expect("centuries")
    }

    /// Asks until the server is gone. `Err` is an answer that no history explains.
    pub fn run(&mut self, client: &mut Client) -> Result<(), String> {
        loop {
            let is_up = match self.rng.u8(..10) {
                0..6 => self.one(client)?,
                6..9 => self.several(client)?,
                _ => {
                    let some: Vec<u32> = (0..self.rng.usize(2..10)).map(|_| self.pick()).collect();
                    self.look(client, &some)?
                }
            };
            if !is_up {
                return Ok(());
            }
        }
    }

    fn pick(&mut self) -> u32 {
        let at = if self.rng.u8(..10) < 7 { self.rng.usize(..HOT) } else { self.rng.usize(HOT..HOT + COLD) };
        at as u32
    }

    fn request(&mut self, key: u32) -> Request {
        let cond = match self.known[key as usize] {
            0 => Cond::IfAbsent,
            version => Cond::IfVersion(version),
        };
        self.written += 1;
        let value = self.written * CLIENTS_MAX + u64::from(self.client);
        match self.rng.u8(..100) {
            0..40 => Request::Get,
            40..65 => Request::Set(value, Cond::None),
            65..75 => Request::Delete(Cond::None),
            75..82 if cond != Cond::IfAbsent => Request::Delete(cond),
            75..95 => Request::Set(value, cond),
            _ => Request::Set(value, Cond::IfAbsent),
        }
    }

    /// One request and its answer.
    fn one(&mut self, client: &mut Client) -> Result<bool, String> {
        let key = self.pick();
        let request = self.request(key);
        let name = &self.keys[key as usize];
        let bytes = if let Request::Set(value, _) = request { encode(value) } else { Vec::new() };
        let call = self.now();
        let answer = match request {
            Request::Get => client.get(name).map(Response::Value),
            Request::Set(_, cond) => client.set_with(name, &bytes, options(cond)).map(Response::Outcome),
            Request::Delete(cond) => client.delete_with(name, options(cond)).map(Response::Outcome),
        };
        let end = self.now();
        self.note(key, call, end, request, answer)
    }

    /// Several requests that are sent together.
    fn several(&mut self, client: &mut Client) -> Result<bool, String> {
        let count = self.rng.usize(2..=PIPELINE_MAX);
        let mut sent = Vec::with_capacity(count);
        for _ in 0..count {
            let key = self.pick();
            sent.push((key, self.request(key)));
        }
        let mut pipeline = client.pipeline();
        for (key, request) in &sent {
            let name = &self.keys[*key as usize];
            match *request {
                Request::Get => pipeline.get(name),
                Request::Set(value, cond) => pipeline.set_with(name, &encode(value), options(cond)),
                Request::Delete(cond) => pipeline.delete_with(name, options(cond)),
            };
        }
        let call = self.now();
        let answers = pipeline.run();
        let end = self.now();
        let (mut is_up, first) = (true, self.ops.len());
        for ((key, request), answer) in sent.into_iter().zip(answers) {
            is_up &= self.note(key, call, end, request, answer)?;
        }
        check_order(&self.ops[first..])?;
        Ok(is_up)
    }

    /// Reads keys together: each by itself has its moment.
    pub fn look(&mut self, client: &mut Client, some: &[u32]) -> Result<bool, String> {
        let names: Vec<&[u8]> = some.iter().map(|key| &*self.keys[*key as usize]).collect();
        let call = self.now();
        let found = client.mget(&names);
        let end = self.now();
        let found = match found {
            Ok(found) => found,
            Err(error) => return Ok(self.is_refused(&error)),
        };
        for (key, found) in some.iter().zip(found) {
            self.note(*key, call, end, Request::Get, Ok(Response::Value(found)))?;
        }
        Ok(true)
    }

    /// Whether the server is there and refused, which is counted.
    fn is_refused(&mut self, error: &Error) -> bool {
        if let Some(refusal) = error.refusal() {
            *self.refused.entry(refusal.code.name()).or_default() += 1;
        }
        error.refusal().is_some()
    }

    /// Takes in an answer; whether the server is still there.
    fn note(
        &mut self,
        key: u32,
        call: u64,
        end: u64,
        request: Request,
        answer: Result<Response, Error>,
    ) -> Result<bool, String> {
        let mut push =
            |end, answer| self.ops.push((key, Op { client: self.client, call, end, request, answer }));
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                if request != Request::Get && error.may_be_applied() {
                    push(NEVER, Answer::Lost);
                }
                return Ok(self.is_refused(&error));
            }
        };
        let name = || String::from_utf8_lossy(&self.keys[key as usize]).into_owned();
        let answer = match answer {
            Response::Value(None) | Response::Outcome(Outcome::Absent) => Answer::Absent,
            Response::Value(Some(Versioned { value, version })) => {
                let value = decode(&value).ok_or_else(|| {
                    let head = String::from_utf8_lossy(&value[..value.len().min(60)]).into_owned();
                    format!("{}: {head:?}, {} bytes, is no value that anybody wrote", name(), value.len())
                })?;
                Answer::Found { value, version: version.0 }
            }
            Response::Outcome(Outcome::Written { version }) => Answer::Written(version.0),
            Response::Outcome(Outcome::ConditionFailed { current }) => {
                Answer::Failed(current.map(|version| version.0))
            }
            other => return Err(format!("{}: {request:?} was answered {other:?}", name())),
        };
        push(end, answer);
        self.known[key as usize] = match (request, answer) {
            (Request::Set(..), Answer::Written(version)) => version,
            (_, Answer::Found { version, .. } | Answer::Failed(Some(version))) => version,
            _ => 0,
        };
        Ok(true)
    }
}

/// Requests for one key that are sent together take effect in their order, which no times tell.
fn check_order(sent: &[(u32, Op)]) -> Result<(), String> {
    for (at, (key, op)) in sent.iter().enumerate() {
        let before = sent[..at].iter().filter(|(other, _)| other == key);
        let floor = before.filter_map(|(_, op)| op.version()).max().unwrap_or(0);
        let is_in_order = match op.answer {
            Answer::Written(version) => version > floor,
            _ => op.version().is_none_or(|version| version >= floor),
        };
        if !is_in_order {
            let all: Vec<_> =
                sent.iter().filter(|(other, _)| other == key).map(|(_, op)| op.to_string()).collect();
            return Err(format!("sent together, and not done in that order:\n{}", all.join("\n")));
        }
    }
    Ok(())
}

fn options(cond: Cond) -> Options {
    let condition = match cond {
        Cond::None => Condition::None,
        Cond::IfAbsent => Condition::IfAbsent,
        Cond::IfVersion(version) => Condition::IfVersion(Lsn(version)),
    };
    Options { condition, ..Options::default() }
}

/// The bytes of a value: all of them follow from its number, so that a value of which a part is another's is
/// none. Most are short, a few are large.
fn encode(value: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(value);
    let len = match rng.u16(..1000) {
        0..700 => rng.usize(..100),
        700..998 => rng.usize(100..4000),
        _ => rng.usize(LARGE_BYTES / 2..LARGE_BYTES),
    };
    let mut bytes = format!("v{value}:").into_bytes();
    let fill = u8::try_from(value % 251).expect("small");
    bytes.resize(bytes.len() + len, fill);
    bytes
}

fn decode(bytes: &[u8]) -> Option<u64> {
    let end = bytes.iter().position(|byte| *byte == b':')?;
    let value = std::str::from_utf8(bytes.get(1..end)?).ok()?.parse().ok()?;
    (encode(value) == bytes).then_some(value)
}

#[test]
fn values_come_back_and_mixtures_are_none() {
    let values: Vec<u64> = (0..3000).collect();
    assert!(values.iter().all(|value| decode(&encode(*value)) == Some(*value)));
    assert!(values.iter().any(|value| encode(*value).len() > 256 << 10), "some are staged");
    let mut mixed = encode(values.iter().copied().find(|value| encode(*value).len() > 1000).expect("one"));
    mixed[900] ^= 1;
    assert_eq!(decode(&mixed), None);
    assert_eq!(decode(b""), None);
}

#[test]
fn what_is_sent_together_is_done_in_order() {
    let op = |answer| {
        let request =
            if matches!(answer, Answer::Written(_)) { Request::Set(1, Cond::None) } else { Request::Get };
        (7, Op { client: 0, call: 1, end: 2, request, answer })
    };
    let found = |version| op(Answer::Found { value: 1, version });
    let good = [found(3), op(Answer::Written(4)), found(4), op(Answer::Absent), op(Answer::Written(9))];
    assert_eq!(check_order(&good), Ok(()));
    assert!(check_order(&[op(Answer::Written(4)), found(3)]).is_err());
    assert!(check_order(&[op(Answer::Written(4)), op(Answer::Written(4))]).is_err());
}
