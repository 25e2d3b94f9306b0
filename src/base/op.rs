//! The physical operation: what the log holds and what a replay applies. Conditions and relative times
//! were evaluated by the owner before the operation was made; nothing is evaluated again.
//!
//! ```text
//! offset  bytes  field
//!      0      1  kind: 1 put, 2 delete, 3 range delete
//!      1      1  flags: bit 0 = an expiry time follows the header; other bits must be 0
//!      2      2  key length, 1..=65535, little-endian; 0 as well for a range delete
//!      4      4  value length, little-endian; 0 for a delete
//!      8      8  expiry, absolute milliseconds since the epoch (only with flag bit 0)
//!      …         key, then value
//! ```
//!
//! A range delete removes the keys of its entry's tablet from its key on (empty: from the first one) to before
//! its value (empty: to the last one), and has no expiry. An empty range is refused.
//!
//! Operations stand back to back in the body of a data entry. The entry's body checksum covers them, so
//! a decoding error is a bug or a forged file, never a torn write.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::limits::KEY_BYTES_MAX;
use super::lsn::Lsn;

const HAS_EXPIRY: u8 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct OpHeader {
    kind: u8,
    flags: u8,
    key_len: U16,
    value_len: U32,
}

const _: () = assert!(size_of::<OpHeader>() == 8);

/// What an operation does. The values are part of the log and table formats; tables hold only the first two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OpKind {
    /// The key has this value from here on.
    Put = 1,
    /// The key is absent from here on (a tombstone).
    Delete = 2,
    /// All keys of a range are absent from here on. Logged, and kept beside the entries of a tablet, never as
    /// one of them.
    RangeDelete = 3,
}

impl OpKind {
    /// The kind of an entry of one key with this number, if there is one.
    pub fn from_u8(kind: u8) -> Option<OpKind> {
        match kind {
            1 => Some(OpKind::Put),
            2 => Some(OpKind::Delete),
            _ => None,
        }
    }

    /// The kind of a logged operation with this number, if there is one.
    fn of_logged(kind: u8) -> Option<OpKind> {
        if kind == OpKind::RangeDelete as u8 { Some(OpKind::RangeDelete) } else { OpKind::from_u8(kind) }
    }
}

/// One physical operation, borrowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op<'a> {
    /// What it does.
    pub kind: OpKind,
    /// 1..=65535 bytes. Of a range delete the first key, maybe empty.
    pub key: &'a [u8],
    /// Empty for a delete. Of a range delete the key before which it ends; empty: none.
    pub value: &'a [u8],
    /// Absolute milliseconds since the epoch; 0 is never.
    pub expiry_ms: u64,
}

/// What memtables and tables hold for a key, borrowed: a version of its value, or a tombstone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Version.
    pub lsn: Lsn,
    /// Put or tombstone.
    pub kind: OpKind,
    /// Absolute milliseconds since the epoch; 0 is never.
    pub expiry_ms: u64,
    /// Empty for a tombstone.
    pub value: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Whether its time is past at `now_ms`.
    #[inline]
    pub fn is_expired(&self, now_ms: u64) -> bool {
        self.expiry_ms != 0 && self.expiry_ms <= now_ms
    }

    /// What it counts as at `now_ms`: once its time is past, as a tombstone. That hides older versions as
    /// the value did, so none of them comes back.
    #[inline]
    pub fn at(self, now_ms: u64) -> Entry<'a> {
        if self.is_expired(now_ms) {
            Entry { lsn: self.lsn, kind: OpKind::Delete, expiry_ms: 0, value: &[] }
        } else {
            self
        }
    }
}

/// An entry body that does not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpDecodeError {
    /// The body ends inside an operation.
    #[error("operation at byte {0} of the entry is cut short")]
    Truncated(usize),
    /// A kind, flag or length that this version doesn't know.
    #[error("operation at byte {0} of the entry has an unknown kind, flag or length")]
    Invalid(usize),
}

impl<'a> Op<'a> {
    /// Removes the keys from `start` on and before `end`; empty: to the last one.
    pub fn range_delete(start: &'a [u8], end: &'a [u8]) -> Op<'a> {
        Op { kind: OpKind::RangeDelete, key: start, value: end, expiry_ms: 0 }
    }

    /// Whether the lengths, the expiry and the bounds are such as its kind has.
    fn is_sound(&self) -> bool {
        let has_key = !self.key.is_empty() && self.key.len() <= KEY_BYTES_MAX;
        match self.kind {
            OpKind::Put => has_key,
            OpKind::Delete => has_key && self.value.is_empty(),
            OpKind::RangeDelete => {
                let is_range = self.value.is_empty() || self.key < self.value;
                is_range && self.key.len().max(self.value.len()) <= KEY_BYTES_MAX && self.expiry_ms == 0
            }
        }
    }

    /// Bytes that [`Op::encode`] appends.
    #[inline]
    pub fn encoded_len(&self) -> usize {
        size_of::<OpHeader>() + if self.expiry_ms == 0 { 0 } else { 8 } + self.key.len() + self.value.len()
    }

    /// Appends the encoded operation to `out`.
    ///
    /// # Panics
    /// If the key is empty or too long, the value longer than `u32`, or a range empty: the caller has refused
    /// those.
    #[inline]
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.reserve(self.encoded_len());
        self.encode_head(out);
        out.extend_from_slice(self.value);
    }

    /// The same without the value, which comes last.
    ///
    /// # Panics
    /// As [`Op::encode`].
    #[inline]
    pub fn encode_head(&self, out: &mut Vec<u8>) {
        assert!(self.is_sound(), "key, value and range are checked by the caller");
        let value_len = u32::try_from(self.value.len()).expect("value length checked by the caller");
        let header = OpHeader {
            kind: self.kind as u8,
            flags: if self.expiry_ms == 0 { 0 } else { HAS_EXPIRY },
            key_len: U16::new(self.key.len() as u16),
            value_len: U32::new(value_len),
        };
        out.extend_from_slice(header.as_bytes());
        if self.expiry_ms != 0 {
            out.extend_from_slice(U64::new(self.expiry_ms).as_bytes());
        }
        out.extend_from_slice(self.key);
    }
}

