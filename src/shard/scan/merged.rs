//! A page of the keys of all shards in one order: of each shard its own pages, merged.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use super::{PageLimits, Session, Shape, What};
use crate::base::{Bug, planted};
use crate::engine::scan::ScanRange;
use crate::env::Env;
use crate::error::{Code, Refusal};
use crate::protocol::binary::{
    Cursor, PAGE_OVERHEAD, PageEncoder, ScanEntries, decode_reply, decode_reply_header, encode_request,
    entry_len,
};
use crate::protocol::{Limits, Reply, Request, ScanRequest};
use crate::shard::outputs::{Meta, Outputs, Replies};
use crate::shard::stall::Step;
use crate::shard::{Origin, Outlet, Shard, Stall};

/// Times that parts are asked for one page. Each answers with something unless much that was deleted lies before
/// it; and a page that took this long is better given as it is.
const ROUNDS_MAX: u32 = 8;
/// Times that a scan begins anew within one page, since tablets moved between its parts.
const RESTARTS_MAX: u32 = 4;
/// Bytes of a part's page, at least.
const PART_BYTES_MIN: usize = 32 << 10;

/// What a merged scan has of each shard.
pub struct Merged {
    /// What each part is asked for.
    range: ScanRange,
    parts: Vec<Part>,
    /// The last key that was given; empty: none was.
    given: Vec<u8>,
    /// Of the slot table, as all parts know it.
    epoch: Option<u32>,
    /// It took over from another, and no page has said so yet.
    is_anew: bool,
}

/// What was got of one shard and not given yet.
#[derive(Default)]
struct Part {
    entries: Vec<u8>,
    at: usize,
    left: usize,
    /// Where it goes on; empty: it was not asked yet.
    cursor: Vec<u8>,
    is_ended: bool,
}

impl Part {
    fn rest(&self) -> ScanEntries<'_> {
        ScanEntries::of_checked(self.left, &self.entries[self.at..])
    }

    fn key(&self) -> Option<&[u8]> {
        self.rest().next().map(|entry| entry.key)
    }
}

impl Merged {
    fn new(shards: usize, shape: &Shape, given: &[u8]) -> Merged {
        let parts = (0..shards).map(|_| Part::default()).collect();
        Merged { range: shape.rest(given), parts, given: given.to_vec(), epoch: None, is_anew: false }
    }

    /// Bytes of what was got of the shards.
    pub fn kept(&self) -> usize {
        self.parts.iter().map(|part| part.entries.len()).sum()
    }

    /// Throws away what was got and not given.
    pub fn begin_anew(&mut self, shape: &Shape) {
        let new = Merged::new(self.parts.len(), shape, &self.given);
        *self = Merged { is_anew: true, ..new };
    }

    /// The part that comes next; `Err`: those that must be asked first.
    fn next(&self, is_reverse: bool) -> Result<Option<usize>, Vec<usize>> {
        let is_used_up = |part: &&Part| part.left == 0 && !part.is_ended;
        if self.parts.iter().any(|part| is_used_up(&part)) {
            let numbered = self.parts.iter().enumerate();
            return Err(numbered.filter(|(_, part)| is_used_up(part)).map(|(number, _)| number).collect());
        }
        let keys = self.parts.iter().enumerate().filter_map(|(number, part)| Some((part.key()?, number)));
        let next = if is_reverse { keys.max() } else { keys.min() };
        Ok(next.map(|(_, number)| number))
    }
}

/// A page in the making. Its parts carry the shard's number as their request id.
pub struct MergedPage<E: Env> {
    shard: Weak<Shard<E>>,
    line: Origin,
    origin: Origin,
    meta: Meta,
    shape: Shape,
    session: u64,
    page: u32,
    limits: PageLimits,
    merged: RefCell<Merged>,
    encoder: RefCell<Option<PageEncoder>>,
    is_new_snapshot: Cell<bool>,
    outstanding: Cell<u32>,
    /// Whether parts were asked: then the page is not answered in the turn in which it was asked for.
    is_task: Cell<bool>,
    rounds: Cell<u32>,
    restarts: Cell<u32>,
    must_restart: Cell<bool>,
    refusal: RefCell<Option<Refusal>>,
    /// Of the shard's gathers, for the parts and the page.
    granted: Cell<usize>,
    /// Bytes of parts for which there was no room. They are asked again once there is, from a new snapshot.
    refused: Cell<usize>,
    token: Cell<u64>,
}

