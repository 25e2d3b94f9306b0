//! Runs frames of one origin in order, and keeps those that can't run yet.
//!
//! An origin's frames stop (they *stall*) while its replies are larger than it can take for now, while
//! too many blocks are being read for it, or while memory is full. What stalls is bounded by what one
//! connection may have sent; the connection is told, and reads no more until it is told that it is over.
//!
//! Requests for the same key take effect in the order sent, though some wait for the disk: a key with a
//! waiting request has a queue ([`Turns`]), and later requests for it wait in line.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

use super::execute::{Attempt, MissingBlocks};
use super::gather::Gather;
use super::held::HELD_BYTES_MAX;
use super::outputs::{Meta, Outputs};
use super::sliced::Sliced;
use super::transact;
use super::{Origin, Shard, Stall};
use crate::engine::{Loaded, MissingBlock};
use crate::env::{Env, Notify, Queue};
use crate::metrics::Metrics;
use crate::protocol::binary::{FrameHeader, HEADER_BYTES, Keys, decode_header, decode_request};
use crate::protocol::{BGSAVE, Reply, Request, SAVE};
use crate::slot::Slot;

/// Replies to one message beyond which the rest of it waits until they have left.
const OUT_BYTES_MAX: usize = 128 << 10;
/// Bytes of a reply up to which it waits for those of others whose blocks came at the same time.
const SMALL_BYTES: usize = 4 << 10;
/// Bytes of blocks being read for one origin beyond which its further frames wait.
pub(super) const LOADING_BYTES_MAX: usize = 4 << 20;

/// What is known of an origin that has something waiting.
#[derive(Default)]
pub(super) struct Waiting {
    /// Frames that were not executed, oldest first, and who takes their replies: the origin itself, or
    /// whoever gathers the answer to a request of it that concerns several shards.
    frames: VecDeque<Frames>,
    /// The request that the first of them is, if it takes long and was begun.
    pub(super) sliced: Option<Box<Sliced>>,
    /// If the first of them is a read that waits for room for its reply: how much it will need. It asks for all of
    /// that first: with less to begin with, two of them could take from each other what both were granted, for ever.
    pub(super) wanted: usize,
    pub(super) loading_bytes: usize,
    for_output: bool,
    for_room: bool,
    for_replies: bool,
    for_move: bool,
    for_turn: bool,
}

/// Whole frames back to back, those from `at` on.
struct Frames {
    origin: Origin,
    bytes: Vec<u8>,
    at: usize,
}

impl Waiting {
    /// Whether they wait for replies to be taken, which may be for ever, or for moves to end. Replies to others may count
    /// as taken soon.
    pub fn waits_for_clients(&self, room_is_soon: bool) -> bool {
        self.for_output || self.for_move || self.for_replies && !room_is_soon
    }

    /// What was not executed.
    pub fn frames(&self) -> impl Iterator<Item = &[u8]> {
        self.frames.iter().map(|frames| &frames.bytes[frames.at..])
    }
}

/// Who waits for whom among requests for the same key (by hash).
#[derive(Default)]
pub(super) struct Turns {
    /// The last in line, of each key with a line.
    last: RefCell<HashMap<u64, Turn>>,
}

#[derive(Clone)]
struct Turn {
    is_done: Rc<Cell<bool>>,
    done: Notify,
    /// Bytes of the block that it reads, or that one before it in line does.
    block_bytes: usize,
}

impl Turns {
    fn is_empty(&self) -> bool {
        self.last.borrow().is_empty()
    }

    fn is_taken(&self, hashes: &[u64]) -> bool {
        let last = self.last.borrow();
        !last.is_empty() && hashes.iter().any(|hash| last.contains_key(hash))
    }

    /// The largest block that is read by one who misses `block_bytes`, or in the lines of `hashes`.
    fn block_bytes(&self, hashes: &[u64], block_bytes: usize) -> usize {
        let last = self.last.borrow();
        let in_line = hashes.iter().filter_map(|hash| last.get(hash)).map(|turn| turn.block_bytes);
        in_line.fold(block_bytes, usize::max)
    }

