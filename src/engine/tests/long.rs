//! A long run over few keys: it neither grows nor slows.

use std::cell::RefCell;

use super::model::Model;
use super::store::{Shape, Store};
use super::workload::{Outcome, Worker};
use super::{Told, seeds};
use crate::env::Env;
use crate::env::sim::SimEnv;

#[test]
fn overwriting_the_same_keys_takes_no_more_space_and_no_more_work() {
    for seed in seeds(1..3) {
        let _told = Told::seed(seed);
        let mut worker = Worker::new(seed);
        let model = RefCell::new(Model::default());
        let (world, env) = SimEnv::fresh(seed);
        world.run(async {
            let store = Store::open(&env, &Shape::small(2), &model).await.unwrap();
            let mut operations = Vec::new();
            let (mut tables, mut wal) = (0, 0);
            for _ in 0..100 {
                let before = env.disk().operations();
                for n in 0..100 {
                    assert!(matches!(worker.write(&store, &model).await, Outcome::Taken));
                    if n % 25 == 0 {
                        store.seal(n / 25 % 2);
                    }
                }
                store.acknowledge(&model);
                let metrics = store.metrics();
                tables = tables.max(metrics.table_bytes);
                wal = wal.max(metrics.wal_live_bytes);
                operations.push(env.disk().operations() - before);
            }
            eprintln!("{tables} {wal} {operations:?}");
        });
        world.kill();
    }
}
