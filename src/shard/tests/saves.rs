//! Saves: whenever the power goes while one is made, the one before is there, or the new one.

use super::store::{Answer, Store};
use crate::disk::Disk;
use crate::disk::sim::SimDisk;
use crate::engine::checkpoint;
use crate::env::Env;
use crate::env::sim::{SimEnv, SimWorld};
use crate::protocol::Expiry;

const DIR: &str = "saves";

/// The directories of saves that are complete.
fn complete(disk: &SimDisk) -> Vec<String> {
    let paths = disk.paths();
    let dirs = paths.iter().filter_map(|path| path.strip_suffix("/CURRENT"));
    let dirs =
        dirs.filter(|dir| dir.starts_with(DIR) && !paths.contains(&format!("{dir}/{}", checkpoint::MARKER)));
    dirs.map(str::to_owned).collect()
}

/// What `key` holds in the store on `disk`.
fn value(disk: SimDisk, world: &SimWorld, key: &[u8]) -> Answer {
    let env = SimEnv::new(world, disk);
    world.run(async {
        let store = Store::open(&env, 2).await;
        let found = store.get(key).await;
        store.close().await;
        found
    })
}

fn is(answer: &Answer, wanted: &[u8]) -> bool {
    matches!(answer, Answer::Value(value, _) if value == wanted)
}

/// Two saves with a write between them, with a crash at the `operation`-th disk operation of the second. Whether it
/// crashed.
fn crash_at(seed: u64, operation: u64, keep: u32) -> bool {
    let mut rng = fastrand::Rng::with_seed(seed);
    let world = SimWorld::new(seed);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    let disk = env.disk().clone();
    let life = async {
        let store = Store::open(&env, 2).await;
        store.set(b"k", b"old", Expiry::Never).await;
        store.shards[0].make_save(DIR).await.expect("a save");
        store.set(b"k", b"new", Expiry::Never).await;
        env.disk().crash_at(env.disk().operations().saturating_add(operation));
        store.shards[0].make_save(DIR).await.expect("a save");
        true
    };
    let down = async {
        disk.until_down().await;
        false
    };
    let has_ended = world.run(futures_lite::future::or(life, down));
    world.kill();
    let world = SimWorld::new(seed + 1);
    let disk = disk.crash(&world, &mut rng, keep);
    let saves = complete(&disk);
    assert!(!saves.is_empty(), "seed {seed}, operation {operation}: no save is left");
    let last = saves.len() - 1;
    for (number, save) in saves.iter().enumerate() {
        let found = value(disk.below(save, &world), &world, b"k");
        let is_right = is(&found, b"new") || is(&found, b"old") && (!has_ended || number < last);
        assert!(is_right, "seed {seed}, operation {operation}: {save} holds {found:?}");
    }
    // The store goes on, and its next save is the only one.
    let env = SimEnv::new(&world, disk.clone());
    world.run(async {
        let store = Store::open(&env, 2).await;
        assert!(is(&store.get(b"k").await, b"new"));
        store.set(b"k", b"newest", Expiry::Never).await;
        store.shards[0].make_save(DIR).await.expect("a save");
        let entries = env.disk().list(DIR).await.expect("it is there");
        assert_eq!(entries.len(), 1, "seed {seed}, operation {operation}: {entries:?}");
        store.close().await;
    });
    let saves = complete(&disk);
    assert_eq!(saves.len(), 1);
    assert!(is(&value(disk.below(&saves[0], &world), &world, b"k"), b"newest"));
    world.kill();
    !has_ended
}

#[test]
fn a_crash_leaves_the_save_before_or_the_new_one() {
    assert!(!crash_at(1, u64::MAX, 100), "without a crash it comes to its end");
    let mut operation = 1;
    while crash_at(7 + operation, operation, [0, 50, 100][operation as usize % 3]) {
        operation += 1;
    }
    assert!(operation > 60, "{operation} operations");
}

/// A disk that fails at some operation: the save is refused, the one before stays, and the next goes as if nothing had
/// happened.
#[test]
fn a_save_that_fails_leaves_the_one_before() {
    for (seed, operation, path) in [(1, "link", "save-"), (2, "sync_dir", "save-"), (3, "open", "INCOMPLETE")]
    {
        let (world, env) = SimEnv::fresh(seed);
        world.run(async {
            let store = Store::open(&env, 2).await;
            store.set(b"k", b"old", Expiry::Never).await;
            store.shards[0].make_save(DIR).await.expect("a save");
            let before = complete(env.disk());
            env.disk().fail(operation, path, 0, libc::EIO, true);
            store.set(b"k", b"new", Expiry::Never).await;
            store.shards[0].make_save(DIR).await.expect_err("the disk fails");
            env.disk().heal();
            assert_eq!(complete(env.disk()), before, "{operation}");
            store.shards[0].make_save(DIR).await.expect("a save");
            let after = complete(env.disk());
            assert!(after.len() == 1 && after != before, "{operation}: {after:?}");
            assert_eq!(env.disk().list(DIR).await.expect("it is there").len(), 1, "{operation}");
            store.close().await;
        });
        world.kill();
    }
}
