//! Histories of one key that are known to be good, and changes that make most of them bad.
//!
//! A good one is made of what a key does: operations take effect one after another, each at a moment of its
//! own, and the client's call and the answer are some time before and after. Now and then the server dies: who
//! has no answer yet has lost it.

use std::ops::Range;

use crate::history::{Answer, Cond, NEVER, Op, Request};

/// How a generated history is.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub ops: usize,
    pub clients: u16,
    /// The longest time from call to effect, and from there to the end. An effect takes 1 to 10.
    pub delay: u64,
    /// One in so many operations is followed by a crash; 0: none.
    pub crash: usize,
}

impl Shape {
    pub fn random(rng: &mut fastrand::Rng, ops: Range<usize>) -> Shape {
        Shape {
            ops: rng.usize(ops),
            clients: rng.u16(1..6),
            delay: [3, 20, 60][rng.usize(..3)],
            crash: [0, 10, 25, 60][rng.usize(..4)],
        }
    }
}

struct Simulation<'a> {
    rng: &'a mut fastrand::Rng,
    shape: Shape,
    time: u64,
    /// The last version; grows with each write.
    version: u64,
    current: Option<(u64, u64)>,
    /// Values so far.
    values: u64,
    /// From when on a client can call.
    free: Vec<u64>,
    /// What each client was told last, from when on it is free.
    known: Vec<u64>,
    ops: Vec<Op>,
    starts: Vec<u64>,
    epoch_begin: usize,
}

/// A good history and its starts.
pub fn good(rng: &mut fastrand::Rng, shape: Shape) -> (Vec<Op>, Vec<u64>) {
    let clients = usize::from(shape.clients);
    let mut simulation = Simulation {
        rng,
        shape,
        time: 1,
        version: 0,
        current: None,
        values: 0,
        free: vec![0; clients],
        known: vec![0; clients],
        ops: Vec::new(),
        starts: Vec::new(),
        epoch_begin: 0,
    };
    while simulation.ops.len() < shape.ops {
        simulation.step();
        if shape.crash > 0 && simulation.rng.usize(..shape.crash) == 0 {
            simulation.crash();
        }
    }
    if shape.crash > 0 && simulation.rng.bool() {
        simulation.crash();
    }
    (simulation.ops, simulation.starts)
}

impl Simulation<'_> {
    fn step(&mut self) {
        self.time += self.rng.u64(1..=10);
        let client = self.rng.usize(..self.free.len());
        if self.free[client] >= self.time {
            return;
        }
        let request = self.request(client);
        let answer = self.apply(request);
        let op = Op {
            client: client as u16,
            call: self.time.saturating_sub(self.rng.u64(..self.shape.delay)).max(self.free[client] + 1),
            end: self.time + self.rng.u64(..self.shape.delay),
            request,
            answer,
        };
        self.free[client] = op.end;
        self.known[client] = match answer {
            Answer::Written(version) => version,
            _ => op.seen_version().unwrap_or(self.known[client]),
        };
        self.ops.push(op);
    }

    fn request(&mut self, client: usize) -> Request {
        // Nobody can name a version that nobody was told.
        let told = self.free.iter().zip(&self.known).filter(|(free, _)| **free < self.time);
        let newest = told.map(|(_, version)| *version).max().unwrap_or(0);
        let version = if self.rng.u8(..3) == 0 { self.known[client] } else { newest };
        let cond = if version == 0 { Cond::None } else { Cond::IfVersion(version) };
        self.values += 1;
        match self.rng.u8(..20) {
            0..7 => Request::Get,
            7..11 => Request::Set(self.values, Cond::None),
            11..13 => Request::Delete(Cond::None),
            13..15 => Request::Delete(cond),
            15..18 => Request::Set(self.values, cond),
            _ => Request::Set(self.values, Cond::IfAbsent),
        }
    }

    /// What the key does.
    fn apply(&mut self, request: Request) -> Answer {
        let there = self.current.map(|(_, version)| version);
        let (Request::Set(_, cond) | Request::Delete(cond)) = request else {
            return self.current.map_or(Answer::Absent, |(value, version)| Answer::Found { value, version });
        };
        let holds = match cond {
            Cond::None => true,
            Cond::IfAbsent => there.is_none(),
            Cond::IfVersion(named) => there == Some(named),
        };
        let value = match request {
            _ if !holds => return Answer::Failed(there),
            Request::Delete(_) if there.is_none() => return Answer::Absent,
            Request::Set(value, _) => Some(value),
            _ => None,
        };
        self.version += self.rng.u64(1..=3);
        self.current = value.map(|value| (value, self.version));
        Answer::Written(self.version)
    }

    fn crash(&mut self) {
        let (crash, start) = (self.time, self.time + self.rng.u64(1..50));
        for client in 0..self.free.len() {
            // On its way, and never done.
            if self.free[client] < crash && self.rng.bool() {
                let request = self.request(client);
                let call = self.rng.u64(self.free[client] + 1..=crash);
                let end = crash + 1;
                self.ops.push(Op { client: client as u16, call, end, request, answer: Answer::Lost });
            }
        }
        for op in &mut self.ops[self.epoch_begin..] {
            if op.end > crash {
                (op.end, op.answer) = (start, Answer::Lost);
                self.known[usize::from(op.client)] = 0;
            }
        }
        self.ops.retain(|op| !(op.is_lost() && op.request == Request::Get));
        self.epoch_begin = self.ops.len();
        self.free.fill(start);
        self.time = start;
        self.starts.push(start);
    }
}

