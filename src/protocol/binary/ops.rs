//! The items of BATCH; drawn in the module above.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::decode::{malformed, too_many, value_too_large};
use super::header::*;
use super::items::{ListError, Ops};
use crate::base::{EXPIRY_MS_MAX, KEY_BYTES_MAX, Lsn};
use crate::error::{Code, Refusal};
use crate::protocol::{Action, BatchOp, Condition, Deadline, Expiry, Limits, OpCode};
use crate::slot::Slot;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireOp {
    kind: u8,
    options: u8,
    key_len: U16,
    value_len: U32,
}

const _: () = assert!(size_of::<WireOp>() == 8);

const PUT: u8 = 1;
const DELETE: u8 = 2;
const EXPIRE: u8 = 3;
const PERSIST: u8 = 4;
const CHECK: u8 = 5;

/// Bits of the options that say what the expiry is, as the flags of a header do.
const EXPIRY_MASK: u8 = EXPIRY_BITS as u8;
/// The condition is above them.
const CONDITION_SHIFT: u32 = 2;

const _: () = assert!(CONDITION_IF_VERSION << CONDITION_SHIFT | EXPIRY_MASK == 0x0F);

/// A number that is there only sometimes.
fn split_u64(bytes: &[u8], is_there: bool) -> Option<(u64, &[u8])> {
    if !is_there {
        return Some((0, bytes));
    }
    let (number, rest) = U64::ref_from_prefix(bytes).ok()?;
    Some((number.get(), rest))
}

/// The first item of `bytes` and what follows it; `None` if it does not parse.
pub(super) fn split_op(bytes: &[u8]) -> Option<(BatchOp<'_>, &[u8])> {
    let (wire, rest) = WireOp::ref_from_prefix(bytes).ok()?;
    let mode = u16::from(wire.options & EXPIRY_MASK);
    let condition = wire.options >> CONDITION_SHIFT;
    let (version, rest) = split_u64(rest, condition == CONDITION_IF_VERSION)?;
    let (ms, rest) = split_u64(rest, matches!(mode, EXPIRY_IN | EXPIRY_AT))?;
    let (key, rest) = rest.split_at_checked(usize::from(wire.key_len.get()))?;
    let (value, rest) = rest.split_at_checked(wire.value_len.get() as usize)?;
    let condition = match condition {
        CONDITION_NONE => Condition::None,
        CONDITION_IF_ABSENT => Condition::IfAbsent,
        CONDITION_IF_PRESENT => Condition::IfPresent,
        CONDITION_IF_VERSION if version > 0 => Condition::IfVersion(Lsn(version)),
        _ => return None,
    };
    let deadline = if mode == EXPIRY_IN { Deadline::In(ms) } else { Deadline::At(ms) };
    let action = match (wire.kind, mode) {
        (PUT, EXPIRY_NEVER) => Action::Put { value, expiry: Expiry::Never },
        (PUT, EXPIRY_KEEP) => Action::Put { value, expiry: Expiry::Keep },
        (PUT, _) => Action::Put { value, expiry: Expiry::Set(deadline) },
        (DELETE, EXPIRY_NEVER) => Action::Delete,
        (EXPIRE, EXPIRY_IN | EXPIRY_AT) => Action::Expire(deadline),
        (PERSIST, EXPIRY_NEVER) => Action::Persist,
        (CHECK, EXPIRY_NEVER) => Action::Check,
        _ => return None,
    };
    let is_sound = !key.is_empty() && (wire.kind == PUT || value.is_empty());
    is_sound.then_some((BatchOp { key, condition, action }, rest))
}

/// Appends an item.
fn encode_op(out: &mut Vec<u8>, op: &BatchOp<'_>) {
    let (kind, value, expiry) = match op.action {
        Action::Put { value, expiry } => (PUT, value, expiry),
        Action::Delete => (DELETE, &[][..], Expiry::Never),
        Action::Expire(deadline) => (EXPIRE, &[][..], Expiry::Set(deadline)),
        Action::Persist => (PERSIST, &[][..], Expiry::Never),
        Action::Check => (CHECK, &[][..], Expiry::Never),
    };
    let (mode, ms) = wire_expiry(expiry);
    let wire = WireOp {
        kind,
        options: mode as u8 | op.condition.number() << CONDITION_SHIFT,
        key_len: U16::new(u16::try_from(op.key.len()).expect("key length checked by the caller")),
        value_len: U32::new(u32::try_from(value.len()).expect("value length checked by the caller")),
    };
    out.extend_from_slice(wire.as_bytes());
    if let Condition::IfVersion(version) = op.condition {
        out.extend_from_slice(&version.0.to_le_bytes());
    }
    if let Expiry::Set(_) = expiry {
        out.extend_from_slice(&ms.to_le_bytes());
    }
    out.extend_from_slice(op.key);
    out.extend_from_slice(value);
}

