//! Writes a table: entries in order, in a steady stream of large writes, one sync at the end.

use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use super::block::{BlockBuilder, record_len};
use super::expiries::{Expiries, Sampler};
use super::filter::Filter;
use super::format::{Footer, MAGIC, VERSION, placed_crc};
use super::index::Index;
use super::{TableError, TableMeta};
use crate::base::{Entry, FileId, Lsn, OpKind, PAGE_SIZE, TableName, TabletId, crc32c, page_align};
use crate::disk::{Disk, File, OpenMode, OpenOptions};
use crate::env::Env;
use crate::slot::SlotRange;

/// Bytes collected before they are written.
const WRITE_BYTES: usize = 256 << 10;

/// A table that is being written.
pub struct TableBuilder<E: Env> {
    env: E,
    file: <E::Disk as Disk>::File,
    block: BlockBuilder,
    index: Index,
    filter: Filter,
    pending: Vec<u8>,
    written: u64,
    last_key: Vec<u8>,
    last_lsn: Lsn,
    keys: u64,
    expiries: Sampler,
    meta: TableMeta,
}

impl<E: Env> TableBuilder<E> {
    /// Creates the file. `keys` is an upper bound, by which the filter is sized. Whoever drops a builder
    /// removes the file; what is left behind by a crash is an orphan for the next start.
    pub async fn create(
        env: &E,
        file: FileId,
        tablet: TabletId,
        slots: SlotRange,
        keys: u64,
    ) -> Result<TableBuilder<E>, TableError> {
        let options = OpenOptions { mode: OpenMode::CreateNew, dsync: false };
        Ok(TableBuilder {
            env: env.clone(),
            file: env.disk().open(&TableName::new(tablet, file).path(), options).await?,
            block: BlockBuilder::default(),
            index: Index::default(),
            filter: Filter::with_capacity(keys),
            pending: Vec::with_capacity(WRITE_BYTES + PAGE_SIZE),
            written: 0,
            last_key: Vec::new(),
            last_lsn: Lsn::ZERO,
            keys: 0,
            expiries: Sampler::default(),
            meta: TableMeta {
                file,
                tablet,
                slots,
                bytes: 0,
                entries: 0,
                tombstones: 0,
                expiring: 0,
                expiries: Expiries::default(),
                min_lsn: Lsn(u64::MAX),
                max_lsn: Lsn::ZERO,
                smallest: Box::default(),
                largest: Box::default(),
            },
        })
    }

    /// Adds an entry; keys ascend, and versions of one key descend. Suspends when enough is collected to be
    /// written.
    pub async fn add(&mut self, key: &[u8], hash: u64, entry: &Entry<'_>) -> Result<(), TableError> {
        let is_first = self.meta.entries == 0;
        let is_new_key = is_first || key != &self.last_key[..];
        assert!(is_first || key >= &self.last_key[..], "entries are added in the order of keys");
        assert!(is_new_key || entry.lsn < self.last_lsn, "versions of a key are added newest first");
        if !self.block.fits(key, entry) {
            self.finish_block(Some(key));
            if self.pending.len() >= WRITE_BYTES {
                self.write_pending().await?;
            }
        }
        self.block.add(key, hash, entry);
        if is_new_key {
            self.filter.insert(hash);
            self.keys += 1;
            self.last_key.clear();
            self.last_key.extend_from_slice(key);
        }
        if is_first {
            self.meta.smallest = key.into();
        }
        self.last_lsn = entry.lsn;
        self.meta.entries += 1;
        self.meta.tombstones += u64::from(entry.kind == OpKind::Delete);
        self.meta.expiring += u64::from(entry.expiry_ms != 0);
        self.expiries.add(record_len(key, entry), entry.expiry_ms);
        self.meta.min_lsn = self.meta.min_lsn.min(entry.lsn);
        self.meta.max_lsn = self.meta.max_lsn.max(entry.lsn);
        Ok(())
    }

    /// Entries so far.
    pub fn entries(&self) -> u64 {
        self.meta.entries
    }

