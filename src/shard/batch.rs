//! BATCH: all conditions first, then all writes as one group of one entry of the log. As all attempts, one changes all
//! or nothing.

use std::borrow::Cow;
use std::collections::HashMap;

use super::Shard;
use super::execute::{Attempt, MissingBlocks, refusal};
use super::outputs::{Meta, Outputs};
use super::stall::LOADING_BYTES_MAX;
use crate::base::{BlockSeq, Bug, ENTRY_BYTES_MAX, Entry, Op, OpKind, planted};
use crate::engine::{Key, Loaded, Lookup, MissingBlock, Room, WRITE_OVERHEAD};
use crate::env::Env;
use crate::error::{Code, Refusal};
use crate::metrics::Metrics;
use crate::protocol::binary::Ops;
use crate::protocol::{Action, BatchOp, Condition, Durability, Expiry, Reply};

/// What a key has: its value, if that is wanted, and when it expires.
type Had = Option<(Vec<u8>, u64)>;

/// That, and the block that must be durable before anything is told of it.
type Copied = (Had, Option<BlockSeq>);

/// What comes of a step that looks keys up.
enum Looked<E: Env, T> {
    /// What it is for.
    Found(T),
    /// These blocks are missing, at least.
    Missing(MissingBlocks<E>),
    /// That is the answer, when the block is durable which holds what it tells of.
    Answer(Option<BlockSeq>, Reply<'static>),
}

/// A write in the making. Its value is the request's, or a copy of what the key had.
struct Write<'a> {
    kind: OpKind,
    key: &'a [u8],
    hash: u64,
    value: Cow<'a, [u8]>,
    expiry_ms: u64,
}

impl Write<'_> {
    fn op(&self) -> Op<'_> {
        Op { kind: self.kind, key: self.key, value: &self.value, expiry_ms: self.expiry_ms }
    }

    /// What the key has after it.
    fn leaves(&self) -> Had {
        (self.kind == OpKind::Put).then(|| (self.value.to_vec(), self.expiry_ms))
    }
}

/// Blocks that lookups miss, up to as many as are read at a time: every attempt looks at every key, so one block for
/// each attempt would make that quadratic.
struct Misses<E: Env> {
    blocks: MissingBlocks<E>,
    bytes: usize,
}

impl<E: Env> Misses<E> {
    fn new() -> Misses<E> {
        Misses { blocks: MissingBlocks::new(), bytes: 0 }
    }

    /// Takes one more. Whether these are enough for now.
    fn push(&mut self, block: MissingBlock<E>) -> bool {
        self.bytes += block.len();
        self.blocks.push(block);
        self.bytes > LOADING_BYTES_MAX
    }
}

impl<E: Env> Shard<E> {
    pub(super) fn batch(
        &self,
        meta: Meta,
        ops: Ops<'_>,
        durability: Durability,
        loaded: &Loaded,
        out: &mut Outputs,
    ) -> Result<Attempt<E>, Refusal> {
        let Some(first) = ops.into_iter().next() else {
            return Err(Refusal::new(Code::Internal, "a batch of nothing reached a shard"));
        };
        // All keys are of one slot.
        let tablet = self.key(first.key)?.tablet;
        let looked = match self.unmet(tablet, ops, durability, loaded)? {
            Looked::Found(()) => self.writes(tablet, ops, durability, loaded)?,
            Looked::Missing(missing) => Looked::Missing(missing),
            Looked::Answer(wait, reply) => Looked::Answer(wait, reply),
        };
        let writes = match looked {
            Looked::Found(writes) => writes,
            Looked::Missing(missing) => return Ok(Attempt::Missing(missing)),
            Looked::Answer(wait, reply) => {
                Metrics::add(&self.metrics.batches, 1);
                out.after(wait, meta, &reply);
                return Ok(Attempt::Done);
            }
        };
        let list: Vec<Op<'_>> = writes.iter().map(Write::op).collect();
        let hashes: Vec<u64> = writes.iter().map(|write| write.hash).collect();
        let is_put = list.iter().any(|op| op.kind == OpKind::Put);
        let bytes = list.iter().map(|op| op.key.len() + op.value.len() + WRITE_OVERHEAD).sum();
        if self.room(is_put, bytes)? == Room::Wait {
            return Ok(Attempt::Wait);
        }
        Metrics::add(&self.metrics.batches, 1);
        let appended = self.engine.write(tablet, &list, &hashes).map_err(refusal)?;
        self.written(meta, appended.block, durability, &Reply::Written { version: appended.lsn }, out);
        Ok(Attempt::Done)
    }

