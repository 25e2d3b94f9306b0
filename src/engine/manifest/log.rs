//! One shard's manifest file while it grows: commits of edits, space ahead of them, rotation.

use std::cell::{Cell, Ref, RefCell};
use std::rc::Rc;

use super::ManifestError;
use super::edit::{Change, Edit};
use super::format::{BlockHeader, CURRENT, DIR, FileKey, Parsed, block_len, parse_block};
use super::install::{TEMPORARY, encode_block, remove_if_there, write_snapshot};
use super::read::{TRANSFER_BYTES, misplaced, parse, read_current, read_file, state_of};
use super::state::State;
use crate::base::PAGE_SIZE;
use crate::disk::{Disk, File, OpenMode, OpenOptions};
use crate::env::{Env, Notify};

/// Written space is grown in steps of this. An edit of a flush takes a page or a few, and one
/// for its seal.
pub(super) const RESERVE_BYTES: u64 = 128 << 10;
/// Grown when less than this is left behind an edit, while there is still space: edits that free space
/// (the outcome of merges) must find room when the disk is full.
const RESERVE_LOW_BYTES: u64 = 64 << 10;
/// A file is rewritten as a snapshot when it is longer than this and several times its snapshot.
const ROTATE_BYTES: u64 = 1 << 20;

/// One shard's manifest file, open for edits.
pub struct ShardManifest<E: Env> {
    env: E,
    file: RefCell<Rc<<E::Disk as Disk>::File>>,
    key: Cell<FileKey>,
    /// Where the next block goes, its number, and the header checksum that it names.
    end: Cell<u64>,
    next_seq: Cell<u32>,
    last_crc: Cell<u32>,
    /// Length from which on the file is rewritten; see [`ShardManifest::rotate_above`].
    rotate_bytes: Cell<u64>,
    rotate_at: Cell<u64>,
    state: RefCell<State>,
    is_busy: Cell<bool>,
    idle: Notify,
    failed: RefCell<Option<Rc<ManifestError>>>,
}

/// The right to write. Dropped before the commit had ended, it leaves the manifest failed: nobody knows
/// what the disk has done.
struct Turn<'a, E: Env> {
    manifest: &'a ShardManifest<E>,
    has_ended: bool,
}

impl<E: Env> Drop for Turn<'_, E> {
    fn drop(&mut self) {
        if !self.has_ended {
            let path = self.manifest.key.get().path();
            self.manifest.fail(ManifestError::Abandoned { path });
        }
        self.manifest.is_busy.set(false);
        self.manifest.idle.notify();
    }
}

impl<E: Env> ShardManifest<E> {
    /// Opens the file of `shard` in the generation that [`install`](super::install) has just made live.
    pub async fn open(
        env: &E,
        generation: u64,
        shards: u32,
        shard: u32,
    ) -> Result<ShardManifest<E>, ManifestError> {
        let key = FileKey { generation, shard, part: 0 };
        let path = key.path();
        let contents = parse(&path, key, &read_file(env, &path).await?)?;
        if contents.is_torn {
            let what = "something stands behind the last edit of a new file".to_owned();
            return Err(ManifestError::Corrupt { path, offset: contents.end, what });
        }
        let state = state_of(&path, key, shards, &contents)?;
        let file = env.disk().open(&path, OpenOptions { mode: OpenMode::Write, dsync: true }).await?;
        let manifest = ShardManifest {
            env: env.clone(),
            file: RefCell::new(Rc::new(file)),
            key: Cell::new(key),
            end: Cell::new(contents.end),
            next_seq: Cell::new(contents.next_seq),
            last_crc: Cell::new(contents.last_crc),
            rotate_bytes: Cell::new(ROTATE_BYTES),
            rotate_at: Cell::new(0),
            state: RefCell::new(state),
            is_busy: Cell::new(false),
            idle: Notify::new(),
            failed: RefCell::new(None),
        };
        manifest.rotate_above(ROTATE_BYTES);
        Ok(manifest)
    }

    /// From now on rewrites the file as a snapshot once it is longer than `bytes` and four times as long
    /// as it is now.
    pub fn rotate_above(&self, bytes: u64) {
        self.rotate_bytes.set(bytes);
        self.rotate_at.set(bytes.max(4 * self.end.get()));
    }

