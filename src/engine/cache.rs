//! The block cache of a shard: verified and decompressed blocks, and partitions of indexes that are not
//! pinned. Bounded by the bytes that they take in memory, scan-resistant; at most one read per part in flight.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use quick_cache::Weighter;
use quick_cache::unsync::Cache;

use super::sstable::{Block, BlockHandle, InMemory, Partition, Table, TableError};
use crate::base::{Bug, FileId, planted};
use crate::env::{Env, Notify, Permits};

/// File and offset; of a partition the offset and one. So whatever an index says, a block is never taken for
/// a partition.
type Key = (FileId, u64);

/// What is cached.
#[derive(Clone)]
enum Part {
    /// A block.
    Block(Rc<Block>),
    /// A partition of an index.
    Partition(Rc<Partition>),
}

impl Part {
    fn memory_bytes(&self) -> usize {
        match self {
            Part::Block(block) => block.memory_bytes(),
            Part::Partition(partition) => partition.memory_bytes(),
        }
    }

    fn block(self) -> Option<Rc<Block>> {
        match self {
            Part::Block(block) => Some(block),
            Part::Partition(_) => None,
        }
    }

    fn partition(self) -> Option<Rc<Partition>> {
        match self {
            Part::Partition(partition) => Some(partition),
            Part::Block(_) => None,
        }
    }
}

/// Which part of a table is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// A block.
    Block(BlockHandle),
    /// A partition, by its number.
    Partition(usize),
}

impl Place {
    /// Where it stands in `table`.
    pub fn handle<E: Env>(self, table: &Table<E>) -> BlockHandle {
        match self {
            Place::Block(handle) => handle,
            Place::Partition(number) => table.partition_handle(number),
        }
    }

    fn key<E: Env>(self, table: &Table<E>) -> Key {
        match self {
            Place::Block(handle) if planted(Bug::CacheStale) => (FileId(table.file().0 % 16), handle.offset),
            Place::Block(handle) => (table.file(), handle.offset),
            Place::Partition(number) => (table.file(), table.partition_handle(number).offset + 1),
        }
    }

    async fn read<E: Env>(self, table: &Table<E>) -> Result<Part, TableError> {
        Ok(match self {
            Place::Block(handle) => Part::Block(table.read_block(handle).await?),
            Place::Partition(number) => Part::Partition(table.read_partition(number).await?),
        })
    }
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Key, Part> for ByBytes {
    fn weight(&self, _: &Key, part: &Part) -> u64 {
        // What the cache itself keeps per part, measured roughly: entry, hash slot, Rc.
        const OVERHEAD: u64 = 100;
        part.memory_bytes() as u64 + OVERHEAD
    }
}

/// A part that is being read.
#[derive(Default)]
struct Flight {
    part: RefCell<Option<Part>>,
    landed: Notify,
}

/// A shard's block cache.
pub struct BlockCache {
    cache: RefCell<Cache<Key, Part, ByBytes>>,
    reading: RefCell<HashMap<Key, Rc<Flight>>>,
    /// For those that the device has at a time.
    reads: Permits,
    disk_reads: Cell<u64>,
}

/// Ends a flight, whether the read came to its end or its future was dropped: those who wait must not wait
/// for ever.
struct Landing<'a> {
    cache: &'a BlockCache,
    key: Key,
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let flight = self.cache.reading.borrow_mut().remove(&self.key);
        flight.expect("a flight is ended by whoever began it").landed.notify();
    }
}

impl BlockCache {
    /// Holds up to `bytes`, and reads up to `reads_max` parts at a time.
    pub fn new(bytes: usize, reads_max: usize) -> BlockCache {
        let blocks = (bytes / 4096).max(16);
        let cache = Cache::with_weighter(blocks, bytes as u64, ByBytes);
        let (reading, reads) = (RefCell::default(), Permits::new(reads_max));
        BlockCache { cache: RefCell::new(cache), reading, reads, disk_reads: Cell::new(0) }
    }

