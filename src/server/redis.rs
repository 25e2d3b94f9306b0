//! What clients of Redis are told of this server.

use std::fs::DirBuilder;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use xxhash_rust::xxh3::{xxh3_64_with_seed, xxh3_128_with_seed};

use super::preflight::Preflight;
use crate::config::{ClusterConfig, Config, Misrouted, SyncMode};
use crate::env::Env;
use crate::placement::SlotTable;
use crate::redis::session::{Cluster, Context, ContextParts, Host, Nodes, Reader, SaveStatus};
use crate::shard::Shard;
use crate::slot::Slot;

/// Name of the directory of saves, below the data.
const SAVES: &str = "saves";

/// The same for all shards.
pub struct Setup {
    config: Vec<(&'static str, String)>,
    address: SocketAddr,
    cluster: Option<Arc<Cluster>>,
    run_id: String,
    started_at_ms: u64,
    clients_max: usize,
    saves_dir: Option<String>,
    saves: Arc<SaveStatus>,
    is_stopping: Arc<AtomicBool>,
}

impl Setup {
    /// Of a server that starts now.
    pub fn new(config: &Config, preflight: &Preflight) -> Setup {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // No secret: it tells one run of the server from another.
        let run_id = (0..5).map(|_| format!("{:08x}", fastrand::u32(..))).collect();
        let started_at_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        Setup {
            config: settings(config, preflight),
            address: preflight.address,
            cluster: config.cluster.as_ref().map(|cluster| Arc::new(nodes(config, cluster, preflight))),
            run_id,
            started_at_ms,
            clients_max: preflight.connections_max,
            saves_dir: saves_dir(config),
            saves: Arc::new(SaveStatus::new(started_at_ms)),
            is_stopping: Arc::default(),
        }
    }
}

/// The directory of saves, as a path that [`Shard::take_checkpoint`] takes. `None`, if it is no text.
fn saves_dir(config: &Config) -> Option<String> {
    let absolute = |path: &std::path::Path| {
        let path = path.canonicalize().or_else(|_| std::path::absolute(path));
        path.ok()?.into_os_string().into_string().ok()
    };
    match &config.save_dir {
        // Below the data, since only there it is sure to be on the same file system. Made when there is a save.
        None => absolute(&config.data_dir).map(|dir| format!("{}/{SAVES}", dir.trim_end_matches('/'))),
        Some(dir) => {
            // What can't be made is told when something is to be saved.
            let _ = DirBuilder::new().recursive(true).mode(0o700).create(dir);
            absolute(dir)
        }
    }
}

/// The server, as its sessions see it.
struct Process<E: Env> {
    env: E,
    is_stopping: Arc<AtomicBool>,
}

impl<E: Env> Host for Process<E> {
    fn wall_ms(&self) -> u64 {
        self.env.wall_ms()
    }

    fn stop(&self) {
        // A second signal would drop connections.
        if self.is_stopping.swap(true, Ordering::AcqRel) {
            return;
        }
        tracing::info!("a client asked for the end");
        if let Err(error) =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM)
        {
            tracing::error!("this process can't signal itself: {error}");
        }
    }
}

/// How the shards are nodes.
fn nodes(config: &Config, cluster: &ClusterConfig, preflight: &Preflight) -> Cluster {
    let ports: Vec<u16> = preflight.nodes.iter().map(|(_, address)| address.port()).collect();
    Cluster {
        ids: (0..ports.len()).map(|shard| node_id(&config.data_dir, shard)).collect(),
        ports,
        host: cluster.host.clone(),
        serves_all: cluster.misrouted == Misrouted::Served,
    }
}

/// The id of a node: the same after a restart, another one for another store. Clients tell nodes apart by it.
fn node_id(data_dir: &Path, shard: usize) -> String {
    let place = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_path_buf());
    let machine = rustix::system::uname().nodename().to_bytes().to_vec();
    let name = [&machine, &b"\0"[..], place.as_os_str().as_encoded_bytes()].concat();
    let seed = shard as u64;
    format!("{:032x}{:08x}", xxh3_128_with_seed(&name, seed), xxh3_64_with_seed(&name, seed) >> 32)
}

