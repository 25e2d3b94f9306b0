//! The arguments of a command, from the line in the table that describes them.
//!
//! ```text
//! one of  = all { "|" all }
//! all     = { term }
//! term    = ( [ TOKEN ] name | TOKEN | [ TOKEN ] "(" one of ")" | "[" one of "]" ) [ "..." ]
//! ```
//! A `TOKEN` is of capitals and stands for itself; if a name or a parenthesis follows, it introduces that.
//! What is in brackets may be left out, and what dots follow may come more than once. A name tells what kind
//! of argument it is, unless a colon and the kind follow it.

/// An argument, or a group of arguments.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Argument {
    pub(super) name: String,
    pub(super) kind: Kind,
    /// The word that introduces it, or that it is.
    pub(super) token: Option<&'static str>,
    pub(super) optional: bool,
    pub(super) multiple: bool,
    /// Of a group, what it is made of.
    pub(super) parts: Vec<Argument>,
}

/// What kind of argument it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A key, of the key specification with this index.
    Key(usize),
    Bytes,
    Integer,
    Double,
    UnixTime,
    Pattern,
    PureToken,
    OneOf,
    Block,
}

const KEYS: &[&str] = &["key", "key1", "key2", "newkey", "source", "destination", "destkey"];
const INTEGERS: &[&str] = &[
    "bit",
    "client-id",
    "count",
    "cursor",
    "decrement",
    "destination-db",
    "end",
    "increment",
    "index",
    "len",
    "milliseconds",
    "numlocal",
    "numreplicas",
    "offset",
    "protover",
    "seconds",
    "slot",
    "start",
    "timeout",
];

impl Kind {
    /// Its name in Redis.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Key(_) => "key",
            Kind::Bytes => "string",
            Kind::Integer => "integer",
            Kind::Double => "double",
            Kind::UnixTime => "unix-time",
            Kind::Pattern => "pattern",
            Kind::PureToken => "pure-token",
            Kind::OneOf => "oneof",
            Kind::Block => "block",
        }
    }

    fn of(name: &str) -> Kind {
        match name {
            _ if KEYS.contains(&name) => Kind::Key(0),
            _ if INTEGERS.contains(&name) => Kind::Integer,
            _ if name.starts_with("unix-time") => Kind::UnixTime,
            "pattern" => Kind::Pattern,
            _ => Kind::Bytes,
        }
    }
}

/// The arguments that `line` describes, of a command with so many key specifications: its keys belong to them
/// in order, and those beyond to the last.
pub(super) fn arguments(line: &'static str, key_specs: usize) -> Vec<Argument> {
    let mut reader = Reader { rest: line, keys: 0, key_specs };
    let all = reader.all();
    debug_assert!(reader.rest.is_empty(), "a line of the table ends where its grammar does: {line}");
    all
}

struct Reader {
    rest: &'static str,
    keys: usize,
    key_specs: usize,
}

impl Reader {
    /// Whether the rest begins with this, which is taken then.
    fn take(&mut self, text: &str) -> bool {
        self.rest = self.rest.trim_start();
        let Some(rest) = self.rest.strip_prefix(text) else { return false };
        self.rest = rest;
        true
    }

    /// The word that the rest begins with, if it does.
    fn word(&mut self) -> Option<&'static str> {
        self.rest = self.rest.trim_start();
        let end = self.rest.find(['(', ')', '[', ']', '|', ' ']).unwrap_or(self.rest.len());
        let end = self.rest[..end].find("...").unwrap_or(end);
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        (!word.is_empty()).then_some(word)
    }

    fn all(&mut self) -> Vec<Argument> {
        let mut all = Vec::new();
        while let Some(mut argument) = self.term() {
            argument.multiple |= self.take("...");
            all.push(argument);
        }
        all
    }

    fn term(&mut self) -> Option<Argument> {
        if self.take("[") {
            let mut argument = self.group("]");
            argument.optional = true;
            return Some(argument);
        }
        if self.take("(") {
            return Some(self.group(")"));
        }
        let word = self.word()?;
        if !is_token(word) {
            return Some(self.named(word));
        }
        let mut argument = if self.take("(") {
            self.group(")")
        } else if self.rest.trim_start().starts_with(|letter: char| letter.is_ascii_lowercase()) {
            let word = self.word()?;
            self.named(word)
        } else {
            single(word.to_ascii_lowercase(), Kind::PureToken)
        };
        argument.token = Some(word);
        Some(argument)
    }

    /// What stands before `end`: one argument, or several, or one of several.
    fn group(&mut self, end: &str) -> Argument {
        let mut alternatives = vec![together(self.all())];
        while self.take("|") {
            alternatives.push(together(self.all()));
        }
        let closed = self.take(end);
        debug_assert!(closed, "a line of the table closes what it opens: {}", self.rest);
        if alternatives.len() > 1 {
            return Argument { parts: alternatives, ..single("choice".into(), Kind::OneOf) };
        }
        alternatives.remove(0)
    }

    fn named(&mut self, word: &'static str) -> Argument {
        let (name, kind) = match word.split_once(':') {
            Some((name, "double")) => (name, Kind::Double),
            Some((name, "string")) => (name, Kind::Bytes),
            _ => (word, Kind::of(word)),
        };
        let kind = match kind {
            Kind::Key(_) => {
                self.keys += 1;
                Kind::Key(self.keys.min(self.key_specs).saturating_sub(1))
            }
            other => other,
        };
        single(name.into(), kind)
    }
}

