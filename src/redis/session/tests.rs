//! Sessions whose shards are played by a map.

mod admin;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::base::Lsn;
use crate::protocol::binary::{
    HEADER_BYTES, PageEncoder, Step as Part, ValueListEncoder, decode_header, decode_request, encode_reply,
};
use crate::protocol::{Action, ClientsAction, Condition, Limits, OpCode, Reply, Request, ScanEntry};
use crate::redis::{Command, Keyspace, MemoryKeyspace, evaluate};
use crate::slot::SLOT_COUNT;

struct Two;

impl Nodes for Two {
    fn local(&self) -> usize {
        1
    }

    fn owner(&self, slot: Slot) -> usize {
        usize::from(slot.number() % 2)
    }

    fn is_moving(&self, slot: Slot) -> bool {
        slot == Slot::of_key(b"moving")
    }

    fn count(&self) -> usize {
        2
    }

    fn ranges(&self) -> Vec<(u16, u16, usize)> {
        (0..SLOT_COUNT).map(|slot| (slot, slot, usize::from(slot % 2))).collect()
    }

    fn epoch(&self) -> u64 {
        7
    }
}

thread_local! {
    /// How often the server was to be stopped, by sessions of one test.
    static STOPS: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

struct Stoppable;

impl Host for Stoppable {
    fn wall_ms(&self) -> u64 {
        0
    }

    fn stop(&self) {
        STOPS.set(STOPS.get() + 1);
    }
}

/// Has in memory what begins with `near`.
struct Few;

impl Reader for Few {
    fn read(&self, keys: &[&[u8]], take: &mut dyn FnMut(Option<&[u8]>)) -> usize {
        let near = keys.iter().take_while(|key| key.starts_with(b"near"));
        near.inspect(|key| take(Some(*key).copied().filter(|key| *key != b"near:absent"))).count()
    }
}

fn context(is_cluster: bool) -> Rc<Context> {
    Rc::new(Context::new(ContextParts {
        limits: Limits::for_values(1 << 20),
        nodes: Box::new(Two),
        cluster: is_cluster.then(|| {
            let ids = vec!["0".repeat(40), "1".repeat(40)];
            Arc::new(Cluster { ports: vec![7000, 7001], ids, host: None, serves_all: false })
        }),
        metrics: Rc::default(),
        host: Box::new(Stoppable),
        reader: Box::new(Few),
        saves: Arc::new(SaveStatus::new(1_000)),
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
    /// Whether reads may be answered at once.
    is_idle: bool,
}

impl Client {
    fn new(is_node: bool) -> Client {
        let client = super::Client {
            peer: "10.0.0.1:99".to_owned(),
            local: "127.0.0.1:7001".to_owned(),
            local_ip: "127.0.0.1".to_owned(),
            is_node,
        };
        let session = Session::new(context(is_node), client, 1);
        Client {
            session,
            store: MemoryKeyspace::new(5_000),
            keys: BTreeMap::new(),
            asked: Vec::new(),
            clients: String::new(),
            told: Vec::new(),
            paused: None,
            is_idle: false,
        }
    }

    /// Sends bytes; how many were taken in, and what came of the rest.
    fn send(&mut self, input: &[u8]) -> (usize, Taken) {
        let (mut used, mut frames) = (0, Vec::new());
        let now = Now { paused: self.paused, is_idle: self.is_idle };
        let taken = self.session.take_in_from(input, &mut used, &mut frames, now);
        self.keep(&frames);
        (used, taken)
    }

    fn keep(&mut self, mut frames: &[u8]) {
        while !frames.is_empty() {
            let header =
                decode_header(frames, &context(false).limits).expect("it is right").expect("it is whole");
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
        let limits = context(false).limits;
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
                    ClientsAction::Disconnect(ids) => {
                        ids.iter().filter(|id| self.clients.contains(&format!("id={id} "))).count()
                    }
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

/// Keys of which the first is the node's and the second is not.
fn two_keys() -> [&'static str; 2] {
    let is_local = |key: &&str| Slot::of_key(key.as_bytes()).number() % 2 == 1;
    let (local, other): (Vec<_>, Vec<_>) = ["a", "b", "c", "d"].into_iter().partition(is_local);
    [local[0], other[0]]
}

#[test]
fn a_node_names_the_node_that_has_a_slot() {
    let mut client = Client::new(true);
    let [local, other] = two_keys();
    assert_eq!(client.ask(&format!("set {local} v")), "+OK\r\n");
    let slot = Slot::of_key(other.as_bytes()).number();
    let moved = format!("-MOVED {slot} 127.0.0.1:7000\r\n");
    assert_eq!(client.ask(&format!("set {other} v")), moved);
    assert_eq!(client.ask(&format!("exists {other} {other}")), moved);
    assert_eq!(client.ask("mget a b"), "-CROSSSLOT Keys in request don't hash to the same slot\r\n");
    // Within MULTI as well, and then EXEC does nothing.
    assert_eq!(client.ask("multi"), "+OK\r\n");
    assert_eq!(client.ask(&format!("set {other} v")), moved);
    assert_eq!(client.ask("exec"), "-EXECABORT Transaction discarded because of previous errors.\r\n");
    let counted = client.session.context.metrics.snapshot();
    assert_eq!((counted.errors_moved, counted.errors_crossslot, counted.errors_execabort), (3, 1, 1));
    // Of one that just moves it is not known yet who has it: the request waits in the mesh.
    let is_elsewhere = Slot::of_key(b"moving").number().is_multiple_of(2);
    assert!(is_elsewhere, "the test's own key");
    assert_eq!(client.ask("set moving v"), "+OK\r\n");
}

#[test]
fn a_node_tells_of_all_nodes() {
    let mut client = Client::new(true);
    let zeros = "0".repeat(40);
    assert_eq!(client.ask("cluster myid"), format!("$40\r\n{}\r\n", "1".repeat(40)));
    assert_eq!(client.ask("cluster keyslot foo"), ":12182\r\n");
    assert!(client.ask("cluster info").contains("cluster_state:ok\r\n"));
    let nodes = client.ask("cluster nodes");
    assert!(
        nodes.contains(&format!("{zeros} 127.0.0.1:7000@0 master - 0 0 7 connected 0 2 4 ")),
        "{nodes:.200}"
    );
    assert!(nodes.contains("127.0.0.1:7001@0 myself,master - 0 0 7 connected 1 3 5 "), "{nodes:.200}");
    let slots = client.ask("cluster slots");
    let first = format!(
        "*16384\r\n*3\r\n:0\r\n:0\r\n*4\r\n$9\r\n127.0.0.1\r\n:7000\r\n$40\r\n{zeros}\r\n*0\r\n*3\r\n"
    );
    assert!(slots.starts_with(&first), "{slots:.200}");
    assert!(
        client.ask("cluster shards").starts_with("*2\r\n*4\r\n$5\r\nslots\r\n*16384\r\n:0\r\n:0\r\n:2\r\n")
    );
    assert_eq!(client.ask(&format!("cluster replicas {zeros}")), "*0\r\n");
    assert_eq!(client.ask("cluster replicas x"), "-ERR Unknown node x\r\n");
    assert_eq!(client.ask("readonly"), "+OK\r\n");
    assert_eq!(client.ask("select 1"), "-ERR SELECT is not allowed in cluster mode\r\n");
    assert!(client.ask("info server").contains("redis_mode:cluster\r\n"));
    assert!(client.ask("info server").contains("tcp_port:7001\r\n"));
    let mut client = Client::new(false);
    for command in ["cluster slots", "cluster info", "readonly", "asking"] {
        assert_eq!(client.ask(command), "-ERR This instance has cluster support disabled\r\n");
    }
}

#[test]
fn keys_of_a_slot_are_found_among_all() {
    let mut client = Client::new(true);
    let [local, _] = two_keys();
    let slot = Slot::of_key(local.as_bytes()).number();
    for key in ["1", "2", "3"] {
        assert_eq!(client.ask(&format!("set {{{local}}}{key} v")), "+OK\r\n");
    }
    assert_eq!(client.ask(&format!("set {local} v")), "+OK\r\n");
    assert_eq!(client.ask(&format!("cluster countkeysinslot {slot}")), ":4\r\n");
    assert_eq!(client.ask(&format!("cluster countkeysinslot {}", slot + 1)), ":0\r\n");
    let found = client.ask(&format!("cluster getkeysinslot {slot} 2"));
    assert!(found.starts_with("*2\r\n"), "{found}");
    assert!(client.ask(&format!("cluster getkeysinslot {slot} 100")).starts_with("*4\r\n"));
    assert_eq!(client.ask(&format!("cluster getkeysinslot {slot} 0")), "*0\r\n");
    assert_eq!(client.ask("cluster countkeysinslot 16384"), "-ERR Invalid slot\r\n");
    assert_eq!(client.ask("cluster getkeysinslot 0 -1"), "-ERR Invalid slot or number of keys\r\n");
    assert_eq!(client.ask("cluster getkeysinslot x 1"), "-ERR value is not an integer or out of range\r\n");
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

#[test]
fn a_long_answer_to_keys_needs_room_before_its_next_page() {
    let mut client = Client::new(false);
    let key = |n: usize| format!("{n:0>1000}");
    (0..200).for_each(|n| assert_eq!(client.ask(&format!("SET {} v", key(n))), "+OK\r\n"));
    let (used, _) = client.send(b"KEYS *\r\n");
    assert_eq!(used, 8);
    let (mut pages, in_reply) = (0, "$1000\r\n\r\n".len() + 1_000);
    while !client.asked.is_empty() {
        // The map gives two keys a page.
        assert_eq!(client.session.needs_room(), 2 * pages * in_reply > 64 << 10, "after {pages} pages");
        assert_eq!(client.session.first(), 200, "it is not answered");
        let out = client.answer(0);
        pages += 1;
        assert_eq!(out.is_empty(), !client.asked.is_empty());
    }
    assert!(pages == 100 && !client.session.needs_room() && !client.session.has_frames());
}

#[test]
fn gets_that_nothing_is_before_are_answered_at_once_and_others_go_the_long_way() {
    let mut client = Client::new(false);
    client.is_idle = true;
    let get = |key: &str| format!("*2\r\n$3\r\nGET\r\n${}\r\n{key}\r\n", key.len());
    let input = [get("near:1"), get("near:absent"), get("far"), get("near:2")].concat();
    assert_eq!(client.send(input.as_bytes()).0, input.len());
    assert_eq!(
        client.session.take_out(),
        b"$6\r\nnear:1\r\n$-1\r\n",
        "up to the first that is not in memory"
    );
    assert_eq!(client.asked.len(), 2, "what is behind it waits for it");
    assert_eq!([client.answer(0), client.answer(0)].concat(), b"$-1\r\n$-1\r\n", "the map has none of them");
    // Something of this client is still under way.
    client.is_idle = false;
    client.send(get("near:1").as_bytes());
    assert_eq!((client.session.take_out().len(), client.asked.len()), (0, 1));
    client.answer(0);
    client.session.take_out();
    client.is_idle = true;
    // In part, and in whole.
    let command = get("near:1");
    assert_eq!(client.send(&command.as_bytes()[..20]).0, 0);
    assert_eq!(client.send(command.as_bytes()).0, command.len(), "the parser goes on with what it began");
    client.answer(0);
    client.session.take_out();
    client.send(b"*1\r\n$5\r\nMULTI\r\n");
    client.session.take_out();
    client.send(get("near:1").as_bytes());
    assert_eq!(client.session.take_out(), b"+QUEUED\r\n");
}
