//! Backups of checkpoints: only what is new is copied, only what is whole is restored, and only the oldest are
//! removed.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use atlaskv::base::{Compression, Op, OpKind};
use atlaskv::disk::sim::SimDisk;
use atlaskv::engine::checkpoint::Unfinished;
use atlaskv::engine::{Engine, EngineOptions, checkpoint, recovery};
use atlaskv::env::Env;
use atlaskv::env::sim::{SimEnv, SimWorld};
use atlaskv::metrics::Metrics;
use atlaskv::placement::SlotTable;
use atlaskv::slot::Slot;
use tempfile::TempDir;

/// Two checkpoints of a store, `a` and `b`; between them a tenth of the tablets was written to. Values are of
/// `letter`s.
async fn make(env: SimEnv, letter: &str) {
    let found = recovery::load(&env, 16).await.unwrap();
    let start = recovery::plan(found.state, Vec::new(), 1).unwrap();
    recovery::install(&env, &start).await.unwrap();
    let engine = Engine::open(&env, options(), &start, 0, Rc::new(Metrics::default())).await.unwrap();
    let slots = SlotTable::new(&start.state);
    let put = |key: &str, value: &str| {
        let op = Op { kind: OpKind::Put, key: key.as_bytes(), value: value.as_bytes(), expiry_ms: 0 };
        let hash = engine.hash(op.key);
        engine.write(slots.local(Slot::of_key(op.key)), &[op], &[hash]).unwrap();
    };
    (0..400).for_each(|number| put(&format!("key-{number}"), &letter.repeat(100)));
    take(&env, &engine, "a").await;
    (0..20).for_each(|number| put(&format!("{{one}}-{number}"), "later"));
    take(&env, &engine, "b").await;
    engine.close().await.unwrap();
}

async fn take(env: &SimEnv, engine: &Rc<Engine<SimEnv>>, dir: &str) {
    checkpoint::prepare(env, dir).await.unwrap();
    engine.seal_checkpoint();
    let captured = engine.captured().await.unwrap();
    engine.link_checkpoint(&captured, dir).await.unwrap();
    checkpoint::complete(env, dir, vec![captured.state]).await.unwrap();
}

/// A tree of files with both checkpoints, as if its tables had been written at `second`.
fn checkpoints_of(letter: &str, second: u64) -> TempDir {
    let world = SimWorld::new(1);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    world.run(make(env.clone(), letter));
    let dir = tempfile::tempdir().unwrap();
    for path in env.disk().paths() {
        let bytes = env.disk().peek(&path).unwrap();
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        set_time(&path, second);
    }
    // The simulated disk tells of files only.
    ["a", "b"].iter().for_each(|name| fs::create_dir(dir.path().join(name).join("wal")).unwrap());
    dir
}

fn checkpoints() -> TempDir {
    checkpoints_of("v", 1_700_000_000)
}

fn set_time(path: &Path, second: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
    File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

/// Makes the checkpoint at `dir` one that was made at `second`.
fn take_at(dir: &Path, second: u64) {
    set_time(&dir.join("CURRENT"), second);
}

fn inspect(arguments: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_atlaskv-inspect")).args(arguments).output().unwrap()
}

fn run_with(arguments: &[&Path]) -> (Option<i32>, String) {
    let output = inspect(arguments);
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

fn run(verb: &str, from: &Path, to: &Path) -> (Option<i32>, String) {
    run_with(&[Path::new(verb), from, to])
}

/// Backs `from` up; what is said.
fn backup(from: &Path, target: &Path, name: &str) -> String {
    let name = format!("--name={name}");
    let (code, said) = run_with(&[Path::new("backup"), from, target, Path::new(&name)]);
    assert_eq!(code, Some(0), "{said}");
    said
}

fn prune(target: &Path, flags: &[&str]) -> (Option<i32>, String) {
    let mut arguments = vec![Path::new("prune"), target];
    arguments.extend(flags.iter().map(Path::new));
    run_with(&arguments)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Every file below `dir`, by its path there, but a backup's record of itself.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let name = PathBuf::from(path.file_name().unwrap());
            all.extend(contents(&path).into_iter().map(|(inner, bytes)| (name.join(inner), bytes)));
        } else if path.file_name().unwrap() != "BACKUP" {
            all.push((PathBuf::from(path.file_name().unwrap()), fs::read(&path).unwrap()));
        }
    }
    all.sort();
    all
}

