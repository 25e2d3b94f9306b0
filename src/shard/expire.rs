//! Executes what is about the time when a key expires. As all attempts, these change all or nothing.

use smallvec::smallvec;

use super::Shard;
use super::execute::{Attempt, refusal};
use super::outputs::{Meta, Outputs};
use super::sliced::{self, Progress, Sliced, Sliver};
use crate::base::{BlockSeq, EXPIRY_MS_MAX, Lsn, Op, OpKind};
use crate::engine::wal::Appended;
use crate::engine::{Key, Loaded, Lookup, Room, Staged, WRITE_OVERHEAD};
use crate::env::Env;
use crate::error::{Code, Refusal};
use crate::metrics::Metrics;
use crate::protocol::{Condition, Deadline, Durability, Lifetime, Reply, Request};

/// How far a copy of a large value came in one step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Copy {
    /// All is there, or there is no large value any more.
    Whole,
    /// A part.
    Part,
    /// Nothing: others are staged at this moment.
    Unstaged,
}

/// A key's live entry, copied: the lookup ends before the write that stores it again.
struct Copied {
    version: Lsn,
    expiry_ms: u64,
    /// Empty where it will not be stored again, or is too long to be copied at once.
    value: Vec<u8>,
    is_long: bool,
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

    /// EXPIRE, and PERSIST, which has an `expiry_ms` of 0: stores a key's value once more, with another expiry. A large
    /// one must have been staged as it is now; while it was not, this says how the attempt would end otherwise, or that
    /// it takes long.
    #[allow(clippy::too_many_arguments)] // the fields of the request, and where the answer goes
    pub(super) fn change_expiry(
        &self,
        meta: Meta,
        key: &[u8],
        expiry_ms: u64,
        condition: Condition,
        durability: Durability,
        staged: &mut Option<Staged>,
        loaded: &Loaded,
        out: &mut Outputs,
    ) -> Result<Attempt<E>, Refusal> {
        let key = self.key(key)?;
        let is_past = self.is_past(expiry_ms);
        let lookup = self.engine.lookup(&key, loaded, |found| {
            let copied = found.entry.map(|entry| {
                let is_changed = expiry_ms != 0 || entry.expiry_ms != 0;
                let is_stored = is_changed && !is_past && condition.holds(Some(entry.lsn));
                let is_long = is_stored && entry.value.len() > sliced::BYTES_MAX;
                let value = if is_stored && !is_long { entry.value.to_vec() } else { Vec::new() };
                Copied { version: entry.lsn, expiry_ms: entry.expiry_ms, value, is_long }
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
        if current.is_long && staged.is_none() {
            return Ok(Attempt::Long);
        }
        let op = self.put(&key, &current.value, expiry_ms);
        let staged_len = staged.as_ref().filter(|_| current.is_long).map_or(0, Staged::value_len);
        let bytes = op.key.len() + op.value.len() + staged_len + WRITE_OVERHEAD;
        if self.room(op.kind == OpKind::Put, bytes)? == Room::Wait {
            return Ok(Attempt::Wait);
        }
        Metrics::add(&self.metrics.expires, 1);
        match staged.take_if(|_| current.is_long) {
            Some(staged) => {
                let appended = self.engine.write_restaged(key.tablet, key.bytes, expiry_ms, key.hash, staged);
                let Appended { lsn, block } = appended.map_err(refusal)?;
                self.written(meta, block, durability, &Reply::Written { version: lsn }, out);
                Ok(Attempt::Done)
            }
            None => self.write(meta, &key, op, durability, |version| Reply::Written { version }, out),
        }
    }

    /// Whether a key with this expiry is gone.
    fn is_past(&self, expiry_ms: u64) -> bool {
        expiry_ms != 0 && expiry_ms <= self.engine.now_ms()
    }

    /// The next step of EXPIRE or PERSIST of a key whose value is large: a piece of it is copied to where it is staged,
    /// or, once all of it is there, the write is done. `version` is what was copied so far; when another has taken its
    /// place it is begun again, and after some of that copied at once.
    pub(super) fn slice_of_expiry(
        &self,
        sliced: &mut Sliced,
        meta: Meta,
        request: &Request<'_>,
        loaded: &Loaded,
        out: &mut Outputs,
    ) -> Result<Sliver<E>, Refusal> {
        let (bytes, expiry_ms, condition, durability) = match *request {
            Request::Expire { key, deadline, condition, durability } => {
                (key, self.expiry_ms(deadline)?, condition, durability)
            }
            Request::Persist { key, condition, durability } => (key, 0, condition, durability),
            _ => unreachable!("no other request changes an expiry alone"),
        };
        let Progress { mut version, mut restarts } = sliced.progress_of_copy();
        let (key, staged) = (self.key(bytes)?, &mut sliced.staged);
        let lookup = self.engine.lookup(&key, loaded, |found| {
            let Some(entry) = found.entry.filter(|entry| entry.value.len() > sliced::BYTES_MAX) else {
                // It is quick now.
                *staged = None;
                return Copy::Whole;
            };
            if entry.lsn != version || staged.is_none() {
                restarts += u32::from(version != Lsn::ZERO && entry.lsn != version);
                version = entry.lsn;
                drop(staged.take()); // first, so that its own share is not in its way
                let op = Op {
                    kind: OpKind::Put,
                    key: key.bytes,
                    value: entry.value,
                    expiry_ms: u64::from(expiry_ms != 0),
                };
                *staged = self.engine.stage(&op);
            }
            let Some(staged) = staged else { return Copy::Unstaged };
            let step =
                if restarts > sliced::RESTARTS_MAX { entry.value.len() } else { sliced::BYTES_MAX / 2 };
            // What is copied at once is written at once: others may be ahead of it again otherwise.
            match staged.fill(entry.value, step) {
                true => Copy::Whole,
                false => Copy::Part,
            }
        });
        let copied = match lookup.map_err(refusal)? {
            Lookup::Missing(block) => {
                loaded.forget_reads();
                return Ok(Sliver::Missing(smallvec![block]));
            }
            Lookup::Done(copied) => copied,
        };
        sliced.note_copy(Progress { version, restarts });
        if copied != Copy::Whole || self.writes_held.get() {
            loaded.forget_reads();
            return Ok(if copied == Copy::Part { Sliver::More } else { Sliver::Wait });
        }
        let attempt = self.change_expiry(
            meta,
            bytes,
            expiry_ms,
            condition,
            durability,
            &mut sliced.staged,
            loaded,
            out,
        )?;
        Ok(self.sliver_of(attempt, loaded))
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
