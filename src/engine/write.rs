//! The write path: into the open block of the log and into the active memtable, in one synchronous step.

use std::mem;
use std::rc::Rc;

use super::manifest::ManifestError;
use super::memtable::Memtable;
use super::ranges::{RangeDelete, RangeDeletes};
use super::wal::{Appended, WalRoom};
use super::{Engine, EngineError};
use crate::base::{BlockSeq, EntryIndex, Lsn, Op};
use crate::env::Env;
use crate::metrics::Metrics;

/// A memtable that takes no more writes and waits for its flush.
pub struct Sealed {
    /// Its number among memtables.
    pub number: u64,
    /// Its entries.
    pub memtable: Memtable,
    /// Per tablet, the last entry of its log that is in here or in an older one.
    pub last: Vec<EntryIndex>,
    /// Per tablet, the range deletes up to that entry.
    ranges: Vec<Rc<RangeDeletes>>,
    /// The last block with something that is in here: nothing of it is flushed before that is durable.
    pub block: BlockSeq,
}

impl Sealed {
    /// The last entry of a tablet's log that is in here or in an older one.
    pub fn last(&self, local: usize) -> EntryIndex {
        self.last.get(local).copied().unwrap_or(EntryIndex::ZERO)
    }

    /// Range deletes of a tablet up to that entry.
    pub fn ranges(&self, local: usize) -> Rc<RangeDeletes> {
        self.ranges.get(local).cloned().unwrap_or_default()
    }
}

/// What an operation takes in the log beyond key and value, at most.
pub const WRITE_OVERHEAD: usize = 16;

/// The same for the range delete of one tablet among many: with headers of its entry, and a block for every few.
const EVERYWHERE_OVERHEAD: usize = 256;

/// Whether writes may go ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Yes.
    Yes,
    /// The flush makes room soon; or merges are behind, and the write's time comes soon. [`Engine::changed`] tells.
    Wait,
}

impl<E: Env> Engine<E> {
    /// Whether a write of `bytes` (keys, values and [`WRITE_OVERHEAD`] an operation) may go ahead, should
    /// wait, or is refused. Deletes are taken as long as there is any room in the log.
    pub fn room(&self, is_put: bool, bytes: usize) -> Result<Room, EngineError> {
        if let Some(cause) = self.wal.failed() {
            return Err(EngineError::Log(cause));
        }
        if let Some(cause) = self.manifest.failed() {
            // Nothing can be flushed any more: better refused now than when memory is used up.
            return Err(ManifestError::Failed(cause).into());
        }
        if is_put && let Some(shortage) = self.shortage.borrow().as_ref() {
            return Err(EngineError::Full(shortage.clone()));
        }
        match self.wal.room(bytes) {
            WalRoom::Yes => {}
            WalRoom::Wait => return Ok(Room::Wait),
            WalRoom::Full(cause) => return Err(EngineError::Full(cause)),
        }
        let is_full = self.active.borrow().bytes() >= self.options.memtable_bytes;
        if !is_full || self.sealed.borrow().len() < self.options.sealed_max {
            let fails = self.flush_trouble.borrow().is_some();
            return Ok(if !fails && self.must_slow_down() { Room::Wait } else { Room::Yes });
        }
        match self.flush_trouble.borrow().as_ref() {
            Some(cause) if cause.is_full() => Err(EngineError::Full(cause.to_string())),
            Some(cause) => Err(EngineError::Flush(cause.to_string())),
            None => Ok(Room::Wait),
        }
    }

