//! One pipeline: requests on their way together, and the comparison of what they are answered.
//!
//! Requests for one key go over one connection, so what each must be answered follows from their order. An MGET
//! is exact for the keys of its own connection; of a key that another one writes meanwhile it may tell any state
//! that the key had. The same goes for the snapshots of scans that begin meanwhile. A range delete comes in order for
//! the keys of its own connection, and at any moment for others ([`crate::fates`]).

use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

use atlaskv::env::Env;
use atlaskv::error::{Class, Code};
use atlaskv::protocol::binary::{KeyList, OpList, encode_request};
use atlaskv::protocol::{Action, BatchOp, Condition, DeleteRange, Durability, Request};
use atlaskv::slot::Slot;

use crate::fates::{Fates, Left, Range, Removal, is_value};
use crate::keys::Key;
use crate::reference::{Act, Item, Live, MARGIN_MS, Op, Span};
use crate::run::{Run, TABLETS_MAX, Unsure};
use crate::scans::{Scan, Snap, State, Window};
use crate::store::{Answer, Store};
use crate::verify::{Difference, ask};

/// What a range delete takes in the log beyond its bounds, for each tablet.
const RANGE_OVERHEAD: usize = 256;

/// Requests that were sent, until they are answered.
#[derive(Clone)]
pub struct Flight {
    /// By which connection, and what.
    pub ops: Rc<Vec<(usize, Op)>>,
    /// What the shards' clocks showed, and when.
    pub since: (Span, Duration),
    /// What there was before, if it is wanted.
    pub base: Option<Rc<std::collections::BTreeMap<Key, Live>>>,
    /// Which connection a slot's requests take.
    pub salt: usize,
    pub connections: usize,
    /// Bytes of the log that the parts of a range delete may take on a shard.
    pub range_bytes_max: usize,
}

impl Flight {
    pub fn connection(&self, key: &[u8]) -> usize {
        (usize::from(Slot::of_key(key).number()) + self.salt) % self.connections
    }
}

/// The frame of a request.
fn encode(out: &mut Vec<u8>, id: usize, op: &Op) {
    let durability = Durability::Default;
    let mut encode = |request: &Request<'_>| encode_request(out, id as u64, request);
    match op {
        Op::Get(key) => encode(&Request::Get { key }),
        Op::Ttl(key) => encode(&Request::Ttl { key }),
        Op::Set { key, value, expiry, condition } => {
            encode(&Request::Set { key, value, expiry: *expiry, condition: *condition, durability })
        }
        Op::Delete { key, condition } => encode(&Request::Delete { key, condition: *condition, durability }),
        Op::Incr { key, amount } => encode(&Request::Incr { key, amount: *amount, durability }),
        Op::Expire { key, deadline, condition } => {
            encode(&Request::Expire { key, deadline: *deadline, condition: *condition, durability })
        }
        Op::Persist { key, condition } => {
            encode(&Request::Persist { key, condition: *condition, durability })
        }
        Op::Mget(keys) => {
            let mut list = KeyList::default();
            keys.iter().for_each(|key| list.push(key));
            encode(&Request::Mget { keys: list.keys() })
        }
        Op::Batch(items) => {
            let mut list = OpList::default();
            for Item { key, condition, act } in items {
                let action = match act {
                    Act::Put(value, expiry) => Action::Put { value, expiry: *expiry },
                    Act::Delete => Action::Delete,
                    Act::Expire(deadline) => Action::Expire(*deadline),
                    Act::Persist => Action::Persist,
                    Act::Check => Action::Check,
                };
                list.push(&BatchOp { key, condition: *condition, action });
            }
            encode(&Request::Batch { ops: list.ops(), durability })
        }
        Op::DeleteRange { start, end } => {
            encode(&Request::DeleteRange(DeleteRange { start, end, is_local: false, epoch: 0, durability }))
        }
        Op::Page(ask) => encode(&Request::Scan(ask.request())),
    }
}

fn differs(key: &Key, what: String) -> Difference {
    Difference::of(vec![key.clone()], what)
}

/// The keys of which an answer tells something: of a batch whose condition fails those that had conditions up to it.
fn told_of<'a>(op: &'a Op, answer: &Answer) -> Vec<&'a Key> {
    match (op, answer) {
        (Op::Batch(items), Answer::BatchUnmet(unmet, _)) => {
            let looked_at = items.iter().take(*unmet as usize + 1);
            looked_at.filter(|item| item.condition != Condition::None).map(|item| &item.key).collect()
        }
        _ => op.keys(),
    }
}

/// What a pipeline came to.
pub struct Landed {
    pub snap: Snap,
    /// Batches of it, by request, whose keys must all have been written or none.
    pub batches: Vec<(usize, Vec<Key>)>,
    /// Keys that may be several things.
    pub unsure: Window,
}

