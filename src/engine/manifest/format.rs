//! Format of the manifest, version 1. Integers are little-endian; blocks are whole pages.
//!
//! ```text
//! CURRENT (one page)                        manifest/{generation}-{shard}-{part}.manifest
//!  0  8  magic "AKVCUR\0\1"                 blocks back to back from byte 0, then zeros (space held
//!  8  4  format version (1)                 ready). The first block is a snapshot: store, logs,
//! 12  4  number of shards                   tablets, tables. The others are edits. Of the parts the
//! 16  8  generation                         highest counts; it was complete before it got its name.
//! 24  4  crc32c of bytes 0..24
//!
//! block header (56 bytes), then changes, then zeros to the page
//!  0  8  magic "AKVMAN\0\1"     32  4  payload length
//!  8  4  format version (1)     36  4  header crc of the block before, 0 for the first
//! 12  4  shard                  40  4  crc32c of the payload
//! 16  8  generation             44  8  zero
//! 24  4  part                   52  4  crc32c of bytes 0..52
//! 28  4  number of the block, from 1
//!
//! change: kind u8, flags u8 (1 = may be skipped if unknown), zero u16, length u32, body (see `edit`)
//! ```
//!
//! Torn, damaged, stale:
//! - One block is in flight at a time, and files are never recycled. So a bad block is *torn*, and cut, if
//!   no whole block of this file follows; it is *damage* if one does.
//! - Behind every edit stands a *seal*, an edit without changes, and the edit counts as committed when that
//!   is on disk as well. So an edit that was committed is never taken for a torn one.
//! - A whole block that is not the next one (another file's, another number, another chain) was put there
//!   by something else than a crash: damage.
//! - The first block was synced before anything named the file, so it is never torn.
//!
//! Every later version keeps the lengths of `CURRENT`'s fields and of the block header, their magic, their
//! version at byte 8, and their checksums: that is how an old build knows a new file from a damaged one.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::base::{PAGE_SIZE, crc32c};

/// Version of the format.
pub const VERSION: u32 = 1;
/// Highest feature level that this build reads, and that of a new store. A store keeps its own until it is told
/// to take a higher one, and nothing is written that its level does not have; so the build before reads it as
/// long as nobody has told it that. Level 1 is what the first release writes.
pub const FEATURE_LEVEL: u32 = 1;
/// Bytes before a block's payload.
pub const BLOCK_HEADER_BYTES: usize = size_of::<BlockHeader>();
/// Longest payload. Far beyond any snapshot that could be kept in memory, and its length fits the header
/// with the block rounded up.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 30;
/// Name of the file that names the generation.
pub const CURRENT: &str = "CURRENT";
/// Directory of the manifest files.
pub const DIR: &str = "manifest";

const CURRENT_MAGIC: [u8; 8] = *b"AKVCUR\0\x01";
const BLOCK_MAGIC: [u8; 8] = *b"AKVMAN\0\x01";

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawCurrent {
    magic: [u8; 8],
    version: U32,
    shards: U32,
    generation: U64,
    crc: U32,
}

/// Start of a block.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
pub struct BlockHeader {
    magic: [u8; 8],
    version: U32,
    /// Shard.
    pub shard: U32,
    /// Generation.
    pub generation: U64,
    /// Part.
    pub part: U32,
    /// Number in the file, from 1.
    pub seq: U32,
    /// Bytes of changes.
    pub payload_len: U32,
    /// Header crc of the block before.
    pub prev_crc: U32,
    payload_crc: U32,
    zero: [u8; 8],
    /// Its own crc.
    pub crc: U32,
}

const _: () = assert!(size_of::<RawCurrent>() == 28);
const _: () = assert!(size_of::<BlockHeader>() == 56);

/// What `CURRENT` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Current {
    /// The live generation.
    pub generation: u64,
    /// Its number of shards.
    pub shards: u32,
}

impl Current {
    /// Fills a page.
    pub fn encode(self, page: &mut [u8]) {
        let mut raw = RawCurrent {
            magic: CURRENT_MAGIC,
            version: VERSION.into(),
            shards: self.shards.into(),
            generation: self.generation.into(),
            crc: 0.into(),
        };
        raw.crc = crc32c(&raw.as_bytes()[..24]).into();
        page.fill(0);
        page[..28].copy_from_slice(raw.as_bytes());
    }

