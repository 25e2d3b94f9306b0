//! Words of an inline command, which is what people type.

use super::decode::{Args, ProtocolError};

/// The words of a line, from the line itself, or copied where quotes make a word differ from how it is
/// written.
pub(super) enum Split {
    /// They were added to the arguments.
    Borrowed,
    /// There were quotes.
    Owned(Vec<Vec<u8>>),
}

/// Splits a line that has neither its end nor a NUL. What `args` has when an error is returned means nothing.
pub(super) fn split<'a>(line: &'a [u8], args: &mut Args<'a>) -> Result<Split, ProtocolError> {
    if memchr::memchr2(b'"', b'\'', line).is_some() {
        return quoted(line).map(Split::Owned);
    }
    let mut rest = skip_space(line);
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| ends_word(*byte)).unwrap_or(rest.len());
        args.push(&rest[..end]);
        rest = skip_space(&rest[end..]);
    }
    Ok(Split::Borrowed)
}

fn quoted(line: &[u8]) -> Result<Vec<Vec<u8>>, ProtocolError> {
    let mut words = Vec::new();
    let mut rest = skip_space(line);
    while !rest.is_empty() {
        let mut word = Vec::new();
        rest = skip_space(take_word(rest, &mut word)?);
        words.push(word);
    }
    Ok(words)
}

/// Takes the word that `rest` begins with. Returns what is behind it.
fn take_word<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Result<&'a [u8], ProtocolError> {
    while let Some((&byte, tail)) = rest.split_first() {
        match byte {
            b'"' => return closed(double_quoted(tail, word)?),
            b'\'' => return closed(single_quoted(tail, word)?),
            _ if ends_word(byte) => break,
            _ => word.push(byte),
        }
        rest = tail;
    }
    Ok(rest)
}

/// Behind a closing quote a word ends.
fn closed(rest: &[u8]) -> Result<&[u8], ProtocolError> {
    match rest.first() {
        Some(byte) if !is_space(*byte) => Err(ProtocolError::UnbalancedQuotes),
        _ => Ok(rest),
    }
}

/// What is up to the closing quote. Returns what is behind that.
fn double_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Result<&'a [u8], ProtocolError> {
    loop {
        let (byte, tail) = match rest {
            [b'"', tail @ ..] => return Ok(tail),
            [b'\\', b'x', high, low, tail @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                (hex(*high) << 4 | hex(*low), tail)
            }
            [b'\\', escaped, tail @ ..] => (unescaped(*escaped), tail),
            [byte, tail @ ..] => (*byte, tail),
            [] => return Err(ProtocolError::UnbalancedQuotes),
        };
        word.push(byte);
        rest = tail;
    }
}

/// Likewise.
fn single_quoted<'a>(mut rest: &'a [u8], word: &mut Vec<u8>) -> Result<&'a [u8], ProtocolError> {
    loop {
        let (byte, tail) = match rest {
            [b'\'', tail @ ..] => return Ok(tail),
            [b'\\', b'\'', tail @ ..] => (b'\'', tail),
            [byte, tail @ ..] => (*byte, tail),
            [] => return Err(ProtocolError::UnbalancedQuotes),
        };
        word.push(byte);
        rest = tail;
    }
}

fn unescaped(byte: u8) -> u8 {
    match byte {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'a' => 7,
        other => other,
    }
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        _ => (digit | 0x20) - b'a' + 10,
    }
}

/// What C's `isspace` takes for space; a word may begin behind it.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

/// What ends a word without quotes.
fn ends_word(byte: u8) -> bool {
    matches!(byte, b' ' | b'\n' | b'\r' | b'\t')
}

fn skip_space(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|byte| !is_space(*byte)).unwrap_or(bytes.len());
    &bytes[start..]
}
