//! What a client of Redis does to others and to the server: CLIENT KILL, PAUSE and UNPAUSE, SHUTDOWN.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{Server, connect, disk_dir, eventually, open_sockets, seed};
use crate::redis::{Redis, line, server};

/// Longer than any test runs.
const LONG_MS: u32 = 600_000;

/// A field of what CLIENT INFO says.
fn field(redis: &mut Redis, name: &str) -> String {
    let text = redis.ask("CLIENT INFO");
    let found = text.split([' ', '\r', '\n']).find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    found.unwrap_or_else(|| panic!("{name} is in {text}")).to_owned()
}

/// Clients that a pause holds back, asked of a connection that none does.
fn paused(server: &Server) -> u64 {
    let text = connect(server).stats("total").expect("figures");
    let found = text.lines().find_map(|line| line.strip_prefix("clients_paused="));
    found.expect("a line of this name").parse().expect("a number")
}

fn eventually_paused(server: &Server, count: u64) {
    eventually(&format!("{count} clients are paused"), || paused(server) == count);
}

#[test]
fn clients_of_all_shards_are_killed_by_each_filter() {
    let (server, _dir) = server(&["--listen", "0.0.0.0:0"]);
    let at = |ip: &str| SocketAddr::new(ip.parse().expect("an address"), server.address.port());
    let mut rng = fastrand::Rng::with_seed(seed("clients_of_all_shards_are_killed_by_each_filter"));
    let mut killer = Redis::connect(at("127.0.0.1"));
    let mut others: Vec<Redis> = Vec::new();
    for round in 0..24 {
        while others.len() < 6 {
            others.push(Redis::connect(at("127.0.0.1")));
        }
        let mut victim = others.swap_remove(rng.usize(..others.len()));
        let (id, addr) = (field(&mut victim, "id"), field(&mut victim, "addr"));
        let command = match round % 4 {
            0 => format!("CLIENT KILL {addr}"),
            1 => format!("CLIENT KILL ID {id}"),
            2 => format!("client kill addr {addr} type normal user default skipme yes"),
            _ => format!("CLIENT KILL ID {id} ADDR {addr}"),
        };
        let expected = if round % 4 == 0 { "+OK\r\n" } else { ":1\r\n" };
        assert_eq!(killer.ask(&command), expected, "{command}");
        assert_eq!(victim.until_closed(), b"", "{command}");
        let list = killer.ask("CLIENT LIST");
        assert!(!list.contains(&format!("id={id} ")), "{command}: {list}");
        let none = if round % 4 == 0 { "-ERR No such client\r\n" } else { ":0\r\n" };
        assert_eq!(killer.ask(&command), none, "{command}");
        others.iter_mut().for_each(|other| assert_eq!(other.ask("PING"), "+PONG\r\n", "{command}"));
    }
    // Those that came by another address of the server, on whichever shard.
    let mut elsewhere: Vec<Redis> = (0..5).map(|_| Redis::connect(at("127.0.0.2"))).collect();
    elsewhere.iter_mut().for_each(|other| assert_eq!(other.ask("PING"), "+PONG\r\n"));
    let laddr = field(&mut elsewhere[0], "laddr");
    assert_eq!(laddr, at("127.0.0.2").to_string());
    assert_eq!(killer.ask(&format!("CLIENT KILL LADDR {laddr}")), ":5\r\n");
    elsewhere.iter_mut().for_each(|other| assert_eq!(other.until_closed(), b""));
    assert_eq!(killer.ask("CLIENT KILL TYPE normal"), format!(":{}\r\n", others.len()));
    others.iter_mut().for_each(|other| assert_eq!(other.until_closed(), b""));
    // Connections of the other protocol are none of these.
    assert_eq!(killer.ask("CLIENT KILL TYPE normal"), ":0\r\n");
    connect(&server).stats("total").expect("figures");
}

