//! Range deletes in an engine: what becomes of what they hide, and crashes at every operation around that.

use std::cell::RefCell;
use std::rc::Rc;

use super::model::{KeyRange, Model, key_bytes};
use super::store::{Shape, Store, files, unless_down};
use super::workload::{Outcome, Worker, all_keys};
use super::{Told, seeds};
use crate::engine::EngineError;
use crate::engine::ranges::FRAGMENTS_MAX;
use crate::env::Env;
use crate::env::sim::{SimEnv, SimWorld};

async fn fill(worker: &mut Worker, store: &Store, model: &RefCell<Model>, writes: u32) {
    for _ in 0..writes {
        assert!(worker.write(store, model).await.is_taken());
    }
    store.acknowledge(model);
}

/// Deletes a range of every tablet.
async fn delete_everywhere(store: &Store, model: &RefCell<Model>, start: &[u8], end: &[u8]) {
    let mut worker = Worker::new(0);
    for (shard, engine) in store.engines.iter().enumerate() {
        for local in 0..engine.tablets() {
            let range = KeyRange { start: start.to_vec(), end: end.to_vec() };
            assert!(worker.delete(store, model, (shard, local), range).await.is_taken());
        }
    }
}

/// Waits until background work has done what it does when nobody writes.
async fn settle(store: &Store) {
    store.env.sleep(std::time::Duration::from_secs(3)).await;
    store.quiesce().await;
}

#[test]
fn deleting_everything_empties_the_disk_without_reading_it() {
    let (world, env) = SimEnv::fresh(1);
    world.run(async {
        let (model, mut worker) = (RefCell::new(Model::default()), Worker::new(1));
        let store = Store::open(&env, &Shape::small(2), &model).await.unwrap();
        for _ in 0..4 {
            fill(&mut worker, &store, &model, 60).await;
            store.quiesce().await;
        }
        assert!(store.metrics().table_bytes > 0);
        let before = store.metrics();
        delete_everywhere(&store, &model, b"", b"").await;
        worker.check_all(&store, &model).await.unwrap();
        assert_eq!(store.metrics().disk_reads, before.disk_reads, "what is hidden is not read");
        // Nobody writes, and no memtable is full.
        settle(&store).await;
        let after = store.metrics();
        assert_eq!((after.tables, after.range_fragments), (0, 0), "and the range deletes are forgotten");
        assert_eq!(after.range_tables, before.tables);
        assert_eq!(after.compactions, before.compactions);
        assert!(files(env.disk(), "sst").is_empty());
        worker.check_all(&store, &model).await.unwrap();
        fill(&mut worker, &store, &model, 60).await;
        worker.check_all(&store, &model).await.unwrap();
        store.close().await.unwrap();
        let store = Store::open(&env, &Shape::small(3), &model).await.unwrap();
        worker.check_all(&store, &model).await.unwrap();
        store.close().await.unwrap();
    });
}

#[test]
fn what_a_range_delete_leaves_stays_and_what_it_hides_is_merged_away() {
    for seed in seeds(1..6) {
        let _told = Told::seed(seed);
        let (world, env) = SimEnv::fresh(seed);
        world.run(async {
            let (model, mut worker) = (RefCell::new(Model::default()), Worker::new(seed));
            let store = Store::open(&env, &Shape::small(1), &model).await.unwrap();
            for _ in 0..2 {
                fill(&mut worker, &store, &model, 100).await;
                store.quiesce().await;
            }
            delete_everywhere(&store, &model, b"{group-1", b"{group-7}").await;
            settle(&store).await;
            worker.check_all(&store, &model).await.unwrap();
            store.close().await.unwrap();
            // What hides them is in no log any more.
            let store = Store::open(&env, &Shape::small(2), &model).await.unwrap();
            worker.check_all(&store, &model).await.unwrap();
            for _ in 0..6 {
                delete_everywhere(&store, &model, b"{group-2", b"{group-3").await;
                fill(&mut worker, &store, &model, 30).await;
                store.quiesce().await;
                worker.check_all(&store, &model).await.unwrap();
            }
            assert!(store.metrics().range_entries > 0, "merges and flushes have met some");
            store.close().await.unwrap();
        });
    }
}

#[test]
fn too_many_are_refused_until_merges_have_dropped_what_they_hide() {
    let (world, env) = SimEnv::fresh(1);
    world.run(async {
        let (model, mut worker) = (RefCell::new(Model::default()), Worker::new(1));
        let mut shape = Shape::small(1);
        shape.options.segment_bytes = 4 << 20; // the log has room for all of them
        let store = Store::open(&env, &shape, &model).await.unwrap();
        fill(&mut worker, &store, &model, 100).await;
        store.quiesce().await;
        let engine = &store.engines[0];
        let place = store.place((1, 1));
        let delete = |number: usize| {
            let key = format!("{{group-0}}:{number:06}");
            engine.delete_range(place.local, key.as_bytes(), format!("{key}!").as_bytes())
        };
        let refused = (0..2 * FRAGMENTS_MAX).find_map(|number| delete(number).err()).unwrap();
        assert!(matches!(refused, EngineError::TooManyRanges { .. }), "{refused}");
        assert!(engine.metrics().range_fragments <= FRAGMENTS_MAX as u64);
        settle(&store).await;
        assert_eq!(engine.metrics().range_fragments, 0, "{:?}", engine.metrics());
        delete(0).unwrap();
        for key in all_keys().filter(|key| key.0 != 0) {
            let (found, _) = store.get(key).await.unwrap();
            assert_eq!(found, model.borrow().current(store.place(key).tablet, key).0, "{:?}", key_bytes(key));
        }
        store.close().await.unwrap();
    });
}

