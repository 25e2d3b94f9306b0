//! Changes to the manifest, and their bodies on disk: the fields in the order in which they are declared,
//! integers little-endian, a byte string as u16 length and bytes, a list as u32 count and items, an option
//! as u8 0 or 1 and the value. A known kind whose body is longer or shorter than its fields is refused.
//!
//! | kind | change | | kind | change |
//! |---|---|---|---|---|
//! | 1 | store | | 6 | flushed |
//! | 2 | log (no end: `u64::MAX`) | | 7 | logs done |
//! | 3 | tablet | | 8 | pin |
//! | 4 | add table | | 9 | unpin |
//! | 5 | remove tables | | 10 | replace tables |
//! | 11 | add range | | 12 | remove ranges |
//! | 13 | remove tablet | | 14 | split tablet |
//! | 15 | descend | | | |

use super::bounds::{Bounds, Clip};
use super::state::{Store, TabletState};
use crate::base::{BlockSeq, EntryIndex, FileId, LogId, Lsn, TabletId};
use crate::engine::ranges::{RangeDelete, RangeDeletes};
use crate::engine::sstable::{Expiries, TableMeta, TableShape};
use crate::slot::SlotRange;

/// Level of tables that may overlap: flushes, and merges of them.
pub const UPPER: u8 = 0;
/// Level of tables that do not, with everything that is older.
pub const LAST: u8 = 1;

/// A table as the manifest knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableRef {
    /// Its file.
    pub file: FileId,
    /// [`UPPER`] or [`LAST`].
    pub level: u8,
    /// Size of the file.
    pub bytes: u64,
    /// Entries, tombstones included.
    pub entries: u64,
    /// Tombstones.
    pub tombstones: u64,
    /// Entries with an expiry time.
    pub expiring: u64,
    /// Smallest LSN.
    pub min_lsn: Lsn,
    /// Largest LSN.
    pub max_lsn: Lsn,
    /// When it was written, what range deletes up to this LSN had removed was dropped.
    pub cleared: Lsn,
    /// Smallest key.
    pub smallest: Box<[u8]>,
    /// Largest key.
    pub largest: Box<[u8]>,
    /// Which part counts; `None`: all of it.
    pub clip: Option<Clip>,
}

impl From<&TableMeta> for TableRef {
    fn from(meta: &TableMeta) -> TableRef {
        TableRef {
            file: meta.file,
            level: UPPER,
            bytes: meta.bytes,
            entries: meta.entries,
            tombstones: meta.tombstones,
            expiring: meta.expiring,
            min_lsn: meta.min_lsn,
            max_lsn: meta.max_lsn,
            cleared: Lsn::ZERO,
            smallest: meta.smallest.clone(),
            largest: meta.largest.clone(),
            clip: None,
        }
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The store's facts.
    Store(Store),
    /// A log; `end` is its last block that counts, once that is settled.
    Log {
        /// Which.
        log: LogId,
        /// Its last block.
        end: Option<BlockSeq>,
    },
    /// A tablet, without tables.
    Tablet(TabletState),
    /// A table becomes live, at this place in the tablet's list (0: the newest; those of the last level come
    /// behind all others, in the order of keys).
    AddTable {
        /// Whose.
        tablet: TabletId,
        /// Where.
        position: u32,
        /// Which.
        table: TableRef,
    },
    /// Tables are live no more.
    RemoveTables {
        /// Whose.
        tablet: TabletId,
        /// Which.
        files: Vec<FileId>,
    },
    /// A merge: its output, if there is any, takes the place of its inputs, which stand next to each
    /// other. Says no position on purpose: the list may have grown between the merge and its commit.
    ReplaceTables {
        /// Whose.
        tablet: TabletId,
        /// The inputs, newest first; at least one.
        files: Vec<FileId>,
        /// The output.
        table: Option<TableRef>,
    },
    /// A step of a descent: the keys of the last level below `from`, down to where the step before ended, are
    /// written anew together with what the oldest tables above have of them. Says no positions, as above.
    Descend {
        /// Whose.
        tablet: TabletId,
        /// Tables that go: those of the last level that were written anew, those above of which nothing is
        /// left. One that only moves down goes, too, and comes back under `added`.
        removed: Vec<FileId>,
        /// Tables above of which only keys from `from` on count now.
        advanced: Vec<FileId>,
        /// See there.
        from: Box<[u8]>,
        /// Tables of the last level that become live.
        added: Vec<TableRef>,
    },
    /// Tables hold everything of the tablet up to here.
    Flushed {
        /// Whose.
        tablet: TabletId,
        /// Last entry.
        index: EntryIndex,
        /// Its term.
        term: u64,
    },
    /// A range of the tablet's keys is gone up to an LSN, not beyond the entry that was flushed last.
    AddRange {
        /// Whose.
        tablet: TabletId,
        /// Which.
        range: RangeDelete,
    },
    /// No table of the tablet holds anything of what these range deletes removed. Those that are not known, or
    /// of which newer ones have left nothing, don't matter.
    RemoveRanges {
        /// Whose.
        tablet: TabletId,
        /// Of the operations.
        lsns: Vec<Lsn>,
    },
    /// The tablet needs no log older than this one.
    LogsDone {
        /// Whose.
        tablet: TabletId,
        /// The oldest log it needs.
        oldest: LogId,
    },
    /// Another shard owns the tablet now; its description there has a higher epoch.
    RemoveTablet {
        /// Which.
        tablet: TabletId,
    },
    /// The tablet keeps its slots below one, a new one takes the others. Both have the same tables, each clipped
    /// to its own slots, and go on from the same entry. All of it must be flushed before.
    SplitTablet {
        /// Which.
        tablet: TabletId,
        /// First slot of the new one.
        at: u16,
        /// The new one.
        into: TabletId,
    },
    /// A file must stay though nothing live refers to it (reserved: checkpoints).
    Pin {
        /// Which.
        file: FileId,
        /// For whom.
        holder: u64,
    },
    /// Ends a pin (reserved).
    Unpin {
        /// Which.
        file: FileId,
        /// For whom.
        holder: u64,
    },
}

/// Changes that become live together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edit {
    /// In order.
    pub changes: Vec<Change>,
}

