//! Manifest files: reading a generation, installing the next, appending edits.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use super::ManifestError;
use super::edit::Edit;
use super::format::{
    BLOCK_HEADER_BYTES, CURRENT, Current, DIR, FileKey, Parsed, block_len, parse_block, seal_block,
};
use super::state::State;
use crate::base::{PAGE_SIZE, page_align};
use crate::disk::{Disk, File, OpenMode, OpenOptions};
use crate::env::{Env, Notify};

/// Space held ready behind the last edit, grown in steps of this.
const RESERVE_BYTES: u64 = 64 << 10;
/// A file is rewritten as a snapshot when it is larger than this and several times its snapshot.
const ROTATE_BYTES: u64 = 1 << 20;

/// What was read from one file.
struct Contents {
    edits: Vec<(u64, Edit)>,
    /// Where the next block goes.
    end: u64,
    next_seq: u32,
    last_crc: u32,
    /// Bytes behind the end that are no block and not blank.
    torn: bool,
}

fn parse(path: &str, key: FileKey, bytes: &[u8]) -> Result<Contents, ManifestError> {
    let corrupt = |offset: usize, what: &str| ManifestError::Corrupt {
        path: path.to_owned(),
        offset: offset as u64,
        what: what.to_owned(),
    };
    let belongs = |header: &super::format::BlockHeader| {
        header.generation.get() == key.generation
            && header.shard.get() == key.shard
            && header.part.get() == key.part
    };
    let mut contents = Contents { edits: Vec::new(), end: 0, next_seq: 1, last_crc: 0, torn: false };
    let mut at = 0;
    while at < bytes.len() {
        match parse_block(&bytes[at..]) {
            Parsed::Newer(found) => return Err(ManifestError::Newer { path: path.to_owned(), found }),
            Parsed::Block(header, payload)
                if belongs(&header)
                    && header.seq.get() == contents.next_seq
                    && header.prev_crc.get() == contents.last_crc =>
            {
                let edit = Edit::decode(payload).map_err(|what| corrupt(at, &what))?;
                contents.edits.push((at as u64, edit));
                contents.next_seq += 1;
                contents.last_crc = header.crc.get();
                at += block_len(payload.len());
                contents.end = at as u64;
            }
            _ => break,
        }
    }
    let end = contents.end as usize;
    for later in (end..bytes.len()).step_by(PAGE_SIZE).skip(1) {
        if let Parsed::Block(header, _) = parse_block(&bytes[later..])
            && belongs(&header)
            && header.seq.get() > contents.next_seq
        {
            return Err(corrupt(
                end,
                &format!("edit {} is lost, edit {} follows", contents.next_seq, header.seq),
            ));
        }
    }
    contents.torn = bytes[end..].iter().take(PAGE_SIZE).any(|byte| *byte != 0);
    if contents.edits.is_empty() {
        return Err(corrupt(0, "no snapshot stands at its start"));
    }
    Ok(contents)
}

async fn read_file<E: Env>(env: &E, path: &str) -> Result<Vec<u8>, ManifestError> {
    let file = env.disk().open(path, OpenOptions { mode: OpenMode::Read, dsync: false }).await?;
    let len = (file.len() as usize) / PAGE_SIZE * PAGE_SIZE;
    let bytes = if len == 0 { Ok(Vec::new()) } else { file.read_at(0, len).await.map(|b| b.to_vec()) };
    file.close().await?;
    Ok(bytes?)
}

/// The newest part of each shard's file, by generation.
async fn list_files<E: Env>(env: &E) -> Result<Vec<FileKey>, ManifestError> {
    let entries = env.disk().list(DIR).await?;
    Ok(entries.iter().filter_map(|entry| FileKey::parse(&entry.name)).collect())
}

