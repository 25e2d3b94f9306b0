//! Format of the write-ahead log, version 1. Integers are little-endian; places are page-aligned.
//!
//! A log is a row of segment files `wal/{log}-{segment}.wal`. A segment:
//!
//! ```text
//! page 0   segment header, rest of the page zero
//! page 1…  blocks, each whole pages, none crossing the segment's end; then anything
//!
//! segment header (72 bytes)             block header (80 bytes), then records, then zeros to the page
//!  0  8  magic "AKVWAL\0\1"              0  4  magic "AKVB"
//!  8  4  format version (1)              4  2  format version (1)
//! 12  4  page size (4096)                6  2  flags, 0
//! 16 16  cluster uuid                    8  8  log id
//! 32  8  log id                         16  8  segment number
//! 40  8  segment number                 24  8  block sequence number, dense from 1 in a log
//! 48  8  created, wall clock ms         32  8  durable_seq: all up to it were on disk when this was written
//! 56  8  nonce of the log               40  8  written, wall clock ms
//! 64  4  zero                           48  4  payload length: the records
//! 68  4  crc32c of bytes 0..68          52  4  record count
//!                                       56  4  header crc of the block before, 0 for the first
//!                                       60  4  crc32c of the payload
//!                                       64  8  nonce of the log
//!                                       72  4  zero
//!                                       76  4  crc32c of bytes 0..76
//!
//! record header (40 bytes), then TLV area, then body
//!  0  4  body length               12  4  operations in the body
//!  4  1  kind                      16  8  term
//!  5  1  flags: 1 skippable,       24  8  index
//!           2 has a TLV area       32  4  crc32c of TLV area and body
//!  6  2  length of the TLV area    36  4  crc32c of bytes 0..36
//!  8  4  tablet
//! ```
//!
//! The body of a data record is operations back to back (`base::op`). A record of an unknown kind is
//! skipped if its skippable bit is set; otherwise the file is of a newer version and refused. Indexes of entries
//! are 1 to 2^47, numbers of blocks 1 to 2^62: beyond is damage, whatever the checksum says, since no writer gets
//! there, and what goes on from what is read has to have room.
//!
//! How a reader tells blocks apart: a block belongs here if magic, log id, segment number, nonce and header
//! crc fit. The nonce is random and told to no client, so that no value can hold what looks like a block.
//! Where the segment header is damaged, the nonce is that of an earlier segment or of the first block, which
//! is never inside another. So what a recycled segment held before is *stale*, not a block. A block that fits
//! but whose payload crc doesn't, or a place where one should stand and does not, is *torn* inside the last
//! window of writes that may have been in flight, and *rot* anywhere else (`scan`).

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::base::{BlockSeq, EntryIndex, LogId, PAGE_SIZE, TabletId, crc32c};

/// Version of the format.
pub const VERSION: u32 = 1;
/// Bytes before the first block of a segment.
pub const SEGMENT_HEADER_BYTES: usize = PAGE_SIZE;
/// Bytes before the payload of a block.
pub const BLOCK_HEADER_BYTES: usize = size_of::<RawBlockHeader>();
/// Bytes before the body of a record.
pub const RECORD_HEADER_BYTES: usize = size_of::<RecordHeader>();
/// Tablet number of records that concern the log as a whole.
pub const NO_TABLET: TabletId = TabletId(u32::MAX);

/// Largest number of a block that is believed: no log gets near it, and what is counted on from it has room.
const SEQ_MAX: u64 = 1 << 62;

const SEGMENT_MAGIC: [u8; 8] = *b"AKVWAL\0\x01";
const BLOCK_MAGIC: [u8; 4] = *b"AKVB";
const SKIPPABLE: u8 = 1;
const HAS_TLV: u8 = 2;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawSegmentHeader {
    magic: [u8; 8],
    version: U32,
    page_size: U32,
    cluster: U128,
    log: U64,
    segment: U64,
    created_ms: U64,
    nonce: U64,
    zero: U32,
    crc: U32,
}