    /// Reads a page. `Err(Some(version))`: a later version; `Err(None)`: damaged.
    pub fn decode(page: &[u8]) -> Result<Current, Option<u32>> {
        let (raw, _) = RawCurrent::ref_from_prefix(page).map_err(|_| None)?;
        if raw.magic != CURRENT_MAGIC || raw.crc.get() != crc32c(&raw.as_bytes()[..24]) {
            return Err(None);
        }
        if raw.version.get() != VERSION {
            return Err(Some(raw.version.get()));
        }
        Ok(Current { generation: raw.generation.get(), shards: raw.shards.get() })
    }
}

/// Which file a block belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileKey {
    /// Generation.
    pub generation: u64,
    /// Shard.
    pub shard: u32,
    /// Part.
    pub part: u32,
}

impl FileKey {
    /// Path below the data directory.
    pub fn path(self) -> String {
        format!("{DIR}/{:08}-{:04}-{:04}.manifest", self.generation, self.shard, self.part)
    }

    /// From a file name.
    pub fn parse(name: &str) -> Option<FileKey> {
        let mut numbers = name.strip_suffix(".manifest")?.split('-');
        let key = FileKey {
            generation: numbers.next()?.parse().ok()?,
            shard: numbers.next()?.parse().ok()?,
            part: numbers.next()?.parse().ok()?,
        };
        // Only names that this code writes: `+1-2-3` parses too, but its path would be another file's.
        (key.path() == format!("{DIR}/{name}")).then_some(key)
    }
}

/// Writes a block's header and checksums around a payload that stands behind the header's place already.
/// Returns the header's crc.
///
/// # Panics
/// If the payload is longer than [`PAYLOAD_BYTES_MAX`], or than the block.
pub fn seal_block(key: FileKey, seq: u32, prev_crc: u32, payload_len: usize, block: &mut [u8]) -> u32 {
    assert!(payload_len <= PAYLOAD_BYTES_MAX, "the caller refuses longer payloads");
    let mut header = BlockHeader {
        magic: BLOCK_MAGIC,
        version: VERSION.into(),
        shard: key.shard.into(),
        generation: key.generation.into(),
        part: key.part.into(),
        seq: seq.into(),
        payload_len: (payload_len as u32).into(),
        prev_crc: prev_crc.into(),
        payload_crc: crc32c(&block[BLOCK_HEADER_BYTES..BLOCK_HEADER_BYTES + payload_len]).into(),
        zero: [0; 8],
        crc: 0.into(),
    };
    let crc = crc32c(&header.as_bytes()[..52]);
    header.crc = crc.into();
    block[..BLOCK_HEADER_BYTES].copy_from_slice(header.as_bytes());
    crc
}

/// What stands at a place where a block may.
pub enum Parsed<'a> {
    /// A whole block.
    Block(BlockHeader, &'a [u8]),
    /// A whole header, but not the payload that it promises; its checksum as computed, or `None` if the
    /// file ends before it does.
    Damaged(BlockHeader, Option<u32>),
    /// A whole header of a later version.
    Newer(u32),
    /// Nothing whole.
    Nothing,
}

/// Reads what stands at the start of `bytes`.
pub fn parse_block(bytes: &[u8]) -> Parsed<'_> {
    let Ok((header, rest)) = BlockHeader::ref_from_prefix(bytes) else { return Parsed::Nothing };
    if header.magic != BLOCK_MAGIC || header.crc.get() != crc32c(&header.as_bytes()[..52]) {
        return Parsed::Nothing;
    }
    if header.version.get() != VERSION {
        return Parsed::Newer(header.version.get());
    }
    match rest.get(..header.payload_len.get() as usize) {
        Some(payload) => match crc32c(payload) {
            crc if crc == header.payload_crc.get() => Parsed::Block(*header, payload),
            crc => Parsed::Damaged(*header, Some(crc)),
        },
        None => Parsed::Damaged(*header, None),
    }
}

impl BlockHeader {
    /// The file that it says it belongs to.
    pub fn key(&self) -> FileKey {
        FileKey { generation: self.generation.get(), shard: self.shard.get(), part: self.part.get() }
    }

    /// Checksum that the payload should have.
    pub fn payload_crc(&self) -> u32 {
        self.payload_crc.get()
    }
}

/// Bytes that a block with this payload takes.
pub fn block_len(payload_len: usize) -> usize {
    (BLOCK_HEADER_BYTES + payload_len).next_multiple_of(PAGE_SIZE)
}
