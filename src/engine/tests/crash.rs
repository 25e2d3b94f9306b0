//! Crashes at random operations, of work as well as of starts, several in a row.

use std::cell::RefCell;
use std::rc::Rc;

use super::model::Model;
use super::store::{Shape, Store, unless_down};
use super::workload::Worker;
use super::{Told, seeds};
use crate::disk::sim::SimDisk;
use crate::env::Env;
use crate::env::sim::{SimEnv, SimWorld};
use crate::metrics::MetricsSnapshot;

/// What a campaign went through: one that met too little of it shows nothing.
#[derive(Debug, Default)]
struct Met {
    crashes_in_start: u32,
    crashes_at_work: u32,
    closes: u32,
    sums: MetricsSnapshot,
}

/// From an empty disk through `sessions` lives of the store, the last of which ends well.
fn campaign(seed: u64, sessions: u32, met: &mut Met) -> Model {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut worker = Worker::with_transfers(rng.u64(..1 << 30));
    let model = RefCell::new(Model::default());
    let mut disk: Option<SimDisk> = None;
    for session in 0..=sessions {
        let is_last = session == sessions;
        let world = SimWorld::new(rng.u64(..));
        let keep = [0, 10, 50, 90, 100][rng.usize(..5)];
        let disk_now = match &disk {
            None => SimDisk::new(&world),
            Some(before) => before.crash(&world, &mut rng, keep),
        };
        let env = SimEnv::new(&world, disk_now);
        let shape = Shape::random(&mut rng);
        // Many crashes hit within a start.
        let crash_at = 1 + if rng.u8(..3) == 0 { rng.u64(..120) } else { rng.u64(100..1200) };
        if !is_last {
            env.disk().crash_at(crash_at);
        }
        let steps = rng.u32(..250);
        let open: RefCell<Option<Rc<Store>>> = RefCell::new(None);
        let life = async {
            let store = Store::open(&env, &shape, &model).await;
            let store = Rc::new(store.expect("a start after crashes"));
            open.replace(Some(store.clone()));
            let mut checked = false;
            for step in 0..steps {
                // Reads that come with writes find what a start has left, too.
                if step == steps / 4 {
                    worker.check_all(&store, &model).await.expect("a read");
                    checked = true;
                }
                worker.step(&store, &model).await.expect("a step of work");
            }
            if !checked {
                worker.check_all(&store, &model).await.expect("a read");
            }
            met.sums.merge(&store.metrics());
            open.replace(None);
            let store = Rc::into_inner(store).expect("nobody else has it");
            let wals: Vec<_> = store.engines.iter().map(|engine| engine.wal.clone()).collect();
            store.close().await.expect("a close");
            for (shard, wal) in wals.iter().enumerate() {
                model.borrow_mut().acknowledge(shard, wal.durable());
            }
        };
        let is_closed = world.run(unless_down(&env, life)).is_some();
        match open.take() {
            Some(store) => {
                // What was durable when the disk stopped might have been told to someone.
                store.acknowledge(&model);
                met.sums.merge(&store.metrics());
                met.crashes_at_work += 1;
            }
            None if is_closed => met.closes += 1,
            None => met.crashes_in_start += 1,
        }
        assert!(is_closed || !is_last);
        world.kill();
        disk = Some(env.disk().clone());
    }
    model.into_inner()
}

#[test]
fn crashes_anywhere_keep_what_was_acknowledged_in_order_and_whole() {
    let mut met = Met::default();
    let (mut acknowledged, mut lost, mut survived) = (0, 0, 0);
    for seed in seeds(1..201) {
        let _told = Told::seed(seed);
        let model = campaign(seed, 5, &mut met);
        acknowledged += model.acknowledged;
        lost += model.lost;
        survived += model.survived;
    }
    if std::env::var_os("ATLASKV_ENGINE_SEED").is_none() {
        let sums = &met.sums;
        assert!(acknowledged.min(lost).min(survived) > 100, "{met:?} {acknowledged} {lost} {survived}");
        let ranges = [sums.range_deletes, sums.range_entries, sums.range_tables];
        assert!(ranges.into_iter().all(|count| count > 100), "range deletes met too little: {ranges:?}");
    }
}
