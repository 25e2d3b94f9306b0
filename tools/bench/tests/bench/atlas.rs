//! Against a server that speaks AtlasKV's own protocol, and answers out of order.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use atlaskv::base::Lsn;
use atlaskv::error::{Code, Refusal};
use atlaskv::protocol::binary::{
    FrameError, HEADER_BYTES, PageEncoder, ValueListEncoder, decode_header, decode_request, encode_refusal,
    encode_reply,
};
use atlaskv::protocol::{Hello, Limits, OpCode, Reply, Request, ScanEntry, ShardRange};
use atlaskv::slot::{Slot, SlotRange};

use crate::support::{bench, serve};

const SHARDS: u16 = 3;
const EPOCH: u64 = 7;

/// What the server has seen and keeps.
#[derive(Default)]
struct State {
    data: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Requests for a key that came over its owner's connection, and over another.
    at_home: u64,
    away: u64,
    writes: u64,
}

fn server(lose_writes_after: u64) -> (SocketAddr, Arc<Mutex<State>>) {
    let state = Arc::new(Mutex::new(State::default()));
    let shared = Arc::clone(&state);
    let address = serve(move || {
        let state = Arc::clone(&shared);
        let shard = Mutex::new(None);
        Box::new(move |input, output| batch(input, output, &state, &shard, lose_writes_after))
    });
    (address, state)
}

/// Executes all whole frames in order and answers them in reverse.
fn batch(
    input: &[u8],
    output: &mut Vec<u8>,
    state: &Mutex<State>,
    shard: &Mutex<Option<u16>>,
    lose_writes_after: u64,
) -> Option<usize> {
    let limits = Limits::for_values(1 << 20);
    let (mut at, mut replies) = (0, Vec::new());
    loop {
        let mut reply = Vec::new();
        match decode_header(&input[at..], &limits) {
            Ok(None) => break,
            Ok(Some(header)) => {
                let end = at + header.frame_bytes();
                let Some(body) = input.get(at + HEADER_BYTES..end) else { break };
                let request = decode_request(&header, body, &limits).unwrap();
                let mut state = state.lock().unwrap();
                let mut shard = shard.lock().unwrap();
                execute(&request, header.request_id, &mut state, &mut shard, lose_writes_after, &mut reply);
                at = end;
            }
            Err(FrameError::Refused { request_id, opcode, frame_bytes, refusal }) => {
                if input.len() < at + frame_bytes {
                    break;
                }
                encode_refusal(&mut reply, opcode, request_id, EPOCH, &refusal);
                at += frame_bytes;
            }
            Err(FrameError::OutOfStep { .. }) => return None,
        }
        replies.push(reply);
    }
    replies.iter().rev().for_each(|reply| output.extend_from_slice(reply));
    Some(at)
}

fn owner(key: &[u8]) -> u16 {
    let ranges = SlotRange::split_evenly(SHARDS);
    let slot = Slot::of_key(key);
    ranges.iter().position(|range| range.contains(slot)).unwrap() as u16
}