fn is_token(word: &str) -> bool {
    word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-')
}

fn single(name: String, kind: Kind) -> Argument {
    Argument { name, kind, token: None, optional: false, multiple: false, parts: Vec::new() }
}

/// One argument stands for itself, several are a block.
fn together(mut all: Vec<Argument>) -> Argument {
    if all.len() == 1 {
        return all.remove(0);
    }
    Argument { parts: all, ..single("block".into(), Kind::Block) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::table;

    /// The arguments, written the way that redis-cli does.
    fn shown(arguments: &[Argument]) -> String {
        arguments.iter().map(show).collect::<Vec<_>>().join(" ")
    }

    fn show(argument: &Argument) -> String {
        let parts: Vec<String> = argument.parts.iter().map(show).collect();
        let mut text = match argument.kind {
            Kind::PureToken => String::new(),
            Kind::OneOf => parts.join("|"),
            Kind::Block => parts.join(" "),
            _ => argument.name.clone(),
        };
        if let Some(token) = argument.token {
            text = if text.is_empty() { token.into() } else { format!("{token} {text}") };
        }
        if argument.multiple {
            text = format!("{text} [{text} ...]");
        }
        if argument.optional { format!("[{text}]") } else { text }
    }

    #[test]
    fn lines_become_what_redis_cli_shows() {
        for (name, expected) in [
            ("get", "key"),
            ("mset", "key value [key value ...]"),
            (
                "getex",
                "key [EX seconds|PX milliseconds|EXAT unix-time-seconds|PXAT unix-time-milliseconds|PERSIST]",
            ),
            ("lcs", "key1 key2 [LEN] [IDX] [MINMATCHLEN len] [WITHMATCHLEN]"),
            ("bitpos", "key bit [start [end [BYTE|BIT]]]"),
            ("hello", "[protover [AUTH username password] [SETNAME clientname]]"),
            ("randomkey", ""),
        ] {
            let spec = table::find(name.as_bytes()).expect("it is supported");
            assert_eq!(shown(&arguments(spec.syntax, spec.keys.len())), expected, "{name}");
        }
    }

    #[test]
    fn keys_belong_to_their_specifications() {
        let kinds = |name: &str| -> Vec<Kind> {
            let spec = table::find(name.as_bytes()).expect("it is supported");
            arguments(spec.syntax, spec.keys.len()).iter().map(|argument| argument.kind).collect()
        };
        assert_eq!(kinds("rename"), [Kind::Key(0), Kind::Key(1)]);
        assert_eq!(kinds("lcs")[..2], [Kind::Key(0), Kind::Key(0)]);
        assert_eq!(kinds("bitop"), [Kind::Bytes, Kind::Key(0), Kind::Key(1)]);
        assert_eq!(kinds("incrbyfloat"), [Kind::Key(0), Kind::Double]);
    }

    #[test]
    fn every_line_of_the_table_is_read_to_its_end() {
        for spec in table::supported().flat_map(|spec| std::iter::once(spec).chain(spec.subcommands)) {
            let mut reader = Reader { rest: spec.syntax, keys: 0, key_specs: spec.keys.len() };
            let all = reader.all();
            assert!(reader.rest.is_empty(), "{}: {}", spec.name, reader.rest);
            assert_eq!(all.is_empty(), spec.syntax.is_empty(), "{}", spec.name);
            // Specifications and lines speak of the same keys.
            assert!(reader.keys >= spec.keys.len(), "{}", spec.name);
        }
    }
}
