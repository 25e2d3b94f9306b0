//! Disks that refuse: errors on any operation, and no space. Nothing panics, somebody is told, and nothing
//! that was acknowledged is missing once the disk is well again.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::model::Model;
use super::store::{Shape, Store};
use super::workload::{Outcome, Worker};
use super::{Told, seeds};
use crate::disk::sim::SimDisk;
use crate::engine::{EngineError, Tablet};
use crate::env::Env;
use crate::env::sim::{SimEnv, SimWorld};

const OPERATIONS: [&str; 11] =
    ["open", "rename", "remove", "create_dir", "list", "sync_dir", "read", "write", "dsync", "sync", "close"];
const PLACES: [&str; 6] = ["", "wal", "sst", "manifest", "CURRENT", ".tmp"];

/// How a life of the store went on a disk with a fault.
#[derive(Debug, Default)]
struct Met {
    refused_starts: u32,
    refused_steps: u32,
    resumed: u32,
    failed_closes: u32,
    quiet: u32,
}

/// Whether only a restart helps.
fn is_final(store: &Store) -> bool {
    store.engines.iter().any(|engine| engine.wal.failed().is_some() || engine.manifest.failed().is_some())
}

/// Once the disk is well, a store that can go on does so within a few of its retries.
async fn must_resume(store: &Store, worker: &mut Worker, model: &RefCell<Model>) {
    let since = store.env.now();
    loop {
        match worker.write(store, model).await {
            Outcome::Taken => return,
            Outcome::Refused(error) => {
                let late = store.env.now() - since > Duration::from_secs(5);
                assert!(!late || is_final(store), "the disk is well, but: {error}");
                if is_final(store) {
                    return;
                }
            }
        }
        store.env.sleep(Duration::from_millis(100)).await;
    }
}

/// Works with faults until something final happens. Read errors concern that read alone.
async fn work(store: &Store, worker: &mut Worker, model: &RefCell<Model>, met: &mut Met, steps: u32) {
    let mut refusals = 0;
    for _ in 0..steps {
        let Err(error) = worker.step(store, model).await else { continue };
        met.refused_steps += 1;
        match error {
            EngineError::Log(_) => return,
            EngineError::Full(_) => {
                refusals += 1;
                if refusals > 3 {
                    store.env.disk().heal();
                    must_resume(store, worker, model).await;
                    met.resumed += 1;
                }
                store.env.sleep(Duration::from_millis(50)).await;
            }
            error => assert!(error.to_string().contains("failed"), "a read error tells its cause: {error}"),
        }
    }
}

/// One life, in which the disk may have faults.
async fn life(
    env: &SimEnv,
    shape: &Shape,
    worker: &mut Worker,
    model: &RefCell<Model>,
    met: &mut Met,
    steps: u32,
) {
    let store = match Store::open(env, shape, model).await {
        Ok(store) => store,
        Err(error) => {
            assert!(error.to_string().contains("failed"), "an error tells its cause: {error}");
            met.refused_starts += 1;
            return;
        }
    };
    let before = met.refused_steps;
    work(&store, worker, model, met, steps).await;
    let wals: Vec<_> = store.engines.iter().map(|engine| engine.wal.clone()).collect();
    let closed = store.close().await;
    met.failed_closes += u32::from(closed.is_err());
    met.quiet += u32::from(closed.is_ok() && met.refused_steps == before);
    for (shard, wal) in wals.iter().enumerate() {
        model.borrow_mut().acknowledge(shard, wal.durable());
    }
}

