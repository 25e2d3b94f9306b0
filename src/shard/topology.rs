//! Changes where tablets are, one at a time, for the whole store. Done by shard 0, whoever asks.
//!
//! A move: the source flushes most of the tablet and the target opens its tables, while it is served. Then all
//! shards hold back its requests; the source flushes the rest; the target commits that the tablet is its own; all
//! shards learn of it and let the requests go on. What clients see is a pause of the last part, a few
//! milliseconds. A split is the same with one shard and one edit. How each step may fail, and what a crash leaves,
//! is told in [`engine::transfer`](crate::engine).

use std::rc::Rc;
use std::time::Duration;

use super::moves::{Answer, Ask, Assigned, Trouble};
use super::{Message, Shard};
use crate::base::TabletId;
use crate::engine::TabletReport;
use crate::env::Env;
use crate::metrics::Metrics;
use crate::slot::SlotRange;

/// The shard that coordinates.
pub const COORDINATOR: usize = 0;

/// What a change took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// How long requests for the tablet waited, at most.
    pub pause: Duration,
    /// The tablet that came of it: of a split, the new one.
    pub tablet: TabletId,
}

impl<E: Env> Shard<E> {
    /// Has `shard` do something, and waits until it has.
    pub(super) async fn ask(self: &Rc<Self>, shard: usize, ask: Ask) -> Result<Answer, Trouble> {
        if shard == self.id {
            return match self.at_once(ask) {
                Ok(()) => Ok(Answer::Done),
                Err(ask) => self.carry_out(ask).await,
            };
        }
        let id = self.tell(shard, ask);
        let has_come = || self.moves.answers.borrow().contains_key(&id) || self.moves.is_over.get();
        self.moves.came.until(has_come).await;
        let answer = self.moves.answers.borrow_mut().remove(&id);
        // What was asked may have been done all the same.
        answer.unwrap_or_else(|| Err(Trouble::Undecided("this server is stopping".to_owned())))
    }

    /// Has another shard do something.
    fn tell(&self, shard: usize, ask: Ask) -> u64 {
        let id = self.moves.last_ask.get() + 1;
        self.moves.last_ask.set(id);
        self.send(shard, Message::Ask { id, ask });
        id
    }

    /// Has every shard do something at once.
    pub(super) async fn ask_all(self: &Rc<Self>, ask: impl Fn() -> Ask) {
        let others: Vec<u64> =
            (0..self.slots.shards).filter(|s| *s != self.id).map(|s| self.tell(s, ask())).collect();
        let _ = self.at_once(ask());
        let all_came = || {
            let answers = self.moves.answers.borrow();
            others.iter().all(|id| answers.contains_key(id)) || self.moves.is_over.get()
        };
        self.moves.came.until(all_came).await;
        others.iter().for_each(|id| drop(self.moves.answers.borrow_mut().remove(id)));
    }

    /// Every tablet of the store, by slots.
    pub async fn survey(self: &Rc<Self>) -> Result<Vec<TabletReport>, Trouble> {
        let mut all = Vec::new();
        for shard in 0..self.slots.shards {
            if let Answer::Report(tablets) = self.ask(shard, Ask::Report).await? {
                all.extend(tablets);
            }
        }
        all.sort_by_key(|tablet| tablet.slots.first());
        Ok(all)
    }

    async fn find(self: &Rc<Self>, tablet: TabletId) -> Result<TabletReport, Trouble> {
        let all = self.survey().await?;
        // Ids are never used twice, not even that of a split whose outcome nobody knows.
        let next = all.iter().map(|tablet| tablet.id.0 + 1).max().unwrap_or(0);
        self.moves.next_tablet.set(self.moves.next_tablet.get().max(next));
        let found = all.into_iter().find(|report| report.id == tablet);
        found.ok_or_else(|| Trouble::Failed(format!("there is no tablet {tablet}, or nobody serves it")))
    }

    /// Moves a tablet to shard `to`.
    pub async fn move_tablet(self: &Rc<Self>, tablet: TabletId, to: usize) -> Result<Changed, Trouble> {
        assert_eq!(self.id, COORDINATOR, "one shard coordinates");
        let _turn = self.moves.changing.lock().await;
        if to >= self.slots.shards {
            let last = self.slots.shards - 1;
            return Err(Trouble::Failed(format!("there is no shard {to}: they are numbered 0 to {last}")));
        }
        let found = self.find(tablet).await?;
        if found.shard == to {
            return Ok(Changed { pause: Duration::ZERO, tablet });
        }
        let moved = self.move_found(&found, to).await;
        self.count(&moved, &self.metrics.tablet_moves);
        match &moved {
            Ok(changed) => tracing::info!(
                tablet = tablet.0,
                from = found.shard,
                to,
                pause_micros = changed.pause.as_micros() as u64,
                "moved a tablet"
            ),
            Err(trouble) => tracing::warn!(tablet = tablet.0, "a tablet did not move: {trouble}"),
        }
        moved
    }

