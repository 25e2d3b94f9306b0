//! Requests and replies → bytes, appended to a buffer that the caller reuses.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::decode::{ANY_SHARD, WireHello, WireHelloRequest, WireLifetime, WireRange};
use super::header::*;
use super::items::{Keys, WireValue};
use super::{clients, range, scan, transaction};
use crate::base::{KEY_BYTES_MAX, Lsn};
use crate::error::Refusal;
use crate::protocol::{Condition, Durability, Expiry, Hello, HelloRequest, OpCode, Reply, Request};

/// A length for the wire.
///
/// # Panics
/// If it does not fit: callers keep to the server's limits, which are below 2^32.
#[inline]
fn len_u32(len: usize) -> U32 {
    U32::new(u32::try_from(len).expect("lengths are within the server's limits"))
}

#[inline]
fn key_len_u16(key: &[u8]) -> U16 {
    U16::new(u16::try_from(key.len()).expect("key lengths are within the server's limits"))
}

/// What a request's header says besides the lengths.
#[derive(Default)]
struct Options {
    condition: Condition,
    durability: Durability,
    expiry: Expiry,
}

#[inline]
fn push_request(
    out: &mut Vec<u8>,
    opcode: OpCode,
    request_id: u64,
    key: &[u8],
    value_len: usize,
    options: Options,
) {
    let version = match options.condition {
        Condition::IfVersion(version) => version,
        Condition::None | Condition::IfAbsent | Condition::IfPresent => Lsn::ZERO,
    };
    let (flags, expiry_ms) = wire_expiry(options.expiry);
    let header = WireHeader {
        magic: REQUEST_MAGIC,
        version: VERSION,
        opcode: opcode as u8,
        flags: U16::new(flags),
        status: U16::ZERO,
        request_id: U64::new(request_id),
        value_len: len_u32(value_len),
        key_len: key_len_u16(key),
        durability: options.durability as u8,
        condition: options.condition.number(),
        lsn: U64::new(version.0),
        expiry_or_epoch: U64::new(expiry_ms),
    };
    out.reserve(HEADER_BYTES + key.len() + value_len);
    out.extend_from_slice(header.as_bytes());
    out.extend_from_slice(key);
}

/// Appends a request.
///
/// # Panics
/// If a key, value or list is too long for its length field. Whether the server takes it is for its
/// limits to say; the caller has compared them.
pub fn encode_request(out: &mut Vec<u8>, request_id: u64, request: &Request<'_>) {
    let opcode = request.opcode();
    let plain = Options::default();
    match *request {
        Request::Hello(hello) => {
            let wire = wire_hello_request(&hello);
            push_request(out, opcode, request_id, &[], size_of_val(&wire), plain);
            out.extend_from_slice(wire.as_bytes());
        }
        Request::Ping { payload } => {
            push_request(out, opcode, request_id, &[], payload.len(), plain);
            out.extend_from_slice(payload);
        }
        Request::Get { key } | Request::Ttl { key } => push_request(out, opcode, request_id, key, 0, plain),
        Request::Set { key, value, expiry, condition, durability } => {
            let options = Options { condition, durability, expiry };
            push_request(out, opcode, request_id, key, value.len(), options);
            out.extend_from_slice(value);
        }
        Request::Delete { key, condition, durability } | Request::Persist { key, condition, durability } => {
            push_request(out, opcode, request_id, key, 0, Options { condition, durability, ..plain });
        }
        Request::Mget { keys } => {
            push_request(out, opcode, request_id, &[], 4 + keys.wire_bytes().len(), plain);
            push_list(out, keys.len(), keys.wire_bytes());
        }
        Request::Batch { ops, durability } => {
            let options = Options { durability, ..plain };
            push_request(out, opcode, request_id, &[], 4 + ops.wire_bytes().len(), options);
            push_list(out, ops.len(), ops.wire_bytes());
        }
        Request::Incr { key, amount, durability } => {
            push_request(out, opcode, request_id, key, 8, Options { durability, ..plain });
            out.extend_from_slice(&amount.to_le_bytes());
        }
        Request::Expire { key, deadline, condition, durability } => {
            let options = Options { condition, durability, expiry: Expiry::Set(deadline) };
            push_request(out, opcode, request_id, key, 0, options);
        }
        Request::Stats { section } => push_request(out, opcode, request_id, section.as_bytes(), 0, plain),
        Request::Checkpoint { dir } => push_request(out, opcode, request_id, dir.as_bytes(), 0, plain),
        Request::Tablets { command } => push_request(out, opcode, request_id, command.as_bytes(), 0, plain),
        Request::Clients(ref request) => {
            push_request(out, opcode, request_id, &[], clients::request_len(request), plain);
            clients::encode_request(out, request);
        }
        Request::DeleteRange(ref range) => {
            let options = Options { durability: range.durability, ..plain };
            push_request(out, opcode, request_id, &[], range::request_len(range), options);
            range::encode_request(out, range);
        }
        Request::Transact(ref request) => {
            let options = Options { durability: request.durability, ..plain };
            let len = transaction::request_len(request);
            push_request(out, opcode, request_id, request.key, len, options);
            transaction::encode_request(out, request);
        }
        Request::Scan(ref request) => {
            push_request(out, opcode, request_id, &[], scan::request_len(request), plain);
            scan::encode_request(out, request);
        }
    }
}

