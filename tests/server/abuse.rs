//! Clients that do what no client should. Whatever they do, the server lives, its memory stays bounded,
//! and a witness beside them is served.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use atlaskv::base::Lsn;
use atlaskv::client::{Client, Config, Response};
use atlaskv::error::Code;
use atlaskv::protocol::binary::{KeyList, REQUEST_MAGIC, TOO_MANY_CONNECTIONS};
use atlaskv::protocol::{HelloRequest, Request};
use atlaskv::slot::Slot;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::SockRef;
use tempfile::TempDir;

use crate::harness::{Server, connect, disk_dir, eventually, open_sockets};
use crate::raw::{Raw, frame, set};

const MEMORY_MIB: u64 = 128;
/// What a server may use beyond its `--memory`, code and stacks included.
const MEMORY_SLACK_MIB: u64 = 64;

/// A server that is about to be abused, and a client that should not notice.
struct Victim {
    server: Server,
    witness: Client,
    _dir: TempDir,
}

impl Victim {
    fn start(arguments: &[&str]) -> Victim {
        let dir = disk_dir();
        let memory = format!("{MEMORY_MIB}MiB");
        let mut all = vec!["--cores", "2", "--oversubscribe", "--memory", &memory];
        all.extend(arguments);
        if !arguments.contains(&"--max-value-size") {
            all.extend(["--max-value-size", "1MiB"]);
        }
        let server = Server::start(dir.path(), &all);
        let witness = connect(&server);
        let mut victim = Victim { server, witness, _dir: dir };
        victim.check();
        victim
    }

    /// The witness is served by both shards, and quickly.
    fn check(&mut self) {
        let begin = Instant::now();
        for at in 0..8 {
            let key = format!("witness {at}");
            self.witness.set(key.as_bytes(), b"I was here").expect("the witness is served");
            let found = self.witness.get(key.as_bytes()).expect("the witness is served");
            assert_eq!(found.expect("just written").value, b"I was here");
        }
        // Less than the half minute for which a client that takes no replies may be waited for.
        assert!(begin.elapsed() < Duration::from_secs(20), "the witness waited {:?}", begin.elapsed());
    }

    fn memory_mib(&self) -> u64 {
        self.status_mib("VmRSS:")
    }

    fn peak_memory_mib(&self) -> u64 {
        self.status_mib("VmHWM:")
    }

    fn status_mib(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.server.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() >> 10
    }

    /// Everyone but the witness is gone, or will be soon; the server stops well and never complained.
    fn end(mut self) {
        self.check();
        assert!(self.memory_mib() < MEMORY_MIB + MEMORY_SLACK_MIB, "{} MiB", self.memory_mib());
        drop(self.witness);
        let (pid, sockets) = (self.server.pid(), self.server.sockets);
        eventually("all clients are gone", || open_sockets(pid) == Some(sockets));
        let (status, log) = self.server.stop();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
    }
}

/// A key that lives on the given half of the slots, which is a shard's.
fn key_of(shard: usize, number: usize) -> Vec<u8> {
    let on_shard = |key: &Vec<u8>| usize::from(Slot::of_key(key).number()) / 8192 == shard;
    (0..).map(|at| format!("k{number}.{at}").into_bytes()).find(on_shard).expect("half of them are")
}

#[test]
fn who_never_reads_is_paused_and_then_disconnected() {
    let mut victim = Victim::start(&["--stall-timeout", "1s"]);
    let value = vec![b'v'; 256 << 10];
    victim.witness.set(b"large", &value).unwrap();
    let mut deaf: Vec<Raw> = (0..8).map(|_| Raw::connect(victim.server.address)).collect();
    let request = frame(7, &Request::Get { key: b"large" });
    // Each asks for 1 GiB, as far as the server lets it.
    for raw in &mut deaf {
        raw.stream.set_nonblocking(true).unwrap();
    }
    for _ in 0..4096 {
        for raw in &mut deaf {
            match raw.stream.write(&request) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // It was disconnected already.
                Err(_) => {}
            }
        }
    }
    let memory = victim.memory_mib();
    assert!(memory < MEMORY_MIB + MEMORY_SLACK_MIB, "{memory} MiB");
    victim.check();
    // The witness has one connection to each shard.
    let (pid, left) = (victim.server.pid(), victim.server.sockets + 2);
    eventually("they are disconnected", || open_sockets(pid) == Some(left));
    drop(deaf);
    victim.end();
}

