//! COMMAND and its subcommands, and HELP of any container: what the table of commands says, as replies.
//!
//! COMMAND INFO answers what Redis 7.0 answers, byte for byte, but for the order in which a container's
//! subcommands are told, which is random in Redis. COMMAND DOCS has its shape, with our own sentences, and no
//! history.

mod docs;
mod syntax;

use crate::protocol::resp::{self, Proto};
use crate::redis::glob;
use crate::redis::table::{self, Categories, KeyFlags, KeySpec, Spec};

/// Bytes of a name that a refusal repeats, as in Redis.
const REPEATED_BYTES_MAX: usize = 128;

/// Appends the reply to COMMAND, with or without a subcommand. `args` begin with the command's name.
pub fn command(out: &mut Vec<u8>, args: &[&[u8]], proto: Proto) {
    let Some(name) = args.get(1) else { return info_of_all(out, proto) };
    let Some(container) = table::find(b"command") else { return };
    let Some(sub) = table::find_sub(container, name) else { return unknown_subcommand(out, container, name) };
    if !sub.takes(args.len()) {
        return resp::error(out, &format!("ERR wrong number of arguments for '{}' command", sub.name));
    }
    let args = &args[2..];
    match sub.own_name() {
        "count" => resp::integer(out, table::supported().count() as i64),
        "info" if args.is_empty() => info_of_all(out, proto),
        "info" => info_of(out, args, proto),
        "docs" => docs::docs(out, args, proto),
        "list" => list(out, args),
        "getkeys" => keys_of(out, args, None),
        "getkeysandflags" => keys_of(out, args, Some(proto)),
        _ => help(out, container),
    }
}

/// Appends the reply to a container's subcommand that is not there.
pub fn unknown_subcommand(out: &mut Vec<u8>, container: &Spec, name: &[u8]) {
    let name = &name[..name.len().min(REPEATED_BYTES_MAX)];
    // Redis takes it for a string of C.
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    let container = container.name.to_ascii_uppercase();
    resp::error_bytes(
        out,
        &[b"ERR unknown subcommand '", name, b"'. Try ", container.as_bytes(), b" HELP."].concat(),
    );
}

/// Appends the reply to HELP of a container.
pub fn help(out: &mut Vec<u8>, container: &Spec) {
    resp::array(out, 1 + 2 * container.subcommands.len());
    let name = container.name.to_ascii_uppercase();
    resp::simple(out, &format!("{name} <subcommand> [<arg> [value] [opt] ...]. Subcommands are:"));
    for sub in container.subcommands {
        let name = sub.own_name().to_ascii_uppercase();
        resp::simple(out, format!("{name} {}", sub.syntax).trim_end());
        resp::simple(out, &format!("    {}", sub.summary));
    }
}

/// A command by its whole name, that of a subcommand with a bar in it.
fn find_whole(name: &[u8]) -> Option<&'static Spec> {
    match name.iter().position(|byte| *byte == b'|') {
        Some(bar) => table::find_sub(table::find(&name[..bar])?, &name[bar + 1..]),
        None => table::find(name),
    }
}

fn info_of_all(out: &mut Vec<u8>, proto: Proto) {
    resp::array(out, table::supported().count());
    for spec in table::supported() {
        info(out, spec, proto);
    }
}

fn info_of(out: &mut Vec<u8>, names: &[&[u8]], proto: Proto) {
    resp::array(out, names.len());
    for name in names {
        match find_whole(name) {
            Some(spec) => info(out, spec, proto),
            None => resp::null(out, proto),
        }
    }
}

fn info(out: &mut Vec<u8>, spec: &Spec, proto: Proto) {
    resp::array(out, 10);
    resp::bulk(out, spec.name.as_bytes());
    resp::integer(out, i64::from(spec.arity));
    names(out, spec.flags.count(), spec.flags.names(), "", proto);
    for number in [spec.first_key, spec.last_key, spec.step] {
        resp::integer(out, i64::from(number));
    }
    names(out, spec.categories.count(), spec.categories.names(), "@", proto);
    resp::set(out, spec.tips.len(), proto);
    for tip in spec.tips {
        resp::bulk(out, tip.as_bytes());
    }
    resp::set(out, spec.keys.len(), proto);
    for keys in spec.keys {
        key_spec(out, keys, proto);
    }
    resp::set(out, spec.subcommands.len(), proto);
    for sub in spec.subcommands {
        info(out, sub, proto);
    }
}

/// A set of simple strings.
fn names<'a>(
    out: &mut Vec<u8>,
    count: usize,
    names: impl Iterator<Item = &'a str>,
    prefix: &str,
    proto: Proto,
) {
    resp::set(out, count, proto);
    for name in names {
        resp::simple(out, &format!("{prefix}{name}"));
    }
}

