//! Writers that merges don't keep up with: they wait, in turns, and go on by themselves.

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
