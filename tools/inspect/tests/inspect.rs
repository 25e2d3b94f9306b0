//! The tool on data directories that the engine made: healthy ones, and damaged ones.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::rc::Rc;

use atlaskv::base::{Compression, Op, OpKind, TabletId};
use atlaskv::disk::sim::SimDisk;
use atlaskv::engine::{Engine, EngineOptions, recovery};
use atlaskv::env::Env;
use atlaskv::env::sim::{SimEnv, SimWorld};
use atlaskv::metrics::Metrics;
use atlaskv::placement::SlotTable;
use atlaskv::slot::Slot;
use tempfile::TempDir;

/// A store of two tables or more a tablet and a log with more, made on the simulated disk.
fn store() -> TempDir {
    let world = SimWorld::new(1);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    world.run(fill(env.clone()));
    let dir = tempfile::tempdir().unwrap();
    for path in env.disk().paths() {
        let bytes = env.disk().peek(&path).unwrap();
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

async fn fill(env: SimEnv) {
    let found = recovery::load(&env, 16).await.unwrap();
    let scans = recovery::scan(&env, &found.state, found.logs.into_iter().collect()).await.unwrap();
    let start = recovery::plan(found.state, scans, 1).unwrap();
    recovery::install(&env, &start).await.unwrap();
    let options = EngineOptions {
        memtable_bytes: 64 << 20,
        sealed_max: 1,
        cache_bytes: 1 << 20,
        row_bytes: 1 << 20,
        reads_max: 128,
        index_bytes: 1 << 20,
        compression: Compression::default(),
        segment_bytes: 1 << 20,
        window: 2,
        lazy: None,
        compaction_fan: 4,
        snapshot_life: std::time::Duration::from_secs(60),
        snapshot_bytes: 1 << 30,
        scrub_bytes_per_s: 0,
        level_ratio: 4,
        last_table_bytes: 32 << 20,
        reserve_bytes: 0,
    };
    let engine = Engine::open(&env, options, &start, 0, Rc::new(Metrics::default())).await.unwrap();
    let slots = SlotTable::new(&start.state);
    for round in 0..3 {
        for number in 0..400 {
            let key = format!("key-{number}");
            let value = format!("value {number} of round {round}").repeat(3);
            let op = match number % 10 {
                9 => Op { kind: OpKind::Delete, key: key.as_bytes(), value: b"", expiry_ms: 0 },
                _ => Op { kind: OpKind::Put, key: key.as_bytes(), value: value.as_bytes(), expiry_ms: 0 },
            };
            let hash = engine.hash(op.key);
            engine.write(slots.local(Slot::of_key(op.key)), &[op], &[hash]).unwrap();
        }
        // A range that goes through all tablets; its bounds are keys of some of them at most. Verify took it for damage
        // in the others' logs.
        engine.delete_everywhere(b"l", b"m").unwrap();
        // The last round stays in the log.
        if round < 2 {
            engine.rotate();
            let changed = engine.changed().clone();
            changed.until(|| engine.metrics().flushes > round).await;
        }
    }
    drop(start);
    engine.close().await.unwrap();
}

fn inspect(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_atlaskv-inspect")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("what is printed is text, whatever stands in the files")
}

fn verify(dir: &Path) -> (Option<i32>, String) {
    let output = inspect(&["verify", dir.to_str().unwrap()]);
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

fn files(dir: &Path, below: &str) -> Vec<PathBuf> {
    let mut files: Vec<_> =
        fs::read_dir(dir.join(below)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Where the last byte stands that is not zero.
fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

#[test]
fn a_healthy_store_is_said_to_be_and_nothing_in_it_changes() {
    let dir = store();
    let before: Vec<_> = ["", "wal", "sst", "manifest"]
        .iter()
        .flat_map(|below| files(dir.path(), below))
        .filter(|path| path.is_file())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    let (code, said) = verify(dir.path());
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("no damage: 32 tables, "), "{said}");
    for (path, bytes) in before {
        assert_eq!(fs::read(&path).unwrap(), bytes, "{}", path.display());
    }
}

#[test]
fn every_kind_of_file_can_be_shown() {
    let dir = store();
    let show = |kind: &str, file: &Path| {
        let output = inspect(&[kind, file.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let wal: String = files(dir.path(), "wal").iter().map(|file| show("wal", file)).collect();
    assert!(wal.contains("put \"key-17\" = \"value 17 of round 2value 17 of round 2value 17 of round 2\""));
    assert!(wal.contains("delete \"key-19\"") && wal.contains("seal: "), "{wal}");
    let sst: String = files(dir.path(), "sst").iter().map(|file| show("sst", file)).collect();
    assert!(sst.contains("put \"key-17\" = \"value 17 of round 0") && sst.contains("delete \"key-19\""));
    let manifest: String = files(dir.path(), "manifest").iter().map(|file| show("manifest", file)).collect();
    assert!(manifest.contains("add table") && manifest.contains("flushed"), "{manifest}");
    assert!(show("manifest", &dir.path().join("CURRENT")).contains("of 1 shards"));
    let first = files(dir.path(), "wal")[0].clone();
    let output = inspect(&["wal", "--blocks", first.to_str().unwrap()]);
    assert!(!text(&output.stdout).contains("put "), "--blocks shows no records");
}

#[test]
fn every_damaged_place_is_found_and_named() {
    let dir = store();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let newest_manifest = files(dir.path(), "manifest").pop().unwrap();
    let mut targets = files(dir.path(), "sst");
    targets.truncate(6);
    targets.extend(files(dir.path(), "wal").into_iter().filter(|file| used(&fs::read(file).unwrap()) > 4096));
    targets.extend([newest_manifest, dir.path().join("CURRENT")]);
    for path in targets {
        let whole = fs::read(&path).unwrap();
        let is_log = path.to_str().unwrap().contains("/wal/");
        let is_manifest = path.to_str().unwrap().contains("/manifest/");
        for _ in 0..12 {
            let mut bytes = whole.clone();
            let at = rng.usize(..used(&whole));
            bytes[at] ^= 1 << rng.u8(..8);
            // The zeros that fill pages of logs and manifests are no part of any block.
            if (is_log || is_manifest) && whole[at] == 0 {
                continue;
            }
            fs::write(&path, &bytes).unwrap();
            let (code, said) = verify(dir.path());
            let name = path.file_name().unwrap().to_str().unwrap();
            // The last block of either is a seal that nothing follows: torn, for all that can be known.
            let last_page = used(&whole) / 4096 * 4096;
            if (is_log || is_manifest && at >= last_page) && said.contains("torn from byte") {
                continue;
            }
            assert_eq!(code, Some(1), "seed {seed}: {name} byte {at}: {said}");
            assert!(said.contains(name), "seed {seed}: byte {at}: {said}");
        }
        fs::write(&path, &whole).unwrap();
    }
    let (code, said) = verify(dir.path());
    assert_eq!(code, Some(0), "all was put back: {said}");
}

/// The log still has entries from before a split, with keys that are another tablet's now; a start passes over them,
/// since they were flushed. Verify took them for damage.
#[test]
fn keys_that_a_split_gave_away_are_no_damage() {
    let world = SimWorld::new(2);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    world.run(async {
        let mut opened = common::open(&env, &common::options(), 1, 1).await.unwrap();
        let engine = opened.engines.remove(0);
        let write = |number: u32, local: usize| {
            let key = format!("key-{number}");
            let op = Op { kind: OpKind::Put, key: key.as_bytes(), value: b"value", expiry_ms: 0 };
            engine.write(local, &[op], &[engine.hash(op.key)]).unwrap();
        };
        (0..100).for_each(|number| write(number, 0));
        let (id, slots) = opened.tablets[0];
        let (into, at) = (TabletId(id.0 + 1), slots.last() / 2);
        engine.prepare_to_leave(id).await.unwrap();
        engine.prepare_to_split(id, into).await.unwrap();
        let upper = engine.split(id, at, into).await.unwrap();
        for number in 0..100 {
            let is_upper = Slot::of_key(format!("key-{number}").as_bytes()).number() >= at;
            write(number, if is_upper { upper } else { 0 });
        }
        drop(opened);
        engine.close().await.unwrap();
    });
    let dir = tempfile::tempdir().unwrap();
    common::write_out(env.disk(), dir.path());
    let (code, said) = verify(dir.path());
    assert!(code == Some(0) && said.contains("no damage"), "{said}");
}

/// What the header of a segment says stands in each block as well, so a start needs it not: verify took it for that of
/// a segment which a crash had left empty, and said nothing.
#[test]
fn a_damaged_header_of_a_segment_with_blocks_is_named() {
    let dir = store();
    let is_used = |file: &PathBuf| used(&fs::read(file).unwrap()) > 4096;
    let path = files(dir.path(), "wal").into_iter().find(is_used).unwrap();
    let whole = fs::read(&path).unwrap();
    for at in 0..72 {
        let mut bytes = whole.clone();
        bytes[at] ^= 2;
        fs::write(&path, &bytes).unwrap();
        let (code, said) = verify(dir.path());
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(code == Some(1) && said.contains(name), "byte {at}: {said}");
    }
}

#[test]
fn what_is_missing_or_cut_or_too_much_is_named() {
    let dir = store();
    let table = files(dir.path(), "sst")[3].clone();
    let name = table.file_name().unwrap().to_str().unwrap().to_owned();
    let whole = fs::read(&table).unwrap();
    for bytes in [&whole[..0], &whole[..whole.len() - 4096], &whole[..5000]] {
        fs::write(&table, bytes).unwrap();
        let (code, said) = verify(dir.path());
        assert!(code == Some(1) && said.contains(&name), "{said}");
    }
    fs::remove_file(&table).unwrap();
    let (code, said) = verify(dir.path());
    assert!(code == Some(1) && said.contains(&name), "{said}");
    fs::write(&table, &whole).unwrap();
    fs::write(dir.path().join("sst/00000000000000ff.sst"), b"rubbish").unwrap();
    let (code, said) = verify(dir.path());
    assert!(code == Some(0) && said.contains("note: sst/00000000000000ff.sst"), "{said}");
    fs::remove_file(dir.path().join("CURRENT")).unwrap();
    let (code, said) = verify(dir.path());
    assert!(code == Some(1) && said.contains("CURRENT is missing"), "{said}");
}

#[test]
fn a_store_in_use_is_left_alone() {
    let dir = store();
    let lock = fs::File::create(dir.path().join("LOCK")).unwrap();
    fs::write(dir.path().join("LOCK"), "4711\n").unwrap();
    lock.lock().unwrap();
    let (code, said) = verify(dir.path());
    assert_eq!(code, Some(2));
    assert!(said.contains("in use by process 4711; stop that server"), "{said}");
    drop(lock);
    assert_eq!(verify(dir.path()).0, Some(0));
}

#[test]
fn what_cannot_be_read_is_one_line_and_exit_code_2() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::write(path("empty"), b"").unwrap();
    fs::write(path("short"), b"short").unwrap();
    let (empty, short, absent, directory) = (path("empty"), path("short"), path("absent"), path(""));
    for kind in ["wal", "sst", "manifest"] {
        for file in [&empty, &short, &absent, &directory] {
            let output = inspect(&[kind, file]);
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{kind} {file}: {said}");
            assert!(said.lines().count() == 1 && said.starts_with("atlaskv-inspect: "), "{said}");
        }
    }
    for arguments in [&["verify", &absent][..], &["verify", &directory], &["frobnicate"], &["verify"]] {
        let output = inspect(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{arguments:?}");
    }
    let help = inspect(&["--help"]);
    assert!(help.status.success() && text(&help.stdout).contains("Exit codes"));
}

#[test]
fn rubbish_is_refused_or_shown_but_never_a_panic() {
    let dir = store();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let file = dir.path().join("rubbish");
    let sources = [
        ("wal", files(dir.path(), "wal")[0].clone()),
        ("sst", files(dir.path(), "sst")[0].clone()),
        ("manifest", files(dir.path(), "manifest")[0].clone()),
    ];
    for (kind, source) in &sources {
        let whole = fs::read(source).unwrap();
        for _ in 0..30 {
            let mut bytes = whole[..used(&whole)].to_vec();
            for _ in 0..rng.usize(1..40) {
                let at = rng.usize(..bytes.len());
                bytes[at] = rng.u8(..);
            }
            bytes.truncate(rng.usize(..=bytes.len()));
            fs::write(&file, &bytes).unwrap();
            let output = inspect(&[kind, "--", file.to_str().unwrap()]);
            assert!(matches!(output.status.code(), Some(0..=2)), "seed {seed}: {}", text(&output.stderr));
            assert!(!text(&output.stderr).contains("panicked"), "seed {seed}: {}", text(&output.stderr));
        }
    }
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let dir = store();
    let wal = files(dir.path(), "wal")[0].clone();
    let mut child = Command::new(env!("CARGO_BIN_EXE_atlaskv-inspect"))
        .args(["wal", wal.to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(output.stderr.is_empty());
}
