//! Scans against an ordered map, on the simulated disk: each open scan carries a copy of the map as it was when
//! its snapshot was taken, and must give exactly that, whatever is written, flushed and merged meanwhile.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::*;
use crate::base::{Codec, Compression, Lsn, Op, TabletId};
use crate::disk::sim::SimDisk;
use crate::engine::recovery;
use crate::engine::{EngineOptions, Room};
use crate::env::sim::{SimEnv, SimWorld};
use crate::metrics::Metrics;
use crate::placement::SlotTable;
use crate::slot::Slot;

const TABLETS: u16 = 4;

#[derive(Clone, Debug, PartialEq)]
struct Held {
    lsn: Lsn,
    expiry_ms: u64,
    value: Vec<u8>,
}

/// Live keys and those whose time will come, by tablet.
type Map = Vec<BTreeMap<Vec<u8>, Held>>;

fn options(rng: &mut fastrand::Rng) -> EngineOptions {
    EngineOptions {
        memtable_bytes: 64 << 20,
        sealed_max: rng.usize(1..=2),
        cache_bytes: [64 << 10, 4 << 20][rng.usize(..2)],
        row_bytes: 16 << 10,
        reads_max: 8,
        index_bytes: [0, 12 << 10, 1 << 20][rng.usize(..3)],
        compression: Compression { upper: Codec::ALL[rng.usize(..3)], last: Codec::ALL[rng.usize(..3)] },
        segment_bytes: 4 << 20,
        window: 3,
        lazy: None,
        compaction_fan: rng.usize(2..=4),
        level_ratio: 4,
        last_table_bytes: 16 << 10,
        snapshot_life: Duration::from_secs(60),
        snapshot_bytes: 1 << 30,
        scrub_bytes_per_s: 0,
        reserve_bytes: 0,
    }
}

async fn open(env: &SimEnv, options: EngineOptions) -> (Rc<Engine<SimEnv>>, SlotTable) {
    let found = recovery::load(env, TABLETS).await.unwrap();
    let scans = recovery::scan(env, &found.state, found.logs.into_iter().collect()).await.unwrap();
    let start = recovery::plan(found.state, scans, 1).unwrap();
    recovery::install(env, &start).await.unwrap();
    let engine = Engine::open(env, options, &start, 0, Rc::new(Metrics::default())).await.unwrap();
    (engine, SlotTable::new(&start.state))
}

/// Keys that are prefixes of each other, that share more than what comparisons see at first, with tags, and with
/// bytes at both ends of the range.
fn key(rng: &mut fastrand::Rng) -> Vec<u8> {
    let n = rng.u32(..60).min(rng.u32(..60));
    match rng.u8(..6) {
        0 => vec![b'a'; n as usize + 1],
        1 => vec![0xFF; n as usize % 5 + 1],
        2 => vec![0; n as usize % 5 + 1],
        3 => format!("a-prefix-longer-than-a-number-{n:04}").into_bytes(),
        4 => format!("{{tag-{}}}:{n}", n % 3).into_bytes(),
        _ => format!("user:{n:05}").into_bytes(),
    }
}

fn range(rng: &mut fastrand::Rng) -> ScanRange {
    let bound = |rng: &mut fastrand::Rng| if rng.u8(..3) == 0 { Vec::new() } else { key(rng) };
    let mut range = ScanRange { start: bound(rng), end: bound(rng), is_reverse: rng.bool() };
    if !range.end.is_empty() && range.end < range.start && rng.u8(..8) > 0 {
        std::mem::swap(&mut range.start, &mut range.end);
    }
    range
}

/// A scan, and what it has to give.
struct Checked {
    scan: Scan<SimEnv>,
    expected: std::vec::IntoIter<(Vec<u8>, Held)>,
}

impl Checked {
    fn begin(engine: &Engine<SimEnv>, map: &Map, rng: &mut fastrand::Rng) -> Checked {
        engine.tick();
        let local = if rng.bool() { Some(rng.usize(..map.len())) } else { None };
        let scan = engine.scan(local, range(rng));
        let now_ms = scan.snapshot().now_ms();
        let range = scan.range().clone();
        let maps = map.iter().enumerate().filter(|(number, _)| local.is_none_or(|local| local == *number));
        let mut expected: Vec<_> = maps
            .flat_map(|(_, map)| map.range(range.start.clone()..))
            .filter(|(key, _)| range.end.is_empty() || **key < range.end)
            .filter(|(_, held)| held.expiry_ms == 0 || held.expiry_ms > now_ms)
            .map(|(key, held)| (key.clone(), held.clone()))
            .collect();
        expected.sort_by(|a, b| a.0.cmp(&b.0));
        if range.is_reverse {
            expected.reverse();
        }
        Checked { scan, expected: expected.into_iter() }
    }

