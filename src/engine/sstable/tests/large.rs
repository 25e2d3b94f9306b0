//! Entries that are written without being put together in memory.

use super::*;
use crate::engine::sstable::block_builder::BlockBuilder;

/// Values from a byte to megabytes, many of them about as long as what is written in pieces.
fn model(rng: &mut fastrand::Rng) -> Model {
    let mut model = Model::new();
    for lsn in 0..60 {
        let key = vec![rng.u8(..); rng.usize(1..40)];
        let len = match rng.u8(..4) {
            0 => rng.usize(1..2000),
            1 => (256 << 10) - rng.usize(..100),
            2 => (256 << 10) + rng.usize(..5000),
            _ => rng.usize(300_000..3_000_000),
        };
        let mut value = vec![lsn as u8; len];
        value[len / 2] = rng.u8(..);
        model.insert(key, (lsn + 1, OpKind::Put, value));
    }
    model
}

#[test]
fn large_entries_are_found_and_walked_to_and_their_blocks_are_as_any() {
    for (seed, codec) in (60..).zip(Codec::ALL.into_iter().cycle().take(6)) {
        println!("seed {seed}");
        let (world, env) = SimEnv::fresh(seed);
        world.run(async {
            let model = model(&mut fastrand::Rng::with_seed(seed));
            let table = build_with(&env, 9, &model, TableOptions::last(codec)).await;
            let cache = BlockCache::new(64 << 20, 8);
            let mut iter = TableIter::seek(&table, b"").await.unwrap();
            for (key, expected) in &model {
                assert_eq!(get(&cache, &table, key).await.as_ref(), Some(expected), "seed {seed}");
                let (found, entry) = iter.current().unwrap();
                assert!(
                    found == key && entry.lsn.0 == expected.0 && entry.value == expected.2,
                    "seed {seed}"
                );
                iter.advance().await.unwrap();
            }
            assert!(iter.current().is_none(), "seed {seed}");
            let walked = cursor_keys(&table, &cache, Bound::None, false, 256 << 10).await.0;
            let keys = model.iter().map(|(key, (lsn, ..))| (key.clone(), *lsn));
            assert!(walked == keys.collect::<Vec<_>>(), "seed {seed}");

            let mut large = 0;
            for handle in handles(&table).await {
                let stored = table.read_bytes(handle.offset, handle.len).await.unwrap();
                let block = Block::parse(table.file(), handle.offset, &stored[..]).unwrap();
                let (key, entry) = block.entry(0);
                if entry.value.len() > 256 << 10 {
                    let mut builder = BlockBuilder::new(codec);
                    builder.add(key, xxh3_64(key), &entry);
                    let mut usual = Vec::new();
                    builder.finish(table.file(), handle.offset, &mut usual);
                    assert!(usual == stored, "seed {seed}: as if it had been put together in memory");
                    large += 1;
                }
            }
            assert!(large > 10, "seed {seed}: {large} large blocks");
        });
    }
}
