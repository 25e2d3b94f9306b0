//! The table format against golden files, one for each codec. A difference means that tables in the field
//! can't be read any more, unless the version was raised; then the old files stay and new ones are added, by
//! `ATLASKV_REGENERATE=1 cargo test --test format`.

use std::rc::Rc;

use atlaskv::base::{Codec, Entry, FileId, LogId, Lsn, OpKind, PAGE_SIZE, TableName, TabletId};
use atlaskv::disk::Disk;
use atlaskv::engine::sstable::{
    IndexBudget, Table, TableBuilder, TableError, TableIter, TableOptions, inspect_table,
};
use atlaskv::env::Env;
use atlaskv::env::sim::SimEnv;
use atlaskv::slot::SlotRange;
use xxhash_rust::xxh3::xxh3_64_with_seed;

const GOLDEN: [(Codec, &[u8]); 3] = [
    (Codec::None, include_bytes!("../data/sstable-v2-none.sst")),
    (Codec::Lz4, include_bytes!("../data/sstable-v2-lz4.sst")),
    (Codec::Zstd, include_bytes!("../data/sstable-v2-zstd.sst")),
];
const TABLET: TabletId = TabletId(7);

struct Record {
    key: Vec<u8>,
    lsn: u64,
    kind: OpKind,
    expiry_ms: u64,
    value: Vec<u8>,
}

fn golden_path(codec: Codec) -> String {
    format!("{}/tests/data/sstable-v2-{codec}.sst", env!("CARGO_MANIFEST_DIR"))
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

/// That of the plain table is for the upper levels, those of the others for the last.
fn options(codec: Codec) -> TableOptions {
    if codec == Codec::None { TableOptions::upper(codec) } else { TableOptions::last(codec) }
}

/// Bytes that no codec makes smaller.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// One of everything: small records over several blocks, an expiry, a tombstone, versions of one key, an
/// empty value, a block of several pages, one that no codec makes smaller, the smallest key that there is, and
/// keys so long that the index is of several partitions.
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
    records.push(put(b"large", 904, noise(9000)));
    for lsn in (910..915).rev() {
        records.push(put(b"many", lsn, lsn.to_le_bytes().to_vec()));
    }
    for n in 0..9u8 {
        records.push(put(&[&b"n"[..], &noise(2000), &[n]].concat(), 920 + u64::from(n), noise(2500)));
    }
    for n in 0..120u64 {
        records.push(put(format!("user:{n:06}").as_bytes(), 1000 + n, vec![n as u8; 100]));
    }
    records
}

async fn write(env: &SimEnv, codec: Codec) -> Vec<u8> {
    env.disk().create_dir("sst").await.unwrap();
    let slots = SlotRange::new(1024, 2047).unwrap();
    let records = records();
    let mut builder = TableBuilder::create(env, file(), TABLET, slots, options(codec)).await.unwrap();
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
    Table::open(env, name(), &IndexBudget::new(1 << 20)).await
}

#[test]
fn tables_are_written_as_they_always_were() {
    for (codec, golden) in GOLDEN {
        let (world, env) = SimEnv::fresh(1);
        let written = world.run(write(&env, codec));
        if std::env::var_os("ATLASKV_REGENERATE").is_some() {
            std::fs::write(golden_path(codec), &written).unwrap();
            continue;
        }
        let first = written.iter().zip(golden).position(|(a, b)| a != b);
        if codec == Codec::None {
            assert_eq!((written.len(), first), (golden.len(), None), "length, and the first differing byte");
        } else if first.is_some() {
            // Another release of a compressor may do better; what it wrote is read all the same.
            println!("{codec}: byte {first:?} differs, so the compressor changed");
            world.run(check(&env, codec, &written));
        }
    }
}

#[test]
fn tables_of_this_version_are_read_for_ever() {
    for (codec, golden) in GOLDEN {
        let (world, env) = SimEnv::fresh(2);
        world.run(check(&env, codec, golden));
        let report = inspect_table(&name().path(), golden).unwrap();
        assert!(report.damage.is_empty(), "{:?}", report.damage);
        assert!(report.blocks.iter().any(|(_, len, _)| *len > PAGE_SIZE), "a block of several pages");
        assert!(report.blocks.iter().any(|(_, len, _)| *len == PAGE_SIZE), "and one of one");
    }
}

