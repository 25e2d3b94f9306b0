//! The log on the simulated disk: crashes, torn and rotten blocks, reuse of segments, a full disk.

mod segments;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::format::{BLOCK_HEADER_BYTES, SEGMENT_HEADER_BYTES, segment_path};
use super::*;
use crate::base::{BlockSeq, LogId, Lsn, Op, OpIter, OpKind, PAGE_SIZE};
use crate::disk::Disk;
use crate::disk::sim::SimDisk;
use crate::env::Env;
use crate::env::sim::{SimEnv, SimWorld};

const SEGMENT: u64 = 64 << 10;

fn options(window: usize) -> WalOptions {
    WalOptions { segment_bytes: SEGMENT, window, lazy: None, cluster: 7 }
}

fn put<'a>(key: &'a [u8], value: &'a [u8]) -> Op<'a> {
    Op { kind: OpKind::Put, key, value, expiry_ms: 0 }
}

type Entries = BTreeMap<(u32, u64), Vec<Vec<u8>>>;

/// What replaying every log of `env` yields: the values of each entry, by tablet and index.
async fn replay(env: &SimEnv, ends: &BTreeMap<u64, u64>) -> Result<(Entries, Vec<LogScan>), WalError> {
    let mut scans = Vec::new();
    for (log, segments) in list_logs(env).await? {
        let end = ends.get(&log.0).map(|&end| BlockSeq(end));
        scans.push(scan_log(env, log, segments, end, &|_| EntryIndex::ZERO).await?);
    }
    let plan = ReplayPlan::merge(scans.iter().map(|scan| &scan.runs), |_| EntryIndex::ZERO, |_, _| true)?;
    let mut entries = Entries::new();
    for scan in &scans {
        let mut reader = LogReader::new(env, Rc::new(scan.clone()));
        let visit = |entries: &mut Entries, tablet: TabletId, index: EntryIndex, body: &[u8]| {
            let values = OpIter::new(body).map(|op| op.unwrap().value.to_vec()).collect();
            assert!(entries.insert((tablet.0, index.0), values).is_none(), "applied twice");
        };
        while reader
            .next_block(&plan, |t, i, b| {
                visit(&mut entries, t, i, b);
                Ok(())
            })
            .await?
            .is_some()
        {}
    }
    Ok((entries, scans))
}

/// Appends until the disk goes down or `count` is reached; what is known to be durable is noted.
struct Writer {
    appended: RefCell<Vec<(Lsn, u32, Vec<u8>)>>,
    acked: RefCell<usize>,
}

async fn write(env: SimEnv, log: u64, start: [u64; 2], count: usize, window: usize, writer: Rc<Writer>) {
    env.disk().create_dir("wal").await.unwrap();
    env.disk().sync_dir("").await.unwrap();
    let Ok(wal) = Wal::create(&env, LogId(log), options(window)).await else { return };
    let tablets: Vec<WalTablet> = (0..2)
        .map(|t| wal.add_tablet(TabletId(t), 1, EntryIndex(start[t as usize]), EntryIndex::ZERO))
        .collect();
    wal.start();
    let mut blocks = Vec::new();
    for n in 0..count {
        let tablet = (env.random() % 2) as usize;
        let value = vec![n as u8; (env.random() % 3000) as usize];
        let changed = wal.durable_changed();
        changed.until(|| wal.failed().is_some() || wal.room(value.len() + 64) == WalRoom::Yes).await;
        if wal.failed().is_some() {
            break;
        }
        let (log, op) = (tablets[tablet], put(b"k", &value));
        let appended = if env.random().is_multiple_of(4) {
            let mut encoded = Vec::new();
            op.encode(&mut encoded);
            wal.append_encoded(log, encoded).unwrap()
        } else {
            wal.append(log, &[op]).unwrap()
        };
        writer.appended.borrow_mut().push((appended.lsn, tablet as u32, value));
        blocks.push(appended.block);
        if env.random().is_multiple_of(3) {
            env.sleep(std::time::Duration::from_micros(env.random() % 300)).await;
        }
        let durable = blocks.iter().take_while(|block| **block <= wal.durable()).count();
        *writer.acked.borrow_mut() = durable;
    }
    wal.close().await.unwrap();
    if wal.failed().is_none() {
        *writer.acked.borrow_mut() = blocks.len();
    }
}

fn fresh_writer() -> Rc<Writer> {
    Rc::new(Writer { appended: RefCell::default(), acked: RefCell::default() })
}

