//! What to do next with a tablet's tables. Pure.
//!
//! **Above the last level** merges are size-tiered, of neighbours only. Sizes fall into tiers, each `fan` times
//! the one below. A table that is no larger than one in front of it counts as of that one's tier, so tiers never
//! fall from newest to oldest. As soon as `fan` tables are of one tier, they become one of the next, and all
//! newer ones, which are smaller, go along. So an entry is rewritten about once per tier.
//!
//! **The last level** is one run of tables that share no keys. When the tables above it hold a `ratio`-th of what
//! it does, a descent begins: step by step, by ranges of keys, they are merged into it. What that rewrites of the
//! last level is `ratio` times what comes down, and what above hides below is at most a `ratio`-th of all. While
//! a descent is under way, newer tables are merged among themselves; what was begun is brought to its end before
//! another descent begins.
//!
//! **Tombstones** free nothing until they meet what they hide. When they are a quarter of the entries of all
//! tables between which they lie, a descent begins whatever the sizes: half of those entries may be garbage then,
//! and whoever walks them walks as much in vain. (At half tombstones nothing would be left alive: too late.)
//!
//! **Tables that can't be read** are gone around: those in front of one are merged as if it were not there, those
//! behind it as well, and only the latter descend.

use std::ops::Range;

use crate::engine::version::Totals;

/// Inputs of one merge, at most: it bounds the memory that read-ahead takes.
pub const INPUTS_MAX: usize = 16;
/// With this part of the last level above it (one in …), an idle tablet's tables descend.
const IDLE_PART: u64 = 10;

/// What the picker knows of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Bytes that count.
    pub bytes: u64,
    /// Entries that count, tombstones included.
    pub entries: u64,
    /// Tombstones that count.
    pub tombstones: u64,
    /// Whether it can't be read.
    pub is_avoided: bool,
}

impl From<Totals> for Run {
    fn from(totals: Totals) -> Run {
        Run { bytes: totals.bytes, entries: totals.entries, tombstones: totals.tombstones, is_avoided: false }
    }
}

/// How the tables are to be shaped.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Tables of like size that become one, above the last level.
    pub fan: usize,
    /// How many times what is above it the last level may be before that descends.
    pub ratio: u64,
}

/// A tablet, as the picker sees it.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    /// Tables above the last level, newest first, without those of a descent that is under way.
    pub front: Vec<Run>,
    /// Tables of a descent that is under way.
    pub sinking: usize,
    /// The last level.
    pub last: Run,
    /// The part of it that `front` may share keys with. Asked for only if tombstones are many.
    pub reached: Run,
    /// Whether a descent, that under way or the next, would read a table that can't be read.
    pub is_blocked: bool,
    /// Whether nothing is written.
    pub is_idle: bool,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Make these tables of the upper level, newest first, one.
    Merge(Range<usize>),
    /// Go on with the descent that is under way.
    GoOn,
    /// Begin a descent of the tables of the upper level from this one on.
    Descend(usize),
}

impl Choice {
    /// Which of several tablets' comes first: what keeps reads short, then what was begun.
    pub fn urgency(&self) -> usize {
        match self {
            Choice::Merge(range) => 2 + range.len(),
            Choice::GoOn => 2,
            Choice::Descend(_) => 1,
        }
    }
}

fn sum(runs: &[Run], of: fn(&Run) -> u64) -> u64 {
    runs.iter().map(of).sum()
}

impl Shape {
    /// Where those begin that may descend.
    fn first(&self) -> usize {
        self.front.iter().rposition(|run| run.is_avoided).map_or(0, |at| at + 1)
    }

    /// Those that may descend: what is in front of one that can't be read stays there.
    fn oldest(&self) -> &[Run] {
        &self.front[self.first()..]
    }

    /// Whether so many entries of those that may descend are tombstones that it matters what they reach.
    pub fn has_many_tombstones(&self) -> bool {
        let tombstones = sum(self.oldest(), |run| run.tombstones);
        tombstones > 0 && tombstones >= sum(self.oldest(), |run| run.entries) / 4
    }

    fn is_half_garbage(&self) -> bool {
        let entries = sum(self.oldest(), |run| run.entries) + self.reached.entries;
        self.has_many_tombstones() && sum(self.oldest(), |run| run.tombstones) >= entries / 4
    }

    fn must_descend(&self, policy: &Policy) -> bool {
        if self.is_blocked || self.oldest().is_empty() {
            return false;
        }
        let bytes = sum(self.oldest(), |run| run.bytes);
        let is_large = bytes.saturating_mul(policy.ratio) >= self.last.bytes;
        let is_idle_time = self.is_idle && bytes.saturating_mul(IDLE_PART) > self.last.bytes;
        (is_large && self.oldest().len() >= policy.fan) || is_idle_time || self.is_half_garbage()
    }
}

