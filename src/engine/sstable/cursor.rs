//! A walk over a table in either order, as a reader of an earlier moment sees it: of each key the newest version
//! not after an LSN. It never suspends: where a block is missing, or a partition of the index, it says which, and its owner loads it. So many
//! tables can be walked side by side, their reads issued together.
//!
//! The first few blocks come from the cache and go there, since short walks are repeated. Whoever goes on reads
//! ahead, more each time, past the cache: what a long walk reads once would displace what others need. A walk that
//! reads large pieces has the next one read while it is in this one.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::{Block, BlockHandle, Partition, Span, Table, TableError};
use crate::base::{Entry, Lsn};
use crate::env::Env;

/// Blocks that come through the cache before the walk reads ahead.
const CACHED_BLOCKS: u32 = 3;
/// Bytes of the first read ahead; each is twice the one before it.
const AHEAD_BYTES_MIN: usize = 16 << 10;
/// Bytes of a read from which on the next one begins while what it brought is walked.
const FLIGHT_BYTES_MIN: usize = 32 << 10;

/// What walks of a shard read ahead, past the cache. Shared by all of them.
pub struct AheadTotals {
    /// Bytes held from which on no walk has its next piece read before it needs it.
    pub max: usize,
    /// Bytes that they hold, or that are on their way.
    pub held: Cell<usize>,
    /// Bytes that were read, ever.
    pub read: Cell<u64>,
}

impl AheadTotals {
    /// None yet.
    pub fn new(max: usize) -> AheadBytes {
        Rc::new(AheadTotals { max, held: Cell::new(0), read: Cell::new(0) })
    }

    /// Notes that so many bytes are read.
    pub fn note(&self, bytes: usize) {
        self.read.set(self.read.get() + bytes as u64);
    }
}

/// See [`AheadTotals`].
pub type AheadBytes = Rc<AheadTotals>;

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
    /// One block, past it: it is larger than what is read ahead.
    Large(BlockHandle),
    /// Consecutive blocks, past it.
    Ahead {
        /// Where the first starts.
        offset: u64,
        /// Bytes of all.
        len: usize,
    },
    /// The same, whose read is on its way.
    Flight(Box<Flight>),
}

/// A read of consecutive blocks that began before they were needed. Dropped, it is given up.
pub struct Flight {
    offset: u64,
    len: usize,
    read: Pin<Box<dyn Future<Output = Result<Vec<u8>, TableError>>>>,
    landed: Option<Result<Vec<u8>, TableError>>,
    /// Bytes that it adds to what is read ahead.
    count: AheadCount,
}

impl Flight {
    /// What it brings, and where that starts. Suspends.
    pub async fn land(self) -> Result<(u64, Vec<u8>), TableError> {
        let bytes = match self.landed {
            Some(landed) => landed?,
            None => self.read.await?,
        };
        Ok((self.offset, bytes))
    }

    fn covers(&self, handle: BlockHandle) -> bool {
        handle.offset >= self.offset && handle.offset < self.offset + self.len as u64
    }

    /// Whether it has landed. The first call begins the read.
    fn look(&mut self) -> bool {
        if self.landed.is_none()
            && let Poll::Ready(read) = self.read.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        {
            self.landed = Some(read);
        }
        self.landed.is_some()
    }
}

/// A part of what walks have read ahead.
struct AheadCount {
    bytes: usize,
    total: AheadBytes,
}

impl AheadCount {
    fn new(bytes: usize, total: &AheadBytes) -> AheadCount {
        total.held.set(total.held.get() + bytes);
        AheadCount { bytes, total: total.clone() }
    }
}

impl Drop for AheadCount {
    fn drop(&mut self) {
        self.total.held.set(self.total.held.get() - self.bytes);
    }
}

/// A block of a table, on the way of a walk.
#[derive(Clone)]
struct At {
    partition: Rc<Partition>,
    place: usize,
    number: usize,
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
    _count: AheadCount,
}

