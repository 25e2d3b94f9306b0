//! Format of tables, version 2. Integers are little-endian; every part starts on a page and fills whole pages.
//!
//! ```text
//! file     blocks, with runs of partitions between and behind them; top of the index; footer (one page)
//!
//! block: one page where records are small, up to four where that would leave much of it empty, more for one
//! large record
//!  0  4  crc32c of bytes 4.. to the end of its last page, seeded with file id and offset
//!  4  1  codec of the payload: 0 none, 1 LZ4 block, 2 zstd frame
//!  5  1  zero
//!  6  2  number of records n
//!  8  4  bytes of the payload, decompressed
//! 12  4  bytes of the payload, as it stands here
//! 16  …  payload, then zeros
//!
//! payload
//!     n  one byte of each record's key hash (bits 48 to 55)
//!     2n where each record starts, from the first
//!        records
//!
//! record
//!  0  2  key length            8  8  LSN
//!  2  1  kind (1 put, 2 tombstone)
//!  3  1  flags: 1 = expiry     16 8  expiry, absolute ms (only with flag 1)
//!  4  4  value length             …  key, value
//!
//! partition: index and filter of consecutive blocks, all of which stand before it in the file. One page,
//! more only for a single block that needs as much
//!  0  4  crc32c, as of a block
//!  4  1  0x50 'P'
//!  5  3  zero
//!  8  4  number of blocks n
//! 12  4  bytes of separators
//! 16  4  lines of the filter f
//! 20  12 zero
//! 32  4n page on which each block starts
//!     2n pages of each block
//!     2n where each separator ends, from the first one's start
//!        separators: a short string, not below the block's last key and below the first key of the next
//!        block; that key itself where both are versions of one key, and the last key in the last block
//!        zeros up to a multiple of 64
//!     64f split-block Bloom filter in the layout of Apache Parquet (two buckets a line) over the hashes of
//!        all keys of these blocks, then zeros
//!
//! top of the index
//!  0  4  crc32c, as of a block
//!  4  1  0x54 'T'
//!  5  3  zero
//!  8  4  number of partitions n
//! 12  4  zero
//! 16  8  bytes used, header included
//! 24  8  zero
//! 32  …  smallest key, then largest key: each u16 length, bytes
//!     …  n × (u32 page, u16 pages, u16 length, separator of its last block)
//!
//! footer, the last page
//!  0  8  magic "AKVSST\0\1"     56  8  max LSN               120 8  bytes of blocks, as they stand here
//!  8  4  format version (2)     64  8  offset of the top     128 8  expiring bytes
//! 12  4  tablet                 72  8  bytes of the top      136 64 expiry eighths: 8 × u64
//! 16  8  file id                80  8  partitions            200 2  first slot
//! 24  8  entries                88  8  bytes of partitions   202 2  last slot
//! 32  8  tombstones             96  8  blocks                204 1  written for: 0 upper levels, 1 last
//! 40  8  expiring              104  8  of those, codec 0     205 1  codec that it was written with
//! 48  8  min LSN               112  8  bytes of payloads,    206 1  filter bits a key
//!                                      decompressed          207 …  zero
//!                                                           4092 4  crc32c of bytes 0..4092
//! ```
//!
//! A block is stored as it is where its table's codec does not save a page and an eighth of it, and above
//! [`COMPRESSED_BYTES_MAX`], so the codec is a block's own. A payload is decompressed into exactly the bytes
//! that the header says, which are at most [`COMPRESSED_BYTES_MAX`]; anything else is damage.
//!
//! Expiring is the number of entries with an expiry time; expiring bytes, the part of the file's size that is
//! theirs by the bytes of their records. By the n-th eighth, absolute ms, n eighths of them are past: about,
//! except the last, which is the latest expiry. Ascending; all zero if there are none. Nothing but the choice
//! of merges depends on these.
//!
//! Entries stand in ascending order of keys, versions of one key in descending order of LSN; they may go on
//! in the next block, and in the next partition. Top and partition each name the first place with a separator
//! not below a key: where its newest version is, if there is one. Bytes drawn as zero are zero. Magic, version
//! and the checksum at the footer's end stay where they are in every version, so that any build can tell a
//! table of another version from a damaged one.
//!
//! A table is written once and synced before the manifest names it, so nothing in it is ever torn: what
//! fails its checksum is damage.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::base::{
    Bug, FileId, KEY_BYTES_MAX, PAGE_SIZE, VALUE_BYTES_LIMIT, crc32c, crc32c_append, page_align, planted,
};

