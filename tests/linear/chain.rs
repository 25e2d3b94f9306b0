//! Decides whether the history of one key is linearizable, in O(n log n).
//!
//! Deciding that is hard in general, and near-linear for registers whose written values are unique (Gibbons
//! & Korach 1997, see [`crate::zones`]). This store promises more, which makes it simpler still and finds
//! more: every write has a version, which grows with each write of the key, and who reads a value is told
//! its version. So the order of all writes of which anything is known is *given*. It remains to ask whether
//! each of them, and each read, can have its moment between its call and its end in that order.
//!
//! # What is promised of a key
//!
//! It is absent at first, or it has a value and a version. Each operation takes effect at one moment from
//! its call to its end.
//! - A set or delete that is answered with a version makes that, which is greater than all before.
//! - A get finds the value and version that are there.
//! - A condition on a version holds if exactly that version is there; nothing lies between the version that a
//!   compare-and-set names and the one that it makes. A condition that fails tells the version that is there,
//!   and not one for which it would have held. A delete that is answered with a version had something to remove.
//! - A lost write, one without an answer, takes effect at most once, from its call to its end: that is when
//!   the next server was ready. What was not done then never is.
//!
//! # Absence
//!
//! Absences look all alike, so it is not known which delete an absent read saw. But it must lie in some
//! *gap* of the chain of versions, in which absence is possible: after a delete, before everything, or after
//! a value if a lost delete can have come between. Absent reads don't get in each other's way: if
//! two fit only in the wrong order, then the earlier fits where the later does. So each is looked at by itself.
//!
//! # Lost writes that nobody saw
//!
//! A lost set whose value was read has its place in the chain by the version that was read with it. A lost
//! delete under a condition on a version has its place behind that version. Of other lost writes, *loose*
//! ones, the place is unknown: deletes without condition and sets whose value nobody read. They are only
//! needed to explain something: an absence after a value, a value that was deleted or in the way of a
//! condition though none is known. Whether each explains one thing only would be a problem of matching.
//! Here one may explain several, so the promise that is checked is weaker than the one above in that a loose
//! write may take effect again and again until its end. Who is lost is so between a kill and the next
//! start, so it is a few operations for a few milliseconds. [`crate::reference`] states the same in other words.

use std::collections::HashMap;
use std::fmt;

use crate::history::{Answer, Cond, NEVER, Op, Request};

/// Why a history is not linearizable.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation {
    pub why: String,
    /// Places in the history of those concerned.
    pub ops: Vec<usize>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.why)
    }
}

fn violation<T>(why: impl Into<String>, ops: impl IntoIterator<Item = usize>) -> Result<T, Violation> {
    Err(Violation { why: why.into(), ops: ops.into_iter().collect() })
}

/// A version that somebody was told: the write that made it and the operations that saw it.
#[derive(Debug)]
struct Link {
    version: u64,
    /// `None`: a lost set that nobody read. Some failed condition told the version.
    writer: Option<usize>,
    seen_by: Vec<usize>,
}

/// Lost writes by call. Their ends grow as their calls do.
#[derive(Default)]
struct Lost(Vec<(u64, u64)>);

impl Lost {
    fn new(mut lost: Vec<(u64, u64)>) -> Lost {
        lost.sort_unstable();
        assert!(lost.is_sorted_by_key(|(_, end)| *end), "what is lost ends with the server's next start");
        Lost(lost)
    }

    /// The call of the first that may take effect between `after` and `before`.
    fn first(&self, after: u64, before: u64) -> Option<u64> {
        let at = self.0.partition_point(|(_, end)| *end < after);
        self.0.get(at).map(|(call, _)| *call).filter(|call| *call <= before)
    }

    /// The end of the last that may take effect between `after` and `before`.
    fn last(&self, after: u64, before: u64) -> Option<u64> {
        let at = self.0.partition_point(|(call, _)| *call <= before).checked_sub(1)?;
        Some(self.0[at].1).filter(|end| *end >= after)
    }
}

struct Chain<'a> {
    ops: &'a [Op],
    /// In the order of versions. The one before everything, at place 0, has none of what a link has.
    links: Vec<Link>,
    /// By link: the latest call of all that come before the gap behind it, those that saw it included.
    after: Vec<u64>,
    /// By link: the earliest end of all that come after the gap behind it.
    before: Vec<u64>,
    loose_sets: Lost,
    loose_deletes: Lost,
    /// Lost deletes by the version that they name.
    tied_deletes: HashMap<u64, Lost>,
}

/// Whether the history of one key is linearizable. It need not be in any order.
///
/// # Panics
/// If two writes have the same value, or a lost write that began before another one ends after it.
pub fn check(ops: &[Op]) -> Result<(), Violation> {
    if let Some(at) = ops.iter().position(|op| op.end < op.call || !is_sensible(op)) {
        return violation("an answer that does not belong to the request", [at]);
    }
    let links = links(ops)?;
    let mut chain = Chain::new(ops, links);
    chain.walk()?;
    chain.place_absences()
}