impl<E: Env> MergedPage<E> {
    /// Begins a page, unless it must wait for room.
    pub fn begin(
        shard: &Rc<Shard<E>>,
        line: Origin,
        origin: Origin,
        meta: Meta,
        request: &ScanRequest<'_>,
        out: &mut Outputs,
    ) -> Step {
        let (shape, limits) = (Shape::of(request), PageLimits::of(request));
        let usual = PAGE_OVERHEAD + limits.bytes + limits.bytes.max(PART_BYTES_MIN * shard.slots.shards);
        if !shard.has_gather_room(out, usual.max(shard.scans.room(request.cursor, &shape))) {
            return Step::Stalled(Stall::Replies);
        }
        let known = match shard.scans.take(request.cursor, &shape) {
            Some(Session { what: What::Merged(merged), .. }) => {
                request.cursor.map(|cursor| (cursor.session, merged))
            }
            _ => None,
        };
        let is_new = known.is_none();
        let (session, mut merged) = known.unwrap_or_else(|| {
            let given = request.cursor.map_or(&[][..], |cursor| cursor.key);
            (shard.env.random().max(1), Merged::new(shard.slots.shards, &shape, given))
        });
        let page = Rc::new(MergedPage {
            shard: Rc::downgrade(shard),
            line,
            origin,
            meta,
            shape,
            session,
            page: if is_new { 0 } else { request.cursor.map_or(0, |cursor| cursor.page) },
            limits,
            is_new_snapshot: Cell::new(
                is_new && request.cursor.is_some() || std::mem::take(&mut merged.is_anew),
            ),
            merged: RefCell::new(merged),
            encoder: RefCell::new(Some(PageEncoder::new(meta.request_id, meta.epoch))),
            outstanding: Cell::new(0),
            is_task: Cell::new(false),
            rounds: Cell::new(0),
            restarts: Cell::new(0),
            must_restart: Cell::new(false),
            refusal: RefCell::new(None),
            granted: Cell::new(std::mem::take(&mut out.granted.gathers)),
            refused: Cell::new(0),
            token: Cell::new(0),
        });
        page.token.set(shard.register(page.clone()));
        page.go_on(shard);
        Step::Taken
    }

    /// Merges what is there, then asks for more or answers.
    fn go_on(&self, shard: &Rc<Shard<E>>) {
        if self.must_restart.take() && !self.restart(shard) {
            let message = "SCAN: tablets move faster than the scan can begin; try again";
            self.refusal.replace(Some(Refusal::new(Code::SlotMoving, message)));
        }
        if self.refusal.borrow().is_some() || self.refused.get() > 0 {
            return self.answer(shard, false);
        }
        let wanted = match self.merge() {
            Ok(is_end) => return self.answer(shard, is_end),
            Err(wanted) => wanted,
        };
        if self.rounds.replace(self.rounds.get() + 1) >= ROUNDS_MAX {
            return self.answer(shard, false);
        }
        let frames: Vec<_> = wanted.into_iter().map(|owner| (owner, self.ask(owner))).collect();
        self.outstanding.set(frames.len() as u32);
        if !self.is_task.replace(true) {
            shard.begin_task(self.line, self.limits.bytes);
        }
        // They are a line of their own: that of the connection may stand still until this page is there.
        let token = self.token.get();
        for (owner, frames) in frames {
            if owner == shard.id {
                let at = Origin { peer: owner, token };
                shard.execute(at, at, Cow::Owned(frames));
            } else {
                shard.forward(owner, token, token, &frames);
            }
        }
    }

    /// Takes entries in order. Whether that was all; `Err`: the parts that must be asked first.
    fn merge(&self) -> Result<bool, Vec<usize>> {
        let mut merged = self.merged.borrow_mut();
        let mut encoder = self.encoder.borrow_mut();
        let Some(encoder) = encoder.as_mut() else { return Ok(true) };
        loop {
            let count = u64::from(encoder.count());
            if count >= self.limits.entries {
                return Ok(self.limits.is_reached(count));
            }
            let Some(next) = merged.next(self.shape.range.is_reverse)? else { return Ok(true) };
            let Merged { parts, given, .. } = &mut *merged;
            let part = &mut parts[next];
            let mut rest = part.rest();
            let Some(entry) = rest.next() else { return Ok(true) };
            let len = entry_len(entry.key, entry.value.len(), entry.expiry_ms);
            if count > 0 && encoder.entries_len() + len > self.limits.bytes {
                return Ok(false);
            }
            encoder.push_raw(1, &part.entries[part.at..part.at + len]);
            given.clear();
            given.extend_from_slice(entry.key);
            (part.at, part.left) = (part.at + len, part.left - 1);
        }
    }

    /// What a part is asked.
    fn ask(&self, owner: usize) -> Vec<u8> {
        let merged = self.merged.borrow();
        let part = &merged.parts[owner];
        let rest = &merged.range;
        let entries = self.encoder.borrow().as_ref().map_or(0, PageEncoder::count);
        let request = ScanRequest {
            start: &rest.start,
            end: &rest.end,
            is_reverse: rest.is_reverse,
            is_keys_only: self.shape.is_keys_only,
            is_local: true,
            entries_max: 0,
            bytes_max: (self.limits.bytes / merged.parts.len()).max(PART_BYTES_MIN) as u32,
            limit: 0,
            cursor: Cursor::decode(&part.cursor),
        };
        // More than are wanted of all are of no use from one.
        let wanted = self.limits.limit.saturating_sub(u64::from(entries));
        let entries_max = if self.limits.limit == 0 { 0 } else { u32::try_from(wanted).unwrap_or(u32::MAX) };
        let mut frame = Vec::new();
        encode_request(&mut frame, owner as u64 + 1, &Request::Scan(ScanRequest { entries_max, ..request }));
        frame
    }

