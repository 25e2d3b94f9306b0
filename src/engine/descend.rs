//! Descents: how tables come down to the last level, a range of keys at a time.
//!
//! A descent takes the oldest tables above the last level, as many as there are when it begins. Each step merges
//! what they hold of one or two tables of the last level into new ones, and one edit of the manifest puts those
//! in the place of the old ones and says that the upper tables count only from there on. So a step needs the
//! space of its output and no more, takes a second or so, and a crash between two leaves a tablet that is whole;
//! flushes, and merges of what they write, go on in front meanwhile.
//!
//! A table that shares keys with none of the last level does not take part: it moves, by an edit alone. Only the
//! oldest may: everything above the last level stays newer than what it may share keys with, whatever is merged
//! with what later.

use std::rc::Rc;

use super::compaction::Merge;
use super::compaction::Merged;
use super::manifest::{Change, LAST};
use super::run::RunIter;
use super::version::{Member, Totals, Version};
use super::{Engine, EngineError, Tablet};
use crate::env::Env;
use crate::metrics::Metrics;

/// A table smaller than this part of what the last level's may have is merged, not moved: those would become too
/// many otherwise.
const MOVE_PART: u64 = 8;

/// What one step merges.
struct Step<E: Env> {
    /// Tables of the last level that are written anew.
    last: Vec<Rc<Member<E>>>,
    /// Only keys below this; empty: all.
    until: Box<[u8]>,
    /// Size of its output, about, if no key is there twice.
    bytes: u64,
}

impl<E: Env> Engine<E> {
    /// Whether the oldest table above the last level may join it as it is.
    pub(super) fn can_move(&self, version: &Version<E>) -> bool {
        let Some(oldest) = version.upper().last().filter(|member| member.clip.is_none()) else {
            return false;
        };
        let (totals, bytes_max) = (oldest.totals(), self.options.last_table_bytes);
        (bytes_max / MOVE_PART..=2 * bytes_max).contains(&totals.bytes)
            && totals.tombstones * 4 < totals.entries
            && version.reached_by(&oldest.bounds()).is_empty()
    }

    /// Moves the oldest table down to the last level.
    pub(super) async fn move_down(&self, tablet: &Tablet<E>) -> Result<(), EngineError> {
        let version = tablet.version();
        let oldest = version.upper().last().expect("it was looked at").clone();
        let file = oldest.table.file();
        let change = Change::Descend {
            tablet: tablet.id,
            removed: vec![file],
            advanced: Vec::new(),
            from: Box::default(),
            added: vec![oldest.whole_ref().placed(LAST, None)],
        };
        self.commit_merge(tablet, change, &[]).await?;
        self.install(tablet, |version| {
            version.descended(&[file], &[], tablet.slots.get(), b"", vec![oldest])
        });
        Metrics::add(&self.metrics.table_moves, 1);
        self.changed.notify();
        Ok(())
    }

    /// Takes the tables above the last level from the `first`-th on one step down.
    pub(super) async fn descend(&self, tablet: &Tablet<E>, first: usize) -> Result<(), EngineError> {
        let version = tablet.version();
        let upper = version.upper()[first..].to_vec();
        let mut runs = Vec::with_capacity(upper.len() + 1);
        for member in &upper {
            runs.push(RunIter::seek(vec![member.clone()], b"", b"").await?);
        }
        let least = runs.iter().filter_map(|run| run.current()).map(|(key, _)| key).min();
        let Some(least) = least.map(<[u8]>::to_vec) else {
            // What was left of them is of other slots.
            return self.install_step(tablet, &upper, &[], b"", Vec::new()).await;
        };
        let step = self.plan(&version, &upper, &least);
        for run in &mut runs {
            run.end_before(&step.until);
        }
        let mut inputs = Totals::of(&step.last);
        inputs.tables += upper.len() as u64;
        inputs.bytes = step.bytes;
        runs.push(RunIter::seek(step.last.clone(), b"", b"").await?);
        let what = self.what(tablet, &step);
        let Some((end, outputs)) = self.merge(tablet, runs, &what, inputs).await? else { return Ok(()) };
        let from = match end {
            Merged::Below(key) => key,
            _ => step.until,
        };
        self.install_step(tablet, &upper, &step.last, &from, outputs).await
    }