#[test]
fn an_error_of_any_operation_is_reported_and_loses_nothing() {
    let mut met = Met::default();
    for seed in seeds(1..121) {
        let _told = Told::seed(seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut worker = Worker::with_transfers(rng.u64(..1 << 30));
        let model = RefCell::new(Model::default());
        let mut disk: Option<SimDisk> = None;
        // Every second life has a disk that is well, and must show all that was acknowledged.
        for number in 0..6 {
            let world = SimWorld::new(rng.u64(..));
            // A restart of the process leaves everything in place; a restart of the machine does not.
            let keep = [100, 100, 50, 0][rng.usize(..4)];
            let disk_now = match &disk {
                None => SimDisk::new(&world),
                Some(before) => before.crash(&world, &mut rng, keep),
            };
            let env = SimEnv::new(&world, disk_now);
            let shape = Shape::random(&mut rng);
            let steps = rng.u32(..120);
            let _told;
            if number % 2 == 1 {
                let operation = OPERATIONS[rng.usize(..OPERATIONS.len())];
                let place = PLACES[rng.usize(..PLACES.len())];
                let errno = [libc::EIO, libc::ENOSPC][rng.usize(..2)];
                let skip = if rng.bool() { rng.u64(..8) } else { rng.u64(..100) };
                let once = rng.u8(..3) > 0;
                env.disk().fail(operation, place, skip, errno, once);
                _told = Told(format!(
                    "life {number}: {operation} of {place:?} fails with {errno} after {skip}, once: {once}"
                ));
                world.run(life(&env, &shape, &mut worker, &model, &mut met, steps));
            } else {
                _told = Told(format!("life {number}, on a disk that is well"));
                world.run(async {
                    let store = Rc::new(Store::open(&env, &shape, &model).await.expect("the disk is well"));
                    worker.check_all(&store, &model).await.expect("the disk is well");
                    for _ in 0..steps {
                        worker.step(&store, &model).await.expect("the disk is well");
                    }
                    let wals: Vec<_> = store.engines.iter().map(|engine| engine.wal.clone()).collect();
                    Rc::into_inner(store).unwrap().close().await.expect("the disk is well");
                    for (shard, wal) in wals.iter().enumerate() {
                        model.borrow_mut().acknowledge(shard, wal.durable());
                    }
                });
            }
            world.kill();
            disk = Some(env.disk().clone());
        }
    }
    eprintln!("{met:?}");
}

#[test]
fn a_full_disk_stops_writes_and_space_brings_them_back() {
    let (mut full, mut refused_starts) = (0, 0);
    for seed in seeds(1..41) {
        let _told = Told::seed(seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut worker = Worker::with_transfers(rng.u64(..1 << 30));
        let model = RefCell::new(Model::default());
        let world = SimWorld::new(rng.u64(..));
        let env = SimEnv::new(&world, SimDisk::new(&world));
        world.run(async {
            for _ in 0..3 {
                env.disk().set_capacity(u64::MAX);
                let shape = Shape::random(&mut rng);
                let store = Store::open(&env, &shape, &model).await.unwrap();
                worker.check_all(&store, &model).await.unwrap();
                let held: u64 =
                    env.disk().paths().iter().map(|path| env.disk().peek(path).unwrap().len() as u64).sum();
                env.disk().set_capacity(held + rng.u64(..256 << 10));
                for _ in 0..400 {
                    match worker.step(&store, &model).await {
                        Ok(()) => {}
                        Err(EngineError::Full(_)) => {
                            full += 1;
                            break;
                        }
                        Err(error) => panic!("a full disk is no reason for: {error}"),
                    }
                }
                worker.check_all(&store, &model).await.unwrap();
                if rng.bool() {
                    env.disk().set_capacity(u64::MAX);
                    must_resume(&store, &mut worker, &model).await;
                    assert!(!is_final(&store), "a full disk breaks nothing for good");
                }
                let wals: Vec<_> = store.engines.iter().map(|engine| engine.wal.clone()).collect();
                store.close().await.unwrap();
                for (shard, wal) in wals.iter().enumerate() {
                    model.borrow_mut().acknowledge(shard, wal.durable());
                }
                // A start may need more space than there is.
                match Store::open(&env, &Shape::small(2), &model).await {
                    Ok(store) => store.close().await.unwrap(),
                    Err(error) => {
                        assert!(error.to_string().contains("failed"), "{error}");
                        refused_starts += 1;
                        world.kill();
                    }
                }
            }
        });
        world.kill();
    }
    eprintln!("{full} {refused_starts}");
}

/// The tablet of such a table was always the one with most to merge.
#[test]
fn a_table_that_cannot_be_read_holds_up_no_other_tablet() {
    for seed in seeds(1..6) {
        let _told = Told::seed(seed);
        let (world, env) = SimEnv::fresh(seed);
        let model = RefCell::new(Model::default());
        let mut worker = Worker::new(seed);
        world.run(async {
            let store = Store::open(&env, &Shape::small(1), &model).await.unwrap();
            let engine = &store.engines[0];
            let needs_merge = |tablet: &Tablet<SimEnv>| engine.pick_for(tablet, false).is_some();
            let mut broken = None;
            for _ in 0..24 {
                for _ in 0..20 {
                    assert!(matches!(worker.write(&store, &model).await, Outcome::Taken));
                }
                store.seal(0);
                engine.changed().until(|| engine.sealed.borrow().is_empty()).await;
                if broken.is_none() {
                    let found = engine.all_tablets().iter().position(|tablet| !tablet.version().is_empty());
                    let local = found.expect("something was flushed");
                    let version = engine.tablet(local).version();
                    let path = version.members().next().unwrap().table.name().path();
                    env.disk().fail("read", &path, 0, libc::EIO, false);
                    broken = Some(local);
                }
            }
            env.sleep(Duration::from_secs(5)).await;
            assert!(store.metrics().compaction_failures > 0);
            for (local, tablet) in engine.all_tablets().iter().enumerate() {
                assert!(Some(local) == broken || !needs_merge(tablet), "tablet {local}");
            }
            env.disk().heal();
            env.sleep(Duration::from_secs(130)).await;
            assert!(!engine.all_tablets().iter().any(|tablet| needs_merge(tablet)), "it is tried again");
            worker.check_all(&store, &model).await.unwrap();
            store.close().await.unwrap();
        });
        world.kill();
    }
}
