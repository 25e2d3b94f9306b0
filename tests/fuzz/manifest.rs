//! The manifest: edits and the state they make, whole files, `CURRENT`.

use std::collections::{BTreeMap, BTreeSet};

use atlaskv::base::{BlockSeq, EntryIndex, FileId, LogId, Lsn, PAGE_SIZE, TabletId, crc32c};
use atlaskv::engine::manifest::format::{BLOCK_HEADER_BYTES, Current, FileKey, block_len, seal_block};
use atlaskv::engine::manifest::{
    Change, Clip, Edit, EditError, ItemState, LAST, State, Store, TableRef, TabletState, UPPER, inspect_file,
};
use atlaskv::engine::ranges::{RangeDelete, RangeDeletes};
use atlaskv::slot::SlotRange;
use fastrand::Rng;

use crate::allocator::measured;
use crate::driver::{Decoder, Outcome, letters};
use crate::keys;
use crate::mutate::{Number, Shape, number_at, numbers_from, set_number};

const KEY: FileKey = FileKey { generation: 7, shard: 0, part: 2 };
const NAME: &str = "00000007-0000-0002.manifest";
const CHANGE_BYTES: usize = 8;
const LISTED_MAX: usize = 16;

fn store() -> Store {
    Store { cluster: 0xC1, node: 1, hash_seed: 42, feature_level: 1, next_log: 12 }
}

fn empty(store: Store) -> State {
    let (logs, tablets, pins) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    State { store, generation: KEY.generation, shards: 1, logs, tablets, pins }
}

fn tablet(rng: &mut Rng, id: u32) -> TabletState {
    let first = rng.u16(..16_000);
    TabletState {
        id: TabletId(id),
        slots: SlotRange::new(first, first + rng.u16(..384)).unwrap(),
        epoch: rng.u64(..4),
        peer: 1,
        voters: vec![1; rng.usize(..3)],
        term: 1,
        flushed: EntryIndex(rng.u64(..1000)),
        flushed_term: 1,
        truncated: EntryIndex(0),
        truncated_term: 0,
        shard: 0,
        logs: (0..rng.u64(..3)).map(|log| LogId(10 + log)).collect(),
        tables: Vec::new(),
        ranges: RangeDeletes::default(),
    }
}

fn table(rng: &mut Rng, level: u8) -> TableRef {
    let (smallest, largest) = keys::range(rng);
    let lsn = rng.u64(1..100) << 16;
    let clip = (rng.u8(..4) == 0).then(|| Clip {
        slots: SlotRange::new(3, 90).unwrap(),
        smallest: smallest.clone().into(),
        end: Box::default(),
    });
    TableRef {
        file: FileId(3 << 32 | rng.u64(..8)),
        level,
        bytes: 4 * PAGE_SIZE as u64,
        entries: rng.u64(1..1000),
        tombstones: 1,
        expiring: 1,
        min_lsn: Lsn(lsn),
        max_lsn: Lsn(lsn + rng.u64(..1 << 18)),
        cleared: Lsn(rng.u64(..1 << 20)),
        smallest: smallest.into(),
        largest: largest.into(),
        clip,
    }
}

fn files(rng: &mut Rng) -> Vec<FileId> {
    (0..rng.u64(1..3)).map(|_| FileId(3 << 32 | rng.u64(..8))).collect()
}

