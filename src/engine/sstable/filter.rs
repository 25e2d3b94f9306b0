//! A table's filter: a split-block Bloom filter in the published layout of Apache Parquet, so that the
//! implementation may be replaced without a change of format.

use sbbf_rs::{BUCKET_SIZE, FilterFn};

/// Bits per key: about 1.3 % false positives at 10, 0.5 % at 12.
const BITS_PER_KEY: u64 = 11;

/// Times that a filter can be halved, and from which size on that is made possible.
const FOLDS_MAX: u32 = 4;
const FOLDABLE_LINES: u64 = 64;

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
        // A large one can be folded a few times; that costs at most 15 lines.
        let lines = if lines > FOLDABLE_LINES { lines.next_multiple_of(1 << FOLDS_MAX) } else { lines };
        let lines = usize::try_from(lines).expect("keys that were counted one by one fit an address space");
        Filter { lines: vec![Line([0; 64]); lines], functions: FilterFn::new() }
    }

    /// Halves it as long as it still has its bits for each of `keys` keys. A merge knows how many entries go
    /// in, but not how many come out.
    ///
    /// A key's bucket is `high half of the hash · buckets / 2^32`, rounded down, so among half as many it is
    /// half that number, rounded down: neighbours become one, and nothing is lost.
    pub fn fold_to(&mut self, keys: u64) {
        while self.lines.len().is_multiple_of(2)
            && self.lines.len() as u64 * 512 / 2 >= (keys * BITS_PER_KEY).max(512)
        {
            // A line is two buckets: each becomes one, half a line.
            for line in 0..self.lines.len() {
                let Line(bytes) = self.lines[line];
                let half = &mut self.lines[line / 2].0[line % 2 * BUCKET_SIZE..][..BUCKET_SIZE];
                for (at, byte) in half.iter_mut().enumerate() {
                    *byte = bytes[at] | bytes[at + BUCKET_SIZE];
                }
            }
            self.lines.truncate(self.lines.len() / 2);
        }
        self.lines.shrink_to_fit();
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

    #[test]
    fn a_folded_filter_is_the_one_of_that_size() {
        let mut rng = fastrand::Rng::with_seed(12);
        for (capacity, keys) in [(100_000u64, 9_000u64), (40_000, 39_000), (50_000, 20_000), (3, 1), (80, 2)]
        {
            let hashes: Vec<u64> = (0..keys).map(|_| rng.u64(..)).collect();
            let mut folded = Filter::with_capacity(capacity);
            hashes.iter().for_each(|hash| folded.insert(*hash));
            let before = folded.lines.len();
            folded.fold_to(keys);
            let mut direct =
                Filter { lines: vec![Line([0; 64]); folded.lines.len()], functions: FilterFn::new() };
            hashes.iter().for_each(|hash| direct.insert(*hash));
            assert!(folded.bytes() == direct.bytes(), "{capacity} to {keys}");
            assert!(folded.lines.len() as u64 * 512 >= keys * BITS_PER_KEY);
            assert!(capacity < 2 * keys || before < 64 || folded.lines.len() <= before / 2);
            let wrong = (0..100_000).filter(|_| folded.may_contain(rng.u64(..))).count();
            assert!(keys < 100 || wrong < 1500, "{wrong} of 100000 false positives");
        }
    }
}
