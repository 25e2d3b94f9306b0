//! Redis' protocol over real connections: order over shards, transactions, what is not read, what ends a connection.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use atlaskv::protocol::resp::{Reply, decode_reply};

use crate::harness::{Server, disk_dir};
use crate::raw::Raw;

/// Longer than anything takes: a server that leaves someone waiting must fail the test, not stop it.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection of a client of Redis.
pub struct Redis {
    pub stream: TcpStream,
    received: Vec<u8>,
}

/// An array of bulk strings, as clients send commands.
fn command(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend(format!("${}\r\n", word.len()).bytes());
        bytes.extend_from_slice(word);
        bytes.extend(b"\r\n");
    }
    bytes
}

/// The same of words between spaces.
pub fn line(text: &str) -> Vec<u8> {
    let words: Vec<&[u8]> = text.split(' ').map(str::as_bytes).collect();
    command(&words)
}

impl Redis {
    pub fn connect(address: SocketAddr) -> Redis {
        let stream = TcpStream::connect(address).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("it is a socket");
        stream.set_write_timeout(Some(PATIENCE)).expect("it is a socket");
        stream.set_nodelay(true).expect("it is a socket");
        Redis { stream, received: Vec::new() }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server reads");
    }

    /// The next reply as it came.
    pub fn reply(&mut self) -> Vec<u8> {
        loop {
            if let Some((_, len)) = decode_reply(&self.received).expect("a reply of Redis") {
                return self.received.drain(..len).collect();
            }
            let mut buffer = [0; 64 << 10];
            let len = self.stream.read(&mut buffer).expect("a reply within the time");
            assert!(len > 0, "closed amid a reply: {:?}", String::from_utf8_lossy(&self.received));
            self.received.extend_from_slice(&buffer[..len]);
        }
    }

    /// Sends a command of words; its reply as text.
    pub fn ask(&mut self, text: &str) -> String {
        self.send(&line(text));
        String::from_utf8_lossy(&self.reply()).into_owned()
    }

    /// What comes before the server closes the connection.
    pub fn until_closed(&mut self) -> Vec<u8> {
        let mut all = std::mem::take(&mut self.received);
        match self.stream.read_to_end(&mut all) {
            Ok(_) => all,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => all,
            Err(error) => panic!("not closed: {error}"),
        }
    }
}

pub fn server(arguments: &[&str]) -> (Server, tempfile::TempDir) {
    let dir = disk_dir();
    let all = [&["--cores", "2", "--oversubscribe"], arguments].concat();
    (Server::start(dir.path(), &all), dir)
}

#[test]
fn both_protocols_share_a_port_and_the_data() {
    let (server, _dir) = server(&[]);
    let mut redis = Redis::connect(server.address);
    assert_eq!(redis.ask("SET k v"), "+OK\r\n");
    let mut raw = Raw::connect(server.address);
    assert_eq!(raw.get(1, b"k").expect("an answer").values, [b"v"]);
    raw.set(2, b"k", b"w").expect("an answer");
    assert_eq!(redis.ask("GET k"), "$1\r\nw\r\n");
    redis.send(b"PING\r\n");
    assert_eq!(redis.reply(), b"+PONG\r\n", "inline");
}

#[test]
fn a_pipeline_over_shards_is_answered_in_order_however_it_is_cut() {
    let (server, _dir) = server(&[]);
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut redis = Redis::connect(server.address);
    let (mut bytes, mut expected) = (Vec::new(), Vec::new());
    for n in 0..5_000u32 {
        let key = format!("key {}", rng.u32(..500));
        let value = format!("{n} of {key}");
        bytes.extend(command(&[b"SET", key.as_bytes(), value.as_bytes()]));
        expected.push(b"+OK\r\n".to_vec());
        match rng.u8(..4) {
            0 => {
                bytes.extend(command(&[b"GET", key.as_bytes()]));
                expected.push(format!("${}\r\n{value}\r\n", value.len()).into_bytes());
            }
            1 => {
                bytes.extend(command(&[b"STRLEN", key.as_bytes()]));
                expected.push(format!(":{}\r\n", value.len()).into_bytes());
            }
            2 => {
                bytes.extend(line("PING"));
                expected.push(b"+PONG\r\n".to_vec());
            }
            _ => {}
        }
    }
    let mut sender = redis.stream.try_clone().expect("it is a socket");
    let writer = thread::spawn(move || {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (part, tail) = rest.split_at(rng.usize(1..=rest.len().min(9_000)));
            sender.write_all(part).expect("the server reads");
            rest = tail;
        }
    });
    for (n, expected) in expected.iter().enumerate() {
        assert_eq!(redis.reply(), *expected, "reply {n}");
    }
    writer.join().expect("all was sent");
}

