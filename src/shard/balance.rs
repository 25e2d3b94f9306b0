//! Which tablets to move or split so that shards are equally loaded. Pure.
//!
//! A tablet weighs what it is used, and a little for being there: where nothing is used, shards get equal
//! numbers of them.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::base::TabletId;
use crate::engine::TabletReport;

/// What a tablet weighs for being there, as a part of the mean.
const PRESENCE: f64 = 0.05;
/// Differences between two shards below this part of the mean load are left alone.
const TOLERANCE: f64 = 0.1;

/// How often [`Balancer::step`] is to be asked.
pub const PERIOD: Duration = Duration::from_secs(5);
/// Uses a second below which a shard is not hot, however little the others have: about a hundredth of what a core
/// can do.
const HOT_RATE_MIN: f64 = 2_000.0;
/// A shard is hot with this many times the mean load.
const HOT: f64 = 1.3;
/// For so many steps in a row before anything is done.
const HOT_STEPS: u32 = 3;
/// A tablet that was moved or split is left alone for so long: its rate must settle first.
const REST: Duration = Duration::from_secs(60);
/// Tablets of a shard beyond which none is split by itself.
const TABLETS_MAX: usize = 64;

/// A change that evens out load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Move a tablet to a shard.
    Move(TabletId, usize),
    /// Split a tablet in the middle.
    Split(TabletId),
}

/// Loads of the shards, and tablets with their weights.
struct Scales {
    loads: Vec<f64>,
    tablets: Vec<(TabletId, usize, f64)>,
}

impl Scales {
    fn new(tablets: &[TabletReport], shards: usize) -> Scales {
        let total: f64 = tablets.iter().map(|tablet| tablet.rate).sum();
        let presence = (total / tablets.len().max(1) as f64 * PRESENCE).max(1.0);
        let last = tablets.iter().map(|tablet| tablet.shard + 1).max().unwrap_or(0);
        let mut loads = vec![0.0; shards.max(last)];
        let tablets: Vec<_> =
            tablets.iter().map(|tablet| (tablet.id, tablet.shard, tablet.rate + presence)).collect();
        tablets.iter().for_each(|(_, shard, weight)| loads[*shard] += weight);
        Scales { loads, tablets }
    }

    fn least(&self, shards: usize) -> usize {
        (0..shards).min_by(|a, b| self.loads[*a].total_cmp(&self.loads[*b])).expect("there is a shard")
    }

    fn most(&self, shards: usize) -> usize {
        (0..shards).max_by(|a, b| self.loads[*a].total_cmp(&self.loads[*b])).expect("there is a shard")
    }

    fn shift(&mut self, at: usize, to: usize) -> Change {
        let (id, from, weight) = self.tablets[at];
        self.loads[from] -= weight;
        self.loads[to] += weight;
        self.tablets[at].1 = to;
        Change::Move(id, to)
    }

    /// The tablet whose move from one shard to another leaves them closest, if that is worth it.
    fn best(&self, from: usize, to: usize, shards: usize) -> Option<usize> {
        let gap = self.loads[from] - self.loads[to];
        let mean = self.loads[..shards].iter().sum::<f64>() / shards as f64;
        let left = |weight: f64| (gap - 2.0 * weight).abs();
        let on_it = self.tablets.iter().enumerate().filter(|(_, (_, shard, _))| *shard == from);
        let (at, (_, _, weight)) = on_it.min_by(|(_, a), (_, b)| left(a.2).total_cmp(&left(b.2)))?;
        (gap - left(*weight) > TOLERANCE * mean).then_some(at)
    }
}

/// Moves after which all tablets are on the first `shards` shards, which are equally loaded as far as may be.
///
/// # Panics
/// If `shards` is 0.
pub fn plan(tablets: &[TabletReport], shards: usize) -> Vec<Change> {
    let mut scales = Scales::new(tablets, shards);
    let mut changes = Vec::new();
    let mut outside: Vec<usize> = (0..tablets.len()).filter(|at| scales.tablets[*at].1 >= shards).collect();
    outside.sort_by(|a, b| scales.tablets[*b].2.total_cmp(&scales.tablets[*a].2));
    for at in outside {
        let to = scales.least(shards);
        changes.push(scales.shift(at, to));
    }
    // Each makes the loads more equal; the bound is for rounding.
    for _ in 0..tablets.len() * 2 {
        let (from, to) = (scales.most(shards), scales.least(shards));
        let Some(at) = scales.best(from, to, shards) else { break };
        changes.push(scales.shift(at, to));
    }
    changes
}

/// Relieves hot shards, slowly enough that no tablet goes to and fro.
#[derive(Debug, Default)]
pub struct Balancer {
    /// The shard that was hottest last, and for how many steps.
    hot: Option<(usize, u32)>,
    /// Tablets that are left alone, and since when.
    resting: BTreeMap<TabletId, Duration>,
}

