//! Checks a whole data directory: what a start would read, every entry of the logs, every byte of the tables.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::Path;
use std::rc::Rc;

use atlaskv::base::{BlockSeq, LogId, OpIter, OpKind, TableName, TabletId};
use atlaskv::disk::Disk;
use atlaskv::engine::checkpoint::{MARKER, Unfinished};
use atlaskv::engine::manifest::{self, ItemState, State, TableRef, inspect_current, inspect_file};
use atlaskv::engine::sstable::{IndexBudget, Table, TableIter, TableMeta, inspect_table};
use atlaskv::engine::wal::{
    LogReader, LogScan, ReplayPlan, SegmentFile, WalError, inspect_segment, list_logs, scan_log,
};
use atlaskv::slot::Slot;
use futures_lite::future::block_on;

use crate::readonly::ReadOnly;
use crate::record::Record;
use crate::{Failure, Outcome};

/// Checks `dir`, and what it says of itself if it is a backup.
pub fn verify(dir: &Path, out: &mut impl Write) -> Outcome {
    check(dir, true, out)
}

/// Checks what a start or a restore needs of `dir`.
pub fn verify_data(dir: &Path, out: &mut impl Write) -> Outcome {
    check(dir, false, out)
}

fn check(dir: &Path, with_record: bool, out: &mut impl Write) -> Outcome {
    let _lock = lock(dir)?;
    let env = ReadOnly::new(dir);
    if !dir.join("CURRENT").exists() && !dir.join("manifest").exists() {
        return Err(Failure::Refused(format!("{}: no data directory: it has no CURRENT", dir.display())));
    }
    let mut check = Check { env, dir, out, damage: 0, tables: 0, segments: 0, entries: 0, bytes: 0 };
    match block_on(manifest::load(&check.env)) {
        Ok(Some(state)) => check.store(&state)?,
        Ok(None) => {
            check.bad("CURRENT is missing: restore CURRENT and manifest/ together from one copy")?;
            check.without_manifest()?;
        }
        Err(error) => {
            check.bad(&error.to_string())?;
            check.without_manifest()?;
        }
    }
    check.manifest_files()?;
    if let Some(kind) = marked(dir) {
        check.bad(&format!("this directory is {}", kind.advice()))?;
    }
    // By its record a backup is listed, and pruned when it is old.
    match Record::read(dir) {
        Err(Failure::Refused(what)) if with_record => check.bad(&what)?,
        Err(Failure::Refused(what)) => check.note(&what)?,
        read => drop(read?),
    }
    let Check { damage, tables, segments, entries, bytes, .. } = check;
    let verdict = if damage == 0 { "no damage".to_owned() } else { format!("{damage} damaged places") };
    writeln!(out, "{verdict}: {tables} tables, {segments} log segments, {entries} entries, {bytes} bytes")?;
    Ok(damage > 0)
}

/// Keeps servers out while it is held. A copy of a data directory need not have a lock file.
pub fn lock(dir: &Path) -> Result<Option<File>, Failure> {
    if !dir.is_dir() {
        return Err(Failure::Refused(format!("{}: no such directory", dir.display())));
    }
    let Ok(mut file) = File::open(dir.join("LOCK")) else { return Ok(None) };
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            // Only for the message.
            let _ = Read::by_ref(&mut file).take(32).read_to_string(&mut owner);
            Err(Failure::Refused(format!(
                "{}: in use by process {}; stop that server, or verify a copy",
                dir.display(),
                owner.trim()
            )))
        }
        // Without locks on this file system there are no servers on it either.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(Some(file)),
    }
}

/// What `dir` was to become, if it is marked as not complete.
pub fn marked(dir: &Path) -> Option<Unfinished> {
    let marker = dir.join(MARKER);
    // One that can't be read marks all the same.
    let bytes = fs::read(&marker).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Err(error),
        _ => Ok(Vec::new()),
    });
    bytes.ok().map(|bytes| Unfinished::decode(&bytes))
}

struct Check<'a, W> {
    env: ReadOnly,
    dir: &'a Path,
    out: &'a mut W,
    damage: u64,
    tables: u64,
    segments: u64,
    entries: u64,
    bytes: u64,
}

