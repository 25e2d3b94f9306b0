//! Flags and defaults, validated once, then immutable.
//!
//! [`Flags`] is what was given, as text: on the command line, else in the environment. [`Config`] is what
//! it means. Values are taken as text and read here rather than by the argument parser, so that every
//! refusal is one sentence of ours: what was given, the bound that it broke, what to do.
//!
//! The number of shards is the one thing that can't be known here: it depends on the CPUs this process
//! may use, which [`crate::server`] finds out. What depends on it comes from [`Config::shard_memory`].

mod cluster;
mod memory;
mod size;

use std::ffi::OsString;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

pub use cluster::{ClusterConfig, Misrouted};
pub use memory::{COMMON_BYTES, MemoryBound, MemoryLimit, SHARD_BYTES_MIN, ShardMemory, memory_limit};
pub use size::{parse_millis, parse_size, rough_size, show_size};

use crate::base::{Codec, Compression, VALUE_BYTES_DEFAULT_MAX, VALUE_BYTES_LIMIT};
use crate::slot::SLOT_COUNT;

/// Most shards a server may have. Tablets are numbered with 16 bits and a shard owns at least one; the
/// mesh has a queue for each pair.
pub const CORES_MAX: usize = 1024;

/// Longest `--sync interval`: what a crash may lose is bounded by it.
pub const SYNC_INTERVAL_MAX: Duration = Duration::from_secs(60);

/// Longest time that a timeout flag accepts.
const TIMEOUT_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// AtlasKV: a durable, larger-than-memory, sharded key-value store.
///
/// Sizes are bytes or a number with a unit: 64MiB, 512k (1024s), 1GB (thousands). Durations are seconds
/// or a number with a unit: 250ms, 30s, 5m.
#[derive(Parser, Clone, Debug, Default)]
#[command(name = "atlaskv", version, max_term_width = 100)]
pub struct Flags {
    /// Shards, each on a CPU of its own [default: all CPUs this process may use]
    #[arg(long, value_name = "N", env = "ATLASKV_CORES")]
    pub cores: Option<String>,
    /// Tablets of a new data directory, a power of two; one that exists keeps its own [default: 8 a core, at
    /// least 16]
    #[arg(long, value_name = "N", env = "ATLASKV_TABLETS")]
    pub tablets: Option<String>,
    /// Directory that holds the data; made if it does not exist [default: ./atlaskv-data]
    #[arg(long, value_name = "DIR", env = "ATLASKV_DATA_DIR", value_parser = clap::value_parser!(OsString))]
    pub data_dir: Option<OsString>,
    /// Where SAVE and BGSAVE keep the newest save, on the file system of the data [default: saves, below the data
    /// directory]
    #[arg(long, value_name = "DIR", env = "ATLASKV_SAVE_DIR", value_parser = clap::value_parser!(OsString))]
    pub save_dir: Option<OsString>,
    /// Address to serve clients on; port 0 takes a free one [default: 127.0.0.1:7379]
    #[arg(long, value_name = "ADDR:PORT", env = "ATLASKV_LISTEN")]
    pub listen: Option<String>,
    /// Show each shard as a node of a Redis Cluster, with a port of its own: off or emulated [default: off]
    #[arg(long, value_name = "MODE", env = "ATLASKV_CLUSTER_MODE")]
    pub cluster_mode: Option<String>,
    /// Port of the first node; each other one has the next [default: the port behind that of --listen]
    #[arg(long, value_name = "PORT", env = "ATLASKV_CLUSTER_PORT")]
    pub cluster_port: Option<String>,
    /// Host that clients of the cluster are told, where it is not the address that they came to: behind NAT, or
    /// in a container
    #[arg(long, value_name = "HOST", env = "ATLASKV_CLUSTER_HOST")]
    pub cluster_host: Option<String>,
    /// What a node does with a request for the keys of another one: moved (tells where they are) or served (has
    /// that one execute it) [default: moved]
    #[arg(long, value_name = "WHAT", env = "ATLASKV_CLUSTER_MISROUTED")]
    pub cluster_misrouted: Option<String>,
    /// When a write is acknowledged: always (once on disk), interval=N (at once; on disk within N
    /// milliseconds), none (at once; the server writes when it has enough) [default: always]
    #[arg(long, value_name = "MODE", env = "ATLASKV_SYNC")]
    pub sync: Option<String>,
    /// Memory of the whole process: memtables, caches, indexes, connections [default: half of the cgroup
    /// limit or of the RAM, whichever is less]
    #[arg(long, value_name = "SIZE", env = "ATLASKV_MEMORY")]
    pub memory: Option<String>,
    /// Largest value that a client may store, up to 32MiB [default: 16MiB]
    #[arg(long, value_name = "SIZE", env = "ATLASKV_MAX_VALUE_SIZE")]
    pub max_value_size: Option<String>,
    /// How tables are compressed: none, lz4 or zstd, for the last level, which holds nearly all data; or by
    /// level, upper=none,last=lz4 [default: lz4]
    #[arg(long, value_name = "CODEC", env = "ATLASKV_COMPRESSION")]
    pub compression: Option<String>,
    /// How much of the tables each shard reads again in a second, to find damage before someone needs what is
    /// damaged; 0 for none [default: 2MiB]
    #[arg(long, value_name = "SIZE", env = "ATLASKV_SCRUB_RATE")]
    pub scrub_rate: Option<String>,
    /// Allow more shards than CPUs; they then share them
    #[arg(long, env = "ATLASKV_OVERSUBSCRIBE", value_parser = clap::builder::FalseyValueParser::new())]
    pub oversubscribe: bool,
    /// Most clients connected at a time; also bounded by the limit of open files [default: 10000]
    #[arg(long, value_name = "N", env = "ATLASKV_MAX_CONNECTIONS")]
    pub max_connections: Option<String>,
    /// Close a connection that sent nothing for this long; 0 never does [default: 0]
    #[arg(long, value_name = "TIME", env = "ATLASKV_IDLE_TIMEOUT")]
    pub idle_timeout: Option<String>,
    /// Close a connection that leaves its replies unread for this long [default: 30s]
    #[arg(long, value_name = "TIME", env = "ATLASKV_STALL_TIMEOUT")]
    pub stall_timeout: Option<String>,
    /// Move tablets from cores that are busier than others, and split those that are too busy to move
    #[arg(long, env = "ATLASKV_AUTO_BALANCE", value_parser = clap::builder::FalseyValueParser::new())]
    pub auto_balance: bool,
    /// What to log: error, warn, info, debug, trace, or filters such as info,atlaskv::engine=debug
    /// [default: RUST_LOG, else info]
    #[arg(long, value_name = "LEVEL", env = "ATLASKV_LOG")]
    pub log_level: Option<String>,
    /// How log lines look: text or json [default: text]
    #[arg(long, value_name = "FORMAT", env = "ATLASKV_LOG_FORMAT")]
    pub log_format: Option<String>,
}

