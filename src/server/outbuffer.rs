//! Replies on their way to a socket.

use std::collections::VecDeque;

use crate::shard::budget::Granted;

/// A buffer of a connection that grew beyond this is given back when little or nothing is in it.
pub const BYTES_KEPT: usize = 64 << 10;

/// Bytes to send, oldest first. After each send it takes at most four times the memory of what is unsent, or
/// [`BYTES_KEPT`].
#[derive(Default)]
pub struct OutBuffer {
    bytes: Vec<u8>,
    sent: usize,
    /// Bytes that were pushed and sent, ever.
    pushed_total: u64,
    sent_total: u64,
    /// What was granted for replies, by whom, and where in the stream they end.
    granted: VecDeque<(u64, usize, Granted)>,
}

impl OutBuffer {
    /// Adds replies behind those that wait, for which `owner` had granted some bytes.
    pub fn push(&mut self, owner: usize, granted: Granted, bytes: Vec<u8>) {
        self.pushed_total += bytes.len() as u64;
        if !granted.is_none() {
            self.granted.push_back((self.pushed_total, owner, granted));
        }
        if self.bytes.is_empty() {
            self.bytes = bytes;
            return;
        }
        // Who is always a little behind never lets it become empty. To move what is unsent to the front
        // costs less than its sending did.
        if self.sent > self.bytes.len() / 2 {
            self.bytes.drain(..self.sent);
            self.sent = 0;
        }
        self.bytes.extend_from_slice(&bytes);
    }

    /// How many bytes were sent, ever.
    pub fn sent_total(&self) -> u64 {
        self.sent_total
    }

    /// What is still to be sent.
    pub fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Who had granted how much for replies that are sent now; to be asked until it is `None`.
    pub fn next_sent(&mut self) -> Option<(usize, Granted)> {
        let (end, owner, granted) = *self.granted.front()?;
        (end <= self.sent_total).then(|| {
            self.granted.pop_front();
            (owner, granted)
        })
    }

    /// The same of all replies, none of which will be sent any more.
    pub fn give_up(&mut self) -> impl Iterator<Item = (usize, Granted)> {
        let granted = std::mem::take(self).granted;
        granted.into_iter().map(|(_, owner, granted)| (owner, granted))
    }

    /// Notes that the first `len` of these were sent.
    pub fn advance(&mut self, len: usize) {
        self.sent += len;
        self.sent_total += len as u64;
        assert!(self.sent <= self.bytes.len(), "no more is sent than there was");
        let left = self.unsent().len();
        if self.bytes.capacity() > BYTES_KEPT && left < self.bytes.capacity() / 4 {
            // Three times as much was sent as is copied here.
            self.bytes = self.unsent().to_vec();
            self.sent = 0;
        } else if left == 0 {
            self.bytes.clear();
            self.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(replies: usize) -> Granted {
        Granted { replies, gathers: 0 }
    }

    #[test]
    fn bytes_leave_in_order_and_memory_follows_what_is_unsent() {
        let mut out = OutBuffer::default();
        let (mut pushed, mut sent) = (0u32, 0u32);
        for round in 0..100_000 {
            // Never quite caught up, however much goes through.
            let count = 1 + round % 300;
            out.push(1, Granted::default(), (pushed..pushed + count).flat_map(u32::to_le_bytes).collect());
            pushed += count;
            while pushed - sent > 100 {
                let next = out.unsent().first_chunk().copied().map(u32::from_le_bytes);
                assert_eq!(next, Some(sent));
                out.advance(4);
                sent += 1;
            }
        }
        assert_eq!(out.unsent().len(), 400);
        assert!(out.bytes.capacity() < 8_000, "{} bytes for 400", out.bytes.capacity());
    }

    #[test]
    fn large_memory_is_given_back_when_all_is_sent() {
        let mut out = OutBuffer::default();
        out.push(1, Granted::default(), vec![0; BYTES_KEPT + 1]);
        out.advance(BYTES_KEPT + 1);
        assert_eq!(out.bytes.capacity(), 0);
        out.push(1, Granted::default(), vec![0; 100]);
        out.advance(100);
        assert!(out.bytes.capacity() >= 100, "small memory is kept");
        out.push(1, Granted::default(), vec![1; 1 << 20]);
        out.advance((1 << 20) - 10);
        assert!(out.bytes.capacity() <= BYTES_KEPT && out.unsent() == [1; 10], "also when some is left");
    }

    #[test]
    fn what_was_granted_comes_back_when_its_last_byte_is_sent_or_never_will_be() {
        let mut out = OutBuffer::default();
        out.push(1, granted(100), vec![0; 200]);
        out.push(2, Granted::default(), vec![0; 50]);
        out.push(3, granted(10), vec![0; 10]);
        out.push(1, granted(5), vec![0; 5]);
        out.advance(199);
        assert_eq!(out.next_sent(), None);
        out.advance(61);
        assert_eq!(
            (out.next_sent(), out.next_sent(), out.next_sent()),
            (Some((1, granted(100))), Some((3, granted(10))), None)
        );
        assert_eq!(out.give_up().collect::<Vec<_>>(), [(1, granted(5))]);
        assert_eq!((out.unsent().len(), out.give_up().count()), (0, 0));
    }
}