    /// Takes up to `count` entries. Whether it has ended.
    async fn step(&mut self, engine: &Engine<SimEnv>, count: usize, work: u32) -> bool {
        let (expected, mut left, mut work) = (&mut self.expected, count, work);
        let filled = self.scan.run(engine, &mut work, |key, entry| {
            if left == 0 {
                return false;
            }
            left -= 1;
            let (wanted, held) = expected.next().unwrap_or_else(|| panic!("{key:?} is more than there is"));
            let found = Held { lsn: entry.lsn, expiry_ms: entry.expiry_ms, value: entry.value.to_vec() };
            assert_eq!((key, found), (&wanted[..], held));
            true
        });
        match filled.await.unwrap() {
            Filled::End => {
                assert_eq!(self.expected.next(), None, "the scan ends too early");
                true
            }
            Filled::Full => false,
            Filled::Paused => false,
            Filled::Missing => unreachable!("what is missing is loaded"),
        }
    }
}

/// One store with its model.
struct Work {
    rng: fastrand::Rng,
    map: Map,
    wide: bool,
}

impl Work {
    async fn write(&mut self, engine: &Engine<SimEnv>, slots: &SlotTable) {
        let rng = &mut self.rng;
        let key = key(rng);
        let local = slots.local(Slot::of_key(&key));
        let value_len = match rng.u8(..12) {
            0 => rng.usize(..9000),
            _ if self.wide => rng.usize(..2500),
            _ => rng.usize(..120),
        };
        let value = vec![rng.u8(..); value_len];
        let is_delete = rng.u8(..5) == 0;
        let expiry_ms = if rng.u8(..5) == 0 { engine.now_ms() + rng.u64(1..4000) } else { 0 };
        let op = match is_delete {
            true => Op { kind: OpKind::Delete, key: &key, value: b"", expiry_ms: 0 },
            false => Op { kind: OpKind::Put, key: &key, value: &value, expiry_ms },
        };
        let changed = engine.wal.durable_changed();
        while engine.room(true, value.len() + key.len() + 64).unwrap() == Room::Wait {
            futures_lite::future::or(changed.notified(), engine.changed().notified()).await;
        }
        let lsn = engine.write(local, &[op], &[engine.hash(&key)]).unwrap().lsn;
        if is_delete {
            self.map[local].remove(&key);
        } else {
            self.map[local].insert(key, Held { lsn, expiry_ms, value });
        }
    }
}

fn run(seed: u64) {
    println!("seed {seed}; repeat: ATLASKV_SCAN_SEED={seed} cargo test --lib scan::tests");
    let world = SimWorld::new(seed);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    world.run(async {
        let mut work = Work {
            rng: fastrand::Rng::with_seed(seed),
            map: vec![BTreeMap::new(); TABLETS.into()],
            wide: seed.is_multiple_of(2),
        };
        for _ in 0..3 {
            let (engine, slots) = open(&env, options(&mut work.rng)).await;
            let mut scans: Vec<Checked> = Vec::new();
            for _ in 0..600 {
                match work.rng.u8(..20) {
                    0 if engine.sealed.borrow().len() < engine.options.sealed_max => engine.rotate(),
                    1 => env.sleep(Duration::from_millis(work.rng.u64(..300))).await,
                    2 | 3 if scans.len() < 12 => {
                        scans.push(Checked::begin(&engine, &work.map, &mut work.rng))
                    }
                    4..=6 if !scans.is_empty() => {
                        let at = work.rng.usize(..scans.len());
                        let (count, steps) = (work.rng.usize(..40), work.rng.u32(..200));
                        if scans[at].step(&engine, count, steps).await {
                            scans.swap_remove(at);
                        }
                    }
                    _ => work.write(&engine, &slots).await,
                }
            }
            for mut checked in scans {
                while !checked.step(&engine, 1000, 100_000).await {}
            }
            assert_eq!(engine.ahead_bytes.held.get(), 0, "what was read ahead is given back");
            assert_eq!(engine.metrics().snapshots, 0);
            engine.close().await.unwrap();
        }
    });
}

#[test]
fn scans_give_what_was_there_when_they_began() {
    match std::env::var("ATLASKV_SCAN_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => run(seed),
        None => (0..24).for_each(run),
    }
}

