//! Scans over TCP: order, bounds, and what happens to a scan when the world around it changes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use atlaskv::client::{Client, Entry, Error, KeyRange};
use rustix::process::Signal;

use crate::harness::{Server, connect, disk_dir, eventually, seed};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;

/// Keys of all kinds: untagged ones, and some under a few tags.
fn key(number: usize) -> Vec<u8> {
    match number % 4 {
        0 => format!("{{tag-{}}}:{number:06}", number % 7).into_bytes(),
        _ => format!("key:{number:06}").into_bytes(),
    }
}

fn load(client: &mut Client, map: &mut Map, numbers: std::ops::Range<usize>, value_bytes: usize) {
    let numbers: Vec<usize> = numbers.collect();
    for some in numbers.chunks(1000) {
        let mut pipeline = client.pipeline();
        for &number in some {
            let value = format!("{number}:").repeat(value_bytes / 8 + 1).into_bytes();
            pipeline.set(&key(number), &value);
            map.insert(key(number), value);
        }
        pipeline.run().into_iter().for_each(|answer| drop(answer.expect("it is stored")));
    }
}

fn pairs(entries: impl Iterator<Item = Result<Entry, Error>>) -> Vec<(Vec<u8>, Vec<u8>)> {
    entries.map(|entry| entry.expect("the scan goes on")).map(|entry| (entry.key, entry.value)).collect()
}

