//! How much each tablet is used: counted as it is used, and looked at only when someone asks.

use std::cell::Cell;
use std::time::Duration;

use super::Engine;
use super::version::Totals;
use crate::base::TabletId;
use crate::env::Env;
use crate::slot::SlotRange;

/// Time after which a change of the load counts for about two thirds.
const MEMORY: Duration = Duration::from_secs(10);
/// Looks that follow each other faster than this are one: the rate of a few milliseconds says little.
const STEP_MIN: Duration = Duration::from_millis(100);

/// How much a tablet is used.
#[derive(Debug, Default)]
pub(super) struct Load {
    uses: Cell<u64>,
    /// When the rate was computed last, from which count, and what it was.
    looked_at: Cell<(Duration, u64, f64)>,
}

/// A tablet as its shard knows it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TabletReport {
    /// Which.
    pub id: TabletId,
    /// On which shard.
    pub shard: usize,
    /// Its slots.
    pub slots: SlotRange,
    /// Keys read or written since the server started.
    pub uses: u64,
    /// The same a second, lately.
    pub rate: f64,
    /// Tables.
    pub tables: u64,
    /// Bytes of its tables; of one that a split has divided, its part by slots.
    pub bytes: u64,
    /// Entries in them, likewise.
    pub entries: u64,
}

impl Load {
    fn rate(&self, now: Duration) -> f64 {
        let (at, uses, rate) = self.looked_at.get();
        let passed = now.saturating_sub(at);
        if passed < STEP_MIN {
            return rate;
        }
        let (seconds, memory) = (passed.as_secs_f64(), MEMORY.as_secs_f64());
        let current = (self.uses.get() - uses) as f64 / seconds;
        let rate = current + (rate - current) * (-seconds / memory).exp();
        self.looked_at.set((now, self.uses.get(), rate));
        rate
    }
}

impl<E: Env> Engine<E> {
    /// A key of the tablet with this local number is read or written.
    #[inline]
    pub fn note_use(&self, local: usize) {
        let tablets = self.tablets.borrow();
        let uses = &tablets[local].load.uses;
        uses.set(uses.get() + 1);
    }

    /// How often a tablet was used, and how often a second lately.
    pub fn load_of(&self, id: TabletId) -> (u64, f64) {
        let now = self.env.now();
        let tablets = self.tablets.borrow();
        let tablet = tablets.iter().find(|tablet| tablet.id == id);
        tablet.map_or((0, 0.0), |tablet| (tablet.load.uses.get(), tablet.load.rate(now)))
    }

    /// A tablet has come, or was split off, with a load that was measured before.
    pub fn adopt_load(&self, local: usize, uses: u64, rate: f64) {
        let tablet = self.tablet(local);
        tablet.load.uses.set(uses);
        tablet.load.looked_at.set((self.env.now(), uses, rate));
    }

    /// The tablets that are here; `shard` is this one.
    pub fn report(&self, shard: usize) -> Vec<TabletReport> {
        let now = self.env.now();
        let tablets = self.tablets.borrow();
        let here = tablets.iter().filter(|tablet| tablet.is_here());
        here.map(|tablet| {
            let slots = tablet.slots.get();
            let mut held = tablet.version.borrow().upper_totals();
            held.add(tablet.version.borrow().last_totals());
            let Totals { tables, bytes, entries, .. } = held;
            let (uses, rate) = (tablet.load.uses.get(), tablet.load.rate(now));
            TabletReport { id: tablet.id, shard, slots, uses, rate, tables, bytes, entries }
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_follows_the_load_within_some_seconds_and_forgets_it() {
        let load = Load::default();
        for second in 1..=40u64 {
            load.uses.set(load.uses.get() + 500);
            let rate = load.rate(Duration::from_secs(second));
            assert!((0.0..=500.1).contains(&rate));
            assert_eq!(rate, load.rate(Duration::from_secs(second)), "a second look changes nothing");
        }
        assert!(load.rate(Duration::from_secs(40)) > 480.0);
        // However often it is looked at.
        assert!(load.rate(Duration::from_secs(70)) < 30.0);
    }
}
