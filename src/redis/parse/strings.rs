//! Commands that read and write values.

use std::slice::Iter;

use smallvec::SmallVec;

use super::{at_least, exactly, integer, is};
use crate::redis::command::{
    Command, Condition, ExpiryChange, Lcs, LcsAnswer, Set, SetExpiry, SyncWish, Time,
};
use crate::redis::extended::Extended;
use crate::redis::fault::Fault;

/// An option of SET or GETEX that says what becomes of the expiry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ExpiryOption {
    Ex,
    Px,
    ExAt,
    PxAt,
    KeepTtl,
    Persist,
}

impl ExpiryOption {
    /// One of those that a number follows.
    #[inline]
    fn with_number(word: &[u8]) -> Option<ExpiryOption> {
        if is(word, "ex") {
            Some(ExpiryOption::Ex)
        } else if is(word, "px") {
            Some(ExpiryOption::Px)
        } else if is(word, "exat") {
            Some(ExpiryOption::ExAt)
        } else if is(word, "pxat") {
            Some(ExpiryOption::PxAt)
        } else {
            None
        }
    }

    fn time(self, number: &[u8], name: &'static str) -> Result<Time, Fault> {
        let in_ms = matches!(self, ExpiryOption::Px | ExpiryOption::PxAt);
        let ms = positive_ms(number, in_ms, name)?;
        let is_relative = matches!(self, ExpiryOption::Ex | ExpiryOption::Px);
        Ok(if is_relative { Time::In(ms) } else { Time::At(ms) })
    }
}

/// The one option about the expiry and its number. The same may be given again, and the last counts; any
/// other is a mistake.
#[derive(Default)]
struct ExpiryOptions<'a> {
    given: Option<(ExpiryOption, &'a [u8])>,
}

impl<'a> ExpiryOptions<'a> {
    fn give(&mut self, option: ExpiryOption, number: &'a [u8]) -> Result<(), Fault> {
        if self.given.is_some_and(|(earlier, _)| earlier != option) {
            return Err(Fault::Syntax);
        }
        self.given = Some((option, number));
        Ok(())
    }

    fn give_with_number(&mut self, word: &[u8], words: &mut Iter<'_, &'a [u8]>) -> Result<(), Fault> {
        let option = ExpiryOption::with_number(word).ok_or(Fault::Syntax)?;
        self.give(option, words.next().ok_or(Fault::Syntax)?)
    }
}

/// A time that the command refuses if it is not positive.
fn positive_ms(number: &[u8], in_ms: bool, name: &'static str) -> Result<i64, Fault> {
    let number = integer(number)?;
    let ms = if in_ms { Some(number) } else { number.checked_mul(1000) };
    ms.filter(|ms| *ms > 0).ok_or(Fault::ExpireTime(name))
}

/// SET without options, under a name.
#[inline]
fn plain<'a>(key: &'a [u8], value: &'a [u8], name: &'static str) -> Set<'a> {
    Set {
        key,
        value,
        condition: Condition::Always,
        expiry: SetExpiry::Clear,
        returns_old: false,
        durability: None,
        name,
    }
}

#[inline]
pub(super) fn set<'a>(args: &[&'a [u8]]) -> Result<Command<'a>, Fault> {
    let ([key, value], options) = at_least(args, "set")?;
    let mut set = plain(key, value, "set");
    if !options.is_empty() {
        set_options(&mut set, options)?;
    }
    Ok(Command::Set(set))
}

fn set_options<'a>(set: &mut Set<'a>, options: &[&'a [u8]]) -> Result<(), Fault> {
    let mut expiry = ExpiryOptions::default();
    let mut words = options.iter();
    while let Some(&word) = words.next() {
        if is(word, "nx") && set.condition != Condition::Present {
            set.condition = Condition::Absent;
        } else if is(word, "xx") && set.condition != Condition::Absent {
            set.condition = Condition::Present;
        } else if is(word, "get") {
            set.returns_old = true;
        } else if is(word, "keepttl") {
            expiry.give(ExpiryOption::KeepTtl, b"")?;
        } else if is(word, "sync") && set.durability != Some(SyncWish::NoSync) {
            set.durability = Some(SyncWish::Sync);
        } else if is(word, "nosync") && set.durability != Some(SyncWish::Sync) {
            set.durability = Some(SyncWish::NoSync);
        } else {
            expiry.give_with_number(word, &mut words)?;
        }
    }
    set.expiry = match expiry.given {
        None => SetExpiry::Clear,
        Some((ExpiryOption::KeepTtl, _)) => SetExpiry::Keep,
        Some((option, number)) => SetExpiry::To(option.time(number, set.name)?),
    };
    Ok(())
}

