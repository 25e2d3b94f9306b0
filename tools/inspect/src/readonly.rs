//! The engine's world for a tool: files are read by plain system calls, at once, and nothing is written. So
//! what a tool says of a data directory is what a start would say, since the same code says it.

use std::fs::{self, File as StdFile};
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use atlaskv::base::PAGE_SIZE;
use atlaskv::disk::{DirEntry, Disk, DiskError, File, OpenMode, OpenOptions, Result, Space};
use atlaskv::env::{Env, Queue};

/// A data directory, to be read.
#[derive(Clone)]
pub struct ReadOnly {
    root: PathBuf,
    is_patient: bool,
}

/// An open file of it.
pub struct ReadFile {
    file: StdFile,
    path: String,
    bytes: u64,
    is_patient: bool,
}

impl ReadOnly {
    /// The data directory at `root`.
    pub fn new(root: &Path) -> ReadOnly {
        ReadOnly { root: root.to_path_buf(), is_patient: false }
    }

    /// The same, of which pages that the device does not give are read as zeros: no checksum takes them for data.
    pub fn patient(root: &Path) -> ReadOnly {
        ReadOnly { root: root.to_path_buf(), is_patient: true }
    }

    /// Opens an existing file.
    pub fn open_as(&self, path: &str, writes: bool) -> Result<ReadFile> {
        let failed = |error| DiskError::new("open", path, error);
        let file = StdFile::options().read(true).write(writes).open(self.root.join(path)).map_err(failed)?;
        let bytes = file.metadata().map_err(failed)?.len();
        Ok(ReadFile { file, path: path.to_owned(), bytes, is_patient: self.is_patient })
    }
}

fn refused<T>(operation: &'static str, path: &str) -> Result<T> {
    let cause = io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "a tool changes nothing");
    Err(DiskError::new(operation, path, cause))
}

impl Disk for ReadOnly {
    type File = ReadFile;

    fn alloc(&self, len: usize) -> Vec<u8> {
        vec![0; len]
    }

    async fn open(&self, path: &str, options: OpenOptions) -> Result<ReadFile> {
        if options.mode != OpenMode::Read {
            return refused("open", path);
        }
        self.open_as(path, false)
    }

    async fn rename(&self, from: &str, _: &str) -> Result<()> {
        refused("rename", from)
    }

    async fn link(&self, from: &str, _: &str) -> Result<()> {
        refused("link", from)
    }

    async fn remove(&self, path: &str) -> Result<()> {
        refused("remove", path)
    }

    async fn shrink(&self, path: &str, _: u64) -> Result<bool> {
        refused("shrink", path)
    }

    async fn create_dir(&self, path: &str) -> Result<()> {
        refused("create", path)
    }

    async fn remove_dir(&self, path: &str) -> Result<()> {
        refused("remove", path)
    }

    async fn list(&self, path: &str) -> Result<Vec<DirEntry>> {
        let failed = |error| DiskError::new("list", path, error);
        let mut entries = Vec::new();
        for entry in fs::read_dir(self.root.join(path)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let meta = entry.metadata().map_err(failed)?;
            // A name that is no text is none of ours.
            let Ok(name) = entry.file_name().into_string() else { continue };
            entries.push(DirEntry {
                name,
                bytes: if meta.is_dir() { 0 } else { meta.len() },
                is_dir: meta.is_dir(),
            });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    async fn sync_dir(&self, path: &str) -> Result<()> {
        refused("sync", path)
    }

    async fn space(&self) -> Result<Space> {
        refused("space", "")
    }
}

impl ReadFile {
    /// As the system knows it.
    pub fn file(&self) -> &StdFile {
        &self.file
    }
}

impl File for ReadFile {
    type Buffer = Vec<u8>;
    type ReadBuffer = Vec<u8>;

    fn path(&self) -> &str {
        &self.path
    }

    fn len(&self) -> u64 {
        self.bytes
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let failed = |error| DiskError::new("read", &self.path, error).at(offset);
        // Before anything is allocated: a damaged length may be any number.
        if offset.checked_add(len as u64).is_none_or(|end| end > self.bytes) {
            return Err(failed(io::ErrorKind::UnexpectedEof.into()));
        }
        let mut buffer = vec![0; len];
        match self.file.read_exact_at(&mut buffer, offset).map_err(failed) {
            Err(error) if self.is_patient && error.is_unreadable() => {
                for (page, at) in buffer.chunks_mut(PAGE_SIZE).zip((offset..).step_by(PAGE_SIZE)) {
                    if self.file.read_exact_at(page, at).is_err() {
                        page.fill(0);
                    }
                }
                Ok(buffer)
            }
            result => result.map(|()| buffer),
        }
    }

    async fn write_at(&self, _: u64, _: Vec<u8>) -> Result<()> {
        refused("write", &self.path)
    }

    async fn sync(&self) -> Result<()> {
        refused("sync", &self.path)
    }

    async fn close(self) -> Result<()> {
        Ok(())
    }
}

impl Env for ReadOnly {
    type Disk = ReadOnly;

    fn disk(&self) -> &ReadOnly {
        self
    }

    fn wall_ms(&self) -> u64 {
        0
    }

    fn now(&self) -> Duration {
        Duration::ZERO
    }

    fn random(&self) -> u64 {
        0
    }

    fn spawn(&self, _: Queue, _: impl Future<Output = ()> + 'static) {
        unreachable!("only an engine that serves has background work")
    }

    fn set_shares(&self, _: Queue, _: usize) {}

    async fn sleep(&self, _: Duration) {}

    async fn yield_now(&self) {}
}
