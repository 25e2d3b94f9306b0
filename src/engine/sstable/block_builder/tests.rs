use xxhash_rust::xxh3::xxh3_64;

use super::super::block::{Block, guess_len};
use super::super::format::BLOCK_BYTES_LIMIT;
use super::*;
use crate::base::{Lsn, OpKind};

fn put(lsn: u64, value: &[u8]) -> Entry<'_> {
    Entry { lsn: Lsn(lsn), kind: OpKind::Put, expiry_ms: 0, value }
}

/// A value of which `noise` in 100 can't be compressed.
fn value(rng: &mut fastrand::Rng, len: usize, noise: u8) -> Vec<u8> {
    (0..len).map(|at| if at * 100 < len * usize::from(noise) { rng.u8(..) } else { b'x' }).collect()
}

/// Everything that was put in, cut into blocks and read back.
struct Filled {
    blocks: Vec<Finished>,
    /// Used bytes of all blocks, of the pages that they take.
    used: f64,
}

impl Filled {
    fn raw(&self) -> usize {
        self.blocks.iter().map(|block| block.raw_len).sum()
    }

    fn len(&self) -> usize {
        self.blocks.iter().map(|block| block.len).sum()
    }
}

fn fill(codec: Codec, entries: &[(Vec<u8>, Vec<u8>)]) -> Filled {
    let (mut builder, mut out, mut blocks, mut read) = (BlockBuilder::new(codec), Vec::new(), Vec::new(), 0);
    let mut used = 0;
    let mut finish = |builder: &mut BlockBuilder| {
        let offset = out.len();
        let finished = builder.finish(FileId(1), offset as u64, &mut out);
        let stored = &out[offset..];
        assert_eq!((stored.len(), guess_len(stored, stored.len())), (finished.len, Some(finished.len)));
        let header = <BlockHeader as zerocopy::FromBytes>::ref_from_prefix(stored).unwrap().0;
        used += BLOCK_HEADER_BYTES + header.stored_len.get() as usize;
        let block = Block::parse(FileId(1), offset as u64, stored).unwrap();
        assert_eq!((block.len(), block.codec()), (finished.count, finished.codec));
        assert_eq!(block.raw_bytes(), finished.raw_len);
        for record in 0..block.len() {
            let (key, value) = &entries[read + record];
            assert_eq!(block.entry(record), (&key[..], put(7, value)));
            assert_eq!(builder.hashes(&finished)[record], xxh3_64(key));
            assert_eq!(block.get(xxh3_64(key), key).map(|entry| entry.value), Some(&value[..]));
        }
        read += block.len();
        assert_eq!(finished.last_key, entries[read - 1].0);
        if let Some(next) = builder.next_key(&finished) {
            assert_eq!(next, entries[read].0);
        }
        builder.drain(&finished);
        blocks.push(finished);
    };
    for (key, value) in entries {
        while !builder.fits(key, &put(7, value)) {
            finish(&mut builder);
        }
        builder.add(key, xxh3_64(key), &put(7, value));
    }
    while !builder.is_empty() {
        finish(&mut builder);
    }
    assert_eq!(read, entries.len());
    let pages: usize = blocks.iter().map(|block: &Finished| block.len).sum();
    Filled { blocks, used: used as f64 / pages as f64 }
}

fn entries(rng: &mut fastrand::Rng, bytes: usize, len: usize, noise: u8) -> Vec<(Vec<u8>, Vec<u8>)> {
    let count = (bytes / (len + 30)).max(1);
    (0..count).map(|n| (format!("user:{n:08}").into_bytes(), value(rng, len, noise))).collect()
}

