//! Snapshots: tablets of a shard as they were at one moment, for readers that take their time.
//!
//! A snapshot is numbers and files. It names, for each tablet, the last write it sees and the tables as they were
//! ([`Version`], which keeps the files), and for all of them the last memtable with something for it. Memtables
//! are looked up by that number when they are read, so a snapshot keeps none:
//! - The flush of a memtable writes of each key, besides the newest version, the newest not after the LSN of each
//!   snapshot that was open when it began, range deleted later or not. One that is taken later sees everything in
//!   a sealed memtable.
//! - When the memtable goes, each open snapshot gets its tables in the same step ([`Snapshot::epoch`] tells
//!   readers). Tables are newest first for a snapshot as well; newer versions in there are skipped by LSN.
//! - A merge need not know: its inputs stay as long as a snapshot has them.
//! - Time stands still in a snapshot: keys expire by the clock as it was taken, and a flush keeps for it what has
//!   expired since.
//!
//! A snapshot that nobody has used for [`EngineOptions::snapshot_life`](super::EngineOptions) gives up its files
//! and says [`EngineError::SnapshotOver`] from then on. So does one of a tablet that left the shard, and the oldest
//! one while those that are kept for snapshots alone take more than the live tables and
//! [`EngineOptions::snapshot_bytes`](super::EngineOptions): a reader that is slow must not fill the disk.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::memtable::Memtable;
use super::ranges::RangeDeletes;
use super::version::{Member, Version};
use super::write::Sealed;
use super::{Engine, EngineError, Tablet};
use crate::base::{BlockSeq, Lsn};
use crate::env::Env;

/// Tablets at one moment.
pub struct Snapshot<E: Env> {
    now_ms: u64,
    /// The last memtable with something for it, by number.
    memtable: u64,
    wait: Option<BlockSeq>,
    taken: Duration,
    used: Cell<Duration>,
    is_over: Cell<bool>,
    epoch: Cell<u64>,
    views: Vec<View<E>>,
}

/// One tablet at that moment.
pub struct View<E: Env> {
    tablet: Rc<Tablet<E>>,
    local: usize,
    lsn: Lsn,
    ranges: Rc<RangeDeletes>,
    version: RefCell<Rc<Version<E>>>,
}

impl<E: Env> View<E> {
    /// The tablet's local number.
    pub fn local(&self) -> usize {
        self.local
    }

    /// Whether a memtable may hold something for it.
    pub(super) fn counts(&self, memtable: u64) -> bool {
        memtable >= self.tablet.memtables_from.get()
    }

    /// The last write that is seen.
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// Range deletes that it sees: what they cover is absent.
    pub fn ranges(&self) -> &RangeDeletes {
        &self.ranges
    }

    /// Tables with all that is seen and in no memtable.
    pub fn version(&self) -> Rc<Version<E>> {
        self.version.borrow().clone()
    }
}

impl<E: Env> Snapshot<E> {
    /// The time by which keys are expired.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// The block that must be durable before anyone may be told what is in here, if it was not when this was
    /// taken.
    pub fn wait(&self) -> Option<BlockSeq> {
        self.wait
    }

    /// Grows when a memtable became tables: whoever walks goes on from where it is, in what is there now.
    pub fn epoch(&self) -> u64 {
        self.epoch.get()
    }

    /// Its tablets.
    pub fn views(&self) -> &[View<E>] {
        &self.views
    }

    /// Notes that it is used, unless it is over.
    pub fn touch(&self, now: Duration) -> Result<(), EngineError> {
        if self.is_over.get() {
            return Err(EngineError::SnapshotOver);
        }
        self.used.set(now);
        Ok(())
    }

    /// Gives up its files.
    fn end(&self) {
        self.is_over.set(true);
        self.epoch.set(self.epoch.get() + 1);
        for view in &self.views {
            view.version.replace(Rc::new(Version::default()));
        }
    }
}

impl<E: Env> Engine<E> {
    /// A snapshot of these tablets, or of all. Ends when dropped.
    pub fn snapshot(&self, local: Option<usize>) -> Rc<Snapshot<E>> {
        let tablets = self.all_tablets();
        let locals = local.map_or(0..tablets.len(), |local| local..local + 1);
        let views: Vec<View<E>> = locals
            .filter(|local| tablets[*local].is_here() && !tablets[*local].is_handed_over.get())
            .map(|local| {
                let tablet = tablets[local].clone();
                let (lsn, version) = (tablet.last_lsn.get(), tablet.version());
                let ranges = tablet.ranges();
                // From here on writes leave alone what it sees.
                tablet.snapshot_lsn.set(lsn);
                View { tablet, local, lsn, ranges, version: RefCell::new(version) }
            })
            .collect();
        let wait = views.iter().filter_map(|view| self.wal.block_of(view.tablet.log, view.lsn.index())).max();
        let now = self.env.now();
        let snapshot = Rc::new(Snapshot {
            now_ms: self.now_ms(),
            memtable: self.active_number.get(),
            wait,
            taken: now,
            used: Cell::new(now),
            is_over: Cell::new(false),
            epoch: Cell::new(0),
            views,
        });
        let mut open = self.snapshots.borrow_mut();
        open.retain(|known| known.strong_count() > 0);
        open.push(Rc::downgrade(&snapshot));
        snapshot
    }

