//! A world whose disk is a directory of another world's.

use std::future::Future;
use std::time::Duration;

use super::{Env, Queue};
use crate::disk::Disk;
use crate::disk::below::Below;

/// See the module.
#[derive(Clone)]
pub struct EnvBelow<E: Env> {
    env: E,
    disk: Below<E::Disk>,
}

impl<E: Env> EnvBelow<E> {
    /// The world of `env`, with its disk's directory `dir` for a disk.
    pub fn new(env: &E, dir: &str) -> EnvBelow<E> {
        EnvBelow { env: env.clone(), disk: Below::new(env.disk(), dir) }
    }
}

impl<E: Env> Env for EnvBelow<E>
where
    E::Disk: Disk,
{
    type Disk = Below<E::Disk>;

    fn disk(&self) -> &Below<E::Disk> {
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
        self.env.spawn(queue, future);
    }

    fn set_shares(&self, queue: Queue, shares: usize) {
        self.env.set_shares(queue, shares);
    }

    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> {
        self.env.sleep(duration)
    }

    fn yield_now(&self) -> impl Future<Output = ()> {
        self.env.yield_now()
    }
}
