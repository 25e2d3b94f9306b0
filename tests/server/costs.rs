//! What requests cost the real server in calls of the kernel: sends, receives, entries of its rings, and all system
//! calls of its shards. What they cost in memory, messages and disk operations is counted by `tests/costs`.
//!
//! The client sends [`TURN`] requests at once, waits for all replies, and sends the next, so that all that the server
//! does is for these. How often an executor falls asleep meanwhile depends on the machine. That is told by membarrier,
//! which it calls then and only then, and what sleep costs, [`SLEEP`], is taken off; what is left repeats. Limits are
//! just above what was measured: lower them with what makes something cheaper.

use std::io::{Read, Write};
use std::thread;
use std::time::Duration;

use atlaskv::client::Client;
use atlaskv::metrics::MetricsSnapshot;
use atlaskv::protocol::{Request, resp};
use atlaskv::slot::{SLOT_COUNT, Slot};

use crate::harness::{Server, connect, disk_dir};
use crate::raw::{Raw, frame, set};
use crate::syscalls::{Traced, ring_entries};

/// Requests that are sent at once: few enough bytes for one segment of the loopback device.
const TURN: usize = 16;
/// Turns before those that are counted, and these.
const WARM: usize = 20;
const TURNS: usize = 200;
const VALUE: [u8; 100] = [b'v'; 100];

/// What is sent, over which protocol, and whose keys it is about. Connections are to shard 0.
#[derive(Clone, Copy, Debug)]
struct Case {
    is_redis: bool,
    is_set: bool,
    owner: usize,
}

/// Counts of a turn, or the most that it may have.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    /// Writes to sockets, as the server tells.
    sends: f64,
    /// Reads from them.
    receives: f64,
    /// Messages from shard to shard.
    messages: f64,
    /// Blocks of the log.
    blocks: f64,
    /// System calls that send, whether the socket takes anything or not.
    sendto: f64,
    /// The same of those that receive.
    recvfrom: f64,
    /// All system calls but these, of the rings, of sleep and of waking.
    others: f64,
    /// Entries of rings, without those of sleep.
    entries: f64,
    /// Calls of io_uring_enter, without those of sleep.
    enters: f64,
    /// Executors that fell asleep.
    sleeps: f64,
    /// Executors that were woken by another.
    wakes: f64,
}

impl Counts {
    fn parts(&self) -> [(&'static str, f64, &'static str); 11] {
        [
            ("sends", self.sends, "Connection::write_now: once for all replies of a turn"),
            ("receives", self.receives, "Connection::read_more: once for all that has come"),
            ("messages", self.messages, "Port::send: once for all of a turn"),
            ("blocks of the log", self.blocks, "who asks for a sync, and when a block is sealed"),
            ("calls of sendto", self.sendto, "sends that the socket does not take"),
            ("calls of recvfrom", self.recvfrom, "receives that find nothing"),
            ("other system calls", self.others, "whatever is new; `strace -f -c -p` names it"),
            ("entries of rings", self.entries, "disk operations, timers, sockets and wake-ups waited for"),
            ("calls of io_uring_enter", self.enters, "what is submitted by itself"),
            ("times asleep", self.sleeps, "what is waited for one after the other"),
            ("times woken by another shard", self.wakes, "messages that are not sent together"),
        ]
    }
}

/// What an executor that falls asleep costs beside the call of membarrier: entries by which it is woken, and calls that
/// submit them, wait, and look what has come.
const SLEEP: Counts = Counts { entries: 6.0, enters: 4.0, ..NOTHING };
const NOTHING: Counts = Counts {
    sends: 0.0,
    receives: 0.0,
    messages: 0.0,
    blocks: 0.0,
    sendto: 0.0,
    recvfrom: 0.0,
    others: 0.0,
    entries: 0.0,
    enters: 0.0,
    sleeps: 0.0,
    wakes: 0.0,
};

