//! What the binary protocol costs: nanoseconds to take in a request, and to write a reply; and the same of a client.
//!
//! `cargo bench --bench codec [-- ROUNDS]`; 2,000 rounds unless told otherwise, each over a buffer of 1,000 requests or
//! replies, as a read of a client that pipelines brings them. Keys come from a fixed seed. Times are CPU time of the
//! thread.

#[allow(dead_code)] // other benchmarks use the rest
mod common;

use std::hint::black_box;

use atlaskv::base::Lsn;
use atlaskv::protocol::binary::{
    HEADER_BYTES, KeyList, OpList, ValueListEncoder, decode_header, decode_reply, decode_reply_header,
    decode_request, encode_reply, encode_request,
};
use atlaskv::protocol::{Condition, Durability, Expiry, Limits, OpCode, Reply, Request};

use self::common::Table;

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Requests of a buffer, and replies.
const COUNT: usize = 1_000;
/// Keys of an MGET, and of a BATCH.
const KEYS: usize = 16;
const VALUE: [u8; 100] = [b'v'; 100];
const VERSION: Lsn = Lsn(7 << 16);
/// Of the topology.
const EPOCH: u64 = 1;

fn main() {
    let table = Table::begin(common::arguments().or(2_000, 2));
    requests(&table);
    replies(&table);
}

fn set<'a>(key: &'a [u8], value: &'a [u8]) -> Request<'a> {
    let (expiry, condition, durability) = (Expiry::Never, Condition::None, Durability::Default);
    Request::Set { key, value, expiry, condition, durability }
}

fn requests(table: &Table) {
    let mut rng = fastrand::Rng::with_seed(1);
    let keys: Vec<Vec<u8>> =
        (0..COUNT).map(|_| format!("user:{:011}", rng.u64(..100_000_000_000)).into_bytes()).collect();
    let get = buffer(&keys, |out, id, key| encode_request(out, id, &Request::Get { key }));
    let small = buffer(&keys, |out, id, key| encode_request(out, id, &set(key, &VALUE)));
    let large = buffer(&keys, |out, id, key| encode_request(out, id, &set(key, &[b'v'; 4096])));
    let mut list = KeyList::default();
    keys[..KEYS].iter().for_each(|key| list.push(key));
    let mget = buffer(&keys, |out, id, _| encode_request(out, id, &Request::Mget { keys: list.keys() }));
    let mut ops = OpList::default();
    // All of one slot.
    (0..KEYS).for_each(|n| ops.put(format!("{{user}}:{n:09}").as_bytes(), &VALUE));
    let batch = buffer(&keys, |out, id, _| {
        encode_request(out, id, &Request::Batch { ops: ops.ops(), durability: Durability::Default });
    });
    for (name, buffer) in [
        ("take in GET, key of 16", &get),
        ("take in SET, value of 100", &small),
        ("take in SET, value of 4096", &large),
        ("take in MGET of 16 keys", &mget),
        ("take in BATCH of 16 values of 100", &batch),
    ] {
        table.row(name, COUNT, || take_in(buffer));
    }
    let mut out = Vec::new();
    table.row("client: write GET", COUNT, || {
        out.clear();
        (0..).zip(&keys).for_each(|(id, key)| encode_request(&mut out, id, &Request::Get { key }));
    });
    table.row("client: write SET, value of 100", COUNT, || {
        out.clear();
        (0..).zip(&keys).for_each(|(id, key)| encode_request(&mut out, id, &set(key, &VALUE)));
    });
}

/// A request for each key.
fn buffer(keys: &[Vec<u8>], request: impl Fn(&mut Vec<u8>, u64, &[u8])) -> Vec<u8> {
    let mut bytes = Vec::new();
    (0..).zip(keys).for_each(|(id, key)| request(&mut bytes, id, key));
    bytes
}

/// Takes in all requests of a buffer, as far as the one who routes them looks; of lists all items are looked at.
fn take_in(buffer: &[u8]) {
    let limits = Limits::for_values(16 << 20);
    let (mut at, mut count) = (0, 0);
    let buffer = black_box(buffer);
    while let Ok(Some(header)) = decode_header(&buffer[at..], &limits) {
        let body = &buffer[at + HEADER_BYTES..at + header.frame_bytes()];
        match decode_request(&header, body, &limits) {
            Ok(Request::Mget { keys }) => keys.for_each(|key| {
                black_box(key);
            }),
            Ok(Request::Batch { ops, .. }) => ops.for_each(|op| {
                black_box(op);
            }),
            Ok(request) => {
                black_box(request);
            }
            Err(refusal) => panic!("{refusal:?} of a request that is right"),
        }
        at += header.frame_bytes();
        count += 1;
    }
    assert_eq!(count, COUNT);
}

fn replies(table: &Table) {
    let mut out = Vec::new();
    let value = black_box([b'v'; 4096]);
    let found = |len: usize| Reply::Value { version: VERSION, value: &value[..len] };
    for (name, opcode, reply) in [
        ("write that a SET is done", OpCode::Set, Reply::Written { version: VERSION }),
        ("write that a GET finds nothing", OpCode::Get, Reply::Absent),
        ("write a value of 100", OpCode::Get, found(100)),
        ("write a value of 4096", OpCode::Get, found(4096)),
        ("write a sum", OpCode::Incr, Reply::Counter { version: VERSION, value: 7 }),
    ] {
        table.row(name, COUNT, || {
            out.clear();
            (0..COUNT as u64).for_each(|id| encode_reply(&mut out, opcode, id, EPOCH, black_box(&reply)));
        });
    }
    table.row("write 16 values of 100", COUNT, || {
        out.clear();
        for id in 0..COUNT as u64 {
            let mut list = ValueListEncoder::begin(&mut out, id, EPOCH);
            (0..KEYS).for_each(|_| list.present(VERSION, black_box(&VALUE)));
            list.finish();
        }
    });
    out.clear();
    (0..COUNT as u64).for_each(|id| encode_reply(&mut out, OpCode::Get, id, EPOCH, &found(100)));
    table.row("client: take in a value of 100", COUNT, || {
        let (mut at, mut count) = (0, 0);
        while let Ok(Some(header)) = decode_reply_header(&out[at..], Limits::FRAME_BYTES_LIMIT) {
            let end = at + header.frame_bytes();
            let reply = decode_reply(&header, &out[end - header.body_bytes()..end]);
            assert!(matches!(black_box(reply), Ok(Reply::Value { .. })));
            at = end;
            count += 1;
        }
        assert_eq!(count, COUNT);
    });
}
