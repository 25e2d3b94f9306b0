//! Replies that wait for those of other shards. A client that knows nothing of shards asks several of them with one
//! pipeline. Sent as they come, its replies are as many sends as shards, and as many pipelines from then on, each a
//! part of the one before: the client asks anew for what was answered.
//!
//! So few replies are kept back until all shards, this one included, have answered what they were asked before, for
//! two [ticks](TICK) at most; after that nothing waits for these any more. Who has asked no other shard is not kept
//! waiting.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::{Connection, SEND_BYTES};
use crate::env::{Env, Queue};

/// A reply is kept back for one to two of these at most. What is in memory comes from another shard within some ten
/// microseconds if that is busy, and a commit takes a hundred to some hundreds.
const TICK: Duration = Duration::from_micros(100);

/// Whose replies are kept back.
pub struct KeptBack<E: Env> {
    /// Since before the last tick, and since then; and for which of the other shards' answers.
    old: RefCell<Kept<E>>,
    young: RefCell<Kept<E>>,
    is_ticking: Cell<bool>,
}

type Kept<E> = Vec<(Weak<Connection<E>>, u64)>;

impl<E: Env> KeptBack<E> {
    /// Nobody's.
    pub fn new() -> Rc<KeptBack<E>> {
        Rc::new(KeptBack { old: RefCell::default(), young: RefCell::default(), is_ticking: Cell::new(false) })
    }

    fn add(self: &Rc<Self>, env: &E, connection: Weak<Connection<E>>, until: u64) {
        self.young.borrow_mut().push((connection, until));
        if self.is_ticking.replace(true) {
            return;
        }
        // Detached: it holds nothing that the end of the shard waits for.
        let (me, sleeper) = (self.clone(), env.clone());
        env.spawn(Queue::Foreground, async move {
            while !me.is_empty() {
                sleeper.sleep(TICK).await;
                me.tick();
            }
            me.is_ticking.set(false);
        });
    }

    fn is_empty(&self) -> bool {
        self.old.borrow().is_empty() && self.young.borrow().is_empty()
    }

    /// Sends what has waited for a tick or more.
    fn tick(&self) {
        let mut over = self.old.replace(self.young.take());
        for (connection, until) in over.drain(..) {
            if let Some(connection) = connection.upgrade() {
                connection.wait_no_more(until);
            }
        }
        // Its memory is of use again, unless some came meanwhile.
        let mut young = self.young.borrow_mut();
        if young.is_empty() {
            *young = over;
        }
    }
}

/// What of a connection's requests is still to be answered, and where.
#[derive(Default)]
pub(super) struct Abroad {
    /// Requests taken in, ever.
    taken: Cell<u64>,
    /// Of these, how many are answered.
    answered: Cell<u64>,
    /// How many other shards have been asked, and have not answered yet.
    abroad: Cell<u64>,
    /// An answer of another shard is among what was not sent yet.
    has_some: Cell<bool>,
    /// Replies are kept back until so many are answered.
    until: Cell<Option<u64>>,
    /// Nothing waits for so many of them any more.
    too_late: Cell<u64>,
}

impl Abroad {
    pub fn take(&self) {
        self.taken.set(self.taken.get() + 1);
    }

    pub fn ask(&self, count: u32) {
        self.abroad.set(self.abroad.get() + u64::from(count));
    }

    pub fn answer(&self, count: u32, is_from_abroad: bool) {
        self.answered.set(self.answered.get() + u64::from(count));
        assert!(self.answered.get() <= self.taken.get(), "no more is answered than was taken in");
        if is_from_abroad {
            let left = self.abroad.get().checked_sub(u64::from(count));
            self.abroad.set(left.expect("other shards answer what they were asked"));
            self.has_some.set(true);
        }
    }

    /// All that was answered has left.
    pub fn sent(&self) {
        self.has_some.set(false);
    }

    /// Whether some replies are worth waiting for: only where several shards were asked.
    fn is_awaited(&self) -> bool {
        let until = self.until.get().unwrap_or(self.taken.get());
        let is_spread = self.abroad.get() > 0 || self.has_some.get();
        is_spread && self.answered.get() < until && until > self.too_late.get()
    }
}

impl<E: Env> Connection<E> {
    /// Sends what there is, unless it is little and more will come soon. Whether it will leave later in this turn.
    pub(super) fn send_or_keep(&self) -> bool {
        let is_little = (1..SEND_BYTES).contains(&self.unsent()) && !self.is_writing.get();
        if is_little && !self.is_broken.get() && self.abroad.is_awaited() {
            if self.abroad.until.get().is_none() {
                let until = self.abroad.taken.get();
                self.abroad.until.set(Some(until));
                self.kept_back.add(&self.shard.env, self.me.borrow().clone(), until);
            }
            return false;
        }
        self.abroad.until.set(None);
        let is_later = self.write_later();
        if !is_later {
            self.write_now();
        }
        is_later
    }

    /// What was kept back until other shards have answered so many requests leaves now.
    fn wait_no_more(&self, until: u64) {
        if self.abroad.until.get() != Some(until) {
            return;
        }
        self.abroad.until.set(None);
        self.abroad.too_late.set(until);
        self.write_now();
        self.let_owner_go_on();
        self.moved.notify();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many requests taken in, some of them for other shards.
    fn take(abroad: &Abroad, count: u32, of_others: u32) {
        (0..count).for_each(|_| abroad.take());
        abroad.ask(of_others);
    }

    #[test]
    fn replies_wait_for_what_was_asked_before_and_only_once() {
        let abroad = Abroad::default();
        assert!(!abroad.is_awaited(), "nothing was asked");
        take(&abroad, 3, 3);
        assert!(abroad.is_awaited());
        abroad.until.set(Some(3));
        // What is asked meanwhile is not waited for.
        take(&abroad, 2, 2);
        abroad.answer(2, true);
        assert!(abroad.is_awaited());
        abroad.answer(1, true);
        assert!(!abroad.is_awaited());
        abroad.until.set(None);
        assert!(abroad.is_awaited(), "the next ones wait for what was asked since");
        abroad.too_late.set(5);
        assert!(!abroad.is_awaited(), "that took too long");
        take(&abroad, 1, 1);
        assert!(abroad.is_awaited());
        abroad.answer(3, true);
        assert!(!abroad.is_awaited());
    }

    #[test]
    fn answers_of_other_shards_wait_for_those_of_this_one_and_its_own_for_nobody() {
        let abroad = Abroad::default();
        take(&abroad, 3, 0);
        abroad.answer(1, false);
        assert!(!abroad.is_awaited(), "no other shard was asked");
        take(&abroad, 1, 1);
        assert!(abroad.is_awaited());
        abroad.answer(1, true);
        assert!(abroad.is_awaited(), "the other shard was first");
        abroad.answer(1, false);
        assert!(abroad.is_awaited());
        abroad.sent();
        assert!(!abroad.is_awaited(), "what is left is of this shard alone");
    }

    #[test]
    #[should_panic(expected = "what they were asked")]
    fn more_answers_than_questions_are_a_fault() {
        let abroad = Abroad::default();
        take(&abroad, 2, 1);
        abroad.answer(2, true);
    }
}
