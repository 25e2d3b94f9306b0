//! The manifest on the simulated disk.

use super::format::{CURRENT, FileKey};
use super::*;
use crate::base::{BlockSeq, EntryIndex, FileId, LogId, Lsn, PAGE_SIZE, TabletId};
use crate::disk::sim::SimDisk;
use crate::env::Env;
use crate::env::sim::{SimEnv, SimWorld};
use crate::slot::SlotRange;

fn table(file: u64) -> TableRef {
    TableRef {
        file: FileId(file),
        level: 3,
        bytes: 4096,
        entries: 7,
        tombstones: 1,
        expiring: 2,
        min_lsn: Lsn(5),
        max_lsn: Lsn(9),
        smallest: b"a".as_slice().into(),
        largest: b"z".as_slice().into(),
        clip: Some(Clip {
            slots: SlotRange::ALL,
            smallest: b"b".as_slice().into(),
            end: b"".as_slice().into(),
        }),
    }
}

fn state(shards: u32) -> State {
    let mut state = State::create(0x1234_5678_9ABC, 42, 16);
    state.generation = 1;
    state.shards = shards;
    for tablet in state.tablets.values_mut() {
        tablet.shard = tablet.id.0 % shards;
    }
    state.logs.insert(LogId(1), LogMeta { end: Some(BlockSeq(17)) });
    state.logs.insert(LogId(2), LogMeta { end: None });
    state
}

fn edit(number: u64) -> Edit {
    let tablet = TabletId(0);
    let mut changes = vec![
        Change::AddTable { tablet, position: 0, table: table(number) },
        Change::Flushed { tablet, index: EntryIndex(number), term: 1 },
        Change::Flushed { tablet: TabletId(2), index: EntryIndex(number), term: 1 },
    ];
    if number > 3 {
        changes.push(Change::RemoveTables { tablet, files: vec![FileId(number - 3)] });
    }
    Edit { changes }
}

#[test]
fn everything_comes_back_from_every_shard() {
    let (world, env) = SimEnv::fresh(1);
    world.run(async {
        assert_eq!(load(&env).await.unwrap(), None);
        install(&env, &state(2)).await.unwrap();
        assert_eq!(load(&env).await.unwrap(), Some(state(2)));
        let manifest = ShardManifest::open(&env, 1, 2, 0).await.unwrap();
        let mut expected = state(2);
        for number in 1..=5 {
            manifest.commit(edit(number)).await.unwrap();
            edit(number).changes.iter().for_each(|change| expected.apply(change).unwrap());
        }
        assert_eq!(load(&env).await.unwrap().as_ref(), Some(&expected));
        assert_eq!(manifest.state().tablets[&TabletId(0)].tables.len(), 3);
        manifest.close().await.unwrap();
        // Another number of shards is another generation.
        let mut next = expected.clone();
        (next.generation, next.shards) = (2, 3);
        next.tablets.values_mut().for_each(|tablet| tablet.shard = tablet.id.0 % 3);
        install(&env, &next).await.unwrap();
        assert_eq!(load(&env).await.unwrap(), Some(next));
        assert!(env.disk().paths().iter().all(|path| !path.contains("00000001-")), "the old one is gone");
    });
}

/// Creates, commits, installs a second generation; returns how many commits were acknowledged and
/// whether the second generation was.
async fn history(env: SimEnv, progress: std::rc::Rc<std::cell::Cell<(bool, u64, bool)>>) {
    let Ok(()) = install(&env, &state(2)).await else { return };
    progress.set((true, 0, false));
    let manifest = ShardManifest::open(&env, 1, 2, 0).await.unwrap();
    for number in 1..=6 {
        manifest.commit(edit(number)).await.unwrap();
        progress.set((true, number, false));
    }
    let mut next = load(&env).await.unwrap().unwrap();
    (next.generation, next.shards) = (2, 1);
    next.tablets.values_mut().for_each(|tablet| tablet.shard = 0);
    install(&env, &next).await.unwrap();
    progress.set((true, 6, true));
}

#[test]
fn a_crash_anywhere_leaves_the_state_before_or_after_and_no_acknowledged_edit_is_lost() {
    let run = |seed: u64, crash_at: u64| {
        let (world, env) = SimEnv::fresh(seed);
        env.disk().crash_at(crash_at);
        let progress = std::rc::Rc::new(std::cell::Cell::new((false, 0, false)));
        world.run(futures_lite::future::or(history(env.clone(), progress.clone()), async {
            while !env.disk().is_down() {
                env.sleep(std::time::Duration::from_micros(50)).await;
            }
        }));
        (env, progress.get())
    };
    let (env, done) = run(1, u64::MAX);
    assert_eq!(done, (true, 6, true));
    for crash_at in 1..=env.disk().operations() {
        for (seed, keep) in [(1, 50), (2, 10), (3, 90)] {
            let (env, (installed, acked, switched)) = run(seed, crash_at);
            let world = SimWorld::new(seed);
            let disk = env.disk().crash(&world, &mut fastrand::Rng::with_seed(crash_at * 7 + seed), keep);
            let env = SimEnv::new(&world, disk);
            let found =
                world.run(load(&env)).unwrap_or_else(|e| panic!("crash at {crash_at}, seed {seed}: {e}"));
            let Some(found) = found else {
                assert!(!installed, "crash at {crash_at}, seed {seed}");
                continue;
            };
            let flushed = found.tablets[&TabletId(0)].flushed.0;
            assert!(
                flushed == acked || flushed == acked + 1,
                "crash at {crash_at}: {flushed}, {acked} acked"
            );
            assert_eq!(found.tablets[&TabletId(2)].flushed.0, flushed, "an edit is atomic over tablets");
            assert!(!switched || found.generation == 2);
            // The next start works on what is there, leftovers included.
            let mut next = found.clone();
            next.generation += 1;
            world.run(install(&env, &next)).unwrap();
            assert_eq!(world.run(load(&env)).unwrap(), Some(next));
        }
    }
}

