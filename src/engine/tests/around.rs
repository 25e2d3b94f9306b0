//! Tables that can't be read, wholly or in one block. What they may hold is refused, by name; all else is served,
//! now and after the next start; and what is written goes on becoming few tables.
//!
//! Before, a flipped bit in the footer of any table, or an error of the device there, was the end of every start;
//! and one damaged block ended all merges of its tablet, so that each flush added a table for ever.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::levels::{Map, Town, key, shape, value};
use super::model::Model;
use super::store::{Shape, Store};
use super::{Told, seeds};
use crate::base::PAGE_SIZE;
use crate::disk::Disk;
use crate::engine::scan::ScanRange;
use crate::engine::sstable::TableError;
use crate::engine::version::Member;
use crate::engine::{EngineError, TransferError, checkpoint};
use crate::env::Env;
use crate::env::sim::{SimEnv, SimWorld};

const NUMBERS: u32 = 800;
const COPY: &str = "copy";

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

fn range(numbers: std::ops::Range<u32>, is_reverse: bool) -> ScanRange {
    ScanRange { start: key(numbers.start), end: key(numbers.end), is_reverse }
}

/// Scans in both directions: with what is between `bounds` they are refused, by the name of `path`; around it they
/// are served.
async fn scan_around(town: &Town, path: &str, (first, last): (u32, u32)) {
    for is_reverse in [false, true] {
        let error = town.scan(ScanRange { is_reverse, ..ScanRange::default() }).await.unwrap_err();
        assert!(error.to_string().contains(path), "{error}");
        assert!(town.scan(range(first..last + 1, is_reverse)).await.is_err());
        for numbers in [0..first, last + 1..NUMBERS] {
            let expected: Map = town
                .map
                .range(key(numbers.start)..key(numbers.end))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            let found = town.scan(range(numbers.clone(), is_reverse)).await;
            assert_eq!(found.unwrap(), expected, "{numbers:?}");
        }
    }
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

/// What is damaged of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Footer,
    Top,
    /// The device does not give the footer.
    Device,
    /// The file is shorter than a table can be.
    Rest,
}

