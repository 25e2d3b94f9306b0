//! Tables as a source: one of those above the last level, or the last level as a whole, one table after the
//! other. What a table's clip leaves out is passed over here.

use std::rc::Rc;

use super::{Context, Standing};
use crate::base::{Entry, Lsn};
use crate::engine::manifest::Clip;
use crate::engine::sstable::{
    AheadBytes, Block, Bound, Partition, Table, TableCursor, TableError, Walked, Wanted,
};
use crate::engine::version::{Member, Version};
use crate::env::Env;
use crate::slot::Slot;

/// Which tables, in turn.
enum Members<E: Env> {
    One(Rc<Member<E>>),
    /// The last level from `at` on, in the order of the scan.
    Last {
        version: Rc<Version<E>>,
        at: usize,
    },
}

impl<E: Env> Members<E> {
    fn current(&self) -> &Rc<Member<E>> {
        match self {
            Members::One(member) => member,
            Members::Last { version, at } => &version.last()[*at],
        }
    }
}

/// Tables one after the other.
pub struct TableSource<E: Env> {
    members: Members<E>,
    lsn: Lsn,
    /// Where the first table is entered.
    bound: Bound,
    /// The walk in the table it is in; `None`: none is entered yet, or all were left.
    cursor: Option<TableCursor<E>>,
    is_begun: bool,
}

impl<E: Env> TableSource<E> {
    /// One table.
    pub fn one(member: Rc<Member<E>>, lsn: Lsn, bound: Bound) -> TableSource<E> {
        TableSource { members: Members::One(member), lsn, bound, cursor: None, is_begun: false }
    }

    /// The last level; `None` if nothing of it lies behind `bound`.
    pub fn last(
        version: &Rc<Version<E>>,
        lsn: Lsn,
        bound: &Bound,
        is_reverse: bool,
    ) -> Option<TableSource<E>> {
        let last = version.last();
        let at = match (bound, is_reverse) {
            (Bound::Key(key), false) => last.partition_point(|member| member.meta().largest[..] < key[..]),
            (Bound::None, false) => 0,
            (Bound::Key(key), true) => {
                last.partition_point(|member| member.meta().smallest[..] < key[..]).checked_sub(1)?
            }
            (Bound::None, true) => last.len().checked_sub(1)?,
        };
        let members = Members::Last { version: version.clone(), at };
        let source = TableSource { members, lsn, bound: bound.clone(), cursor: None, is_begun: false };
        (at < last.len()).then_some(source)
    }

    /// The entry it stands on.
    #[inline]
    pub fn current(&self) -> Option<(&[u8], Entry<'_>)> {
        self.cursor.as_ref().and_then(TableCursor::current)
    }

    /// The key it stands on.
    #[inline]
    pub fn key(&self) -> &[u8] {
        self.cursor.as_ref().and_then(TableCursor::key).unwrap_or_default()
    }

    #[inline]
    pub fn advance(&mut self, context: &Context<'_, E>) -> Result<Standing, TableError> {
        self.go_on(context, true)
    }

    pub fn settle(&mut self, context: &Context<'_, E>) -> Result<Standing, TableError> {
        self.go_on(context, false)
    }

    fn go_on(&mut self, context: &Context<'_, E>, mut is_leaving: bool) -> Result<Standing, TableError> {
        /// Entries of others that are passed over in one step.
        const FOREIGN_MAX: usize = 128;
        for _ in 0..FOREIGN_MAX {
            if !self.is_begun {
                if self.is_out_of(context) {
                    return Ok(Standing::End);
                }
                self.enter(context);
            }
            let Some(cursor) = &mut self.cursor else { return Ok(Standing::End) };
            let cache = &context.engine.cache;
            let walked = if is_leaving { cursor.advance(cache)? } else { cursor.settle(cache)? };
            let is_over = match (walked, cursor.key()) {
                (Walked::Missing, _) => return Ok(Standing::Missing),
                (Walked::Ready, Some(key)) if context.range.is_behind(key) => {
                    self.cursor = None;
                    return Ok(Standing::End);
                }
                (Walked::Ready, Some(key)) => match self.members.current().clip.as_ref() {
                    None => return Ok(Standing::Ready),
                    Some(clip) if is_behind(clip, key, context.range.is_reverse) => true,
                    Some(clip) if clip.slots.contains(Slot::of_key(key)) => return Ok(Standing::Ready),
                    Some(_) => false,
                },
                (Walked::End | Walked::Ready, _) => true,
            };
            is_leaving = !is_over;
            if is_over && !self.next_member(context.range.is_reverse) {
                self.cursor = None;
                return Ok(Standing::End);
            }
        }
        // It stands on an entry of another tablet, or before a table; the next step goes on from there.
        self.skip_foreign(is_leaving);
        Ok(Standing::Busy)
    }

