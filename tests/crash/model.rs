//! What the store may hold, from what it has answered.
//!
//! A [`Unit`] is a key, or a few keys of one slot, that a single client writes one operation after another.
//! Its `chain` lists the states that are admissible: the one that the last answered operation left, then
//! one for each later operation whose answer was lost. A crash may have kept any of them, and nothing else:
//! no earlier one (a lost write), no mixture (half a batch), nothing that was never there.

use std::fmt;

use atlaskv::base::Lsn;
use atlaskv::client::{Condition, Entry, Error, Outcome, Response, Versioned};
use atlaskv::error::Code;

/// What is known of an entry's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// The server told.
    Exactly(Lsn),
    /// The write's answer was lost; it is greater than what the key had before.
    Above(Lsn),
}

/// What is known of a key.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyState {
    /// Its value, if it is there.
    pub entry: Option<(Vec<u8>, Version)>,
    /// When it expires, in milliseconds since the epoch, if it is there and does: far off, or past.
    pub expires: Option<u64>,
    /// The highest version that it is known to have had, deletes included.
    pub floor: Lsn,
}

/// How long what is put stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stay {
    Forever,
    Until(u64),
    AsBefore,
}

/// An operation on the keys of a unit, named by their place in it.
#[derive(Clone, Debug)]
pub enum Op {
    Get(usize),
    Ttl(usize),
    Set(usize, Vec<u8>, Condition, Stay),
    Delete(usize, Condition),
    Incr(usize, i64),
    /// At that time; [`PAST`] removes it.
    Expire(usize, u64, Condition),
    Persist(usize, Condition),
    Batch(Vec<(usize, Change)>, Option<(usize, Condition)>),
}

/// What an item of a batch does.
#[derive(Clone, Debug)]
pub enum Change {
    Put(Vec<u8>, Option<u64>),
    Delete,
}

/// A time that is past.
pub const PAST: u64 = 1;

/// What was read of a key. Not every read tells when it expires.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    value: &'a [u8],
    version: Lsn,
    expires: Option<Option<u64>>,
}

impl<'a> From<&'a Versioned> for Seen<'a> {
    fn from(found: &'a Versioned) -> Seen<'a> {
        Seen { value: &found.value, version: found.version, expires: None }
    }
}

impl<'a> From<&'a Entry> for Seen<'a> {
    fn from(found: &'a Entry) -> Seen<'a> {
        Seen { value: &found.value, version: found.version, expires: Some(found.expires_at_ms) }
    }
}

/// Keys of one slot and their admissible states.
pub struct Unit {
    pub keys: Vec<Vec<u8>>,
    /// Never empty.
    pub chain: Vec<Vec<KeyState>>,
}

/// What an operation must answer in a state.
enum Expected {
    Value,
    Lifetime,
    Written,
    /// As written, but the key keeps its version.
    Unchanged,
    Absent,
    ConditionFailed,
    BatchFailed,
    Counter(i64),
    NotAnInteger,
}

impl fmt::Debug for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.entry {
            Some((value, version)) => write!(f, "{} {version:?}", show(value))?,
            None => write!(f, "absent")?,
        }
        if let Some(at) = self.expires {
            write!(f, " until {at}")?;
        }
        write!(f, " (had {})", self.floor)
    }
}

/// A value, short enough to be read.
pub fn show(value: &[u8]) -> String {
    let head = String::from_utf8_lossy(&value[..value.len().min(40)]).into_owned();
    format!("{head:?} ({} bytes)", value.len())
}

impl Version {
    fn admits(self, seen: Lsn) -> bool {
        match self {
            Version::Exactly(version) => seen == version,
            Version::Above(floor) => seen > floor,
        }
    }
}

impl KeyState {
    fn unknown() -> KeyState {
        KeyState { entry: None, expires: None, floor: Lsn::ZERO }
    }

    fn put(&mut self, value: Vec<u8>, expires: Option<u64>) {
        self.entry = Some((value, Version::Above(self.floor)));
        self.expires = expires;
    }

    fn remove(&mut self) {
        (self.entry, self.expires) = (None, None);
    }

    fn is_matched_by(&self, found: Option<Seen<'_>>) -> bool {
        match (&self.entry, found) {
            (None, None) => true,
            (Some((value, version)), Some(found)) => {
                value == found.value
                    && version.admits(found.version)
                    && found.expires.is_none_or(|expires| expires == self.expires)
            }
            _ => false,
        }
    }

    fn settle(&mut self, found: Option<Seen<'_>>) {
        if let (Some((_, version)), Some(found)) = (&mut self.entry, found) {
            *version = Version::Exactly(found.version);
            self.floor = self.floor.max(found.version);
        }
    }

