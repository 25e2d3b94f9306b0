//! The codes and sentences that a client sees.
//!
//! A refusal is a [`Code`] that programs act on and a sentence that people read. The numbers are part of
//! the binary protocol: they are never reused and never change their meaning. They are grouped by what
//! the client can do about them, and a client that meets an unknown number acts on its group:
//!
//! | numbers | class | what the client can do |
//! |---|---|---|
//! | 16–63 | [`Class::Request`] | fix the request; sent again it is refused again |
//! | 64–127 | [`Class::Later`] | nothing was done; the same request may succeed later |
//! | 128–191 | [`Class::Server`] | tell whoever runs the server |
//!
//! 0–15 are outcomes, not refusals (see [`crate::protocol::binary`]); 192 and up are not in use.

use std::borrow::Cow;
use std::fmt;

/// What a client can do about a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The request is at fault. Sent again unchanged it is refused again.
    Request,
    /// Nothing was done, and the same request may succeed later.
    Later,
    /// The server is at fault; someone has to look at it.
    Server,
}

macro_rules! codes {
    ($($(#[$doc:meta])+ $name:ident = $number:literal, $text:literal;)+) => {
        /// Why a request was refused. The numbers are part of the protocol.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        #[non_exhaustive]
        pub enum Code {
            $($(#[$doc])+ $name = $number,)+
        }

        impl Code {
            /// Every code there is, by number.
            pub const ALL: &'static [Code] = &[$(Code::$name,)+];

            /// The code with this number, if this version knows it.
            pub fn from_u16(number: u16) -> Option<Code> {
                match number {
                    $($number => Some(Code::$name),)+
                    _ => None,
                }
            }

            /// Its name as metrics, logs and tools print it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Code::$name => $text,)+
                }
            }
        }
    };
}

codes! {
    /// The frame's lengths are known but its content does not parse.
    Malformed = 16, "malformed";
    /// The frame has another protocol version, or HELLO offers none that the server speaks.
    UnsupportedVersion = 17, "unsupported-version";
    /// The frame is longer than the server accepts. The connection is closed after this reply.
    FrameTooLarge = 18, "frame-too-large";
    /// No such operation.
    UnknownOperation = 19, "unknown-operation";
    /// An option that is unknown, or that this operation does not take.
    InvalidOption = 20, "invalid-option";
    /// An expiry that makes no sense: no time, one beyond the year 10889, or one where none is taken.
    InvalidExpiry = 21, "invalid-expiry";
    /// The key is empty, too long, or given to an operation without a key.
    InvalidKey = 22, "invalid-key";
    /// The value is longer than `--max-value-size`.
    ValueTooLarge = 23, "value-too-large";
    /// The keys of an atomic batch are not all in one slot.
    CrossSlot = 24, "cross-slot";
    /// Too many operations or bytes in one batch, or too many keys in one MGET.
    BatchTooLarge = 25, "batch-too-large";
    /// INCR of a value that is not a decimal 64-bit signed number.
    NotAnInteger = 26, "not-an-integer";
    /// INCR beyond what 64 signed bits hold.
    IncrementOverflow = 27, "increment-overflow";
    /// STATS of a section that does not exist.
    UnknownSection = 28, "unknown-section";
    /// The reply would be longer than a frame may be: ask for fewer keys.
    ReplyTooLarge = 29, "reply-too-large";
    /// HELLO asks for a shard that does not exist.
    NoSuchShard = 30, "no-such-shard";
    /// The bytes are not this protocol. The connection is closed after this reply.
    NotThisProtocol = 31, "not-this-protocol";
    /// The client sent a part of a frame, or nothing at all, for longer than the server waits.
    Idle = 32, "idle";

    /// A queue or the memory for writes is full.
    Overloaded = 64, "overloaded";
    /// No room on the disk for another write.
    DiskFull = 65, "disk-full";
    /// The server is stopping.
    ShuttingDown = 66, "shutting-down";
    /// The server has as many connections as it takes.
    TooManyConnections = 67, "too-many-connections";
    /// The slot is moving or has no owner at this moment; ask for the slot table again.
    SlotMoving = 68, "slot-moving";
    /// A tablet could not be moved or split, and is what it was.
    TransferFailed = 72, "transfer-failed";
    /// A checkpoint was not made, and the directory is marked as incomplete or was left as it was.
    CheckpointFailed = 73, "checkpoint-failed";

    /// The shard stopped taking writes after a failed write to its log. This request was not applied.
    ShardFailed = 128, "shard-failed";
    /// The log failed while this write was on its way to the disk: only a restart shows whether it is
    /// there.
    WriteFailed = 129, "write-failed";
    /// What the request needs is damaged on disk.
    Corrupt = 130, "corrupt";
    /// Reading from disk failed.
    Io = 131, "io";
    /// A case that the server has no better code for.
    Internal = 132, "internal";
    /// Some shards have done their part of a request, others have refused theirs, for the reason that the sentence
    /// gives. Sent again it does the rest as well.
    PartlyDone = 133, "partly-done";
}

impl Code {
    /// Its number on the wire.
    #[inline]
    pub fn number(self) -> u16 {
        self as u16
    }

    /// What the client can do about it.
    pub fn class(self) -> Class {
        match self.number() {
            ..64 => Class::Request,
            64..128 => Class::Later,
            _ => Class::Server,
        }
    }

    /// Whether a write that got this answer may nevertheless have been applied.
    pub fn may_be_applied(self) -> bool {
        matches!(self, Code::WriteFailed | Code::Internal | Code::PartlyDone)
    }

    /// The code to act on for a number that this version does not know: the most general of its group.
    pub fn of_group(number: u16) -> Code {
        match number {
            ..64 => Code::Malformed,
            64..128 => Code::Overloaded,
            _ => Code::Internal,
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A request that was not carried out: why, and the sentence that says so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// What programs act on.
    pub code: Code,
    /// What happened, to what, the numbers that disagree, what to do. One line.
    pub message: Cow<'static, str>,
}

impl Refusal {
    /// Longest sentence on the wire in bytes; a longer one is cut.
    pub const MESSAGE_BYTES_MAX: usize = 1024;

    /// A refusal with a fixed or formatted sentence.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Refusal {
        Refusal { code, message: message.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_come_back() {
        for (i, code) in Code::ALL.iter().enumerate() {
            assert_eq!(Code::from_u16(code.number()), Some(*code));
            assert!(Code::ALL[..i].iter().all(|other| other.number() < code.number()), "{code} is in order");
            assert!((16..192).contains(&code.number()), "{code}");
            assert_eq!(Code::of_group(code.number()).class(), code.class(), "{code}");
        }
        assert_eq!(Code::from_u16(0), None);
        assert_eq!(Code::from_u16(u16::MAX), None);
    }
}
