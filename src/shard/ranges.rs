//! DELRANGE and FLUSH: the part of one shard, on all its tablets in one step.
//!
//! - A connection takes in such a request only when all before it are answered, and nothing behind it before
//!   this one is (`Outlet::fence`). So those of one client are done in the order sent, and nobody waits in line.
//! - Every key is removed by the shard that serves it. So all parts must be done by one slot table: a part names
//!   the epoch by which it was sent, waits for a table that comes and for a tablet that is packed, and is refused
//!   by a newer table. Then all parts are sent anew (`gather`): what came to be meanwhile may go as well, since
//!   nobody was answered yet.

use super::Shard;
use super::execute::{Attempt, refusal};
use super::outputs::{Meta, Outputs};
use crate::engine::Room;
use crate::env::Env;
use crate::error::{Code, Refusal};
use crate::protocol::{DeleteRange, Reply};

impl<E: Env> Shard<E> {
    /// Removes the keys of a range from all tablets that are here, or from none.
    pub(super) fn delete_range(
        &self,
        meta: Meta,
        range: &DeleteRange<'_>,
        out: &mut Outputs,
    ) -> Result<Attempt<E>, Refusal> {
        let epoch = self.slots.epoch();
        if epoch > range.epoch {
            return Err(Refusal::new(Code::SlotMoving, "a tablet has moved meanwhile; try again"));
        }
        if epoch < range.epoch || self.is_packing() {
            return Ok(Attempt::Wait);
        }
        if let Some(why) = self.any_loss() {
            return Err(Refusal::new(Code::ShardFailed, why));
        }
        if self.engine.room_everywhere(range.start, range.end).map_err(refusal)? == Room::Wait {
            self.is_short.set(true);
            return Ok(Attempt::Wait);
        }
        match self.engine.delete_everywhere(range.start, range.end).map_err(refusal)? {
            Some(block) => self.written(meta, block, range.durability, &Reply::Done, out),
            None => out.ready(meta, &Reply::Done),
        }
        Ok(Attempt::Done)
    }
}
