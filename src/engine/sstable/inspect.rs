//! Reads a whole table file for tools: every checksum, every order, every damaged place. Goes on behind
//! damage as long as anything can be made out.

use super::block::{Block, guess_len};
use super::block_builder::record_len;
use super::expiries::Sampler;
use super::partition::{self, Partition};
use super::reader::{Parts, check_footer, check_top};
use super::{BlockHandle, TableError, TableMeta};
use crate::base::{Codec, FileId, Lsn, OpKind, PAGE_SIZE, TableName};

/// What a table file holds.
#[derive(Debug)]
pub struct TableReport {
    /// Its facts; `None` if footer or top of the index are damaged.
    pub meta: Option<TableMeta>,
    /// Blocks: offset, length, records (`None` if damaged). In the order of the file.
    pub blocks: Vec<(u64, usize, Option<usize>)>,
    /// Every damaged place, in words.
    pub damage: Vec<String>,
}

/// A table that is being looked at.
struct Inspection<'a> {
    path: &'a str,
    bytes: &'a [u8],
    file: FileId,
    report: TableReport,
    tally: Tally,
}

/// What the records of all sound blocks add up to.
struct Tally {
    last: Option<(Vec<u8>, Lsn)>,
    first_key: Option<Vec<u8>>,
    entries: u64,
    tombstones: u64,
    expiring: u64,
    expiries: Sampler,
    lsns: (Lsn, Lsn),
    blocks: u64,
    plain_blocks: u64,
    raw_bytes: u64,
    stored_bytes: u64,
}

/// Reads a table given as bytes. What no sound index leads to it looks for page by page, for which it must
/// know the file's id: from the footer, or from a `path` that ends like a table's. `Err`: this is no table of
/// a version that this build knows.
pub fn inspect_table(path: &str, bytes: &[u8]) -> Result<TableReport, String> {
    if bytes.len() < 4 * PAGE_SIZE || !bytes.len().is_multiple_of(PAGE_SIZE) {
        return Err(format!(
            "{path}: {} bytes are no table: it is of whole pages, four or more",
            bytes.len()
        ));
    }
    let mut report = TableReport { meta: None, blocks: Vec::new(), damage: Vec::new() };
    let footer_page = &bytes[bytes.len() - PAGE_SIZE..];
    let footer = match check_footer(path, footer_page, bytes.len() as u64) {
        Ok(footer) => Some(footer),
        Err(error @ TableError::OtherVersion { .. }) => return Err(error.to_string()),
        Err(error) => {
            report.damage.push(error.to_string());
            None
        }
    };
    let named = TableName::parse(path.rsplit('/').next().unwrap_or_default()).map(|name| name.file);
    let known = footer.as_ref().map(|footer| FileId(footer.file.get()));
    if let (Some(named), Some(known)) = (named, known)
        && named != known
    {
        report.damage.push(format!("{path}: it is file {known} under another file's name"));
    }
    let Some(file) = known.or(named) else { return Ok(report) };
    // `check_footer` found it within the file.
    let top_offset = footer.as_ref().map(|footer| footer.top_offset.get() as usize);
    let parts = footer.as_ref().zip(top_offset).and_then(|(footer, start)| {
        check_top(path, footer, &bytes[start..bytes.len() - PAGE_SIZE])
            .map_err(|error| report.damage.push(error.to_string()))
            .ok()
    });
    let mut inspection = Inspection { path, bytes, file, report, tally: Tally::new() };
    match parts {
        Some(parts) => inspection.guided(parts),
        None => {
            let end = top_offset.unwrap_or(bytes.len() - PAGE_SIZE);
            inspection.walk(0, end, top_offset.is_some());
        }
    }
    inspection.report.blocks.sort_unstable_by_key(|(offset, ..)| *offset);
    Ok(inspection.report)
}

