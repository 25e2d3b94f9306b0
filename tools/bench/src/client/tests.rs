//! The client against a protocol of its own making, on a clock that the test moves.

use std::collections::VecDeque;

use super::*;
use crate::record::{OpRecord, SECOND, Totals};
use crate::timetable::Arrivals;
use crate::wire::Reply;

/// Replies are `len u32, id u32, tag u8, value`; requests are remembered rather than encoded.
#[derive(Default)]
struct TestWire {
    requests: VecDeque<(u32, OpKind, Vec<u8>, Vec<u8>)>,
}

impl Wire for TestWire {
    const IN_ORDER: bool = false;

    fn encode(&mut self, op: Op<'_>, id: u32, out: &mut Vec<u8>) {
        let (kind, key, value) = match op {
            Op::Get { key } => (OpKind::Get, key, &[][..]),
            Op::Set { key, value } => (OpKind::Set, key, value),
            Op::Del { key } => (OpKind::Del, key, &[][..]),
            Op::Incr { key, .. } => (OpKind::Incr, key, &[][..]),
            Op::MGet { keys, .. } => (OpKind::MGet, keys, &[][..]),
            Op::Scan { start, end, .. } => (OpKind::Scan, start, end),
        };
        out.push(0);
        self.requests.push_back((id, kind, key.to_vec(), value.to_vec()));
    }

    fn decode<'a>(&mut self, input: &'a [u8]) -> Result<Option<Reply<'a>>, WireError> {
        let Some(len) = input.first_chunk() else { return Ok(None) };
        let len = u32::from_le_bytes(*len) as usize;
        let Some(reply) = input.get(4..4 + len) else { return Ok(None) };
        let id = u32::from_le_bytes(reply[..4].try_into().unwrap());
        let body = match reply[4] {
            b'v' => Body::Value(&reply[5..]),
            b'm' => Body::Missing,
            b'd' => Body::Done,
            b'e' => Body::Refused(String::from_utf8_lossy(&reply[5..])),
            other => return Err(WireError(format!("tag {other}"))),
        };
        Ok(Some(Reply { len: 4 + len, id: Some(id), body }))
    }
}

fn reply(id: u32, tag: u8, value: &[u8]) -> Vec<u8> {
    let mut out = (5 + value.len() as u32).to_le_bytes().to_vec();
    out.extend_from_slice(&id.to_le_bytes());
    out.push(tag);
    out.extend_from_slice(value);
    out
}

/// One client with its surroundings.
struct Bench {
    client: Client<TestWire>,
    workload: Workload,
    recorder: Option<Recorder>,
    scratch: Scratch,
    quota: u64,
}

impl Bench {
    fn new(mix: &str, pacing: Pacing, window: usize) -> Bench {
        let keys = 1000;
        let lanes = vec![Lane::new(TestWire::default(), false, 4)];
        let mut client = Client::new(3, lanes, Route::Any, Picker::uniform(), 1);
        let open_loop = matches!(pacing, Pacing::Open(_));
        client.pace(pacing, window);
        let workload = Workload {
            mix: mix.parse().unwrap(),
            population: Population::new(keys),
            space: KeySpace::new("k", 8, keys, true, None).unwrap(),
            values: Values::new(1.0),
            read_family: Family::Values,
            value_size: 64,
            mget_keys: 4,
            scan_limits: 1..=100,
            verify: true,
            all_present: false,
        };
        let recorder = Some(Recorder::new(0, 0, 100 * SECOND, open_loop, |_| true));
        Bench { client, workload, recorder, scratch: Scratch::default(), quota: u64::MAX }
    }

