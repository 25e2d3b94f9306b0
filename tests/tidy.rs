//! Reads `src/` and fails on an import against the order that `src/lib.rs` lists, because no reviewer sees
//! a cycle coming; and on clocks, random sources and glommio where a simulator must be able to stand in.
//!
//! Comments don't count, nor do tests: they may look up.

use std::fs;
use std::path::Path;

/// What each top-level module may name, itself apart. `server` may name everything.
const MAY_NAME: &[(&str, &str)] = &[
    ("base", ""),
    ("slot", "base"),
    ("error", "base slot"),
    ("metrics", "base slot error"),
    ("disk", "base metrics"),
    ("env", "base metrics disk"),
    ("config", "base slot error"),
    ("protocol", "base slot error"),
    ("redis", "base slot error metrics protocol"),
    ("engine", "base slot metrics disk env"),
    ("shard", "base slot error metrics disk env protocol redis engine"),
    ("placement", "base slot error metrics disk env protocol redis engine shard"),
    ("admin", "base error metrics config env"),
    ("server", "base slot error metrics disk env config protocol redis engine shard placement admin"),
    ("client", "base slot error protocol"),
    ("sim", "base slot error metrics disk env protocol redis engine shard placement"),
];

/// Files of the engine that know nothing of some of its other parts. Only those directly below `engine`
/// join them, and only they are a part of `Engine`.
const STRANGERS: &[(&str, &str)] = &[
    ("engine/wal/", "memtable sstable manifest compaction cache merge Engine"),
    ("engine/memtable/", "wal sstable manifest compaction cache merge Engine"),
    ("engine/sstable/", "wal memtable manifest compaction merge Engine"),
    ("engine/manifest/", "wal memtable compaction cache merge Engine"),
    ("engine/compaction/", "wal memtable manifest Engine"),
];

/// Only these may name glommio, or the implementations that are made of it.
const GLOMMIO: [&str; 5] = ["disk/glommio", "env/glommio", "server", "admin", "client"];

/// Time and randomness reach these through `Env`.
const SIMULATED: [&str; 2] = ["engine/", "shard/"];
const OUTSIDE: [&str; 6] = ["Instant", "SystemTime", "rand", "fastrand", "getrandom", "thread_rng"];

/// Known offences, to be paid off: `file: what`. One that is no longer found fails the test as well.
const DEBTS: &[&str] = &[
    // The simulated disk takes its operations' turns from the simulated scheduler: a cycle of the two.
    "disk/sim.rs: names env",
    // `placement::assign` works on the manifest's state, and recovery calls it: a cycle of the two.
    "engine/recovery.rs: names placement",
    // Of `placement` only the slot table, which needs nothing but `base` and `slot`.
    "shard/mod.rs: names placement",
];

/// Text without line comments, and without what follows an inline test module's head.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Every path in `code` that starts with `crate` or `super`, resolved from the crate's root. `module` is
/// that of the file. Of a group, each member.
fn paths(code: &str, module: &[&str]) -> Vec<Vec<String>> {
    let dense = code.replace(char::is_whitespace, " ").replace(":: ", "::");
    let mut found = Vec::new();
    for (at, root) in dense.match_indices("crate::").chain(dense.match_indices("super::")) {
        let before = &dense[..at];
        if before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
            continue;
        }
        let mut rest = &dense[at..];
        let mut base = if root == "crate::" { &[] } else { module };
        while let Some(tail) = rest.strip_prefix("super::") {
            base = &base[..base.len().saturating_sub(1)];
            rest = tail;
        }
        expand(
            rest.strip_prefix("crate::").unwrap_or(rest),
            base.iter().map(ToString::to_string).collect(),
            &mut found,
        );
    }
    found
}

/// Adds the path that `rest` starts with, or each path of the group, below `prefix`. Returns its length.
fn expand(rest: &str, mut prefix: Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    let mut at = 0;
    loop {
        if rest[at..].starts_with('{') {
            at += 1;
            while !rest[at..].starts_with('}') && at < rest.len() {
                at += expand(&rest[at..], prefix.clone(), found).max(1);
            }
            return (at + 1).min(rest.len());
        }
        let len = rest[at..].find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len() - at);
        if len == 0 {
            return at;
        }
        prefix.push(rest[at..at + len].to_string());
        at += len;
        if !rest[at..].starts_with("::") {
            found.push(prefix);
            return at;
        }
        at += 2;
    }
}

fn has_word(code: &str, word: &str) -> bool {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|other| other == word)
}

/// Whether `code` names the crate `glommio`: as the start of a path, not as a module of ours.
fn names_glommio(code: &str) -> bool {
    let is_start = |at| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
    code.match_indices("glommio::").any(|(at, _)| is_start(at))
}

