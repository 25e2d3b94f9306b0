//! What the block cache costs: nanoseconds to find a block that is in it, where the CPU's caches hold all of it and
//! where they don't; to find that it is not; and to take one up, for which another one goes.
//!
//! `cargo bench --bench cache [-- ROUNDS]`; 200 rounds unless told otherwise. Blocks are of 4 KiB, of a table on the
//! simulated disk: to take one up includes a read of that, a copy or two of it, its checksum, and nothing of a device.
//! The order comes from a fixed seed. Times are CPU time of the thread.

#[allow(dead_code)] // other benchmarks use the rest
mod common;

use std::hint::black_box;

use atlaskv::base::{Codec, Entry, FileId, Lsn, OpKind, TableName, TabletId};
use atlaskv::disk::Disk;
use atlaskv::engine::cache::BlockCache;
use atlaskv::engine::sstable::{BlockHandle, IndexBudget, Table, TableBuilder, TableError, TableOptions};
use atlaskv::env::Env;
use atlaskv::env::sim::{SimEnv, SimWorld};
use atlaskv::slot::SlotRange;
use xxhash_rust::xxh3::xxh3_64;

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Blocks that are looked for in a round.
const COUNT: usize = 10_000;
/// One fills a block, so that there are as many of these as of entries.
const VALUE: [u8; 3900] = [7; 3900];
const TABLET: TabletId = TabletId(1);

/// A table, and where its blocks stand.
struct Blocks {
    table: Table<SimEnv>,
    handles: Vec<BlockHandle>,
}

fn main() {
    let arguments = common::arguments();
    let blocks = if arguments.is_bench { 30_000 } else { 300 };
    let table = common::Table::begin(arguments.or(200, 2));
    let (world, env) = SimEnv::fresh(1);
    let all = world.run(Blocks::write(&env, blocks)).unwrap_or_else(|error| panic!("{error}"));
    let mut rng = fastrand::Rng::with_seed(1);
    let mut order = |of: usize| (0..COUNT).map(|_| rng.usize(..of)).collect::<Vec<_>>();
    let (few, many) = (order(8), order(blocks));
    // All blocks fit, and as much again for what is kept beside them.
    let cache = BlockCache::new(2 * blocks * 4096, 128);
    all.read(&world, &cache, 0..blocks);
    table.row("find one of 8 blocks", COUNT, || all.find(&cache, &few, COUNT));
    table.row(&format!("find one of {blocks} blocks"), COUNT, || all.find(&cache, &many, COUNT));
    let empty = BlockCache::new(2 * blocks * 4096, 128);
    table.row("find that a block is absent", COUNT, || all.find(&empty, &many, 0));
    // A tenth of all blocks fit; they come in turn, so none is there when it is its turn again.
    let small = BlockCache::new(blocks / 10 * 4096, 128);
    let (some, mut next) = (blocks / 100, 0);
    table.row("take up a block, for which one goes", some, || {
        all.read(&world, &small, next..next + some);
        next = (next + some) % (blocks - some);
    });
}

impl Blocks {
    async fn write(env: &SimEnv, count: usize) -> Result<Blocks, TableError> {
        env.disk().create_dir("sst").await?;
        let file = FileId(1);
        let options = TableOptions::upper(Codec::None);
        let mut builder = TableBuilder::create(env, file, TABLET, SlotRange::ALL, options).await?;
        for n in 0..count as u64 {
            let (key, entry) =
                (n.to_be_bytes(), Entry { lsn: Lsn(1), kind: OpKind::Put, expiry_ms: 0, value: &VALUE });
            builder.add(&key, xxh3_64(&key), &entry).await?;
        }
        builder.finish().await?;
        let table = Table::open(env, TableName::new(TABLET, file), &IndexBudget::new(16 << 20)).await?;
        let mut handles = Vec::new();
        for number in 0..table.partitions() {
            let partition = table.read_partition(number).await?;
            handles.extend((0..partition.len()).map(|block| partition.handle(block)));
        }
        assert_eq!(handles.len(), count, "an entry fills a block");
        Ok(Blocks { table, handles })
    }

    /// Looks for some blocks; so many must be there.
    fn find(&self, cache: &BlockCache, order: &[usize], present: usize) {
        let is_there = |at: &&usize| black_box(cache.get(&self.table, self.handles[**at])).is_some();
        assert_eq!(order.iter().filter(is_there).count(), present);
    }

    /// Has the cache read blocks one after the other.
    fn read(&self, world: &SimWorld, cache: &BlockCache, range: std::ops::Range<usize>) {
        world.run(async {
            for handle in &self.handles[range] {
                let block = cache.block(&self.table, *handle).await;
                black_box(block.unwrap_or_else(|error| panic!("{error}")));
            }
        });
    }
}
