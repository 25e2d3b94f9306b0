//! Commands on keys that are named: what is asked of the shards.

use smallvec::SmallVec;

use super::answer::What;
use super::refusal::CROSS_SLOT;
use super::{Session, Step};
use crate::base::{ENTRY_BYTES_MAX, EXPIRY_MS_MAX};
use crate::protocol::binary::{KeyList, OpList, StepList, Watches, encode_request};
use crate::protocol::resp::Proto;
use crate::protocol::{Action, BatchOp, Condition, Deadline, Durability, Expiry, Request, Transaction};
use crate::redis::command::{self, Command, Expire, Set, SetExpiry, SyncWish, Time};
use crate::slot::Slot;

impl Session {
    /// Asks for what a command wants. `args` are those that it was made of.
    pub(super) fn translate(&mut self, args: &[&[u8]], command: Command<'_>, frames: &mut Vec<u8>) -> Step {
        let number = self.pending.next();
        let (start, mut longest) = (frames.len(), 0);
        let mut ask = |request: Request<'_>| {
            let before = frames.len();
            encode_request(frames, number, &request);
            longest = longest.max(frames.len() - before);
        };
        let durability = Durability::Default;
        let what = match &command {
            Command::Get { key } => {
                ask(Request::Get { key });
                What::Value
            }
            Command::Set(set) => match request_of_set(set) {
                Some(request) => {
                    ask(request);
                    if set.name == "setnx" { What::IsSet } else { What::Set }
                }
                None => return self.transact(args, &command, durability_of(set.durability), frames),
            },
            Command::Add { key, delta, .. } => {
                ask(Request::Incr { key, amount: *delta, durability });
                What::Sum
            }
            Command::Delete { keys, .. } => {
                let condition = Condition::None;
                keys.iter().for_each(|key| ask(Request::Delete { key, condition, durability }));
                What::Number { left: keys.len(), sum: 0 }
            }
            Command::Count { keys, .. } => {
                keys.iter().for_each(|key| ask(Request::Ttl { key }));
                What::Number { left: keys.len(), sum: 0 }
            }
            Command::Type { key } => {
                ask(Request::Ttl { key });
                What::Type
            }
            Command::Ttl { key, in_ms, is_absolute, .. } => {
                ask(Request::Ttl { key });
                What::Ttl { in_ms: *in_ms, is_absolute: *is_absolute }
            }
            Command::Expire(expire) => match request_of_expire(expire) {
                Some(request) => {
                    ask(request);
                    What::IsThere
                }
                None => return self.transact(args, &command, durability, frames),
            },
            Command::MGet { keys } if keys.len() <= self.context.limits.items_max as usize => {
                let mut list = KeyList::default();
                keys.iter().for_each(|key| list.push(key));
                ask(Request::Mget { keys: list.keys() });
                What::Values
            }
            Command::MSet { pairs, only_new: false } => {
                let left = ask_for_pairs(pairs, ask);
                What::All { left }
            }
            _ => return self.transact(args, &command, durability, frames),
        };
        if self.is_too_long(longest) {
            frames.truncate(start);
            self.say_too_long();
            return Step::Taken;
        }
        let keys = command.keys();
        self.expect(what, (keys.len() == 1).then(|| Slot::of_key(keys[0])));
        Step::Taken
    }

    /// Whether a frame is longer than any shard takes.
    pub(super) fn is_too_long(&self, frame_bytes: usize) -> bool {
        frame_bytes > self.context.limits.frame_bytes_max as usize
    }

    fn say_too_long(&mut self) {
        let most = self.context.limits.frame_bytes_max;
        self.say_error(&format!("ERR this command takes more than the {most} bytes of a frame; divide it"));
    }

    /// Has the owner of its keys evaluate a command.
    fn transact(
        &mut self,
        args: &[&[u8]],
        command: &Command<'_>,
        durability: Durability,
        frames: &mut Vec<u8>,
    ) -> Step {
        let keys = command.keys();
        // Without a key any shard would do; that of this one is asked, since there is no other way.
        let key = keys.first().copied().unwrap_or(b"-");
        if keys.iter().any(|other| Slot::of_key(other) != Slot::of_key(key)) {
            self.say_error(CROSS_SLOT);
            return Step::Taken;
        }
        let mut steps = StepList::default();
        steps.command(args);
        let transaction = Transaction {
            key,
            is_resp3: self.proto == Proto::Resp3,
            is_array: false,
            watches: Watches::default(),
            steps: steps.steps(),
            durability,
        };
        let start = frames.len();
        encode_request(frames, self.pending.next(), &Request::Transact(transaction));
        if self.is_too_long(frames.len() - start) {
            frames.truncate(start);
            self.say_too_long();
            return Step::Taken;
        }
        self.expect(What::Resp, Some(Slot::of_key(key)));
        Step::Taken
    }
}

