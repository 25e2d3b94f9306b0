//! A partition: index and filter of consecutive blocks, together about a page, so that one read answers
//! whether a key may be in the table and where. In memory it takes less: see [`Partition`].

use std::cmp::Ordering;
use std::iter::repeat_n;
use std::ops::Range;
use std::rc::Rc;

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

/// Of those, bytes of page and pages.
const HANDLE_BYTES: usize = 6;

/// A verified partition in memory: its filter as it stands in the file, and behind that its index, without what
/// follows from the rest. Most separators of a partition begin with the same bytes, and blocks of small records are
/// of one length, back to back.
pub struct Partition {
    /// With those of all that were read to be kept together: each in memory of its own, every one would be rounded
    /// up by the allocator, by a sixteenth on average.
    lines: Rc<[Line]>,
    start: u32,
    filter_lines: u32,
    count: u32,
    /// Bytes that all separators begin with.
    common_len: u16,
    places: Places,
}

/// Where blocks stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Places {
    /// Back to back from a page on, each of so many.
    Even { page: u32, pages: u16 },
    /// As in the file, in front of the rest of the index: the page of each, then the pages of each.
    Listed,
}

/// A verified partition as it stands in the file.
struct Stored<'a> {
    bytes: &'a [u8],
    count: usize,
    filter: Range<usize>,
    places: Places,
    /// What all separators begin with.
    common: &'a [u8],
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

/// Two bytes of an array.
#[inline]
fn half(array: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([array[2 * at], array[2 * at + 1]]))
}

/// Where a block stands, of those that `handles` lists.
fn listed(handles: &[u8], count: usize, block: usize) -> BlockHandle {
    let mut page = [0; 4];
    page.copy_from_slice(&handles[4 * block..][..4]);
    let offset = u64::from(u32::from_le_bytes(page)) * PAGE_SIZE as u64;
    BlockHandle { offset, len: half(&handles[4 * count..], block) * PAGE_SIZE }
}

impl<'a> Stored<'a> {
    /// Verifies the bytes of the partition that belongs at `offset` of `file`. Everything is checked here, so that
    /// later accesses can't fail.
    fn verify(file: FileId, offset: u64, stored: &'a [u8]) -> Result<Stored<'a>, PartError> {
        check_part(file, offset, stored)?;
        let header = PartitionHeader::ref_from_prefix(stored).map_err(|_| malformed("a partition"))?.0;
        let (end, filter) = layout(header).ok_or_else(|| malformed("a partition's lengths"))?;
        let count = header.count.get() as usize;
        let is_whole = page_align(filter.end * LINE_BYTES) == stored.len();
        if header.kind != PARTITION_KIND || count == 0 || filter.is_empty() || !is_whole {
            return Err(malformed("a partition's header"));
        }
        let mut partition = Stored { bytes: stored, count, filter, places: Places::Listed, common: &[] };
        partition.check(offset, end).ok_or_else(|| malformed("blocks and separators in order"))?;
        partition.places = partition.places();
        partition.common = partition.common();
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

    fn places(&self) -> Places {
        let BlockHandle { offset, len } = self.handle(0);
        let even = |block: usize| BlockHandle { offset: offset + (block * len) as u64, len };
        let place = (u32::try_from(offset / PAGE_SIZE as u64), u16::try_from(len / PAGE_SIZE));
        match place {
            (Ok(page), Ok(pages)) if (1..self.count).all(|block| self.handle(block) == even(block)) => {
                Places::Even { page, pages }
            }
            _ => Places::Listed,
        }
    }

    /// What the first and the last begin with: they are in order.
    fn common(&self) -> &'a [u8] {
        let (first, last) = (self.separator(0), self.separator(self.count - 1));
        &first[..first.iter().zip(last).take_while(|(a, b)| a == b).count()]
    }

    fn handles(&self) -> &'a [u8] {
        &self.bytes[PARTITION_HEADER_BYTES..][..self.count * HANDLE_BYTES]
    }

    fn handle(&self, block: usize) -> BlockHandle {
        listed(self.handles(), self.count, block)
    }

    fn separators_start(&self) -> usize {
        PARTITION_HEADER_BYTES + self.count * PLACE_BYTES
    }

    fn separator_end(&self, block: usize) -> usize {
        half(&self.bytes[PARTITION_HEADER_BYTES + self.count * HANDLE_BYTES..], block)
    }

    fn separator(&self, block: usize) -> &'a [u8] {
        let start = if block == 0 { 0 } else { self.separator_end(block - 1) };
        &self.bytes[self.separators_start()..][start..self.separator_end(block)]
    }

    /// Lines that it takes in memory.
    fn lines(&self) -> usize {
        let handles = if self.places == Places::Listed { self.count * HANDLE_BYTES } else { 0 };
        let tails = self.separator_end(self.count - 1) - self.count * self.common.len();
        let index = handles + 2 * self.count + self.common.len() + tails;
        self.filter.len() + index.div_ceil(LINE_BYTES)
    }

    /// Writes it to the lines that are for it.
    fn write(&self, lines: &mut [Line]) {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(lines);
        let mut at = 0;
        let mut push = |part: &[u8]| {
            bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        };
        push(&self.bytes[self.filter.start * LINE_BYTES..self.filter.end * LINE_BYTES]);
        if self.places == Places::Listed {
            push(self.handles());
        }
        for block in 0..self.count {
            let end = self.separator_end(block) - (block + 1) * self.common.len();
            push(&u16::try_from(end).expect("not above the one in the file").to_le_bytes());
        }
        push(self.common);
        (0..self.count).for_each(|block| push(&self.separator(block)[self.common.len()..]));
    }
}

