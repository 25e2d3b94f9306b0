//! The writing end: a synchronous append into the open block, and a loop that commits blocks.

mod commit;
mod prepare;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use super::format::{BLOCK_HEADER_BYTES, RECORD_HEADER_BYTES, SEGMENT_HEADER_BYTES};
use super::segment::{self, Segment};
use super::{WINDOW_MAX, WalError};
use crate::base::{
    BlockSeq, ENTRY_BYTES_MAX, ENTRY_OPS_MAX, EntryIndex, LogId, Lsn, Op, TabletId, page_align,
};
use crate::disk::File;
use crate::env::{Env, Gate, Notify, Queue};

/// Bytes of records after which a block is closed though the window has no room for it.
const BLOCK_BYTES_MAX: usize = 1 << 20;
/// Bytes of records after which a lazy log writes without waiting for its interval.
const LAZY_BYTES: usize = 256 << 10;

/// How a log is written.
#[derive(Clone, Debug)]
pub struct WalOptions {
    /// Size of a segment, whole pages.
    pub segment_bytes: u64,
    /// Blocks in flight, 1 to [`WINDOW_MAX`].
    pub window: usize,
    /// How long bytes may wait to be written; `None`: not at all.
    pub lazy: Option<Duration>,
    /// Of the whole store.
    pub cluster: u128,
}

/// Handle of a tablet in its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalTablet(usize);

/// Where an append went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Of its first operation; the others follow.
    pub lsn: Lsn,
    /// Durable when this block is.
    pub block: BlockSeq,
}

/// Whether the log can take an append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WalRoom {
    /// Yes.
    Yes,
    /// The next segment is being prepared; [`Wal::durable_changed`] tells when it is ready.
    Wait,
    /// It can't be prepared since the disk is full; tried again in the background.
    Full(String),
    /// No segment takes it, however empty.
    Never,
}

/// An entry of the open block.
struct OpenEntry {
    tablet: usize,
    index: EntryIndex,
    ops: u32,
    body: Vec<u8>,
}

#[derive(Default)]
struct OpenBlock {
    entries: Vec<OpenEntry>,
    bytes: usize,
    since: Duration,
}

/// A closed block on its way to its place.
struct SealedBlock<E: Env> {
    seq: BlockSeq,
    segment: Rc<Segment<E>>,
    offset: u64,
    payload_len: usize,
    entries: Vec<OpenEntry>,
    is_seal: bool,
}

struct TabletLog {
    id: TabletId,
    term: u64,
    last: EntryIndex,
    durable: EntryIndex,
    flushed: EntryIndex,
    /// Its open entry in the open block, by place in `entries`.
    open: Option<usize>,
    /// Entries not yet durable, with their block.
    in_flight: VecDeque<(EntryIndex, BlockSeq)>,
}

struct State<E: Env> {
    tablets: Vec<TabletLog>,
    open: OpenBlock,
    next_seq: BlockSeq,
    queue: VecDeque<SealedBlock<E>>,
    /// Live segments, oldest first; the last one is where the next block goes.
    live: VecDeque<Rc<Segment<E>>>,
    standby: Option<Segment<E>>,
    /// Oldest first, and given up in that order: what a crash leaves of a log has no hole.
    free: VecDeque<Segment<E>>,
    /// Where the next block goes in the last live segment.
    cursor: u64,
    next_segment: u64,
    prev_crc: u32,
    completed: Vec<(BlockSeq, Vec<(usize, EntryIndex)>)>,
    spare: Vec<Vec<u8>>,
}

/// A shard's log.
pub struct Wal<E: Env> {
    env: E,
    log: LogId,
    nonce: u64,
    options: WalOptions,
    state: RefCell<State<E>>,
    durable: Cell<BlockSeq>,
    in_flight: Cell<usize>,
    wanted: Cell<BlockSeq>,
    closing: Cell<bool>,
    has_unsealed: Cell<bool>,
    /// Whether the last block that was closed is a seal.
    ends_sealed: Cell<bool>,
    failed: RefCell<Option<Rc<WalError>>>,
    full: RefCell<Option<String>>,
    work: Notify,
    changed: Notify,
    running: Gate,
    /// Entered by the task that prepares segments.
    preparing: Gate,
    /// Bytes of blocks that were given their place, padding included.
    placed: Cell<u64>,
    /// Blocks written, bytes written with padding.
    written: Cell<(u64, u64)>,
    /// Writes of blocks that took long, microseconds that these took.
    slow: (Cell<u64>, Cell<u64>),
}

