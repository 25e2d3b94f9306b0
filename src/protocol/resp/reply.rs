//! Replies → values: for clients and tests. The server never reads one.

use thiserror::Error;

/// Arrays in arrays. No command answers with half as many.
const DEPTH_MAX: usize = 32;
/// Fewest bytes of an item: `_` and its end of line.
const ITEM_BYTES_MIN: usize = 3;

/// A reply of either version of the protocol, borrowed from the bytes it came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// A simple string.
    Simple(&'a [u8]),
    /// An error, short or long, that begins with its code word.
    Error(&'a [u8]),
    /// An integer.
    Integer(i64),
    /// A bulk string.
    Bulk(&'a [u8]),
    /// No value.
    Null,
    /// No value where an array would be, which only RESP2 tells from the other.
    NullArray,
    /// An array.
    Array(Vec<Reply<'a>>),
    /// A map, in the order in which its pairs came.
    Map(Vec<(Reply<'a>, Reply<'a>)>),
    /// A set, in the order in which its items came.
    Set(Vec<Reply<'a>>),
    /// What no command asked for.
    Push(Vec<Reply<'a>>),
    /// A boolean.
    Boolean(bool),
    /// A floating-point number, as it is written.
    Double(&'a [u8]),
    /// A number of any size, as it is written.
    BigNumber(&'a [u8]),
    /// A text for people.
    Verbatim {
        /// Three letters that say how it is written.
        format: [u8; 3],
        /// What it says.
        text: &'a [u8],
    },
}

/// Why bytes are no reply.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("no reply at byte {at}: {what}")]
pub struct ReplyError {
    /// Where.
    pub at: usize,
    /// What is wrong there.
    pub what: &'static str,
}

/// The reply that `bytes` begin with, and its length; `None` if it goes on beyond them. Remarks in front of
/// it are passed over.
///
/// A reply that comes in pieces is gone through from its start at every call. For strings that is nothing;
/// one who reads arrays of many items had better wait for more than a packet at a time.
pub fn decode_reply(bytes: &[u8]) -> Result<Option<(Reply<'_>, usize)>, ReplyError> {
    let mut reader = Reader { bytes, at: 0 };
    match reader.reply(DEPTH_MAX) {
        Ok(reply) => Ok(Some((reply, reader.at))),
        Err(Stop::Short) => Ok(None),
        Err(Stop::Wrong(error)) => Err(error),
    }
}

/// Why a reader came to no end.
enum Stop {
    Short,
    Wrong(ReplyError),
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn reply(&mut self, depth: usize) -> Result<Reply<'a>, Stop> {
        let start = self.at;
        let wrong = |what| Err(Stop::Wrong(ReplyError { at: start, what }));
        if depth == 0 {
            return wrong("arrays within arrays beyond what any command answers");
        }
        let (kind, text) = self.line()?;
        match kind {
            b'+' => Ok(Reply::Simple(text)),
            b'-' => Ok(Reply::Error(text)),
            b':' => Ok(Reply::Integer(self.number(text, start)?)),
            b',' => Ok(Reply::Double(text)),
            b'(' => Ok(Reply::BigNumber(text)),
            b'_' if text.is_empty() => Ok(Reply::Null),
            b'#' if text == b"t" => Ok(Reply::Boolean(true)),
            b'#' if text == b"f" => Ok(Reply::Boolean(false)),
            b'$' if text == b"-1" => Ok(Reply::Null),
            b'*' if text == b"-1" => Ok(Reply::NullArray),
            b'$' => self.string(text, start).map(Reply::Bulk),
            b'!' => self.string(text, start).map(Reply::Error),
            b'=' => match self.string(text, start)? {
                [a, b, c, b':', text @ ..] => Ok(Reply::Verbatim { format: [*a, *b, *c], text }),
                _ => wrong("a verbatim string without its format"),
            },
            b'*' => self.items(text, start, depth).map(Reply::Array),
            b'~' => self.items(text, start, depth).map(Reply::Set),
            b'>' => self.items(text, start, depth).map(Reply::Push),
            b'%' => self.pairs(text, start, depth).map(Reply::Map),
            b'|' => {
                self.pairs(text, start, depth)?;
                self.reply(depth - 1)
            }
            _ => wrong("a kind of reply that neither version has"),
        }
    }

    /// The first byte of a line and what follows it.
    fn line(&mut self) -> Result<(u8, &'a [u8]), Stop> {
        let rest = &self.bytes[self.at..];
        let end = memchr::memchr(b'\r', rest).filter(|end| end + 1 < rest.len()).ok_or(Stop::Short)?;
        match rest[..end].split_first() {
            Some((kind, text)) if rest[end + 1] == b'\n' => {
                self.at += end + 2;
                Ok((*kind, text))
            }
            _ => Err(Stop::Wrong(ReplyError { at: self.at, what: "a line without its kind or its end" })),
        }
    }

    fn number(&self, text: &[u8], start: usize) -> Result<i64, Stop> {
        let number = str::from_utf8(text).ok().and_then(|text| text.parse().ok());
        number.ok_or(Stop::Wrong(ReplyError { at: start, what: "a number that is none" }))
    }

    fn len(&self, text: &[u8], start: usize) -> Result<usize, Stop> {
        let len = usize::try_from(self.number(text, start)?);
        len.map_err(|_| Stop::Wrong(ReplyError { at: start, what: "a length below 0" }))
    }

    fn string(&mut self, len: &[u8], start: usize) -> Result<&'a [u8], Stop> {
        let len = self.len(len, start)?;
        let rest = &self.bytes[self.at..];
        if rest.len() < 2 || rest.len() - 2 < len {
            return Err(Stop::Short);
        }
        if &rest[len..len + 2] != b"\r\n" {
            let what = "a string that does not end where its length says";
            return Err(Stop::Wrong(ReplyError { at: start, what }));
        }
        self.at += len + 2;
        Ok(&rest[..len])
    }

    fn items(&mut self, count: &[u8], start: usize, depth: usize) -> Result<Vec<Reply<'a>>, Stop> {
        let count = self.count(count, start, 1)?;
        (0..count).map(|_| self.reply(depth - 1)).collect()
    }

    fn pairs(
        &mut self,
        count: &[u8],
        start: usize,
        depth: usize,
    ) -> Result<Vec<(Reply<'a>, Reply<'a>)>, Stop> {
        let count = self.count(count, start, 2)?;
        (0..count).map(|_| Ok((self.reply(depth - 1)?, self.reply(depth - 1)?))).collect()
    }

    /// A number of items, of `each` replies; so that none is begun of which the bytes can't be there.
    fn count(&self, text: &[u8], start: usize, each: usize) -> Result<usize, Stop> {
        let count = self.len(text, start)?;
        if count > (self.bytes.len() - self.at) / (each * ITEM_BYTES_MIN) {
            Err(Stop::Short)
        } else {
            Ok(count)
        }
    }
}
