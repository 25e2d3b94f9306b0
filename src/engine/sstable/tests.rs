//! Tables on the simulated disk.

use std::collections::BTreeMap;
use std::rc::Rc;

use xxhash_rust::xxh3::xxh3_64;

use super::*;
use crate::base::{Entry, OpKind, PAGE_SIZE, TableName};
use crate::disk::Disk;
use crate::engine::cache::BlockCache;
use crate::engine::compaction::{self, Merged};
use crate::engine::expiry::Cutoff;
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
    let table = Table::open(env, TableName::new(TabletId(3), FileId(file))).await.unwrap();
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
                compaction::merge(&env, &tables, FileId(99), is_last, &Cutoff::new(0), xxh3_64, || false)
                    .await
                    .unwrap();
            let Merged::Table(meta) = merged else { panic!("{merged:?}") };
            assert_eq!(meta.entries, expected.len() as u64);
            let table = Rc::new(Table::open(&env, TableName::new(TabletId(3), FileId(99))).await.unwrap());
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
        let path = TableName::new(TabletId(3), FileId(1)).path();
        let whole = env.disk().peek(&path).unwrap();
        assert!(inspect_table(&path, &whole).unwrap().damage.is_empty());
        let mut rng = fastrand::Rng::with_seed(7);
        for _ in 0..300 {
            let (at, bit) = (rng.usize(..whole.len()), rng.u8(..8));
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << bit;
            let found = inspect_table(&path, &bytes).map_or(true, |report| !report.damage.is_empty());
            env.disk().poke(&path, bytes);
            let mut harmless = true;
            match Table::open(&env, TableName::new(TabletId(3), FileId(1))).await {
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
            assert!(found && !harmless, "byte {at} of {}", whole.len());
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
        let path = TableName::new(TabletId(3), FileId(1)).path();
        let mut bytes = env.disk().peek(&path).unwrap();
        let (a, b) = (table.handle(0), table.handle(1));
        assert_eq!((a.len, b.len), (PAGE_SIZE, PAGE_SIZE));
        let (first, second) = bytes.split_at_mut(PAGE_SIZE);
        first.swap_with_slice(&mut second[..PAGE_SIZE]);
        env.disk().poke(&path, bytes);
        let table = Table::<SimEnv>::open(&env, TableName::new(TabletId(3), FileId(1))).await.unwrap();
        assert!(matches!(table.read_block(a).await, Err(TableError::Corrupt { offset: 0, .. })));
    });
}

#[test]
fn versions_of_a_key_go_on_over_blocks_and_the_newest_is_found() {
    let (world, env) = SimEnv::fresh(10);
    world.run(async {
        let _ = env.disk().create_dir("sst").await;
        let mut builder =
            TableBuilder::create(&env, FileId(1), TabletId(3), SlotRange::ALL, 3).await.unwrap();
        let value = vec![5; 1000];
        let mut written = Vec::new();
        for (key, versions) in [(&b"a"[..], 3), (b"b", 500), (b"c", 3)] {
            for lsn in (1..=versions).rev() {
                let entry = Entry { lsn: Lsn(lsn), kind: OpKind::Put, expiry_ms: 0, value: &value };
                builder.add(key, xxh3_64(key), &entry).await.unwrap();
                written.push((key, lsn));
            }
        }
        assert_eq!(builder.finish().await.unwrap().entries, 506);
        let table = Rc::new(Table::open(&env, TableName::new(TabletId(3), FileId(1))).await.unwrap());
        assert!(table.blocks() > 100);
        let cache = BlockCache::new(1 << 20);
        for (key, newest) in [(b"a", 3), (b"b", 500), (b"c", 3)] {
            assert_eq!(get(&cache, &table, key).await.unwrap().0, newest);
        }
        let mut iter = TableIter::seek(&table, b"b").await.unwrap();
        for (key, lsn) in &written[3..] {
            let (found, entry) = iter.current().unwrap();
            assert_eq!((found, entry.lsn.0), (*key, *lsn));
            iter.advance().await.unwrap();
        }
        let path = TableName::new(TabletId(3), FileId(1)).path();
        let report = inspect_table(&path, &env.disk().peek(&path).unwrap()).unwrap();
        assert!(report.damage.is_empty(), "{:?}", report.damage);
    });
}

#[test]
fn a_walk_may_start_between_a_block_and_its_separator() {
    let (world, env) = SimEnv::fresh(11);
    world.run(async {
        let model: Model = (0..2000u32)
            .map(|n| (format!("k{:06}", n * 10).into_bytes(), (u64::from(n) + 1, OpKind::Put, vec![1; 90])))
            .collect();
        let table = build(&env, 1, &model).await;
        for n in 0..20_010u32 {
            let from = format!("k{n:06}").into_bytes();
            let iter = TableIter::seek(&table, &from).await.unwrap();
            let expected = model.range(from..).next().map(|(key, _)| &key[..]);
            assert_eq!(iter.current().map(|(key, _)| key), expected);
        }
    });
}

