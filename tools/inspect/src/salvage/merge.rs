//! Merges what tables and logs hold, by key and version, into tables of a last level.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, btree_map};
use std::io::Write;

use atlaskv::base::{Compression, Entry, FileId, LogId, Lsn, OpKind, TableName, TabletId};
use atlaskv::engine::key_hash;
use atlaskv::engine::manifest::{Clip, LAST, TableRef, TabletState};
use atlaskv::engine::ranges::RangeDeletes;
use atlaskv::engine::sstable::{LostBytes, SalvageIter, TableBuilder, TableOptions};
use atlaskv::env::Env;
use atlaskv::slot::{Slot, SlotRange};

use super::logs::{Held, Logged};
use super::{Losses, refused};
use crate::Failure;
use crate::readonly::ReadOnly;

/// A table that has this many bytes is ended, and another begun.
const TABLE_BYTES: u64 = 32 << 20;

/// A table, and what of it counts.
pub struct TableSource {
    name: TableName,
    /// It is opened when the merge comes here.
    smallest: Box<[u8]>,
    slots: Option<SlotRange>,
    clip: Option<Clip>,
    /// How many entries are in it, and which versions of which keys, as far as that is known.
    entries: Option<u64>,
    holds: String,
}

impl TableSource {
    /// As the manifest knows it.
    pub fn known(tablet: &TabletState, table: &TableRef) -> TableSource {
        let (first, last) = (table.smallest.escape_ascii(), table.largest.escape_ascii());
        TableSource {
            name: TableName::new(tablet.id, table.file),
            smallest: table.bounds().first().into(),
            slots: Some(tablet.slots),
            clip: table.clip.clone(),
            entries: Some(table.entries),
            holds: format!("keys \"{first}\" to \"{last}\", LSNs {} to {}", table.min_lsn, table.max_lsn),
        }
    }

    /// As a file that is there, if anything of it can be read.
    pub async fn found<W: Write>(
        env: &ReadOnly,
        name: TableName,
        losses: &mut Losses<'_, W>,
    ) -> Option<TableSource> {
        let holds = "keys nobody knows".to_owned();
        let source =
            TableSource { name, smallest: Box::default(), slots: None, clip: None, entries: None, holds };
        match SalvageIter::open(env, name).await {
            Ok(iter) => match iter.current() {
                Some((key, _)) => Some(TableSource { smallest: key.into(), ..source }),
                None => {
                    source.tell(&iter, losses);
                    None
                }
            },
            Err(error) => {
                losses.lost(&format!("{error}: all of it"));
                None
            }
        }
    }

    fn counts(&self, key: &[u8]) -> bool {
        let is_ours = |slots: SlotRange| slots.contains(Slot::of_key(key));
        self.clip.as_ref().is_none_or(|clip| clip.covers(key) && is_ours(clip.slots))
            && self.slots.is_none_or(is_ours)
    }

    /// Whether nothing that is lost would count.
    fn is_foreign(&self, lost: &LostBytes) -> bool {
        self.clip.as_ref().is_some_and(|clip| {
            let is_before = !lost.to.is_empty() && lost.to < clip.smallest;
            is_before || (!clip.end.is_empty() && lost.from >= clip.end)
        })
    }

    /// Tells what is lost of it, now that all of it was read.
    fn tell<W: Write>(&self, iter: &SalvageIter<ReadOnly>, losses: &mut Losses<'_, W>) {
        for damage in iter.damage() {
            losses.note(damage);
        }
        let has_all = self.entries.is_none_or(|entries| entries == iter.entries());
        if iter.lost().is_empty() && !has_all {
            losses.lost(&format!(
                "{}: {} entries were found, all of it, {}; of these keys older versions may show",
                self.name.path(),
                iter.entries(),
                self.holds
            ));
        }
        for lost in iter.lost().iter().filter(|lost| !self.is_foreign(lost)) {
            let bound = |key: &[u8], none: &str| match key {
                [] => none.to_owned(),
                key => format!("\"{}\"", key.escape_ascii()),
            };
            losses.lost(&format!(
                "{}: bytes {} to {}: entries from {} to {} (of a table of {}); of these keys older versions may show \
                 instead",
                self.name.path(),
                lost.offset,
                lost.end,
                bound(&lost.from, "its first key"),
                bound(&lost.to, "its last key"),
                self.holds,
            ));
        }
    }
}

