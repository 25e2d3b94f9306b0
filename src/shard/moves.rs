//! A shard's part in moves and splits of tablets: what [`topology`](super::topology) asks of it.
//!
//! While a tablet moves, its requests wait where they were read: a connection whose next request is for a slot
//! that is [held](Ask::Hold) takes in nothing more until the slot is [released](Ask::Release), so its requests
//! keep their order. Every shard tells the owner by the ring on which it sends requests that no more of them
//! come ([`Message::Quiet`]); what is behind that in the ring is none for the tablet.
//!
//! What may still be at the owner then: requests that wait for the disk or for memory, which it lets end; and
//! frames that wait for their client, or others, to take replies. Nobody may wait for clients: frames that wait for
//! others get a while ([`REPLIES_MAX`]), since others take theirs as a rule, those that wait for their own client none.
//! What is left then is refused when its time comes, if the tablet has gone: nothing of it was done, and the client may
//! try again.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use super::{Message, Outlet, Shard, Stall};
use crate::base::TabletId;
use crate::engine::checkpoint::Linked;
use crate::engine::manifest::{State, TableRef, TabletState};
use crate::engine::{TabletReport, TransferError};
use crate::env::{Env, Lock, Notify, Queue};
use crate::protocol::binary::{HEADER_BYTES, decode_header, decode_request};
use crate::protocol::{Request, Route};
use crate::slot::{SLOT_COUNT, Slot, SlotRange};

/// As which owner an outlet knows held slots.
const HELD: usize = usize::MAX;
/// How long requests under way may keep a tablet from moving. Most wait for one disk read.
const DRAIN_MAX: Duration = Duration::from_millis(50);
/// How long those that wait for room for their replies may do so.
const REPLIES_MAX: Duration = Duration::from_millis(20);
/// How long the other shards may take to say that nothing more comes: longer than any of them runs one task.
const QUIET_MAX: Duration = Duration::from_secs(1);
/// Between two looks at what is under way, at first and later: a look at long pipelines takes its time.
const DRAIN_STEPS: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(2));

/// Where some slots are served from now on.
#[derive(Clone, Copy, Debug)]
pub struct Assigned {
    /// The slots.
    pub slots: SlotRange,
    /// The tablet's local number there.
    pub local: usize,
    /// Who.
    pub shard: usize,
    /// Of the slot table from now on.
    pub epoch: u64,
}

/// What is asked of a shard.
#[derive(Debug)]
pub enum Ask {
    /// Which tablets it has.
    Report,
    /// Make a tablet ready to leave or split.
    PrepareToLeave(TabletId),
    /// Open the tables of a tablet that is to come.
    PrepareToTake(TabletId, Vec<TableRef>),
    /// Link the tables of a tablet for another that is to be split off.
    PrepareToSplit(TabletId, TabletId),
    /// Hold back requests for some slots of `owner`, and tell it by the number of the change. At once.
    Hold {
        /// The slots.
        slots: SlotRange,
        /// Whose they are.
        owner: usize,
        /// Number of the change.
        change: u64,
    },
    /// Describe a tablet for its next owner, once no request for it is under way.
    Pack {
        /// Which.
        tablet: TabletId,
        /// Its slots.
        slots: SlotRange,
        /// The next owner.
        to: usize,
        /// Number of the change.
        change: u64,
    },
    /// Own a tablet.
    Take {
        /// As its owner described it.
        state: Box<TabletState>,
        /// The time by which that hid expired keys.
        now_ms: u64,
        /// How much it was used: [`Engine::load_of`](crate::engine::Engine::load_of).
        load: (u64, f64),
        /// Of the slot table afterwards.
        epoch: u64,
    },
    /// Divide a tablet, once no request for it is under way.
    Split {
        /// Which.
        tablet: TabletId,
        /// Its slots.
        slots: SlotRange,
        /// First slot of the new one.
        at: u16,
        /// The new one.
        into: TabletId,
        /// Number of the change.
        change: u64,
        /// Of the slot table afterwards.
        epoch: u64,
    },
    /// The tablet is another's now.
    Part(TabletId),
    /// Nothing comes of it: the tablet stays.
    Keep(TabletId),
    /// Nobody knows whose the tablet is: serve it no more.
    Lose(TabletId, SlotRange, String),
    /// Nothing comes: close what was opened.
    ForgetArriving,
    /// Let no write happen until the next of these. At once.
    HoldWrites,
    /// What was written belongs to the checkpoint. At once.
    SealCheckpoint,
    /// Link this shard's part of the checkpoint into a directory, when it is in tables.
    Checkpoint(String),
    /// Nothing comes of the checkpoint. At once.
    ForgetCheckpoint,
    /// Let requests go on, and route them as is said here. At once.
    Release(Option<Assigned>),
}

