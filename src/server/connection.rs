//! One client connection on one shard: reads frames, has the shard dispatch them, writes replies.
//!
//! What bounds its memory:
//! - It reads into a buffer shared by the whole shard; only an incomplete frame stays with the
//!   connection, and a frame is at most [`Limits::frame_bytes_max`](crate::shard::Limits).
//! - It stops reading while more than [`BACKLOG_MAX`] of replies wait to be sent, while
//!   [`IN_FLIGHT_MAX`] requests or [`IN_FLIGHT_BYTES_MAX`] of them are unanswered, while some owner has stalled its frames, or while the mesh
//!   is congested. Frames already read are executed only as long as the same holds.
//! - A client that takes no byte of its replies for the stall timeout is disconnected.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::outbuffer::{BYTES_KEPT, OutBuffer};
use super::socket::Socket;
use crate::env::{Env, Gate, GateGuard, Notify, Queue};
use crate::metrics::Metrics;
use crate::shard::{BACKLOG_MAX, Dispatched, IN_FLIGHT_BYTES_MAX, IN_FLIGHT_MAX, Outlet, Shard, Stall};

/// How long, and for how many bytes, a connection that is closed for a fault takes no notice of what comes.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 16 << 20;

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
    out: RefCell<OutBuffer>,
    in_flight: Cell<u32>,
    /// Of requests taken in since none was in flight.
    in_flight_bytes: Cell<usize>,
    /// Owners where frames of this connection wait, and why.
    stalls: RefCell<Vec<(usize, Stall)>>,
    /// Takes in nothing until nothing is in flight.
    is_fenced: Cell<bool>,
    is_writing: Cell<bool>,
    is_broken: Cell<bool>,
    active_at: Cell<Duration>,
    /// Notified when replies came or left, and when the connection broke.
    moved: Notify,
    me: RefCell<Weak<Connection<E>>>,
}

impl<E: Env> Outlet for Connection<E> {
    fn deliver(&self, count: u32, bytes: Vec<u8>) {
        assert!(count <= self.in_flight.get(), "no more replies than requests");
        self.in_flight.set(self.in_flight.get() - count);
        if self.in_flight.get() == 0 {
            self.in_flight_bytes.set(0);
            self.is_fenced.set(false);
        }
        if self.is_broken.get() {
            return;
        }
        self.out.borrow_mut().push(bytes);
    }

    fn stall(&self, owner: usize, why: Stall) {
        let mut stalls = self.stalls.borrow_mut();
        stalls.retain(|(known, _)| *known != owner);
        if why != Stall::Over {
            stalls.push((owner, why));
        }
    }

