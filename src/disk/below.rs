//! A directory of a disk as a disk of its own: what is written there is written as it would be anywhere else.

use std::rc::Rc;

use super::{DirEntry, Disk, OpenOptions, Result, Space};

/// The tree below a directory of another disk. Clones share it.
#[derive(Clone)]
pub struct Below<D> {
    disk: D,
    dir: Rc<str>,
}

impl<D: Disk> Below<D> {
    /// The tree below `dir`, which may be an absolute path where the disk takes those.
    pub fn new(disk: &D, dir: &str) -> Below<D> {
        Below { disk: disk.clone(), dir: Rc::from(dir) }
    }

    fn path(&self, path: &str) -> String {
        if path.is_empty() { self.dir.to_string() } else { format!("{}/{path}", self.dir) }
    }
}

impl<D: Disk> Disk for Below<D> {
    type File = D::File;

    fn alloc(&self, len: usize) -> <Self::File as super::File>::Buffer {
        self.disk.alloc(len)
    }

    async fn open(&self, path: &str, options: OpenOptions) -> Result<Self::File> {
        self.disk.open(&self.path(path), options).await
    }

    async fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.disk.rename(&self.path(from), &self.path(to)).await
    }

    async fn link(&self, from: &str, to: &str) -> Result<()> {
        self.disk.link(&self.path(from), &self.path(to)).await
    }

    async fn remove(&self, path: &str) -> Result<()> {
        self.disk.remove(&self.path(path)).await
    }

    async fn shrink(&self, path: &str, bytes: u64) -> Result<bool> {
        self.disk.shrink(&self.path(path), bytes).await
    }

    async fn create_dir(&self, path: &str) -> Result<()> {
        self.disk.create_dir(&self.path(path)).await
    }

    async fn remove_dir(&self, path: &str) -> Result<()> {
        self.disk.remove_dir(&self.path(path)).await
    }

    async fn list(&self, path: &str) -> Result<Vec<DirEntry>> {
        self.disk.list(&self.path(path)).await
    }

    async fn sync_dir(&self, path: &str) -> Result<()> {
        self.disk.sync_dir(&self.path(path)).await
    }

    async fn space(&self) -> Result<Space> {
        self.disk.space().await
    }
}