/// Version of the format.
pub const VERSION: u32 = 2;
/// First bytes of the footer.
pub const MAGIC: [u8; 8] = *b"AKVSST\0\x01";
/// Size that blocks, and partitions, are filled to.
pub const BLOCK_BYTES: usize = PAGE_SIZE;
/// Size up to which a block grows if its last page would stay emptier than [`WASTE_SHARE`] of the block.
/// Records of 1 KiB waste 25 % of single pages and 12 % of pairs; a read of 16 KiB costs a disk hardly
/// more than one of 4.
pub const BLOCK_BYTES_GROWN: usize = 4 * PAGE_SIZE;
/// A block may leave one part in so many empty; and compression must save as much.
pub const WASTE_SHARE: usize = 8;
/// Payloads above this are not compressed: nothing else runs on the core while one is, nor while one is read.
/// Blocks of small records end far below.
pub const COMPRESSED_BYTES_MAX: usize = 128 << 10;
/// Records of a block start below this, because offsets have 16 bits.
pub const RECORD_STARTS: usize = 1 << 16;
/// Largest block: records up to the last place where one may start, then the largest record.
pub const BLOCK_BYTES_LIMIT: usize = page_align(
    BLOCK_HEADER_BYTES
        + RECORD_STARTS / RECORD_HEADER_BYTES * 3
        + RECORD_STARTS
        + RECORD_HEADER_BYTES
        + 8
        + KEY_BYTES_MAX
        + VALUE_BYTES_LIMIT,
);
/// Bytes of a block before its payload.
pub const BLOCK_HEADER_BYTES: usize = size_of::<BlockHeader>();
/// Bytes of a record before expiry and key.
pub const RECORD_HEADER_BYTES: usize = size_of::<RecordHeader>();
/// Bytes of a partition before its arrays.
pub const PARTITION_HEADER_BYTES: usize = size_of::<PartitionHeader>();
/// Bytes of the top of the index before the key bounds.
pub const TOP_HEADER_BYTES: usize = size_of::<TopHeader>();
/// A line of a filter, and what it is aligned to.
pub const LINE_BYTES: usize = 64;
/// Flag of a record with an expiry time.
pub const HAS_EXPIRY: u8 = 1;
/// Marks a partition.
pub const PARTITION_KIND: u8 = b'P';
/// Marks the top of the index.
pub const TOP_KIND: u8 = b'T';

/// Start of a block.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct BlockHeader {
    /// Of everything behind it.
    pub crc: U32,
    /// How the payload is compressed.
    pub codec: u8,
    /// 0.
    pub zero: u8,
    /// Number of records.
    pub count: U16,
    /// Bytes of the payload, decompressed.
    pub raw_len: U32,
    /// Bytes of the payload in the file.
    pub stored_len: U32,
}

/// Start of a record.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct RecordHeader {
    /// Key length.
    pub key_len: U16,
    /// Put or tombstone.
    pub kind: u8,
    /// [`HAS_EXPIRY`].
    pub flags: u8,
    /// Value length.
    pub value_len: U32,
    /// Version.
    pub lsn: U64,
}

/// Start of a partition.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct PartitionHeader {
    /// Of everything behind it.
    pub crc: U32,
    /// [`PARTITION_KIND`].
    pub kind: u8,
    /// 0.
    pub zero: [u8; 3],
    /// Number of blocks.
    pub count: U32,
    /// Bytes of separators.
    pub separators_len: U32,
    /// Lines of the filter.
    pub filter_lines: U32,
    /// 0.
    pub zero2: [u8; 12],
}