    /// Appends `ops`, all of one tablet, as one atomic group, and applies them to the memtable.
    /// `hashes[i]` belongs to `ops[i]`. The caller has asked [`Engine::room`] and tells nobody before the
    /// returned block is durable.
    pub fn write(&self, tablet: usize, ops: &[Op<'_>], hashes: &[u64]) -> Result<Appended, EngineError> {
        assert_eq!(ops.len(), hashes.len(), "one hash per operation");
        let local = self.tablet(tablet);
        let appended = self.wal.append(local.log, ops)?;
        let index = appended.lsn.index();
        {
            let mut active = self.active.borrow_mut();
            // The ordinals come last in the zip: it asks what comes first once more at its end, and the one
            // after those of a full entry is more than 16 bits.
            for ((op, &hash), ordinal) in ops.iter().zip(hashes).zip(appended.lsn.ordinal()..) {
                let lsn = Lsn::new(index, ordinal);
                local.last_lsn.set(lsn);
                active.insert(tablet, hash, op.key, lsn, op.kind, op.expiry_ms, op.value);
            }
        }
        let mut last = self.last.borrow_mut();
        assert!(last[tablet] <= index, "entries are applied in the order of the log");
        last[tablet] = index;
        drop(last);
        Metrics::add(&self.metrics.wal_ops, ops.len() as u64);
        self.accept(ops.iter().map(|op| (op.key.len() + op.value.len()) as u64).sum());
        self.rotate_if_full();
        Ok(appended)
    }

    /// Seals the active memtable if it is full and another may wait for its flush.
    pub(super) fn rotate_if_full(&self) {
        let is_full = self.active.borrow().bytes() >= self.options.memtable_bytes;
        if is_full && self.sealed.borrow().len() < self.options.sealed_max {
            self.rotate();
        }
    }

    /// Appends the deletion of a tablet's keys from `start` on and before `end` (empty: to the last one), in time
    /// that does not depend on how many they are. Writes before it are gone, those after it are not. The caller
    /// has asked [`Engine::room`] and tells nobody before the returned block is durable.
    ///
    /// # Panics
    /// If the range is empty.
    pub fn delete_range(&self, tablet: usize, start: &[u8], end: &[u8]) -> Result<Appended, EngineError> {
        let state = self.tablet(tablet);
        let ranges = state.ranges();
        if !ranges.has_room(start, end) {
            let fragments = ranges.fragments().len();
            return Err(EngineError::TooManyRanges { tablet: state.id, fragments });
        }
        let appended = self.wal.append(state.log, &[Op::range_delete(start, end)])?;
        let range = RangeDelete::new(start, end, appended.lsn).expect("the caller refuses empty ranges");
        self.take_range(tablet, &range);
        state.last_lsn.set(appended.lsn);
        let mut last = self.last.borrow_mut();
        assert!(last[tablet] <= appended.lsn.index(), "entries are applied in the order of the log");
        last[tablet] = appended.lsn.index();
        drop(last);
        Metrics::add(&self.metrics.wal_ops, 1);
        Metrics::add(&self.metrics.range_deletes, 1);
        self.changed.notify();
        Ok(appended)
    }

    /// Whether [`Engine::delete_everywhere`] may go ahead.
    pub fn room_everywhere(&self, start: &[u8], end: &[u8]) -> Result<Room, EngineError> {
        let here: Vec<_> = self.all_tablets().into_iter().filter(|tablet| tablet.is_served()).collect();
        let bounds = start.len() + end.len();
        // Headers of entries, and of blocks if it takes several.
        let bytes = here.len() * (bounds + EVERYWHERE_OVERHEAD);
        let limit = self.options.segment_bytes as usize / 4;
        if bytes > limit {
            return Err(EngineError::RangeTooLong { tablets: here.len(), bytes, limit });
        }
        if let Some(crowded) = here.iter().find(|tablet| !tablet.ranges().has_room(start, end)) {
            let fragments = crowded.ranges().fragments().len();
            return Err(EngineError::TooManyRanges { tablet: crowded.id, fragments });
        }
        self.room(false, bytes)
    }

    /// As [`Engine::delete_range`], of each tablet that is served here. The caller has asked
    /// [`Engine::room_everywhere`]. Returns the last block, if there is a tablet.
    pub fn delete_everywhere(&self, start: &[u8], end: &[u8]) -> Result<Option<BlockSeq>, EngineError> {
        let mut last = None;
        for (local, tablet) in self.all_tablets().iter().enumerate() {
            if tablet.is_served() {
                last = Some(self.delete_range(local, start, end)?.block);
            }
        }
        Ok(last)
    }

    /// Hides what `range` removes.
    pub(super) fn take_range(&self, tablet: usize, range: &RangeDelete) {
        let tablet = self.tablet(tablet);
        let ranges = tablet.ranges().with(range);
        tablet.ranges.replace(Rc::new(ranges));
        self.has_new_ranges.set(true);
    }

    /// Seals the active memtable and starts a new one, if anything was written since the last: range deletes are
    /// not in it, but are flushed with it. The open block of the log is closed with it, so that no entry is
    /// divided between two memtables.
    pub fn rotate(&self) {
        if self.active.borrow().entries() == 0 && !self.has_new_ranges.get() {
            return;
        }
        self.has_new_ranges.set(false);
        self.wal.seal_open();
        let memtable = mem::replace(&mut *self.active.borrow_mut(), Memtable::new(self.tablets()));
        let number = self.active_number.replace(self.active_number.get() + 1);
        let (last, block) = (self.last.borrow().clone(), self.wal.appended());
        let ranges = self.tablets.borrow().iter().map(|tablet| tablet.ranges()).collect();
        let sealed = Sealed { number, memtable, last, ranges, block };
        self.sealed.borrow_mut().push_back(Rc::new(sealed));
        self.changed.notify();
    }
}
