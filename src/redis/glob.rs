//! Patterns as KEYS, SCAN … MATCH, CONFIG GET and COMMAND LIST know them, by Redis' rules, its oddities
//! included.
//!
//! ```text
//! *          any bytes, also none          ?        any byte
//! [abc]      one of these                  [^abc]   none of these
//! [a-z]      one between, also [z-a]       \x       x itself, within brackets as well
//! ```
//! - Brackets that don't end reach to the end of the pattern. `]` ends them wherever it stands, so `[]`
//!   matches no byte and `[^]` any; so does a `\` that ends a pattern stand for itself.
//! - In a range bytes are signed: `[\x01-\xff]` is from -1 to 1. In a range an escape is none: `[+-\]` ends
//!   with `\`.
//! - Where case does not matter, the ends of a range are put in order first and become small letters after:
//!   `[a-Z]` is from `z` to `a`, so empty. Escaped bytes in brackets match in their own case only.
//! - An empty text matches the empty pattern and no other, not even `*`.
//!
//! Matching tries again from the last star only: what stands before it has matched the shortest text that it
//! could, and no other would leave more to what follows. So the worst case is length × length, and no pattern
//! takes exponential time.

use std::borrow::Cow;

/// Whether the pattern matches the text.
pub fn matches(pattern: &[u8], text: &[u8]) -> bool {
    search::<false>(pattern, text)
}

/// The same, where small letters and capitals of ASCII are one.
pub fn matches_ignoring_case(pattern: &[u8], text: &[u8]) -> bool {
    search::<true>(pattern, text)
}

/// What every text begins with that the pattern matches.
pub fn literal_prefix(pattern: &[u8]) -> Cow<'_, [u8]> {
    let plain = pattern.iter().position(|byte| b"*?[\\".contains(byte)).unwrap_or(pattern.len());
    if pattern.get(plain) != Some(&b'\\') {
        return Cow::Borrowed(&pattern[..plain]);
    }
    let mut prefix = pattern[..plain].to_vec();
    let mut rest = &pattern[plain..];
    while let Some((Part::Byte(byte), after)) = Part::first(rest) {
        prefix.push(byte);
        rest = after;
    }
    Cow::Owned(prefix)
}

/// What a pattern is made of.
#[derive(Clone, Copy)]
enum Part<'a> {
    /// This byte.
    Byte(u8),
    /// Any byte.
    Any,
    /// Any bytes.
    Star,
    /// One of a class, or none of it if `negated`.
    Class { negated: bool, class: &'a [u8] },
}

impl<'a> Part<'a> {
    /// The first part of a pattern, and what follows it.
    #[inline]
    fn first(pattern: &'a [u8]) -> Option<(Part<'a>, &'a [u8])> {
        let (&byte, rest) = pattern.split_first()?;
        Some(match byte {
            b'*' => (Part::Star, rest),
            b'?' => (Part::Any, rest),
            b'[' => {
                let (negated, rest) = match rest.strip_prefix(b"^") {
                    Some(rest) => (true, rest),
                    None => (false, rest),
                };
                let mut end = rest;
                while let Some((_, after)) = Member::first(end) {
                    end = after;
                }
                let class = &rest[..rest.len() - end.len()];
                (Part::Class { negated, class }, end.get(1..).unwrap_or_default())
            }
            b'\\' => match rest.split_first() {
                Some((&escaped, rest)) => (Part::Byte(escaped), rest),
                None => (Part::Byte(b'\\'), rest),
            },
            _ => (Part::Byte(byte), rest),
        })
    }

    /// Whether it matches this byte. A star is not for bytes.
    #[inline]
    fn matches<const IGNORING_CASE: bool>(self, byte: u8) -> bool {
        match self {
            Part::Byte(wanted) => same::<IGNORING_CASE>(wanted, byte),
            Part::Any => true,
            Part::Star => false,
            Part::Class { negated, mut class } => {
                let mut found = false;
                while let Some((member, after)) = Member::first(class) {
                    found |= member.matches::<IGNORING_CASE>(byte);
                    class = after;
                }
                found != negated
            }
        }
    }
}

/// What a class is made of.
enum Member {
    /// This byte, in any case if case does not matter.
    Byte(u8),
    /// This byte and no other.
    Escaped(u8),
    /// A byte between these two.
    Range(u8, u8),
}

impl Member {
    /// The first member of a class, and what follows it; nothing where the class ends.
    #[inline]
    fn first(class: &[u8]) -> Option<(Member, &[u8])> {
        match class {
            [] | [b']', ..] => None,
            [b'\\', byte, rest @ ..] => Some((Member::Escaped(*byte), rest)),
            [start, b'-', end, rest @ ..] => Some((Member::Range(*start, *end), rest)),
            [byte, rest @ ..] => Some((Member::Byte(*byte), rest)),
        }
    }

    #[inline]
    fn matches<const IGNORING_CASE: bool>(&self, byte: u8) -> bool {
        match *self {
            Member::Byte(wanted) => same::<IGNORING_CASE>(wanted, byte),
            Member::Escaped(wanted) => wanted == byte,
            Member::Range(start, end) => {
                let (low, high) = if start as i8 > end as i8 { (end, start) } else { (start, end) };
                let between = rank::<IGNORING_CASE>(low)..=rank::<IGNORING_CASE>(high);
                between.contains(&rank::<IGNORING_CASE>(byte))
            }
        }
    }
}

#[inline]
fn same<const IGNORING_CASE: bool>(a: u8, b: u8) -> bool {
    if IGNORING_CASE { a.eq_ignore_ascii_case(&b) } else { a == b }
}

/// Where a byte stands in the order of ranges: signed, but for what becomes of it in C when it is made a
/// small letter: unsigned, and the last byte, which C takes for the end of a file, is still -1.
#[inline]
fn rank<const IGNORING_CASE: bool>(byte: u8) -> i16 {
    match byte {
        u8::MAX => -1,
        _ if IGNORING_CASE => i16::from(byte.to_ascii_lowercase()),
        _ => i16::from(byte as i8),
    }
}

#[inline]
fn search<const IGNORING_CASE: bool>(pattern: &[u8], text: &[u8]) -> bool {
    if text.is_empty() {
        return pattern.is_empty();
    }
    let (mut pattern, mut text) = (pattern, text);
    // Behind the last star: the pattern, and the text that it is to match, so far.
    let mut retry: Option<(&[u8], &[u8])> = None;
    loop {
        match Part::first(pattern) {
            Some((Part::Star, rest)) => {
                if rest.is_empty() {
                    return true;
                }
                pattern = rest;
                retry = Some((rest, text));
                continue;
            }
            Some((part, rest)) => {
                if let Some((&byte, after)) = text.split_first()
                    && part.matches::<IGNORING_CASE>(byte)
                {
                    (pattern, text) = (rest, after);
                    continue;
                }
            }
            None if text.is_empty() => return true,
            None => {}
        }
        // One byte more for the last star, if there is one; of no use once the text has ended.
        match retry {
            Some((after_star, [_, fewer @ ..])) if !text.is_empty() => {
                retry = Some((after_star, fewer));
                (pattern, text) = (after_star, fewer);
            }
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests;