    fn accept(&self, bytes: usize) {
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

    fn flush(&self) {
        self.write_now();
        self.let_owner_go_on();
        self.moved.notify();
    }
}

impl<E: Env> Connection<E> {
    /// Serves `stream`, of which `read` was read already, until it ends.
    /// Returns whether another shard serves it from here on.
    pub async fn serve(
        shard: Rc<Shard<E>>,
        stream: TcpStream,
        read: Vec<u8>,
        open: &OpenConnections<E>,
    ) -> bool {
        let socket = match Socket::adopt(stream) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::debug!("a connection was lost before it was served: {error}");
                return false;
            }
        };
        let connection = Rc::new(Connection {
            active_at: Cell::new(shard.env.now()),
            shard: shard.clone(),
            socket,
            token: Cell::new(0),
            out: RefCell::default(),
            in_flight: Cell::new(0),
            in_flight_bytes: Cell::new(0),
            stalls: RefCell::new(Vec::new()),
            is_fenced: Cell::new(false),
            is_writing: Cell::new(false),
            is_broken: Cell::new(false),
            moved: Notify::new(),
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
        if end != End::Broken {
            connection.finish().await;
        }
        open.remove(token);
        Metrics::add(&shard.metrics.connections_open, u64::MAX); // one less, modulo 2^64
        shard.unregister(token);
        if connection.in_flight.get() > 0 {
            shard.forget_everywhere(token);
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
        loop {
            let needs_more = match self.take_in(&mut rest).await {
                Ok(needs_more) => needs_more,
                Err(end) => return end,
            };
            self.shard.end_turn();
            self.write_now();
            if self.is_broken.get() {
                return End::Broken;
            }
            if needs_more && is_ended {
                if !rest.is_empty() {
                    tracing::debug!(token = self.token.get(), bytes = rest.len(), "closed inside a frame");
                }
                return End::Closed;
            }
            let read = if needs_more && self.is_ready() {
                self.read_more(&mut rest).await
            } else if is_ended || rest.len() >= self.shard.limits.pipeline_bytes_max as usize {
                self.ready().await;
                continue;
            } else {
                // What the client was promised to be read even if it takes no replies.
                let wait = async {
                    self.ready().await;
                    None
                };
                match futures_lite::future::or(wait, async { Some(self.read_more(&mut rest).await) }).await {
                    None => continue,
                    Some(read) => read,
                }
            };
            match read {
                Ok(0) => is_ended = true,
                Ok(_) => self.active_at.set(self.shard.env.now()),
                Err(error) => {
                    tracing::debug!(token = self.token.get(), "read failed: {error}");
                    return End::Broken;
                }
            }
        }
    }

    /// Dispatches the whole frames in `rest` and leaves what can't be taken in yet. Whether more bytes are
    /// needed to go on.
    async fn take_in(self: &Rc<Self>, rest: &mut Vec<u8>) -> Result<bool, End> {
        let dispatched = self.shard.dispatch(self.token.get(), self.as_ref(), rest);
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
        Ok(needs_more)
    }

    async fn move_to(self: &Rc<Self>, shard: usize, rest: Vec<u8>) -> Result<bool, End> {
        self.finish().await;
        match self.socket.duplicate() {
            Ok(stream) => {
                self.shard.hand_over(shard, stream, rest);
                Err(End::Moved)
            }
            Err(error) => {
                tracing::warn!("a connection could not move to shard {shard}: {error}");
                Err(End::Broken)
            }
        }
    }

    /// Whether the connection may take in more requests now.
    fn is_ready(&self) -> bool {
        self.unsent() < BACKLOG_MAX && !self.is_full() && !self.is_stalled() && !self.shard.congested()
    }

    /// Waits until the connection may take in more requests, or is broken.
    async fn ready(self: &Rc<Self>) {
        loop {
            let (moved, relieved) = (self.moved.notified(), self.shard.relieved.notified());
            if self.is_broken.get() || self.is_ready() {
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
        let Some((owner, why)) = stalls.iter_mut().find(|(_, why)| *why == Stall::Output) else { return };
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

    async fn read_more(&self, rest: &mut Vec<u8>) -> io::Result<usize> {
        let wanted = self.shard.wanted(rest).saturating_sub(rest.len());
        poll_fn(|cx| {
            if self.is_broken.get() {
                return Poll::Ready(Ok(0));
            }
            READ_BUFFER.with_borrow_mut(|buffer| {
                let size = wanted.clamp(READ_BYTES, READ_BYTES_LARGE);
                if buffer.len() < size {
                    buffer.resize(size, 0);
                }
                let read = self.socket.poll_read(cx, &mut buffer[..size]);
                if let Poll::Ready(Ok(len)) = read {
                    Metrics::add(&self.shard.metrics.bytes_in, len as u64);
                    rest.extend_from_slice(&buffer[..len]);
                }
                read
            })
        })
        .await
    }

    fn unsent(&self) -> usize {
        self.out.borrow().unsent().len()
    }

    /// Sends what the socket takes now; a task sends the rest as it gets room.
    fn write_now(&self) {
        if self.is_writing.get() || self.is_broken.get() || self.unsent() == 0 {
            return;
        }
        let mut cx = Context::from_waker(Waker::noop());
        if let Poll::Pending = self.poll_send(&mut cx)
            && let Some(me) = self.me.borrow().upgrade()
        {
            self.is_writing.set(true);
            let env = self.shard.env.clone();
            env.spawn(Queue::Foreground, async move { me.write_rest().await });
        }
    }

    fn poll_send(&self, cx: &mut Context<'_>) -> Poll<()> {
        while self.unsent() > 0 {
            let sent = self.socket.poll_write(cx, self.out.borrow().unsent());
            match sent {
                Poll::Ready(Ok(len)) if len > 0 => {
                    Metrics::add(&self.shard.metrics.bytes_out, len as u64);
                    self.out.borrow_mut().advance(len);
                    self.active_at.set(self.shard.env.now());
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

    async fn write_rest(self: Rc<Self>) {
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
        self.is_writing.set(false);
        self.moved.notify();
    }

    /// Ends the connection at once, from outside its own task.
    fn abandon(&self) {
        self.is_broken.set(true);
        self.out.take();
        self.socket.shutdown(Shutdown::Both);
        self.moved.notify();
    }

    /// Takes no notice of what still comes for a moment: to close with bytes unread would reset the
    /// connection, and the client might never see why.
    async fn linger(&self) {
        self.socket.shutdown(Shutdown::Write);
        let mut left = LINGER_BYTES;
        let drain = async {
            let mut sink = Vec::new();
            while let Ok(len) = self.read_more(&mut sink).await {
                left = left.saturating_sub(len);
                if len == 0 || left == 0 {
                    break;
                }
                sink.clear();
            }
        };
        futures_lite::future::or(drain, self.shard.env.sleep(LINGER)).await;
    }

    /// Waits until everything in flight is answered and sent.
    async fn finish(&self) {
        self.moved
            .until(|| {
                self.write_now();
                self.is_broken.get()
                    || (self.in_flight.get() == 0 && self.unsent() == 0 && !self.is_writing.get())
            })
            .await;
    }
}

/// Bytes asked of the socket at once; enough for a deep pipeline of small requests.
const READ_BYTES: usize = 64 << 10;
/// Bytes asked at once when a large frame is on its way.
const READ_BYTES_LARGE: usize = 1 << 20;

thread_local! {
    /// One per executor: bytes are moved out of it before the next await.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The connections of one shard.
pub struct OpenConnections<E: Env> {
    connections: RefCell<BTreeMap<u64, Weak<Connection<E>>>>,
    is_draining: Cell<bool>,
    is_abandoning: Cell<bool>,
    /// Counts the tasks that serve them.
    pub gate: Gate,
}

impl<E: Env> OpenConnections<E> {
    /// None.
    pub fn new() -> OpenConnections<E> {
        OpenConnections {
            connections: RefCell::default(),
            is_draining: Cell::new(false),
            is_abandoning: Cell::new(false),
            gate: Gate::new(),
        }
    }

    fn insert(&self, token: u64, connection: &Rc<Connection<E>>) {
        self.connections.borrow_mut().insert(token, Rc::downgrade(connection));
        // Taken over before the server was told to stop, begun after.
        if self.is_draining.get() {
            connection.socket.shutdown(Shutdown::Read);
        }
        if self.is_abandoning.get() {
            connection.abandon();
        }
    }

    fn remove(&self, token: u64) {
        self.connections.borrow_mut().remove(&token);
    }

    /// Keeps the shard alive until dropped.
    pub fn enter(&self) -> GateGuard {
        self.gate.enter()
    }

    fn each(&self, visit: impl Fn(&Connection<E>)) {
        let all: Vec<_> = self.connections.borrow().values().filter_map(Weak::upgrade).collect();
        all.iter().for_each(|connection| visit(connection));
    }

    /// Disconnects those that were idle, or took no replies, for too long. `idle`: `None` is never.
    /// `stalled`: how long a client may leave its replies unread.
    pub fn sweep(&self, now: Duration, idle: Option<Duration>, stalled: Duration) {
        self.each(|connection| {
            let quiet = now.saturating_sub(connection.active_at.get());
            if connection.is_writing.get() {
                if quiet >= stalled {
                    tracing::debug!(
                        token = connection.token.get(),
                        "disconnected: it does not read its replies"
                    );
                    connection.abandon();
                }
            } else if idle.is_some_and(|idle| quiet >= idle) && connection.in_flight.get() == 0 {
                tracing::debug!(token = connection.token.get(), "disconnected: idle");
                connection.socket.shutdown(Shutdown::Read);
            }
        });
    }

    /// Takes in no more requests; what is in flight is answered, then the connections end.
    pub fn drain(&self) {
        self.is_draining.set(true);
        self.each(|connection| {
            connection.socket.shutdown(Shutdown::Read);
        });
    }

    /// Ends all of them at once.
    pub fn abandon(&self) {
        self.is_abandoning.set(true);
        self.each(Connection::abandon);
    }
}

impl<E: Env> Default for OpenConnections<E> {
    fn default() -> Self {
        OpenConnections::new()
    }
}
