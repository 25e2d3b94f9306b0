//! When keys expire: a shard's time, and what flushes and merges make of entries whose time is past.
//!
//! An entry carries the absolute time from which on it counts as a tombstone. Nothing happens at that moment:
//! - Reads compare it with the shard's [`Clock`], so the key is gone at once for everyone who asks.
//! - Flushes and merges write a tombstone in its place ([`Cutoff`]), which needs no value, and like any
//!   tombstone goes when the tablet's oldest table takes part.
//! - A table of which half is past is merged for that alone (`compaction::pick_expired`), so keys that
//!   nobody asks for go as well.
//!
//! A replay evaluates none of this: it puts back what was logged, expiry included.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::ranges::RangeDeletes;
use crate::base::{Bug, Entry, Lsn, planted};
use crate::env::Env;

/// A shard's time in milliseconds since the epoch, by which it hides expired keys. It is read once per turn,
/// and the same for all requests of it.
///
/// It follows the wall clock, but never goes back: a key that was seen expired does not return. While the
/// wall clock is behind, it goes on at half speed until that has caught up. Standing still would keep new
/// keys alive for as long as the clock was set back; full speed would never meet the wall clock again. So a
/// time to live lasts at most twice as long as it should, and clocks agree in the end.
///
/// It lives in memory: a restart begins with the wall clock as it is, and if that was set back before, keys
/// that were expired and not yet removed from disk are there until it is their time once more.
pub struct Clock<E: Env> {
    env: E,
    now_ms: Cell<u64>,
    /// While the wall clock is behind: since when, and what the time was then.
    behind: Cell<Option<(Duration, u64)>>,
}

impl<E: Env> Clock<E> {
    /// A clock that begins with the wall clock.
    pub fn new(env: &E) -> Clock<E> {
        Clock { env: env.clone(), now_ms: Cell::new(env.wall_ms()), behind: Cell::new(None) }
    }

    /// The time as it was when it was read last.
    #[inline]
    pub fn now_ms(&self) -> u64 {
        self.now_ms.get()
    }

    /// A key that was hidden by another shard's clock at this time comes to this shard: it stays hidden.
    pub fn catch_up(&self, now_ms: u64) {
        if now_ms > self.now_ms.get() {
            self.now_ms.set(now_ms);
            self.behind.set(None);
        }
    }

    /// Reads the clock: about 50 ns, which is why not every lookup does it.
    pub fn tick(&self) -> u64 {
        let (wall_ms, before) = (self.env.wall_ms(), self.now_ms.get());
        if wall_ms >= before || planted(Bug::ClockGoesBack) {
            self.behind.set(None);
            self.now_ms.set(wall_ms);
            return wall_ms;
        }
        let now = self.env.now();
        let (since, from_ms) = self.behind.get().unwrap_or((now, before));
        self.behind.set(Some((since, from_ms)));
        let passed_ms = u64::try_from(now.saturating_sub(since).as_millis()).unwrap_or(u64::MAX);
        self.now_ms.set(from_ms.saturating_add(passed_ms / 2).max(before));
        self.now_ms.get()
    }
}

/// The time as of which one flush or merge judges all its entries, taken once when it begins. It is the
/// shard's time, as for reads: what a read has hidden is past for the merge as well. With replicas it will
/// have to come from what was applied.
///
/// With it comes what range deletes have removed: that is not written at all, since they hide what is older as
/// well.
pub struct Cutoff {
    now_ms: u64,
    ranges: Rc<RangeDeletes>,
    expired: Cell<u64>,
    removed: Cell<u64>,
    kept: Cell<u64>,
}

impl Cutoff {
    /// At this time, and after these range deletes, which must stay known until nothing older is hidden by them.
    pub fn new(now_ms: u64, ranges: Rc<RangeDeletes>) -> Cutoff {
        Cutoff { now_ms, ranges, expired: Cell::new(0), removed: Cell::new(0), kept: Cell::new(0) }
    }

    /// Whether a range delete has removed the entry, so that nothing is to be written: for those who read now,
    /// and for snapshots as of `lsns`.
    #[inline]
    pub fn removes(&self, key: &[u8], entry: &Entry<'_>, lsns: &[Lsn]) -> bool {
        let Some(covering) = self.ranges.covering(key).filter(|covering| entry.lsn < *covering) else {
            return false;
        };
        let is_seen = lsns.iter().any(|lsn| (entry.lsn..covering).contains(lsn));
        let count = if is_seen { &self.kept } else { &self.removed };
        count.set(count.get() + 1);
        !is_seen
    }

    /// What is to be written of `entry`: a tombstone if its time is past. Whether that tombstone still has
    /// something to hide is for the caller to say, as of any other.
    #[inline]
    pub fn apply<'a>(&self, entry: Entry<'a>) -> Entry<'a> {
        self.expired.set(self.expired.get() + u64::from(entry.is_expired(self.now_ms)));
        entry.at(self.now_ms)
    }

    /// Entries whose time was past.
    pub fn expired(&self) -> u64 {
        self.expired.get()
    }

    /// Entries that range deletes had removed.
    pub fn removed(&self) -> u64 {
        self.removed.get()
    }

    /// Whether some of those were written for snapshots.
    pub fn has_kept(&self) -> bool {
        self.kept.get() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::sim::SimEnv;

    #[test]
    fn a_tablet_that_comes_brings_the_time_by_which_its_keys_were_hidden() {
        let (world, env) = SimEnv::fresh(1);
        world.run(async {
            let (source, target) = (Clock::new(&env), Clock::new(&env));
            env.sleep(Duration::from_secs(5)).await;
            let hidden_at = source.tick();
            world.jump_wall(-60_000);
            assert!(target.tick() < hidden_at);
            target.catch_up(source.now_ms());
            assert!(target.tick() >= hidden_at);
            env.sleep(Duration::from_secs(10)).await;
            assert!((hidden_at..hidden_at + 6000).contains(&target.tick()), "at half speed");
        });
    }

    #[test]
    fn time_never_goes_back_and_meets_the_wall_clock_again() {
        let (world, env) = SimEnv::fresh(1);
        let clock = Clock::new(&env);
        let pass = |ms| world.run(world.sleep(Duration::from_millis(ms)));
        let start = clock.now_ms();
        pass(500);
        assert_eq!(clock.now_ms(), start, "it is read only when it is told to");
        assert_eq!(clock.tick(), start + 500);
        world.jump_wall(60_000);
        assert_eq!(clock.tick(), start + 60_500, "forward it follows at once");
        world.jump_wall(-60_000);
        assert_eq!(clock.tick(), start + 60_500);
        pass(10_000);
        let half = clock.tick() - start;
        assert!((65_499..=65_501).contains(&half), "half speed: {half}");
        // 60 s behind at half speed: after 120 s they meet, and go on together.
        for _ in 0..100 {
            pass(1_000);
            assert!(clock.tick() > env.wall_ms());
        }
        pass(12_000);
        assert_eq!(clock.tick(), env.wall_ms());
        pass(1_000);
        assert_eq!(clock.tick(), env.wall_ms());
        world.jump_wall(-5);
        assert_eq!(clock.tick(), env.wall_ms() + 5, "behind once more, by another amount");
    }
}