impl<E: Env> Wal<E> {
    /// Opens log `log`, which must be new. Its first segment is durable on return.
    pub async fn create(env: &E, log: LogId, options: WalOptions) -> Result<Rc<Wal<E>>, WalError> {
        assert!((1..=WINDOW_MAX).contains(&options.window), "a window of 1 to {WINDOW_MAX} blocks");
        assert!(options.segment_bytes > 2 * SEGMENT_HEADER_BYTES as u64, "room for a block");
        let nonce = env.random();
        let header = segment::header(env, options.cluster, log, nonce, 0);
        let first = Segment::create(env, header, options.segment_bytes).await?;
        Ok(Rc::new(Wal {
            env: env.clone(),
            log,
            nonce,
            options,
            state: RefCell::new(State {
                tablets: Vec::new(),
                open: OpenBlock::default(),
                next_seq: BlockSeq(1),
                queue: VecDeque::new(),
                live: VecDeque::from([Rc::new(first)]),
                standby: None,
                free: VecDeque::new(),
                cursor: SEGMENT_HEADER_BYTES as u64,
                next_segment: 1,
                prev_crc: 0,
                completed: Vec::new(),
                spare: Vec::new(),
            }),
            durable: Cell::new(BlockSeq::ZERO),
            in_flight: Cell::new(0),
            wanted: Cell::new(BlockSeq::ZERO),
            closing: Cell::new(false),
            has_unsealed: Cell::new(false),
            ends_sealed: Cell::new(false),
            failed: RefCell::new(None),
            full: RefCell::new(None),
            work: Notify::new(),
            changed: Notify::new(),
            running: Gate::new(),
            preparing: Gate::new(),
            placed: Cell::new(0),
            written: Cell::new((0, 0)),
            slow: Default::default(),
        }))
    }

    /// Starts the tasks that commit blocks and prepare segments.
    pub fn start(self: &Rc<Self>) {
        let (wal, guard) = (self.clone(), self.running.enter());
        self.env.spawn(Queue::Foreground, async move {
            wal.commit_loop().await;
            drop(guard);
        });
        let (wal, guards) = (self.clone(), (self.running.enter(), self.preparing.enter()));
        self.env.spawn(Queue::Flush, async move {
            wal.prepare_loop().await;
            drop(guards);
        });
    }

    /// Which log this is.
    pub fn log(&self) -> LogId {
        self.log
    }

    /// Registers a tablet whose last entry, all durable elsewhere, is `last`, flushed up to `flushed`. One that
    /// was here before, and had all its entries flushed when it left, has its old handle again: so there are
    /// never more handles than tablets in the store.
    pub fn add_tablet(&self, id: TabletId, term: u64, last: EntryIndex, flushed: EntryIndex) -> WalTablet {
        assert!(flushed <= last, "what was flushed was logged");
        let mut state = self.state.borrow_mut();
        if let Some(known) = state.tablets.iter().position(|tablet| tablet.id == id) {
            let log = &mut state.tablets[known];
            assert!(log.open.is_none() && log.in_flight.is_empty(), "it left when all was durable");
            assert!(log.flushed == log.last, "it left when all was flushed");
            assert!(last >= log.last, "its entries go on");
            (log.term, log.last, log.durable, log.flushed) = (term, last, last, flushed);
            return WalTablet(known);
        }
        state.tablets.push(TabletLog {
            id,
            term,
            last,
            durable: last,
            flushed,
            open: None,
            in_flight: VecDeque::new(),
        });
        WalTablet(state.tablets.len() - 1)
    }

    /// Whether an append of `bytes` of encoded operations would find its place.
    pub fn room(&self, bytes: usize) -> WalRoom {
        if bytes > self.op_bytes_max() {
            return WalRoom::Never;
        }
        let state = self.state.borrow();
        let blocks = if self.splits(&state.open, bytes) {
            [state.open.bytes, RECORD_HEADER_BYTES + bytes]
        } else {
            [0, state.open.bytes + RECORD_HEADER_BYTES + bytes]
        };
        let (mut cursor, mut spare) = (state.cursor, state.standby.is_some());
        let mut fits = true;
        for payload in blocks.into_iter().filter(|payload| *payload > 0) {
            let len = page_align(BLOCK_HEADER_BYTES + payload) as u64;
            if cursor + len > self.options.segment_bytes {
                fits &= spare && SEGMENT_HEADER_BYTES as u64 + len <= self.options.segment_bytes;
                spare = false;
                cursor = SEGMENT_HEADER_BYTES as u64;
            }
            cursor += len;
        }
        if fits {
            return WalRoom::Yes;
        }
        match self.full.borrow().as_ref() {
            Some(cause) => WalRoom::Full(cause.clone()),
            None => WalRoom::Wait,
        }
    }

    /// Whether an append of `bytes` closes the open block first.
    fn splits(&self, open: &OpenBlock, bytes: usize) -> bool {
        let payload = open.bytes + RECORD_HEADER_BYTES + bytes;
        let room = self.options.segment_bytes as usize - SEGMENT_HEADER_BYTES;
        open.bytes > 0 && (payload > BLOCK_BYTES_MAX || page_align(BLOCK_HEADER_BYTES + payload) > room)
    }

