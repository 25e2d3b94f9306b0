//! A connection that speaks Redis' protocol: what its [session](crate::redis::session) makes of the bytes is dispatched
//! as if it had been read, and what the shards answer goes through the session to the socket.
//!
//! Replies leave in the order of the commands. One that comes early waits in the session, and with it what was granted
//! for it: so two connections can wait for each other, each with a large reply that came early from the shard whose
//! room the other waits for. Who holds such a grant for the stall timeout, and whose client takes nothing meanwhile, is
//! disconnected.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::{BACKLOG_MAX, BYTES_KEPT, Connection, End};
use crate::env::{Env, Queue};
use crate::metrics::Metrics;
use crate::protocol::Paused;
use crate::protocol::binary::MAGIC_BYTE;
use crate::protocol::resp::plain_get;
use crate::redis::session::{Client, Context, Now, Session, Taken};
use crate::shard::budget::Granted;
use crate::shard::{Dispatched, Outlet, Replies};

/// Which protocol a connection speaks, and its state in that of Redis.
pub(super) struct Speech {
    context: Rc<Context>,
    client: Client,
    is_known: Cell<bool>,
    session: RefCell<Option<Session>>,
    /// Frames that the session made, of which so many bytes are dispatched.
    frames: RefCell<Vec<u8>>,
    frames_at: Cell<usize>,
    frame_bytes: Cell<usize>,
    /// Dispatches what replies have led to.
    is_following: Cell<bool>,
    /// What was granted for replies that came early, for which command at last, and by whom; and since when there is
    /// any.
    early: RefCell<Vec<(u64, usize, Granted)>>,
    early_since: Cell<Option<Duration>>,
}

impl Speech {
    /// Not known before the first byte.
    pub fn new(context: Rc<Context>, client: Client) -> Speech {
        Speech {
            context,
            client,
            is_known: Cell::new(false),
            session: RefCell::new(None),
            frames: RefCell::default(),
            frames_at: Cell::new(0),
            frame_bytes: Cell::new(0),
            is_following: Cell::new(false),
            early: RefCell::default(),
            early_since: Cell::new(None),
        }
    }

    /// Learns from the first byte which protocol it is. Whether it is Redis'.
    pub fn is_redis(&self, bytes: &[u8], random: impl FnOnce() -> u64) -> bool {
        if !self.is_known.get()
            && let Some(first) = bytes.first()
        {
            self.is_known.set(true);
            if *first != MAGIC_BYTE {
                let session = Session::new(self.context.clone(), self.client.clone(), random());
                self.session.replace(Some(session));
            }
        }
        self.session.borrow().is_some()
    }

    /// Whether the client chose this shard, as a node of a cluster.
    pub fn is_node(&self) -> bool {
        self.client.is_node
    }

    /// A line about the client.
    pub fn describe(&self) -> Option<String> {
        self.of(Session::describe)
    }

    /// The number of the client.
    pub fn client(&self) -> Option<u64> {
        self.of(Session::id)
    }

    /// The least pause that its next command waits for, if it does.
    pub fn held_by(&self) -> Option<Paused> {
        // What was taken in before goes on.
        self.of(Session::held_by).flatten().filter(|_| self.frame_bytes.get() == 0)
    }

    fn of<T>(&self, of: impl FnOnce(&Session) -> T) -> Option<T> {
        self.session.borrow().as_ref().map(of)
    }

    /// Bytes of frames that are not dispatched.
    pub fn frame_bytes(&self) -> usize {
        self.frame_bytes.get()
    }

    /// Whether it could take in something now, as far as it knows.
    pub fn is_ready(&self) -> bool {
        self.frame_bytes.get() > 0 || !self.of(Session::is_waiting).unwrap_or(false)
    }

    /// Whether all commands that were taken in are answered.
    pub fn is_answered(&self) -> bool {
        self.of(Session::is_answered).unwrap_or(true)
    }

    /// Bytes that the command at the start of `rest` needs in all; `None` if it is not Redis' protocol.
    pub fn wanted(&self, rest: &[u8]) -> Option<usize> {
        self.of(|session| session.wanted(rest))
    }

    /// Whether it has had a reply that came early, and what was granted for it, for `time`.
    pub fn is_stuck(&self, now: Duration, time: Duration) -> bool {
        self.early_since.get().is_some_and(|since| now.saturating_sub(since) >= time)
    }

