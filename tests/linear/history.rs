//! What clients asked and were answered, and when: in memory, and as text.
//!
//! The text has one line for each operation, under the line of its key:
//!
//! ```text
//! atlaskv-history 1
//! start 910                                a server was ready then, after a crash
//! key hot:3
//! 100 140 c0 set v7 > @65536               call, end, client, request > answer; times in nanoseconds
//! 150 160 c1 get > v7@65536                a value and its version
//! 170 190 c1 set v9 if @65536 > @65537     compare-and-set
//! 180 200 c2 set v8 if @65536 > failed @65537
//! 300 910 c2 delete > lost                 no answer; without effect from 910 on if it had none before
//! 920 930 c0 get > absent
//! ```
//!
//! `-` as the end of a lost operation: it may take effect at any time. `set v1 if absent`, `delete if @5`,
//! `failed -` (the key is absent) are the other forms.

use std::collections::HashMap;
use std::fmt::{self, Write as _};

/// The end of a lost write that may still take effect.
pub const NEVER: u64 = u64::MAX;

/// What must hold of the key for a write to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cond {
    None,
    IfAbsent,
    IfVersion(u64),
}

/// What was asked. Values are named by numbers, and no two writes of a key have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    Get,
    Set(u64, Cond),
    Delete(Cond),
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To a get.
    Found { value: u64, version: u64 },
    /// To a get or a delete: there is no such key.
    Absent,
    /// To a write: the version that it made.
    Written(u64),
    /// The condition does not hold; the version that is there instead.
    Failed(Option<u64>),
    /// None, to a write: it may have been done.
    Lost,
}

/// An operation on one key. It took effect at one moment from `call` to `end`, or, if it is lost, never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    pub client: u16,
    pub call: u64,
    /// Of a lost write: when it was certain that it will do nothing any more.
    pub end: u64,
    pub request: Request,
    pub answer: Answer,
}

/// Operations by key, and the moments when a server was ready after the end of the one before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    pub starts: Vec<u64>,
    pub keys: Vec<(String, Vec<Op>)>,
}

impl Op {
    pub fn is_lost(&self) -> bool {
        self.answer == Answer::Lost
    }

    /// The version that it made or saw.
    pub fn version(&self) -> Option<u64> {
        match self.answer {
            Answer::Written(version) => Some(version),
            _ => self.seen_version(),
        }
    }

    /// What it says of the key's version: there is one, and it is not the operation's own.
    pub fn seen_version(&self) -> Option<u64> {
        match self.answer {
            Answer::Found { version, .. } | Answer::Failed(Some(version)) => Some(version),
            _ => None,
        }
    }

    /// Whether it says that the key is absent, and did nothing.
    pub fn saw_absence(&self) -> bool {
        matches!(self.answer, Answer::Absent | Answer::Failed(None))
    }
}

impl History {
    pub fn len(&self) -> usize {
        self.keys.iter().map(|(_, ops)| ops.len()).sum()
    }

    /// Reads what [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Result<History, String> {
        let mut history = History::default();
        let mut places: HashMap<String, usize> = HashMap::new();
        let mut place = None;
        let mut lines = text.lines().enumerate();
        if lines.next().map(|(_, line)| line) != Some("atlaskv-history 1") {
            return Err("this is not a history: its first line must be \"atlaskv-history 1\"".into());
        }
        for (at, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
            let wrong = || format!("line {}: {line:?} is not understood", at + 1);
            if let Some(time) = line.strip_prefix("start ") {
                history.starts.push(time.parse().map_err(|_| wrong())?);
            } else if let Some(key) = line.strip_prefix("key ") {
                let next = history.keys.len();
                let at = *places.entry(key.to_string()).or_insert(next);
                if at == next {
                    history.keys.push((key.to_string(), Vec::new()));
                }
                place = Some(at);
            } else {
                let op = parse_op(line).ok_or_else(wrong)?;
                let at = place.ok_or_else(|| format!("line {}: before the first key", at + 1))?;
                history.keys[at].1.push(op);
            }
        }
        Ok(history)
    }
}

