//! What a BATCH does to its keys.

use super::command::Condition;
use super::expiry::{Deadline, Expiry};

/// One item of a batch, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchOp<'a> {
    /// 1..=65535 bytes.
    pub key: &'a [u8],
    /// What must hold of the key as the batch finds it: what earlier items of the batch do to it doesn't count.
    /// If one doesn't hold, nothing is done.
    pub condition: Condition,
    /// What is done to it, after what earlier items do.
    pub action: Action<'a>,
}

/// What an item of a batch does to its key. All but [`Action::Check`] are writes, with a version of their own even
/// where they find nothing to change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// It has this value.
    Put {
        /// Within the server's limit.
        value: &'a [u8],
        /// When the key expires.
        expiry: Expiry,
    },
    /// It is absent. Never with [`Condition::IfAbsent`].
    Delete,
    /// It keeps its value, if it has one, until then. A time that is past removes it. Never with
    /// [`Condition::IfAbsent`].
    Expire(Deadline),
    /// It keeps its value, if it has one, for ever. Never with [`Condition::IfAbsent`].
    Persist,
    /// Nothing; only its condition matters, which is never [`Condition::None`].
    Check,
}

impl Action<'_> {
    /// Whether it has a version: all but checks.
    #[inline]
    pub fn is_write(&self) -> bool {
        !matches!(self, Action::Check)
    }

    /// Whether what it writes depends on what the key has.
    #[inline]
    pub fn needs_current(&self) -> bool {
        matches!(self, Action::Expire(_) | Action::Persist | Action::Put { expiry: Expiry::Keep, .. })
    }
}

impl<'a> BatchOp<'a> {
    /// Stores a value for ever, whatever was there.
    pub fn put(key: &'a [u8], value: &'a [u8]) -> BatchOp<'a> {
        BatchOp { key, condition: Condition::None, action: Action::Put { value, expiry: Expiry::Never } }
    }

    /// Removes a key, whether it is there or not.
    pub fn delete(key: &'a [u8]) -> BatchOp<'a> {
        BatchOp { key, condition: Condition::None, action: Action::Delete }
    }
}
