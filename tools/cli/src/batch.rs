//! The items of a batch, as they stand on the command line.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;

use atlaskv::client::{Batch, Condition, Deadline, Expiry};

use crate::arguments::{parse_ttl, parse_version};
use crate::execute::Failure;
use crate::text::name;

/// How items are written, for the help.
pub const ITEMS: &str = "put KEY VALUE | del KEY | expire KEY | persist KEY | check KEY";

fn usage(message: String) -> Failure {
    Failure::Usage(format!("batch: {message}"))
}

/// What may follow an item.
#[derive(Default)]
struct Options {
    expiry: Option<Expiry>,
    condition: Condition,
}

/// Words that are left.
struct Words<'a> {
    left: std::iter::Peekable<std::slice::Iter<'a, OsString>>,
}

impl<'a> Words<'a> {
    fn take(&mut self, of: &str, what: &str) -> Result<&'a OsString, Failure> {
        self.left.next().ok_or_else(|| usage(format!("{of} lacks its {what}")))
    }

    /// A word that is no key or value, as `parse` reads it.
    fn parsed<T>(&mut self, of: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<T, Failure> {
        let word = self.take(of, "value")?;
        let text = word.to_str().ok_or_else(|| usage(format!("{of}: {} is not text", name(word))))?;
        parse(text).map_err(|why| usage(format!("{of} {}: {why}", name(word))))
    }

    fn options(&mut self) -> Result<Options, Failure> {
        let mut options = Options::default();
        let ms = |text: &str| text.parse::<u64>().map_err(|_| "a number of milliseconds".to_owned());
        while let Some(word) = self.left.next_if(|word| word.as_bytes().starts_with(b"--")) {
            let expiry = match word.as_bytes() {
                b"--ttl" => Expiry::after(self.parsed("--ttl", parse_ttl)?),
                b"--ttl-ms" => Expiry::Set(Deadline::In(self.parsed("--ttl-ms", ms)?)),
                b"--expire-at-ms" => Expiry::Set(Deadline::At(self.parsed("--expire-at-ms", ms)?)),
                b"--keep-ttl" => Expiry::Keep,
                other => {
                    let condition = match other {
                        b"--if-absent" => Condition::IfAbsent,
                        b"--if-present" => Condition::IfPresent,
                        b"--if-version" => Condition::IfVersion(self.parsed("--if-version", parse_version)?),
                        _ => return Err(usage(format!("{} is no option of an item", name(word)))),
                    };
                    if options.condition != Condition::None {
                        return Err(usage(format!("{}: an item has one condition", name(word))));
                    }
                    options.condition = condition;
                    continue;
                }
            };
            if options.expiry.replace(expiry).is_some() {
                return Err(usage(format!("{}: an item has one expiry", name(word))));
            }
        }
        Ok(options)
    }
}

/// A batch, and the keys of its items.
pub fn parse(words: &[OsString]) -> Result<(Batch, Vec<&OsString>), Failure> {
    let mut batch = Batch::new();
    let mut keys = Vec::new();
    let mut words = Words { left: words.iter().peekable() };
    while let Some(verb) = words.left.next() {
        let of = name(verb);
        if !matches!(verb.as_bytes(), b"put" | b"set" | b"del" | b"expire" | b"persist" | b"check") {
            return Err(usage(format!("{of} begins no item, those are: {ITEMS}")));
        }
        let key = words.take(&of, "key")?;
        let value = match verb.as_bytes() {
            b"put" | b"set" => words.take(&of, "value")?.as_bytes(),
            _ => b"",
        };
        let Options { expiry, condition } = words.options()?;
        keys.push(key);
        let key = key.as_bytes();
        match (verb.as_bytes(), expiry) {
            (b"put" | b"set", expiry) => batch.put_with(key, value, expiry.unwrap_or_default(), condition)?,
            (b"expire", Some(Expiry::Set(deadline))) => batch.expire(key, deadline, condition)?,
            (b"expire", _) => return Err(usage("expire needs --ttl, --ttl-ms or --expire-at-ms".to_owned())),
            (_, Some(_)) => return Err(usage(format!("{of} takes no expiry"))),
            (b"del", None) => batch.delete_with(key, condition)?,
            (b"persist", None) => batch.persist(key, condition)?,
            _ => batch.check(key, condition)?,
        };
    }
    Ok((batch, keys))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_batch_is_made_of_items_with_options() {
        for (line, count) in [
            ("put {a}x 1 del {a}y set {a}z 3", 3),
            ("put a 1 --ttl 10s --if-absent", 1),
            ("put a --if-absent --keep-ttl del a --if-version 7.1", 2),
            ("expire a --ttl-ms 5 --if-present persist a check a --if-absent", 3),
            ("expire a --expire-at-ms 5", 1),
        ] {
            let given = words(line);
            let (batch, keys) = parse(&given).unwrap();
            assert_eq!((batch.len(), keys.len()), (count, count), "{line}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for line in [
            "put a",
            "frob a",
            "del",
            "put a 1 --frob",
            "put a 1 --ttl",
            "put a 1 --ttl 10",
            "put a 1 --if-version 0",
            "put a 1 --if-absent --if-present",
            "put a 1 --keep-ttl --ttl 1s",
            "expire a",
            "expire a --keep-ttl",
            "del a --ttl 1s",
        ] {
            let given = words(line);
            let Err(Failure::Usage(message)) = parse(&given) else { panic!("{line} is taken") };
            assert!(message.starts_with("batch: ") && !message.contains('\n'), "{line}: {message}");
        }
        let given = words("put a 1 del b");
        assert!(matches!(parse(&given), Err(Failure::Client(_))), "keys of two slots");
    }
}
