//! What the log costs: nanoseconds an operation to append it, to have it durable in a block of its own or with others,
//! and to read such blocks as a start does.
//!
//! `cargo bench --bench wal [-- ROUNDS]`; 200 rounds unless told otherwise, each of 1,024 SETs with keys of 16 and values
//! of 100 bytes, in turn for as many tablets as said. Times are CPU time of the thread. Blocks are written to the
//! simulated disk, so that includes a copy or two, the simulated executor and the preparation of segments, and nothing
//! of a device.

#[allow(dead_code)] // other benchmarks use the rest
mod common;

use std::hint::black_box;
use std::rc::Rc;
use std::time::Duration;

use atlaskv::base::{BlockSeq, EntryIndex, LogId, Op, OpIter, OpKind, TabletId};
use atlaskv::engine::wal::format::{BlockInfo, Records, SEGMENT_HEADER_BYTES, segment_path};
use atlaskv::engine::wal::{Wal, WalOptions, WalRoom, WalTablet, begin_logs};
use atlaskv::env::Env;
use atlaskv::env::sim::SimEnv;

use self::common::{Table, cpu_time};

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Operations of a round.
const COUNT: usize = 1_024;
const VALUE: [u8; 100] = [b'v'; 100];
const LOG: LogId = LogId(1);
/// Holds the blocks of a round, however few operations are in each.
const SEGMENT_BYTES: u64 = 16 << 20;

struct Log {
    wal: Rc<Wal<SimEnv>>,
    tablets: Vec<WalTablet>,
}

fn main() {
    let table = Table::begin(common::arguments().or(200, 2));
    let keys: Vec<Vec<u8>> = (0..COUNT).map(|n| format!("user:{n:011}").into_bytes()).collect();
    let ops: Vec<Op<'_>> =
        keys.iter().map(|key| Op { kind: OpKind::Put, key, value: &VALUE, expiry_ms: 0 }).collect();
    for (in_block, tablets) in [(1, 1), (16, 1), (16, 8), (256, 8), (1_024, 8)] {
        let what = format!("blocks of {in_block}, tablets: {tablets}");
        let (world, env) = SimEnv::fresh(1);
        let log = world.run(Log::begin(&env, tablets));
        world.run(log.write(&ops, in_block));
        let segment = env.disk().peek(&segment_path(LOG, 0)).unwrap_or_default();
        let times = (0..table.rounds).map(|_| {
            log.forget();
            world.run(log.write(&ops, in_block))
        });
        let (appends, all): (Vec<_>, Vec<_>) = times.unzip();
        if in_block == COUNT {
            table.show(&format!("append alone, {what}"), COUNT, appends);
        }
        table.show(&format!("append and write, {what}"), COUNT, all);
        table.row(&format!("read, {what}"), COUNT, || assert_eq!(read(black_box(&segment)), COUNT));
        drop(log);
        world.kill();
    }
}

impl Log {
    async fn begin(env: &SimEnv, tablets: u32) -> Log {
        begin_logs(env, &[LOG]).await.unwrap_or_else(|error| panic!("{error}"));
        let options = WalOptions { segment_bytes: SEGMENT_BYTES, window: 3, lazy: None, cluster: 1 };
        let wal = Wal::create(env, LOG, options).await.unwrap_or_else(|error| panic!("{error}"));
        wal.start();
        let add = |tablet| wal.add_tablet(TabletId(tablet), 1, EntryIndex::ZERO, EntryIndex::ZERO);
        let tablets = (1..=tablets).map(add).collect();
        Log { wal, tablets }
    }

    /// Writes all of `ops`, and waits after each block until it is durable. How long appending took, where there is one
    /// block, and all of it: to look at the clock costs as much as some appends.
    async fn write(&self, ops: &[Op<'_>], in_block: usize) -> (Duration, Duration) {
        let (mut appending, began) = (Duration::ZERO, cpu_time());
        for block in ops.chunks(in_block) {
            self.room(block).await;
            let started = cpu_time();
            let mut last = BlockSeq::ZERO;
            for (op, tablet) in block.iter().zip(self.tablets.iter().cycle()) {
                let appended = self.wal.append(*tablet, std::slice::from_ref(op));
                last = appended.unwrap_or_else(|error| panic!("{error}")).block;
            }
            appending += cpu_time() - started;
            self.wal.request_sync(last);
            self.wal.durable_changed().until(|| self.wal.durable() >= last).await;
        }
        (appending, cpu_time() - began)
    }

    async fn room(&self, ops: &[Op<'_>]) {
        let bytes = ops.iter().map(Op::encoded_len).sum();
        self.wal.durable_changed().until(|| self.wal.room(bytes) == WalRoom::Yes).await;
    }

    /// Nothing of what was written is needed any more: segments are used again.
    fn forget(&self) {
        self.tablets.iter().for_each(|tablet| self.wal.set_flushed(*tablet, self.wal.last_index(*tablet)));
    }
}

/// Reads all blocks of a segment as a start does; how many operations there are.
fn read(segment: &[u8]) -> usize {
    let (mut at, mut count) = (SEGMENT_HEADER_BYTES, 0);
    while let Some(info) = BlockInfo::decode(&segment[at..]) {
        let payload = info.payload(&segment[at..]).unwrap_or_else(|| panic!("block {} is whole", info.seq.0));
        for record in Records::new(payload) {
            let record = record.unwrap_or_else(|error| panic!("{error}"));
            assert!(record.is_intact(), "it was just written");
            count += OpIter::new(record.body).filter(Result::is_ok).count();
        }
        at += info.padded_len();
    }
    count
}
