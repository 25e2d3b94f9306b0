//! Commands that read and write bits of values. Bit 0 is the highest of the first byte.

use super::{Halt, Outcome, Run, clamp_range, is_reversed, signed};
use crate::redis::command::{BitOperation, BitRange};
use crate::redis::fault::Fault;
use crate::redis::keyspace::Keyspace;

impl<K: Keyspace> Run<'_, K> {
    /// The index of a bit's byte, which must be one that a value may have.
    pub(super) fn byte_of_bit(&self, offset: u64) -> Result<usize, Fault> {
        let byte = usize::try_from(offset / 8).map_err(|_| Fault::BitOffset)?;
        if byte < self.space.value_bytes_max() { Ok(byte) } else { Err(Fault::BitOffset) }
    }

    pub(super) fn setbit(&mut self, key: &[u8], offset: u64, bit: Result<bool, Fault>) -> Outcome<(), K> {
        let byte = self.byte_of_bit(offset)?;
        let mask = 0x80 >> (offset % 8);
        let bit = bit?;
        let (len, old) = match self.get(key)? {
            Some(cell) => (cell.value.len(), cell.value.get(byte).is_some_and(|byte| byte & mask != 0)),
            None => (0, false),
        };
        if byte >= len || old != bit {
            let (mut value, expiry_ms) = self.take(key, byte + 1)?;
            value.resize(len.max(byte + 1), 0);
            value[byte] = if bit { value[byte] | mask } else { value[byte] & !mask };
            self.put(key, value, expiry_ms)?;
        }
        self.integer(i64::from(old))
    }

    pub(super) fn getbit(&mut self, key: &[u8], offset: u64) -> Outcome<(), K> {
        let byte = self.byte_of_bit(offset)?;
        let cell = self.get(key)?;
        let byte = cell.as_ref().and_then(|cell| cell.value.get(byte).copied()).unwrap_or(0);
        self.integer(i64::from(byte >> (7 - offset % 8) & 1))
    }

    pub(super) fn bitcount(&mut self, key: &[u8], range: Result<Option<BitRange>, Fault>) -> Outcome<(), K> {
        let Some(cell) = self.space.get(key).map_err(Halt::Stop)? else { return self.integer(0) };
        let range = range?;
        let is_reversed = range.is_some_and(|range| is_reversed(range.start, range.end.unwrap_or(0)));
        let bits = bits_of(range, cell.value.len()).filter(|_| !is_reversed);
        let count = bits.map_or(0, |(first, last)| count_bits(&cell.value, first, last));
        self.integer(i64::try_from(count).unwrap_or(i64::MAX))
    }

    pub(super) fn bitpos(
        &mut self,
        key: &[u8],
        bit: bool,
        range: Result<Option<BitRange>, Fault>,
    ) -> Outcome<(), K> {
        // Redis sees zeros without end in a key that does not exist, but none in an empty string.
        let Some(cell) = self.space.get(key).map_err(Halt::Stop)? else {
            return self.integer(if bit { -1 } else { 0 });
        };
        let range = range?;
        let Some((first, last)) = bits_of(range, cell.value.len()) else { return self.integer(-1) };
        let has_end = range.is_some_and(|range| range.end.is_some());
        let found = match find_bit(&cell.value, bit, first, last) {
            Some(at) => signed(at),
            // Behind the string are zeros, unless where to stop was said.
            None if !bit && !has_end => signed(last + 1),
            None => -1,
        };
        self.integer(found)
    }

    pub(super) fn bitop(
        &mut self,
        operation: BitOperation,
        target: &[u8],
        sources: &[&[u8]],
    ) -> Outcome<(), K> {
        let mut len = 0;
        for source in sources {
            len = self.peek(source)?.map_or(0, |meta| meta.len).max(len);
        }
        if len == 0 {
            if self.exists(target)? {
                self.space.delete(target);
            }
            return self.integer(0);
        }
        let Some((first, others)) = sources.split_first() else { return self.integer(0) };
        let (mut result, _) = self.take(first, len)?;
        result.resize(len, 0);
        if operation == BitOperation::Not {
            result.iter_mut().for_each(|byte| *byte = !*byte);
        }
        for source in others {
            let cell = self.get(source)?;
            combine(operation, &mut result, cell.as_ref().map_or(&[], |cell| &cell.value));
        }
        self.put(target, result, 0)?;
        self.len(len)
    }
}

