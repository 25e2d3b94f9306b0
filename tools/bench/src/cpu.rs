//! Processor time of this thread and of the server.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};

/// Processor time that the calling thread has used.
pub fn of_this_thread() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}

/// Processor time that a process has used so far, all of its threads, those the kernel made for its
/// io_uring included.
#[derive(Clone, Copy, Debug)]
pub struct ProcessTime {
    pub user: Duration,
    pub system: Duration,
    pub at: Instant,
}

/// Reads `/proc/PID/stat`. Its resolution is a tick, 10 ms.
pub fn of_process(pid: u32) -> Result<ProcessTime> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("--server-pid {pid}: {path} cannot be read; is the server running?"))?;
    let (user, system) = parse(&text).with_context(|| format!("{path} is not as proc(5) describes it"))?;
    let tick = Duration::from_secs(1) / rustix::param::clock_ticks_per_second().max(1) as u32;
    let time = |ticks: u64| Duration::from_secs_f64(tick.as_secs_f64() * ticks as f64);
    Ok(ProcessTime { user: time(user), system: time(system), at: Instant::now() })
}

/// Fields 14 and 15, in ticks. The second field, the name, may itself hold spaces and parentheses.
fn parse(stat: &str) -> Option<(u64, u64)> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_anything() {
        let stat = "42 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 111 222 0 0";
        assert_eq!(parse(stat), Some((111, 222)));
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn our_own_time_can_be_read() {
        let time = of_process(std::process::id()).unwrap();
        assert!(time.user + time.system < Duration::from_secs(100_000));
        assert!(of_process(u32::MAX).is_err());
    }
}