/// The header of a block as it stands on disk.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RawBlockHeader {
    magic: [u8; 4],
    version: U16,
    flags: U16,
    log: U64,
    segment: U64,
    seq: U64,
    durable_seq: U64,
    wall_ms: U64,
    payload_len: U32,
    record_count: U32,
    prev_crc: U32,
    payload_crc: U32,
    nonce: U64,
    zero: U32,
    crc: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct RecordHeader {
    body_len: U32,
    kind: u8,
    flags: u8,
    tlv_len: U16,
    tablet: U32,
    ops: U32,
    term: U64,
    index: U64,
    body_crc: U32,
    crc: U32,
}

const _: () = assert!(size_of::<RawSegmentHeader>() == 72);
const _: () = assert!(size_of::<RawBlockHeader>() == 80);
const _: () = assert!(size_of::<RecordHeader>() == 40);

/// What a record is. Only `Data` and `Seal` are written today; the others are reserved for replication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// Operations of one tablet.
    Data = 1,
    /// Membership of a tablet's group.
    Configuration = 2,
    /// Nothing; takes an index.
    NoOp = 3,
    /// Term, vote and commit of a tablet; the last one wins.
    HardState = 4,
    /// Entries up to an index are no longer needed.
    TruncatePrefix = 5,
    /// A tablet's contents came from a snapshot.
    SnapshotInstalled = 6,
    /// A tablet begins.
    TabletCreate = 7,
    /// A tablet ended.
    TabletTombstone = 8,
    /// The log was closed here, or has been idle since.
    Seal = 9,
}

impl RecordKind {
    fn from_u8(kind: u8) -> Option<RecordKind> {
        use RecordKind::*;
        [
            Data,
            Configuration,
            NoOp,
            HardState,
            TruncatePrefix,
            SnapshotInstalled,
            TabletCreate,
            TabletTombstone,
            Seal,
        ]
        .into_iter()
        .find(|k| *k as u8 == kind)
    }

    /// Whether it takes an index of its tablet's log.
    pub fn is_entry(self) -> bool {
        matches!(self, RecordKind::Data | RecordKind::Configuration | RecordKind::NoOp)
    }
}

/// A segment's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Of the whole store.
    pub cluster: u128,
    /// Log it belongs to.
    pub log: LogId,
    /// Its number in the log.
    pub segment: u64,
    /// When it was prepared.
    pub created_ms: u64,
    /// Of the log.
    pub nonce: u64,
}

impl SegmentHeader {
    /// Writes the header page.
    pub fn encode(&self, page: &mut [u8]) {
        let mut raw = RawSegmentHeader {
            magic: SEGMENT_MAGIC,
            version: U32::new(VERSION),
            page_size: U32::new(PAGE_SIZE as u32),
            cluster: U128::new(self.cluster),
            log: U64::new(self.log.0),
            segment: U64::new(self.segment),
            created_ms: U64::new(self.created_ms),
            nonce: U64::new(self.nonce),
            zero: U32::ZERO,
            crc: U32::ZERO,
        };
        raw.crc = U32::new(crc32c(&raw.as_bytes()[..68]));
        page[..72].copy_from_slice(raw.as_bytes());
        page[72..PAGE_SIZE].fill(0);
    }

    /// Reads a header page. `Ok(None)`: none stands here (fresh, torn or rotten: the blocks decide).
    /// `Err`: a whole header of a version that this build doesn't know.
    pub fn decode(page: &[u8]) -> Result<Option<SegmentHeader>, u32> {
        let Ok((raw, _)) = RawSegmentHeader::ref_from_prefix(page) else { return Ok(None) };
        if raw.magic != SEGMENT_MAGIC || raw.crc.get() != crc32c(&raw.as_bytes()[..68]) {
            return Ok(None);
        }
        if raw.version.get() != VERSION {
            return Err(raw.version.get());
        }
        Ok(Some(SegmentHeader {
            cluster: raw.cluster.get(),
            log: LogId(raw.log.get()),
            segment: raw.segment.get(),
            created_ms: raw.created_ms.get(),
            nonce: raw.nonce.get(),
        }))
    }
}

/// The facts of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockInfo {
    /// Log it belongs to.
    pub log: LogId,
    /// Segment it stands in.
    pub segment: u64,
    /// Of the log.
    pub nonce: u64,
    /// Its place in the log.
    pub seq: BlockSeq,
    /// What was known to be durable when it was written.
    pub durable_seq: BlockSeq,
    /// When it was written.
    pub wall_ms: u64,
    /// Bytes of records.
    pub payload_len: usize,
    /// Number of records.
    pub record_count: u32,
    /// Header crc of the block before.
    pub prev_crc: u32,
    /// Checksum of the payload.
    pub payload_crc: u32,
    /// Its own header crc.
    pub crc: u32,
}

