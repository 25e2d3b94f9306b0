//! The simulated world: a deterministic executor, a virtual clock, seeded randomness.
//!
//! - The order in which runnable tasks run is drawn from the seed.
//! - Time moves only when no task is runnable, and then to the next timer.
//! - The same seed gives the same run; [`SimWorld::trace`] is a hash of every choice made.
//! - A world in which nothing can ever happen again (deadlock) or that never comes to rest (livelock)
//!   panics, naming its seed.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use super::{Env, Queue};
use crate::disk::sim::SimDisk;

/// Polls after which a run counts as a livelock.
const POLLS_MAX: u64 = 200_000_000;

/// Wall clock at the start of every world: 2026-01-01.
const EPOCH_MS: u64 = 1_767_225_600_000;

/// Tells a world's order of tasks from its other randomness.
const SCHEDULER: u64 = 0x5EED_5C4E_D01E_5000;

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Tasks that were woken. Behind a mutex only because wakers must be `Send`.
type Ready = Arc<Mutex<Vec<u64>>>;

struct TaskWaker {
    id: u64,
    ready: Ready,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        let mut ready = self.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if !ready.contains(&self.id) {
            ready.push(self.id);
        }
    }
}

struct World {
    seed: u64,
    now: Cell<Duration>,
    wall_offset_ms: Cell<i64>,
    rng: RefCell<fastrand::Rng>,
    scheduler: RefCell<fastrand::Rng>,
    ready: Ready,
    tasks: RefCell<HashMap<u64, Task>>,
    next_task: Cell<u64>,
    timers: RefCell<BTreeMap<(Duration, u64), Waker>>,
    next_timer: Cell<u64>,
    polls: Cell<u64>,
    trace: Cell<u64>,
}

/// One simulated executor.
#[derive(Clone)]
pub struct SimWorld {
    world: Rc<World>,
}

/// The [`Env`] of a simulated shard.
#[derive(Clone)]
pub struct SimEnv {
    world: SimWorld,
    disk: SimDisk,
}

impl SimWorld {
    /// A world at time 0. `seed` decides the order of tasks and all randomness.
    pub fn new(seed: u64) -> SimWorld {
        SimWorld {
            world: Rc::new(World {
                seed,
                now: Cell::new(Duration::ZERO),
                wall_offset_ms: Cell::new(0),
                rng: RefCell::new(fastrand::Rng::with_seed(seed)),
                scheduler: RefCell::new(fastrand::Rng::with_seed(seed ^ SCHEDULER)),
                ready: Ready::default(),
                tasks: RefCell::default(),
                next_task: Cell::new(1),
                timers: RefCell::default(),
                next_timer: Cell::new(0),
                polls: Cell::new(0),
                trace: Cell::new(0),
            }),
        }
    }

    /// From here on order and randomness follow from another seed, whatever was drawn before: so that a part of a
    /// run that is left out does not change the chances of the rest.
    pub fn reseed(&self, seed: u64) {
        *self.world.rng.borrow_mut() = fastrand::Rng::with_seed(seed);
        *self.world.scheduler.borrow_mut() = fastrand::Rng::with_seed(seed ^ SCHEDULER);
    }