impl Ahead {
    fn get(&self, handle: BlockHandle) -> Option<&[u8]> {
        let start = usize::try_from(handle.offset.checked_sub(self.offset)?).ok()?;
        self.bytes.get(start..start.checked_add(handle.len)?)
    }
}

/// An entry that a walk came to.
struct Found {
    block: Rc<Block>,
    span: Span,
}

impl Found {
    #[inline]
    fn key(&self) -> &[u8] {
        self.block.key_at(&self.span)
    }

    /// Whether it is of `key`. Neighbours mostly differ in their last byte.
    #[inline]
    fn is_of(&self, key: &[u8]) -> bool {
        let own = self.key();
        own.len() == key.len() && own.last() == key.last() && own == key
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
    found: Option<Found>,
    /// The entry whose key is being left.
    left: Option<Found>,
    ahead: Option<Ahead>,
    /// The last block of the latest read ahead.
    ahead_last: Option<At>,
    /// Bytes of the next one, and at most.
    ahead_len: usize,
    ahead_max: usize,
    /// What comes behind `ahead`, on its way.
    flight: Option<Box<Flight>>,
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
            ahead_last: None,
            ahead_len: AHEAD_BYTES_MIN,
            ahead_max: AHEAD_BYTES_MIN,
            flight: None,
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
        self.found.as_ref().map(|found| found.block.entry_at(&found.span))
    }

    /// The key it stands on.
    #[inline]
    pub fn key(&self) -> Option<&[u8]> {
        self.found.as_ref().map(Found::key)
    }