#[test]
fn who_reads_slowly_gets_everything() {
    let victim = Victim::start(&[]);
    let mut raw = Raw::connect(victim.server.address);
    let value = vec![b'v'; 300_000];
    raw.set(1, b"large", &value).unwrap();
    for id in 0..100 {
        raw.send_get(id, b"large");
    }
    // Replies come in any order; each comes once.
    let mut ids = Vec::new();
    for read in 0..110 {
        let answer = raw.answer().unwrap();
        let is_right =
            if answer.id < 1000 { answer.values == [value.as_slice()] } else { answer.status == 0 };
        assert!(is_right, "{answer:?}");
        ids.push(answer.id);
        if read % 10 == 0 && read < 100 {
            raw.ping_behind(1000 + read);
        }
    }
    ids.sort_unstable();
    assert_eq!(ids, (0..100).chain((1000..1100).step_by(10)).collect::<Vec<_>>());
    drop(raw);
    victim.end();
}

#[test]
fn bytes_may_come_one_at_a_time() {
    let mut victim = Victim::start(&[]);
    let mut raw = Raw::connect(victim.server.address);
    let mut bytes = frame(1, &set(b"slow", b"value"));
    bytes.extend(frame(2, &Request::Get { key: b"slow" }));
    bytes.extend(frame(3, &Request::Hello(HelloRequest { version_min: 1, version_max: 1, shard: None })));
    for byte in bytes {
        raw.stream.write_all(&[byte]).unwrap();
    }
    // What waits for nothing may be answered first.
    let mut answers: Vec<_> = (0..3).map(|_| raw.answer().unwrap()).collect();
    answers.sort_by_key(|answer| answer.id);
    assert_eq!(
        answers.iter().map(|answer| (answer.id, answer.status)).collect::<Vec<_>>(),
        [(1, 0), (2, 0), (3, 0)]
    );
    assert_eq!(answers[1].values, [b"value"]);
    victim.check();
    drop(raw);
    victim.end();
}

#[test]
fn random_and_damaged_bytes_hurt_nobody_else() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut victim = Victim::start(&[]);
    for round in 0..300 {
        let mut bytes: Vec<u8> = (0..rng.usize(2..4000)).map(|_| rng.u8(..)).collect();
        if round % 3 > 0 {
            let value = vec![b'x'; rng.usize(..2000)];
            let mut good = frame(rng.u64(..), &set(b"damaged", &value));
            good.extend(frame(rng.u64(..), &Request::Get { key: b"damaged" }));
            good.extend(frame(rng.u64(..), &Request::Stats { section: "" }));
            let at = rng.usize(..good.len());
            good[at] = rng.u8(..);
            // Most of them in the header.
            let at = rng.usize(2..40);
            good[at] ^= 1 << rng.u8(..8);
            if round % 3 == 1 {
                bytes.truncate(40);
                bytes[..2].copy_from_slice(&REQUEST_MAGIC);
            }
            good.extend(bytes);
            bytes = good;
        }
        let mut raw = Raw::connect(victim.server.address);
        // The server may close before it has read all.
        let _ = raw.stream.write_all(&bytes);
        let _ = raw.stream.shutdown(Shutdown::Write);
        let mut replies = Vec::new();
        if let Err(error) = raw.stream.read_to_end(&mut replies) {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "seed {seed}, round {round}");
        }
        if round % 50 == 0 {
            victim.check();
        }
    }
    victim.end();
}

