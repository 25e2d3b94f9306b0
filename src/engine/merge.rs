//! Merge of sorted tables, newest first: each key once, with its newest version.

use super::sstable::{TableError, TableIter};
use crate::base::Entry;
use crate::env::Env;

/// Merges tables. With the few inputs that a compaction has, a linear search for the smallest key beats a
/// heap.
pub struct MergeIter<E: Env> {
    /// Newest first.
    sources: Vec<TableIter<E>>,
    smallest: Option<usize>,
}

impl<E: Env> MergeIter<E> {
    /// Stands on the first key.
    pub fn new(sources: Vec<TableIter<E>>) -> MergeIter<E> {
        let mut merge = MergeIter { sources, smallest: None };
        merge.pick();
        merge
    }

    fn pick(&mut self) {
        let mut smallest: Option<(usize, &[u8])> = None;
        for (number, source) in self.sources.iter().enumerate() {
            let Some((key, _)) = source.current() else { continue };
            // On equal keys the newer source, which comes first, stays.
            if smallest.is_none_or(|(_, least)| key < least) {
                smallest = Some((number, key));
            }
        }
        self.smallest = smallest.map(|(number, _)| number);
    }

    /// The entry it stands on; `None` at the end.
    pub fn current(&self) -> Option<(&[u8], Entry<'_>)> {
        self.sources[self.smallest?].current()
    }

    /// Moves past the current key in all sources. Suspends when blocks must be read.
    pub async fn advance(&mut self) -> Result<(), TableError> {
        let Some(smallest) = self.smallest else { return Ok(()) };
        let Some((key, _)) = self.sources[smallest].current() else { return Ok(()) };
        let same: u64 = self
            .sources
            .iter()
            .enumerate()
            .filter(|(_, source)| source.current().is_some_and(|(other, _)| other == key))
            .fold(0, |same, (number, _)| same | 1 << number);
        assert!(self.sources.len() <= 64, "a merge has a bounded number of inputs");
        for (number, source) in self.sources.iter_mut().enumerate() {
            if same & 1 << number != 0 {
                source.advance().await?;
            }
        }
        self.pick();
        Ok(())
    }
}
