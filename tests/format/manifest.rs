//! The manifest's golden files, version 1: `CURRENT`, and a file with every kind of change.
//!
//! They are made anew only with a new format version, and then beside the old ones:
//! `ATLASKV_GOLDEN=write cargo test --test format what_is_written`, then the tests without it.

use std::path::PathBuf;

use atlaskv::base::{BlockSeq, EntryIndex, FileId, LogId, Lsn, TabletId};
use atlaskv::disk::sim::SimDisk;
use atlaskv::engine::manifest::format::{
    BLOCK_HEADER_BYTES, CURRENT, Current, FileKey, block_len, seal_block,
};
use atlaskv::engine::manifest::{
    Change, Clip, Edit, ItemState, LAST, State, TableRef, UPPER, inspect_current, inspect_file, load,
};
use atlaskv::engine::ranges::{RangeDelete, RangeDeletes};
use atlaskv::env::sim::{SimEnv, SimWorld};
use atlaskv::slot::SlotRange;

const KEY: FileKey = FileKey { generation: 7, shard: 0, part: 2 };

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// The file of that name, which must be equal to `bytes` unless it is to be written.
fn golden(name: &str, bytes: &[u8]) -> Vec<u8> {
    if std::env::var("ATLASKV_GOLDEN").is_ok_and(|value| value == "write") {
        std::fs::write(path(name), bytes).unwrap();
    }
    std::fs::read(path(name)).unwrap()
}

fn table(file: u64, clip: Option<Clip>) -> TableRef {
    TableRef {
        file: FileId::new(LogId(3), file as u32),
        level: UPPER,
        bytes: 1_048_576 + file,
        entries: 1000,
        tombstones: 17,
        expiring: 5,
        min_lsn: Lsn::new(EntryIndex(file * 10), 1),
        max_lsn: Lsn::new(EntryIndex(file * 10 + 9), 65_534),
        cleared: Lsn::new(EntryIndex(file * 10), 65_535),
        smallest: b"apple".as_slice().into(),
        largest: vec![0xFF; 300].into(),
        clip,
    }
}

fn range(start: &[u8], end: &[u8], index: u64) -> RangeDelete {
    RangeDelete::new(start, end, Lsn::new(EntryIndex(index), 3)).unwrap()
}

/// Every kind of change, every optional part present and absent.
fn edits() -> Vec<Edit> {
    let mut state = State::create(0x0123_4567_89AB_CDEF_0011_2233_4455_6677, 0xFEED_F00D, 2);
    (state.generation, state.shards, state.store.next_log) = (7, 1, 12);
    for (log, end) in [(10, Some(BlockSeq(4711))), (11, None)] {
        state.logs.insert(LogId(log), atlaskv::engine::manifest::LogMeta { end });
    }
    for tablet in state.tablets.values_mut() {
        tablet.logs = vec![LogId(10), LogId(11)];
        (tablet.voters, tablet.term) = (vec![1, 2, 3], 8);
        (tablet.truncated, tablet.truncated_term) = (EntryIndex(5), 2);
    }
    state.pins.insert((FileId(77), 1));
    let (a, b) = (TabletId(0), TabletId(1));
    let clip = Clip {
        slots: SlotRange::new(100, 200).unwrap(),
        smallest: b"b".as_slice().into(),
        end: b"c".as_slice().into(),
    };
    let add = |tablet, file, clip| Change::AddTable { tablet, position: 0, table: table(file, clip) };
    let file = |file: u32| FileId::new(LogId(3), file);
    let mut back = state.tablets[&b].clone();
    (back.id, back.slots, back.epoch, back.shard) = (TabletId(2), SlotRange::new(4096, 8191).unwrap(), 9, 0);
    (back.flushed, back.ranges) = (EntryIndex(19), RangeDeletes::default().with(&range(b"x", b"y", 19)));
    back.tables = vec![table(8, None)];
    vec![
        Edit { changes: state.snapshot() },
        Edit {
            changes: vec![
                add(a, 1, None),
                add(b, 2, Some(clip)),
                Change::Flushed { tablet: a, index: EntryIndex(19), term: 8 },
                Change::Flushed { tablet: b, index: EntryIndex(29), term: 8 },
                Change::LogsDone { tablet: a, oldest: LogId(11) },
                Change::AddRange { tablet: a, range: range(b"pear", b"plum", 17) },
                Change::AddRange { tablet: a, range: range(b"", b"", 12) },
                Change::AddRange { tablet: b, range: range(b"z", b"", 29) },
            ],
        },
        Edit { changes: vec![add(a, 3, None), add(a, 4, None), add(a, 5, None)] },
        Edit {
            changes: vec![
                Change::ReplaceTables { tablet: a, files: vec![file(5)], table: None },
                Change::ReplaceTables {
                    tablet: a,
                    files: vec![file(4), file(3)],
                    table: Some(TableRef { file: file(6), ..table(4, None) }),
                },
                Change::RemoveTables { tablet: a, files: vec![file(1)] },
                Change::Pin { file: file(1), holder: 9 },
                Change::Unpin { file: FileId(77), holder: 1 },
                Change::Log { log: LogId(10), end: Some(BlockSeq(4711)) },
                Change::RemoveRanges { tablet: b, lsns: vec![Lsn::new(EntryIndex(29), 3)] },
            ],
        },
        Edit {
            changes: vec![Change::Descend {
                tablet: a,
                removed: vec![],
                advanced: vec![file(6)],
                from: b"d".as_slice().into(),
                added: vec![TableRef {
                    file: file(7),
                    level: LAST,
                    largest: b"c".as_slice().into(),
                    ..table(4, None)
                }],
            }],
        },
        Edit { changes: vec![Change::SplitTablet { tablet: a, at: 4096, into: TabletId(2) }] },
        // It has gone, and has come back.
        Edit { changes: [vec![Change::RemoveTablet { tablet: TabletId(2) }], back.snapshot()].concat() },
    ]
}

