use super::*;

fn hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

#[test]
fn separators_are_short_and_between() {
    for (last, next, expected) in [
        (&b"user:0001999"[..], &b"user:0002000"[..], &b"user:0002"[..]),
        (b"apple", b"melon", b"b"),
        (b"a", b"ab", b"a"),
        (b"same", b"same", b"same"),
        (b"ax", b"b", b"ay"),
        (b"a\xff\xff", b"b", b"a\xff\xff"),
        (b"a\xff\x01z", b"b", b"a\xff\x02"),
        (b"a", b"b", b"a"),
        (b"a\xfe", b"a\xff", b"a\xfe"),
    ] {
        let mut separator = Vec::new();
        push_separator(last, next, &mut separator);
        assert_eq!(separator, expected, "{last:?} {next:?}");
    }
}

/// One block for each key, in as many partitions as that takes; equal keys are versions that go on in the
/// next block. Each partition with its bytes and the number of its first block.
fn build(keys: &[Vec<u8>], bits: u8, rng: &mut fastrand::Rng) -> Vec<(usize, Vec<u8>, Vec<BlockHandle>)> {
    let (mut partitions, mut builder, mut handles) = (Vec::new(), PartitionBuilder::new(bits), Vec::new());
    let (mut offset, mut first) = (0, 0);
    for (at, key) in keys.iter().enumerate() {
        let mut separator = Vec::new();
        match keys.get(at + 1) {
            Some(next) => push_separator(key, next, &mut separator),
            None => separator.extend_from_slice(key),
        }
        if !builder.fits(&separator, 1) {
            let mut out = Vec::new();
            builder.finish(&mut out);
            partitions.push((first, out, std::mem::take(&mut handles)));
            first = at;
        }
        let handle = BlockHandle { offset, len: PAGE_SIZE * rng.usize(1..4) };
        builder.push(handle, &separator, &[hash(key)]);
        assert_eq!(builder.last_separator(), separator);
        handles.push(handle);
        offset += (handle.len + PAGE_SIZE * rng.usize(..2)) as u64;
    }
    let mut out = Vec::new();
    builder.finish(&mut out);
    partitions.push((first, out, handles));
    for (_, bytes, _) in &mut partitions {
        let len = bytes.len();
        seal_run(FileId(1), offset, &[len], bytes);
    }
    partitions
}

#[test]
fn every_key_leads_to_its_first_block_and_is_in_its_filter() {
    for seed in 0..150 {
        let mut rng = fastrand::Rng::with_seed(seed);
        // Few letters and odd lengths, so that 0xff matters; sometimes keys that fill pages, sometimes
        // one key again and again.
        let letters = [0, 1, b'a', 0xfe, 0xff];
        let long = if seed % 3 == 0 { 65_535 } else { 20 };
        let mut keys: Vec<Vec<u8>> = (0..rng.usize(1..1000))
            .map(|_| {
                let len = if rng.u8(..100) == 0 { rng.usize(1..=long) } else { rng.usize(1..14) };
                (0..len).map(|_| letters[rng.usize(..letters.len())]).collect()
            })
            .collect();
        keys.extend(vec![b"versions".to_vec(); rng.usize(..1200)]);
        keys.sort();
        let bits = [1, 12, 16][seed as usize % 3];
        let partitions = build(&keys, bits, &mut rng);
        let place = u64::MAX / 2 / PAGE_SIZE as u64 * PAGE_SIZE as u64;
        let mut covered = 0;
        for (first, bytes, handles) in &partitions {
            let mut bytes = bytes.clone();
            let len = bytes.len();
            seal_run(FileId(1), place, &[len], &mut bytes);
            assert_eq!(guess_len(&bytes, bytes.len()), Some(len));
            let partition = Partition::parse(FileId(1), place, &bytes).unwrap();
            assert!(len == PAGE_SIZE || partition.len() == 1, "seed {seed}");
            assert_eq!(*first, covered, "seed {seed}");
            for (at, handle) in handles.iter().enumerate() {
                let key = &keys[first + at];
                assert_eq!(partition.handle(at), *handle);
                assert!(partition.may_contain(hash(key)), "seed {seed}: block {at} of {}", handles.len());
                let first_here = keys[*first..].iter().position(|other| other == key).unwrap();
                assert_eq!(partition.find(key), Some(first_here), "seed {seed}");
            }
            let above = [&partition.separator(partition.len() - 1)[..], &[0]].concat();
            assert_eq!(partition.find(&above), None, "seed {seed}");
            covered += partition.len();
        }
        assert_eq!(covered, keys.len());
    }
}

#[test]
fn a_page_indexes_some_dozens_of_blocks() {
    for (keys_per_block, bits, least) in [(34, 12, 55), (68, 12, 30), (34, 16, 45)] {
        let mut builder = PartitionBuilder::new(bits);
        let mut blocks = 0;
        loop {
            let separator = format!("user:{blocks:08}");
            if !builder.fits(separator.as_bytes(), keys_per_block) {
                break;
            }
            let hashes: Vec<u64> = (0..keys_per_block as u64).map(|n| n << 32 | blocks).collect();
            let handle = BlockHandle { offset: blocks * PAGE_SIZE as u64, len: PAGE_SIZE };
            builder.push(handle, separator.as_bytes(), &hashes);
            blocks += 1;
        }
        println!("{keys_per_block} keys a block, {bits} bits a key: {blocks} blocks");
        assert!(blocks >= least, "{blocks} blocks");
        let mut out = Vec::new();
        assert_eq!(builder.finish(&mut out), PAGE_SIZE);
    }
}

