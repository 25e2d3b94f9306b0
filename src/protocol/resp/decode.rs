//! Bytes of a connection → arguments of commands.

use memchr::memchr2;
use smallvec::SmallVec;
use thiserror::Error;

use super::encode::error_bytes;
use super::inline::{Split, split};

/// Arguments of a command, its name first.
pub type Args<'a> = SmallVec<[&'a [u8]; 8]>;

/// Fewest bytes of an argument with its header.
const ARG_BYTES_MIN: usize = b"$0\r\n\r\n".len();
/// Before AUTH: arguments of a command, and bytes of each. AUTH and HELLO need less, and who has not said who
/// he is shall not make the server set memory aside.
const UNAUTHENTICATED_ARGS_MAX: usize = 10;
const UNAUTHENTICATED_BULK_BYTES_MAX: usize = 16 << 10;
/// Digits of a length that is read without a look at overflow.
const QUICK_DIGITS_MAX: usize = 12;

/// What a command is refused for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of an argument.
    pub bulk_bytes_max: usize,
    /// Arguments of a command.
    pub args_max: usize,
    /// Bytes of an inline command, and of a header.
    pub inline_bytes_max: usize,
    /// Bytes of all arguments of a command together.
    pub command_bytes_max: usize,
}

impl Default for Limits {
    /// Those of Redis, but for the number of arguments: since version 7 that may be 2^31 − 1, and before it
    /// was this. Arguments without a byte cost memory too.
    fn default() -> Limits {
        Limits {
            bulk_bytes_max: 512 << 20,
            args_max: 1 << 20,
            inline_bytes_max: 64 << 10,
            command_bytes_max: 1 << 30,
        }
    }
}

/// Why what a client sends is no command. The connection must be closed: where the next one begins is not
/// known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ProtocolError {
    /// The number of arguments is no number, or too large.
    #[error("Protocol error: invalid multibulk length")]
    InvalidMultibulkLength,
    /// The line with the number of arguments does not end.
    #[error("Protocol error: too big mbulk count string")]
    TooBigMultibulkCount,
    /// The length of an argument is no number, negative or too large.
    #[error("Protocol error: invalid bulk length")]
    InvalidBulkLength,
    /// The line with the length of an argument does not end.
    #[error("Protocol error: too big bulk count string")]
    TooBigBulkCount,
    /// Something else stands where an argument should begin.
    #[error("Protocol error: expected '$', got '{}'", .found.escape_ascii())]
    ExpectedBulk {
        /// The byte that stands there.
        found: u8,
    },
    /// An inline command does not end.
    #[error("Protocol error: too big inline request")]
    TooBigInline,
    /// A quote of an inline command is not closed, or a word goes on behind one that is.
    #[error("Protocol error: unbalanced quotes in request")]
    UnbalancedQuotes,
    /// More arguments than AUTH and HELLO have.
    #[error("Protocol error: unauthenticated multibulk length")]
    UnauthenticatedMultibulk,
    /// A longer argument than AUTH and HELLO have.
    #[error("Protocol error: unauthenticated bulk length")]
    UnauthenticatedBulk,
    /// All arguments together are too long.
    #[error("Protocol error: a command of more than {bytes_max} bytes")]
    CommandTooLarge {
        /// The limit.
        bytes_max: usize,
    },
}

impl ProtocolError {
    /// Appends the reply that tells the client.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            // The byte as it came, which need not be a character.
            ProtocolError::ExpectedBulk { found } => {
                error_bytes(out, &[b"ERR Protocol error: expected '$', got '", &[*found][..], b"'"].concat());
            }
            _ => error_bytes(out, format!("ERR {self}").as_bytes()),
        }
    }
}

/// What the bytes are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A command, of which the first `used` bytes are; its arguments are in `args`, at least one.
    Command {
        /// Its length.
        used: usize,
    },
    /// An inline command with quotes: its arguments stand nowhere in the bytes as they are meant.
    Quoted {
        /// Its length.
        used: usize,
        /// Its arguments, at least one.
        words: Vec<Vec<u8>>,
    },
    /// The first `used` bytes mean nothing and get no reply.
    Nothing {
        /// How many.
        used: usize,
    },
    /// The command goes on beyond the bytes.
    NeedMore {
        /// How many bytes there must be for more to come of it: where there is a long argument, those up to
        /// its end. It is what the client says, within the limits, and no memory need be set aside before
        /// something of it came.
        wanted: usize,
    },
}

/// Parses the commands of a connection, one a call, and keeps its place in one that has come in part: so that
/// all calls together look at no argument more than twice, however it comes.
#[derive(Clone, Debug)]
pub struct Parser {
    limits: Limits,
    is_authenticated: bool,
    /// Within a command that has come in part.
    place: Option<Place>,
}