fn file_of(edits: &[Edit]) -> Vec<u8> {
    let (mut bytes, mut crc) = (Vec::new(), 0);
    for (seq, edit) in (1..).zip(edits) {
        let payload = edit.encode();
        let mut block = vec![0; block_len(payload.len())];
        block[BLOCK_HEADER_BYTES..BLOCK_HEADER_BYTES + payload.len()].copy_from_slice(&payload);
        crc = seal_block(KEY, seq, crc, payload.len(), &mut block);
        bytes.extend_from_slice(&block);
    }
    bytes
}

fn current() -> Vec<u8> {
    let mut page = vec![0xAA; 4096];
    Current { generation: 7, shards: 1 }.encode(&mut page);
    page
}

fn name() -> String {
    KEY.path()["manifest/".len()..].to_owned()
}

#[test]
fn what_is_written_is_what_was_always_written() {
    let bytes = file_of(&edits());
    assert!(golden("v1.manifest", &bytes) == bytes, "the manifest's bytes have changed");
    assert!(golden("v1.CURRENT", &current()) == current(), "CURRENT's bytes have changed");
}

#[test]
fn what_was_written_is_read() {
    let bytes = std::fs::read(path("v1.manifest")).unwrap();
    let inspection = inspect_file(&name(), &bytes);
    assert_eq!(inspection.verdict, Ok(()));
    assert!(inspection.items.iter().all(|item| item.state == ItemState::Good));
    let read: Vec<Edit> = inspection.items.into_iter().filter_map(|item| item.edit).collect();
    assert_eq!(read, edits());
    let page = std::fs::read(path("v1.CURRENT")).unwrap();
    assert_eq!(inspect_current(&page), Ok(Current { generation: 7, shards: 1 }));

    let world = SimWorld::new(1);
    let env = SimEnv::new(&world, SimDisk::new(&world));
    world.run(async {
        atlaskv::disk::Disk::create_dir(atlaskv::env::Env::disk(&env), "manifest").await.unwrap();
    });
    atlaskv::env::Env::disk(&env).poke(CURRENT, page);
    atlaskv::env::Env::disk(&env).poke(&KEY.path(), bytes);
    let state = world.run(load(&env)).unwrap().unwrap();
    let files = |tablet| state.tables(TabletId(tablet)).iter().map(|t| t.file.0 & 0xFF).collect::<Vec<_>>();
    assert_eq!((files(0), files(1), files(2)), (vec![6, 7], vec![2], vec![8]));
    assert_eq!(state.tables(TabletId(1))[0].clip.as_ref().unwrap().slots.last(), 200);
    assert_eq!(state.flushed(TabletId(0)), EntryIndex(19));
    assert_eq!(state.pins.len(), 1);
    let ranges = |tablet| &state.tablets[&TabletId(tablet)].ranges;
    assert_eq!((ranges(0).fragments().len(), ranges(1).is_empty()), (3, true));
    assert_eq!((state.tablets[&TabletId(0)].slots.last(), ranges(2).fragments().len()), (4095, 1));
    assert_eq!(ranges(0).covering(b"peas"), Some(Lsn::new(EntryIndex(17), 3)));
    assert_eq!(state.tablets[&TabletId(0)].logs, [LogId(11)]);
}

/// Every single damaged byte of a whole file is found: the file is refused, or its last edit is cut.
#[test]
fn every_damaged_byte_is_found() {
    let whole = std::fs::read(path("v1.manifest")).unwrap();
    let edits = edits();
    let mut at = 0;
    for (number, edit) in edits.iter().enumerate() {
        let len = edit.encode().len();
        for byte in at..at + BLOCK_HEADER_BYTES + len {
            let mut bytes = whole.clone();
            bytes[byte] ^= 0x10;
            let inspection = inspect_file(&name(), &bytes);
            let good = inspection.items.iter().filter(|item| item.state == ItemState::Good).count();
            if number + 1 < edits.len() {
                assert!(inspection.verdict.is_err(), "byte {byte}");
            } else {
                assert_eq!((inspection.verdict, good), (Ok(()), edits.len() - 1), "byte {byte}");
            }
        }
        at += block_len(len);
    }
    assert_eq!(at, whole.len());
}