/// What a turn may cost.
fn limit(case: Case) -> Counts {
    // Measured 4 entries and 2 calls, whatever the protocol: while nothing else waits for the rings they are left alone.
    // Sleep until there is something: for that the
    // epoll is polled, by a duplicate of its descriptor that is closed again, and tells by a receive that fails. It is
    // asked once then, and once more before the next sleep.
    let own = Counts { entries: 6.0, enters: 4.0, sleeps: 1.0, ..NOTHING };
    let own = Counts { sends: 1.0, receives: 1.0, sendto: 1.0, recvfrom: 2.0, others: 5.0, ..own };
    // Measured 14 to 17 entries and 9 to 12 calls: each executor is woken by the other once. Sleep until then as well.
    let other = Counts { messages: 2.0, entries: 23.0, enters: 15.0, sleeps: 3.0, wakes: 2.0, ..own };
    let read = if case.owner == 0 { own } else { other };
    if !case.is_set {
        return read;
    }
    // A write to the log, and sleep until it is done. Measured 6 to 13 entries and 4 to 6 calls more: fewer are
    // submitted where it sleeps.
    Counts {
        blocks: 1.0,
        entries: read.entries + 14.0,
        enters: read.enters + 7.0,
        sleeps: read.sleeps + 1.0,
        ..read
    }
}

/// Of each part so much more than its limit is let pass: timers, and what this test itself asks.
const LEEWAY: f64 = 0.2;
/// How often what is beyond its limit is counted again: something else on the machine may have come between.
const ATTEMPTS: u32 = 5;

#[test]
fn requests_cost_no_more_calls_than_they_may() {
    let mut excess = Vec::new();
    for cores in [1, 2] {
        let dir = disk_dir();
        let server = Server::start(dir.path(), &["--cores", &cores.to_string(), "--oversubscribe"]);
        let mut client = connect(&server);
        let traced = Traced::begin(server.pid(), "shard-");
        // Clients of Redis don't choose their shard.
        let protocols = if cores == 1 { &[false, true][..] } else { &[false] };
        for is_redis in protocols.iter().copied() {
            for owner in 0..cores {
                // Those that are read were written before.
                for is_set in [true, false] {
                    let case = Case { is_redis, is_set, owner };
                    let attempt = |_| {
                        let counts = count(&server, &mut client, traced.as_ref(), cores, case);
                        println!("{cores} cores, {case:?}: {counts:.2?}");
                        beyond(&format!("{cores} cores, {case:?}"), &counts, &limit(case))
                    };
                    let attempts = (0..ATTEMPTS).map(attempt);
                    excess.extend(until_none(attempts));
                }
            }
        }
    }
    assert!(excess.is_empty(), "more than may be (limit() in tests/server/costs.rs):\n{}", excess.join("\n"));
}

/// Clients whose requests come together are answered together: with one entry into the kernel, not a call each.
#[test]
fn replies_to_many_clients_enter_the_kernel_together() {
    const CLIENTS: usize = 16;
    let dir = disk_dir();
    let server = Server::start(dir.path(), &["--cores", "1"]);
    let mut client = connect(&server);
    let mut raws: Vec<Raw> = (0..CLIENTS).map(|_| Raw::connect(server.address)).collect();
    // Where that can't be, only the sends themselves are counted.
    let traced = Traced::begin(server.pid(), "shard-");
    let mut request = Vec::new();
    command(&mut request, &[b"GET", b"absent"]);
    let attempt = |_| {
        let (sends, so_far) = (metrics(&mut client).sends, Asked::so_far(server.pid(), traced.as_ref()));
        for _ in 0..TURNS {
            // Who is traced takes long to wake up: nearly all are there when it looks.
            raws.iter_mut().for_each(|raw| raw.stream.write_all(&request).expect("the kernel takes it"));
            for raw in &mut raws {
                let mut reply = [0; b"$-1\r\n".len()];
                raw.stream.read_exact(&mut reply).expect("the server answers");
                assert_eq!(&reply, b"$-1\r\n");
            }
        }
        let asked = Asked::so_far(server.pid(), traced.as_ref());
        let sends = metrics(&mut client).sends - sends;
        assert!(sends >= (TURNS * CLIENTS) as u64, "{sends} sends in {TURNS} turns");
        let alone = (asked.sendto - so_far.sendto) as f64 / TURNS as f64;
        println!("{sends} sends in {TURNS} turns of {CLIENTS} clients, {alone:.2} calls of sendto a turn");
        let most = 2.0;
        (alone > most)
            .then(|| format!("{alone:.2} calls of sendto a turn, and {most} are allowed"))
            .into_iter()
            .collect()
    };
    let excess = until_none((0..ATTEMPTS).map(attempt));
    assert!(excess.is_empty(), "look at server/sends.rs: {excess:?}");
}

