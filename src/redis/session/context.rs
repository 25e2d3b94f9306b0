//! What the sessions of one shard share.

use std::cell::{Cell, RefCell};
use std::net::TcpStream;
use std::rc::Rc;
use std::sync::Arc;

use super::cursors::Cursors;
use super::saves::SaveStatus;
use crate::metrics::Metrics;
use crate::protocol::{Limits, resp};
use crate::slot::Slot;

/// The version of Redis whose commands are spoken, as HELLO and INFO tell it: clients choose by it what they use.
pub const REDIS_VERSION: &str = "7.2.0";

/// Who owns which slots, and where clients reach them.
pub trait Nodes {
    /// The shard that these sessions are of.
    fn local(&self) -> usize;

    /// The owner of a slot, as far as this shard knows.
    fn owner(&self, slot: Slot) -> usize;

    /// Whether a slot's owner changes just now: requests wait for that.
    fn is_moving(&self, slot: Slot) -> bool;

    /// How many shards there are.
    fn count(&self) -> usize;

    /// Runs of slots with one owner: first, last, shard.
    fn ranges(&self) -> Vec<(u16, u16, usize)>;

    /// Grows with every change of owners.
    fn epoch(&self) -> u64;
}

/// Shards as nodes of a Redis Cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// The port of each shard.
    pub ports: Vec<u16>,
    /// The id of each: 40 hexadecimal digits.
    pub ids: Vec<String>,
    /// The host that clients are told; `None`: the one that they came to.
    pub host: Option<String>,
    /// Whether a node has others execute what it can't itself, instead of telling where it is.
    pub serves_all: bool,
}

/// Who is at the other end of a connection, and where it came in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// The client's address and port.
    pub peer: String,
    /// The address and port of ours that it came to.
    pub local: String,
    /// The address alone.
    pub local_ip: String,
    /// Whether it chose this shard, as a node of a cluster.
    pub is_node: bool,
}

impl Client {
    /// That of a new connection.
    pub fn of(stream: &TcpStream, is_node: bool) -> Client {
        let (peer, local) = (stream.peer_addr().ok(), stream.local_addr().ok());
        let text =
            |address: Option<std::net::SocketAddr>| address.map_or_else(String::new, |a| a.to_string());
        // One of IPv4 that came to a socket of IPv6 is told as what it is.
        let local_ip = local.map_or_else(String::new, |address| address.ip().to_canonical().to_string());
        Client { peer: text(peer), local: text(local), local_ip, is_node }
    }
}

/// Reads that are answered at once.
pub trait Reader {
    /// Gives the values of `keys` to `take`, of one after the other (`None`: absent), up to the first that is not this
    /// shard's, not in memory, not durable yet, large, or that others have to do with just now. How many it gave.
    fn read(&self, keys: &[&[u8]], take: &mut dyn FnMut(Option<&[u8]>)) -> usize;
}

/// The server around the shards.
pub trait Host {
    /// The time in milliseconds since 1970.
    fn wall_ms(&self) -> u64;

    /// Begins to stop it, as a signal does.
    fn stop(&self);
}

/// What all sessions of a shard share.
pub struct Context {
    /// What requests may be.
    pub limits: Limits,
    /// What commands may be.
    pub command_limits: resp::Limits,
    /// Whose slots are whose.
    pub nodes: Box<dyn Nodes>,
    /// How shards are nodes; `None`: they are not.
    pub cluster: Option<Arc<Cluster>>,
    /// Where errors are counted.
    pub metrics: Rc<Metrics>,
    /// What else there is.
    pub host: Box<dyn Host>,
    /// What reads keys.
    pub reader: Box<dyn Reader>,
    /// What is known of saves.
    pub saves: Arc<SaveStatus>,
    /// Names and values that CONFIG GET tells.
    pub config: Vec<(&'static str, String)>,
    /// The port that clients connect to.
    pub port: u16,
    /// Another one for each start of the server: 40 digits.
    pub run_id: String,
    /// When the server started, in milliseconds since 1970.
    pub started_at_ms: u64,
    /// Clients that there may be at once.
    pub clients_max: usize,
    /// Where scans go on.
    pub(super) cursors: RefCell<Cursors>,
    /// Sessions so far.
    pub(super) sessions: Cell<u64>,
}

/// The parts of a [`Context`] that its maker knows.
pub struct ContextParts {
    /// See [`Context::limits`].
    pub limits: Limits,
    /// See [`Context::nodes`].
    pub nodes: Box<dyn Nodes>,
    /// See [`Context::cluster`].
    pub cluster: Option<Arc<Cluster>>,
    /// See [`Context::metrics`].
    pub metrics: Rc<Metrics>,
    /// See [`Context::host`].
    pub host: Box<dyn Host>,
    /// See [`Context::reader`].
    pub reader: Box<dyn Reader>,
    /// See [`Context::saves`].
    pub saves: Arc<SaveStatus>,
    /// See [`Context::config`].
    pub config: Vec<(&'static str, String)>,
    /// See [`Context::port`].
    pub port: u16,
    /// See [`Context::run_id`].
    pub run_id: String,
    /// See [`Context::started_at_ms`].
    pub started_at_ms: u64,
    /// See [`Context::clients_max`].
    pub clients_max: usize,
    /// A random number, from which the numbers of scans' cursors come.
    pub seed: u64,
}

/// Bytes that a command takes in its frame beside its arguments, generously.
const FRAME_OVERHEAD: usize = 256;

impl Context {
    /// Of a shard that serves no session yet.
    pub fn new(parts: ContextParts) -> Context {
        let ContextParts { limits, nodes, cluster, metrics, host, saves, config, port, run_id, .. } = parts;
        let ContextParts { started_at_ms, clients_max, seed, reader, .. } = parts;
        let command_limits = resp::Limits {
            // As a Redis with such a proto-max-bulk-len, but never less than the longest key.
            bulk_bytes_max: (limits.value_bytes_max as usize).max(limits.key_bytes_max as usize),
            command_bytes_max: limits.frame_bytes_max as usize - FRAME_OVERHEAD,
            ..resp::Limits::default()
        };
        Context {
            limits,
            command_limits,
            nodes,
            cluster,
            metrics,
            host,
            reader,
            saves,
            config,
            port,
            run_id,
            started_at_ms,
            clients_max,
            cursors: RefCell::new(Cursors::new(seed)),
            sessions: Cell::new(0),
        }
    }

    /// A number that no other session of this server has had.
    pub(super) fn next_id(&self) -> u64 {
        let before = self.sessions.get();
        self.sessions.set(before + 1);
        before * self.nodes.count() as u64 + self.nodes.local() as u64 + 1
    }
}
