//! A walk over a table in either order, as a reader of an earlier moment sees it: of each key the newest version
//! not after an LSN. It never suspends: where a block is missing, it says which, and its owner loads it. So many
//! tables can be walked side by side, their reads issued together.
//!
//! The first few blocks come from the cache and go there, since short walks are repeated. Whoever goes on reads
//! ahead, more each time, past the cache: what a long walk reads once would displace what others need.

use std::cell::Cell;
use std::rc::Rc;

use super::{Block, BlockHandle, Table, TableError};
use crate::base::{Entry, Lsn};
use crate::env::Env;

/// Blocks that come through the cache before the walk reads ahead.
const CACHED_BLOCKS: u32 = 3;
/// Bytes of the first read ahead; each is twice the one before it.
const AHEAD_BYTES_MIN: usize = 16 << 10;

/// Bytes that walks of a shard have read ahead. Shared by all of them.
pub type AheadBytes = Rc<Cell<usize>>;

/// Where a walk begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bound {
    /// In order: at the first key not below this one. In reverse order: at the last one below it.
    Key(Vec<u8>),
    /// At the end from which it comes.
    None,
}

impl Bound {
    /// The key, if there is one.
    pub fn key(&self) -> Option<&[u8]> {
        match self {
            Bound::Key(key) => Some(key),
            Bound::None => None,
        }
    }
}

/// What a walk needs in order to go on.
pub enum Wanted {
    /// One block, through the cache.
    Block(BlockHandle),
    /// Consecutive blocks, past it.
    Ahead {
        /// Where the first starts.
        offset: u64,
        /// Bytes of all.
        len: usize,
    },
}

/// Where a step has led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walked {
    /// To an entry.
    Ready,
    /// To the end.
    End,
    /// To a block that is not in memory.
    Missing,
}

/// Blocks that were read ahead, not verified yet.
struct Ahead {
    offset: u64,
    bytes: Vec<u8>,
    total: AheadBytes,
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.total.set(self.total.get() - self.bytes.len());
    }
}

impl Ahead {
    fn get(&self, handle: BlockHandle) -> Option<&[u8]> {
        let start = usize::try_from(handle.offset.checked_sub(self.offset)?).ok()?;
        self.bytes.get(start..start.checked_add(handle.len)?)
    }
}

/// A walk over a table.
pub struct TableCursor<E: Env> {
    table: Rc<Table<E>>,
    is_reverse: bool,
    lsn: Lsn,
    /// Where it begins, until its first block is there.
    bound: Option<Bound>,
    /// The block it is in, or needs next; `None` behind the last.
    number: Option<usize>,
    block: Option<Rc<Block>>,
    /// The record to be looked at next; in reverse order the one before this number.
    record: usize,
    /// The entry it stands on.
    found: Option<(Rc<Block>, usize)>,
    /// The entry whose key is being left.
    left: Option<(Rc<Block>, usize)>,
    ahead: Option<Ahead>,
    ahead_len: usize,
    taken: u32,
}

impl<E: Env> TableCursor<E> {
    /// A walk that begins at `bound`. It stands nowhere before [`TableCursor::settle`].
    pub fn new(table: &Rc<Table<E>>, bound: Bound, is_reverse: bool, lsn: Lsn) -> TableCursor<E> {
        let last = table.blocks() - 1;
        let number = match (&bound, is_reverse) {
            (Bound::Key(key), false) => table.find_block(key),
            (Bound::None, false) => Some(0),
            (Bound::Key(key), true) => Some(table.find_block(key).unwrap_or(last)),
            (Bound::None, true) => Some(last),
        };
        TableCursor {
            table: table.clone(),
            is_reverse,
            lsn,
            bound: Some(bound),
            number,
            block: None,
            record: 0,
            found: None,
            left: None,
            ahead: None,
            ahead_len: AHEAD_BYTES_MIN,
            taken: 0,
        }
    }

    /// The table.
    pub fn table(&self) -> &Rc<Table<E>> {
        &self.table
    }

    /// The entry it stands on.
    #[inline]
    pub fn current(&self) -> Option<(&[u8], Entry<'_>)> {
        self.found.as_ref().map(|(block, record)| block.entry(*record))
    }

    /// Leaves the key it stands on. `cached` gives a block if the cache has it.
    pub fn advance(
        &mut self,
        cached: impl FnMut(BlockHandle, bool) -> Option<Rc<Block>>,
    ) -> Result<Walked, TableError> {
        self.leave();
        self.settle(cached)
    }

    /// Leaves the key it stands on, and stands nowhere until [`TableCursor::settle`].
    pub fn leave(&mut self) {
        self.left = self.found.take();
    }

