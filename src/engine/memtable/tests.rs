//! The memtable against an ordered map.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64;

use super::*;

#[derive(Clone, Debug, PartialEq)]
struct Version {
    lsn: u64,
    kind: OpKind,
    expiry_ms: u64,
    value: Vec<u8>,
}

/// Versions of each key, oldest first.
type Model = BTreeMap<Vec<u8>, Vec<Version>>;

const TABLETS: usize = 5;
/// Every version stays.
const ALL: Lsn = Lsn(u64::MAX);

fn is_same(entry: &Entry<'_>, version: &Version) -> bool {
    (entry.lsn.0, entry.kind, entry.expiry_ms) == (version.lsn, version.kind, version.expiry_ms)
        && entry.value == version.value
}

fn key(rng: &mut fastrand::Rng) -> Vec<u8> {
    let n = rng.u32(..6000);
    match n % 6 {
        0 => format!("user:{n}").into_bytes(),
        1 => n.to_be_bytes().to_vec(),
        // Prefixes of each other, some longer than what an order item holds, and zero bytes that look
        // like its padding.
        2 => vec![b'a'; (n % 80) as usize + 1],
        3 => vec![0; (n % 80) as usize + 1],
        4 => vec![n as u8; 2000],
        _ => format!("a-common-prefix-longer-than-an-item-holds-{n:08}").into_bytes(),
    }
}

fn version(rng: &mut fastrand::Rng, lsn: u64) -> Version {
    let kind = if rng.u8(..4) > 0 { OpKind::Put } else { OpKind::Delete };
    let value_len = match rng.u32(..2000) {
        _ if kind == OpKind::Delete => 0,
        0..4 => 300_000, // a chunk of its own
        4..200 => 0,
        _ => rng.usize(..60),
    };
    let expiry_ms = if rng.u8(..5) == 0 { rng.u64(1..) } else { 0 };
    Version { lsn, kind, expiry_ms, value: vec![rng.u8(..); value_len] }
}

fn insert(memtable: &mut Memtable, tablet: usize, hash: u64, key: &[u8], v: &Version, kept: Lsn) {
    if v.value.len() < 280_000 || v.lsn.is_multiple_of(2) {
        return memtable.insert(tablet, hash, key, Lsn(v.lsn), v.kind, v.expiry_ms, &v.value, kept);
    }
    let entry = Entry { lsn: Lsn(v.lsn), kind: v.kind, expiry_ms: v.expiry_ms, value: &v.value };
    let mut staged = StagedRecord::new(key, v.value.len());
    v.value.chunks(100_000).for_each(|piece| staged.push(piece));
    memtable.insert_staged(tablet, hash, key, entry.lsn, entry.expiry_ms, staged);
}

fn check(memtable: &Memtable, models: &[Model], hash: fn(&[u8]) -> u64, rng: &mut fastrand::Rng, seed: u64) {
    assert_eq!(memtable.entries(), models.iter().map(BTreeMap::len).sum::<usize>(), "seed {seed}");
    for (tablet, model) in models.iter().enumerate() {
        assert_eq!(memtable.tablet_entries(tablet), model.len(), "seed {seed}");
        for (key, versions) in model {
            let found: Vec<Entry<'_>> = memtable.versions(hash(key), key).collect();
            assert_eq!(found.len(), versions.len(), "seed {seed}, key {key:?}");
            assert!(found.iter().zip(versions.iter().rev()).all(|(a, b)| is_same(a, b)), "seed {seed}");
            assert_eq!(memtable.get(hash(key), key), Some(found[0]), "seed {seed}");
        }
        let mut starts = vec![Vec::new(), vec![255; 100]];
        starts.extend((0..10).map(|_| self::key(rng)));
        starts.extend(model.keys().step_by(97).cloned());
        for from in starts {
            let mut iter = memtable.iter(tablet, &from);
            for (key, versions) in model.range(from.clone()..) {
                let (found, entry) = iter.next().expect("the model has more");
                assert_eq!(found, key, "seed {seed}");
                assert!(versions.last().is_some_and(|newest| is_same(&entry, newest)), "seed {seed}");
            }
            assert!(iter.next().is_none(), "seed {seed}: the model has no more");
        }
    }
}