enum Input {
    /// A table that is not open yet.
    Waiting(TableSource),
    Table(TableSource, Box<SalvageIter<ReadOnly>>),
    Memory(TabletId, btree_map::IntoIter<Box<[u8]>, Held>, Option<(Box<[u8]>, Held)>),
    Done,
}

impl Input {
    fn current(&self) -> Option<(&[u8], Entry<'_>)> {
        match self {
            Input::Table(_, iter) => iter.current(),
            Input::Memory(.., current) => current.as_ref().map(|(key, held)| {
                let Held { lsn, kind, expiry_ms, .. } = *held;
                (&key[..], Entry { lsn, kind, expiry_ms, value: &held.value })
            }),
            Input::Waiting(_) | Input::Done => None,
        }
    }

    /// Whose range deletes count for what it holds.
    fn tablet(&self) -> Option<TabletId> {
        match self {
            Input::Waiting(source) | Input::Table(source, _) => Some(source.name.tablet),
            Input::Memory(tablet, ..) => Some(*tablet),
            Input::Done => None,
        }
    }

    async fn advance<W: Write>(&mut self, losses: &mut Losses<'_, W>) {
        let is_at_end = match self {
            Input::Memory(_, rest, current) => {
                *current = rest.next();
                current.is_none()
            }
            Input::Table(source, iter) => match iter.advance().await {
                Ok(()) => {
                    let is_at_end = iter.current().is_none();
                    if is_at_end {
                        source.tell(iter, losses);
                    }
                    is_at_end
                }
                Err(error) => {
                    source.tell(iter, losses);
                    losses.lost(&format!("{error}: what follows there, of {}", source.holds));
                    true
                }
            },
            Input::Waiting(_) | Input::Done => true,
        };
        if is_at_end {
            *self = Input::Done;
        }
    }
}

/// Where an input stands: key, newest version first, and which input it is.
type Ranked = Reverse<(Box<[u8]>, Reverse<Lsn>, usize)>;

/// One merge.
pub struct Merge<'a> {
    env: &'a ReadOnly,
    inputs: Vec<Input>,
    ranges: BTreeMap<TabletId, RangeDeletes>,
    heap: BinaryHeap<Ranked>,
    highest: Lsn,
}

