//! SAVE and BGSAVE: the newest save is a data directory, the one before is gone, and nothing else is touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::harness::{Server, disk_dir, eventually};
use crate::redis::{Redis, line};

const TWO: &[&str] = &["--cores", "2", "--oversubscribe"];

/// The directories that SAVE has made, by their numbers.
fn saves(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut all: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    all.retain(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"save-1")));
    all.sort();
    all
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is set").as_secs()
}

fn last_save(redis: &mut Redis) -> u64 {
    redis.ask("LASTSAVE").trim().trim_start_matches(':').parse().expect("a number")
}

fn is_running(redis: &mut Redis) -> bool {
    let info = redis.ask("INFO persistence");
    assert!(info.contains("\r\nrdb_last_bgsave_status:ok\r\n"), "{info}");
    assert!(info.contains(&format!("\r\nrdb_last_save_time:{}\r\n", last_save(redis))), "{info}");
    info.contains("\r\nrdb_bgsave_in_progress:1\r\n")
}

#[test]
fn the_newest_save_is_a_data_directory_and_the_only_one() {
    let dir = disk_dir();
    let data = dir.path().join("data");
    let server = Server::start(&data, TWO);
    let mut redis = Redis::connect(server.address);
    let started = last_save(&mut redis);
    assert!(started.abs_diff(now_s()) < 60);
    let bytes: Vec<u8> = (0..2_000).flat_map(|n| line(&format!("SET k{n} {n}"))).collect();
    // Behind them in one pipeline, so that they belong to it.
    redis.send(&[bytes, line("SAVE"), line("SET later v")].concat());
    (0..2_002).for_each(|_| assert_eq!(redis.reply(), b"+OK\r\n"));
    let first = saves(&data.join("saves"));
    assert_eq!(first.len(), 1);
    assert!(!is_running(&mut redis) && last_save(&mut redis) >= started);
    // It is served while this server goes on.
    {
        let copy = Server::start(&first[0], TWO);
        let mut redis = Redis::connect(copy.address);
        assert_eq!(redis.ask("DBSIZE"), ":2000\r\n");
        assert_eq!(redis.ask("GET k1999"), "$4\r\n1999\r\n");
        assert_eq!(redis.ask("SET mine v"), "+OK\r\n");
    }
    assert_eq!(redis.ask("SAVE"), "+OK\r\n");
    let second = saves(&data.join("saves"));
    assert_eq!(second.len(), 2, "what a server was started on is more than a save");
    // What it logs comes by a way of its own.
    eventually("it says why", || server.log().contains("is no part of a checkpoint"));
    for _ in 0..3 {
        assert_eq!(redis.ask("SAVE"), "+OK\r\n");
        let third = saves(&data.join("saves"));
        assert_eq!(third.len(), 2);
        assert_eq!(third[0], first[0]);
        assert_ne!(third[1], second[1], "the one before is gone");
    }
    let newest = saves(&data.join("saves")).pop().expect("there is one");
    server.stop();
    // The data themselves are as they were, with saves below them; and the save alone has all of them.
    for data in [&data, &newest] {
        let server = Server::start(data, &["--cores", "1"]);
        let mut redis = Redis::connect(server.address);
        assert_eq!(redis.ask("DBSIZE"), ":2001\r\n");
        assert_eq!(redis.ask("GET later"), "$1\r\nv\r\n");
    }
}

