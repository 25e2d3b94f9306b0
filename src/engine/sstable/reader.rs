//! An open table.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::rc::Rc;

use zerocopy::FromBytes;

use super::block::Block;
use super::format::{Footer, MAGIC, PartError, VERSION, check_part};
use super::partition::Partition;
use super::pins::{Charge, IndexBudget, Pins};
use super::top::Top;
use super::{BlockHandle, Expiries, TableError, TableMeta, TableShape};
use crate::base::{Codec, FileId, Lsn, PAGE_SIZE, TableName, TabletId, crc32c};
use crate::disk::{Disk, File, OpenMode, OpenOptions};
use crate::env::{Env, Pacer};
use crate::slot::SlotRange;

/// Bytes of partitions read at once.
const READ_BYTES: usize = 256 << 10;
/// An immutable table, the top of its index in memory. Partitions are numbered from 0 in the order of keys,
/// and the blocks of each from 0 as well.
///
/// One without a readable footer or top, of which others know what it holds, has a single partition for all its
/// keys, and reading that is refused: so whoever looks for any of them is told, in the way in which damage of a
/// partition is told.
pub struct Table<E: Env> {
    name: TableName,
    meta: TableMeta,
    disk_file: <E::Disk as Disk>::File,
    top: Top,
    /// Its partitions, if they are resident, and may be of no more use there; none before they are read.
    pins: OnceCell<Rc<Pins>>,
    /// Why nothing of it can be read.
    fault: Option<TableError>,
    /// For the top.
    _charge: Charge,
}

/// What footer and top say, verified.
pub(super) struct Parts {
    pub meta: TableMeta,
    pub top: Top,
}

fn corrupt(path: &str, part: &'static str, offset: u64, (expected, found): PartError) -> TableError {
    TableError::Corrupt { path: path.to_owned(), part, offset, expected, found }
}

/// Checks a footer page; `bytes` is the size of the file.
pub(super) fn check_footer(path: &str, page: &[u8], bytes: u64) -> Result<Footer, TableError> {
    let offset = bytes.saturating_sub(PAGE_SIZE as u64);
    let bad = |expected: &str, found: &str| {
        corrupt(path, "footer", offset, (expected.to_owned(), found.to_owned()))
    };
    let footer = Footer::read_from_bytes(page).map_err(|_| bad("a page", "less"))?;
    if footer.magic != MAGIC {
        return Err(bad("a table's magic", "none"));
    }
    let computed = crc32c(&page[..PAGE_SIZE - 4]);
    if footer.crc.get() != computed {
        return Err(bad(&format!("checksum {:08x}", footer.crc.get()), &format!("{computed:08x}")));
    }
    if footer.version.get() != VERSION {
        return Err(TableError::OtherVersion { path: path.to_owned(), version: footer.version.get() });
    }
    let page = PAGE_SIZE as u64;
    let parts = [footer.top_offset, footer.top_bytes, footer.stored_bytes, footer.partition_bytes];
    let is_sound = parts.iter().all(|part| part.get() >= page && part.get().is_multiple_of(page))
        && footer.top_offset.get().checked_add(footer.top_bytes.get()) == Some(offset)
        && footer.stored_bytes.get().checked_add(footer.partition_bytes.get())
            == Some(footer.top_offset.get());
    if !is_sound {
        return Err(bad("parts that make up the file", "others"));
    }
    if footer.is_last > 1 || Codec::from_u8(footer.codec).is_none() {
        return Err(bad("a level and a codec", "none of this version"));
    }
    Ok(footer)
}

