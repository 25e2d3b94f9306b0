//! A checkpoint: a directory that is a data directory of its own, made while the shards serve. Tables are hard
//! links, so nothing is copied; what was in memory is flushed first, so it needs no log.
//!
//! Whoever coordinates it: [`prepare`] (a marked, empty directory); all shards hold their writes back, then each
//! calls [`Engine::seal_checkpoint`] and lets them go on: that is the barrier, and what a checkpoint holds is what
//! was written before it. Then each shard waits for [`Engine::captured`] and links its tables
//! ([`Engine::link_checkpoint`]), and [`complete`] writes the manifest.
//!
//! Invariants:
//! - What is captured is the manifest's state in the very step in which the sealed memtable's tables became live:
//!   nothing that was written later is in it. Versions are captured with it, and keep the files.
//! - No tablet moves or splits between barrier and capture: the caller sees to that.
//! - A directory with the [`MARKER`] is not complete, and a start refuses it. The marker is there before anything
//!   else, and goes last, when all else is durable.

use std::rc::{Rc, Weak};

use super::manifest::format::{CURRENT, FileKey};
use super::manifest::{self, State, TEMPORARY};
pub use super::marker::{MARKER, Unfinished};
use super::marker::{mark, marked};
use super::obsolete::{REMOVE_PAUSE, REMOVE_STEP};
use super::version::Version;
use super::write::Sealed;
use super::{Engine, EngineError};
use crate::base::{EntryIndex, TableName, TabletId};
use crate::disk::Disk;
use crate::env::below::EnvBelow;
use crate::env::{Env, Pacer};

/// A shard's content at the barrier.
pub struct Captured<E: Env> {
    /// What its manifest says of it, without logs: it needs none.
    pub state: State,
    versions: Vec<(TabletId, Rc<Version<E>>)>,
}

/// A checkpoint that was begun.
pub(super) struct Pending<E: Env> {
    /// When this is flushed, tables hold all that belongs to it.
    until: Weak<Sealed>,
    /// Per tablet, its last entry at the barrier.
    last: Vec<EntryIndex>,
    captured: Option<Result<Captured<E>, EngineError>>,
}