#[test]
fn a_backup_copies_what_the_last_one_lacks_and_comes_back_whole() {
    let dir = checkpoints();
    let (a, b, target) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("backups"));
    let said = backup(&a, &target, "1");
    assert!(said.contains("16 tables copied, 0 were there already"), "{said}");
    let said = backup(&b, &target, "2");
    assert!(said.contains("1 tables copied, 16 were there already"), "{said}");
    for (checkpoint, name) in [(&a, "1"), (&b, "2")] {
        assert!(contents(checkpoint) == contents(&target.join(name)), "{name}");
        let restored = dir.path().join(format!("restored-{name}"));
        let (code, said) = run("restore", &target.join(name), &restored);
        assert_eq!(code, Some(0), "{said}");
        assert!(contents(checkpoint) == contents(&restored), "{name}");
    }
    let (code, said) = run("restore", &target.join("1"), &target.join("2"));
    assert!(code == Some(2) && said.contains("not empty"), "{said}");
}

#[test]
fn what_is_damaged_incomplete_or_in_use_is_neither_restored_nor_backed_up() {
    let dir = checkpoints();
    let a = dir.path().join("a");
    let table = fs::read_dir(a.join("sst")).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read(&table).unwrap();
    let mut damaged = whole.clone();
    damaged[700] ^= 4;
    fs::write(&table, damaged).unwrap();
    let target = dir.path().join("restored");
    let (code, said) = run("restore", &a, &target);
    assert!(code == Some(1) && said.contains("DAMAGED") && !target.exists(), "{said}");
    fs::write(&table, whole).unwrap();
    let mut marker = vec![0; 4096];
    for (kind, what_to_do) in [
        (Unfinished::Checkpoint, "remove the directory, and make a checkpoint again"),
        (Unfinished::Unknown, "remove the directory, and make the copy again"),
    ] {
        kind.encode(&mut marker);
        fs::write(a.join("INCOMPLETE"), &marker).unwrap();
        for verb in ["restore", "backup"] {
            let (code, said) = run(verb, &a, &target);
            assert!(code == Some(2) && said.contains("never completed"), "{verb}: {said}");
            assert!(said.contains(what_to_do) && !target.exists(), "{verb}: {said}");
        }
    }
    fs::remove_file(a.join("INCOMPLETE")).unwrap();
    // The store itself has logs.
    let (code, said) = run("backup", dir.path(), &target);
    assert!(code == Some(2) && said.contains("it has logs"), "{said}");
    let (code, said) = run("restore", &a, &dir.path().join("whole"));
    assert_eq!(code, Some(0), "{said}");
}

/// By its record a backup is pruned, so damage to that is damage. But no reason to lose what it is about.
#[test]
fn a_damaged_record_is_named_and_the_backup_is_restored_all_the_same() {
    let dir = checkpoints();
    let (a, target) = (dir.path().join("a"), dir.path().join("backups"));
    backup(&a, &target, "one");
    let one = target.join("one");
    assert_eq!(run_with(&[Path::new("verify"), &one]).0, Some(0));
    let mut record = fs::read(one.join("BACKUP")).unwrap();
    record[40] ^= 1;
    fs::write(one.join("BACKUP"), record).unwrap();
    let (code, said) = run_with(&[Path::new("verify"), &one]);
    assert!(code == Some(1) && said.contains("DAMAGED") && said.contains("BACKUP"), "{said}");
    let (code, said) = run("restore", &one, &dir.path().join("whole"));
    assert!(code == Some(0) && said.contains("note: ") && said.contains("BACKUP"), "{said}");
    assert!(contents(&a) == contents(&dir.path().join("whole")));
    // A start refuses what is marked, and so does verify, though all that was copied is sound.
    let mut marker = vec![0; 4096];
    Unfinished::Backup.encode(&mut marker);
    fs::write(a.join("INCOMPLETE"), marker).unwrap();
    let (code, said) = run_with(&[Path::new("verify"), &a]);
    assert!(code == Some(1) && said.contains("a backup that was never completed"), "{said}");
}

