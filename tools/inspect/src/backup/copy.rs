//! Copies a data directory that no server uses into another one: begun, gone on with after it was cut short, and
//! completed.
//!
//! - A file gets its own name only when it is whole and on disk (`.part` until then), so whatever has one can be
//!   kept when a copy that was cut short is gone on with.
//! - Tables are linked, so no file is ever written again in place: what differs is removed and copied anew.
//! - Whoever makes a copy holds a lock on its marker, where the file system has locks.

use std::fs::{self, File, FileTimes, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use atlaskv::base::{PAGE_SIZE, TableName};
use atlaskv::engine::checkpoint::{MARKER, Unfinished};

use crate::verify::marked;
use crate::{Failure, at};

/// Directories of a data directory that a copy has.
const DIRS: [&str; 3] = [TableName::DIR, "manifest", "wal"];
/// End of the names of files that are being copied.
const PART: &str = ".part";

/// How a copy's files came about.
#[derive(Default)]
pub struct Copied {
    /// Tables that another backup has as well.
    pub linked: u64,
    /// Tables that were copied before the copy was cut short.
    pub kept: u64,
    /// Tables that were copied now.
    pub copied: u64,
    /// Bytes that were copied now.
    pub bytes: u64,
    /// Bytes of all its files.
    pub bytes_in_all: u64,
}

impl Copied {
    /// All of them.
    pub fn tables(&self) -> u64 {
        self.linked + self.kept + self.copied
    }
}

/// The paths in a directory, in the order of their names.
pub fn paths(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries: io::Result<Vec<_>> = at(dir, fs::read_dir(dir))?.collect();
    let mut paths: Vec<PathBuf> = at(dir, entries)?.into_iter().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

pub fn sync_dir(dir: &Path) -> Result<(), Failure> {
    at(dir, File::open(dir).and_then(|dir| dir.sync_all()))
}

/// A copy that is under way. Its lock goes with it.
pub struct Unwhole {
    dir: PathBuf,
    _marker: File,
}

impl Unwhole {
    /// Makes `dir` a new directory that is marked as not complete, or takes up one that was cut short.
    pub fn begin(dir: &Path, kind: Unfinished) -> Result<Unwhole, Failure> {
        let refuse = |what: &str| Err(Failure::Refused(format!("{}: {what}", dir.display())));
        let is_new = match fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => paths(dir)?.is_empty(),
            created => {
                at(dir, created)?;
                sync_dir(parent(dir))?;
                true
            }
        };
        match marked(dir) {
            None if is_new => {}
            None => return refuse("not empty; name a new directory"),
            // The power went while the marker was written.
            Some(Unfinished::Unknown) if paths(dir)?.len() == 1 => {}
            Some(found) if found == kind => {}
            Some(found) => return refuse(found.advice()),
        }
        Unwhole::mark(dir, kind)
    }

    /// Marks `dir` as not complete, if it is not, and locks it.
    pub fn mark(dir: &Path, kind: Unfinished) -> Result<Unwhole, Failure> {
        let path = dir.join(MARKER);
        let open = || File::options().create(true).truncate(false).write(true).open(&path);
        let marker = at(&path, open())?;
        match marker.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let what = "another process is at work on it; wait for that";
                return Err(Failure::Refused(format!("{}: {what}", dir.display())));
            }
            // Some file systems have no locks.
            Ok(()) | Err(TryLockError::Error(_)) => {}
        }
        let mut page = [0; PAGE_SIZE];
        kind.encode(&mut page);
        at(&path, marker.write_all_at(&page, 0).and_then(|()| marker.sync_all()))?;
        if !path.exists() {
            let what = "another process has just ended its work on it; look at what it is now";
            return Err(Failure::Refused(format!("{}: {what}", dir.display())));
        }
        sync_dir(dir)?;
        Ok(Unwhole { dir: dir.to_path_buf(), _marker: marker })
    }

    /// Copies the data directory at `from`, with links to tables that are below one of `known` already.
    pub fn copy(&self, from: &Path, known: &[PathBuf]) -> Result<Copied, Failure> {
        let mut copied = Copied::default();
        for name in DIRS {
            let dir = self.dir.join(name);
            let exists = |error: &io::Error| error.kind() == io::ErrorKind::AlreadyExists;
            at(&dir, fs::create_dir(&dir).or_else(|error| if exists(&error) { Ok(()) } else { Err(error) }))?;
        }
        self.remove_strays(from)?;
        for source in paths(&from.join(TableName::DIR))? {
            self.table(&source, known, &mut copied)?;
        }
        for source in paths(&from.join("manifest"))? {
            self.file(&source, &self.dir.join("manifest"), &mut copied)?;
        }
        self.file(&from.join("CURRENT"), &self.dir, &mut copied)?;
        Ok(copied)
    }

    /// Removes what an earlier attempt left and this one does not want: all but tables that `from` has, too.
    fn remove_strays(&self, from: &Path) -> Result<(), Failure> {
        let tables = self.dir.join(TableName::DIR);
        for path in paths(&self.dir)? {
            let name = path.file_name().unwrap_or_default();
            if name != MARKER && !DIRS.iter().any(|dir| name == *dir) {
                at(&path, fs::remove_file(&path))?;
            }
        }
        for dir in DIRS {
            for path in paths(&self.dir.join(dir))? {
                let name = path.file_name().unwrap_or_default();
                if !(path.starts_with(&tables) && from.join(TableName::DIR).join(name).exists()) {
                    at(&path, fs::remove_file(&path))?;
                }
            }
        }
        Ok(())
    }

    fn table(&self, source: &Path, known: &[PathBuf], copied: &mut Copied) -> Result<(), Failure> {
        let name = source.file_name().unwrap_or_default();
        let dir = self.dir.join(TableName::DIR);
        let copy = dir.join(name);
        if copy.exists() {
            if at(&copy, is_same_table(source, &copy))? {
                copied.kept += 1;
                copied.bytes_in_all += at(&copy, fs::metadata(&copy))?.len();
                return Ok(());
            }
            at(&copy, fs::remove_file(&copy))?;
        }
        let before = known.iter().map(|known| known.join(TableName::DIR).join(name));
        // One that can't be read or linked is copied.
        let mut same = before.filter(|before| is_same_table(source, before).unwrap_or(false));
        if same.any(|before| fs::hard_link(before, &copy).is_ok()) {
            copied.linked += 1;
            copied.bytes_in_all += at(&copy, fs::metadata(&copy))?.len();
        } else {
            self.file(source, &dir, copied)?;
            copied.copied += 1;
        }
        Ok(())
    }

    /// Copies one file into `dir`, with its time, which tells tables from others of the same name.
    fn file(&self, source: &Path, dir: &Path, copied: &mut Copied) -> Result<(), Failure> {
        let name = source.file_name().unwrap_or_default();
        let mut part = name.to_os_string();
        part.push(PART);
        let (part, whole) = (dir.join(part), dir.join(name));
        let mut input = at(source, File::open(source))?;
        let mut output = at(&part, File::create_new(&part))?;
        let bytes = io::copy(&mut input, &mut output).map_err(|error| {
            Failure::Refused(format!("{} to {}: {error}", source.display(), part.display()))
        })?;
        let modified = at(source, input.metadata().and_then(|meta| meta.modified()))?;
        at(&part, output.set_times(FileTimes::new().set_modified(modified)))?;
        at(&part, output.sync_all())?;
        at(&whole, fs::rename(&part, &whole))?;
        copied.bytes += bytes;
        copied.bytes_in_all += bytes;
        Ok(())
    }

    /// Everything is there: makes it durable, then takes the mark away.
    pub fn complete(self) -> Result<(), Failure> {
        for name in DIRS {
            sync_dir(&self.dir.join(name))?;
        }
        sync_dir(&self.dir)?;
        self.unmark()?;
        sync_dir(&self.dir)
    }

    /// Removes everything, the mark last, so that whatever is left by a crash is marked.
    pub fn remove(self) -> Result<(), Failure> {
        for path in paths(&self.dir)? {
            if path.file_name().is_none_or(|name| name != MARKER) {
                let is_dir = at(&path, fs::symlink_metadata(&path))?.is_dir();
                at(&path, if is_dir { fs::remove_dir_all(&path) } else { fs::remove_file(&path) })?;
            }
        }
        sync_dir(&self.dir)?;
        self.unmark()?;
        at(&self.dir, fs::remove_dir(&self.dir))?;
        sync_dir(parent(&self.dir))
    }

    fn unmark(&self) -> Result<(), Failure> {
        let marker = self.dir.join(MARKER);
        at(&marker, fs::remove_file(&marker))
    }
}