#[test]
fn plain_blocks_are_single_pages_unless_those_would_stay_empty() {
    let mut rng = fastrand::Rng::with_seed(1);
    for (len, pages_max, used_min) in [
        (8, 1, 0.98),
        (100, 1, 0.96),
        (400, 1, 0.87),
        (1000, 3, 0.87),
        (2100, 4, 0.87),
        (5000, 4, 0.87),
        (100_000, 25, 0.97),
    ] {
        let filled = fill(Codec::None, &entries(&mut rng, 400_000, len, 100));
        let pages = filled.blocks.iter().map(|block| block.len / PAGE_SIZE).max().unwrap();
        assert!(pages <= pages_max, "{len}: {pages} pages");
        assert!(filled.used >= used_min, "{len}: {} used", filled.used);
    }
}

#[test]
fn compressed_blocks_fill_their_pages_too() {
    for codec in [Codec::Lz4, Codec::Zstd] {
        for noise in [10, 30, 50, 70] {
            for len in [8, 40, 100, 400, 1000, 3000] {
                let mut rng = fastrand::Rng::with_seed(2);
                let entries = entries(&mut rng, 800_000, len, noise);
                let filled = fill(codec, &entries);
                let blocks = filled.blocks.len() as f64;
                let single = filled.blocks.iter().filter(|b| b.len == PAGE_SIZE).count() as f64 / blocks;
                println!(
                    "{codec} {noise} % noise, {len} B: {:.0} B raw a block, {:.0} % used, {:.0} % single, ratio {:.2}",
                    filled.raw() as f64 / blocks,
                    filled.used * 100.0,
                    single * 100.0,
                    filled.raw() as f64 / filled.len() as f64
                );
                // Short of that only where a page holds as much as it may.
                let is_full = filled.raw() as f64 / blocks > 15_000.0;
                assert!(filled.used > 0.85 || is_full, "{codec} {noise} % noise, {len} B: {}", filled.used);
                assert!(single > 0.9 || len > 400, "{codec} {noise} % noise, {len} B: {single} single pages");
            }
        }
    }
}

#[test]
fn what_does_not_compress_is_stored_as_it_is_and_changes_are_noticed() {
    let mut rng = fastrand::Rng::with_seed(3);
    for codec in [Codec::Lz4, Codec::Zstd] {
        let noise = fill(codec, &entries(&mut rng, 400_000, 400, 100));
        assert!(noise.used > 0.93, "{}", noise.used);
        assert!(noise.blocks.iter().filter(|block| block.codec != Codec::None).count() < 3);
        // First noise, then text, then noise again.
        let mut mixed = entries(&mut rng, 400_000, 400, 100);
        mixed.extend(entries(&mut rng, 400_000, 400, 30));
        mixed.extend(entries(&mut rng, 400_000, 400, 100));
        let filled = fill(codec, &mixed);
        let compressed: Vec<_> = filled.blocks.iter().filter(|block| block.codec == codec).collect();
        let raw: usize = compressed.iter().map(|block| block.raw_len).sum();
        assert!(raw > 330_000 && raw < 500_000, "{codec}: {raw} bytes, the text, are compressed");
        assert!(filled.blocks.last().unwrap().codec == Codec::None);
        assert!(filled.used > 0.9, "{codec}: {}", filled.used);
    }
}

#[test]
fn a_page_holds_a_bounded_payload_however_well_it_compresses() {
    for (codec, most) in [(Codec::Lz4, 17 << 10), (Codec::Zstd, 33 << 10)] {
        let zeros: Vec<_> = (0..20_000u32).map(|n| (n.to_be_bytes().to_vec(), vec![0; 100])).collect();
        let filled = fill(codec, &zeros);
        assert!(filled.blocks.iter().all(|block| block.raw_len <= most));
        assert!(filled.raw() as f64 / filled.len() as f64 > 3.0);
    }
}

