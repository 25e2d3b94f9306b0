//! TRANSACT: commands of Redis on the keys of one slot, evaluated one after the other in one step, and all that they
//! write as one group of one entry of the log. As all attempts, one changes all or nothing.

use std::borrow::Cow;
use std::collections::BTreeMap;

use smallvec::{SmallVec, smallvec};

use super::Shard;
use super::execute::{Attempt, MissingBlocks, refusal};
use super::outputs::{Meta, Outputs};
use super::stall::LOADING_BYTES_MAX;
use crate::base::{BlockSeq, ENTRY_BYTES_MAX, ENTRY_OPS_MAX, EXPIRY_MS_MAX, Lsn, Op, OpKind};
use crate::engine::{Key, Loaded, Lookup, MissingBlock, Room, WRITE_OVERHEAD};
use crate::env::Env;
use crate::error::{Code, Refusal};
use crate::metrics::Metrics;
use crate::protocol::binary::{Arguments, HEADER_BYTES, Step};
use crate::protocol::resp::{self, Proto};
use crate::protocol::{Durability, Reply, Transaction};
use crate::redis::{self, Cell, Command, Keyspace, evaluate};
use crate::slot::Slot;

/// Arguments of one command.
type Words<'a> = SmallVec<[&'a [u8]; 8]>;

/// Why a lookup stops a transaction.
enum Stop<E: Env> {
    Missing(MissingBlock<E>),
    Refused(Refusal),
}

/// What a transaction has made of a key: a value and when it expires, or nothing.
type Left = Option<(Vec<u8>, u64)>;

/// The keys of one slot, as a transaction sees them.
struct Space<'s, E: Env> {
    shard: &'s Shard<E>,
    tablet: usize,
    loaded: &'s Loaded,
    durability: Durability,
    /// In an order of its own, since it becomes that of the log.
    written: BTreeMap<Vec<u8>, Left>,
    /// Bytes of keys and values in it.
    written_bytes: usize,
    /// The block that must be durable before anything is told of what was read.
    wait: Option<BlockSeq>,
}

impl<E: Env> Space<'_, E> {
    fn key<'k>(&self, bytes: &'k [u8]) -> Key<'k> {
        Key { bytes, hash: self.shard.engine.hash(bytes), tablet: self.tablet }
    }

    /// What `of` makes of the key's value and expiry in the store.
    fn look<T>(&mut self, key: &[u8], of: impl FnOnce(&[u8], u64) -> T) -> Result<Option<T>, Stop<E>> {
        let lookup = self.shard.engine.lookup(&self.key(key), self.loaded, |found| {
            (found.entry.map(|entry| of(entry.value, entry.expiry_ms)), found.wait)
        });
        match lookup.map_err(|error| Stop::Refused(refusal(error)))? {
            Lookup::Missing(missing) => Err(Stop::Missing(missing)),
            Lookup::Done((found, wait)) => {
                self.wait = self.wait.max(self.shard.observed(wait, self.durability));
                Ok(found)
            }
        }
    }

    fn write(&mut self, key: &[u8], left: Left) {
        let bytes = |left: &Left| key.len() + left.as_ref().map_or(0, |(value, _)| value.len());
        self.written_bytes += bytes(&left);
        if let Some(before) = self.written.insert(key.to_vec(), left) {
            self.written_bytes -= bytes(&before);
        }
    }

    /// Whether it is no more than is written at once: looked at after each command, since some write a million bytes
    /// with twenty of their own.
    fn check(&self) -> Result<(), Refusal> {
        let (count, bytes) = (self.written.len(), self.written_bytes);
        if count <= 1 || (bytes <= ENTRY_BYTES_MAX && count <= ENTRY_OPS_MAX) {
            return Ok(());
        }
        let message = format!(
            "a transaction that writes {count} keys, {bytes} bytes with their values, is more than the \
             {ENTRY_OPS_MAX} keys or {ENTRY_BYTES_MAX} bytes that are written at once"
        );
        Err(Refusal::new(Code::BatchTooLarge, message))
    }

    /// What is written, as one group.
    fn ops(&self) -> Vec<Op<'_>> {
        let ops = self.written.iter().map(|(key, left)| match left {
            Some((value, expiry_ms)) => Op { kind: OpKind::Put, key, value, expiry_ms: *expiry_ms },
            None => Op { kind: OpKind::Delete, key, value: &[], expiry_ms: 0 },
        });
        ops.collect()
    }
}

