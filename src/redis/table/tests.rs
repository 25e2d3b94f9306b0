use std::collections::HashSet;

use super::*;
use crate::redis::{Command, Fault};

/// What COMMAND of a redis-server 7.0.15 told, a line for each command: name, arity, flags, first and last
/// key and step, categories, hints, and of each key specification flags, first, last, step and notes.
const FACTS: &str = include_str!("facts.txt");

/// What came with Redis 7.2.
const LATER: [&str; 4] = ["waitaof", "client|setinfo", "client|no-touch", "cluster|myshardid"];

fn everything() -> impl Iterator<Item = &'static Spec> {
    supported().flat_map(|spec| std::iter::once(spec).chain(spec.subcommands))
}

fn joined(names: impl Iterator<Item = &'static str>) -> String {
    names.collect::<Vec<_>>().join(" ")
}

fn facts(spec: &Spec) -> String {
    let keys: Vec<String> = spec
        .keys
        .iter()
        .map(|keys| {
            let notes = keys.notes.map(|notes| format!(" # {notes}")).unwrap_or_default();
            format!("{} {} {} {}{notes}", joined(keys.flags.names()), keys.first, keys.last, keys.step)
        })
        .collect();
    let categories: Vec<String> = spec.categories.names().map(|name| format!("@{name}")).collect();
    format!(
        "{} | {} | {} | {} {} {} | {} | {} | {}",
        spec.name,
        spec.arity,
        joined(spec.flags.names()),
        spec.first_key,
        spec.last_key,
        spec.step,
        categories.join(" "),
        spec.tips.join(" "),
        keys.join("; ")
    )
}

#[test]
fn facts_are_those_of_redis() {
    let told: Vec<String> = everything().filter(|spec| !LATER.contains(&spec.name)).map(facts).collect();
    for (ours, theirs) in told.iter().zip(FACTS.lines()) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(told.len(), FACTS.lines().count());
}

#[test]
fn every_command_is_found_in_any_case_and_nothing_else_is() {
    for spec in supported() {
        let name = spec.name.as_bytes();
        assert!(std::ptr::eq(find(name).expect(spec.name), spec));
        assert!(std::ptr::eq(find(&name.to_ascii_uppercase()).expect(spec.name), spec));
        for i in 0..name.len() {
            let mut other = name.to_vec();
            other[i] ^= 0x20;
            let is_letter = name[i].is_ascii_alphabetic();
            assert_eq!(find(&other).is_some(), is_letter, "{}", other.escape_ascii());
            other.truncate(i);
            assert!(find(&other).is_none_or(|found| found.name.as_bytes().eq_ignore_ascii_case(&other)));
        }
        for sub in spec.subcommands {
            assert!(sub.name.starts_with(&format!("{}|", spec.name)), "{}", sub.name);
            let own_name = sub.own_name().to_ascii_uppercase();
            assert!(std::ptr::eq(find_sub(spec, own_name.as_bytes()).expect(sub.name), sub));
        }
    }
    for name in [&b""[..], b"\0", b"nosuch", b"get\0", b"client|id", &[b'g'; 256 + 3]] {
        assert!(find(name).is_none());
    }
    assert!(find_sub(find(b"client").expect("it is supported"), b"nosuch").is_none());
}

#[test]
fn names_stand_in_the_table_once() {
    let mut names = HashSet::new();
    for spec in everything().chain(absent()) {
        assert!(names.insert(spec.name), "{} stands twice", spec.name);
        assert_eq!(spec.name.to_ascii_lowercase(), spec.name);
        assert_eq!(find_absent(spec.name.as_bytes()).is_some(), !spec.is_supported(), "{}", spec.name);
    }
    for container in everything().filter(|spec| spec.name.contains('|')) {
        assert!(container.subcommands.is_empty(), "subcommands contain nothing: {}", container.name);
    }
}

#[test]
fn what_is_supported_is_explained() {
    for spec in everything() {
        assert!(spec.summary.ends_with('.') && spec.summary.len() < 100, "{}: {}", spec.name, spec.summary);
        assert!(!spec.complexity.is_empty() && !spec.since.is_empty(), "{}", spec.name);
        assert!(spec.is_supported());
    }
    for spec in absent() {
        assert!(matches!(spec.support, Support::Absent(reason) if !reason.is_empty()), "{}", spec.name);
    }
}

#[test]
fn keys_are_where_the_command_has_them() {
    let keys = |name: &str, words| -> Vec<usize> {
        find(name.as_bytes()).expect(name).key_indexes(words).map(|(index, _)| index).collect()
    };
    assert_eq!(keys("get", 2), [1]);
    assert_eq!(keys("mset", 5), [1, 3]);
    assert_eq!(keys("mset", 4), [1, 3]);
    assert_eq!(keys("del", 4), [1, 2, 3]);
    assert_eq!(keys("lcs", 5), [1, 2]);
    assert_eq!(keys("bitop", 5), [2, 3, 4]);
    assert_eq!(keys("rename", 3), [1, 2]);
    assert_eq!(keys("ping", 2), [0; 0]);
    // Fewer words than it takes: none, and no index beyond them.
    assert_eq!(keys("lcs", 2), [1]);
    assert_eq!(keys("del", 1), [0; 0]);
    assert_eq!(keys("del", 0), [0; 0]);
}

/// Whoever evaluates a command and whoever only looks it up agree about it.
#[test]
fn parsing_agrees_with_the_table() {
    let mut agreed = HashSet::new();
    for spec in everything() {
        for words in 1..8 {
            let mut args: Vec<&[u8]> = spec.name.split('|').map(str::as_bytes).collect();
            args.resize(args.len().max(words), b"1");
            let takes = spec.takes(args.len());
            match Command::parse(&args) {
                // None of the evaluator's.
                Err(Fault::UnknownCommand | Fault::UnknownSubcommand(_)) => continue,
                Err(Fault::Arity(name)) => assert!(!takes || name == "mset" || name == "msetnx", "{name}"),
                Err(_) => assert!(takes, "{}", spec.name),
                Ok(command) => {
                    assert!(takes, "{}", spec.name);
                    assert_eq!(command.name(), spec.name);
                    assert_eq!(command.is_write(), spec.flags.has(Flags::WRITE), "{}", spec.name);
                    assert_eq!(command.keys().len(), spec.key_indexes(args.len()).count(), "{}", spec.name);
                }
            }
            agreed.insert(spec.name);
        }
    }
    assert!(agreed.len() > 50, "{agreed:?}");
}
