//! One pipeline: requests on their way together, and the comparison of what they are answered.
//!
//! Requests for one key go over one connection, so what each must be answered follows from their order. An MGET
//! is exact for the keys of its own connection; of a key that another one writes meanwhile it may tell any state
//! that the key had. The same goes for the snapshots of scans that begin meanwhile.

use std::rc::Rc;

use atlaskv::base::Lsn;
use atlaskv::env::Env;
use atlaskv::error::{Class, Code};
use atlaskv::protocol::binary::{KeyList, OpList, encode_request};
use atlaskv::protocol::{Durability, Request};
use atlaskv::slot::Slot;

use crate::keys::Key;
use crate::reference::{Live, MARGIN_MS, Next, Op, Reference, Span, compare, outcome};
use crate::run::Run;
use crate::scans::{Scan, Snap, State, Window};
use crate::store::{Answer, Store};
use crate::verify::Difference;

/// Requests that were sent, until they are answered.
#[derive(Clone)]
pub struct Flight {
    /// By which connection, and what.
    pub ops: Rc<Vec<(usize, Op)>>,
    pub since_ms: u64,
    /// What there was before, if it is wanted.
    pub base: Option<Rc<std::collections::BTreeMap<Key, Live>>>,
    /// Which connection a slot's requests take.
    pub salt: usize,
    pub connections: usize,
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
        Op::Batch(ops) => {
            let mut list = OpList::default();
            for (key, value) in ops {
                match value {
                    Some(value) => list.put(key, value),
                    None => list.delete(key),
                }
            }
            encode(&Request::Batch { ops: list.ops(), durability })
        }
        Op::Page(ask) => encode(&Request::Scan(ask.request())),
    }
}

fn push(window: &mut Window, reference: &Reference, key: &Key, by: usize, live: Option<Live>) {
    let before = || vec![State { by: None, live: reference.live.get(key).cloned() }];
    window.entry(key.clone()).or_insert_with(before).push(State { by: Some(by), live });
}

fn differs(key: &Key, what: String) -> Difference {
    Difference { keys: vec![key.clone()], what }
}