/// What SYNC and NOSYNC ask for.
fn durability_of(wish: Option<SyncWish>) -> Durability {
    match wish {
        None => Durability::Default,
        Some(SyncWish::Sync) => Durability::Always,
        Some(SyncWish::NoSync) => Durability::Relaxed,
    }
}

/// The SET that does the same, if there is one.
fn request_of_set<'a>(set: &Set<'a>) -> Option<Request<'a>> {
    if set.returns_old {
        return None;
    }
    let condition = match set.condition {
        command::Condition::Always => Condition::None,
        command::Condition::Absent => Condition::IfAbsent,
        command::Condition::Present => Condition::IfPresent,
    };
    let expiry = match set.expiry {
        SetExpiry::Clear => Expiry::Never,
        SetExpiry::Keep => Expiry::Keep,
        SetExpiry::To(time) => Expiry::Set(deadline(time)?),
    };
    let durability = durability_of(set.durability);
    Some(Request::Set { key: set.key, value: set.value, expiry, condition, durability })
}

/// The EXPIRE or DELETE that does the same, if there is one.
fn request_of_expire<'a>(expire: &Expire<'a>) -> Option<Request<'a>> {
    let Expire { key, time, only_new: false, only_existing: false, only: None, .. } = *expire else {
        return None;
    };
    let (condition, durability) = (Condition::None, Durability::Default);
    match time {
        Time::In(..=0) | Time::At(..=0) => Some(Request::Delete { key, condition, durability }),
        time => Some(Request::Expire { key, deadline: deadline(time)?, condition, durability }),
    }
}

/// The time as requests have it. `None` where one would be refused that Redis takes.
fn deadline(time: Time) -> Option<Deadline> {
    // Half of what there is, so that no sum of now and a time to live is beyond it for some thousand years.
    let within = |ms: i64| u64::try_from(ms).ok().filter(|ms| (1..=EXPIRY_MS_MAX / 2).contains(ms));
    match time {
        Time::In(ms) => within(ms).map(Deadline::In),
        Time::At(ms) => within(ms).map(Deadline::At),
    }
}

/// Asks for all pairs, those of a slot as one batch; by how many requests.
fn ask_for_pairs(pairs: &[(&[u8], &[u8])], mut ask: impl FnMut(Request<'_>)) -> usize {
    let durability = Durability::Default;
    let mut slots: SmallVec<[(Slot, usize); 8]> =
        pairs.iter().enumerate().map(|(index, (key, _))| (Slot::of_key(key), index)).collect();
    // By slot, and within one in the order of the arguments: the last value of a key is the one that stays.
    slots.sort_unstable_by_key(|(slot, index)| (slot.number(), *index));
    let mut count = 0;
    for group in slots.chunk_by(|(one, _), (other, _)| one == other) {
        let values = || group.iter().map(|(_, index)| pairs[*index]);
        let bytes: usize = values().map(|(key, value)| key.len() + value.len()).sum();
        count += 1;
        if group.len() == 1 {
            let (key, value) = pairs[group[0].1];
            ask(Request::Set { key, value, expiry: Expiry::Never, condition: Condition::None, durability });
            continue;
        }
        let mut ops = OpList::default();
        for (key, value) in values() {
            let action = Action::Put { value, expiry: Expiry::Never };
            ops.push(&BatchOp { key, action, condition: Condition::None });
        }
        debug_assert!(bytes <= ENTRY_BYTES_MAX || ops.ops().len() > 1, "a large one is refused by its owner");
        ask(Request::Batch { ops: ops.ops(), durability });
    }
    count
}
