//! What can go wrong, split by what the caller can do.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Refusal;
use crate::protocol::binary::ReplyError;

/// Why a request failed. It can be cloned: all requests that were on a broken connection get the cause.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server refused, or the client did because the server would have. The code says what to do.
    #[error("{0}")]
    Refused(Refusal),
    /// There is no connection. Nothing was sent.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Where to.
        address: String,
        /// Why.
        source: Arc<io::Error>,
    },
    /// No answer in time. Of a write this means that it was not sent whole; otherwise see
    /// [`Error::UnknownOutcome`].
    #[error("{address} did not answer within {after:?}")]
    Timeout {
        /// Who.
        address: String,
        /// The limit.
        after: Duration,
    },
    /// The connection broke. Of a write this means that it was not sent whole; otherwise see
    /// [`Error::UnknownOutcome`].
    #[error("connection to {address} lost: {source}")]
    Disconnected {
        /// To whom.
        address: String,
        /// How.
        source: Arc<io::Error>,
    },
    /// The other side does not speak the protocol, or not correctly.
    #[error("{address}: {source}")]
    Protocol {
        /// Who.
        address: String,
        /// What is wrong with its answer.
        source: ReplyError,
    },
    /// A write went out and its answer did not come. It may have been applied, and may still be.
    #[error("the write may or may not have been applied: {cause}")]
    UnknownOutcome {
        /// What became of the answer.
        cause: Box<Error>,
    },
}

impl Error {
    /// Whether the request, if it was a write, may have changed something. False means certainly not.
    pub fn may_be_applied(&self) -> bool {
        match self {
            Error::UnknownOutcome { .. } => true,
            Error::Refused(refusal) => refusal.code.may_be_applied(),
            Error::Connect { .. }
            | Error::Timeout { .. }
            | Error::Disconnected { .. }
            | Error::Protocol { .. } => false,
        }
    }

    /// The refusal, if this is one.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Error::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// Whether a new connection may help.
    pub(super) fn is_transport(&self) -> bool {
        matches!(self, Error::Connect { .. } | Error::Disconnected { .. })
    }

    /// What becomes of a request on a connection that failed with `self`.
    pub(super) fn of_request(self, is_write: bool, was_sent: bool) -> Error {
        match self {
            Error::UnknownOutcome { .. } => self,
            cause if is_write && was_sent => Error::UnknownOutcome { cause: Box::new(cause) },
            cause => cause,
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        Error::Refused(refusal)
    }
}
