//! Damage at rest is found by the scrub, with file and offset, though nobody reads it; a read that meets it is
//! refused and counted, and everything else is served.

use std::cell::RefCell;
use std::time::Duration;

use super::model::Model;
use super::store::{Shape, Store};
use super::workload::{Worker, all_keys};
use super::{Told, seeds};
use crate::base::PAGE_SIZE;
use crate::engine::EngineError;
use crate::env::Env;
use crate::env::sim::SimEnv;

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
