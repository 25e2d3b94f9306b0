//! What stands at each byte of a data directory, by the formats alone: whether it counts, or why it is harmless
//! whatever it holds. What counts must be found by `verify`, every bit of it.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::Path;

use atlaskv::base::{EntryIndex, LogId, PAGE_SIZE, TabletId};
use atlaskv::engine::manifest::{self, State, inspect_current, inspect_file};
use atlaskv::engine::wal::format::{
    BLOCK_HEADER_BYTES, BlockInfo, RecordKind, Records, SEGMENT_HEADER_BYTES,
};
use atlaskv::engine::wal::{LogScan, SegmentFile, list_logs, scan_log};
use atlaskv_inspect::readonly::ReadOnly;
use futures_lite::future::block_on;

/// Bytes of `CURRENT`, of a segment's header and of a manifest block's header that are drawn as something.
const CURRENT_BYTES: usize = 28;
const SEGMENT_BYTES: usize = 72;
const MANIFEST_BLOCK_BYTES: usize = 56;
/// Where the length of its payload stands in a manifest block's header.
const PAYLOAD_LEN_AT: usize = 32;

/// Why a byte may be anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Harmless {
    /// Behind what a header says is used, up to the end of its page: `CURRENT` from byte 28 on, the header page of a
    /// segment from byte 72 on, blocks of logs and of manifests behind their payload. No reader looks there, since
    /// headers with checksums say where to stop. (Tables have none: their checksums cover whole pages.)
    Padding,
    /// Where no block of the file stands: space held ready behind the last edit of a manifest, or what a segment of a
    /// log has behind its last block: nothing yet, what the segment held before, or a tail that a start has cut off,
    /// and the manifest says where. Nothing there is taken for a block of the log, unless name, numbers, nonce, chain
    /// and checksums fit, and of what does not fit a flipped bit makes none.
    Space,
    /// The header of a segment in which no block of its log stands. It tells only by which nonce its blocks are known.
    EmptySegment,
    /// The seal at the end of a manifest, or of a log whose server was killed. It has no changes and no entries, and
    /// says of what stands before it that it was durable: which is valid by itself.
    LastSeal,
    /// An edit of a manifest without the seal behind it, which makes it count: the server was killed at that moment. A
    /// start may find it or not, as at any crash: whatever it names as new is there, and nothing else was removed yet.
    NotCommitted,
    /// A file that nothing names: the next start removes it unread.
    NotNamed,
    /// The number in `LOCK`, for the message to whoever comes second. What locks is the lock on the file.
    Lock,
}

impl fmt::Display for Harmless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Harmless::Padding => "padding",
            Harmless::Space => "no block stands there",
            Harmless::EmptySegment => "header of an empty segment",
            Harmless::LastSeal => "last seal",
            Harmless::NotCommitted => "edit not yet committed",
            Harmless::NotNamed => "file that nothing names",
            Harmless::Lock => "text in LOCK",
        })
    }
}

/// From each of these offsets on, to the next, what stands there; `None`: what counts.
type Spans = Vec<(usize, Option<Harmless>)>;

/// What stands where, by path.
pub struct Places(BTreeMap<String, Spans>);

impl Places {
    /// Of the sound data directory at `dir`.
    pub fn of(dir: &Path) -> Places {
        let state = block_on(manifest::load(&ReadOnly::new(dir))).unwrap().expect("a sound store");
        let mut places = BTreeMap::from([
            ("CURRENT".to_owned(), vec![(0, None), (CURRENT_BYTES, Some(Harmless::Padding))]),
            ("BACKUP".to_owned(), vec![(0, None)]),
            // Its name alone says that the directory is not complete, and a start and `verify` that it is so.
            ("INCOMPLETE".to_owned(), vec![(0, None)]),
            ("LOCK".to_owned(), vec![(0, Some(Harmless::Lock))]),
        ]);
        for table in state.live_tables() {
            places.insert(table.path(), vec![(0, None)]);
        }
        manifests(dir, &mut places);
        let logs = block_on(list_logs(&ReadOnly::new(dir))).unwrap();
        for (log, segments) in logs {
            if state.needed_logs().contains(&log) {
                places.extend(segments_of(dir, &state, log, segments));
            }
        }
        Places(places)
    }

