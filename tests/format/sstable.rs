//! The table format against a golden file. A difference means that tables in the field can't be read any
//! more, unless the version was raised; then the old file stays and a new one is added, by
//! `ATLASKV_REGENERATE=1 cargo test --test format`.

use std::rc::Rc;

use atlaskv::base::{Entry, FileId, LogId, Lsn, OpKind, PAGE_SIZE, TableName, TabletId};
use atlaskv::disk::Disk;
use atlaskv::engine::sstable::{Table, TableBuilder, TableError, TableIter, inspect_table};
use atlaskv::env::Env;
use atlaskv::env::sim::SimEnv;
use atlaskv::slot::SlotRange;
use xxhash_rust::xxh3::xxh3_64_with_seed;

const GOLDEN: &[u8] = include_bytes!("../data/sstable-v1.sst");
const GOLDEN_PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/sstable-v1.sst");
const TABLET: TabletId = TabletId(7);

struct Record {
    key: Vec<u8>,
    lsn: u64,
    kind: OpKind,
    expiry_ms: u64,
    value: Vec<u8>,
}

fn file() -> FileId {
    FileId::new(LogId(3), 5)
}

fn name() -> TableName {
    TableName::new(TABLET, file())
}

fn hash(key: &[u8]) -> u64 {
    xxh3_64_with_seed(key, 42)
}

/// One of everything: small records over several blocks, an expiry, a tombstone, versions of one key, an
/// empty value, a block of several pages, the smallest key that there is.
fn records() -> Vec<Record> {
    let put = |key: &[u8], lsn, value: Vec<u8>| Record {
        key: key.to_vec(),
        lsn,
        kind: OpKind::Put,
        expiry_ms: 0,
        value,
    };
    let mut records = vec![put(&[0], 900, b"smallest".to_vec())];
    records.push(put(b"empty", 901, Vec::new()));
    records.push(Record { expiry_ms: 1_900_000_000_000, ..put(b"expires", 902, b"soon".to_vec()) });
    records.push(Record { kind: OpKind::Delete, ..put(b"gone", 903, Vec::new()) });
    records.push(put(b"large", 904, (0..9000u32).map(|n| n as u8).collect()));
    for lsn in (910..915).rev() {
        records.push(put(b"many", lsn, lsn.to_le_bytes().to_vec()));
    }
    for n in 0..60u64 {
        records.push(put(format!("user:{n:06}").as_bytes(), 1000 + n, vec![n as u8; 100]));
    }
    records
}

async fn write(env: &SimEnv) -> Vec<u8> {
    env.disk().create_dir("sst").await.unwrap();
    let slots = SlotRange::new(1024, 2047).unwrap();
    let records = records();
    let mut builder = TableBuilder::create(env, file(), TABLET, slots, records.len() as u64).await.unwrap();
    for Record { key, lsn, kind, expiry_ms, value } in &records {
        let entry = Entry { lsn: Lsn(*lsn), kind: *kind, expiry_ms: *expiry_ms, value };
        builder.add(key, hash(key), &entry).await.unwrap();
    }
    builder.finish().await.unwrap();
    env.disk().peek(&name().path()).unwrap()
}

async fn place(env: &SimEnv, bytes: Vec<u8>) -> Result<Table<SimEnv>, TableError> {
    env.disk().create_dir("sst").await.unwrap();
    env.disk().poke(&name().path(), bytes);
    Table::open(env, name()).await
}

#[test]
fn tables_are_written_as_they_always_were() {
    let (world, env) = SimEnv::fresh(1);
    let written = world.run(write(&env));
    if std::env::var_os("ATLASKV_REGENERATE").is_some() {
        std::fs::write(GOLDEN_PATH, &written).unwrap();
        return;
    }
    let first = written.iter().zip(GOLDEN).position(|(a, b)| a != b);
    assert_eq!((written.len(), first), (GOLDEN.len(), None), "length, and the first byte that differs");
}

