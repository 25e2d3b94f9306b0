//! Executes requests whose keys this shard owns.
//!
//! An *attempt* is synchronous and does all or nothing: it either answers, or says which block it misses
//! or that memory is full, having changed nothing. So it can be made again from the start, and decides on
//! what is current when it succeeds.

use smallvec::smallvec;

use super::Shard;
use super::outputs::{Meta, Outputs};
use super::sliced;
use super::stall::LOADING_BYTES_MAX;
use crate::base::{BlockSeq, Bug, Lsn, Op, OpKind, planted};
use crate::engine::manifest::ManifestError;
use crate::engine::wal::Appended;
use crate::engine::{EngineError, Found, Key, Loaded, Lookup, MissingBlock, Room, Staged, WRITE_OVERHEAD};
use crate::env::Env;
use crate::error::{Code, Refusal};
use crate::metrics::Metrics;
use crate::protocol::binary::{HEADER_BYTES, Keys, ValueListEncoder};
use crate::protocol::{Condition, Durability, Expiry, Reply, Request};
use crate::slot::Slot;

/// Blocks to be read; more than one only for a request of several keys.
pub type MissingBlocks<E> = smallvec::SmallVec<[MissingBlock<E>; 1]>;

/// How an attempt ended.
pub enum Attempt<E: Env> {
    /// It was answered.
    Done,
    /// It needs blocks from disk, these at least.
    Missing(MissingBlocks<E>),
    /// It needs memory that the next flush frees.
    Wait,
    /// Its reply is large, and others must leave first.
    NoRoom,
    /// It takes longer than a step may: see [`sliced`].
    Long,
}

/// What a lookup tells a write that depends on it.
pub(super) struct Current {
    /// Version of its live value.
    pub version: Option<Lsn>,
    /// When that expires; 0 is never.
    pub expiry_ms: u64,
    /// The block that must be durable before any of this may be told.
    pub wait: Option<BlockSeq>,
}

