//! Reads what can be read of a table that may be damaged, in order, and says where something is lost.
//!
//! Nothing is searched for: a checksum tells of a block that it belongs where it stands, but a value that a client
//! made may hold what passes for one in its middle. So a block is taken only from where a block must begin: at the
//! start of the file, behind a block or partition that is whole, or where a whole partition says that one stands.
//! What lies between a damaged block and the next such place is lost. One block, as long as the index is whole; with
//! nothing else damaged, the index is not needed at all.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::block::{self, Block};
use super::format::check_part;
use super::partition::{self, Partition};
use super::reader::{check_footer, check_top};
use super::{BlockHandle, TableError, TableMeta};
use crate::base::{Entry, FileId, Lsn, PAGE_SIZE, TableName};
use crate::disk::{Disk, File, OpenMode, OpenOptions};
use crate::env::Env;

/// Bytes of a table of which nothing could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostBytes {
    /// Where they begin.
    pub offset: u64,
    /// Where they end.
    pub end: u64,
    /// No key before this one was lost; empty: none is known.
    pub from: Box<[u8]>,
    /// No key behind this one was lost; empty: none is known.
    pub to: Box<[u8]>,
}

/// Entries of a table in order, as far as they can be read.
pub struct SalvageIter<E: Env> {
    file: Rc<<E::Disk as Disk>::File>,
    id: FileId,
    /// Facts of the table, if footer and top of the index are whole.
    meta: Option<TableMeta>,
    /// What is wrong with footer and index, in words.
    damage: Vec<String>,
    /// Where blocks and partitions begin, as far as the index says; a few bytes a block.
    places: BTreeSet<u64>,
    /// Partitions that are damaged: where each begins and ends. No entry is in them.
    partitions: BTreeMap<u64, u64>,
    at: u64,
    /// Where blocks and partitions end, and whether that is known.
    end: u64,
    is_exact: bool,
    entries: u64,
    lost: Vec<LostBytes>,
    block: Option<Block>,
    record: usize,
    last: Option<(Box<[u8]>, Lsn)>,
}

impl<E: Env> SalvageIter<E> {
    /// Stands on the first entry that can be read. `Err`: the file can't be read at all, or another version wrote it.
    pub async fn open(env: &E, name: TableName) -> Result<SalvageIter<E>, TableError> {
        let options = OpenOptions { mode: OpenMode::Read, dsync: false };
        let file = Rc::new(env.disk().open(&name.path(), options).await?);
        let bytes = file.len() / PAGE_SIZE as u64 * PAGE_SIZE as u64;
        let mut iter = SalvageIter {
            file,
            id: name.file,
            meta: None,
            damage: Vec::new(),
            places: BTreeSet::new(),
            partitions: BTreeMap::new(),
            at: 0,
            end: bytes.saturating_sub(PAGE_SIZE as u64),
            is_exact: false,
            entries: 0,
            lost: Vec::new(),
            block: None,
            record: 0,
            last: None,
        };
        iter.read_index(&name.path(), bytes).await?;
        iter.load().await?;
        Ok(iter)
    }

    /// Facts of the table, if footer and top of the index are whole.
    pub fn meta(&self) -> Option<&TableMeta> {
        self.meta.as_ref()
    }

    /// What is wrong with footer and index, in words. Nothing is lost by that alone.
    pub fn damage(&self) -> &[String] {
        &self.damage
    }

    /// What was lost up to here.
    pub fn lost(&self) -> &[LostBytes] {
        &self.lost
    }

    /// Entries of the blocks that were read, with the one where it stands.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// The entry it stands on; `None` at the end.
    pub fn current(&self) -> Option<(&[u8], Entry<'_>)> {
        self.block.as_ref().map(|block| block.entry(self.record))
    }

    /// Moves to the next entry.
    pub async fn advance(&mut self) -> Result<(), TableError> {
        let Some(block) = &self.block else { return Ok(()) };
        self.record += 1;
        if self.record == block.len() {
            self.load().await?;
        }
        Ok(())
    }

