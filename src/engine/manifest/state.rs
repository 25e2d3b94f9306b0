//! What the manifest says at one moment.

use std::collections::{BTreeMap, BTreeSet};

use super::bounds::Clip;
use super::edit::{Change, LAST, TableRef, UPPER};
use super::format::FEATURE_LEVEL;
use crate::base::{BlockSeq, EntryIndex, FileId, LogId, TableName, TabletId};
use crate::engine::ranges::RangeDeletes;
use crate::slot::{SLOT_COUNT, SlotRange};

/// Facts of the whole store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// Made once, with the data directory.
    pub cluster: u128,
    /// This node; 1 while there is one.
    pub node: u64,
    /// Seed of the key hash in filters and blocks: stable, yet not guessable by who chooses the keys.
    pub hash_seed: u64,
    /// Which features the files may use, from 1.
    pub feature_level: u32,
    /// The next log to be opened.
    pub next_log: u64,
}

/// A tablet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TabletState {
    /// Which.
    pub id: TabletId,
    /// Its slots.
    pub slots: SlotRange,
    /// Grows when it moves or its range changes; of two descriptions, the higher counts.
    pub epoch: u64,
    /// Its number in its group; 1 while there is one node.
    pub peer: u64,
    /// Members of its group.
    pub voters: Vec<u64>,
    /// Its current term; 1 while there is one node.
    pub term: u64,
    /// Tables hold everything up to here.
    pub flushed: EntryIndex,
    /// Term of that entry.
    pub flushed_term: u64,
    /// Entries up to here are gone from the logs.
    pub truncated: EntryIndex,
    /// Term of that entry.
    pub truncated_term: u64,
    /// The shard that owns it.
    pub shard: u32,
    /// Logs that may hold entries of it that tables don't, ascending.
    pub logs: Vec<LogId>,
    /// Its tables: those of the upper level newest first, then those of the last one in the order of keys.
    pub tables: Vec<TableRef>,
    /// What range deletes up to the last flush have removed, and tables may still hold.
    pub ranges: RangeDeletes,
}

/// A log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogMeta {
    /// Its last block that counts, once a recovery has settled that.
    pub end: Option<BlockSeq>,
}

/// All of it, or one shard's part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Facts of the store.
    pub store: Store,
    /// Generation.
    pub generation: u64,
    /// Number of shards.
    pub shards: u32,
    /// Logs that some tablet may need.
    pub logs: BTreeMap<LogId, LogMeta>,
    /// Tablets.
    pub tablets: BTreeMap<TabletId, TabletState>,
    /// Files that must stay though no tablet may refer to them, and for whom (reserved).
    pub pins: BTreeSet<(FileId, u64)>,
}

impl State {
    /// No tablets, no logs.
    pub(super) fn empty(store: Store, generation: u64, shards: u32) -> State {
        let (logs, tablets, pins) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        State { store, generation, shards, logs, tablets, pins }
    }

    /// A new store's: `tablets` tablets of even size, none of them placed or flushed.
    pub fn create(cluster: u128, hash_seed: u64, tablets: u16) -> State {
        let store = Store { cluster, node: 1, hash_seed, feature_level: FEATURE_LEVEL, next_log: 1 };
        let tablets = SlotRange::split_evenly(tablets)
            .into_iter()
            .zip(0..)
            .map(|(slots, id)| {
                let tablet = TabletState {
                    id: TabletId(id),
                    slots,
                    epoch: 1,
                    peer: 1,
                    voters: vec![1],
                    term: 1,
                    flushed: EntryIndex::ZERO,
                    flushed_term: 0,
                    truncated: EntryIndex::ZERO,
                    truncated_term: 0,
                    shard: 0,
                    logs: Vec::new(),
                    tables: Vec::new(),
                    ranges: RangeDeletes::default(),
                };
                (TabletId(id), tablet)
            })
            .collect();
        State { tablets, ..State::empty(store, 0, 0) }
    }

