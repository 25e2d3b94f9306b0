//! Checkpoints of a server under load: each is a data directory whose writes are those from before one moment.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use atlaskv::client::Client;
use atlaskv::engine::checkpoint::{MARKER, Unfinished};
use atlaskv::error::Code;

use crate::harness::{Server, command, connect, disk_dir, refusal};

const CHECKPOINTS: usize = 8;
/// Pairs of keys of which the first is always written first.
const PAIRS: u64 = 40;

fn pair(number: u64) -> [String; 2] {
    [format!("first of {number}"), format!("second of {number}")]
}

/// Counts up: for each count the first key of each pair, and once that is answered the second.
fn write(server: &Server, stop: &AtomicBool, acknowledged: &AtomicU64) {
    let mut client = connect(server);
    for count in 1.. {
        for number in 0..PAIRS {
            for key in pair(number) {
                client.set(key.as_bytes(), count.to_string().as_bytes()).expect("a write");
            }
        }
        acknowledged.store(count, Ordering::SeqCst);
        if stop.load(Ordering::Relaxed) {
            return;
        }
    }
}

fn value(client: &mut Client, key: &str) -> u64 {
    let found = client.get(key.as_bytes()).expect("a read");
    found.map_or(0, |found| String::from_utf8(found.value).unwrap().parse().unwrap())
}

/// What each pair has come to; the second is never ahead of the first, since it was written after it.
fn check(dir: &Path, at_least: u64) {
    let server = Server::start(dir, &["--cores", "2", "--oversubscribe"]);
    let mut client = connect(&server);
    for number in 0..PAIRS {
        let [first, second] = pair(number).map(|key| value(&mut client, &key));
        assert!(first >= second && first <= second + 1, "pair {number} of {dir:?}: {first} and {second}");
        assert!(second >= at_least, "{second} of {dir:?}: {at_least} was answered before");
    }
    drop(client);
    let (status, log) = server.stop();
    assert_eq!(status.code(), Some(0), "{log}");
}

#[test]
fn checkpoints_under_load_hold_what_was_before_and_nothing_that_came_after_something_else() {
    let dir = disk_dir();
    let data = dir.path().join("data");
    let server = Arc::new(Server::start(&data, &["--cores", "2", "--oversubscribe"]));
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writer = {
        let (server, stop, acknowledged) = (server.clone(), stop.clone(), acknowledged.clone());
        thread::spawn(move || write(&server, &stop, &acknowledged))
    };
    let mut client = connect(&server);
    let mut made = Vec::new();
    for number in 0..CHECKPOINTS {
        let target = dir.path().join(format!("checkpoint-{number}"));
        let before = acknowledged.load(Ordering::SeqCst);
        let text = client.checkpoint(target.to_str().unwrap()).expect("a checkpoint");
        assert!(text.lines().any(|line| line.starts_with("pause_micros=")), "{text}");
        made.push((target, before));
    }
    let refused = client.checkpoint(made[0].0.to_str().unwrap()).expect_err("it is there already");
    assert!(refused.refusal().is_some_and(|refusal| refusal.code == Code::CheckpointFailed), "{refused}");
    for path in ["relative", "/var/tmp/../etc", "//"] {
        let refused = client.checkpoint(path).expect_err("no plain path");
        assert!(refused.refusal().is_some(), "{path}: {refused}");
    }
    let stats = client.stats("total").expect("figures");
    assert!(stats.lines().any(|line| line == format!("checkpoints={CHECKPOINTS}")), "{stats}");
    stop.store(true, Ordering::Relaxed);
    writer.join().expect("the writer");
    drop(client);
    Arc::into_inner(server).expect("the writer has ended").stop();
    for (target, before) in &made {
        check(target, *before);
    }
    check(&data, acknowledged.load(Ordering::SeqCst));
}

/// Left by a server that was killed while it made one, or by a copy that was cut short.
#[test]
fn what_was_never_completed_is_neither_served_nor_gone_on_with() {
    let dir = disk_dir();
    let half = dir.path().join("half");
    fs::create_dir(&half).unwrap();
    let server = Server::start(&dir.path().join("data"), &["--cores", "1"]);
    let mut page = vec![0; 4096];
    for (kind, advice) in [
        (Unfinished::Checkpoint, "remove the directory, and make a checkpoint again"),
        (Unfinished::Backup, "the same atlaskv-inspect backup with its --name goes on with it"),
        (Unfinished::Restore, "the same atlaskv-inspect restore goes on with it"),
        (Unfinished::Salvage, "remove the directory, and salvage again"),
        (Unfinished::Unknown, "remove the directory, and make the copy again"),
    ] {
        kind.encode(&mut page);
        fs::write(half.join(MARKER), &page).unwrap();
        let said = refusal(command(&half, &[]));
        assert!(said.contains(half.to_str().unwrap()) && said.contains(advice), "{said}");
        let refused = connect(&server).checkpoint(half.to_str().unwrap()).expect_err("something is there");
        let refused = refused.to_string();
        assert!(refused.contains("half is") && refused.contains(advice), "{refused}");
    }
    // The power went while it was marked.
    fs::write(half.join(MARKER), "").unwrap();
    assert!(refusal(command(&half, &[])).contains(MARKER));
}