impl Partition {
    /// Verifies and takes the bytes of the partition that belongs at `offset` of `file`.
    pub fn parse(file: FileId, offset: u64, stored: &[u8]) -> Result<Partition, PartError> {
        let mut partitions = Partition::take(&[Stored::verify(file, offset, stored)?]);
        Ok(partitions.pop().expect("one of one"))
    }

    /// The same of several that are kept together, each with where it belongs. Fails with the place of one that is
    /// not whole.
    pub fn parse_run(file: FileId, run: &[(u64, &[u8])]) -> Result<Vec<Partition>, (u64, PartError)> {
        let verify = |&(offset, bytes)| Stored::verify(file, offset, bytes).map_err(|error| (offset, error));
        let stored: Vec<_> = run.iter().map(verify).collect::<Result<_, _>>()?;
        Ok(Partition::take(&stored))
    }

    fn take(run: &[Stored<'_>]) -> Vec<Partition> {
        let total = run.iter().map(Stored::lines).sum();
        let mut lines: Rc<[Line]> = repeat_n(Line([0; LINE_BYTES]), total).collect();
        let all = Rc::get_mut(&mut lines).expect("nobody else has it yet");
        let mut start = 0;
        for stored in run {
            let end = start + stored.lines();
            stored.write(&mut all[start..end]);
            start = end;
        }
        start = 0;
        let to_u32 = |number: usize| u32::try_from(number).expect("of parts that were read at once");
        let partition = |stored: &Stored<'_>| {
            let partition = Partition {
                lines: lines.clone(),
                start: to_u32(start),
                filter_lines: to_u32(stored.filter.len()),
                count: to_u32(stored.count),
                common_len: u16::try_from(stored.common.len()).expect("a separator ends below 64 KiB"),
                places: stored.places,
            };
            start += stored.lines();
            partition
        };
        run.iter().map(partition).collect()
    }

    /// Its index, and perhaps what stands behind it.
    #[inline]
    fn index(&self) -> &[u8] {
        bytemuck::cast_slice(&self.lines[(self.start + self.filter_lines) as usize..])
    }

    /// Where separators end, what they begin with, and how they go on.
    #[inline]
    fn separators(&self) -> Separators<'_> {
        let handles = if self.places == Places::Listed { self.len() * HANDLE_BYTES } else { 0 };
        let (ends, rest) = self.index()[handles..].split_at(2 * self.len());
        let (common, tails) = rest.split_at(usize::from(self.common_len));
        Separators { ends, common, tails }
    }

    /// What separates a block from the next one, beside a key.
    pub fn cmp_separator(&self, block: usize, key: &[u8]) -> Ordering {
        let Separators { common, .. } = self.separators();
        match key.strip_prefix(common) {
            Some(tail) => self.separators().tail(block).cmp(tail),
            None => common.cmp(key), // the first byte that differs is in it, or `key` ends before
        }
    }

    /// What separates a block from the next one.
    pub fn separator(&self, block: usize) -> Vec<u8> {
        let separators = self.separators();
        [separators.common, separators.tail(block)].concat()
    }

    /// What each takes beside its lines: its counts, itself, and a pointer to it.
    pub const OVERHEAD: usize = 2 * 8 + size_of::<Partition>() + 8;

    /// Bytes it takes in memory, if it is there alone.
    pub fn memory_bytes(&self) -> usize {
        self.run_bytes() + Partition::OVERHEAD
    }

    /// Bytes of the lines of all that it was read with, and of the line in front of them where they are counted.
    pub fn run_bytes(&self) -> usize {
        LINE_BYTES + size_of_val(&*self.lines)
    }

    /// Number of blocks.
    #[inline]
    pub fn len(&self) -> usize {
        self.count as usize
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
        assert!(block < self.len(), "block {block} of {}", self.count);
        match self.places {
            Places::Even { page, pages } => {
                let offset = (u64::from(page) + block as u64 * u64::from(pages)) * PAGE_SIZE as u64;
                BlockHandle { offset, len: usize::from(pages) * PAGE_SIZE }
            }
            Places::Listed => listed(self.index(), self.len(), block),
        }
    }

    /// The first block that may hold `key`: where its newest version is, if there is one here.
    pub fn find(&self, key: &[u8]) -> Option<usize> {
        let separators = self.separators();
        let Some(wanted) = key.strip_prefix(separators.common) else {
            return (key < separators.common).then_some(0);
        };
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = (low + high) / 2;
            if separators.tail(middle) < wanted { low = middle + 1 } else { high = middle }
        }
        (low < self.len()).then_some(low)
    }

    /// Whether a key with this hash may be in these blocks; `false` is certain.
    #[inline]
    pub fn may_contain(&self, hash: u64) -> bool {
        let start = self.start as usize;
        filter::may_contain(&self.lines[start..start + self.filter_lines as usize], hash)
            && !(planted(Bug::FilterForgets) && hash >> 56 == 0)
    }
}

/// The separators of a partition.
struct Separators<'a> {
    ends: &'a [u8],
    common: &'a [u8],
    tails: &'a [u8],
}

impl<'a> Separators<'a> {
    /// What one has behind what is common.
    #[inline]
    fn tail(&self, block: usize) -> &'a [u8] {
        let start = if block == 0 { 0 } else { half(self.ends, block - 1) };
        &self.tails[start..half(self.ends, block)]
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
