//! What the engine asks of a disk: a directory tree of files that are read and written in whole pages,
//! past the page cache. Two implementations: [`glommio`] (O_DIRECT through io_uring) and [`sim`] (memory,
//! with crashes, torn writes and injected errors). One contract test runs against both.
//!
//! Rules that every implementation keeps and every caller may rely on:
//! - Paths are relative to the data directory, with `/` between names.
//! - Offsets and lengths are multiples of [`PAGE_SIZE`](crate::base::PAGE_SIZE) and not zero.
//! - A read returns exactly the bytes asked for, or an error; past the end of the file it is an error.
//! - A write is whole or an error. After an error or a crash its range holds any mixture, sector by
//!   sector, of old and new bytes. With `dsync` a write that returned is durable (data, and the size it
//!   needs to be read back). Otherwise it is durable after a later [`File::sync`] returned.
//! - A new name, a link, a rename and a removal are durable after [`Disk::sync_dir`] of their directory.
//! - Dropping the future of an operation leaves its effect unknown; callers run operations to their end.
//! - Files are closed by [`File::close`], not by dropping.

pub mod below;
pub mod glommio;
pub mod sim;

use std::future::Future;
use std::io;
use std::ops::{Deref, DerefMut};

/// Result of a disk operation.
pub type Result<T> = std::result::Result<T, DiskError>;

/// A failed disk operation: what was tried on which path, and the cause.
#[derive(Debug, thiserror::Error)]
#[error("{operation} of {path}{} failed ({source})", At(*.offset))]
pub struct DiskError {
    /// What was tried: `read`, `write`, `open` and so on.
    pub operation: &'static str,
    /// On what, below the data directory.
    pub path: String,
    /// Where in the file, if that is known.
    pub offset: Option<u64>,
    /// The cause.
    pub source: io::Error,
}

struct At(Option<u64>);

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |offset| write!(f, " at byte {offset}"))
    }
}

impl DiskError {
    /// A failed `operation` on `path`.
    pub fn new(operation: &'static str, path: impl Into<String>, source: io::Error) -> DiskError {
        DiskError { operation, path: path.into(), offset: None, source }
    }

    /// Says where in the file it was.
    #[must_use]
    pub fn at(self, offset: u64) -> DiskError {
        DiskError { offset: Some(offset), ..self }
    }

    /// The same once more: its cause is not one that can be cloned.
    #[must_use]
    pub fn again(&self) -> DiskError {
        let source = match self.source.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(self.source.kind(), self.source.to_string()),
        };
        DiskError { operation: self.operation, path: self.path.clone(), offset: self.offset, source }
    }

    /// Whether this process or the machine has as many files open as it may. What was asked has not begun.
    pub fn is_out_of_files(&self) -> bool {
        matches!(self.source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
    }

    /// Whether there was no space (or quota) left. Space, like files, may come back by itself.
    pub fn is_full(&self) -> bool {
        matches!(self.source.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
            || matches!(self.source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }

    /// Whether the device, or the file system by a checksum of its own, says that it can't give back what was
    /// written to it. A moment later it may.
    pub fn is_unreadable(&self) -> bool {
        // The block layer's words for bad media and failed protection, and the file systems' for bad checksums.
        const CODES: [i32; 5] = [libc::EIO, libc::ENODATA, libc::EILSEQ, libc::EBADMSG, libc::EUCLEAN];
        self.operation == "read" && self.source.raw_os_error().is_some_and(|code| CODES.contains(&code))
    }

    /// Whether the file or directory does not exist.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// How to open a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// What for.
    pub mode: OpenMode,
    /// Whether each write is durable when it returns (O_DSYNC).
    pub dsync: bool,
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, to read.
    Read,
    /// An existing file, to read and write.
    Write,
    /// A file that must not exist yet, to read and write.
    CreateNew,
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Name, without the directory's.
    pub name: String,
    /// Size in bytes; 0 for a directory.
    pub bytes: u64,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// Space of the file system that holds the data directory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// What this process may still allocate.
    pub free: u64,
    /// All there is.
    pub total: u64,
}

/// A directory tree.
pub trait Disk: Clone + 'static {
    /// Its files.
    type File: File;

    /// A page-aligned buffer of `len` bytes (a multiple of the page size) to fill and write. Its contents
    /// are **not** zeroed: the caller fills every byte.
    fn alloc(&self, len: usize) -> <Self::File as File>::Buffer;

    /// Opens or creates a file.
    fn open(&self, path: &str, options: OpenOptions) -> impl Future<Output = Result<Self::File>>;

    /// Renames a file, replacing what had the new name.
    fn rename(&self, from: &str, to: &str) -> impl Future<Output = Result<()>>;

    /// Gives a file a second name (a hard link), which must not exist yet. `to` may be a path outside the data
    /// directory, if it is absolute and on the same file system.
    fn link(&self, from: &str, to: &str) -> impl Future<Output = Result<()>>;

    /// Removes a file's name. What it takes is free once it is closed and has no other name.
    fn remove(&self, path: &str) -> impl Future<Output = Result<()>>;

    /// Cuts `bytes` off the end of a file that is about to be removed: a file system that frees a large one at
    /// once may stop for others. Not if it is no longer than that, or has another name; whether it did.
    fn shrink(&self, path: &str, bytes: u64) -> impl Future<Output = Result<bool>>;

    /// Creates a directory; an existing one is fine.
    fn create_dir(&self, path: &str) -> impl Future<Output = Result<()>>;

    /// Removes an empty directory; durable after the sync of the one above it.
    fn remove_dir(&self, path: &str) -> impl Future<Output = Result<()>>;

    /// Names in a directory, sorted.
    fn list(&self, path: &str) -> impl Future<Output = Result<Vec<DirEntry>>>;

    /// Makes the names in a directory durable. The data directory itself is `""`.
    fn sync_dir(&self, path: &str) -> impl Future<Output = Result<()>>;

    /// Space left.
    fn space(&self) -> impl Future<Output = Result<Space>>;
}

/// An open file. Operations may overlap; reads and writes of overlapping ranges at the same time have
/// no defined order.
pub trait File: 'static {
    /// What is written.
    type Buffer: DerefMut<Target = [u8]>;
    /// What was read. Copy out of it soon: it may pin a scarce I/O buffer.
    type ReadBuffer: Deref<Target = [u8]> + Into<Vec<u8>>;

    /// Path below the data directory under which it was opened.
    fn path(&self) -> &str;

    /// Size in bytes: what it had when opened, grown by this handle's writes.
    fn len(&self) -> u64;

    /// Whether its size is 0.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads exactly `len` bytes at `offset`.
    fn read_at(&self, offset: u64, len: usize) -> impl Future<Output = Result<Self::ReadBuffer>>;

    /// Writes the whole of `buffer` at `offset`; extends the file if need be.
    fn write_at(&self, offset: u64, buffer: Self::Buffer) -> impl Future<Output = Result<()>>;

    /// Makes all writes that returned before this call durable (fdatasync).
    fn sync(&self) -> impl Future<Output = Result<()>>;

    /// Closes; its error is the last chance to hear of a failed write. Does not sync.
    fn close(self) -> impl Future<Output = Result<()>>;
}
