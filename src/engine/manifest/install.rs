//! Writing a whole generation, and switching to it.
//!
//! Order, and what a crash in between leaves: files of the new generation written and synced, their names
//! synced (the old generation is live; the files are leftovers that the next attempt removes), `CURRENT`
//! renamed and synced (from here on the new one is live), old files removed (leftovers again).

use super::ManifestError;
use super::edit::Edit;
use super::format::{
    BLOCK_HEADER_BYTES, CURRENT, Current, DIR, FileKey, PAYLOAD_BYTES_MAX, block_len, seal_block,
};
use super::log::RESERVE_BYTES;
use super::read::{TRANSFER_BYTES, list_files, read_current};
use super::state::State;
use crate::base::{Bug, PAGE_SIZE, planted};
use crate::disk::{Disk, DiskError, File, OpenMode, OpenOptions};
use crate::env::Env;

/// Ending of a name under which nothing counts yet.
pub(in crate::engine) const TEMPORARY: &str = ".tmp";

/// Writes `state` as a new generation, which is live when this returns, and removes older ones and what
/// interrupted attempts left behind. Creates the directories of a new store. Nothing else may write the
/// manifest meanwhile. After an error the generation before is still live, or the new one is; [`load`]
/// tells.
///
/// [`load`]: super::load
///
/// # Panics
/// If the state contradicts itself, or its generation is not later than the live one: its files would be
/// overwritten.
pub async fn install<E: Env>(env: &E, state: &State) -> Result<(), ManifestError> {
    if let Err(what) = state.check() {
        panic!("a generation must fit together: {what}");
    }
    let disk = env.disk();
    if let Some(live) = read_current(env).await? {
        assert!(state.generation > live.generation, "generation {} is live", live.generation);
    }
    for dir in [DIR, "wal", "sst"] {
        disk.create_dir(dir).await?;
    }
    disk.sync_dir("").await?;
    remove_files(env, |key| key.generation >= state.generation).await?;
    for shard in 0..state.shards {
        let key = FileKey { generation: state.generation, shard, part: 0 };
        write_snapshot(env, &key.path(), key, &state.of_shard(shard)).await?;
    }
    disk.sync_dir(DIR).await?;
    write_current(env, Current { generation: state.generation, shards: state.shards }).await?;
    remove_files(env, |key| key.generation < state.generation).await?;
    disk.sync_dir(DIR).await?;
    Ok(())
}

/// Removes temporary files, and those that `is_stale`.
async fn remove_files<E: Env>(env: &E, is_stale: impl Fn(FileKey) -> bool) -> Result<(), ManifestError> {
    for entry in env.disk().list(DIR).await? {
        if entry.name.ends_with(TEMPORARY) {
            env.disk().remove(&format!("{DIR}/{}", entry.name)).await?;
        }
    }
    for key in list_files(env).await?.into_iter().filter(|key| is_stale(*key)) {
        env.disk().remove(&key.path()).await?;
    }
    Ok(())
}

async fn write_current<E: Env>(env: &E, current: Current) -> Result<(), ManifestError> {
    let temporary = format!("{CURRENT}{TEMPORARY}");
    let disk = env.disk();
    remove_if_there(env, &temporary).await?;
    let mut page = disk.alloc(PAGE_SIZE);
    current.encode(&mut page);
    let file = disk.open(&temporary, OpenOptions { mode: OpenMode::CreateNew, dsync: false }).await?;
    let written = async {
        file.write_at(0, page).await?;
        file.sync().await
    };
    let result = written.await;
    file.close().await?;
    result?;
    disk.rename(&temporary, CURRENT).await?;
    if !planted(Bug::CurrentForgotten) {
        disk.sync_dir("").await?;
    }
    Ok(())
}

pub(super) async fn remove_if_there<E: Env>(env: &E, path: &str) -> Result<(), DiskError> {
    match env.disk().remove(path).await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// A block that holds `edit`, in whole pages, and its header's checksum.
pub(super) fn encode_block(
    key: FileKey,
    seq: u32,
    prev_crc: u32,
    edit: &Edit,
) -> Result<(Vec<u8>, u32), ManifestError> {
    let payload = edit.encode();
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(ManifestError::TooLarge { path: key.path(), bytes: payload.len() });
    }
    let mut block = vec![0; block_len(payload.len())];
    block[BLOCK_HEADER_BYTES..BLOCK_HEADER_BYTES + payload.len()].copy_from_slice(&payload);
    let crc = seal_block(key, seq, prev_crc, payload.len(), &mut block);
    Ok((block, crc))
}

/// Where the edits of a file that begins with a snapshot go.
pub(super) struct SnapshotEnd {
    pub end: u64,
    pub crc: u32,
}

/// Writes a new file: a snapshot, and zeros for the edits to come. Synced, but not its name.
pub(super) async fn write_snapshot<E: Env>(
    env: &E,
    path: &str,
    key: FileKey,
    state: &State,
) -> Result<SnapshotEnd, ManifestError> {
    let (mut bytes, crc) = encode_block(key, 1, 0, &Edit { changes: state.snapshot() })?;
    let end = bytes.len() as u64;
    bytes.resize(bytes.len() + RESERVE_BYTES as usize, 0);
    let file = env.disk().open(path, OpenOptions { mode: OpenMode::CreateNew, dsync: false }).await?;
    let written = async {
        for (number, part) in bytes.chunks(TRANSFER_BYTES).enumerate() {
            let mut buffer = env.disk().alloc(part.len());
            buffer.copy_from_slice(part);
            file.write_at((number * TRANSFER_BYTES) as u64, buffer).await?;
        }
        file.sync().await
    };
    let result = written.await;
    file.close().await?;
    result?;
    Ok(SnapshotEnd { end, crc })
}
