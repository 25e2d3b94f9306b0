//! A logical client: decides what to send and when, and judges what comes back. No I/O.
//!
//! A client has one connection (a [`Lane`]) per shard if it knows the shards, otherwise one. Keys are
//! drawn first, from the same distribution either way, and then go to the connection of their owner, as
//! a shard-aware application's would; what is in flight is limited over all of them, so that a figure
//! with and without knowledge of shards is for the same load.

use std::ops::RangeInclusive;
use std::sync::Arc;

use atlaskv::slot::Slot;

use crate::keys::{Family, KeySpace, Picker};
use crate::lane::{Flight, Lane, Step};
use crate::mix::{Mix, OpKind};
use crate::population::Population;
use crate::record::{Answered, Recorder};
use crate::timetable::Timetable;
use crate::value::{self, Values};
use crate::wire::{Body, Op, Wire, WireError};
use crate::zipf::Scramble;

/// Which connection a key belongs to.
#[derive(Clone, Debug)]
pub enum Route {
    /// One connection for all.
    Any,
    /// By slot, the number of a shard; shared by all clients.
    BySlot(Arc<[u16]>),
}

impl Route {
    #[inline]
    fn lane(&self, key: &[u8]) -> usize {
        match self {
            Route::Any => 0,
            Route::BySlot(owners) => usize::from(owners[usize::from(Slot::of_key(key).number())]),
        }
    }
}

/// What is sent: the same for all clients, and but for the number of keys never changed in a run.
pub struct Workload {
    pub mix: Mix,
    pub population: Population,
    pub space: KeySpace,
    pub values: Values,
    pub value_size: usize,
    pub mget_keys: usize,
    /// Entries of a scan, each number as often.
    pub scan_limits: RangeInclusive<u32>,
    pub verify: bool,
    /// Which keys reads ask for: those that writes set, or such as never were.
    pub read_family: Family,
    /// Whether a key that is not there is a fault: all were loaded and nothing deletes them.
    pub all_present: bool,
}

/// What decides when a client sends.
#[derive(Clone, Debug)]
pub enum Pacing {
    /// Sets every `step`th key from `next` below `end`, once; in the order of the scramble if there is one.
    Load { next: u64, step: u64, end: u64, scramble: Option<Scramble> },
    /// As soon as there is room.
    Closed,
    /// By the clock.
    Open(Timetable),
}

/// What all clients of a worker share.
pub struct Shared<'a> {
    pub workload: &'a Workload,
    pub recorder: &'a mut Recorder,
    pub scratch: &'a mut Scratch,
    /// Requests that may still be begun in the measured window.
    pub quota: &'a mut u64,
}

/// Buffers that live as long as the worker.
#[derive(Default)]
pub struct Scratch {
    key: Vec<u8>,
    value: Vec<u8>,
    numbers: Vec<u64>,
    /// Lanes of the current client that got something to send.
    pub touched: Vec<usize>,
}

pub struct Client<W> {
    pub lanes: Vec<Lane<W>>,
    pub pacing: Pacing,
    route: Route,
    window: usize,
    in_flight: usize,
    picker: Picker,
    /// Lanes with a write that followed from a read.
    written: Vec<usize>,
    rng: fastrand::Rng,
    /// Number of the client and of its values, so that no two values of a run are alike.
    sequence: u64,
}

