mod batch;

use proptest::prelude::*;

use super::*;
use crate::base::{EXPIRY_MS_MAX, Lsn};
use crate::error::{Code, Refusal};
use crate::protocol::*;
use crate::slot::{Slot, SlotRange};

fn limits() -> Limits {
    Limits::for_values(1 << 20)
}

/// A whole frame that may be refused at any stage.
fn decode<'a>(bytes: &'a [u8], limits: &Limits) -> Result<(u64, Request<'a>), Refusal> {
    let header = match decode_header(bytes, limits) {
        Ok(header) => header.expect("the frame is whole"),
        Err(FrameError::Refused { refusal, .. } | FrameError::OutOfStep { refusal, .. }) => {
            return Err(refusal);
        }
    };
    assert_eq!(header.frame_bytes(), bytes.len());
    Ok((header.request_id, decode_request(&header, &bytes[HEADER_BYTES..], limits)?))
}

fn decode_one_reply(bytes: &[u8]) -> Result<Option<(ReplyHeader, Reply<'_>)>, ReplyError> {
    let Some(header) = decode_reply_header(bytes, Limits::FRAME_BYTES_LIMIT)? else { return Ok(None) };
    if bytes.len() < header.frame_bytes() {
        return Ok(None);
    }
    Ok(Some((header, decode_reply(&header, &bytes[HEADER_BYTES..header.frame_bytes()])?)))
}

fn bytes(max: usize) -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..max)
}

fn key() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 1..80)
}

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![
        Just(Condition::None),
        Just(Condition::IfAbsent),
        Just(Condition::IfPresent),
        (1..=u64::MAX).prop_map(|version| Condition::IfVersion(Lsn(version))),
    ]
}

/// Those that a write takes which is only about keys that are there.
fn of_present() -> impl Strategy<Value = Condition> {
    condition().prop_filter("not taken", |condition| *condition != Condition::IfAbsent)
}

fn deadline() -> impl Strategy<Value = Deadline> {
    let ms = || prop_oneof![1..100u64, 1..=EXPIRY_MS_MAX, Just(EXPIRY_MS_MAX)];
    prop_oneof![ms().prop_map(Deadline::In), ms().prop_map(Deadline::At)]
}

fn expiry() -> impl Strategy<Value = Expiry> {
    prop_oneof![Just(Expiry::Never), Just(Expiry::Keep), deadline().prop_map(Expiry::Set)]
}

fn durability() -> impl Strategy<Value = Durability> {
    prop_oneof![Just(Durability::Default), Just(Durability::Always)]
}

/// A request whose parts are owned.
#[derive(Clone, Debug)]
enum Owned {
    Hello(HelloRequest),
    Ping(Vec<u8>),
    Get(Vec<u8>),
    Set(Vec<u8>, Vec<u8>, Expiry, Condition, Durability),
    Delete(Vec<u8>, Condition, Durability),
    Mget(KeyList),
    Batch(OpList, Durability),
    Incr(Vec<u8>, i64, Durability),
    Stats(String),
    Expire(Vec<u8>, Deadline, Condition, Durability),
    Persist(Vec<u8>, Condition, Durability),
    Ttl(Vec<u8>),
    Scan(OwnedScan),
    DeleteRange(Vec<u8>, Vec<u8>, bool, u64, Durability),
    Disconnect(u16, ClientIdList),
    Pause(u16, Option<Paused>, u64),
}

/// Bounds, flags, sizes, and what a cursor says.
type OwnedScan = (Vec<u8>, Vec<u8>, [bool; 3], (u32, u32, u64), Option<(u16, u32, u64, Vec<u8>)>);

