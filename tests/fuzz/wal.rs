//! The log: records and operations of a block's payload; whole logs as a start reads them.

use std::rc::Rc;

use atlaskv::base::{
    BlockSeq, EntryIndex, LogId, Op, OpDecodeError, OpIter, OpKind, PAGE_SIZE, TabletId, crc32c,
};
use atlaskv::engine::wal::format::{
    BLOCK_HEADER_BYTES, BlockInfo, NO_TABLET, RECORD_HEADER_BYTES, Record, RecordError, RecordInfo,
    RecordKind, Records, SegmentHeader, encode_record, segment_path,
};
use atlaskv::engine::wal::{
    LogReader, LogScan, ReplayPlan, SegmentFile, WalError, inspect_segment, scan_log,
};
use atlaskv::env::Env;
use atlaskv::env::sim::{SimEnv, SimWorld};
use fastrand::Rng;

use crate::allocator::measured;
use crate::driver::{Decoder, Outcome, letters};
use crate::keys;
use crate::mutate::{Number, Shape, number_at, numbers_from, set_number};

/// Body length, kind, flags, length of the TLV area, tablet, operations, term, index.
const RECORD: &[i8] = &[4, 1, 1, 2, 4, 4, 8, 8];
/// Version, flags, log, segment, sequence number, durable one, payload length, record count, previous crc.
const BLOCK: &[i8] = &[-4, 2, 2, 8, 8, 8, 8, -8, 4, 4, 4, -4, 8, 4];
/// Version, page size, log, segment, nonce.
const SEGMENT: &[i8] = &[-8, 4, 4, -16, 8, 8, -8, 8, 4];
const LISTED_MAX: usize = 12;

/// Data of one entry: operations of all kinds.
fn body(rng: &mut Rng, out: &mut Vec<u8>) -> u32 {
    let count = rng.usize(1..5);
    for _ in 0..count {
        let (key, value) = (keys::key(rng), keys::value(rng, 120));
        let (start, end) = keys::range(rng);
        let expiry_ms = if rng.u8(..4) == 0 { rng.u64(1..) } else { 0 };
        let op = match rng.u8(..6) {
            0 => Op { kind: OpKind::Delete, key: &key, value: b"", expiry_ms },
            1 => Op::range_delete(&start, if rng.bool() { &end } else { b"" }),
            _ => Op { kind: OpKind::Put, key: &key, value: &value, expiry_ms },
        };
        op.encode(out);
    }
    count as u32
}

fn push_record(out: &mut Vec<u8>, kind: RecordKind, tablet: TabletId, index: u64, ops: u32, body: &[u8]) {
    let info = RecordInfo { kind: Some(kind), tablet, term: 1, index: EntryIndex(index), ops };
    let at = out.len();
    out.resize(at + RECORD_HEADER_BYTES + body.len(), 0);
    encode_record(kind, &info, body, &mut out[at..]);
}

/// Makes the checksums of records fit, from the first one on as far as their lengths lead.
fn repair_records(payload: &mut [u8]) {
    let mut at = 0;
    while at + RECORD_HEADER_BYTES <= payload.len() {
        let tlv_len = if payload[at + 5] & 2 != 0 { number_at(payload, at + 6, 2) as usize } else { 0 };
        let len = number_at(payload, at, 4) as usize + tlv_len;
        let start = at + RECORD_HEADER_BYTES;
        if let Some(contents) = payload.get(start..start + len) {
            let crc = crc32c(contents);
            set_number(payload, at + 32, 4, u64::from(crc));
        }
        let crc = crc32c(&payload[at..at + 36]);
        set_number(payload, at + 36, 4, u64::from(crc));
        at = start + len;
    }
}

/// Numbers of records and of the operations in them.
fn numbers_of_records(payload: &[u8], base: usize, out: &mut Vec<Number>) {
    let mut at = 0;
    for _ in 0..LISTED_MAX {
        if at + RECORD_HEADER_BYTES > payload.len() {
            return;
        }
        numbers_from(base + at, RECORD, out);
        let end = at + RECORD_HEADER_BYTES + number_at(payload, at, 4) as usize;
        let mut op = at + RECORD_HEADER_BYTES;
        for _ in 0..4 {
            if op + 8 > end.min(payload.len()) {
                break;
            }
            numbers_from(base + op, &[1, 1, 2, 4], out);
            let expiry = if payload[op + 1] & 1 != 0 { 8 } else { 0 };
            op += 8 + expiry + (number_at(payload, op + 2, 2) + number_at(payload, op + 4, 4)) as usize;
        }
        at = end;
    }
}

/// The payload of a block.
pub struct LogRecords {
    again: Vec<u8>,
    body: Vec<u8>,
}

