//! What takes long, a slice at a time: MGETs of many keys or bytes; GETs and SETs of large values, and changes of their
//! expiry ([`expire`](super::expire)).
//!
//! What an [attempt](super::execute) can't do in a short step it leaves to this. Each step copies for a fraction of a
//! millisecond; then others have their turn, and it goes on where it was. The frames behind it wait meanwhile. What
//! others write in between it may see or not, key by key; a value that is replaced while it is copied is begun again.
//! A value that is to be written is copied to where the log and the memtable will have it ([`Staged`]); the write
//! itself, with its conditions, is one step at the end.
//!
//! Invariants:
//! - A line has one such request at most, that of its first frame.
//! - While a read waits for the room that its reply takes it holds none: then it begins again, and asks first for all it
//!   was found to need. So none waits for another that waits.

use std::mem;
use std::rc::Rc;

use smallvec::SmallVec;

use super::execute::{Attempt, MissingBlocks, refusal, too_large};
use super::outputs::{Meta, Outputs};
use super::stall::{LOADING_BYTES_MAX, Step};
use super::{Origin, Shard, Stall};
use crate::base::{BlockSeq, Lsn, Op, OpKind};
use crate::engine::{Found, Loaded, Lookup, Staged};
use crate::env::{Env, Queue};
use crate::error::Refusal;
use crate::metrics::Metrics;
use crate::protocol::binary::{HEADER_BYTES, Keys, ValueListEncoder, begin_value};
use crate::protocol::{Durability, Expiry, Reply, Request};
use crate::slot::Slot;

/// Keys that are looked up in one step, which takes 0.2 to 0.5 ms.
pub(super) const KEYS_MAX: usize = 1024;
/// Bytes of values that are copied in one step, about 0.1 ms, or one value more. A longer one is divided.
pub(super) const BYTES_MAX: usize = 256 << 10;
/// How often a value that is replaced while it is copied is begun again. After that it is copied at once.
pub(super) const RESTARTS_MAX: u32 = 3;

/// A request under way.
pub(super) struct Sliced {
    /// Where its reply goes.
    pub origin: Origin,
    request_id: u64,
    /// The reply so far.
    bytes: Vec<u8>,
    wait: Option<BlockSeq>,
    /// The value to be written so far.
    pub(super) staged: Option<Staged>,
    at: At,
    /// What was granted for the reply.
    granted: usize,
    /// A move of a tablet waits for requests for these.
    slots: SmallVec<[Slot; 2]>,
}

/// How far it is.
#[derive(Clone, Copy)]
enum At {
    /// Keys looked up, of which so many have values.
    List { next: usize, hits: u64 },
    /// Bytes copied of this version, after so many of which others came.
    Value { version: Lsn, copied: usize, restarts: u32 },
    /// A value is staged.
    Write,
    /// A value that is there is staged.
    Rewrite(Progress),
}

/// What is being copied to be written again.
#[derive(Clone, Copy)]
pub(super) struct Progress {
    /// This version, or none yet.
    pub version: Lsn,
    /// After so many others.
    pub restarts: u32,
}

/// What came of a step.
pub(super) enum Sliver<E: Env> {
    /// It was answered.
    Done,
    /// There is more to do.
    More,
    /// These blocks are missing, at least. With them it goes on.
    Missing(MissingBlocks<E>),
    /// Its reply needs room for so many bytes, and has none now.
    NoRoom(usize),
    /// It needs memory that the next flush frees, or that others have staged, and goes on then.
    Wait,
}

impl Sliced {
    /// Nothing of it is done yet. What `begins` told of it is undone by whoever drops it.
    pub fn new(origin: Origin, meta: Meta, request: &Request<'_>, slots: SmallVec<[Slot; 2]>) -> Sliced {
        let at = match request {
            Request::Mget { .. } => At::List { next: 0, hits: 0 },
            Request::Set { .. } => At::Write,
            Request::Expire { .. } | Request::Persist { .. } => {
                At::Rewrite(Progress { version: Lsn::ZERO, restarts: 0 })
            }
            _ => At::Value { version: Lsn::ZERO, copied: 0, restarts: 0 },
        };
        let (request_id, bytes) = (meta.request_id, Vec::new());
        Sliced { origin, request_id, bytes, wait: None, staged: None, at, granted: 0, slots }
    }

    /// Whether it is a write whose value could not be staged yet, since those of others are.
    pub fn is_unstaged(&self) -> bool {
        matches!(self.at, At::Write | At::Rewrite(_)) && self.staged.is_none()
    }

