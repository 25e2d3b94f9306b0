//! A walk over a table in either order, as a reader of an earlier moment sees it: of each key the newest version
//! not after an LSN. It never suspends: where a block is missing, or a partition of the index, it says which, and its owner loads it. So many
//! tables can be walked side by side, their reads issued together.
//!
//! The first few blocks come from the cache and go there, since short walks are repeated. Whoever goes on reads
//! ahead, more each time, past the cache: what a long walk reads once would displace what others need.

use std::cell::Cell;
use std::rc::Rc;

use super::{Block, BlockHandle, Partition, Table, TableError};
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

/// What has blocks and partitions in memory.
pub trait InMemory<E: Env> {
    /// A block, if it is here; `counts`: it is wanted by someone who may come again.
    fn block(&self, table: &Table<E>, handle: BlockHandle, counts: bool) -> Option<Rc<Block>>;

    /// A partition, if it is here.
    fn partition(&self, table: &Table<E>, number: usize) -> Option<Rc<Partition>>;
}

/// What a walk needs in order to go on.
pub enum Wanted {
    /// A partition of the index, through the cache.
    Partition(usize),
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
    /// The partition it is in, or needs next; `None` behind the last.
    place: Option<usize>,
    partition: Option<Rc<Partition>>,
    /// The block of the partition it is in, or needs next.
    number: usize,
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
        let last = table.partitions() - 1;
        let place = match (&bound, is_reverse) {
            (Bound::Key(key), false) => table.find_partition(key),
            (Bound::None, false) => Some(0),
            (Bound::Key(key), true) => Some(table.find_partition(key).unwrap_or(last)),
            (Bound::None, true) => Some(last),
        };
        TableCursor {
            table: table.clone(),
            is_reverse,
            lsn,
            bound: Some(bound),
            place,
            partition: None,
            number: 0,
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

    /// The key it stands on.
    #[inline]
    pub fn key(&self) -> Option<&[u8]> {
        self.found.as_ref().map(|(block, record)| block.key(*record))
    }

    /// Leaves the key it stands on.
    pub fn advance(&mut self, memory: &impl InMemory<E>) -> Result<Walked, TableError> {
        self.leave();
        self.settle(memory)
    }

    /// Leaves the key it stands on, and stands nowhere until [`TableCursor::settle`].
    pub fn leave(&mut self) {
        self.left = self.found.take();
    }

    /// Goes on to the next entry that counts, as far as blocks are there. Called again once what is
    /// [`TableCursor::wanted`] was supplied.
    pub fn settle(&mut self, memory: &impl InMemory<E>) -> Result<Walked, TableError> {
        loop {
            let Some(place) = self.place else {
                return Ok(if self.found.is_some() { Walked::Ready } else { Walked::End });
            };
            let partition = match self.partition.clone() {
                Some(partition) => partition,
                None => match memory.partition(&self.table, place) {
                    Some(partition) => self.enter_partition(partition),
                    None => return Ok(Walked::Missing),
                },
            };
            if self.block.is_none() && !self.take_block(partition.handle(self.number), memory)? {
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
            let is_left = self.left.as_ref().is_some_and(|(block, record)| block.key(*record) == key);
            if !is_left && entry.lsn <= self.lsn {
                self.left = None;
                self.found = Some((block, record));
                return true;
            }
        }
        self.block = None;
        self.number += 1;
        if self.partition.as_ref().is_none_or(|partition| self.number >= partition.len()) {
            let next = self.place.map(|place| place + 1);
            self.leave_partition(next.filter(|next| *next < self.table.partitions()));
        }
        false
    }

    /// Looks for the entry before; the versions of a key come oldest first here.
    fn look_back(&mut self) -> bool {
        let Some(block) = self.block.clone() else { return false };
        while let Some(record) = self.record.checked_sub(1) {
            let (key, entry) = block.entry(record);
            let is_of = |other: &Option<(Rc<Block>, usize)>| {
                other.as_ref().is_some_and(|(block, record)| block.key(*record) == key)
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
        // Newer versions may be in the block before: then, and hardly ever else, that ends with this key.
        let goes_on = match (&self.found, self.separator_before()) {
            (Some((block, record)), Some(separator)) => separator == block.key(*record),
            _ => false,
        };
        self.block = None;
        match self.number.checked_sub(1) {
            Some(number) => self.number = number,
            None => self.leave_partition(self.place.and_then(|place| place.checked_sub(1))),
        }
        self.found.is_some() && !goes_on
    }

    /// What separates the block before from this one; `None`: this is the first.
    fn separator_before(&self) -> Option<&[u8]> {
        match self.number.checked_sub(1) {
            Some(before) => self.partition.as_ref().map(|partition| partition.separator(before)),
            None => self.place?.checked_sub(1).map(|before| self.table.separator(before)),
        }
    }

    fn leave_partition(&mut self, next: Option<usize>) {
        self.partition = None;
        self.place = next;
    }

    /// Takes up the partition that was missing, and turns to its first block on the way.
    fn enter_partition(&mut self, partition: Rc<Partition>) -> Rc<Partition> {
        let last = partition.len() - 1;
        self.number = match (&self.bound, self.is_reverse) {
            (Some(Bound::Key(key)), _) => partition.find(key).unwrap_or(last),
            (_, false) => 0,
            (_, true) => last,
        };
        self.partition = Some(partition.clone());
        partition
    }

    /// Takes up the block that stands there, if it is in memory.
    fn take_block(&mut self, handle: BlockHandle, memory: &impl InMemory<E>) -> Result<bool, TableError> {
        let block = match self.ahead.as_ref().and_then(|ahead| ahead.get(handle)) {
            Some(bytes) => Some(Rc::new(self.table.parse(handle.offset, bytes)?)),
            None => memory.block(&self.table, handle, self.taken < CACHED_BLOCKS),
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
        let place = self.place?;
        let Some(partition) = self.partition.clone() else { return Some(Wanted::Partition(place)) };
        let handle = partition.handle(self.number);
        if self.taken < CACHED_BLOCKS {
            return Some(Wanted::Block(handle));
        }
        let len_max = self.ahead_len.min(ahead_max);
        self.ahead_len = len_max * 2;
        let (mut offset, mut len) = (handle.offset, handle.len);
        let mut at = (partition, place, self.number);
        while let Some(next) = self.next_block(at) {
            let handle = next.0.handle(next.2);
            let is_adjacent = match self.is_reverse {
                true => handle.offset + handle.len as u64 == offset,
                false => handle.offset == offset + len as u64,
            };
            if !is_adjacent || len + handle.len > len_max {
                break;
            }
            len += handle.len;
            offset = offset.min(handle.offset);
            at = next;
        }
        Some(Wanted::Ahead { offset, len })
    }

    /// The block behind the one with that number of that partition, on the way; of another partition only if
    /// that is pinned.
    #[allow(clippy::type_complexity)]
    fn next_block(
        &self,
        (partition, place, number): (Rc<Partition>, usize, usize),
    ) -> Option<(Rc<Partition>, usize, usize)> {
        let next = if self.is_reverse { number.checked_sub(1) } else { Some(number + 1) };
        if let Some(next) = next.filter(|next| *next < partition.len()) {
            return Some((partition, place, next));
        }
        let place = if self.is_reverse { place.checked_sub(1)? } else { place + 1 };
        let partition = self.table.pinned(place)?;
        let number = if self.is_reverse { partition.len() - 1 } else { 0 };
        Some((partition, place, number))
    }

    /// Supplies the partition that was wanted.
    pub fn supply_partition(&mut self, partition: Rc<Partition>) {
        self.enter_partition(partition);
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
