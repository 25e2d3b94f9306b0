//! The ways in which the runtime, the kernel or a stop could take clients or data with them, each shut by
//! a test. The rest of them are unit tests beside what they guard: `env::glommio`, `shard::mesh`.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use atlaskv::client::{Client, Error, Response};
use atlaskv::error::Code;
use rustix::process::Signal;

use crate::disk::{Kind, SmallDisk};
use crate::files::limit_open_files;
use crate::harness::{Server, connect, disk_dir, eventually, open_sockets, try_connect};
use crate::raw::Raw;

/// A stop is quick: a second or so on a machine of one's own. On one that is busy with other things it may be this;
/// what waits for a client that takes nothing waits for half a minute, and what waits for nothing for ever.
const STOP_TIME: Duration = Duration::from_secs(20);

#[test]
fn clients_that_cannot_be_accepted_wait_and_are_served() {
    let dir = disk_dir();
    let server = Server::start(dir.path(), &["--cores", "2"]);
    // What the first client makes the server open stays open.
    connect(&server).ping(b"first").unwrap();
    eventually("the first client is gone", || open_sockets(server.pid()) == Some(server.sockets));
    let open = fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count() as u64;
    let before = limit_open_files(server.pid(), None);
    // Descriptors are numbered from the lowest that is free, so this leaves room for about two.
    limit_open_files(server.pid(), Some(libc::rlimit { rlim_cur: open + 2, ..before }));
    const CLIENTS: usize = 20;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|at| {
                let address = server.address;
                scope.spawn(move || {
                    let mut raw = Raw::connect(address);
                    raw.ping(at as u64).expect("it is served in the end");
                })
            })
            .collect();
        eventually("an accept fails", || server.log().contains("a connection can't be accepted"));
        limit_open_files(server.pid(), Some(before));
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
    eventually("all are gone", || open_sockets(server.pid()) == Some(server.sockets));
    let (status, log) = server.stop();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn clients_that_come_during_a_stop_are_served_or_closed() {
    let dir = disk_dir();
    let mut server = Server::start(dir.path(), &["--cores", "2"]);
    let address = server.address;
    let served = AtomicUsize::new(0);
    thread::scope(|scope| {
        let (enough, is_enough) = mpsc::channel();
        let mut clients = Vec::new();
        for _ in 0..4 {
            let (enough, served) = (enough.clone(), &served);
            clients.push(scope.spawn(move || {
                loop {
                    let answer = try_connect(address).and_then(|mut client| client.ping(b"there?"));
                    match answer {
                        Ok(_) if served.fetch_add(1, Ordering::Relaxed) == 100 => enough.send(()).unwrap(),
                        Ok(_) => {}
                        Err(error @ Error::Timeout { .. }) => return Err(error),
                        // Nobody listens any more.
                        Err(Error::Connect { .. }) => return Ok(()),
                        // Accepted, or in the backlog, and closed.
                        Err(_) => {}
                    }
                }
            }));
        }
        is_enough.recv_timeout(Duration::from_secs(60)).expect("clients are served");
        server.signal(Signal::TERM);
        let begin = Instant::now();
        assert_eq!(server.wait().code(), Some(0));
        assert!(begin.elapsed() < STOP_TIME, "it took {:?}", begin.elapsed());
        for client in clients {
            client.join().unwrap().expect("nobody waits in vain");
        }
    });
}

/// What one client wrote, and was told.
fn write_until_gone(mut client: Client, name: usize, answered: &AtomicUsize) -> Vec<(String, String)> {
    let mut known = Vec::new();
    for batch in 0.. {
        let pairs: Vec<_> =
            (0..16).map(|at| (format!("{name}:{batch}:{at}"), format!("value {batch}"))).collect();
        let mut pipeline = client.pipeline();
        for (key, value) in &pairs {
            pipeline.set(key.as_bytes(), value.as_bytes());
            pipeline.get(key.as_bytes());
        }
        let mut is_up = true;
        for (at, answer) in pipeline.run().into_iter().enumerate() {
            match answer {
                Ok(Response::Outcome(_)) => known.push(pairs[at / 2].clone()),
                Ok(Response::Value(value)) => {
                    assert_eq!(value.expect("it was just written").value, pairs[at / 2].1.as_bytes());
                }
                Ok(other) => panic!("{other:?}"),
                Err(_) => is_up = false,
            }
            answered.fetch_add(1, Ordering::Relaxed);
        }
        if !is_up {
            break;
        }
    }
    known
}

fn assert_all_there(server: &Server, known: &[(String, String)]) {
    let mut client = connect(server);
    for pairs in known.chunks(500) {
        let keys: Vec<_> = pairs.iter().map(|(key, _)| key).collect();
        for (found, (key, value)) in client.mget(&keys).unwrap().into_iter().zip(pairs) {
            assert_eq!(found.map(|found| found.value).as_deref(), Some(value.as_bytes()), "{key}");
        }
    }
}

