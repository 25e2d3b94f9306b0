//! What each key of a pipeline may be: usually one thing. A range delete takes effect on the keys of other connections
//! at a moment that nobody knows, and one that was refused in part, or a request that was not answered, on some keys
//! and not on others. Then a key has several *fates*, and answers say which of them are not so.
//!
//! A key's requests are on one connection, so their order is known. Different keys are not ordered against each other,
//! so every key has fates of its own; what ties keys together, that a batch is atomic, is looked at in
//! [`crate::verify::check_atomic`].

use std::collections::BTreeMap;

use atlaskv::base::Lsn;
use atlaskv::error::Code;

use crate::keys::Key;
use crate::reference::{Item, Live, Next, Op, Reference, Span, after, compare, outcome};
use crate::scans::{State, Window};
use crate::store::Answer;
use crate::verify::Difference;

/// What may have become of a key.
#[derive(Clone, Debug, PartialEq)]
struct Fate {
    live: Option<Live>,
    /// The request that made it so.
    by: Option<usize>,
    /// The range delete has taken effect.
    is_removed: bool,
    /// The log ends here: no later request has taken effect.
    is_over: bool,
}

/// A key and its fates, and all that it may have been, in order.
struct Lot {
    fates: Vec<Fate>,
    states: Vec<State>,
}

impl Lot {
    fn put(&mut self, fate: Fate) {
        if !self.states.iter().any(|state| state.live == fate.live && state.by == fate.by) {
            self.states.push(State { by: fate.by, live: fate.live.clone() });
        }
        if !self.fates.contains(&fate) {
            self.fates.push(fate);
        }
    }

    /// Replaces each fate that goes on by what `step` makes of it; `None`: it is not so.
    fn advance(&mut self, id: usize, mut step: impl FnMut(&Option<Live>) -> Option<Option<Live>>) {
        for fate in std::mem::take(&mut self.fates) {
            if fate.is_over {
                self.fates.push(fate);
            } else if let Some(live) = step(&fate.live) {
                let by = if live == fate.live { fate.by } else { Some(id) };
                self.put(Fate { live, by, ..fate });
            }
        }
    }

    /// As [`Lot::advance`], of a request that may not have taken effect.
    fn maybe(&mut self, id: usize, mut step: impl FnMut(&Option<Live>) -> Option<Option<Live>>) {
        for fate in std::mem::take(&mut self.fates) {
            let next = if fate.is_over { None } else { step(&fate.live) };
            match next {
                Some(live) if live != fate.live => {
                    self.put(Fate { is_over: true, ..fate.clone() });
                    self.put(Fate { live, by: Some(id), ..fate });
                }
                _ => self.put(fate),
            }
        }
    }

    fn is_possible(&self) -> bool {
        !self.fates.is_empty()
    }

    /// The range delete takes effect now.
    fn remove(&mut self, id: usize) {
        for fate in std::mem::take(&mut self.fates) {
            let by = if fate.live.is_none() { fate.by } else { Some(id) };
            self.put(if fate.is_over { fate } else { Fate { live: None, by, is_removed: true, ..fate } });
        }
    }

    /// The range delete may take effect now.
    fn may_remove(&mut self, id: usize, may_repeat: bool) {
        for fate in self.fates.clone() {
            if !fate.is_over && (may_repeat || !fate.is_removed) {
                let by = if fate.live.is_none() { fate.by } else { Some(id) };
                self.put(Fate { live: None, by, is_removed: true, ..fate });
            }
        }
    }
}

/// How a range delete ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    Done,
    /// Of some keys, or of none.
    Maybe,
    Nothing,
}

/// A range delete of the pipeline.
pub struct Range {
    pub id: usize,
    pub connection: usize,
    pub start: Vec<u8>,
    pub end: Vec<u8>,
    pub removal: Removal,
    /// Tablets may move meanwhile: then it may take effect on a key several times.
    pub may_repeat: bool,
}

