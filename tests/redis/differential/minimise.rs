//! Makes a round that shows a difference as short as it can be within some seconds.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::differential::play::{Finding, Pair, Tally, play};
use crate::differential::round::{Round, Step};

/// Longest time for one finding.
const PATIENCE: Duration = Duration::from_secs(20);

/// A shorter round, and what it shows: the same, or something that is not among `seen` either. Of a
/// difference that does not come again, the round as it was.
pub fn minimise(pair: Pair, round: &Round, finding: &Finding, seen: &BTreeSet<String>) -> (Round, Finding) {
    let begin = Instant::now();
    let mut best = Best { round: round.clone(), finding: finding.clone(), seen };
    // What comes after it is not needed, unless only the look at the end showed it.
    let end = (finding.at + 1).min(round.steps.len());
    best.attempt(pair, round.steps[..end].to_vec());
    // Pieces are left out, first large ones, then smaller ones, then single commands.
    let mut piece = best.round.steps.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        let mut shorter = false;
        while at < best.round.steps.len() && begin.elapsed() < PATIENCE {
            let mut steps = best.round.steps.clone();
            steps.drain(at..(at + piece).min(steps.len()));
            if best.attempt(pair, steps) {
                shorter = true;
            } else {
                at += piece;
            }
        }
        if begin.elapsed() >= PATIENCE || (piece == 1 && !shorter) {
            break;
        }
        piece = (piece / 2).max(1);
    }
    // One command at a time is easier to follow, if that shows it as well; so is one connection.
    let steps = best.round.steps.iter().cloned().enumerate();
    let steps = steps.map(|(batch, step)| Step { batch, ..step }).collect();
    best.attempt(pair, steps);
    let steps = best.round.steps.iter().cloned().map(|step| Step { connection: 0, ..step }).collect();
    best.attempt(pair, steps);
    (best.round, best.finding)
}

struct Best<'a> {
    round: Round,
    finding: Finding,
    seen: &'a BTreeSet<String>,
}

impl Best<'_> {
    /// Whether the round shows a difference with `steps` instead; then it is the best so far.
    fn attempt(&mut self, pair: Pair, steps: Vec<Step>) -> bool {
        let shorter = Round { steps, ..self.round.clone() };
        let Err(finding) = play(pair, &shorter, &mut Tally::default()) else { return false };
        let signature = finding.signature();
        if signature != self.finding.signature() && self.seen.contains(&signature) {
            return false;
        }
        (self.round, self.finding) = (shorter, *finding);
        true
    }
}
