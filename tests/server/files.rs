//! A server that may open no more files, in the middle of its work: what needs one waits or is refused, nothing
//! is lost, and all goes on by itself when it may again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use atlaskv::client::{Error, Response};
use atlaskv::error::{Class, Code};

use crate::harness::{Server, connect, disk_dir, eventually};
use crate::raw::Raw;

const WRITERS: usize = 2;
const AT_ONCE: usize = 16;

/// Sets how many files a running process may have open, and returns what it was.
pub fn limit_open_files(pid: u32, limit: Option<libc::rlimit>) -> libc::rlimit {
    let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let new = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: both pointers are null or valid for the call.
    let result = unsafe { libc::prlimit(pid.cast_signed(), libc::RLIMIT_NOFILE, new, &raw mut before) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    before
}

fn value(writer: usize, turn: u64) -> Vec<u8> {
    let mut value = format!("turn {turn} of {writer} ").into_bytes();
    value.resize(8 << 10, b'a' + (turn % 26) as u8);
    value
}

/// Overwrites a few hundred keys until told to stop. What was acknowledged, by key, and how often it was refused.
fn write(
    server: &Server,
    writer: usize,
    stop: &AtomicBool,
    turns: &AtomicU64,
) -> (BTreeMap<Vec<u8>, u64>, u64) {
    // Connected before the limit, and shard-aware: it has all the connections that it needs.
    let mut client = connect(server);
    let (mut acknowledged, mut refused) = (BTreeMap::new(), 0);
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        let keys: Vec<_> = (0..AT_ONCE as u64)
            .map(|at| format!("{writer} {}", (turn + at) % 500).into_bytes())
            .zip(turn..)
            .collect();
        turn += AT_ONCE as u64;
        let mut pipeline = client.pipeline();
        keys.iter().for_each(|(key, turn)| _ = pipeline.set(key, &value(writer, *turn)));
        for ((key, turn), answer) in keys.into_iter().zip(pipeline.run()) {
            match answer {
                Ok(Response::Outcome(_)) => _ = acknowledged.insert(key, turn),
                Ok(other) => panic!("{other:?}"),
                Err(Error::Refused(refusal)) => {
                    // Nothing to write them to: as for any other trouble with the disk.
                    let is_told = refusal.code == Code::Io && refusal.message.contains("resumes by itself");
                    assert!(is_told || refusal.code.class() == Class::Later, "{refusal}");
                    refused += 1;
                }
                Err(error) => panic!("writer {writer}: {error}"),
            }
        }
        turns.store(turn, Ordering::Relaxed);
    }
    (acknowledged, refused)
}

fn check(server: &Server, all: &[(BTreeMap<Vec<u8>, u64>, u64)]) {
    let mut client = connect(server);
    for (writer, (acknowledged, _)) in all.iter().enumerate() {
        for (key, turn) in acknowledged {
            let found = client.get(key).expect("a read").expect("it was written");
            assert!(
                found.value == value(writer, *turn),
                "{} is not of turn {turn}",
                String::from_utf8_lossy(key)
            );
        }
    }
}

#[test]
fn no_more_open_files_under_load_is_waited_out() {
    let dir = disk_dir();
    let arguments = ["--cores", "1", "--oversubscribe", "--memory", "48MiB", "--max-value-size", "64KiB"];
    let server = Server::start(dir.path(), &arguments);
    let (stop, turns) = (AtomicBool::new(false), [const { AtomicU64::new(0) }; WRITERS]);
    let mut inside = Raw::connect(server.address);
    inside.ping(1).expect("it is served");
    let ended: Vec<_> = thread::scope(|scope| {
        let (server, stop) = (&server, &stop);
        let threads: Vec<_> = turns
            .iter()
            .enumerate()
            .map(|(writer, turns)| scope.spawn(move || write(server, writer, stop, turns)))
            .collect();
        eventually("there are tables", || server.log().contains("flushed a memtable"));
        let before = limit_open_files(server.pid(), None);
        let open = fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("it runs").count() as u64;
        // Numbers are given from the lowest that is free, so this leaves room for none, or for very few.
        limit_open_files(server.pid(), Some(libc::rlimit { rlim_cur: open.min(before.rlim_max), ..before }));
        // What it needs files for fails, one way or the other, and is said.
        eventually("something fails for it", || server.log().contains("Too many open files"));
        inside.ping(2).expect("who is connected is served");
        let found = inside.get(3, b"0 0").expect("reads of what is in memory or open go on");
        assert!(found.refusal().is_none_or(|code| code.class() == Class::Later), "{found:?}");
        limit_open_files(server.pid(), Some(before));
        let at: Vec<u64> = turns.iter().map(|turns| turns.load(Ordering::Relaxed)).collect();
        eventually("all go on", || {
            turns.iter().zip(&at).all(|(turns, at)| turns.load(Ordering::Relaxed) > at + 50 * AT_ONCE as u64)
        });
        let flushes = server.log().matches("flushed a memtable").count();
        eventually("and memtables are flushed", || {
            server.log().matches("flushed a memtable").count() > flushes
        });
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().expect("a writer")).collect()
    });
    assert!(!server.log().contains("panicked"), "{}", server.log());
    check(&server, &ended);
    let mut server = server;
    server.kill();
    let server = Server::start(dir.path(), &arguments);
    check(&server, &ended);
    let (status, log) = server.stop();
    assert_eq!(status.code(), Some(0), "{log}");
}