fn damage(env: &SimEnv, rng: &mut fastrand::Rng, path: &str, part: Part) {
    let bytes = env.disk().peek(path).unwrap();
    let len = bytes.len();
    match part {
        Part::Footer => flip(env, path, len - PAGE_SIZE + rng.usize(..100), rng.u8(..8)),
        Part::Top => flip(env, path, len - 2 * PAGE_SIZE + rng.usize(..100), rng.u8(..8)),
        Part::Device => env.disk().fail("read", path, 0, libc::EIO, false),
        Part::Rest => env.disk().damage(path, bytes[..PAGE_SIZE].to_vec()),
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
fn a_table_that_can_t_be_opened_refuses_its_own_keys_and_no_start() {
    for seed in seeds(1..4) {
        for which in [Victim::Upper, Victim::Last] {
            for part in [Part::Footer, Part::Top, Part::Device, Part::Rest] {
                let _told = Told::seed(seed);
                let _told = Told(format!("{which:?} {part:?}"));
                without_a_table(seed, which, part);
            }
        }
    }
}

fn without_a_table(seed: u64, which: Victim, part: Part) {
    let (world, env) = SimEnv::fresh(seed);
    let (path, map, expected) = world.run(async {
        let mut rng = fastrand::Rng::with_seed(seed);
        let town = before(&env, &mut rng).await;
        let victim = which.of(&town);
        let (path, file, entries) = (path(&victim), victim.table.file(), victim.meta().entries);
        let bounds = (number(&victim.meta().smallest), number(&victim.meta().largest));
        let mut expected = hidden(&victim, which);
        assert!(expected.len() > 30 && !expected.contains(&0), "{expected:?}");
        let tables = town.store.metrics().table_entries;
        drop(victim);
        let map = close(town).await;
        damage(&env, &mut rng, &path, part);
        let mut town = Town::open(&env, &quiet(), map).await;
        // It is told once, and everyone knows what it may hold.
        let metrics = town.store.metrics();
        assert_eq!((metrics.start_damage, metrics.table_entries), (1, tables));
        assert_eq!(read_all(&town, &path).await, expected);
        assert!(town.store.metrics().read_damage > 0);
        let error = town.get(&key(expected[0])).await.unwrap_err();
        match (&error, part) {
            (EngineError::Table(TableError::Disk(error)), Part::Device) => assert!(error.offset.is_some()),
            (EngineError::Table(TableError::Corrupt { .. }), _) => assert_ne!(part, Part::Device),
            _ => panic!("{error}"),
        }
        scan_around(&town, &path, bounds).await;
        assert!(town.store.metrics().scan_damage > 0);
        // What is written there counts at once, and still does when it is in a table of its own.
        for number in expected.drain(..20) {
            town.write(number, (number % 3 > 0).then(|| value(&mut rng)));
        }
        assert_eq!(read_all(&town, &path).await, expected);
        town.flush().await;
        assert_eq!(read_all(&town, &path).await, expected);
        // The tablet neither moves nor splits, and serves on.
        let id = town.engine().tablet(town.local).id;
        let slots = town.store.find(id).unwrap().2;
        if part != Part::Device {
            // There the disk would give it by another name.
            let model = RefCell::new(Model::default());
            let split = town.store.split(id, slots.first() + 1, &model, async || {}).await.unwrap_err();
            assert!(
                matches!(&split, TransferError::Failed(_)) && split.to_string().contains("sst/"),
                "{split}"
            );
        }
        let take = town.engine().prepare_to_take(id, &town.engine().tables_of(id)).await.unwrap_err();
        assert!(take.to_string().contains(&path), "{take}");
        town.engine().forget_arriving().await;
        assert_eq!(read_all(&town, &path).await, expected);
        // It is as bad, and no worse, after the next start, under which merges go on.
        let mut town = reopen(&env, &shape(), town).await;
        for _ in 0..30 {
            for _ in 0..40 {
                let number = rng.u32(..NUMBERS);
                if !expected.contains(&number) {
                    town.write(number, (rng.u8(..6) > 0).then(|| value(&mut rng)));
                }
            }
            town.flush().await;
        }
        town.store.quiesce().await;
        let metrics = town.store.metrics();
        assert_eq!((metrics.start_damage, metrics.compaction_failures), (1, 0), "no merge tried to read it");
        assert!(metrics.compactions > 3 && metrics.upper_tables <= 16, "{metrics:?}");
        assert_eq!((metrics.compaction_debt_bytes, metrics.slowdown_permille), (0, 0));
        assert_eq!(read_all(&town, &path).await, expected);
        let version = town.version();
        let member = version.members().find(|member| member.table.file() == file);
        assert_eq!(member.expect("it is neither merged nor removed").meta().entries, entries);
        drop(version);
        copy(&town).await;
        let copied = (path.clone(), town.map.clone(), expected.clone());
        let mut town = reopen(&env, &shape(), town).await;
        assert_eq!(read_all(&town, &path).await, expected);
        if part == Part::Device {
            // The device thinks better of it.
            env.disk().heal();
            town = reopen(&env, &shape(), town).await;
            assert_eq!(town.store.metrics().start_damage, 0);
            town.check(NUMBERS).await;
        } else {
            // Who can do without what it held deletes that, and the table goes.
            let (first, last) = bounds;
            town.engine().delete_range(town.local, &key(first), &key(last + 1)).unwrap();
            town.map.retain(|key, _| !(first..=last).contains(&number(key)));
            assert!(read_all(&town, &path).await.is_empty(), "no table is asked for what is gone");
            town.flush().await;
            env.sleep(Duration::from_secs(5)).await;
            town.store.quiesce().await;
            assert!(env.disk().peek(&path).is_none(), "it hides nothing any more");
            town.check(NUMBERS).await;
            town = reopen(&env, &shape(), town).await;
            assert_eq!(town.store.metrics().start_damage, 0);
            town.check(NUMBERS).await;
        }
        town.store.close().await.unwrap();
        copied
    });
    world.kill();
    // The checkpoint has the table as well, and is served as the store was. Its device is a good one.
    let world = SimWorld::new(seed + 1);
    let env = SimEnv::new(&world, env.disk().below(COPY, &world));
    world.run(async {
        let town = Town::open(&env, &shape(), map).await;
        let refused = read_all(&town, &path).await;
        assert_eq!(refused, if part == Part::Device { Vec::new() } else { expected });
        town.store.close().await.unwrap();
    });
    world.kill();
}

async fn copy(town: &Town) {
    let (env, engine) = (&town.store.env, town.engine());
    checkpoint::prepare(env, COPY).await.unwrap();
    engine.seal_checkpoint();
    let captured = engine.captured().await.unwrap();
    engine.link_checkpoint(&captured, COPY).await.unwrap();
    checkpoint::complete(env, COPY, vec![captured.state]).await.unwrap();
}

#[test]
fn a_table_that_is_missing_is_refused() {
    let (world, env) = SimEnv::fresh(1);
    world.run(async {
        let mut rng = fastrand::Rng::with_seed(1);
        let town = before(&env, &mut rng).await;
        let path = path(&Victim::Upper.of(&town));
        close(town).await;
        env.disk().remove(&path).await.unwrap();
        let error = Store::open_alone(&env, &shape()).await.err().expect("nobody knows what is lost");
        assert!(error.to_string().contains(&path), "{error}");
    });
    world.kill();
}

/// Partitions are read at a start if there is room for them. One that the device does not give is no end of it.
#[test]
fn a_partition_that_the_device_does_not_give_refuses_no_start() {
    for seed in seeds(1..4) {
        let _told = Told::seed(seed);
        let (world, env) = SimEnv::fresh(seed);
        world.run(async {
            let mut rng = fastrand::Rng::with_seed(seed);
            let town = before(&env, &mut rng).await;
            let path = path(&[Victim::Upper, Victim::Last][rng.usize(..2)].of(&town));
            let map = close(town).await;
            // Behind footer and top.
            env.disk().fail("read", &path, 2, libc::EIO, false);
            let town = Town::open(&env, &quiet(), map).await;
            assert_eq!(town.store.metrics().start_damage, 0);
            assert!(read_all(&town, &path).await.len() > 30);
            env.disk().heal();
            town.check(NUMBERS).await;
            town.store.close().await.unwrap();
        });
        world.kill();
    }
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
