//! RESP2, as much of it as GET, SET, DEL, INCRBY and MGET need.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use super::{Body, Connect, Op, REPLY_BYTES_MAX, Reply, Topology, Values, Wire, WireError, dial, read_reply};

/// Longest line (`+…`, `-…`, `:…`, or a length) before its end of line.
const LINE_BYTES_MAX: usize = 64 << 10;

/// Redis and everything that speaks its protocol.
#[derive(Debug, Default)]
pub struct Resp;

impl Wire for Resp {
    const IN_ORDER: bool = true;

    fn encode(&mut self, op: Op<'_>, _id: u32, out: &mut Vec<u8>) {
        match op {
            Op::Get { key } => {
                out.extend_from_slice(b"*2\r\n$3\r\nGET\r\n");
                bulk(key, out);
            }
            Op::Set { key, value } => {
                out.extend_from_slice(b"*3\r\n$3\r\nSET\r\n");
                bulk(key, out);
                bulk(value, out);
            }
            Op::Del { key } => {
                out.extend_from_slice(b"*2\r\n$3\r\nDEL\r\n");
                bulk(key, out);
            }
            Op::Incr { key, by } => {
                out.extend_from_slice(b"*3\r\n$6\r\nINCRBY\r\n");
                bulk(key, out);
                bulk(by.to_string().as_bytes(), out);
            }
            Op::Scan { .. } => unreachable!("refused with the arguments: there is no such command"),
            Op::MGet { keys, key_size } => {
                prefixed(b'*', keys.len() / key_size + 1, out);
                out.extend_from_slice(b"$4\r\nMGET\r\n");
                for key in keys.chunks_exact(key_size) {
                    bulk(key, out);
                }
            }
        }
    }

    #[inline]
    fn decode<'a>(&mut self, input: &'a [u8]) -> Result<Option<Reply<'a>>, WireError> {
        let Some(&kind) = input.first() else { return Ok(None) };
        let Some((line, start)) = line(input)? else { return Ok(None) };
        let reply = |len, body| Ok(Some(Reply { len, id: None, body }));
        match kind {
            b'+' => reply(start, Body::Done),
            b'-' => reply(start, Body::Refused(String::from_utf8_lossy(line))),
            b':' => reply(start, Body::Number(number(line)?)),
            b'$' => match bulk_len(line)? {
                None => reply(start, Body::Missing),
                Some(len) => match bulk_at(input, start, len)? {
                    None => Ok(None),
                    Some(value) => reply(start + len + 2, Body::Value(value)),
                },
            },
            b'*' => many(input, line, start),
            b'_' => reply(start, Body::Missing),
            other => Err(WireError(format!(
                "a reply begins with {:?}, which no RESP2 reply does; is this a Redis server?",
                char::from(other)
            ))),
        }
    }
}

/// Checks an array of bulk strings to its end.
fn many<'a>(input: &'a [u8], line: &[u8], start: usize) -> Result<Option<Reply<'a>>, WireError> {
    let Some(count) = bulk_len(line)? else {
        return Ok(Some(Reply { len: start, id: None, body: Body::Missing }));
    };
    let mut at = start;
    for _ in 0..count {
        let Some(&kind) = input.get(at) else { return Ok(None) };
        if kind != b'$' {
            return Err(WireError(format!("an array holds a {:?}, expected strings", char::from(kind))));
        }
        let Some((head, len)) = self::line(&input[at..])? else { return Ok(None) };
        at += len;
        if let Some(len) = bulk_len(head)? {
            if bulk_at(input, at, len)?.is_none() {
                return Ok(None);
            }
            at += len + 2;
        }
    }
    let bulks = Bulks { rest: &input[start..at], count };
    Ok(Some(Reply { len: at, id: None, body: Body::Many(Values::Resp(bulks)) }))
}

/// The strings of an array that [`many`] has checked.
#[derive(Clone, Debug)]
pub struct Bulks<'a> {
    rest: &'a [u8],
    count: usize,
}

impl Bulks<'_> {
    /// How many are left.
    pub fn len(&self) -> usize {
        self.count
    }
}

impl<'a> Iterator for Bulks<'a> {
    type Item = Option<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        self.count = self.count.checked_sub(1)?;
        Some(take_bulk(&mut self.rest))
    }
}

/// One string off the front of the inside of an array that [`many`] has checked.
fn take_bulk<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (head, start) = line(rest).ok()??;
    let Some(len) = bulk_len(head).ok()? else {
        *rest = &rest[start..];
        return None;
    };
    let value = &rest[start..start + len];
    *rest = &rest[start + len + 2..];
    Some(value)
}

/// What is between the first byte and the end of the line, and where the next line starts.
#[inline]
pub(super) fn line(input: &[u8]) -> Result<Option<(&[u8], usize)>, WireError> {
    let Some(end) = input.iter().position(|&byte| byte == b'\r') else {
        if input.len() > LINE_BYTES_MAX {
            return Err(WireError(format!("a reply's line has no end within {LINE_BYTES_MAX} bytes")));
        }
        return Ok(None);
    };
    match input.get(end + 1) {
        _ if end == 0 => Err(WireError("a reply begins with a carriage return".into())),
        None => Ok(None),
        Some(b'\n') => Ok(Some((&input[1..end], end + 2))),
        Some(_) => Err(WireError("a carriage return without a line feed in a reply".into())),
    }
}

