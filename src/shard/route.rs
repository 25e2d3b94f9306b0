//! From the bytes of a connection to the shards that own the keys.

use std::borrow::Cow;
use std::rc::Rc;

use smallvec::SmallVec;

use super::execute::REPLY_BYTES_MIN;
use super::gather::Gather;
use super::outputs::{Meta, Outputs};
use super::stall::Step;
use super::topology::COORDINATOR;
use super::{Origin, Outlet, Shard};
use crate::engine::Key;
use crate::engine::memtable::{Half, PREFETCH_MAX};
use crate::env::Env;
use crate::error::{Code, Refusal};
use crate::metrics::Metrics;
use crate::protocol::binary::{
    FrameError, HEADER_BYTES, Keys, VERSION, decode_header, decode_request, encode_refusal,
};
use crate::protocol::{Hello, HelloRequest, OpCode, Reply, Request, Route, ShardRange};
use crate::slot::{Slot, SlotRange};

/// Replies waiting to be sent above which a connection takes in nothing more.
pub const BACKLOG_MAX: usize = 128 << 10;
/// Requests of one connection that may be unanswered.
pub const IN_FLIGHT_MAX: u32 = 16_384;
/// Bytes of a frame that is handed on as it was read instead of copied.
const WHOLE_BYTES_MIN: usize = 256 << 10;
/// Frames that are taken in before others have their turn.
const TURN_FRAMES_MAX: u32 = 1_024;
/// Bytes of requests that a connection may have taken in and unanswered; one request more may pass this. So
/// one connection can't take all that [`super::budget`] has, where there is much.
pub const IN_FLIGHT_BYTES_MAX: usize = 4 << 20;

/// How far the bytes of a connection were taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dispatched {
    /// All whole frames were; the rest is part of one.
    NeedMore {
        /// Bytes taken in.
        used: usize,
    },
    /// Replies must leave, or come, first; or others have their turn, or [`Shard::should_rest`].
    Pause {
        /// Bytes taken in.
        used: usize,
    },
    /// Where the next frame starts is unknown; the reason was answered.
    OutOfStep,
    /// The client asks for another shard. Its HELLO is not taken in: that shard answers it.
    MoveTo {
        /// Which shard.
        shard: usize,
        /// Bytes taken in.
        used: usize,
    },
}

impl<E: Env> Shard<E> {
    /// Takes in the whole frames at the start of `bytes`, which `outlet` read under `token`. Those of other shards leave
    /// when the turn ends, which the caller sees to.
    pub fn dispatch(self: &Rc<Self>, token: u64, outlet: &dyn Outlet, bytes: &[u8]) -> Dispatched {
        // One time for all that came with one read.
        self.engine.tick();
        let origin = Origin { peer: self.id, token };
        let mut out = Outputs::of(origin);
        let (mut used, mut fetched, mut taken, mut sent_on) = (0, 0, 0, 0);
        let begun = self.reads_begun.get();
        if self.congested() {
            return Dispatched::Pause { used };
        }
        let result = loop {
            if used >= fetched {
                fetched = used + self.fetch_ahead(&bytes[used..]);
            }
            let must_wait = outlet.backlog() + out.len() > BACKLOG_MAX
                || outlet.is_full()
                || outlet.is_stalled()
                // One is taken in of whoever comes: only pipelines are divided.
                || self.should_rest() && self.reads_begun.get() > begun
                || taken == TURN_FRAMES_MAX;
            taken += 1;
            if must_wait {
                break Dispatched::Pause { used };
            }
            let header = match decode_header(&bytes[used..], &self.limits) {
                Ok(Some(header)) => header,
                Ok(None) => break Dispatched::NeedMore { used },
                Err(FrameError::Refused { request_id, opcode, frame_bytes, refusal }) => {
                    if bytes.len() - used < frame_bytes {
                        break Dispatched::NeedMore { used };
                    }
                    outlet.accept(frame_bytes);
                    self.refuse(&mut out, opcode, request_id, frame_bytes, &refusal);
                    used += frame_bytes;
                    continue;
                }
                Err(FrameError::OutOfStep { request_id, opcode, refusal }) => {
                    outlet.accept(0);
                    self.refuse(&mut out, opcode, request_id, 0, &refusal);
                    break Dispatched::OutOfStep;
                }
            };
            let len = header.frame_bytes();
            let Some(frame) = bytes.get(used..used + len) else { break Dispatched::NeedMore { used } };
            let meta = self.meta(&header);
            let request = match decode_request(&header, &frame[HEADER_BYTES..], &self.limits) {
                Ok(request) => request,
                Err(refusal) => {
                    outlet.accept(len);
                    self.refuse(&mut out, header.opcode as u8, header.request_id, len, &refusal);
                    used += len;
                    continue;
                }
            };
            if let Request::Hello(hello) = &request {
                match self.hello(meta, hello, outlet, &mut out) {
                    Some(shard) => break Dispatched::MoveTo { shard, used },
                    None => used += len,
                }
                continue;
            }
            if self.holds_back(token, outlet, &request) {
                break Dispatched::Pause { used };
            }
            if self.gathers_too_much() && self.is_gathered(&request) {
                self.wait_for_gathers(token, outlet);
                break Dispatched::Pause { used };
            }
            let route = request.route();
            let is_everywhere = route == Route::Everywhere;
            if is_everywhere && outlet.in_flight() > 0 {
                outlet.fence();
                break Dispatched::Pause { used };
            }
            outlet.accept(len);
            if is_everywhere {
                outlet.fence();
            }
            sent_on += u32::from(self.send_to_owner(origin, frame, meta, &request, route, &mut out));
            used += len;
        };
        outlet.sent_on(sent_on);
        self.settle(origin, out);
        result
    }

