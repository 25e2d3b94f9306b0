//! Scans: pages of one shard's keys, and of all shards' in one order ([`merged`]).
//!
//! The shard that a scan begins on keeps a session for it: between two pages, where the scan is. A scan of one
//! shard's keys, which may be all that there is or those of one hash tag, has the engine's scan in its session. One
//! of several shards has what it got of each and did not give yet; each of those has a session of the first kind
//! there, and is asked when its part is used up.
//!
//! - A page is made at once if what it needs is in memory and it takes less than [`AT_ONCE`]; otherwise by a task,
//!   at the pace of background work. Nobody else waits for it.
//! - A cursor says which session goes on, and which page of it; and the last key. Where the session is gone or has
//!   gone on, as when a client asks again, a new snapshot takes over behind that key, and the page says so.
//! - The first page of a snapshot waits until all that it shows is durable.
//! - A page is small ([`LARGE_REPLY_BYTES`]) unless there is room for a larger one among the shard's
//!   [replies](super::budget) at the moment when it would grow beyond. An entry that is larger waits for room; where
//!   a task finds it, the page ends before it, and the next one is not begun before there is room.
//!
//! Bounds: [`SESSIONS_MAX`] sessions, the longest unused going first, each for [`SESSION_LIFE`] at most;
//! of what those of several shards keep an eighth of the memory for connections, or one session alone; [`RUNNING_MAX`] pages being made; a page of [`PAGE_BYTES_MAX`], or of one entry; and [`WORK_MAX`] steps for it.

mod merged;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use self::merged::{Merged, MergedPage};
use super::budget::{Granted, LARGE_REPLY_BYTES};
use super::execute::refusal;
use super::outputs::{Meta, Outputs};
use super::stall::Step;
use super::{Origin, Shard, Stall};
use crate::base::{BlockSeq, KEY_BYTES_MAX};
use crate::engine::EngineError;
use crate::engine::scan::{Filled, Scan, ScanRange};
use crate::env::{Env, Pacer, Queue};
use crate::error::{Code, Refusal};
use crate::metrics::Metrics;
use crate::protocol::binary::{Cursor, HEADER_BYTES, PAGE_OVERHEAD, PageEncoder, entry_len};
use crate::protocol::{Durability, Reply, ScanEntry, ScanRequest};
use crate::slot::Slot;

/// Sessions between two pages.
pub const SESSIONS_MAX: usize = 64;
/// Pages being made.
pub const RUNNING_MAX: usize = 256;
/// How long a session waits for its client.
const SESSION_LIFE: Duration = Duration::from_secs(60);
/// Bytes of a page that the server chooses.
const PAGE_BYTES: usize = 256 << 10;
/// Bytes of a page that a client may choose.
pub const PAGE_BYTES_MAX: usize = 1 << 20;
/// Time that a page may take of the turn in which it is asked for.
const AT_ONCE: Duration = Duration::from_micros(100);
/// Steps between two looks at the clock: about 50 µs.
const SLICE: u32 = 256;
/// Steps for one page: about a tenth of a second, if all that is found was deleted.
const WORK_MAX: u32 = 400_000;

/// What is kept of a scan between two pages.
struct Session<E: Env> {
    /// The page that comes next.
    page: u32,
    used: Duration,
    shape: Shape,
    what: What<E>,
    /// Bytes for which its next page needs room before it is begun, beyond the usual.
    room: usize,
}

enum What<E: Env> {
    Local(Box<Scan<E>>),
    Merged(Merged),
}

impl<E: Env> Session<E> {
    /// Bytes of entries that it keeps. What the engine reads ahead has a bound of its own.
    fn kept(&self) -> usize {
        match &self.what {
            What::Local(_) => 0,
            What::Merged(merged) => merged.kept(),
        }
    }

    /// Throws these entries away; the scan asks for them again, from a new snapshot.
    fn forget_kept(&mut self) {
        if let What::Merged(merged) = &mut self.what {
            merged.begin_anew(&self.shape);
        }
    }
}