/// Changes `result` by a source that is as long or shorter, and then counts as zeros.
fn combine(operation: BitOperation, result: &mut [u8], source: &[u8]) {
    let (head, tail) = result.split_at_mut(source.len());
    let pairs = head.iter_mut().zip(source);
    match operation {
        BitOperation::And => {
            pairs.for_each(|(byte, other)| *byte &= other);
            tail.fill(0);
        }
        BitOperation::Or => pairs.for_each(|(byte, other)| *byte |= other),
        BitOperation::Xor => pairs.for_each(|(byte, other)| *byte ^= other),
        BitOperation::Not => {}
    }
}

/// First and last bit of a range in a value of so many bytes. Nothing, if it is empty.
fn bits_of(range: Option<BitRange>, len: usize) -> Option<(usize, usize)> {
    let range = range.unwrap_or(BitRange { start: 0, end: None, in_bits: false });
    let unit = if range.in_bits { 1 } else { 8 };
    let len = signed(len) * 8 / unit;
    let (start, end) = clamp_range(range.start, range.end.unwrap_or(len - 1), len)?;
    Some((usize::try_from(start * unit).ok()?, usize::try_from(end * unit + unit - 1).ok()?))
}

/// Which bits of the first and of the last byte count, from a first to a last bit, both included. If both are
/// in one byte, those of the last are none.
fn masks(first: usize, last: usize) -> (u8, u8) {
    let (head, tail) = (0xff >> (first % 8), 0xff << (7 - last % 8));
    if first / 8 == last / 8 { (head & tail, 0) } else { (head, tail) }
}

/// The bytes between those of a first and a last bit.
fn middle(value: &[u8], first: usize, last: usize) -> &[u8] {
    value.get(first / 8 + 1..last / 8).unwrap_or_default()
}

fn count_bits(value: &[u8], first: usize, last: usize) -> u64 {
    let (head, tail) = masks(first, last);
    let ends = [value[first / 8] & head, value[last / 8] & tail];
    let (words, rest) = middle(value, first, last).as_chunks::<8>();
    let words: u64 = words.iter().map(|word| u64::from(u64::from_ne_bytes(*word).count_ones())).sum();
    let bytes: u32 = rest.iter().chain(&ends).map(|byte| byte.count_ones()).sum();
    words + u64::from(bytes)
}

/// The first such bit from a first to a last one, both included.
fn find_bit(value: &[u8], bit: bool, first: usize, last: usize) -> Option<usize> {
    // What makes a bit that is sought a 1, and all others a 0.
    let skipped = if bit { 0 } else { 0xff };
    let in_byte = |index: usize, mask: u8| {
        let found = (value[index] ^ skipped) & mask;
        (found != 0).then(|| index * 8 + found.leading_zeros() as usize)
    };
    let (head, tail) = masks(first, last);
    in_byte(first / 8, head)
        .or_else(|| in_byte(first / 8 + 1 + first_other(middle(value, first, last), skipped)?, 0xff))
        .or_else(|| in_byte(last / 8, tail))
}

/// The first byte that is not this one. Eight at a time, since such bits may be far between.
fn first_other(bytes: &[u8], skipped: u8) -> Option<usize> {
    let (words, _) = bytes.as_chunks::<8>();
    let start = 8 * words.iter().take_while(|word| **word == [skipped; 8]).count();
    Some(start + bytes[start..].iter().position(|byte| *byte != skipped)?)
}
