//! Writes blocks, a few at a time, and counts them as durable in order.

use std::rc::Rc;
use std::time::Duration;

use super::super::format::{
    BLOCK_HEADER_BYTES, BlockInfo, NO_TABLET, RECORD_HEADER_BYTES, RecordInfo, RecordKind, encode_record,
    encode_record_header,
};
use super::{LAZY_BYTES, SealedBlock, Wal, WalError};
use crate::base::{BlockSeq, EntryIndex, crc32c, crc32c_append, page_align};
use crate::disk::{Disk, File};
use crate::env::{Env, Queue};
use crate::metrics::note_slow;

/// Idle for this long, the log writes a seal, so that the next start knows its last blocks to be durable.
const IDLE: Duration = Duration::from_millis(20);
/// Bytes of a block that are built before others have their turn: that takes about 0.1 ms.
const STEP_BYTES: usize = 256 << 10;

/// Buffers of entries that are kept for others, and the capacity of one.
const SPARE_MAX: usize = 64;
const SPARE_BYTES_MAX: usize = 128 << 10;

impl<E: Env> Wal<E> {
    /// Commits blocks until the log is closed or fails.
    pub(super) async fn commit_loop(self: Rc<Self>) {
        loop {
            let next = self.work.notified();
            if self.failed.borrow().is_some() {
                return;
            }
            if self.has_window() && self.take_open() {
                let block = self.state.borrow_mut().queue.pop_front();
                let Some(block) = block else { continue };
                self.issue(block).await;
                continue;
            }
            let (is_idle, open_since) = {
                let state = self.state.borrow();
                let is_idle = self.in_flight.get() == 0 && state.queue.is_empty() && state.open.bytes == 0;
                (is_idle, (state.open.bytes > 0).then_some(state.open.since))
            };
            if is_idle && self.closing.get() && !self.has_unsealed.get() {
                return;
            }
            if is_idle && self.has_unsealed.get() {
                if !self.closing.get() {
                    let mut is_timer = false;
                    let timer = async {
                        self.env.sleep(IDLE).await;
                        is_timer = true;
                    };
                    futures_lite::future::or(next, timer).await;
                    if !is_timer {
                        continue;
                    }
                }
                if self.seal_idle() {
                    continue;
                }
                if self.closing.get() {
                    self.prepare_for_seal().await;
                } else {
                    self.work.notified().await;
                }
                continue;
            }
            match (self.options.lazy, open_since) {
                (Some(interval), Some(since)) if self.has_window() => {
                    let left = (since + interval).saturating_sub(self.env.now());
                    futures_lite::future::or(next, self.env.sleep(left)).await;
                }
                _ => next.await,
            }
        }
    }

    /// Whether the next block may be written: it is at most a window beyond what is durable. A limit on how
    /// many are in flight would not do, since one slow write would let any number pass it, and after a crash
    /// a reader would take the hole for rot.
    fn has_window(&self) -> bool {
        let state = self.state.borrow();
        let next = state.queue.front().map_or(state.next_seq, |block| block.seq);
        next.0 <= self.durable.get().0 + self.options.window as u64
    }

    /// Makes sure that a block is queued, if one is due.
    fn take_open(&self) -> bool {
        let mut state = self.state.borrow_mut();
        if !state.queue.is_empty() {
            return true;
        }
        if state.open.bytes == 0 {
            return false;
        }
        let is_due = match self.options.lazy {
            None => true,
            Some(interval) => {
                self.closing.get()
                    || self.wanted.get() >= state.next_seq
                    || state.open.bytes >= LAZY_BYTES
                    || self.env.now() >= state.open.since + interval
            }
        };
        if is_due {
            self.seal(&mut state, false);
        }
        is_due
    }

    /// Queues an empty block with a seal, which carries `durable_seq` to disk: without it a damaged last block
    /// looks like one that was never finished. Whether there was a place for it, or no need any more.
    fn seal_idle(&self) -> bool {
        let mut state = self.state.borrow_mut();
        if state.open.bytes > 0 {
            return true;
        }
        let len = page_align(BLOCK_HEADER_BYTES + RECORD_HEADER_BYTES) as u64;
        let has_place = state.cursor + len <= self.options.segment_bytes || state.standby.is_some();
        if has_place {
            self.has_unsealed.set(false);
            self.seal(&mut state, true);
        }
        has_place
    }

