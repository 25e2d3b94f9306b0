//! One version of a key, as it lies in the arena.
//!
//! ```text
//! offset  bytes  field
//!      0      4  link. In a key's first record: place of the newest version, maybe of this record itself.
//!                In every later one: place of the version before it
//!      4      4  value length; bit 28: has its key, bit 29: a key's first record (those have it),
//!                bit 30: has an expiry time, bit 31: tombstone
//!      8      8  LSN
//!      …      8  expiry, milliseconds since the epoch (only with bit 30)
//!      …      2  key length (only with bit 28), then the key
//!      …         value
//! ```
//!
//! So a key that was written once is one piece of memory, and a lookup waits for one cache miss after
//! that of the index; 18 bytes beside key and value. Memory only, never on disk.

use super::arena::{Arena, Place};
use crate::base::{Entry, Lsn, OpKind, prefetch};

const HEADER: usize = 16;
const CACHE_LINE: usize = 64;
const WORD: usize = 8;
const KEYED: u32 = 1 << 28;
const FIRST: u32 = 1 << 29;
const EXPIRES: u32 = 1 << 30;
const TOMBSTONE: u32 = 1 << 31;
const VALUE_BYTES_MAX: usize = KEYED as usize - 1;

/// A version in the arena.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    bytes: &'a [u8],
}

/// Where a record goes: behind which version of its key.
#[derive(Clone, Copy)]
pub enum Link {
    /// None: it is the first. Whoever writes it sets its link to its own place.
    First,
    /// This one.
    Behind(Place),
}

/// Appends a version of `key`.
#[inline]
pub fn push(arena: &mut Arena, link: Link, key: &[u8], entry: &Entry<'_>) -> Place {
    let is_keyed = matches!(link, Link::First);
    let (header, len) = header(link, is_keyed, entry.kind, entry.lsn, entry.expiry_ms, entry.value.len());
    match link {
        Link::First => {
            let key_len = u16::try_from(key.len()).expect("key length checked by the caller").to_le_bytes();
            arena.push(&[&header[..len], &key_len, key, entry.value])
        }
        Link::Behind(_) => arena.push(&[&header[..len], entry.value]),
    }
}

/// Makes the record at `place` this version of its key, if it fits: whether it does. The version that was there is gone,
/// and with it what it had beyond the new one's length.
#[inline]
pub fn replace(arena: &mut Arena, place: Place, entry: &Entry<'_>) -> bool {
    let record = Record::at(arena, place);
    let meta = record.meta();
    let has_expiry = meta & EXPIRES != 0;
    let key_bytes = if meta & KEYED == 0 { 0 } else { size_of::<u16>() + record.key_and_rest().0.len() };
    let start = HEADER + if has_expiry { WORD } else { 0 } + key_bytes;
    let end = (start + (meta as usize & VALUE_BYTES_MAX)).next_multiple_of(WORD);
    if has_expiry != (entry.expiry_ms != 0) || start + entry.value.len() > end {
        return false;
    }
    let tombstone = if entry.kind == OpKind::Delete { TOMBSTONE } else { 0 };
    let meta = meta & (FIRST | KEYED | EXPIRES) | tombstone | entry.value.len() as u32;
    let bytes = arena.place_mut(place);
    bytes[4..8].copy_from_slice(&meta.to_le_bytes());
    bytes[8..16].copy_from_slice(&entry.lsn.0.to_le_bytes());
    if has_expiry {
        bytes[16..24].copy_from_slice(&entry.expiry_ms.to_le_bytes());
    }
    bytes[start..start + entry.value.len()].copy_from_slice(entry.value);
    true
}

/// Header and expiry, and how many bytes they are.
#[inline]
fn header(
    link: Link,
    is_keyed: bool,
    kind: OpKind,
    lsn: Lsn,
    expiry_ms: u64,
    value_len: usize,
) -> ([u8; HEADER + 8], usize) {
    assert!(value_len <= VALUE_BYTES_MAX, "value length checked by the caller");
    let (link, first) = match link {
        Link::First => (0, FIRST),
        Link::Behind(previous) => (previous.0, 0),
    };
    let keyed = if is_keyed { KEYED } else { 0 };
    let tombstone = if kind == OpKind::Delete { TOMBSTONE } else { 0 };
    let expires = if expiry_ms == 0 { 0 } else { EXPIRES };
    let meta = value_len as u32 | first | keyed | tombstone | expires;
    let mut header = [0; HEADER + 8];
    header[0..4].copy_from_slice(&link.to_le_bytes());
    header[4..8].copy_from_slice(&meta.to_le_bytes());
    header[8..16].copy_from_slice(&lsn.0.to_le_bytes());
    header[16..24].copy_from_slice(&expiry_ms.to_le_bytes());
    (header, if expires == 0 { HEADER } else { HEADER + 8 })
}