impl<E: Env> Keyspace for Space<'_, E> {
    type Stop = Stop<E>;

    fn now_ms(&self) -> u64 {
        self.shard.engine.now_ms()
    }

    fn value_bytes_max(&self) -> usize {
        self.shard.limits.value_bytes_max as usize
    }

    fn expiry_ms_max(&self) -> u64 {
        EXPIRY_MS_MAX
    }

    fn get(&mut self, key: &[u8]) -> Result<Option<Cell<'_>>, Stop<E>> {
        if self.written.contains_key(key) {
            return Ok(self.written[key]
                .as_ref()
                .map(|(value, expiry_ms)| Cell { value: Cow::Borrowed(value), expiry_ms: *expiry_ms }));
        }
        self.look(key, |value, expiry_ms| Cell { value: Cow::Owned(value.to_vec()), expiry_ms })
    }

    fn peek(&mut self, key: &[u8]) -> Result<Option<redis::Meta>, Stop<E>> {
        if let Some(left) = self.written.get(key) {
            let meta =
                |(value, expiry_ms): &(Vec<u8>, u64)| redis::Meta { len: value.len(), expiry_ms: *expiry_ms };
            return Ok(left.as_ref().map(meta));
        }
        self.look(key, |value, expiry_ms| redis::Meta { len: value.len(), expiry_ms })
    }

    fn put(&mut self, key: &[u8], value: Vec<u8>, expiry_ms: u64) {
        self.write(key, Some((value, expiry_ms)));
    }

    fn delete(&mut self, key: &[u8]) {
        self.write(key, None);
    }
}

impl<E: Env> Shard<E> {
    pub(super) fn transact(
        &self,
        meta: Meta,
        transaction: &Transaction<'_>,
        loaded: &Loaded,
        out: &mut Outputs,
    ) -> Result<Attempt<E>, Refusal> {
        let tablet = self.key(transaction.key)?.tablet;
        check_slots(transaction)?;
        let durability = transaction.durability;
        let mut space = Space {
            shard: self,
            tablet,
            loaded,
            durability,
            written: BTreeMap::new(),
            written_bytes: 0,
            wait: None,
        };
        let bytes = match self.replies(transaction, &mut space) {
            Ok(bytes) => bytes,
            Err(Stop::Missing(first)) => {
                return Ok(Attempt::Missing(missing(transaction, &mut space, first)));
            }
            Err(Stop::Refused(refusal)) => return Err(refusal),
        };
        if !self.has_reply_room(out, bytes.len() + HEADER_BYTES) {
            return Ok(Attempt::NoRoom);
        }
        let reply = Reply::Resp(&bytes);
        let ops = space.ops();
        if ops.is_empty() {
            Metrics::add(&self.metrics.transactions, 1);
            out.after(space.wait, meta, &reply);
            return Ok(Attempt::Done);
        }
        let is_put = ops.iter().any(|op| op.kind == OpKind::Put);
        let room = ops.iter().map(|op| op.key.len() + op.value.len() + WRITE_OVERHEAD).sum();
        if self.room(is_put, room)? == Room::Wait {
            return Ok(Attempt::Wait);
        }
        Metrics::add(&self.metrics.transactions, 1);
        let hashes: Vec<u64> = ops.iter().map(|op| self.engine.hash(op.key)).collect();
        let appended = self.engine.write(tablet, &ops, &hashes).map_err(refusal)?;
        self.written_after(space.wait, meta, appended.block, durability, &reply, out);
        Ok(Attempt::Done)
    }