    /// How far a copy of a value that is there is.
    pub fn progress_of_copy(&self) -> Progress {
        match self.at {
            At::Rewrite(progress) => progress,
            _ => unreachable!("it is copied to be written again"),
        }
    }

    /// Notes that.
    pub fn note_copy(&mut self, progress: Progress) {
        self.at = At::Rewrite(progress);
    }

    /// Keys that need no looking up any more.
    fn progress(&self) -> usize {
        match self.at {
            At::List { next, .. } => next,
            At::Value { .. } | At::Write | At::Rewrite(_) => 0,
        }
    }
}

impl<E: Env> Shard<E> {
    /// Begins the request of the first frame of `line`, which takes long.
    #[cold]
    pub(super) fn begin_sliced(
        self: &Rc<Self>,
        line: Origin,
        origin: Origin,
        frame: &[u8],
        meta: Meta,
        request: &Request<'_>,
        out: &mut Outputs,
    ) -> Step {
        let wanted =
            self.waiting.borrow_mut().get_mut(&line).map_or(0, |waiting| mem::take(&mut waiting.wanted));
        // What a write found on its way here is in the cache meanwhile, and its reply is small.
        let wanted = if request.is_write() { 0 } else { wanted };
        if !self.has_reply_room(out, wanted) {
            return self.without_room(line, wanted);
        }
        let sliced = Sliced::new(origin, meta, request, self.begins(request));
        self.go_on(sliced, line, frame, meta, request, out)
    }

    /// Does the next step of the first frame of `line`.
    #[cold]
    pub(super) fn go_on(
        self: &Rc<Self>,
        mut sliced: Sliced,
        line: Origin,
        frame: &[u8],
        meta: Meta,
        request: &Request<'_>,
        out: &mut Outputs,
    ) -> Step {
        assert_eq!(sliced.request_id, meta.request_id, "it is the request that was begun");
        out.granted.replies += mem::take(&mut sliced.granted);
        let step = self.slice(&mut sliced, meta, request, &Loaded::new(), out);
        if let Sliver::More | Sliver::Wait = step {
            sliced.granted = mem::take(&mut out.granted.replies);
            self.waiting.borrow_mut().entry(line).or_default().sliced = Some(Box::new(sliced));
            if let Sliver::Wait = step {
                Metrics::add(&self.metrics.memory_waits, 1);
                return Step::Stalled(Stall::Room);
            }
            self.resume_in_turn(line);
            return Step::Stalled(Stall::Turn);
        }
        self.has_ended(&sliced.slots);
        match step {
            // With a place in line for each key, and from its beginning.
            Sliver::Missing(missing) => {
                self.wait_for_disk(line, sliced.origin, frame, meta, request, missing, out)
            }
            Sliver::NoRoom(wanted) => self.without_room(line, wanted),
            Sliver::Done | Sliver::More | Sliver::Wait => Step::Taken,
        }
    }

    /// It waits for so much room, and asks for it first when it begins again.
    pub(super) fn without_room(&self, line: Origin, wanted: usize) -> Step {
        self.waiting.borrow_mut().entry(line).or_default().wanted = wanted;
        Step::Stalled(Stall::Replies)
    }

    /// Goes on with `line` after others.
    fn resume_in_turn(self: &Rc<Self>, line: Origin) {
        let (shard, guard) = (self.clone(), self.pending.enter());
        self.env.spawn(Queue::Foreground, async move {
            shard.rest().await;
            shard.resume_after_turn(line);
            shard.end_turn();
            drop(guard);
        });
    }

    /// Nobody takes the reply.
    pub(super) fn abandon_sliced(&self, sliced: Sliced) {
        self.has_ended(&sliced.slots);
        let granted = super::Granted { replies: sliced.granted, gathers: 0 };
        self.left(self.id, granted);
    }

    /// One step.
    pub(super) fn slice(
        &self,
        sliced: &mut Sliced,
        meta: Meta,
        request: &Request<'_>,
        loaded: &Loaded,
        out: &mut Outputs,
    ) -> Sliver<E> {
        let result = match (*request, sliced.at) {
            (Request::Mget { keys }, At::List { next, hits }) => {
                self.slice_of_list(sliced, meta, keys, next, hits, loaded, out)
            }
            (Request::Get { key }, At::Value { .. }) => self.slice_of_value(sliced, meta, key, loaded, out),
            (Request::Set { .. }, At::Write) => self.slice_of_write(sliced, meta, request, loaded, out),
            (_, At::Rewrite(_)) => self.slice_of_expiry(sliced, meta, request, loaded, out),
            _ => unreachable!("no other request takes long"),
        };
        result.unwrap_or_else(|refusal| {
            Metrics::add(&self.metrics.refusals, 1);
            out.ready(meta, &Reply::Refused(refusal));
            Sliver::Done
        })
    }

