//! Scans of several shards, while keys are written, memtables flushed, and tablets move and split.
//!
//! `ATLASKV_SCANS_SEED=17 cargo test --lib shard::tests::scans` repeats a seed; `100..900` looks further.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::store::{Answer, Connection, Store};
use crate::disk::sim::SimDisk;
use crate::env::sim::{SimEnv, SimWorld};
use crate::env::{Env, Gate, Queue};
use crate::error::Class;
use crate::protocol::binary::{Cursor, OpList};
use crate::protocol::{Condition, Durability, Expiry, Request, ScanRequest};
use crate::shard::topology::COORDINATOR;

fn seeds(usual: std::ops::Range<u64>) -> std::ops::Range<u64> {
    match std::env::var("ATLASKV_SCANS_SEED") {
        Ok(text) => {
            let number = |text: &str| text.parse().expect("ATLASKV_SCANS_SEED is a number, or two with ..");
            match text.split_once("..") {
                Some((first, end)) => number(first)..number(end),
                None => number(&text)..number(&text) + 1,
            }
        }
        Err(_) => usual,
    }
}

/// Keys that are written once, before any scan, and stay.
type Kept = BTreeMap<Vec<u8>, Vec<u8>>;

fn kept(number: usize) -> Vec<u8> {
    match number % 5 {
        0 => format!("{{tag-{}}}:kept-{number:04}", number % 3).into_bytes(),
        _ => format!("k-{number:04}-kept").into_bytes(),
    }
}

fn changing(rng: &mut fastrand::Rng) -> Vec<u8> {
    let number = rng.u32(..400);
    match number % 5 {
        0 => format!("{{tag-{}}}:{number:04}", number % 3).into_bytes(),
        _ => format!("k-{number:04}").into_bytes(),
    }
}

/// Two keys of one slot that are always written together, with a number that grows.
const PAIRS: usize = 8;

fn pair(number: usize) -> [Vec<u8>; 2] {
    ["a", "z"].map(|end| format!("p-{end}-{{pair-{number}}}").into_bytes())
}

/// By pair, the last number whose write was answered.
type Answered = Rc<[Cell<u64>; PAIRS]>;

/// What a scan has come to.
struct Scanned {
    entries: Vec<(Vec<u8>, Vec<u8>)>,
    was_renewed: bool,
}

/// A whole scan, page by page, with random pages and pauses. Refusals that pass are asked again, and now and then
/// a page is asked for twice, as a client does whose connection broke.
async fn scan(
    store: &Store,
    connection: &Connection,
    rng: &mut fastrand::Rng,
    (start, end, is_reverse): (&[u8], &[u8], bool),
) -> Scanned {
    let mut scanned = Scanned { entries: Vec::new(), was_renewed: false };
    let mut cursor = None;
    let mut refusals = 0;
    // Half of them are one page.
    let is_short = rng.bool();
    loop {
        let request = ScanRequest {
            start,
            end,
            is_reverse,
            entries_max: if is_short { 0 } else { rng.u32(..60) },
            bytes_max: if is_short || rng.bool() { 0 } else { rng.u32(1..4000) },
            cursor: cursor.as_deref().and_then(Cursor::decode),
            ..ScanRequest::default()
        };
        let asked = connection.send(store, &Request::Scan(request)).await;
        match connection.answer(asked).await {
            Answer::Page(entries, next, is_new) => {
                scanned.was_renewed |= is_new;
                if next.is_some() && rng.u8(..30) == 0 {
                    continue; // as if it had been lost
                }
                scanned.entries.extend(entries);
                refusals = 0;
                let Some(next) = next else { return scanned };
                cursor = Some(next);
            }
            Answer::Refused(code) if code.class() == Class::Later && refusals < 100 => {
                refusals += 1;
                store.sleep(Duration::from_millis(1)).await;
            }
            other => panic!("{other:?}"),
        }
        if rng.u8(..3) == 0 {
            store.sleep(Duration::from_micros(rng.u64(..2000))).await;
        }
    }
}

