//! When the entries of a table expire, in eight numbers: enough to know how much of it is garbage at any
//! time, without reading it.

/// When the entries with an expiry time expire. All zero without such entries.
///
/// Times divide the entries, not entries the times: however far apart the times are, and they may be seconds
/// and years in one table, an eighth is an eighth. Smallest, largest and a count would take a table of
/// sessions with one entry for ten years for one that lives ten years.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Expiries {
    /// Bytes of the file that these entries account for: its size, divided as the bytes of all records are.
    pub bytes: u64,
    /// By `eighths[i]`, `i + 1` eighths of these entries are past. Ascending; the last one is exact.
    pub eighths: [u64; 8],
}

impl Expiries {
    /// Bytes of the file that are past at `now_ms`, give or take an eighth of all that expire.
    pub fn past_bytes(&self, now_ms: u64) -> u64 {
        let past = self.eighths.iter().filter(|eighth| **eighth <= now_ms).count() as u64;
        self.bytes / 8 * past + self.bytes % 8 * past / 8
    }

    /// Whether it is what a table with `expiring` such entries may say.
    pub fn is_sound(&self, expiring: u64) -> bool {
        if expiring == 0 {
            *self == Expiries::default()
        } else {
            self.eighths[0] > 0 && self.eighths.is_sorted()
        }
    }
}

impl std::fmt::Display for Expiries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "of {} bytes, by eighths {:?}", self.bytes, self.eighths)
    }
}

/// Times kept at most: 16 KiB beside a table that is being written.
const SAMPLE_MAX: usize = 2048;

/// Collects expiry times while a table is written: all of them, then every second, every fourth, …, so that
/// the memory is bounded and the same entries always give the same result. With half of [`SAMPLE_MAX`] times
/// left an eighth is met within a hundredth.
#[derive(Default)]
pub(super) struct Sampler {
    sample: Vec<u64>,
    /// One of `1 << shift` times is kept.
    shift: u32,
    count: u64,
    latest: u64,
    expiring_bytes: u64,
    record_bytes: u64,
}

impl Sampler {
    /// Takes in an entry, whose record has `bytes`.
    #[inline]
    pub fn add(&mut self, bytes: usize, expiry_ms: u64) {
        self.record_bytes += bytes as u64;
        if expiry_ms != 0 {
            self.expiring_bytes += bytes as u64;
            self.add_time(expiry_ms);
        }
    }

    fn add_time(&mut self, expiry_ms: u64) {
        self.latest = self.latest.max(expiry_ms);
        if self.count.is_multiple_of(1 << self.shift) {
            if self.sample.len() == SAMPLE_MAX {
                let mut number = 0;
                self.sample.retain(|_| {
                    number += 1;
                    number % 2 == 1
                });
                self.shift += 1;
            }
            if self.count.is_multiple_of(1 << self.shift) {
                self.sample.push(expiry_ms);
            }
        }
        self.count += 1;
    }

    /// The result, for a file of `bytes`.
    pub fn finish(mut self, bytes: u64) -> Expiries {
        if self.count == 0 {
            return Expiries::default();
        }
        self.sample.sort_unstable();
        // Rounded up: what an eighth says is past, is.
        let at = |eighths: usize| self.sample[(self.sample.len() * eighths).div_ceil(8) - 1];
        let mut eighths = [1, 2, 3, 4, 5, 6, 7, 8].map(at);
        eighths[7] = self.latest;
        let share = u128::from(bytes) * u128::from(self.expiring_bytes) / u128::from(self.record_bytes);
        // A part of `bytes`, since some records are a part of all.
        Expiries { bytes: u64::try_from(share).unwrap_or(bytes), eighths }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(times: impl IntoIterator<Item = u64>) -> Expiries {
        let mut sampler = Sampler::default();
        times.into_iter().for_each(|time| sampler.add(10, time));
        sampler.finish(1 << 20)
    }

    #[test]
    fn few_times_are_exact() {
        assert_eq!(of([0, 0]), Expiries::default());
        let one = of([0, 7, 0, 0]);
        assert_eq!(one, Expiries { bytes: 1 << 18, eighths: [7; 8] });
        assert_eq!((one.past_bytes(6), one.past_bytes(7)), (0, 1 << 18));
        let two = of([100, 50]);
        assert_eq!(two.eighths, [50, 50, 50, 50, 100, 100, 100, 100]);
        assert_eq!((two.past_bytes(49), two.past_bytes(50), two.past_bytes(100)), (0, 1 << 19, 1 << 20));
    }

    #[test]
    fn of_many_times_each_eighth_is_met_closely() {
        for (seed, count) in [(1, 100), (2, SAMPLE_MAX), (3, SAMPLE_MAX + 1), (4, 100_000), (5, 1_000_000)] {
            let mut rng = fastrand::Rng::with_seed(seed);
            // Seconds and years together.
            let mut time = || {
                let magnitude = rng.u32(1..40);
                1 + rng.u64(..1 << magnitude)
            };
            let mut times: Vec<u64> = (0..count).map(|_| time()).collect();
            let found = of(times.iter().copied());
            assert!(found.is_sound(count as u64));
            times.sort_unstable();
            assert_eq!(found.eighths[7], times[count - 1]);
            for (number, eighth) in (1..).zip(found.eighths) {
                let past = times.partition_point(|time| *time <= eighth) as f64 / count as f64;
                let wanted = f64::from(number) / 8.0;
                let slack = 0.04 + 1.0 / count as f64;
                assert!((past - wanted).abs() < slack, "{count} times: eighth {number} is {past}");
            }
        }
    }

    #[test]
    fn unsound_ones_are_told() {
        let sound = of([3, 4, 5]);
        assert!(sound.is_sound(3) && !sound.is_sound(0) && Expiries::default().is_sound(0));
        assert!(!Expiries::default().is_sound(1));
        let mut unsound = sound;
        unsound.eighths[2] = 9;
        assert!(!unsound.is_sound(3));
    }
}
