//! The real disk: O_DIRECT files on the executor's io_uring.
//!
//! Deviations of the runtime that this module makes good (each has a test):
//! - The first file opened on a device decides, per executor, whether its reads are polled; an empty one
//!   decides wrongly and every later read fails. [`GlommioDisk::prime`] opens a full page first.
//! - Reads near the end of a file may return stale bytes: only aligned reads are used, and a read past
//!   the size known here is an error.
//! - Sizes by path are wrong after a rename: the size is taken once from the descriptor, then kept.
//! - Its errors lose the system's code when they become [`io::Error`]: `cause` keeps it.
//! - A panic in the runtime's helper thread would wedge it: closures sent there can't unwind.

mod ring;

use std::cell::{Cell, OnceCell};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use glommio::GlommioError;
use glommio::io::{Directory, DmaFile, OpenOptions as DmaOptions, ReadResult};

use super::{DirEntry, Disk, DiskError, File, OpenMode, OpenOptions, Result, Space};
use crate::base::PAGE_SIZE;

pub use self::ring::{ENTRIES as READ_RING_ENTRIES, ReadRing};

/// Longest read that goes through the ring for reads, if there is one. What reads more at once waits for the disk.
const RING_BYTES_MAX: usize = 64 << 10;
/// Longest single read. Devices cut longer ones, and the runtime has hung on them.
const READ_BYTES_MAX: usize = 1 << 20;

/// The data directory, through the current executor's ring.
#[derive(Clone)]
pub struct GlommioDisk {
    root: Rc<Path>,
    under_way: UnderWay,
    ring: Rc<OnceCell<Rc<ReadRing>>>,
}

/// Counts what only a look at the rings brings on.
#[derive(Clone, Default)]
pub struct UnderWay(Rc<Cell<usize>>);

/// One of those that an [`UnderWay`] counts, until dropped.
pub struct Counted(Rc<Cell<usize>>);

impl UnderWay {
    /// One more.
    #[must_use]
    pub fn enter(&self) -> Counted {
        self.0.set(self.0.get() + 1);
        Counted(self.0.clone())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.get()
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// An open O_DIRECT file.
pub struct GlommioFile {
    file: DmaFile,
    under_way: UnderWay,
    ring: Rc<OnceCell<Rc<ReadRing>>>,
    path: String,
    len: Cell<u64>,
}

/// What was read: one piece, or several put together.
pub enum ReadBytes {
    /// A single read's result, pinned in the ring's memory until dropped.
    One(ReadResult),
    /// A read through the ring for reads.
    Own(WriteBuffer),
    /// Several reads, copied.
    Many(Vec<u8>),
}

impl std::ops::Deref for ReadBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            ReadBytes::One(read) => read,
            ReadBytes::Own(buffer) => buffer,
            ReadBytes::Many(bytes) => bytes,
        }
    }
}

impl From<ReadBytes> for Vec<u8> {
    fn from(read: ReadBytes) -> Vec<u8> {
        match read {
            ReadBytes::One(read) => read.to_vec(),
            ReadBytes::Own(buffer) => buffer.to_vec(),
            ReadBytes::Many(bytes) => bytes,
        }
    }
}

/// A page-aligned buffer of `len` bytes.
fn allocate(len: usize) -> WriteBuffer {
    assert!(len > 0 && len.is_multiple_of(PAGE_SIZE), "buffers are whole pages");
    let mut buffer = glommio::allocate_dma_buffer(len);
    assert!(buffer.len() >= len, "the runtime gave {} bytes for {len}", buffer.len());
    buffer.trim_to_size(len);
    WriteBuffer(buffer)
}

/// A page-aligned buffer of the ring's memory.
pub struct WriteBuffer(glommio::io::DmaBuffer);

impl std::ops::Deref for WriteBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl std::ops::DerefMut for WriteBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.as_bytes_mut()
    }
}

/// The system's error, with its code: the runtime's own conversion keeps no more than the kind, which has no name for
/// what a failing device says.
fn cause<T>(error: GlommioError<T>) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => error.into(),
    }
}

impl GlommioDisk {
    /// The tree below `root`, which must exist. Call [`GlommioDisk::prime`] before anything else.
    pub fn new(root: &Path) -> GlommioDisk {
        // The runtime opens what is relative relative to no directory, and fails. Without a working
        // directory, the first file to be opened says what is wrong.
        let root = std::path::absolute(root).unwrap_or_else(|_| root.to_path_buf());
        GlommioDisk { root: Rc::from(root), under_way: UnderWay::default(), ring: Rc::default() }
    }

    /// Has short reads go through a ring of their own, while that is open. Once, and somebody attends to it.
    pub fn read_through(&self, ring: Rc<ReadRing>) {
        assert!(self.ring.set(ring).is_ok(), "a disk has one ring for reads");
    }

