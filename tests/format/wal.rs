//! The format of the write-ahead log against a golden file. A difference means that logs in the field can't be
//! read any more, unless the version was raised; then the old file stays and a new one is added, by
//! `ATLASKV_REGENERATE=1 cargo test --test format`.

use std::collections::BTreeMap;
use std::rc::Rc;

use atlaskv::base::{BlockSeq, EntryIndex, LogId, Op, OpIter, OpKind, PAGE_SIZE, TabletId, crc32c};
use atlaskv::disk::Disk;
use atlaskv::engine::wal::format::{
    BLOCK_HEADER_BYTES, BlockInfo, NO_TABLET, RECORD_HEADER_BYTES, RecordInfo, RecordKind, SegmentHeader,
    encode_record, segment_path,
};
use atlaskv::engine::wal::{LogReader, ReplayPlan, WalError, inspect_segment, list_logs, scan_log};
use atlaskv::env::Env;
use atlaskv::env::sim::SimEnv;

const GOLDEN: &[u8] = include_bytes!("../data/wal-v1.wal");
const GOLDEN_PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/wal-v1.wal");
const LOG: LogId = LogId(7);
const SEGMENT: u64 = 3;

/// Tablet, index, operations.
type Entry = (u32, u64, Vec<(OpKind, Vec<u8>, Vec<u8>, u64)>);

/// By block: entries of several tablets, an expiry, a delete, range deletes, an empty value, a block of
/// several pages.
fn blocks() -> Vec<Vec<Entry>> {
    let put = |key: &[u8], value: &[u8]| (OpKind::Put, key.to_vec(), value.to_vec(), 0);
    let large: Vec<u8> = (0..6000u32).map(|n| n as u8).collect();
    vec![
        vec![(1, 41, vec![put(b"a", b"first")]), (2, 1, vec![put(b"b", b""), put(b"c", b"third")])],
        vec![(1, 42, vec![(OpKind::Put, b"expires".to_vec(), b"soon".to_vec(), 1_900_000_000_000)])],
        vec![
            (2, 2, vec![put(b"large", &large)]),
            (1, 43, vec![(OpKind::Delete, b"a".to_vec(), Vec::new(), 0)]),
            (
                2,
                3,
                vec![
                    (OpKind::RangeDelete, b"b".to_vec(), b"c".to_vec(), 0),
                    (OpKind::RangeDelete, Vec::new(), Vec::new(), 0),
                ],
            ),
        ],
    ]
}

fn write() -> Vec<u8> {
    let header = SegmentHeader {
        cluster: 0xC1,
        log: LOG,
        segment: SEGMENT,
        created_ms: 1_750_000_000_000,
        nonce: 0xA0C,
    };
    let mut file = vec![0; PAGE_SIZE];
    header.encode(&mut file);
    let mut prev_crc = 0x1234_5678;
    let mut append = |seq: u64, payload: &[u8], record_count: u32| {
        let info = BlockInfo {
            log: LOG,
            segment: SEGMENT,
            nonce: 0xA0C,
            seq: BlockSeq(seq),
            durable_seq: BlockSeq(seq - 1),
            wall_ms: 1_750_000_000_000 + seq,
            payload_len: payload.len(),
            record_count,
            prev_crc,
            payload_crc: crc32c(payload),
            crc: 0,
        };
        let mut block = vec![0; info.padded_len()];
        block[BLOCK_HEADER_BYTES..BLOCK_HEADER_BYTES + payload.len()].copy_from_slice(payload);
        prev_crc = info.encode(&mut block);
        file.extend_from_slice(&block);
    };
    let mut seq = 100;
    for entries in blocks() {
        let mut payload = Vec::new();
        for (tablet, index, ops) in &entries {
            let mut body = Vec::new();
            for (kind, key, value, expiry_ms) in ops {
                Op { kind: *kind, key, value, expiry_ms: *expiry_ms }.encode(&mut body);
            }
            let info = RecordInfo {
                kind: Some(RecordKind::Data),
                tablet: TabletId(*tablet),
                term: 1,
                index: EntryIndex(*index),
                ops: ops.len() as u32,
            };
            let at = payload.len();
            payload.resize(at + RECORD_HEADER_BYTES + body.len(), 0);
            encode_record(RecordKind::Data, &info, &body, &mut payload[at..]);
        }
        append(seq, &payload, entries.len() as u32);
        seq += 1;
    }
    let seal =
        RecordInfo { kind: Some(RecordKind::Seal), tablet: NO_TABLET, term: 0, index: EntryIndex(0), ops: 0 };
    let mut payload = vec![0; RECORD_HEADER_BYTES];
    encode_record(RecordKind::Seal, &seal, &[], &mut payload);
    append(seq, &payload, 1);
    file
}