impl Balancer {
    /// What to do now, if anything. Asked every [`PERIOD`].
    pub fn step(&mut self, tablets: &[TabletReport], shards: usize, now: Duration) -> Option<Change> {
        self.resting.retain(|_, since| now.saturating_sub(*since) < REST);
        let mut scales = Scales::new(tablets, shards);
        let (from, to) = (scales.most(shards), scales.least(shards));
        let mean = scales.loads[..shards].iter().sum::<f64>() / shards as f64;
        if scales.loads[from] < HOT_RATE_MIN || scales.loads[from] < HOT * mean {
            self.hot = None;
            return None;
        }
        let steps = self.hot.filter(|(shard, _)| *shard == from).map_or(1, |(_, steps)| steps + 1);
        self.hot = Some((from, steps));
        if steps < HOT_STEPS {
            return None;
        }
        self.hot = None;
        scales.tablets.retain(|(id, _, _)| !self.resting.contains_key(id));
        let change = match scales.best(from, to, shards) {
            Some(at) => scales.shift(at, to),
            None => self.divide(&scales, tablets, from)?,
        };
        let (Change::Move(id, _) | Change::Split(id)) = change;
        self.resting.insert(id, now);
        Some(change)
    }

    /// The heaviest tablet of a shard, if it is too heavy to be moved: its halves need not be.
    fn divide(&self, scales: &Scales, tablets: &[TabletReport], shard: usize) -> Option<Change> {
        let on_it = || scales.tablets.iter().filter(|(_, on, _)| *on == shard);
        let (id, _, weight) = on_it().max_by(|a, b| a.2.total_cmp(&b.2))?;
        let slots = tablets.iter().find(|tablet| tablet.id == *id)?.slots;
        let is_heavy = *weight > scales.loads[shard] / 2.0;
        (is_heavy && slots.count() > 1 && on_it().count() < TABLETS_MAX).then_some(Change::Split(*id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot::SlotRange;

    fn tablets(rates: &[(usize, f64)]) -> Vec<TabletReport> {
        let ranges = SlotRange::split_evenly(rates.len() as u16);
        let report = |(number, (slots, (shard, rate)))| TabletReport {
            id: TabletId(number),
            shard,
            slots,
            uses: 0,
            rate,
            tables: 0,
            bytes: 0,
            entries: 0,
        };
        (0..).zip(ranges.into_iter().zip(rates.iter().copied())).map(report).collect()
    }

    fn loads_after(tablets: &[TabletReport], changes: &[Change], shards: usize) -> Vec<(f64, usize)> {
        let mut tablets = tablets.to_vec();
        for change in changes {
            let Change::Move(id, to) = change else { panic!("{change:?}") };
            tablets[id.0 as usize].shard = *to;
        }
        let mut loads = vec![(0.0, 0); shards];
        for tablet in tablets {
            loads[tablet.shard].0 += tablet.rate;
            loads[tablet.shard].1 += 1;
        }
        loads
    }

    #[test]
    fn idle_tablets_are_spread_by_number_and_stay_once_they_are() {
        let all = tablets(&[(0, 0.0); 16]);
        let changes = plan(&all, 3);
        let mut counts: Vec<usize> = loads_after(&all, &changes, 3).into_iter().map(|(_, n)| n).collect();
        counts.sort_unstable();
        assert_eq!(counts, [5, 5, 6]);
        assert_eq!(changes.len(), 10, "none moves twice");
        let even: Vec<_> = (0..16).map(|number| (number % 2, 0.0)).collect();
        assert!(plan(&tablets(&even), 2).is_empty());
        assert!(plan(&tablets(&[(0, 5.0)]), 1).is_empty());
    }

    #[test]
    fn fewer_shards_take_over_everything_and_load_is_even() {
        let mut rng = fastrand::Rng::with_seed(3);
        for _ in 0..100 {
            let rates: Vec<_> = (0..32).map(|_| (rng.usize(..4), f64::from(rng.u32(..1000)))).collect();
            let all = tablets(&rates);
            let shards = rng.usize(1..=4);
            let after = loads_after(&all, &plan(&all, shards), 4);
            assert!(after[shards..].iter().all(|(_, count)| *count == 0));
            let mean = after.iter().map(|(load, _)| load).sum::<f64>() / shards as f64;
            assert!(after[..shards].iter().all(|(load, _)| (load - mean).abs() < mean / 4.0), "{after:?}");
        }
    }

    #[test]
    fn a_hot_shard_is_relieved_after_some_steps_and_nothing_goes_to_and_fro() {
        let mut balancer = Balancer::default();
        let all = tablets(&[(0, 9_000.0), (0, 8_000.0), (1, 500.0), (1, 500.0)]);
        let now = |step: u64| Duration::from_secs(5 * step);
        assert_eq!(balancer.step(&all, 2, now(1)), None);
        assert_eq!(balancer.step(&all, 2, now(2)), None);
        let Some(Change::Move(moved, 1)) = balancer.step(&all, 2, now(3)) else { panic!("it is hot") };
        let mut after = all.clone();
        after[moved.0 as usize].shard = 1;
        assert!((4..40).all(|step| balancer.step(&after, 2, now(step)).is_none()));
        // Little load is never hot, nor is what one step shows.
        let little = tablets(&[(0, 900.0), (0, 800.0), (1, 1.0)]);
        assert!((0..10).all(|step| balancer.step(&little, 2, now(step)).is_none()));
        for step in 0..30 {
            let some = if step % 2 == 0 { &all } else { &little };
            assert_eq!(balancer.step(some, 2, now(step)), None);
        }
    }

    #[test]
    fn a_tablet_that_is_too_heavy_to_move_is_split() {
        let mut balancer = Balancer::default();
        let all = tablets(&[(0, 50_000.0), (1, 500.0), (1, 500.0)]);
        let changes: Vec<_> =
            (0..4).filter_map(|step| balancer.step(&all, 2, Duration::from_secs(5 * step))).collect();
        assert_eq!(changes, [Change::Split(TabletId(0))]);
    }
}
