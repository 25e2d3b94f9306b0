//! One executor: executes requests, knows who waits for which block, speaks to the mesh.
//!
//! The path of a request: whoever read it (an outlet, registered here under a token) has the frames sorted
//! by owner. Frames of this shard are executed at once; those of another cross the mesh in one message
//! for all reads of a turn (`outbound.rs`) and meet the same there. Replies come back by token: those that
//! depend on nothing at once, those that a commit must cover when their block is durable, those that
//! need a disk read when it is done.
//!
//! Invariants:
//! - Everything here is synchronous but the tasks spawned for missing blocks and for full memtables.
//! - No borrow of shard state is held while an outlet is called.
//! - A token is answered exactly as many times as requests were dispatched under it.

mod arrange;
mod balance;
mod batch;
pub mod budget;
mod checkpoint;
mod clients;
mod commit;
mod direct;
mod execute;
mod expire;
mod gather;
pub mod held;
mod line;
pub mod mesh;
mod moves;
mod outbound;
mod outputs;
mod ranges;
mod route;
mod save;
mod scan;
mod sliced;
mod stall;
#[cfg(test)]
mod tests;
pub mod topology;
mod transact;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::net::TcpStream;
use std::rc::Rc;
use std::sync::Arc;

use slab::Slab;

use self::budget::{Budget, Granted, LARGE_REPLY_BYTES, Reader};
use self::held::{Held, HeldReplies};
use self::mesh::{Inbox, Port};
use self::outbound::Requests;
use self::outputs::Outputs;
use crate::engine::Engine;
use crate::env::{Env, Gate, Notify, Queue};
use crate::metrics::Metrics;
use crate::placement::SlotTable;
use crate::protocol::Limits;

pub use self::moves::{Answer, Ask, Assigned, Trouble};
pub use self::outputs::Replies;
pub use self::route::{BACKLOG_MAX, Dispatched, IN_FLIGHT_BYTES_MAX, IN_FLIGHT_MAX};

/// Where a request came from and its replies go to: a token that peer `peer` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// Number in the mesh: a shard, or the acceptor behind the last shard.
    pub peer: usize,
    /// What that peer registered for it. Never reused while something is in flight.
    pub token: u64,
}

/// Why frames of an origin wait at their owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// Its replies must leave first; [`Shard::resume`] goes on.
    Output,
    /// Blocks are being read for it.
    Disk,
    /// Memory is full.
    Room,
    /// A tablet that they are about is moving.
    Move,
    /// Large replies to this or to other origins must leave first.
    Replies,
    /// The first of them takes long, and others have their turn.
    Turn,
    /// They wait no more.
    Over,
}

/// Who takes the replies to requests dispatched under one token. All calls are synchronous.
pub trait Outlet {
    /// Replies that `owner` made, to whom the outlet gives back what was granted for them once they have left.
    /// Otherwise it must not call back into the shard.
    fn deliver(&self, owner: usize, replies: Replies);

    /// Frames of this outlet begin or cease to wait at `owner`. Must not call back into the shard.
    fn stall(&self, owner: usize, why: Stall);

    /// All replies of this turn were delivered: send them.
    fn flush(&self);

    /// A request of `bytes` was taken in, to be answered once.
    fn accept(&self, bytes: usize);

    /// Of those taken in, so many more went to other shards, from which the answers come.
    fn sent_on(&self, _count: u32) {}

    /// Requests taken in and not answered.
    fn in_flight(&self) -> u32;

    /// Whether so many requests, or bytes of them, are unanswered that some must be answered first.
    fn is_full(&self) -> bool;

    /// Nothing more is to be taken in before all that was is answered.
    fn fence(&self);

    /// Bytes of replies that wait to be sent.
    fn backlog(&self) -> usize;

    /// Whether frames of it wait at some owner.
    fn is_stalled(&self) -> bool;

    /// A line about the client, if it is one that is listed.
    fn describe(&self) -> Option<String> {
        None
    }

    /// The client's number, if it is one that is listed.
    fn client(&self) -> Option<u64> {
        None
    }

    /// Ends the connection at once, whatever is on its way.
    fn disconnect(&self) {}
}

