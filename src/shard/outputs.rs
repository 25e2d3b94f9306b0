//! Replies of one turn to one origin, sorted by what they wait for.

use smallvec::SmallVec;

use crate::base::BlockSeq;
use crate::protocol::binary::encode_reply;
use crate::protocol::{OpCode, Reply};

/// What a reply repeats of its request.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// The operation.
    pub opcode: OpCode,
    /// The client's number for it.
    pub request_id: u64,
    /// The topology's epoch.
    pub epoch: u64,
}

/// Encoded replies: those that may leave at once, and those that wait for a block.
#[derive(Default)]
pub struct Outputs {
    /// May leave at once.
    pub bytes: Vec<u8>,
    /// How many.
    pub count: u32,
    /// Wait for a block: which, how many, encoded.
    pub held: SmallVec<[(BlockSeq, u32, Vec<u8>); 2]>,
}

impl Outputs {
    /// A reply that may leave at once.
    #[inline]
    pub fn ready(&mut self, meta: Meta, reply: &Reply<'_>) {
        encode_reply(&mut self.bytes, meta.opcode, meta.request_id, meta.epoch, reply);
        self.count += 1;
    }

    /// A reply that may leave once `block`, if any, is durable.
    #[inline]
    pub fn after(&mut self, block: Option<BlockSeq>, meta: Meta, reply: &Reply<'_>) {
        match block {
            None => self.ready(meta, reply),
            Some(block) => {
                encode_reply(self.held(block), meta.opcode, meta.request_id, meta.epoch, reply);
            }
        }
    }

    /// One reply that is encoded already.
    pub fn raw(&mut self, block: Option<BlockSeq>, reply: &[u8]) {
        match block {
            None => {
                self.bytes.extend_from_slice(reply);
                self.count += 1;
            }
            Some(block) => self.held(block).extend_from_slice(reply),
        }
    }

    /// The bytes that wait for `block`, one reply more being about to be added.
    fn held(&mut self, block: BlockSeq) -> &mut Vec<u8> {
        let place = match self.held.iter().position(|(b, _, _)| *b == block) {
            Some(place) => place,
            None => {
                self.held.push((block, 0, Vec::new()));
                self.held.len() - 1
            }
        };
        let (_, count, bytes) = &mut self.held[place];
        *count += 1;
        bytes
    }

    /// Bytes of all replies in here.
    pub fn len(&self) -> usize {
        self.bytes.len() + self.held_bytes()
    }

    /// Bytes of those that wait for a block.
    pub fn held_bytes(&self) -> usize {
        self.held.iter().map(|(_, _, bytes)| bytes.len()).sum()
    }
}