/// Start of the top of the index.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct TopHeader {
    /// Of everything behind it.
    pub crc: U32,
    /// [`TOP_KIND`].
    pub kind: u8,
    /// 0.
    pub zero: [u8; 3],
    /// Number of partitions.
    pub count: U32,
    /// 0.
    pub zero2: U32,
    /// Bytes used, header included.
    pub used: U64,
    /// 0.
    pub zero3: U64,
}

/// The footer page.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
#[allow(missing_docs)] // drawn above
pub struct Footer {
    pub magic: [u8; 8],
    pub version: U32,
    pub tablet: U32,
    pub file: U64,
    pub entries: U64,
    pub tombstones: U64,
    pub expiring: U64,
    pub min_lsn: U64,
    pub max_lsn: U64,
    pub top_offset: U64,
    pub top_bytes: U64,
    pub partitions: U64,
    pub partition_bytes: U64,
    pub blocks: U64,
    pub plain_blocks: U64,
    pub raw_bytes: U64,
    pub stored_bytes: U64,
    pub expiring_bytes: U64,
    pub expiry_eighths: [U64; 8],
    pub first_slot: U16,
    pub last_slot: U16,
    pub is_last: u8,
    pub codec: u8,
    pub bits_per_key: u8,
    pub zero: [u8; 3885],
    pub crc: U32,
}

const _: () = assert!(size_of::<BlockHeader>() == 16);
const _: () = assert!(size_of::<RecordHeader>() == 16);
const _: () = assert!(size_of::<PartitionHeader>() == 32);
const _: () = assert!(size_of::<TopHeader>() == 32);
const _: () = assert!(size_of::<Footer>() == PAGE_SIZE);
const _: () = assert!(std::mem::offset_of!(Footer, stored_bytes) == 120);
const _: () = assert!(std::mem::offset_of!(Footer, first_slot) == 200);
const _: () = assert!(BLOCK_BYTES_LIMIT / PAGE_SIZE <= u16::MAX as usize, "a block's pages are a u16");

/// Checksum of a part, without its first four bytes, which are for it; bound to where it stands.
fn part_crc(file: FileId, offset: u64, part: &[u8]) -> u32 {
    crc32c_append(place_crc(file, offset), &part[4..])
}

/// What the checksum of a part goes on from, with all behind its first four bytes.
pub fn place_crc(file: FileId, offset: u64) -> u32 {
    crc32c_append(crc32c(&file.0.to_le_bytes()), &offset.to_le_bytes())
}

/// Writes the checksum of a part into its first four bytes.
pub fn seal_part(file: FileId, offset: u64, part: &mut [u8]) {
    let crc = part_crc(file, offset, part);
    part[..4].copy_from_slice(&crc.to_le_bytes());
}

/// Why bytes are not the part they should be: what was expected, what was found.
pub type PartError = (String, String);

/// Checks that a part is of whole pages and fits its checksum.
pub fn check_part(file: FileId, offset: u64, part: &[u8]) -> Result<(), PartError> {
    if part.is_empty() || !part.len().is_multiple_of(PAGE_SIZE) {
        return Err(("whole pages".to_owned(), format!("{} bytes", part.len())));
    }
    let mut stored = [0; 4];
    stored.copy_from_slice(&part[..4]);
    let (stored, computed) = (u32::from_le_bytes(stored), part_crc(file, offset, part));
    if stored == computed || planted(Bug::ChecksumIgnored) {
        return Ok(());
    }
    Err((format!("checksum {stored:08x}"), format!("{computed:08x}")))
}

/// Something that no writer of this version writes, whatever its checksum says.
pub fn malformed(what: &str) -> PartError {
    (what.to_owned(), "none of this version".to_owned())
}

/// The byte of a key's hash that a block keeps.
#[inline]
pub fn hash_tag(hash: u64) -> u8 {
    (hash >> 48) as u8
}
