//! Single-threaded primitives that work on any executor.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

/// Wakes all who wait. Cheap to clone; clones share the waiters.
#[derive(Clone, Default)]
pub struct Notify {
    inner: Rc<NotifyInner>,
}

#[derive(Default)]
struct NotifyInner {
    epoch: Cell<u64>,
    waiters: RefCell<Slab<Waker>>,
}

impl Notify {
    /// With no one waiting.
    pub fn new() -> Notify {
        Notify::default()
    }

    /// Wakes everyone who waits now.
    pub fn notify(&self) {
        self.inner.epoch.set(self.inner.epoch.get() + 1);
        let waiters = std::mem::take(&mut *self.inner.waiters.borrow_mut());
        for (_, waker) in waiters {
            waker.wake();
        }
    }

    /// Waits for the next [`Notify::notify`] after this call was *made* (not first polled), so that
    /// `let next = n.notified(); check; next.await` misses nothing.
    pub fn notified(&self) -> Notified {
        Notified { inner: self.inner.clone(), epoch: self.inner.epoch.get(), place: None }
    }

    /// Waits until `ready` holds; it is asked now and after each notification.
    pub async fn until(&self, mut ready: impl FnMut() -> bool) {
        loop {
            let next = self.notified();
            if ready() {
                return;
            }
            next.await;
        }
    }
}

/// See [`Notify::notified`]. Dropped, it leaves nothing behind: who waits for one of two things may wait for
/// the other for ever.
pub struct Notified {
    inner: Rc<NotifyInner>,
    epoch: u64,
    /// Of its waker among the waiters of this epoch.
    place: Option<usize>,
}

impl Future for Notified {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.inner.epoch.get() != self.epoch {
            return Poll::Ready(());
        }
        let inner = self.inner.clone();
        let mut waiters = inner.waiters.borrow_mut();
        match self.place {
            Some(place) => waiters[place].clone_from(cx.waker()),
            None => self.place = Some(waiters.insert(cx.waker().clone())),
        }
        Poll::Pending
    }
}

impl Drop for Notified {
    fn drop(&mut self) {
        if let Some(place) = self.place
            && self.inner.epoch.get() == self.epoch
        {
            self.inner.waiters.borrow_mut().remove(place);
        }
    }
}

/// Counts what is still running, so that an owner can wait for all of it to end.
#[derive(Clone, Default)]
pub struct Gate {
    count: Rc<Cell<usize>>,
    changed: Notify,
}

/// Keeps its [`Gate`] from being empty until dropped.
pub struct GateGuard {
    gate: Gate,
}

impl Gate {
    /// With nothing running.
    pub fn new() -> Gate {
        Gate::default()
    }

    /// One more that runs, until the guard is dropped.
    pub fn enter(&self) -> GateGuard {
        self.count.set(self.count.get() + 1);
        GateGuard { gate: self.clone() }
    }

    /// How many run.
    pub fn count(&self) -> usize {
        self.count.get()
    }

    /// Waits until none runs.
    pub async fn empty(&self) {
        self.changed.until(|| self.count.get() == 0).await;
    }
}

impl Drop for GateGuard {
    fn drop(&mut self) {
        let count = self.gate.count.get();
        assert!(count > 0, "a gate is left once per entry");
        self.gate.count.set(count - 1);
        self.gate.changed.notify();
    }
}

/// The right to do something, which one task at a time has. Cheap to clone; clones share the right.
#[derive(Clone, Default)]
pub struct Lock {
    is_held: Rc<Cell<bool>>,
    released: Notify,
}

/// Holds its [`Lock`] until dropped.
pub struct LockGuard {
    lock: Lock,
}

impl Lock {
    /// Held by no one.
    pub fn new() -> Lock {
        Lock::default()
    }

    /// Waits until no one holds it, then does.
    pub async fn lock(&self) -> LockGuard {
        self.released.until(|| !self.is_held.get()).await;
        self.is_held.set(true);
        LockGuard { lock: self.clone() }
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        self.lock.is_held.set(false);
        self.lock.released.notify();
    }
}

/// Runs futures side by side to their ends; their results, in the same order. For a few of them: each wake-up
/// polls all that have not ended.
pub async fn join_all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut running: Vec<Pin<Box<_>>> = futures.into_iter().map(Box::pin).collect();
    let mut results: Vec<Option<T>> = running.iter().map(|_| None).collect();
    poll_fn(|cx| {
        for (future, result) in running.iter_mut().zip(&mut results) {
            if result.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *result = Some(value);
            }
        }
        if results.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    results.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use futures_lite::future::{block_on, poll_once};

    use super::*;

    #[test]
    fn a_notification_between_check_and_await_is_not_missed() {
        let notify = Notify::new();
        let next = notify.notified();
        notify.notify();
        block_on(next);
        assert!(block_on(poll_once(notify.notified())).is_none());
    }

    /// Wakers of connections that had waited for one of two things once stayed with the other for good.
    #[test]
    fn who_waits_no_more_leaves_nothing_behind() {
        let notify = Notify::new();
        for _ in 0..3 {
            assert!(block_on(poll_once(notify.notified())).is_none());
        }
        assert!(notify.inner.waiters.borrow().is_empty());
        // One of an epoch that is over does not take another's place away.
        let mut old = notify.notified();
        assert!(block_on(poll_once(&mut old)).is_none());
        notify.notify();
        let mut new = notify.notified();
        assert!(block_on(poll_once(&mut new)).is_none());
        drop(old);
        assert_eq!(notify.inner.waiters.borrow().len(), 1);
        notify.notify();
        block_on(new);
    }

    #[test]
    fn a_lock_has_one_holder() {
        let lock = Lock::new();
        let first = block_on(lock.lock());
        let mut second = std::pin::pin!(lock.lock());
        let mut third = std::pin::pin!(lock.lock());
        assert!(block_on(poll_once(&mut second)).is_none());
        assert!(block_on(poll_once(&mut third)).is_none());
        drop(first);
        let held = block_on(poll_once(&mut second));
        assert!(held.is_some());
        assert!(block_on(poll_once(&mut third)).is_none());
        drop(held);
        assert!(block_on(poll_once(&mut third)).is_some());
    }

    #[test]
    fn a_gate_is_empty_when_the_last_guard_drops() {
        let gate = Gate::new();
        let (a, b) = (gate.enter(), gate.enter());
        drop(a);
        assert!(block_on(poll_once(gate.empty())).is_none());
        drop(b);
        block_on(gate.empty());
    }
}