    /// Whether `condition` holds.
    fn holds(&self, condition: Condition) -> bool {
        match (condition, &self.entry) {
            (Condition::None, _) => true,
            (Condition::IfAbsent, entry) => entry.is_none(),
            (Condition::IfPresent, entry) => entry.is_some(),
            (Condition::IfVersion(wanted), Some((_, Version::Exactly(version)))) => *version == wanted,
            // Written in between, with a version that is not known and newer than any that is.
            (Condition::IfVersion(_), _) => false,
        }
    }
}

impl Unit {
    pub fn new(keys: Vec<Vec<u8>>) -> Unit {
        let chain = vec![keys.iter().map(|_| KeyState::unknown()).collect()];
        Unit { keys, chain }
    }

    /// The state as far as this client knows: all that it sent was applied.
    pub fn last(&self) -> &[KeyState] {
        self.chain.last().expect("there is a state")
    }

    /// Takes in the answer to `op`, which was sent after all that were taken in before. `Err` tells why
    /// that answer is wrong.
    pub fn take_in(&mut self, op: &Op, answer: &Result<Response, Error>) -> Result<(), String> {
        let mut state = self.last().to_vec();
        let expected = apply(&mut state, op);
        match answer {
            Err(error) if error.may_be_applied() => {
                if !matches!(op, Op::Get(_) | Op::Ttl(_)) {
                    self.chain.push(state);
                }
                return Ok(());
            }
            Err(Error::Refused(refusal)) => {
                return match expected {
                    Expected::NotAnInteger if refusal.code == Code::NotAnInteger => Ok(()),
                    _ => Err(format!("refused: {refusal}")),
                };
            }
            // Not sent, or a read.
            Err(_) => return Ok(()),
            Ok(_) => {}
        }
        let answer = answer.as_ref().expect("errors are dealt with");
        check_answer(&mut state, op, &expected, answer)
            .map_err(|why| format!("{why}; answered {}; expected of {:?}", shown(answer), self.last()))?;
        self.chain = vec![state];
        Ok(())
    }

    /// Takes in that all its keys were removed with a range, or perhaps were, if no answer has come.
    pub fn remove(&mut self, is_answered: bool) {
        let mut state = self.last().to_vec();
        state.iter_mut().for_each(KeyState::remove);
        if is_answered {
            self.chain.clear();
        }
        self.chain.push(state);
    }