#[test]
fn any_mixture_comes_back_whole() {
    for seed in 0..40 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let codec = Codec::ALL[seed as usize % 3];
        let mut entries: Vec<(Vec<u8>, Vec<u8>)> = (0..rng.usize(1..400))
            .map(|_| {
                let key_len = if rng.u8(..40) == 0 { rng.usize(1..65_536) } else { rng.usize(1..40) };
                let key = (0..key_len).map(|_| rng.u8(..3)).collect();
                let (most, noise) = ([10, 200, 5000, 300_000][rng.usize(..4)], rng.u8(..101));
                let len = if rng.bool() { rng.usize(..most) } else { rng.usize(..200) };
                (key, value(&mut rng, len, noise))
            })
            .collect();
        entries.sort();
        entries.dedup_by(|a, b| a.0 == b.0);
        println!("seed {seed}: {codec}, {} entries", entries.len());
        let filled = fill(codec, &entries);
        for block in &filled.blocks {
            assert!(block.raw_len <= COMPRESSED_BYTES_MAX || block.codec == Codec::None);
        }
    }
}

#[test]
fn the_longest_keys_and_values_come_back() {
    for codec in Codec::ALL {
        for (key_len, value_len) in [(65_535, 0), (1, 32 << 20), (65_535, 32 << 20)] {
            let entries = [(b"a".to_vec(), b"small".to_vec()), (vec![b'k'; key_len], vec![b'v'; value_len])];
            let filled = fill(codec, &entries);
            assert!(filled.blocks.iter().all(|block| block.len <= BLOCK_BYTES_LIMIT));
        }
    }
}

#[test]
fn the_newest_version_is_found_and_equal_tags_are_told_apart() {
    let mut builder = BlockBuilder::new(Codec::None);
    for lsn in (1..=5).rev() {
        builder.add(b"a", 0, &put(lsn, b"a"));
    }
    builder.add(b"b", 0, &Entry { expiry_ms: 9, ..put(9, b"b") });
    let mut out = Vec::new();
    builder.finish(FileId(1), 0, &mut out);
    let block = Block::parse(FileId(1), 0, &out).unwrap();
    assert_eq!(block.get(0, b"a"), Some(put(5, b"a")));
    assert_eq!(block.get(0, b"b"), Some(Entry { expiry_ms: 9, ..put(9, b"b") }));
    assert_eq!(block.get(0, b"c"), None);
    assert_eq!((block.lower_bound(b"a"), block.lower_bound(b"aa"), block.lower_bound(b"c")), (0, 5, 6));
}

#[test]
fn bytes_that_only_look_like_a_block_are_refused() {
    for codec in Codec::ALL {
        let mut rng = fastrand::Rng::with_seed(17);
        let mut builder = BlockBuilder::new(codec);
        for n in 0..50u32 {
            builder.add(&n.to_be_bytes(), u64::from(n), &put(1, &value(&mut rng, 100, 30)));
        }
        let mut whole = Vec::new();
        let finished = builder.finish(FileId(1), 0, &mut whole);
        assert_eq!(finished.codec, codec);
        assert!(Block::parse(FileId(1), 0, &[]).is_err());
        assert!(Block::parse(FileId(1), 4096, &whole).is_err(), "another place");
        assert!(Block::parse(FileId(2), 0, &whole).is_err(), "another file");
        // Forged: damaged, and sealed again. Refused or readable, but never a panic.
        let mut read = 0;
        for _ in 0..5000 {
            let mut bytes = whole.clone();
            for _ in 0..rng.usize(1..4) {
                let at = if rng.bool() { rng.usize(4..24) } else { rng.usize(..bytes.len().min(400)) };
                bytes[at] = rng.u8(..);
            }
            seal_part(FileId(1), 0, &mut bytes);
            if let Ok(block) = Block::parse(FileId(1), 0, &bytes) {
                let _ = block.get(3, b"key");
                let _ = block.lower_bound(b"key");
                read += 1;
            }
        }
        println!("{codec}: {read} of 5000 were readable");
        for (at, len) in [(8, u32::MAX), (12, u32::MAX), (8, 1 << 20), (8, 0), (12, 0)] {
            let mut bytes = whole.clone();
            bytes[at..at + 4].copy_from_slice(&len.to_le_bytes());
            seal_part(FileId(1), 0, &mut bytes);
            assert!(Block::parse(FileId(1), 0, &bytes).is_err(), "{codec}: length {len} at {at}");
        }
    }
}