/// When a write counts as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMode {
    /// When it is on disk.
    Always,
    /// At once; it is on disk within this time.
    Interval(Duration),
    /// At once; it is on disk when the log has enough to write, or the server stops.
    None,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A gigabyte takes nine minutes, and a few per cent of what any disk gives.
const SCRUB_RATE_DEFAULT: u64 = 2 << 20;

/// What the server was told, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Shards wanted; `None`: one for each CPU that may be used.
    pub cores: Option<usize>,
    /// Tablets of a new store; `None`: by the number of shards.
    pub tablets: Option<u16>,
    /// More shards than CPUs are fine.
    pub oversubscribe: bool,
    /// Where the data is.
    pub data_dir: PathBuf,
    /// Where saves are kept; `None`: below the data.
    pub save_dir: Option<PathBuf>,
    /// Where clients connect.
    pub listen: SocketAddr,
    /// Shards as nodes of a Redis Cluster, if they are to be.
    pub cluster: Option<ClusterConfig>,
    /// When a write counts as done, unless the request asks for more.
    pub sync: SyncMode,
    /// Bytes for the whole process.
    pub memory: u64,
    /// Whether `memory` was given, rather than derived from the machine.
    pub memory_given: bool,
    /// Largest value in bytes.
    pub value_bytes_max: u64,
    /// Codecs of tables.
    pub compression: Compression,
    /// Bytes of tables a second and shard that are read again to see whether they are whole; 0: none.
    pub scrub_bytes_per_s: u64,
    /// Connections at a time.
    pub connections_max: usize,
    /// A connection that sends nothing for this long is closed.
    pub idle_timeout: Option<Duration>,
    /// A connection that takes none of its replies for this long is closed.
    pub stall_timeout: Duration,
    /// Whether tablets are moved and split by load.
    pub auto_balance: bool,
    /// Filter of the log, in `tracing` syntax.
    pub log_filter: String,
    /// Look of the log.
    pub log_format: LogFormat,
}

