//! Redis' protocol: what clients send, and what is answered.

use atlaskv::protocol::resp::{
    self, Args, Limits, Parsed, Parser, Proto, ProtocolError, Reply, decode_reply,
};
use fastrand::Rng;

use crate::allocator::measured;
use crate::driver::{Decoder, Outcome, letters};
use crate::keys;
use crate::mutate::{Number, Shape};

/// What may be allocated whatever the input is: a sentence.
const ALLOCATION_MAX: usize = 512;
/// And for each byte of it. An argument of at least six bytes is a reference of 16 in a list that grows by
/// doubling, a reply of at least three a value of 32.
const ALLOCATION_FACTOR: usize = 24;

/// What the format is made of.
const TOKENS: [&[u8]; 16] = [
    b"*1\r\n", b"*2\r\n", b"*3\r\n", b"*0\r\n", b"*-1\r\n", b"$0\r\n", b"$1\r\n", b"$3\r\n", b"\r\n", b"\n",
    b"\"", b"'", b"\\x4", b" ", b"$-1\r\n", b"\0",
];

/// Changes lengths, and puts what the format is made of where something else stood.
fn repair(input: &mut Vec<u8>, rng: &mut Rng) {
    if input.is_empty() {
        return;
    }
    let digits: Vec<usize> = (0..input.len()).filter(|at| input[*at].is_ascii_digit()).collect();
    if !digits.is_empty() && rng.bool() {
        input[digits[rng.usize(..digits.len())]] = b"0123456789-"[rng.usize(..11)];
        return;
    }
    let token = TOKENS[rng.usize(..TOKENS.len())];
    let at = rng.usize(..input.len());
    let end = input.len().min(at + rng.usize(..=token.len()));
    input.splice(at..end, token.iter().copied());
}

/// Commands of a connection, of which each may end in any read.
pub struct RespRequests {
    wide: Limits,
    narrow: Limits,
    again: Vec<u8>,
}

impl RespRequests {
    pub fn new() -> RespRequests {
        // So narrow that inputs of a few hundred bytes meet each of them.
        let narrow = Limits { bulk_bytes_max: 60, args_max: 5, inline_bytes_max: 40, command_bytes_max: 90 };
        RespRequests { wide: Limits::default(), narrow, again: Vec::new() }
    }

    /// A parser for an input, which says by its length what that is like.
    fn parser(&self, input: &[u8]) -> Parser {
        let mut parser = Parser::new(if is_narrow(input) { self.narrow } else { self.wide });
        parser.set_authenticated(input.len() & 2 == 0);
        parser
    }

    /// What is accepted is the same command when its arguments are sent as an array.
    fn check_again(&mut self, args: &[Vec<u8>]) {
        self.again.clear();
        resp::array(&mut self.again, args.len());
        args.iter().for_each(|arg| resp::bulk(&mut self.again, arg));
        let mut parser = Parser::new(Limits { args_max: usize::MAX, ..self.wide });
        let mut again = Args::new();
        let parsed = parser.parse(&self.again, &mut again);
        assert_eq!(parsed, Ok(Parsed::Command { used: self.again.len() }));
        assert!(again.iter().eq(args.iter()), "it came back as another");
    }
}

fn is_narrow(input: &[u8]) -> bool {
    input.len() & 1 != 0
}

/// What came of a stream.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    commands: Vec<Vec<Vec<u8>>>,
    error: Option<ProtocolError>,
    /// Where what is not whole begins, or is refused.
    at: usize,
}

/// Parses all that a stream has, read in pieces of `step` bytes.
fn read(mut parser: Parser, input: &[u8], step: usize) -> Seen {
    let mut seen = Seen::default();
    let mut end = 0;
    while end < input.len() {
        end = input.len().min(end + step);
        loop {
            let (mut args, bytes) = (Args::new(), &input[seen.at..end]);
            let (parsed, largest) = measured(|| parser.parse(bytes, &mut args));
            assert!(
                largest <= ALLOCATION_MAX + ALLOCATION_FACTOR * bytes.len(),
                "{} bytes made {largest} be allocated",
                bytes.len()
            );
            let (used, command) = match parsed {
                Ok(Parsed::NeedMore { wanted }) => {
                    assert!(wanted > bytes.len(), "more is wanted than {wanted}, which are there");
                    break;
                }
                Ok(Parsed::Nothing { used }) => (used, None),
                Ok(Parsed::Quoted { used, words }) => (used, Some(words)),
                Ok(Parsed::Command { used }) => {
                    (used, Some(args.iter().map(|arg| arg.to_vec()).collect::<Vec<_>>()))
                }
                Err(error) => {
                    seen.error = Some(error);
                    return seen;
                }
            };
            assert!((1..=bytes.len()).contains(&used), "{used} of {} bytes", bytes.len());
            assert!(command.as_ref().is_none_or(|args| !args.is_empty()), "a command of no arguments");
            seen.commands.extend(command);
            seen.at += used;
        }
    }
    seen
}

impl Decoder for RespRequests {
    const NAME: &'static str = "resp-request";
    const EXECUTIONS: u64 = 40_000;
    const SHAPE: Shape = Shape { bytes_max: 4096, unit: 1 };