#[test]
fn who_has_closed_its_half_gets_all_its_replies() {
    let victim = Victim::start(&[]);
    for _ in 0..20 {
        let mut raw = Raw::connect(victim.server.address);
        let mut bytes = Vec::new();
        for id in 0..200 {
            let key = format!("half {id}");
            bytes.extend(frame(2 * id, &set(key.as_bytes(), key.as_bytes())));
            bytes.extend(frame(2 * id + 1, &Request::Get { key: key.as_bytes() }));
        }
        // And half a frame more.
        bytes.extend(&frame(9, &Request::Get { key: b"key" })[..20]);
        raw.stream.write_all(&bytes).unwrap();
        raw.stream.shutdown(Shutdown::Write).unwrap();
        let mut ids: Vec<u64> = (0..400).map(|_| raw.answer().unwrap().id).collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..400).collect::<Vec<_>>());
        assert_eq!(raw.answer().unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }
    victim.end();
}

#[test]
fn resets_amid_requests_leave_nothing_behind() {
    let mut victim = Victim::start(&[]);
    let value = vec![b'r'; 20_000];
    for round in 0..200 {
        let mut raw = Raw::connect(victim.server.address);
        SockRef::from(&raw.stream).set_linger(Some(Duration::ZERO)).unwrap();
        for id in 0..round % 20 {
            let key = key_of(id as usize % 2, id as usize);
            raw.stream.write_all(&frame(id, &set(&key, &value))).unwrap();
            raw.send_get(100 + id, &key);
        }
        if round % 3 == 0 {
            let _ = raw.answer_if_any();
        }
        // Dropped with a reset, whatever is on its way.
        drop(raw);
    }
    victim.check();
    victim.end();
}

#[test]
fn the_largest_frames_in_parallel_are_taken_and_larger_ones_refused() {
    const LARGEST: usize = 4 << 20;
    let mut victim = Victim::start(&["--max-value-size", "4MiB"]);
    let address = victim.server.address;
    thread::scope(|scope| {
        for client in 0..6u8 {
            scope.spawn(move || {
                let mut raw = Raw::connect(address);
                let value = vec![b'a' + client; LARGEST];
                for round in 0..4 {
                    let key = key_of(round % 2, usize::from(client));
                    let answer = raw.set(1, &key, &value).unwrap();
                    assert_eq!((answer.id, answer.status), (1, 0), "{:?}", answer.refusal());
                    let found = raw.get(2, &key).unwrap();
                    assert!(found.values == [value.as_slice()], "{found:?}");
                }
                // One byte more is refused, and the next request finds its place in the stream.
                let answer = raw.set(3, b"too large", &vec![b'x'; LARGEST + 1]).unwrap();
                assert_eq!((answer.id, answer.refusal()), (3, Some(Code::ValueTooLarge)));
                raw.ping(4).unwrap();
                // A frame beyond all limits is refused, and the connection with it.
                let answer = raw.set(5, b"far too large", &vec![b'x'; 12 << 20]);
                // The server may close before it has read all that, which resets the connection.
                if let Ok(answer) = answer {
                    assert_eq!((answer.id, answer.refusal()), (5, Some(Code::FrameTooLarge)));
                    assert!(raw.answer().is_err(), "the connection is closed");
                }
            });
        }
    });
    victim.check();
    victim.end();
}

#[test]
fn keys_and_values_may_be_of_exactly_the_largest_size() {
    let victim = Victim::start(&[]);
    let mut raw = Raw::connect(victim.server.address);
    let (key, value) = (vec![b'k'; 65_535], vec![b'v'; 1 << 20]);
    assert_eq!(raw.set(1, &key, &value).unwrap().status, 0);
    let found = raw.get(2, &key).unwrap();
    assert!(found.values == [value], "{found:?}");
    assert_eq!(raw.set(3, b"k", b"").unwrap().status, 0);
    assert_eq!(raw.get(4, b"k").unwrap().values, [b""]);
    let refused = raw.set(5, b"", b"value").unwrap();
    assert_eq!(refused.refusal(), Some(Code::InvalidKey));
    drop(raw);
    victim.end();
}

