//! What requests may cost.
//!
//! All figures are of a turn: [`TURN`] requests for one key each that are read at once, or one request for so many
//! keys, or one for a large value. They stand just above what was measured. Whoever makes something cheaper lowers them;
//! whoever needs more raises them, and says in the commit why that is worth it.

use crate::cost::Cost;
use crate::kinds::{Kind, LARGE_BYTES, TURN, Way};
use crate::wire::Protocol;

/// What a turn of this kind, that goes this way, may cost.
pub fn limit(kind: Kind, way: Way) -> Cost {
    let is_other = way.owner != 0;
    let (allocations, bytes) = memory(kind, way.protocol);
    let at = usize::from(is_other);
    let world = world(kind);
    let messages = if is_other { world.messages } else { 0 };
    Cost { allocations: allocations[at], bytes: bytes[at], messages, ..world }
}

/// Allocations and their bytes, if the shard that a connection is to owns the keys, and if another one does.
///
/// Of the binary protocol each turn has: the list of connections that have replies 1, and the growth of the buffer of
/// replies, 5 for small ones. With another owner also: the list of whose frames leave together 1, the growth of the buffer of frames
/// and that of replies there, 5, and the list of replies that leave together 1. Redis' protocol adds the growth of the
/// buffer that replies leave in, 5; GETs of the own shard in memory have nothing but that.
fn memory(kind: Kind, protocol: Protocol) -> ([u64; 2], [u64; 2]) {
    const LARGE: u64 = LARGE_BYTES as u64;
    use Protocol::{Binary, Redis};
    match (kind, protocol) {
        // For each key 10: the task's frame, its turn and who waits for it, the flight and the block with its part of the
        // cache, a buffer of replies of its own, the task that ends the turn.
        (Kind::GetCold, Binary) => ([161, 183], [150_000, 156_000]),
        (Kind::GetCold, Redis) => ([197, 219], [230_000, 236_000]),
        // Nothing of the block is allocated. A reply grows the buffer to twice its length.
        (Kind::GetCached, Binary) => ([6, 13], [33_000, 35_000]),
        (Kind::GetCached, Redis) => ([5, 18], [32_500, 67_000]),
        (Kind::GetAbsent, Binary) => ([6, 13], [1_500, 3_500]),
        (Kind::GetAbsent, Redis) => ([5, 18], [300, 3_900]),
        (Kind::GetMemtable, Binary) => ([6, 13], [4_600, 6_700]),
        (Kind::GetMemtable, Redis) => ([5, 18], [4_000, 10_600]),
        // The log adds 6: the entries of each tablet 1 to 2, a block's buffers and those who wait for it. Replies are
        // held 1, and released.
        (Kind::Set, Binary) => ([13, 20], [2_300, 7_400]),
        (Kind::Set, Redis) => ([18, 25], [2_600, 7_700]),
        // Each writes its sum as text: 16.
        (Kind::Incr, Binary) => ([29, 37], [3_100, 5_400]),
        (Kind::Incr, Redis) => ([34, 42], [3_500, 5_900]),
        // The list of values is encoded by itself, 7, and copied into the replies 1.
        (Kind::Mget, Binary) => ([9, 12], [7_900, 8_500]),
        (Kind::Mget, Redis) => ([20, 23], [11_700, 12_300]),
        // Its operations, their hashes and their values are listed: 3.
        (Kind::Batch, Binary) => ([11, 15], [2_950, 5_400]),
        (Kind::Batch, Redis) => ([24, 28], [9_500, 12_000]),
        // The value is copied once, to the reply, and each slice tells the connection that it waits. In Redis' protocol
        // it is copied to a reply of that, which is reserved twice, and from there to what leaves.
        (Kind::GetLarge, Binary) => ([13, 15], [LARGE + 2_000, LARGE + 2_000]),
        (Kind::GetLarge, Redis) => ([15, 17], [4 * LARGE + 2_000, 4 * LARGE + 2_000]),
        // The value is copied twice, to the log and to the memtable; in Redis' protocol to a frame before. With few
        // shards some more, since each time one looks over all tablets for something to merge.
        (Kind::SetLarge, Binary) => ([76, 62], [2 * LARGE + 6_000, 2 * LARGE + 6_000]),
        (Kind::SetLarge, Redis) => ([78, 64], [3 * LARGE + 6_000, 3 * LARGE + 6_000]),
    }
}

/// What is asked of the world around a shard, whatever the protocol; messages if another shard owns the keys.
fn world(kind: Kind) -> Cost {
    const TURN_KEYS: u64 = TURN as u64;
    /// A block of four kibibytes lies in two pages.
    const BLOCK_BYTES: u64 = 8 << 10;
    match kind {
        // A task and a read for each key. In the simulated world each read ends at a time of its own, so each is a turn:
        // a task that ends it, and from another shard a message.
        Kind::GetCold => Cost {
            tasks: 2 * TURN_KEYS,
            messages: 1 + TURN_KEYS,
            reads: TURN_KEYS,
            read_bytes: TURN_KEYS * BLOCK_BYTES,
            ..Cost::default()
        },
        // Frames there, and replies back.
        Kind::GetCached | Kind::GetAbsent | Kind::GetMemtable | Kind::Mget => {
            Cost { messages: 2, ..Cost::default() }
        }
        // One block of the log, of one page, for the whole turn, and the task that writes it.
        Kind::Set | Kind::Incr | Kind::Batch => {
            Cost { tasks: 1, messages: 2, writes: 1, written_bytes: 4_200, ..Cost::default() }
        }
        // A slice of a quarter of a mebibyte each, the first of which takes no task. Each says that it waits, and the
        // connection that it may go on.
        Kind::GetLarge => Cost { tasks: 3, messages: 7, ..Cost::default() },
        // Four slices to the log, four to the memtable. The log's next segments are filled with zeros as fast as it is
        // written.
        Kind::SetLarge => Cost {
            tasks: 9,
            messages: 11,
            writes: 2,
            written_bytes: 2 * LARGE_BYTES as u64 + 10_000,
            ..Cost::default()
        },
    }
}
