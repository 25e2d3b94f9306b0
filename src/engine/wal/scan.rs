//! Phase one of a replay: reads every block of a log, finds its end, tells torn from rotten.
//!
//! The rule. Let `s` be the number of the first block that should stand somewhere and does not.
//! - If a valid later block says `durable_seq ≥ s`, or one beyond `s + WINDOW_MAX` is valid, then `s` was
//!   on disk once: **rot**. Rot that concerns only entries that tables hold already is logged and passed
//!   over; other rot refuses the log, naming what was lost.
//! - Otherwise `s` was in flight and never acknowledged: **torn** (or simply the end). It and the later
//!   blocks of the same window are cut; the caller fixes the end in the manifest.

use std::collections::BTreeMap;
use std::ops::Range;

use super::ahead::{LOOK_BYTES, SegmentRead};
use super::format::{
    BLOCK_HEADER_BYTES, BlockInfo, RecordError, RecordInfo, Records, SEGMENT_HEADER_BYTES, SegmentHeader,
    parse_segment_name, segment_path,
};
use super::plan::{Place, RunBuilder};
use super::{WINDOW_MAX, WalError};
use crate::base::{BlockSeq, Bug, EntryIndex, LogId, PAGE_SIZE, TabletId, planted};
use crate::disk::Disk;
use crate::env::Env;

/// Identities that an error names; the rest is counted.
const LOST_NAMED_MAX: usize = 8;

/// A segment found on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentFile {
    /// Number in its log.
    pub number: u64,
    /// Path below the data directory.
    pub path: String,
    /// Size.
    pub bytes: u64,
}

/// A tail that was cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The segment.
    pub path: String,
    /// Where the first cut block stands.
    pub offset: u64,
}

/// What a log holds.
#[derive(Clone, Debug)]
pub struct LogScan {
    /// Which log.
    pub log: LogId,
    /// Its segments.
    pub segments: Vec<SegmentFile>,
    /// Its last block.
    pub end: BlockSeq,
    /// Where its valid blocks stand: place in `segments`, offset.
    pub blocks: Vec<(u32, u32)>,
    /// Its entries.
    pub runs: RunBuilder,
    /// A tail that was cut, if one was.
    pub torn: Option<TornTail>,
    /// Bytes read.
    pub bytes: u64,
}

/// The segments of every log on disk.
pub async fn list_logs<E: Env>(env: &E) -> Result<BTreeMap<LogId, Vec<SegmentFile>>, WalError> {
    let mut logs: BTreeMap<LogId, Vec<SegmentFile>> = BTreeMap::new();
    for entry in env.disk().list("wal").await? {
        let Some((log, number)) = parse_segment_name(&entry.name) else { continue };
        let file = SegmentFile { number, path: segment_path(log, number), bytes: entry.bytes };
        logs.entry(log).or_default().push(file);
    }
    for segments in logs.values_mut() {
        segments.sort_by_key(|segment| segment.number);
    }
    Ok(logs)
}