impl BlockInfo {
    /// Bytes it takes in the segment.
    pub fn padded_len(&self) -> usize {
        crate::base::page_align(BLOCK_HEADER_BYTES + self.payload_len)
    }

    /// Writes the header in front of a payload, computing its crc, which is returned.
    pub fn encode(&self, out: &mut [u8]) -> u32 {
        let mut raw = RawBlockHeader {
            magic: BLOCK_MAGIC,
            version: U16::new(VERSION as u16),
            flags: U16::ZERO,
            log: U64::new(self.log.0),
            segment: U64::new(self.segment),
            seq: U64::new(self.seq.0),
            durable_seq: U64::new(self.durable_seq.0),
            wall_ms: U64::new(self.wall_ms),
            payload_len: U32::new(self.payload_len as u32),
            record_count: U32::new(self.record_count),
            prev_crc: U32::new(self.prev_crc),
            payload_crc: U32::new(self.payload_crc),
            nonce: U64::new(self.nonce),
            zero: U32::ZERO,
            crc: U32::ZERO,
        };
        let crc = crc32c(&raw.as_bytes()[..76]);
        raw.crc = U32::new(crc);
        out[..BLOCK_HEADER_BYTES].copy_from_slice(raw.as_bytes());
        crc
    }

    /// Whether `bytes` begin with a header of this segment that is damaged: of the four fields that name it all
    /// but one fit. Without the nonce a client's value could look so too: nothing is read because of it, it is told.
    pub fn was_here(bytes: &[u8], log: LogId, segment: u64, nonce: u64) -> bool {
        let Ok((raw, _)) = RawBlockHeader::ref_from_prefix(bytes) else { return false };
        let fits = [
            raw.magic == BLOCK_MAGIC,
            raw.log.get() == log.0,
            raw.segment.get() == segment,
            raw.nonce.get() == nonce,
        ];
        fits.into_iter().filter(|fits| *fits).count() >= 3
    }

    /// Reads the header at the start of `bytes`, if one of this version stands there.
    pub fn decode(bytes: &[u8]) -> Option<BlockInfo> {
        let (raw, _) = RawBlockHeader::ref_from_prefix(bytes).ok()?;
        if raw.magic != BLOCK_MAGIC
            || raw.crc.get() != crc32c(&raw.as_bytes()[..76])
            || u32::from(raw.version.get()) != VERSION
            || !(1..=SEQ_MAX).contains(&raw.seq.get())
        {
            return None;
        }
        Some(BlockInfo {
            log: LogId(raw.log.get()),
            segment: raw.segment.get(),
            nonce: raw.nonce.get(),
            seq: BlockSeq(raw.seq.get()),
            durable_seq: BlockSeq(raw.durable_seq.get()),
            wall_ms: raw.wall_ms.get(),
            payload_len: raw.payload_len.get() as usize,
            record_count: raw.record_count.get(),
            prev_crc: raw.prev_crc.get(),
            payload_crc: raw.payload_crc.get(),
            crc: raw.crc.get(),
        })
    }

    /// The payload behind the header at the start of `bytes`, if it is all there and its checksum fits.
    pub fn payload<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let payload = bytes.get(BLOCK_HEADER_BYTES..BLOCK_HEADER_BYTES + self.payload_len)?;
        (crc32c(payload) == self.payload_crc).then_some(payload)
    }
}

/// A record's identity: what is known of it even when its body is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordInfo {
    /// What it is; `None` for a kind that this version doesn't know and may skip.
    pub kind: Option<RecordKind>,
    /// Whose.
    pub tablet: TabletId,
    /// Term of the entry.
    pub term: u64,
    /// Index of the entry.
    pub index: EntryIndex,
    /// Operations in the body.
    pub ops: u32,
}

/// A record, borrowed from its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its identity.
    pub info: RecordInfo,
    /// Optional fields, uninterpreted.
    pub tlv: &'a [u8],
    /// Its contents.
    pub body: &'a [u8],
    contents: &'a [u8],
    body_crc: u32,
}

