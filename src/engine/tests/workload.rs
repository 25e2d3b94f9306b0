//! Random work on an open store, each step compared with the model.

use std::cell::RefCell;
use std::time::Duration;

use super::model::{KeyId, KeyRange, Model, Write, key_bytes, value_bytes};
use super::store::{Place, Store, join_all};
use crate::base::{Op, OpKind};
use crate::engine::{EngineError, Room, TransferError, WRITE_OVERHEAD};
use crate::env::Env;

/// Slots that are written to; the keys of one may share an atomic group.
const GROUPS: u8 = 12;
/// Keys in each.
const KEYS: u8 = 5;
/// Values of one write, together: with their headers they fit the smallest segment, of two pages for
/// blocks.
const GROUP_BYTES_MAX: usize = 7000;

/// How long a store may make a writer wait before that counts as standing still. Longer than every pause
/// before something is tried again.
const PATIENCE: Duration = Duration::from_secs(20);

/// Draws work. What it draws does not depend on how the engine fares.
pub struct Worker {
    rng: fastrand::Rng,
    /// Values so far, so that no two are equal.
    values: u64,
    /// Whether tablets move and split.
    pub transfers: bool,
}

/// Tablets beyond which none splits any more.
const TABLETS_MAX: usize = 14;

/// What became of a write.
#[derive(Debug)]
pub enum Outcome {
    Taken,
    Refused(EngineError),
}

impl Outcome {
    pub fn is_taken(&self) -> bool {
        matches!(self, Outcome::Taken)
    }
}

/// Every key there may be.
pub fn all_keys() -> impl Iterator<Item = KeyId> {
    (0..GROUPS).flat_map(|group| (0..KEYS).map(move |number| (group, number)))
}

impl Worker {
    pub fn new(seed: u64) -> Worker {
        Worker { rng: fastrand::Rng::with_seed(seed), values: seed << 32, transfers: false }
    }

    /// One whose tablets move and split as well.
    pub fn with_transfers(seed: u64) -> Worker {
        Worker { transfers: true, ..Worker::new(seed) }
    }

    /// Moves or splits a random tablet, with some writes on the way.
    pub async fn transfer(&mut self, store: &Store, model: &RefCell<Model>) -> Result<(), TransferError> {
        let tablets = store.tablets();
        let (id, slots) = tablets[self.rng.usize(..tablets.len())];
        let is_split = tablets.len() < TABLETS_MAX && slots.count() > 1 && self.rng.u8(..4) == 0;
        let at = self.rng.u16(slots.first()..=slots.last()).max(slots.first() + u16::from(is_split));
        let from = store.find(id).expect("it was listed").0;
        let to = (from + self.rng.usize(..store.engines.len())) % store.engines.len();
        let writes = self.rng.u32(..4);
        let meanwhile = async || {
            // One that has to wait for room would wait for the flush that the transfer holds up.
            self.write_some(store, model, writes).await;
        };
        match is_split {
            true => store.split(id, at, model, meanwhile).await,
            false if to == from => Ok(()),
            false => store.move_tablet(id, to, model, meanwhile).await,
        }
    }

    /// Few keys get most writes.
    fn key(&mut self) -> KeyId {
        let low = |rng: &mut fastrand::Rng, end: u8| rng.u8(..end).min(rng.u8(..end));
        (low(&mut self.rng, GROUPS), low(&mut self.rng, KEYS))
    }

    /// A value; one in twenty is large.
    fn value(&mut self, bytes_max: usize) -> std::rc::Rc<[u8]> {
        let len = match self.rng.u8(..20) {
            0 => 0,
            1 => self.rng.usize(..bytes_max),
            _ => self.rng.usize(..200),
        };
        self.values += 1;
        value_bytes(self.values, len)
    }

