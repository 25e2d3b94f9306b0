//! Tables: blocks of all codecs and partitions by themselves, whole files as tools, starts and walks read them.

mod file;
mod parts;

pub use file::{Files, numbers_of_file, repair_file};
pub use parts::{Blocks, Partitions};

use atlaskv::base::{Codec, Entry, FileId, Lsn, OpKind, TableName, TabletId};
use atlaskv::disk::Disk;
use atlaskv::engine::sstable::{TableBuilder, TableError, TableOptions};
use atlaskv::env::Env;
use atlaskv::env::sim::SimEnv;
use atlaskv::slot::SlotRange;
use fastrand::Rng;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::driver::letters;
use crate::keys;

const FILE: FileId = FileId(3 << 32 | 5);
const NAME: TableName = TableName { tablet: TabletId(7), file: FILE };

fn hash(key: &[u8]) -> u64 {
    xxh3_64_with_seed(key, 42)
}

/// What [`TableError`] says, as a number.
fn kind_of(error: &TableError) -> u64 {
    match error {
        TableError::Corrupt { part, expected, found, .. } => {
            letters(part) ^ letters(expected) << 1 ^ letters(found) << 2
        }
        TableError::OtherVersion { .. } => 1,
        TableError::Disk(error) => panic!("{error}: a read beyond the file, whose size is known"),
    }
}

/// An entry that is its own.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    key: Vec<u8>,
    lsn: Lsn,
    kind: OpKind,
    expiry_ms: u64,
    value: Vec<u8>,
}

impl Record {
    fn of(key: &[u8], entry: &Entry<'_>) -> Record {
        let Entry { lsn, kind, expiry_ms, value } = *entry;
        Record { key: key.to_vec(), lsn, kind, expiry_ms, value: value.to_vec() }
    }

    fn entry(&self) -> Entry<'_> {
        Entry { lsn: self.lsn, kind: self.kind, expiry_ms: self.expiry_ms, value: &self.value }
    }

    /// Whether a table may have it in front of `next`.
    fn is_before(&self, next: &Record) -> bool {
        self.key < next.key || (self.key == next.key && self.lsn > next.lsn)
    }
}

/// Entries in the order of a table, several versions of some keys.
fn records(rng: &mut Rng) -> Vec<Record> {
    let count = 1 << rng.u32(..7);
    let most = [40, 200, 3000][rng.usize(..3)];
    let mut records = Vec::new();
    for key in keys::sorted_keys(rng, count) {
        let mut lsn = rng.u64(1..1 << 40);
        for _ in 0..1 + usize::from(rng.u8(..6) == 0) {
            let is_put = rng.u8(..6) > 0;
            records.push(Record {
                key: key.clone(),
                lsn: Lsn(lsn),
                kind: if is_put { OpKind::Put } else { OpKind::Delete },
                expiry_ms: if is_put && rng.u8(..4) == 0 { rng.u64(1..) } else { 0 },
                value: if is_put { keys::value(rng, most) } else { Vec::new() },
            });
            lsn = (lsn / 2).max(1);
        }
    }
    records.dedup_by(|next, last| !last.is_before(next));
    records
}

fn options(rng: &mut Rng) -> TableOptions {
    let codec = Codec::ALL[rng.usize(..3)];
    if rng.bool() { TableOptions::upper(codec) } else { TableOptions::last(codec) }
}

/// The file that the crate makes of them.
async fn written(env: &SimEnv, records: &[Record], options: TableOptions) -> Vec<u8> {
    env.disk().create_dir(TableName::DIR).await.unwrap();
    let (file, slots) = (FILE, SlotRange::new(1024, 2047).unwrap());
    let mut builder = TableBuilder::create(env, file, NAME.tablet, slots, options).await.unwrap();
    for record in records {
        builder.add(&record.key, hash(&record.key), &record.entry()).await.unwrap();
    }
    builder.finish().await.unwrap();
    env.disk().peek(&NAME.path()).unwrap()
}

/// A table of at most so many bytes.
fn any_table(rng: &mut Rng, bytes_max: usize) -> Vec<u8> {
    loop {
        let (world, env) = SimEnv::fresh(1);
        let (mut records, options) = (records(rng), options(rng));
        let bytes = world.run(written(&env, &records, options));
        if bytes.len() <= bytes_max {
            return bytes;
        }
        records.clear();
    }
}
