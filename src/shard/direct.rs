//! Reads that are answered where they are parsed, without a request: of what is in memory, from a connection of which
//! nothing else is under way. All others go the long way, and so does whatever is behind them.

use smallvec::SmallVec;

use super::Shard;
use super::budget::LARGE_REPLY_BYTES;
use crate::engine::memtable::PREFETCH_MAX;
use crate::engine::{Key, Loaded, Lookup};
use crate::env::Env;
use crate::metrics::Metrics;
use crate::protocol::Durability;
use crate::slot::Slot;

/// Bytes of a value up to which it is given at once. Longer ones are counted as they leave, and asked room for.
const VALUE_BYTES_MAX: usize = 16 << 10;

impl<E: Env> Shard<E> {
    /// Gives the values of `keys` to `take`, of one after the other (`None`: absent), up to the first that this shard
    /// does not own, has not in memory, may not tell of yet (its write is not durable), or that is long, or that comes when these are as much as one small reply may be; and none while
    /// a key is waited for by others, or its tablet moves. How many it gave. Expects that nothing which the same
    /// connection asked for before is under way.
    pub fn read_at_once(&self, keys: &[&[u8]], take: &mut dyn FnMut(Option<&[u8]>)) -> usize {
        if self.slots.held().is_some() || self.is_packing() {
            return 0;
        }
        self.engine.tick();
        let mut found = SmallVec::<[Key<'_>; PREFETCH_MAX]>::new();
        for key in keys {
            let Some(tablet) = self.slots.local_on(self.id, Slot::of_key(key)) else { break };
            found.push(Key { bytes: key, hash: self.engine.hash(key), tablet });
        }
        if found.len() > 1 {
            let hashes: SmallVec<[u64; PREFETCH_MAX]> = found.iter().map(|key| key.hash).collect();
            self.engine.fetch(&hashes, &found);
        }
        let (mut given, mut given_bytes, mut hits) = (0, 0, 0);
        let loaded = Loaded::new();
        for key in &found {
            if given_bytes > LARGE_REPLY_BYTES || self.is_waited_for(key.hash) {
                break;
            }
            let before = loaded.mark();
            let lookup = self.engine.lookup(key, &loaded, |found| {
                let value = found.entry.as_ref().map(|entry| entry.value);
                if self.observed(found.wait, Durability::Default).is_some()
                    || value.is_some_and(|value| value.len() > VALUE_BYTES_MAX)
                {
                    return None;
                }
                take(value);
                given_bytes += value.map_or(0, <[u8]>::len);
                Some(value.is_some())
            });
            let Ok(Lookup::Done(Some(is_hit))) = lookup else {
                loaded.back_to(before);
                break;
            };
            self.engine.note_use(key.tablet);
            given += 1;
            hits += u64::from(is_hit);
        }
        self.engine.count_reads(&loaded);
        Metrics::add(&self.metrics.requests, given as u64);
        Metrics::add(&self.metrics.gets, given as u64);
        Metrics::add(&self.metrics.get_hits, hits);
        given
    }
}