    fn open_snapshots(&self) -> impl Iterator<Item = Rc<Snapshot<E>>> {
        let open = self.snapshots.borrow();
        let live: Vec<_> =
            open.iter().filter_map(Weak::upgrade).filter(|known| !known.is_over.get()).collect();
        live.into_iter()
    }

    /// How many snapshots are open, and for how long the oldest has been.
    pub(super) fn snapshot_ages(&self) -> (u64, Duration) {
        let now = self.env.now();
        let ages = self.open_snapshots().map(|snapshot| now.saturating_sub(snapshot.taken));
        ages.fold((0, Duration::ZERO), |(count, oldest), age| (count + 1, oldest.max(age)))
    }

    /// Ends those that nobody has used for long.
    pub(super) fn end_idle_snapshots(&self) {
        let now = self.env.now();
        let life = self.options.snapshot_life;
        for snapshot in self.open_snapshots().filter(|known| now.saturating_sub(known.used.get()) > life) {
            tracing::info!(idle_s = life.as_secs(), "a snapshot was given up, since nobody used it");
            snapshot.end();
        }
    }

    /// Ends the oldest if snapshots keep too many files. Called when those that nobody needs are gone.
    pub(super) fn end_costly_snapshot(&self) {
        let kept: u64 = self.obsolete.borrow().iter().map(|table| table.meta().bytes).sum();
        let live = self.metrics.upper_bytes.get() + self.metrics.last_bytes.get();
        if kept <= live.saturating_add(self.options.snapshot_bytes) {
            return;
        }
        let now = self.env.now();
        if let Some(oldest) = self.open_snapshots().max_by_key(|snapshot| now.saturating_sub(snapshot.taken))
        {
            let age_s = now.saturating_sub(oldest.taken).as_secs();
            tracing::info!(
                kept,
                live,
                age_s,
                "the oldest snapshot was given up: too many files were kept for it"
            );
            oldest.end();
            self.changed.notify();
        }
    }

    /// Ends those of a tablet that leaves this shard, or is no longer what it was.
    pub fn end_snapshots_of(&self, local: usize) {
        let of_it = |snapshot: &Rc<Snapshot<E>>| snapshot.views.iter().any(|view| view.local == local);
        self.open_snapshots().filter(of_it).for_each(|snapshot| snapshot.end());
    }

    /// What a flush of `sealed` keeps of a tablet besides the newest versions: that as of these LSNs, descending.
    pub(super) fn snapshot_lsns(&self, sealed: &Sealed, local: usize) -> Vec<Lsn> {
        let open = self.open_snapshots().filter(|snapshot| snapshot.memtable == sealed.number);
        let mut lsns: Vec<Lsn> = open
            .filter_map(|snapshot| {
                snapshot.views.iter().find(|view| view.local == local).map(|view| view.lsn)
            })
            .collect();
        lsns.sort_unstable_by(|a, b| b.cmp(a));
        lsns.dedup();
        lsns
    }

    /// The time by which a flush of `sealed` may take entries for expired: snapshots that see it are of a time
    /// before.
    pub(super) fn flush_time(&self, sealed: &Sealed) -> u64 {
        let open = self.open_snapshots().filter(|snapshot| snapshot.memtable >= sealed.number);
        open.map(|snapshot| snapshot.now_ms).fold(self.tick(), u64::min)
    }

    /// Gives open snapshots the tables of a memtable, in the step in which it goes.
    pub(super) fn swap_in(&self, sealed: &Sealed, tables: &[(usize, Rc<Member<E>>)]) {
        for snapshot in self.open_snapshots().filter(|snapshot| snapshot.memtable >= sealed.number) {
            for view in &snapshot.views {
                if let Some((_, member)) = tables.iter().find(|(local, _)| *local == view.local) {
                    let version = view.version.borrow().with_newest(member.clone());
                    view.version.replace(Rc::new(version));
                }
            }
            snapshot.epoch.set(snapshot.epoch.get() + 1);
        }
    }

    /// Numbers of the memtables with something for a snapshot, newest first.
    pub(super) fn memtables_of(&self, snapshot: &Snapshot<E>) -> Vec<u64> {
        let sealed = self.sealed.borrow();
        let numbers = sealed.iter().rev().map(|sealed| sealed.number);
        std::iter::once(self.active_number.get())
            .chain(numbers)
            .filter(|number| *number <= snapshot.memtable)
            .collect()
    }

    /// Looks at a memtable, if it is still there.
    pub(super) fn with_memtable<R>(&self, number: u64, look: impl FnOnce(&Memtable) -> R) -> Option<R> {
        if number == self.active_number.get() {
            return Some(look(&self.active.borrow()));
        }
        let sealed = self.sealed.borrow();
        sealed.iter().find(|sealed| sealed.number == number).map(|sealed| look(&sealed.memtable))
    }
}
