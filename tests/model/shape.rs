//! How a store is opened: everything small, so that little data meets much of the engine.

use std::time::Duration;

use atlaskv::base::{Codec, Compression};
use atlaskv::engine::EngineOptions;

/// Memory of connections that all scans and requests of a run fit in.
const AMPLE_BYTES: usize = 1 << 30;

/// One way to open a store.
#[derive(Clone, Debug)]
pub struct Shape {
    pub shards: usize,
    /// Of a new store.
    pub tablets: u16,
    /// Messages that a ring of the mesh holds.
    pub ring_messages: usize,
    /// Whether a write is durable before it is answered.
    pub is_durable: bool,
    /// What all connections of a shard may hold.
    pub connection_bytes: usize,
    pub options: EngineOptions,
}

impl Shape {
    /// A random one, whose log takes keys and values of up to `entry_bytes_max`.
    pub fn random(rng: &mut fastrand::Rng, tablets: u16, entry_bytes_max: usize) -> Shape {
        let mut codec = || Codec::ALL[rng.usize(..3)];
        let compression = Compression { upper: codec(), last: codec() };
        let is_durable = rng.u8(..6) > 0;
        let least = (entry_bytes_max as u64 + (64 << 10)).next_multiple_of(4 << 10);
        let mut options = EngineOptions {
            // A memtable takes a mebibyte as soon as it holds anything; most are sealed by the test.
            memtable_bytes: [(1 << 20) + 1, 2 << 20, 64 << 20][rng.usize(..3)],
            sealed_max: rng.usize(1..=2),
            cache_bytes: [16 << 10, 64 << 10, 1 << 20][rng.usize(..3)],
            row_bytes: 0,
            reads_max: 64,
            // No index is resident, some are, all are.
            index_bytes: [0, 12 << 10, 1 << 20][rng.usize(..3)],
            compression,
            segment_bytes: least * [1, 2, 8][rng.usize(..3)],
            window: rng.usize(1..=3),
            lazy: (!is_durable).then_some(Duration::from_millis(3)),
            compaction_fan: rng.usize(2..=4),
            snapshot_life: Duration::from_secs(60),
            snapshot_bytes: 1 << 30,
            scrub_bytes_per_s: if rng.u8(..6) == 0 { 1 << 20 } else { 0 },
            level_ratio: rng.u64(1..=4),
            last_table_bytes: [1, 8 << 10, 32 << 10, 1 << 20][rng.usize(..4)],
            reserve_bytes: 0,
        };
        options.row_bytes = options.cache_bytes / 2;
        options.reads_max = [1, 3, 64][options.level_ratio as usize % 3];
        let ring_messages = [2, 16, 256][rng.usize(..3)];
        let shards = rng.usize(1..=4);
        let connection_bytes = [256 << 10, 4 << 20, AMPLE_BYTES][rng.usize(..3)];
        Shape { shards, tablets, ring_messages, is_durable, connection_bytes, options }
    }

    /// The same of a store that is durable at all times. Where all is small, so are segments of the log: a short life
    /// fills and gives up some.
    pub fn in_storm(mut self, rng: &mut fastrand::Rng, entry_bytes_max: usize) -> Shape {
        if entry_bytes_max < 17 << 10 {
            self.options.segment_bytes = [24 << 10, 32 << 10, self.options.segment_bytes][rng.usize(..3)];
        }
        self.is_durable = true;
        self.options.lazy = None;
        self.shards = self.shards.min(2);
        self
    }

    /// Whether scans of several shards may begin anew for want of room.
    pub fn is_short(&self) -> bool {
        self.connection_bytes < AMPLE_BYTES
    }
}