    /// The key that the GET at the start of `rest` names, if it is one.
    pub fn first_key<'b>(&self, rest: &'b [u8]) -> Option<&'b [u8]> {
        plain_get(rest).map(|(key, _)| key)
    }

    /// The shard whose replies are waited for by others that came early, if these are many.
    pub fn awaited(&self) -> Option<usize> {
        let awaited =
            |session: &Session| session.is_crowded(BACKLOG_MAX).then(|| session.awaited()).flatten();
        self.of(awaited).flatten()
    }

    /// Whether it has a large reply that came early.
    pub fn has_early(&self) -> bool {
        self.early_since.get().is_some()
    }

    /// Its client takes what comes before, so what came early is not stuck: it counts from now on.
    pub fn advances(&self, now: Duration) {
        if self.has_early() {
            self.early_since.set(Some(now));
        }
    }

    /// All grants that are held, which the connection's end gives back.
    pub fn give_up(&self) -> Vec<(usize, Granted)> {
        self.early_since.set(None);
        self.early.take().into_iter().map(|(_, owner, granted)| (owner, granted)).collect()
    }

    /// Keeps frames, of which those from `at` on are not dispatched.
    fn set_frames(&self, mut frames: Vec<u8>, mut at: usize) {
        // A million keys of a DEL are a million frames, of which some are taken in at a time: they are moved when half
        // of them are done.
        if at > frames.len() / 2 {
            frames.drain(..std::mem::take(&mut at));
        }
        self.frame_bytes.set(frames.len() - at);
        self.frames_at.set(at);
        self.frames.replace(frames);
    }

    /// Bytes that the session keeps of commands that are not answered.
    pub fn pending_bytes(&self) -> usize {
        self.of(Session::pending_bytes).unwrap_or(0)
    }

    /// Bytes that the session keeps for later commands.
    pub fn held_bytes(&self) -> usize {
        self.of(Session::held_bytes).unwrap_or(0)
    }

    /// Whether it gathers an answer that needs room.
    fn needs_room(&self) -> bool {
        self.of(Session::needs_room).unwrap_or(false)
    }
}

impl<E: Env> Connection<E> {
    fn now(&self) -> Now {
        Now {
            paused: self.shard.paused(),
            is_idle: self.in_flight.get() == 0 && !self.is_stalled() && !self.shard.congested(),
        }
    }

    /// As [`Connection::take_in`] for commands of Redis.
    pub(super) fn take_in_commands(self: &Rc<Self>, rest: &mut Vec<u8>) -> Result<bool, End> {
        let mut used = 0;
        let result = self.take_in_until(rest, &mut used);
        self.note_pause(self.speech.held_by().is_some());
        rest.drain(..used);
        if rest.is_empty() && rest.capacity() > BYTES_KEPT {
            *rest = Vec::new();
        }
        result
    }

    fn take_in_until(self: &Rc<Self>, rest: &[u8], used: &mut usize) -> Result<bool, End> {
        let mut turns = 0;
        loop {
            if !self.dispatch_frames()? {
                return Ok(false);
            }
            turns += 1;
            // What was dispatched is answered, and others have their turn.
            if !self.may_dispatch() || turns > TURNS_MAX {
                return Ok(false);
            }
            let mut frames = self.speech.frames.take();
            let before = *used;
            let taken = match self.speech.session.borrow_mut().as_mut() {
                Some(session) => session.take_in_from(rest, used, &mut frames, self.now()),
                None => Taken::Close,
            };
            let is_idle = frames.is_empty() && *used == before;
            let is_without = frames.is_empty();
            self.speech.set_frames(frames, 0);
            self.push_ready();
            match taken {
                Taken::NeedMore { .. } if is_without => return Ok(true),
                Taken::Pause if is_idle => return Ok(false),
                Taken::Close if is_without => return Err(End::OutOfStep),
                _ => {}
            }
        }
    }

    /// Whether a pause holds back its next command.
    pub(super) fn is_paused(&self) -> bool {
        let Some(held_by) = self.speech.held_by() else { return false };
        self.shard.paused().is_some_and(|paused| paused >= held_by)
    }

    /// Notes whether it waits for the end of a pause.
    pub(super) fn note_pause(&self, is_waiting: bool) {
        if self.waits_for_pause.replace(is_waiting) == is_waiting {
            return;
        }
        Metrics::add(&self.shard.metrics.clients_paused, if is_waiting { 1 } else { u64::MAX }); // modulo 2^64
        if !is_waiting {
            // The time was not its own.
            self.is_active(self.shard.env.now());
        }
    }

    /// Dispatches what the session has made. Whether that is all of it.
    fn dispatch_frames(self: &Rc<Self>) -> Result<bool, End> {
        let (mut frames, mut at) = (self.speech.frames.take(), self.speech.frames_at.take());
        while at < frames.len() {
            let dispatched = match at {
                0 => self.shard.dispatch_all(self.token.get(), self.as_ref(), &mut frames),
                _ => self.shard.dispatch(self.token.get(), self.as_ref(), &frames[at..]),
            };
            match dispatched {
                Dispatched::NeedMore { used } => {
                    at += used;
                    assert!(at == frames.len(), "a session makes whole frames");
                }
                Dispatched::Pause { used: 0 } => break,
                Dispatched::Pause { used } => {
                    at += used;
                    if self.shard.should_rest() {
                        break;
                    }
                }
                Dispatched::OutOfStep | Dispatched::MoveTo { .. } => {
                    tracing::error!(token = self.token.get(), "a command became a frame that none can be");
                    return Err(End::OutOfStep);
                }
            }
        }
        let is_all = at == frames.len();
        self.speech.set_frames(frames, at);
        Ok(is_all)
    }