/// Settings by the names that they have in Redis: those that tools ask for and that mean something here.
fn settings(config: &Config, preflight: &Preflight) -> Vec<(&'static str, String)> {
    let text = str::to_owned;
    let sync = match config.sync {
        SyncMode::Always => "always",
        SyncMode::Interval(_) => "everysec",
        SyncMode::None => "no",
    };
    let seconds = |time: std::time::Duration| time.as_secs().to_string();
    vec![
        ("appendfsync", text(sync)),
        ("appendonly", text("yes")),
        ("cluster-enabled", text(if config.cluster.is_some() { "yes" } else { "no" })),
        ("bind", preflight.address.ip().to_string()),
        ("databases", text("1")),
        ("dir", config.data_dir.display().to_string()),
        ("maxclients", preflight.connections_max.to_string()),
        ("maxmemory", config.memory.to_string()),
        ("maxmemory-policy", text("noeviction")),
        ("port", preflight.address.port().to_string()),
        ("proto-max-bulk-len", config.value_bytes_max.to_string()),
        // There are no snapshots of the kind that it sets the times of.
        ("save", String::new()),
        ("timeout", config.idle_timeout.map_or_else(|| text("0"), seconds)),
    ]
}

/// Owners by the slot table of one shard.
struct Owners {
    slots: Rc<SlotTable>,
    local: usize,
}

impl Nodes for Owners {
    fn local(&self) -> usize {
        self.local
    }

    fn owner(&self, slot: Slot) -> usize {
        self.slots.shard(slot)
    }

    fn is_moving(&self, slot: Slot) -> bool {
        self.slots.held().is_some_and(|slots| slots.contains(slot))
    }

    fn count(&self) -> usize {
        self.slots.shards
    }

    fn ranges(&self) -> Vec<(u16, u16, usize)> {
        self.slots
            .ranges()
            .into_iter()
            .map(|(first, last, shard)| (first, last, usize::from(shard)))
            .collect()
    }

    fn epoch(&self) -> u64 {
        self.slots.epoch()
    }
}

/// What a shard has in memory.
struct Memory<E: Env> {
    /// The shard must be able to end before the last session's context does.
    shard: Weak<Shard<E>>,
}

impl<E: Env> Reader for Memory<E> {
    fn read(&self, keys: &[&[u8]], take: &mut dyn FnMut(Option<&[u8]>)) -> usize {
        self.shard.upgrade().map_or(0, |shard| shard.read_at_once(keys, take))
    }
}

/// What the connections of `shard` share.
pub fn context_of<E: Env>(setup: &Setup, shard: &Rc<Shard<E>>) -> Context {
    if let Some(dir) = &setup.saves_dir {
        shard.keep_saves(dir.clone(), setup.saves.clone());
    }
    Context::new(ContextParts {
        limits: shard.limits,
        nodes: Box::new(Owners { slots: shard.slots.clone(), local: shard.id }),
        cluster: setup.cluster.clone(),
        metrics: shard.metrics.clone(),
        host: Box::new(Process { env: shard.env.clone(), is_stopping: setup.is_stopping.clone() }),
        reader: Box::new(Memory { shard: Rc::downgrade(shard) }),
        saves: setup.saves.clone(),
        config: setup.config.clone(),
        port: setup.address.port(),
        run_id: setup.run_id.clone(),
        started_at_ms: setup.started_at_ms,
        clients_max: setup.clients_max,
        seed: shard.env.random(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_ids_of_their_own_that_stay() {
        let dir = tempfile::tempdir().unwrap();
        let ids: Vec<String> = (0..3).map(|shard| node_id(dir.path(), shard)).collect();
        assert!(ids.iter().all(|id| id.len() == 40 && id.bytes().all(|byte| byte.is_ascii_hexdigit())));
        assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
        assert_eq!(node_id(&dir.path().join("."), 1), ids[1]);
        assert_ne!(node_id(&dir.path().join("other"), 1), ids[1]);
    }
}