/// What to do next with a tablet.
pub fn pick(shape: &Shape, policy: &Policy) -> Option<Choice> {
    assert!((2..=INPUTS_MAX).contains(&policy.fan), "a merge takes 2 to {INPUTS_MAX} tables");
    let merge = || pick_around(&shape.front, policy.fan).map(Choice::Merge);
    if shape.sinking > 0 {
        return merge().or((!shape.is_blocked).then_some(Choice::GoOn));
    }
    if shape.must_descend(policy) {
        // One input is the last level's.
        let first = shape.front.len().saturating_sub(INPUTS_MAX - 1).max(shape.first());
        return Some(Choice::Descend(first));
    }
    merge()
}

/// Which of these tables, newest first, to merge into one: neighbours between two that can't be read.
fn pick_around(runs: &[Run], fan: usize) -> Option<Range<usize>> {
    let mut start = 0;
    for part in runs.split(|run| run.is_avoided) {
        if let Some(range) = pick_merge(part, fan) {
            return Some(start + range.start..start + range.end);
        }
        start += part.len() + 1;
    }
    None
}

/// Which of these tables, newest first, to merge into one.
fn pick_merge(runs: &[Run], fan: usize) -> Option<Range<usize>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn live(bytes: u64) -> Run {
        Run { bytes, entries: bytes, ..Run::default() }
    }

    /// One run as `bytes` or `bytes/tombstones` (as many entries as bytes), or several as `count*bytes`; `!` in front:
    /// it can't be read.
    fn parse(word: &str) -> Vec<Run> {
        if let Some(word) = word.strip_prefix('!') {
            return parse(word).into_iter().map(|run| Run { is_avoided: true, ..run }).collect();
        }
        let number = |word: &str| word.parse::<u64>().unwrap_or_else(|_| panic!("{word} is no number"));
        if let Some((count, bytes)) = word.split_once('*') {
            return vec![live(number(bytes)); number(count) as usize];
        }
        let (bytes, tombstones) = word.split_once('/').unwrap_or((word, "0"));
        vec![Run { tombstones: number(tombstones), ..live(number(bytes)) }]
    }

    /// See the head of the stories.
    fn parse_shape(text: &str) -> (Policy, Shape) {
        let (policy, tables) = text.split_once(':').unwrap_or_else(|| panic!("{text}: no policy"));
        let (fan, ratio) = policy.trim().split_once('/').unwrap_or_else(|| panic!("{text}: no ratio"));
        let (upper, last) = tables.split_once('|').unwrap_or_else(|| panic!("{text}: no last level"));
        let (front, sinking) = upper.split_once(';').unwrap_or((upper, ""));
        let mut shape = Shape {
            front: front.split_whitespace().flat_map(parse).collect(),
            sinking: sinking.split_whitespace().flat_map(parse).count(),
            ..Shape::default()
        };
        let mut words = last.split_whitespace();
        shape.last = words.next().map_or(Run::default(), |word| parse(word)[0]);
        shape.reached = shape.last;
        for word in words {
            match word.split_once('=') {
                Some(("reached", bytes)) => shape.reached = parse(bytes)[0],
                _ if word == "blocked" => shape.is_blocked = true,
                _ => shape.is_idle = word == "idle",
            }
        }
        (Policy { fan: fan.parse().unwrap(), ratio: ratio.parse().unwrap() }, shape)
    }

    #[test]
    fn choices_are_those_of_the_table() {
        let stories = include_str!("../../../tests/data/compaction_picker.txt");
        let lines = stories.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut count = 0;
        for line in lines {
            let (state, expected) = line.split_once("->").unwrap_or_else(|| panic!("{line}: no arrow"));
            let (policy, shape) = parse_shape(state);
            let choice = match pick(&shape, &policy) {
                None => "none".to_owned(),
                Some(Choice::Merge(range)) => format!("merge {}..{}", range.start, range.end),
                Some(Choice::GoOn) => "go on".to_owned(),
                Some(Choice::Descend(first)) => format!("descend {first}"),
            };
            assert_eq!(choice, expected.trim(), "{line}");
            count += 1;
        }
        assert!(count > 10, "{count} stories");
    }

    /// What a load made of a tablet. No key twice, except that each tombstone at the bottom takes one entry
    /// with it.
    #[derive(Default)]
    struct Load {
        shape: Shape,
        written: u64,
        rewritten: u64,
        most: usize,
    }

    impl Load {
        /// One flush, and all that is due after it.
        fn flush(&mut self, run: Run, policy: &Policy) {
            self.written += run.bytes;
            self.shape.front.insert(0, run);
            self.settle(policy);
        }

        fn settle(&mut self, policy: &Policy) {
            for rounds in 0.. {
                self.shape.reached = self.shape.last;
                let Some(choice) = pick(&self.shape, policy) else { break };
                assert!(rounds < 200, "it comes to an end: {:?}", self.shape);
                match choice {
                    Choice::Merge(range) => {
                        assert!(range.len() <= INPUTS_MAX && range.end <= self.shape.front.len());
                        let merged = self.shape.front.drain(range.clone()).fold(Run::default(), plus);
                        self.rewritten += merged.bytes;
                        self.shape.front.insert(range.start, merged);
                    }
                    Choice::Descend(first) => {
                        let sinking = self.shape.front.drain(first..).fold(self.shape.last, plus);
                        let entries = sinking.entries.saturating_sub(2 * sinking.tombstones);
                        let bytes = sinking.bytes * entries / sinking.entries.max(1);
                        self.rewritten += bytes;
                        self.shape.last = live(bytes);
                    }
                    Choice::GoOn => panic!("no descent is under way"),
                }
            }
            self.most = self.most.max(self.shape.front.len());
        }

        fn amplification(&self) -> f64 {
            self.rewritten as f64 / self.written as f64
        }
    }

    fn plus(sum: Run, run: Run) -> Run {
        Run {
            bytes: sum.bytes + run.bytes,
            entries: sum.entries + run.entries,
            tombstones: sum.tombstones + run.tombstones,
            is_avoided: false,
        }
    }

    #[test]
    fn over_a_long_load_tables_stay_few_and_rewrites_logarithmic() {
        for fan in [2, 4, 8] {
            let policy = Policy { fan, ratio: 4 };
            let mut rng = fastrand::Rng::with_seed(3);
            let mut load = Load::default();
            for _ in 0..10_000 {
                load.flush(live(rng.u64(800..1200)), &policy);
            }
            // New keys alone: the last level grows by a quarter with each descent, so an entry that is there is
            // rewritten once per fifth, and that is a geometric series.
            let tiers = (10_000f64 / 4.0).log(fan as f64);
            let amplification = load.amplification();
            assert!(amplification < 1.3 * tiers + 5.0, "fan {fan}: rewritten {amplification} times");
            let most = ((fan - 1) as f64 * (tiers + 2.0)) as usize;
            assert!(load.most <= most, "fan {fan}: {} tables", load.most);
        }
    }

    #[test]
    fn around_what_can_t_be_read_tables_stay_few_as_well() {
        let policy = Policy { fan: 4, ratio: 4 };
        for seed in 0..20 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut load = Load::default();
            load.shape.is_blocked = seed % 2 == 0;
            load.shape.last = live(1 << 30);
            for flush in 0..3000 {
                load.flush(live(rng.u64(800..1200)), &policy);
                if [100, 500, 501].contains(&flush) {
                    let at = rng.usize(..load.shape.front.len());
                    load.shape.front[at].is_avoided = true;
                }
            }
            // Of 3000 flushes: 7 tiers of up to 3 tables, in front of each of those three and behind the last.
            assert!(load.most <= 4 * 21 + 3, "seed {seed}: {} tables", load.most);
            let left = load.shape.front.iter().filter(|run| run.is_avoided).count();
            assert!((1..=3).contains(&left), "seed {seed}: {left}, of which one may have been drawn twice");
            let front = load.shape.front.iter().position(|run| run.is_avoided);
            assert!(front.is_some_and(|front| front <= 21), "seed {seed}: {front:?} tables are in front");
        }
    }

    #[test]
    fn flushes_of_any_size_and_backlogs_of_any_length_come_to_few_tables() {
        let policy = Policy { fan: 4, ratio: 4 };
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut load = Load::default();
            let backlog = rng.usize(..200);
            load.shape.front = (0..backlog).map(|_| live(1 << rng.u32(..24))).collect();
            for _ in 0..300 {
                load.flush(live(1 << rng.u32(..16)), &policy);
            }
            // Up to 2^27 bytes: 14 tiers of up to 3 tables.
            assert!(load.shape.front.len() <= 42, "seed {seed}: {} tables", load.shape.front.len());
            let above: u64 = load.shape.front.iter().map(|run| run.bytes).sum();
            assert!(above * 4 < load.shape.last.bytes + 4 * 4 * (1 << 16), "seed {seed}: {:?}", load.shape);
        }
    }

    #[test]
    fn a_queue_stays_small_and_is_not_rewritten_for_ever() {
        let policy = Policy { fan: 4, ratio: 4 };
        let mut load = Load::default();
        for _ in 0..2000 {
            // Each flush holds as many new entries as tombstones of old ones.
            load.flush(Run { bytes: 1000, entries: 1000, tombstones: 480, ..Run::default() }, &policy);
            let held = load.shape.front.iter().map(|run| run.entries).sum::<u64>() + load.shape.last.entries;
            assert!(held < 200_000, "{held} entries");
        }
        assert!(load.amplification() < 5.0, "rewritten {} times", load.amplification());
    }
}
