//! Starts that recover more than a memtable takes: what is full waits for its flush behind the start.

use std::cell::RefCell;
use std::time::Duration;

use super::Told;
use super::model::Model;
use super::store::{Shape, Store, same_disk, unless_down};
use super::workload::Worker;
use crate::disk::sim::SimDisk;
use crate::engine::wal::list_logs;
use crate::env::Env;
use crate::env::sim::{SimEnv, SimWorld};

/// A memtable is full with its second mebibyte.
fn shape(memtable_bytes: usize) -> Shape {
    let mut shape = Shape::small(1);
    shape.options.segment_bytes = 256 << 10;
    shape.options.memtable_bytes = memtable_bytes;
    shape
}

/// The disk behind a life that was flushed nothing of: its memtable has so many mebibytes, the last begun just now.
fn filled(seed: u64, mebibytes: u64, model: &RefCell<Model>) -> SimDisk {
    let (world, env) = SimEnv::fresh(seed);
    let mut worker = Worker::new(seed);
    world.run(async {
        let store = Store::open(&env, &shape(64 << 20), model).await.unwrap();
        while store.metrics().memtable_bytes < mebibytes << 20 {
            assert!(worker.write(&store, model).await.is_taken());
            env.sleep(Duration::from_micros(20)).await;
        }
        // In blocks behind the one with which a memtable is full.
        for _ in 0..300 {
            env.sleep(Duration::from_millis(1)).await;
            assert!(worker.write(&store, model).await.is_taken());
        }
        assert_eq!(store.metrics().flushes, 0);
        let wal = store.engines[0].wal.clone();
        store.close().await.unwrap();
        model.borrow_mut().acknowledge(0, wal.durable());
    });
    world.kill();
    env.disk().clone()
}

/// Until nothing that a start recovered is in memory.
async fn flushed(store: &Store) {
    let engine = &store.engines[0];
    let is_done = || engine.active.borrow().entries() == 0 && engine.sealed.borrow().is_empty();
    engine.changed().until(is_done).await;
}

#[test]
fn a_full_memtable_is_flushed_behind_the_start_and_all_but_one_before_it() {
    for (seed, mebibytes) in [(1, 2), (2, 4)] {
        let _told = Told::seed(seed);
        let model = RefCell::new(Model::default());
        let left = filled(seed, mebibytes, &model);
        let world = SimWorld::new(seed);
        let env = SimEnv::new(&world, same_disk(&left, &world));
        world.run(async {
            let store = Store::open(&env, &shape(2 << 20), &model).await.unwrap();
            let engine = &store.engines[0];
            let before = store.metrics().flushes;
            assert_eq!((before > 0, engine.sealed.borrow().len()), (mebibytes > 2, 1), "{before} flushes");
            assert!(engine.has_remains.get(), "the rest is much, and no memtable more may be sealed yet");
            assert_eq!(list_logs(&env).await.unwrap().len(), 2, "the old log stays until tables hold it");
            let mut worker = Worker::new(seed);
            worker.check_all(&store, &model).await.unwrap();
            flushed(&store).await;
            assert_eq!((store.metrics().flushes, engine.has_remains.get()), (before + 2, false));
            store.quiesce().await;
            assert!(
                list_logs(&env).await.unwrap().into_keys().eq([engine.log()]),
                "nobody needs the old one"
            );
            worker.check_all(&store, &model).await.unwrap();
            store.close().await.unwrap();
        });
        world.kill();
    }
}

/// At each operation of the disk, from the start to the end of the flushes behind it.
#[test]
fn a_crash_before_the_flush_behind_a_start_is_done_loses_nothing() {
    let seed = 3;
    let model = RefCell::new(Model::default());
    let left = filled(seed, 2, &model);
    let (mut starts, mut flushes, mut crash_at) = (0, 0, 0);
    loop {
        crash_at += 1;
        let _told = Told(format!("the crash is at operation {crash_at}"));
        let mut rng = fastrand::Rng::with_seed(crash_at);
        let world = SimWorld::new(crash_at);
        let env = SimEnv::new(&world, same_disk(&left, &world));
        env.disk().crash_at(crash_at);
        let opened = RefCell::new(false);
        let life = async {
            let store = Store::open(&env, &shape(2 << 20), &model).await.expect("a start");
            opened.replace(true);
            flushed(&store).await;
        };
        let is_done = world.run(unless_down(&env, life)).is_some();
        world.kill();
        match (is_done, opened.into_inner()) {
            (true, _) => break,
            (false, true) => flushes += 1,
            (false, false) => starts += 1,
        }
        let world = SimWorld::new(crash_at);
        let env =
            SimEnv::new(&world, env.disk().crash(&world, &mut rng, [0, 50, 100][crash_at as usize % 3]));
        world.run(async {
            let store = Store::open(&env, &shape(2 << 20), &model).await.expect("a start after a crash");
            Worker::new(seed).check_all(&store, &model).await.unwrap();
            flushed(&store).await;
            Worker::new(seed).check_all(&store, &model).await.unwrap();
            store.close().await.unwrap();
        });
        world.kill();
    }
    println!("{starts} crashes in a start, {flushes} behind it");
    assert!(starts > 20 && flushes > 20, "{starts} crashes in a start, {flushes} behind it");
}
