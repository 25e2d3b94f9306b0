//! The command line, and the same commands at the prompt.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use atlaskv::base::{EntryIndex, Lsn};
use atlaskv::client::{Condition, Config, Deadline, Durability, Expiry, Options, SetOptions};
use clap::{Args, Parser, Subcommand};

use crate::batch;
use crate::execute::Failure;
use crate::text;

const AFTER_HELP: &str = "\
Exit codes: 0 done; 1 key absent or condition failed; 2 usage; 3 refused by the server; 4 connection.
Output: values are escaped on a terminal (as \\n, \\xFF) and left as they are elsewhere, each with a
newline after it; --raw leaves them alone everywhere and adds no newline to a single value.
Without a command: a prompt, or, if standard input is no terminal, the commands that stand in it.";

/// The command line tool of AtlasKV.
#[derive(Debug, Parser)]
#[command(name = "atlaskv-cli", version, about, after_help = AFTER_HELP)]
pub struct Arguments {
    /// The server, as host:port.
    #[arg(short, long, default_value = Config::DEFAULT_ADDRESS, env = "ATLASKV_ADDRESS", global = true)]
    pub address: String,
    /// Print values exactly as they are.
    #[arg(long, global = true)]
    pub raw: bool,
    /// Print versions as well, before the value.
    #[arg(long, global = true)]
    pub version_too: bool,
    /// Seconds to wait for an answer.
    #[arg(long, default_value = "10", value_name = "SECONDS", value_parser = parse_timeout, global = true)]
    pub timeout: f64,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// A line at the prompt.
#[derive(Debug, Parser)]
#[command(name = "", no_binary_name = true, disable_version_flag = true)]
pub struct Line {
    #[command(subcommand)]
    pub command: Command,
}

/// What a client can ask for.
#[derive(Clone, Debug, PartialEq, Subcommand)]
pub enum Command {
    /// Print a key's value.
    Get { key: OsString },
    /// Store a value.
    Set {
        key: OsString,
        /// `-` reads it from standard input.
        #[arg(allow_hyphen_values = true)]
        value: OsString,
        #[command(flatten)]
        expiry: Expiries,
        #[command(flatten)]
        condition: Conditions,
        /// Answer only once it is on disk, whatever the server's --sync says.
        #[arg(long)]
        sync: bool,
    },
    /// Set the time when a key expires; a time that is past removes it.
    Expire {
        key: OsString,
        #[command(flatten)]
        deadline: Deadlines,
        /// Only if its value has this version.
        #[arg(long, value_name = "VERSION", value_parser = parse_version)]
        if_version: Option<Lsn>,
        /// Answer only once it is on disk, whatever the server's --sync says.
        #[arg(long)]
        sync: bool,
    },
    /// Let a key live for ever.
    Persist {
        key: OsString,
        /// Only if its value has this version.
        #[arg(long, value_name = "VERSION", value_parser = parse_version)]
        if_version: Option<Lsn>,
        /// Answer only once it is on disk, whatever the server's --sync says.
        #[arg(long)]
        sync: bool,
    },
    /// Print how long a key still lives, as 1500ms, or that it is for ever.
    Ttl { key: OsString },
    /// Remove a key.
    Del {
        key: OsString,
        /// Only if its value has this version.
        #[arg(long, value_name = "VERSION", value_parser = parse_version)]
        if_version: Option<Lsn>,
        /// Answer only once it is on disk, whatever the server's --sync says.
        #[arg(long)]
        sync: bool,
    },
    /// Add to a number, an absent key counting as 0, and print the sum.
    Incr {
        key: OsString,
        #[arg(default_value = "1", allow_negative_numbers = true)]
        amount: i64,
        /// Answer only once it is on disk, whatever the server's --sync says.
        #[arg(long)]
        sync: bool,
    },
    /// Print several keys' values, one a line.
    Mget {
        #[arg(required = true)]
        keys: Vec<OsString>,
    },
    /// Print the keys of a range in order, each with a tab and its value, one a line. With --raw nothing in them is
    /// escaped, not even tabs and newlines.
    Scan {
        /// Keys that begin with this.
        #[arg(long, conflicts_with_all = ["start", "end"])]
        prefix: Option<OsString>,
        /// Keys from this one on.
        #[arg(long)]
        start: Option<OsString>,
        /// Keys below this one.
        #[arg(long)]
        end: Option<OsString>,
        /// From the last to the first.
        #[arg(long)]
        reverse: bool,
        /// So many at most.
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
        /// Keys without values.
        #[arg(long)]
        keys: bool,
        /// Print only how many they are.
        #[arg(long)]
        count_only: bool,
    },
    /// Remove the keys of a range, however many they are.
    #[command(name = "delrange")]
    DelRange {
        /// Keys from this one on; empty: from the first.
        #[arg(requires = "end", required_unless_present = "prefix")]
        start: Option<OsString>,
        /// Keys below this one; empty: to the last.
        end: Option<OsString>,
        /// Keys that begin with this.
        #[arg(long, conflicts_with_all = ["start", "end"])]
        prefix: Option<OsString>,
        /// Answer only once it is on disk, whatever the server's --sync says.
        #[arg(long)]
        sync: bool,
    },
    /// Remove all keys.
    Flush {
        /// Answer only once it is on disk, whatever the server's --sync says.
        #[arg(long)]
        sync: bool,
    },
    /// Ask for a sign of life.
    Ping {
        /// Comes back as it is.
        payload: Option<OsString>,
    },
    /// Print the server's figures.
    Stats {
        /// Only this section.
        #[arg(default_value = "")]
        section: String,
    },
    /// Move or split a tablet while it is served; without either, move tablets until the cores in use are equally
    /// loaded.
    Rebalance {
        /// Move this tablet to this core (shard).
        #[arg(long = "move", num_args = 2, value_names = ["TABLET", "SHARD"], conflicts_with = "split")]
        to: Option<Vec<u32>>,
        /// Give the slots of this tablet from SLOT on, or the upper half of them, to a new one.
        #[arg(long, num_args = 1..=2, value_names = ["TABLET", "SLOT"])]
        split: Option<Vec<u32>>,
    },
    /// Make a consistent copy of the data while serving, by hard links: a data directory of its own.
    Checkpoint {
        /// A new or empty directory on the server's machine, on the file system of its data; an absolute path. Or save,
        /// or bgsave: as SAVE and BGSAVE of Redis, in place of the one before.
        dir: String,
    },
    /// Move all tablets to the first COUNT of the server's cores, while it serves.
    Cores { count: u32 },
    /// Do several writes to keys of one slot, all or none: items one after another, each perhaps with an expiry as SET
    /// takes it, and --if-absent, --if-present or --if-version VERSION. If one of these does not hold before the batch,
    /// nothing is done. A check is a condition alone.
    Batch {
        #[arg(required = true, allow_hyphen_values = true, value_name = batch::ITEMS)]
        words: Vec<OsString>,
        /// Answer only once it is on disk, whatever the server's --sync says.
        #[arg(long)]
        sync: bool,
    },
}

/// A time when a key expires. One is given: the group requires it.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq)]
#[group(required = true, multiple = false)]
pub struct Deadlines {
    /// It expires after this time: a number with ms, s, m, h or d.
    #[arg(long, value_name = "TIME", value_parser = parse_ttl)]
    ttl: Option<Duration>,
    /// It expires after so many milliseconds.
    #[arg(long, value_name = "MS")]
    ttl_ms: Option<u64>,
    /// It expires so many milliseconds after the beginning of 1970 (UTC).
    #[arg(long, value_name = "MS")]
    expire_at_ms: Option<u64>,
}

impl Deadlines {
    /// As the client takes it; nothing if none is given.
    pub fn deadline(self) -> Option<Deadline> {
        let of_ttl = self.ttl.map(Deadline::after);
        of_ttl.or(self.ttl_ms.map(Deadline::In)).or(self.expire_at_ms.map(Deadline::At))
    }
}

/// When a key expires that is set.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq)]
#[group(multiple = false)]
pub struct Expiries {
    /// It expires after this time: a number with ms, s, m, h or d.
    #[arg(long, value_name = "TIME", value_parser = parse_ttl)]
    ttl: Option<Duration>,
    /// It expires after so many milliseconds.
    #[arg(long, value_name = "MS")]
    ttl_ms: Option<u64>,
    /// It expires so many milliseconds after the beginning of 1970 (UTC).
    #[arg(long, value_name = "MS")]
    expire_at_ms: Option<u64>,
    /// It expires when it did before.
    #[arg(long)]
    keep_ttl: bool,
}

impl Expiries {
    /// As the client takes it.
    fn expiry(self) -> Expiry {
        let Expiries { ttl, ttl_ms, expire_at_ms, keep_ttl } = self;
        match (Deadlines { ttl, ttl_ms, expire_at_ms }).deadline() {
            Some(deadline) => Expiry::Set(deadline),
            None if keep_ttl => Expiry::Keep,
            None => Expiry::Never,
        }
    }
}

/// What must hold of the key.
#[derive(Args, Clone, Copy, Debug, Default, PartialEq)]
#[group(multiple = false)]
pub struct Conditions {
    /// Only if the key has no value.
    #[arg(long)]
    if_absent: bool,
    /// Only if the key has a value.
    #[arg(long)]
    if_present: bool,
    /// Only if its value has this version.
    #[arg(long, value_name = "VERSION", value_parser = parse_version)]
    if_version: Option<Lsn>,
}

impl Conditions {
    /// As the client takes them.
    pub fn options(self, expiry: Expiries, sync: bool) -> SetOptions {
        let condition = match (self.if_absent, self.if_present, self.if_version) {
            (true, _, _) => Condition::IfAbsent,
            (_, true, _) => Condition::IfPresent,
            (_, _, Some(version)) => Condition::IfVersion(version),
            (false, false, None) => Condition::None,
        };
        SetOptions { expiry: expiry.expiry(), condition, durability: durability(sync) }
    }
}

/// As the client takes `--if-version` and `--sync`.
pub fn options(if_version: Option<Lsn>, sync: bool) -> Options {
    let condition = if_version.map_or(Condition::None, Condition::IfVersion);
    Options { condition, durability: durability(sync) }
}

/// As the client takes `--sync`.
pub fn durability(sync: bool) -> Durability {
    if sync { Durability::Always } else { Durability::Default }
}

impl Command {
    /// Seconds to wait for an answer, when `asked` are to be waited: changes of tablets wait for the disk to take
    /// what is in memory, some of them many times.
    pub fn patience(&self, asked: f64) -> f64 {
        const ARRANGE_SECS: f64 = 600.0;
        match self {
            Command::Rebalance { .. } | Command::Cores { .. } | Command::Checkpoint { .. } => {
                asked.max(ARRANGE_SECS)
            }
            _ => asked,
        }
    }