/// Verifies the top of the index. `TableMeta` comes of footer and top together.
pub(super) fn check_top(path: &str, footer: &Footer, part: &[u8]) -> Result<Parts, TableError> {
    let file = FileId(footer.file.get());
    let offset = footer.top_offset.get();
    check_part(file, offset, part).map_err(|error| corrupt(path, "index", offset, error))?;
    let bad = |expected: &str| corrupt(path, "index", offset, (expected.to_owned(), "others".to_owned()));
    let (smallest, largest, top) =
        Top::decode(part, offset).ok_or_else(|| bad("whole entries in order, before this"))?;
    let lens = (0..top.len()).map(|number| top.handle(number).len as u64);
    if top.len() as u64 != footer.partitions.get() || lens.sum::<u64>() != footer.partition_bytes.get() {
        return Err(bad("as many partitions as the footer says"));
    }
    let footer_offset = offset + footer.top_bytes.get();
    let bad = |expected: &str| {
        corrupt(path, "footer", footer_offset, (expected.to_owned(), "others or none".to_owned()))
    };
    let slots = SlotRange::new(footer.first_slot.get(), footer.last_slot.get());
    let expiries = Expiries {
        bytes: footer.expiring_bytes.get(),
        eighths: footer.expiry_eighths.map(|eighth| eighth.get()),
    };
    if !expiries.is_sound(footer.expiring.get()) {
        return Err(bad("expiry times in order"));
    }
    let meta = TableMeta {
        file,
        tablet: TabletId(footer.tablet.get()),
        slots: slots.ok_or_else(|| bad("a slot range"))?,
        bytes: footer_offset + PAGE_SIZE as u64,
        entries: footer.entries.get(),
        tombstones: footer.tombstones.get(),
        expiring: footer.expiring.get(),
        expiries,
        min_lsn: Lsn(footer.min_lsn.get()),
        max_lsn: Lsn(footer.max_lsn.get()),
        smallest,
        largest,
        shape: shape(footer).ok_or_else(|| bad("a codec"))?,
    };
    Ok(Parts { meta, top })
}

fn shape(footer: &Footer) -> Option<TableShape> {
    Some(TableShape {
        is_last: footer.is_last == 1,
        codec: Codec::from_u8(footer.codec)?,
        bits_per_key: footer.bits_per_key,
        blocks: footer.blocks.get(),
        plain_blocks: footer.plain_blocks.get(),
        raw_bytes: footer.raw_bytes.get(),
        stored_bytes: footer.stored_bytes.get(),
        partitions: footer.partitions.get(),
        partition_bytes: footer.partition_bytes.get(),
    })
}

/// Whether a table says of itself what is known of it from elsewhere. Another one of the same name does not.
fn is_known(meta: &TableMeta, known: &TableMeta) -> bool {
    let counts = |meta: &TableMeta| [meta.bytes, meta.entries, meta.tombstones, meta.expiring];
    counts(meta) == counts(known)
        && (meta.min_lsn, meta.max_lsn) == (known.min_lsn, known.max_lsn)
        && (&meta.smallest, &meta.largest) == (&known.smallest, &known.largest)
}

/// Reads and verifies partitions from `first` on: those that stand together, one at least, and about
/// [`READ_BYTES`] at most.
async fn read_run(
    disk_file: &impl File,
    name: TableName,
    top: &Top,
    first: usize,
) -> Result<Vec<Rc<Partition>>, TableError> {
    let start = top.handle(first).offset;
    let (mut count, mut len) = (1, top.handle(first).len);
    while first + count < top.len() {
        let next = top.handle(first + count);
        if next.offset != start + len as u64 || len + next.len > READ_BYTES {
            break;
        }
        (count, len) = (count + 1, len + next.len);
    }
    let bytes = disk_file.read_at(start, len).await?;
    let part = |number: usize| {
        let BlockHandle { offset, len } = top.handle(number);
        (offset, &bytes[(offset - start) as usize..][..len])
    };
    let parts: Vec<_> = (first..first + count).map(part).collect();
    let parsed = Partition::parse_run(name.file, &parts);
    let partitions = parsed.map_err(|(offset, error)| corrupt(&name.path(), "partition", offset, error))?;
    Ok(partitions.into_iter().map(Rc::new).collect())
}

