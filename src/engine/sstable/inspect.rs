//! Reads a whole table file for tools: every checksum, every order, every damaged place.

use super::TableMeta;
use super::block::Block;
use super::reader::{check_footer, check_parts};
use crate::base::{PAGE_SIZE, page_align};

/// What a table file holds.
pub struct TableReport {
    /// Its facts.
    pub meta: TableMeta,
    /// Blocks: offset, length, records (`None` if damaged).
    pub blocks: Vec<(u64, usize, Option<usize>)>,
    /// Every damaged place, in words.
    pub damage: Vec<String>,
}

/// Reads a table given as bytes. `Err`: nothing can be said, since footer or index are damaged.
pub fn inspect_table(path: &str, bytes: &[u8]) -> Result<TableReport, String> {
    let len = bytes.len() as u64;
    if bytes.len() < 3 * PAGE_SIZE || !bytes.len().is_multiple_of(PAGE_SIZE) {
        return Err(format!("{path}: {len} bytes are no table"));
    }
    let footer =
        check_footer(path, &bytes[bytes.len() - PAGE_SIZE..], len).map_err(|error| error.to_string())?;
    let part = |offset: u64, len: u64| &bytes[offset as usize..offset as usize + len as usize];
    let index = part(footer.index_offset.get(), page_align(footer.index_bytes.get() as usize) as u64);
    let filter = part(footer.filter_offset.get(), footer.filter_bytes.get());
    let parts = check_parts(path, &footer, index, filter, len).map_err(|error| error.to_string())?;
    let mut report = TableReport { meta: parts.meta, blocks: Vec::new(), damage: Vec::new() };
    let mut last_key: Option<Vec<u8>> = None;
    let (mut entries, mut end) = (0u64, 0u64);
    for number in 0..parts.index.len() {
        let handle = parts.index.handle(number);
        if handle.offset != end || handle.offset + handle.len as u64 > footer.index_offset.get() {
            report.damage.push(format!("{path}: block {number} at byte {} is out of place", handle.offset));
            break;
        }
        end = handle.offset + handle.len as u64;
        let block =
            Block::parse(report.meta.file, handle.offset, part(handle.offset, handle.len as u64).into());
        let records = match block {
            Ok(block) => {
                for record in 0..block.len() {
                    let (key, _) = block.entry(record);
                    if last_key.as_deref().is_some_and(|last| last > key) {
                        let place = handle.offset;
                        report.damage.push(format!("{path}: block at byte {place}: keys out of order"));
                    }
                    last_key = Some(key.to_vec());
                }
                entries += block.len() as u64;
                Some(block.len())
            }
            Err((expected, found)) => {
                let place = handle.offset;
                report
                    .damage
                    .push(format!("{path}: block at byte {place}: expected {expected}, found {found}"));
                None
            }
        };
        report.blocks.push((handle.offset, handle.len, records));
    }
    if report.damage.is_empty() && entries != report.meta.entries {
        report.damage.push(format!("{path}: {entries} entries, its footer says {}", report.meta.entries));
    }
    Ok(report)
}