/// What came of it.
#[derive(Debug)]
pub enum Answer {
    /// It is done.
    Done,
    /// Its tablets.
    Report(Vec<TabletReport>),
    /// The tables of a tablet that is ready to leave.
    Tables(Vec<TableRef>),
    /// The tablet as its next owner will have it, the time by which this one hid expired keys, and how much the
    /// tablet was used.
    Packed(Box<TabletState>, u64, (u64, f64)),
    /// It is here, under this local number.
    Placed(usize),
    /// A shard's part of a checkpoint.
    Checkpoint(Box<State>, Linked),
}

/// Why a tablet did not move or split.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// It stays as it was.
    #[error("{0}")]
    Failed(String),
    /// Only the next start knows.
    #[error("{0}")]
    Undecided(String),
}

impl From<TransferError> for Trouble {
    fn from(error: TransferError) -> Trouble {
        match &error {
            TransferError::Undecided(_) => Trouble::Undecided(error.to_string()),
            _ => Trouble::Failed(error.to_string()),
        }
    }
}

/// What a shard knows of changes under way.
#[derive(Default)]
pub(super) struct Moves {
    /// Slots of a tablet that is being handed over: what would be done to it now would not go along. Frames that
    /// waited for their client to take replies may come that late.
    packed: Cell<Option<SlotRange>>,
    /// Outlets that wait for them.
    held_back: RefCell<Vec<u64>>,
    /// By change, how many shards have said that nothing more comes.
    quiet: RefCell<HashMap<u64, usize>>,
    /// By slot, how many requests have a task of their own, or are done in slices. Empty before the first.
    under_way: RefCell<Vec<u32>>,
    /// Slots that are not served, and why.
    lost: RefCell<Vec<(SlotRange, String)>>,
    /// Answers to what this shard has asked.
    pub(super) answers: RefCell<HashMap<u64, Result<Answer, Trouble>>>,
    pub(super) last_ask: Cell<u64>,
    /// Notified when an answer or a word of quiet came.
    pub(super) came: Notify,
    /// Held by whoever changes the topology.
    pub(super) changing: Lock,
    /// Ids of tablets below this one were given away.
    pub(super) next_tablet: Cell<u32>,
    /// The mesh is not served any more: no answers come.
    pub(super) is_over: Cell<bool>,
    /// The server is stopping: no more changes begin.
    pub(super) is_ending: Cell<bool>,
}

/// The slots that a request is about.
fn slots_of(request: &Request<'_>) -> smallvec::SmallVec<[Slot; 2]> {
    match request.route() {
        Route::Slot(slot) => std::iter::once(slot).collect(),
        Route::Keys(keys) => keys.map(Slot::of_key).collect(),
        _ => smallvec::SmallVec::new(),
    }
}

impl<E: Env> Shard<E> {
    /// Whether a request must wait at this shard, before it is taken in. If so, the outlet is told.
    #[inline]
    pub(super) fn holds_back(&self, token: u64, outlet: &dyn Outlet, request: &Request<'_>) -> bool {
        if !self.holds(request) {
            return false;
        }
        outlet.stall(HELD, Stall::Move);
        self.moves.held_back.borrow_mut().push(token);
        true
    }

    /// Whether a request is about slots that are held.
    #[inline]
    pub(super) fn holds(&self, request: &Request<'_>) -> bool {
        let Some(slots) = self.slots.held() else { return false };
        request.route() == Route::Everywhere || slots_of(request).iter().any(|slot| slots.contains(*slot))
    }

    /// Notes that a request has a task of its own, or is done in slices; undone by [`Shard::has_ended`].
    pub(super) fn begins(&self, request: &Request<'_>) -> smallvec::SmallVec<[Slot; 2]> {
        let slots = slots_of(request);
        let mut under_way = self.moves.under_way.borrow_mut();
        if under_way.is_empty() {
            under_way.resize(usize::from(SLOT_COUNT), 0);
        }
        slots.iter().for_each(|slot| under_way[usize::from(slot.number())] += 1);
        slots
    }

    pub(super) fn has_ended(&self, slots: &[Slot]) {
        let mut under_way = self.moves.under_way.borrow_mut();
        for slot in slots {
            under_way[usize::from(slot.number())] -= 1;
        }
    }

