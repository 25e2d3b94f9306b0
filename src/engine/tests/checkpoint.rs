//! Checkpoints taken while the store is written to, with crashes at every disk operation of it.

use std::cell::RefCell;
use std::rc::Rc;

use super::model::Model;
use super::store::{Shape, Store, join_all, same_disk, unless_down};
use super::workload::Worker;
use super::{Told, seeds};
use crate::base::{Op, OpKind};
use crate::disk::sim::SimDisk;
use crate::engine::{EngineError, checkpoint};
use crate::env::Env;
use crate::env::sim::{SimEnv, SimWorld};

const DIR: &str = "copy";

/// As the shards do it, with the barrier in one step. What must be in the checkpoint goes to `then`.
async fn take(store: &Store, model: &RefCell<Model>, then: &RefCell<Option<Model>>) {
    checkpoint::prepare(&store.env, DIR).await.unwrap();
    then.replace(Some(model.borrow().clone()));
    store.engines.iter().for_each(|engine| engine.seal_checkpoint());
    let parts = store.engines.iter().map(async |engine| {
        let captured = engine.captured().await.unwrap();
        engine.link_checkpoint(&captured, DIR).await.unwrap();
        captured.state
    });
    let states = join_all(parts.collect()).await;
    checkpoint::complete(&store.env, DIR, states).await.unwrap();
}

/// Opens the checkpoint on `disk` and compares it with what was there at its barrier.
fn compare(disk: &SimDisk, shape: &Shape, seed: u64, then: Model) -> Result<(), EngineError> {
    let world = SimWorld::new(seed + 3);
    let env = SimEnv::new(&world, disk.below(DIR, &world));
    let then = RefCell::new(then);
    let lost = then.borrow().lost;
    let result = world.run(async {
        let store = Store::open(&env, shape, &then).await?;
        assert_eq!(then.borrow().lost, lost, "all that was written before the barrier is in it");
        let mut worker = Worker::new(seed + 4);
        worker.check_all(&store, &then).await?;
        // It goes on like any other.
        for _ in 0..30 {
            worker.step(&store, &then).await?;
        }
        worker.check_all(&store, &then).await?;
        store.close().await
    });
    world.kill();
    result
}

/// Work, a checkpoint with a crash at its `operation`-th disk operation, and what is there after it. Whether it
/// crashed at all.
fn crash_at(seed: u64, operation: u64, keep: u32) -> bool {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut worker = Worker::new(rng.u64(..1 << 30));
    let model = RefCell::new(Model::default());
    let then = RefCell::new(None);
    let world = SimWorld::new(seed);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    let mut shape = Shape::small(1 + seed as usize % 3);
    shape.options.sealed_max = 1 + seed as usize % 2;
    let open: RefCell<Option<Rc<Store>>> = RefCell::new(None);
    let is_complete = RefCell::new(false);
    let life = async {
        let store = Rc::new(Store::open(&env, &shape, &model).await.unwrap());
        open.replace(Some(store.clone()));
        for _ in 0..60 {
            worker.step(&store, &model).await.unwrap();
        }
        let before = env.disk().operations();
        env.disk().crash_at(before.saturating_add(operation));
        let mut others = Worker::new(rng.u64(..1 << 30));
        let work = async {
            for _ in 0..25 {
                others.step(&store, &model).await.unwrap();
            }
        };
        futures_lite::future::zip(take(&store, &model, &then), work).await;
        is_complete.replace(true);
        worker.check_all(&store, &model).await.unwrap();
    };
    let has_ended = world.run(unless_down(&env, life)).is_some();
    let store = open.take().expect("it was opened");
    store.acknowledge(&model);
    drop(store);
    world.kill();
    let world = SimWorld::new(seed + 1);
    let disk = env.disk().crash(&world, &mut rng, keep);
    // The store is as if nobody had asked for a checkpoint.
    let env = SimEnv::new(&world, same_disk(&disk, &world));
    world.run(async {
        let store = Store::open(&env, &shape, &model).await.unwrap();
        worker.check_all(&store, &model).await.unwrap();
        store.close().await.unwrap();
    });
    world.kill();
    // The checkpoint is right, or is refused, or was not begun.
    let has_current = disk.peek(&format!("{DIR}/CURRENT")).is_some();
    match then.take().filter(|_| has_current) {
        Some(then) => match compare(&disk, &shape, seed, then) {
            Ok(()) => {}
            Err(EngineError::Checkpoint(why)) => {
                assert!(!is_complete.take() && why.contains(checkpoint::MARKER), "seed {seed}: {why}");
            }
            Err(error) => panic!("seed {seed}, operation {operation}: {error}"),
        },
        None => assert!(!is_complete.take(), "seed {seed}: a checkpoint that was made is there"),
    }
    !has_ended
}