    /// A write of one key, or of several of one slot.
    fn ops(&mut self) -> Vec<(KeyId, Option<std::rc::Rc<[u8]>>)> {
        let (group, number) = self.key();
        let count = if self.rng.u8(..5) == 0 { self.rng.u8(2..=KEYS) } else { 1 };
        let value_bytes_max = GROUP_BYTES_MAX / usize::from(count);
        (0..count)
            .map(|n| {
                let is_delete = self.rng.u8(..5) == 0;
                ((group, (number + n) % KEYS), (!is_delete).then(|| self.value(value_bytes_max)))
            })
            .collect()
    }

    /// One random write, if the engine has room for it.
    fn write_at_once(&mut self, store: &Store, model: &RefCell<Model>) {
        let ops = self.ops();
        futures_lite::future::block_on(futures_lite::future::poll_once(Self::take(ops, store, model)));
    }

    /// One random write, as soon as the engine has room for it.
    pub async fn write(&mut self, store: &Store, model: &RefCell<Model>) -> Outcome {
        let ops = self.ops();
        Self::take(ops, store, model).await
    }

    /// Writes, and deletes ranges, as far as there is room.
    pub async fn write_some(&mut self, store: &Store, model: &RefCell<Model>, count: u32) {
        for _ in 0..count {
            if self.rng.u8(..4) == 0 {
                let delete = self.delete_range(store, model);
                futures_lite::future::block_on(futures_lite::future::poll_once(delete));
            }
            self.write_at_once(store, model);
        }
    }

    async fn take(
        ops: Vec<(KeyId, Option<std::rc::Rc<[u8]>>)>,
        store: &Store,
        model: &RefCell<Model>,
    ) -> Outcome {
        if store.is_lost(ops[0].0) {
            return Outcome::Taken;
        }
        let place = store.place(ops[0].0);
        let engine = &store.engines[place.shard];
        let keys: Vec<Vec<u8>> = ops.iter().map(|(key, _)| key_bytes(*key)).collect();
        let physical: Vec<Op<'_>> = ops
            .iter()
            .zip(&keys)
            .map(|((_, value), key)| Op {
                kind: if value.is_some() { OpKind::Put } else { OpKind::Delete },
                key,
                value: value.as_deref().unwrap_or_default(),
                expiry_ms: 0,
            })
            .collect();
        let bytes = physical.iter().map(|op| op.key.len() + op.value.len() + WRITE_OVERHEAD).sum();
        let is_put = ops.iter().any(|(_, value)| value.is_some());
        if let Err(error) = Self::room(store, place, is_put, bytes).await {
            return Outcome::Refused(error);
        }
        let hashes: Vec<u64> = keys.iter().map(|key| engine.hash(key)).collect();
        let appended = match engine.write(place.local, &physical, &hashes) {
            Ok(appended) => appended,
            Err(error) => return Outcome::Refused(error),
        };
        let write = Write { lsn: appended.lsn, shard: place.shard, block: appended.block, ops, range: None };
        model.borrow_mut().issue(place.tablet, write);
        Outcome::Taken
    }

    /// Everything of a tablet, the keys of a group, or a range between two keys.
    fn range(&mut self) -> KeyRange {
        let group = |group: u8| format!("{{group-{group}}}:").into_bytes();
        match self.rng.u8(..4) {
            0 => KeyRange { start: Vec::new(), end: Vec::new() },
            1 => {
                let start = group(self.rng.u8(..GROUPS));
                let mut end = start.clone();
                *end.last_mut().expect("it has a colon") += 1;
                KeyRange { start, end }
            }
            _ => {
                let (one, other) = (key_bytes(self.key()), key_bytes(self.key()));
                let start = one.clone().min(other.clone());
                let end = if one == other { Vec::new() } else { one.max(other) };
                KeyRange { start, end }
            }
        }
    }

    /// Deletes a random range of one tablet.
    async fn delete_range(&mut self, store: &Store, model: &RefCell<Model>) -> Outcome {
        let (key, range) = (self.key(), self.range());
        if store.is_lost(key) {
            return Outcome::Taken;
        }
        let place = store.place(key);
        self.delete(store, model, (place.shard, place.local), range).await
    }

