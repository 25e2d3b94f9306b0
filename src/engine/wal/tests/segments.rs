//! Segments that are free: given up oldest first, for good, and whatever a crash or an error leaves of them is
//! a log that can be read.

use std::cell::Cell;
use std::time::Duration;

use super::*;

/// A segment of one block of [`VALUE_BYTES`].
const ONE_BLOCK: u64 = 16 << 10;
const VALUE_BYTES: usize = 9000;

/// What was known when it ended.
#[derive(Default)]
struct Known {
    acknowledged: Cell<u64>,
    flushed: Cell<u64>,
}

/// Fills segment after segment and has them freed several at a time, so that some are reused and others are
/// removed.
async fn churn(env: &SimEnv, known: &Known, is_closed: bool) {
    env.disk().create_dir("wal").await.unwrap();
    env.disk().sync_dir("").await.unwrap();
    let options = WalOptions { segment_bytes: ONE_BLOCK, ..options(2) };
    let Ok(wal) = Wal::create(env, LogId(1), options).await else { return };
    let tablet = wal.add_tablet(TabletId(0), 1, EntryIndex::ZERO, EntryIndex::ZERO);
    wal.start();
    let changed = wal.durable_changed();
    for round in 1..=4 {
        for _ in 0..5 {
            changed.until(|| wal.failed().is_some() || wal.room(VALUE_BYTES + 64) == WalRoom::Yes).await;
            if wal.failed().is_some() {
                return;
            }
            let appended = wal.append(tablet, &[put(b"key", &[round; VALUE_BYTES])]).unwrap();
            changed.until(|| wal.failed().is_some() || wal.durable() >= appended.block).await;
            if wal.failed().is_some() {
                return;
            }
            known.acknowledged.set(appended.lsn.index().0);
        }
        // In an engine the manifest says so by now.
        known.flushed.set(known.acknowledged.get());
        wal.set_flushed(tablet, EntryIndex(known.flushed.get()));
        env.sleep(Duration::from_millis(u64::from(round))).await;
    }
    if is_closed {
        // Past every retry.
        env.sleep(Duration::from_secs(1)).await;
        // An error of the last close of a file tells nothing of the log.
        let _ = wal.close().await;
    }
}

async fn unless_down(env: &SimEnv, work: impl Future<Output = ()>) {
    let down = async {
        while !env.disk().is_down() {
            env.sleep(Duration::from_micros(50)).await;
        }
    };
    futures_lite::future::or(work, down).await;
}

/// Reads what is on disk as a start does, with what tables hold.
fn examine(world: &SimWorld, env: &SimEnv, known: &Known, what: &str) {
    let scan = world.run(async {
        // The directory itself may be gone with the crash.
        let segments = list_logs(env).await.unwrap_or_default().remove(&LogId(1))?;
        Some(scan_log(env, LogId(1), segments, None, &|_| EntryIndex(known.flushed.get())).await)
    });
    let names: Vec<_> = env.disk().paths();
    let Some(scan) = scan else {
        assert_eq!(known.acknowledged.get(), 0, "{what}: nothing is left of it");
        return;
    };
    let scan = scan.unwrap_or_else(|error| panic!("{what}: {error}; segments: {names:?}"));
    let found = scan.runs.tablets().get(&TabletId(0)).and_then(|runs| runs.last());
    let last = found.map_or(0, |run| run.last.0).max(known.flushed.get());
    assert!(last >= known.acknowledged.get(), "{what}: ends with {last}; segments: {names:?}");
}

/// Free segments were a stack once, and removed without a sync: after a crash segments 0, 2 and 3 were left.
/// The next start took the hole for rot and refused, though tables held all of it. Now they leave in the
/// order in which they were filled, and each for good before the next.
#[test]
fn no_crash_leaves_a_hole_of_freed_segments() {
    let run = |seed: u64, crash_at: u64| {
        let (world, env) = SimEnv::fresh(seed);
        env.disk().crash_at(crash_at);
        let known = Known::default();
        world.run(unless_down(&env, churn(&env, &known, false)));
        world.kill();
        (env, known)
    };
    let (env, known) = run(1, u64::MAX);
    assert_eq!(known.flushed.get(), 20);
    for crash_at in 1..=env.disk().operations() {
        let (env, known) = run(crash_at, crash_at);
        for (number, keep) in [0, 30, 60, 90, 100].into_iter().enumerate() {
            let what = format!("crash at operation {crash_at}, keeping {keep} %");
            let world = SimWorld::new(crash_at);
            let mut rng = fastrand::Rng::with_seed(crash_at * 8 + number as u64);
            let env = SimEnv::new(&world, env.disk().crash(&world, &mut rng, keep));
            let numbers: Vec<u64> = world.run(async {
                let logs = list_logs(&env).await.unwrap_or_default();
                logs.into_values().flatten().map(|segment| segment.number).collect()
            });
            let is_dense = numbers.windows(2).all(|pair| pair[1] == pair[0] + 1);
            assert!(is_dense, "{what}: segments {numbers:?}");
            examine(&world, &env, &known, &what);
        }
    }
}

