//! SCAN's request, page and cursor; drawn in the module above.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::encode::push_reply;
use super::header::{HEADER_BYTES, Status, WireHeader};
use crate::base::{KEY_BYTES_MAX, Lsn};
use crate::error::{Code, Refusal};
use crate::protocol::{Limits, OpCode, ScanEntry, ScanPage, ScanRequest};

const REVERSE: u8 = 1;
const KEYS_ONLY: u8 = 2;
const LOCAL: u8 = 4;

const END: u8 = 1;
const NEW_SNAPSHOT: u8 = 2;

const HAS_EXPIRY: u8 = 1;
const EXPIRY_BYTES: usize = 8;

/// Version of cursors.
const CURSOR_VERSION: u8 = 1;
/// Longest cursor.
pub const CURSOR_BYTES_MAX: usize = size_of::<WireCursor>() + KEY_BYTES_MAX;
/// Bytes that a page in the making keeps for its cursor, which is known last and stands first.
const CURSOR_ROOM: usize = size_of::<WireCursor>() + 32;
/// Where the entries of a reply in the making stand.
const ENTRIES_AT: usize = HEADER_BYTES + size_of::<WirePage>() + CURSOR_ROOM;
/// Bytes of a page besides its entries' keys and values and its cursor's key, with one entry.
pub const PAGE_OVERHEAD: usize = size_of::<WirePage>() + size_of::<WireEntry>() + EXPIRY_BYTES + CURSOR_ROOM;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct WireScan {
    pub flags: u8,
    pub reserved: [u8; 3],
    pub entries_max: U32,
    pub bytes_max: U32,
    pub start_len: U16,
    pub end_len: U16,
    pub cursor_len: U32,
    pub reserved2: U32,
    pub limit: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WirePage {
    flags: u8,
    reserved: [u8; 3],
    count: U32,
    entries_len: U32,
    cursor_len: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireEntry {
    key_len: U16,
    flags: u8,
    reserved: u8,
    value_len: U32,
    version: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireCursor {
    version: u8,
    reserved: u8,
    shard: U16,
    page: U32,
    session: U64,
}

const _: () = assert!(size_of::<WireScan>() == 32);
const _: () = assert!(size_of::<WirePage>() == 16);
const _: () = assert!(size_of::<WireEntry>() == 16);
const _: () = assert!(size_of::<WireCursor>() == 16);

/// What a cursor says. Clients send it back as it came; only a server looks inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor<'a> {
    /// The shard that has the session.
    pub shard: u16,
    /// The page that the session gives next.
    pub page: u32,
    /// The session; 0: none was kept.
    pub session: u64,
    /// The last key that was given or passed over; empty: none was.
    pub key: &'a [u8],
}

impl<'a> Cursor<'a> {
    /// Reads a cursor; `None` if it is none of this version.
    pub fn decode(bytes: &'a [u8]) -> Option<Cursor<'a>> {
        let (wire, key) = WireCursor::ref_from_prefix(bytes).ok()?;
        let is_sound = wire.version == CURSOR_VERSION && wire.reserved == 0 && key.len() <= KEY_BYTES_MAX;
        let (shard, page, session) = (wire.shard.get(), wire.page.get(), wire.session.get());
        is_sound.then_some(Cursor { shard, page, session, key })
    }

    /// Appends the cursor.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let wire = WireCursor {
            version: CURSOR_VERSION,
            reserved: 0,
            shard: U16::new(self.shard),
            page: U32::new(self.page),
            session: U64::new(self.session),
        };
        out.extend_from_slice(wire.as_bytes());
        out.extend_from_slice(self.key);
    }

    fn len(&self) -> usize {
        size_of::<WireCursor>() + self.key.len()
    }
}

/// Bytes of the value of a request.
pub(super) fn request_len(scan: &ScanRequest<'_>) -> usize {
    size_of::<WireScan>() + scan.start.len() + scan.end.len() + scan.cursor.map_or(0, |cursor| cursor.len())
}

/// Appends the value of a request.
pub(super) fn encode_request(out: &mut Vec<u8>, scan: &ScanRequest<'_>) {
    let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
    let bound_len =
        |key: &[u8]| U16::new(u16::try_from(key.len()).expect("key length checked by the caller"));
    let cursor_len = scan.cursor.map_or(0, |cursor| cursor.len());
    let wire = WireScan {
        flags: flag(scan.is_reverse, REVERSE)
            | flag(scan.is_keys_only, KEYS_ONLY)
            | flag(scan.is_local, LOCAL),
        reserved: [0; 3],
        entries_max: U32::new(scan.entries_max),
        bytes_max: U32::new(scan.bytes_max),
        start_len: bound_len(scan.start),
        end_len: bound_len(scan.end),
        cursor_len: U32::new(u32::try_from(cursor_len).expect("a cursor is a key and 16 bytes")),
        reserved2: U32::ZERO,
        limit: U64::new(scan.limit),
    };
    out.extend_from_slice(wire.as_bytes());
    out.extend_from_slice(scan.start);
    out.extend_from_slice(scan.end);
    if let Some(cursor) = scan.cursor {
        cursor.encode(out);
    }
}

/// Reads the value of a request.
pub(super) fn decode_request<'a>(value: &'a [u8], limits: &Limits) -> Result<ScanRequest<'a>, Refusal> {
    let malformed = |what: &'static str| Refusal::new(Code::Malformed, what);
    let (wire, rest) =
        WireScan::ref_from_prefix(value).map_err(|_| malformed("SCAN: the value has 32 bytes or more"))?;
    if wire.flags & !(REVERSE | KEYS_ONLY | LOCAL) != 0
        || wire.reserved != [0; 3]
        || wire.reserved2.get() != 0
    {
        return Err(Refusal::new(
            Code::InvalidOption,
            "SCAN: unknown flags, or reserved bytes that are not 0",
        ));
    }
    let cut = || {
        let (start, rest) = rest.split_at_checked(usize::from(wire.start_len.get()))?;
        let (end, cursor) = rest.split_at_checked(usize::from(wire.end_len.get()))?;
        (cursor.len() as u64 == u64::from(wire.cursor_len.get())).then_some((start, end, cursor))
    };
    let (start, end, cursor) =
        cut().ok_or_else(|| malformed("SCAN: start, end and cursor are not as long as said"))?;
    if start.len().max(end.len()) > limits.key_bytes_max as usize {
        let message = format!("SCAN: a bound is longer than a key can be, {} bytes", limits.key_bytes_max);
        return Err(Refusal::new(Code::InvalidKey, message));
    }
    let cursor = match cursor {
        [] => None,
        cursor => {
            Some(Cursor::decode(cursor).ok_or_else(|| malformed("SCAN: this is no cursor of this server"))?)
        }
    };
    Ok(ScanRequest {
        start,
        end,
        is_reverse: wire.flags & REVERSE != 0,
        is_keys_only: wire.flags & KEYS_ONLY != 0,
        is_local: wire.flags & LOCAL != 0,
        entries_max: wire.entries_max.get(),
        bytes_max: wire.bytes_max.get(),
        limit: wire.limit.get(),
        cursor,
    })
}

