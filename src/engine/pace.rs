//! Pace: how flushes and compaction keep up with writers, and writers with them.
//!
//! **Compaction.** *Debt* is what the tables above the last level hold beyond what they may: of each tablet, bytes
//! beyond a `ratio`-th of its last level and a few flushes, of those tables that can come down at present. It is
//! counted along with each version of a tablet, and no target jumps. *Pressure* is debt in parts of all that may be there.
//! - The more pressure, the larger the share of the core that compaction has: a tenth of what requests have
//!   without any, as much as they have at ½. So it goes on all the time, and never in bursts. Where merges go around
//!   tables that can't be read, it has as much as they have: what stays above the last level there is not in the debt,
//!   and must become few tables nevertheless.
//! - From a pressure of ½ on writers are slowed: each byte written keeps the next one waiting, at ½ not at all, at
//!   1 for as long as compaction takes for what that byte costs, and longer beyond.
//!
//! **Flushes.** While a full memtable is being flushed and no other may wait beside it, the active one is filled no
//! further than the flush has come: a quarter of it is free, and the rest in step. So a writer faster than the
//! flush waits many times for a millisecond, not once for the whole flush.
//!
//! Who waits does so as those do that wait for memory: frames stall at their shard, oldest first, and reads go on.
//! Only memory that is used up stops writers for good.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::transfer::Presence;
use super::version::Totals;
use super::write::Sealed;
use super::{Engine, EngineOptions, Tablet};
use crate::env::{Env, Notify, Queue};
use crate::metrics::Metrics;

/// Pressure is counted in these parts.
const WHOLE: u64 = 1000;
/// From this pressure on writers are slowed.
const SLOW: u64 = WHOLE / 2;
/// A writer is never slowed more than this many times what compaction needs.
const FACTOR_MAX: u64 = 8 * WHOLE;
/// Shares of the core that compaction has without pressure, and at [`SLOW`]; requests have 1000.
const SHARES: (u64, u64) = (100, 1000);
/// Slowed writers may be ahead of their time by so much, and then wait until it has come: so that many of them go
/// on at each wake-up. Time without a write earns as much: timers come late.
const BURST: Duration = Duration::from_millis(5);
/// What compaction takes for a byte before it was measured.
const NANOS_PER_BYTE: u64 = 10;
/// Of the active memtable one part in so many may be filled before the flush has come anywhere.
const HEADROOM: usize = 4;
/// Steps in which a flush lets writers go on.
const STEPS: usize = 64;

/// See the module.
pub(super) struct Pace {
    /// Bytes above the last level beyond what may be there, of all tablets.
    debt: Cell<u64>,
    /// What may be there because of the last levels, of all tablets.
    allowance: Cell<u64>,
    /// What may be there besides: a few flushes, of all tablets and of one.
    slack: (u64, u64),
    /// Nanoseconds that compaction takes for a byte that it writes.
    nanos_per_byte: Cell<u64>,
    /// Up to when what was written has used the time of slowed writers.
    used: Cell<Duration>,
    /// They were ahead of it by [`BURST`], and wait for it.
    is_closed: Cell<bool>,
    /// Someone waits for that.
    is_awaited: Cell<bool>,
    awaited: Notify,
    /// Keys of the memtable that is being flushed, and how many of them are in tables.
    flush: Cell<(usize, usize)>,
    /// Bytes up to which the active memtable may be filled meanwhile.
    flush_limit: Cell<usize>,
    /// Since when writers wait for the flush to go on.
    flush_awaited: Cell<Option<Duration>>,
}

/// What a tablet adds to debt and allowance.
fn dues(upper_bytes: u64, last_bytes: u64, ratio: u64, slack: u64) -> (u64, u64) {
    let allowance = last_bytes / ratio;
    (upper_bytes.saturating_sub(allowance + slack), allowance)
}

/// By how much writers are slowed at a pressure: nothing below ½, by [`WHOLE`] at 1, in one line.
fn factor(pressure: u64) -> u64 {
    (pressure.saturating_sub(SLOW) * WHOLE / (WHOLE - SLOW)).min(FACTOR_MAX)
}

/// Compaction's shares at a pressure.
fn shares(pressure: u64) -> u64 {
    SHARES.0 + (SHARES.1 - SHARES.0) * pressure.min(SLOW) / SLOW
}

/// Bytes up to which an active memtable of `bytes` may be filled when of `keys` being flushed `done` are in tables.
fn flush_limit(bytes: usize, keys: usize, done: usize) -> usize {
    let free = bytes / HEADROOM;
    free + (bytes - free) / STEPS * (done.min(keys) * STEPS / keys.max(1))
}

