//! Requests that concern several shards: asked of each, answered as one.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::mem;
use std::ops::Range;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Waker};

use super::budget::Granted;
use super::execute::too_large;
use super::outputs::{Meta, Outputs, Replies};
use super::sliced;
use super::{Origin, Outlet, Shard, Stall};
use crate::env::{Env, Queue};
use crate::error::{Code, Refusal};
use crate::metrics::MetricsSnapshot;
use crate::protocol::binary::{
    HEADER_BYTES, KeyList, Keys, ValueListEncoder, Values, decode_reply, decode_reply_header, encode_request,
};
use crate::protocol::{DeleteRange, Durability, Limits, Reply, Request};
use crate::slot::Slot;

/// Bytes in unfinished gathers of a shard beyond which its connections take in no more requests of that kind. Others
/// go on: one client that takes no replies must not stop those that ask for single keys.
const GATHERED_BYTES_MAX: usize = 4 << 20;
/// In the place of the owner for which an outlet waits.
const GATHERS: usize = usize::MAX - 1;
/// How often a range delete is sent anew because a tablet has moved between its parts.
const RETRIES_MAX: u32 = 100;
/// What an item of a list of values takes beside its value.
const ITEM_BYTES: usize = 16;
/// What a list of values takes beside its items.
const LIST_BYTES: usize = HEADER_BYTES + 4;
/// What a part takes before its answer has come, and that of STATS after, roughly.
const PART_BYTES: usize = 1 << 10;

/// What the parts are put together to.
enum Kind {
    /// Whose each key is; by shard, its reply.
    Mget { owners: Vec<u16>, parts: Vec<Vec<u8>> },
    /// Counters by shard.
    Stats { section: String, shards: Vec<MetricsSnapshot> },
    /// Lines about tablets, or clients.
    Lines(String),
    /// Nothing. What is to be done, whether some shard has done it, and how often all were asked anew.
    DeleteRange { range: OwnedRange, is_begun: bool, retries: u32 },
}

/// A range that every shard removes its keys of, or this one alone.
struct OwnedRange {
    start: Vec<u8>,
    end: Vec<u8>,
    is_local: bool,
    durability: Durability,
}

impl OwnedRange {
    /// Who is asked.
    fn shards<E: Env>(&self, shard: &Shard<E>) -> Range<usize> {
        if self.is_local { shard.id..shard.id + 1 } else { 0..shard.slots.shards }
    }

    /// What they are asked, by the slot table as it is now.
    fn parts<E: Env>(&self, shard: &Shard<E>) -> Vec<(usize, Vec<u8>)> {
        let OwnedRange { start, end, durability, .. } = self;
        let (epoch, is_local, durability) = (shard.slots.epoch(), false, *durability);
        let part = Request::DeleteRange(DeleteRange { start, end, is_local, epoch, durability });
        let frame = |owner| {
            let mut frame = Vec::new();
            encode_request(&mut frame, owner as u64 + 1, &part);
            (owner, frame)
        };
        self.shards(shard).map(frame).collect()
    }
}

/// A request on its way to several shards. Its parts carry the shard's number as their request id.
pub(super) struct Gather<E: Env> {
    me: Weak<Gather<E>>,
    shard: Weak<Shard<E>>,
    origin: Origin,
    meta: Meta,
    kind: RefCell<Kind>,
    outstanding: Cell<u32>,
    refusal: RefCell<Option<Refusal>>,
    /// Of values.
    bytes: Cell<usize>,
    /// Its part of [`Shard::gathered`].
    kept: Cell<usize>,
    /// Of [`Shard::gather_budget`], for its parts and the reply.
    granted: Cell<usize>,
    token: Cell<u64>,
}

impl<E: Env> Gather<E> {
    /// Asks each owner for its part of `keys`, unless large replies must leave first: how large this one is
    /// shows only when all parts have come, so that until then it counts as the largest.
    pub fn mget(shard: &Rc<Shard<E>>, origin: Origin, meta: Meta, keys: Keys<'_>, out: &mut Outputs) -> bool {
        let largest = keys.len().saturating_mul(shard.limits.value_bytes_max as usize + ITEM_BYTES);
        if !shard.has_gather_room(out, largest.min(shard.limits.frame_bytes_max as usize)) {
            return false;
        }
        let mut lists: Vec<KeyList> = vec![KeyList::default(); shard.slots.shards];
        let mut owners = Vec::with_capacity(keys.len());
        for key in keys {
            let owner = shard.slots.shard(Slot::of_key(key));
            lists[owner].push(key);
            owners.push(owner as u16);
        }
        let kind = Kind::Mget { owners, parts: vec![Vec::new(); shard.slots.shards] };
        let parts = lists.iter().enumerate().filter(|(_, list)| !list.is_empty()).map(|(owner, list)| {
            let mut frame = Vec::new();
            encode_request(&mut frame, owner as u64 + 1, &Request::Mget { keys: list.keys() });
            (owner, frame)
        });
        let granted = std::mem::take(&mut out.granted.gathers);
        Self::ask(shard, origin, meta, kind, granted, parts.collect());
        true
    }

