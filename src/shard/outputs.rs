//! Replies of one turn to one origin, sorted by what they wait for.

use smallvec::SmallVec;

use super::Origin;
use super::budget::{Granted, LARGE_REPLY_BYTES};
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
    /// Bytes of the request, which whoever read it holds until the reply comes.
    pub frame_bytes: usize,
}

/// Encoded replies to one origin that leave together.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Replies {
    /// How many.
    pub count: u32,
    /// Bytes of the requests that they answer.
    pub frame_bytes: usize,
    /// What was granted for them by the shard that made them, given back once they have left.
    pub granted: Granted,
    /// Back to back.
    pub bytes: Vec<u8>,
}

impl Replies {
    /// Adds `other` behind these.
    pub fn append(&mut self, other: &Replies) {
        self.count += other.count;
        self.frame_bytes += other.frame_bytes;
        self.granted = self.granted.and(other.granted);
        self.bytes.extend_from_slice(&other.bytes);
    }

    fn add(&mut self, meta: Meta, granted: &mut Granted, encode: impl FnOnce(&mut Vec<u8>)) {
        let before = self.bytes.len();
        encode(&mut self.bytes);
        self.count += 1;
        self.frame_bytes += meta.frame_bytes;
        let len = self.bytes.len() - before;
        if len > LARGE_REPLY_BYTES {
            self.granted = self.granted.and(granted.split_off(len));
        }
    }
}

/// Encoded replies: those that may leave at once, and those that wait for a block.
#[derive(Default)]
pub struct Outputs {
    /// Who asks for room for large replies; `None` if that was seen to elsewhere.
    pub line: Option<Origin>,
    /// Granted and not used yet.
    pub granted: Granted,
    /// May leave at once.
    pub ready: Replies,
    /// Wait for a block.
    pub held: SmallVec<[(BlockSeq, Replies); 2]>,
}

impl Outputs {
    /// None, to requests of `line`.
    pub fn of(line: Origin) -> Outputs {
        Outputs { line: Some(line), ..Outputs::default() }
    }

    /// A reply that may leave at once.
    #[inline]
    pub fn ready(&mut self, meta: Meta, reply: &Reply<'_>) {
        self.ready.add(meta, &mut self.granted, |bytes| {
            encode_reply(bytes, meta.opcode, meta.request_id, meta.epoch, reply);
        });
    }

    /// A reply that may leave once `block`, if any, is durable.
    #[inline]
    pub fn after(&mut self, block: Option<BlockSeq>, meta: Meta, reply: &Reply<'_>) {
        match block {
            None => self.ready(meta, reply),
            Some(block) => {
                let place = self.held(block);
                self.held[place].1.add(meta, &mut self.granted, |bytes| {
                    encode_reply(bytes, meta.opcode, meta.request_id, meta.epoch, reply);
                });
            }
        }
    }

    /// One reply that is encoded already.
    pub fn raw(&mut self, block: Option<BlockSeq>, meta: Meta, reply: &[u8]) {
        let encode = |bytes: &mut Vec<u8>| bytes.extend_from_slice(reply);
        match block {
            None => self.ready.add(meta, &mut self.granted, encode),
            Some(block) => {
                let place = self.held(block);
                self.held[place].1.add(meta, &mut self.granted, encode);
            }
        }
    }

    /// The same of a large one, which is moved rather than copied if it comes first.
    pub fn whole(&mut self, block: Option<BlockSeq>, meta: Meta, reply: Vec<u8>) {
        let encode = |bytes: &mut Vec<u8>| match bytes.is_empty() {
            true => *bytes = reply,
            false => bytes.extend_from_slice(&reply),
        };
        match block {
            None => self.ready.add(meta, &mut self.granted, encode),
            Some(block) => {
                let place = self.held(block);
                self.held[place].1.add(meta, &mut self.granted, encode);
            }
        }
    }

    /// The place of those that wait for `block`.
    fn held(&mut self, block: BlockSeq) -> usize {
        self.held.iter().position(|(b, _)| *b == block).unwrap_or_else(|| {
            self.held.push((block, Replies::default()));
            self.held.len() - 1
        })
    }

    /// Bytes of all replies in here.
    pub fn len(&self) -> usize {
        self.ready.bytes.len() + self.held_bytes()
    }

    /// Bytes of those that wait for a block.
    pub fn held_bytes(&self) -> usize {
        self.held.iter().map(|(_, replies)| replies.bytes.len()).sum()
    }
}