/// A connection that a shard is to serve.
pub struct Arrival {
    /// Its socket.
    pub stream: TcpStream,
    /// What was read from it already.
    pub read: Vec<u8>,
    /// Whether its client chose this shard, as a node of a cluster.
    pub is_node: bool,
}

/// What crosses the mesh.
pub enum Message {
    /// Frames of one turn's reads for one owner.
    Requests(Requests),
    /// Replies of one turn to one peer, for any of its tokens.
    Replies(Vec<Reply>),
    /// Replies for which the receiver had granted so much have left.
    Left(Granted),
    /// Frames of the sender's token stall, or no longer do.
    Stall {
        /// Whose.
        token: u64,
        /// Why.
        why: Stall,
    },
    /// The sender's token has room for replies again.
    Resume {
        /// Which.
        token: u64,
    },
    /// The sender's token is gone.
    Forget {
        /// Which.
        token: u64,
    },
    /// A connection to take over.
    Connection(Arrival),
    /// The receiver is to do something for a change of the topology.
    Ask {
        /// The sender's number for it.
        id: u64,
        /// What.
        ask: Ask,
    },
    /// What came of something that the receiver asked.
    Answer {
        /// The receiver's number for it.
        id: u64,
        /// What came of it.
        answer: Result<Answer, Trouble>,
    },
    /// None of the sender's requests for the slots of a change is behind this.
    Quiet {
        /// Number of the change.
        change: u64,
    },
    /// Stop taking in requests; finish what is in flight.
    Drain,
    /// Disconnect everyone at once.
    Abandon,
    /// Everyone has drained: close the log and end.
    Close,
}

/// Replies to one token.
pub struct Reply {
    /// Whose.
    pub token: u64,
    /// Which.
    pub replies: Replies,
}

/// How a shard behaves.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Whether a write is answered, and seen by others, only once it is durable.
    pub is_durable: bool,
    /// Memory for connections: see [`budget`].
    pub connection_bytes: usize,
}

/// Requests that begin to wait for the disk before the ring is seen to, which hands their reads to the kernel. A whole
/// deep pipeline taken in at once would be read at once: then core and disk take turns, and each waits for the other
/// one. Few also bound what a round of the executor reads, and so how long it takes.
const READS_AT_ONCE: u32 = 16;

/// One shard: an engine, and what it takes to serve from it.
pub struct Shard<E: Env> {
    /// Its number, which is its place in the mesh.
    pub id: usize,
    /// Its world.
    pub env: E,
    /// Its storage.
    pub engine: Rc<Engine<E>>,
    /// Who owns which slot.
    pub slots: Rc<SlotTable>,
    /// Its counters.
    pub metrics: Rc<Metrics>,
    /// What requests may be.
    pub limits: Limits,
    settings: Settings,
    port: Port<Message>,
    outlets: RefCell<Slab<(u32, Rc<dyn Outlet>)>>,
    generation: Cell<u32>,
    dirty: RefCell<Vec<u64>>,
    /// A task that ends the turn is on its way.
    ends_soon: Cell<bool>,
    /// Those who have their memory fetched and will be served in this turn.
    fetching: Gate,
    /// Requests that are gathered until the turn ends, by owner.
    outbound: RefCell<Vec<Requests>>,
    outbox: RefCell<Vec<Vec<Reply>>>,
    held: RefCell<Held>,
    /// Requests that connections of this shard hold.
    pub request_budget: Rc<Budget<Reader>>,
    /// Large replies that this shard made, by whose frames.
    pub reply_budget: Budget<Origin>,
    /// Large answers that this shard gathers.
    pub gather_budget: Budget<Origin>,
    /// Bytes that scans of several shards may keep here between two pages.
    scan_bytes_max: usize,
    /// Notified when it may go on for someone.
    replies_left: Notify,
    /// Where those rest who have done a step that took long.
    line: line::Line,
    /// Requests that have begun to wait for the disk since the ring was last seen to.
    reads_begun: Cell<u32>,
    /// Bytes that unfinished [gathers](gather) keep.
    gathered: Cell<usize>,
    /// Outlets that wait until they are less.
    gather_line: RefCell<Vec<u64>>,
    /// In an order of its own, as whatever is walked through: a run in a simulated world follows from its seed.
    waiting: RefCell<BTreeMap<Origin, stall::Waiting>>,
    /// Those of them that wait for memory, longest first.
    room_line: RefCell<VecDeque<Origin>>,
    /// A write has found no memory since those in line were last looked at: others wait behind them.
    is_short: Cell<bool>,
    scans: scan::Scans<E>,
    turns: stall::Turns,
    moves: moves::Moves,
    pauses: clients::Pauses,
    saves: save::Saves,
    /// A checkpoint is about to be sealed: writes wait.
    writes_held: Cell<bool>,
    is_closing: Cell<bool>,
    /// Notified when the mesh is no longer congested, or a pause of clients is over.
    pub relieved: Notify,
    /// Requests that wait for a disk read or for memory.
    pub pending: Gate,
}

