//! One block: built from entries, or parsed and searched.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, IntoBytes};

use super::format::{
    BLOCK_BYTES, BLOCK_HEADER_BYTES, BlockHeader, HAS_EXPIRY, RECORD_HEADER_BYTES, RecordHeader, check_part,
    hash_tag, seal_part,
};
use crate::base::{Entry, FileId, Lsn, OpKind, page_align};

/// Collects the entries of one block.
#[derive(Default)]
pub struct BlockBuilder {
    tags: Vec<u8>,
    offsets: Vec<U16>,
    records: Vec<u8>,
}

impl BlockBuilder {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.tags.is_empty()
    }

    /// Whether another entry fits. The first always does, however large.
    pub fn fits(&self, key: &[u8], entry: &Entry<'_>) -> bool {
        let len = self.len() + record_len(key, entry) + 3;
        self.is_empty() || (len <= BLOCK_BYTES && self.records.len() <= usize::from(u16::MAX))
    }

    fn len(&self) -> usize {
        BLOCK_HEADER_BYTES + self.tags.len() * 3 + self.records.len()
    }

    /// Adds an entry behind all others.
    pub fn add(&mut self, key: &[u8], hash: u64, entry: &Entry<'_>) {
        let offset = u16::try_from(self.records.len()).expect("`fits` keeps records below 64 KiB");
        self.tags.push(hash_tag(hash));
        self.offsets.push(U16::new(offset));
        let header = RecordHeader {
            key_len: U16::new(u16::try_from(key.len()).expect("keys are at most 65535 bytes")),
            kind: entry.kind as u8,
            flags: if entry.expiry_ms == 0 { 0 } else { HAS_EXPIRY },
            value_len: u32::try_from(entry.value.len()).expect("values are below 4 GiB").into(),
            lsn: entry.lsn.0.into(),
        };
        self.records.extend_from_slice(header.as_bytes());
        if entry.expiry_ms != 0 {
            self.records.extend_from_slice(&entry.expiry_ms.to_le_bytes());
        }
        self.records.extend_from_slice(key);
        self.records.extend_from_slice(entry.value);
    }

    /// Appends the block, padded to pages and sealed for its place, to `out`, and empties the builder.
    /// Returns its length.
    pub fn finish(&mut self, file: FileId, offset: u64, out: &mut Vec<u8>) -> usize {
        let start = out.len();
        let header = BlockHeader {
            crc: 0.into(),
            codec: 0,
            zero: 0,
            count: U16::new(self.tags.len() as u16),
            records_len: (self.records.len() as u32).into(),
            zero2: 0.into(),
        };
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(&self.tags);
        out.extend_from_slice(self.offsets.as_bytes());
        out.extend_from_slice(&self.records);
        let len = page_align(out.len() - start);
        out.resize(start + len, 0);
        seal_part(file, offset, &mut out[start..]);
        self.tags.clear();
        self.offsets.clear();
        self.records.clear();
        len
    }
}

fn record_len(key: &[u8], entry: &Entry<'_>) -> usize {
    let expiry = if entry.expiry_ms == 0 { 0 } else { 8 };
    RECORD_HEADER_BYTES + expiry + key.len() + entry.value.len()
}

/// A verified block in memory.
pub struct Block {
    bytes: Box<[u8]>,
    count: usize,
    records: usize,
}

/// Why bytes are no block: what was expected, what was found.
pub type BlockError = (String, String);

impl Block {
    /// Verifies and takes the bytes of the block that belongs at `offset` of `file`. Every record is
    /// checked here, so that later accesses can't fail.
    pub fn parse(file: FileId, offset: u64, bytes: Box<[u8]>) -> Result<Block, BlockError> {
        let (stored, computed) = check_part(file, offset, &bytes);
        if stored != computed {
            return Err((format!("checksum {stored:08x}"), format!("{computed:08x}")));
        }
        let malformed = |what: &str| (what.to_owned(), "none of this version".to_owned());
        let (header, _) = BlockHeader::ref_from_prefix(&bytes).map_err(|_| malformed("a block header"))?;
        if header.codec != 0 {
            return Err(("codec 0".to_owned(), header.codec.to_string()));
        }
        let count = usize::from(header.count.get());
        let records = BLOCK_HEADER_BYTES + count * 3;
        if count == 0 || records + header.records_len.get() as usize > bytes.len() {
            return Err(malformed("records within the block"));
        }
        let block = Block { bytes, count, records };
        for record in 0..count {
            block.read(record).ok_or_else(|| malformed("a record"))?;
        }
        Ok(block)
    }

    /// Bytes it takes in memory.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.len() + size_of::<Block>()
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Never: a block holds at least one record.
    pub fn is_empty(&self) -> bool {
        false
    }

    fn read(&self, record: usize) -> Option<(&[u8], Entry<'_>)> {
        let at = BLOCK_HEADER_BYTES + self.count + record * 2;
        let offset = u16::from_le_bytes([*self.bytes.get(at)?, *self.bytes.get(at + 1)?]);
        let rest = self.bytes.get(self.records + usize::from(offset)..)?;
        let (header, rest) = RecordHeader::ref_from_prefix(rest).ok()?;
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

    /// The `record`-th record, from 0.
    ///
    /// # Panics
    /// Beyond the last.
    pub fn entry(&self, record: usize) -> (&[u8], Entry<'_>) {
        assert!(record < self.count, "record {record} of {}", self.count);
        self.read(record).expect("every record was read once in parse")
    }

    /// The newest version of `key` in here. Looks at one byte per record, then at the few that match.
    pub fn get(&self, hash: u64, key: &[u8]) -> Option<Entry<'_>> {
        let tags = &self.bytes[BLOCK_HEADER_BYTES..BLOCK_HEADER_BYTES + self.count];
        memchr::memchr_iter(hash_tag(hash), tags)
            .map(|record| self.entry(record))
            .find(|(found, _)| *found == key)
            .map(|(_, entry)| entry)
    }

    /// The first record whose key is not below `key`.
    pub fn lower_bound(&self, key: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = (low + high) / 2;
            if self.entry(middle).0 < key { low = middle + 1 } else { high = middle }
        }
        low
    }
}
