//! Bits that flip at rest. A start and the reads after it find what was written, or an error that names the
//! file; never another value, never silence about one that is gone.

use std::cell::RefCell;

use super::model::Model;
use super::store::{Shape, Store, same_disk};
use super::workload::{Worker, all_keys};
use super::{Told, seeds};
use crate::base::PAGE_SIZE;
use crate::disk::sim::SimDisk;
use crate::engine::EngineError;
use crate::engine::wal::WalError;
use crate::env::Env;
use crate::env::sim::{SimEnv, SimWorld};

/// What came of flips.
#[derive(Debug, Default)]
struct Met {
    harmless: u32,
    refused: u32,
    unreadable: u32,
}

/// Opens the store, works on it and closes it.
async fn live(env: &SimEnv, shape: &Shape, worker: &mut Worker, model: &RefCell<Model>, steps: u32) {
    let store = Store::open(env, shape, model).await.unwrap();
    for _ in 0..steps {
        worker.step(&store, model).await.unwrap();
    }
    let wals: Vec<_> = store.engines.iter().map(|engine| engine.wal.clone()).collect();
    store.close().await.unwrap();
    for (shard, wal) in wals.iter().enumerate() {
        model.borrow_mut().acknowledge(shard, wal.durable());
    }
}

/// A store that was closed, twice, by different numbers of shards: logs of both lives, tables, manifests.
fn closed_store(seed: u64, rng: &mut fastrand::Rng) -> (SimWorld, SimDisk, Model) {
    let (world, env) = SimEnv::fresh(seed);
    let model = RefCell::new(Model::default());
    let mut worker = Worker::new(rng.u64(..1 << 30));
    for shards in [rng.usize(1..=3), rng.usize(1..=2)] {
        let mut shape = Shape::small(shards);
        shape.options.segment_bytes = [12 << 10, 16 << 10, 32 << 10][rng.usize(..3)];
        let steps = rng.u32(..150);
        world.run(live(&env, &shape, &mut worker, &model, steps));
    }
    world.kill();
    (world, env.disk().clone(), model.into_inner())
}

/// What a start and reads of all keys make of a store of which `path` is damaged.
fn examine(disk: SimDisk, world: &SimWorld, path: &str, model: &Model, met: &mut Met) {
    let env = SimEnv::new(world, disk);
    let model = RefCell::new(model.clone());
    world.run(async {
        // What it refuses, it refuses by naming the file.
        let store = match Store::open(&env, &Shape::small(2), &model).await {
            Ok(store) => store,
            Err(error) => {
                // If it was the only block of the first segment, nothing else says that it stood there.
                let is_gap =
                    matches!(error, EngineError::Wal(WalError::Gap { .. })) && path.starts_with("wal/");
                let is_named = error.to_string().contains(path);
                assert!(is_named || is_gap, "{path} is damaged, but not named: {error}");
                met.refused += 1;
                return;
            }
        };
        let mut is_whole = true;
        for key in all_keys() {
            if let Err(error) = store.check(key, &model).await {
                assert!(error.to_string().contains(path), "{path} is damaged, but not named: {error}");
                is_whole = false;
            }
        }
        *if is_whole { &mut met.harmless } else { &mut met.unreadable } += 1;
    });
    world.kill();
}

#[test]
fn a_flipped_bit_is_refused_by_name_or_harmless() {
    let mut met = Met::default();
    for seed in seeds(1..13) {
        let _told = Told::seed(seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        let (_, disk, model) = closed_store(seed, &mut rng);
        for path in disk.paths() {
            for _ in 0..8 {
                let world = SimWorld::new(rng.u64(..));
                let copy = same_disk(&disk, &world);
                let mut bytes = copy.peek(&path).unwrap();
                let page = rng.usize(..bytes.len() / PAGE_SIZE) * PAGE_SIZE;
                // Headers are small, but what they say matters most.
                let at = page + if rng.bool() { rng.usize(..160) } else { rng.usize(..PAGE_SIZE) };
                bytes[at] ^= 1 << rng.u8(..8);
                copy.poke(&path, bytes);
                let _told = Told(format!("a bit is flipped in {path} at byte {at}"));
                examine(copy, &world, &path, &model, &mut met);
            }
        }
    }
    eprintln!("{met:?}");
    assert!(met.refused > 0 && met.harmless > 0, "{met:?}");
}