    /// Whether a slot's tablet is being handed over: nobody may change it here any more.
    #[inline]
    pub(super) fn is_packed(&self, slot: Slot) -> bool {
        self.moves.packed.get().is_some_and(|slots| slots.contains(slot))
    }

    /// Whether a tablet of this shard is being handed over.
    pub(super) fn is_packing(&self) -> bool {
        self.moves.packed.get().is_some()
    }

    /// Waits until no requests are held back here: then this shard routes as all others do, or will soon.
    pub(super) async fn released(&self) {
        self.engine.changed().until(|| self.slots.held().is_none()).await;
    }

    /// Why nobody serves a slot, if that is known.
    pub(super) fn loss_of(&self, slot: Slot) -> Option<String> {
        let lost = self.moves.lost.borrow();
        lost.iter().find(|(slots, _)| slots.contains(slot)).map(|(_, why)| why.clone())
    }

    /// Why some slots of this shard are not served, if there are any.
    pub(super) fn any_loss(&self) -> Option<String> {
        self.moves.lost.borrow().first().map(|(_, why)| why.clone())
    }

    /// Another shard says that none of its requests for the slots of a change is on its way any more.
    pub(super) fn take_quiet(&self, change: u64) {
        *self.moves.quiet.borrow_mut().entry(change).or_default() += 1;
        self.moves.came.notify();
    }

    pub(super) fn take_answer(&self, id: u64, answer: Result<Answer, Trouble>) {
        self.moves.answers.borrow_mut().insert(id, answer);
        self.moves.came.notify();
    }

    /// Does what peer `source` asks, and answers it.
    pub(super) fn take_ask(self: &Rc<Self>, source: usize, id: u64, ask: Ask) {
        let ask = match self.at_once(ask) {
            Ok(()) => return self.send(source, Message::Answer { id, answer: Ok(Answer::Done) }),
            Err(ask) => ask,
        };
        let (shard, guard) = (self.clone(), self.pending.enter());
        self.env.spawn(Queue::Foreground, async move {
            let answer = shard.carry_out(ask).await;
            shard.send(source, Message::Answer { id, answer });
            drop(guard);
        });
    }

    /// Does what must be done in the order in which messages come; gives back what takes time.
    pub(super) fn at_once(self: &Rc<Self>, ask: Ask) -> Result<(), Ask> {
        match ask {
            Ask::Hold { slots, owner, change } => {
                self.slots.hold(Some(slots));
                if owner != self.id {
                    self.send(owner, Message::Quiet { change });
                }
            }
            Ask::Release(assigned) => {
                self.slots.hold(None);
                self.moves.packed.set(None);
                if let Some(Assigned { slots, shard, local, epoch }) = assigned
                    && self.slots.epoch() < epoch
                {
                    self.slots.assign(slots, shard, local, epoch);
                    if shard != self.id {
                        self.engine.hand_over(slots);
                    }
                }
                for token in self.moves.held_back.take() {
                    self.take_stall(HELD, token, Stall::Over);
                }
                self.resume_after_move();
                // Range deletes wait for it, at their shards and at those that send them.
                self.engine.changed().notify();
                // Unless this is a turn already, whoever waited would not be told before the next.
                self.end_turn();
            }
            Ask::HoldWrites => self.hold_writes(),
            Ask::SealCheckpoint => self.seal_checkpoint(),
            Ask::ForgetCheckpoint => self.engine.forget_checkpoint(),
            other => return Err(other),
        }
        Ok(())
    }