    /// Whether frames may be dispatched.
    pub(super) fn may_dispatch(&self) -> bool {
        self.unsent() < BACKLOG_MAX && !self.is_full() && !self.is_stalled() && !self.shard.congested()
    }

    /// Takes replies of shards. Whether they were meant for a session.
    pub(super) fn answer_commands(&self, owner: usize, replies: &Replies) -> bool {
        let (ready, last, first) = match self.speech.session.borrow_mut().as_mut() {
            None => return false,
            Some(session) => {
                let last = session.answer(&replies.bytes, self.now());
                (session.take_out(), last, session.first())
            }
        };
        let mut early = self.speech.early.borrow_mut();
        match last {
            _ if replies.granted.is_none() => {}
            // Nothing of it is kept.
            None => self.shard.left(owner, replies.granted),
            Some(last) => early.push((last, owner, replies.granted)),
        }
        let mut out = self.out.borrow_mut();
        out.push(owner, Granted::default(), ready);
        let is_sent = out.unsent().is_empty();
        // Those of replies that have left, whatever else waits: an owner grants in the order of its commands, so the
        // next of them may wait for just that.
        for (_, owner, granted) in early.extract_if(.., |(number, ..)| *number < first) {
            match is_sent {
                true => self.shard.left(owner, granted),
                false => out.push(owner, granted, Vec::new()),
            }
        }
        let since = self.speech.early_since.get().unwrap_or_else(|| self.shard.env.now());
        self.speech.early_since.set((!early.is_empty()).then_some(since));
        drop((early, out));
        self.give_back_gathered();
        // What is answered takes nothing any more, and nobody may come by for long.
        self.count();
        true
    }

    /// Whether there is room for what the session gathers; if not, the connection is told when it is worth asking
    /// again. Room for all that it may come to is asked for at once: two that had a part each would wait for each
    /// other.
    fn has_room_to_gather(&self) -> bool {
        if self.gathered.get() > 0 || !self.speech.needs_room() {
            return true;
        }
        let most = self.shard.limits.frame_bytes_max as usize;
        let kept = self.rest_bytes.get().max(self.reserved.get());
        let has_room = self.share.grow(kept, most);
        if has_room {
            self.gathered.set(most);
            self.count();
        }
        has_room
    }

    /// Gives back what was granted for something gathered, as it leaves; but for what any connection may have unsent.
    pub(super) fn give_back_gathered(&self) {
        let granted = self.gathered.get();
        if granted == 0 || self.speech.needs_room() {
            return;
        }
        let unsent = self.unsent();
        let left = if unsent > BACKLOG_MAX { granted.min(unsent) } else { 0 };
        if left < granted {
            self.gathered.set(left);
            self.count();
        }
    }

    /// Passes on what the session has to say.
    fn push_ready(&self) {
        let ready = self.speech.session.borrow_mut().as_mut().map(Session::take_out).unwrap_or_default();
        if !ready.is_empty() {
            self.out.borrow_mut().push(self.shard.id, Granted::default(), ready);
        }
    }

    /// Dispatches what replies have led to, once there is room for what comes of it. A task of its own, since those who
    /// deliver replies must not be called back, and nobody may come by otherwise.
    pub(super) fn follow_up(&self) {
        let has_more = self.speech.of(Session::has_frames).unwrap_or(false);
        if !has_more || self.speech.is_following.replace(true) {
            return;
        }
        let Some(me) = self.me.borrow().upgrade() else { return };
        let (env, guard) = (self.shard.env.clone(), self.shard.pending.enter());
        env.spawn(Queue::Foreground, async move {
            loop {
                let (moved, relieved) = (me.moved.notified(), me.shard.relieved.notified());
                let dispatched = if me.is_broken.get() {
                    Ok(true)
                } else if me.has_room_to_gather() {
                    me.take_in_frames();
                    me.dispatch_frames()
                } else {
                    Ok(false)
                };
                match dispatched {
                    Ok(false) => {}
                    Ok(true) => break,
                    Err(_) => {
                        me.abandon();
                        break;
                    }
                }
                me.shard.end_turn();
                if me.shard.should_rest() {
                    // Nothing of its own need be on its way, so nobody would come by.
                    me.shard.rest_for_reads().await;
                    continue;
                }
                futures_lite::future::or(moved, relieved).await;
            }
            me.speech.is_following.set(false);
            me.shard.end_turn();
            me.moved.notify();
            drop(guard);
        });
    }

    /// Adds the frames that replies have led to, to those that are to be dispatched.
    fn take_in_frames(&self) {
        let more = self.speech.session.borrow_mut().as_mut().map(Session::take_frames).unwrap_or_default();
        self.speech.frames.borrow_mut().extend_from_slice(&more);
        self.speech.frame_bytes.set(self.speech.frames.borrow().len() - self.speech.frames_at.get());
    }
}

/// How often a session makes frames and these are dispatched before others have their turn.
const TURNS_MAX: u32 = 4;
