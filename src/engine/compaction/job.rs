//! One merge: reads its inputs once, writes one table.

use std::rc::Rc;

use super::picker::INPUTS_MAX;
use crate::base::{FileId, OpKind, TabletId};
use crate::engine::expiry::Cutoff;
use crate::engine::merge::MergeIter;
use crate::engine::sstable::{Table, TableBuilder, TableError, TableIter, TableMeta, TableOptions};
use crate::env::{Env, Pacer};
use crate::slot::{Slot, SlotRange};

/// What came of a merge.
#[derive(Debug)]
pub enum Merged {
    /// One table.
    Table(Box<TableMeta>),
    /// Nothing is left: all of it was deleted or has expired.
    Nothing,
    /// It was told to stop; no file stays.
    Stopped,
}

/// What a merge writes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// For which tablet.
    pub tablet: TabletId,
    /// Its slots: keys of others, which a split has left in the inputs, are dropped.
    pub slots: SlotRange,
    /// Under which name.
    pub file: FileId,
}

/// Entries between two looks at the clock: about 10 µs of work.
const STEP: usize = 24;

/// Merges `inputs`, newest first, into `target`. What has expired by `cutoff` becomes a tombstone. With options
/// for the last level nothing older exists, so tombstones are dropped.
pub async fn merge<E: Env>(
    env: &E,
    inputs: &[Rc<Table<E>>],
    target: Target,
    options: TableOptions,
    cutoff: &Cutoff,
    hash: impl Fn(&[u8]) -> u64,
    stopping: impl Fn() -> bool,
) -> Result<Merged, TableError> {
    assert!((1..=INPUTS_MAX).contains(&inputs.len()), "a merge has a bounded number of inputs");
    let mut sources = Vec::with_capacity(inputs.len());
    for table in inputs {
        sources.push(TableIter::seek(table, b"").await?);
    }
    let mut merge = MergeIter::new(sources);
    let Target { tablet, slots, file } = target;
    assert!(inputs.iter().all(|table| table.name().tablet == tablet), "tables of one tablet are merged");
    let is_divided = inputs.iter().any(|table| !slots.includes(table.meta().slots));
    let counts = |key: &[u8]| !is_divided || slots.contains(Slot::of_key(key));
    let mut builder = TableBuilder::create(env, file, tablet, slots, options).await?;
    let drops = |key: &[u8], kind| options.is_last && kind == OpKind::Delete || !counts(key);
    let result = write(env, &mut merge, &mut builder, drops, cutoff, hash, stopping).await;
    match result {
        Ok(true) if builder.entries() > 0 => Ok(Merged::Table(Box::new(builder.finish().await?))),
        Ok(is_complete) => {
            builder.abandon().await;
            Ok(if is_complete { Merged::Nothing } else { Merged::Stopped })
        }
        Err(error) => {
            builder.abandon().await;
            Err(error)
        }
    }
}

/// Writes what survives. `false`: told to stop.
async fn write<E: Env>(
    env: &E,
    merge: &mut MergeIter<TableIter<E>>,
    builder: &mut TableBuilder<E>,
    drops: impl Fn(&[u8], OpKind) -> bool,
    cutoff: &Cutoff,
    hash: impl Fn(&[u8]) -> u64,
    stopping: impl Fn() -> bool,
) -> Result<bool, TableError> {
    let mut pacer = Pacer::new(env);
    let mut steps = 0;
    while let Some((key, entry)) = merge.current() {
        let entry = cutoff.apply(entry);
        if !drops(key, entry.kind) {
            builder.add(key, hash(key), &entry).await?;
        }
        merge.advance().await?;
        steps += 1;
        if steps % STEP == 0 {
            pacer.breathe().await;
            if stopping() {
                return Ok(false);
            }
        }
    }
    Ok(true)
}
