//! Single-threaded primitives that work on any executor.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// Wakes all who wait. Cheap to clone; clones share the waiters.
#[derive(Clone, Default)]
pub struct Notify {
    inner: Rc<NotifyInner>,
}

#[derive(Default)]
struct NotifyInner {
    epoch: Cell<u64>,
    waiters: RefCell<Vec<Waker>>,
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
        for waker in waiters {
            waker.wake();
        }
    }

    /// Waits for the next [`Notify::notify`] after this call was *made* (not first polled), so that
    /// `let next = n.notified(); check; next.await` misses nothing.
    pub fn notified(&self) -> impl Future<Output = ()> + use<> {
        let inner = self.inner.clone();
        let epoch = inner.epoch.get();
        poll_fn(move |cx| {
            if inner.epoch.get() != epoch {
                return Poll::Ready(());
            }
            let mut waiters = inner.waiters.borrow_mut();
            if !waiters.iter().any(|w| w.will_wake(cx.waker())) {
                waiters.push(cx.waker().clone());
            }
            Poll::Pending
        })
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
