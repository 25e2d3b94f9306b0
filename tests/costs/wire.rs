//! A client's connection to a shard, without its socket: what the server's connection does with the bytes of a read, and
//! with replies.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use atlaskv::env::Notify;
use atlaskv::protocol::binary::{KeyList, OpList, Status, decode_reply_header, encode_request};
use atlaskv::protocol::{Condition, Durability, Expiry, Limits, Request, resp};
use atlaskv::redis::session::{Client, Context, Now, Session, Taken};
use atlaskv::shard::budget::Granted;
use atlaskv::shard::{Dispatched, IN_FLIGHT_MAX, Outlet, Replies, Shard, Stall};

use crate::allocator::{inside, outside};
use crate::world::CostEnv;

/// Which protocol a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Binary,
    Redis,
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub enum Op<'a> {
    Get(&'a [u8]),
    Set(&'a [u8], &'a [u8]),
    Incr(&'a [u8]),
    Mget(&'a [Vec<u8>]),
    /// Values for keys of one slot: BATCH, or MSET.
    Batch(&'a [Vec<u8>], &'a [u8]),
}

/// What a client sends at once.
pub struct Pipeline {
    pub bytes: Vec<u8>,
    count: usize,
}

/// A connection.
pub struct Wire {
    shard: Rc<Shard<CostEnv>>,
    token: u64,
    peer: Rc<Peer>,
}

/// The client's end, and what the server keeps of a connection.
struct Peer {
    shard: Weak<Shard<CostEnv>>,
    session: RefCell<Option<Session>>,
    /// Frames that the session has made.
    frames: RefCell<Vec<u8>>,
    in_flight: Cell<u32>,
    is_fenced: Cell<bool>,
    stalls: RefCell<Vec<usize>>,
    granted: RefCell<Vec<(usize, Granted)>>,
    received: RefCell<Vec<u8>>,
    came: Notify,
}

impl Outlet for Peer {
    fn deliver(&self, owner: usize, replies: Replies) {
        self.in_flight.set(self.in_flight.get() - replies.count);
        self.is_fenced.set(self.is_fenced.get() && self.in_flight.get() > 0);
        let out = match self.session.borrow_mut().as_mut() {
            None => replies.bytes,
            Some(session) => {
                session.answer(&replies.bytes, Now::default());
                session.take_out()
            }
        };
        outside(|| {
            self.granted.borrow_mut().push((owner, replies.granted));
            self.received.borrow_mut().extend_from_slice(&out);
            self.came.notify();
        });
    }

    fn stall(&self, owner: usize, why: Stall) {
        outside(|| {
            let mut stalls = self.stalls.borrow_mut();
            stalls.retain(|known| *known != owner);
            if why != Stall::Over {
                stalls.push(owner);
            }
            self.came.notify();
        });
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

impl Wire {
    /// A new one, to `shard`, whose sessions share `context`.
    pub fn new(shard: &Rc<Shard<CostEnv>>, context: &Rc<Context>, protocol: Protocol) -> Wire {
        let session = match protocol {
            Protocol::Binary => None,
            Protocol::Redis => Some(Session::new(context.clone(), Client::default(), 1)),
        };
        let peer = Rc::new(Peer {
            shard: Rc::downgrade(shard),
            session: RefCell::new(session),
            frames: RefCell::default(),
            in_flight: Cell::new(0),
            is_fenced: Cell::new(false),
            stalls: RefCell::default(),
            granted: RefCell::default(),
            received: RefCell::default(),
            came: Notify::new(),
        });
        Wire { shard: shard.clone(), token: shard.register(peer.clone()), peer }
    }

    /// The bytes of some requests.
    pub fn pipeline<'a>(&self, ops: impl IntoIterator<Item = Op<'a>>) -> Pipeline {
        let is_redis = self.peer.session.borrow().is_some();
        let (mut bytes, mut count) = (Vec::new(), 0);
        for op in ops {
            if is_redis {
                write_command(&mut bytes, op)
            } else {
                write_request(&mut bytes, count as u64, op)
            }
            count += 1;
        }
        Pipeline { bytes, count }
    }

    /// Sends a pipeline, which is read at once, and takes all replies. What the shards and the session do is under
    /// measure.
    pub async fn exchange(&self, pipeline: &Pipeline) -> Vec<u8> {
        let mut rest = pipeline.bytes.clone();
        loop {
            let (came, relieved) = (self.peer.came.notified(), self.shard.relieved.notified());
            let before = rest.len();
            let is_all = inside(|| {
                let is_all = self.take_in(&mut rest);
                self.shard.end_turn();
                is_all
            });
            if is_all {
                break;
            }
            if rest.len() == before {
                futures_lite::future::or(came, relieved).await;
            }
        }
        self.peer.came.until(|| self.is_answered()).await;
        let received = self.peer.received.take();
        assert_eq!(self.replies(&received), pipeline.count, "each request is answered, and none is refused");
        received
    }

    fn is_answered(&self) -> bool {
        self.peer.in_flight.get() == 0 && self.peer.session.borrow().as_ref().is_none_or(Session::is_answered)
    }

    /// Takes in what can be now. Whether that is all.
    fn take_in(&self, rest: &mut Vec<u8>) -> bool {
        if self.peer.session.borrow().is_none() {
            return self.dispatch(rest);
        }
        let mut used = 0;
        let is_all = self.take_in_commands(rest, &mut used);
        rest.drain(..used);
        is_all
    }

    fn take_in_commands(&self, rest: &[u8], used: &mut usize) -> bool {
        loop {
            let mut frames = self.peer.frames.take();
            let is_dispatched = self.dispatch(&mut frames);
            if !is_dispatched {
                self.peer.frames.replace(frames);
                return false;
            }
            let mut session = self.peer.session.borrow_mut();
            let session = session.as_mut().expect("the caller has looked");
            let now = Now { is_idle: self.peer.in_flight.get() == 0, ..Now::default() };
            let taken = session.take_in_from(rest, used, &mut frames, now);
            let ready = session.take_out();
            if !ready.is_empty() {
                outside(|| {
                    self.peer.received.borrow_mut().extend_from_slice(&ready);
                    self.peer.came.notify();
                });
            }
            let is_without = frames.is_empty();
            self.peer.frames.replace(frames);
            match taken {
                Taken::NeedMore { .. } if is_without => return *used == rest.len(),
                Taken::Close => panic!("commands are as they should be"),
                Taken::Pause if is_without => return false,
                _ => {}
            }
        }
    }

    /// Has the shard take in frames. Whether it has taken all.
    fn dispatch(&self, frames: &mut Vec<u8>) -> bool {
        while !frames.is_empty() {
            match self.shard.dispatch_all(self.token, &*self.peer, frames) {
                Dispatched::Pause { used: 0 } => return false,
                Dispatched::NeedMore { used } | Dispatched::Pause { used } => drop(frames.drain(..used)),
                other => panic!("frames are as they should be: {other:?}"),
            }
        }
        true
    }

    /// How many replies these are.
    fn replies(&self, bytes: &[u8]) -> usize {
        let (mut at, mut count) = (0, 0);
        while at < bytes.len() {
            at += match self.peer.session.borrow().is_some() {
                true => command_reply(&bytes[at..]),
                false => request_reply(&bytes[at..]),
            };
            count += 1;
        }
        count
    }
}

/// Length of the reply at the start of `bytes`, which is no refusal.
fn request_reply(bytes: &[u8]) -> usize {
    let header = decode_reply_header(bytes, Limits::FRAME_BYTES_LIMIT).unwrap().unwrap();
    assert!(matches!(header.status, Status::Done | Status::Absent), "{:?}", header.status);
    header.frame_bytes()
}

fn command_reply(bytes: &[u8]) -> usize {
    let (reply, used) = resp::decode_reply(bytes).unwrap().unwrap();
    assert!(!matches!(reply, resp::Reply::Error(_)), "{reply:?}");
    used
}

fn write_request(bytes: &mut Vec<u8>, id: u64, op: Op<'_>) {
    let (expiry, condition, durability) = (Expiry::Never, Condition::None, Durability::Default);
    let (mut list, mut ops) = (KeyList::default(), OpList::default());
    let request = match op {
        Op::Get(key) => Request::Get { key },
        Op::Set(key, value) => Request::Set { key, value, expiry, condition, durability },
        Op::Incr(key) => Request::Incr { key, amount: 1, durability },
        Op::Mget(keys) => {
            keys.iter().for_each(|key| list.push(key));
            Request::Mget { keys: list.keys() }
        }
        Op::Batch(keys, value) => {
            keys.iter().for_each(|key| ops.put(key, value));
            Request::Batch { ops: ops.ops(), durability }
        }
    };
    encode_request(bytes, id, &request);
}

fn write_command(bytes: &mut Vec<u8>, op: Op<'_>) {
    let words: Vec<&[u8]> = match op {
        Op::Get(key) => vec![b"GET", key],
        Op::Set(key, value) => vec![b"SET", key, value],
        Op::Incr(key) => vec![b"INCR", key],
        Op::Mget(keys) => std::iter::once(&b"MGET"[..]).chain(keys.iter().map(Vec::as_slice)).collect(),
        Op::Batch(keys, value) => {
            std::iter::once(&b"MSET"[..]).chain(keys.iter().flat_map(|key| [key, value])).collect()
        }
    };
    resp::array(bytes, words.len());
    words.iter().for_each(|word| resp::bulk(bytes, word));
}
