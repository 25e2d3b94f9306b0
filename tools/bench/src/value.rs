//! Values that describe themselves, so that every read can be verified without a copy of the data.
//!
//! ```text
//! offset  size  what
//! 0       4     crc32c of the key followed by all that comes after this field, little endian
//! 4       8     sequence: who wrote it, and as its how-manieth value, little endian
//! 12      ...   filler, chosen by the sequence
//! ```
//! The filler does not compress, unless a ratio says otherwise: then the last part of every 100 bytes repeats
//! their first part, as RocksDB's db_bench makes its values for the same ratio.
//! A shorter value is cut off; below four bytes it is the head of a crc32c of the key alone. A value of
//! another key, a torn one, and a mix of two versions all fail the check.

use atlaskv::base::{crc32c, crc32c_append};

const CRC_LEN: usize = 4;
const HEAD_LEN: usize = 12;
/// Two windows of the longest value that is one copy; longer values repeat it.
const POOL_LEN: usize = 128 << 10;
/// Bytes of a value that repeat among themselves if it is to compress.
const PIECE_LEN: usize = 100;

/// Makes and checks values.
pub struct Values {
    pool: Vec<u8>,
    /// Share of each piece that is not a repetition.
    ratio: f64,
}

impl Values {
    /// `ratio` is the share of a value that is left when it is compressed, about; 1 for none to be saved.
    pub fn new(ratio: f64) -> Values {
        assert!(ratio > 0.0 && ratio <= 1.0, "the command line limits the ratio");
        // Of a fixed seed: the filler is not checked by itself, so any pool would do.
        let mut rng = fastrand::Rng::with_seed(0xA71A5);
        let mut pool = vec![0; POOL_LEN];
        rng.fill(&mut pool);
        Values { pool, ratio }
    }

    /// Replaces `out` by the value numbered `sequence` of `key`.
    #[inline]
    pub fn make(&self, key: &[u8], sequence: u64, size: usize, out: &mut Vec<u8>) {
        out.clear();
        if size < CRC_LEN {
            out.extend_from_slice(&crc32c(key).to_le_bytes()[..size]);
            return;
        }
        out.extend_from_slice(&[0; CRC_LEN]);
        out.extend_from_slice(&sequence.to_le_bytes());
        let half = POOL_LEN / 2;
        let start = (sequence.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as usize % half;
        if self.ratio < 1.0 {
            self.fill_pieces(start, size, out);
        }
        while out.len() < size {
            let len = (size - out.len()).min(half);
            out.extend_from_slice(&self.pool[start..start + len]);
        }
        out.truncate(size);
        let crc = crc32c_append(crc32c(key), &out[CRC_LEN..]);
        out[..CRC_LEN].copy_from_slice(&crc.to_le_bytes());
    }

    /// Fills `out` up to `size` with pieces that each are new up to the ratio and then begin again.
    fn fill_pieces(&self, start: usize, size: usize, out: &mut Vec<u8>) {
        let half = POOL_LEN / 2;
        let mut piece = 0;
        while piece < size {
            let end = size.min(piece + PIECE_LEN);
            let fresh = piece + ((end - piece) as f64 * self.ratio).ceil() as usize;
            if out.len() < fresh {
                // The pool is longer than a start and a piece together.
                let from = start + piece % half;
                out.extend_from_slice(&self.pool[from % half..][..fresh - out.len()]);
            }
            // The crc is put in later, so it has no part in the repetition.
            let (begin, source) = (piece.max(CRC_LEN), out.len());
            for at in begin..begin + end.saturating_sub(source) {
                out.push(out[at]);
            }
            piece = end;
        }
    }
}

/// Whether `value` was made for `key`, and is whole.
#[inline]
pub fn is_intact(key: &[u8], value: &[u8]) -> bool {
    match value.split_first_chunk::<CRC_LEN>() {
        Some((crc, rest)) => crc32c_append(crc32c(key), rest) == u32::from_le_bytes(*crc),
        None => crc32c(key).to_le_bytes().starts_with(value),
    }
}

/// What a mismatch report says of a value: its length, its sequence if it has one, its first bytes.
pub fn describe(value: &[u8]) -> String {
    let shown = value.len().min(24);
    let head = value[..shown].escape_ascii();
    let more = if shown < value.len() { "…" } else { "" };
    match value.get(CRC_LEN..HEAD_LEN).and_then(|bytes| bytes.try_into().ok()) {
        Some(bytes) => {
            let sequence = u64::from_le_bytes(bytes);
            format!("{} bytes, sequence {sequence:#x}: \"{head}{more}\"", value.len())
        }
        None => format!("{} bytes: \"{head}{more}\"", value.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_every_size_are_intact_and_only_for_their_key() {
        let values = Values::new(1.0);
        let mut out = Vec::new();
        for size in (0..200).chain([4096, 65_536, 200_000]) {
            values.make(b"key:1", 77, size, &mut out);
            assert_eq!(out.len(), size);
            assert!(is_intact(b"key:1", &out), "{size}");
            if size > 0 {
                assert!(!is_intact(b"key:2", &out), "{size}");
            }
        }
    }

    #[test]
    fn values_with_a_ratio_are_intact_and_repeat_that_much() {
        let mut out = Vec::new();
        for ratio in [0.01, 0.5, 0.99] {
            let values = Values::new(ratio);
            for size in (0..250).chain([4096, 200_000]) {
                values.make(b"key:1", 77, size, &mut out);
                assert_eq!(out.len(), size);
                assert!(is_intact(b"key:1", &out), "{ratio} {size}");
            }
        }
        Values::new(0.5).make(b"k", 9, 300, &mut out);
        assert_eq!(out[50..96], out[4..50], "the first piece begins again after half of it, crc apart");
        assert_eq!(out[150..200], out[100..150]);
        assert_ne!(out[100..150], out[200..250], "pieces are unlike each other");
    }

    #[test]
    fn a_wrong_byte_a_cut_and_a_mix_of_versions_are_caught() {
        let values = Values::new(1.0);
        let (mut one, mut two) = (Vec::new(), Vec::new());
        values.make(b"k", 1, 100, &mut one);
        values.make(b"k", 2, 100, &mut two);
        for at in 0..100 {
            let mut wrong = one.clone();
            wrong[at] ^= 1;
            assert!(!is_intact(b"k", &wrong), "byte {at}");
        }
        assert!(!is_intact(b"k", &one[..99]));
        let mixed = [&one[..50], &two[50..]].concat();
        assert!(!is_intact(b"k", &mixed));
    }
}
