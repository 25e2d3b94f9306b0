//! A partition: index and filter of consecutive blocks, together about a page, so that one read answers
//! whether a key may be in the table and where. In memory it is what the file holds, searched in place.

use std::ops::Range;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

use super::BlockHandle;
use super::filter::{self, Line};
use super::format::{
    BLOCK_BYTES, BLOCK_BYTES_LIMIT, LINE_BYTES, PARTITION_HEADER_BYTES, PARTITION_KIND, PartError,
    PartitionHeader, check_part, malformed, seal_part,
};
use crate::base::{Bug, FileId, PAGE_SIZE, page_align, planted};

/// Bytes of a block's places: page, pages, end of its separator.
const PLACE_BYTES: usize = 8;

/// A verified partition in memory.
pub struct Partition {
    /// Without the file's padding. Lines, since the filter in them is to be aligned.
    lines: Box<[Line]>,
    count: usize,
    filter: Range<usize>,
}

/// Length of the partition that `bytes` seem to start with, if it is at most `rest`. A guess until it is parsed.
pub(super) fn guess_len(bytes: &[u8], rest: usize) -> Option<usize> {
    let (header, _) = PartitionHeader::ref_from_prefix(bytes).ok()?;
    let (_, filter) = layout(header).filter(|_| header.kind == PARTITION_KIND)?;
    let len = page_align(filter.end * LINE_BYTES);
    (len <= rest).then_some(len)
}

/// Where the separators end, in bytes, and where the filter stands, in lines.
fn layout(header: &PartitionHeader) -> Option<(usize, Range<usize>)> {
    let places = (header.count.get() as usize).checked_mul(PLACE_BYTES)?;
    let end = places.checked_add(PARTITION_HEADER_BYTES + header.separators_len.get() as usize)?;
    let start = end.div_ceil(LINE_BYTES);
    Some((end, start..start + header.filter_lines.get() as usize))
}

impl Partition {
    /// Verifies and takes the bytes of the partition that belongs at `offset` of `file`. Everything is
    /// checked here, so that later accesses can't fail.
    pub fn parse(file: FileId, offset: u64, stored: &[u8]) -> Result<Partition, PartError> {
        check_part(file, offset, stored)?;
        let header = PartitionHeader::ref_from_prefix(stored).map_err(|_| malformed("a partition"))?.0;
        let (end, filter) = layout(header).ok_or_else(|| malformed("a partition's lengths"))?;
        let count = header.count.get() as usize;
        let is_whole = page_align(filter.end * LINE_BYTES) == stored.len();
        if header.kind != PARTITION_KIND || count == 0 || filter.is_empty() || !is_whole {
            return Err(malformed("a partition's header"));
        }
        let mut lines = vec![Line([0; LINE_BYTES]); filter.end].into_boxed_slice();
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut lines);
        bytes.copy_from_slice(&stored[..filter.end * LINE_BYTES]);
        let partition = Partition { lines, count, filter };
        partition.check(offset, end).ok_or_else(|| malformed("blocks and separators in order"))?;
        Ok(partition)
    }

    /// Whether blocks and separators are in order, blocks before `offset`, and separators up to byte `end`.
    fn check(&self, offset: u64, end: usize) -> Option<()> {
        let separators = end - self.separators_start();
        let (mut last_end, mut block_end) = (0, 0);
        for block in 0..self.count {
            let separator_end = self.separator_end(block);
            let handle = self.handle(block);
            let is_ordered = separator_end >= last_end
                && separator_end <= separators
                && handle.offset >= block_end
                && (PAGE_SIZE..=BLOCK_BYTES_LIMIT).contains(&handle.len);
            if !is_ordered || (block > 0 && self.separator(block) < self.separator(block - 1)) {
                return None;
            }
            (last_end, block_end) = (separator_end, handle.offset + handle.len as u64);
        }
        (last_end == separators && block_end <= offset).then_some(())
    }

    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.lines)
    }

    /// Two bytes of an array behind the pages.
    fn half(&self, at: usize) -> usize {
        let at = PARTITION_HEADER_BYTES + self.count * 4 + at * 2;
        usize::from(u16::from_le_bytes([self.bytes()[at], self.bytes()[at + 1]]))
    }

    fn separators_start(&self) -> usize {
        PARTITION_HEADER_BYTES + self.count * PLACE_BYTES
    }

    fn separator_end(&self, block: usize) -> usize {
        self.half(self.count + block)
    }

    /// What separates a block from the next one.
    pub fn separator(&self, block: usize) -> &[u8] {
        let start = if block == 0 { 0 } else { self.separator_end(block - 1) };
        let at = self.separators_start();
        &self.bytes()[at + start..at + self.separator_end(block)]
    }

    /// Bytes it takes in memory.
    pub fn memory_bytes(&self) -> usize {
        self.bytes().len() + size_of::<Partition>()
    }

    /// Number of blocks.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Never: a partition is of at least one block.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Where a block stands.
    ///
    /// # Panics
    /// Beyond the last.
    pub fn handle(&self, block: usize) -> BlockHandle {
        assert!(block < self.count, "block {block} of {}", self.count);
        let at = PARTITION_HEADER_BYTES + block * 4;
        let mut page = [0; 4];
        page.copy_from_slice(&self.bytes()[at..at + 4]);
        let offset = u64::from(u32::from_le_bytes(page)) * PAGE_SIZE as u64;
        BlockHandle { offset, len: self.half(block) * PAGE_SIZE }
    }

    /// The first block that may hold `key`: where its newest version is, if there is one here.
    pub fn find(&self, key: &[u8]) -> Option<usize> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = (low + high) / 2;
            if self.separator(middle) < key { low = middle + 1 } else { high = middle }
        }
        (low < self.count).then_some(low)
    }

    /// Whether a key with this hash may be in these blocks; `false` is certain.
    #[inline]
    pub fn may_contain(&self, hash: u64) -> bool {
        filter::may_contain(&self.lines[self.filter.clone()], hash)
            && !(planted(Bug::FilterForgets) && hash >> 56 == 0)
    }
}