impl Run {
    /// Sends requests and compares their answers.
    pub async fn exchange(&mut self, store: &Store, flight: Flight) -> Result<Landed, Difference> {
        let ops = flight.ops.clone();
        let mut frames = vec![Vec::new(); store.connections.len()];
        for (id, (connection, op)) in ops.iter().enumerate() {
            encode(&mut frames[*connection], id, op);
        }
        store.begin(ops.len());
        self.flight = Some(flight.clone());
        self.progress.set(self.progress.get() + 1);
        let cuts = if self.work.rng.u8(..4) == 0 { self.work.rng.usize(1..3000) } else { usize::MAX };
        let sends = frames.iter().enumerate().filter(|(_, bytes)| !bytes.is_empty());
        join_all(sends.map(|(connection, bytes)| store.send(connection, bytes, cuts)).collect()).await;
        let answers = store.answers().await;
        self.flight = None;
        self.progress.set(self.progress.get() + 1);
        let now = (flight.since.0.0, self.clocks(store).1);
        // Nothing expires within twice this time.
        let most = if self.may_fail { 2 * MARGIN_MS } else { MARGIN_MS };
        assert!(now.1 - now.0 < most, "a pipeline took {} ms", now.1 - now.0);
        if self.may_fail && answers.iter().any(Answer::is_fault) {
            return Err(self.fail(&flight, answers, now)?);
        }
        let landed = self.land(store, &flight, answers, now)?;
        if !landed.unsure.is_empty() {
            // The power may go before all of it was seen.
            let (window, batches) = (landed.unsure.clone(), landed.batches.clone());
            self.unsure = Some(Unsure { window, batches });
            self.look(store, &landed.unsure).await?;
            self.unsure = None;
        }
        Ok(landed)
    }

    /// Some requests were refused for what the disk has done: what may have become of their keys is undecided.
    fn fail(&mut self, flight: &Flight, answers: Vec<Answer>, now: Span) -> Result<Difference, Difference> {
        let what = format!("{:.200?}", answers.iter().find(|answer| answer.is_fault()));
        let answers: Vec<Option<Answer>> = answers.into_iter().map(Some).collect();
        let Landed { unsure: window, batches, .. } = self.cut_off(flight, &answers, now)?;
        self.unsure = Some(Unsure { window, batches });
        // Pages may have been among them.
        self.scans.iter_mut().for_each(|scan| scan.may_renew = true);
        Ok(Difference { is_fault: true, ..Difference::of(Vec::new(), what) })
    }

    /// Reads keys that may be several things.
    async fn look(&mut self, store: &Store, unsure: &Window) -> Result<(), Difference> {
        for (key, states) in unsure {
            let found = match ask(store, 0, &Request::Get { key }).await {
                // When it expires may be all that is unsure.
                Answer::Value(version, value) => match ask(store, 0, &Request::Ttl { key }).await {
                    Answer::Lifetime(of, expiry_ms) if of == version => Some((version, expiry_ms, value)),
                    other => {
                        let what = format!("TTL of what has {version}");
                        return Err(Difference::answered(vec![key.clone()], &what, &other));
                    }
                },
                Answer::Absent => None,
                other => return Err(Difference::answered(vec![key.clone()], "GET", &other)),
            };
            let is_it = |state: &&State| match (&state.live, &found) {
                (None, None) => true,
                (Some(live), Some((version, expiry_ms, value))) => live.is(*version, *expiry_ms, Some(value)),
                _ => false,
            };
            let Some(state) = states.iter().find(is_it) else {
                return Err(differs(key, format!("it is {found:.80?}, not one of {states:.300?}")));
            };
            self.reference.set(key, state.live.clone());
        }
        Ok(())
    }

