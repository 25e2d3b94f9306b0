//! Which tables of a tablet to merge: size-tiered, neighbours only. Pure.
//!
//! Sizes fall into tiers, each `fan` times the one below. A table that is no larger than one in front of it
//! counts as of that one's tier, so tiers never fall from newest to oldest. As soon as `fan` tables are of
//! one tier, they become one of the next, and all newer ones, which are smaller, go along. So an entry is
//! rewritten about once per tier, and a tablet has at most `fan − 1` tables in each tier that its size
//! reaches: 10,000 flushes with a fan of 4 make at most 22 tables, of which a filter rules out nearly all for
//! any one key.
//!
//! Tombstones free nothing until they meet the oldest table. Each hides about one entry, so when a quarter of
//! all entries are tombstones, half of what is held is garbage: then everything becomes one table, whatever
//! the tiers say. (At half tombstones nothing would be left alive: too late a threshold.)

use std::ops::Range;

use crate::engine::sstable::TableMeta;

/// Inputs of one merge, at most: it bounds the memory that read-ahead takes.
pub const INPUTS_MAX: usize = 16;

/// What the picker knows of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Size of its file.
    pub bytes: u64,
    /// Entries, tombstones included.
    pub entries: u64,
    /// Tombstones.
    pub tombstones: u64,
}

impl From<&TableMeta> for Run {
    fn from(meta: &TableMeta) -> Run {
        Run { bytes: meta.bytes, entries: meta.entries, tombstones: meta.tombstones }
    }
}

/// Which of a tablet's tables, newest first, to merge into one.
pub fn pick(runs: &[Run], fan: usize) -> Option<Range<usize>> {
    assert!((2..=INPUTS_MAX).contains(&fan), "a merge takes 2 to {INPUTS_MAX} tables");
    if runs.len() <= INPUTS_MAX && is_half_garbage(runs) {
        return Some(0..runs.len());
    }
    let tier = |run: &Run| run.bytes.max(1).ilog(fan as u64);
    let mut best = None;
    let (mut start, mut highest) = (0, 0);
    for (at, run) in runs.iter().enumerate() {
        if tier(run) > highest {
            (start, highest) = (at, tier(run));
        }
        // The oldest tier that is full: a merge of its tables takes those in front along.
        if at + 1 - start >= fan {
            best = Some(start..at + 1);
        }
    }
    let Range { start, end } = best?;
    // A backlog. The oldest first: what comes of them is like those in front, and joins them next.
    let first = if end <= INPUTS_MAX { 0 } else { start.max(end - INPUTS_MAX) };
    Some(first..end)
}