pub(super) fn setnx<'a>(args: &[&'a [u8]]) -> Result<Command<'a>, Fault> {
    let [key, value] = exactly(args, "setnx")?;
    Ok(Command::Set(Set { condition: Condition::Absent, ..plain(key, value, "setnx") }))
}

pub(super) fn setex<'a>(args: &[&'a [u8]], in_ms: bool, name: &'static str) -> Result<Command<'a>, Fault> {
    let [key, number, value] = exactly(args, name)?;
    let expiry = SetExpiry::To(Time::In(positive_ms(number, in_ms, name)?));
    Ok(Command::Set(Set { expiry, ..plain(key, value, name) }))
}

pub(super) fn getset<'a>(args: &[&'a [u8]]) -> Result<Command<'a>, Fault> {
    let [key, value] = exactly(args, "getset")?;
    Ok(Command::Set(Set { returns_old: true, ..plain(key, value, "getset") }))
}

pub(super) fn getex<'a>(args: &[&'a [u8]]) -> Result<Command<'a>, Fault> {
    let ([key], options) = at_least(args, "getex")?;
    let mut expiry = ExpiryOptions::default();
    let mut words = options.iter();
    while let Some(&word) = words.next() {
        if is(word, "persist") {
            expiry.give(ExpiryOption::Persist, b"")?;
        } else {
            expiry.give_with_number(word, &mut words)?;
        }
    }
    let change = match expiry.given {
        None => ExpiryChange::Keep,
        Some((ExpiryOption::Persist, _)) => ExpiryChange::Clear,
        Some((option, number)) => ExpiryChange::To(option.time(number, "getex")),
    };
    Ok(Command::GetEx { key, change })
}

pub(super) fn mset<'a>(args: &[&'a [u8]], only_new: bool) -> Result<Command<'a>, Fault> {
    let (pairs, rest) = args.as_chunks::<2>();
    if pairs.is_empty() || !rest.is_empty() {
        return Err(Fault::Arity(if only_new { "msetnx" } else { "mset" }));
    }
    let pairs: SmallVec<_> = pairs.iter().map(|[key, value]| (*key, *value)).collect();
    Ok(Command::MSet { pairs, only_new })
}

pub(super) fn getrange<'a>(args: &[&'a [u8]], name: &'static str) -> Result<Command<'a>, Fault> {
    let [key, start, end] = exactly(args, name)?;
    Ok(Command::GetRange { key, start: integer(start)?, end: integer(end)?, name })
}

pub(super) fn setrange<'a>(args: &[&'a [u8]]) -> Result<Command<'a>, Fault> {
    let [key, offset, bytes] = exactly(args, "setrange")?;
    let offset = u64::try_from(integer(offset)?).map_err(|_| Fault::Offset)?;
    Ok(Command::SetRange { key, offset, bytes })
}

pub(super) fn incrby<'a>(args: &[&'a [u8]]) -> Result<Command<'a>, Fault> {
    let [key, delta] = exactly(args, "incrby")?;
    Ok(Command::Add { key, delta: integer(delta)?, name: "incrby" })
}

pub(super) fn decrby<'a>(args: &[&'a [u8]]) -> Result<Command<'a>, Fault> {
    let [key, delta] = exactly(args, "decrby")?;
    let delta = integer(delta)?.checked_neg().ok_or(Fault::DecrementOverflow)?;
    Ok(Command::Add { key, delta, name: "decrby" })
}

pub(super) fn incrbyfloat<'a>(args: &[&'a [u8]]) -> Result<Command<'a>, Fault> {
    let [key, delta] = exactly(args, "incrbyfloat")?;
    // Redis looks at the key's value first, but has the same sentence for it.
    Ok(Command::AddFloat { key, delta: Extended::parse(delta).ok_or(Fault::NotFloat)? })
}

pub(super) fn lcs<'a>(args: &[&'a [u8]]) -> Result<Command<'a>, Fault> {
    let (keys, options) = at_least(args, "lcs")?;
    let (mut wants_len, mut wants_matches, mut with_len, mut len_min) = (false, false, false, 0);
    let mut words = options.iter();
    while let Some(&word) = words.next() {
        if is(word, "idx") {
            wants_matches = true;
        } else if is(word, "len") {
            wants_len = true;
        } else if is(word, "withmatchlen") {
            with_len = true;
        } else if is(word, "minmatchlen") {
            let number = words.next().ok_or(Fault::Syntax)?;
            len_min = u64::try_from(integer(number)?).unwrap_or(0);
        } else {
            return Err(Fault::Syntax);
        }
    }
    let answer = match (wants_len, wants_matches) {
        (true, true) => return Err(Fault::LcsLenAndIdx),
        (true, false) => LcsAnswer::Len,
        (false, true) => LcsAnswer::Matches { len_min, with_len },
        (false, false) => LcsAnswer::Text,
    };
    Ok(Command::Lcs(Lcs { keys, answer }))
}
