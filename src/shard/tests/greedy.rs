//! Many origins on several shards that ask for more than there is memory for: all are answered, within it.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use super::store::Store;
use crate::env::sim::SimEnv;
use crate::env::{Env, Gate, Notify, Queue};
use crate::protocol::binary::{Cursor, KeyList, decode_reply, decode_reply_header, encode_request};
use crate::protocol::{DeleteRange, Durability, Limits, Reply, Request, ScanPage, ScanRequest};
use crate::shard::budget::Share;
use crate::shard::{BACKLOG_MAX, Dispatched, Outlet, Replies, Shard, Stall};

const SHARDS: usize = 3;
const CONNECTION_BYTES: usize = 2 << 20;
const ORIGINS: usize = 16;
const REQUESTS: u64 = 40;
const KEYS: usize = 24;
/// Requests that an origin may hold without asking.
const FREE: usize = 64 << 10;

/// As a connection is, with a client that takes its time.
struct Greedy {
    shard: Rc<Shard<SimEnv>>,
    share: Share,
    token: Cell<u64>,
    in_flight: Cell<u32>,
    unsent: RefCell<VecDeque<(usize, Replies)>>,
    unsent_bytes: Cell<usize>,
    stalls: RefCell<Vec<(usize, Stall)>>,
    is_fenced: Cell<bool>,
    /// Where its scan is, and whether a page is on its way.
    scan: RefCell<Scanning>,
    is_scanning: Cell<bool>,
    scanned: Cell<usize>,
    moved: Notify,
}

/// A scan of all keys.
#[derive(Default)]
struct Scanning {
    cursor: Vec<u8>,
    last: Vec<u8>,
    count: usize,
}

impl Outlet for Greedy {
    fn deliver(&self, owner: usize, replies: Replies) {
        self.in_flight.set(self.in_flight.get() - replies.count);
        if self.in_flight.get() == 0 {
            self.is_fenced.set(false);
        }
        self.share.set(self.share.held() - replies.frame_bytes);
        self.unsent_bytes.set(self.unsent_bytes.get() + replies.bytes.len());
        self.unsent.borrow_mut().push_back((owner, replies));
        self.moved.notify();
    }

    fn stall(&self, owner: usize, why: Stall) {
        let mut stalls = self.stalls.borrow_mut();
        stalls.retain(|(known, _)| *known != owner);
        if why != Stall::Over {
            stalls.push((owner, why));
        }
        self.moved.notify();
    }

    fn flush(&self) {}

    fn accept(&self, _bytes: usize) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    fn is_full(&self) -> bool {
        self.in_flight.get() >= 100
    }

    fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    fn fence(&self) {
        self.is_fenced.set(true);
    }

    fn backlog(&self) -> usize {
        self.unsent_bytes.get()
    }

    fn is_stalled(&self) -> bool {
        self.is_fenced.get() || !self.stalls.borrow().is_empty()
    }
}

fn key(at: usize) -> Vec<u8> {
    format!("greedy {at}").into_bytes()
}

/// Small ones, and large ones of which the replies budget takes three.
fn value(at: usize) -> Vec<u8> {
    vec![b'a' + at as u8; if at.is_multiple_of(3) { 100 } else { 200_000 + at * 1_000 }]
}

impl Greedy {
    fn begin(shard: &Rc<Shard<SimEnv>>) -> Rc<Greedy> {
        let moved = Notify::new();
        let greedy = Rc::new(Greedy {
            share: Share::new(shard.request_budget.clone(), moved.clone(), FREE),
            shard: shard.clone(),
            token: Cell::new(0),
            in_flight: Cell::new(0),
            unsent: RefCell::default(),
            unsent_bytes: Cell::new(0),
            stalls: RefCell::default(),
            is_fenced: Cell::new(false),
            scan: RefCell::default(),
            is_scanning: Cell::new(false),
            scanned: Cell::new(0),
            moved,
        });
        greedy.token.set(shard.register(greedy.clone()));
        greedy
    }