    /// Ends the block; the next one, if there will be one, begins with `next_key`.
    fn finish_block(&mut self, next_key: Option<&[u8]>) {
        let offset = self.written + self.pending.len() as u64;
        assert_eq!(offset, self.index.end(), "blocks stand back to back");
        let len = self.block.finish(self.meta.file, offset, &mut self.pending);
        self.index.push(len, &self.last_key, next_key);
    }

    async fn write_pending(&mut self) -> Result<(), TableError> {
        let mut at = 0;
        while at < self.pending.len() {
            // A block of one large value is larger than any single write should be.
            let len = (self.pending.len() - at).min(4 * WRITE_BYTES);
            let mut buffer = self.env.disk().alloc(len);
            buffer.copy_from_slice(&self.pending[at..at + len]);
            self.file.write_at(self.written, buffer).await?;
            self.written += len as u64;
            at += len;
        }
        self.pending.clear();
        self.pending.shrink_to(WRITE_BYTES + PAGE_SIZE);
        Ok(())
    }

    /// Writes what is left, index, filter and footer; syncs and closes. The caller syncs the directory.
    /// After an error no file stays, as far as that can be had from the disk.
    pub async fn finish(mut self) -> Result<TableMeta, TableError> {
        assert!(self.meta.entries > 0, "a table holds something");
        match self.write_rest().await {
            Ok(()) => {
                self.file.close().await?;
                Ok(self.meta)
            }
            Err(error) => {
                self.abandon().await;
                Err(error)
            }
        }
    }

    async fn write_rest(&mut self) -> Result<(), TableError> {
        if !self.block.is_empty() {
            self.finish_block(None);
        }
        self.meta.largest = self.last_key.as_slice().into();
        self.write_pending().await?;
        let index_offset = self.written;
        self.pending =
            self.index.encode(self.meta.file, index_offset, &self.meta.smallest, &self.meta.largest);
        let index_len = self.pending.len();
        let index_bytes = index_len as u64;
        self.filter.fold_to(self.keys);
        let filter_offset = index_offset + index_bytes;
        let filter_bytes = self.filter.bytes().len() as u64;
        self.pending.extend_from_slice(self.filter.bytes());
        self.pending.resize(page_align(self.pending.len()), 0);
        let filter_crc = placed_crc(self.meta.file, filter_offset, &self.pending[index_len..]);
        self.meta.bytes = self.written + self.pending.len() as u64 + PAGE_SIZE as u64;
        self.meta.expiries = std::mem::take(&mut self.expiries).finish(self.meta.bytes);
        let mut footer = Footer {
            magic: MAGIC,
            version: VERSION.into(),
            tablet: self.meta.tablet.0.into(),
            file: self.meta.file.0.into(),
            entries: self.meta.entries.into(),
            tombstones: self.meta.tombstones.into(),
            expiring: self.meta.expiring.into(),
            min_lsn: self.meta.min_lsn.0.into(),
            max_lsn: self.meta.max_lsn.0.into(),
            index_offset: index_offset.into(),
            index_bytes: index_bytes.into(),
            filter_offset: filter_offset.into(),
            filter_bytes: filter_bytes.into(),
            filter_crc: filter_crc.into(),
            first_slot: self.meta.slots.first().into(),
            last_slot: self.meta.slots.last().into(),
            expiring_bytes: self.meta.expiries.bytes.into(),
            expiry_eighths: self.meta.expiries.eighths.map(U64::new),
            zero: [0; 3916],
            crc: 0.into(),
        };
        footer.crc = crc32c(&footer.as_bytes()[..PAGE_SIZE - 4]).into();
        self.pending.extend_from_slice(footer.as_bytes());
        self.write_pending().await?;
        assert_eq!(self.meta.bytes, self.written, "the footer is the last page");
        self.file.sync().await?;
        Ok(())
    }

    /// Gives up: closes and removes the file. An orphan that stays is removed by the next start.
    pub async fn abandon(self) {
        let path = TableName::new(self.meta.tablet, self.meta.file).path();
        let _ = self.file.close().await;
        let _ = self.env.disk().remove(&path).await;
    }
}
