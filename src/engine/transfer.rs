//! Tablets that leave for another shard, come from one, and split, while both shards serve. Nothing is copied:
//! a table belongs to its tablet, whichever shard that is on.
//!
//! A move, of which whoever coordinates it has each step taken where it belongs:
//! 1. [`Engine::prepare_to_leave`] (source): merges of the tablet's tables end; what is in memory is flushed, so
//!    that little is left; flushes wait from here on.
//! 2. [`Engine::prepare_to_take`] (target): opens the tablet's tables.
//! 3. Requests for the tablet are held back, everywhere, and those under way end.
//! 4. [`Engine::pack`] (source): what the tablet still has in memory becomes a table. The manifest is not told:
//!    the source's log holds it all, until the target's manifest does.
//! 5. [`Engine::take`] (target): one manifest edit describes the tablet with a higher epoch. This is the moment
//!    at which it moves: of two descriptions, the next start takes the one with the higher epoch.
//! 6. [`Engine::part`] (source): the tablet and its description go. If step 4 or 5 failed, [`Engine::keep`]
//!    instead; if nobody knows whether step 5 did, [`Engine::lose`]: then neither shard serves it before the next
//!    start, which knows.
//!
//! A split is the source's alone: [`Engine::prepare_to_leave`], [`Engine::prepare_to_split`], held requests, and
//! [`Engine::split`], whose one edit is the moment at which it happens.
//!
//! Invariants:
//! - A tablet is served by one shard at most. Who holds its requests back is the caller's affair.
//! - All of a tablet is in tables when it moves or splits, and both shards' logs are done with it. So what an
//!   earlier log holds of it never counts, and the new owner's entries go on where those ended.
//! - Memtables from before are sealed: a key's versions of before and after are never in the same one. They don't
//!   count for a tablet that has come or split since.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::load::Load;
use super::manifest::{Change, Clip, Edit, ManifestError, TableRef, TabletState};
use super::recovery::OldLog;
use super::sstable::Table;
use super::version::{Member, Version};
use super::wal::WalTablet;
use super::write::Sealed;
use super::{Engine, EngineError, Tablet};
use crate::base::{Bug, EntryIndex, Lsn, TableName, TabletId, planted};
use crate::disk::Disk;
use crate::env::{Env, Gate, LockGuard, Pacer};
use crate::metrics::Metrics;
use crate::slot::SlotRange;

/// Keys of a tablet that may be in memory when its requests are held back: flushed in about a millisecond.
const REMAINDER_MAX: usize = 2000;
/// Flushes ahead of a move, at most. Each takes as long as writing what came during the one before it, so a few
/// leave little; more are for nothing.
const ROUNDS_MAX: usize = 6;

/// Where a tablet stands with its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Presence {
    /// It is here to stay.
    Here,
    /// It is about to leave or to split: nobody merges its tables.
    Leaving,
    /// Another shard has it.
    Gone,
    /// Only the next start knows whether another shard has it. Nobody serves it, its files stay as they are, and
    /// so does what the log holds of it.
    Lost,
}

/// The tablet that is about to leave or to split. There is one at a time.
pub(super) struct Leaving {
    tablet: TabletId,
    /// No memtable is flushed meanwhile. Taken when the tablet has been prepared.
    turn: Option<LockGuard>,
    /// Files that were written for it, which nothing names yet.
    files: Vec<String>,
    /// What the manifest is to say of those, if the tablet does not move.
    flushed: Vec<Change>,
}

/// Why a tablet did not move or split.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// It stays as it was.
    #[error(transparent)]
    Failed(#[from] EngineError),
    /// It may have, on disk; only the next start knows.
    #[error("{0}; only a restart shows where the tablet is")]
    Undecided(ManifestError),
    /// There is no such tablet on this shard any more, or it is leaving already.
    #[error("tablet {0} is not here, or is on its way already")]
    NotHere(TabletId),
}