impl<'a> Merge<'a> {
    /// Of these tables, and what logs hold of their tablets.
    pub fn new(env: &'a ReadOnly, tables: Vec<TableSource>, logged: BTreeMap<TabletId, Logged>) -> Merge<'a> {
        let mut merge = Merge {
            env,
            inputs: Vec::new(),
            ranges: BTreeMap::new(),
            heap: BinaryHeap::new(),
            highest: Lsn::ZERO,
        };
        for source in tables {
            merge.heap.push(Reverse((source.smallest.clone(), Reverse(Lsn(u64::MAX)), merge.inputs.len())));
            merge.inputs.push(Input::Waiting(source));
        }
        for (tablet, logged) in logged {
            merge.ranges.insert(tablet, logged.ranges);
            let mut entries = logged.entries.into_iter();
            let first = entries.next();
            merge.inputs.push(Input::Memory(tablet, entries, first));
            merge.rank(merge.inputs.len() - 1);
        }
        merge
    }

    fn rank(&mut self, at: usize) {
        if let Some((key, entry)) = self.inputs[at].current() {
            self.highest = self.highest.max(entry.lsn);
            self.heap.push(Reverse((key.into(), Reverse(entry.lsn), at)));
        }
    }

    /// Moves an input to its next entry that counts, or opens it. Whether an entry of it was looked at.
    async fn settle<W: Write>(&mut self, at: usize, losses: &mut Losses<'_, W>) {
        let input = &mut self.inputs[at];
        if let Input::Waiting(source) = input {
            match SalvageIter::open(self.env, source.name).await {
                Ok(iter) => {
                    let Input::Waiting(source) = std::mem::replace(input, Input::Done) else { return };
                    if iter.current().is_none() {
                        source.tell(&iter, losses);
                    }
                    *input = Input::Table(source, Box::new(iter));
                }
                Err(error) => {
                    losses.lost(&format!(
                        "{error}: all of it, {}; of these keys older versions may show",
                        source.holds
                    ));
                    *input = Input::Done;
                }
            }
        } else {
            input.advance(losses).await;
        }
        while let Input::Table(source, iter) = &self.inputs[at]
            && let Some((key, _)) = iter.current()
            && !source.counts(key)
        {
            self.inputs[at].advance(losses).await;
        }
        self.rank(at);
    }

    /// Writes of each key the newest version, if that is no tombstone and no range delete has removed it. The highest
    /// LSN of all that was read.
    pub async fn run<F: Env, W: Write>(
        mut self,
        outputs: &mut Outputs<'_, F>,
        losses: &mut Losses<'_, W>,
    ) -> Result<Lsn, Failure> {
        let mut last: Option<Box<[u8]>> = None;
        while let Some(Reverse((key, _, at))) = self.heap.pop() {
            let input = &self.inputs[at];
            if let Some((found, entry)) = input.current()
                && last.as_ref() != Some(&key)
            {
                let ranges = input.tablet().and_then(|tablet| self.ranges.get(&tablet));
                let is_removed = ranges.is_some_and(|ranges| ranges.covers(found, entry.lsn));
                if entry.kind == OpKind::Put && !is_removed {
                    outputs.add(found, &entry).await?;
                }
                last = Some(key);
            }
            self.settle(at, losses).await;
        }
        Ok(self.highest)
    }
}

/// What came of merges.
#[derive(Default)]
pub struct Merged {
    /// Tables of each tablet, in the order of keys.
    pub of: BTreeMap<TabletId, Vec<TableRef>>,
    pub keys: u64,
    pub tables: u64,
    pub bytes: u64,
}

/// Where merges write to.
pub struct Outputs<'a, F: Env> {
    env: &'a F,
    log: LogId,
    next: u32,
    seed: u64,
    tablets: Vec<(TabletId, SlotRange)>,
    open: BTreeMap<TabletId, TableBuilder<F>>,
    merged: Merged,
}

impl<'a, F: Env> Outputs<'a, F> {
    /// Tables of these tablets, which are named as files of `log`.
    pub fn new(env: &'a F, log: LogId, seed: u64, tablets: Vec<(TabletId, SlotRange)>) -> Outputs<'a, F> {
        Outputs { env, log, next: 0, seed, tablets, open: BTreeMap::new(), merged: Merged::default() }
    }

    async fn add(&mut self, key: &[u8], entry: &Entry<'_>) -> Result<(), Failure> {
        let slot = Slot::of_key(key);
        let Some(&(tablet, slots)) = self.tablets.iter().find(|(_, slots)| slots.contains(slot)) else {
            return Err(refused(format!("slot {} is in no tablet", slot.number())));
        };
        if self.open.get(&tablet).is_some_and(|builder| builder.bytes() >= TABLE_BYTES) {
            self.end(tablet).await?;
        }
        if !self.open.contains_key(&tablet) {
            let file = FileId::new(self.log, self.next);
            self.next += 1;
            let options = TableOptions::last(Compression::default().last);
            let builder =
                TableBuilder::create(self.env, file, tablet, slots, options).await.map_err(refused)?;
            self.open.insert(tablet, builder);
        }
        let Some(builder) = self.open.get_mut(&tablet) else { return Ok(()) };
        builder.add(key, key_hash(key, self.seed), entry).await.map_err(refused)
    }

    async fn end(&mut self, tablet: TabletId) -> Result<(), Failure> {
        let Some(builder) = self.open.remove(&tablet) else { return Ok(()) };
        let meta = builder.finish().await.map_err(refused)?;
        self.merged.keys += meta.entries;
        self.merged.tables += 1;
        self.merged.bytes += meta.bytes;
        self.merged.of.entry(tablet).or_default().push(TableRef { level: LAST, ..TableRef::from(&meta) });
        Ok(())
    }

    /// Completes all tables.
    pub async fn finish(mut self) -> Result<Merged, Failure> {
        while let Some(tablet) = self.open.keys().next().copied() {
            self.end(tablet).await?;
        }
        Ok(self.merged)
    }
}
