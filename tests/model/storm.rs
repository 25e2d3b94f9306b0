//! Stores in trouble: small ones whose lives are short. The power goes at any operation of the disk, while the store
//! starts, writes, merges, moves tablets or makes a checkpoint; reads, writes and syncs fail; the disk is full, and has
//! room again; some operations take long. What was answered or shown is there afterwards, whatever happened.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use atlaskv::disk::Disk;
use atlaskv::env::Env;
use atlaskv::env::sim::{SimEnv, SimWorld};

use crate::keys::Pool;
use crate::plan::Plan;
use crate::report::{Met, Telling};
use crate::run::Run;
use crate::script::{HABIT, Script, Stream};
use crate::shape::Shape;
use crate::store::{Inbox, Store};
use crate::verify::Difference;

/// Most tablets that splits may make.
const TABLETS_MAX: usize = 6;
/// After this long the log is sealed.
const IDLE: Duration = Duration::from_millis(100);
/// How often, and with which pauses, a store is tried again once the trouble is over.
const TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(500);

/// What kind of trouble a life has, besides that its power may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    Calm,
    /// Operations fail.
    Errors,
    /// The disk is full for some time.
    Full,
    /// Operations take long.
    Slow,
}

impl Weather {
    fn random(rng: &mut fastrand::Rng) -> Weather {
        match rng.u8(..20) {
            0..12 => Weather::Calm,
            12..16 => Weather::Errors,
            16..18 => Weather::Full,
            _ => Weather::Slow,
        }
    }

    /// Lets the trouble begin, or what the script leaves of it.
    fn begin(self, env: &SimEnv, rng: &mut fastrand::Rng, script: &mut Script) {
        const OPERATIONS: [&str; 12] = [
            "read", "write", "dsync", "sync", "open", "rename", "remove", "sync_dir", "link", "list",
            "close", "shrink",
        ];
        const PATHS: [&str; 5] = ["", "sst", "wal", "manifest", "CURRENT"];
        let skip = |rng: &mut fastrand::Rng| {
            let most = [4, 40, 300][rng.usize(..3)];
            rng.u64(..most)
        };
        match self {
            Weather::Calm => {}
            Weather::Errors => {
                for number in 0..rng.u32(1..=3) {
                    let operation = OPERATIONS[rng.usize(..OPERATIONS.len())];
                    let path = PATHS[rng.usize(..PATHS.len())];
                    let errno = if rng.u8(..4) == 0 { libc::ENOSPC } else { libc::EIO };
                    let (skip, once) = (skip(rng), rng.u8(..4) > 0);
                    if script.has_trouble(number) {
                        env.disk().fail(operation, path, skip, errno, once);
                        script.await_trouble(number, env.disk().countdown());
                    }
                }
            }
            Weather::Full => {
                let more = [0, 4 << 10, 100 << 10, 1 << 20][rng.usize(..4)];
                if script.has_trouble(0) {
                    env.disk().set_capacity(env.disk().used() + more);
                }
            }
            Weather::Slow => {
                for number in 0..rng.u32(1..=8) {
                    // While the manifest takes long, much else goes on that relies on what is in it, or must not yet.
                    let (operation, path) = match rng.bool() {
                        true => ("dsync", "manifest"),
                        false => (OPERATIONS[rng.usize(..OPERATIONS.len())], PATHS[rng.usize(..PATHS.len())]),
                    };
                    let (skip, duration) = (skip(rng), Duration::from_millis(rng.u64(1..400)));
                    if script.has_trouble(number) {
                        env.disk().delay(operation, path, skip, duration);
                        script.await_trouble(number, env.disk().countdown());
                    }
                }
            }
        }
    }
}

/// Ends all trouble but the power cut.
fn heal(env: &SimEnv) {
    env.disk().heal();
    env.disk().set_capacity(u64::MAX);
}

impl Run {
    /// A store for [`Run::storm`].
    pub fn in_storm(seed: u64) -> Run {
        let mut rng = fastrand::Rng::with_seed(seed);
        let count = [4, 12, 40][rng.usize(..3)];
        let pool = Pool::new(&mut rng, count, 0);
        let value_bytes_max = if rng.u8(..24) == 0 { 400 << 10 } else { [100, 3000][rng.usize(..2)] };
        let tablets = [1, 1, 2, 4][rng.usize(..4)];
        let mut run = Run::with(seed, rng, pool, value_bytes_max, tablets, TABLETS_MAX);
        run.burst = [2, 5, 25];
        run
    }

    /// The same, which does nothing but what the plan says.
    pub fn by_plan(mut self, plan: Plan) -> Run {
        self.script = Script::new(self.seed, Some(plan));
        self
    }

    pub fn stormy_shape(&mut self) -> Shape {
        let most = self.entry_bytes_max;
        let shape = Shape::random(&mut self.shapes, self.tablets, most);
        shape.in_storm(&mut self.shapes, most)
    }

    fn stream(&self, stream: Stream) -> fastrand::Rng {
        fastrand::Rng::with_seed(self.script.seed(stream))
    }

