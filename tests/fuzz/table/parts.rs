//! One block, one partition.

use atlaskv::base::{Codec, PAGE_SIZE, page_align};
use atlaskv::engine::sstable::format::{
    BLOCK_HEADER_BYTES, COMPRESSED_BYTES_MAX, PARTITION_HEADER_BYTES, PARTITION_KIND, seal_part,
};
use atlaskv::engine::sstable::{Block, IndexBudget, Partition, Table, inspect_table};
use atlaskv::env::sim::SimEnv;
use fastrand::Rng;

use super::{FILE, NAME, any_table, hash};
use crate::allocator::measured;
use crate::driver::{Decoder, Outcome, letters};
use crate::mutate::{Number, Shape, number_at, numbers_from, set_number};

const PLACE: u64 = 2 * PAGE_SIZE as u64;
/// Of a partition, behind all the blocks that it may name.
const PARTITION_PLACE: u64 = 1 << 40;
const LISTED_MAX: usize = 12;
/// Codec, zero, records, lengths of the payload.
const BLOCK: &[i8] = &[-4, 1, 1, 2, 4, 4];
/// Kind, zeros, blocks, bytes of separators, lines of the filter.
const PARTITION: &[i8] = &[-4, 1, 1, 2, 4, 4, 4, 4];
/// Key length, kind, flags, value length, LSN.
const RECORD: &[i8] = &[2, 1, 1, 4, 8, 8];

/// What [`Block`] is made from.
pub struct Blocks;

fn codec_of(block: &[u8]) -> Option<Codec> {
    block.get(4).copied().and_then(Codec::from_u8)
}

/// The same payload under another codec, however little that saves: so a change to what is compressed is met as
/// well as one to how it is.
fn recode(input: &mut Vec<u8>, rng: &mut Rng) {
    let raw_len = number_at(input, 8, 4) as usize;
    let Some(raw) = input.get(BLOCK_HEADER_BYTES..BLOCK_HEADER_BYTES + raw_len.min(1 << 20)) else { return };
    let (codec, stored) = match rng.bool() {
        true => (Codec::Lz4, lz4_flex::block::compress(raw)),
        false => (Codec::Zstd, zstd::bulk::compress(raw, 1).unwrap()),
    };
    input.truncate(BLOCK_HEADER_BYTES);
    input[4] = codec as u8;
    set_number(input, 12, 4, stored.len() as u64);
    input.extend_from_slice(&stored);
    input.resize(page_align(input.len()), 0);
}

impl Decoder for Blocks {
    const NAME: &'static str = "table-block";
    const EXECUTIONS: u64 = 40_000;
    const SHAPE: Shape = Shape { bytes_max: 6 * PAGE_SIZE, unit: 1 };

    fn generate(&mut self, rng: &mut Rng, out: &mut Vec<u8>) -> bool {
        let table = any_table(rng, 64 * PAGE_SIZE);
        let blocks = inspect_table(&NAME.path(), &table).unwrap().blocks;
        let fitting: Vec<_> = blocks.iter().filter(|(_, len, _)| *len <= Self::SHAPE.bytes_max).collect();
        let (offset, len, _) = fitting[rng.usize(..fitting.len())];
        out.extend_from_slice(&table[*offset as usize..][..*len]);
        seal_part(FILE, PLACE, out);
        true
    }

    fn numbers(&self, input: &[u8], out: &mut Vec<Number>) {
        numbers_from(0, BLOCK, out);
        if codec_of(input) == Some(Codec::None) {
            let count = number_at(input, 6, 2) as usize;
            let starts = BLOCK_HEADER_BYTES + count;
            for record in 0..count.min(LISTED_MAX) {
                numbers_from(starts + 2 * record, &[2], out);
                let start = number_at(input, starts + 2 * record, 2) as usize;
                numbers_from(BLOCK_HEADER_BYTES + 3 * count + start, RECORD, out);
            }
        }
        out.retain(|number| number.at + number.width <= input.len());
    }

    fn repair(&mut self, input: &mut Vec<u8>, rng: &mut Rng) {
        if input.len() < BLOCK_HEADER_BYTES {
            return;
        }
        input.resize(page_align(input.len()), 0);
        if rng.u8(..16) == 0 && codec_of(input) == Some(Codec::None) {
            recode(input, rng);
        } else if rng.u8(..8) == 0 {
            // What fills the pages.
            let most = (input.len() - BLOCK_HEADER_BYTES) as u64;
            let stored = number_at(input, 12, 4).clamp(most.saturating_sub(4095), most);
            set_number(input, 12, 4, stored);
            if codec_of(input) == Some(Codec::None) {
                set_number(input, 8, 4, stored);
            }
        }
        seal_part(FILE, PLACE, input);
    }

