//! What a server can answer.

use super::binary::Values;
use super::command::Limits;
use super::scan::ScanPage;
use crate::base::Lsn;
use crate::error::Refusal;
use crate::slot::{Slot, SlotRange};

/// The shard that owns a range of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardRange {
    /// The slots.
    pub slots: SlotRange,
    /// Their owner.
    pub shard: u16,
}

/// The answer to HELLO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The protocol version to speak from here on.
    pub version: u8,
    /// Shards are numbered from 0 up to here.
    pub shard_count: u16,
    /// The shard that serves this connection.
    pub shard: u16,
    /// Grows with every change of the slot table.
    pub epoch: u64,
    /// What the server accepts.
    pub limits: Limits,
    /// Who owns which slots, ascending, without overlap. A slot in none of them is moving.
    pub ranges: Vec<ShardRange>,
}

impl Hello {
    /// The owner of `slot`, if it has one.
    pub fn shard_of(&self, slot: Slot) -> Option<u16> {
        let at = self.ranges.partition_point(|range| range.slots.last() < slot.number());
        self.ranges.get(at).filter(|range| range.slots.contains(slot)).map(|range| range.shard)
    }
}

/// How long a key still lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    /// Milliseconds from now on, by the owner's clock; never 0.
    pub remaining_ms: u64,
    /// When it expires, in milliseconds since the epoch.
    pub expires_at_ms: u64,
}

/// One reply, borrowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// To HELLO.
    Hello(Hello),
    /// To PING: what it carried.
    Pong(&'a [u8]),
    /// The replies to a transaction's commands, in RESP.
    Resp(&'a [u8]),
    /// To GET of a present key.
    Value {
        /// The value's version.
        version: Lsn,
        /// The value.
        value: &'a [u8],
    },
    /// To GET, DELETE, EXPIRE, PERSIST or TTL of an absent key. Nothing changed.
    Absent,
    /// To SET, BATCH, and DELETE, EXPIRE or PERSIST of a present key.
    Written {
        /// Version of the write; of a batch's first write, the n-th after it having this plus n.
        version: Lsn,
    },
    /// To a write whose condition does not hold. Nothing changed.
    ConditionFailed {
        /// The version that the key has instead; `None` when it is absent.
        current: Option<Lsn>,
    },
    /// To a batch of which a condition does not hold. Nothing changed.
    BatchFailed {
        /// The first item whose condition does not hold, counted from 0.
        item: u32,
        /// The version that its key has instead; `None` when it is absent.
        current: Option<Lsn>,
    },
    /// To MGET, in the order of its keys.
    Values(Values<'a>),
    /// To INCR.
    Counter {
        /// Version of the write.
        version: Lsn,
        /// The sum.
        value: i64,
    },
    /// To TTL of a present key.
    Lifetime {
        /// The value's version.
        version: Lsn,
        /// `None`: it never expires.
        lifetime: Option<Lifetime>,
    },
    /// To DELRANGE and FLUSH.
    Done,
    /// To STATS and TABLETS: lines of `key=value`.
    Stats(&'a str),
    /// To SCAN.
    Page(ScanPage<'a>),
    /// To anything: nothing was done, with the exceptions that [`crate::error::Code::may_be_applied`]
    /// names.
    Refused(Refusal),
}
