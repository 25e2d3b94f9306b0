//! Executes what is about the time when a key expires. As all attempts, these change all or nothing.

use smallvec::smallvec;

use super::Shard;
use super::execute::{Attempt, refusal};
use super::outputs::{Meta, Outputs};
use crate::base::{BlockSeq, EXPIRY_MS_MAX, Lsn, Op, OpKind};
use crate::engine::{Key, Loaded, Lookup, Room, WRITE_OVERHEAD};
use crate::env::Env;
use crate::error::{Code, Refusal};
use crate::metrics::Metrics;
use crate::protocol::{Condition, Deadline, Durability, Lifetime, Reply};

/// A key's live entry, copied: the lookup ends before the write that stores it again.
struct Copied {
    version: Lsn,
    expiry_ms: u64,
    /// Empty where it will not be stored again.
    value: Vec<u8>,
}

impl<E: Env> Shard<E> {
    /// The absolute time that is logged: nothing that a replay sees depends on a clock.
    pub(super) fn expiry_ms(&self, deadline: Deadline) -> Result<u64, Refusal> {
        deadline.resolve(self.engine.now_ms()).ok_or_else(|| {
            let (Deadline::In(ms) | Deadline::At(ms)) = deadline;
            let message =
                format!("{ms} ms lead beyond the latest time there is, {EXPIRY_MS_MAX} ms after 1970");
            Refusal::new(Code::InvalidExpiry, message)
        })
    }

    /// The operation that stores a value until `expiry_ms`. If that is past already, nothing needs storing:
    /// a delete leaves what the put would.
    pub(super) fn put<'a>(&self, key: &Key<'a>, value: &'a [u8], expiry_ms: u64) -> Op<'a> {
        if expiry_ms != 0 && expiry_ms <= self.engine.now_ms() {
            return Op { kind: OpKind::Delete, key: key.bytes, value: b"", expiry_ms: 0 };
        }
        Op { kind: OpKind::Put, key: key.bytes, value, expiry_ms }
    }

    /// EXPIRE, and PERSIST, which has an `expiry_ms` of 0: stores a key's value once more, with another expiry.
    #[allow(clippy::too_many_arguments)] // the fields of the request, and where the answer goes
    pub(super) fn change_expiry(
        &self,
        meta: Meta,
        key: &[u8],
        expiry_ms: u64,
        condition: Condition,
        durability: Durability,
        loaded: &Loaded,
        out: &mut Outputs,
    ) -> Result<Attempt<E>, Refusal> {
        let key = self.key(key)?;
        let lookup = self.engine.lookup(&key, loaded, |found| {
            let copied = found.entry.map(|entry| {
                let is_changed = expiry_ms != 0 || entry.expiry_ms != 0;
                let is_stored = is_changed && condition.holds(Some(entry.lsn));
                let value = if is_stored { entry.value.to_vec() } else { Vec::new() };
                Copied { version: entry.lsn, expiry_ms: entry.expiry_ms, value }
            });
            (copied, found.wait)
        });
        let (current, wait) = match lookup.map_err(refusal)? {
            Lookup::Missing(missing) => return Ok(Attempt::Missing(smallvec![missing])),
            Lookup::Done(found) => found,
        };
        let version = current.as_ref().map(|current| current.version);
        if !condition.holds(version) {
            Metrics::add(&self.metrics.expires, 1);
            let reply = Reply::ConditionFailed { current: version };
            out.after(self.observed(wait, durability), meta, &reply);
            return Ok(Attempt::Done);
        }
        let Some(current) = current else {
            Metrics::add(&self.metrics.expires, 1);
            out.after(self.observed(wait, durability), meta, &Reply::Absent);
            return Ok(Attempt::Done);
        };
        if expiry_ms == 0 && current.expiry_ms == 0 {
            Metrics::add(&self.metrics.expires, 1);
            self.found_done(meta, wait, durability, &Reply::Written { version: current.version }, out);
            return Ok(Attempt::Done);
        }
        let op = self.put(&key, &current.value, expiry_ms);
        let bytes = op.key.len() + op.value.len() + WRITE_OVERHEAD;
        if self.room(op.kind == OpKind::Put, bytes)? == Room::Wait {
            return Ok(Attempt::Wait);
        }
        Metrics::add(&self.metrics.expires, 1);
        self.write(meta, &key, op, durability, |version| Reply::Written { version }, out)
    }

    /// Answers a write that found everything as it should be: as durable as if it had written that.
    fn found_done(
        &self,
        meta: Meta,
        wait: Option<BlockSeq>,
        durability: Durability,
        reply: &Reply<'_>,
        out: &mut Outputs,
    ) {
        match wait {
            Some(block) => self.written(meta, block, durability, reply, out),
            None => out.ready(meta, reply),
        }
    }

    pub(super) fn ttl(
        &self,
        meta: Meta,
        key: &[u8],
        loaded: &Loaded,
        out: &mut Outputs,
    ) -> Result<Attempt<E>, Refusal> {
        let now_ms = self.engine.now_ms();
        let current = match self.current(&self.key(key)?, Durability::Default, loaded)? {
            Err(missing) => return Ok(Attempt::Missing(smallvec![missing])),
            Ok(current) => current,
        };
        Metrics::add(&self.metrics.ttls, 1);
        let reply = match current.version {
            None => Reply::Absent,
            Some(version) => {
                let expires_at_ms = Some(current.expiry_ms).filter(|expiry_ms| *expiry_ms != 0);
                let lifetime = expires_at_ms.map(|expires_at_ms| Lifetime {
                    remaining_ms: expires_at_ms.saturating_sub(now_ms),
                    expires_at_ms,
                });
                Reply::Lifetime { version, lifetime }
            }
        };
        out.after(current.wait, meta, &reply);
        Ok(Attempt::Done)
    }
}
