//! Scans that are open, and what their snapshots hold.
//!
//! The first page of a scan may be asked for amid writes. Then its snapshot has, of each key that was written
//! meanwhile, one of several states; of all others exactly one.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::rc::Rc;
use std::time::Duration;

use atlaskv::protocol::ScanRequest;
use atlaskv::protocol::binary::{Cursor, entry_len};

use crate::keys::{Key, Pool};
use crate::reference::Live;
use crate::store::PageEntry;

/// What a page is asked for with.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Which scan.
    pub scan: u64,
    pub start: Vec<u8>,
    pub end: Vec<u8>,
    pub is_reverse: bool,
    pub is_keys_only: bool,
    pub is_local: bool,
    pub entries_max: u32,
    pub bytes_max: u32,
    pub limit: u64,
    pub cursor: Option<Vec<u8>>,
}

impl Ask {
    pub fn request(&self) -> ScanRequest<'_> {
        ScanRequest {
            start: &self.start,
            end: &self.end,
            is_reverse: self.is_reverse,
            is_keys_only: self.is_keys_only,
            is_local: self.is_local,
            entries_max: self.entries_max,
            bytes_max: self.bytes_max,
            limit: self.limit,
            cursor: self.cursor.as_deref().and_then(Cursor::decode),
        }
    }
}

/// What a key was at some moment of a pipeline.
#[derive(Clone, Debug)]
pub struct State {
    /// The request that made it so; `None`: it was so before.
    pub by: Option<usize>,
    pub live: Option<Live>,
}

/// The states that each key had that a pipeline wrote, in order.
pub type Window = BTreeMap<Key, Vec<State>>;

/// What a snapshot holds: one of the states in `maybe` of each key there, of others what `base` says.
#[derive(Clone, Debug, Default)]
pub struct Snap {
    pub base: Rc<BTreeMap<Key, Live>>,
    pub maybe: Rc<Window>,
}

impl Snap {
    fn allows(&self, key: &[u8], is_it: impl Fn(Option<&Live>) -> bool) -> bool {
        match self.maybe.get(key) {
            Some(states) => states.iter().any(|state| is_it(state.live.as_ref())),
            None => is_it(self.base.get(key)),
        }
    }

    /// Keys in a range that are there or may be.
    fn keys(&self, start: &[u8], end: &[u8]) -> impl Iterator<Item = &Key> {
        let upper = if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end) };
        let is_some = start < end || end.is_empty();
        let base = is_some.then(|| self.base.range::<[u8], _>((Bound::Included(start), upper)));
        let maybe = self.maybe.keys().filter(move |key| is_in(key, start, end));
        base.into_iter().flatten().map(|(key, _)| key).chain(maybe)
    }
}

fn is_in(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    key >= start && (end.is_empty() || key < end)
}

/// The first key behind those with a prefix, as the client makes it; empty: there is none.
pub fn prefix_end(mut prefix: Vec<u8>) -> Vec<u8> {
    while prefix.last() == Some(&0xFF) {
        prefix.pop();
    }
    if let Some(last) = prefix.last_mut() {
        *last += 1;
    }
    prefix
}

/// A scan between two pages.
#[derive(Clone, Debug)]
pub struct Scan {
    /// With the cursor of the next page.
    pub ask: Ask,
    pub connection: usize,
    /// The last key that was passed.
    pub position: Option<Vec<u8>>,
    pub snap: Option<Snap>,
    /// Whether its snapshot may have ended, since something happened that ends one.
    pub may_renew: bool,
    /// Whether what is kept for it between two pages may be thrown away for want of room.
    pub may_begin_anew: bool,
    pub used: Duration,
    /// What it gave, if that is wanted.
    pub found: Option<Vec<PageEntry>>,
}

impl Scan {
    /// A scan of everything, whose entries are kept.
    pub fn of_all(scan: u64, connection: usize) -> Scan {
        let ask = Ask {
            scan,
            start: Vec::new(),
            end: Vec::new(),
            is_reverse: false,
            is_keys_only: false,
            is_local: false,
            entries_max: 0,
            bytes_max: 0,
            limit: 0,
            cursor: None,
        };
        Scan {
            ask,
            connection,
            position: None,
            snap: None,
            may_renew: false,
            may_begin_anew: false,
            used: Duration::ZERO,
            found: Some(Vec::new()),
        }
    }

    /// A random one.
    pub fn random(scan: u64, connection: usize, rng: &mut fastrand::Rng, pool: &Pool) -> Scan {
        let mut whole = Scan::of_all(scan, connection);
        whole.found = None;
        let ask = &mut whole.ask;
        match rng.u8(..5) {
            0 => {}
            1 => {
                // A prefix, as the client makes a range of it.
                let mut prefix = pool.bound(rng);
                prefix.truncate(1 + rng.usize(..4));
                ask.start.clone_from(&prefix);
                ask.end = prefix_end(prefix);
            }
            2 => {
                let tag = rng.u8(..6);
                (ask.start, ask.end) =
                    (format!("{{t{tag}}}").into_bytes(), format!("{{t{tag}~").into_bytes());
            }
            _ => {
                (ask.start, ask.end) = (pool.bound(rng), pool.bound(rng));
                if ask.start > ask.end && rng.u8(..10) > 0 {
                    std::mem::swap(&mut ask.start, &mut ask.end);
                }
            }
        }
        ask.is_reverse = rng.bool();
        ask.is_keys_only = rng.u8(..4) == 0;
        ask.is_local = rng.u8(..10) == 0;
        if rng.u8(..4) == 0 {
            ask.limit = rng.u64(1..200);
        }
        whole
    }

