//! Where AtlasKV answers otherwise than Redis 7 on purpose. What is not here is answered byte for byte as
//! Redis does, as far as `differential` compares bytes at all; its `compare.rs` has what depends on the
//! moment or on what a server is (figures, the order of keys).
//!
//! Each entry has examples, and a test asks both servers for them: an entry that is no longer true fails.

use atlaskv::base::KEY_BYTES_MAX;

use crate::differential::shape;
use crate::wire::Command;

/// A difference.
#[derive(Debug)]
pub struct Difference {
    /// What it is about.
    pub name: &'static str,
    /// Why AtlasKV does otherwise.
    pub why: &'static str,
    /// Whether a command shows it. May say so of one that both refuse.
    pub covers: fn(&Command) -> bool,
    /// How such a command is dealt with when both are compared.
    pub treatment: Treatment,
    /// Some that show it.
    pub examples: &'static [Example],
}

/// How commands that show a difference are dealt with. In a transaction they are left out.
#[derive(Clone, Copy, Debug)]
pub enum Treatment {
    /// Only AtlasKV is asked, since Redis would do what AtlasKV refuses; and its answer begins with one of
    /// these.
    AtlasOnly(&'static [&'static str]),
    /// Redis is asked this instead, and has to answer alike.
    RedisGets(fn(&Command) -> Command),
    /// Both are asked; where Redis's answer begins with this, AtlasKV's may be another.
    RedisRefuses(&'static str),
    /// It takes several commands to show it, and such are not played.
    NotPlayed,
    /// It shows only later, or depends on the moment: neither is asked.
    LeftOut,
    /// It shows in transactions only.
    NotInTransactions,
}

/// A command that shows a difference, on an empty store. `LONG` stands for a key of one byte too many.
#[derive(Debug)]
pub struct Example {
    /// What is done before, by both.
    pub before: &'static [&'static str],
    /// The command, its words separated by one blank.
    pub command: &'static str,
    /// What Redis's answer begins with.
    pub redis: &'static str,
    /// What AtlasKV's answer begins with.
    pub atlas: &'static str,
}

impl Example {
    /// Its command.
    pub fn command(&self) -> Command {
        let mut command = Command::line(self.command);
        for word in command.0.iter_mut().filter(|word| *word == b"LONG") {
            *word = vec![b'k'; KEY_BYTES_MAX + 1];
        }
        command
    }
}

/// What Redis says of two values whose lengths have too great a product.
const LCS_LIMIT: &str = "-ERR Insufficient memory, transient memory for LCS exceeds proto-max-bulk-len";

/// In seconds a time beyond the year 5138. Many that are milliseconds are left out with those.
const FAR: i128 = 100_000_000_000;