impl<E: Env> Table<E> {
    /// Opens the table with this name. The tablet that wrote it may be another one. Pins its partitions if
    /// `budget` has room.
    pub async fn open(env: &E, name: TableName, budget: &Rc<IndexBudget>) -> Result<Table<E>, TableError> {
        let disk_file = Self::open_file(env, name).await?;
        let opened = async {
            let (parts, charge) = Self::read_resident(&disk_file, name, budget).await?;
            let read = Self::read_pins(&disk_file, name, &parts.meta.shape, &parts.top, budget).await;
            let pins = match read {
                Err(error @ TableError::Corrupt { .. }) => {
                    tracing::error!("{error}; reads of keys in it are refused, all else is served");
                    None
                }
                read => read?,
            };
            Ok((parts, charge, pins))
        };
        match opened.await {
            Ok((Parts { meta, top }, charge, read)) => {
                let pins = read.map_or_else(OnceCell::new, OnceCell::from);
                Ok(Table { name, meta, disk_file, top, pins, fault: None, _charge: charge })
            }
            Err(error) => {
                let _ = disk_file.close().await; // the first error is the one to report
                Err(error)
            }
        }
    }

    /// As [`Table::open`], of a table that is live, and whose facts are `known` from elsewhere. What of it can't be
    /// read is no reason to do without all else: it is open all the same, and if that is footer or top, it has a
    /// [fault](Table::fault). A file that is missing is still an error. Its partitions are left to [`Table::pin`]: of
    /// many tables they are what a start would wait for.
    pub async fn open_known(
        env: &E,
        name: TableName,
        budget: &Rc<IndexBudget>,
        known: impl FnOnce() -> TableMeta,
    ) -> Result<Table<E>, TableError> {
        let disk_file = Self::open_file(env, name).await?;
        let known = known();
        let fault = match Self::read_resident(&disk_file, name, budget).await {
            Ok((Parts { meta, top }, charge)) if is_known(&meta, &known) => {
                let pins = OnceCell::new();
                return Ok(Table { name, meta, disk_file, top, pins, fault: None, _charge: charge });
            }
            Ok(_) => {
                let offset = disk_file.len().saturating_sub(PAGE_SIZE as u64);
                corrupt(
                    &name.path(),
                    "footer",
                    offset,
                    ("what is known of it".to_owned(), "others".to_owned()),
                )
            }
            Err(error) if error.is_unreadable() => error,
            Err(error) => {
                let _ = disk_file.close().await; // the first error is the one to report
                return Err(error);
            }
        };
        let meta = known;
        assert_eq!(meta.file, name.file, "the facts are those of this file");
        let mut top = Top::default();
        // No partition stands at the start of a file, so the cache takes it for no other.
        let place = BlockHandle { offset: 0, len: PAGE_SIZE };
        top.push(place, &meta.largest).expect("one page is not too many");
        let charge = budget.charge(top.memory_bytes());
        let pins = OnceCell::new();
        Ok(Table { name, meta, disk_file, top, pins, fault: Some(fault), _charge: charge })
    }

    /// Reads and keeps the partitions of a table that was live at the start, if `budget` has room. Until then, and
    /// if they can't be read, reads find them through the cache, and are refused what is damaged.
    pub async fn pin(self: &Rc<Self>, budget: &Rc<IndexBudget>) {
        if self.has_fault() || self.pins.get().is_some() {
            return;
        }
        match Self::read_pins(&self.disk_file, self.name, &self.meta.shape, &self.top, budget).await {
            Ok(Some(pins)) => assert!(self.pins.set(pins).is_ok(), "a table is pinned by one task, once"),
            Ok(None) => {}
            // Nobody else has it any more: it was merged or moved, and is being removed.
            Err(_) if Rc::strong_count(self) == 1 => {}
            Err(error) if error.is_unreadable() => {
                tracing::error!("{error}; reads of keys in it are refused, all else is served");
            }
            Err(error) => tracing::warn!("{error}; its index is not kept in memory"),
        }
    }

    async fn open_file(env: &E, name: TableName) -> Result<<E::Disk as Disk>::File, TableError> {
        let options = OpenOptions { mode: OpenMode::Read, dsync: false };
        Ok(env.disk().open(&name.path(), options).await?)
    }

