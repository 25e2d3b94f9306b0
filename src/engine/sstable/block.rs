//! One block: built from entries, or parsed and searched.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, IntoBytes};

use super::format::{
    BLOCK_BYTES, BLOCK_BYTES_GROWN, BLOCK_HEADER_BYTES, BlockHeader, HAS_EXPIRY, RECORD_HEADER_BYTES,
    RecordHeader, WASTE_SHARE, check_part, hash_tag, seal_part,
};
use crate::base::{Entry, FileId, Lsn, OpKind, PAGE_SIZE, page_align};

/// Buffers of a builder above this are given back after a large value.
const KEPT_BYTES: usize = 64 << 10;

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

    /// Whether another entry belongs in here. The first always does, however large; others if they fit the
    /// pages that the block has anyway, or if those would stay too empty without them.
    pub fn fits(&self, key: &[u8], entry: &Entry<'_>) -> bool {
        if self.is_empty() {
            return true;
        }
        // Offsets are of 16 bits.
        if self.records.len() > usize::from(u16::MAX) {
            return false;
        }
        let pages = page_align(self.len()).max(BLOCK_BYTES);
        let len = self.len() + record_len(key, entry) + 3;
        let is_wasteful = (pages - self.len()) * WASTE_SHARE > pages;
        len <= pages || (is_wasteful && len <= BLOCK_BYTES_GROWN)
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
            count: U16::new(u16::try_from(self.tags.len()).expect("records of 17 bytes below 64 KiB")),
            records_len: u32::try_from(self.records.len()).expect("values are far below 4 GiB").into(),
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
        self.records.shrink_to(KEPT_BYTES);
        len
    }
}

/// Bytes that an entry takes in a block.
pub(super) fn record_len(key: &[u8], entry: &Entry<'_>) -> usize {
    let expiry = if entry.expiry_ms == 0 { 0 } else { 8 };
    RECORD_HEADER_BYTES + expiry + key.len() + entry.value.len()
}

/// Length of the block that starts with this header.
fn stored_len(header: &BlockHeader) -> usize {
    page_align(BLOCK_HEADER_BYTES + usize::from(header.count.get()) * 3 + header.records_len.get() as usize)
}

/// Length of the block that `bytes` seem to start with, if they hold as much. A guess until it is parsed:
/// for tools that have no index to go by.
pub(super) fn guess_len(bytes: &[u8]) -> Option<usize> {
    let (header, _) = BlockHeader::ref_from_prefix(bytes).ok()?;
    let len = stored_len(header);
    (header.count.get() > 0 && len <= bytes.len()).then_some(len)
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
        if bytes.is_empty() || !bytes.len().is_multiple_of(PAGE_SIZE) {
            return Err(("whole pages".to_owned(), format!("{} bytes", bytes.len())));
        }
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
        if count == 0 || stored_len(header) != bytes.len() {
            return Err(malformed("records that fill the block"));
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

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;

    fn put(lsn: u64, value: &[u8]) -> Entry<'_> {
        Entry { lsn: Lsn(lsn), kind: OpKind::Put, expiry_ms: 0, value }
    }

    /// Pages of the block, and the share of them that is used, when filled with values of one size.
    fn fill(value_len: usize) -> (usize, f64) {
        let (mut builder, value) = (BlockBuilder::default(), vec![7; value_len]);
        for n in 0..10_000u32 {
            let key = n.to_be_bytes();
            if !builder.fits(&key, &put(1, &value)) {
                break;
            }
            builder.add(&key, xxh3_64(&key), &put(1, &value));
        }
        let (used, mut out) = (builder.len(), Vec::new());
        let len = builder.finish(FileId(1), 0, &mut out);
        (len / PAGE_SIZE, used as f64 / len as f64)
    }

    #[test]
    fn blocks_are_single_pages_unless_those_would_stay_empty() {
        for (value_len, pages_max, used_min) in [
            (8, 1, 0.98),
            (100, 1, 0.96),
            (400, 1, 0.87),
            (1000, 3, 0.87),
            (2100, 4, 0.87),
            (5000, 4, 0.87),
            (100_000, 25, 0.97),
        ] {
            let (pages, used) = fill(value_len);
            assert!(pages <= pages_max, "{value_len}: {pages} pages");
            assert!(used >= used_min, "{value_len}: {used} used");
        }
    }

    #[test]
    fn the_longest_keys_and_values_come_back() {
        for (key_len, value_len) in [(65_535, 0), (1, 32 << 20), (65_535, 32 << 20)] {
            let (key, value) = (vec![b'k'; key_len], vec![b'v'; value_len]);
            let mut builder = BlockBuilder::default();
            builder.add(b"a", xxh3_64(b"a"), &put(1, b"small"));
            builder.add(&key, xxh3_64(&key), &Entry { expiry_ms: 9, ..put(2, &value) });
            let mut out = Vec::new();
            builder.finish(FileId(1), 8192, &mut out);
            assert_eq!(guess_len(&out), Some(out.len()));
            let block = Block::parse(FileId(1), 8192, out.into()).unwrap();
            let entry = block.get(xxh3_64(&key), &key).unwrap();
            assert_eq!((entry.lsn, entry.expiry_ms), (Lsn(2), 9));
            assert!(entry.value == value);
        }
    }

    #[test]
    fn the_newest_version_is_found_and_equal_tags_are_told_apart() {
        let mut builder = BlockBuilder::default();
        for lsn in (1..=5).rev() {
            builder.add(b"a", 0, &put(lsn, b"a"));
        }
        builder.add(b"b", 0, &put(9, b"b"));
        let mut out = Vec::new();
        builder.finish(FileId(1), 0, &mut out);
        let block = Block::parse(FileId(1), 0, out.into()).unwrap();
        assert_eq!(block.get(0, b"a"), Some(put(5, b"a")));
        assert_eq!(block.get(0, b"b"), Some(put(9, b"b")));
        assert_eq!(block.get(0, b"c"), None);
        assert_eq!((block.lower_bound(b"a"), block.lower_bound(b"aa"), block.lower_bound(b"c")), (0, 5, 6));
    }

    #[test]
    fn bytes_that_only_look_like_a_block_are_refused() {
        let mut rng = fastrand::Rng::with_seed(17);
        let mut builder = BlockBuilder::default();
        for n in 0..30u32 {
            builder.add(&n.to_be_bytes(), u64::from(n), &put(1, &[1; 100]));
        }
        let mut whole = Vec::new();
        builder.finish(FileId(1), 0, &mut whole);
        assert!(Block::parse(FileId(1), 0, Box::default()).is_err());
        assert!(Block::parse(FileId(1), 4096, whole.clone().into()).is_err(), "another place");
        assert!(Block::parse(FileId(2), 0, whole.clone().into()).is_err(), "another file");
        // Forged: damaged, and sealed again. Refused or readable, but never a panic.
        for _ in 0..5000 {
            let mut bytes = whole.clone();
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..bytes.len().min(400));
                bytes[at] = rng.u8(..);
            }
            seal_part(FileId(1), 0, &mut bytes);
            if let Ok(block) = Block::parse(FileId(1), 0, bytes.into()) {
                let _ = block.get(3, b"key");
                let _ = block.lower_bound(b"key");
            }
        }
    }
}
