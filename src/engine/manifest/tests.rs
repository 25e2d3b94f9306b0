//! The manifest on the simulated disk.

mod changes;
mod crash;

use std::rc::Rc;

use super::format::{CURRENT, Current, FileKey};
use super::*;
use crate::base::{BlockSeq, EntryIndex, FileId, LogId, Lsn, PAGE_SIZE, TabletId, crc32c};
use crate::disk::Disk;
use crate::disk::sim::SimDisk;
use crate::env::Env;
use crate::env::sim::{SimEnv, SimWorld};
use crate::slot::SlotRange;

fn table(number: u64) -> TableRef {
    spanning(number, number, number)
}

/// A table with the LSNs of entries `first` to `last`.
fn spanning(file: u64, first: u64, last: u64) -> TableRef {
    TableRef {
        file: FileId(file),
        level: UPPER,
        bytes: 4096,
        entries: 7,
        tombstones: 1,
        expiring: 2,
        min_lsn: Lsn::new(EntryIndex(first), 0),
        max_lsn: Lsn::new(EntryIndex(last), 9),
        cleared: Lsn::ZERO,
        smallest: b"a".as_slice().into(),
        largest: b"z".as_slice().into(),
        clip: Some(Clip {
            slots: SlotRange::ALL,
            smallest: b"b".as_slice().into(),
            end: b"".as_slice().into(),
        }),
    }
}

/// Who can't read a table goes on by what the manifest knows of it, and may write that down again.
#[test]
fn what_is_known_of_a_table_says_of_it_what_was_said() {
    for level in [UPPER, LAST] {
        let known = table(3).placed(level, table(3).clip);
        let meta = known.meta(TabletId(5), SlotRange::ALL);
        assert_eq!(
            (meta.tablet, meta.slots, meta.shape.is_last),
            (TabletId(5), SlotRange::ALL, level == LAST)
        );
        assert_eq!(TableRef::from(&meta).placed(level, known.clip.clone()), known);
    }
}

fn state(shards: u32) -> State {
    let mut state = State::create(0x1234_5678_9ABC, 42, 16);
    state.store.next_log = 3;
    state.generation = 1;
    state.logs.insert(LogId(1), LogMeta { end: Some(BlockSeq(17)) });
    state.logs.insert(LogId(2), LogMeta { end: None });
    for tablet in state.tablets.values_mut() {
        tablet.logs = vec![LogId(1), LogId(2)];
    }
    state.pins.insert((FileId(99), 5));
    next_generation(&state, 1, shards)
}

fn next_generation(before: &State, generation: u64, shards: u32) -> State {
    let mut next = before.clone();
    (next.generation, next.shards) = (generation, shards);
    next.tablets.values_mut().for_each(|tablet| tablet.shard = tablet.id.0 % shards);
    next
}

/// Names two tablets of shard 0, for two shards as for one.
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
    if number == 2 {
        changes.push(Change::LogsDone { tablet, oldest: LogId(2) });
    }
    Edit { changes }
}

fn with(state: &State, edit: &Edit) -> State {
    let mut after = state.clone();
    edit.changes.iter().for_each(|change| after.apply(change).unwrap());
    after
}

fn manifests(disk: &SimDisk) -> Vec<String> {
    disk.paths().into_iter().filter(|path| path != CURRENT).collect()
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
            expected = with(&expected, &edit(number));
        }
        assert_eq!(load(&env).await.unwrap().as_ref(), Some(&expected));
        let files: Vec<u64> = manifest.state().tables(TabletId(0)).iter().map(|table| table.file.0).collect();
        assert_eq!(files, [5, 4, 3], "newest first");
        assert_eq!(manifest.state().flushed(TabletId(2)), EntryIndex(5));
        assert!(expected.is_pinned(FileId(99)) && !expected.is_pinned(FileId(98)), "a pinned file is live");
        manifest.close().await.unwrap();
        // Another number of shards is another generation.
        let next = next_generation(&expected, 2, 3);
        install(&env, &next).await.unwrap();
        assert_eq!(load(&env).await.unwrap(), Some(next));
        assert!(env.disk().paths().iter().all(|path| !path.contains("00000001-")), "the old one is gone");
    });
}

