//! Checkpoints of all shards at one barrier. Coordinated by the shard that coordinates moves, which none of them
//! makes meanwhile.
//!
//! First every shard holds its writes back and says so; then each seals its memtable and lets them go on. So
//! whatever was answered before the request came is in the checkpoint; and of two writes of which the second was
//! sent after the first was answered, the first is in there if the second is, whichever shards they are of. What
//! writers see is a pause of two messages to each shard.

use std::rc::Rc;

use super::moves::{Answer, Ask, Trouble};
use super::outputs::{Meta, Outputs};
use super::{Origin, Shard};
use crate::engine::EngineError;
use crate::engine::checkpoint::{self, Linked};
use crate::engine::manifest::State;
use crate::env::{Env, Queue};
use crate::error::{Code, Refusal};
use crate::metrics::Metrics;
use crate::protocol::Reply;

impl<E: Env> Shard<E> {
    /// Answers CHECKPOINT, when it is done.
    pub(super) fn checkpoint(self: &Rc<Self>, origin: Origin, meta: Meta, dir: &str) {
        let (shard, guard, dir) = (self.clone(), self.pending.enter(), dir.to_owned());
        self.env.spawn(Queue::Foreground, async move {
            let taken = shard.take_checkpoint(&dir).await;
            let mut out = Outputs::default();
            let meta = Meta { epoch: shard.slots.epoch(), ..meta };
            match taken {
                Ok(text) => out.ready(meta, &Reply::Stats(&text)),
                Err(refusal) => {
                    tracing::warn!(dir, "a checkpoint failed: {refusal}");
                    Metrics::add(&shard.metrics.refusals, 1);
                    out.ready(meta, &Reply::Refused(refusal));
                }
            }
            shard.settle(origin, out);
            shard.end_turn();
            drop(guard);
        });
    }

    /// Makes a checkpoint of the whole store in `dir`, an absolute path of the server's machine.
    pub async fn take_checkpoint(self: &Rc<Self>, dir: &str) -> Result<String, Refusal> {
        let is_plain = !dir.split('/').skip(1).any(|name| name.is_empty() || name == "." || name == "..");
        // The simulated disk knows no absolute paths; the protocol lets none but those through.
        if !is_plain {
            let message = format!("{dir:?} is no plain path: it has empty names, . or ..");
            return Err(Refusal::new(Code::InvalidOption, message));
        }
        let _turn = self.moves.changing.lock().await;
        let failed = |error: EngineError| Refusal::new(Code::CheckpointFailed, error.to_string());
        checkpoint::prepare(&self.env, dir).await.map_err(failed)?;
        let started = self.env.now();
        self.ask_all(|| Ask::HoldWrites).await;
        self.ask_all(|| Ask::SealCheckpoint).await;
        let pause = self.env.now() - started;
        if self.moves.is_over.get() {
            return Err(Refusal::new(Code::ShuttingDown, "this server is stopping"));
        }
        let (states, linked) = match self.gather_checkpoint(dir).await {
            Ok(gathered) => gathered,
            Err(trouble) => {
                self.ask_all(|| Ask::ForgetCheckpoint).await;
                return Err(Refusal::new(Code::CheckpointFailed, trouble.to_string()));
            }
        };
        checkpoint::complete(&self.env, dir, states).await.map_err(failed)?;
        let micros = pause.as_micros() as u64;
        Metrics::add(&self.metrics.checkpoints, 1);
        Metrics::add(&self.metrics.checkpoint_pause_micros, micros);
        let Linked { tables, bytes } = linked;
        tracing::info!(dir, tables, bytes, pause_micros = micros, "made a checkpoint");
        Ok(format!("tables={tables}\nbytes={bytes}\npause_micros={micros}\n"))
    }

    async fn gather_checkpoint(self: &Rc<Self>, dir: &str) -> Result<(Vec<State>, Linked), Trouble> {
        let (mut states, mut all) = (Vec::new(), Linked::default());
        for shard in 0..self.slots.shards {
            if let Answer::Checkpoint(state, linked) =
                self.ask(shard, Ask::Checkpoint(dir.to_owned())).await?
            {
                states.push(*state);
                all.tables += linked.tables;
                all.bytes += linked.bytes;
            }
        }
        Ok((states, all))
    }

    /// From now on writes wait.
    pub(super) fn hold_writes(&self) {
        self.writes_held.set(true);
    }

    /// What was written belongs to the checkpoint, what comes does not.
    pub(super) fn seal_checkpoint(&self) {
        self.engine.seal_checkpoint();
        self.writes_held.set(false);
        // Those that wait look again.
        self.engine.changed().notify();
    }

    /// Links this shard's part into `dir` once it is in tables.
    pub(super) async fn link_checkpoint(&self, dir: &str) -> Result<Answer, Trouble> {
        let failed = |error: EngineError| Trouble::Failed(error.to_string());
        let captured = self.engine.captured().await.map_err(failed)?;
        let linked = self.engine.link_checkpoint(&captured, dir).await.map_err(failed)?;
        Ok(Answer::Checkpoint(Box::new(captured.state), linked))
    }
}
