//! One version of a key, as it lies in the arena.
//!
//! ```text
//! offset  bytes  field
//!      0      4  link. In a key's first record: place of the newest version, maybe of this record itself.
//!                In every later one: place of the version before it
//!      4      4  value length; bit 29: a key's first record, bit 30: has an expiry time, bit 31: tombstone
//!      8      8  LSN
//!      …      8  expiry, milliseconds since the epoch (only with bit 30)
//!      …      2  key length (only in a first record), then the key
//!      …         value
//! ```
//!
//! So a key that was written once is one piece of memory, and a lookup waits for one cache miss after
//! that of the index; 18 bytes beside key and value. Memory only, never on disk.

use super::arena::{Arena, Place};
use crate::base::{Entry, Lsn, OpKind, prefetch};

const HEADER: usize = 16;
const CACHE_LINE: usize = 64;
const FIRST: u32 = 1 << 29;
const EXPIRES: u32 = 1 << 30;
const TOMBSTONE: u32 = 1 << 31;
const VALUE_BYTES_MAX: usize = FIRST as usize - 1;

/// A version in the arena.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    bytes: &'a [u8],
}

/// Appends the first version of `key`. The record's link is its own place.
pub fn push_first(arena: &mut Arena, key: &[u8], entry: &Entry<'_>) -> Place {
    let key_len = u16::try_from(key.len()).expect("key length checked by the caller").to_le_bytes();
    let place = push(arena, 0, FIRST, &[&key_len, key], entry);
    arena.set_u32(place, place.0);
    place
}

/// Appends a version of the key whose first record is `first`, and makes it the newest.
pub fn push_next(arena: &mut Arena, first: Place, previous: Place, entry: &Entry<'_>) {
    let place = push(arena, previous.0, 0, &[&[], &[]], entry);
    arena.set_u32(first, place.0);
}

#[inline]
fn push(arena: &mut Arena, link: u32, flags: u32, key: &[&[u8]; 2], entry: &Entry<'_>) -> Place {
    assert!(entry.value.len() <= VALUE_BYTES_MAX, "value length checked by the caller");
    let tombstone = if entry.kind == OpKind::Delete { TOMBSTONE } else { 0 };
    let expires = if entry.expiry_ms == 0 { 0 } else { EXPIRES };
    let mut header = [0; HEADER + 8];
    header[0..4].copy_from_slice(&link.to_le_bytes());
    header[4..8].copy_from_slice(&(entry.value.len() as u32 | flags | tombstone | expires).to_le_bytes());
    header[8..16].copy_from_slice(&entry.lsn.0.to_le_bytes());
    header[16..24].copy_from_slice(&entry.expiry_ms.to_le_bytes());
    let header = &header[..if expires == 0 { HEADER } else { HEADER + 8 }];
    arena.push(&[header, key[0], key[1], entry.value])
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

    /// The key of a first record, and what follows it.
    #[inline(always)]
    fn key_and_rest(self) -> (&'a [u8], &'a [u8]) {
        let (len, rest) = self.body().split_first_chunk().expect("a first record has a key length");
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
        let rest = if meta & FIRST == 0 { self.body() } else { self.key_and_rest().1 };
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