    /// Writes a table of the last level anew, without what has expired or is of other slots.
    pub(super) async fn rewrite(&self, tablet: &Tablet<E>, at: usize) -> Result<(), EngineError> {
        let member = tablet.version().last()[at].clone();
        let step = Step { bytes: member.totals().bytes, last: vec![member], until: Box::default() };
        let run = RunIter::seek(step.last.clone(), b"", b"").await?;
        let what = Merge { early: None, ..self.what(tablet, &step) };
        let merged = self.merge(tablet, vec![run], &what, Totals::of(&step.last)).await?;
        let Some((_, outputs)) = merged else { return Ok(()) };
        self.install_step(tablet, &[], &step.last, b"", outputs).await
    }

    /// Which tables of the last level the next step takes: from the one on that holds the `least` key of those
    /// that come down, until they and what comes to them fill a table.
    fn plan(&self, version: &Version<E>, upper: &[Rc<Member<E>>], least: &[u8]) -> Step<E> {
        let bytes_max = self.options.last_table_bytes;
        let before = |key: &[u8]| upper.iter().map(|member| member.table.bytes_before(key)).sum::<u64>();
        let coming = |from: u64, until: Option<&Rc<Member<E>>>| {
            let whole = || upper.iter().map(|member| member.meta().bytes).sum();
            until.map_or_else(whole, |until| before(until.smallest())).saturating_sub(from)
        };
        let last = version.last();
        let first = last.partition_point(|member| member.bounds().ends_before(least));
        let (mut end, mut from, mut bytes) = (first, before(least), 0);
        if last.get(first).is_none_or(|member| member.smallest() > least) {
            // What comes in front of the first one, which may be enough.
            bytes = coming(from, last.get(first));
            from += bytes;
        }
        let is_reached =
            |next: &Rc<Member<E>>| upper.iter().any(|m| !m.bounds().ends_before(next.smallest()));
        while let Some(member) = last.get(end).filter(|next| is_reached(next)) {
            if bytes >= (bytes_max / 2).max(1) {
                break;
            }
            let coming = coming(from, last.get(end + 1));
            bytes += member.totals().bytes + coming;
            from += coming;
            end += 1;
        }
        let until = last.get(end).map_or(Box::default(), |next| next.smallest().into());
        Step { last: last[first..end].to_vec(), until, bytes }
    }

    /// What a step writes: tables of even size, none larger than they may be.
    fn what(&self, tablet: &Tablet<E>, step: &Step<E>) -> Merge {
        let bytes_max = self.options.last_table_bytes;
        let tables = step.bytes.div_ceil(bytes_max).max(1);
        let table_bytes = (step.bytes / tables * 17 / 16).min(bytes_max);
        let behind = step.last.last().map_or(Box::default(), |member| member.meta().largest.clone());
        Merge {
            tablet: tablet.id,
            slots: tablet.slots.get(),
            options: self.options.last_tables(),
            drops_tombstones: true,
            table_bytes,
            // Between two tables of the last level there may be more than one step should take.
            early: Some((behind, 2 * bytes_max)),
        }
    }

    /// Makes a step live: `outputs` take the place of `last`, and of `upper` only keys from `from` on count;
    /// none, if that is empty.
    async fn install_step(
        &self,
        tablet: &Tablet<E>,
        upper: &[Rc<Member<E>>],
        last: &[Rc<Member<E>>],
        from: &[u8],
        outputs: Vec<Rc<Member<E>>>,
    ) -> Result<(), EngineError> {
        let stays = |member: &&Rc<Member<E>>| !from.is_empty() && !member.bounds().ends_before(from);
        let advanced: Vec<_> = upper.iter().filter(stays).map(|member| member.table.file()).collect();
        let gone = upper.iter().filter(|member| !stays(member)).chain(last);
        let gone: Vec<_> = gone.map(|member| member.table.clone()).collect();
        let removed: Vec<_> = gone.iter().map(|table| table.file()).collect();
        let change = Change::Descend {
            tablet: tablet.id,
            removed: removed.clone(),
            advanced: advanced.clone(),
            from: from.into(),
            added: outputs.iter().map(|output| output.whole_ref().placed(LAST, None)).collect(),
        };
        self.commit_merge(tablet, change, &outputs).await?;
        self.install(tablet, |version| {
            version.descended(&removed, &advanced, tablet.slots.get(), from, outputs)
        });
        self.give_up(gone);
        Ok(())
    }
}
