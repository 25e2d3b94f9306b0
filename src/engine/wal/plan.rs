//! Which records of which logs count: the result of the first phase of a replay.
//!
//! A record with an index already seen, at a *later* place, replaces it and drops everything above it.
//! So whether a record counts is known only once all logs were scanned; a replay that applied while it
//! scanned would be wrong as soon as a log can be overwritten.

use std::collections::BTreeMap;

use super::WalError;
use crate::base::{BlockSeq, EntryIndex, LogId, TabletId};

/// A record's place: log, block, ordinal in the block. Later is larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Log; later starts have larger ids.
    pub log: LogId,
    /// Block in the log.
    pub block: BlockSeq,
    /// Record in the block.
    pub ordinal: u32,
}

/// Consecutive entries of one tablet, from consecutive records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Of its first record.
    pub start: Place,
    /// First entry that counts.
    pub first: EntryIndex,
    /// Last entry that counts.
    pub last: EntryIndex,
    /// Highest term.
    pub term: u64,
}

/// Builds runs from records in order of their places. Memory is per overwrite or gap, not per record.
#[derive(Clone, Debug, Default)]
pub struct RunBuilder {
    tablets: BTreeMap<TabletId, Vec<Run>>,
}

impl RunBuilder {
    /// Adds the entries `first..=last` of `tablet`, whose first record is at `start`.
    pub fn add(&mut self, tablet: TabletId, start: Place, first: EntryIndex, last: EntryIndex, term: u64) {
        let runs = self.tablets.entry(tablet).or_default();
        if let Some(run) = runs.last_mut()
            && first == run.last.next()
            && run.start.log == start.log
        {
            assert!(start > run.start, "records are added in order");
            run.last = last;
            run.term = run.term.max(term);
            return;
        }
        Self::replace(runs, Run { start, first, last, term });
    }

    /// Appends a run, which takes the place of everything at or above its first index.
    fn replace(runs: &mut Vec<Run>, new: Run) {
        while let Some(run) = runs.last_mut() {
            if run.first < new.first {
                run.last = run.last.min(EntryIndex(new.first.0 - 1));
                break;
            }
            runs.pop();
        }
        runs.push(new);
    }

    /// The runs of every tablet, in order.
    pub fn tablets(&self) -> &BTreeMap<TabletId, Vec<Run>> {
        &self.tablets
    }
}

/// What phase two applies.
#[derive(Clone, Debug, Default)]
pub struct ReplayPlan {
    runs: RunBuilder,
}

