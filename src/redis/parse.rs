//! Arguments → [`Command`]. Which fault is found first is Redis' order, and part of what clients see.

mod bits;
mod keys;
mod strings;

use super::command::{Command, Keys};
use super::fault::Fault;
use super::number::parse_i64;

/// Bytes of the longest name.
const NAME_BYTES_MAX: usize = 11;

/// See [`Command::parse`].
#[inline]
pub(super) fn parse<'a>(args: &[&'a [u8]]) -> Result<Command<'a>, Fault> {
    let Some((name, args)) = args.split_first() else { return Err(Fault::UnknownCommand) };
    // The two that most commands are, without a search. Of no other bytes than a letter's two forms this bit makes
    // the small one.
    if let [a, b, c] = name {
        match &[a | 0x20, b | 0x20, c | 0x20] {
            b"get" => return exactly(args, "get").map(|[key]| Command::Get { key }),
            b"set" => return strings::set(args),
            _ => {}
        }
    }
    parse_any(name, args)
}

fn parse_any<'a>(name: &[u8], args: &[&'a [u8]]) -> Result<Command<'a>, Fault> {
    let mut letters = [0; NAME_BYTES_MAX];
    let Some(lower) = letters.get_mut(..name.len()) else { return Err(Fault::UnknownCommand) };
    lower.copy_from_slice(name);
    lower.make_ascii_lowercase();
    match &*lower {
        b"mget" => Ok(Command::MGet { keys: some_keys(args, "mget")? }),
        b"mset" => strings::mset(args, false),
        b"del" => Ok(Command::Delete { keys: some_keys(args, "del")?, name: "del" }),
        b"incr" => exactly(args, "incr").map(|[key]| Command::Add { key, delta: 1, name: "incr" }),
        b"decr" => exactly(args, "decr").map(|[key]| Command::Add { key, delta: -1, name: "decr" }),
        b"incrby" => strings::incrby(args),
        b"decrby" => strings::decrby(args),
        b"exists" => Ok(Command::Count { keys: some_keys(args, "exists")?, name: "exists" }),
        b"expire" => keys::expire(args, keys::EXPIRE),
        b"pexpire" => keys::expire(args, keys::PEXPIRE),
        b"expireat" => keys::expire(args, keys::EXPIREAT),
        b"pexpireat" => keys::expire(args, keys::PEXPIREAT),
        b"ttl" => keys::ttl(args, false, false, "ttl"),
        b"pttl" => keys::ttl(args, true, false, "pttl"),
        b"expiretime" => keys::ttl(args, false, true, "expiretime"),
        b"pexpiretime" => keys::ttl(args, true, true, "pexpiretime"),
        b"setex" => strings::setex(args, false, "setex"),
        b"psetex" => strings::setex(args, true, "psetex"),
        b"setnx" => strings::setnx(args),
        b"getset" => strings::getset(args),
        b"getdel" => exactly(args, "getdel").map(|[key]| Command::GetDel { key }),
        b"getex" => strings::getex(args),
        b"msetnx" => strings::mset(args, true),
        b"append" => exactly(args, "append").map(|[key, tail]| Command::Append { key, tail }),
        b"strlen" => exactly(args, "strlen").map(|[key]| Command::StrLen { key }),
        b"getrange" => strings::getrange(args, "getrange"),
        b"substr" => strings::getrange(args, "substr"),
        b"setrange" => strings::setrange(args),
        b"incrbyfloat" => strings::incrbyfloat(args),
        b"lcs" => strings::lcs(args),
        b"unlink" => Ok(Command::Delete { keys: some_keys(args, "unlink")?, name: "unlink" }),
        b"touch" => Ok(Command::Count { keys: some_keys(args, "touch")?, name: "touch" }),
        b"type" => exactly(args, "type").map(|[key]| Command::Type { key }),
        b"rename" => keys::rename(args, false, "rename"),
        b"renamenx" => keys::rename(args, true, "renamenx"),
        b"copy" => keys::copy(args),
        b"persist" => exactly(args, "persist").map(|[key]| Command::Persist { key }),
        b"setbit" => bits::setbit(args),
        b"getbit" => bits::getbit(args),
        b"bitcount" => bits::bitcount(args),
        b"bitpos" => bits::bitpos(args),
        b"bitop" => bits::bitop(args),
        b"bitfield" => bits::bitfield(args, "bitfield"),
        b"bitfield_ro" => bits::bitfield(args, "bitfield_ro"),
        b"object" => keys::object(args),
        b"memory" => keys::memory(args),
        _ => Err(Fault::UnknownCommand),
    }
}

/// The arguments, which are so many.
#[inline]
fn exactly<'a, const N: usize>(args: &[&'a [u8]], name: &'static str) -> Result<[&'a [u8]; N], Fault> {
    args.try_into().map_err(|_| Fault::Arity(name))
}

/// So many arguments, and the rest.
type Split<'a, 's, const N: usize> = ([&'a [u8]; N], &'s [&'a [u8]]);

/// The first arguments, and what may follow them.
#[inline]
fn at_least<'a, 's, const N: usize>(
    args: &'s [&'a [u8]],
    name: &'static str,
) -> Result<Split<'a, 's, N>, Fault> {
    let (head, rest) = args.split_first_chunk().ok_or(Fault::Arity(name))?;
    Ok((*head, rest))
}

/// The arguments, all of them keys, at least one.
#[inline]
fn some_keys<'a>(args: &[&'a [u8]], name: &'static str) -> Result<Keys<'a>, Fault> {
    if args.is_empty() { Err(Fault::Arity(name)) } else { Ok(Keys::from_slice(args)) }
}

#[inline]
fn integer(text: &[u8]) -> Result<i64, Fault> {
    parse_i64(text).ok_or(Fault::NotInteger)
}

/// Whether an argument is this option. Redis compares up to a NUL; so does this.
#[inline]
fn is(arg: &[u8], option: &str) -> bool {
    arg.get(..option.len()).is_some_and(|head| head.eq_ignore_ascii_case(option.as_bytes()))
        && arg.get(option.len()).is_none_or(|next| *next == 0)
}