/// Collects blocks of a partition.
pub struct PartitionBuilder {
    bits_per_key: u8,
    pages: Vec<U32>,
    lens: Vec<U16>,
    ends: Vec<U16>,
    separators: Vec<u8>,
    hashes: Vec<u64>,
}

impl PartitionBuilder {
    /// With so many bits of filter for each key.
    pub fn new(bits_per_key: u8) -> PartitionBuilder {
        let (pages, lens, ends) = (Vec::new(), Vec::new(), Vec::new());
        PartitionBuilder { bits_per_key, pages, lens, ends, separators: Vec::new(), hashes: Vec::new() }
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Whether a block with such a separator and so many keys belongs in here. The first always does.
    pub fn fits(&self, separator: &[u8], keys: usize) -> bool {
        let (blocks, hashes) = (self.pages.len() + 1, self.hashes.len() + keys);
        let index = PARTITION_HEADER_BYTES + blocks * PLACE_BYTES + self.separators.len() + separator.len();
        let filter = filter::lines_for(hashes, self.bits_per_key) * LINE_BYTES;
        self.is_empty() || index.next_multiple_of(LINE_BYTES) + filter <= BLOCK_BYTES
    }

    /// Adds a block behind all others. `hashes` are those of its records, one after the other.
    pub fn push(&mut self, handle: BlockHandle, separator: &[u8], hashes: &[u64]) {
        let page = u32::try_from(handle.offset / PAGE_SIZE as u64).expect("tables are below 16 TiB");
        self.pages.push(page.into());
        self.lens.push(u16::try_from(handle.len / PAGE_SIZE).expect("blocks have a limit").into());
        self.separators.extend_from_slice(separator);
        let end = u16::try_from(self.separators.len()).expect("one separator, or a page of them");
        self.ends.push(end.into());
        for hash in hashes {
            // Versions of one key are neighbours.
            if self.hashes.last() != Some(hash) {
                self.hashes.push(*hash);
            }
        }
    }

    /// The separator of the last block.
    pub fn last_separator(&self) -> &[u8] {
        let start = self.ends.iter().rev().nth(1).map_or(0, |end| usize::from(end.get()));
        &self.separators[start..]
    }

    /// Appends the partition, padded to pages, to `out`, and empties the builder. It is yet to be sealed for
    /// its place. Returns its length.
    ///
    /// # Panics
    /// Without blocks.
    pub fn finish(&mut self, out: &mut Vec<u8>) -> usize {
        assert!(!self.is_empty(), "a partition is of a block");
        let filter = filter::build(&self.hashes, self.bits_per_key);
        let header = PartitionHeader {
            crc: 0.into(),
            kind: PARTITION_KIND,
            zero: [0; 3],
            count: u32::try_from(self.pages.len()).expect("a page of blocks").into(),
            separators_len: u32::try_from(self.separators.len()).expect("below 64 KiB").into(),
            filter_lines: u32::try_from(filter.len()).expect("of a page of keys, or one block's").into(),
            zero2: [0; 12],
        };
        let start = out.len();
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(self.pages.as_bytes());
        out.extend_from_slice(self.lens.as_bytes());
        out.extend_from_slice(self.ends.as_bytes());
        out.extend_from_slice(&self.separators);
        out.resize(start + (out.len() - start).next_multiple_of(LINE_BYTES), 0);
        out.extend_from_slice(bytemuck::cast_slice(&filter));
        out.resize(start + page_align(out.len() - start), 0);
        self.pages.clear();
        self.lens.clear();
        self.ends.clear();
        self.separators.clear();
        self.hashes.clear();
        out.len() - start
    }
}

/// Appends a short string that is not below `last` and below `next`, for `last` < `next`; for equal ones
/// (versions of one key on both sides) the key itself.
pub fn push_separator(last: &[u8], next: &[u8], out: &mut Vec<u8>) {
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

/// Seals partitions that stand one after the other from `offset` on.
pub fn seal_run(file: FileId, offset: u64, lens: &[usize], run: &mut [u8]) {
    let mut at = 0;
    for len in lens {
        seal_part(file, offset + at as u64, &mut run[at..at + len]);
        at += len;
    }
    assert_eq!(at, run.len(), "a run is its partitions");
}

#[cfg(test)]
mod tests;
