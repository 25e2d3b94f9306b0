//! Salvage of damaged data directories, against a model of all that was ever written: what is opened afterwards has
//! the newest version of every key, or the list of losses says why not; it never has anything that was not written.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use atlaskv::base::{EntryIndex, Lsn, Op, OpKind};
use atlaskv::disk::Disk;
use atlaskv::disk::sim::SimDisk;
use atlaskv::engine::Engine;
use atlaskv::env::Env;
use atlaskv::env::sim::{SimEnv, SimWorld};
use atlaskv::placement::SlotTable;
use atlaskv::slot::Slot;
use tempfile::TempDir;

use common::options;

const PAGE: usize = 4096;
const TABLETS: u16 = 16;

/// What was written to a key, oldest first; `None`: it was deleted.
type History = BTreeMap<String, Vec<(Lsn, Option<String>)>>;

async fn open(env: &SimEnv) -> (Rc<Engine<SimEnv>>, SlotTable) {
    let mut opened = common::open(env, &options(), 1, TABLETS).await.unwrap();
    (opened.engines.remove(0), opened.slots)
}

fn tablet(slots: &SlotTable, key: &str) -> usize {
    slots.local(Slot::of_key(key.as_bytes()))
}

/// Writes, flushes all but the last of it, and closes.
async fn fill(env: &SimEnv, rng: &mut fastrand::Rng) -> History {
    let mut history = History::new();
    let (engine, slots) = open(env).await;
    let rounds = rng.u64(2..6);
    for round in 0..rounds {
        for step in 0..400 {
            let key = format!("key-{:03}", rng.u32(..300));
            let local = tablet(&slots, &key);
            let long = if rng.u32(..100) == 0 { 3000 } else { 3 };
            let value = format!("{round}.{step} of {key} ").repeat(rng.usize(1..5) * long);
            let (kind, value) = match rng.u8(..5) {
                0 => (OpKind::Delete, None),
                _ => (OpKind::Put, Some(value)),
            };
            let expiry_ms = if kind == OpKind::Put && rng.u8(..4) == 0 { u64::MAX / 2 } else { 0 };
            let bytes = value.as_deref().unwrap_or_default().as_bytes();
            let op = Op { kind, key: key.as_bytes(), value: bytes, expiry_ms };
            let lsn = engine.write(local, &[op], &[engine.hash(key.as_bytes())]).unwrap().lsn;
            history.entry(key).or_default().push((lsn, value));
            if rng.u8(..150) == 0 {
                let from = rng.u32(..300);
                let (start, end) = (format!("key-{from:03}"), format!("key-{:03}", from + rng.u32(1..60)));
                let lsn = engine.delete_range(local, start.as_bytes(), end.as_bytes()).unwrap().lsn;
                for (key, versions) in history.range_mut(start..end) {
                    if tablet(&slots, key) == local {
                        versions.push((lsn, None));
                    }
                }
            }
            if rng.u8(..10) == 0 {
                env.sleep(Duration::from_millis(1)).await;
            }
        }
        if round + 1 < rounds {
            engine.rotate();
            engine.changed().until(|| engine.metrics().flushes > round).await;
            env.sleep(Duration::from_secs(rng.u64(..5))).await;
        }
    }
    engine.close().await.unwrap();
    history
}

/// A store, and what was written to it.
fn store(rng: &mut fastrand::Rng) -> (TempDir, History) {
    let world = SimWorld::new(rng.u64(..));
    let env = SimEnv::new(&world, SimDisk::new(&world));
    let history = world.run(fill(&env, rng));
    let dir = tempfile::tempdir().unwrap();
    common::write_out(env.disk(), dir.path());
    (dir, history)
}

fn run(command: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_atlaskv-inspect")).arg(command).args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.code(),
        String::from_utf8(said).expect("what is printed is text, whatever stands in the files"),
    )
}

/// What a salvage said and made.
struct Salvaged {
    code: Option<i32>,
    said: String,
    fresh: TempDir,
}

impl Salvaged {
    fn of(dir: &Path, flags: &[&str]) -> Salvaged {
        let fresh = tempfile::tempdir().unwrap();
        let arguments = [&[dir.to_str().unwrap(), fresh.path().to_str().unwrap()], flags].concat();
        let (code, said) = run("salvage", &arguments);
        Salvaged { code, said, fresh }
    }

    fn lost(&self) -> impl Iterator<Item = &str> {
        self.said.lines().filter_map(|line| line.strip_prefix("LOST: "))
    }