    /// Asks as fast as it is let.
    async fn ask(self: Rc<Self>, mut rng: fastrand::Rng) {
        for id in 1..=REQUESTS {
            let mut frame = Vec::new();
            let at = rng.usize(..KEYS);
            match rng.usize(..7) {
                2 | 3 if !self.is_scanning.get() => {
                    let cursor = self.scan.borrow().cursor.clone();
                    let cursor = Cursor::decode(&cursor);
                    let request = ScanRequest { start: b"greedy", cursor, ..ScanRequest::default() };
                    encode_request(&mut frame, id << 8, &Request::Scan(request));
                    self.is_scanning.set(true);
                }
                // Written with the value that it has, so that whoever reads it knows what to find.
                0 => frame = super::set(id << 8 | at as u64, &key(at), &value(at)),
                1 => {
                    let mut keys = KeyList::default();
                    (at..KEYS.min(at + 4)).for_each(|at| keys.push(&key(at)));
                    encode_request(&mut frame, id << 8 | at as u64, &Request::Mget { keys: keys.keys() });
                }
                // Of nothing that the others ask for, and everything of its own waits for it.
                4 => {
                    let (start, end) = (&b"greedy~"[..], &b"greedy~~"[..]);
                    let range = DeleteRange {
                        start,
                        end,
                        is_local: false,
                        epoch: 0,
                        durability: Durability::Default,
                    };
                    encode_request(&mut frame, id << 8, &Request::DeleteRange(range));
                }
                _ => encode_request(&mut frame, id << 8 | at as u64, &Request::Get { key: &key(at) }),
            }
            self.moved.until(|| self.share.grow(0, frame.len())).await;
            let mut used = 0;
            while used < frame.len() {
                let (moved, relieved) = (self.moved.notified(), self.shard.relieved.notified());
                match self.shard.dispatch(self.token.get(), &*self, &frame[used..]) {
                    Dispatched::NeedMore { used: more } => used += more,
                    Dispatched::Pause { used: more } => {
                        used += more;
                        if used < frame.len() {
                            futures_lite::future::or(moved, relieved).await;
                        }
                    }
                    other => panic!("{other:?}"),
                }
                self.shard.end_turn();
            }
        }
    }

    /// Takes replies, slowly, until all have come. Returns how many.
    async fn take(self: Rc<Self>, env: SimEnv, mut rng: fastrand::Rng) {
        let mut answered = 0;
        while answered < REQUESTS {
            self.moved.until(|| !self.unsent.borrow().is_empty() || !self.stalls.borrow().is_empty()).await;
            env.sleep(Duration::from_micros(rng.u64(..3_000))).await;
            let next = self.unsent.borrow_mut().pop_front();
            if let Some((owner, replies)) = next {
                self.unsent_bytes.set(self.unsent_bytes.get() - replies.bytes.len());
                answered += self.check(&replies);
                self.shard.left(owner, replies.granted);
            }
            if self.unsent_bytes.get() < BACKLOG_MAX {
                let mut stalls = self.stalls.borrow_mut();
                let stalled = stalls.iter_mut().find(|(_, why)| *why == Stall::Output).map(|(owner, why)| {
                    *why = Stall::Room;
                    *owner
                });
                drop(stalls);
                if let Some(owner) = stalled {
                    self.shard.resume(owner, self.token.get());
                }
            }
            self.shard.end_turn();
            self.moved.notify();
        }
    }

    /// Each reply says what was asked for. Returns how many there are.
    fn check(&self, replies: &Replies) -> u64 {
        let mut bytes = &replies.bytes[..];
        for _ in 0..replies.count {
            let header = decode_reply_header(bytes, Limits::FRAME_BYTES_LIMIT).unwrap().unwrap();
            let (frame, rest) = bytes.split_at(header.frame_bytes());
            let at = header.request_id as usize & 0xff;
            match decode_reply(&header, &frame[frame.len() - header.body_bytes()..]).unwrap() {
                Reply::Value { value: found, .. } => assert!(found == value(at)),
                Reply::Values(values) => {
                    let all =
                        values.enumerate().all(|(n, found)| found.is_some_and(|v| v.value == value(at + n)));
                    assert!(all);
                }
                Reply::Written { .. } | Reply::Done => {}
                Reply::Page(page) => self.check_page(&page),
                other => panic!("{other:?}"),
            }
            bytes = rest;
        }
        assert!(bytes.is_empty());
        u64::from(replies.count)
    }

    /// A scan finds each key once, in order, however small its pages are and however often it begins anew.
    fn check_page(&self, page: &ScanPage<'_>) {
        self.is_scanning.set(false);
        let mut scan = self.scan.borrow_mut();
        for entry in page.entries {
            assert!(scan.last.as_slice() < entry.key);
            scan.last = entry.key.to_vec();
            scan.count += 1;
            self.scanned.set(self.scanned.get() + 1);
            let at: usize = std::str::from_utf8(&entry.key[b"greedy ".len()..]).unwrap().parse().unwrap();
            assert!(entry.value == value(at));
        }
        match page.cursor {
            Some(cursor) => scan.cursor = cursor.to_vec(),
            None => {
                assert_eq!(scan.count, KEYS);
                *scan = Scanning::default();
            }
        }
    }
}

