//! Sessions whose shards are played by a map.

mod admin;

use std::collections::BTreeMap;

use super::*;
use crate::base::Lsn;
use crate::protocol::binary::{
    HEADER_BYTES, PageEncoder, Step as Part, ValueListEncoder, decode_header, decode_request, encode_reply,
};
use crate::protocol::{Action, ClientsAction, Condition, Limits, OpCode, Reply, Request, ScanEntry};
use crate::redis::{Command, Keyspace, MemoryKeyspace, evaluate};

struct Two;

impl Nodes for Two {
    fn local(&self) -> usize {
        1
    }

    fn owner(&self, slot: Slot) -> usize {
        usize::from(slot.number() % 2)
    }

    fn count(&self) -> usize {
        2
    }

    fn address(&self, shard: usize) -> String {
        format!("127.0.0.1:{}", 7000 + shard)
    }
}

thread_local! {
    /// How often the server was to be stopped, by sessions of one test.
    static STOPS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

struct Stoppable;

impl Host for Stoppable {
    fn stop(&self) {
        STOPS.set(STOPS.get() + 1);
    }
}

fn context() -> Rc<Context> {
    Rc::new(Context::new(ContextParts {
        limits: Limits::for_values(1 << 20),
        nodes: Box::new(Two),
        host: Box::new(Stoppable),
        saves: std::sync::Arc::new(SaveStatus::new(1_000)),
        config: vec![("save", String::new()), ("maxmemory", "7".to_owned())],
        port: 7379,
        run_id: "r".repeat(40),
        started_at_ms: 1_000,
        clients_max: 10,
        seed: 3,
    }))
}

/// A session, and what its shards hold.
struct Client {
    session: Session,
    store: MemoryKeyspace,
    /// Keys in order, for scans.
    keys: BTreeMap<Vec<u8>, ()>,
    /// Frames without an answer.
    asked: Vec<Vec<u8>>,
    /// What STATS tells of clients.
    clients: String,
    /// What shards were to do to them, and where saves were to go.
    told: Vec<String>,
    paused: Option<Paused>,
}

impl Client {
    fn new(is_node: bool) -> Client {
        let ends = Ends { peer: "10.0.0.1:99".to_owned(), local: "10.0.0.9:6379".to_owned() };
        let session = Session::new(context(), ends, is_node, 1);
        Client {
            session,
            store: MemoryKeyspace::new(5_000),
            keys: BTreeMap::new(),
            asked: Vec::new(),
            clients: String::new(),
            told: Vec::new(),
            paused: None,
        }
    }

    /// Sends bytes; how many were taken in, and what came of the rest.
    fn send(&mut self, input: &[u8]) -> (usize, Taken) {
        let (mut used, mut frames) = (0, Vec::new());
        let now = Now { paused: self.paused, ..Now::default() };
        let taken = self.session.take_in_from(input, &mut used, &mut frames, now);
        self.keep(&frames);
        (used, taken)
    }

    fn keep(&mut self, mut frames: &[u8]) {
        while !frames.is_empty() {
            let header = decode_header(frames, &context().limits).expect("it is right").expect("it is whole");
            let (frame, rest) = frames.split_at(header.frame_bytes());
            self.asked.push(frame.to_vec());
            frames = rest;
        }
    }

    /// Answers the frame of this index; what the client gets by that.
    fn answer(&mut self, index: usize) -> Vec<u8> {
        let frame = self.asked.remove(index);
        let reply = self.execute(&frame);
        self.session.answer(&reply, Now::default());
        let more = self.session.take_frames();
        self.keep(&more);
        self.session.take_out()
    }

    /// Sends a command that is taken in at once; its reply.
    fn ask(&mut self, line: &str) -> String {
        let input = format!("{line}\r\n");
        let (used, taken) = self.send(input.as_bytes());
        assert_eq!(used, input.len(), "{line}: {taken:?}");
        let mut out = self.session.take_out();
        while !self.asked.is_empty() {
            out.extend(self.answer(0));
        }
        String::from_utf8(out).expect("text")
    }

    fn execute(&mut self, frame: &[u8]) -> Vec<u8> {
        let limits = context().limits;
        let header = decode_header(frame, &limits).unwrap().unwrap();
        let request = decode_request(&header, &frame[HEADER_BYTES..], &limits).unwrap();
        let (mut out, version) = (Vec::new(), Lsn(9));
        let has = |store: &mut MemoryKeyspace, key: &[u8]| store.peek(key).unwrap().is_some();
        let reply = match request {
            Request::Get { key } => match self.store.get(key).unwrap() {
                Some(cell) => {
                    let value = cell.value.into_owned();
                    encode_reply(
                        &mut out,
                        OpCode::Get,
                        header.request_id,
                        0,
                        &Reply::Value { version, value: &value },
                    );
                    return out;
                }
                None => Reply::Absent,
            },
            Request::Set { key, condition, .. }
                if condition == Condition::IfAbsent && has(&mut self.store, key) =>
            {
                Reply::ConditionFailed { current: Some(version) }
            }
            Request::Set { key, value, .. } => {
                self.put(key, value);
                Reply::Written { version }
            }
            Request::Delete { key, .. } if !has(&mut self.store, key) => Reply::Absent,
            Request::Delete { key, .. } => {
                self.store.delete(key);
                self.keys.remove(key);
                Reply::Written { version }
            }
            Request::Ttl { key } if !has(&mut self.store, key) => Reply::Absent,
            Request::Ttl { .. } => Reply::Lifetime { version, lifetime: None },
            Request::Batch { ops, .. } => {
                for op in ops {
                    let Action::Put { value, .. } = op.action else { unreachable!("of MSET") };
                    self.put(op.key, value);
                }
                Reply::Written { version }
            }
            Request::Mget { keys } => {
                let mut list = ValueListEncoder::begin(&mut out, header.request_id, 0);
                for key in keys {
                    match self.store.get(key).unwrap() {
                        Some(cell) => list.present(version, &cell.value),
                        None => list.absent(),
                    }
                }
                list.finish();
                return out;
            }
            Request::Scan(scan) => {
                let after = scan.cursor.map(|cursor| cursor.key.to_vec()).unwrap_or_default();
                let all: Vec<_> = self.keys.keys().filter(|key| **key > after).cloned().collect();
                let mut page = PageEncoder::new(header.request_id, 0);
                let most = (scan.entries_max as usize).min(2);
                for key in all.iter().take(most) {
                    page.push(&ScanEntry { key, version, expiry_ms: 0, value: b"" });
                }
                let mut cursor = Vec::new();
                let last = all.get(most.wrapping_sub(1)).filter(|_| all.len() > most);
                let cursor = last.map(|key| {
                    crate::protocol::binary::Cursor { shard: 0, page: 1, session: 1, key }
                        .encode(&mut cursor);
                    &cursor[..]
                });
                return page.finish(false, cursor);
            }
            Request::Stats { section: "clients" } => {
                encode_reply(&mut out, OpCode::Stats, header.request_id, 0, &Reply::Stats(&self.clients));
                return out;
            }
            Request::Clients(clients) => {
                let disconnected = match clients.action {
                    ClientsAction::Disconnect(ids) => ids.len(),
                    ClientsAction::Pause { .. } | ClientsAction::Unpause => 0,
                };
                let what = match clients.action {
                    ClientsAction::Disconnect(ids) => format!("{:?}", ids.iter().collect::<Vec<_>>()),
                    other => format!("{other:?}"),
                };
                self.told.push(format!("{}: {what}", clients.shard));
                let text = format!("disconnected={disconnected}\n");
                encode_reply(&mut out, OpCode::Clients, header.request_id, 0, &Reply::Stats(&text));
                return out;
            }
            Request::Checkpoint { dir } => {
                self.told.push(dir.to_owned());
                encode_reply(&mut out, OpCode::Checkpoint, header.request_id, 0, &Reply::Stats(""));
                return out;
            }
            Request::Stats { .. } => {
                let text = format!("keys_estimate={}\n", self.keys.len());
                encode_reply(&mut out, OpCode::Stats, header.request_id, 0, &Reply::Stats(&text));
                return out;
            }
            Request::Transact(transaction) => {
                let mut bytes = Vec::new();
                if transaction.is_array {
                    resp::array(&mut bytes, transaction.steps.len());
                }
                for step in transaction.steps {
                    match step {
                        Part::Reply(reply) => bytes.extend_from_slice(reply),
                        Part::Command(words) => {
                            let words: Vec<&[u8]> = words.collect();
                            let command = Command::parse(&words).expect("it was looked at before");
                            let Ok(()) = evaluate(&command, &mut self.store, Proto::Resp2, &mut bytes);
                        }
                    }
                }
                encode_reply(&mut out, OpCode::Transact, header.request_id, 0, &Reply::Resp(&bytes));
                return out;
            }
            other => unreachable!("{other:?}"),
        };
        encode_reply(&mut out, request.opcode(), header.request_id, 0, &reply);
        out
    }

    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.store.put(key, value.to_vec(), 0);
        self.keys.insert(key.to_vec(), ());
    }
}

