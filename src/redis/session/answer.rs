//! What the shards answer, as Redis would say it.

use super::Session;
use super::admin::Kill;
use super::cluster::OfSlot;
use super::refusal::text_of;
use super::scan::{Count, Keys, Page, Pick};
use crate::base::Lsn;
use crate::error::Refusal;
use crate::protocol::binary::{HEADER_BYTES, Values, decode_reply, decode_reply_header, encode_request};
use crate::protocol::resp::{self, Proto};
use crate::protocol::{Lifetime, Reply, Request};

/// What a command's reply is made of.
pub(super) enum What {
    /// Nothing: it is known already.
    Known,
    /// GET: the value.
    Value,
    /// SET.
    Set,
    /// SETNX: whether it was set.
    IsSet,
    /// INCR and its like: the sum.
    Sum,
    /// DEL, EXISTS and their like: keys that there were, after so many more replies.
    Number { left: usize, sum: i64 },
    /// EXPIRE: whether the key was there.
    IsThere,
    /// TYPE.
    Type,
    /// TTL and its like.
    Ttl { in_ms: bool, is_absolute: bool },
    /// MGET.
    Values,
    /// MSET: after so many more replies.
    All { left: usize },
    /// A transaction's replies as they are.
    Resp,
    /// FLUSHALL, and what it is like.
    Done,
    /// BGSAVE.
    Begun,
    /// WATCH: the version of a key, and after it those of these, last one first.
    Watch { rest: Vec<Vec<u8>> },
    /// SCAN.
    Scan(Box<Page>),
    /// KEYS.
    Keys(Box<Keys>),
    /// DBSIZE.
    Count(Count),
    /// CLUSTER COUNTKEYSINSLOT, GETKEYSINSLOT.
    OfSlot(Box<OfSlot>),
    /// RANDOMKEY.
    Pick(Box<Pick>),
    /// CLIENT LIST: those of these numbers, or all.
    Clients { ids: Option<Vec<i64>> },
    /// CLIENT KILL.
    Kill(Box<Kill>),
    /// INFO: these sections.
    Info { sections: Vec<String> },
}

/// What comes of one reply.
pub(super) enum Outcome {
    /// The command's reply stands behind what was there.
    Written,
    /// The command's reply.
    Reply(Vec<u8>),
    /// More replies are to come.
    More,
    /// This is to be asked next.
    Ask(Vec<u8>),
}

impl Session {
    /// Takes replies, whole frames back to back. What may leave then, [`Session::take_out`] gives. Returns the highest
    /// number of a command whose reply they made: once [`Session::first`] is beyond it, all of them have left. None, if
    /// what they told is noted and there is more to come.
    pub fn answer(&mut self, mut replies: &[u8], now: super::Now) -> Option<u64> {
        self.now = now;
        let mut last = None;
        while let Some((number, reply, rest)) = split(replies) {
            replies = rest;
            if self.answer_one(number, reply) {
                last = last.max(Some(number));
            }
        }
        assert!(replies.is_empty(), "shards answer in whole frames");
        self.pending.release(&mut self.out, &self.context.metrics);
        if self.pending.is_empty() {
            self.is_exclusive = false;
        }
        last
    }

    /// Whether that makes the command's reply.
    fn answer_one(&mut self, number: u64, reply: Reply<'_>) -> bool {
        let Some(expected) = self.pending.get(number) else {
            // One of several replies to a command that another one has ended already, by an error.
            return false;
        };
        let proto = expected.proto;
        let mut what = std::mem::replace(&mut expected.what, What::Known);
        // The reply that nothing is before, as nearly all are, is written to where it leaves from.
        let is_first = number == self.pending.first();
        let mut out = if is_first { std::mem::take(&mut self.out) } else { Vec::new() };
        let before = out.len();
        let outcome = match reply {
            Reply::Refused(refusal) => self.refused(&what, &refusal, &mut out),
            reply => self.outcome(number, &mut what, reply, proto, &mut out),
        };
        match outcome {
            Outcome::Written if is_first => {
                self.pending.first_is_written(&mut out, before, &self.context.metrics);
                self.out = out;
                return true;
            }
            Outcome::Written => {
                self.pending.answered(number, out);
                return true;
            }
            _ => {}
        }
        assert!(out.len() == before, "what is not the reply is not written");
        if is_first {
            self.out = out;
        }
        match outcome {
            Outcome::Written => unreachable!("it was dealt with"),
            Outcome::Reply(reply) => {
                self.pending.answered(number, reply);
                return true;
            }
            Outcome::More => self.put_back(number, what),
            Outcome::Ask(frame) => {
                self.frames.extend_from_slice(&frame);
                self.put_back(number, what);
            }
        }
        false
    }

    fn put_back(&mut self, number: u64, what: What) {
        if let Some(expected) = self.pending.get(number) {
            expected.what = what;
        }
    }

    fn refused(&mut self, what: &What, refusal: &Refusal, out: &mut Vec<u8>) -> Outcome {
        if let What::Watch { .. } = what {
            self.watched.failed();
        }
        resp::error(out, &text_of(refusal));
        Outcome::Written
    }

