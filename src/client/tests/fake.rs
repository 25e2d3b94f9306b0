//! A server in a thread, for the client to talk to.

use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::base::Lsn;
use crate::client::{Client, Config};
use crate::error::{Code, Refusal};
use crate::protocol::binary::{
    Cursor, HEADER_BYTES, PageEncoder, VERSION, ValueListEncoder, decode_header, decode_request,
    encode_refusal, encode_reply,
};
use crate::protocol::{
    Action, Condition, Deadline, Expiry, Hello, Lifetime, Limits, Reply, Request, ScanEntry, ShardRange,
};
use crate::slot::{Slot, SlotRange};

/// What goes wrong at the next request that is not HELLO.
pub(super) enum Fault {
    /// The connection ends before the request is executed.
    CloseBefore,
    /// It is executed, and the connection ends before the reply.
    CloseAfter,
    /// No reply ever comes.
    Silence,
    /// The connection is refused and closed.
    RefuseConnection,
    /// The reply carries another id.
    WrongId,
    /// The reply is not this protocol.
    Noise,
    /// It is refused.
    Refuse(Code),
}

/// A server that keeps everything in one map and can be told to fail.
pub(super) struct Fake {
    pub(super) address: SocketAddr,
    pub(super) state: Arc<State>,
}

pub(super) struct State {
    pub(super) store: Mutex<Store>,
    pub(super) faults: Mutex<VecDeque<Fault>>,
    pub(super) epoch: AtomicU64,
    pub(super) shard_count: AtomicU64,
    pub(super) connections: AtomicU64,
    pub(super) limits: Limits,
    /// Shards, and the slots of keys that came there.
    pub(super) seen: Mutex<Vec<(u16, Slot)>>,
}

/// What time it is for the server, always.
pub(super) const NOW_MS: u64 = 1_000_000;

#[derive(Default)]
pub(super) struct Store {
    pub(super) values: BTreeMap<Vec<u8>, (Lsn, Vec<u8>)>,
    /// Of keys that were given one.
    pub(super) expiries: BTreeMap<Vec<u8>, u64>,
    pub(super) last: u64,
    /// Pages of the scan that is under way.
    pub(super) pages: u32,
}

impl Fake {
    pub(super) fn start(shard_count: u64) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            store: Mutex::default(),
            faults: Mutex::default(),
            epoch: AtomicU64::new(1 << 32 | 1),
            shard_count: AtomicU64::new(shard_count),
            connections: AtomicU64::new(0),
            limits: Limits { pipeline_bytes_max: 4096, ..Limits::for_values(1 << 20) },
            seen: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                shared.connections.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || shared.serve(stream.unwrap()));
            }
        });
        Fake { address, state }
    }

    pub(super) fn client(&self) -> Client {
        Client::connect(self.config()).unwrap()
    }

    pub(super) fn config(&self) -> Config {
        Config {
            read_timeout: Duration::from_millis(300),
            backoff_min: Duration::from_millis(1),
            ..Config::new(&self.address.to_string())
        }
    }

    pub(super) fn fail_next(&self, fault: Fault) {
        self.state.faults.lock().unwrap().push_back(fault);
    }

    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        self.state.store.lock().unwrap()
    }

    pub(super) fn connections(&self) -> u64 {
        self.state.connections.load(Ordering::SeqCst)
    }
}

impl State {
    pub(super) fn hello(&self, shard: u16) -> Hello {
        let shard_count = self.shard_count.load(Ordering::SeqCst) as u16;
        let ranges = SlotRange::split_evenly(shard_count * 2).into_iter().enumerate();
        Hello {
            version: VERSION,
            shard_count,
            shard,
            epoch: self.epoch.load(Ordering::SeqCst),
            limits: self.limits,
            ranges: ranges.map(|(i, slots)| ShardRange { slots, shard: i as u16 % shard_count }).collect(),
        }
    }