impl LogRecords {
    pub fn new() -> LogRecords {
        LogRecords { again: Vec::new(), body: Vec::new() }
    }

    /// Reads a body, and writes it again. Returns operations, and what is wrong with it.
    fn operations(&mut self, body: &[u8]) -> (usize, Option<OpDecodeError>) {
        let (found, largest) = measured(|| {
            let mut count = 0;
            for op in OpIter::new(body) {
                match op {
                    Ok(_) => count += 1,
                    Err(error) => return (count, Some(error)),
                }
            }
            (count, None)
        });
        assert_eq!(largest, 0, "operations made {largest} bytes be allocated");
        self.body.clear();
        OpIter::new(body).map_while(Result::ok).for_each(|op| op.encode(&mut self.body));
        let same = OpIter::new(&self.body).eq(OpIter::new(body).take_while(Result::is_ok));
        assert!(same, "operations came back as others");
        found
    }
}

impl Decoder for LogRecords {
    const NAME: &'static str = "wal-records";
    const EXECUTIONS: u64 = 60_000;
    const SHAPE: Shape = Shape { bytes_max: 4096, unit: 1 };

    fn generate(&mut self, rng: &mut Rng, out: &mut Vec<u8>) -> bool {
        for index in 0..rng.u64(1..5) {
            self.body.clear();
            let ops = body(rng, &mut self.body);
            push_record(out, RecordKind::Data, TabletId(rng.u32(..3)), index + 1, ops, &self.body);
        }
        if rng.u8(..4) == 0 {
            push_record(out, RecordKind::Seal, NO_TABLET, 0, 0, &[]);
        }
        true
    }

    fn numbers(&self, input: &[u8], out: &mut Vec<Number>) {
        numbers_of_records(input, 0, out);
    }

    fn repair(&mut self, input: &mut Vec<u8>, _rng: &mut Rng) {
        repair_records(input);
    }

    fn execute(&mut self, input: &[u8]) -> Outcome {
        let (mut kind, mut items) = (1, 0);
        self.again.clear();
        let mut records = Records::new(input);
        loop {
            let (record, largest) = measured(|| records.next());
            assert_eq!(largest, 0, "a record made {largest} bytes be allocated");
            let record = match record {
                None => break,
                Some(Ok(record)) => record,
                Some(Err(error)) => {
                    assert!(records.next().is_none(), "it goes on behind {error}");
                    let kind = if let RecordError::UnknownKind(_) = error { 3 } else { 2 };
                    return Outcome {
                        kind: kind << 16 | items as u64,
                        at: records.at(),
                        ..Outcome::default()
                    };
                }
            };
            items += 1 + self.record(&record, &mut kind);
        }
        assert_eq!(records.at(), input.len(), "all of it was read");
        assert!(items <= 1 + input.len() / 8, "{items} records and operations of {} bytes", input.len());
        // What is wrong with a record is in these bits.
        let is_accepted = kind & 0xFF00 == 0;
        Outcome { is_accepted, kind, at: input.len(), items }
    }
}

impl LogRecords {
    /// What is in a record. Returns its operations.
    fn record(&mut self, record: &Record<'_>, kind: &mut u64) -> usize {
        let mut count = 0;
        if !record.is_intact() {
            *kind |= 1 << 8;
        } else if record.info.kind == Some(RecordKind::Data) {
            let (ops, error) = self.operations(record.body);
            count = ops;
            *kind |= match error {
                None => 0,
                Some(OpDecodeError::Truncated(_)) => 1 << 9,
                Some(OpDecodeError::Invalid(_)) => 1 << 10,
            };
        }
        let Some(known) = record.info.kind else {
            *kind |= 1 << 11;
            return count;
        };
        *kind ^= (known as u64 - 1) << 20;
        if record.is_intact() && record.tlv.is_empty() {
            self.again.resize(RECORD_HEADER_BYTES + record.body.len(), 0);
            encode_record(known, &record.info, record.body, &mut self.again);
            let again = Records::new(&self.again).next();
            assert_eq!(again, Some(Ok(*record)), "it came back as another");
        }
        count
    }
}

/// A log of a few small segments.
pub struct Logs {
    world: SimWorld,
    env: SimEnv,
    runs: u32,
}

const LOG: LogId = LogId(7);
const NONCE: u64 = 0xA0C;
/// Pages of a segment.
const SEGMENT_PAGES: usize = 5;
const SEGMENT_BYTES: usize = SEGMENT_PAGES * PAGE_SIZE;
/// A world counts what it does, and takes very much for a loop without end.
const RUNS_MAX: u32 = 10_000;

