//! How much memory the process may use, and what each part of it gets.
//!
//! `--memory` is one budget for the whole process. [`COMMON_BYTES`] are set aside for what is not a
//! shard's (code, stacks, the control thread, logging); the rest is split evenly between the shards, and
//! a shard's share goes:
//!
//! | part | share | why |
//! |---|---|---|
//! | I/O buffers | 1/16, 1 to 8 MiB | registered with the ring; more of it measured no difference |
//! | memtables | 35 %, at most 1 GiB | active and sealed together; bounded because a restart replays their log: up to twice as much, in up to four times as many bytes of pages |
//! | indexes and filters | 20 % | resident: about 8 B a block and 12 bits a key, 1.8 bytes a key of 16 bytes with a value of 100 |
//! | connections | 10 %, at least the largest frame | requests from the first byte read to the answer, large replies until they have left: see `shard/budget.rs` |
//! | caches | what is left | 28 to 35 %, and all that the memtables' bound leaves over; down to 5 % where values are allowed that a shard has hardly room for. 1/4 of it for rows, the rest for blocks |

use std::fs;
use std::path::{Path, PathBuf};

use crate::base::{ENTRY_BYTES_MAX, VALUE_BYTES_LIMIT, page_align};

/// Memory of the process that belongs to no shard.
pub const COMMON_BYTES: u64 = 32 << 20;

/// Least share of a shard, whatever the values' size.
pub const SHARD_BYTES_MIN: u64 = 16 << 20;

/// A shard's share holds at least this many of the largest values: then its memtables can hold one.
const SHARD_VALUES_MIN: u64 = 3;

const MEMTABLES_BYTES_MAX: u64 = 1 << 30;

/// What HELLO promises at least: enough for a client to write ahead of its replies. And at most: more of it
/// lets nothing go faster.
const PIPELINE_BYTES_MIN: u64 = 64 << 10;
const PIPELINE_BYTES_MAX: u64 = 1 << 20;

/// What of a frame is neither value nor batch, at most.
const FRAME_OVERHEAD: u64 = 128 << 10;

/// What of a WAL segment is not a value: its header page, a block's header, the key, and the entries that
/// were in the block before the value came.
const SEGMENT_OVERHEAD: u64 = 2 << 20;
const SEGMENT_BYTES_MIN: u64 = 8 << 20;
const SEGMENT_BYTES_MAX: u64 = crate::base::SEGMENT_BYTES_DEFAULT;

const _: () = assert!(VALUE_BYTES_LIMIT as u64 + SEGMENT_OVERHEAD <= SEGMENT_BYTES_MAX);
const _: () =
    assert!(crate::base::ENTRY_BYTES_MAX + crate::base::KEY_BYTES_MAX + 65_536 < SEGMENT_OVERHEAD as usize);

/// One shard's share of `--memory`, by purpose. The parts add up to [`ShardMemory::total`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardMemory {
    /// The whole share.
    pub total: u64,
    /// Active and sealed memtables together. One is sealed when it reaches half of it, so that the next
    /// can fill while it is flushed.
    pub memtables: u64,
    /// Blocks of tables.
    pub block_cache: u64,
    /// Single entries of tables.
    pub row_cache: u64,
    /// Indexes and filters of open tables.
    pub indexes: u64,
    /// Requests that were read and not answered, and large replies that have not left.
    pub connections: u64,
    /// The executor's registered I/O buffers.
    pub io_buffers: u64,
}

impl ShardMemory {
    /// Bytes at which the active memtable is sealed.
    pub fn memtable_seal_bytes(&self) -> u64 {
        self.memtables / 2
    }

    /// Bytes of requests that each connection may hold whatever others do: 64 connections can fill what is
    /// there for requests, and with more of them it is exceeded by this much for each that does all it can.
    pub fn pipeline_bytes(&self) -> u32 {
        (self.connections / 2 / 64).clamp(PIPELINE_BYTES_MIN, PIPELINE_BYTES_MAX) as u32
    }

    /// Size of a write-ahead log segment: an eighth of the memtables, so that flushes release segments
    /// soon and the log is not many times what it protects; 8 to 64 MiB, and in any case large enough for
    /// a block that holds a value of `value_bytes_max`. Whole MiB, because segments are written in
    /// advance in units of that.
    pub fn segment_bytes(&self, value_bytes_max: u64) -> u64 {
        let wanted = (self.memtables / 8).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX);
        let needed = page_align_u64(value_bytes_max) + SEGMENT_OVERHEAD;
        let bytes = wanted.max(needed).next_multiple_of(1 << 20);
        assert!(bytes <= SEGMENT_BYTES_MAX, "--max-value-size was validated against its limit");
        bytes
    }
}

