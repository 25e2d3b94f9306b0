//! Order on the side: per tablet, the nodes as they were inserted, in runs that are sorted in small steps.

use std::cell::{Cell, RefCell};
use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::arena::{Arena, Place};
use super::{newest, node_key, version};
use crate::base::Entry;

/// Entries of a run: sorting one takes about 40 µs, less than a disk read.
pub const RUN_ENTRIES: usize = 1024;

/// A node with the first bytes of its key, so that most comparisons don't touch the arena.
#[derive(Clone, Copy)]
struct Item {
    prefix: u128,
    node: Place,
}

/// The nodes of one tablet. Runs are sorted behind a `RefCell`, since a sealed memtable is shared with
/// readers while the flush sorts it; no borrow leaves a call.
#[derive(Default)]
pub struct Order {
    runs: RefCell<Vec<Vec<Item>>>,
    /// Full runs before this one are sorted.
    sorted: Cell<usize>,
    len: usize,
}

fn prefix(key: &[u8]) -> u128 {
    let mut bytes = [0; 16];
    let len = key.len().min(16);
    bytes[..len].copy_from_slice(&key[..len]);
    u128::from_be_bytes(bytes)
}

fn sort<'a>(run: &mut [Item], key: impl Fn(Place) -> &'a [u8]) {
    run.sort_unstable_by(|a, b| a.prefix.cmp(&b.prefix).then_with(|| key(a.node).cmp(key(b.node))));
}

impl Order {
    /// Adds a node.
    pub fn push(&mut self, key: &[u8], node: Place) {
        let runs = self.runs.get_mut();
        if runs.last().is_none_or(|run| run.len() == RUN_ENTRIES) {
            // A tablet with few keys must not pay for a whole run.
            runs.push(Vec::with_capacity(if runs.is_empty() { 16 } else { RUN_ENTRIES }));
        }
        if let Some(run) = runs.last_mut() {
            run.push(Item { prefix: prefix(key), node });
        }
        self.len += 1;
    }

    /// Nodes in here.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        let runs = self.runs.borrow();
        let last = runs.last().map_or(0, Vec::capacity);
        (runs.len().saturating_sub(1) * RUN_ENTRIES + last) * size_of::<Item>()
    }

    /// Sorts one full run, if one is left.
    pub fn sort_step<'a>(&self, key: impl Fn(Place) -> &'a [u8]) -> bool {
        let mut runs = self.runs.borrow_mut();
        let next = self.sorted.get();
        match runs.get_mut(next) {
            Some(run) if run.len() == RUN_ENTRIES => {
                sort(run, key);
                self.sorted.set(next + 1);
                true
            }
            _ => false,
        }
    }

    /// All nodes whose keys are not below `from`, in order. Sorts what is left to sort; after
    /// [`Order::sort_step`] said that nothing is, that is one run at the most.
    pub fn iter<'a>(&'a self, arena: &'a Arena, from: &[u8]) -> MemtableIter<'a> {
        while self.sort_step(|node| node_key(arena, node)) {}
        let runs = self.runs.borrow();
        let full = self.sorted.get();
        let mut tail = runs.get(full).cloned().unwrap_or_default();
        sort(&mut tail, |node| node_key(arena, node));
        let start = |run: &[Item]| run.partition_point(|item| node_key(arena, item.node) < from);
        let mut cursors: Vec<usize> = runs[..full].iter().map(|run| start(run)).collect();
        cursors.push(start(&tail));
        drop(runs);
        let heap = BinaryHeap::with_capacity(cursors.len());
        let mut iter = MemtableIter { order: self, arena, tail, cursors, heap };
        for source in 0..iter.cursors.len() {
            iter.refill(source);
        }
        iter
    }
}

struct Head<'a> {
    prefix: u128,
    key: &'a [u8],
    node: Place,
    source: usize,
}

impl Ord for Head<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        // Reversed: the heap gives the largest first. A key has one node, so keys never tie.
        other.prefix.cmp(&self.prefix).then_with(|| other.key.cmp(self.key))
    }
}

impl PartialOrd for Head<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Head<'_> {}

/// Keys of a tablet in order, each with its newest version. May be kept while the caller suspends, as long
/// as the memtable takes no writes.
pub struct MemtableIter<'a> {
    order: &'a Order,
    arena: &'a Arena,
    /// The run that is not full, sorted.
    tail: Vec<Item>,
    /// Next item of each full run, and of the tail.
    cursors: Vec<usize>,
    heap: BinaryHeap<Head<'a>>,
}

impl MemtableIter<'_> {
    fn refill(&mut self, source: usize) {
        let at = self.cursors[source];
        let item = if source + 1 == self.cursors.len() {
            self.tail.get(at).copied()
        } else {
            self.order.runs.borrow()[source].get(at).copied()
        };
        if let Some(item) = item {
            self.cursors[source] = at + 1;
            let key = node_key(self.arena, item.node);
            self.heap.push(Head { prefix: item.prefix, key, node: item.node, source });
        }
    }
}

impl<'a> Iterator for MemtableIter<'a> {
    type Item = (&'a [u8], Entry<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let head = self.heap.pop()?;
        self.refill(head.source);
        Some((head.key, version(self.arena, newest(self.arena, head.node))))
    }
}
