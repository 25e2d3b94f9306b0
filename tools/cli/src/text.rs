//! Bytes as people read and write them. What [`escape`] prints, [`split_words`] reads back, in quotes.

use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

/// Appends `bytes` so that a terminal shows what they are: printable characters as they are, all else,
/// and the backslash, escaped.
pub fn escape(bytes: &[u8], out: &mut String) {
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                // Beyond ASCII the standard library knows what is printable.
                _ if c == ' ' || c.is_ascii_graphic() => out.push(c),
                _ if !c.is_ascii() && c.escape_debug().count() == 1 => out.push(c),
                _ => c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| escape_byte(byte, out)),
            }
        }
        chunk.invalid().iter().for_each(|&byte| escape_byte(byte, out));
    }
}

/// A word in a message.
pub fn name(word: &OsStr) -> String {
    let mut name = String::new();
    escape(word.as_bytes(), &mut name);
    name
}

fn escape_byte(byte: u8, out: &mut String) {
    write!(out, "\\x{byte:02x}").expect("a string takes what is written to it");
}

/// Why a line is not made of words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WordError {
    /// A quote is not closed.
    OpenQuote,
    /// What follows a backslash means nothing.
    BadEscape,
}

impl std::fmt::Display for WordError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            WordError::OpenQuote => "a quote is not closed",
            WordError::BadEscape => {
                r#"unknown escape: after a backslash in "..." comes n, r, t, xFF, \ or ""#
            }
        })
    }
}

/// The words of a line, as a shell would see them: in '...' everything stands for itself, in "..."
/// escapes are read, and words end at blanks. Outside of quotes a backslash stands for itself.
pub fn split_words(line: &[u8]) -> Result<Vec<Vec<u8>>, WordError> {
    let mut words = Vec::new();
    let mut bytes = line.iter().copied();
    // A word may be empty, in quotes: hence the option.
    let mut word: Option<Vec<u8>> = None;
    while let Some(byte) = bytes.next() {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => words.extend(word.take()),
            b'\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match bytes.next().ok_or(WordError::OpenQuote)? {
                        b'\'' => break,
                        byte => word.push(byte),
                    }
                }
            }
            b'"' => {
                let word = word.get_or_insert_default();
                loop {
                    match bytes.next().ok_or(WordError::OpenQuote)? {
                        b'"' => break,
                        b'\\' => word.push(unescape(&mut bytes)?),
                        byte => word.push(byte),
                    }
                }
            }
            byte => word.get_or_insert_default().push(byte),
        }
    }
    words.extend(word);
    Ok(words)
}

fn unescape(bytes: &mut impl Iterator<Item = u8>) -> Result<u8, WordError> {
    match bytes.next().ok_or(WordError::OpenQuote)? {
        b'n' => Ok(b'\n'),
        b'r' => Ok(b'\r'),
        b't' => Ok(b'\t'),
        b'x' => {
            let mut digit = || {
                let byte = bytes.next().ok_or(WordError::BadEscape)?;
                char::from(byte).to_digit(16).ok_or(WordError::BadEscape)
            };
            let (high, low) = (digit()?, digit()?);
            u8::try_from(high << 4 | low).map_err(|_| WordError::BadEscape)
        }
        byte @ (b'\\' | b'"' | b'\'') => Ok(byte),
        _ => Err(WordError::BadEscape),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn escaped(bytes: &[u8]) -> String {
        let mut out = String::new();
        escape(bytes, &mut out);
        out
    }

    #[test]
    fn printable_text_stays_and_all_else_is_escaped() {
        assert_eq!(escaped("plain, grün, 日本".as_bytes()), "plain, grün, 日本");
        assert_eq!(escaped(b"a\n\r\t\\\0\x1b[31m\xff"), r"a\n\r\t\\\x00\x1b[31m\xff");
        assert_eq!(escaped("\u{202e}\u{9b}".as_bytes()), r"\xe2\x80\xae\xc2\x9b");
    }

    #[test]
    fn what_is_escaped_reads_back() {
        let mut bytes: Vec<u8> = (0..=255).collect();
        bytes.extend("grün \u{202e}".as_bytes());
        let line = format!("\"{}\"", escaped(&bytes).replace('"', "\\\""));
        assert_eq!(split_words(line.as_bytes()), Ok(vec![bytes]));
    }

    #[test]
    fn words_are_split_at_blanks_outside_of_quotes() {
        let words = split_words(br#" set  k"e y"  'a "b\n' "" x\y "#).unwrap();
        let wanted: [&[u8]; 5] = [b"set", b"ke y", br#"a "b\n"#, b"", br"x\y"];
        assert_eq!(words, wanted);
        assert_eq!(split_words(b"'a"), Err(WordError::OpenQuote));
        assert_eq!(split_words(br#""a\q""#), Err(WordError::BadEscape));
        assert_eq!(split_words(br#""\x4"#), Err(WordError::BadEscape));
        assert_eq!(split_words(b""), Ok(vec![]));
    }
}