impl Owned {
    fn request(&self) -> Request<'_> {
        match self {
            Owned::Hello(hello) => Request::Hello(*hello),
            Owned::Ping(payload) => Request::Ping { payload },
            Owned::Get(key) => Request::Get { key },
            Owned::Set(key, value, expiry, condition, durability) => {
                let (expiry, condition, durability) = (*expiry, *condition, *durability);
                Request::Set { key, value, expiry, condition, durability }
            }
            Owned::Expire(key, deadline, condition, durability) => {
                let (deadline, condition, durability) = (*deadline, *condition, *durability);
                Request::Expire { key, deadline, condition, durability }
            }
            Owned::Persist(key, condition, durability) => {
                Request::Persist { key, condition: *condition, durability: *durability }
            }
            Owned::Ttl(key) => Request::Ttl { key },
            Owned::Delete(key, condition, durability) => {
                Request::Delete { key, condition: *condition, durability: *durability }
            }
            Owned::Mget(list) => Request::Mget { keys: list.keys() },
            Owned::Batch(list, durability) => Request::Batch { ops: list.ops(), durability: *durability },
            Owned::Incr(key, amount, durability) => {
                Request::Incr { key, amount: *amount, durability: *durability }
            }
            Owned::Stats(section) => Request::Stats { section },
            Owned::Disconnect(shard, ids) => {
                let action = ClientsAction::Disconnect(ids.ids());
                Request::Clients(ClientsRequest { shard: *shard, action })
            }
            Owned::Pause(shard, paused, ms) => {
                let action = match *paused {
                    Some(paused) => ClientsAction::Pause { paused, ms: *ms },
                    None => ClientsAction::Unpause,
                };
                Request::Clients(ClientsRequest { shard: *shard, action })
            }
            Owned::DeleteRange(start, end, is_local, epoch, durability) => {
                let (is_local, epoch, durability) = (*is_local, *epoch, *durability);
                Request::DeleteRange(DeleteRange { start, end, is_local, epoch, durability })
            }
            Owned::Scan((start, end, flags, sizes, cursor)) => Request::Scan(ScanRequest {
                start,
                end,
                is_reverse: flags[0],
                is_keys_only: flags[1],
                is_local: flags[2],
                entries_max: sizes.0,
                bytes_max: sizes.1,
                limit: sizes.2,
                cursor: cursor.as_ref().map(|(shard, page, session, key)| Cursor {
                    shard: *shard,
                    page: *page,
                    session: *session,
                    key,
                }),
            }),
        }
    }
}

/// Key, value, kind, expiry and condition of a batch's item; `None`: if-absent.
fn item() -> impl Strategy<Value = (Vec<u8>, Vec<u8>, u8, Expiry, Option<Condition>)> {
    (key(), bytes(100), 0..6u8, expiry(), proptest::option::of(of_present()))
}

fn request() -> impl Strategy<Value = Owned> {
    let hello = (0..=1u8, 1..=u8::MAX, proptest::option::of(0..u16::MAX)).prop_map(|(min, max, shard)| {
        Owned::Hello(HelloRequest { version_min: min, version_max: max, shard })
    });
    let mget = proptest::collection::vec(key(), 1..20).prop_map(|keys| {
        let mut list = KeyList::default();
        keys.iter().for_each(|key| list.push(key));
        Owned::Mget(list)
    });
    let batch = (proptest::collection::vec(item(), 1..20), durability()).prop_map(|(items, durability)| {
        let mut list = OpList::default();
        list.put(b"{tag}", b"a write");
        for (mut key, value, kind, expiry, condition) in items {
            key.splice(..0, *b"{tag}");
            let (action, condition) = match (kind, expiry, condition) {
                (0, Expiry::Set(deadline), Some(condition)) => (Action::Expire(deadline), condition),
                (1, _, Some(condition)) => (Action::Persist, condition),
                (2, _, Some(condition)) => (Action::Delete, condition),
                (3, _, Some(Condition::None)) => (Action::Check, Condition::IfAbsent),
                (3, _, Some(condition)) => (Action::Check, condition),
                (_, expiry, condition) => {
                    (Action::Put { value: &value, expiry }, condition.unwrap_or(Condition::IfAbsent))
                }
            };
            list.push(&BatchOp { key: &key, condition, action });
        }
        Owned::Batch(list, durability)
    });
    prop_oneof![
        hello,
        bytes(200).prop_map(Owned::Ping),
        key().prop_map(Owned::Get),
        (key(), bytes(300), expiry(), condition(), durability())
            .prop_map(|(k, v, e, c, d)| Owned::Set(k, v, e, c, d)),
        (key(), of_present(), durability()).prop_map(|(k, c, d)| Owned::Delete(k, c, d)),
        (key(), deadline(), of_present(), durability()).prop_map(|(k, e, c, d)| Owned::Expire(k, e, c, d)),
        (key(), of_present(), durability()).prop_map(|(k, c, d)| Owned::Persist(k, c, d)),
        key().prop_map(Owned::Ttl),
        mget,
        batch,
        (key(), any::<i64>(), durability()).prop_map(|(k, a, d)| Owned::Incr(k, a, d)),
        "[a-z]{0,20}".prop_map(Owned::Stats),
        (any::<u16>(), proptest::collection::vec(any::<u64>(), 1..20)).prop_map(|(shard, ids)| {
            let mut list = ClientIdList::default();
            ids.into_iter().for_each(|id| list.push(id));
            Owned::Disconnect(shard, list)
        }),
        (any::<u16>(), 0..3u8, any::<u64>()).prop_map(|(s, kind, ms)| Owned::Pause(
            s,
            Paused::from_u8(kind),
            ms
        )),
        (bytes(3), bytes(40), any::<(bool, u64)>(), durability()).prop_map(
            |(start, end, part, durability)| {
                let end = if end <= start { Vec::new() } else { end };
                Owned::DeleteRange(start, end, part.0, part.1, durability)
            }
        ),
        (
            bytes(40),
            bytes(40),
            any::<[bool; 3]>(),
            any::<(u32, u32, u64)>(),
            proptest::option::of((any::<u16>(), any::<u32>(), any::<u64>(), bytes(40)))
        )
            .prop_map(Owned::Scan),
    ]
}

