//! What servers send: headers and replies to all operations, lists of values, pages of scans and their cursors, whole
//! or as far as they have arrived.

use atlaskv::base::Lsn;
use atlaskv::error::{Code, Refusal};
use atlaskv::protocol::binary::{
    Cursor, HEADER_BYTES, PageEncoder, ReplyError, ReplyHeader, Status, VERSION, ValueListEncoder,
    decode_reply, decode_reply_header, encode_refusal, encode_reply, page_ahead,
};
use atlaskv::protocol::{Hello, Lifetime, Limits, OpCode, Reply, ScanEntry, ScanPage, ShardRange};
use atlaskv::slot::SlotRange;
use fastrand::Rng;

use crate::allocator::measured;
use crate::driver::{Decoder, Outcome, letters};
use crate::keys;
use crate::mutate::{Number, Shape, number_at, numbers_from, set_number};

/// Longest frame that the client takes.
const FRAME_BYTES_MAX: u32 = 3000;
const LISTED_MAX: usize = 12;
/// Operation, flags, status, request id, value length, key length, version, epoch.
const HEADER: &[i8] = &[-3, 1, 2, 2, 8, 4, 2, 1, 1, 8, 4, 4];

pub struct Replies {
    again: Vec<u8>,
}

impl Replies {
    pub fn new() -> Replies {
        Replies { again: Vec::new() }
    }
}

fn hello(rng: &mut Rng) -> Hello {
    let shard_count = rng.u16(1..9);
    let slots = SlotRange::split_evenly(rng.u16(1..20));
    let ranges = slots.into_iter().map(|slots| ShardRange { slots, shard: rng.u16(..shard_count) });
    Hello {
        version: VERSION,
        shard_count,
        ranges: ranges.collect(),
        shard: 0,
        epoch: 77,
        limits: Limits::for_values(1 << 20),
    }
}

fn page(rng: &mut Rng, request_id: u64, key: &[u8]) -> Vec<u8> {
    let mut page = PageEncoder::new(request_id, 3);
    for _ in 0..rng.usize(..6) {
        let (key, value) = (keys::key(rng), keys::value(rng, 100));
        let expiry_ms = if rng.bool() { 0 } else { rng.u64(1..) };
        page.push(&ScanEntry { key: &key, version: Lsn(rng.u64(1..)), expiry_ms, value: &value });
    }
    let mut cursor = Vec::new();
    Cursor { shard: 2, page: rng.u32(..), session: rng.u64(..), key }.encode(&mut cursor);
    page.finish(rng.bool(), Some(&cursor[..]).filter(|_| rng.bool()))
}

fn value_list(rng: &mut Rng, request_id: u64, out: &mut Vec<u8>) {
    let mut list = ValueListEncoder::begin(out, request_id, 3);
    for _ in 0..rng.usize(..6) {
        match rng.bool() {
            true => list.present(Lsn(rng.u64(1..)), &keys::value(rng, 100)),
            false => list.absent(),
        }
    }
    list.finish();
}

impl Decoder for Replies {
    const NAME: &'static str = "reply";
    const EXECUTIONS: u64 = 60_000;
    const SHAPE: Shape = Shape { bytes_max: 4096, unit: 1 };

    fn generate(&mut self, rng: &mut Rng, out: &mut Vec<u8>) -> bool {
        let opcode = OpCode::ALL[rng.usize(..OpCode::ALL.len())];
        let (request_id, version) = (rng.u64(..), Lsn(rng.u64(1..)));
        let (key, value) = (keys::key(rng), keys::value(rng, 200));
        if rng.u8(..8) == 0 {
            let code = Code::ALL[rng.usize(..Code::ALL.len())];
            encode_reply(out, opcode, request_id, 3, &Reply::Refused(Refusal::new(code, "no: 7 is not 8")));
            return true;
        }
        let lifetime = Lifetime { remaining_ms: rng.u64(1..), expires_at_ms: rng.u64(1..) };
        let current = Some(version).filter(|_| rng.bool());
        let reply = match opcode {
            OpCode::Hello => Reply::Hello(hello(rng)),
            OpCode::Ping => Reply::Pong(&value),
            OpCode::Get if rng.bool() => Reply::Absent,
            OpCode::Get => Reply::Value { version, value: &value },
            OpCode::Set | OpCode::Delete | OpCode::Expire | OpCode::Persist => match rng.bool() {
                true => Reply::Written { version },
                false => Reply::ConditionFailed { current },
            },
            OpCode::Batch if rng.bool() => Reply::BatchFailed { item: rng.u32(..9), current },
            OpCode::Batch => Reply::Written { version },
            OpCode::Mget => {
                value_list(rng, request_id, out);
                return true;
            }
            OpCode::Incr => Reply::Counter { version, value: rng.i64(..) },
            OpCode::Ttl => Reply::Lifetime { version, lifetime: Some(lifetime).filter(|_| rng.bool()) },
            OpCode::Scan => {
                out.append(&mut page(rng, request_id, &key));
                return true;
            }
            OpCode::DeleteRange | OpCode::Flush => Reply::Done,
            OpCode::Transact => Reply::Resp(&value),
            OpCode::Stats | OpCode::Tablets | OpCode::Checkpoint | OpCode::Clients => {
                Reply::Stats("a=1\nb=2\n")
            }
        };
        encode_reply(out, opcode, request_id, 3, &reply);
        true
    }

