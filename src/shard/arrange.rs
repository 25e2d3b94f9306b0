//! What people ask of the topology, in words, and what the balancer does by itself.

use std::fmt::Write;
use std::rc::Rc;
use std::time::Duration;

use super::balance::{self, Balancer, Change};
use super::moves::Trouble;
use super::outputs::{Meta, Outputs};
use super::{Origin, Shard};
use crate::base::TabletId;
use crate::engine::TabletReport;
use crate::env::{Env, Queue};
use crate::error::{Code, Refusal};
use crate::metrics::Metrics;
use crate::protocol::Reply;

/// A command of TABLETS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Command {
    Move(TabletId, usize),
    Split(TabletId, Option<u16>),
    Rebalance,
    Cores(usize),
}

impl Command {
    fn parse(text: &str) -> Option<Command> {
        let words: Vec<&str> = text.split(' ').collect();
        Some(match words[..] {
            ["move", tablet, shard] => Command::Move(TabletId(tablet.parse().ok()?), shard.parse().ok()?),
            ["split", tablet] => Command::Split(TabletId(tablet.parse().ok()?), None),
            ["split", tablet, slot] => {
                Command::Split(TabletId(tablet.parse().ok()?), Some(slot.parse().ok()?))
            }
            ["rebalance"] => Command::Rebalance,
            ["cores", count] => Command::Cores(count.parse().ok()?),
            _ => return None,
        })
    }
}

impl From<Trouble> for Refusal {
    fn from(trouble: Trouble) -> Refusal {
        let code = match &trouble {
            Trouble::Failed(_) => Code::TransferFailed,
            Trouble::Undecided(_) => Code::WriteFailed,
        };
        Refusal::new(code, trouble.to_string())
    }
}

/// How many shards are in use: up to the last that has a tablet.
fn shards_in_use(tablets: &[TabletReport]) -> usize {
    tablets.iter().map(|tablet| tablet.shard + 1).max().unwrap_or(1)
}

impl<E: Env> Shard<E> {
    /// Answers TABLETS, when it is done.
    pub(super) fn arrange(self: &Rc<Self>, origin: Origin, meta: Meta, command: &str) {
        let parsed = Command::parse(command).ok_or_else(|| {
            let message = format!(
                "TABLETS does not know {command:?}; it has: move TABLET SHARD, split TABLET [SLOT], rebalance, cores N"
            );
            Refusal::new(Code::InvalidOption, message)
        });
        let (shard, guard) = (self.clone(), self.pending.enter());
        self.env.spawn(Queue::Foreground, async move {
            let done = match parsed {
                Ok(command) => shard.obey(command).await,
                Err(refusal) => Err(refusal),
            };
            let mut out = Outputs::default();
            let meta = Meta { epoch: shard.slots.epoch(), ..meta };
            match done {
                Ok(text) => out.ready(meta, &Reply::Stats(&text)),
                Err(refusal) => {
                    Metrics::add(&shard.metrics.refusals, 1);
                    out.ready(meta, &Reply::Refused(refusal));
                }
            }
            shard.settle(origin, out);
            shard.end_turn();
            drop(guard);
        });
    }

    async fn obey(self: &Rc<Self>, command: Command) -> Result<String, Refusal> {
        match command {
            Command::Move(tablet, to) => {
                let changed = self.move_tablet(tablet, to).await?;
                Ok(format!("pause_micros={}\n", changed.pause.as_micros()))
            }
            Command::Split(tablet, at) => {
                let changed = self.split_tablet(tablet, at).await?;
                Ok(format!("tablet={}\npause_micros={}\n", changed.tablet, changed.pause.as_micros()))
            }
            Command::Rebalance => {
                let tablets = self.survey().await?;
                self.spread(&tablets, shards_in_use(&tablets)).await
            }
            Command::Cores(count) if (1..=self.slots.shards).contains(&count) => {
                let tablets = self.survey().await?;
                self.spread(&tablets, count).await
            }
            Command::Cores(count) => {
                let message = format!(
                    "this server runs {} shards, so tablets can be on 1 to {}, not {count}; more take a restart with another --cores",
                    self.slots.shards, self.slots.shards
                );
                Err(Refusal::new(Code::NoSuchShard, message))
            }
        }
    }

    /// Moves tablets to the first `shards` shards until these are equally loaded.
    async fn spread(self: &Rc<Self>, tablets: &[TabletReport], shards: usize) -> Result<String, Refusal> {
        let (mut moves, mut pause) = (0, Duration::ZERO);
        for change in balance::plan(tablets, shards) {
            if self.moves.is_ending.get() {
                return Err(Refusal::new(Code::ShuttingDown, format!("stopping after {moves} moves")));
            }
            if let Change::Move(tablet, to) = change {
                pause = pause.max(self.move_tablet(tablet, to).await?.pause);
                moves += 1;
            }
        }
        Ok(format!("moves={moves}\npause_micros={}\n", pause.as_micros()))
    }

    /// Moves and splits tablets by load until the shard closes. Run by the shard that coordinates.
    pub async fn balance_loop(self: Rc<Self>) {
        let mut balancer = Balancer::default();
        loop {
            let over = self.moves.came.until(|| self.moves.is_over.get() || self.moves.is_ending.get());
            futures_lite::future::or(self.env.sleep(balance::PERIOD), over).await;
            if self.moves.is_over.get() || self.moves.is_ending.get() {
                return;
            }
            let Ok(tablets) = self.survey().await else { continue };
            let shards = shards_in_use(&tablets);
            let change = balancer.step(&tablets, shards, self.env.now());
            // What comes of it is in the log and in the counters.
            let _ = match change {
                Some(Change::Move(tablet, to)) => self.move_tablet(tablet, to).await.map(drop),
                Some(Change::Split(tablet)) => self.split_tablet(tablet, None).await.map(drop),
                None => Ok(()),
            };
        }
    }

    /// The server is stopping: changes under way end, and no more begin.
    pub fn stop_changes(&self) {
        self.moves.is_ending.set(true);
        self.moves.came.notify();
    }

    /// The tablets of this shard as lines of text.
    pub(super) fn tablets_text(&self) -> String {
        let mut text = String::new();
        for tablet in self.engine.report(self.id) {
            let TabletReport { id, shard, slots, uses, rate, tables, bytes, entries } = tablet;
            // Writing to a string does not fail.
            let _ = write!(text, "tablet{id}.shard={shard}\ntablet{id}.slots={slots}\n");
            let _ = write!(text, "tablet{id}.ops={uses}\ntablet{id}.ops_per_s={rate:.0}\n");
            let _ = write!(text, "tablet{id}.tables={tables}\ntablet{id}.bytes={bytes}\n");
            let _ = writeln!(text, "tablet{id}.entries={entries}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_those_that_are_told() {
        for (text, command) in [
            ("move 3 1", Some(Command::Move(TabletId(3), 1))),
            ("split 3", Some(Command::Split(TabletId(3), None))),
            ("split 3 4711", Some(Command::Split(TabletId(3), Some(4711)))),
            ("rebalance", Some(Command::Rebalance)),
            ("cores 2", Some(Command::Cores(2))),
        ] {
            assert_eq!(Command::parse(text), command);
        }
        for text in
            ["", "move", "move 3", "move 3 x", "move  3 1", "split", "split 3 70000", "cores -1", "rest"]
        {
            assert_eq!(Command::parse(text), None, "{text:?}");
        }
    }
}
