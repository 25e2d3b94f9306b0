//! Writes a table: entries in order, in a steady stream of large writes, one sync at the end.
//!
//! What it holds in memory is bounded, whatever the table's size, but for the top of the index: a write's
//! worth of blocks, as much of partitions, and the block and partition that are being filled.

use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use super::block_builder::{BlockBuilder, LargeBlock, record_len};
use super::expiries::{Expiries, Sampler};
use super::format::{Footer, MAGIC, VERSION, place_crc};
use super::partition::{PartitionBuilder, push_separator, seal_run};
use super::top::Top;
use super::{BlockHandle, TableError, TableMeta, TableShape};
use crate::base::{
    Bug, Codec, Entry, FileId, Lsn, OpKind, PAGE_SIZE, TableName, TabletId, crc32c, crc32c_append, planted,
};
use crate::disk::{Disk, File, OpenMode, OpenOptions};
use crate::env::{Env, Pacer};
use crate::slot::SlotRange;

/// Bytes collected before they are written.
const WRITE_BYTES: usize = 256 << 10;
/// Bytes of partitions collected before they get a place between blocks. So those of a table of up to about
/// 16 MiB stand together, and of a larger one in runs that are read in a request each.
const RUN_BYTES: usize = 256 << 10;

/// A larger entry makes a block that is written from where its value is, in pieces of [`LARGE_WRITE_BYTES`]. Put
/// together in memory, one of 16 MiB would be copied four times in one step of some 20 ms.
const LARGE_BYTES: usize = 256 << 10;
/// Bytes of such a write: copied in about 0.2 ms.
const LARGE_WRITE_BYTES: usize = 1 << 20;

/// Filter bits for each key in the upper levels: 0.12 % false positives. There are several upper tables that
/// may hold a key, and few keys in them.
const BITS_UPPER: u8 = 16;
/// In the last level, which holds nearly all keys once: 0.52 %.
const BITS_LAST: u8 = 12;

/// What a table is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableOptions {
    /// What its blocks are compressed with, where that is worth it.
    pub codec: Codec,
    /// Bits of filter for each key.
    pub bits_per_key: u8,
    /// Whether it is for the last level.
    pub is_last: bool,
}

impl TableOptions {
    /// Of a table above the last level.
    pub const fn upper(codec: Codec) -> TableOptions {
        TableOptions { codec, bits_per_key: BITS_UPPER, is_last: false }
    }

    /// Of a table of the last level.
    pub const fn last(codec: Codec) -> TableOptions {
        TableOptions { codec, bits_per_key: BITS_LAST, is_last: true }
    }
}

/// A table that is being written.
pub struct TableBuilder<E: Env> {
    env: E,
    file: <E::Disk as Disk>::File,
    block: BlockBuilder,
    /// A block that was written and is not in the index: what separates it from the next one is not known yet.
    large: Option<Large>,
    partition: PartitionBuilder,
    top: Top,
    separator: Vec<u8>,
    /// Partitions that have no place yet, each with its length and last separator.
    run: Vec<u8>,
    run_parts: Vec<(usize, Vec<u8>)>,
    pending: Vec<u8>,
    written: u64,
    last_key: Vec<u8>,
    last_lsn: Lsn,
    expiries: Sampler,
    meta: TableMeta,
}

struct Large {
    handle: BlockHandle,
    hash: u64,
    raw_len: usize,
}