    /// What stands at a byte; `None`: what counts.
    pub fn at(&self, path: &str, offset: usize) -> Option<Harmless> {
        let Some(spans) = self.0.get(path) else { return Some(Harmless::NotNamed) };
        spans[spans.partition_point(|(start, _)| *start <= offset) - 1].1
    }

    /// Whether the file counts at all.
    pub fn is_named(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }
}

/// Of each shard the last part of the live generation.
fn manifests(dir: &Path, places: &mut BTreeMap<String, Spans>) {
    let current = inspect_current(&fs::read(dir.join("CURRENT")).unwrap()).unwrap();
    for shard in 0..current.shards {
        let keys = fs::read_dir(dir.join("manifest")).unwrap().filter_map(|entry| {
            manifest::format::FileKey::parse(entry.unwrap().file_name().to_str().unwrap())
        });
        let of_it = keys.filter(|key| key.generation == current.generation && key.shard == shard);
        let path = of_it.max_by_key(|key| key.part).unwrap().path();
        let bytes = fs::read(dir.join(&path)).unwrap();
        let found = inspect_file(path.strip_prefix("manifest/").unwrap(), &bytes);
        let (mut spans, mut end) = (Spans::new(), 0);
        for (number, item) in found.items.iter().enumerate() {
            let at = item.offset as usize;
            let edit = item.edit.as_ref().expect("a sound manifest");
            let is_last = number > 0 && number + 1 == found.items.len();
            let harmless = match edit.changes.is_empty() {
                true => Harmless::LastSeal,
                false => Harmless::NotCommitted,
            };
            let payload: [u8; 4] = bytes[at + PAYLOAD_LEN_AT..at + PAYLOAD_LEN_AT + 4].try_into().unwrap();
            spans.push((at, is_last.then_some(harmless)));
            let used = MANIFEST_BLOCK_BYTES + u32::from_le_bytes(payload) as usize;
            spans.push((at + used, Some(Harmless::Padding)));
            end = at + used.next_multiple_of(PAGE_SIZE);
        }
        spans.push((end, Some(Harmless::Space)));
        places.insert(path, spans);
    }
}

/// The segments of a log that some tablet needs.
fn segments_of(dir: &Path, state: &State, log: LogId, segments: Vec<SegmentFile>) -> Vec<(String, Spans)> {
    let end = state.logs[&log].end;
    let flushed = |tablet: TabletId| state.tablets.get(&tablet).map_or(EntryIndex(u64::MAX), |t| t.flushed);
    let scan = block_on(scan_log(&ReadOnly::new(dir), log, segments, end, &flushed)).unwrap();
    let last = scan.blocks.last().copied();
    let LogScan { segments, blocks, .. } = &scan;
    let spans = segments.iter().zip(0..).map(|(segment, place)| {
        let bytes = fs::read(dir.join(&segment.path)).unwrap();
        let mut own = blocks.iter().filter(|(segment, _)| *segment == place).peekable();
        let mut spans = vec![
            (0, own.peek().is_none().then_some(Harmless::EmptySegment)),
            (SEGMENT_BYTES, Some(Harmless::Padding)),
            (SEGMENT_HEADER_BYTES, Some(Harmless::Space)),
        ];
        for block in own {
            let at = block.1 as usize;
            let info = BlockInfo::decode(&bytes[at..]).expect("a sound log");
            let used = BLOCK_HEADER_BYTES + info.payload_len;
            let is_open_end = end.is_none() && last == Some(*block);
            assert!(!is_open_end || is_seal(&bytes[at..], &info), "a log at rest ends with a seal");
            spans.push((at, is_open_end.then_some(Harmless::LastSeal)));
            spans.push((at + used, Some(Harmless::Padding)));
            spans.push((at + info.padded_len(), Some(Harmless::Space)));
        }
        (segment.path.clone(), spans)
    });
    spans.collect()
}

/// Whether a block has no entries.
fn is_seal(block: &[u8], info: &BlockInfo) -> bool {
    let payload = info.payload(block).expect("a sound log");
    Records::new(payload).all(|record| record.unwrap().info.kind == Some(RecordKind::Seal))
}
