//! Filters: split-block Bloom filters in the published layout of Apache Parquet, so that the implementation
//! may be replaced without a change of format. Each is built from all hashes at once and made for their
//! number.

use sbbf_rs::{ALIGNMENT, BUCKET_SIZE, FilterFn};

use super::format::LINE_BYTES;

/// Aligned as the vector instructions want it.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct Line(pub [u8; LINE_BYTES]);

const _: () = assert!(LINE_BYTES == ALIGNMENT && align_of::<Line>() == ALIGNMENT);
const BUCKETS_PER_LINE: usize = LINE_BYTES / BUCKET_SIZE;

/// Lines of a filter of `keys` keys.
pub fn lines_for(keys: usize, bits_per_key: u8) -> usize {
    (keys * usize::from(bits_per_key)).div_ceil(LINE_BYTES * 8).max(1)
}

/// The filter of keys with these hashes.
pub fn build(hashes: &[u64], bits_per_key: u8) -> Vec<Line> {
    let mut lines = vec![Line([0; LINE_BYTES]); lines_for(hashes.len(), bits_per_key)];
    let (functions, buckets) = (FilterFn::new(), lines.len() * BUCKETS_PER_LINE);
    for hash in hashes {
        // SAFETY: `lines` is aligned to 64 bytes by its type and holds exactly `buckets` buckets of 32
        // bytes, of which there is at least one.
        unsafe { functions.insert(lines.as_mut_ptr().cast(), buckets, *hash) };
    }
    lines
}

/// Whether `hash` may be among those that a filter was built from; `false` is certain.
///
/// # Panics
/// Without any lines.
#[inline]
pub fn may_contain(lines: &[Line], hash: u64) -> bool {
    assert!(!lines.is_empty(), "a filter has a line");
    // SAFETY: as in `build`; the assertion has it that there is a bucket.
    unsafe { FilterFn::new().contains(lines.as_ptr().cast(), lines.len() * BUCKETS_PER_LINE, hash) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(rng: &mut fastrand::Rng, count: usize) -> Vec<u64> {
        (0..count).map(|_| rng.u64(..)).collect()
    }

    #[test]
    fn what_was_added_is_found_at_every_size() {
        let mut rng = fastrand::Rng::with_seed(11);
        for count in (0..700).chain([4096, 50_000]) {
            for bits in [1, 8, 12, 16] {
                let hashes = hashes(&mut rng, count);
                let filter = build(&hashes, bits);
                assert_eq!(filter.len(), lines_for(count, bits));
                assert!(hashes.iter().all(|hash| may_contain(&filter, *hash)), "{count} keys, {bits} bits");
            }
        }
    }

    #[test]
    fn little_else_is_found() {
        let mut rng = fastrand::Rng::with_seed(12);
        // As many keys as a partition has: filters are small, and each is made for its own number.
        for (bits, most) in [(10, 1.5), (12, 0.75), (16, 0.25)] {
            let (mut wrong, mut asked) = (0, 0);
            for _ in 0..100 {
                let filter = build(&hashes(&mut rng, 2300), bits);
                wrong += (0..5000).filter(|_| may_contain(&filter, rng.u64(..))).count();
                asked += 5000;
            }
            let percent = wrong as f64 * 100.0 / f64::from(asked);
            println!("{bits} bits: {percent:.3} % false positives");
            assert!(percent < most, "{bits} bits: {percent} %");
        }
    }
}
