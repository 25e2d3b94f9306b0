//! The simulated world, observed: what the engine and the shard ask of it is counted, and what it allocates itself is
//! not.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use atlaskv::disk::sim::{SimDisk, SimFile};
use atlaskv::disk::{DirEntry, Disk, File, OpenOptions, Result, Space};
use atlaskv::env::sim::SimEnv;
use atlaskv::env::{Env, Queue};

use crate::allocator::{inside, outside};

/// What was asked of a world so far.
#[derive(Default)]
pub struct Asked {
    /// Tasks begun. The runtime allocates for each.
    pub tasks: Cell<u64>,
    /// Reads of files. Each is an entry of the ring on a real disk, unless it is of more than a mebibyte.
    pub reads: Cell<u64>,
    /// Their bytes.
    pub read_bytes: Cell<u64>,
    /// Writes of files. Each is an entry of the ring on a real disk.
    pub writes: Cell<u64>,
    /// Their bytes.
    pub written_bytes: Cell<u64>,
    /// All else: opens, syncs, renames and so on.
    pub others: Cell<u64>,
}

fn add(counter: &Cell<u64>, amount: usize) {
    counter.set(counter.get() + amount as u64);
}

/// Whether what a future allocates counts.
#[derive(Clone, Copy)]
enum Side {
    Inside,
    Outside,
}

/// A future whose polls are all on one side.
struct On<F> {
    side: Side,
    future: Pin<Box<F>>,
}

impl<F: Future> On<F> {
    fn new(side: Side, future: F) -> On<F> {
        On { side, future: outside(|| Box::pin(future)) }
    }
}

impl<F: Future> Future for On<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let side = self.side;
        let poll = || self.future.as_mut().poll(cx);
        match side {
            Side::Inside => inside(poll),
            Side::Outside => outside(poll),
        }
    }
}

/// An environment whose tasks are under measure.
#[derive(Clone)]
pub struct CostEnv {
    env: SimEnv,
    disk: CostDisk,
}

/// Its disk.
#[derive(Clone)]
pub struct CostDisk {
    disk: SimDisk,
    asked: Rc<Asked>,
}

/// A file of it.
pub struct CostFile {
    file: SimFile,
    asked: Rc<Asked>,
}

impl CostEnv {
    /// Observes `env`.
    pub fn new(env: &SimEnv) -> CostEnv {
        let asked = Rc::default();
        CostEnv { env: env.clone(), disk: CostDisk { disk: env.disk().clone(), asked } }
    }

    /// What was asked of it.
    pub fn asked(&self) -> &Asked {
        &self.disk.asked
    }
}

impl Env for CostEnv {
    type Disk = CostDisk;

    fn disk(&self) -> &CostDisk {
        &self.disk
    }

    fn wall_ms(&self) -> u64 {
        self.env.wall_ms()
    }

    fn now(&self) -> Duration {
        self.env.now()
    }

    fn random(&self) -> u64 {
        self.env.random()
    }

    fn spawn(&self, queue: Queue, future: impl Future<Output = ()> + 'static) {
        add(&self.asked().tasks, 1);
        outside(|| self.env.spawn(queue, On::new(Side::Inside, future)));
    }

    fn set_shares(&self, queue: Queue, shares: usize) {
        self.env.set_shares(queue, shares);
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> {
        On::new(Side::Outside, self.env.sleep(duration))
    }

    fn yield_now(&self) -> impl Future<Output = ()> {
        On::new(Side::Outside, self.env.yield_now())
    }
}

impl CostDisk {
    /// An operation that is not worth a counter of its own.
    fn other<T>(&self, operation: impl Future<Output = T>) -> impl Future<Output = T> {
        add(&self.asked.others, 1);
        On::new(Side::Outside, operation)
    }
}

impl Disk for CostDisk {
    type File = CostFile;

    fn alloc(&self, len: usize) -> Vec<u8> {
        // Of the ring's memory on a real disk.
        outside(|| self.disk.alloc(len))
    }

    async fn open(&self, path: &str, options: OpenOptions) -> Result<CostFile> {
        let file = self.other(self.disk.open(path, options)).await?;
        Ok(CostFile { file, asked: self.asked.clone() })
    }

    async fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.other(self.disk.rename(from, to)).await
    }

    async fn link(&self, from: &str, to: &str) -> Result<()> {
        self.other(self.disk.link(from, to)).await
    }

    async fn remove(&self, path: &str) -> Result<()> {
        self.other(self.disk.remove(path)).await
    }

    async fn shrink(&self, path: &str, bytes: u64) -> Result<bool> {
        self.other(self.disk.shrink(path, bytes)).await
    }

    async fn create_dir(&self, path: &str) -> Result<()> {
        self.other(self.disk.create_dir(path)).await
    }

    async fn remove_dir(&self, path: &str) -> Result<()> {
        self.other(self.disk.remove_dir(path)).await
    }

    async fn list(&self, path: &str) -> Result<Vec<DirEntry>> {
        self.other(self.disk.list(path)).await
    }

    async fn sync_dir(&self, path: &str) -> Result<()> {
        self.other(self.disk.sync_dir(path)).await
    }

    async fn space(&self) -> Result<Space> {
        self.other(self.disk.space()).await
    }
}

impl File for CostFile {
    type Buffer = Vec<u8>;
    type ReadBuffer = Vec<u8>;

    fn path(&self) -> &str {
        self.file.path()
    }

    fn len(&self) -> u64 {
        self.file.len()
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        add(&self.asked.reads, 1);
        add(&self.asked.read_bytes, len);
        On::new(Side::Outside, self.file.read_at(offset, len)).await
    }

    async fn write_at(&self, offset: u64, buffer: Vec<u8>) -> Result<()> {
        add(&self.asked.writes, 1);
        add(&self.asked.written_bytes, buffer.len());
        On::new(Side::Outside, self.file.write_at(offset, buffer)).await
    }

    async fn sync(&self) -> Result<()> {
        add(&self.asked.others, 1);
        On::new(Side::Outside, self.file.sync()).await
    }

    async fn close(self) -> Result<()> {
        add(&self.asked.others, 1);
        On::new(Side::Outside, self.file.close()).await
    }
}
