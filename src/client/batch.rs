//! Writes that are applied all or not at all.

use super::error::Error;
use crate::base::KEY_BYTES_MAX;
use crate::error::{Code, Refusal};
use crate::protocol::Durability;
use crate::protocol::binary::OpList;
use crate::slot::Slot;

/// Writes to keys of one slot that are applied all or not at all. Give the keys one `{hash tag}` to have
/// them in one slot.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub(super) ops: OpList,
    pub(super) durability: Durability,
    slot: Option<Slot>,
}

impl Batch {
    /// An empty batch. It has to have an operation before it is sent.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Stores a value. A later operation on the same key wins over an earlier one.
    ///
    /// # Errors
    /// If the key is empty or too long, or in another slot than the keys before it; the batch is as it was.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<&mut Batch, Error> {
        if u32::try_from(value.len()).is_err() {
            let message = format!("a value of {} bytes is more than any server takes", value.len());
            return Err(Refusal::new(Code::ValueTooLarge, message).into());
        }
        self.check_key(key)?;
        self.ops.put(key, value);
        Ok(self)
    }

    /// Removes a key, whether it is there or not.
    ///
    /// # Errors
    /// As for [`Batch::put`].
    pub fn delete(&mut self, key: &[u8]) -> Result<&mut Batch, Error> {
        self.check_key(key)?;
        self.ops.delete(key);
        Ok(self)
    }

    /// When the batch is answered.
    pub fn durability(&mut self, durability: Durability) -> &mut Batch {
        self.durability = durability;
        self
    }

    /// How many operations.
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