fn run(seed: u64, writes: u64, hash: fn(&[u8]) -> u64) {
    println!("seed {seed}; repeat: cargo test --lib memtable::tests (seeds are fixed)");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut memtable = Memtable::new(TABLETS);
    let mut models = vec![Model::new(); TABLETS];
    let mut bytes = memtable.bytes();
    for lsn in 1..=writes {
        let key = key(&mut rng);
        let tablet = (xxh3_64(&key) % TABLETS as u64) as usize;
        let version = version(&mut rng, lsn);
        insert(&mut memtable, tablet, hash(&key), &key, &version, ALL);
        models[tablet].entry(key).or_default().push(version);
        assert!(memtable.bytes() >= bytes, "bytes() only grows");
        bytes = memtable.bytes();
        if rng.u8(..7) == 0 {
            memtable.prefetch(&[rng.u64(..), 0, u64::MAX]);
            memtable.sort_step();
        }
        // Reading sorts a copy of the tail; writes must go on as if it had not.
        if lsn == writes / 2 {
            check(&memtable, &models, hash, &mut rng, seed);
        }
    }
    check(&memtable, &models, hash, &mut rng, seed);
    assert!(memtable.get(hash(b"absent"), b"absent").is_none());
    while memtable.drop_step() {}
    assert!(!memtable.drop_step());
}

#[test]
fn random_writes_match_an_ordered_map_in_every_tablet() {
    (0..4).for_each(|seed| run(seed, 20_000, xxh3_64));
}

#[test]
fn so_they_do_when_hashes_collide() {
    run(10, 3_000, |_| 42);
    run(11, 3_000, |key| xxh3_64(key) % 7);
    run(12, 10_000, |key| xxh3_64(key) & 0xFFF0_0000_0000_000F);
}

/// Versions that no snapshot sees may go. Those that one sees stay, and the newest is always there.
#[test]
fn what_snapshots_see_stays_when_versions_give_way() {
    for seed in 20..26 {
        println!("seed {seed}; repeat: cargo test --lib memtable::tests (seeds are fixed)");
        let mut rng = fastrand::Rng::with_seed(seed);
        let (mut memtable, mut model) = (Memtable::new(1), Model::new());
        let (mut snapshots, mut kept, mut writes) = (Vec::new(), Lsn::ZERO, 0);
        // Some of these take snapshots all the time, some next to never.
        let often = [20, 300, 6_000][seed as usize % 3];
        for lsn in 1..=12_000 {
            let key = format!("{}", rng.u32(..400)).into_bytes();
            let version = version(&mut rng, lsn);
            insert(&mut memtable, 0, xxh3_64(&key), &key, &version, kept);
            model.entry(key).or_default().push(version);
            writes += 1;
            if rng.u32(..often) == 0 {
                kept = Lsn(lsn);
                snapshots.push(kept);
            }
        }
        let mut versions = 0;
        for (key, written) in &model {
            let found: Vec<Entry<'_>> = memtable.versions(xxh3_64(key), key).collect();
            versions += found.len();
            assert!(written.last().is_some_and(|newest| is_same(&found[0], newest)), "seed {seed}");
            assert!(found.is_sorted_by(|a, b| a.lsn > b.lsn), "seed {seed}");
            for seen in &snapshots {
                let expected = written.iter().rev().find(|version| version.lsn <= seen.0);
                let found = found.iter().find(|entry| entry.lsn <= *seen);
                match (found, expected) {
                    (Some(found), Some(version)) => assert!(is_same(found, version), "seed {seed}"),
                    (found, expected) => assert!(found.is_none() && expected.is_none(), "seed {seed}"),
                }
            }
        }
        println!("{} snapshots, {versions} versions of {writes} stayed", snapshots.len());
        assert!(versions < writes, "some gave way");
        assert_eq!(memtable.iter(0, b"").count(), model.len());
    }
}