/// Lookups search a list that is bounded, however many ranges were ever deleted.
#[test]
fn ten_thousand_range_deletes_leave_a_short_list() {
    let (world, env) = SimEnv::fresh(1);
    world.run(async {
        let (model, mut worker) = (RefCell::new(Model::default()), Worker::new(1));
        let mut shape = Shape::small(1);
        shape.options.segment_bytes = 4 << 20;
        let store = Store::open(&env, &shape, &model).await.unwrap();
        fill(&mut worker, &store, &model, 100).await;
        store.quiesce().await;
        let engine = &store.engines[0];
        let local = store.place((1, 1)).local;
        let (mut longest, mut waits) = (0, 0);
        for number in 0..10_000 {
            // In the range of the tables' keys, or they would hold nothing of it.
            let start = format!("{{group-1}}:{number:06}").into_bytes();
            let range = KeyRange { end: [&start[..], b"!"].concat(), start };
            loop {
                match worker.delete(&store, &model, (0, local), range.clone()).await {
                    Outcome::Taken => break,
                    Outcome::Refused(EngineError::TooManyRanges { .. }) => waits += 1,
                    Outcome::Refused(error) => panic!("{error}"),
                }
                store.env.sleep(std::time::Duration::from_millis(50)).await;
            }
            longest = longest.max(engine.tablet(local).ranges().fragments().len());
            if number % 500 == 0 {
                fill(&mut worker, &store, &model, 5).await;
            }
        }
        assert!(longest <= FRAGMENTS_MAX && waits > 0, "{longest} fragments, {waits} times refused");
        store.acknowledge(&model);
        worker.check_all(&store, &model).await.unwrap();
        // Everything can be deleted at any time.
        delete_everywhere(&store, &model, b"", b"").await;
        assert_eq!(engine.tablet(local).ranges().fragments().len(), 1);
        worker.check_all(&store, &model).await.unwrap();
        store.close().await.unwrap();
        let store = Store::open(&env, &shape, &model).await.unwrap();
        worker.check_all(&store, &model).await.unwrap();
        settle(&store).await;
        assert_eq!(store.metrics().range_fragments, 0);
        store.close().await.unwrap();
    });
}

/// The disk stops at every single operation, from the first write on until nothing is left to do. Whatever is
/// left must open, by another number of shards, as a prefix of what was written.
#[test]
fn a_crash_at_any_operation_brings_nothing_back_and_loses_nothing() {
    let (mut crashes, mut points) = (0, 0);
    for seed in seeds(1..4) {
        let _told = Told::seed(seed);
        for operation in 1.. {
            let mut rng = fastrand::Rng::with_seed(seed << 32 | operation);
            let model = RefCell::new(Model::default());
            let (world, env) = SimEnv::fresh(seed);
            let mut worker = Worker::new(seed);
            env.disk().crash_at(operation);
            let open = RefCell::new(None);
            let life = async {
                let store = Rc::new(Store::open(&env, &Shape::small(1), &model).await.unwrap());
                open.replace(Some(store.clone()));
                for round in 0..4 {
                    fill(&mut worker, &store, &model, 25).await;
                    if round % 2 == 0 {
                        store.quiesce().await;
                    }
                    let bounds: (&[u8], &[u8]) =
                        [(&b""[..], &b""[..]), (b"{group-1", b"{group-5")][round % 2];
                    delete_everywhere(&store, &model, bounds.0, bounds.1).await;
                    fill(&mut worker, &store, &model, 5).await;
                }
                settle(&store).await;
                worker.check_all(&store, &model).await.unwrap();
            };
            let is_complete = world.run(unless_down(&env, life)).is_some();
            if let Some(store) = open.take() {
                store.acknowledge(&model);
            }
            world.kill();
            points += 1;
            if is_complete {
                break;
            }
            crashes += 1;
            let world = SimWorld::new(seed);
            let disk = env.disk().crash(&world, &mut rng, [0, 50, 100][operation as usize % 3]);
            let env = SimEnv::new(&world, disk);
            world.run(async {
                let mut worker = Worker::new(seed + 1000);
                let store = Store::open(&env, &Shape::small(1 + operation as usize % 3), &model).await;
                let store = store.unwrap_or_else(|error| panic!("operation {operation}: {error}"));
                worker.check_all(&store, &model).await.unwrap();
                settle(&store).await;
                worker.check_all(&store, &model).await.unwrap();
                store.close().await.unwrap();
            });
        }
    }
    assert!(crashes > 100, "{crashes} crashes at {points} operations");
}
