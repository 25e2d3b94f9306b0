//! The real world: one glommio executor, pinned or not.
//!
//! A deviation of the runtime that this module makes good: its loop arms the preempt timer, then runs what
//! is runnable. If the timer has fired by then, because the thread lost its CPU in between, nothing runs,
//! the loop takes "nothing ran" for "nothing is runnable", and sleeps until some event comes. At worst
//! none ever does: under load about one start in fifty hung before its first task. Therefore
//! - until the root future runs, the timer is far longer than a thread waits for a CPU (`START_PREEMPT`);
//! - from then on no sleep is longer than `HEARTBEATS`;
//! - what the root future and all queues do counts as urgent: the long timer would hold otherwise whenever
//!   only work that is not urgent is runnable.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_lite::future;
use glommio::{
    ExecutorJoinHandle, Latency, LocalExecutorBuilder, Placement, Shares, SharesManager, TaskQueueHandle,
};

use super::{Env, Queue};
use crate::disk::glommio::GlommioDisk;

/// How often a round of runnable tasks is cut short to look at the rings. With the default of 100 ms, a
/// read beside a busy background task takes 300 ms; 250 to 500 µs cost nothing measurable.
const PREEMPT: Duration = Duration::from_micros(400);
/// How often changed shares of the core are noticed.
const ADJUST: Duration = Duration::from_millis(20);
/// `PREEMPT` until the root future runs.
const START_PREEMPT: Duration = Duration::from_secs(2);
/// Entries of each ring. Each turn of the runtime cancels a timer, for which the kernel searches one of a ring's lists of
/// polls, and a connection is a poll: there are 256 lists with this many entries, and 8 with the default of 128. With
/// 9,700 idle connections a GET then took 46 µs of CPU more than with none, now 17.
const RING_DEPTH: usize = 4096;
/// Longest sleep of an executor. Costs 100 wake-ups of about 40 microseconds a second. The round in which
/// a timer fires may be the one that is lost, and then nothing sets it again: so there are several.
const HEARTBEATS: [Duration; 4] = [
    Duration::from_millis(10),
    Duration::from_millis(130),
    Duration::from_millis(1_700),
    Duration::from_millis(22_000),
];

/// The environment of the executor it was made on.
#[derive(Clone)]
pub struct GlommioEnv {
    inner: Rc<Inner>,
}

struct Inner {
    disk: GlommioDisk,
    start: Instant,
    rng: RefCell<fastrand::Rng>,
    foreground: QueueOf,
    flush: QueueOf,
    compaction: QueueOf,
}

/// A task queue, and how much of the core it has.
struct QueueOf {
    handle: TaskQueueHandle,
    shares: Rc<AdjustableShares>,
}

struct AdjustableShares(Cell<usize>);

impl SharesManager for AdjustableShares {
    fn shares(&self) -> usize {
        self.0.get()
    }

    fn adjustment_period(&self) -> Duration {
        ADJUST
    }
}

impl Inner {
    fn queue(&self, queue: Queue) -> &QueueOf {
        match queue {
            Queue::Foreground => &self.foreground,
            Queue::Flush => &self.flush,
            Queue::Compaction => &self.compaction,
        }
    }
}

impl GlommioEnv {
    /// For the data directory `root`, on the current executor. Makes its task queues; once per executor.
    pub async fn new(root: &Path) -> crate::disk::Result<GlommioEnv> {
        let disk = GlommioDisk::new(root);
        disk.prime().await?;
        let executor = glommio::executor();
        let urgent = Latency::Matters(PREEMPT);
        let queue = |shares, name| {
            let shares = Rc::new(AdjustableShares(Cell::new(shares)));
            let handle = executor.create_task_queue(Shares::Dynamic(shares.clone()), urgent, name);
            QueueOf { handle, shares }
        };
        Ok(GlommioEnv {
            inner: Rc::new(Inner {
                disk,
                start: Instant::now(),
                rng: RefCell::new(fastrand::Rng::new()),
                foreground: queue(1000, "foreground"),
                flush: queue(300, "flush"),
                compaction: queue(100, "compaction"),
            }),
        })
    }
}

/// Starts an executor on a thread of its own, pinned to `cpu` if given, and runs what `root` makes on it.
/// `io_bytes` are registered for I/O buffers; what does not fit them comes from the heap.
///
/// Errors: too little lockable memory, a CPU that is not there, no thread.
pub fn spawn_executor<F, T>(
    name: &str,
    cpu: Option<usize>,
    io_bytes: usize,
    root: impl FnOnce() -> F + Send + 'static,
) -> io::Result<Executor<T>>
where
    F: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let placement = cpu.map_or(Placement::Unbound, Placement::Fixed);
    let handle = LocalExecutorBuilder::new(placement)
        .name(name)
        .io_memory(io_bytes)
        .ring_depth(RING_DEPTH)
        .preempt_timer(START_PREEMPT)
        .spawn(move || with_heartbeat(root))
        .map_err(io::Error::from)?;
    Ok(Executor { handle })
}

/// Runs what `root` makes, and wakes the executor now and then.
async fn with_heartbeat<F>(root: impl FnOnce() -> F + 'static) -> F::Output
where
    F: Future + 'static,
    F::Output: 'static,
{
    let urgent = Latency::Matters(PREEMPT);
    let queue = glommio::executor().create_task_queue(Shares::Static(1000), urgent, "root");
    let output = glommio::spawn_local_into(async move { root().await }, queue)
        .expect("the queue was made on this executor and is never removed");
    // In one future, so that all timers run before anything else does.
    let [a, b, c, d] = HEARTBEATS.map(beat);
    future::or(output, future::or(future::or(a, b), future::or(c, d))).await
}

async fn beat<T>(every: Duration) -> T {
    loop {
        glommio::timer::sleep(every).await;
    }
}

/// A running executor.
pub struct Executor<T: Send + 'static> {
    handle: ExecutorJoinHandle<T>,
}

impl<T: Send + 'static> Executor<T> {
    /// Waits for its root future's result. An error is a failed start or a panic.
    pub fn join(self) -> io::Result<T> {
        self.handle.join().map_err(io::Error::from)
    }
}

impl Env for GlommioEnv {
    type Disk = GlommioDisk;

    fn disk(&self) -> &GlommioDisk {
        &self.inner.disk
    }

    fn wall_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        since.map_or(0, |since| since.as_millis() as u64)
    }

    fn now(&self) -> Duration {
        self.inner.start.elapsed()
    }

    fn random(&self) -> u64 {
        self.inner.rng.borrow_mut().u64(..)
    }

    fn spawn(&self, queue: Queue, future: impl Future<Output = ()> + 'static) {
        glommio::spawn_local_into(future, self.inner.queue(queue).handle)
            .expect("the queue was made on this executor and is never removed")
            .detach();
    }

    fn set_shares(&self, queue: Queue, shares: usize) {
        self.inner.queue(queue).shares.0.set(shares.clamp(1, 1000));
    }

    async fn sleep(&self, duration: Duration) {
        glommio::timer::sleep(duration).await;
    }

    async fn yield_now(&self) {
        glommio::executor().yield_now().await;
    }
}

#[cfg(test)]
mod tests;