/// Lets clients write and read, stops the server amid that, and compares all that was answered with what the
/// next start finds. With `is_hasty` the stop waits for a client that reads nothing, until a second signal.
fn stop_under_load(sync: &str, is_hasty: bool) {
    let dir = disk_dir();
    let arguments = ["--cores", "2", "--oversubscribe", "--sync", sync];
    let mut server = Server::start(dir.path(), &arguments);
    let deaf = is_hasty.then(|| {
        let mut deaf = Raw::connect(server.address);
        deaf.set(1, b"large", &vec![b'x'; 1 << 20]).unwrap();
        (0..64).for_each(|id| deaf.send_get(id, b"large"));
        deaf
    });
    let answered = AtomicUsize::new(0);
    let known: Vec<_> = thread::scope(|scope| {
        let clients: Vec<_> = (0..4)
            .map(|name| {
                let (client, answered) = (connect(&server), &answered);
                scope.spawn(move || write_until_gone(client, name, answered))
            })
            .collect();
        eventually("writes are answered", || answered.load(Ordering::Relaxed) > 1_000);
        let mut begin = Instant::now();
        server.signal(Signal::TERM);
        if is_hasty {
            eventually("it is stopping", || server.log().contains("stopping"));
            begin = Instant::now();
            server.signal(Signal::TERM);
        }
        assert_eq!(server.wait().code(), Some(0), "{}", server.log());
        assert!(begin.elapsed() < STOP_TIME, "it took {:?}", begin.elapsed());
        clients.into_iter().flat_map(|client| client.join().unwrap()).collect()
    });
    drop(deaf);
    let log = server.log();
    assert_eq!(log.contains("stopping at once"), is_hasty, "{log}");
    assert!(!log.contains("ERROR"), "{log}");
    let server = Server::start(dir.path(), &arguments);
    assert!(!server.log().contains("torn tail"), "a log that was closed is whole: {}", server.log());
    assert_all_there(&server, &known);
}

#[test]
fn a_stop_amid_commits_and_reads_is_quick_and_loses_nothing() {
    stop_under_load("always", false);
}

/// The log writes of its own accord when more time has passed than all of this takes; the stop has it write.
#[test]
fn a_stop_within_a_sync_interval_loses_nothing() {
    stop_under_load("interval=60000", false);
}

#[test]
fn a_stop_without_sync_loses_nothing() {
    stop_under_load("none", false);
}

#[test]
fn a_second_signal_is_quicker_and_as_safe() {
    stop_under_load("always", true);
}

#[test]
fn a_second_signal_within_a_sync_interval_loses_nothing() {
    stop_under_load("interval=60000", true);
}

#[test]
fn a_second_signal_without_sync_loses_nothing() {
    stop_under_load("none", true);
}

fn write_ballast(path: &Path, bytes: usize) {
    let mut file = File::create(path).unwrap();
    let piece = vec![1u8; 1 << 20];
    (0..bytes >> 20).for_each(|_| file.write_all(&piece).unwrap());
    file.sync_all().unwrap();
}

#[test]
fn a_full_disk_refuses_writes_until_there_is_space_again() {
    const AT_ONCE: usize = 32;
    // A shard keeps two memtables and two log segments in reserve, 28 MiB here; the log starts with 16.
    let disk = SmallDisk::new(Kind::Ext4, 224);
    let (ballast, data) = (disk.path().join("ballast"), disk.path().join("data"));
    write_ballast(&ballast, 64 << 20);
    // Compressed, these values would take ten times as many to fill it.
    let arguments =
        ["--cores", "1", "--memory", "48MiB", "--max-value-size", "64KiB", "--compression", "none"];
    let mut server = Server::start(&data, &arguments);
    let mut client = connect(&server);
    let value = |at: usize| vec![b'a' + (at % 26) as u8; 16 << 10];
    let key = |at: usize| format!("key {at}");
    // Keys of their own, so that merges free nothing. Many at once, because each commit waits for a disk on a disk;
    // some behind the first that is refused may be taken, and are written once more below.
    let refused = (0..).step_by(AT_ONCE).find_map(|first| {
        let mut pipeline = client.pipeline();
        (first..first + AT_ONCE).for_each(|at| _ = pipeline.set(key(at).as_bytes(), &value(at)));
        (first..).zip(pipeline.run()).find_map(|(at, answer)| match answer {
            Ok(_) => None,
            Err(Error::Refused(refusal)) => Some((at, refusal)),
            Err(error) => panic!("write {at}: {error}\n{}", server.log()),
        })
    });
    let (count, refusal) = refused.expect("the disk is finite");
    assert_eq!(refusal.code, Code::DiskFull, "{refusal}");
    assert!(refusal.message.contains("free some space"), "{refusal}");
    assert!(count > 1_000, "{count} writes of 16 KiB fill no disk");
    // Reads and deletes go on.
    for at in (0..count).step_by(97) {
        let found = client.get(key(at).as_bytes()).unwrap();
        assert!(found.is_some_and(|found| found.value == value(at)), "{}", key(at));
    }
    assert!(client.delete(key(0).as_bytes()).unwrap());
    assert_eq!(client.get(key(0).as_bytes()).unwrap(), None);
    // Space comes back, and writing with it.
    fs::remove_file(&ballast).unwrap();
    eventually("writes are taken again", || match client.set(key(count).as_bytes(), &value(count)) {
        Ok(_) => true,
        Err(Error::Refused(refusal)) if refusal.code == Code::DiskFull => false,
        Err(error) => panic!("{error}"),
    });
    for at in count + 1..count + 4 * AT_ONCE {
        client.set(key(at).as_bytes(), &value(at)).unwrap();
    }
    server.kill();
    let mut server = Server::start(&data, &arguments);
    let mut client = connect(&server);
    assert_eq!(client.get(key(0).as_bytes()).unwrap(), None);
    for at in 1..count + 4 * AT_ONCE {
        let found = client.get(key(at).as_bytes()).unwrap();
        assert!(found.is_some_and(|found| found.value == value(at)), "{} is gone", key(at));
    }
    server.kill();
}
