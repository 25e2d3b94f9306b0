//! Scrub: reads all tables again, slowly, and tells what is damaged, before someone needs it and while copies
//! that are whole may still be there. Also what is told of damage that a read meets.
//!
//! - It reads past the cache, at most [`EngineOptions::scrub_bytes_per_s`](super::EngineOptions) a second, in the
//!   queue of the least urgent work, and holds one table at a time: files that are to go wait for one table's time.
//! - A round goes through the tablets in turn, and through the files of each by their ids, which grow with time:
//!   what is written meanwhile comes behind, or in the next round.
//! - Damage goes to the log with file and offset, each place once a round, and into counters. What a read meets
//!   is told at most once in [`TOLD_EVERY`].

use std::rc::Rc;
use std::time::Duration;

use super::sstable::{IndexBudget, Table, TableError};
use super::{Engine, EngineError, Tablet};
use crate::base::FileId;
use crate::env::{Env, Pacer};
use crate::metrics::Metrics;

/// Between two rounds of a shard that has hardly anything.
const ROUND_MIN: Duration = Duration::from_secs(60);
/// Between two lines of the log about damage that reads meet; the counter counts all.
const TOLD_EVERY: Duration = Duration::from_secs(1);

impl<E: Env> Engine<E> {
    /// Scrubs until the engine stops.
    pub(super) async fn scrub_loop(self: Rc<Self>) {
        if self.options.scrub_bytes_per_s == 0 {
            return;
        }
        loop {
            let begun = self.env.now();
            for tablet in self.all_tablets() {
                let mut after = None;
                while let Some(table) = next_table(&tablet, after) {
                    after = Some(table.file());
                    self.scrub(&table).await;
                    if self.is_stopping.get() {
                        return;
                    }
                }
            }
            Metrics::add(&self.metrics.scrub_rounds, 1);
            self.rest(ROUND_MIN.saturating_sub(self.env.now() - begun)).await;
            if self.is_stopping.get() {
                return;
            }
        }
    }

    async fn rest(&self, time: Duration) {
        let stopped = self.changed.until(|| self.is_stopping.get());
        futures_lite::future::or(self.env.sleep(time), stopped).await;
    }

    /// Reads and checks every part of a table.
    async fn scrub(&self, table: &Rc<Table<E>>) {
        // Footer and index are resident, so it is opened once more; with nothing pinned.
        match Table::open(&self.env, table.name(), &IndexBudget::new(0)).await {
            Ok(again) => {
                if let Err(error) = again.close().await {
                    tracing::warn!("scrub: {error}");
                }
            }
            Err(error) => return self.tell_scrubbed(&error),
        }
        let mut pacer = Pacer::new(&self.env);
        for number in 0..table.partitions() {
            let partition = match table.read_partition(number).await {
                Ok(partition) => partition,
                Err(error) => {
                    self.tell_scrubbed(&error);
                    continue;
                }
            };
            let mut bytes = table.partition_handle(number).len;
            let mut block = 0;
            while block < partition.len() && !self.is_stopping.get() {
                let checked = table.check_blocks(&partition, block, &mut pacer, |error| {
                    self.tell_scrubbed(&error);
                });
                match checked.await {
                    Ok((blocks, len)) => {
                        block += blocks;
                        bytes += len;
                    }
                    Err(error) => {
                        // The disk does not give it: some other time, perhaps.
                        self.tell_scrubbed(&error);
                        break;
                    }
                }
            }
            Metrics::add(&self.metrics.scrub_bytes, bytes as u64);
            self.rest(Duration::from_secs_f64(bytes as f64 / self.options.scrub_bytes_per_s as f64)).await;
            if self.is_stopping.get() {
                return;
            }
        }
    }

    fn tell_scrubbed(&self, error: &TableError) {
        if matches!(error, TableError::Disk(_)) {
            tracing::warn!("scrub: {error}");
            return;
        }
        Metrics::add(&self.metrics.scrub_damage, 1);
        tracing::error!("scrub found damage: {error}; reads of keys in it are refused, all else is served");
    }

    /// Counts damage that a read has met, and tells of it.
    pub(super) fn note_damage(&self, error: &EngineError) {
        if !error.is_damage() {
            return;
        }
        Metrics::add(&self.metrics.read_damage, 1);
        let now = self.env.now();
        if self.damage_told.get().is_none_or(|told| now.saturating_sub(told) >= TOLD_EVERY) {
            self.damage_told.set(Some(now));
            tracing::error!("a read met damage and was refused: {error}");
        }
    }
}

/// The table of a tablet with the least file id above `after`.
fn next_table<E: Env>(tablet: &Tablet<E>, after: Option<FileId>) -> Option<Rc<Table<E>>> {
    let version = tablet.version();
    let behind = version.members().filter(|member| Some(member.table.file()) > after);
    behind.min_by_key(|member| member.table.file()).map(|member| member.table.clone())
}
