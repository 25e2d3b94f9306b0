//! An open table.

use std::rc::Rc;

use zerocopy::FromBytes;

use super::block::Block;
use super::filter::Filter;
use super::format::{Footer, MAGIC, VERSION, check_part};
use super::index::{BlockHandle, Index};
use super::{TableError, TableMeta};
use crate::base::{FileId, Lsn, PAGE_SIZE, TabletId, crc32c, page_align};
use crate::disk::{Disk, File, OpenMode, OpenOptions};
use crate::env::Env;
use crate::slot::SlotRange;

/// An immutable table, its index and filter in memory.
pub struct Table<E: Env> {
    meta: TableMeta,
    disk_file: <E::Disk as Disk>::File,
    index: Index,
    filter: Filter,
}

/// What the parts of a file say, verified.
pub(super) struct Parts {
    pub meta: TableMeta,
    pub index: Index,
    pub filter: Filter,
}

fn corrupt(path: &str, part: &'static str, offset: u64, expected: String, found: String) -> TableError {
    TableError::Corrupt { path: path.to_owned(), part, offset, expected, found }
}

/// Checks a footer page; `bytes` is the size of the file.
pub(super) fn check_footer(path: &str, page: &[u8], bytes: u64) -> Result<Footer, TableError> {
    let offset = bytes.saturating_sub(PAGE_SIZE as u64);
    let bad = |expected: String, found: String| corrupt(path, "footer", offset, expected, found);
    let footer = Footer::read_from_bytes(page).map_err(|_| bad("a page".into(), "less".into()))?;
    if footer.magic != MAGIC {
        return Err(bad("a table's magic".into(), "none".into()));
    }
    let computed = crc32c(&page[..PAGE_SIZE - 4]);
    if footer.crc.get() != computed {
        return Err(bad(format!("checksum {:08x}", footer.crc.get()), format!("{computed:08x}")));
    }
    if footer.version.get() != VERSION {
        return Err(TableError::Newer { path: path.to_owned(), version: footer.version.get() });
    }
    let index_end = footer.index_offset.get().checked_add(footer.index_bytes.get());
    let filter_end = footer.filter_offset.get().checked_add(footer.filter_bytes.get());
    let is_sound = footer.index_bytes.get() >= PAGE_SIZE as u64
        && index_end == Some(footer.filter_offset.get())
        && filter_end.is_some_and(|end| end <= offset);
    if !is_sound {
        return Err(bad("parts within the file".into(), "others".into()));
    }
    Ok(footer)
}

/// Verifies index and filter against the footer.
pub(super) fn check_parts(
    path: &str,
    footer: &Footer,
    index: &[u8],
    filter: &[u8],
    bytes: u64,
) -> Result<Parts, TableError> {
    let file = FileId(footer.file.get());
    let offset = footer.index_offset.get();
    let (stored, computed) = check_part(file, offset, index);
    if stored != computed {
        let (expected, found) = (format!("checksum {stored:08x}"), format!("{computed:08x}"));
        return Err(corrupt(path, "index", offset, expected, found));
    }
    let (smallest, largest, index) = Index::decode(index)
        .ok_or_else(|| corrupt(path, "index", offset, "whole entries".into(), "others".into()))?;
    let offset = footer.filter_offset.get();
    let computed = crc32c(filter);
    if footer.filter_crc.get() != computed {
        let (expected, found) =
            (format!("checksum {:08x}", footer.filter_crc.get()), format!("{computed:08x}"));
        return Err(corrupt(path, "filter", offset, expected, found));
    }
    let filter = Filter::from_bytes(filter)
        .ok_or_else(|| corrupt(path, "filter", offset, "whole lines".into(), "others".into()))?;
    let slots = SlotRange::new(footer.first_slot.get(), footer.last_slot.get())
        .ok_or_else(|| corrupt(path, "footer", bytes, "a slot range".into(), "none".into()))?;
    let meta = TableMeta {
        file,
        tablet: TabletId(footer.tablet.get()),
        slots,
        bytes,
        entries: footer.entries.get(),
        tombstones: footer.tombstones.get(),
        expiring: footer.expiring.get(),
        min_lsn: Lsn(footer.min_lsn.get()),
        max_lsn: Lsn(footer.max_lsn.get()),
        smallest,
        largest,
    };
    Ok(Parts { meta, index, filter })
}

