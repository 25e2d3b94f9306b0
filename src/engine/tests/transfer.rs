//! Tablets that move and split, with crashes at every disk operation of it.

use std::cell::RefCell;
use std::rc::Rc;

use super::model::{KeyId, Model, key_bytes};
use super::store::{Shape, Store, unless_down};
use super::workload::Worker;
use super::{Told, seeds};
use crate::base::TabletId;
use crate::disk::sim::SimDisk;
use crate::env::Env;
use crate::env::sim::{SimEnv, SimWorld};
use crate::slot::Slot;

/// What is done to a tablet.
#[derive(Clone, Copy, Debug)]
enum Transfer {
    Move,
    /// There and back again, with writes on either side.
    MoveTwice,
    Split,
    /// The upper half moves away at once.
    SplitAndMove,
}

/// The tablet with the most used key, and a slot at which keys part.
fn subject(store: &Store) -> (TabletId, usize, u16) {
    let key: KeyId = (0, 0);
    let place = store.place(key);
    let slot = Slot::of_key(&key_bytes(key)).number();
    (place.tablet, place.shard, slot)
}

async fn transfer(what: Transfer, store: &Store, worker: &mut Worker, model: &RefCell<Model>) {
    let (id, from, at) = subject(store);
    let other = 1 - from;
    let move_to = async |id, to, worker: &mut Worker| {
        let meanwhile = async || worker.write_some(store, model, 3).await;
        store.move_tablet(id, to, model, meanwhile).await.expect("it moves");
    };
    match what {
        Transfer::Move => move_to(id, other, worker).await,
        Transfer::MoveTwice => {
            move_to(id, other, worker).await;
            worker.write_some(store, model, 5).await;
            move_to(id, from, worker).await;
        }
        Transfer::Split | Transfer::SplitAndMove => {
            let meanwhile = async || worker.write_some(store, model, 3).await;
            store.split(id, at, model, meanwhile).await.expect("it splits");
            if matches!(what, Transfer::SplitAndMove) {
                let upper = subject(store).0;
                assert_ne!(upper, id);
                move_to(upper, other, worker).await;
            }
        }
    }
}

/// Work, a transfer with a crash at its `operation`-th disk operation, and the start after it. Whether it
/// crashed at all.
fn crash_at(what: Transfer, seed: u64, operation: u64, keep: u32) -> bool {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut worker = Worker::new(rng.u64(..1 << 30));
    let model = RefCell::new(Model::default());
    let world = SimWorld::new(seed);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    let mut shape = Shape::small(2);
    shape.options.sealed_max = 1 + seed as usize % 2;
    let open: RefCell<Option<Rc<Store>>> = RefCell::new(None);
    let life = async {
        let store = Rc::new(Store::open(&env, &shape, &model).await.unwrap());
        open.replace(Some(store.clone()));
        for _ in 0..60 {
            worker.step(&store, &model).await.unwrap();
        }
        env.disk().crash_at(operation);
        transfer(what, &store, &mut worker, &model).await;
        for _ in 0..10 {
            worker.step(&store, &model).await.unwrap();
        }
        worker.check_all(&store, &model).await.unwrap();
    };
    let has_ended = world.run(unless_down(&env, life)).is_some();
    let store = open.take().expect("it was opened");
    store.acknowledge(&model);
    drop(store);
    world.kill();
    let world = SimWorld::new(seed + 1);
    let env = SimEnv::new(&world, env.disk().crash(&world, &mut rng, keep));
    world.run(async {
        let store = Store::open(&env, &Shape::small(2), &model).await.expect("one valid layout");
        worker.check_all(&store, &model).await.unwrap();
        for _ in 0..20 {
            worker.step(&store, &model).await.unwrap();
        }
        store.quiesce().await;
        worker.check_all(&store, &model).await.unwrap();
        let files = super::store::files(env.disk(), "sst");
        assert_eq!(files, store.live_tables(), "no table but those of some tablet");
    });
    world.kill();
    !has_ended
}

#[test]
fn a_crash_at_any_step_of_a_move_or_split_leaves_one_valid_layout() {
    for what in [Transfer::Move, Transfer::MoveTwice, Transfer::Split, Transfer::SplitAndMove] {
        for seed in seeds(1..3) {
            let _told = Told::seed(seed);
            let mut operation = 1;
            // How much of what was not synced survives: nothing, all of it, or some.
            while crash_at(what, seed, operation, [0, 100, 50][(operation + seed) as usize % 3]) {
                operation += 1;
            }
            assert!(operation > 15, "{what:?}: {operation} operations are few");
        }
    }
}

/// Many transfers, merges and flushes, against the model; then another number of shards.
#[test]
fn tablets_that_move_and_split_all_the_time_keep_every_key_and_version() {
    for seed in seeds(1..9) {
        let _told = Told::seed(seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut worker = Worker::with_transfers(rng.u64(..1 << 30));
        let model = RefCell::new(Model::default());
        let (world, env) = SimEnv::fresh(seed);
        world.run(async {
            let (mut moves, mut splits) = (0, 0);
            for round in 0..4 {
                let shape = Shape::small(2 + (round + seed as usize) % 3);
                let store = Store::open(&env, &shape, &model).await.unwrap();
                worker.check_all(&store, &model).await.unwrap();
                for _ in 0..400 {
                    worker.step(&store, &model).await.unwrap();
                }
                worker.check_all(&store, &model).await.unwrap();
                moves += store.moves.get();
                splits += store.splits.get();
                if rng.bool() {
                    store.quiesce().await;
                    worker.check_all(&store, &model).await.unwrap();
                    let live = store.live_tables();
                    assert_eq!(super::store::files(env.disk(), "sst"), live, "no table but the live ones");
                }
                let wals: Vec<_> = store.engines.iter().map(|engine| engine.wal.clone()).collect();
                store.close().await.unwrap();
                for (shard, wal) in wals.iter().enumerate() {
                    model.borrow_mut().acknowledge(shard, wal.durable());
                }
            }
            assert!(moves >= 10 && splits >= 3, "seed {seed}: {moves} moves, {splits} splits");
        });
        world.kill();
    }
}
