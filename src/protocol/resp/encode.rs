//! Values → replies, appended to a buffer.

/// Which version of the protocol a connection speaks: 2 until it says HELLO 3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Proto {
    /// Strings, integers, errors and arrays.
    #[default]
    Resp2,
    /// Nulls, maps, sets, booleans, doubles, pushes and verbatim strings as well.
    Resp3,
}

/// A simple string. `text` has no line breaks: it is one of ours.
pub fn simple(out: &mut Vec<u8>, text: &str) {
    debug_assert!(!text.contains(['\r', '\n']));
    line(out, b'+', text.as_bytes());
}

/// An error. `text` begins with its code word; line breaks in it become spaces.
pub fn error(out: &mut Vec<u8>, text: &str) {
    error_bytes(out, text.as_bytes());
}

/// An error whose text repeats bytes of a client, as they came but for line breaks.
pub fn error_bytes(out: &mut Vec<u8>, text: &[u8]) {
    let start = out.len() + 1;
    line(out, b'-', text);
    for byte in &mut out[start..start + text.len()] {
        if matches!(byte, b'\r' | b'\n') {
            *byte = b' ';
        }
    }
}

/// An integer.
pub fn integer(out: &mut Vec<u8>, number: i64) {
    if number < 0 {
        out.extend_from_slice(b":-");
        decimal(out, number.unsigned_abs());
        out.extend_from_slice(b"\r\n");
    } else {
        head(out, b':', number.unsigned_abs());
    }
}

/// A bulk string.
pub fn bulk(out: &mut Vec<u8>, bytes: &[u8]) {
    out.reserve(bytes.len() + LINE_BYTES_MAX + 2);
    head(out, b'$', bytes.len() as u64);
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

/// No value where a string would be.
pub fn null(out: &mut Vec<u8>, proto: Proto) {
    out.extend_from_slice(match proto {
        Proto::Resp2 => b"$-1\r\n",
        Proto::Resp3 => b"_\r\n",
    });
}

/// No value where an array would be.
pub fn null_array(out: &mut Vec<u8>, proto: Proto) {
    out.extend_from_slice(match proto {
        Proto::Resp2 => b"*-1\r\n",
        Proto::Resp3 => b"_\r\n",
    });
}

/// The head of an array; its items follow.
pub fn array(out: &mut Vec<u8>, len: usize) {
    head(out, b'*', len as u64);
}

/// The head of a map; of each pair key and value follow.
pub fn map(out: &mut Vec<u8>, pairs: usize, proto: Proto) {
    match proto {
        Proto::Resp2 => array(out, 2 * pairs),
        Proto::Resp3 => head(out, b'%', pairs as u64),
    }
}

/// The head of a set; its items follow.
pub fn set(out: &mut Vec<u8>, len: usize, proto: Proto) {
    match proto {
        Proto::Resp2 => array(out, len),
        Proto::Resp3 => head(out, b'~', len as u64),
    }
}

/// The head of what no command asked for, as a message to a subscriber; its items follow.
pub fn push(out: &mut Vec<u8>, len: usize, proto: Proto) {
    match proto {
        Proto::Resp2 => array(out, len),
        Proto::Resp3 => head(out, b'>', len as u64),
    }
}

/// A boolean.
pub fn boolean(out: &mut Vec<u8>, truth: bool, proto: Proto) {
    out.extend_from_slice(match (proto, truth) {
        (Proto::Resp2, true) => b":1\r\n",
        (Proto::Resp2, false) => b":0\r\n",
        (Proto::Resp3, true) => b"#t\r\n",
        (Proto::Resp3, false) => b"#f\r\n",
    });
}

/// A floating-point number, written by the caller.
pub fn double(out: &mut Vec<u8>, text: &str, proto: Proto) {
    match proto {
        Proto::Resp2 => bulk(out, text.as_bytes()),
        Proto::Resp3 => line(out, b',', text.as_bytes()),
    }
}

/// A text for people. `format` is of three letters: `txt`, or `mkd` for Markdown.
pub fn verbatim(out: &mut Vec<u8>, format: &str, text: &[u8], proto: Proto) {
    assert!(format.len() == 3, "a format has three letters");
    match proto {
        Proto::Resp2 => bulk(out, text),
        Proto::Resp3 => {
            out.reserve(text.len() + LINE_BYTES_MAX + 6);
            head(out, b'=', text.len() as u64 + 4);
            out.extend_from_slice(format.as_bytes());
            out.push(b':');
            out.extend_from_slice(text);
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// Digits of the largest number of 64 bits.
const DIGITS_MAX: usize = 20;
/// A line with a number: its kind, the digits, CR LF.
const LINE_BYTES_MAX: usize = 1 + DIGITS_MAX + 2;

fn line(out: &mut Vec<u8>, kind: u8, text: &[u8]) {
    out.reserve(text.len() + 3);
    out.push(kind);
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

/// A line of a kind and a number.
#[inline]
fn head(out: &mut Vec<u8>, kind: u8, number: u64) {
    if number < 10 {
        // Most lengths and most counts: one append of a known size.
        out.extend_from_slice(&[kind, b'0' + number as u8, b'\r', b'\n']);
        return;
    }
    let mut text = [0; LINE_BYTES_MAX];
    let digits = text.len() - 2;
    text[digits..].copy_from_slice(b"\r\n");
    let start = write_digits(&mut text[..digits], number) - 1;
    text[start] = kind;
    out.extend_from_slice(&text[start..]);
}

fn decimal(out: &mut Vec<u8>, number: u64) {
    let mut text = [0; DIGITS_MAX];
    let start = write_digits(&mut text, number);
    out.extend_from_slice(&text[start..]);
}

/// Writes a number so that it ends where `text` does. Returns where it begins.
#[inline]
fn write_digits(text: &mut [u8], number: u64) -> usize {
    let (mut at, mut rest) = (text.len(), number);
    loop {
        at -= 1;
        text[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            return at;
        }
    }
}