#[test]
fn a_checkpoint_is_what_was_there_at_its_barrier_or_is_refused() {
    let mut crashes = 0;
    for seed in seeds(1..5) {
        let _told = Told::seed(seed);
        assert!(!crash_at(seed, u64::MAX, 100), "without a crash it comes to its end");
        let mut operation = 1;
        while crash_at(seed, operation, [0, 50, 100][operation as usize % 3]) {
            crashes += 1;
            // Each of the first, where names and files are made; then every few.
            operation += if operation < 40 { 1 } else { 5 };
        }
    }
    assert!(crashes > 100, "{crashes} crashes");
}

#[test]
fn a_directory_that_holds_something_is_refused_and_a_trouble_of_the_disk_is_told() {
    let (world, env) = SimEnv::fresh(1);
    world.run(async {
        let model = RefCell::new(Model::default());
        let store = Store::open(&env, &Shape::small(1), &model).await.unwrap();
        let refused = checkpoint::prepare(&env, "manifest").await.unwrap_err();
        assert!(refused.to_string().contains("not empty"), "{refused}");
        checkpoint::prepare(&env, DIR).await.unwrap();
        let again = checkpoint::prepare(&env, DIR).await.unwrap_err();
        assert!(again.to_string().contains("never completed"), "{again}");
        env.disk().fail("link", DIR, 0, libc::EXDEV, true);
        let mut worker = Worker::new(1);
        for _ in 0..20 {
            worker.write(&store, &model).await;
        }
        let engine = &store.engines[0];
        engine.seal_checkpoint();
        let captured = engine.captured().await.unwrap();
        let error = engine.link_checkpoint(&captured, DIR).await.unwrap_err();
        assert!(error.to_string().contains("another file system"), "{error}");
        drop(captured);
        // A start of what was not completed.
        let half = SimEnv::new(&world, env.disk().below(DIR, &world));
        let refused = Store::open(&half, &Shape::small(1), &model).await.err().unwrap();
        assert!(refused.to_string().contains(checkpoint::MARKER), "{refused}");
        store.close().await.unwrap();
    });
    world.kill();
}

/// Nothing that is in memory can become a table once the log has failed. Whoever waited for it waited for ever,
/// and kept the server from stopping.
#[test]
fn a_checkpoint_ends_with_the_log() {
    let (world, env) = SimEnv::fresh(2);
    world.run(async {
        let model = RefCell::new(Model::default());
        let store = Store::open(&env, &Shape::small(1), &model).await.unwrap();
        checkpoint::prepare(&store.env, DIR).await.unwrap();
        env.disk().fail("dsync", "wal/", 0, libc::EIO, false);
        let key = b"key".as_slice();
        let op = Op { kind: OpKind::Put, key, value: b"value", expiry_ms: 0 };
        let engine = &store.engines[0];
        engine.write(0, &[op], &[engine.hash(key)]).unwrap();
        engine.seal_checkpoint();
        let error = engine.captured().await.err().unwrap();
        assert!(matches!(error, EngineError::Log(_)), "{error}");
    });
    world.kill();
}