fn parent(dir: &Path) -> &Path {
    dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether two files of one name are the same table. A table never changes once it is written, so its size, its last
/// page (with a checksum over what the table says of itself) and the time when it was written tell it from any other
/// of its name. The time must be among these: a store that was restored, and goes on, gives names again that the
/// store it came from gave as well, perhaps to as many entries of the same size with other values.
fn is_same_table(one: &Path, other: &Path) -> io::Result<bool> {
    let (one, other) = (File::open(one)?, File::open(other)?);
    let (meta, other_meta) = (one.metadata()?, other.metadata()?);
    let bytes = meta.len();
    if bytes != other_meta.len() || bytes < PAGE_SIZE as u64 {
        return Ok(false);
    }
    // Some file systems have no finer times than 100 ns.
    let time = |meta: &fs::Metadata| {
        let since = meta.modified()?.duration_since(UNIX_EPOCH);
        io::Result::Ok(since.map_or(0, |since| since.as_nanos() / 100))
    };
    let (time, other_time) = (time(&meta)?, time(&other_meta)?);
    if time != other_time || time == 0 {
        return Ok(false);
    }
    let mut pages = [[0; PAGE_SIZE]; 2];
    one.read_exact_at(&mut pages[0], bytes - PAGE_SIZE as u64)?;
    other.read_exact_at(&mut pages[1], bytes - PAGE_SIZE as u64)?;
    Ok(pages[0] == pages[1])
}