#[test]
fn who_kills_itself_is_answered_and_then_closed() {
    let (server, _dir) = server(&[]);
    for shard in 0..2 {
        let mut redis = Redis::connect(server.address);
        let addr = field(&mut redis, "addr");
        redis.send(&[line("SET k v"), line(&format!("CLIENT KILL {addr}")), line("SET k w")].concat());
        assert_eq!(redis.until_closed(), b"+OK\r\n+OK\r\n", "{shard}");
    }
    let mut all: Vec<Redis> = (0..4).map(|_| Redis::connect(server.address)).collect();
    all.iter_mut().for_each(|redis| assert_eq!(redis.ask("GET k"), "$1\r\nv\r\n"));
    all[0].send(&line("CLIENT KILL SKIPME no TYPE normal"));
    assert_eq!(all[0].until_closed(), b":4\r\n");
    all[1..].iter_mut().for_each(|redis| assert_eq!(redis.until_closed(), b""));
}

#[test]
fn writes_wait_for_the_end_of_a_pause_and_reads_do_not() {
    let (server, _dir) = server(&[]);
    let mut operator = Redis::connect(server.address);
    operator.ask("MSET a 1 b 1 c 1 {t}x 1");
    // Of both shards, with keys of both.
    let mut writers: Vec<Redis> = (0..4).map(|_| Redis::connect(server.address)).collect();
    let mut readers: Vec<Redis> = (0..2).map(|_| Redis::connect(server.address)).collect();
    let mut begun = Redis::connect(server.address);
    assert_eq!(begun.ask("MULTI"), "+OK\r\n");
    assert_eq!(begun.ask("SET {t}x 2"), "+QUEUED\r\n");
    assert_eq!(operator.ask(&format!("CLIENT PAUSE {LONG_MS} WRITE")), "+OK\r\n");
    begun.send(&line("EXEC"));
    for (writer, key) in writers.iter_mut().zip(["a", "b", "c", "a"]) {
        let text = [line(&format!("GET {key}")), line(&format!("INCR {key}")), line(&format!("GET {key}"))];
        writer.send(&text.concat());
        assert_eq!(writer.reply(), b"$1\r\n1\r\n", "what is before it is not held back");
    }
    eventually_paused(&server, 5);
    for reader in &mut readers {
        assert_eq!(reader.ask("MGET a b c {t}x"), "*4\r\n$1\r\n1\r\n$1\r\n1\r\n$1\r\n1\r\n$1\r\n1\r\n");
        assert_eq!(reader.ask("MULTI"), "+OK\r\n");
        assert_eq!(reader.ask("GET a"), "+QUEUED\r\n");
        assert_eq!(reader.ask("EXEC"), "*1\r\n$1\r\n1\r\n");
        let info = reader.ask("INFO clients");
        assert!(info.contains("\r\nblocked_clients:5\r\n"), "{info}");
    }
    // Connections of the other protocol are not paused.
    connect(&server).set(b"other", b"w").expect("a write");
    assert_eq!(operator.ask("CLIENT UNPAUSE"), "+OK\r\n");
    assert_eq!(begun.reply(), b"*1\r\n+OK\r\n");
    let mut sums: Vec<Vec<u8>> = writers.iter_mut().map(Redis::reply).collect();
    sums.sort();
    assert_eq!(sums, [b":2\r\n", b":2\r\n", b":2\r\n", b":3\r\n"]);
    writers.iter_mut().for_each(|writer| assert!(writer.reply().starts_with(b"$1\r\n")));
    eventually_paused(&server, 0);
}

#[test]
fn a_pause_of_everything_ends_by_itself() {
    let (server, _dir) = server(&["--idle-timeout", "1s"]);
    let mut operator = Redis::connect(server.address);
    let mut others: Vec<Redis> = (0..4).map(|_| Redis::connect(server.address)).collect();
    others.iter_mut().for_each(|other| assert_eq!(other.ask("PING"), "+PONG\r\n"));
    let begin = Instant::now();
    // Longer than idle connections are kept; and what is behind it is held back as well.
    operator.send(&[line("CLIENT PAUSE 2500"), line("PING")].concat());
    assert_eq!(operator.reply(), b"+OK\r\n");
    others.iter_mut().for_each(|other| other.send(&line("SET k v").repeat(100)));
    // This as well, before it makes another pause.
    let mut late = Redis::connect(server.address);
    late.send(&line("CLIENT PAUSE 1 WRITE"));
    eventually_paused(&server, 6);
    for other in &mut others {
        (0..100).for_each(|_| assert_eq!(other.reply(), b"+OK\r\n"));
        assert!(begin.elapsed() >= Duration::from_millis(2500), "{:?}", begin.elapsed());
    }
    assert_eq!(operator.reply(), b"+PONG\r\n");
    assert_eq!(late.reply(), b"+OK\r\n");
}