    /// That no segment takes an append of `bytes`.
    pub fn longer_than_segment(&self, bytes: usize) -> WalError {
        WalError::LongerThanSegment { bytes, most: self.op_bytes_max() }
    }

    /// Largest encoded size of one operation's entry that a segment can hold.
    pub fn op_bytes_max(&self) -> usize {
        self.options.segment_bytes as usize - SEGMENT_HEADER_BYTES - BLOCK_HEADER_BYTES - RECORD_HEADER_BYTES
    }

    /// Appends `ops` of one tablet to the open block, all in one entry. The caller has asked
    /// [`Wal::room`] in the same turn.
    pub fn append(&self, tablet: WalTablet, ops: &[Op<'_>]) -> Result<Appended, WalError> {
        let bytes = ops.iter().map(Op::encoded_len).sum();
        self.append_by(tablet, ops.len(), bytes, false, |body| ops.iter().for_each(|op| op.encode(body)))
    }

    /// The same of one operation that is encoded already: its entry is its own, and it is not copied.
    pub fn append_encoded(&self, tablet: WalTablet, op: Vec<u8>) -> Result<Appended, WalError> {
        self.append_by(tablet, 1, op.len(), true, |body| *body = op)
    }

    fn append_by(
        &self,
        tablet: WalTablet,
        ops: usize,
        bytes: usize,
        is_own: bool,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<Appended, WalError> {
        assert!(self.failed.borrow().is_none(), "the caller checked that the log has not failed");
        assert!(!self.closing.get(), "nothing is appended to a closing log");
        let is_too_large = ops > 1 && bytes > ENTRY_BYTES_MAX;
        if ops == 0 || ops > ENTRY_OPS_MAX || is_too_large || bytes > self.op_bytes_max() {
            return Err(WalError::TooLarge { ops, bytes });
        }
        let mut state = self.state.borrow_mut();
        if self.splits(&state.open, bytes) {
            self.seal(&mut state, false);
        }
        let state = &mut *state;
        if state.open.bytes == 0 {
            state.open.since = self.env.now();
            self.work.notify();
        }
        let block = state.next_seq;
        let log = &mut state.tablets[tablet.0];
        if let Some(open) = log.open {
            let entry = &state.open.entries[open];
            let is_full =
                entry.body.len() + bytes > ENTRY_BYTES_MAX || entry.ops as usize + ops > ENTRY_OPS_MAX;
            if is_own || is_full {
                log.open = None;
            }
        }
        let place = match log.open {
            Some(open) => open,
            None => {
                log.last = log.last.next();
                log.in_flight.push_back((log.last, block));
                let body = state.spare.pop().unwrap_or_default();
                state.open.entries.push(OpenEntry { tablet: tablet.0, index: log.last, ops: 0, body });
                state.open.bytes += RECORD_HEADER_BYTES;
                let place = state.open.entries.len() - 1;
                log.open = Some(place).filter(|_| !is_own);
                place
            }
        };
        let entry = &mut state.open.entries[place];
        let ordinal = u16::try_from(entry.ops).expect("an entry is closed before its ordinals run out");
        let before = entry.body.len();
        encode(&mut entry.body);
        assert_eq!(entry.body.len(), before + bytes, "what is appended is as long as was said");
        entry.ops += ops as u32;
        state.open.bytes += bytes;
        if self.options.lazy.is_some() && state.open.bytes >= LAZY_BYTES {
            self.work.notify();
        }
        Ok(Appended { lsn: Lsn::new(entry.index, ordinal), block })
    }

    /// Closes the open block, if it holds anything: what is appended next is in a later one.
    pub fn seal_open(&self) {
        let mut state = self.state.borrow_mut();
        if state.open.bytes > 0 {
            self.seal(&mut state, false);
            self.work.notify();
        }
    }

    /// Gives the open block (or an empty seal block) its place and moves it to the queue.
    fn seal(&self, state: &mut State<E>, is_seal: bool) {
        self.ends_sealed.set(is_seal);
        let payload_len = state.open.bytes + if is_seal { RECORD_HEADER_BYTES } else { 0 };
        let len = page_align(BLOCK_HEADER_BYTES + payload_len) as u64;
        if state.cursor + len > self.options.segment_bytes {
            let next = state.standby.take().expect("room was asked for before the append");
            state.live.push_back(Rc::new(next));
            state.cursor = SEGMENT_HEADER_BYTES as u64;
            self.work.notify();
        }
        let segment = state.live.back().expect("a log always has a segment").clone();
        let entries = std::mem::take(&mut state.open.entries);
        for entry in &entries {
            segment.note(entry.tablet, entry.index);
            state.tablets[entry.tablet].open = None;
        }
        let seq = state.next_seq;
        segment.last_block.set(seq);
        state.open.bytes = 0;
        state.queue.push_back(SealedBlock {
            seq,
            segment,
            offset: state.cursor,
            payload_len,
            entries,
            is_seal,
        });
        state.cursor += len;
        self.placed.set(self.placed.get() + len);
        state.next_seq = seq.next();
    }

    /// The last block that holds, or may still take, what was appended.
    pub fn appended(&self) -> BlockSeq {
        let state = self.state.borrow();
        if state.open.bytes > 0 { state.next_seq } else { BlockSeq(state.next_seq.0 - 1) }
    }

    /// Everything up to this block is on disk.
    pub fn durable(&self) -> BlockSeq {
        self.durable.get()
    }

    /// Notified when `durable` grew, a segment became ready, or the log failed.
    pub fn durable_changed(&self) -> Notify {
        self.changed.clone()
    }

    /// The block that must become durable before entry `index` of `tablet` is; `None` if it is.
    pub fn block_of(&self, tablet: WalTablet, index: EntryIndex) -> Option<BlockSeq> {
        let state = self.state.borrow();
        let log = &state.tablets[tablet.0];
        if index <= log.durable {
            return None;
        }
        log.in_flight.iter().find(|(i, _)| *i >= index).map(|(_, block)| *block)
    }

    /// Someone waits for `block`: a lazy log writes it now.
    pub fn request_sync(&self, block: BlockSeq) {
        if block > self.wanted.get() {
            self.wanted.set(block);
            if self.options.lazy.is_some() {
                self.work.notify();
            }
        }
    }

    /// The last entry of a tablet.
    pub fn last_index(&self, tablet: WalTablet) -> EntryIndex {
        self.state.borrow().tablets[tablet.0].last
    }

    /// The first cause, once the log has failed.
    pub fn failed(&self) -> Option<Rc<WalError>> {
        self.failed.borrow().clone()
    }

    /// The last block with entries, once the log is closed. A seal behind it nobody would miss.
    pub fn end(&self) -> BlockSeq {
        BlockSeq(self.durable.get().0 - u64::from(self.ends_sealed.get()))
    }

    /// Bytes of the log so far, padding of blocks included: all but what the open block holds.
    #[inline]
    pub fn placed(&self) -> u64 {
        self.placed.get()
    }

    /// Blocks and bytes written since the start.
    pub fn written(&self) -> (u64, u64) {
        self.written.get()
    }

    /// Writes of blocks that took long, and microseconds that these took.
    pub fn slow_writes(&self) -> (u64, u64) {
        (self.slow.0.get(), self.slow.1.get())
    }

    /// Bytes of segments that hold what is not flushed everywhere.
    pub fn live_bytes(&self) -> u64 {
        self.state.borrow().live.len() as u64 * self.options.segment_bytes
    }

    /// Notes that `tablet` was flushed up to `index`, and frees segments that nobody needs any more.
    pub fn set_flushed(&self, tablet: WalTablet, index: EntryIndex) {
        let mut state = self.state.borrow_mut();
        let log = &mut state.tablets[tablet.0];
        assert!(index <= log.durable, "only what is durable is flushed");
        log.flushed = log.flushed.max(index);
        while state.live.len() > 1 {
            let oldest = &state.live[0];
            // While none of the blocks behind it is durable, it alone shows that there were any.
            let is_needed = oldest.last_block.get() >= self.durable.get()
                || oldest.last.borrow().iter().any(|(t, last)| state.tablets[*t].flushed < *last);
            if is_needed {
                break;
            }
            let oldest = state.live.pop_front().expect("there are two");
            match Rc::try_unwrap(oldest) {
                Ok(segment) => state.free.push_back(segment),
                // A write task still holds it for a moment: look again at the next flush.
                Err(oldest) => {
                    state.live.push_front(oldest);
                    break;
                }
            }
        }
        self.work.notify();
    }

    /// Commits what is open, writes a seal, ends the tasks and closes the files.
    pub async fn close(&self) -> Result<(), WalError> {
        self.closing.set(true);
        self.work.notify();
        self.running.empty().await;
        let segments: Vec<Segment<E>> = {
            let mut state = self.state.borrow_mut();
            let live = std::mem::take(&mut state.live);
            let others = std::mem::take(&mut state.free).into_iter().chain(state.standby.take());
            live.into_iter().filter_map(|segment| Rc::try_unwrap(segment).ok()).chain(others).collect()
        };
        let mut result = Ok(());
        for segment in segments {
            let closed = segment.file.close().await;
            result = result.and(closed.map_err(WalError::from));
        }
        match self.failed.borrow().as_ref() {
            Some(_) => Ok(()), // reported when it happened; every waiter was told
            None => result,
        }
    }
}
