//! What clients send: headers and requests of all operations, with the lists, ranges and cursors in them.

use atlaskv::base::{EXPIRY_MS_MAX, Lsn};
use atlaskv::protocol::binary::{
    ClientIdList, Cursor, FrameError, FrameHeader, HEADER_BYTES, KeyList, OpList, Step, StepList, VERSION,
    Watch, WatchList, decode_header, decode_request, encode_request,
};
use atlaskv::protocol::{
    Action, BatchOp, ClientsAction, ClientsRequest, Condition, Deadline, DeleteRange, Durability, Expiry,
    HelloRequest, Limits, OpCode, Paused, Request, ScanRequest, Transaction,
};
use fastrand::Rng;

use crate::allocator::measured;
use crate::driver::{Decoder, Outcome, letters};
use crate::keys;
use crate::mutate::{Number, Shape, number_at, numbers_from, set_number};

/// A refusal is a sentence. Nothing else is allocated, whatever counts and lengths claim.
const ALLOCATION_MAX: usize = 512;
/// Items of a list of which numbers are looked for.
const LISTED_MAX: usize = 12;

/// Of a header: operation, flags, status, request id, value length, key length, durability, condition, version,
/// expiry.
const HEADER: &[i8] = &[-3, 1, 2, 2, 8, 4, 2, 1, 1, 8, 8];

pub struct Requests {
    wide: Limits,
    narrow: Limits,
    again: Vec<u8>,
}

impl Requests {
    pub fn new() -> Requests {
        let wide = Limits::for_values(1 << 20);
        // So narrow that inputs of a few hundred bytes meet each of them.
        let narrow = Limits {
            key_bytes_max: 20,
            value_bytes_max: 60,
            batch_bytes_max: 90,
            items_max: 3,
            frame_bytes_max: 200,
            ..wide
        };
        Requests { wide, narrow, again: Vec::new() }
    }

    /// The limits that an input is decoded by: a bit of its request id says which.
    fn limits(&self, input: &[u8]) -> Limits {
        if is_narrow(input) { self.narrow } else { self.wide }
    }
}

fn is_narrow(input: &[u8]) -> bool {
    number_at(input, 8, 8) >> 63 != 0
}

fn deadline(rng: &mut Rng) -> Deadline {
    let ms = [1, 1000, EXPIRY_MS_MAX, rng.u64(1..EXPIRY_MS_MAX)][rng.usize(..4)];
    if rng.bool() { Deadline::In(ms) } else { Deadline::At(ms) }
}

fn expiry(rng: &mut Rng) -> Expiry {
    match rng.u8(..4) {
        0 => Expiry::Set(deadline(rng)),
        1 => Expiry::Keep,
        _ => Expiry::Never,
    }
}

fn condition(rng: &mut Rng, is_of_key: bool) -> Condition {
    match rng.u8(..6) {
        0 if is_of_key => Condition::IfAbsent,
        1 => Condition::IfPresent,
        2 => Condition::IfVersion(Lsn(rng.u64(1..) >> rng.u32(..60) | 1)),
        _ => Condition::None,
    }
}

fn batch(rng: &mut Rng, list: &mut OpList) {
    for at in 0..rng.usize(1..6) {
        let (key, value) = (keys::key_of_one_slot(rng), keys::value(rng, 100));
        let (action, takes_absent) = match rng.u8(..6) {
            1 => (Action::Delete, false),
            2 => (Action::Expire(deadline(rng)), false),
            3 => (Action::Persist, false),
            4 if at > 0 => (Action::Check, true),
            _ => (Action::Put { value: &value, expiry: expiry(rng) }, true),
        };
        let condition = match (action, condition(rng, takes_absent)) {
            (Action::Check, Condition::None) => Condition::IfPresent,
            (_, condition) => condition,
        };
        list.push(&BatchOp { key: &key, condition, action });
    }
}

/// Some watches and steps.
fn transaction(rng: &mut Rng, watches: &mut WatchList, steps: &mut StepList) {
    for _ in 0..rng.usize(..3) {
        let version = Some(Lsn(rng.u64(1..))).filter(|_| rng.bool());
        watches.push(Watch { key: &keys::key(rng), version });
    }
    for _ in 0..rng.usize(..4) {
        let (name, key, value) =
            ([&b"SET"[..], b"get", b"x"][rng.usize(..3)], keys::key(rng), keys::value(rng, 50));
        match rng.u8(..5) {
            0 => steps.reply(&value),
            1 => steps.command(&[name]),
            _ => steps.command(&[name, &key, &value][..rng.usize(2..=3)]),
        }
    }
}

