//! Commands about all keys: SCAN, KEYS, DBSIZE, RANDOMKEY, made of pages of scans of keys only.

use super::answer::{Outcome, What};
use super::cursors::Cursors;
use super::{Session, Step};
use crate::protocol::binary::{Cursor, encode_request};
use crate::protocol::resp::{self, Proto};
use crate::protocol::{DeleteRange, Durability, Request, ScanPage, ScanRequest};
use crate::redis::fault::Fault;
use crate::redis::glob;
use crate::redis::number::parse_i64;

/// How much a page may have.
#[derive(Clone, Copy)]
pub(super) struct Most {
    entries: u32,
    /// 0: as the server likes.
    bytes: u32,
}

/// A page of KEYS and DBSIZE. KEYS asks for room for what it gathers between two of them, so they are small.
pub(super) const PAGE: Most = Most { entries: 4_096, bytes: 64 << 10 };
/// What KEYS may have gathered and needs no room for. With one more page it is what a connection may have unsent.
pub(super) const GATHERED_FREE: usize = 64 << 10;
/// Keys in a page of SCAN, whatever COUNT says: what is longer is no page any more.
const COUNT_MAX: u32 = 10_000;
/// DBSIZE counts as many keys as this, and estimates more. Counting takes about a third of a microsecond each.
const COUNTED_MAX: u64 = 100_000;
/// Keys of which RANDOMKEY chooses one.
const PICKED_OF: u32 = 64;

/// The first key that does not begin with `prefix`; empty: there is none.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let len = prefix.iter().rposition(|byte| *byte < u8::MAX).map_or(0, |last| last + 1);
    let mut end = prefix[..len].to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// The frame that asks for a page of the keys that begin with `prefix`.
pub(super) fn ask_for_page(
    number: u64,
    prefix: &[u8],
    cursor: Option<Cursor<'_>>,
    most: Most,
    is_local: bool,
) -> Vec<u8> {
    let end = end_of(prefix);
    let request = ScanRequest {
        start: prefix,
        end: &end,
        is_keys_only: true,
        is_local,
        entries_max: most.entries,
        bytes_max: most.bytes,
        cursor,
        ..ScanRequest::default()
    };
    let mut frame = Vec::new();
    encode_request(&mut frame, number, &Request::Scan(request));
    frame
}

