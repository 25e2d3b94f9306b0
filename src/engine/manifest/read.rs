//! Reading a generation: bytes to blocks, blocks to one shard's state, shards to the whole.

use std::collections::BTreeMap;

use super::ManifestError;
use super::edit::{Change, Edit, EditError};
use super::format::{
    BlockHeader, CURRENT, Current, DIR, FEATURE_LEVEL, FileKey, Parsed, VERSION, block_len, parse_block,
};
use super::state::{State, Store};
use crate::base::{PAGE_SIZE, is_blank};
use crate::disk::{Disk, File, OpenMode, OpenOptions};
use crate::env::Env;

/// Bytes of one read or write of a long snapshot: larger ones only hold more registered memory at once.
pub(super) const TRANSFER_BYTES: usize = 1 << 20;

/// What was read from one file.
pub(super) struct Contents {
    pub edits: Vec<(u64, Edit)>,
    /// Where the next block goes.
    pub end: u64,
    pub next_seq: u32,
    pub last_crc: u32,
    /// Whether bytes behind the end are no block and not blank.
    pub is_torn: bool,
}

/// Reads a file's blocks up to a torn tail. Damage and newer versions are errors.
pub(super) fn parse(path: &str, key: FileKey, bytes: &[u8]) -> Result<Contents, ManifestError> {
    let mut contents = Contents { edits: Vec::new(), end: 0, next_seq: 1, last_crc: 0, is_torn: false };
    let mut at = 0;
    while at < bytes.len() {
        match parse_block(&bytes[at..]) {
            Parsed::Newer(found) => return Err(newer(path, found)),
            Parsed::Block(header, payload) => {
                if let Some(what) = misplaced(&header, key, contents.next_seq, contents.last_crc) {
                    return Err(corrupt(path, at, what));
                }
                contents.edits.push((at as u64, decode(path, at, payload)?));
                contents.next_seq += 1;
                contents.last_crc = header.crc.get();
                at += block_len(payload.len());
                contents.end = at as u64;
            }
            Parsed::Damaged(..) | Parsed::Nothing => break,
        }
    }
    let tail = bytes.get(at..).unwrap_or_default();
    refuse_lost(path, key, at, tail, contents.next_seq)?;
    contents.is_torn = !is_blank(tail);
    if contents.edits.is_empty() {
        return Err(corrupt(path, 0, "no snapshot stands at its start"));
    }
    Ok(contents)
}

/// Why a whole block is not the one that belongs where it stands, if it is not.
pub(super) fn misplaced(header: &BlockHeader, key: FileKey, seq: u32, prev_crc: u32) -> Option<String> {
    if header.key() != key {
        return Some(format!("a block of {} stands here", header.key().path()));
    }
    if header.seq.get() != seq {
        return Some(format!("edit {} stands where edit {seq} belongs", header.seq.get()));
    }
    (header.prev_crc.get() != prev_crc).then(|| format!("edit {seq} does not follow the edit before it"))
}

/// A bad block is torn only if it is the last: one block is in flight at a time.
fn refuse_lost(path: &str, key: FileKey, at: usize, tail: &[u8], seq: u32) -> Result<(), ManifestError> {
    for (number, page) in (0..tail.len()).step_by(PAGE_SIZE).enumerate().skip(1) {
        match parse_block(&tail[page..]) {
            Parsed::Newer(found) => return Err(newer(path, found)),
            Parsed::Block(header, _) | Parsed::Damaged(header, _) if header.key() == key => {
                let follows = header.seq.get();
                let what = format!("edit {seq} is lost, edit {follows} follows {number} pages later");
                return Err(corrupt(path, at, what));
            }
            _ => {}
        }
    }
    Ok(())
}

fn decode(path: &str, at: usize, payload: &[u8]) -> Result<Edit, ManifestError> {
    Edit::decode(payload).map_err(|error| match error {
        EditError::Unknown(kind) => {
            ManifestError::NewerChange { path: path.to_owned(), offset: at as u64, kind }
        }
        error => corrupt(path, at, error.to_string()),
    })
}

fn corrupt(path: &str, offset: usize, what: impl Into<String>) -> ManifestError {
    ManifestError::Corrupt { path: path.to_owned(), offset: offset as u64, what: what.into() }
}

fn newer(path: &str, found: u32) -> ManifestError {
    ManifestError::NewerFormat { path: path.to_owned(), found, supported: VERSION }
}

/// One shard's state: the edits of its file applied in order.
pub(super) fn state_of(
    path: &str,
    key: FileKey,
    shards: u32,
    contents: &Contents,
) -> Result<State, ManifestError> {
    let first = contents.edits.first().and_then(|(_, edit)| edit.changes.first());
    let Some(Change::Store(store)) = first else {
        return Err(corrupt(path, 0, "its first block is no snapshot"));
    };
    let mut state = State::empty(*store, key.generation, shards);
    for (offset, edit) in &contents.edits {
        for change in &edit.changes {
            if let Change::Store(Store { feature_level: found, .. }) = *change
                && found > FEATURE_LEVEL
            {
                let path = path.to_owned();
                return Err(ManifestError::NewerFeatures { path, found, supported: FEATURE_LEVEL });
            }
            state.apply(change).map_err(|what| corrupt(path, *offset as usize, what))?;
        }
    }
    Ok(state)
}