impl Inspection<'_> {
    fn bad(&mut self, what: &str) {
        self.report.damage.push(format!("{}: {what}", self.path));
    }

    fn slice(&self, handle: BlockHandle) -> &[u8] {
        &self.bytes[handle.offset as usize..][..handle.len]
    }

    /// Everything, as a sound top tells it.
    fn guided(&mut self, parts: Parts) {
        let Parts { meta, top } = parts;
        let end = (meta.shape.stored_bytes + meta.shape.partition_bytes) as usize;
        let partitions: Vec<_> = (0..top.len())
            .map(|number| {
                let handle = top.handle(number);
                let parsed = Partition::parse(self.file, handle.offset, self.slice(handle));
                if let Err((expected, found)) = &parsed {
                    let offset = handle.offset;
                    self.bad(&format!("partition at byte {offset}: expected {expected}, found {found}"));
                }
                parsed.ok()
            })
            .collect();
        let handles = (0..top.len()).map(|number| top.handle(number));
        let mut places: Vec<BlockHandle> = handles.collect();
        for partition in partitions.iter().flatten() {
            places.extend((0..partition.len()).map(|block| partition.handle(block)));
        }
        places.sort_unstable_by_key(|handle| handle.offset);
        let is_whole = partitions.iter().all(Option::is_some);
        let gaps = self.gaps(&places, end);
        if is_whole && !gaps.is_empty() {
            self.bad(&format!("bytes {} to {}: no partition says what this is", gaps[0].0, gaps[0].1));
        }
        let mut gaps = gaps.into_iter().peekable();
        for (number, partition) in partitions.iter().enumerate() {
            let Some(partition) = partition else { continue };
            // Blocks of damaged partitions before this one, so that all are seen in order.
            let start = partition.handle(0).offset as usize;
            while let Some((from, to)) = gaps.next_if(|(from, _)| *from < start) {
                self.walk(from, to, true);
            }
            self.partition(partition);
            if partition.cmp_separator(partition.len() - 1, top.separator(number)).is_ne() {
                let offset = top.handle(number).offset;
                self.bad(&format!("partition at byte {offset}: the index above has another separator"));
            }
        }
        for (from, to) in gaps {
            self.walk(from, to, true);
        }
        if is_whole && self.report.blocks.iter().all(|(_, _, records)| records.is_some()) {
            self.compare(&meta);
        }
        self.report.meta = Some(meta);
    }

    /// What `places`, in order, leave open up to `end`.
    fn gaps(&mut self, places: &[BlockHandle], end: usize) -> Vec<(usize, usize)> {
        let (mut gaps, mut last_end) = (Vec::new(), 0);
        for place in places {
            let start = place.offset as usize;
            if start > last_end {
                gaps.push((last_end, start));
            } else if start < last_end {
                self.bad(&format!("bytes {start} to {last_end} are said to be two parts"));
            }
            last_end = last_end.max(start + place.len);
        }
        if last_end < end {
            gaps.push((last_end, end));
        }
        gaps
    }

    /// The blocks of a sound partition.
    fn partition(&mut self, partition: &Partition) {
        for number in 0..partition.len() {
            let handle = partition.handle(number);
            let Some(block) = self.block(handle) else { continue };
            let last_key = block.entry(block.len() - 1).0;
            if partition.cmp_separator(number, last_key).is_lt() {
                self.bad(&format!("block at byte {}: beyond its separator", handle.offset));
            } else if number > 0 && partition.cmp_separator(number - 1, block.entry(0).0).is_gt() {
                self.bad(&format!("block at byte {}: before the separator in front of it", handle.offset));
            }
        }
    }

    /// Reads a block into report and tally.
    fn block(&mut self, handle: BlockHandle) -> Option<Block> {
        let offset = handle.offset;
        match Block::parse(self.file, offset, self.slice(handle)) {
            Ok(block) => {
                let wrong = self.tally.add(&block, handle.len);
                for record in wrong {
                    self.bad(&format!("block at byte {offset}: record {record} out of order"));
                }
                self.report.blocks.push((offset, handle.len, Some(block.len())));
                Some(block)
            }
            Err((expected, found)) => {
                self.bad(&format!("block at byte {offset}: expected {expected}, found {found}"));
                self.report.blocks.push((offset, handle.len, None));
                None
            }
        }
    }

    /// Looks for blocks and partitions from `start` to `end`, page by page where nothing better is known.
    /// With `is_exact` there is nothing else; otherwise the top of the index follows somewhere, and only
    /// pages between are damage.
    fn walk(&mut self, start: usize, end: usize, is_exact: bool) {
        let (mut at, mut sound_end) = (start, start);
        while at < end {
            let rest = &self.bytes[at..end];
            let place = |len| BlockHandle { offset: at as u64, len };
            let block = guess_len(rest, rest.len())
                .map(place)
                .filter(|handle| Block::parse(self.file, handle.offset, self.slice(*handle)).is_ok());
            let partition = partition::guess_len(rest, rest.len())
                .map(place)
                .filter(|handle| Partition::parse(self.file, handle.offset, self.slice(*handle)).is_ok());
            let Some(handle) = block.or(partition) else {
                at += PAGE_SIZE;
                continue;
            };
            self.report_gap(sound_end, at);
            if block.is_some() {
                self.block(handle);
            }
            at += handle.len;
            sound_end = at;
        }
        if is_exact {
            self.report_gap(sound_end, end);
        }
    }

    fn report_gap(&mut self, start: usize, end: usize) {
        if start < end {
            self.bad(&format!("bytes {start} to {end}: expected blocks, found none"));
            self.report.blocks.push((start as u64, end - start, None));
        }
    }

    /// The sum of the parts against what footer and top say of the whole.
    fn compare(&mut self, meta: &TableMeta) {
        let tally = std::mem::replace(&mut self.tally, Tally::new());
        let shape = &meta.shape;
        let mut facts = vec![
            ("entries", meta.entries, tally.entries),
            ("tombstones", meta.tombstones, tally.tombstones),
            ("entries with expiry", meta.expiring, tally.expiring),
            ("as smallest LSN", meta.min_lsn.0, tally.lsns.0.0),
            ("as largest LSN", meta.max_lsn.0, tally.lsns.1.0),
            ("blocks", shape.blocks, tally.blocks),
            ("blocks that are not compressed", shape.plain_blocks, tally.plain_blocks),
            ("bytes of payloads", shape.raw_bytes, tally.raw_bytes),
            ("bytes of blocks", shape.stored_bytes, tally.stored_bytes),
        ];
        facts.retain(|(_, said, found)| said != found);
        for (what, said, found) in facts {
            self.bad(&format!("footer says {said} {what}, blocks hold {found}"));
        }
        let expiries = tally.expiries.finish(meta.bytes);
        if expiries != meta.expiries {
            self.bad(&format!("footer says expiries {}, blocks hold {expiries}", meta.expiries));
        }
        let last_key = tally.last.as_ref().map(|(key, _)| key.as_slice());
        if tally.first_key.as_deref() != Some(&meta.smallest) || last_key != Some(&meta.largest) {
            self.bad("index has other key bounds than the blocks");
        }
    }
}