/// A flag (or its environment variable) that can't be used. The sentence says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not readable as what it should be.
    #[error("--{flag} {given}: not {wanted}; for example --{flag} {example}")]
    Unreadable {
        /// The flag, without dashes.
        flag: &'static str,
        /// What was given.
        given: String,
        /// What it should be.
        wanted: &'static str,
        /// A value that would do.
        example: &'static str,
    },
    /// Below what is possible.
    #[error("--{flag} {given} is less than the least possible, {least}; raise it")]
    TooSmall {
        /// The flag, without dashes.
        flag: &'static str,
        /// What was given.
        given: String,
        /// The least that is accepted.
        least: String,
    },
    /// Above what is possible.
    #[error("--{flag} {given} is more than the most possible, {most}; lower it")]
    TooLarge {
        /// The flag, without dashes.
        flag: &'static str,
        /// What was given.
        given: String,
        /// The most that is accepted.
        most: String,
    },
    /// A name that does not resolve.
    #[error(
        "--listen {given}: {reason}; give an address and a port, for example 127.0.0.1:7379 or [::1]:7379"
    )]
    Listen {
        /// What was given.
        given: String,
        /// Why it is no address.
        reason: String,
    },
    /// A flag about a cluster that there is not.
    #[error("--{flag} means nothing without --cluster-mode emulated; pass that as well, or leave this out")]
    ClusterIsOff {
        /// The flag, without dashes.
        flag: &'static str,
    },
    /// More memory than there is.
    #[error("--memory {given} is more than the {limit} this process may use ({source_of_limit}); lower it")]
    MemoryAboveLimit {
        /// What was given.
        given: String,
        /// What there is.
        limit: String,
        /// What bounds it.
        source_of_limit: MemoryBound,
    },
    /// Less memory than the shards need.
    #[error(
        "--memory {} is less than the {} that {shards} shard(s) with values of up to {} need ({} and {} a \
         shard); raise it, or lower --cores or --max-value-size",
        if *.derived { format!("{} (the default: half of what may be used)", rough_size(*.memory)) } else { show_size(*.memory) },
        show_size(memory::process_minimum(*.shards as u64, *.value_bytes_max)),
        show_size(*.value_bytes_max),
        show_size(COMMON_BYTES),
        show_size(memory::shard_minimum(*.value_bytes_max))
    )]
    MemoryTooSmall {
        /// What there is.
        memory: u64,
        /// Whether it is the default rather than given.
        derived: bool,
        /// Shards.
        shards: usize,
        /// Largest value.
        value_bytes_max: u64,
    },
    /// Neither given nor to be found out.
    #[error(
        "the memory of this machine can't be read from /proc/meminfo; pass --memory, for example --memory 1GiB"
    )]
    MemoryUnknown,
}

impl Config {
    /// Reads command line and environment. Prints help, version or a wrong use, and exits, by itself.
    pub fn from_command_line() -> Result<Config, ConfigError> {
        let rust_log = std::env::var("RUST_LOG").ok();
        Config::new(Flags::parse(), rust_log.as_deref(), memory_limit())
    }

