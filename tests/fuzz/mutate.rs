//! Changes to inputs: some blind, some that know where a format keeps its numbers.

use std::ops::Range;

use fastrand::Rng;

/// A little-endian number in an input, of 1, 2, 4 or 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number {
    pub at: usize,
    pub width: usize,
}

/// Numbers of these widths one after the other from `at` on; a width of 0 ends the row, and a negative one passes
/// over so many bytes.
pub fn numbers_from(mut at: usize, widths: &[i8], out: &mut Vec<Number>) {
    for &width in widths {
        let bytes = usize::from(width.unsigned_abs());
        if width > 0 {
            out.push(Number { at, width: bytes });
        }
        at += bytes;
    }
}

/// The number of `width` bytes at `at`; 0 where there is none.
pub fn number_at(bytes: &[u8], at: usize, width: usize) -> u64 {
    let mut number = [0; 8];
    match at.checked_add(width).and_then(|end| bytes.get(at..end)) {
        Some(found) => {
            number[..width].copy_from_slice(found);
            u64::from_le_bytes(number)
        }
        None => 0,
    }
}

/// Writes a number, if there is room for it.
pub fn set_number(bytes: &mut [u8], at: usize, width: usize, value: u64) {
    if let Some(place) = at.checked_add(width).and_then(|end| bytes.get_mut(at..end)) {
        place.copy_from_slice(&value.to_le_bytes()[..width]);
    }
}

/// How inputs of a format may be changed.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Nothing longer is made.
    pub bytes_max: usize,
    /// What is cut, copied or moved is most often a multiple of this: the page of formats that consist of pages.
    pub unit: usize,
}

/// Changes `input` once. `numbers` are places that its format knows, maybe none; `other` is another input.
pub fn mutate(input: &mut Vec<u8>, numbers: &[Number], other: &[u8], shape: Shape, rng: &mut Rng) {
    if !numbers.is_empty() && rng.u8(..8) < 4 {
        let Number { at, width } = numbers[rng.usize(..numbers.len())];
        let new = boundary(number_at(input, at, width), input.len(), rng);
        set_number(input, at, width, new);
        return;
    }
    if input.is_empty() {
        let len = rng.usize(1..=other.len().clamp(1, 16));
        input.extend((0..len).map(|at| other.get(at).copied().unwrap_or(0)));
        return;
    }
    let at = rng.usize(..input.len());
    match rng.u8(..13) {
        0 | 1 => input[at] ^= 1 << rng.u32(..8),
        2 => input[at] = rng.u8(..),
        3 => input[at] = [0, 1, 0x7f, 0x80, 0xfe, 0xff][rng.usize(..6)],
        4 => input[at] = input[at].wrapping_add(if rng.bool() { 1 } else { u8::MAX }),
        5 => {
            let width = 1 << rng.u32(..4);
            let new = boundary(number_at(input, at, width), input.len(), rng);
            set_number(input, at, width, new);
        }
        6 => {
            let cut = unit_of(at, shape.unit, rng);
            input.truncate(cut);
        }
        7 => extend(input, other, shape, rng),
        8 => {
            let cut = part(input.len(), shape.unit, rng);
            input.drain(cut);
        }
        9 => {
            let copied = part(input.len(), shape.unit, rng);
            let to = unit_of(at, shape.unit, rng);
            if input.len() + copied.len() <= shape.bytes_max {
                insert_copy(input, copied, to);
            }
        }
        10 => {
            let copied = part(input.len(), shape.unit, rng);
            let to = unit_of(at, shape.unit, rng).min(input.len() - copied.len());
            input.copy_within(copied, to);
        }
        11 => {
            let filled = part(input.len(), 1, rng);
            let byte = if rng.bool() { 0 } else { rng.u8(..) };
            input[filled].fill(byte);
        }
        _ => splice(input, other, at, shape, rng),
    }
}

