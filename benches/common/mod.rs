//! What benchmarks share: their arguments, the clock, and lines of a table.

use std::time::Duration;

/// The arguments behind `--`.
pub struct Arguments {
    /// Whether this is `cargo bench`. Without its flag it is `cargo test --all-targets`: show that it runs.
    pub is_bench: bool,
    /// Those that are numbers.
    pub numbers: Vec<usize>,
}

/// What this benchmark was started with.
pub fn arguments() -> Arguments {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let numbers = args.iter().filter_map(|arg| arg.replace('_', "").parse().ok()).collect();
    Arguments { is_bench: args.iter().any(|arg| arg == "--bench"), numbers }
}

impl Arguments {
    /// The first number, or else `default`; `tested`, if this is a test.
    pub fn or(&self, default: usize, tested: usize) -> usize {
        self.numbers.first().copied().unwrap_or(if self.is_bench { default } else { tested })
    }
}

/// CPU time of this thread: other work on the machine costs it only cache and memory bandwidth.
pub fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills the timespec it is given and keeps no pointer to it.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0, "every Linux has this clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A table of what things cost, each measured for some rounds.
pub struct Table {
    /// How many.
    pub rounds: usize,
}

impl Table {
    /// Prints its head.
    pub fn begin(rounds: usize) -> Table {
        println!("{:46} {:>9} {:>9} {:>9}   ns each; {rounds} rounds", "", "median", "10 %", "90 %");
        Table { rounds: rounds.max(1) }
    }

    /// Measures `round`, which does something `count` times. The first round, in which buffers grow and caches fill,
    /// does not count.
    pub fn row(&self, name: &str, count: usize, mut round: impl FnMut()) {
        round();
        let timed = || {
            let started = cpu_time();
            round();
            cpu_time() - started
        };
        self.show(name, count, std::iter::repeat_with(timed).take(self.rounds).collect());
    }

    /// Prints the nanoseconds of one of the `count` things that were done in each of these times: the median of all,
    /// and what a tenth and nine tenths of them are below.
    pub fn show(&self, name: &str, count: usize, mut times: Vec<Duration>) {
        times.sort_unstable();
        let part = |tenths: usize| times[(times.len() - 1) * tenths / 10].as_nanos() as f64 / count as f64;
        println!("  {name:44} {:9.1} {:9.1} {:9.1}", part(5), part(1), part(9));
    }
}