    /// Why nothing of it can be read, if that is so.
    pub fn fault(&self) -> Option<TableError> {
        self.fault.as_ref().map(TableError::again)
    }

    /// Whether there is such a reason.
    #[inline]
    pub fn has_fault(&self) -> bool {
        self.fault.is_some()
    }

    fn refuse(&self) -> Result<(), TableError> {
        self.fault().map_or(Ok(()), Err)
    }

    async fn read_resident(
        disk_file: &<E::Disk as Disk>::File,
        name: TableName,
        budget: &Rc<IndexBudget>,
    ) -> Result<(Parts, Charge), TableError> {
        let (path, bytes) = (name.path(), disk_file.len());
        if bytes < 4 * PAGE_SIZE as u64 || !bytes.is_multiple_of(PAGE_SIZE as u64) {
            let expected = "whole pages, four or more".to_owned();
            return Err(corrupt(&path, "file", 0, (expected, format!("{bytes} bytes"))));
        }
        let footer_offset = bytes - PAGE_SIZE as u64;
        let page = disk_file.read_at(footer_offset, PAGE_SIZE).await?;
        let footer = check_footer(&path, &page, bytes)?;
        drop(page);
        let found = FileId(footer.file.get());
        if found != name.file {
            let error = (format!("file {}", name.file), format!("file {found}"));
            return Err(corrupt(&path, "footer", footer_offset, error));
        }
        // It ends within the file, which was checked, so it fits `usize` as well as the file does.
        let part = disk_file.read_at(footer.top_offset.get(), footer.top_bytes.get() as usize).await?;
        let parts = check_top(&path, &footer, &part)?;
        drop(part);
        let charge = budget.charge(parts.top.memory_bytes());
        Ok((parts, charge))
    }