impl Decoder for Requests {
    const NAME: &'static str = "request";
    const EXECUTIONS: u64 = 60_000;
    const SHAPE: Shape = Shape { bytes_max: 4096, unit: 1 };

    fn generate(&mut self, rng: &mut Rng, out: &mut Vec<u8>) -> bool {
        let request_id = rng.u64(1..1 << 62) | u64::from(rng.u8(..4) == 0) << 63;
        let durability = if rng.bool() { Durability::Always } else { Durability::Default };
        let (key, value) = (keys::key(rng), keys::value(rng, 200));
        let (start, end) = keys::range(rng);
        let (mut key_list, mut op_list) = (KeyList::default(), OpList::default());
        let mut id_list = ClientIdList::default();
        let (mut watch_list, mut step_list) = (WatchList::default(), StepList::default());
        let text = ["total", "shards", "move 3 1", "split 7 99", "rebalance", "cores 4"][rng.usize(..6)];
        let request = match OpCode::ALL[rng.usize(..OpCode::ALL.len())] {
            OpCode::Hello => Request::Hello(HelloRequest {
                version_min: rng.u8(..=VERSION),
                version_max: rng.u8(VERSION..),
                shard: Some(rng.u16(..u16::MAX)).filter(|_| rng.bool()),
            }),
            OpCode::Ping => Request::Ping { payload: &value },
            OpCode::Get => Request::Get { key: &key },
            OpCode::Set => Request::Set {
                key: &key,
                value: &value,
                expiry: expiry(rng),
                condition: condition(rng, true),
                durability,
            },
            OpCode::Delete => Request::Delete { key: &key, condition: condition(rng, false), durability },
            OpCode::Mget => {
                (0..rng.usize(1..6)).for_each(|_| key_list.push(&keys::key(rng)));
                Request::Mget { keys: key_list.keys() }
            }
            OpCode::Batch => {
                batch(rng, &mut op_list);
                Request::Batch { ops: op_list.ops(), durability }
            }
            OpCode::Incr => Request::Incr { key: &key, amount: rng.i64(..), durability },
            OpCode::Stats => Request::Stats { section: if rng.bool() { "" } else { text } },
            OpCode::Expire => Request::Expire {
                key: &key,
                deadline: deadline(rng),
                condition: condition(rng, false),
                durability,
            },
            OpCode::Persist => Request::Persist { key: &key, condition: condition(rng, false), durability },
            OpCode::Ttl => Request::Ttl { key: &key },
            OpCode::Scan => {
                let cursor =
                    Cursor { shard: rng.u16(..), page: rng.u32(..9), session: rng.u64(..), key: &key };
                Request::Scan(ScanRequest {
                    start: &start,
                    end: if rng.bool() { &end } else { b"" },
                    is_reverse: rng.bool(),
                    is_keys_only: rng.bool(),
                    is_local: rng.bool(),
                    entries_max: rng.u32(..100),
                    bytes_max: rng.u32(..),
                    limit: rng.u64(..1000),
                    cursor: Some(cursor).filter(|_| rng.bool()),
                })
            }
            OpCode::DeleteRange => {
                let (is_local, epoch) = (rng.bool(), rng.u64(..5));
                let range = DeleteRange { start: &start, end: &end, is_local, epoch, durability };
                Request::DeleteRange(range)
            }
            OpCode::Flush => Request::DeleteRange(DeleteRange { durability, ..DeleteRange::default() }),
            OpCode::Transact => {
                transaction(rng, &mut watch_list, &mut step_list);
                Request::Transact(Transaction {
                    key: &key,
                    is_resp3: rng.bool(),
                    is_array: rng.bool(),
                    watches: watch_list.watches(),
                    steps: step_list.steps(),
                    durability,
                })
            }
            OpCode::Tablets => Request::Tablets { command: text },
            OpCode::Checkpoint => Request::Checkpoint { dir: "/a/b" },
            OpCode::Clients => {
                (0..rng.usize(1..6)).for_each(|_| id_list.push(rng.u64(..)));
                let action = match rng.u8(..3) {
                    0 => ClientsAction::Disconnect(id_list.ids()),
                    1 => ClientsAction::Pause {
                        paused: if rng.bool() { Paused::All } else { Paused::Writes },
                        ms: rng.u64(..),
                    },
                    _ => ClientsAction::Unpause,
                };
                Request::Clients(ClientsRequest { shard: rng.u16(..), action })
            }
        };
        encode_request(out, request_id, &request);
        !is_narrow(out)
    }