/// Every field and every record of a table.
async fn check(env: &SimEnv, codec: Codec, golden: &[u8]) {
    let table = Rc::new(place(env, golden.to_vec()).await.unwrap());
    let (meta, records) = (table.meta(), records());
    assert_eq!((meta.file, meta.tablet, meta.bytes), (file(), TABLET, golden.len() as u64));
    assert_eq!((meta.entries, meta.tombstones, meta.expiring), (139, 1, 1));
    // One record of 35 bytes.
    let bytes = |r: &Record| (16 + r.key.len() + r.value.len()) as u64 + 8 * u64::from(r.expiry_ms != 0);
    let all: u64 = records.iter().map(bytes).sum();
    assert_eq!(meta.expiries.bytes, golden.len() as u64 * (16 + 8 + 7 + 4) / all);
    assert_eq!(meta.expiries.eighths, [1_900_000_000_000; 8]);
    assert_eq!((meta.min_lsn, meta.max_lsn), (Lsn(900), Lsn(1119)));
    assert_eq!((&meta.smallest[..], &meta.largest[..]), (&[0][..], &b"user:000119"[..]));
    assert_eq!((meta.slots.first(), meta.slots.last()), (1024, 2047));
    let (shape, TableOptions { bits_per_key, is_last, .. }) = (&meta.shape, options(codec));
    assert_eq!((shape.codec, shape.bits_per_key, shape.is_last), (codec, bits_per_key, is_last));
    assert_eq!(shape.raw_bytes, all + 3 * records.len() as u64);
    let plain = shape.plain_blocks;
    assert!(plain > 0 && (plain == shape.blocks) == (codec == Codec::None), "{plain} plain blocks");
    assert!(codec == Codec::None || shape.stored_bytes < GOLDEN[0].1.len() as u64 * 3 / 4);
    assert!(shape.partitions > 1);
    assert_eq!(shape.partitions as usize, table.partitions());
    let mut iter = TableIter::seek(&table, b"").await.unwrap();
    for Record { key, lsn, kind, expiry_ms, value } in records {
        let entry = Entry { lsn: Lsn(lsn), kind, expiry_ms, value: &value };
        assert_eq!(iter.current(), Some((&key[..], entry)));
        let partition = table.read_partition(table.find_partition(&key).unwrap()).await.unwrap();
        assert!(partition.may_contain(hash(&key)));
        let block = table.read_block(partition.handle(partition.find(&key).unwrap())).await.unwrap();
        let newest = block.get(hash(&key), &key).unwrap();
        assert_eq!(newest.lsn, Lsn(if key == b"many" { 914 } else { lsn }));
        iter.advance().await.unwrap();
    }
    assert!(iter.current().is_none());
}

#[test]
fn every_damaged_byte_is_reported_by_the_tool() {
    let path = name().path();
    for (codec, golden) in GOLDEN {
        for at in (0..golden.len()).step_by(if codec == Codec::None { 1 } else { 3 }) {
            let mut bytes = golden.to_vec();
            bytes[at] ^= 1 << (at % 8);
            let report = inspect_table(&path, &bytes);
            assert!(report.is_err() || !report.unwrap().damage.is_empty(), "{codec}: byte {at}");
        }
    }
}

/// The footer with a number at `at` replaced, and sealed again.
fn forge(golden: &[u8], at: usize, number: &[u8]) -> Vec<u8> {
    let footer = golden.len() - PAGE_SIZE;
    let mut bytes = golden.to_vec();
    bytes[footer + at..][..number.len()].copy_from_slice(number);
    let crc = atlaskv::base::crc32c(&bytes[footer..golden.len() - 4]);
    bytes[golden.len() - 4..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[test]
fn tables_of_other_versions_foreign_and_truncated_ones_are_told_apart() {
    let golden = GOLDEN[1].1;
    let (world, env) = SimEnv::fresh(3);
    world.run(async {
        for version in [1u32, 3] {
            let error = place(&env, forge(golden, 8, &version.to_le_bytes())).await.err().unwrap();
            assert!(matches!(error, TableError::OtherVersion { .. }), "{error}");
            let words = error.to_string();
            assert!(words.contains(&format!("version {version} ")) && words.contains("(2)"), "{words}");
            assert!(words.contains(&name().path()), "{words}");
        }
        for pages in 0..golden.len() / PAGE_SIZE {
            let error = place(&env, golden[..pages * PAGE_SIZE].to_vec()).await.err().unwrap();
            assert!(matches!(error, TableError::Corrupt { .. }), "{pages} pages: {error}");
        }
        let budget = IndexBudget::new(0);
        // A tablet that split off knows the file by a name of its own.
        let other = TableName::new(TabletId(8), name().file);
        env.disk().poke(&other.path(), golden.to_vec());
        assert_eq!(Table::open(&env, other, &budget).await.unwrap().meta().tablet, TABLET);
        let other = TableName::new(TABLET, FileId::new(LogId(3), 6));
        env.disk().poke(&other.path(), golden.to_vec());
        let error = Table::open(&env, other, &budget).await.err().unwrap();
        assert!(matches!(error, TableError::Corrupt { part: "footer", .. }), "{error}");
    });
}

#[test]
fn forged_footers_are_refused_or_read_and_never_a_panic() {
    let golden = GOLDEN[1].1;
    let (world, env) = SimEnv::fresh(4);
    world.run(async {
        let mut refused = 0;
        for at in (64..208).step_by(8).chain([204, 205]) {
            for number in [0u64, 1, 255, 4095, 4096, 8192, 1 << 40, u64::MAX - 4095, u64::MAX] {
                let number = number.to_le_bytes();
                let number = if at == 204 || at == 205 { &number[..1] } else { &number[..] };
                let bytes = forge(golden, at, number);
                let _ = inspect_table(&name().path(), &bytes);
                match place(&env, bytes).await {
                    Err(error) => {
                        assert!(matches!(error, TableError::Corrupt { .. }), "{error}");
                        refused += 1;
                    }
                    Ok(table) => {
                        let mut iter = TableIter::seek(&Rc::new(table), b"").await.unwrap();
                        while iter.current().is_some() {
                            iter.advance().await.unwrap();
                        }
                    }
                }
            }
        }
        assert!(refused > 60, "{refused} refused");
    });
}
