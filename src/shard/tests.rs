//! A shard on the simulated env, and a client that keeps what it is told.

mod batch;
mod clients;
mod expiry;
mod expiry_model;
mod fetched;
mod greedy;
mod moves;
mod outbound;
mod ranges;
mod room;
mod saves;
mod scans;
mod sliced;
mod store;
mod transact;
mod versions;

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::budget::Granted;
use super::mesh::mesh;
use super::{Dispatched, IN_FLIGHT_MAX, Message, Outlet, Replies, Settings, Shard, Stall};
use crate::base::Compression;
use crate::disk::sim::SimDisk;
use crate::engine::{Engine, EngineOptions, recovery};
use crate::env::sim::{SimEnv, SimWorld};
use crate::env::{Env, Queue};
use crate::error::Code;
use crate::metrics::Metrics;
use crate::placement::SlotTable;
use crate::protocol::binary::{Status, decode_reply_header, encode_request};
use crate::protocol::{Condition, Durability, Expiry, Limits, Request};

/// One connection.
#[derive(Default)]
struct Client {
    received: RefCell<Vec<u8>>,
    in_flight: Cell<u32>,
    stall: Cell<Option<Stall>>,
    shard: RefCell<Weak<Shard<SimEnv>>>,
    /// What it has to give back.
    granted: RefCell<Vec<(usize, Granted)>>,
}

impl Outlet for Client {
    fn deliver(&self, owner: usize, replies: Replies) {
        self.in_flight.set(self.in_flight.get() - replies.count);
        self.received.borrow_mut().extend_from_slice(&replies.bytes);
        self.granted.borrow_mut().push((owner, replies.granted));
    }

