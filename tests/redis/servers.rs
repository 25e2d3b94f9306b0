//! The servers of these tests: AtlasKV, and a real redis-server of version 7, alone or as a cluster of three.

use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use atlaskv::client::{Client, Config};
use tempfile::TempDir;

use crate::harness::{self, Server};
use crate::wire::{Command as Asked, Wire};

/// Largest value on both sides: the least that Redis accepts as its limit, so that limits are met often.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// Longer than any start takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What AtlasKV runs with, beside what [`harness::command`] gives it.
const ATLASKV: &[&str] =
    &["--cores", "2", "--oversubscribe", "--max-value-size", "1MiB", "--memory", "512MiB"];

/// A process that is killed when dropped.
#[derive(Debug)]
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running redis-server.
#[derive(Debug)]
pub struct Redis {
    process: Owned,
    pub address: SocketAddr,
    _dir: TempDir,
}

impl Redis {
    /// Starts one with nothing in it, and with `arguments` beside those that make it comparable.
    pub fn start(arguments: &[&str]) -> Redis {
        assert_is_redis_7();
        // Another process may take the port between its choice and its use.
        (0..5).find_map(|_| Redis::try_start(arguments).ok()).unwrap_or_else(|| {
            match Redis::try_start(arguments) {
                Ok(redis) => redis,
                Err(said) => panic!("redis-server does not start; it said:\n{said}"),
            }
        })
    }

    fn try_start(arguments: &[&str]) -> Result<Redis, String> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let port = free_port();
        let port_text = port.to_string();
        let limit = VALUE_BYTES_MAX.to_string();
        let mut command = Command::new("redis-server");
        command.args(["--port", &port_text, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.args(["--databases", "1", "--proto-max-bulk-len", &limit]).args(arguments);
        command
            .arg("--dir")
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut process = Owned(command.spawn().expect("redis-server was found before"));
        let stdout = process.0.stdout.take().expect("standard output is piped");
        let (sender, ready) = mpsc::channel();
        // Reads on afterwards, so that the pipe never fills up.
        thread::spawn(move || {
            let (mut reader, mut said, mut line) = (BufReader::new(stdout), String::new(), String::new());
            while reader.read_line(&mut line).is_ok_and(|count| count > 0) {
                said += &line;
                if line.contains("Ready to accept connections") {
                    let _ = sender.send(Ok(()));
                }
                line.clear();
            }
            let _ = sender.send(Err(said));
        });
        match ready.recv_timeout(PATIENCE) {
            Ok(Ok(())) => Ok(Redis { process, address: (Ipv4Addr::LOCALHOST, port).into(), _dir: dir }),
            Ok(Err(said)) => Err(said),
            Err(_) => Err(format!("(nothing within {PATIENCE:?})")),
        }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }
}

/// Three nodes of Redis that are a cluster, made as people make one.
#[derive(Debug)]
pub struct RedisCluster {
    pub nodes: Vec<Redis>,
}

impl RedisCluster {
    /// Starts it and waits until every node says that it is whole.
    pub fn start() -> RedisCluster {
        let nodes: Vec<Redis> = (0..3)
            .map(|_| {
                let bus = free_port().to_string();
                let arguments = ["--cluster-enabled", "yes", "--cluster-port", &bus];
                Redis::start(&arguments)
            })
            .collect();
        let addresses: Vec<String> = nodes.iter().map(|node| node.address.to_string()).collect();
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]).args(&addresses).args([
            "--cluster-yes",
            "--cluster-replicas",
            "0",
        ]);
        let output = create.output().expect("redis-cli is there: the package redis-tools; run tests/run");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "redis-cli --cluster create: {}:\n{said}", output.status);
        for node in &nodes {
            let mut wire = Wire::connect(node.address).expect("the node serves");
            harness::eventually("every node knows the whole cluster", || {
                let info = wire.say("CLUSTER INFO").expect("the node serves").as_text();
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
            });
        }
        RedisCluster { nodes }
    }
}

impl RedisCluster {
    /// Moves slots from each node to the next, a thousand in all.
    fn move_slots(&self) {
        let id = |node: &Redis| {
            let mut wire = Wire::connect(node.address).expect("the node serves");
            wire.say("CLUSTER MYID").expect("it is answered").as_text()
        };
        let ids: Vec<String> = self.nodes.iter().map(id).collect();
        let first = self.nodes[0].address.to_string();
        for (from, to) in ids.iter().zip(ids.iter().cycle().skip(1)) {
            let mut reshard = Command::new("redis-cli");
            reshard.args(["--cluster", "reshard", &first, "--cluster-from", from, "--cluster-to", to]);
            reshard.args(["--cluster-slots", "333", "--cluster-yes"]);
            let output = reshard.output().expect("redis-cli was found before");
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "redis-cli --cluster reshard: {}:\n{said}", output.status);
        }
    }
}

/// A port that was free a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}

/// Panics with what to do unless redis-server is there and speaks as the one that AtlasKV is compared with.
fn assert_is_redis_7() {
    let output = Command::new("redis-server").arg("--version").output().unwrap_or_else(|error| {
        panic!("redis-server: {error}; run tests/run, which installs it, or: apt-get install redis-server")
    });
    let version = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(version.contains("v=7."), "redis-server 7 is needed to compare with; this one is: {version}");
}

/// What is compared with Redis: a server of AtlasKV of ours, unless `ATLASKV_REDIS_SUBJECT` names another.
/// That is an address, or `redis-server` for Redis itself, which shows what the test takes for a difference
/// by mistake.
#[derive(Debug)]
pub enum Subject {
    Atlas { server: Server, _dir: TempDir },
    Redis(Redis),
    Elsewhere(SocketAddr),
}

