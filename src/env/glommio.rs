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

mod readable;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc::sync_channel;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_lite::future;
use glommio::{
    Latency, LocalExecutor, LocalExecutorBuilder, Placement, Shares, SharesManager, TaskQueueHandle,
};

use super::{Env, Queue};
use crate::base::PAGE_SIZE;
use crate::disk::glommio::{GlommioDisk, READ_RING_ENTRIES};

pub use self::readable::readable;

/// How often a round of runnable tasks is cut short to look at the rings. With the default of 100 ms, a
/// read beside a busy background task takes 300 ms; 250 to 500 µs cost nothing measurable.
const PREEMPT: Duration = Duration::from_micros(400);
/// Sleeps longer than this may end late by [`PREEMPT`]: see [`Env::needs_rests`].
const SHORT_SLEEP: Duration = Duration::from_millis(5);
/// How often changed shares of the core are noticed.
const ADJUST: Duration = Duration::from_millis(20);
/// `PREEMPT` until the root future runs.
const START_PREEMPT: Duration = Duration::from_secs(2);
/// Entries of each ring, at best and at least. Each turn of the runtime cancels a timer, for which the kernel searches
/// one of a ring's lists of polls, and a connection is a poll: there are 256 lists with this many entries, and 8 with
/// the least, the runtime's default. With 9,700 idle connections a GET then took 46 µs of CPU more than with none, with
/// 4096 entries 17.
const RING_ENTRIES: usize = 4096;
const RING_ENTRIES_MIN: usize = 128;
/// Entries of the ring by which a server's replies leave.
pub const SEND_RING_ENTRIES: u32 = 128;
/// Rings of an executor. The runtime registers its I/O memory with each of them.
const RINGS: usize = 3;
/// Less I/O memory than this the runtime does not register.
const IO_BYTES_MIN: usize = 64 << 10;
/// How long a start waits for memory that other processes of its user have locked: one that was just killed has its
/// rings for a moment.
const LOCKED_WAIT: Duration = Duration::from_secs(5);
const LOCKED_PAUSE: Duration = Duration::from_millis(20);
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

/// What of an executor counts towards the limit of locked memory, which its user has for all processes together.
/// (Kernels before 5.12 count rings, and recent ones do again: 6.18 does.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locked {
    /// Entries of each ring: a power of two.
    pub ring_entries: usize,
    /// Bytes that are registered for I/O buffers. What does not fit them comes from the heap.
    pub io_bytes: usize,
}

impl Locked {
    /// As much as is of use, with this much for I/O.
    pub fn ample(io_bytes: usize) -> Locked {
        Locked { ring_entries: RING_ENTRIES, io_bytes }
    }

    /// The same for each of `executors`, each with a ring for reads and one for sends beside, within half of `limit`
    /// bytes, so that the next process can start while the kernel still clears up behind this one, and rings within
    /// half of that; with the smallest rings within all of it. `Err`: the least they need.
    pub fn within(limit: u64, executors: usize, io_bytes: usize) -> Result<Locked, u64> {
        let rings = |entries| (executors * RINGS * ring_bytes(entries)) as u64;
        let mut ring_entries = RING_ENTRIES;
        while ring_entries > RING_ENTRIES_MIN && rings(ring_entries) > limit / 4 {
            ring_entries /= 2;
        }
        if rings(ring_entries) > limit {
            return Err(rings(ring_entries));
        }
        // Without these a shard does as well.
        let beside = ring_bytes(READ_RING_ENTRIES as usize) + ring_bytes(SEND_RING_ENTRIES as usize);
        let beside = (executors * beside) as u64;
        let left = (limit / 2).saturating_sub(rings(ring_entries) + beside) / (executors * RINGS) as u64;
        let left = usize::try_from(left).unwrap_or(usize::MAX) / PAGE_SIZE * PAGE_SIZE;
        Ok(Locked { ring_entries, io_bytes: left.clamp(IO_BYTES_MIN, io_bytes.max(IO_BYTES_MIN)) })
    }
}

/// Kernel memory of a ring: 64 bytes a submission and 4 for its place in line, 16 for each of twice as many completions,
/// and a head.
fn ring_bytes(entries: usize) -> usize {
    const HEAD: usize = 512;
    (64 * entries).next_multiple_of(PAGE_SIZE)
        + (HEAD + 4 * entries + 16 * 2 * entries).next_multiple_of(PAGE_SIZE)
}

/// Starts an executor on a thread of its own, pinned to `cpu` if given, and runs what `root` makes on it.
///
/// Errors: too little lockable memory for some seconds, a CPU that is not there, no thread.
pub fn spawn_executor<F, T>(
    name: &str,
    cpu: Option<usize>,
    locked: Locked,
    root: impl FnOnce() -> F + Send + 'static,
) -> io::Result<Executor<T>>
where
    F: Future<Output = T> + 'static,
    T: Send + 'static,
{
    let placement = cpu.map_or(Placement::Unbound, Placement::Fixed);
    let (made, is_made) = sync_channel(1);
    let handle = thread::Builder::new().name(name.to_owned()).spawn(move || {
        let executor = make(&placement, locked);
        let (executor, result) = match executor {
            Ok(executor) => (Some(executor), Ok(())),
            Err(error) => (None, Err(error)),
        };
        let _ = made.send(result); // whoever asked for it waits for that
        executor.map(|executor| executor.run(with_heartbeat(root)))
    })?;
    is_made.recv().unwrap_or_else(|_| Err(io::Error::other("its thread panicked")))?;
    Ok(Executor { handle })
}

/// Makes an executor on this thread, once there is lockable memory for it.
fn make(placement: &Placement, locked: Locked) -> io::Result<LocalExecutor> {
    once_lockable(|| {
        let builder = LocalExecutorBuilder::new(placement.clone())
            .io_memory(locked.io_bytes)
            .ring_depth(locked.ring_entries)
            .preempt_timer(START_PREEMPT);
        builder.make().map_err(io::Error::from)
    })
}

/// Makes what needs lockable memory. If there is none (`ENOMEM`), tries again for some seconds, on this thread.
pub fn once_lockable<T>(mut make: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let begin = Instant::now();
    let mut is_told = false;
    loop {
        let error = match make() {
            Ok(made) => return Ok(made),
            Err(error) => error,
        };
        if error.raw_os_error() != Some(libc::ENOMEM) || begin.elapsed() >= LOCKED_WAIT {
            return Err(error);
        }
        if !std::mem::replace(&mut is_told, true) {
            tracing::warn!(
                "no memory can be locked for a ring; waiting for what other processes of this user hold"
            );
        }
        thread::sleep(LOCKED_PAUSE);
    }
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
    handle: JoinHandle<Option<T>>,
}

impl<T: Send + 'static> Executor<T> {
    /// Waits for its root future's result. An error is a panic, of which the log tells.
    pub fn join(self) -> io::Result<T> {
        self.handle.join().ok().flatten().ok_or_else(|| io::Error::other("it panicked, see above"))
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
        let _under_way = (duration <= SHORT_SLEEP).then(|| self.inner.disk.under_way().enter());
        glommio::timer::sleep(duration).await;
    }

    async fn rest_for_reads(&self) {
        match self.inner.disk.ring() {
            Some(_) => self.yield_now().await,
            None => self.rest().await,
        }
    }

    fn needs_rests(&self) -> bool {
        self.inner.disk.under_way().count() > 0
    }

    async fn yield_now(&self) {
        glommio::executor().yield_now().await;
    }
}

#[cfg(test)]
mod tests;
