//! Scrub: reads again, slowly, what lies on disk for good, and tells what is damaged, before someone needs it and
//! while copies that are whole may still be there.
//!
//! - It reads past the cache, at most [`EngineOptions::scrub_bytes_per_s`](super::EngineOptions) a second, in the
//!   queue of the least urgent work, and holds one table at a time: files that are to go wait for one table's time.
//! - It covers of each live table footer, top of the index, partitions and blocks; and the manifest as the next start
//!   would read it. Not the logs: the one that is being written is given up as it grows, and those of earlier starts
//!   were read by this one and go with the next flush.
//! - A round goes through the tablets in turn, and through the files of each by their ids, which grow with time:
//!   what is written meanwhile comes behind, or in the next round.
//! - Damage goes to the log with file and offset, and into a counter, each place once ([`super::damage`]).

use std::rc::Rc;
use std::time::Duration;

use super::damage::{self, MetBy};
use super::sstable::{IndexBudget, Table};
use super::{Engine, EngineError, Tablet};
use crate::base::FileId;
use crate::env::{Env, Pacer};
use crate::metrics::Metrics;

/// Between two rounds of a shard that has hardly anything.
const ROUND_MIN: Duration = Duration::from_secs(60);

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
            self.scrub_manifest().await;
            if self.is_stopping.get() {
                return;
            }
            Metrics::add(&self.metrics.scrub_rounds, 1);
            self.rest(ROUND_MIN.saturating_sub(self.env.now() - begun)).await;
            if self.is_stopping.get() {
                return;
            }
        }
    }

    /// What the next start reads first.
    async fn scrub_manifest(&self) {
        let beat = async |bytes| {
            self.scrubbed(bytes).await;
            !self.is_stopping.get()
        };
        for checked in [self.manifest.check_current().await, self.manifest.check(beat).await] {
            if let Err(error) = checked {
                self.tell_scrubbed(&error.into());
            }
        }
    }

    /// Counts bytes that were read, and rests as the rate wants it.
    async fn scrubbed(&self, bytes: u64) {
        Metrics::add(&self.metrics.scrub_bytes, bytes);
        self.rest(Duration::from_secs_f64(bytes as f64 / self.options.scrub_bytes_per_s as f64)).await;
    }

    /// Tells of what it met. What is no damage may be better another time.
    fn tell_scrubbed(&self, error: &EngineError) {
        self.note_damage(MetBy::Scrub, error);
        if damage::place(error).is_none() {
            tracing::warn!("scrub: {error}");
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
            Err(error) => return self.tell_scrubbed(&error.into()),
        }
        let mut pacer = Pacer::new(&self.env);
        for number in 0..table.partitions() {
            let partition = match table.read_partition(number).await {
                Ok(partition) => partition,
                Err(error) => {
                    self.tell_scrubbed(&error.into());
                    continue;
                }
            };
            let mut bytes = table.partition_handle(number).len;
            let mut block = 0;
            while block < partition.len() && !self.is_stopping.get() {
                let checked = table.check_blocks(&partition, block, &mut pacer, |error| {
                    self.tell_scrubbed(&error.into());
                });
                match checked.await {
                    Ok((blocks, len)) => {
                        block += blocks;
                        bytes += len;
                    }
                    Err(error) => {
                        // The disk does not give it: some other time, perhaps.
                        self.tell_scrubbed(&error.into());
                        break;
                    }
                }
            }
            self.scrubbed(bytes as u64).await;
            if self.is_stopping.get() {
                return;
            }
        }
    }
}

/// The table of a tablet with the least file id above `after`.
fn next_table<E: Env>(tablet: &Tablet<E>, after: Option<FileId>) -> Option<Rc<Table<E>>> {
    let version = tablet.version();
    let behind = version.members().filter(|member| Some(member.table.file()) > after);
    behind.min_by_key(|member| member.table.file()).map(|member| member.table.clone())
}