#[test]
fn what_is_written_over_and_over_takes_no_more_memory() {
    let mut memtable = Memtable::new(1);
    let mut lsns = 1..;
    let mut put = |memtable: &mut Memtable, expiry_ms, len: usize| {
        let lsn = Lsn(lsns.next().expect("there are more"));
        memtable.insert(0, 1, b"k", lsn, OpKind::Put, expiry_ms, &vec![lsn.0 as u8; len], Lsn::ZERO);
        let newest = memtable.get(1, b"k").expect("it is there");
        assert_eq!(
            (newest.lsn, newest.expiry_ms, newest.value),
            (lsn, expiry_ms, &vec![lsn.0 as u8; len][..])
        );
        memtable.versions(1, b"k").count()
    };
    // 16 of the header, 2 + 1 of the key, 13: a whole number of words.
    assert_eq!(put(&mut memtable, 0, 12), 1);
    assert_eq!(put(&mut memtable, 0, 13), 1, "what a word has left is used");
    assert_eq!(put(&mut memtable, 0, 0), 1);
    assert_eq!(put(&mut memtable, 0, 5), 1);
    assert_eq!(put(&mut memtable, 0, 6), 2, "what a shorter one gave up is gone");
    assert_eq!(put(&mut memtable, 7, 6), 3, "there is no room for an expiry");
    assert_eq!(put(&mut memtable, 8, 8), 3);
    assert_eq!(put(&mut memtable, 0, 8), 4, "nor may a header be shorter than it says");
    let bytes = memtable.bytes();
    assert_eq!((0..100_000).map(|_| put(&mut memtable, 0, 8)).max(), Some(4));
    assert_eq!(memtable.bytes(), bytes);
}

#[test]
fn a_first_value_of_any_size_keeps_its_versions() {
    // Around the size of an arena chunk, where a piece could fall on the place that means "none".
    for len in [0, (1 << 18) - 40, 1 << 18, (1 << 20) - 32, (1 << 20) - 19, 1 << 20, 5 << 20, 32 << 20] {
        let mut memtable = Memtable::new(1);
        let value = vec![7; len];
        memtable.insert(0, 1, b"k", Lsn(1), OpKind::Put, 9, &value, ALL);
        memtable.insert(0, 1, b"k", Lsn(2), OpKind::Delete, 0, b"", ALL);
        let versions: Vec<_> = memtable.versions(1, b"k").map(|e| (e.lsn.0, e.kind, e.expiry_ms)).collect();
        assert_eq!(versions, [(2, OpKind::Delete, 0), (1, OpKind::Put, 9)], "{len} bytes");
        assert_eq!(memtable.versions(1, b"k").last().map(|entry| entry.value), Some(&value[..]));
        assert!(memtable.bytes() >= len);
    }
}

#[test]
fn the_longest_key_comes_back() {
    let mut memtable = Memtable::new(1);
    let key = vec![b'k'; crate::base::KEY_BYTES_MAX];
    memtable.insert(0, 1, &key, Lsn(1), OpKind::Put, 0, b"v", ALL);
    assert_eq!(
        memtable.iter(0, &key).next().map(|(found, entry)| (found, entry.value)),
        Some((&key[..], &b"v"[..]))
    );
}

#[test]
#[should_panic(expected = "versions of a key are added in order")]
fn a_version_that_is_not_newer_is_our_bug() {
    let mut memtable = Memtable::new(1);
    memtable.insert(0, 1, b"k", Lsn(2), OpKind::Put, 0, b"", ALL);
    memtable.insert(0, 1, b"k", Lsn(2), OpKind::Put, 0, b"", ALL);
}

#[test]
fn bytes_count_what_is_allocated() {
    let mut memtable = Memtable::new(3);
    assert!(memtable.bytes() < 64 << 10, "an empty one is small: {}", memtable.bytes());
    let mut payload = 0;
    for n in 0..50_000u64 {
        let key = n.to_be_bytes();
        memtable.insert(n as usize % 3, xxh3_64(&key), &key, Lsn(n + 1), OpKind::Put, 0, &[1; 100], ALL);
        payload += key.len() + 100;
    }
    let overhead = (memtable.bytes() - payload) / memtable.entries();
    assert!((40..90).contains(&overhead), "{overhead} bytes an entry");
}