    /// Asks every shard for its counters, or this one alone. Nobody needs leave for the answer: it is small, or with many tablets
    /// or clients a hundred bytes for each of them.
    pub fn stats(shard: &Rc<Shard<E>>, origin: Origin, meta: Meta, section: &str) {
        let shards = vec![MetricsSnapshot::default(); shard.slots.shards];
        let (kind, part) = match section {
            "tablets" | "clients" => (Kind::Lines(String::new()), section),
            _ => (Kind::Stats { section: section.to_owned(), shards }, ""),
        };
        let asked = if section == "local" { shard.id..shard.id + 1 } else { 0..shard.slots.shards };
        let parts = asked.map(|owner| {
            let mut frame = Vec::new();
            encode_request(&mut frame, owner as u64 + 1, &Request::Stats { section: part });
            (owner, frame)
        });
        Self::ask(shard, origin, meta, kind, 0, parts.collect());
    }

    /// Has every shard remove its keys of a range. Its answer is small, and its parts count as
    /// [gathered](GATHERED_BYTES_MAX) until all of them are answered, however often they are sent: so there is
    /// nothing to ask leave for.
    pub fn delete_range(shard: &Rc<Shard<E>>, origin: Origin, meta: Meta, range: &DeleteRange<'_>) {
        let DeleteRange { start, end, is_local, durability, .. } = *range;
        let range = OwnedRange { start: start.to_vec(), end: end.to_vec(), is_local, durability };
        let parts = range.parts(shard);
        Self::ask(shard, origin, meta, Kind::DeleteRange { range, is_begun: false, retries: 0 }, 0, parts);
    }

    /// Asks for a range delete once more, by newer routes, if a tablet has moved between its parts. Whether it does.
    fn retry(&self, shard: &Rc<Shard<E>>) -> bool {
        let has_moved =
            self.refusal.borrow().as_ref().is_some_and(|refusal| refusal.code == Code::SlotMoving);
        let Kind::DeleteRange { range, retries, .. } = &mut *self.kind.borrow_mut() else { return false };
        if !has_moved || *retries == RETRIES_MAX {
            return false;
        }
        let Some(gather) = self.me.upgrade() else { return false };
        *retries += 1;
        self.refusal.take();
        // From now on: it may be flushed before they are sent.
        self.outstanding.set(range.shards(shard).len() as u32);
        let (shard, guard) = (shard.clone(), shard.pending.enter());
        let env = shard.env.clone();
        env.spawn(Queue::Foreground, async move {
            shard.released().await;
            let parts = match &*gather.kind.borrow() {
                Kind::DeleteRange { range, .. } => range.parts(&shard),
                _ => unreachable!("only range deletes are asked for again"),
            };
            gather.send(&shard, parts);
            shard.end_turn();
            drop(guard);
        });
        true
    }

    fn ask(
        shard: &Rc<Shard<E>>,
        origin: Origin,
        meta: Meta,
        kind: Kind,
        granted: usize,
        parts: Vec<(usize, Vec<u8>)>,
    ) {
        let gather = Rc::new_cyclic(|me| Gather {
            me: me.clone(),
            shard: Rc::downgrade(shard),
            origin,
            meta,
            kind: RefCell::new(kind),
            outstanding: Cell::new(parts.len() as u32),
            refusal: RefCell::new(None),
            bytes: Cell::new(0),
            kept: Cell::new(0),
            granted: Cell::new(granted),
            token: Cell::new(0),
        });
        let token = shard.register(gather.clone());
        gather.token.set(token);
        let frame_bytes: usize = parts.iter().map(|(_, frame)| frame.len()).sum();
        gather.keep(shard, parts.len() * PART_BYTES + frame_bytes);
        gather.send(shard, parts);
    }

    fn send(&self, shard: &Rc<Shard<E>>, parts: Vec<(usize, Vec<u8>)>) {
        let token = self.token.get();
        for (owner, frame) in parts {
            if owner == shard.id {
                shard.execute(self.origin, Origin { peer: owner, token }, Cow::Owned(frame));
            } else {
                shard.forward(owner, self.origin.token, token, &frame);
            }
        }
    }

    fn keep(&self, shard: &Shard<E>, bytes: usize) {
        self.kept.set(self.kept.get() + bytes);
        shard.gathered.set(shard.gathered.get() + bytes);
    }