/// The first entry of `bytes` and what follows it.
fn split_entry(bytes: &[u8]) -> Option<(ScanEntry<'_>, &[u8])> {
    let (wire, rest) = WireEntry::ref_from_prefix(bytes).ok()?;
    let (expiry_ms, rest) = match wire.flags {
        0 => (0, rest),
        HAS_EXPIRY => {
            let (expiry, rest) = rest.split_first_chunk::<EXPIRY_BYTES>()?;
            (u64::from_le_bytes(*expiry), rest)
        }
        _ => return None,
    };
    let (key, rest) = rest.split_at_checked(usize::from(wire.key_len.get()))?;
    let (value, rest) = rest.split_at_checked(wire.value_len.get() as usize)?;
    let version = Lsn(wire.version.get());
    let is_sound = !key.is_empty() && version != Lsn::ZERO;
    is_sound.then_some((ScanEntry { key, version, expiry_ms, value }, rest))
}

/// The entries of a page: an iterator that may be copied and started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScanEntries<'a> {
    /// Entries that are left.
    count: usize,
    /// Their bytes; they parse.
    bytes: &'a [u8],
}

impl<'a> ScanEntries<'a> {
    /// Bytes of those that are left, as they stand on the wire.
    pub fn wire_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Entries whose bytes were checked before.
    ///
    /// # Panics
    /// When iterated, if they are others.
    pub fn of_checked(count: usize, bytes: &'a [u8]) -> ScanEntries<'a> {
        ScanEntries { count, bytes }
    }
}

impl<'a> Iterator for ScanEntries<'a> {
    type Item = ScanEntry<'a>;