fn execute(
    request: &Request<'_>,
    id: u64,
    state: &mut State,
    shard: &mut Option<u16>,
    lose_writes_after: u64,
    out: &mut Vec<u8>,
) {
    let version = Lsn(1);
    let visit = |key: &[u8], state: &mut State| {
        if *shard == Some(owner(key)) { state.at_home += 1 } else { state.away += 1 }
    };
    let opcode = request.opcode();
    let mut answer = |reply: &Reply<'_>| encode_reply(out, opcode, id, EPOCH, reply);
    match *request {
        Request::Hello(hello) => {
            *shard = hello.shard;
            let ranges = SlotRange::split_evenly(SHARDS).into_iter().enumerate();
            answer(&Reply::Hello(Hello {
                version: 1,
                shard_count: SHARDS,
                shard: hello.shard.unwrap_or(0),
                epoch: EPOCH,
                limits: Limits::for_values(1 << 20),
                ranges: ranges.map(|(n, slots)| ShardRange { slots, shard: n as u16 }).collect(),
            }));
        }
        Request::Get { key } => {
            visit(key, state);
            match state.data.get(key) {
                Some(value) => answer(&Reply::Value { version, value }),
                None => answer(&Reply::Absent),
            }
        }
        Request::Set { key, value, .. } => {
            visit(key, state);
            state.writes += 1;
            if state.writes <= lose_writes_after {
                state.data.insert(key.to_vec(), value.to_vec());
            } else {
                state.data.remove(key);
            }
            answer(&Reply::Written { version });
        }
        Request::Delete { key, .. } => {
            visit(key, state);
            match state.data.remove(key) {
                Some(_) => answer(&Reply::Written { version }),
                None => answer(&Reply::Absent),
            }
        }
        Request::Incr { key, amount, .. } => {
            visit(key, state);
            let text = state.data.entry(key.to_vec()).or_insert_with(|| b"0".to_vec());
            let value = std::str::from_utf8(text).unwrap().parse::<i64>().unwrap() + amount;
            *text = value.to_string().into_bytes();
            answer(&Reply::Counter { version, value });
        }
        Request::Mget { keys } => {
            let mut list = ValueListEncoder::begin(out, id, EPOCH);
            for key in keys {
                match state.data.get(key) {
                    Some(value) => list.present(version, value),
                    None => list.absent(),
                }
            }
            list.finish();
        }
        Request::Scan(scan) => {
            let entries = state.data.range(scan.start.to_vec()..).take(scan.limit as usize);
            let mut page = PageEncoder::new(id, EPOCH);
            for (key, value) in entries {
                page.push(&ScanEntry { key, version, expiry_ms: 0, value });
            }
            out.extend_from_slice(&page.finish(false, None));
        }
        Request::Ping { .. }
        | Request::Batch { .. }
        | Request::Stats { .. }
        | Request::Expire { .. }
        | Request::Persist { .. }
        | Request::Ttl { .. }
        | Request::DeleteRange(_)
        | Request::Transact(_)
        | Request::Checkpoint { .. }
        | Request::Clients(_)
        | Request::Tablets { .. } => {
            encode_refusal(out, OpCode::Ping as u8, id, EPOCH, &Refusal::new(Code::Internal, "not here"));
        }
    }
}

#[test]
fn every_operation_is_matched_to_its_reply_and_verified() {
    let (address, state) = server(u64::MAX);
    let run = bench(
        &format!("atlaskv://{address}"),
        "--preload --verify --keys 500 --clients 5 --threads 2 --pipeline 8 --requests 20000 \
         --mix get=50,set=20,incr=10,mget=15,scan=5 --mget-keys 4 --scan-limit 10 --distribution uniform",
    );
    assert_eq!(run.code(), 0, "{}", run.errors());
    let json = run.json();
    assert_eq!(json["total"]["ops"], 20_000);
    assert_eq!(json["mismatches"]["count"], 0, "{}", json["mismatches"]);
    assert!(json["per_op"]["scan"]["keys"].as_u64() > json["per_op"]["scan"]["ops"].as_u64());
    assert_eq!(json["server"]["shards"], SHARDS);
    assert_eq!(json["server"]["connections"], 5 * SHARDS);
    let state = state.lock().unwrap();
    assert!(state.at_home > 10_000);
    assert_eq!(state.away, 0, "a shard-aware client sends to the owner");
}

#[test]
fn every_core_workload_of_ycsb_runs_and_is_verified() {
    for (workload, kinds) in [
        ("a", ["get", "set"]),
        ("b", ["get", "set"]),
        ("c", ["get", "get"]),
        ("d", ["get", "insert"]),
        ("e", ["scan", "insert"]),
        ("f", ["get", "rmw"]),
    ] {
        let (address, state) = server(u64::MAX);
        let run = bench(
            &format!("atlaskv://{address}"),
            &format!(
                "--workload {workload} --preload --verify --keys 500 --clients 5 --threads 2 --requests 8000"
            ),
        );
        assert_eq!(run.code(), 0, "{workload}: {}", run.errors());
        let json = run.json();
        assert_eq!(json["parameters"]["workload"], workload);
        assert_eq!(json["total"]["ops"], 8_000, "{workload}");
        let ops = |kind: &str| json["per_op"][kind]["ops"].as_u64().unwrap_or(0);
        let expected = kinds.iter().filter(|kind| ops(kind) > 300).count();
        assert_eq!(
            (expected, json["per_op"].as_object().unwrap().len()),
            (2, if workload == "c" { 1 } else { 2 })
        );
        assert_eq!(json["mismatches"]["count"], 0, "{workload}: {}", json["mismatches"]);
        assert_eq!(json["total"]["missing"], 0, "{workload}");
        let state = state.lock().unwrap();
        assert_eq!(state.data.len() as u64, 500 + ops("insert"), "{workload}");
        assert_eq!(state.writes, 500 + ops("set") + ops("insert") + ops("rmw"), "{workload}");
        assert!(state.data.values().all(|value| value.len() == 1000), "{workload}");
        assert_eq!(state.away, 0, "{workload}");
        if workload == "e" {
            let entries = json["per_op"]["scan"]["keys"].as_u64().unwrap() / ops("scan");
            assert!((30..60).contains(&entries), "{entries} entries a scan, of 1 to 100");
        }
    }
}

