//! Inputs that a run starts from and finds, and how they look in a file.
//!
//! A file below `tests/data/fuzz` has an input a line, in hexadecimal, with `*n` behind a byte that stands there n
//! times; what follows a `#` says what it is.

use std::fmt::Write as _;

use fastrand::Rng;

/// Inputs found that are kept, and bytes of all of them together. Beyond, a new one takes the place of any.
const FOUND_MAX: usize = 4096;
const FOUND_BYTES_MAX: usize = 8 << 20;

/// All inputs of a decoder: those of its file, then those generated, then those found.
pub struct Corpus {
    files: usize,
    known: Vec<Vec<u8>>,
    found: Vec<Vec<u8>>,
    found_bytes: usize,
    next_generated: usize,
}

impl Corpus {
    /// What is kept in the repository for the decoder of this name.
    pub fn of_files(name: &str) -> Corpus {
        let path = format!("{}/tests/data/fuzz/{name}.txt", env!("CARGO_MANIFEST_DIR"));
        let known = match std::fs::read_to_string(&path) {
            Ok(text) => parse(&text),
            Err(error) => panic!("{path}: {error}"),
        };
        Corpus { files: known.len(), known, found: Vec::new(), found_bytes: 0, next_generated: 0 }
    }

    /// How many came from the file.
    pub fn files(&self) -> usize {
        self.files
    }

    /// One of those.
    pub fn file(&self, at: usize) -> &[u8] {
        &self.known[at]
    }

    /// How many were found.
    pub fn found(&self) -> usize {
        self.found.len()
    }

    /// Adds one that was generated; the oldest goes if there are `most`.
    pub fn add_generated(&mut self, input: &[u8], most: usize) {
        if self.known.len() < self.files + most {
            self.known.push(input.to_vec());
            return;
        }
        let place = &mut self.known[self.files + self.next_generated % most];
        place.clear();
        place.extend_from_slice(input);
        self.next_generated += 1;
    }

    /// Adds one of which something new came.
    pub fn add_found(&mut self, input: &[u8]) {
        self.found_bytes += input.len();
        while self.found.len() >= FOUND_MAX || self.found_bytes > FOUND_BYTES_MAX && !self.found.is_empty() {
            // Any, and the same in every run.
            let at = self.found_bytes.wrapping_mul(0x9E37_79B9) % self.found.len();
            self.found_bytes -= self.found.swap_remove(at).len();
        }
        self.found.push(input.to_vec());
    }

    /// Any: as often a known one as a found one.
    pub fn pick(&self, rng: &mut Rng) -> &[u8] {
        let from = if self.found.is_empty() || rng.bool() { &self.known } else { &self.found };
        &from[rng.usize(..from.len())]
    }

    /// The shortest that were found, as a file.
    pub fn shortest(&self, most: usize) -> String {
        let mut found: Vec<&Vec<u8>> = self.found.iter().collect();
        found.sort_by_key(|input| input.len());
        found.into_iter().take(most).map(|input| line(input) + "\n").collect()
    }
}

/// The inputs of a file.
pub fn parse(text: &str) -> Vec<Vec<u8>> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).map(parse_line).collect()
}

fn parse_line(line: &str) -> Vec<u8> {
    let mut input = Vec::new();
    for token in line.split_ascii_whitespace() {
        let (hex, times) = token.split_once('*').unwrap_or((token, "1"));
        let times: usize = times.parse().unwrap_or_else(|_| panic!("how often is {token}?"));
        assert!(hex.is_ascii() && hex.len().is_multiple_of(2), "{token} is no hexadecimal bytes");
        for at in (0..hex.len()).step_by(2) {
            let byte = u8::from_str_radix(&hex[at..at + 2], 16).unwrap_or_else(|_| panic!("{token}"));
            // Only the last byte of a token is repeated.
            let times = if at + 2 == hex.len() { times } else { 1 };
            input.extend(std::iter::repeat_n(byte, times));
        }
    }
    input
}

/// An input as a line of a file.
pub fn line(input: &[u8]) -> String {
    let mut line = String::new();
    let mut at = 0;
    while at < input.len() {
        let same = input[at..].iter().take_while(|byte| **byte == input[at]).count();
        if same > 8 {
            let _ = write!(line, "{:02x}*{same} ", input[at]);
            at += same;
        } else {
            let _ = write!(line, "{:02x}", input[at]);
            at += 1;
        }
    }
    line.truncate(line.trim_end().len());
    line
}

#[test]
fn lines_come_back() {
    let input = [&b"abc"[..], &[0; 100], b"\xff", &[7; 9], b"z"].concat();
    assert_eq!(line(&input), "61626300*100 ff07*9 7a");
    assert_eq!(parse(&format!("# nothing\n{} # a comment\n\n00\n", line(&input))), [input, vec![0]]);
}
