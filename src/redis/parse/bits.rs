//! Commands that read and write bits of values.

use super::{at_least, exactly, integer, is};
use crate::redis::command::{
    BitField, BitOperation, BitRange, Command, FieldAction, FieldOverflow, FieldStep, Keys,
};
use crate::redis::fault::Fault;
use crate::redis::number::parse_i64;

/// A bit's offset, below the limit that only the evaluation knows.
fn bit_offset(text: &[u8]) -> Result<u64, Fault> {
    parse_i64(text).and_then(|offset| u64::try_from(offset).ok()).ok_or(Fault::BitOffset)
}

pub(super) fn setbit<'a>(args: &[&'a [u8]]) -> Result<Command<'a>, Fault> {
    let [key, offset, bit] = exactly(args, "setbit")?;
    let bit = match bit {
        b"0" => Ok(false),
        b"1" => Ok(true),
        _ => Err(Fault::Bit),
    };
    Ok(Command::SetBit { key, offset: bit_offset(offset)?, bit })
}

pub(super) fn getbit<'a>(args: &[&'a [u8]]) -> Result<Command<'a>, Fault> {
    let [key, offset] = exactly(args, "getbit")?;
    Ok(Command::GetBit { key, offset: bit_offset(offset)? })
}

/// Whether the last argument of a range says bits, not bytes.
fn in_bits(word: &[u8]) -> Result<bool, Fault> {
    if is(word, "bit") {
        Ok(true)
    } else if is(word, "byte") {
        Ok(false)
    } else {
        Err(Fault::Syntax)
    }
}

pub(super) fn bitcount<'a>(args: &[&'a [u8]]) -> Result<Command<'a>, Fault> {
    let ([key], range) = at_least(args, "bitcount")?;
    Ok(Command::BitCount { key, range: bitcount_range(range) })
}

fn bitcount_range(args: &[&[u8]]) -> Result<Option<BitRange>, Fault> {
    let (start, end, unit) = match args {
        [] => return Ok(None),
        [start, end] => (start, end, None),
        [start, end, unit] => (start, end, Some(unit)),
        _ => return Err(Fault::Syntax),
    };
    let (start, end) = (integer(start)?, integer(end)?);
    // Such a range is empty in any unit, and Redis looks no further.
    let is_reversed = start < 0 && end < 0 && start > end;
    let in_bits = unit.filter(|_| !is_reversed).map_or(Ok(false), |unit| in_bits(unit))?;
    Ok(Some(BitRange { start, end: Some(end), in_bits }))
}

pub(super) fn bitpos<'a>(args: &[&'a [u8]]) -> Result<Command<'a>, Fault> {
    let ([key, bit], range) = at_least(args, "bitpos")?;
    let bit = match integer(bit)? {
        0 => false,
        1 => true,
        _ => return Err(Fault::BitSought),
    };
    Ok(Command::BitPos { key, bit, range: bitpos_range(range) })
}

fn bitpos_range(args: &[&[u8]]) -> Result<Option<BitRange>, Fault> {
    match args {
        [] => Ok(None),
        [start] => Ok(Some(BitRange { start: integer(start)?, end: None, in_bits: false })),
        [start, end] => {
            Ok(Some(BitRange { start: integer(start)?, end: Some(integer(end)?), in_bits: false }))
        }
        [start, end, unit] => {
            let start = integer(start)?;
            let in_bits = in_bits(unit)?;
            Ok(Some(BitRange { start, end: Some(integer(end)?), in_bits }))
        }
        _ => Err(Fault::Syntax),
    }
}

pub(super) fn bitop<'a>(args: &[&'a [u8]]) -> Result<Command<'a>, Fault> {
    let ([operation, target, _], _) = at_least(args, "bitop")?;
    let operation = if is(operation, "and") {
        BitOperation::And
    } else if is(operation, "or") {
        BitOperation::Or
    } else if is(operation, "xor") {
        BitOperation::Xor
    } else if is(operation, "not") {
        BitOperation::Not
    } else {
        return Err(Fault::Syntax);
    };
    let sources = Keys::from_slice(&args[2..]);
    if operation == BitOperation::Not && sources.len() > 1 {
        return Err(Fault::BitOpNot);
    }
    Ok(Command::BitOp { operation, target, sources })
}