    /// Runs `future` to its end, together with everything it spawns. Tasks that are still running then
    /// stay, and go on in the next call.
    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        const ROOT: u64 = 0;
        let mut future = std::pin::pin!(future);
        self.wake(ROOT);
        loop {
            let Some(id) = self.pick() else {
                self.advance();
                continue;
            };
            let polls = self.world.polls.get() + 1;
            self.world.polls.set(polls);
            assert!(polls < POLLS_MAX, "livelock: seed {} never comes to rest", self.world.seed);
            self.world.trace.set((self.world.trace.get() ^ id).wrapping_mul(0x0000_0100_0000_01B3));
            let waker = Waker::from(Arc::new(TaskWaker { id, ready: self.world.ready.clone() }));
            let mut cx = Context::from_waker(&waker);
            if id == ROOT {
                if let Poll::Ready(value) = future.as_mut().poll(&mut cx) {
                    return value;
                }
                continue;
            }
            let task = self.world.tasks.borrow_mut().remove(&id);
            if let Some(mut task) = task
                && task.as_mut().poll(&mut cx).is_pending()
            {
                self.world.tasks.borrow_mut().insert(id, task);
            }
        }
    }

    /// Drops every task where it stands, as a crash does.
    pub fn kill(&self) {
        let tasks = std::mem::take(&mut *self.world.tasks.borrow_mut());
        drop(tasks);
        self.world.timers.borrow_mut().clear();
        self.world.ready.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Virtual time since the start.
    pub fn now(&self) -> Duration {
        self.world.now.get()
    }

    /// Lets the wall clock jump.
    pub fn jump_wall(&self, by_ms: i64) {
        self.world.wall_offset_ms.set(self.world.wall_offset_ms.get() + by_ms);
    }

    /// A hash of every scheduling choice so far.
    pub fn trace(&self) -> u64 {
        self.world.trace.get()
    }

    /// Random bits from the world's own stream.
    pub fn random(&self) -> u64 {
        self.world.rng.borrow_mut().u64(..)
    }

    /// Suspends for `duration` of virtual time.
    pub async fn sleep(&self, duration: Duration) {
        let id = self.world.next_timer.get();
        self.world.next_timer.set(id + 1);
        let at = self.world.now.get() + duration;
        poll_fn(|cx| {
            if self.world.now.get() >= at {
                self.world.timers.borrow_mut().remove(&(at, id));
                return Poll::Ready(());
            }
            self.world.timers.borrow_mut().insert((at, id), cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    fn wake(&self, id: u64) {
        Arc::new(TaskWaker { id, ready: self.world.ready.clone() }).wake();
    }

    fn pick(&self) -> Option<u64> {
        let mut ready = self.world.ready.lock().unwrap_or_else(PoisonError::into_inner);
        if ready.is_empty() {
            return None;
        }
        let choice = self.world.scheduler.borrow_mut().usize(..ready.len());
        Some(ready.swap_remove(choice))
    }

    fn advance(&self) {
        let next = self.world.timers.borrow_mut().pop_first();
        let Some(((at, _), waker)) = next else {
            panic!("deadlock: seed {} waits for nothing at all", self.world.seed);
        };
        // Work takes time as well (see `Env::now`), so a timer may be overdue.
        self.world.now.set(at.max(self.world.now.get()));
        waker.wake();
    }
}

impl SimEnv {
    /// An environment in `world` on `disk`.
    pub fn new(world: &SimWorld, disk: SimDisk) -> SimEnv {
        SimEnv { world: world.clone(), disk }
    }

    /// A new world with an empty disk, and one environment in it.
    pub fn fresh(seed: u64) -> (SimWorld, SimEnv) {
        let world = SimWorld::new(seed);
        let env = SimEnv::new(&world, SimDisk::new(&world));
        (world, env)
    }
}

impl Env for SimEnv {
    type Disk = SimDisk;

    fn disk(&self) -> &SimDisk {
        &self.disk
    }

    fn wall_ms(&self) -> u64 {
        let ms = EPOCH_MS + self.world.now().as_millis() as u64;
        ms.saturating_add_signed(self.world.world.wall_offset_ms.get())
    }

    fn now(&self) -> Duration {
        // Work takes time: without this, a loop paced by the clock would never suspend.
        let now = self.world.now() + Duration::from_micros(1);
        self.world.world.now.set(now);
        now
    }

    fn random(&self) -> u64 {
        self.world.random()
    }

    fn spawn(&self, _queue: Queue, future: impl Future<Output = ()> + 'static) {
        let id = self.world.world.next_task.get();
        self.world.world.next_task.set(id + 1);
        self.world.world.tasks.borrow_mut().insert(id, Box::pin(future));
        self.world.wake(id);
    }

    fn set_shares(&self, _queue: Queue, _shares: usize) {}

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> {
        let world = self.world.clone();
        async move { world.sleep(duration).await }
    }

    fn yield_now(&self) -> impl Future<Output = ()> {
        futures_lite::future::yield_now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(seed: u64) -> (Vec<u32>, u64, Duration) {
        let (world, env) = SimEnv::fresh(seed);
        let order = Rc::new(RefCell::new(Vec::new()));
        let gate = super::super::Gate::new();
        world.run(async {
            for n in 0..20 {
                let (env2, order, guard) = (env.clone(), order.clone(), gate.enter());
                env.spawn(Queue::Foreground, async move {
                    env2.sleep(Duration::from_millis(u64::from(n % 3))).await;
                    order.borrow_mut().push(n);
                    drop(guard);
                });
            }
            gate.empty().await;
        });
        let order = order.borrow().clone();
        (order, world.trace(), world.now())
    }

    #[test]
    fn equal_seeds_give_equal_runs_and_others_do_not() {
        assert_eq!(run(1), run(1));
        assert_ne!(run(1).0, run(2).0);
        assert_eq!(run(3).2, Duration::from_millis(2), "virtual time is that of the longest sleep");
    }

    #[test]
    #[should_panic(expected = "deadlock: seed 9")]
    fn waiting_for_nothing_is_a_deadlock() {
        SimWorld::new(9).run(std::future::pending::<()>());
    }
}