fn state_of(path: &str, key: FileKey, shards: u32, contents: &Contents) -> Result<State, ManifestError> {
    let mut state = State {
        store: super::state::Store { cluster: 0, node: 0, hash_seed: 0, feature_level: 0, next_log: 0 },
        generation: key.generation,
        shards,
        logs: BTreeMap::new(),
        tablets: BTreeMap::new(),
    };
    for (offset, edit) in &contents.edits {
        for change in &edit.changes {
            state.apply(change).map_err(|what| ManifestError::Corrupt {
                path: path.to_owned(),
                offset: *offset,
                what,
            })?;
        }
    }
    Ok(state)
}

/// Reads the current generation. `None`: the data directory is new.
pub async fn load<E: Env>(env: &E) -> Result<Option<State>, ManifestError> {
    let page = match read_file(env, CURRENT).await {
        Ok(page) => page,
        Err(ManifestError::Disk(error)) if error.is_not_found() => return Ok(None),
        Err(error) => return Err(error),
    };
    let current = Current::decode(&page).map_err(|version| match version {
        Some(found) => ManifestError::Newer { path: CURRENT.to_owned(), found },
        None => ManifestError::Corrupt {
            path: CURRENT.to_owned(),
            offset: 0,
            what: "it names no generation".to_owned(),
        },
    })?;
    let files = list_files(env).await?;
    let mut merged: Option<State> = None;
    for shard in 0..current.shards {
        let first = FileKey { generation: current.generation, shard, part: 0 };
        let newest = files
            .iter()
            .filter(|key| key.generation == current.generation && key.shard == shard)
            .max_by_key(|key| key.part);
        let key = *newest.ok_or_else(|| ManifestError::Missing { path: first.path() })?;
        let path = key.path();
        let contents = parse(&path, key, &read_file(env, &path).await?)?;
        if contents.torn {
            tracing::warn!(file = path, offset = contents.end, "cut a torn edit: it was never acknowledged");
        }
        let state = state_of(&path, key, current.shards, &contents)?;
        match &mut merged {
            None => merged = Some(state),
            Some(merged) => merge(merged, state),
        }
    }
    Ok(merged)
}

fn merge(into: &mut State, other: State) {
    into.store.next_log = into.store.next_log.max(other.store.next_log);
    for (log, meta) in other.logs {
        into.logs.entry(log).or_insert(meta);
    }
    for (id, tablet) in other.tablets {
        match into.tablets.get(&id) {
            Some(known) if known.epoch >= tablet.epoch => {}
            _ => {
                into.tablets.insert(id, tablet);
            }
        }
    }
}

/// Writes `state` as a new generation, which is live when this returns, and removes older ones. Creates
/// the directories of a new store. Nothing else may write the manifest meanwhile.
pub async fn install<E: Env>(env: &E, state: &State) -> Result<(), ManifestError> {
    let disk = env.disk();
    for dir in [DIR, "wal", "sst"] {
        disk.create_dir(dir).await?;
    }
    disk.sync_dir("").await?;
    // What an interrupted attempt left behind.
    for key in list_files(env).await?.into_iter().filter(|key| key.generation >= state.generation) {
        disk.remove(&key.path()).await?;
    }
    for shard in 0..state.shards {
        let key = FileKey { generation: state.generation, shard, part: 0 };
        write_snapshot(env, &key.path(), key, &state.of_shard(shard)).await?;
    }
    disk.sync_dir(DIR).await?;
    write_current(env, Current { generation: state.generation, shards: state.shards }).await?;
    for key in list_files(env).await?.into_iter().filter(|key| key.generation < state.generation) {
        disk.remove(&key.path()).await?;
    }
    disk.sync_dir(DIR).await?;
    Ok(())
}

async fn write_current<E: Env>(env: &E, current: Current) -> Result<(), ManifestError> {
    let temporary = format!("{CURRENT}.tmp");
    let disk = env.disk();
    match disk.remove(&temporary).await {
        Err(error) if !error.is_not_found() => return Err(error.into()),
        _ => {}
    }
    let file = disk.open(&temporary, OpenOptions { mode: OpenMode::CreateNew, dsync: false }).await?;
    let mut page = disk.alloc(PAGE_SIZE);
    current.encode(&mut page);
    file.write_at(0, page).await?;
    file.sync().await?;
    file.close().await?;
    disk.rename(&temporary, CURRENT).await?;
    disk.sync_dir("").await?;
    Ok(())
}