    pub(super) fn serve(&self, mut stream: TcpStream) {
        let (mut input, mut shard) = (Vec::new(), 0);
        let mut chunk = [0; 1024];
        loop {
            let mut replies: Vec<Vec<u8>> = Vec::new();
            while let Some(header) = decode_header(&input, &self.limits).unwrap() {
                if input.len() < header.frame_bytes() {
                    break;
                }
                let frame: Vec<u8> = input.drain(..header.frame_bytes()).collect();
                let request = decode_request(&header, &frame[HEADER_BYTES..], &self.limits);
                let mut out = Vec::new();
                let epoch = self.epoch.load(Ordering::SeqCst);
                match request {
                    Ok(Request::Hello(hello)) => {
                        let wanted = hello.shard.unwrap_or(shard);
                        if u64::from(wanted) >= self.shard_count.load(Ordering::SeqCst) {
                            let refusal = Refusal::new(Code::NoSuchShard, "no such shard");
                            encode_refusal(&mut out, header.opcode as u8, header.request_id, epoch, &refusal);
                        } else {
                            shard = wanted;
                            let reply = Reply::Hello(self.hello(shard));
                            encode_reply(&mut out, header.opcode, header.request_id, epoch, &reply);
                        }
                    }
                    Ok(request) => {
                        let fault = self.faults.lock().unwrap().pop_front();
                        let mut id = header.request_id;
                        match fault {
                            Some(Fault::CloseBefore) => return,
                            Some(Fault::Silence) => continue,
                            Some(Fault::RefuseConnection) => {
                                let refusal = Refusal::new(Code::ShuttingDown, "the server is stopping");
                                encode_refusal(&mut out, 0, 0, epoch, &refusal);
                                stream.write_all(&out).unwrap();
                                return;
                            }
                            Some(Fault::WrongId) => id += 1,
                            Some(Fault::Refuse(code)) => {
                                let refusal = Refusal::new(code, "as the test wants it");
                                encode_refusal(&mut out, header.opcode as u8, id, epoch, &refusal);
                                replies.push(out);
                                continue;
                            }
                            Some(Fault::Noise) => {
                                stream.write_all(b"-ERR unknown command\r\n").unwrap();
                                return;
                            }
                            Some(Fault::CloseAfter) | None => {}
                        }
                        self.execute(&request, shard, id, epoch, &mut out);
                        if matches!(fault, Some(Fault::CloseAfter)) {
                            return;
                        }
                    }
                    Err(refusal) => {
                        encode_refusal(&mut out, header.opcode as u8, header.request_id, epoch, &refusal);
                    }
                }
                replies.push(out);
            }
            // In the opposite order, as it may be.
            replies.reverse();
            if stream.write_all(&replies.concat()).is_err() {
                return;
            }
            match stream.read(&mut chunk) {
                Ok(0) | Err(_) => return,
                Ok(count) => input.extend_from_slice(&chunk[..count]),
            }
        }
    }