/// What of a request is the same for all its pages.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Shape {
    range: ScanRange,
    is_keys_only: bool,
    is_local: bool,
}

impl Shape {
    fn of(request: &ScanRequest<'_>) -> Shape {
        let ScanRequest { start, end, is_reverse, is_keys_only, is_local, .. } = *request;
        Shape {
            range: ScanRange { start: start.to_vec(), end: end.to_vec(), is_reverse },
            is_keys_only,
            is_local,
        }
    }

    /// What is left of its range behind `key`; all of it, if that is empty.
    fn rest(&self, key: &[u8]) -> ScanRange {
        if key.is_empty() { self.range.clone() } else { self.range.after(key) }
    }
}

/// What one page may hold.
#[derive(Clone, Copy, Debug)]
struct PageLimits {
    entries: u64,
    bytes: usize,
    /// Entries wanted in all; 0: no limit.
    limit: u64,
}

impl PageLimits {
    fn of(request: &ScanRequest<'_>) -> PageLimits {
        let or_any = |wanted: u64| if wanted == 0 { u64::MAX } else { wanted };
        let bytes = match request.bytes_max as usize {
            0 => PAGE_BYTES,
            bytes => bytes.min(PAGE_BYTES_MAX),
        };
        let entries = or_any(u64::from(request.entries_max)).min(or_any(request.limit));
        PageLimits { entries, bytes, limit: request.limit }
    }

    /// Whether `entries` are all that is wanted.
    fn is_reached(&self, entries: u64) -> bool {
        self.limit != 0 && entries >= self.limit
    }
}

/// The sessions of a shard.
pub(super) struct Scans<E: Env> {
    sessions: RefCell<BTreeMap<u64, Session<E>>>,
    running: Cell<usize>,
    is_swept: Cell<bool>,
}

impl<E: Env> Default for Scans<E> {
    fn default() -> Scans<E> {
        Scans { sessions: RefCell::default(), running: Cell::new(0), is_swept: Cell::new(false) }
    }
}

impl<E: Env> Scans<E> {
    /// The session that `cursor` goes on with, if it is here and waits for just that page.
    fn take(&self, cursor: Option<Cursor<'_>>, shape: &Shape) -> Option<Session<E>> {
        let id = self.find(cursor, shape, |_| ())?.0;
        self.sessions.borrow_mut().remove(&id)
    }

    /// The room that the same session needs before its next page is begun.
    fn room(&self, cursor: Option<Cursor<'_>>, shape: &Shape) -> usize {
        self.find(cursor, shape, |session| session.room).map_or(0, |(_, room)| room)
    }

    fn find<R>(
        &self,
        cursor: Option<Cursor<'_>>,
        shape: &Shape,
        look: impl FnOnce(&Session<E>) -> R,
    ) -> Option<(u64, R)> {
        let cursor = cursor.filter(|cursor| cursor.session != 0)?;
        let sessions = self.sessions.borrow();
        let session = sessions.get(&cursor.session)?;
        let is_it = session.page == cursor.page && session.shape == *shape;
        is_it.then(|| (cursor.session, look(session)))
    }

    /// Ends all.
    pub fn clear(&self) {
        self.sessions.borrow_mut().clear();
    }
}

/// A page of this shard's keys in the making.
struct LocalPage<E: Env> {
    meta: Meta,
    scan: Box<Scan<E>>,
    /// The last key that was given or passed over before `scan` began; empty: none was.
    passed: Vec<u8>,
    /// Only the tablet of this slot.
    slot: Option<Slot>,
    shape: Shape,
    session: u64,
    page: u32,
    limits: PageLimits,
    encoder: PageEncoder,
    is_new_snapshot: bool,
    wait: Option<BlockSeq>,
    /// An entry that no frame holds.
    oversized: Option<(usize, usize)>,
    /// Bytes that it may have.
    room: usize,
    /// Granted for it.
    granted: Granted,
    /// An entry that is larger than its room, with all that goes with it.
    needed: usize,
    work: u32,
}