impl Logs {
    pub fn new() -> Logs {
        let (world, env) = SimEnv::fresh(1);
        Logs { world, env, runs: 0 }
    }

    fn renew(&mut self) {
        self.runs += 1;
        if self.runs > RUNS_MAX {
            *self = Logs::new();
        }
    }
}

/// Segments as they are written, back to back; every one but the last is whole.
fn segments(rng: &mut Rng, out: &mut Vec<u8>) {
    let (mut seq, mut prev_crc) = (0, 0);
    let mut indexes = [0; 3];
    for segment in 0..rng.u64(1..3) {
        let start = out.len();
        out.resize(start + PAGE_SIZE, 0);
        let header = SegmentHeader { cluster: 0xC1, log: LOG, segment, created_ms: 9, nonce: NONCE };
        header.encode(&mut out[start..]);
        for _ in 0..rng.usize(1..SEGMENT_PAGES) {
            let (mut payload, mut record_count) = (Vec::new(), 0);
            for _ in 0..rng.usize(1..4) {
                let mut data = Vec::new();
                let ops = body(rng, &mut data);
                let tablet = rng.usize(..3);
                indexes[tablet] += 1;
                push_record(
                    &mut payload,
                    RecordKind::Data,
                    TabletId(tablet as u32),
                    indexes[tablet],
                    ops,
                    &data,
                );
                record_count += 1;
            }
            seq += 1;
            let info = BlockInfo {
                log: LOG,
                segment,
                nonce: NONCE,
                seq: BlockSeq(seq),
                durable_seq: BlockSeq(seq - 1),
                wall_ms: 9,
                payload_len: payload.len(),
                record_count,
                prev_crc,
                payload_crc: crc32c(&payload),
                crc: 0,
            };
            if out.len() + info.padded_len() > start + SEGMENT_BYTES {
                break;
            }
            let at = out.len();
            out.resize(at + info.padded_len(), 0);
            out[at + BLOCK_HEADER_BYTES..][..payload.len()].copy_from_slice(&payload);
            prev_crc = info.encode(&mut out[at..]);
        }
        out.resize(start + SEGMENT_BYTES, 0);
    }
}

/// Offsets at which a block's header, or that of a segment, seems to stand.
fn pages_with<'a>(input: &'a [u8], magic: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    (0..input.len()).step_by(PAGE_SIZE).filter(move |at| input[*at..].starts_with(magic))
}

/// Numbers of segments and all that is in them.
pub fn numbers_of_log(input: &[u8], out: &mut Vec<Number>) {
    pages_with(input, b"AKVWAL").for_each(|at| numbers_from(at, SEGMENT, out));
    for at in pages_with(input, b"AKVB") {
        numbers_from(at, BLOCK, out);
        let payload = at + BLOCK_HEADER_BYTES;
        let end = payload + number_at(input, at + 48, 4) as usize;
        numbers_of_records(&input[payload.min(input.len())..end.min(input.len())], payload, out);
    }
    out.retain(|number| number.at + number.width <= input.len());
}

/// Makes all checksums of segments fit, and most often those that blocks name of the ones before them.
pub fn repair_log(input: &mut [u8], rng: &mut Rng) {
    seal_log(input, rng.u8(..4) > 0);
}

/// Makes all checksums of segments fit; `is_chained`: those too that blocks name of the ones before them.
pub fn seal_log(input: &mut [u8], is_chained: bool) {
    let heads: Vec<usize> = pages_with(input, b"AKVWAL").collect();
    for start in heads {
        if let Some(head) = input.get(start..start + 68) {
            let crc = crc32c(head);
            set_number(input, start + 68, 4, u64::from(crc));
        }
    }
    let mut prev_crc = None;
    let found: Vec<usize> = pages_with(input, b"AKVB").collect();
    for at in found {
        if input.len() < at + BLOCK_HEADER_BYTES {
            return;
        }
        let payload = at + BLOCK_HEADER_BYTES;
        let end = payload + number_at(input, at + 48, 4) as usize;
        if let Some(payload) = input.get_mut(payload..end) {
            repair_records(payload);
            let crc = crc32c(payload);
            set_number(input, at + 60, 4, u64::from(crc));
        }
        if let Some(prev_crc) = prev_crc.filter(|_| is_chained) {
            set_number(input, at + 56, 4, prev_crc);
        }
        let crc = u64::from(crc32c(&input[at..at + 76]));
        set_number(input, at + 76, 4, crc);
        prev_crc = Some(crc);
    }
}

impl Decoder for Logs {
    const NAME: &'static str = "wal-log";
    const EXECUTIONS: u64 = 6_000;
    const SHAPE: Shape = Shape { bytes_max: 3 * SEGMENT_BYTES, unit: PAGE_SIZE };

