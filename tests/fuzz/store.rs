//! A whole data directory: a start, reads, scans, writes, flushes and merges, a stop and another start, with damage in
//! any of its files that their checksums do not show.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use atlaskv::base::{Codec, Compression, Op, OpKind, PAGE_SIZE, TableName, crc32c};
use atlaskv::disk::Disk;
use atlaskv::disk::sim::SimDisk;
use atlaskv::engine::scan::{Filled, ScanRange};
use atlaskv::engine::wal::WalError;
use atlaskv::engine::wal::format::{BLOCK_HEADER_BYTES, RecordKind};
use atlaskv::engine::{Engine, EngineError, EngineOptions, Key, Loaded, Lookup, recovery};
use atlaskv::env::Env;
use atlaskv::env::sim::{SimEnv, SimWorld};
use atlaskv::metrics::Metrics;
use atlaskv::placement::SlotTable;
use atlaskv::slot::Slot;
use fastrand::Rng;

use crate::driver::{Decoder, Outcome, letters};
use crate::keys;
use crate::manifest;
use crate::mutate::{Number, Shape};
use crate::table;
use crate::wal;

const DIRS: [&str; 3] = ["wal", "manifest", TableName::DIR];
const TABLETS: u16 = 2;
/// Steps of a scan, beyond which it is taken for one without end.
const SCAN_STEPS: u32 = 2_000_000;

fn options(rng: &mut Rng) -> EngineOptions {
    let mut codec = || Codec::ALL[rng.usize(..3)];
    EngineOptions {
        memtable_bytes: 2 << 20,
        sealed_max: 2,
        cache_bytes: 64 << 10,
        row_bytes: 32 << 10,
        reads_max: 8,
        compression: Compression { upper: codec(), last: codec() },
        index_bytes: if rng.bool() { 0 } else { 1 << 20 },
        segment_bytes: 32 << 10,
        window: 2,
        lazy: None,
        compaction_fan: 2,
        snapshot_life: Duration::from_secs(60),
        snapshot_bytes: 1 << 30,
        scrub_bytes_per_s: 1 << 20,
        level_ratio: 2,
        last_table_bytes: 1 << 20,
        reserve_bytes: 0,
    }
}

async fn start(env: &SimEnv, options: EngineOptions) -> Result<(Rc<Engine<SimEnv>>, SlotTable), EngineError> {
    let found = recovery::load(env, TABLETS).await?;
    let scans = recovery::scan(env, &found.state, found.logs.into_iter().collect()).await?;
    let start = recovery::plan(found.state, scans, 1)?;
    recovery::install(env, &start).await?;
    let slots = SlotTable::new(&start.state);
    let engine = Engine::open(env, options, &start, 0, Rc::new(Metrics::default())).await?;
    Ok((engine, slots))
}

fn write(engine: &Engine<SimEnv>, slots: &SlotTable, op: Op<'_>) -> Result<(), EngineError> {
    engine.write(slots.local(Slot::of_key(op.key)), &[op], &[engine.hash(op.key)])?;
    Ok(())
}

async fn fill(env: &SimEnv, rng: &mut Rng) {
    for dir in DIRS {
        env.disk().create_dir(dir).await.unwrap();
    }
    let (engine, slots) = start(env, options(rng)).await.unwrap();
    for _ in 0..rng.usize(1..4) {
        for _ in 0..rng.usize(1..12) {
            let (key, value) = (keys::key(rng), keys::value(rng, 300));
            let op = match rng.u8(..6) {
                0 => Op { kind: OpKind::Delete, key: &key, value: b"", expiry_ms: 0 },
                1 => Op { kind: OpKind::Put, key: &key, value: &value, expiry_ms: 1_800_000_000_000 },
                _ => Op { kind: OpKind::Put, key: &key, value: &value, expiry_ms: 0 },
            };
            write(&engine, &slots, op).unwrap();
        }
        if rng.bool() {
            let (start, end) = keys::range(rng);
            engine.delete_range(rng.usize(..2), &start, &end).unwrap();
        }
        if rng.u8(..4) > 0 {
            engine.rotate();
        }
        env.sleep(Duration::from_secs(3)).await;
    }
}

