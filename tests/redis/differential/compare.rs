//! When two replies are alike: byte for byte, but for the few whose bytes depend on the moment, on the order
//! in which a server keeps its keys, or on what the server is.

use crate::differences::{self, Treatment};
use crate::differential::arguments::Mood;
use crate::wire::{Command, Kind, Reply};

/// How far times may be apart, in milliseconds. Long enough for a machine that is busy with something else;
/// times to live are at least an hour, so that a wrong one is not near.
const TOLERANCE_MILLIS: i64 = 30_000;

/// How the replies to a command are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Byte for byte.
    Exact,
    /// Elements in any order.
    Unordered,
    /// Numbers of this many milliseconds each, or the same negative one.
    Near { unit: i64 },
    /// Figures of the server's own: of the same kind, and both empty or none.
    Figures,
    /// A key out of many, or a page of them: of the same kind.
    Any,
    /// Byte for byte, but where the first begins with this.
    ExactUnless(&'static str),
    /// What HELLO says, but for version and connection.
    Hello,
}

/// How replies to `command` are compared in a round of this mood.
pub fn how(command: &Command, mood: Mood) -> How {
    let word = command.word(1);
    match command.name().as_str() {
        "keys" => How::Unordered,
        "ttl" => How::Near { unit: 1000 },
        "pttl" => How::Near { unit: 1 },
        "expiretime" if !mood.is_absolute => How::Near { unit: 1000 },
        "pexpiretime" if !mood.is_absolute => How::Near { unit: 1 },
        "lcs" => match differences::known(command).map(|difference| difference.treatment) {
            Some(Treatment::RedisRefuses(refusal)) => How::ExactUnless(refusal),
            _ => How::Exact,
        },
        "dbsize" if mood.is_lapsed => How::Figures,
        "hello" => How::Hello,
        "scan" | "randomkey" => How::Any,
        "info" | "time" | "lastsave" | "wait" => How::Figures,
        "client" if matches!(word.as_str(), "id" | "info" | "list" | "help") => How::Figures,
        "command" if word != "getkeys" => How::Figures,
        "object" if word != "freq" => How::Figures,
        "memory" | "slowlog" | "latency" => How::Figures,
        "config" if matches!(word.as_str(), "get" | "help") => How::Figures,
        _ => How::Exact,
    }
}

impl How {
    /// Whether two replies are alike. Errors are compared byte for byte in any case.
    pub fn alike(self, one: &Reply, other: &Reply) -> bool {
        if one.bytes == other.bytes {
            return true;
        }
        if let How::ExactUnless(refusal) = self {
            return one.bytes.starts_with(refusal.as_bytes());
        }
        if one.is_error() || other.is_error() {
            return false;
        }
        match self {
            How::Exact | How::ExactUnless(_) => false,
            How::Any => one.kind == other.kind,
            How::Unordered => one.kind == other.kind && sorted(one) == sorted(other),
            How::Near { unit } => match (one.integer(), other.integer()) {
                (Some(one), Some(other)) => {
                    // The next multiple is near as well.
                    let most = (TOLERANCE_MILLIS / unit).max(1).unsigned_abs();
                    one >= 0 && other >= 0 && one.abs_diff(other) <= most
                }
                _ => false,
            },
            How::Figures => {
                one.kind == other.kind
                    && one.items.is_empty() == other.items.is_empty()
                    && one.text.is_empty() == other.text.is_empty()
            }
            How::Hello => {
                let same = |pair: (&[Reply], &[Reply])| {
                    let (one, other) = pair;
                    let own = matches!(one[0].text.as_slice(), b"version" | b"id");
                    one[0].bytes == other[0].bytes
                        && if own { one[1].kind == other[1].kind } else { one[1].bytes == other[1].bytes }
                };
                one.kind == other.kind
                    && one.items.len() == other.items.len()
                    && one.items.len().is_multiple_of(2)
                    && one.items.chunks(2).zip(other.items.chunks(2)).all(same)
            }
        }
    }
}

