//! The range of DELRANGE and FLUSH; drawn in the module above.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{Code, Refusal};
use crate::protocol::{DeleteRange, Durability, Limits, OpCode};

/// Only keys of the shard that serves the connection.
const LOCAL: u32 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct WireRange {
    start_len: U16,
    end_len: U16,
    flags: U32,
    epoch: U64,
}

const _: () = assert!(size_of::<WireRange>() == 16);

/// Bytes of the value of a request.
pub(super) fn request_len(range: &DeleteRange<'_>) -> usize {
    size_of::<WireRange>() + range.start.len() + range.end.len()
}

/// Appends the value of a request.
pub(super) fn encode_request(out: &mut Vec<u8>, range: &DeleteRange<'_>) {
    let len = |key: &[u8]| U16::new(u16::try_from(key.len()).expect("key length checked by the caller"));
    let wire = WireRange {
        start_len: len(range.start),
        end_len: len(range.end),
        flags: U32::new(if range.is_local { LOCAL } else { 0 }),
        epoch: U64::new(range.epoch),
    };
    out.extend_from_slice(wire.as_bytes());
    out.extend_from_slice(range.start);
    out.extend_from_slice(range.end);
}

/// Reads the value of a request.
pub(super) fn decode_request<'a>(
    opcode: OpCode,
    value: &'a [u8],
    durability: Durability,
    limits: &Limits,
) -> Result<DeleteRange<'a>, Refusal> {
    let refused = |code, what: &str| Err(Refusal::new(code, format!("{}: {what}", opcode.name())));
    let Ok((wire, keys)) = WireRange::ref_from_prefix(value) else {
        return refused(Code::Malformed, "the range is cut short");
    };
    let (start_len, end_len) = (usize::from(wire.start_len.get()), usize::from(wire.end_len.get()));
    if wire.flags.get() & !LOCAL != 0 || keys.len() != start_len + end_len {
        return refused(Code::Malformed, "the range is broken");
    }
    let (start, end) = keys.split_at(start_len);
    let longest = start_len.max(end_len);
    if longest > limits.key_bytes_max as usize {
        let limit = limits.key_bytes_max;
        return refused(
            Code::InvalidKey,
            &format!("a bound of {longest} bytes is more than the {limit} allowed"),
        );
    }
    if !end.is_empty() && start >= end {
        return refused(Code::Malformed, "the range ends where it starts, or before");
    }
    let is_local = wire.flags.get() & LOCAL != 0;
    let range = DeleteRange { start, end, is_local, epoch: wire.epoch.get(), durability };
    match (opcode, range.is_everything()) {
        (OpCode::Flush, false) => refused(Code::Malformed, "it removes everything, and takes no bounds"),
        (OpCode::DeleteRange, true) => {
            refused(Code::Malformed, "a range without bounds is everything; FLUSH removes that")
        }
        _ => Ok(range),
    }
}