/// The string of `len` bytes at `start`, if it and its end of line are there.
#[inline]
pub(super) fn bulk_at(input: &[u8], start: usize, len: usize) -> Result<Option<&[u8]>, WireError> {
    match input.get(start + len..start + len + 2) {
        None => Ok(None),
        Some(b"\r\n") => Ok(Some(&input[start..start + len])),
        Some(_) => Err(WireError(format!("a string of {len} bytes does not end where its length says"))),
    }
}

/// A length, `None` for the -1 that means nil.
#[inline]
fn bulk_len(line: &[u8]) -> Result<Option<usize>, WireError> {
    match number(line)? {
        -1 => Ok(None),
        len => match usize::try_from(len) {
            Ok(len) if len <= REPLY_BYTES_MAX => Ok(Some(len)),
            _ => Err(WireError(format!("a reply claims a length of {len}"))),
        },
    }
}

#[inline]
pub(super) fn number(line: &[u8]) -> Result<i64, WireError> {
    let (negative, digits) = match line {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    let bad = || WireError(format!("{:?} is not a number", line.escape_ascii().to_string()));
    if digits.is_empty() {
        return Err(bad());
    }
    // Downwards, because the least number has no positive counterpart.
    let mut value = 0i64;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return Err(bad());
        }
        let digit = i64::from(digit - b'0');
        value = value.checked_mul(10).and_then(|v| v.checked_sub(digit)).ok_or_else(bad)?;
    }
    if negative { Ok(value) } else { value.checked_neg().ok_or_else(bad) }
}

fn bulk(bytes: &[u8], out: &mut Vec<u8>) {
    prefixed(b'$', bytes.len(), out);
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

fn prefixed(kind: u8, len: usize, out: &mut Vec<u8>) {
    // One less than 1e20, the first number with 21 digits, is more than a length can be.
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = len;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.push(kind);
    out.extend_from_slice(&digits[at..]);
    out.extend_from_slice(b"\r\n");
}

impl Connect for Resp {
    fn topology(address: SocketAddr) -> anyhow::Result<Topology> {
        Resp::open(address, None)?;
        // Cluster nodes are not followed: one address is one shard.
        Ok(Topology { shards: 1, owners: None, server: "RESP2".into() })
    }

    fn open(address: SocketAddr, _shard: Option<u16>) -> anyhow::Result<(TcpStream, Resp)> {
        let mut stream = dial(address)?;
        stream.write_all(b"*1\r\n$4\r\nPING\r\n")?;
        read_reply(&mut stream, address, |input| match Resp.decode(input)? {
            None => Ok(None),
            Some(Reply { body: Body::Done, .. }) => Ok(Some(())),
            Some(Reply { body: Body::Refused(text), .. }) => {
                anyhow::bail!("{address} answers PING with: {text}")
            }
            Some(_) => anyhow::bail!("{address} does not answer PING as a Redis server does"),
        })?;
        Ok((stream, Resp))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(input: &[u8]) -> Result<Option<(usize, String)>, WireError> {
        let reply = Resp.decode(input)?;
        Ok(reply.map(|reply| {
            let text = match reply.body {
                Body::Many(values) => {
                    let values: Vec<_> = values.map(|v| v.map(|v| v.escape_ascii().to_string())).collect();
                    format!("{values:?}")
                }
                Body::Value(value) => format!("value {}", value.escape_ascii()),
                other => format!("{other:?}"),
            };
            (reply.len, text)
        }))
    }

    const STREAM: &[u8] =
        b"+OK\r\n-ERR no\r\n:42\r\n:-9223372036854775808\r\n$-1\r\n$0\r\n\r\n$5\r\na\r\nbc\r\n\
        *3\r\n$1\r\nx\r\n$-1\r\n$2\r\nyz\r\n*0\r\n*-1\r\n";
    const REPLIES: [&str; 10] = [
        "Done",
        "Refused(\"ERR no\")",
        "Number(42)",
        "Number(-9223372036854775808)",
        "Missing",
        "value ",
        "value a\\r\\nbc",
        "[Some(\"x\"), None, Some(\"yz\")]",
        "[]",
        "Missing",
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
            &b"HTTP/1.1 400\r\n"[..],
            b"$x\r\n",
            b"$\r\n",
            b":1-\r\n",
            b"$-2\r\n",
            b"$99999999999\r\n",
            b":9223372036854775808\r\n",
            b"$1\r\nab\r\n",
            b"+a\rb\n",
            b"*1\r\n:1\r\n",
        ] {
            assert!(decode(input).is_err(), "{}", input.escape_ascii());
        }
        let endless = [b'+'; LINE_BYTES_MAX + 1];
        assert!(decode(&endless).is_err());
        assert_eq!(decode(&endless[1..]).unwrap(), None);
    }

    #[test]
    fn random_bytes_never_panic() {
        let seed = 21;
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..50_000 {
            let len = rng.usize(..24);
            let input: Vec<u8> = (0..len).map(|_| b"*$:+-\r\n01293ab"[rng.usize(..14)]).collect();
            if let Ok(Some((len, _))) = decode(&input) {
                assert!(len <= input.len());
            }
        }
    }

    #[test]
    fn requests_are_arrays_of_strings() {
        let mut out = Vec::new();
        Resp.encode(Op::Set { key: b"k", value: b"0123456789" }, 0, &mut out);
        Resp.encode(Op::Incr { key: b"k", by: -5 }, 0, &mut out);
        Resp.encode(Op::MGet { keys: b"aabb", key_size: 2 }, 0, &mut out);
        let expected = "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$10\r\n0123456789\r\n\
            *3\r\n$6\r\nINCRBY\r\n$1\r\nk\r\n$2\r\n-5\r\n\
            *3\r\n$4\r\nMGET\r\n$2\r\naa\r\n$2\r\nbb\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
