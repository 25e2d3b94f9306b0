//! A table's filter: a split-block Bloom filter in the published layout of Apache Parquet, so that the
//! implementation may be replaced without a change of format.

use sbbf_rs::{BUCKET_SIZE, FilterFn};

/// Bits per key: about 1.3 % false positives at 10, 0.5 % at 12.
const BITS_PER_KEY: u64 = 11;

/// Aligned as the vector instructions want it.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A filter over key hashes.
pub struct Filter {
    lines: Vec<Line>,
    functions: FilterFn,
}

impl Filter {
    /// For up to `keys` keys.
    pub fn with_capacity(keys: u64) -> Filter {
        let lines = (keys * BITS_PER_KEY).div_ceil(512).max(1);
        Filter { lines: vec![Line([0; 64]); lines as usize], functions: FilterFn::new() }
    }

    /// From the bytes of [`Filter::bytes`]. `None` if they are no whole lines.
    pub fn from_bytes(bytes: &[u8]) -> Option<Filter> {
        if bytes.is_empty() || !bytes.len().is_multiple_of(64) {
            return None;
        }
        let mut lines = vec![Line([0; 64]); bytes.len() / 64];
        bytemuck::cast_slice_mut::<Line, u8>(&mut lines).copy_from_slice(bytes);
        Some(Filter { lines, functions: FilterFn::new() })
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.lines)
    }

    fn buckets(&self) -> usize {
        self.lines.len() * 64 / BUCKET_SIZE
    }

    /// Adds a hash.
    pub fn insert(&mut self, hash: u64) {
        let buckets = self.buckets();
        // SAFETY: `lines` is 64-byte aligned by its type and holds exactly `buckets` buckets, of which
        // there is at least one by construction.
        unsafe { self.functions.insert(self.lines.as_mut_ptr().cast(), buckets, hash) };
    }

    /// Whether `hash` may have been added; `false` is certain.
    #[inline]
    pub fn may_contain(&self, hash: u64) -> bool {
        // SAFETY: as in `insert`.
        unsafe { self.functions.contains(self.lines.as_ptr().cast(), self.buckets(), hash) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_found_and_little_else() {
        let mut rng = fastrand::Rng::with_seed(11);
        let mut filter = Filter::with_capacity(20_000);
        let hashes: Vec<u64> = (0..20_000).map(|_| rng.u64(..)).collect();
        hashes.iter().for_each(|hash| filter.insert(*hash));
        let filter = Filter::from_bytes(filter.bytes()).unwrap();
        assert!(hashes.iter().all(|hash| filter.may_contain(*hash)));
        let wrong = (0..100_000).filter(|_| filter.may_contain(rng.u64(..))).count();
        assert!(wrong < 1500, "{wrong} of 100000 false positives");
        assert!(Filter::from_bytes(&[0; 63]).is_none());
    }
}
