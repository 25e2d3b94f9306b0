//! A whole file: what a tool shows of it, what a walk finds in it, what can be salvaged.

use std::rc::Rc;

use atlaskv::base::{FileId, Lsn, PAGE_SIZE, crc32c};
use atlaskv::engine::sstable::format::{COMPRESSED_BYTES_MAX, MAGIC, seal_part};
use atlaskv::engine::sstable::{
    IndexBudget, SalvageIter, Table, TableError, TableIter, TableOptions, inspect_table,
};
use atlaskv::env::Env;
use atlaskv::env::sim::{SimEnv, SimWorld};
use fastrand::Rng;

use super::{FILE, NAME, Record, any_table, hash, kind_of, written};
use crate::allocator::measured;
use crate::driver::{Decoder, Outcome, letters};
use crate::mutate::{Number, Shape, number_at, numbers_from, set_number};

/// Magic apart, all of the footer.
const FOOTER: &[i8] =
    &[-8, 4, 4, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 2, 2, 1, 1, 1, 1];
/// Kind, zeros, partitions, zero, bytes used, zero; lengths of the smallest key.
const TOP: &[i8] = &[-4, 1, 1, 2, 4, 4, 8, 8, 2];
/// Start of a block or a partition.
const PART: &[i8] = &[-4, 1, 1, 2, 4, 4, 4, 4];
/// A world counts what it does, and takes very much for a loop without end.
const RUNS_MAX: u32 = 10_000;
/// Payloads are decompressed, so a page may hold this many records, of three bytes each in the arrays before them.
const PAGE_RECORDS_MAX: usize = COMPRESSED_BYTES_MAX / 3;

/// What is called a table.
pub struct Files {
    world: SimWorld,
    env: SimEnv,
    runs: u32,
}

impl Files {
    pub fn new() -> Files {
        let (world, env) = SimEnv::fresh(1);
        Files { world, env, runs: 0 }
    }
}

fn footer_of(input: &[u8]) -> Option<usize> {
    (input.len() / PAGE_SIZE * PAGE_SIZE).checked_sub(PAGE_SIZE).filter(|at| input[*at..].starts_with(&MAGIC))
}

/// Where partitions stand by the top of the index, in pages.
fn partitions(input: &[u8], top: usize) -> Vec<(usize, usize)> {
    let mut at = top + 32;
    for _ in 0..2 {
        at += 2 + number_at(input, at, 2) as usize;
    }
    let mut found = Vec::new();
    for _ in 0..number_at(input, top + 8, 4).min(16) {
        found.push((number_at(input, at, 4) as usize, number_at(input, at + 4, 2) as usize));
        at += 8 + number_at(input, at + 6, 2) as usize;
    }
    found
}

/// Where blocks stand by a partition, in pages.
fn blocks(input: &[u8], partition: usize) -> Vec<(usize, usize)> {
    let count = number_at(input, partition + 8, 4) as usize;
    let place = |block| {
        let pages = partition + 32 + 4 * count + 2 * block;
        (number_at(input, partition + 32 + 4 * block, 4) as usize, number_at(input, pages, 2) as usize)
    };
    (0..count.min(32)).map(place).collect()
}

fn seal(file: FileId, input: &mut [u8], start: usize, len: usize) {
    let part = start.checked_add(len).filter(|_| len >= PAGE_SIZE).and_then(|end| input.get_mut(start..end));
    if let Some(part) = part {
        seal_part(file, start as u64, part);
    }
}

/// Numbers of footer, top, partitions, and what else looks like a part.
pub fn numbers_of_file(input: &[u8], out: &mut Vec<Number>) {
    let Some(footer) = footer_of(input) else { return };
    numbers_from(footer, FOOTER, out);
    let top = number_at(input, footer + 64, 8) as usize;
    if top < input.len() {
        numbers_from(top, TOP, out);
        let mut at = top + 32;
        for _ in 0..2 {
            numbers_from(at, &[2], out);
            at += 2 + number_at(input, at, 2) as usize;
        }
        for _ in 0..4 {
            numbers_from(at, &[4, 2, 2], out);
            at += 8 + number_at(input, at + 6, 2) as usize;
        }
    }
    for page in (0..footer).step_by(PAGE_SIZE) {
        numbers_from(page, PART, out);
        let count = number_at(input, page + 8, 4) as usize;
        if input[page + 4] == b'P' && count < 500 {
            numbers_from(page + 32, &[4, 4], out);
            numbers_from(page + 32 + 4 * count, &[2, 2], out);
            numbers_from(page + 32 + 6 * count, &[2, 2], out);
        }
    }
    out.retain(|number| number.at + number.width <= input.len());
}