/// Behind the arguments that have come of a command.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Where the next argument's header begins.
    at: usize,
    /// Arguments to come, at least one.
    left: usize,
    /// Bytes of those that came.
    bytes: usize,
}

/// Where a line ends.
enum Line {
    /// At this byte.
    Ends(usize),
    /// Not within what has come.
    Open,
    /// Not within what a line may have.
    TooLong,
}

impl Parser {
    /// At the start of a command, of a client that may do everything.
    pub fn new(limits: Limits) -> Parser {
        Parser { limits, is_authenticated: true, place: None }
    }

    /// Says whether the client has authenticated itself, if it has to.
    pub fn set_authenticated(&mut self, is_authenticated: bool) {
        self.is_authenticated = is_authenticated;
    }

    /// Whether a command has come in part, further than its first line.
    pub fn is_within_command(&self) -> bool {
        self.place.is_some()
    }

    /// Whether a command has come in part.
    #[inline]
    pub fn is_amid(&self) -> bool {
        self.place.is_some()
    }

    /// Parses on in `bytes`, which begin with the first byte of a command: the caller drops what was used,
    /// and after [`Parsed::NeedMore`] keeps all and adds to it. What `args` had is gone; after anything but
    /// [`Parsed::Command`] what it has means nothing. After an error the parser is of no use.
    #[inline]
    pub fn parse<'a>(&mut self, bytes: &'a [u8], args: &mut Args<'a>) -> Result<Parsed, ProtocolError> {
        args.clear();
        if let Some(place) = self.place {
            return self.resume(place, bytes, args);
        }
        match bytes.first() {
            Some(b'*') => {}
            Some(_) => return self.inline(bytes, args),
            None => return Ok(Parsed::NeedMore { wanted: 1 }),
        }
        let Some((count, at)) = self.count(bytes)? else {
            return Ok(Parsed::NeedMore { wanted: bytes.len() + 1 });
        };
        if count == 0 {
            return Ok(Parsed::Nothing { used: at });
        }
        if count > args.inline_size() {
            // By what is there, not by what the header claims.
            args.reserve(count.min((bytes.len() - at) / ARG_BYTES_MIN));
        }
        self.arguments(Place { at, left: count, bytes: 0 }, bytes, |argument| args.push(argument))
    }

    /// Goes on in a command that has come in part. Once it is whole it is gone through again, for its
    /// arguments: in between they have no place, since bytes that are added to may move.
    #[cold]
    fn resume<'a>(
        &mut self,
        place: Place,
        bytes: &'a [u8],
        args: &mut Args<'a>,
    ) -> Result<Parsed, ProtocolError> {
        assert!(bytes.len() >= place.at, "a command that came in part has lost {} bytes", place.at);
        match self.arguments(place, bytes, |_| ())? {
            Parsed::Command { .. } => self.parse(bytes, args),
            parsed => Ok(parsed),
        }
    }

    /// Takes arguments from `place` on, and remembers where it stopped if they are not all there.
    #[inline]
    fn arguments<'a>(
        &mut self,
        mut place: Place,
        bytes: &'a [u8],
        mut take: impl FnMut(&'a [u8]),
    ) -> Result<Parsed, ProtocolError> {
        let wanted = loop {
            let Some((len, start)) = self.len(bytes, place.at)? else { break bytes.len() + 1 };
            let sum = place.bytes + len;
            if sum > self.limits.command_bytes_max {
                return Err(ProtocolError::CommandTooLarge { bytes_max: self.limits.command_bytes_max });
            }
            let end = start + len;
            if bytes.len() < end + 2 {
                break end + 2;
            }
            take(&bytes[start..end]);
            place = Place { at: end + 2, left: place.left - 1, bytes: sum };
            if place.left == 0 {
                self.place = None;
                return Ok(Parsed::Command { used: place.at });
            }
        };
        self.place = Some(place);
        Ok(Parsed::NeedMore { wanted })
    }

    /// How many arguments the command has that `bytes` begin with, and where the first begins; `None` if that
    /// line is not whole.
    #[inline]
    fn count(&self, bytes: &[u8]) -> Result<Option<(usize, usize)>, ProtocolError> {
        let (count, start) = match quick_length(bytes, 1) {
            Some(found) => found,
            None => match self.header(bytes, 0, ProtocolError::TooBigMultibulkCount)? {
                None => return Ok(None),
                Some((text, start)) => {
                    let count = number(text).ok_or(ProtocolError::InvalidMultibulkLength)?;
                    // Less than none are none.
                    (usize::try_from(count).unwrap_or(0), start)
                }
            },
        };
        if count > self.limits.args_max {
            return Err(ProtocolError::InvalidMultibulkLength);
        }
        if count > UNAUTHENTICATED_ARGS_MAX && !self.is_authenticated {
            return Err(ProtocolError::UnauthenticatedMultibulk);
        }
        Ok(Some((count, start)))
    }

    /// How long the argument is whose header is at `at`, and where it begins; `None` if that line is not
    /// whole.
    #[inline]
    fn len(&self, bytes: &[u8], at: usize) -> Result<Option<(usize, usize)>, ProtocolError> {
        let quick = if bytes.get(at) == Some(&b'$') { quick_length(bytes, at + 1) } else { None };
        let (len, start) = match quick {
            Some(found) => found,
            None => match self.header(bytes, at, ProtocolError::TooBigBulkCount)? {
                None => return Ok(None),
                Some(_) if bytes[at] != b'$' => {
                    return Err(ProtocolError::ExpectedBulk { found: bytes[at] });
                }
                Some((text, start)) => {
                    let len = number(text).and_then(|len| usize::try_from(len).ok());
                    (len.ok_or(ProtocolError::InvalidBulkLength)?, start)
                }
            },
        };
        if len > self.limits.bulk_bytes_max {
            return Err(ProtocolError::InvalidBulkLength);
        }
        if len > UNAUTHENTICATED_BULK_BYTES_MAX && !self.is_authenticated {
            return Err(ProtocolError::UnauthenticatedBulk);
        }
        Ok(Some((len, start)))
    }

    /// What stands in the line at `at` behind its first byte, and where the next one begins; `None` if it is
    /// not whole.
    #[cold]
    fn header<'a>(
        &self,
        bytes: &'a [u8],
        at: usize,
        too_long: ProtocolError,
    ) -> Result<Option<(&'a [u8], usize)>, ProtocolError> {
        let line = &bytes[at..];
        match self.line(line, b'\r') {
            Line::TooLong => Err(too_long),
            Line::Ends(end) if end + 2 <= line.len() => {
                Ok(Some((line[..end].get(1..).unwrap_or_default(), at + end + 2)))
            }
            Line::Ends(_) | Line::Open => Ok(None),
        }
    }

    #[cold]
    fn inline<'a>(&self, bytes: &'a [u8], args: &mut Args<'a>) -> Result<Parsed, ProtocolError> {
        let end = match self.line(bytes, b'\n') {
            Line::Ends(end) => end,
            Line::Open => return Ok(Parsed::NeedMore { wanted: bytes.len() + 1 }),
            Line::TooLong => return Err(ProtocolError::TooBigInline),
        };
        let used = end + 1;
        match split(&bytes[..end], args)? {
            Split::Owned(words) => Ok(Parsed::Quoted { used, words }),
            Split::Borrowed if args.is_empty() => Ok(Parsed::Nothing { used }),
            Split::Borrowed => Ok(Parsed::Command { used }),
        }
    }

    /// Where `end` stands. A line that comes byte by byte is searched from its start each time: that is less
    /// work than to read a byte from a socket.
    fn line(&self, bytes: &[u8], end: u8) -> Line {
        let seen = &bytes[..bytes.len().min(self.limits.inline_bytes_max + 1)];
        match memchr2(end, 0, seen) {
            Some(at) if seen[at] == end => Line::Ends(at),
            _ if bytes.len() > self.limits.inline_bytes_max => Line::TooLong,
            _ => Line::Open,
        }
    }
}