    /// Compares with what a start found, which is what is admissible from then on.
    pub fn check(&mut self, found: &[Option<Seen<'_>>]) -> Result<(), String> {
        let matching = self
            .chain
            .iter()
            .rposition(|state| state.iter().zip(found).all(|(state, found)| state.is_matched_by(*found)));
        let Some(at) = matching else {
            let found: Vec<_> = found
                .iter()
                .map(|f| f.map(|f| (show(f.value), f.version.to_string(), f.expires.flatten())))
                .collect();
            return Err(format!("found {found:?}, admissible were {:#?}", self.chain));
        };
        let mut state = self.chain.swap_remove(at);
        state.iter_mut().zip(found).for_each(|(state, found)| state.settle(*found));
        self.chain = vec![state];
        Ok(())
    }
}

/// What `op` makes of `state`, and what it answers.
fn apply(state: &mut [KeyState], op: &Op) -> Expected {
    match op {
        Op::Get(_) => Expected::Value,
        Op::Ttl(_) => Expected::Lifetime,
        Op::Set(at, value, condition, stay) => {
            if !state[*at].holds(*condition) {
                return Expected::ConditionFailed;
            }
            let expires = match stay {
                Stay::Forever => None,
                Stay::Until(at) => Some(*at),
                Stay::AsBefore => state[*at].expires,
            };
            state[*at].put(value.clone(), expires);
            Expected::Written
        }
        Op::Expire(at, ..) | Op::Persist(at, _) if state[*at].entry.is_none() => {
            let (Op::Expire(_, _, condition) | Op::Persist(_, condition)) = op else {
                unreachable!("one of these")
            };
            if state[*at].holds(*condition) { Expected::Absent } else { Expected::ConditionFailed }
        }
        Op::Expire(at, time, condition) => {
            if !state[*at].holds(*condition) {
                return Expected::ConditionFailed;
            }
            if *time == PAST {
                state[*at].remove();
            } else if let Some((value, _)) = state[*at].entry.take() {
                state[*at].put(value, Some(*time));
            }
            Expected::Written
        }
        Op::Persist(at, condition) => {
            if !state[*at].holds(*condition) {
                return Expected::ConditionFailed;
            }
            if state[*at].expires.is_none() {
                return Expected::Unchanged;
            }
            if let Some((value, _)) = state[*at].entry.take() {
                state[*at].put(value, None);
            }
            Expected::Written
        }
        Op::Delete(at, condition) => {
            if !state[*at].holds(*condition) {
                return Expected::ConditionFailed;
            }
            let was_there = state[*at].entry.is_some();
            state[*at].remove();
            if was_there { Expected::Written } else { Expected::Absent }
        }
        Op::Incr(at, amount) => {
            let number = match &state[*at].entry {
                None => Some(0),
                Some((value, _)) => std::str::from_utf8(value).ok().and_then(|text| text.parse::<i64>().ok()),
            };
            let Some(sum) = number.map(|number| number + amount) else { return Expected::NotAnInteger };
            let expires = state[*at].expires;
            state[*at].put(sum.to_string().into_bytes(), expires);
            Expected::Counter(sum)
        }
        Op::Batch(ops, check) => {
            if check.is_some_and(|(at, condition)| !state[at].holds(condition)) {
                return Expected::BatchFailed;
            }
            for (at, change) in ops {
                match change {
                    Change::Put(value, expires) => state[*at].put(value.clone(), *expires),
                    Change::Delete => state[*at].remove(),
                }
            }
            Expected::Written
        }
    }
}

fn check_answer(
    state: &mut [KeyState],
    op: &Op,
    expected: &Expected,
    answer: &Response,
) -> Result<(), String> {
    match (expected, answer) {
        (Expected::Value, Response::Value(found)) => {
            let Op::Get(at) = op else { return Err("not a read".into()) };
            let found = found.as_ref().map(Seen::from);
            if !state[*at].is_matched_by(found) {
                return Err("a read found something else".into());
            }
            state[*at].settle(found);
        }
        (Expected::Lifetime, Response::Ttl(found)) => {
            let Op::Ttl(at) = op else { return Err("not a question for a time".into()) };
            let is_right = match (&state[*at].entry, found) {
                (None, None) => true,
                (Some((_, version)), Some(found)) => {
                    let expires = found.lifetime.map(|lifetime| lifetime.expires_at_ms);
                    version.admits(found.version) && expires == state[*at].expires
                }
                _ => false,
            };
            if !is_right {
                return Err("it lives as long as something else".into());
            }
        }
        (Expected::Unchanged, Response::Outcome(Outcome::Written { version })) => {
            let Op::Persist(at, _) = op else { return Err("that changes something".into()) };
            let Some((_, seen)) = &mut state[*at].entry else { return Err("nothing is there".into()) };
            if !seen.admits(*version) {
                return Err("it has another version".into());
            }
            *seen = Version::Exactly(*version);
            state[*at].floor = state[*at].floor.max(*version);
        }
        (Expected::BatchFailed, Response::Outcome(Outcome::BatchFailed { current, .. })) => {
            let Op::Batch(_, Some((at, _))) = op else { return Err("it has no condition".into()) };
            let is_right = match (&state[*at].entry, current) {
                (None, None) => true,
                (Some((_, version)), Some(current)) => version.admits(*current),
                _ => false,
            };
            if !is_right {
                return Err("it failed for a version that is not there".into());
            }
        }
        (Expected::Written, Response::Outcome(Outcome::Written { version })) => {
            let single;
            let places: &[usize] = match op {
                Op::Set(at, ..) | Op::Delete(at, _) | Op::Expire(at, ..) | Op::Persist(at, _) => {
                    single = [*at];
                    &single
                }
                Op::Batch(ops, _) => &ops.iter().map(|(at, _)| *at).collect::<Vec<_>>(),
                Op::Get(_) | Op::Ttl(_) | Op::Incr(..) => return Err("not an answer to this".into()),
            };
            let mut version = *version;
            for at in places {
                if version <= state[*at].floor {
                    return Err(format!("version {version} is not above {}", state[*at].floor));
                }
                state[*at].floor = version;
                if let Some((_, seen)) = &mut state[*at].entry {
                    *seen = Version::Exactly(version);
                }
                version = Lsn(version.0 + 1);
            }
        }
        (Expected::Absent, Response::Outcome(Outcome::Absent)) => {}
        (Expected::ConditionFailed, Response::Outcome(Outcome::ConditionFailed { current })) => {
            let (Op::Set(at, ..) | Op::Delete(at, _) | Op::Expire(at, ..) | Op::Persist(at, _)) = op else {
                return Err("without a condition".into());
            };
            let is_right = match (&state[*at].entry, current) {
                (None, None) => true,
                (Some((_, version)), Some(current)) => version.admits(*current),
                _ => false,
            };
            if !is_right {
                return Err("the condition failed for a version that is not there".into());
            }
        }
        (Expected::Counter(sum), Response::Counter(counter)) => {
            let Op::Incr(at, _) = op else { return Err("not an answer to this".into()) };
            if counter.value != *sum {
                return Err(format!("the sum is {sum}"));
            }
            if counter.version <= state[*at].floor {
                return Err(format!("version {} is not above {}", counter.version, state[*at].floor));
            }
            state[*at].floor = counter.version;
            state[*at].entry = Some((sum.to_string().into_bytes(), Version::Exactly(counter.version)));
        }
        _ => return Err("an answer of the wrong kind".into()),
    }
    Ok(())
}

fn shown(answer: &Response) -> String {
    match answer {
        Response::Value(Some(found)) => format!("{} at {}", show(&found.value), found.version),
        other => format!("{other:?}"),
    }
}

/// A key that all clients write at the same time. What tells their writes apart is that no two values are
/// alike, and that versions grow.
#[derive(Default)]
pub struct Contended {
    /// Writes that were answered and values that were read, by version; `None` is a delete.
    pub known: Vec<(Lsn, Option<Vec<u8>>)>,
    /// Writes whose answer was lost.
    pub unknown: Vec<Option<Vec<u8>>>,
    /// Versions that a conditional write found, and those that it then wrote.
    pub swaps: Vec<(Lsn, Lsn)>,
}

impl Contended {
    /// Adds what another client knows.
    pub fn merge(&mut self, other: Contended) {
        self.known.extend(other.known);
        self.unknown.extend(other.unknown);
        self.swaps.extend(other.swaps);
    }