/// Decodes the operations of an entry body in order; stops after the first error.
pub struct OpIter<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> OpIter<'a> {
    /// Over the whole of `body`.
    pub fn new(body: &'a [u8]) -> OpIter<'a> {
        OpIter { body, at: 0 }
    }

    fn decode(&mut self) -> Result<Op<'a>, OpDecodeError> {
        let start = self.at;
        let truncated = OpDecodeError::Truncated(start);
        let invalid = OpDecodeError::Invalid(start);
        let (header, rest) = OpHeader::ref_from_prefix(&self.body[start..]).map_err(|_| truncated)?;
        let kind = OpKind::of_logged(header.kind).ok_or(invalid)?;
        if header.flags & !HAS_EXPIRY != 0 {
            return Err(invalid);
        }
        let (expiry_ms, rest) = if header.flags & HAS_EXPIRY != 0 {
            let (expiry, rest) = U64::ref_from_prefix(rest).map_err(|_| truncated)?;
            (expiry.get(), rest)
        } else {
            (0, rest)
        };
        let (key_len, value_len) = (header.key_len.get() as usize, header.value_len.get() as usize);
        if rest.len() < key_len + value_len {
            return Err(truncated);
        }
        let (key, rest) = rest.split_at(key_len);
        let value = &rest[..value_len];
        let op = Op { kind, key, value, expiry_ms };
        if !op.is_sound() {
            return Err(invalid);
        }
        self.at = self.body.len() - (rest.len() - value_len);
        Ok(op)
    }
}

impl<'a> Iterator for OpIter<'a> {
    type Item = Result<Op<'a>, OpDecodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.body.len() {
            return None;
        }
        let result = self.decode();
        if result.is_err() {
            self.at = self.body.len();
        }
        Some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_come_back_in_order() {
        let ops = [
            Op { kind: OpKind::Put, key: b"a", value: b"1", expiry_ms: 0 },
            Op { kind: OpKind::Delete, key: b"bb", value: b"", expiry_ms: 0 },
            Op { kind: OpKind::Put, key: b"c", value: b"", expiry_ms: 99 },
            Op::range_delete(b"", b""),
            Op::range_delete(b"a", b"b"),
            Op::range_delete(b"c", b""),
        ];
        let mut body = Vec::new();
        for op in &ops {
            op.encode(&mut body);
        }
        assert_eq!(body.len(), ops.iter().map(Op::encoded_len).sum::<usize>());
        let decoded: Result<Vec<_>, _> = OpIter::new(&body).collect();
        assert_eq!(decoded.unwrap(), ops);
    }

    #[test]
    fn what_is_no_operation_is_refused() {
        let encoded = |op: Op<'_>| {
            let mut body = Vec::new();
            op.encode(&mut body);
            body
        };
        let first = |body: &[u8]| OpIter::new(body).next().unwrap().map(|op| op.kind);
        let mut delete = encoded(Op { kind: OpKind::Delete, key: b"key", value: b"", expiry_ms: 0 });
        delete[2] = 0;
        assert_eq!(first(&delete), Err(OpDecodeError::Invalid(0)), "no key");
        let range = encoded(Op::range_delete(b"a", b"b"));
        assert_eq!(first(&range), Ok(OpKind::RangeDelete));
        for (at, byte) in [(0, 4), (0, 2), (8, b'b'), (8, b'c')] {
            let mut range = range.clone();
            range[at] = byte;
            assert_eq!(first(&range), Err(OpDecodeError::Invalid(0)), "byte {at} is {byte}");
        }
        let mut expiring = encoded(Op { kind: OpKind::Put, key: b"a", value: b"b", expiry_ms: 9 });
        expiring[0] = 3;
        assert_eq!(first(&expiring), Err(OpDecodeError::Invalid(0)), "a range delete that expires");
        assert_eq!(OpKind::from_u8(3), None, "it is no entry");
    }

    #[test]
    fn an_entry_is_a_tombstone_from_its_expiry_on() {
        let entry = Entry { lsn: Lsn(7), kind: OpKind::Put, expiry_ms: 100, value: b"v" };
        assert_eq!(entry.at(99), entry);
        let tombstone = Entry { lsn: Lsn(7), kind: OpKind::Delete, expiry_ms: 0, value: b"" };
        assert_eq!((entry.at(100), entry.at(u64::MAX)), (tombstone, tombstone));
        let forever = Entry { expiry_ms: 0, ..entry };
        assert_eq!(forever.at(u64::MAX), forever);
    }

    #[test]
    fn every_truncation_is_an_error_or_a_shorter_list() {
        let mut body = Vec::new();
        Op { kind: OpKind::Put, key: b"key", value: b"value", expiry_ms: 5 }.encode(&mut body);
        for len in 1..body.len() {
            assert!(OpIter::new(&body[..len]).next().unwrap().is_err(), "length {len}");
        }
        body[1] = 0x80;
        assert_eq!(OpIter::new(&body).next(), Some(Err(OpDecodeError::Invalid(0))));
    }
}
