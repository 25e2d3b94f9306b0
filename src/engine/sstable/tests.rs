//! Tables on the simulated disk.

use std::collections::BTreeMap;
use std::rc::Rc;

use xxhash_rust::xxh3::xxh3_64;

use super::*;
use crate::base::{Entry, OpKind, PAGE_SIZE};
use crate::disk::Disk;
use crate::engine::cache::BlockCache;
use crate::engine::compaction::{self, Merged};
use crate::env::Env;
use crate::env::sim::SimEnv;

type Model = BTreeMap<Vec<u8>, (u64, OpKind, Vec<u8>)>;

fn random_model(rng: &mut fastrand::Rng, keys: usize, base: u64) -> Model {
    let mut model = Model::new();
    for lsn in 0..keys as u64 {
        let n = rng.u32(..5000);
        let key = match n % 3 {
            0 => format!("user:{n:06}").into_bytes(),
            1 => n.to_be_bytes().to_vec(),
            _ => vec![b'k'; 1 + (n % 5000) as usize],
        };
        let kind = if rng.u8(..5) == 0 { OpKind::Delete } else { OpKind::Put };
        let len = if rng.u8(..50) == 0 { rng.usize(..30_000) } else { rng.usize(..200) };
        let value = if kind == OpKind::Put { vec![rng.u8(..); len] } else { Vec::new() };
        model.insert(key, (base + lsn + 1, kind, value));
    }
    model
}

async fn build(env: &SimEnv, file: u64, model: &Model) -> Rc<Table<SimEnv>> {
    let _ = env.disk().create_dir("sst").await;
    let mut builder =
        TableBuilder::create(env, FileId(file), TabletId(3), SlotRange::ALL, model.len() as u64)
            .await
            .unwrap();
    for (key, (lsn, kind, value)) in model {
        let entry = Entry { lsn: Lsn(*lsn), kind: *kind, expiry_ms: lsn % 2, value };
        builder.add(key, xxh3_64(key), &entry).await.unwrap();
    }
    let meta = builder.finish().await.unwrap();
    let table = Table::open(env, FileId(file), TabletId(3)).await.unwrap();
    assert_eq!(table.meta(), &meta);
    Rc::new(table)
}

async fn get(cache: &BlockCache, table: &Table<SimEnv>, key: &[u8]) -> Option<(u64, OpKind, Vec<u8>)> {
    if !table.may_contain(xxh3_64(key)) {
        return None;
    }
    let block = cache.read(table, table.locate(key)?).await.unwrap();
    block.get(xxh3_64(key), key).map(|entry| (entry.lsn.0, entry.kind, entry.value.to_vec()))
}

#[test]
fn what_was_written_is_found_and_walked_in_order() {
    for seed in 0..4 {
        let (world, env) = SimEnv::fresh(seed);
        world.run(async {
            let mut rng = fastrand::Rng::with_seed(seed);
            let model = random_model(&mut rng, 2000, 0);
            let table = build(&env, 9, &model).await;
            let cache = BlockCache::new(256 << 10);
            for (key, expected) in &model {
                assert_eq!(get(&cache, &table, key).await.as_ref(), Some(expected), "seed {seed}");
            }
            assert!(cache.bytes() <= 256 << 10, "the cache is bounded");
            assert_eq!(get(&cache, &table, b"absent").await, None);
            let from = model.keys().nth(model.len() / 3).unwrap();
            let mut iter = TableIter::seek(&table, from).await.unwrap();
            for (key, (lsn, _, value)) in model.range(from.clone()..) {
                let (k, entry) = iter.current().unwrap();
                assert_eq!(
                    (k, entry.lsn.0, entry.value, entry.expiry_ms),
                    (&key[..], *lsn, &value[..], lsn % 2)
                );
                iter.advance().await.unwrap();
            }
            assert!(iter.current().is_none());
            assert_eq!(
                table.meta().tombstones,
                model.values().filter(|v| v.1 == OpKind::Delete).count() as u64
            );
        });
    }
}