fn sorted(reply: &Reply) -> Vec<&[u8]> {
    let mut items: Vec<_> = reply.items.iter().map(|item| item.bytes.as_slice()).collect();
    items.sort_unstable();
    items
}

/// The first of the commands of a transaction whose replies are not alike; `None` too, if there is not one
/// reply for each: then the whole is compared.
pub fn unlike_in_transaction(queued: &[How], one: &Reply, other: &Reply) -> Option<usize> {
    let whole = |reply: &Reply| reply.kind == Kind::Array && reply.items.len() == queued.len();
    if !whole(one) || !whole(other) {
        return None;
    }
    (0..queued.len()).find(|&index| !queued[index].alike(&one.items[index], &other.items[index]))
}

/// Whether two replies to EXEC are alike, each element in the way of the command that was queued.
pub fn transactions_alike(queued: &[How], one: &Reply, other: &Reply) -> bool {
    let whole = one.kind == Kind::Array && one.items.len() == queued.len();
    if !whole {
        return one.bytes == other.bytes;
    }
    other.kind == Kind::Array
        && other.items.len() == queued.len()
        && unlike_in_transaction(queued, one, other).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::parse;

    fn reply(text: &str) -> Reply {
        parse(text.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn what_may_differ_is_alike_and_nothing_else() {
        let alike = |how: How, one: &str, other: &str| how.alike(&reply(one), &reply(other));
        assert!(alike(How::Unordered, "*2\r\n+a\r\n+b\r\n", "*2\r\n+b\r\n+a\r\n"));
        assert!(!alike(How::Unordered, "*2\r\n+a\r\n+a\r\n", "*2\r\n+a\r\n+b\r\n"));
        assert!(alike(How::Near { unit: 1000 }, ":7200\r\n", ":7199\r\n"));
        assert!(!alike(How::Near { unit: 1000 }, ":7200\r\n", ":7100\r\n"));
        assert!(!alike(How::Near { unit: 1000 }, ":-1\r\n", ":-2\r\n"));
        assert!(!alike(How::Near { unit: 1000 }, ":0\r\n", ":-1\r\n"));
        assert!(!alike(How::Near { unit: 1000 }, ":7200\r\n", "$4\r\n7200\r\n"));
        assert!(alike(How::Figures, ":1\r\n", ":2\r\n"));
        assert!(!alike(How::Figures, ":1\r\n", "-ERR no\r\n"));
        assert!(!alike(How::Figures, "*0\r\n", "*1\r\n:1\r\n"));
        assert!(alike(
            How::Hello,
            "*4\r\n+id\r\n:1\r\n+mode\r\n+x\r\n",
            "*4\r\n+id\r\n:2\r\n+mode\r\n+x\r\n"
        ));
        assert!(!alike(How::Hello, "*2\r\n+mode\r\n+x\r\n", "*2\r\n+mode\r\n+y\r\n"));
        assert!(!alike(How::Exact, "$-1\r\n", "_\r\n"));
    }

    #[test]
    fn each_reply_of_a_transaction_is_compared_in_its_own_way() {
        let queued = [How::Exact, How::Near { unit: 1000 }];
        let alike = |one: &str, other: &str| transactions_alike(&queued, &reply(one), &reply(other));
        assert!(alike("*2\r\n+OK\r\n:7200\r\n", "*2\r\n+OK\r\n:7201\r\n"));
        assert!(!alike("*2\r\n+OK\r\n:7200\r\n", "*2\r\n+KO\r\n:7200\r\n"));
        assert!(!alike("*2\r\n+OK\r\n:7200\r\n", "*-1\r\n"));
        let unlike =
            unlike_in_transaction(&queued, &reply("*2\r\n+OK\r\n:7200\r\n"), &reply("*2\r\n+OK\r\n:-1\r\n"));
        assert_eq!(unlike, Some(1));
    }
}
