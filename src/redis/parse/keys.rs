//! Commands that concern keys, whatever their values.

use super::{at_least, exactly, integer, is};
use crate::redis::command::{Command, Expire, ObjectQuestion, Than, Time};
use crate::redis::fault::Fault;

/// A name of the four of EXPIRE, and how it counts.
#[derive(Clone, Copy)]
pub(super) struct Form {
    name: &'static str,
    in_ms: bool,
    time: fn(i64) -> Time,
}

pub(super) const EXPIRE: Form = Form { name: "expire", in_ms: false, time: Time::In };
pub(super) const PEXPIRE: Form = Form { name: "pexpire", in_ms: true, time: Time::In };
pub(super) const EXPIREAT: Form = Form { name: "expireat", in_ms: false, time: Time::At };
pub(super) const PEXPIREAT: Form = Form { name: "pexpireat", in_ms: true, time: Time::At };

pub(super) fn expire<'a>(args: &[&'a [u8]], form: Form) -> Result<Command<'a>, Fault> {
    let ([key, number], options) = at_least(args, form.name)?;
    let (mut only_new, mut only_existing, mut later, mut earlier) = (false, false, false, false);
    for (index, word) in options.iter().enumerate() {
        if is(word, "nx") {
            only_new = true;
        } else if is(word, "xx") {
            only_existing = true;
        } else if is(word, "gt") {
            later = true;
        } else if is(word, "lt") {
            earlier = true;
        } else {
            // Behind the command's name, its key and its number.
            return Err(Fault::UnsupportedOption(3 + index));
        }
    }
    if only_new && (only_existing || later || earlier) {
        return Err(Fault::ExpireNxAndOthers);
    }
    let only = match (later, earlier) {
        (true, true) => return Err(Fault::ExpireGtAndLt),
        (true, false) => Some(Than::Later),
        (false, true) => Some(Than::Earlier),
        (false, false) => None,
    };
    let number = integer(number)?;
    let ms = if form.in_ms { Some(number) } else { number.checked_mul(1000) };
    let time = (form.time)(ms.ok_or(Fault::ExpireTime(form.name))?);
    Ok(Command::Expire(Expire { key, time, only_new, only_existing, only, name: form.name }))
}

pub(super) fn ttl<'a>(
    args: &[&'a [u8]],
    in_ms: bool,
    is_absolute: bool,
    name: &'static str,
) -> Result<Command<'a>, Fault> {
    let [key] = exactly(args, name)?;
    Ok(Command::Ttl { key, in_ms, is_absolute, name })
}

pub(super) fn rename<'a>(
    args: &[&'a [u8]],
    only_new: bool,
    name: &'static str,
) -> Result<Command<'a>, Fault> {
    let [source, target] = exactly(args, name)?;
    Ok(Command::Rename { source, target, only_new })
}

pub(super) fn copy<'a>(args: &[&'a [u8]]) -> Result<Command<'a>, Fault> {
    let ([source, target], options) = at_least(args, "copy")?;
    let mut replaces = false;
    let mut words = options.iter();
    while let Some(word) = words.next() {
        if is(word, "replace") {
            replaces = true;
        } else if is(word, "db") {
            let database = integer(words.next().ok_or(Fault::Syntax)?)?;
            let database = i32::try_from(database).map_err(|_| Fault::NotInteger32)?;
            if database != 0 {
                return Err(Fault::DbIndex);
            }
        } else {
            return Err(Fault::Syntax);
        }
    }
    if source == target {
        return Err(Fault::SameObject);
    }
    Ok(Command::Copy { source, target, replaces })
}

pub(super) fn object<'a>(args: &[&'a [u8]]) -> Result<Command<'a>, Fault> {
    let ([subcommand], args) = at_least(args, "object")?;
    let ask = |question, name| exactly(args, name).map(|[key]| Command::Object { key, question });
    match subcommand.to_ascii_lowercase().as_slice() {
        b"encoding" => ask(ObjectQuestion::Encoding, "object|encoding"),
        b"freq" => ask(ObjectQuestion::Freq, "object|freq"),
        b"idletime" => ask(ObjectQuestion::IdleTime, "object|idletime"),
        b"refcount" => ask(ObjectQuestion::RefCount, "object|refcount"),
        b"help" => exactly(args, "object|help").map(|[]| Command::ObjectHelp),
        _ => Err(Fault::UnknownSubcommand("OBJECT")),
    }
}

pub(super) fn memory<'a>(args: &[&'a [u8]]) -> Result<Command<'a>, Fault> {
    let ([subcommand], args) = at_least(args, "memory")?;
    if !subcommand.eq_ignore_ascii_case(b"usage") {
        return Err(Fault::UnknownSubcommand("MEMORY"));
    }
    let ([key], options) = at_least(args, "memory|usage")?;
    let mut words = options.iter();
    while let Some(word) = words.next() {
        // How many parts of a list to look at; a string has one.
        let number = words.next().filter(|_| is(word, "samples")).ok_or(Fault::Syntax)?;
        if integer(number)? < 0 {
            return Err(Fault::Syntax);
        }
    }
    Ok(Command::MemoryUsage { key })
}
