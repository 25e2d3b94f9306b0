//! When an open-loop client sends: decided in advance, and by nothing that the server does.

/// How the gaps between two sends are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrivals {
    /// All alike.
    Fixed,
    /// Exponentially distributed, as of many independent users.
    Poisson,
}

/// The intended send times of one client, in nanoseconds. Made on demand from a seed, so that it takes
/// no memory, and is the same however late the sends are.
#[derive(Clone, Debug)]
pub struct Timetable {
    arrivals: Arrivals,
    start: f64,
    gap: f64,
    count: u64,
    next: f64,
    rng: fastrand::Rng,
}

impl Timetable {
    /// From `start` on, `rate` sends a second; `phase` (0 to 1) is the first send's place in the first gap,
    /// so that clients do not send in step.
    pub fn new(arrivals: Arrivals, start: u64, rate: f64, phase: f64, seed: u64) -> Timetable {
        assert!(rate > 0.0);
        let gap = 1e9 / rate;
        let start = start as f64 + gap * phase;
        let mut table =
            Timetable { arrivals, start, gap, count: 0, next: start, rng: fastrand::Rng::with_seed(seed) };
        if arrivals == Arrivals::Poisson {
            table.next = start - gap * phase;
            table.advance();
        }
        table
    }

    /// The next intended send.
    #[inline]
    pub fn next(&self) -> u64 {
        self.next as u64
    }

    /// Goes on to the one after it.
    #[inline]
    pub fn advance(&mut self) {
        self.count += 1;
        match self.arrivals {
            // By multiplication: a sum of gaps would drift off the asked rate.
            Arrivals::Fixed => self.next = self.start + self.gap * self.count as f64,
            Arrivals::Poisson => self.next -= self.gap * (1.0 - self.rng.f64()).ln(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_sends_are_evenly_spaced_and_do_not_drift() {
        let mut table = Timetable::new(Arrivals::Fixed, 1_000, 3_000_000.0, 0.5, 0);
        assert_eq!(table.next(), 1_166);
        for _ in 0..3_000_000 {
            table.advance();
        }
        assert_eq!(table.next(), 1_000_001_166);
    }

    #[test]
    fn poisson_has_the_asked_rate_and_the_spread_of_an_exponential() {
        let mut table = Timetable::new(Arrivals::Poisson, 0, 1_000_000.0, 0.3, 9);
        let (mut last, mut squares) = (0.0, 0.0);
        let count = 200_000;
        for _ in 0..count {
            let next = table.next() as f64;
            squares += (next - last - 1000.0).powi(2);
            last = next;
            table.advance();
        }
        let mean = last / f64::from(count);
        let deviation = (squares / f64::from(count)).sqrt();
        assert!((990.0..1010.0).contains(&mean), "{mean}");
        assert!((980.0..1020.0).contains(&deviation), "{deviation}");
    }
}
