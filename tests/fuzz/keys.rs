//! Keys and values as inputs have them: short, alike, with hash tags now and then, so that order, prefixes and slots
//! all matter.

use fastrand::Rng;

/// Of a few letters, among them the smallest and the largest byte.
const LETTERS: [u8; 8] = [b'a', b'b', b'c', b'{', b'}', 0, 0xfe, 0xff];

/// A key, never empty.
pub fn key(rng: &mut Rng) -> Vec<u8> {
    let len = match rng.u8(..16) {
        0 => rng.usize(1..300),
        1..4 => rng.usize(9..40),
        _ => rng.usize(1..9),
    };
    (0..len).map(|_| LETTERS[rng.usize(..LETTERS.len())]).collect()
}

/// A key of the slot that all of these are of.
pub fn key_of_one_slot(rng: &mut Rng) -> Vec<u8> {
    [b"{t}", &key(rng)[..]].concat()
}

/// Keys in ascending order, none twice.
pub fn sorted_keys(rng: &mut Rng, count: usize) -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = (0..count).map(|_| key(rng)).collect();
    keys.sort();
    keys.dedup();
    keys
}

/// A value, maybe empty, of bytes that compress more or less.
pub fn value(rng: &mut Rng, most: usize) -> Vec<u8> {
    let len = if rng.u8(..4) == 0 { rng.usize(..=most) } else { rng.usize(..=most.min(24)) };
    let letters = 1 << rng.u32(..9);
    (0..len).map(|_| rng.u16(..letters) as u8).collect()
}

/// Two different keys in their order.
pub fn range(rng: &mut Rng) -> (Vec<u8>, Vec<u8>) {
    let (start, mut end) = (key(rng), key(rng));
    if start >= end {
        end.clone_from(&start);
        end.push(0);
    }
    (start, end)
}