impl Pace {
    /// Of a shard that begins with so many tablets.
    pub fn new(options: &EngineOptions, tablets: usize) -> Pace {
        let slack = options.compaction_fan as u64 * options.memtable_bytes as u64;
        Pace {
            debt: Cell::new(0),
            allowance: Cell::new(0),
            slack: (slack, slack / tablets.max(1) as u64),
            nanos_per_byte: Cell::new(NANOS_PER_BYTE),
            used: Cell::new(Duration::ZERO),
            is_closed: Cell::new(false),
            is_awaited: Cell::new(false),
            awaited: Notify::new(),
            flush: Cell::new((0, 0)),
            flush_limit: Cell::new(flush_limit(options.memtable_bytes, 1, 0)),
            flush_awaited: Cell::new(None),
        }
    }

    /// Debt in thousandths of what may be above the last levels.
    fn pressure(&self) -> u64 {
        let (debt, allowance) =
            (u128::from(self.debt.get()), u128::from(self.allowance.get() + self.slack.0).max(1));
        u64::try_from(debt * u128::from(WHOLE) / allowance).unwrap_or(u64::MAX).min(u64::MAX / WHOLE / WHOLE)
    }

    /// Notes how long compaction took to write so many bytes.
    pub fn measure(&self, bytes: u64, took: Duration) {
        if bytes >= 1 << 20 {
            let nanos = (took.as_nanos() as u64 / bytes).clamp(1, 1000);
            // A merge counts for a quarter: one that met a slow disk must not stop writers.
            self.nanos_per_byte.set((self.nanos_per_byte.get() * 3 + nanos).div_ceil(4));
        }
    }
}

impl<E: Env> Engine<E> {
    /// Times that a byte is written by compaction, about: once or twice above the last level, and into it along
    /// with as much of it as is above it.
    fn rewrites(&self) -> u64 {
        self.options.level_ratio + 2
    }

    /// A tablet's tables have changed, or whether they may be merged.
    pub(super) fn count_debt(&self, tablet: &Tablet<E>) {
        let pace = &self.pace;
        let version = tablet.version();
        let now = self.avoided_at(tablet);
        // What can't come down is not waited for: a damaged block of one tablet slows no writer.
        let upper = match tablet.avoided.is_empty(now) {
            true => version.upper_totals().bytes,
            false => Totals::of(tablet.descending(&version, now)).bytes,
        };
        let last = version.last_totals().bytes;
        let (mut debt, allowance) = dues(upper, last, self.options.level_ratio, pace.slack.1);
        let not_before = tablet.no_merge_until.get();
        let has_failed = !not_before.is_zero() && not_before > self.env.now();
        if has_failed || tablet.presence.get() == Presence::Lost {
            debt = 0;
        }
        let (old_debt, old_allowance) = tablet.dues.replace((debt, allowance));
        pace.debt.set(pace.debt.get() + debt - old_debt);
        pace.allowance.set(pace.allowance.get() + allowance - old_allowance);
        let pressure = pace.pressure();
        self.metrics.compaction_debt_bytes.set(pace.debt.get());
        self.metrics.slowdown_permille.set(factor(pressure));
        let is_around = |tablet: &Rc<Tablet<E>>| !tablet.avoided.is_empty(self.avoided_at(tablet));
        let goes_around = self.tablets.borrow().iter().any(is_around);
        let shares = shares(if goes_around { pressure.max(SLOW) } else { pressure });
        self.env.set_shares(Queue::Compaction, shares as usize);
    }

    /// Whether a write must wait because flush or compaction is behind. Not to be asked when the flush fails.
    pub(super) fn must_slow_down(&self) -> bool {
        let pace = &self.pace;
        if self.sealed.borrow().len() >= self.options.sealed_max
            && self.active_fill() >= pace.flush_limit.get()
        {
            pace.flush_awaited.set(pace.flush_awaited.get().or_else(|| Some(self.env.now())));
            return true;
        }
        if self.metrics.slowdown_permille.get() == 0 {
            return false;
        }
        let allowed = if pace.is_closed.get() { Duration::ZERO } else { BURST };
        let is_ahead = pace.used.get() > self.env.now() + allowed;
        pace.is_closed.set(is_ahead);
        if is_ahead && !pace.is_awaited.replace(true) {
            pace.awaited.notify();
        }
        is_ahead
    }

