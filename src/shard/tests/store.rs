//! Shards as the server runs them, several in one simulated world, with one client at shard 0.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use crate::base::{Codec, Compression, Lsn};
use crate::engine::{Engine, EngineOptions, recovery};
use crate::env::sim::SimEnv;
use crate::env::{Env, Gate, Notify, Queue};
use crate::error::Code;
use crate::metrics::{Metrics, MetricsSnapshot};
use crate::placement::SlotTable;
use crate::protocol::binary::{decode_reply, decode_reply_header, encode_request};
use crate::protocol::{Condition, Deadline, Durability, Expiry, Lifetime, Limits, Reply, Request};
use crate::shard::budget::Granted;
use crate::shard::mesh::{Port, mesh};
use crate::shard::{Dispatched, IN_FLIGHT_MAX, Message, Origin, Outlet, Replies, Settings, Shard, Stall};
use crate::slot::Slot;

/// What a request was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Value(Vec<u8>, Lsn),
    Values(Vec<Option<Vec<u8>>>),
    Absent,
    Written(Lsn),
    Unmet(Option<Lsn>),
    BatchUnmet(u32, Option<Lsn>),
    Sum(i64),
    Lifetime(Option<Lifetime>),
    /// Keys and values, where to go on, and whether a part is of a later moment.
    Page(Vec<(Vec<u8>, Vec<u8>)>, Option<Vec<u8>>, bool),
    Resp(String),
    Done,
    Refused(Code),
}

impl Answer {
    fn of(reply: Reply<'_>) -> Answer {
        match reply {
            Reply::Value { version, value } => Answer::Value(value.to_vec(), version),
            Reply::Values(values) => {
                Answer::Values(values.map(|value| value.map(|v| v.value.to_vec())).collect())
            }
            Reply::Resp(replies) => Answer::Resp(String::from_utf8_lossy(replies).into_owned()),
            Reply::Absent => Answer::Absent,
            Reply::Written { version } => Answer::Written(version),
            Reply::ConditionFailed { current } => Answer::Unmet(current),
            Reply::BatchFailed { item, current } => Answer::BatchUnmet(item, current),
            Reply::Counter { value, .. } => Answer::Sum(value),
            Reply::Lifetime { lifetime, .. } => Answer::Lifetime(lifetime),
            Reply::Page(page) => Answer::Page(
                page.entries.map(|entry| (entry.key.to_vec(), entry.value.to_vec())).collect(),
                page.cursor.map(<[u8]>::to_vec),
                page.is_new_snapshot,
            ),
            Reply::Done => Answer::Done,
            Reply::Refused(refusal) => Answer::Refused(refusal.code),
            other => panic!("nobody asked for {other:?}"),
        }
    }

    #[track_caller]
    pub fn version(&self) -> Lsn {
        let Answer::Written(version) = self else { panic!("{self:?} is not written") };
        *version
    }
}

/// Keeps replies until they are asked for.
#[derive(Default)]
struct Recorder {
    replies: RefCell<BTreeMap<u64, Answer>>,
    in_flight: Cell<u32>,
    /// Nothing more is taken in before all that was is answered.
    is_fenced: Cell<bool>,
    /// Owners where frames of it wait.
    stalls: RefCell<Vec<usize>>,
    shard: RefCell<Weak<Shard<SimEnv>>>,
    /// What it has to give back, by owner.
    granted: RefCell<Vec<(usize, Granted)>>,
    came: Notify,
}

/// One more client, at some shard.
pub struct Connection {
    shard: usize,
    token: u64,
    recorder: Rc<Recorder>,
    last_id: Cell<u64>,
}

