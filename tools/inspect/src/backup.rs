//! Copies of checkpoints on other file systems, and back.
//!
//! A backup is a directory `TARGET/NAME` that is a data directory of its own. Tables never change, so of those
//! that the backup before it has already only a hard link is made; whether a table of the same name is the same
//! one is told by its size and its last page, which holds a checksum over all that the table says of itself.
//!
//! A copy is marked as not complete (`INCOMPLETE`) until everything in it is durable; a server refuses it, and so
//! does a restore.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use atlaskv::base::{PAGE_SIZE, TableName};
use atlaskv::engine::checkpoint::MARKER;

use crate::verify::verify;
use crate::{Failure, Outcome};

/// How a backup's files came about.
#[derive(Default)]
struct Copied {
    linked: u64,
    copied: u64,
    bytes: u64,
}

fn refused(path: &Path, error: &io::Error) -> Failure {
    Failure::Refused(format!("{}: {error}", path.display()))
}

/// Attaches the path to an error.
fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, Failure> {
    result.map_err(|error| refused(path, &error))
}

fn sync_dir(dir: &Path) -> Result<(), Failure> {
    at(dir, File::open(dir).and_then(|dir| dir.sync_all()))
}

/// Refuses what is no whole copy that no server uses: one that has logs may be in use, or need them.
fn check_source(from: &Path) -> Result<(), Failure> {
    let refuse = |what: &str| Err(Failure::Refused(format!("{}: {what}", from.display())));
    if from.join(MARKER).exists() {
        return refuse("it was never completed: it has a file INCOMPLETE");
    }
    if !from.join("CURRENT").is_file() {
        return refuse("no checkpoint: it has no CURRENT");
    }
    match fs::read_dir(from.join("wal")).map(|entries| entries.count()) {
        Ok(0) => Ok(()),
        Ok(_) => refuse("it has logs, so a server has used it; make a checkpoint of it and copy that"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(refused(&from.join("wal"), &error)),
    }
}

/// Makes a new directory that is marked as not complete.
fn begin(target: &Path) -> Result<(), Failure> {
    at(target, fs::create_dir(target))?;
    let marker = target.join(MARKER);
    at(&marker, File::create_new(&marker).and_then(|file| file.sync_all()))?;
    sync_dir(target)
}

/// Everything is there: makes it durable, then takes the mark away.
fn complete(target: &Path) -> Result<(), Failure> {
    for dir in [TableName::DIR, "manifest", "wal"] {
        sync_dir(&target.join(dir))?;
    }
    sync_dir(target)?;
    let marker = target.join(MARKER);
    at(&marker, fs::remove_file(&marker))?;
    sync_dir(target)?;
    sync_dir(target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

fn copy_file(from: &Path, to: &Path) -> Result<u64, Failure> {
    let mut source = at(from, File::open(from))?;
    let mut target = at(to, File::create_new(to))?;
    let bytes = io::copy(&mut source, &mut target)
        .map_err(|error| Failure::Refused(format!("{} to {}: {error}", from.display(), to.display())))?;
    at(to, target.sync_all())?;
    Ok(bytes)
}

/// Whether two files are the same table.
fn is_same_table(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (File::open(one)?, File::open(other)?);
    let bytes = one.metadata()?.len();
    if bytes != other.metadata()?.len() || bytes < PAGE_SIZE as u64 {
        return Ok(false);
    }
    let mut pages = [[0; PAGE_SIZE]; 2];
    one.read_exact_at(&mut pages[0], bytes - PAGE_SIZE as u64)?;
    other.read_exact_at(&mut pages[1], bytes - PAGE_SIZE as u64)?;
    Ok(pages[0] == pages[1])
}

/// Copies the data directory at `from` into `target`, with links to the tables that `known` has already.
fn copy(from: &Path, target: &Path, known: Option<&Path>) -> Result<Copied, Failure> {
    let mut copied = Copied::default();
    begin(target)?;
    for dir in [TableName::DIR, "manifest", "wal"] {
        at(&target.join(dir), fs::create_dir(target.join(dir)))?;
    }
    for entry in at(from, fs::read_dir(from.join(TableName::DIR)))? {
        let name = at(from, entry)?.file_name();
        let (source, copy) = (from.join(TableName::DIR).join(&name), target.join(TableName::DIR).join(&name));
        let before = known.map(|known| known.join(TableName::DIR).join(&name));
        let before = before.filter(|before| is_same_table(&source, before).unwrap_or(false));
        match before.filter(|before| fs::hard_link(before, &copy).is_ok()) {
            Some(_) => copied.linked += 1,
            None => {
                copied.bytes += copy_file(&source, &copy)?;
                copied.copied += 1;
            }
        }
    }
    for entry in at(from, fs::read_dir(from.join("manifest")))? {
        let name = at(from, entry)?.file_name();
        copied.bytes += copy_file(&from.join("manifest").join(&name), &target.join("manifest").join(&name))?;
    }
    copied.bytes += copy_file(&from.join("CURRENT"), &target.join("CURRENT"))?;
    complete(target)?;
    Ok(copied)
}

/// Names of the whole backups below `target`, oldest first.
fn whole(target: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut all = Vec::new();
    for entry in at(target, fs::read_dir(target))? {
        let path = at(target, entry)?.path();
        if path.join("CURRENT").is_file() && !path.join(MARKER).exists() {
            all.push(path);
        }
    }
    all.sort();
    Ok(all)
}

/// Copies the checkpoint at `from` into a new directory below `target`, where it lacks something.
pub fn backup(from: &Path, target: &Path, name: Option<String>, out: &mut impl Write) -> Outcome {
    check_source(from)?;
    at(target, fs::create_dir_all(target))?;
    let before = whole(target)?.pop();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let name = name.unwrap_or_else(|| format!("backup-{:012}", now.as_secs()));
    let copy_to = target.join(&name);
    let copied = copy(from, &copy_to, before.as_deref())?;
    let Copied { linked, copied, bytes } = copied;
    writeln!(
        out,
        "{}: {copied} tables copied, {linked} were there already, {bytes} bytes",
        copy_to.display()
    )?;
    Ok(false)
}

/// Checks every byte of the backup at `from`, then copies it into the new directory `target`.
pub fn restore(from: &Path, target: &Path, out: &mut impl Write) -> Outcome {
    check_source(from)?;
    if target.exists() && at(target, fs::read_dir(target))?.next().is_some() {
        return Err(Failure::Refused(format!("{}: not empty; name a new directory", target.display())));
    }
    if verify(from, out)? {
        writeln!(out, "nothing was restored: {} is damaged", from.display())?;
        return Ok(true);
    }
    if target.exists() {
        at(target, fs::remove_dir(target))?;
    }
    let copied = copy(from, target, None)?;
    writeln!(out, "{}: {} tables, {} bytes", target.display(), copied.copied, copied.bytes)?;
    Ok(false)
}