/// Whether the answer fits the request, whatever there was.
fn is_sensible(op: &Op) -> bool {
    match (op.request, op.answer) {
        (Request::Get, Answer::Found { .. } | Answer::Absent) => true,
        (Request::Set(..) | Request::Delete(_), Answer::Written(_) | Answer::Lost) => true,
        (Request::Delete(Cond::None), Answer::Absent) => true,
        (Request::Set(_, cond) | Request::Delete(cond), Answer::Failed(seen)) => match cond {
            Cond::None => false,
            Cond::IfAbsent => seen.is_some(),
            Cond::IfVersion(named) => seen != Some(named),
        },
        _ => false,
    }
}

/// The chain: who made each version and who saw it.
fn links(ops: &[Op]) -> Result<Vec<Link>, Violation> {
    let mut writers: HashMap<u64, usize> = HashMap::new();
    for (at, op) in ops.iter().enumerate() {
        if let Request::Set(value, _) = op.request {
            assert!(writers.insert(value, at).is_none(), "two writes of v{value}");
        }
    }
    // By version: those that saw it, and those that made it with an answer or, known by the readers, without.
    let mut made: Vec<(u64, usize)> = Vec::new();
    let mut seen: Vec<(u64, usize)> = Vec::new();
    let mut found_lost: HashMap<usize, (u64, usize)> = HashMap::new();
    for (at, op) in ops.iter().enumerate() {
        if let Answer::Written(version) = op.answer {
            made.push((version, at));
        }
        seen.extend(op.seen_version().map(|version| (version, at)));
        let Answer::Found { value, version } = op.answer else { continue };
        let Some(&writer) = writers.get(&value) else {
            return violation(format!("v{value} was read, and no write of it can have been done"), [at]);
        };
        match ops[writer].answer {
            Answer::Written(its) if its == version => {}
            Answer::Lost => {
                let (first, reader) = *found_lost.entry(writer).or_insert((version, at));
                if first != version {
                    return violation(format!("v{value} has two versions"), [writer, reader, at]);
                }
            }
            _ => return violation(format!("v{value} was read with a version that it has not"), [writer, at]),
        }
    }
    made.extend(found_lost.into_iter().map(|(writer, (version, _))| (version, writer)));
    made.sort_unstable();
    if let Some(pair) = made.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return violation(format!("two writes have version {}", pair[0].0), [pair[0].1, pair[1].1]);
    }
    seen.sort_unstable();
    let mut links = vec![Link { version: 0, writer: None, seen_by: Vec::new() }];
    let (mut made, mut seen) = (made.into_iter().peekable(), seen.into_iter().peekable());
    while let Some(version) =
        [made.peek(), seen.peek()].into_iter().flatten().map(|(version, _)| *version).min()
    {
        let writer = made.next_if(|(its, _)| *its == version).map(|(_, writer)| writer);
        let mut seen_by = Vec::new();
        while let Some((_, at)) = seen.next_if(|(its, _)| *its == version) {
            seen_by.push(at);
        }
        if version == 0 {
            return violation("version 0 is none", writer.into_iter().chain(seen_by));
        }
        if let (Some(writer), Some(reader)) = (writer, seen_by.first()) {
            let is_delete = matches!(ops[writer].request, Request::Delete(_));
            if is_delete {
                return violation(
                    format!("version {version} is a delete's, and was seen"),
                    [writer, *reader],
                );
            }
        }
        links.push(Link { version, writer, seen_by });
    }
    Ok(links)
}