const SKIPPABLE: u8 = 1;
const KIND_MAX: u8 = 15;

/// A payload that can't be read, though its checksum is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// It ends inside a change.
    #[error("a change is cut short")]
    Cut,
    /// A kind that must be understood, and is not.
    #[error("a change of kind {0}, which only a newer version knows")]
    Unknown(u8),
    /// Fields that can't be.
    #[error("a change of kind {0} does not parse")]
    Invalid(u8),
}

#[derive(Default)]
struct Writer {
    out: Vec<u8>,
}

impl Writer {
    fn u8(&mut self, value: u8) -> &mut Writer {
        self.out.push(value);
        self
    }
    fn u16(&mut self, value: u16) -> &mut Writer {
        self.out.extend_from_slice(&value.to_le_bytes());
        self
    }
    fn u32(&mut self, value: u32) -> &mut Writer {
        self.out.extend_from_slice(&value.to_le_bytes());
        self
    }
    fn u64(&mut self, value: u64) -> &mut Writer {
        self.out.extend_from_slice(&value.to_le_bytes());
        self
    }
    fn bytes(&mut self, bytes: &[u8]) -> &mut Writer {
        self.u16(u16::try_from(bytes.len()).expect("keys are at most 65535 bytes"));
        self.out.extend_from_slice(bytes);
        self
    }
    fn slots(&mut self, slots: SlotRange) -> &mut Writer {
        self.u16(slots.first()).u16(slots.last())
    }
    fn list(&mut self, values: impl ExactSizeIterator<Item = u64>) -> &mut Writer {
        self.u32(values.len() as u32);
        values.for_each(|value| {
            self.u64(value);
        });
        self
    }
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*head)
    }
    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }
    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
    fn slice(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(head)
    }
    fn bytes(&mut self) -> Option<Box<[u8]>> {
        let len = self.u16()?;
        self.slice(usize::from(len)).map(Into::into)
    }
    fn slots(&mut self) -> Option<SlotRange> {
        SlotRange::new(self.u16()?, self.u16()?)
    }
    fn list(&mut self) -> Option<Vec<u64>> {
        let count = self.u32()?;
        // Bounded by what is there, not by what the count claims.
        (self.rest.len() / 8 >= count as usize).then(|| (0..count).map_while(|_| self.u64()).collect())
    }
}

