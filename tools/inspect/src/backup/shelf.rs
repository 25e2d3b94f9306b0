//! The backups below one directory, by age: what is there, and what may go.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use atlaskv::base::TableName;
use atlaskv::engine::checkpoint::Unfinished;

use super::check_source;
use super::copy::{Unwhole, paths};
use crate::record::{Record, millis, utc};
use crate::verify::{lock, marked};
use crate::{Failure, Outcome, at};

/// What stands in a directory of backups.
#[derive(Default)]
pub struct Shelf {
    /// Whole backups, the newest first.
    whole: Vec<(Record, PathBuf)>,
    /// Backups that were cut short, or are being made or removed.
    unwhole: Vec<PathBuf>,
    /// Other directories, and what is wrong with them.
    others: Vec<String>,
}

/// What is to be removed.
pub struct Prune {
    /// So many of the newest stay.
    pub keep: usize,
    /// Only what is older than this goes.
    pub older_than: Option<Duration>,
    /// Those that were never completed as well.
    pub incomplete: bool,
    /// Nothing is removed.
    pub dry_run: bool,
}

impl Shelf {
    /// What is below `target`.
    pub fn read(target: &Path) -> Result<Shelf, Failure> {
        let mut shelf = Shelf::default();
        for path in paths(target)? {
            if !path.is_dir() {
                continue;
            }
            match (marked(&path), Record::read(&path)) {
                (Some(Unfinished::Backup), _) => shelf.unwhole.push(path),
                (Some(kind), _) => shelf.others.push(format!("{}: {}", path.display(), kind.advice())),
                (None, Ok(Some(record))) => shelf.whole.push((record, path)),
                (None, Ok(None)) => {
                    shelf.others.push(format!("{}: no backup, it has no file BACKUP", path.display()));
                }
                (None, Err(Failure::Refused(what))) => shelf.others.push(what),
                (None, Err(failure)) => return Err(failure),
            }
        }
        shelf.whole.sort_by(|one, other| other.cmp(one));
        Ok(shelf)
    }

    /// Where tables may be: whole backups, the newest first, then the others.
    pub fn newest_first(&self) -> Vec<PathBuf> {
        let whole = self.whole.iter().map(|(_, path)| path);
        whole.chain(&self.unwhole).cloned().collect()
    }
}

/// Bytes that the removal of `backup` alone would free: those of files without another name.
fn bytes_alone(backup: &Path) -> Result<u64, Failure> {
    let mut bytes = 0;
    for dir in [TableName::DIR, "manifest"] {
        for path in paths(&backup.join(dir)).unwrap_or_default() {
            let meta = at(&path, fs::metadata(&path))?;
            bytes += if meta.nlink() == 1 { meta.len() } else { 0 };
        }
    }
    Ok(bytes)
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().display().to_string()
}

/// In the two largest units: 3d 4h.
fn age(record: &Record, now: u64) -> String {
    let mut seconds = now.saturating_sub(record.checkpoint_ms) / 1000;
    let mut words = Vec::new();
    for (unit, unit_seconds) in [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)] {
        let count = seconds / unit_seconds;
        seconds %= unit_seconds;
        if (count > 0 || unit == "s" && words.is_empty()) && words.len() < 2 {
            words.push(format!("{count}{unit}"));
        }
    }
    words.join(" ")
}

/// Lists the backups below `target`, the newest first.
pub fn list(target: &Path, out: &mut impl Write) -> Outcome {
    let shelf = Shelf::read(target)?;
    let now = millis(SystemTime::now());
    let names = shelf.newest_first().iter().map(|path| name(path).chars().count()).max().unwrap_or(0).max(4);
    writeln!(
        out,
        "{:names$}  {:20}  {:>8}  {:>7}  {:>15}  {:>15}",
        "name", "data as of", "age", "tables", "bytes", "bytes alone"
    )?;
    for (record, path) in &shelf.whole {
        writeln!(
            out,
            "{:names$}  {:20}  {:>8}  {:>7}  {:>15}  {:>15}",
            name(path),
            utc(record.checkpoint_ms),
            age(record, now),
            record.tables,
            record.bytes,
            bytes_alone(path)?
        )?;
    }
    for path in &shelf.unwhole {
        let alone = bytes_alone(path)?;
        let (what, age) = ("not complete", "-");
        writeln!(out, "{:names$}  {what:20}  {age:>8}  {age:>7}  {age:>15}  {alone:>15}", name(path))?;
    }
    for what in &shelf.others {
        writeln!(out, "note: {what}")?;
    }
    Ok(false)
}

/// Removes backups below `target` that are older than the newest so many.
pub fn prune(target: &Path, what: &Prune, out: &mut impl Write) -> Outcome {
    let Prune { keep, older_than, incomplete, dry_run } = *what;
    let shelf = Shelf::read(target)?;
    let now = millis(SystemTime::now());
    let old_ms = older_than.map_or(0, |age| u64::try_from(age.as_millis()).unwrap_or(u64::MAX));
    let is_old = |record: &Record| now.saturating_sub(record.checkpoint_ms) >= old_ms;
    let surplus = shelf.whole.iter().skip(keep).filter(|(record, _)| is_old(record));
    let mut going: Vec<&PathBuf> = surplus.map(|(_, path)| path).collect();
    going.reverse();
    going.extend(shelf.unwhole.iter().filter(|_| incomplete));
    let mut failed = None;
    for path in &going {
        let bytes = bytes_alone(path)?;
        if dry_run {
            writeln!(out, "{}: would be removed, {bytes} bytes are its alone", name(path))?;
            continue;
        }
        match remove(path) {
            Ok(()) => writeln!(out, "{}: removed, {bytes} bytes are free", name(path))?,
            // The others go all the same.
            Err(Failure::Refused(why)) => {
                writeln!(out, "note: {why}")?;
                failed.get_or_insert(why);
            }
            Err(failure) => return Err(failure),
        }
    }
    let kept = shelf.whole.len() + shelf.unwhole.len() - if dry_run { 0 } else { going.len() };
    match failed {
        Some(why) => Err(Failure::Refused(format!("not everything was removed: {why}"))),
        None => {
            writeln!(out, "{kept} backups are there")?;
            Ok(false)
        }
    }
}

/// Removes one backup, unless somebody uses it.
fn remove(path: &Path) -> Result<(), Failure> {
    // Keeps servers out as well, until it is gone.
    let _lock = lock(path)?;
    if marked(path).is_none() {
        // One with logs holds what no other has.
        check_source(path)?;
    }
    Unwhole::mark(path, Unfinished::Backup)?.remove()
}