    /// Puts standard input where `-` stands for it.
    pub fn read_stdin(mut self) -> Result<Command, Failure> {
        if let Command::Set { value, .. } = &mut self
            && value.as_bytes() == b"-"
        {
            let mut bytes = Vec::new();
            std::io::stdin()
                .lock()
                .read_to_end(&mut bytes)
                .map_err(|error| Failure::Usage(format!("cannot read standard input: {error}")))?;
            *value = OsString::from_vec(bytes);
        }
        Ok(self)
    }

    /// A line at the prompt; `None` if there is nothing on it.
    pub fn of_line(line: &[u8]) -> Result<Option<Command>, Failure> {
        let words = text::split_words(line).map_err(|error| Failure::Usage(error.to_string()))?;
        if words.is_empty() {
            return Ok(None);
        }
        match Line::try_parse_from(words.into_iter().map(OsString::from_vec)) {
            Ok(line) => Ok(Some(line.command)),
            Err(error) if error.use_stderr() => Err(Failure::Usage(one_line(&error))),
            Err(error) => {
                error.print()?;
                Ok(None)
            }
        }
    }
}

/// What clap has to say, in one line.
pub fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let said = text.split("\n\n").next().unwrap_or(text);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    if said.is_empty()
        || said.starts_with("Usage")
        || error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    {
        return "a command is missing; --help lists them".to_owned();
    }
    format!("{said}; --help lists what there is")
}