    /// As [`Shard::dispatch`]. If `bytes` are one large frame for one shard, all of it goes there, and nothing is
    /// copied.
    pub fn dispatch_all(self: &Rc<Self>, token: u64, outlet: &dyn Outlet, bytes: &mut Vec<u8>) -> Dispatched {
        let Some(owner) = self.takes_whole(outlet, bytes) else {
            return self.dispatch(token, outlet, bytes);
        };
        outlet.accept(bytes.len());
        let (origin, frames) = (Origin { peer: self.id, token }, std::mem::take(bytes));
        if owner == self.id {
            self.execute(origin, origin, Cow::Owned(frames));
        } else {
            Metrics::add(&self.metrics.forwarded, 1);
            outlet.sent_on(1);
            self.forward_whole(owner, token, token, frames);
        }
        Dispatched::NeedMore { used: 0 }
    }

    /// Whose `bytes` are, if they are one large frame that may be taken in now.
    fn takes_whole(&self, outlet: &dyn Outlet, bytes: &[u8]) -> Option<usize> {
        if bytes.len() < WHOLE_BYTES_MIN {
            return None;
        }
        let must_wait =
            self.congested() || outlet.backlog() > BACKLOG_MAX || outlet.is_full() || outlet.is_stalled();
        let header = decode_header(bytes, &self.limits).ok()??;
        if must_wait || header.frame_bytes() != bytes.len() {
            return None;
        }
        let request = decode_request(&header, &bytes[HEADER_BYTES..], &self.limits).ok()?;
        let Request::Set { key, .. } = request else { return None };
        (!self.holds(&request)).then(|| self.slots.shard(Slot::of_key(key)))
    }