    /// The part of one shard. Store and logs are in each; pins, which some shard must end, in the first.
    #[must_use]
    pub fn of_shard(&self, shard: u32) -> State {
        let mut part = State::empty(self.store, self.generation, self.shards);
        part.logs.clone_from(&self.logs);
        let mine = self.tablets.values().filter(|tablet| tablet.shard == shard);
        part.tablets = mine.map(|tablet| (tablet.id, tablet.clone())).collect();
        if shard == 0 {
            part.pins.clone_from(&self.pins);
        }
        part
    }

    /// Whether all of it fits together: `Err` says what does not. For a whole state, not a shard's part.
    pub fn check(&self) -> Result<(), String> {
        let mut next_slot = 0;
        let mut tablets: Vec<&TabletState> = self.tablets.values().collect();
        tablets.sort_by_key(|tablet| tablet.slots.first());
        for tablet in tablets {
            let (id, slots) = (tablet.id, tablet.slots);
            if slots.first() != next_slot {
                return Err(format!("slot {next_slot} should begin a tablet, but tablet {id} has {slots}"));
            }
            next_slot = slots.last() + 1;
            if tablet.shard >= self.shards {
                return Err(format!("tablet {id} is on shard {} of {}", tablet.shard, self.shards));
            }
            if let Some(log) = tablet.logs.iter().find(|log| !self.logs.contains_key(log)) {
                return Err(format!("tablet {id} needs log {log}, which is not listed"));
            }
        }
        if next_slot != SLOT_COUNT {
            return Err(format!("slots from {next_slot} on are in no tablet"));
        }
        match self.logs.last_key_value() {
            Some((log, _)) if log.0 >= self.store.next_log => {
                Err(format!("log {log} exists, but the next one is {}", self.store.next_log))
            }
            _ => Ok(()),
        }
    }

    /// The changes that build this state from nothing.
    pub fn snapshot(&self) -> Vec<Change> {
        let mut changes = vec![Change::Store(self.store)];
        changes.extend(self.logs.iter().map(|(log, meta)| Change::Log { log: *log, end: meta.end }));
        changes.extend(self.tablets.values().flat_map(TabletState::snapshot));
        changes.extend(self.pins.iter().map(|(file, holder)| Change::Pin { file: *file, holder: *holder }));
        changes
    }

