//! Replies that own their bytes.

use super::error::Error;
use crate::base::Lsn;
use crate::protocol::binary::ReplyError;
use crate::protocol::{Lifetime, OpCode, Reply};

/// A value and its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versioned {
    /// The value.
    pub value: Vec<u8>,
    /// For [`super::Condition::IfVersion`].
    pub version: Lsn,
}

/// What a write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was applied.
    Written {
        /// Its version; of a batch's first write, the n-th after it having this plus n.
        version: Lsn,
    },
    /// The key to be deleted, or to be given another expiry, was absent; nothing changed.
    Absent,
    /// The condition does not hold; nothing changed.
    ConditionFailed {
        /// The version that the key has instead; `None` when it is absent.
        current: Option<Lsn>,
    },
    /// A condition of the batch does not hold; nothing changed.
    BatchFailed {
        /// The first item whose condition does not hold, counted from 0 in the order in which they were added.
        item: u32,
        /// The version that its key has instead; `None` when it is absent.
        current: Option<Lsn>,
    },
}

/// How long a key still lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ttl {
    /// `None`: it never expires.
    pub lifetime: Option<Lifetime>,
    /// For [`super::Condition::IfVersion`].
    pub version: Lsn,
}

/// The result of an INCR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    /// The sum.
    pub value: i64,
    /// The version of the write.
    pub version: Lsn,
}

/// The answer to one request of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// To `ping`.
    Pong(Vec<u8>),
    /// To `get`: `None` when the key is absent.
    Value(Option<Versioned>),
    /// To `set`, `delete`, `expire`, `persist` and `batch`.
    Outcome(Outcome),
    /// To `mget`, in the order of its keys.
    Values(Vec<Option<Versioned>>),
    /// To `incr`.
    Counter(Counter),
    /// To `ttl`: `None` when the key is absent.
    Ttl(Option<Ttl>),
    /// To `stats`: lines of `key=value`.
    Stats(String),
    /// To `delete_range` and `flush_all`.
    Done,
}

impl Response {
    /// The owned form of a reply to `opcode`.
    pub(super) fn of_reply(opcode: OpCode, reply: Reply<'_>, address: &str) -> Result<Response, Error> {
        Ok(match reply {
            Reply::Pong(payload) => Response::Pong(payload.to_vec()),
            Reply::Value { version, value } => {
                Response::Value(Some(Versioned { value: value.to_vec(), version }))
            }
            Reply::Absent if opcode == OpCode::Get => Response::Value(None),
            Reply::Absent if opcode == OpCode::Ttl => Response::Ttl(None),
            Reply::Absent => Response::Outcome(Outcome::Absent),
            Reply::Written { version } => Response::Outcome(Outcome::Written { version }),
            Reply::ConditionFailed { current } => Response::Outcome(Outcome::ConditionFailed { current }),
            Reply::BatchFailed { item, current } => Response::Outcome(Outcome::BatchFailed { item, current }),
            Reply::Values(values) => Response::Values(
                values
                    .map(|value| value.map(|v| Versioned { value: v.value.to_vec(), version: v.version }))
                    .collect(),
            ),
            Reply::Counter { version, value } => Response::Counter(Counter { value, version }),
            Reply::Lifetime { version, lifetime } => Response::Ttl(Some(Ttl { lifetime, version })),
            Reply::Stats(text) => Response::Stats(text.to_owned()),
            Reply::Done => Response::Done,
            Reply::Refused(refusal) => return Err(Error::Refused(refusal)),
            // Nothing here asks for these.
            Reply::Hello(_) | Reply::Page(_) | Reply::Resp(_) => return Err(unexpected(address)),
        })
    }
}

/// A reply of a kind that the request does not have.
#[cold]
pub(super) fn unexpected(address: &str) -> Error {
    let source = ReplyError::Malformed("it does not fit the request");
    Error::Protocol { address: address.to_owned(), source }
}
