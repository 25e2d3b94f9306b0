//! A data set several times as large as `--memory`: loaded, changed, restarted, and read back whole, by a
//! server that keeps within its memory all the while.

use std::time::Instant;

use atlaskv::client::{Client, Outcome, Response};

use crate::harness::{Server, connect, disk_dir, seed};

/// What a value adds to its head on average, near enough 1000 bytes in all.
const FILL_BYTES: std::ops::Range<usize> = 900..1_090;
/// So many times `--memory`, at least.
const TIMES: usize = 5;
/// What is resident beyond `--memory` at most, for the process and for each shard: see "Bounds" in design.md.
const BEYOND_MIB: u64 = 32;
const BEYOND_SHARD_MIB: u64 = 24;
/// Requests sent together. The client's window and the server's limits bound what is under way.
const PIPELINE: usize = 1_000;

/// Keys by number, and how often each was written; 0 once it is deleted.
struct Keys {
    seed: u64,
    writes: Vec<u32>,
    last: u32,
}

impl Keys {
    fn key(at: usize) -> Vec<u8> {
        format!("larger than memory:{at:07}").into_bytes()
    }

    /// Follows from the seed, the key and which write it is, so that nothing needs to be kept.
    fn value(&self, at: usize, write: u32) -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(self.seed ^ (at as u64) << 32 ^ u64::from(write));
        let mut value = format!("{at}:{write}:").into_bytes();
        let head = value.len();
        value.resize(head + rng.usize(FILL_BYTES), 0);
        rng.fill(&mut value[head..]);
        value
    }

    /// Writes the keys `ats` with values that are new.
    fn put(&mut self, client: &mut Client, ats: &[usize]) {
        for some in ats.chunks(PIPELINE) {
            let mut pipeline = client.pipeline();
            for &at in some {
                self.last += 1;
                self.writes[at] = self.last;
                pipeline.set(&Keys::key(at), &self.value(at, self.last));
            }
            for answer in pipeline.run() {
                assert!(matches!(answer, Ok(Response::Outcome(_))), "{answer:?}, seed {}", self.seed);
            }
        }
    }

    /// Deletes the keys `ats`, some of which may be gone already.
    fn delete(&mut self, client: &mut Client, ats: &[usize]) {
        for some in ats.chunks(PIPELINE) {
            let mut pipeline = client.pipeline();
            for &at in some {
                pipeline.delete(&Keys::key(at));
            }
            for (&at, answer) in some.iter().zip(pipeline.run()) {
                let was_there = std::mem::take(&mut self.writes[at]) > 0;
                let is_right = match answer {
                    Ok(Response::Outcome(Outcome::Written { .. })) => was_there,
                    Ok(Response::Outcome(Outcome::Absent)) => !was_there,
                    _ => false,
                };
                assert!(is_right, "key {at}, there: {was_there}: {answer:?}, seed {}", self.seed);
            }
        }
    }

    /// Compares the keys `ats` with what the server has.
    fn check(&self, client: &mut Client, ats: impl Iterator<Item = usize>) {
        let ats: Vec<_> = ats.collect();
        for some in ats.chunks(PIPELINE) {
            let mut pipeline = client.pipeline();
            for &at in some {
                pipeline.get(&Keys::key(at));
            }
            for (&at, answer) in some.iter().zip(pipeline.run()) {
                let Ok(Response::Value(found)) = answer else { panic!("key {at}: {answer:?}") };
                let wanted = (self.writes[at] > 0).then(|| self.value(at, self.writes[at]));
                let found = found.map(|found| found.value);
                let shown = found.as_ref().map(|value| String::from_utf8_lossy(&value[..12]).into_owned());
                assert!(
                    found == wanted,
                    "key {at}, write {}, seed {}: found {shown:?}",
                    self.writes[at],
                    self.seed
                );
            }
        }
    }
}

/// The figure of `/proc/PID/status` with this name, in KiB.
fn status_kib(server: &Server, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

/// What `larger` looks at in STATS.
fn figure(client: &mut Client, name: &str) -> u64 {
    let text = client.stats("total").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

/// Five times `memory_mib` and more, on `cores` shards.
fn larger(test: &str, cores: usize, memory_mib: u64) {
    let seed = seed(test);
    let begin = Instant::now();
    let mut rng = fastrand::Rng::with_seed(seed);
    let dir = disk_dir();
    let (cores_text, memory) = (cores.to_string(), format!("{memory_mib}MiB"));
    let arguments =
        ["--cores", &cores_text, "--oversubscribe", "--memory", &memory, "--max-value-size", "64KiB"];
    let count = (memory_mib << 20) as usize * TIMES / FILL_BYTES.start;
    let never_written = count / 100;
    let mut keys = Keys { seed, writes: vec![0; count + never_written], last: 0 };
    let resident_max_mib = memory_mib + BEYOND_MIB + cores as u64 * BEYOND_SHARD_MIB;
    let check_resident = |server: &Server, when: &str| {
        let peak_mib = status_kib(server, "VmHWM:") >> 10;
        let seconds = begin.elapsed().as_secs_f64();
        println!("{when}: at most {peak_mib} MiB resident so far, {seconds:.1} s");
        assert!(peak_mib <= resident_max_mib, "{when}: {peak_mib} MiB, more than {resident_max_mib}");
    };

    let server = Server::start(dir.path(), &arguments);
    let mut client = connect(&server);
    check_resident(&server, "started");
    let mut ats: Vec<usize> = (0..count).collect();
    rng.shuffle(&mut ats);
    keys.put(&mut client, &ats);
    check_resident(&server, "loaded");
    for _ in 0..3 {
        rng.shuffle(&mut ats);
        let (changed, rest) = ats.split_at(count / 20);
        keys.put(&mut client, changed);
        // Some of these were just written, some are in the deepest tables, some are gone.
        let deleted = &rest[..count / 40];
        keys.delete(&mut client, deleted);
        keys.put(&mut client, &deleted[..deleted.len() / 4]);
        keys.check(&mut client, rest[..count / 20].iter().chain(&changed[..count / 100]).copied());
    }
    check_resident(&server, "changed");
    let table_bytes = figure(&mut client, "table_bytes");
    assert!(table_bytes >= (memory_mib << 20) * TIMES as u64, "only {table_bytes} bytes in tables");
    drop(client);
    let (status, log) = server.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("ERROR"), "{log}");

    let server = Server::start(dir.path(), &arguments);
    let mut client = connect(&server);
    check_resident(&server, "restarted");
    keys.check(&mut client, 0..count + never_written);
    check_resident(&server, "read back");
    let disk_reads = figure(&mut client, "disk_reads");
    // A block that is read holds several keys that are asked for one after the other.
    assert!(disk_reads as usize > count / 8, "{disk_reads} reads for {count} keys: it was all in memory");
    drop(client);
    let (status, log) = server.stop();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn five_times_the_memory_on_one_shard() {
    larger("five_times_the_memory_on_one_shard", 1, 48);
}

#[test]
fn five_times_the_memory_on_two_shards() {
    larger("five_times_the_memory_on_two_shards", 2, 64);
}