impl<W: Write> Check<'_, W> {
    fn bad(&mut self, what: &str) -> Result<(), Failure> {
        self.damage += 1;
        Ok(writeln!(self.out, "DAMAGED: {what}")?)
    }

    fn note(&mut self, what: &str) -> Result<(), Failure> {
        Ok(writeln!(self.out, "note: {what}")?)
    }

    /// Everything, as a sound manifest tells it.
    fn store(&mut self, state: &State) -> Result<(), Failure> {
        self.logs(state)?;
        for tablet in state.tablets.values() {
            for table in &tablet.tables {
                self.table(tablet.id, table)?;
            }
        }
        let live = state.live_tables();
        for name in self.names(TableName::DIR)? {
            let known = TableName::parse(&name);
            if known.is_none_or(|name| !live.contains(&name) && !state.is_pinned(name.file)) {
                self.note(&format!("sst/{name}: no tablet refers to it; the next start removes it"))?;
            }
        }
        Ok(())
    }

    fn names(&mut self, dir: &str) -> Result<Vec<String>, Failure> {
        match block_on(self.env.list(dir)) {
            Ok(entries) => Ok(entries.into_iter().map(|entry| entry.name).collect()),
            Err(error) if error.is_not_found() => Ok(Vec::new()),
            Err(error) => {
                self.bad(&error.to_string())?;
                Ok(Vec::new())
            }
        }
    }

    fn logs(&mut self, state: &State) -> Result<(), Failure> {
        let needed = state.needed_logs();
        let logs = match block_on(list_logs(&self.env)) {
            Ok(logs) => logs,
            Err(error) => return self.bad(&error.to_string()),
        };
        let mut scans = Vec::new();
        let mut is_whole = true;
        for log in needed.iter().filter(|log| !logs.contains_key(log)) {
            let end = state.logs.get(log).and_then(|meta| meta.end);
            if end.is_none_or(|end| end > BlockSeq::ZERO) {
                is_whole = false;
                self.bad(&WalError::Missing(*log).to_string())?;
            }
        }
        for (log, segments) in logs {
            if !needed.contains(&log) {
                self.note(&format!("wal: nothing needs log {log}; the next start removes it"))?;
                continue;
            }
            let flushed = |tablet: TabletId| {
                state.tablets.get(&tablet).map_or(atlaskv::base::EntryIndex(u64::MAX), |t| t.flushed)
            };
            let end = state.logs.get(&log).and_then(|meta| meta.end);
            match block_on(scan_log(&self.env, log, segments.clone(), end, &flushed)) {
                Ok(scan) => {
                    if let Some(torn) = &scan.torn {
                        self.note(&format!(
                            "{}: torn from byte {} on, as a crash leaves it",
                            torn.path, torn.offset
                        ))?;
                    }
                    self.covered_damage(&scan)?;
                    scans.push(scan);
                }
                Err(error) => {
                    is_whole = false;
                    self.bad(&error.to_string())?;
                    self.segments_alone(&segments)?;
                }
            }
        }
        if !is_whole {
            return Ok(());
        }
        let flushed: BTreeMap<_, _> =
            state.tablets.iter().map(|(id, tablet)| (*id, tablet.flushed)).collect();
        let plan = ReplayPlan::merge(
            scans.iter().map(|scan| &scan.runs),
            |tablet| flushed.get(&tablet).copied().unwrap_or(atlaskv::base::EntryIndex(u64::MAX)),
            |tablet, log| state.tablets.get(&tablet).is_some_and(|tablet| tablet.logs.contains(&log)),
        );
        match plan {
            Ok(plan) => scans.into_iter().try_for_each(|scan| self.entries(state, &plan, scan)),
            Err(error) => self.bad(&error.to_string()),
        }
    }

    /// Damage that a start passes over, because tables hold what was there, or blocks say the same: the disk is
    /// failing all the same.
    fn covered_damage(&mut self, scan: &LogScan) -> Result<(), Failure> {
        for (place, segment) in (0u32..).zip(&scan.segments) {
            self.segments += 1;
            self.bytes += segment.bytes;
            let bytes = match fs::read(self.dir.join(&segment.path)) {
                Ok(bytes) => bytes,
                Err(error) => {
                    self.bad(&format!("{}: {error}", segment.path))?;
                    continue;
                }
            };
            let blocks = match inspect_segment(&bytes) {
                Ok((_, blocks)) => blocks,
                // It was durable before the first block was written.
                Err(what) if scan.blocks.iter().any(|(segment, _)| *segment == place) => {
                    self.bad(&format!("{}: {what} (the blocks behind it say what it said)", segment.path))?;
                    continue;
                }
                // It was prepared when the power went: nothing is in it.
                Err(_) => continue,
            };
            for block in blocks.iter().filter(|block| !block.is_intact && block.info.seq <= scan.end) {
                self.bad(&format!(
                    "{}: block {} at byte {}: its payload does not fit its checksum (tables hold what was in it)",
                    segment.path, block.info.seq, block.offset
                ))?;
            }
        }
        Ok(())
    }

    /// Every operation of the entries that count.
    fn entries(&mut self, state: &State, plan: &ReplayPlan, scan: LogScan) -> Result<(), Failure> {
        let log = scan.log;
        let mut reader = LogReader::new(&self.env, Rc::new(scan));
        let mut entries = 0;
        loop {
            let next = block_on(reader.next_block(plan, |tablet, index, body| {
                entries += 1;
                // What was flushed may be of keys that a split has given to another tablet since.
                let slots = state.tablets.get(&tablet).filter(|t| index > t.flushed).map(|t| t.slots);
                for op in OpIter::new(body) {
                    let op = op.map_err(|error| error.to_string())?;
                    // A range is deleted from every tablet, whosever keys its bounds are.
                    let is_key = op.kind != OpKind::RangeDelete;
                    if is_key && slots.is_some_and(|slots| !slots.contains(Slot::of_key(op.key))) {
                        return Err(format!("entry {index} of tablet {tablet} has a key of another tablet"));
                    }
                }
                Ok(())
            }));
            match next {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    self.bad(&format!("log {log}: {error}"))?;
                    break;
                }
            }
        }
        self.entries += entries;
        Ok(())
    }

    /// Damage of single segments, where the log as a whole can't be read.
    fn segments_alone(&mut self, segments: &[SegmentFile]) -> Result<(), Failure> {
        for segment in segments {
            self.segments += 1;
            self.bytes += segment.bytes;
            match fs::read(self.dir.join(&segment.path)).map_err(|error| error.to_string()) {
                Err(what) => self.bad(&format!("{}: {what}", segment.path))?,
                Ok(bytes) => match inspect_segment(&bytes) {
                    Err(what) => self.note(&format!("{}: {what}", segment.path))?,
                    Ok((_, blocks)) => {
                        for block in blocks.iter().filter(|block| !block.is_intact) {
                            self.note(&format!(
                                "{}: block {} at byte {}: its payload does not fit its checksum",
                                segment.path, block.info.seq, block.offset
                            ))?;
                        }
                    }
                },
            }
        }
        Ok(())
    }

    fn table(&mut self, tablet: TabletId, table: &TableRef) -> Result<(), Failure> {
        let name = TableName::new(tablet, table.file);
        let path = name.path();
        self.tables += 1;
        let Some(meta) = self.table_alone(&path)? else { return Ok(()) };
        let alone = TableRef::from(&meta);
        // What the manifest alone knows of a table: where it stands, how much of it counts, which ranges were
        // deleted before it was written.
        let (level, cleared) = (alone.level, alone.cleared);
        if alone != (TableRef { level, cleared, clip: None, ..table.clone() }) {
            self.bad(&format!("{path}: it is not the table that the manifest describes"))?;
        }
        if let Err(what) = block_on(keys_are_of(&self.env, name, &meta)) {
            self.bad(&format!("{path}: {what}"))?;
        }
        Ok(())
    }

    fn table_alone(&mut self, path: &str) -> Result<Option<TableMeta>, Failure> {
        let bytes = match fs::read(self.dir.join(path)) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.bad(&format!("{path}: {error}; restore it from a copy"))?;
                return Ok(None);
            }
        };
        self.bytes += bytes.len() as u64;
        match inspect_table(path, &bytes) {
            Err(what) => {
                self.bad(&what)?;
                Ok(None)
            }
            Ok(report) => {
                for what in &report.damage {
                    self.bad(what)?;
                }
                Ok(report.meta.filter(|_| report.damage.is_empty()))
            }
        }
    }

    /// Each file by itself: nothing says which of them count.
    fn without_manifest(&mut self) -> Result<(), Failure> {
        let logs: BTreeMap<LogId, Vec<SegmentFile>> = match block_on(list_logs(&self.env)) {
            Ok(logs) => logs,
            Err(error) => return self.bad(&error.to_string()),
        };
        for segments in logs.values() {
            self.segments_alone(segments)?;
        }
        for name in self.names(TableName::DIR)? {
            self.tables += 1;
            self.table_alone(&format!("sst/{name}"))?;
        }
        Ok(())
    }

    /// Manifest files beside those that were loaded, and damage behind what a start reads of them.
    fn manifest_files(&mut self) -> Result<(), Failure> {
        let current = fs::read(self.dir.join("CURRENT")).ok().and_then(|bytes| inspect_current(&bytes).ok());
        for name in self.names("manifest")? {
            let bytes = match fs::read(self.dir.join("manifest").join(&name)) {
                Ok(bytes) => bytes,
                Err(error) => {
                    self.bad(&format!("manifest/{name}: {error}"))?;
                    continue;
                }
            };
            self.bytes += bytes.len() as u64;
            let found = inspect_file(&name, &bytes);
            let is_live =
                found.key.zip(current).is_some_and(|(key, current)| key.generation == current.generation);
            if !is_live {
                self.note(&format!("manifest/{name}: of no live generation; the next start removes it"))?;
                continue;
            }
            let torn = found.items.iter().find(|item| item.state != ItemState::Good);
            if let Some(torn) = torn.filter(|_| found.verdict.is_ok()) {
                self.note(&format!(
                    "manifest/{name}: torn from byte {} on, as a crash leaves it",
                    torn.offset
                ))?;
            }
        }
        Ok(())
    }
}

/// Whether every key is one of the tablet's.
async fn keys_are_of(env: &ReadOnly, name: TableName, meta: &TableMeta) -> Result<(), String> {
    let words = |error: atlaskv::engine::sstable::TableError| error.to_string();
    let table = Rc::new(Table::open(env, name, &IndexBudget::new(0)).await.map_err(words)?);
    let mut iter = TableIter::seek(&table, b"").await.map_err(words)?;
    while let Some((key, _)) = iter.current() {
        if !meta.slots.contains(Slot::of_key(key)) {
            return Err(format!("it holds \"{}\", a key of another tablet", key.escape_ascii()));
        }
        iter.advance().await.map_err(words)?;
    }
    Ok(())
}