impl Connection {
    /// Sends a request, as soon as the shard takes it in. Returns its number.
    pub async fn send(&self, store: &Store, request: &Request<'_>) -> u64 {
        let (id, frame) = self.frame(request);
        let shard = &store.shards[self.shard];
        loop {
            let came = self.recorder.came.notified();
            let mut bytes = frame.clone();
            let dispatched = shard.dispatch_all(self.token, &*self.recorder, &mut bytes);
            shard.end_turn();
            match dispatched {
                Dispatched::NeedMore { .. } if bytes.is_empty() => return id,
                Dispatched::NeedMore { used } | Dispatched::Pause { used } if used == frame.len() => {
                    return id;
                }
                Dispatched::Pause { used: 0 } => {
                    futures_lite::future::or(came, shard.relieved.notified()).await;
                }
                other => panic!("one frame was sent: {other:?}"),
            }
        }
    }

    fn frame(&self, request: &Request<'_>) -> (u64, Vec<u8>) {
        let id = self.last_id.get() + 1;
        self.last_id.set(id);
        let mut frame = Vec::new();
        encode_request(&mut frame, id, request);
        (id, frame)
    }

    /// Sends requests with one read, which the shard must take in at once. Returns their numbers.
    pub fn send_all(&self, store: &Store, requests: &[Request<'_>]) -> Vec<u64> {
        let ids = self.read(store, requests);
        store.shards[self.shard].end_turn();
        ids
    }

    /// The same, of which the turn does not end yet.
    pub fn read(&self, store: &Store, requests: &[Request<'_>]) -> Vec<u64> {
        let (ids, frames): (Vec<u64>, Vec<Vec<u8>>) = requests.iter().map(|r| self.frame(r)).unzip();
        let (shard, bytes) = (&store.shards[self.shard], frames.concat());
        let dispatched = shard.dispatch(self.token, &*self.recorder, &bytes);
        assert_eq!(dispatched, Dispatched::NeedMore { used: bytes.len() });
        ids
    }

    /// Hands a request to its owner as a part of one that several shards do. Returns its number.
    pub fn send_part(&self, store: &Store, owner: usize, request: &Request<'_>) -> u64 {
        let (id, frame) = self.frame(request);
        self.recorder.accept(frame.len());
        let origin = Origin { peer: self.shard, token: self.token };
        let (shard, owner) = (&store.shards[self.shard], &store.shards[owner]);
        if owner.id == shard.id {
            owner.execute(origin, origin, Cow::Owned(frame));
        } else {
            shard.forward(owner.id, self.token, self.token, &frame);
        }
        shard.end_turn();
        id
    }

    /// Under which the shard knows it.
    pub fn token(&self) -> u64 {
        self.token
    }

    pub fn is_answered(&self, id: u64) -> bool {
        self.recorder.replies.borrow().contains_key(&id)
    }

    /// Whether its frames wait at `owner`.
    pub fn is_stalled_at(&self, owner: usize) -> bool {
        self.recorder.stalls.borrow().contains(&owner)
    }

    /// The client has taken its replies: `owner` goes on, at once.
    pub fn resume(&self, store: &Store, owner: usize) {
        store.shards[owner].resume_output(Origin { peer: self.shard, token: self.token });
        store.shards[owner].end_turn();
    }

    /// What request `id` was answered.
    pub async fn answer(&self, id: u64) -> Answer {
        let replies = &self.recorder.replies;
        self.recorder.came.until(|| replies.borrow().contains_key(&id)).await;
        replies.borrow_mut().remove(&id).unwrap()
    }
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
            self.replies.borrow_mut().insert(header.request_id, answer);
            bytes = rest;
        }
        self.in_flight.set(self.in_flight.get() - replies.count);
        self.is_fenced.set(self.is_fenced.get() && self.in_flight.get() > 0);
        self.came.notify();
    }

    fn stall(&self, owner: usize, why: Stall) {
        let mut stalls = self.stalls.borrow_mut();
        stalls.retain(|known| *known != owner);
        if why != Stall::Over {
            stalls.push(owner);
        }
        drop(stalls);
        self.came.notify();
    }

