//! What the store must hold and answer: a map of keys to values, versions and times of expiry.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use atlaskv::base::Lsn;
use atlaskv::error::Code;
use atlaskv::protocol::{Condition, Deadline, Expiry};

use crate::keys::Key;
use crate::store::Answer;

/// Longer than a pipeline takes. No key expires during one, so that it does not matter when exactly a request of
/// it is executed.
pub const MARGIN_MS: u64 = 5_000;

/// When something is or was, in milliseconds since the epoch: from the first to the second, inclusive.
pub type Span = (u64, u64);

/// A key that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Live {
    pub value: Rc<[u8]>,
    /// Zero: of a write that was not answered.
    pub version: Lsn,
    /// When it expires. A span until the store has said what it made of a time to live; zeros: never.
    pub expiry: Span,
}

impl Live {
    /// Whether this is what the store has.
    pub fn is(&self, version: Lsn, expiry_ms: u64, value: Option<&[u8]>) -> bool {
        (self.version == Lsn::ZERO || self.version == version)
            && (self.expiry.0..=self.expiry.1).contains(&expiry_ms)
            && value.is_none_or(|value| *value == *self.value)
    }

    pub fn is_past(&self, now_ms: u64) -> bool {
        self.expiry.1 != 0 && self.expiry.1 <= now_ms
    }
}

/// A request.
#[derive(Clone, Debug)]
pub enum Op {
    Get(Key),
    Ttl(Key),
    Set {
        key: Key,
        value: Rc<[u8]>,
        expiry: Expiry,
        condition: Condition,
    },
    Delete {
        key: Key,
        condition: Condition,
    },
    Incr {
        key: Key,
        amount: i64,
    },
    Expire {
        key: Key,
        deadline: Deadline,
        condition: Condition,
    },
    Persist {
        key: Key,
        condition: Condition,
    },
    Mget(Vec<Key>),
    Batch(Vec<Item>),
    /// Both bounds are empty: all keys.
    DeleteRange {
        start: Vec<u8>,
        end: Vec<u8>,
    },
    Page(crate::scans::Ask),
}

/// An item of a batch.
#[derive(Clone, Debug)]
pub struct Item {
    pub key: Key,
    pub condition: Condition,
    pub act: Act,
}

/// What an item does.
#[derive(Clone, Debug)]
pub enum Act {
    Put(Rc<[u8]>, Expiry),
    Delete,
    Expire(Deadline),
    Persist,
    Check,
}

impl Act {
    pub fn is_write(&self) -> bool {
        !matches!(self, Act::Check)
    }

    pub fn value(&self) -> Option<&Rc<[u8]>> {
        match self {
            Act::Put(value, _) => Some(value),
            _ => None,
        }
    }
}

impl Op {
    /// The keys that it names.
    pub fn keys(&self) -> Vec<&Key> {
        match self {
            Op::Get(key) | Op::Ttl(key) => vec![key],
            Op::Set { key, .. } | Op::Delete { key, .. } | Op::Incr { key, .. } => vec![key],
            Op::Expire { key, .. } | Op::Persist { key, .. } => vec![key],
            Op::Mget(keys) => keys.iter().collect(),
            Op::Batch(items) => items.iter().map(|item| &item.key).collect(),
            Op::Page(_) | Op::DeleteRange { .. } => Vec::new(),
        }
    }

    /// Whether it may concern a key.
    pub fn is_about(&self, key: &Key) -> bool {
        match self {
            Op::DeleteRange { start, end } => **key >= start[..] && (end.is_empty() || **key < end[..]),
            _ => self.keys().contains(&key),
        }
    }
}

/// What a request of one key must be answered, but for versions that only the store knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Exactly this.
    Exactly(Answer),
    /// With a new version.
    Written,
    /// With a new version and this sum.
    Sum(i64),
    /// This version, and a time in the span.
    Lifetime(Lsn, Span),
}

/// What becomes of the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    Same,
    Gone,
    Put(Rc<[u8]>, Span),
}

/// A decimal number as the store takes it.
fn number(value: &[u8]) -> Option<i64> {
    let number: i64 = std::str::from_utf8(value).ok()?.parse().ok()?;
    (number.to_string().as_bytes() == value).then_some(number)
}

/// When a deadline is, if the request is executed within `now`.
fn span(deadline: Deadline, now: Span) -> Span {
    match deadline {
        Deadline::At(at_ms) => (at_ms, at_ms),
        Deadline::In(ttl_ms) => (now.0 + ttl_ms, now.1 + ttl_ms),
    }
}

/// A value that is stored until then: it is gone at once if that is past.
fn put(value: &Rc<[u8]>, expiry: Span, now: Span) -> Next {
    if expiry.1 != 0 && expiry.1 <= now.0 { Next::Gone } else { Next::Put(value.clone(), expiry) }
}

/// What a SET makes of an expiry.
fn expires(expiry: Expiry, current: Option<&Live>, now: Span) -> Span {
    match expiry {
        Expiry::Never => (0, 0),
        Expiry::Keep => current.map_or((0, 0), |live| live.expiry),
        Expiry::Set(deadline) => span(deadline, now),
    }
}

/// What an item of a batch makes of its key.
pub fn after(act: &Act, current: Option<&Live>, now: Span) -> Next {
    match (act, current) {
        (Act::Put(value, expiry), _) => put(value, expires(*expiry, current, now), now),
        (Act::Expire(deadline), Some(live)) => put(&live.value, span(*deadline, now), now),
        (Act::Persist, Some(live)) => Next::Put(live.value.clone(), (0, 0)),
        (Act::Delete, _) | (Act::Expire(_) | Act::Persist, None) => Next::Gone,
        (Act::Check, _) => Next::Same,
    }
}

