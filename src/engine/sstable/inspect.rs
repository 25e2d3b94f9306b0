//! Reads a whole table file for tools: every checksum, every order, every damaged place. Goes on behind
//! damage as long as anything can be made out.

use super::block::{Block, guess_len, record_len};
use super::expiries::Sampler;
use super::format::Footer;
use super::index::BlockHandle;
use super::reader::{Parts, check_filter, check_footer, check_index};
use super::{TableError, TableMeta};
use crate::base::{FileId, Lsn, OpKind, PAGE_SIZE, TableName};

/// What a table file holds.
#[derive(Debug)]
pub struct TableReport {
    /// Its facts; `None` if footer or index are damaged.
    pub meta: Option<TableMeta>,
    /// Blocks: offset, length, records (`None` if damaged).
    pub blocks: Vec<(u64, usize, Option<usize>)>,
    /// Every damaged place, in words.
    pub damage: Vec<String>,
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
}

/// Reads a table given as bytes. Without a sound index it looks for blocks page by page, for which it must
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
        Err(error @ TableError::Newer { .. }) => return Err(error.to_string()),
        Err(error) => {
            report.damage.push(error.to_string());
            None
        }
    };
    let parts = footer.as_ref().and_then(|footer| read_parts(path, footer, bytes, &mut report));
    let named = file_of(path);
    let known = footer.as_ref().map(|footer| FileId(footer.file.get()));
    if let (Some(named), Some(known)) = (named, known)
        && named != known
    {
        report.damage.push(format!("{path}: it is file {known} under another file's name"));
    }
    let Some(file) = known.or(named) else { return Ok(report) };
    let blocks_end = footer.map_or(bytes.len() - PAGE_SIZE, |footer| footer.index_offset.get() as usize);
    let mut tally = Tally::new();
    match parts {
        Some(Parts { meta, index }) => {
            for number in 0..index.len() {
                let last_key = read_block(path, file, bytes, index.handle(number), &mut tally, &mut report);
                if last_key.is_some_and(|key| index.find(&key).is_none_or(|found| found > number)) {
                    let offset = index.handle(number).offset;
                    report.damage.push(format!("{path}: block at byte {offset}: beyond its separator"));
                }
            }
            if report.blocks.iter().all(|(_, _, records)| records.is_some()) {
                tally.compare(path, &meta, &mut report);
            }
            report.meta = Some(meta);
        }
        None => walk(path, file, &bytes[..blocks_end], footer.is_some(), &mut report),
    }
    Ok(report)
}

/// Index and filter, each as far as it is sound.
fn read_parts(path: &str, footer: &Footer, bytes: &[u8], report: &mut TableReport) -> Option<Parts> {
    // `check_footer` found these within the file.
    let (start, middle) = (footer.index_offset.get() as usize, footer.filter_offset.get() as usize);
    if let Err(error) = check_filter(path, footer, &bytes[middle..bytes.len() - PAGE_SIZE]) {
        report.damage.push(error.to_string());
    }
    check_index(path, footer, &bytes[start..middle], bytes.len() as u64)
        .map_err(|error| report.damage.push(error.to_string()))
        .ok()
}

/// The id in a path like `sst/0000000100000002.sst`.
fn file_of(path: &str) -> Option<FileId> {
    TableName::parse(path.rsplit('/').next()?).map(|name| name.file)
}

/// Reads a block into report and tally. Its last key, if it is sound.
fn read_block(
    path: &str,
    file: FileId,
    bytes: &[u8],
    handle: BlockHandle,
    tally: &mut Tally,
    report: &mut TableReport,
) -> Option<Vec<u8>> {
    let offset = handle.offset;
    match Block::parse(file, offset, bytes[offset as usize..][..handle.len].into()) {
        Ok(block) => {
            tally.add(path, offset, &block, report);
            report.blocks.push((offset, handle.len, Some(block.len())));
            Some(block.entry(block.len() - 1).0.to_vec())
        }
        Err((expected, found)) => {
            let damage = format!("{path}: block at byte {offset}: expected {expected}, found {found}");
            report.damage.push(damage);
            report.blocks.push((offset, handle.len, None));
            None
        }
    }
}

/// Looks for blocks in `bytes`, page by page where nothing better is known. With `is_exact` there is nothing
/// but blocks; otherwise index and filter follow somewhere, and only pages between blocks are damage.
fn walk(path: &str, file: FileId, bytes: &[u8], is_exact: bool, report: &mut TableReport) {
    let mut tally = Tally::new();
    let (mut at, mut sound_end) = (0, 0);
    while at < bytes.len() {
        let sound = guess_len(&bytes[at..])
            .filter(|len| Block::parse(file, at as u64, bytes[at..at + len].into()).is_ok());
        let Some(len) = sound else {
            at += PAGE_SIZE;
            continue;
        };
        report_gap(path, sound_end, at, report);
        read_block(path, file, bytes, BlockHandle { offset: at as u64, len }, &mut tally, report);
        at += len;
        sound_end = at;
    }
    if is_exact {
        report_gap(path, sound_end, bytes.len(), report);
    }
}

fn report_gap(path: &str, start: usize, end: usize, report: &mut TableReport) {
    if start < end {
        let damage = format!("{path}: bytes {start} to {end}: expected blocks, found none");
        report.damage.push(damage);
        report.blocks.push((start as u64, end - start, None));
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
        }
    }

    fn add(&mut self, path: &str, offset: u64, block: &Block, report: &mut TableReport) {
        for record in 0..block.len() {
            let (key, entry) = block.entry(record);
            let is_ordered = self.last.as_ref().is_none_or(|(last, lsn)| {
                last.as_slice() < key || (last.as_slice() == key && *lsn > entry.lsn)
            });
            if !is_ordered {
                report.damage.push(format!("{path}: block at byte {offset}: record {record} out of order"));
            }
            self.first_key.get_or_insert_with(|| key.to_vec());
            self.last = Some((key.to_vec(), entry.lsn));
            self.entries += 1;
            self.tombstones += u64::from(entry.kind == OpKind::Delete);
            self.expiring += u64::from(entry.expiry_ms != 0);
            self.expiries.add(record_len(key, &entry), entry.expiry_ms);
            self.lsns = (self.lsns.0.min(entry.lsn), self.lsns.1.max(entry.lsn));
        }
    }

    /// The sum of the parts against what footer and index say of the whole.
    fn compare(self, path: &str, meta: &TableMeta, report: &mut TableReport) {
        let mut facts = vec![
            ("entries", meta.entries, self.entries),
            ("tombstones", meta.tombstones, self.tombstones),
            ("entries with expiry", meta.expiring, self.expiring),
            ("as smallest LSN", meta.min_lsn.0, self.lsns.0.0),
            ("as largest LSN", meta.max_lsn.0, self.lsns.1.0),
        ];
        facts.retain(|(_, said, found)| said != found);
        for (what, said, found) in facts {
            report.damage.push(format!("{path}: footer says {said} {what}, blocks hold {found}"));
        }
        let expiries = self.expiries.finish(meta.bytes);
        if expiries != meta.expiries {
            let (said, found) = (meta.expiries, expiries);
            report.damage.push(format!("{path}: footer says expiries {said}, blocks hold {found}"));
        }
        let last_key = self.last.as_ref().map(|(key, _)| key.as_slice());
        if self.first_key.as_deref() != Some(&meta.smallest) || last_key != Some(&meta.largest) {
            report.damage.push(format!("{path}: index has other key bounds than the blocks"));
        }
    }
}
