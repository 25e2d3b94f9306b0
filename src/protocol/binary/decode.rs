//! Bytes → requests and replies. Nothing here allocates before lengths are within limits, and nothing
//! panics on any bytes.

use zerocopy::FromBytes;
use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{Immutable, IntoBytes, KnownLayout, Unaligned};

use super::header::*;
use super::items::{Keys, ListError, Values};
use super::ops::decode_ops;
use super::{clients, range, scan, transaction};
use crate::base::{EXPIRY_MS_MAX, Lsn};
use crate::error::{Code, Refusal};
use crate::protocol::{
    BGSAVE, Condition, Deadline, Durability, Expiry, Hello, HelloRequest, Lifetime, Limits, OpCode, Reply,
    Request, SAVE, ShardRange,
};
use crate::slot::SlotRange;

/// A frame that is refused by its header.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The stream is in step: send the refusal, skip the frame, go on with the next.
    #[error("{refusal}")]
    Refused {
        /// To be repeated in the reply.
        request_id: u64,
        /// To be repeated in the reply, whether it is known or not.
        opcode: u8,
        /// Bytes of the whole frame with its header, within the limit. They may not have arrived yet,
        /// and need not be kept.
        frame_bytes: usize,
        /// What to answer.
        refusal: Refusal,
    },
    /// Where the next frame starts is unknown, or too far away: send the refusal and close.
    #[error("{refusal}")]
    OutOfStep {
        /// To be repeated in the reply; 0 if this is no header at all.
        request_id: u64,
        /// To be repeated in the reply; 0 if this is no header at all.
        opcode: u8,
        /// What to answer.
        refusal: Refusal,
    },
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct WireHelloRequest {
    pub version_min: u8,
    pub version_max: u8,
    pub shard: U16,
    pub reserved: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct WireHello {
    pub version: u8,
    pub reserved: u8,
    pub shard_count: U16,
    pub shard: U16,
    pub range_count: U16,
    pub epoch: U64,
    pub key_bytes_max: U32,
    pub value_bytes_max: U32,
    pub batch_bytes_max: U32,
    pub items_max: U32,
    pub frame_bytes_max: U32,
    pub pipeline_bytes_max: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct WireRange {
    pub first: U16,
    pub last: U16,
    pub shard: U16,
    pub reserved: U16,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct WireLifetime {
    pub remaining_ms: U64,
    pub expires_at_ms: U64,
}

const _: () = assert!(size_of::<WireLifetime>() == 16);
const _: () = assert!(size_of::<WireHelloRequest>() == 8);
const _: () = assert!(size_of::<WireHello>() == 40);
const _: () = assert!(size_of::<WireRange>() == 8);

/// "Any" in HELLO's shard.
pub(super) const ANY_SHARD: u16 = u16::MAX;

/// Reads the header of the request at the start of `bytes`. `None`: more bytes are needed to tell. A
/// wrong magic or version is told as soon as its byte is there.
#[inline]
pub fn decode_header(bytes: &[u8], limits: &Limits) -> Result<Option<FrameHeader>, FrameError> {
    let Ok((wire, _)) = WireHeader::ref_from_prefix(bytes) else {
        return check_start(bytes).map(|()| None);
    };
    if wire.magic != REQUEST_MAGIC || wire.version != VERSION {
        check_start(bytes)?;
    }
    let frame_bytes = HEADER_BYTES as u64 + u64::from(wire.key_len.get()) + u64::from(wire.value_len.get());
    if frame_bytes > u64::from(limits.frame_bytes_max) {
        return Err(frame_too_large(wire, frame_bytes, limits));
    }
    match check_fields(wire, limits) {
        Ok(header) => Ok(Some(header)),
        Err(refusal) => Err(FrameError::Refused {
            request_id: wire.request_id.get(),
            opcode: wire.opcode,
            frame_bytes: frame_bytes as usize,
            refusal,
        }),
    }
}

/// Refuses what cannot be the start of a request of this version, however little of it there is.
#[cold]
fn check_start(bytes: &[u8]) -> Result<(), FrameError> {
    let magic_len = bytes.len().min(REQUEST_MAGIC.len());
    if bytes[..magic_len] != REQUEST_MAGIC[..magic_len] {
        let message = "these bytes are no AtlasKV request: each starts with A7 51; check which port and \
                       protocol the client uses";
        let refusal = Refusal::new(Code::NotThisProtocol, message);
        return Err(FrameError::OutOfStep { request_id: 0, opcode: 0, refusal });
    }
    let Some(&version) = bytes.get(2).filter(|&&version| version != VERSION) else { return Ok(()) };
    // The place of the request id in another version is unknown.
    let message = format!("protocol version {version} is not spoken here; this server speaks {VERSION}");
    let refusal = Refusal::new(Code::UnsupportedVersion, message);
    Err(FrameError::OutOfStep { request_id: 0, opcode: 0, refusal })
}

#[cold]
fn frame_too_large(wire: &WireHeader, frame_bytes: u64, limits: &Limits) -> FrameError {
    let message =
        format!("a frame of {frame_bytes} bytes is more than the {} allowed", limits.frame_bytes_max);
    FrameError::OutOfStep {
        request_id: wire.request_id.get(),
        opcode: wire.opcode,
        refusal: Refusal::new(Code::FrameTooLarge, message),
    }
}

#[inline]
fn check_fields(wire: &WireHeader, limits: &Limits) -> Result<FrameHeader, Refusal> {
    let Some(opcode) = OpCode::from_u8(wire.opcode) else {
        let message = format!("no operation has the number {}", wire.opcode);
        return Err(Refusal::new(Code::UnknownOperation, message));
    };
    if wire.flags.get() & !EXPIRY_BITS != 0 || wire.status.get() != 0 {
        let message = format!("{}: reserved flags and status of a request must be 0", opcode.name());
        return Err(Refusal::new(Code::InvalidOption, message));
    }
    let expiry = check_expiry(wire, opcode)?;
    let (durability, condition) = check_options(wire, opcode)?;
    check_lengths(wire, opcode, limits)?;
    Ok(FrameHeader {
        opcode,
        request_id: wire.request_id.get(),
        key_len: wire.key_len.get(),
        value_len: wire.value_len.get(),
        durability,
        condition,
        expiry,
    })
}

#[inline]
fn check_expiry(wire: &WireHeader, opcode: OpCode) -> Result<Expiry, Refusal> {
    let (mode, ms) = (wire.flags.get() & EXPIRY_BITS, wire.expiry_or_epoch.get());
    if mode == EXPIRY_NEVER && ms == 0 && opcode != OpCode::Expire {
        return Ok(Expiry::Never);
    }
    let invalid = |what: &str| {
        let message = format!("{}: {what}", opcode.name());
        Err(Refusal::new(Code::InvalidExpiry, message))
    };
    let expiry = match mode {
        EXPIRY_IN => Expiry::Set(Deadline::In(ms)),
        EXPIRY_AT => Expiry::Set(Deadline::At(ms)),
        EXPIRY_KEEP => Expiry::Keep,
        _ => Expiry::Never,
    };
    match (opcode, expiry) {
        (OpCode::Set | OpCode::Expire, Expiry::Set(_)) if ms == 0 => {
            invalid("a time to live, or a time, is at least 1 ms; DELETE removes a key at once")
        }
        (OpCode::Set | OpCode::Expire, Expiry::Set(_)) if ms > EXPIRY_MS_MAX => {
            let message = format!(
                "{}: {ms} ms is more than the {EXPIRY_MS_MAX} allowed for a time to live or a time; \
                 both are in milliseconds",
                opcode.name()
            );
            Err(Refusal::new(Code::InvalidExpiry, message))
        }
        (OpCode::Set | OpCode::Expire, Expiry::Set(_)) => Ok(expiry),
        (OpCode::Expire, _) => invalid("it needs a time to live or a time"),
        (OpCode::Set, Expiry::Never) => invalid("flags 0 say that there is no expiry, but one is given"),
        (OpCode::Set, Expiry::Keep) if ms != 0 => invalid("a kept expiry takes no time"),
        (OpCode::Set, Expiry::Keep) => Ok(expiry),
        _ => invalid("takes no expiry"),
    }
}

#[inline]
fn check_options(wire: &WireHeader, opcode: OpCode) -> Result<(Durability, Condition), Refusal> {
    let invalid = |what: &str| Err(Refusal::new(Code::InvalidOption, format!("{}: {what}", opcode.name())));
    let Some(durability) = Durability::from_u8(wire.durability) else {
        return invalid("durability must be 0, 1 or 2");
    };
    if durability != Durability::Default && !opcode.is_write() {
        return invalid("durability is an option of writes only");
    }
    if durability == Durability::Relaxed && !matches!(opcode, OpCode::Set | OpCode::Transact) {
        return invalid("durability 2 is an option of SET and TRANSACT only");
    }
    let version = wire.lsn.get();
    let condition = match (wire.condition, version) {
        (CONDITION_NONE, 0) => return Ok((durability, Condition::None)),
        (CONDITION_IF_ABSENT, 0) => Condition::IfAbsent,
        (CONDITION_IF_PRESENT, 0) => Condition::IfPresent,
        (CONDITION_IF_VERSION, 1..) => Condition::IfVersion(Lsn(version)),
        (CONDITION_IF_VERSION, 0) => return invalid("if-version needs a version, and none is 0"),
        (CONDITION_NONE..=CONDITION_IF_PRESENT, _) => return invalid("only if-version takes a version"),
        _ => return invalid("condition must be 0, 1, 2 or 3"),
    };
    match opcode {
        OpCode::Set => Ok((durability, condition)),
        OpCode::Delete | OpCode::Expire | OpCode::Persist if condition != Condition::IfAbsent => {
            Ok((durability, condition))
        }
        OpCode::Delete | OpCode::Expire | OpCode::Persist => invalid("if-absent makes no sense"),
        _ => invalid("takes no condition"),
    }
}

#[inline]
fn check_lengths(wire: &WireHeader, opcode: OpCode, limits: &Limits) -> Result<(), Refusal> {
    let (key_len, value_len) = (u32::from(wire.key_len.get()), wire.value_len.get());
    match opcode {
        OpCode::Get
        | OpCode::Set
        | OpCode::Delete
        | OpCode::Incr
        | OpCode::Expire
        | OpCode::Persist
        | OpCode::Ttl
        | OpCode::Transact
            if key_len == 0 =>
        {
            return Err(Refusal::new(Code::InvalidKey, format!("{}: the key is empty", opcode.name())));
        }
        OpCode::Hello
        | OpCode::Ping
        | OpCode::Mget
        | OpCode::Batch
        | OpCode::Scan
        | OpCode::DeleteRange
        | OpCode::Flush
        | OpCode::Clients
            if key_len != 0 =>
        {
            return Err(Refusal::new(
                Code::InvalidKey,
                format!("{} takes no key in its header", opcode.name()),
            ));
        }
        _ if key_len > limits.key_bytes_max => {
            let message =
                format!("a key of {key_len} bytes is more than the {} allowed", limits.key_bytes_max);
            return Err(Refusal::new(Code::InvalidKey, message));
        }
        _ => {}
    }
    let wanted_len = match opcode {
        OpCode::Hello => size_of::<WireHelloRequest>() as u32,
        OpCode::Incr => size_of::<I64>() as u32,
        OpCode::Get | OpCode::Delete | OpCode::Stats => 0,
        OpCode::Expire | OpCode::Persist | OpCode::Ttl | OpCode::Tablets | OpCode::Checkpoint => 0,
        OpCode::Set | OpCode::Ping if value_len > limits.value_bytes_max => {
            return Err(value_too_large(opcode, u64::from(value_len), limits));
        }
        OpCode::Batch if value_len.saturating_sub(4) > limits.batch_bytes_max => {
            let limit = limits.batch_bytes_max;
            let message = format!("a batch of {} bytes is more than the {limit} allowed", value_len - 4);
            return Err(Refusal::new(Code::BatchTooLarge, message));
        }
        OpCode::Set | OpCode::Ping | OpCode::Mget | OpCode::Batch | OpCode::Scan => value_len,
        OpCode::DeleteRange | OpCode::Flush | OpCode::Transact | OpCode::Clients => value_len,
    };
    if value_len != wanted_len {
        let message = format!("{} has {wanted_len} bytes of value, not {value_len}", opcode.name());
        return Err(Refusal::new(Code::Malformed, message));
    }
    Ok(())
}

#[cold]
pub(super) fn value_too_large(opcode: OpCode, len: u64, limits: &Limits) -> Refusal {
    let limit = limits.value_bytes_max;
    let message = format!(
        "{}: a value of {len} bytes is more than the {limit} allowed (--max-value-size)",
        opcode.name()
    );
    Refusal::new(Code::ValueTooLarge, message)
}

/// Reads the request whose key and value are `body`, [`FrameHeader::body_bytes`] long.
///
/// # Panics
/// If `body` has another length than the header says.
#[inline]
pub fn decode_request<'a>(
    header: &FrameHeader,
    body: &'a [u8],
    limits: &Limits,
) -> Result<Request<'a>, Refusal> {
    assert_eq!(body.len(), header.body_bytes(), "the caller cuts the frame");
    let (key, value) = body.split_at(usize::from(header.key_len));
    let (condition, durability) = (header.condition, header.durability);
    Ok(match header.opcode {
        OpCode::Hello => Request::Hello(decode_hello_request(value)?),
        OpCode::Ping => Request::Ping { payload: value },
        OpCode::Get => Request::Get { key },
        OpCode::Set => Request::Set { key, value, expiry: header.expiry, condition, durability },
        OpCode::Delete => Request::Delete { key, condition, durability },
        OpCode::Mget => Request::Mget { keys: decode_keys(value, limits)? },
        OpCode::Batch => Request::Batch { ops: decode_ops(value, limits)?, durability },
        OpCode::Incr => {
            let amount = I64::ref_from_bytes(value).map_err(|_| malformed("INCR: the amount has 8 bytes"))?;
            Request::Incr { key, amount: amount.get(), durability }
        }
        OpCode::Expire => match header.expiry {
            Expiry::Set(deadline) => Request::Expire { key, deadline, condition, durability },
            Expiry::Never | Expiry::Keep => {
                return Err(Refusal::new(Code::InvalidExpiry, "EXPIRE: it needs a time to live or a time"));
            }
        },
        OpCode::Persist => Request::Persist { key, condition, durability },
        OpCode::Ttl => Request::Ttl { key },
        OpCode::Scan => Request::Scan(scan::decode_request(value, limits)?),
        OpCode::DeleteRange | OpCode::Flush => {
            Request::DeleteRange(range::decode_request(header.opcode, value, durability, limits)?)
        }
        OpCode::Transact => Request::Transact(transaction::decode_request(key, value, durability, limits)?),
        OpCode::Stats => {
            let section =
                std::str::from_utf8(key).map_err(|_| malformed("STATS: the section is not UTF-8"))?;
            Request::Stats { section }
        }
        OpCode::Checkpoint => {
            let dir = std::str::from_utf8(key).map_err(|_| malformed("CHECKPOINT: the path is not UTF-8"))?;
            if !dir.starts_with('/') && dir != SAVE && dir != BGSAVE {
                return Err(malformed("CHECKPOINT: the path is not absolute, and no save either"));
            }
            Request::Checkpoint { dir }
        }
        OpCode::Clients => Request::Clients(clients::decode_request(value, limits)?),
        OpCode::Tablets => {
            let command =
                std::str::from_utf8(key).map_err(|_| malformed("TABLETS: the command is not UTF-8"))?;
            Request::Tablets { command }
        }
    })
}

pub(super) fn malformed(message: &'static str) -> Refusal {
    Refusal::new(Code::Malformed, message)
}

fn decode_hello_request(value: &[u8]) -> Result<HelloRequest, Refusal> {
    let wire =
        WireHelloRequest::ref_from_bytes(value).map_err(|_| malformed("HELLO: the value has 8 bytes"))?;
    let (min, max) = (wire.version_min, wire.version_max);
    if wire.reserved.get() != 0 {
        return Err(malformed("HELLO: reserved bytes must be 0"));
    }
    if min > max || !(min..=max).contains(&VERSION) {
        let message = format!("the client speaks versions {min} to {max}; this server speaks {VERSION}");
        return Err(Refusal::new(Code::UnsupportedVersion, message));
    }
    let shard = Some(wire.shard.get()).filter(|&shard| shard != ANY_SHARD);
    Ok(HelloRequest { version_min: min, version_max: max, shard })
}

fn decode_keys<'a>(value: &'a [u8], limits: &Limits) -> Result<Keys<'a>, Refusal> {
    let limit = limits.key_bytes_max as usize;
    let keys = Keys::parse(value, limits.items_max, |key| key.len() <= limit);
    let keys = keys.map_err(|error| match error {
        ListError::Broken(index) => {
            Refusal::new(Code::Malformed, format!("MGET: the list is broken at key {index}, counted from 0"))
        }
        ListError::TooMany(count) => too_many("MGET", count, limits),
        ListError::Refused(index) => Refusal::new(
            Code::InvalidKey,
            format!("MGET: key {index} is longer than the {limit} bytes allowed"),
        ),
    })?;
    if keys.is_empty() { Err(malformed("MGET: the list of keys is empty")) } else { Ok(keys) }
}