/// A change that may fit the state or not.
fn change(rng: &mut Rng) -> Change {
    let id = TabletId(rng.u32(..3));
    match rng.u8(..18) {
        0 => Change::Store(Store { next_log: rng.u64(..99), ..store() }),
        1 => Change::Log {
            log: LogId(rng.u64(..13)),
            end: Some(BlockSeq(rng.u64(..99))).filter(|_| rng.bool()),
        },
        2 | 3 => Change::Tablet(tablet(rng, id.0)),
        4..8 => {
            let level = if rng.bool() { UPPER } else { LAST };
            Change::AddTable { tablet: id, position: rng.u32(..3), table: table(rng, level) }
        }
        8 => Change::RemoveTables { tablet: id, files: files(rng) },
        9 => Change::ReplaceTables {
            tablet: id,
            files: files(rng),
            table: Some(table(rng, UPPER)).filter(|_| rng.bool()),
        },
        10 => Change::Descend {
            tablet: id,
            removed: files(rng),
            advanced: files(rng),
            from: keys::key(rng).into(),
            added: (0..rng.usize(..3)).map(|_| table(rng, LAST)).collect(),
        },
        11 => Change::Flushed { tablet: id, index: EntryIndex(rng.u64(..2000)), term: 1 },
        12 | 13 => {
            let (start, end) = keys::range(rng);
            let range =
                RangeDelete::new(&start, if rng.bool() { &end } else { b"" }, Lsn(rng.u64(..500 << 16)));
            Change::AddRange { tablet: id, range: range.unwrap() }
        }
        14 => Change::RemoveRanges { tablet: id, lsns: vec![Lsn(rng.u64(..1 << 20))] },
        15 => Change::LogsDone { tablet: id, oldest: LogId(rng.u64(9..13)) },
        16 => match rng.bool() {
            true => Change::RemoveTablet { tablet: id },
            false => Change::SplitTablet { tablet: id, at: rng.u16(..16_384), into: TabletId(rng.u32(3..6)) },
        },
        _ => match rng.bool() {
            true => Change::Pin { file: FileId(rng.u64(..4)), holder: 1 },
            false => Change::Unpin { file: FileId(rng.u64(..4)), holder: 1 },
        },
    }
}

/// A snapshot's beginning, then changes of which each fits what is there, as far as one was found.
fn changes(rng: &mut Rng) -> Vec<Change> {
    let mut state = empty(store());
    let mut changes = vec![Change::Store(store()), Change::Tablet(tablet(rng, 0))];
    changes.iter().for_each(|change| state.apply(change).unwrap());
    for _ in 0..rng.usize(..24) {
        let next = change(rng);
        let mut after = state.clone();
        if after.apply(&next).is_ok() {
            state = after;
            changes.push(next);
        }
    }
    changes
}

/// Numbers of the changes in a payload at `base`: kind, flags, length, and the first fields of the body.
fn numbers_of_changes(payload: &[u8], base: usize, out: &mut Vec<Number>) {
    let mut at = 0;
    for _ in 0..LISTED_MAX {
        if at + CHANGE_BYTES > payload.len() {
            return;
        }
        numbers_from(base + at, &[1, 1, 2, 4, 4], out);
        let body = at + CHANGE_BYTES;
        let fields: &[i8] = match payload[at] {
            1 => &[8, 8, 8, 8, 4, 8],
            2 | 8 | 9 => &[8, 8],
            3 => &[4, 2, 2, 8, 8, 4],
            4 => &[4, 4, 8, 1, 8, 8, 8, 8, 8, 8, 8, 2],
            5 | 10 | 12 | 15 => &[4, 4, 8],
            6 => &[4, 8, 8],
            11 => &[4, 2],
            14 => &[4, 2, 4],
            _ => &[4, 8],
        };
        numbers_from(base + body, fields, out);
        at = body + number_at(payload, at + 4, 4) as usize;
    }
}

/// Makes the last change end where the payload does.
fn repair_changes(payload: &mut [u8]) {
    let mut at = 0;
    while at + CHANGE_BYTES <= payload.len() {
        let rest = payload.len() - at - CHANGE_BYTES;
        let len = number_at(payload, at + 4, 4) as usize;
        if len > rest {
            set_number(payload, at + 4, 4, rest as u64);
        }
        at += CHANGE_BYTES + len;
    }
}

/// The payload of a block.
pub struct Edits;

impl Decoder for Edits {
    const NAME: &'static str = "manifest-edit";
    const EXECUTIONS: u64 = 40_000;
    const SHAPE: Shape = Shape { bytes_max: 8192, unit: 1 };

    fn generate(&mut self, rng: &mut Rng, out: &mut Vec<u8>) -> bool {
        let mut edit = Edit { changes: changes(rng) }.encode();
        edit.truncate(Self::SHAPE.bytes_max);
        let is_whole = edit.len() < Self::SHAPE.bytes_max;
        out.append(&mut edit);
        is_whole
    }

    fn numbers(&self, input: &[u8], out: &mut Vec<Number>) {
        numbers_of_changes(input, 0, out);
        out.retain(|number| number.at + number.width <= input.len());
    }

    fn repair(&mut self, input: &mut Vec<u8>, _rng: &mut Rng) {
        repair_changes(input);
    }