/// Runs the writer in a world of its own and lets the disk go down at operation `crash_at`.
fn run_until_crash(seed: u64, crash_at: u64, window: usize) -> (SimWorld, SimEnv, Rc<Writer>, bool) {
    let (world, env) = SimEnv::fresh(seed);
    env.disk().crash_at(crash_at);
    let writer = fresh_writer();
    let ended = world.run(futures_lite::future::or(
        async {
            write(env.clone(), 1, [0, 0], 60, window, writer.clone()).await;
            true
        },
        async {
            while !env.disk().is_down() {
                env.sleep(std::time::Duration::from_micros(50)).await;
            }
            false
        },
    ));
    (world, env, writer, ended)
}

fn check(seed: u64, entries: &Entries, writer: &Writer) {
    let appended = writer.appended.borrow();
    let mut model = Entries::new();
    for (lsn, tablet, value) in appended.iter() {
        let values = model.entry((*tablet, lsn.index().0)).or_default();
        assert_eq!(values.len(), usize::from(lsn.ordinal()));
        values.push(value.clone());
    }
    for (lsn, tablet, _) in appended.iter().take(*writer.acked.borrow()) {
        assert!(entries.contains_key(&(*tablet, lsn.index().0)), "seed {seed}: acknowledged {lsn} is lost");
    }
    for (place, values) in entries {
        assert_eq!(model.get(place), Some(values), "seed {seed}: {place:?} is not what was appended");
    }
    for tablet in 0..2 {
        let count = entries.keys().filter(|(t, _)| *t == tablet).count() as u64;
        let last = entries.keys().filter(|(t, _)| *t == tablet).map(|(_, i)| *i).max().unwrap_or(0);
        assert_eq!(count, last, "seed {seed}: the entries of tablet {tablet} are not a dense prefix");
    }
}

#[test]
fn every_crash_keeps_what_was_acknowledged_and_nothing_that_was_not_written() {
    let base = 1000;
    let (_, env, _, ended) = run_until_crash(base, u64::MAX, 3);
    assert!(ended);
    let operations = env.disk().operations();
    assert!(operations > 60, "only {operations} operations to crash at");
    for crash_at in 1..=operations {
        for (window, keep) in [(2, 50), (3, 90), (1, 10)] {
            let seed = base + crash_at * 10 + window as u64;
            let (world, env, writer, _) = run_until_crash(seed, crash_at, window);
            world.kill();
            let world = SimWorld::new(seed + 1);
            let disk = env.disk().crash(&world, &mut fastrand::Rng::with_seed(seed), keep);
            let env = SimEnv::new(&world, disk);
            if env.disk().paths().is_empty() {
                assert_eq!(*writer.acked.borrow(), 0);
                continue;
            }
            let (entries, scans) = world.run(replay(&env, &BTreeMap::new())).unwrap();
            check(seed, &entries, &writer);
            // A second start after the cut: a new log goes on where the old one ended, and what was cut
            // must not come back.
            let ends: BTreeMap<u64, u64> = scans.iter().map(|scan| (scan.log.0, scan.end.0)).collect();
            let last = |t| entries.keys().filter(|(x, _)| *x == t).map(|(_, i)| *i).max().unwrap_or(0);
            let second = fresh_writer();
            world.run(write(env.clone(), 2, [last(0), last(1)], 5, window, second.clone()));
            let (after, _) = world.run(replay(&env, &ends)).unwrap();
            for (place, values) in &entries {
                assert_eq!(after.get(place), Some(values), "seed {seed}");
            }
            assert!(after.len() > entries.len());
        }
    }
}

/// A log of `count` blocks of one record each, closed, and its segment's bytes.
fn closed_log(seed: u64, count: usize) -> (SimWorld, SimEnv) {
    let (world, env) = SimEnv::fresh(seed);
    world.run(async {
        env.disk().create_dir("wal").await.unwrap();
        let wal = Wal::create(&env, LogId(1), options(2)).await.unwrap();
        let tablet = wal.add_tablet(TabletId(0), 1, EntryIndex::ZERO, EntryIndex::ZERO);
        wal.start();
        for n in 0..count {
            let appended = wal.append(tablet, &[put(b"key", &[n as u8; 100])]).unwrap();
            wal.durable_changed().until(|| wal.durable() >= appended.block).await;
        }
        wal.close().await.unwrap();
    });
    (world, env)
}

fn flip(disk: &SimDisk, path: &str, offset: usize) {
    let mut bytes = disk.peek(path).unwrap();
    bytes[offset] ^= 0x10;
    disk.poke(path, bytes);
}