    /// Of what comes, nothing random depends on what came.
    fn draw_anew(&mut self, world: &SimWorld) {
        world.reseed(self.script.seed(Stream::World));
        self.shapes = self.stream(Stream::Shapes);
        let (work, habits) = (self.stream(Stream::Work), self.stream(Stream::Habits));
        self.work.renew(work, habits, self.script.turn() % HABIT);
    }

    /// Lives until the power has gone so often, or those of the plan.
    pub fn storm(mut self, crashes: u64) -> Met {
        let (mut world, mut env) = SimEnv::fresh(self.seed);
        while let Some(life) = self.script.next_life(self.met.crashes < crashes) {
            self.draw_anew(&world);
            let shape = self.stormy_shape();
            let weather = Weather::random(&mut self.shapes);
            let rng = &mut self.shapes;
            let most = [30, 300, 300, 2000][rng.usize(..4)];
            self.script.begin_life(&world, env.disk(), rng.u64(1..most));
            // Before the start, or once the store serves.
            let is_early = rng.u8(..4) == 0;
            if is_early {
                weather.begin(&env, rng, &mut self.script);
            }
            self.may_fail = matches!(weather, Weather::Errors | Weather::Full);
            self.event(format!("life {life}: {weather:?}, opened as {shape:?}"));
            let inbox: RefCell<Rc<Inbox>> = RefCell::default();
            let is_down = async {
                env.disk().until_down().await;
                Ok(())
            };
            let later = if is_early { Weather::Calm } else { weather };
            let life = self.stormy_life(&world, &env, &shape, [weather, later], &inbox);
            let lived = world.run(futures_lite::future::or(life, is_down));
            let is_cut = env.disk().is_down();
            self.script.end_life(&world, env.disk());
            if let Err(difference) = lived.and_then(|()| self.note_cut(&env, &inbox.take())) {
                self.report(&difference, &shape);
            }
            world.kill();
            heal(&env);
            self.met.lives += 1;
            self.met.crashes += u64::from(is_cut);
            self.event(if is_cut { "the power goes" } else { "killed" }.to_owned());
            self.shapes = self.stream(Stream::Remains);
            (world, env) = self.next_world(&env, is_cut);
        }
        self.met.ops = self.step;
        self.met
    }

    /// One life. `Ok`: it is over before the power goes, since the store does not work any more, or no more is to be
    /// done.
    async fn stormy_life(
        &mut self,
        world: &SimWorld,
        env: &SimEnv,
        shape: &Shape,
        [weather, mut later]: [Weather; 2],
        inbox: &RefCell<Rc<Inbox>>,
    ) -> Result<(), Difference> {
        for path in env.disk().paths().into_iter().filter(|path| path.starts_with("copy-")) {
            let _ = env.disk().remove(&path).await; // the next life tries again
        }
        let store = match Store::open(env, shape).await {
            Ok(store) => store,
            Err(_) if self.may_fail => {
                self.met.starts_refused += 1;
                return Ok(());
            }
            Err(error) => return Err(Difference::of(Vec::new(), format!("no start: {error}"))),
        };
        inbox.replace(store.inbox.clone());
        self.begin_life(env, shape);
        let mut tries = 0;
        loop {
            let Err(fault) = self.go_on(world, &store, shape, weather, later).await else { return Ok(()) };
            later = Weather::Calm;
            if !fault.is_fault || !self.may_fail {
                return Err(fault);
            }
            if tries == 0 {
                self.met.faults += 1;
                self.event(format!("a fault: {}", fault.what));
                heal(env);
            }
            tries += 1;
            if tries > TRIES {
                // What failed in writing the log or the manifest needs a restart. A disk that was full does not.
                if weather == Weather::Full {
                    let what = format!("there is room again, and still: {}", fault.what);
                    return Err(Difference::of(fault.keys, what));
                }
                self.met.restarts += 1;
                return Ok(());
            }
            env.sleep(PAUSE).await;
        }
    }

    /// Looks at everything, then does something random after another, until no more is to be done. `later`: the
    /// trouble that begins in between.
    async fn go_on(
        &mut self,
        world: &SimWorld,
        store: &Store,
        shape: &Shape,
        weather: Weather,
        later: Weather,
    ) -> Result<(), Difference> {
        self.decide(world, store).await?;
        later.begin(&store.env, &mut self.shapes, &mut self.script);
        let mut counted = store.metrics();
        loop {
            if store.env.disk().is_down() {
                std::future::pending::<()>().await;
            }
            if !self.script.next_turn(store.env.disk()) {
                return Ok(());
            }
            self.draw_anew(world);
            let turn = self.script.turn();
            if self.log.telling == Telling::Whole {
                self.event(format!("turn {turn}"));
            }
            if weather == Weather::Calm && self.work.rng.u8(..48) == 0 {
                // Until then the log's last block looks like one that was in flight.
                store.env.sleep(IDLE).await;
                self.settle(world, store);
                crate::damage::try_damage(self, &store.env)?;
            } else {
                self.step_once(world, store, shape).await?;
            }
            // What is counted in between is lost with the power.
            if turn % 4 == 3 {
                let now = store.metrics();
                self.count(&counted, &now);
                counted = now;
            }
        }
    }
}
