//! Backups of checkpoints: only what is new is copied, and only what is whole is restored.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::rc::Rc;
use std::time::Duration;

use atlaskv::base::{Compression, Op, OpKind};
use atlaskv::disk::sim::SimDisk;
use atlaskv::engine::{Engine, EngineOptions, checkpoint, recovery};
use atlaskv::env::Env;
use atlaskv::env::sim::{SimEnv, SimWorld};
use atlaskv::metrics::Metrics;
use atlaskv::placement::SlotTable;
use atlaskv::slot::Slot;
use tempfile::TempDir;

/// Two checkpoints of a store, `a` and `b`; between them a tenth of the tablets was written to.
async fn make(env: SimEnv) {
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
    (0..400).for_each(|number| put(&format!("key-{number}"), &"v".repeat(100)));
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

fn checkpoints() -> TempDir {
    let world = SimWorld::new(1);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    world.run(make(env.clone()));
    let dir = tempfile::tempdir().unwrap();
    for path in env.disk().paths() {
        let bytes = env.disk().peek(&path).unwrap();
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    // The simulated disk tells of files only.
    ["a", "b"].iter().for_each(|name| fs::create_dir(dir.path().join(name).join("wal")).unwrap());
    dir
}

fn inspect(arguments: &[&Path]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_atlaskv-inspect")).args(arguments).output().unwrap()
}

fn run(verb: &str, from: &Path, to: &Path) -> (Option<i32>, String) {
    let output = inspect(&[Path::new(verb), from, to]);
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

/// Every file below `dir`, by its path there.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let name = PathBuf::from(path.file_name().unwrap());
            all.extend(contents(&path).into_iter().map(|(inner, bytes)| (name.join(inner), bytes)));
        } else {
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
    let backup = |from: &Path, name: &str| {
        let name = format!("--name={name}");
        let output = inspect(&[Path::new("backup"), from, &target, Path::new(&name)]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let said = backup(&a, "1");
    assert!(said.contains("16 tables copied, 0 were there already"), "{said}");
    let said = backup(&b, "2");
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
    fs::write(a.join("INCOMPLETE"), "").unwrap();
    for verb in ["restore", "backup"] {
        let (code, said) = run(verb, &a, &target);
        assert!(code == Some(2) && said.contains("never completed") && !target.exists(), "{verb}: {said}");
    }
    fs::remove_file(a.join("INCOMPLETE")).unwrap();
    // The store itself has logs.
    let (code, said) = run("backup", dir.path(), &target);
    assert!(code == Some(2) && said.contains("it has logs"), "{said}");
    let (code, said) = run("restore", &a, &dir.path().join("whole"));
    assert_eq!(code, Some(0), "{said}");
}

fn options() -> EngineOptions {
    EngineOptions {
        memtable_bytes: 64 << 20,
        sealed_max: 1,
        cache_bytes: 1 << 20,
        index_bytes: 1 << 20,
        compression: Compression::default(),
        segment_bytes: 1 << 20,
        window: 2,
        lazy: None,
        compaction_fan: 4,
        level_ratio: 4,
        last_table_bytes: 32 << 20,
        snapshot_life: Duration::from_secs(60),
        scrub_bytes_per_s: 0,
        reserve_bytes: 0,
    }
}