fn wire_hello_request(hello: &HelloRequest) -> WireHelloRequest {
    WireHelloRequest {
        version_min: hello.version_min,
        version_max: hello.version_max,
        shard: U16::new(hello.shard.unwrap_or(ANY_SHARD)),
        reserved: U32::ZERO,
    }
}

fn push_list(out: &mut Vec<u8>, count: usize, items: &[u8]) {
    out.extend_from_slice(len_u32(count).as_bytes());
    out.extend_from_slice(items);
}

#[inline]
pub(super) fn push_reply(
    out: &mut Vec<u8>,
    opcode: u8,
    request_id: u64,
    epoch: u64,
    status: Status,
    version: Lsn,
    value_len: usize,
) {
    let header = WireHeader {
        magic: REPLY_MAGIC,
        version: VERSION,
        opcode,
        flags: U16::ZERO,
        status: U16::new(status.number()),
        request_id: U64::new(request_id),
        value_len: len_u32(value_len),
        key_len: U16::ZERO,
        durability: 0,
        condition: 0,
        lsn: U64::new(version.0),
        expiry_or_epoch: U64::new(epoch & u64::from(u32::MAX)),
    };
    out.reserve(HEADER_BYTES + value_len);
    out.extend_from_slice(header.as_bytes());
}

/// Appends a reply to the request with this operation and id. Of `epoch` the low half is sent.
///
/// # Panics
/// If a value is too long for its length field.
#[inline]
pub fn encode_reply(out: &mut Vec<u8>, opcode: OpCode, request_id: u64, epoch: u64, reply: &Reply<'_>) {
    let mut push = |status, version, value: &[u8]| {
        push_reply(out, opcode as u8, request_id, epoch, status, version, value.len());
        out.extend_from_slice(value);
    };
    match reply {
        Reply::Value { version, value } => push(Status::Done, *version, value),
        Reply::Written { version } => push(Status::Done, *version, &[]),
        Reply::Absent => push(Status::Absent, Lsn::ZERO, &[]),
        Reply::ConditionFailed { current } => {
            push(Status::ConditionFailed, current.unwrap_or(Lsn::ZERO), &[]);
        }
        Reply::BatchFailed { item, current } => {
            push(Status::ConditionFailed, current.unwrap_or(Lsn::ZERO), &item.to_le_bytes());
        }
        Reply::Counter { version, value } => push(Status::Done, *version, &value.to_le_bytes()),
        Reply::Lifetime { version, lifetime: None } => push(Status::Done, *version, &[]),
        Reply::Lifetime { version, lifetime: Some(lifetime) } => {
            let wire = WireLifetime {
                remaining_ms: U64::new(lifetime.remaining_ms),
                expires_at_ms: U64::new(lifetime.expires_at_ms),
            };
            push(Status::Done, *version, wire.as_bytes());
        }
        Reply::Pong(payload) => push(Status::Done, Lsn::ZERO, payload),
        Reply::Resp(replies) => push(Status::Done, Lsn::ZERO, replies),
        Reply::Done => push(Status::Done, Lsn::ZERO, &[]),
        Reply::Stats(text) => push(Status::Done, Lsn::ZERO, text.as_bytes()),
        Reply::Values(values) => {
            let value_len = 4 + values.wire_bytes().len();
            push_reply(out, opcode as u8, request_id, epoch, Status::Done, Lsn::ZERO, value_len);
            push_list(out, values.len(), values.wire_bytes());
        }
        Reply::Hello(hello) => push_hello(out, request_id, epoch, hello),
        Reply::Page(page) => scan::encode_page(out, request_id, epoch, page),
        Reply::Refused(refusal) => encode_refusal(out, opcode as u8, request_id, epoch, refusal),
    }
}

/// Appends the beginning of the reply to a GET that finds a value of `value_len` bytes, which are to follow.
///
/// # Panics
/// If that is too long for the length field.
pub fn begin_value(out: &mut Vec<u8>, request_id: u64, epoch: u64, version: Lsn, value_len: usize) {
    push_reply(out, OpCode::Get as u8, request_id, epoch, Status::Done, version, value_len);
}

/// Appends a refusal of a request whose operation may not be known; with id 0, of the connection.
#[cold]
pub fn encode_refusal(out: &mut Vec<u8>, opcode: u8, request_id: u64, epoch: u64, refusal: &Refusal) {
    let message = &refusal.message[..refusal.message.floor_char_boundary(Refusal::MESSAGE_BYTES_MAX)];
    push_reply(out, opcode, request_id, epoch, Status::Refused(refusal.code), Lsn::ZERO, message.len());
    out.extend_from_slice(message.as_bytes());
}