    /// Its partitions, if there is room for them.
    async fn read_pins(
        disk_file: &<E::Disk as Disk>::File,
        name: TableName,
        shape: &TableShape,
        top: &Top,
        budget: &Rc<IndexBudget>,
    ) -> Result<Option<Rc<Pins>>, TableError> {
        // As much as they take in the file is more than they will take: how much less is known when they are read.
        let overhead = top.len() * Partition::OVERHEAD;
        let wanted = usize::try_from(shape.partition_bytes).ok().map(|bytes| bytes.saturating_add(overhead));
        let reserved = wanted.and_then(|wanted| budget.reserve(wanted, shape.is_last));
        let Some(mut reserved) = reserved else { return Ok(None) };
        let mut partitions = Vec::with_capacity(top.len());
        let mut bytes = overhead;
        while partitions.len() < top.len() {
            let run = read_run(disk_file, name, top, partitions.len()).await?;
            bytes += run[0].run_bytes();
            partitions.extend(run);
        }
        reserved.shrink_to(bytes);
        Ok(Some(budget.pin(partitions, reserved, shape.is_last)))
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

    /// Number of partitions.
    pub fn partitions(&self) -> usize {
        self.top.len()
    }

    /// Where a partition stands.
    pub fn partition_handle(&self, number: usize) -> BlockHandle {
        self.top.handle(number)
    }

    /// The first partition with keys not below `key`: the one with its newest version, if there is one.
    /// `None` for keys above all.
    #[inline]
    pub fn find_partition(&self, key: &[u8]) -> Option<usize> {
        self.top.find(key).filter(|_| key <= &self.meta.largest[..])
    }

    /// About how many bytes of the file are of keys below `key`: partitions stand behind their blocks.
    pub fn bytes_before(&self, key: &[u8]) -> u64 {
        self.top.find(key).map_or(self.meta.bytes, |number| match number.checked_sub(1) {
            None => 0,
            Some(before) => self.top.handle(before).offset,
        })
    }

    /// A partition, if it is resident for good.
    #[inline]
    pub fn pinned(&self, number: usize) -> Option<Rc<Partition>> {
        self.pins.get()?.get(number)
    }

    /// Reads and verifies a partition, past the cache. Suspends.
    pub async fn read_partition(&self, number: usize) -> Result<Rc<Partition>, TableError> {
        self.refuse()?;
        let BlockHandle { offset, len } = self.top.handle(number);
        let bytes = self.disk_file.read_at(offset, len).await?;
        let parsed = Partition::parse(self.meta.file, offset, &bytes);
        parsed.map(Rc::new).map_err(|error| corrupt(&self.name.path(), "partition", offset, error))
    }

    /// Reads and verifies the partitions from `first` on that stand together in the file, one at least and a
    /// bounded number, past the cache. Suspends.
    pub async fn read_partitions(&self, first: usize) -> Result<Vec<Rc<Partition>>, TableError> {
        self.refuse()?;
        read_run(&self.disk_file, self.name, &self.top, first).await
    }

    /// What separates a partition from the next one.
    pub fn separator(&self, number: usize) -> &[u8] {
        self.top.separator(number)
    }

    /// Reads and verifies a block, past the cache. Suspends.
    pub async fn read_block(&self, handle: BlockHandle) -> Result<Rc<Block>, TableError> {
        self.read_own(handle).await.map(Rc::new)
    }

    /// The same of a block for one reader. A large one is copied no more often than its reads are put together.
    pub(super) async fn read_own(&self, handle: BlockHandle) -> Result<Block, TableError> {
        let bytes = self.disk_file.read_at(handle.offset, handle.len).await?;
        if handle.len > READ_BYTES {
            return self.parse(handle.offset, Into::<Vec<u8>>::into(bytes));
        }
        self.parse(handle.offset, &bytes[..])
    }

    /// Reads blocks of a partition from `first` on, one at least and about `READ_BYTES` at most, past the cache,
    /// and verifies each; `damaged` is told of those that are not whole. Returns how many these are, and their
    /// bytes. Suspends.
    pub async fn check_blocks(
        &self,
        partition: &Partition,
        first: usize,
        pacer: &mut Pacer<E>,
        mut damaged: impl FnMut(TableError),
    ) -> Result<(usize, usize), TableError> {
        let start = partition.handle(first);
        let (mut count, mut len) = (1, start.len);
        while first + count < partition.len() {
            let next = partition.handle(first + count);
            // Partitions of those before may stand between two blocks.
            if next.offset != start.offset + len as u64 || len + next.len > READ_BYTES {
                break;
            }
            (count, len) = (count + 1, len + next.len);
        }
        let bytes = self.disk_file.read_at(start.offset, len).await?;
        for number in first..first + count {
            let BlockHandle { offset, len } = partition.handle(number);
            let at = (offset - start.offset) as usize;
            if let Err(error) = self.parse(offset, &bytes[at..at + len]) {
                damaged(error);
            }
            pacer.breathe().await;
        }
        Ok((count, len))
    }

    /// Reads consecutive bytes of blocks, unverified: for walks that read ahead.
    pub async fn read_bytes(&self, offset: u64, len: usize) -> Result<Vec<u8>, TableError> {
        Ok(self.disk_file.read_at(offset, len).await?.into())
    }

    /// The same in place of what a buffer holds, whose memory is used again.
    pub async fn read_into(&self, offset: u64, len: usize, buffer: &mut Vec<u8>) -> Result<(), TableError> {
        buffer.clear();
        let bytes = self.disk_file.read_at(offset, len).await?;
        buffer.extend_from_slice(&bytes);
        Ok(())
    }

    pub(super) fn parse<'s>(
        &self,
        offset: u64,
        bytes: impl Into<Cow<'s, [u8]>>,
    ) -> Result<Block, TableError> {
        Block::parse(self.meta.file, offset, bytes)
            .map_err(|error| corrupt(&self.name.path(), "block", offset, error))
    }

    /// What is wrong with a block that is whole and can't be one of this table.
    pub(super) fn disorder(&self, offset: u64) -> TableError {
        let expected = "entries in order, within what footer and index say";
        corrupt(&self.name.path(), "block", offset, (expected.to_owned(), "others".to_owned()))
    }

    /// Closes the file.
    pub async fn close(self) -> Result<(), TableError> {
        Ok(self.disk_file.close().await?)
    }
}