impl Record<'_> {
    /// Whether the contents fit their checksum: worth asking only where that of their block does not, or is not known.
    pub fn is_intact(&self) -> bool {
        crc32c(self.contents) == self.body_crc
    }
}

/// Why records can't be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// No record header stands at this byte of the payload.
    #[error("no record header at byte {0} of the block")]
    Damaged(usize),
    /// A kind from a newer version that must not be skipped.
    #[error("record kind {0} is of a newer version")]
    UnknownKind(u8),
}

/// Writes a record header (without TLV area) for `body`, and that, into `out`.
pub fn encode_record(kind: RecordKind, info: &RecordInfo, body: &[u8], out: &mut [u8]) {
    encode_record_header(kind, info, body.len(), crc32c(body), out);
    out[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + body.len()].copy_from_slice(body);
}

/// Writes a record header (without TLV area) for a body of this length and checksum into `out`.
pub fn encode_record_header(
    kind: RecordKind,
    info: &RecordInfo,
    body_len: usize,
    body_crc: u32,
    out: &mut [u8],
) {
    let mut raw = RecordHeader {
        body_len: U32::new(body_len as u32),
        kind: kind as u8,
        flags: 0,
        tlv_len: U16::ZERO,
        tablet: U32::new(info.tablet.0),
        ops: U32::new(info.ops),
        term: U64::new(info.term),
        index: U64::new(info.index.0),
        body_crc: U32::new(body_crc),
        crc: U32::ZERO,
    };
    raw.crc = U32::new(crc32c(&raw.as_bytes()[..36]));
    out[..RECORD_HEADER_BYTES].copy_from_slice(raw.as_bytes());
}

/// Reads records off a payload in order.
pub struct Records<'a> {
    payload: &'a [u8],
    at: usize,
}

impl<'a> Records<'a> {
    /// Over a payload, whole or damaged.
    pub fn new(payload: &'a [u8]) -> Records<'a> {
        Records { payload, at: 0 }
    }

    /// Bytes read so far.
    pub fn at(&self) -> usize {
        self.at
    }

    fn read(&mut self) -> Result<Record<'a>, RecordError> {
        let damaged = RecordError::Damaged(self.at);
        let (raw, rest) = RecordHeader::ref_from_prefix(&self.payload[self.at..]).map_err(|_| damaged)?;
        if raw.crc.get() != crc32c(&raw.as_bytes()[..36]) {
            return Err(damaged);
        }
        let tlv_len = if raw.flags & HAS_TLV != 0 { raw.tlv_len.get() as usize } else { 0 };
        let len = tlv_len + raw.body_len.get() as usize;
        let contents = rest.get(..len).ok_or(damaged)?;
        let kind = RecordKind::from_u8(raw.kind);
        if kind.is_none() && raw.flags & SKIPPABLE == 0 {
            return Err(RecordError::UnknownKind(raw.kind));
        }
        let is_numbered = (1..=EntryIndex::BELIEVED_MAX.0).contains(&raw.index.get());
        if kind.is_some_and(RecordKind::is_entry) && !is_numbered {
            return Err(damaged);
        }
        self.at += RECORD_HEADER_BYTES + len;
        Ok(Record {
            info: RecordInfo {
                kind,
                tablet: TabletId(raw.tablet.get()),
                term: raw.term.get(),
                index: EntryIndex(raw.index.get()),
                ops: raw.ops.get(),
            },
            tlv: &contents[..tlv_len],
            body: &contents[tlv_len..],
            contents,
            body_crc: raw.body_crc.get(),
        })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.payload.len() {
            return None;
        }
        let record = self.read();
        if record.is_err() {
            self.payload = &self.payload[..self.at];
        }
        Some(record)
    }
}

/// Path of a segment below the data directory.
pub fn segment_path(log: LogId, segment: u64) -> String {
    format!("wal/{log}-{segment:08}.wal")
}