    fn with<T>(&mut self, now: u64, act: impl FnOnce(&mut Client<TestWire>, u64, &mut Shared<'_>) -> T) -> T {
        let mut shared = Shared {
            workload: &self.workload,
            recorder: self.recorder.as_mut().unwrap(),
            scratch: &mut self.scratch,
            quota: &mut self.quota,
        };
        act(&mut self.client, now, &mut shared)
    }

    fn fill(&mut self, now: u64) -> usize {
        let before = self.client.in_flight();
        self.with(now, |client, now, shared| client.fill(now, shared));
        let lane = &mut self.client.lanes[0];
        lane.dirty = false;
        lane.outgoing.advance(lane.outgoing.len());
        self.client.in_flight() - before
    }

    fn requests(&mut self) -> Vec<(u32, OpKind, Vec<u8>, Vec<u8>)> {
        self.client.lanes[0].wire.requests.drain(..).collect()
    }

    fn receive(&mut self, now: u64, input: &[u8]) -> Result<usize, WireError> {
        self.with(now, |client, now, shared| client.receive(0, input, now, shared))
    }

    fn totals(mut self) -> (Totals, Recorder) {
        self.recorder.take().unwrap().finish()
    }
}

fn sum(totals: &Totals) -> OpRecord {
    totals.sum().unwrap()
}

#[test]
fn a_closed_loop_keeps_the_pipeline_full() {
    let mut bench = Bench::new("set", Pacing::Closed, 16);
    assert_eq!(bench.fill(10), 16);
    assert_eq!(bench.fill(11), 0);
    let requests = bench.requests();
    let input: Vec<u8> = requests[..5].iter().flat_map(|request| reply(request.0, b'd', b"")).collect();
    assert_eq!(bench.receive(500_010, &input).unwrap(), input.len());
    assert_eq!(bench.fill(500_010), 5);
    let (totals, _) = bench.totals();
    assert_eq!(sum(&totals).ops, 5);
    assert!(sum(&totals).response.equivalent(sum(&totals).response.min(), 500_000));
}

#[test]
fn replies_in_any_order_and_any_pieces_go_to_their_requests() {
    let mut bench = Bench::new("get", Pacing::Closed, 32);
    bench.fill(0);
    let requests = bench.requests();
    let mut order: Vec<usize> = (0..32).collect();
    fastrand::Rng::with_seed(8).shuffle(&mut order);
    let mut stream = Vec::new();
    for at in order {
        let (id, _, key, _) = &requests[at];
        let mut value = Vec::new();
        bench.workload.values.make(key, at as u64, 64, &mut value);
        stream.extend(reply(*id, b'v', &value));
    }
    let mut buffer = Vec::new();
    for piece in stream.chunks(37) {
        buffer.extend_from_slice(piece);
        let taken = bench.receive(1_000, &buffer).unwrap();
        buffer.drain(..taken);
    }
    assert!(buffer.is_empty());
    assert_eq!(bench.client.in_flight(), 0);
    let (totals, recorder) = bench.totals();
    assert_eq!(sum(&totals).ops, 32);
    assert_eq!(recorder.mismatches.count, 0, "{:?}", recorder.mismatches.samples);
}

#[test]
fn a_second_answer_to_one_request_is_a_fault() {
    let mut bench = Bench::new("set", Pacing::Closed, 1);
    bench.fill(0);
    let id = bench.requests()[0].0;
    let twice = [reply(id, b'd', b""), reply(id, b'd', b"")].concat();
    assert!(bench.receive(5, &twice).is_err());
}

#[test]
fn a_value_of_another_key_a_damaged_one_and_a_lost_one_are_caught() {
    let mut bench = Bench::new("get", Pacing::Closed, 4);
    bench.workload.all_present = true;
    bench.fill(0);
    let requests = bench.requests();
    let (mut other, mut damaged) = (Vec::new(), Vec::new());
    bench.workload.values.make(b"k0other", 1, 64, &mut other);
    bench.workload.values.make(&requests[1].2, 1, 64, &mut damaged);
    damaged[40] ^= 4;
    let input = [
        reply(requests[0].0, b'v', &other),
        reply(requests[1].0, b'v', &damaged),
        reply(requests[2].0, b'm', b""),
        reply(requests[3].0, b'd', b""),
    ]
    .concat();
    bench.receive(9, &input).unwrap();
    let (totals, recorder) = bench.totals();
    assert_eq!(recorder.mismatches.count, 4);
    assert_eq!((sum(&totals).ops, sum(&totals).missing), (4, 1));
}

#[test]
fn a_refusal_is_counted_with_its_sentence() {
    let mut bench = Bench::new("set", Pacing::Closed, 1);
    bench.fill(0);
    let id = bench.requests()[0].0;
    bench.receive(3, &reply(id, b'e', b"no room")).unwrap();
    let (totals, recorder) = bench.totals();
    assert_eq!(sum(&totals).errors, 1);
    assert_eq!(recorder.refusals.samples, ["no room"]);
}

/// A server that stalls for a second must show in the latency of all that should have been sent in that
/// second, although hardly any of it was in flight: the omission that a closed loop cannot avoid.
#[test]
fn open_loop_latency_counts_from_the_intended_time() {
    let ms = 1_000_000;
    let timetable = Timetable::new(Arrivals::Fixed, 0, 1_000.0, 0.0, 0);
    let mut bench = Bench::new("set", Pacing::Open(timetable), 2);
    // The server answers in no time until 100 ms, then nothing until 1100 ms.
    for step in 0..100 {
        assert_eq!(bench.fill(step * ms), 1);
        let id = bench.requests()[0].0;
        bench.receive(step * ms, &reply(id, b'd', b"")).unwrap();
    }
    for step in 100..1100 {
        bench.fill(step * ms);
    }
    assert_eq!(bench.client.in_flight(), 2, "the window holds the rest back");
    assert_eq!(bench.client.due(u64::MAX, 1), None);
    // It wakes up: everything late is sent, nothing skipped.
    let mut answered = 0;
    loop {
        let now = 1_100 * ms;
        bench.fill(now);
        let requests = bench.requests();
        if requests.is_empty() {
            break;
        }
        answered += requests.len();
        for request in requests {
            bench.receive(now, &reply(request.0, b'd', b"")).unwrap();
        }
    }
    assert_eq!(answered, 1_001);
    assert_eq!(bench.client.due(u64::MAX, 1), Some(1_101 * ms));
    assert_eq!(bench.client.due(u64::MAX, 0), None, "no request is left to be made");
    let (totals, recorder) = bench.totals();
    let sum = sum(&totals);
    assert_eq!((sum.ops, recorder.scheduled), (1_101, 1_101));
    // The stalled ones are spread evenly over a second.
    let median = sum.response.value_at_quantile(0.5) / ms;
    assert!((440..460).contains(&median), "{median}");
    assert!(sum.response.max() / ms >= 999);
    // The server itself took that long for two of them only.
    let service = sum.service.unwrap();
    assert!(service.value_at_quantile(0.99) < ms);
    assert!((999..1002).contains(&(service.max() / ms)));
    // Those intended at 102 to 1098 ms; 100 and 101 filled the window, 1099 is late by just one.
    assert_eq!(recorder.late, 997);
}

#[test]
fn a_quota_is_used_up_exactly() {
    let mut bench = Bench::new("set", Pacing::Closed, 8);
    bench.quota = 20;
    let mut answered = 0;
    loop {
        bench.fill(1);
        let requests = bench.requests();
        if requests.is_empty() {
            break;
        }
        answered += requests.len();
        for request in requests {
            bench.receive(2, &reply(request.0, b'd', b"")).unwrap();
        }
    }
    assert_eq!(answered, 20);
    assert!(!bench.client.has_more(3, u64::MAX, bench.quota));
}

#[test]
fn a_read_modify_write_is_one_operation_of_two_requests() {
    let mut bench = Bench::new("rmw", Pacing::Closed, 2);
    assert_eq!(bench.fill(0), 2);
    let reads = bench.requests();
    assert!(reads.iter().all(|read| read.1 == OpKind::Get));
    let mut value = Vec::new();
    bench.workload.values.make(&reads[0].2, 9, 64, &mut value);
    let input = [reply(reads[0].0, b'v', &value), reply(reads[1].0, b'm', b"")].concat();
    bench.receive(1_000_000, &input).unwrap();
    assert_eq!(bench.client.in_flight(), 2, "their writes are to come");
    assert_eq!(bench.fill(1_000_000), 0);
    let writes = bench.requests();
    for (write, read) in writes.iter().zip(&reads) {
        assert_eq!((write.1, &write.2), (OpKind::Set, &read.2));
        assert!(value::is_intact(&write.2, &write.3) && write.3 != value);
    }
    let input = [reply(writes[0].0, b'd', b""), reply(writes[1].0, b'e', b"no room")].concat();
    bench.receive(3_000_000, &input).unwrap();
    assert_eq!(bench.fill(3_000_000), 2);
    let (totals, recorder) = bench.totals();
    let sum = sum(&totals);
    assert_eq!((sum.ops, sum.missing, sum.errors, recorder.scheduled), (2, 1, 1, 4));
    assert!(sum.response.equivalent(sum.response.min(), 3_000_000), "from the read to the write's answer");
    assert_eq!(recorder.mismatches.count, 0, "{:?}", recorder.mismatches.samples);
}

#[test]
fn a_read_that_is_refused_is_not_followed_by_a_write() {
    let mut bench = Bench::new("rmw", Pacing::Closed, 1);
    bench.fill(0);
    let id = bench.requests()[0].0;
    bench.receive(5, &reply(id, b'e', b"busy")).unwrap();
    assert_eq!((bench.client.in_flight(), bench.requests().len()), (0, 0));
    // A read is not answered as a write.
    bench.fill(6);
    let id = bench.requests()[0].0;
    bench.receive(7, &reply(id, b'd', b"")).unwrap();
    let (totals, recorder) = bench.totals();
    assert_eq!((sum(&totals).ops, sum(&totals).errors, recorder.mismatches.count), (2, 1, 1));
}

#[test]
fn inserts_take_new_keys_that_are_read_once_they_are_there() {
    let mut bench = Bench::new("insert=1,get=3", Pacing::Closed, 40);
    bench.workload.all_present = true;
    for round in 0..200 {
        bench.fill(round);
        let known = bench.workload.population.known();
        for (id, kind, key, _) in bench.requests() {
            let number: u64 = std::str::from_utf8(&key[1..]).unwrap().parse().unwrap();
            match kind {
                OpKind::Set => {
                    assert!(number >= 1000);
                    bench.receive(round, &reply(id, b'd', b"")).unwrap();
                }
                _ => {
                    assert!(number < known);
                    let mut value = Vec::new();
                    bench.workload.values.make(&key, 1, 64, &mut value);
                    bench.receive(round, &reply(id, b'v', &value)).unwrap();
                }
            }
        }
    }
    let known = bench.workload.population.known();
    let (totals, recorder) = bench.totals();
    assert_eq!(known - 1000, totals.ops[OpKind::Insert as usize].as_ref().unwrap().ops);
    assert!(known > 2000);
    assert_eq!(recorder.mismatches.count, 0, "{:?}", recorder.mismatches.samples);
}

#[test]
fn loading_sets_each_key_of_its_share_once() {
    let mut bench = Bench::new("get", Pacing::Load { next: 3, step: 50, end: 1000, scramble: None }, 1000);
    assert_eq!(bench.fill(0), 20);
    let requests = bench.requests();
    assert!(requests.iter().all(|(_, kind, key, value)| *kind == OpKind::Set
        && value.len() == 64
        && value::is_intact(key, value)));
    assert_eq!(requests[1].2, b"k0000053");
    assert!(!bench.client.has_more(0, u64::MAX, u64::MAX));
}

#[test]
fn keys_go_to_the_lane_of_their_owner() {
    let mut bench = Bench::new("get", Pacing::Closed, 200);
    let owners: Vec<u16> = (0..atlaskv::slot::SLOT_COUNT).map(|slot| slot / 8192).collect();
    bench.client.route = Route::BySlot(owners.into());
    bench.client.lanes.push(Lane::new(TestWire::default(), false, 4));
    bench.fill(0);
    let counts: Vec<usize> = bench.client.lanes.iter().map(|lane| lane.wire.requests.len()).collect();
    assert_eq!(counts[0] + counts[1], 200);
    assert!(counts.iter().all(|&count| count > 50), "{counts:?}");
    for (shard, lane) in bench.client.lanes.iter().enumerate() {
        assert!(lane.wire.requests.iter().all(|r| usize::from(Slot::of_key(&r.2).number()) / 8192 == shard));
    }
}