    /// Makes the command's reply of what a shard answered and appends it to `out`; or says what else comes of it, and
    /// appends nothing.
    fn outcome(
        &mut self,
        number: u64,
        what: &mut What,
        reply: Reply<'_>,
        proto: Proto,
        out: &mut Vec<u8>,
    ) -> Outcome {
        match (what, reply) {
            (What::Value, Reply::Value { value, .. }) => resp::bulk(out, value),
            (What::Value, Reply::Absent) => resp::null(out, proto),
            (What::Set, Reply::Written { .. }) => resp::simple(out, "OK"),
            (What::Set, Reply::ConditionFailed { .. }) => resp::null(out, proto),
            (What::IsSet, Reply::Written { .. }) => resp::integer(out, 1),
            (What::IsSet, Reply::ConditionFailed { .. }) => resp::integer(out, 0),
            (What::Sum, Reply::Counter { value, .. }) => resp::integer(out, value),
            (What::Number { left, sum }, reply) => {
                *sum += i64::from(!matches!(reply, Reply::Absent));
                *left -= 1;
                if *left > 0 {
                    return Outcome::More;
                }
                resp::integer(out, *sum);
            }
            (What::IsThere, reply) => {
                resp::integer(out, i64::from(!matches!(reply, Reply::Absent)));
            }
            (What::Type, reply) => {
                resp::simple(out, if matches!(reply, Reply::Absent) { "none" } else { "string" });
            }
            (What::Ttl { .. }, Reply::Absent) => resp::integer(out, -2),
            (What::Ttl { .. }, Reply::Lifetime { lifetime: None, .. }) => resp::integer(out, -1),
            (What::Ttl { in_ms, is_absolute }, Reply::Lifetime { lifetime: Some(lifetime), .. }) => {
                resp::integer(out, ttl(&lifetime, *in_ms, *is_absolute));
            }
            (What::Values, Reply::Values(values)) => list(out, values, proto),
            (What::All { left }, _) => {
                *left -= 1;
                if *left > 0 {
                    return Outcome::More;
                }
                resp::simple(out, "OK");
            }
            (What::Resp, Reply::Resp(replies)) => out.extend_from_slice(replies),
            (What::Done, _) => resp::simple(out, "OK"),
            (What::Begun, _) => resp::simple(out, "Background saving started"),
            (What::Watch { rest }, reply) => {
                let version = match reply {
                    Reply::Lifetime { version, .. } => Some(version),
                    _ => None::<Lsn>,
                };
                self.watched.seen(version);
                if let Some(key) = rest.pop() {
                    let mut frame = Vec::new();
                    encode_request(&mut frame, number, &Request::Ttl { key: &key });
                    return Outcome::Ask(frame);
                }
                resp::simple(out, "OK");
            }
            (What::Scan(scan), Reply::Page(page)) => {
                scan.reply(&page, &mut self.context.cursors.borrow_mut(), out);
            }
            (What::Keys(keys), Reply::Page(page)) => return keys.take(number, &page),
            (What::OfSlot(keys), Reply::Page(page)) => return keys.take(number, &page),
            (What::Count(count), Reply::Page(page)) => return count.take(number, &page),
            (What::Count(count), Reply::Stats(text)) => return count.estimate(number, text),
            (What::Pick(pick), Reply::Page(page)) => return pick.take(number, &page, proto),
            (What::Clients { ids }, Reply::Stats(text)) => {
                resp::verbatim(out, "txt", clients(text, ids.as_deref()).as_bytes(), proto);
            }
            (What::Kill(kill), Reply::Stats(text)) => return self.go_on_killing(number, kill, text),
            (What::Info { sections }, Reply::Stats(text)) => {
                let sections = std::mem::take(sections);
                let text = self.info(&sections, text);
                resp::verbatim(out, "txt", text.as_bytes(), proto);
            }
            _ => unreachable!("a shard answers what it was asked"),
        }
        Outcome::Written
    }
}

/// The lines about clients with these numbers, by number.
fn clients(text: &str, ids: Option<&[i64]>) -> String {
    let number = |line: &str| {
        let digits = line.strip_prefix("id=").and_then(|rest| rest.split(' ').next());
        digits.and_then(|digits| digits.parse::<i64>().ok()).unwrap_or(0)
    };
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    lines.retain(|line| ids.is_none_or(|ids| ids.contains(&number(line))));
    lines.sort_by_key(|line| number(line));
    lines.concat()
}

fn list(out: &mut Vec<u8>, values: Values<'_>, proto: Proto) {
    out.reserve(values.wire_bytes().len());
    resp::array(out, values.len());
    for value in values {
        match value {
            Some(value) => resp::bulk(out, value.value),
            None => resp::null(out, proto),
        }
    }
}

/// As Redis rounds it: to the nearest second.
fn ttl(lifetime: &Lifetime, in_ms: bool, is_absolute: bool) -> i64 {
    let ms = if is_absolute { lifetime.expires_at_ms } else { lifetime.remaining_ms };
    let number = if in_ms { ms } else { (ms + 500) / 1000 };
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The first reply of `frames`, the number of its command, and what follows.
fn split(frames: &[u8]) -> Option<(u64, Reply<'_>, &[u8])> {
    let header = decode_reply_header(frames, u32::MAX).ok()??;
    let (frame, rest) = frames.split_at_checked(HEADER_BYTES + header.body_bytes())?;
    let reply = decode_reply(&header, &frame[HEADER_BYTES..]).ok()?;
    Some((header.request_id, reply, rest))
}
