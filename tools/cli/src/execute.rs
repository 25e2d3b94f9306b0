//! One command: what is asked, what is printed, and how it ends.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;

use atlaskv::base::Lsn;
use atlaskv::client::{Client, Error, KeyRange, Outcome, Scan, Versioned};

use crate::Command;
use crate::arguments::{durability, options};
use crate::batch;
use crate::text::{self, name};

/// Pages of scans: as large as the server makes them, since each takes a round trip.
const PAGE_BYTES: u32 = 1 << 20;

/// How values are printed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Output {
    /// A single value without a newline after it, and nothing escaped.
    pub is_exact: bool,
    /// Single values escaped; a list is escaped unless it is exact, so that a line is a value.
    pub is_escaped: bool,
    /// Versions before values.
    pub with_version: bool,
}

/// Why a command did not do what was asked.
#[derive(Debug)]
pub enum Failure {
    /// The key is absent or the condition does not hold.
    Unmet(String),
    /// The command makes no sense.
    Usage(String),
    /// The server refused, or could not be asked.
    Client(Error),
    /// The output could not be written.
    Output(io::Error),
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Failure::Output(error) if error.kind() == ErrorKind::BrokenPipe => 0,
            Failure::Unmet(_) => 1,
            Failure::Usage(_) => 2,
            Failure::Client(Error::Refused(_)) => 3,
            Failure::Client(_) | Failure::Output(_) => 4,
        }
    }

    /// As the process reports it.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    /// The worse of two, by number.
    pub fn worse(self, than: Option<Failure>) -> Failure {
        match than {
            Some(other) if other.code() >= self.code() => other,
            _ => self,
        }
    }

    /// The one line about it, to standard error.
    pub fn report(&self) {
        let message = match self {
            Failure::Unmet(message) | Failure::Usage(message) => message.clone(),
            Failure::Client(Error::Refused(refusal)) => {
                // A server's sentence is as foreign as its values.
                let mut message = String::new();
                text::escape(refusal.message.as_bytes(), &mut message);
                format!("{message} ({})", refusal.code)
            }
            Failure::Client(error) => error.to_string(),
            // Whoever reads has read enough, as `head` does.
            Failure::Output(error) if error.kind() == ErrorKind::BrokenPipe => return,
            Failure::Output(error) => format!("cannot write the output: {error}"),
        };
        // There is no other place to complain.
        let _ = writeln!(io::stderr(), "atlaskv-cli: {message}");
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Client(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Output(error)
    }
}

/// A client and how its answers are printed.
pub struct Session {
    pub client: Client,
    pub output: Output,
}

