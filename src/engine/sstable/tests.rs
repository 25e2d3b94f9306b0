//! Tables on the simulated disk.

mod forged;
mod large;

use std::collections::BTreeMap;
use std::rc::Rc;

use xxhash_rust::xxh3::xxh3_64;

use super::*;
use crate::base::{Codec, Entry, OpKind, PAGE_SIZE, TableName};
use crate::disk::Disk;
use crate::engine::cache::BlockCache;
use crate::engine::compaction::{self, Merge, Merged};
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

const PLAIN: TableOptions = TableOptions::upper(Codec::None);

fn name(file: u64) -> TableName {
    TableName::new(TabletId(3), FileId(file))
}

/// With all partitions resident.
async fn open(env: &SimEnv, file: u64) -> Result<Rc<Table<SimEnv>>, TableError> {
    Table::open(env, name(file), &IndexBudget::new(1 << 30)).await.map(Rc::new)
}

async fn create(env: &SimEnv, file: u64, options: TableOptions) -> TableBuilder<SimEnv> {
    let _ = env.disk().create_dir("sst").await;
    TableBuilder::create(env, FileId(file), TabletId(3), SlotRange::ALL, options).await.unwrap()
}

async fn build(env: &SimEnv, file: u64, model: &Model) -> Rc<Table<SimEnv>> {
    build_with(env, file, model, PLAIN).await
}

async fn build_with(env: &SimEnv, file: u64, model: &Model, options: TableOptions) -> Rc<Table<SimEnv>> {
    let mut builder = create(env, file, options).await;
    for (key, (lsn, kind, value)) in model {
        let entry = Entry { lsn: Lsn(*lsn), kind: *kind, expiry_ms: lsn % 2, value };
        builder.add(key, xxh3_64(key), &entry).await.unwrap();
    }
    let meta = builder.finish().await.unwrap();
    let table = open(env, file).await.unwrap();
    assert_eq!(table.meta(), &meta);
    table
}

async fn get(cache: &BlockCache, table: &Table<SimEnv>, key: &[u8]) -> Option<(u64, OpKind, Vec<u8>)> {
    let partition = cache.partition(table, table.find_partition(key)?).await.unwrap();
    if !partition.may_contain(xxh3_64(key)) {
        return None;
    }
    let handle = partition.handle(partition.find(key)?);
    let block = cache.block(table, handle).await.unwrap();
    block.get(xxh3_64(key), key).map(|entry| (entry.lsn.0, entry.kind, entry.value.to_vec()))
}

/// Where all blocks stand.
async fn handles(table: &Table<SimEnv>) -> Vec<BlockHandle> {
    let mut handles = Vec::new();
    for number in 0..table.partitions() {
        let partition = table.read_partition(number).await.unwrap();
        handles.extend((0..partition.len()).map(|block| partition.handle(block)));
    }
    handles
}