pub(super) fn too_many(what: &str, count: u32, limits: &Limits) -> Refusal {
    let message = format!("{what}: {count} items are more than the {} allowed", limits.items_max);
    Refusal::new(Code::BatchTooLarge, message)
}

/// Bytes from a server that are not this protocol. The connection is of no more use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// Not the start of a reply.
    #[error("the server's answer is not the AtlasKV protocol (a reply starts with A7 52); check the address")]
    NotThisProtocol,
    /// No reply, but the line that a server with too many connections says to one more.
    #[error("the server has as many connections as it takes (--max-connections)")]
    TooManyConnections,
    /// Another version than the one agreed on.
    #[error("the server's answer has protocol version {0}; this client speaks {VERSION}")]
    UnsupportedVersion(u8),
    /// Longer than the server itself said it may be.
    #[error("the server's answer has {bytes} bytes, more than the {limit} allowed")]
    TooLarge {
        /// Bytes of the frame.
        bytes: u64,
        /// The limit.
        limit: u32,
    },
    /// A status, or a value that does not fit operation and status.
    #[error("the server's answer does not parse: {0}")]
    Malformed(&'static str),
}

/// Reads the header of the reply at the start of `bytes`. `None`: more bytes are needed to tell.
/// `frame_bytes_max` is what HELLO told, and [`Limits::FRAME_BYTES_LIMIT`] before.
#[inline]
pub fn decode_reply_header(bytes: &[u8], frame_bytes_max: u32) -> Result<Option<ReplyHeader>, ReplyError> {
    let magic_len = bytes.len().min(REPLY_MAGIC.len());
    if bytes[..magic_len] != REPLY_MAGIC[..magic_len] {
        return not_a_frame(bytes).map(|()| None);
    }
    if let Some(&version) = bytes.get(2).filter(|&&version| version != VERSION) {
        return Err(ReplyError::UnsupportedVersion(version));
    }
    let Ok((wire, _)) = WireHeader::ref_from_prefix(bytes) else { return Ok(None) };
    let frame_bytes = HEADER_BYTES as u64 + u64::from(wire.value_len.get());
    if frame_bytes > u64::from(frame_bytes_max) {
        return Err(ReplyError::TooLarge { bytes: frame_bytes, limit: frame_bytes_max });
    }
    if wire.key_len.get() != 0 {
        return Err(ReplyError::Malformed("a reply has no key"));
    }
    let status = Status::from_u16(wire.status.get()).ok_or(ReplyError::Malformed("unknown status"))?;
    Ok(Some(ReplyHeader {
        opcode: OpCode::from_u8(wire.opcode),
        status,
        request_id: wire.request_id.get(),
        version: Lsn(wire.lsn.get()),
        epoch: wire.expiry_or_epoch.get() as u32,
        value_len: wire.value_len.get(),
    }))
}