    fn key_of<'a>(&self, tablet: usize, op: &BatchOp<'a>) -> Key<'a> {
        Key { bytes: op.key, hash: self.engine.hash(op.key), tablet }
    }

    /// Looks for an item whose condition does not hold. The first one is the answer.
    fn unmet(
        &self,
        tablet: usize,
        ops: Ops<'_>,
        durability: Durability,
        loaded: &Loaded,
    ) -> Result<Looked<E, ()>, Refusal> {
        let mut misses = Misses::new();
        // The answer also tells that all conditions before it hold.
        let mut wait = None;
        for (item, op) in (0..).zip(ops).filter(|(_, op)| op.condition != Condition::None) {
            match self.current(&self.key_of(tablet, &op), durability, loaded)? {
                Err(block) => {
                    if misses.push(block) {
                        break;
                    }
                }
                Ok(current) if op.condition.holds(current.version) => wait = wait.max(current.wait),
                Ok(_) if planted(Bug::ConditionIgnored) && item > 0 => {}
                // One before it may not hold either: that shows when its block is there.
                Ok(_) if !misses.blocks.is_empty() => break,
                Ok(current) => {
                    let reply = Reply::BatchFailed { item, current: current.version };
                    return Ok(Looked::Answer(wait.max(current.wait), reply));
                }
            }
        }
        Ok(if misses.blocks.is_empty() { Looked::Found(()) } else { Looked::Missing(misses.blocks) })
    }

    /// What is to be written, once all conditions hold.
    fn writes<'a>(
        &self,
        tablet: usize,
        ops: Ops<'a>,
        durability: Durability,
        loaded: &Loaded,
    ) -> Result<Looked<E, Vec<Write<'a>>>, Refusal> {
        let mut writes: Vec<Write<'a>> = Vec::with_capacity(ops.len());
        let mut misses = Misses::new();
        // The last write of each key, if some item asks for it.
        let is_asked = ops.into_iter().any(|op| op.action.needs_current());
        let mut last: HashMap<&[u8], usize> = HashMap::new();
        let (mut bytes, mut wait) = (0, None);
        for op in ops.filter(|op| op.action.is_write()) {
            let key = self.key_of(tablet, &op);
            let current = match last.get(op.key).filter(|_| op.action.needs_current()) {
                Some(&place) => writes[place].leaves(),
                None if op.action.needs_current() => match self.copied(&key, &op, durability, loaded)? {
                    Ok((current, its_wait)) => {
                        wait = wait.max(its_wait);
                        current
                    }
                    Err(block) => {
                        if misses.push(block) {
                            break;
                        }
                        None // what it would be no longer matters in this attempt
                    }
                },
                None => None,
            };
            let write = self.write_of(&key, &op, current)?;
            bytes += write.op().encoded_len();
            if !writes.is_empty() && bytes > ENTRY_BYTES_MAX {
                // Told before all values are copied, which the request's own length does not bound.
                let message = format!(
                    "BATCH: with the values that its keys have it is longer than the {ENTRY_BYTES_MAX} bytes allowed"
                );
                let refusal = Refusal::new(Code::BatchTooLarge, message);
                return Ok(Looked::Answer(wait, Reply::Refused(refusal)));
            }
            if is_asked {
                last.insert(op.key, writes.len());
            }
            writes.push(write);
        }
        Ok(if misses.blocks.is_empty() { Looked::Found(writes) } else { Looked::Missing(misses.blocks) })
    }

    /// A key's value, if the operation stores it again, and its expiry; and the block that must be durable before
    /// anything is told of them.
    fn copied(
        &self,
        key: &Key<'_>,
        op: &BatchOp<'_>,
        durability: Durability,
        loaded: &Loaded,
    ) -> Result<Result<Copied, MissingBlock<E>>, Refusal> {
        let has_value = matches!(op.action, Action::Put { .. });
        let lookup = self.engine.lookup(key, loaded, |found| {
            let value = |entry: &Entry<'_>| if has_value { Vec::new() } else { entry.value.to_vec() };
            let current = found.entry.map(|entry| (value(&entry), entry.expiry_ms));
            (current, self.observed(found.wait, durability))
        });
        Ok(match lookup.map_err(refusal)? {
            Lookup::Done(found) => Ok(found),
            Lookup::Missing(block) => Err(block),
        })
    }

    /// The write of an item whose key has `current`, value and expiry, where that matters.
    fn write_of<'a>(&self, key: &Key<'a>, op: &BatchOp<'a>, current: Had) -> Result<Write<'a>, Refusal> {
        let kept_ms = current.as_ref().map_or(0, |(_, expiry_ms)| *expiry_ms);
        let stored = current.map(|(value, _)| Cow::Owned(value));
        let (value, expiry_ms) = match op.action {
            Action::Put { value, expiry: Expiry::Never } => (Some(Cow::Borrowed(value)), 0),
            Action::Put { value, expiry: Expiry::Keep } => (Some(Cow::Borrowed(value)), kept_ms),
            Action::Put { value, expiry: Expiry::Set(deadline) } => {
                (Some(Cow::Borrowed(value)), self.expiry_ms(deadline)?)
            }
            Action::Expire(deadline) => (stored, self.expiry_ms(deadline)?),
            Action::Persist => (stored, 0),
            Action::Delete | Action::Check => (None, 0),
        };
        // A time that is past needs no storing: a delete leaves what the put would.
        let value = value.filter(|_| expiry_ms == 0 || expiry_ms > self.engine.now_ms());
        let kind = if value.is_some() { OpKind::Put } else { OpKind::Delete };
        let expiry_ms = if value.is_some() { expiry_ms } else { 0 };
        Ok(Write { kind, key: key.bytes, hash: key.hash, value: value.unwrap_or_default(), expiry_ms })
    }
}