    /// Whether there is room for a part of so many bytes, beside the others and the page, which is at most as
    /// large as a page should be or as one of them is.
    fn has_room(&self, shard: &Shard<E>, merged: &Merged, owner: usize, part: usize) -> bool {
        let others = merged.kept() - merged.parts[owner].entries.len();
        let largest = merged.parts.iter().map(|part| part.entries.len()).fold(part, usize::max);
        let need = others + part + self.limits.bytes.max(largest) + PAGE_OVERHEAD;
        let missing = need.saturating_sub(self.granted.get());
        let has_room = missing == 0 || shard.gather_budget.take_now(missing);
        if has_room {
            self.granted.set(self.granted.get() + missing);
        } else {
            self.refused.set(self.refused.get() + part);
        }
        has_room
    }

    fn take_part(&self, shard: &Shard<E>, owner: usize, epoch: u32, reply: Reply<'_>) {
        let mut merged = self.merged.borrow_mut();
        let page = match reply {
            Reply::Page(page) => page,
            Reply::Refused(refusal) => {
                self.refusal.replace(Some(refusal));
                return;
            }
            _ => unreachable!("a shard answers what it was asked"),
        };
        // A tablet that has moved may be in the snapshots of two shards, or of none.
        let is_torn = page.is_new_snapshot || merged.epoch.is_some_and(|known| known != epoch);
        self.must_restart.set(self.must_restart.get() || is_torn);
        merged.epoch = Some(epoch);
        let entries = page.entries.wire_bytes();
        if !self.has_room(shard, &merged, owner, entries.len()) {
            return;
        }
        let part = &mut merged.parts[owner];
        part.entries = entries.to_vec();
        (part.at, part.left) = (0, page.entries.len());
        part.cursor.clear();
        part.cursor.extend_from_slice(page.cursor.unwrap_or_default());
        part.is_ended = page.cursor.is_none();
    }

    /// Begins anew behind the last key given. `false`: it has too often.
    fn restart(&self, shard: &Shard<E>) -> bool {
        let mut given = std::mem::take(&mut self.merged.borrow_mut().given);
        if planted(Bug::ScanSkips) && !given.is_empty() {
            given.extend_from_slice(b"9");
        }
        self.merged.replace(Merged::new(shard.slots.shards, &self.shape, &given));
        self.is_new_snapshot.set(true);
        self.restarts.set(self.restarts.get() + 1);
        self.restarts.get() <= RESTARTS_MAX
    }

    fn answer(&self, shard: &Rc<Shard<E>>, is_end: bool) {
        shard.unregister(self.token.get());
        let mut out = Outputs::default();
        out.granted.gathers = self.granted.take();
        let encoder = self.encoder.take();
        if let Some(refusal) = self.refusal.take() {
            out.ready(self.meta, &Reply::Refused(refusal));
        } else if let Some(encoder) = encoder {
            let mut merged = self.merged.replace(Merged::new(0, &self.shape, &[]));
            // For the parts and a page that may be as large as all of them.
            let room = 2 * (merged.kept() + self.refused.get()) + PAGE_OVERHEAD;
            if self.refused.get() > 0 {
                merged.begin_anew(&self.shape);
            }
            let mut cursor = Vec::new();
            if !is_end {
                let page = self.page.wrapping_add(1);
                let session = self.session;
                Cursor { shard: shard.id as u16, page, session, key: &merged.given }.encode(&mut cursor);
                let (used, shape) = (shard.env.now(), self.shape.clone());
                shard.keep_session(session, Session { page, used, shape, what: What::Merged(merged), room });
            }
            let reply = encoder.finish(self.is_new_snapshot.get(), (!is_end).then_some(&cursor[..]));
            out.whole(None, self.meta, reply);
        }
        shard.settle(self.origin, out);
        if self.is_task.get() {
            shard.end_task(self.line, self.limits.bytes);
        }
    }
}

impl<E: Env> Outlet for MergedPage<E> {
    fn deliver(&self, owner: usize, replies: Replies) {
        let Some(shard) = self.shard.upgrade() else { return };
        let mut bytes = &replies.bytes[..];
        for _ in 0..replies.count {
            let header = decode_reply_header(bytes, Limits::FRAME_BYTES_LIMIT);
            let Ok(Some(header)) = header else { unreachable!("shards send whole replies") };
            let frame = &bytes[..header.frame_bytes()];
            let body = &frame[frame.len() - header.body_bytes()..];
            match decode_reply(&header, body) {
                Ok(reply) => self.take_part(&shard, header.request_id as usize - 1, header.epoch, reply),
                Err(error) => unreachable!("shards send replies that parse: {error}"),
            }
            bytes = &bytes[header.frame_bytes()..];
        }
        self.outstanding.set(self.outstanding.get() - replies.count);
        // From here on they count among what this shard gathers.
        shard.left(owner, replies.granted);
    }

    fn stall(&self, _owner: usize, _why: Stall) {}

    fn flush(&self) {
        if self.outstanding.get() == 0
            && let Some(shard) = self.shard.upgrade()
        {
            self.go_on(&shard);
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
