//! Where scans go on. Redis' cursors are numbers, ours name the key behind which a scan goes on: this maps one to the
//! other.
//!
//! The numbers are forgotten at a restart, and the oldest when there are many. A scan that goes on with one that is
//! not known begins again: that gives keys twice, which SCAN may, and leaves none out, which it must not.

use std::collections::{BTreeMap, HashMap};

/// Cursors that are kept, and bytes of them together.
const CURSORS_MAX: usize = 4096;
const BYTES_MAX: usize = 1 << 20;

/// The cursors of the scans that a shard's clients make.
pub(super) struct Cursors {
    /// The last number given.
    last: u64,
    by_number: HashMap<u64, Place>,
    /// Numbers by age.
    by_age: BTreeMap<u64, u64>,
    ages: u64,
    bytes: usize,
}

/// Where a scan goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// What all its keys begin with.
    pub prefix: Vec<u8>,
    /// Our cursor, encoded.
    pub cursor: Vec<u8>,
    age: u64,
}

impl Place {
    fn bytes(&self) -> usize {
        self.prefix.len() + self.cursor.len() + size_of::<Place>()
    }
}

impl Cursors {
    /// None yet. Numbers begin at a place that `seed` says, so that one from before a restart is most likely unknown.
    pub fn new(seed: u64) -> Cursors {
        Cursors { last: seed >> 16, by_number: HashMap::new(), by_age: BTreeMap::new(), ages: 0, bytes: 0 }
    }

    /// Keeps a place; its number, never 0.
    pub fn keep(&mut self, prefix: &[u8], cursor: &[u8]) -> u64 {
        // 53 bits: there are clients that take it for a double.
        self.last = (self.last + 1) & ((1 << 53) - 1);
        let number = self.last.max(1);
        self.last = number;
        self.forget(number);
        self.ages += 1;
        let place = Place { prefix: prefix.to_vec(), cursor: cursor.to_vec(), age: self.ages };
        self.bytes += place.bytes();
        self.by_age.insert(place.age, number);
        self.by_number.insert(number, place);
        while self.by_number.len() > CURSORS_MAX || (self.bytes > BYTES_MAX && self.by_number.len() > 1) {
            let oldest = self.by_age.first_key_value().map(|(_, number)| *number);
            oldest.into_iter().for_each(|number| self.forget(number));
        }
        number
    }

    /// The place of this number. It stays, for a client may ask twice.
    pub fn find(&self, number: u64) -> Option<&Place> {
        self.by_number.get(&number)
    }

    fn forget(&mut self, number: u64) {
        if let Some(place) = self.by_number.remove(&number) {
            self.bytes -= place.bytes();
            self.by_age.remove(&place.age);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_are_forgotten_and_no_number_is_zero() {
        let mut cursors = Cursors::new(u64::MAX);
        let numbers: Vec<u64> =
            (0..CURSORS_MAX as u64 + 10).map(|n| cursors.keep(b"p", &n.to_le_bytes())).collect();
        assert!(numbers.iter().all(|number| *number > 0 && *number < 1 << 53));
        assert!(numbers[..10].iter().all(|number| cursors.find(*number).is_none()));
        let place = cursors.find(numbers[10]).expect("it is within the number that is kept");
        assert_eq!((&place.prefix[..], &place.cursor[..]), (&b"p"[..], &10u64.to_le_bytes()[..]));
    }

    #[test]
    fn their_bytes_are_bounded_and_the_last_is_kept() {
        let mut cursors = Cursors::new(7);
        let long = vec![b'k'; 65_000];
        let numbers: Vec<u64> = (0..100).map(|_| cursors.keep(b"", &long)).collect();
        assert!(cursors.bytes <= BYTES_MAX);
        assert!(cursors.find(numbers[0]).is_none());
        assert!(cursors.find(numbers[99]).is_some());
        assert_eq!(cursors.by_age.len(), cursors.by_number.len());
    }
}