#[test]
fn transactions_of_many_clients_are_isolated_and_lost_updates_are_seen() {
    const CLIENTS: usize = 4;
    const ROUNDS: usize = 200;
    let (server, _dir) = server(&[]);
    let address = server.address;
    Redis::connect(address).ask("MSET {t}a 0 {t}b 0");
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        // Someone who looks must find both numbers equal.
        let watcher = scope.spawn(|| {
            let mut redis = Redis::connect(address);
            while !is_over.load(Ordering::Relaxed) {
                let text = redis.ask("MGET {t}a {t}b");
                let numbers: Vec<&str> =
                    text.split("\r\n").filter(|part| !part.starts_with(['*', '$'])).collect();
                assert_eq!(numbers[0], numbers[1], "{text:?}");
            }
        });
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                scope.spawn(move || {
                    let mut redis = Redis::connect(address);
                    let mut done = 0;
                    while done < ROUNDS {
                        if client % 2 == 0 {
                            redis.send(
                                &[line("MULTI"), line("INCR {t}a"), line("INCR {t}b"), line("EXEC")].concat(),
                            );
                            (0..3).for_each(|_| drop(redis.reply()));
                            assert!(redis.reply().starts_with(b"*2\r\n"));
                            done += 1;
                            continue;
                        }
                        // By what was read before, which must not have changed.
                        assert_eq!(redis.ask("WATCH {t}a {t}b"), "+OK\r\n");
                        let text = redis.ask("GET {t}a");
                        let next: u64 =
                            text.split("\r\n").nth(1).expect("a number").parse::<u64>().expect("one") + 1;
                        redis.send(&line("MULTI"));
                        redis.send(&line(&format!("SET {{t}}a {next}")));
                        redis.send(&line(&format!("SET {{t}}b {next}")));
                        redis.send(&line("EXEC"));
                        (0..3).for_each(|_| drop(redis.reply()));
                        done += usize::from(redis.reply() == b"*2\r\n+OK\r\n+OK\r\n");
                    }
                })
            })
            .collect();
        clients.into_iter().for_each(|client| client.join().expect("it found what it should"));
        is_over.store(true, Ordering::Relaxed);
        watcher.join().expect("it found what it should");
    });
    let sum = (CLIENTS * ROUNDS).to_string();
    let expected = format!("${}\r\n{sum}\r\n", sum.len());
    assert_eq!(Redis::connect(address).ask("GET {t}b"), expected);
}

#[test]
fn what_was_answered_is_there_after_a_kill() {
    let dir = disk_dir();
    let mut server = Server::start(dir.path(), &["--cores", "2", "--oversubscribe"]);
    let mut redis = Redis::connect(server.address);
    let all = [
        "SET a 1",
        "APPEND a 2",
        "MULTI",
        "SET {a}b 3",
        "RENAME a {a}c",
        "EXEC",
        "SETRANGE {a}b 2 x",
        "PEXPIREAT {a}b 4102444800000",
    ];
    for text in all {
        assert!(!redis.ask(text).starts_with('-'), "{text}");
    }
    server.kill();
    let server = Server::start(dir.path(), &["--cores", "1"]);
    let mut redis = Redis::connect(server.address);
    assert_eq!(redis.ask("MGET a {a}b {a}c"), "*3\r\n$-1\r\n$3\r\n3\0x\r\n$2\r\n12\r\n");
    assert_eq!(redis.ask("PEXPIRETIME {a}b"), ":4102444800000\r\n");
    assert_eq!(redis.ask("DBSIZE"), ":2\r\n");
}