/// Makes checksums fit from the footer down, or only a part of that: so damage at one level is met below sound ones.
pub fn repair_file(file: FileId, input: &mut Vec<u8>, rng: &mut Rng) {
    input.truncate(input.len() / PAGE_SIZE * PAGE_SIZE);
    let Some(footer) = footer_of(input) else { return };
    if rng.u8(..4) == 0 {
        // Parts that make up the file, whatever its length is now.
        let top_bytes = (number_at(input, footer + 72, 8) as usize).clamp(PAGE_SIZE, footer.max(PAGE_SIZE));
        let top = footer.saturating_sub(top_bytes);
        let partitions = number_at(input, footer + 88, 8).min(top as u64);
        set_number(input, footer + 64, 8, top as u64);
        set_number(input, footer + 120, 8, top as u64 - partitions);
    }
    let top = number_at(input, footer + 64, 8) as usize;
    let top_bytes = number_at(input, footer + 72, 8) as usize;
    let depth = rng.u8(..4);
    if depth > 0 && top < input.len() {
        for (page, pages) in partitions(input, top) {
            let partition = page.saturating_mul(PAGE_SIZE);
            if depth > 1 && partition < input.len() {
                for (page, pages) in blocks(input, partition) {
                    seal(file, input, page.saturating_mul(PAGE_SIZE), pages * PAGE_SIZE);
                }
            }
            seal(file, input, partition, pages * PAGE_SIZE);
        }
        if top_bytes <= input.len() {
            seal(file, input, top, top_bytes);
        }
    }
    let crc = crc32c(&input[footer..footer + PAGE_SIZE - 4]);
    set_number(input, footer + PAGE_SIZE - 4, 4, u64::from(crc));
}

impl Decoder for Files {
    const NAME: &'static str = "table-file";
    const EXECUTIONS: u64 = 4_000;
    const SHAPE: Shape = Shape { bytes_max: 12 * PAGE_SIZE, unit: PAGE_SIZE };

    fn generate(&mut self, rng: &mut Rng, out: &mut Vec<u8>) -> bool {
        out.append(&mut any_table(rng, Self::SHAPE.bytes_max));
        true
    }

    fn numbers(&self, input: &[u8], out: &mut Vec<Number>) {
        numbers_of_file(input, out);
    }

    fn repair(&mut self, input: &mut Vec<u8>, rng: &mut Rng) {
        repair_file(FILE, input, rng);
    }

    fn execute(&mut self, input: &[u8]) -> Outcome {
        self.runs += 1;
        if self.runs > RUNS_MAX {
            *self = Files::new();
        }
        let pages = input.len() / PAGE_SIZE;
        let (shown, largest) = measured(|| inspect_table(&NAME.path(), input));
        // Numbers of the records of a block that are out of order, in a list that grows.
        let most = 16 * PAGE_RECORDS_MAX + 16 * input.len();
        assert!(largest <= most, "{} bytes made {largest} be allocated", input.len());
        let (kind, is_sound) = match shown {
            Ok(report) => {
                assert!(report.blocks.len() <= 2 * pages * pages, "{} blocks", report.blocks.len());
                let found = report.damage.first().map_or(0, |damage| letters(damage));
                (found, report.damage.is_empty())
            }
            Err(error) => (letters(&error), false),
        };
        self.env.disk().poke(&NAME.path(), input.to_vec());
        let (world, env) = (&self.world, &self.env);
        let walked = world.run(walk(env, pages));
        let salvaged = world.run(salvage(env, pages));
        let outcome = match walked {
            Ok(records) => {
                if is_sound {
                    assert_eq!(salvaged, Ok(records.len()), "of a sound table all is salvaged");
                }
                let is_again = is_sound && self.runs.is_multiple_of(16) && is_writable(&records);
                if is_again {
                    again(&records);
                }
                Outcome { is_accepted: true, kind: 1, at: usize::from(is_sound), items: records.len() }
            }
            Err(error) => {
                assert!(!is_sound, "{error}, and nothing was found to be wrong");
                Outcome { kind: kind_of(&error), ..Outcome::default() }
            }
        };
        Outcome { kind: outcome.kind ^ kind << 3 ^ salvaged.unwrap_or(1) as u64 >> 2 << 9, ..outcome }
    }
}