/// The bytes of a reply, made by the encoder, and the request's operation.
fn reply_bytes() -> impl Strategy<Value = Vec<u8>> {
    let version = (1..=u64::MAX).prop_map(Lsn);
    let code = proptest::sample::select(Code::ALL);
    let encode = |opcode, reply: &Reply<'_>| {
        let mut out = Vec::new();
        encode_reply(&mut out, opcode, 77, 5 << 32 | 9, reply);
        out
    };
    let values = proptest::collection::vec(proptest::option::of((1..=u64::MAX, bytes(50))), 0..10);
    prop_oneof![
        bytes(100).prop_map(move |payload| encode(OpCode::Ping, &Reply::Pong(&payload))),
        (version.clone(), bytes(100))
            .prop_map(move |(version, value)| encode(OpCode::Get, &Reply::Value { version, value: &value })),
        Just(encode(OpCode::Get, &Reply::Absent)),
        Just(encode(OpCode::DeleteRange, &Reply::Done)),
        Just(encode(OpCode::Flush, &Reply::Done)),
        version.clone().prop_map(move |version| encode(OpCode::Batch, &Reply::Written { version })),
        proptest::option::of(version.clone())
            .prop_map(move |current| encode(OpCode::Set, &Reply::ConditionFailed { current })),
        (any::<u32>(), proptest::option::of(version.clone()))
            .prop_map(move |(item, current)| encode(OpCode::Batch, &Reply::BatchFailed { item, current })),
        (version.clone(), proptest::option::of((1..=u64::MAX, 1..=u64::MAX))).prop_map(
            move |(version, lifetime)| {
                let lifetime =
                    lifetime.map(|(remaining_ms, expires_at_ms)| Lifetime { remaining_ms, expires_at_ms });
                encode(OpCode::Ttl, &Reply::Lifetime { version, lifetime })
            }
        ),
        Just(encode(OpCode::Ttl, &Reply::Absent)),
        version.clone().prop_map(move |version| encode(OpCode::Expire, &Reply::Written { version })),
        proptest::option::of(version.clone())
            .prop_map(move |current| encode(OpCode::Persist, &Reply::ConditionFailed { current })),
        (version, any::<i64>())
            .prop_map(move |(version, value)| encode(OpCode::Incr, &Reply::Counter { version, value })),
        ".{0,50}".prop_map(move |text| encode(OpCode::Stats, &Reply::Stats(&text))),
        (code, ".{0,50}")
            .prop_map(move |(code, text)| { encode(OpCode::Set, &Reply::Refused(Refusal::new(code, text))) }),
        values.prop_map(|values| {
            let mut out = Vec::new();
            let mut encoder = ValueListEncoder::begin(&mut out, 77, 5 << 32 | 9);
            for value in &values {
                match value {
                    Some((version, value)) => encoder.present(Lsn(*version), value),
                    None => encoder.absent(),
                }
            }
            encoder.finish();
            out
        }),
        (
            proptest::collection::vec((key(), 1..=u64::MAX, any::<u64>(), bytes(50)), 0..10),
            any::<bool>(),
            proptest::option::of(bytes(40)),
        )
            .prop_map(|(entries, is_new, key)| {
                let mut page = PageEncoder::new(77, 5 << 32 | 9);
                for (key, version, expiry_ms, value) in &entries {
                    page.push(&ScanEntry { key, version: Lsn(*version), expiry_ms: *expiry_ms, value });
                }
                let mut cursor = Vec::new();
                if let Some(key) = &key {
                    Cursor { shard: 1, page: 2, session: 3, key }.encode(&mut cursor);
                }
                page.finish(is_new, key.map(|_| &cursor[..]))
            }),
        (1..50u16, 0..50u16, any::<u64>()).prop_map(move |(shards, shard, epoch)| {
            encode(OpCode::Hello, &Reply::Hello(hello(shards, shard % shards, epoch)))
        }),
    ]
}

