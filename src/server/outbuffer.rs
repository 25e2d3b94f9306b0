//! Replies on their way to a socket.

/// A buffer of a connection that grew beyond this is given back when little or nothing is in it.
pub const BYTES_KEPT: usize = 64 << 10;

/// Bytes to send, oldest first. After each send it takes at most four times the memory of what is unsent, or
/// [`BYTES_KEPT`].
#[derive(Default)]
pub struct OutBuffer {
    bytes: Vec<u8>,
    sent: usize,
}

impl OutBuffer {
    /// Adds bytes behind those that wait.
    pub fn push(&mut self, bytes: Vec<u8>) {
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

    /// What is still to be sent.
    pub fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// Notes that the first `len` of these were sent.
    pub fn advance(&mut self, len: usize) {
        self.sent += len;
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

    #[test]
    fn bytes_leave_in_order_and_memory_follows_what_is_unsent() {
        let mut out = OutBuffer::default();
        let (mut pushed, mut sent) = (0u32, 0u32);
        for round in 0..100_000 {
            // Never quite caught up, however much goes through.
            let count = 1 + round % 300;
            out.push((pushed..pushed + count).flat_map(u32::to_le_bytes).collect());
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
        out.push(vec![0; BYTES_KEPT + 1]);
        out.advance(BYTES_KEPT + 1);
        assert_eq!(out.bytes.capacity(), 0);
        out.push(vec![0; 100]);
        out.advance(100);
        assert!(out.bytes.capacity() >= 100, "small memory is kept");
        out.push(vec![1; 1 << 20]);
        out.advance((1 << 20) - 10);
        assert!(out.bytes.capacity() <= BYTES_KEPT && out.unsent() == [1; 10], "also when some is left");
    }
}
