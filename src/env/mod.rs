//! What the engine and the shard ask of the world besides a disk: clocks, randomness, tasks. Two
//! implementations: [`glommio`], and [`sim`], in which a seed decides the order of tasks and time moves
//! only when nothing can run.
//!
//! Everything here is single-threaded: one `Env` belongs to one executor and never leaves it.

pub mod below;
pub mod glommio;
pub mod sim;
mod sync;

use std::future::Future;
use std::time::Duration;

pub use sync::{Gate, GateGuard, Lock, LockGuard, Notify, Permits, join_all};

use crate::disk::Disk;

/// Which share of the core a task runs under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Queue {
    /// Connections, execution, commits.
    Foreground,
    /// Flush of sealed memtables: must keep up with writers.
    Flush,
    /// Compaction, removal of files, everything that can wait.
    Compaction,
}

/// The world, as one executor sees it. Cheap to clone.
pub trait Env: Clone + 'static {
    /// Its disk.
    type Disk: Disk;

    /// The disk.
    fn disk(&self) -> &Self::Disk;

    /// Wall clock: milliseconds since the Unix epoch. May jump.
    fn wall_ms(&self) -> u64;

    /// Monotonic time since some fixed moment.
    fn now(&self) -> Duration;

    /// Uniform random bits.
    fn random(&self) -> u64;

    /// Runs `future` to its end in `queue`, detached. Whoever must know when it ends hands it a
    /// [`GateGuard`].
    fn spawn(&self, queue: Queue, future: impl Future<Output = ()> + 'static);

    /// Sets how much of the core a queue has, in thousandths of what requests have, while both have work. From
    /// then on, soon.
    fn set_shares(&self, queue: Queue, shares: usize);

    /// Suspends for at least `duration`.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()>;

    /// Lets other runnable tasks run first.
    fn yield_now(&self) -> impl Future<Output = ()>;

    /// Suspends for real, after a step that took long: others run, and what has come meanwhile is seen before it goes
    /// on. A mere yield keeps the executor's round going, in which nobody looks at sockets or disk.
    fn rest(&self) -> impl Future<Output = ()> {
        self.sleep(REST)
    }

    /// The same, for a task of [`Queue::Foreground`] that has begun reads. Where sockets and reads are looked at in every
    /// round of that queue, a mere yield does.
    fn rest_for_reads(&self) -> impl Future<Output = ()> {
        self.rest()
    }

    /// Whether anything is under way that is seen to in a [rest](Env::rest) and not before: something of the disk, or a
    /// short sleep. Else a mere yield does as well, for some hundred microseconds, and costs less.
    fn needs_rests(&self) -> bool {
        true
    }
}

/// How long a rest is: as short as a timer can be.
const REST: Duration = Duration::from_micros(1);

/// Paces background work: [`Pacer::breathe`] between small steps suspends *for real* once the work has
/// used its slice. A mere yield would not let the executor submit I/O or see completions.
pub struct Pacer<E: Env> {
    env: E,
    since: Duration,
}

/// CPU time after which background work suspends. Measured: with 75 to 100 µs a 4 KiB read beside busy
/// background work takes 0.2 ms, and the background keeps two thirds to four fifths of its throughput.
const SLICE: Duration = Duration::from_micros(100);

impl<E: Env> Pacer<E> {
    /// Starts a slice now.
    pub fn new(env: &E) -> Pacer<E> {
        Pacer { env: env.clone(), since: env.now() }
    }

    /// Suspends if the slice is used up. Call it at least every ~20 µs of work.
    pub async fn breathe(&mut self) {
        if self.env.now().saturating_sub(self.since) >= SLICE {
            self.env.rest().await;
            self.since = self.env.now();
        }
    }
}
