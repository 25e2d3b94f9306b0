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

/// A shard's block cache.
pub struct BlockCache {
    cache: RefCell<Cache<Key, Rc<Block>, ByBytes>>,
    reading: RefCell<HashMap<Key, Notify>>,
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

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.cache.borrow().weight()
    }

    /// A block from here or from disk. Whoever asks for a block that is being read waits for that read.
    pub async fn read<E: Env>(&self, table: &Table<E>, handle: BlockHandle) -> Result<Rc<Block>, TableError> {
        let key = (table.file(), handle.offset);
        let waiting = self.reading.borrow().get(&key).map(Notify::notified);
        if let Some(done) = waiting {
            done.await;
            if let Some(block) = self.get(key.0, key.1) {
                return Ok(block);
            }
            // It failed, or was evicted at once: read it ourselves, without making others wait.
            return table.read_block(handle).await;
        }
        self.reading.borrow_mut().insert(key, Notify::new());
        let block = table.read_block(handle).await;
        if let Ok(block) = &block {
            self.cache.borrow_mut().insert(key, block.clone());
        }
        if let Some(done) = self.reading.borrow_mut().remove(&key) {
            done.notify();
        }
        block
    }
}