/// Ways to change a history.
pub const CHANGES: [&str; 13] = [
    "a read finds an older value",
    "a read finds a newer value",
    "a read finds nothing",
    "a read finds what was removed",
    "an answered write is lost",
    "two writes change their versions",
    "a condition on another version holds",
    "an operation comes at another time",
    "a write was never sent",
    "a condition fails for another version",
    "a lost write shows later",
    "an answer is lost",
    "an operation takes no time",
];

/// A random one of those that fit, or `None`.
fn pick(rng: &mut fastrand::Rng, ops: &[Op], fits: impl Fn(&Op) -> bool) -> Option<usize> {
    let all: Vec<usize> = (0..ops.len()).filter(|at| fits(&ops[*at])).collect();
    (!all.is_empty()).then(|| all[rng.usize(..all.len())])
}

fn is_found(op: &Op) -> bool {
    matches!(op.answer, Answer::Found { .. })
}

/// Every value with its version, as far as some answer tells.
fn all_found(ops: &[Op]) -> Vec<(u64, u64)> {
    let found = |op: &Op| match (op.request, op.answer) {
        (Request::Set(value, _), Answer::Written(version)) | (_, Answer::Found { value, version }) => {
            Some((version, value))
        }
        _ => None,
    };
    let mut all: Vec<_> = ops.iter().filter_map(found).collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Makes a change; `None` if there is nothing to be changed so.
pub fn change(ops: &mut Vec<Op>, starts: &[u64], change: usize, rng: &mut fastrand::Rng) -> Option<()> {
    let found = all_found(ops);
    match change {
        0 | 1 => {
            let at = pick(rng, ops, is_found)?;
            let there = ops[at].seen_version()?;
            let others: Vec<_> = found
                .iter()
                .filter(|(version, _)| (*version < there) == (change == 0) && *version != there)
                .collect();
            let (version, value) = **others.get(rng.usize(..others.len().max(1)))?;
            ops[at].answer = Answer::Found { value, version };
        }
        2 => {
            let at = pick(rng, ops, is_found)?;
            ops[at].answer = Answer::Absent;
        }
        3 => {
            let at = pick(rng, ops, |op| op.request == Request::Get && op.answer == Answer::Absent)?;
            let (version, value) = *found.get(rng.usize(..found.len().max(1)))?;
            ops[at].answer = Answer::Found { value, version };
        }
        4 => {
            let at = pick(rng, ops, |op| {
                matches!((op.request, op.answer), (Request::Set(..), Answer::Written(_)))
            })?;
            let Answer::Written(lost) = ops[at].answer else { return None };
            let before = found.iter().rev().find(|(version, _)| *version < lost);
            let instead = before.map_or(Answer::Absent, |(version, value)| Answer::Found {
                value: *value,
                version: *version,
            });
            let seers: Vec<_> =
                ops.iter_mut().filter(|op| is_found(op) && op.seen_version() == Some(lost)).collect();
            if seers.is_empty() {
                return None;
            }
            seers.into_iter().for_each(|op| op.answer = instead);
        }
        5 => {
            let is_write = |op: &Op| matches!(op.answer, Answer::Written(_));
            let (one, other) = (pick(rng, ops, is_write)?, pick(rng, ops, is_write)?);
            (ops[one].answer, ops[other].answer) = (ops[other].answer, ops[one].answer);
        }
        6 => {
            let is_swap = |op: &Op| {
                matches!(
                    op.request,
                    Request::Set(_, Cond::IfVersion(_)) | Request::Delete(Cond::IfVersion(_))
                )
            };
            let at = pick(rng, ops, is_swap)?;
            let (version, _) = *found.get(rng.usize(..found.len().max(1)))?;
            if let Request::Set(_, cond) | Request::Delete(cond) = &mut ops[at].request {
                *cond = Cond::IfVersion(version);
            }
        }
        7 => {
            let at = pick(rng, ops, |op| !op.is_lost())?;
            let op = &mut ops[at];
            // Who has an answer has it before the next start.
            let epoch = starts.partition_point(|start| *start < op.call);
            let (from, to) =
                (epoch.checked_sub(1).map_or(1, |at| starts[at] + 1), starts.get(epoch).copied());
            let (far, len) = (rng.u64(1..200), op.end - op.call);
            op.call = if rng.bool() { op.call + far } else { op.call.saturating_sub(far) };
            op.call = op.call.clamp(from, to.unwrap_or(NEVER / 2) - 1);
            op.end = (op.call + len).min(to.unwrap_or(NEVER / 2) - 1);
        }
        8 => {
            let at = pick(rng, ops, |op| matches!(op.answer, Answer::Written(_) | Answer::Lost))?;
            ops.remove(at);
        }
        9 => {
            let at = pick(rng, ops, |op| matches!(op.answer, Answer::Failed(_)))?;
            let there = found.get(rng.usize(..found.len().max(1))).map(|(version, _)| *version);
            ops[at].answer =
                Answer::Failed(there.map(|version| version + rng.u64(..2)).filter(|_| rng.u8(..4) > 0));
        }
        10 => {
            let writer = pick(rng, ops, |op| op.is_lost() && matches!(op.request, Request::Set(..)))?;
            let (end, Request::Set(value, _)) = (ops[writer].end, ops[writer].request) else { return None };
            let at = pick(rng, ops, |op| op.request == Request::Get && op.call > end)?;
            let version = ops[at].seen_version().unwrap_or(found.last()?.0) + rng.u64(..2);
            ops[at].answer = Answer::Found { value, version };
        }
        11 => {
            let at = pick(rng, ops, |op| matches!(op.answer, Answer::Written(_)))?;
            let next = starts.iter().copied().find(|start| *start > ops[at].call);
            (ops[at].answer, ops[at].end) = (Answer::Lost, next.unwrap_or(NEVER));
        }
        _ => {
            let at = pick(rng, ops, |op| !op.is_lost())?;
            let moment = rng.u64(ops[at].call..=ops[at].end);
            (ops[at].call, ops[at].end) = (moment, moment);
        }
    }
    Some(())
}

/// A few operations at random times with random answers, most of them from the promise's corners.
pub fn nonsense(rng: &mut fastrand::Rng) -> (Vec<Op>, Vec<u64>) {
    const SPAN: u64 = 10;
    let epochs = rng.u64(1..4);
    let versions = rng.u64(2..6);
    let mut ops = Vec::new();
    for at in 0..rng.u64(2..9) {
        let version = |rng: &mut fastrand::Rng| rng.u64(1..=versions);
        let cond = match rng.u8(..4) {
            0 => Cond::IfAbsent,
            1 => Cond::IfVersion(version(rng)),
            _ => Cond::None,
        };
        let request = match rng.u8(..8) {
            0..3 => Request::Get,
            3..6 => Request::Set(at, cond),
            _ if cond == Cond::IfAbsent => Request::Delete(Cond::None),
            _ => Request::Delete(cond),
        };
        let answer = match request {
            _ if request != Request::Get && rng.u8(..3) == 0 => Answer::Lost,
            Request::Get if rng.bool() => Answer::Absent,
            Request::Get => Answer::Found { value: rng.u64(..at + 3), version: version(rng) },
            Request::Delete(Cond::None) if rng.bool() => Answer::Absent,
            Request::Set(..) | Request::Delete(_) if cond == Cond::None || rng.bool() => {
                Answer::Written(version(rng))
            }
            _ => Answer::Failed(Some(version(rng)).filter(|_| rng.bool())),
        };
        // Starts are at multiples of the span; who has an answer has it between two of them.
        let epoch = rng.u64(..epochs);
        let (one, other) = (rng.u64(1..SPAN), rng.u64(1..SPAN));
        let (call, mut end) = (epoch * SPAN + one.min(other), epoch * SPAN + one.max(other));
        if answer == Answer::Lost {
            end = if epoch + 1 == epochs { NEVER } else { (epoch + 1) * SPAN };
        }
        ops.push(Op { client: 0, call, end, request, answer });
    }
    // A value that is found is mostly found with the version that its write was told.
    let written: Vec<(u64, u64)> = ops
        .iter()
        .filter_map(|op| match (op.request, op.answer) {
            (Request::Set(value, _), Answer::Written(version)) => Some((value, version)),
            _ => None,
        })
        .collect();
    for op in &mut ops {
        if let Answer::Found { value, version } = &mut op.answer
            && let Some((_, its)) = written.iter().find(|(its, _)| its == value)
        {
            *version = *its;
        }
    }
    (ops, (1..epochs).map(|epoch| epoch * SPAN).collect())
}