    fn stall(&self, _owner: usize, why: Stall) {
        self.stall.set((why != Stall::Over).then_some(why));
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

    fn fence(&self) {}

    fn backlog(&self) -> usize {
        0
    }

    fn is_stalled(&self) -> bool {
        self.stall.get().is_some()
    }
}

impl Client {
    /// Statuses of all replies.
    fn statuses(&self) -> Vec<Status> {
        let received = self.received.borrow();
        let (mut at, mut statuses) = (0, Vec::new());
        while let Ok(Some(header)) = decode_reply_header(&received[at..], Limits::FRAME_BYTES_LIMIT) {
            statuses.push(header.status);
            at += header.frame_bytes();
        }
        statuses
    }
}

/// A shard that owns everything, durable before it answers.
async fn start(env: &SimEnv) -> Rc<Shard<SimEnv>> {
    let found = recovery::load(env, 16).await.unwrap();
    let scans = recovery::scan(env, &found.state, found.logs.into_iter().collect()).await.unwrap();
    let start = recovery::plan(found.state, scans, 1).unwrap();
    recovery::install(env, &start).await.unwrap();
    let options = EngineOptions {
        memtable_bytes: 64 << 20,
        sealed_max: 1,
        cache_bytes: 1 << 20,
        row_bytes: 1 << 20,
        reads_max: 64,
        index_bytes: 1 << 20,
        compression: Compression::default(),
        segment_bytes: 8 << 20,
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
    let metrics = Rc::new(Metrics::default());
    let engine = Engine::open(env, options, &start, 0, metrics.clone()).await.unwrap();
    let slots = Rc::new(SlotTable::new(&start.state));
    let port = mesh::<Message>(1, 4).remove(0);
    let (limits, settings) =
        (Limits::for_values(1 << 20), Settings { is_durable: true, connection_bytes: 64 << 20 });
    let shard = Shard::new(0, env, engine, slots, limits, settings, metrics, port);
    env.spawn(Queue::Foreground, shard.clone().release_loop());
    env.spawn(Queue::Foreground, shard.clone().room_loop());
    shard
}

fn connect(shard: &Rc<Shard<SimEnv>>) -> (Rc<Client>, u64) {
    let client = Rc::new(Client::default());
    client.shard.replace(Rc::downgrade(shard));
    let token = shard.register(client.clone());
    (client, token)
}

fn set(id: u64, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let (condition, durability) = (Condition::None, Durability::Default);
    encode_request(
        &mut frame,
        id,
        &Request::Set { key, value, expiry: Expiry::Never, condition, durability },
    );
    frame
}

fn get(id: u64, key: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    encode_request(&mut frame, id, &Request::Get { key });
    frame
}

/// A reader of a value whose write had failed waited for a block that nobody wrote any more, and a server
/// that was told to stop waited for that reader.
#[test]
fn whoever_reads_what_a_failed_log_lost_is_told_so() {
    let world = SimWorld::new(1);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    world.run(async {
        let shard = start(&env).await;
        let (client, token) = connect(&shard);
        env.disk().fail("dsync", "wal/", 0, libc::EIO, true);
        shard.dispatch(token, client.as_ref(), &set(1, b"key", b"value"));
        env.sleep(Duration::from_millis(100)).await;
        assert_eq!(client.statuses(), [Status::Refused(Code::WriteFailed)]);
        shard.dispatch(token, client.as_ref(), &get(2, b"key"));
        env.sleep(Duration::from_millis(100)).await;
        assert_eq!(client.statuses()[1..], [Status::Refused(Code::WriteFailed)]);
        assert_eq!(client.in_flight.get(), 0);
    });
}

/// Replies that wait for a commit were bounded by the number of requests only: 64 KiB of GETs of a large
/// value that was just written held a copy of it each.
#[test]
fn replies_that_wait_for_a_commit_are_bounded() {
    let world = SimWorld::new(2);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    world.run(async {
        let shard = start(&env).await;
        let (client, token) = connect(&shard);
        // As large as is read in one step.
        let mut bytes = set(0, b"key", &vec![b'v'; super::sliced::BYTES_MAX]);
        (1..50).for_each(|id| bytes.extend(get(id, b"key")));
        let mut used = 0;
        let mut most = 0;
        while used < bytes.len() {
            match shard.dispatch(token, client.as_ref(), &bytes[used..]) {
                Dispatched::NeedMore { used: more } | Dispatched::Pause { used: more } => used += more,
                other => panic!("{other:?}"),
            }
            most = most.max(shard.held.borrow().bytes());
            shard.end_turn();
            if client.is_stalled() {
                env.sleep(Duration::from_millis(1)).await;
            }
        }
        while client.in_flight.get() > 0 {
            env.sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(client.statuses(), [Status::Done; 50]);
        assert!((4 << 20..8 << 20).contains(&most), "{most} bytes were held");
    });
}

/// Requests that wait in line for a block that another reads were counted by their own few bytes.
#[test]
fn requests_in_line_for_a_large_block_are_bounded() {
    let world = SimWorld::new(3);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    world.run(async {
        let shard = start(&env).await;
        let (client, token) = connect(&shard);
        shard.dispatch(token, client.as_ref(), &set(0, b"key", &vec![b'v'; 1 << 20]));
        while client.in_flight.get() > 0 {
            env.sleep(Duration::from_millis(1)).await;
        }
        shard.engine.rotate();
        while shard.engine.metrics().table_entries == 0 {
            env.sleep(Duration::from_millis(1)).await;
        }
        let bytes: Vec<u8> = (1..50).flat_map(|id| get(id, b"key")).collect();
        let result = shard.dispatch(token, client.as_ref(), &bytes);
        assert!(matches!(result, Dispatched::Pause { .. }) && client.is_stalled(), "{result:?}");
        assert!(client.in_flight.get() < 8, "{} read or wait in line", client.in_flight.get());
    });
}

/// The limit kept a connection from reading on without need, not from having taken in what it had read.
#[test]
fn no_more_requests_are_taken_in_than_may_be_unanswered() {
    let world = SimWorld::new(4);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    world.run(async {
        let shard = start(&env).await;
        let (client, token) = connect(&shard);
        let bytes: Vec<u8> = (0..20_000).flat_map(|id| set(id, b"key", b"")).collect();
        let mut used = 0;
        while used < bytes.len() {
            let Dispatched::Pause { used: more } = shard.dispatch(token, client.as_ref(), &bytes[used..])
            else {
                break;
            };
            used += more;
            assert!(client.in_flight.get() <= IN_FLIGHT_MAX);
            if client.in_flight.get() == IN_FLIGHT_MAX {
                env.sleep(Duration::from_millis(1)).await;
            }
        }
        assert!(used > 0, "it paused");
    });
}

/// A pipeline that was taken in as a whole was read from disk as a whole: core and disk waited for each other.
#[test]
fn reads_of_a_pipeline_are_on_their_way_before_more_of_it_is_taken_in() {
    const KEYS: usize = 160;
    const PORTION: usize = super::READS_AT_ONCE as usize;
    let world = SimWorld::new(5);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    world.run(async {
        let shard = start(&env).await;
        let (client, token) = connect(&shard);
        let key = |at: usize| format!("key {at:03}").into_bytes();
        // Each has a block of its own.
        (0..KEYS).for_each(|at| {
            let used = shard.dispatch(token, client.as_ref(), &set(at as u64, &key(at), &[b'v'; 5_000]));
            assert!(matches!(used, Dispatched::NeedMore { .. }), "{used:?}");
        });
        while client.in_flight.get() > 0 {
            env.sleep(Duration::from_millis(1)).await;
        }
        shard.engine.rotate();
        while shard.engine.metrics().table_entries < KEYS as u64 {
            env.sleep(Duration::from_millis(1)).await;
        }
        let bytes: Vec<u8> = (0..KEYS).flat_map(|at| get((KEYS + at) as u64, &key(at))).collect();
        // Keys are of one length.
        let one = bytes.len() / KEYS;
        let (mut used, mut portions) = (0, 0);
        while used < bytes.len() {
            let before = client.in_flight.get() as usize;
            let (Dispatched::NeedMore { used: more } | Dispatched::Pause { used: more }) =
                shard.dispatch(token, client.as_ref(), &bytes[used..])
            else {
                panic!("these are requests");
            };
            used += more;
            portions += 1;
            assert!(
                (1..=PORTION).contains(&(client.in_flight.get() as usize - before)),
                "portion {portions}"
            );
            if used < bytes.len() {
                assert!(shard.should_rest(), "portion {portions} is a whole one");
                // Whoever comes meanwhile is not held back, but is no more than one.
                let again = shard.dispatch(token, client.as_ref(), &bytes[used..]);
                assert!(matches!(again, Dispatched::Pause { used } if used == one), "{again:?}");
                used += one;
                shard.rest_for_reads().await;
            }
        }
        assert_eq!(portions, KEYS.div_ceil(PORTION + 1));
        while client.in_flight.get() > 0 {
            env.sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(client.statuses(), [Status::Done; 2 * KEYS]);
    });
}
