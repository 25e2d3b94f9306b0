//! Replies of several shards to one pipeline leave together, unless some of them take long.

use std::io::{Read, Write};

use atlaskv::metrics::MetricsSnapshot;
use atlaskv::protocol::Request;
use atlaskv::protocol::binary::HEADER_BYTES;
use atlaskv::slot::{SLOT_COUNT, Slot};

use crate::harness::{Server, connect, disk_dir};
use crate::raw::{Raw, frame, set};

const SHARDS: usize = 2;
const VALUE: [u8; 100] = [b'v'; 100];
/// Requests that are sent at once, and how often.
const TURN: usize = 16;
const TURNS: u64 = 200;
/// Something else on the machine may keep a shard from its core for longer than its replies are waited for.
const ATTEMPTS: u32 = 5;

/// Keys of this shard. A new store divides its slots evenly, in order.
fn keys_of(shard: usize) -> impl Iterator<Item = Vec<u8>> {
    let owner = |key: &[u8]| usize::from(Slot::of_key(key).number()) * SHARDS / usize::from(SLOT_COUNT);
    (0..).map(|n| format!("key:{n}").into_bytes()).filter(move |key| owner(key) == shard)
}

fn start(dir: &std::path::Path) -> Server {
    Server::start(dir, &["--cores", "2", "--oversubscribe"])
}

/// A connection to this shard.
fn at_shard(server: &Server, shard: u16) -> Raw {
    let mut raw = Raw::connect(server.address);
    assert_eq!(raw.hello(1, Some(shard)).expect("the server answers").shard, Some(shard));
    raw
}

fn sends(server: &Server) -> u64 {
    let mut metrics = MetricsSnapshot::default();
    for line in connect(server).stats("total").expect("the server answers").lines() {
        if let Some((name, value)) = line.split_once('=')
            && let Ok(value) = value.parse()
        {
            metrics.set(name, value);
        }
    }
    metrics.sends
}

#[test]
fn replies_of_two_shards_to_one_pipeline_are_one_send() {
    let dir = disk_dir();
    let server = start(dir.path());
    let mut raw = at_shard(&server, 0);
    let keys: Vec<_> = keys_of(0).zip(keys_of(1)).take(TURN / 2).flat_map(|(a, b)| [a, b]).collect();
    for key in &keys {
        raw.set(2, key, &VALUE).expect("the server answers");
    }
    let gets: Vec<u8> = keys.iter().flat_map(|key| frame(3, &Request::Get { key })).collect();
    let sets: Vec<u8> = keys.iter().flat_map(|key| frame(3, &set(key, &VALUE))).collect();
    for (what, requests, reply_bytes) in
        [("GET", gets, HEADER_BYTES + VALUE.len()), ("SET", sets, HEADER_BYTES)]
    {
        let mut replies = vec![0; TURN * reply_bytes];
        let counted = (0..ATTEMPTS).map(|_| {
            let before = sends(&server);
            for _ in 0..TURNS {
                raw.stream.write_all(&requests).expect("the server reads");
                raw.stream.read_exact(&mut replies).expect("the server answers");
            }
            sends(&server) - before
        });
        let least = counted.min().expect("there are attempts");
        println!("{what}: {least} sends for {TURNS} pipelines");
        // As they come, it would be two for each.
        assert!(least < TURNS * 3 / 2, "{what}: {least} sends for {TURNS} pipelines");
    }
}

/// A checkpoint takes many times longer than a reply is kept back.
#[test]
fn a_reply_does_not_wait_for_another_shard_that_takes_long() {
    let dir = disk_dir();
    let server = start(&dir.path().join("data"));
    // The coordinator, which makes checkpoints, is shard 0.
    let (mut raw, key) = (at_shard(&server, 1), keys_of(1).next().expect("there are keys"));
    raw.set(2, &key, &VALUE).expect("the server answers");
    // What asks for the counters has replies of its own.
    let before = sends(&server);
    let of_asking = sends(&server) - before;
    let are_apart = (0..ATTEMPTS).any(|attempt| {
        let copy = dir.path().join(format!("checkpoint-{attempt}"));
        let checkpoint = Request::Checkpoint { dir: copy.to_str().expect("temporary paths are text") };
        let requests = [frame(3, &checkpoint), frame(4, &Request::Get { key: &key })].concat();
        let before = sends(&server);
        raw.stream.write_all(&requests).expect("the server reads");
        let answers = [raw.answer().expect("the server answers"), raw.answer().expect("the server answers")];
        assert!(answers.iter().all(|answer| answer.refusal().is_none()), "{answers:?}");
        assert_eq!(answers.each_ref().map(|answer| answer.id), [4, 3]);
        let replies_in = sends(&server) - before - of_asking;
        println!("two replies in {replies_in} sends");
        replies_in == 2
    });
    assert!(are_apart, "the reply that was there came with the one that took long, each time");
}
