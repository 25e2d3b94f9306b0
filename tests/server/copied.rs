//! A data directory that is copied file by file while the server writes, as `cp -r` or a backup program does it,
//! and not by a checkpoint. Each file is as of another moment, so no such copy is promised to work. What is promised:
//! it is refused, and the line says what does not fit, or it holds of each shard what the first so many writes made,
//! none of those missing that were answered before the copy was begun. A key that can't be read says so.
//!
//! ```text
//! ATLASKV_COPIES=200 cargo test --test server copied -- --nocapture
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use atlaskv::client::{Client, Error, Response};
use atlaskv::error::Code;
use atlaskv::slot::Slot;

use crate::harness::{Server, command, connect, disk_dir, eventually, seed, start_or_refusal};

const KEYS: u64 = 1_500;
const AT_ONCE: u64 = 16;
const COPIES: usize = 8;

/// Writes that follow from their numbers alone: which key, and what.
struct Writer {
    keys: Vec<Vec<u8>>,
    acknowledged: AtomicU64,
}

/// The number of a key's last write among the first `count`; 0: none.
fn last_write(at: u64, count: u64) -> u64 {
    let least = if at == 0 { KEYS } else { at };
    if count < least { 0 } else { count - (count - least) % KEYS }
}

fn is_delete(write: u64) -> bool {
    write.is_multiple_of(11)
}

fn value(write: u64) -> Vec<u8> {
    let mut value = write.to_string().into_bytes();
    value.push(b' ');
    value.resize(200 + (write % 4_000) as usize, b'a' + (write % 26) as u8);
    value
}

impl Writer {
    /// One whose keys are all of a shard's half of the slots.
    fn new(shard: u16, shards: u16) -> Writer {
        let is_of_shard = |key: &Vec<u8>| Slot::of_key(key).number() / (16_384 / shards) == shard;
        let keys = (0..).map(|n| format!("{shard} key {n}").into_bytes()).filter(is_of_shard);
        Writer { keys: keys.take(KEYS as usize).collect(), acknowledged: AtomicU64::new(0) }
    }

    fn run(&self, server: &Server, stop: &AtomicBool) {
        let mut client = connect(server);
        for first in (1..).step_by(AT_ONCE as usize) {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let mut pipeline = client.pipeline();
            for write in first..first + AT_ONCE {
                let key = &self.keys[(write % KEYS) as usize];
                // A DELETE looks its key up, and may be done after what was sent behind it.
                match is_delete(write) {
                    true => pipeline.batch(atlaskv::client::Batch::new().delete(key).expect("a plain key")),
                    false => pipeline.set(key, &value(write)),
                };
            }
            pipeline.run().into_iter().for_each(|answer| drop(answer.expect("a write")));
            self.acknowledged.store(first + AT_ONCE - 1, Ordering::SeqCst);
        }
    }

    /// Compares with the copy that `client` reads. How many keys can't be read; `Err` tells of a wrong value.
    fn check(&self, client: &mut Client, at_least: u64) -> Result<usize, String> {
        let mut found = Vec::new();
        for some in self.keys.chunks(100) {
            let mut pipeline = client.pipeline();
            some.iter().for_each(|key| _ = pipeline.get(key));
            for answer in pipeline.run() {
                found.push(match answer {
                    Ok(Response::Value(value)) => Some(value.map(|value| value.value)),
                    Err(Error::Refused(refusal)) if refusal.code == Code::Corrupt => None,
                    other => return Err(format!("a read was answered {other:?}")),
                });
            }
        }
        let number = |value: &[u8]| -> Option<u64> {
            std::str::from_utf8(value.split(|byte| *byte == b' ').next()?).ok()?.parse().ok()
        };
        let newest = found.iter().flatten().flatten().filter_map(|value| number(value)).max().unwrap_or(0);
        let misfit = |count: u64| {
            found.iter().enumerate().find(|(at, found)| {
                let write = last_write(*at as u64, count);
                let expected = (write > 0 && !is_delete(write)).then(|| value(write));
                found.as_ref().is_some_and(|found| *found != expected)
            })
        };
        // A delete may have been the last, and what can't be read may hide some.
        let unread = found.iter().filter(|found| found.is_none()).count();
        let most = newest + if unread > 0 { KEYS } else { 1 };
        let mut wrong = None;
        let count = (newest..=most).find(|count| {
            let other = misfit(*count);
            if let Some((at, found)) = other.filter(|_| wrong.is_none()) {
                wrong = Some((*count, at, found.clone().flatten()));
            }
            other.is_none()
        });
        let Some(count) = count else {
            let (count, at, found) = wrong.expect("something did not fit");
            let found =
                found.map(|value| String::from_utf8_lossy(&value[..value.len().min(12)]).into_owned());
            let due = last_write(at as u64, count);
            return Err(format!(
                "no prefix: after {count} writes key {at} should be of write {due}, and is {found:?}"
            ));
        };
        // Of what can't be read the last write is not known.
        if unread == 0 && count < at_least {
            return Err(format!("as after {count} writes, though {at_least} were answered before"));
        }
        Ok(unread)
    }
}