    /// The ring that short reads go through now.
    pub fn ring(&self) -> Option<&Rc<ReadRing>> {
        self.ring.get().filter(|ring| ring.is_open())
    }

    /// What of this disk is under way. Others of the executor may count theirs there as well.
    pub fn under_way(&self) -> &UnderWay {
        &self.under_way
    }

    /// Settles for this executor how the device is read, with a file that is not empty. Executors share
    /// the file, so nobody may truncate it: it would be empty for a moment that another may probe it in.
    pub async fn prime(&self) -> Result<()> {
        const NAME: &str = "probe";
        let error = |error: io::Error| DiskError::new("prime", NAME, error);
        let path = self.path(NAME);
        let probe = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        probe.and_then(|probe| probe.write_all_at(&[0u8; PAGE_SIZE], 0)).map_err(error)?;
        let file = DmaFile::open(&path).await.map_err(|e| error(cause(e)))?;
        file.close().await.map_err(|e| error(cause(e)))
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Runs a system call that may block on the executor's helper thread.
    async fn blocking<T: Send + 'static>(
        &self,
        operation: &'static str,
        path: &str,
        call: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let guarded = move || {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(call))
                .unwrap_or_else(|_| Err(io::Error::other("panicked")))
        };
        let _under_way = self.under_way.enter();
        let result = glommio::executor().spawn_blocking(guarded).await;
        result.map_err(|error| DiskError::new(operation, path, error))
    }
}

impl Disk for GlommioDisk {
    type File = GlommioFile;

    fn alloc(&self, len: usize) -> WriteBuffer {
        allocate(len)
    }

    async fn open(&self, path: &str, options: OpenOptions) -> Result<GlommioFile> {
        let mut dma = DmaOptions::new();
        dma.read(true);
        match options.mode {
            OpenMode::Read => {}
            OpenMode::Write => {
                dma.write(true);
            }
            OpenMode::CreateNew => {
                dma.write(true).create_new(true);
            }
        }
        if options.dsync {
            dma.custom_flags(libc::O_DSYNC);
        }
        let full = self.path(path);
        let _under_way = self.under_way.enter();
        // The runtime statfs()es the path after opening it and panics if that fails; a missing file is
        // reported by the open itself, before that.
        let file = dma.dma_open(&full).await.map_err(|e| DiskError::new("open", path, cause(e)))?;
        let len = fstat_len(&file).map_err(|error| DiskError::new("open", path, error));
        let len = match len {
            Ok(len) => len,
            Err(error) => {
                let _ = file.close().await; // the first error is the one to report
                return Err(error);
            }
        };
        let (under_way, ring) = (self.under_way.clone(), self.ring.clone());
        Ok(GlommioFile { file, under_way, ring, path: path.to_owned(), len: Cell::new(len) })
    }

    async fn rename(&self, from: &str, to: &str) -> Result<()> {
        let (source, target) = (self.path(from), self.path(to));
        self.blocking("rename", from, move || std::fs::rename(source, target)).await
    }

    async fn link(&self, from: &str, to: &str) -> Result<()> {
        let (source, target) = (self.path(from), self.path(to));
        self.blocking("link", to, move || std::fs::hard_link(source, target)).await
    }

    async fn remove(&self, path: &str) -> Result<()> {
        let full = self.path(path);
        self.blocking("remove", path, move || std::fs::remove_file(full)).await
    }

    async fn shrink(&self, path: &str, bytes: u64) -> Result<bool> {
        let full = self.path(path);
        let cut = move || {
            let file = std::fs::OpenOptions::new().write(true).open(full)?;
            let metadata = file.metadata()?;
            if metadata.nlink() > 1 || metadata.len() <= bytes {
                return Ok(false);
            }
            file.set_len(metadata.len() - bytes)?;
            Ok(true)
        };
        self.blocking("shrink", path, cut).await
    }

    async fn create_dir(&self, path: &str) -> Result<()> {
        let full = self.path(path);
        self.blocking("create_dir", path, move || std::fs::create_dir_all(full)).await
    }

    async fn remove_dir(&self, path: &str) -> Result<()> {
        let full = self.path(path);
        self.blocking("remove_dir", path, move || std::fs::remove_dir(full)).await
    }