/// The most that is held at any time.
#[derive(Default)]
struct Most {
    requests: Cell<usize>,
    replies: Cell<usize>,
    gathers: Cell<usize>,
    unsent: Cell<usize>,
    scanned: Cell<usize>,
}

async fn run(env: SimEnv, seed: u64, is_cold: bool) -> Most {
    let store = Store::open_with(&env, SHARDS, CONNECTION_BYTES).await;
    for at in 0..KEYS {
        store.set(&key(at), &value(at), crate::protocol::Expiry::Never).await.version();
    }
    if is_cold {
        store.flush().await;
    }
    let all: Vec<Rc<Greedy>> =
        (0..ORIGINS * SHARDS).map(|at| Greedy::begin(&store.shards[at % SHARDS])).collect();
    let running = Gate::new();
    for (at, greedy) in all.iter().enumerate() {
        let rng = |stream: u64| fastrand::Rng::with_seed(seed ^ (at as u64) << 32 ^ stream << 16);
        let (ask, take) = (greedy.clone().ask(rng(1)), greedy.clone().take(env.clone(), rng(2)));
        for guard_and_work in [running.enter(), running.enter()].into_iter().zip([Ok(ask), Err(take)]) {
            env.spawn(Queue::Foreground, async move {
                match guard_and_work.1 {
                    Ok(ask) => ask.await,
                    Err(take) => take.await,
                }
                drop(guard_and_work.0);
            });
        }
    }
    let most = Most::default();
    let begin = env.now();
    while running.count() > 0 {
        assert!(env.now() - begin < Duration::from_secs(60), "seed {seed}: somebody waits for ever");
        for shard in &store.shards {
            most.requests.set(most.requests.get().max(shard.request_budget.used()));
            most.replies.set(most.replies.get().max(shard.reply_budget.used()));
            most.gathers.set(most.gathers.get().max(shard.gather_budget.used()));
        }
        let unsent = all.iter().map(|greedy| greedy.unsent_bytes.get()).sum();
        most.unsent.set(most.unsent.get().max(unsent));
        env.sleep(Duration::from_micros(200)).await;
    }
    for shard in &store.shards {
        let left = (shard.reply_budget.used(), shard.gather_budget.used());
        assert_eq!(left, (0, 0), "seed {seed}: all that was granted was given back");
        assert!(!shard.reply_budget.is_short() && !shard.request_budget.is_short(), "seed {seed}");
    }
    most.scanned.set(all.iter().map(|greedy| greedy.scanned.get()).sum());
    for greedy in all {
        assert_eq!((greedy.share.held(), greedy.in_flight.get()), (0, 0), "seed {seed}");
        greedy.shard.unregister(greedy.token.get());
    }
    store.close().await;
    most
}

/// Nothing bounded what all connections of a shard hold together.
#[test]
fn greedy_origins_are_all_answered_within_the_budget() {
    let given = std::env::var("ATLASKV_TEST_SEED").ok();
    let seed = given.map_or_else(|| fastrand::u64(..1 << 32), |text| text.parse().expect("a number"));
    println!("to repeat: ATLASKV_TEST_SEED={seed} cargo test --lib shard::tests::greedy");
    for is_cold in [false, true] {
        let (world, env) = SimEnv::fresh(seed);
        let most = world.run(run(env, seed, is_cold));
        let (requests, replies, unsent) = (most.requests.get(), most.replies.get(), most.unsent.get());
        let frame = Limits::for_values(1 << 20).frame_bytes_max as usize;
        let limit = (CONNECTION_BYTES / 2).max(frame);
        let quarter = (CONNECTION_BYTES / 4).max(frame);
        assert!(requests <= limit + ORIGINS * FREE, "seed {seed}: {requests} bytes of requests");
        assert!(replies <= quarter, "seed {seed}: {replies} bytes of replies were granted");
        let gathers = most.gathers.get();
        // Of a scan all parts and the page may be one large value each.
        let gathers_max = (CONNECTION_BYTES / 8).max(frame).max(2 * (SHARDS + 1) * 224_000);
        assert!(gathers <= gathers_max, "seed {seed}: {gathers} bytes of gathers were granted");
        let small = SHARDS * ORIGINS * (BACKLOG_MAX / 4);
        assert!(unsent <= SHARDS * 2 * quarter + small, "seed {seed}: {unsent} bytes were not sent");
        let scanned = most.scanned.get();
        println!("{requests} bytes of requests, {replies} of replies, {gathers} gathered; {scanned} scanned");
        assert!(scanned > SHARDS * ORIGINS / 2, "seed {seed}: scans found {scanned} entries");
        assert!(unsent > quarter && requests > limit / 2, "seed {seed}: they were not greedy");
    }
}