    /// Joins the lines of `hashes`; `block_bytes` as told by [`Turns::block_bytes`]. Returns the own place and
    /// those to wait for.
    fn join(&self, hashes: &[u64], block_bytes: usize) -> (Turn, Vec<Turn>) {
        let mut last = self.last.borrow_mut();
        let turn = Turn { is_done: Rc::new(Cell::new(false)), done: Notify::new(), block_bytes };
        let before = hashes.iter().filter_map(|hash| last.insert(*hash, turn.clone()));
        // A key named twice in one request does not wait for itself.
        let before = before.filter(|other| !Rc::ptr_eq(&other.is_done, &turn.is_done)).collect();
        (turn, before)
    }

    fn leave(&self, hashes: &[u64], turn: &Turn) {
        turn.is_done.set(true);
        let mut last = self.last.borrow_mut();
        for hash in hashes {
            if last.get(hash).is_some_and(|other| Rc::ptr_eq(&other.is_done, &turn.is_done)) {
                last.remove(hash);
            }
        }
        drop(last);
        turn.done.notify();
    }
}

/// How many of the frames at hand were dealt with.
enum Ran {
    All,
    /// The rest waits.
    Some,
    /// The first of them waits.
    None,
}

/// Whether a frame was dealt with.
pub(super) enum Step {
    /// It was answered, or a task will.
    Taken,
    /// It must wait, with all after it.
    Stalled(Stall),
}

impl<E: Env> Shard<E> {
    /// Executes whole frames of `line`, behind what waits of it. Replies go to `origin`. What has to wait is kept.
    pub(super) fn execute(self: &Rc<Self>, line: Origin, origin: Origin, frames: Cow<'_, [u8]>) {
        if let Some(waiting) = self.waiting.borrow_mut().get_mut(&line)
            && !waiting.frames.is_empty()
        {
            waiting.frames.push_back(Frames { origin, bytes: frames.into_owned(), at: 0 });
            return;
        }
        self.run(line, origin, frames, 0);
    }

    /// Runs frames from the one at `begin` until their end or until they stall.
    fn run(self: &Rc<Self>, line: Origin, origin: Origin, frames: Cow<'_, [u8]>, begin: usize) -> Ran {
        let mut at = begin;
        // One time for all of them.
        self.engine.tick();
        let mut out = outputs(line, origin);
        let (mut fetched, mut stall) = (0, None);
        while at < frames.len() && stall.is_none() {
            if at >= fetched {
                fetched = at + self.fetch_ahead(&frames[at..]);
            }
            if out.len() > OUT_BYTES_MAX {
                stall = Some(Stall::Output);
                break;
            }
            let Ok(Some(header)) = decode_header(&frames[at..], &self.limits) else {
                unreachable!("frames are checked before they are executed")
            };
            let end = at + header.frame_bytes();
            match self.step(line, origin, &header, &frames[at..end], &mut out) {
                Step::Taken => at = end,
                Step::Stalled(why) => stall = Some(why),
            }
        }
        self.settle(origin, out);
        match stall {
            None => Ran::All,
            Some(why) => {
                let frames = match frames {
                    Cow::Owned(bytes) => Frames { origin, bytes, at },
                    Cow::Borrowed(bytes) => Frames { origin, bytes: bytes[at..].to_vec(), at: 0 },
                };
                self.stall_at(line, why, frames);
                if at > begin { Ran::Some } else { Ran::None }
            }
        }
    }

    /// Executes one whole frame that was checked before.
    fn step(
        self: &Rc<Self>,
        line: Origin,
        origin: Origin,
        header: &FrameHeader,
        frame: &[u8],
        out: &mut Outputs,
    ) -> Step {
        let meta = self.meta(header);
        let request = match decode_request(header, &frame[HEADER_BYTES..], &self.limits) {
            Ok(request) => request,
            Err(refusal) => {
                Metrics::add(&self.metrics.refusals, 1);
                out.ready(meta, &Reply::Refused(refusal));
                return Step::Taken;
            }
        };
        // One that waited where it was read. Whose its keys are may have changed since.
        if let Request::Mget { keys } = request
            && line == origin
            && line.peer == self.id
            && !self.is_sliced(line)
            && keys.into_iter().any(|key| self.slots.shard(Slot::of_key(key)) != self.id)
        {
            return self.gather(line, meta, keys, out);
        }
        self.step_request(line, origin, frame, meta, &request, out)
    }

