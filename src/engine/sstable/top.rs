//! The top of a table's index: a separator behind every partition and where it stands, resident in flat
//! arrays.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

use super::BlockHandle;
use super::format::{TOP_HEADER_BYTES, TOP_KIND, TopHeader, seal_part};
use crate::base::{FileId, PAGE_SIZE, page_align};

/// Searched by the first 8 bytes of the separators, and by all of them where those tie. 20 bytes a
/// partition and the separator, which for keys that differ early is 1 to 4 bytes.
#[derive(Default)]
pub struct Top {
    prefixes: Vec<u64>,
    pages: Vec<u32>,
    lens: Vec<u16>,
    separator_ends: Vec<u32>,
    separators: Vec<u8>,
}

fn prefix(key: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let len = key.len().min(8);
    bytes[..len].copy_from_slice(&key[..len]);
    u64::from_be_bytes(bytes)
}

impl Top {
    /// Adds the partition at `handle`, behind all others; `separator` is that of its last block. `None`: the
    /// file is larger than the format can tell.
    pub fn push(&mut self, handle: BlockHandle, separator: &[u8]) -> Option<()> {
        let page = u32::try_from(handle.offset / PAGE_SIZE as u64).ok()?;
        let len = u16::try_from(handle.len / PAGE_SIZE).ok()?;
        let end = u32::try_from(self.separators.len() + separator.len()).ok()?;
        self.separators.extend_from_slice(separator);
        self.prefixes.push(prefix(separator));
        self.pages.push(page);
        self.lens.push(len);
        self.separator_ends.push(end);
        Some(())
    }

    /// Number of partitions.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Bytes it takes in memory.
    pub fn memory_bytes(&self) -> usize {
        self.prefixes.capacity() * 8
            + self.pages.capacity() * 4
            + self.lens.capacity() * 2
            + self.separator_ends.capacity() * 4
            + self.separators.capacity()
    }

    /// What separates a partition from the next one.
    pub fn separator(&self, partition: usize) -> &[u8] {
        let start = if partition == 0 { 0 } else { self.separator_ends[partition - 1] };
        &self.separators[start as usize..self.separator_ends[partition] as usize]
    }

    /// Where a partition stands.
    pub fn handle(&self, partition: usize) -> BlockHandle {
        let offset = u64::from(self.pages[partition]) * PAGE_SIZE as u64;
        BlockHandle { offset, len: usize::from(self.lens[partition]) * PAGE_SIZE }
    }

    /// The first partition that may hold `key`: where its newest version is, if there is one.
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

    /// The part of a file, sealed for its place.
    pub fn encode(&self, file: FileId, offset: u64, smallest: &[u8], largest: &[u8]) -> Vec<u8> {
        let mut out = vec![0; TOP_HEADER_BYTES];
        let push = |out: &mut Vec<u8>, key: &[u8]| {
            let len = u16::try_from(key.len()).expect("keys are at most 65535 bytes, separators no longer");
            out.extend_from_slice(&len.to_le_bytes());
            out.extend_from_slice(key);
        };
        push(&mut out, smallest);
        push(&mut out, largest);
        for partition in 0..self.len() {
            out.extend_from_slice(&self.pages[partition].to_le_bytes());
            out.extend_from_slice(&self.lens[partition].to_le_bytes());
            push(&mut out, self.separator(partition));
        }
        let header = TopHeader {
            crc: 0.into(),
            kind: TOP_KIND,
            zero: [0; 3],
            count: u32::try_from(self.len()).expect("a partition is a page or more of 2^32").into(),
            zero2: 0.into(),
            used: (out.len() as u64).into(),
            zero3: 0.into(),
        };
        out[..TOP_HEADER_BYTES].copy_from_slice(header.as_bytes());
        out.resize(page_align(out.len()), 0);
        seal_part(file, offset, &mut out);
        out
    }

