//! One block in memory: verified, decompressed, searched.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::ops::RangeInclusive;

use zerocopy::FromBytes;

use super::codec::decompress;
use super::format::{
    BLOCK_HEADER_BYTES, BlockHeader, COMPRESSED_BYTES_MAX, HAS_EXPIRY, PartError, RecordHeader, check_part,
    hash_tag, malformed,
};
use crate::base::{Codec, Entry, FileId, Lsn, OpKind, page_align, prefetch};

/// Bytes that the processor fetches at once.
const CACHE_LINE: usize = 64;

/// A verified block in memory.
pub struct Block {
    /// The payload as it is searched; before it the header, unless it was decompressed.
    bytes: Box<[u8]>,
    tags: usize,
    count: usize,
    records: usize,
    codec: Codec,
}

/// Where a record of a block stands, and what its header says: read once, looked at often.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    key: u32,
    value_len: u32,
    lsn: Lsn,
    expiry_ms: u64,
    key_len: u16,
    kind: OpKind,
}

impl Span {
    /// Its version.
    #[inline]
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }
}

/// Length of the block that `bytes` seem to start with, if it is at most `rest`. A guess until it is parsed: for
/// tools that have no index to go by.
pub(super) fn guess_len(bytes: &[u8], rest: usize) -> Option<usize> {
    let (header, _) = BlockHeader::ref_from_prefix(bytes).ok()?;
    Codec::from_u8(header.codec)?;
    let len = page_align(BLOCK_HEADER_BYTES + header.stored_len.get() as usize);
    (header.count.get() > 0 && len <= rest).then_some(len)
}

