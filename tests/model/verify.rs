//! Compares a whole store with what it must hold: by a scan of everything, and key by key.

use std::collections::BTreeMap;

use atlaskv::base::Lsn;
use atlaskv::env::sim::{SimEnv, SimWorld};
use atlaskv::protocol::Request;
use atlaskv::protocol::binary::{KeyList, encode_request};

use crate::keys::Key;
use crate::pipeline::Landed;
use crate::reference::Live;
use crate::scans::{Scan, Snap, Window};
use crate::shape::Shape;
use crate::store::{Answer, Store};

/// What differs, and of which keys.
#[derive(Debug)]
pub struct Difference {
    pub keys: Vec<Key>,
    pub what: String,
    /// It was refused, as it may be where the disk fails.
    pub is_fault: bool,
}

impl Difference {
    pub fn of(keys: Vec<Key>, what: String) -> Difference {
        Difference { keys, what, is_fault: false }
    }

    /// A request that had another answer than it may have.
    pub fn answered(keys: Vec<Key>, what: &str, answer: &Answer) -> Difference {
        let what = format!("{what} was answered {answer:.200?}");
        Difference { keys, what, is_fault: answer.is_fault() }
    }
}

impl From<(Option<Key>, String)> for Difference {
    fn from((key, what): (Option<Key>, String)) -> Difference {
        Difference::of(key.into_iter().collect(), what)
    }
}

/// What was found in a store: version, time of expiry, value.
pub type Found = BTreeMap<Key, (Lsn, u64, Vec<u8>)>;

/// What surely fits into a frame.
const FRAME_BYTES: usize = 512 << 10;

/// One request by itself.
pub async fn ask(store: &Store, connection: usize, request: &Request<'_>) -> Answer {
    let mut frame = Vec::new();
    encode_request(&mut frame, 0, request);
    store.begin(1);
    store.send(connection, &frame, usize::MAX).await;
    store.answers().await.remove(0)
}

/// Scans everything, while nothing is written. It must be what `snap` says.
pub async fn scan_all(store: &Store, connection: usize, snap: &Snap) -> Result<Found, Difference> {
    let mut scan = Scan::of_all(0, connection);
    scan.may_begin_anew = store.is_short;
    loop {
        match ask(store, connection, &Request::Scan(scan.ask.request())).await {
            Answer::Page { entries, cursor, is_new_snapshot } => {
                if scan.take(entries, cursor, is_new_snapshot, snap)? {
                    break;
                }
            }
            other => return Err(Difference::answered(Vec::new(), "a scan", &other)),
        }
    }
    let found = scan.found.unwrap_or_default();
    Ok(found
        .into_iter()
        .map(|(key, version, expiry_ms, value)| (key.into(), (version, expiry_ms, value)))
        .collect())
}

/// Reads all `keys` by MGET, while nothing is written. They must be what a scan found.
pub async fn read_all(
    store: &Store,
    connection: usize,
    keys: &[Key],
    found: &Found,
) -> Result<(), Difference> {
    let mut left = keys;
    while !left.is_empty() {
        // As many as fit into a frame, there and back.
        let size = |key: &Key| 2 * key.len() + 32 + found.get(key).map_or(0, |(_, _, value)| value.len());
        let mut bytes = 0;
        let fitting = left.iter().take(40).take_while(|key| {
            bytes += size(key);
            bytes < FRAME_BYTES
        });
        let count = fitting.count().max(1);
        let some;
        (some, left) = left.split_at(count);
        let mut list = KeyList::default();
        some.iter().for_each(|key| list.push(key));
        let answer = ask(store, connection, &Request::Mget { keys: list.keys() }).await;
        let Answer::Values(values) = answer else {
            return Err(Difference::answered(some.to_vec(), "MGET", &answer));
        };
        for (key, value) in some.iter().zip(values) {
            let wanted = found.get(key).map(|(version, _, value)| (*version, value.clone()));
            if value != wanted {
                let what = format!("MGET found {value:.80?}, a scan {wanted:.80?}");
                return Err(Difference::of(vec![key.clone()], what));
            }
        }
    }
    Ok(())
}

/// Places in a key's states that what was found may be.
fn matching(window: &Window, key: &Key, found: &Found) -> Vec<usize> {
    let found = found.get(key);
    let is_it = |live: &Option<Live>| match (live, found) {
        (None, None) => true,
        (Some(live), Some((version, expiry_ms, value))) => live.is(*version, *expiry_ms, Some(value)),
        _ => false,
    };
    let states = window[key].iter().enumerate();
    states.filter(|(_, state)| is_it(&state.live)).map(|(place, _)| place).collect()
}

/// Of each batch all is there or nothing, as far as it can be told.
pub fn check_atomic(window: &Window, batches: &[(usize, Vec<Key>)], found: &Found) -> Result<(), Difference> {
    for (op, keys) in batches {
        let (mut with, mut without) = (None, None);
        for key in keys {
            let states = window.get(key).map_or(&[][..], Vec::as_slice);
            let Some(place) = states.iter().rposition(|state| state.by == Some(*op)) else { continue };
            let places = matching(window, key, found);
            if places.iter().all(|at| *at >= place) {
                with = Some(key.clone());
            } else if places.iter().all(|at| *at < place) {
                without = Some(key.clone());
            }
        }
        if let (Some(with), Some(without)) = (with, without) {
            return Err(Difference::of(vec![with, without], format!("batch {op} is there in part")));
        }
    }
    Ok(())
}

/// Opens the copy in `dir`, by a clock that shows `now_ms`, and compares it with what was there when it was made.
pub fn check_copy(
    env: &SimEnv,
    now_ms: u64,
    dir: &str,
    shape: &Shape,
    seed: u64,
    keys: &[Key],
    landed: &Landed,
) -> Result<(), Difference> {
    use atlaskv::env::Env;
    let world = SimWorld::new(seed);
    let copy = SimEnv::new(&world, env.disk().below(dir, &world));
    // It may have been made on a disk that is full.
    copy.disk().set_capacity(u64::MAX);
    world.jump_wall((now_ms - copy.wall_ms()) as i64);
    let result = world.run(async {
        let trouble = |error| Difference::of(Vec::new(), format!("the copy does not open: {error}"));
        let store = Store::open(&copy, shape).await.map_err(trouble)?;
        let found = scan_all(&store, shape.shards - 1, &landed.snap).await?;
        check_atomic(&landed.snap.maybe, &landed.batches, &found)?;
        read_all(&store, 0, keys, &found).await?;
        store.close().await.map_err(trouble)
    });
    world.kill();
    result.map_err(|mut difference| {
        difference.what = format!("in a checkpoint: {}", difference.what);
        difference
    })
}
