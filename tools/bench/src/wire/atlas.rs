//! AtlasKV's binary protocol, by the library's own encoder and decoder.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use anyhow::{bail, ensure};
use atlaskv::protocol::binary::{self, KeyList};
use atlaskv::protocol::{
    Condition, Durability, Expiry, Hello, HelloRequest, Limits, Reply as AtlasReply, Request, ScanRequest,
};
use atlaskv::slot::{SLOT_COUNT, Slot};

use super::{Body, Connect, Op, Reply, Topology, Values, Wire, WireError, dial, read_reply};

/// A connection that has been greeted.
#[derive(Debug)]
pub struct Atlas {
    frame_bytes_max: u32,
    keys: KeyList,
}

/// Request ids are numbers of requests in flight and one, since 0 is none.
fn request_id(number: u32) -> u64 {
    u64::from(number) + 1
}

fn number(request_id: u64) -> Option<u32> {
    request_id.checked_sub(1)?.try_into().ok()
}

impl Wire for Atlas {
    const IN_ORDER: bool = false;

    #[inline]
    fn encode(&mut self, op: Op<'_>, id: u32, out: &mut Vec<u8>) {
        let (condition, durability) = (Condition::None, Durability::Default);
        let request = match op {
            Op::Get { key } => Request::Get { key },
            Op::Set { key, value } => {
                Request::Set { key, value, expiry: Expiry::Never, condition, durability }
            }
            Op::Del { key } => Request::Delete { key, condition, durability },
            Op::Incr { key, by } => Request::Incr { key, amount: by, durability },
            Op::MGet { keys, key_size } => {
                self.keys.clear();
                keys.chunks_exact(key_size).for_each(|key| self.keys.push(key));
                Request::Mget { keys: self.keys.keys() }
            }
            Op::Scan { start, end, limit } => {
                Request::Scan(ScanRequest { start, end, limit: u64::from(limit), ..ScanRequest::default() })
            }
        };
        binary::encode_request(out, request_id(id), &request);
    }

    #[inline]
    fn decode<'a>(&mut self, input: &'a [u8]) -> Result<Option<Reply<'a>>, WireError> {
        let Some(header) = binary::decode_reply_header(input, self.frame_bytes_max).map_err(wire_error)?
        else {
            return Ok(None);
        };
        let len = header.frame_bytes();
        let Some(value) = input.get(binary::HEADER_BYTES..len) else { return Ok(None) };
        let body = match binary::decode_reply(&header, value).map_err(wire_error)? {
            AtlasReply::Value { value, .. } => Body::Value(value),
            AtlasReply::Absent => Body::Missing,
            AtlasReply::Written { .. } => Body::Done,
            AtlasReply::Counter { value, .. } => Body::Number(value),
            AtlasReply::Page(page) => Body::Entries(page.entries.len() as u32),
            AtlasReply::Values(values) => Body::Many(Values::Atlas(values)),
            AtlasReply::Refused(refusal) if header.request_id == 0 => {
                return Err(WireError(format!("the server gave up the connection: {refusal}")));
            }
            AtlasReply::Refused(refusal) => Body::Refused(format!("{}: {refusal}", refusal.code).into()),
            other => return Err(WireError(format!("an answer that nobody asked for: {other:?}"))),
        };
        let id = number(header.request_id).ok_or_else(|| {
            WireError(format!("an answer to request {}, which was never sent", header.request_id))
        })?;
        Ok(Some(Reply { len, id: Some(id), body }))
    }
}

fn wire_error(error: binary::ReplyError) -> WireError {
    WireError(error.to_string())
}

impl Connect for Atlas {
    fn topology(address: SocketAddr) -> anyhow::Result<Topology> {
        let (_, hello) = greet(address, None)?;
        let shards = usize::from(hello.shard_count);
        let owners = (shards > 1).then(|| {
            // A slot without an owner is moving; any connection will do for it.
            (0..SLOT_COUNT).map(|n| Slot::new(n).and_then(|slot| hello.shard_of(slot)).unwrap_or(0)).collect()
        });
        Ok(Topology { shards, owners, server: format!("AtlasKV protocol {}", hello.version) })
    }