/// Scans some ranges and compares what must be there.
async fn scan_on(
    store: Rc<Store>,
    connection: Connection,
    kept: Rc<Kept>,
    answered: Answered,
    rounds: usize,
    seed: u64,
) {
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..rounds {
        let (start, end) = match rng.u8(..4) {
            0 => (b"{tag-1}".to_vec(), b"{tag-1~".to_vec()),
            1 => (b"k-0100".to_vec(), b"k-0300".to_vec()),
            _ => (Vec::new(), Vec::new()),
        };
        let is_reverse = rng.bool();
        let before: Vec<u64> = answered.iter().map(Cell::get).collect();
        let Scanned { mut entries, was_renewed } =
            scan(&store, &connection, &mut rng, (&start, &end, is_reverse)).await;
        if is_reverse {
            entries.reverse();
        }
        let is_ordered = entries.windows(2).all(|pair| pair[0].0 < pair[1].0);
        assert!(is_ordered, "seed {seed}: keys come in order, each once");
        if start.is_empty() {
            let all: Kept = entries.iter().cloned().collect();
            for (number, least) in before.into_iter().enumerate() {
                let [a, z] = pair(number).map(|key| {
                    let value = all.get(&key).and_then(|value| value[..].try_into().ok());
                    value.map_or(0, u64::from_le_bytes)
                });
                assert!(
                    a >= least && z >= least,
                    "seed {seed}: {a} and {z}, but {least} was answered before"
                );
                assert!(a == z || was_renewed, "seed {seed}: {a} and {z} were never there together");
            }
        }
        let found: Kept = entries.into_iter().filter(|(key, _)| kept.contains_key(key)).collect();
        let is_in = |key: &Vec<u8>| *key >= start && (end.is_empty() || *key < end);
        let wanted: Kept =
            kept.iter().filter(|(key, _)| is_in(key)).map(|(k, v)| (k.clone(), v.clone())).collect();
        assert!(found == wanted, "seed {seed}: {} of {} keys were found", found.len(), wanted.len());
    }
}

/// Writes and deletes until told to stop.
async fn write_on(
    store: Rc<Store>,
    connection: Connection,
    answered: Answered,
    over: Rc<Cell<bool>>,
    seed: u64,
) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let (condition, durability) = (Condition::None, Durability::Default);
    while !over.get() {
        let mut asked = Vec::new();
        for _ in 0..rng.usize(1..10) {
            let (key, value) = (changing(&mut rng), vec![7; rng.usize(..300)]);
            let request = match rng.u8(..4) {
                0 => Request::Delete { key: &key, condition, durability },
                _ => Request::Set { key: &key, value: &value, expiry: Expiry::Never, condition, durability },
            };
            asked.push(connection.send(&store, &request).await);
        }
        for id in asked {
            let answer = connection.answer(id).await;
            assert!(matches!(answer, Answer::Written(_) | Answer::Absent), "seed {seed}: {answer:?}");
        }
        let number = rng.usize(..PAIRS);
        let next = answered[number].get() + 1;
        let mut ops = OpList::default();
        pair(number).iter().for_each(|key| ops.put(key, &next.to_le_bytes()));
        let batch = connection.send(&store, &Request::Batch { ops: ops.ops(), durability }).await;
        assert!(matches!(connection.answer(batch).await, Answer::Written(_)), "seed {seed}");
        answered[number].set(next);
        store.sleep(Duration::from_micros(rng.u64(..1000))).await;
    }
}

async fn load(store: &Store, count: usize) -> Rc<Kept> {
    let mut map = Kept::new();
    for number in 0..count {
        let value = vec![number as u8; number % 200];
        assert!(matches!(store.set(&kept(number), &value, Expiry::Never).await, Answer::Written(_)));
        map.insert(kept(number), value);
        if number == count / 2 {
            store.flush().await;
        }
    }
    Rc::new(map)
}

#[test]
fn what_stays_is_found_once_while_all_else_changes_and_moves() {
    let (moves, splits) = (Cell::new(0), Cell::new(0));
    for seed in seeds(1..9) {
        let world = SimWorld::new(seed);
        let env = SimEnv::new(&world, SimDisk::new(&world));
        let mut rng = fastrand::Rng::with_seed(seed);
        let shards = 1 + seed as usize % 3;
        world.run(async {
            let store = Rc::new(Store::open(&env, shards).await);
            let kept = load(&store, 400).await;
            let (scanning, writing, over) = (Gate::new(), Gate::new(), Rc::new(Cell::new(false)));
            let answered = Answered::default();
            for number in 0..4 {
                let answered = answered.clone();
                let (store, kept, guard) = (store.clone(), kept.clone(), scanning.enter());
                let (connection, seed) = (store.connect(number % shards), rng.u64(..));
                env.spawn(Queue::Foreground, async move {
                    scan_on(store, connection, kept, answered, 40, seed).await;
                    drop(guard);
                });
            }
            let (writer, guard, ended) = (store.clone(), writing.enter(), over.clone());
            let (connection, writer_seed) = (store.connect(0), rng.u64(..));
            env.spawn(Queue::Foreground, async move {
                write_on(writer, connection, answered, ended, writer_seed).await;
                drop(guard);
            });
            let (ended, waited) = (over.clone(), scanning.clone());
            env.spawn(Queue::Foreground, async move {
                waited.empty().await;
                ended.set(true);
            });
            let coordinator = &store.shards[COORDINATOR];
            while !over.get() {
                let all = coordinator.survey().await.unwrap();
                let tablet = all[rng.usize(..all.len())];
                if rng.u8(..5) == 0 && tablet.slots.count() > 1 && all.len() < 30 {
                    splits.set(splits.get() + 1);
                    coordinator.split_tablet(tablet.id, None).await.unwrap();
                } else if shards > 1 {
                    moves.set(moves.get() + 1);
                    coordinator.move_tablet(tablet.id, rng.usize(..shards)).await.unwrap();
                }
                if rng.u8(..6) == 0 {
                    store.flush().await;
                }
                store.sleep(Duration::from_micros(rng.u64(..3000))).await;
            }
            writing.empty().await;
            Rc::into_inner(store).expect("all have ended").close().await;
        });
        world.kill();
    }
    assert!(moves.get() > splits.get() && splits.get() > 0, "{moves:?} {splits:?}");
}

