//! Lookups that found a block missing, and go on once it was loaded.

use std::time::Duration;

use super::levels::{Map, Town, key, shape};
use super::{Told, seeds};
use crate::engine::{Engine, Key, Loaded, Lookup, MissingBlock};
use crate::env::Env;
use crate::env::sim::SimEnv;

/// Looks `number` up once: the value, or the block that is missing.
fn look(town: &Town, number: u32, loaded: &Loaded) -> Result<Option<Vec<u8>>, MissingBlock<SimEnv>> {
    let (engine, bytes): (&Engine<SimEnv>, _) = (town.engine(), key(number));
    let key = Key { bytes: &bytes, hash: engine.hash(&bytes), tablet: town.local };
    match engine.lookup(&key, loaded, |found| found.entry.map(|entry| entry.value.to_vec())).unwrap() {
        Lookup::Done(value) => Ok(value),
        Lookup::Missing(block) => Err(block),
    }
}

/// Looks until the key's block is missing, and loads it. Indexes are read meanwhile.
async fn load(town: &Town, number: u32) -> Loaded {
    let mut loaded = Loaded::new();
    let Err(block) = look(town, number, &loaded) else { panic!("nothing is in memory") };
    loaded.forget_reads();
    town.engine().load(block, &mut loaded).await.unwrap();
    loaded
}

/// What came between the two looks counts, wherever it stands by the time of the second.
#[test]
fn what_was_written_while_a_block_was_read_is_seen() {
    for seed in seeds(1..5) {
        let _told = Told::seed(seed);
        let (world, env) = SimEnv::fresh(seed);
        world.run(async {
            let mut shape = shape();
            // Nothing stays in memory of what was read.
            (shape.options.cache_bytes, shape.options.row_bytes) = (0, 0);
            let mut town = Town::open(&env, &shape, Map::new()).await;
            for round in 0..4 {
                for number in 0..400 {
                    if round == 0 || number % 3 == round {
                        town.write(number, Some(vec![round as u8; 80]));
                    }
                }
                town.flush().await;
            }
            for number in (0..400).step_by(7) {
                let old = town.map.get(&key(number)).cloned();
                // Nothing changes.
                let loaded = load(&town, number).await;
                assert_eq!(look(&town, number, &loaded).ok().flatten(), old, "key {number}");
                // A write that is in the memtable, then in a table, then in the last level; in the end a delete.
                let loaded = load(&town, number).await;
                town.write(number, Some(b"newer".to_vec()));
                assert_eq!(look(&town, number, &loaded).ok().flatten().as_deref(), Some(&b"newer"[..]));
                town.flush().await;
                let is_newer = |found: Result<Option<Vec<u8>>, _>| match found {
                    Ok(value) => value.as_deref() == Some(&b"newer"[..]),
                    Err(MissingBlock { .. }) => true, // the new table is to be read first
                };
                assert!(is_newer(look(&town, number, &loaded)), "key {number} after a flush");
                let loaded = load(&town, number).await;
                env.sleep(Duration::from_secs(2)).await; // what is due is merged; what it kept is not removed
                assert!(is_newer(look(&town, number, &loaded)), "key {number} after merges");
                let loaded = load(&town, number).await;
                town.write(number, None);
                town.flush().await;
                let found = look(&town, number, &loaded);
                assert!(!matches!(found, Ok(Some(_))), "key {number} comes back");
            }
            town.check(400).await;
        });
        world.kill();
    }
}

/// With what was found out before the first stop, each table's filter is asked and counted once.
#[test]
fn tables_are_not_asked_again() {
    let (world, env) = SimEnv::fresh(9);
    world.run(async {
        let mut shape = shape();
        (shape.options.cache_bytes, shape.options.row_bytes) = (0, 0);
        shape.options.compaction_fan = 16;
        let mut town = Town::open(&env, &shape, Map::new()).await;
        for table in 0..8 {
            // All tables reach over the same keys, and each has some of them.
            (0..200)
                .filter(|number| number % 8 == table)
                .for_each(|number| town.write(number, Some(vec![1; 80])));
            town.flush().await;
        }
        let tables = town.version().members().count() as u64;
        assert!(tables > 3, "{tables} tables");
        let engine = town.engine();
        for number in 8..192 {
            let before = engine.metrics();
            let mut loaded = load(&town, number).await;
            let found = loop {
                match look(&town, number, &loaded) {
                    Ok(found) => break found,
                    // A filter has erred, and its block is loaded in vain.
                    Err(next) => {
                        loaded.forget_reads();
                        engine.load(next, &mut loaded).await.unwrap();
                    }
                }
            };
            assert_eq!(found, Some(vec![1; 80]), "key {number}");
            engine.count_reads(&loaded);
            let after = engine.metrics();
            let done = after.filter_checks - before.filter_checks;
            let (vain, erred) = (
                after.filter_negatives - before.filter_negatives,
                after.filter_false_positives - before.filter_false_positives,
            );
            assert!((1..=tables).contains(&done), "key {number}: {done} filters of {tables}");
            assert_eq!(done, vain + erred + 1, "key {number}");
            assert_eq!((after.cache_misses - before.cache_misses, after.cache_hits), (1 + erred, 0));
        }
    });
    world.kill();
}
