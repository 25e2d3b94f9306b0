//! Drives compaction: asks the picker about each tablet, runs the job, installs the result. Removes files
//! that nothing refers to any more, and watches free space.

use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use super::compaction::{self, Merged};
use super::expiry::Cutoff;
use super::manifest::{Change, Edit, ManifestError, TableRef};
use super::sstable::Table;
use super::transfer::Presence;
use super::version::{Member, Version};
use super::wal::remove_log;
use super::{Engine, EngineError, Tablet};
use crate::base::TableName;
use crate::disk::Disk;
use crate::env::Env;
use crate::metrics::Metrics;

/// How often free space is looked at. A shard accepts at most a few memtables in that time, and the
/// reserve is larger than those.
const SPACE_CHECK: Duration = Duration::from_millis(500);
/// A merge that found no space is tried again after this, and meanwhile no other is.
const RETRY: Duration = Duration::from_secs(1);
/// A merge that the disk failed is tried again after [`RETRY`], and after twice as long each time up to this.
/// Others, of tables that can be read, go on meanwhile.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How often tables are looked over for what has expired. Expiry is invisible to readers at once; this is
/// about space, of which a minute's worth is little.
const EXPIRY_CHECK: Duration = Duration::from_secs(60);

impl<E: Env> Engine<E> {
    /// Merges tables of tablets that have too many, one tablet at a time, until the engine stops.
    pub(super) async fn compaction_loop(self: Rc<Self>) {
        loop {
            let next = self.changed.notified();
            self.end_idle_snapshots();
            self.remove_obsolete().await;
            if self.is_stopping.get() || self.manifest.failed().is_some() {
                return;
            }
            let Some((local, range)) = self.pick().or_else(|| self.pick_expired()) else {
                // Nobody notifies when time passes.
                futures_lite::future::or(next, self.env.sleep(self.until_retry().min(EXPIRY_CHECK))).await;
                continue;
            };
            let tablet = self.tablet(local);
            let Err(error) = self.compact(local, range).await else {
                tablet.merge_delay.set(Duration::ZERO);
                continue;
            };
            tracing::error!(tablet = tablet.id.0, "merging tables failed: {error}");
            Metrics::add(&self.metrics.compaction_failures, 1);
            if error.is_damage() {
                tablet.no_merge_until.set(Duration::MAX);
            } else if error.is_full() {
                futures_lite::future::or(
                    self.env.sleep(RETRY),
                    self.changed.until(|| self.is_stopping.get()),
                )
                .await;
            } else {
                let delay = (tablet.merge_delay.get() * 2).clamp(RETRY, RETRY_MAX);
                tablet.merge_delay.set(delay);
                tablet.no_merge_until.set(self.env.now() + delay);
            }
        }
    }

    /// How long until a merge that failed may be tried again.
    fn until_retry(&self) -> Duration {
        let now = self.env.now();
        let tablets = self.tablets.borrow();
        let times = tablets.iter().map(|tablet| tablet.no_merge_until.get());
        times.filter(|time| *time > now).min().map_or(Duration::MAX, |time| time - now)
    }

    /// Tablets whose tables may be merged now.
    fn compactable(&self) -> impl Iterator<Item = (usize, Rc<Tablet<E>>)> {
        let now = self.env.now();
        self.all_tablets().into_iter().enumerate().filter(move |(_, tablet)| {
            tablet.presence.get() == Presence::Here && tablet.no_merge_until.get() <= now
        })
    }

    /// The tablet with the most tables to merge, and which.
    pub(super) fn pick(&self) -> Option<(usize, Range<usize>)> {
        self.compactable()
            .filter_map(|(local, tablet)| {
                let runs: Vec<_> =
                    tablet.version().upper().iter().map(|m| compaction::Run::from(m.meta())).collect();
                compaction::pick(&runs, self.options.compaction_fan).map(|range| (local, range))
            })
            .max_by_key(|(_, range)| range.len())
    }

    /// A tablet in which much has expired, and which of its tables to merge for that.
    fn pick_expired(&self) -> Option<(usize, Range<usize>)> {
        let now_ms = self.tick();
        self.compactable().find_map(|(local, tablet)| {
            let version = tablet.version();
            let aged: Vec<_> =
                version.upper().iter().map(|m| compaction::Aged::new(m.meta(), now_ms)).collect();
            compaction::pick_expired(&aged).map(|range| (local, range))
        })
    }