    /// A block, if it is here.
    pub fn get<E: Env>(&self, table: &Table<E>, handle: BlockHandle) -> Option<Rc<Block>> {
        self.get_part(Place::Block(handle).key(table)).and_then(Part::block)
    }

    /// A block of this file, if it is here. Nobody wants it yet.
    pub fn peek(&self, file: FileId, handle: BlockHandle) -> Option<Rc<Block>> {
        self.cache.borrow().peek(&(file, handle.offset)).cloned().and_then(Part::block)
    }

    /// A partition, if it is here.
    pub fn get_partition<E: Env>(&self, table: &Table<E>, number: usize) -> Option<Rc<Partition>> {
        self.get_part(Place::Partition(number).key(table)).and_then(Part::partition)
    }

    fn get_part(&self, key: Key) -> Option<Part> {
        self.cache.borrow().get(&key).cloned()
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.cache.borrow().weight()
    }

    /// Parts read from disk so far.
    pub fn disk_reads(&self) -> u64 {
        self.disk_reads.get()
    }

    /// A block from here or from disk. Whoever asks for something that is being read waits for that read,
    /// and reads it himself only if that one failed. Suspends.
    pub async fn block<E: Env>(
        &self,
        table: &Table<E>,
        handle: BlockHandle,
    ) -> Result<Rc<Block>, TableError> {
        let part = self.read(table, Place::Block(handle)).await?;
        Ok(part.block().expect("keys of blocks are those of blocks alone"))
    }

    /// A partition that is pinned, or from here or from disk, as a block is.
    pub async fn partition<E: Env>(
        &self,
        table: &Table<E>,
        number: usize,
    ) -> Result<Rc<Partition>, TableError> {
        if let Some(partition) = table.pinned(number) {
            return Ok(partition);
        }
        let part = self.read(table, Place::Partition(number)).await?;
        Ok(part.partition().expect("keys of partitions are those of partitions alone"))
    }

    async fn read<E: Env>(&self, table: &Table<E>, place: Place) -> Result<Part, TableError> {
        let key = place.key(table);
        loop {
            // The flight's own result, since a part too large for the cache never gets into it.
            let flight = self.reading.borrow().get(&key).cloned();
            let Some(flight) = flight else { break };
            flight.landed.notified().await;
            if let Some(part) = flight.part.borrow().clone() {
                return Ok(part);
            }
        }
        if let Some(part) = self.get_part(key) {
            return Ok(part);
        }
        let flight = Rc::new(Flight::default());
        self.reading.borrow_mut().insert(key, flight.clone());
        let _landing = Landing { cache: self, key };
        self.disk_reads.set(self.disk_reads.get() + 1);
        let permit = self.reads.acquire().await;
        let part = place.read(table).await?;
        drop(permit);
        self.cache.borrow_mut().insert(key, part.clone());
        *flight.part.borrow_mut() = Some(part.clone());
        Ok(part)
    }
}

impl<E: Env> InMemory<E> for BlockCache {
    fn block(&self, table: &Table<E>, handle: BlockHandle, counts: bool) -> Option<Rc<Block>> {
        if counts {
            return self.get(table, handle);
        }
        // Without telling the cache that someone wanted it.
        let part = self.cache.borrow().peek(&Place::Block(handle).key(table)).cloned();
        part.and_then(Part::block)
    }

