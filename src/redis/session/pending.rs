//! Replies in the order of their commands, some of which have not come yet.

use std::collections::VecDeque;

use super::answer::What;
use super::errors;
use crate::metrics::Metrics;
use crate::protocol::resp::Proto;
use crate::slot::Slot;

/// A command whose reply has not left.
pub(super) struct Expected {
    /// What becomes of what the shards answer.
    pub what: What,
    /// Whose owner alone answers it.
    pub slot: Option<Slot>,
    /// How to encode it.
    pub proto: Proto,
    /// CLIENT REPLY says that it is not wanted.
    pub is_silent: bool,
    /// The reply, once it is known.
    pub reply: Option<Vec<u8>>,
}

/// There may be thousands, of each of many connections.
const _: () = assert!(size_of::<Expected>() <= 72);

/// Commands for which room is kept while there are none.
const KEPT: usize = 64;

/// Commands whose replies have not left, oldest first. Each has a number, the request id of its frames.
#[derive(Default)]
pub(super) struct Pending {
    first: u64,
    list: VecDeque<Expected>,
    /// Of replies that wait for others before them.
    bytes: usize,
}

impl Pending {
    /// The number of the first whose reply has not left.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The number that the next one gets.
    pub fn next(&self) -> u64 {
        self.first + self.list.len() as u64
    }

    pub fn push(&mut self, expected: Expected) {
        self.bytes += expected.reply.as_ref().map_or(0, Vec::len);
        self.list.push_back(expected);
    }

    /// The one with this number, if its reply is not known yet.
    pub fn get(&mut self, number: u64) -> Option<&mut Expected> {
        let index = usize::try_from(number.checked_sub(self.first)?).ok()?;
        self.list.get_mut(index).filter(|expected| expected.reply.is_none())
    }

    /// The reply to the command of this number.
    pub fn answered(&mut self, number: u64, reply: Vec<u8>) {
        if let Some(expected) = self.get(number) {
            expected.reply = Some(reply);
            self.bytes += self.reply_len(number);
        }
    }

    fn reply_len(&self, number: u64) -> usize {
        let index = (number - self.first) as usize;
        self.list[index].reply.as_ref().map_or(0, Vec::len)
    }

    /// Moves the replies that nothing is before to `out`. Errors among them are counted.
    pub fn release(&mut self, out: &mut Vec<u8>, metrics: &Metrics) {
        while let Some(reply) = self.list.front_mut().and_then(|expected| expected.reply.take()) {
            self.bytes -= reply.len();
            self.first += 1;
            let is_silent = self.list.pop_front().is_none_or(|expected| expected.is_silent);
            if is_silent {
                continue;
            }
            errors::count(metrics, &reply);
            if out.is_empty() { *out = reply } else { out.extend_from_slice(&reply) }
        }
        if self.list.is_empty() && self.list.capacity() > KEPT {
            self.list = VecDeque::new();
        }
    }

    /// The reply to the first command has been written to `out`, behind its first `before` bytes.
    pub fn first_is_written(&mut self, out: &mut Vec<u8>, before: usize, metrics: &Metrics) {
        self.first += 1;
        match self.list.pop_front() {
            Some(expected) if !expected.is_silent => errors::count(metrics, &out[before..]),
            _ => out.truncate(before),
        }
    }

    /// What becomes of what the shards answer to the first.
    pub fn front(&self) -> Option<&What> {
        self.list.front().map(|expected| &expected.what)
    }

    /// The slot of the first, if its reply is not known.
    pub fn first_slot(&self) -> Option<Slot> {
        self.list.front().and_then(|expected| expected.slot)
    }

    /// Bytes that it takes itself, beside replies.
    pub fn own_bytes(&self) -> usize {
        self.list.len() * size_of::<Expected>()
    }

    /// Commands whose replies have not left.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Bytes of replies that wait for others before them.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