#[test]
fn forged_partitions_are_refused_or_read_but_never_panic() {
    let mut rng = fastrand::Rng::with_seed(15);
    let keys: Vec<Vec<u8>> = (0..40u32).map(|n| format!("key-{n:04}").into_bytes()).collect();
    let partitions = build(&keys, 12, &mut rng);
    let [(_, whole, handles)] = &partitions[..] else { panic!("one partition") };
    let end = handles.last().map(|handle| handle.offset + handle.len as u64).unwrap();
    let place = end.next_multiple_of(PAGE_SIZE as u64);
    let (mut readable, used) = (0, 32 + 40 * 8 + 40 * 9 + 64);
    for _ in 0..20_000 {
        let mut part = whole.clone();
        for _ in 0..rng.usize(1..3) {
            part[rng.usize(4..used)] = rng.u8(..);
        }
        seal_part(FileId(1), place, &mut part);
        if let Ok(partition) = Partition::parse(FileId(1), place, &part) {
            readable += 1;
            let _ = partition.find(b"key-0020");
            let _ = partition.may_contain(rng.u64(..));
            for block in 0..partition.len() {
                let handle = partition.handle(block);
                assert!((PAGE_SIZE..=BLOCK_BYTES_LIMIT).contains(&handle.len));
                assert!(handle.offset + handle.len as u64 <= place);
                let _ = partition.separator(block);
            }
        }
    }
    assert!(readable > 100, "{readable} readable");
    let mut part = whole.clone();
    seal_part(FileId(1), 0, &mut part);
    assert!(Partition::parse(FileId(1), 0, &part).is_err(), "blocks behind the partition");
    assert!(Partition::parse(FileId(1), place, &whole[..100]).is_err());
}

/// As tables of small records have them: blocks of one length, back to back, and separators that begin alike.
#[test]
fn a_run_takes_no_memory_for_what_follows_from_the_rest() {
    const BLOCKS: usize = 60;
    let key = |number: usize| format!("user:00012{number:06}").into_bytes();
    let mut builder = PartitionBuilder::new(12);
    // The second has a gap between its blocks, where other partitions stand.
    let handle = |number: usize| {
        let gap = if number > BLOCKS + 7 { 3 } else { 0 };
        BlockHandle { offset: ((number + gap) * PAGE_SIZE) as u64, len: PAGE_SIZE }
    };
    let mut run = Vec::new();
    for number in 0..2 * BLOCKS {
        builder.push(handle(number), &key(number), &[hash(&key(number))]);
        if number % BLOCKS == BLOCKS - 1 {
            assert_eq!(builder.finish(&mut run), PAGE_SIZE);
        }
    }
    let place = 1 << 30;
    seal_run(FileId(1), place, &[PAGE_SIZE, PAGE_SIZE], &mut run);
    let (one, two) = run.split_at(PAGE_SIZE);
    let parts = [(place, one), (place + PAGE_SIZE as u64, two)];
    let partitions = Partition::parse_run(FileId(1), &parts).unwrap();
    for (number, partition) in (0..2 * BLOCKS).map(|number| (number, &partitions[number / BLOCKS])) {
        let block = number % BLOCKS;
        assert_eq!(partition.handle(block), handle(number));
        assert_eq!(partition.separator(block), key(number));
        assert_eq!(partition.find(&key(number)), Some(block));
        assert!(partition.may_contain(hash(&key(number))));
        // Keys before and behind all, whether they begin alike or end before they differ.
        for (other, first) in
            [(&b"user:0001"[..], Some(0)), (b"user", Some(0)), (b"a", Some(0)), (b"v", None)]
        {
            assert_eq!(partition.find(other), first);
            assert_eq!(partition.cmp_separator(block, other), key(number)[..].cmp(other));
        }
        assert!(partition.cmp_separator(block, &key(number)).is_eq());
        assert!(partition.cmp_separator(block, &key(number + 1)).is_lt());
        assert!(number == 0 || partition.cmp_separator(block, &key(number - 1)).is_gt());
    }
    // Of a block the end of its separator, and two or three digits; where they don't follow, its page and pages.
    let filter = filter::lines_for(BLOCKS, 12) * LINE_BYTES;
    let index = BLOCKS * (2 + 3) + 16 + LINE_BYTES;
    let most = LINE_BYTES + 2 * (filter + index) + BLOCKS * HANDLE_BYTES;
    assert!(partitions[0].run_bytes() <= most, "{} bytes, {most} expected", partitions[0].run_bytes());
    // Damage is that of the one which has it.
    run[PAGE_SIZE + 100] ^= 1;
    let (one, two) = run.split_at(PAGE_SIZE);
    let parts = [(place, one), (place + PAGE_SIZE as u64, two)];
    let damaged = Partition::parse_run(FileId(1), &parts).err().map(|(at, _)| at);
    assert_eq!(damaged, Some(parts[1].0));
}
