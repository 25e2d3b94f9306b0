//! The engine's world for a tool that writes a new data directory: plain system calls, at once. What is written is
//! synced where the engine asks for it.

use std::cell::Cell;
use std::fs::{self, File as StdFile};
use std::future::Future;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use atlaskv::disk::{DirEntry, Disk, DiskError, File, OpenMode, OpenOptions, Result, Space};
use atlaskv::env::{Env, Queue};

use crate::readonly::{ReadFile, ReadOnly};

/// The file system, paths being absolute.
#[derive(Clone)]
pub struct Fresh(ReadOnly);

/// An open file of it.
pub struct FreshFile {
    read: ReadFile,
    bytes: Cell<u64>,
}

impl Fresh {
    /// All of the file system.
    pub fn new() -> Fresh {
        Fresh(ReadOnly::new(Path::new("/")))
    }
}

impl Disk for Fresh {
    type File = FreshFile;

    fn alloc(&self, len: usize) -> Vec<u8> {
        vec![0; len]
    }

    async fn open(&self, path: &str, options: OpenOptions) -> Result<FreshFile> {
        if options.mode == OpenMode::CreateNew {
            StdFile::create_new(path).map_err(|error| DiskError::new("create", path, error))?;
        }
        let read = self.0.open_as(path, options.mode != OpenMode::Read)?;
        let bytes = Cell::new(read.len());
        Ok(FreshFile { read, bytes })
    }

    async fn rename(&self, from: &str, to: &str) -> Result<()> {
        fs::rename(from, to).map_err(|error| DiskError::new("rename", from, error))
    }

    async fn link(&self, from: &str, to: &str) -> Result<()> {
        fs::hard_link(from, to).map_err(|error| DiskError::new("link", to, error))
    }

    async fn remove(&self, path: &str) -> Result<()> {
        fs::remove_file(path).map_err(|error| DiskError::new("remove", path, error))
    }

    async fn shrink(&self, _: &str, _: u64) -> Result<bool> {
        Ok(false) // nobody waits for the file system here
    }

    async fn create_dir(&self, path: &str) -> Result<()> {
        fs::create_dir_all(path).map_err(|error| DiskError::new("create_dir", path, error))
    }

    async fn remove_dir(&self, path: &str) -> Result<()> {
        fs::remove_dir(path).map_err(|error| DiskError::new("remove_dir", path, error))
    }

    async fn list(&self, path: &str) -> Result<Vec<DirEntry>> {
        self.0.list(path).await
    }

    async fn sync_dir(&self, path: &str) -> Result<()> {
        let synced = StdFile::open(path).and_then(|dir| dir.sync_all());
        synced.map_err(|error| DiskError::new("sync_dir", path, error))
    }

    async fn space(&self) -> Result<Space> {
        self.0.space().await
    }
}

impl File for FreshFile {
    type Buffer = Vec<u8>;
    type ReadBuffer = Vec<u8>;

    fn path(&self) -> &str {
        self.read.path()
    }

    fn len(&self) -> u64 {
        self.bytes.get()
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        self.read.read_at(offset, len).await
    }

    async fn write_at(&self, offset: u64, buffer: Vec<u8>) -> Result<()> {
        let written = self.read.file().write_all_at(&buffer, offset);
        written.map_err(|error| DiskError::new("write", self.path(), error).at(offset))?;
        self.bytes.set(self.bytes.get().max(offset + buffer.len() as u64));
        Ok(())
    }

    async fn sync(&self) -> Result<()> {
        self.read.file().sync_data().map_err(|error| DiskError::new("sync", self.path(), error))
    }

    async fn close(self) -> Result<()> {
        Ok(())
    }
}

impl Env for Fresh {
    type Disk = Fresh;

    fn disk(&self) -> &Fresh {
        self
    }

    fn wall_ms(&self) -> u64 {
        self.0.wall_ms()
    }

    fn now(&self) -> Duration {
        self.0.now()
    }

    fn random(&self) -> u64 {
        self.0.random()
    }

    fn spawn(&self, queue: Queue, future: impl Future<Output = ()> + 'static) {
        self.0.spawn(queue, future);
    }

    fn set_shares(&self, _: Queue, _: usize) {}

    async fn sleep(&self, _: Duration) {}

    async fn yield_now(&self) {}
}