fn expected(map: &Map, is_wanted: impl Fn(&[u8]) -> bool) -> Vec<(Vec<u8>, Vec<u8>)> {
    map.iter().filter(|(key, _)| is_wanted(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

fn check(client: &mut Client, map: &Map) {
    assert!(pairs(client.scan(KeyRange::all())) == expected(map, |_| true));
    let mut backward = expected(map, |_| true);
    backward.reverse();
    assert!(pairs(client.scan(KeyRange::all()).reverse().page(0, 20_000)) == backward);
    for prefix in [&b"key:0001"[..], b"{tag-3}", b"{tag-3}:0", b"{tag-", b"none"] {
        let mut wanted = expected(map, |key| key.starts_with(prefix));
        assert!(pairs(client.scan(KeyRange::prefix(prefix))) == wanted, "{}", prefix.escape_ascii());
        wanted.reverse();
        wanted.truncate(17);
        let found = pairs(client.scan(KeyRange::prefix(prefix)).reverse().limit(17).page(5, 0));
        assert!(found == wanted, "the last of {}", prefix.escape_ascii());
    }
    let (start, end) = (&b"key:000100"[..], &b"key:000500"[..]);
    let found = client.scan(KeyRange::between(start, end)).keys_only();
    let wanted = expected(map, |key| key >= start && key < end);
    assert!(pairs(found).into_iter().eq(wanted.into_iter().map(|(key, _)| (key, Vec::new()))));
}

#[test]
fn keys_come_in_order_with_any_number_of_shards() {
    for cores in ["1", "2"] {
        let dir = disk_dir();
        let server = Server::start(dir.path(), &["--cores", cores, "--oversubscribe", "--memory", "256MiB"]);
        let mut client = connect(&server);
        let mut map = Map::new();
        assert_eq!(client.scan(KeyRange::all()).count(), 0);
        load(&mut client, &mut map, 0..6000, 100);
        for number in (0..6000).step_by(5) {
            client.delete(&key(number)).unwrap();
            map.remove(&key(number));
        }
        check(&mut client, &map);
        // As tables, and with some more in memory.
        server.stop();
        let server = Server::start(dir.path(), &["--cores", cores, "--oversubscribe", "--memory", "256MiB"]);
        let mut client = connect(&server);
        load(&mut client, &mut map, 5000..7000, 100);
        check(&mut client, &map);
    }
}

#[test]
fn a_hundred_thousand_keys_are_all_there_once() {
    let dir = disk_dir();
    let server = Server::start(dir.path(), &["--cores", "2", "--oversubscribe", "--tablets", "64"]);
    let mut client = connect(&server);
    let mut map = Map::new();
    load(&mut client, &mut map, 0..100_000, 400);
    assert!(pairs(client.scan(KeyRange::all())) == expected(&map, |_| true));
    let stats = client.stats("total").unwrap();
    assert!(stats.lines().any(|line| line == "snapshots=0"), "{stats}");
}

#[test]
fn a_cursor_is_good_after_a_restart_with_another_number_of_shards() {
    let dir = disk_dir();
    let server = Server::start(dir.path(), &["--cores", "2", "--oversubscribe"]);
    let mut client = connect(&server);
    let mut map = Map::new();
    load(&mut client, &mut map, 0..3000, 100);
    let mut scan = client.scan(KeyRange::all()).page(700, 0);
    let mut found: Vec<_> = (&mut scan).take(700).map(|entry| entry.unwrap().key).collect();
    assert!(!scan.was_renewed());
    let cursor = scan.cursor().unwrap().to_vec();
    drop(scan);
    server.stop();
    let server = Server::start(dir.path(), &["--cores", "1"]);
    let mut client = connect(&server);
    let mut scan = client.scan(KeyRange::all()).resume(&cursor);
    found.extend((&mut scan).map(|entry| entry.unwrap().key));
    assert!(scan.was_renewed());
    assert!(found.iter().eq(map.keys()));
    // Asked twice for the same page, the server gives the same keys.
    let again: Vec<_> =
        client.scan(KeyRange::all()).resume(&cursor).map(|entry| entry.unwrap().key).collect();
    assert!(again == found[700..]);
}

/// A client that stops in the middle of a scan keeps no one from writing, and what it has begun to see does not
/// change; memory stays as bounded as it is.
#[test]
fn writers_do_not_wait_for_a_slow_scan_and_it_does_not_see_them() {
    let seed = seed("writers_do_not_wait_for_a_slow_scan_and_it_does_not_see_them");
    let dir = disk_dir();
    // Little memory, so that memtables are flushed under the scan.
    let server = Server::start(dir.path(), &["--cores", "1", "--memory", "192MiB", "--sync", "none"]);
    let mut client = connect(&server);
    let mut map = Map::new();
    load(&mut client, &mut map, 0..20_000, 1000);
    let mut scan_client = connect(&server);
    let mut scan = scan_client.scan(KeyRange::all()).page(500, 0);
    let mut found = pairs((&mut scan).take(500));
    let (is_over, writes) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = fastrand::Rng::with_seed(seed);
            while !is_over.load(Ordering::Relaxed) {
                let mut pipeline = client.pipeline();
                for _ in 0..500 {
                    let key = key(rng.usize(..25_000));
                    if rng.u8(..4) == 0 {
                        pipeline.delete(&key)
                    } else {
                        pipeline.set(&key, &[7; 1000])
                    };
                }
                pipeline.run().into_iter().for_each(|answer| drop(answer.expect("writes go on")));
                writes.fetch_add(500, Ordering::Relaxed);
            }
        });
        let mut watcher = connect(&server);
        let flushes = |watcher: &mut Client| {
            let stats = watcher.stats("total").expect("it answers");
            let line = stats.lines().find_map(|line| line.strip_prefix("flushes="));
            line.and_then(|count| count.parse::<u64>().ok()).expect("flushes are counted")
        };
        let before = flushes(&mut watcher);
        // Not one page is asked for while some memtables are filled and flushed.
        eventually("memtables are flushed while the scan stands", || flushes(&mut watcher) >= before + 2);
        found.extend(pairs(&mut scan));
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(!scan.was_renewed());
    assert!(found == expected(&map, |_| true), "seed {seed}");
    assert!(writes.load(Ordering::Relaxed) > 20_000, "seed {seed}");
}

#[test]
fn large_values_come_one_a_page_and_nothing_is_too_large() {
    let dir = disk_dir();
    let server = Server::start(
        dir.path(),
        &["--cores", "2", "--oversubscribe", "--max-value-size", "4MiB", "--memory", "512MiB"],
    );
    let mut client = connect(&server);
    let mut map = Map::new();
    for number in 0..5u8 {
        // With the longest key a page has to hold that twice.
        let (key, value) = (vec![number + 1; 65_535], vec![number; 4 << 20]);
        client.set(&key, &value).unwrap();
        map.insert(key, value);
    }
    load(&mut client, &mut map, 0..100, 100);
    assert!(pairs(client.scan(KeyRange::all())) == expected(&map, |_| true));
    let mut backward = expected(&map, |_| true);
    backward.reverse();
    assert!(pairs(client.scan(KeyRange::all()).reverse()) == backward);
}

/// Sessions of clients that went away make room for others, and a stop does not wait for them.
#[test]
fn scans_that_nobody_finishes_do_not_pile_up() {
    let dir = disk_dir();
    let server = Server::start(dir.path(), &["--cores", "2", "--oversubscribe"]);
    let mut client = connect(&server);
    let mut map = Map::new();
    load(&mut client, &mut map, 0..2000, 100);
    for _ in 0..300 {
        let mut scan = client.scan(KeyRange::all()).page(10, 0);
        scan.next().unwrap().unwrap();
        drop(scan);
        client = connect(&server);
    }
    let stats = client.stats("total").unwrap();
    let line = stats.lines().find_map(|line| line.strip_prefix("snapshots=")).unwrap();
    assert!(line.parse::<u64>().unwrap() <= 2 * 64 + 4, "{line} snapshots are open");
    assert!(pairs(client.scan(KeyRange::all())) == expected(&map, |_| true));
    server.signal(Signal::TERM);
    let (status, log) = server.stop();
    assert!(status.success(), "{log}");
}

/// A scan of everything reads past the cache what others have there.
#[test]
fn a_full_scan_leaves_the_hot_set_in_the_cache() {
    let dir = disk_dir();
    let server = Server::start(dir.path(), &["--cores", "1", "--memory", "192MiB", "--sync", "none"]);
    let mut client = connect(&server);
    let mut map = Map::new();
    load(&mut client, &mut map, 0..120_000, 1000);
    server.stop();
    let server = Server::start(dir.path(), &["--cores", "1", "--memory", "192MiB", "--sync", "none"]);
    let mut client = connect(&server);
    let figure = |client: &mut Client, name: &str| {
        let stats = client.stats("total").unwrap();
        let line = stats.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.and_then(|count| count.parse::<u64>().ok()).unwrap()
    };
    let mut rng = fastrand::Rng::with_seed(4);
    let hot: Vec<Vec<u8>> = (0..4000).map(|_| key(rng.usize(..120_000))).collect();
    let read_hot = |client: &mut Client| {
        let before = figure(client, "disk_waits");
        for some in hot.chunks(500) {
            let mut pipeline = client.pipeline();
            for key in some {
                pipeline.get(key);
            }
            pipeline.run().into_iter().for_each(|answer| drop(answer.unwrap()));
        }
        1.0 - (figure(client, "disk_waits") - before) as f64 / hot.len() as f64
    };
    // A merge that ends meanwhile puts other blocks in the place of cached ones.
    let mut measure = || {
        let rewrites = |client: &mut Client| figure(client, "compactions") + figure(client, "flushes");
        let begun = rewrites(&mut client);
        for _ in 0..4 {
            read_hot(&mut client);
        }
        let before = read_hot(&mut client);
        let entries = client.scan(KeyRange::all()).keys_only().count();
        assert_eq!(entries, map.len());
        let after = read_hot(&mut client);
        (rewrites(&mut client) == begun).then_some((before, after))
    };
    let measured = (0..40).find_map(|_| measure());
    let (before, after) = measured.expect("merges end when nothing is written");
    assert!(before > 0.9, "the hot set does not fit the cache: {before}");
    assert!(after > before - 0.05, "{before} of the hot set's reads hit before the scan, {after} after it");
    assert!(figure(&mut client, "scan_bytes") > 60 << 20, "the scan read past the cache");
}
