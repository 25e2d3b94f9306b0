//! The body of TRANSACT; drawn in the module above.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::decode::{malformed, too_many};
use super::items::{ListError, Steps, Watches};
use crate::base::Lsn;
use crate::error::{Code, Refusal};
use crate::protocol::{Durability, Limits, Transaction};

/// Replies are encoded as RESP3 says, else as RESP2 does.
const RESP3: u32 = 1;
/// The reply is one array of the steps' replies.
const ARRAY: u32 = 2;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireTransaction {
    flags: U32,
    watch_bytes: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct WireWatch {
    key_len: U16,
    reserved: U16,
    version: U64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct WireStep {
    bytes: U32,
    count: U32,
}

const _: () = assert!(size_of::<WireTransaction>() == 8);
const _: () = assert!(size_of::<WireWatch>() == 12);
const _: () = assert!(size_of::<WireStep>() == 8);

/// A key that must be as it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch<'a> {
    /// 1..=65535 bytes.
    pub key: &'a [u8],
    /// Its version; `None`: it had no value.
    pub version: Option<Lsn>,
}

/// One step of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A command: its name and arguments, at least one.
    Command(Arguments<'a>),
    /// What to put into its place in the reply, encoded.
    Reply(&'a [u8]),
}

/// The arguments of a command, the first of which is its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arguments<'a> {
    count: usize,
    bytes: &'a [u8],
}

impl<'a> Iterator for Arguments<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        self.count = self.count.checked_sub(1)?;
        let (argument, rest) = split_argument(self.bytes).expect("checked when the list was decoded");
        self.bytes = rest;
        Some(argument)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.count, Some(self.count))
    }
}

impl ExactSizeIterator for Arguments<'_> {}

fn split_argument(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = U32::ref_from_prefix(bytes).ok()?;
    rest.split_at_checked(len.get() as usize)
}

pub(super) fn split_watch(bytes: &[u8]) -> Option<(Watch<'_>, &[u8])> {
    let (wire, rest) = WireWatch::ref_from_prefix(bytes).ok()?;
    let (key, rest) = rest.split_at_checked(usize::from(wire.key_len.get()))?;
    let version = Some(Lsn(wire.version.get())).filter(|version| *version != Lsn::ZERO);
    (!key.is_empty() && wire.reserved.get() == 0).then_some((Watch { key, version }, rest))
}

pub(super) fn split_step(bytes: &[u8]) -> Option<(Step<'_>, &[u8])> {
    let (wire, rest) = WireStep::ref_from_prefix(bytes).ok()?;
    let (body, after) = rest.split_at_checked(wire.bytes.get() as usize)?;
    let count = wire.count.get() as usize;
    if count == 0 {
        return Some((Step::Reply(body), after));
    }
    let mut left = body;
    for _ in 0..count {
        left = split_argument(left)?.1;
    }
    left.is_empty().then_some((Step::Command(Arguments { count, bytes: body }), after))
}

/// The steps of a transaction, encoded one by one.
#[derive(Clone, Debug, Default)]
pub struct StepList {
    count: usize,
    bytes: Vec<u8>,
}

impl StepList {
    /// Adds a command.
    ///
    /// # Panics
    /// If there is no argument, or they are longer than 4 GiB: callers keep to the server's limits.
    pub fn command(&mut self, arguments: &[&[u8]]) {
        assert!(!arguments.is_empty(), "a command has a name");
        let bytes = arguments.iter().map(|argument| 4 + argument.len()).sum();
        self.head(bytes, arguments.len());
        for argument in arguments {
            self.bytes.extend_from_slice(len_u32(argument.len()).as_bytes());
            self.bytes.extend_from_slice(argument);
        }
    }

    /// Adds a reply that is known already.
    ///
    /// # Panics
    /// If it is longer than 4 GiB.
    pub fn reply(&mut self, reply: &[u8]) {
        self.head(reply.len(), 0);
        self.bytes.extend_from_slice(reply);
    }

    fn head(&mut self, bytes: usize, count: usize) {
        let wire = WireStep { bytes: len_u32(bytes), count: len_u32(count) };
        self.bytes.extend_from_slice(wire.as_bytes());
        self.count += 1;
    }