    fn numbers(&self, input: &[u8], out: &mut Vec<Number>) {
        numbers_from(0, HEADER, out);
        let value_at = HEADER_BYTES + number_at(input, 20, 2) as usize;
        match input.get(3).copied().and_then(OpCode::from_u8) {
            Some(OpCode::Hello) => numbers_from(value_at, &[1, 1, 2, 4], out),
            Some(OpCode::Incr) => numbers_from(value_at, &[8], out),
            // Flags, most entries, most bytes, lengths, limit; then the cursor.
            Some(OpCode::Scan) => {
                numbers_from(value_at, &[1, -3, 4, 4, 2, 2, 4, 4, 8], out);
                let bounds = number_at(input, value_at + 12, 2) + number_at(input, value_at + 14, 2);
                numbers_from(value_at + 32 + bounds as usize, &[1, 1, 2, 4, 8], out);
            }
            Some(OpCode::DeleteRange | OpCode::Flush) => numbers_from(value_at, &[2, 2, 4, 8], out),
            Some(OpCode::Clients) => numbers_from(value_at, &[1, 1, 2, 4, 8, 8], out),
            Some(OpCode::Transact) => {
                // Flags, bytes of watches, their count; then those; then steps and their arguments.
                numbers_from(value_at, &[4, 4, 4], out);
                let mut at = value_at + 12;
                for _ in 0..(number_at(input, value_at + 8, 4) as usize).min(LISTED_MAX) {
                    numbers_from(at, &[2, 2, 8], out);
                    at += 12 + number_at(input, at, 2) as usize;
                }
                numbers_from(at, &[4], out);
                at += 4;
                for _ in 0..LISTED_MAX {
                    numbers_from(at, &[4, 4, 4], out);
                    at += 8 + number_at(input, at, 4) as usize;
                }
            }
            Some(OpCode::Mget) => {
                numbers_from(value_at, &[4], out);
                let mut at = value_at + 4;
                for _ in 0..LISTED_MAX {
                    numbers_from(at, &[2], out);
                    at += 2 + number_at(input, at, 2) as usize;
                }
            }
            Some(OpCode::Batch) => {
                numbers_from(value_at, &[4], out);
                let mut at = value_at + 4;
                for _ in 0..LISTED_MAX {
                    numbers_from(at, &[1, 1, 2, 4, 8, 8], out);
                    let options = number_at(input, at + 1, 1);
                    let has = usize::from(options >> 2 == 3) + usize::from((1..3).contains(&(options & 3)));
                    let (key_len, value_len) = (number_at(input, at + 2, 2), number_at(input, at + 4, 4));
                    at += 8 + 8 * has + (key_len + value_len) as usize;
                }
            }
            _ => {}
        }
        out.retain(|number| number.at + number.width <= input.len());
    }

    /// The frame's length, so that what is in it is looked at; and most often magic and version.
    fn repair(&mut self, input: &mut Vec<u8>, rng: &mut Rng) {
        if input.len() < HEADER_BYTES {
            return;
        }
        if rng.u8(..8) > 0 {
            input[..3].copy_from_slice(&[0xA7, b'Q', VERSION]);
        }
        let body = input.len() - HEADER_BYTES;
        let key_len = (number_at(input, 20, 2) as usize).min(body);
        set_number(input, 20, 2, key_len as u64);
        set_number(input, 16, 4, (body - key_len) as u64);
    }

    fn execute(&mut self, input: &[u8]) -> Outcome {
        let limits = self.limits(input);
        let (header, largest) = measured(|| decode_header(input, &limits));
        assert!(largest <= ALLOCATION_MAX, "a header made {largest} bytes be allocated");
        check_prefix(input, &header, &limits);
        let header = match header {
            Ok(Some(header)) => header,
            Ok(None) => {
                assert!(input.len() < HEADER_BYTES, "a whole header, and more is wanted");
                return Outcome { at: input.len(), ..Outcome::default() };
            }
            Err(FrameError::Refused { opcode, frame_bytes, refusal, .. }) => {
                assert!(
                    frame_bytes <= limits.frame_bytes_max as usize,
                    "it would wait for {frame_bytes} bytes"
                );
                return refused(1, opcode, refusal.code.number(), &refusal.message);
            }
            Err(FrameError::OutOfStep { refusal, .. }) => {
                return refused(2, 0, refusal.code.number(), &refusal.message);
            }
        };
        assert!(header.frame_bytes() <= limits.frame_bytes_max as usize, "beyond the longest frame");
        let Some(body) = input[HEADER_BYTES..].get(..header.body_bytes()) else {
            return Outcome { kind: 3 << 8 | header.opcode as u64, at: input.len(), ..Outcome::default() };
        };
        let (request, largest) = measured(|| decode_request(&header, body, &limits));
        assert!(largest <= ALLOCATION_MAX, "a request made {largest} bytes be allocated");
        match request {
            Ok(request) => self.accepted(&header, &request, &input[..header.frame_bytes()], &limits),
            Err(refusal) => refused(4, header.opcode as u8, refusal.code.number(), &refusal.message),
        }
    }
}