#[test]
fn a_pause_is_made_longer_and_stronger_but_not_less_so() {
    let (server, _dir) = server(&[]);
    let mut operator = Redis::connect(server.address);
    assert_eq!(operator.ask(&format!("CLIENT PAUSE {LONG_MS} WRITE")), "+OK\r\n");
    assert_eq!(operator.ask("CLIENT PAUSE 1 ALL"), "+OK\r\n");
    let mut others: Vec<Redis> = (0..4).map(|_| Redis::connect(server.address)).collect();
    others.iter_mut().for_each(|other| other.send(&line("PING")));
    eventually_paused(&server, 4);
    // Or nobody could.
    assert_eq!(operator.ask("CLIENT UNPAUSE"), "+OK\r\n");
    others.iter_mut().for_each(|other| assert_eq!(other.reply(), b"+PONG\r\n"));
    // A new one begins anew.
    assert_eq!(operator.ask(&format!("CLIENT PAUSE {LONG_MS} WRITE")), "+OK\r\n");
    others.iter_mut().for_each(|other| assert_eq!(other.ask("PING"), "+PONG\r\n"));
    others.iter_mut().for_each(|other| other.send(&line("SET k v")));
    eventually_paused(&server, 4);
    assert_eq!(operator.ask("CLIENT UNPAUSE"), "+OK\r\n");
    others.iter_mut().for_each(|other| assert_eq!(other.reply(), b"+OK\r\n"));
}

#[test]
fn who_leaves_or_is_killed_while_paused_has_nothing_done() {
    let (server, _dir) = server(&[]);
    let mut operator = Redis::connect(server.address);
    let mut others: Vec<Redis> = (0..4).map(|_| Redis::connect(server.address)).collect();
    let ids: Vec<String> = others.iter_mut().map(|other| field(other, "id")).collect();
    assert_eq!(operator.ask(&format!("CLIENT PAUSE {LONG_MS} WRITE")), "+OK\r\n");
    others.iter_mut().for_each(|other| other.send(&line("INCR k")));
    eventually_paused(&server, 4);
    others.truncate(2);
    eventually_paused(&server, 2);
    assert_eq!(operator.ask(&format!("CLIENT KILL ID {}", ids[0])), ":1\r\n");
    assert_eq!(others[0].until_closed(), b"");
    eventually_paused(&server, 1);
    assert_eq!(operator.ask("CLIENT UNPAUSE"), "+OK\r\n");
    assert_eq!(others[1].reply(), b":1\r\n");
    assert_eq!(operator.ask("GET k"), "$1\r\n1\r\n");
}

#[test]
fn a_stop_does_not_wait_for_the_end_of_a_pause() {
    for mode in ["WRITE", "ALL"] {
        let dir = disk_dir();
        let server = Server::start(dir.path(), &["--cores", "2", "--oversubscribe"]);
        let mut operator = Redis::connect(server.address);
        assert_eq!(operator.ask("SET before v"), "+OK\r\n");
        assert_eq!(operator.ask(&format!("CLIENT PAUSE {LONG_MS} {mode}")), "+OK\r\n");
        let mut others: Vec<Redis> = (0..4).map(|_| Redis::connect(server.address)).collect();
        // More than is read of a connection that takes in nothing.
        let value = "v".repeat(100_000);
        others.iter_mut().for_each(|other| other.send(&line(&format!("SET after {value}")).repeat(3)));
        eventually_paused(&server, 4);
        let (status, log) = server.stop();
        assert_eq!(status.code(), Some(0), "{log}");
        others.iter_mut().for_each(|other| assert_eq!(other.until_closed(), b""));
        let server = Server::start(dir.path(), &["--cores", "2", "--oversubscribe"]);
        let mut redis = Redis::connect(server.address);
        assert_eq!(redis.ask("GET before"), "$1\r\nv\r\n");
        assert_eq!(redis.ask("GET after"), "$-1\r\n", "who paused writes does not want them at the end");
    }
}

