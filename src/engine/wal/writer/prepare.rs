//! Keeps the next segment ready, out of those that nobody needs any more if there are any.

use std::rc::Rc;
use std::time::Duration;

use super::super::segment::{self, Segment};
use super::Wal;
use crate::env::Env;

/// Free segments kept for reuse; others are removed.
const FREE_MAX: usize = 2;
/// A failed preparation of a segment (a full disk) is tried again after this.
const RETRY: Duration = Duration::from_millis(200);

impl<E: Env> Wal<E> {
    /// Keeps one segment ready ahead of need, and removes free ones beyond a few.
    pub(super) async fn prepare_loop(self: Rc<Self>) {
        loop {
            let next = self.work.notified();
            if self.closing.get() || self.failed.borrow().is_some() {
                return;
            }
            if self.state.borrow().standby.is_none() {
                // Before anything is removed: writers wait for this one, and that may fail again and again.
                self.prepare_standby().await;
                continue;
            }
            let surplus = {
                let mut state = self.state.borrow_mut();
                if state.free.len() > FREE_MAX { state.free.pop_front() } else { None }
            };
            let Some(segment) = surplus else {
                next.await;
                continue;
            };
            if let Err((segment, error)) = segment.remove(&self.env).await {
                tracing::warn!("a free log segment could not be removed: {error}; trying again");
                self.give_back(segment);
                self.pause(|| self.state.borrow().standby.is_none()).await;
            }
        }
    }

    async fn prepare_standby(&self) {
        match self.prepare().await {
            Ok(segment) => {
                self.state.borrow_mut().standby = Some(segment);
                self.full.replace(None);
                self.changed.notify();
                // The commit loop may wait for a place for a seal.
                self.work.notify();
            }
            Err(error) => {
                tracing::error!("no new log segment: {error}; trying again");
                self.full.replace(Some(error.to_string()));
                self.changed.notify();
                self.pause(|| false).await;
            }
        }
    }

    /// A place for the last seal, when the task that prepares segments has been told to end.
    pub(super) async fn prepare_for_seal(&self) {
        self.preparing.empty().await;
        if self.state.borrow().standby.is_some() {
            return;
        }
        match self.prepare().await {
            Ok(segment) => self.state.borrow_mut().standby = Some(segment),
            Err(error) => {
                tracing::warn!("the log ends without a seal, since no segment could be prepared: {error}");
                self.has_unsealed.set(false);
            }
        }
    }

    /// Rests before another try, or until the log closes or something `is_urgent`.
    async fn pause(&self, is_urgent: impl Fn() -> bool) {
        let ends = || self.closing.get() || is_urgent();
        futures_lite::future::or(self.env.sleep(RETRY), self.work.until(ends)).await;
    }

    /// A free segment is still what it was. It stays the oldest: were a later one given up before it, the
    /// next start would miss what stood between it and the rest of the log.
    fn give_back(&self, segment: Option<Segment<E>>) {
        if let Some(segment) = segment {
            self.state.borrow_mut().free.push_front(segment);
        }
    }

    async fn prepare(&self) -> crate::disk::Result<Segment<E>> {
        let (number, free) = {
            let mut state = self.state.borrow_mut();
            let number = state.next_segment;
            state.next_segment += 1;
            (number, state.free.pop_front())
        };
        let header = segment::header(&self.env, self.options.cluster, self.log, self.nonce, number);
        match free {
            Some(free) => free.recycle(&self.env, header).await.map_err(|(segment, error)| {
                self.give_back(segment);
                error
            }),
            None => Segment::create(&self.env, header, self.options.segment_bytes).await,
        }
    }
}