/// What is wrong with an item that parses.
fn check_op(op: &BatchOp<'_>, limits: &Limits) -> Result<(), Refusal> {
    if op.key.len() > limits.key_bytes_max as usize {
        let message = format!(
            "BATCH: a key of {} bytes is more than the {} allowed",
            op.key.len(),
            limits.key_bytes_max
        );
        return Err(Refusal::new(Code::InvalidKey, message));
    }
    let invalid = |what| Err(Refusal::new(Code::InvalidOption, what));
    match (op.action, op.condition) {
        (Action::Put { value, .. }, _) if value.len() > limits.value_bytes_max as usize => {
            return Err(value_too_large(OpCode::Batch, value.len() as u64, limits));
        }
        (Action::Delete | Action::Expire(_) | Action::Persist, Condition::IfAbsent) => {
            return invalid("BATCH: if-absent makes no sense for an operation of a key that is there");
        }
        (Action::Check, Condition::None) => return invalid("BATCH: a check without a condition"),
        _ => {}
    }
    match op.action {
        Action::Put { expiry: Expiry::Set(deadline), .. } | Action::Expire(deadline)
            if !(1..=EXPIRY_MS_MAX).contains(&deadline.ms()) =>
        {
            let message = format!(
                "BATCH: {} ms is no time to live and no time: both are 1 to {EXPIRY_MS_MAX} milliseconds",
                deadline.ms()
            );
            Err(Refusal::new(Code::InvalidExpiry, message))
        }
        _ => Ok(()),
    }
}

/// Reads the value of a request.
pub(super) fn decode_ops<'a>(value: &'a [u8], limits: &Limits) -> Result<Ops<'a>, Refusal> {
    let mut slot: Option<Slot> = None;
    let mut refused = None;
    let mut is_write = false;
    let ops = Ops::parse(value, limits.items_max, |op| {
        is_write |= op.action.is_write();
        let this = Slot::of_key(op.key);
        if let Err(refusal) = check_op(op, limits) {
            refused = Some(refusal);
        } else if *slot.get_or_insert(this) != this {
            let first = slot.unwrap_or(this);
            let message = format!(
                "BATCH: keys of slots {first} and {this} in one batch; give them one {{hash tag}} to make them atomic"
            );
            refused = Some(Refusal::new(Code::CrossSlot, message));
        }
        refused.is_none()
    });
    let ops = ops.map_err(|error| match (error, refused.take()) {
        (ListError::TooMany(count), _) => too_many("BATCH", count, limits),
        (_, Some(refusal)) => refusal,
        (ListError::Broken(index) | ListError::Refused(index), None) => Refusal::new(
            Code::Malformed,
            format!("BATCH: the list is broken at operation {index}, counted from 0"),
        ),
    })?;
    match (ops.is_empty(), is_write) {
        (true, _) => Err(malformed("BATCH: the list of operations is empty")),
        (false, false) => Err(malformed("BATCH: it has only checks, and nothing to write")),
        (false, true) => Ok(ops),
    }
}

/// The items of a BATCH in the making.
#[derive(Clone, Debug, Default)]
pub struct OpList {
    count: usize,
    writes: usize,
    bytes: Vec<u8>,
}

impl OpList {
    /// Adds an item.
    ///
    /// # Panics
    /// If the key is empty or longer than a key can be, or the value is 4 GiB long; the caller has looked.
    pub fn push(&mut self, op: &BatchOp<'_>) {
        assert!(!op.key.is_empty() && op.key.len() <= KEY_BYTES_MAX, "key length checked by the caller");
        encode_op(&mut self.bytes, op);
        self.count += 1;
        self.writes += usize::from(op.action.is_write());
    }

    /// Adds a put without a condition, for ever.
    ///
    /// # Panics
    /// As [`OpList::push`].
    pub fn put(&mut self, key: &[u8], value: &[u8]) {
        self.push(&BatchOp::put(key, value));
    }

    /// Adds a delete without a condition.
    ///
    /// # Panics
    /// As [`OpList::push`].
    pub fn delete(&mut self, key: &[u8]) {
        self.push(&BatchOp::delete(key));
    }

    /// How many items.
    pub fn len(&self) -> usize {
        self.count
    }

    /// How many of them write.
    pub fn writes(&self) -> usize {
        self.writes
    }

    /// Whether there is none; such a list is refused by the server.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of all items on the wire, to be compared with the server's limit.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The list as [`crate::protocol::Request::Batch`] takes it.
    pub fn ops(&self) -> Ops<'_> {
        Ops::of_written(self.count, &self.bytes)
    }

    /// Removes all items, keeping the buffer.
    pub fn clear(&mut self) {
        (self.count, self.writes) = (0, 0);
        self.bytes.clear();
    }
}