    fn execute(&mut self, input: &[u8]) -> Outcome {
        let (edit, largest) = measured(|| Edit::decode(input));
        // The smallest change has 12 bytes and is held in one of the largest, in a list that grows.
        let most = 4 * size_of::<Change>() + 4 * size_of::<Change>() * input.len() / 12;
        assert!(largest <= most, "{} bytes made {largest} be allocated", input.len());
        let edit = match edit {
            Ok(edit) => edit,
            Err(error) => {
                let kind = match error {
                    EditError::Cut => 1,
                    EditError::Unknown(_) => 2,
                    EditError::Invalid(kind) => 3 << 8 | u64::from(kind),
                };
                return Outcome { kind, at: input.len(), ..Outcome::default() };
            }
        };
        assert!(edit.changes.len() <= input.len() / CHANGE_BYTES, "{} changes", edit.changes.len());
        let encoded = edit.encode();
        assert_eq!(Edit::decode(&encoded).as_ref(), Ok(&edit), "it came back as another");
        let kinds = kinds_of(&encoded);
        let (at, what) = apply(&edit);
        let kind = what.as_ref().map_or(1 << 30, |what| letters(what)) ^ kinds << 32;
        Outcome { is_accepted: what.is_none(), kind, at, items: edit.changes.len() }
    }
}

/// Which kinds of changes are in a payload that decodes, a bit each.
fn kinds_of(payload: &[u8]) -> u64 {
    let (mut at, mut kinds) = (0, 0);
    while at + CHANGE_BYTES <= payload.len() {
        kinds |= 1 << (payload[at] % 24);
        at += CHANGE_BYTES + number_at(payload, at + 4, 4) as usize;
    }
    kinds
}

/// Applies an edit to nothing, as a start does. Returns how many of its changes fit, and what is wrong with the next.
fn apply(edit: &Edit) -> (usize, Option<String>) {
    let Some(Change::Store(store)) = edit.changes.first() else {
        return (0, Some("no snapshot".to_owned()));
    };
    let mut state = empty(*store);
    for (at, change) in edit.changes.iter().enumerate() {
        if let Err(what) = state.apply(change) {
            return (at, Some(what));
        }
    }
    let _ = (state.check(), state.live_tables(), state.needed_logs(), state.removable_logs());
    let mut again = empty(state.store);
    for change in state.snapshot() {
        if let Err(what) = again.apply(&change) {
            panic!("a state was accepted of which a snapshot is not: {what}");
        }
    }
    assert_eq!(again, state, "a snapshot came back as another state");
    (edit.changes.len(), None)
}

/// A file of a snapshot and edits.
pub struct Files;

/// Offsets at which a block's header seems to stand.
fn blocks(input: &[u8]) -> Vec<usize> {
    (0..input.len()).step_by(PAGE_SIZE).filter(|at| input[*at..].starts_with(b"AKVMAN")).collect()
}

impl Decoder for Files {
    const NAME: &'static str = "manifest-file";
    const EXECUTIONS: u64 = 15_000;
    const SHAPE: Shape = Shape { bytes_max: 8 * PAGE_SIZE, unit: PAGE_SIZE };

    fn generate(&mut self, rng: &mut Rng, out: &mut Vec<u8>) -> bool {
        let mut changes = changes(rng).into_iter();
        let (mut seq, mut last_crc) = (1, 0);
        while seq < 5 && (seq == 1 || changes.len() > 0) {
            // Every second one is a seal.
            let count = if seq % 2 == 0 { 0 } else { 2 + rng.usize(..8) };
            let payload = Edit { changes: changes.by_ref().take(count).collect() }.encode();
            let (start, len) = (out.len(), block_len(payload.len()));
            if start + len > Self::SHAPE.bytes_max {
                break;
            }
            out.resize(start + len, 0);
            out[start + BLOCK_HEADER_BYTES..][..payload.len()].copy_from_slice(&payload);
            last_crc = seal_block(KEY, seq, last_crc, payload.len(), &mut out[start..]);
            seq += 1;
        }
        let blank = rng.usize(..3) * PAGE_SIZE;
        out.resize((out.len() + blank).min(Self::SHAPE.bytes_max), 0);
        true
    }