    /// Takes in that all keys were removed, or perhaps were, if no answer has come.
    pub fn remove(&mut self, is_answered: bool) {
        if is_answered {
            *self = Contended::default();
        } else {
            self.unknown.push(None);
        }
    }

    /// Compares with what a start found, which is all that is known from then on.
    pub fn check(&mut self, found: Option<&Versioned>) -> Result<(), String> {
        self.known.sort();
        self.known.dedup();
        if let Some(pair) = self.known.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(format!("version {} was given to two values", pair[0].0));
        }
        for (from, to) in &self.swaps {
            if let Some((between, _)) = self.known.iter().find(|(at, _)| from < at && at < to) {
                return Err(format!("{to} replaced {from} though {between} was in between"));
            }
        }
        let newest = self.known.last().cloned();
        let (floor, value) = newest.clone().unwrap_or((Lsn::ZERO, None));
        let is_admissible = match found {
            Some(found) if found.version == floor => value.as_ref() == Some(&found.value),
            Some(found) => {
                found.version > floor && self.unknown.iter().any(|v| v.as_ref() == Some(&found.value))
            }
            None => value.is_none() || self.unknown.contains(&None),
        };
        if !is_admissible {
            let found = found.map(|found| (show(&found.value), found.version.to_string()));
            let value = value.as_deref().map(show);
            return Err(format!("found {found:?}; the newest that is known is {value:?} at {floor}"));
        }
        let keep = match found {
            Some(found) => (found.version, Some(found.value.clone())),
            None => (floor, None),
        };
        *self = Contended { known: vec![keep], ..Contended::default() };
        Ok(())
    }
}

/// A counter that all clients increment by one.
#[derive(Default)]
pub struct SharedCounter {
    /// At the last start.
    pub base: i64,
    /// Sums that were answered.
    pub sums: Vec<i64>,
    /// Increments whose answer was lost.
    pub unknown: usize,
    /// Whether the answer to the removal of all keys was lost.
    pub may_be_removed: bool,
}

impl SharedCounter {
    /// Compares with what a start found, which is the base from then on.
    pub fn check(&mut self, found: Option<&Versioned>) -> Result<(), String> {
        let sum = match found {
            None => 0,
            Some(found) => std::str::from_utf8(&found.value)
                .ok()
                .and_then(|text| text.parse::<i64>().ok())
                .ok_or_else(|| format!("not a number: {}", show(&found.value)))?,
        };
        self.sums.sort_unstable();
        if let Some(pair) = self.sums.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("the sum {} was given twice", pair[0]));
        }
        let least = match found {
            None if self.may_be_removed => 0,
            _ => (self.base + self.sums.len() as i64).max(self.sums.last().copied().unwrap_or(0)),
        };
        let most = self.base + (self.sums.len() + self.unknown) as i64;
        if sum < least || sum > most {
            return Err(format!("found {sum}, which is not in {least}..={most}"));
        }
        *self = SharedCounter { base: sum, ..SharedCounter::default() };
        Ok(())
    }
}