/// How much a shard linked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Linked {
    /// Tables.
    pub tables: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl<E: Env> Engine<E> {
    /// Draws the line: what was written up to here belongs to the checkpoint. No write may be under way.
    pub fn seal_checkpoint(&self) {
        // One memtable more than may wait usually, for as long as its flush takes.
        self.rotate();
        let until = self.sealed.borrow().back().cloned();
        let pending = Pending {
            until: until.as_ref().map_or_else(Weak::new, Rc::downgrade),
            last: self.last.borrow().clone(),
            captured: None,
        };
        self.checkpoint.replace(Some(pending));
        if until.is_none() {
            self.capture();
        }
    }

    /// Called in the step in which the tables of `flushed` became live.
    pub(super) fn capture_after(&self, flushed: &Rc<Sealed>) {
        let is_it = |pending: &Pending<E>| {
            pending.captured.is_none() && std::ptr::eq(pending.until.as_ptr(), Rc::as_ptr(flushed))
        };
        if self.checkpoint.borrow().as_ref().is_some_and(is_it) {
            self.capture();
        }
    }

    fn capture(&self) {
        let mut state = self.manifest.state().clone();
        state.logs.clear();
        state.pins.clear();
        state.tablets.values_mut().for_each(|tablet| tablet.logs.clear());
        let mut here: Vec<_> = self.all_tablets().into_iter().enumerate().collect();
        here.retain(|(_, tablet)| tablet.is_here());
        let mut pending = self.checkpoint.borrow_mut();
        let Some(pending) = pending.as_mut() else { return };
        let mut versions = Vec::with_capacity(here.len());
        let mut refused = None;
        for (local, tablet) in here {
            let (flushed, last) = (state.flushed(tablet.id), pending.last.get(local).copied());
            if Some(flushed) != last {
                refused = Some(format!("tablet {} was flushed to {flushed}, not to the barrier", tablet.id));
            }
            versions.push((tablet.id, tablet.version()));
        }
        // What only the next start knows, a copy can't tell either.
        let is_here = |id: &TabletId| versions.iter().any(|(here, _)| here == id);
        if let Some(lost) = state.tablets.keys().find(|id| !is_here(id)) {
            refused = Some(format!("only a restart shows whose tablet {lost} is; restart first"));
        }
        pending.captured = Some(match refused {
            None => Ok(Captured { state, versions }),
            Some(why) => Err(EngineError::Checkpoint(why)),
        });
        self.changed.notify();
    }

    /// Waits until what belongs to the checkpoint is in tables. Suspends for as long as that takes.
    pub async fn captured(&self) -> Result<Captured<E>, EngineError> {
        let has_come = || self.checkpoint.borrow().as_ref().is_none_or(|pending| pending.captured.is_some());
        let is_over = || {
            has_come()
                || self.flush_trouble.borrow().is_some()
                || self.manifest.failed().is_some()
                || self.wal.failed().is_some()
                || self.is_stopping.get()
        };
        loop {
            // A log that fails tells of it where it tells of commits.
            let (changed, durable) = (self.changed.notified(), self.wal.durable_changed().notified());
            if is_over() {
                break;
            }
            futures_lite::future::or(changed, durable).await;
        }
        let captured = self.checkpoint.take().and_then(|pending| pending.captured);
        captured.unwrap_or_else(|| {
            Err(match (self.wal.failed(), self.manifest.failed(), self.flush_trouble.borrow().as_ref()) {
                (Some(cause), ..) => EngineError::Log(cause),
                (_, Some(cause), _) => manifest::ManifestError::Failed(cause).into(),
                (.., Some(cause)) => {
                    EngineError::Checkpoint(format!("what is in memory can't be flushed: {cause}"))
                }
                _ => EngineError::Stopping,
            })
        })
    }

    /// Nothing comes of the checkpoint.
    pub fn forget_checkpoint(&self) {
        self.checkpoint.take();
    }

    /// Links the tables of a captured state into `dir`.
    pub async fn link_checkpoint(&self, captured: &Captured<E>, dir: &str) -> Result<Linked, EngineError> {
        let mut pacer = Pacer::new(&self.env);
        let mut linked = Linked::default();
        for (tablet, version) in &captured.versions {
            let mut tables = 0;
            for member in version.members() {
                let name = member.table.name();
                let target = format!("{dir}/{}", name.path());
                self.env.disk().link(&name.path(), &target).await.map_err(|error| elsewhere(error, dir))?;
                tables += 1;
                linked.bytes += member.meta().bytes;
                pacer.breathe().await;
            }
            assert_eq!(tables, captured.state.tables(*tablet).len(), "the manifest names what is live");
            linked.tables += tables as u64;
        }
        Ok(linked)
    }
}

fn elsewhere(error: crate::disk::DiskError, dir: &str) -> EngineError {
    if error.source.raw_os_error() == Some(libc::EXDEV) {
        return EngineError::Checkpoint(format!(
            "{dir} is on another file system than the data, where tables can't be linked; make the checkpoint beside the data and copy it with atlaskv-inspect backup"
        ));
    }
    error.into()
}

/// The directory above, or that of the disk itself.
fn parent(dir: &str) -> &str {
    match dir.rsplit_once('/') {
        Some(("", _)) => "/",
        Some((parent, _)) => parent,
        None => "",
    }
}

/// Makes `dir` an empty directory that is marked as a checkpoint that is not complete. Refuses one that holds
/// anything.
pub async fn prepare<E: Env>(env: &E, dir: &str) -> Result<(), EngineError> {
    prepare_as(env, dir, Unfinished::Checkpoint).await
}

