//! Clean ends and starts by other numbers of shards: nothing is rewritten, nothing is left behind.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::model::Model;
use super::store::{Shape, Store, files};
use super::workload::Worker;
use super::{Told, seeds};
use crate::base::LogId;
use crate::engine::wal::list_logs;
use crate::env::Env;
use crate::env::sim::SimEnv;

/// Segments that a shard has when all is flushed: one in use, one ready, two free.
const SEGMENTS_IDLE_MAX: usize = 4;

/// How the names of tables begin that were written under `log`.
fn file_prefix(log: LogId) -> String {
    format!("-{:08x}", log.0)
}

async fn logs(env: &SimEnv) -> BTreeSet<LogId> {
    list_logs(env).await.unwrap().into_keys().collect()
}

async fn close(store: Store, model: &RefCell<Model>) {
    let wals: Vec<_> = store.engines.iter().map(|engine| engine.wal.clone()).collect();
    store.close().await.unwrap();
    for (shard, wal) in wals.iter().enumerate() {
        model.borrow_mut().acknowledge(shard, wal.durable());
    }
}

#[test]
fn another_number_of_shards_rewrites_nothing_and_nothing_stays_that_nobody_names() {
    for seed in seeds(1..11) {
        let _told = Told::seed(seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut worker = Worker::new(rng.u64(..1 << 30));
        let model = RefCell::new(Model::default());
        let (world, env) = SimEnv::fresh(seed);
        world.run(async {
            let (mut live, mut is_settled) = (BTreeSet::new(), true);
            for round in 0..8 {
                let shape = Shape::small(1 + (round + seed as usize) % 4);
                let store = Store::open(&env, &shape, &model).await.unwrap();
                // Nothing that is in memory only was flushed to get here, and nothing was merged that was not
                // due.
                if is_settled {
                    assert_eq!(store.live_tables(), live, "the tables are those of the life before");
                }
                // A merge that this life has begun by now comes on top.
                let is_older =
                    |path: &String| !store.engines.iter().any(|e| path.contains(&file_prefix(e.log())));
                let older: BTreeSet<_> = files(env.disk(), "sst").into_iter().filter(is_older).collect();
                assert!(older.is_subset(&live), "and no others are on disk");
                worker.check_all(&store, &model).await.unwrap();
                for _ in 0..rng.u32(..100) {
                    worker.step(&store, &model).await.unwrap();
                }
                is_settled = rng.bool();
                if is_settled {
                    store.quiesce().await;
                    assert_eq!(files(env.disk(), "sst"), store.live_tables(), "no table but the live ones");
                    let current: BTreeSet<LogId> = store.engines.iter().map(|engine| engine.log()).collect();
                    assert_eq!(logs(&env).await, current, "old logs go when tables hold all of them");
                    let segments = files(env.disk(), "wal").len();
                    assert!(segments <= SEGMENTS_IDLE_MAX * shape.shards, "{segments} segments");
                    assert_eq!(files(env.disk(), "manifest").len(), shape.shards, "one manifest a shard");
                    worker.check_all(&store, &model).await.unwrap();
                }
                // As `close` does first: afterwards no table comes or goes.
                for engine in &store.engines {
                    engine.is_stopping.set(true);
                    engine.changed.notify();
                    engine.background.empty().await;
                }
                live = store.live_tables();
                close(store, &model).await;
            }
        });
        world.kill();
    }
}

#[test]
fn files_stay_few_over_many_restarts() {
    for seed in seeds(1..4) {
        let _told = Told::seed(seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut worker = Worker::new(rng.u64(..1 << 30));
        let model = RefCell::new(Model::default());
        let (world, env) = SimEnv::fresh(seed);
        let mut counts = Vec::new();
        for round in 0..60 {
            let shape = Shape::small(1 + round % 4);
            world.run(async {
                let store = Store::open(&env, &shape, &model).await.unwrap();
                for _ in 0..20 {
                    worker.step(&store, &model).await.unwrap();
                }
                close(store, &model).await;
            });
            world.kill();
            counts.push(env.disk().paths().len());
        }
        // Tables: up to two of each size of each tablet, and what a merge was cut short of removing. Logs:
        // three old ones of up to four shards at most, before all of it is flushed.
        let (early, late) = (counts[..20].iter().max().unwrap(), counts[40..].iter().max().unwrap());
        assert!(*late <= 70 && *late <= early + early / 2, "seed {seed}: files after each life: {counts:?}");
    }
}