async fn write_snapshot<E: Env>(
    env: &E,
    path: &str,
    key: FileKey,
    state: &State,
) -> Result<(), ManifestError> {
    let payload = Edit { changes: state.snapshot() }.encode();
    let len = block_len(payload.len());
    let mut buffer = env.disk().alloc(page_align(len + RESERVE_BYTES as usize));
    buffer.fill(0);
    buffer[BLOCK_HEADER_BYTES..BLOCK_HEADER_BYTES + payload.len()].copy_from_slice(&payload);
    seal_block(key, 1, 0, payload.len(), &mut buffer[..len]);
    let file = env.disk().open(path, OpenOptions { mode: OpenMode::CreateNew, dsync: false }).await?;
    file.write_at(0, buffer).await?;
    file.sync().await?;
    file.close().await?;
    Ok(())
}

/// One shard's manifest file, open for edits.
pub struct ShardManifest<E: Env> {
    env: E,
    file: RefCell<Rc<<E::Disk as Disk>::File>>,
    key: Cell<FileKey>,
    end: Cell<u64>,
    next_seq: Cell<u32>,
    last_crc: Cell<u32>,
    snapshot_bytes: Cell<u64>,
    state: RefCell<State>,
    is_busy: Cell<bool>,
    idle: Notify,
    failed: RefCell<Option<Rc<ManifestError>>>,
}

impl<E: Env> ShardManifest<E> {
    /// Opens the file of `shard` in the generation that [`install`] has just made live.
    pub async fn open(
        env: &E,
        generation: u64,
        shards: u32,
        shard: u32,
    ) -> Result<ShardManifest<E>, ManifestError> {
        let key = FileKey { generation, shard, part: 0 };
        let path = key.path();
        let contents = parse(&path, key, &read_file(env, &path).await?)?;
        let state = state_of(&path, key, shards, &contents)?;
        let file = env.disk().open(&path, OpenOptions { mode: OpenMode::Write, dsync: true }).await?;
        Ok(ShardManifest {
            env: env.clone(),
            file: RefCell::new(Rc::new(file)),
            key: Cell::new(key),
            end: Cell::new(contents.end),
            next_seq: Cell::new(contents.next_seq),
            last_crc: Cell::new(contents.last_crc),
            snapshot_bytes: Cell::new(contents.end),
            state: RefCell::new(state),
            is_busy: Cell::new(false),
            idle: Notify::new(),
            failed: RefCell::new(None),
        })
    }