impl TableRef {
    /// The keys that it may be about.
    pub fn bounds(&self) -> Bounds<'_> {
        Bounds::new(&self.smallest, &self.largest, self.clip.as_ref())
    }

    /// The facts of the table as far as they are known here, if it is one of this tablet, whose slots are these.
    /// They are all that anyone needs who does not read it.
    pub fn meta(&self, tablet: TabletId, slots: SlotRange) -> TableMeta {
        TableMeta {
            file: self.file,
            tablet,
            slots: self.clip.as_ref().map_or(slots, |clip| clip.slots),
            bytes: self.bytes,
            entries: self.entries,
            tombstones: self.tombstones,
            expiring: self.expiring,
            expiries: Expiries::default(),
            min_lsn: self.min_lsn,
            max_lsn: self.max_lsn,
            smallest: self.smallest.clone(),
            largest: self.largest.clone(),
            shape: TableShape { is_last: self.level == LAST, ..TableShape::default() },
        }
    }

    /// As a table of this level, of which `clip` counts.
    #[must_use]
    pub fn placed(self, level: u8, clip: Option<Clip>) -> TableRef {
        TableRef { level, clip, ..self }
    }

    fn encode(&self, out: &mut Writer) {
        out.u64(self.file.0).u8(self.level).u64(self.bytes).u64(self.entries).u64(self.tombstones);
        out.u64(self.expiring).u64(self.min_lsn.0).u64(self.max_lsn.0).u64(self.cleared.0);
        out.bytes(&self.smallest).bytes(&self.largest);
        match &self.clip {
            None => out.u8(0),
            Some(clip) => out.u8(1).slots(clip.slots).bytes(&clip.smallest).bytes(&clip.end),
        };
    }

    fn decode(from: &mut Reader<'_>) -> Option<TableRef> {
        Some(TableRef {
            file: FileId(from.u64()?),
            level: from.u8()?,
            bytes: from.u64()?,
            entries: from.u64()?,
            tombstones: from.u64()?,
            expiring: from.u64()?,
            min_lsn: Lsn(from.u64()?),
            max_lsn: Lsn(from.u64()?),
            cleared: Lsn(from.u64()?),
            smallest: from.bytes()?,
            largest: from.bytes()?,
            clip: match from.u8()? {
                0 => None,
                1 => Some(Clip { slots: from.slots()?, smallest: from.bytes()?, end: from.bytes()? }),
                _ => return None,
            },
        })
    }
}

impl Change {
    /// The tablet that it is about.
    pub(super) fn tablet(&self) -> Option<TabletId> {
        match self {
            Change::Tablet(tablet) => Some(tablet.id),
            Change::AddTable { tablet, .. }
            | Change::RemoveTables { tablet, .. }
            | Change::ReplaceTables { tablet, .. }
            | Change::Descend { tablet, .. }
            | Change::Flushed { tablet, .. }
            | Change::RemoveTablet { tablet }
            | Change::SplitTablet { tablet, .. }
            | Change::AddRange { tablet, .. }
            | Change::RemoveRanges { tablet, .. }
            | Change::LogsDone { tablet, .. } => Some(*tablet),
            Change::Store(_) | Change::Log { .. } | Change::Pin { .. } | Change::Unpin { .. } => None,
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Change::Store(_) => 1,
            Change::Log { .. } => 2,
            Change::Tablet(_) => 3,
            Change::AddTable { .. } => 4,
            Change::RemoveTables { .. } => 5,
            Change::Flushed { .. } => 6,
            Change::LogsDone { .. } => 7,
            Change::Pin { .. } => 8,
            Change::Unpin { .. } => 9,
            Change::ReplaceTables { .. } => 10,
            Change::RemoveTablet { .. } => 13,
            Change::SplitTablet { .. } => 14,
            Change::AddRange { .. } => 11,
            Change::RemoveRanges { .. } => 12,
            Change::Descend { .. } => 15,
        }
    }

