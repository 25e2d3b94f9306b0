//! One merge: reads its inputs once, writes one table.

use std::rc::Rc;

use super::picker::INPUTS_MAX;
use crate::base::{FileId, OpKind};
use crate::engine::expiry::Cutoff;
use crate::engine::merge::MergeIter;
use crate::engine::sstable::{Table, TableBuilder, TableError, TableIter, TableMeta, TableOptions};
use crate::env::{Env, Pacer};

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

/// Entries between two looks at the clock: about 10 µs of work.
const STEP: usize = 24;

/// Merges `inputs`, newest first, into `file`. What has expired by `cutoff` becomes a tombstone. With options
/// for the last level nothing older exists, so tombstones are dropped.
pub async fn merge<E: Env>(
    env: &E,
    inputs: &[Rc<Table<E>>],
    file: FileId,
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
    let (tablet, slots) = (inputs[0].meta().tablet, inputs[0].meta().slots);
    assert!(inputs.iter().all(|table| table.meta().tablet == tablet), "tables of one tablet are merged");
    let mut builder = TableBuilder::create(env, file, tablet, slots, options).await?;
    let result = write(env, &mut merge, &mut builder, options.is_last, cutoff, hash, stopping).await;
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
    is_last: bool,
    cutoff: &Cutoff,
    hash: impl Fn(&[u8]) -> u64,
    stopping: impl Fn() -> bool,
) -> Result<bool, TableError> {
    let mut pacer = Pacer::new(env);
    let mut steps = 0;
    while let Some((key, entry)) = merge.current() {
        let entry = cutoff.apply(entry);
        if !(is_last && entry.kind == OpKind::Delete) {
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
