//! The mark of a directory that is not complete: a file [`MARKER`], there before anything else is and gone only when
//! all else is durable. So a copy that was cut short, by a crash too, is never taken for a whole one.
//!
//! ```text
//! one page: a line of text that says what was begun ("checkpoint", "backup", "restore" or "salvage"), one that says it
//! to people, then zeros
//! ```
//!
//! Whatever is in the file, and be it empty since the power went while it was written, its name marks the directory.

use super::EngineError;
use crate::base::PAGE_SIZE;
use crate::disk::{Disk, File, OpenMode, OpenOptions};
use crate::env::Env;

/// Name of the file that says that a data directory is not complete.
pub const MARKER: &str = "INCOMPLETE";

/// What a directory with a [`MARKER`] was to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfinished {
    /// A server's checkpoint.
    Checkpoint,
    /// A copy of a checkpoint.
    Backup,
    /// A copy of a backup.
    Restore,
    /// What was readable of a damaged directory.
    Salvage,
    /// Nobody knows.
    Unknown,
}

impl Unfinished {
    const NAMED: [(Unfinished, &str); 4] = [
        (Unfinished::Checkpoint, "checkpoint"),
        (Unfinished::Backup, "backup"),
        (Unfinished::Restore, "restore"),
        (Unfinished::Salvage, "salvage"),
    ];

    /// Fills a marker's page.
    pub fn encode(self, page: &mut [u8]) {
        let name = Self::NAMED.iter().find(|(kind, _)| *kind == self).map_or("", |(_, name)| name);
        let text = format!("{name}\nThis directory is {}.\n", self.advice());
        page.fill(0);
        page[..text.len()].copy_from_slice(text.as_bytes());
    }

    /// From what a marker holds.
    pub fn decode(bytes: &[u8]) -> Unfinished {
        let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let named = Self::NAMED.iter().find(|(_, name)| name.as_bytes() == line);
        named.map_or(Unfinished::Unknown, |(kind, _)| *kind)
    }

    /// What such a directory is, and what to do about it; the end of a sentence.
    pub fn advice(self) -> &'static str {
        match self {
            Unfinished::Checkpoint => {
                "a checkpoint that was never completed (its file INCOMPLETE says so), and lacks a part of the data; unless a server is just making it, remove the directory, and make a checkpoint again"
            }
            Unfinished::Backup => {
                "a backup that was never completed, or that is being removed (its file INCOMPLETE says so), and lacks a part of the data; the same atlaskv-inspect backup with its --name goes on with it, atlaskv-inspect prune --incomplete removes it"
            }
            Unfinished::Restore => {
                "a restored backup that was never completed (its file INCOMPLETE says so), and lacks a part of the data; the same atlaskv-inspect restore goes on with it, or remove the directory"
            }
            Unfinished::Salvage => {
                "a salvage that was never completed (its file INCOMPLETE says so), and lacks a part of the data; unless it is just being made, remove the directory, and salvage again"
            }
            Unfinished::Unknown => {
                "a copy that was never completed (its file INCOMPLETE says so), and lacks a part of the data; unless it is just being made, remove the directory, and make the copy again"
            }
        }
    }
}

/// Marks the new, empty directory `dir`.
pub(super) async fn mark<E: Env>(env: &E, dir: &str, kind: Unfinished) -> Result<(), EngineError> {
    let disk = env.disk();
    let options = OpenOptions { mode: OpenMode::CreateNew, dsync: false };
    let file = disk.open(&format!("{dir}/{MARKER}"), options).await?;
    let mut page = disk.alloc(PAGE_SIZE);
    kind.encode(&mut page);
    let written = async {
        file.write_at(0, page).await?;
        file.sync().await
    };
    let result = written.await;
    file.close().await?;
    result?;
    Ok(disk.sync_dir(dir).await?)
}

/// What `dir` was to become, if it is marked.
pub(super) async fn marked<E: Env>(env: &E, dir: &str) -> Result<Option<Unfinished>, EngineError> {
    let entries = match env.disk().list(dir).await {
        Ok(entries) => entries,
        Err(error) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let Some(marker) = entries.iter().find(|entry| entry.name == MARKER) else { return Ok(None) };
    // What it says is only for the message.
    if marker.bytes < PAGE_SIZE as u64 {
        return Ok(Some(Unfinished::Unknown));
    }
    let options = OpenOptions { mode: OpenMode::Read, dsync: false };
    let path = if dir.is_empty() { MARKER.to_owned() } else { format!("{dir}/{MARKER}") };
    let file = env.disk().open(&path, options).await?;
    let kind = file.read_at(0, PAGE_SIZE).await.map(|page| Unfinished::decode(&page));
    file.close().await?;
    Ok(Some(kind.unwrap_or(Unfinished::Unknown)))
}

/// Refuses a data directory that is not complete.
pub(super) async fn refuse_incomplete<E: Env>(env: &E) -> Result<(), EngineError> {
    match marked(env, "").await? {
        Some(kind) => Err(EngineError::Checkpoint(format!("this directory is {}", kind.advice()))),
        None => Ok(()),
    }
}