/// Removes the segments of a log that nobody needs.
pub async fn remove_log<E: Env>(env: &E, segments: &[SegmentFile]) -> Result<(), WalError> {
    for segment in segments {
        match env.disk().remove(&segment.path).await {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(env.disk().sync_dir("wal").await?)
}

/// The identity of a record, as phase one keeps it.
#[derive(Clone, Copy, Debug)]
struct Identity {
    tablet: TabletId,
    ordinal: u32,
    index: EntryIndex,
    term: u64,
}

/// A block header found on disk, with what its records say.
#[derive(Clone, Debug)]
struct Found {
    segment: u32,
    offset: u32,
    info: BlockInfo,
    is_intact: bool,
    records: Vec<Identity>,
    /// Whether `records` is all of them, or the damage hides some.
    knows_all: bool,
}

impl Found {
    /// Where the next block could stand.
    fn end(&self) -> u64 {
        u64::from(self.offset) + self.info.padded_len() as u64
    }
}

/// The nonce by which the blocks of a segment are known.
fn nonce_of(bytes: &[u8], header: Option<SegmentHeader>, log: LogId, before: Option<u64>) -> Option<u64> {
    let own = header.filter(|header| header.log == log).map(|header| header.nonce);
    let first = || bytes.get(SEGMENT_HEADER_BYTES..).and_then(BlockInfo::decode);
    own.or(before).or_else(|| first().filter(|info| info.log == log).map(|info| info.nonce))
}

/// Finds the blocks of one segment: those that fit (log, segment, nonce, header crc), whatever their
/// payload. A damaged segment may not tell its nonce; then any will do.
struct SegmentWalk<'a> {
    bytes: &'a [u8],
    log: LogId,
    nonce: Option<u64>,
    number: u64,
    place: u32,
    path: &'a str,
    offset: usize,
    /// Where the last header stands that is damaged itself: of its block nothing is known.
    broken: Option<u32>,
}

impl SegmentWalk<'_> {
    /// Walks over `len` bytes more, and to the end of a block. Whether there are more.
    fn go_on(&mut self, len: usize, found: &mut Vec<Found>) -> Result<bool, WalError> {
        let (bytes, log, number) = (self.bytes, self.log, self.number);
        let until = self.offset.saturating_add(len);
        while self.offset < until && self.offset + PAGE_SIZE <= bytes.len() {
            let offset = self.offset;
            let info = BlockInfo::decode(&bytes[offset..]);
            if info.is_none()
                && self.nonce.is_some_and(|nonce| BlockInfo::was_here(&bytes[offset..], log, number, nonce))
            {
                self.broken = Some(offset as u32);
            }
            let is_ours = |info: &BlockInfo| {
                let is_of_it = info.segment == number && self.nonce.is_none_or(|nonce| nonce == info.nonce);
                info.log == log && (is_of_it || planted(Bug::StaleBlockTaken))
            };
            let Some(info) = info.filter(is_ours) else {
                self.offset += PAGE_SIZE;
                continue;
            };
            let is_intact = info.payload(&bytes[offset..]).is_some();
            let end = (offset + BLOCK_HEADER_BYTES + info.payload_len).min(bytes.len());
            let payload = &bytes[offset + BLOCK_HEADER_BYTES..end];
            let (records, at) = identities(payload, self.path)?;
            let knows_all = at == info.payload_len;
            let (segment, offset) = (self.place, offset as u32);
            found.push(Found { segment, offset, info, is_intact, records, knows_all });
            // The length of a damaged block is trusted: its header is whole.
            self.offset += info.padded_len();
        }
        Ok(self.offset + PAGE_SIZE <= bytes.len())
    }
}

/// Entries whose record headers are readable, and how far they reach.
fn identities(payload: &[u8], path: &str) -> Result<(Vec<Identity>, usize), WalError> {
    let mut records = Records::new(payload);
    let mut identities = Vec::new();
    for (ordinal, record) in (0u32..).zip(records.by_ref()) {
        match record {
            Ok(record) if record.info.kind.is_some_and(|kind| kind.is_entry()) => identities.push(Identity {
                tablet: record.info.tablet,
                ordinal,
                index: record.info.index,
                term: record.info.term,
            }),
            Ok(_) => {}
            Err(RecordError::UnknownKind(kind)) => {
                return Err(WalError::Newer { path: path.to_owned(), version: u32::from(kind) });
            }
            Err(RecordError::Damaged(_)) => break,
        }
    }
    Ok((identities, records.at()))
}

/// Scans `log`. `known_end`: where an earlier recovery cut it. `flushed`: what tables hold.
pub async fn scan_log<E: Env>(
    env: &E,
    log: LogId,
    segments: Vec<SegmentFile>,
    known_end: Option<BlockSeq>,
    flushed: &dyn Fn(TabletId) -> EntryIndex,
) -> Result<LogScan, WalError> {
    scan_log_behind(env, log, segments, known_end, flushed, &mut Err).await
}