    #[allow(clippy::too_many_arguments)] // the request, how far it is, and where the answer goes
    fn slice_of_list(
        &self,
        sliced: &mut Sliced,
        meta: Meta,
        keys: Keys<'_>,
        first: usize,
        mut hits: u64,
        loaded: &Loaded,
        out: &mut Outputs,
    ) -> Result<Sliver<E>, Refusal> {
        let (mut missing, mut missing_bytes) = (MissingBlocks::new(), 0);
        let limit = self.limits.frame_bytes_max as usize;
        let mut wait = sliced.wait;
        let mut list = match first {
            0 => {
                sliced.bytes.clear();
                ValueListEncoder::begin(&mut sliced.bytes, meta.request_id, meta.epoch)
            }
            _ => ValueListEncoder::go_on(&mut sliced.bytes, first as u32),
        };
        let (begin, mut next) = (list.frame_bytes(), first);
        for key in keys.skip(first).take(KEYS_MAX) {
            if list.frame_bytes() - begin > BYTES_MAX {
                break;
            }
            // Once some block is missing, others are looked for, and nothing is copied.
            let copies = missing.is_empty();
            let lookup = self.engine.lookup(&self.key(key)?, loaded, |found| {
                let len = found.entry.as_ref().map_or(0, |entry| entry.value.len());
                if !copies || list.frame_bytes_with(len) > limit {
                    return !copies;
                }
                wait = wait.max(self.observed(found.wait, Durability::Default));
                match found.entry {
                    Some(entry) => {
                        hits += 1;
                        list.present(entry.lsn, entry.value);
                    }
                    None => list.absent(),
                }
                next += 1;
                true
            });
            match lookup.map_err(refusal)? {
                Lookup::Missing(block) => {
                    if copies {
                        // Of those before it that is all; it and those behind it are looked up once more.
                        self.engine.count_reads(loaded);
                    }
                    missing_bytes += block.len();
                    missing.push(block);
                    if missing_bytes > LOADING_BYTES_MAX {
                        break;
                    }
                }
                Lookup::Done(true) => {}
                Lookup::Done(false) => {
                    return Err(too_large(limit));
                }
            }
        }
        match missing.is_empty() {
            true => self.engine.count_reads(loaded),
            false => loaded.forget_reads(),
        }
        if next == keys.len() {
            list.finish();
        }
        (sliced.wait, sliced.at) = (wait, At::List { next, hits });
        let wanted = sliced.bytes.len().max(out.granted.replies * 2).min(limit.max(sliced.bytes.len()));
        if sliced.bytes.len() > out.granted.replies && !self.has_all_reply_room(out, wanted) {
            return Ok(Sliver::NoRoom(wanted));
        }
        if !missing.is_empty() {
            return Ok(Sliver::Missing(missing));
        }
        if next < keys.len() {
            return Ok(Sliver::More);
        }
        Metrics::add(&self.metrics.gets, keys.len() as u64);
        Metrics::add(&self.metrics.get_hits, hits);
        out.whole(wait, meta, mem::take(&mut sliced.bytes));
        Ok(Sliver::Done)
    }

    fn slice_of_value(
        &self,
        sliced: &mut Sliced,
        meta: Meta,
        key: &[u8],
        loaded: &Loaded,
        out: &mut Outputs,
    ) -> Result<Sliver<E>, Refusal> {
        let At::Value { version, mut copied, mut restarts } = sliced.at else {
            unreachable!("a value is copied")
        };
        let bytes = &mut sliced.bytes;
        let mut lacks = None;
        let lookup = self.engine.lookup(&self.key(key)?, loaded, |found| {
            let Found { entry, wait } = found;
            let wait = self.observed(wait, Durability::Default);
            let Some(entry) = entry else { return (None, wait) };
            if entry.lsn != version {
                restarts += u32::from(version != Lsn::ZERO);
                copied = 0;
                bytes.clear();
                let wanted = entry.value.len() + HEADER_BYTES;
                if wanted > out.granted.replies && !self.has_all_reply_room(out, wanted) {
                    lacks = Some(wanted);
                    return (None, wait);
                }
                begin_value(bytes, meta.request_id, meta.epoch, entry.lsn, entry.value.len());
            }
            let step = if restarts > RESTARTS_MAX { entry.value.len() } else { BYTES_MAX };
            let end = entry.value.len().min(copied + step);
            bytes.extend_from_slice(&entry.value[copied..end]);
            copied = end;
            (Some((entry.lsn, end == entry.value.len())), wait)
        });
        let (now, wait) = match lookup.map_err(refusal)? {
            Lookup::Missing(block) => {
                loaded.forget_reads();
                return Ok(Sliver::Missing(std::iter::once(block).collect()));
            }
            Lookup::Done(done) => done,
        };
        if let Some(wanted) = lacks {
            return Ok(Sliver::NoRoom(wanted));
        }
        if let Some((version, false)) = now {
            sliced.at = At::Value { version, copied, restarts };
            loaded.forget_reads();
            return Ok(Sliver::More);
        }
        self.engine.count_reads(loaded);
        Metrics::add(&self.metrics.gets, 1);
        Metrics::add(&self.metrics.get_hits, u64::from(now.is_some()));
        match now {
            Some(_) => out.whole(wait, meta, mem::take(bytes)),
            None => out.after(wait, meta, &Reply::Absent),
        }
        Ok(Sliver::Done)
    }