    /// Compares a page with what its snapshot holds, and goes on behind it. `now` is what a snapshot may hold that
    /// is taken now. `Ok(true)`: it was the last.
    pub fn take(
        &mut self,
        entries: Vec<PageEntry>,
        cursor: Option<Vec<u8>>,
        is_new_snapshot: bool,
        now: &Snap,
    ) -> Result<bool, (Option<Key>, String)> {
        let other = |what: &str| (None, format!("scan {}: {what}", self.ask.scan));
        if is_new_snapshot && !self.may_renew && !self.may_begin_anew {
            return Err(other("its snapshot is over, and nothing has ended it"));
        }
        self.check_limits(&entries).map_err(|what| other(&what))?;
        let passed = match cursor.as_deref().map(Cursor::decode) {
            Some(None) => return Err(other("the cursor is none")),
            Some(Some(cursor)) => Some(cursor.key.to_vec()),
            None => None,
        };
        let count = entries.len() as u64;
        let is_at_limit = self.ask.limit != 0 && count >= self.ask.limit;
        let end = match (&passed, entries.last()) {
            (Some(key), _) if key.is_empty() => self.position.clone(),
            (Some(key), _) => Some(key.clone()),
            (None, Some((last, ..))) if is_at_limit => Some(last.clone()),
            (None, _) => None,
        };
        let is_rest = cursor.is_none() && !is_at_limit;
        let snaps = match (&self.snap, is_new_snapshot) {
            (None, _) => vec![now.clone()],
            (Some(snap), false) => vec![snap.clone()],
            (Some(snap), true) => vec![snap.clone(), now.clone()],
        };
        self.check_entries(&entries, end.as_deref(), is_rest, &snaps)?;
        if self.snap.is_none() || is_new_snapshot {
            self.snap = Some(now.clone());
        }
        if let Some(found) = &mut self.found {
            found.extend(entries);
        }
        if end.is_some() {
            self.position = end;
        }
        self.ask.limit = self.ask.limit.saturating_sub(count);
        self.ask.cursor = cursor;
        Ok(self.ask.cursor.is_none() || is_at_limit)
    }

    fn check_limits(&self, entries: &[PageEntry]) -> Result<(), String> {
        let count = entries.len() as u64;
        if self.ask.limit != 0 && count > self.ask.limit {
            return Err(format!("{count} entries, and {} are wanted", self.ask.limit));
        }
        if self.ask.entries_max != 0 && count > u64::from(self.ask.entries_max) {
            return Err(format!("{count} entries in a page of {}", self.ask.entries_max));
        }
        let bytes: usize =
            entries.iter().map(|(key, _, expiry, value)| entry_len(key, value.len(), *expiry)).sum();
        if self.ask.bytes_max != 0 && count > 1 && bytes > self.ask.bytes_max as usize {
            return Err(format!("{bytes} bytes in a page of {}", self.ask.bytes_max));
        }
        Ok(())
    }

    /// Entries in order and each as some snapshot has it; and none left out up to `end`, or to the end of the range.
    fn check_entries(
        &self,
        entries: &[PageEntry],
        end: Option<&[u8]>,
        is_rest: bool,
        snaps: &[Snap],
    ) -> Result<(), (Option<Key>, String)> {
        let Ask { scan, is_reverse, is_keys_only, .. } = self.ask;
        let mut before = self.position.as_deref();
        for (key, version, expiry_ms, value) in entries {
            let fail = |what: String| Err((Some(Key::from(&key[..])), format!("scan {scan}: {what}")));
            let is_next = before.is_none_or(|b| if is_reverse { key[..] < *b } else { key[..] > *b });
            if !is_next || !is_in(key, &self.ask.start, &self.ask.end) {
                return fail("the key is out of order or out of the range".to_owned());
            }
            before = Some(key);
            if is_keys_only && !value.is_empty() {
                return fail("a value, and only keys were asked for".to_owned());
            }
            let value = (!is_keys_only).then_some(&value[..]);
            let is_it = |live: Option<&Live>| live.is_some_and(|live| live.is(*version, *expiry_ms, value));
            if !snaps.iter().any(|snap| snap.allows(key, is_it)) {
                let wanted: Vec<_> =
                    snaps.iter().map(|snap| (snap.base.get(&key[..]), snap.maybe.get(&key[..]))).collect();
                return fail(format!(
                    "version {version}, expiry {expiry_ms}, value {value:.40?}; not {wanted:.300?}"
                ));
            }
        }
        if end.is_some_and(|end| before.is_some_and(|b| if is_reverse { end > b } else { end < b })) {
            return Err((None, format!("scan {scan}: the cursor is before the last entry")));
        }
        let given: BTreeSet<&[u8]> = entries.iter().map(|(key, ..)| &key[..]).collect();
        let is_passed = |key: &[u8]| {
            let is_left =
                self.position.as_deref().is_none_or(|at| if is_reverse { key < at } else { key > at });
            let is_before = end.is_some_and(|end| if is_reverse { key >= end } else { key <= end });
            is_left && (is_rest || is_before)
        };
        for snap in snaps {
            for key in snap.keys(&self.ask.start, &self.ask.end).filter(|key| is_passed(key)) {
                let is_absent = |live: Option<&Live>| live.is_none();
                if !given.contains(&key[..]) && !snaps.iter().any(|snap| snap.allows(key, is_absent)) {
                    return Err((Some(key.clone()), format!("scan {scan}: the key is missing")));
                }
            }
        }
        Ok(())
    }
}