    fn numbers(&self, input: &[u8], out: &mut Vec<Number>) {
        numbers_from(0, HEADER, out);
        let body = HEADER_BYTES;
        match input.get(3).copied().and_then(OpCode::from_u8) {
            Some(OpCode::Hello) => {
                numbers_from(body, &[1, 1, 2, 2, 2, 8, 4, 4, 4, 4, 4, 4], out);
                (0..LISTED_MAX).for_each(|range| numbers_from(body + 40 + 8 * range, &[2, 2, 2, 2], out));
            }
            Some(OpCode::Mget) => {
                numbers_from(body, &[4], out);
                let mut at = body + 4;
                for _ in 0..LISTED_MAX {
                    numbers_from(at, &[1, -3, 4, 8], out);
                    at += 16 + number_at(input, at + 4, 4) as usize;
                }
            }
            Some(OpCode::Scan) => {
                numbers_from(body, &[1, -3, 4, 4, 4], out);
                let cursor_len = number_at(input, body + 12, 4) as usize;
                numbers_from(body + 16, &[1, 1, 2, 4, 8], out);
                // Entries are the last bytes.
                let entries_len = number_at(input, body + 8, 4) as usize;
                let mut at = input.len().saturating_sub(entries_len).max(body + 16 + cursor_len);
                for _ in 0..LISTED_MAX {
                    numbers_from(at, &[2, 1, 1, 4, 8, 8], out);
                    let lens = number_at(input, at, 2) + number_at(input, at + 4, 4);
                    at += 16 + 8 * usize::from(number_at(input, at + 2, 1) == 1) + lens as usize;
                }
            }
            _ => numbers_from(body, &[4, 4, 8], out),
        }
        out.retain(|number| number.at + number.width <= input.len());
    }

    /// The frame's length, so that what is in it is looked at.
    fn repair(&mut self, input: &mut Vec<u8>, rng: &mut Rng) {
        if input.len() < HEADER_BYTES {
            return;
        }
        if rng.u8(..8) > 0 {
            input[..3].copy_from_slice(&[0xA7, b'R', VERSION]);
            set_number(input, 20, 2, 0);
        }
        let body = input.len() - HEADER_BYTES;
        set_number(input, 16, 4, body as u64);
    }

    fn execute(&mut self, input: &[u8]) -> Outcome {
        let (header, largest) = measured(|| decode_reply_header(input, FRAME_BYTES_MAX));
        assert_eq!(largest, 0, "a header made {largest} bytes be allocated");
        check_prefix(input, header);
        let header = match header {
            Ok(Some(header)) => header,
            Ok(None) => {
                assert!(input.len() < HEADER_BYTES, "a whole header, and more is wanted");
                return Outcome { at: input.len(), ..Outcome::default() };
            }
            Err(error) => return refused(1, 0, error),
        };
        assert!(header.frame_bytes() <= FRAME_BYTES_MAX as usize, "beyond the longest frame");
        let opcode = header.opcode.map_or(0, |opcode| opcode as u8);
        let Some(body) = input[HEADER_BYTES..].get(..header.body_bytes()) else {
            let kind = 2 << 8 | u64::from(opcode);
            return Outcome { kind, at: input.len(), ..Outcome::default() };
        };
        let (reply, largest) = measured(|| decode_reply(&header, body));
        // A sentence that is not UTF-8 is the longest that there is: three bytes for one, in a buffer that grows.
        assert!(largest <= 6 * body.len() + 64, "{} bytes made {largest} be allocated", body.len());
        let ahead = check_ahead(body, &header, reply.as_ref().ok());
        match reply {
            Ok(reply) => self.accepted(&header, &reply, input[3], body.len(), ahead),
            Err(error) => refused(3, opcode, error),
        }
    }
}

