//! How the shards show themselves as nodes of a Redis Cluster.

use super::{ConfigError, unreadable};

/// What a node does with a request for keys that another one has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misrouted {
    /// Tells who has them.
    Moved,
    /// Has the owner execute it.
    Served,
}

/// Shards that are nodes of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Where the first shard listens, each other one behind the one before it; 0: each on a free port; `None`: behind
    /// that of all.
    pub port: Option<u16>,
    /// The host that clients are told; `None`: the address that they came to.
    pub host: Option<String>,
    /// What becomes of requests that came to the wrong node.
    pub misrouted: Misrouted,
}

/// Longest host name, as DNS has it.
const HOST_BYTES_MAX: usize = 253;

impl ClusterConfig {
    /// Reads the flags. `None`: there is no cluster.
    pub(super) fn read(
        mode: Option<&str>,
        port: Option<&str>,
        host: Option<&str>,
        misrouted: Option<&str>,
    ) -> Result<Option<ClusterConfig>, ConfigError> {
        let is_on = match mode {
            None | Some("off") => false,
            Some("emulated") => true,
            Some(other) => return Err(unreadable("cluster-mode", other, "off or emulated", "emulated")),
        };
        let config = ClusterConfig {
            port: port.map(read_port).transpose()?,
            host: host.map(read_host).transpose()?,
            misrouted: match misrouted {
                None | Some("moved") => Misrouted::Moved,
                Some("served") => Misrouted::Served,
                Some(other) => {
                    return Err(unreadable("cluster-misrouted", other, "moved or served", "moved"));
                }
            },
        };
        let others = [("cluster-port", port), ("cluster-host", host), ("cluster-misrouted", misrouted)];
        match others.into_iter().find(|(_, given)| given.is_some()) {
            Some((flag, _)) if !is_on => Err(ConfigError::ClusterIsOff { flag }),
            _ => Ok(is_on.then_some(config)),
        }
    }
}

fn read_port(text: &str) -> Result<u16, ConfigError> {
    text.parse().map_err(|_| unreadable("cluster-port", text, "a port", "7380"))
}

/// A name or an address, which clients are told as it is.
fn read_host(text: &str) -> Result<String, ConfigError> {
    let is_sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
    match text.len() <= HOST_BYTES_MAX && text.bytes().all(is_sound) {
        true => Ok(text.to_owned()),
        false => Err(unreadable("cluster-host", text, "a host name or an IP address", "db1.example.org")),
    }
}
