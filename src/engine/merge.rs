//! Merge of sorted sources, newest first: each key once, with its newest version.

use std::future::Future;

use super::sstable::{TableError, TableIter};
use crate::base::Entry;
use crate::env::Env;

/// Entries in ascending order of keys, versions of one key newest first.
pub trait Source {
    /// The entry it stands on; `None` at the end.
    fn current(&self) -> Option<(&[u8], Entry<'_>)>;

    /// Moves to the next entry. May suspend.
    fn advance(&mut self) -> impl Future<Output = Result<(), TableError>>;
}

impl<E: Env> Source for TableIter<E> {
    fn current(&self) -> Option<(&[u8], Entry<'_>)> {
        TableIter::current(self)
    }

    async fn advance(&mut self) -> Result<(), TableError> {
        TableIter::advance(self).await
    }
}

/// A sorted iterator in memory, as a memtable's.
pub struct MemorySource<'a, I> {
    rest: I,
    current: Option<(&'a [u8], Entry<'a>)>,
}

impl<'a, I: Iterator<Item = (&'a [u8], Entry<'a>)>> MemorySource<'a, I> {
    /// Stands on the first entry of `iter`.
    pub fn new(mut iter: I) -> MemorySource<'a, I> {
        let current = iter.next();
        MemorySource { rest: iter, current }
    }
}

impl<'a, I: Iterator<Item = (&'a [u8], Entry<'a>)>> Source for MemorySource<'a, I> {
    fn current(&self) -> Option<(&[u8], Entry<'_>)> {
        self.current
    }

    async fn advance(&mut self) -> Result<(), TableError> {
        self.current = self.rest.next();
        Ok(())
    }
}

/// One of two kinds of sources, so that memtables and tables go into one merge.
pub enum Either<A, B> {
    /// The one kind.
    Left(A),
    /// The other.
    Right(B),
}

impl<A: Source, B: Source> Source for Either<A, B> {
    fn current(&self) -> Option<(&[u8], Entry<'_>)> {
        match self {
            Either::Left(source) => source.current(),
            Either::Right(source) => source.current(),
        }
    }

    async fn advance(&mut self) -> Result<(), TableError> {
        match self {
            Either::Left(source) => source.advance().await,
            Either::Right(source) => source.advance().await,
        }
    }
}

/// Numbered sources in the order of the keys they stand on; on equal keys the one with the lesser number, the
/// newer, comes first. The one that moved most often stays in front, which takes one comparison, and its new
/// place is never further than log2 comparisons away. Most comparisons see the first bytes of a key only, which
/// lie side by side here, and touch no block.
#[derive(Default)]
pub struct Ranking {
    is_reverse: bool,
    /// The first is last.
    ranks: Vec<Rank>,
}

#[derive(Clone, Copy)]
struct Rank {
    /// The first bytes of the key as a number that compares like them, zero-padded; inverted in reverse order.
    prefix: u128,
    number: usize,
}

impl Ranking {
    /// An empty one: the least key first, or the greatest.
    pub fn new(is_reverse: bool, capacity: usize) -> Ranking {
        Ranking { is_reverse, ranks: Vec::with_capacity(capacity) }
    }

    /// The source that stands on the first key.
    #[inline]
    pub fn first(&self) -> Option<usize> {
        self.ranks.last().map(|rank| rank.number)
    }

    /// Takes that one out.
    #[inline]
    pub fn pop(&mut self) -> Option<usize> {
        self.ranks.pop().map(|rank| rank.number)
    }

    /// Whether the one behind the first may stand on the same key: else a look at the key is spared.
    #[inline]
    pub fn may_be_tied(&self) -> bool {
        match &self.ranks[..] {
            [.., second, first] => second.prefix == first.prefix,
            _ => false,
        }
    }

