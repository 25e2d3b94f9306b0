//! A disk that fills up under load, gets space again, fills up to the last byte, and fails: on ext4 and xfs.
//!
//! Each writer knows what was acknowledged of its keys and what was not answered. Whatever happens to the disk,
//! the former is there, also after `kill -9` on the full disk, and the latter is there whole or not at all.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use atlaskv::client::{Client, Error, Outcome, Response};
use atlaskv::error::{Code, Refusal};

use crate::disk::{Kind, SmallDisk};
use crate::harness::{
    Server, command, connect, disk_dir, eventually, refusal, seed, start_or_refusal, try_connect,
};

const WRITERS: usize = 3;
/// Sent together, because each commit waits for a disk on a disk.
const AT_ONCE: usize = 24;
const VALUE_BYTES: usize = 16 << 10;
/// The least that mkfs.xfs takes is 300 MiB.
const DISK_MIB: u64 = 320;
/// Left for each shard. It keeps two memtables and two log segments in reserve, 28 MiB here, and its log begins
/// with 16.
const SHARD_BYTES: u64 = 80 << 20;
/// Compressed, these values would take ten times as many to fill it.
const ARGUMENTS: [&str; 8] =
    ["--cores", "1", "--memory", "48MiB", "--max-value-size", "64KiB", "--compression", "none"];

/// The same for another number of shards.
fn arguments(shards: u64) -> Vec<String> {
    let memory = format!("{}MiB", 32 + 16 * shards);
    let more = ["--cores", &shards.to_string(), "--memory", &memory, "--oversubscribe"].map(str::to_owned);
    more.into_iter().chain(ARGUMENTS[4..].iter().map(ToString::to_string)).collect()
}

/// One writer's keys: numbers whose value follows from the turn that wrote it; `None` was deleted.
struct Writer {
    name: usize,
    next: usize,
    turn: u64,
    acknowledged: BTreeMap<usize, Option<u64>>,
    /// Sent and never answered: any of these may be there instead.
    unanswered: BTreeMap<usize, Vec<Option<u64>>>,
}

impl Writer {
    fn new(name: usize) -> Writer {
        Writer { name, next: 0, turn: 0, acknowledged: BTreeMap::new(), unanswered: BTreeMap::new() }
    }

    fn key(&self, number: usize) -> Vec<u8> {
        format!("writer {} key {number}", self.name).into_bytes()
    }

    fn value(&self, turn: u64) -> Vec<u8> {
        let mut value = format!("turn {turn} of {} ", self.name).into_bytes();
        value.resize(VALUE_BYTES, b'a' + (turn % 26) as u8);
        value
    }

    /// Writes new keys, and deletes and overwrites some, until the first refusal, which is returned; `None`: the
    /// server is gone. Any other error than a full disk fails.
    fn run(&mut self, client: &mut Client, rng: &mut fastrand::Rng) -> Option<Refusal> {
        loop {
            let mut sent = Vec::new();
            for _ in 0..AT_ONCE {
                let is_new = self.next < AT_ONCE || rng.u8(..10) > 0;
                let number = if is_new { self.next } else { rng.usize(..self.next) };
                if sent.iter().any(|(other, _)| *other == number) {
                    continue;
                }
                self.next += usize::from(is_new);
                self.turn += 1;
                sent.push((number, (is_new || rng.bool()).then_some(self.turn)));
            }
            let mut pipeline = client.pipeline();
            for (number, turn) in &sent {
                match turn {
                    Some(turn) => pipeline.set(&self.key(*number), &self.value(*turn)),
                    None => pipeline.delete(&self.key(*number)),
                };
            }
            let (mut refused, mut is_gone) = (None, false);
            for ((number, turn), answer) in sent.into_iter().zip(pipeline.run()) {
                match answer {
                    Ok(Response::Outcome(Outcome::Written { .. } | Outcome::Absent)) => {
                        self.acknowledged.insert(number, turn);
                    }
                    Ok(other) => panic!("writer {}: {other:?}", self.name),
                    Err(Error::Refused(refusal)) => {
                        assert_eq!(refusal.code, Code::DiskFull, "writer {}: {refusal}", self.name);
                        refused = Some(refusal);
                    }
                    Err(error) => {
                        if error.may_be_applied() {
                            self.unanswered.entry(number).or_default().push(turn);
                        }
                        is_gone = true;
                    }
                }
            }
            if is_gone {
                return None;
            }
            if refused.is_some() {
                return refused;
            }
        }
    }

