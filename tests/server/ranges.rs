//! DELRANGE and FLUSH over all shards: at once for whoever has the answer, for good, and wherever tablets are.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use atlaskv::client::{Client, KeyRange};
use atlaskv::error::Code;
use atlaskv::protocol::{DeleteRange, Request};

use crate::harness::{Server, connect, disk_dir};
use crate::raw::{Raw, frame, set};

const TWO: [&str; 3] = ["--cores", "2", "--oversubscribe"];

fn fill(client: &mut Client, prefix: &str, count: u32) {
    let mut pipeline = client.pipeline();
    for number in 0..count {
        pipeline.set(format!("{prefix}{number:05}").as_bytes(), b"value");
    }
    pipeline.run().into_iter().for_each(|answer| drop(answer.expect("a write")));
}

fn keys(client: &mut Client, range: KeyRange) -> Vec<String> {
    let entries = client.scan(range).map(|entry| entry.expect("an entry").key);
    entries.map(|key| String::from_utf8(key).expect("text")).collect()
}

fn number_of(client: &mut Client, prefix: &str) -> usize {
    keys(client, KeyRange::prefix(prefix.as_bytes())).len()
}

#[test]
fn ranges_are_removed_on_all_shards_and_stay_removed() {
    let dir = disk_dir();
    let mut server = Server::start(dir.path(), &TWO);
    let mut client = connect(&server);
    fill(&mut client, "a:", 1000);
    fill(&mut client, "b:", 1000);
    client.delete_range(&KeyRange::between(b"a:00100", b"a:00900")).expect("it is removed");
    assert_eq!(number_of(&mut client, "a:"), 200);
    assert_eq!(client.get(b"a:00500").expect("a read"), None);
    client.set(b"a:00500", b"again").expect("a write");
    client.delete_range(&KeyRange::prefix(b"b:")).expect("it is removed");
    assert_eq!((number_of(&mut client, "a:"), number_of(&mut client, "b:")), (201, 0));
    // Acknowledged, so on disk on every shard.
    server.kill();
    for cores in ["1", "2"] {
        let server = Server::start(dir.path(), &["--cores", cores, "--oversubscribe"]);
        let mut client = connect(&server);
        assert_eq!((number_of(&mut client, "a:"), number_of(&mut client, "b:")), (201, 0));
        drop(client);
        server.stop();
    }
    let mut server = Server::start(dir.path(), &TWO);
    let mut client = connect(&server);
    for range in [KeyRange::between(b"b", b"a"), KeyRange::between(b"", b"")] {
        let refused = client.delete_range(&range).expect_err("no such range");
        assert_eq!(refused.refusal().map(|refusal| refusal.code), Some(Code::Malformed), "{refused}");
    }
    client.flush_all().expect("all is removed");
    fill(&mut client, "c:", 10);
    server.kill();
    let server = Server::start(dir.path(), &TWO);
    let mut client = connect(&server);
    assert_eq!(keys(&mut client, KeyRange::between(b"", b"")).len(), 10);
    drop(client);
    server.stop();
}

/// Requests of one connection are done in the order sent, though their keys are on other shards and all were sent
/// at once.
#[test]
fn what_is_sent_behind_a_range_delete_comes_after_it() {
    let dir = disk_dir();
    let server = Server::start(dir.path(), &TWO);
    let mut raw = Raw::connect(server.address);
    for _ in 0..20 {
        let mut frames = Vec::new();
        let keys = |prefix: &str| (0..50).map(|n| format!("{prefix}{n}")).collect::<Vec<_>>();
        let sets = |frames: &mut Vec<u8>, prefix: &str| {
            keys(prefix).iter().for_each(|key| frames.extend(frame(1, &set(key.as_bytes(), b"v"))));
        };
        sets(&mut frames, "before:");
        sets(&mut frames, "stays:");
        let range = DeleteRange { start: b"a", end: b"c", ..DeleteRange::default() };
        frames.extend(frame(1, &Request::DeleteRange(range)));
        sets(&mut frames, "behind:");
        for key in ["before:", "behind:", "stays:"].iter().flat_map(|prefix| keys(prefix)) {
            frames.extend(frame(2, &Request::Get { key: key.as_bytes() }));
        }
        raw.stream.write_all(&frames).expect("the server reads");
        let answers: Vec<_> = (0..301).map(|_| raw.answer().expect("an answer")).collect();
        assert_eq!(answers.iter().find_map(|answer| answer.refusal()), None);
        // A reply is known by its id alone: those of one id may come in any order, but not before their requests.
        let found = answers.iter().filter(|answer| answer.id == 2 && !answer.values.is_empty()).count();
        assert_eq!(found, 100, "what was before is gone, what is behind or out of the range is there");
    }
    drop(raw);
    server.stop();
}

/// Nothing that was written before a range delete began is there once it was answered, and everything that was
/// written after that is, while tablets move and split.
#[test]
fn no_tablet_escapes_a_range_delete_by_moving() {
    let dir = disk_dir();
    let server = Arc::new(Server::start(dir.path(), &TWO));
    let (stop, moves) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let mover = {
        let (server, stop, moves) = (server.clone(), stop.clone(), moves.clone());
        thread::spawn(move || {
            let mut client = connect(&server);
            while !stop.load(Ordering::Relaxed) {
                let turn = moves.fetch_add(1, Ordering::Relaxed);
                let (tablet, shard) = (turn % 16, (turn / 16 + 1) % 2);
                let command = match turn % 40 {
                    39 => format!("split {tablet}"),
                    _ => format!("move {tablet} {shard}"),
                };
                client.tablets(&command).expect("it moves, splits, or is there already");
            }
        })
    };
    // Writes of others at the same time are there or not, but those keys are not ours.
    let writer = {
        let (server, stop) = (server.clone(), stop.clone());
        thread::spawn(move || {
            let mut client = connect(&server);
            for turn in 0u32.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                client.set(format!("k:other-{}", turn % 500).as_bytes(), b"value").expect("a write");
            }
        })
    };
    let mut client = connect(&server);
    let mut rounds = 0;
    while rounds < 60 || moves.load(Ordering::Relaxed) < 120 {
        rounds += 1;
        let before = format!("k:{rounds:05}:");
        fill(&mut client, &before, 100);
        match rounds % 5 {
            0 => client.flush_all().expect("all is removed"),
            _ => client.delete_range(&KeyRange::prefix(b"k:")).expect("they are removed"),
        }
        let after = format!("k:{rounds:05}+");
        fill(&mut client, &after, 100);
        assert_eq!(number_of(&mut client, &before), 0, "round {rounds}");
        assert_eq!(number_of(&mut client, &after), 100, "round {rounds}");
        for number in 0..100 {
            assert_eq!(client.get(format!("{before}{number:05}").as_bytes()).expect("a read"), None);
        }
    }
    stop.store(true, Ordering::Relaxed);
    mover.join().expect("the mover");
    writer.join().expect("the writer");
    let last = format!("k:{rounds:05}+");
    drop(client);
    Arc::into_inner(server).expect("nobody else has it").stop();
    let server = Server::start(dir.path(), &["--cores", "1"]);
    let mut client = connect(&server);
    let left = keys(&mut client, KeyRange::prefix(b"k:"));
    let others = left.iter().filter(|key| key.starts_with("k:other-")).count();
    assert_eq!((left.len() - others, number_of(&mut client, &last)), (100, 100));
    drop(client);
    server.stop();
}