    async fn compact(&self, local: usize, range: Range<usize>) -> Result<(), EngineError> {
        let started = self.env.now();
        let tablet = self.tablet(local);
        let _merging = tablet.merging.enter();
        let version = tablet.version();
        let is_last = range.end == version.upper().len();
        let inputs: Vec<_> = version.upper()[range].iter().map(|member| member.table.clone()).collect();
        let bytes_in: u64 = inputs.iter().map(|table| table.meta().bytes).sum();
        let file = self.next_file();
        let hash = |key: &[u8]| self.hash(key);
        let cutoff = Cutoff::new(self.tick());
        let stopping = || self.is_stopping.get() || tablet.presence.get() != Presence::Here;
        let options = if is_last { self.options.last_tables() } else { self.options.upper_tables() };
        let target = compaction::Target { tablet: tablet.id, slots: tablet.slots.get(), file };
        let merged = compaction::merge(&self.env, &inputs, target, options, &cutoff, hash, stopping).await?;
        let (output, bytes_out) = match merged {
            Merged::Stopped => return Ok(()),
            Merged::Nothing => (None, 0),
            Merged::Table(meta) => {
                let opened: Result<_, EngineError> = async {
                    self.env.disk().sync_dir(TableName::DIR).await?;
                    Ok(self.open_table(TableName::new(meta.tablet, meta.file)).await?)
                }
                .await;
                match opened {
                    Ok(table) => {
                        self.count_written(&meta);
                        (Some(table), meta.bytes)
                    }
                    Err(error) => {
                        // Each try would leave one behind.
                        let _ = self.env.disk().remove(&tablet.table_path(file)).await;
                        return Err(error);
                    }
                }
            }
        };
        if let Err(error) = self.install_merge(&tablet, &inputs, output).await {
            // The next start may find an edit whose write failed: then it needs the table.
            if !error.is_undecided() {
                let _ = self.env.disk().remove(&tablet.table_path(file)).await;
            }
            return Err(error.into());
        }
        let micros = (self.env.now() - started).as_micros() as u64;
        Metrics::add(&self.metrics.compactions, 1);
        Metrics::add(&self.metrics.compaction_bytes_in, bytes_in);
        Metrics::add(&self.metrics.compaction_bytes_out, bytes_out);
        Metrics::add(&self.metrics.compaction_micros, micros);
        Metrics::add(&self.metrics.expired_entries, cutoff.expired());
        tracing::info!(
            tablet = tablet.id.0,
            tables = inputs.len(),
            bytes_in,
            bytes_out,
            micros,
            "merged tables"
        );
        Ok(())
    }

    /// Makes the output of a merge live in place of its inputs. Flushes may have put newer tables in front
    /// of them meanwhile; nothing else moves them.
    async fn install_merge(
        &self,
        tablet: &Tablet<E>,
        inputs: &[Rc<Table<E>>],
        output: Option<Rc<Table<E>>>,
    ) -> Result<(), ManifestError> {
        let files = inputs.iter().map(|table| table.file()).collect();
        // It names no position: a flush whose edit is on its way may come before it in the manifest.
        let merged = output.as_ref().map(|output| TableRef::from(output.meta()));
        let change = Change::ReplaceTables { tablet: tablet.id, files, table: merged };
        self.manifest.commit(Edit { changes: vec![change] }).await?;
        tablet.install(|version| {
            let mut upper = version.upper().to_vec();
            let at = upper.iter().position(|member| Rc::ptr_eq(&member.table, &inputs[0]));
            let at = at.expect("inputs stay live");
            upper.splice(at..at + inputs.len(), output.map(Member::whole));
            Version::new(upper, version.last().to_vec())
        });
        self.obsolete.borrow_mut().extend_from_slice(inputs);
        self.changed.notify();
        Ok(())
    }

    /// Closes and removes tables without readers, and logs without need. One file at a time.
    async fn remove_obsolete(&self) {
        self.close_departed().await;
        loop {
            let table = {
                let mut obsolete = self.obsolete.borrow_mut();
                let free = obsolete.iter().position(|table| Rc::strong_count(table) == 1);
                free.and_then(|at| Rc::try_unwrap(obsolete.swap_remove(at)).ok())
            };
            let Some(table) = table else { break };
            let path = table.name().path();
            let removed: Result<(), EngineError> = async {
                table.close().await?;
                Ok(self.env.disk().remove(&path).await?)
            }
            .await;
            if let Err(error) = removed {
                tracing::warn!("{path} is not needed any more, but stays until the next start: {error}");
            }
        }
        let logs = self.finished_logs.take();
        for log in logs {
            match remove_log(&self.env, log.segments()).await {
                Ok(()) => tracing::info!(log = log.id().0, "removed an old log: tables hold all of it"),
                Err(error) => tracing::warn!("an old log stays until the next start: {error}"),
            }
        }
    }

    /// Watches free space until the engine stops.
    pub(super) async fn space_loop(self: Rc<Self>) {
        let reserve = self.options.reserve_bytes;
        while !self.is_stopping.get() {
            match self.env.disk().space().await {
                Ok(space) if space.free < reserve => {
                    let shortage = format!(
                        "{} MiB are free, {} MiB are kept in reserve",
                        space.free >> 20,
                        reserve >> 20
                    );
                    if self.shortage.replace(Some(shortage.clone())).is_none() {
                        tracing::error!("puts are refused: {shortage}");
                        self.changed.notify();
                    }
                }
                // Some more than the reserve, so that it does not flap.
                Ok(space) if space.free > reserve + reserve / 8 => {
                    if self.shortage.replace(None).is_some() {
                        tracing::info!("puts are taken again: {} MiB are free", space.free >> 20);
                        self.changed.notify();
                    }
                }
                Ok(_) => {}
                Err(error) => tracing::warn!("free space is unknown: {error}"),
            }
            let stopped = self.changed.until(|| self.is_stopping.get());
            futures_lite::future::or(self.env.sleep(SPACE_CHECK), stopped).await;
        }
    }
}