impl Subject {
    /// Starts it; `sync` is AtlasKV's mode.
    pub fn start(sync: &str) -> Subject {
        match std::env::var("ATLASKV_REDIS_SUBJECT") {
            Err(_) => {
                let dir = harness::disk_dir();
                let arguments = [ATLASKV, &["--sync", sync]].concat();
                Subject::Atlas { server: Server::start(dir.path(), &arguments), _dir: dir }
            }
            Ok(name) if name == "redis-server" => Subject::Redis(Redis::start(&[])),
            Ok(address) => Subject::Elsewhere(address.parse().unwrap_or_else(|error| {
                panic!("ATLASKV_REDIS_SUBJECT={address}: {error}; give ADDRESS:PORT or redis-server")
            })),
        }
    }

    /// Where it serves.
    pub fn address(&self) -> SocketAddr {
        match self {
            Subject::Atlas { server, .. } => server.address,
            Subject::Redis(redis) => redis.address,
            Subject::Elsewhere(address) => *address,
        }
    }

    /// Whether it is AtlasKV, whose differences are known.
    pub fn is_atlas(&self) -> bool {
        !matches!(self, Subject::Redis(_))
    }

    /// What it logged, if that is known.
    pub fn log(&self) -> String {
        if let Subject::Atlas { server, .. } = self { server.log() } else { String::new() }
    }

    /// Its process, if it is one of ours.
    pub fn pid(&self) -> Option<u32> {
        match self {
            Subject::Atlas { server, .. } => Some(server.pid()),
            Subject::Redis(redis) => Some(redis.pid()),
            Subject::Elsewhere(_) => None,
        }
    }
}

/// As [`Subject`], as a cluster: of Redis three servers, of AtlasKV the cores of one. Elsewhere it is the
/// cluster that the node at `ATLASKV_REDIS_CLUSTER` belongs to.
#[derive(Debug)]
pub enum SubjectCluster {
    Atlas { server: Server, _dir: TempDir },
    Redis(RedisCluster),
    Elsewhere(SocketAddr),
}

impl SubjectCluster {
    /// Starts it.
    pub fn start() -> SubjectCluster {
        if let Ok(address) = std::env::var("ATLASKV_REDIS_CLUSTER") {
            let address = address.parse();
            return SubjectCluster::Elsewhere(address.expect("ATLASKV_REDIS_CLUSTER=ADDRESS:PORT"));
        }
        if std::env::var("ATLASKV_REDIS_SUBJECT").is_ok_and(|name| name == "redis-server") {
            return SubjectCluster::Redis(RedisCluster::start());
        }
        let dir = harness::disk_dir();
        let arguments = [ATLASKV, &["--cluster-mode", "emulated"]].concat();
        SubjectCluster::Atlas { server: Server::start(dir.path(), &arguments), _dir: dir }
    }

    /// Whether it is AtlasKV, as [`Subject::is_atlas`].
    pub fn is_atlas(&self) -> bool {
        !matches!(self, SubjectCluster::Redis(_))
    }

    /// Where its nodes serve, as the first of them says.
    pub fn nodes(&self) -> Vec<SocketAddr> {
        let first = match self {
            SubjectCluster::Atlas { server, .. } => server.address,
            SubjectCluster::Redis(cluster) => return cluster.nodes.iter().map(|node| node.address).collect(),
            SubjectCluster::Elsewhere(address) => *address,
        };
        let mut wire = Wire::connect(first).expect("the server serves");
        let nodes = wire.say("CLUSTER NODES").expect("it is answered").as_text();
        let address = |line: &str| {
            // Id, then ADDRESS:PORT@BUS and perhaps a name.
            let field = line.split(' ').nth(1)?;
            field.split(['@', ',']).next()?.parse().ok()
        };
        let nodes: Option<Vec<SocketAddr>> = nodes.lines().map(address).collect();
        nodes.filter(|nodes| !nodes.is_empty()).expect("CLUSTER NODES has addresses")
    }

    /// Moves slots from node to node, some there and back again.
    pub fn move_slots(&self) {
        let first = match self {
            SubjectCluster::Atlas { server, .. } => server.address,
            SubjectCluster::Redis(cluster) => return cluster.move_slots(),
            SubjectCluster::Elsewhere(address) => *address,
        };
        let mut client = Client::connect(Config::new(&first.to_string())).expect("the server serves");
        let text = client.stats("tablets").expect("there is such a section");
        let shard_of = |line: &str| {
            let (tablet, shard) = line.strip_prefix("tablet")?.split_once(".shard=")?;
            Some((tablet.parse::<u32>().ok()?, shard.parse::<u32>().ok()?))
        };
        let tablets: Vec<(u32, u32)> = text.lines().filter_map(shard_of).collect();
        let shards = tablets.iter().map(|(_, shard)| shard + 1).max().expect("there are tablets");
        for (index, (tablet, shard)) in tablets.iter().enumerate() {
            let mut go = |to| client.tablets(&format!("move {tablet} {to}")).expect("tablets move");
            go((shard + 1) % shards);
            if index % 2 == 0 {
                go(*shard);
            }
        }
    }
}

/// Memory that a process has in RAM, in bytes; `None` when it is gone.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}

/// Empties a server. What is asked of a connection that nobody else uses is answered.
pub fn flush(wire: &mut Wire) -> io::Result<()> {
    let reply = wire.ask(&Asked::line("FLUSHALL"))?;
    if reply.is_error() { Err(io::Error::other(format!("FLUSHALL: {reply}"))) } else { Ok(()) }
}
