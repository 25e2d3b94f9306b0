//! What becomes of range deletes once they are flushed: tables of which they leave nothing are removed unread,
//! merges leave out what else they hide, and those that hide nothing any more are forgotten.

use std::rc::Rc;

use super::manifest::{Change, Edit, ManifestError};
use super::ranges::{RangeDelete, RangeDeletes};
use super::version::{Member, Version};
use super::{Engine, Tablet};
use crate::base::Lsn;
use crate::env::{Env, Pacer};
use crate::metrics::Metrics;

impl<E: Env> Tablet<E> {
    /// Those of `ranges` that the manifest does not have yet.
    fn unflushed<'a>(&self, ranges: &'a RangeDeletes) -> impl Iterator<Item = &'a RangeDelete> {
        let flushed = self.flushed.get();
        ranges.fragments().iter().filter(move |range| range.lsn.index() > flushed)
    }

    /// What the manifest is to be told, behind the new flushed index, when `ranges` are flushed.
    pub(super) fn range_changes(&self, ranges: &RangeDeletes) -> Vec<Change> {
        let new = self.unflushed(ranges).cloned();
        new.map(|range| Change::AddRange { tablet: self.id, range }).collect()
    }

    /// The manifest has `ranges`. Called before the flushed index moves.
    pub(super) fn ranges_flushed(&self, ranges: &RangeDeletes) {
        let (known, _) = self.flushed_ranges();
        let ranges = self.unflushed(ranges).fold(known, |known, new| Rc::new(known.with(new)));
        self.flushed_ranges.replace(ranges);
    }

    /// Another shard has the tablet, and its range deletes.
    pub(super) fn drop_ranges(&self) {
        self.ranges.take();
        self.flushed_ranges.take();
    }

    /// Forgets range deletes that hide nothing.
    fn forget_ranges(&self, lsns: &[Lsn]) {
        for ranges in [&self.ranges, &self.flushed_ranges] {
            let left = ranges.borrow().without(lsns);
            ranges.replace(Rc::new(left));
        }
    }
}

impl<E: Env> Member<E> {
    /// About how many bytes of it range deletes have removed, to a partition of its index. All of it, if so many
    /// range deletes are known that some should be forgotten.
    pub(super) fn removed_bytes(&self, ranges: &RangeDeletes) -> u64 {
        let mut holding = ranges.fragments().iter().filter(|range| self.may_hold(range)).peekable();
        if holding.peek().is_some() && ranges.is_crowded() {
            return self.meta().bytes;
        }
        let before = |key: &[u8]| self.table.bytes_before(key);
        let within = |range: &RangeDelete| {
            let end = if range.end.is_empty() { self.meta().bytes } else { before(&range.end) };
            end.saturating_sub(before(&range.start))
        };
        holding.map(within).sum()
    }
}

impl<E: Env> Engine<E> {
    /// Whether a tablet has so many range deletes that some should be forgotten before anything else is done.
    pub(super) fn is_crowded(&self) -> bool {
        self.tablets.borrow().iter().any(|tablet| tablet.ranges.borrow().is_crowded())
    }

    /// Removes tables of which flushed range deletes leave nothing, and forgets range deletes of which no table
    /// may hold anything: memtables hold only what came after them. Called between merges, whose inputs must
    /// stay.
    pub(super) async fn purge(&self) {
        let mut pacer = Pacer::new(&self.env);
        for tablet in self.all_tablets() {
            pacer.breathe().await;
            if self.is_stopping.get() || self.manifest.failed().is_some() {
                return;
            }
            if let Err(error) = self.purge_tablet(&tablet).await {
                // It is tried again when something changes.
                tracing::warn!(tablet = tablet.id.0, "tables in deleted ranges stay for now: {error}");
            }
        }
    }

    async fn purge_tablet(&self, tablet: &Tablet<E>) -> Result<(), ManifestError> {
        let (ranges, _) = tablet.flushed_ranges();
        if ranges.is_empty() || !tablet.stays() {
            return Ok(());
        }
        // A tablet that is about to leave waits until its tables change no more.
        let _merging = tablet.merging.enter();
        let version = tablet.version();
        let (gone, left): (Vec<_>, Vec<_>) = version.members().partition(|member| member.is_gone(&ranges));
        let lsns = ranges.unneeded(|range| left.iter().any(|member| member.may_hold(range)));
        if gone.is_empty() && lsns.is_empty() {
            return Ok(());
        }
        let files = gone.iter().map(|member| member.table.file()).collect();
        let changes = vec![
            Change::RemoveTables { tablet: tablet.id, files },
            Change::RemoveRanges { tablet: tablet.id, lsns: lsns.clone() },
        ];
        self.manifest.commit(Edit { changes }).await?;
        // Flushes may have put tables in front meanwhile.
        self.install(tablet, |version| {
            let stays = |member: &&Rc<Member<E>>| !gone.iter().any(|gone| Rc::ptr_eq(gone, member));
            let [upper, last] =
                [version.upper(), version.last()].map(|list| list.iter().filter(stays).cloned().collect());
            Version::new(upper, last)
        });
        tablet.forget_ranges(&lsns);
        self.give_up(gone.iter().map(|member| member.table.clone()));
        Metrics::add(&self.metrics.range_tables, gone.len() as u64);
        tracing::info!(
            tablet = tablet.id.0,
            tables = gone.len(),
            forgotten = lsns.len(),
            "removed tables in deleted ranges"
        );
        Ok(())
    }
}