/// A number that is likely to matter where `old` stands, in an input of `len` bytes.
fn boundary(old: u64, len: usize, rng: &mut Rng) -> u64 {
    let bit = 1u64 << rng.u32(..64);
    match rng.u8(..18) {
        0 => 0,
        1 => 1,
        2 => u64::MAX,
        3 => u64::MAX - rng.u64(..4),
        4 => old.wrapping_add(1),
        5 => old.wrapping_sub(1),
        6 => old.wrapping_mul(2),
        7 => old / 2,
        8 => old ^ bit,
        9 => bit,
        10 => bit - 1,
        11 => len as u64,
        12 => (len as u64).wrapping_sub(rng.u64(..80)),
        13 => (len as u64).wrapping_add(rng.u64(..80)),
        14 | 15 => rng.u64(..24),
        16 => old.wrapping_add(rng.u64(..64)).wrapping_sub(32),
        _ => rng.u64(..),
    }
}

/// `at`, most often rounded down to a unit.
fn unit_of(at: usize, unit: usize, rng: &mut Rng) -> usize {
    if unit > 1 && rng.u8(..8) > 0 { at / unit * unit } else { at }
}

/// A part of `len` bytes, of whole units most often; short ones are as likely as long ones.
fn part(len: usize, unit: usize, rng: &mut Rng) -> Range<usize> {
    let start = unit_of(rng.usize(..=len), unit, rng);
    let most = (len - start).min(1 << rng.u32(..17));
    let bytes = rng.usize(..=most);
    let bytes = if unit > 1 && rng.u8(..8) > 0 { bytes.next_multiple_of(unit) } else { bytes };
    start..(start + bytes).min(len)
}

fn insert_copy(input: &mut Vec<u8>, copied: Range<usize>, to: usize) {
    let (len, bytes) = (input.len(), copied.len());
    input.extend_from_within(copied);
    input[to..].rotate_right(bytes.min(len + bytes - to));
}

fn extend(input: &mut Vec<u8>, other: &[u8], shape: Shape, rng: &mut Rng) {
    let room = shape.bytes_max.saturating_sub(input.len());
    let most = room.min(1 << rng.u32(..10));
    let bytes = rng.usize(..=most);
    let bytes = if shape.unit > 1 { bytes.next_multiple_of(shape.unit).min(room) } else { bytes };
    match rng.u8(..3) {
        0 => input.resize(input.len() + bytes, 0),
        1 => input.extend((0..bytes).map(|_| rng.u8(..))),
        _ => input.extend_from_slice(&other[..bytes.min(other.len())]),
    }
}

/// Goes on with what another input has.
fn splice(input: &mut Vec<u8>, other: &[u8], at: usize, shape: Shape, rng: &mut Rng) {
    let at = unit_of(at, shape.unit, rng);
    // From the same place on most often: then fields meet fields of their kind.
    let from = if rng.bool() { at } else { unit_of(rng.usize(..=other.len()), shape.unit, rng) };
    let Some(tail) = other.get(from..) else { return };
    if rng.bool() {
        input.truncate(at);
        input.extend_from_slice(&tail[..tail.len().min(shape.bytes_max.saturating_sub(at))]);
    } else {
        let bytes = tail.len().min(input.len() - at).min(1 << rng.u32(..13));
        input[at..at + bytes].copy_from_slice(&tail[..bytes]);
    }
}

#[test]
fn whatever_is_changed_stays_within_its_bounds() {
    let mut rng = Rng::with_seed(5);
    for unit in [1, 16] {
        let shape = Shape { bytes_max: 96, unit };
        let (mut input, other) = (Vec::new(), [7; 64]);
        let numbers = [Number { at: 4, width: 4 }, Number { at: 60, width: 8 }];
        for _ in 0..20_000 {
            mutate(&mut input, &numbers, &other, shape, &mut rng);
            assert!(input.len() <= 96);
        }
    }
    let mut copied = b"abcdef".to_vec();
    insert_copy(&mut copied, 1..3, 4);
    assert_eq!(copied, b"abcdbcef");
}
