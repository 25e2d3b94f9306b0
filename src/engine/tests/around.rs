//! Tables of which a block can't be read. What they may hold is refused, by name; all else is served,
//! now and after the next start; and what is written goes on becoming few tables.
//!
//! Before, one damaged block ended all merges of its tablet, so that each flush added a table for ever.

use std::rc::Rc;
use std::time::Duration;

use super::levels::{Map, Town, key, shape, value};
use super::store::Shape;
use super::{Told, seeds};
use crate::engine::EngineError;
use crate::engine::version::Member;
use crate::env::Env;
use crate::env::sim::SimEnv;

const NUMBERS: u32 = 800;

/// One in which nothing is merged.
fn quiet() -> Shape {
    let mut quiet = shape();
    (quiet.options.compaction_fan, quiet.options.last_table_bytes) = (16, 1 << 30);
    quiet.options.level_ratio = 1;
    quiet
}

/// Closes a town. What it holds goes on.
async fn close(town: Town) -> Map {
    let Town { store, map, .. } = town;
    store.close().await.unwrap();
    map
}

/// Opens another one on the same disk.
async fn reopen(env: &SimEnv, shape: &Shape, town: Town) -> Town {
    let map = close(town).await;
    Town::open(env, shape, map).await
}

/// A last level of several tables, and above it, newest first, tables of the numbers 400 to 500, 100 to 300, and 200
/// to 600 in parts.
async fn before(env: &SimEnv, rng: &mut fastrand::Rng) -> Town {
    let mut town = Town::open(env, &shape(), Map::new()).await;
    for number in 0..NUMBERS {
        town.write(number, Some(value(rng)));
        if number % 100 == 99 {
            town.flush().await;
        }
    }
    town.store.quiesce().await;
    let mut town = reopen(env, &quiet(), town).await;
    for (numbers, step) in [(200..600, 7), (100..300, 1), (400..500, 1)] {
        for number in numbers.step_by(step) {
            let value = value(rng);
            town.write(number, (rng.u8(..6) > 0).then_some(value));
        }
        town.flush().await;
    }
    let version = town.version();
    assert_eq!((version.upper().len(), version.last().len()), (3, 8));
    town
}

/// The number of a key of the town.
fn number(key: &[u8]) -> u32 {
    std::str::from_utf8(&key[b"{town}".len()..]).unwrap().parse().unwrap()
}

fn path(member: &Member<SimEnv>) -> String {
    member.table.name().path()
}

fn flip(env: &SimEnv, path: &str, at: usize, bit: u8) {
    let mut bytes = env.disk().peek(path).unwrap();
    bytes[at] ^= 1 << bit;
    env.disk().damage(path, bytes);
}

/// Reads every number: what is answered is right, and what is refused is refused by the name of `path`. Which those
/// are.
async fn read_all(town: &Town, path: &str) -> Vec<u32> {
    let mut refused = Vec::new();
    for number in 0..NUMBERS {
        match town.get(&key(number)).await {
            Ok(found) => assert_eq!(found.as_ref(), town.map.get(&key(number)), "key {number}"),
            Err(error) => {
                assert!(matches!(&error, EngineError::Table(_)), "{error}");
                assert!(error.to_string().contains(path), "{path} is damaged, but: {error}");
                refused.push(number);
            }
        }
    }
    refused
}

/// Which table is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// The one above the last level with others in front and behind.
    Upper,
    /// One of the last level that has others on both sides.
    Last,
}

impl Victim {
    fn of(self, town: &Town) -> Rc<Member<SimEnv>> {
        let version = town.version();
        match self {
            Victim::Upper => version.upper()[1].clone(),
            Victim::Last => version.last()[5].clone(),
        }
    }
}

/// Numbers that only the victim, or what is older, has: those within its bounds that nothing newer answers.
fn hidden(victim: &Member<SimEnv>, which: Victim) -> Vec<u32> {
    let (first, last) = (number(&victim.meta().smallest), number(&victim.meta().largest));
    let is_newer = |number: &u32| match which {
        Victim::Upper => false, // the one in front shares no keys with it
        Victim::Last => {
            (100..300).contains(number)
                || (400..500).contains(number)
                || (200..600).step_by(7).any(|of_oldest| of_oldest == *number)
        }
    };
    (first..=last).filter(|number| !is_newer(number)).collect()
}

#[test]
fn merges_go_on_around_a_damaged_block() {
    for seed in seeds(1..6) {
        for which in [Victim::Upper, Victim::Last] {
            let _told = Told::seed(seed);
            let _told = Told(format!("{which:?}"));
            let (world, env) = SimEnv::fresh(seed);
            world.run(around_a_block(&env, seed, which));
            world.kill();
        }
    }
}

async fn around_a_block(env: &SimEnv, seed: u64, which: Victim) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let town = before(env, &mut rng).await;
    let victim = which.of(&town);
    let (path, file) = (path(&victim), victim.table.file());
    // Keys of the first block that nothing newer has.
    let spared: Vec<u32> = hidden(&victim, which).into_iter().take(2).collect();
    drop(victim);
    let mut shape = shape();
    shape.options.cache_bytes = 1;
    let map = close(town).await;
    flip(env, &path, 30, rng.u8(..8));
    let mut town = Town::open(env, &shape, map).await;
    let (mut most, mut failures) = (0, 0);
    for round in 0..80 {
        if round == 40 {
            // The next start knows nothing of it, and finds it again.
            assert_eq!(town.store.metrics().merge_damage, 1, "a place counts once");
            failures += town.store.metrics().compaction_failures;
            town = reopen(env, &shape, town).await;
        }
        for _ in 0..40 {
            let number = rng.u32(..NUMBERS);
            if !spared.contains(&number) {
                town.write(number, (rng.u8(..6) > 0).then(|| value(&mut rng)));
            }
        }
        town.flush().await;
        if round % 8 == 7 {
            // Longer than an idle shard is left alone.
            env.sleep(Duration::from_secs(round % 3 * 2)).await;
            town.store.quiesce().await;
            most = most.max(town.store.metrics().upper_tables);
            let refused = read_all(&town, &path).await;
            assert!(spared.iter().all(|number| refused.contains(number)), "{spared:?}: {refused:?}");
            assert!(refused.len() < 200, "{refused:?}");
        }
    }
    failures += town.store.metrics().compaction_failures;
    assert_eq!(failures, 2, "each start meets it once, and no more");
    // Of 80 flushes: 5 tiers of up to 2 tables, in front of it and behind it, and itself.
    assert!(most <= 21, "{most} tables are above the last level");
    let metrics = town.store.metrics();
    assert!(metrics.compactions > 10, "{metrics:?}");
    assert_eq!((metrics.compaction_debt_bytes, metrics.slowdown_permille), (0, 0));
    let version = town.version();
    assert!(version.members().any(|member| member.table.file() == file), "it is neither merged nor removed");
    drop(version);
    town.store.close().await.unwrap();
}