#[test]
fn damage_in_the_middle_is_refused_and_names_what_was_lost() {
    let path = segment_path(LogId(1), 0);
    for in_block in [20, BLOCK_HEADER_BYTES + 60] {
        let (world, env) = closed_log(1, 8);
        flip(env.disk(), &path, SEGMENT_HEADER_BYTES + 3 * PAGE_SIZE + in_block);
        let error = world.run(replay(&env, &BTreeMap::new())).unwrap_err().to_string();
        assert!(error.contains(&path), "{error}");
        if in_block > BLOCK_HEADER_BYTES {
            assert!(error.contains(&format!("byte {}", SEGMENT_HEADER_BYTES + 3 * PAGE_SIZE)), "{error}");
            assert!(error.contains("entry 4 of tablet 0"), "{error}");
        }
    }
}

#[test]
fn damage_that_tables_cover_is_passed_over() {
    let path = segment_path(LogId(1), 0);
    let (world, env) = closed_log(1, 8);
    flip(env.disk(), &path, SEGMENT_HEADER_BYTES + 3 * PAGE_SIZE + BLOCK_HEADER_BYTES + 60);
    let scan = |flushed: u64| {
        world.run(async {
            let segments = list_logs(&env).await.unwrap().remove(&LogId(1)).unwrap();
            scan_log(&env, LogId(1), segments, None, &|_| EntryIndex(flushed)).await
        })
    };
    assert!(scan(3).is_err());
    let scan = scan(4).unwrap();
    assert_eq!(scan.blocks.len(), 8, "seven of eight, and the seal");
}

/// What stood at the end of a log that an earlier start has cut is named by entry, or passed over, as in its middle.
#[test]
fn a_damaged_end_of_a_cut_log_names_what_was_lost() {
    let path = segment_path(LogId(1), 0);
    let scan = |in_block: usize, flushed: u64| {
        let (world, env) = closed_log(1, 8);
        for block in 6..9 {
            flip(env.disk(), &path, SEGMENT_HEADER_BYTES + block * PAGE_SIZE + in_block);
        }
        world.run(async {
            let segments = list_logs(&env).await.unwrap().remove(&LogId(1)).unwrap();
            scan_log(&env, LogId(1), segments, Some(BlockSeq(8)), &|_| EntryIndex(flushed)).await
        })
    };
    let payload = BLOCK_HEADER_BYTES + 60;
    let error = scan(payload, 7).unwrap_err().to_string();
    assert!(error.contains(&path) && error.contains("entry 8 of tablet 0"), "{error}");
    assert!(error.contains(&format!("byte {}", SEGMENT_HEADER_BYTES + 6 * PAGE_SIZE)), "{error}");
    assert!(!error.contains("entry 7"), "{error}");
    let passed = scan(payload, 8).unwrap();
    assert_eq!((passed.blocks.len(), passed.end), (6, BlockSeq(8)));
    let error = scan(20, 8).unwrap_err().to_string();
    assert!(error.contains("what 2 unreadable block(s) from number 7 held"), "{error}");
}

#[test]
fn a_damaged_last_block_is_refused_after_a_seal() {
    // Without the seal this would be a torn tail; the seal says that the block was durable.
    let path = segment_path(LogId(1), 0);
    let (world, env) = closed_log(2, 4);
    flip(env.disk(), &path, SEGMENT_HEADER_BYTES + 3 * PAGE_SIZE + BLOCK_HEADER_BYTES + 60);
    assert!(matches!(world.run(replay(&env, &BTreeMap::new())), Err(WalError::Rot { .. })));
}

#[test]
fn a_torn_tail_is_cut_and_its_place_reported() {
    let path = segment_path(LogId(1), 0);
    let (world, env) = closed_log(3, 4);
    // Takes the seal away, then tears the block before it.
    let mut bytes = env.disk().peek(&path).unwrap();
    let seal = SEGMENT_HEADER_BYTES + 4 * PAGE_SIZE;
    bytes[seal..seal + PAGE_SIZE].fill(0);
    bytes[seal - PAGE_SIZE + BLOCK_HEADER_BYTES + 50] ^= 1;
    env.disk().poke(&path, bytes);
    let (entries, scans) = world.run(replay(&env, &BTreeMap::new())).unwrap();
    assert_eq!(entries.len(), 3);
    let torn = TornTail { path, offset: (seal - PAGE_SIZE) as u64 };
    assert_eq!(scans[0].torn, Some(torn));
}

