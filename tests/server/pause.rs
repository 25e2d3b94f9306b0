//! A server that is stopped by SIGSTOP under load, as a debugger, a hypervisor or a full machine stops one, and goes
//! on seconds later: nobody is disconnected for that, nothing is lost, and all are served again.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use atlaskv::client::{Client, Config, Expiry, SetOptions};
use atlaskv::protocol::Request;
use rustix::process::Signal;

use crate::harness::{Server, connect, disk_dir, eventually, try_connect};
use crate::raw::{Raw, frame};

const WRITERS: usize = 4;
const PAUSES: usize = 2;
/// Longer than the timeouts that the server is given for its clients.
const PAUSE: Duration = Duration::from_secs(3);

/// Whether each thread of a process is stopped.
fn is_stopped(pid: u32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it is there");
    tasks.flatten().all(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        // The state stands behind the name, which is in brackets and may hold anything.
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    })
}

/// Stops the server for a while, and has it go on.
fn pause(server: &Server, meanwhile: impl FnOnce()) {
    server.signal(Signal::STOP);
    eventually("all threads are stopped", || is_stopped(server.pid()));
    meanwhile();
    // Not a wait for anything: that nothing happens for so long is what is tested.
    thread::sleep(PAUSE);
    assert!(is_stopped(server.pid()));
    server.signal(Signal::CONT);
}

struct StopsOnDrop<'a>(&'a AtomicBool);

impl Drop for StopsOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Counts a key up until told to stop, or until the server is gone. The last sum that was answered.
fn count(
    address: SocketAddr,
    writer: usize,
    stop: &AtomicBool,
    seen: &AtomicU64,
    may_be_killed: bool,
) -> u64 {
    // Longer than a pause; and no second attempt, which would hide that a connection was lost.
    let config =
        Config { retries: 0, read_timeout: Duration::from_secs(30), ..Config::new(&address.to_string()) };
    let mut client = Client::connect(config).expect("the server serves");
    let key = format!("counter {writer}");
    let mut last = seen.load(Ordering::Relaxed);
    while !stop.load(Ordering::Relaxed) {
        match client.incr(key.as_bytes(), 1) {
            Ok(counter) => {
                assert_eq!(counter.value.unsigned_abs(), last + 1, "{key} was counted once each time");
                last += 1;
                seen.store(last, Ordering::Relaxed);
            }
            Err(_) if may_be_killed => return last,
            Err(error) => panic!("{key}: {error}"),
        }
    }
    last
}

fn check(server: &Server, sums: &[u64], is_exact: bool) {
    let mut client = connect(server);
    for (writer, sum) in sums.iter().enumerate() {
        let found = client.get(format!("counter {writer}").as_bytes()).expect("a read").expect("it counted");
        let found: u64 = String::from_utf8_lossy(&found.value).parse().expect("a number");
        let most = sum + u64::from(!is_exact);
        assert!((*sum..=most).contains(&found), "{found} after {sum}");
    }
}

/// A connection that has asked for more than fits the sockets between, and reads it all after the pause.
fn ask_much(server: &Server) -> Raw {
    let mut raw = Raw::connect(server.address);
    raw.set(1, b"large", &vec![b'x'; 1 << 20]).expect("a write");
    let bytes: Vec<u8> = (0..24).flat_map(|id| frame(id, &Request::Get { key: b"large" })).collect();
    raw.stream.write_all(&bytes).expect("the server reads");
    raw
}

fn read_much(raw: &mut Raw) {
    for _ in 0..24 {
        let answer = raw.answer().expect("a pause of the server is not its client's fault");
        assert_eq!(answer.values.first().map(Vec::len), Some(1 << 20), "{answer:?}");
    }
}

#[test]
fn a_pause_under_load_loses_nothing_and_disconnects_nobody() {
    let dir = disk_dir();
    let arguments = [
        "--cores",
        "2",
        "--oversubscribe",
        "--max-value-size",
        "1MiB",
        // Both shorter than the pause, in which no client can do anything.
        "--stall-timeout",
        "1s",
        "--idle-timeout",
        "2s",
    ];
    let server = Server::start(dir.path(), &arguments);
    let stop = AtomicBool::new(false);
    let seen: [AtomicU64; WRITERS] = Default::default();
    let at = || seen.iter().map(|seen| seen.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let go_on = |before: &[u64]| {
        eventually("all count", || at().iter().zip(before).all(|(now, before)| *now > before + 50));
    };
    let sums: Vec<u64> = thread::scope(|scope| {
        // Or, should something fail, the writers would go on and the scope wait for them.
        let _stops = StopsOnDrop(&stop);
        let threads: Vec<_> = seen
            .iter()
            .enumerate()
            .map(|(writer, seen)| {
                let (address, stop) = (server.address, &stop);
                scope.spawn(move || count(address, writer, stop, seen, false))
            })
            .collect();
        go_on(&[0; WRITERS]);
        for _ in 0..PAUSES {
            let ttl = SetOptions { expiry: Expiry::after(PAUSE / 2), ..SetOptions::default() };
            connect(&server).set_with(b"short-lived", b"value", ttl).expect("a write");
            let mut behind = ask_much(&server);
            let mut idle = Raw::connect(server.address);
            idle.ping(1).expect("it is served");
            let mut late = None;
            pause(&server, || {
                // The kernel takes both in: a new connection, and a request on one that was idle.
                let mut raw = Raw::connect(server.address);
                raw.ping_behind(7);
                late = Some(raw);
                idle.ping_behind(8);
            });
            // All at once: each of them has until its own timeout, however slow the machine is.
            let reader = scope.spawn(move || read_much(&mut behind));
            assert_eq!(late.expect("it has connected").answer().expect("it is served").id, 7);
            assert_eq!(idle.answer().expect("it had asked in time, as far as it could").id, 8);
            idle.ping(9).expect("nobody has lost a connection by the pause");
            reader.join().expect("it had its replies");
            go_on(&at());
            let found = connect(&server).get(b"short-lived").expect("a read");
            assert_eq!(found, None, "its time has passed meanwhile");
        }
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().expect("a writer")).collect()
    });
    check(&server, &sums, true);
    let (status, log) = server.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
}

#[test]
fn killed_while_it_is_paused_it_has_lost_nothing() {
    let dir = disk_dir();
    let arguments = ["--cores", "2", "--oversubscribe"];
    let mut server = Server::start(dir.path(), &arguments);
    let (stop, seen): (_, [AtomicU64; WRITERS]) = (AtomicBool::new(false), Default::default());
    let sums: Vec<u64> = thread::scope(|scope| {
        let threads: Vec<_> = seen
            .iter()
            .enumerate()
            .map(|(writer, seen)| {
                let (address, stop) = (server.address, &stop);
                scope.spawn(move || count(address, writer, stop, seen, true))
            })
            .collect();
        eventually("all count", || seen.iter().all(|seen| seen.load(Ordering::Relaxed) > 50));
        server.signal(Signal::STOP);
        eventually("all threads are stopped", || is_stopped(server.pid()));
        server.kill();
        threads.into_iter().map(|thread| thread.join().expect("a writer")).collect()
    });
    assert!(try_connect(server.address).is_err());
    check(&Server::start(dir.path(), &arguments), &sums, false);
}