/// All of them. The first that covers a command counts.
pub const DIFFERENCES: &[Difference] = &[
    Difference {
        name: "a key is 1 to 65,535 bytes",
        why: "tables and logs give a key's length 16 bits; an empty key is where a range of all keys begins",
        covers: |command| shape::keys(command).iter().any(|key| key.is_empty() || key.len() > KEY_BYTES_MAX),
        treatment: Treatment::AtlasOnly(&["-ERR"]),
        examples: &[
            Example { before: &[], command: "SET  v", redis: "+OK", atlas: "-ERR" },
            Example { before: &[], command: "GET ", redis: "$-1", atlas: "-ERR" },
            Example { before: &[], command: "SET LONG v", redis: "+OK", atlas: "-ERR" },
            Example { before: &[], command: "EXISTS a LONG", redis: ":0", atlas: "-ERR" },
        ],
    },
    Difference {
        name: "RENAME, RENAMENX, COPY, MSETNX and LCS want keys of one slot",
        why: "they read and write several keys as one step, and a step is done by the shard that owns the \
              slot; as in a Redis Cluster, keys that belong together share a {hash tag}",
        covers: |command| {
            let several = ["rename", "renamenx", "copy", "msetnx", "lcs"].contains(&command.name().as_str());
            several && shape::slots(command).len() > 1
        },
        // One that is wrong in other ways as well may be told so instead.
        treatment: Treatment::AtlasOnly(&["-CROSSSLOT", "-ERR"]),
        examples: &[
            Example { before: &["SET a 1"], command: "RENAME a b", redis: "+OK", atlas: "-CROSSSLOT" },
            Example { before: &["SET a 1"], command: "RENAMENX a b", redis: ":1", atlas: "-CROSSSLOT" },
            Example { before: &["SET a 1"], command: "COPY a b", redis: ":1", atlas: "-CROSSSLOT" },
            Example { before: &[], command: "MSETNX a 1 b 2", redis: ":1", atlas: "-CROSSSLOT" },
            Example { before: &["MSET a xy b y"], command: "LCS a b", redis: "$1\r\ny", atlas: "-CROSSSLOT" },
        ],
    },
    Difference {
        name: "a transaction is of one slot",
        why: "the shard that owns the slot does all of it as one step; what it watches is of that slot too",
        covers: |_| false,
        treatment: Treatment::NotPlayed,
        examples: &[
            Example {
                before: &["MULTI", "SET a 1", "SET b 2"],
                command: "EXEC",
                redis: "*2",
                atlas: "-CROSSSLOT",
            },
            Example {
                before: &["WATCH a", "MULTI", "SET b 2"],
                command: "EXEC",
                redis: "*1",
                atlas: "-CROSSSLOT",
            },
        ],
    },
    Difference {
        name: "a watched key that was absent and is absent again has not changed",
        why: "what is compared is the version, and what is absent has none; the transaction finds what WATCH saw",
        covers: |command| command.name() == "watch",
        treatment: Treatment::LeftOut,
        examples: &[Example {
            before: &["WATCH k", "SET k 1", "DEL k", "MULTI"],
            command: "EXEC",
            redis: "*-1",
            atlas: "*0",
        }],
    },
    Difference {
        name: "a transaction has no commands about all keys, and none that change the connection",
        why: "all shards would have to do it at the same moment as the one that does the rest",
        covers: |command| {
            let others =
                ["dbsize", "randomkey", "keys", "scan", "flushall", "flushdb", "info", "hello", "bgsave"];
            let subs = ["list", "setname", "reply", "kill", "pause", "unpause"];
            let lists = command.name() == "client" && subs.contains(&command.word(1).as_str());
            lists || others.contains(&command.name().as_str())
        },
        treatment: Treatment::NotInTransactions,
        examples: &[Example {
            before: &["MULTI"],
            command: "DBSIZE",
            redis: "+QUEUED",
            atlas: "-ERR Command not allowed inside a transaction",
        }],
    },
    Difference {
        name: "what is written, read or sent at once is bounded by a MiB and a frame",
        why: "all that a command writes is one entry of the log, and what it sends or gets is one frame; values \
              themselves may be longer. The values of these tests are so short that it is not met",
        covers: |_| false,
        treatment: Treatment::NotPlayed,
        examples: &[Example {
            before: &["SETRANGE {a}k 1048570 x"],
            command: "RENAME {a}k {a}j",
            redis: "+OK",
            atlas: "-ERR a transaction that writes 2 keys",
        }],
    },
    Difference {
        name: "the latest expiry is in the year 10889",
        why: "times have 48 bits of milliseconds, so that one in micro- or nanoseconds is found out",
        covers: |command| {
            let expires = command.name().contains("expire") || command.name().contains("setex");
            let takes_time = expires || ["set", "getex"].contains(&command.name().as_str());
            let is_far = |word: &Vec<u8>| {
                let number = std::str::from_utf8(word).ok().and_then(|text| text.parse::<i128>().ok());
                number.is_some_and(|number| number > FAR)
            };
            takes_time && command.0.iter().skip(2).any(is_far)
        },
        treatment: Treatment::LeftOut,
        examples: &[Example {
            before: &["SET k v", "PEXPIREAT k 9000000000000000"],
            command: "PEXPIRETIME k",
            redis: ":9000000000000000",
            atlas: ":281474976710655",
        }],
    },
    Difference {
        name: "settings are flags",
        why: "they are read when the server starts, and only what they are already can be set",
        covers: |command| {
            command.name() == "config" && command.word(1) == "set" && command.word(2) == "maxmemory"
        },
        treatment: Treatment::AtlasOnly(&["-ERR"]),
        examples: &[Example {
            before: &[],
            command: "CONFIG SET maxmemory 0",
            redis: "+OK",
            atlas: "-ERR CONFIG SET",
        }],
    },
    Difference {
        name: "SET takes SYNC and NOSYNC",
        why: "an extension: whether this write is acknowledged once it is on disk, or at once",
        covers: |command| command.name() == "set" && !durability_options(command).is_empty(),
        treatment: Treatment::RedisGets(|command| {
            let options = durability_options(command);
            let kept = (0..command.0.len()).filter(|at| !options.contains(at));
            Command(kept.map(|at| command.0[at].clone()).collect())
        }),
        examples: &[
            Example { before: &[], command: "SET k v SYNC", redis: "-ERR syntax error", atlas: "+OK" },
            Example { before: &[], command: "SET k v XX nosync", redis: "-ERR syntax error", atlas: "$-1" },
        ],
    },
    Difference {
        name: "LCS has a limit of its own",
        why: "Redis bounds its table by proto-max-bulk-len, which is less in these tests than by default",
        covers: |command| command.name() == "lcs",
        treatment: Treatment::RedisRefuses(LCS_LIMIT),
        examples: &[Example {
            before: &["SETRANGE {l}1 600 x", "SETRANGE {l}2 600 y"],
            command: "LCS {l}1 {l}2 LEN",
            redis: LCS_LIMIT,
            atlas: ":600",
        }],
    },
    Difference {
        name: "CLIENT SETINFO, and what else is newer than Redis 7.0",
        why: "clients of today send it as they connect; the Redis of Debian, which is compared with, is 7.0",
        covers: |command| {
            command.name() == "client" && ["setinfo", "no-touch"].contains(&command.word(1).as_str())
        },
        treatment: Treatment::AtlasOnly(&["+OK", "-ERR"]),
        examples: &[Example {
            before: &[],
            command: "CLIENT SETINFO LIB-NAME tests",
            redis: "-ERR unknown subcommand",
            atlas: "+OK",
        }],
    },
    Difference {
        name: "values are strings",
        why: "AtlasKV has no other types and no scripts, and says so",
        covers: |command| {
            let absent = ["hset", "lpush", "sadd", "zadd", "xadd", "pfadd", "eval", "publish"];
            absent.contains(&command.name().as_str())
        },
        treatment: Treatment::AtlasOnly(&["-ERR"]),
        examples: &[
            Example { before: &[], command: "LPUSH k v", redis: ":1", atlas: "-ERR LPUSH is not" },
            Example {
                before: &[],
                command: "EVAL x 0",
                redis: "-ERR Error compiling",
                atlas: "-ERR EVAL is not",
            },
        ],
    },
];