impl<W: Wire> Client<W> {
    pub fn new(number: u64, lanes: Vec<Lane<W>>, route: Route, picker: Picker, seed: u64) -> Client<W> {
        // Neighbouring seeds give unlike streams only after mixing.
        let mixed =
            (seed ^ (number + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        Client {
            lanes,
            pacing: Pacing::Closed,
            route,
            window: 1,
            in_flight: 0,
            picker,
            written: Vec::new(),
            rng: fastrand::Rng::with_seed(mixed),
            sequence: number << 40,
        }
    }

    /// Sets when and how far ahead it sends from now on.
    pub fn pace(&mut self, pacing: Pacing, window: usize) {
        self.pacing = pacing;
        self.window = window;
    }

    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Encodes all that is to be sent now. Touched lanes are added to the scratch list.
    #[inline]
    pub fn fill(&mut self, now: u64, shared: &mut Shared<'_>) {
        shared.scratch.touched.append(&mut self.written);
        while self.in_flight < self.window && self.lanes.iter().all(Lane::has_room) {
            let Some((kind, key, intended)) = self.next(now, shared) else { return };
            self.send(kind, key, intended, now, shared);
        }
    }

    /// When a client that is not held up by the server wants to send next; `None` if it is held up, or has
    /// nothing more to send before `until` or within `quota`.
    pub fn due(&self, until: u64, quota: u64) -> Option<u64> {
        match &self.pacing {
            Pacing::Open(table)
                if quota > 0 && self.in_flight < self.window && self.lanes.iter().all(Lane::has_room) =>
            {
                Some(table.next()).filter(|&next| next < until)
            }
            _ => None,
        }
    }

    /// Whether it still has to send something before `until`.
    pub fn has_more(&self, now: u64, until: u64, quota: u64) -> bool {
        match &self.pacing {
            Pacing::Load { next, end, .. } => next < end && now < until,
            Pacing::Closed => now < until && quota > 0,
            Pacing::Open(table) => table.next() < until && quota > 0,
        }
    }

    /// What to send next, on which key, and when that should have been; `None` for nothing now.
    #[inline]
    fn next(&mut self, now: u64, shared: &mut Shared<'_>) -> Option<(OpKind, u64, u64)> {
        let intended = match &mut self.pacing {
            Pacing::Load { next, step, end, scramble } => {
                let place = *next;
                if place >= *end || now >= shared.recorder.until {
                    return None;
                }
                *next += *step;
                let key = scramble.map_or(place, |scramble| scramble.place(place));
                return Some((OpKind::Set, key, now));
            }
            Pacing::Closed if now < shared.recorder.until && *shared.quota > 0 => now,
            Pacing::Open(table)
                if table.next() <= now && table.next() < shared.recorder.until && *shared.quota > 0 =>
            {
                let intended = table.next();
                table.advance();
                intended
            }
            Pacing::Closed | Pacing::Open(_) => return None,
        };
        if intended >= shared.recorder.from {
            *shared.quota -= 1;
        }
        let Workload { mix, population, .. } = shared.workload;
        let kind = mix.pick(&mut self.rng);
        let key = match kind {
            OpKind::Insert => population.take(),
            _ => self.picker.pick(population.known(), &mut self.rng),
        };
        Some((kind, key, intended))
    }

    #[inline]
    fn send(&mut self, kind: OpKind, number: u64, intended: u64, now: u64, shared: &mut Shared<'_>) {
        let workload = shared.workload;
        let Scratch { key, value, numbers, touched } = shared.scratch;
        key.clear();
        numbers.clear();
        let family = family(kind, workload);
        workload.space.append(family, number, key);
        let key_size = key.len();
        let lane_number = self.route.lane(key);
        if kind == OpKind::MGet {
            numbers.push(number);
            for _ in 1..workload.mget_keys {
                let number = self.picker.pick(workload.population.known(), &mut self.rng);
                numbers.push(number);
                workload.space.append(family, number, key);
            }
        }
        let op = match kind {
            OpKind::Get | OpKind::ReadModifyWrite => Op::Get { key },
            OpKind::Set | OpKind::Insert => {
                self.sequence += 1;
                workload.values.make(key, self.sequence, workload.value_size, value);
                Op::Set { key, value }
            }
            OpKind::Del => Op::Del { key },
            OpKind::Incr => Op::Incr { key, by: 1 },
            OpKind::MGet => Op::MGet { keys: key, key_size },
            OpKind::Scan => {
                workload.space.tag_end(key, value);
                Op::Scan { start: key, end: value, limit: self.rng.u32(workload.scan_limits.clone()) }
            }
        };
        let lane = &mut self.lanes[lane_number];
        let step = match kind {
            OpKind::ReadModifyWrite => Step::Read,
            _ => Step::Last { is_missing: false },
        };
        let id = lane.in_flight.insert(Flight { kind, step, intended, sent: now, key: number }, numbers);
        lane.wire.encode(op, id, &mut lane.outgoing.bytes);
        self.in_flight += 1;
        shared.recorder.sent(intended, now);
        if !lane.dirty {
            lane.dirty = true;
            touched.push(lane_number);
        }
    }

    /// Takes all whole replies off the front of `input`, which came over lane `lane` by `now`; returns how
    /// many bytes they were.
    pub fn receive(
        &mut self,
        lane: usize,
        input: &[u8],
        now: u64,
        shared: &mut Shared<'_>,
    ) -> Result<usize, WireError> {
        let mut at = 0;
        while let Some(reply) = self.lanes[lane].wire.decode(&input[at..])? {
            let in_flight = &mut self.lanes[lane].in_flight;
            let (flight, place) = in_flight.remove(reply.id)?;
            at += reply.len;
            if flight.step == Step::Read
                && let Body::Value(_) | Body::Missing = reply.body
            {
                self.write_back(lane, flight, &reply.body, shared);
                continue;
            }
            self.in_flight -= 1;
            let keys = if flight.kind == OpKind::MGet { in_flight.keys(place) } else { &[] };
            judge(flight, keys, reply.body, now, shared);
        }
        Ok(at)
    }

    /// Sends the write of a read-modify-write, whose read brought `body`, over the connection that it came
    /// by. The operation goes on as the one it was.
    fn write_back(&mut self, lane_number: usize, read: Flight, body: &Body<'_>, shared: &mut Shared<'_>) {
        let value = if let Body::Value(value) = body { Some(*value) } else { None };
        check_value(Family::Values, read.key, value, shared);
        let workload = shared.workload;
        let Scratch { key, value: fresh, .. } = shared.scratch;
        key.clear();
        workload.space.append(Family::Values, read.key, key);
        self.sequence += 1;
        workload.values.make(key, self.sequence, workload.value_size, fresh);
        let lane = &mut self.lanes[lane_number];
        let step = Step::Last { is_missing: value.is_none() };
        let id = lane.in_flight.insert(Flight { step, ..read }, &[]);
        lane.wire.encode(Op::Set { key, value: fresh }, id, &mut lane.outgoing.bytes);
        if !lane.dirty {
            lane.dirty = true;
            self.written.push(lane_number);
        }
    }
}

fn family(kind: OpKind, workload: &Workload) -> Family {
    match kind {
        OpKind::Incr => Family::Counters,
        OpKind::Get | OpKind::MGet | OpKind::Scan => workload.read_family,
        OpKind::Set | OpKind::Del | OpKind::Insert | OpKind::ReadModifyWrite => Family::Values,
    }
}

/// Records one reply, and verifies what it brings.
#[inline]
fn judge(flight: Flight, keys: &[u64], body: Body<'_>, now: u64, shared: &mut Shared<'_>) {
    let mut answer = Answered {
        kind: flight.kind,
        intended: flight.intended,
        sent: flight.sent,
        keys: 1,
        missing: u32::from(flight.step == Step::Last { is_missing: true }),
        refused: false,
    };
    if flight.kind == OpKind::Insert {
        shared.workload.population.answered(flight.key, matches!(body, Body::Done));
    }
    match (flight.kind, body) {
        (OpKind::Get, Body::Value(value)) => {
            check_value(shared.workload.read_family, flight.key, Some(value), shared);
        }
        (OpKind::Get, Body::Missing) => {
            answer.missing = 1;
            check_value(shared.workload.read_family, flight.key, None, shared);
        }
        (OpKind::Set | OpKind::Insert, Body::Done) | (OpKind::Incr, Body::Number(_)) => {}
        (OpKind::ReadModifyWrite, Body::Done) if flight.step != Step::Read => {}
        (OpKind::Del, Body::Number(0) | Body::Missing) => answer.missing = 1,
        (OpKind::Del, Body::Number(_) | Body::Done) => {}
        (OpKind::MGet, Body::Many(values)) if values.len() == keys.len() => {
            answer.keys = keys.len() as u32;
            for (&key, value) in keys.iter().zip(values) {
                answer.missing += u32::from(value.is_none());
                check_value(shared.workload.read_family, key, value, shared);
            }
        }
        (OpKind::Scan, Body::Entries(count)) => answer.keys = count,
        (_, Body::Refused(reason)) => {
            answer.refused = true;
            shared.recorder.refusals.note(|| reason.into_owned());
        }
        (kind, other) => shared
            .recorder
            .mismatches
            .note(|| format!("the answer to a {} of key number {} is a {other:?}", kind.name(), flight.key)),
    }
    shared.recorder.answered(answer, now);
}

#[inline]
fn check_value(family: Family, number: u64, value: Option<&[u8]>, shared: &mut Shared<'_>) {
    let workload = shared.workload;
    if !workload.verify {
        return;
    }
    let key = &mut shared.scratch.key;
    key.clear();
    workload.space.append(family, number, key);
    match value {
        Some(value) if value::is_intact(key, value) => {}
        Some(value) => shared.recorder.mismatches.note(|| {
            format!(
                "{}: a value that was never written to it, {}",
                key.escape_ascii(),
                value::describe(value)
            )
        }),
        None if workload.all_present && workload.population.must_have(number) => shared
            .recorder
            .mismatches
            .note(|| format!("{}: gone, though it was loaded and nothing deleted it", key.escape_ascii())),
        None => {}
    }
}

#[cfg(test)]
mod tests;
