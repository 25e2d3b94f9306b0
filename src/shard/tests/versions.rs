//! A key's version never comes again: whatever removed the key, wherever its tablet went, after each restart.

use std::time::Duration;

use super::store::{Answer, Store};
use crate::base::Lsn;
use crate::disk::sim::SimDisk;
use crate::env::Env;
use crate::env::sim::{SimEnv, SimWorld};
use crate::protocol::{Deadline, DeleteRange, Expiry, Request};
use crate::shard::topology::COORDINATOR;
use crate::slot::Slot;

/// Keys of several tablets, and two of one slot.
const KEYS: [&[u8]; 6] = [b"a", b"b", b"{c}1", b"{c}2", b"some key", b"\xFF"];

/// Versions that each key has had, ascending.
struct Seen(Vec<Vec<Lsn>>);

impl Seen {
    fn note(&mut self, key: usize, version: Lsn, after: &str) {
        let seen = &mut self.0[key];
        let last = seen.last().copied().unwrap_or(Lsn::ZERO);
        assert!(version > last, "key {key} after {after}: version {version}, and it had {last}");
        seen.push(version);
    }

    /// Writes every key twice, and reads it.
    async fn write(&mut self, store: &Store, after: &str) {
        for (number, key) in KEYS.iter().enumerate() {
            for value in [b"1", b"2"] {
                self.note(number, store.set(key, value, Expiry::Never).await.version(), after);
            }
            let last = *self.0[number].last().unwrap();
            assert_eq!(store.get(key).await, Answer::Value(b"2".to_vec(), last), "after {after}");
        }
    }
}

async fn remove_range(store: &Store, start: &[u8], end: &[u8]) {
    let range = DeleteRange { start, end, ..DeleteRange::default() };
    assert_eq!(store.ask(&Request::DeleteRange(range)).await, Answer::Done);
}

/// Everything that may come between two versions.
async fn live(store: &Store, world: &SimWorld, seen: &mut Seen) {
    seen.write(store, "a start").await;
    for (number, key) in KEYS.iter().enumerate() {
        seen.note(number, store.delete(key).await.version(), "a delete");
    }
    seen.write(store, "a delete").await;
    store.flush().await;
    for (number, key) in KEYS.iter().enumerate() {
        seen.note(number, store.delete(key).await.version(), "a flush");
    }
    store.flush().await;
    seen.write(store, "a delete that was flushed").await;
    remove_range(store, b"a", b"z").await;
    seen.write(store, "a range delete").await;
    remove_range(store, b"", b"").await;
    store.flush().await;
    // Nothing is left, not even of the range delete.
    store.sleep(Duration::from_secs(5)).await;
    seen.write(store, "a range delete of everything").await;
    for (number, key) in KEYS.iter().enumerate() {
        seen.note(number, store.set(key, b"3", Expiry::Set(Deadline::In(1000))).await.version(), "an expiry");
    }
    world.jump_wall(10_000);
    assert_eq!(store.get(KEYS[0]).await, Answer::Absent);
    store.flush().await;
    seen.write(store, "an expiry").await;
    let coordinator = &store.shards[COORDINATOR];
    for key in KEYS {
        let slot = Slot::of_key(key);
        let all = coordinator.survey().await.unwrap();
        let tablet = all.iter().find(|tablet| tablet.slots.contains(slot)).unwrap();
        coordinator.split_tablet(tablet.id, None).await.unwrap();
    }
    seen.write(store, "a split").await;
    for _ in 0..2 {
        for tablet in coordinator.survey().await.unwrap() {
            coordinator.move_tablet(tablet.id, (tablet.shard + 1) % store.shards.len()).await.unwrap();
        }
        seen.write(store, "a move").await;
    }
    for (number, key) in KEYS.iter().enumerate() {
        seen.note(number, store.delete(key).await.version(), "a move");
    }
}

#[test]
fn versions_of_a_key_never_come_again() {
    for seed in 1..4 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut world, mut env) = SimEnv::fresh(seed);
        let mut seen = Seen(vec![Vec::new(); KEYS.len()]);
        for shards in [2, 3, 1, 2] {
            world.run(async {
                let store = Store::open(&env, shards).await;
                live(&store, &world, &mut seen).await;
                // Stopped, or killed with what was answered on disk.
                if shards == 2 {
                    store.close().await;
                }
            });
            world.kill();
            let next = SimWorld::new(rng.u64(..));
            let disk: SimDisk = env.disk().crash(&next, &mut rng.fork(), rng.u32(..=100));
            let seen_ms = env.wall_ms();
            (world, env) = (next.clone(), SimEnv::new(&next, disk));
            world.jump_wall((seen_ms - env.wall_ms()) as i64 + 1000);
        }
    }
}