/// A split ends snapshots, also of a scan amid a page, and another takes over. Should that not get anywhere before
/// the page is full, the cursor once named no key: with its session gone, the scan had begun from the start.
#[test]
fn a_cursor_is_where_its_page_ended_whatever_snapshot_that_had() {
    let renewed = Cell::new(0);
    for seed in seeds(1..21) {
        let world = SimWorld::new(seed);
        let env = SimEnv::new(&world, SimDisk::new(&world));
        let mut rng = fastrand::Rng::with_seed(seed);
        world.run(async {
            let store = Store::open(&env, 1).await;
            // More than the cache holds: pages wait for blocks all the time.
            for number in 0..200 {
                store.set(&kept(number), &[7; 2000], Expiry::Never).await;
            }
            store.flush().await;
            let connection = store.connect(0);
            let mut cursor: Option<Vec<u8>> = None;
            let mut count = 0;
            loop {
                let page = ScanRequest {
                    entries_max: 1 + rng.u32(..4),
                    cursor: cursor.as_deref().and_then(Cursor::decode),
                    ..ScanRequest::default()
                };
                let asked = connection.send(&store, &Request::Scan(page)).await;
                let split = async {
                    store.sleep(Duration::from_micros(rng.u64(..300))).await;
                    let all = store.shards[0].survey().await.unwrap();
                    let tablet = all[rng.usize(..all.len())];
                    if all.len() < 60 && tablet.slots.count() > 1 {
                        store.shards[0].split_tablet(tablet.id, None).await.unwrap();
                    }
                };
                let (answer, ()) = futures_lite::future::zip(connection.answer(asked), split).await;
                let Answer::Page(entries, next, is_new) = answer else { panic!("seed {seed}: {answer:?}") };
                renewed.set(renewed.get() + u32::from(is_new));
                count += entries.len();
                let Some(next) = next else { break };
                let passed = Cursor::decode(&next).unwrap().key;
                let last = entries.last().map_or(&b""[..], |(key, _)| key);
                assert!(
                    passed >= last,
                    "seed {seed}: the page ends with {last:?}, its cursor is at {passed:?}"
                );
                cursor = Some(next);
            }
            assert_eq!(count, 200, "seed {seed}");
            store.close().await;
        });
        world.kill();
    }
    assert!(renewed.get() > 20, "{renewed:?} pages have a new snapshot");
}

/// A session that nobody asks for ends; its scan goes on, as of a later moment, and says so. One that is asked for
/// in time does not change.
#[test]
fn a_session_lasts_a_minute_and_its_snapshot_does_not_change() {
    let world = SimWorld::new(3);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    world.run(async {
        let store = Store::open(&env, 2).await;
        let kept = load(&store, 1000).await;
        let connection = store.connect(1);
        for pause_s in [40, 200] {
            let first = ScanRequest { entries_max: 30, bytes_max: 20_000, ..ScanRequest::default() };
            let asked = connection.send(&store, &Request::Scan(first)).await;
            let Answer::Page(mut found, Some(cursor), false) = connection.answer(asked).await else {
                panic!()
            };
            assert_eq!(found.len(), 30);
            assert!(store.metrics().snapshots > 0);
            for key in kept.keys() {
                store.delete(key).await;
            }
            store.flush().await;
            store.sleep(Duration::from_secs(pause_s)).await;
            let rest = ScanRequest { cursor: Cursor::decode(&cursor), ..ScanRequest::default() };
            let asked = connection.send(&store, &Request::Scan(rest)).await;
            let Answer::Page(more, None, is_new) = connection.answer(asked).await else { panic!() };
            found.extend(more);
            if pause_s == 40 {
                assert!(!is_new && found.iter().map(|(key, _)| key).eq(kept.keys()));
            } else {
                assert!(is_new);
                assert_eq!(found.len(), 30, "what was deleted meanwhile is gone");
            }
            for (key, value) in kept.iter() {
                store.set(key, value, Expiry::Never).await;
            }
        }
        assert_eq!(store.metrics().snapshots, 0);
        store.close().await;
    });
}
