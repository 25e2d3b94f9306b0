//! Shards as the server runs them, several in one simulated world, and the connections of a client to them.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use atlaskv::base::Lsn;
use atlaskv::engine::{Engine, EngineError, recovery};
use atlaskv::env::sim::SimEnv;
use atlaskv::env::{Env, Gate, Notify, Queue};
use atlaskv::error::{Class, Code};
use atlaskv::metrics::{Metrics, MetricsSnapshot};
use atlaskv::placement::SlotTable;
use atlaskv::protocol::binary::{decode_reply, decode_reply_header};
use atlaskv::protocol::{Limits, Reply};
use atlaskv::shard::budget::Granted;
use atlaskv::shard::mesh::{Port, mesh};
use atlaskv::shard::topology::COORDINATOR;
use atlaskv::shard::{Dispatched, IN_FLIGHT_MAX, Message, Outlet, Replies, Settings, Shard, Stall};

use crate::reference::Span;
use crate::shape::Shape;

/// An entry of a page: key, version, expiry, value.
pub type PageEntry = (Vec<u8>, Lsn, u64, Vec<u8>);

/// What a request was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Value(Lsn, Vec<u8>),
    Values(Vec<Option<(Lsn, Vec<u8>)>>),
    Absent,
    Written(Lsn),
    Unmet(Option<Lsn>),
    BatchUnmet(u32, Option<Lsn>),
    Sum(Lsn, i64),
    /// Version and time of expiry; 0 is never.
    Lifetime(Lsn, u64),
    Page {
        entries: Vec<PageEntry>,
        cursor: Option<Vec<u8>>,
        is_new_snapshot: bool,
    },
    Done,
    Refused(Code, String),
}

impl Answer {
    /// Whether it is refused for what the disk or the server has done, rather than for what was asked.
    pub fn is_fault(&self) -> bool {
        matches!(self, Answer::Refused(code, _) if code.class() != Class::Request)
    }

    fn of(reply: Reply<'_>) -> Answer {
        match reply {
            Reply::Value { version, value } => Answer::Value(version, value.to_vec()),
            Reply::Values(values) => {
                Answer::Values(values.map(|value| value.map(|v| (v.version, v.value.to_vec()))).collect())
            }
            Reply::Absent => Answer::Absent,
            Reply::Written { version } => Answer::Written(version),
            Reply::ConditionFailed { current } => Answer::Unmet(current),
            Reply::BatchFailed { item, current } => Answer::BatchUnmet(item, current),
            Reply::Counter { version, value } => Answer::Sum(version, value),
            Reply::Lifetime { version, lifetime } => {
                Answer::Lifetime(version, lifetime.map_or(0, |lifetime| lifetime.expires_at_ms))
            }
            Reply::Page(page) => Answer::Page {
                entries: page
                    .entries
                    .map(|entry| (entry.key.to_vec(), entry.version, entry.expiry_ms, entry.value.to_vec()))
                    .collect(),
                cursor: page.cursor.map(<[u8]>::to_vec),
                is_new_snapshot: page.is_new_snapshot,
            },
            Reply::Done => Answer::Done,
            Reply::Refused(refusal) => Answer::Refused(refusal.code, refusal.message.to_string()),
            other => panic!("nobody asked for {other:?}"),
        }
    }
}

/// Where the answers to all connections' requests come together, by number.
#[derive(Default)]
pub struct Inbox {
    pub answers: RefCell<Vec<Option<Answer>>>,
    missing: Cell<usize>,
    came: Notify,
}

/// What one connection takes.
struct Recorder {
    inbox: Rc<Inbox>,
    in_flight: Cell<u32>,
    /// Nothing more is taken in before all that was is answered.
    is_fenced: Cell<bool>,
    /// Owners where frames of it wait, and whether they wait for its replies to leave.
    stalls: RefCell<Vec<(usize, bool)>>,
    shard: Weak<Shard<SimEnv>>,
    /// What it has to give back, by owner.
    granted: RefCell<Vec<(usize, Granted)>>,
}

/// A client's connection to one shard.
pub struct Connection {
    shard: usize,
    token: u64,
    recorder: Rc<Recorder>,
}

