//! One connection without its socket: bytes to send, bytes read but not yet whole, and who waits for what.

use std::collections::VecDeque;

use crate::mix::OpKind;
use crate::wire::WireError;

/// Bytes that may wait to be sent. Beyond it nothing more is encoded until the socket takes some, so that
/// a server that stops reading costs bounded memory.
const OUTGOING_BYTES_MAX: usize = 256 << 10;

/// The low bits of a request's number are its place in the table, the others tell its successors apart.
const PLACE_BITS: u32 = 20;
/// Requests that one connection may have in flight.
pub const IN_FLIGHT_MAX: usize = 1 << PLACE_BITS;

/// A request that waits for its reply.
#[derive(Clone, Copy, Debug)]
pub struct Flight {
    pub kind: OpKind,
    pub step: Step,
    pub intended: u64,
    pub sent: u64,
    pub key: u64,
}

/// Which request of its operation one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The only one, or the last.
    Last {
        /// Whether one before it found no value.
        is_missing: bool,
    },
    /// The read of a read-modify-write, whose write comes after it.
    Read,
}

/// The requests in flight on one connection, by number, or in order where the protocol has no numbers.
#[derive(Debug)]
pub struct InFlight {
    in_order: bool,
    entries: Vec<Entry>,
    free: Vec<u32>,
    order: VecDeque<u32>,
    /// The keys of an MGET in entry `n` are at `n * keys_each ..`.
    keys: Vec<u64>,
    keys_each: usize,
}

#[derive(Debug)]
struct Entry {
    id: u32,
    flight: Option<Flight>,
}

impl InFlight {
    pub fn new(in_order: bool, keys_each: usize) -> InFlight {
        InFlight {
            in_order,
            entries: Vec::new(),
            free: Vec::new(),
            order: VecDeque::new(),
            keys: Vec::new(),
            keys_each,
        }
    }

    /// Enters a request and returns its number. `keys` are those of an MGET.
    #[inline]
    pub fn insert(&mut self, flight: Flight, keys: &[u64]) -> u32 {
        let place = match self.free.pop() {
            Some(place) => place as usize,
            None => {
                assert!(self.entries.len() < IN_FLIGHT_MAX, "the command line limits the pipeline");
                self.entries.push(Entry { id: self.entries.len() as u32, flight: None });
                self.entries.len() - 1
            }
        };
        let entry = &mut self.entries[place];
        entry.id = entry.id.wrapping_add(1 << PLACE_BITS);
        entry.flight = Some(flight);
        let id = entry.id;
        if self.in_order {
            self.order.push_back(id);
        }
        if !keys.is_empty() {
            assert!(keys.len() == self.keys_each);
            self.keys.resize(self.entries.len() * self.keys_each, 0);
            self.keys[place * self.keys_each..][..self.keys_each].copy_from_slice(keys);
        }
        id
    }

    /// Takes out the request that a reply is for. Its keys stay readable until the next insert.
    #[inline]
    pub fn remove(&mut self, id: Option<u32>) -> Result<(Flight, u32), WireError> {
        let id = match id {
            Some(id) => id,
            None => self
                .order
                .pop_front()
                .ok_or_else(|| WireError("the server sent a reply that nobody waits for".into()))?,
        };
        let place = id & (IN_FLIGHT_MAX as u32 - 1);
        let flight = self
            .entries
            .get_mut(place as usize)
            .filter(|entry| entry.id == id)
            .and_then(|entry| entry.flight.take())
            .ok_or_else(|| {
                WireError(format!("the server answered request {id}, which does not wait for a reply"))
            })?;
        self.free.push(place);
        Ok((flight, place))
    }

    /// The keys of the MGET just removed.
    pub fn keys(&self, place: u32) -> &[u64] {
        &self.keys[place as usize * self.keys_each..][..self.keys_each]
    }

    /// Those that were never answered.
    pub fn waiting(&self) -> impl Iterator<Item = Flight> {
        self.entries.iter().filter_map(|entry| entry.flight)
    }
}

/// Everything of a connection but its socket.
#[derive(Debug)]
pub struct Lane<W> {
    pub wire: W,
    pub in_flight: InFlight,
    pub outgoing: Outgoing,
    /// The head of a reply whose rest has not come; `partial_len` bytes of it count.
    pub partial: Vec<u8>,
    pub partial_len: usize,
    /// Has bytes to send and is on the worker's list of such.
    pub dirty: bool,
}

impl<W> Lane<W> {
    pub fn new(wire: W, in_order: bool, keys_each: usize) -> Lane<W> {
        Lane {
            wire,
            in_flight: InFlight::new(in_order, keys_each),
            outgoing: Outgoing::default(),
            partial: Vec::new(),
            partial_len: 0,
            dirty: false,
        }
    }

    pub fn has_room(&self) -> bool {
        self.outgoing.len() < OUTGOING_BYTES_MAX
    }
}

/// Bytes on their way to the socket.
#[derive(Debug, Default)]
pub struct Outgoing {
    pub bytes: Vec<u8>,
    sent: usize,
}

impl Outgoing {
    pub fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }

    pub fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// The socket took this many.
    pub fn advance(&mut self, count: usize) {
        self.sent += count;
        assert!(self.sent <= self.bytes.len());
        if self.sent == self.bytes.len() {
            self.bytes.clear();
            self.sent = 0;
        } else if self.sent > OUTGOING_BYTES_MAX {
            // What was sent must not pile up in front of what the socket never quite catches up with.
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flight(key: u64) -> Flight {
        Flight { kind: OpKind::Get, step: Step::Last { is_missing: false }, intended: 0, sent: 0, key }
    }

    #[test]
    fn numbered_replies_are_matched_in_any_order_and_once() {
        let mut table = InFlight::new(false, 0);
        let ids: Vec<u32> = (0..100).map(|key| table.insert(flight(key), &[])).collect();
        let mut order: Vec<usize> = (0..100).collect();
        fastrand::Rng::with_seed(4).shuffle(&mut order);
        for &at in &order {
            assert_eq!(table.remove(Some(ids[at])).unwrap().0.key, at as u64);
            assert!(table.remove(Some(ids[at])).is_err());
        }
        assert_eq!(table.waiting().count(), 0);
        let reused = table.insert(flight(7), &[]);
        assert!(!ids.contains(&reused));
        assert!(ids.iter().all(|&id| table.remove(Some(id)).is_err()));
        assert!(table.remove(Some(reused)).is_ok());
    }

    #[test]
    fn unnumbered_replies_are_matched_in_order() {
        let mut table = InFlight::new(true, 2);
        for key in 0..5 {
            table.insert(flight(key), &[key, key + 10]);
        }
        for key in 0..5 {
            let (flight, place) = table.remove(None).unwrap();
            assert_eq!(flight.key, key);
            assert_eq!(table.keys(place), [key, key + 10]);
        }
        assert!(table.remove(None).is_err());
    }
}