fn page_align_u64(bytes: u64) -> u64 {
    bytes.next_multiple_of(page_align(1) as u64)
}

/// The least a shard needs when values of `value_bytes_max` are allowed.
pub fn shard_minimum(value_bytes_max: u64) -> u64 {
    SHARD_BYTES_MIN.max(value_bytes_max.saturating_mul(SHARD_VALUES_MIN)).next_multiple_of(1 << 20)
}

/// The least `--memory` for `shards` shards.
pub fn process_minimum(shards: u64, value_bytes_max: u64) -> u64 {
    COMMON_BYTES.saturating_add(shards.saturating_mul(shard_minimum(value_bytes_max)))
}

/// Splits `memory`, which is at least [`process_minimum`], between `shards` shards that take values of up to
/// `value_bytes_max`.
pub fn split(memory: u64, shards: u64, value_bytes_max: u64) -> ShardMemory {
    assert!(shards > 0);
    let total = memory.saturating_sub(COMMON_BYTES) / shards;
    let io_buffers = (total / 16).clamp(1 << 20, 8 << 20);
    let memtables = (total / 100 * 35).min(MEMTABLES_BYTES_MAX);
    let indexes = total / 100 * 20;
    let connections = (total / 10).max(value_bytes_max.max(ENTRY_BYTES_MAX as u64) + FRAME_OVERHEAD);
    let caches = total - io_buffers - memtables - indexes - connections;
    let row_cache = caches / 4;
    let block_cache = caches - row_cache;
    ShardMemory { total, memtables, block_cache, row_cache, indexes, connections, io_buffers }
}

/// What bounds this process's memory, and by how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// Bytes that the process may use at most.
    pub bytes: u64,
    /// Where the bound comes from.
    pub source: MemoryBound,
}

/// Where a [`MemoryLimit`] comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryBound {
    /// The machine's RAM.
    Ram,
    /// A cgroup of this process, or one above it.
    Cgroup,
}

impl std::fmt::Display for MemoryBound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            MemoryBound::Ram => "RAM of this machine",
            MemoryBound::Cgroup => "cgroup memory limit",
        })
    }
}

/// RAM, or the smallest memory limit of the cgroups this process is in. `None` where `/proc` tells
/// neither.
pub fn memory_limit() -> Option<MemoryLimit> {
    limit_below(Path::new("/"))
}

/// [`memory_limit`] with the files of `/proc` and `/sys` looked up below `root`.
fn limit_below(root: &Path) -> Option<MemoryLimit> {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let ram = ram_bytes(&read("proc/meminfo"));
    let cgroup = cgroup_files(&read("proc/self/cgroup"), &read("proc/self/mountinfo"))
        .iter()
        .filter_map(|file| fs::read_to_string(root.join(file.strip_prefix("/").unwrap_or(file))).ok())
        // "max" in version 2; version 1 says "none" with a number near 2^63, which RAM undercuts.
        .filter_map(|text| text.trim().parse::<u64>().ok())
        .min();
    match (ram, cgroup) {
        (Some(ram), Some(cgroup)) if cgroup >= ram => Some((ram, MemoryBound::Ram)),
        (_, Some(cgroup)) => Some((cgroup, MemoryBound::Cgroup)),
        (ram, None) => ram.map(|ram| (ram, MemoryBound::Ram)),
    }
    .map(|(bytes, source)| MemoryLimit { bytes, source })
}

fn ram_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The limit files that may concern a process: of its cgroup and of every one above it, in both
/// versions. In a container the path may lie outside what is mounted; the mount's own root is always
/// among the answers, and there it is the container's cgroup.
fn cgroup_files(cgroup: &str, mountinfo: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for mount in mountinfo.lines().filter_map(parse_cgroup_mount) {
        // Lines read `hierarchy:controllers:path`; version 2 is the one with hierarchy 0.
        let Some(path) = cgroup.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (hierarchy, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            let ours = match mount.is_v2 {
                true => hierarchy == "0" && controllers.is_empty(),
                false => controllers.split(',').any(|name| name == "memory"),
            };
            ours.then_some(path)
        }) else {
            continue;
        };
        let name = if mount.is_v2 { "memory.max" } else { "memory.limit_in_bytes" };
        let below = Path::new(path).strip_prefix(mount.root).unwrap_or(Path::new(""));
        files.extend(below.ancestors().map(|dir| Path::new(mount.point).join(dir).join(name)));
    }
    files
}

struct CgroupMount<'a> {
    root: &'a str,
    point: &'a str,
    is_v2: bool,
}