#[test]
fn a_merge_keeps_the_newest_of_each_key_and_drops_tombstones_only_at_the_bottom() {
    for is_last in [false, true] {
        let (world, env) = SimEnv::fresh(5);
        world.run(async {
            let mut rng = fastrand::Rng::with_seed(5);
            let models: Vec<Model> = (0..3).map(|n| random_model(&mut rng, 800, n * 10_000)).collect();
            let mut tables = Vec::new();
            for (n, model) in models.iter().enumerate() {
                tables.insert(0, build(&env, n as u64 + 1, model).await);
            }
            let mut expected: Model = models.into_iter().flatten().collect();
            if is_last {
                expected.retain(|_, (_, kind, _)| *kind == OpKind::Put);
            }
            let merged =
                compaction::merge(&env, &tables, FileId(99), is_last, xxh3_64, || false).await.unwrap();
            let Merged::Table(meta) = merged else { panic!("{merged:?}") };
            assert_eq!(meta.entries, expected.len() as u64);
            let table = Rc::new(Table::open(&env, FileId(99), TabletId(3)).await.unwrap());
            let mut iter = TableIter::seek(&table, b"").await.unwrap();
            for (key, (lsn, kind, value)) in &expected {
                let (k, entry) = iter.current().unwrap();
                assert_eq!((k, entry.lsn.0, entry.kind, entry.value), (&key[..], *lsn, *kind, &value[..]));
                iter.advance().await.unwrap();
            }
        });
    }
}

#[test]
fn every_flipped_bit_is_found_and_none_changes_an_answer() {
    let (world, env) = SimEnv::fresh(6);
    world.run(async {
        let model = random_model(&mut fastrand::Rng::with_seed(6), 60, 0);
        build(&env, 1, &model).await;
        let path = FileId(1).table_path();
        let whole = env.disk().peek(&path).unwrap();
        assert!(inspect_table(&path, &whole).unwrap().damage.is_empty());
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..300 {
            let (at, bit) = (rng.usize(..whole.len()), rng.u8(..8));
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            // The padding behind the filter is nobody's: it is the one place without a checksum.
            let found = inspect_table(&path, &bytes).map_or(true, |report| !report.damage.is_empty());
            env.disk().poke(&path, bytes);
            let mut harmless = true;
            match Table::open(&env, FileId(1), TabletId(3)).await {
                Err(error) => {
                    assert!(error.to_string().contains(&path), "{error}");
                    harmless = false;
                }
                Ok(table) => {
                    for (key, (lsn, _, value)) in &model {
                        assert!(table.may_contain(xxh3_64(key)));
                        let handle = table.locate(key).unwrap();
                        match table.read_block(handle).await {
                            Ok(block) => {
                                let entry = block.get(xxh3_64(key), key).unwrap();
                                assert_eq!((entry.lsn.0, entry.value), (*lsn, &value[..]));
                            }
                            Err(error) => {
                                assert!(error.to_string().contains(&format!("byte {}", handle.offset)));
                                harmless = false;
                            }
                        }
                    }
                }
            }
            assert_eq!(found, !harmless, "byte {at} of {}", whole.len());
        }
    });
}

#[test]
fn a_block_at_the_wrong_place_is_refused() {
    let (world, env) = SimEnv::fresh(8);
    world.run(async {
        let model: Model = (0..300u32)
            .map(|n| (n.to_be_bytes().to_vec(), (u64::from(n) + 1, OpKind::Put, vec![1; 100])))
            .collect();
        let table = build(&env, 1, &model).await;
        let path = FileId(1).table_path();
        let mut bytes = env.disk().peek(&path).unwrap();
        let (a, b) = (table.handle(0), table.handle(1));
        assert_eq!((a.len, b.len), (PAGE_SIZE, PAGE_SIZE));
        let (first, second) = bytes.split_at_mut(PAGE_SIZE);
        first.swap_with_slice(&mut second[..PAGE_SIZE]);
        env.disk().poke(&path, bytes);
        let table = Table::<SimEnv>::open(&env, FileId(1), TabletId(3)).await.unwrap();
        assert!(matches!(table.read_block(a).await, Err(TableError::Corrupt { offset: 0, .. })));
    });
}