/// Does the same, but goes on behind rot for which `rot` says `Ok`.
pub async fn scan_log_behind<E: Env>(
    env: &E,
    log: LogId,
    segments: Vec<SegmentFile>,
    known_end: Option<BlockSeq>,
    flushed: &dyn Fn(TabletId) -> EntryIndex,
    rot: &mut dyn FnMut(WalError) -> Result<(), WalError>,
) -> Result<LogScan, WalError> {
    let mut found = Vec::new();
    let mut bytes_read = 0;
    let (mut nonce, mut broken) = (None, None);
    let mut beheaded = Vec::new();
    let mut next = segments.first().map(|first| SegmentRead::new(env, first, Vec::new()));
    let mut spare = Vec::new();
    for (place, segment) in (0u32..).zip(&segments) {
        let Some(read) = next.take() else { break };
        let bytes = read.land().await?;
        let later = segments.get(place as usize + 1);
        next = later.map(|later| SegmentRead::new(env, later, std::mem::take(&mut spare)));
        bytes_read += bytes.len() as u64;
        let header = SegmentHeader::decode(&bytes)
            .map_err(|version| WalError::Newer { path: segment.path.clone(), version })?;
        nonce = nonce_of(&bytes, header, log, nonce);
        let mut walk = SegmentWalk {
            bytes: &bytes,
            log,
            nonce,
            number: segment.number,
            place,
            path: &segment.path,
            offset: SEGMENT_HEADER_BYTES,
            broken: None,
        };
        while walk.go_on(LOOK_BYTES, &mut found)? {
            if let Some(next) = &mut next {
                next.go_on(env).await;
            }
        }
        broken = walk.broken.map(|offset| (place, offset)).or(broken);
        let first = bytes.get(SEGMENT_HEADER_BYTES..).unwrap_or_default();
        let was_first = |nonce| BlockInfo::was_here(first, log, segment.number, nonce);
        if BlockInfo::decode(first).is_none() && nonce.is_some_and(was_first) {
            beheaded.push(place);
        }
        spare = bytes;
        env.yield_now().await;
    }
    // The first segment is there until a block behind it is durable.
    let is_headless = found.is_empty() && segments.first().is_some_and(|segment| segment.number > 0);
    if is_headless && known_end.is_none() {
        rot(WalError::Missing(log))?;
    }
    if let Some(end) = known_end {
        found.retain(|block| block.info.seq <= end);
    }
    let scan = LogScan {
        log,
        end: before_first(&segments, &found, &beheaded),
        segments,
        blocks: Vec::new(),
        runs: RunBuilder::default(),
        torn: None,
        bytes: bytes_read,
    };
    let mut scan = judge(scan, &found, known_end, flushed, rot)?;
    // An earlier start has cut the log where its end is known.
    if let Some((place, offset)) = broken.filter(|_| known_end.is_none() && scan.torn.is_none())
        && scan.blocks.last().is_none_or(|last| (place, offset) > *last)
    {
        scan.torn = Some(torn_at(&scan, place, offset));
    }
    Ok(scan)
}

/// Notes that what stands at a place, and behind it, is no part of the log.
fn torn_at(scan: &LogScan, segment: u32, offset: u32) -> TornTail {
    let path = scan.segments[segment as usize].path.clone();
    tracing::warn!(file = path, offset, "cut a torn tail: its writes were never acknowledged");
    TornTail { path, offset: u64::from(offset) }
}