    /// Reads a part whose checksum was verified: smallest key, largest key, top. Partitions stand in order,
    /// and before the part itself, which is at `offset`.
    #[allow(clippy::type_complexity)]
    pub fn decode(part: &[u8], offset: u64) -> Option<(Box<[u8]>, Box<[u8]>, Top)> {
        let header = TopHeader::ref_from_prefix(part).ok().filter(|(h, _)| h.kind == TOP_KIND)?.0;
        let used = usize::try_from(header.used.get()).ok()?;
        let mut rest = part.get(TOP_HEADER_BYTES..used).filter(|_| page_align(used) == part.len())?;
        let (smallest, largest) = (take_key(&mut rest)?, take_key(&mut rest)?);
        let mut top = Top::default();
        let mut last_end = 0;
        for partition in 0..header.count.get() as usize {
            let (page, tail) = U32::read_from_prefix(rest).ok()?;
            let (pages, tail) = U16::read_from_prefix(tail).ok()?;
            rest = tail;
            let separator = take_key(&mut rest)?;
            let start = u64::from(page.get()) * PAGE_SIZE as u64;
            let handle = BlockHandle { offset: start, len: usize::from(pages.get()) * PAGE_SIZE };
            let end = start + handle.len as u64;
            let is_ordered = start >= last_end && handle.len > 0 && end <= offset;
            if !is_ordered || (partition > 0 && separator < top.separator(partition - 1)) {
                return None;
            }
            top.push(handle, separator)?;
            last_end = end;
        }
        if !rest.is_empty() || smallest > largest || top.len() == 0 {
            return None;
        }
        top.prefixes.shrink_to_fit();
        top.pages.shrink_to_fit();
        top.lens.shrink_to_fit();
        top.separator_ends.shrink_to_fit();
        top.separators.shrink_to_fit();
        Some((smallest.into(), largest.into(), top))
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
    fn every_key_leads_to_its_first_partition_and_the_top_comes_back() {
        let mut rng = fastrand::Rng::with_seed(13);
        for round in 0..200 {
            // Few letters and odd lengths, so that prefixes, padding and 0xff all matter.
            let letters = [0, 1, b'a', 0xfe, 0xff];
            let mut keys: Vec<Vec<u8>> = (0..rng.usize(1..60))
                .map(|_| (0..rng.usize(1..14)).map(|_| letters[rng.usize(..letters.len())]).collect())
                .collect();
            keys.sort();
            let (mut top, mut offset) = (Top::default(), 0);
            for key in &keys {
                let len = PAGE_SIZE * rng.usize(1..4);
                top.push(BlockHandle { offset, len }, key).unwrap();
                offset += (len + PAGE_SIZE * rng.usize(..3)) as u64;
            }
            let part = top.encode(FileId(1), offset, &keys[0], keys.last().unwrap());
            let (smallest, largest, decoded) = Top::decode(&part, offset).unwrap();
            assert_eq!((&smallest[..], &largest[..]), (&keys[0][..], &keys.last().unwrap()[..]));
            assert_eq!(decoded.len(), top.len());
            for key in &keys {
                let first = keys.iter().position(|other| other == key).unwrap();
                assert_eq!(decoded.find(key), Some(first), "round {round}");
                assert_eq!(decoded.handle(first), top.handle(first));
            }
            assert_eq!(decoded.find(&[keys.last().unwrap(), &[0][..]].concat()), None);
        }
    }

    #[test]
    fn forged_tops_are_refused_or_read_but_never_panic() {
        let mut rng = fastrand::Rng::with_seed(14);
        let mut top = Top::default();
        let keys = ["a", "common-prefix-1", "common-prefix-3", "common-prefix-5", "z"];
        for (at, key) in keys.iter().enumerate() {
            let handle = BlockHandle { offset: (at * PAGE_SIZE) as u64, len: PAGE_SIZE };
            top.push(handle, key.as_bytes()).unwrap();
        }
        let whole = top.encode(FileId(1), 5 * PAGE_SIZE as u64, b"A", b"z");
        for _ in 0..20_000 {
            let mut part = whole.clone();
            part[rng.usize(4..140)] = rng.u8(..);
            if let Some((_, _, top)) = Top::decode(&part, 5 * PAGE_SIZE as u64) {
                let _ = top.find(b"common-prefix-2");
                (0..top.len()).for_each(|partition| {
                    let BlockHandle { offset, len } = top.handle(partition);
                    assert!(len >= PAGE_SIZE && offset + len as u64 <= 5 * PAGE_SIZE as u64);
                });
            }
        }
        (0..40).for_each(|len| assert!(Top::decode(&whole[..len], 0).is_none()));
        assert!(Top::decode(&whole, 4 * PAGE_SIZE as u64).is_none(), "partitions behind the top");
    }
}