    /// Puts a source into its place by the key that `key` tells of it.
    #[inline]
    pub fn enlist<'k>(&mut self, number: usize, key: impl Fn(usize) -> &'k [u8]) {
        let own = key(number);
        let prefix = prefix(own) ^ if self.is_reverse { u128::MAX } else { 0 };
        let is_reverse = self.is_reverse;
        let is_before = |other: &Rank| {
            if prefix != other.prefix {
                return prefix < other.prefix;
            }
            let order = own.cmp(key(other.number));
            let order = if is_reverse { order.reverse() } else { order };
            order.then(number.cmp(&other.number)).is_lt()
        };
        let at = match self.ranks.last() {
            Some(first) if !is_before(first) => self.ranks.partition_point(is_before),
            _ => self.ranks.len(),
        };
        self.ranks.insert(at, Rank { prefix, number });
    }
}

/// The first bytes of a key as a number that compares like them.
#[inline]
fn prefix(key: &[u8]) -> u128 {
    match key.first_chunk() {
        Some(first) => u128::from_be_bytes(*first),
        None => {
            let mut padded = [0; 16];
            padded[..key.len()].copy_from_slice(key);
            u128::from_be_bytes(padded)
        }
    }
}

/// Merges sources, newest first.
pub struct MergeIter<S> {
    sources: Vec<S>,
    ranking: Ranking,
    /// The key that is being left.
    key: Vec<u8>,
}

impl<S: Source> MergeIter<S> {
    /// Stands on the first key.
    pub fn new(sources: Vec<S>) -> MergeIter<S> {
        let ranking = Ranking::new(false, sources.len());
        let mut merge = MergeIter { ranking, sources, key: Vec::new() };
        (0..merge.sources.len()).for_each(|number| merge.enlist(number));
        merge
    }

    /// Puts a source into its place, unless it is at its end.
    fn enlist(&mut self, number: usize) {
        let MergeIter { sources, ranking, .. } = self;
        let key = |number: usize| sources[number].current().map_or(&[][..], |(key, _)| key);
        if sources[number].current().is_some() {
            ranking.enlist(number, key);
        }
    }

    /// The entry it stands on; `None` at the end.
    pub fn current(&self) -> Option<(&[u8], Entry<'_>)> {
        self.sources[self.ranking.first()?].current()
    }

    /// Moves past all versions of the current key in all sources. Suspends when blocks must be read. After
    /// an error it is of no further use.
    pub async fn advance(&mut self) -> Result<(), TableError> {
        let mut left = std::mem::take(&mut self.key);
        left.clear();
        let Some((key, _)) = self.current() else { return Ok(()) };
        left.extend_from_slice(key);
        while self.current().is_some_and(|(key, _)| key == left) {
            let Some(number) = self.ranking.pop() else { break };
            while self.sources[number].current().is_some_and(|(key, _)| key == left) {
                self.sources[number].advance().await?;
            }
            self.enlist(number);
        }
        self.key = left;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures_lite::future::block_on;

    use super::*;
    use crate::base::{Lsn, OpKind};

    #[test]
    fn each_key_comes_once_with_its_newest_version() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut model = BTreeMap::new();
            let mut lsn = 0;
            // Oldest first here; several versions of a key within one source as well.
            let mut runs: Vec<BTreeMap<(Vec<u8>, u64), ()>> = Vec::new();
            for _ in 0..rng.usize(1..20) {
                let mut run = BTreeMap::new();
                for _ in 0..rng.usize(..40) {
                    lsn += 1;
                    let key = vec![rng.u8(..30); rng.usize(1..3)];
                    run.insert((key.clone(), u64::MAX - lsn), ());
                    model.insert(key, lsn);
                }
                runs.insert(0, run);
            }
            let sources = runs.iter().map(|run| {
                MemorySource::new(run.keys().map(|(key, inverse)| {
                    let lsn = Lsn(u64::MAX - inverse);
                    (&key[..], Entry { lsn, kind: OpKind::Put, expiry_ms: 0, value: &[][..] })
                }))
            });
            let mut merge = MergeIter::new(sources.collect());
            for (key, lsn) in &model {
                let (found, entry) = merge.current().unwrap();
                assert_eq!((found, entry.lsn.0), (&key[..], *lsn), "seed {seed}");
                block_on(merge.advance()).unwrap();
            }
            assert!(merge.current().is_none());
        }
    }
}
