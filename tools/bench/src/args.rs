//! The command line, checked once.

use std::net::{SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use atlaskv::base::{KEY_BYTES_MAX, VALUE_BYTES_LIMIT};
use clap::{Parser, ValueEnum};

use crate::keys::{KeySpace, Picker};
use crate::lane::IN_FLIGHT_MAX;
use crate::mix::{Mix, OpKind};
use crate::wire::memcached;
use crate::ycsb::{self, Core};

/// Load generator for AtlasKV, and for servers that speak Redis' protocol or memcached's.
///
/// memcached is asked to get, set and delete: of the mix get, set, del, insert and rmw.
///
/// Without --rate the loop is closed: every client keeps --pipeline requests in flight. With --rate it is
/// open: requests are sent by a timetable made in advance, and latency counts from the time at which a
/// request should have been sent. Results go to standard output, progress to standard error.
///
/// --workload a to f are the core workloads of YCSB: load with --preload, or once with --preload-only for all
/// of them. Records are values of 1000 bytes, and keys numbers in no order. d and e insert keys beyond
/// --keys, which stay.
///
/// Exit code: 0 after a run, even if the server refused some requests; 1 if a value read was wrong (with
/// --verify), a connection broke, nothing succeeded, or the run could not start.
#[derive(Clone, Debug, Parser)]
#[command(version, name = "atlaskv-bench")]
pub struct Args {
    /// Server: atlaskv://HOST:PORT, redis://HOST:PORT or memcached://HOST:PORT
    #[arg(long, default_value = "atlaskv://127.0.0.1:7379")]
    pub target: Target,

    /// Logical clients, each with one connection, or one per shard if it knows the shards
    #[arg(short, long, default_value_t = 50)]
    pub clients: usize,

    /// Requests that a client has in flight: always, or with --rate at most [default: 1, with --rate 256]
    #[arg(short = 'P', long)]
    pub pipeline: Option<usize>,

    /// Threads of the generator
    #[arg(short, long, default_value_t = 1)]
    pub threads: usize,

    /// Number of different keys
    #[arg(short, long, default_value = "1000000", value_parser = parse_count)]
    pub keys: u64,

    /// Bytes of a key: the prefix, then its number with leading zeros
    #[arg(long, default_value = "16", value_parser = parse_size)]
    pub key_size: usize,

    /// What keys begin with
    #[arg(long, default_value = "key:")]
    pub key_prefix: String,

    /// Neighbouring keys that share a hash tag, a power of ten [default: no tags]
    #[arg(long, value_parser = parse_count)]
    pub tag_keys: Option<u64>,

    /// Bytes of a value; accepts 4KiB, 1MB [default: 100, with --workload 1000]
    #[arg(short = 'd', long, value_parser = parse_size)]
    pub value_size: Option<usize>,

    /// Share of a value that compression leaves of it, about; 1 for values that don't compress
    #[arg(long, default_value_t = 1.0)]
    pub compression_ratio: f64,

    /// Measured time, as 10s, 500ms, 5m [default: 10s, unbounded with --requests]
    #[arg(long, value_parser = parse_duration)]
    pub duration: Option<Duration>,

    /// Requests to measure; the run ends when they are answered
    #[arg(short = 'n', long, value_parser = parse_count)]
    pub requests: Option<u64>,

    /// Time of load before anything is measured
    #[arg(long, default_value = "0s", value_parser = parse_duration)]
    pub warmup: Duration,

    /// Weights of get, set, del, incr, mget, scan, insert (set of a new key) and rmw (get, then set of the
    /// same key) [default: get=90,set=10]
    #[arg(long)]
    pub mix: Option<Mix>,

    /// Core workload of YCSB: operations, distribution and record size at once
    #[arg(long, value_enum, ignore_case = true, conflicts_with = "mix")]
    pub workload: Option<Core>,

    /// Keys in one MGET
    #[arg(long, default_value_t = 10)]
    pub mget_keys: usize,

    /// Entries in one scan, which begins at a key as drawn; with --tag-keys it ends with its hash tag, with
    /// --workload e each number from 1 on is as frequent
    #[arg(long, default_value_t = 100)]
    pub scan_limit: u32,

    /// How keys are drawn [default: zipfian, with --workload d latest]
    #[arg(long, value_enum)]
    pub distribution: Option<Distribution>,

    /// Skew of the zipfian distribution and of the latest keys', between 0 and 1
    #[arg(long, default_value_t = 0.99)]
    pub theta: f64,

    /// Open loop: requests a second, all clients together
    #[arg(long, value_parser = parse_count)]
    pub rate: Option<u64>,

    /// With --rate: exponentially distributed gaps instead of even ones
    #[arg(long, requires = "rate")]
    pub poisson: bool,

    /// With --rate: never sleep, for the most punctual sends; takes a whole processor per thread
    #[arg(long, requires = "rate")]
    pub spin: bool,

    /// With --rate: send, and take replies, at most this often, so that what is due together goes together; accepts
    /// 100us. Without it nearly each request is a send and a receive on both sides, which at high rates cost more than
    /// the request
    #[arg(long, requires = "rate", conflicts_with = "spin", value_parser = parse_duration)]
    pub tick: Option<Duration>,

    /// Set every key once before the run
    #[arg(long)]
    pub preload: bool,

    /// Set every key once, and do nothing else
    #[arg(long)]
    pub preload_only: bool,

    /// Order in which keys are set before the run
    #[arg(long, value_enum, default_value_t = Order::Sequential)]
    pub preload_order: Order,

    /// Reads ask for keys that were never set, each between two that may have been
    #[arg(long)]
    pub absent: bool,

    /// Check every value that is read: that it was written to this key, and is whole
    #[arg(long)]
    pub verify: bool,

    /// Seed of all that is random
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// Whether a client has one connection per shard and sends to the owner of the key
    #[arg(long, value_enum, default_value_t = Switch::On)]
    pub shard_aware: Switch,

    /// Also write parameters, results and a time line to this file; `-` for standard output
    #[arg(long)]
    pub json: Option<PathBuf>,

    /// Process of the server, on this machine: reports its processor time per operation
    #[arg(long)]
    pub server_pid: Option<u32>,

    /// No progress lines
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Distribution {
    Uniform,
    Zipfian,
    /// Zipfian, the newest key most often
    Latest,
}

impl Distribution {
    pub fn name(self) -> &'static str {
        match self {
            Distribution::Uniform => "uniform",
            Distribution::Zipfian => "zipfian",
            Distribution::Latest => "latest",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Order {
    Sequential,
    /// Like a random order to the server; each key once all the same.
    Scattered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    AtlasKv,
    Redis,
    Memcached,
}

/// Where the server is and what it speaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub protocol: Protocol,
    pub address: SocketAddr,
    pub text: String,
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Target, String> {
        let (protocol, default_port, rest) = match text.split_once("://") {
            Some(("atlaskv", rest)) => (Protocol::AtlasKv, 7379, rest),
            Some(("redis", rest)) => (Protocol::Redis, 6379, rest),
            Some(("memcached", rest)) => (Protocol::Memcached, 11211, rest),
            Some((other, _)) => {
                return Err(format!(
                    "{other}:// is not known; use atlaskv://, redis:// or memcached:// and HOST:PORT"
                ));
            }
            None => (Protocol::AtlasKv, 7379, text),
        };
        let host = rest.trim_end_matches('/');
        if host.contains(['/', '@', '?']) || host.is_empty() {
            return Err(format!("{text:?}: expected HOST:PORT and nothing else after ://"));
        }
        let resolved = host.to_socket_addrs().or_else(|_| (host, default_port).to_socket_addrs());
        let address = resolved
            .map_err(|error| format!("{host:?} is no address that can be found: {error}"))?
            .next()
            .ok_or_else(|| format!("{host:?} has no address"))?;
        Ok(Target { protocol, address, text: text.into() })
    }
}

/// How long a run is of which nothing says that.
const DURATION: Duration = Duration::from_secs(10);
/// Requests a second that no thread comes near: one takes some tenths of a microsecond to make.
const THREAD_RATE_MAX: f64 = 1e7;

/// What follows from the arguments.
pub struct Plan {
    pub args: Args,
    pub mix: Mix,
    pub value_size: usize,
    pub distribution: Distribution,
    pub scan_limits: RangeInclusive<u32>,
    pub space: KeySpace,
    pub picker: Picker,
    pub pipeline: usize,
    pub duration: Option<Duration>,
}

impl Args {
    /// Checks what no single argument shows.
    pub fn plan(self) -> Result<Plan> {
        let open = self.rate.is_some();
        let pipeline = self.pipeline.unwrap_or(if open { 256 } else { 1 });
        let (mix, value_size) = (self.mix(), self.value_size());
        ensure!(self.clients > 0, "--clients must be at least 1");
        ensure!(self.threads > 0, "--threads must be at least 1");
        ensure!(
            self.threads <= self.clients,
            "--threads {} is more than --clients {}: a thread without clients does nothing",
            self.threads,
            self.clients
        );
        ensure!((1..=IN_FLIGHT_MAX).contains(&pipeline), "--pipeline must be between 1 and {IN_FLIGHT_MAX}");
        ensure!(self.keys > 0, "--keys must be at least 1");
        ensure!(self.key_size <= KEY_BYTES_MAX, "--key-size is more than the {KEY_BYTES_MAX} bytes of a key");
        ensure!(
            value_size <= VALUE_BYTES_LIMIT,
            "--value-size {value_size} is more than the {VALUE_BYTES_LIMIT} bytes that any server takes"
        );
        ensure!((1..=65_535).contains(&self.mget_keys), "--mget-keys must be between 1 and 65535");
        ensure!(self.scan_limit > 0, "--scan-limit must be at least 1");
        if self.target.protocol == Protocol::Memcached {
            self.check_memcached(&mix)?;
        }
        ensure!(
            !mix.has(OpKind::Scan) || self.target.protocol == Protocol::AtlasKv,
            "{}: Redis' protocol has no scan in the order of keys; use atlaskv://",
            self.workload.map_or("--mix with scan".into(), |core| format!("--workload {core} is of scans"))
        );
        ensure!(self.rate != Some(0), "--rate must be at least 1");
        ensure!(self.requests != Some(0), "--requests must be at least 1");
        ensure!(
            self.compression_ratio > 0.0 && self.compression_ratio <= 1.0,
            "--compression-ratio must be above 0 and at most 1"
        );
        ensure!(self.duration != Some(Duration::ZERO), "--duration must be more than nothing");
        let ticks = Duration::from_micros(1)..=Duration::from_millis(100);
        ensure!(self.tick.is_none_or(|tick| ticks.contains(&tick)), "--tick must be 1us to 100ms");
        let distribution = self.distribution();
        if distribution != Distribution::Uniform && !(self.theta > 0.0 && self.theta < 1.0) {
            bail!("--theta {} is not between 0 and 1; for 0 use --distribution uniform", self.theta);
        }
        let picker = match distribution {
            Distribution::Uniform => Picker::uniform(),
            Distribution::Zipfian => Picker::zipfian(self.keys, self.theta),
            Distribution::Latest => Picker::latest(self.keys, self.theta),
        };
        let space = self.key_space(&mix)?;
        let scan_limits = match self.workload {
            Some(_) => 1..=self.scan_limit,
            None => self.scan_limit..=self.scan_limit,
        };
        let duration = match (self.duration, self.requests) {
            (None, None) => Some(DURATION),
            (duration, _) => duration,
        };
        if let Some(path) = self.json.as_deref().filter(|path| path.as_os_str() != "-") {
            // Better to fail now than after the run.
            std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .with_context(|| format!("--json {}: cannot be written", path.display()))?;
        }
        Ok(Plan { args: self, mix, value_size, distribution, scan_limits, space, picker, pipeline, duration })
    }

    /// What memcached's text protocol has no words for.
    fn check_memcached(&self, mix: &Mix) -> Result<()> {
        for kind in [OpKind::Incr, OpKind::MGet, OpKind::Scan] {
            ensure!(
                !mix.has(kind),
                "memcached is asked to get, set and delete only; --mix has {}",
                kind.name()
            );
        }
        ensure!(
            self.key_size <= memcached::KEY_BYTES_MAX,
            "--key-size {} is more than the {} bytes of a key of memcached",
            self.key_size,
            memcached::KEY_BYTES_MAX
        );
        ensure!(
            self.key_prefix.bytes().all(|byte| byte.is_ascii_graphic()),
            "--key-prefix {:?}: keys of memcached have no spaces or control characters",
            self.key_prefix
        );
        Ok(())
    }

    fn mix(&self) -> Mix {
        let given = self.mix.clone().or(self.workload.map(Core::mix));
        given.unwrap_or_else(|| Mix::of(&[(OpKind::Get, 90), (OpKind::Set, 10)]))
    }

    fn value_size(&self) -> usize {
        self.value_size.unwrap_or(if self.workload.is_some() { ycsb::RECORD_BYTES } else { 100 })
    }

    fn distribution(&self) -> Distribution {
        let given = self.distribution.or(self.workload.map(Core::distribution));
        given.unwrap_or(Distribution::Zipfian)
    }

    fn key_space(&self, mix: &Mix) -> Result<KeySpace> {
        let counters = mix.has(OpKind::Incr);
        let is_power_of_ten = |count: u64| count.checked_ilog10().is_some_and(|log| 10u64.pow(log) == count);
        ensure!(self.tag_keys.is_none_or(is_power_of_ten), "--tag-keys must be a power of ten");
        ensure!(
            self.tag_keys.is_none() || !self.key_prefix.contains('{'),
            "--tag-keys with a --key-prefix that has a hash tag of its own"
        );
        let keys = self.keys.saturating_add(self.inserts_max(mix));
        match KeySpace::new(&self.key_prefix, self.key_size, keys, counters, self.tag_keys) {
            Ok(space) if self.workload.is_some() => Ok(space.shuffle(keys)),
            Ok(space) => Ok(space),
            Err(least) => bail!(
                "--key-size {} has no room for the prefix and the numbers of {keys} keys{}; give at least {least}",
                self.key_size,
                if keys > self.keys { ", inserted ones included" } else { "" }
            ),
        }
    }

    /// More keys than a run inserts.
    fn inserts_max(&self, mix: &Mix) -> u64 {
        if !mix.has(OpKind::Insert) {
            return 0;
        }
        let total: u32 = OpKind::ALL.iter().map(|kind| mix.weight(*kind)).sum();
        let share = f64::from(mix.weight(OpKind::Insert)) / f64::from(total);
        let within = |time: Duration| {
            (time.as_secs_f64().ceil() * THREAD_RATE_MAX * self.threads as f64 * share).ceil() as u64
        };
        let measured = match (self.duration, self.requests) {
            (None, Some(requests)) => requests,
            (Some(time), requests) => within(time).min(requests.unwrap_or(u64::MAX)),
            (None, None) => within(DURATION),
        };
        measured.saturating_add(within(self.warmup))
    }
}

/// A number with an optional k, M or G for thousands.
fn parse_count(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 1_000),
        Some((at, 'm' | 'M')) => (&text[..at], 1_000_000),
        Some((at, 'g' | 'G')) => (&text[..at], 1_000_000_000),
        _ => (text, 1),
    };
    digits
        .replace('_', "")
        .parse::<u64>()
        .ok()
        .and_then(|count| count.checked_mul(factor))
        .ok_or_else(|| format!("{text:?} is not a number; try 1000000 or 1M"))
}

/// Bytes, with KiB, MiB, GiB or kB, MB, GB.
fn parse_size(text: &str) -> Result<usize, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let factor: usize = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return Err(format!("{text:?}: the unit is none of B, KiB, MiB, GiB, kB, MB, GB")),
    };
    digits
        .parse::<usize>()
        .ok()
        .and_then(|count| count.checked_mul(factor))
        .ok_or_else(|| format!("{text:?} is not a size; try 100, 4KiB or 1MB"))
}