fn refused(stage: u64, opcode: u8, error: ReplyError) -> Outcome {
    let kind = match error {
        ReplyError::NotThisProtocol => 1,
        ReplyError::UnsupportedVersion(_) => 2,
        ReplyError::TooLarge { .. } => 3,
        ReplyError::TooManyConnections => 4,
        ReplyError::Malformed(what) => letters(what),
    };
    Outcome { kind: kind ^ stage << 32 ^ u64::from(opcode) << 16, ..Outcome::default() }
}

fn check_prefix(input: &[u8], whole: Result<Option<ReplyHeader>, ReplyError>) {
    let Some(len) = input.get(9).map(|byte| usize::from(*byte) % HEADER_BYTES) else { return };
    match decode_reply_header(&input[..len.min(input.len())], FRAME_BYTES_MAX) {
        Ok(None) => {}
        Ok(Some(header)) => panic!("{header:?} of {len} bytes"),
        early => assert_eq!(early, whole, "of {len} bytes"),
    }
}

/// What is told of a page of which a part has arrived holds of the whole page. Returns whether anything is.
fn check_ahead(body: &[u8], header: &ReplyHeader, reply: Option<&Reply<'_>>) -> bool {
    let cut = header.request_id as usize % (body.len() + 1);
    let (ahead, largest) = measured(|| page_ahead(&body[..cut]));
    assert_eq!(largest, 0, "a part of a page made {largest} bytes be allocated");
    if let (Some((count, cursor)), Some(Reply::Page(page))) = (ahead, reply) {
        assert_eq!((count as usize, Some(cursor)), (page.entries.len(), page.cursor), "of {cut} bytes");
    }
    if let Some(Reply::Page(ScanPage { cursor: Some(_), .. })) = reply {
        assert!(page_ahead(body).is_some(), "a page with a cursor does not tell it");
    }
    ahead.is_some()
}

impl Replies {
    fn accepted(
        &mut self,
        header: &ReplyHeader,
        reply: &Reply<'_>,
        opcode: u8,
        body_len: usize,
        is_ahead: bool,
    ) -> Outcome {
        let items = walk(reply);
        assert!(items <= body_len, "{items} items of {body_len} bytes");
        let (request_id, epoch) = (header.request_id, u64::from(header.epoch));
        self.again.clear();
        match (header.opcode, reply) {
            (None, Reply::Refused(refusal)) => {
                encode_refusal(&mut self.again, opcode, request_id, epoch, refusal);
            }
            (None, reply) => panic!("{reply:?} to no operation"),
            (Some(opcode), reply) => encode_reply(&mut self.again, opcode, request_id, epoch, reply),
        }
        let head = decode_reply_header(&self.again, u32::MAX).expect("it was accepted").expect("it is whole");
        assert_eq!((head.opcode, head.status), (header.opcode, header.status), "it came back as another");
        let again = decode_reply(&head, &self.again[HEADER_BYTES..]).expect("it was accepted");
        match (&again, reply) {
            // A sentence is cut at its longest.
            (Reply::Refused(again), Reply::Refused(refusal)) => {
                assert_eq!(again.code, refusal.code);
                assert!(refusal.message.starts_with(&again.message[..]), "another sentence");
            }
            // A page says what it was given, and not where: between the cursor and the entries may be anything.
            (again, reply) => assert_eq!(again, reply, "it came back as another"),
        }
        let status = match header.status {
            Status::Refused(code) => u64::from(code.number()),
            other => u64::from(other.number()),
        };
        let kind = 4 << 32 | u64::from(is_ahead) << 24 | status << 8 | u64::from(opcode);
        Outcome { is_accepted: true, kind, at: body_len, items }
    }
}

/// Looks at every item; returns their number.
fn walk(reply: &Reply<'_>) -> usize {
    match reply {
        Reply::Values(values) => {
            assert_eq!({ *values }.count(), values.len());
            values.len()
        }
        Reply::Page(page) => {
            if let Some(cursor) = page.cursor.and_then(Cursor::decode) {
                let mut again = Vec::new();
                cursor.encode(&mut again);
                assert_eq!(Some(&again[..]), page.cursor, "another cursor");
            }
            assert!({ page.entries }.all(|entry| !entry.key.is_empty() && entry.version != Lsn::ZERO));
            assert_eq!({ page.entries }.count(), page.entries.len());
            page.entries.len()
        }
        Reply::Hello(hello) => {
            assert!(hello.ranges.iter().all(|range| range.shard < hello.shard_count));
            hello.ranges.len()
        }
        _ => 0,
    }
}
