//! [`Command`] + [`Keyspace`] → reply.
//!
//! A command looks up first and writes last, and finds its faults before it writes anything.

mod bitfield;
mod bits;
mod expiry;
mod keys;
mod lcs;
mod strings;

pub use lcs::CELLS_MAX as LCS_CELLS_MAX;

use super::command::Command;
use super::fault::Fault;
use super::keyspace::{Cell, Keyspace, Meta};
use crate::protocol::resp::{self, Proto};

/// Evaluates one command and appends its reply, be it an error.
///
/// `Err` means that a lookup stopped: then nothing of this evaluation counts, neither what was put into
/// `space` nor what was appended to `out`. It is the caller who throws it away.
pub fn evaluate<K: Keyspace>(
    command: &Command<'_>,
    space: &mut K,
    proto: Proto,
    out: &mut Vec<u8>,
) -> Result<(), K::Stop> {
    let start = out.len();
    match (Run { space, proto, out }).command(command) {
        Ok(()) => Ok(()),
        Err(Halt::Stop(stop)) => Err(stop),
        Err(Halt::Fault(fault)) => {
            out.truncate(start);
            fault.write(&[], out);
            Ok(())
        }
    }
}

/// Why an evaluation does not come to its end.
enum Halt<S> {
    Stop(S),
    Fault(Fault),
}

impl<S> From<Fault> for Halt<S> {
    fn from(fault: Fault) -> Halt<S> {
        Halt::Fault(fault)
    }
}

type Outcome<T, K> = Result<T, Halt<<K as Keyspace>::Stop>>;

/// One evaluation: what it reads and writes, and where its reply goes.
struct Run<'r, K: Keyspace> {
    space: &'r mut K,
    proto: Proto,
    out: &'r mut Vec<u8>,
}

impl<K: Keyspace> Run<'_, K> {
    fn command(&mut self, command: &Command<'_>) -> Outcome<(), K> {
        match command {
            Command::Get { key } => self.reply_value(key),
            Command::Set(set) => self.set(set),
            Command::GetDel { key } => self.getdel(key),
            Command::GetEx { key, change } => self.getex(key, *change),
            Command::MGet { keys } => self.mget(keys),
            Command::MSet { pairs, only_new } => self.mset(pairs, *only_new),
            Command::Append { key, tail } => self.append(key, tail),
            Command::StrLen { key } => self.strlen(key),
            Command::GetRange { key, start, end, .. } => self.getrange(key, *start, *end),
            Command::SetRange { key, offset, bytes } => self.setrange(key, *offset, bytes),
            Command::Add { key, delta, .. } => self.add(key, *delta),
            Command::AddFloat { key, delta } => self.add_float(key, *delta),
            Command::Lcs(lcs) => self.lcs(lcs),
            Command::Delete { keys, .. } => self.delete_keys(keys),
            Command::Count { keys, .. } => self.count(keys),
            Command::Type { key } => self.type_of(key),
            Command::Rename { source, target, only_new } => self.rename(source, target, *only_new),
            Command::Copy { source, target, replaces } => self.copy(source, target, *replaces),
            Command::Expire(expire) => self.expire(expire),
            Command::Ttl { key, in_ms, is_absolute, .. } => self.ttl(key, *in_ms, *is_absolute),
            Command::Persist { key } => self.persist(key),
            Command::SetBit { key, offset, bit } => self.setbit(key, *offset, *bit),
            Command::GetBit { key, offset } => self.getbit(key, *offset),
            Command::BitCount { key, range } => self.bitcount(key, *range),
            Command::BitPos { key, bit, range } => self.bitpos(key, *bit, *range),
            Command::BitOp { operation, target, sources } => self.bitop(*operation, target, sources),
            Command::BitField(field) => self.bitfield(field),
            Command::Object { key, question } => self.object(key, *question),
            Command::ObjectHelp => self.object_help(),
            Command::MemoryUsage { key } => self.memory_usage(key),
        }
    }

    fn get(&mut self, key: &[u8]) -> Outcome<Option<Cell<'_>>, K> {
        self.space.get(key).map_err(Halt::Stop)
    }

    fn peek(&mut self, key: &[u8]) -> Outcome<Option<Meta>, K> {
        self.space.peek(key).map_err(Halt::Stop)
    }

    fn exists(&mut self, key: &[u8]) -> Outcome<bool, K> {
        Ok(self.peek(key)?.is_some())
    }

    /// Writes a value. One that is stored may be longer than may be now: the limit was another when it was written.
    fn put(&mut self, key: &[u8], value: Vec<u8>, expiry_ms: u64) -> Outcome<(), K> {
        self.check_len(value.len())?;
        self.space.put(key, value, expiry_ms);
        Ok(())
    }

    /// That a value of so many bytes may be put.
    fn check_len(&self, len: usize) -> Result<(), Fault> {
        if len <= self.space.value_bytes_max() { Ok(()) } else { Err(Fault::TooLong) }
    }

    /// The key's value, or a null, as the reply.
    fn reply_value(&mut self, key: &[u8]) -> Outcome<(), K> {
        match self.space.get(key).map_err(Halt::Stop)? {
            Some(cell) => resp::bulk(self.out, &cell.value),
            None => resp::null(self.out, self.proto),
        }
        Ok(())
    }

    fn integer(&mut self, number: i64) -> Outcome<(), K> {
        resp::integer(self.out, number);
        Ok(())
    }

    fn len(&mut self, len: usize) -> Outcome<(), K> {
        self.integer(signed(len))
    }

    fn ok(&mut self) -> Outcome<(), K> {
        resp::simple(self.out, "OK");
        Ok(())
    }

    fn null(&mut self) -> Outcome<(), K> {
        resp::null(self.out, self.proto);
        Ok(())
    }
}

/// A length as a number to reckon with. Nothing in memory is longer.
fn signed(len: usize) -> i64 {
    i64::try_from(len).unwrap_or(i64::MAX)
}

/// Whether a first and a last index, both from the end, stand in the wrong order. Most commands take that for
/// an empty range; without a look at this, two that are both beyond the beginning would mean the first place.
fn is_reversed(start: i64, end: i64) -> bool {
    start < 0 && end < 0 && start > end
}

/// The part of `len` that Redis means by a first and a last index, each from the end if negative: what lies
/// beyond either end is left out. Nothing, if that is empty.
fn clamp_range(start: i64, end: i64, len: i64) -> Option<(i64, i64)> {
    let from_start = |index: i64| if index < 0 { (index + len).max(0) } else { index };
    let (start, end) = (from_start(start), from_start(end).min(len - 1));
    (start <= end).then_some((start, end))
}
