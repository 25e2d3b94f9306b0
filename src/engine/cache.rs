//! The block cache of a shard: verified blocks, bounded by bytes, scan-resistant; at most one read per
//! block in flight.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use quick_cache::Weighter;
use quick_cache::unsync::Cache;

use super::sstable::{Block, BlockHandle, Table, TableError};
use crate::base::FileId;
use crate::env::{Env, Notify};

type Key = (FileId, u64);

#[derive(Clone)]
struct ByBytes;

impl Weighter<Key, Rc<Block>> for ByBytes {
    fn weight(&self, _: &Key, block: &Rc<Block>) -> u64 {
        // What the cache itself keeps per block, measured roughly: entry, hash slot, Rc.
        const OVERHEAD: u64 = 100;
        block.memory_bytes() as u64 + OVERHEAD
    }
}

/// A block that is being read.
#[derive(Default)]
struct Flight {
    block: RefCell<Option<Rc<Block>>>,
    landed: Notify,
}

/// A shard's block cache.
pub struct BlockCache {
    cache: RefCell<Cache<Key, Rc<Block>, ByBytes>>,
    reading: RefCell<HashMap<Key, Rc<Flight>>>,
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
    /// Holds up to `bytes`.
    pub fn new(bytes: usize) -> BlockCache {
        let blocks = (bytes / 4096).max(16);
        let cache = Cache::with_weighter(blocks, bytes as u64, ByBytes);
        BlockCache { cache: RefCell::new(cache), reading: RefCell::default() }
    }

    /// A block, if it is here.
    pub fn get(&self, file: FileId, offset: u64) -> Option<Rc<Block>> {
        self.cache.borrow().get(&(file, offset)).cloned()
    }

    /// A block, if it is here, without telling the cache that someone wanted it.
    pub fn peek(&self, file: FileId, offset: u64) -> Option<Rc<Block>> {
        self.cache.borrow().peek(&(file, offset)).cloned()
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.cache.borrow().weight()
    }

    /// A block from here or from disk. Whoever asks for a block that is being read waits for that read, and
    /// reads it himself only if that one failed.
    pub async fn read<E: Env>(&self, table: &Table<E>, handle: BlockHandle) -> Result<Rc<Block>, TableError> {
        let key = (table.file(), handle.offset);
        loop {
            // The flight's own result, since a block too large for the cache never gets into it.
            let flight = self.reading.borrow().get(&key).cloned();
            let Some(flight) = flight else { break };
            flight.landed.notified().await;
            if let Some(block) = flight.block.borrow().clone() {
                return Ok(block);
            }
        }
        if let Some(block) = self.get(key.0, key.1) {
            return Ok(block);
        }
        let flight = Rc::new(Flight::default());
        self.reading.borrow_mut().insert(key, flight.clone());
        let _landing = Landing { cache: self, key };
        let block = table.read_block(handle).await?;
        self.cache.borrow_mut().insert(key, block.clone());
        *flight.block.borrow_mut() = Some(block.clone());
        Ok(block)
    }
}
