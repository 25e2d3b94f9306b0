//! Which tables to rewrite only because much of them has expired or was removed by range deletes. Pure, and apart
//! from the choice by size: that one answers to what is written, this one to time passing, and nothing may ever
//! be written again.

/// A table as this choice sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aged {
    /// Size of its file.
    pub bytes: u64,
    /// About how much of that is of entries whose time is past, or which range deletes removed.
    pub past_bytes: u64,
}

impl Aged {
    /// Half is garbage: a rewrite frees at least as much as it writes.
    fn is_garbage(&self) -> bool {
        self.past_bytes > 0 && self.past_bytes >= self.bytes / 2
    }
}

/// Which table to rewrite, by its place in its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgedChoice {
    /// One of the last level: what has expired in there is gone.
    Last(usize),
    /// One above: its values go, their tombstones stay until they come down, as any others.
    Upper(usize),
}

/// Which of a tablet's tables to rewrite, because half of what it holds has expired. So at most half of what is
/// on disk is expired, and nothing is rewritten twice for the same garbage.
pub fn pick_expired(
    last: impl IntoIterator<Item = Aged>,
    upper: impl IntoIterator<Item = Aged>,
) -> Option<AgedChoice> {
    let of_last = last.into_iter().position(|table| table.is_garbage()).map(AgedChoice::Last);
    of_last.or_else(|| upper.into_iter().position(|table| table.is_garbage()).map(AgedChoice::Upper))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(last: &[(u64, u64)], upper: &[(u64, u64)]) -> Option<AgedChoice> {
        let aged = |&(bytes, past_bytes): &(u64, u64)| Aged { bytes, past_bytes };
        pick_expired(last.iter().map(aged), upper.iter().map(aged))
    }

    #[test]
    fn half_of_it_must_be_past() {
        assert_eq!(pick(&[], &[]), None);
        assert_eq!(pick(&[(100, 0), (0, 0)], &[(100, 49)]), None);
        assert_eq!(pick(&[(100, 50)], &[]), Some(AgedChoice::Last(0)));
        assert_eq!(pick(&[(100, 49), (100, 49)], &[(100, 50)]), Some(AgedChoice::Upper(0)));
        // What came of that: tombstones. They are for the choice by size.
        assert_eq!(pick(&[], &[(30, 0), (30, 0)]), None);
    }

    #[test]
    fn where_most_is_freed_comes_first() {
        assert_eq!(pick(&[(100, 0), (100, 90)], &[(100, 90)]), Some(AgedChoice::Last(1)));
        assert_eq!(pick(&[(100, 0)], &[(100, 0), (100, 90), (10, 10)]), Some(AgedChoice::Upper(1)));
    }
}
