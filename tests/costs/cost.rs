//! What something cost, and what it may cost.

use std::fmt::{Display, Formatter, Result};
use std::ops::Sub;

use crate::allocator;
use crate::world::Asked;

/// Counts that follow from the code and the seed alone. As a limit: the most of a turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Allocations, reallocations included, of shards and sessions: not of the world around them.
    pub allocations: u64,
    /// Bytes of these. To copy a large value into memory of its own shows here.
    pub bytes: u64,
    /// Tasks begun, for each of which the runtime allocates.
    pub tasks: u64,
    /// Messages from shard to shard.
    pub messages: u64,
    /// Reads of files.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Writes of files.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
}

impl Cost {
    /// All that this thread and the world that was `asked` have cost so far.
    pub fn so_far(asked: &Asked, messages: u64) -> Cost {
        let (allocations, bytes) = allocator::so_far();
        Cost {
            allocations,
            bytes,
            tasks: asked.tasks.get(),
            messages,
            reads: asked.reads.get(),
            read_bytes: asked.read_bytes.get(),
            writes: asked.writes.get(),
            written_bytes: asked.written_bytes.get(),
        }
    }

    fn parts(&self) -> [(&'static str, u64, &'static str); 8] {
        [
            (
                "allocations",
                self.allocations,
                "buffers that are no longer kept, or boxes on the way of a request",
            ),
            ("bytes allocated", self.bytes, "copies of values, and buffers that grow or are not kept"),
            ("tasks", self.tasks, "what a request is spawned for (Env::spawn)"),
            ("messages", self.messages, "what is sent to another shard (Port::send), once for all of a turn"),
            ("reads", self.reads, "what misses the cache (File::read_at), and filters that do not rule out"),
            ("bytes read", self.read_bytes, "how much is read at once (File::read_at)"),
            ("writes", self.writes, "what is written to the log (File::write_at), once for all of a turn"),
            ("bytes written", self.written_bytes, "how blocks of the log are filled and padded"),
        ]
    }
}

impl Sub for Cost {
    type Output = Cost;

    fn sub(self, before: Cost) -> Cost {
        Cost {
            allocations: self.allocations - before.allocations,
            bytes: self.bytes - before.bytes,
            tasks: self.tasks - before.tasks,
            messages: self.messages - before.messages,
            reads: self.reads - before.reads,
            read_bytes: self.read_bytes - before.read_bytes,
            writes: self.writes - before.writes,
            written_bytes: self.written_bytes - before.written_bytes,
        }
    }
}

/// The cost of several turns of the same.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What was done.
    pub name: String,
    /// How often.
    pub turns: u64,
    /// All of it.
    pub cost: Cost,
}

/// Of each part so many more than its limit are let pass in all, in parts of a turn: what comes now and then.
const LEEWAY: u64 = 8;

impl Measured {
    /// Whatever costs more a turn than it may, with what to look at.
    pub fn excess(&self, limit: Cost) -> Vec<String> {
        let most = |limit: u64| limit * self.turns + self.turns / LEEWAY;
        let parts = self.cost.parts().into_iter().zip(limit.parts());
        parts
            .filter(|((_, cost, _), (_, limit, _))| *cost > most(*limit))
            .map(|((part, cost, look), (_, limit, _))| {
                let each = cost as f64 / self.turns as f64;
                format!("{}: {each:.2} {part} a turn, and {limit} are allowed; look at {look}", self.name)
            })
            .collect()
    }
}

/// What stands above figures.
pub const HEAD: &str = "of a turn                          allocs      bytes      tasks   messages      reads      bytes     writes      bytes";

impl Display for Measured {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{:30}", self.name)?;
        let parts = self.cost.parts();
        parts.iter().try_for_each(|(_, cost, _)| write!(f, " {:10.2}", *cost as f64 / self.turns as f64))
    }
}