impl ReplayPlan {
    /// Merges what was found in each log; `scans` in the order of log ids. `flushed` tells what tables
    /// hold already: from there on no entry may be missing. `needs` tells which logs a tablet needs: what others
    /// hold of it is older, whatever their ids, since it had been flushed when it moved from one to the next.
    pub fn merge<'a>(
        scans: impl IntoIterator<Item = &'a RunBuilder>,
        flushed: impl Fn(TabletId) -> EntryIndex,
        needs: impl Fn(TabletId, LogId) -> bool,
    ) -> Result<ReplayPlan, WalError> {
        ReplayPlan::merge_behind(scans, flushed, needs, Err)
    }

    /// Does the same, but goes on behind gaps for which `gap` says `Ok`.
    pub fn merge_behind<'a>(
        scans: impl IntoIterator<Item = &'a RunBuilder>,
        flushed: impl Fn(TabletId) -> EntryIndex,
        needs: impl Fn(TabletId, LogId) -> bool,
        mut gap: impl FnMut(WalError) -> Result<(), WalError>,
    ) -> Result<ReplayPlan, WalError> {
        let mut runs = RunBuilder::default();
        for scan in scans {
            for (tablet, found) in &scan.tablets {
                // Not `add`: two runs that meet in their indexes may stand at places with others between.
                let merged = runs.tablets.entry(*tablet).or_default();
                let counting = found.iter().filter(|run| needs(*tablet, run.start.log));
                counting.for_each(|run| RunBuilder::replace(merged, *run));
            }
        }
        for (&tablet, runs) in &runs.tablets {
            let mut covered = flushed(tablet);
            for run in runs {
                if run.first > covered.next() {
                    let last = EntryIndex(run.first.0 - 1);
                    gap(WalError::Gap { tablet, first: covered.next(), last })?;
                }
                covered = covered.max(run.last);
            }
        }
        Ok(ReplayPlan { runs })
    }

    /// Whether the record at `place` counts.
    pub fn is_live(&self, tablet: TabletId, place: Place, index: EntryIndex) -> bool {
        let Some(runs) = self.runs.tablets.get(&tablet) else { return false };
        let run = runs.iter().rev().find(|run| run.start <= place);
        run.is_some_and(|run| (run.first..=run.last).contains(&index))
    }

    /// Last entry of a tablet in the logs, with its term.
    pub fn last(&self, tablet: TabletId) -> Option<(EntryIndex, u64)> {
        let run = self.runs.tablets.get(&tablet)?.last()?;
        Some((run.last, run.term))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: TabletId = TabletId(5);

    fn place(log: u64, block: u64) -> Place {
        Place { log: LogId(log), block: BlockSeq(block), ordinal: 0 }
    }

    fn add(builder: &mut RunBuilder, log: u64, block: u64, index: u64) {
        builder.add(T, place(log, block), EntryIndex(index), EntryIndex(index), 1);
    }

    #[test]
    fn a_later_record_replaces_its_index_and_all_above() {
        let (mut old, mut new) = (RunBuilder::default(), RunBuilder::default());
        (1..=9).for_each(|i| add(&mut old, 1, i, i));
        add(&mut new, 2, 1, 6);
        add(&mut new, 2, 2, 7);
        let plan = ReplayPlan::merge([&old, &new], |_| EntryIndex::ZERO, |_, _| true).unwrap();
        for index in 1..=9 {
            assert_eq!(
                plan.is_live(T, place(1, index), EntryIndex(index)),
                index <= 5,
                "{index} in the old log"
            );
        }
        assert!(plan.is_live(T, place(2, 1), EntryIndex(6)));
        assert!(plan.is_live(T, place(2, 2), EntryIndex(7)));
        assert_eq!(plan.last(T), Some((EntryIndex(7), 1)));
    }

    #[test]
    fn an_overwrite_inside_one_log_counts_as_well() {
        let mut log = RunBuilder::default();
        (1..=5).for_each(|i| add(&mut log, 1, i, i));
        add(&mut log, 1, 6, 3);
        add(&mut log, 1, 7, 4);
        let plan = ReplayPlan::merge([&log], |_| EntryIndex::ZERO, |_, _| true).unwrap();
        let live: Vec<_> = [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 3), (7, 4)]
            .into_iter()
            .filter(|&(block, index)| plan.is_live(T, place(1, block), EntryIndex(index)))
            .collect();
        assert_eq!(live, [(1, 1), (2, 2), (6, 3), (7, 4)]);
    }

    /// A tablet moved from log 1 to log 2 and back. What log 2 holds of it would drop what log 1 has since.
    #[test]
    fn a_log_that_the_tablet_does_not_need_takes_nothing_away() {
        let (mut one, mut two) = (RunBuilder::default(), RunBuilder::default());
        (1..=3).for_each(|i| add(&mut one, 1, i, i));
        (4..=6).for_each(|i| add(&mut two, 2, i, i));
        (7..=9).for_each(|i| add(&mut one, 1, i, i));
        let needs = |_, log| log == LogId(1);
        let plan = ReplayPlan::merge([&one, &two], |_| EntryIndex(6), needs).unwrap();
        assert_eq!(plan.last(T), Some((EntryIndex(9), 1)));
        assert!((7..=9).all(|i| plan.is_live(T, place(1, i), EntryIndex(i))));
    }

    #[test]
    fn a_missing_entry_is_an_error_unless_it_was_flushed() {
        let mut log = RunBuilder::default();
        add(&mut log, 1, 1, 4);
        assert!(matches!(
            ReplayPlan::merge([&log], |_| EntryIndex(2), |_, _| true),
            Err(WalError::Gap { .. })
        ));
        assert!(ReplayPlan::merge([&log], |_| EntryIndex(3), |_, _| true).is_ok());
        assert!(ReplayPlan::merge([&log], |_| EntryIndex(9), |_, _| true).is_ok());
    }
}