    /// Goes on to the next entry that counts, as far as blocks are there. Called again once what is
    /// [`TableCursor::wanted`] was supplied. `cached` gives a block of the cache; it is told whether that counts
    /// as a use.
    pub fn settle(
        &mut self,
        mut cached: impl FnMut(BlockHandle, bool) -> Option<Rc<Block>>,
    ) -> Result<Walked, TableError> {
        loop {
            let Some(number) = self.number else {
                return Ok(if self.found.is_some() { Walked::Ready } else { Walked::End });
            };
            if self.block.is_none() && !self.take_block(number, &mut cached)? {
                return Ok(Walked::Missing);
            }
            let is_settled = if self.is_reverse { self.look_back() } else { self.look_ahead() };
            if is_settled {
                return Ok(Walked::Ready);
            }
        }
    }

    /// Looks for the next entry in this block, and has the next block be taken if there is none.
    fn look_ahead(&mut self) -> bool {
        let Some(block) = self.block.clone() else { return false };
        while self.record < block.len() {
            let record = self.record;
            let (key, entry) = block.entry(record);
            self.record += 1;
            let is_left = self.left.as_ref().is_some_and(|(block, record)| block.entry(*record).0 == key);
            if !is_left && entry.lsn <= self.lsn {
                self.left = None;
                self.found = Some((block, record));
                return true;
            }
        }
        self.leave_block(self.number.map(|number| number + 1).filter(|next| *next < self.table.blocks()));
        false
    }

    /// Looks for the entry before; the versions of a key come oldest first here.
    fn look_back(&mut self) -> bool {
        let Some(block) = self.block.clone() else { return false };
        while let Some(record) = self.record.checked_sub(1) {
            let (key, entry) = block.entry(record);
            let is_of = |other: &Option<(Rc<Block>, usize)>| {
                other.as_ref().is_some_and(|(block, record)| block.entry(*record).0 == key)
            };
            if self.found.is_some() && !is_of(&self.found) {
                return true;
            }
            self.record = record;
            if !is_of(&self.left) {
                self.left = None;
                if entry.lsn <= self.lsn {
                    self.found = Some((block.clone(), record));
                }
            }
        }
        let before = self.number.and_then(|number| number.checked_sub(1));
        // Newer versions may be in the block before: then, and hardly ever else, that ends with this key.
        let goes_on = match (&self.found, before) {
            (Some((block, record)), Some(before)) => self.table.separator(before) == block.entry(*record).0,
            _ => false,
        };
        self.leave_block(before);
        self.found.is_some() && !goes_on
    }

    fn leave_block(&mut self, next: Option<usize>) {
        self.block = None;
        self.number = next;
        self.record = 0;
    }

    /// Takes up the block with this number, if it is in memory.
    fn take_block(
        &mut self,
        number: usize,
        cached: &mut impl FnMut(BlockHandle, bool) -> Option<Rc<Block>>,
    ) -> Result<bool, TableError> {
        let handle = self.table.handle(number);
        let block = match self.ahead.as_ref().and_then(|ahead| ahead.get(handle)) {
            Some(bytes) => Some(Rc::new(self.table.parse(handle.offset, bytes.into())?)),
            None => cached(handle, self.taken < CACHED_BLOCKS),
        };
        match block {
            Some(block) => self.enter(block),
            None => return Ok(false),
        }
        Ok(true)
    }

    fn enter(&mut self, block: Rc<Block>) {
        self.taken += 1;
        self.record = match (self.bound.take(), self.is_reverse) {
            (Some(Bound::Key(key)), _) => block.lower_bound(&key),
            (_, false) => 0,
            (_, true) => block.len(),
        };
        self.block = Some(block);
    }

    /// What is to be read, after [`Walked::Missing`]; not much more than `ahead_max`.
    pub fn wanted(&mut self, ahead_max: usize) -> Option<Wanted> {
        let number = self.number?;
        let handle = self.table.handle(number);
        if self.taken < CACHED_BLOCKS {
            return Some(Wanted::Block(handle));
        }
        let len_max = self.ahead_len.min(ahead_max);
        self.ahead_len = len_max * 2;
        let (mut offset, mut len, mut last) = (handle.offset, handle.len, number);
        loop {
            let next = if self.is_reverse { last.checked_sub(1) } else { Some(last + 1) };
            let Some(next) = next.filter(|next| *next < self.table.blocks()) else { break };
            let handle = self.table.handle(next);
            if len + handle.len > len_max {
                break;
            }
            len += handle.len;
            offset = offset.min(handle.offset);
            last = next;
        }
        Some(Wanted::Ahead { offset, len })
    }

    /// Supplies the block that was wanted.
    pub fn supply_block(&mut self, block: Rc<Block>) {
        self.enter(block);
    }

    /// Supplies the bytes that were wanted. They are part of `total` until they are given up.
    pub fn supply_ahead(&mut self, offset: u64, bytes: Vec<u8>, total: &AheadBytes) {
        total.set(total.get() + bytes.len());
        self.ahead = Some(Ahead { offset, bytes, total: total.clone() });
    }
}
