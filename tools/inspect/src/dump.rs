//! Shows single files, one record a line, as far as they can be read; then what is wrong with them.

use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

use atlaskv::base::{OpIter, OpKind, PAGE_SIZE, TableName};
use atlaskv::engine::manifest;
use atlaskv::engine::sstable::{Block, inspect_table};
use atlaskv::engine::wal::format::{BLOCK_HEADER_BYTES, RecordKind, Records};
use atlaskv::engine::wal::inspect_segment;
use clap::Args;

use crate::{Failure, Outcome};

/// Bytes of a key or value that are shown.
const SHOWN_BYTES: usize = 64;

/// How much to show.
#[derive(Args, Clone, Copy)]
pub struct Detail {
    /// Only blocks, not their records
    #[arg(long)]
    blocks: bool,
    /// Keys and values whole; otherwise their first 64 bytes
    #[arg(long)]
    full: bool,
}

impl Detail {
    /// In quotes, escaped as in Rust, with its length if it is cut.
    fn show(self, bytes: &[u8]) -> String {
        let shown = if self.full { bytes } else { &bytes[..bytes.len().min(SHOWN_BYTES)] };
        let mut text = format!("\"{}\"", shown.escape_ascii());
        if shown.len() < bytes.len() {
            let _ = write!(text, "… ({} bytes)", bytes.len());
        }
        text
    }

    fn operation(self, kind: OpKind, key: &[u8], value: &[u8], expiry_ms: u64) -> String {
        let expiry = if expiry_ms == 0 { String::new() } else { format!(" expires {expiry_ms}") };
        match kind {
            OpKind::Put => format!("put {} = {}{expiry}", self.show(key), self.show(value)),
            OpKind::Delete => format!("delete {}", self.show(key)),
            OpKind::RangeDelete if value.is_empty() => format!("delete range {}..", self.show(key)),
            OpKind::RangeDelete => format!("delete range {}..{}", self.show(key), self.show(value)),
        }
    }
}

fn refused(file: &Path, what: impl std::fmt::Display) -> Failure {
    Failure::Refused(format!("{}: {what}", file.display()))
}

/// A WAL segment.
pub fn wal(file: &Path, bytes: &[u8], detail: Detail, out: &mut impl Write) -> Outcome {
    let (header, blocks) = inspect_segment(bytes).map_err(|what| refused(file, what))?;
    writeln!(
        out,
        "segment {} of log {}, store {:032x}, prepared at {} ms, {} bytes, {} blocks",
        header.segment,
        header.log,
        header.cluster,
        header.created_ms,
        bytes.len(),
        blocks.len()
    )?;
    let mut damage = 0;
    for block in &blocks {
        let info = &block.info;
        writeln!(
            out,
            "{:>10} {:>8} bytes  block {}  durable {}  records {}  at {} ms{}",
            block.offset,
            info.padded_len(),
            info.seq,
            info.durable_seq,
            info.record_count,
            info.wall_ms,
            if block.is_intact { "" } else { "  DAMAGED: its payload does not fit its checksum" }
        )?;
        damage += usize::from(!block.is_intact);
        if detail.blocks {
            continue;
        }
        let start = block.offset as usize + BLOCK_HEADER_BYTES;
        let payload = bytes.get(start..).unwrap_or_default();
        for record in Records::new(&payload[..payload.len().min(info.payload_len)]) {
            let record = match record {
                Ok(record) => record,
                Err(error) => {
                    damage += 1;
                    writeln!(out, "           DAMAGED: {error}; the rest of the block is skipped")?;
                    break;
                }
            };
            let info = &record.info;
            let kind = match info.kind {
                Some(RecordKind::Data) => "data".to_owned(),
                Some(kind) => format!("{kind:?}").to_lowercase(),
                None => "of a newer version".to_owned(),
            };
            let intact =
                if record.is_intact() { "" } else { "  DAMAGED: its body does not fit its checksum" };
            writeln!(
                out,
                "           {kind}: tablet {} term {} index {} operations {}{intact}",
                info.tablet, info.term, info.index, info.ops
            )?;
            if info.kind != Some(RecordKind::Data) || !record.is_intact() {
                continue;
            }
            for op in OpIter::new(record.body) {
                match op {
                    Ok(op) => {
                        let text = detail.operation(op.kind, op.key, op.value, op.expiry_ms);
                        writeln!(out, "             {text}")?;
                    }
                    Err(error) => {
                        damage += 1;
                        writeln!(out, "             DAMAGED: {error}")?;
                        break;
                    }
                }
            }
        }
    }
    // A tail that was in flight at a crash looks the same; only the whole log tells (`verify`).
    summary(
        damage,
        "damaged places; if they are at the end of the log they are a torn tail, see: verify",
        out,
    )
}

