//! MULTI, EXEC and WATCH.

use super::answer::What;
use super::refusal::CROSS_SLOT;
use super::{Session, Step};
use crate::base::Lsn;
use crate::protocol::binary::{Step as Part, StepList, Watch, WatchList, encode_request};
use crate::protocol::resp::{self, Proto};
use crate::protocol::{Durability, Request, Transaction};
use crate::redis::command::Command;
use crate::redis::evaluate::evaluate;
use crate::redis::keyspace::MemoryKeyspace;
use crate::redis::table::{self, Flags};
use crate::slot::Slot;

/// What is said, beside that it crosses slots, of a transaction that names too much.
const TOO_LONG: &str = "EXECABORT Transaction discarded because it is longer than a command may be";

/// Keys that a connection may watch: their versions are asked for one after the other.
const WATCHED_MAX: usize = 1_024;

/// Bytes of them together.
const WATCHED_BYTES_MAX: usize = 128 << 10;

/// Commands since MULTI.
#[derive(Default)]
pub(super) struct Queue {
    steps: StepList,
    count: usize,
    /// A key of those that they name.
    key: Option<Vec<u8>>,
    crosses_slots: bool,
    is_too_long: bool,
    /// A command was refused.
    is_faulty: bool,
    may_write: bool,
}

/// Keys that WATCH named, and what was found.
#[derive(Default)]
pub(super) struct Watched {
    keys: Vec<Vec<u8>>,
    /// Of those whose versions have come, in the same order.
    versions: Vec<Option<Lsn>>,
    asked: usize,
    is_failed: bool,
}

impl Watched {
    /// Bytes that it keeps.
    pub fn bytes(&self) -> usize {
        self.keys.iter().map(Vec::len).sum()
    }

    pub fn seen(&mut self, version: Option<Lsn>) {
        self.versions.push(version);
    }

    /// A version could not be found: the transaction fails, as if the key had changed.
    pub fn failed(&mut self) {
        self.is_failed = true;
        self.versions.resize(self.asked, None);
    }
}

impl Queue {
    /// Bytes that it keeps.
    pub fn bytes(&self) -> usize {
        self.steps.wire_len()
    }

    /// Whether a command in it may write.
    pub fn may_write(&self) -> bool {
        self.may_write
    }

    /// Commands in it.
    pub fn len(&self) -> usize {
        self.count
    }
}

impl Session {
    /// What was watched is watched no more.
    pub(super) fn forget_watched(&mut self) {
        self.watched = Watched::default();
    }

    /// EXEC with arguments: the transaction is given up.
    pub(super) fn abort(&mut self) {
        self.queue = None;
        self.forget_watched();
        self.say_error(
            "EXECABORT Transaction discarded because of: wrong number of arguments for 'exec' command",
        );
    }