    fn partition(&self, table: &Table<E>, number: usize) -> Option<Rc<Partition>> {
        table.pinned(number).or_else(|| self.get_partition(table, number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{Codec, Entry, Lsn, OpKind, TabletId};
    use crate::disk::Disk;
    use crate::engine::sstable::{IndexBudget, TableBuilder, TableOptions};
    use crate::env::sim::SimEnv;
    use crate::slot::SlotRange;

    /// A table of so many blocks, and where they stand.
    async fn table(env: &SimEnv, file: u64, blocks: u32) -> (Table<SimEnv>, Vec<BlockHandle>) {
        let _ = env.disk().create_dir("sst").await;
        let options = TableOptions::upper(Codec::None);
        let (file, tablet) = (FileId(file), TabletId(3));
        let mut builder = TableBuilder::create(env, file, tablet, SlotRange::ALL, options).await.unwrap();
        for n in 0..blocks {
            let entry = Entry { lsn: Lsn(1), kind: OpKind::Put, expiry_ms: 0, value: &[7; 3900] };
            builder.add(&n.to_be_bytes(), u64::from(n), &entry).await.unwrap();
        }
        builder.finish().await.unwrap();
        let name = crate::base::TableName::new(tablet, file);
        let table = Table::open(env, name, &IndexBudget::new(1 << 20)).await.unwrap();
        let mut handles = Vec::new();
        for number in 0..table.partitions() {
            let partition = table.read_partition(number).await.unwrap();
            handles.extend((0..partition.len()).map(|block| partition.handle(block)));
        }
        assert_eq!(handles.len(), blocks as usize);
        (table, handles)
    }

    #[test]
    fn a_scan_of_many_times_the_cache_leaves_the_hot_set_in_it() {
        let (world, env) = SimEnv::fresh(50);
        world.run(async {
            let mut rng = fastrand::Rng::with_seed(50);
            let (hot, hot_handles) = table(&env, 1, 2000).await;
            let (scanned, scanned_handles) = table(&env, 2, 5000).await;
            // Room for a tenth of the hot table and a twenty-fifth of the other.
            let cache = BlockCache::new(200 * 4300, 8);
            let mut read_hot = async |count: usize| {
                let mut hits = 0;
                for _ in 0..count {
                    let at = (rng.f64().powi(4) * hot_handles.len() as f64) as usize;
                    hits += usize::from(cache.get(&hot, hot_handles[at]).is_some());
                    cache.block(&hot, hot_handles[at]).await.unwrap();
                }
                hits as f64 * 100.0 / count as f64
            };
            read_hot(20_000).await;
            let before = read_hot(20_000).await;
            // All through the cache, a quarter of the reads: worse than any scan, which reads ahead past it.
            let mut during = 0.0;
            for some in scanned_handles.chunks(50) {
                during += read_hot(150).await * some.len() as f64 / scanned_handles.len() as f64;
                for handle in some {
                    cache.block(&scanned, *handle).await.unwrap();
                }
            }
            let after = read_hot(1000).await;
            println!("hit rate: {before:.1} % before, {during:.1} % during, {after:.1} % after");
            assert!(before > 40.0 && before < 90.0, "{before} %: there is something to lose");
            assert!(during > before - 5.0, "{before} % before, {during} % during");
            assert!(after > before - 5.0, "{before} % before, {after} % after");
            assert!(cache.bytes() <= 200 * 4300);
        });
    }

    #[test]
    fn no_more_is_read_at_a_time_than_may_be_and_all_is_read() {
        let (world, env) = SimEnv::fresh(51);
        world.run(async {
            let (table, handles) = table(&env, 1, 20).await;
            let cache = BlockCache::new(1 << 20, 3);
            let mut reads: Vec<_> =
                handles.iter().map(|handle| Box::pin(cache.block(&table, *handle))).collect();
            for read in &mut reads {
                assert!(futures_lite::future::poll_once(read).await.is_none(), "a disk takes time");
            }
            assert_eq!(cache.reads.waiting(), 17);
            // Some give up: one that is read, one that waits.
            drop((reads.remove(19), reads.remove(0)));
            for (read, handle) in reads.into_iter().zip(&handles[1..]) {
                read.await.unwrap();
                assert!(cache.get(&table, *handle).is_some());
            }
            assert_eq!((cache.reads.waiting(), cache.reading.borrow().len()), (0, 0));
            assert_eq!(cache.disk_reads(), 20);
        });
    }
}