#[test]
fn replies_leave_in_the_order_of_the_commands() {
    let mut client = Client::new(false);
    client.ask("set b 2");
    let input = b"*2\r\n$3\r\nGET\r\n$1\r\na\r\nGET b\r\nPING\r\nEXISTS a b b\r\n";
    assert_eq!(client.send(input), (input.len(), Taken::NeedMore { wanted: 1 }));
    assert_eq!(client.asked.len(), 5, "one for each key");
    assert_eq!(client.answer(1), b"");
    assert!(client.session.backlog() > 0, "one that came early");
    for _ in 0..3 {
        assert_eq!(client.answer(1), b"");
    }
    assert_eq!(client.answer(0), b"$-1\r\n$1\r\n2\r\n+PONG\r\n:2\r\n");
    assert!(client.session.is_answered() && client.session.backlog() == 0);
}

#[test]
fn commands_say_what_redis_says() {
    let mut client = Client::new(false);
    for (line, reply) in [
        ("set k v", "+OK\r\n"),
        ("SETNX k w", ":0\r\n"),
        ("setnx n w", ":1\r\n"),
        ("get k", "$1\r\nv\r\n"),
        ("append k vv", ":3\r\n"),
        ("mset {x}a 1 {x}b 2 c 3", "+OK\r\n"),
        ("mget {x}a nope c", "*3\r\n$1\r\n1\r\n$-1\r\n$1\r\n3\r\n"),
        ("del {x}a nope c", ":2\r\n"),
        ("type k", "+string\r\n"),
        ("ttl nope", ":-2\r\n"),
        ("pttl k", ":-1\r\n"),
        ("rename k j", "-CROSSSLOT Keys in request don't hash to the same slot\r\n"),
        ("get \"\"", "-ERR a key has 1 to 65535 bytes, and this one 0\r\n"),
        ("get", "-ERR wrong number of arguments for 'get' command\r\n"),
        ("nope a", "-ERR unknown command 'nope', with args beginning with: 'a' \r\n"),
        ("client nope", "-ERR unknown subcommand 'nope'. Try CLIENT HELP.\r\n"),
        ("select 1", "-ERR DB index is out of range\r\n"),
        ("dbsize", ":3\r\n"),
        ("config get s*e", "*2\r\n$4\r\nsave\r\n$0\r\n\r\n"),
        ("client reply off", ""),
        ("get k", ""),
        ("client reply on", "+OK\r\n"),
        ("client reply skip", ""),
        ("get k", ""),
        ("ping", "+PONG\r\n"),
    ] {
        assert_eq!(client.ask(line), reply, "{line}");
    }
    assert!(client.ask("hello 3").starts_with("%7\r\n$6\r\nserver\r\n"));
    assert_eq!(client.ask("get nope"), "_\r\n");
}