impl Session {
    /// Carries out one command.
    pub fn execute(&mut self, command: &Command, out: &mut impl Write) -> Result<(), Failure> {
        match command {
            Command::Get { key } => match self.client.get(key.as_bytes())? {
                Some(found) => self.print_value(&found, out),
                None => Err(absent(key)),
            },
            Command::Set { key, value, expiry, condition, sync } => {
                let options = condition.options(*expiry, *sync);
                let outcome = self.client.set_with(key.as_bytes(), value.as_bytes(), options)?;
                self.print_outcome(outcome, key, out)
            }
            Command::Del { key, if_version, sync } => {
                let outcome = self.client.delete_with(key.as_bytes(), options(*if_version, *sync))?;
                self.print_outcome(outcome, key, out)
            }
            Command::Expire { key, deadline, if_version, sync } => {
                let missing = || Failure::Usage("expire: a time is missing".to_owned());
                let deadline = deadline.deadline().ok_or_else(missing)?;
                let options = options(*if_version, *sync);
                let outcome = self.client.expire_with(key.as_bytes(), deadline, options)?;
                self.print_outcome(outcome, key, out)
            }
            Command::Persist { key, if_version, sync } => {
                let outcome = self.client.persist_with(key.as_bytes(), options(*if_version, *sync))?;
                self.print_outcome(outcome, key, out)
            }
            Command::Ttl { key } => {
                let ttl = self.client.ttl(key.as_bytes())?.ok_or_else(|| absent(key))?;
                self.print_version(ttl.version, out)?;
                match ttl.lifetime {
                    // As --ttl takes it.
                    Some(lifetime) => Ok(writeln!(out, "{}ms", lifetime.remaining_ms)?),
                    None => Ok(writeln!(out, "for ever")?),
                }
            }
            Command::Incr { key, amount, sync } => {
                let counter = self.client.incr_with(key.as_bytes(), *amount, durability(*sync))?;
                self.print_version(counter.version, out)?;
                Ok(writeln!(out, "{}", counter.value)?)
            }
            Command::Mget { keys } => self.mget(keys, out),
            Command::Scan { prefix, start, end, reverse, limit, keys, count_only } => {
                let mut scan = self.client.scan(key_range(prefix, start, end)).page(0, PAGE_BYTES);
                if *reverse {
                    scan = scan.reverse();
                }
                if *keys || *count_only {
                    scan = scan.keys_only();
                }
                if let Some(limit) = limit {
                    scan = scan.limit(*limit);
                }
                print_scan(scan, self.output, *keys, *count_only, out)
            }
            Command::DelRange { prefix, start, end, sync } => {
                self.client.delete_range_with(&key_range(prefix, start, end), durability(*sync))?;
                Ok(writeln!(out, "ok")?)
            }
            Command::Flush { sync } => {
                self.client.flush_all_with(durability(*sync))?;
                Ok(writeln!(out, "ok")?)
            }
            Command::Ping { payload: None } => {
                self.client.ping(b"")?;
                Ok(writeln!(out, "pong")?)
            }
            Command::Ping { payload: Some(payload) } => {
                let payload = self.client.ping(payload.as_bytes())?;
                self.print_bytes(&payload, out)
            }
            Command::Stats { section } => Ok(out.write_all(self.client.stats(section)?.as_bytes())?),
            Command::Rebalance { to, split } => {
                let words = match (to, split) {
                    (Some(numbers), _) => ("move", numbers.as_slice()),
                    (None, Some(numbers)) => ("split", numbers.as_slice()),
                    (None, None) => ("rebalance", &[][..]),
                };
                self.arrange(words.0, words.1, out)
            }
            Command::Checkpoint { dir } => Ok(out.write_all(self.client.checkpoint(dir)?.as_bytes())?),
            Command::Cores { count } => self.arrange("cores", &[*count], out),
            Command::Batch { words, sync } => {
                let (mut batch, keys) = batch::parse(words)?;
                let outcome = self.client.batch(batch.durability(durability(*sync)))?;
                self.print_batch(outcome, &keys, out)
            }
        }
    }

    fn print_batch(&self, outcome: Outcome, keys: &[&OsString], out: &mut impl Write) -> Result<(), Failure> {
        let Outcome::BatchFailed { item, current } = outcome else {
            return self.print_outcome(outcome, keys[0], out);
        };
        let has = match current {
            Some(version) => format!("it has version {version}"),
            None => "it is absent".to_owned(),
        };
        let key = keys.get(item as usize).map_or_else(String::new, |key| name(key));
        let number = u64::from(item) + 1;
        Err(Failure::Unmet(format!("{key}: condition of item {number} failed: {has}; nothing was done")))
    }

    fn arrange(&mut self, verb: &str, numbers: &[u32], out: &mut impl Write) -> Result<(), Failure> {
        let command = numbers.iter().fold(verb.to_owned(), |text, number| format!("{text} {number}"));
        Ok(out.write_all(self.client.tablets(&command)?.as_bytes())?)
    }

    fn mget(&mut self, keys: &[OsString], out: &mut impl Write) -> Result<(), Failure> {
        let keys: Vec<&[u8]> = keys.iter().map(|key| key.as_bytes()).collect();
        let found = self.client.mget(&keys)?;
        let missing = found.iter().filter(|found| found.is_none()).count();
        for found in found {
            match found {
                Some(found) => {
                    self.print_version(found.version, out)?;
                    write_bytes(&found.value, !self.output.is_exact, out)?;
                    writeln!(out)?;
                }
                None if self.output.is_exact => writeln!(out)?,
                None => writeln!(out, "(absent)")?,
            }
        }
        match missing {
            0 => Ok(()),
            _ => Err(Failure::Unmet(format!("{missing} of {} keys are absent", keys.len()))),
        }
    }