fn key_spec(out: &mut Vec<u8>, keys: &KeySpec, proto: Proto) {
    resp::map(out, if keys.notes.is_some() { 4 } else { 3 }, proto);
    if let Some(notes) = keys.notes {
        resp::bulk(out, b"notes");
        resp::bulk(out, notes.as_bytes());
    }
    resp::bulk(out, b"flags");
    names(out, keys.flags.count(), keys.flags.names(), "", proto);
    search(out, "begin_search", "index", &[("index", keys.first)], proto);
    let range = [("lastkey", keys.last), ("keystep", keys.step), ("limit", 0)];
    search(out, "find_keys", "range", &range, proto);
}

/// One step of finding keys: how, and with which numbers.
fn search(out: &mut Vec<u8>, step: &str, kind: &str, numbers: &[(&str, i32)], proto: Proto) {
    resp::bulk(out, step.as_bytes());
    resp::map(out, 2, proto);
    resp::bulk(out, b"type");
    resp::bulk(out, kind.as_bytes());
    resp::bulk(out, b"spec");
    resp::map(out, numbers.len(), proto);
    for (name, number) in numbers {
        resp::bulk(out, name.as_bytes());
        resp::integer(out, i64::from(*number));
    }
}

/// COMMAND LIST: names of commands and subcommands.
fn list(out: &mut Vec<u8>, args: &[&[u8]]) {
    let wanted: Box<dyn Fn(&Spec) -> bool> = match args {
        [] => Box::new(|_| true),
        [filter_by, filter, value] if filter_by.eq_ignore_ascii_case(b"filterby") => {
            match filter.to_ascii_lowercase().as_slice() {
                // There are none.
                b"module" => Box::new(|_| false),
                b"aclcat" => match Categories::named(value) {
                    Some(category) => Box::new(move |spec| spec.categories.has(category)),
                    None => Box::new(|_| false),
                },
                b"pattern" => Box::new(|spec| glob::matches_ignoring_case(value, spec.name.as_bytes())),
                _ => return resp::error(out, "ERR syntax error"),
            }
        }
        _ => return resp::error(out, "ERR syntax error"),
    };
    let with_subcommands = table::supported().flat_map(|spec| std::iter::once(spec).chain(spec.subcommands));
    let found: Vec<&str> = with_subcommands.filter(|spec| wanted(spec)).map(|spec| spec.name).collect();
    resp::array(out, found.len());
    for name in found {
        resp::bulk(out, name.as_bytes());
    }
}

/// COMMAND GETKEYS, or GETKEYSANDFLAGS if a protocol is given: `words` are the command that is asked about.
fn keys_of(out: &mut Vec<u8>, words: &[&[u8]], flags: Option<Proto>) {
    let Some(spec) = asked_about(words) else { return resp::error(out, "ERR Invalid command specified") };
    if spec.keys.is_empty() {
        return resp::error(out, "ERR The command has no key arguments");
    }
    if !spec.takes(words.len()) {
        return resp::error(out, "ERR Invalid number of arguments specified for command");
    }
    resp::array(out, spec.key_indexes(words.len()).count());
    for (index, key_flags) in spec.key_indexes(words.len()) {
        let Some(proto) = flags else {
            resp::bulk(out, words[index]);
            continue;
        };
        resp::array(out, 2);
        resp::bulk(out, words[index]);
        let key_flags =
            if key_flags.has(KeyFlags::VARIABLE_FLAGS) { as_used(spec, words) } else { key_flags };
        names(out, key_flags.count(), key_flags.names(), "", proto);
    }
}

fn asked_about(words: &[&[u8]]) -> Option<&'static Spec> {
    let spec = table::find(words.first()?)?;
    match words.get(1) {
        Some(name) if !spec.subcommands.is_empty() => table::find_sub(spec, name),
        _ => Some(spec),
    }
}

/// What becomes of the key of a command for which that depends on its options.
fn as_used(spec: &Spec, words: &[&[u8]]) -> KeyFlags {
    let modify = KeyFlags::RW.with(KeyFlags::ACCESS).with(KeyFlags::UPDATE);
    let options = &words[2..];
    if spec.name == "bitfield" {
        return if only_reads(options) { KeyFlags::RO.with(KeyFlags::ACCESS) } else { modify };
    }
    // SET: the value is no option.
    match options.iter().skip(1).any(|option| option.eq_ignore_ascii_case(b"get")) {
        true => modify,
        false => KeyFlags::OW.with(KeyFlags::UPDATE),
    }
}

/// Whether the operations of a BITFIELD are all known, whole and reads.
fn only_reads(mut operations: &[&[u8]]) -> bool {
    while let Some((operation, rest)) = operations.split_first() {
        let len = match operation.to_ascii_lowercase().as_slice() {
            b"get" => 2,
            b"overflow" => 1,
            _ => return false,
        };
        let Some(rest) = rest.get(len..) else { return false };
        operations = rest;
    }
    true
}

#[cfg(test)]
mod tests;