#[test]
fn a_client_that_reads_nothing_holds_up_nobody_and_gets_all_in_the_end() {
    let (server, _dir) = server(&["--memory", "96MiB", "--max-value-size", "1MiB"]);
    let mut other = Redis::connect(server.address);
    let values: Vec<Vec<u8>> = (0..8u8).map(|n| vec![b'a' + n; 700_000]).collect();
    for (n, value) in values.iter().enumerate() {
        other.send(&command(&[b"SET", format!("large {n}").as_bytes(), value]));
        assert_eq!(other.reply(), b"+OK\r\n");
    }
    let mut redis = Redis::connect(server.address);
    let mut sender = redis.stream.try_clone().expect("it is a socket");
    let asked: Vec<u8> =
        (0..160).flat_map(|n| command(&[b"GET", format!("large {}", n % 8).as_bytes()])).collect();
    sender.write_all(&asked).expect("they are few bytes");
    for n in 0..50 {
        assert_eq!(other.ask(&format!("SET small {n}")), "+OK\r\n");
    }
    for n in 0..160 {
        let reply = redis.reply();
        let Some((Reply::Bulk(value), _)) = decode_reply(&reply).expect("a reply") else {
            panic!("reply {n}")
        };
        assert_eq!(value, &values[n % 8][..], "reply {n}");
    }
}

#[test]
fn commands_about_all_keys_see_what_their_connection_wrote() {
    let (server, _dir) = server(&[]);
    let mut redis = Redis::connect(server.address);
    let mut bytes: Vec<u8> = (0..3_000).flat_map(|n| line(&format!("SET k{n} v"))).collect();
    bytes.extend(
        [line("DBSIZE"), line("KEYS k299*"), line("FLUSHALL"), line("DBSIZE"), line("RANDOMKEY")].concat(),
    );
    redis.send(&bytes);
    (0..3_000).for_each(|_| assert_eq!(redis.reply(), b"+OK\r\n"));
    assert_eq!(redis.reply(), b":3000\r\n");
    assert!(redis.reply().starts_with(b"*11\r\n"));
    assert_eq!(redis.reply(), b"+OK\r\n");
    assert_eq!(redis.reply(), b":0\r\n");
    assert_eq!(redis.reply(), b"$-1\r\n");
}

#[test]
fn what_ends_a_connection_is_told_before() {
    let (server, _dir) = server(&[]);
    for (sent, said) in [
        (&b"PING\r\nQUIT\r\nPING\r\n"[..], &b"+PONG\r\n+OK\r\n"[..]),
        (b"*1\r\n$4\r\nPING\r\n*x\r\n", b"+PONG\r\n-ERR Protocol error: invalid multibulk length\r\n"),
        (b"*1\r\n+PING\r\n", b"-ERR Protocol error: expected '$', got '+'\r\n"),
        (b"SET k v\r\nGET k\r\n*2\r\n$3\r\nGET\r\n$1\r\n", b"+OK\r\n$1\r\nv\r\n"),
        (b"POST / HTTP/1.1\r\nHost: x\r\n\r\nFLUSHALL\r\n", b""),
    ] {
        let mut redis = Redis::connect(server.address);
        redis.send(sent);
        redis.stream.shutdown(Shutdown::Write).expect("it is connected");
        let mut all = Vec::new();
        redis.stream.read_to_end(&mut all).expect("closed within the time");
        assert_eq!(all, said, "{:?}", String::from_utf8_lossy(sent));
    }
    assert_eq!(Redis::connect(server.address).ask("GET k"), "$1\r\nv\r\n", "nobody flushed");
}