pub(super) async fn read_file<E: Env>(env: &E, path: &str) -> Result<Vec<u8>, ManifestError> {
    let file = env.disk().open(path, OpenOptions { mode: OpenMode::Read, dsync: false }).await?;
    let len = (file.len() as usize) / PAGE_SIZE * PAGE_SIZE;
    let mut bytes = Vec::with_capacity(len);
    let mut result = Ok(());
    while bytes.len() < len && result.is_ok() {
        let part = (len - bytes.len()).min(TRANSFER_BYTES);
        result = file.read_at(bytes.len() as u64, part).await.map(|read| bytes.extend_from_slice(&read));
    }
    file.close().await?;
    Ok(result.map(|()| bytes)?)
}

/// What `CURRENT` says; `None` if there is none.
pub(super) async fn read_current<E: Env>(env: &E) -> Result<Option<Current>, ManifestError> {
    let page = match read_file(env, CURRENT).await {
        Ok(page) => page,
        Err(ManifestError::Disk(error)) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error),
    };
    match Current::decode(&page) {
        Ok(current) => Ok(Some(current)),
        Err(Some(found)) => Err(newer(CURRENT, found)),
        Err(None) => Err(corrupt(CURRENT, 0, "it names no generation")),
    }
}

/// All manifest files.
pub(super) async fn list_files<E: Env>(env: &E) -> Result<Vec<FileKey>, ManifestError> {
    let entries = env.disk().list(DIR).await?;
    Ok(entries.iter().filter_map(|entry| FileKey::parse(&entry.name)).collect())
}

/// Reads the current generation. `None`: the data directory is new. Changes nothing on disk.
pub async fn load<E: Env>(env: &E) -> Result<Option<State>, ManifestError> {
    match read_current(env).await? {
        Some(current) => load_generation(env, current).await,
        None => Ok(None),
    }
}

/// The generations of which there are files, the newest first, each as `CURRENT` would name it if none of its files
/// is missing.
pub async fn generations<E: Env>(env: &E) -> Result<Vec<Current>, ManifestError> {
    let mut shards: BTreeMap<u64, u32> = BTreeMap::new();
    for key in list_files(env).await? {
        let known = shards.entry(key.generation).or_default();
        *known = (*known).max(key.shard.saturating_add(1));
    }
    Ok(shards.into_iter().rev().map(|(generation, shards)| Current { generation, shards }).collect())
}

/// Reads a generation, whether it is the current one or not.
pub async fn load_generation<E: Env>(env: &E, current: Current) -> Result<Option<State>, ManifestError> {
    let generation = current.generation;
    if current.shards == 0 {
        return Err(corrupt(CURRENT, 12, "a generation of no shards"));
    }
    let files = match list_files(env).await {
        Err(ManifestError::Disk(error)) if error.is_not_found() => Vec::new(),
        files => files?,
    };
    let mut newest: BTreeMap<u32, FileKey> = BTreeMap::new();
    for key in files.into_iter().filter(|key| key.generation == generation) {
        let part = newest.entry(key.shard).or_insert(key);
        part.part = part.part.max(key.part);
    }
    let mut merged: Option<State> = None;
    for shard in 0..current.shards {
        let key = *newest
            .get(&shard)
            .ok_or_else(|| ManifestError::Missing { path: FileKey { generation, shard, part: 0 }.path() })?;
        let state = load_shard(env, key, current.shards).await?;
        match &mut merged {
            None => merged = Some(state),
            Some(merged) => {
                merge(merged, state).map_err(|what| ManifestError::Inconsistent { generation, what })?;
            }
        }
    }
    if let Some(merged) = &merged {
        merged.check().map_err(|what| ManifestError::Inconsistent { generation, what })?;
    }
    Ok(merged)
}

async fn load_shard<E: Env>(env: &E, key: FileKey, shards: u32) -> Result<State, ManifestError> {
    let path = key.path();
    let contents = parse(&path, key, &read_file(env, &path).await?)?;
    if contents.is_torn {
        tracing::warn!(file = path, offset = contents.end, "cut a torn edit: it was never acknowledged");
    }
    state_of(&path, key, shards, &contents)
}

/// The state of a store of which each shard's part is given. `Err`: they do not fit together.
pub fn merge_shards(states: Vec<State>) -> Result<State, String> {
    let mut states = states.into_iter();
    let mut merged = states.next().ok_or("a store of no shards")?;
    for state in states {
        merge(&mut merged, state)?;
    }
    merged.check()?;
    Ok(merged)
}

fn merge(into: &mut State, other: State) -> Result<(), String> {
    let known = Store { next_log: other.store.next_log, ..into.store };
    if known != other.store {
        return Err("they belong to different stores".to_owned());
    }
    into.store.next_log = into.store.next_log.max(other.store.next_log);
    for (log, meta) in other.logs {
        let known = into.logs.entry(log).or_insert(meta);
        if known.end.is_some() && meta.end.is_some() && known.end != meta.end {
            return Err(format!("log {log} has two ends"));
        }
        known.end = known.end.or(meta.end);
    }
    for (id, tablet) in other.tablets {
        match into.tablets.get(&id).map(|known| known.epoch) {
            Some(epoch) if epoch == tablet.epoch => return Err(format!("tablet {id} has two owners")),
            Some(epoch) if epoch > tablet.epoch => {}
            _ => {
                into.tablets.insert(id, tablet);
            }
        }
    }
    into.pins.extend(other.pins);
    Ok(())
}