pub(super) fn bitfield<'a>(args: &[&'a [u8]], name: &'static str) -> Result<Command<'a>, Fault> {
    let ([key], mut args) = at_least(args, name)?;
    let mut field = BitField { key, steps: Vec::new(), rest: Ok(()), name };
    let mut overflow = FieldOverflow::default();
    while !args.is_empty() && field.rest.is_ok() {
        field.rest = field_step(&mut args, &mut overflow, &mut field.steps);
    }
    let is_reading = field.steps.iter().all(|step| step.action == FieldAction::Get);
    if field.rest.is_ok() && name == "bitfield_ro" && !is_reading {
        field.rest = Err(Fault::BitFieldReadOnly);
    }
    Ok(Command::BitField(field))
}

/// Takes one step, or a choice of what to do on overflow, off the arguments.
fn field_step(
    args: &mut &[&[u8]],
    overflow: &mut FieldOverflow,
    steps: &mut Vec<FieldStep>,
) -> Result<(), Fault> {
    let (action, kind, offset, number) = match **args {
        [word, choice, ..] if is(word, "overflow") => {
            *overflow = field_overflow(choice)?;
            *args = &args[2..];
            return Ok(());
        }
        [word, kind, offset, ..] if is(word, "get") => (None, kind, offset, None),
        [word, kind, offset, number, ..] if is(word, "set") => {
            (Some(FieldAction::Set as fn(_, _) -> _), kind, offset, Some(number))
        }
        [word, kind, offset, number, ..] if is(word, "incrby") => {
            (Some(FieldAction::Add as fn(_, _) -> _), kind, offset, Some(number))
        }
        _ => return Err(Fault::Syntax),
    };
    *args = &args[if number.is_some() { 4 } else { 3 }..];
    let (is_signed, bits) = field_type(kind)?;
    let offset = field_offset(offset, bits)?;
    let mut step = FieldStep { offset, bits, is_signed, action: FieldAction::Get };
    // The offset's limit comes before the number's fault: the step stays, to be looked at.
    let number = number.map(integer).transpose();
    if let (Some(action), Ok(Some(number))) = (action, number) {
        step.action = action(number, *overflow);
    }
    steps.push(step);
    number.map(|_| ())
}

fn field_overflow(word: &[u8]) -> Result<FieldOverflow, Fault> {
    if is(word, "wrap") {
        Ok(FieldOverflow::Wrap)
    } else if is(word, "sat") {
        Ok(FieldOverflow::Saturate)
    } else if is(word, "fail") {
        Ok(FieldOverflow::Fail)
    } else {
        Err(Fault::BitFieldOverflow)
    }
}

/// Whether it is signed, and of how many bits.
fn field_type(text: &[u8]) -> Result<(bool, u8), Fault> {
    let (is_signed, digits, bits_max) = match text {
        [b'i', digits @ ..] => (true, digits, 64),
        [b'u', digits @ ..] => (false, digits, 63),
        _ => return Err(Fault::BitFieldType),
    };
    // The number ends at a NUL, as a string of C does.
    let digits = digits.split(|byte| *byte == 0).next().unwrap_or_default();
    let bits = parse_i64(digits).and_then(|bits| u8::try_from(bits).ok());
    let bits = bits.filter(|bits| (1..=bits_max).contains(bits)).ok_or(Fault::BitFieldType)?;
    Ok((is_signed, bits))
}

/// In bits, or behind a "#" in fields.
fn field_offset(text: &[u8], bits: u8) -> Result<u64, Fault> {
    match text {
        [b'#', number @ ..] => {
            // Redis does not look whether the product fits, so that one far beyond may mean a place near the
            // beginning.
            let offset = parse_i64(number).ok_or(Fault::BitOffset)?.wrapping_mul(i64::from(bits));
            u64::try_from(offset).map_err(|_| Fault::BitOffset)
        }
        number => bit_offset(number),
    }
}