impl Outlet for Recorder {
    fn deliver(&self, owner: usize, replies: Replies) {
        self.granted.borrow_mut().push((owner, replies.granted));
        let mut bytes = &replies.bytes[..];
        for _ in 0..replies.count {
            let header = decode_reply_header(bytes, Limits::FRAME_BYTES_LIMIT).unwrap().unwrap();
            let (frame, rest) = bytes.split_at(header.frame_bytes());
            let body = &frame[frame.len() - header.body_bytes()..];
            let answer = Answer::of(decode_reply(&header, body).unwrap());
            let place = usize::try_from(header.request_id).unwrap();
            let before = self.inbox.answers.borrow_mut()[place].replace(answer);
            assert!(before.is_none(), "request {place} is answered twice");
            self.inbox.missing.set(self.inbox.missing.get() - 1);
            bytes = rest;
        }
        assert!(bytes.is_empty(), "as many replies as were told");
        self.in_flight.set(self.in_flight.get() - replies.count);
        self.is_fenced.set(self.is_fenced.get() && self.in_flight.get() > 0);
        self.inbox.came.notify();
    }

    fn stall(&self, owner: usize, why: Stall) {
        let mut stalls = self.stalls.borrow_mut();
        stalls.retain(|(known, _)| *known != owner);
        if why != Stall::Over {
            stalls.push((owner, why == Stall::Output));
        }
        drop(stalls);
        self.inbox.came.notify();
    }

    fn flush(&self) {
        let Some(shard) = self.shard.upgrade() else { return };
        let granted = self.granted.take();
        granted.into_iter().for_each(|(owner, granted)| shard.left(owner, granted));
    }

    fn accept(&self, _bytes: usize) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    fn is_full(&self) -> bool {
        self.in_flight.get() >= IN_FLIGHT_MAX
    }

    fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    fn fence(&self) {
        self.is_fenced.set(true);
    }

    fn backlog(&self) -> usize {
        0
    }

    fn is_stalled(&self) -> bool {
        self.is_fenced.get() || !self.stalls.borrow().is_empty()
    }
}

/// Shards that serve, and a connection to each.
pub struct Store {
    pub env: SimEnv,
    pub shards: Vec<Rc<Shard<SimEnv>>>,
    pub connections: Vec<Connection>,
    pub inbox: Rc<Inbox>,
    /// Bytes of the log that the parts of a range delete may take on a shard.
    pub range_bytes_max: usize,
    /// The port behind the last shard, by which they are told to close.
    control: Port<Message>,
    ended: Gate,
    /// Whether scans of several shards may begin anew for want of room.
    pub is_short: bool,
}

impl Store {
    /// What the shards' clocks show now, by which keys expire. Where the wall clock was set back, they are read, as
    /// the next request would do; else they will follow it.
    pub fn clocks(&self) -> Span {
        let wall_ms = self.env.wall_ms();
        let engines = || self.shards.iter().map(|shard| &shard.engine);
        if engines().all(|engine| engine.now_ms() <= wall_ms) {
            return (wall_ms, wall_ms);
        }
        engines()
            .map(|engine| engine.tick())
            .fold((u64::MAX, 0), |(low, high), now_ms| (low.min(now_ms), high.max(now_ms)))
    }

    pub async fn open(env: &SimEnv, shape: &Shape) -> Result<Store, EngineError> {
        let count = shape.shards;
        let found = recovery::load(env, shape.tablets).await?;
        let scans = recovery::scan(env, &found.state, found.logs.into_iter().collect()).await?;
        let start = recovery::plan(found.state, scans, count as u32)?;
        recovery::install(env, &start).await?;
        let mut ports = mesh(count + 1, shape.ring_messages);
        let control = ports.pop().expect("one more than shards");
        let ended = Gate::new();
        let mut shards = Vec::new();
        for (id, port) in ports.into_iter().enumerate() {
            let metrics = Rc::new(Metrics::default());
            let engine = Engine::open(env, shape.options.clone(), &start, id as u32, metrics.clone()).await?;
            let limits = Limits::for_values(1 << 20);
            let settings =
                Settings { is_durable: shape.is_durable, connection_bytes: shape.connection_bytes };
            let slots = Rc::new(SlotTable::new(&start.state));
            let shard = Shard::new(id, env, engine, slots, limits, settings, metrics, port);
            spawn_loops(env, &shard, &ended);
            shards.push(shard);
        }
        let inbox = Rc::new(Inbox::default());
        let connections = (0..count)
            .map(|shard| {
                let recorder = Rc::new(Recorder {
                    inbox: inbox.clone(),
                    in_flight: Cell::new(0),
                    is_fenced: Cell::new(false),
                    stalls: RefCell::default(),
                    shard: Rc::downgrade(&shards[shard]),
                    granted: RefCell::default(),
                });
                Connection { shard, token: shards[shard].register(recorder.clone()), recorder }
            })
            .collect();
        let is_short = shape.is_short();
        let range_bytes_max = shape.options.segment_bytes as usize / 4;
        Ok(Store { env: env.clone(), shards, connections, inbox, range_bytes_max, control, ended, is_short })
    }

