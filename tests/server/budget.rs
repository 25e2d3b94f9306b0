//! Connections that send and ask for more than `--memory` holds: they wait for each other, none for ever, and
//! the server keeps within its memory.

use std::io::Write;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use atlaskv::protocol::Request;

use crate::harness::{Server, disk_dir};
use crate::raw::{Raw, frame, set};

/// What is resident beyond `--memory` at most, for the process and for each shard: see "Bounds" in design.md.
const BEYOND_MIB: u64 = 32;
const BEYOND_SHARD_MIB: u64 = 24;

fn peak_mib(server: &Server) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() >> 10
}

fn key(connection: usize, id: u64) -> Vec<u8> {
    format!("budget {connection} {id}").into_bytes()
}

fn value(connection: usize, id: u64, bytes: usize) -> Vec<u8> {
    let mut value = vec![b'a' + (connection % 26) as u8; bytes];
    value[..8].copy_from_slice(&id.to_le_bytes());
    value
}

/// Sends `frames` while the answers are read.
fn pipeline(address: SocketAddr, frames: Vec<Vec<u8>>, mut see: impl FnMut(u64, u16, &[Vec<u8>])) {
    let count = frames.len();
    let mut reader = Raw::connect(address);
    let mut stream = reader.stream.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || frames.iter().for_each(|frame| stream.write_all(frame).unwrap()));
        for _ in 0..count {
            let answer = reader.answer().unwrap();
            see(answer.id, answer.status, &answer.values);
        }
    });
}