/// All files below `dir`, as they are named now.
fn list(dir: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => list(&path, files),
            false => files.push(path),
        }
    }
}

/// Copies file by file, in one order or another. What has gone when its turn comes is not copied.
fn copy(data: &Path, target: &Path, rng: &mut fastrand::Rng) -> &'static str {
    let mut files = Vec::new();
    list(data, &mut files);
    files.sort();
    let order = match rng.u8(..4) {
        0 => "by name",
        1 => {
            files.reverse();
            "backwards"
        }
        2 => {
            // As careful people would: the log after what makes it shorter.
            files.sort_by_key(|path| path.to_string_lossy().contains("/wal/"));
            "the log last"
        }
        _ => {
            rng.shuffle(&mut files);
            "in no order"
        }
    };
    for path in files {
        let to = target.join(path.strip_prefix(data).expect("it is below"));
        fs::create_dir_all(to.parent().expect("it is below")).expect("our own directory");
        match fs::copy(&path, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            copied => drop(copied.expect("a copy")),
        }
    }
    order
}

fn copies_are_refused_or_consistent(shards: u16) {
    let copies = std::env::var("ATLASKV_COPIES").map_or(COPIES, |text| text.parse().expect("a number"));
    let mut rng = fastrand::Rng::with_seed(seed("copied"));
    let dir = disk_dir();
    let data = dir.path().join("data");
    let cores = shards.to_string();
    let memory = if shards == 1 { "48MiB" } else { "64MiB" };
    let arguments = ["--cores", &cores, "--oversubscribe", "--memory", memory, "--max-value-size", "64KiB"];
    let server = Server::start(&data, &arguments);
    let writers: Vec<Writer> = (0..shards).map(|shard| Writer::new(shard, shards)).collect();
    let stop = AtomicBool::new(false);
    let (mut opened, mut refused, mut unread) = (0, 0, 0);
    thread::scope(|scope| {
        for writer in &writers {
            let (server, stop) = (&server, &stop);
            scope.spawn(move || writer.run(server, stop));
        }
        let work = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for number in 0..copies {
                // Each meets other files than the one before.
                let flushed = server.log().matches("flushed a memtable").count();
                eventually("a memtable is flushed", || {
                    server.log().matches("flushed a memtable").count() > flushed
                });
                let target = dir.path().join(format!("copy-{number}"));
                let answered: Vec<u64> =
                    writers.iter().map(|writer| writer.acknowledged.load(Ordering::SeqCst)).collect();
                let order = copy(&data, &target, &mut rng);
                match start_or_refusal(command(&target, &arguments)) {
                    Ok(copy) => {
                        opened += 1;
                        let mut client = connect(&copy);
                        for (writer, at_least) in writers.iter().zip(answered) {
                            let context = || format!("copy {number}, made {order}");
                            unread += writer
                                .check(&mut client, at_least)
                                .unwrap_or_else(|why| panic!("{}: {why}\n{}", context(), copy.log()));
                        }
                        assert!(!copy.log().contains("panicked"), "{}", copy.log());
                    }
                    Err(line) => {
                        refused += 1;
                        let names = ["wal/", "sst/", "manifest/", "CURRENT"];
                        assert!(names.iter().any(|name| line.contains(name)), "{line}");
                    }
                }
                fs::remove_dir_all(&target).expect("our own directory");
            }
        }));
        stop.store(true, Ordering::Relaxed);
        work.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    println!("{shards} shards: {opened} copies opened, {refused} refused; {unread} keys could not be read");
    let (status, log) = server.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("panicked"), "{log}");
    // The original is whole, whatever was read of it.
    let server = Server::start(&data, &arguments);
    let mut client = connect(&server);
    for writer in &writers {
        let at_least = writer.acknowledged.load(Ordering::SeqCst);
        assert_eq!(writer.check(&mut client, at_least), Ok(0));
    }
}

#[test]
fn copied_amid_writes_one_shard_is_refused_or_consistent() {
    copies_are_refused_or_consistent(1);
}

#[test]
fn copied_amid_writes_two_shards_are_refused_or_consistent() {
    copies_are_refused_or_consistent(2);
}