    /// Notes that writers have brought `bytes`.
    #[inline]
    pub(super) fn accept(&self, bytes: u64) {
        let pace = &self.pace;
        Metrics::add(&self.metrics.write_bytes, bytes);
        let factor = self.metrics.slowdown_permille.get();
        if factor > 0 {
            let nanos = bytes * self.rewrites() * pace.nanos_per_byte.get() * factor / WHOLE;
            let earliest = self.env.now().saturating_sub(BURST);
            pace.used.set(pace.used.get().max(earliest) + Duration::from_nanos(nanos));
        }
    }

    /// A flush of `sealed` begins.
    pub(super) fn flush_begins(&self, sealed: &Sealed) {
        self.pace.flush.set((sealed.memtable.entries(), 0));
        self.pace.flush_limit.set(flush_limit(self.options.memtable_bytes, 1, 0));
    }

    /// So many more keys of it are in tables.
    pub(super) fn flush_goes_on(&self, keys: usize) {
        let pace = &self.pace;
        let (all, done) = pace.flush.get();
        pace.flush.set((all, done + keys));
        let limit = flush_limit(self.options.memtable_bytes, all, done + keys);
        if limit > pace.flush_limit.replace(limit) && pace.flush_awaited.get().is_some() {
            self.end_flush_wait();
            self.changed.notify();
        }
    }

    /// It has ended, one way or the other; the caller notifies.
    pub(super) fn flush_ends(&self) {
        self.pace.flush_limit.set(flush_limit(self.options.memtable_bytes, 1, 0));
        self.end_flush_wait();
    }

    fn end_flush_wait(&self) {
        if let Some(since) = self.pace.flush_awaited.take() {
            Metrics::add(&self.metrics.slowdown_micros, (self.env.now() - since).as_micros() as u64);
        }
    }

    /// Wakes writers that compaction has slowed when it is their time, until the engine stops.
    pub(super) async fn pace_loop(self: std::rc::Rc<Self>) {
        let pace = &self.pace;
        loop {
            let stopped = self.changed.until(|| self.is_stopping.get());
            futures_lite::future::or(pace.awaited.until(|| pace.is_awaited.get()), stopped).await;
            if self.is_stopping.get() {
                return;
            }
            let since = self.env.now();
            let stopped = self.changed.until(|| self.is_stopping.get());
            let wait = pace.used.get().saturating_sub(since);
            futures_lite::future::or(self.env.sleep(wait), stopped).await;
            pace.is_awaited.set(false);
            Metrics::add(&self.metrics.slowdown_micros, (self.env.now() - since).as_micros() as u64);
            self.changed.notify();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_are_slowed_in_one_line_from_half_of_what_may_be_due() {
        let factors: Vec<u64> = (0..=40).map(|tenths| factor(tenths * 100)).collect();
        assert!(factors[..=5].iter().all(|factor| *factor == 0), "{factors:?}");
        assert_eq!((factors[6], factors[10], factors[15]), (200, 1000, 2000));
        assert!(factors.windows(2).all(|pair| pair[1] - pair[0] <= 200), "no jumps: {factors:?}");
        assert_eq!(factor(u64::MAX / WHOLE / WHOLE), FACTOR_MAX);
    }

    #[test]
    fn debt_is_steady_in_both_levels() {
        let (mut before, mut upper) = (0, 0);
        for step in 0..10_000u64 {
            // A flush, or what comes down.
            upper = if step % 7 == 0 { upper / 2 } else { upper + 100 };
            let (debt, allowance) = dues(upper, step * 10, 4, 400);
            assert_eq!(allowance, step * 10 / 4);
            assert!(debt <= upper && debt.abs_diff(before) <= upper + 100, "step {step}");
            before = debt;
        }
        assert_eq!(dues(1000, 2000, 4, 500), (0, 500));
        assert_eq!(dues(1001, 2000, 4, 500), (1, 500));
    }

    #[test]
    fn compaction_has_more_of_the_core_the_more_is_due() {
        let shares: Vec<u64> = (0..=20).map(|tenths| shares(tenths * 100)).collect();
        assert_eq!((shares[0], shares[5], shares[20]), (100, 1000, 1000));
        assert!(shares.windows(2).all(|pair| (0..=180).contains(&(pair[1] - pair[0]))), "{shares:?}");
    }

    #[test]
    fn writers_go_on_in_step_with_the_flush() {
        let limits: Vec<usize> = (0..=1000).map(|done| flush_limit(64_000, 1000, done)).collect();
        assert_eq!((limits[0], limits[1000]), (16_000, 64_000));
        assert!(limits.windows(2).all(|pair| pair[0] <= pair[1] && pair[1] - pair[0] <= 48_000 / STEPS));
        assert_eq!(flush_limit(64_000, 1000, 2000), 64_000, "keys of parts that were flushed twice");
        assert_eq!(flush_limit(64_000, 0, 0), 16_000);
    }
}