#[test]
fn two_thousand_idle_connections_are_no_burden() {
    const IDLE: usize = 2_000;
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|limit| limit < 3 * IDLE as u64) {
        eprintln!("skipped: this user may have only {:?} files open", limit.maximum);
        return;
    }
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();
    let mut victim = Victim::start(&[]);
    let before = victim.memory_mib();
    let mut idle: Vec<Raw> = (0..IDLE).map(|_| Raw::connect(victim.server.address)).collect();
    // Every tenth has said something.
    idle.iter_mut().step_by(10).for_each(|raw| raw.ping(1).unwrap());
    let (pid, all) = (victim.server.pid(), victim.server.sockets + 2 + IDLE);
    eventually("all are accepted", || open_sockets(pid) == Some(all));
    victim.check();
    let grown = victim.memory_mib().saturating_sub(before);
    assert!(grown < 40, "{grown} MiB for {IDLE} idle connections");
    drop(idle);
    victim.end();
}

#[test]
fn a_pipeline_of_ten_thousand_over_both_shards_is_answered_in_full() {
    const REQUESTS: usize = 10_000;
    let mut victim = Victim::start(&[]);
    let address = victim.server.address;
    for is_shard_aware in [false, true] {
        let config = Config { is_shard_aware, ..Config::new(&address.to_string()) };
        let mut client = Client::connect(config).unwrap();
        let key = |at: usize| format!("deep {at}").into_bytes();
        let mut pipeline = client.pipeline();
        for at in 0..REQUESTS / 2 {
            pipeline.set(&key(at), &key(at));
            pipeline.get(&key(at));
        }
        for (at, answer) in pipeline.run().into_iter().enumerate() {
            match answer.unwrap() {
                Response::Outcome(_) => assert_eq!(at % 2, 0),
                Response::Value(found) => assert_eq!(found.unwrap().value, key(at / 2)),
                other => panic!("{other:?}"),
            }
        }
    }
    // And by hand, all sent before the first reply is read, from a socket with little room.
    let mut raw = Raw::connect(address);
    let mut bytes = Vec::new();
    (0..REQUESTS)
        .for_each(|id| bytes.extend(frame(id as u64, &Request::Get { key: &key_of(id % 2, id % 64) })));
    let mut reader = Raw { stream: raw.stream.try_clone().unwrap(), received: Vec::new() };
    thread::scope(|scope| {
        scope.spawn(|| raw.stream.write_all(&bytes).unwrap());
        let mut ids: Vec<_> = (0..REQUESTS).map(|_| reader.answer().unwrap().id).collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..REQUESTS as u64).collect::<Vec<_>>());
    });
    drop((raw, reader));
    victim.check();
    victim.end();
}

#[test]
fn mget_of_large_values_over_both_shards_is_whole_or_refused() {
    let victim = Victim::start(&[]);
    let mut raw = Raw::connect(victim.server.address);
    let value = |at: usize| vec![b'a' + (at % 26) as u8; 12_000];
    let mut keys = KeyList::default();
    for at in 0..64 {
        let key = key_of(at % 2, at);
        raw.set(1, &key, &value(at)).unwrap();
        keys.push(&key);
    }
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut raw = Raw::connect(victim.server.address);
                for id in 0..40 {
                    let answer = raw.ask(id, &Request::Mget { keys: keys.keys() }).unwrap();
                    assert_eq!((answer.id, answer.refusal()), (id, None));
                    assert_eq!(answer.values.len(), 64);
                    answer
                        .values
                        .iter()
                        .enumerate()
                        .for_each(|(at, found)| assert!(found == &value(at), "{at}"));
                }
            });
        }
    });
    // More than a frame holds.
    let large = vec![b'x'; 1 << 20];
    let mut keys = KeyList::default();
    for at in 100..104 {
        raw.set(1, &key_of(at % 2, at), &large).unwrap();
        keys.push(&key_of(at % 2, at));
    }
    let answer = raw.ask(5, &Request::Mget { keys: keys.keys() }).unwrap();
    assert_eq!((answer.id, answer.refusal()), (5, Some(Code::ReplyTooLarge)));
    raw.ping(6).unwrap();
    drop(raw);
    victim.end();
}