/// As [`prepare`], marked as what is being made.
pub async fn prepare_as<E: Env>(env: &E, dir: &str, kind: Unfinished) -> Result<(), EngineError> {
    match env.disk().list(dir).await {
        Ok(entries) if entries.is_empty() => {}
        Ok(_) => {
            let what = match marked(env, dir).await? {
                Some(kind) => kind.advice(),
                None => "not empty; name a new directory",
            };
            return Err(EngineError::Checkpoint(format!("{dir} is {what}")));
        }
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error.into()),
    }
    let disk = env.disk();
    disk.create_dir(dir).await?;
    disk.sync_dir(parent(dir)).await?;
    mark(env, dir, kind).await?;
    disk.create_dir(&format!("{dir}/{}", TableName::DIR)).await?;
    Ok(disk.sync_dir(dir).await?)
}

/// Writes the manifest of a directory into which the tables of all `states` were linked, one state a shard.
pub async fn complete<E: Env>(env: &E, dir: &str, states: Vec<State>) -> Result<(), EngineError> {
    let state = manifest::merge_shards(states).map_err(EngineError::Checkpoint)?;
    let below = EnvBelow::new(env, dir);
    let disk = below.disk();
    disk.sync_dir(TableName::DIR).await?;
    manifest::install(&below, &state).await?;
    disk.remove(MARKER).await?;
    Ok(disk.sync_dir("").await?)
}

/// Whether `dir` holds a checkpoint, or what came of one, that was completed.
pub async fn is_complete<E: Env>(env: &E, dir: &str) -> Result<bool, EngineError> {
    let entries = env.disk().list(dir).await?;
    let has = |name: &str| entries.iter().any(|entry| entry.name == name);
    Ok(has(CURRENT) && !has(MARKER))
}

/// Removes a checkpoint, complete or not, that nobody uses. If there is anything in its directory that making one does
/// not leave there, as when a server was started on it, it is refused and nothing is removed. Whenever it ends before,
/// what is left is no data directory that could be taken for a whole one, and can be removed by another try.
pub async fn remove<E: Env>(env: &E, dir: &str) -> Result<(), EngineError> {
    let below = EnvBelow::new(env, dir);
    let disk = below.disk();
    let foreign = |name: &str| {
        EngineError::Checkpoint(format!(
            "{dir} holds {name}, which is no part of a checkpoint; remove it yourself"
        ))
    };
    let (mut tops, mut dirs, mut files) = (Vec::new(), Vec::new(), Vec::new());
    for entry in disk.list("").await? {
        match (entry.name.as_str(), entry.is_dir) {
            (manifest::format::DIR | TableName::DIR | "wal", true) => dirs.push(entry.name),
            (name, false) if name == MARKER || name.strip_suffix(TEMPORARY).unwrap_or(name) == CURRENT => {
                tops.push(entry.name);
            }
            (name, _) => return Err(foreign(name)),
        }
    }
    for inner in &dirs {
        for entry in disk.list(inner).await? {
            let is_part = match inner.as_str() {
                TableName::DIR => TableName::parse(&entry.name).is_some(),
                manifest::format::DIR => {
                    let name = entry.name.strip_suffix(TEMPORARY).unwrap_or(&entry.name);
                    FileKey::parse(name).is_some()
                }
                _ => false,
            };
            let path = format!("{inner}/{}", entry.name);
            if entry.is_dir || !is_part {
                return Err(foreign(&path));
            }
            files.push(path);
        }
    }
    // From here on it is none. The marker of one that never was goes last.
    let (marker, tops): (Vec<_>, Vec<_>) = tops.into_iter().partition(|name| name == MARKER);
    for name in tops {
        disk.remove(&name).await?;
    }
    disk.sync_dir("").await?;
    let mut pacer = Pacer::new(env);
    for path in files {
        // What can't be cut can still be removed, and that is where an error counts.
        while let Ok(true) = disk.shrink(&path, REMOVE_STEP).await {
            env.sleep(REMOVE_PAUSE).await;
        }
        disk.remove(&path).await?;
        pacer.breathe().await;
    }
    for inner in &dirs {
        disk.sync_dir(inner).await?;
        disk.remove_dir(inner).await?;
    }
    for name in marker {
        disk.remove(&name).await?;
    }
    disk.remove_dir("").await?;
    Ok(env.disk().sync_dir(parent(dir)).await?)
}