    /// Whether the list of losses says that newer versions of a key than `found` may be missing.
    fn tells(&self, key: &str, tablet: usize, newest: Lsn) -> bool {
        let number = |text: &str, after: &str| {
            let text = text.split_once(after).map_or("", |(_, text)| text);
            text.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse::<u64>().ok()
        };
        self.lost().any(|line| {
            if let Some(entries) = line.strip_prefix("entries ") {
                let (first, last) = (number(line, "entries "), number(entries, " to "));
                let is_there = first.zip(last).is_some_and(|(first, last)| {
                    (EntryIndex(first)..=EntryIndex(last)).contains(&newest.index())
                });
                return is_there && number(line, "of tablet ") == Some(tablet as u64);
            }
            if line.starts_with("wal/") {
                // What an unreadable block at the end held nobody knows.
                return line.contains("unreadable block")
                    || line.contains("more entries")
                    || line.contains(&format!("of tablet {tablet}"));
            }
            let quoted: Vec<&str> = line.split('"').skip(1).step_by(2).collect();
            let from = if line.contains("from its first key") { "" } else { quoted[0] };
            let to = match (line.contains("to its last key"), line.contains(" all of it, ")) {
                (true, _) => "~",
                (_, true) => quoted[1],
                (false, false) if from.is_empty() => quoted[0],
                (false, false) => quoted[1],
            };
            (from..=to).contains(&key)
        })
    }
}

/// Opens what was salvaged, and compares it. `told` says whether a difference was told. How many keys differ.
fn compare(fresh: &Path, history: &History, told: impl Fn(&str, usize, Lsn) -> bool) -> usize {
    let (code, said) = run("verify", &[fresh.to_str().unwrap()]);
    assert_eq!(code, Some(0), "{said}");
    let world = SimWorld::new(1);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    world.run(async {
        for dir in ["sst", "manifest", "wal"] {
            env.disk().create_dir(dir).await.unwrap();
            for path in files(fresh, dir) {
                let name = format!("{dir}/{}", path.file_name().unwrap().to_str().unwrap());
                env.disk().poke(&name, fs::read(path).unwrap());
            }
        }
        env.disk().poke("CURRENT", fs::read(fresh.join("CURRENT")).unwrap());
        let (engine, slots) = open(&env).await;
        let (mut wrong, mut differ) = (Vec::new(), 0);
        for (key, versions) in history {
            let tablet = tablet(&slots, key);
            let found = get(&engine, tablet, key).await;
            let (newest, value) = versions.last().unwrap();
            let found = found.map(|(lsn, found)| {
                let is_known = versions.contains(&(lsn, Some(found.clone())));
                assert!(is_known, "{key} at {lsn} was never \"{found}\"");
                found
            });
            if found != *value {
                differ += 1;
                if !told(key, tablet, *newest) {
                    wrong.push((key, *newest, value.is_some(), found.is_some()));
                }
            }
        }
        assert!(
            wrong.is_empty(),
            "keys (newest version, whether it is a put, whether something is found): {wrong:?}"
        );
        // No version is given out twice, not even one that is lost.
        for (key, versions) in history {
            let op = Op { kind: OpKind::Put, key: key.as_bytes(), value: b"new", expiry_ms: 0 };
            let lsn = engine.write(tablet(&slots, key), &[op], &[engine.hash(key.as_bytes())]).unwrap().lsn;
            assert!(versions.iter().all(|(known, _)| *known < lsn), "{key}: {lsn} comes again");
        }
        engine.close().await.unwrap();
        differ
    })
}

async fn get(engine: &Engine<SimEnv>, tablet: usize, key: &str) -> Option<(Lsn, String)> {
    let found = common::get(engine, tablet, key.as_bytes()).await.unwrap();
    found.map(|(lsn, _, value)| (lsn, String::from_utf8(value).unwrap()))
}

fn files(dir: &Path, below: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join(below)).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn flip(path: &Path, at: usize, rng: &mut fastrand::Rng) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1 << rng.u8(..8);
    fs::write(path, bytes).unwrap();
}

/// Where pages begin that are not blank.
fn used_pages(path: &Path) -> Vec<usize> {
    let bytes = fs::read(path).unwrap();
    let pages = bytes.chunks(PAGE).enumerate().filter(|(_, page)| page.iter().any(|byte| *byte != 0));
    pages.map(|(number, _)| number * PAGE).collect()
}

fn seeds() -> impl Iterator<Item = u64> {
    let wanted = std::env::var("ATLASKV_SALVAGE_SEED").ok();
    let first = wanted.map_or_else(|| fastrand::u64(..1 << 40), |wanted| wanted.parse().unwrap());
    (first..first + 6).inspect(|seed| println!("to repeat: ATLASKV_SALVAGE_SEED={seed}"))
}

#[test]
fn of_a_whole_store_nothing_is_lost() {
    for seed in seeds() {
        let (dir, history) = store(&mut fastrand::Rng::with_seed(seed));
        let salvaged = Salvaged::of(dir.path(), &[]);
        assert_eq!(salvaged.code, Some(0), "{}", salvaged.said);
        assert!(salvaged.said.starts_with("nothing was lost: "), "{}", salvaged.said);
        compare(salvaged.fresh.path(), &history, |_, _, _| false);
    }
}