/// An owner waits after each MiB of replies until they have left. It was told to go on only by a connection
/// that came by for another reason: a client that had sent all it wanted to got no more.
#[test]
fn replies_of_another_shard_beyond_the_backlog_all_come() {
    let victim = Victim::start(&[]);
    for round in 0..4 {
        // Connections go to the shards in turn, so half of these are not on the owner.
        let key = key_of(round / 2, 1);
        let mut raw = Raw::connect(victim.server.address);
        raw.set(1, &key, &vec![b'v'; 300_000]).unwrap();
        let bytes: Vec<u8> = (0..40).flat_map(|id| frame(id, &Request::Get { key: &key })).collect();
        raw.stream.write_all(&bytes).unwrap();
        if round % 2 == 1 {
            raw.stream.shutdown(Shutdown::Write).unwrap();
        }
        let mut ids: Vec<u64> = (0..40).map(|_| raw.answer().unwrap().id).collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..40).collect::<Vec<_>>());
    }
    victim.end();
}

/// What a server keeps for requests that it has begun was bounded by their number, not by their replies.
#[test]
fn small_requests_for_large_replies_are_paused() {
    let mut victim = Victim::start(&["--stall-timeout", "1s"]);
    let value = vec![b'v'; 1 << 20];
    let keys: Vec<Vec<u8>> = (0..2).map(|shard| key_of(shard, 1)).collect();
    for (at, key) in keys.iter().enumerate() {
        // Not durable yet when they are read.
        let mut bytes = frame(0, &set(key, &value));
        (1..1000).for_each(|id| bytes.extend(frame(id, &Request::Get { key })));
        let mut raw = Raw::connect(victim.server.address);
        raw.stream.write_all(&bytes).unwrap();
        for read in 0..20 {
            assert_eq!(raw.answer().unwrap().status, 0, "{at} {read}");
        }
    }
    // Each shard's part of the answer is kept until the other has come.
    let mut list = KeyList::default();
    for key in &keys {
        victim.witness.set(key, &value[..value.len() / 3]).unwrap();
        list.push(key);
    }
    let bytes: Vec<u8> = (0..1000).flat_map(|id| frame(id, &Request::Mget { keys: list.keys() })).collect();
    let mut raw = Raw::connect(victim.server.address);
    raw.stream.write_all(&bytes).unwrap();
    for _ in 0..20 {
        assert_eq!(raw.answer().unwrap().values.len(), 2);
    }
    let most = victim.peak_memory_mib();
    assert!(most < MEMORY_MIB + MEMORY_SLACK_MIB, "{most} MiB");
    drop(raw);
    victim.end();
}

/// Each block that was missing had all keys looked up again, and each lookup searched all blocks loaded.
#[test]
fn an_mget_of_many_cold_keys_takes_no_quadratic_time() {
    const KEYS: usize = 6_000;
    let dir = disk_dir();
    let arguments = ["--cores", "1", "--oversubscribe", "--memory", "128MiB"];
    let key = |at: usize| format!("cold {at}").into_bytes();
    let server = Server::start(dir.path(), &arguments);
    let mut client = connect(&server);
    let mut pipeline = client.pipeline();
    for at in 0..KEYS {
        pipeline.set(&key(at), &[b'x'; 2_600]);
    }
    pipeline.run().into_iter().for_each(|answer| assert!(answer.is_ok()));
    drop(client);
    server.stop();
    // Large remains of a log are flushed at once.
    let server = Server::start(dir.path(), &arguments);
    let mut raw = Raw::connect(server.address);
    eventually("they are in tables", || server.log().contains("flushed a memtable"));
    let mut keys = KeyList::default();
    (0..KEYS).for_each(|at| keys.push(&key(at)));
    let begin = Instant::now();
    let answer = raw.ask(1, &Request::Mget { keys: keys.keys() }).unwrap();
    assert!(answer.values.iter().all(|value| value == &[b'x'; 2_600]) && answer.values.len() == KEYS);
    assert!(begin.elapsed() < Duration::from_secs(3), "it took {:?}", begin.elapsed());
}