/// What a pipeline came to.
pub struct Landed {
    pub snap: Snap,
    /// Batches of it, by request.
    pub batches: Vec<(usize, Vec<Key>)>,
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
        let now = (flight.since_ms, store.env.wall_ms());
        assert!(now.1 - now.0 < MARGIN_MS, "a pipeline took {} ms", now.1 - now.0);
        self.land(store, &flight, answers, now)
    }

    /// Compares answers in the order in which the requests were sent.
    fn land(
        &mut self,
        store: &Store,
        flight: &Flight,
        answers: Vec<Answer>,
        now: Span,
    ) -> Result<Landed, Difference> {
        let mut window = Window::default();
        let mut batches = Vec::new();
        let first = self.step;
        self.step += answers.len() as u64;
        for (id, (op, answer)) in flight.ops.iter().zip(&answers).enumerate() {
            self.log.note(first + id as u64, op.1.clone(), Some(answer.clone()));
        }
        let mut loose = Vec::new();
        for (id, ((connection, op), answer)) in flight.ops.iter().zip(&answers).enumerate() {
            match op {
                Op::Page(_) => {}
                // Together these may be more than a frame takes.
                Op::Mget(keys) if matches!(answer, Answer::Refused(Code::ReplyTooLarge, _)) => {
                    self.met.too_large += 1;
                    let sum: usize = keys
                        .iter()
                        .filter_map(|key| self.reference.live.get(key))
                        .map(|l| l.value.len())
                        .sum();
                    if sum < 500_000 {
                        return Err(Difference { keys: keys.clone(), what: format!("MGET: {answer:.200?}") });
                    }
                }
                Op::Mget(keys) => {
                    let Answer::Values(values) = answer else {
                        return Err(Difference { keys: keys.clone(), what: format!("MGET: {answer:.200?}") });
                    };
                    for (key, value) in keys.iter().zip(values) {
                        if flight.connection(key) != *connection {
                            loose.push((key, value));
                            continue;
                        }
                        let wanted = self.reference.live.get(key);
                        let is_it = match (wanted, value) {
                            (Some(live), Some((version, value))) => {
                                live.version == *version && *live.value == **value
                            }
                            (None, None) => true,
                            _ => false,
                        };
                        if !is_it {
                            return Err(differs(key, format!("MGET {value:.80?}, not {wanted:.80?}")));
                        }
                    }
                }
                Op::Batch(ops) => {
                    self.land_batch(id, ops, answer, &mut window)?;
                    batches.push((id, ops.iter().map(|(key, _)| key.clone()).collect()));
                }
                _ => self.land_one(id, op, answer, now, &mut window)?,
            }
        }
        let snap = Snap { base: flight.base.clone().unwrap_or_default(), maybe: Rc::new(window) };
        for (key, value) in loose {
            let is_it = |live: Option<&Live>| match (live, value) {
                (Some(live), Some((version, value))) => live.version == *version && *live.value == **value,
                (None, None) => true,
                _ => false,
            };
            let is_known = match snap.maybe.get(key) {
                Some(states) => states.iter().any(|state| is_it(state.live.as_ref())),
                None => is_it(self.reference.live.get(key)),
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
        Ok(Landed { snap, batches })
    }

    fn land_batch(
        &mut self,
        id: usize,
        ops: &[(Key, Option<Rc<[u8]>>)],
        answer: &Answer,
        window: &mut Window,
    ) -> Result<(), Difference> {
        let Answer::Written(first) = answer else {
            let keys = ops.iter().map(|(key, _)| key.clone()).collect();
            return Err(Difference { keys, what: format!("BATCH: {answer:.200?}") });
        };
        for (ordinal, (key, value)) in ops.iter().enumerate() {
            let version = Lsn(first.0 + ordinal as u64);
            self.reference.note(key, version).map_err(|what| differs(key, what))?;
            let live = value.clone().map(|value| Live { value, version, expiry: (0, 0) });
            push(window, &self.reference, key, id, live.clone());
            self.reference.set(key, live);
        }
        Ok(())
    }

    fn land_one(
        &mut self,
        id: usize,
        op: &Op,
        answer: &Answer,
        now: Span,
        window: &mut Window,
    ) -> Result<(), Difference> {
        let key = op.keys()[0];
        let current = self.reference.live.get(key);
        let (expected, next) = outcome(op, current, now);
        let Ok(version) = compare(&expected, answer) else {
            return Err(differs(key, format!("answered {answer:.200?}, not {expected:.200?}")));
        };
        if let (Op::Ttl(_), Answer::Lifetime(_, expiry_ms), Some(live)) = (op, answer, current)
            && live.expiry != (*expiry_ms, *expiry_ms)
        {
            let live = Live { expiry: (*expiry_ms, *expiry_ms), ..live.clone() };
            self.reference.set(key, Some(live));
        }
        let Some(version) = version else { return Ok(()) };
        self.reference.note(key, version).map_err(|what| differs(key, what))?;
        let live = match next {
            Next::Put(value, expiry) => Some(Live { value, version, expiry }),
            Next::Gone => None,
            Next::Same => unreachable!("what has a new version has changed"),
        };
        push(window, &self.reference, key, id, live.clone());
        self.reference.set(key, live);
        Ok(())
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
            Answer::Refused(code, _) if code.class() == Class::Later && open.may_renew => {
                self.met.scans_refused += 1;
                Ok(())
            }
            other => Err(Difference { keys: Vec::new(), what: format!("scan {scan}: {other:.200?}") }),
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
        let mut window = Window::default();
        let mut unsure = Window::default();
        let mut batches = Vec::new();
        for (id, ((_, op), answer)) in flight.ops.iter().zip(answers).enumerate() {
            self.log.note(self.step + id as u64, op.clone(), answer.clone());
            if let Some(key) = op.keys().into_iter().find(|key| answer.is_some() && unsure.contains_key(*key))
                && !matches!(op, Op::Mget(_))
            {
                return Err(differs(key, format!("request {id} is answered, and a write before it is not")));
            }
            let push_unsure = |unsure: &mut Window, key: &Key, live| {
                push(unsure, &self.reference, key, id, live);
            };
            match (op, answer) {
                (Op::Page(_) | Op::Mget(_), _) => {}
                (Op::Batch(ops), Some(answer)) => self.land_batch(id, ops, answer, &mut window)?,
                (Op::Batch(ops), None) => {
                    for (key, value) in ops {
                        let live = value.clone();
                        let live = live.map(|value| Live { value, version: Lsn::ZERO, expiry: (0, 0) });
                        push_unsure(&mut unsure, key, live);
                    }
                    batches.push((id, ops.iter().map(|(key, _)| key.clone()).collect()));
                }
                (op, Some(answer)) => self.land_one(id, op, answer, now, &mut window)?,
                (op, None) => {
                    let key = op.keys()[0];
                    let current = match unsure.get(key).and_then(|states| states.last()) {
                        Some(state) => state.live.clone(),
                        None => self.reference.live.get(key).cloned(),
                    };
                    let live = match outcome(op, current.as_ref(), now).1 {
                        Next::Same => continue,
                        Next::Gone => None,
                        Next::Put(value, expiry) => Some(Live { value, version: Lsn::ZERO, expiry }),
                    };
                    push_unsure(&mut unsure, key, live);
                }
            }
        }
        self.step += flight.ops.len() as u64;
        Ok(Landed { snap: Snap { base: Rc::default(), maybe: Rc::new(unsure) }, batches })
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