impl Range {
    pub fn covers(&self, key: &[u8]) -> bool {
        key >= &self.start[..] && (self.end.is_empty() || key < &self.end[..])
    }
}

/// The fates of a pipeline's keys.
pub struct Fates<'a> {
    pub reference: &'a mut Reference,
    pub now: Span,
    /// Bytes of a batch that the store takes for sure.
    pub batch_bytes: usize,
    range: Option<Range>,
    /// The range delete's place in the order of requests has been passed.
    is_past: bool,
    lots: BTreeMap<Key, Lot>,
}

/// What a pipeline left.
pub struct Left {
    /// All that each key may have been.
    pub window: Window,
    /// Keys that may be several things, and which.
    pub unsure: Window,
}

fn differs(key: &Key, what: String) -> Difference {
    Difference::of(vec![key.clone()], what)
}

fn changed(next: Next, current: &Option<Live>, version: Lsn) -> Option<Live> {
    match next {
        Next::Same => current.clone(),
        Next::Gone => None,
        Next::Put(value, expiry) => Some(Live { value, version, expiry }),
    }
}

/// What the items of a batch that name `key` make of it, the last write having `version`. `None`: a condition does not
/// hold.
fn batched(
    items: &[Item],
    key: &Key,
    current: &Option<Live>,
    version: Lsn,
    now: Span,
) -> Option<Option<Live>> {
    let mut live = current.clone();
    for item in items.iter().filter(|item| item.key == *key) {
        if !item.condition.holds(current.as_ref().map(|live| live.version)) {
            return None;
        }
        live = changed(after(&item.act, live.as_ref(), now), &live, version);
    }
    Some(live)
}