fn parse_op(line: &str) -> Option<Op> {
    let (asked, answer) = line.split_once(" > ")?;
    let mut words = asked.split(' ');
    let call = words.next()?.parse().ok()?;
    let end = match words.next()? {
        "-" => NEVER,
        time => time.parse().ok()?,
    };
    let client = words.next()?.strip_prefix('c')?.parse().ok()?;
    let value = |word: &str| word.strip_prefix('v')?.parse().ok();
    let request = match words.next()? {
        "get" => Request::Get,
        "set" => Request::Set(value(words.next()?)?, parse_cond(words)?),
        "delete" => Request::Delete(parse_cond(words)?),
        _ => return None,
    };
    let answer = match answer {
        "absent" => Answer::Absent,
        "lost" => Answer::Lost,
        "failed -" => Answer::Failed(None),
        other => match (other.strip_prefix("failed "), other.split_once('@')?) {
            (Some(version), _) => Answer::Failed(Some(version.strip_prefix('@')?.parse().ok()?)),
            (None, ("", version)) => Answer::Written(version.parse().ok()?),
            (None, (found, version)) => {
                Answer::Found { value: value(found)?, version: version.parse().ok()? }
            }
        },
    };
    Some(Op { client, call, end, request, answer })
}

fn parse_cond<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<Cond> {
    match (words.next(), words.next()) {
        (None, None) => Some(Cond::None),
        (Some("if"), Some("absent")) => Some(Cond::IfAbsent),
        (Some("if"), Some(version)) => Some(Cond::IfVersion(version.strip_prefix('@')?.parse().ok()?)),
        _ => None,
    }
}

impl fmt::Display for Cond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cond::None => Ok(()),
            Cond::IfAbsent => f.write_str(" if absent"),
            Cond::IfVersion(version) => write!(f, " if @{version}"),
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.end {
            NEVER => write!(f, "{} - c{} ", self.call, self.client)?,
            end => write!(f, "{} {end} c{} ", self.call, self.client)?,
        }
        match self.request {
            Request::Get => f.write_str("get")?,
            Request::Set(value, cond) => write!(f, "set v{value}{cond}")?,
            Request::Delete(cond) => write!(f, "delete{cond}")?,
        }
        match self.answer {
            Answer::Found { value, version } => write!(f, " > v{value}@{version}"),
            Answer::Absent => f.write_str(" > absent"),
            Answer::Written(version) => write!(f, " > @{version}"),
            Answer::Failed(Some(version)) => write!(f, " > failed @{version}"),
            Answer::Failed(None) => f.write_str(" > failed -"),
            Answer::Lost => f.write_str(" > lost"),
        }
    }
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("atlaskv-history 1\n")?;
        self.starts.iter().try_for_each(|start| writeln!(f, "start {start}"))?;
        for (key, ops) in &self.keys {
            writeln!(f, "key {key}")?;
            ops.iter().try_for_each(|op| writeln!(f, "{op}"))?;
        }
        f.write_char('\n')
    }
}

#[test]
fn a_history_comes_back_from_its_text() {
    let text = "atlaskv-history 1\nstart 910\nkey hot:3\n100 140 c0 set v7 > @65536\n150 160 c1 get > v7@65536\n\
                170 190 c1 set v9 if @65536 > @65537\n180 200 c2 set v8 if @65536 > failed @65537\n\
                190 200 c2 set v10 if absent > failed -\n300 910 c2 delete > lost\n310 - c3 delete if @65537 > lost\n\
                key cold:1\n920 930 c0 get > absent\n\n";
    let history = History::parse(text).expect("it is well-formed");
    assert_eq!((history.len(), history.keys.len()), (8, 2));
    assert_eq!(history.to_string(), text);
    for wrong in ["get > absent", "1 2 c0 set 7 > @1", "1 2 c0 get > 7", "1 2 c0 delete if > @3"] {
        let error = History::parse(&format!("atlaskv-history 1\nkey a\n{wrong}\n")).expect_err(wrong);
        assert!(error.starts_with("line 3"), "{error}");
    }
    assert!(History::parse("1 2 c0 get > absent").is_err());
}