#[test]
fn one_save_runs_at_a_time_and_all_shards_know() {
    let dir = disk_dir();
    let data = dir.path().join("data");
    let server = Server::start(&data, TWO);
    let mut redis = Redis::connect(server.address);
    let mut other = Redis::connect(server.address);
    redis.ask("SET k v");
    let (mut started, mut refused) = (0, 0);
    // The second comes before the first is done, unless this process waits for long.
    while refused == 0 {
        redis.send(&[line("BGSAVE"), line("BGSAVE SCHEDULE")].concat());
        assert_eq!(redis.reply(), b"+Background saving started\r\n");
        started += 1;
        match &redis.reply()[..] {
            b"+Background saving started\r\n" => started += 1,
            b"-ERR Background save already in progress\r\n" => refused += 1,
            reply => panic!("{}", reply.escape_ascii()),
        }
        eventually("the saves have ended", || !is_running(&mut other));
        assert!(!is_running(&mut redis));
        assert_eq!(saves(&data.join("saves")).len(), 1);
    }
    assert_eq!(last_save(&mut redis), last_save(&mut other));
    let stats = crate::harness::connect(&server).stats("total").expect("figures");
    assert!(stats.lines().any(|line| line == format!("checkpoints={started}")), "{stats}");
    // Who asks for one may leave; it is made all the same.
    let newest = saves(&data.join("saves"));
    redis.send(&line("BGSAVE"));
    assert_eq!(redis.reply(), b"+Background saving started\r\n");
    drop(redis);
    eventually("it is made", || saves(&data.join("saves")) != newest && !is_running(&mut other));
    let newest = saves(&data.join("saves"));
    assert_eq!(newest.len(), 1);
    // A stop waits for it.
    assert_eq!(other.ask("BGSAVE"), "+Background saving started\r\n");
    let (status, log) = server.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    let last = saves(&data.join("saves"));
    assert!(last.len() == 1 && last != newest && !last[0].join("INCOMPLETE").exists(), "{last:?}");
}

#[test]
fn only_what_saves_have_made_is_removed() {
    let dir = disk_dir();
    let (data, place) = (dir.path().join("data"), dir.path().join("else/where"));
    let flag = ["--save-dir", place.to_str().expect("text")];
    let server = Server::start(&data, &[TWO, &flag].concat());
    let mut redis = Redis::connect(server.address);
    redis.ask("SET k v");
    // Ours: what a crash has left.
    fs::create_dir_all(place.join("save-11/sst")).expect("our own directory");
    fs::write(place.join("save-11/INCOMPLETE"), "").expect("our own directory");
    fs::create_dir(place.join("save-12")).expect("our own directory");
    // Not ours.
    fs::create_dir_all(place.join("save-13/sst")).expect("our own directory");
    fs::write(place.join("save-13/sst/notes"), "").expect("our own directory");
    fs::create_dir(place.join("save-014")).expect("our own directory");
    fs::create_dir(place.join("mine")).expect("our own directory");
    fs::write(place.join("save-15"), "").expect("our own directory");
    for _ in 0..2 {
        assert_eq!(redis.ask("SAVE"), "+OK\r\n");
        assert!(!data.join("saves").exists());
        for (name, is_there) in [
            ("save-11", false),
            ("save-12", false),
            ("save-13/sst/notes", true),
            ("save-014", true),
            ("mine", true),
            ("save-15", true),
        ] {
            assert_eq!(place.join(name).exists(), is_there, "{name}");
        }
        let ours: Vec<_> = saves(&place).into_iter().filter(|path| path.join("CURRENT").exists()).collect();
        assert_eq!(ours.len(), 1);
    }
}

#[test]
fn a_save_that_fails_is_told_and_leaves_nothing() {
    let dir = disk_dir();
    let (data, place) = (dir.path().join("data"), dir.path().join("saves"));
    // A file where the directory should be.
    fs::write(&place, "").expect("our own directory");
    let server = Server::start(&data, &[TWO, &["--save-dir", place.to_str().expect("text")]].concat());
    let mut redis = Redis::connect(server.address);
    let reply = redis.ask("SAVE");
    assert!(reply.starts_with("-ERR ") && reply.contains("saves"), "{reply}");
    let info = redis.ask("INFO persistence");
    assert!(info.contains("\r\nrdb_last_bgsave_status:err\r\n"), "{info}");
    fs::remove_file(&place).expect("our own directory");
    assert_eq!(redis.ask("SAVE"), "+OK\r\n");
    let info = redis.ask("INFO persistence");
    assert!(info.contains("\r\nrdb_last_bgsave_status:ok\r\n"), "{info}");
    assert_eq!(saves(&place).len(), 1);
}

#[test]
fn settings_may_be_set_to_what_they_are() {
    let dir = disk_dir();
    let server = Server::start(&dir.path().join("data"), TWO);
    let mut redis = Redis::connect(server.address);
    for command in ["CONFIG SET save ", "CONFIG SET appendonly yes", "CONFIG SET Save  maxmemory 256mb"] {
        assert_eq!(redis.ask(command), "+OK\r\n", "{command}");
    }
    for command in ["CONFIG SET appendonly no", "CONFIG SET save  maxmemory 1"] {
        assert!(redis.ask(command).starts_with("-ERR CONFIG SET failed"), "{command}");
    }
}