    /// Leaves the key it stands on.
    #[inline]
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
            if self.block.is_none() {
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
                if !self.take_block(partition.handle(self.number), memory)? {
                    return Ok(Walked::Missing);
                }
            }
            let is_settled = if self.is_reverse { self.look_back() } else { self.look_ahead() };
            if is_settled {
                return Ok(Walked::Ready);
            }
        }
    }

    /// Looks for the next entry in this block, and has the next block be taken if there is none.
    #[inline]
    fn look_ahead(&mut self) -> bool {
        let Some(block) = &self.block else { return false };
        while self.record < block.len() {
            let span = block.span(self.record);
            self.record += 1;
            let is_left = self.left.as_ref().is_some_and(|left| left.is_of(block.key_at(&span)));
            if !is_left && span.lsn() <= self.lsn {
                self.left = None;
                self.found = Some(Found { block: block.clone(), span });
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
            let span = block.span(record);
            let key = block.key_at(&span);
            let is_of = |other: &Option<Found>| other.as_ref().is_some_and(|other| other.is_of(key));
            if self.found.is_some() && !is_of(&self.found) {
                return true;
            }
            self.record = record;
            if !is_of(&self.left) {
                self.left = None;
                if span.lsn() <= self.lsn {
                    self.found = Some(Found { block: block.clone(), span });
                }
            }
        }
        // Newer versions may be in the block before: then, and hardly ever else, that ends with this key.
        let goes_on = self.found.as_ref().is_some_and(|found| self.is_separator_before(found.key()));
        self.block = None;
        match self.number.checked_sub(1) {
            Some(number) => self.number = number,
            None => self.leave_partition(self.place.and_then(|place| place.checked_sub(1))),
        }
        self.found.is_some() && !goes_on
    }

    /// Whether this is what separates the block before from this one.
    fn is_separator_before(&self, key: &[u8]) -> bool {
        match self.number.checked_sub(1) {
            Some(before) => {
                self.partition.as_ref().is_some_and(|partition| partition.cmp_separator(before, key).is_eq())
            }
            None => {
                let before = self.place.and_then(|place| place.checked_sub(1));
                before.is_some_and(|before| self.table.separator(before) == key)
            }
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
        self.take_flight(handle)?;
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

    /// Takes in what is on its way, if it has landed and this block is part of it.
    fn take_flight(&mut self, handle: BlockHandle) -> Result<(), TableError> {
        if self.flight.as_mut().is_some_and(|flight| flight.covers(handle) && flight.look())
            && let Some(flight) = self.flight.take()
            && let Flight { offset, landed: Some(landed), count, .. } = *flight
        {
            self.supply_ahead(offset, landed?, &count.total);
        }
        Ok(())
    }

    /// What is to be read, after [`Walked::Missing`]; not much more than `ahead_max`.
    pub fn wanted(&mut self, ahead_max: usize) -> Option<Wanted> {
        let place = self.place?;
        let Some(partition) = self.partition.clone() else { return Some(Wanted::Partition(place)) };
        let handle = partition.handle(self.number);
        if self.taken < CACHED_BLOCKS {
            return Some(Wanted::Block(handle));
        }
        if let Some(flight) = self.flight.take().filter(|flight| flight.covers(handle)) {
            return Some(Wanted::Flight(flight));
        }
        self.ahead_max = ahead_max;
        let len_max = self.next_len();
        if handle.len > len_max {
            return Some(Wanted::Large(handle));
        }
        let (offset, len) = self.reach(At { partition, place, number: self.number }, len_max);
        Some(Wanted::Ahead { offset, len })
    }

    /// Bytes of the next read ahead: twice as many as the last time, as far as may be.
    fn next_len(&mut self) -> usize {
        let len = self.ahead_len.min(self.ahead_max);
        self.ahead_len = len * 2;
        len
    }

    /// The bytes of consecutive blocks from `first` on, on the way, one at least and up to `len_max`.
    fn reach(&mut self, first: At, len_max: usize) -> (u64, usize) {
        let BlockHandle { mut offset, mut len } = first.partition.handle(first.number);
        let mut last = first;
        while let Some(next) = self.next_block(&last) {
            let handle = next.partition.handle(next.number);
            let is_adjacent = match self.is_reverse {
                true => handle.offset + handle.len as u64 == offset,
                false => handle.offset == offset + len as u64,
            };
            if !is_adjacent || len + handle.len > len_max {
                break;
            }
            len += handle.len;
            offset = offset.min(handle.offset);
            last = next;
        }
        self.ahead_last = Some(last);
        (offset, len)
    }

    /// The block behind that one, on the way; of another partition only if that is pinned.
    fn next_block(&self, at: &At) -> Option<At> {
        let next = if self.is_reverse { at.number.checked_sub(1) } else { Some(at.number + 1) };
        if let Some(number) = next.filter(|next| *next < at.partition.len()) {
            return Some(At { number, ..at.clone() });
        }
        let place = if self.is_reverse { at.place.checked_sub(1)? } else { at.place + 1 };
        let partition = self.table.pinned(place)?;
        let number = if self.is_reverse { partition.len() - 1 } else { 0 };
        Some(At { partition, place, number })
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
        let is_large = self.ahead_len / 2 >= FLIGHT_BYTES_MIN;
        self.ahead = Some(Ahead { offset, _count: AheadCount::new(bytes.len(), total), bytes });
        self.flight = if is_large { self.launch(total) } else { None };
    }

    /// Takes what has landed meanwhile out of the buffer into which it was read: there are few of those, and nobody
    /// may come by for some time.
    pub fn rest(&mut self) {
        if let Some(flight) = &mut self.flight {
            flight.look();
        }
    }

    /// Begins to read what comes next.
    fn launch(&mut self, total: &AheadBytes) -> Option<Box<Flight>> {
        let first = self.ahead_last.as_ref().and_then(|last| self.next_block(last))?;
        if total.held.get() >= total.max || first.partition.handle(first.number).len > self.ahead_max {
            return None;
        }
        let len_max = self.next_len();
        let (offset, len) = self.reach(first, len_max);
        let table = self.table.clone();
        total.note(len);
        let read = Box::pin(async move { table.read_bytes(offset, len).await });
        let mut flight = Flight { offset, len, read, landed: None, count: AheadCount::new(len, total) };
        flight.look();
        Some(Box::new(flight))
    }
}