    /// Compares answers in the order in which the requests were sent.
    fn land(
        &mut self,
        store: &Store,
        flight: &Flight,
        answers: Vec<Answer>,
        now: Span,
    ) -> Result<Landed, Difference> {
        let first = self.step;
        self.step += answers.len() as u64;
        for (id, (op, answer)) in flight.ops.iter().zip(&answers).enumerate() {
            self.log.note(first + id as u64, op.1.clone(), Some(answer.clone()));
        }
        let connection_of = |key: &[u8]| flight.connection(key);
        let answered = |id: usize| Some(&answers[id]);
        let range = self.range_of(flight, answered)?;
        let (is_exact, mut batches) = (range.is_none(), Vec::new());
        let batch_bytes = self.work.batch_bytes();
        let mut fates = Fates::new(&mut self.reference, now, batch_bytes, range);
        let (mut loose, mut too_large) = (Vec::new(), Vec::new());
        for (id, ((connection, op), answer)) in flight.ops.iter().zip(&answers).enumerate() {
            match op {
                Op::Page(_) => {}
                Op::DeleteRange { .. } => fates.pass_range(connection_of),
                // Nothing was done. Pipelines of large replies, and moves, have to come together for it.
                _ if self.changing_at_start && matches!(answer, Answer::Refused(Code::SlotMoving, _)) => {
                    self.met.sent_away += 1;
                }
                // Together these may be more than a frame takes.
                Op::Mget(keys) if matches!(answer, Answer::Refused(Code::ReplyTooLarge, _)) => {
                    self.met.too_large += 1;
                    too_large.push(keys);
                }
                Op::Mget(keys) => {
                    let Answer::Values(values) = answer else {
                        return Err(Difference::of(keys.clone(), format!("MGET: {answer:.200?}")));
                    };
                    for (key, value) in keys.iter().zip(values) {
                        if flight.connection(key) == *connection {
                            fates.take_value(*connection, key, value)?;
                        } else {
                            loose.push((key, value));
                        }
                    }
                }
                _ => fates.take(id, *connection, op, answer)?,
            }
            if let (Op::Batch(items), Answer::Written(_), true) = (op, answer, is_exact) {
                let written = items.iter().filter(|item| item.act.is_write());
                batches.push((id, written.map(|item| item.key.clone()).collect()));
                self.met.batches += 1;
            }
            self.met.unmet += u64::from(matches!(answer, Answer::BatchUnmet(..)));
        }
        let Left { window, unsure } = fates.leave(connection_of);
        let snap = Snap { base: flight.base.clone().unwrap_or_default(), maybe: Rc::new(window) };
        for keys in too_large {
            let longest = |key: &Key| {
                let states =
                    snap.maybe.get(key).into_iter().flatten().filter_map(|state| state.live.as_ref());
                states.chain(self.reference.live.get(key)).map(|live| live.value.len()).max()
            };
            if keys.iter().filter_map(longest).sum::<usize>() < 500_000 {
                return Err(Difference::of(keys.clone(), "its values fit a frame".to_owned()));
            }
        }
        for (key, value) in loose {
            let is_known = match snap.maybe.get(key) {
                Some(states) => states.iter().any(|state| is_value(state.live.as_ref(), value)),
                None => is_value(self.reference.live.get(key), value),
            };
            if !is_known {
                return Err(differs(key, format!("MGET {value:.80?} is nothing that it was meanwhile")));
            }
        }
        for ((_, op), answer) in flight.ops.iter().zip(answers) {
            if let Op::Page(ask) = op {
                self.land_page(store, ask.scan, answer, &snap)?;
            }
        }
        Ok(Landed { snap, batches, unsure })
    }