/// A time with its unit: ms, s, m or h; seconds if there is none.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let seconds = match unit.trim() {
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("{text:?}: the unit is none of us, ms, s, m, h")),
    };
    digits
        .parse::<f64>()
        .ok()
        .map(|count| count * seconds)
        .filter(|seconds| *seconds <= 1e7)
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("{text:?} is not a time; try 10s, 500ms or 5m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(arguments: &str) -> Result<Plan> {
        Args::try_parse_from(std::iter::once("atlaskv-bench").chain(arguments.split_whitespace()))?.plan()
    }

    #[test]
    fn units_are_understood() {
        assert_eq!(parse_size("4KiB"), Ok(4096));
        assert_eq!(parse_size("1MB"), Ok(1_000_000));
        assert_eq!(parse_size("100"), Ok(100));
        assert!(parse_size("1 furlong").is_err());
        assert!(parse_size("99999999999999999999").is_err());
        assert_eq!(parse_count("5M"), Ok(5_000_000));
        assert_eq!(parse_count("1_000"), Ok(1000));
        assert!(parse_count("-1").is_err());
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.5m"), Ok(Duration::from_secs(90)));
        assert!(parse_duration("1 fortnight").is_err());
        assert!(parse_duration("1e99s").is_err());
    }

    #[test]
    fn targets_have_a_protocol_and_an_address() {
        let target: Target = "redis://127.0.0.1".parse().unwrap();
        assert_eq!((target.protocol, target.address.port()), (Protocol::Redis, 6379));
        let target: Target = "atlaskv://[::1]:99/".parse().unwrap();
        assert_eq!((target.protocol, target.address.port()), (Protocol::AtlasKv, 99));
        let target: Target = "memcached://127.0.0.1".parse().unwrap();
        assert_eq!((target.protocol, target.address.port()), (Protocol::Memcached, 11211));
        assert!("http://127.0.0.1:1".parse::<Target>().is_err());
        assert!("redis://user@127.0.0.1:1".parse::<Target>().is_err());
        assert!("redis://".parse::<Target>().is_err());
    }

    #[test]
    fn what_cannot_work_is_refused_with_the_reason() {
        for (arguments, part) in [
            ("--clients 0", "--clients"),
            ("--threads 8 --clients 4", "--threads 8"),
            ("--theta 1", "--theta"),
            ("--key-size 5", "at least 10"),
            ("--pipeline 0", "--pipeline"),
            ("--value-size 1GiB", "--value-size"),
            ("--rate 0", "--rate"),
            ("--scan-limit 0", "--scan-limit"),
            ("--mix scan --target redis://127.0.0.1", "--mix"),
            ("--workload e --target redis://127.0.0.1", "--workload e is of scans"),
            ("--mix get,mget --target memcached://127.0.0.1", "--mix has mget"),
            ("--key-size 251 --target memcached://127.0.0.1", "--key-size 251"),
            ("--key-prefix a\u{e9}b --target memcached://127.0.0.1", "--key-prefix"),
            ("--workload a --mix get", "--mix"),
            ("--workload g", "--workload"),
            ("--workload d --key-size 10", "inserted ones included; give at least 11"),
            ("--workload d --theta 1", "--theta"),
            ("--tag-keys 12", "--tag-keys"),
            ("--tag-keys 0", "--tag-keys"),
            ("--tag-keys 10 --key-prefix {a}", "--tag-keys"),
            ("--compression-ratio 0", "--compression-ratio"),
            ("--compression-ratio NaN", "--compression-ratio"),
            ("--poisson", "--rate"),
            ("--json /no/such/folder/x", "--json"),
        ] {
            let error = format!("{:#}", plan(arguments).err().unwrap());
            assert!(error.contains(part), "{arguments}: {error}");
        }
        let a = plan("--workload A").unwrap();
        assert_eq!((a.mix.to_string().as_str(), a.value_size), ("get=50,set=50", 1000));
        let d = plan("--workload d --value-size 10 --key-size 10 --keys 900k --requests 100k").unwrap();
        assert_eq!((d.distribution, d.value_size), (Distribution::Latest, 10));
        assert_eq!(plan("--workload d --distribution uniform").unwrap().distribution, Distribution::Uniform);
        assert_eq!(plan("--workload e").unwrap().scan_limits, 1..=100);
        assert_eq!(plan("--mix scan --scan-limit 7").unwrap().scan_limits, 7..=7);
        assert_eq!(plan("").unwrap().pipeline, 1);
        assert_eq!(plan("--rate 1k").unwrap().pipeline, 256);
        assert_eq!(plan("--requests 5").unwrap().duration, None);
    }
}
