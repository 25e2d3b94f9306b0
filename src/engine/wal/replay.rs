//! Phase two of a replay: hands out the blocks that phase one found valid, segment by segment.

use std::rc::Rc;

use super::ahead::{LOOK_BYTES, SegmentRead};
use super::format::{BlockInfo, Record, RecordKind, Records};
use super::plan::Place;
use super::scan::LogScan;
use super::{ReplayPlan, WalError};
use crate::base::{EntryIndex, TabletId};
use crate::env::Env;

/// Streams the entries of one log in order. Holds two segments in memory: one, and the next, which is
/// read meanwhile.
pub struct LogReader<E: Env> {
    env: E,
    scan: Rc<LogScan>,
    next: usize,
    segment: Option<(u32, Vec<u8>)>,
    ahead: Option<(u32, SegmentRead)>,
    /// Bytes handed out since the read ahead was looked at.
    bytes: usize,
}

impl<E: Env> LogReader<E> {
    /// From the first valid block of a scanned log.
    pub fn new(env: &E, scan: Rc<LogScan>) -> LogReader<E> {
        LogReader { env: env.clone(), scan, next: 0, segment: None, ahead: None, bytes: 0 }
    }

    /// Moves to the next block and hands each of its data entries that counts to `visit`. Returns the
    /// bytes of the block, or `None` at the end.
    pub async fn next_block(
        &mut self,
        plan: &ReplayPlan,
        mut visit: impl FnMut(TabletId, EntryIndex, &[u8]) -> Result<(), String>,
    ) -> Result<Option<usize>, WalError> {
        let Some(&(segment, offset)) = self.scan.blocks.get(self.next) else { return Ok(None) };
        self.next += 1;
        if self.segment.as_ref().is_none_or(|(loaded, _)| *loaded != segment) {
            let spare = self.segment.take().map_or_else(Vec::new, |(_, bytes)| bytes);
            let read = |number: u32, buffer| {
                SegmentRead::new(&self.env, &self.scan.segments[number as usize], buffer)
            };
            let ahead = self.ahead.take().filter(|(number, _)| *number == segment);
            let bytes = ahead.map_or_else(|| read(segment, Vec::new()), |(_, read)| read).land().await?;
            let later = self.scan.blocks[self.next..].iter().find(|(number, _)| *number != segment);
            self.ahead = later.map(|(number, _)| (*number, read(*number, spare)));
            self.segment = Some((segment, bytes));
        }
        if self.bytes >= LOOK_BYTES
            && let Some((_, read)) = &mut self.ahead
        {
            self.bytes = 0;
            read.go_on(&self.env).await;
        }
        let file = &self.scan.segments[segment as usize];
        let damaged = |lost: String| WalError::Rot {
            path: file.path.clone(),
            offset: u64::from(offset),
            lost: format!("what was readable a moment ago ({lost})"),
        };
        let bytes = self.segment.as_ref().map_or(&[][..], |(_, bytes)| bytes);
        let block = bytes.get(offset as usize..).unwrap_or_default();
        let info = BlockInfo::decode(block).ok_or_else(|| damaged("block header".to_owned()))?;
        let payload = info.payload(block).ok_or_else(|| damaged(format!("block {}", info.seq)))?;
        for (ordinal, record) in (0u32..).zip(Records::new(payload)) {
            let record: Record<'_> = record.map_err(|error| damaged(error.to_string()))?;
            let place = Place { log: self.scan.log, block: info.seq, ordinal };
            let is_data = record.info.kind == Some(RecordKind::Data);
            if is_data && plan.is_live(record.info.tablet, place, record.info.index) {
                visit(record.info.tablet, record.info.index, record.body).map_err(damaged)?;
            }
        }
        self.bytes += info.padded_len();
        Ok(Some(info.padded_len()))
    }
}