#[test]
fn tables_of_the_first_version_are_read() {
    let (world, env) = SimEnv::fresh(2);
    world.run(async {
        let table = Rc::new(place(&env, GOLDEN.to_vec()).await.unwrap());
        let meta = table.meta();
        assert_eq!((meta.entries, meta.tombstones, meta.expiring), (70, 1, 1));
        // One record of 35 bytes among 70.
        let records = records();
        let bytes = |r: &Record| (16 + r.key.len() + r.value.len()) as u64 + 8 * u64::from(r.expiry_ms != 0);
        let all: u64 = records.iter().map(bytes).sum();
        assert_eq!(meta.expiries.bytes, GOLDEN.len() as u64 * (16 + 8 + 7 + 4) / all);
        assert_eq!(meta.expiries.eighths, [1_900_000_000_000; 8]);
        assert_eq!((meta.min_lsn, meta.max_lsn), (Lsn(900), Lsn(1059)));
        assert_eq!((&meta.smallest[..], &meta.largest[..]), (&[0][..], &b"user:000059"[..]));
        assert_eq!((meta.slots.first(), meta.slots.last()), (1024, 2047));
        let mut iter = TableIter::seek(&table, b"").await.unwrap();
        for Record { key, lsn, kind, expiry_ms, value } in records {
            let entry = Entry { lsn: Lsn(lsn), kind, expiry_ms, value: &value };
            assert_eq!(iter.current(), Some((&key[..], entry)));
            assert!(table.may_contain(hash(&key)));
            iter.advance().await.unwrap();
        }
        assert!(iter.current().is_none());
        let block = table.read_block(table.locate(b"many").unwrap()).await.unwrap();
        assert_eq!(block.get(hash(b"many"), b"many").unwrap().lsn, Lsn(914));
    });
    let report = inspect_table(&name().path(), GOLDEN).unwrap();
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    assert!(report.blocks.iter().any(|(_, len, _)| *len > PAGE_SIZE), "a block of several pages");
    assert!(report.blocks.iter().any(|(_, len, _)| *len == PAGE_SIZE), "and one of one");
}

#[test]
fn every_damaged_byte_is_reported_by_the_tool() {
    let path = name().path();
    for at in 0..GOLDEN.len() {
        let mut bytes = GOLDEN.to_vec();
        bytes[at] ^= 1 << (at % 8);
        let report = inspect_table(&path, &bytes);
        assert!(report.is_err() || !report.unwrap().damage.is_empty(), "byte {at}");
    }
}

#[test]
fn newer_foreign_and_truncated_tables_are_told_apart() {
    let (world, env) = SimEnv::fresh(3);
    world.run(async {
        let footer = GOLDEN.len() - PAGE_SIZE;
        let mut newer = GOLDEN.to_vec();
        newer[footer + 8] = 2;
        let crc = atlaskv::base::crc32c(&newer[footer..GOLDEN.len() - 4]);
        newer[GOLDEN.len() - 4..].copy_from_slice(&crc.to_le_bytes());
        let error = place(&env, newer).await.err().unwrap();
        assert!(matches!(error, TableError::Newer { version: 2, .. }), "{error}");
        for pages in 0..GOLDEN.len() / PAGE_SIZE {
            let error = place(&env, GOLDEN[..pages * PAGE_SIZE].to_vec()).await.err().unwrap();
            assert!(matches!(error, TableError::Corrupt { .. }), "{pages} pages: {error}");
        }
        // A tablet that split off knows the file by a name of its own.
        let other = TableName::new(TabletId(8), name().file);
        env.disk().poke(&other.path(), GOLDEN.to_vec());
        assert_eq!(Table::open(&env, other).await.unwrap().meta().tablet, TABLET);
        let other = TableName::new(TABLET, FileId::new(LogId(3), 6));
        env.disk().poke(&other.path(), GOLDEN.to_vec());
        let error = Table::open(&env, other).await.err().unwrap();
        assert!(matches!(error, TableError::Corrupt { part: "footer", .. }), "{error}");
    });
}