/// A store that was restored goes on under names for tables that the one it came from goes on with as well. Told by
/// names, sizes and footers alone, a table of the other was taken for its own: footers say nothing of values.
#[test]
fn a_table_of_another_history_is_never_linked() {
    let (one, other) = (checkpoints_of("v", 1_700_000_000), checkpoints_of("w", 1_700_000_001));
    let (one, other, target) = (one.path().join("a"), other.path().join("a"), one.path().join("backups"));
    backup(&one, &target, "one");
    let alike = names(&one.join("sst")).iter().all(|name| {
        let last_page = |dir: &Path| {
            let bytes = fs::read(dir.join("sst").join(name)).unwrap();
            (bytes.len(), bytes[bytes.len() - 4096..].to_vec())
        };
        last_page(&one) == last_page(&other)
    });
    assert!(
        alike && contents(&one) != contents(&other),
        "the test is about tables that differ in values alone"
    );
    let said = backup(&other, &target, "other");
    assert!(said.contains("16 tables copied, 0 were there already"), "{said}");
    assert!(contents(&target.join("other")) == contents(&other));
    assert!(contents(&target.join("one")) == contents(&one));
}

/// Leaves of the copy at `dir` what a crash may leave: its mark, some tables, one of them half copied.
fn cut_short(dir: &Path, kind: Unfinished) {
    let mut marker = vec![0; 4096];
    kind.encode(&mut marker);
    fs::write(dir.join("INCOMPLETE"), marker).unwrap();
    fs::remove_file(dir.join("CURRENT")).unwrap();
    let tables = names(&dir.join("sst"));
    tables[..3].iter().for_each(|name| fs::remove_file(dir.join("sst").join(name)).unwrap());
    // Never shortened in place: it may be linked.
    let table = dir.join("sst").join(&tables[3]);
    let begun = fs::read(&table).unwrap()[..100].to_vec();
    fs::remove_file(&table).unwrap();
    fs::write(dir.join("sst").join(format!("{}.part", tables[3])), begun).unwrap();
}

#[test]
fn what_was_cut_short_goes_on_where_it_ended() {
    let dir = checkpoints();
    let (a, b, target) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("backups"));
    backup(&a, &target, "1");
    let one = target.join("1");
    cut_short(&one, Unfinished::Backup);
    for name in ["x", "y"] {
        fs::write(one.join("sst").join(name), "nothing that belongs there").unwrap();
    }
    let (code, said) = run("restore", &one, &dir.path().join("restored"));
    assert!(code == Some(2) && said.contains("same atlaskv-inspect backup with its --name"), "{said}");
    let said = backup(&a, &target, "1");
    assert!(said.contains("4 tables copied, 12 were there already"), "{said}");
    assert!(contents(&a) == contents(&one));
    // With another checkpoint: what that has not is removed.
    cut_short(&one, Unfinished::Backup);
    let said = backup(&b, &target, "1");
    assert!(said.contains("5 tables copied, 12 were there already"), "{said}");
    assert!(contents(&b) == contents(&one));
    // It is whole now, so it stays as it is.
    let (code, said) = run_with(&[Path::new("backup"), &a, &target, Path::new("--name=1")]);
    assert!(code == Some(2) && said.contains("name a new directory"), "{said}");
    assert!(contents(&b) == contents(&one));

    let restored = dir.path().join("restored");
    assert_eq!(run("restore", &one, &restored).0, Some(0));
    cut_short(&restored, Unfinished::Restore);
    let (code, said) = run("backup", &restored, &target);
    assert!(code == Some(2) && said.contains("same atlaskv-inspect restore goes on"), "{said}");
    assert_eq!(run("restore", &one, &restored).0, Some(0));
    assert!(contents(&b) == contents(&restored));
    // A server's checkpoint is not gone on with.
    cut_short(&restored, Unfinished::Checkpoint);
    let (code, said) = run("restore", &one, &restored);
    assert!(code == Some(2) && said.contains("make a checkpoint again"), "{said}");
}

