//! BITFIELD: integers of any width in a value.

use super::{Outcome, Run};
use crate::protocol::resp;
use crate::redis::command::{BitField, FieldAction, FieldOverflow, FieldStep};
use crate::redis::keyspace::Keyspace;

impl<K: Keyspace> Run<'_, K> {
    pub(super) fn bitfield(&mut self, field: &BitField<'_>) -> Outcome<(), K> {
        for step in &field.steps {
            self.byte_of_bit(step.offset)?;
        }
        field.rest?;
        let ends = field.steps.iter().filter(|step| step.action != FieldAction::Get).map(end_byte);
        let end = ends.max().unwrap_or(0);
        self.check_len(end)?;
        let (mut value, expiry_ms) = self.take(field.key, end)?;
        // A step that writes makes room for itself even if it then fails.
        let mut is_changed = value.len() < end;
        value.resize(value.len().max(end), 0);
        resp::array(self.out, field.steps.len());
        for step in &field.steps {
            let (reply, becomes) = take_step(step, read(&value, step));
            if let Some(new) = becomes {
                is_changed |= write(&mut value, step, new);
            }
            match reply {
                Some(number) => resp::integer(self.out, number),
                None => resp::null(self.out, self.proto),
            }
        }
        if is_changed {
            self.put(field.key, value, expiry_ms)?;
        }
        Ok(())
    }
}

/// Bytes that a value must have to hold the field.
fn end_byte(step: &FieldStep) -> usize {
    usize::try_from((step.offset + u64::from(step.bits)).div_ceil(8)).unwrap_or(usize::MAX)
}

/// Of a step, the reply and what the field becomes, if it is written, given what it is.
fn take_step(step: &FieldStep, old: i128) -> (Option<i64>, Option<i128>) {
    // All numbers of 64 bits with or without sign, and the sums of two, are numbers of 128.
    let (wanted, overflow) = match step.action {
        FieldAction::Get => return (Some(old as i64), None),
        // A negative number for a field without sign is a large one.
        FieldAction::Set(number, overflow) if !step.is_signed => (i128::from(number as u64), overflow),
        FieldAction::Set(number, overflow) => (i128::from(number), overflow),
        FieldAction::Add(number, overflow) => (old + i128::from(number), overflow),
    };
    let Some(new) = fit(step, wanted, overflow) else { return (None, None) };
    let reply = if matches!(step.action, FieldAction::Add(..)) { new } else { old };
    // A field is of 64 bits with a sign, or of 63.
    (Some(reply as i64), Some(new))
}

/// The number that the field holds instead. Nothing, if it is to hold none.
fn fit(step: &FieldStep, number: i128, overflow: FieldOverflow) -> Option<i128> {
    let values = 1i128 << step.bits;
    let (min, max) = if step.is_signed { (-values / 2, values / 2 - 1) } else { (0, values - 1) };
    if (min..=max).contains(&number) {
        return Some(number);
    }
    match overflow {
        FieldOverflow::Wrap => Some((number - min).rem_euclid(values) + min),
        // Redis reckons with 64 bits how far below it is, and takes what is too far for those to be above.
        FieldOverflow::Saturate if is_set(step) && max - number > i128::from(i64::MAX) => Some(max),
        FieldOverflow::Saturate => Some(number.clamp(min, max)),
        FieldOverflow::Fail => None,
    }
}

fn is_set(step: &FieldStep) -> bool {
    matches!(step.action, FieldAction::Set(..))
}

/// The bytes that a field touches, and by how many bits their end is behind its own.
fn window(step: &FieldStep) -> (usize, usize, u32) {
    let start = usize::try_from(step.offset / 8).unwrap_or(usize::MAX);
    let end = end_byte(step);
    // At most 7 bits in front, 64 of the field and 7 behind it: nine bytes.
    let behind = (8 - (step.offset + u64::from(step.bits)) % 8) % 8;
    (start, end, behind as u32)
}

/// The number in a field. What is beyond the value's end is zero.
fn read(value: &[u8], step: &FieldStep) -> i128 {
    let (start, end, behind) = window(step);
    let byte = |index: usize| i128::from(value.get(index).copied().unwrap_or(0));
    let bits = (start..end).fold(0, |bits, index| bits << 8 | byte(index)) >> behind;
    let values = 1i128 << step.bits;
    let number = bits & (values - 1);
    if step.is_signed && number >= values / 2 { number - values } else { number }
}

/// Writes a number that the field holds. Returns whether that changes anything.
fn write(value: &mut [u8], step: &FieldStep, number: i128) -> bool {
    let is_changed = read(value, step) != number;
    let (start, end, behind) = window(step);
    let mask = ((1i128 << step.bits) - 1) << behind;
    let bits = (number << behind) & mask;
    for (place, byte) in value[start..end].iter_mut().rev().enumerate() {
        let shift = 8 * place;
        *byte = (*byte & !((mask >> shift) as u8)) | (bits >> shift) as u8;
    }
    is_changed
}