    fn encode_body(&self, out: &mut Writer) {
        match self {
            Change::Store(store) => {
                out.u64(store.cluster as u64).u64((store.cluster >> 64) as u64).u64(store.node);
                out.u64(store.hash_seed).u32(store.feature_level).u64(store.next_log);
            }
            Change::Log { log, end } => {
                out.u64(log.0).u64(end.map_or(u64::MAX, |end| end.0));
            }
            Change::Tablet(tablet) => {
                out.u32(tablet.id.0).slots(tablet.slots).u64(tablet.epoch).u64(tablet.peer);
                out.list(tablet.voters.iter().copied()).u64(tablet.term);
                out.u64(tablet.flushed.0).u64(tablet.flushed_term);
                out.u64(tablet.truncated.0).u64(tablet.truncated_term);
                out.u32(tablet.shard).list(tablet.logs.iter().map(|log| log.0));
            }
            Change::AddTable { tablet, position, table } => {
                out.u32(tablet.0).u32(*position);
                table.encode(out);
            }
            Change::RemoveTables { tablet, files } => {
                out.u32(tablet.0).list(files.iter().map(|file| file.0));
            }
            Change::ReplaceTables { tablet, files, table } => {
                out.u32(tablet.0).list(files.iter().map(|file| file.0)).u8(u8::from(table.is_some()));
                if let Some(table) = table {
                    table.encode(out);
                }
            }
            Change::Descend { tablet, removed, advanced, from, added } => {
                out.u32(tablet.0).list(removed.iter().map(|file| file.0));
                out.list(advanced.iter().map(|file| file.0)).bytes(from).u32(added.len() as u32);
                added.iter().for_each(|table| table.encode(out));
            }
            Change::Flushed { tablet, index, term } => {
                out.u32(tablet.0).u64(index.0).u64(*term);
            }
            Change::LogsDone { tablet, oldest } => {
                out.u32(tablet.0).u64(oldest.0);
            }
            Change::RemoveTablet { tablet } => {
                out.u32(tablet.0);
            }
            Change::SplitTablet { tablet, at, into } => {
                out.u32(tablet.0).u16(*at).u32(into.0);
            }
            Change::AddRange { tablet, range } => {
                out.u32(tablet.0).bytes(&range.start).bytes(&range.end).u64(range.lsn.0);
            }
            Change::RemoveRanges { tablet, lsns } => {
                out.u32(tablet.0).list(lsns.iter().map(|lsn| lsn.0));
            }
            Change::Pin { file, holder } | Change::Unpin { file, holder } => {
                out.u64(file.0).u64(*holder);
            }
        }
    }

    fn decode_body(kind: u8, from: &mut Reader<'_>) -> Option<Change> {
        Some(match kind {
            1 => Change::Store(Store {
                cluster: u128::from(from.u64()?) | u128::from(from.u64()?) << 64,
                node: from.u64()?,
                hash_seed: from.u64()?,
                feature_level: from.u32()?,
                next_log: from.u64()?,
            }),
            2 => Change::Log {
                log: LogId(from.u64()?),
                end: Some(from.u64()?).filter(|end| *end != u64::MAX).map(BlockSeq),
            },
            3 => Change::Tablet(TabletState {
                id: TabletId(from.u32()?),
                slots: from.slots()?,
                epoch: from.u64()?,
                peer: from.u64()?,
                voters: from.list()?,
                term: from.u64()?,
                flushed: EntryIndex(from.u64()?),
                flushed_term: from.u64()?,
                truncated: EntryIndex(from.u64()?),
                truncated_term: from.u64()?,
                shard: from.u32()?,
                logs: from.list()?.into_iter().map(LogId).collect(),
                tables: Vec::new(),
                ranges: RangeDeletes::default(),
            }),
            4 => Change::AddTable {
                tablet: TabletId(from.u32()?),
                position: from.u32()?,
                table: TableRef::decode(from)?,
            },
            5 => Change::RemoveTables {
                tablet: TabletId(from.u32()?),
                files: from.list()?.into_iter().map(FileId).collect(),
            },
            6 => Change::Flushed {
                tablet: TabletId(from.u32()?),
                index: EntryIndex(from.u64()?),
                term: from.u64()?,
            },
            7 => Change::LogsDone { tablet: TabletId(from.u32()?), oldest: LogId(from.u64()?) },
            8 => Change::Pin { file: FileId(from.u64()?), holder: from.u64()? },
            9 => Change::Unpin { file: FileId(from.u64()?), holder: from.u64()? },
            10 => Change::ReplaceTables {
                tablet: TabletId(from.u32()?),
                files: from.list()?.into_iter().map(FileId).collect(),
                table: match from.u8()? {
                    0 => None,
                    1 => Some(TableRef::decode(from)?),
                    _ => return None,
                },
            },
            11 => Change::AddRange {
                tablet: TabletId(from.u32()?),
                range: RangeDelete::new(&from.bytes()?, &from.bytes()?, Lsn(from.u64()?))?,
            },
            12 => Change::RemoveRanges {
                tablet: TabletId(from.u32()?),
                lsns: from.list()?.into_iter().map(Lsn).collect(),
            },
            13 => Change::RemoveTablet { tablet: TabletId(from.u32()?) },
            14 => Change::SplitTablet {
                tablet: TabletId(from.u32()?),
                at: from.u16()?,
                into: TabletId(from.u32()?),
            },
            15 => Change::Descend {
                tablet: TabletId(from.u32()?),
                removed: from.list()?.into_iter().map(FileId).collect(),
                advanced: from.list()?.into_iter().map(FileId).collect(),
                from: from.bytes()?,
                // Not sized by a count that may claim anything.
                added: (0..from.u32()?).map(|_| TableRef::decode(from)).collect::<Option<_>>()?,
            },
            _ => return None,
        })
    }
}

