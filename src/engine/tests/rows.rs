//! Rows of the row cache beside what replaces them: flushes, range deletes that are forgotten, tablets that go, are
//! written elsewhere, and come back.

use std::cell::RefCell;

use super::model::Model;
use super::store::{Shape, Store};
use super::workload::Worker;
use super::{Told, seeds};
use crate::engine::Engine;
use crate::env::Env;
use crate::env::sim::SimEnv;

/// Reads all until what is in tables is in rows.
async fn warm(worker: &mut Worker, store: &Store, model: &RefCell<Model>) {
    // From disk, from blocks, from rows.
    for _ in 0..3 {
        worker.check_all(store, model).await.unwrap();
    }
}

fn has_rows(engine: &Engine<SimEnv>) -> bool {
    !engine.rows.borrow().is_empty()
}

#[test]
fn a_row_never_outlives_what_replaced_it() {
    let mut warmed = 0;
    for seed in seeds(1..13) {
        let _told = Told::seed(seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut worker = Worker::with_transfers(rng.u64(..1 << 30));
        let model = RefCell::new(Model::default());
        let (world, env) = SimEnv::fresh(seed);
        world.run(async {
            let mut shape = Shape::small(2);
            // Of enough for all down to less than a few.
            shape.options.row_bytes = [8 << 10, 32 << 10, 1 << 20][rng.usize(..3)];
            shape.options.cache_bytes = 4 << 20;
            let store = Store::open(&env, &shape, &model).await.unwrap();
            for _ in 0..30 {
                for _ in 0..rng.usize(1..30) {
                    worker.step(&store, &model).await.unwrap();
                }
                if rng.bool() {
                    store.quiesce().await;
                }
                if rng.u8(..4) == 0 {
                    // Range deletes are flushed, applied and forgotten.
                    env.sleep(std::time::Duration::from_secs(3)).await;
                    store.quiesce().await;
                }
                warm(&mut worker, &store, &model).await;
                warmed += store.engines.iter().filter(|engine| has_rows(engine)).count();
            }
        });
        world.kill();
    }
    assert!(warmed > 12 * 30, "shards had rows {warmed} times");
}