impl<E: Env> Table<E> {
    /// Opens the table of `file`, which must be one of `tablet`.
    pub async fn open(env: &E, file: FileId, tablet: TabletId) -> Result<Table<E>, TableError> {
        let path = file.table_path();
        let options = OpenOptions { mode: OpenMode::Read, dsync: false };
        let disk_file = env.disk().open(&path, options).await?;
        match Self::read_parts(&disk_file, &path, file, tablet).await {
            Ok(Parts { meta, index, filter }) => Ok(Table { meta, disk_file, index, filter }),
            Err(error) => {
                let _ = disk_file.close().await; // the first error is the one to report
                Err(error)
            }
        }
    }

    async fn read_parts(
        disk_file: &<E::Disk as Disk>::File,
        path: &str,
        file: FileId,
        tablet: TabletId,
    ) -> Result<Parts, TableError> {
        let bytes = disk_file.len();
        if bytes < 3 * PAGE_SIZE as u64 || !bytes.is_multiple_of(PAGE_SIZE as u64) {
            return Err(corrupt(path, "file", 0, "three pages or more".into(), format!("{bytes} bytes")));
        }
        let page = disk_file.read_at(bytes - PAGE_SIZE as u64, PAGE_SIZE).await?;
        let footer = check_footer(path, &page, bytes)?;
        if footer.file.get() != file.0 || footer.tablet.get() != tablet.0 {
            let found = format!("file {} of tablet {}", FileId(footer.file.get()), footer.tablet.get());
            return Err(corrupt(path, "footer", bytes, format!("file {file} of tablet {tablet}"), found));
        }
        let part = |bytes: u64| page_align(bytes as usize);
        let index = disk_file.read_at(footer.index_offset.get(), part(footer.index_bytes.get())).await?;
        let filter = disk_file.read_at(footer.filter_offset.get(), part(footer.filter_bytes.get())).await?;
        check_parts(path, &footer, &index, &filter[..footer.filter_bytes.get() as usize], bytes)
    }

    /// Its facts.
    pub fn meta(&self) -> &TableMeta {
        &self.meta
    }

    /// Its file.
    pub fn file(&self) -> FileId {
        self.meta.file
    }

    /// Bytes of memory it holds while open.
    pub fn memory_bytes(&self) -> usize {
        self.index.memory_bytes() + self.filter.bytes().len()
    }

    /// Whether a key with this hash may be in here; `false` is certain.
    #[inline]
    pub fn may_contain(&self, hash: u64) -> bool {
        self.filter.may_contain(hash)
    }

    /// The only block that may hold `key`.
    pub fn locate(&self, key: &[u8]) -> Option<BlockHandle> {
        if key < &self.meta.smallest[..] {
            return None;
        }
        self.index.find(key).map(|block| self.index.handle(block))
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.index.len()
    }

    /// Where the `block`-th block stands.
    pub fn handle(&self, block: usize) -> BlockHandle {
        self.index.handle(block)
    }

    /// The number of the block in which a walk from `key` on starts.
    pub fn find_block(&self, key: &[u8]) -> Option<usize> {
        self.index.find(key)
    }

    /// Reads and verifies a block, past the cache.
    pub async fn read_block(&self, handle: BlockHandle) -> Result<Rc<Block>, TableError> {
        let bytes = self.disk_file.read_at(handle.offset, handle.len).await?;
        self.parse(handle.offset, bytes.to_vec().into_boxed_slice()).map(Rc::new)
    }

    /// Reads consecutive bytes of blocks, unverified: for walks that read ahead.
    pub(super) async fn read_bytes(&self, offset: u64, len: usize) -> Result<Vec<u8>, TableError> {
        Ok(self.disk_file.read_at(offset, len).await?.to_vec())
    }

    pub(super) fn parse(&self, offset: u64, bytes: Box<[u8]>) -> Result<Block, TableError> {
        Block::parse(self.meta.file, offset, bytes).map_err(|(expected, found)| {
            corrupt(&self.meta.file.table_path(), "block", offset, expected, found)
        })
    }

    /// Closes the file.
    pub async fn close(self) -> Result<(), TableError> {
        Ok(self.disk_file.close().await?)
    }
}
