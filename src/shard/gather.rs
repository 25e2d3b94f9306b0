//! Requests that concern several shards: asked of each, answered as one.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use super::budget::Granted;
use super::outputs::{Meta, Outputs, Replies};
use super::{Message, Origin, Outlet, Shard, Stall};
use crate::base::Lsn;
use crate::env::{Env, Queue};
use crate::error::{Code, Refusal};
use crate::metrics::MetricsSnapshot;
use crate::protocol::binary::{
    KeyList, Keys, ValueListEncoder, decode_reply, decode_reply_header, encode_request,
};
use crate::protocol::{DeleteRange, Durability, Limits, Reply, Request};
use crate::slot::Slot;

/// Bytes in unfinished gathers of a shard beyond which its connections take in nothing more.
const GATHERED_BYTES_MAX: usize = 4 << 20;
/// How often a range delete is sent anew because a tablet has moved between its parts.
const RETRIES_MAX: u32 = 100;
/// What an item of a list of values takes beside its value.
const ITEM_BYTES: usize = 16;
/// What a part takes before its answer has come, and that of STATS after, roughly.
const PART_BYTES: usize = 1 << 10;

type PartialValue = Option<(Lsn, Vec<u8>)>;

/// What the parts are put together to.
enum Kind {
    /// Values in the order of the keys; by shard, which keys it was asked for.
    Mget { values: Vec<PartialValue>, places: Vec<Vec<usize>> },
    /// Counters by shard.
    Stats { section: String, shards: Vec<MetricsSnapshot> },
    /// Lines about tablets.
    Tablets(String),
    /// Nothing. What is to be done, whether some shard has done it, and how often all were asked anew.
    DeleteRange { start: Vec<u8>, end: Vec<u8>, durability: Durability, is_begun: bool, retries: u32 },
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
        let mut places = vec![Vec::new(); shard.slots.shards];
        for (place, key) in keys.enumerate() {
            let owner = shard.slots.shard(Slot::of_key(key));
            lists[owner].push(key);
            places[owner].push(place);
        }
        let kind = Kind::Mget { values: vec![None; keys.len()], places };
        let parts = lists.iter().enumerate().filter(|(_, list)| !list.is_empty()).map(|(owner, list)| {
            let mut frame = Vec::new();
            encode_request(&mut frame, owner as u64 + 1, &Request::Mget { keys: list.keys() });
            (owner, frame)
        });
        let granted = std::mem::take(&mut out.granted.gathers);
        Self::ask(shard, origin, meta, kind, granted, parts.collect());
        true
    }

    /// Asks every shard for its counters. Nobody needs leave for the answer: it is small, or with many tablets
    /// a hundred bytes for each of them.
    pub fn stats(shard: &Rc<Shard<E>>, origin: Origin, meta: Meta, section: &str) {
        let shards = vec![MetricsSnapshot::default(); shard.slots.shards];
        let (kind, part) = match section {
            "tablets" => (Kind::Tablets(String::new()), section),
            _ => (Kind::Stats { section: section.to_owned(), shards }, ""),
        };
        let parts = (0..shard.slots.shards).map(|owner| {
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
        let DeleteRange { start, end, durability, .. } = *range;
        let kind = Kind::DeleteRange {
            start: start.to_vec(),
            end: end.to_vec(),
            durability,
            is_begun: false,
            retries: 0,
        };
        Self::ask(shard, origin, meta, kind, 0, Self::range_parts(shard, start, end, durability));
    }

    fn range_parts(
        shard: &Shard<E>,
        start: &[u8],
        end: &[u8],
        durability: Durability,
    ) -> Vec<(usize, Vec<u8>)> {
        let epoch = shard.slots.epoch();
        let part = Request::DeleteRange(DeleteRange { start, end, epoch, durability });
        let frame = |owner| {
            let mut frame = Vec::new();
            encode_request(&mut frame, owner as u64 + 1, &part);
            (owner, frame)
        };
        (0..shard.slots.shards).map(frame).collect()
    }

    /// Asks for a range delete once more, by newer routes, if a tablet has moved between its parts. Whether it does.
    fn retry(&self, shard: &Rc<Shard<E>>) -> bool {
        let has_moved =
            self.refusal.borrow().as_ref().is_some_and(|refusal| refusal.code == Code::SlotMoving);
        let Kind::DeleteRange { retries, .. } = &mut *self.kind.borrow_mut() else { return false };
        if !has_moved || *retries == RETRIES_MAX {
            return false;
        }
        let Some(gather) = self.me.upgrade() else { return false };
        *retries += 1;
        self.refusal.take();
        // From now on: it may be flushed before they are sent.
        self.outstanding.set(shard.slots.shards as u32);
        let (shard, guard) = (shard.clone(), shard.pending.enter());
        let env = shard.env.clone();
        env.spawn(Queue::Foreground, async move {
            shard.released().await;
            let parts = match &*gather.kind.borrow() {
                Kind::DeleteRange { start, end, durability, .. } => {
                    Self::range_parts(&shard, start, end, *durability)
                }
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
                shard.execute(self.origin, Origin { peer: owner, token }, frame);
            } else {
                shard.port.send(owner, Message::Requests { line: self.origin.token, token, frames: frame });
            }
        }
    }

    fn keep(&self, shard: &Shard<E>, bytes: usize) {
        self.kept.set(self.kept.get() + bytes);
        shard.gathered.set(shard.gathered.get() + bytes);
    }

    fn take_part(&self, owner: usize, reply: Reply<'_>) {
        let Some(shard) = self.shard.upgrade() else { return };
        let limit = shard.limits.frame_bytes_max as usize;
        match (reply, &mut *self.kind.borrow_mut()) {
            (Reply::Refused(refusal), _) => {
                // One that another attempt would meet again has the word.
                let known = self.refusal.borrow().as_ref().map(|refusal| refusal.code);
                if known.is_none_or(|code| code == Code::SlotMoving) {
                    self.refusal.replace(Some(refusal));
                }
            }
            (Reply::Values(part), Kind::Mget { values, places }) => {
                for (place, value) in places[owner].iter().zip(part) {
                    let Some(value) = value else { continue };
                    self.bytes.set(self.bytes.get() + value.value.len());
                    if self.bytes.get() > limit {
                        let message = format!(
                            "the values of this MGET are more than a frame of {limit} bytes; ask for fewer keys"
                        );
                        self.refusal.replace(Some(Refusal::new(Code::ReplyTooLarge, message)));
                        return;
                    }
                    values[*place] = Some((value.version, value.value.to_vec()));
                }
            }
            (Reply::Done, Kind::DeleteRange { is_begun, .. }) => *is_begun = true,
            (Reply::Stats(text), Kind::Tablets(all)) => {
                self.keep(&shard, text.len());
                all.push_str(text);
                if all.len() > limit {
                    let message = format!("the lines about tablets are more than a frame of {limit} bytes");
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
            Kind::Mget { values, .. } => {
                let mut bytes = Vec::new();
                let mut list = ValueListEncoder::begin(&mut bytes, self.meta.request_id, self.meta.epoch);
                for value in values {
                    match value {
                        Some((version, value)) => list.present(*version, value),
                        None => list.absent(),
                    }
                }
                list.finish();
                out.raw(None, self.meta, &bytes);
            }
            Kind::Tablets(text) => out.ready(self.meta, &Reply::Stats(text)),
            Kind::DeleteRange { .. } => out.ready(self.meta, &Reply::Done),
            Kind::Stats { section, shards } => {
                out.ready(self.meta, &Reply::Stats(&stats_text(section, shards)));
            }
        }
        out
    }
}

fn stats_text(section: &str, shards: &[MetricsSnapshot]) -> String {
    use std::fmt::Write;
    let mut text = format!("version={}\nshards={}\n", env!("CARGO_PKG_VERSION"), shards.len());
    if section != "shards" {
        let mut total = MetricsSnapshot::default();
        shards.iter().for_each(|shard| total.merge(shard));
        for (name, value) in total.iter() {
            let _ = writeln!(text, "{name}={value}"); // writing to a string does not fail
        }
    }
    if section != "total" {
        for (number, shard) in shards.iter().enumerate() {
            for (name, value) in shard.iter() {
                let _ = writeln!(text, "shard{number}.{name}={value}");
            }
        }
    }
    text
}

impl<E: Env> Shard<E> {
    /// Whether so much is gathered that nothing more is to be taken in.
    pub(super) fn gathers_too_much(&self) -> bool {
        self.gathered.get() > GATHERED_BYTES_MAX
    }
}

impl<E: Env> Outlet for Gather<E> {
    fn deliver(&self, _owner: usize, replies: Replies) {
        assert!(replies.granted.is_none(), "parts are within what the gather was granted");
        let mut bytes = &replies.bytes[..];
        for _ in 0..replies.count {
            let header = decode_reply_header(bytes, Limits::FRAME_BYTES_LIMIT);
            let Ok(Some(header)) = header else { unreachable!("shards send whole replies") };
            let frame = &bytes[..header.frame_bytes()];
            let body = &frame[frame.len() - header.body_bytes()..];
            match decode_reply(&header, body) {
                Ok(reply) => self.take_part(header.request_id as usize - 1, reply),
                Err(error) => unreachable!("shards send replies that parse: {error}"),
            }
            bytes = &bytes[header.frame_bytes()..];
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
            shard.settle(self.origin, self.answer());
            shard.gathered.set(shard.gathered.get() - self.kept.take());
            // Cheap when nobody waits, and there is no other moment at which this is known to be over.
            if !shard.congested() {
                shard.relieved.notify();
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
