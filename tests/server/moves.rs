//! Tablets that move and split while clients write: nothing is lost, nothing is done twice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use atlaskv::client::Client;
use atlaskv::error::Code;

use crate::harness::{Server, connect, disk_dir, try_connect};

const MOVES: u32 = 100;
const SPLITS: u32 = 10;
const WRITERS: u32 = 4;
/// Counters of each writer, spread over all tablets.
const COUNTERS: u32 = 200;

/// Counts until told to stop: each sum must follow the one before it. What the counters have come to, and the
/// longest time that an answer took.
fn count(server: &Server, writer: u32, stop: &AtomicBool) -> (Vec<i64>, Duration) {
    let mut client = connect(server);
    let mut sums = vec![0i64; COUNTERS as usize];
    let mut longest = Duration::ZERO;
    let mut turn = 0;
    while !stop.load(Ordering::Relaxed) {
        let which = turn % COUNTERS as usize;
        turn += 1;
        let key = key(writer, which as u32);
        let since = Instant::now();
        let sum = client.incr(key.as_bytes(), 1).expect("a count").value;
        longest = longest.max(since.elapsed());
        sums[which] += 1;
        assert_eq!(sum, sums[which], "{key} was counted once each time");
        if turn % 7 == 0 {
            let found = client.get(key.as_bytes()).expect("a read").expect("it was counted");
            assert_eq!(found.value, sum.to_string().as_bytes(), "{key}");
        }
    }
    (sums, longest)
}

fn key(writer: u32, counter: u32) -> String {
    format!("writer-{writer}-counter-{counter}")
}

/// The numbers of the tablets, and of the shards that they are on.
fn tablets(client: &mut Client) -> Vec<(u32, u32)> {
    let text = client.stats("tablets").expect("the section");
    let shard_of = |line: &str| {
        let (tablet, shard) = line.strip_prefix("tablet")?.split_once(".shard=")?;
        Some((tablet.parse().ok()?, shard.parse().ok()?))
    };
    text.lines().filter_map(shard_of).collect()
}

fn check(client: &mut Client, all: &[Vec<i64>]) {
    for (writer, sums) in (0..).zip(all) {
        for (counter, sum) in (0..).zip(sums) {
            let key = key(writer, counter);
            let found = client.get(key.as_bytes()).expect("a read").map(|found| found.value);
            let expected = (*sum > 0).then(|| sum.to_string().into_bytes());
            assert_eq!(found, expected, "{key}");
        }
    }
}