/// What begins like no frame: that it is the start of the line in text, or else why it is an error.
#[cold]
fn not_a_frame(bytes: &[u8]) -> Result<(), ReplyError> {
    if bytes.starts_with(TOO_MANY_CONNECTIONS) {
        return Err(ReplyError::TooManyConnections);
    }
    if TOO_MANY_CONNECTIONS.starts_with(bytes) { Ok(()) } else { Err(ReplyError::NotThisProtocol) }
}

/// Reads the reply whose value is `body`, [`ReplyHeader::body_bytes`] long.
///
/// # Panics
/// If `body` has another length than the header says.
pub fn decode_reply<'a>(header: &ReplyHeader, body: &'a [u8]) -> Result<Reply<'a>, ReplyError> {
    assert_eq!(body.len(), header.body_bytes(), "the caller cuts the frame");
    if let Status::Refused(code) = header.status {
        // The sentence is for people: bytes that are not UTF-8 are no reason to lose the code.
        let message = String::from_utf8_lossy(body).into_owned();
        return Ok(Reply::Refused(Refusal::new(code, message)));
    }
    let opcode = header.opcode.ok_or(ReplyError::Malformed("unknown operation"))?;
    let version = header.version;
    let is_plain = body.is_empty();
    match (opcode, header.status) {
        (OpCode::Get | OpCode::Delete | OpCode::Expire | OpCode::Persist | OpCode::Ttl, Status::Absent)
            if is_plain =>
        {
            Ok(Reply::Absent)
        }
        (OpCode::Set | OpCode::Delete | OpCode::Expire | OpCode::Persist, Status::ConditionFailed)
            if is_plain =>
        {
            Ok(Reply::ConditionFailed { current: Some(version).filter(|&version| version != Lsn::ZERO) })
        }
        (OpCode::Batch, Status::ConditionFailed) => {
            let item = U32::ref_from_bytes(body)
                .map_err(|_| ReplyError::Malformed("the number of a batch's item has 4 bytes"))?;
            let current = Some(version).filter(|&version| version != Lsn::ZERO);
            Ok(Reply::BatchFailed { item: item.get(), current })
        }
        (_, Status::Absent | Status::ConditionFailed | Status::Refused(_)) => {
            Err(ReplyError::Malformed("the status does not fit the operation"))
        }
        // All but these are about a key, or several, and name its version.
        (opcode, Status::Done)
            if version == Lsn::ZERO
                && !matches!(opcode, OpCode::Hello | OpCode::Ping | OpCode::Mget)
                && !matches!(
                    opcode,
                    OpCode::DeleteRange | OpCode::Flush | OpCode::Transact | OpCode::Clients
                )
                && !matches!(opcode, OpCode::Stats | OpCode::Tablets | OpCode::Checkpoint | OpCode::Scan) =>
        {
            Err(ReplyError::Malformed("a version is missing"))
        }
        (OpCode::Hello, Status::Done) => decode_hello(body).map(Reply::Hello),
        (OpCode::Ping, Status::Done) => Ok(Reply::Pong(body)),
        (OpCode::Get, Status::Done) => Ok(Reply::Value { version, value: body }),
        (OpCode::Set | OpCode::Delete | OpCode::Batch | OpCode::Expire | OpCode::Persist, Status::Done) => {
            if !is_plain {
                return Err(ReplyError::Malformed("a write's reply has no value"));
            }
            Ok(Reply::Written { version })
        }
        (OpCode::Ttl, Status::Done) if is_plain => Ok(Reply::Lifetime { version, lifetime: None }),
        (OpCode::Ttl, Status::Done) => {
            let wire = WireLifetime::ref_from_bytes(body)
                .map_err(|_| ReplyError::Malformed("a lifetime has 16 bytes"))?;
            let (remaining_ms, expires_at_ms) = (wire.remaining_ms.get(), wire.expires_at_ms.get());
            let lifetime = Some(Lifetime { remaining_ms, expires_at_ms });
            Ok(Reply::Lifetime { version, lifetime })
        }
        (OpCode::Mget, Status::Done) => Values::parse(body, u32::MAX, |_| true)
            .map(Reply::Values)
            .map_err(|_| ReplyError::Malformed("the list of values is broken")),
        (OpCode::Incr, Status::Done) => I64::ref_from_bytes(body)
            .map(|value| Reply::Counter { version, value: value.get() })
            .map_err(|_| ReplyError::Malformed("a sum has 8 bytes")),
        (OpCode::DeleteRange | OpCode::Flush, Status::Done) if is_plain => Ok(Reply::Done),
        (OpCode::DeleteRange | OpCode::Flush, Status::Done) => {
            Err(ReplyError::Malformed("a write's reply has no value"))
        }
        (OpCode::Transact, Status::Done) => Ok(Reply::Resp(body)),
        (OpCode::Scan, Status::Done) => scan::decode_page(body)
            .map(Reply::Page)
            .ok_or(ReplyError::Malformed("the page of a scan is broken")),
        (OpCode::Stats | OpCode::Tablets | OpCode::Checkpoint | OpCode::Clients, Status::Done) => {
            std::str::from_utf8(body)
                .map(Reply::Stats)
                .map_err(|_| ReplyError::Malformed("the text of a reply is not UTF-8"))
        }
    }
}