    pub(super) fn execute(&self, request: &Request<'_>, shard: u16, id: u64, epoch: u64, out: &mut Vec<u8>) {
        let mut store = self.store.lock().unwrap();
        if let crate::protocol::Route::Slot(slot) = request.route() {
            self.seen.lock().unwrap().push((shard, slot));
        }
        let opcode = request.opcode();
        let mut answer = |reply: Reply<'_>| encode_reply(out, opcode, id, epoch, &reply);
        let current = |key: &[u8]| store.values.get(key).map(|(version, _)| *version);
        match *request {
            Request::Hello(_) => unreachable!("answered before"),
            Request::Transact(_) => unreachable!("the client has no way to ask for it"),
            Request::Ping { payload } => answer(Reply::Pong(payload)),
            Request::Checkpoint { dir } => answer(Reply::Stats(&format!("dir={dir}\n"))),
            Request::Clients(_) => unreachable!("the client has no way to ask for it"),
            Request::Tablets { command } => answer(Reply::Stats(&format!("command={command}\n"))),
            Request::Get { key } => match store.values.get(key) {
                Some((version, value)) => answer(Reply::Value { version: *version, value }),
                None => answer(Reply::Absent),
            },
            Request::Set { key, value, expiry, condition, .. } => match current(key) {
                current if !condition.holds(current) => answer(Reply::ConditionFailed { current }),
                _ => {
                    match expiry {
                        Expiry::Never => drop(store.expiries.remove(key)),
                        Expiry::Set(deadline) => store.expire(key, deadline),
                        Expiry::Keep => {}
                    }
                    answer(Reply::Written { version: store.put(key, value) });
                }
            },
            Request::Expire { key, deadline, condition, .. } => match store.values.get(key).cloned() {
                None => answer(Reply::Absent),
                Some((version, _)) if !condition.holds(Some(version)) => {
                    answer(Reply::ConditionFailed { current: Some(version) });
                }
                Some((_, value)) => {
                    store.expire(key, deadline);
                    answer(Reply::Written { version: store.put(key, &value) });
                }
            },
            Request::Persist { key, .. } => match store.values.get(key).cloned() {
                None => answer(Reply::Absent),
                Some((_, value)) => {
                    store.expiries.remove(key);
                    answer(Reply::Written { version: store.put(key, &value) });
                }
            },
            Request::Ttl { key } => match current(key) {
                None => answer(Reply::Absent),
                Some(version) => {
                    let expires_at_ms = store.expiries.get(key).copied();
                    let lifetime = expires_at_ms
                        .map(|at| Lifetime { remaining_ms: at.saturating_sub(NOW_MS), expires_at_ms: at });
                    answer(Reply::Lifetime { version, lifetime });
                }
            },
            Request::Delete { key, condition, .. } => match current(key) {
                None if condition == Condition::None => answer(Reply::Absent),
                current if !condition.holds(current) => answer(Reply::ConditionFailed { current }),
                _ => answer(Reply::Written { version: store.delete(key) }),
            },
            Request::Mget { keys } => {
                let mut encoder = ValueListEncoder::begin(out, id, epoch);
                for key in keys {
                    match store.values.get(key) {
                        Some((version, value)) => encoder.present(*version, value),
                        None => encoder.absent(),
                    }
                }
                encoder.finish();
            }
            Request::Batch { ops, .. } => {
                let version = Lsn(store.last + 1);
                let unmet = (0..).zip(ops).find(|(_, op)| !op.condition.holds(current(op.key)));
                if let Some((item, op)) = unmet {
                    return answer(Reply::BatchFailed { item, current: current(op.key) });
                }
                for op in ops {
                    match op.action {
                        Action::Put { value, .. } => drop(store.put(op.key, value)),
                        Action::Delete => drop(store.delete(op.key)),
                        Action::Expire(deadline) => store.expire(op.key, deadline),
                        Action::Persist => drop(store.expiries.remove(op.key)),
                        Action::Check => {}
                    }
                }
                answer(Reply::Written { version });
            }
            Request::Incr { key, amount, .. } => {
                let text = store.values.get(key).map_or(&b"0"[..], |(_, value)| value);
                match std::str::from_utf8(text).unwrap().parse::<i64>() {
                    Ok(before) => {
                        let value = before + amount;
                        let version = store.put(key, value.to_string().as_bytes());
                        answer(Reply::Counter { version, value });
                    }
                    Err(_) => answer(Reply::Refused(Refusal::new(Code::NotAnInteger, "not an integer"))),
                }
            }
            Request::DeleteRange(range) => {
                let is_in = |key: &[u8]| key >= range.start && (range.end.is_empty() || key < range.end);
                store.values.retain(|key, _| !is_in(key));
                answer(Reply::Done);
            }
            Request::Stats { section } => answer(Reply::Stats(&format!("section={section}\n"))),
            Request::Scan(scan) => {
                // Three entries a page. A cursor of another page than this server gave last is of a session that
                // is gone.
                let after = scan.cursor.map_or(&[][..], |cursor| cursor.key);
                let mut keys = store.values.range(scan.start.to_vec()..).filter(|(key, _)| &key[..] > after);
                let mut page = PageEncoder::new(id, epoch);
                let mut cursor = Vec::new();
                for (key, (version, value)) in keys.by_ref().take(3) {
                    page.push(&ScanEntry { key, version: *version, expiry_ms: 0, value });
                    cursor.clear();
                    let number = scan.cursor.map_or(0, |cursor| cursor.page) + 1;
                    Cursor { shard: 0, page: number, session: 1, key }.encode(&mut cursor);
                }
                let is_new = scan.cursor.is_some_and(|cursor| cursor.page != store.pages);
                let is_end = keys.next().is_none();
                store.pages = scan.cursor.map_or(0, |cursor| cursor.page) + 1;
                out.extend_from_slice(&page.finish(is_new, (!is_end).then_some(&cursor[..])));
            }
        }
    }
}

impl Store {
    pub(super) fn expire(&mut self, key: &[u8], deadline: Deadline) {
        self.expiries.insert(key.to_vec(), deadline.resolve(NOW_MS).unwrap());
    }

    pub(super) fn put(&mut self, key: &[u8], value: &[u8]) -> Lsn {
        self.last += 1;
        self.values.insert(key.to_vec(), (Lsn(self.last), value.to_vec()));
        Lsn(self.last)
    }

    pub(super) fn delete(&mut self, key: &[u8]) -> Lsn {
        self.last += 1;
        self.values.remove(key);
        Lsn(self.last)
    }
}