impl<E: Env> Shard<E> {
    /// Answers SCAN, now or by a task.
    pub(super) fn scan(
        self: &Rc<Self>,
        line: Origin,
        origin: Origin,
        meta: Meta,
        request: &ScanRequest<'_>,
        out: &mut Outputs,
    ) -> Step {
        if self.scans.running.get() >= RUNNING_MAX {
            let message = format!("{RUNNING_MAX} scans are answered at this moment; try again");
            Metrics::add(&self.metrics.refusals, 1);
            out.ready(meta, &Reply::Refused(Refusal::new(Code::Overloaded, message)));
            return Step::Taken;
        }
        let slot = request.slot();
        if request.is_local || slot.is_some() || self.slots.shards == 1 {
            self.scan_local(line, origin, meta, request, slot, out)
        } else {
            MergedPage::begin(self, line, origin, meta, request, out)
        }
    }

    fn scan_local(
        self: &Rc<Self>,
        line: Origin,
        origin: Origin,
        meta: Meta,
        request: &ScanRequest<'_>,
        slot: Option<Slot>,
        out: &mut Outputs,
    ) -> Step {
        let local = match self.scanned(slot) {
            Ok(local) => local,
            Err(refusal) => {
                Metrics::add(&self.metrics.refusals, 1);
                out.ready(meta, &Reply::Refused(refusal));
                return Step::Taken;
            }
        };
        let shape = Shape::of(request);
        let needed = self.scans.room(request.cursor, &shape);
        if !self.has_reply_room(out, needed) {
            return Step::Stalled(Stall::Replies);
        }
        let known = match self.scans.take(request.cursor, &shape) {
            Some(Session { what: What::Local(scan), .. }) => {
                request.cursor.map(|cursor| (cursor.session, scan))
            }
            _ => None,
        };
        let is_new = known.is_none();
        // A scan that has just begun anew has no position of its own yet.
        let passed = request.cursor.map_or(&[][..], |cursor| cursor.key).to_vec();
        let (session, scan) = known.unwrap_or_else(|| {
            (self.env.random().max(1), Box::new(self.engine.scan(local, shape.rest(&passed))))
        });
        let mut page = LocalPage {
            meta,
            wait: if is_new { self.observed(scan.snapshot().wait(), Durability::Default) } else { None },
            scan,
            passed,
            slot,
            shape,
            session,
            page: if is_new { 0 } else { request.cursor.map_or(0, |cursor| cursor.page) },
            limits: PageLimits::of(request),
            encoder: PageEncoder::new(meta.request_id, meta.epoch),
            is_new_snapshot: is_new && request.cursor.is_some(),
            oversized: None,
            room: needed.max(LARGE_REPLY_BYTES),
            granted: std::mem::take(&mut out.granted),
            needed: 0,
            work: WORK_MAX,
        };
        let begun = self.env.now();
        loop {
            match page.fill(self) {
                Ok(Filled::Paused) if page.work > 0 && self.env.now() - begun < AT_ONCE => {}
                Ok(Filled::Paused | Filled::Missing) => break,
                Ok(Filled::Full) if page.needed > 0 => {
                    // Its first entry. The same request comes again when there is room for it.
                    if !self.has_reply_room(out, page.needed) {
                        out.granted = out.granted.and(std::mem::take(&mut page.granted));
                        if !is_new && !page.is_new_snapshot {
                            page.keep(self);
                        }
                        return Step::Stalled(Stall::Replies);
                    }
                    page.room = std::mem::take(&mut page.needed);
                    page.granted = page.granted.and(std::mem::take(&mut out.granted));
                }
                result => {
                    page.finish(self, result, out);
                    return Step::Taken;
                }
            }
        }
        Metrics::add(&self.metrics.scan_tasks, 1);
        let bytes = page.limits.bytes;
        self.begin_task(line, bytes);
        let (shard, guard) = (self.clone(), self.pending.enter());
        self.env.spawn(Queue::Foreground, async move {
            let mut out = Outputs::default();
            let result = page.run(&shard).await;
            page.finish(&shard, result, &mut out);
            shard.settle(origin, out);
            shard.end_task(line, bytes);
            shard.end_turn();
            drop(guard);
        });
        Step::Taken
    }