    /// Whether the first frame of `line` was begun. Then its tablets stay until it ends.
    fn is_sliced(&self, line: Origin) -> bool {
        self.waiting.borrow().get(&line).is_some_and(|waiting| waiting.sliced.is_some())
    }

    /// Asks the owners of `keys`, unless it must wait.
    pub(super) fn gather(
        self: &Rc<Self>,
        line: Origin,
        meta: Meta,
        keys: Keys<'_>,
        out: &mut Outputs,
    ) -> Step {
        if self.holds(&Request::Mget { keys }) {
            Step::Stalled(Stall::Move)
        } else if Gather::mget(self, line, meta, keys, out) {
            Step::Taken
        } else {
            Step::Stalled(Stall::Replies)
        }
    }

    /// What replies to the request with this header repeat.
    pub(super) fn meta(&self, header: &FrameHeader) -> Meta {
        Meta {
            opcode: header.opcode,
            request_id: header.request_id,
            epoch: self.slots.epoch(),
            frame_bytes: header.frame_bytes(),
        }
    }

    /// As [`Shard::step`], for a request that was decoded already.
    pub(super) fn step_request(
        self: &Rc<Self>,
        line: Origin,
        origin: Origin,
        frame: &[u8],
        meta: Meta,
        request: &Request<'_>,
        out: &mut Outputs,
    ) -> Step {
        let loading = self.waiting.borrow().get(&line).map_or(0, |waiting| waiting.loading_bytes);
        if loading > LOADING_BYTES_MAX {
            return Step::Stalled(Stall::Disk);
        }
        if self.holds_too_much(out.held_bytes()) {
            // The release of those that are held makes room, as a flush does.
            return Step::Stalled(Stall::Room);
        }
        let begun = self.waiting.borrow_mut().get_mut(&line).and_then(|waiting| waiting.sliced.take());
        if let Some(sliced) = begun {
            return self.go_on(*sliced, line, frame, meta, request, out);
        }
        if self.is_short.get() && request.is_write() {
            // What comes to be free is for those who wait already: else whoever sends most has it all.
            Metrics::add(&self.metrics.memory_waits, 1);
            return Step::Stalled(Stall::Room);
        }
        Metrics::add(&self.metrics.requests, 1);
        if let Request::Scan(scan) = request {
            return self.scan(line, origin, meta, scan, out);
        }
        if let Request::Checkpoint { dir: kind @ (SAVE | BGSAVE) } = request {
            self.save(origin, meta, kind, out);
            return Step::Taken;
        }
        if let Request::Checkpoint { dir } = request {
            self.checkpoint(origin, meta, dir);
            return Step::Taken;
        }
        if let Request::Tablets { command } = request {
            self.arrange(origin, meta, command);
            return Step::Taken;
        }
        if let Request::Clients(clients) = request {
            match self.change_clients(clients) {
                Ok(text) => out.ready(meta, &Reply::Stats(&text)),
                Err(refusal) => {
                    Metrics::add(&self.metrics.refusals, 1);
                    out.ready(meta, &Reply::Refused(refusal));
                }
            }
            return Step::Taken;
        }
        if self.turns.is_empty() || !self.turns.is_taken(&self.hashes(request)) {
            match self.attempt(meta, request, &Loaded::new(), out) {
                Attempt::Done => Step::Taken,
                Attempt::Wait => {
                    Metrics::add(&self.metrics.memory_waits, 1);
                    Step::Stalled(Stall::Room)
                }
                Attempt::NoRoom => Step::Stalled(Stall::Replies),
                Attempt::Long => self.begin_sliced(line, origin, frame, meta, request, out),
                Attempt::Missing(missing) => {
                    self.wait_for_disk(line, origin, frame, meta, request, missing, out)
                }
            }
        } else {
            self.wait_for_disk(line, origin, frame, meta, request, MissingBlocks::new(), out)
        }
    }

    /// Whether there is a line of requests for the key with this hash.
    #[inline]
    pub(super) fn is_waited_for(&self, hash: u64) -> bool {
        self.turns.is_taken(&[hash])
    }