fn is_half_garbage(runs: &[Run]) -> bool {
    let entries: u64 = runs.iter().map(|run| run.entries).sum();
    let tombstones: u64 = runs.iter().map(|run| run.tombstones).sum();
    tombstones > 0 && tombstones >= entries / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live(bytes: u64) -> Run {
        Run { bytes, entries: bytes, tombstones: 0 }
    }

    /// One run as `bytes` or `bytes/tombstones` (as many entries as bytes), or several as `count*bytes`.
    fn parse(word: &str) -> Vec<Run> {
        let number = |word: &str| word.parse::<u64>().unwrap_or_else(|_| panic!("{word} is no number"));
        if let Some((count, bytes)) = word.split_once('*') {
            return vec![live(number(bytes)); number(count) as usize];
        }
        let (bytes, tombstones) = word.split_once('/').unwrap_or((word, "0"));
        vec![Run { tombstones: number(tombstones), ..live(number(bytes)) }]
    }

    #[test]
    fn choices_are_those_of_the_table() {
        let stories = include_str!("../../../tests/data/compaction_picker.txt");
        let lines = stories.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut count = 0;
        for line in lines {
            let (state, expected) = line.split_once("->").unwrap_or_else(|| panic!("{line}: no arrow"));
            let (fan, runs) = state.split_once(':').unwrap_or_else(|| panic!("{line}: no fan"));
            let runs: Vec<Run> = runs.split_whitespace().flat_map(parse).collect();
            let choice = pick(&runs, fan.trim().parse().unwrap());
            let choice = choice.map_or("none".to_owned(), |range| format!("{}..{}", range.start, range.end));
            assert_eq!(choice, expected.trim(), "{line}");
            count += 1;
        }
        assert!(count > 10, "{count} stories");
    }

    /// What a load made of a tablet.
    #[derive(Default)]
    struct Load {
        runs: Vec<Run>,
        written: u64,
        rewritten: u64,
        most: usize,
    }

    impl Load {
        fn flush(&mut self, run: Run, fan: usize) {
            self.written += run.bytes;
            self.runs.insert(0, run);
            for merges in 0.. {
                let Some(range) = pick(&self.runs, fan) else { break };
                assert!(merges < 100, "merging comes to an end: {:?}", self.runs);
                assert!((1..=INPUTS_MAX).contains(&range.len()) && range.end <= self.runs.len());
                self.merge(range);
            }
            self.most = self.most.max(self.runs.len());
        }

        /// No key twice, except that each tombstone at the bottom takes one entry with it.
        fn merge(&mut self, range: Range<usize>) {
            let is_last = range.end == self.runs.len();
            let sum = |of: fn(&Run) -> u64| self.runs[range.clone()].iter().map(of).sum::<u64>();
            let (bytes, mut entries, mut tombstones) =
                (sum(|run| run.bytes), sum(|run| run.entries), sum(|run| run.tombstones));
            let before = entries;
            if is_last {
                entries = entries.saturating_sub(2 * tombstones);
                tombstones = 0;
            }
            let bytes = bytes * entries / before.max(1);
            self.rewritten += bytes;
            let output = (entries > 0).then_some(Run { bytes, entries, tombstones });
            self.runs.splice(range, output);
        }

        fn amplification(&self) -> f64 {
            self.rewritten as f64 / self.written as f64
        }
    }

    #[test]
    fn over_a_long_load_tables_stay_few_and_rewrites_logarithmic() {
        for fan in [2, 4, 8] {
            let mut rng = fastrand::Rng::with_seed(3);
            let mut load = Load::default();
            for _ in 0..10_000 {
                load.flush(live(rng.u64(800..1200)), fan);
            }
            let tiers = 10_000f64.log(fan as f64);
            let amplification = load.amplification();
            assert!(amplification < 1.3 * tiers, "fan {fan}: rewritten {amplification} times");
            let most = ((fan - 1) as f64 * (tiers + 2.0)) as usize;
            assert!(load.most <= most, "fan {fan}: {} tables", load.most);
        }
    }

    #[test]
    fn flushes_of_any_size_and_backlogs_of_any_length_come_to_few_tables() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut load = Load::default();
            let backlog = rng.usize(..200);
            load.runs = (0..backlog).map(|_| live(1 << rng.u32(..24))).collect();
            for _ in 0..300 {
                load.flush(live(1 << rng.u32(..16)), 4);
            }
            // Up to 2^27 bytes: 14 tiers of up to 3 tables.
            assert!(load.runs.len() <= 42, "seed {seed}: {} tables", load.runs.len());
            assert!(pick(&load.runs, 4).is_none());
        }
    }

    #[test]
    fn a_queue_stays_small_and_is_not_rewritten_for_ever() {
        let mut load = Load::default();
        for _ in 0..2000 {
            // Each flush holds as many new entries as tombstones of old ones.
            load.flush(Run { bytes: 1000, entries: 1000, tombstones: 480 }, 4);
            let held: u64 = load.runs.iter().map(|run| run.entries).sum();
            assert!(held < 200_000, "{held} entries");
        }
        assert!(load.amplification() < 4.0, "rewritten {} times", load.amplification());
    }
}
