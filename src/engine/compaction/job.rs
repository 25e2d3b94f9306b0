//! One merge: reads its inputs once, writes tables.

use super::picker::INPUTS_MAX;
use crate::base::{Bug, FileId, OpKind, TabletId, planted};
use crate::engine::expiry::Cutoff;
use crate::engine::merge::{MergeIter, Source};
use crate::engine::sstable::{TableBuilder, TableError, TableMeta, TableOptions};
use crate::env::{Env, Pacer};
use crate::slot::SlotRange;

/// What a merge is to write.
#[derive(Clone, Debug)]
pub struct Merge {
    /// For which tablet.
    pub tablet: TabletId,
    /// Its slots.
    pub slots: SlotRange,
    /// How its tables are written.
    pub options: TableOptions,
    /// Whether nothing older exists of these keys: then tombstones hide nothing.
    pub drops_tombstones: bool,
    /// A table that has this many bytes is ended, and another begun.
    pub table_bytes: u64,
    /// The merge may end early, once it has passed this key and written as many bytes: the key, and the bytes.
    pub early: Option<(Box<[u8]>, u64)>,
}

/// How a merge ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Merged {
    /// All of the inputs was merged.
    All,
    /// Only keys below this one: it ended early.
    Below(Box<[u8]>),
    /// It was told to stop.
    Stopped,
}

/// Entries between two looks at the clock: about 10 µs of work.
const STEP: usize = 24;
/// Bytes between two looks at the clock, if entries are large: as long as that, compression included, or one entry.
const STEP_BYTES: u64 = 16 << 10;

/// Merges `sources`, newest first, into tables that `next_file` names; those that are complete are in `tables`,
/// whatever the result, and the caller removes them unless they become live. What has expired by `cutoff` becomes
/// a tombstone, and what range deletes have removed is left out. `beat` is told the bytes merged since the last
/// time, and may suspend; `false` stops the merge.
#[allow(clippy::too_many_arguments)] // what it reads, what it writes, and what it asks of its caller
pub async fn merge<E: Env, S: Source>(
    env: &E,
    sources: Vec<S>,
    what: &Merge,
    cutoff: &Cutoff,
    hash: impl Fn(&[u8]) -> u64,
    next_file: impl Fn() -> FileId,
    beat: impl AsyncFn(u64) -> bool,
    tables: &mut Vec<TableMeta>,
) -> Result<Merged, TableError> {
    assert!((1..=INPUTS_MAX).contains(&sources.len()), "a merge has a bounded number of inputs");
    let mut merge = MergeIter::new(sources);
    let mut builder: Option<TableBuilder<E>> = None;
    let mut writing = Writing { env, what, next_file, written: 0, tables };
    let result = writing.run(&mut merge, &mut builder, cutoff, hash, beat).await;
    match (result, builder) {
        (Ok(Merged::Stopped), Some(builder)) => {
            builder.abandon().await;
            Ok(Merged::Stopped)
        }
        (Ok(end), Some(builder)) => {
            writing.tables.push(builder.finish().await?);
            Ok(end)
        }
        (Err(error), Some(builder)) => {
            builder.abandon().await;
            Err(error)
        }
        (result, None) => result,
    }
}

/// A merge under way.
struct Writing<'a, E, F> {
    env: &'a E,
    what: &'a Merge,
    next_file: F,
    /// Bytes of tables that are complete.
    written: u64,
    tables: &'a mut Vec<TableMeta>,
}

impl<E: Env, F: Fn() -> FileId> Writing<'_, E, F> {
    /// Writes what survives.
    async fn run<S: Source>(
        &mut self,
        merge: &mut MergeIter<S>,
        builder: &mut Option<TableBuilder<E>>,
        cutoff: &Cutoff,
        hash: impl Fn(&[u8]) -> u64,
        beat: impl AsyncFn(u64) -> bool,
    ) -> Result<Merged, TableError> {
        let mut pacer = Pacer::new(self.env);
        let (mut steps, mut merged_bytes) = (0, 0);
        while let Some((key, entry)) = merge.current() {
            if self.has_enough(key, builder.as_ref()) {
                return Ok(Merged::Below(key.into()));
            }
            merged_bytes += (key.len() + entry.value.len()) as u64;
            let is_removed = cutoff.removes(key, &entry, &[]);
            let mut entry = cutoff.apply(entry);
            if planted(Bug::ExpiryLost) {
                entry.expiry_ms = 0;
            }
            let drops = self.what.drops_tombstones || planted(Bug::TombstoneDropped);
            let is_dropped = drops && entry.kind == OpKind::Delete;
            if !is_removed && !is_dropped {
                self.end_full(builder).await?;
                let builder = match builder {
                    Some(builder) => builder,
                    None => builder.insert(self.begin().await?),
                };
                builder.add(key, hash(key), &entry).await?;
            }
            merge.advance().await?;
            steps += 1;
            if steps == STEP || merged_bytes >= STEP_BYTES {
                steps = 0;
                pacer.breathe().await;
                if !beat(std::mem::take(&mut merged_bytes)).await {
                    return Ok(Merged::Stopped);
                }
            }
        }
        Ok(Merged::All)
    }

    /// Whether the merge may end in front of `key`, and has written enough.
    fn has_enough(&self, key: &[u8], builder: Option<&TableBuilder<E>>) -> bool {
        let written = self.written + builder.map_or(0, TableBuilder::bytes);
        self.what.early.as_ref().is_some_and(|(behind, bytes)| written >= *bytes && key > &behind[..])
    }

    async fn begin(&self) -> Result<TableBuilder<E>, TableError> {
        let Merge { tablet, slots, options, .. } = *self.what;
        TableBuilder::create(self.env, (self.next_file)(), tablet, slots, options).await
    }

    /// Completes a table that is as large as it may be.
    async fn end_full(&mut self, builder: &mut Option<TableBuilder<E>>) -> Result<(), TableError> {
        if let Some(full) = builder.take_if(|builder| builder.bytes() >= self.what.table_bytes) {
            let meta = full.finish().await?;
            self.written += meta.bytes;
            self.tables.push(meta);
        }
        Ok(())
    }
}