#[test]
fn the_largest_values_are_taken_and_longer_ones_end_the_connection() {
    let (server, _dir) = server(&["--max-value-size", "1MiB"]);
    let mut redis = Redis::connect(server.address);
    let value = vec![b'x'; 1 << 20];
    redis.send(&command(&[b"SET", b"k", &value]));
    assert_eq!(redis.reply(), b"+OK\r\n");
    assert!(redis.ask("APPEND k y").starts_with("-ERR string exceeds maximum allowed size"));
    assert_eq!(redis.ask("STRLEN k"), ":1048576\r\n");
    redis.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1048577\r\n");
    assert_eq!(redis.reply(), b"-ERR Protocol error: invalid bulk length\r\n");
    assert_eq!(Redis::connect(server.address).ask("STRLEN k"), ":1048576\r\n");
}

#[test]
fn commands_of_many_pages_end_with_little_memory() {
    let (server, _dir) = server(&["--memory", "96MiB", "--max-value-size", "1MiB"]);
    let mut redis = Redis::connect(server.address);
    let bytes: Vec<u8> = (0..9_000).flat_map(|n| line(&format!("SET a-key-of-20-bytes-{n:05} v"))).collect();
    let mut sender = redis.stream.try_clone().expect("it is a socket");
    let writer = thread::spawn(move || sender.write_all(&bytes).expect("the server reads"));
    (0..9_000).for_each(|_| assert_eq!(redis.reply(), b"+OK\r\n"));
    writer.join().expect("all was sent");
    // Each page is granted room. Kept until the last one, it was what the next waited for.
    assert_eq!(redis.ask("DBSIZE"), ":9000\r\n");
    assert!(redis.ask("KEYS *7").starts_with("*900\r\n"));
    assert!(redis.ask("RANDOMKEY").starts_with("$23\r\na-key"));
}

/// What is resident at most from now on, in MiB, once it was asked for.
fn watch_memory(server: &Server) -> impl Fn() -> u64 {
    let proc = format!("/proc/{}", server.pid());
    std::fs::write(format!("{proc}/clear_refs"), "5").expect("our own child");
    move || {
        let status = std::fs::read_to_string(format!("{proc}/status")).expect("it runs");
        let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a line of this name");
        most.trim().strip_suffix(" kB").expect("KiB").parse::<u64>().expect("a number") >> 10
    }
}

/// Each answer took its memory whenever its keys came: forty of them were 160 MB that nothing bounded.
#[test]
fn answers_to_keys_wait_for_memory_until_others_have_left() {
    const CLIENTS: usize = 40;
    const KEYS: usize = 4_000;
    const KEY_BYTES: usize = 1_000;
    let (server, _dir) = server(&["--memory", "96MiB", "--max-value-size", "4MiB"]);
    let mut redis = Redis::connect(server.address);
    for first in (0..KEYS).step_by(100) {
        let bytes: Vec<u8> =
            (first..first + 100).flat_map(|n| line(&format!("SET {n:0>KEY_BYTES$} v"))).collect();
        redis.send(&bytes);
        (0..100).for_each(|_| assert_eq!(redis.reply(), b"+OK\r\n"));
    }
    let whole = redis.ask("KEYS *").len();
    assert!(whole > KEYS * KEY_BYTES);
    let (before, most) = (watch_memory(&server)(), watch_memory(&server));
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut redis = Redis::connect(server.address);
                redis.send(&[line("KEYS *"), line("PING")].concat());
                // Longer than all answers take to be gathered, and less than makes it disconnect who reads nothing.
                thread::sleep(Duration::from_millis(500));
                let mut answer = vec![0; whole];
                redis.stream.read_exact(&mut answer).expect("an answer within the time");
                assert!(answer.starts_with(format!("*{KEYS}\r\n").as_bytes()) && answer.ends_with(b"\r\n"));
                assert_eq!(redis.reply(), b"+PONG\r\n");
            });
        }
    });
    println!("{before} MiB before, {} MiB at most", most());
    assert!(most() < before + 80, "{before} MiB before, {} MiB at most", most());
    assert_eq!(redis.ask("DBSIZE"), format!(":{KEYS}\r\n"));
    // One that goes away leaves nothing behind.
    redis.send(&line("KEYS *"));
    drop(redis);
    assert_eq!(Redis::connect(server.address).ask("KEYS *").len(), whole);
}