impl<E: Env> Shard<E> {
    /// Computes once what all lookups of a key need.
    #[inline]
    pub(super) fn key<'a>(&self, bytes: &'a [u8]) -> Result<Key<'a>, Refusal> {
        let slot = Slot::of_key(bytes);
        let Some(tablet) = self.slots.local_on(self.id, slot).filter(|_| !self.is_packed(slot)) else {
            return Err(self.not_here(slot));
        };
        self.engine.note_use(tablet);
        Ok(Key { bytes, hash: self.engine.hash(bytes), tablet })
    }

    /// Requests are routed to the owner. But one that waited for its client to take replies may find that the
    /// tablet has moved, and after a move that failed half-way nobody serves it.
    #[cold]
    pub(super) fn not_here(&self, slot: Slot) -> Refusal {
        match self.loss_of(slot) {
            Some(why) => Refusal::new(Code::ShardFailed, why),
            None => Refusal::new(Code::SlotMoving, format!("slot {slot} has moved meanwhile; try again")),
        }
    }

    /// Tries to execute a request. `loaded` holds the blocks that earlier attempts missed.
    pub(super) fn attempt(
        &self,
        meta: Meta,
        request: &Request<'_>,
        loaded: &Loaded,
        out: &mut Outputs,
    ) -> Attempt<E> {
        if self.writes_held.get() && request.is_write() {
            return Attempt::Wait;
        }
        let result = match *request {
            Request::Get { key } => self.get(meta, key, loaded, out),
            Request::Mget { keys } => self.mget(meta, keys, loaded, out),
            Request::Set { key, value, expiry, condition, durability } => {
                self.set(meta, key, value, expiry, condition, durability, &mut None, loaded, out)
            }
            Request::Delete { key, condition, durability } => {
                self.delete(meta, key, condition, durability, loaded, out)
            }
            Request::Incr { key, amount, durability } => {
                self.incr(meta, key, amount, durability, loaded, out)
            }
            Request::Expire { key, deadline, condition, durability } => {
                self.expiry_ms(deadline).and_then(|expiry_ms| {
                    self.change_expiry(meta, key, expiry_ms, condition, durability, &mut None, loaded, out)
                })
            }
            Request::Persist { key, condition, durability } => {
                self.change_expiry(meta, key, 0, condition, durability, &mut None, loaded, out)
            }
            Request::Ttl { key } => self.ttl(meta, key, loaded, out),
            Request::Batch { ops, durability } => self.batch(meta, ops, durability, loaded, out),
            Request::DeleteRange(ref range) => self.delete_range(meta, range, out),
            Request::Transact(ref transaction) => self.transact(meta, transaction, loaded, out),
            Request::Stats { section } => {
                let text = match section {
                    "tablets" => self.tablets_text(),
                    "clients" => self.clients_text(),
                    _ => self.stats_text(),
                };
                out.ready(meta, &Reply::Stats(&text));
                Ok(Attempt::Done)
            }
            Request::Checkpoint { .. } => {
                Err(Refusal::new(Code::Internal, "CHECKPOINT reached a shard's engine"))
            }
            Request::Tablets { .. } => Err(Refusal::new(Code::Internal, "TABLETS reached a shard's engine")),
            Request::Clients(_) => Err(Refusal::new(Code::Internal, "CLIENTS reached a shard's engine")),
            Request::Ping { payload } if !self.has_reply_room(out, payload.len() + HEADER_BYTES) => {
                Ok(Attempt::NoRoom)
            }
            Request::Ping { payload } => {
                out.ready(meta, &Reply::Pong(payload));
                Ok(Attempt::Done)
            }
            Request::Hello(_) | Request::Scan(_) => {
                Err(Refusal::new(Code::Internal, "HELLO or SCAN reached a shard's engine"))
            }
        };
        let attempt = result.unwrap_or_else(|refusal| {
            Metrics::add(&self.metrics.refusals, 1);
            out.ready(meta, &Reply::Refused(refusal));
            Attempt::Done
        });
        match attempt {
            Attempt::Done => self.engine.count_reads(loaded),
            _ => loaded.forget_reads(),
        }
        attempt
    }

    fn get(&self, meta: Meta, key: &[u8], loaded: &Loaded, out: &mut Outputs) -> Result<Attempt<E>, Refusal> {
        let (mut has_room, mut is_long) = (true, false);
        let lookup = self.engine.lookup(&self.key(key)?, loaded, |found| {
            let Found { entry, wait } = found;
            let len = entry.as_ref().map_or(0, |entry| entry.value.len());
            is_long = len > sliced::BYTES_MAX;
            has_room = is_long || self.has_reply_room(out, len + HEADER_BYTES);
            if is_long || !has_room {
                return false;
            }
            let reply = match &entry {
                Some(entry) => Reply::Value { version: entry.lsn, value: entry.value },
                None => Reply::Absent,
            };
            out.after(self.observed(wait, Durability::Default), meta, &reply);
            entry.is_some()
        });
        match lookup.map_err(refusal)? {
            Lookup::Missing(missing) => Ok(Attempt::Missing(smallvec![missing])),
            Lookup::Done(_) if !has_room => Ok(Attempt::NoRoom),
            Lookup::Done(_) if is_long => Ok(Attempt::Long),
            Lookup::Done(is_hit) => {
                Metrics::add(&self.metrics.gets, 1);
                Metrics::add(&self.metrics.get_hits, u64::from(is_hit));
                Ok(Attempt::Done)
            }
        }
    }

    fn mget(
        &self,
        meta: Meta,
        keys: Keys<'_>,
        loaded: &Loaded,
        out: &mut Outputs,
    ) -> Result<Attempt<E>, Refusal> {
        if keys.len() > sliced::KEYS_MAX {
            return Ok(Attempt::Long);
        }
        let mut bytes = Vec::new();
        let mut wait = None;
        let mut hits = 0;
        let (mut missing, mut missing_bytes) = (MissingBlocks::new(), 0);
        let count = keys.len() as u64;
        let limit = self.limits.frame_bytes_max as usize;
        let mut list = ValueListEncoder::begin(&mut bytes, meta.request_id, meta.epoch);
        for key in keys {
            if list.frame_bytes() > sliced::BYTES_MAX {
                return Ok(Attempt::Long);
            }
            let lookup = self.engine.lookup(&self.key(key)?, loaded, |found| {
                wait = wait.max(self.observed(found.wait, Durability::Default));
                match found.entry {
                    Some(entry) if list.frame_bytes_with(entry.value.len()) > limit => return false,
                    Some(entry) => {
                        hits += 1;
                        list.present(entry.lsn, entry.value);
                    }
                    None => list.absent(),
                }
                true
            });
            match lookup.map_err(refusal)? {
                // Every attempt looks at every key: one block for each would make that quadratic.
                Lookup::Missing(block) => {
                    missing_bytes += block.len();
                    missing.push(block);
                    if missing_bytes > LOADING_BYTES_MAX {
                        break;
                    }
                }
                Lookup::Done(true) => {}
                Lookup::Done(false) => {
                    return Err(too_large(limit));
                }
            }
        }
        if !missing.is_empty() {
            return Ok(Attempt::Missing(missing));
        }
        list.finish();
        if !self.has_reply_room(out, bytes.len()) {
            return Ok(Attempt::NoRoom);
        }
        Metrics::add(&self.metrics.gets, count);
        Metrics::add(&self.metrics.get_hits, hits);
        out.raw(wait, meta, &bytes);
        Ok(Attempt::Done)
    }

    /// What a write that depends on it must know of a key, and the block that must be durable before a write
    /// that asked for `durability` may be told of it.
    pub(super) fn current(
        &self,
        key: &Key<'_>,
        durability: Durability,
        loaded: &Loaded,
    ) -> Result<Result<Current, MissingBlock<E>>, Refusal> {
        let lookup = self.engine.lookup(key, loaded, |found| Current {
            version: found.entry.map(|entry| entry.lsn),
            expiry_ms: found.entry.map_or(0, |entry| entry.expiry_ms),
            wait: self.observed(found.wait, durability),
        });
        Ok(match lookup.map_err(refusal)? {
            Lookup::Done(current) => Ok(current),
            Lookup::Missing(missing) => Err(missing),
        })
    }

    /// SET. A large value must have been staged; while it was not, this says how the attempt would end otherwise,
    /// or that it takes long.
    #[allow(clippy::too_many_arguments)] // the fields of the request, and where the answer goes
    pub(super) fn set(
        &self,
        meta: Meta,
        key: &[u8],
        value: &[u8],
        expiry: Expiry,
        condition: Condition,
        durability: Durability,
        staged: &mut Option<Staged>,
        loaded: &Loaded,
        out: &mut Outputs,
    ) -> Result<Attempt<E>, Refusal> {
        let key = self.key(key)?;
        if self.room(true, key.bytes.len() + value.len() + WRITE_OVERHEAD)? == Room::Wait {
            return Ok(Attempt::Wait);
        }
        let mut wait = None;
        let mut expiry_ms = match expiry {
            Expiry::Never | Expiry::Keep => 0,
            Expiry::Set(deadline) => self.expiry_ms(deadline)?,
        };
        if condition != Condition::None || expiry == Expiry::Keep {
            match self.current(&key, durability, loaded)? {
                Err(missing) => return Ok(Attempt::Missing(smallvec![missing])),
                Ok(current) if !condition.holds(current.version) => {
                    out.after(current.wait, meta, &Reply::ConditionFailed { current: current.version });
                    Metrics::add(&self.metrics.sets, 1);
                    return Ok(Attempt::Done);
                }
                Ok(current) => {
                    wait = current.wait;
                    if expiry == Expiry::Keep {
                        expiry_ms = current.expiry_ms;
                    }
                }
            }
        }
        if value.len() > sliced::BYTES_MAX && staged.is_none() {
            return Ok(Attempt::Long);
        }
        Metrics::add(&self.metrics.sets, 1);
        let op = self.put(&key, value, expiry_ms);
        let appended = match staged.take() {
            Some(staged) => self.engine.write_staged(key.tablet, &op, key.hash, staged),
            None => self.engine.write(key.tablet, &[op], &[key.hash]),
        };
        let Appended { lsn, block } = appended.map_err(refusal)?;
        self.written_after(wait, meta, block, durability, &Reply::Written { version: lsn }, out);
        Ok(Attempt::Done)
    }

    fn delete(
        &self,
        meta: Meta,
        key: &[u8],
        condition: Condition,
        durability: Durability,
        loaded: &Loaded,
        out: &mut Outputs,
    ) -> Result<Attempt<E>, Refusal> {
        let key = self.key(key)?;
        if self.room(false, key.bytes.len() + WRITE_OVERHEAD)? == Room::Wait {
            return Ok(Attempt::Wait);
        }
        let current = match self.current(&key, durability, loaded)? {
            Err(missing) => return Ok(Attempt::Missing(smallvec![missing])),
            Ok(current) => current,
        };
        Metrics::add(&self.metrics.deletes, 1);
        if !condition.holds(current.version) {
            out.after(current.wait, meta, &Reply::ConditionFailed { current: current.version });
            return Ok(Attempt::Done);
        }
        if current.version.is_none() {
            out.after(current.wait, meta, &Reply::Absent);
            return Ok(Attempt::Done);
        }
        let op = Op { kind: OpKind::Delete, key: key.bytes, value: b"", expiry_ms: 0 };
        self.write(meta, &key, op, durability, |version| Reply::Written { version }, out)
    }

    fn incr(
        &self,
        meta: Meta,
        key: &[u8],
        amount: i64,
        durability: Durability,
        loaded: &Loaded,
        out: &mut Outputs,
    ) -> Result<Attempt<E>, Refusal> {
        /// Digits of the longest 64-bit number, with its sign.
        const NUMBER_BYTES_MAX: usize = 20;
        let key = self.key(key)?;
        if self.room(true, key.bytes.len() + NUMBER_BYTES_MAX + WRITE_OVERHEAD)? == Room::Wait {
            return Ok(Attempt::Wait);
        }
        let lookup = self.engine.lookup(&key, loaded, |found| {
            let number = found.entry.map_or(Some(0), |entry| parse_number(entry.value));
            let expiry_ms = found.entry.map_or(0, |entry| entry.expiry_ms);
            (number, expiry_ms, self.observed(found.wait, durability))
        });
        let (number, expiry_ms, wait) = match lookup.map_err(refusal)? {
            Lookup::Missing(missing) => return Ok(Attempt::Missing(smallvec![missing])),
            Lookup::Done(current) => current,
        };
        Metrics::add(&self.metrics.incrs, 1);
        let sum = match number {
            None => Err(Refusal::new(Code::NotAnInteger, "the value is not a decimal 64-bit signed number")),
            Some(number) => number.checked_add(amount).ok_or_else(|| {
                let message = format!("{number} + {amount} is more than 64 signed bits hold");
                Refusal::new(Code::IncrementOverflow, message)
            }),
        };
        let sum = match sum {
            Ok(sum) => sum,
            Err(refusal) => {
                // It tells something of a value that may not be durable yet.
                Metrics::add(&self.metrics.refusals, 1);
                out.after(wait, meta, &Reply::Refused(refusal));
                return Ok(Attempt::Done);
            }
        };
        let value = sum.to_string();
        let op = self.put(&key, value.as_bytes(), expiry_ms);
        self.write(meta, &key, op, durability, |version| Reply::Counter { version, value: sum }, out)
    }

    pub(super) fn write(
        &self,
        meta: Meta,
        key: &Key<'_>,
        op: Op<'_>,
        durability: Durability,
        reply: impl FnOnce(Lsn) -> Reply<'static>,
        out: &mut Outputs,
    ) -> Result<Attempt<E>, Refusal> {
        let appended = self.engine.write(key.tablet, &[op], &[key.hash]).map_err(refusal)?;
        self.written(meta, appended.block, durability, &reply(appended.lsn), out);
        Ok(Attempt::Done)
    }

    pub(super) fn written(
        &self,
        meta: Meta,
        block: BlockSeq,
        durability: Durability,
        reply: &Reply<'_>,
        out: &mut Outputs,
    ) {
        if self.is_held(durability) {
            self.engine.wal().request_sync(block);
            out.after(Some(block), meta, reply);
        } else {
            out.ready(meta, reply);
        }
    }

    /// As [`Shard::written`], where the answer also tells of what `wait` holds.
    pub(super) fn written_after(
        &self,
        wait: Option<BlockSeq>,
        meta: Meta,
        block: BlockSeq,
        durability: Durability,
        reply: &Reply<'_>,
        out: &mut Outputs,
    ) {
        match durability {
            // The write's own block comes after, and is not waited for.
            Durability::Relaxed => out.after(wait, meta, reply),
            Durability::Default | Durability::Always => self.written(meta, block, durability, reply, out),
        }
    }

    pub(super) fn room(&self, is_put: bool, bytes: usize) -> Result<Room, Refusal> {
        let room = self.engine.room(is_put, bytes).map_err(refusal)?;
        self.is_short.set(self.is_short.get() || room == Room::Wait);
        Ok(room)
    }

    /// Whether a request that asked for `durability` is answered only with what is on disk.
    #[inline]
    fn is_held(&self, durability: Durability) -> bool {
        let is_held = match durability {
            Durability::Default => self.settings.is_durable,
            Durability::Always => true,
            Durability::Relaxed => false,
        };
        is_held && !planted(Bug::ReplyTooEarly)
    }

    /// The block that the answer to a request that asked for `durability` waits for, since it tells of what
    /// the block holds. In the relaxed sync modes nobody waits for what others wrote, unless they asked to:
    /// a condition that fails tells whoever repeats a write that it was applied.
    #[inline]
    pub(super) fn observed(&self, wait: Option<BlockSeq>, durability: Durability) -> Option<BlockSeq> {
        // Who need not wait for the own write waits for those of others as everybody does.
        let durability = if durability == Durability::Relaxed { Durability::Default } else { durability };
        let wait = wait.filter(|_| self.is_held(durability));
        if let Some(block) = wait {
            self.engine.wal().request_sync(block);
        }
        wait
    }

    /// Counters of this shard as lines of text.
    pub(super) fn stats_text(&self) -> String {
        use std::fmt::Write;
        let mut text = String::new();
        for (name, value) in self.engine.metrics().iter() {
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name}={value}");
        }
        text
    }
}

