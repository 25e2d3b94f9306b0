//! A walk over a table in order, with read-ahead, past the cache.

use std::rc::Rc;

use super::TableError;
use super::block::Block;
use super::reader::Table;
use crate::base::Entry;
use crate::env::Env;

/// Bytes read at once; a larger block is read whole.
const READ_AHEAD_BYTES: usize = 256 << 10;

/// Entries of a table in order.
pub struct TableIter<E: Env> {
    table: Rc<Table<E>>,
    next_block: usize,
    ahead: Vec<u8>,
    ahead_offset: u64,
    block: Option<Block>,
    record: usize,
}

impl<E: Env> TableIter<E> {
    /// Stands on the first entry not below `from`.
    pub async fn seek(table: &Rc<Table<E>>, from: &[u8]) -> Result<TableIter<E>, TableError> {
        let next_block = table.find_block(from).unwrap_or(table.blocks());
        let mut iter = TableIter {
            table: table.clone(),
            next_block,
            ahead: Vec::new(),
            ahead_offset: 0,
            block: None,
            record: 0,
        };
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

    async fn load(&mut self) -> Result<(), TableError> {
        self.block = None;
        if self.next_block >= self.table.blocks() {
            return Ok(());
        }
        let handle = self.table.handle(self.next_block);
        let ahead_end = self.ahead_offset + self.ahead.len() as u64;
        if handle.offset < self.ahead_offset || handle.offset + handle.len as u64 > ahead_end {
            let mut len = handle.len;
            let mut last = self.next_block + 1;
            while last < self.table.blocks() && len + self.table.handle(last).len <= READ_AHEAD_BYTES {
                len += self.table.handle(last).len;
                last += 1;
            }
            self.ahead = self.table.read_bytes(handle.offset, len).await?;
            self.ahead_offset = handle.offset;
        }
        let start = (handle.offset - self.ahead_offset) as usize;
        let bytes = self.ahead[start..start + handle.len].into();
        self.block = Some(self.table.parse(handle.offset, bytes)?);
        self.next_block += 1;
        Ok(())
    }
}
