//! Name → row.
//!
//! A table of places that is filled at compile time, with linear probing. A name becomes two words of 64 bits
//! in small letters, which are hashed and compared: 5 ns of a core for any name, known or not. Comparing letter
//! by letter takes longer the longer a name is.

use super::{Spec, absent, cluster, connection, keys, server, strings};

/// All commands that are supported.
pub(super) static CHAPTERS: [&[Spec]; 8] = [
    strings::STRINGS,
    strings::BITMAPS,
    keys::GENERIC,
    keys::KEYSPACE,
    keys::TRANSACTIONS,
    connection::COMMANDS,
    server::COMMANDS,
    cluster::COMMANDS,
];

/// Bits of an index into [`PLACES`]: five places for each command, so that few have to share.
const PLACE_BITS: u32 = 9;
const PLACE_COUNT: usize = 1 << PLACE_BITS;

/// A name of up to 16 letters, in small ones. Two names are the same if both words and the length are.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Name {
    words: [u64; 2],
    len: usize,
}

/// Where a command is found.
#[derive(Clone, Copy)]
struct Place {
    /// Empty if the place is free.
    name: Name,
    chapter: u8,
    row: u8,
}

static PLACES: [Place; PLACE_COUNT] = {
    let mut places = [Place { name: Name { words: [0; 2], len: 0 }, chapter: 0, row: 0 }; PLACE_COUNT];
    let mut chapter = 0;
    while chapter < CHAPTERS.len() {
        let mut row = 0;
        while row < CHAPTERS[chapter].len() {
            let Some(name) = Name::of(CHAPTERS[chapter][row].name.as_bytes()) else {
                panic!("a command has a name of up to 16 letters")
            };
            let mut place = name.home();
            while places[place].name.len > 0 {
                place = (place + 1) % PLACE_COUNT;
            }
            places[place] = Place { name, chapter: chapter as u8, row: row as u8 };
            row += 1;
        }
        chapter += 1;
    }
    places
};

impl Name {
    /// `None` if it is empty or too long for any command.
    #[inline]
    const fn of(name: &[u8]) -> Option<Name> {
        let len = name.len();
        // Parts that overlap say no less, since the length is known.
        let words = match len {
            1..4 => [name[0] as u64 | (name[len / 2] as u64) << 8 | (name[len - 1] as u64) << 16, 0],
            4..8 => [half(name, 0) | half(name, len - 4) << 32, 0],
            8..=16 => [whole(name, 0), whole(name, len - 8)],
            _ => return None,
        };
        Some(Name { words: [in_small_letters(words[0]), in_small_letters(words[1])], len })
    }

    /// The place where it belongs; it is there, or at the next one that was free.
    #[inline]
    const fn home(self) -> usize {
        let mixed = self.words[0] ^ self.words[1].rotate_left(29) ^ self.len as u64;
        (mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - PLACE_BITS)) as usize
    }
}

#[inline]
const fn half(bytes: &[u8], at: usize) -> u64 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]) as u64
}

#[inline]
const fn whole(bytes: &[u8], at: usize) -> u64 {
    half(bytes, at) | half(bytes, at + 4) << 32
}

/// Eight letters at once. The highest bit of each byte tells, after an addition that does not carry into the
/// next one, whether what is below it is at least `A`, or more than `Z`.
#[inline]
const fn in_small_letters(letters: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let low = letters & (0x7F * EACH);
    let from_a = low + (0x80 - b'A' as u64) * EACH;
    let beyond_z = low + (0x7F - b'Z' as u64) * EACH;
    let capitals = from_a & !beyond_z & !letters & (0x80 * EACH);
    letters | capitals >> 2
}

/// The command of this name, in any case of letters, if it is supported.
#[inline]
pub fn find(name: &[u8]) -> Option<&'static Spec> {
    let name = Name::of(name)?;
    let mut index = name.home();
    // Ends at a place that is free, of which there are many.
    loop {
        let place = &PLACES[index];
        if place.name == name {
            return Some(&CHAPTERS[place.chapter as usize][place.row as usize]);
        }
        if place.name.len == 0 {
            return None;
        }
        index = (index + 1) % PLACE_COUNT;
    }
}

/// The subcommand of this name, its own, in any case of letters, if it is supported.
pub fn find_sub(container: &'static Spec, name: &[u8]) -> Option<&'static Spec> {
    container.subcommands.iter().find(|sub| sub.own_name().as_bytes().eq_ignore_ascii_case(name))
}

/// The command of this name, or of a subcommand's whole name (`client|tracking`), if it is known and absent.
/// Of the row only name, group and reason mean something.
pub fn find_absent(name: &[u8]) -> Option<&'static Spec> {
    absent::CHAPTERS.iter().copied().flatten().find(|spec| spec.name.as_bytes().eq_ignore_ascii_case(name))
}