/// A table.
pub fn sst(file: &Path, bytes: &[u8], detail: Detail, out: &mut impl Write) -> Outcome {
    let path = file.to_string_lossy();
    let report = inspect_table(&path, bytes).map_err(Failure::Refused)?;
    let mut known = None;
    if let Some(meta) = &report.meta {
        known = Some(meta.file);
        writeln!(
            out,
            "table {} of tablet {}, slots {}, {} bytes, entries {} (tombstones {}, expiring {}), lsn {}..={}, \
             keys {}..={}",
            meta.file,
            meta.tablet,
            meta.slots,
            meta.bytes,
            meta.entries,
            meta.tombstones,
            meta.expiring,
            meta.min_lsn,
            meta.max_lsn,
            detail.show(&meta.smallest),
            detail.show(&meta.largest)
        )?;
        let shape = &meta.shape;
        writeln!(
            out,
            "written for {}, codec {}: {} blocks ({} not compressed) of {} bytes in {}; {} partitions of {} \
             bytes, {} filter bits a key",
            if shape.is_last { "the last level" } else { "upper levels" },
            shape.codec,
            shape.blocks,
            shape.plain_blocks,
            shape.raw_bytes,
            shape.stored_bytes,
            shape.partitions,
            shape.partition_bytes,
            shape.bits_per_key
        )?;
        if meta.expiring > 0 {
            writeln!(out, "expires: {}", meta.expiries)?;
        }
    }
    let named = file.file_name().and_then(|name| TableName::parse(name.to_str()?)).map(|name| name.file);
    let id = known.or(named);
    for (offset, len, records) in &report.blocks {
        match records {
            Some(records) => writeln!(out, "{offset:>10} {len:>8} bytes  records {records}")?,
            None => writeln!(out, "{offset:>10} {len:>8} bytes  DAMAGED")?,
        }
        let (Some(id), Some(_), false) = (id, records, detail.blocks) else { continue };
        let stored = &bytes[*offset as usize..*offset as usize + len];
        let Ok(block) = Block::parse(id, *offset, stored) else { continue };
        for number in 0..block.len() {
            let (key, entry) = block.entry(number);
            let text = detail.operation(entry.kind, key, entry.value, entry.expiry_ms);
            writeln!(out, "           {} {text}", entry.lsn)?;
        }
    }
    for damage in &report.damage {
        writeln!(out, "DAMAGED: {damage}")?;
    }
    summary(report.damage.len(), "damaged places", out)
}

/// A manifest file, or `CURRENT`.
pub fn manifest(file: &Path, bytes: &[u8], out: &mut impl Write) -> Outcome {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    if name.ends_with("CURRENT") && bytes.len() <= PAGE_SIZE {
        return match manifest::inspect_current(bytes) {
            Ok(current) => {
                writeln!(out, "generation {} of {} shards", current.generation, current.shards)?;
                Ok(false)
            }
            Err(what) => {
                writeln!(out, "DAMAGED: {}: {what}", file.display())?;
                Ok(true)
            }
        };
    }
    let found = manifest::inspect_file(&name, bytes);
    let Some(key) = found.key else {
        return Err(refused(file, "it holds no block of a manifest"));
    };
    writeln!(out, "generation {}, shard {}, part {}", key.generation, key.shard, key.part)?;
    for item in &found.items {
        writeln!(out, "{item}")?;
    }
    writeln!(out, "{} bytes of space held ready", found.blank_bytes)?;
    if let Err(what) = &found.verdict {
        writeln!(out, "DAMAGED: {what}")?;
    }
    Ok(found.verdict.is_err())
}

fn summary(damage: usize, what: &str, out: &mut impl Write) -> Outcome {
    if damage > 0 {
        writeln!(out, "{damage} {what}")?;
    }
    Ok(damage > 0)
}