    fn flush(&self) {
        let Some(shard) = self.shard.borrow().upgrade() else { return };
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

/// Shards that serve.
pub struct Store {
    pub env: SimEnv,
    pub shards: Vec<Rc<Shard<SimEnv>>>,
    /// The port behind the last shard, by which they are told to close.
    control: Port<Message>,
    ended: Gate,
    recorder: Rc<Recorder>,
    token: u64,
    last_id: Cell<u64>,
}

const OPTIONS: EngineOptions = EngineOptions {
    memtable_bytes: 64 << 20,
    sealed_max: 1,
    cache_bytes: 64 << 10,
    row_bytes: 32 << 10,
    reads_max: 4,
    index_bytes: 1 << 20,
    compression: Compression { upper: Codec::None, last: Codec::Lz4 },
    segment_bytes: 4 << 20,
    window: 3,
    lazy: None,
    compaction_fan: 4,
    snapshot_life: std::time::Duration::from_secs(60),
    snapshot_bytes: 1 << 30,
    scrub_bytes_per_s: 0,
    level_ratio: 4,
    last_table_bytes: 32 << 20,
    reserve_bytes: 0,
};

impl Store {
    pub async fn open(env: &SimEnv, count: usize) -> Store {
        Store::open_with(env, count, 64 << 20).await
    }

    pub async fn open_with(env: &SimEnv, count: usize, connection_bytes: usize) -> Store {
        let found = recovery::load(env, 16).await.unwrap();
        let scans = recovery::scan(env, &found.state, found.logs.into_iter().collect()).await.unwrap();
        let start = recovery::plan(found.state, scans, count as u32).unwrap();
        recovery::install(env, &start).await.unwrap();
        let mut ports = mesh(count + 1, 64);
        let control = ports.pop().unwrap();
        let ended = Gate::new();
        let mut shards = Vec::new();
        for (id, port) in ports.into_iter().enumerate() {
            let metrics = Rc::new(Metrics::default());
            let engine = Engine::open(env, OPTIONS, &start, id as u32, metrics.clone()).await.unwrap();
            let (limits, settings) =
                (Limits::for_values(1 << 20), Settings { is_durable: true, connection_bytes });
            let slots = Rc::new(SlotTable::new(&start.state));
            let shard = Shard::new(id, env, engine, slots, limits, settings, metrics, port);
            let (served, guard) = (shard.clone(), ended.enter());
            env.spawn(Queue::Foreground, async move {
                served.serve_mesh(|_| unreachable!("only requests, replies and the end")).await;
                served.pending.empty().await;
                served.close();
                drop(guard);
            });
            for which in 0..2 {
                let (shard, guard) = (shard.clone(), ended.enter());
                env.spawn(Queue::Foreground, async move {
                    if which == 0 {
                        shard.release_loop().await
                    } else {
                        shard.room_loop().await
                    }
                    drop(guard);
                });
            }
            shards.push(shard);
        }
        let recorder = Rc::new(Recorder::default());
        recorder.shard.replace(Rc::downgrade(&shards[0]));
        let token = shards[0].register(recorder.clone());
        Store { env: env.clone(), shards, control, ended, recorder, token, last_id: Cell::new(0) }
    }

    /// One more client, at this shard.
    pub fn connect(&self, shard: usize) -> Connection {
        let recorder = Rc::new(Recorder::default());
        recorder.shard.replace(Rc::downgrade(&self.shards[shard]));
        let token = self.shards[shard].register(recorder.clone());
        Connection { shard, token, recorder, last_id: Cell::new(0) }
    }

    /// Stops it as the server does: memtables stay in the log.
    pub async fn close(self) {
        (0..self.shards.len()).for_each(|shard| self.control.send(shard, Message::Close));
        self.ended.empty().await;
        for shard in self.shards {
            let engine = shard.engine.clone();
            drop(shard);
            engine.close().await.unwrap();
        }
    }

    pub async fn ask(&self, request: &Request<'_>) -> Answer {
        let id = self.last_id.get() + 1;
        self.last_id.set(id);
        let mut frame = Vec::new();
        encode_request(&mut frame, id, request);
        let dispatched = self.shards[0].dispatch(self.token, &*self.recorder, &frame);
        let (Dispatched::NeedMore { used } | Dispatched::Pause { used }) = dispatched else {
            panic!("one frame was sent: {dispatched:?}");
        };
        assert_eq!(used, frame.len());
        self.shards[0].end_turn();
        let replies = &self.recorder.replies;
        self.recorder.came.until(|| replies.borrow().contains_key(&id)).await;
        replies.borrow_mut().remove(&id).unwrap()
    }

    pub async fn get(&self, key: &[u8]) -> Answer {
        self.ask(&Request::Get { key }).await
    }

    pub async fn set(&self, key: &[u8], value: &[u8], expiry: Expiry) -> Answer {
        self.set_if(key, value, expiry, Condition::None).await
    }

    pub async fn set_if(&self, key: &[u8], value: &[u8], expiry: Expiry, condition: Condition) -> Answer {
        let durability = Durability::Default;
        self.ask(&Request::Set { key, value, expiry, condition, durability }).await
    }

    pub async fn delete(&self, key: &[u8]) -> Answer {
        let (condition, durability) = (Condition::None, Durability::Default);
        self.ask(&Request::Delete { key, condition, durability }).await
    }

    pub async fn incr(&self, key: &[u8], amount: i64) -> Answer {
        self.ask(&Request::Incr { key, amount, durability: Durability::Default }).await
    }

    pub async fn expire(&self, key: &[u8], deadline: Deadline) -> Answer {
        let (condition, durability) = (Condition::None, Durability::Default);
        self.ask(&Request::Expire { key, deadline, condition, durability }).await
    }

    pub async fn persist(&self, key: &[u8]) -> Answer {
        let (condition, durability) = (Condition::None, Durability::Default);
        self.ask(&Request::Persist { key, condition, durability }).await
    }

    pub async fn ttl(&self, key: &[u8]) -> Answer {
        self.ask(&Request::Ttl { key }).await
    }

    /// When a key expires, in milliseconds since the epoch; 0 is never.
    pub async fn expires_at(&self, key: &[u8]) -> u64 {
        match self.ttl(key).await {
            Answer::Lifetime(lifetime) => lifetime.map_or(0, |lifetime| lifetime.expires_at_ms),
            other => panic!("{}: {other:?}", key.escape_ascii()),
        }
    }

    pub fn owner(&self, key: &[u8]) -> &Shard<SimEnv> {
        &self.shards[self.shards[0].slots.shard(Slot::of_key(key))]
    }

    /// Has all that is in memory flushed.
    pub async fn flush(&self) {
        for shard in &self.shards {
            let (before, bytes) = (shard.metrics.flushes.get(), shard.engine.metrics().memtable_bytes);
            shard.engine.rotate();
            // A memtable that holds nothing is not replaced by another one.
            if shard.engine.metrics().memtable_bytes == bytes {
                continue;
            }
            let changed = shard.engine.changed();
            changed.until(|| shard.metrics.flushes.get() > before).await;
        }
    }

    pub async fn sleep(&self, duration: Duration) {
        self.env.sleep(duration).await;
    }

    /// Waits until `holds`, three minutes at most: longer than any background work waits for its time.
    pub async fn until(&self, what: &str, mut holds: impl FnMut(&MetricsSnapshot) -> bool) {
        for _ in 0..1800 {
            if holds(&self.metrics()) {
                return;
            }
            self.sleep(Duration::from_millis(100)).await;
        }
        panic!("not within three minutes: {what}; {:?}", self.metrics());
    }

    pub fn metrics(&self) -> MetricsSnapshot {
        let mut sum = MetricsSnapshot::default();
        self.shards.iter().for_each(|shard| sum.merge(&shard.engine.metrics()));
        sum
    }
}