#[test]
fn few_bytes_do_not_make_many() {
    let (server, _dir) = server(&["--memory", "96MiB", "--max-value-size", "1MiB"]);
    let resident = watch_memory(&server);
    // A transaction of which each command writes a million bytes with twenty.
    let mut redis = Redis::connect(server.address);
    let mut bytes = line("MULTI");
    (0..500).for_each(|n| bytes.extend(line(&format!("SETRANGE {{x}}n{n} 1000000 x"))));
    bytes.extend(line("EXEC"));
    redis.send(&bytes);
    (0..501).for_each(|_| assert!(redis.reply().starts_with(b"+")));
    assert!(redis.reply().starts_with(b"-ERR a transaction that writes 2 keys"));
    // Long replies behind one that is slow, or that nobody reads.
    let mut unread: Vec<Redis> = (0..6).map(|_| Redis::connect(server.address)).collect();
    let commands = [line("GET x"), line("COMMAND").repeat(2_000)].concat();
    unread.iter_mut().for_each(|redis| redis.send(&commands));
    assert_eq!(redis.ask("PING"), "+PONG\r\n");
    unread.iter_mut().for_each(|redis| assert_eq!(redis.reply(), b"$-1\r\n"));
    let last = unread.last_mut().expect("there are some");
    (0..2_000).for_each(|_| assert!(last.reply().starts_with(b"*")));
    // What was resident with 3,000 such SETRANGEs was 3 GB, with 16,000 COMMANDs 741 MB.
    let most = resident();
    assert!(most <= 96 + 32 + 2 * 24 + 40, "{most} MiB resident");
}

#[test]
fn commands_of_very_many_words_are_done_or_refused_and_the_connection_stays() {
    let (server, _dir) = server(&["--max-value-size", "1MiB"]);
    let mut redis = Redis::connect(server.address);
    let words = |name: &'static [u8], word: &'static [u8], count: usize| {
        let mut words = vec![name];
        words.resize(count + 1, word);
        command(&words)
    };
    let mut pairs = vec![&b"MSET"[..]];
    (0..200_000).for_each(|_| pairs.extend([&b"k"[..], b""]));
    redis.send(&command(&pairs));
    assert!(redis.reply().starts_with(b"-ERR"), "longer than a frame");
    redis.send(&words(b"MGET", b"k", 100_000));
    assert!(redis.reply().starts_with(b"*100000\r\n"), "of one slot");
    redis.send(&words(b"DEL", b"k", 150_000));
    assert_eq!(redis.reply(), b":0\r\n");
    let long = "k".repeat(60_000);
    assert!(
        redis
            .ask(&format!("WATCH {{a}}1{long} {{a}}2{long} {{a}}3{long}"))
            .starts_with("-ERR keys of more than")
    );
    assert_eq!(redis.ask("PING"), "+PONG\r\n");
    let (status, log) = server.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn what_is_answered_holds_no_memory_of_others() {
    let (server, _dir) = server(&["--memory", "128MiB"]);
    let mut idle: Vec<Redis> = (0..300).map(|_| Redis::connect(server.address)).collect();
    let commands = line("SET k v").repeat(1_000);
    for redis in &mut idle {
        redis.send(&commands);
        (0..1_000).for_each(|_| assert_eq!(redis.reply(), b"+OK\r\n"));
    }
    // What all of them had under way is more than there is for requests; one of the largest needs its part of it.
    let mut other = Redis::connect(server.address);
    assert_eq!(other.ask(&format!("SET large {}", "x".repeat(15_000_000))), "+OK\r\n");
    assert!(idle.iter_mut().all(|redis| redis.ask("PING") == "+PONG\r\n"));
}