    #[inline]
    fn next(&mut self) -> Option<ScanEntry<'a>> {
        self.count = self.count.checked_sub(1)?;
        let (entry, rest) = split_entry(self.bytes).expect("checked when the page was decoded");
        self.bytes = rest;
        Some(entry)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count, Some(self.count))
    }
}

impl ExactSizeIterator for ScanEntries<'_> {}

/// Reads a page.
pub(super) fn decode_page(body: &[u8]) -> Option<ScanPage<'_>> {
    let (head, rest) = split_cursor(body)?;
    let entries_len = head.entries_len.get() as usize;
    // What lies between the cursor and them means nothing.
    let entries = &rest[rest.len().checked_sub(entries_len)?..];
    let mut left = entries;
    for _ in 0..head.count.get() {
        (_, left) = split_entry(left)?;
    }
    if !left.is_empty() {
        return None;
    }
    Some(ScanPage {
        entries: ScanEntries { count: head.count.get() as usize, bytes: entries },
        cursor: head.cursor,
        is_new_snapshot: head.flags & NEW_SNAPSHOT != 0,
    })
}

/// The head of a page of which a part has arrived: how many entries it has, and its cursor. `None`: that
/// part is too short to tell, or the page is the last, or none at all.
pub fn page_ahead(part: &[u8]) -> Option<(u32, &[u8])> {
    let (head, _) = split_cursor(part)?;
    Some((head.count.get(), head.cursor?))
}

/// What stands before a page's entries.
struct PageHead<'a> {
    flags: u8,
    count: U32,
    entries_len: U32,
    cursor: Option<&'a [u8]>,
}

/// The head of a page, and what follows it.
fn split_cursor(body: &[u8]) -> Option<(PageHead<'_>, &[u8])> {
    let (wire, rest) = WirePage::ref_from_prefix(body).ok()?;
    let (cursor, rest) = rest.split_at_checked(wire.cursor_len.get() as usize)?;
    let is_end = wire.flags & END != 0;
    if is_end != cursor.is_empty() || cursor.len() > CURSOR_BYTES_MAX {
        return None;
    }
    let WirePage { flags, count, entries_len, .. } = *wire;
    Some((PageHead { flags, count, entries_len, cursor: (!is_end).then_some(cursor) }, rest))
}

/// A page as [`encode_reply`](super::encode_reply) takes it.
pub(super) fn encode_page(out: &mut Vec<u8>, request_id: u64, epoch: u64, page: &ScanPage<'_>) {
    let mut encoder = PageEncoder::new(request_id, epoch);
    encoder.push_raw(page.entries.len(), page.entries.wire_bytes());
    out.extend_from_slice(&encoder.finish(page.is_new_snapshot, page.cursor));
}

/// A page in the making: entries are copied once, from where they are kept into the reply.
pub struct PageEncoder {
    out: Vec<u8>,
    count: u32,
}

