//! Which tables of a tablet to merge: size-tiered, newest first. Pure.

/// Inputs of one merge, at most: it bounds the memory that read-ahead takes.
pub const INPUTS_MAX: usize = 16;

/// Given the sizes of a tablet's tables, newest first, how many of the newest to merge into one.
///
/// Sizes fall into tiers, each `fan` times the one below. As soon as the newest `fan` or more tables are
/// all of one tier or below, they become one of the next. So an entry is rewritten once per tier, and a
/// tablet has at most `fan − 1` tables in each tier that its size reaches: 10,000 flushes with a fan of 4
/// make at most 22 tables, of which a filter rules out nearly all for any one key.
pub fn pick(sizes: &[u64], fan: usize) -> Option<usize> {
    assert!((2..=INPUTS_MAX).contains(&fan), "a merge takes 2 to {INPUTS_MAX} tables");
    let tier = |size: u64| size.max(1).ilog(fan as u64);
    let mut count = 0;
    let mut highest = 0;
    let mut best = None;
    while count < sizes.len().min(INPUTS_MAX) {
        // All that are no larger than the largest so far belong to the same merge.
        highest = highest.max(tier(sizes[count]));
        count += 1;
        while count < sizes.len().min(INPUTS_MAX) && tier(sizes[count]) <= highest {
            count += 1;
        }
        if count >= fan && sizes[..count].iter().filter(|size| tier(**size) == highest).count() >= fan {
            best = Some(count);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_tables_are_left_alone_and_like_ones_merged_together() {
        assert_eq!(pick(&[5, 5, 5], 4), None);
        assert_eq!(pick(&[5, 5, 5, 5], 4), Some(4));
        assert_eq!(pick(&[5, 5, 5, 5, 400], 4), Some(4), "the large one is not rewritten for little");
        assert_eq!(pick(&[5, 20, 20, 20, 20], 4), Some(5), "a merge of large ones takes the small along");
        assert_eq!(pick(&[1, 50, 500, 5000, 50000], 4), None);
        assert_eq!(pick(&[5; 40], 4), Some(INPUTS_MAX));
    }

    #[test]
    fn over_a_long_load_tables_stay_few_and_rewrites_logarithmic() {
        let mut rng = fastrand::Rng::with_seed(3);
        let mut sizes: Vec<u64> = Vec::new();
        let (mut written, mut rewritten, mut most) = (0, 0, 0);
        for _ in 0..10_000 {
            let size = rng.u64(800..1200);
            written += size;
            sizes.insert(0, size);
            while let Some(count) = pick(&sizes, 4) {
                let sum: u64 = sizes[..count].iter().sum();
                rewritten += sum;
                sizes.splice(..count, [sum]);
            }
            most = most.max(sizes.len());
        }
        let amplification = rewritten as f64 / written as f64;
        assert!(amplification < 9.0, "each entry is rewritten {amplification} times");
        assert!(most <= 24, "{most} tables");
    }
}
