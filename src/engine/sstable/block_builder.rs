//! Fills blocks: cuts entries so that what is stored fills its pages, whatever the codec makes of them.
//!
//! How small a block becomes is known only once it is compressed. So the builder estimates it by how the
//! blocks before it went, collects entries up to that, and compresses. Where that spills a little onto
//! another page it takes the last entries out again, and they begin the next block.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

use super::block::read_record;
use super::codec::Compressor;
use super::format::{
    BLOCK_BYTES, BLOCK_BYTES_GROWN, BLOCK_HEADER_BYTES, BlockHeader, COMPRESSED_BYTES_MAX, HAS_EXPIRY,
    RECORD_HEADER_BYTES, RECORD_STARTS, RecordHeader, WASTE_SHARE, hash_tag, seal_part,
};
use crate::base::{Codec, Entry, FileId, PAGE_SIZE, page_align};

/// Buffers above this are given back after a large value.
const KEPT_BYTES: usize = 64 << 10;

/// A ratio of stored to raw bytes is in parts of this.
const WHOLE: usize = 1024;
/// With more than this left, compressing is only tried now and then: on blocks of which the number is a
/// multiple of [`RETRY_BLOCKS`].
const HOPELESS: usize = WHOLE * 7 / 8;
const RETRY_BLOCKS: u64 = 16;
/// What blocks are taken to shrink to before there is one.
const FIRST_RATIO: usize = WHOLE / 2;
/// A block is aimed a little below its page, because its ratio will be a little off: one part in so many.
const SLACK_SHARE: usize = 32;

/// Collects the entries of a block, and of the one after it.
pub struct BlockBuilder {
    compressor: Compressor,
    /// Of each record.
    hashes: Vec<u64>,
    starts: Vec<u32>,
    records: Vec<u8>,
    /// What the last blocks shrank to.
    ratio: usize,
    blocks: u64,
    payload: Vec<u8>,
}

/// A block that was written.
pub struct Finished {
    /// In the file, whole pages.
    pub len: usize,
    /// Bytes of its payload, decompressed.
    pub raw_len: usize,
    /// How it is stored.
    pub codec: Codec,
    /// Records in it, of those that were in the builder.
    pub count: usize,
    /// Its last key.
    pub last_key: Vec<u8>,
}

/// A payload as it will be stored.
struct Encoded {
    count: usize,
    /// Of the payload; `None`: as it is.
    compressed: Option<Vec<u8>>,
    stored_len: usize,
    pages: usize,
}

/// A block of one large record, which is written without being put together in memory: what stands before the value.
/// Behind it follow the value and zeros.
pub(super) struct LargeBlock {
    /// The checksum, its first four bytes, is missing.
    pub head: Vec<u8>,
    /// Of all of it, whole pages.
    pub len: usize,
    /// Bytes of its payload.
    pub raw_len: usize,
}

impl LargeBlock {
    /// What [`BlockBuilder`] makes of an entry that is too large to be compressed.
    pub fn new(key: &[u8], hash: u64, entry: &Entry<'_>) -> LargeBlock {
        let raw_len = 3 + record_len(key, entry);
        assert!(raw_len > COMPRESSED_BYTES_MAX, "an entry that is not compressed, whatever the codec");
        let header = BlockHeader {
            crc: 0.into(),
            codec: Codec::None as u8,
            zero: 0,
            count: 1.into(),
            raw_len: to_u32(raw_len),
            stored_len: to_u32(raw_len),
        };
        let mut head = Vec::with_capacity(BLOCK_HEADER_BYTES + raw_len - entry.value.len());
        head.extend_from_slice(header.as_bytes());
        head.push(hash_tag(hash));
        head.extend_from_slice(&[0, 0]);
        push_record_head(&mut head, key, entry);
        LargeBlock { head, len: page_align(BLOCK_HEADER_BYTES + raw_len), raw_len }
    }
}

/// Appends a record without its value.
fn push_record_head(out: &mut Vec<u8>, key: &[u8], entry: &Entry<'_>) {
    let header = RecordHeader {
        key_len: U16::new(u16::try_from(key.len()).expect("keys are at most 65535 bytes")),
        kind: entry.kind as u8,
        flags: if entry.expiry_ms == 0 { 0 } else { HAS_EXPIRY },
        value_len: u32::try_from(entry.value.len()).expect("values are below 4 GiB").into(),
        lsn: entry.lsn.0.into(),
    };
    out.extend_from_slice(header.as_bytes());
    if entry.expiry_ms != 0 {
        out.extend_from_slice(&entry.expiry_ms.to_le_bytes());
    }
    out.extend_from_slice(key);
}

