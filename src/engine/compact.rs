//! Drives compaction: asks the picker about each tablet, runs the job, installs the result.
//!
//! One task does it all, so at any time a shard reads for at most one merge, and writes for it, one request of
//! 256 KiB at a time each. Merges above the last level come first, then steps of descents ([`super::descend`]),
//! each of which is short: so what keeps reads short never waits for long. What can't be read they go around
//! ([`super::around`]).

use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use super::compaction::{self, AgedChoice, Choice, Merge, Merged, Policy, Run, Shape};
use super::damage::MetBy;
use super::expiry::Cutoff;
use super::manifest::{Change, Edit, ManifestError};
use super::run::RunIter;
use super::sstable::{Table, TableMeta};
use super::version::{Member, Totals};
use super::{Engine, EngineError, Tablet};
use crate::base::TableName;
use crate::disk::Disk;
use crate::env::Env;
use crate::metrics::Metrics;

/// A merge that found no space is tried again after this, and meanwhile no other is.
const RETRY: Duration = Duration::from_secs(1);
/// A merge that the disk failed is tried again after [`RETRY`], and after twice as long each time up to this.
/// Others, of tables that can be read, go on meanwhile.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How often tables are looked over for what has expired. Expiry is invisible to readers at once; this is
/// about space, of which a minute's worth is little.
const EXPIRY_CHECK: Duration = Duration::from_secs(60);
/// Without a write for so long a shard is idle, and puts in order what it would leave alone otherwise.
const IDLE: Duration = Duration::from_secs(2);

/// What is to be done with a tablet.
pub(super) struct Work<E: Env> {
    pub tablet: Rc<Tablet<E>>,
    pub task: Task,
}

/// See [`Work`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// Its oldest table above the last level shares keys with none of that, and joins it as it is.
    Move,
    /// Make these tables above the last level, newest first, one.
    Merge(Range<usize>),
    /// A step of the descent of the tables above the last level from this one on.
    Descend(usize),
    /// Write this table of the last level anew.
    Rewrite(usize),
}

impl<E: Env> Engine<E> {
    /// Merges tables until the engine stops.
    pub(super) async fn compaction_loop(self: Rc<Self>) {
        let mut written = (0, self.env.now());
        loop {
            let next = self.changed.notified();
            self.end_idle_snapshots();
            self.purge().await;
            self.remove_obsolete().await;
            self.end_costly_snapshot();
            if self.is_stopping.get() || self.manifest.failed().is_some() {
                return;
            }
            let is_idle = self.is_idle(&mut written);
            let work = match self.is_crowded() {
                true => self.pick_expired().or_else(|| self.pick(is_idle)),
                false => self.pick(is_idle).or_else(|| self.pick_expired()),
            };
            let Some(work) = work else {
                // Nobody notifies when time passes.
                let look_again = if is_idle { EXPIRY_CHECK } else { IDLE };
                futures_lite::future::or(next, self.env.sleep(self.until_retry().min(look_again))).await;
                continue;
            };
            let tablet = work.tablet.clone();
            match self.work(work).await {
                Ok(()) => tablet.merge_delay.set(Duration::ZERO),
                Err(error) => self.compaction_failed(&tablet, &error).await,
            }
        }
    }

    /// Whether nothing was written for a while; `written` is what was known of that the last time.
    fn is_idle(&self, written: &mut (u64, Duration)) -> bool {
        let (ops, now) = (self.metrics.wal_ops.get(), self.env.now());
        if written.0 != ops {
            *written = (ops, now);
        }
        now - written.1 >= IDLE
    }

    async fn compaction_failed(&self, tablet: &Tablet<E>, error: &EngineError) {
        let avoided = tablet.avoid(error, self.env.now());
        let around = match avoided {
            Some(true) => {
                "; until the next start this table stays as it is, and others are merged without it"
            }
            Some(false) => "; others are merged without this table for a while",
            None => "",
        };
        tracing::error!(tablet = tablet.id.0, "merging tables failed: {error}{around}");
        Metrics::add(&self.metrics.compaction_failures, 1);
        self.note_damage(MetBy::Merge, error);
        if avoided.is_some() {
            // What is due without it may be another merge.
        } else if error.is_full() {
            let stopped = self.changed.until(|| self.is_stopping.get());
            futures_lite::future::or(self.env.sleep(RETRY), stopped).await;
        } else {
            let delay = (tablet.merge_delay.get() * 2).clamp(RETRY, RETRY_MAX);
            tablet.merge_delay.set(delay);
            tablet.no_merge_until.set(self.env.now() + delay);
        }
        self.count_debt(tablet);
    }

    /// How long until a merge that failed may be tried again.
    fn until_retry(&self) -> Duration {
        let now = self.env.now();
        let tablets = self.tablets.borrow();
        let times = tablets.iter().map(|tablet| tablet.no_merge_until.get()).filter(|time| *time > now);
        let tables = tablets.iter().filter_map(|tablet| tablet.avoided.next_try(now));
        times.chain(tables).min().map_or(Duration::MAX, |time| time - now)
    }