    async fn read_index(&mut self, path: &str, bytes: u64) -> Result<(), TableError> {
        if bytes < PAGE_SIZE as u64 {
            self.damage.push(format!("{path}: {bytes} bytes are no table"));
            return Ok(());
        }
        let page = self.read(bytes - PAGE_SIZE as u64, PAGE_SIZE).await?;
        let footer = match check_footer(path, &page, bytes) {
            Ok(footer) if footer.file.get() == self.id.0 => footer,
            Ok(_) => return Err(foreign(path, bytes)),
            Err(error @ TableError::OtherVersion { .. }) => return Err(error),
            Err(error) => {
                self.damage.push(error.to_string());
                return Ok(());
            }
        };
        (self.end, self.is_exact) = (footer.top_offset.get(), true);
        let top = self.read(self.end, footer.top_bytes.get() as usize).await?;
        let parts = match check_top(path, &footer, &top) {
            Ok(parts) => parts,
            Err(error) => {
                self.damage.push(error.to_string());
                return Ok(());
            }
        };
        for number in 0..parts.top.len() {
            let handle = parts.top.handle(number);
            self.places.insert(handle.offset);
            self.places.insert(handle.offset + handle.len as u64);
            let stored = self.read(handle.offset, handle.len).await?;
            match Partition::parse(self.id, handle.offset, &stored) {
                Ok(partition) => {
                    self.places.extend((0..partition.len()).map(|block| partition.handle(block).offset));
                }
                Err((expected, found)) => {
                    let BlockHandle { offset, len } = handle;
                    self.damage.push(format!(
                        "{path}: partition at byte {offset}: expected {expected}, found {found}"
                    ));
                    self.partitions.insert(offset, offset + len as u64);
                }
            }
        }
        self.meta = Some(parts.meta);
        Ok(())
    }

    async fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, TableError> {
        Ok(self.file.read_at(offset, len).await?.to_vec())
    }

    /// Takes up the next block that is whole, passing over what is not.
    async fn load(&mut self) -> Result<(), TableError> {
        if let Some(block) = self.block.take() {
            let (key, entry) = block.entry(block.len() - 1);
            self.last = Some((key.into(), entry.lsn));
        }
        self.record = 0;
        let found_before = self.lost.len();
        while self.at < self.end {
            if let Some(end) = self.partitions.get(&self.at) {
                self.at = *end;
                continue;
            }
            let (block, len) = self.read_part().await?;
            self.at += len;
            if let Some(block) = block {
                self.lost[found_before..].iter_mut().for_each(|lost| lost.to = block.entry(0).0.into());
                self.entries += block.len() as u64;
                self.block = Some(block);
                return Ok(());
            }
            if len > 0 {
                continue;
            }
            if !self.is_exact && self.is_top().await? {
                self.is_exact = true;
                self.end = self.at;
                break;
            }
            let next = self.places.range(self.at + 1..).next().map_or(self.end, |next| *next).min(self.end);
            self.lose(next);
        }
        if !self.is_exact {
            // Neither footer nor top of the index say that the file is all there.
            self.is_exact = true;
            self.lose(self.file.len().max(self.at));
            self.end = self.at;
        }
        Ok(())
    }

    /// Passes over what can't be read.
    fn lose(&mut self, end: u64) {
        let from = self.last.as_ref().map_or_else(Box::default, |(key, _)| key.clone());
        self.lost.push(LostBytes { offset: self.at, end, from, to: Box::default() });
        self.at = end;
    }

    /// What stands here: a block and its length, or none and the length of a partition, or none and 0.
    async fn read_part(&self) -> Result<(Option<Block>, u64), TableError> {
        let first = self.read(self.at, PAGE_SIZE).await?;
        // Lengths are guesses until a checksum has confirmed them.
        let rest = (self.end - self.at) as usize;
        for len in [block::guess_len(&first, rest), partition::guess_len(&first, rest)].into_iter().flatten()
        {
            let stored = self.read(self.at, len).await?;
            match Block::parse(self.id, self.at, &stored) {
                Ok(block) if self.is_next(&block) => return Ok((Some(block), len as u64)),
                Ok(_) => {}
                Err(_) if Partition::parse(self.id, self.at, &stored).is_ok() => {
                    return Ok((None, len as u64));
                }
                Err(_) => {}
            }
        }
        Ok((None, 0))
    }

    /// Whether the entries of a block ascend, and follow on what was read.
    fn is_next(&self, block: &Block) -> bool {
        let last = self.last.as_ref().map(|(key, lsn)| (&key[..], *lsn));
        block.follows(last, Lsn::ZERO..=Lsn(u64::MAX))
    }

    /// Whether the top of the index begins here: then no block is lost.
    async fn is_top(&self) -> Result<bool, TableError> {
        let part = self.read(self.at, (self.end - self.at) as usize).await?;
        Ok(check_part(self.id, self.at, &part).is_ok())
    }
}

fn foreign(path: &str, bytes: u64) -> TableError {
    TableError::Corrupt {
        path: path.to_owned(),
        part: "footer",
        offset: bytes - PAGE_SIZE as u64,
        expected: "the file of its name".to_owned(),
        found: "another".to_owned(),
    }
}