    fn open(address: SocketAddr, shard: Option<u16>) -> anyhow::Result<(TcpStream, Atlas)> {
        let (stream, hello) = greet(address, shard)?;
        if let Some(wanted) = shard {
            ensure!(
                hello.shard == wanted,
                "{address} put a connection for shard {wanted} on shard {}; try --shard-aware off",
                hello.shard
            );
        }
        Ok((stream, Atlas { frame_bytes_max: hello.limits.frame_bytes_max, keys: KeyList::default() }))
    }
}

fn greet(address: SocketAddr, shard: Option<u16>) -> anyhow::Result<(TcpStream, Hello)> {
    let mut stream = dial(address)?;
    let request = HelloRequest { version_min: binary::VERSION, version_max: binary::VERSION, shard };
    let mut out = Vec::new();
    binary::encode_request(&mut out, 1, &Request::Hello(request));
    stream.write_all(&out)?;
    let hello = read_reply(&mut stream, address, |input| {
        let Some(header) = binary::decode_reply_header(input, Limits::FRAME_BYTES_LIMIT)? else {
            return Ok(None);
        };
        let Some(value) = input.get(binary::HEADER_BYTES..header.frame_bytes()) else { return Ok(None) };
        match binary::decode_reply(&header, value)? {
            AtlasReply::Hello(hello) => Ok(Some(hello)),
            AtlasReply::Refused(refusal) => bail!("{address} refuses the connection: {refusal}"),
            other => bail!("{address} answers HELLO with {other:?}"),
        }
    })?;
    Ok((stream, hello))
}

#[cfg(test)]
mod tests {
    use atlaskv::base::Lsn;
    use atlaskv::error::{Code, Refusal};
    use atlaskv::protocol::OpCode;

    use super::*;

    fn atlas() -> Atlas {
        Atlas { frame_bytes_max: 1 << 20, keys: KeyList::default() }
    }

    #[test]
    fn replies_are_decoded_however_the_reads_are_split() {
        let mut stream = Vec::new();
        let version = Lsn(5);
        let replies = [
            (OpCode::Get, AtlasReply::Value { version, value: b"some value" }),
            (OpCode::Get, AtlasReply::Absent),
            (OpCode::Set, AtlasReply::Written { version }),
            (OpCode::Incr, AtlasReply::Counter { version, value: -3 }),
            (OpCode::Set, AtlasReply::Refused(Refusal::new(Code::DiskFull, "no room"))),
        ];
        for (number, (opcode, reply)) in replies.iter().enumerate() {
            binary::encode_reply(&mut stream, *opcode, request_id(number as u32 + 70), 1, reply);
        }
        for chunk in 1..stream.len() {
            let (mut buffer, mut seen) = (Vec::new(), Vec::new());
            for piece in stream.chunks(chunk) {
                buffer.extend_from_slice(piece);
                while let Some(Reply { len, id, body }) = atlas().decode(&buffer).unwrap() {
                    seen.push((id, format!("{body:?}")));
                    buffer.drain(..len);
                }
            }
            assert_eq!(seen.len(), replies.len(), "in pieces of {chunk}");
            assert!(seen.iter().zip(70..).all(|((id, _), wanted)| *id == Some(wanted)));
            assert_eq!(seen[1].1, "Missing");
            assert_eq!(seen[4].1, "Refused(\"disk-full: no room\")");
        }
    }

    #[test]
    fn a_refusal_of_the_connection_and_foreign_bytes_end_it() {
        let mut stream = Vec::new();
        let refusal = Refusal::new(Code::ShuttingDown, "the end");
        binary::encode_refusal(&mut stream, 0, 0, 1, &refusal);
        assert!(atlas().decode(&stream).unwrap_err().0.contains("the end"));
        let turned_away = atlas().decode(binary::TOO_MANY_CONNECTIONS).unwrap_err().0;
        assert!(turned_away.contains("as many connections as it takes"), "{turned_away}");
        assert!(atlas().decode(b"+PONG\r\n").is_err());
    }
}