    /// Notes what one shard answers. Whether all of it is to be kept.
    fn take_part(&self, owner: usize, reply: Reply<'_>) -> bool {
        let Some(shard) = self.shard.upgrade() else { return false };
        let limit = shard.limits.frame_bytes_max as usize;
        match (reply, &mut *self.kind.borrow_mut()) {
            (Reply::Refused(refusal), _) => {
                // One after which a part may have been done has the word, or the client would take it for sure that
                // nothing was; then one that another attempt would meet again.
                let rank = |code: Code| (code.may_be_applied(), code != Code::SlotMoving);
                let known = self.refusal.borrow().as_ref().map(|refusal| refusal.code);
                if known.is_none_or(|known| rank(refusal.code) > rank(known)) {
                    self.refusal.replace(Some(refusal));
                }
            }
            (Reply::Values(values), Kind::Mget { .. }) => {
                self.bytes.set(self.bytes.get() + values.wire_bytes().len());
                if self.bytes.get() + LIST_BYTES <= limit {
                    return true;
                }
                self.refusal.replace(Some(too_large(limit)));
            }
            (Reply::Done, Kind::DeleteRange { is_begun, .. }) => *is_begun = true,
            (Reply::Stats(text), Kind::Lines(all)) => {
                if all.len() + text.len() <= limit {
                    self.keep(&shard, text.len());
                    all.push_str(text);
                } else {
                    let message = format!("these lines are more than a frame of {limit} bytes");
                    self.refusal.replace(Some(Refusal::new(Code::ReplyTooLarge, message)));
                }
            }
            (Reply::Stats(text), Kind::Stats { shards, .. }) => {
                for line in text.lines() {
                    if let Some((name, value)) = line.split_once('=')
                        && let Ok(value) = value.parse()
                    {
                        shards[owner].set(name, value);
                    }
                }
            }
            _ => unreachable!("a shard answers what it was asked"),
        }
        false
    }

    /// Keeps the frame that a shard has answered with.
    fn keep_part(&self, owner: usize, frame: Vec<u8>) {
        if let Kind::Mget { parts, .. } = &mut *self.kind.borrow_mut() {
            parts[owner] = frame;
        }
    }

    fn answer(&self) -> Outputs {
        let mut out =
            Outputs { granted: Granted { replies: 0, gathers: self.granted.take() }, ..Outputs::default() };
        if let Some(refusal) = self.refusal.take() {
            let refusal = match *self.kind.borrow() {
                Kind::DeleteRange { is_begun: true, .. } => {
                    let message = format!("done in part, repeat it for the rest: {refusal}");
                    Refusal::new(Code::PartlyDone, message)
                }
                _ => refusal,
            };
            out.ready(self.meta, &Reply::Refused(refusal));
            return out;
        }
        match &*self.kind.borrow() {
            Kind::Mget { .. } => unreachable!("values are put together step by step"),
            Kind::Lines(text) => out.ready(self.meta, &Reply::Stats(text)),
            Kind::DeleteRange { .. } => out.ready(self.meta, &Reply::Done),
            Kind::Stats { section, shards } => {
                out.ready(self.meta, &Reply::Stats(&stats_text(section, shards)));
            }
        }
        out
    }

    /// All parts have come, and nobody knows this any more.
    fn end(&self, shard: &Rc<Shard<E>>, out: Outputs) {
        shard.settle(self.origin, out);
        shard.gathered.set(shard.gathered.get() - self.kept.take());
        if !shard.gathers_too_much() {
            for token in shard.gather_line.take() {
                shard.take_stall(GATHERS, token, Stall::Over);
            }
        }
    }

    /// Answers with the values of all parts; by a task of its own if that takes long.
    fn end_with_values(self: Rc<Self>, shard: &Rc<Shard<E>>, owners: Vec<u16>, parts: Vec<Vec<u8>>) {
        let is_short = owners.len() <= sliced::KEYS_MAX && self.bytes.get() <= sliced::BYTES_MAX;
        let (gather, mine) = (self.clone(), shard.clone());
        let answer = async move {
            let out = gather.values(&mine, &owners, &parts).await;
            gather.end(&mine, out);
        };
        if is_short {
            let answered = pin!(answer).poll(&mut Context::from_waker(Waker::noop()));
            assert!(answered.is_ready(), "what is short is done in one step");
            return;
        }
        let (shard, guard) = (shard.clone(), shard.pending.enter());
        let env = shard.env.clone();
        env.spawn(Queue::Foreground, async move {
            answer.await;
            shard.end_turn();
            drop(guard);
        });
    }