impl<'a> Chain<'a> {
    fn new(ops: &'a [Op], links: Vec<Link>) -> Chain<'a> {
        let mut is_linked = vec![false; ops.len()];
        links.iter().filter_map(|link| link.writer).for_each(|writer| is_linked[writer] = true);
        let (mut sets, mut deletes) = (Vec::new(), Vec::new());
        let mut tied: HashMap<u64, Vec<(u64, u64)>> = HashMap::new();
        for (op, is_linked) in ops.iter().zip(is_linked) {
            let span = (op.call, op.end);
            match op.request {
                _ if !op.is_lost() || is_linked => {}
                Request::Set(..) => sets.push(span),
                Request::Delete(Cond::IfVersion(version)) => tied.entry(version).or_default().push(span),
                Request::Delete(_) => deletes.push(span),
                Request::Get => {}
            }
        }
        let loose_sets = Lost::new(sets);
        let mut before = vec![NEVER; links.len()];
        for at in (1..links.len()).rev() {
            let those = links[at].seen_by.iter().chain(&links[at].writer);
            let mut end = those.map(|op| ops[*op].end).min().unwrap_or(NEVER).min(before[at]);
            if links[at].writer.is_none() {
                // If no write can have made it, that is found in the walk.
                end = end.min(loose_sets.last(0, end).unwrap_or(NEVER));
            }
            before[at - 1] = end;
        }
        Chain {
            ops,
            after: vec![0; links.len()],
            links,
            before,
            loose_sets,
            loose_deletes: Lost::new(deletes),
            tied_deletes: tied.into_iter().map(|(version, lost)| (version, Lost::new(lost))).collect(),
        }
    }

    /// Whether there is a value in the key when the gap behind the link begins.
    fn is_value(&self, link: usize) -> bool {
        let is_delete = |writer: usize| matches!(self.ops[writer].request, Request::Delete(_));
        link > 0 && !self.links[link].writer.is_some_and(is_delete)
    }

    /// The condition of the write that ends the gap behind the link, and whether it is a delete.
    fn end_of_gap(&self, link: usize) -> (Cond, bool) {
        match self.links.get(link + 1).and_then(|next| next.writer).map(|writer| self.ops[writer].request) {
            Some(Request::Set(_, cond)) => (cond, false),
            Some(Request::Delete(cond)) => (cond, true),
            Some(Request::Get) | None => (Cond::None, false),
        }
    }

    /// When the first delete of unknown outcome may come that makes an absence in the gap behind the link.
    fn opener(&self, link: usize) -> Option<u64> {
        let (after, before) = (self.after[link], self.before[link]);
        let tied =
            self.tied_deletes.get(&self.links[link].version).and_then(|lost| lost.first(after, before));
        let loose = self.loose_deletes.first(after, before);
        tied.into_iter().chain(loose).min()
    }

    /// Gives every link its moment, one after the other, and checks what it needs of the gap before it.
    fn walk(&mut self) -> Result<(), Violation> {
        // Who called latest so far.
        let mut latest = None;
        for at in 1..self.links.len() {
            let before = self.before[at - 1];
            let mut after = self.after[at - 1].max(self.needed(at)?);
            let link = &self.links[at];
            match link.writer {
                Some(writer) => {
                    let op = &self.ops[writer];
                    if op.end < after {
                        let why = format!(
                            "the write of version {} ended before an operation with an earlier one began",
                            link.version
                        );
                        return violation(why, latest.into_iter().chain([writer]));
                    }
                    if op.call > after {
                        (after, latest) = (op.call, Some(writer));
                    }
                }
                // One that came as early as possible leaves most room.
                None => match self.loose_sets.first(self.after[at - 1], before) {
                    Some(call) => after = after.max(call),
                    None => {
                        let why =
                            format!("version {} was there, and no write can have made it", link.version);
                        return violation(why, link.seen_by.iter().copied());
                    }
                },
            }
            let from = after;
            for reader in &link.seen_by {
                let op = &self.ops[*reader];
                if op.end < from {
                    let why = format!("version {} was seen by who ended before it was there", link.version);
                    return violation(why, link.writer.into_iter().chain(latest).chain([*reader]));
                }
                if op.call > after {
                    (after, latest) = (op.call, Some(*reader));
                }
            }
            self.after[at] = after;
        }
        Ok(())
    }

    /// What the write of a link needs to find: the earliest moment at which it can be there.
    fn needed(&self, at: usize) -> Result<u64, Violation> {
        let (previous, Some(writer)) = (at - 1, self.links[at].writer) else { return Ok(0) };
        let (cond, is_delete) = self.end_of_gap(previous);
        let is_value = self.is_value(previous);
        let concerned = || self.links[previous].writer.into_iter().chain([writer]);
        match cond {
            Cond::IfVersion(named) if is_value && self.links[previous].version == named => Ok(0),
            Cond::IfVersion(named) => {
                let (its, there) = (self.links[at].version, self.links[previous].version);
                violation(format!("version {its} replaced {named}, after {there} was there"), concerned())
            }
            Cond::IfAbsent if is_value => self.opener(previous).map_or_else(
                || {
                    violation(
                        format!("version {} found no key, but there was", self.links[at].version),
                        concerned(),
                    )
                },
                Ok,
            ),
            Cond::None if is_delete && !is_value => {
                let there = self.loose_sets.first(self.after[previous], self.before[previous]);
                there.map_or_else(
                    || violation(format!("version {} removed nothing", self.links[at].version), concerned()),
                    Ok,
                )
            }
            _ => Ok(0),
        }
    }

    /// Whether the key can have been absent in the gap behind a link for one that is called and ends so.
    fn has_absence(&self, link: usize, call: u64, end: u64) -> bool {
        let (cond, is_delete) = self.end_of_gap(link);
        if matches!(cond, Cond::IfVersion(_)) {
            return false;
        }
        let opener = if self.is_value(link) { self.opener(link) } else { Some(0) };
        let Some(opener) = opener.filter(|opener| *opener <= end) else { return false };
        // What follows may need a value again.
        let from = self.after[link].max(call).max(opener);
        !is_delete || self.loose_sets.last(from, self.before[link]).is_some()
    }

    fn place_absences(&self) -> Result<(), Violation> {
        for (at, op) in self.ops.iter().enumerate().filter(|(_, op)| op.saw_absence()) {
            let first = self.before.partition_point(|before| *before < op.call);
            let end = self.after.partition_point(|after| *after <= op.end);
            if !(first..end).any(|link| self.has_absence(link, op.call, op.end)) {
                let around = [first.saturating_sub(1), first, end.saturating_sub(1)];
                let writers = around.iter().filter_map(|link| self.links.get(*link)?.writer);
                let mut ops: Vec<_> = writers.chain([at]).collect();
                ops.dedup();
                return violation("the key was absent for a reader, and can't have been", ops);
            }
        }
        Ok(())
    }
}
