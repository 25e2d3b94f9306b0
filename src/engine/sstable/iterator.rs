//! A walk over a table in order, with read-ahead, past the cache.

use std::collections::VecDeque;
use std::rc::Rc;

use super::block::Block;
use super::partition::Partition;
use super::reader::Table;
use super::{BlockHandle, TableError};
use crate::base::{Entry, Lsn};
use crate::env::Env;

/// Bytes read at once; a larger block is read by itself.
const READ_AHEAD_BYTES: usize = 256 << 10;

/// Entries of a table in order.
pub struct TableIter<E: Env> {
    table: Rc<Table<E>>,
    /// The partition it is in; `None` at the end.
    partition: Option<Rc<Partition>>,
    partition_number: usize,
    /// Partitions behind that one, as far as they were read ahead. Pinned ones are not.
    partitions_ahead: VecDeque<Rc<Partition>>,
    next_block: usize,
    ahead: Vec<u8>,
    ahead_offset: u64,
    block: Option<Block>,
    record: usize,
    /// The last entry of the block in front of that one, once there was one.
    last: Option<(Vec<u8>, Lsn)>,
    /// Blocks from this key on are not wanted; empty: all are.
    until: Box<[u8]>,
}

impl<E: Env> TableIter<E> {
    /// Stands on the first entry not below `from`.
    pub async fn seek(table: &Rc<Table<E>>, from: &[u8]) -> Result<TableIter<E>, TableError> {
        let mut iter = TableIter {
            table: table.clone(),
            partition: None,
            partition_number: table.find_partition(from).unwrap_or(table.partitions()),
            partitions_ahead: VecDeque::new(),
            next_block: 0,
            ahead: Vec::new(),
            ahead_offset: 0,
            block: None,
            record: 0,
            last: None,
            until: Box::default(),
        };
        iter.load_partition().await?;
        if let Some(partition) = &iter.partition {
            iter.next_block = partition.find(from).unwrap_or(partition.len());
        }
        iter.load().await?;
        if let Some(block) = &iter.block {
            iter.record = block.lower_bound(from);
            if iter.record == block.len() {
                // `from` is between the last key of this block and its separator.
                iter.record = 0;
                iter.load().await?;
            }
        }
        Ok(iter)
    }

    /// Nothing from `until` on is read ahead from now on, unless that is empty.
    pub fn end_before(&mut self, until: &[u8]) {
        self.until = until.into();
    }

    /// The entry it stands on; `None` at the end.
    pub fn current(&self) -> Option<(&[u8], Entry<'_>)> {
        self.block.as_ref().map(|block| block.entry(self.record))
    }

    /// Moves to the next entry. Suspends when a block must be read.
    pub async fn advance(&mut self) -> Result<(), TableError> {
        let Some(block) = &self.block else { return Ok(()) };
        self.record += 1;
        if self.record == block.len() {
            self.record = 0;
            self.load().await?;
        }
        Ok(())
    }

    /// Takes up the partition with the number that is set, or none behind the last.
    async fn load_partition(&mut self) -> Result<(), TableError> {
        self.partition = None;
        self.next_block = 0;
        let number = self.partition_number;
        if number >= self.table.partitions() {
            return Ok(());
        }
        self.partition = self.partitions_ahead.pop_front().or_else(|| self.table.pinned(number));
        if self.partition.is_none() {
            self.partitions_ahead = self.table.read_partitions(number).await?.into();
            self.partition = self.partitions_ahead.pop_front();
        }
        Ok(())
    }

    async fn load(&mut self) -> Result<(), TableError> {
        if let Some(block) = self.block.take() {
            let (key, entry) = block.entry(block.len() - 1);
            let (last, lsn) = self.last.get_or_insert_default();
            last.clear();
            last.extend_from_slice(key);
            *lsn = entry.lsn;
        }
        while self.partition.as_ref().is_some_and(|partition| self.next_block == partition.len()) {
            self.partition_number += 1;
            self.load_partition().await?;
        }
        let Some(partition) = self.partition.clone() else { return Ok(()) };
        let handle = partition.handle(self.next_block);
        if handle.len > READ_AHEAD_BYTES {
            let block = self.table.read_own(handle).await?;
            return self.take_up(block, handle.offset);
        }
        let ahead_end = self.ahead_offset + self.ahead.len() as u64;
        if handle.offset < self.ahead_offset || handle.offset + handle.len as u64 > ahead_end {
            let len = self.read_ahead_len(&partition, handle);
            // Whatever becomes of the read, what is there meanwhile belongs to no offset.
            self.ahead_offset = handle.offset;
            self.table.read_into(handle.offset, len, &mut self.ahead).await?;
        }
        let start = (handle.offset - self.ahead_offset) as usize;
        let bytes = &self.ahead[start..start + handle.len];
        let block = self.table.parse(handle.offset, bytes)?;
        self.take_up(block, handle.offset)
    }

    /// Stands on a block from now on, unless it holds what its table can't: a merge makes one table of several by
    /// what is known of each, and its outcome would not fit what stays. A checksum tells bytes that have changed, not
    /// those that were never right.
    fn take_up(&mut self, block: Block, offset: u64) -> Result<(), TableError> {
        let meta = self.table.meta();
        let is_within = block.key(0) >= &meta.smallest[..] && block.key(block.len() - 1) <= &meta.largest[..];
        let last = self.last.as_ref().map(|(key, lsn)| (&key[..], *lsn));
        if !is_within || !block.follows(last, meta.min_lsn..=meta.max_lsn) {
            return Err(self.table.disorder(offset));
        }
        self.block = Some(block);
        self.next_block += 1;
        Ok(())
    }

    /// Bytes from a block on that are blocks of this partition and the next few, without a gap, and wanted.
    fn read_ahead_len(&self, partition: &Rc<Partition>, handle: BlockHandle) -> usize {
        let mut len = handle.len;
        let (mut partition, mut ahead) = (partition.clone(), 0);
        let mut block = self.next_block + 1;
        let is_past = |partition: &Partition, block: usize| {
            !self.until.is_empty() && partition.cmp_separator(block, &self.until).is_ge()
        };
        if is_past(&partition, self.next_block) {
            return len;
        }
        loop {
            while block < partition.len() {
                let next = partition.handle(block);
                if next.offset != handle.offset + len as u64 || len + next.len > READ_AHEAD_BYTES {
                    return len;
                }
                (len, block) = (len + next.len, block + 1);
                if is_past(&partition, block - 1) {
                    return len;
                }
            }
            let next = self.partitions_ahead.get(ahead).cloned();
            let number = self.partition_number + 1 + ahead;
            let Some(next) = next.or_else(|| self.table.pinned(number)) else { return len };
            (partition, ahead, block) = (next, ahead + 1, 0);
        }
    }
}