/// Each of `connections` writes `count` values of `bytes` as fast as it can, and reads them as fast as it can.
fn flood(connections: usize, count: u64, bytes: usize) {
    const MEMORY_MIB: u64 = 128;
    const CORES: u64 = 2;
    let dir = disk_dir();
    let arguments = ["--cores", "2", "--oversubscribe", "--memory", "128MiB", "--max-value-size", "1MiB"];
    let server = Server::start(dir.path(), &arguments);
    let begin = Instant::now();
    let each = |work: &(dyn Fn(usize) + Sync)| {
        thread::scope(|scope| (0..connections).for_each(|at| drop(scope.spawn(move || work(at)))));
    };
    each(&|at| {
        let frames = (1..=count).map(|id| frame(id, &set(&key(at, id), &value(at, id, bytes))));
        pipeline(server.address, frames.collect(), |id, status, _| assert_eq!(status, 0, "{at}, {id}"));
    });
    let (wrote, written) = (begin.elapsed(), peak_mib(&server));
    each(&|at| {
        let frames = (1..=count).map(|id| frame(id, &Request::Get { key: &key(at, id) }));
        pipeline(server.address, frames.collect(), |id, _, values| {
            assert!(values == [value(at, id, bytes)], "{at}, {id}: {} values", values.len());
        });
    });
    let most = peak_mib(&server);
    println!(
        "{connections} x {count} x {bytes}: {written} MiB after {wrote:?}, {most} MiB after {:?}",
        begin.elapsed()
    );
    let bound = MEMORY_MIB + BEYOND_MIB + CORES * BEYOND_SHARD_MIB;
    assert!(most <= bound, "{most} MiB resident, more than {bound}");
    let (status, log) = server.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn sixty_connections_with_a_third_of_a_megabyte_each_time() {
    flood(60, 10, 300_000);
}

#[test]
fn six_connections_with_a_megabyte_each_time() {
    flood(6, 60, 1_000_000);
}

/// The largest value fits the least memory, also while others send theirs.
#[test]
fn the_largest_value_is_taken_with_the_least_memory() {
    const LARGEST: usize = 16 << 20;
    let dir = disk_dir();
    let server = Server::start(dir.path(), &["--cores", "1", "--oversubscribe", "--memory", "80MiB"]);
    thread::scope(|scope| {
        for at in 0..3 {
            let address = server.address;
            scope.spawn(move || {
                let mut raw = Raw::connect(address);
                for id in 1..=3 {
                    let value = value(at, id, LARGEST);
                    assert_eq!(raw.set(id, &key(at, id), &value).unwrap().status, 0);
                    assert!(raw.get(id, &key(at, id)).unwrap().values == [value]);
                }
            });
        }
    });
    println!("{} MiB at most", peak_mib(&server));
}

/// Who begins large requests and never ends them holds memory for them until others want it.
#[test]
fn half_requests_do_not_keep_others_from_theirs() {
    let dir = disk_dir();
    let arguments = [
        "--cores",
        "1",
        "--oversubscribe",
        "--memory",
        "64MiB",
        "--max-value-size",
        "1MiB",
        "--stall-timeout",
        "1s",
    ];
    let server = Server::start(dir.path(), &arguments);
    let large = vec![b'h'; 900_000];
    let half = frame(1, &set(b"half", &large));
    let begun: Vec<Raw> = (0..12)
        .map(|_| {
            let mut raw = Raw::connect(server.address);
            raw.stream.write_all(&half[..500_000]).unwrap();
            raw
        })
        .collect();
    let mut raw = Raw::connect(server.address);
    // Small ones need nobody's leave.
    let asked = Instant::now();
    raw.ping(1).unwrap();
    assert_eq!(raw.set(2, b"small", b"value").unwrap().status, 0);
    assert!(asked.elapsed() < Duration::from_secs(1), "a small request took {:?}", asked.elapsed());
    assert_eq!(raw.set(3, b"whole", &large).unwrap().status, 0);
    drop(begun);
}

/// The same of transactions that are begun and never executed. They were kept for ever, and nobody else was ever
/// granted anything.
#[test]
fn transactions_that_do_not_end_do_not_keep_others_from_theirs() {
    let dir = disk_dir();
    let arguments = ["--cores", "1", "--oversubscribe", "--memory", "64MiB", "--max-value-size", "1MiB"];
    let server = Server::start(dir.path(), &[&arguments[..], &["--stall-timeout", "1s"]].concat());
    let large = vec![b'h'; 900_000];
    let begun: Vec<Raw> = (0..5)
        .map(|_| {
            let mut raw = Raw::connect(server.address);
            raw.stream.write_all(b"MULTI\r\n*3\r\n$3\r\nSET\r\n$4\r\nhalf\r\n$900000\r\n").unwrap();
            raw.stream.write_all(&large).unwrap();
            raw.stream.write_all(b"\r\n").unwrap();
            raw
        })
        .collect();
    let mut raw = Raw::connect(server.address);
    assert_eq!(raw.set(1, b"whole", &large).unwrap().status, 0);
    drop(begun);
}

/// A client may send what HELLO says before it reads anything, whatever the replies, and whatever others hold.
#[test]
fn the_pipeline_that_was_promised_is_read_before_a_reply_is() {
    let dir = disk_dir();
    let arguments = ["--cores", "2", "--oversubscribe", "--memory", "128MiB", "--max-value-size", "1MiB"];
    let server = Server::start(dir.path(), &arguments);
    let large = vec![b'v'; 1 << 20];
    Raw::connect(server.address).set(1, b"large", &large).unwrap();
    let request = frame(7, &Request::Get { key: b"large" });
    let count = (64 << 10) / request.len();
    let requests: Vec<u8> = request.iter().copied().cycle().take(count * request.len()).collect();
    let mut all: Vec<Raw> = (0..12).map(|_| Raw::connect(server.address)).collect();
    for raw in &mut all {
        raw.stream.write_all(&requests).unwrap();
    }
    thread::scope(|scope| {
        for raw in &mut all {
            scope.spawn(move || {
                for _ in 0..30 {
                    assert!(raw.answer().unwrap().values == [vec![b'v'; 1 << 20]]);
                }
            });
        }
    });
    let most = peak_mib(&server);
    assert!(most <= 128 + BEYOND_MIB + 2 * BEYOND_SHARD_MIB, "{most} MiB resident");
}