    /// Tablets whose tables may be merged now.
    fn compactable(&self) -> impl Iterator<Item = Rc<Tablet<E>>> {
        let now = self.env.now();
        self.all_tablets()
            .into_iter()
            .filter(move |tablet| tablet.stays() && tablet.no_merge_until.get() <= now)
    }

    /// What is due because of what was written, or because nothing is.
    pub(super) fn pick(&self, is_idle: bool) -> Option<Work<E>> {
        if let Some(tablet) = self.compactable().find(|tablet| self.can_move(&tablet.version())) {
            return Some(Work { tablet, task: Task::Move });
        }
        let choices = self.compactable().filter_map(|tablet| {
            let choice = self.pick_for(&tablet, is_idle)?;
            Some((tablet, choice))
        });
        let (tablet, choice) = choices.max_by_key(|(tablet, choice)| {
            // Of tablets of one urgency the one most behind: none waits for ever while others are written to.
            (choice.urgency(), tablet.version().upper_totals().bytes)
        })?;
        let task = match choice {
            Choice::Merge(range) => Task::Merge(range),
            Choice::GoOn => Task::Descend(tablet.version().front()),
            Choice::Descend(first) => Task::Descend(first),
        };
        Some(Work { tablet, task })
    }

    /// What is due in this tablet.
    pub(super) fn pick_for(&self, tablet: &Tablet<E>, is_idle: bool) -> Option<Choice> {
        let policy = Policy { fan: self.options.compaction_fan, ratio: self.options.level_ratio };
        compaction::pick(&shape(tablet, is_idle, self.avoided_at(tablet)), &policy)
    }

    /// A tablet with a table in which much has expired or was removed by range deletes.
    fn pick_expired(&self) -> Option<Work<E>> {
        let now_ms = self.tick();
        self.compactable().find_map(|tablet| {
            let version = tablet.version();
            let (ranges, _) = tablet.flushed_ranges();
            let now = self.avoided_at(&tablet);
            let aged_one = |member: &Rc<Member<E>>| {
                let bytes = member.meta().bytes;
                if tablet.avoided.has(member.table.file(), now) {
                    return compaction::Aged { bytes, past_bytes: 0 };
                }
                let past_bytes = member.meta().expiries.past_bytes(now_ms) + member.removed_bytes(&ranges);
                compaction::Aged { bytes, past_bytes: past_bytes.min(bytes) }
            };
            let aged = |members: &[Rc<Member<E>>]| members.iter().map(aged_one).collect::<Vec<_>>();
            let upper = &version.upper()[..version.front()];
            let task = match compaction::pick_expired(aged(version.last()), aged(upper))? {
                AgedChoice::Last(at) => Task::Rewrite(at),
                AgedChoice::Upper(at) => Task::Merge(at..at + 1),
            };
            Some(Work { tablet, task })
        })
    }

    async fn work(&self, work: Work<E>) -> Result<(), EngineError> {
        let Work { tablet, task } = work;
        let _merging = tablet.merging.enter();
        match task {
            Task::Move => self.move_down(&tablet).await,
            Task::Merge(range) => self.merge_upper(&tablet, range).await,
            Task::Descend(first) => self.descend(&tablet, first).await,
            Task::Rewrite(at) => self.rewrite(&tablet, at).await,
        }
    }

    /// Makes tables of the upper level one.
    async fn merge_upper(&self, tablet: &Tablet<E>, range: Range<usize>) -> Result<(), EngineError> {
        let version = tablet.version();
        let is_oldest = range.end == version.upper().len();
        let inputs = version.upper()[range].to_vec();
        let what = Merge {
            tablet: tablet.id,
            slots: tablet.slots.get(),
            options: self.options.upper_tables(),
            drops_tombstones: is_oldest
                && inputs.iter().all(|input| version.reached_by(&input.bounds()).is_empty()),
            table_bytes: u64::MAX,
            early: None,
        };
        let mut runs = Vec::with_capacity(inputs.len());
        for input in &inputs {
            runs.push(RunIter::seek(vec![input.clone()], b"", b"").await?);
        }
        let Some((_, outputs)) = self.merge(tablet, runs, &what, Totals::of(&inputs)).await? else {
            return Ok(());
        };
        let output = outputs.into_iter().next();
        let change = Change::ReplaceTables {
            tablet: tablet.id,
            files: inputs.iter().map(|input| input.table.file()).collect(),
            // It names no position: a flush whose edit is on its way may come before it in the manifest.
            table: output.as_ref().map(|output| output.whole_ref()),
        };
        self.commit_merge(tablet, change, output.as_slice()).await?;
        self.install(tablet, |version| version.with_merged(&inputs, output));
        self.give_up(inputs.iter().map(|input| input.table.clone()));
        Ok(())
    }