/// What a request of one key does and is answered.
pub fn outcome(op: &Op, current: Option<&Live>, now: Span) -> (Expected, Next) {
    let version = current.map(|live| live.version);
    let same = |answer| (Expected::Exactly(answer), Next::Same);
    match op {
        Op::Get(_) => same(match current {
            Some(live) => Answer::Value(live.version, live.value.to_vec()),
            None => Answer::Absent,
        }),
        Op::Ttl(_) => match current {
            Some(live) => (Expected::Lifetime(live.version, live.expiry), Next::Same),
            None => same(Answer::Absent),
        },
        Op::Set { condition, .. } | Op::Delete { condition, .. } if !condition.holds(version) => {
            same(Answer::Unmet(version))
        }
        Op::Expire { condition, .. } | Op::Persist { condition, .. } if !condition.holds(version) => {
            same(Answer::Unmet(version))
        }
        Op::Set { value, expiry, .. } => (Expected::Written, put(value, expires(*expiry, current, now), now)),
        Op::Incr { amount, .. } => {
            let Some(before) = current.map_or(Some(0), |live| number(&live.value)) else {
                return same(Answer::Refused(Code::NotAnInteger, String::new()));
            };
            let Some(sum) = before.checked_add(*amount) else {
                return same(Answer::Refused(Code::IncrementOverflow, String::new()));
            };
            let expiry = current.map_or((0, 0), |live| live.expiry);
            (Expected::Sum(sum), Next::Put(sum.to_string().into_bytes().into(), expiry))
        }
        Op::Delete { .. } | Op::Expire { .. } | Op::Persist { .. } => {
            let Some(live) = current else { return same(Answer::Absent) };
            match op {
                Op::Delete { .. } => (Expected::Written, Next::Gone),
                Op::Expire { deadline, .. } => {
                    (Expected::Written, put(&live.value, span(*deadline, now), now))
                }
                _ if live.expiry == (0, 0) => same(Answer::Written(live.version)),
                _ => (Expected::Written, Next::Put(live.value.clone(), (0, 0))),
            }
        }
        Op::Mget(_) | Op::Batch(_) | Op::Page(_) | Op::DeleteRange { .. } => {
            unreachable!("these are not about one key")
        }
    }
}

/// Whether an answer is the expected one. A new version comes with it.
pub fn compare(expected: &Expected, answer: &Answer) -> Result<Option<Lsn>, ()> {
    match (expected, answer) {
        (Expected::Exactly(Answer::Refused(code, _)), Answer::Refused(found, _)) if code == found => Ok(None),
        (Expected::Exactly(expected), found) if expected == found => Ok(None),
        (Expected::Written, Answer::Written(version)) => Ok(Some(*version)),
        (Expected::Sum(sum), Answer::Sum(version, found)) if sum == found => Ok(Some(*version)),
        (Expected::Lifetime(version, span), Answer::Lifetime(found, expiry_ms))
            if version == found && (span.0..=span.1).contains(expiry_ms) =>
        {
            Ok(None)
        }
        _ => Err(()),
    }
}

/// The map.
#[derive(Default)]
pub struct Reference {
    pub live: BTreeMap<Key, Live>,
    /// The highest version that was ever shown of a key.
    highest: HashMap<Key, Lsn>,
    deadlines: BTreeSet<(u64, Key)>,
}

impl Reference {
    pub fn set(&mut self, key: &Key, live: Option<Live>) {
        let deadline = |live: &Live| (live.expiry.1 != 0).then_some((live.expiry.1, key.clone()));
        if let Some(at) = live.as_ref().and_then(deadline) {
            self.deadlines.insert(at);
        }
        let kept = live.as_ref().and_then(deadline);
        let before = match live {
            Some(live) => self.live.insert(key.clone(), live),
            None => self.live.remove(key),
        };
        if let Some(at) = before.as_ref().and_then(deadline).filter(|at| Some(at) != kept.as_ref()) {
            self.deadlines.remove(&at);
        }
    }

    /// Notes a version that was given to a write of a key: it is new, and above all before.
    pub fn note(&mut self, key: &Key, version: Lsn) -> Result<(), String> {
        let highest = self.highest.entry(key.clone()).or_default();
        if version <= *highest {
            return Err(format!("version {version} is not above {highest}, which the key had"));
        }
        *highest = version;
        Ok(())
    }

    /// Lets what has expired go, by clocks that are somewhere in `now`. `Err`: when the next one does, if that is too
    /// soon for a pipeline.
    pub fn settle(&mut self, now: Span) -> Result<u64, u64> {
        let mut expired = 0;
        while let Some((at_ms, key)) = self.deadlines.first().cloned() {
            if at_ms > now.0 {
                // The start of a span comes no more than a pipeline before its end.
                return if at_ms <= now.1 + 2 * MARGIN_MS { Err(at_ms) } else { Ok(expired) };
            }
            self.deadlines.pop_first();
            self.live.remove(&key);
            expired += 1;
        }
        Ok(expired)
    }

    /// Keys whose time of expiry is not known exactly.
    pub fn vague(&self, keys: impl Iterator<Item = Key>) -> Vec<Key> {
        let mut vague: Vec<Key> = keys
            .filter(|key| self.live.get(key).is_some_and(|live| live.expiry.0 != live.expiry.1))
            .collect();
        vague.sort();
        vague.dedup();
        vague
    }
}