#[test]
fn shutdown_stops_the_server_as_a_signal_does() {
    let dir = disk_dir();
    for (number, command) in ["SHUTDOWN", "SHUTDOWN NOSAVE", "shutdown save now force"].iter().enumerate() {
        let mut server = Server::start(dir.path(), &["--cores", "2", "--oversubscribe"]);
        let mut redis = Redis::connect(server.address);
        for n in 0..number {
            assert_eq!(redis.ask(&format!("GET k{n}")), "$1\r\nv\r\n");
        }
        assert_eq!(redis.ask("SHUTDOWN ABORT"), "-ERR No shutdown in progress.\r\n");
        let mut other = Redis::connect(server.address);
        assert_eq!(other.ask("PING"), "+PONG\r\n");
        redis.send(&[line(&format!("SET k{number} v")), line(command), line("PING")].concat());
        assert_eq!(redis.until_closed(), b"+OK\r\n", "{command}");
        assert_eq!(server.wait().code(), Some(0), "{command}: {}", server.log());
        assert_eq!(other.until_closed(), b"");
    }
    // Two at once are one.
    let mut server = Server::start(dir.path(), &["--cores", "2", "--oversubscribe"]);
    let mut all: Vec<Redis> = (0..4).map(|_| Redis::connect(server.address)).collect();
    all.iter_mut().for_each(|redis| assert_eq!(redis.ask("PING"), "+PONG\r\n"));
    all.iter_mut().for_each(|redis| redis.send(&line("SHUTDOWN")));
    assert_eq!(server.wait().code(), Some(0), "{}", server.log());
    assert!(!server.log().contains("WARN"), "{}", server.log());
    drop(server);
    let server = Server::start(dir.path(), &["--cores", "1"]);
    server.signal(Signal::TERM);
    assert_eq!(server.stop().0.code(), Some(0));
}

#[test]
fn who_leaves_amid_a_pause_leaves_room_for_who_ends_it() {
    let (server, _dir) = server(&["--max-connections", "40", "--memory", "128MiB"]);
    let mut operator = Redis::connect(server.address);
    assert_eq!(operator.ask(&format!("CLIENT PAUSE {LONG_MS} WRITE")), "+OK\r\n");
    drop(operator);
    // More than a connection reads ahead, so that it reads no more and does not see the end; by so little that its kernel
    // takes it, or that would not hear of the end either: who has sent more than both take has it still to send.
    let ahead = connect(&server).topology().limits.pipeline_bytes_max as usize;
    let command = line(&format!("SET k {}", "x".repeat(1_000)));
    let input = command.repeat(ahead.div_ceil(command.len()) + 8);
    for is_at_once in [true, false] {
        let mut leaving: Vec<Redis> = (0..35).map(|_| Redis::connect(server.address)).collect();
        leaving.iter_mut().for_each(|redis| redis.send(&input));
        if !is_at_once {
            eventually_paused(&server, 35);
        }
        drop(leaving);
        // Though whoever leaves at once may not be seen to be paused before.
        eventually("all are gone", || open_sockets(server.pid()) == Some(server.sockets));
        eventually_paused(&server, 0);
    }
    let mut operator = Redis::connect(server.address);
    assert_eq!(operator.ask("CLIENT UNPAUSE"), "+OK\r\n");
    assert_eq!(operator.ask("SET k w"), "+OK\r\n");
}

#[test]
fn a_stop_does_not_wait_for_each_client_that_takes_no_replies() {
    let (server, _dir) = server(&["--stall-timeout", "1s", "--memory", "128MiB"]);
    let mut redis = Redis::connect(server.address);
    let value = "v".repeat(5_000_000);
    assert_eq!(redis.ask(&format!("SET large {value}")), "+OK\r\n");
    let mut greedy: Vec<Redis> = (0..12).map(|_| Redis::connect(server.address)).collect();
    greedy.iter_mut().for_each(|redis| redis.send(&line("GET large").repeat(4)));
    eventually("they are served", || redis.ask("INFO stats").contains("keyspace_hits:1"));
    let (status, log) = server.stop();
    assert!(status.success(), "{log}");
    assert!(log.contains("stopping without them"), "{log}");
    drop(greedy);
}