impl PageEncoder {
    /// Starts the reply.
    pub fn new(request_id: u64, epoch: u64) -> PageEncoder {
        let mut out = Vec::new();
        let value_len = size_of::<WirePage>() + CURSOR_ROOM;
        push_reply(&mut out, OpCode::Scan as u8, request_id, epoch, Status::Done, Lsn::ZERO, value_len);
        out.resize(ENTRIES_AT, 0);
        PageEncoder { out, count: 0 }
    }

    /// Makes room for a reply of so many bytes, at once instead of step by step.
    pub fn reserve(&mut self, bytes: usize) {
        self.out.reserve_exact(bytes.saturating_sub(self.out.len()));
    }

    /// Entries so far.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Bytes of entries so far.
    #[inline]
    pub fn entries_len(&self) -> usize {
        self.out.len() - ENTRIES_AT
    }

    /// The next entry.
    ///
    /// # Panics
    /// If the key is longer than a key can be, or the value 4 GiB long.
    #[inline]
    pub fn push(&mut self, entry: &ScanEntry<'_>) {
        let wire = WireEntry {
            key_len: U16::new(u16::try_from(entry.key.len()).expect("keys are at most 65535 bytes")),
            flags: if entry.expiry_ms == 0 { 0 } else { HAS_EXPIRY },
            reserved: 0,
            value_len: U32::new(u32::try_from(entry.value.len()).expect("values are below 4 GiB")),
            version: U64::new(entry.version.0),
        };
        self.out.extend_from_slice(wire.as_bytes());
        if entry.expiry_ms != 0 {
            self.out.extend_from_slice(&entry.expiry_ms.to_le_bytes());
        }
        self.out.extend_from_slice(entry.key);
        self.out.extend_from_slice(entry.value);
        self.count += 1;
    }

    /// Entries as they stand on the wire.
    pub fn push_raw(&mut self, count: usize, entries: &[u8]) {
        self.out.extend_from_slice(entries);
        self.count += u32::try_from(count).expect("a page holds fewer");
    }

    /// Completes the reply. Without a cursor it is the last.
    ///
    /// # Panics
    /// If the frame is 4 GiB long.
    pub fn finish(mut self, is_new_snapshot: bool, cursor: Option<&[u8]>) -> Vec<u8> {
        const CURSOR_AT: usize = HEADER_BYTES + size_of::<WirePage>();
        let len = |len: usize| U32::new(u32::try_from(len).expect("pages are far below 4 GiB"));
        let wire = WirePage {
            flags: if cursor.is_none() { END } else { 0 } | if is_new_snapshot { NEW_SNAPSHOT } else { 0 },
            reserved: [0; 3],
            count: U32::new(self.count),
            entries_len: len(self.entries_len()),
            cursor_len: len(cursor.map_or(0, <[u8]>::len)),
        };
        self.out[HEADER_BYTES..CURSOR_AT].copy_from_slice(wire.as_bytes());
        let cursor = cursor.unwrap_or_default();
        let room = cursor.len().min(CURSOR_ROOM);
        self.out[CURSOR_AT..CURSOR_AT + room].copy_from_slice(&cursor[..room]);
        // Of a long key: seldom, and the entries are moved for it.
        if cursor.len() > room {
            self.out.splice(ENTRIES_AT..ENTRIES_AT, cursor[room..].iter().copied());
        }
        let value_len = len(self.out.len() - HEADER_BYTES);
        let len_at = std::mem::offset_of!(WireHeader, value_len);
        self.out[len_at..len_at + 4].copy_from_slice(value_len.as_bytes());
        self.out
    }
}

/// Bytes that an entry takes in a page.
pub fn entry_len(key: &[u8], value_len: usize, expiry_ms: u64) -> usize {
    size_of::<WireEntry>() + if expiry_ms == 0 { 0 } else { EXPIRY_BYTES } + key.len() + value_len
}
