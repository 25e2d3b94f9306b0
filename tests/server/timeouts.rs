//! When a client that waits, or has others wait, is disconnected, and when it is not.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::harness::{Server, connect, disk_dir, eventually, open_sockets};
use crate::redis::{Redis, line, server};

/// A client whose kernel keeps little for it, so that the server can send little that it has not read.
fn connect_small(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
    // Before the window is agreed upon.
    socket.set_recv_buffer_size(16 << 10).expect("it is a socket");
    socket.connect(&address.into()).expect("the server listens");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout that is not zero");
    stream
}

/// That its socket has room a server is told when a third of the buffer is free, of 2.6 MiB here. Until then, who took
/// little of it at a time seemed to take nothing.
#[test]
fn who_takes_replies_slowly_gets_all_and_who_takes_none_is_disconnected() {
    const STALL: Duration = Duration::from_secs(4);
    const COUNT: usize = 10;
    let (server, _dir) = server(&["--stall-timeout", "4s", "--max-value-size", "1MiB"]);
    let value = "v".repeat(1 << 20);
    assert_eq!(Redis::connect(server.address).ask(&format!("SET large {value}")), "+OK\r\n");
    let [mut slow, mut stopped] = [(); 2].map(|()| {
        let mut stream = connect_small(server.address);
        stream.write_all(&line("GET large").repeat(COUNT)).expect("the server reads");
        stream.read_exact(&mut [0; 4 << 10]).expect("it is served");
        stream
    });
    let mut received = 4 << 10;
    let begin = Instant::now();
    // 40 KB/s: a third of the buffer takes 20 seconds.
    while begin.elapsed() < 3 * STALL {
        // Not a wait for anything: slow is what it is.
        thread::sleep(Duration::from_millis(100));
        let len = slow.read(&mut [0; 4 << 10]).expect("it is served");
        assert!(len > 0, "disconnected after {:?} and {received} bytes", begin.elapsed());
        received += len;
    }
    let (pid, left) = (server.pid(), server.sockets + 1);
    eventually("who took no more is gone", || open_sockets(pid).is_some_and(|open| open <= left));
    assert_eq!(open_sockets(pid), Some(left), "who took some is there");
    let whole = COUNT * (format!("${}\r\n", value.len()).len() + value.len() + 2);
    assert!(received < whole / 4, "{received} bytes: it was not slow");
    let mut rest = vec![0; whole - received];
    slow.read_exact(&mut rest).expect("all of it comes");
    assert!(rest.ends_with(b"vv\r\n"));
    let mut kept = Vec::new();
    let _ = stopped.read_to_end(&mut kept); // it may be a reset
    assert!(kept.len() < whole - received, "{} bytes: it was given up", kept.len());
}

/// Large replies of one shard wait for those of the other, in the order of the commands, and hold memory meanwhile: for
/// that they seemed to be stuck, though it was the client that was slow.
#[test]
fn who_takes_slowly_what_two_shards_answer_gets_all() {
    const STALL: Duration = Duration::from_secs(4);
    const COUNT: usize = 200;
    const KEYS: usize = 20;
    let dir = disk_dir();
    let server = Server::start(dir.path(), &["--cores", "2", "--oversubscribe", "--stall-timeout", "4s"]);
    let value = "v".repeat(100_000);
    let mut client = Redis::connect(server.address);
    (0..KEYS).for_each(|at| assert_eq!(client.ask(&format!("SET large{at} {value}")), "+OK\r\n"));
    client.send(&(0..COUNT).flat_map(|at| line(&format!("GET large{}", at % KEYS))).collect::<Vec<u8>>());
    let mut stream = client.stream;
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout that is not zero");
    let (begin, mut received) = (Instant::now(), 0);
    while begin.elapsed() < 3 * STALL {
        // Not a wait for anything: slow is what it is.
        thread::sleep(Duration::from_millis(100));
        let len = stream.read(&mut [0; 10_000]).expect("it is served");
        assert!(len > 0, "disconnected after {:?} and {received} bytes", begin.elapsed());
        received += len;
    }
    let whole = COUNT * (format!("${}\r\n", value.len()).len() + value.len() + 2);
    assert!(received < whole / 4, "{received} bytes: it was not slow");
    let mut rest = vec![0; whole - received];
    stream.read_exact(&mut rest).expect("all of it comes");
    assert!(rest.ends_with(b"vv\r\n"));
}

/// What it had sent before the pause counted as of then when it was read after the pause: if it takes no replies, nothing
/// came later.
#[test]
fn a_pause_is_no_idle_time_of_who_wants_no_replies() {
    const IDLE: Duration = Duration::from_secs(5);
    let (server, _dir) = server(&["--idle-timeout", "5s"]);
    let ahead = connect(&server).topology().limits.pipeline_bytes_max as usize;
    let mut silent = Redis::connect(server.address);
    silent.send(&line("CLIENT REPLY OFF"));
    let mut operator = Redis::connect(server.address);
    // No client does anything from here on until the pause is over: then no shard looks what has come.
    operator.send(&[line("CLIENT PAUSE 7000"), line("PING")].concat());
    assert_eq!(operator.reply(), b"+OK\r\n");
    // More than is read of a connection that takes in nothing, by what its kernel has room for. What is answered at once
    // leaves room to read the rest without asking for any.
    let ping = line("PING");
    silent.send(&[ping.repeat((ahead + (8 << 10)) / ping.len()), line("SET k v")].concat());
    assert_eq!(operator.reply(), b"+PONG\r\n");
    // Connections are looked at once a second.
    silent.stream.set_read_timeout(Some(IDLE / 2)).expect("a timeout that is not zero");
    let end = silent.stream.read(&mut [0]);
    assert!(end.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "disconnected: {end:?}");
    silent.send(&line("CLIENT REPLY ON"));
    silent.stream.set_read_timeout(Some(2 * IDLE)).expect("a timeout that is not zero");
    assert_eq!(silent.reply(), b"+OK\r\n");
    assert_eq!(silent.ask("GET k"), "$1\r\nv\r\n");
    // It is none of those that are never disconnected.
    assert_eq!(silent.until_closed(), b"");
}
