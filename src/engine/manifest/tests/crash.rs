//! A crash at every operation of a store's story, and at one of the start that follows.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::*;

/// What a store goes through: created, edits with rotations in between, a start with as many shards,
/// edits, a start with fewer, edits, a start with more.
#[derive(Clone)]
enum Step {
    Install(State),
    Commit(u64),
}

/// The steps, and the state after each; the first is that of nothing at all.
fn story() -> (Vec<Step>, Vec<Option<State>>) {
    let (mut steps, mut states) = (vec![Step::Install(state(2))], vec![None, Some(state(2))]);
    for (generation, shards) in [(2, 2), (3, 1), (4, 3)] {
        for number in (generation - 2) * 5 + 1..=(generation - 1) * 5 {
            steps.push(Step::Commit(number));
            states.push(states.last().unwrap().as_ref().map(|before| with(before, &edit(number))));
        }
        let next = next_generation(states.last().unwrap().as_ref().unwrap(), generation, shards);
        steps.push(Step::Install(next.clone()));
        states.push(Some(next));
    }
    (steps, states)
}

async fn perform(env: &SimEnv, steps: &[Step], acked: &Cell<usize>, rotations: &Cell<u64>) {
    let mut open: Option<ShardManifest<SimEnv>> = None;
    for step in steps {
        match step {
            Step::Install(state) => {
                if let Some(open) = open.take() {
                    open.close().await.unwrap();
                    let mut before = load(env).await.unwrap().unwrap();
                    (before.generation, before.shards) = (state.generation, state.shards);
                    before.tablets.values_mut().for_each(|t| t.shard = t.id.0 % state.shards);
                    assert_eq!(before, *state, "a start finds what was committed");
                }
                install(env, state).await.unwrap();
                let manifest = ShardManifest::open(env, state.generation, state.shards, 0).await.unwrap();
                manifest.rotate_above(PAGE_SIZE as u64);
                open = Some(manifest);
            }
            Step::Commit(number) => {
                open.as_ref().unwrap().commit(edit(*number)).await.unwrap();
                let parts = manifests(env.disk()).iter().filter(|path| !path.contains("-0000.man")).count();
                rotations.set(rotations.get() + parts as u64);
            }
        }
        acked.set(acked.get() + 1);
    }
}

async fn unless_down(env: &SimEnv, work: impl Future<Output = ()>) {
    futures_lite::future::or(work, async {
        while !env.disk().is_down() {
            env.sleep(Duration::from_micros(50)).await;
        }
    })
    .await;
}

#[test]
fn a_crash_anywhere_leaves_the_state_before_or_after_and_no_acknowledged_edit_is_lost() {
    let (steps, states) = story();
    let run = |seed: u64, crash_at: u64| {
        let (world, env) = SimEnv::fresh(seed);
        env.disk().crash_at(crash_at);
        let (acked, rotations) = (Cell::new(0), Cell::new(0));
        world.run(unless_down(&env, perform(&env, &steps, &acked, &rotations)));
        (env, acked.get(), rotations.get())
    };
    let (env, acked, rotations) = run(1, u64::MAX);
    assert_eq!(acked, steps.len());
    assert!(rotations > 2, "files were rewritten on the way");
    let (mut before, mut after) = (0, 0);
    for crash_at in 1..=env.disk().operations() {
        for (seed, keep) in [(1, 0), (2, 10), (3, 50), (4, 90), (5, 100)] {
            let what = format!("crash at operation {crash_at}, seed {seed}, keeping {keep} %");
            let (env, acked, _) = run(seed, crash_at);
            let mut rng = fastrand::Rng::with_seed(crash_at * 7 + seed);
            let world = SimWorld::new(seed);
            let env = SimEnv::new(&world, env.disk().crash(&world, &mut rng, keep));
            let found = world.run(load(&env)).unwrap_or_else(|error| panic!("{what}: {error}"));
            if acked + 1 < states.len() && found == states[acked + 1] {
                after += 1;
            } else {
                assert_eq!(found, states[acked], "{what}: {acked} steps were acknowledged");
                before += 1;
            }
            restart_twice(&world, env, found, &mut rng, &what);
        }
    }
    assert!(before > 100 && after > 20, "both outcomes were seen: {before}, {after}");
}

/// The next start works on what a crash left, is itself hit by a crash, and the one after it ends well
/// and leaves no file that it doesn't need.
fn restart_twice(world: &SimWorld, env: SimEnv, found: Option<State>, rng: &mut fastrand::Rng, what: &str) {
    let generation = found.as_ref().map_or(1, |found| found.generation + 1);
    let before = found.clone().unwrap_or_else(|| state(2));
    let next = next_generation(&before, generation, 1 + rng.u32(..3));
    env.disk().crash_at(1 + rng.u64(..30));
    let has_ended = Rc::new(Cell::new(false));
    world.run(unless_down(&env, async {
        install(&env, &next).await.unwrap();
        has_ended.set(true);
    }));
    let env = SimEnv::new(world, env.disk().crash(world, rng, 50));
    let again = world.run(load(&env)).unwrap_or_else(|error| panic!("{what}, second: {error}"));
    assert!(again.as_ref() == Some(&next) || (!has_ended.get() && again == found), "{what}, second");
    let last = next_generation(&again.unwrap_or(before), generation + 1, 2);
    world.run(install(&env, &last)).unwrap();
    assert_eq!(world.run(load(&env)).unwrap(), Some(last), "{what}, third");
    assert_eq!(manifests(env.disk()).len(), 2, "{what}: leftovers in {:?}", env.disk().paths());
}