    fn numbers(&self, input: &[u8], out: &mut Vec<Number>) {
        for at in blocks(input) {
            numbers_from(at, &[-8, 4, 4, 8, 4, 4, 4, 4, -4, 8], out);
            let payload = at + BLOCK_HEADER_BYTES;
            let end = payload + number_at(input, at + 32, 4) as usize;
            numbers_of_changes(&input[payload.min(input.len())..end.min(input.len())], payload, out);
        }
        out.retain(|number| number.at + number.width <= input.len());
    }

    fn repair(&mut self, input: &mut Vec<u8>, rng: &mut Rng) {
        let (is_numbered, mut last_crc) = (rng.u8(..4) > 0, 0);
        for (at, seq) in blocks(input).into_iter().zip(1..) {
            if input.len() < at + BLOCK_HEADER_BYTES {
                return;
            }
            let payload = at + BLOCK_HEADER_BYTES;
            let end = payload + number_at(input, at + 32, 4) as usize;
            if let Some(payload) = input.get_mut(payload..end) {
                if rng.u8(..4) == 0 {
                    repair_changes(payload);
                }
                let crc = crc32c(payload);
                set_number(input, at + 40, 4, u64::from(crc));
            }
            if is_numbered {
                set_number(input, at + 28, 4, seq);
                set_number(input, at + 36, 4, last_crc);
            }
            last_crc = u64::from(crc32c(&input[at..at + 52]));
            set_number(input, at + 52, 4, last_crc);
        }
    }

    fn execute(&mut self, input: &[u8]) -> Outcome {
        let (shown, largest) = measured(|| inspect_file(NAME, input));
        let most = 4096 + 4 * size_of::<Change>() * input.len() / 12;
        assert!(largest <= most, "{} bytes made {largest} be allocated", input.len());
        assert!(shown.items.len() <= input.len().div_ceil(PAGE_SIZE), "{} items", shown.items.len());
        let (mut at, mut bad) = (0, 0);
        for item in &shown.items {
            assert!(item.offset >= at, "items are in order");
            at = item.offset + item.bytes;
            bad |= match &item.state {
                ItemState::Good => 0,
                ItemState::Misplaced(_) => 1,
                ItemState::Unreadable(_) => 2,
                ItemState::PayloadDamaged { found, .. } => 4 << u32::from(found.is_some()),
                ItemState::Newer(_) => 16,
                ItemState::NoBlock => 32,
            };
        }
        let items = shown.items.iter().filter_map(|item| item.edit.as_ref());
        let items = items.map(|edit| edit.changes.len()).sum();
        if let Some(last) = shown.items.last() {
            assert!(!last.to_string().is_empty());
        }
        let kind = shown.verdict.as_ref().map_or_else(|what| letters(what), |()| 1) ^ bad << 40;
        assert!(shown.verdict.as_ref().err().is_none_or(|what| what.len() < 4000), "a long verdict");
        Outcome { is_accepted: shown.verdict.is_ok(), kind, at: at as usize, items }
    }
}

/// The file that names the generation.
pub struct Currents;

impl Decoder for Currents {
    const NAME: &'static str = "manifest-current";
    const EXECUTIONS: u64 = 30_000;
    const SHAPE: Shape = Shape { bytes_max: 64, unit: 1 };

    fn generate(&mut self, rng: &mut Rng, out: &mut Vec<u8>) -> bool {
        out.resize(28, 0);
        Current { generation: rng.u64(..), shards: rng.u32(..) }.encode(out);
        true
    }

    fn numbers(&self, input: &[u8], out: &mut Vec<Number>) {
        numbers_from(0, &[-8, 4, 4, 8], out);
        out.retain(|number| number.at + number.width <= input.len());
    }

    fn repair(&mut self, input: &mut Vec<u8>, _rng: &mut Rng) {
        if let Some(head) = input.get(..24) {
            let crc = crc32c(head);
            set_number(input, 24, 4, u64::from(crc));
        }
    }

    fn execute(&mut self, input: &[u8]) -> Outcome {
        let (current, largest) = measured(|| Current::decode(input));
        assert_eq!(largest, 0, "{largest} bytes were allocated");
        match current {
            Ok(current) => {
                let mut page = [0; 28];
                current.encode(&mut page);
                assert_eq!(page[..], input[..28], "it came back as another");
                Outcome { is_accepted: true, kind: 1, ..Outcome::default() }
            }
            Err(version) => Outcome { kind: 2 + u64::from(version.is_some()), ..Outcome::default() },
        }
    }
}