impl From<ManifestError> for TransferError {
    fn from(error: ManifestError) -> TransferError {
        match error.is_undecided() {
            true => TransferError::Undecided(error),
            false => TransferError::Failed(error.into()),
        }
    }
}

/// What became of a tablet's part of the sealed memtables.
struct Part {
    /// What is to be said of it in the manifest.
    changes: Vec<Change>,
    /// Names of the tables, oldest first, and up to where range deletes have removed what they leave out.
    tables: Vec<TableName>,
    cleared: Lsn,
    /// Its last entry.
    last: EntryIndex,
}

impl<E: Env> Tablet<E> {
    pub(super) fn new(
        state: &TabletState,
        log: WalTablet,
        version: Version<E>,
        recovered: EntryIndex,
        old_logs: Vec<std::sync::Arc<OldLog>>,
    ) -> Tablet<E> {
        let ranges = Rc::new(state.ranges.clone());
        Tablet {
            id: state.id,
            slots: state.slots.into(),
            term: state.term,
            log,
            version: Rc::new(version).into(),
            flushed: state.flushed.into(),
            last_lsn: Lsn::new(state.flushed, u16::MAX).into(),
            snapshot_lsn: Lsn::ZERO.into(),
            ranges: ranges.clone().into(),
            flushed_ranges: ranges.into(),
            recovered,
            old_logs: old_logs.into(),
            no_merge_until: Default::default(),
            merge_delay: Default::default(),
            avoided: Default::default(),
            dues: Default::default(),
            presence: Presence::Here.into(),
            memtables_from: Default::default(),
            is_handed_over: Default::default(),
            load: Load::default(),
            merging: Gate::new(),
        }
    }
}