/// A record with a large value, which comes piece by piece before anything else of it is known but its key.
pub struct StagedRecord {
    /// Room for header and expiry, key length, key, and the value so far.
    bytes: Vec<u8>,
    whole: usize,
    value_len: usize,
}

impl StagedRecord {
    /// Of a value of `value_len` bytes, none of which is there yet.
    pub fn new(key: &[u8], value_len: usize) -> StagedRecord {
        let key_len = u16::try_from(key.len()).expect("key length checked by the caller").to_le_bytes();
        let whole = HEADER + 8 + key_len.len() + key.len() + value_len;
        let mut bytes = Vec::with_capacity(whole.next_multiple_of(WORD));
        bytes.resize(HEADER + 8, 0);
        bytes.extend_from_slice(&key_len);
        bytes.extend_from_slice(key);
        StagedRecord { bytes, whole, value_len }
    }

    /// Adds a piece of the value.
    pub fn push(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
        assert!(self.bytes.len() <= self.whole, "a value is as long as it was said to be");
    }

    /// Makes it a version of its key, a put.
    pub fn adopt(mut self, arena: &mut Arena, link: Link, lsn: Lsn, expiry_ms: u64) -> Place {
        assert_eq!(self.bytes.len(), self.whole, "the value is there");
        let (header, len) = header(link, true, OpKind::Put, lsn, expiry_ms, self.value_len);
        // Without an expiry it begins where that would be.
        let start = HEADER + 8 - len;
        self.bytes[start..start + len].copy_from_slice(&header[..len]);
        self.bytes.resize(self.whole.next_multiple_of(WORD), 0);
        arena.adopt(self.bytes, start)
    }
}

impl<'a> Record<'a> {
    /// The one at `place`.
    #[inline(always)]
    pub fn at(arena: &'a Arena, place: Place) -> Record<'a> {
        Record { bytes: arena.from(place) }
    }

    /// The header, with one bounds check. What follows is on the path of every lookup: the fewer
    /// instructions a lookup has, the more of them the processor overlaps while each waits for memory.
    #[inline(always)]
    fn header(self) -> &'a [u8; HEADER] {
        self.bytes.first_chunk().expect("every record starts with a header")
    }

    /// In a first record the newest version, in others the previous one.
    #[inline(always)]
    pub fn link(self) -> Place {
        let [a, b, c, d, ..] = *self.header();
        Place(u32::from_le_bytes([a, b, c, d]))
    }

    #[inline(always)]
    fn meta(self) -> u32 {
        let [_, _, _, _, a, b, c, d, ..] = *self.header();
        u32::from_le_bytes([a, b, c, d])
    }

    /// Its version.
    #[inline(always)]
    pub fn lsn(self) -> Lsn {
        let [.., a, b, c, d, e, f, g, h] = *self.header();
        Lsn(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }

    /// Whether this is its key's first record.
    #[inline(always)]
    pub fn is_first(self) -> bool {
        self.meta() & FIRST != 0
    }

    /// What follows header and expiry.
    #[inline(always)]
    fn body(self) -> &'a [u8] {
        const { assert!(EXPIRES >> 27 == 8, "the flag gives the length of the field without a branch") };
        &self.bytes[HEADER + ((self.meta() & EXPIRES) >> 27) as usize..]
    }

    /// The key of a record that has it, and what follows it.
    #[inline(always)]
    fn key_and_rest(self) -> (&'a [u8], &'a [u8]) {
        let (len, rest) = self.body().split_first_chunk().expect("a record with its key has its length");
        rest.split_at(usize::from(u16::from_le_bytes(*len)))
    }

    /// The key of a first record.
    #[inline(always)]
    pub fn key(self) -> &'a [u8] {
        debug_assert!(self.is_first(), "only a first record has the key");
        self.key_and_rest().0
    }

    /// LSN, kind, expiry and value.
    #[inline(always)]
    pub fn entry(self) -> Entry<'a> {
        let meta = self.meta();
        let rest = if meta & KEYED == 0 { self.body() } else { self.key_and_rest().1 };
        let expiry_ms = match self.bytes[HEADER..].first_chunk() {
            Some(expiry) if meta & EXPIRES != 0 => u64::from_le_bytes(*expiry),
            _ => 0,
        };
        Entry {
            lsn: self.lsn(),
            kind: if meta & TOMBSTONE == 0 { OpKind::Put } else { OpKind::Delete },
            expiry_ms,
            value: &rest[..meta as usize & VALUE_BYTES_MAX],
        }
    }

    /// Starts to fetch its first cache lines.
    #[inline(always)]
    pub fn prefetch(self) {
        prefetch(&self.bytes[0]);
        if let Some(second) = self.bytes.get(CACHE_LINE) {
            prefetch(second);
        }
    }
}