/// Bytes that an entry takes in a block.
pub(super) fn record_len(key: &[u8], entry: &Entry<'_>) -> usize {
    let expiry = if entry.expiry_ms == 0 { 0 } else { 8 };
    RECORD_HEADER_BYTES + expiry + key.len() + entry.value.len()
}

/// Whether the last page of a block of `len` bytes stays too empty.
fn is_wasteful(len: usize) -> bool {
    let pages = page_align(len).max(BLOCK_BYTES);
    (pages - len) * WASTE_SHARE > pages
}

impl BlockBuilder {
    /// Of a table that is compressed with `codec`.
    pub fn new(codec: Codec) -> BlockBuilder {
        let compressor = Compressor::new(codec);
        let ratio = if compressor.codec() == Codec::None { WHOLE } else { FIRST_RATIO };
        BlockBuilder {
            compressor,
            hashes: Vec::new(),
            starts: Vec::new(),
            records: Vec::new(),
            ratio,
            blocks: 0,
            payload: Vec::new(),
        }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.hashes.is_empty()
    }

    /// Whether another entry belongs in here. The first always does, however large; others if they fit the
    /// pages that the block is likely to have anyway, or if those would stay too empty without them.
    pub fn fits(&self, key: &[u8], entry: &Entry<'_>) -> bool {
        if self.is_empty() {
            return true;
        }
        if self.records.len() >= RECORD_STARTS {
            return false;
        }
        let raw = self.raw_len(self.hashes.len());
        let (now, then) = (self.likely_len(raw), self.likely_len(raw + record_len(key, entry) + 3));
        let pages = page_align(now).max(BLOCK_BYTES);
        let is_full_page = then <= BLOCK_BYTES && raw >= self.raw_max();
        (then <= pages && !is_full_page) || (is_wasteful(now) && then > pages && then <= BLOCK_BYTES_GROWN)
    }

    /// Payload that one page may hold, however well it compresses: a read has to decompress all of it, and
    /// the cache to hold it.
    fn raw_max(&self) -> usize {
        match self.compressor.codec() {
            Codec::None => usize::MAX,
            Codec::Lz4 => 16 << 10,
            Codec::Zstd => 32 << 10,
        }
    }

    /// What a block with a payload of `raw` bytes is likely to take.
    fn likely_len(&self, raw: usize) -> usize {
        let payload = if self.ratio > HOPELESS || raw > COMPRESSED_BYTES_MAX {
            raw
        } else {
            let shrunk = raw * self.ratio / WHOLE;
            shrunk + shrunk / SLACK_SHARE
        };
        BLOCK_HEADER_BYTES + payload
    }

    /// Bytes of the payload that the first `count` records make.
    fn raw_len(&self, count: usize) -> usize {
        count * 3 + self.records_end(count)
    }

    fn records_end(&self, count: usize) -> usize {
        self.starts.get(count).map_or(self.records.len(), |start| *start as usize)
    }

    /// Adds an entry behind all others.
    pub fn add(&mut self, key: &[u8], hash: u64, entry: &Entry<'_>) {
        assert!(self.records.len() < RECORD_STARTS, "`fits` keeps what a record starts behind below 64 KiB");
        self.hashes.push(hash);
        self.starts.push(u32::try_from(self.records.len()).expect("below 64 KiB"));
        push_record_head(&mut self.records, key, entry);
        self.records.extend_from_slice(entry.value);
    }

    /// Appends a block, padded to pages and sealed for its place, to `out`. What does not go into it stays:
    /// whoever ends a table calls this until nothing is left. The hashes of its records, of which
    /// [`Finished::count`] tells the number, stay until [`BlockBuilder::drain`].
    ///
    /// # Panics
    /// If the builder is empty.
    pub fn finish(&mut self, file: FileId, offset: u64, out: &mut Vec<u8>) -> Finished {
        assert!(!self.is_empty(), "a block holds a record");
        let whole = self.encode(self.hashes.len());
        let encoded = self.shortened(&whole).unwrap_or(whole);
        self.blocks += 1;
        if encoded.compressed.is_none() {
            self.fill_payload(encoded.count);
        }
        let raw_len = self.raw_len(encoded.count);
        let codec = if encoded.compressed.is_some() { self.compressor.codec() } else { Codec::None };
        let header = BlockHeader {
            crc: 0.into(),
            codec: codec as u8,
            zero: 0,
            count: U16::new(u16::try_from(encoded.count).expect("records of 16 bytes start below 64 KiB")),
            raw_len: to_u32(raw_len),
            stored_len: to_u32(encoded.stored_len),
        };
        let start = out.len();
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(encoded.compressed.as_deref().unwrap_or(&self.payload));
        assert_eq!(out.len() - start, BLOCK_HEADER_BYTES + encoded.stored_len);
        out.resize(start + encoded.pages * PAGE_SIZE, 0);
        seal_part(file, offset, &mut out[start..]);
        let (last_key, _) = self.record(encoded.count - 1);
        let last_key = last_key.to_vec();
        Finished { len: out.len() - start, raw_len, codec, count: encoded.count, last_key }
    }

