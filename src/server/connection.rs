//! One client connection on one shard: reads frames, has the shard dispatch them, writes replies.
//!
//! What bounds its memory:
//! - What was read and not answered is its [`Share`] of the shard's requests. It reads no more than it is
//!   free to hold (the pipeline that HELLO promises) or was granted; for a frame larger than that it asks
//!   when it has the header, for all of it.
//! - It takes in no request while more than [`BACKLOG_MAX`] of replies wait to be sent, while
//!   [`IN_FLIGHT_MAX`] requests or [`IN_FLIGHT_BYTES_MAX`] of them are unanswered, while some owner has
//!   stalled its frames, or while the mesh is congested. It still reads what it is free to hold.
//! - Large replies are granted by their owner, and what was granted is given back once they are sent. A large
//!   answer that is gathered here (of KEYS) counts as part of its share until then.
//! - A client that takes no byte of its replies for the stall timeout is disconnected, and so is one that
//!   sends none of a frame, or of a transaction, that was granted memory while others wait for it.

mod commands;
mod ends;
pub(in crate::server) mod kept;

use std::cell::{Cell, Ref, RefCell};
use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use self::commands::Speech;
use self::kept::{Abroad, KeptBack};
use super::open::OpenConnections;
use super::outbuffer::{BYTES_KEPT, OutBuffer};
use super::poller::Poller;
use super::sends::Sender;
use super::socket::Socket;
use crate::env::{Env, Notify, Queue};
use crate::metrics::Metrics;
use crate::protocol::binary::MAGIC_BYTE;
use crate::redis::session::{self, Client};
use crate::shard::budget::Share;
use crate::shard::{
    Arrival, BACKLOG_MAX, Dispatched, IN_FLIGHT_BYTES_MAX, IN_FLIGHT_MAX, Outlet, Replies, Shard, Stall,
};

/// What ends a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client closed, or the server drains.
    Closed,
    /// A frame after which the stream is out of step; its error reply is sent first.
    OutOfStep,
    /// The socket failed, or the client took no replies.
    Broken,
    /// Another shard serves it from here on.
    Moved,
}

/// A connection, as its tasks and the shard's sweep see it.
pub struct Connection<E: Env> {
    shard: Rc<Shard<E>>,
    socket: Socket,
    token: Cell<u64>,
    speech: Speech,
    out: RefCell<OutBuffer>,
    in_flight: Cell<u32>,
    abroad: Abroad,
    kept_back: Rc<KeptBack<E>>,
    /// Of requests taken in and not answered.
    in_flight_bytes: Cell<usize>,
    /// Bytes read and not taken in.
    rest_bytes: Cell<usize>,
    /// So many of these it may come to hold.
    reserved: Cell<usize>,
    /// What was granted for an answer that the session gathers, until it has left.
    gathered: Cell<usize>,
    /// All of the above.
    share: Share,
    /// Owners where frames of this connection wait, and why.
    stalls: RefCell<Vec<(usize, Stall)>>,
    /// Takes in nothing until nothing is in flight.
    is_fenced: Cell<bool>,
    is_writing: Cell<bool>,
    /// What is to be sent leaves with that of others, at the end of the turn.
    sends_later: Cell<bool>,
    is_broken: Cell<bool>,
    /// The server drains.
    takes_no_more: Cell<bool>,
    waits_for_pause: Cell<bool>,
    active_at: Cell<Duration>,
    /// Bytes of those sent that the client's side had acknowledged when this was last looked at.
    taken: Cell<i64>,
    /// Notified when replies came or left, and when the connection broke.
    moved: Notify,
    me: RefCell<Weak<Connection<E>>>,
}