/// A decimal number as Redis takes it: no sign but a minus, no leading zeros, no spaces.
fn parse_number(value: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(value).ok()?;
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_canonical = match digits.as_bytes() {
        [b'0'] => digits.len() == text.len(),
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    is_canonical.then(|| text.parse().ok()).flatten()
}

/// The code and sentence for an engine's error.
pub(super) fn refusal(error: EngineError) -> Refusal {
    use crate::engine::sstable::TableError;
    use crate::engine::wal::WalError;
    let code = match &error {
        EngineError::Log(_) | EngineError::Manifest(ManifestError::Failed(_)) => Code::ShardFailed,
        EngineError::Flush(_) => Code::Io,
        EngineError::Stopping => Code::ShuttingDown,
        EngineError::Checkpoint(_) => Code::CheckpointFailed,
        EngineError::Full(_) => Code::DiskFull,
        EngineError::SnapshotOver => Code::SlotMoving,
        EngineError::TooManyRanges { .. } => Code::Overloaded,
        EngineError::RangeTooLong { .. } => Code::BatchTooLarge,
        EngineError::Table(TableError::Disk(_)) | EngineError::Disk(_) => Code::Io,
        EngineError::Table(_) => Code::Corrupt,
        EngineError::Wal(WalError::TooLarge { .. } | WalError::LongerThanSegment { .. }) => {
            Code::BatchTooLarge
        }
        EngineError::Wal(_) | EngineError::Manifest(_) => Code::Internal,
    };
    if matches!(code, Code::Corrupt | Code::Io | Code::Internal) {
        tracing::error!("a request failed: {error}");
    }
    Refusal::new(code, error.to_string())
}

/// That the reply to an MGET does not fit a frame.
pub(super) fn too_large(limit: usize) -> Refusal {
    let message =
        format!("the values of this MGET are more than a frame of {limit} bytes; ask for fewer keys");
    Refusal::new(Code::ReplyTooLarge, message)
}

/// The least a reply takes; for budgets.
pub(super) const REPLY_BYTES_MIN: usize = HEADER_BYTES;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_that_redis_takes() {
        for (text, number) in [("0", Some(0)), ("-1", Some(-1)), ("9223372036854775807", Some(i64::MAX))] {
            assert_eq!(parse_number(text.as_bytes()), number, "{text}");
        }
        for text in ["", "-", "-0", "+1", "01", " 1", "1 ", "9223372036854775808", "1e3", "\u{661}"] {
            assert_eq!(parse_number(text.as_bytes()), None, "{text:?}");
        }
    }
}