    pub fn coordinator(&self) -> &Rc<Shard<SimEnv>> {
        &self.shards[COORDINATOR]
    }

    /// Begins a pipeline of `count` requests, numbered from 0.
    pub fn begin(&self, count: usize) {
        self.inbox.answers.replace(vec![None; count]);
        self.inbox.missing.set(count);
    }

    /// Sends the frames of one connection as they are taken in: `cuts` says how many bytes come at a time.
    pub async fn send(&self, connection: usize, bytes: &[u8], cuts: usize) {
        let Connection { shard, token, recorder } = &self.connections[connection];
        let shard = &self.shards[*shard];
        let (mut at, mut end) = (0, 0);
        while at < bytes.len() {
            let came = self.inbox.came.notified();
            if end <= at {
                end = bytes.len().min(at.saturating_add(cuts));
            }
            let dispatched = shard.dispatch(*token, &**recorder, &bytes[at..end]);
            shard.end_turn();
            match dispatched {
                // A part of a frame: more of it comes.
                Dispatched::NeedMore { used: 0 } => end = end.saturating_add(cuts).min(bytes.len()),
                Dispatched::NeedMore { used } => at += used,
                Dispatched::Pause { used: 0 } => {
                    self.resume_output();
                    if shard.should_rest() {
                        shard.rest_for_reads().await;
                    } else {
                        futures_lite::future::or(came, shard.relieved.notified()).await;
                    }
                }
                Dispatched::Pause { used } => at += used,
                other => {
                    let answers = self.inbox.answers.take();
                    panic!("the frames are whole: {other:?}, {:.300?}", answers.into_iter().flatten().last());
                }
            }
        }
    }

    /// Waits for the answers to all requests of the pipeline.
    pub async fn answers(&self) -> Vec<Answer> {
        loop {
            let came = self.inbox.came.notified();
            self.resume_output();
            if self.inbox.missing.get() == 0 {
                break;
            }
            came.await;
        }
        self.inbox.answers.take().into_iter().map(|answer| answer.expect("none is missing")).collect()
    }

    /// Replies have been taken: where frames wait for that they go on.
    fn resume_output(&self) {
        for Connection { shard, token, recorder } in &self.connections {
            let waiting: Vec<usize> =
                recorder.stalls.borrow().iter().filter(|(_, is_output)| *is_output).map(|s| s.0).collect();
            for owner in waiting {
                recorder.stalls.borrow_mut().retain(|(known, _)| *known != owner);
                recorder.stalls.borrow_mut().push((owner, false));
                self.shards[*shard].resume(owner, *token);
                self.shards[*shard].end_turn();
            }
        }
    }

    /// Stops it as the server does: memtables stay in the log.
    pub async fn close(self) -> Result<(), EngineError> {
        (0..self.shards.len()).for_each(|shard| self.control.send(shard, Message::Close));
        self.ended.empty().await;
        for shard in self.shards {
            let engine = shard.engine.clone();
            drop(shard);
            engine.close().await?;
        }
        Ok(())
    }

    pub fn metrics(&self) -> MetricsSnapshot {
        let mut sum = MetricsSnapshot::default();
        self.shards.iter().for_each(|shard| sum.merge(&shard.engine.metrics()));
        sum
    }
}

fn spawn_loops(env: &SimEnv, shard: &Rc<Shard<SimEnv>>, ended: &Gate) {
    let (served, guard) = (shard.clone(), ended.enter());
    env.spawn(Queue::Foreground, async move {
        served.serve_mesh(|_| unreachable!("only requests, replies and the end")).await;
        served.pending.empty().await;
        served.close();
        drop(guard);
    });
    let (released, guard) = (shard.clone(), ended.enter());
    env.spawn(Queue::Foreground, async move {
        released.release_loop().await;
        drop(guard);
    });
    let (roomed, guard) = (shard.clone(), ended.enter());
    env.spawn(Queue::Foreground, async move {
        roomed.room_loop().await;
        drop(guard);
    });
}