#[test]
fn transactions_are_one_request() {
    let mut client = Client::new(false);
    client.ask("set {t}k 1");
    for (line, reply) in [
        ("exec", "-ERR EXEC without MULTI\r\n"),
        ("watch {t}k {t}other", "+OK\r\n"),
        ("multi", "+OK\r\n"),
        ("multi", "-ERR MULTI calls can not be nested\r\n"),
        ("incr {t}k", "+QUEUED\r\n"),
        ("ping x", "+QUEUED\r\n"),
        ("incr", "-ERR wrong number of arguments for 'incr' command\r\n"),
        ("exec", "-EXECABORT Transaction discarded because of previous errors.\r\n"),
        ("multi", "+OK\r\n"),
        ("incr {t}k", "+QUEUED\r\n"),
        ("ping x", "+QUEUED\r\n"),
        ("get {t}k", "+QUEUED\r\n"),
        ("exec", "*3\r\n:2\r\n$1\r\nx\r\n$1\r\n2\r\n"),
        ("multi", "+OK\r\n"),
        ("get {t}k", "+QUEUED\r\n"),
        ("get k", "+QUEUED\r\n"),
        ("exec", "-CROSSSLOT Keys in request don't hash to the same slot\r\n"),
        ("multi", "+OK\r\n"),
        ("scan 0", "-ERR Command not allowed inside a transaction\r\n"),
        ("discard", "+OK\r\n"),
        ("multi", "+OK\r\n"),
        ("exec", "*0\r\n"),
    ] {
        assert_eq!(client.ask(line), reply, "{line}");
    }
}

