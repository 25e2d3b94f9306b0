//! Copies of checkpoints on other file systems, and back.
//!
//! A backup is a directory `TARGET/NAME` that is a data directory of its own, with a record of when it was made
//! (`record.rs`). Tables never change, so of those that another backup below TARGET has already only a hard link is
//! made (`copy`). What is there is listed, and the oldest removed, by what the records say (`shelf`), not by names.
//!
//! A copy is marked as not complete (`INCOMPLETE`) until everything in it is durable; a server refuses it, and so
//! does a restore. The command that was cut short, given once more, goes on where it ended.

mod copy;
mod shelf;

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::SystemTime;

use atlaskv::engine::checkpoint::Unfinished;

use self::copy::Unwhole;
use self::shelf::Shelf;
pub use self::shelf::{Prune, list, prune};
use crate::record::{Record, millis, utc};
use crate::verify::{marked, verify_data};
use crate::{Failure, Outcome, at};

/// Refuses what is no whole copy that no server uses: one that has logs may be in use, or need them.
fn check_source(from: &Path) -> Result<(), Failure> {
    let refuse = |what: &str| Err(Failure::Refused(format!("{}: {what}", from.display())));
    if let Some(kind) = marked(from) {
        return refuse(kind.advice());
    }
    if !from.join("CURRENT").is_file() {
        return refuse("no checkpoint: it has no CURRENT");
    }
    match fs::read_dir(from.join("wal")).map(|entries| entries.count()) {
        Ok(0) => Ok(()),
        Ok(_) => refuse("it has logs, so a server has used it; make a checkpoint of it and copy that"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => at(&from.join("wal"), Err(error)),
    }
}

/// Copies the checkpoint at `from` into a directory below `target`, where that lacks something.
pub fn backup(from: &Path, target: &Path, name: Option<String>, out: &mut impl Write) -> Outcome {
    check_source(from)?;
    let name =
        name.unwrap_or_else(|| format!("backup-{}", utc(millis(SystemTime::now())).replace(['-', ':'], "")));
    if name.is_empty() || name == "." || name == ".." || name.contains('/') {
        return Err(Failure::Refused(format!("--name {name:?}: not the name of a directory below TARGET")));
    }
    at(target, fs::create_dir_all(target))?;
    let current = from.join("CURRENT");
    let taken = at(&current, fs::metadata(&current).and_then(|meta| meta.modified()))?;
    let copy_to = target.join(&name);
    let known = Shelf::read(target)?.newest_first();
    let unwhole = Unwhole::begin(&copy_to, Unfinished::Backup)?;
    let copied = unwhole.copy(from, &known)?;
    let record = Record {
        checkpoint_ms: millis(taken),
        made_ms: millis(SystemTime::now()),
        tables: copied.tables(),
        bytes: copied.bytes_in_all,
    };
    record.write(&copy_to)?;
    unwhole.complete()?;
    let there = copied.linked + copied.kept;
    writeln!(
        out,
        "{}: {} tables copied, {there} were there already, {} bytes",
        copy_to.display(),
        copied.copied,
        copied.bytes
    )?;
    Ok(false)
}

/// Checks every byte of the backup at `from`, then copies it into the directory `target`, a new one or one that
/// the same command has begun.
pub fn restore(from: &Path, target: &Path, out: &mut impl Write) -> Outcome {
    check_source(from)?;
    let is_begun = target.exists() && marked(target) == Some(Unfinished::Restore);
    if target.exists() && !is_begun && !copy::paths(target)?.is_empty() {
        let what = marked(target).map_or("not empty; name a new directory", Unfinished::advice);
        return Err(Failure::Refused(format!("{}: {what}", target.display())));
    }
    // A damaged record is no reason to lose what it is about.
    if verify_data(from, out)? {
        writeln!(out, "nothing was restored: {} is damaged", from.display())?;
        return Ok(true);
    }
    let unwhole = Unwhole::begin(target, Unfinished::Restore)?;
    let copied = unwhole.copy(from, &[])?;
    unwhole.complete()?;
    writeln!(out, "{}: {} tables, {} bytes", target.display(), copied.tables(), copied.bytes_in_all)?;
    Ok(false)
}