    /// Checks `flags` for a process bounded by `limit`. `rust_log` is the log filter when the flags have
    /// none.
    pub fn new(
        flags: Flags,
        rust_log: Option<&str>,
        limit: Option<MemoryLimit>,
    ) -> Result<Config, ConfigError> {
        // A variable that an environment file sets to nothing counts as not set.
        let given = |text: &Option<String>| {
            text.as_deref().map(str::trim).filter(|t| !t.is_empty()).map(String::from)
        };
        let memory = given(&flags.memory);
        Ok(Config {
            cores: given(&flags.cores).map(|text| read_count("cores", &text, CORES_MAX)).transpose()?,
            tablets: given(&flags.tablets).map(|text| read_tablets(&text)).transpose()?,
            oversubscribe: flags.oversubscribe,
            data_dir: flags
                .data_dir
                .filter(|dir| !dir.is_empty())
                .unwrap_or_else(|| "./atlaskv-data".into())
                .into(),
            save_dir: flags.save_dir.filter(|dir| !dir.is_empty()).map(PathBuf::from),
            listen: read_address(given(&flags.listen).as_deref().unwrap_or("127.0.0.1:7379"))?,
            cluster: ClusterConfig::read(
                given(&flags.cluster_mode).as_deref(),
                given(&flags.cluster_port).as_deref(),
                given(&flags.cluster_host).as_deref(),
                given(&flags.cluster_misrouted).as_deref(),
            )?,
            sync: given(&flags.sync).map_or(Ok(SyncMode::Always), |text| read_sync(&text))?,
            memory: read_memory(memory.as_deref(), limit)?,
            memory_given: memory.is_some(),
            value_bytes_max: given(&flags.max_value_size)
                .map_or(Ok(VALUE_BYTES_DEFAULT_MAX as u64), |text| read_value_size(&text))?,
            scrub_bytes_per_s: given(&flags.scrub_rate)
                .map_or(Ok(SCRUB_RATE_DEFAULT), |text| read_rate("scrub-rate", &text))?,
            compression: given(&flags.compression)
                .map_or(Ok(Compression::default()), |text| read_compression(&text))?,
            connections_max: given(&flags.max_connections)
                .map_or(Ok(10_000), |text| read_count("max-connections", &text, 1_000_000))?,
            idle_timeout: given(&flags.idle_timeout)
                .map_or(Ok(Duration::ZERO), |text| read_duration("idle-timeout", &text, Duration::ZERO))
                .map(|time| (!time.is_zero()).then_some(time))?,
            auto_balance: flags.auto_balance,
            stall_timeout: given(&flags.stall_timeout).map_or(Ok(Duration::from_secs(30)), |text| {
                read_duration("stall-timeout", &text, Duration::from_millis(100))
            })?,
            log_filter: match given(&flags.log_level) {
                Some(text) => read_log_filter(text)?,
                // Meant for other programs as well: used if it can be, never a reason to refuse.
                None => rust_log.filter(|text| is_filter(text)).unwrap_or("info").to_string(),
            },
            log_format: match given(&flags.log_format).as_deref() {
                None | Some("text") => LogFormat::Text,
                Some("json") => LogFormat::Json,
                Some(other) => return Err(unreadable("log-format", other, "text or json", "json")),
            },
        })
    }

    /// One shard's share of the memory when there are `shards`.
    pub fn shard_memory(&self, shards: usize) -> Result<ShardMemory, ConfigError> {
        let count = shards as u64;
        let needed = memory::process_minimum(count, self.value_bytes_max);
        if self.memory >= needed {
            return Ok(memory::split(self.memory, count, self.value_bytes_max));
        }
        Err(ConfigError::MemoryTooSmall {
            memory: self.memory,
            derived: !self.memory_given,
            shards,
            value_bytes_max: self.value_bytes_max,
        })
    }
}

fn unreadable(flag: &'static str, given: &str, wanted: &'static str, example: &'static str) -> ConfigError {
    ConfigError::Unreadable { flag, given: given.to_string(), wanted, example }
}

fn read_count(flag: &'static str, text: &str, most: usize) -> Result<usize, ConfigError> {
    let Ok(count) = text.parse::<usize>() else {
        return Err(unreadable(flag, text, "a whole number", "4"));
    };
    if count == 0 {
        return Err(ConfigError::TooSmall { flag, given: text.to_string(), least: "1".to_string() });
    }
    if count > most {
        return Err(ConfigError::TooLarge { flag, given: text.to_string(), most: most.to_string() });
    }
    Ok(count)
}

fn read_tablets(text: &str) -> Result<u16, ConfigError> {
    let count = read_count("tablets", text, usize::from(SLOT_COUNT))?;
    let tablets = u16::try_from(count).ok().filter(|count| count.is_power_of_two());
    tablets.ok_or_else(|| unreadable("tablets", text, "a power of two", "64"))
}

fn read_duration(flag: &'static str, text: &str, least: Duration) -> Result<Duration, ConfigError> {
    let Some(time) = parse_millis(text).map(Duration::from_millis) else {
        return Err(unreadable(flag, text, "a duration", "30s"));
    };
    let given = text.to_string();
    if time < least {
        return Err(ConfigError::TooSmall { flag, given, least: format!("{}ms", least.as_millis()) });
    }
    if time > TIMEOUT_MAX {
        return Err(ConfigError::TooLarge { flag, given, most: format!("{}s", TIMEOUT_MAX.as_secs()) });
    }
    Ok(time)
}

fn read_address(text: &str) -> Result<SocketAddr, ConfigError> {
    let refused = |reason: String| ConfigError::Listen { given: text.to_string(), reason };
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let mut addresses = text.to_socket_addrs().map_err(|error| refused(error.to_string()))?;
    addresses.next().ok_or_else(|| refused("the name has no address".to_string()))
}

