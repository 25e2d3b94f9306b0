//! The write path: into the open block of the log and into the active memtable, in one synchronous step.

use std::cell::Cell;
use std::mem;
use std::rc::Rc;

use super::manifest::ManifestError;
use super::memtable::{Memtable, StagedRecord};
use super::ranges::{RangeDelete, RangeDeletes};
use super::wal::{Appended, WalRoom};
use super::{Engine, EngineError};
use crate::base::{BlockSeq, Bug, EntryIndex, Lsn, Op, OpKind, planted};
use crate::env::{Env, Notify};
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

/// A put of a large value, copied piece by piece to where the log and the memtable take it over whole. So the write
/// itself, which is one step, copies nothing. Takes as much memory as both.
pub struct Staged {
    record: StagedRecord,
    /// The operation as it is logged.
    body: Vec<u8>,
    /// Bytes before the value.
    head_len: usize,
    value_len: usize,
    _share: StagedShare,
}

/// Bytes that all staged puts of a shard take, or one alone.
pub const STAGED_BYTES_MAX: usize = 32 << 20;

/// What one of them takes. Its end is told like that of a flush: others may wait for it.
struct StagedShare {
    bytes: usize,
    total: Rc<Cell<usize>>,
    changed: Notify,
}

impl Drop for StagedShare {
    fn drop(&mut self) {
        self.total.set(self.total.get() - self.bytes);
        self.changed.notify();
    }
}

impl Staged {
    /// Copies up to `bytes` more of `value`. Whether all of it was copied.
    pub fn fill(&mut self, value: &[u8], bytes: usize) -> bool {
        assert_eq!(value.len(), self.value_len, "it is the value that was begun");
        let copied = self.body.len() - self.head_len;
        let piece = &value[copied..value.len().min(copied + bytes)];
        self.record.push(piece);
        self.body.extend_from_slice(piece);
        self.is_whole()
    }

    /// Length of the whole value.
    pub fn value_len(&self) -> usize {
        self.value_len
    }

    /// Whether all of the value was copied.
    pub fn is_whole(&self) -> bool {
        self.body.len() - self.head_len == self.value_len
    }

    /// Makes it the put of `key` with this expiry. Whether it can be that: it is whole, and has an expiry if it was to.
    fn complete(&mut self, key: &[u8], expiry_ms: u64) -> bool {
        let op = Op { kind: OpKind::Put, key, value: &self.body[self.head_len..], expiry_ms };
        let mut head = Vec::with_capacity(self.head_len);
        op.encode_head(&mut head);
        let is_it = self.is_whole() && head.len() == self.head_len;
        if is_it {
            self.body[..head.len()].copy_from_slice(&head);
        }
        is_it
    }
}