    /// The replies to all commands, in order.
    fn replies(&self, transaction: &Transaction<'_>, space: &mut Space<'_, E>) -> Result<Vec<u8>, Stop<E>> {
        let proto = if transaction.is_resp3 { Proto::Resp3 } else { Proto::Resp2 };
        let mut bytes = Vec::new();
        for watch in transaction.watches {
            if self.version_of(space, watch.key)? != watch.version {
                resp::null_array(&mut bytes, proto);
                return Ok(bytes);
            }
        }
        if transaction.is_array {
            resp::array(&mut bytes, transaction.steps.len());
        }
        let limit = self.limits.frame_bytes_max as usize - HEADER_BYTES;
        for step in transaction.steps {
            match step {
                Step::Reply(reply) => bytes.extend_from_slice(reply),
                Step::Command(arguments) => {
                    let words: Words<'_> = arguments.collect();
                    match Command::parse(&words) {
                        Ok(command) => evaluate(&command, space, proto, &mut bytes)?,
                        Err(fault) => fault.write(&words, &mut bytes),
                    }
                }
            }
            space.check().map_err(Stop::Refused)?;
            if bytes.len() > limit {
                let message =
                    format!("the replies of this transaction are more than a frame of {limit} bytes");
                return Err(Stop::Refused(Refusal::new(Code::ReplyTooLarge, message)));
            }
        }
        Ok(bytes)
    }

    /// The version of the key's value in the store.
    fn version_of(&self, space: &mut Space<'_, E>, key: &[u8]) -> Result<Option<Lsn>, Stop<E>> {
        let current = self.current(&space.key(key), space.durability, space.loaded);
        let current = current.map_err(Stop::Refused)?.map_err(Stop::Missing)?;
        space.wait = space.wait.max(current.wait);
        Ok(current.version)
    }
}

/// All keys that a transaction names, as often as it does.
pub(super) fn keys_of<'a>(transaction: &Transaction<'a>) -> impl Iterator<Item = &'a [u8]> {
    let commands = transaction.steps.filter_map(|step| match step {
        Step::Command(arguments) => command_keys(arguments),
        Step::Reply(_) => None,
    });
    transaction.watches.map(|watch| watch.key).chain(commands.flatten())
}

fn command_keys(arguments: Arguments<'_>) -> Option<redis::Keys<'_>> {
    let words: Words<'_> = arguments.collect();
    Command::parse(&words).ok().map(|command| command.keys())
}

/// Whether all keys are of the slot by which the transaction came here, and could be keys.
fn check_slots(transaction: &Transaction<'_>) -> Result<(), Refusal> {
    let slot = Slot::of_key(transaction.key);
    for key in keys_of(transaction) {
        if key.is_empty() || key.len() > crate::base::KEY_BYTES_MAX {
            let message = format!("TRANSACT: a key has 1 to 65535 bytes, and this one {}", key.len());
            return Err(Refusal::new(Code::InvalidKey, message));
        }
        if Slot::of_key(key) != slot {
            let message = "TRANSACT: all its keys must be of one slot; use a {hash tag}";
            return Err(Refusal::new(Code::CrossSlot, message));
        }
    }
    Ok(())
}

/// The blocks that lookups of all keys miss, `first` among them, up to as many as are read at a time: one for each
/// attempt would make a transaction of many keys quadratic.
fn missing<E: Env>(
    transaction: &Transaction<'_>,
    space: &mut Space<'_, E>,
    first: MissingBlock<E>,
) -> MissingBlocks<E> {
    let mut bytes = first.len();
    let mut blocks: MissingBlocks<E> = smallvec![first];
    // The first key that misses a block is met once more, and its block read once.
    for key in keys_of(transaction) {
        if bytes > LOADING_BYTES_MAX {
            break;
        }
        if let Err(Stop::Missing(block)) = space.look(key, |_, _| ()) {
            bytes += block.len();
            blocks.push(block);
        }
    }
    blocks
}