fn refused(stage: u64, opcode: u8, code: u16, message: &str) -> Outcome {
    assert!(message.len() <= 400, "a sentence of {} bytes", message.len());
    Outcome {
        kind: letters(message) ^ stage << 32 ^ u64::from(opcode) << 16 ^ u64::from(code),
        ..Outcome::default()
    }
}

/// What a header is refused for is seen at its start or when it is whole, never in between and never otherwise.
fn check_prefix(input: &[u8], whole: &Result<Option<FrameHeader>, FrameError>, limits: &Limits) {
    let Some(len) = input.get(9).map(|byte| usize::from(*byte) % HEADER_BYTES) else { return };
    match decode_header(&input[..len.min(input.len())], limits) {
        Ok(None) => {}
        Ok(Some(header)) => panic!("{header:?} of {len} bytes"),
        early => assert_eq!(&early, whole, "of {len} bytes"),
    }
}

impl Requests {
    fn accepted(
        &mut self,
        header: &FrameHeader,
        request: &Request<'_>,
        frame: &[u8],
        limits: &Limits,
    ) -> Outcome {
        assert_eq!(request.opcode(), header.opcode, "it became another operation");
        let _ = request.route();
        let items = walk(request);
        assert!(items <= frame.len(), "{items} items of {} bytes", frame.len());
        self.again.clear();
        encode_request(&mut self.again, header.request_id, request);
        let head = decode_header(&self.again, limits).expect("it was accepted").expect("it is whole");
        let again = decode_request(&head, &self.again[HEADER_BYTES..], limits).expect("it was accepted");
        assert_eq!(&again, request, "it came back as another");
        assert_eq!(self.again, frame, "two frames for one request");
        let kind = 5 << 32 | options(request) << 40 | header.opcode as u64;
        Outcome { is_accepted: true, kind, at: frame.len(), items }
    }
}

/// What of a request leads to different ways through a server, as a number.
fn options(request: &Request<'_>) -> u64 {
    match request {
        Request::Set { expiry, condition, .. } => {
            let expiry = match expiry {
                Expiry::Never => 0,
                Expiry::Set(_) => 1,
                Expiry::Keep => 2,
            };
            u64::from(condition.number()) << 2 | expiry
        }
        Request::Delete { condition, .. } => u64::from(condition.number()),
        Request::Scan(scan) => u64::from(scan.cursor.is_some()),
        _ => 0,
    }
}

/// Looks at every item; returns their number.
fn walk(request: &Request<'_>) -> usize {
    match request {
        Request::Mget { keys } => {
            assert!({ *keys }.all(|key| !key.is_empty()), "an empty key");
            assert_eq!({ *keys }.count(), keys.len());
            keys.len()
        }
        Request::Batch { ops, .. } => {
            let writes = { *ops }.filter(|op| op.action.is_write()).count();
            assert!(writes > 0, "a batch that writes nothing");
            for op in *ops {
                assert!(!op.key.is_empty() && op.condition.number() <= 3, "{op:?}");
                if let Action::Expire(deadline) = op.action {
                    let _ = deadline.resolve(1_767_225_600_000);
                }
            }
            ops.len()
        }
        Request::Transact(transaction) => {
            assert!({ transaction.watches }.all(|watch| !watch.key.is_empty()), "an empty key");
            let arguments = |step| match step {
                Step::Command(arguments) => arguments.count(),
                Step::Reply(_) => 1,
            };
            transaction.watches.len() + { transaction.steps }.map(arguments).sum::<usize>()
        }
        Request::Clients(clients) => match clients.action {
            ClientsAction::Disconnect(ids) => {
                assert!(!ids.is_empty() && ids.iter().count() == ids.len(), "{ids:?}");
                ids.len()
            }
            ClientsAction::Pause { .. } | ClientsAction::Unpause => 0,
        },
        _ => 0,
    }
}
