//! An open table.

use std::rc::Rc;

use zerocopy::FromBytes;

use super::block::Block;
use super::filter::Filter;
use super::format::{Footer, MAGIC, VERSION, check_part, placed_crc};
use super::index::{BlockHandle, Index};
use super::{Expiries, TableError, TableMeta};
use crate::base::{FileId, Lsn, PAGE_SIZE, TableName, TabletId, crc32c};
use crate::disk::{Disk, File, OpenMode, OpenOptions};
use crate::env::Env;
use crate::slot::SlotRange;

/// An immutable table, its index and filter in memory.
pub struct Table<E: Env> {
    name: TableName,
    meta: TableMeta,
    disk_file: <E::Disk as Disk>::File,
    index: Index,
    filter: Filter,
}

/// What footer and index say, verified.
pub(super) struct Parts {
    pub meta: TableMeta,
    pub index: Index,
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
    let page = PAGE_SIZE as u64;
    let is_sound = footer.index_bytes.get() >= page
        && footer.index_offset.get().is_multiple_of(page)
        && footer.index_bytes.get().is_multiple_of(page)
        && footer.filter_bytes.get() > 0
        && index_end == Some(footer.filter_offset.get())
        && filter_end.is_some_and(|end| end.checked_next_multiple_of(page) == Some(offset));
    if !is_sound {
        return Err(bad("parts within the file".into(), "others".into()));
    }
    Ok(footer)
}

fn checksums(path: &str, part: &'static str, offset: u64, stored: u32, computed: u32) -> TableError {
    corrupt(path, part, offset, format!("checksum {stored:08x}"), format!("{computed:08x}"))
}

/// Verifies the index part. `TableMeta` comes of footer and index together.
pub(super) fn check_index(path: &str, footer: &Footer, part: &[u8], bytes: u64) -> Result<Parts, TableError> {
    let file = FileId(footer.file.get());
    let offset = footer.index_offset.get();
    let bad = |expected: &str| corrupt(path, "index", offset, expected.into(), "others".into());
    let (stored, computed) = check_part(file, offset, part);
    if stored != computed {
        return Err(checksums(path, "index", offset, stored, computed));
    }
    let (smallest, largest, index) = Index::decode(part).ok_or_else(|| bad("whole entries in order"))?;
    if index.len() == 0 || index.end() != offset {
        return Err(bad("blocks from the file's start to here"));
    }
    let slots = SlotRange::new(footer.first_slot.get(), footer.last_slot.get()).ok_or_else(|| {
        corrupt(path, "footer", bytes - PAGE_SIZE as u64, "a slot range".into(), "none".into())
    })?;
    let expiries = Expiries {
        bytes: footer.expiring_bytes.get(),
        eighths: footer.expiry_eighths.map(|eighth| eighth.get()),
    };
    if !expiries.is_sound(footer.expiring.get()) {
        let (expected, found) = ("expiry times in order".into(), "others".into());
        return Err(corrupt(path, "footer", bytes - PAGE_SIZE as u64, expected, found));
    }
    let meta = TableMeta {
        file,
        tablet: TabletId(footer.tablet.get()),
        slots,
        bytes,
        entries: footer.entries.get(),
        tombstones: footer.tombstones.get(),
        expiring: footer.expiring.get(),
        expiries,
        min_lsn: Lsn(footer.min_lsn.get()),
        max_lsn: Lsn(footer.max_lsn.get()),
        smallest,
        largest,
    };
    Ok(Parts { meta, index })
}

/// Verifies the pages of the filter.
pub(super) fn check_filter(path: &str, footer: &Footer, pages: &[u8]) -> Result<Filter, TableError> {
    let offset = footer.filter_offset.get();
    let computed = placed_crc(FileId(footer.file.get()), offset, pages);
    if footer.filter_crc.get() != computed {
        return Err(checksums(path, "filter", offset, footer.filter_crc.get(), computed));
    }
    usize::try_from(footer.filter_bytes.get())
        .ok()
        .and_then(|len| Filter::from_bytes(pages.get(..len)?))
        .ok_or_else(|| corrupt(path, "filter", offset, "whole lines".into(), "others".into()))
}

impl<E: Env> Table<E> {
    /// Opens the table with this name. The tablet that wrote it may be another one.
    pub async fn open(env: &E, name: TableName) -> Result<Table<E>, TableError> {
        let path = name.path();
        let options = OpenOptions { mode: OpenMode::Read, dsync: false };
        let disk_file = env.disk().open(&path, options).await?;
        match Self::read_parts(&disk_file, &path, name.file).await {
            Ok((Parts { meta, index }, filter)) => Ok(Table { name, meta, disk_file, index, filter }),
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
    ) -> Result<(Parts, Filter), TableError> {
        let bytes = disk_file.len();
        if bytes < 4 * PAGE_SIZE as u64 || !bytes.is_multiple_of(PAGE_SIZE as u64) {
            let expected = "whole pages, four or more".to_owned();
            return Err(corrupt(path, "file", 0, expected, format!("{bytes} bytes")));
        }
        let footer_offset = bytes - PAGE_SIZE as u64;
        let page = disk_file.read_at(footer_offset, PAGE_SIZE).await?;
        let footer = check_footer(path, &page, bytes)?;
        drop(page);
        if footer.file.get() != file.0 {
            let (expected, found) = (format!("file {file}"), format!("file {}", FileId(footer.file.get())));
            return Err(corrupt(path, "footer", footer_offset, expected, found));
        }
        // Both end within the file, which was checked, so they fit `usize` as well as the file does.
        let read = async |offset: u64, end: u64| disk_file.read_at(offset, (end - offset) as usize).await;
        let index = read(footer.index_offset.get(), footer.filter_offset.get()).await?;
        let parts = check_index(path, &footer, &index, bytes)?;
        drop(index);
        let filter = read(footer.filter_offset.get(), footer_offset).await?;
        Ok((parts, check_filter(path, &footer, &filter)?))
    }

    /// Its facts.
    pub fn meta(&self) -> &TableMeta {
        &self.meta
    }

    /// Its name.
    pub fn name(&self) -> TableName {
        self.name
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

    /// The block that holds the newest version of `key`, if there is one.
    pub fn locate(&self, key: &[u8]) -> Option<BlockHandle> {
        if key < &self.meta.smallest[..] || key > &self.meta.largest[..] {
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

    /// What separates a block from the next one.
    pub fn separator(&self, block: usize) -> &[u8] {
        self.index.separator(block)
    }

    /// Reads and verifies a block, past the cache.
    pub async fn read_block(&self, handle: BlockHandle) -> Result<Rc<Block>, TableError> {
        let bytes = self.disk_file.read_at(handle.offset, handle.len).await?;
        self.parse(handle.offset, bytes.to_vec().into_boxed_slice()).map(Rc::new)
    }

    /// Reads consecutive bytes of blocks, unverified: for walks that read ahead.
    pub async fn read_bytes(&self, offset: u64, len: usize) -> Result<Vec<u8>, TableError> {
        Ok(self.disk_file.read_at(offset, len).await?.to_vec())
    }

    pub(super) fn parse(&self, offset: u64, bytes: Box<[u8]>) -> Result<Block, TableError> {
        Block::parse(self.meta.file, offset, bytes)
            .map_err(|(expected, found)| corrupt(&self.name.path(), "block", offset, expected, found))
    }

    /// Closes the file.
    pub async fn close(self) -> Result<(), TableError> {
        Ok(self.disk_file.close().await?)
    }
}
