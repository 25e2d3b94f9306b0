//! Writers that merges don't keep up with: they wait, in turns, and go on by themselves. Not for merges that can't be.

use std::time::Duration;

use super::store::{Shape, Store};
use crate::base::{Op, OpKind};
use crate::disk::sim::SimDisk;
use crate::engine::Room;
use crate::env::Env;
use crate::env::sim::{SimEnv, SimWorld};
use crate::slot::Slot;

const KEY: &[u8] = b"key";
const VALUE: &[u8] = &[7; 97];

#[test]
fn slowed_writers_go_on_in_turns_at_the_pace_of_merges() {
    let world = SimWorld::new(1);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    world.run(async {
        let mut shape = Shape::small(1);
        // Nobody waits for the log.
        shape.options.segment_bytes = 16 << 20;
        let store = Store::open_alone(&env, &shape).await.unwrap();
        let (engine, local) = (&store.engines[0], store.slots.local(Slot::of_key(KEY)));
        let op = Op { kind: OpKind::Put, key: KEY, value: VALUE, expiry_ms: 0 };
        let bytes = (KEY.len() + VALUE.len()) as u64;
        // As if so much was due: a byte costs what writing it six times does, at 10 ns each.
        engine.metrics.slowdown_permille.set(1000);
        let (began, mut written, mut waits) = (env.now(), 0, 0);
        while waits < 20 {
            if engine.room(true, 1 << 10).unwrap() == Room::Yes {
                engine.write(local, &[op], &[engine.hash(KEY)]).unwrap();
                written += bytes;
            } else {
                let since = env.now();
                engine.changed().until(|| engine.room(true, 1 << 10).unwrap() == Room::Yes).await;
                assert!(env.now() - since <= Duration::from_millis(12), "no turn is long");
                waits += 1;
            }
        }
        let (took, due) = ((env.now() - began).as_nanos() as u64, written * 60);
        assert!(due <= took + 15_000_000, "{written} bytes in {took} ns are too many");
        assert!(due >= took / 2, "{written} bytes in {took} ns are too few");
        assert!(written / bytes >= waits * 400, "each turn is one of many writes: {}", written / bytes);
        let counted = Duration::from_micros(engine.metrics.slowdown_micros.get());
        assert!(counted >= (env.now() - began) / 2, "{counted:?} were counted");
        // Once merges are up to date nobody waits any more.
        while engine.room(true, 1 << 10).unwrap() == Room::Yes {
            engine.write(local, &[op], &[engine.hash(KEY)]).unwrap();
        }
        engine.metrics.slowdown_permille.set(0);
        assert_eq!(engine.room(true, 1 << 10).unwrap(), Room::Yes);
        store.close().await.unwrap();
    });
}

#[test]
fn a_tablet_that_can_t_be_merged_slows_nobody() {
    let world = SimWorld::new(2);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    world.run(async {
        let mut shape = Shape::small(1);
        (shape.options.memtable_bytes, shape.options.segment_bytes) = (1 << 20, 4 << 20);
        let store = Store::open_alone(&env, &shape).await.unwrap();
        let (engine, local) = (&store.engines[0], store.slots.local(Slot::of_key(KEY)));
        // As after a merge that failed.
        let tablet = engine.tablet(local);
        tablet.no_merge_until.set(Duration::MAX);
        let mut rng = fastrand::Rng::with_seed(2);
        let (upper, debt) = (&engine.metrics.upper_bytes, &engine.metrics.compaction_debt_bytes);
        while upper.get() < 8 << 20 {
            let value: Vec<u8> = (0..16 << 10).map(|_| rng.u8(..)).collect();
            let key = format!("{{key}}{}", rng.u64(..));
            let op = Op { kind: OpKind::Put, key: key.as_bytes(), value: &value, expiry_ms: 0 };
            engine.changed().until(|| engine.room(true, 32 << 10).unwrap() == Room::Yes).await;
            engine.write(local, &[op], &[engine.hash(key.as_bytes())]).unwrap();
        }
        assert_eq!((debt.get(), engine.metrics.slowdown_permille.get()), (0, 0));
        // What may be merged counts, and is merged.
        tablet.no_merge_until.set(Duration::ZERO);
        engine.count_debt(&tablet);
        assert!(debt.get() > 4 << 20 && engine.metrics.slowdown_permille.get() > 1000, "{}", debt.get());
        engine.changed().notify();
        engine.changed().until(|| debt.get() == 0 && engine.metrics.slowdown_permille.get() == 0).await;
        store.close().await.unwrap();
    });
}