    /// Builds a block's bytes, a large one in steps, and starts its write.
    async fn issue(self: &Rc<Self>, block: SealedBlock<E>) {
        let mut buffer = self.env.disk().alloc(page_align(BLOCK_HEADER_BYTES + block.payload_len));
        let mut at = BLOCK_HEADER_BYTES;
        let (mut payload_crc, mut left) = (0, STEP_BYTES);
        for entry in &block.entries {
            let info = {
                let log = &self.state.borrow().tablets[entry.tablet];
                let (tablet, term) = (log.id, log.term);
                RecordInfo { kind: Some(RecordKind::Data), tablet, term, index: entry.index, ops: entry.ops }
            };
            let body_at = at + RECORD_HEADER_BYTES;
            let (mut body_crc, mut copied) = (0, body_at);
            for piece in entry.body.chunks(STEP_BYTES) {
                if piece.len() > left {
                    self.env.rest().await;
                    left = STEP_BYTES;
                }
                left -= piece.len();
                buffer[copied..copied + piece.len()].copy_from_slice(piece);
                body_crc = crc32c_append(body_crc, piece);
                copied += piece.len();
            }
            encode_record_header(RecordKind::Data, &info, entry.body.len(), body_crc, &mut buffer[at..]);
            payload_crc = crc32c_append(payload_crc, &buffer[at..body_at]);
            for piece in buffer[body_at..copied].chunks(STEP_BYTES) {
                if entry.body.len() > STEP_BYTES {
                    self.env.rest().await;
                }
                payload_crc = crc32c_append(payload_crc, piece);
            }
            at = copied;
        }
        if block.is_seal {
            let info = RecordInfo { kind: None, tablet: NO_TABLET, term: 0, index: EntryIndex::ZERO, ops: 0 };
            encode_record(RecordKind::Seal, &info, &[], &mut buffer[at..]);
            payload_crc = crc32c_append(payload_crc, &buffer[at..at + RECORD_HEADER_BYTES]);
            at += RECORD_HEADER_BYTES;
        }
        assert_eq!(at, BLOCK_HEADER_BYTES + block.payload_len, "every byte was accounted for");
        buffer[at..].fill(0);
        debug_assert_eq!(payload_crc, crc32c(&buffer[BLOCK_HEADER_BYTES..at]));
        let mut state = self.state.borrow_mut();
        let info = BlockInfo {
            log: self.log,
            segment: block.segment.number,
            nonce: self.nonce,
            seq: block.seq,
            durable_seq: self.durable.get(),
            wall_ms: self.env.wall_ms(),
            payload_len: block.payload_len,
            record_count: (block.entries.len() + usize::from(block.is_seal)) as u32,
            prev_crc: state.prev_crc,
            payload_crc,
            crc: 0,
        };
        assert!(info.durable_seq < info.seq, "a block is durable after it was written");
        state.prev_crc = info.encode(&mut buffer);
        let entries = block.entries.iter().map(|entry| (entry.tablet, entry.index)).collect();
        for mut entry in block.entries {
            if state.spare.len() < SPARE_MAX && entry.body.capacity() <= SPARE_BYTES_MAX {
                entry.body.clear();
                state.spare.push(entry.body);
            }
        }
        drop(state);
        if !block.is_seal {
            self.has_unsealed.set(true);
        }
        self.in_flight.set(self.in_flight.get() + 1);
        let (wal, guard) = (self.clone(), self.running.enter());
        let (segment, offset, seq) = (block.segment, block.offset, block.seq);
        self.env.spawn(Queue::Foreground, async move {
            let len = buffer.len() as u64;
            let begin = wal.env.now();
            let result = segment.file.write_at(offset, buffer).await;
            note_slow(wal.env.now() - begin, &wal.slow.0, &wal.slow.1);
            drop(segment);
            wal.in_flight.set(wal.in_flight.get() - 1);
            match result {
                Ok(()) => wal.completed(seq, entries, len),
                Err(error) => wal.fail(error.into()),
            }
            wal.work.notify();
            drop(guard);
        });
    }

    fn completed(&self, seq: BlockSeq, entries: Vec<(usize, EntryIndex)>, len: u64) {
        let (blocks, bytes) = self.written.get();
        self.written.set((blocks + 1, bytes + len));
        if self.failed.borrow().is_some() {
            return; // an earlier block did not make it: this one must not count
        }
        let mut state = self.state.borrow_mut();
        state.completed.push((seq, entries));
        let mut durable = self.durable.get();
        while let Some(at) = state.completed.iter().position(|(s, _)| *s == durable.next()) {
            let (seq, entries) = state.completed.swap_remove(at);
            durable = seq;
            for (tablet, index) in entries {
                let log = &mut state.tablets[tablet];
                assert!(index > log.durable && index <= log.last, "durable grows, up to what was appended");
                log.durable = index;
                while log.in_flight.front().is_some_and(|(i, _)| *i <= index) {
                    log.in_flight.pop_front();
                }
            }
        }
        assert!(durable < state.next_seq, "only what was sealed becomes durable");
        if durable > self.durable.get() {
            self.durable.set(durable);
            drop(state);
            self.changed.notify();
        }
    }

    fn fail(&self, error: WalError) {
        if self.failed.borrow().is_none() {
            tracing::error!(log = self.log.0, "the log failed, this shard takes no more writes: {error}");
            self.failed.replace(Some(Rc::new(error)));
        }
        self.changed.notify();
    }
}
