//! A table's index: a separator behind every block and where the block stands, resident in flat arrays.

use std::ops::Range;

use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::format::seal_part;
use crate::base::{FileId, PAGE_SIZE, page_align};

const HEADER_BYTES: usize = 16;

/// Where a block stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHandle {
    /// In the file.
    pub offset: u64,
    /// Whole pages.
    pub len: usize,
}

/// Searched by the first 8 bytes of the separators, and by all of them where those tie. 20 bytes a block and
/// the separator, which for keys that differ early is 1 to 4 bytes.
#[derive(Default)]
pub struct Index {
    prefixes: Vec<u64>,
    /// Blocks stand back to back from offset 0, so the page where one ends says it all.
    end_pages: Vec<u32>,
    separator_ends: Vec<u64>,
    separators: Vec<u8>,
}

fn prefix(key: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let len = key.len().min(8);
    bytes[..len].copy_from_slice(&key[..len]);
    u64::from_be_bytes(bytes)
}

/// Appends a short string that is not below `last` and below `next`, for `last` < `next`; for equal ones
/// (versions of one key on both sides) the key itself.
fn push_separator(last: &[u8], next: &[u8], out: &mut Vec<u8>) {
    let common = last.iter().zip(next).take_while(|(a, b)| a == b).count();
    if common == last.len() {
        out.extend_from_slice(last);
        return;
    }
    if last[common] + 1 < next[common] {
        out.extend_from_slice(&last[..common]);
        out.push(last[common] + 1);
    } else if next.len() > common + 1 {
        out.extend_from_slice(&next[..=common]);
    } else {
        // `next` is the shortest that begins so: count up behind the byte that differs.
        match last[common + 1..].iter().position(|byte| *byte < u8::MAX) {
            Some(at) => {
                out.extend_from_slice(&last[..common + 1 + at]);
                out.push(last[common + 1 + at] + 1);
            }
            None => out.extend_from_slice(last),
        }
    }
}

impl Index {
    /// Adds the block of `len` bytes behind all others. `last_key` is its last key and `next_key` the first
    /// of the block behind it.
    pub fn push(&mut self, len: usize, last_key: &[u8], next_key: Option<&[u8]>) {
        let start = self.separators.len();
        match next_key {
            Some(next) => {
                assert!(last_key <= next, "blocks are in the order of keys");
                push_separator(last_key, next, &mut self.separators);
                let separator = &self.separators[start..];
                assert!(last_key <= separator, "a separator is not below its block");
                assert!(separator < next || last_key == next, "a separator is below the next block");
            }
            None => self.separators.extend_from_slice(last_key),
        }
        let pages = u32::try_from(len / PAGE_SIZE).expect("blocks are far below 16 TiB");
        self.seal_entry(start, pages).expect("tables are below 16 TiB");
    }

    /// Ends the entry whose separator starts at `start` of the separators.
    fn seal_entry(&mut self, start: usize, pages: u32) -> Option<()> {
        let end_page = self.end_pages.last().copied().unwrap_or(0).checked_add(pages)?;
        self.prefixes.push(prefix(&self.separators[start..]));
        self.end_pages.push(end_page);
        self.separator_ends.push(self.separators.len() as u64);
        Some(())
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.end_pages.len()
    }

    /// Bytes it takes in memory.
    pub fn memory_bytes(&self) -> usize {
        self.prefixes.capacity() * 8
            + self.end_pages.capacity() * 4
            + self.separator_ends.capacity() * 8
            + self.separators.capacity()
    }

    /// What separates a block from the next one.
    pub fn separator(&self, block: usize) -> &[u8] {
        let start = if block == 0 { 0 } else { self.separator_ends[block - 1] };
        &self.separators[start as usize..self.separator_ends[block] as usize]
    }

    /// Where a block stands.
    pub fn handle(&self, block: usize) -> BlockHandle {
        let Range { start, end } = self.pages(block);
        BlockHandle { offset: u64::from(start) * PAGE_SIZE as u64, len: (end - start) as usize * PAGE_SIZE }
    }

    fn pages(&self, block: usize) -> Range<u32> {
        let start = if block == 0 { 0 } else { self.end_pages[block - 1] };
        start..self.end_pages[block]
    }

    /// Where the last block ends.
    pub fn end(&self) -> u64 {
        u64::from(self.end_pages.last().copied().unwrap_or(0)) * PAGE_SIZE as u64
    }

    /// The first block that may hold `key`: where its newest version is, if there is one.
    pub fn find(&self, key: &[u8]) -> Option<usize> {
        let wanted = prefix(key);
        let mut low = self.prefixes.partition_point(|p| *p < wanted);
        let mut high = low + self.prefixes[low..].partition_point(|p| *p == wanted);
        while low < high {
            let middle = (low + high) / 2;
            if self.separator(middle) < key { low = middle + 1 } else { high = middle }
        }
        (low < self.len()).then_some(low)
    }

