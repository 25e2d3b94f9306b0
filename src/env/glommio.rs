//! The real world: one glommio executor, pinned or not.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use glommio::{ExecutorJoinHandle, Latency, LocalExecutorBuilder, Placement, Shares, TaskQueueHandle};

use super::{Env, Queue};
use crate::disk::glommio::GlommioDisk;

/// How often a round of runnable tasks is cut short to look at the rings. With the default of 100 ms, a
/// read beside a busy background task takes 300 ms; 250 to 500 µs cost nothing measurable.
const PREEMPT: Duration = Duration::from_micros(400);

/// The environment of the executor it was made on.
#[derive(Clone)]
pub struct GlommioEnv {
    inner: Rc<Inner>,
}

struct Inner {
    disk: GlommioDisk,
    start: Instant,
    rng: RefCell<fastrand::Rng>,
    foreground: TaskQueueHandle,
    flush: TaskQueueHandle,
    compaction: TaskQueueHandle,
}

impl GlommioEnv {
    /// For the data directory `root`, on the current executor. Makes its task queues; once per executor.
    pub async fn new(root: &Path) -> crate::disk::Result<GlommioEnv> {
        let disk = GlommioDisk::new(root);
        disk.prime().await?;
        let executor = glommio::executor();
        let queue = |shares, latency, name| executor.create_task_queue(Shares::Static(shares), latency, name);
        Ok(GlommioEnv {
            inner: Rc::new(Inner {
                disk,
                start: Instant::now(),
                rng: RefCell::new(fastrand::Rng::new()),
                foreground: queue(1000, Latency::Matters(PREEMPT), "foreground"),
                flush: queue(300, Latency::NotImportant, "flush"),
                compaction: queue(100, Latency::NotImportant, "compaction"),
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
        .preempt_timer(PREEMPT)
        .spawn(root)
        .map_err(io::Error::from)?;
    Ok(Executor { handle })
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
        let queue = match queue {
            Queue::Foreground => self.inner.foreground,
            Queue::Flush => self.inner.flush,
            Queue::Compaction => self.inner.compaction,
        };
        glommio::spawn_local_into(future, queue)
            .expect("the queue was made on this executor and is never removed")
            .detach();
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> {
        async move {
            glommio::timer::sleep(duration).await;
        }
    }

    fn yield_now(&self) -> impl Future<Output = ()> {
        async { glommio::executor().yield_now().await }
    }
}