/// Log and segment number of a file name, if it is one of a segment.
pub fn parse_segment_name(name: &str) -> Option<(LogId, u64)> {
    let (log, segment) = name.strip_suffix(".wal")?.split_once('-')?;
    let (log, segment) = (LogId(log.parse().ok()?), segment.parse().ok()?);
    // Only names that this code writes: a copy called `7-1.wal` would be read as the segment that it is a copy of,
    // once more, and what comes behind that be taken for a torn tail.
    segment_path(log, segment).strip_prefix("wal/").is_some_and(|own| own == name).then_some((log, segment))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw_record(kind: u8, flags: u8, tlv: &[u8], body: &[u8]) -> Vec<u8> {
        let contents = [tlv, body].concat();
        let mut raw = RecordHeader {
            body_len: U32::new(body.len() as u32),
            kind,
            flags,
            tlv_len: U16::new(tlv.len() as u16),
            tablet: U32::new(3),
            ops: U32::new(0),
            term: U64::new(1),
            index: U64::new(9),
            body_crc: U32::new(crc32c(&contents)),
            crc: U32::ZERO,
        };
        raw.crc = U32::new(crc32c(&raw.as_bytes()[..36]));
        [raw.as_bytes(), &contents].concat()
    }

    #[test]
    fn reserved_kinds_and_tlv_areas_decode() {
        for kind in 1..=9 {
            let bytes = raw_record(kind, HAS_TLV, b"tlv", b"body");
            let record = Records::new(&bytes).next().unwrap().unwrap();
            assert_eq!(record.info.kind.map(|k| k as u8), Some(kind));
            assert_eq!((record.tlv, record.body, record.is_intact()), (&b"tlv"[..], &b"body"[..], true));
        }
    }

    #[test]
    fn an_unknown_kind_is_skipped_only_if_it_may_be() {
        let bytes = [raw_record(77, SKIPPABLE, b"", b"x"), raw_record(3, 0, b"", b"")].concat();
        let kinds: Vec<_> = Records::new(&bytes).map(|r| r.unwrap().info.kind).collect();
        assert_eq!(kinds, [None, Some(RecordKind::NoOp)]);
        let bytes = raw_record(77, 0, b"", b"x");
        assert_eq!(Records::new(&bytes).next(), Some(Err(RecordError::UnknownKind(77))));
    }

    #[test]
    fn a_damaged_body_leaves_the_identity_readable() {
        let mut bytes = raw_record(1, 0, b"", b"body");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let record = Records::new(&bytes).next().unwrap().unwrap();
        assert!(!record.is_intact());
        assert_eq!(record.info.index, EntryIndex(9));
        bytes[8] ^= 1;
        assert_eq!(Records::new(&bytes).next(), Some(Err(RecordError::Damaged(0))));
    }

    #[test]
    fn segment_names_come_back() {
        let path = segment_path(LogId(12), 345);
        assert_eq!(parse_segment_name(path.strip_prefix("wal/").unwrap()), Some((LogId(12), 345)));
        for other in ["12-x.wal", "12-345.wal", "+0000012-00000345.wal", "00000012-00000345.wal.wal", "a"] {
            assert_eq!(parse_segment_name(other), None, "{other}");
        }
    }

    /// Found by `tests/fuzz`: what came next was computed, and a start ended in an overflow.
    #[test]
    fn numbers_that_no_writer_reaches_are_damage() {
        for (index, is_believed) in
            [(0, false), (1, true), (1 << 47, true), (1 << 48, false), (u64::MAX, false)]
        {
            let mut bytes = raw_record(1, 0, b"", b"body");
            bytes[24..32].copy_from_slice(&u64::to_le_bytes(index));
            let crc = crc32c(&bytes[..36]);
            bytes[36..40].copy_from_slice(&crc.to_le_bytes());
            let record = Records::new(&bytes).next().unwrap();
            assert_eq!(record.is_ok(), is_believed, "index {index}: {record:?}");
        }
        for (seq, is_believed) in [(0, false), (1, true), (1 << 62, true), (u64::MAX, false)] {
            let info = BlockInfo {
                log: LogId(7),
                segment: 1,
                nonce: 3,
                seq: BlockSeq(seq),
                durable_seq: BlockSeq(0),
                wall_ms: 9,
                payload_len: 0,
                record_count: 0,
                prev_crc: 0,
                payload_crc: 0,
                crc: 0,
            };
            let mut head = [0; BLOCK_HEADER_BYTES];
            info.encode(&mut head);
            assert_eq!(BlockInfo::decode(&head).is_some(), is_believed, "block {seq}");
        }
    }
}