fn read_sync(text: &str) -> Result<SyncMode, ConfigError> {
    let wrong = || unreadable("sync", text, "always, interval=<milliseconds> or none", "interval=50");
    match text {
        "always" => Ok(SyncMode::Always),
        "none" => Ok(SyncMode::None),
        _ => {
            let millis = text.strip_prefix("interval=").ok_or_else(wrong)?;
            let millis = millis.strip_suffix("ms").unwrap_or(millis).parse().map_err(|_| wrong())?;
            let interval = Duration::from_millis(millis);
            let (flag, given) = ("sync", text.to_string());
            if interval.is_zero() {
                return Err(ConfigError::TooSmall { flag, given, least: "interval=1".to_string() });
            }
            if interval > SYNC_INTERVAL_MAX {
                let most = format!("interval={}", SYNC_INTERVAL_MAX.as_millis());
                return Err(ConfigError::TooLarge { flag, given, most });
            }
            Ok(SyncMode::Interval(interval))
        }
    }
}

fn read_memory(text: Option<&str>, limit: Option<MemoryLimit>) -> Result<u64, ConfigError> {
    match (text, limit) {
        (None, None) => Err(ConfigError::MemoryUnknown),
        (None, Some(limit)) => Ok(limit.bytes / 2),
        (Some(text), limit) => {
            let memory = parse_size(text).ok_or_else(|| unreadable("memory", text, "a size", "1GiB"))?;
            match limit {
                Some(limit) if memory > limit.bytes => Err(ConfigError::MemoryAboveLimit {
                    given: text.to_string(),
                    limit: rough_size(limit.bytes),
                    source_of_limit: limit.source,
                }),
                _ => Ok(memory),
            }
        }
    }
}

fn read_value_size(text: &str) -> Result<u64, ConfigError> {
    let flag = "max-value-size";
    let bytes = parse_size(text).ok_or_else(|| unreadable(flag, text, "a size", "16MiB"))?;
    let (given, limit) = (text.to_string(), VALUE_BYTES_LIMIT as u64);
    match bytes {
        0 => Err(ConfigError::TooSmall { flag, given, least: "1 byte".to_string() }),
        _ if bytes > limit => Err(ConfigError::TooLarge { flag, given, most: show_size(limit) }),
        _ => Ok(bytes),
    }
}

/// A codec for the last level, or for each level that is named; the other stays at its default.
fn read_rate(flag: &'static str, text: &str) -> Result<u64, ConfigError> {
    parse_size(text)
        .ok_or_else(|| unreadable(flag, text, "a size, read so many bytes a second; or 0", "2MiB"))
}

fn read_compression(text: &str) -> Result<Compression, ConfigError> {
    let wanted = "none, lz4 or zstd, or those by level (upper, last), each at most once";
    let wrong = || unreadable("compression", text, wanted, "upper=none,last=zstd");
    let (mut upper, mut last) = (None, None);
    for part in text.split(',') {
        let (level, name) = part.split_once('=').unwrap_or(("last", part));
        let codec = Codec::from_name(name.trim()).ok_or_else(wrong)?;
        let level = match level.trim() {
            "upper" => &mut upper,
            "last" => &mut last,
            _ => return Err(wrong()),
        };
        if level.replace(codec).is_some() {
            return Err(wrong());
        }
    }
    let default = Compression::default();
    Ok(Compression { upper: upper.unwrap_or(default.upper), last: last.unwrap_or(default.last) })
}

/// A bare word in a filter is taken for a target, so that a misspelt level would silence everything else
/// without a sound. Here it must be a level.
fn read_log_filter(text: String) -> Result<String, ConfigError> {
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    let is_plain = |part: &str| !part.contains(['=', '[']);
    let known = |part: &str| levels.iter().any(|level| level.eq_ignore_ascii_case(part));
    let misspelt = text.split(',').map(str::trim).any(|part| is_plain(part) && !known(part));
    if misspelt || !is_filter(&text) {
        let wanted = "error, warn, info, debug, trace, off, or filters of the form target=level";
        return Err(unreadable("log-level", &text, wanted, "info,atlaskv::engine=debug"));
    }
    Ok(text)
}

fn is_filter(text: &str) -> bool {
    tracing_subscriber::EnvFilter::try_new(text).is_ok()
}

#[cfg(test)]
mod tests;