    /// The tablet of this slot, by its local number; without a slot all of this shard are meant. Refused if one of
    /// them is not served: a scan must not leave out what nobody knows to be gone.
    fn scanned(&self, slot: Option<Slot>) -> Result<Option<usize>, Refusal> {
        match slot {
            Some(slot) => {
                let local = self.slots.local_on(self.id, slot).ok_or_else(|| self.not_here(slot))?;
                self.engine.note_use(local);
                Ok(Some(local))
            }
            None => match self.any_loss() {
                Some(why) => Err(Refusal::new(Code::ShardFailed, why)),
                None => Ok(None),
            },
        }
    }

    /// A page is made beside the turns: its bytes count as being loaded.
    fn begin_task(&self, line: Origin, bytes: usize) {
        self.scans.running.set(self.scans.running.get() + 1);
        self.waiting.borrow_mut().entry(line).or_default().loading_bytes += bytes;
    }

    fn end_task(self: &Rc<Self>, line: Origin, bytes: usize) {
        self.scans.running.set(self.scans.running.get() - 1);
        self.loaded(line, bytes);
    }

    /// Keeps a session until its client comes back.
    fn keep_session(self: &Rc<Self>, id: u64, session: Session<E>) {
        if self.is_closing.get() {
            return;
        }
        let mut sessions = self.scans.sessions.borrow_mut();
        if sessions.len() >= SESSIONS_MAX
            && let Some(oldest) = sessions.iter().min_by_key(|(_, session)| session.used).map(|(id, _)| *id)
        {
            sessions.remove(&oldest);
        }
        let mut kept = session.kept() + sessions.values().map(Session::kept).sum::<usize>();
        while kept > self.scan_bytes_max
            && let Some(oldest) =
                sessions.values_mut().filter(|other| other.kept() > 0).min_by_key(|other| other.used)
        {
            // What it needs to go on is remembered, so that it does go on.
            kept -= oldest.kept();
            oldest.forget_kept();
        }
        sessions.insert(id, session);
        drop(sessions);
        self.sweep_scans();
    }

    /// Ends sessions whose clients don't come back, as long as there are any.
    fn sweep_scans(self: &Rc<Self>) {
        if self.scans.is_swept.replace(true) {
            return;
        }
        let (shard, env) = (Rc::downgrade(self), self.env.clone());
        self.env.spawn(Queue::Foreground, async move {
            loop {
                env.sleep(SESSION_LIFE / 4).await;
                let Some(shard) = shard.upgrade() else { return };
                let now = env.now();
                let mut sessions = shard.scans.sessions.borrow_mut();
                sessions.retain(|_, session| now.saturating_sub(session.used) < SESSION_LIFE);
                for session in sessions.values_mut() {
                    if let What::Local(scan) = &mut session.what {
                        scan.rest();
                    }
                }
                if sessions.is_empty() {
                    shard.scans.is_swept.set(false);
                    return;
                }
            }
        });
    }
}