/// An error on the way did the same: a segment that could not be renamed or removed was forgotten, and stayed
/// while those after it went.
#[test]
fn no_error_leaves_a_hole_of_freed_segments() {
    let (mut given_up, mut closed) = (0, 0);
    for operation in ["open", "close", "rename", "remove", "sync_dir", "write", "sync", "dsync"] {
        for skip in 1..40 {
            for (once, errno) in [(true, libc::EIO), (true, libc::ENOSPC), (false, libc::EIO)] {
                let what = format!("{operation} fails with {errno} after {skip}, once: {once}");
                let (world, env) = SimEnv::fresh(skip);
                let known = Known::default();
                env.disk().fail(operation, "wal", skip, errno, once);
                let is_done = Cell::new(false);
                world.run(futures_lite::future::or(
                    async {
                        churn(&env, &known, true).await;
                        is_done.set(true);
                    },
                    env.sleep(Duration::from_secs(10)),
                ));
                *if is_done.get() { &mut closed } else { &mut given_up } += 1;
                world.kill();
                env.disk().heal();
                examine(&world, &env, &known, &what);
            }
        }
    }
    assert!(closed > 100 && given_up > 10, "{closed} came to their end, {given_up} did not");
}

/// The seal was left out when the last segment was full and the next one not prepared yet: damage to the last
/// block, acknowledged long before, was then taken for a write that was never finished.
#[test]
fn a_log_that_ends_with_its_segment_is_sealed_too() {
    for seed in 1..40 {
        let (world, env) = SimEnv::fresh(seed);
        let blocks = 1 + seed % 4;
        world.run(async {
            env.disk().create_dir("wal").await.unwrap();
            let options = WalOptions { segment_bytes: ONE_BLOCK, ..options(2) };
            let wal = Wal::create(&env, LogId(1), options).await.unwrap();
            let tablet = wal.add_tablet(TabletId(0), 1, EntryIndex::ZERO, EntryIndex::ZERO);
            wal.start();
            let changed = wal.durable_changed();
            for _ in 0..blocks {
                changed.until(|| wal.room(VALUE_BYTES + 64) == WalRoom::Yes).await;
                wal.append(tablet, &[put(b"key", &[1; VALUE_BYTES])]).unwrap();
            }
            if seed % 3 > 0 {
                changed.until(|| wal.durable() >= wal.appended()).await;
            }
            wal.close().await.unwrap();
        });
        let path = segment_path(LogId(1), blocks - 1);
        let scan = |env: &SimEnv| {
            world.run(async {
                let segments = list_logs(env).await.unwrap().remove(&LogId(1)).unwrap();
                scan_log(env, LogId(1), segments, None, &|_| EntryIndex::ZERO).await
            })
        };
        assert_eq!(scan(&env).unwrap().end, BlockSeq(blocks + 1), "seed {seed}: the last block is a seal");
        let mut bytes = env.disk().peek(&path).unwrap();
        bytes[5000] ^= 1;
        env.disk().poke(&path, bytes);
        let error = scan(&env).expect_err("the last write is gone");
        assert!(
            matches!(&error, WalError::Rot { path: named, .. } if *named == path),
            "seed {seed}: {error}"
        );
        world.kill();
    }
}

/// A flipped bit in the header of the block that a log begins with, after segments before it were given up, once lost
/// an acknowledged write without a word, if the block had its segment for itself and its tablet had no later entries:
/// a segment without a block was passed over, and nothing missed what had been in it.
#[test]
fn a_damaged_header_of_the_block_that_a_log_begins_with_is_an_error() {
    let path = segment_path(LogId(1), 2);
    let closed = |seed| {
        let (world, env) = SimEnv::fresh(seed);
        world.run(async {
            env.disk().create_dir("wal").await.unwrap();
            let options = WalOptions { segment_bytes: ONE_BLOCK, ..options(2) };
            let wal = Wal::create(&env, LogId(1), options).await.unwrap();
            let tablets =
                [0, 1].map(|id| wal.add_tablet(TabletId(id), 1, EntryIndex::ZERO, EntryIndex::ZERO));
            wal.start();
            let changed = wal.durable_changed();
            for (number, tablet) in [0, 0, 1, 0, 0].into_iter().enumerate() {
                changed.until(|| wal.room(VALUE_BYTES + 64) == WalRoom::Yes).await;
                let value = [number as u8; VALUE_BYTES];
                let appended = wal.append(tablets[tablet], &[put(b"key", &value)]).unwrap();
                changed.until(|| wal.durable() >= appended.block).await;
                if number == 2 {
                    wal.set_flushed(tablets[0], EntryIndex(2));
                }
            }
            wal.close().await.unwrap();
            let first = list_logs(&env).await.unwrap()[&LogId(1)][0].clone();
            assert_eq!(first.path, path, "the first two were given up");
        });
        (world, env)
    };
    let scan = |(world, env): (SimWorld, SimEnv), end| {
        let flushed = |tablet| EntryIndex(if tablet == TabletId(0) { 4 } else { 0 });
        world.run(async {
            let segments = list_logs(&env).await.unwrap().remove(&LogId(1)).unwrap();
            scan_log(&env, LogId(1), segments, end, &flushed).await
        })
    };
    let whole = scan(closed(1), None).unwrap();
    assert!(whole.runs.tablets().contains_key(&TabletId(1)), "what is at stake");
    for end in [None, Some(whole.end)] {
        for at in 0..BLOCK_HEADER_BYTES {
            let store = closed(1);
            flip(store.1.disk(), &path, SEGMENT_HEADER_BYTES + at);
            let error = scan(store, end).expect_err("an entry is lost").to_string();
            assert!(error.contains(&path) && error.contains("unreadable block"), "byte {at}: {error}");
        }
    }
}
