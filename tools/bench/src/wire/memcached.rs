//! memcached's text protocol, as much of it as get, set and delete of one key need.
//!
//! A get is `mg KEY v`, of version 1.6 on: a server answers several of these with one write. The answer to each `get`
//! is a write of its own, which at a pipeline of 64 was a tenth as fast as what Redis does (172,000 a second of
//! memcached 1.6.18 on one core).

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use super::{Body, Connect, Op, REPLY_BYTES_MAX, Reply, Topology, Wire, WireError, dial, read_reply, resp};

/// Longest key that the protocol has.
pub const KEY_BYTES_MAX: usize = 250;

/// memcached.
#[derive(Debug, Default)]
pub struct Memcached;

impl Wire for Memcached {
    const IN_ORDER: bool = true;

    fn encode(&mut self, op: Op<'_>, _id: u32, out: &mut Vec<u8>) {
        match op {
            Op::Get { key } => {
                out.extend_from_slice(b"mg ");
                out.extend_from_slice(key);
                out.extend_from_slice(b" v");
            }
            Op::Set { key, value } => {
                out.extend_from_slice(b"set ");
                out.extend_from_slice(key);
                // No flags, no expiry; its length is the only number in a request.
                out.extend_from_slice(b" 0 0 ");
                out.extend_from_slice(value.len().to_string().as_bytes());
                out.extend_from_slice(b"\r\n");
                out.extend_from_slice(value);
            }
            Op::Del { key } => {
                out.extend_from_slice(b"delete ");
                out.extend_from_slice(key);
            }
            Op::Incr { .. } | Op::MGet { .. } | Op::Scan { .. } => {
                unreachable!("refused with the arguments")
            }
        }
        out.extend_from_slice(b"\r\n");
    }

    #[inline]
    fn decode<'a>(&mut self, input: &'a [u8]) -> Result<Option<Reply<'a>>, WireError> {
        let Some((_, start)) = resp::line(input)? else { return Ok(None) };
        let line = &input[..start - 2];
        let reply = |body| Ok(Some(Reply { len: start, id: None, body }));
        match line {
            b"STORED" | b"DELETED" => reply(Body::Done),
            b"EN" | b"NOT_FOUND" => reply(Body::Missing),
            [b'V', b'A', b' ', digits @ ..] => value(input, digits, start),
            b"ERROR" | b"NOT_STORED" => reply(Body::Refused(String::from_utf8_lossy(line))),
            _ if line.starts_with(b"CLIENT_ERROR") || line.starts_with(b"SERVER_ERROR") => {
                reply(Body::Refused(String::from_utf8_lossy(line)))
            }
            _ => Err(WireError(format!(
                "a reply is {:?}, which is none of memcached's; is this memcached?",
                line.escape_ascii().to_string()
            ))),
        }
    }
}

/// `VA length`, and the value.
#[inline]
fn value<'a>(input: &'a [u8], digits: &[u8], start: usize) -> Result<Option<Reply<'a>>, WireError> {
    let claimed = resp::number(digits)?;
    let len = usize::try_from(claimed).ok().filter(|&len| len <= REPLY_BYTES_MAX);
    let len = len.ok_or_else(|| WireError(format!("a reply claims a length of {claimed}")))?;
    let value = resp::bulk_at(input, start, len)?;
    Ok(value.map(|value| Reply { len: start + len + 2, id: None, body: Body::Value(value) }))
}

/// Opens a connection and asks for the version, which any memcached tells.
fn greet(address: SocketAddr) -> anyhow::Result<(TcpStream, String)> {
    let mut stream = dial(address)?;
    stream.write_all(b"version\r\n")?;
    let version = read_reply(&mut stream, address, |input| {
        let Some((_, start)) = resp::line(input)? else { return Ok(None) };
        match input[..start - 2].strip_prefix(b"VERSION ") {
            Some(version) => Ok(Some(String::from_utf8_lossy(version).into_owned())),
            None => anyhow::bail!("{address} does not tell its version as memcached does"),
        }
    })?;
    Ok((stream, version))
}

impl Connect for Memcached {
    fn topology(address: SocketAddr) -> anyhow::Result<Topology> {
        let (_, version) = greet(address)?;
        Ok(Topology { shards: 1, owners: None, server: format!("memcached {version}") })
    }

    fn open(address: SocketAddr, _shard: Option<u16>) -> anyhow::Result<(TcpStream, Memcached)> {
        Ok((greet(address)?.0, Memcached))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(input: &[u8]) -> Result<Option<(usize, String)>, WireError> {
        let reply = Memcached.decode(input)?;
        Ok(reply.map(|reply| match reply.body {
            Body::Value(value) => (reply.len, format!("value {}", value.escape_ascii())),
            other => (reply.len, format!("{other:?}")),
        }))
    }

    const STREAM: &[u8] = b"STORED\r\nEN\r\nVA 5\r\na\r\nbc\r\nVA 0\r\n\r\n\
        DELETED\r\nNOT_FOUND\r\nSERVER_ERROR object too large for cache\r\nERROR\r\nCLIENT_ERROR bad\r\n";
    const REPLIES: [&str; 9] = [
        "Done",
        "Missing",
        "value a\\r\\nbc",
        "value ",
        "Done",
        "Missing",
        "Refused(\"SERVER_ERROR object too large for cache\")",
        "Refused(\"ERROR\")",
        "Refused(\"CLIENT_ERROR bad\")",
    ];

    #[test]
    fn replies_are_decoded_however_the_reads_are_split() {
        for chunk in 1..STREAM.len() {
            let (mut buffer, mut seen) = (Vec::new(), Vec::new());
            for piece in STREAM.chunks(chunk) {
                buffer.extend_from_slice(piece);
                while let Some((len, text)) = decode(&buffer).unwrap() {
                    seen.push(text);
                    buffer.drain(..len);
                }
            }
            assert_eq!(seen, REPLIES, "in pieces of {chunk}");
            assert!(buffer.is_empty());
        }
    }

    #[test]
    fn what_is_no_reply_is_refused() {
        for input in [
            &b"+OK\r\n"[..],
            b"HTTP/1.1 400\r\n",
            b"VA\r\n",
            b"VA \r\n",
            b"VA x\r\n",
            b"VA -1\r\n",
            b"VA 99999999999\r\n",
            b"VA 1\r\nab\r\n",
            b"VALUE k 0 1\r\n",
            b"STORED\rX",
        ] {
            assert!(decode(input).is_err(), "{}", input.escape_ascii());
        }
    }

    #[test]
    fn random_bytes_never_panic() {
        let seed = 21;
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..50_000 {
            let len = rng.usize(..24);
            let mut input = b"VA ".to_vec();
            input.extend((0..len).map(|_| b"EN\r\n\r\n 01-9"[rng.usize(..11)]));
            let from = if rng.bool() { 0 } else { rng.usize(..input.len()) };
            if let Ok(Some((len, _))) = decode(&input[from..]) {
                assert!(len <= input.len() - from);
            }
        }
    }

    #[test]
    fn requests_are_lines_and_a_value() {
        let mut out = Vec::new();
        Memcached.encode(Op::Set { key: b"k", value: b"0123456789" }, 0, &mut out);
        Memcached.encode(Op::Get { key: b"k" }, 0, &mut out);
        Memcached.encode(Op::Del { key: b"k" }, 0, &mut out);
        let expected = "set k 0 0 10\r\n0123456789\r\nmg k v\r\ndelete k\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
