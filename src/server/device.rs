//! How many requests the block device below the data directory takes at once.
//!
//! Linux gives each hardware queue of a device a number of tags, one for each request under way
//! (`queue/nr_requests` in sysfs). Whoever submits when none is left sleeps in the kernel until one is free. That holds
//! for io_uring too, as file systems don't pass on that it must not block: a shard whose reads have all tags stands
//! still with the disk, and so do all its requests that need nothing from it. So a shard keeps its reads below a part of
//! the tags, and leaves the others to other shards, and to its log, flushes, merges and what scans read ahead, which are a
//! few requests each.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// More reads at a time gain nothing: what a device does with 64 is what it can do.
const READS_MAX: usize = 128;
/// As many are always allowed: fewer would not keep a device busy.
const READS_MIN: usize = 8;
/// Of a device that says nothing: what virtio disks and SATA disks with a scheduler have.
const TAGS: usize = 256;
/// Devices that devices are made of, at most.
const DEPTH_MAX: usize = 8;

/// How many reads each of `shards` has under way at most, of the device that holds `dir`.
pub fn reads_max(dir: &Path, shards: usize) -> usize {
    let device = fs::metadata(dir).ok().map(|metadata| {
        let (major, minor) = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
        PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
    });
    share(device.and_then(|device| queues(&device, 0)), shards)
}

/// Half of the tags, divided among the shards that have the same queue.
fn share(queues: Option<Queues>, shards: usize) -> usize {
    let Queues { tags, count } = queues.unwrap_or(Queues { tags: TAGS, count: 1 });
    let sharing = shards.div_ceil(count.max(1)).max(1);
    (tags / 2 / sharing).clamp(READS_MIN, READS_MAX)
}

/// Hardware queues, and how many requests each takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Queues {
    tags: usize,
    count: usize,
}

/// Of a device, or of the narrowest of those that it is made of.
fn queues(device: &Path, depth: usize) -> Option<Queues> {
    if depth > DEPTH_MAX {
        return None;
    }
    let device = fs::canonicalize(device).ok()?;
    let whole = if device.join("partition").exists() { device.parent()? } else { &device };
    let names = |dir: &str| fs::read_dir(whole.join(dir)).into_iter().flatten().flatten();
    let parts = names("slaves").filter_map(|entry| queues(&entry.path(), depth + 1));
    if let Some(narrowest) = parts.min_by_key(|part| part.tags * part.count) {
        return Some(narrowest);
    }
    let tags = fs::read_to_string(whole.join("queue/nr_requests")).ok()?;
    // One without hardware queues hands on what it gets to others that it does not name: its figure is nobody's.
    let count = Some(names("mq").count()).filter(|count| *count > 0)?;
    Some(Queues { tags: tags.trim().parse().ok()?, count })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn disk(dir: &Path, name: &str, tags: &str, count: usize) -> PathBuf {
        let disk = dir.join(name);
        fs::create_dir_all(disk.join("queue")).unwrap();
        fs::write(disk.join("queue/nr_requests"), tags).unwrap();
        (0..count).for_each(|queue| fs::create_dir_all(disk.join(format!("mq/{queue}"))).unwrap());
        disk
    }

    #[test]
    fn queues_are_found_below_partitions_and_volumes() {
        let dir = tempfile::tempdir().unwrap();
        let wide = disk(dir.path(), "nvme0n1", "1023\n", 4);
        let part = wide.join("nvme0n1p1");
        fs::create_dir_all(&part).unwrap();
        fs::write(part.join("partition"), "1\n").unwrap();
        assert_eq!(queues(&part, 0), Some(Queues { tags: 1023, count: 4 }));
        let narrow = disk(dir.path(), "sda", "64\n", 1);
        let volume = disk(dir.path(), "dm-0", "128\n", 0);
        fs::create_dir_all(volume.join("slaves")).unwrap();
        symlink(&part, volume.join("slaves/nvme0n1p1")).unwrap();
        symlink(&narrow, volume.join("slaves/sda")).unwrap();
        assert_eq!(queues(&volume, 0), Some(Queues { tags: 64, count: 1 }));
        // What is not there or says nonsense tells nothing, and one that holds itself ends the search.
        assert_eq!(queues(&dir.path().join("none"), 0), None);
        assert_eq!(queues(&disk(dir.path(), "odd", "many", 1), 0), None);
        let ring = disk(dir.path(), "dm-1", "x", 0);
        fs::create_dir_all(ring.join("slaves")).unwrap();
        symlink(&ring, ring.join("slaves/dm-1")).unwrap();
        assert_eq!(queues(&ring, 0), None);
    }

    #[test]
    fn shards_share_half_of_the_tags_of_their_queue() {
        let of = |tags, count, shards| share(Some(Queues { tags, count }), shards);
        assert_eq!((of(256, 1, 1), of(256, 1, 2), of(256, 1, 4)), (128, 64, 32));
        assert_eq!((of(1023, 8, 8), of(1023, 8, 64)), (128, 63));
        assert_eq!((of(256, 1, 128), of(2, 1, 1)), (READS_MIN, READS_MIN));
        assert_eq!(share(None, 2), share(Some(Queues { tags: TAGS, count: 1 }), 2));
        assert!((READS_MIN..=READS_MAX).contains(&reads_max(&std::env::temp_dir(), 1)));
    }
}