impl<E: Env> Outlet for Connection<E> {
    fn deliver(&self, owner: usize, replies: Replies) {
        assert!(replies.count <= self.in_flight.get(), "no more replies than requests");
        assert!(replies.frame_bytes <= self.in_flight_bytes.get(), "no more is answered than was taken in");
        self.in_flight.set(self.in_flight.get() - replies.count);
        self.in_flight_bytes.set(self.in_flight_bytes.get() - replies.frame_bytes);
        self.abroad.answer(replies.count, owner != self.shard.id);
        if self.in_flight.get() == 0 {
            assert!(self.in_flight_bytes.get() == 0, "all bytes are of requests");
            self.is_fenced.set(false);
        }
        self.count();
        if self.is_broken.get() {
            self.shard.left(owner, replies.granted);
        } else if !self.answer_commands(owner, &replies) {
            self.out.borrow_mut().push(owner, replies.granted, replies.bytes);
        }
    }

    fn stall(&self, owner: usize, why: Stall) {
        let mut stalls = self.stalls.borrow_mut();
        stalls.retain(|(known, _)| *known != owner);
        if why != Stall::Over {
            stalls.push((owner, why));
        }
    }

    fn accept(&self, bytes: usize) {
        self.abroad.take();
        self.in_flight.set(self.in_flight.get() + 1);
        self.in_flight_bytes.set(self.in_flight_bytes.get() + bytes);
    }

    fn is_full(&self) -> bool {
        self.in_flight.get() >= IN_FLIGHT_MAX || self.in_flight_bytes.get() >= IN_FLIGHT_BYTES_MAX
    }

    fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    fn fence(&self) {
        assert!(self.in_flight.get() > 0, "an answer ends it");
        self.is_fenced.set(true);
    }

    fn backlog(&self) -> usize {
        self.unsent()
    }

    fn is_stalled(&self) -> bool {
        self.is_fenced.get() || !self.stalls.borrow().is_empty()
    }

    fn describe(&self) -> Option<String> {
        self.speech.describe().filter(|_| !self.is_broken.get())
    }

    fn client(&self) -> Option<u64> {
        self.speech.client().filter(|_| !self.is_broken.get())
    }

    fn disconnect(&self) {
        tracing::debug!(token = self.token.get(), "disconnected: another client asked for it");
        self.abandon();
    }

    fn sent_on(&self, count: u32) {
        self.abroad.ask(count);
    }

    fn flush(&self) {
        if !self.sends_later.get() && !self.send_or_keep() {
            self.has_flushed();
        }
    }
}

impl<E: Env> Sender for Connection<E> {
    fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn to_send(&self) -> Ref<'_, [u8]> {
        let is_its_time = !self.is_writing.get() && !self.is_broken.get();
        Ref::map(self.out.borrow(), |out| if is_its_time { out.unsent() } else { &[] })
    }

    fn sent(&self, len: usize) {
        self.sends_later.set(false);
        if self.is_broken.get() {
            return;
        }
        if len > 0 {
            self.note_sent(len);
        }
        // What is left, if anything is.
        self.write_now();
        self.has_flushed();
    }
}

