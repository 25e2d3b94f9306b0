//! The second opinion: values alone, whatever the server says of versions, in O(n log n).
//!
//! Gibbons & Korach (1997): the write of a value and the reads that found it form a *cluster*. Let `f` be the
//! first end in it and `s` the last call. If `f < s` the value was there from `f` to `s` at least, a *forward
//! zone*; else it was there at some moment from `s` to `f`, a *backward zone*. A history of a register whose
//! written values are unique is linearizable if and only if no read ends before its write begins, no two
//! forward zones overlap, and no backward zone lies within a forward zone.
//!
//! Versions, conditions, deletes and absences are left out. So what [`crate::chain`] takes, this takes as
//! well; what this does not take is wrong whatever versions are good for.

use std::collections::HashMap;

use crate::chain::Violation;
use crate::history::{Answer, Op, Request};

struct Cluster {
    value: u64,
    written: u64,
    is_known: bool,
    first_end: u64,
    last_call: u64,
    /// Whose end and whose call these are.
    ops: [usize; 2],
}

/// Whether sets and the reads that found something are linearizable for one key.
pub fn check(ops: &[Op]) -> Result<(), Violation> {
    let clusters = clusters(ops)?;
    let is_forward = |cluster: &&Cluster| cluster.first_end < cluster.last_call;
    let mut forward: Vec<&Cluster> = clusters.iter().filter(is_forward).collect();
    forward.sort_unstable_by_key(|cluster| cluster.first_end);
    if let Some(pair) = forward.windows(2).find(|pair| pair[1].first_end < pair[0].last_call) {
        let why = format!("v{} and v{} were there at the same time", pair[0].value, pair[1].value);
        return Err(Violation { why, ops: pair.iter().flat_map(|cluster| cluster.ops).collect() });
    }
    for inner in clusters.iter().filter(|cluster| !is_forward(cluster)) {
        let (from, to) = (inner.last_call, inner.first_end);
        // The forward zones don't overlap, so the last that begins before is the only one it can lie in.
        let at = forward.partition_point(|zone| zone.first_end < from);
        let Some(outer) = at.checked_sub(1).map(|at| forward[at]).filter(|zone| to < zone.last_call) else {
            continue;
        };
        let why = format!("v{} was there while v{} was all the time", inner.value, outer.value);
        return Err(Violation { why, ops: [inner.ops, outer.ops].concat() });
    }
    Ok(())
}

fn clusters(ops: &[Op]) -> Result<Vec<Cluster>, Violation> {
    let mut places: HashMap<u64, usize> = HashMap::new();
    let mut clusters: Vec<Cluster> = Vec::new();
    for (at, op) in ops.iter().enumerate() {
        if let (Request::Set(value, _), Answer::Written(_) | Answer::Lost) = (op.request, op.answer) {
            places.insert(value, clusters.len());
            clusters.push(Cluster {
                value,
                written: op.call,
                // Of an answered write it is known that it was done.
                is_known: !op.is_lost(),
                first_end: op.end,
                last_call: op.call,
                ops: [at; 2],
            });
        }
    }
    for (at, op) in ops.iter().enumerate() {
        let Answer::Found { value, .. } = op.answer else { continue };
        let Some(place) = places.get(&value) else {
            return Err(Violation { why: format!("v{value} was read, and was not written"), ops: vec![at] });
        };
        let cluster = &mut clusters[*place];
        if op.end < cluster.written {
            let why = format!("v{value} was read before it was written");
            return Err(Violation { why, ops: vec![cluster.ops[1], at] });
        }
        cluster.is_known = true;
        if op.end < cluster.first_end {
            (cluster.first_end, cluster.ops[0]) = (op.end, at);
        }
        if op.call > cluster.last_call {
            (cluster.last_call, cluster.ops[1]) = (op.call, at);
        }
    }
    // What is lost and was not seen need not have been done.
    clusters.retain(|cluster| cluster.is_known);
    Ok(clusters)
}