#[test]
fn logs_are_written_as_they_always_were() {
    let written = write();
    if std::env::var_os("ATLASKV_REGENERATE").is_some() {
        std::fs::write(GOLDEN_PATH, &written).unwrap();
        return;
    }
    let first = written.iter().zip(GOLDEN).position(|(a, b)| a != b);
    assert_eq!((written.len(), first), (GOLDEN.len(), None), "length, and the first byte that differs");
}

/// What a start makes of a segment with these bytes: tablet, index, operations.
fn replay(bytes: &[u8]) -> Result<Vec<Entry>, WalError> {
    let (world, env) = SimEnv::fresh(1);
    world.run(async {
        env.disk().create_dir("wal").await.unwrap();
        env.disk().poke(&segment_path(LOG, SEGMENT), bytes.to_vec());
        let segments = list_logs(&env).await?.remove(&LOG).expect("the segment has its name");
        let flushed: BTreeMap<_, _> = [(TabletId(1), EntryIndex(40)), (TabletId(2), EntryIndex(0))].into();
        let flushed = |tablet: TabletId| flushed[&tablet];
        let scan = scan_log(&env, LOG, segments, None, &flushed).await?;
        let plan = ReplayPlan::merge([&scan.runs], flushed, |_, _| true)?;
        let mut reader = LogReader::new(&env, Rc::new(scan));
        let mut entries = Vec::new();
        let mut take = |tablet: TabletId, index: EntryIndex, body: &[u8]| {
            let ops = OpIter::new(body).map(|op| op.unwrap());
            let ops = ops.map(|op| (op.kind, op.key.to_vec(), op.value.to_vec(), op.expiry_ms)).collect();
            entries.push((tablet.0, index.0, ops));
            Ok(())
        };
        while reader.next_block(&plan, &mut take).await?.is_some() {}
        Ok(entries)
    })
}

#[test]
fn logs_of_the_first_version_are_read() {
    assert_eq!(replay(GOLDEN).unwrap(), blocks().concat());
    let (header, blocks) = inspect_segment(GOLDEN).unwrap();
    assert_eq!((header.log, header.segment, header.cluster), (LOG, SEGMENT, 0xC1));
    assert!(blocks.iter().all(|block| block.is_intact));
    let seqs: Vec<_> = blocks.iter().map(|block| (block.info.seq.0, block.info.durable_seq.0)).collect();
    assert_eq!(seqs, [(100, 99), (101, 100), (102, 101), (103, 102)]);
}

#[test]
fn every_damaged_byte_of_an_entry_is_refused_with_its_place() {
    let (_, blocks) = inspect_segment(GOLDEN).unwrap();
    for block in &blocks[..3] {
        let start = block.offset as usize;
        for at in start..start + BLOCK_HEADER_BYTES + block.info.payload_len {
            let mut bytes = GOLDEN.to_vec();
            bytes[at] ^= 1 << (at % 8);
            match replay(&bytes) {
                Err(WalError::Rot { offset, path, .. }) => {
                    // Of a block whose header is gone it is only known what comes behind it.
                    let next = start + block.info.padded_len();
                    assert!([start as u64, next as u64].contains(&offset), "byte {at}: {offset}");
                    assert_eq!(path, segment_path(LOG, SEGMENT), "byte {at}");
                }
                other => panic!("byte {at}: {other:?}"),
            }
        }
    }
}

/// A client may choose the bytes of a value, and a torn write may lose the page in front of them.
#[test]
fn a_value_that_looks_like_a_block_is_none() {
    let mut forged = GOLDEN[PAGE_SIZE..2 * PAGE_SIZE].to_vec();
    let known = BlockInfo::decode(&forged).unwrap();
    let len = known.payload_len;
    for (nonce, is_taken) in [(known.nonce, true), (known.nonce + 1, false)] {
        let info = BlockInfo { seq: BlockSeq(104), durable_seq: BlockSeq(103), nonce, ..known };
        let crc = info.encode(&mut forged);
        assert_ne!(crc, known.crc);
        assert!(BlockInfo::decode(&forged).unwrap().payload(&forged).is_some_and(|body| body.len() == len));
        // Behind the end of the log, where a torn block may have left a page of its value.
        let bytes = [GOLDEN, &[0; PAGE_SIZE], &forged].concat();
        let (_, blocks) = inspect_segment(&bytes).unwrap();
        assert_eq!(blocks.len(), 4 + usize::from(is_taken));
    }
}
