//! INFO: the fields that tools read, from the counters of all shards.

use std::collections::HashMap;
use std::fmt::Write;

use super::{REDIS_VERSION, Session, errors};

/// Sections, in order.
const SECTIONS: [&str; 10] = [
    "server",
    "clients",
    "memory",
    "persistence",
    "stats",
    "replication",
    "cpu",
    "errorstats",
    "cluster",
    "keyspace",
];

impl Session {
    /// The text of these sections, of all if none is named, from what STATS told.
    pub(super) fn info(&self, sections: &[String], stats: &str) -> String {
        let counters: HashMap<&str, u64> = stats
            .lines()
            .filter_map(|line| line.split_once('='))
            .filter_map(|(name, value)| Some((name, value.parse().ok()?)))
            .collect();
        let is_all = sections.is_empty()
            || sections.iter().any(|name| matches!(name.as_str(), "all" | "default" | "everything"));
        let mut text = String::new();
        for section in SECTIONS.iter().filter(|name| is_all || sections.iter().any(|other| other == *name)) {
            if !text.is_empty() {
                text.push_str("\r\n");
            }
            let mut title = (*section).to_owned();
            title[..1].make_ascii_uppercase();
            let title = if title == "Cpu" { "CPU" } else { &title };
            // Writing to a string does not fail.
            let _ = write!(text, "# {title}\r\n");
            for (name, value) in self.fields(section, &counters) {
                let _ = write!(text, "{name}:{value}\r\n");
            }
        }
        text
    }

    fn fields(&self, section: &str, counters: &HashMap<&str, u64>) -> Vec<(&'static str, String)> {
        let context = &self.context;
        let counter = |name: &str| counters.get(name).copied().unwrap_or(0);
        let count = |name: &str| counter(name).to_string();
        let is_cluster = context.cluster.is_some();
        let mode = if is_cluster { "cluster" } else { "standalone" };
        let wall_ms = context.host.wall_ms();
        let uptime = wall_ms.saturating_sub(context.started_at_ms) / 1000;
        let text = str::to_owned;
        match section {
            "server" => vec![
                ("redis_version", text(REDIS_VERSION)),
                ("redis_mode", text(mode)),
                ("atlaskv_version", text(env!("CARGO_PKG_VERSION"))),
                ("os", format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)),
                ("arch_bits", usize::BITS.to_string()),
                ("process_id", std::process::id().to_string()),
                ("run_id", context.run_id.clone()),
                ("tcp_port", self.port().to_string()),
                ("server_time_usec", (wall_ms * 1000).to_string()),
                ("uptime_in_seconds", uptime.to_string()),
                ("uptime_in_days", (uptime / 86_400).to_string()),
                ("io_threads_active", text("0")),
                ("shards", context.nodes.count().to_string()),
            ],
            "clients" => vec![
                ("connected_clients", count("connections_open")),
                ("maxclients", context.clients_max.to_string()),
                ("blocked_clients", count("clients_paused")),
            ],
            "memory" => {
                let used = resident_bytes();
                vec![
                    ("used_memory", used.to_string()),
                    ("used_memory_rss", used.to_string()),
                    ("maxmemory", context.config_value("maxmemory")),
                    ("maxmemory_policy", text("noeviction")),
                ]
            }
            "persistence" => vec![
                ("loading", text("0")),
                ("async_loading", text("0")),
                ("rdb_bgsave_in_progress", u8::from(context.saves.is_running()).to_string()),
                ("rdb_last_save_time", context.saves.saved_at_s().to_string()),
                ("rdb_last_bgsave_status", text(if context.saves.has_failed() { "err" } else { "ok" })),
                ("aof_enabled", text("1")),
                ("aof_rewrite_in_progress", text("0")),
            ],
            "stats" => vec![
                ("total_connections_received", count("connections_total")),
                ("total_commands_processed", count("requests")),
                ("total_net_input_bytes", count("bytes_in")),
                ("total_net_output_bytes", count("bytes_out")),
                (
                    "total_error_replies",
                    errors::told(counter).map(|(_, count)| count).sum::<u64>().to_string(),
                ),
                ("evicted_keys", text("0")),
                ("keyspace_hits", count("get_hits")),
                ("keyspace_misses", {
                    let (all, hits) = (counters.get("gets"), counters.get("get_hits"));
                    all.unwrap_or(&0).saturating_sub(*hits.unwrap_or(&0)).to_string()
                }),
                ("forwarded_requests", count("forwarded")),
            ],
            "replication" => vec![
                ("role", text("master")),
                ("connected_slaves", text("0")),
                ("master_replid", context.run_id.clone()),
                ("master_repl_offset", text("0")),
            ],
            "cpu" => {
                let (user, system) = cpu_seconds();
                vec![("used_cpu_sys", format!("{system:.6}")), ("used_cpu_user", format!("{user:.6}"))]
            }
            "errorstats" => {
                errors::told(counter).map(|(field, count)| (field, format!("count={count}"))).collect()
            }
            "cluster" => vec![("cluster_enabled", text(if is_cluster { "1" } else { "0" }))],
            // A database without keys is not listed. How many expire is not counted, but tools want all three.
            "keyspace" if count("keys_estimate") != "0" => {
                vec![("db0", format!("keys={},expires=0,avg_ttl=0", count("keys_estimate")))]
            }
            _ => Vec::new(),
        }
    }
}

impl super::Context {
    pub(super) fn config_value(&self, name: &str) -> String {
        let found = self.config.iter().find(|(other, _)| *other == name);
        found.map_or_else(|| "0".to_owned(), |(_, value)| value.clone())
    }
}

/// Memory of this process, or 0 where that can't be told.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// Time that this process has used, its own and the system's for it.
fn cpu_seconds() -> (f64, f64) {
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Behind the name, which may hold anything but ends with the last bracket.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let seconds =
        |index: usize| fields.get(index).and_then(|ticks| ticks.parse().ok()).unwrap_or(0.0) / ticks;
    (seconds(11), seconds(12))
}