    /// Applies a change. `Err`: it does not fit, which for a change read from disk is damage.
    pub fn apply(&mut self, change: &Change) -> Result<(), String> {
        match change {
            Change::Store(store) => self.store = *store,
            Change::Log { log, end } => {
                self.logs.insert(*log, LogMeta { end: *end });
            }
            Change::Tablet(tablet) => {
                let known = self.tablets.remove(&tablet.id);
                let ranges = known.iter().flat_map(|known| known.ranges.fragments());
                if ranges.into_iter().any(|range| range.lsn.index() > tablet.flushed) {
                    let (id, flushed) = (tablet.id, tablet.flushed);
                    return Err(format!(
                        "tablet {id} has range deletes behind {flushed}, up to which it was flushed"
                    ));
                }
                let (tables, ranges) =
                    known.map_or_else(Default::default, |known| (known.tables, known.ranges));
                self.tablets.insert(tablet.id, TabletState { tables, ranges, ..tablet.clone() });
            }
            Change::AddTable { tablet, position, table } => {
                self.tablet(*tablet)?.insert(*position as usize, table)?;
            }
            Change::RemoveTables { tablet, files } => {
                let tablet = self.tablet(*tablet)?;
                for file in files {
                    let at = tablet.place_of(*file)?;
                    tablet.tables.remove(at);
                }
            }
            Change::ReplaceTables { tablet, files, table } => {
                self.tablet(*tablet)?.replace(files, table.as_ref())?;
            }
            Change::Descend { tablet, removed, advanced, from, added } => {
                self.tablet(*tablet)?.descend(removed, advanced, from, added)?;
            }
            Change::Flushed { tablet, index, term } => {
                let tablet = self.tablet(*tablet)?;
                if *index < tablet.flushed {
                    return Err(format!(
                        "tablet {} was flushed to {} before {index}",
                        tablet.id, tablet.flushed
                    ));
                }
                (tablet.flushed, tablet.flushed_term) = (*index, *term);
            }
            Change::RemoveTablet { tablet } => {
                self.tablets.remove(tablet).ok_or_else(|| format!("tablet {tablet} is unknown"))?;
            }
            Change::SplitTablet { tablet, at, into } => {
                if self.tablets.contains_key(into) {
                    return Err(format!("tablet {into} is there already"));
                }
                let upper = self.tablet(*tablet)?.split_off(*at, *into)?;
                self.tablets.insert(*into, upper);
            }
            Change::AddRange { tablet, range } => {
                let tablet = self.tablet(*tablet)?;
                if range.lsn.index() > tablet.flushed {
                    let (id, lsn, flushed) = (tablet.id, range.lsn, tablet.flushed);
                    return Err(format!("tablet {id} was flushed to {flushed}, before range delete {lsn}"));
                }
                tablet.ranges = tablet.ranges.with(range);
            }
            Change::RemoveRanges { tablet, lsns } => {
                let tablet = self.tablet(*tablet)?;
                tablet.ranges = tablet.ranges.without(lsns);
            }
            Change::LogsDone { tablet, oldest } => {
                self.tablet(*tablet)?.logs.retain(|log| log >= oldest);
            }
            Change::Pin { file, holder } => {
                self.pins.insert((*file, *holder));
            }
            Change::Unpin { file, holder } => {
                if !self.pins.remove(&(*file, *holder)) {
                    return Err(format!("table {file} is not pinned for {holder}"));
                }
            }
        }
        Ok(())
    }

    fn tablet(&mut self, id: TabletId) -> Result<&mut TabletState, String> {
        self.tablets.get_mut(&id).ok_or_else(|| format!("tablet {id} is unknown"))
    }

    /// The part of this state that `changes` read or write, to try them on.
    pub(super) fn touched_by(&self, changes: &[Change]) -> State {
        let mut part = State::empty(self.store, self.generation, self.shards);
        part.logs.clone_from(&self.logs);
        part.pins.clone_from(&self.pins);
        for id in changes.iter().filter_map(Change::tablet) {
            if let Some(tablet) = self.tablets.get(&id) {
                part.tablets.entry(id).or_insert_with(|| tablet.clone());
            }
        }
        part
    }

    /// Takes over a part made by [`State::touched_by`], to which `changes` were applied.
    pub(super) fn take_over(&mut self, part: State, changes: &[Change]) {
        for id in changes.iter().filter_map(Change::tablet) {
            self.tablets.remove(&id); // it comes back with the part, unless it was removed
        }
        self.store = part.store;
        self.logs = part.logs;
        self.pins = part.pins;
        self.tablets.extend(part.tablets);
    }

    /// A tablet's tables, in the order of [`TabletState::tables`].
    pub fn tables(&self, tablet: TabletId) -> &[TableRef] {
        self.tablets.get(&tablet).map_or(&[], |tablet| &tablet.tables)
    }

    /// Up to where tables hold everything of a tablet.
    pub fn flushed(&self, tablet: TabletId) -> EntryIndex {
        self.tablets.get(&tablet).map_or(EntryIndex::ZERO, |tablet| tablet.flushed)
    }

    /// Names of the tables that tablets refer to: files with other names may be removed, unless they are
    /// [pinned](State::is_pinned).
    pub fn live_tables(&self) -> BTreeSet<TableName> {
        let of = |tablet: &TabletState| {
            let id = tablet.id;
            tablet.tables.iter().map(move |table| TableName::new(id, table.file)).collect::<Vec<_>>()
        };
        self.tablets.values().flat_map(of).collect()
    }