impl<E: Env> LocalPage<E> {
    /// Takes entries until the page is full or a slice of work is done.
    fn fill(&mut self, shard: &Shard<E>) -> Result<Filled, EngineError> {
        let mut slice = SLICE.min(self.work);
        let given = slice;
        let LocalPage { scan, encoder, limits, shape, oversized, room, granted, needed, .. } = self;
        let frame_bytes_max = shard.limits.frame_bytes_max as usize;
        let filled = scan.fill(&shard.engine, &mut slice, |key, entry| {
            let value = if shape.is_keys_only { &[][..] } else { entry.value };
            let len = entry_len(key, value.len(), entry.expiry_ms);
            let is_first = encoder.count() == 0;
            if u64::from(encoder.count()) >= limits.entries
                || (!is_first && encoder.entries_len() + len > limits.bytes)
            {
                return false;
            }
            // The overhead has an entry's own in it already; the cursor repeats the key.
            let overhead = HEADER_BYTES + PAGE_OVERHEAD - entry_len(b"", 0, 1);
            let page_bytes = overhead + encoder.entries_len() + len + key.len();
            if page_bytes > frame_bytes_max {
                *oversized = is_first.then_some((key.len(), value.len()));
                return false;
            }
            if page_bytes > *room {
                let full = page_bytes.max(overhead + limits.bytes + KEY_BYTES_MAX);
                let missing = full.saturating_sub(granted.replies);
                if missing > 0 && !shard.reply_budget.take_now(missing) {
                    *needed = if is_first { page_bytes } else { 0 };
                    return false;
                }
                granted.replies += missing;
                *room = full;
                encoder.reserve(full);
            }
            encoder.push(&ScanEntry { key, version: entry.lsn, expiry_ms: entry.expiry_ms, value });
            true
        });
        self.work -= given - slice;
        match filled {
            // If all is still here. Elsewhere, the client is to find it.
            Err(EngineError::SnapshotOver) if shard.scanned(self.slot).is_ok() => {
                // Another takes over from here.
                if let Some(position) = self.scan.position() {
                    self.passed = position.to_vec();
                }
                let rest = self.shape.rest(&self.passed);
                *self.scan = shard.engine.scan(self.slot.map(|slot| shard.slots.local(slot)), rest);
                self.wait = self.wait.max(shard.observed(self.scan.snapshot().wait(), Durability::Default));
                self.is_new_snapshot = true;
                Ok(Filled::Paused)
            }
            filled => filled,
        }
    }

    async fn run(&mut self, shard: &Rc<Shard<E>>) -> Result<Filled, EngineError> {
        let mut pacer = Pacer::new(&shard.env);
        loop {
            match self.fill(shard)? {
                Filled::Missing => self.scan.load(&shard.engine).await?,
                Filled::Paused if self.work > 0 => pacer.breathe().await,
                filled => return Ok(filled),
            }
        }
    }

    /// Keeps its session for the same request.
    fn keep(self, shard: &Rc<Shard<E>>) {
        let LocalPage { page, shape, needed: room, .. } = self;
        let what = What::Local(self.scan);
        shard.keep_session(self.session, Session { page, used: shard.env.now(), shape, what, room });
    }

    /// Answers, and keeps what goes on.
    fn finish(mut self, shard: &Rc<Shard<E>>, result: Result<Filled, EngineError>, out: &mut Outputs) {
        out.granted = out.granted.and(std::mem::take(&mut self.granted));
        let filled = match result {
            Ok(filled) => filled,
            Err(error) => {
                Metrics::add(&shard.metrics.refusals, 1);
                out.after(self.wait, self.meta, &Reply::Refused(refusal(error)));
                return;
            }
        };
        if let Some((key_len, value_len)) = self.oversized {
            let message = format!(
                "SCAN: the next entry, of {} bytes, is more than a frame of {} bytes holds; scan keys only",
                key_len + value_len,
                shard.limits.frame_bytes_max
            );
            Metrics::add(&shard.metrics.refusals, 1);
            out.after(self.wait, self.meta, &Reply::Refused(Refusal::new(Code::ReplyTooLarge, message)));
            return;
        }
        let is_end = filled == Filled::End || self.limits.is_reached(u64::from(self.encoder.count()));
        let mut cursor = Vec::new();
        if !is_end {
            let key = self.scan.position().unwrap_or(&self.passed);
            let page = self.page.wrapping_add(1);
            Cursor { shard: shard.id as u16, page, session: self.session, key }.encode(&mut cursor);
            let (used, shape, room) = (shard.env.now(), self.shape, self.needed);
            let what = What::Local(self.scan);
            shard.keep_session(self.session, Session { page, used, shape, what, room });
        }
        let reply = self.encoder.finish(self.is_new_snapshot, (!is_end).then_some(&cursor[..]));
        out.whole(self.wait, self.meta, reply);
    }
}