    /// The range delete of a pipeline, and how it ended.
    fn range_of<'a>(
        &mut self,
        flight: &Flight,
        answer: impl Fn(usize) -> Option<&'a Answer>,
    ) -> Result<Option<Range>, Difference> {
        let found = flight.ops.iter().enumerate().find_map(|(id, (connection, op))| match op {
            Op::DeleteRange { start, end } => Some((id, *connection, start.clone(), end.clone())),
            _ => None,
        });
        let Some((id, connection, start, end)) = found else { return Ok(None) };
        // Tablets that move between its parts make it begin anew, for some time. All its parts of one shard together
        // must fit a part of the log, and bounds of a tablet are kept up to some length.
        let may_move = self.changing_at_start;
        let may_be_long = (start.len() + end.len() + RANGE_OVERHEAD) * TABLETS_MAX > flight.range_bytes_max;
        let may_be_many = self.work.pool.longest() > 4000;
        let is_allowed = |code| match code {
            Code::SlotMoving => may_move,
            Code::BatchTooLarge => may_be_long,
            Code::Overloaded => may_be_many,
            Code::PartlyDone => may_move || may_be_long || may_be_many,
            _ => false,
        };
        let removal = match answer(id) {
            Some(Answer::Done) => Removal::Done,
            Some(Answer::Refused(code, _)) if is_allowed(*code) => {
                self.met.ranges_refused += 1;
                if code.may_be_applied() { Removal::Maybe } else { Removal::Nothing }
            }
            Some(Answer::Refused(code, _)) if self.may_fail && code.class() != Class::Request => {
                if code.may_be_applied() { Removal::Maybe } else { Removal::Nothing }
            }
            Some(other) => {
                return Err(Difference::of(Vec::new(), format!("a range delete: {other:.200?}")));
            }
            None => Removal::Maybe,
        };
        self.met.ranges += 1;
        Ok(Some(Range { id, connection, start, end, removal, may_repeat: may_move }))
    }

    fn land_page(&mut self, store: &Store, scan: u64, answer: Answer, now: &Snap) -> Result<(), Difference> {
        let place = self.scans.iter().position(|open| open.ask.scan == scan).expect("it was asked for");
        let is_changing = self.changing_at_start;
        let open = &mut self.scans[place];
        match answer {
            Answer::Page { entries, cursor, is_new_snapshot } => {
                self.met.pages += 1;
                self.met.renewals += u64::from(is_new_snapshot);
                let is_first = open.snap.is_none();
                if is_first && is_changing {
                    open.may_renew = true;
                }
                // As if the answer had been lost: the same page is asked for again.
                let before = (self.work.rng.u8(..30) == 0 && !open.ask.is_local).then(|| open.clone());
                let shard = self.owner_filter(store, place, now);
                let open = &mut self.scans[place];
                open.may_begin_anew = store.is_short && !open.ask.is_local;
                let is_over = open.take(entries, cursor, is_new_snapshot, shard.as_ref().unwrap_or(now))?;
                open.used = store.env.now();
                if is_new_snapshot {
                    open.may_renew = is_changing;
                }
                if let Some(before) = before {
                    *open = Scan { may_renew: true, used: open.used, ..before };
                } else if is_over {
                    self.scans.remove(place);
                }
                Ok(())
            }
            // One that begins while its tablet leaves is told to try again.
            Answer::Refused(code, _) if code.class() == Class::Later && (open.may_renew || is_changing) => {
                self.met.scans_refused += 1;
                Ok(())
            }
            other => Err(Difference::of(Vec::new(), format!("scan {scan}: {other:.200?}"))),
        }
    }

    /// Of a scan of one shard's keys, the part of a snapshot that is that shard's.
    fn owner_filter(&self, store: &Store, place: usize, now: &Snap) -> Option<Snap> {
        let open = &self.scans[place];
        if !open.ask.is_local || open.snap.is_some() {
            return None;
        }
        let slots = &store.shards[open.connection].slots;
        let is_here = |key: &Key| slots.shard(Slot::of_key(key)) == open.connection;
        let base = now.base.iter().filter(|(key, _)| is_here(key)).map(|(k, l)| (k.clone(), l.clone()));
        let maybe = now.maybe.iter().filter(|(key, _)| is_here(key)).map(|(k, s)| (k.clone(), s.clone()));
        Some(Snap { base: Rc::new(base.collect()), maybe: Rc::new(maybe.collect()) })
    }

    /// What may be there of a pipeline that a crash cut off: the writes that were answered, and of each key some
    /// of those that were not, in order.
    pub fn cut_off(
        &mut self,
        flight: &Flight,
        answers: &[Option<Answer>],
        now: Span,
    ) -> Result<Landed, Difference> {
        let range = self.range_of(flight, |id| answers[id].as_ref())?;
        let (is_exact, mut batches) = (range.is_none(), Vec::new());
        let mut open: HashSet<Key> = HashSet::new();
        let batch_bytes = self.work.batch_bytes();
        let mut fates = Fates::new(&mut self.reference, now, batch_bytes, range);
        for (id, ((connection, op), answer)) in flight.ops.iter().zip(answers).enumerate() {
            self.log.note(self.step + id as u64, op.clone(), answer.clone());
            match (op, answer) {
                (Op::Page(_) | Op::Mget(_), _) => {}
                (Op::DeleteRange { .. }, _) => fates.pass_range(|key| flight.connection(key)),
                (_, Some(Answer::Refused(code, _)))
                    if self.may_fail && code.class() != Class::Request && !code.may_be_applied() => {}
                (_, Some(answer)) if !answer.is_fault() => {
                    if let Some(key) = told_of(op, answer).into_iter().find(|key| open.contains(*key)) {
                        let what = format!("request {id} is answered, and a write before it is not");
                        return Err(differs(key, what));
                    }
                    fates.take(id, *connection, op, answer)?;
                }
                (_, Some(_) | None) => {
                    let changed = fates.guess(id, *connection, op);
                    open.extend(changed.into_iter().filter(|_| is_exact));
                }
            }
            let is_open = answer.as_ref().is_none_or(Answer::is_fault);
            if let (Op::Batch(items), true, true) = (op, is_open, is_exact) {
                let written = items.iter().filter(|item| item.act.is_write());
                batches.push((id, written.map(|item| item.key.clone()).collect()));
            }
        }
        self.step += flight.ops.len() as u64;
        let Left { unsure, .. } = fates.leave(|key| flight.connection(key));
        Ok(Landed { snap: Snap::default(), batches, unsure })
    }
}

/// Runs futures side by side to their ends.
async fn join_all(futures: Vec<impl Future<Output = ()>>) {
    let mut running: Vec<_> = futures.into_iter().map(|future| Some(Box::pin(future))).collect();
    std::future::poll_fn(|cx| {
        for slot in &mut running {
            if slot.as_mut().is_some_and(|future| future.as_mut().poll(cx).is_ready()) {
                *slot = None;
            }
        }
        if running.iter().all(Option::is_none) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
}