impl Edit {
    /// The payload of a block.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        for change in &self.changes {
            let mut body = Writer::default();
            change.encode_body(&mut body);
            out.u8(change.kind()).u8(0).u16(0).u32(body.out.len() as u32);
            out.out.extend_from_slice(&body.out);
        }
        out.out
    }

    /// Reads a payload whose checksum was verified.
    pub fn decode(payload: &[u8]) -> Result<Edit, EditError> {
        let mut from = Reader { rest: payload };
        let mut changes = Vec::new();
        while !from.rest.is_empty() {
            let kind = from.u8().ok_or(EditError::Cut)?;
            let flags = from.u8().ok_or(EditError::Cut)?;
            let zero = from.u16().ok_or(EditError::Cut)?;
            let len = from.u32().ok_or(EditError::Cut)? as usize;
            let mut body = Reader { rest: from.slice(len).ok_or(EditError::Cut)? };
            if kind > KIND_MAX && flags & SKIPPABLE != 0 {
                continue;
            }
            if kind == 0 || zero != 0 || flags & !SKIPPABLE != 0 {
                return Err(EditError::Invalid(kind));
            }
            if kind > KIND_MAX {
                return Err(EditError::Unknown(kind));
            }
            match Change::decode_body(kind, &mut body) {
                Some(change) if body.rest.is_empty() => changes.push(change),
                _ => return Err(EditError::Invalid(kind)),
            }
        }
        Ok(Edit { changes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes as they must always be: kind, flags, zero, length, body.
    #[test]
    fn tablets_that_leave_and_split_are_written_as_they_were() {
        let (tablet, into) = (TabletId(7), TabletId(0x1_0002));
        let changes = vec![Change::RemoveTablet { tablet }, Change::SplitTablet { tablet, at: 0x0304, into }];
        let payload = Edit { changes: changes.clone() }.encode();
        let left = [13, 0, 0, 0, 4, 0, 0, 0, 7, 0, 0, 0];
        let split = [14, 0, 0, 0, 10, 0, 0, 0, 7, 0, 0, 0, 4, 3, 2, 0, 1, 0];
        assert_eq!(payload, [&left[..], &split[..]].concat());
        assert_eq!(Edit::decode(&payload).unwrap().changes, changes);
    }

    #[test]
    fn unknown_changes_are_skipped_only_if_they_may_be() {
        let mut payload = Edit { changes: vec![Change::Pin { file: FileId(1), holder: 2 }] }.encode();
        payload.extend_from_slice(&[77, SKIPPABLE, 0, 0, 2, 0, 0, 0, 9, 9]);
        assert_eq!(Edit::decode(&payload).unwrap().changes.len(), 1);
        let at = payload.len() - 9;
        payload[at] = 0;
        assert_eq!(Edit::decode(&payload), Err(EditError::Unknown(77)));
        for len in 1..16 {
            assert!(Edit::decode(&payload[..len]).is_err(), "{len}");
        }
    }
}
