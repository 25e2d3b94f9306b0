//! Format of tables, version 1. Integers are little-endian; every part starts on a page.
//!
//! ```text
//! file     blocks, index, filter, footer (one page)
//!
//! block, whole pages: one where records are small, up to four where that would leave much of it empty,
//! more for one large record
//!  0  4  crc32c of bytes 4.. to the end of its last page, seeded with file id and offset
//!  4  1  codec: 0 none; others are of later versions
//!  5  1  zero
//!  6  2  number of records n
//!  8  4  bytes of records
//! 12  4  zero
//! 16  n  one byte of each record's key hash (bits 48 to 55)
//!     2n where each record starts, from the first
//!        records, then zeros
//!
//! record
//!  0  2  key length            8  8  LSN
//!  2  1  kind (1 put, 2 tombstone)
//!  3  1  flags: 1 = expiry     16 8  expiry, absolute ms (only with flag 1)
//!  4  4  value length             …  key, value
//!
//! index, sealed with a crc like a block's (bytes 0..4, over the rest of its pages)
//!  4  4  number of blocks n    8  8  bytes used, header included
//! 16  …  smallest key, then largest key: each u16 length, bytes
//!     …  n × (u32 pages of the block, u16 length, separator); the first block starts at 0, each of the
//!        others where the one before it ends, and the index where the last one ends
//!        separator: a short string, not below the block's last key and below the first key of the next
//!        block; that key itself where both are versions of one key, and the last key in the last block
//!
//! filter: split-block Bloom filter in the layout of Apache Parquet, 32-byte buckets, then zeros; its crc
//!        is in the footer, covers its pages to the end, and is seeded with file id and offset
//!
//! footer, the last page
//!  0  8  magic "AKVSST\0\1"   56  8  max LSN
//!  8  4  format version (1)   64  8  index offset      96  4  filter crc32c
//! 12  4  tablet               72  8  index bytes       100 2  first slot
//! 16  8  file id              80  8  filter offset     102 2  last slot
//! 24  8  entries              88  8  filter bytes      104 8  expiring bytes
//! 32  8  tombstones                                    112 64 expiry eighths: 8 × u64
//! 40  8  expiring                                      176 …  zero
//! 48  8  min LSN                                       4092 4 crc32c of bytes 0..4092
//! ```
//!
//! Expiring is the number of entries with an expiry time; expiring bytes, the part of the file's size that is
//! theirs by the bytes of their records. By the n-th eighth, absolute ms, n eighths of them are past: about,
//! except the last, which is the latest expiry. Ascending; all zero if there are none. Nothing but the choice
//! of merges depends on these.
//!
//! Entries stand in ascending order of keys, versions of one key in descending order of LSN; they may go on
//! in the next block. The index names the first block with a separator not below a key: the one with its
//! newest version. Bytes drawn as zero are zero. Magic, version and the checksum at the footer's end stay
//! where they are in every version, so that an older build can tell a newer table from a damaged one.
//!
//! A table is written once and synced before the manifest names it, so nothing in it is ever torn: what
//! fails its checksum is damage.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::base::{FileId, PAGE_SIZE, crc32c, crc32c_append};

/// Version of the format.
pub const VERSION: u32 = 1;
/// First bytes of the footer.
pub const MAGIC: [u8; 8] = *b"AKVSST\0\x01";
/// Size that blocks are filled to.
pub const BLOCK_BYTES: usize = PAGE_SIZE;
/// Size up to which a block grows if its last page would stay emptier than [`WASTE_SHARE`] of the block.
/// Records of 1 KiB waste 25 % of single pages and 12 % of pairs; a read of 16 KiB costs a disk hardly
/// more than one of 4.
pub const BLOCK_BYTES_GROWN: usize = 4 * PAGE_SIZE;
/// A block may leave one part in so many empty.
pub const WASTE_SHARE: usize = 8;
/// Bytes of a block before its tags.
pub const BLOCK_HEADER_BYTES: usize = size_of::<BlockHeader>();
/// Bytes of a record before expiry and key.
pub const RECORD_HEADER_BYTES: usize = size_of::<RecordHeader>();
/// Flag of a record with an expiry time.
pub const HAS_EXPIRY: u8 = 1;

/// Start of a block.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct BlockHeader {
    /// Of everything behind it.
    pub crc: U32,
    /// How the records are compressed.
    pub codec: u8,
    /// 0.
    pub zero: u8,
    /// Number of records.
    pub count: U16,
    /// Bytes of records.
    pub records_len: U32,
    /// 0.
    pub zero2: U32,
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
    pub index_offset: U64,
    pub index_bytes: U64,
    pub filter_offset: U64,
    pub filter_bytes: U64,
    pub filter_crc: U32,
    pub first_slot: U16,
    pub last_slot: U16,
    pub expiring_bytes: U64,
    pub expiry_eighths: [U64; 8],
    pub zero: [u8; 3916],
    pub crc: U32,
}

const _: () = assert!(size_of::<BlockHeader>() == 16);
const _: () = assert!(size_of::<RecordHeader>() == 16);
const _: () = assert!(size_of::<Footer>() == PAGE_SIZE);

/// Checksum of bytes, bound to where they stand.
pub fn placed_crc(file: FileId, offset: u64, bytes: &[u8]) -> u32 {
    let place = crc32c_append(crc32c(&file.0.to_le_bytes()), &offset.to_le_bytes());
    crc32c_append(place, bytes)
}

/// Checksum of a part, without its first four bytes, which are for it.
fn part_crc(file: FileId, offset: u64, part: &[u8]) -> u32 {
    placed_crc(file, offset, &part[4..])
}

/// Writes the checksum of a part into its first four bytes.
pub fn seal_part(file: FileId, offset: u64, part: &mut [u8]) {
    let crc = part_crc(file, offset, part);
    part[..4].copy_from_slice(&crc.to_le_bytes());
}

/// The checksum that a part (of four bytes or more) carries, and the one it has.
pub fn check_part(file: FileId, offset: u64, part: &[u8]) -> (u32, u32) {
    let mut stored = [0; 4];
    stored.copy_from_slice(&part[..4]);
    (u32::from_le_bytes(stored), part_crc(file, offset, part))
}

/// The byte of a key's hash that a block keeps.
#[inline]
pub fn hash_tag(hash: u64) -> u8 {
    (hash >> 48) as u8
}