    /// Whether a file must stay under whatever names it has.
    pub fn is_pinned(&self, file: FileId) -> bool {
        self.pins.range((file, 0)..).next().is_some_and(|(pinned, _)| *pinned == file)
    }

    /// Logs that some tablet needs.
    pub fn needed_logs(&self) -> BTreeSet<LogId> {
        self.tablets.values().flat_map(|tablet| &tablet.logs).copied().collect()
    }

    /// Logs that are listed, though no tablet needs them any more. Of a whole state: a shard's part does
    /// not know what the tablets of the others need.
    pub fn removable_logs(&self) -> BTreeSet<LogId> {
        let needed = self.needed_logs();
        self.logs.keys().filter(|log| !needed.contains(log)).copied().collect()
    }
}

impl TabletState {
    /// The changes that build this tablet from nothing.
    pub fn snapshot(&self) -> Vec<Change> {
        let (tables, ranges) = (Vec::new(), RangeDeletes::default());
        let mut changes = vec![Change::Tablet(TabletState { tables, ranges, ..self.clone() })];
        let tables = (0..).zip(&self.tables);
        changes.extend(tables.map(|(position, table)| Change::AddTable {
            tablet: self.id,
            position,
            table: table.clone(),
        }));
        let ranges = self.ranges.fragments().iter().cloned();
        changes.extend(ranges.map(|range| Change::AddRange { tablet: self.id, range }));
        changes
    }

    /// Takes the slots from `at` on away into a new tablet, which refers to the same tables.
    fn split_off(&mut self, at: u16, into: TabletId) -> Result<TabletState, String> {
        let (id, slots) = (self.id, self.slots);
        let lower = at.checked_sub(1).and_then(|last| SlotRange::new(slots.first(), last));
        let (Some(lower), Some(upper)) = (lower, SlotRange::new(at, slots.last())) else {
            return Err(format!("tablet {id} of slots {slots} can't be split at {at}"));
        };
        self.epoch = self.epoch.checked_add(1).ok_or_else(|| format!("tablet {id} has the last epoch"))?;
        let mut other = TabletState { id: into, ..self.clone() };
        self.clip_to(lower);
        other.clip_to(upper);
        Ok(other)
    }

    fn clip_to(&mut self, slots: SlotRange) {
        self.slots = slots;
        for table in &mut self.tables {
            table.clip = Some(Clip::within(slots, table.clip.as_ref()));
        }
    }

    fn place_of(&self, file: FileId) -> Result<usize, String> {
        let at = self.tables.iter().position(|table| table.file == file);
        at.ok_or_else(|| format!("table {file} is to go from tablet {}, but is not there", self.id))
    }

    /// Puts the outcome of a merge into the place of its inputs.
    fn replace(&mut self, files: &[FileId], table: Option<&TableRef>) -> Result<(), String> {
        let first = files.first().ok_or("a merge of no tables")?;
        let at = self.place_of(*first)?;
        let inputs = self.tables.get(at..at + files.len()).unwrap_or_default();
        if !inputs.iter().map(|input| input.file).eq(files.iter().copied()) {
            return Err(format!("the tables merged with {first} are not next to it"));
        }
        self.tables.drain(at..at + files.len());
        table.map_or(Ok(()), |table| self.insert(at, table))
    }

    /// Applies a step of a descent.
    fn descend(
        &mut self,
        removed: &[FileId],
        advanced: &[FileId],
        from: &[u8],
        added: &[TableRef],
    ) -> Result<(), String> {
        for file in removed {
            let at = self.place_of(*file)?;
            self.tables.remove(at);
        }
        for file in advanced {
            let at = self.place_of(*file)?;
            self.advance(at, from)?;
        }
        for table in added {
            if table.level != LAST {
                return Err(format!("table {} descends to level {}", table.file, table.level));
            }
            let upper = self.upper();
            let first = table.bounds().first();
            let at = upper + self.tables[upper..].partition_point(|known| known.bounds().first() < first);
            self.insert(at, table)?;
        }
        Ok(())
    }

