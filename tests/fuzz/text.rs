//! Short texts and byte strings: sizes and durations as people write them, names of files, the marker of a directory
//! that is not complete, ranges of keys of one slot.

use atlaskv::base::{Codec, PAGE_SIZE, TableName};
use atlaskv::config::{parse_millis, parse_size, rough_size, show_size};
use atlaskv::engine::checkpoint::Unfinished;
use atlaskv::engine::manifest::format::{DIR, FileKey};
use atlaskv::engine::wal::format::{parse_segment_name, segment_path};
use atlaskv::slot::{SLOT_COUNT, Slot};
use fastrand::Rng;

use crate::allocator::measured;
use crate::driver::{Decoder, Outcome};
use crate::keys;
use crate::mutate::{Number, Shape};

const TEXTS: [&str; 14] = [
    "64MiB",
    "1.5 GiB",
    "0.999999999tb",
    "18446744073709551615",
    "250ms",
    "1.5s",
    "99999999h",
    "00000005-0000000100000002.sst",
    "00000012-00000345.wal",
    "00000007-0000-0002.manifest",
    "zstd",
    "checkpoint\nThis directory is",
    "backup\n",
    "salvage\n\0\0",
];

pub struct Texts;

impl Decoder for Texts {
    const NAME: &'static str = "text";
    const EXECUTIONS: u64 = 40_000;
    const SHAPE: Shape = Shape { bytes_max: 96, unit: 1 };

    fn generate(&mut self, rng: &mut Rng, out: &mut Vec<u8>) -> bool {
        match rng.u8(..4) {
            0 => {
                // Two halves of equal length.
                out.extend_from_slice(b"{tag}");
                out.push(keys::key(rng)[0]);
                out.extend_from_slice(b"{tag}z");
            }
            1 => out.extend_from_slice(show_size(rng.u64(..) >> rng.u32(..64)).as_bytes()),
            _ => out.extend_from_slice(TEXTS[rng.usize(..TEXTS.len())].as_bytes()),
        }
        false
    }

    fn numbers(&self, _input: &[u8], _out: &mut Vec<Number>) {}

    /// Nothing has a checksum; a digit is put somewhere instead.
    fn repair(&mut self, input: &mut Vec<u8>, rng: &mut Rng) {
        if !input.is_empty() {
            let at = rng.usize(..input.len());
            input[at] = b"0123456789.-abkKMGsm"[rng.usize(..20)];
        }
    }

    fn execute(&mut self, input: &[u8]) -> Outcome {
        let (kind, largest) = measured(|| {
            let text = std::str::from_utf8(input).ok();
            u64::from(keys_of_one_slot(input)) << 7
                | marker(input) << 4
                | text.map_or(0, |text| numbers(text) | names(text) << 8)
        });
        // A marker's page has a sentence, of which the longest has a little less.
        assert!(largest <= 512, "{} bytes made {largest} be allocated", input.len());
        Outcome { is_accepted: kind != 0, kind, at: input.len(), items: 0 }
    }
}

fn numbers(text: &str) -> u64 {
    let (size, millis) = (parse_size(text), parse_millis(text));
    if let Some(size) = size {
        assert_eq!(parse_size(&show_size(size)), Some(size), "{text} is shown as {}", show_size(size));
        assert!(!rough_size(size).is_empty());
    }
    let codec = Codec::from_name(text);
    assert!(codec.is_none_or(|codec| codec.name() == text));
    u64::from(size.is_some()) | u64::from(millis.is_some()) << 1 | u64::from(codec.is_some()) << 2
}

/// Only names that are written are read: of files that are found by another name none would be removed or read
/// under its own.
fn names(text: &str) -> u64 {
    let table = TableName::parse(text);
    assert!(table.is_none_or(|name| name.to_string() == text), "{table:?} of {text}");
    let manifest = FileKey::parse(text);
    assert!(manifest.is_none_or(|key| key.path() == format!("{DIR}/{text}")), "{manifest:?} of {text}");
    let segment = parse_segment_name(text);
    let path = segment.map(|(log, number)| segment_path(log, number));
    assert!(path.as_ref().is_none_or(|path| *path == format!("wal/{text}")), "{path:?} of {text}");
    u64::from(table.is_some()) | u64::from(manifest.is_some()) << 1 | u64::from(segment.is_some()) << 2
}

fn marker(input: &[u8]) -> u64 {
    let kind = Unfinished::decode(input);
    let mut page = [0; PAGE_SIZE];
    kind.encode(&mut page);
    assert_eq!(Unfinished::decode(&page), kind, "it came back as another");
    match kind {
        Unfinished::Checkpoint => 1,
        Unfinished::Backup => 2,
        Unfinished::Restore => 3,
        Unfinished::Salvage => 4,
        Unfinished::Unknown => 0,
    }
}

/// If a range is said to be of one slot, what lies in it is of that.
fn keys_of_one_slot(input: &[u8]) -> bool {
    let (start, end) = input.split_at(input.len() / 2);
    assert!(Slot::of_key(input).number() < SLOT_COUNT);
    let Some(slot) = Slot::of_range(start, end) else { return false };
    if start < end {
        assert_eq!(Slot::of_key(start), slot, "the first key of the range");
        let next = [start, &[0]].concat();
        assert!(next[..] >= *end || Slot::of_key(&next) == slot, "the key behind it");
    }
    true
}