#[test]
fn commands_about_all_keys_stand_alone() {
    let mut client = Client::new(false);
    (0..7).for_each(|n| drop(client.ask(&format!("set k{n} v"))));
    let input = b"GET k1\r\nKEYS k*\r\nGET k2\r\n";
    let (used, taken) = client.send(input);
    assert_eq!((used, taken), (8, Taken::Pause), "a GET is under way");
    assert!(client.session.is_waiting());
    client.answer(0);
    assert!(!client.session.is_waiting());
    let (more, taken) = client.send(&input[used..]);
    assert_eq!((more, taken), (9, Taken::Pause), "KEYS is under way");
    let mut out = Vec::new();
    while out.is_empty() {
        assert!(client.session.is_waiting());
        out = client.answer(0);
    }
    assert!(out.starts_with(b"*7\r\n$2\r\nk0\r\n"));
    assert_eq!(client.send(&input[used + more..]).1, Taken::NeedMore { wanted: 1 });
}

#[test]
fn a_scan_gives_every_key_and_begins_again_when_its_cursor_is_unknown() {
    let mut client = Client::new(false);
    (0..7).for_each(|n| drop(client.ask(&format!("set k{n} v"))));
    let (mut cursor, mut found) = ("0".to_owned(), Vec::new());
    loop {
        let reply = client.ask(&format!("scan {cursor} count 2 match k*"));
        let mut lines = reply.split("\r\n").filter(|line| !line.starts_with(['*', '$']) && !line.is_empty());
        cursor = lines.next().expect("a cursor").to_owned();
        found.extend(lines.map(str::to_owned));
        if cursor == "0" {
            break;
        }
    }
    assert_eq!(found, ["k0", "k1", "k2", "k3", "k4", "k5", "k6"]);
    assert!(client.ask("scan 12345 count 2").contains("k0"), "from the start");
    assert!(!client.ask("scan 0 count 2 type list").contains("k0"));
    assert_eq!(client.ask("scan x"), "-ERR invalid cursor\r\n");
    assert_eq!(client.ask("scan 0 count 0"), "-ERR syntax error\r\n");
    assert!(client.ask("randomkey").starts_with("$2\r\nk"));
}

#[test]
fn a_node_names_the_node_that_has_a_slot() {
    let mut client = Client::new(true);
    let slot_of = |key: &str| Slot::of_key(key.as_bytes()).number();
    let (local, other) = ["a", "b", "c"].into_iter().partition::<Vec<_>, _>(|key| slot_of(key) % 2 == 1);
    assert_eq!(client.ask(&format!("set {} v", local[0])), "+OK\r\n");
    let moved = format!("-MOVED {} 127.0.0.1:7000\r\n", slot_of(other[0]));
    assert_eq!(client.ask(&format!("set {} v", other[0])), moved);
    assert_eq!(client.ask("mget a b"), "-CROSSSLOT Keys in request don't hash to the same slot\r\n");
}

#[test]
fn what_is_no_command_is_told_and_ends_the_connection() {
    let mut client = Client::new(false);
    assert_eq!(client.send(b"PING\r\n*x\r\nPING\r\n").1, Taken::Close);
    assert_eq!(client.session.take_out(), b"+PONG\r\n-ERR Protocol error: invalid multibulk length\r\n");
    let mut client = Client::new(false);
    assert_eq!(client.send(b"QUIT\r\nPING\r\n").1, Taken::Close);
    assert_eq!(client.session.take_out(), b"+OK\r\n");
}