fn decode_hello(body: &[u8]) -> Result<Hello, ReplyError> {
    let (wire, rest) =
        WireHello::ref_from_prefix(body).map_err(|_| ReplyError::Malformed("HELLO is cut short"))?;
    let ranges = <[WireRange]>::ref_from_bytes(rest)
        .ok()
        .filter(|ranges| ranges.len() == usize::from(wire.range_count.get()))
        .ok_or(ReplyError::Malformed("HELLO has another number of ranges than it says"))?;
    let shard_count = wire.shard_count.get();
    if wire.shard.get() >= shard_count {
        return Err(ReplyError::Malformed("HELLO names a shard that is not there"));
    }
    let mut decoded: Vec<ShardRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        let slots = SlotRange::new(range.first.get(), range.last.get())
            .filter(|slots| decoded.last().is_none_or(|before| before.slots.last() < slots.first()))
            .ok_or(ReplyError::Malformed("HELLO's slot ranges are not ascending"))?;
        let shard = range.shard.get();
        if shard >= shard_count {
            return Err(ReplyError::Malformed("HELLO names a shard that is not there"));
        }
        decoded.push(ShardRange { slots, shard });
    }
    let limits = Limits {
        key_bytes_max: wire.key_bytes_max.get(),
        value_bytes_max: wire.value_bytes_max.get(),
        batch_bytes_max: wire.batch_bytes_max.get(),
        items_max: wire.items_max.get(),
        frame_bytes_max: wire.frame_bytes_max.get(),
        pipeline_bytes_max: wire.pipeline_bytes_max.get(),
    };
    Ok(Hello {
        version: wire.version,
        shard_count,
        shard: wire.shard.get(),
        epoch: wire.epoch.get(),
        limits,
        ranges: decoded,
    })
}