impl<E: Env> Connection<E> {
    /// Serves a connection until it ends.
    /// Returns whether another shard serves it from here on.
    pub async fn serve(
        shard: Rc<Shard<E>>,
        arrival: Arrival,
        context: Rc<session::Context>,
        open: &OpenConnections<E>,
        poller: &Rc<Poller>,
    ) -> bool {
        let Arrival { stream, read, is_node } = arrival;
        let client = Client::of(&stream, is_node);
        let socket = match Socket::adopt(stream, poller) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::debug!("a connection was lost before it was served: {error}");
                return false;
            }
        };
        let moved = Notify::new();
        let free = shard.limits.pipeline_bytes_max as usize;
        let connection = Rc::new(Connection {
            share: Share::new(shard.request_budget.clone(), moved.clone(), free),
            active_at: Cell::new(shard.env.now()),
            taken: Cell::new(0),
            shard: shard.clone(),
            socket,
            token: Cell::new(0),
            speech: Speech::new(context, client),
            out: RefCell::default(),
            in_flight: Cell::new(0),
            abroad: Abroad::default(),
            kept_back: open.kept_back.clone(),
            in_flight_bytes: Cell::new(0),
            rest_bytes: Cell::new(0),
            reserved: Cell::new(0),
            gathered: Cell::new(0),
            stalls: RefCell::new(Vec::new()),
            is_fenced: Cell::new(false),
            is_writing: Cell::new(false),
            sends_later: Cell::new(false),
            is_broken: Cell::new(false),
            takes_no_more: Cell::new(false),
            waits_for_pause: Cell::new(false),
            moved,
            me: RefCell::new(Weak::new()),
        });
        connection.me.replace(Rc::downgrade(&connection));
        let token = shard.register(connection.clone());
        connection.token.set(token);
        open.insert(token, &connection);
        tracing::debug!(shard = shard.id, token, "connection begins");
        Metrics::add(&shard.metrics.connections_total, 1);
        Metrics::add(&shard.metrics.connections_open, 1);
        let end = connection.read_loop(read).await;
        // Of what was taken in last.
        connection.end_turn();
        connection.rest_bytes.set(0);
        connection.reserved.set(0);
        connection.count();
        connection.note_pause(false);
        if end != End::Broken {
            connection.finish().await;
        }
        open.remove(token);
        Metrics::add(&shard.metrics.connections_open, u64::MAX); // one less, modulo 2^64
        shard.unregister(token);
        if connection.in_flight.get() > 0 {
            shard.forget_everywhere(token);
        }
        // Its task may still send for a moment; what it sends is little by then.
        connection.give_up();
        if end == End::Broken {
            // Whoever was about to go on for it does not.
            connection.abandon();
        }
        if end == End::OutOfStep {
            connection.linger().await;
        }
        if end != End::Moved {
            connection.socket.shutdown(Shutdown::Both);
        }
        tracing::debug!(shard = shard.id, token, ?end, "connection ended");
        end == End::Moved
    }

    async fn read_loop(self: &Rc<Self>, mut rest: Vec<u8>) -> End {
        let mut is_ended = false;
        let (mut at_once, mut looked_at) = (0, self.socket.seen_at());
        loop {
            let needs_more = match self.take_in(&mut rest).await {
                Ok(needs_more) => needs_more,
                Err(end) => return end,
            };
            self.end_turn();
            if self.is_broken.get() {
                return End::Broken;
            }
            // As in Redis, who goes while paused is not waited for. What was held back at a stop is not done.
            if self.is_paused() && (is_ended || self.takes_no_more.get()) {
                return End::Closed;
            }
            if needs_more && is_ended {
                if !rest.is_empty() {
                    tracing::debug!(token = self.token.get(), bytes = rest.len(), "closed inside a frame");
                }
                return End::Closed;
            }
            if looked_at != self.socket.seen_at() {
                // All others whose bytes had come have been woken since.
                (at_once, looked_at) = (0, self.socket.seen_at());
            }
            if at_once >= AT_ONCE_BYTES {
                at_once = 0;
                if self.shard.should_rest() {
                    self.shard.rest_for_reads().await;
                    continue;
                }
                self.shard.rest().await;
            }
            let free = self.share.free();
            let read = if needs_more && self.is_ready() {
                match self.room_to_read(&rest) {
                    0 => {
                        self.moved.notified().await;
                        continue;
                    }
                    room => self.read_more(&mut rest, room).await,
                }
            } else if is_ended || free == 0 {
                at_once = AT_ONCE_BYTES;
                self.ready().await;
                continue;
            } else {
                // What the client was promised to be read even if it takes no replies.
                let wait = async {
                    self.ready().await;
                    None
                };
                let read = async { Some(self.read_more(&mut rest, free).await) };
                match futures_lite::future::or(wait, read).await {
                    None => {
                        at_once = AT_ONCE_BYTES;
                        continue;
                    }
                    Some(read) => read,
                }
            };
            match read {
                Ok(0) => is_ended = true,
                Ok(len) => {
                    if len <= FEW_BYTES && self.socket.seen() >= CROWD {
                        self.fetch_ahead(&rest).await;
                    }
                    at_once += len;
                    self.is_active(self.socket.seen_at());
                    self.rest_bytes.set(rest.len());
                    self.count();
                }
                Err(error) => {
                    tracing::debug!(token = self.token.get(), "read failed: {error}");
                    return End::Broken;
                }
            }
        }
    }

    /// Has the memory fetched that the only request in `rest` will touch. Of many in one read this is done for some at a
    /// time; here it is done for those of all who are served together.
    async fn fetch_ahead(&self, rest: &[u8]) {
        let key = match rest.first() {
            Some(&MAGIC_BYTE) => self.shard.first_key(rest),
            _ => self.speech.first_key(rest),
        };
        if let Some(key) = key {
            self.shard.fetch_for(key).await;
        }
    }

    /// Dispatches the whole frames in `rest` and leaves what can't be taken in yet. Whether more bytes are
    /// needed to go on.
    async fn take_in(self: &Rc<Self>, rest: &mut Vec<u8>) -> Result<bool, End> {
        if self.is_broken.get() {
            return Err(End::Broken);
        }
        let before = rest.len();
        self.rest_bytes.set(before);
        if self.speech.is_redis(rest, || self.shard.env.random()) {
            let result = self.take_in_commands(rest);
            if rest.len() < before {
                self.reserved.set(0);
            }
            self.rest_bytes.set(rest.len());
            self.count();
            return result;
        }
        let dispatched = self.shard.dispatch_all(self.token.get(), self.as_ref(), rest);
        let (used, needs_more) = match dispatched {
            Dispatched::NeedMore { used } => (used, true),
            Dispatched::Pause { used } => (used, false),
            Dispatched::OutOfStep => return Err(End::OutOfStep),
            Dispatched::MoveTo { shard, used } => return self.move_to(shard, rest[used..].to_vec()).await,
        };
        rest.drain(..used);
        if rest.is_empty() && rest.capacity() > BYTES_KEPT {
            *rest = Vec::new();
        }
        if rest.len() < before {
            self.reserved.set(0);
        }
        self.rest_bytes.set(rest.len());
        self.count();
        Ok(needs_more)
    }

    async fn move_to(self: &Rc<Self>, shard: usize, rest: Vec<u8>) -> Result<bool, End> {
        self.finish().await;
        match self.socket.duplicate() {
            Ok(stream) => {
                let is_node = self.speech.is_node();
                self.shard.hand_over(shard, Arrival { stream, read: rest, is_node });
                Err(End::Moved)
            }
            Err(error) => {
                tracing::warn!("a connection could not move to shard {shard}: {error}");
                Err(End::Broken)
            }
        }
    }

    /// Notes what it holds.
    fn count(&self) {
        let unread = self.rest_bytes.get().max(self.reserved.get());
        let of_session = self.speech.frame_bytes() + self.speech.held_bytes() + self.speech.pending_bytes();
        self.share.set(self.in_flight_bytes.get() + of_session + unread + self.gathered.get());
    }

    /// Bytes that may be read now, behind `rest`. If none, the connection waits for its turn and is told.
    fn room_to_read(&self, rest: &[u8]) -> usize {
        let reserved = self.reserved.get().saturating_sub(rest.len());
        let wanted = self.speech.wanted(rest).unwrap_or_else(|| self.shard.wanted(rest));
        let missing = wanted.saturating_sub(rest.len());
        if reserved >= missing.max(1) {
            return reserved;
        }
        let free = self.share.free();
        if (1..=free).contains(&missing) {
            self.share.withdraw();
            return free;
        }
        // All of a large frame, since a part is of no use; or some small ones beyond what it is free to hold.
        let more = (missing.max(READ_BYTES)) - reserved;
        if !self.share.grow(rest.len() + reserved, more) {
            return reserved;
        }
        self.is_active(self.shard.env.now());
        self.reserved.set(rest.len() + reserved + more);
        reserved + more
    }

    /// Whether it was granted memory for a frame of which nothing comes, or for a transaction that does not end.
    fn is_silent(&self) -> bool {
        let keeps = self.reserved.get() > self.rest_bytes.get()
            || self.share.was_granted() && self.speech.held_bytes() > 0 && self.in_flight.get() == 0;
        keeps && self.is_ready()
    }

    /// Whether it may take in more requests.
    fn is_ready(&self) -> bool {
        self.may_dispatch() && self.speech.is_ready() && !self.is_paused()
    }

    /// Waits until the connection may take in more requests, or is broken.
    async fn ready(self: &Rc<Self>) {
        loop {
            let (moved, relieved) = (self.moved.notified(), self.shard.relieved.notified());
            let must_end = self.takes_no_more.get() && self.is_paused();
            if self.is_broken.get() || self.is_ready() || must_end {
                return;
            }
            futures_lite::future::or(moved, relieved).await;
        }
    }

    /// Lets an owner go on that waits for replies to leave, if enough have left. Called whenever an owner
    /// says that it waits and whenever something was sent, since nobody may come by otherwise: the client
    /// may have sent all it wants to, or even have closed its half.
    fn let_owner_go_on(&self) {
        if self.is_broken.get() || self.unsent() >= BACKLOG_MAX {
            return;
        }
        let mut stalls = self.stalls.borrow_mut();
        // Of Redis' replies those that come early wait: then only who has what they wait for may make more.
        let awaited = self.speech.awaited();
        let may_go_on = |owner: usize| awaited.is_none_or(|awaited| awaited == owner);
        let stalled = stalls.iter_mut().find(|(owner, why)| *why == Stall::Output && may_go_on(*owner));
        let Some((owner, why)) = stalled else { return };
        // Until it says otherwise it runs; nothing more need be asked of it.
        *why = Stall::Room;
        let (owner, token) = (*owner, self.token.get());
        // A turn of its own: it may run many frames.
        let (shard, guard) = (self.shard.clone(), self.shard.pending.enter());
        self.shard.env.spawn(Queue::Foreground, async move {
            shard.resume(owner, token);
            shard.end_turn();
            drop(guard);
        });
    }

    /// Reads behind `rest` what is there, at most `room`.
    async fn read_more(&self, rest: &mut Vec<u8>, room: usize) -> io::Result<usize> {
        let size = room.min(READ_BYTES_MAX);
        poll_fn(|cx| {
            if self.is_broken.get() {
                return Poll::Ready(Ok(0));
            }
            READ_BUFFER.with_borrow_mut(|buffer| {
                if buffer.len() < size {
                    buffer.resize(size, 0);
                }
                let read = self.socket.poll_read(cx, &mut buffer[..size]);
                if let Poll::Ready(Ok(len)) = read {
                    Metrics::add(&self.shard.metrics.bytes_in, len as u64);
                    Metrics::add(&self.shard.metrics.receives, 1);
                    if rest.capacity() - rest.len() < len {
                        let whole = rest.len() + len;
                        // Of a frame that is on its way all, and no more.
                        rest.reserve_exact(if whole > BYTES_KEPT { room.max(len) } else { len });
                    }
                    rest.extend_from_slice(&buffer[..len]);
                }
                read
            })
        })
        .await
    }

    /// Has replies sent: many at once, few when all who have something to do now have done it. A client is woken by the
    /// first that comes, which costs the shard more than the sending does; while those of others follow at once, it
    /// stays awake.
    fn end_turn(&self) {
        if self.unsent() >= SEND_BYTES {
            self.write_now();
        }
        self.shard.end_turn_soon(self.token.get());
    }

    fn unsent(&self) -> usize {
        self.out.borrow().unsent().len()
    }

    /// Has what there is sent with that of others when the turn is over, if they are then sent together. Whether it will.
    fn write_later(&self) -> bool {
        let has_some = !self.is_writing.get() && !self.is_broken.get() && self.unsent() > 0;
        if has_some && let Some(me) = self.me.borrow().upgrade() {
            self.sends_later.set(self.socket.send_later(me));
        }
        self.sends_later.get()
    }

    /// Sends what the socket takes now; a task sends the rest as it gets room.
    fn write_now(&self) {
        if self.is_writing.get() || self.is_broken.get() || self.unsent() == 0 {
            return;
        }
        let mut cx = Context::from_waker(Waker::noop());
        let _ = self.poll_send(&mut cx); // what is left shows below
        if self.unsent() > 0
            && let Some(me) = self.me.borrow().upgrade()
        {
            self.is_writing.set(true);
            self.has_taken(); // from here on it counts
            let env = self.shard.env.clone();
            env.spawn(Queue::Foreground, async move { me.write_rest().await });
        }
    }

    /// Sends what the socket takes, up to [`AT_ONCE_BYTES`]. Pending: it takes nothing now.
    fn poll_send(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut most = AT_ONCE_BYTES;
        while self.unsent() > 0 && most > 0 {
            let sent = {
                let out = self.out.borrow();
                self.socket.poll_write(cx, &out.unsent()[..most.min(out.unsent().len())])
            };
            match sent {
                Poll::Ready(Ok(len)) if len > 0 => {
                    most -= len;
                    self.note_sent(len);
                }
                Poll::Ready(result) => {
                    if let Err(error) = result {
                        tracing::debug!(token = self.token.get(), "write failed: {error}");
                    }
                    self.abandon();
                    return Poll::Ready(());
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    }

    fn note_sent(&self, len: usize) {
        Metrics::add(&self.shard.metrics.bytes_out, len as u64);
        Metrics::add(&self.shard.metrics.sends, 1);
        self.out.borrow_mut().advance(len);
        if self.unsent() == 0 {
            self.abroad.sent();
        }
        self.give_back_sent();
        self.is_active(self.shard.env.now());
    }

    /// Replies have left, as far as they can: whoever waits for that goes on.
    fn has_flushed(&self) {
        self.let_owner_go_on();
        self.follow_up();
        self.moved.notify();
    }

    fn give_back_sent(&self) {
        loop {
            let sent = self.out.borrow_mut().next_sent();
            let Some((owner, granted)) = sent else { break };
            self.shard.left(owner, granted);
        }
        self.give_back_gathered();
    }

    /// Drops all replies, and what was granted for them.
    fn give_up(&self) {
        let mut granted: Vec<_> = self.out.borrow_mut().give_up().collect();
        granted.extend(self.speech.give_up());
        granted.into_iter().for_each(|(owner, granted)| self.shard.left(owner, granted));
        self.give_back_gathered();
    }

    async fn write_rest(self: Rc<Self>) {
        while self.unsent() > 0 && !self.is_broken.get() {
            poll_fn(|cx| {
                if self.is_broken.get() {
                    return Poll::Ready(());
                }
                let before = self.unsent();
                let sent = self.poll_send(cx);
                if self.unsent() < before {
                    self.let_owner_go_on();
                    self.moved.notify();
                }
                sent
            })
            .await;
            if self.unsent() > 0 {
                self.shard.rest().await;
            }
        }
        self.is_writing.set(false);
        self.moved.notify();
    }

    /// Waits until everything in flight is answered and sent.
    async fn finish(&self) {
        self.moved
            .until(|| {
                self.write_now();
                self.is_broken.get()
                    || (self.in_flight.get() == 0
                        && self.speech.is_answered()
                        && self.unsent() == 0
                        && !self.is_writing.get())
            })
            .await;
    }
}

/// Bytes for which a connection asks at least; enough for a deep pipeline of small requests.
const READ_BYTES: usize = 64 << 10;
/// Bytes asked of the socket at once at most. They are copied twice before anyone else runs.
const READ_BYTES_MAX: usize = 128 << 10;
/// Bytes of a read with no more than a few requests.
const FEW_BYTES: usize = 256;
/// Sockets with something to read for which it pays to look at all of them before the first is served: the second turn
/// costs what fetching saves of four or so.
const CROWD: usize = 8;
/// Bytes of replies that do not wait for those of other connections.
const SEND_BYTES: usize = 4 << 10;
/// Bytes after which a connection lets others run, though its socket has, or takes, more.
const AT_ONCE_BYTES: usize = 128 << 10;

thread_local! {
    /// One per executor: bytes are moved out of it before the next await.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}