    /// The hashes of the records in the block that was finished last.
    pub fn hashes(&self, finished: &Finished) -> &[u64] {
        &self.hashes[..finished.count]
    }

    /// The first key that did not go into the block that was finished last.
    pub fn next_key(&self, finished: &Finished) -> Option<&[u8]> {
        (finished.count < self.hashes.len()).then(|| self.record(finished.count).0)
    }

    /// Removes what went into the block that was finished last.
    pub fn drain(&mut self, finished: &Finished) {
        let end = self.records_end(finished.count);
        self.hashes.drain(..finished.count);
        self.starts.drain(..finished.count);
        let moved = u32::try_from(end).unwrap_or(u32::MAX); // with starts behind it, it is below 64 KiB
        self.starts.iter_mut().for_each(|start| *start -= moved);
        self.records.drain(..end);
        self.records.shrink_to(KEPT_BYTES);
        self.payload.clear();
        self.payload.shrink_to(KEPT_BYTES);
    }

    fn record(&self, record: usize) -> (&[u8], Entry<'_>) {
        read_record(&self.records[self.starts[record] as usize..]).expect("`add` wrote a whole record")
    }

    fn fill_payload(&mut self, count: usize) {
        let end = self.records_end(count);
        self.payload.clear();
        self.payload.extend(self.hashes[..count].iter().map(|hash| hash_tag(*hash)));
        for start in &self.starts[..count] {
            let start = u16::try_from(*start).expect("records start below 64 KiB");
            self.payload.extend_from_slice(&start.to_le_bytes());
        }
        self.payload.extend_from_slice(&self.records[..end]);
    }

    /// The first `count` records as they would be stored.
    fn encode(&mut self, count: usize) -> Encoded {
        let raw = self.raw_len(count);
        let plain_pages = page_align(BLOCK_HEADER_BYTES + raw) / PAGE_SIZE;
        let plain = Encoded { count, compressed: None, stored_len: raw, pages: plain_pages };
        let is_tried = self.ratio <= HOPELESS || self.blocks.is_multiple_of(RETRY_BLOCKS);
        if self.compressor.codec() == Codec::None || raw > COMPRESSED_BYTES_MAX || !is_tried {
            return plain;
        }
        self.fill_payload(count);
        let compressed = self.compressor.compress(&self.payload);
        let stored_len = compressed.map_or(raw, <[u8]>::len);
        let pages = page_align(BLOCK_HEADER_BYTES + stored_len) / PAGE_SIZE;
        let is_worth_it = pages < plain_pages && (plain_pages - pages) * WASTE_SHARE >= plain_pages;
        let encoded = match compressed.filter(|_| is_worth_it) {
            Some(bytes) => Encoded { count, compressed: Some(bytes.to_vec()), stored_len, pages },
            None => plain,
        };
        let now = (stored_len * WHOLE / raw.max(1)).clamp(1, WHOLE);
        // The first says all there is to know.
        self.ratio = if self.blocks == 0 { now } else { (self.ratio * 3 + now).div_ceil(4) };
        encoded
    }

    /// Where `whole` leaves much of its last page empty: a block of one page less, if one can be made.
    fn shortened(&mut self, whole: &Encoded) -> Option<Encoded> {
        let len = BLOCK_HEADER_BYTES + whole.stored_len;
        if whole.count < 2 || whole.pages < 2 || !is_wasteful(len) {
            return None;
        }
        let room = (whole.pages - 1) * PAGE_SIZE - BLOCK_HEADER_BYTES;
        let raw = self.raw_len(whole.count);
        // Smaller, it compresses a little worse.
        let slack = if whole.compressed.is_some() { room / SLACK_SHARE / 2 } else { 0 };
        let raw_room = (room - slack) as u64 * raw as u64 / whole.stored_len as u64;
        let count = (1..whole.count).rev().find(|count| self.raw_len(*count) as u64 <= raw_room)?;
        let shorter = self.encode(count);
        let is_better = shorter.pages < whole.pages && !is_wasteful(BLOCK_HEADER_BYTES + shorter.stored_len);
        is_better.then_some(shorter)
    }
}

fn to_u32(len: usize) -> U32 {
    u32::try_from(len).expect("payloads are far below 4 GiB").into()
}

#[cfg(test)]
mod tests;