impl Block {
    /// Verifies and takes the bytes of the block that belongs at `offset` of `file`. Every record is
    /// checked here, so that later accesses can't fail. Bytes that are given away are not copied, unless they are
    /// compressed.
    pub fn parse<'s>(
        file: FileId,
        offset: u64,
        stored: impl Into<Cow<'s, [u8]>>,
    ) -> Result<Block, PartError> {
        let stored = stored.into();
        check_part(file, offset, &stored)?;
        let (header, rest) =
            BlockHeader::ref_from_prefix(&stored).map_err(|_| malformed("a block header"))?;
        let codec = Codec::from_u8(header.codec)
            .ok_or_else(|| ("codec 0, 1 or 2".to_owned(), header.codec.to_string()))?;
        let (raw_len, stored_len) = (header.raw_len.get() as usize, header.stored_len.get() as usize);
        let count = usize::from(header.count.get());
        if page_align(BLOCK_HEADER_BYTES + stored_len) != stored.len() {
            return Err(malformed("a payload that fills the block"));
        }
        let (bytes, tags) = if codec == Codec::None {
            let used = BLOCK_HEADER_BYTES + stored_len;
            if raw_len != stored_len || used > stored.len() {
                return Err(malformed("a payload of one length"));
            }
            let bytes = match stored {
                Cow::Borrowed(stored) => stored[..used].into(),
                Cow::Owned(mut stored) => {
                    stored.truncate(used);
                    stored.into_boxed_slice()
                }
            };
            (bytes, BLOCK_HEADER_BYTES)
        } else {
            let payload = rest.get(..stored_len).and_then(|payload| decompress(codec, payload, raw_len));
            let wanted = || (format!("{raw_len} bytes of {codec}"), "others".to_owned());
            if raw_len > COMPRESSED_BYTES_MAX {
                let most = format!("at most {COMPRESSED_BYTES_MAX} compressed bytes");
                return Err((most, raw_len.to_string()));
            }
            (payload.ok_or_else(wanted)?, 0)
        };
        let block = Block { bytes, tags, count, records: tags + count * 3, codec };
        if count == 0 || block.records > block.bytes.len() {
            return Err(malformed("records"));
        }
        for record in 0..count {
            block.read(record).ok_or_else(|| malformed("a record"))?;
        }
        Ok(block)
    }

    /// Bytes it takes in memory.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.len() + size_of::<Block>()
    }

    /// How it is stored.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Bytes of its payload, decompressed.
    pub fn raw_bytes(&self) -> usize {
        self.bytes.len() - self.tags
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Never: a block holds at least one record.
    pub fn is_empty(&self) -> bool {
        false
    }

    #[inline]
    fn read(&self, record: usize) -> Option<(&[u8], Entry<'_>)> {
        let at = self.tags + self.count + record * 2;
        let offset = u16::from_le_bytes([*self.bytes.get(at)?, *self.bytes.get(at + 1)?]);
        read_record(self.bytes.get(self.records + usize::from(offset)..)?)
    }

    /// The key of the `record`-th record, from 0.
    ///
    /// # Panics
    /// Beyond the last.
    #[inline]
    pub fn key(&self, record: usize) -> &[u8] {
        assert!(record < self.count, "record {record} of {}", self.count);
        let at = self.tags + self.count + record * 2;
        let offset = u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]);
        read_key(&self.bytes[self.records + usize::from(offset)..])
            .expect("every record was read once in parse")
    }

    /// The `record`-th record, from 0.
    ///
    /// # Panics
    /// Beyond the last.
    #[inline]
    pub fn entry(&self, record: usize) -> (&[u8], Entry<'_>) {
        assert!(record < self.count, "record {record} of {}", self.count);
        self.read(record).expect("every record was read once in parse")
    }

    /// Where the `record`-th record stands, from 0.
    ///
    /// # Panics
    /// Beyond the last.
    #[inline]
    pub fn span(&self, record: usize) -> Span {
        assert!(record < self.count, "record {record} of {}", self.count);
        let at = self.tags + self.count + record * 2;
        let offset = u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]);
        let start = self.records + usize::from(offset);
        let (header, rest) =
            RecordHeader::ref_from_prefix(&self.bytes[start..]).expect("every record was read once in parse");
        let kind = OpKind::from_u8(header.kind).expect("every record was read once in parse");
        let (expiry_ms, expiry_len) = match rest.first_chunk::<8>() {
            Some(expiry) if header.flags & HAS_EXPIRY != 0 => (u64::from_le_bytes(*expiry), 8),
            _ => (0, 0),
        };
        Span {
            // A block is at most as large as an entry, far below 4 GiB.
            key: (start + size_of::<RecordHeader>() + expiry_len) as u32,
            key_len: header.key_len.get(),
            value_len: header.value_len.get(),
            lsn: Lsn(header.lsn.get()),
            expiry_ms,
            kind,
        }
    }

    /// The key of a record of this block.
    ///
    /// # Panics
    /// It may, if it is another block's.
    #[inline]
    pub fn key_at(&self, span: &Span) -> &[u8] {
        &self.bytes[span.key as usize..][..usize::from(span.key_len)]
    }

    /// A record of this block.
    ///
    /// # Panics
    /// It may, if it is another block's.
    #[inline]
    pub fn entry_at(&self, span: &Span) -> (&[u8], Entry<'_>) {
        let Span { lsn, kind, expiry_ms, .. } = *span;
        let (key, rest) = self.bytes[span.key as usize..].split_at(usize::from(span.key_len));
        (key, Entry { lsn, kind, expiry_ms, value: &rest[..span.value_len as usize] })
    }

    /// The newest version of `key` in here. Looks at one byte per record, then at the few that match.
    pub fn get(&self, hash: u64, key: &[u8]) -> Option<Entry<'_>> {
        let tags = &self.bytes[self.tags..self.tags + self.count];
        memchr::memchr_iter(hash_tag(hash), tags)
            .map(|record| self.entry(record))
            .find(|(found, _)| *found == key)
            .map(|(_, entry)| entry)
    }

    /// Starts to fetch what [`Block::get`] looks at first.
    #[inline]
    pub fn prefetch_tags(&self) {
        // Tags, and behind them the places of the records: some hundred bytes.
        (self.tags..self.records.min(self.tags + 4 * CACHE_LINE))
            .step_by(CACHE_LINE)
            .for_each(|at| prefetch(&self.bytes[at]));
    }

    /// Starts to fetch the record that [`Block::get`] looks at next.
    #[inline]
    pub fn prefetch_record(&self, hash: u64) {
        let tags = &self.bytes[self.tags..self.tags + self.count];
        let Some(record) = memchr::memchr(hash_tag(hash), tags) else { return };
        let at = self.tags + self.count + record * 2;
        let start = self.records + usize::from(u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]));
        // Two lines: most of what is small. The processor follows by itself who reads on.
        [start, start + CACHE_LINE].into_iter().filter_map(|at| self.bytes.get(at)).for_each(prefetch);
    }

    /// Whether its entries ascend, versions of one key from the newest on, have LSNs of `lsns` only, and follow on
    /// `last`, the entry in front of it.
    pub(super) fn follows<'a>(
        &'a self,
        mut last: Option<(&'a [u8], Lsn)>,
        lsns: RangeInclusive<Lsn>,
    ) -> bool {
        (0..self.count).all(|record| {
            let span = self.span(record);
            let (key, lsn) = (self.key_at(&span), span.lsn());
            let is_behind = last.is_none_or(|(last, newer)| match last.cmp(key) {
                Ordering::Less => true,
                Ordering::Equal => newer > lsn,
                Ordering::Greater => false,
            });
            last = Some((key, lsn));
            is_behind && lsns.contains(&lsn)
        })
    }

    /// The first record whose key is not below `key`.
    pub fn lower_bound(&self, key: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = (low + high) / 2;
            if self.key(middle) < key { low = middle + 1 } else { high = middle }
        }
        low
    }
}

/// The key of the record that `bytes` start with.
#[inline]
fn read_key(bytes: &[u8]) -> Option<&[u8]> {
    let (header, rest) = RecordHeader::ref_from_prefix(bytes).ok()?;
    let at = if header.flags & HAS_EXPIRY != 0 { 8 } else { 0 };
    rest.get(at..at + usize::from(header.key_len.get()))
}

/// The record that `bytes` start with.
#[inline]
pub(super) fn read_record(bytes: &[u8]) -> Option<(&[u8], Entry<'_>)> {
    let (header, rest) = RecordHeader::ref_from_prefix(bytes).ok()?;
    let kind = OpKind::from_u8(header.kind)?;
    let (expiry_ms, rest) = if header.flags & HAS_EXPIRY != 0 {
        let (expiry, rest) = rest.split_first_chunk::<8>()?;
        (u64::from_le_bytes(*expiry), rest)
    } else {
        (0, rest)
    };
    let (key_len, value_len) = (usize::from(header.key_len.get()), header.value_len.get() as usize);
    let key = rest.get(..key_len)?;
    let value = rest.get(key_len..key_len.checked_add(value_len)?)?;
    Some((key, Entry { lsn: Lsn(header.lsn.get()), kind, expiry_ms, value }))
}