    /// Has the next step leave the entry that this one ended on.
    fn skip_foreign(&mut self, is_leaving: bool) {
        if is_leaving && let Some(cursor) = &mut self.cursor {
            cursor.leave();
        }
    }

    /// Whether the range ends before the table that comes next: that may be one that can't be read.
    fn is_out_of(&self, context: &Context<'_, E>) -> bool {
        let member = self.members.current();
        let nearest = if context.range.is_reverse { &member.meta().largest[..] } else { member.smallest() };
        context.range.is_behind(nearest)
    }

    /// Begins the walk of a table.
    fn enter(&mut self, context: &Context<'_, E>) {
        let member = self.members.current().clone();
        let is_reverse = context.range.is_reverse;
        let mut bound = std::mem::replace(&mut self.bound, Bound::None);
        if let Some(clip) = &member.clip {
            let is_nearer = match (&bound, is_reverse) {
                (Bound::Key(key), false) => key[..] < clip.smallest[..],
                (Bound::Key(key), true) => !clip.end.is_empty() && key[..] > clip.end[..],
                (Bound::None, false) => true,
                (Bound::None, true) => !clip.end.is_empty(),
            };
            if is_nearer {
                bound = Bound::Key(if is_reverse { clip.end.to_vec() } else { clip.smallest.to_vec() });
            }
        }
        self.is_begun = true;
        self.cursor = Some(TableCursor::new(&member.table, bound, is_reverse, self.lsn));
    }

    /// Turns to the next table; `false` if there is none.
    fn next_member(&mut self, is_reverse: bool) -> bool {
        let Members::Last { version, at } = &mut self.members else { return false };
        let next = if is_reverse { at.checked_sub(1) } else { Some(*at + 1) };
        let Some(next) = next.filter(|next| *next < version.last().len()) else { return false };
        *at = next;
        self.is_begun = false;
        true
    }

    /// What is to be read for it to go on.
    pub fn wanted(&mut self, ahead_max: usize) -> Option<(Rc<Table<E>>, Wanted)> {
        let cursor = self.cursor.as_mut()?;
        let wanted = cursor.wanted(ahead_max)?;
        Some((cursor.table().clone(), wanted))
    }

    pub fn rest(&mut self) {
        if let Some(cursor) = &mut self.cursor {
            cursor.rest();
        }
    }

    pub fn supply_partition(&mut self, partition: Rc<Partition>) {
        if let Some(cursor) = &mut self.cursor {
            cursor.supply_partition(partition);
        }
    }

    pub fn supply_block(&mut self, block: Rc<Block>) {
        if let Some(cursor) = &mut self.cursor {
            cursor.supply_block(block);
        }
    }

    pub fn supply_ahead(&mut self, offset: u64, bytes: Vec<u8>, total: &AheadBytes) {
        if let Some(cursor) = &mut self.cursor {
            cursor.supply_ahead(offset, bytes, total);
        }
    }
}

/// Whether `key` lies behind the part that counts, on the way that the scan takes.
fn is_behind(clip: &Clip, key: &[u8], is_reverse: bool) -> bool {
    if is_reverse { key < &clip.smallest[..] } else { !clip.end.is_empty() && key >= &clip.end[..] }
}