/// Where a SET has SYNC or NOSYNC as an option, rather than as the time that EX and its like take.
fn durability_options(command: &Command) -> Vec<usize> {
    let (mut found, mut at) = (Vec::new(), 3);
    while at < command.0.len() {
        match command.word(at).as_str() {
            "ex" | "px" | "exat" | "pxat" => at += 1,
            "sync" | "nosync" => found.push(at),
            _ => {}
        }
        at += 1;
    }
    found
}

/// What is known of a command's difference.
pub fn known(command: &Command) -> Option<&'static Difference> {
    DIFFERENCES.iter().find(|difference| (difference.covers)(command))
}

#[test]
fn examples_are_covered_and_ordinary_commands_are_not() {
    // Of the others, what shows it is not what it is about.
    let played = |difference: &&Difference| {
        matches!(
            difference.treatment,
            Treatment::AtlasOnly(_) | Treatment::RedisGets(_) | Treatment::RedisRefuses(_)
        )
    };
    for difference in DIFFERENCES.iter().filter(played) {
        for example in difference.examples {
            let found = known(&example.command()).map(|found| found.name);
            assert_eq!(found, Some(difference.name), "{}", example.command);
        }
    }
    for line in
        ["SET k v", "SET sync nosync", "MGET a b", "RENAME {a}1 {a}2", "GET k", "NOTHING ", "CLIENT ID"]
    {
        assert!(known(&Command::line(line)).is_none(), "{line}");
    }
}
