//! A manifest file as a tool shows it: as much as can be read of one that may be damaged. Pure.

use std::fmt;

use super::edit::{Change, Edit, TableRef};
use super::format::{BlockHeader, Current, FileKey, Parsed, VERSION, block_len, parse_block};
use super::read::{misplaced, parse, state_of};
use crate::base::{PAGE_SIZE, is_blank};
use crate::engine::ranges::RangeDelete;

/// One edit as a tool shows it.
pub struct InspectedEdit {
    /// Where it stands in the file.
    pub offset: u64,
    /// What it changes.
    pub edit: Edit,
}

/// All that stands in a manifest file given as bytes; its name tells which it should be. Refuses what
/// [`load`](super::load) refuses; [`inspect_file`] reads on behind damage.
pub fn inspect_manifest(name: &str, bytes: &[u8]) -> Result<(FileKey, Vec<InspectedEdit>), String> {
    let key = FileKey::parse(name).ok_or_else(|| format!("{name} is not the name of a manifest file"))?;
    let contents = parse(name, key, bytes).map_err(|error| error.to_string())?;
    state_of(name, key, u32::MAX, &contents).map_err(|error| error.to_string())?;
    let edits = contents.edits.into_iter().map(|(offset, edit)| InspectedEdit { offset, edit }).collect();
    Ok((key, edits))
}

/// A file, block by block.
pub struct Inspection {
    /// The file that its name says, or if it has another name, the one that its first whole block says.
    pub key: Option<FileKey>,
    /// What stands in it, in order. Blank pages are left out.
    pub items: Vec<Item>,
    /// Blank bytes behind the last item: space held ready.
    pub blank_bytes: u64,
    /// What a start would say to this file: `Ok`, or why it would be refused. A torn tail is `Ok`.
    pub verdict: Result<(), String>,
}

/// A block, or a run of pages that is none.
pub struct Item {
    /// Where it stands.
    pub offset: u64,
    /// Its length in whole pages.
    pub bytes: u64,
    /// Its number, as far as its header is whole.
    pub seq: Option<u32>,
    /// How it is.
    pub state: ItemState,
    /// What it changes, where that can be read.
    pub edit: Option<Edit>,
}

/// How a block is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ItemState {
    /// Header and payload as written, and the block is the next one.
    Good,
    /// Header and payload as written, but it does not belong here.
    Misplaced(String),
    /// Header and payload as written, but not understood.
    Unreadable(String),
    /// The header is whole, the payload is not.
    PayloadDamaged {
        /// Checksum in the header.
        expected: u32,
        /// Checksum of what is there; `None`: the file ends before the payload does.
        found: Option<u32>,
    },
    /// The header is whole and says a later format.
    Newer(u32),
    /// No header: a torn or a damaged one, or the payload of one.
    NoBlock,
}

/// What `CURRENT` says, given its bytes.
pub fn inspect_current(bytes: &[u8]) -> Result<Current, String> {
    Current::decode(bytes).map_err(|version| match version {
        Some(found) => format!("written by a newer version (format {found}, this build reads {VERSION})"),
        None => "damaged: it names no generation".to_owned(),
    })
}

/// All that can be read of a manifest file, given its name (without directory) and its bytes.
pub fn inspect_file(name: &str, bytes: &[u8]) -> Inspection {
    let mut walk = Walk { key: FileKey::parse(name), items: Vec::new(), next_seq: 1, last_crc: 0 };
    let (mut at, mut end) = (0, 0);
    while at < bytes.len() {
        let len = walk.step(at, &bytes[at..]);
        at += len.unwrap_or(PAGE_SIZE);
        if len.is_some() {
            end = at.min(bytes.len());
        }
    }
    let verdict = match walk.key {
        None => Err(format!("{name} holds no block of a manifest")),
        Some(key) => parse(name, key, bytes)
            .and_then(|contents| state_of(name, key, u32::MAX, &contents))
            .map(drop)
            .map_err(|error| error.to_string()),
    };
    Inspection { key: walk.key, items: walk.items, blank_bytes: (bytes.len() - end) as u64, verdict }
}

struct Walk {
    key: Option<FileKey>,
    items: Vec<Item>,
    next_seq: u32,
    last_crc: u32,
}

impl Walk {
    /// Takes in what stands at `at`, where `rest` begins, and returns its length; `None` for a blank page.
    fn step(&mut self, at: usize, rest: &[u8]) -> Option<usize> {
        let page = &rest[..rest.len().min(PAGE_SIZE)];
        let (seq, state, edit, len) = match parse_block(rest) {
            Parsed::Block(header, payload) => {
                let (state, edit) = self.block(&header, payload);
                (Some(header.seq.get()), state, edit, block_len(payload.len()))
            }
            // One page only: what follows may be a block again.
            Parsed::Damaged(header, found) => {
                let state = ItemState::PayloadDamaged { expected: header.payload_crc(), found };
                (Some(header.seq.get()), state, None, PAGE_SIZE)
            }
            Parsed::Newer(found) => (None, ItemState::Newer(found), None, PAGE_SIZE),
            Parsed::Nothing if is_blank(page) => return None,
            Parsed::Nothing => {
                if let Some(last) = self.items.last_mut()
                    && last.state == ItemState::NoBlock
                    && last.offset + last.bytes == at as u64
                {
                    last.bytes += PAGE_SIZE as u64;
                    return Some(PAGE_SIZE);
                }
                (None, ItemState::NoBlock, None, PAGE_SIZE)
            }
        };
        self.items.push(Item { offset: at as u64, bytes: len as u64, seq, state, edit });
        Some(len)
    }