/// One line of mountinfo: `id parent dev root point options [tags…] - type source superoptions`.
fn parse_cgroup_mount(line: &str) -> Option<CgroupMount<'_>> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, point) = (left.next()?, left.next()?);
    let mut right = right.split(' ');
    let (kind, options) = (right.next()?, right.nth(1).unwrap_or(""));
    let is_v2 = kind == "cgroup2";
    let is_v1 = kind == "cgroup" && options.split(',').any(|name| name == "memory");
    (is_v1 || is_v2).then_some(CgroupMount { root, point, is_v2 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_parts_add_up_to_the_share_and_none_is_empty() {
        for shards in [1, 2, 3, 64] {
            for (memory, value) in [
                (process_minimum(shards, 1), 1),
                (process_minimum(shards, 32 * MIB), 32 * MIB),
                (300 << 30, 16 * MIB),
            ] {
                let shard = split(memory, shards, value);
                let caches = shard.block_cache + shard.row_cache;
                let parts = [shard.memtables, caches, shard.indexes, shard.connections, shard.io_buffers];
                assert_eq!(parts.iter().sum::<u64>(), shard.total);
                assert!(shard.total * shards + COMMON_BYTES <= memory);
                assert!(parts.iter().all(|part| *part >= MIB), "{shard:?}");
                assert!(shard.memtables <= MEMTABLES_BYTES_MAX);
                assert!(shard.connections >= value + FRAME_OVERHEAD, "{shard:?}");
            }
        }
    }

    #[test]
    fn at_the_minimum_the_memtables_hold_a_largest_value() {
        for value in [1, 1000, MIB, 16 * MIB, 32 * MIB] {
            let shard = split(process_minimum(2, value), 2, value);
            assert!(shard.memtables > value, "{value}: {shard:?}");
        }
        assert_eq!(process_minimum(2, 1000), 64 * MIB);
        assert_eq!(process_minimum(2, 16 * MIB), 128 * MIB);
    }

    #[test]
    fn a_segment_holds_a_largest_value_and_stays_in_bounds() {
        for memory in [64 * MIB, 256 * MIB, 1 << 30, 64 << 30] {
            for value in [1, MIB, 7 * MIB, 16 * MIB, VALUE_BYTES_LIMIT as u64] {
                let memory = memory.max(process_minimum(1, value));
                let bytes = split(memory, 1, value).segment_bytes(value);
                assert!((SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&bytes));
                assert!(bytes >= value + SEGMENT_OVERHEAD);
                assert_eq!(bytes % MIB, 0);
            }
        }
        assert_eq!(split(64 * MIB, 1, 1000).segment_bytes(1000), 8 * MIB);
        assert_eq!(split(64 << 30, 1, 1000).segment_bytes(1000), 64 * MIB);
    }

    /// A tree of `/proc` and `/sys` files.
    fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    const MEMINFO: &str = "MemTotal:       8388608 kB\nMemFree:  1 kB\n";

    #[test]
    fn without_cgroups_ram_is_the_limit() {
        let dir = machine(&[("proc/meminfo", MEMINFO)]);
        assert_eq!(limit_below(dir.path()), Some(MemoryLimit { bytes: 8 << 30, source: MemoryBound::Ram }));
        assert_eq!(limit_below(machine(&[]).path()), None);
    }

    #[test]
    fn version_2_counts_the_smallest_limit_on_the_way_up() {
        let dir = machine(&[
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "0::/system.slice/atlaskv.service\n"),
            ("proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n"),
            ("sys/fs/cgroup/system.slice/memory.max", "1073741824\n"),
            ("sys/fs/cgroup/system.slice/atlaskv.service/memory.max", "max\n"),
        ]);
        assert_eq!(
            limit_below(dir.path()),
            Some(MemoryLimit { bytes: 1 << 30, source: MemoryBound::Cgroup })
        );
    }

    #[test]
    fn version_1_in_a_container_uses_the_root_of_the_mount() {
        let dir = machine(&[
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "4:memory:/docker/abc\n1:cpu:/docker/abc\n0::/\n"),
            (
                "proc/self/mountinfo",
                "31 23 0:27 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
                 32 23 0:28 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu\n",
            ),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "536870912\n"),
        ]);
        assert_eq!(
            limit_below(dir.path()),
            Some(MemoryLimit { bytes: 512 << 20, source: MemoryBound::Cgroup })
        );
    }

    #[test]
    fn version_1_without_a_limit_leaves_ram() {
        let dir = machine(&[
            ("proc/meminfo", MEMINFO),
            ("proc/self/cgroup", "4:memory:/\n"),
            ("proc/self/mountinfo", "31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"),
            ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ]);
        assert_eq!(limit_below(dir.path()).unwrap().source, MemoryBound::Ram);
    }

    #[test]
    fn this_machine_has_a_limit() {
        assert!(memory_limit().unwrap().bytes > 64 * MIB);
    }
}