/// The first of these that is empty, or the shortest.
fn until_none(attempts: impl Iterator<Item = Vec<String>>) -> Vec<String> {
    let mut least: Option<Vec<String>> = None;
    for attempt in attempts {
        if attempt.is_empty() {
            return attempt;
        }
        if least.as_ref().is_none_or(|least| attempt.len() < least.len()) {
            least = Some(attempt);
        }
    }
    least.unwrap_or_default()
}

fn beyond(name: &str, counts: &Counts, limit: &Counts) -> Vec<String> {
    let parts = counts.parts().into_iter().zip(limit.parts());
    let parts = parts.filter(|((_, count, _), (_, limit, _))| *count > *limit + LEEWAY);
    let tell = |((part, count, look), (_, limit, _)): ((_, f64, _), (_, f64, _))| {
        format!(
            "{name}: {count:.2} {part} a turn of {TURN} requests, and {limit} are allowed; look at {look}"
        )
    };
    parts.map(tell).collect()
}

/// Counts what a turn costs.
fn count(server: &Server, client: &mut Client, traced: Option<&Traced>, cores: usize, case: Case) -> Counts {
    let mut raw = Raw::connect(server.address);
    if !case.is_redis {
        let answer = raw.hello(1, Some(0)).expect("the server answers");
        assert_eq!(answer.shard, Some(0));
    }
    let (requests, mut replies) = (requests(cores, case), vec![0; reply_bytes(case)]);
    let mut exchange = || {
        raw.stream.write_all(&requests).expect("the server reads");
        raw.stream.read_exact(&mut replies).expect("the server answers");
        assert!(!replies.starts_with(b"-"), "{}", String::from_utf8_lossy(&replies));
    };
    (0..WARM).for_each(|_| exchange());
    let before = metrics(client);
    // What that has begun comes to its end.
    thread::sleep(Duration::from_millis(20));
    let mut asked = vec![Asked::so_far(server.pid(), traced)];
    for _ in 0..TURNS {
        exchange();
        asked.push(Asked::so_far(server.pid(), traced));
    }
    let after = metrics(client);
    let each = |count: u64| count as f64 / TURNS as f64;
    let forwarded = after.forwarded - before.forwarded;
    assert_eq!(
        forwarded,
        if case.owner == 0 { 0 } else { (TURN * TURNS) as u64 },
        "keys are where they should be"
    );
    let of_all = |part: fn(&Asked) -> u64| each(part(&asked[TURNS]) - part(&asked[0]));
    let known = Counts {
        sends: each(after.sends - before.sends),
        receives: each(after.receives - before.receives),
        messages: each(after.mesh_messages - before.mesh_messages),
        blocks: each(after.wal_blocks - before.wal_blocks),
        ..NOTHING
    };
    if traced.is_none() {
        // How often executors slept is not known.
        return known;
    }
    let of_turn =
        |part: fn(&Asked) -> f64| quartile(asked.windows(2).map(|pair| part(&pair[1]) - part(&pair[0])));
    Counts {
        sendto: of_all(|asked| asked.sendto),
        recvfrom: of_all(|asked| asked.recvfrom),
        others: of_all(|asked| asked.others),
        entries: of_turn(|asked| asked.entries as f64 - asked.sleeps as f64 * SLEEP.entries),
        enters: of_turn(|asked| asked.enters as f64 - asked.sleeps as f64 * SLEEP.enters),
        sleeps: of_turn(|asked| asked.sleeps as f64),
        wakes: of_turn(|asked| asked.wakes as f64),
        ..known
    }
}

