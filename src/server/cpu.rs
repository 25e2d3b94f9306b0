//! Which CPUs the shards run on.
//!
//! Usable is what the affinity mask allows; a cgroup's CPU quota bounds how many of them are worth using
//! at a time. Of the usable ones each physical core gives one CPU before any gives a second: two shards
//! on the hyper-threads of one core share its caches and execution units while other cores idle.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;

/// A set of CPU numbers that prints as the kernel writes it: `0-3,8`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CpuList(BTreeSet<usize>);

impl CpuList {
    /// Reads the kernel's form, `0-3,8`. `None` if it is not that.
    pub fn parse(text: &str) -> Option<CpuList> {
        let mut set = BTreeSet::new();
        for part in text.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse::<usize>().ok()?);
            // A range from a file: bounded before it is walked.
            if last > 1 << 16 {
                return None;
            }
            set.extend(first..=last);
        }
        Some(CpuList(set))
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `cpu` is one of them.
    pub fn contains(&self, cpu: usize) -> bool {
        self.0.contains(&cpu)
    }

    /// In ascending order.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().copied()
    }
}

impl FromIterator<usize> for CpuList {
    fn from_iter<I: IntoIterator<Item = usize>>(cpus: I) -> CpuList {
        CpuList(cpus.into_iter().collect())
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.iter().peekable();
        let mut separator = "";
        while let Some(first) = rest.next() {
            let mut last = first;
            while let Some(next) = rest.next_if_eq(&(last + 1)) {
                last = next;
            }
            match last - first {
                0 => write!(f, "{separator}{first}")?,
                _ => write!(f, "{separator}{first}-{last}")?,
            }
            separator = ",";
        }
        Ok(())
    }
}

/// What CPU time this process may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsableCpus {
    /// CPUs of the affinity mask.
    pub allowed: CpuList,
    /// CPUs' worth of time that the cgroup's quota allows, rounded down; at least 1, at most all of
    /// `allowed`.
    pub parallelism: usize,
}

impl UsableCpus {
    /// Asks the kernel.
    pub fn detect() -> UsableCpus {
        // The standard library knows quotas of both cgroup versions, and those of groups above ours.
        let parallelism = std::thread::available_parallelism().map_or(1, |count| count.get());
        let allowed = match rustix::thread::sched_getaffinity(None) {
            Ok(set) => (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect(),
            // More CPUs than the fixed mask has room for; the kernel also tells by file.
            Err(_) => {
                affinity_from_status(&fs::read_to_string("/proc/thread-self/status").unwrap_or_default())
                    .unwrap_or_else(|| (0..parallelism).collect())
            }
        };
        let parallelism = parallelism.clamp(1, allowed.len().max(1));
        UsableCpus { allowed, parallelism }
    }

    /// Whether a quota allows less than the affinity mask.
    pub fn is_quota_bound(&self) -> bool {
        self.parallelism < self.allowed.len()
    }

    /// The CPU of each of `shards` shards, those of different physical cores first. More shards than
    /// CPUs go round again: several then share one.
    pub fn choose(&self, shards: usize) -> Vec<usize> {
        let order = self.in_order_of_choice(Path::new("/sys/devices/system/cpu"));
        order.iter().copied().cycle().take(shards).collect()
    }

    /// Every allowed CPU, best first. A CPU of which `sysfs` tells nothing counts as a core of its own.
    fn in_order_of_choice(&self, sysfs: &Path) -> Vec<usize> {
        let mut order: Vec<(usize, usize)> = self
            .allowed
            .iter()
            .map(|cpu| {
                let file = sysfs.join(format!("cpu{cpu}/topology/thread_siblings_list"));
                let siblings = fs::read_to_string(file).ok().and_then(|text| CpuList::parse(&text));
                // How many allowed siblings come before it: 0 for the first thread of a core.
                let before = siblings.map_or(0, |list| {
                    list.iter().filter(|&other| other < cpu && self.allowed.contains(other)).count()
                });
                (before, cpu)
            })
            .collect();
        order.sort_unstable();
        order.into_iter().map(|(_, cpu)| cpu).collect()
    }
}

fn affinity_from_status(status: &str) -> Option<CpuList> {
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
    CpuList::parse(line).filter(|list| !list.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> CpuList {
        CpuList::parse(text).unwrap()
    }

    fn usable(text: &str) -> UsableCpus {
        UsableCpus { allowed: list(text), parallelism: list(text).len() }
    }

    /// A sysfs in which each list of siblings is one core.
    fn sysfs(cores: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for core in cores {
            for cpu in list(core).iter() {
                let topology = dir.path().join(format!("cpu{cpu}/topology"));
                fs::create_dir_all(&topology).unwrap();
                fs::write(topology.join("thread_siblings_list"), format!("{core}\n")).unwrap();
            }
        }
        dir
    }

    #[test]
    fn lists_print_as_they_are_read() {
        for text in ["0", "0-3", "0-1,4,6-7", "1,3,5", ""] {
            assert_eq!(list(text).to_string(), text);
        }
        assert_eq!(list("0-7\n").len(), 8);
        for text in ["a", "1-", "0-99999999999"] {
            assert_eq!(CpuList::parse(text), None, "{text}");
        }
    }

    #[test]
    fn physical_cores_come_before_siblings() {
        let far_siblings = sysfs(&["0,4", "1,5", "2,6", "3,7"]);
        assert_eq!(usable("0-7").in_order_of_choice(far_siblings.path()), [0, 1, 2, 3, 4, 5, 6, 7]);
        let near_siblings = sysfs(&["0-1", "2-3", "4-5", "6-7"]);
        assert_eq!(usable("0-7").in_order_of_choice(near_siblings.path()), [0, 2, 4, 6, 1, 3, 5, 7]);
    }

    #[test]
    fn a_sibling_outside_the_mask_does_not_count() {
        let dir = sysfs(&["0-1", "2-3", "4-5"]);
        assert_eq!(usable("1,2,3,5").in_order_of_choice(dir.path()), [1, 2, 5, 3]);
    }

    #[test]
    fn without_sysfs_every_cpu_is_a_core() {
        assert_eq!(usable("2,5,9").in_order_of_choice(Path::new("/nonexistent")), [2, 5, 9]);
    }

    #[test]
    fn chosen_cpus_are_distinct_until_all_are_taken() {
        let cpus = UsableCpus::detect();
        assert!(cpus.parallelism >= 1);
        assert!(cpus.parallelism <= cpus.allowed.len());
        let chosen = cpus.choose(cpus.allowed.len());
        assert_eq!(chosen.iter().copied().collect::<CpuList>(), cpus.allowed);
        let twice = cpus.choose(2 * cpus.allowed.len());
        assert_eq!(twice[..chosen.len()], twice[chosen.len()..]);
    }

    #[test]
    fn the_mask_can_be_read_from_the_status_file() {
        assert_eq!(affinity_from_status("Name:\tx\nCpus_allowed_list:\t0-2,5\n"), Some(list("0-2,5")));
        assert_eq!(affinity_from_status("Name:\tx\n"), None);
    }
}