impl<E: Env> Engine<E> {
    /// Makes a tablet ready to leave or to split: merges of its tables end, and little of it stays in memory.
    /// Suspends for as long as flushes take; the tablet is served meanwhile. Afterwards no memtable is flushed
    /// until the transfer ends in one way or another.
    pub async fn prepare_to_leave(&self, id: TabletId) -> Result<(), TransferError> {
        let local = self.locate(id).ok_or(TransferError::NotHere(id))?;
        if self.leaving.borrow().is_some() {
            return Err(TransferError::NotHere(id));
        }
        self.leaving.replace(Some(Leaving {
            tablet: id,
            turn: None,
            files: Vec::new(),
            flushed: Vec::new(),
        }));
        let tablet = self.tablet(local);
        tablet.presence.set(Presence::Leaving);
        self.changed.notify();
        tablet.merging.empty().await;
        let prepared = self.flush_ahead(local).await;
        let mut leaving = self.leaving.borrow_mut();
        match prepared {
            Ok(turn) => match leaving.as_mut() {
                Some(leaving) => leaving.turn = Some(turn),
                None => return Err(TransferError::NotHere(id)), // the engine closes
            },
            Err(error) => {
                tablet.presence.set(Presence::Here);
                *leaving = None;
                drop(leaving);
                self.changed.notify();
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Flushes until little of a tablet is in memory. Returns with the right to flush.
    async fn flush_ahead(&self, local: usize) -> Result<LockGuard, EngineError> {
        for round in 0.. {
            // Those that are there now: writers who fill the next one while the last is flushed may go on for ever.
            let last = self.sealed.borrow().back().map(|sealed| sealed.number);
            let is_flushed = || {
                self.sealed.borrow().front().is_none_or(|sealed| last.is_none_or(|last| sealed.number > last))
            };
            let is_settled = || {
                is_flushed()
                    || self.flush_trouble.borrow().is_some()
                    || self.manifest.failed().is_some()
                    || self.wal.failed().is_some()
                    || self.is_stopping.get()
            };
            self.changed.until(is_settled).await;
            if let Some(cause) = self.wal.failed() {
                return Err(EngineError::Log(cause));
            }
            if let Some(cause) = self.manifest.failed() {
                return Err(ManifestError::Failed(cause).into());
            }
            match self.flush_trouble.borrow().as_ref() {
                Some(cause) if cause.is_full() => return Err(EngineError::Full(cause.to_string())),
                Some(cause) => return Err(EngineError::Flush(cause.to_string())),
                None => {}
            }
            let turn = self.flushing.lock().await;
            let is_little = self.active.borrow().tablet_entries(local) <= REMAINDER_MAX;
            if self.sealed.borrow().is_empty() && is_little || round >= ROUNDS_MAX || self.is_stopping.get() {
                return Ok(turn);
            }
            drop(turn);
            if self.sealed.borrow().is_empty() {
                self.rotate();
            }
        }
        unreachable!("the rounds are counted")
    }

    /// Describes the tablet as its next owner, `shard`, will have it, all of it in tables. Its requests are held
    /// back, and none is under way.
    pub async fn pack(&self, id: TabletId, shard: u32) -> Result<TabletState, TransferError> {
        let local = self.prepared(id)?;
        let part = self.flush_part(local).await?;
        let mut after = self.manifest.preview(&part.changes);
        let mut state = after.tablets.remove(&id).ok_or(TransferError::NotHere(id))?;
        if let Some(leaving) = self.leaving.borrow_mut().as_mut() {
            leaving.flushed = part.changes;
        }
        state.shard = shard;
        state.epoch += 1;
        state.logs.clear();
        if planted(Bug::RangeStaysBehind) {
            state.ranges = Default::default();
        }
        Ok(state)
    }

    /// The local number of the tablet that was prepared.
    fn prepared(&self, id: TabletId) -> Result<usize, TransferError> {
        let leaving = self.leaving.borrow();
        let is_ready = leaving.as_ref().is_some_and(|leaving| leaving.tablet == id && leaving.turn.is_some());
        is_ready.then(|| self.locate(id)).flatten().ok_or(TransferError::NotHere(id))
    }

    /// Writes what a tablet has in memory to tables, which nothing names yet. After it all memtables that hold
    /// something of the tablet are sealed.
    async fn flush_part(&self, local: usize) -> Result<Part, EngineError> {
        // One more than may be sealed usually, if writers have filled one in the last moment.
        self.rotate();
        let tablet = self.tablet(local);
        // They see the tablet as it is here, and memtables by the number that it has here.
        self.end_snapshots_of(local);
        let last = self.last.borrow()[local];
        let all: Vec<Rc<Sealed>> = self.sealed.borrow().iter().cloned().collect();
        let of_tablet = |sealed: &&Rc<Sealed>| sealed.last(local) > tablet.flushed.get();
        if let Some(newest) = all.iter().rfind(of_tablet)
            && !self.durable(newest).await
        {
            return Err(self.wal.failed().map_or(EngineError::Stopping, EngineError::Log));
        }
        let (ranges, cleared) = (tablet.ranges(), Lsn::new(last, u16::MAX));
        let mut part = Part { changes: Vec::new(), tables: Vec::new(), cleared, last };
        if last > tablet.flushed.get() {
            part.changes.push(Change::Flushed { tablet: tablet.id, index: last, term: tablet.term });
            part.changes.extend(tablet.range_changes(&ranges));
        }
        part.changes.push(Change::LogsDone { tablet: tablet.id, oldest: self.wal.log() });
        let cutoff = super::expiry::Cutoff::new(self.tick(), ranges);
        let mut pacer = Pacer::new(&self.env);
        let mut metas = Vec::new();
        let forgotten = if planted(Bug::MoveForgets) { all.len().saturating_sub(1) } else { all.len() };
        let all = &all[..forgotten];
        for sealed in all.iter().filter(of_tablet).filter(|s| s.memtable.tablet_entries(local) > 0) {
            let file = self.next_file();
            if let Some(leaving) = self.leaving.borrow_mut().as_mut() {
                leaving.files.push(tablet.table_path(file));
            }
            metas.extend(self.write_table(sealed, local, file, &cutoff, &mut pacer).await?);
        }
        if !metas.is_empty() {
            self.env.disk().sync_dir(TableName::DIR).await?;
        }
        // A snapshot that was taken meanwhile is as of the last write, and needs nothing that a range delete hides.
        assert!(!cutoff.has_kept(), "snapshots of the tablet have ended");
        for meta in metas {
            let table = TableRef { cleared, ..TableRef::from(&meta) };
            part.changes.push(Change::AddTable { tablet: tablet.id, position: 0, table });
            part.tables.push(TableName::new(tablet.id, meta.file));
            Metrics::add(&self.metrics.flush_bytes, meta.bytes);
            self.count_written(&meta);
        }
        Ok(part)
    }

    /// From now on requests for these slots go to another shard: snapshots see the tablet no more. Whoever routes
    /// does so in the same turn, so that it is never in the snapshots of two shards that know the same routes.
    pub fn hand_over(&self, slots: SlotRange) {
        let tablets = self.all_tablets();
        let of_slots = |tablet: &Rc<Tablet<E>>| tablet.is_here() && tablet.slots.get() == slots;
        if let Some(local) = tablets.iter().position(of_slots) {
            tablets[local].is_handed_over.set(true);
            self.end_snapshots_of(local);
        }
    }

    /// The tablet is another shard's: forgets it. Its files stay, they are the other's now. An error is of no
    /// consequence: what the manifest still says of the tablet has a lower epoch.
    pub async fn part(&self, id: TabletId) -> Result<(), ManifestError> {
        let Ok(local) = self.prepared(id) else { return Ok(()) };
        let tablet = self.tablet(local);
        tablet.presence.set(Presence::Gone);
        // Nobody asks for its keys here any more. Who did by mistake would find what has changed elsewhere since.
        self.rows.borrow_mut().clear();
        self.end_snapshots_of(local);
        let last = self.last.borrow()[local];
        tablet.flushed.set(last);
        self.wal.set_flushed(tablet.log, last);
        self.release_old_logs();
        tablet.drop_ranges();
        let version = tablet.version.replace(Rc::new(Version::default()));
        self.count_tables(&version, &Version::default());
        self.count_debt(&tablet);
        self.departed.borrow_mut().extend(version.members().map(|member| member.table.clone()));
        self.leaving.replace(None);
        self.changed.notify();
        self.manifest.commit(Edit { changes: vec![Change::RemoveTablet { tablet: id }] }).await
    }

    /// The tablet stays, as it was.
    pub async fn keep(&self, id: TabletId) {
        let leaving = self.leaving.borrow_mut().take_if(|leaving| leaving.tablet == id);
        let Some(leaving) = leaving else { return };
        if let Some(local) = self.locate(id) {
            self.tablet(local).presence.set(Presence::Here);
        }
        self.changed.notify();
        for path in &leaving.files {
            // Best effort: what stays is an orphan, and the next start removes it.
            let _ = self.env.disk().remove(path).await;
        }
    }

    /// Nobody knows whether the tablet is another shard's. This shard's manifest then names the same tables as
    /// the other's may, so that the log is needed for it no more; nothing merges or removes them.
    pub async fn lose(&self, id: TabletId) -> Result<(), ManifestError> {
        let Ok(local) = self.prepared(id) else { return Ok(()) };
        let tablet = self.tablet(local);
        tablet.presence.set(Presence::Lost);
        self.count_debt(&tablet);
        self.end_snapshots_of(local);
        let changes = self.leaving.borrow_mut().as_mut().map(|leaving| std::mem::take(&mut leaving.flushed));
        let changes = changes.unwrap_or_default();
        let committed = self.manifest.commit(Edit { changes }).await;
        if committed.is_ok() {
            let last = self.last.borrow()[local];
            tablet.flushed.set(last);
            self.wal.set_flushed(tablet.log, last);
        }
        self.leaving.replace(None);
        self.changed.notify();
        committed
    }

    /// The tables that a tablet has now.
    pub fn tables_of(&self, id: TabletId) -> Vec<TableRef> {
        self.manifest.state().tables(id).to_vec()
    }

    /// Opens tables of a tablet that is about to come, as many as there are by now.
    pub async fn prepare_to_take(&self, id: TabletId, tables: &[TableRef]) -> Result<(), EngineError> {
        if let Some(cause) = self.manifest.failed() {
            return Err(ManifestError::Failed(cause).into());
        }
        self.open_arriving(tables.iter().map(|table| TableName::new(id, table.file))).await
    }

    async fn open_arriving(&self, tables: impl Iterator<Item = TableName>) -> Result<(), EngineError> {
        for name in tables {
            if self.arriving.borrow().contains_key(&name) {
                continue;
            }
            let open = self.open_table(name).await?;
            self.arriving.borrow_mut().insert(name, open);
        }
        Ok(())
    }

    /// Becomes the owner of a tablet that its owner has packed. Returns its local number.
    pub async fn take(&self, mut state: TabletState) -> Result<usize, TransferError> {
        if let Some(cause) = self.manifest.failed() {
            return Err(EngineError::from(ManifestError::Failed(cause)).into());
        }
        if let Some(cause) = self.wal.failed() {
            return Err(EngineError::Log(cause).into());
        }
        self.open_arriving(state.tables.iter().map(|table| TableName::new(state.id, table.file))).await?;
        state.logs = vec![self.wal.log()];
        let mut changes = Vec::new();
        if self.manifest.state().tablets.contains_key(&state.id) {
            changes.push(Change::RemoveTablet { tablet: state.id }); // of when it was here before
        }
        changes.extend(state.snapshot());
        self.manifest.commit(Edit { changes }).await?;
        // No await from here on: the tablet is here, wholly.
        let tables = self.take_arriving(state.id);
        Ok(self.register(&state, Version::of(&state, &tables)))
    }

    /// The opened tables of a tablet.
    fn take_arriving(&self, id: TabletId) -> BTreeMap<crate::base::FileId, Rc<Table<E>>> {
        let mut arriving = self.arriving.borrow_mut();
        let mine = arriving.extract_if(.., |name, _| name.tablet == id);
        mine.map(|(name, table)| (name.file, table)).collect()
    }

    /// Nothing comes of what was prepared.
    pub async fn forget_arriving(&self) {
        let tables = self.arriving.take();
        self.departed.borrow_mut().extend(tables.into_values());
        self.close_departed().await;
    }

    /// Makes a tablet of which all is in tables one of this shard's.
    fn register(&self, state: &TabletState, version: Version<E>) -> usize {
        let log = self.wal.add_tablet(state.id, state.term, state.flushed, state.flushed);
        self.count_tables(&Version::default(), &version);
        let tablet = Rc::new(Tablet::new(state, log, version, EntryIndex::ZERO, Vec::new()));
        self.count_debt(&tablet);
        // Some may be from when it was here before.
        self.rows.borrow_mut().clear();
        tablet.memtables_from.set(self.active_number.get());
        let mut tablets = self.tablets.borrow_mut();
        let mut last = self.last.borrow_mut();
        // A tablet that comes back has its number again: there are never more than tablets in the store.
        let known = tablets.iter().position(|known| known.id == state.id);
        let local = match known {
            Some(local) => {
                assert!(!tablets[local].is_here(), "a tablet comes when it is not here");
                tablets[local] = tablet;
                last[local] = state.flushed;
                local
            }
            None => {
                tablets.push(tablet);
                last.push(state.flushed);
                tablets.len() - 1
            }
        };
        self.active.borrow_mut().grow(tablets.len());
        drop((tablets, last));
        self.changed.notify();
        local
    }

    /// Links the tables of a prepared tablet for the one that will have its upper slots.
    pub async fn prepare_to_split(&self, id: TabletId, into: TabletId) -> Result<(), TransferError> {
        self.prepared(id)?;
        let tables = self.tables_of(id);
        Ok(self.link_tables(id, into, &tables).await?)
    }

    async fn link_tables(
        &self,
        id: TabletId,
        into: TabletId,
        tables: &[TableRef],
    ) -> Result<(), EngineError> {
        let mut is_synced = true;
        for table in tables {
            let (from, to) = (TableName::new(id, table.file), TableName::new(into, table.file));
            if self.arriving.borrow().contains_key(&to) {
                continue;
            }
            if let Some(leaving) = self.leaving.borrow_mut().as_mut() {
                leaving.files.push(to.path());
            }
            self.env.disk().link(&from.path(), &to.path()).await?;
            is_synced = false;
            let open = self.open_table(to).await?;
            self.arriving.borrow_mut().insert(to, open);
        }
        if !is_synced {
            self.env.disk().sync_dir(TableName::DIR).await?;
        }
        Ok(())
    }

    /// Gives the slots of a prepared tablet from `at` on to a new tablet `into`, an id that no tablet has ever
    /// had. Its requests are held back, and none is under way. Returns the new one's local number.
    pub async fn split(&self, id: TabletId, at: u16, into: TabletId) -> Result<usize, TransferError> {
        let local = self.prepared(id)?;
        let tablet = self.tablet(local);
        let upper = SlotRange::new(at, tablet.slots.get().last());
        let lower = at.checked_sub(1).and_then(|last| SlotRange::new(tablet.slots.get().first(), last));
        let (Some(lower), Some(_)) = (lower, upper) else { return Err(TransferError::NotHere(id)) };
        let part = self.flush_part(local).await?;
        let mut changes = part.changes;
        changes.push(Change::SplitTablet { tablet: id, at, into });
        let state = self.manifest.preview(&changes).tablets.remove(&into);
        let state = state.ok_or(TransferError::NotHere(into))?;
        self.link_tables(id, into, &state.tables).await?;
        self.open_arriving(part.tables.iter().copied()).await?;
        let committed = self.manifest.commit(Edit { changes }).await;
        if committed.as_ref().is_err_and(ManifestError::is_undecided) {
            // The next start may need the files.
            if let Some(leaving) = self.leaving.borrow_mut().as_mut() {
                leaving.files.clear();
            }
        }
        committed?;
        // No await from here on: both tablets are here, wholly.
        self.end_snapshots_of(local);
        tablet.slots.set(lower);
        tablet.memtables_from.set(self.active_number.get());
        tablet.ranges_flushed(&tablet.ranges());
        tablet.flushed.set(part.last);
        self.wal.set_flushed(tablet.log, part.last);
        self.release_old_logs();
        let opened = self.take_arriving(id);
        self.install(&tablet, |version| {
            let open =
                |name: &TableName| opened.get(&name.file).expect("it was opened before the edit").clone();
            let members = part.tables.iter().map(open);
            let grown =
                members.fold(version.clone(), |v, table| v.with_newest(Member::whole(table, part.cleared)));
            grown.map(|member| {
                let clip = Clip::within(lower, member.clip.as_ref());
                Member::new(member.table.clone(), Some(clip), member.cleared)
            })
        });
        let tables = self.take_arriving(into);
        let other = self.register(&state, Version::of(&state, &tables));
        tablet.presence.set(Presence::Here);
        self.leaving.replace(None);
        self.changed.notify();
        Ok(other)
    }

    /// Closes tables of other shards that nobody here reads any more.
    pub(super) async fn close_departed(&self) {
        loop {
            let table = {
                let mut departed = self.departed.borrow_mut();
                let free = departed.iter().position(|table| Rc::strong_count(table) == 1);
                free.and_then(|at| Rc::try_unwrap(departed.swap_remove(at)).ok())
            };
            let Some(table) = table else { return };
            let path = table.name().path();
            if let Err(error) = table.close().await {
                tracing::warn!("closing {path} failed, which harms nothing: {error}");
            }
        }
    }
}