impl Tally {
    fn new() -> Tally {
        Tally {
            last: None,
            first_key: None,
            entries: 0,
            tombstones: 0,
            expiring: 0,
            expiries: Sampler::default(),
            lsns: (Lsn(u64::MAX), Lsn::ZERO),
            blocks: 0,
            plain_blocks: 0,
            raw_bytes: 0,
            stored_bytes: 0,
        }
    }

    /// Takes in a block that is stored in `len` bytes. The numbers of its records that are out of order.
    fn add(&mut self, block: &Block, len: usize) -> Vec<usize> {
        let mut wrong = Vec::new();
        for record in 0..block.len() {
            let (key, entry) = block.entry(record);
            let is_ordered = self.last.as_ref().is_none_or(|(last, lsn)| {
                last.as_slice() < key || (last.as_slice() == key && *lsn > entry.lsn)
            });
            if !is_ordered {
                wrong.push(record);
            }
            self.first_key.get_or_insert_with(|| key.to_vec());
            self.last = Some((key.to_vec(), entry.lsn));
            self.entries += 1;
            self.tombstones += u64::from(entry.kind == OpKind::Delete);
            self.expiring += u64::from(entry.expiry_ms != 0);
            self.expiries.add(record_len(key, &entry), entry.expiry_ms);
            self.lsns = (self.lsns.0.min(entry.lsn), self.lsns.1.max(entry.lsn));
        }
        self.blocks += 1;
        self.plain_blocks += u64::from(block.codec() == Codec::None);
        self.raw_bytes += block.raw_bytes() as u64;
        self.stored_bytes += len as u64;
        wrong
    }
}
