//! What a store must hold: per tablet what is durable, and the writes after that, in order.
//!
//! A tablet's entries are a dense sequence, of which a crash may take an end. So what a start finds is not
//! just some legal value for each key: it is the state after a *prefix* of the tablet's writes, at least as
//! long as what was acknowledged. That implies that batches are whole, that nothing comes back, and that
//! nothing old hides something new.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use crate::base::{BlockSeq, EntryIndex, Lsn, TabletId};
use crate::slot::Slot;

/// A key: its group, all of one slot, and its number there.
pub type KeyId = (u8, u8);

/// A value, with the version under which it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    pub lsn: Lsn,
    pub value: Rc<[u8]>,
}

/// An atomic group of operations: `None` deletes. Or a range delete.
#[derive(Clone)]
pub struct Write {
    /// Of its first operation.
    pub lsn: Lsn,
    pub shard: usize,
    pub block: BlockSeq,
    pub ops: Vec<(KeyId, Option<Rc<[u8]>>)>,
    pub range: Option<KeyRange>,
}

/// Keys of one tablet.
#[derive(Clone)]
pub struct KeyRange {
    pub start: Vec<u8>,
    /// Empty: none.
    pub end: Vec<u8>,
}

#[derive(Clone, Default)]
pub struct TabletModel {
    /// Live keys after the last durable write.
    durable: BTreeMap<KeyId, Version>,
    /// The last durable entry.
    index: EntryIndex,
    /// Writes that may or may not survive, oldest first.
    later: VecDeque<Write>,
}

/// What a store must hold.
#[derive(Clone, Default)]
pub struct Model {
    tablets: BTreeMap<TabletId, TabletModel>,
    /// A split that was begun: of which tablet, at which slot, into which. Its outcome is on disk.
    pub split: Option<(TabletId, u16, TabletId)>,
    /// Writes that became durable, ever: a test that makes none shows nothing.
    pub acknowledged: u64,
    /// Writes that were lost, as they might be.
    pub lost: u64,
    /// Writes that survived though nobody had been told so.
    pub survived: u64,
}

/// The bytes of a key.
pub fn key_bytes((group, number): KeyId) -> Vec<u8> {
    format!("{{group-{group}}}:{number}").into_bytes()
}

/// `len` bytes that no other `id` has: a value that is half of one and half of another is neither.
pub fn value_bytes(id: u64, len: usize) -> Rc<[u8]> {
    let mut rng = fastrand::Rng::with_seed(id);
    (0..len).map(|_| rng.u8(..)).collect()
}

impl KeyRange {
    fn has(&self, key: KeyId) -> bool {
        let key = key_bytes(key);
        key >= self.start && (self.end.is_empty() || key < self.end)
    }
}

impl TabletModel {
    fn apply(&mut self, write: Write) {
        assert!(write.lsn.index() >= self.index, "entries are in order");
        self.index = write.lsn.index();
        if let Some(range) = &write.range {
            self.durable.retain(|key, _| !range.has(*key));
        }
        for (ordinal, (key, value)) in (write.lsn.ordinal()..).zip(write.ops) {
            let lsn = Lsn::new(write.lsn.index(), ordinal);
            match value {
                Some(value) => self.durable.insert(key, Version { lsn, value }),
                None => self.durable.remove(&key),
            };
        }
    }
}

impl Model {
    /// Notes a write that the engine has taken. Versions never go back.
    pub fn issue(&mut self, tablet: TabletId, write: Write) {
        let model = self.tablets.entry(tablet).or_default();
        match model.later.back() {
            Some(last) => assert!(write.lsn > last.lsn, "{} is given after {}", write.lsn, last.lsn),
            None => assert!(write.lsn.index() > model.index, "{} is given after {}", write.lsn, model.index),
        }
        model.later.push_back(write);
    }

    /// The log of `shard` is durable up to `block`.
    pub fn acknowledge(&mut self, shard: usize, block: BlockSeq) {
        for model in self.tablets.values_mut() {
            while model.later.front().is_some_and(|write| write.shard == shard && write.block <= block) {
                let write = model.later.pop_front().expect("it was looked at");
                model.apply(write);
                self.acknowledged += 1;
            }
        }
    }

    /// A tablet has split, or a start has found that it did.
    pub fn split(&mut self, tablet: TabletId, at: u16, into: TabletId) {
        let model = self.tablets.entry(tablet).or_default();
        assert!(model.later.is_empty(), "all of a tablet is durable when it splits");
        let is_upper = |key: &KeyId| Slot::of_key(&key_bytes(*key)).number() >= at;
        let durable = model.durable.extract_if(.., |key, _| is_upper(key)).collect();
        let other = TabletModel { durable, index: model.index, later: VecDeque::new() };
        let before = self.tablets.insert(into, other);
        assert!(before.is_none(), "tablet {into} is new");
        self.split = None;
    }

    /// Whether some writes of `tablet` may still be lost.
    pub fn is_settled(&self, tablet: TabletId) -> bool {
        self.tablets.get(&tablet).is_none_or(|model| model.later.is_empty())
    }

    /// A start has found these tablets.
    pub fn find(&mut self, tablets: &[TabletId]) {
        if let Some((tablet, at, into)) = self.split.take()
            && tablets.contains(&into)
        {
            // It is there only if all before it was durable.
            let model = self.tablets.entry(tablet).or_default();
            while let Some(write) = model.later.pop_front() {
                model.apply(write);
                self.survived += 1;
            }
            self.split(tablet, at, into);
        }
        for known in self.tablets.keys() {
            assert!(tablets.contains(known), "tablet {known} is gone");
        }
    }

    /// A start has found the entries of `tablet` up to `found`, and from now on they stay.
    pub fn settle(&mut self, tablet: TabletId, found: EntryIndex) {
        let model = self.tablets.entry(tablet).or_default();
        let durable = model.index;
        assert!(found >= durable, "tablet {tablet} ends with entry {found}, but {durable} was acknowledged");
        while model.later.front().is_some_and(|write| write.lsn.index() <= found) {
            let write = model.later.pop_front().expect("it was looked at");
            model.apply(write);
            self.survived += 1;
        }
        assert_eq!(model.index, found, "tablet {tablet} has entries that nobody wrote");
        self.lost += model.later.len() as u64;
        model.later.clear();
    }

    /// What a read of `key` must find now, and the shard's block on which that depends, if it may still be
    /// lost.
    pub fn current(&self, tablet: TabletId, key: KeyId) -> (Option<Version>, Option<BlockSeq>) {
        let Some(model) = self.tablets.get(&tablet) else { return (None, None) };
        for write in model.later.iter().rev() {
            if write.range.as_ref().is_some_and(|range| range.has(key)) {
                return (None, Some(write.block));
            }
            // A key is in an atomic group once at most.
            let mut ops = (write.lsn.ordinal()..).zip(&write.ops);
            if let Some((ordinal, (_, value))) = ops.find(|(_, (other, _))| *other == key) {
                let lsn = Lsn::new(write.lsn.index(), ordinal);
                let version = value.clone().map(|value| Version { lsn, value });
                return (version, Some(write.block));
            }
        }
        (model.durable.get(&key).cloned(), None)
    }
}
