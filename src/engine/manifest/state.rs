//! What the manifest says at one moment.

use std::collections::{BTreeMap, BTreeSet};

use super::edit::{Change, TableRef};
use crate::base::{BlockSeq, EntryIndex, FileId, LogId, TabletId};
use crate::slot::SlotRange;

/// Facts of the whole store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// Made once, with the data directory.
    pub cluster: u128,
    /// This node; 1 while there is one.
    pub node: u64,
    /// Seed of the key hash in filters and blocks: stable, yet not guessable by who chooses the keys.
    pub hash_seed: u64,
    /// Which optional features the files may use; 0.
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
    /// Its tables, newest first.
    pub tables: Vec<TableRef>,
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
}

impl State {
    /// A new store's: `tablets` tablets of even size, none of them placed or flushed.
    pub fn create(cluster: u128, hash_seed: u64, tablets: u16) -> State {
        let store = Store { cluster, node: 1, hash_seed, feature_level: 0, next_log: 1 };
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
                };
                (TabletId(id), tablet)
            })
            .collect();
        State { store, generation: 0, shards: 0, logs: BTreeMap::new(), tablets }
    }

    /// The part of one shard.
    #[must_use]
    pub fn of_shard(&self, shard: u32) -> State {
        let mut part = self.clone();
        part.tablets.retain(|_, tablet| tablet.shard == shard);
        part
    }

    /// The changes that build this state from nothing.
    pub fn snapshot(&self) -> Vec<Change> {
        let mut changes = vec![Change::Store(self.store)];
        changes.extend(self.logs.iter().map(|(log, meta)| Change::Log { log: *log, end: meta.end }));
        for tablet in self.tablets.values() {
            changes.push(Change::Tablet(TabletState { tables: Vec::new(), ..tablet.clone() }));
            for (position, table) in (0..).zip(&tablet.tables) {
                changes.push(Change::AddTable { tablet: tablet.id, position, table: table.clone() });
            }
        }
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
                self.tablets.insert(tablet.id, tablet.clone());
            }
            Change::AddTable { tablet, position, table } => {
                let tablet = self.tablet(*tablet)?;
                if tablet.tables.iter().any(|known| known.file == table.file) {
                    return Err(format!("table {} is added twice", table.file));
                }
                let position = *position as usize;
                if position > tablet.tables.len() {
                    return Err(format!("table {} is added at place {position}", table.file));
                }
                tablet.tables.insert(position, table.clone());
            }
            Change::RemoveTables { tablet, files } => {
                let tablet = self.tablet(*tablet)?;
                for file in files {
                    let at = tablet.tables.iter().position(|table| table.file == *file);
                    let at = at.ok_or_else(|| format!("table {file} is removed, but not there"))?;
                    tablet.tables.remove(at);
                }
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
            Change::LogsDone { tablet, oldest } => {
                self.tablet(*tablet)?.logs.retain(|log| log >= oldest);
            }
            Change::Pin { .. } | Change::Unpin { .. } => {}
        }
        Ok(())
    }

    fn tablet(&mut self, id: TabletId) -> Result<&mut TabletState, String> {
        self.tablets.get_mut(&id).ok_or_else(|| format!("tablet {id} is unknown"))
    }

    /// Files of all live tables.
    pub fn live_files(&self) -> BTreeSet<FileId> {
        self.tablets.values().flat_map(|tablet| &tablet.tables).map(|table| table.file).collect()
    }

    /// Logs that some tablet needs.
    pub fn needed_logs(&self) -> BTreeSet<LogId> {
        self.tablets.values().flat_map(|tablet| &tablet.logs).copied().collect()
    }
}