fn with_edits(seed: u64) -> (SimWorld, SimEnv, String) {
    let (world, env) = SimEnv::fresh(seed);
    world.run(async {
        install(&env, &state(1)).await.unwrap();
        let manifest = ShardManifest::open(&env, 1, 1, 0).await.unwrap();
        for number in 1..=3 {
            manifest.commit(edit(number)).await.unwrap();
        }
    });
    (world, env, FileKey { generation: 1, shard: 0, part: 0 }.path())
}

fn flip(disk: &SimDisk, path: &str, at: usize) {
    let mut bytes = disk.peek(path).unwrap();
    bytes[at] ^= 1;
    disk.poke(path, bytes);
}

#[test]
fn a_torn_last_edit_is_cut_and_damage_before_it_is_refused() {
    let (world, env, path) = with_edits(1);
    let bytes = env.disk().peek(&path).unwrap();
    let (_, edits) = inspect_manifest(path.strip_prefix("manifest/").unwrap(), &bytes).unwrap();
    let last = edits.last().unwrap().offset as usize;
    flip(env.disk(), &path, last + 70);
    let found = world.run(load(&env)).unwrap().unwrap();
    assert_eq!(found.tablets[&TabletId(0)].flushed, EntryIndex(2));
    let (world, env, path) = with_edits(1);
    flip(env.disk(), &path, last - PAGE_SIZE + 70);
    let error = world.run(load(&env)).unwrap_err();
    assert!(matches!(&error, ManifestError::Corrupt { offset, .. } if *offset == (last - PAGE_SIZE) as u64));
    assert!(error.to_string().contains(&path), "{error}");
}

#[test]
fn newer_missing_and_damaged_files_are_told_apart() {
    let (world, env, path) = with_edits(2);
    let mut page = env.disk().peek(CURRENT).unwrap();
    page[8] = 9;
    let crc = crate::base::crc32c(&page[..24]);
    page[24..28].copy_from_slice(&crc.to_le_bytes());
    let old = env.disk().peek(CURRENT).unwrap();
    env.disk().poke(CURRENT, page);
    assert!(matches!(world.run(load(&env)), Err(ManifestError::Newer { found: 9, .. })));
    env.disk().poke(CURRENT, vec![1; PAGE_SIZE]);
    assert!(matches!(world.run(load(&env)), Err(ManifestError::Corrupt { .. })));
    env.disk().poke(CURRENT, old);
    world.run(async { crate::disk::Disk::remove(env.disk(), &path).await.unwrap() });
    assert!(matches!(world.run(load(&env)), Err(ManifestError::Missing { .. })));
}

#[test]
fn a_full_disk_is_met_before_an_edit_is_begun_and_a_failed_write_is_final() {
    let (world, env) = SimEnv::fresh(3);
    world.run(async {
        install(&env, &state(1)).await.unwrap();
        let manifest = ShardManifest::open(&env, 1, 1, 0).await.unwrap();
        env.disk().set_capacity(0);
        let mut acked = 0;
        let refused = loop {
            match manifest.commit(edit(acked + 1)).await {
                Ok(()) => acked += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, ManifestError::Full { .. }));
        assert!(acked > 3, "space was reserved ahead");
        env.disk().set_capacity(u64::MAX);
        manifest.commit(edit(acked + 1)).await.unwrap();
        env.disk().fail("dsync", "manifest/", 0, libc::EIO, true);
        assert!(matches!(manifest.commit(edit(acked + 2)).await, Err(ManifestError::Failed(_))));
        assert!(matches!(manifest.commit(edit(acked + 2)).await, Err(ManifestError::Failed(_))));
        let found = load(&env).await.unwrap().unwrap();
        assert!(found.tablets[&TabletId(0)].flushed.0 > acked);
    });
}

#[test]
fn a_long_file_is_rewritten_and_nothing_is_lost() {
    let (world, env) = SimEnv::fresh(4);
    world.run(async {
        install(&env, &state(1)).await.unwrap();
        let manifest = ShardManifest::open(&env, 1, 1, 0).await.unwrap();
        for number in 1..=600 {
            manifest.commit(edit(number)).await.unwrap();
        }
        let manifests = env.disk().paths().into_iter().filter(|path| path.starts_with("manifest/"));
        let manifests: Vec<_> = manifests.collect();
        assert_eq!(manifests.len(), 1, "{manifests:?}");
        assert!(!manifests[0].contains("-0000.manifest"), "it was rewritten");
        let found = load(&env).await.unwrap().unwrap();
        assert_eq!(found.tablets[&TabletId(0)].flushed, EntryIndex(600));
        assert_eq!(found, {
            let s = manifest.state().clone();
            s
        });
    });
}