impl<E: Env> Shard<E> {
    /// A shard that serves from `engine` and is `port` of the mesh.
    #[allow(clippy::too_many_arguments)] // what it is made of
    pub fn new(
        id: usize,
        env: &E,
        engine: Rc<Engine<E>>,
        slots: Rc<SlotTable>,
        limits: Limits,
        settings: Settings,
        metrics: Rc<Metrics>,
        port: Port<Message>,
    ) -> Rc<Shard<E>> {
        let peers = port.peers();
        Rc::new(Shard {
            id,
            env: env.clone(),
            engine,
            slots,
            metrics,
            limits,
            settings,
            port,
            outlets: RefCell::new(Slab::new()),
            generation: Cell::new(0),
            dirty: RefCell::new(Vec::new()),
            ends_soon: Cell::new(false),
            fetching: Gate::new(),
            outbound: RefCell::new((0..peers).map(|_| Requests::default()).collect()),
            outbox: RefCell::new((0..peers).map(|_| Vec::new()).collect()),
            held: RefCell::new(Held::default()),
            request_budget: Rc::new(Budget::new(settings.connection_bytes / 2)),
            reply_budget: Budget::new(settings.connection_bytes / 4),
            gather_budget: Budget::new(settings.connection_bytes / 8),
            scan_bytes_max: settings.connection_bytes / 8,
            replies_left: Notify::new(),
            line: line::Line::default(),
            reads_begun: Cell::new(0),
            gathered: Cell::new(0),
            gather_line: RefCell::default(),
            waiting: RefCell::default(),
            room_line: RefCell::default(),
            is_short: Cell::new(false),
            scans: scan::Scans::default(),
            turns: stall::Turns::default(),
            moves: moves::Moves::default(),
            pauses: clients::Pauses::default(),
            saves: save::Saves::default(),
            writes_held: Cell::new(false),
            is_closing: Cell::new(false),
            relieved: Notify::new(),
            pending: Gate::new(),
        })
    }

    /// Registers whoever will dispatch requests; the token names it in replies.
    pub fn register(&self, outlet: Rc<dyn Outlet>) -> u64 {
        let generation = self.generation.get().wrapping_add(1);
        self.generation.set(generation);
        let key = self.outlets.borrow_mut().insert((generation, outlet));
        u64::from(generation) << 32 | key as u64
    }

    /// Forgets a token. Replies that come later are dropped: nobody is there to take them.
    pub fn unregister(&self, token: u64) {
        if self.outlet(token).is_some() {
            self.outlets.borrow_mut().remove(token as u32 as usize);
        }
    }

    fn outlet(&self, token: u64) -> Option<Rc<dyn Outlet>> {
        let outlets = self.outlets.borrow();
        let (generation, outlet) = outlets.get(token as u32 as usize)?;
        (*generation == (token >> 32) as u32).then(|| outlet.clone())
    }

    /// Sends replies on their way. They leave at the end of the turn.
    fn reply(&self, origin: Origin, replies: Replies) {
        if replies.count == 0 {
            return;
        }
        if origin.peer == self.id {
            self.deliver(self.id, origin.token, replies);
        } else {
            self.outbox.borrow_mut()[origin.peer].push(Reply { token: origin.token, replies });
        }
    }

    fn deliver(&self, owner: usize, token: u64, replies: Replies) {
        match self.outlet(token) {
            None => self.left(owner, replies.granted),
            Some(outlet) => {
                outlet.deliver(owner, replies);
                self.soil(token);
            }
        }
    }