    fn generate(&mut self, rng: &mut Rng, out: &mut Vec<u8>) -> bool {
        for _ in 0..rng.usize(1..4) {
            let args: Vec<Vec<u8>> = (0..rng.usize(1..6)).map(|_| keys::value(rng, 60)).collect();
            match rng.u8(..4) {
                0 => {
                    for arg in &args {
                        out.extend_from_slice(if rng.bool() { b" \"" } else { b"\t\"" });
                        let escaped = arg.iter().map(|byte| match rng.u8(..4) {
                            0 if byte.is_ascii_alphanumeric() => char::from(*byte).to_string(),
                            _ => format!("\\x{byte:02x}"),
                        });
                        escaped.for_each(|text| out.extend_from_slice(text.as_bytes()));
                        out.push(b'"');
                    }
                    out.extend_from_slice(b"\r\n");
                }
                1 => out.extend_from_slice(b"SET 'a\\'b' c\"d\\n\"\n"),
                _ => {
                    resp::array(out, args.len());
                    args.iter().for_each(|arg| resp::bulk(out, arg));
                }
            }
        }
        !is_narrow(out)
    }

    /// Its numbers are text.
    fn numbers(&self, _input: &[u8], _out: &mut Vec<Number>) {}

    fn repair(&mut self, input: &mut Vec<u8>, rng: &mut Rng) {
        repair(input, rng);
    }

    fn execute(&mut self, input: &[u8]) -> Outcome {
        let seen = read(self.parser(input), input, input.len().max(1));
        let step = 1 + input.first().map_or(0, |byte| usize::from(byte % 11));
        assert_eq!(read(self.parser(input), input, step), seen, "in pieces of {step}");
        seen.commands.iter().for_each(|args| self.check_again(args));
        let items = seen.commands.iter().map(Vec::len).sum();
        if let Some(error) = seen.error {
            let mut reply = Vec::new();
            error.encode(&mut reply);
            let (decoded, len) = decode_reply(&reply).expect("it is ours").expect("it is whole");
            assert!(matches!(decoded, Reply::Error(_)) && len == reply.len(), "{error}");
            return Outcome { is_accepted: false, kind: letters(&error.to_string()), at: seen.at, items };
        }
        let is_whole = seen.at == input.len();
        let first = input.get(seen.at).copied().map_or(0, |byte| 1 + u64::from(byte == b'*'));
        Outcome { is_accepted: is_whole, kind: first, at: seen.at, items }
    }
}

/// Replies, of both versions of the protocol.
pub struct RespReplies;

fn reply(rng: &mut Rng, depth: usize, out: &mut Vec<u8>) {
    let proto = if rng.bool() { Proto::Resp2 } else { Proto::Resp3 };
    if depth == 0 {
        return leaf(rng, proto, out);
    }
    let len = rng.usize(..4);
    let items = match rng.u8(..6) {
        0 | 1 => {
            resp::array(out, len);
            len
        }
        2 => {
            resp::map(out, len, proto);
            2 * len
        }
        3 => {
            resp::set(out, len, proto);
            len
        }
        4 => {
            resp::push(out, len, proto);
            len
        }
        _ => return leaf(rng, proto, out),
    };
    (0..items).for_each(|_| reply(rng, depth - 1, out));
}

fn leaf(rng: &mut Rng, proto: Proto, out: &mut Vec<u8>) {
    let text = ["OK", "1.5", "inf", "ERR no", ""][rng.usize(..5)];
    match rng.u8(..10) {
        0 => resp::simple(out, text),
        1 => resp::error(out, text),
        2 => resp::integer(out, rng.i64(..) >> rng.u32(..64)),
        3 => resp::null(out, proto),
        4 => resp::null_array(out, proto),
        5 => resp::boolean(out, rng.bool(), proto),
        6 => resp::double(out, text, proto),
        7 => resp::verbatim(out, "txt", text.as_bytes(), proto),
        _ => resp::bulk(out, &keys::value(rng, 40)),
    }
}

impl Decoder for RespReplies {
    const NAME: &'static str = "resp-reply";
    const EXECUTIONS: u64 = 40_000;
    const SHAPE: Shape = Shape { bytes_max: 4096, unit: 1 };

    fn generate(&mut self, rng: &mut Rng, out: &mut Vec<u8>) -> bool {
        let depth = rng.usize(..4);
        reply(rng, depth, out);
        true
    }

    fn numbers(&self, _input: &[u8], _out: &mut Vec<Number>) {}

    fn repair(&mut self, input: &mut Vec<u8>, rng: &mut Rng) {
        if rng.bool() && !input.is_empty() {
            let at = rng.usize(..input.len());
            input[at] = b"+-:$*_#,(!=%|~>\r\n0"[rng.usize(..18)];
        } else {
            repair(input, rng);
        }
    }

    fn execute(&mut self, input: &[u8]) -> Outcome {
        let (decoded, largest) = measured(|| decode_reply(input));
        assert!(
            largest <= ALLOCATION_MAX + ALLOCATION_FACTOR * input.len(),
            "{} bytes made {largest} be allocated",
            input.len()
        );
        match decoded {
            Ok(Some((reply, len))) => {
                let items = count(&reply);
                assert!(len <= input.len() && items <= len / 3, "{items} items of {len} bytes");
                for part in 0..len {
                    assert_eq!(decode_reply(&input[..part]), Ok(None), "{part} bytes of it");
                }
                Outcome { is_accepted: true, kind: u64::from(input[0]), at: len, items }
            }
            Ok(None) => Outcome { at: input.len(), ..Outcome::default() },
            Err(error) => Outcome { kind: letters(error.what), at: error.at, ..Outcome::default() },
        }
    }
}

/// How many replies there are in one, itself among them.
fn count(reply: &Reply<'_>) -> usize {
    1 + match reply {
        Reply::Array(items) | Reply::Set(items) | Reply::Push(items) => items.iter().map(count).sum(),
        Reply::Map(pairs) => pairs.iter().map(|(key, value)| count(key) + count(value)).sum(),
        _ => 0,
    }
}