/// All files of a disk: a page of paths and pages, then their pages. Blank ones at the end of a file are left out.
fn pack(disk: &SimDisk, out: &mut Vec<u8>) {
    let (mut names, mut contents) = (String::new(), Vec::new());
    for path in disk.paths() {
        let bytes = disk.peek(&path).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let pages = used.div_ceil(PAGE_SIZE).max(1).min(bytes.len() / PAGE_SIZE);
        names += &format!("{path} {pages}\n");
        contents.extend_from_slice(&bytes[..pages * PAGE_SIZE]);
    }
    assert!(names.len() <= PAGE_SIZE, "few files");
    out.extend_from_slice(names.as_bytes());
    out.resize(PAGE_SIZE, 0);
    out.append(&mut contents);
}

/// Paths, and where their bytes begin and end.
fn unpack(input: &[u8]) -> Vec<(String, usize, usize)> {
    let page = &input[..input.len().min(PAGE_SIZE)];
    let names = String::from_utf8_lossy(page.split(|byte| *byte == 0).next().unwrap_or_default());
    let mut at = PAGE_SIZE;
    let mut files = Vec::new();
    for line in names.lines().take(64) {
        let Some((path, pages)) = line.rsplit_once(' ') else { continue };
        let Ok(pages) = pages.parse::<u16>() else { continue };
        let end = at.saturating_add(usize::from(pages) * PAGE_SIZE).min(input.len());
        if at < end {
            files.push((path.to_owned(), at, end));
        }
        at = end;
    }
    files
}

pub struct Stores;

impl Decoder for Stores {
    const NAME: &'static str = "store";
    const EXECUTIONS: u64 = 600;
    const SHAPE: Shape = Shape { bytes_max: 64 * PAGE_SIZE, unit: PAGE_SIZE };

    fn generate(&mut self, rng: &mut Rng, out: &mut Vec<u8>) -> bool {
        loop {
            let (world, env) = SimEnv::fresh(1);
            world.run(fill(&env, rng));
            world.kill();
            out.clear();
            pack(env.disk(), out);
            if out.len() <= Self::SHAPE.bytes_max {
                return true;
            }
        }
    }

    fn numbers(&self, input: &[u8], out: &mut Vec<Number>) {
        let mut own = Vec::new();
        for (path, start, end) in unpack(input) {
            own.clear();
            let bytes = &input[start..end];
            match path.rsplit('.').next() {
                Some("sst") => table::numbers_of_file(bytes, &mut own),
                Some("wal") => wal::numbers_of_log(bytes, &mut own),
                Some("manifest") => manifest::Files.numbers(bytes, &mut own),
                _ => manifest::Currents.numbers(bytes, &mut own),
            }
            out.extend(own.iter().map(|number| Number { at: start + number.at, ..*number }));
        }
        out.retain(|number| number.at + number.width <= input.len());
    }

    fn repair(&mut self, input: &mut Vec<u8>, rng: &mut Rng) {
        for (path, start, end) in unpack(input) {
            let mut bytes = input[start..end].to_vec();
            match path.rsplit('.').next() {
                Some("sst") => {
                    if let Some(name) = path.rsplit('/').next().and_then(TableName::parse) {
                        table::repair_file(name.file, &mut bytes, rng);
                    }
                }
                Some("wal") => wal::repair_log(&mut bytes, rng),
                Some("manifest") => manifest::Files.repair(&mut bytes, rng),
                _ => manifest::Currents.repair(&mut bytes, rng),
            }
            bytes.resize(end - start, 0);
            input[start..end].copy_from_slice(&bytes);
        }
    }