/// Decides what of `found` counts, in a scan that has come to the block before the first. Pure.
fn judge(
    mut scan: LogScan,
    found: &[Found],
    known_end: Option<BlockSeq>,
    flushed: &dyn Fn(TabletId) -> EntryIndex,
    passes: &mut dyn FnMut(WalError) -> Result<(), WalError>,
) -> Result<LogScan, WalError> {
    let valid: Vec<usize> = (0..found.len()).filter(|&at| found[at].is_intact).collect();
    let last_valid = valid.last().map(|&at| found[at].info);
    let mut before: Option<usize> = None;
    for &at in &valid {
        let info = found[at].info;
        let follows = before.is_none_or(|b| info.prev_crc == found[b].info.crc);
        let is_next = (info.seq == scan.end.next() && follows) || planted(Bug::StaleBlockTaken);
        if !is_next {
            // A hole: blocks from `expected` to the one before this are missing or damaged.
            let expected = scan.end.next();
            let last = last_valid.map_or(info, |last| last);
            let was_durable = known_end.is_some()
                || last.durable_seq >= expected
                || last.seq.0 > expected.0 + WINDOW_MAX as u64;
            let was_durable = was_durable && !planted(Bug::RotTakenForTorn);
            if planted(Bug::HolePassedOver) {
                scan.end = BlockSeq(info.seq.0 - 1);
            } else if !was_durable || info.seq <= scan.end {
                break;
            }
            if !planted(Bug::HolePassedOver) {
                pass_over(&scan, found, before, Some(at), expected..info.seq, flushed)
                    .or_else(&mut *passes)?;
            }
        }
        let block = &found[at];
        scan.blocks.push((block.segment, block.offset));
        scan.end = info.seq;
        for record in &block.records {
            let place = Place { log: scan.log, block: info.seq, ordinal: record.ordinal };
            scan.runs.add(record.tablet, place, record.index, record.index, record.term);
        }
        before = Some(at);
    }
    if let Some(end) = known_end.filter(|end| scan.end < *end) {
        // What stood at its end is missing or damaged.
        let expected = scan.end.next();
        pass_over(&scan, found, before, None, expected..end.next(), flushed).or_else(&mut *passes)?;
        scan.end = end;
    } else if let Some(cut) = found.get(before.map_or(0, |before| before + 1)) {
        scan.torn = Some(torn_at(&scan, cut.segment, cut.offset));
    }
    Ok(scan)
}

/// The block before the first that should be there. Freed segments are gone from the front, so the first
/// block of the first segment says where the log begins now. If the first that is found is not the first of
/// its segment, at least one is missing. Segments without any block are passed over, since one whose making
/// failed may have been left: should all blocks of one be lost, the density of entry indexes shows it, but not where
/// no later entries of their tablets follow. Of one with a single block, the header of that is where damage is most
/// likely to do so: those are `beheaded`, and no failure leaves such.
fn before_first(segments: &[SegmentFile], found: &[Found], beheaded: &[u32]) -> BlockSeq {
    if segments.first().is_none_or(|segment| segment.number == 0) {
        return BlockSeq::ZERO;
    }
    found.first().map_or(BlockSeq::ZERO, |block| {
        let is_at_start = block.offset as usize == SEGMENT_HEADER_BYTES
            && beheaded.iter().all(|segment| *segment >= block.segment);
        BlockSeq(block.info.seq.0.saturating_sub(if is_at_start { 1 } else { 2 }))
    })
}

/// Where blocks probably stood of which nothing is left, between those found at `before` and `next`.
fn missing_place(
    scan: &LogScan,
    found: &[Found],
    before: Option<usize>,
    next: Option<usize>,
) -> (String, u64) {
    let segments = &scan.segments;
    let first = before.map_or(0, |before| found[before].segment as usize + 1);
    let end = next.map_or(segments.len(), |next| found[next].segment as usize);
    if first < end {
        // A whole segment without a block.
        return (segments[first].path.clone(), SEGMENT_HEADER_BYTES as u64);
    }
    match (before, next) {
        (_, Some(next)) if found[next].offset as usize > SEGMENT_HEADER_BYTES || before.is_none() => {
            (segments[found[next].segment as usize].path.clone(), u64::from(found[next].offset))
        }
        (Some(before), _) => (segments[found[before].segment as usize].path.clone(), found[before].end()),
        (None, _) => (segment_path(scan.log, 0), 0),
    }
}

/// The end of the last good block: what is lost stood behind it, maybe in the next file.
fn behind(scan: &LogScan, found: &[Found], before: Option<usize>) -> String {
    before.map_or_else(String::new, |before| {
        let path = &scan.segments[found[before].segment as usize].path;
        format!(", behind byte {} of {path}", found[before].end())
    })
}