    fn hashes(&self, request: &Request<'_>) -> smallvec::SmallVec<[u64; 4]> {
        match *request {
            Request::Get { key }
            | Request::Set { key, .. }
            | Request::Delete { key, .. }
            | Request::Incr { key, .. }
            | Request::Expire { key, .. }
            | Request::Persist { key, .. }
            | Request::Ttl { key } => std::iter::once(self.engine.hash(key)).collect(),
            Request::Mget { keys } => keys.map(|key| self.engine.hash(key)).collect(),
            Request::Batch { ops, .. } => ops.map(|op| self.engine.hash(op.key)).collect(),
            Request::Transact(ref transaction) => {
                transact::keys_of(transaction).map(|key| self.engine.hash(key)).collect()
            }
            Request::Checkpoint { .. } | Request::Scan(_) | Request::DeleteRange(_) => {
                smallvec::SmallVec::new()
            }
            Request::Hello(_) | Request::Ping { .. } | Request::Stats { .. } | Request::Tablets { .. } => {
                smallvec::SmallVec::new()
            }
            Request::Clients(_) => smallvec::SmallVec::new(),
        }
    }

    /// Gives a request to a task of its own, which waits for its turn and for the disk.
    #[allow(clippy::too_many_arguments)] // the request, and where it came from
    pub(super) fn wait_for_disk(
        self: &Rc<Self>,
        line: Origin,
        origin: Origin,
        frame: &[u8],
        meta: Meta,
        request: &Request<'_>,
        missing: MissingBlocks<E>,
        out: &mut Outputs,
    ) -> Step {
        let hashes = self.hashes(request);
        let block_bytes = missing.iter().map(MissingBlock::len).max().unwrap_or(0);
        let block_bytes = self.turns.block_bytes(&hashes, block_bytes);
        // Its reply may be as large as the blocks of all its keys, whoever reads them.
        let reply_bytes = (hashes.len() * block_bytes).min(self.limits.frame_bytes_max as usize);
        let bytes = frame.len() + block_bytes.max(reply_bytes);
        if !self.has_all_reply_room(out, bytes) {
            return self.without_room(line, bytes);
        }
        Metrics::add(&self.metrics.disk_waits, 1);
        let (turn, before) = self.turns.join(&hashes, block_bytes);
        // What was granted goes with the task.
        let mut out = Outputs { granted: std::mem::take(&mut out.granted), ..Outputs::default() };
        self.waiting.borrow_mut().entry(line).or_default().loading_bytes += bytes;
        let slots = self.begins(request);
        self.reads_begun.set(self.reads_begun.get() + 1);
        let (shard, frame, guard) = (self.clone(), frame.to_vec(), self.pending.enter());
        self.env.spawn(Queue::Foreground, async move {
            for other in before {
                other.done.until(|| other.is_done.get()).await;
            }
            shard.attempt_until_done(origin, meta, &frame, missing, &mut out).await;
            shard.turns.leave(&hashes, &turn);
            shard.has_ended(&slots);
            // A large reply keeps what was granted for it until it has left.
            let is_large = out.len() > SMALL_BYTES;
            shard.settle(origin, out);
            shard.loaded(line, bytes);
            if is_large {
                shard.end_turn()
            } else {
                shard.end_turn_later()
            }
            drop(guard);
        });
        Step::Taken
    }

    async fn attempt_until_done(
        self: &Rc<Self>,
        origin: Origin,
        meta: Meta,
        frame: &[u8],
        mut missing: MissingBlocks<E>,
        out: &mut Outputs,
    ) {
        let request = decode_header(frame, &self.limits)
            .ok()
            .flatten()
            .and_then(|header| decode_request(&header, &frame[HEADER_BYTES..], &self.limits).ok())
            .expect("it was decoded when it came");
        let mut loaded = Loaded::new();
        loop {
            let result = self.engine.load_all(missing.drain(..), &mut loaded).await;
            // What has come from the disk came with all that was waiting for the ring.
            self.reads_begun.set(0);
            if let Err(error) = result {
                Metrics::add(&self.metrics.refusals, 1);
                out.ready(meta, &Reply::Refused(super::execute::refusal(error)));
                return;
            }
            let (changed, durable) =
                (self.engine.changed().notified(), self.engine.wal().durable_changed().notified());
            // It may have waited for long.
            self.engine.tick();
            match self.attempt(meta, &request, &loaded, out) {
                Attempt::Done => return,
                Attempt::Long => {
                    loaded.forget_place();
                    return self.slice_until_done(origin, meta, &request, &mut loaded, out).await;
                }
                Attempt::Missing(next) => missing = next,
                Attempt::Wait => {
                    loaded.forget_place();
                    futures_lite::future::or(changed, durable).await;
                }
                Attempt::NoRoom => unreachable!("room for its reply was granted before it was begun"),
            }
        }
    }

