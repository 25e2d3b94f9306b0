//! What logs hold beyond tables. Kept in memory, as the server that wrote it kept it in its memtables.

use std::collections::BTreeMap;
use std::io::Write;
use std::rc::Rc;

use atlaskv::base::{BlockSeq, EntryIndex, LogId, Lsn, OpIter, OpKind, TabletId};
use atlaskv::engine::manifest::State;
use atlaskv::engine::ranges::{RangeDelete, RangeDeletes};
use atlaskv::engine::wal::{
    LogReader, LogScan, ReplayPlan, SegmentFile, WalError, list_logs, scan_log_behind,
};
use atlaskv::slot::{Slot, SlotRange};

use super::{Losses, refused};
use crate::Failure;
use crate::readonly::ReadOnly;

/// The newest version of a key that was found.
#[derive(Clone, Debug)]
pub struct Held {
    pub lsn: Lsn,
    pub kind: OpKind,
    pub expiry_ms: u64,
    pub value: Box<[u8]>,
}

/// What logs hold of a tablet.
#[derive(Default)]
pub struct Logged {
    pub entries: BTreeMap<Box<[u8]>, Held>,
    pub ranges: RangeDeletes,
    /// The last entry.
    pub last: EntryIndex,
}

impl Logged {
    /// Takes in an entry, of which keys of `slots` count.
    fn apply(&mut self, slots: Option<SlotRange>, index: EntryIndex, body: &[u8]) -> Result<(), String> {
        for (ordinal, op) in OpIter::new(body).enumerate() {
            let op = op.map_err(|error| error.to_string())?;
            let ordinal =
                u16::try_from(ordinal).map_err(|_| "more operations than an entry takes".to_owned())?;
            let lsn = Lsn::new(index, ordinal);
            if op.kind == OpKind::RangeDelete {
                let range = RangeDelete::new(op.key, op.value, lsn).ok_or("an empty range")?;
                self.ranges = self.ranges.with(&range);
            } else if slots.is_none_or(|slots| slots.contains(Slot::of_key(op.key)))
                && self.entries.get(op.key).is_none_or(|known| known.lsn <= lsn)
            {
                let held = Held { lsn, kind: op.kind, expiry_ms: op.expiry_ms, value: op.value.into() };
                self.entries.insert(op.key.into(), held);
            }
        }
        self.last = self.last.max(index);
        Ok(())
    }
}

async fn list(env: &ReadOnly) -> Result<BTreeMap<LogId, Vec<SegmentFile>>, Failure> {
    match list_logs(env).await {
        Err(WalError::Disk(error)) if error.is_not_found() => Ok(BTreeMap::new()),
        logs => logs.map_err(refused),
    }
}

/// One log, beyond what is damaged.
async fn scan<W: Write>(
    env: &ReadOnly,
    log: LogId,
    segments: Vec<SegmentFile>,
    end: Option<BlockSeq>,
    flushed: &dyn Fn(TabletId) -> EntryIndex,
    losses: &mut Losses<'_, W>,
) -> Result<Option<LogScan>, Failure> {
    let mut rot = |error: WalError| {
        losses.lost(&error.to_string());
        Ok(())
    };
    match scan_log_behind(env, log, segments, end, flushed, &mut rot).await {
        Ok(scan) => {
            if let Some(torn) = &scan.torn {
                let (path, offset) = (&torn.path, torn.offset);
                losses.note(&format!("{path}: torn from byte {offset} on, as a crash leaves it"));
            }
            Ok(Some(scan))
        }
        Err(WalError::Disk(error)) => {
            losses.lost(&format!("log {log}: {error}"));
            Ok(None)
        }
        Err(error) => Err(refused(error)),
    }
}

/// What the manifest's tablets need.
pub async fn needed<W: Write>(
    env: &ReadOnly,
    state: &State,
    losses: &mut Losses<'_, W>,
) -> Result<BTreeMap<TabletId, Logged>, Failure> {
    let flushed = |tablet| state.tablets.get(&tablet).map_or(EntryIndex(u64::MAX), |tablet| tablet.flushed);
    let mut found = list(env).await?;
    let mut scans = Vec::new();
    for log in state.needed_logs() {
        let end = state.logs.get(&log).and_then(|meta| meta.end);
        match found.remove(&log) {
            Some(segments) => scans.extend(scan(env, log, segments, end, &flushed, losses).await?),
            None if end.is_some_and(|end| end > BlockSeq::ZERO) => {
                losses.lost(&WalError::Missing(log).to_string())
            }
            None => losses
                .lost(&format!("log {log}: it has no files; if anything was written to it, that is gone")),
        }
    }
    let gap = |error| {
        losses.lost(&match error {
            WalError::Gap { tablet, first, last } => {
                let slots = state.tablets.get(&tablet).map_or_else(String::new, |known| known.slots.to_string());
                format!(
                    "entries {first} to {last} of tablet {tablet}, slots {slots}: whatever they wrote or deleted; of \
                     its keys older versions may show instead"
                )
            }
            error => error.to_string(),
        });
        Ok(())
    };
    let needs = |tablet, log| state.tablets.get(&tablet).is_some_and(|tablet| tablet.logs.contains(&log));
    let plan = ReplayPlan::merge_behind(scans.iter().map(|scan| &scan.runs), flushed, needs, gap)
        .map_err(refused)?;
    let mut logged: BTreeMap<TabletId, Logged> = BTreeMap::new();
    for scan in scans {
        let visit = |tablet, index, body: &[u8]| {
            let Some(known) = state.tablets.get(&tablet).filter(|known| index > known.flushed) else {
                return Ok(());
            };
            logged.entry(tablet).or_default().apply(Some(known.slots), index, body)
        };
        read(env, scan, &plan, visit, losses).await;
    }
    Ok(logged)
}

/// Every entry of every log.
pub async fn all<W: Write>(
    env: &ReadOnly,
    losses: &mut Losses<'_, W>,
) -> Result<BTreeMap<TabletId, Logged>, Failure> {
    let mut logged: BTreeMap<TabletId, Logged> = BTreeMap::new();
    for (log, segments) in list(env).await? {
        let Some(scan) = scan(env, log, segments, None, &|_| EntryIndex::ZERO, losses).await? else {
            continue;
        };
        // What is before the first entry that is there was flushed, or is lost: nobody knows.
        let plan = ReplayPlan::merge_behind([&scan.runs], |_| EntryIndex::ZERO, |_, _| true, |_| Ok(()));
        let visit = |tablet, index, body: &[u8]| logged.entry(tablet).or_default().apply(None, index, body);
        read(env, scan, &plan.map_err(refused)?, visit, losses).await;
    }
    Ok(logged)
}

/// Hands out the entries of a log that count.
async fn read<W: Write>(
    env: &ReadOnly,
    scan: LogScan,
    plan: &ReplayPlan,
    mut visit: impl FnMut(TabletId, EntryIndex, &[u8]) -> Result<(), String>,
    losses: &mut Losses<'_, W>,
) {
    let mut reader = LogReader::new(env, Rc::new(scan));
    loop {
        match reader.next_block(plan, &mut visit).await {
            Ok(Some(_)) => {}
            Ok(None) => return,
            Err(error) => losses.lost(&error.to_string()),
        }
    }
}