/// Tables that an interrupted backup has copied count for those after it, whatever their names.
#[test]
fn the_backup_before_is_told_by_its_age_and_not_by_its_name() {
    let dir = checkpoints();
    let (a, b, target) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("backups"));
    take_at(&a, 1_700_000_100);
    take_at(&b, 1_700_000_200);
    backup(&a, &target, "zz-first");
    backup(&b, &target, "aa-second");
    let listed = run_with(&[Path::new("backups"), &target]).1;
    let lines: Vec<&str> = listed.lines().collect();
    assert!(lines[1].starts_with("aa-second") && lines[1].contains("2023-11-14T22:16:40Z"), "{listed}");
    assert!(lines[2].starts_with("zz-first") && lines[2].contains("2023-11-14T22:15:00Z"), "{listed}");
    // Of the newer one all tables are linked, though the other comes last by name.
    let said = backup(&b, &target, "mm-third");
    assert!(said.contains("0 tables copied, 17 were there already"), "{said}");
    assert!(contents(&b) == contents(&target.join("mm-third")));
    cut_short(&target.join("mm-third"), Unfinished::Backup);
    ["aa-second", "zz-first"].iter().for_each(|name| fs::remove_dir_all(target.join(name)).unwrap());
    let said = backup(&b, &target, "fourth");
    assert!(said.contains("4 tables copied, 13 were there already"), "{said}");
    assert!(contents(&b) == contents(&target.join("fourth")));
}

#[test]
fn the_oldest_are_removed_and_the_others_stay_whole() {
    let dir = checkpoints();
    let (a, b, target) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("backups"));
    for (name, from, second) in [("d", &a, 1), ("c", &b, 2), ("b", &b, 3), ("a", &a, 4)] {
        take_at(from, 1_700_000_000 + second);
        backup(from, &target, name);
    }
    fs::create_dir(target.join("something")).unwrap();
    fs::write(target.join("a file"), "of nobody").unwrap();
    backup(&b, &target, "e");
    cut_short(&target.join("e"), Unfinished::Backup);
    let all = ["a", "a file", "b", "c", "d", "e", "something"];
    assert_eq!(names(&target), all);

    let (code, said) = prune(&target, &["--keep=0"]);
    assert!(code == Some(2) && names(&target) == all, "{said}");
    let (code, said) = prune(&target, &["--keep=2", "--older-than=36500d"]);
    assert!(code == Some(0) && names(&target) == all, "{said}");
    let (code, said) = prune(&target, &["--keep=1", "--incomplete", "--dry-run"]);
    assert!(code == Some(0) && names(&target) == all, "{said}");
    let would = ["d: would be removed", "c: would be", "b: would be", "e: would be"];
    assert!(would.iter().all(|line| said.contains(line)), "{said}");
    assert!(!said.contains("\na:") && !said.starts_with("a:"), "{said}");

    let (code, said) = prune(&target, &["--keep=2", "--older-than=1h"]);
    assert!(code == Some(0) && said.contains("d: removed"), "{said}");
    assert_eq!(names(&target), ["a", "a file", "b", "e", "something"]);
    // A backup that a server was started on holds what no other does; one that is being made is not left over.
    fs::write(target.join("b/wal/0000000000000001.wal"), "a log").unwrap();
    let busy = File::open(target.join("e/INCOMPLETE")).unwrap();
    busy.lock().unwrap();
    let (code, said) = prune(&target, &["--keep=1", "--incomplete"]);
    assert!(code == Some(2) && said.contains("it has logs") && said.contains("another process"), "{said}");
    assert_eq!(names(&target), ["a", "a file", "b", "e", "something"]);
    drop(busy);
    fs::remove_file(target.join("b/wal/0000000000000001.wal")).unwrap();
    let (code, said) = prune(&target, &["--keep=1", "--incomplete"]);
    assert_eq!(
        (code, names(&target)),
        (Some(0), ["a", "a file", "something"].map(str::to_owned).to_vec()),
        "{said}"
    );
    let restored = dir.path().join("restored");
    assert_eq!(run("restore", &target.join("a"), &restored).0, Some(0));
    assert!(contents(&a) == contents(&restored));
    let alone =
        fs::read_dir(target.join("a/sst")).unwrap().map(|entry| entry.unwrap().metadata().unwrap().nlink());
    assert!(alone.into_iter().all(|names| names == 1), "what only the removed ones had is gone");
}

fn options() -> EngineOptions {
    EngineOptions {
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
        level_ratio: 4,
        last_table_bytes: 32 << 20,
        snapshot_life: Duration::from_secs(60),
        snapshot_bytes: 1 << 30,
        scrub_bytes_per_s: 0,
        reserve_bytes: 0,
    }
}
