//! Segment files: prepared ahead of need, recycled when free.

use std::cell::{Cell, RefCell};

use super::format::{SegmentHeader, parse_segment_name, segment_path};
use crate::base::{BlockSeq, Bug, EntryIndex, LogId, PAGE_SIZE, planted};
use crate::disk::{Disk, DiskError, File, OpenMode, OpenOptions, Result};
use crate::env::Env;

/// Writes of this size fill a new segment. Larger ones gain nothing, and delay others.
const FILL_BYTES: usize = 1 << 20;

/// Gives each of these logs, which are new, the name of its first segment, empty as yet. Once the manifest names a
/// log, one without a file is one that was lost.
pub async fn begin_logs<E: Env>(env: &E, logs: &[LogId]) -> Result<()> {
    let disk = env.disk();
    disk.create_dir("wal").await?;
    disk.sync_dir("").await?;
    for entry in disk.list("wal").await? {
        // What a start left that ended before the manifest named its logs.
        if parse_segment_name(&entry.name).is_some_and(|(log, _)| logs.contains(&log)) {
            disk.remove(&format!("wal/{}", entry.name)).await?;
        }
    }
    for log in logs {
        create_empty(env, &segment_path(*log, 0)).await?;
    }
    disk.sync_dir("wal").await
}

async fn create_empty<E: Env>(env: &E, path: &str) -> Result<()> {
    let options = OpenOptions { mode: OpenMode::CreateNew, dsync: false };
    env.disk().open(path, options).await?.close().await
}

/// Gives back what a file takes, but not its name.
async fn empty<E: Env>(env: &E, path: &str) -> Result<()> {
    let temporary = format!("{path}.tmp");
    create_empty(env, &temporary).await?;
    env.disk().rename(&temporary, path).await
}

/// A segment that is open for writing.
pub struct Segment<E: Env> {
    /// Number in its log.
    pub number: u64,
    /// Its file, whose own idea of its path may be that before it was recycled.
    pub file: <E::Disk as Disk>::File,
    /// Where it is now.
    pub path: String,
    /// Per tablet (by handle), the last entry in here.
    pub last: RefCell<Vec<(usize, EntryIndex)>>,
    /// The last block in here.
    pub last_block: Cell<BlockSeq>,
}

impl<E: Env> Segment<E> {
    fn new(number: u64, file: <E::Disk as Disk>::File, path: String) -> Segment<E> {
        Segment { number, file, path, last: RefCell::default(), last_block: Cell::new(BlockSeq::ZERO) }
    }

    /// Notes that `tablet` has entries up to `index` in here.
    pub fn note(&self, tablet: usize, index: EntryIndex) {
        let mut last = self.last.borrow_mut();
        match last.iter_mut().find(|(t, _)| *t == tablet) {
            Some((_, known)) => *known = (*known).max(index),
            None => last.push((tablet, index)),
        }
    }

    /// Creates a segment of `bytes`, every byte written once: a sync into written space takes a third of
    /// the time of one into fresh space. Durable, name and all, on return.
    pub async fn create(env: &E, header: SegmentHeader, bytes: u64) -> Result<Segment<E>> {
        let path = segment_path(header.log, header.segment);
        match Self::fill(env, &path, bytes).await {
            Ok(()) => {}
            Err(error) => {
                // What was allocated would otherwise be missing elsewhere. Best effort: a full disk is
                // no reason for remove to fail, and the next start removes it anyway. The name of the first
                // stays: the manifest names its log.
                let _ = match header.segment {
                    0 => empty(env, &path).await,
                    _ => env.disk().remove(&path).await,
                };
                return Err(error);
            }
        }
        let file = env
            .disk()
            .open(&path, OpenOptions { mode: OpenMode::Write, dsync: !planted(Bug::LogNotDurable) })
            .await?;
        write_header(env, &file, header).await?;
        env.disk().sync_dir("wal").await?;
        Ok(Segment::new(header.segment, file, path))
    }

    async fn fill(env: &E, path: &str, bytes: u64) -> Result<()> {
        let disk = env.disk();
        // The first of a log has its name already: [`begin_logs`].
        let file = match disk.open(path, OpenOptions { mode: OpenMode::Write, dsync: false }).await {
            Err(error) if error.is_not_found() => {
                disk.open(path, OpenOptions { mode: OpenMode::CreateNew, dsync: false }).await?
            }
            file => file?,
        };
        assert_eq!(file.len(), 0, "nothing was written to {path} before");
        let mut result = Ok(());
        let mut at = 0;
        while result.is_ok() && at < bytes {
            let len = (bytes - at).min(FILL_BYTES as u64);
            let mut zeros = disk.alloc(len as usize);
            zeros.fill(0);
            result = file.write_at(at, zeros).await;
            at += len;
        }
        if result.is_ok() {
            result = file.sync().await;
        }
        let closed = file.close().await;
        result.and(closed)
    }

    /// Makes this free segment another one, of the same or a later log. With an error comes the segment, if
    /// it is still what it was.
    pub async fn recycle(
        mut self,
        env: &E,
        header: SegmentHeader,
    ) -> std::result::Result<Segment<E>, (Option<Segment<E>>, DiskError)> {
        let path = segment_path(header.log, header.segment);
        if let Err(error) = env.disk().rename(&self.path, &path).await {
            return Err((Some(self), error));
        }
        self.path = path;
        // The header names the new identity, and it is durable before the first block: nothing that
        // stands in here from before fits it.
        let named = async {
            write_header(env, &self.file, header).await?;
            env.disk().sync_dir("wal").await
        };
        match named.await {
            Ok(()) => Ok(Segment::new(header.segment, self.file, self.path)),
            Err(error) => {
                let _ = self.file.close().await; // the first error is the one to report
                Err((None, error))
            }
        }
    }

    /// Removes it, for good: a crash may not bring it back without those after it. With an error comes the
    /// segment, if it is still there.
    pub async fn remove(self, env: &E) -> std::result::Result<(), (Option<Segment<E>>, DiskError)> {
        // Its name first: once the file is closed there is no way back.
        if let Err(error) = env.disk().remove(&self.path).await {
            return Err((Some(self), error));
        }
        let closed = self.file.close().await;
        let synced = env.disk().sync_dir("wal").await;
        closed.and(synced).map_err(|error| (None, error))
    }
}

async fn write_header<D: File>(
    env: &impl Env<Disk: Disk<File = D>>,
    file: &D,
    header: SegmentHeader,
) -> Result<()> {
    let mut page = env.disk().alloc(PAGE_SIZE);
    header.encode(&mut page);
    file.write_at(0, page).await
}

/// The identity of segment `number` of `log`.
pub fn header<E: Env>(env: &E, cluster: u128, log: LogId, nonce: u64, number: u64) -> SegmentHeader {
    SegmentHeader { cluster, log, segment: number, created_ms: env.wall_ms(), nonce }
}