    async fn move_found(self: &Rc<Self>, found: &TabletReport, to: usize) -> Result<Changed, Trouble> {
        let TabletReport { id: tablet, shard: from, slots, .. } = *found;
        let Answer::Tables(tables) = self.ask(from, Ask::PrepareToLeave(tablet)).await? else {
            unreachable!("a tablet that is ready to leave has tables")
        };
        if let Err(trouble) = self.ask(to, Ask::PrepareToTake(tablet, tables)).await {
            self.give_up(found, to).await;
            return Err(trouble);
        }
        let since = self.env.now();
        let (change, epoch) = (self.moves.last_ask.get(), self.slots.epoch() + 1);
        self.ask_all(|| Ask::Hold { slots, owner: from, change }).await;
        let taken = match self.ask(from, Ask::Pack { tablet, slots, to, change }).await {
            Ok(Answer::Packed(state, now_ms, load)) => {
                self.ask(to, Ask::Take { state, now_ms, load, epoch }).await
            }
            // Whatever became of it, nobody else has the tablet.
            Ok(_) => unreachable!("what was packed is handed over"),
            Err(trouble) => Err(Trouble::Failed(trouble.to_string())),
        };
        let release = |assigned| async move { self.ask_all(|| Ask::Release(assigned)).await };
        match taken {
            Ok(Answer::Placed(local)) => {
                release(Some(Assigned { slots, shard: to, local, epoch })).await;
                let pause = self.env.now() - since;
                if let Err(trouble) = self.ask(from, Ask::Part(tablet)).await {
                    // Its description there has the lower epoch.
                    tracing::warn!("shard {from} did not note that tablet {tablet} has left: {trouble}");
                }
                Ok(Changed { pause, tablet })
            }
            Err(Trouble::Undecided(why)) => {
                let why =
                    format!("tablet {tablet} was about to move to shard {to}, and then: {why}; restart");
                let _ = self.ask(from, Ask::Lose(tablet, slots, why.clone())).await;
                release(None).await;
                Err(Trouble::Undecided(why))
            }
            Err(trouble) => {
                release(None).await;
                self.give_up(found, to).await;
                Err(trouble)
            }
            Ok(_) => unreachable!("what is taken has a place"),
        }
    }

    /// Nothing comes of a move.
    async fn give_up(self: &Rc<Self>, found: &TabletReport, to: usize) {
        let _ = self.ask(to, Ask::ForgetArriving).await;
        let _ = self.ask(found.shard, Ask::Keep(found.id)).await;
    }

    /// Gives the slots of a tablet from `at` on, or the upper half of them, to a new one.
    pub async fn split_tablet(
        self: &Rc<Self>,
        tablet: TabletId,
        at: Option<u16>,
    ) -> Result<Changed, Trouble> {
        assert_eq!(self.id, COORDINATOR, "one shard coordinates");
        let _turn = self.moves.changing.lock().await;
        let found = self.find(tablet).await?;
        let slots = found.slots;
        if slots.count() < 2 {
            return Err(Trouble::Failed(format!("tablet {tablet} has one slot, which can't be divided")));
        }
        let at = at.unwrap_or(slots.first() + slots.count() / 2);
        if at <= slots.first() || at > slots.last() {
            let message = format!(
                "tablet {tablet} has slots {slots}; it can be split at {} to {}",
                slots.first() + 1,
                slots.last()
            );
            return Err(Trouble::Failed(message));
        }
        let split = self.split_found(&found, at).await;
        self.count(&split, &self.metrics.tablet_splits);
        match &split {
            Ok(changed) => tracing::info!(
                tablet = tablet.0,
                at,
                into = changed.tablet.0,
                pause_micros = changed.pause.as_micros() as u64,
                "split a tablet"
            ),
            Err(trouble) => tracing::warn!(tablet = tablet.0, "a tablet did not split: {trouble}"),
        }
        split
    }

    async fn split_found(self: &Rc<Self>, found: &TabletReport, at: u16) -> Result<Changed, Trouble> {
        let TabletReport { id: tablet, shard, slots, .. } = *found;
        let into = TabletId(self.moves.next_tablet.get());
        self.moves.next_tablet.set(into.0 + 1);
        self.ask(shard, Ask::PrepareToLeave(tablet)).await?;
        if let Err(trouble) = self.ask(shard, Ask::PrepareToSplit(tablet, into)).await {
            let _ = self.ask(shard, Ask::Keep(tablet)).await;
            return Err(trouble);
        }
        let since = self.env.now();
        let (change, epoch) = (self.moves.last_ask.get(), self.slots.epoch() + 1);
        self.ask_all(|| Ask::Hold { slots, owner: shard, change }).await;
        let split = self.ask(shard, Ask::Split { tablet, slots, at, into, change, epoch }).await;
        let upper = SlotRange::new(at, slots.last());
        let assigned = match (&split, upper) {
            (Ok(Answer::Placed(local)), Some(slots)) => Some(Assigned { slots, shard, local: *local, epoch }),
            _ => None,
        };
        self.ask_all(|| Ask::Release(assigned)).await;
        let pause = self.env.now() - since;
        // If nobody knows, the files stay as they are.
        if matches!(split, Err(Trouble::Failed(_))) {
            let _ = self.ask(shard, Ask::Keep(tablet)).await;
        }
        split.map(|_| Changed { pause, tablet: into })
    }

    fn count(&self, changed: &Result<Changed, Trouble>, counter: &std::cell::Cell<u64>) {
        match changed {
            Ok(changed) => {
                let micros = changed.pause.as_micros() as u64;
                Metrics::add(counter, 1);
                Metrics::add(&self.metrics.move_pause_micros, micros);
                let longest = self.metrics.move_pause_micros_max.get().max(micros);
                self.metrics.move_pause_micros_max.set(longest);
            }
            Err(_) => Metrics::add(&self.metrics.move_failures, 1),
        }
    }
}