    /// This shard's part of the state, with all committed edits.
    pub fn state(&self) -> Ref<'_, State> {
        self.state.borrow()
    }

    /// The tablets that `changes` are about, as they would be after them.
    ///
    /// # Panics
    /// If the changes do not fit the state.
    pub fn preview(&self, changes: &[Change]) -> State {
        let mut after = self.state.borrow().touched_by(changes);
        for change in changes {
            after.apply(change).unwrap_or_else(|what| panic!("an edit must fit the state: {what}"));
        }
        after
    }

    /// Why no more edits are taken, if so. Final.
    pub fn failed(&self) -> Option<Rc<ManifestError>> {
        self.failed.borrow().clone()
    }

    fn fail(&self, error: ManifestError) -> Rc<ManifestError> {
        self.failed.borrow_mut().get_or_insert_with(|| Rc::new(error)).clone()
    }

    /// Makes an edit durable, then part of the state. Commits are made one after the other: an edit must
    /// fit the state after those that were begun before it. After an error that
    /// [`is_undecided`](ManifestError::is_undecided), the next start may or may not find the edit; after
    /// any other nothing was written, and [`ManifestError::Full`] may be tried again.
    ///
    /// # Panics
    /// If the edit does not fit the state.
    pub async fn commit(&self, edit: Edit) -> Result<(), ManifestError> {
        self.idle.until(|| !self.is_busy.get()).await;
        self.is_busy.set(true);
        let mut turn = Turn { manifest: self, has_ended: false };
        let result = match self.failed() {
            Some(cause) => Err(ManifestError::Failed(cause)),
            None => self.commit_alone(&edit).await.map_err(|error| match error.is_undecided() {
                true => ManifestError::Failed(self.fail(error)),
                false => error,
            }),
        };
        turn.has_ended = true;
        result
    }

    async fn commit_alone(&self, edit: &Edit) -> Result<(), ManifestError> {
        let after = self.preview(&edit.changes);
        if self.end.get() > self.rotate_at.get() {
            self.rotate().await?;
        }
        let (block, crc) = encode_block(self.key.get(), self.next_seq.get(), self.last_crc.get(), edit)?;
        let file = self.file.borrow().clone();
        self.reserve(&file, (block.len() + PAGE_SIZE) as u64).await?;
        self.append(&file, &block, crc).await?;
        // Two writes, so that the edit is never torn where the seal is whole.
        let (seal, crc) =
            encode_block(self.key.get(), self.next_seq.get(), self.last_crc.get(), &Edit::default())?;
        assert_eq!(seal.len(), PAGE_SIZE, "the space was reserved");
        self.append(&file, &seal, crc).await?;
        self.state.borrow_mut().take_over(after, &edit.changes);
        Ok(())
    }

    async fn append(
        &self,
        file: &<E::Disk as Disk>::File,
        block: &[u8],
        crc: u32,
    ) -> Result<(), ManifestError> {
        let mut buffer = self.env.disk().alloc(block.len());
        buffer.copy_from_slice(block);
        file.write_at(self.end.get(), buffer).await?;
        self.end.set(self.end.get() + block.len() as u64);
        self.next_seq.set(self.next_seq.get() + 1);
        self.last_crc.set(crc);
        assert!(self.end.get() <= file.len(), "edits go to written space");
        Ok(())
    }

    /// Writes zeros ahead while less than the low mark would be left behind the next block. No space is
    /// an error only if that block itself does not fit.
    async fn reserve(&self, file: &<E::Disk as Disk>::File, len: u64) -> Result<(), ManifestError> {
        let end = self.end.get() + len;
        while file.len() < end + RESERVE_LOW_BYTES {
            let mut zeros = self.env.disk().alloc(RESERVE_BYTES as usize);
            zeros.fill(0);
            match file.write_at(file.len(), zeros).await {
                Err(source) if source.is_full() && file.len() < end => {
                    return Err(ManifestError::Full { path: self.key.get().path(), source });
                }
                Err(source) if source.is_full() => return Ok(()),
                result => result?,
            }
        }
        Ok(())
    }

    /// Starts the next part with a snapshot, which counts from the moment its name is durable. On a full
    /// disk, or where no more files can be open, the old part goes on, and this is tried again some edits later.
    async fn rotate(&self) -> Result<(), ManifestError> {
        let old = self.key.get();
        let key = FileKey { part: old.part + 1, ..old };
        let (path, temporary) = (key.path(), format!("{}{TEMPORARY}", key.path()));
        let disk = self.env.disk();
        let state = self.state.borrow().clone();
        let prepared = async {
            remove_if_there(&self.env, &temporary).await?;
            let snapshot = write_snapshot(&self.env, &temporary, key, &state).await?;
            // Now, since nothing that may be refused can come behind the rename.
            let file = disk.open(&temporary, OpenOptions { mode: OpenMode::Write, dsync: true }).await?;
            if let Err(error) = disk.rename(&temporary, &path).await {
                file.close().await?;
                return Err(error.into());
            }
            Ok((snapshot, file))
        };
        let (snapshot, file) = match prepared.await {
            Err(ManifestError::Disk(source)) if source.is_full() || source.is_out_of_files() => {
                tracing::warn!("{path} can't be begun, {} goes on ({source})", old.path());
                // What it holds is space that someone may need.
                remove_if_there(&self.env, &temporary).await?;
                self.rotate_at.set(self.end.get() + self.rotate_bytes.get() / 4);
                return Ok(());
            }
            result => result?,
        };
        disk.sync_dir(DIR).await?;
        let before = self.file.replace(Rc::new(file));
        self.key.set(key);
        self.end.set(snapshot.end);
        self.next_seq.set(2);
        self.last_crc.set(snapshot.crc);
        self.rotate_above(self.rotate_bytes.get());
        // The new part counts, so trouble with the old one harms nothing; the next start removes it.
        let removed = async {
            if let Ok(before) = Rc::try_unwrap(before) {
                before.close().await?;
            }
            disk.remove(&old.path()).await
        };
        if let Err(error) = removed.await {
            tracing::warn!("{} is not needed any more, but stays until the next start: {error}", old.path());
        }
        Ok(())
    }

    /// Reads `CURRENT` again, as a start would: with the first shard, which is enough.
    pub async fn check_current(&self) -> Result<(), ManifestError> {
        let key = self.key.get();
        if key.shard > 0 {
            return Ok(());
        }
        let current = read_current(&self.env).await?;
        if current.is_some_and(|current| current.generation == key.generation) {
            return Ok(());
        }
        let what = format!("it does not name generation {}, which is live", key.generation);
        Err(ManifestError::Corrupt { path: CURRENT.to_owned(), offset: 0, what })
    }

    /// Reads this shard's file again up to the last edit, block by block. `beat` is told the bytes of each, and says
    /// whether to go on. A file that is rewritten meanwhile is left at that.
    pub async fn check(&self, beat: impl AsyncFn(u64) -> bool) -> Result<(), ManifestError> {
        let key = self.key.get();
        match self.check_edits(key, self.end.get(), beat).await {
            Err(_) if self.key.get() != key => Ok(()),
            result => result,
        }
    }

    async fn check_edits(
        &self,
        key: FileKey,
        end: u64,
        beat: impl AsyncFn(u64) -> bool,
    ) -> Result<(), ManifestError> {
        let path = key.path();
        let options = OpenOptions { mode: OpenMode::Read, dsync: false };
        let file = self.env.disk().open(&path, options).await?;
        let checked = async {
            let (mut at, mut seq, mut last_crc) = (0, 1, 0);
            while at < end {
                let corrupt = |what| ManifestError::Corrupt { path: path.clone(), offset: at, what };
                let (header, len) = match read_block(&file, at, end).await? {
                    Some(read) => read,
                    None => return Err(corrupt(format!("edit {seq} is not whole, though it was committed"))),
                };
                if let Some(what) = misplaced(&header, key, seq, last_crc) {
                    return Err(corrupt(what));
                }
                (at, seq, last_crc) = (at + len, seq + 1, header.crc.get());
                if !beat(len).await {
                    break;
                }
            }
            Ok(())
        };
        let result = checked.await;
        file.close().await?;
        result
    }

    /// Closes the file. Waits for a commit that is under way.
    pub async fn close(self) -> Result<(), ManifestError> {
        self.idle.until(|| !self.is_busy.get()).await;
        match Rc::try_unwrap(self.file.into_inner()) {
            Ok(file) => Ok(file.close().await?),
            Err(_) => unreachable!("only a commit shares the file, and none is under way"),
        }
    }
}

/// Reads the block at `at` of a file in which edits end at `end`, and its length. `None`: there is none that is whole.
async fn read_block(
    file: &impl File,
    at: u64,
    end: u64,
) -> Result<Option<(BlockHeader, u64)>, ManifestError> {
    let page = file.read_at(at, PAGE_SIZE).await?;
    let (Parsed::Block(header, _) | Parsed::Damaged(header, _)) = parse_block(&page) else { return Ok(None) };
    let len = block_len(header.payload_len.get() as usize);
    if at + len as u64 > end {
        return Ok(None);
    }
    let mut block = page.to_vec();
    while block.len() < len {
        let part = (len - block.len()).min(TRANSFER_BYTES);
        block.extend_from_slice(&file.read_at(at + block.len() as u64, part).await?);
    }
    let is_whole = matches!(parse_block(&block), Parsed::Block(..));
    Ok(is_whole.then_some((header, len as u64)))
}