    /// From now on only keys from `from` on count of the table at this place.
    fn advance(&mut self, at: usize, from: &[u8]) -> Result<(), String> {
        let (id, slots) = (self.id, self.slots);
        let table = &mut self.tables[at];
        let clip =
            table.clip.get_or_insert_with(|| Clip { slots, smallest: Box::default(), end: Box::default() });
        if table.level != UPPER || from <= &clip.smallest[..] {
            return Err(format!("table {} of tablet {id} does not descend, or has come further", table.file));
        }
        clip.smallest = from.into();
        if table.bounds().is_empty() {
            return Err(format!("table {} of tablet {id} stays though nothing of it counts", table.file));
        }
        Ok(())
    }

    /// How many tables are above the last level.
    pub fn upper(&self) -> usize {
        self.tables.partition_point(|table| table.level == UPPER)
    }

    /// A table's place follows from its level and its LSNs or keys; a wrong one would let old values hide new
    /// ones.
    fn insert(&mut self, at: usize, table: &TableRef) -> Result<(), String> {
        if at > self.tables.len() {
            return Err(format!("table {} is added to tablet {} at place {at}", table.file, self.id));
        }
        if let Some(what) = self.misfit(at, table) {
            return Err(format!("table {} at place {at} of tablet {} {what}", table.file, self.id));
        }
        self.tables.insert(at, table.clone());
        Ok(())
    }

    /// What is wrong with `table` in this place, if anything.
    fn misfit(&self, at: usize, table: &TableRef) -> Option<String> {
        if self.tables.iter().any(|known| known.file == table.file) {
            return Some("is added twice".to_owned());
        }
        if table.level > LAST {
            return Some(format!("is of level {}, and the last is {LAST}", table.level));
        }
        if table.min_lsn > table.max_lsn || table.bounds().is_empty() {
            return Some("holds nothing that counts".to_owned());
        }
        let before = at.checked_sub(1).and_then(|before| self.tables.get(before));
        let behind = self.tables.get(at);
        let pairs = [before.map(|before| (before, table)), behind.map(|behind| (table, behind))];
        if let Some(what) = pairs.into_iter().flatten().find_map(|(before, behind)| disorder(before, behind))
        {
            return Some(what);
        }
        let bounds = table.bounds();
        let (upper, last) = self.tables.split_at(self.upper());
        let hidden = if table.level == LAST {
            upper.iter().find(|other| other.min_lsn <= table.max_lsn && other.bounds().overlaps(&bounds))
        } else {
            let first = last.partition_point(|other| other.bounds().ends_before(bounds.first()));
            let reached =
                last[first..].iter().take_while(|other| !bounds.ends_before(other.bounds().first()));
            reached.into_iter().find(|other| other.max_lsn >= table.min_lsn)
        };
        hidden.map(|other| {
            format!(
                "is not newer or older than {} as a whole, and they share keys between levels",
                other.file
            )
        })
    }
}

/// What is wrong with `before` right in front of `behind`, if anything.
fn disorder(before: &TableRef, behind: &TableRef) -> Option<String> {
    let names = || format!("{} and {}", before.file, behind.file);
    if before.level > behind.level {
        Some(format!("is out of order: {} are of levels {} and {}", names(), before.level, behind.level))
    } else if before.level < behind.level {
        None
    } else if before.level == LAST {
        let (first, second) = (before.bounds(), behind.bounds());
        (first.first() >= second.first() || first.overlaps(&second))
            .then(|| format!("is out of order: {} of the last level share keys or descend", names()))
    } else {
        (before.min_lsn <= behind.max_lsn)
            .then(|| format!("is out of order: {} share versions or ascend", names()))
    }
}