/// A connection that a shard was given before it was told to stop, and that it began to serve after, was
/// told of no end; the server waited for its client.
#[test]
fn who_connects_while_the_server_stops_does_not_keep_it() {
    for _ in 0..10 {
        let dir = disk_dir();
        let server = Server::start(dir.path(), &["--cores", "1", "--memory", "128MiB"]);
        let mut busy = Raw::connect(server.address);
        let requests = (0..2_000).map(|id| frame(id, &set(&id.to_le_bytes(), &[1; 500])));
        busy.stream.write_all(&requests.collect::<Vec<_>>().concat()).unwrap();
        let late: Vec<Raw> = (0..3).map(|_| Raw::connect(server.address)).collect();
        let (status, log) = server.stop();
        assert_eq!(status.code(), Some(0), "{log}");
        drop((busy, late));
    }
}

#[test]
fn connections_may_change_shards_under_load() {
    let mut victim = Victim::start(&[]);
    let address = victim.server.address;
    thread::scope(|scope| {
        for client in 0..4usize {
            scope.spawn(move || {
                let mut raw = Raw::connect(address);
                let mut last = Lsn::ZERO;
                for round in 0..100u16 {
                    let shard = round % 2;
                    let answer = raw.hello(1, Some(shard)).unwrap();
                    assert_eq!((answer.id, answer.shard), (1, Some(shard)), "{:?}", answer.refusal());
                    let key = key_of(0, client);
                    let written = raw.set(2, &key, &round.to_le_bytes()).unwrap();
                    assert!(written.version > last, "versions grow");
                    last = written.version;
                    // A request and a move in one packet: the move waits for nothing, so it is refused or
                    // made, and the connection lives.
                    let mut bytes = frame(3, &Request::Get { key: &key });
                    let hello = HelloRequest { version_min: 1, version_max: 1, shard: Some(1 - shard) };
                    bytes.extend(frame(4, &Request::Hello(hello)));
                    bytes.extend(frame(5, &Request::Get { key: &key }));
                    raw.stream.write_all(&bytes).unwrap();
                    let mut answers: Vec<_> = (0..3).map(|_| raw.answer().unwrap()).collect();
                    answers.sort_by_key(|answer| answer.id);
                    assert_eq!(answers.iter().map(|answer| answer.id).collect::<Vec<_>>(), [3, 4, 5]);
                    assert_eq!(answers[0].values, [round.to_le_bytes()]);
                    assert_eq!(answers[2].values, [round.to_le_bytes()]);
                    assert!(matches!(answers[1].refusal(), None | Some(Code::InvalidOption)));
                }
                let answer = raw.hello(6, Some(2)).unwrap();
                assert_eq!(answer.refusal(), Some(Code::NoSuchShard));
                raw.ping(7).unwrap();
            });
        }
    });
    victim.check();
    victim.end();
}

#[test]
fn connections_beyond_the_limit_are_told_so() {
    let mut victim = Victim::start(&["--max-connections", "20"]);
    // The witness has two.
    let mut inside: Vec<Raw> = (0..18).map(|_| Raw::connect(victim.server.address)).collect();
    inside.iter_mut().for_each(|raw| raw.ping(1).unwrap());
    for _ in 0..30 {
        // Whichever protocol it would have spoken, and whether it has begun to or not.
        for begin in [&b""[..], b"PING\r\n", &REQUEST_MAGIC] {
            let mut outside = Raw::connect(victim.server.address);
            let _ = outside.stream.write_all(begin); // it may be closed already
            let mut line = vec![0; TOO_MANY_CONNECTIONS.len()];
            outside.stream.read_exact(&mut line).unwrap();
            assert_eq!(line, TOO_MANY_CONNECTIONS);
            let end = outside.stream.read(&mut [0]);
            assert!(end.is_err() || end.is_ok_and(|len| len == 0), "and it is closed");
        }
        let refused = Client::connect(Config::new(&victim.server.address.to_string())).map(drop).unwrap_err();
        let code = refused.refusal().map(|refusal| refusal.code);
        assert_eq!(code, Some(Code::TooManyConnections), "{refused}");
    }
    victim.check();
    inside.pop();
    // One goes, one may come.
    let address = victim.server.address;
    eventually("there is room", || Raw::connect(address).ping_if_served());
    drop(inside);
    victim.end();
}