    fn execute(&mut self, input: &[u8]) -> Outcome {
        let (block, largest) = measured(|| Block::parse(FILE, PLACE, input));
        // Beside what it holds only sentences; what a codec needs it has since the first block of its kind.
        let most = input.len().max(COMPRESSED_BYTES_MAX) + 1024;
        assert!(largest <= most, "{} bytes made {largest} be allocated", input.len());
        let codec = input.get(4).copied().unwrap_or(9).min(4);
        match block {
            Ok(block) => {
                let items = walk(&block);
                assert!(items <= block.raw_bytes() / 3, "{items} records of {} bytes", block.raw_bytes());
                let kind = 1 << 8 | u64::from(codec);
                Outcome { is_accepted: true, kind, at: block.raw_bytes(), items }
            }
            Err((expected, found)) => {
                let kind = letters(&expected) ^ letters(&found) << 1 ^ u64::from(codec);
                Outcome { kind, ..Outcome::default() }
            }
        }
    }
}

/// Looks at every record in every way. Returns their number.
fn walk(block: &Block) -> usize {
    let len = block.len();
    // All of the first and the last; of many in between some, since there may be tens of thousands a page.
    let step = (len / 64).max(1);
    let mut is_sorted = true;
    for record in (0..len).step_by(step).chain([len - 1]) {
        let (key, entry) = block.entry(record);
        let span = block.span(record);
        assert_eq!(block.entry_at(&span), (key, entry), "record {record} by its place");
        assert_eq!((block.key(record), block.key_at(&span), span.lsn()), (key, key, entry.lsn));
        if let Some((found, _)) = block.get(hash(key), key).map(|found| (found, ())) {
            assert!(is_sorted || found.value.len() <= block.raw_bytes());
        }
        is_sorted &= record == 0 || block.key(record - 1) <= key;
    }
    for key in [&b""[..], b"b", &[0xff; 9]] {
        assert!(block.lower_bound(key) <= len, "a place behind all");
        let _ = block.get(hash(key), key);
    }
    len
}

/// What [`Partition`] is made from.
pub struct Partitions;

impl Decoder for Partitions {
    const NAME: &'static str = "table-partition";
    const EXECUTIONS: u64 = 40_000;
    const SHAPE: Shape = Shape { bytes_max: 4 * PAGE_SIZE, unit: 1 };

    fn generate(&mut self, rng: &mut Rng, out: &mut Vec<u8>) -> bool {
        let bytes = any_table(rng, 64 * PAGE_SIZE);
        let (world, env) = SimEnv::fresh(1);
        atlaskv::env::Env::disk(&env).poke(&NAME.path(), bytes.clone());
        let table = world.run(Table::open(&env, NAME, &IndexBudget::new(0))).unwrap();
        let handle = table.partition_handle(rng.usize(..table.partitions()));
        out.extend_from_slice(&bytes[handle.offset as usize..][..handle.len.min(Self::SHAPE.bytes_max)]);
        seal_part(FILE, PARTITION_PLACE, out);
        true
    }

    fn numbers(&self, input: &[u8], out: &mut Vec<Number>) {
        numbers_from(0, PARTITION, out);
        let count = number_at(input, 8, 4) as usize;
        for block in 0..count.min(LISTED_MAX) {
            numbers_from(PARTITION_HEADER_BYTES + 4 * block, &[4], out);
            numbers_from(PARTITION_HEADER_BYTES + 4 * count + 2 * block, &[2], out);
            numbers_from(PARTITION_HEADER_BYTES + 6 * count + 2 * block, &[2], out);
        }
        out.retain(|number| number.at + number.width <= input.len());
    }

    fn repair(&mut self, input: &mut Vec<u8>, rng: &mut Rng) {
        if input.len() < PARTITION_HEADER_BYTES {
            return;
        }
        input.resize(page_align(input.len()), 0);
        if rng.u8(..4) == 0 {
            input[4] = PARTITION_KIND;
            // As many lines as the pages have room for.
            let index = PARTITION_HEADER_BYTES as u64 + 8 * number_at(input, 8, 4) + number_at(input, 12, 4);
            let lines = (input.len() as u64 / 64).saturating_sub(index.div_ceil(64));
            set_number(input, 16, 4, lines);
        }
        seal_part(FILE, PARTITION_PLACE, input);
    }

    fn execute(&mut self, input: &[u8]) -> Outcome {
        let (partition, largest) = measured(|| Partition::parse(FILE, PARTITION_PLACE, input));
        assert!(largest <= input.len() + 1024, "{} bytes made {largest} be allocated", input.len());
        let partition = match partition {
            Ok(partition) => partition,
            Err((expected, found)) => {
                let kind = letters(&expected) ^ letters(&found) << 1;
                return Outcome { kind, ..Outcome::default() };
            }
        };
        let len = partition.len();
        assert!(len <= input.len() / 8, "{len} blocks of {} bytes", input.len());
        let mut last_end = 0;
        for number in 0..len {
            let handle = partition.handle(number);
            assert!(handle.offset >= last_end && handle.len >= PAGE_SIZE, "block {number} in another");
            last_end = handle.offset + handle.len as u64;
            let separator = partition.separator(number);
            assert!(partition.find(&separator).is_some_and(|first| first <= number), "block {number}");
            let _ = partition.may_contain(hash(&separator));
        }
        assert!(last_end <= PARTITION_PLACE, "a block behind its partition");
        Outcome { is_accepted: true, kind: 1, at: partition.memory_bytes(), items: len }
    }
}