    /// The values of all parts in the order of the keys.
    async fn values(&self, shard: &Shard<E>, owners: &[u16], parts: &[Vec<u8>]) -> Outputs {
        let mut bytes = Vec::with_capacity(self.bytes.get() + LIST_BYTES);
        let mut list = ValueListEncoder::begin(&mut bytes, self.meta.request_id, self.meta.epoch);
        let mut parts: Vec<Values<'_>> = parts.iter().map(|part| values_of(part)).collect();
        let (mut keys, mut rested_at) = (0, 0);
        for owner in owners {
            if keys == sliced::KEYS_MAX || list.frame_bytes() - rested_at > sliced::BYTES_MAX + LIST_BYTES {
                (keys, rested_at) = (0, list.frame_bytes());
                shard.rest().await;
            }
            keys += 1;
            match parts[usize::from(*owner)].next().expect("each shard has answered for each of its keys") {
                Some(value) => list.present(value.version, value.value),
                None => list.absent(),
            }
        }
        list.finish();
        let granted = Granted { replies: 0, gathers: self.granted.take() };
        let mut out = Outputs { granted, ..Outputs::default() };
        out.whole(None, self.meta, bytes);
        out
    }
}

/// What a part has; nothing if its shard was not asked.
fn values_of(part: &[u8]) -> Values<'_> {
    let reply = match decode_reply_header(part, Limits::FRAME_BYTES_LIMIT) {
        Ok(Some(header)) => decode_reply(&header, &part[part.len() - header.body_bytes()..]).ok(),
        _ => None,
    };
    match reply {
        Some(Reply::Values(values)) => values,
        _ => Values::default(),
    }
}

fn stats_text(section: &str, shards: &[MetricsSnapshot]) -> String {
    use std::fmt::Write;
    let mut text = format!("version={}\nshards={}\n", env!("CARGO_PKG_VERSION"), shards.len());
    if section != "shards" {
        let mut total = MetricsSnapshot::default();
        shards.iter().for_each(|shard| total.merge(shard));
        for (name, value) in total.iter().chain(total.ratios()) {
            let _ = writeln!(text, "{name}={value}"); // writing to a string does not fail
        }
    }
    if !matches!(section, "total" | "local") {
        for (number, shard) in shards.iter().enumerate() {
            for (name, value) in shard.iter().chain(shard.ratios()) {
                let _ = writeln!(text, "shard{number}.{name}={value}");
            }
        }
    }
    text
}

impl<E: Env> Shard<E> {
    /// Whether so much is gathered that no more of that kind is to be taken in.
    pub(super) fn gathers_too_much(&self) -> bool {
        self.gathered.get() > GATHERED_BYTES_MAX
    }

    /// The outlet is told when it may ask for more to be gathered.
    pub(super) fn wait_for_gathers(&self, token: u64, outlet: &dyn Outlet) {
        outlet.stall(GATHERS, Stall::Replies);
        self.gather_line.borrow_mut().push(token);
    }
}

impl<E: Env> Outlet for Gather<E> {
    fn deliver(&self, _owner: usize, replies: Replies) {
        assert!(replies.granted.is_none(), "parts are within what the gather was granted");
        let (mut all, mut at) = (replies.bytes, 0);
        for _ in 0..replies.count {
            let header = decode_reply_header(&all[at..], Limits::FRAME_BYTES_LIMIT);
            let Ok(Some(header)) = header else { unreachable!("shards send whole replies") };
            let frame = &all[at..at + header.frame_bytes()];
            let body = &frame[frame.len() - header.body_bytes()..];
            let owner = header.request_id as usize - 1;
            let is_kept = match decode_reply(&header, body) {
                Ok(reply) => self.take_part(owner, reply),
                Err(error) => unreachable!("shards send replies that parse: {error}"),
            };
            if is_kept {
                // As a rule it comes alone, and is not copied.
                let is_alone = frame.len() == all.len();
                let frame = if is_alone { mem::take(&mut all) } else { frame.to_vec() };
                self.keep_part(owner, frame);
            }
            at += header.frame_bytes();
        }
        self.outstanding.set(self.outstanding.get() - replies.count);
    }

    fn stall(&self, _owner: usize, _why: Stall) {}

    fn flush(&self) {
        if self.outstanding.get() > 0 {
            return;
        }
        if let Some(shard) = self.shard.upgrade() {
            if self.retry(&shard) {
                return;
            }
            shard.unregister(self.token.get());
            let values = match &mut *self.kind.borrow_mut() {
                Kind::Mget { owners, parts } if self.refusal.borrow().is_none() => {
                    Some((mem::take(owners), mem::take(parts)))
                }
                _ => None,
            };
            match (values, self.me.upgrade()) {
                (Some((owners, parts)), Some(gather)) => gather.end_with_values(&shard, owners, parts),
                _ => self.end(&shard, self.answer()),
            }
        }
    }

    fn accept(&self, _bytes: usize) {}

    fn is_full(&self) -> bool {
        false
    }

    fn in_flight(&self) -> u32 {
        self.outstanding.get()
    }

    fn fence(&self) {}

    fn backlog(&self) -> usize {
        0
    }

    fn is_stalled(&self) -> bool {
        false
    }
}
