//! Single-threaded primitives that work on any executor.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
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

/// The right to do something, which so many tasks have at a time; it is given out in the order in which it was asked
/// for. Waiting costs the same however many wait. Cheap to clone; clones share the rights.
#[derive(Clone)]
pub struct Permits {
    inner: Rc<PermitsInner>,
}

struct PermitsInner {
    free: Cell<usize>,
    /// None of them has a right yet.
    waiting: RefCell<VecDeque<Rc<Claim>>>,
}

#[derive(Default)]
struct Claim {
    is_granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// A right of its [`Permits`], given back when dropped.
pub struct Permit {
    permits: Permits,
}

/// See [`Permits::acquire`].
pub struct Acquire {
    permits: Permits,
    claim: Option<Rc<Claim>>,
}

impl Permits {
    /// So many rights.
    pub fn new(count: usize) -> Permits {
        assert!(count > 0, "nobody would ever have a right");
        Permits { inner: Rc::new(PermitsInner { free: Cell::new(count), waiting: RefCell::default() }) }
    }

    /// Waits for a right.
    pub fn acquire(&self) -> Acquire {
        Acquire { permits: self.clone(), claim: None }
    }

    /// Those who wait.
    pub fn waiting(&self) -> usize {
        self.inner.waiting.borrow().len()
    }

    /// A right goes to who has waited longest.
    fn give_back(&self) {
        let Some(next) = self.inner.waiting.borrow_mut().pop_front() else {
            return self.inner.free.set(self.inner.free.get() + 1);
        };
        next.is_granted.set(true);
        if let Some(waker) = next.waker.take() {
            waker.wake();
        }
    }
}

impl Future for Acquire {
    type Output = Permit;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Permit> {
        let inner = self.permits.inner.clone();
        match &self.claim {
            None if inner.free.get() > 0 => {
                // While some are free nobody waits.
                inner.free.set(inner.free.get() - 1);
                return Poll::Ready(Permit { permits: self.permits.clone() });
            }
            None => {
                let claim = Rc::new(Claim::default());
                inner.waiting.borrow_mut().push_back(claim.clone());
                self.claim = Some(claim);
            }
            Some(claim) if claim.is_granted.get() => {
                self.claim = None;
                return Poll::Ready(Permit { permits: self.permits.clone() });
            }
            Some(_) => {}
        }
        if let Some(claim) = &self.claim {
            claim.waker.replace(Some(cx.waker().clone()));
        }
        Poll::Pending
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        match self.claim.take() {
            None => {}
            Some(claim) if claim.is_granted.get() => self.permits.give_back(),
            Some(claim) => {
                self.permits.inner.waiting.borrow_mut().retain(|other| !Rc::ptr_eq(other, &claim));
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.permits.give_back();
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
    fn permits_go_to_those_who_waited_longest_and_none_is_lost() {
        let permits = Permits::new(2);
        let mut held: Vec<_> = (0..2).map(|_| block_on(permits.acquire())).collect();
        let mut waiting: Vec<_> = (0..4).map(|_| Box::pin(permits.acquire())).collect();
        for acquire in &mut waiting {
            assert!(block_on(poll_once(acquire)).is_none());
        }
        // One that gives up while it waits, and one that does so when it was granted.
        drop(waiting.remove(0));
        assert_eq!(permits.waiting(), 3);
        held.pop();
        assert_eq!(permits.waiting(), 2);
        drop(waiting.remove(0));
        assert_eq!(permits.waiting(), 1, "it went on to the next");
        assert!(block_on(poll_once(&mut waiting[1])).is_none(), "not to the one behind it");
        let first = block_on(poll_once(&mut waiting[0]));
        assert!(first.is_some());
        // A newcomer does not pass those who wait.
        let mut late = std::pin::pin!(permits.acquire());
        assert!(block_on(poll_once(&mut late)).is_none());
        drop(first);
        let second = block_on(poll_once(&mut waiting[1]));
        assert!(second.is_some() && block_on(poll_once(&mut late)).is_none());
        drop(held);
        let third = block_on(poll_once(&mut late));
        assert!(third.is_some());
        assert!(block_on(poll_once(&mut std::pin::pin!(permits.acquire()))).is_none(), "two are all");
        drop((second, third));
        let _both = (block_on(permits.acquire()), block_on(permits.acquire()));
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