    /// All of them, borrowed.
    pub fn steps(&self) -> Steps<'_> {
        Steps::written(self.count, &self.bytes)
    }

    /// Bytes that they take on the wire.
    pub fn wire_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Keys that are watched, encoded one by one.
#[derive(Clone, Debug, Default)]
pub struct WatchList {
    count: usize,
    bytes: Vec<u8>,
}

impl WatchList {
    /// Adds a key.
    ///
    /// # Panics
    /// If it is empty or longer than 65535 bytes: callers keep to the server's limits.
    pub fn push(&mut self, watch: Watch<'_>) {
        assert!(!watch.key.is_empty(), "a key has bytes");
        let wire = WireWatch {
            key_len: U16::new(u16::try_from(watch.key.len()).expect("keys are within the server's limits")),
            reserved: U16::ZERO,
            version: U64::new(watch.version.unwrap_or(Lsn::ZERO).0),
        };
        self.bytes.extend_from_slice(wire.as_bytes());
        self.bytes.extend_from_slice(watch.key);
        self.count += 1;
    }

    /// All of them, borrowed.
    pub fn watches(&self) -> Watches<'_> {
        Watches::written(self.count, &self.bytes)
    }
}

fn len_u32(len: usize) -> U32 {
    U32::new(u32::try_from(len).expect("lengths are within the server's limits"))
}

/// Bytes of the value of a request.
pub(super) fn request_len(transaction: &Transaction<'_>) -> usize {
    let lists = transaction.watches.wire_bytes().len() + transaction.steps.wire_bytes().len();
    size_of::<WireTransaction>() + 4 + 4 + lists
}

/// Appends the value of a request.
pub(super) fn encode_request(out: &mut Vec<u8>, transaction: &Transaction<'_>) {
    let flag = |is_set, flag| if is_set { flag } else { 0 };
    let (watches, steps) = (transaction.watches, transaction.steps);
    let wire = WireTransaction {
        flags: U32::new(flag(transaction.is_resp3, RESP3) | flag(transaction.is_array, ARRAY)),
        watch_bytes: len_u32(4 + watches.wire_bytes().len()),
    };
    out.extend_from_slice(wire.as_bytes());
    out.extend_from_slice(len_u32(watches.len()).as_bytes());
    out.extend_from_slice(watches.wire_bytes());
    out.extend_from_slice(len_u32(steps.len()).as_bytes());
    out.extend_from_slice(steps.wire_bytes());
}

/// Reads the value of a request.
pub(super) fn decode_request<'a>(
    key: &'a [u8],
    value: &'a [u8],
    durability: Durability,
    limits: &Limits,
) -> Result<Transaction<'a>, Refusal> {
    let cut = || malformed("TRANSACT: its body is cut short");
    let (wire, lists) = WireTransaction::ref_from_prefix(value).map_err(|_| cut())?;
    let flags = wire.flags.get();
    if flags & !(RESP3 | ARRAY) != 0 {
        return Err(malformed("TRANSACT: reserved flags must be 0"));
    }
    let (watches, steps) = lists.split_at_checked(wire.watch_bytes.get() as usize).ok_or_else(cut)?;
    let broken = |what: &str, error| match error {
        ListError::Broken(index) => {
            let message = format!("TRANSACT: the list of {what} is broken at {index}, counted from 0");
            Refusal::new(Code::Malformed, message)
        }
        ListError::TooMany(count) => too_many("TRANSACT", count, limits),
        ListError::Refused(index) => {
            let limit = limits.key_bytes_max;
            let message = format!("TRANSACT: watched key {index} is longer than the {limit} bytes allowed");
            Refusal::new(Code::InvalidKey, message)
        }
    };
    let watches =
        Watches::parse(watches, limits.items_max, |watch| watch.key.len() <= limits.key_bytes_max as usize);
    let watches = watches.map_err(|error| broken("watches", error))?;
    let steps = Steps::parse(steps, limits.items_max, |_| true).map_err(|error| broken("commands", error))?;
    let (is_resp3, is_array) = (flags & RESP3 != 0, flags & ARRAY != 0);
    Ok(Transaction { key, is_resp3, is_array, watches, steps, durability })
}
