//! A table's index: the last key of every block and where it stands, resident in flat arrays.

use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32};

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

/// Searched by the first 8 bytes of the keys, and by whole keys where those tie.
#[derive(Default)]
pub struct Index {
    prefixes: Vec<u64>,
    places: Vec<(u32, u32)>,
    key_ends: Vec<u32>,
    keys: Vec<u8>,
}

fn prefix(key: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let len = key.len().min(8);
    bytes[..len].copy_from_slice(&key[..len]);
    u64::from_be_bytes(bytes)
}

impl Index {
    /// Adds the next block.
    ///
    /// # Panics
    /// Beyond 16 TiB of blocks or 4 GiB of last keys in one table.
    pub fn push(&mut self, offset: u64, len: usize, last_key: &[u8]) {
        let pages = |bytes: u64| u32::try_from(bytes / PAGE_SIZE as u64).expect("tables are below 16 TiB");
        self.prefixes.push(prefix(last_key));
        self.places.push((pages(offset), pages(len as u64)));
        self.keys.extend_from_slice(last_key);
        self.key_ends.push(u32::try_from(self.keys.len()).expect("an index is below 4 GiB"));
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Bytes it takes in memory.
    pub fn memory_bytes(&self) -> usize {
        self.prefixes.capacity() * 8
            + self.places.capacity() * 8
            + self.key_ends.capacity() * 4
            + self.keys.capacity()
    }

    /// The last key of a block.
    pub fn last_key(&self, block: usize) -> &[u8] {
        let start = if block == 0 { 0 } else { self.key_ends[block - 1] as usize };
        &self.keys[start..self.key_ends[block] as usize]
    }

    /// Where a block stands.
    pub fn handle(&self, block: usize) -> BlockHandle {
        let (page, pages) = self.places[block];
        BlockHandle { offset: u64::from(page) * PAGE_SIZE as u64, len: pages as usize * PAGE_SIZE }
    }

    /// The first block whose last key is not below `key`: the only one that may hold it.
    pub fn find(&self, key: &[u8]) -> Option<usize> {
        let wanted = prefix(key);
        let mut low = self.prefixes.partition_point(|p| *p < wanted);
        let high = low + self.prefixes[low..].partition_point(|p| *p == wanted);
        let mut end = high;
        while low < end {
            let middle = (low + end) / 2;
            if self.last_key(middle) < key { low = middle + 1 } else { end = middle }
        }
        (low < self.len()).then_some(low)
    }

    /// The index part of a file, sealed for its place.
    pub fn encode(&self, file: FileId, offset: u64, smallest: &[u8], largest: &[u8]) -> Vec<u8> {
        let mut out = vec![0; HEADER_BYTES];
        for key in [smallest, largest] {
            out.extend_from_slice(&(key.len() as u16).to_le_bytes());
            out.extend_from_slice(key);
        }
        for block in 0..self.len() {
            let (page, pages) = self.places[block];
            let key = self.last_key(block);
            out.extend_from_slice(&page.to_le_bytes());
            out.extend_from_slice(&pages.to_le_bytes());
            out.extend_from_slice(&(key.len() as u16).to_le_bytes());
            out.extend_from_slice(key);
        }
        out[4..8].copy_from_slice(&(self.len() as u32).to_le_bytes());
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
        let (used, _) = zerocopy::little_endian::U64::read_from_prefix(rest).ok()?;
        let mut rest = part.get(HEADER_BYTES..usize::try_from(used.get()).ok()?)?;
        let key = |rest: &mut &[u8]| -> Option<Box<[u8]>> {
            let (len, tail) = U16::read_from_prefix(rest).ok()?;
            let key = tail.get(..usize::from(len.get()))?;
            *rest = &tail[key.len()..];
            Some(key.into())
        };
        let (smallest, largest) = (key(&mut rest)?, key(&mut rest)?);
        let mut index = Index::default();
        for _ in 0..count.get() {
            let (page, tail) = U32::read_from_prefix(rest).ok()?;
            let (pages, tail) = U32::read_from_prefix(tail).ok()?;
            rest = tail;
            let last = key(&mut rest)?;
            let bytes = |pages: U32| u64::from(pages.get()) * PAGE_SIZE as u64;
            index.push(bytes(page), usize::try_from(bytes(pages)).ok()?, &last);
        }
        index.keys.shrink_to_fit();
        Some((smallest, largest, index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_that_may_hold_a_key_is_found() {
        let mut index = Index::default();
        let keys = ["a", "common-prefix-1", "common-prefix-3", "common-prefix-5", "z"];
        for (at, key) in keys.iter().enumerate() {
            index.push((at * PAGE_SIZE) as u64, PAGE_SIZE, key.as_bytes());
        }
        let part = index.encode(FileId(1), 0, b"A", b"z");
        let (smallest, largest, index) = Index::decode(&part).unwrap();
        assert_eq!((&smallest[..], &largest[..]), (&b"A"[..], &b"z"[..]));
        for (key, block) in
            [("", 0), ("a", 0), ("b", 1), ("common-prefix-2", 2), ("common-prefix-5", 3), ("y", 4)]
        {
            assert_eq!(index.find(key.as_bytes()), Some(block), "{key}");
        }
        assert_eq!(index.find(b"zz"), None);
        assert_eq!(index.handle(3), BlockHandle { offset: 3 * PAGE_SIZE as u64, len: PAGE_SIZE });
    }
}
