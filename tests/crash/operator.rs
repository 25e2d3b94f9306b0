//! Whoever runs the server, while clients write: moves and splits tablets, makes checkpoints, removes everything.

use std::fs;
use std::path::{Path, PathBuf};

use atlaskv::client::{Client, Error};
use atlaskv::error::Code;

use crate::harness::{command, start_or_refusal};
use crate::workload::{Flushes, Tally, find_all};

/// Splits end here: more tablets would only make starts longer.
const TABLETS_MAX: usize = 40;

/// What it has done in all rounds.
#[derive(Default)]
pub struct Deeds {
    pub moves: u64,
    pub splits: u64,
    pub checkpoints: u64,
    pub flushes: u64,
    /// Deeds that a kill met.
    pub lost: u64,
}

/// A checkpoint, and whether it was answered.
struct Checkpoint {
    dir: PathBuf,
    is_answered: bool,
}

pub struct Operator {
    rng: fastrand::Rng,
    /// Where its checkpoints go.
    dir: PathBuf,
    made: u64,
    last: Option<Checkpoint>,
    pub deeds: Deeds,
}

impl Operator {
    pub fn new(dir: &Path, seed: u64) -> Operator {
        let rng = fastrand::Rng::with_seed(seed);
        Operator { rng, dir: dir.to_path_buf(), made: 0, last: None, deeds: Deeds::default() }
    }

    /// Whether kills have met what they are to meet.
    pub fn has_done_enough(&self) -> bool {
        self.deeds.moves > 0 && self.deeds.checkpoints > 0 && self.deeds.flushes > 0
    }

    /// Works until the server is gone. `Err` is an answer that was wrong.
    pub fn run(&mut self, client: &mut Client, flushes: &Flushes) -> Result<Tally, String> {
        let mut tally = Tally::default();
        let mut is_up = true;
        while is_up {
            is_up = match self.rng.u8(..64) {
                0..3 => self.flush(client, flushes, &mut tally)?,
                3..10 => self.checkpoint(client, &mut tally)?,
                10..13 => {
                    let cores = self.rng.u16(1..=client.topology().shard_count);
                    self.tell(client, &format!("cores {cores}"), &mut tally)?
                }
                _ => self.change(client, &mut tally)?,
            };
        }
        // The last one met the kill, whatever is known of it.
        self.deeds.lost += 1;
        Ok(tally)
    }

    /// Moves a tablet, or splits it.
    fn change(&mut self, client: &mut Client, tally: &mut Tally) -> Result<bool, String> {
        let stats = client.stats("tablets");
        let is_up = tally.count(&stats);
        let Ok(stats) = stats else { return Ok(is_up) };
        let tablets = stats.lines().filter(|line| line.contains(".shard=")).count();
        let tablet = self.rng.usize(..tablets);
        if tablets < TABLETS_MAX && self.rng.u8(..8) == 0 {
            return self.tell(client, &format!("split {tablet}"), tally);
        }
        let shard = self.rng.u16(..client.topology().shard_count);
        self.tell(client, &format!("move {tablet} {shard}"), tally)
    }

    fn tell(&mut self, client: &mut Client, command: &str, tally: &mut Tally) -> Result<bool, String> {
        let answer = client.tablets(command);
        let is_up = tally.count(&answer);
        match &answer {
            Ok(_) if command.starts_with("split") => self.deeds.splits += 1,
            Ok(_) => self.deeds.moves += 1,
            // One whose slots are all of one kind of key may be too small.
            Err(Error::Refused(refusal)) if refusal.code == Code::TransferFailed => {}
            Err(Error::Refused(refusal)) => return Err(format!("{command}: refused: {refusal}")),
            Err(_) => {}
        }
        Ok(is_up)
    }

    fn checkpoint(&mut self, client: &mut Client, tally: &mut Tally) -> Result<bool, String> {
        self.made += 1;
        let dir = self.dir.join(format!("checkpoint-{}", self.made));
        let answer = client.checkpoint(dir.to_str().expect("plain text"));
        let is_up = tally.count(&answer);
        if let Err(Error::Refused(refusal)) = &answer {
            return Err(format!("a checkpoint: refused: {refusal}"));
        }
        self.forget();
        self.deeds.checkpoints += u64::from(answer.is_ok());
        self.last = Some(Checkpoint { dir, is_answered: answer.is_ok() });
        Ok(is_up)
    }

    fn flush(&mut self, client: &mut Client, flushes: &Flushes, tally: &mut Tally) -> Result<bool, String> {
        let mut flushes = flushes.write().expect("who writes it does not panic");
        let answer = client.flush_all();
        let is_up = tally.count(&answer);
        match &answer {
            Ok(()) => {
                self.deeds.flushes += 1;
                flushes.push(true);
            }
            Err(Error::Refused(refusal)) => return Err(format!("a flush: refused: {refusal}")),
            Err(_) => flushes.push(false),
        }
        Ok(is_up)
    }

    /// Starts a server on the last checkpoint: one that was answered is whole, any other is whole or refused, and
    /// one of which not even the mark was made is an empty directory.
    pub fn check(&mut self, arguments: &[&str]) -> Result<(), String> {
        let Some(Checkpoint { dir, is_answered }) = self.last.take() else { return Ok(()) };
        if dir.exists() {
            match start_or_refusal(command(&dir, arguments)) {
                Ok(server) => {
                    let mut client = crate::connect(server.address).map_err(|error| error.to_string())?;
                    find_all(&mut client)?;
                }
                Err(line) if !is_answered && line.contains("INCOMPLETE") => {}
                Err(line) => return Err(format!("a checkpoint (answered: {is_answered}): {line}")),
            }
        } else if is_answered {
            return Err(format!("the checkpoint {dir:?} is gone"));
        }
        self.last = Some(Checkpoint { dir, is_answered });
        self.forget();
        Ok(())
    }

    /// Frees the space of a checkpoint that is not needed any more.
    fn forget(&mut self) {
        if let Some(last) = self.last.take() {
            // One that was never begun is not there.
            let _ = fs::remove_dir_all(last.dir);
        }
    }
}