/// The number of a cursor, which Redis reads as C reads an unsigned number: up to a NUL; a sign is taken, and
/// nothing is 0.
fn cursor_of(text: &[u8]) -> Option<u64> {
    let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
    let (is_negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    if text.is_empty() {
        return Some(0);
    }
    let is_number = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let number: u64 = std::str::from_utf8(digits).ok().filter(|_| is_number)?.parse().ok()?;
    Some(if is_negative { number.wrapping_neg() } else { number })
}

/// A SCAN under way.
pub(super) struct Page {
    prefix: Vec<u8>,
    pattern: Option<Vec<u8>>,
    /// Whether TYPE asks for something that no key is.
    is_of_other_type: bool,
}

impl Page {
    /// The reply that a page makes.
    pub fn reply(&self, page: &ScanPage<'_>, cursors: &mut Cursors, out: &mut Vec<u8>) {
        let is_wanted = |key: &[u8]| self.pattern.as_ref().is_none_or(|pattern| glob::matches(pattern, key));
        let keys: Vec<&[u8]> = match self.is_of_other_type {
            true => Vec::new(),
            false => page.entries.into_iter().map(|entry| entry.key).filter(|key| is_wanted(key)).collect(),
        };
        let next = page.cursor.map_or(0, |cursor| cursors.keep(&self.prefix, cursor));
        resp::array(out, 2);
        resp::bulk(out, next.to_string().as_bytes());
        resp::array(out, keys.len());
        keys.iter().for_each(|key| resp::bulk(out, key));
    }
}

/// A KEYS under way.
pub(super) struct Keys {
    prefix: Vec<u8>,
    pattern: Vec<u8>,
    is_local: bool,
    /// What was found, encoded, and how many.
    found: Vec<u8>,
    count: usize,
    bytes_max: usize,
}

impl Keys {
    /// Whether it needs room for all that it may come to.
    pub fn needs_room(&self) -> bool {
        self.found.len() > GATHERED_FREE
    }

    pub fn take(&mut self, number: u64, page: &ScanPage<'_>) -> Outcome {
        let mut out = Vec::new();
        for entry in page.entries {
            if glob::matches(&self.pattern, entry.key) {
                resp::bulk(&mut self.found, entry.key);
                self.count += 1;
            }
            if self.found.len() > self.bytes_max {
                let text = format!("ERR KEYS: these keys are more than {} bytes; use SCAN", self.bytes_max);
                resp::error(&mut out, &text);
                return Outcome::Reply(out);
            }
        }
        match page.cursor.and_then(Cursor::decode) {
            Some(cursor) => {
                Outcome::Ask(ask_for_page(number, &self.prefix, Some(cursor), PAGE, self.is_local))
            }
            None => {
                out.reserve(self.found.len() + 16);
                resp::array(&mut out, self.count);
                out.append(&mut self.found);
                Outcome::Reply(out)
            }
        }
    }
}

/// A DBSIZE under way.
pub(super) struct Count {
    sum: u64,
    is_local: bool,
}

impl Count {
    /// The number of keys is estimated first: if it is large, that is the answer.
    pub fn estimate(&mut self, number: u64, text: &str) -> Outcome {
        let keys = text.lines().find_map(|line| line.strip_prefix("keys="));
        let keys = keys.and_then(|keys| keys.parse().ok()).unwrap_or(0);
        if keys > COUNTED_MAX {
            let mut out = Vec::new();
            resp::integer(&mut out, i64::try_from(keys).unwrap_or(i64::MAX));
            return Outcome::Reply(out);
        }
        Outcome::Ask(ask_for_page(number, b"", None, PAGE, self.is_local))
    }

    pub fn take(&mut self, number: u64, page: &ScanPage<'_>) -> Outcome {
        self.sum += page.entries.len() as u64;
        match page.cursor.and_then(Cursor::decode) {
            Some(cursor) => Outcome::Ask(ask_for_page(number, b"", Some(cursor), PAGE, self.is_local)),
            None => {
                let mut out = Vec::new();
                resp::integer(&mut out, i64::try_from(self.sum).unwrap_or(i64::MAX));
                Outcome::Reply(out)
            }
        }
    }
}

/// A RANDOMKEY under way: somewhere between the first and the last key, one of the next few.
pub(super) struct Pick {
    random: u64,
    is_local: bool,
    at: At,
}

enum At {
    First,
    Last {
        first: Vec<u8>,
    },
    Between,
    /// Nothing was found behind the place, so it is looked for from the start.
    Around,
}

impl Pick {
    pub fn take(&mut self, number: u64, page: &ScanPage<'_>, proto: Proto) -> Outcome {
        let is_local = self.is_local;
        let ask = |start: &[u8], is_reverse, entries_max| {
            let request = ScanRequest {
                start,
                is_reverse,
                is_keys_only: true,
                is_local,
                entries_max,
                ..ScanRequest::default()
            };
            let mut frame = Vec::new();
            encode_request(&mut frame, number, &Request::Scan(request));
            Outcome::Ask(frame)
        };
        let first = page.entries.into_iter().next().map(|entry| entry.key);
        match (&self.at, first) {
            (At::First, Some(first)) => {
                self.at = At::Last { first: first.to_vec() };
                ask(b"", true, 1)
            }
            (At::Last { first }, Some(last)) => {
                let start = between(first, last, self.random);
                self.at = At::Between;
                ask(&start, false, PICKED_OF)
            }
            (At::Between, None) => {
                self.at = At::Around;
                ask(b"", false, PICKED_OF)
            }
            (_, found) => {
                let mut out = Vec::new();
                let nth = self.random as usize % page.entries.len().max(1);
                match page.entries.into_iter().nth(nth).map(|entry| entry.key).or(found) {
                    Some(key) => resp::bulk(&mut out, key),
                    None => resp::null(&mut out, proto),
                }
                Outcome::Reply(out)
            }
        }
    }
}

/// A key between two, as `random` says: what they begin with, and behind it eight bytes between theirs.
fn between(first: &[u8], last: &[u8], random: u64) -> Vec<u8> {
    let shared = first.iter().zip(last).take_while(|(one, other)| one == other).count();
    let number = |key: &[u8]| {
        let mut bytes = [0; 8];
        let rest = &key[shared..];
        let len = rest.len().min(8);
        bytes[..len].copy_from_slice(&rest[..len]);
        u64::from_be_bytes(bytes)
    };
    let (low, high) = (number(first), number(last));
    let part = (u128::from(high.saturating_sub(low)) * u128::from(random)) >> 64;
    let place = low + part as u64;
    [&first[..shared], &place.to_be_bytes()[..]].concat()
}

impl Session {
    /// Begins a command about all keys, once nothing is under way before it.
    pub(super) fn begin(&mut self, what: What, frame: &[u8], frames: &mut Vec<u8>) -> Step {
        frames.extend_from_slice(frame);
        self.expect(what, None);
        self.is_exclusive = true;
        Step::Taken
    }

    pub(super) fn scan(&mut self, args: &[&[u8]], frames: &mut Vec<u8>) -> Step {
        if !self.pending.is_empty() {
            return Step::Wait;
        }
        let (mut count, mut pattern, mut is_of_other_type) = (10, None, false);
        let Some(place) = cursor_of(args[1]) else {
            self.say_error("ERR invalid cursor");
            return Step::Taken;
        };
        let mut rest = &args[2..];
        while let [option, tail @ ..] = rest {
            let [value, tail @ ..] = tail else { return self.fail(Fault::Syntax, args) };
            rest = tail;
            match option.to_ascii_lowercase().as_slice() {
                b"count" => match parse_i64(value) {
                    None => return self.fail(Fault::NotInteger, args),
                    Some(..=0) => return self.fail(Fault::Syntax, args),
                    Some(wanted) => count = u32::try_from(wanted).unwrap_or(u32::MAX),
                },
                b"match" => pattern = Some(value.to_vec()),
                b"type" => is_of_other_type = !value.eq_ignore_ascii_case(b"string"),
                _ => return self.fail(Fault::Syntax, args),
            }
        }
        let prefix =
            pattern.as_ref().map_or_else(Vec::new, |pattern| glob::literal_prefix(pattern).into_owned());
        let prefix = if prefix.len() > crate::base::KEY_BYTES_MAX { Vec::new() } else { prefix };
        let number = self.pending.next();
        let is_local = self.is_node();
        let frame = {
            let cursors = self.context.cursors.borrow();
            // One of another pattern, or not known any more: from the start, which gives no key too few.
            let known = cursors.find(place).filter(|place| place.prefix == prefix);
            let cursor = known.and_then(|place| Cursor::decode(&place.cursor));
            let most = Most { entries: count.min(COUNT_MAX), bytes: 0 };
            ask_for_page(number, &prefix, cursor, most, is_local)
        };
        self.begin(What::Scan(Box::new(Page { prefix, pattern, is_of_other_type })), &frame, frames)
    }

    pub(super) fn keys(&mut self, args: &[&[u8]], frames: &mut Vec<u8>) -> Step {
        if !self.pending.is_empty() {
            return Step::Wait;
        }
        let pattern = args[1].to_vec();
        let prefix = glob::literal_prefix(&pattern).into_owned();
        if prefix.len() > crate::base::KEY_BYTES_MAX {
            self.say(|out, _| resp::array(out, 0));
            return Step::Taken;
        }
        let is_local = self.is_node();
        let frame = ask_for_page(self.pending.next(), &prefix, None, PAGE, is_local);
        let bytes_max = self.context.limits.frame_bytes_max as usize;
        let keys = Keys { prefix, pattern, is_local, found: Vec::new(), count: 0, bytes_max };
        self.begin(What::Keys(Box::new(keys)), &frame, frames)
    }

    pub(super) fn count_keys(&mut self, frames: &mut Vec<u8>) -> Step {
        if !self.pending.is_empty() {
            return Step::Wait;
        }
        let mut frame = Vec::new();
        let section = if self.is_node() { "local" } else { "total" };
        encode_request(&mut frame, self.pending.next(), &Request::Stats { section });
        let count = Count { sum: 0, is_local: self.is_node() };
        self.begin(What::Count(count), &frame, frames)
    }

    pub(super) fn random_key(&mut self, frames: &mut Vec<u8>) -> Step {
        if !self.pending.is_empty() {
            return Step::Wait;
        }
        let is_local = self.is_node();
        let frame = ask_for_page(self.pending.next(), b"", None, Most { entries: 1, bytes: 0 }, is_local);
        let random = self.random();
        self.begin(What::Pick(Box::new(Pick { random, is_local, at: At::First })), &frame, frames)
    }

    /// FLUSHALL, FLUSHDB.
    pub(super) fn flush(&mut self, args: &[&[u8]], frames: &mut Vec<u8>) -> Step {
        let is_mode = |arg: &[u8]| arg.eq_ignore_ascii_case(b"sync") || arg.eq_ignore_ascii_case(b"async");
        if args.len() > 2 || args.get(1).is_some_and(|arg| !is_mode(arg)) {
            return self.fail(Fault::Syntax, args);
        }
        let is_local = self.is_node();
        let range = DeleteRange { is_local, durability: Durability::Default, ..DeleteRange::default() };
        encode_request(frames, self.pending.next(), &Request::DeleteRange(range));
        self.expect(What::Done, None);
        Step::Taken
    }

    pub(super) fn fail(&mut self, fault: Fault, args: &[&[u8]]) -> Step {
        self.say(|out, _| fault.write(args, out));
        Step::Taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_between_two_keys_is_between_them() {
        let mut rng = fastrand::Rng::with_seed(5);
        for _ in 0..2_000 {
            let mut key =
                || -> Vec<u8> { (0..rng.usize(1..12)).map(|_| b"ab\xff\0"[rng.usize(..4)]).collect() };
            let (mut first, mut last) = (key(), key());
            if first > last {
                std::mem::swap(&mut first, &mut last);
            }
            let place = between(&first, &last, rng.u64(..));
            // Zeros behind a key come after it, and before all longer ones.
            assert!(
                place >= first && place[..place.len().min(last.len())] <= last[..],
                "{first:?} {place:?} {last:?}"
            );
        }
    }
}