    /// Compares every `step`-th key with what is known. What was not answered is known from then on.
    fn check(&mut self, client: &mut Client, step: usize, context: &str) {
        let numbers: Vec<usize> = (0..self.next).step_by(step).collect();
        for some in numbers.chunks(64) {
            let mut pipeline = client.pipeline();
            some.iter().for_each(|number| _ = pipeline.get(&self.key(*number)));
            for (number, answer) in some.iter().zip(pipeline.run()) {
                let Ok(Response::Value(found)) = answer else {
                    panic!("{context}: a read of key {number} of writer {}: {answer:?}", self.name)
                };
                let found = found.map(|found| found.value);
                let mut may_be = vec![self.acknowledged.get(number).copied().flatten()];
                may_be.extend(self.unanswered.remove(number).unwrap_or_default());
                let is = may_be.into_iter().find(|turn| turn.map(|turn| self.value(turn)) == found);
                let Some(is) = is else {
                    panic!(
                        "{context}: key {number} of writer {} should be {:?} and begins with {:?}",
                        self.name,
                        self.acknowledged.get(number),
                        found.map(|value| String::from_utf8_lossy(&value[..24]).into_owned())
                    );
                };
                self.acknowledged.insert(*number, is);
            }
        }
    }
}

/// Has all writers write until each is refused, while a reader reads. What they were told.
fn fill(server: &Server, writers: &mut [Writer], rng: &mut fastrand::Rng) -> Vec<Refusal> {
    let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    await_space(&mut connect(server));
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut client = connect(server);
            while !stop.load(Ordering::Relaxed) {
                let found = client.get(b"always there").expect("reads go on").expect("nobody removes it");
                assert_eq!(found.value, b"a value");
                reads.fetch_add(1, Ordering::Relaxed);
            }
        });
        let threads: Vec<_> = writers
            .iter_mut()
            .map(|writer| {
                let mut rng = rng.fork();
                let mut client = connect(server);
                scope.spawn(move || writer.run(&mut client, &mut rng))
            })
            .collect();
        let refused: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().expect("a writer").expect("the server lives on a full disk"))
            .collect();
        let before = reads.load(Ordering::Relaxed);
        eventually("reads go on when all are refused", || reads.load(Ordering::Relaxed) > before + 10);
        stop.store(true, Ordering::Relaxed);
        reader.join().expect("a reader");
        refused
    })
}

