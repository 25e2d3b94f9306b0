//! Which tables to merge only because much of them has expired. Pure, and apart from the choice by size:
//! that one answers to what is written, this one to time passing, and nothing may ever be written again.

use std::ops::Range;

use super::picker::INPUTS_MAX;
use crate::engine::sstable::TableMeta;

/// A table as this choice sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aged {
    /// Size of its file.
    pub bytes: u64,
    /// About how much of that is of entries whose time is past.
    pub past_bytes: u64,
}

impl Aged {
    /// A table at `now_ms`.
    pub fn new(meta: &TableMeta, now_ms: u64) -> Aged {
        Aged { bytes: meta.bytes, past_bytes: meta.expiries.past_bytes(now_ms) }
    }
}

/// Half is garbage: a rewrite frees at least as much as it writes.
fn is_expired_garbage(tables: &[Aged]) -> bool {
    let sum = |of: fn(&Aged) -> u64| tables.iter().map(of).sum::<u64>();
    let past_bytes = sum(|table| table.past_bytes);
    past_bytes > 0 && past_bytes >= sum(|table| table.bytes) / 2
}

/// Which of a tablet's tables, newest first, to merge because half of what they hold has expired: as many as
/// possible down to the oldest, with which entries go for good; otherwise a single one, of which tombstones
/// stay. So at most half of what is on disk is expired, and nothing is rewritten twice for the same garbage.
pub fn pick_expired(tables: &[Aged]) -> Option<Range<usize>> {
    let first = tables.len().saturating_sub(INPUTS_MAX);
    let to_the_oldest = (first..tables.len()).find(|start| is_expired_garbage(&tables[*start..]));
    if let Some(start) = to_the_oldest {
        return Some(start..tables.len());
    }
    let single = tables.iter().position(|table| is_expired_garbage(std::slice::from_ref(table)))?;
    Some(single..single + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(tables: &[(u64, u64)]) -> Option<Range<usize>> {
        let tables: Vec<Aged> =
            tables.iter().map(|&(bytes, past_bytes)| Aged { bytes, past_bytes }).collect();
        pick_expired(&tables)
    }

    #[test]
    fn half_of_it_must_be_past() {
        assert_eq!(pick(&[]), None);
        assert_eq!(pick(&[(100, 0), (100, 0)]), None);
        assert_eq!(pick(&[(100, 49)]), None);
        assert_eq!(pick(&[(100, 50)]), Some(0..1));
        assert_eq!(pick(&[(100, 49), (100, 49)]), None);
    }

    #[test]
    fn as_many_as_possible_go_together_with_the_oldest() {
        assert_eq!(pick(&[(100, 100), (100, 0)]), Some(0..2));
        assert_eq!(pick(&[(100, 0), (100, 100), (10, 10)]), Some(0..3));
        assert_eq!(pick(&[(1000, 0), (100, 100), (10, 10)]), Some(1..3));
        assert_eq!(pick(&[(1000, 0), (100, 0), (10, 10)]), Some(2..3));
        let many = [(10, 10); 40];
        assert_eq!(pick(&many), Some(24..40));
    }

    #[test]
    fn one_in_front_of_much_that_lives_is_rewritten_alone() {
        assert_eq!(pick(&[(100, 0), (100, 90), (1000, 0)]), Some(1..2));
        assert_eq!(pick(&[(100, 90), (100, 90), (1000, 0)]), Some(0..1));
        // What came of those: tombstones. They are for the choice by size.
        assert_eq!(pick(&[(30, 0), (30, 0), (1000, 0)]), None);
    }
}