    /// Replies for which `owner` had granted so much have left, or will never.
    pub fn left(&self, owner: usize, granted: Granted) {
        if granted.is_none() {
            return;
        }
        if owner != self.id {
            self.send(owner, Message::Left(granted));
            return;
        }
        self.reply_budget.give_back(granted.replies);
        self.gather_budget.give_back(granted.gathers);
        if self.reply_budget.is_short() || self.gather_budget.is_short() {
            self.replies_left.notify();
        }
    }

    /// Whether a reply of `bytes` may be made now. If not, the line of `out` waits until it may.
    pub(crate) fn has_reply_room(&self, out: &mut Outputs, bytes: usize) -> bool {
        let Some(line) = out.line else { return true };
        if bytes <= LARGE_REPLY_BYTES || out.granted.replies >= bytes {
            return true;
        }
        let has_room = self.reply_budget.take(&line, bytes);
        if has_room {
            out.granted.replies += bytes;
        }
        has_room
    }

    /// The same for an answer that is gathered.
    fn has_gather_room(&self, out: &mut Outputs, bytes: usize) -> bool {
        let Some(line) = out.line else { return true };
        let has_room = bytes <= LARGE_REPLY_BYTES || self.gather_budget.take(&line, bytes);
        if has_room && bytes > LARGE_REPLY_BYTES {
            out.granted.gathers += bytes;
        }
        has_room
    }

    fn soil(&self, token: u64) {
        let mut dirty = self.dirty.borrow_mut();
        if dirty.last() != Some(&token) {
            dirty.push(token);
        }
    }

    /// Tells an origin that its frames stall here, or no longer do.
    fn tell_stall(&self, origin: Origin, why: Stall) {
        if origin.peer == self.id {
            self.take_stall(self.id, origin.token, why);
        } else {
            self.send(origin.peer, Message::Stall { token: origin.token, why });
        }
    }

    fn take_stall(&self, owner: usize, token: u64, why: Stall) {
        if let Some(outlet) = self.outlet(token) {
            outlet.stall(owner, why);
            self.soil(token);
        }
    }

    /// The outlet behind `token` has room for replies again: `owner` may go on with its frames.
    pub fn resume(self: &Rc<Self>, owner: usize, token: u64) {
        if owner == self.id {
            self.resume_output(Origin { peer: self.id, token });
        } else {
            self.send(owner, Message::Resume { token });
        }
    }

    /// The outlet behind `token` is gone; nobody need go on with what it sent.
    pub fn forget_everywhere(self: &Rc<Self>, token: u64) {
        for owner in (0..self.slots.shards).filter(|owner| *owner != self.id) {
            self.send(owner, Message::Forget { token });
        }
        self.forget(Origin { peer: self.id, token });
        self.end_turn_later();
    }

    fn hold(&self, block: crate::base::BlockSeq, origin: Origin, replies: Replies) {
        Metrics::add(&self.metrics.held_replies, u64::from(replies.count));
        self.held.borrow_mut().hold(block, HeldReplies { origin, replies });
        if self.engine.wal().failed().is_some() {
            // That block will never be durable, and nobody else would wake who tells so.
            self.engine.wal().durable_changed().notify();
        }
    }

    /// Rests after a step that took long, until it is this task's turn to do another.
    pub async fn rest(&self) {
        self.line.rest(&self.env).await;
        self.reads_begun.set(0);
    }

    /// Has the reads of requests that wait for the disk handed to it, if [they should be](Shard::should_rest). Of many
    /// who are held back by that one rests, and then as many go on as may begin to wait.
    pub async fn rest_for_reads(&self) {
        if self.line.rest_if(|| self.should_rest(), self.env.rest_for_reads()).await {
            self.reads_begun.set(0);
        }
    }

    /// Whether so many requests have begun to wait for the disk that their reads should be on their way before more
    /// are taken in: who is held back by that [waits for it](Shard::rest_for_reads).
    pub fn should_rest(&self) -> bool {
        self.reads_begun.get() >= READS_AT_ONCE
    }