/// What is wrong in `file`, a path below `src/`.
fn offences(file: &str, text: &str) -> Vec<String> {
    let code = code(text);
    let module: Vec<&str> = file.trim_end_matches(".rs").trim_end_matches("/mod").split('/').collect();
    let list = |table: &[(&str, &'static str)], key: &str| {
        table.iter().find(|(name, _)| *name == key).map(|(_, names)| *names)
    };
    let is_top = |name: &str| list(MAY_NAME, name).is_some();
    let folder: String = module.iter().take(2).map(|name| format!("{name}/")).collect();
    let mut wrong = Vec::new();
    for path in paths(&code, &module) {
        let (top, below) = (path[0].as_str(), path.get(1).map_or("", String::as_str));
        let may = list(MAY_NAME, module[0]).is_none_or(|may| has_word(may, top));
        if is_top(top) && top != module[0] && !may {
            wrong.push(format!("{file}: names {top}"));
        }
        if top == "engine" {
            let strangers = list(STRANGERS, &folder).unwrap_or_default();
            if has_word(strangers, below) {
                wrong.push(format!("{file}: names engine::{below}"));
            }
        }
        if module.last() == Some(&"format") && module[0] == "engine" && top != "base" && path.len() > 1 {
            wrong.push(format!("{file}: a format names {}", path.join("::")));
        }
        if below == "glommio" && !GLOMMIO.iter().any(|may| file.starts_with(may)) {
            wrong.push(format!("{file}: names {top}::glommio"));
        }
    }
    if names_glommio(&code) && !GLOMMIO.iter().any(|may| file.starts_with(may)) {
        wrong.push(format!("{file}: names glommio"));
    }
    if SIMULATED.iter().any(|folder| file.starts_with(folder)) {
        wrong
            .extend(OUTSIDE.iter().filter(|word| has_word(&code, word)).map(|w| format!("{file}: uses {w}")));
    }
    wrong.sort();
    wrong.dedup();
    wrong
}

fn read(folder: &Path, files: &mut Vec<(String, String)>) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(&source).unwrap().to_str().unwrap().to_string();
        if path.is_dir() {
            read(&path, files);
        } else if name.ends_with(".rs") && !name.ends_with("tests.rs") && !name.contains("/tests/") {
            files.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn imports_point_one_way() {
    let mut files = Vec::new();
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    assert!(files.len() > 20, "src/ was found");
    let found: Vec<String> = files.iter().flat_map(|(name, text)| offences(name, text)).collect();
    let fresh: Vec<_> = found.iter().filter(|offence| !DEBTS.contains(&offence.as_str())).collect();
    assert!(fresh.is_empty(), "against the order in src/lib.rs:\n{fresh:#?}");
    let paid: Vec<_> = DEBTS.iter().filter(|debt| !found.iter().any(|offence| offence == *debt)).collect();
    assert!(paid.is_empty(), "no longer so; remove from DEBTS: {paid:#?}");
}

#[test]
fn a_module_that_is_not_in_the_order_has_no_place() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    for module in lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')) {
        assert!(MAY_NAME.iter().any(|(name, _)| *name == module), "say what `{module}` may import");
    }
}

#[test]
fn bad_imports_are_found_and_good_ones_are_not() {
    let bad: [(&str, &str, &str); 14] = [
        ("base/lsn.rs", "use crate::engine::Engine;", "names engine"),
        ("engine/read.rs", "use crate::{base::Lsn, shard::{self}};", "names shard"),
        ("engine/read.rs", "use crate::{\n    base::{Lsn, Op},\n    server::run,\n};", "names server"),
        ("engine/read.rs", "fn f() -> crate::protocol::Reply {}", "names protocol"),
        ("engine/wal/writer.rs", "use super::super::super::shard::Mesh;", "names shard"),
        ("engine/wal/writer.rs", "use super::super::memtable::Memtable;", "names engine::memtable"),
        ("engine/memtable/mod.rs", "use super::sstable::Table;", "names engine::sstable"),
        ("engine/sstable/reader.rs", "use crate::engine::{wal::Wal, cache};", "names engine::wal"),
        ("engine/compaction/job.rs", "use crate::engine::Engine;", "names engine::Engine"),
        ("engine/wal/format.rs", "use super::WalError;", "a format names engine::wal::WalError"),
        ("engine/read.rs", "use glommio::timer;", "names glommio"),
        ("shard/mod.rs", "use crate::env::glommio::GlommioEnv;", "names env::glommio"),
        ("shard/mod.rs", "use std::time::{Duration, Instant};", "uses Instant"),
        ("engine/flush.rs", "let n = fastrand::u64(..);", "uses fastrand"),
    ];
    for (file, text, expected) in bad {
        assert_eq!(offences(file, text), [format!("{file}: {expected}")], "{text}");
    }
    let good: [(&str, &str); 7] = [
        ("engine/mod.rs", "use self::memtable::Memtable;\nuse super::base::Lsn;"),
        ("engine/flush.rs", "use super::memtable::Memtable;\nuse super::{Engine, wal::Wal};"),
        ("engine/read.rs", "// use crate::shard::Mesh;\nuse crate::{base::Lsn, env::Env};"),
        (
            "engine/read.rs",
            "#[cfg(test)]\nmod tests {\n    use crate::shard::Mesh;\n    use fastrand::Rng;\n}",
        ),
        ("engine/wal/format.rs", "use crate::base::{Lsn, crc32c};"),
        ("disk/glommio.rs", "use glommio::io::DmaFile;"),
        ("disk/mod.rs", "pub mod glommio;"),
    ];
    for (file, text) in good {
        assert_eq!(offences(file, text), [""; 0], "{text}");
    }
}
