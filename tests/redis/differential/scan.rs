//! SCAN, asked for again and again until it is through.

use std::collections::BTreeSet;
use std::fmt::{self, Display, Formatter};
use std::io;

use crate::wire::{Command, Reply, Wire, show};

/// Steps of one iteration; more than there can be keys and slots.
const STEPS_MAX: usize = 40_000;

/// What a whole iteration told.
#[derive(Debug)]
pub struct Scanned {
    pub keys: BTreeSet<Vec<u8>>,
    /// The last reply, which is an error if there was one.
    pub last: Reply,
}

impl Display for Scanned {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        if self.last.is_error() {
            return write!(out, "{}", self.last);
        }
        write!(out, "{} keys:", self.keys.len())?;
        self.keys.iter().try_for_each(|key| write!(out, " {}", show(key)))
    }
}

/// Whether it begins an iteration. One that goes on with another's cursor tells nothing that could be
/// compared.
pub fn is_scan(command: &Command) -> bool {
    command.name() == "scan" && command.word(1) == "0"
}

/// Iterates to the end, or to the first error.
pub fn all(wire: &mut Wire, command: &Command) -> io::Result<Scanned> {
    let mut command = command.clone();
    let mut keys = BTreeSet::new();
    for _ in 0..STEPS_MAX {
        let last = wire.ask(&command)?;
        if last.is_error() {
            return Ok(Scanned { keys, last });
        }
        let [cursor, page] = last.items.as_slice() else {
            return Err(io::Error::other(format!("SCAN is answered with {last}")));
        };
        keys.extend(page.items.iter().map(|key| key.text.clone()));
        if cursor.text == b"0" {
            return Ok(Scanned { keys, last });
        }
        command.0[1] = cursor.text.clone();
    }
    Err(io::Error::other(format!("{command}: not through after {STEPS_MAX} steps")))
}