#[test]
fn moves_and_splits_under_load_lose_and_repeat_nothing() {
    let dir = disk_dir();
    let server = Arc::new(Server::start(dir.path(), &["--cores", "2", "--oversubscribe"]));
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (server, stop) = (server.clone(), stop.clone());
            thread::spawn(move || count(&server, writer, &stop))
        })
        .collect();
    let mut client = connect(&server);
    let mut rng = fastrand::Rng::with_seed(7);
    let (mut moves, mut splits) = (0, 0);
    while moves < MOVES || splits < SPLITS {
        let all = tablets(&mut client);
        let (tablet, shard) = all[rng.usize(..all.len())];
        if splits < SPLITS && rng.u32(..MOVES / SPLITS) == 0 || moves == MOVES {
            client.tablets(&format!("split {tablet}")).expect("it splits");
            splits += 1;
        } else {
            client.tablets(&format!("move {tablet} {}", 1 - shard)).expect("it moves");
            moves += 1;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let ended: Vec<_> = writers.into_iter().map(|writer| writer.join().expect("a writer")).collect();
    let longest = ended.iter().map(|(_, longest)| *longest).max().unwrap_or_default();
    let sums: Vec<Vec<i64>> = ended.into_iter().map(|(sums, _)| sums).collect();
    let stats = client.stats("total").expect("figures");
    let figure = |name: &str| {
        let line = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.and_then(|value| value.parse::<u64>().ok()).unwrap_or_else(|| panic!("{name} in {stats}"))
    };
    assert_eq!(figure("tablet_moves"), u64::from(MOVES));
    assert_eq!(figure("tablet_splits"), u64::from(SPLITS));
    assert_eq!(figure("move_failures"), 0);
    let total: i64 = sums.iter().flatten().sum();
    let pauses = figure("move_pause_micros") / u64::from(MOVES + SPLITS);
    let longest_pause = figure("move_pause_micros_max");
    eprintln!(
        "{total} counts, longest answer {longest:?}; pauses: mean {pauses} us, longest {longest_pause} us"
    );
    assert!(total > 1000, "they counted meanwhile");
    check(&mut client, &sums);
    assert_eq!(tablets(&mut client).len(), 16 + SPLITS as usize);
    // Other numbers of shards, while serving and by restart.
    client.tablets("cores 1").expect("all on one shard");
    assert!(tablets(&mut client).iter().all(|(_, shard)| *shard == 0));
    check(&mut client, &sums);
    client.tablets("cores 2").expect("on two again");
    let on_first = tablets(&mut client).iter().filter(|(_, shard)| *shard == 0).count();
    assert!((2..=24).contains(&on_first), "{on_first} of 26 tablets are on the first shard");
    let refused = client.tablets("cores 3").expect_err("there are two");
    assert!(refused.refusal().is_some_and(|refusal| refusal.code == Code::NoSuchShard), "{refused}");
    drop(client);
    Arc::into_inner(server).expect("the writers have ended").stop();
    for cores in ["1", "2"] {
        let server = Server::start(dir.path(), &["--cores", cores, "--oversubscribe"]);
        let mut client = connect(&server);
        assert_eq!(tablets(&mut client).len(), 16 + SPLITS as usize);
        check(&mut client, &sums);
        drop(client);
        server.stop();
    }
}

/// Counts until the server is gone. What was acknowledged.
fn count_until_gone(server: SocketAddr, writer: u32, first: &[i64]) -> Vec<i64> {
    let mut sums = first.to_vec();
    let Ok(mut client) = try_connect(server) else { return sums };
    for turn in 0.. {
        let which = turn % COUNTERS as usize;
        match client.incr(key(writer, which as u32).as_bytes(), 1) {
            Ok(counter) => sums[which] = counter.value,
            Err(_) => break,
        }
    }
    sums
}

/// Stopped or killed while tablets move and split, the server starts again, and has all that it acknowledged.
#[test]
fn a_server_that_ends_amid_moves_starts_with_everything() {
    let dir = disk_dir();
    let mut rng = fastrand::Rng::with_seed(11);
    let mut sums = vec![vec![0i64; COUNTERS as usize]; WRITERS as usize];
    for round in 0..6 {
        let mut server = Server::start(dir.path(), &["--cores", "2", "--oversubscribe"]);
        let mut client = connect(&server);
        for (writer, sums) in (0..).zip(&mut sums) {
            for (counter, sum) in (0..).zip(sums) {
                let found = client.get(key(writer, counter).as_bytes()).expect("a read");
                let text = found.map_or(b"0".to_vec(), |found| found.value);
                let value: i64 = String::from_utf8_lossy(&text).parse().expect("a number");
                // One more may have been on its way.
                assert!((*sum..=*sum + 1).contains(&value), "round {round}: {value} after {sum}");
                *sum = value;
            }
        }
        let address = server.address;
        let writers: Vec<_> = (0..WRITERS)
            .zip(sums.clone())
            .map(|(writer, first)| thread::spawn(move || count_until_gone(address, writer, &first)))
            .collect();
        let seed = rng.u64(..);
        let mover = thread::spawn(move || {
            let mut rng = fastrand::Rng::with_seed(seed);
            let Ok(mut client) = try_connect(address) else { return 0 };
            let mut done = 0;
            loop {
                let Ok(text) = client.stats("tablets") else { return done };
                let all = text.lines().filter(|line| line.contains(".shard=")).count() as u32;
                let tablet = rng.u32(..all);
                let command = match rng.u8(..8) {
                    0 if all < 40 => format!("split {tablet}"),
                    _ => format!("move {tablet} {}", rng.u8(..2)),
                };
                if client.tablets(&command).is_err() {
                    return done;
                }
                done += 1;
            }
        });
        thread::sleep(Duration::from_millis(rng.u64(300..900)));
        drop(client);
        if round % 2 == 0 {
            server.kill();
        } else {
            let (status, log) = server.stop();
            assert!(status.success(), "round {round}: {log}");
        }
        for (writer, sums) in writers.into_iter().zip(&mut sums) {
            *sums = writer.join().expect("a writer");
        }
        assert!(mover.join().expect("a mover") > 0, "round {round}: something moved meanwhile");
    }
}