/// A flipped bit in the header of the seal once looked as if no seal had ever been there, and was not told.
#[test]
fn a_damaged_header_of_the_last_block_is_told() {
    let path = segment_path(LogId(1), 0);
    let seal = SEGMENT_HEADER_BYTES + 4 * PAGE_SIZE;
    for at in 0..BLOCK_HEADER_BYTES {
        let (world, env) = closed_log(3, 4);
        flip(env.disk(), &path, seal + at);
        let (entries, scans) = world.run(replay(&env, &BTreeMap::new())).unwrap();
        assert_eq!(entries.len(), 4, "byte {at}");
        let torn = TornTail { path: path.clone(), offset: seal as u64 };
        assert_eq!(scans[0].torn, Some(torn), "byte {at}");
    }
    let (world, env) = closed_log(3, 4);
    let (_, scans) = world.run(replay(&env, &BTreeMap::new())).unwrap();
    assert_eq!(scans[0].torn, None, "a log that is whole");
}

#[test]
fn a_hole_in_the_window_is_cut_and_a_known_end_is_demanded() {
    let path = segment_path(LogId(1), 0);
    let (world, env) = SimEnv::fresh(4);
    world.run(async {
        env.disk().create_dir("wal").await.unwrap();
        let wal = Wal::create(&env, LogId(1), options(3)).await.unwrap();
        let tablet = wal.add_tablet(TabletId(0), 1, EntryIndex::ZERO, EntryIndex::ZERO);
        wal.start();
        for n in 0..3 {
            wal.append(tablet, &[put(b"key", &[n; 10])]).unwrap();
            wal.seal_open(); // three blocks, all in flight together
        }
        wal.durable_changed().until(|| wal.durable() == BlockSeq(3)).await;
    });
    let mut bytes = env.disk().peek(&path).unwrap();
    let second = SEGMENT_HEADER_BYTES + PAGE_SIZE;
    bytes[second..second + PAGE_SIZE].fill(0);
    env.disk().poke(&path, bytes);
    let (entries, scans) = world.run(replay(&env, &BTreeMap::new())).unwrap();
    assert_eq!((entries.len(), scans[0].end), (1, BlockSeq(1)), "block 3 came after a hole");
    let ends = BTreeMap::from([(1, 2)]);
    assert!(matches!(world.run(replay(&env, &ends)), Err(WalError::Rot { .. })));
}

/// Blocks were once limited in number, not in distance: while one write was slow, those behind it came and
/// went, and after a crash they stood so far beyond the hole that it was taken for rot.
#[test]
fn a_slow_write_is_not_taken_for_rot_after_a_crash() {
    for window in 1..=WINDOW_MAX {
        let (world, env) = SimEnv::fresh(9);
        let before = world.run(async {
            env.disk().create_dir("wal").await.unwrap();
            env.disk().sync_dir("").await.unwrap();
            let wal = Wal::create(&env, LogId(1), options(window)).await.unwrap();
            let tablet = wal.add_tablet(TabletId(0), 1, EntryIndex::ZERO, EntryIndex::ZERO);
            wal.start();
            let first = wal.append(tablet, &[put(b"key", &[0; 10])]).unwrap();
            wal.durable_changed().until(|| wal.durable() >= first.block).await;
            // The next segment is there, so what is slow is a block; and the seal of who is idle.
            env.sleep(std::time::Duration::from_secs(1)).await;
            let before = wal.durable();
            env.disk().delay("dsync", "wal/", 0, std::time::Duration::from_secs(1));
            for n in 1..20 {
                wal.append(tablet, &[put(b"key", &[n; 10])]).unwrap();
                wal.seal_open();
                env.sleep(std::time::Duration::from_millis(2)).await;
            }
            assert_eq!(wal.durable(), before, "what follows the slow block waits for it");
            before
        });
        world.kill();
        let world = SimWorld::new(10);
        let disk = env.disk().crash(&world, &mut fastrand::Rng::with_seed(1), 0);
        let env = SimEnv::new(&world, disk);
        let (entries, scans) = world.run(replay(&env, &BTreeMap::new())).unwrap();
        assert_eq!((entries.len(), scans[0].end), (1, before), "window {window}");
    }
}