/// The length at `at` and where the next line begins, if it is written as all clients write it and the whole
/// line is there. Of anything else the caller finds out what it is.
#[inline]
pub(super) fn quick_length(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    match bytes.get(at..)? {
        // Names, options, most keys.
        [digit @ b'0'..=b'9', b'\r', _, ..] => Some((usize::from(digit - b'0'), at + 3)),
        [high @ b'1'..=b'9', low @ b'0'..=b'9', b'\r', _, ..] => {
            Some((usize::from(high - b'0') * 10 + usize::from(low - b'0'), at + 4))
        }
        [b'1'..=b'9', ..] => quick_long(bytes, at),
        _ => None,
    }
}

/// Likewise, for one of more digits.
fn quick_long(bytes: &[u8], at: usize) -> Option<(usize, usize)> {
    let mut length = 0;
    for (count, byte) in bytes[at..].iter().take(QUICK_DIGITS_MAX + 1).enumerate() {
        match byte {
            b'0'..=b'9' => length = length * 10 + usize::from(byte - b'0'),
            b'\r' if bytes.len() > at + count + 1 => return Some((length, at + count + 2)),
            _ => return None,
        }
    }
    None
}

/// A number of 64 bits in the one way to write it.
fn number(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    let is_canonical = match digits {
        b"0" => text.len() == 1,
        [b'1'..=b'9', rest @ ..] => rest.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    if !is_canonical {
        return None;
    }
    str::from_utf8(text).ok()?.parse().ok()
}