/// Bounds, and where a scan goes on that was cut.
#[test]
fn what_is_left_of_a_range_begins_behind_the_last_key() {
    let range = ScanRange { start: b"b".to_vec(), end: b"d".to_vec(), is_reverse: false };
    assert_eq!(range.after(b"c"), ScanRange { start: b"c\0".to_vec(), ..range.clone() });
    assert!(range.overlaps(b"a", b"b") && !range.overlaps(b"d", b"e") && !range.overlaps(b"a", b"az"));
    let back = ScanRange { is_reverse: true, ..range };
    assert_eq!(back.after(b"c"), ScanRange { end: b"c".to_vec(), ..back.clone() });
    assert!(back.is_behind(b"a") && !back.is_behind(b"b"));
}

/// A key that is written all the time would have each scan walk through all its versions at once, and a queue
/// through all that was deleted.
#[test]
fn one_step_is_short_whatever_was_written() {
    let (world, env) = SimEnv::fresh(7);
    world.run(async {
        let (engine, slots) = open(&env, options(&mut fastrand::Rng::with_seed(7))).await;
        let put = |key: &[u8], expiry_ms| {
            let local = slots.local(Slot::of_key(key));
            let op = Op { kind: OpKind::Put, key, value: b"v", expiry_ms };
            engine.write(local, &[op], &[engine.hash(key)]).unwrap();
            local
        };
        let local = put(b"hot", 0);
        let mut scan = engine.scan(Some(local), ScanRange::default());
        for number in 0..20_000u32 {
            // One that expires does not fit where one was that does not, and the other way round: all stay.
            put(b"hot", u64::from(number % 2) << 60);
            put(format!("later-{number}").as_bytes(), 0);
        }
        let (mut found, mut fills) = (Vec::new(), 0);
        loop {
            let mut work = SLICE;
            fills += 1;
            match scan.fill(&engine, &mut work, |key, entry| {
                found.push((key.to_vec(), entry.lsn.ordinal()));
                true
            }) {
                Ok(Filled::Paused) => {}
                Ok(Filled::End) => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(found.len(), 1);
        // 20,000 versions and 5,000 keys, in steps of 512 each, two of which are a slice.
        assert!(fills > 20, "{fills} slices");
        drop(scan);
        engine.close().await.unwrap();
    });
}

#[test]
fn a_snapshot_that_nobody_uses_gives_up_its_files() {
    let (world, env) = SimEnv::fresh(8);
    world.run(async {
        let (engine, slots) = open(&env, options(&mut fastrand::Rng::with_seed(8))).await;
        let key = b"key";
        let op = Op { kind: OpKind::Put, key, value: b"v", expiry_ms: 0 };
        engine.write(slots.local(Slot::of_key(key)), &[op], &[engine.hash(key)]).unwrap();
        let mut scan = engine.scan(None, ScanRange::default());
        assert_eq!(engine.metrics().snapshots, 1);
        env.sleep(Duration::from_secs(30)).await;
        assert_eq!(engine.metrics().snapshot_age_ms, 30_000);
        assert_eq!(scan.run(&engine, &mut 100, |_, _| false).await.unwrap(), Filled::Full);
        env.sleep(Duration::from_secs(200)).await;
        assert_eq!(engine.metrics().snapshots, 0);
        let error = scan.run(&engine, &mut 100, |_, _| true).await.unwrap_err();
        assert!(matches!(error, EngineError::SnapshotOver), "{error}");
        drop(scan);
        engine.close().await.unwrap();
    });
}

#[test]
fn snapshots_that_keep_more_files_than_live_ones_are_given_up_oldest_first() {
    let (world, env) = SimEnv::fresh(9);
    world.run(async {
        let options =
            EngineOptions { snapshot_bytes: 256 << 10, ..options(&mut fastrand::Rng::with_seed(9)) };
        let (engine, slots) = open(&env, options).await;
        let write_all = async |version: u32| {
            for n in 0..200u32 {
                let key = format!("key {n}").into_bytes();
                let value = [n.to_le_bytes(), version.to_le_bytes()].concat().repeat(50);
                let op = Op { kind: OpKind::Put, key: &key, value: &value, expiry_ms: 0 };
                engine.write(slots.local(Slot::of_key(&key)), &[op], &[engine.hash(&key)]).unwrap();
            }
            let flushes = engine.metrics().flushes;
            engine.rotate();
            engine.changed().until(|| engine.metrics().flushes > flushes).await;
            env.sleep(Duration::from_secs(3)).await;
        };
        let mut open: Vec<Scan<SimEnv>> = Vec::new();
        for version in 0..30 {
            write_all(version).await;
            open.push(engine.scan(None, ScanRange::default()));
            // In use all the time, but for those that are over.
            open.retain(|scan| scan.snapshot().touch(env.now()).is_ok());
            assert!(open.len() <= 10, "{} snapshots keep a copy of all each", open.len());
        }
        assert!(open.len() > 2, "some may be kept");
        let mut new = open.pop().unwrap();
        write_all(30).await;
        let mut count = 0;
        let mut filled = Filled::Paused;
        while filled != Filled::End {
            let mut work = 10_000;
            let run = new.run(&engine, &mut work, |_, _| {
                count += 1;
                true
            });
            filled = run.await.unwrap();
        }
        assert_eq!(count, 200, "newer ones go on");
        drop((open, new));
        engine.close().await.unwrap();
    });
}

/// A snapshot that outlived a split lost what its memtables held: their other half had become tables of which it
/// knew nothing. And while a tablet was handed over, both shards had it in new snapshots.
#[test]
fn a_tablet_that_splits_or_leaves_ends_its_snapshots() {
    let (world, env) = SimEnv::fresh(9);
    world.run(async {
        let (engine, slots) = open(&env, options(&mut fastrand::Rng::with_seed(9))).await;
        let mut keys: Vec<Vec<u8>> = (0..200u32).map(|n| format!("key-{n:03}").into_bytes()).collect();
        for key in &keys {
            let op = Op { kind: OpKind::Put, key, value: b"v", expiry_ms: 0 };
            engine.write(slots.local(Slot::of_key(key)), &[op], &[engine.hash(key)]).unwrap();
        }
        let all = async |engine: &Engine<SimEnv>| {
            let mut found = Vec::new();
            let (mut scan, mut work) = (engine.scan(None, ScanRange::default()), 100_000);
            let ended = scan.run(engine, &mut work, |key, _| {
                found.push(key.to_vec());
                true
            });
            assert_eq!(ended.await.unwrap(), Filled::End);
            found
        };
        let begin = async |engine: &Engine<SimEnv>| {
            let mut scan = engine.scan(None, ScanRange::default());
            let mut left = 3;
            let take_some = |_: &[u8], _: &Entry<'_>| {
                left -= 1;
                left >= 0
            };
            assert_eq!(scan.run(engine, &mut 100_000, take_some).await.unwrap(), Filled::Full);
            scan
        };
        let is_over = async |engine: &Engine<SimEnv>, mut scan: Scan<SimEnv>| {
            matches!(scan.run(engine, &mut 100_000, |_, _| true).await, Err(EngineError::SnapshotOver))
        };
        let tablet = engine.tablet(1);
        let range = tablet.slots.get();
        let scan = begin(&engine).await;
        engine.prepare_to_leave(tablet.id).await.unwrap();
        let middle = (range.first() + range.last()) / 2;
        let during = begin(&engine).await;
        engine.split(tablet.id, middle, TabletId(100)).await.unwrap();
        assert!(is_over(&engine, scan).await && is_over(&engine, during).await);
        assert_eq!(all(&engine).await, keys);
        let lower = tablet.slots.get();
        let scan = begin(&engine).await;
        engine.hand_over(lower);
        assert!(is_over(&engine, scan).await);
        keys.retain(|key| !lower.contains(Slot::of_key(key)));
        assert!(keys.len() < 190, "some keys were in the tablet");
        assert_eq!(all(&engine).await, keys);
        engine.close().await.unwrap();
    });
}

/// Behind the longest keys a scan went on from one that was longer than a key can be. The parts of a merged scan
/// are asked for by requests, and no request takes such a bound: the server ended.
#[test]
fn what_is_left_behind_a_key_begins_with_the_next_one_there_can_be() {
    let rest = |key: &[u8]| ScanRange::default().after(key).start;
    assert_eq!(rest(b"ab"), b"ab\0");
    let longest = |end: &[u8]| [vec![b'k'; KEY_BYTES_MAX - end.len()], end.to_vec()].concat();
    assert_eq!(rest(&longest(b"a")[1..]), [&longest(b"a")[1..], b"\0"].concat(), "one byte is left");
    assert_eq!(rest(&longest(b"a")), longest(b"b"));
    let next = [vec![b'k'; KEY_BYTES_MAX - 4], b"l".to_vec()].concat();
    assert_eq!(rest(&longest(&[0xFF; 3])), next);
    let last = vec![0xFF; KEY_BYTES_MAX];
    let nothing = ScanRange::default().after(&last);
    assert_eq!((nothing.start, nothing.end), (last.clone(), last));
}