    /// Looks over the next whole frames and has the memory fetched that those of this shard will touch.
    /// Returns how far it looked.
    pub(super) fn fetch_ahead(&self, bytes: &[u8]) -> usize {
        let mut hashes = SmallVec::<[u64; PREFETCH_MAX]>::new();
        let mut read = SmallVec::<[Key<'_>; PREFETCH_MAX]>::new();
        let mut at = 0;
        let mut frames = 0;
        while frames < PREFETCH_MAX
            && let Ok(Some(header)) = decode_header(&bytes[at..], &self.limits)
            && let Some(frame) = bytes.get(at..at + header.frame_bytes())
        {
            if let Some(bytes) = header.key(&frame[HEADER_BYTES..])
                && let Some(tablet) = self.slots.local_on(self.id, Slot::of_key(bytes))
            {
                let hash = self.engine.hash(bytes);
                hashes.push(hash);
                if header.opcode == OpCode::Get {
                    read.push(Key { bytes, hash, tablet });
                }
            }
            at += header.frame_bytes();
            frames += 1;
        }
        if frames > 1 {
            self.engine.fetch(&hashes, &read);
        }
        at.max(1)
    }

    /// The key that the first frame of `bytes` names, if it is whole.
    pub fn first_key<'b>(&self, bytes: &'b [u8]) -> Option<&'b [u8]> {
        let header = decode_header(bytes, &self.limits).ok()??;
        header.key(bytes.get(HEADER_BYTES..header.frame_bytes())?)
    }

    /// Has what a request of `key` will touch fetched, while others who have something to do have their turn.
    pub async fn fetch_for(&self, key: &[u8]) {
        if self.slots.shard(Slot::of_key(key)) != self.id {
            return;
        }
        let hash = self.engine.hash(key);
        let _fetches = self.fetching.enter();
        for half in Half::ALL {
            self.engine.fetch_half(hash, half);
            self.env.yield_now().await;
        }
    }

    /// Executes a request here, or sends it to its owner: whether that is another shard, which answers it.
    #[allow(clippy::too_many_arguments)] // the request, and where it goes
    fn send_to_owner(
        self: &Rc<Self>,
        origin: Origin,
        frame: &[u8],
        meta: Meta,
        request: &Request<'_>,
        route: Route<'_>,
        out: &mut Outputs,
    ) -> bool {
        let owner = match route {
            Route::Anywhere => {
                if let Request::Stats { section } = request {
                    self.gather_stats(origin, meta, section, out);
                    return false;
                }
                let is_coordinated = matches!(request, Request::Tablets { .. } | Request::Checkpoint { .. });
                if is_coordinated { COORDINATOR } else { self.id }
            }
            Route::Slot(slot) => self.slots.shard(slot),
            Route::Shard(shard) if shard < self.slots.shards => shard,
            Route::Shard(_) => self.id,
            Route::Everywhere => {
                // Nothing of this connection is under way before it.
                if let Request::DeleteRange(range) = request {
                    Gather::delete_range(self, origin, meta, range);
                }
                return false;
            }
            Route::Keys(keys) if self.is_divided(keys) => {
                if let Step::Stalled(why) = self.gather(origin, meta, keys, out) {
                    self.stall(origin, origin, why, frame.to_vec());
                }
                return false;
            }
            Route::Keys(mut keys) => keys.next().map_or(self.id, |key| self.slots.shard(Slot::of_key(key))),
        };
        if owner != self.id {
            Metrics::add(&self.metrics.forwarded, 1);
            self.forward(owner, origin.token, origin.token, frame);
            return true;
        }
        if self.has_stalled(origin) {
            self.execute(origin, origin, Cow::Borrowed(frame));
        } else if let Step::Stalled(why) = self.step_request(origin, origin, frame, meta, request, out) {
            self.stall(origin, origin, why, frame.to_vec());
        }
        false
    }

    /// Whether the answer is put together here from those of several shards.
    fn is_gathered(&self, request: &Request<'_>) -> bool {
        match request.route() {
            Route::Anywhere => matches!(request, Request::Stats { .. }),
            Route::Everywhere => true,
            Route::Keys(keys) => self.is_divided(keys),
            Route::Slot(_) | Route::Shard(_) => false,
        }
    }

    /// Whether `keys` are not all of one shard.
    fn is_divided(&self, keys: Keys<'_>) -> bool {
        let mut owners = keys.map(|key| self.slots.shard(Slot::of_key(key)));
        let first = owners.next();
        owners.any(|owner| Some(owner) != first)
    }

    fn gather_stats(self: &Rc<Self>, origin: Origin, meta: Meta, section: &str, out: &mut Outputs) {
        if !matches!(section, "" | "total" | "local" | "shards" | "tablets" | "clients") {
            let message =
                format!("STATS has no section {section:?}; it has: total, local, shards, tablets, clients");
            let refusal = Refusal::new(Code::UnknownSection, message);
            self.refuse(out, meta.opcode as u8, meta.request_id, meta.frame_bytes, &refusal);
            return;
        }
        Gather::stats(self, origin, meta, section);
    }

    fn refuse(&self, out: &mut Outputs, opcode: u8, request_id: u64, frame_bytes: usize, refusal: &Refusal) {
        Metrics::add(&self.metrics.refusals, 1);
        encode_refusal(&mut out.ready.bytes, opcode, request_id, self.slots.epoch(), refusal);
        out.ready.count += 1;
        out.ready.frame_bytes += frame_bytes;
    }

    /// Answers HELLO, unless it asks for another shard: then that one does.
    fn hello(
        &self,
        meta: Meta,
        hello: &HelloRequest,
        outlet: &dyn Outlet,
        out: &mut Outputs,
    ) -> Option<usize> {
        let refuse = |out: &mut Outputs, code, message: String| {
            outlet.accept(meta.frame_bytes);
            let refusal = Refusal::new(code, message);
            self.refuse(out, meta.opcode as u8, meta.request_id, meta.frame_bytes, &refusal);
            None
        };
        if !(hello.version_min..=hello.version_max).contains(&VERSION) {
            let (min, max) = (hello.version_min, hello.version_max);
            let message = format!("the client speaks versions {min} to {max}, this server speaks {VERSION}");
            return refuse(out, Code::UnsupportedVersion, message);
        }
        let shard = hello.shard.map_or(self.id, usize::from);
        if shard >= self.slots.shards {
            let message =
                format!("there is no shard {shard}: they are numbered 0 to {}", self.slots.shards - 1);
            return refuse(out, Code::NoSuchShard, message);
        }
        if shard != self.id {
            if outlet.in_flight() > 0 {
                let message = "HELLO may ask for another shard only while nothing else is in flight";
                return refuse(out, Code::InvalidOption, message.to_owned());
            }
            return Some(shard);
        }
        outlet.accept(meta.frame_bytes);
        let ranges = self.slots.ranges().into_iter().filter_map(|(first, last, shard)| {
            SlotRange::new(first, last).map(|slots| ShardRange { slots, shard })
        });
        let reply = Hello {
            version: VERSION,
            shard_count: self.slots.shards as u16,
            shard: self.id as u16,
            epoch: self.slots.epoch(),
            limits: self.limits,
            ranges: ranges.collect(),
        };
        out.ready(meta, &Reply::Hello(reply));
        None
    }

    /// Bytes that the frame at the start of `bytes` needs in all, as far as can be told.
    pub fn wanted(&self, bytes: &[u8]) -> usize {
        match decode_header(bytes, &self.limits) {
            Ok(Some(header)) => header.frame_bytes(),
            Err(FrameError::Refused { frame_bytes, .. }) => frame_bytes,
            _ => REPLY_BYTES_MIN,
        }
    }
}