    async fn list(&self, path: &str) -> Result<Vec<DirEntry>> {
        let full = self.path(path);
        let list = move || {
            let mut entries = Vec::new();
            for entry in std::fs::read_dir(full)? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                // A name that is no text is none of ours.
                let Ok(name) = entry.file_name().into_string() else { continue };
                let bytes = if metadata.is_dir() { 0 } else { metadata.len() };
                entries.push(DirEntry { name, bytes, is_dir: metadata.is_dir() });
            }
            entries.sort_by(|a, b| a.name.cmp(&b.name));
            Ok(entries)
        };
        self.blocking("list", path, list).await
    }

    async fn sync_dir(&self, path: &str) -> Result<()> {
        let error = |error: GlommioError<()>| DiskError::new("sync_dir", path, cause(error));
        let _under_way = self.under_way.enter();
        let dir = Directory::open(self.path(path)).await.map_err(error)?;
        let synced = dir.sync().await.map_err(error);
        let closed = dir.close().await.map_err(error);
        synced.and(closed)
    }

    async fn space(&self) -> Result<Space> {
        let root = self.root.to_path_buf();
        let space = move || {
            let stat = rustix::fs::statvfs(&root)?;
            Ok(Space { free: stat.f_bavail * stat.f_frsize, total: stat.f_blocks * stat.f_frsize })
        };
        self.blocking("statvfs", "", space).await
    }
}

fn fstat_len(file: &DmaFile) -> io::Result<u64> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the descriptor is open as long as `file` lives, and `stat` has room for the result.
    if unsafe { libc::fstat(file.as_raw_fd(), stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fstat succeeded, so it filled the whole structure.
    let stat = unsafe { stat.assume_init() };
    u64::try_from(stat.st_size).map_err(|_| io::ErrorKind::InvalidData.into())
}

impl GlommioFile {
    fn error(&self, operation: &'static str, error: io::Error) -> DiskError {
        DiskError::new(operation, &self.path, error)
    }

    async fn read_through(&self, ring: &ReadRing, offset: u64, len: usize) -> Result<ReadBytes> {
        let (buffer, read) = ring.read(self.file.as_raw_fd(), offset, allocate(len)).await;
        match read {
            Ok(read) if read == len => Ok(ReadBytes::Own(buffer)),
            Ok(_) => Err(self.error("read", io::ErrorKind::UnexpectedEof.into()).at(offset)),
            Err(error) => Err(self.error("read", error).at(offset)),
        }
    }

    async fn read_piece(&self, offset: u64, len: usize) -> Result<ReadResult> {
        let _under_way = self.under_way.enter();
        let read = self.file.read_at_aligned(offset, len).await;
        let read = read.map_err(|error| self.error("read", cause(error)).at(offset))?;
        if read.len() != len {
            return Err(self.error("read", io::ErrorKind::UnexpectedEof.into()).at(offset));
        }
        Ok(read)
    }
}

impl File for GlommioFile {
    type Buffer = WriteBuffer;
    type ReadBuffer = ReadBytes;

    fn path(&self) -> &str {
        &self.path
    }

    fn len(&self) -> u64 {
        self.len.get()
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<ReadBytes> {
        let is_aligned = offset.is_multiple_of(PAGE_SIZE as u64) && len.is_multiple_of(PAGE_SIZE);
        assert!(is_aligned && len > 0, "{}: {len} bytes at {offset} are not whole pages", self.path);
        if offset.checked_add(len as u64).is_none_or(|end| end > self.len.get()) {
            return Err(self.error("read", io::ErrorKind::UnexpectedEof.into()).at(offset));
        }
        if len <= RING_BYTES_MAX
            && let Some(ring) = self.ring.get().filter(|ring| ring.is_open())
        {
            return self.read_through(ring, offset, len).await;
        }
        if len <= READ_BYTES_MAX {
            return self.read_piece(offset, len).await.map(ReadBytes::One);
        }
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            let piece = (len - bytes.len()).min(READ_BYTES_MAX);
            bytes.extend_from_slice(&self.read_piece(offset + bytes.len() as u64, piece).await?);
        }
        Ok(ReadBytes::Many(bytes))
    }

    async fn write_at(&self, offset: u64, buffer: WriteBuffer) -> Result<()> {
        let len = buffer.len();
        let is_aligned = offset.is_multiple_of(PAGE_SIZE as u64) && len.is_multiple_of(PAGE_SIZE);
        assert!(is_aligned && len > 0, "{}: {len} bytes at {offset} are not whole pages", self.path);
        let _under_way = self.under_way.enter();
        let written = self.file.write_at(buffer.0, offset).await;
        let written = written.map_err(|error| self.error("write", cause(error)).at(offset))?;
        if written != len {
            // Legal for the kernel, and most often a disk that has just filled up. What else there is to say, the
            // next try is told.
            let why = format!("only {written} of {len} bytes were written");
            let error = io::Error::new(io::ErrorKind::StorageFull, why);
            return Err(self.error("write", error).at(offset));
        }
        self.len.set(self.len.get().max(offset + len as u64));
        Ok(())
    }

    async fn sync(&self) -> Result<()> {
        let _under_way = self.under_way.enter();
        self.file.fdatasync().await.map_err(|error| self.error("sync", cause(error)))
    }

    async fn close(self) -> Result<()> {
        let (path, _under_way) = (self.path, self.under_way.enter());
        self.file.close().await.map_err(|error| DiskError::new("close", path, cause(error)))
    }
}