    /// A task of this origin has ended.
    pub(super) fn loaded(self: &Rc<Self>, origin: Origin, bytes: usize) {
        if let Some(waiting) = self.waiting.borrow_mut().get_mut(&origin) {
            waiting.loading_bytes -= bytes;
        }
        self.try_resume(origin);
    }

    /// Sends what was answered on its way.
    pub(super) fn settle(&self, origin: Origin, out: Outputs) {
        for (block, replies) in out.held {
            // It may have become durable since; the release loop would then never look at it.
            if block <= self.engine.wal().durable() {
                self.reply(origin, replies);
            } else {
                self.hold(block, origin, replies);
            }
        }
        self.reply(origin, out.ready);
        self.left(self.id, out.granted);
    }

    /// Keeps frames that can't run yet, and tells their origin.
    pub(super) fn stall(&self, line: Origin, origin: Origin, why: Stall, frames: Vec<u8>) {
        self.stall_at(line, why, Frames { origin, bytes: frames, at: 0 });
    }

    fn stall_at(&self, line: Origin, why: Stall, mut frames: Frames) {
        assert!(frames.at < frames.bytes.len(), "something stalls");
        if frames.at > frames.bytes.len() / 2 {
            frames.bytes.drain(..std::mem::take(&mut frames.at));
        }
        let mut all = self.waiting.borrow_mut();
        let waiting = all.entry(line).or_default();
        waiting.frames.push_front(frames);
        waiting.for_output |= why == Stall::Output;
        waiting.for_replies |= why == Stall::Replies;
        waiting.for_move |= why == Stall::Move;
        waiting.for_turn |= why == Stall::Turn;
        if why == Stall::Room && !std::mem::replace(&mut waiting.for_room, true) {
            self.room_line.borrow_mut().push_back(line);
        }
        drop(all);
        self.tell_stall(line, why);
    }

    /// Whether frames of `line` wait here.
    pub(super) fn has_stalled(&self, line: Origin) -> bool {
        self.waiting.borrow().get(&line).is_some_and(|waiting| !waiting.frames.is_empty())
    }

    /// The origin has room for replies again.
    pub(super) fn resume_output(self: &Rc<Self>, origin: Origin) {
        if let Some(waiting) = self.waiting.borrow_mut().get_mut(&origin) {
            waiting.for_output = false;
        }
        self.try_resume(origin);
    }

    /// Others have had their turn.
    pub(super) fn resume_after_turn(self: &Rc<Self>, line: Origin) {
        if let Some(waiting) = self.waiting.borrow_mut().get_mut(&line) {
            waiting.for_turn = false;
        }
        self.try_resume(line);
    }

    /// The origin is gone: what it sent and was not begun is dropped. Parts of requests that others gather
    /// still run, since those wait for their answers.
    pub(super) fn forget(self: &Rc<Self>, line: Origin) {
        let mut sliced = None;
        if let Some(waiting) = self.waiting.borrow_mut().get_mut(&line) {
            waiting.frames.retain(|frames| frames.origin != line);
            sliced = waiting.sliced.take_if(|sliced| sliced.origin == line);
            waiting.wanted = 0;
            waiting.for_output = false;
            waiting.for_replies = false;
            waiting.for_move = false;
        }
        if let Some(sliced) = sliced {
            self.abandon_sliced(*sliced);
        }
        self.reply_budget.leave(&line);
        self.gather_budget.leave(&line);
        self.try_resume(line);
        self.reply_budget.leave_if_granted(&line);
        self.gather_budget.leave_if_granted(&line);
        // Others may have waited behind it.
        self.replies_left.notify();
    }

