//! How many keys there are while some are inserted: numbers for new ones, and those that may be asked for.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Keys have the numbers from 0 on. Shared by all clients.
pub struct Population {
    /// Those that were there when the run began.
    loaded: u64,
    /// Number of the next key to insert.
    next: AtomicU64,
    /// All below are there.
    known: AtomicU64,
    /// Inserted, but not all below are yet.
    early: Mutex<BinaryHeap<Reverse<u64>>>,
    /// Whether the server refused an insert, so that one of the known keys is not there after all.
    has_holes: AtomicBool,
}

impl Population {
    pub fn new(loaded: u64) -> Population {
        Population {
            loaded,
            next: AtomicU64::new(loaded),
            known: AtomicU64::new(loaded),
            early: Mutex::default(),
            has_holes: AtomicBool::new(false),
        }
    }

    /// Keys that may be asked for: those with the numbers below.
    #[inline]
    pub fn known(&self) -> u64 {
        // Relaxed, as all else here: a number says nothing about other memory, and its key is in the server
        // before the answer comes that leads to it.
        self.known.load(Ordering::Relaxed)
    }

    /// The number of a new key.
    pub fn take(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The insert of a key was answered. One that was refused leaves a hole: to wait for it would be for
    /// ever.
    pub fn answered(&self, number: u64, is_inserted: bool) {
        if !is_inserted {
            self.has_holes.store(true, Ordering::Relaxed);
        }
        let mut early = self.early.lock().expect("nobody panics with it in hand");
        early.push(Reverse(number));
        let mut known = self.known.load(Ordering::Relaxed);
        while early.peek() == Some(&Reverse(known)) {
            early.pop();
            known += 1;
        }
        self.known.store(known, Ordering::Relaxed);
    }

    /// Whether a known key must be there, if those that were loaded are.
    pub fn must_have(&self, number: u64) -> bool {
        number < self.loaded || !self.has_holes.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_known_once_all_before_it_are() {
        let population = Population::new(10);
        assert_eq!([population.take(), population.take(), population.take()], [10, 11, 12]);
        population.answered(12, true);
        population.answered(11, true);
        assert_eq!(population.known(), 10);
        population.answered(10, true);
        assert_eq!(population.known(), 13);
        assert!(population.must_have(12));
        population.answered(population.take(), false);
        assert_eq!(population.known(), 14);
        assert!(!population.must_have(12), "which of them is not there is not remembered");
        assert!(population.must_have(9));
    }
}