#[test]
fn a_read_that_is_given_up_leaves_no_one_waiting_and_a_failed_one_is_repeated() {
    let (world, env) = SimEnv::fresh(12);
    world.run(async {
        let model = random_model(&mut fastrand::Rng::with_seed(6), 60, 0);
        let table = build(&env, 1, &model).await;
        let cache = Rc::new(BlockCache::new(256 << 10));
        let handle = table.handle(0);
        let given_up = futures_lite::future::poll_once(cache.read(&table, handle)).await;
        assert!(given_up.is_none());
        cache.read(&table, handle).await.unwrap();

        let handle = table.handle(1);
        env.disk().fail("read", "sst/", 0, libc::EIO, true);
        let both = futures_lite::future::zip(cache.read(&table, handle), cache.read(&table, handle)).await;
        assert!(both.0.is_err() && both.1.is_ok(), "only the read that failed is told");
    });
}

#[test]
fn many_who_want_one_block_share_one_read_even_of_a_block_that_no_cache_holds() {
    let (world, env) = SimEnv::fresh(13);
    world.run(async {
        let model: Model = [(b"large".to_vec(), (1, OpKind::Put, vec![3; 3 << 20]))].into_iter().collect();
        let table = build(&env, 1, &model).await;
        let cache = BlockCache::new(64 << 10);
        let reads = env.disk().operations();
        let read = || async { cache.read(&table, table.handle(0)).await.unwrap() };
        let ((a, b), c) = futures_lite::future::zip(futures_lite::future::zip(read(), read()), read()).await;
        assert!(Rc::ptr_eq(&a, &b) && Rc::ptr_eq(&a, &c));
        assert!(env.disk().operations() - reads <= 3, "one read of 3 MiB");
        assert_eq!(a.get(xxh3_64(b"large"), b"large").unwrap().value.len(), 3 << 20);
        assert!(cache.bytes() <= 64 << 10);
    });
}

#[test]
fn a_failed_finish_leaves_no_file_and_says_what_failed() {
    for (operation, errno) in [("write", libc::ENOSPC), ("sync", libc::EIO)] {
        let (world, env) = SimEnv::fresh(14);
        world.run(async {
            let _ = env.disk().create_dir("sst").await;
            let mut builder =
                TableBuilder::create(&env, FileId(1), TabletId(3), SlotRange::ALL, 1).await.unwrap();
            let entry = Entry { lsn: Lsn(1), kind: OpKind::Put, expiry_ms: 0, value: b"v" };
            builder.add(b"k", 1, &entry).await.unwrap();
            env.disk().fail(operation, "sst/", 0, errno, true);
            let Err(TableError::Disk(error)) = builder.finish().await else { panic!("it failed") };
            assert_eq!(error.is_full(), errno == libc::ENOSPC);
            assert_eq!(env.disk().paths(), [""; 0]);
        });
    }
}

#[test]
fn a_tool_goes_on_behind_damage() {
    let (world, env) = SimEnv::fresh(15);
    world.run(async {
        let model: Model = (0..1000u32)
            .map(|n| (n.to_be_bytes().to_vec(), (u64::from(n) + 1, OpKind::Put, vec![1; 100])))
            .collect();
        let table = build(&env, 1, &model).await;
        let path = TableName::new(TabletId(3), FileId(1)).path();
        let whole = env.disk().peek(&path).unwrap();
        let blocks = table.blocks();
        let records = |report: &TableReport| report.blocks.iter().filter_map(|b| b.2).sum::<usize>();
        let damaged = |places: &[usize]| {
            let mut bytes = whole.clone();
            places.iter().for_each(|at| bytes[*at] ^= 1);
            inspect_table(&path, &bytes).unwrap()
        };
        let (index, footer) = (blocks * PAGE_SIZE, whole.len() - PAGE_SIZE);
        let report = damaged(&[3 * PAGE_SIZE + 100, 7 * PAGE_SIZE + 9]);
        assert_eq!(report.damage.len(), 2, "both blocks: {:?}", report.damage);
        assert!(report.damage[0].contains("byte 12288") && report.damage[1].contains("byte 28672"));
        assert!(report.meta.is_some());
        for (places, what) in [(vec![index + 50], "index"), (vec![footer + 20], "footer")] {
            let report = damaged(&places);
            assert_eq!(report.damage.len(), 1, "{:?}", report.damage);
            assert!(report.damage[0].contains(what), "{:?}", report.damage);
            assert_eq!((records(&report), report.meta), (1000, None), "all blocks are found without {what}");
        }
        let report = damaged(&[footer + 20, 5 * PAGE_SIZE + 40]);
        assert_eq!((report.damage.len(), report.blocks.len()), (2, blocks));
        let report = damaged(&[index + 50, (blocks - 1) * PAGE_SIZE + 40]);
        assert_eq!((report.damage.len(), report.blocks.len()), (2, blocks), "the last block as well");
        assert!(inspect_table("other", &whole[..PAGE_SIZE + 1]).is_err());
    });
}