#[test]
fn damage_that_costs_nothing_costs_nothing() {
    for seed in seeds() {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (dir, history) = store(&mut rng);
        for (number, table) in files(dir.path(), "sst").iter().enumerate() {
            let pages = fs::metadata(table).unwrap().len() as usize / PAGE;
            match number % 3 {
                // The footer, and the top of the index in front of it.
                0 => flip(table, (pages - 1) * PAGE + rng.usize(..PAGE), &mut rng),
                1 => flip(table, (pages - 2) * PAGE + rng.usize(..PAGE), &mut rng),
                // The last partition.
                _ => flip(table, (pages - 3) * PAGE + rng.usize(..64), &mut rng),
            }
        }
        match rng.bool() {
            true => fs::remove_file(dir.path().join("CURRENT")).unwrap(),
            false => flip(&dir.path().join("CURRENT"), rng.usize(..28), &mut rng),
        }
        let salvaged = Salvaged::of(dir.path(), &[]);
        assert_eq!(salvaged.code, Some(0), "{}", salvaged.said);
        assert!(salvaged.said.contains("note: sst/"), "{}", salvaged.said);
        compare(salvaged.fresh.path(), &history, |_, _, _| false);
    }
}

#[test]
fn what_is_lost_is_listed_and_everything_else_is_right() {
    let (mut with_losses, mut kinds, mut differ, mut keys) = (0, [0; 4], 0, 0);
    for seed in seeds().flat_map(|seed| [seed, seed + (1 << 41), seed + (1 << 42)]) {
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let (dir, history) = store(&mut rng);
        for _ in 0..rng.u32(1..4) {
            let kind = rng.usize(..4);
            let below = if kind < 3 { "sst" } else { "wal" };
            let mut candidates = files(dir.path(), below);
            candidates.retain(|path| fs::metadata(path).unwrap().len() > 0 && used_pages(path).len() > 2);
            let Some(path) = rng.choice(candidates) else { continue };
            let pages = used_pages(&path);
            match kind {
                0 => flip(&path, pages[rng.usize(..pages.len())] + rng.usize(..PAGE), &mut rng),
                1 => fs::remove_file(&path).unwrap(),
                2 => {
                    let bytes = fs::read(&path).unwrap();
                    fs::write(&path, &bytes[..rng.usize(..bytes.len())]).unwrap();
                }
                // In the middle: what stands at the end of a log may never have been whole.
                _ => flip(&path, pages[rng.usize(1..pages.len() - 1)] + rng.usize(..160), &mut rng),
            }
            kinds[kind] += 1;
        }
        let salvaged = Salvaged::of(dir.path(), &[]);
        let has_losses = salvaged.lost().next().is_some();
        assert_eq!(salvaged.code, Some(i32::from(has_losses)), "{}", salvaged.said);
        with_losses += u32::from(has_losses);
        let told = |key: &str, tablet, newest| salvaged.tells(key, tablet, newest);
        println!("{}", salvaged.said);
        differ += compare(salvaged.fresh.path(), &history, told);
        keys += history.len();
    }
    println!("{differ} of {keys} keys differ");
    assert!(differ > 0 && differ < keys / 4, "{differ} of {keys} keys differ");
    assert!(with_losses > 0 && kinds.iter().all(|count| *count > 0), "{with_losses} with losses, {kinds:?}");
}

#[test]
fn without_a_manifest_it_wants_to_be_told_and_brings_back_no_more_than_deleted_keys() {
    for seed in seeds() {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (dir, history) = store(&mut rng);
        let manifest = files(dir.path(), "manifest").pop().unwrap();
        // The snapshot at its start; or an edit behind it, which others follow.
        let pages = used_pages(&manifest);
        let page = if rng.bool() { 0 } else { pages[rng.usize(1..pages.len() - 1)] };
        flip(&manifest, page + rng.usize(..56), &mut rng);
        let refused = Salvaged::of(dir.path(), &[]);
        assert_eq!(refused.code, Some(2), "{}", refused.said);
        assert!(
            refused.said.contains("--without-manifest") && refused.said.contains("manifest/"),
            "{}",
            refused.said
        );
        assert_eq!(fs::read_dir(refused.fresh.path()).unwrap().count(), 0, "nothing was begun");
        let salvaged = Salvaged::of(dir.path(), &["--without-manifest"]);
        assert_eq!(salvaged.code, Some(1), "{}", salvaged.said);
        assert!(salvaged.said.contains("deleted keys may be back"), "{}", salvaged.said);
        let is_deleted = |key: &str| history[key].last().unwrap().1.is_none();
        compare(salvaged.fresh.path(), &history, |key, _, _| is_deleted(key));
    }
}

#[test]
fn it_takes_no_directory_that_holds_anything_and_none_that_holds_nothing_of_ours() {
    let (dir, _) = store(&mut fastrand::Rng::with_seed(1));
    let before = files(dir.path(), "");
    let path = dir.path().to_str().unwrap();
    let (code, said) = run("salvage", &[path, path]);
    assert!(code == Some(2) && said.contains("not empty"), "{said}");
    assert_eq!(files(dir.path(), ""), before);
    let (code, said) = run("salvage", &[&format!("{path}/sst"), &format!("{path}/new")]);
    assert!(code == Some(2) && said.contains("CURRENT is missing"), "{said}");
}
