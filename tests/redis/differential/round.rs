//! One round: what is sent, on which of two connections, and how much at once. It follows from its seed
//! alone, so that it can be sent again, whole or in part.

use fastrand::Rng;

use crate::differential::arguments::{Draw, Mood};
use crate::differential::recipes;
use crate::wire::Command;

/// Connections of a round. Two are enough for one to change what the other watches.
pub const CONNECTIONS: usize = 2;

/// Commands of most rounds: enough for keys to have a past, few enough to be made shorter when they fail.
const COMMANDS: usize = 300;

/// Commands of a round with large values.
const COMMANDS_LARGE: usize = 60;

/// A command of a round.
#[derive(Clone, Debug)]
pub struct Step {
    pub connection: usize,
    /// Neighbours with the same number, on the same connection, are sent at once.
    pub batch: usize,
    pub command: Command,
}

/// A round.
#[derive(Clone, Debug)]
pub struct Round {
    pub mood: Mood,
    /// The protocol that each connection begins with: 2 or 3.
    pub protocols: [u8; CONNECTIONS],
    pub steps: Vec<Step>,
}

impl Round {
    /// The round of this number in the campaign with this seed.
    pub fn draw(seed: u64, number: u64) -> Round {
        let seed = mix(seed, number);
        let mut rng = Rng::with_seed(mix(seed, 1));
        let mood = Mood {
            is_large: rng.u32(..24) == 0,
            is_absolute: rng.u32(..4) == 0,
            is_lapsed: rng.u32(..6) == 0,
        };
        let protocols = [rng.u8(2..=3), rng.u8(2..=3)];
        let mut draw = Draw::new(mix(seed, 2), mood);
        let count = if mood.is_large { COMMANDS_LARGE } else { COMMANDS };
        let mut transactions = [Transaction::default(); CONNECTIONS];
        let mut steps = Vec::with_capacity(count);
        let mut batch = 0;
        while steps.len() < count {
            // Mostly one connection, so that what it began is not always disturbed.
            let connection = usize::from(rng.u32(..4) == 0);
            batch += 1;
            for _ in 0..batch_len(&mut rng) {
                let command = transactions[connection].next(&mut rng, &mut draw);
                steps.push(Step { connection, batch, command });
            }
        }
        Round { mood, protocols, steps }
    }
}

/// How many commands are sent at once.
fn batch_len(rng: &mut Rng) -> usize {
    match rng.u32(..10) {
        0..=3 => 1,
        4..=7 => rng.usize(2..12),
        _ => rng.usize(12..60),
    }
}

/// A number that follows from two.
fn mix(a: u64, b: u64) -> u64 {
    Rng::with_seed(a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b).u64(..)
}

/// What a connection is probably in the middle of: transactions are of one slot, mostly, and end.
#[derive(Clone, Copy, Debug, Default)]
struct Transaction {
    tag: Option<usize>,
    is_open: bool,
}

impl Transaction {
    fn next(&mut self, rng: &mut Rng, draw: &mut Draw) -> Command {
        let ends = self.is_open && rng.u32(..6) == 0;
        let begins = self.tag.is_some() && !self.is_open && rng.u32(..4) == 0;
        let command = if ends {
            recipes::plain(if rng.u32(..8) == 0 { "DISCARD" } else { "EXEC" })
        } else if begins {
            recipes::plain("MULTI")
        } else {
            recipes::draw(draw, self.tag.filter(|_| rng.u32(..100) > 0))
        };
        match command.name().as_str() {
            "watch" if self.tag.is_none() => self.tag = Some(draw.tag()),
            "multi" => {
                self.is_open = true;
                self.tag = self.tag.or_else(|| Some(rng.usize(..3)));
            }
            "exec" | "discard" | "reset" => *self = Transaction::default(),
            _ => {}
        }
        command
    }
}

#[test]
fn a_round_follows_from_its_seed() {
    let (one, again, other) = (Round::draw(7, 3), Round::draw(7, 3), Round::draw(7, 4));
    let said = |round: &Round| round.steps.iter().map(|step| step.command.clone()).collect::<Vec<_>>();
    assert_eq!(said(&one), said(&again));
    assert_ne!(said(&one), said(&other));
}
