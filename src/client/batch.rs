//! Writes that are applied all or not at all.

use super::error::Error;
use crate::base::KEY_BYTES_MAX;
use crate::error::{Code, Refusal};
use crate::protocol::binary::OpList;
use crate::protocol::{Action, BatchOp, Condition, Deadline, Durability, Expiry};
use crate::slot::Slot;

/// Writes to keys of one slot that are applied all or not at all, perhaps under conditions. Give the keys one
/// `{hash tag}` to have them in one slot.
///
/// Items take effect in the order in which they were added, so a later one on the same key wins. Conditions are about
/// the keys as they are before the batch; if one does not hold, nothing is done, and the outcome names the item.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub(super) ops: OpList,
    pub(super) durability: Durability,
    slot: Option<Slot>,
}

impl Batch {
    /// An empty batch. It has to have a write before it is sent.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Stores a value, for ever.
    ///
    /// # Errors
    /// If the key is empty or too long, or in another slot than the keys before it; the batch is as it was.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<&mut Batch, Error> {
        self.put_with(key, value, Expiry::Never, Condition::None)
    }

    /// Stores a value, perhaps for some time only, perhaps under a condition.
    ///
    /// # Errors
    /// As for [`Batch::put`].
    pub fn put_with(
        &mut self,
        key: &[u8],
        value: &[u8],
        expiry: Expiry,
        condition: Condition,
    ) -> Result<&mut Batch, Error> {
        self.push(&BatchOp { key, condition, action: Action::Put { value, expiry } })
    }

    /// Removes a key, whether it is there or not.
    ///
    /// # Errors
    /// As for [`Batch::put`].
    pub fn delete(&mut self, key: &[u8]) -> Result<&mut Batch, Error> {
        self.delete_with(key, Condition::None)
    }

    /// Removes a key, perhaps under a condition; [`Condition::IfAbsent`] is refused.
    ///
    /// # Errors
    /// As for [`Batch::put`].
    pub fn delete_with(&mut self, key: &[u8], condition: Condition) -> Result<&mut Batch, Error> {
        self.push(&BatchOp { key, condition, action: Action::Delete })
    }

    /// Sets the time when a key expires, if it is there, perhaps under a condition; [`Condition::IfAbsent`] is
    /// refused.
    ///
    /// # Errors
    /// As for [`Batch::put`].
    pub fn expire(
        &mut self,
        key: &[u8],
        deadline: Deadline,
        condition: Condition,
    ) -> Result<&mut Batch, Error> {
        self.push(&BatchOp { key, condition, action: Action::Expire(deadline) })
    }

    /// Lets a key live for ever, if it is there, perhaps under a condition; [`Condition::IfAbsent`] is refused.
    ///
    /// # Errors
    /// As for [`Batch::put`].
    pub fn persist(&mut self, key: &[u8], condition: Condition) -> Result<&mut Batch, Error> {
        self.push(&BatchOp { key, condition, action: Action::Persist })
    }

    /// Makes the whole batch depend on a key that it does not write. This item has no version.
    ///
    /// # Errors
    /// As for [`Batch::put`].
    pub fn check(&mut self, key: &[u8], condition: Condition) -> Result<&mut Batch, Error> {
        self.push(&BatchOp { key, condition, action: Action::Check })
    }

    fn push(&mut self, op: &BatchOp<'_>) -> Result<&mut Batch, Error> {
        if let Action::Put { value, .. } = op.action
            && u32::try_from(value.len()).is_err()
        {
            let message = format!("a value of {} bytes is more than any server takes", value.len());
            return Err(Refusal::new(Code::ValueTooLarge, message).into());
        }
        self.check_key(op.key)?;
        self.ops.push(op);
        Ok(self)
    }

    /// When the batch is answered.
    pub fn durability(&mut self, durability: Durability) -> &mut Batch {
        self.durability = durability;
        self
    }

    /// How many items.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    fn check_key(&mut self, key: &[u8]) -> Result<(), Error> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            let message = format!("a key has 1 to {KEY_BYTES_MAX} bytes, not {}", key.len());
            return Err(Refusal::new(Code::InvalidKey, message).into());
        }
        let slot = Slot::of_key(key);
        let first = *self.slot.get_or_insert(slot);
        if first != slot {
            let message = format!(
                "keys of slots {first} and {slot} in one batch; give them one {{hash tag}} to make them atomic"
            );
            return Err(Refusal::new(Code::CrossSlot, message).into());
        }
        Ok(())
    }
}