    /// Merges `runs` and opens what came of it. `None`: it was told to stop. No file stays then, nor after an
    /// error.
    pub(super) async fn merge(
        &self,
        tablet: &Tablet<E>,
        runs: Vec<RunIter<E>>,
        what: &Merge,
        inputs: Totals,
    ) -> Result<Option<(Merged, Vec<Rc<Member<E>>>)>, EngineError> {
        let started = self.env.now();
        let (ranges, cleared) = tablet.flushed_ranges();
        let cutoff = Cutoff::new(self.tick(), ranges);
        let mut metas = Vec::new();
        let result = self.merge_and_open(tablet, runs, what, &cutoff, &mut metas).await;
        let Ok(Some((end, tables))) = result else {
            // Each try would leave some behind.
            for meta in &metas {
                let _ = self.env.disk().remove(&tablet.table_path(meta.file)).await;
            }
            return result.map(|_| None);
        };
        let members = tables.into_iter().map(|table| Member::whole(table, cleared)).collect();
        let bytes_out = metas.iter().map(|meta| meta.bytes).sum();
        let took = self.env.now() - started;
        self.pace.measure(bytes_out, took);
        let micros = took.as_micros() as u64;
        Metrics::add(&self.metrics.compactions, 1);
        Metrics::add(&self.metrics.compaction_bytes_in, inputs.bytes);
        Metrics::add(&self.metrics.compaction_bytes_out, bytes_out);
        Metrics::add(&self.metrics.compaction_micros, micros);
        Metrics::add(&self.metrics.expired_entries, cutoff.expired());
        Metrics::add(&self.metrics.range_entries, cutoff.removed());
        let (tablet, bytes_in, to_last) = (tablet.id.0, inputs.bytes, what.options.is_last);
        tracing::info!(tablet, tables = inputs.tables, bytes_in, bytes_out, to_last, micros, "merged tables");
        Ok(Some((end, members)))
    }

    async fn merge_and_open(
        &self,
        tablet: &Tablet<E>,
        runs: Vec<RunIter<E>>,
        what: &Merge,
        cutoff: &Cutoff,
        metas: &mut Vec<TableMeta>,
    ) -> Result<Option<(Merged, Vec<Rc<Table<E>>>)>, EngineError> {
        let hash = |key: &[u8]| self.hash(key);
        let beat = async |_bytes| !self.is_stopping.get() && tablet.stays();
        let next_file = || self.next_file();
        let end = compaction::merge(&self.env, runs, what, cutoff, hash, next_file, beat, metas).await?;
        if end == Merged::Stopped {
            return Ok(None);
        }
        self.env.disk().sync_dir(TableName::DIR).await?;
        let mut tables = Vec::with_capacity(metas.len());
        for meta in metas.iter() {
            match self.open_table(TableName::new(meta.tablet, meta.file)).await {
                Ok(table) => tables.push(table),
                Err(error) => {
                    for table in tables.into_iter().filter_map(Rc::into_inner) {
                        let _ = table.close().await; // the first error is the one to report
                    }
                    return Err(error.into());
                }
            }
        }
        metas.iter().for_each(|meta| self.count_written(meta));
        Ok(Some((end, tables)))
    }

    /// Makes the outcome of a merge durable. Without success its `outputs` go, unless the next start may find
    /// the edit all the same: then it needs them.
    pub(super) async fn commit_merge(
        &self,
        tablet: &Tablet<E>,
        change: Change,
        outputs: &[Rc<Member<E>>],
    ) -> Result<(), ManifestError> {
        let result = self.manifest.commit(Edit { changes: vec![change] }).await;
        if result.as_ref().is_err_and(|error| !error.is_undecided()) {
            for output in outputs {
                let _ = self.env.disk().remove(&tablet.table_path(output.table.file())).await;
            }
        }
        result
    }

    /// Tables that are live no more go as soon as nobody reads them.
    pub(super) fn give_up(&self, tables: impl IntoIterator<Item = Rc<Table<E>>>) {
        self.obsolete.borrow_mut().extend(tables);
        self.changed.notify();
    }
}

/// What the picker is told of a tablet.
fn shape<E: Env>(tablet: &Tablet<E>, is_idle: bool, now: Duration) -> Shape {
    let version = tablet.version();
    let (front, sinking) = version.upper().split_at(version.front());
    let run = |member: &Rc<Member<E>>| Run {
        is_avoided: tablet.avoided.has(member.table.file(), now),
        ..Run::from(member.totals())
    };
    let descending = tablet.descending(&version, now);
    let mut shape = Shape {
        front: front.iter().map(run).collect(),
        sinking: sinking.len(),
        last: version.last_totals().into(),
        reached: Run::default(),
        is_blocked: descending.is_empty(),
        is_idle,
    };
    if shape.has_many_tombstones() {
        let mut reached = Totals::default();
        let is_reached = |member: &&Rc<Member<E>>| {
            let bounds = member.bounds();
            descending.iter().any(|upper| upper.bounds().overlaps(&bounds))
        };
        version.last().iter().filter(is_reached).for_each(|member| reached.add(member.totals()));
        shape.reached = reached.into();
    }
    shape
}