/// A version as it is printed, `entry.ordinal`, or as one number.
pub fn parse_version(text: &str) -> Result<Lsn, String> {
    let parse = || match text.split_once('.') {
        Some((index, ordinal)) => {
            let index = EntryIndex(index.parse().ok()?);
            (index <= EntryIndex::MAX).then_some(())?;
            Some(Lsn::new(index, ordinal.parse().ok()?))
        }
        None => text.parse().ok().map(Lsn),
    };
    parse()
        .filter(|&version| version != Lsn::ZERO)
        .ok_or_else(|| "a version is a number above 0, or two as in 7.0".to_owned())
}

/// A time to live: a whole number with its unit.
pub fn parse_ttl(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let unit_ms = match unit {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60 * 1000),
        "h" => Some(60 * 60 * 1000),
        "d" => Some(24 * 60 * 60 * 1000),
        _ => None,
    };
    let ms =
        number.parse::<u64>().ok().zip(unit_ms).and_then(|(number, unit_ms)| number.checked_mul(unit_ms));
    ms.map(Duration::from_millis).ok_or_else(|| "a number with ms, s, m, h or d, as in 10s".to_owned())
}

fn parse_timeout(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.001..=86_400.0).contains(seconds));
    seconds.ok_or_else(|| "seconds between 0.001 and 86400".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str) -> Result<Command, Failure> {
        Command::of_line(line.as_bytes()).map(|command| command.unwrap())
    }

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
        Line::command().debug_assert();
    }

    #[test]
    fn hyphens_are_values_and_known_options_are_options() {
        let Command::Set { value, sync, condition, .. } =
            command("set k -5 --sync --if-version 7.2").unwrap()
        else {
            panic!("another command");
        };
        assert_eq!((value.as_bytes(), sync), (&b"-5"[..], true));
        assert_eq!(
            condition.options(Expiries::default(), false).condition,
            Condition::IfVersion(Lsn(7 << 16 | 2))
        );
        assert_eq!(command("incr k -3").unwrap(), Command::Incr { key: "k".into(), amount: -3, sync: false });
        assert_eq!(command("incr k").unwrap(), Command::Incr { key: "k".into(), amount: 1, sync: false });
    }

    #[test]
    fn what_is_wrong_is_said_in_one_line() {
        for line in [
            "frob",
            "set k",
            "set k v --if-absent --if-present",
            "del k --if-version 0",
            "get 'k",
            "incr k x",
            "set k v --ttl 10",
            "set k v --ttl 1.5s",
            "set k v --ttl 10s --keep-ttl",
            "set k v --ttl 99999999999999999d",
            "expire k",
            "expire k --ttl 10s --ttl-ms 7",
        ] {
            let Err(Failure::Usage(message)) = command(line) else { panic!("{line} is taken") };
            assert!(!message.is_empty() && !message.contains('\n'), "{line}: {message}");
        }
    }

    #[test]
    fn times_to_live_are_read_with_their_unit() {
        for (given, wanted) in [
            ("", Expiry::Never),
            ("--keep-ttl", Expiry::Keep),
            ("--ttl 1500ms", Expiry::Set(Deadline::In(1500))),
            ("--ttl 10s", Expiry::Set(Deadline::In(10_000))),
            ("--ttl 2m", Expiry::Set(Deadline::In(120_000))),
            ("--ttl 3h", Expiry::Set(Deadline::In(10_800_000))),
            ("--ttl 1d", Expiry::Set(Deadline::In(86_400_000))),
            ("--ttl-ms 7", Expiry::Set(Deadline::In(7))),
            ("--expire-at-ms 9", Expiry::Set(Deadline::At(9))),
        ] {
            let Command::Set { expiry, .. } = command(&format!("set k v {given}")).unwrap() else {
                panic!("another command");
            };
            assert_eq!(expiry.expiry(), wanted, "{given}");
        }
        let Command::Expire { deadline, .. } = command("expire k --ttl 10s").unwrap() else {
            panic!("another command");
        };
        assert_eq!(deadline.deadline(), Some(Deadline::In(10_000)));
    }

    #[test]
    fn keys_may_be_any_bytes() {
        let Command::Get { key } = command(r#"get "a\x00\xff b""#).unwrap() else {
            panic!("another command")
        };
        assert_eq!(key.as_bytes(), b"a\0\xff b");
        assert!(Command::of_line(b"  \t ").unwrap().is_none());
    }
}