fn hello(shard_count: u16, shard: u16, epoch: u64) -> Hello {
    let ranges = SlotRange::split_evenly(shard_count * 3).into_iter().enumerate();
    let ranges = ranges.map(|(i, slots)| ShardRange { slots, shard: i as u16 % shard_count }).collect();
    Hello { version: VERSION, shard_count, shard, epoch, limits: limits(), ranges }
}

proptest! {
    #[test]
    fn requests_come_back_and_every_truncation_asks_for_more(owned in request(), id in any::<u64>()) {
        let request = owned.request();
        let mut out = Vec::new();
        encode_request(&mut out, id, &request);
        prop_assert_eq!(decode(&out, &limits()), Ok((id, request)));
        for len in 0..HEADER_BYTES {
            prop_assert_eq!(decode_header(&out[..len], &limits()), Ok(None), "{} bytes", len);
        }
        let header = decode_header(&out[..HEADER_BYTES], &limits()).unwrap().unwrap();
        prop_assert_eq!(header.frame_bytes(), out.len());
    }

    #[test]
    fn replies_come_back_and_every_truncation_asks_for_more(out in reply_bytes()) {
        for len in 0..out.len() {
            prop_assert_eq!(decode_one_reply(&out[..len]), Ok(None), "{} bytes", len);
        }
        let (header, reply) = decode_one_reply(&out).unwrap().unwrap();
        prop_assert_eq!((header.request_id, header.epoch, header.frame_bytes()), (77, 9, out.len()));
        let mut again = Vec::new();
        encode_reply(&mut again, header.opcode.unwrap(), header.request_id, u64::from(header.epoch), &reply);
        prop_assert_eq!(again, out);
    }

    #[test]
    fn damaged_requests_are_refused_or_read_but_never_panic(
        owned in request(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut out = Vec::new();
        encode_request(&mut out, 1, &owned.request());
        for (at, byte) in damage {
            let at = at.index(out.len());
            out[at] = byte;
        }
        if let Ok(Some(header)) = decode_header(&out, &limits()) && header.frame_bytes() <= out.len() {
            let body = &out[HEADER_BYTES..header.frame_bytes()];
            match decode_request(&header, body, &limits()) {
                Ok(Request::Mget { keys }) => prop_assert_eq!(keys.len(), keys.count()),
                Ok(Request::Batch { ops, .. }) => prop_assert!(ops.into_iter().any(|op| op.action.is_write())),
                Ok(request) => { let _ = request.route(); }
                Err(refusal) => prop_assert!(!refusal.message.is_empty()),
            }
        }
    }

    #[test]
    fn damaged_replies_are_refused_or_read_but_never_panic(
        mut out in reply_bytes(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        for (at, byte) in damage {
            let at = at.index(out.len());
            out[at] = byte;
        }
        if let Ok(Some((_, Reply::Values(values)))) = decode_one_reply(&out) {
            prop_assert_eq!(values.len(), values.count());
        }
    }

    #[test]
    fn any_bytes_at_all_never_panic(tail in bytes(300), opcode in 0..32u8) {
        let _ = decode_header(&tail, &limits());
        let _ = decode_one_reply(&tail);
        let mut out = vec![0xA7, b'Q', VERSION, opcode];
        out.extend_from_slice(&tail);
        if let Ok(Some(header)) = decode_header(&out, &limits()) && header.frame_bytes() <= out.len() {
            let _ = decode_request(&header, &out[HEADER_BYTES..header.frame_bytes()], &limits());
        }
        out[1] = b'R';
        let _ = decode_one_reply(&out);
    }
}

fn set_frame() -> Vec<u8> {
    let mut out = Vec::new();
    let request = Request::Set {
        key: b"key",
        value: b"value",
        expiry: Expiry::Set(Deadline::At(0x0807_0605)),
        condition: Condition::IfVersion(Lsn(0x0102)),
        durability: Durability::Always,
    };
    encode_request(&mut out, 0x1122_3344_5566_7788, &request);
    out
}

#[test]
fn a_request_looks_as_drawn() {
    #[rustfmt::skip]
    let wanted = [
        0xA7, 0x51, 1, 4,  2, 0,  0, 0,
        0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11,
        5, 0, 0, 0,  3, 0,  1,  3,
        2, 1, 0, 0, 0, 0, 0, 0,
        5, 6, 7, 8, 0, 0, 0, 0,
        b'k', b'e', b'y', b'v', b'a', b'l', b'u', b'e',
    ];
    assert_eq!(set_frame(), wanted);
}

#[test]
fn a_reply_looks_as_drawn() {
    let mut out = Vec::new();
    encode_reply(&mut out, OpCode::Get, 2, 0xAA_0000_0007, &Reply::Value { version: Lsn(3), value: b"v" });
    #[rustfmt::skip]
    let wanted = [
        0xA7, 0x52, 1, 3,  0, 0,  0, 0,
        2, 0, 0, 0, 0, 0, 0, 0,
        1, 0, 0, 0,  0, 0,  0,  0,
        3, 0, 0, 0, 0, 0, 0, 0,
        7, 0, 0, 0, 0, 0, 0, 0,
        b'v',
    ];
    assert_eq!(out, wanted);
}

/// The refusal's code and, if the stream is still in step, the frame's length.
fn refused(bytes: &[u8]) -> (Code, Option<usize>) {
    match decode_header(bytes, &limits()) {
        Err(FrameError::Refused { frame_bytes, refusal, .. }) => (refusal.code, Some(frame_bytes)),
        Err(FrameError::OutOfStep { refusal, .. }) => (refusal.code, None),
        Ok(_) => panic!("not refused"),
    }
}

#[test]
fn a_wrong_start_is_told_at_its_first_wrong_byte_and_ends_the_connection() {
    assert_eq!(refused(b"*1\r\n$4\r\nPING\r\n"), (Code::NotThisProtocol, None));
    assert_eq!(refused(b"G"), (Code::NotThisProtocol, None));
    assert_eq!(refused(&[0xA7, b'R']), (Code::NotThisProtocol, None));
    assert_eq!(refused(&[0xA7, b'Q', 2]), (Code::UnsupportedVersion, None));
    let mut frame = set_frame();
    frame[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(refused(&frame), (Code::FrameTooLarge, None));
}

#[test]
fn the_line_of_too_many_connections_is_understood_however_it_comes_and_no_other_text_is() {
    let line = TOO_MANY_CONNECTIONS;
    assert_eq!(line, b"-ERR max number of clients reached\r\n");
    for len in 0..line.len() {
        assert_eq!(decode_reply_header(&line[..len], 1 << 20), Ok(None), "{len} bytes of it");
    }
    let with_more = [line, b"-ERR"].concat();
    for whole in [line, &with_more] {
        assert_eq!(decode_reply_header(whole, 1 << 20), Err(ReplyError::TooManyConnections));
    }
    for text in [&b"-ERR max number of clients reached."[..], b"-D", b"+OK\r\n", b"HTTP/1.1 400\r\n"] {
        assert_eq!(decode_reply_header(text, 1 << 20), Err(ReplyError::NotThisProtocol));
    }
}

#[test]
fn only_a_set_or_a_transaction_may_be_answered_before_it_is_on_disk() {
    for (request, is_taken) in [
        (
            Request::Set {
                key: b"k",
                value: b"v",
                expiry: Expiry::Never,
                condition: Condition::None,
                durability: Durability::Relaxed,
            },
            true,
        ),
        (Request::Incr { key: b"k", amount: 1, durability: Durability::Relaxed }, false),
        (Request::Delete { key: b"k", condition: Condition::None, durability: Durability::Relaxed }, false),
    ] {
        let mut frame = Vec::new();
        encode_request(&mut frame, 1, &request);
        assert_eq!(decode_header(&frame, &limits()).is_ok(), is_taken, "{request:?}");
    }
}

#[test]
fn wrong_fields_are_refused_with_the_stream_in_step() {
    let len = set_frame().len();
    for (at, byte, code) in [
        (3, 0, Code::UnknownOperation),
        (3, 99, Code::UnknownOperation),
        (4, 4, Code::InvalidOption),
        (7, 1, Code::InvalidOption),
        (22, 3, Code::InvalidOption),
        (23, 4, Code::InvalidOption),
        (23, 1, Code::InvalidOption),
        // An expiry that flags deny or keep, one beyond all times, one where none is taken.
        (4, 0, Code::InvalidExpiry),
        (4, 3, Code::InvalidExpiry),
        (38, 1, Code::InvalidExpiry),
        (3, 5, Code::InvalidExpiry),
    ] {
        let mut frame = set_frame();
        frame[at] = byte;
        assert_eq!(refused(&frame), (code, Some(len)), "byte {at}");
    }
    for mode in [1, 2] {
        let mut frame = set_frame();
        frame[4] = mode;
        frame[32..40].fill(0);
        assert_eq!(refused(&frame), (Code::InvalidExpiry, Some(len)), "a time of 0");
    }
    let mut frame = set_frame();
    frame[20] = 0;
    assert_eq!(refused(&frame), (Code::InvalidKey, Some(len - 3)));
    frame[3] = OpCode::Ping as u8;
    frame[4] = 0;
    frame[32..40].fill(0);
    assert_eq!(refused(&frame), (Code::InvalidOption, Some(len - 3)));
    let mut frame = set_frame();
    frame[16..20].copy_from_slice(&(1 << 20 | 1u32).to_le_bytes());
    assert_eq!(refused(&frame), (Code::ValueTooLarge, Some(HEADER_BYTES + 3 + (1 << 20) + 1)));
}

#[test]
fn expire_takes_a_time_and_nothing_else() {
    let mut frame = Vec::new();
    let (condition, durability) = (Condition::None, Durability::Default);
    let request = Request::Expire { key: b"key", deadline: Deadline::In(7), condition, durability };
    encode_request(&mut frame, 1, &request);
    assert_eq!(decode(&frame, &limits()), Ok((1, request)));
    for (at, byte, code) in [
        (4, 0, Code::InvalidExpiry),
        (4, 3, Code::InvalidExpiry),
        (32, 0, Code::InvalidExpiry),
        (38, 1, Code::InvalidExpiry),
        (23, 1, Code::InvalidOption),
    ] {
        let mut frame = frame.clone();
        frame[at] = byte;
        assert_eq!(refused(&frame), (code, Some(HEADER_BYTES + 3)), "byte {at}");
    }
    // PERSIST and TTL are the same frame without a time.
    for opcode in [OpCode::Persist, OpCode::Ttl] {
        let mut frame = frame.clone();
        frame[3] = opcode as u8;
        assert_eq!(refused(&frame).0, Code::InvalidExpiry);
        (frame[4], frame[32]) = (0, 0);
        assert_eq!(decode(&frame, &limits()).unwrap().1.opcode(), opcode);
    }
}

#[test]
fn a_hello_finds_the_owner_of_a_slot() {
    let mut hello = hello(4, 0, 1);
    hello.ranges.remove(5);
    for number in 0..crate::slot::SLOT_COUNT {
        let slot = Slot::new(number).unwrap();
        let wanted = hello.ranges.iter().find(|range| range.slots.contains(slot)).map(|range| range.shard);
        assert_eq!(hello.shard_of(slot), wanted, "slot {slot}");
    }
}

#[test]
fn an_abandoned_reply_leaves_nothing() {
    let mut out = b"before".to_vec();
    let mut encoder = ValueListEncoder::begin(&mut out, 1, 1);
    assert_eq!(encoder.frame_bytes_with(3), HEADER_BYTES + 4 + 16 + 3);
    encoder.present(Lsn(1), b"abc");
    encoder.abandon();
    assert_eq!(out, b"before");
}

#[test]
fn unknown_refusals_act_as_their_group() {
    let mut out = Vec::new();
    encode_refusal(&mut out, 99, 4, 0, &Refusal::new(Code::DiskFull, "full".repeat(500)));
    out[6] = 127;
    let (header, reply) = decode_one_reply(&out).unwrap().unwrap();
    assert_eq!((header.opcode, header.body_bytes()), (None, Refusal::MESSAGE_BYTES_MAX));
    assert!(matches!(reply, Reply::Refused(refusal) if refusal.code == Code::Overloaded));
}

fn page(cursor: Option<&[u8]>) -> Vec<u8> {
    let mut page = PageEncoder::new(2, 7);
    page.push(&ScanEntry { key: b"k", version: Lsn(3), expiry_ms: 0, value: b"v" });
    page.push(&ScanEntry { key: b"l", version: Lsn(4), expiry_ms: 9, value: b"" });
    page.finish(true, cursor)
}

#[test]
fn a_scan_and_its_page_look_as_drawn() {
    let cursor = Cursor { shard: 2, page: 3, session: 4, key: b"k" };
    let scan = ScanRequest {
        start: b"a",
        end: b"bc",
        is_reverse: true,
        is_local: true,
        entries_max: 5,
        bytes_max: 6,
        limit: 7,
        cursor: Some(cursor),
        ..ScanRequest::default()
    };
    let mut out = Vec::new();
    encode_request(&mut out, 1, &Request::Scan(scan));
    let value = [
        &[5, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0, 1, 0, 2, 0, 17, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0][..],
        b"abc",
        &[1, 0, 2, 0, 3, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0],
        b"k",
    ];
    assert_eq!((out[3], &out[HEADER_BYTES..]), (13, &value.concat()[..]));
    let entries = [
        &[1, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0][..],
        b"kv",
        &[1, 0, 1, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0],
        b"l",
    ];
    let head = [2, 0, 0, 0, 2, 0, 0, 0, 43, 0, 0, 0, 3, 0, 0, 0];
    let value = [&head[..], b"cur", &[0; 45], &entries.concat()].concat();
    assert_eq!(&page(Some(b"cur"))[HEADER_BYTES..], value);
    assert_eq!(page(None)[HEADER_BYTES], 3);
    let long = [7; 60];
    assert!(page(Some(&long)).ends_with(&[&long[..], &entries.concat()].concat()));
}

#[test]
fn a_scan_that_makes_no_sense_is_refused() {
    let frame = |change: &dyn Fn(&mut Vec<u8>)| {
        let cursor = Cursor { shard: 0, page: 1, session: 4, key: b"k" };
        let scan = ScanRequest { start: b"a", end: b"b", cursor: Some(cursor), ..ScanRequest::default() };
        let mut out = Vec::new();
        encode_request(&mut out, 1, &Request::Scan(scan));
        change(&mut out);
        decode(&out, &limits()).map(|_| ()).map_err(|refusal| refusal.code)
    };
    let at = HEADER_BYTES;
    assert_eq!(frame(&|_| {}), Ok(()));
    assert_eq!(frame(&|out| out[at] = 8), Err(Code::InvalidOption));
    assert_eq!(frame(&|out| out[at + 1] = 1), Err(Code::InvalidOption));
    assert_eq!(frame(&|out| out[at + 20] = 1), Err(Code::InvalidOption));
    assert_eq!(frame(&|out| out[at + 12] = 2), Err(Code::Malformed), "start is longer than it is");
    assert_eq!(frame(&|out| out[at + 16] = 0), Err(Code::Malformed), "something follows");
    assert_eq!(frame(&|out| out[at + 34] = 9), Err(Code::Malformed), "a cursor of another version");
    let mut out = page(None);
    out[HEADER_BYTES + 4] = 3;
    assert!(decode_one_reply(&out).is_err(), "fewer entries than it says");
    let mut out = page(Some(b"cur"));
    out[HEADER_BYTES] = 1;
    assert!(decode_one_reply(&out).is_err(), "the last page has no cursor");
}