    /// This shard's part of the state, with all committed edits.
    pub fn state(&self) -> std::cell::Ref<'_, State> {
        self.state.borrow()
    }

    /// Makes an edit durable, then part of the state. Commits are made one after the other. Only
    /// [`ManifestError::Full`] may be tried again.
    pub async fn commit(&self, edit: Edit) -> Result<(), ManifestError> {
        self.idle.until(|| !self.is_busy.get()).await;
        self.is_busy.set(true);
        let result = self.commit_alone(edit).await;
        self.is_busy.set(false);
        self.idle.notify();
        match result {
            Err(error) if !matches!(error, ManifestError::Full { .. } | ManifestError::Failed(_)) => {
                let cause = Rc::new(error);
                self.failed.replace(Some(cause.clone()));
                Err(ManifestError::Failed(cause))
            }
            result => result,
        }
    }

    async fn commit_alone(&self, edit: Edit) -> Result<(), ManifestError> {
        if let Some(cause) = self.failed.borrow().as_ref() {
            return Err(ManifestError::Failed(cause.clone()));
        }
        let mut after = self.state.borrow().clone();
        for change in &edit.changes {
            after.apply(change).unwrap_or_else(|what| panic!("an edit must fit the state: {what}"));
        }
        if self.end.get() > ROTATE_BYTES && self.end.get() > 4 * self.snapshot_bytes.get() {
            self.rotate().await?;
        }
        let payload = edit.encode();
        let len = block_len(payload.len());
        let file = self.file.borrow().clone();
        self.reserve(&file, len as u64).await?;
        let mut buffer = self.env.disk().alloc(len);
        buffer.fill(0);
        buffer[BLOCK_HEADER_BYTES..BLOCK_HEADER_BYTES + payload.len()].copy_from_slice(&payload);
        let crc =
            seal_block(self.key.get(), self.next_seq.get(), self.last_crc.get(), payload.len(), &mut buffer);
        file.write_at(self.end.get(), buffer).await?;
        self.end.set(self.end.get() + len as u64);
        self.next_seq.set(self.next_seq.get() + 1);
        self.last_crc.set(crc);
        self.state.replace(after);
        Ok(())
    }

    /// Extends the file if the next block would not fit what was written before.
    async fn reserve(&self, file: &<E::Disk as Disk>::File, len: u64) -> Result<(), ManifestError> {
        let end = self.end.get() + len;
        while file.len() < end {
            let mut zeros = self.env.disk().alloc(RESERVE_BYTES as usize);
            zeros.fill(0);
            match file.write_at(file.len(), zeros).await {
                Err(source) if source.is_full() => {
                    return Err(ManifestError::Full { path: self.key.get().path(), source });
                }
                result => result?,
            }
        }
        Ok(())
    }

    /// Starts the next part with a snapshot. It counts from the moment its name is durable.
    async fn rotate(&self) -> Result<(), ManifestError> {
        let old = self.key.get();
        let key = FileKey { part: old.part + 1, ..old };
        let (path, temporary) = (key.path(), format!("{}.tmp", key.path()));
        let disk = self.env.disk();
        match disk.remove(&temporary).await {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
        let state = self.state.borrow().clone();
        match write_snapshot(&self.env, &temporary, key, &state).await {
            Err(ManifestError::Disk(source)) if source.is_full() => {
                return Err(ManifestError::Full { path, source });
            }
            result => result?,
        }
        disk.rename(&temporary, &path).await?;
        disk.sync_dir(DIR).await?;
        let contents = parse(&path, key, &read_file(&self.env, &path).await?)?;
        let file = disk.open(&path, OpenOptions { mode: OpenMode::Write, dsync: true }).await?;
        let before = self.file.replace(Rc::new(file));
        self.key.set(key);
        self.end.set(contents.end);
        self.next_seq.set(contents.next_seq);
        self.last_crc.set(contents.last_crc);
        self.snapshot_bytes.set(contents.end);
        if let Ok(before) = Rc::try_unwrap(before) {
            before.close().await?;
        }
        disk.remove(&old.path()).await?;
        Ok(())
    }

    /// Closes the file.
    pub async fn close(self) -> Result<(), ManifestError> {
        match Rc::try_unwrap(self.file.into_inner()) {
            Ok(file) => Ok(file.close().await?),
            Err(_) => Ok(()), // a commit is still under way; the process is about to end
        }
    }
}

/// One edit as a tool shows it.
pub struct InspectedEdit {
    /// Where it stands in the file.
    pub offset: u64,
    /// What it changes.
    pub edit: Edit,
}

/// All that stands in a manifest file given as bytes; its name tells which it should be.
pub fn inspect_manifest(name: &str, bytes: &[u8]) -> Result<(FileKey, Vec<InspectedEdit>), String> {
    let key = FileKey::parse(name).ok_or_else(|| format!("{name} is not the name of a manifest file"))?;
    let contents = parse(name, key, bytes).map_err(|error| error.to_string())?;
    state_of(name, key, u32::MAX, &contents).map_err(|error| error.to_string())?;
    let edits = contents.edits.into_iter().map(|(offset, edit)| InspectedEdit { offset, edit }).collect();
    Ok((key, edits))
}