#[test]
fn logs_are_removable_once_no_tablet_needs_them() {
    let mut state = state(2);
    assert!(state.removable_logs().is_empty());
    for id in 0..16 {
        assert!(state.needed_logs().contains(&LogId(1)));
        state.apply(&Change::LogsDone { tablet: TabletId(id), oldest: LogId(2) }).unwrap();
    }
    assert_eq!(state.removable_logs().into_iter().collect::<Vec<_>>(), [LogId(1)]);
    assert_eq!(state.needed_logs().into_iter().collect::<Vec<_>>(), [LogId(2)]);
}

#[test]
fn leftovers_of_every_kind_are_ignored_and_then_removed() {
    let (world, env, path) = with_edits(1);
    let bytes = env.disk().peek(&path).unwrap();
    let foreign = ["manifest/notes.txt", "manifest/+1-0-0.manifest", "manifest/1-2.manifest"];
    let leftovers = [
        "CURRENT.tmp".to_owned(),
        format!("{}.tmp", FileKey { generation: 1, shard: 0, part: 7 }.path()),
        FileKey { generation: 2, shard: 0, part: 0 }.path(),
        FileKey { generation: 0, shard: 3, part: 1 }.path(),
    ];
    for leftover in leftovers.iter().map(String::as_str).chain(foreign) {
        env.disk().poke(leftover, bytes[..PAGE_SIZE].to_vec());
    }
    let found = world.run(load(&env)).unwrap().unwrap();
    assert_eq!(found.flushed(TabletId(0)), EntryIndex(3));
    let next = next_generation(&found, 2, 1);
    world.run(install(&env, &next)).unwrap();
    assert_eq!(world.run(load(&env)).unwrap(), Some(next));
    let paths = env.disk().paths();
    assert!(
        leftovers.iter().all(|path| path.contains("00000002-0000") || !paths.contains(path)),
        "{paths:?}"
    );
    assert!(foreign.iter().all(|path| paths.contains(&(*path).to_owned())), "what is not ours stays");
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

/// Offsets of the blocks of a whole file: a snapshot, and a seal behind each edit.
fn offsets(disk: &SimDisk, path: &str) -> Vec<usize> {
    let (_, edits) = inspect_manifest(&path["manifest/".len()..], &disk.peek(path).unwrap()).unwrap();
    edits.iter().map(|edit| edit.offset as usize).collect()
}

#[test]
fn damage_to_a_committed_edit_is_refused_and_a_torn_tail_is_cut() {
    let (_, env, path) = with_edits(1);
    let offsets = offsets(env.disk(), &path);
    assert_eq!(offsets.len(), 7);
    for (block, offset) in offsets.iter().enumerate() {
        // In the header, and in the payload.
        for at in [offset + 20, offset + 70] {
            let is_seal = block > 0 && block % 2 == 0;
            if is_seal && at == offset + 70 {
                continue; // it has no payload
            }
            let (world, env, path) = with_edits(1);
            flip(env.disk(), &path, at);
            match world.run(load(&env)) {
                Ok(found) => {
                    assert_eq!(block, 6, "only the last may be torn, and that is a seal");
                    assert_eq!(found.unwrap().flushed(TabletId(0)), EntryIndex(3));
                }
                Err(error) => {
                    assert!(block < 6);
                    let is_there =
                        matches!(&error, ManifestError::Corrupt { offset: o, .. } if *o == *offset as u64);
                    assert!(is_there && error.to_string().contains(&path), "{error}");
                }
            }
        }
    }
}

#[test]
fn every_flipped_bit_of_an_edit_in_the_middle_is_found() {
    let (world, env, path) = with_edits(1);
    let offsets = offsets(env.disk(), &path);
    let payload = u32::from_le_bytes(
        env.disk().peek(&path).unwrap()[offsets[1] + 32..offsets[1] + 36].try_into().unwrap(),
    );
    let whole = env.disk().peek(&path).unwrap();
    for bit in 0..(56 + payload as usize) * 8 {
        let mut bytes = whole.clone();
        bytes[offsets[1] + bit / 8] ^= 1 << (bit % 8);
        env.disk().poke(&path, bytes);
        let error = world.run(load(&env)).unwrap_err();
        assert!(matches!(error, ManifestError::Corrupt { .. }), "bit {bit}: {error}");
    }
}

#[test]
fn whole_blocks_in_the_wrong_place_are_refused() {
    let (world, env, path) = with_edits(1);
    let whole = env.disk().peek(&path).unwrap();
    let at = offsets(env.disk(), &path);
    // The last edit missing and an older one in its place; an edit twice; a block of another file.
    let other = FileKey { generation: 1, shard: 1, part: 0 };
    let mut foreign = whole[at[1]..at[2]].to_vec();
    let len = u32::from_le_bytes(foreign[32..36].try_into().unwrap()) as usize;
    format::seal_block(other, 4, 0, len, &mut foreign);
    for (block, name) in [(&whole[at[1]..at[2]], "edit 2 stands where"), (&foreign, "-0001-0000.manifest")] {
        let mut bytes = whole.clone();
        bytes[at[3]..at[3] + block.len()].copy_from_slice(block);
        env.disk().poke(&path, bytes);
        let error = world.run(load(&env)).unwrap_err();
        let is_there = matches!(&error, ManifestError::Corrupt { offset, .. } if *offset == at[3] as u64);
        assert!(is_there && error.to_string().contains(name), "{error}");
    }
}

fn newer_block(bytes: &mut [u8]) {
    bytes[8] = 9;
    let crc = crc32c(&bytes[..52]);
    bytes[52..56].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn newer_missing_and_damaged_files_are_told_apart() {
    let (world, env, path) = with_edits(2);
    let old = env.disk().peek(CURRENT).unwrap();
    let mut page = old.clone();
    page[8] = 9;
    let crc = crc32c(&page[..24]);
    page[24..28].copy_from_slice(&crc.to_le_bytes());
    env.disk().poke(CURRENT, page);
    let error = world.run(load(&env)).unwrap_err();
    assert!(matches!(&error, ManifestError::NewerFormat { path, found: 9, supported: 1 } if path == CURRENT));
    env.disk().poke(CURRENT, vec![1; PAGE_SIZE]);
    assert!(matches!(world.run(load(&env)), Err(ManifestError::Corrupt { .. })));
    env.disk().poke(CURRENT, Vec::new());
    assert!(matches!(world.run(load(&env)), Err(ManifestError::Corrupt { .. })));
    env.disk().poke(CURRENT, old);

    let whole = env.disk().peek(&path).unwrap();
    for at in offsets(env.disk(), &path) {
        let mut bytes = whole.clone();
        newer_block(&mut bytes[at..]);
        env.disk().poke(&path, bytes);
        let error = world.run(load(&env)).unwrap_err();
        let is_newer =
            matches!(&error, ManifestError::NewerFormat { path: p, found: 9, supported: 1 } if *p == path);
        assert!(is_newer, "{error}");
    }
    world.run(async { env.disk().remove(&path).await.unwrap() });
    let error = world.run(load(&env)).unwrap_err();
    assert!(matches!(&error, ManifestError::Missing { path: p } if *p == path), "{error}");
    // And with the whole directory gone.
    let world = SimWorld::new(1);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    let mut page = vec![0; PAGE_SIZE];
    Current { generation: 1, shards: 1 }.encode(&mut page);
    env.disk().poke(CURRENT, page);
    assert!(matches!(world.run(load(&env)), Err(ManifestError::Missing { .. })));
}

#[test]
fn features_and_changes_of_newer_versions_are_refused_as_such() {
    let (world, env, path) = with_edits(2);
    let key = FileKey { generation: 1, shard: 0, part: 0 };
    let mut newer = state(1);
    newer.store.feature_level = 7;
    let (block, crc) = install::encode_block(key, 1, 0, &Edit { changes: newer.snapshot() }).unwrap();
    env.disk().poke(&path, block);
    let error = world.run(load(&env)).unwrap_err();
    assert!(matches!(error, ManifestError::NewerFeatures { found: 7, supported: 1, .. }), "{error}");

    let snapshot = Edit { changes: state(1).snapshot() };
    let (mut bytes, last) = install::encode_block(key, 1, 0, &snapshot).unwrap();
    assert_ne!(crc, last);
    let at = bytes.len();
    bytes.resize(at + PAGE_SIZE, 0);
    bytes[at + 56..at + 64].copy_from_slice(&[200, 0, 0, 0, 0, 0, 0, 0]);
    format::seal_block(key, 2, last, 8, &mut bytes[at..]);
    env.disk().poke(&path, bytes);
    let error = world.run(load(&env)).unwrap_err();
    assert!(
        matches!(&error, ManifestError::NewerChange { offset, kind: 200, .. } if *offset == at as u64),
        "{error}"
    );
}

#[test]
fn a_generation_that_contradicts_itself_is_refused() {
    type Spoil = fn(&mut State);
    let spoil: [(Spoil, &str); 5] = [
        (|s| s.tablets.retain(|id, _| id.0 != 5), "should begin a tablet"),
        (|s| s.tablets.retain(|id, _| id.0 != 15), "in no tablet"),
        (|s| s.tablets.get_mut(&TabletId(3)).unwrap().slots = SlotRange::ALL, "should begin a tablet"),
        (|s| s.tablets.get_mut(&TabletId(3)).unwrap().logs.push(LogId(77)), "not listed"),
        (|s| s.store.next_log = 1, "the next one is 1"),
    ];
    for (spoil, expected) in spoil {
        let (world, env, path) = with_edits(2);
        let mut bad = state(1);
        spoil(&mut bad);
        let key = FileKey { generation: 1, shard: 0, part: 0 };
        let (block, _) = install::encode_block(key, 1, 0, &Edit { changes: bad.snapshot() }).unwrap();
        env.disk().poke(&path, block);
        let error = world.run(load(&env)).unwrap_err();
        assert!(matches!(error, ManifestError::Inconsistent { generation: 1, .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn of_two_owners_the_one_with_the_higher_epoch_counts() {
    let (world, env) = SimEnv::fresh(7);
    world.run(install(&env, &state(2))).unwrap();
    let mut both = state(2).of_shard(1);
    let mut moved = state(2).tablets[&TabletId(0)].clone();
    (moved.shard, moved.epoch, moved.flushed) = (1, 2, EntryIndex(8));
    both.tablets.insert(moved.id, moved.clone());
    let key = FileKey { generation: 1, shard: 1, part: 0 };
    let poke = |state: &State| {
        let (block, _) = install::encode_block(key, 1, 0, &Edit { changes: state.snapshot() }).unwrap();
        env.disk().poke(&key.path(), block);
    };
    poke(&both);
    assert_eq!(world.run(load(&env)).unwrap().unwrap().tablets[&TabletId(0)], moved);
    both.tablets.get_mut(&TabletId(0)).unwrap().epoch = 1;
    poke(&both);
    assert!(matches!(world.run(load(&env)), Err(ManifestError::Inconsistent { .. })));
}

#[test]
fn a_full_disk_is_met_before_an_edit_is_begun() {
    let (world, env) = SimEnv::fresh(3);
    world.run(async {
        install(&env, &state(1)).await.unwrap();
        let manifest = ShardManifest::open(&env, 1, 1, 0).await.unwrap();
        // Wherever in a step the disk fills up, some edits still go.
        for round in 1..=20 {
            let before = manifest.state().flushed(TabletId(0)).0;
            let mut acked = before;
            env.disk().set_capacity(0);
            let refused = loop {
                match manifest.commit(edit(acked + 1)).await {
                    Ok(()) => acked += 1,
                    Err(error) => break error,
                }
            };
            assert!(matches!(refused, ManifestError::Full { .. }), "{refused}");
            assert!(!refused.is_undecided() && manifest.failed().is_none());
            assert!(acked - before >= 7, "round {round}: only {} edits had room", acked - before);
            let contents = env.disk().peek(&FileKey { generation: 1, shard: 0, part: 0 }.path());
            let refused = manifest.commit(edit(acked + 1)).await.unwrap_err();
            assert!(matches!(refused, ManifestError::Full { .. }), "{refused}");
            assert_eq!(
                contents,
                env.disk().peek(&FileKey { generation: 1, shard: 0, part: 0 }.path()),
                "nothing was written"
            );
            env.disk().set_capacity(u64::MAX);
            for number in acked + 1..=acked + round {
                manifest.commit(edit(number)).await.unwrap();
            }
            assert_eq!(load(&env).await.unwrap().as_ref(), Some(&*manifest.state()));
        }
    });
}

#[test]
fn a_failed_write_is_final_for_those_who_wait_as_well() {
    let (world, env) = SimEnv::fresh(3);
    world.run(async {
        install(&env, &state(1)).await.unwrap();
        let manifest = ShardManifest::open(&env, 1, 1, 0).await.unwrap();
        manifest.commit(edit(1)).await.unwrap();
        env.disk().fail("dsync", "manifest/", 0, libc::EIO, true);
        let (a, b) = futures_lite::future::zip(manifest.commit(edit(2)), manifest.commit(edit(2))).await;
        let first = manifest.failed().unwrap();
        for error in [a.unwrap_err(), b.unwrap_err(), manifest.commit(edit(3)).await.unwrap_err()] {
            assert!(error.is_undecided());
            assert!(matches!(&error, ManifestError::Failed(cause) if Rc::ptr_eq(cause, &first)), "{error}");
            assert!(error.to_string().contains("Input/output error"), "{error}");
        }
        assert_eq!(manifest.state().flushed(TabletId(0)), EntryIndex(1));
        let found = load(&env).await.unwrap().unwrap();
        assert!((1..=2).contains(&found.flushed(TabletId(0)).0), "undecided");
    });
}

#[test]
fn a_commit_that_is_dropped_half_way_leaves_the_manifest_failed_and_not_locked() {
    let (world, env) = SimEnv::fresh(3);
    world.run(async {
        install(&env, &state(1)).await.unwrap();
        let manifest = ShardManifest::open(&env, 1, 1, 0).await.unwrap();
        let given_up = futures_lite::future::or(
            async { Some(manifest.commit(edit(1)).await) },
            async {
                env.yield_now().await;
                None
            },
        );
        assert!(given_up.await.is_none());
        let error = manifest.commit(edit(1)).await.unwrap_err();
        assert!(matches!(&error, ManifestError::Failed(cause) if matches!(**cause, ManifestError::Abandoned { .. })));
    });
}

#[test]
fn concurrent_commits_queue_and_all_of_them_last() {
    for seed in 0..20 {
        let (world, env) = SimEnv::fresh(seed);
        world.run(async {
            install(&env, &state(1)).await.unwrap();
            let manifest = Rc::new(ShardManifest::open(&env, 1, 1, 0).await.unwrap());
            manifest.rotate_above(PAGE_SIZE as u64);
            let gate = crate::env::Gate::new();
            for id in 0..16 {
                let (manifest, guard) = (manifest.clone(), gate.enter());
                env.spawn(crate::env::Queue::Flush, async move {
                    for index in 1..=4 {
                        let flushed =
                            Change::Flushed { tablet: TabletId(id), index: EntryIndex(index), term: 1 };
                        manifest.commit(Edit { changes: vec![flushed] }).await.unwrap();
                    }
                    drop(guard);
                });
            }
            gate.empty().await;
            let found = load(&env).await.unwrap().unwrap();
            assert!(found.tablets.values().all(|tablet| tablet.flushed == EntryIndex(4)), "seed {seed}");
            assert_eq!(found, *manifest.state());
        });
    }
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
        let manifests = manifests(env.disk());
        assert_eq!(manifests.len(), 1, "{manifests:?}");
        assert!(!manifests[0].contains("-0000.manifest"), "it was rewritten");
        assert!(env.disk().peek(&manifests[0]).unwrap().len() < 2 << 20);
        let found = load(&env).await.unwrap().unwrap();
        assert_eq!(found.flushed(TabletId(0)), EntryIndex(600));
        assert_eq!(found, *manifest.state());
    });
}

#[test]
fn on_a_full_disk_or_without_more_files_the_old_file_goes_on() {
    for (operation, skip, errno) in [
        ("write", 0, libc::ENOSPC),
        ("rename", 0, libc::ENOSPC),
        ("open", 0, libc::EMFILE),
        ("open", 1, libc::ENFILE),
    ] {
        let (world, env) = SimEnv::fresh(4);
        world.run(async {
            install(&env, &state(1)).await.unwrap();
            let manifest = ShardManifest::open(&env, 1, 1, 0).await.unwrap();
            manifest.rotate_above(PAGE_SIZE as u64);
            env.disk().fail(operation, ".tmp", skip, errno, false);
            for number in 1..=8 {
                manifest.commit(edit(number)).await.unwrap();
                let found = load(&env).await.unwrap().unwrap();
                assert_eq!(found, *manifest.state());
                assert_eq!(manifests(env.disk()).len(), 1, "the attempt leaves nothing");
            }
            env.disk().heal();
            for number in 9..=20 {
                manifest.commit(edit(number)).await.unwrap();
            }
            assert!(!manifests(env.disk())[0].contains("-0000.manifest"), "it was rewritten after all");
        });
    }
}

#[test]
fn a_snapshot_longer_than_one_transfer_comes_back() {
    let (world, env) = SimEnv::fresh(5);
    let mut long = state(2);
    for (number, tablet) in (0u64..).zip(long.tablets.values_mut()) {
        for age in 1..=3 {
            let key = |byte: u8| vec![byte; 60_000].into_boxed_slice();
            let (smallest, largest) = (key(b'a'), key(b'c' + number as u8));
            tablet.tables.insert(0, TableRef { smallest, largest, ..table(number * 10 + age) });
        }
    }
    world.run(install(&env, &long)).unwrap();
    assert!(env.disk().peek(&FileKey { generation: 1, shard: 0, part: 0 }.path()).unwrap().len() > 2 << 20);
    assert_eq!(world.run(load(&env)).unwrap(), Some(long));
}

#[test]
fn a_tool_reads_on_behind_damage() {
    let (_, env, path) = with_edits(1);
    let name = &path["manifest/".len()..];
    let whole = env.disk().peek(&path).unwrap();
    let at = offsets(env.disk(), &path);
    let good = inspect_file(name, &whole);
    assert!(good.verdict.is_ok() && good.items.len() == 7);
    assert!(good.items.iter().all(|item| item.state == ItemState::Good && item.edit.is_some()));
    assert!(good.items[5].to_string().contains("flushed 3 (term 1)"), "{}", good.items[5]);
    assert_eq!(good.blank_bytes, (whole.len() - at[6] - PAGE_SIZE) as u64);

    let mut bytes = whole.clone();
    bytes[at[1] + 70] ^= 1;
    bytes[at[2] + 3] ^= 1;
    let bad = inspect_file(name, &bytes);
    let is_damaged = matches!(bad.items[1].state, ItemState::PayloadDamaged { found: Some(_), .. });
    assert!(is_damaged && bad.items[1].seq == Some(2), "{}", bad.items[1]);
    assert_eq!(bad.items[2].state, ItemState::NoBlock);
    assert!(matches!(bad.items[3].state, ItemState::Misplaced(_)), "{}", bad.items[3]);
    assert!(bad.items[3].edit.is_some(), "what follows the damage is shown");
    assert!(bad.verdict.unwrap_err().contains(&format!("byte {}", at[1])));

    // A file of another name, one that is cut, and bytes that are anything.
    assert_eq!(inspect_file("copy.bin", &whole).key, good.key);
    let cut = inspect_file(name, &whole[..at[3] + 60]);
    assert!(matches!(cut.items[3].state, ItemState::PayloadDamaged { found: None, .. }));
    assert!(inspect_file("x", &[7; 3 * PAGE_SIZE]).items.len() == 1);
    assert!(inspect_file("x", &[]).verdict.is_err());
    let seed = 11;
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..300 {
        let mut bytes = whole[..at[3] + PAGE_SIZE].to_vec();
        for _ in 0..rng.usize(1..40) {
            let at = rng.usize(..bytes.len());
            bytes[at] = rng.u8(..);
        }
        bytes.truncate(rng.usize(..=bytes.len()));
        let inspection = inspect_file(name, &bytes);
        inspection.items.iter().for_each(|item| assert!(!item.to_string().is_empty(), "seed {seed}"));
    }
}