    /// The index part of a file, sealed for its place.
    pub fn encode(&self, file: FileId, offset: u64, smallest: &[u8], largest: &[u8]) -> Vec<u8> {
        let mut out = vec![0; HEADER_BYTES];
        let push = |out: &mut Vec<u8>, key: &[u8]| {
            let len = u16::try_from(key.len()).expect("keys are at most 65535 bytes, separators no longer");
            out.extend_from_slice(&len.to_le_bytes());
            out.extend_from_slice(key);
        };
        push(&mut out, smallest);
        push(&mut out, largest);
        for block in 0..self.len() {
            let Range { start, end } = self.pages(block);
            out.extend_from_slice(&(end - start).to_le_bytes());
            push(&mut out, self.separator(block));
        }
        let count = u32::try_from(self.len()).expect("a block is a page or more, and pages are counted so");
        out[4..8].copy_from_slice(&count.to_le_bytes());
        let used = out.len() as u64;
        out[8..16].copy_from_slice(&used.to_le_bytes());
        out.resize(page_align(out.len()), 0);
        seal_part(file, offset, &mut out);
        out
    }

    /// Reads an index part whose checksum was verified: smallest key, largest key, index.
    #[allow(clippy::type_complexity)]
    pub fn decode(part: &[u8]) -> Option<(Box<[u8]>, Box<[u8]>, Index)> {
        let (count, rest) = U32::read_from_prefix(part.get(4..)?).ok()?;
        let (used, _) = U64::read_from_prefix(rest).ok()?;
        let mut rest = part.get(HEADER_BYTES..usize::try_from(used.get()).ok()?)?;
        let (smallest, largest) = (take_key(&mut rest)?, take_key(&mut rest)?);
        let mut index = Index::default();
        for block in 0..count.get() as usize {
            let (pages, tail) = U32::read_from_prefix(rest).ok().filter(|(pages, _)| pages.get() > 0)?;
            rest = tail;
            let separator = take_key(&mut rest)?;
            if block > 0 && separator < index.separator(block - 1) {
                return None;
            }
            let start = index.separators.len();
            index.separators.extend_from_slice(separator);
            index.seal_entry(start, pages.get())?;
        }
        if !rest.is_empty() || smallest > largest {
            return None;
        }
        index.prefixes.shrink_to_fit();
        index.end_pages.shrink_to_fit();
        index.separator_ends.shrink_to_fit();
        index.separators.shrink_to_fit();
        Some((smallest.into(), largest.into(), index))
    }
}

fn take_key<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, tail) = U16::read_from_prefix(rest).ok()?;
    let (key, tail) = tail.split_at_checked(usize::from(len.get()))?;
    *rest = tail;
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn every_key_leads_to_its_first_block_and_the_index_comes_back() {
        let mut rng = fastrand::Rng::with_seed(13);
        for round in 0..200 {
            // Few letters and odd lengths, so that prefixes, padding and 0xff all matter.
            let letters = [0, 1, b'a', 0xfe, 0xff];
            let mut keys: Vec<Vec<u8>> = (0..rng.usize(1..60))
                .map(|_| (0..rng.usize(1..14)).map(|_| letters[rng.usize(..letters.len())]).collect())
                .collect();
            keys.sort();
            // Each key is first and last of a block; equal ones are versions that go on in the next.
            let mut index = Index::default();
            for (at, key) in keys.iter().enumerate() {
                index.push(PAGE_SIZE * (1 + at % 3), key, keys.get(at + 1).map(Vec::as_slice));
            }
            let part = index.encode(FileId(1), 0, &keys[0], keys.last().unwrap());
            let (smallest, largest, decoded) = Index::decode(&part).unwrap();
            assert_eq!((&smallest[..], &largest[..]), (&keys[0][..], &keys.last().unwrap()[..]));
            assert_eq!((decoded.len(), decoded.end()), (index.len(), index.end()));
            for key in &keys {
                let first = keys.iter().position(|other| other == key).unwrap();
                assert_eq!(decoded.find(key), Some(first), "round {round}");
                assert_eq!(decoded.handle(first), index.handle(first));
            }
            assert_eq!(decoded.find(&[keys.last().unwrap(), &[0][..]].concat()), None);
        }
    }

    #[test]
    fn a_short_separator_costs_little_memory() {
        let mut index = Index::default();
        let key = |n: u64| (n.wrapping_mul(0x9E37_79B9) << 8).to_be_bytes();
        let mut keys: Vec<_> = (0..100_000).map(key).collect();
        keys.sort_unstable();
        for pair in keys.windows(2) {
            index.push(PAGE_SIZE, &pair[0], Some(&pair[1]));
        }
        let part = index.encode(FileId(1), 0, &keys[0], &keys[99_999]);
        let (_, _, index) = Index::decode(&part).unwrap();
        let per_block = index.memory_bytes() as f64 / index.len() as f64;
        assert!(per_block < 28.0, "{per_block} bytes a block");
    }

    #[test]
    fn forged_indexes_are_refused_or_read_but_never_panic() {
        let mut rng = fastrand::Rng::with_seed(14);
        let mut index = Index::default();
        let keys = ["a", "common-prefix-1", "common-prefix-3", "common-prefix-5", "z"];
        for (at, key) in keys.iter().enumerate() {
            index.push(PAGE_SIZE, key.as_bytes(), keys.get(at + 1).map(|key| key.as_bytes()));
        }
        let whole = index.encode(FileId(1), 0, b"A", b"z");
        for _ in 0..20_000 {
            let mut part = whole.clone();
            part[rng.usize(4..120)] = rng.u8(..);
            if let Some((_, _, index)) = Index::decode(&part) {
                let _ = index.find(b"common-prefix-2");
                (0..index.len()).for_each(|block| assert!(index.handle(block).len >= PAGE_SIZE));
            }
        }
        (0..20).for_each(|len| assert!(Index::decode(&whole[..len]).is_none()));
    }
}
