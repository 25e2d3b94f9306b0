//! Saves: checkpoints that the server keeps by itself, in directories `save-NUMBER` below one directory. Made by the
//! shard that coordinates checkpoints, one at a time.
//!
//! Invariants:
//! - The newest one that is complete stays until another one is.
//! - Nothing is removed but what a save has made: a directory with anything else in it, such as the log of a server
//!   that was started there, stays as it is.
//! - Beside the newest one and the one that is being made there is none but for what a crash has left, which goes
//!   when the next one begins.

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::Arc;

use super::outputs::{Meta, Outputs};
use super::{Origin, Shard};
use crate::disk::Disk;
use crate::engine::checkpoint;
use crate::env::{Env, Gate, Queue};
use crate::error::{Code, Refusal};
use crate::metrics::Metrics;
use crate::protocol::{BGSAVE, Reply};
use crate::redis::session::SaveStatus;

/// What the directories' names begin with.
const PREFIX: &str = "save-";

/// Where saves are kept, and what is told of them.
#[derive(Default)]
pub(super) struct Saves {
    place: OnceCell<(String, Arc<SaveStatus>)>,
    /// Entered by the one that is being made.
    running: Gate,
}

/// The number of a save's directory.
fn number_of(name: &str) -> Option<u64> {
    let number = name.strip_prefix(PREFIX)?.parse().ok()?;
    (name_of(number) == name).then_some(number)
}

fn name_of(number: u64) -> String {
    format!("{PREFIX}{number}")
}

impl<E: Env> Shard<E> {
    /// Has saves kept below `dir`, an absolute path, and their `status` told.
    ///
    /// # Panics
    /// If that was said before.
    pub fn keep_saves(&self, dir: String, status: Arc<SaveStatus>) {
        assert!(self.saves.place.set((dir, status)).is_ok(), "there is one place for saves");
    }

    /// Answers CHECKPOINT with [`SAVE`](crate::protocol::SAVE) or [`BGSAVE`] for a path.
    pub(super) fn save(self: &Rc<Self>, origin: Origin, meta: Meta, kind: &str, out: &mut Outputs) {
        let place = match self.saves.place.get() {
            None => Err("this server keeps no saves: the path of their directory is no text"),
            Some(_) if self.saves.running.count() > 0 => Err("Background save already in progress"),
            Some((dir, status)) => Ok((dir.clone(), status.clone())),
        };
        let (dir, status) = match place {
            Ok(place) => place,
            Err(why) => {
                Metrics::add(&self.metrics.refusals, 1);
                return out.ready(meta, &Reply::Refused(Refusal::new(Code::CheckpointFailed, why)));
            }
        };
        status.begins();
        let is_background = kind == BGSAVE;
        if is_background {
            out.ready(meta, &Reply::Stats(""));
        }
        let (shard, guards) = (self.clone(), (self.pending.enter(), self.saves.running.enter()));
        self.env.spawn(Queue::Foreground, async move {
            let made = shard.make_save(&dir).await;
            status.ended(made.is_ok().then(|| shard.env.wall_ms()));
            if let Err(refusal) = &made {
                tracing::warn!(dir, "a save failed: {refusal}");
            }
            if !is_background {
                let (mut out, meta) = (Outputs::default(), Meta { epoch: shard.slots.epoch(), ..meta });
                match made {
                    Ok(text) => out.ready(meta, &Reply::Stats(&text)),
                    Err(refusal) => {
                        Metrics::add(&shard.metrics.refusals, 1);
                        out.ready(meta, &Reply::Refused(refusal));
                    }
                }
                shard.settle(origin, out);
                shard.end_turn();
            }
            drop(guards);
        });
    }

    /// Waits until none is being made. A stop does, since shards that end would leave it half done, and writes held back
    /// for it.
    pub async fn saves_ended(&self) {
        self.saves.running.empty().await;
    }

    /// Makes a save below `dir`, and removes those before it. As [`Shard::take_checkpoint`], of which the path is told
    /// as well.
    pub async fn make_save(self: &Rc<Self>, dir: &str) -> Result<String, Refusal> {
        let failed =
            |error: crate::engine::EngineError| Refusal::new(Code::CheckpointFailed, error.to_string());
        let before = self.begin_save(dir).await.map_err(failed)?;
        let last = before.iter().max().copied().unwrap_or(0);
        let number = self.env.wall_ms().max(last.saturating_add(1));
        let path = format!("{dir}/{}", name_of(number));
        match self.take_checkpoint(&path).await {
            Ok(text) => {
                self.remove_saves(dir, before).await;
                Ok(format!("{text}dir={path}\n"))
            }
            Err(refusal) => {
                self.remove_saves(dir, vec![number]).await;
                Err(refusal)
            }
        }
    }

    /// Makes the directory of saves if need be, and removes what was not completed. The numbers of those that are
    /// there.
    async fn begin_save(&self, dir: &str) -> Result<Vec<u64>, crate::engine::EngineError> {
        let disk = self.env.disk();
        disk.create_dir(dir).await?;
        // Saves' own names are synced with them.
        if let Some((parent, _)) = dir.rsplit_once('/') {
            disk.sync_dir(if parent.is_empty() { "/" } else { parent }).await?;
        }
        let entries = disk.list(dir).await?;
        let all = entries.iter().filter(|entry| entry.is_dir).filter_map(|entry| number_of(&entry.name));
        let (mut complete, mut unfinished) = (Vec::new(), Vec::new());
        for number in all {
            match checkpoint::is_complete(&self.env, &format!("{dir}/{}", name_of(number))).await? {
                true => complete.push(number),
                false => unfinished.push(number),
            }
        }
        self.remove_saves(dir, unfinished).await;
        Ok(complete)
    }

    /// Removes saves as far as they can be: what stays is told in the log and tried again after the next save.
    async fn remove_saves(&self, dir: &str, numbers: Vec<u64>) {
        for number in numbers {
            let path = format!("{dir}/{}", name_of(number));
            match checkpoint::remove(&self.env, &path).await {
                Ok(()) => tracing::info!("removed {path}"),
                Err(error) => tracing::warn!("{path} stays: {error}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_saves_are_numbers_and_nothing_else() {
        assert_eq!(number_of(&name_of(1_700_000_000_000)), Some(1_700_000_000_000));
        for name in
            ["save-", "save-x", "save-01", "save-+1", "save-1 ", "save--1", "saved-1", "1", "save-1.old"]
        {
            assert_eq!(number_of(name), None, "{name}");
        }
    }
}
