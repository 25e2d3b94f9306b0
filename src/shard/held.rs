//! Who waits for which block: replies that must not leave before a block of the log is durable.
//!
//! Invariants: a reply is released exactly once, and never before [`Held::release`] was told that its
//! block is durable. Blocks are released in order.

use std::collections::VecDeque;

use super::Origin;
use super::outputs::Replies;
use crate::base::BlockSeq;

/// Replies of one origin that wait for one block.
#[derive(Debug)]
pub struct HeldReplies {
    /// Where they go.
    pub origin: Origin,
    /// Which.
    pub replies: Replies,
}

/// All replies of a shard that wait. Bounded by [`HELD_BYTES_MAX`], and what one turn adds to it.
#[derive(Default)]
pub struct Held {
    /// `blocks[i]` waits for block `first + i`.
    first: u64,
    blocks: VecDeque<Vec<HeldReplies>>,
    replies: u64,
    bytes: usize,
}

/// Bytes of held replies beyond which requests wait until some were released: a GET of a value that is not
/// durable yet holds a copy of it, so what a connection may have in flight alone would be no bound.
pub const HELD_BYTES_MAX: usize = 4 << 20;

impl Held {
    /// Holds `replies` until `block` is durable.
    ///
    /// # Panics
    /// If `block` was released already: the caller looked before it held.
    pub fn hold(&mut self, block: BlockSeq, held: HeldReplies) {
        if self.blocks.is_empty() {
            self.first = block.0;
        }
        while block.0 < self.first {
            // An earlier block than any held so far: a read of what an earlier, still open commit wrote.
            self.blocks.push_front(Vec::new());
            self.first -= 1;
        }
        let place = (block.0 - self.first) as usize;
        while self.blocks.len() <= place {
            self.blocks.push_back(Vec::new());
        }
        self.replies += u64::from(held.replies.count);
        self.bytes += held.replies.bytes.len();
        let waiting = &mut self.blocks[place];
        match waiting.last_mut() {
            Some(last) if last.origin == held.origin => last.replies.append(&held.replies),
            _ => waiting.push(held),
        }
    }

    /// Takes what waited for blocks up to `durable`.
    pub fn release(&mut self, durable: BlockSeq) -> Vec<HeldReplies> {
        let mut out = Vec::new();
        while !self.blocks.is_empty() && self.first <= durable.0 {
            if let Some(mut block) = self.blocks.pop_front() {
                if out.is_empty() { out = block } else { out.append(&mut block) }
            }
            self.first += 1;
        }
        let released: u64 = out.iter().map(|held| u64::from(held.replies.count)).sum();
        assert!(released <= self.replies, "no reply is released twice");
        self.replies -= released;
        self.bytes -= out.iter().map(|held| held.replies.bytes.len()).sum::<usize>();
        out
    }

    /// Takes everything: the log failed, and none of it will become durable.
    pub fn fail(&mut self) -> Vec<HeldReplies> {
        (self.replies, self.bytes) = (0, 0);
        std::mem::take(&mut self.blocks).into_iter().flatten().collect()
    }

    /// How many replies wait.
    pub fn len(&self) -> u64 {
        self.replies
    }

    /// Their bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.replies == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(token: u64, byte: u8) -> HeldReplies {
        let replies = Replies { count: 1, bytes: vec![byte], ..Replies::default() };
        HeldReplies { origin: Origin { peer: 0, token }, replies }
    }

    #[test]
    fn replies_leave_with_their_block_and_not_before() {
        let mut held = Held::default();
        held.hold(BlockSeq(7), reply(1, b'a'));
        held.hold(BlockSeq(9), reply(2, b'c'));
        held.hold(BlockSeq(7), reply(1, b'b'));
        held.hold(BlockSeq(6), reply(3, b'z'));
        assert_eq!((held.len(), held.bytes()), (4, 4));
        let first = held.release(BlockSeq(6));
        assert_eq!(first.len(), 1);
        assert_eq!(first[0].replies.bytes, b"z");
        let second = held.release(BlockSeq(8));
        assert_eq!(second.len(), 1, "two replies of one origin travel together");
        assert_eq!((second[0].replies.count, &second[0].replies.bytes[..]), (2, &b"ab"[..]));
        assert!(held.release(BlockSeq(8)).is_empty());
        assert_eq!(held.release(BlockSeq(20))[0].origin.token, 2);
        assert!(held.is_empty());
        held.hold(BlockSeq(21), reply(4, b'd'));
        assert_eq!((held.fail().len(), held.bytes()), (1, 0));
        assert!(held.is_empty());
    }
}