    fn execute(&mut self, input: &[u8]) -> Outcome {
        let seed = crc32c(input);
        let world = SimWorld::new(u64::from(seed));
        let env = SimEnv::new(&world, SimDisk::new(&world));
        for dir in DIRS {
            world.run(env.disk().create_dir(dir)).unwrap();
        }
        for (path, start, end) in unpack(input) {
            env.disk().poke(&path, input[start..end].to_vec());
        }
        let stage = Cell::new(0);
        let mut rng = Rng::with_seed(u64::from(seed));
        let used = world.run(serve(&env, &mut rng, &stage));
        world.kill();
        match used {
            Ok((items, what)) => Outcome { is_accepted: true, kind: 1 ^ what, at: 0, items },
            Err(error) => {
                let kind = letters(&error.to_string()) ^ stage.get() << 60;
                Outcome { kind, ..Outcome::default() }
            }
        }
    }
}

/// Starts, does some of everything, stops and starts again. Returns how many keys there were.
async fn serve(env: &SimEnv, rng: &mut Rng, stage: &Cell<u64>) -> Result<(usize, u64), EngineError> {
    let options = options(rng);
    let (engine, slots) = start(env, options.clone()).await?;
    stage.set(1);
    let mut what = 0;
    let mut seen = Vec::new();
    for is_reverse in [false, true] {
        let mut work = SCAN_STEPS;
        let range = ScanRange { is_reverse, ..ScanRange::default() };
        let mut scan = engine.scan(None, range);
        let ended = scan.run(&engine, &mut work, |key, _| {
            if seen.len() < 100 {
                seen.push(key.to_vec());
            }
            true
        });
        match ended.await {
            Ok(filled) => assert!(matches!(filled, Filled::End), "a scan of few pages never ends"),
            Err(error) => what ^= letters(&error.to_string()) << u32::from(is_reverse),
        }
    }
    for key in seen.iter().chain(&[b"a".to_vec(), vec![0xff; 3]]) {
        let (tablet, hash) = (slots.local(Slot::of_key(key)), engine.hash(key));
        let mut loaded = Loaded::new();
        loop {
            let missing = match engine.lookup(&Key { tablet, hash, bytes: key }, &loaded, |_| ()) {
                Ok(Lookup::Done(())) | Err(_) => break,
                Ok(Lookup::Missing(missing)) => missing,
            };
            if engine.load(missing, &mut loaded).await.is_err() {
                break;
            }
        }
    }
    let key = keys::key(rng);
    let op = Op { kind: OpKind::Put, key: &key, value: b"new", expiry_ms: 0 };
    if let Err(error) = write(&engine, &slots, op) {
        what ^= letters(&error.to_string()) << 2;
    }
    engine.rotate();
    // Flushes, merges, a round of the scrub.
    env.sleep(Duration::from_secs(5)).await;
    stage.set(2);
    drop(slots);
    engine.close().await?;
    stage.set(3);
    let (engine, _) = start(env, options).await?;
    engine.close().await?;
    Ok((seen.len(), what))
}

/// An entry of a kind that is kept for later has an index, and nothing that could be applied. At the end of a log it
/// ended a start in an assertion.
#[test]
fn an_entry_of_a_reserved_kind_is_refused_at_start() {
    let (world, env) = SimEnv::fresh(3);
    let mut rng = Rng::with_seed(3);
    world.run(async {
        for dir in DIRS {
            env.disk().create_dir(dir).await.unwrap();
        }
        let (engine, slots) = start(&env, options(&mut rng)).await.unwrap();
        let op = Op { kind: OpKind::Put, key: b"key", value: b"value", expiry_ms: 0 };
        write(&engine, &slots, op).unwrap();
        engine.close().await.unwrap();
    });
    let is_log = |path: &String| path.starts_with("wal/");
    for path in env.disk().paths().into_iter().filter(is_log) {
        let mut bytes = env.disk().peek(&path).unwrap();
        let kind = PAGE_SIZE + BLOCK_HEADER_BYTES + 4;
        if bytes[PAGE_SIZE..].starts_with(b"AKVB") && bytes[kind] == RecordKind::Data as u8 {
            bytes[kind] = RecordKind::NoOp as u8;
            wal::seal_log(&mut bytes, true);
            env.disk().poke(&path, bytes);
        }
    }
    let refused = world.run(start(&env, options(&mut rng))).map(drop).unwrap_err();
    assert!(matches!(refused, EngineError::Wal(WalError::Gap { .. })), "{refused}");
    world.kill();
}