    /// Deletes a range of the tablet with this local number on a shard.
    pub async fn delete(
        &mut self,
        store: &Store,
        model: &RefCell<Model>,
        (shard, local): (usize, usize),
        range: KeyRange,
    ) -> Outcome {
        let tablet = store.engines[shard].tablet(local).id;
        let place = Place { shard, local, tablet };
        let bytes = range.start.len() + range.end.len() + WRITE_OVERHEAD;
        if let Err(error) = Self::room(store, place, false, bytes).await {
            return Outcome::Refused(error);
        }
        let engine = &store.engines[place.shard];
        let appended = match engine.delete_range(place.local, &range.start, &range.end) {
            Ok(appended) => appended,
            Err(error) => return Outcome::Refused(error),
        };
        let (lsn, block, ops) = (appended.lsn, appended.block, Vec::new());
        let write = Write { lsn, shard: place.shard, block, ops, range: Some(range) };
        model.borrow_mut().issue(place.tablet, write);
        Outcome::Taken
    }

    /// Waits until the engine has room.
    async fn room(store: &Store, place: Place, is_put: bool, bytes: usize) -> Result<(), EngineError> {
        let engine = &store.engines[place.shard];
        let since = store.env.now();
        loop {
            let flushed = engine.changed().notified();
            let durable = engine.wal.durable_changed().notified();
            match engine.room(is_put, bytes) {
                Ok(Room::Yes) => return Ok(()),
                Ok(Room::Wait) => {}
                Err(error) => return Err(error),
            }
            let mut is_late = false;
            let late = async {
                store.env.sleep((since + PATIENCE).saturating_sub(store.env.now())).await;
                is_late = true;
            };
            futures_lite::future::or(futures_lite::future::or(flushed, durable), late).await;
            assert!(!is_late, "shard {} neither makes room nor says why not", place.shard);
        }
    }

    /// One random step: most are writes. `Err` is what a read or a write was refused with.
    pub async fn step(&mut self, store: &Store, model: &RefCell<Model>) -> Result<(), EngineError> {
        if self.transfers && self.rng.u8(..40) == 0 {
            match self.transfer(store, model).await {
                Ok(()) | Err(TransferError::NotHere(_)) => {}
                Err(TransferError::Failed(error)) if error.is_full() => {
                    return Err(EngineError::Full(error.to_string()));
                }
                Err(TransferError::Failed(error)) => return Err(error),
                Err(TransferError::Undecided(error)) => return Err(error.into()),
            }
        }
        match self.rng.u8(..100) {
            0..4 => match self.delete_range(store, model).await {
                Outcome::Taken => {}
                Outcome::Refused(error) => return Err(error),
            },
            4..70 => match self.write(store, model).await {
                // Without a pause, writes would share few blocks.
                Outcome::Taken if self.rng.bool() => {
                    store.env.sleep(Duration::from_micros(self.rng.u64(..100))).await;
                }
                Outcome::Taken => {}
                Outcome::Refused(error) => return Err(error),
            },
            70..82 => {
                let key = self.key();
                store.check(key, model).await?;
            }
            82..88 => {
                // Now and then long enough for a log to seal itself.
                let micros = if self.rng.u8(..10) == 0 { 60_000 } else { self.rng.u64(..2000) };
                store.env.sleep(Duration::from_micros(micros)).await;
            }
            88..94 => store.seal(self.rng.usize(..store.engines.len())),
            _ => {
                let engine = &store.engines[self.rng.usize(..store.engines.len())];
                let block = engine.wal.appended();
                engine.wal.request_sync(block);
                let changed = engine.wal.durable_changed();
                changed.until(|| engine.wal.durable() >= block || engine.wal.failed().is_some()).await;
            }
        }
        store.acknowledge(model);
        Ok(())
    }

    /// Reads every key, in random order and several at once.
    pub async fn check_all(&mut self, store: &Store, model: &RefCell<Model>) -> Result<(), EngineError> {
        let mut keys: Vec<KeyId> = all_keys().collect();
        self.rng.shuffle(&mut keys);
        for some in keys.chunks(6) {
            for checked in join_all(some.iter().map(|key| store.check(*key, model)).collect()).await {
                checked?;
            }
        }
        Ok(())
    }
}