#[test]
fn one_load_serves_all_core_workloads() {
    let (address, _) = server(u64::MAX);
    let target = format!("atlaskv://{address}");
    assert_eq!(bench(&target, "--workload a --preload-only --keys 500 --clients 3").code(), 0);
    for workload in ["b", "d", "f"] {
        let run = bench(&target, &format!("--workload {workload} --keys 500 --verify --requests 2000"));
        assert_eq!((run.code(), &run.json()["total"]["missing"]), (0, &0.into()), "{workload}");
    }
}

#[test]
fn inserts_that_were_lost_are_found() {
    let (address, _) = server(700);
    let run = bench(
        &format!("atlaskv://{address}"),
        "--workload d --preload --verify --keys 500 --clients 2 --requests 20000",
    );
    assert_eq!(run.code(), 1);
    assert!(run.json()["mismatches"]["samples"][0].as_str().unwrap().contains("gone"));
}

#[test]
fn a_scattered_load_sets_every_key_and_absent_ones_lie_between() {
    let (address, state) = server(u64::MAX);
    let run = bench(
        &format!("atlaskv://{address}"),
        "--preload --preload-order scattered --absent --verify --keys 500 --key-size 8 --clients 3 \
         --requests 1000 --mix get=4,mget=1 --mget-keys 5 --compression-ratio 0.5",
    );
    assert_eq!(run.code(), 0, "{}", run.errors());
    let json = run.json();
    assert_eq!(json["load"]["keys"], 500);
    assert_eq!(json["load"]["response_us"]["samples"], 500);
    assert_eq!(json["total"]["missing"], json["total"]["keys"]);
    let state = state.lock().unwrap();
    assert_eq!((state.data.len(), state.writes), (500, 500));
    assert!(state.data.contains_key(&b"key:0499"[..]));
}

#[test]
fn a_plain_client_knows_nothing_of_shards() {
    let (address, state) = server(u64::MAX);
    let run = bench(
        &format!("atlaskv://{address}"),
        "--preload --verify --keys 500 --clients 5 --pipeline 8 --requests 5000 --shard-aware off --mix get,del,set",
    );
    assert_eq!(run.code(), 0, "{}", run.errors());
    assert_eq!(run.json()["server"]["connections"], 5);
    assert!(run.json()["per_op"]["del"]["missing"].as_u64().unwrap() > 0);
    assert_eq!(state.lock().unwrap().at_home, 0);
}

#[test]
fn lost_writes_are_found() {
    let (address, _) = server(700);
    let run = bench(
        &format!("atlaskv://{address}"),
        "--preload --verify --keys 500 --clients 2 --requests 5000 --mix get=9,set=1",
    );
    assert_eq!(run.code(), 1);
    assert!(run.json()["mismatches"]["samples"][0].as_str().unwrap().contains("gone"));
}

#[test]
fn values_beyond_the_servers_limit_are_refused_by_it() {
    let (address, _) = server(u64::MAX);
    let target = format!("atlaskv://{address}");
    let run = bench(&target, "--clients 2 --value-size 1049000 --requests 10 --mix set --keys 10");
    assert_eq!(run.code(), 1);
    let sample = run.json()["refusals"]["samples"][0].as_str().unwrap().to_string();
    assert!(sample.starts_with("value-too-large: "), "{sample}");
}