/// What each file of a data directory takes, for whoever looks at a failure.
fn sizes(data: &Path) -> String {
    let output = std::process::Command::new("du").arg("-ak").arg(data).output().expect("du is everywhere");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until puts are taken again, by all shards: each looks for itself.
fn await_space(client: &mut Client) {
    let keys: Vec<_> = (0..16).map(|n| format!("is there space {n}")).collect();
    for key in keys.iter().map(String::as_str).chain(["always there"]) {
        eventually("writes are taken again", || match client.set(key.as_bytes(), b"a value") {
            Ok(_) => true,
            Err(Error::Refused(refusal)) if refusal.code == Code::DiskFull => false,
            Err(error) => panic!("{error}"),
        });
    }
}

fn check_all(server: &Server, writers: &mut [Writer], step: usize, context: &str) {
    let mut client = connect(server);
    writers.iter_mut().for_each(|writer| writer.check(&mut client, step, context));
}

fn fills_up_and_gets_space_again(kind: Kind, shards: u64) {
    let arguments = arguments(shards);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut rng = fastrand::Rng::with_seed(seed("fills_up"));
    let disk = SmallDisk::new(kind, DISK_MIB);
    let ballast = disk.fill("ballast", shards * SHARD_BYTES);
    let data = disk.path().join("data");
    let mut writers: Vec<Writer> = (0..WRITERS).map(Writer::new).collect();
    let mut server = Server::start(&data, &arguments);
    for refusal in fill(&server, &mut writers, &mut rng) {
        assert!(refusal.message.contains("free some space"), "{refusal}");
    }
    let written: usize = writers.iter().map(|writer| writer.acknowledged.len()).sum();
    assert!(written > 1_000, "{written} keys fill no disk");
    check_all(&server, &mut writers, 17, "on the full disk");
    // Deletes go on, and so do those of ranges.
    let mut client = connect(&server);
    for writer in &mut writers {
        let key = writer.key(0);
        client.delete(&key).expect("deletes go on");
        assert_eq!(client.get(&key).expect("reads go on"), None);
        writer.acknowledged.insert(0, None);
    }
    // Space comes back, and writing with it, without a restart.
    fs::remove_file(&ballast).expect("our own file");
    await_space(&mut client);
    // Full again: killed there, it starts on the full disk, for which it keeps a reserve, and has everything.
    let ballast = disk.fill("ballast", shards * SHARD_BYTES * 3 / 4);
    fill(&server, &mut writers, &mut rng);
    server.kill();
    let mut server = start_or_refusal(command(&data, &arguments)).unwrap_or_else(|line| {
        panic!(
            "a server does not start on the disk that it filled, {} bytes free: {line}\n{}",
            disk.free(),
            sizes(&data)
        )
    });
    check_all(&server, &mut writers, 1, "after kill -9 on the full disk");
    // Somebody else takes all that is left, while clients go on asking.
    let killed = thread::scope(|scope| {
        let threads: Vec<_> = writers
            .iter_mut()
            .map(|writer| {
                let (mut rng, address) = (rng.fork(), server.address);
                scope.spawn(move || {
                    let Ok(mut client) = try_connect(address) else { return };
                    while writer.run(&mut client, &mut rng).is_some() {}
                })
            })
            .collect();
        let rest = disk.fill("rest", 0);
        let mut client = connect(&server);
        let found = client.get(b"always there").expect("reads go on").expect("it was written");
        assert_eq!(found.value, b"a value");
        eventually("puts are refused", || client.set(b"is there space", b"no").is_err());
        server.kill();
        threads.into_iter().for_each(|thread| thread.join().expect("a writer"));
        rest
    });
    // Not a byte is left: a start says what it lacks, or has no need of it. It loses nothing either way.
    start_without_space(&data, &arguments, &mut writers);
    fs::remove_file(&killed).expect("our own file");
    let server = Server::start(&data, &arguments);
    check_all(&server, &mut writers, 1, "after kill -9 with not a byte left");
    fs::remove_file(&ballast).expect("our own file");
    await_space(&mut connect(&server));
    let (status, log) = server.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    let server = Server::start(&data, &arguments);
    check_all(&server, &mut writers, 5, "after all that");
    let (_, log) = server.stop();
    assert!(!log.contains("panicked"), "{log}");
}

/// A start on a disk without a free byte.
fn start_without_space(data: &Path, arguments: &[&str], writers: &mut [Writer]) {
    match start_or_refusal(command(data, arguments)) {
        Ok(server) => check_all(&server, writers, 1, "started with not a byte left"),
        Err(line) => assert!(line.contains("No space left on device"), "{line}"),
    }
}

#[test]
fn ext4_fills_up_and_gets_space_again() {
    fills_up_and_gets_space_again(Kind::Ext4, 2);
}

#[test]
fn xfs_fills_up_and_gets_space_again() {
    fills_up_and_gets_space_again(Kind::Xfs, 1);
}

/// A disk that fails under load: what was acknowledged is there when it is mounted again.
fn fails_under_load(kind: Kind) {
    let disk = SmallDisk::new(kind, DISK_MIB);
    let data = disk.path().join("data");
    let mut rng = fastrand::Rng::with_seed(seed("fails_under_load"));
    let mut server = Server::start(&data, &ARGUMENTS);
    let mut client = connect(&server);
    client.set(b"always there", b"a value").expect("there is space");
    let counts: Vec<AtomicU64> = (0..WRITERS).map(|_| AtomicU64::new(0)).collect();
    let ended: Vec<(u64, Error)> = thread::scope(|scope| {
        let threads: Vec<_> = counts
            .iter()
            .enumerate()
            .map(|(writer, count)| {
                let mut client = connect(&server);
                scope.spawn(move || {
                    let key = format!("counter {writer}");
                    loop {
                        match client.incr(key.as_bytes(), 1) {
                            Ok(counter) => count.store(counter.value.unsigned_abs(), Ordering::Relaxed),
                            Err(error) => return (count.load(Ordering::Relaxed), error),
                        }
                    }
                })
            })
            .collect();
        let enough = rng.u64(50..300);
        eventually("all count", || counts.iter().all(|count| count.load(Ordering::Relaxed) > enough));
        disk.fail();
        threads.into_iter().map(|thread| thread.join().expect("a writer")).collect()
    });
    for (_, error) in &ended {
        let Error::Refused(refusal) = error else { panic!("not refused: {error}") };
        assert!(matches!(refusal.code, Code::WriteFailed | Code::ShardFailed), "{refusal}");
    }
    // It lives, says why it takes no writes, and is told from one that does.
    let refused = client.set(b"key", b"value").expect_err("the log can't be written");
    let refused = refused.refusal().expect("a refusal").clone();
    assert_eq!(refused.code, Code::ShardFailed, "{refused}");
    assert!(refused.message.contains("restart"), "{refused}");
    assert_eq!(client.get(b"always there").expect("it is in memory").expect("it is there").value, b"a value");
    assert!(!server.log().contains("panicked"), "{}", server.log());
    server.kill();
    disk.unmount();
    disk.mount();
    let server = Server::start(&data, &ARGUMENTS);
    let mut client = connect(&server);
    for (writer, (acknowledged, _)) in ended.iter().enumerate() {
        let found = client.get(format!("counter {writer}").as_bytes()).expect("a read").expect("it counted");
        let found: u64 = String::from_utf8_lossy(&found.value).parse().expect("a number");
        // The one that was on its way may be there.
        assert!(
            (*acknowledged..=acknowledged + 1).contains(&found),
            "{found} after {acknowledged} were acknowledged"
        );
    }
    client.set(b"key", b"value").expect("a new start takes writes");
    drop(client);
    let (status, log) = server.stop();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn an_ext4_that_fails_under_load_loses_nothing_that_was_acknowledged() {
    fails_under_load(Kind::Ext4);
}

#[test]
fn an_xfs_that_fails_under_load_loses_nothing_that_was_acknowledged() {
    fails_under_load(Kind::Xfs);
}

/// Not a file system, but the same for whoever writes a file: the process may not make any larger than this.
#[test]
fn a_limit_of_file_sizes_is_refused_or_survived() {
    let dir = disk_dir();
    let mut command = command(dir.path(), &ARGUMENTS);
    let limit = rustix::process::Rlimit { current: Some(4 << 20), maximum: Some(4 << 20) };
    // SAFETY: the closure makes one system call and touches no memory that other threads share.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, move || {
            Ok(rustix::process::setrlimit(rustix::process::Resource::Fsize, limit)?)
        });
    }
    let line = refusal(command);
    assert!(line.contains("File too large"), "{line}");
    let server = Server::start(dir.path(), &ARGUMENTS);
    connect(&server).set(b"key", b"value").expect("without the limit all is well");
}