/// How many times as long as a memtable is large its part of the log may be, by what was written.
pub const LOG_FACTOR: usize = 2;
/// The same by what it takes on disk: a block is a page at least, and who writes one at a time fills none.
pub const PLACED_FACTOR: u64 = 4;

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
            WalRoom::Never => return Err(self.wal.longer_than_segment(bytes).into()),
        }
        let is_full = self.active_fill() >= self.options.memtable_bytes;
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
            let kept = if planted(Bug::VersionReplaced) { Lsn::ZERO } else { local.snapshot_lsn.get() };
            // The ordinals come last in the zip: it asks what comes first once more at its end, and the one
            // after those of a full entry is more than 16 bits.
            for ((op, &hash), ordinal) in ops.iter().zip(hashes).zip(appended.lsn.ordinal()..) {
                let lsn = Lsn::new(index, ordinal);
                local.last_lsn.set(lsn);
                active.insert(tablet, hash, op.key, lsn, op.kind, op.expiry_ms, op.value, kept);
            }
        }
        let bytes = ops.iter().map(|op| op.key.len() + op.value.len()).sum();
        self.applied(tablet, index, ops.len(), bytes);
        Ok(appended)
    }

    /// Begins to stage `op`, a put, whose value is still to be copied. Its expiry may become another, but not none.
    /// `None`: others are staged at this moment, and [`Engine::changed`] tells when there is room.
    pub fn stage(&self, op: &Op<'_>) -> Option<Staged> {
        assert_eq!(op.kind, OpKind::Put, "only puts have values");
        let (total, bytes) = (self.staged_bytes.clone(), 2 * op.encoded_len());
        if total.get() > 0 && total.get() + bytes > STAGED_BYTES_MAX {
            return None;
        }
        total.set(total.get() + bytes);
        let _share = StagedShare { bytes, total, changed: self.changed.clone() };
        let mut body = Vec::with_capacity(op.encoded_len());
        op.encode_head(&mut body);
        let record = StagedRecord::new(op.key, op.value.len());
        Some(Staged { record, head_len: body.len(), body, value_len: op.value.len(), _share })
    }

    /// Writes an operation that was staged, as [`Engine::write`] does, without copying its value.
    pub fn write_staged(
        &self,
        tablet: usize,
        op: &Op<'_>,
        hash: u64,
        mut staged: Staged,
    ) -> Result<Appended, EngineError> {
        let is_staged = op.kind == OpKind::Put && op.value.len() == staged.value_len;
        if !is_staged || !staged.complete(op.key, op.expiry_ms) {
            return self.write(tablet, std::slice::from_ref(op), &[hash]);
        }
        self.append_staged(tablet, op.key, op.expiry_ms, hash, staged)
    }

    /// Writes a put of `key` whose value is nowhere else than where it was staged, all of it. It expires if it was
    /// staged as one that does. The rest as for [`Engine::write`].
    pub fn write_restaged(
        &self,
        tablet: usize,
        key: &[u8],
        expiry_ms: u64,
        hash: u64,
        mut staged: Staged,
    ) -> Result<Appended, EngineError> {
        assert!(staged.complete(key, expiry_ms), "all of it was staged, as what it becomes");
        self.append_staged(tablet, key, expiry_ms, hash, staged)
    }

    /// Takes over one that is complete.
    fn append_staged(
        &self,
        tablet: usize,
        key: &[u8],
        expiry_ms: u64,
        hash: u64,
        staged: Staged,
    ) -> Result<Appended, EngineError> {
        let Staged { record, body, value_len, _share, .. } = staged;
        let local = self.tablet(tablet);
        let appended = self.wal.append_encoded(local.log, body)?;
        local.last_lsn.set(appended.lsn);
        self.active.borrow_mut().insert_staged(tablet, hash, key, appended.lsn, expiry_ms, record);
        self.applied(tablet, appended.lsn.index(), 1, key.len() + value_len);
        Ok(appended)
    }

    /// Notes that so many operations, with so many bytes of keys and values, are in the log and in the memtable.
    #[inline]
    fn applied(&self, tablet: usize, index: EntryIndex, ops: usize, bytes: usize) {
        let mut last = self.last.borrow_mut();
        assert!(last[tablet] <= index, "entries are applied in the order of the log");
        last[tablet] = index;
        drop(last);
        Metrics::add(&self.metrics.wal_ops, ops as u64);
        self.accept(bytes as u64);
        self.note_logged(ops, bytes);
        self.rotate_if_full();
    }

    /// Notes that the log has so many operations, and bytes of keys and values, of the active memtable more.
    #[inline]
    pub(super) fn note_logged(&self, ops: usize, bytes: usize) {
        self.active_log.set(self.active_log.get() + bytes + ops * WRITE_OVERHEAD);
    }

    /// How full the active memtable is: the bytes that it takes, or a part of those that its log does, if that is more.
    /// What is written over and over takes no memory, but a start reads and replays all of it.
    #[inline]
    pub(super) fn active_fill(&self) -> usize {
        let placed = self.wal.placed().wrapping_sub(self.placed_before.get()) / PLACED_FACTOR;
        self.active.borrow().bytes().max(self.active_log.get() / LOG_FACTOR).max(placed as usize)
    }

    /// Notes that a block of this length of an old log has something for the active memtable.
    pub(super) fn note_replayed(&self, bytes: u64) {
        self.placed_before.set(self.placed_before.get().wrapping_sub(bytes));
    }

    /// Seals the active memtable if it is full and another may wait for its flush.
    pub(super) fn rotate_if_full(&self) {
        let is_full = self.active_fill() >= self.options.memtable_bytes;
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
        // Rows would outlive it: it is forgotten once no table has what it hides.
        self.rows.borrow_mut().clear();
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
        self.has_remains.set(false);
        self.wal.seal_open();
        self.active_log.set(0);
        self.placed_before.set(self.wal.placed());
        let next = self.active.borrow().successor(self.tablets());
        let memtable = mem::replace(&mut *self.active.borrow_mut(), next);
        let number = self.active_number.replace(self.active_number.get() + 1);
        let (last, block) = (self.last.borrow().clone(), self.wal.appended());
        let ranges = self.tablets.borrow().iter().map(|tablet| tablet.ranges()).collect();
        let sealed = Sealed { number, memtable, last, ranges, block };
        self.sealed.borrow_mut().push_back(Rc::new(sealed));
        self.changed.notify();
    }
}
