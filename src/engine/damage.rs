//! What is told of damage that requests, merges and the scrub meet: counters, and lines in the log.
//!
//! A damaged place is met as often as someone needs it. For each way of meeting it, it is counted and told once in
//! [`AGAIN_AFTER`]; what the scrub finds in every round, once only. Bounded:
//! - For each way the last [`PLACES_MAX`] places are remembered; one beyond them may count again early.
//! - A file that had no line in [`AGAIN_AFTER`] gets one at once; of further places in it there is at most one line
//!   in [`LINE_EVERY`], and the counters count the others. So a disk that rots as a whole floods neither memory nor
//!   log, and no file's damage goes untold.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::time::Duration;

use super::manifest::ManifestError;
use super::sstable::TableError;
use super::{Engine, EngineError};
use crate::env::Env;
use crate::metrics::Metrics;

/// After this a place that was met again counts again.
const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Places remembered for each way of meeting them.
const PLACES_MAX: usize = 256;
/// Between two lines of the log about one file.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Who met damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MetBy {
    /// A read of single keys.
    Read,
    /// A scan.
    Scan,
    /// A merge of tables, which tells of it itself.
    Merge,
    /// The scrub.
    Scrub,
    /// The start, which tells of it itself.
    Start,
}

impl MetBy {
    fn counts_again_after(self) -> Duration {
        if self == MetBy::Scrub { Duration::MAX } else { AGAIN_AFTER }
    }
}

/// Damage that was met lately.
#[derive(Default)]
pub(super) struct Damage {
    /// When each place was counted last, by [`Env::now`]; one map a [`MetBy`].
    places: RefCell<[BTreeMap<(String, u64), Duration>; 5]>,
    last_line: Cell<Option<Duration>>,
}

/// What is to be done about damage that was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct News {
    counts: bool,
    is_told: bool,
}

impl Damage {
    /// Whether a place is to be counted now, and to be told. Remembers it.
    fn meet(&self, by: MetBy, path: &str, offset: u64, now: Duration) -> News {
        let mut places = self.places.borrow_mut();
        let places = &mut places[by as usize];
        let is_late = |told: &Duration, after: Duration| now.saturating_sub(*told) >= after;
        let place = (path.to_owned(), offset);
        if places.get(&place).is_some_and(|told| !is_late(told, by.counts_again_after())) {
            return News { counts: false, is_told: false };
        }
        let of_file = places.range((path.to_owned(), 0)..=(path.to_owned(), u64::MAX));
        let is_first = of_file.into_iter().all(|(_, told)| is_late(told, AGAIN_AFTER));
        let is_told = is_first || self.last_line.get().is_none_or(|last| is_late(&last, LINE_EVERY));
        if is_told {
            self.last_line.set(Some(now));
        }
        places.insert(place, now);
        if places.len() > PLACES_MAX {
            let oldest = places.iter().min_by_key(|(_, told)| **told).map(|(place, _)| place.clone());
            oldest.map(|oldest| places.remove(&oldest));
        }
        assert!(places.len() <= PLACES_MAX, "what is remembered is bounded");
        News { counts: true, is_told }
    }
}

/// Where the damage is that an error tells of; `None`: it tells of none.
pub(super) fn place(error: &EngineError) -> Option<(&str, u64)> {
    match error {
        EngineError::Table(TableError::Corrupt { path, offset, .. })
        | EngineError::Manifest(ManifestError::Corrupt { path, offset, .. }) => Some((path, *offset)),
        EngineError::Table(TableError::OtherVersion { path, .. }) => Some((path, 0)),
        EngineError::Disk(error)
        | EngineError::Table(TableError::Disk(error))
        | EngineError::Manifest(ManifestError::Disk(error))
            if error.is_unreadable() =>
        {
            Some((&error.path, error.offset.unwrap_or(0)))
        }
        _ => None,
    }
}

impl<E: Env> Engine<E> {
    /// Counts damage that was met, and tells of it, unless that was done lately. Other errors are no damage.
    pub(super) fn note_damage(&self, by: MetBy, error: &EngineError) {
        let Some((path, offset)) = place(error) else { return };
        let news = self.damage.meet(by, path, offset, self.env.now());
        let (counter, what) = match by {
            MetBy::Read => (&self.metrics.read_damage, "a read met damage and was refused"),
            MetBy::Scan => (&self.metrics.scan_damage, "a scan met damage and was refused"),
            MetBy::Merge => (&self.metrics.merge_damage, ""),
            MetBy::Scrub => (&self.metrics.scrub_damage, "the scrub found damage"),
            MetBy::Start => (&self.metrics.start_damage, ""),
        };
        Metrics::add(counter, u64::from(news.counts));
        if news.is_told && !matches!(by, MetBy::Merge | MetBy::Start) {
            tracing::error!("{what}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_place_counts_once_in_a_while_and_what_is_remembered_is_bounded() {
        let damage = Damage::default();
        let counts = |by, path: &str, offset, now| damage.meet(by, path, offset, now).counts;
        assert!(counts(MetBy::Read, "a", 0, SECOND));
        assert!(!counts(MetBy::Read, "a", 0, SECOND * 30), "it was counted");
        assert!(counts(MetBy::Scan, "a", 0, SECOND * 30) && counts(MetBy::Read, "a", 1, SECOND * 30));
        assert!(counts(MetBy::Read, "a", 0, SECOND + AGAIN_AFTER));
        assert!(counts(MetBy::Scrub, "a", 0, SECOND) && !counts(MetBy::Scrub, "a", 0, SECOND * 1_000_000));
        for offset in 0..10 * PLACES_MAX as u64 {
            assert!(counts(MetBy::Merge, "b", offset, SECOND * 100));
        }
        assert_eq!(damage.places.borrow()[MetBy::Merge as usize].len(), PLACES_MAX);
        assert!(counts(MetBy::Merge, "b", 0, SECOND * 100), "it was forgotten for newer ones");
        assert!(!counts(MetBy::Scrub, "a", 0, SECOND * 100), "others forget nothing for it");
    }

    #[test]
    fn each_file_has_its_line_and_its_further_places_one_a_second() {
        let damage = Damage::default();
        let tells = |path: &str, offset, now| damage.meet(MetBy::Read, path, offset, now).is_told;
        assert!(
            tells("a", 0, SECOND) && !tells("a", 1, SECOND) && tells("b", 0, SECOND),
            "each file at once"
        );
        assert!(!tells("b", 1, SECOND) && tells("b", 2, SECOND * 2) && !tells("a", 2, SECOND * 2));
        assert!(!tells("a", 0, SECOND * 10), "it was told");
        assert!(tells("a", 3, SECOND * 80) && !tells("a", 4, SECOND * 80), "the file had no line for long");
    }
}