fn push_hello(out: &mut Vec<u8>, request_id: u64, epoch: u64, hello: &Hello) {
    let limits = &hello.limits;
    let range_count = u16::try_from(hello.ranges.len()).expect("there are fewer ranges than slots");
    let wire = WireHello {
        version: hello.version,
        reserved: 0,
        shard_count: U16::new(hello.shard_count),
        shard: U16::new(hello.shard),
        range_count: U16::new(range_count),
        epoch: U64::new(hello.epoch),
        key_bytes_max: U32::new(limits.key_bytes_max),
        value_bytes_max: U32::new(limits.value_bytes_max),
        batch_bytes_max: U32::new(limits.batch_bytes_max),
        items_max: U32::new(limits.items_max),
        frame_bytes_max: U32::new(limits.frame_bytes_max),
        pipeline_bytes_max: U32::new(limits.pipeline_bytes_max),
    };
    let value_len = size_of_val(&wire) + hello.ranges.len() * size_of::<WireRange>();
    push_reply(out, OpCode::Hello as u8, request_id, epoch, Status::Done, Lsn::ZERO, value_len);
    out.extend_from_slice(wire.as_bytes());
    for range in &hello.ranges {
        let wire = WireRange {
            first: U16::new(range.slots.first()),
            last: U16::new(range.slots.last()),
            shard: U16::new(range.shard),
            reserved: U16::ZERO,
        };
        out.extend_from_slice(wire.as_bytes());
    }
}

/// The keys of an MGET in the making.
#[derive(Clone, Debug, Default)]
pub struct KeyList {
    count: usize,
    bytes: Vec<u8>,
}

impl KeyList {
    /// Adds a key.
    ///
    /// # Panics
    /// If it is empty or longer than a key can be; the caller has looked.
    pub fn push(&mut self, key: &[u8]) {
        assert!(!key.is_empty() && key.len() <= KEY_BYTES_MAX, "key length checked by the caller");
        self.bytes.extend_from_slice(key_len_u16(key).as_bytes());
        self.bytes.extend_from_slice(key);
        self.count += 1;
    }

    /// How many keys.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none; such a list is refused by the server.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The list as [`Request::Mget`] takes it.
    pub fn keys(&self) -> Keys<'_> {
        Keys::of_written(self.count, &self.bytes)
    }

    /// Removes all keys, keeping the buffer.
    pub fn clear(&mut self) {
        self.count = 0;
        self.bytes.clear();
    }
}

/// Appends the reply to an MGET value by value, so that values are copied once, from where they are kept
/// to the connection's buffer.
pub struct ValueListEncoder<'a> {
    out: &'a mut Vec<u8>,
    start: usize,
    count: u32,
}

impl<'a> ValueListEncoder<'a> {
    /// Starts the reply.
    pub fn begin(out: &'a mut Vec<u8>, request_id: u64, epoch: u64) -> ValueListEncoder<'a> {
        let start = out.len();
        push_reply(out, OpCode::Mget as u8, request_id, epoch, Status::Done, Lsn::ZERO, 4);
        out.extend_from_slice(U32::ZERO.as_bytes());
        ValueListEncoder { out, start, count: 0 }
    }

    /// Goes on with the reply that `out` holds, to which `count` keys were added.
    pub fn go_on(out: &'a mut Vec<u8>, count: u32) -> ValueListEncoder<'a> {
        ValueListEncoder { out, start: 0, count }
    }

    /// Bytes of the frame so far.
    pub fn frame_bytes(&self) -> usize {
        self.out.len() - self.start
    }

    /// Bytes of the frame as it would be with one more value of `value_len` bytes, to be compared with
    /// the limit before it is pushed.
    pub fn frame_bytes_with(&self, value_len: usize) -> usize {
        self.frame_bytes() + size_of::<WireValue>() + value_len
    }

    /// The next key's value and version.
    ///
    /// # Panics
    /// If the value is 4 GiB long, or the version is 0.
    pub fn present(&mut self, version: Lsn, value: &[u8]) {
        assert_ne!(version, Lsn::ZERO, "a value has a version");
        self.push(1, version, value);
    }

    /// The next key has no value.
    pub fn absent(&mut self) {
        self.push(0, Lsn::ZERO, &[]);
    }

    fn push(&mut self, present: u8, version: Lsn, value: &[u8]) {
        let wire = WireValue {
            present,
            reserved: [0; 3],
            value_len: len_u32(value.len()),
            version: U64::new(version.0),
        };
        self.out.extend_from_slice(wire.as_bytes());
        self.out.extend_from_slice(value);
        self.count += 1;
    }

    /// Completes the reply.
    ///
    /// # Panics
    /// If the frame is 4 GiB long: [`Self::frame_bytes_with`] tells in time.
    pub fn finish(self) {
        let value_at = self.start + HEADER_BYTES;
        let value_len = len_u32(self.out.len() - value_at);
        let len_at = self.start + std::mem::offset_of!(WireHeader, value_len);
        self.out[len_at..len_at + 4].copy_from_slice(value_len.as_bytes());
        self.out[value_at..value_at + 4].copy_from_slice(U32::new(self.count).as_bytes());
    }

    /// Takes everything back, for instance to refuse the request instead.
    pub fn abandon(self) {
        self.out.truncate(self.start);
    }
}