#[test]
fn what_was_written_is_found_and_walked_in_order() {
    for seed in 0..4 {
        let (world, env) = SimEnv::fresh(seed);
        world.run(async {
            let mut rng = fastrand::Rng::with_seed(seed);
            let model = random_model(&mut rng, 2000, 0);
            let table = build(&env, 9, &model).await;
            let cache = BlockCache::new(256 << 10, 8);
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
    for options in [PLAIN, TableOptions::last(Codec::Lz4), TableOptions::last(Codec::Zstd)] {
        let is_last = options.is_last;
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
            let mut sources = Vec::new();
            for table in &tables {
                sources.push(TableIter::seek(table, b"").await.unwrap());
            }
            let (tablet, slots) = (TabletId(3), SlotRange::ALL);
            let (drops_tombstones, table_bytes) = (is_last, 64 << 10);
            let what = Merge { tablet, slots, options, drops_tombstones, table_bytes, early: None };
            let (next, mut metas) = (std::cell::Cell::new(99), Vec::new());
            let next_file = || FileId(next.replace(next.get() + 1));
            let (cutoff, beat) = (Cutoff::new(0, Rc::default()), async |_| true);
            let merged =
                compaction::merge(&env, sources, &what, &cutoff, xxh3_64, next_file, beat, &mut metas);
            assert_eq!(merged.await.unwrap(), Merged::All);
            assert!(metas.len() > 3, "it is cut into tables: {metas:?}");
            assert_eq!(metas.iter().map(|meta| meta.entries).sum::<u64>(), expected.len() as u64);
            let mut rest = expected.iter();
            for meta in metas {
                let table = open(&env, meta.file.0).await.unwrap();
                assert_eq!((table.meta().shape.is_last, table.meta().shape.codec), (is_last, options.codec));
                let mut iter = TableIter::seek(&table, b"").await.unwrap();
                while let Some((k, entry)) = iter.current() {
                    let (key, (lsn, kind, value)) = rest.next().unwrap();
                    let found = (k, entry.lsn.0, entry.kind, entry.value);
                    assert_eq!(found, (&key[..], *lsn, *kind, &value[..]));
                    iter.advance().await.unwrap();
                }
            }
            assert!(rest.next().is_none());
        });
    }
}

/// The block of a key that is there, past any cache; or where reading it failed.
async fn look(table: &Table<SimEnv>, key: &[u8]) -> Result<(BlockHandle, Rc<Block>), (u64, TableError)> {
    let number = table.find_partition(key).expect("it is within the bounds");
    let partition = match table.pinned(number) {
        Some(partition) => partition,
        None => {
            let offset = table.partition_handle(number).offset;
            table.read_partition(number).await.map_err(|error| (offset, error))?
        }
    };
    assert!(partition.may_contain(xxh3_64(key)));
    let handle = partition.handle(partition.find(key).expect("it is in here"));
    let block = table.read_block(handle).await.map_err(|error| (handle.offset, error))?;
    Ok((handle, block))
}

#[test]
fn every_flipped_bit_is_found_and_none_changes_an_answer() {
    let (world, env) = SimEnv::fresh(6);
    world.run(async {
        let model = random_model(&mut fastrand::Rng::with_seed(6), 60, 0);
        build(&env, 1, &model).await;
        let path = name(1).path();
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
            let budget = IndexBudget::new(rng.usize(..2) << 20);
            match Table::open(&env, name(1), &budget).await {
                Err(error) => {
                    assert!(error.to_string().contains(&path), "{error}");
                    harmless = false;
                }
                Ok(table) => {
                    for (key, (lsn, _, value)) in &model {
                        match look(&table, key).await {
                            Ok((_, block)) => {
                                let entry = block.get(xxh3_64(key), key).unwrap();
                                assert_eq!((entry.lsn.0, entry.value), (*lsn, &value[..]));
                            }
                            Err((offset, error)) => {
                                assert!(error.to_string().contains(&format!("byte {offset}")), "{error}");
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
        let path = name(1).path();
        let mut bytes = env.disk().peek(&path).unwrap();
        let [a, b] = handles(&table).await[..2] else { panic!("two blocks") };
        assert_eq!((a.len, b.len), (PAGE_SIZE, PAGE_SIZE));
        let (first, second) = bytes.split_at_mut(PAGE_SIZE);
        first.swap_with_slice(&mut second[..PAGE_SIZE]);
        env.disk().poke(&path, bytes);
        let table = open(&env, 1).await.unwrap();
        assert!(matches!(table.read_block(a).await, Err(TableError::Corrupt { offset: 0, .. })));
    });
}

#[test]
fn versions_of_a_key_go_on_over_blocks_and_partitions_and_the_newest_is_found() {
    for codec in Codec::ALL {
        let (world, env) = SimEnv::fresh(10);
        world.run(async {
            let mut builder = create(&env, 1, TableOptions::last(codec)).await;
            let mut rng = fastrand::Rng::with_seed(10);
            let value: Vec<u8> = (0..1000).map(|at| if at < 600 { rng.u8(..) } else { 5 }).collect();
            // Long, so that there are few blocks in a partition.
            let keys = [b'a', b'b', b'c'].map(|letter| vec![letter; 300]);
            let mut written = Vec::new();
            for (key, versions) in keys.iter().zip([3, 500, 3]) {
                for lsn in (1..=versions).rev() {
                    let entry = Entry { lsn: Lsn(lsn), kind: OpKind::Put, expiry_ms: 0, value: &value };
                    builder.add(key, xxh3_64(key), &entry).await.unwrap();
                    written.push((key, lsn));
                }
            }
            assert_eq!(builder.finish().await.unwrap().entries, 506);
            let table = open(&env, 1).await.unwrap();
            let partitions = table.partitions();
            assert!(table.meta().shape.blocks > 10 && partitions > 1, "{codec}: {partitions} partitions");
            let cache = BlockCache::new(1 << 20, 8);
            for (key, newest) in keys.iter().zip([3, 500, 3]) {
                assert_eq!(get(&cache, &table, key).await.unwrap().0, newest);
            }
            let mut iter = TableIter::seek(&table, &keys[1]).await.unwrap();
            for (key, lsn) in &written[3..] {
                let (found, entry) = iter.current().unwrap();
                assert_eq!((found, entry.lsn.0), (&key[..], *lsn));
                iter.advance().await.unwrap();
            }
            // Whoever looks for an older version finds the key in the filter of each partition on the way.
            for number in 0..partitions {
                let partition = table.read_partition(number).await.unwrap();
                assert!(partition.may_contain(xxh3_64(&keys[1])), "partition {number} of {partitions}");
            }
            let path = name(1).path();
            let report = inspect_table(&path, &env.disk().peek(&path).unwrap()).unwrap();
            assert!(report.damage.is_empty(), "{:?}", report.damage);
        });
    }
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
        let cache = Rc::new(BlockCache::new(256 << 10, 8));
        let [handle, other] = handles(&table).await[..2] else { panic!("two blocks") };
        let given_up = futures_lite::future::poll_once(cache.block(&table, handle)).await;
        assert!(given_up.is_none());
        cache.block(&table, handle).await.unwrap();

        let handle = other;
        env.disk().fail("read", "sst/", 0, libc::EIO, true);
        let both = futures_lite::future::zip(cache.block(&table, handle), cache.block(&table, handle)).await;
        assert!(both.0.is_err() && both.1.is_ok(), "only the read that failed is told");
    });
}

#[test]
fn many_who_want_one_block_share_one_read_even_of_a_block_that_no_cache_holds() {
    let (world, env) = SimEnv::fresh(13);
    world.run(async {
        let model: Model = [(b"large".to_vec(), (1, OpKind::Put, vec![3; 3 << 20]))].into_iter().collect();
        let table = build(&env, 1, &model).await;
        let cache = BlockCache::new(64 << 10, 8);
        let handle = handles(&table).await[0];
        let reads = env.disk().operations();
        let read = || async { cache.block(&table, handle).await.unwrap() };
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
            let mut builder = create(&env, 1, PLAIN).await;
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
        let path = name(1).path();
        let whole = env.disk().peek(&path).unwrap();
        let blocks = table.meta().shape.blocks as usize;
        let partition = blocks * PAGE_SIZE;
        let (index, footer) = (whole.len() - 2 * PAGE_SIZE, whole.len() - PAGE_SIZE);
        assert_eq!((table.partitions(), partition + PAGE_SIZE), (1, index), "blocks, partition, top, footer");
        let records = |report: &TableReport| report.blocks.iter().filter_map(|b| b.2).sum::<usize>();
        let damaged = |places: &[usize]| {
            let mut bytes = whole.clone();
            places.iter().for_each(|at| bytes[*at] ^= 1);
            inspect_table(&path, &bytes).unwrap()
        };
        let report = damaged(&[3 * PAGE_SIZE + 100, 7 * PAGE_SIZE + 9]);
        assert_eq!(report.damage.len(), 2, "both blocks: {:?}", report.damage);
        assert!(report.damage[0].contains("byte 12288") && report.damage[1].contains("byte 28672"));
        assert!(report.meta.is_some());
        for (place, what) in [(partition, "partition"), (index, "index"), (footer, "footer")] {
            let report = damaged(&[place + 20]);
            assert_eq!(report.damage.len(), 1, "{:?}", report.damage);
            assert!(report.damage[0].contains(&format!("{what} at byte {place}")), "{:?}", report.damage);
            assert_eq!(records(&report), 1000, "all blocks are found without {what}");
            assert_eq!(report.meta.is_some(), what == "partition");
            for block in [0, 5, blocks - 1] {
                let report = damaged(&[place + 20, block * PAGE_SIZE + 40]);
                assert_eq!((report.damage.len(), report.blocks.len()), (2, blocks), "{:?}", report.damage);
            }
        }
        assert!(inspect_table("other", &whole[..PAGE_SIZE + 1]).is_err());
    });
}

/// A random table of many partitions: in the file in several runs, since it is larger than one holds.
fn large_model(rng: &mut fastrand::Rng) -> Model {
    let mut model = Model::new();
    for lsn in 0..20_000u64 {
        let n: u32 = rng.u32(..);
        let key = match n % 4 {
            0 => format!("user:{:06}", n % 1_000_000).into_bytes(),
            1 => n.to_be_bytes().to_vec(),
            // Long separators, so that partitions have few blocks.
            2 => [&[b'k'; 1500][..], &n.to_be_bytes()].concat(),
            _ => [&n.to_le_bytes()[..], &vec![0xff; (n % 600) as usize][..]].concat(),
        };
        let len = if rng.u8(..100) == 0 { rng.usize(..20_000) } else { rng.usize(..300) };
        let noise = rng.usize(..=len);
        let value = (0..len).map(|at| if at < noise { rng.u8(..) } else { b' ' }).collect();
        model.insert(key, (lsn + 1, OpKind::Put, value));
    }
    model
}

#[test]
fn every_key_is_found_and_walked_to_pinned_or_not_whatever_the_codec() {
    for (seed, codec) in (30..).zip(Codec::ALL) {
        let (world, env) = SimEnv::fresh(seed);
        world.run(async {
            println!("seed {seed}: {codec}");
            let mut rng = fastrand::Rng::with_seed(seed);
            let model = large_model(&mut rng);
            let pinned = build_with(&env, 9, &model, TableOptions::last(codec)).await;
            let shape = pinned.meta().shape;
            println!("{shape:?}");
            assert!(shape.partitions > 70, "several runs: {} partitions", shape.partitions);
            assert!(codec == Codec::None || shape.raw_bytes > shape.stored_bytes * 5 / 4);
            let paged = Table::open(&env, name(9), &IndexBudget::new(0)).await.unwrap();
            assert!(pinned.pinned(0).is_some() && paged.pinned(0).is_none());
            for table in [pinned, Rc::new(paged)] {
                let cache = BlockCache::new(512 << 10, 8);
                for (key, expected) in &model {
                    assert_eq!(get(&cache, &table, key).await.as_ref(), Some(expected), "seed {seed}");
                }
                assert!(cache.bytes() <= 512 << 10, "the cache is bounded");
                let mut wrong = 0;
                for n in 0..5000u32 {
                    let absent = [&n.to_le_bytes()[..], b"absent"].concat();
                    let Some(number) = table.find_partition(&absent) else { continue };
                    let partition = cache.partition(&table, number).await.unwrap();
                    wrong += usize::from(partition.may_contain(xxh3_64(&absent)));
                    assert_eq!(get(&cache, &table, &absent).await, None);
                }
                assert!(wrong < 60, "{wrong} of 5000 false positives");
                for from in [&b""[..], b"k", b"user:5", &[0xff; 700]] {
                    let mut iter = TableIter::seek(&table, from).await.unwrap();
                    for (key, (lsn, _, value)) in model.range(from.to_vec()..) {
                        let (found, entry) = iter.current().unwrap();
                        assert_eq!((found, entry.lsn.0, entry.value), (&key[..], *lsn, &value[..]));
                        iter.advance().await.unwrap();
                    }
                    assert!(iter.current().is_none());
                }
            }
            let path = name(9).path();
            let report = inspect_table(&path, &env.disk().peek(&path).unwrap()).unwrap();
            assert!(report.damage.is_empty(), "{:?}", report.damage);
            assert_eq!(report.blocks.len() as u64, shape.blocks);
        });
    }
}

#[test]
fn a_walk_that_is_under_way_survives_that_its_pins_are_displaced() {
    let (world, env) = SimEnv::fresh(33);
    world.run(async {
        let model = large_model(&mut fastrand::Rng::with_seed(33));
        build_with(&env, 1, &model, TableOptions::last(Codec::Lz4)).await;
        build_with(&env, 2, &model, PLAIN).await;
        let budget = IndexBudget::new(1 << 30);
        let one = Table::<SimEnv>::open(&env, name(1), &budget).await.unwrap();
        let needed = budget.used();
        let without = IndexBudget::new(0);
        let two = Table::<SimEnv>::open(&env, name(2), &without).await.unwrap();
        // Beside the first and the top of the second a little less than is asked for its partitions: what they take
        // on disk.
        let shape = two.meta().shape;
        let asked = shape.partition_bytes as usize + shape.partitions as usize * Partition::OVERHEAD;
        let limit = needed + without.used() + asked - 1;
        drop(one);
        assert_eq!(budget.used(), 0, "whatever was asked for, all that was kept of it is given back");
        let budget = IndexBudget::new(limit);
        let last = Rc::new(Table::open(&env, name(1), &budget).await.unwrap());
        assert!(last.pinned(0).is_some());
        let mut iter = TableIter::seek(&last, b"").await.unwrap();
        let mut upper = None;
        for (at, key) in model.keys().enumerate() {
            if at == model.len() / 2 {
                upper = Some(Table::open(&env, name(2), &budget).await.unwrap());
            }
            assert_eq!(iter.current().unwrap().0, &key[..]);
            iter.advance().await.unwrap();
        }
        assert!(iter.current().is_none() && last.pinned(0).is_none());
        assert!(upper.is_some_and(|table| table.pinned(0).is_some()));
        assert!(budget.used() <= limit);
        drop((last, iter));
    });
}

/// The keys that a cursor gives, loading what it misses, and how many bytes it had read ahead at most.
async fn cursor_keys(
    table: &Rc<Table<SimEnv>>,
    cache: &BlockCache,
    bound: Bound,
    is_reverse: bool,
    ahead_max: usize,
) -> (Vec<(Vec<u8>, u64)>, usize) {
    let mut cursor = TableCursor::new(table, bound, is_reverse, Lsn(u64::MAX));
    let (mut found, mut most, ahead) = (Vec::new(), 0, AheadTotals::new(1 << 20));
    let mut walked = cursor.settle(cache).unwrap();
    loop {
        match walked {
            Walked::End => {
                drop(cursor);
                assert_eq!(ahead.held.get(), 0, "what was read ahead is given back");
                return (found, most);
            }
            Walked::Ready => {
                let (key, entry) = cursor.current().unwrap();
                found.push((key.to_vec(), entry.lsn.0));
                walked = cursor.advance(cache).unwrap();
            }
            Walked::Missing => {
                match cursor.wanted(ahead_max).unwrap() {
                    Wanted::Partition(number) => {
                        cursor.supply_partition(cache.partition(table, number).await.unwrap());
                    }
                    Wanted::Block(handle) => cursor.supply_block(cache.block(table, handle).await.unwrap()),
                    Wanted::Large(handle) => cursor.supply_block(table.read_block(handle).await.unwrap()),
                    Wanted::Ahead { offset, len } => {
                        let bytes = table.read_bytes(offset, len).await.unwrap();
                        cursor.supply_ahead(offset, bytes, &ahead);
                    }
                    Wanted::Flight(flight) => {
                        let (offset, bytes) = flight.land().await.unwrap();
                        cursor.supply_ahead(offset, bytes, &ahead);
                    }
                }
                most = most.max(ahead.held.get());
                walked = cursor.settle(cache).unwrap();
            }
        }
    }
}

#[test]
fn cursors_cross_partitions_in_both_orders_pinned_or_not() {
    for (seed, codec) in (40..).zip(Codec::ALL) {
        let (world, env) = SimEnv::fresh(seed);
        world.run(async {
            println!("seed {seed}: {codec}");
            let mut rng = fastrand::Rng::with_seed(seed);
            let model = large_model(&mut rng);
            let pinned = build_with(&env, 9, &model, TableOptions::last(codec)).await;
            assert!(pinned.partitions() > 70);
            let paged = Rc::new(Table::open(&env, name(9), &IndexBudget::new(0)).await.unwrap());
            let keys: Vec<_> = model.keys().cloned().collect();
            for table in [pinned, paged] {
                let cache = BlockCache::new(256 << 10, 8);
                let expect = |from: Option<&[u8]>, is_reverse: bool| -> Vec<(Vec<u8>, u64)> {
                    let entry = |(key, value): (&Vec<u8>, &(u64, OpKind, Vec<u8>))| (key.clone(), value.0);
                    match (from, is_reverse) {
                        (None, false) => model.iter().map(entry).collect(),
                        (None, true) => model.iter().rev().map(entry).collect(),
                        (Some(from), false) => model.range(from.to_vec()..).map(entry).collect(),
                        (Some(from), true) => model.range(..from.to_vec()).rev().map(entry).collect(),
                    }
                };
                for is_reverse in [false, true] {
                    let max = 256 << 10;
                    let (found, most) = cursor_keys(&table, &cache, Bound::None, is_reverse, max).await;
                    assert!(most > max * 5 / 4, "a long walk has the next piece read meanwhile: {most}");
                    assert!(most <= 2 * max);
                    assert!(found == expect(None, is_reverse), "seed {seed}, reverse: {is_reverse}");
                    for _ in 0..4 {
                        let mut from = keys[rng.usize(..keys.len())].clone();
                        if rng.bool() {
                            from.push(rng.u8(..));
                        }
                        let max = rng.usize(16 << 10..512 << 10);
                        let bound = Bound::Key(from.clone());
                        let (found, _) = cursor_keys(&table, &cache, bound, is_reverse, max).await;
                        assert!(found == expect(Some(&from), is_reverse), "seed {seed}, from {from:?}");
                    }
                }
            }
        });
    }
}

/// Between the first two blocks of a partition others may stand, of which the scrub knew nothing: it panicked on
/// tables of more than 16 MiB.
#[test]
fn every_block_of_a_table_of_many_partitions_is_checked_and_damage_to_one_partition_ends_no_start() {
    let (world, env) = SimEnv::fresh(33);
    world.run(async {
        let model: Model =
            (0..400_000u32).map(|n| (n.to_be_bytes().to_vec(), (1, OpKind::Put, Vec::new()))).collect();
        let table = build(&env, 1, &model).await;
        assert!(table.partitions() > 130, "{} partitions", table.partitions());
        let check = async |table: &Table<SimEnv>| {
            let (mut blocks, mut damaged) = (0, 0);
            for number in 0..table.partitions() {
                let Ok(partition) = table.read_partition(number).await else {
                    damaged += 1;
                    continue;
                };
                let mut block = 0;
                while block < partition.len() {
                    let mut pacer = crate::env::Pacer::new(&env);
                    let checked = table.check_blocks(&partition, block, &mut pacer, |_| damaged += 1);
                    block += checked.await.unwrap().0;
                }
                blocks += block as u64;
            }
            (blocks, damaged)
        };
        assert_eq!(check(&table).await, (table.meta().shape.blocks, 0));
        let mut bytes = env.disk().peek(&name(1).path()).unwrap();
        bytes[table.partition_handle(7).offset as usize + 40] ^= 1;
        env.disk().poke(&name(1).path(), bytes);
        let table = open(&env, 1).await.expect("it opens");
        assert!(table.pinned(7).is_none());
        let (blocks, damaged) = check(&table).await;
        assert!(damaged == 1 && blocks < table.meta().shape.blocks);
    });
}
