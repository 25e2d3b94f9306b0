//! The 40 bytes that start every frame; drawn in the module above.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::base::Lsn;
use crate::error::Code;
use crate::protocol::{Deadline, Expiry, OpCode};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 40;
/// First byte of every frame.
pub const MAGIC_BYTE: u8 = 0xA7;
/// First two bytes of a request.
pub const REQUEST_MAGIC: [u8; 2] = [MAGIC_BYTE, b'Q'];
/// First two bytes of a reply.
pub const REPLY_MAGIC: [u8; 2] = [MAGIC_BYTE, b'R'];
/// What a server with as many connections as it takes says to one more before it closes it; drawn in the module above.
pub const TOO_MANY_CONNECTIONS: &[u8] = b"-ERR max number of clients reached\r\n";
/// The version that this code speaks, and the only one there is.
pub const VERSION: u8 = 1;

/// No condition.
pub(super) const CONDITION_NONE: u8 = 0;
/// The key must be absent.
pub(super) const CONDITION_IF_ABSENT: u8 = 1;
/// The key must be present.
pub(super) const CONDITION_IF_PRESENT: u8 = 2;
/// The key must have this version.
pub(super) const CONDITION_IF_VERSION: u8 = 3;

/// Bits of the flags that say what the expiry field is; the others are reserved.
pub(super) const EXPIRY_BITS: u16 = 3;
/// No expiry.
pub(super) const EXPIRY_NEVER: u16 = 0;
/// A time to live.
pub(super) const EXPIRY_IN: u16 = 1;
/// A time.
pub(super) const EXPIRY_AT: u16 = 2;
/// That of the key.
pub(super) const EXPIRY_KEEP: u16 = 3;

/// What the expiry is, and its number.
#[inline]
pub(super) fn wire_expiry(expiry: Expiry) -> (u16, u64) {
    match expiry {
        Expiry::Never => (EXPIRY_NEVER, 0),
        Expiry::Set(deadline @ Deadline::In(_)) => (EXPIRY_IN, deadline.ms()),
        Expiry::Set(deadline @ Deadline::At(_)) => (EXPIRY_AT, deadline.ms()),
        Expiry::Keep => (EXPIRY_KEEP, 0),
    }
}

/// A header as it stands on the wire, of a request or a reply.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct WireHeader {
    pub magic: [u8; 2],
    pub version: u8,
    pub opcode: u8,
    pub flags: U16,
    pub status: U16,
    pub request_id: U64,
    pub value_len: U32,
    pub key_len: U16,
    pub durability: u8,
    pub condition: u8,
    pub lsn: U64,
    /// Expiry in a request, topology epoch in a reply.
    pub expiry_or_epoch: U64,
}

const _: () = assert!(size_of::<WireHeader>() == HEADER_BYTES);

/// A request's header, checked as far as the header alone allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The operation.
    pub opcode: OpCode,
    /// To be repeated in the reply.
    pub request_id: u64,
    pub(super) key_len: u16,
    pub(super) value_len: u32,
    pub(super) durability: crate::protocol::Durability,
    pub(super) condition: crate::protocol::Condition,
    pub(super) expiry: Expiry,
}

impl FrameHeader {
    /// Bytes of the whole frame with its header.
    #[inline]
    pub fn frame_bytes(&self) -> usize {
        HEADER_BYTES + self.body_bytes()
    }

    /// The key at the start of `body`, if the request has one.
    #[inline]
    pub fn key<'a>(&self, body: &'a [u8]) -> Option<&'a [u8]> {
        if self.key_len == 0 { None } else { body.get(..usize::from(self.key_len)) }
    }

    /// Bytes of key and value.
    #[inline]
    pub fn body_bytes(&self) -> usize {
        usize::from(self.key_len) + self.value_len as usize
    }
}

/// A reply's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyHeader {
    /// The request's operation; `None` when the server could not make it out.
    pub opcode: Option<OpCode>,
    /// Outcome or refusal.
    pub status: Status,
    /// The request's id; 0 when the reply concerns the connection.
    pub request_id: u64,
    /// Version of the value read or written, or [`Lsn::ZERO`].
    pub version: Lsn,
    /// Low half of the topology epoch.
    pub epoch: u32,
    pub(super) value_len: u32,
}

impl ReplyHeader {
    /// Bytes of the whole frame with its header.
    #[inline]
    pub fn frame_bytes(&self) -> usize {
        HEADER_BYTES + self.value_len as usize
    }

    /// Bytes that follow the header.
    #[inline]
    pub fn body_bytes(&self) -> usize {
        self.value_len as usize
    }
}

/// The status field of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// 0.
    Done,
    /// 1.
    Absent,
    /// 2.
    ConditionFailed,
    /// 16 and up. A number that this version does not know is its group's most general code.
    Refused(Code),
}

impl Status {
    /// Its number on the wire.
    #[inline]
    pub fn number(self) -> u16 {
        match self {
            Status::Done => 0,
            Status::Absent => 1,
            Status::ConditionFailed => 2,
            Status::Refused(code) => code.number(),
        }
    }

    /// The status with this number, if it is in use.
    #[inline]
    pub fn from_u16(number: u16) -> Option<Status> {
        match number {
            0 => Some(Status::Done),
            1 => Some(Status::Absent),
            2 => Some(Status::ConditionFailed),
            3..16 => None,
            _ => Some(Status::Refused(Code::from_u16(number).unwrap_or(Code::of_group(number)))),
        }
    }
}
