//! A walk over tables that share no keys, as if they were one: what their clips leave, between two keys.

use std::rc::Rc;

use super::merge::Source;
use super::sstable::{TableError, TableIter};
use super::version::Member;
use crate::base::{Bug, Entry, planted};
use crate::env::Env;
use crate::slot::{Slot, SlotRange};

/// Entries of tables of which each ends before the next begins; of a single one as well. Everyone who walks a
/// table does it this way: only here clips are applied to entries.
pub struct RunIter<E: Env> {
    /// Those not begun, ascending.
    rest: std::vec::IntoIter<Rc<Member<E>>>,
    current: Option<(Rc<Member<E>>, TableIter<E>)>,
    /// Slots that count in the current one, if it holds keys of others.
    slots: Option<SlotRange>,
    from: Box<[u8]>,
    /// Not included; empty: none.
    until: Box<[u8]>,
}

impl<E: Env> RunIter<E> {
    /// Stands on the first entry that counts, not below `from`. It ends before `until`, unless that is empty.
    pub async fn seek(
        members: Vec<Rc<Member<E>>>,
        from: &[u8],
        until: &[u8],
    ) -> Result<RunIter<E>, TableError> {
        let is_run = members.windows(2).all(|pair| pair[0].bounds().ends_before(pair[1].smallest()));
        assert!(is_run, "tables of a run ascend and share no keys");
        let mut iter = RunIter {
            rest: members.into_iter(),
            current: None,
            slots: None,
            from: from.into(),
            until: until.into(),
        };
        iter.settle().await?;
        Ok(iter)
    }

    /// From now on it ends before `until`, unless that is empty.
    pub fn end_before(&mut self, until: &[u8]) {
        self.until = until.into();
        if self.is_past() {
            self.end();
        } else if let Some((_, iter)) = &mut self.current {
            iter.end_before(until);
        }
    }

    fn is_past(&self) -> bool {
        !self.until.is_empty() && self.current().is_some_and(|(key, _)| key >= &self.until[..])
    }

    fn end(&mut self) {
        self.rest = Vec::new().into_iter();
        self.current = None;
    }

    /// The entry it stands on; `None` at the end.
    pub fn current(&self) -> Option<(&[u8], Entry<'_>)> {
        self.current.as_ref()?.1.current()
    }

    /// Moves to the next entry that counts. Suspends when a block must be read.
    pub async fn advance(&mut self) -> Result<(), TableError> {
        let Some((_, iter)) = &mut self.current else { return Ok(()) };
        iter.advance().await?;
        self.settle().await
    }

    /// Goes on to where an entry counts. Of foreign ones in a row it passes a block's worth without suspending.
    async fn settle(&mut self) -> Result<(), TableError> {
        loop {
            if self.is_past() {
                self.end();
                return Ok(());
            }
            let Some((member, iter)) = &mut self.current else {
                let Some(member) = self.rest.next() else { return Ok(()) };
                let from = member.smallest().max(&self.from);
                let mut iter = TableIter::seek(&member.table, from).await?;
                iter.end_before(&self.until);
                self.slots = member.foreign_to();
                self.current = Some((member, iter));
                continue;
            };
            match iter.current() {
                Some((key, _)) if member.bounds().covers(key) => {
                    let is_own = self.slots.is_none_or(|slots| slots.contains(Slot::of_key(key)));
                    if is_own || planted(Bug::ClipIgnored) {
                        return Ok(());
                    }
                    iter.advance().await?;
                }
                _ => self.current = None,
            }
        }
    }
}

impl<E: Env> Source for RunIter<E> {
    fn current(&self) -> Option<(&[u8], Entry<'_>)> {
        RunIter::current(self)
    }

    async fn advance(&mut self) -> Result<(), TableError> {
        RunIter::advance(self).await
    }
}