impl<E: Env> TableBuilder<E> {
    /// Creates the file. Whoever drops a builder removes the file; what is left behind by a crash is an
    /// orphan for the next start.
    pub async fn create(
        env: &E,
        file: FileId,
        tablet: TabletId,
        slots: SlotRange,
        options: TableOptions,
    ) -> Result<TableBuilder<E>, TableError> {
        let TableOptions { codec, bits_per_key, is_last } = options;
        let open = OpenOptions { mode: OpenMode::CreateNew, dsync: false };
        Ok(TableBuilder {
            env: env.clone(),
            file: env.disk().open(&TableName::new(tablet, file).path(), open).await?,
            block: BlockBuilder::new(codec),
            large: None,
            partition: PartitionBuilder::new(bits_per_key),
            top: Top::default(),
            separator: Vec::new(),
            run: Vec::new(),
            run_parts: Vec::new(),
            pending: Vec::with_capacity(WRITE_BYTES + PAGE_SIZE),
            written: 0,
            last_key: Vec::new(),
            last_lsn: Lsn::ZERO,
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
                shape: TableShape { is_last, codec, bits_per_key, ..TableShape::default() },
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
        self.index_large(Some(key));
        if record_len(key, entry) > LARGE_BYTES {
            self.write_large(key, hash, entry).await?;
        } else {
            while !self.block.fits(key, entry) {
                self.finish_block(Some(key));
                if self.pending.len() >= WRITE_BYTES {
                    self.write_pending().await?;
                }
            }
            self.block.add(key, hash, entry);
        }
        if is_new_key {
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

    /// Bytes of the file so far, about: what is still being collected is not in it.
    pub fn bytes(&self) -> u64 {
        self.position() + self.run.len() as u64
    }

    /// Where the next part of the file goes.
    fn position(&self) -> u64 {
        self.written + self.pending.len() as u64
    }

    /// Ends a block; `next_key` is what will be added next, if anything.
    fn finish_block(&mut self, next_key: Option<&[u8]>) {
        if self.run.len() >= RUN_BYTES {
            self.place_run();
        }
        let offset = self.position();
        let finished = self.block.finish(self.meta.file, offset, &mut self.pending);
        let handle = BlockHandle { offset, len: finished.len };
        separate(&mut self.separator, &finished.last_key, self.block.next_key(&finished).or(next_key));
        if !self.partition.fits(&self.separator, finished.count) {
            self.finish_partition();
        }
        self.partition.push(handle, &self.separator, self.block.hashes(&finished));
        self.block.drain(&finished);
        self.count_block(finished.codec, finished.raw_len, finished.len);
    }

    fn count_block(&mut self, codec: Codec, raw_len: usize, len: usize) {
        let shape = &mut self.meta.shape;
        shape.blocks += 1;
        shape.plain_blocks += u64::from(codec == Codec::None);
        shape.raw_bytes += raw_len as u64;
        shape.stored_bytes += len as u64;
    }

    /// Writes an entry as a block of its own, in steps.
    async fn write_large(&mut self, key: &[u8], hash: u64, entry: &Entry<'_>) -> Result<(), TableError> {
        while !self.block.is_empty() {
            self.finish_block(Some(key));
        }
        if self.run.len() >= RUN_BYTES {
            self.place_run();
        }
        self.write_pending().await?;
        let LargeBlock { mut head, len, raw_len } = LargeBlock::new(key, hash, entry);
        let handle = BlockHandle { offset: self.written, len };
        let padding = vec![0; len - head.len() - entry.value.len()];
        let mut pacer = Pacer::new(&self.env);
        let mut crc = crc32c_append(place_crc(self.meta.file, handle.offset), &head[4..]);
        for piece in entry.value.chunks(LARGE_BYTES) {
            crc = crc32c_append(crc, piece);
            pacer.breathe().await;
        }
        crc = crc32c_append(crc, &padding);
        head[..4].copy_from_slice(&crc.to_le_bytes());
        let mut parts = [&head[..], entry.value, &padding];
        let end = handle.offset + len as u64;
        while self.written < end {
            let mut buffer = self.env.disk().alloc(LARGE_WRITE_BYTES.min((end - self.written) as usize));
            let mut filled = 0;
            for part in &mut parts {
                let (now, later) = part.split_at(part.len().min(buffer.len() - filled));
                buffer[filled..filled + now.len()].copy_from_slice(now);
                (filled, *part) = (filled + now.len(), later);
            }
            assert_eq!(filled, buffer.len(), "the parts are as long as the block");
            self.file.write_at(self.written, buffer).await?;
            self.written += filled as u64;
        }
        self.large = Some(Large { handle, hash, raw_len });
        Ok(())
    }

    /// Puts a large block, if that was the last, into the index; `next_key` is what will be added next, if anything.
    fn index_large(&mut self, next_key: Option<&[u8]>) {
        let Some(Large { handle, hash, raw_len }) = self.large.take() else { return };
        separate(&mut self.separator, &self.last_key, next_key);
        if !self.partition.fits(&self.separator, 1) {
            self.finish_partition();
        }
        self.partition.push(handle, &self.separator, &[hash]);
        self.count_block(Codec::None, raw_len, handle.len);
    }

    fn finish_partition(&mut self) {
        let separator = self.partition.last_separator().to_vec();
        let len = self.partition.finish(&mut self.run);
        self.run_parts.push((len, separator));
        self.meta.shape.partitions += 1;
        self.meta.shape.partition_bytes += len as u64;
    }

    /// Gives the partitions that have none a place in the file.
    fn place_run(&mut self) {
        let mut offset = self.position();
        let lens: Vec<usize> = self.run_parts.iter().map(|(len, _)| *len).collect();
        seal_run(self.meta.file, offset, &lens, &mut self.run);
        self.pending.append(&mut self.run);
        for (len, separator) in self.run_parts.drain(..) {
            let pushed = self.top.push(BlockHandle { offset, len }, &separator);
            pushed.expect("a table ends far below 16 TiB");
            offset += len as u64;
        }
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

    /// Writes what is left, partitions, top and footer; syncs and closes. The caller syncs the directory.
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
        self.index_large(None);
        while !self.block.is_empty() {
            self.finish_block(None);
        }
        self.finish_partition();
        self.place_run();
        self.meta.largest = self.last_key.as_slice().into();
        self.write_pending().await?;
        let top_offset = self.written;
        let shape = self.meta.shape;
        assert_eq!(shape.stored_bytes + shape.partition_bytes, top_offset, "parts stand back to back");
        self.pending = self.top.encode(self.meta.file, top_offset, &self.meta.smallest, &self.meta.largest);
        let top_bytes = self.pending.len() as u64;
        self.meta.bytes = top_offset + top_bytes + PAGE_SIZE as u64;
        self.meta.expiries = std::mem::take(&mut self.expiries).finish(self.meta.bytes);
        let footer = footer(&self.meta, top_offset, top_bytes);
        self.pending.extend_from_slice(footer.as_bytes());
        self.write_pending().await?;
        assert_eq!(self.meta.bytes, self.written, "the footer is the last page");
        if !planted(Bug::TableNotSynced) {
            self.file.sync().await?;
        }
        Ok(())
    }

    /// Gives up: closes and removes the file. An orphan that stays is removed by the next start.
    pub async fn abandon(self) {
        let path = TableName::new(self.meta.tablet, self.meta.file).path();
        let _ = self.file.close().await;
        let _ = self.env.disk().remove(&path).await;
    }
}

/// Makes `separator` what separates a block that ends with `last_key` from what comes next.
fn separate(separator: &mut Vec<u8>, last_key: &[u8], next_key: Option<&[u8]>) {
    separator.clear();
    match next_key {
        Some(next) => {
            assert!(last_key <= next, "blocks are in the order of keys");
            push_separator(last_key, next, separator);
            assert!(last_key <= &separator[..], "a separator is not below its block");
            assert!(&separator[..] < next || last_key == next, "and below the next block");
        }
        None => separator.extend_from_slice(last_key),
    }
}

fn footer(meta: &TableMeta, top_offset: u64, top_bytes: u64) -> Footer {
    let shape = &meta.shape;
    let mut footer = Footer {
        magic: MAGIC,
        version: VERSION.into(),
        tablet: meta.tablet.0.into(),
        file: meta.file.0.into(),
        entries: meta.entries.into(),
        tombstones: meta.tombstones.into(),
        expiring: meta.expiring.into(),
        min_lsn: meta.min_lsn.0.into(),
        max_lsn: meta.max_lsn.0.into(),
        top_offset: top_offset.into(),
        top_bytes: top_bytes.into(),
        partitions: shape.partitions.into(),
        partition_bytes: shape.partition_bytes.into(),
        blocks: shape.blocks.into(),
        plain_blocks: shape.plain_blocks.into(),
        raw_bytes: shape.raw_bytes.into(),
        stored_bytes: shape.stored_bytes.into(),
        expiring_bytes: meta.expiries.bytes.into(),
        expiry_eighths: meta.expiries.eighths.map(U64::new),
        first_slot: meta.slots.first().into(),
        last_slot: meta.slots.last().into(),
        is_last: u8::from(shape.is_last),
        codec: shape.codec as u8,
        bits_per_key: shape.bits_per_key,
        zero: [0; 3885],
        crc: 0.into(),
    };
    footer.crc = crc32c(&footer.as_bytes()[..PAGE_SIZE - 4]).into();
    footer
}
