//! Arguments of random commands: most of them plain, many at an edge.

use fastrand::Rng;

/// Hash tags of keys. Most keys have the first, so that commands meet what others left.
const TAGS: [&[u8]; 4] = [b"{a}", b"{b}", b"{c}", b""];

/// Keys of each tag.
const KEYS: usize = 6;

/// What a whole round has in common.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mood {
    /// Values may be large, but so that several of them are within what is written at once; then LCS, whose cost is
    /// the product of two lengths, is left out.
    pub is_large: bool,
    /// Expiry times are absolute only, and so known exactly.
    pub is_absolute: bool,
    /// A value may be stored that has expired already. Redis counts it until it comes across it.
    pub is_lapsed: bool,
}

/// A source of arguments.
#[derive(Debug)]
pub struct Draw {
    pub rng: Rng,
    pub mood: Mood,
    tag: usize,
}

impl Draw {
    pub fn new(seed: u64, mood: Mood) -> Draw {
        Draw { rng: Rng::with_seed(seed), mood, tag: 0 }
    }

    /// True once in `count` times.
    pub fn one_in(&mut self, count: u32) -> bool {
        self.rng.u32(..count) == 0
    }

    /// One of some.
    pub fn of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.rng.usize(..all.len())]
    }

    /// One of some words.
    pub fn word(&mut self, all: &[&str]) -> Vec<u8> {
        self.of(all).as_bytes().to_vec()
    }

    /// Begins a command: its keys share a tag, which is `pinned` if that is one.
    pub fn begin(&mut self, pinned: Option<usize>) {
        self.tag = match pinned {
            Some(tag) => tag,
            None => *self.of(&[0, 0, 0, 0, 0, 0, 1, 1, 2, 3]),
        };
    }

    /// The tag of this command's keys, for others to share.
    pub fn tag(&self) -> usize {
        self.tag
    }

    /// A key: one of few, so that there often is something.
    pub fn key(&mut self) -> Vec<u8> {
        match self.rng.u32(..400) {
            0 => self.edge_key(),
            // Of another slot: most commands of several keys then are none of one slot.
            1..=8 => {
                let tag = self.rng.usize(..TAGS.len());
                self.key_of(tag)
            }
            _ => self.key_of(self.tag),
        }
    }

    fn key_of(&mut self, tag: usize) -> Vec<u8> {
        let number = self.rng.usize(..KEYS);
        let name = if number == 0 { b"\x00\xff\r\n".to_vec() } else { format!("key{number}").into_bytes() };
        [TAGS[tag], &name].concat()
    }

    fn edge_key(&mut self) -> Vec<u8> {
        match self.rng.u32(..8) {
            0 => Vec::new(),
            1 => vec![b'k'; 65_536],
            2 => [TAGS[self.tag], &[b'k'; 65_535 - 3]].concat(),
            3 => b"{}".to_vec(),
            4 => b"{a".to_vec(),
            5 => b"*".to_vec(),
            6 => b"a}{a}".to_vec(),
            _ => self.bytes(1, 40),
        }
    }

    /// Random bytes.
    pub fn bytes(&mut self, least: usize, most: usize) -> Vec<u8> {
        (0..self.rng.usize(least..=most)).map(|_| self.rng.u8(..)).collect()
    }

    /// A value.
    pub fn value(&mut self) -> Vec<u8> {
        if self.mood.is_large && self.one_in(3) {
            return self.large_value();
        }
        match self.rng.u32(..12) {
            0..=3 => self.integer(),
            4 | 5 => self.float(),
            6 => Vec::new(),
            7 => self.bytes(0, 12),
            8 => self.text(200),
            9 => self.text(20),
            10 => vec![*self.of(&[0, 0xff, b'x', 0x0f]); self.rng.usize(..70)],
            _ => b"value".to_vec(),
        }
    }

    fn large_value(&mut self) -> Vec<u8> {
        let len = match self.rng.u32(..6) {
            // Around where values are no longer copied at once, and where tables have pages of them.
            0 => self.rng.usize(65_500..65_600),
            1 => self.rng.usize(4_000..4_200),
            _ => self.rng.usize(..40_000),
        };
        // Cheap and unlike itself.
        let start = self.rng.u32(..);
        (0..len as u32)
            .map(|index| (index.wrapping_add(start).wrapping_mul(2_654_435_761) >> 13) as u8)
            .collect()
    }

    /// Text in which parts come again.
    fn text(&mut self, most: usize) -> Vec<u8> {
        let len = self.rng.usize(..most);
        (0..len).map(|_| *self.of(b"aabbcde \n")).collect()
    }

    /// What may be an integer.
    pub fn integer(&mut self) -> Vec<u8> {
        match self.rng.u32(..16) {
            0..=6 => self.rng.i64(-20..200).to_string().into_bytes(),
            7 => self.rng.i64(..).to_string().into_bytes(),
            8 | 9 => {
                let bit = self.rng.u32(..63);
                let near = (1i64 << bit).wrapping_add(self.rng.i64(-2..3));
                if self.rng.bool() { near } else { near.wrapping_neg() }.to_string().into_bytes()
            }
            10 => self.word(&["9223372036854775807", "9223372036854775806", "9223372036854775808"]),
            11 => self.word(&["-9223372036854775808", "-9223372036854775807", "-9223372036854775809"]),
            12 => {
                self.word(&["+1", " 1", "1 ", "01", "-0", "0x10", "1e3", "1.0", "--1", "-", "", "٣", "1\0"])
            }
            13 => self.word(&["18446744073709551615", "18446744073709551616", "99999999999999999999999999"]),
            _ => self.word(&["0", "1", "-1", "2"]),
        }
    }

    /// What may be a float.
    pub fn float(&mut self) -> Vec<u8> {
        const EDGES: &[&str] = &[
            "0",
            "-0",
            "0.0",
            "-0.0",
            "1e400",
            "-1e400",
            "1e308",
            "1.7976931348623157e308",
            "5e-324",
            "1e-400",
            "nan",
            "-nan",
            "NaN",
            "inf",
            "-inf",
            "Infinity",
            "+inf",
            "infinit",
            "1e4932",
            "1.1e4932",
            "1e-4951",
            "0x1p3",
            "0x1.8",
            "0x",
            "1e",
            "1e+",
            "e1",
            ".5",
            "5.",
            ".",
            "-.5",
            "+5",
            "+-5",
            " 1.5",
            "1.5 ",
            "1,5",
            "3.0e3",
            "3e-3",
            "1_000",
            "",
            "1.5\0",
            "0.1",
            "0.2",
            "0.30000000000000004",
            "17179869184.5",
            "123456789012345678.9",
            "9007199254740993",
            "9223372036854775807",
            "9223372036854775808",
            "18446744073709551616",
            "0.00000000000000001",
            "0.000000000000000001",
            "1e17",
            "1e18",
            "1e19",
            "1e20",
            "99999999999999999999",
            "3.141592653589793238462643383279502884",
            "1.00000000000000000001",
        ];
        match self.rng.u32(..8) {
            0 | 1 => self.word(EDGES),
            2 => format!("{:.3}", self.rng.f64() * 200.0 - 100.0).into_bytes(),
            3 => {
                let digits = self.rng.usize(..20);
                format!("{:.digits$}", (self.rng.f64() - 0.5) * 1e6).into_bytes()
            }
            4 => {
                let exponent = self.rng.i32(-30..30);
                format!("{:.5}e{exponent}", self.rng.f64() * 20.0 - 10.0).into_bytes()
            }
            5 => {
                let exponent = self.rng.i32(-330..330);
                format!("{}e{exponent}", self.rng.i32(-99..99)).into_bytes()
            }
            _ => self.integer(),
        }
    }

    /// A position in a value, from its start or its end.
    pub fn index(&mut self) -> Vec<u8> {
        if self.one_in(6) { self.integer() } else { self.rng.i64(-30..60).to_string().into_bytes() }
    }

    /// Where to write into a value: what is before is filled, so that it is small but in rounds of large
    /// values.
    pub fn offset(&mut self) -> Vec<u8> {
        const BEYOND: &[&str] = &[
            "1048576",
            "1048577",
            "536870911",
            "536870912",
            "4294967295",
            "4294967296",
            "9223372036854775807",
            "-1",
            "-9223372036854775808",
            "x",
            "",
            "1.0",
        ];
        match self.rng.u32(..20) {
            0 => self.word(BEYOND),
            1 if self.mood.is_large => self.rng.usize(39_000..40_000).to_string().into_bytes(),
            2 if self.mood.is_large => self.rng.usize(..40_000).to_string().into_bytes(),
            3 => self.rng.usize(..600).to_string().into_bytes(),
            _ => self.rng.usize(..40).to_string().into_bytes(),
        }
    }

    /// As [`Draw::offset`], of a bit.
    pub fn bit_offset(&mut self) -> Vec<u8> {
        const BEYOND: &[&str] = &[
            "8388608",
            "8388609",
            "4294967295",
            "4294967296",
            "9223372036854775807",
            "-1",
            "-9223372036854775808",
            "x",
            "",
            "1.0",
            "99999999999999999999",
        ];
        match self.rng.u32(..20) {
            0 => self.word(BEYOND),
            1 if self.mood.is_large => self.rng.usize(310_000..320_000).to_string().into_bytes(),
            2 => self.rng.usize(..4_800).to_string().into_bytes(),
            _ => self.rng.usize(..200).to_string().into_bytes(),
        }
    }

    /// Seconds or milliseconds to live: far from now, past, or impossible.
    pub fn time_to_live(&mut self, in_millis: bool) -> Vec<u8> {
        if self.one_in(6) {
            return self.impossible_time();
        }
        if self.mood.is_absolute || self.one_in(5) {
            return self.word(&["0", "-1", "-100", "-9223372036854775"]);
        }
        // A minute apart, so that GT and LT don't depend on how long a command took to come.
        let seconds = 3_600 + 60 * self.rng.u64(..10_000_000);
        if in_millis { seconds * 1_000 + self.rng.u64(..1_000) } else { seconds }.to_string().into_bytes()
    }

    /// Seconds or milliseconds since 1970: after all that [`Draw::time_to_live`] draws, past, or impossible.
    pub fn expiry_time(&mut self, in_millis: bool) -> Vec<u8> {
        if self.one_in(6) {
            return self.impossible_time();
        }
        if self.one_in(5) {
            return self.word(&["1", "0", "-1", "1600000000"]);
        }
        let seconds = 4_102_444_800 + self.rng.u64(..50);
        if in_millis { seconds * 1_000 + self.rng.u64(..1_000) } else { seconds }.to_string().into_bytes()
    }

    /// An expiry time that has come, for a round in which that may be stored.
    pub fn past_time(&mut self) -> Vec<u8> {
        self.word(&["1", "1000", "1600000000"])
    }

    fn impossible_time(&mut self) -> Vec<u8> {
        self.word(&[
            "9223372036854775807",
            "-9223372036854775808",
            "9223372036854775",
            "9223372036854776",
            "-9223372036854775",
            "-9223372036854776",
            "9223372036854775808",
            "9000000000000000",
            "x",
            "",
            "1.5",
            "9007199254740993000",
        ])
    }

    /// A pattern of keys.
    pub fn pattern(&mut self) -> Vec<u8> {
        self.word(&[
            "*",
            "*",
            "{a}*",
            "{b}*",
            "*key?",
            "*key[1-3]",
            "*key[^1-3]",
            "*key[3-1]",
            "{?}key1",
            "\\{a\\}key1",
            "*key\\1",
            "key*",
            "[",
            "[a",
            "[^",
            "*[",
            "",
            "?",
            "\\",
            "*\\",
            "**1",
            "*k*e*y*",
            "{a}key1",
            "*KEY1",
            "*[k]ey1",
            "*key[]1]",
            "{[a-]}*",
            "{a}key[1\\-3]",
            "nothing",
        ])
    }

    /// Anything, for where something else belongs.
    pub fn anything(&mut self) -> Vec<u8> {
        match self.rng.u32(..10) {
            0 => self.integer(),
            1 => self.float(),
            2 => Vec::new(),
            3 => self.bytes(0, 30),
            4 => self.key(),
            5 => self.value(),
            6 => vec![b'y'; self.rng.usize(100..400)],
            _ => self.word(&[
                "NX",
                "XX",
                "GT",
                "LT",
                "EX",
                "PX",
                "EXAT",
                "PXAT",
                "KEEPTTL",
                "GET",
                "PERSIST",
                "MATCH",
                "COUNT",
                "TYPE",
                "LEN",
                "IDX",
                "MINMATCHLEN",
                "WITHMATCHLEN",
                "REPLACE",
                "DB",
                "BIT",
                "BYTE",
                "SYNCHRONOUS",
                "it's",
                "\"",
                "a b",
            ]),
        }
    }
}