impl<'a> Fates<'a> {
    pub fn new(
        reference: &'a mut Reference,
        now: Span,
        batch_bytes: usize,
        range: Option<Range>,
    ) -> Fates<'a> {
        Fates { reference, now, batch_bytes, range, is_past: false, lots: BTreeMap::new() }
    }

    /// A key's fates before a request that is on `connection`.
    fn lot(&mut self, key: &Key, connection: usize) -> &mut Lot {
        let Fates { reference, range, lots, is_past, .. } = self;
        let range = range.as_ref().filter(|range| range.covers(key));
        let is_new = !lots.contains_key(key);
        let lot = lots.entry(key.clone()).or_insert_with(|| {
            let live = reference.live.get(key).cloned();
            let states = vec![State { by: None, live: live.clone() }];
            Lot { fates: vec![Fate { live, by: None, is_removed: false, is_over: false }], states }
        });
        match range {
            // In the order of its own connection.
            Some(range) if range.connection == connection && is_new && *is_past => Self::pass(lot, range),
            Some(range) if range.connection == connection => {}
            Some(range) if range.removal != Removal::Nothing => lot.may_remove(range.id, range.may_repeat),
            _ => {}
        }
        lot
    }

    fn pass(lot: &mut Lot, range: &Range) {
        match range.removal {
            Removal::Done => lot.remove(range.id),
            Removal::Maybe => lot.may_remove(range.id, false),
            Removal::Nothing => {}
        }
    }

    /// The range delete has its place in the order here.
    pub fn pass_range(&mut self, connection_of: impl Fn(&[u8]) -> usize) {
        self.is_past = true;
        let Some(range) = &self.range else { return };
        for (key, lot) in &mut self.lots {
            if range.covers(key) && connection_of(key) == range.connection {
                Self::pass(lot, range);
            }
        }
    }

    /// A request of one key or a batch that was answered.
    pub fn take(&mut self, id: usize, connection: usize, op: &Op, answer: &Answer) -> Result<(), Difference> {
        if let Op::Batch(items) = op {
            return self.take_batch(id, connection, items, answer);
        }
        let (key, now) = (op.keys()[0], self.now);
        let lot = self.lot(key, connection);
        let (mut written, mut wanted) = (None, None);
        lot.advance(id, |current| {
            let (expected, next) = outcome(op, current.as_ref(), now);
            match (compare(&expected, answer), op, answer) {
                // Another fate is so, in which nothing was to be written and that is the version it had.
                (Ok(Some(version)), ..) if current.as_ref().is_some_and(|live| live.version >= version) => {
                    wanted = Some(expected);
                    None
                }
                (Ok(Some(version)), ..) => {
                    written = Some(version);
                    Some(changed(next, current, version))
                }
                // It says when exactly the key expires.
                (Ok(None), Op::Ttl(_), Answer::Lifetime(_, expiry_ms)) => {
                    Some(current.clone().map(|live| Live { expiry: (*expiry_ms, *expiry_ms), ..live }))
                }
                (Ok(None), ..) => Some(current.clone()),
                (Err(()), ..) => {
                    wanted = Some(expected);
                    None
                }
            }
        });
        if !lot.is_possible() {
            return Err(differs(key, format!("answered {answer:.200?}, not {wanted:.200?}")));
        }
        match written {
            Some(version) => self.reference.note(key, version).map_err(|what| differs(key, what)),
            None => Ok(()),
        }
    }

    fn take_batch(
        &mut self,
        id: usize,
        connection: usize,
        items: &[Item],
        answer: &Answer,
    ) -> Result<(), Difference> {
        let keys = || items.iter().map(|item| item.key.clone()).collect();
        let fail = |what: String| Err(Difference::of(keys(), what));
        let now = self.now;
        match answer {
            Answer::Written(first) => {
                let mut last: BTreeMap<&Key, Lsn> = BTreeMap::new();
                let writes = items.iter().filter(|item| item.act.is_write());
                for (ordinal, item) in writes.enumerate() {
                    let version = Lsn(first.0 + ordinal as u64);
                    last.insert(&item.key, version);
                    self.reference.note(&item.key, version).map_err(|what| differs(&item.key, what))?;
                }
                for item in items {
                    last.entry(&item.key).or_insert(Lsn::ZERO);
                }
                for (key, version) in last {
                    let lot = self.lot(key, connection);
                    lot.advance(id, |current| batched(items, key, current, version, now));
                    if !lot.is_possible() {
                        return fail(format!(
                            "a batch is done, and a condition on {} does not hold",
                            key.escape_ascii()
                        ));
                    }
                }
                Ok(())
            }
            Answer::BatchUnmet(unmet, version) => {
                for (place, item) in (0..=*unmet).zip(items) {
                    let lot = self.lot(&item.key, connection);
                    lot.advance(id, |current| {
                        let has = current.as_ref().map(|live| live.version);
                        let holds = item.condition.holds(has);
                        let is_so = if place < *unmet { holds } else { !holds && has == *version };
                        is_so.then(|| current.clone())
                    });
                    if !lot.is_possible() {
                        return fail(format!("BATCH: {answer:?} is not so of item {place}"));
                    }
                }
                if *unmet as usize >= items.len() {
                    return fail(format!("BATCH: {answer:?}, and there are {} items", items.len()));
                }
                Ok(())
            }
            Answer::Refused(Code::BatchTooLarge, _) if self.bytes(items, connection) > self.batch_bytes => {
                Ok(())
            }
            _ => fail(format!("BATCH: {answer:.200?}")),
        }
    }

    /// Bytes that a batch may store, at most.
    fn bytes(&mut self, items: &[Item], connection: usize) -> usize {
        let mut bytes = 0;
        let mut longest: BTreeMap<&Key, usize> = BTreeMap::new();
        for item in items {
            let fates = &self.lot(&item.key, connection).fates;
            let had = fates.iter().flat_map(|fate| &fate.live).map(|live| live.value.len()).max();
            let value = item.act.value().map_or(0, |value| value.len());
            let longest = longest.entry(&item.key).or_insert(had.unwrap_or(0));
            *longest = value.max(*longest);
            bytes += item.key.len() + 64 + if item.act.is_write() { *longest } else { 0 };
        }
        bytes
    }

    /// What an MGET says of a key of its own connection: `None` is absent.
    pub fn take_value(
        &mut self,
        connection: usize,
        key: &Key,
        value: &Option<(Lsn, Vec<u8>)>,
    ) -> Result<(), Difference> {
        let lot = self.lot(key, connection);
        lot.fates.retain(|fate| is_value(fate.live.as_ref(), value));
        if lot.is_possible() {
            return Ok(());
        }
        let wanted = lot.states.last().map(|state| &state.live);
        Err(differs(key, format!("MGET {value:.80?}, not {wanted:.80?}")))
    }

    /// A request that was not answered before the power went: it has taken effect or not, as have all before it.
    /// The keys that it may have changed.
    pub fn guess(&mut self, id: usize, connection: usize, op: &Op) -> Vec<Key> {
        let now = self.now;
        let mut keys: Vec<Key> = match op {
            Op::Page(_) | Op::Mget(_) | Op::DeleteRange { .. } => Vec::new(),
            _ => op.keys().into_iter().cloned().collect(),
        };
        keys.sort();
        keys.dedup();
        let next = |key: &Key, current: &Option<Live>| match op {
            Op::Batch(items) => batched(items, key, current, Lsn::ZERO, now),
            _ => Some(changed(outcome(op, current.as_ref(), now).1, current, Lsn::ZERO)),
        };
        // A batch is done only if all its conditions may hold.
        let may_be_done = keys.iter().all(|key| {
            let mut fates = self.lot(key, connection).fates.iter().filter(|fate| !fate.is_over);
            fates.any(|fate| next(key, &fate.live).is_some())
        });
        keys.retain(|key| {
            let lot = self.lot(key, connection);
            let before = lot.states.len();
            if may_be_done {
                lot.maybe(id, |current| next(key, current));
            }
            lot.states.len() > before
        });
        keys
    }

    /// The pipeline is over: what is known for sure goes to the reference.
    pub fn leave(mut self, connection_of: impl Fn(&[u8]) -> usize) -> Left {
        if let Some(range) = self.range.take().filter(|range| range.removal != Removal::Nothing) {
            let covered = |key: &&Key| range.covers(key);
            let keys: Vec<Key> = self.reference.live.keys().filter(covered).cloned().collect();
            self.range = Some(range);
            for key in &keys {
                self.lot(key, connection_of(key));
            }
            for (key, lot) in &mut self.lots {
                let Some(range) = self.range.as_ref().filter(|range| range.covers(key)) else { continue };
                if connection_of(key) != range.connection {
                    lot.may_remove(range.id, range.may_repeat);
                }
                if range.removal == Removal::Done {
                    lot.fates.retain(|fate| fate.is_removed);
                    assert!(lot.is_possible(), "a fate in which it is done was added");
                }
            }
        }
        let mut left = Left { window: Window::new(), unsure: Window::new() };
        for (key, Lot { fates, states }) in self.lots {
            let mut ends: Vec<State> = Vec::new();
            // By whom it is so counts as well: a key that one batch wrote and the next removed is what it was before.
            for Fate { live, by, .. } in fates {
                if !ends.iter().any(|state| state.live == live && state.by == by) {
                    ends.push(State { by, live });
                }
            }
            match &ends[..] {
                [first, rest @ ..] if rest.iter().all(|state| state.live == first.live) => {
                    if self.reference.live.get(&key) != first.live.as_ref() {
                        self.reference.set(&key, first.live.clone());
                    }
                }
                _ => drop(left.unsure.insert(key.clone(), ends)),
            }
            left.window.insert(key, states);
        }
        left
    }
}

/// Whether a key is what a value list says.
pub fn is_value(live: Option<&Live>, value: &Option<(Lsn, Vec<u8>)>) -> bool {
    match (live, value) {
        (Some(live), Some((version, value))) => live.version == *version && *live.value == **value,
        (None, None) => true,
        _ => false,
    }
}