    fn block(&mut self, header: &BlockHeader, payload: &[u8]) -> (ItemState, Option<Edit>) {
        let key = *self.key.get_or_insert(header.key());
        let wrong = misplaced(header, key, self.next_seq, self.last_crc);
        if header.key() == key {
            self.next_seq = header.seq.get().wrapping_add(1);
            self.last_crc = header.crc.get();
        }
        match (Edit::decode(payload), wrong) {
            (Ok(edit), None) => (ItemState::Good, Some(edit)),
            (Ok(edit), Some(what)) => (ItemState::Misplaced(what), Some(edit)),
            (Err(error), _) => (ItemState::Unreadable(error.to_string()), None),
        }
    }
}

impl fmt::Display for ItemState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ItemState::Good => write!(f, "good"),
            ItemState::Misplaced(what) => write!(f, "misplaced: {what}"),
            ItemState::Unreadable(what) => write!(f, "checksum good, but {what}"),
            ItemState::PayloadDamaged { expected, found: Some(found) } => {
                write!(f, "damaged: payload checksum {expected:08x}, computed {found:08x}")
            }
            ItemState::PayloadDamaged { found: None, .. } => write!(f, "damaged: the file ends inside it"),
            ItemState::Newer(found) => write!(f, "of format {found}; this build reads {VERSION}"),
            ItemState::NoBlock => write!(f, "no block: torn or damaged"),
        }
    }
}

/// A line for the block, and an indented one for each change.
impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>10} {:>8} bytes", self.offset, self.bytes)?;
        if let Some(seq) = self.seq {
            write!(f, "  edit {seq}")?;
        }
        write!(f, "  {}", self.state)?;
        for change in self.edit.iter().flat_map(|edit| &edit.changes) {
            write!(f, "\n           {change}")?;
        }
        Ok(())
    }
}

/// Joins what `Display` shows, with commas.
struct Joined<'a, T>(&'a [T]);

impl<T: fmt::Display> fmt::Display for Joined<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, item) in self.0.iter().enumerate() {
            write!(f, "{}{item}", if number == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// A key, escaped and cut to what fits a line.
struct Key<'a>(&'a [u8]);

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 40;
        let shown = &self.0[..self.0.len().min(SHOWN)];
        write!(f, "\"{}\"{}", shown.escape_ascii(), if self.0.len() > SHOWN { "…" } else { "" })
    }
}

impl fmt::Display for RangeDelete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{} up to {}", Key(&self.start), Key(&self.end), self.lsn)
    }
}

impl fmt::Display for TableRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} level {} bytes {} entries {} tombstones {} expiring {} lsn {}..={} cleared {} keys {}..={}",
            self.file,
            self.level,
            self.bytes,
            self.entries,
            self.tombstones,
            self.expiring,
            self.min_lsn,
            self.max_lsn,
            self.cleared,
            Key(&self.smallest),
            Key(&self.largest),
        )?;
        match &self.clip {
            Some(clip) => {
                write!(f, " clip slots {} keys {}..{}", clip.slots, Key(&clip.smallest), Key(&clip.end))
            }
            None => Ok(()),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Store(store) => write!(
                f,
                "store {:032x} node {} features {} next log {}",
                store.cluster, store.node, store.feature_level, store.next_log
            ),
            Change::Log { log, end: Some(end) } => write!(f, "log {log} ends with block {end}"),
            Change::Log { log, end: None } => write!(f, "log {log} open"),
            Change::Tablet(t) => write!(
                f,
                "tablet {} slots {} shard {} epoch {} peer {} voters {} term {} flushed {} (term {}) \
                 truncated {} (term {}) logs {}",
                t.id,
                t.slots,
                t.shard,
                t.epoch,
                t.peer,
                Joined(&t.voters),
                t.term,
                t.flushed,
                t.flushed_term,
                t.truncated,
                t.truncated_term,
                Joined(&t.logs)
            ),
            Change::AddTable { tablet, position, table } => {
                write!(f, "tablet {tablet} add table at {position}: {table}")
            }
            Change::RemoveTables { tablet, files } => {
                write!(f, "tablet {tablet} remove tables {}", Joined(files))
            }
            Change::ReplaceTables { tablet, files, table } => {
                write!(f, "tablet {tablet} replace tables {} by ", Joined(files))?;
                match table {
                    Some(table) => write!(f, "{table}"),
                    None => write!(f, "nothing"),
                }
            }
            Change::Descend { tablet, removed, advanced, from, added } => {
                write!(
                    f,
                    "tablet {tablet} remove tables {}, clip {} to keys from {} on, add to the last level:",
                    Joined(removed),
                    Joined(advanced),
                    Key(from)
                )?;
                added.iter().try_for_each(|table| write!(f, "\n             {table}"))
            }
            Change::Flushed { tablet, index, term } => {
                write!(f, "tablet {tablet} flushed {index} (term {term})")
            }
            Change::RemoveTablet { tablet } => write!(f, "tablet {tablet} is another shard's"),
            Change::SplitTablet { tablet, at, into } => {
                write!(f, "tablet {tablet} gives its slots from {at} on to tablet {into}")
            }
            Change::AddRange { tablet, range } => write!(f, "tablet {tablet} range delete {range}"),
            Change::RemoveRanges { tablet, lsns } => {
                write!(f, "tablet {tablet} forget range deletes {}", Joined(lsns))
            }
            Change::LogsDone { tablet, oldest } => write!(f, "tablet {tablet} needs no log before {oldest}"),
            Change::Pin { file, holder } => write!(f, "pin {file} for {holder}"),
            Change::Unpin { file, holder } => write!(f, "unpin {file} for {holder}"),
        }
    }
}