    /// Has the turn end once all tasks that can run now have run, and the outlet behind `token` flushed then.
    pub fn end_turn_soon(self: &Rc<Self>, token: u64) {
        self.soil(token);
        self.end_turn_later();
    }

    /// Whether a task is on its way that ends the turn, or will be when what it needs was fetched.
    pub fn has_open_turn(&self) -> bool {
        self.ends_soon.get() || self.fetching.count() > 0
    }

    /// What wakes it when other shards have sent something.
    pub fn inbox(&self) -> Arc<Inbox> {
        self.port.inbox()
    }

    /// Has the turn end once all tasks that can run now have run. For those of whom many may run in one turn.
    fn end_turn_later(self: &Rc<Self>) {
        if self.ends_soon.replace(true) {
            return;
        }
        let (shard, guard) = (self.clone(), self.pending.enter());
        self.env.spawn(Queue::Foreground, async move {
            shard.end_turn();
            drop(guard);
        });
    }

    /// Ends a turn: what was delivered is flushed, what goes to other shards is sent, one message of requests and one
    /// of replies each.
    pub fn end_turn(&self) {
        self.ends_soon.set(false);
        // First, so that others have something to do meanwhile.
        self.send_outgoing();
        // Flushing a gathered answer soils the outlet that asked, so this may take two rounds.
        loop {
            let dirty = std::mem::take(&mut *self.dirty.borrow_mut());
            if dirty.is_empty() {
                break;
            }
            for token in &dirty {
                if let Some(outlet) = self.outlet(*token) {
                    outlet.flush();
                }
            }
        }
        // Of gathered answers.
        self.send_outgoing();
        self.metrics.mesh_messages.set(self.port.sent());
    }

    fn send_outgoing(&self) {
        self.send_all_gathered();
        let mut outbox = self.outbox.borrow_mut();
        for (peer, replies) in outbox.iter_mut().enumerate().filter(|(_, replies)| !replies.is_empty()) {
            self.port.send(peer, Message::Replies(std::mem::take(replies)));
        }
    }

    /// No more requests come: the tasks of this shard end when nothing is held any more.
    pub fn close(&self) {
        self.is_closing.set(true);
        self.scans.clear();
        self.end_pause();
        self.engine.changed().notify();
        self.engine.wal().durable_changed().notify();
    }

    /// Whether new work should wait: some queue of the mesh is full.
    pub fn congested(&self) -> bool {
        self.port.congested()
    }

    /// Sends a connection to the shard that it asked for.
    pub fn hand_over(&self, target: usize, arrival: Arrival) {
        self.send(target, Message::Connection(arrival));
    }

    /// Serves the mesh until told to close. `control` takes what is not a request or a reply.
    pub async fn serve_mesh(self: &Rc<Self>, mut control: impl FnMut(Message)) {
        /// Messages taken from one peer before the next has its turn.
        const BATCH: usize = 32;
        let mut inbox = Vec::new();
        loop {
            self.port.flush();
            if self.port.take_relief() && !self.congested() {
                self.relieved.notify();
            }
            let more = self.port.receive(BATCH, &mut inbox);
            let is_idle = inbox.is_empty();
            for (source, message) in inbox.drain(..) {
                match message {
                    Message::Requests(requests) => self.take_requests(source, requests),
                    Message::Replies(replies) => {
                        for reply in replies {
                            self.deliver(source, reply.token, reply.replies);
                        }
                    }
                    Message::Left(granted) => self.left(self.id, granted),
                    Message::Stall { token, why } => self.take_stall(source, token, why),
                    Message::Resume { token } => self.resume_output(Origin { peer: source, token }),
                    Message::Forget { token } => self.forget(Origin { peer: source, token }),
                    Message::Ask { id, ask } => self.take_ask(source, id, ask),
                    Message::Answer { id, answer } => self.take_answer(id, answer),
                    Message::Quiet { change } => self.take_quiet(change),
                    Message::Close => {
                        // Whoever waits for another shard's answer would keep this one from ending.
                        self.moves.is_over.set(true);
                        self.moves.came.notify();
                        return;
                    }
                    other => control(other),
                }
            }
            self.end_turn();
            if is_idle && !more {
                self.port.wait().await;
            } else {
                self.env.yield_now().await;
            }
        }
    }
}
