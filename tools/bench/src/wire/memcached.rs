//! memcached's text protocol, as much of it as get, set and delete of one key need.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use super::{Body, Connect, Op, REPLY_BYTES_MAX, Reply, Topology, Wire, WireError, dial, read_reply, resp};

/// Longest key that the protocol has.
pub const KEY_BYTES_MAX: usize = 250;

/// What ends the answer to a get.
const END: &[u8] = b"END\r\n";

/// memcached.
#[derive(Debug, Default)]
pub struct Memcached;

impl Wire for Memcached {
    const IN_ORDER: bool = true;

    fn encode(&mut self, op: Op<'_>, _id: u32, out: &mut Vec<u8>) {
        match op {
            Op::Get { key } => {
                out.extend_from_slice(b"get ");
                out.extend_from_slice(key);
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
            b"END" | b"NOT_FOUND" => reply(Body::Missing),
            _ if line.starts_with(b"VALUE ") => value(input, line, start),
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

/// `VALUE key flags length`, the value, and the end of the answer.
#[inline]
fn value<'a>(input: &'a [u8], line: &[u8], start: usize) -> Result<Option<Reply<'a>>, WireError> {
    let digits = line.split(|&byte| byte == b' ').nth(3).unwrap_or_default();
    let claimed = resp::number(digits)?;
    let len = usize::try_from(claimed).ok().filter(|&len| len <= REPLY_BYTES_MAX);
    let len = len.ok_or_else(|| WireError(format!("a reply claims a length of {claimed}")))?;
    let Some(value) = resp::bulk_at(input, start, len)? else { return Ok(None) };
    let end = start + len + 2;
    match input.get(end..end + END.len()) {
        None => Ok(None),
        Some(END) => Ok(Some(Reply { len: end + END.len(), id: None, body: Body::Value(value) })),
        Some(_) => Err(WireError("a get of one key is answered with more than one value".into())),
    }
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

    const STREAM: &[u8] = b"STORED\r\nEND\r\nVALUE k 0 5\r\na\r\nbc\r\nEND\r\nVALUE key 0 0\r\n\r\nEND\r\n\
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
            b"VALUE k 0\r\n",
            b"VALUE k 0 x\r\n",
            b"VALUE k 0 -1\r\n",
            b"VALUE k 0 99999999999\r\n",
            b"VALUE k 0 1\r\nab\r\n",
            b"VALUE k 0 1\r\na\r\nVALUE j 0 1\r\nb\r\nEND\r\n",
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
            let mut input = b"VALUE k 0 ".to_vec();
            input.extend((0..len).map(|_| b"END\r\n\r\n 0129"[rng.usize(..12)]));
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
        let expected = "set k 0 0 10\r\n0123456789\r\nget k\r\ndelete k\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