/// Whoever asked for room for more than a segment holds was told to wait, for ever.
#[test]
fn what_no_segment_holds_is_not_waited_for() {
    let (world, env) = SimEnv::fresh(14);
    world.run(async {
        env.disk().create_dir("wal").await.unwrap();
        let wal = Wal::create(&env, LogId(1), options(2)).await.unwrap();
        let tablet = wal.add_tablet(TabletId(0), 1, EntryIndex::ZERO, EntryIndex::ZERO);
        wal.start();
        let most = wal.op_bytes_max();
        for round in 0..3 {
            assert_eq!(wal.room(most + 1), WalRoom::Never, "round {round}");
            let changed = wal.durable_changed();
            changed.until(|| wal.room(most) == WalRoom::Yes).await;
            let key = format!("key{round}");
            let overhead = put(key.as_bytes(), b"").encoded_len();
            let value = vec![1; most - overhead - 4];
            let appended = wal.append(tablet, &[put(key.as_bytes(), &value)]).unwrap();
            changed.until(|| wal.durable() >= appended.block).await;
        }
        wal.close().await.unwrap();
    });
}

#[test]
fn segments_are_recycled_and_their_old_blocks_are_never_taken_for_new_ones() {
    let (world, env) = SimEnv::fresh(5);
    world.run(async {
        env.disk().create_dir("wal").await.unwrap();
        let wal = Wal::create(&env, LogId(1), options(2)).await.unwrap();
        let tablet = wal.add_tablet(TabletId(0), 1, EntryIndex::ZERO, EntryIndex::ZERO);
        wal.start();
        let value = vec![1u8; 9000];
        for _ in 0..60 {
            let changed = wal.durable_changed();
            changed.until(|| wal.room(value.len() + 64) == WalRoom::Yes).await;
            let appended = wal.append(tablet, &[put(b"key", &value)]).unwrap();
            changed.until(|| wal.durable() >= appended.block).await;
            wal.set_flushed(tablet, appended.lsn.index());
        }
        assert!(wal.live_bytes() <= 2 * SEGMENT, "flushed segments are freed");
        let files = env.disk().paths().len();
        assert!(files <= 6, "{files} files: segments are reused, not piled up");
        // No close: as after kill -9.
    });
    world.kill();
    let scan = world.run(async {
        let segments = list_logs(&env).await.unwrap().remove(&LogId(1)).unwrap();
        scan_log(&env, LogId(1), segments, None, &|_| EntryIndex(60)).await.unwrap()
    });
    assert!(scan.end >= BlockSeq(60));
}

/// A free segment that could not be removed or renamed was left where it was while those after it went: the
/// next start took the hole for rot.
#[test]
fn a_free_segment_that_stays_leaves_no_hole_behind_it() {
    for operation in ["remove", "rename"] {
        let (world, env) = SimEnv::fresh(11);
        world.run(async {
            env.disk().create_dir("wal").await.unwrap();
            let wal = Wal::create(&env, LogId(1), options(2)).await.unwrap();
            let tablet = wal.add_tablet(TabletId(0), 1, EntryIndex::ZERO, EntryIndex::ZERO);
            wal.start();
            let value = vec![1u8; 9000];
            env.disk().fail(operation, "wal/", 0, libc::EIO, true);
            let mut last = EntryIndex::ZERO;
            for n in 0..120 {
                let changed = wal.durable_changed();
                changed.until(|| wal.room(value.len() + 64) == WalRoom::Yes).await;
                let appended = wal.append(tablet, &[put(b"key", &value)]).unwrap();
                changed.until(|| wal.durable() >= appended.block).await;
                last = appended.lsn.index();
                // Many at once, so that some are removed.
                if n % 50 == 49 {
                    wal.set_flushed(tablet, last);
                }
            }
            wal.set_flushed(tablet, last);
            env.sleep(std::time::Duration::from_secs(5)).await;
            wal.close().await.unwrap();
        });
        let flushed = EntryIndex(100);
        let scan = world.run(async {
            let segments = list_logs(&env).await.unwrap().remove(&LogId(1)).unwrap();
            assert!(segments.len() <= 6, "{operation}: it was tried again");
            scan_log(&env, LogId(1), segments, None, &|_| flushed).await
        });
        assert!(scan.unwrap().end >= BlockSeq(120), "{operation}");
    }
}

#[test]
fn a_failed_write_is_final() {
    let (world, env) = SimEnv::fresh(6);
    world.run(async {
        env.disk().create_dir("wal").await.unwrap();
        let wal = Wal::create(&env, LogId(1), options(2)).await.unwrap();
        let tablet = wal.add_tablet(TabletId(0), 1, EntryIndex::ZERO, EntryIndex::ZERO);
        wal.start();
        env.disk().fail("dsync", "wal/", 1, libc::EIO, true);
        let first = wal.append(tablet, &[put(b"a", b"")]).unwrap();
        wal.durable_changed().until(|| wal.durable() >= first.block).await;
        wal.append(tablet, &[put(b"b", b"")]).unwrap();
        wal.durable_changed().until(|| wal.failed().is_some()).await;
        assert_eq!(wal.durable(), first.block, "the failed block is never durable");
        assert!(wal.failed().unwrap().to_string().contains("wal/"));
        wal.close().await.unwrap();
    });
}