    /// There may be memory again for those that wait for it. Who has waited longest goes first, and one that finds
    /// none ends it: there is none for those behind it either. It stays in front, unless some of its requests were
    /// executed: then others have their turn. But one that waits until others are staged no more, or for a move, waits
    /// for something else, perhaps for one behind it.
    pub(super) fn resume_after_room(self: &Rc<Self>) {
        let waiting = self.room_line.borrow().len();
        for _ in 0..waiting {
            let next = self.room_line.borrow_mut().pop_front();
            let Some(origin) = next else { break };
            if let Some(waiting) = self.waiting.borrow_mut().get_mut(&origin) {
                waiting.for_room = false;
            }
            self.is_short.set(false);
            let has_progressed = self.try_resume(origin);
            let lacks_memory = |waiting: &Waiting| {
                let is_unstaged = waiting.sliced.as_ref().is_some_and(|sliced| sliced.is_unstaged());
                waiting.for_room && !is_unstaged
            };
            let is_in_vain = self.is_short.get() || self.writes_held.get() || self.holds_too_much(0);
            if is_in_vain && self.waiting.borrow().get(&origin).is_some_and(lacks_memory) {
                if !has_progressed {
                    let mut line = self.room_line.borrow_mut();
                    // As a rule it is the last.
                    if let Some(place) = line.iter().rposition(|other| *other == origin) {
                        line.remove(place);
                        line.push_front(origin);
                    }
                }
                return;
            }
        }
        self.is_short.set(false);
    }

    /// Whether replies that wait for the log, with so many bytes more, are so much that others wait for their release.
    fn holds_too_much(&self, more: usize) -> bool {
        self.held.borrow().bytes() + more > HELD_BYTES_MAX
    }

    /// No slots are held any more: whoever waits for that goes on.
    pub(super) fn resume_after_move(self: &Rc<Self>) {
        let origins: Vec<Origin> = {
            let mut all = self.waiting.borrow_mut();
            let waiting = all
                .iter_mut()
                .filter_map(|(origin, waiting)| std::mem::take(&mut waiting.for_move).then_some(*origin));
            waiting.collect()
        };
        for origin in origins {
            self.try_resume(origin);
        }
    }

    /// Goes on with those for whose replies there is room now.
    pub(super) fn resume_after_replies(self: &Rc<Self>) {
        while let Some(line) = self.reply_budget.next().or_else(|| self.gather_budget.next()) {
            if let Some(waiting) = self.waiting.borrow_mut().get_mut(&line) {
                waiting.for_replies = false;
            }
            self.try_resume(line);
            // The value may be another by now, or the line may wait for something else.
            self.reply_budget.leave_if_granted(&line);
            self.gather_budget.leave_if_granted(&line);
        }
    }

    /// Whether something was executed.
    fn try_resume(self: &Rc<Self>, origin: Origin) -> bool {
        let mut has_progressed = false;
        loop {
            let frames = {
                let mut all = self.waiting.borrow_mut();
                let Some(waiting) = all.get_mut(&origin) else { return has_progressed };
                let must_wait = waiting.for_output
                    || waiting.for_room
                    || waiting.for_replies
                    || waiting.for_move
                    || waiting.for_turn
                    || waiting.loading_bytes > LOADING_BYTES_MAX;
                if waiting.frames.is_empty() {
                    if waiting.loading_bytes == 0 {
                        all.remove(&origin);
                    }
                    return has_progressed;
                }
                if must_wait {
                    return has_progressed;
                }
                waiting.frames.pop_front()
            };
            let Some(frames) = frames else { return has_progressed };
            // While it runs its frames nothing else of this origin can come in between: all is one turn.
            match self.run(origin, frames.origin, Cow::Owned(frames.bytes), frames.at) {
                Ran::All => has_progressed = true,
                Ran::Some => return true,
                Ran::None => return has_progressed,
            }
            let is_over = self.waiting.borrow().get(&origin).is_none_or(|w| w.frames.is_empty());
            if is_over {
                self.tell_stall(origin, Stall::Over);
            }
        }
    }
}

/// For frames of `line` whose replies go to `origin`. Whoever gathers has asked for the room already.
fn outputs(line: Origin, origin: Origin) -> Outputs {
    if line == origin { Outputs::of(line) } else { Outputs::default() }
}
