//! Damage at rest is found by the scrub, with file and offset, though nobody reads it; reads, scans and merges that
//! meet it are refused and counted, each place once, and everything else is served.

use std::cell::RefCell;
use std::time::Duration;

use super::model::Model;
use super::store::{Shape, Store, files};
use super::workload::{Worker, all_keys};
use super::{Told, seeds};
use crate::base::PAGE_SIZE;
use crate::engine::EngineError;
use crate::engine::scan::{Filled, ScanRange};
use crate::env::Env;
use crate::env::sim::SimEnv;
use crate::metrics::MetricsSnapshot;

/// Waits for the end of a round that began after this.
async fn round(store: &Store) {
    let rounds = store.metrics().scrub_rounds;
    while store.metrics().scrub_rounds < rounds + 2 {
        store.env.sleep(Duration::from_millis(500)).await;
    }
}

#[test]
fn damage_is_found_where_nobody_reads_and_harms_only_its_own_keys() {
    let (mut refused, mut served) = (0, 0);
    for seed in seeds(1..8) {
        let _told = Told::seed(seed);
        let (world, env) = SimEnv::fresh(seed);
        let model = RefCell::new(Model::default());
        let mut worker = Worker::new(seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        world.run(async {
            let mut shape = Shape::small(1);
            // Nothing is cached, so reads meet what is on disk.
            shape.options.cache_bytes = 1;
            shape.options.scrub_bytes_per_s = 8 << 20;
            let store = Store::open(&env, &shape, &model).await.unwrap();
            for _ in 0..80 {
                worker.write(&store, &model).await;
            }
            store.quiesce().await;
            round(&store).await;
            let healthy = store.metrics();
            assert!(healthy.scrub_bytes > 0 && healthy.scrub_damage == 0 && healthy.read_damage == 0);
            let paths: Vec<String> = store.live_tables().into_iter().collect();
            let path = &paths[rng.usize(..paths.len())];
            let mut bytes = env.disk().peek(path).unwrap();
            // The first block; and in every second round the footer, which is resident, as well.
            bytes[rng.usize(16..200)] ^= 1 << rng.u8(..8);
            if seed % 2 == 0 {
                let at = bytes.len() - PAGE_SIZE + 60;
                bytes[at] ^= 1;
            }
            env.disk().damage(path, bytes);
            round(&store).await;
            let found = store.metrics().scrub_damage;
            assert!(found > 0, "the scrub of {path} found nothing");
            round(&store).await;
            assert_eq!(store.metrics().scrub_damage, found, "each place counts once");
            for key in all_keys() {
                match store.check(key, &model).await {
                    Ok(()) => served += 1,
                    Err(EngineError::Table(error)) => {
                        assert!(error.to_string().contains(path.as_str()), "{error}");
                        refused += 1;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            store.close().await.unwrap();
        });
        world.kill();
    }
    assert!(refused > 0 && served > 10 * refused, "{refused} reads were refused, {served} served");
}

#[test]
fn a_damaged_manifest_is_found_before_a_start_needs_it() {
    for seed in seeds(1..6) {
        let _told = Told::seed(seed);
        let (world, env) = SimEnv::fresh(seed);
        let model = RefCell::new(Model::default());
        let (mut worker, mut rng) = (Worker::new(seed), fastrand::Rng::with_seed(seed));
        world.run(async {
            let mut shape = Shape::small(2);
            shape.options.scrub_bytes_per_s = 8 << 20;
            let store = Store::open(&env, &shape, &model).await.unwrap();
            for _ in 0..20 {
                worker.write(&store, &model).await;
            }
            store.quiesce().await;
            round(&store).await;
            assert_eq!(store.metrics().scrub_damage, 0);
            let mut paths: Vec<String> = files(env.disk(), "manifest").into_iter().collect();
            paths.push("CURRENT".to_owned());
            for (number, path) in (1..).zip(&paths) {
                let mut bytes = env.disk().peek(path).unwrap();
                // A header that a start reads: of the first block or, in manifests, the second.
                let page = if path == "CURRENT" { 0 } else { rng.usize(..2) * PAGE_SIZE };
                bytes[page + rng.usize(..28)] ^= 1 << rng.u8(..8);
                env.disk().damage(path, bytes);
                round(&store).await;
                assert_eq!(store.metrics().scrub_damage, number, "{path} is damaged in page {page}");
            }
            round(&store).await;
            assert_eq!(store.metrics().scrub_damage, paths.len() as u64, "each place counts once");
        });
        world.kill();
    }
}

/// Reads all keys, and scans all tablets. How many of either were refused.
async fn read_all(store: &Store, model: &RefCell<Model>) -> (u32, u32) {
    let (mut reads, mut scans) = (0, 0);
    for key in all_keys() {
        reads += u32::from(store.check(key, model).await.is_err());
    }
    for engine in &store.engines {
        for local in 0..engine.tablets() {
            let mut scan =
                engine.scan(Some(local), ScanRange { start: vec![], end: vec![], is_reverse: false });
            let result = loop {
                match scan.fill(engine, &mut u32::MAX.clone(), |_, _| true) {
                    Ok(Filled::Missing) => match scan.load(engine).await {
                        Ok(()) => {}
                        error => break error,
                    },
                    Ok(Filled::End) => break Ok(()),
                    Ok(_) => {}
                    Err(error) => break Err(error),
                }
            };
            scans += u32::from(result.is_err());
        }
    }
    (reads, scans)
}

#[test]
fn what_reads_scans_and_merges_meet_is_counted_each_place_once_in_a_while() {
    let mut merges = 0;
    for seed in seeds(1..7) {
        let _told = Told::seed(seed);
        let (world, env) = SimEnv::fresh(seed);
        let model = RefCell::new(Model::default());
        let mut worker = Worker::new(seed);
        world.run(async {
            let mut shape = Shape::small(1);
            shape.options.cache_bytes = 1;
            let store = Store::open(&env, &shape, &model).await.unwrap();
            for _ in 0..80 {
                worker.write(&store, &model).await;
            }
            store.quiesce().await;
            let path = store.live_tables().into_iter().next().unwrap();
            // Damage that a checksum shows, and a device that does not give the bytes at all.
            if seed % 2 == 0 {
                let mut bytes = env.disk().peek(&path).unwrap();
                bytes[30] ^= 1;
                env.disk().damage(&path, bytes);
            } else {
                env.disk().fail("read", &path, 0, libc::EIO, false);
            }
            let counted = |metrics: MetricsSnapshot| (metrics.read_damage, metrics.scan_damage);
            let (reads, scans) = read_all(&store, &model).await;
            let once = counted(store.metrics());
            assert!(reads > 0 && scans > 0, "{path}: {reads} reads and {scans} scans were refused");
            assert!(once.0 > 0 && once.0 <= u64::from(reads) && once.1 > 0, "{once:?}");
            assert_eq!(read_all(&store, &model).await, (reads, scans));
            assert_eq!(counted(store.metrics()), once, "each place counts once in a while");
            env.sleep(Duration::from_secs(60)).await;
            read_all(&store, &model).await;
            assert_eq!(counted(store.metrics()), (2 * once.0, 2 * once.1), "it is told again");
            for _ in 0..10 {
                worker.write_some(&store, &model, 20).await;
                store.quiesce().await;
            }
            merges += store.metrics().merge_damage;
            env.disk().heal();
            store.close().await.unwrap();
        });
        world.kill();
    }
    assert!(merges > 0, "no merge met the damage");
}
