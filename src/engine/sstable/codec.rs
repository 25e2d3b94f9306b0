//! Compression of payloads: LZ4 by `lz4_flex` in safe mode, zstd by the C library.

use std::cell::RefCell;

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use super::format::COMPRESSED_BYTES_MAX;
use crate::base::Codec;

/// The only level that is fast enough to be paid for by each rewrite of an entry.
const ZSTD_LEVEL: i32 = 1;

/// Compresses payloads of one table, with tables and buffers that it keeps: about 110 KiB with LZ4, and what
/// zstd allocates for inputs of this size.
pub struct Compressor {
    kind: Kind,
    out: Vec<u8>,
}

enum Kind {
    None,
    Lz4(Box<CompressTable>),
    Zstd(zstd::bulk::Compressor<'static>),
}

impl Compressor {
    /// For `codec`.
    pub fn new(codec: Codec) -> Compressor {
        let kind = match codec {
            Codec::None => Kind::None,
            Codec::Lz4 => Kind::Lz4(Box::default()),
            // It fails only for want of memory. Then blocks are stored as they are.
            Codec::Zstd => zstd::bulk::Compressor::new(ZSTD_LEVEL).map_or(Kind::None, Kind::Zstd),
        };
        Compressor { kind, out: Vec::new() }
    }

    /// What it compresses with.
    pub fn codec(&self) -> Codec {
        match self.kind {
            Kind::None => Codec::None,
            Kind::Lz4(_) => Codec::Lz4,
            Kind::Zstd(_) => Codec::Zstd,
        }
    }

    /// Compresses `raw`. `None` if it doesn't.
    pub fn compress(&mut self, raw: &[u8]) -> Option<&[u8]> {
        if raw.len() > COMPRESSED_BYTES_MAX {
            return None;
        }
        let bound = match &self.kind {
            Kind::None => return None,
            Kind::Lz4(_) => get_maximum_output_size(raw.len()),
            Kind::Zstd(_) => zstd::zstd_safe::compress_bound(raw.len()),
        };
        if self.out.len() < bound {
            self.out.resize(bound, 0);
        }
        let len = match &mut self.kind {
            Kind::None => return None,
            Kind::Lz4(table) => compress_into_with_table(raw, &mut self.out, table).ok()?,
            Kind::Zstd(compressor) => compressor.compress_to_buffer(raw, &mut self.out[..]).ok()?,
        };
        (len < raw.len()).then_some(&self.out[..len])
    }
}

thread_local! {
    /// zstd's state for reading, 100 to 200 KiB: made once a thread, at the first block that needs it.
    static ZSTD: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
}

/// Decompresses into exactly `raw_len` bytes. `None` if that is not what `stored` holds, or more than any
/// writer compresses.
pub fn decompress(codec: Codec, stored: &[u8], raw_len: usize) -> Option<Box<[u8]>> {
    if raw_len > COMPRESSED_BYTES_MAX {
        return None;
    }
    let mut raw = vec![0; raw_len].into_boxed_slice();
    let len = match codec {
        Codec::None => return None,
        Codec::Lz4 => lz4_flex::block::decompress_into(stored, &mut raw).ok()?,
        Codec::Zstd => ZSTD.with_borrow_mut(|state| {
            if state.is_none() {
                *state = Some(zstd::bulk::Decompressor::new().ok()?);
            }
            state.as_mut()?.decompress_to_buffer(stored, &mut raw[..]).ok()
        })?,
    };
    (len == raw_len).then_some(raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_compressed_comes_back_and_only_at_its_length() {
        let mut rng = fastrand::Rng::with_seed(21);
        for codec in [Codec::Lz4, Codec::Zstd] {
            let mut compressor = Compressor::new(codec);
            assert_eq!(compressor.codec(), codec);
            for len in [300, 4096, 65_534, 65_535, 65_536, COMPRESSED_BYTES_MAX, 100] {
                let raw: Vec<u8> = (0..len).map(|_| rng.u8(..4)).collect();
                let stored = compressor.compress(&raw).unwrap().to_vec();
                assert!(decompress(codec, &stored, len).unwrap()[..] == raw);
                assert!(decompress(codec, &stored, len - 1).is_none());
                assert!(decompress(codec, &stored, len + 1).is_none());
                assert!(decompress(codec, &stored[..stored.len() - 1], len).is_none());
            }
            let noise: Vec<u8> = (0..4096).map(|_| rng.u8(..)).collect();
            assert!(compressor.compress(&noise).is_none());
            assert!(compressor.compress(&vec![0; COMPRESSED_BYTES_MAX + 1]).is_none());
        }
    }

    #[test]
    fn forged_lengths_and_bytes_are_refused_or_read_within_bounds() {
        let mut rng = fastrand::Rng::with_seed(22);
        for codec in [Codec::Lz4, Codec::Zstd] {
            let raw: Vec<u8> = (0..5000).map(|_| rng.u8(..8)).collect();
            let whole = Compressor::new(codec).compress(&raw).unwrap().to_vec();
            assert!(decompress(codec, &whole, usize::MAX).is_none(), "nothing of that size is allocated");
            for _ in 0..5000 {
                let mut stored = whole.clone();
                for _ in 0..rng.usize(1..4) {
                    let at = rng.usize(..stored.len());
                    stored[at] = rng.u8(..);
                }
                stored.truncate(rng.usize(..=stored.len()));
                let _ = decompress(codec, &stored, raw.len());
            }
        }
    }
}