/// Accepts a hole that was durable once, if tables hold everything that was in it: the blocks `hole`, between those
/// found at `before` and `next`, of which the log may have none.
fn pass_over(
    scan: &LogScan,
    found: &[Found],
    before: Option<usize>,
    next: Option<usize>,
    hole: Range<BlockSeq>,
    flushed: &dyn Fn(TabletId) -> EntryIndex,
) -> Result<(), WalError> {
    let damaged = &found[before.map_or(0, |b| b + 1)..next.unwrap_or(found.len())];
    let (path, offset) = match damaged {
        [] => missing_place(scan, found, before, next),
        [first, ..] => (scan.segments[first.segment as usize].path.clone(), u64::from(first.offset)),
    };
    // One that stands here and has no number of the hole stands for none that is missing.
    let is_known = |block: &&Found| block.knows_all && hole.contains(&block.info.seq);
    let known = damaged.iter().filter(is_known).count() as u64;
    let missing: Vec<Identity> = damaged
        .iter()
        .flat_map(|block| &block.records)
        .filter(|record| record.index > flushed(record.tablet))
        .copied()
        .collect();
    let Some(hidden) = (hole.end.0 - hole.start.0).checked_sub(known) else {
        let lost = format!("blocks {} to {}, of which too many stand here", hole.start, hole.end);
        return Err(WalError::Rot { path, offset, lost });
    };
    if missing.is_empty() && hidden == 0 {
        tracing::warn!(file = path, offset, "damaged, but tables hold all that was written there");
        return Ok(());
    }
    let mut lost: Vec<String> = missing
        .iter()
        .take(LOST_NAMED_MAX)
        .map(|record| format!("entry {} of tablet {}", record.index, record.tablet))
        .collect();
    if missing.len() > LOST_NAMED_MAX {
        lost.push(format!("{} more entries", missing.len() - LOST_NAMED_MAX));
    }
    if hidden > 0 {
        // Where they stood is only known by their neighbours, which may be in another file.
        let behind = behind(scan, found, before);
        lost.push(format!("what {hidden} unreadable block(s) from number {} held{behind}", hole.start));
    }
    Err(WalError::Rot { path, offset, lost: lost.join(", ") })
}

/// One block as a tool shows it.
#[derive(Clone, Debug)]
pub struct InspectedBlock {
    /// Where it stands in the file.
    pub offset: u64,
    /// Its header.
    pub info: BlockInfo,
    /// Whether its payload fits its checksum.
    pub is_intact: bool,
    /// Its records, as far as readable: identity, and whether the body is intact.
    pub records: Vec<(RecordInfo, bool)>,
}

/// All that stands in one segment file, for tools.
pub fn inspect_segment(bytes: &[u8]) -> Result<(SegmentHeader, Vec<InspectedBlock>), String> {
    let header = match SegmentHeader::decode(bytes) {
        Ok(Some(header)) => header,
        Ok(None) => return Err("no segment header stands at its start".to_owned()),
        Err(version) => return Err(format!("format version {version} is newer than this build reads")),
    };
    let mut found = Vec::new();
    let (log, nonce, number) = (header.log, Some(header.nonce), header.segment);
    let (place, path, offset) = (0, "segment", SEGMENT_HEADER_BYTES);
    let mut walk = SegmentWalk { bytes, log, nonce, number, place, path, offset, broken: None };
    walk.go_on(usize::MAX, &mut found).map_err(|error| error.to_string())?;
    let blocks = found
        .into_iter()
        .map(|block| {
            let start = block.offset as usize + BLOCK_HEADER_BYTES;
            let end = (start + block.info.payload_len).min(bytes.len());
            let records = Records::new(&bytes[start..end])
                .map_while(Result::ok)
                .map(|record| (record.info, record.is_intact()))
                .collect();
            let offset = u64::from(block.offset);
            InspectedBlock { offset, info: block.info, is_intact: block.is_intact, records }
        })
        .collect();
    Ok((header, blocks))
}