/// What a quarter of all turns is below: of some the end is counted with the next one.
fn quartile(turns: impl Iterator<Item = f64>) -> f64 {
    let mut turns: Vec<f64> = turns.collect();
    turns.sort_by(f64::total_cmp);
    turns[turns.len() / 4]
}

/// What was asked of the kernel so far.
#[derive(Clone, Copy)]
struct Asked {
    entries: u64,
    enters: u64,
    sendto: u64,
    recvfrom: u64,
    sleeps: u64,
    wakes: u64,
    others: u64,
}

impl Asked {
    /// System calls are 0 where they are not traced.
    fn so_far(process: u32, traced: Option<&Traced>) -> Asked {
        let of = |number: libc::c_long| traced.map_or(0, |traced| traced.count(number));
        let (enters, sendto, recvfrom) =
            (of(libc::SYS_io_uring_enter), of(libc::SYS_sendto), of(libc::SYS_recvfrom));
        let (sleeps, wakes) = (of(libc::SYS_membarrier), of(libc::SYS_write));
        let all = traced.map_or(0, Traced::all);
        // One that came in between is of the next turn.
        let others = all.saturating_sub(enters + sendto + recvfrom + sleeps + wakes);
        Asked { entries: ring_entries(process), enters, sendto, recvfrom, sleeps, wakes, others }
    }
}

/// Counters of all shards.
fn metrics(client: &mut Client) -> MetricsSnapshot {
    let mut metrics = MetricsSnapshot::default();
    for line in client.stats("total").expect("the server answers").lines() {
        if let Some((name, value)) = line.split_once('=')
            && let Ok(value) = value.parse()
        {
            metrics.set(name, value);
        }
    }
    metrics
}

/// A turn of requests.
fn requests(cores: usize, case: Case) -> Vec<u8> {
    // A new store divides its slots evenly, in order.
    let owner = |key: &[u8]| usize::from(Slot::of_key(key).number()) * cores / usize::from(SLOT_COUNT);
    let keys = (0..).map(|n| format!("key:{n:012}").into_bytes()).filter(|key| owner(key) == case.owner);
    let mut bytes = Vec::new();
    for (id, key) in (0..).zip(keys.take(TURN)) {
        match (case.is_redis, case.is_set) {
            (false, true) => bytes.extend(frame(id, &set(&key, &VALUE))),
            (false, false) => bytes.extend(frame(id, &Request::Get { key: &key })),
            (true, true) => command(&mut bytes, &[b"SET", &key, &VALUE]),
            (true, false) => command(&mut bytes, &[b"GET", &key]),
        }
    }
    bytes
}

fn command(bytes: &mut Vec<u8>, words: &[&[u8]]) {
    resp::array(bytes, words.len());
    words.iter().for_each(|word| resp::bulk(bytes, word));
}

/// Bytes of the replies to a turn.
fn reply_bytes(case: Case) -> usize {
    use atlaskv::protocol::binary::HEADER_BYTES;
    TURN * match (case.is_redis, case.is_set) {
        (false, true) => HEADER_BYTES,
        (false, false) => HEADER_BYTES + VALUE.len(),
        (true, true) => b"+OK\r\n".len(),
        (true, false) => b"$100\r\n\r\n".len() + VALUE.len(),
    }
}
