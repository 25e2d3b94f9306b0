//! What the generator asks of a protocol: requests to bytes, bytes to replies. No I/O here but that of
//! opening a connection.

pub mod atlas;
pub mod memcached;
pub mod resp;

use std::borrow::Cow;
use std::fmt;
use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::Context;

/// Longest reply that is waited for. A length beyond it is taken for a stream out of step.
pub const REPLY_BYTES_MAX: usize = 1 << 30;

/// One request.
#[derive(Clone, Copy, Debug)]
pub enum Op<'a> {
    Get {
        key: &'a [u8],
    },
    Set {
        key: &'a [u8],
        value: &'a [u8],
    },
    Del {
        key: &'a [u8],
    },
    Incr {
        key: &'a [u8],
        by: i64,
    },
    /// `keys` is the keys end to end, each `key_size` long.
    MGet {
        keys: &'a [u8],
        key_size: usize,
    },
    /// Keys from `start` on and below `end`, if that is not empty.
    Scan {
        start: &'a [u8],
        end: &'a [u8],
        limit: u32,
    },
}

/// One reply, borrowed from the bytes that it was read from.
#[derive(Debug)]
pub struct Reply<'a> {
    /// Bytes of the input that it took.
    pub len: usize,
    /// The request that it answers; `None` where replies come in the order of the requests.
    pub id: Option<u32>,
    pub body: Body<'a>,
}

/// What a reply says.
#[derive(Debug)]
pub enum Body<'a> {
    /// Done, with nothing more to say.
    Done,
    /// There is no such key.
    Missing,
    Value(&'a [u8]),
    Number(i64),
    Many(Values<'a>),
    /// So many entries of a scan.
    Entries(u32),
    /// The server refused, and why.
    Refused(Cow<'a, str>),
}

/// The values of a reply that has several, `None` for a key that is not there. Checked whole when it was
/// decoded.
#[derive(Clone, Debug)]
pub enum Values<'a> {
    Resp(resp::Bulks<'a>),
    Atlas(atlaskv::protocol::binary::Values<'a>),
}

impl Values<'_> {
    /// How many are left.
    pub fn len(&self) -> usize {
        match self {
            Values::Resp(values) => values.len(),
            Values::Atlas(values) => values.len(),
        }
    }
}

impl<'a> Iterator for Values<'a> {
    type Item = Option<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Values::Resp(values) => values.next(),
            Values::Atlas(values) => values.next().map(|value| value.map(|value| value.value)),
        }
    }
}

/// Bytes that are no reply. The connection is of no further use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireError(pub String);

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for WireError {}

/// A protocol, as one connection speaks it.
pub trait Wire: Send + 'static {
    /// Whether replies come in the order of the requests. If not, they carry the request's number.
    const IN_ORDER: bool;

    /// Appends the request.
    fn encode(&mut self, op: Op<'_>, id: u32, out: &mut Vec<u8>);

    /// The first reply in `input`; `None` if it is not all there yet.
    fn decode<'a>(&mut self, input: &'a [u8]) -> Result<Option<Reply<'a>>, WireError>;
}

/// What a server said of its shards when asked.
#[derive(Clone, Debug)]
pub struct Topology {
    pub shards: usize,
    /// For each slot the number of its shard, if the protocol tells and there is more than one.
    pub owners: Option<std::sync::Arc<[u16]>>,
    /// What it calls itself, for the report.
    pub server: String,
}

/// Opens connections. These calls block, with a timeout.
pub trait Connect: Wire + Sized {
    fn topology(address: SocketAddr) -> anyhow::Result<Topology>;

    /// A connection ready for requests, held by shard `shard` if that is given.
    fn open(address: SocketAddr, shard: Option<u16>) -> anyhow::Result<(TcpStream, Self)>;
}

/// How long a connection may take to be made and greeted.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

fn dial(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT)
        .with_context(|| format!("cannot connect to {address}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
    stream.set_write_timeout(Some(CONNECT_TIMEOUT))?;
    Ok(stream)
}

/// Reads until `parse` finds all it needs; the bytes must end there, since nothing else was asked for.
fn read_reply<T>(
    stream: &mut TcpStream,
    address: SocketAddr,
    mut parse: impl FnMut(&[u8]) -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let mut input = Vec::new();
    let mut chunk = [0u8; 16 << 10];
    loop {
        let count = stream.read(&mut chunk).with_context(|| format!("no greeting from {address}"))?;
        if count == 0 {
            anyhow::bail!("{address} closed the connection instead of greeting");
        }
        input.extend_from_slice(&chunk[..count]);
        if let Some(found) = parse(&input)? {
            return Ok(found);
        }
        if input.len() > 1 << 20 {
            anyhow::bail!("{address} sent 1 MiB that is no greeting");
        }
    }
}