    /// Does what takes time.
    pub(super) async fn carry_out(self: &Rc<Self>, ask: Ask) -> Result<Answer, Trouble> {
        let engine = &self.engine;
        match ask {
            Ask::Report => return Ok(Answer::Report(engine.report(self.id))),
            Ask::PrepareToLeave(tablet) => {
                engine.prepare_to_leave(tablet).await?;
                return Ok(Answer::Tables(engine.tables_of(tablet)));
            }
            Ask::PrepareToTake(tablet, tables) => {
                engine.prepare_to_take(tablet, &tables).await.map_err(TransferError::from)?;
            }
            Ask::PrepareToSplit(tablet, into) => engine.prepare_to_split(tablet, into).await?,
            Ask::Pack { tablet, slots, to, change } => {
                self.quiesce(slots, change).await?;
                let state = engine.pack(tablet, to as u32).await?;
                return Ok(Answer::Packed(Box::new(state), engine.tick(), engine.load_of(tablet)));
            }
            Ask::Take { state, now_ms, load: (uses, rate), epoch } => {
                let slots = state.slots;
                engine.catch_up(now_ms);
                let local = engine.take(*state).await?;
                engine.adopt_load(local, uses, rate);
                // Before anyone else: requests come as soon as others have released theirs.
                self.slots.assign(slots, self.id, local, epoch);
                return Ok(Answer::Placed(local));
            }
            Ask::Split { tablet, slots, at, into, change, epoch } => {
                self.quiesce(slots, change).await?;
                let local = engine.split(tablet, at, into).await?;
                let upper = SlotRange::new(at, slots.last());
                let upper = upper.ok_or_else(|| Trouble::Failed(format!("slot {at} is not in {slots}")))?;
                self.slots.assign(upper, self.id, local, epoch);
                // Which half is used how much is not known yet.
                let (uses, rate) = engine.load_of(tablet);
                if let Some(lower) = engine.locate(tablet) {
                    engine.adopt_load(lower, uses - uses / 2, rate / 2.0);
                    engine.adopt_load(local, uses / 2, rate / 2.0);
                }
                return Ok(Answer::Placed(local));
            }
            Ask::Part(tablet) => {
                engine.part(tablet).await.map_err(|error| Trouble::Failed(error.to_string()))?;
            }
            Ask::Keep(tablet) => {
                engine.keep(tablet).await;
                engine.forget_arriving().await;
            }
            Ask::Lose(tablet, slots, why) => {
                self.slots.close(slots);
                self.moves.lost.borrow_mut().push((slots, why));
                engine.lose(tablet).await.map_err(|error| Trouble::Failed(error.to_string()))?;
            }
            Ask::ForgetArriving => engine.forget_arriving().await,
            Ask::Checkpoint(dir) => return self.link_checkpoint(&dir).await,
            Ask::Hold { .. }
            | Ask::Release(_)
            | Ask::HoldWrites
            | Ask::SealCheckpoint
            | Ask::ForgetCheckpoint => unreachable!("these are done at once"),
        }
        Ok(Answer::Done)
    }

    /// Waits until no request for `slots` comes any more, and none is under way.
    async fn quiesce(&self, slots: SlotRange, change: u64) -> Result<(), Trouble> {
        let others = self.slots.shards - 1;
        let heard = || self.moves.quiet.borrow().get(&change).copied().unwrap_or(0);
        let all = self.moves.came.until(|| heard() == others || self.moves.is_over.get());
        futures_lite::future::or(all, self.env.sleep(QUIET_MAX)).await;
        let is_quiet = heard() == others;
        self.moves.quiet.borrow_mut().remove(&change);
        if !is_quiet {
            return Err(Trouble::Failed("another shard did not answer in time; try again".to_owned()));
        }
        let since = self.env.now();
        let mut step = DRAIN_STEPS.0;
        let may_wait = || self.env.now() - since <= REPLIES_MAX;
        while self.is_busy_with(slots, may_wait()) {
            if self.env.now() - since > DRAIN_MAX {
                let message = "its requests wait for the disk or for memory all the time; try again later";
                return Err(Trouble::Failed(message.to_owned()));
            }
            self.env.sleep(step).await;
            step = (step * 2).min(DRAIN_STEPS.1);
        }
        // In the step in which nothing was found to be under way.
        self.moves.packed.set(Some(slots));
        Ok(())
    }

    /// Whether requests for some of `slots` are under way, or wait here for something that comes soon; room for replies
    /// may be such a thing.
    fn is_busy_with(&self, slots: SlotRange, room_is_soon: bool) -> bool {
        let held = usize::from(slots.first())..=usize::from(slots.last());
        let is_under_way =
            self.moves.under_way.borrow().get(held).is_some_and(|counts| counts.iter().any(|n| *n > 0));
        if is_under_way {
            return true;
        }
        let waiting = self.waiting.borrow();
        let soon = waiting.values().filter(|waiting| !waiting.waits_for_clients(room_is_soon));
        soon.flat_map(|waiting| waiting.frames()).any(|frames| self.has_request_for(frames, slots))
    }

    fn has_request_for(&self, mut frames: &[u8], slots: SlotRange) -> bool {
        while let Ok(Some(header)) = decode_header(frames, &self.limits)
            && let Some(frame) = frames.get(..header.frame_bytes())
        {
            let request = decode_request(&header, &frame[HEADER_BYTES..], &self.limits);
            if request.is_ok_and(|request| slots_of(&request).iter().any(|slot| slots.contains(*slot))) {
                return true;
            }
            frames = &frames[frame.len()..];
        }
        false
    }
}