    /// Notes that a command of a transaction was refused.
    pub(super) fn flag_fault(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.is_faulty = true;
        }
    }

    /// Keeps a command for EXEC.
    pub(super) fn enqueue(&mut self, args: &[&[u8]], keys: &[&[u8]]) {
        let (bytes_max, items_max) =
            (self.context.command_limits.command_bytes_max, self.context.limits.items_max);
        let Some(queue) = &mut self.queue else { return };
        for key in keys {
            match &queue.key {
                None => queue.key = Some(key.to_vec()),
                Some(other) => queue.crosses_slots |= Slot::of_key(other) != Slot::of_key(key),
            }
        }
        queue.count += 1;
        queue.may_write |=
            !queue.is_faulty && table::find(args[0]).is_some_and(|spec| spec.flags.has(Flags::WRITE));
        let bytes: usize = args.iter().map(|arg| arg.len() + 4).sum();
        queue.is_too_long |= queue.steps.wire_len() + bytes > bytes_max || queue.count > items_max as usize;
        if !queue.is_too_long {
            queue.steps.command(args);
        }
        self.say(|out, _| resp::simple(out, "QUEUED"));
    }

    /// Keeps a reply for EXEC that needs no key.
    pub(super) fn enqueue_reply(&mut self, encode: impl FnOnce(&mut Vec<u8>, Proto)) {
        let mut reply = Vec::new();
        encode(&mut reply, self.proto);
        if let Some(queue) = &mut self.queue {
            queue.count += 1;
            queue.is_too_long |=
                queue.steps.wire_len() + reply.len() > self.context.command_limits.command_bytes_max;
            if !queue.is_too_long {
                queue.steps.reply(&reply);
            }
        }
        self.say(|out, _| resp::simple(out, "QUEUED"));
    }

    pub(super) fn multi(&mut self) {
        if self.queue.is_some() {
            self.say_error("ERR MULTI calls can not be nested");
        } else {
            self.queue = Some(Queue::default());
            self.say_ok();
        }
    }

    pub(super) fn discard(&mut self) {
        if self.queue.take().is_some() {
            self.watched = Watched::default();
            self.say_ok();
        } else {
            self.say_error("ERR DISCARD without MULTI");
        }
    }

    pub(super) fn watch(&mut self, args: &[&[u8]], frames: &mut Vec<u8>) -> Step {
        if self.queue.is_some() {
            self.say_error("ERR WATCH inside MULTI is not allowed");
            return Step::Taken;
        }
        // Nothing behind it is taken in before all versions have come: it might change a key that is still asked for.
        if !self.pending.is_empty() {
            return Step::Wait;
        }
        let most = self.context.limits.key_bytes_max as usize;
        if let Some(bad) = args[1..].iter().find(|key| !(1..=most).contains(&key.len())) {
            self.say_error(&format!("ERR a key has 1 to {most} bytes, and this one {}", bad.len()));
            return Step::Taken;
        }
        // One at a time, so that the versions are in the order of the keys: that of a shard's answers is any.
        if args.len() > 1 + WATCHED_MAX {
            self.say_error(&format!("ERR more than {WATCHED_MAX} keys can't be watched"));
            return Step::Taken;
        }
        let mut new: Vec<&[u8]> = Vec::new();
        for key in &args[1..] {
            if !new.contains(key) && !self.watched.keys.iter().any(|known| known == key) {
                new.push(key);
            }
        }
        if self.watched.keys.len() + new.len() > WATCHED_MAX {
            self.say_error(&format!("ERR more than {WATCHED_MAX} keys can't be watched"));
            return Step::Taken;
        }
        if self.watched.bytes() + new.iter().map(|key| key.len()).sum::<usize>() > WATCHED_BYTES_MAX {
            self.say_error(&format!(
                "ERR keys of more than {WATCHED_BYTES_MAX} bytes together can't be watched"
            ));
            return Step::Taken;
        }
        if new.is_empty() {
            self.say_ok();
            return Step::Taken;
        }
        self.watched.asked += new.len();
        self.watched.keys.extend(new.iter().map(|key| key.to_vec()));
        encode_request(frames, self.pending.next(), &Request::Ttl { key: new[0] });
        let rest = new[1..].iter().rev().map(|key| key.to_vec()).collect();
        self.expect(What::Watch { rest }, None);
        self.is_exclusive = true;
        Step::Taken
    }

    pub(super) fn unwatch(&mut self) {
        // Within MULTI it comes too late to change anything.
        if self.queue.is_some() {
            return self.enqueue_reply(|out, _| resp::simple(out, "OK"));
        }
        self.watched = Watched::default();
        self.say_ok();
    }

    pub(super) fn exec(&mut self, frames: &mut Vec<u8>) -> Step {
        if self.queue.is_none() {
            self.say_error("ERR EXEC without MULTI");
            return Step::Taken;
        }
        let Some(queue) = self.queue.take() else { return Step::Taken };
        let watched = std::mem::take(&mut self.watched);
        if queue.is_faulty {
            self.say_error("EXECABORT Transaction discarded because of previous errors.");
            return Step::Taken;
        }
        if queue.is_too_long {
            self.say_error(TOO_LONG);
            return Step::Taken;
        }
        if watched.is_failed {
            self.say(resp::null_array);
            return Step::Taken;
        }
        let Some(key) = queue.key.as_ref().or(watched.keys.first()) else {
            self.say(|out, proto| {
                resp::array(out, queue.count);
                replies_of(&queue.steps, proto, out);
            });
            return Step::Taken;
        };
        let slot = Slot::of_key(key);
        if queue.crosses_slots || watched.keys.iter().any(|other| Slot::of_key(other) != slot) {
            self.say_error(CROSS_SLOT);
            return Step::Taken;
        }
        if let Some(elsewhere) = self.elsewhere(slot) {
            self.say_error(&elsewhere);
            return Step::Taken;
        }
        let mut watches = WatchList::default();
        for (key, version) in watched.keys.iter().zip(&watched.versions) {
            watches.push(Watch { key, version: *version });
        }
        let transaction = Transaction {
            key,
            is_resp3: self.proto == Proto::Resp3,
            is_array: true,
            watches: watches.watches(),
            steps: queue.steps.steps(),
            durability: Durability::Default,
        };
        let start = frames.len();
        encode_request(frames, self.pending.next(), &Request::Transact(transaction));
        if self.is_too_long(frames.len() - start) {
            frames.truncate(start);
            self.say_error(TOO_LONG);
            return Step::Taken;
        }
        self.expect(What::Resp, Some(slot));
        Step::Taken
    }
}

/// The replies of a transaction that names no keys.
fn replies_of(steps: &StepList, proto: Proto, out: &mut Vec<u8>) {
    for step in steps.steps() {
        match step {
            Part::Reply(reply) => out.extend_from_slice(reply),
            Part::Command(words) => {
                let words: Vec<&[u8]> = words.collect();
                match Command::parse(&words) {
                    Ok(command) => {
                        let Ok(()) = evaluate(&command, &mut MemoryKeyspace::new(0), proto, out);
                    }
                    Err(fault) => fault.write(&words, out),
                }
            }
        }
    }
}