    fn generate(&mut self, rng: &mut Rng, out: &mut Vec<u8>) -> bool {
        segments(rng, out);
        true
    }

    fn numbers(&self, input: &[u8], out: &mut Vec<Number>) {
        numbers_of_log(input, out);
    }

    fn repair(&mut self, input: &mut Vec<u8>, rng: &mut Rng) {
        repair_log(input, rng);
    }

    fn execute(&mut self, input: &[u8]) -> Outcome {
        self.renew();
        let files: Vec<&[u8]> = input.chunks(SEGMENT_BYTES).collect();
        let mut kind = 0;
        for bytes in &files {
            kind = kind << 4 | inspect(bytes);
        }
        let names: Vec<SegmentFile> = (0..)
            .zip(&files)
            .map(|(number, bytes)| {
                let path = segment_path(LOG, number);
                self.env.disk().poke(&path, bytes.to_vec());
                SegmentFile { number, path, bytes: bytes.len() as u64 }
            })
            .collect();
        // What an earlier start knows of the log, if one does.
        let known = number_at(input, 48, 1);
        let known_end = Some(BlockSeq(known)).filter(|_| known % 3 == 2);
        let flushed = |tablet: TabletId| EntryIndex(u64::from(tablet.0) % 2 * known);
        let scanned = self.world.run(scan_log(&self.env, LOG, names, known_end, &flushed));
        let outcome = match scanned {
            Ok(scan) => self.world.run(replay(&self.env, scan, flushed, input.len())),
            Err(error) => refused(1, &error),
        };
        Outcome { kind: outcome.kind ^ kind << 40, ..outcome }
    }
}

/// What a tool shows of a segment, as a small number.
fn inspect(bytes: &[u8]) -> u64 {
    let (shown, largest) = measured(|| inspect_segment(bytes));
    assert!(largest <= 4 * bytes.len() + 1024, "{} bytes made {largest} be allocated", bytes.len());
    match shown {
        Ok((header, blocks)) => {
            let mut page = vec![0; PAGE_SIZE];
            header.encode(&mut page);
            assert_eq!(SegmentHeader::decode(&page), Ok(Some(header)), "it came back as another");
            let records: usize = blocks.iter().map(|block| block.records.len()).sum();
            assert!(records <= bytes.len() / RECORD_HEADER_BYTES, "{records} records");
            assert!(blocks.len() <= bytes.len() / PAGE_SIZE, "{} blocks", blocks.len());
            for block in &blocks {
                let mut head = [0; BLOCK_HEADER_BYTES];
                block.info.encode(&mut head);
                // Flags are not kept: they are 0, and what is not may have another checksum.
                let again = BlockInfo::decode(&head).map(|info| BlockInfo { crc: block.info.crc, ..info });
                assert_eq!(again, Some(block.info), "it came back as another");
            }
            1 + blocks.len() as u64
        }
        Err(_) => 0,
    }
}

fn refused(stage: u64, error: &WalError) -> Outcome {
    let kind = match error {
        WalError::Rot { lost, .. } => letters(lost),
        WalError::Gap { .. } => 2,
        WalError::Newer { .. } => 3,
        WalError::Missing(_) => 4,
        other => panic!("{other}: the disk is sound"),
    };
    assert!(error.to_string().len() < 2000, "{error}");
    Outcome { kind: kind ^ stage << 32, ..Outcome::default() }
}

/// Reads what counts of a log, as an engine does that has `flushed`.
async fn replay(
    env: &SimEnv,
    scan: LogScan,
    flushed: impl Fn(TabletId) -> EntryIndex,
    bytes: usize,
) -> Outcome {
    let plan = match ReplayPlan::merge([&scan.runs], &flushed, |_, _| true) {
        Ok(plan) => plan,
        Err(error) => return refused(2, &error),
    };
    assert!(scan.blocks.len() <= bytes / PAGE_SIZE, "{} blocks", scan.blocks.len());
    let is_torn = scan.torn.is_some();
    let end = scan.end.0;
    let mut reader = LogReader::new(env, Rc::new(scan));
    let mut items = 0;
    loop {
        let block = reader.next_block(&plan, |_, index, body| {
            assert!(index <= EntryIndex::MAX, "entry {index} has no versions");
            for op in OpIter::new(body) {
                op.map_err(|error| error.to_string())?;
                items += 1;
            }
            Ok(())
        });
        match block.await {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) => return refused(3, &error),
        }
    }
    assert!(items <= bytes / 8, "{items} operations of {bytes} bytes");
    Outcome { is_accepted: true, kind: 4 << 32 | u64::from(is_torn), at: end as usize, items }
}