    fn print_outcome(&self, outcome: Outcome, key: &OsString, out: &mut impl Write) -> Result<(), Failure> {
        match outcome {
            Outcome::Written { version } => {
                self.print_version(version, out)?;
                Ok(writeln!(out, "ok")?)
            }
            Outcome::Absent
            | Outcome::ConditionFailed { current: None }
            | Outcome::BatchFailed { current: None, .. } => Err(absent(key)),
            Outcome::ConditionFailed { current: Some(version) }
            | Outcome::BatchFailed { current: Some(version), .. } => {
                Err(Failure::Unmet(format!("{}: condition failed: it has version {version}", name(key))))
            }
        }
    }

    fn print_value(&self, found: &Versioned, out: &mut impl Write) -> Result<(), Failure> {
        self.print_version(found.version, out)?;
        self.print_bytes(&found.value, out)
    }

    fn print_bytes(&self, bytes: &[u8], out: &mut impl Write) -> Result<(), Failure> {
        write_bytes(bytes, self.output.is_escaped, out)?;
        if !self.output.is_exact {
            writeln!(out)?;
        }
        Ok(())
    }

    fn print_version(&self, version: Lsn, out: &mut impl Write) -> Result<(), Failure> {
        if self.output.with_version {
            write!(out, "{version} ")?;
        }
        Ok(())
    }
}

/// As a prefix, or a first key and one behind the last, say.
fn key_range(prefix: &Option<OsString>, start: &Option<OsString>, end: &Option<OsString>) -> KeyRange {
    let bytes = |word: &Option<OsString>| word.as_ref().map_or(Vec::new(), |w| w.as_bytes().to_vec());
    match prefix {
        Some(prefix) => KeyRange::prefix(prefix.as_bytes()),
        None => KeyRange::between(&bytes(start), &bytes(end)),
    }
}

/// Prints entries as they come; that a part of them is of a later moment, to standard error.
fn print_scan(
    mut scan: Scan<'_>,
    output: Output,
    keys: bool,
    count_only: bool,
    out: &mut impl Write,
) -> Result<(), Failure> {
    // A system call for each line would cost more than all else.
    let mut out = io::BufWriter::with_capacity(64 << 10, out);
    let mut count = 0u64;
    for entry in &mut scan {
        let entry = entry?;
        count += 1;
        if count_only {
            continue;
        }
        if output.with_version {
            write!(out, "{} ", entry.version)?;
        }
        write_bytes(&entry.key, !output.is_exact, &mut out)?;
        if !keys {
            out.write_all(b"\t")?;
            write_bytes(&entry.value, !output.is_exact, &mut out)?;
        }
        out.write_all(b"\n")?;
    }
    if count_only {
        writeln!(out, "{count}")?;
    }
    out.flush()?;
    if scan.was_renewed() {
        // There is no other place to say so.
        let _ =
            writeln!(io::stderr(), "atlaskv-cli: a part of these keys is as of a later moment than others");
    }
    Ok(())
}

fn write_bytes(bytes: &[u8], is_escaped: bool, out: &mut impl Write) -> io::Result<()> {
    if !is_escaped {
        return out.write_all(bytes);
    }
    let mut text = String::with_capacity(bytes.len());
    text::escape(bytes, &mut text);
    out.write_all(text.as_bytes())
}

fn absent(key: &OsString) -> Failure {
    Failure::Unmet(format!("{}: no such key", name(key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worse_failure_wins() {
        let unmet = || Failure::Unmet(String::new());
        let usage = || Failure::Usage(String::new());
        assert_eq!(unmet().worse(None).code(), 1);
        assert_eq!(unmet().worse(Some(usage())).code(), 2);
        assert_eq!(usage().worse(Some(unmet())).code(), 2);
    }
}