#[test]
fn a_full_disk_refuses_appends_and_space_brings_them_back() {
    let (world, env) = SimEnv::fresh(7);
    world.run(async {
        env.disk().create_dir("wal").await.unwrap();
        env.disk().set_capacity(SEGMENT + SEGMENT / 2);
        let wal = Wal::create(&env, LogId(1), options(2)).await.unwrap();
        let tablet = wal.add_tablet(TabletId(0), 1, EntryIndex::ZERO, EntryIndex::ZERO);
        wal.start();
        let value = vec![1u8; 9000];
        let changed = wal.durable_changed();
        changed
            .until(|| match wal.room(value.len() + 64) {
                WalRoom::Yes => {
                    wal.append(tablet, &[put(b"key", &value)]).unwrap();
                    wal.seal_open();
                    false
                }
                WalRoom::Wait => false,
                WalRoom::Never => panic!("a segment takes it"),
                WalRoom::Full(cause) => {
                    assert!(cause.contains("wal/"), "{cause}");
                    true
                }
            })
            .await;
        env.disk().set_capacity(u64::MAX);
        changed.until(|| wal.room(value.len() + 64) == WalRoom::Yes).await;
        let appended = wal.append(tablet, &[put(b"key", &value)]).unwrap();
        changed.until(|| wal.durable() >= appended.block).await;
        assert!(wal.failed().is_none());
        wal.close().await.unwrap();
    });
}

#[test]
fn a_lazy_log_writes_on_demand_and_within_its_interval() {
    let (world, env) = SimEnv::fresh(8);
    world.run(async {
        env.disk().create_dir("wal").await.unwrap();
        let interval = std::time::Duration::from_secs(5);
        let options = WalOptions { lazy: Some(interval), ..options(2) };
        let wal = Wal::create(&env, LogId(1), options).await.unwrap();
        let tablet = wal.add_tablet(TabletId(0), 1, EntryIndex::ZERO, EntryIndex::ZERO);
        wal.start();
        let changed = wal.durable_changed();
        let start = env.now();
        let first = wal.append(tablet, &[put(b"a", b"")]).unwrap();
        changed.until(|| wal.durable() >= first.block).await;
        assert!(env.now() - start >= interval, "nobody asked, so it waited for its interval");
        let start = env.now();
        let second = wal.append(tablet, &[put(b"a", b"")]).unwrap();
        wal.request_sync(second.block);
        changed.until(|| wal.durable() >= second.block).await;
        assert!(env.now() - start < interval / 10, "it was written when asked for");
        wal.close().await.unwrap();
    });
}

/// More damaged blocks between two whole ones than there are numbers between them: no crash leaves that, but
/// a value that looks like blocks may, and the count of the missing ones fell below zero.
#[test]
fn more_damaged_blocks_than_numbers_are_refused() {
    let path = segment_path(LogId(1), 0);
    let (world, env) = closed_log(1, 8);
    // Blocks 4, 5 and 6 call themselves 4, and none is whole.
    let mut bytes = env.disk().peek(&path).unwrap();
    for block in 3..6 {
        let at = SEGMENT_HEADER_BYTES + block * PAGE_SIZE;
        let mut info = super::format::BlockInfo::decode(&bytes[at..]).unwrap();
        info.seq = BlockSeq(4);
        info.encode(&mut bytes[at..]);
        bytes[at + BLOCK_HEADER_BYTES + 60] ^= 1;
    }
    let seventh = SEGMENT_HEADER_BYTES + 6 * PAGE_SIZE;
    let mut info = super::format::BlockInfo::decode(&bytes[seventh..]).unwrap();
    info.seq = BlockSeq(5);
    info.encode(&mut bytes[seventh..]);
    env.disk().poke(&path, bytes);
    let scan = world.run(async {
        let segments = list_logs(&env).await.unwrap().remove(&LogId(1)).unwrap();
        scan_log(&env, LogId(1), segments, None, &|_| EntryIndex(8)).await
    });
    assert!(matches!(scan, Err(WalError::Rot { .. })), "{scan:?}");
}