/// Everything in a table, as a merge reads it; then some keys of it, as reads do.
async fn walk(env: &SimEnv, pages: usize) -> Result<Vec<Record>, TableError> {
    let table = Rc::new(Table::open(env, NAME, &IndexBudget::new(1 << 20)).await?);
    assert!(table.partitions() <= pages, "{} partitions of {pages} pages", table.partitions());
    let mut iter = TableIter::seek(&table, b"").await?;
    let (mut records, mut passed) = (Vec::new(), 0);
    while let Some((key, entry)) = iter.current() {
        // Partitions do not overlap, nor do the blocks of one.
        passed += 1;
        assert!(passed <= pages * pages * PAGE_RECORDS_MAX, "{passed} records of {pages} pages");
        if records.len() < 4000 {
            records.push(Record::of(key, &entry));
        }
        iter.advance().await?;
    }
    for record in records.iter().step_by((records.len() / 4).max(1)) {
        let Some(number) = table.find_partition(&record.key) else { continue };
        let partition = table.read_partition(number).await?;
        let _ = partition.may_contain(hash(&record.key));
        if let Some(block) = partition.find(&record.key) {
            let block = table.read_block(partition.handle(block)).await?;
            let _ = block.get(hash(&record.key), &record.key);
        }
        let iter = TableIter::seek(&table, &record.key).await?;
        let _ = (iter.current().is_some(), table.bytes_before(&record.key));
    }
    let meta = table.meta();
    assert!(meta.expiries.past_bytes(u64::MAX) <= meta.expiries.bytes, "more is past than there is");
    Ok(records)
}

/// How many entries can be salvaged, if it is a table of this version.
async fn salvage(env: &SimEnv, pages: usize) -> Result<usize, u64> {
    let mut iter = SalvageIter::<SimEnv>::open(env, NAME).await.map_err(|error| kind_of(&error))?;
    let mut last: Option<(Vec<u8>, Lsn)> = None;
    let mut count = 0;
    while let Some((key, entry)) = iter.current() {
        count += 1;
        if count < 1000 {
            let is_next = last.is_none_or(|(last, lsn)| &last[..] < key || last == key && lsn > entry.lsn);
            assert!(is_next, "entries are salvaged in order");
            last = Some((key.to_vec(), entry.lsn));
        } else {
            last = None;
        }
        iter.advance().await.map_err(|error| kind_of(&error))?;
    }
    // Each page is taken for one part only.
    assert!(count <= pages * PAGE_RECORDS_MAX, "{count} entries of {pages} pages");
    assert!(iter.lost().len() <= pages + 1, "{} places are lost", iter.lost().len());
    Ok(count)
}

/// Whether a table may hold them: in order, and as a writer is given them.
fn is_writable(records: &[Record]) -> bool {
    records.is_sorted_by(Record::is_before) && records.len() < 4000
}

/// Writes them to a table of every codec, and reads that.
fn again(records: &[Record]) {
    for codec in atlaskv::base::Codec::ALL {
        let (world, env) = SimEnv::fresh(2);
        let bytes = world.run(written(&env, records, TableOptions::last(codec)));
        let pages = bytes.len() / PAGE_SIZE;
        let read = world.run(walk(&env, pages)).expect("it was just written");
        assert!(read == records, "entries came back as others");
    }
}