    fn slice_of_write(
        &self,
        sliced: &mut Sliced,
        meta: Meta,
        request: &Request<'_>,
        loaded: &Loaded,
        out: &mut Outputs,
    ) -> Result<Sliver<E>, Refusal> {
        let Request::Set { key, value, expiry, condition, durability } = *request else {
            unreachable!("a SET is staged")
        };
        if sliced.staged.is_none() {
            // When it expires is known at the end; here only whether.
            let expiry_ms = u64::from(matches!(expiry, Expiry::Set(_)));
            sliced.staged = self.engine.stage(&Op { kind: OpKind::Put, key, value, expiry_ms });
        }
        let Some(staged) = &mut sliced.staged else { return Ok(Sliver::Wait) };
        if !staged.is_whole() {
            // It is copied twice.
            staged.fill(value, BYTES_MAX / 2);
            return Ok(Sliver::More);
        }
        if self.writes_held.get() {
            return Ok(Sliver::Wait);
        }
        let staged = &mut sliced.staged;
        let attempt = self.set(meta, key, value, expiry, condition, durability, staged, loaded, out)?;
        Ok(self.sliver_of(attempt, loaded))
    }

    /// What came of the last step of a write, whose value was staged.
    pub(super) fn sliver_of(&self, attempt: Attempt<E>, loaded: &Loaded) -> Sliver<E> {
        match attempt {
            Attempt::Done => self.engine.count_reads(loaded),
            _ => loaded.forget_reads(),
        }
        match attempt {
            Attempt::Done => Sliver::Done,
            Attempt::Missing(missing) => Sliver::Missing(missing),
            Attempt::Wait => Sliver::Wait,
            Attempt::NoRoom | Attempt::Long => unreachable!("it was staged, and its reply is small"),
        }
    }

    /// As [`Shard::has_reply_room`], for one that has room for less, and gives that back if it must wait for more.
    pub(super) fn has_all_reply_room(&self, out: &mut Outputs, bytes: usize) -> bool {
        if out.line.is_none() || out.granted.replies >= bytes {
            return true;
        }
        let granted = super::Granted { replies: mem::take(&mut out.granted.replies), gathers: 0 };
        self.left(self.id, granted);
        self.has_reply_room(out, bytes)
    }

    /// Answers a request that takes long from a task of its own, which was granted what the reply takes and has its
    /// place in line for the keys.
    pub(super) async fn slice_until_done(
        &self,
        origin: Origin,
        meta: Meta,
        request: &Request<'_>,
        loaded: &mut Loaded,
        out: &mut Outputs,
    ) {
        let mut sliced = Sliced::new(origin, meta, request, SmallVec::new());
        let mut progress = 0;
        loop {
            let (changed, durable) =
                (self.engine.changed().notified(), self.engine.wal().durable_changed().notified());
            match self.slice(&mut sliced, meta, request, loaded, out) {
                Sliver::Done => return,
                Sliver::Wait => {
                    loaded.forget_place();
                    futures_lite::future::or(changed, durable).await;
                    self.engine.tick();
                }
                Sliver::More => {
                    self.rest().await;
                    self.engine.tick();
                }
                Sliver::Missing(missing) => {
                    // What was copied needs no blocks any more. A key that needs several keeps those that it has.
                    let now = sliced.progress();
                    if mem::replace(&mut progress, now) != now {
                        *loaded = Loaded::new();
                    }
                    if let Err(error) = self.engine.load_all(missing, loaded).await {
                        Metrics::add(&self.metrics.refusals, 1);
                        out.ready(meta, &Reply::Refused(refusal(error)));
                        return;
                    }
                    self.engine.tick();
                }
                Sliver::NoRoom(_) => unreachable!("room for its reply was granted before it was begun"),
            }
        }
    }
}
