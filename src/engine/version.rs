//! A tablet's tables at one moment: immutable, replaced as a whole. Whoever reads keeps the version that it
//! took, and with it the files.
//!
//! Invariants:
//! - `upper` holds tables that may overlap, newest first: of one key, the entry in the first table that has it
//!   is the newest.
//! - `last` holds tables that do not overlap, ascending; everything in there is older than what `upper` has
//!   of the same key.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::manifest::{Clip, TableRef, TabletState};
use super::sstable::{Table, TableMeta};
use crate::base::FileId;
use crate::env::Env;

/// A table as a tablet refers to it.
pub struct Member<E: Env> {
    /// The open table, which other members may share.
    pub table: Rc<Table<E>>,
    /// Which part of it counts; `None`: all.
    pub clip: Option<Clip>,
}

/// The tables of a tablet.
pub struct Version<E: Env> {
    upper: Vec<Rc<Member<E>>>,
    last: Vec<Rc<Member<E>>>,
}

impl<E: Env> Member<E> {
    /// All of `table`.
    pub fn whole(table: Rc<Table<E>>) -> Rc<Member<E>> {
        Rc::new(Member { table, clip: None })
    }

    /// The table's facts, whatever the clip.
    pub fn meta(&self) -> &TableMeta {
        self.table.meta()
    }

    /// The smallest key that may count.
    pub fn smallest(&self) -> &[u8] {
        let smallest = &self.meta().smallest[..];
        self.clip.as_ref().map_or(smallest, |clip| smallest.max(&clip.smallest[..]))
    }

    /// Whether a key may be in the part that counts, by its place in the order of keys. The slot is the
    /// caller's affair: a tablet is asked for its own keys only.
    #[inline]
    pub fn covers(&self, key: &[u8]) -> bool {
        let meta = self.meta();
        let is_within = key >= &meta.smallest[..] && key <= &meta.largest[..];
        is_within && self.clip.as_ref().is_none_or(|clip| clip.covers(key))
    }
}

impl<E: Env> Default for Version<E> {
    fn default() -> Version<E> {
        Version { upper: Vec::new(), last: Vec::new() }
    }
}

impl<E: Env> Clone for Version<E> {
    fn clone(&self) -> Version<E> {
        Version { upper: self.upper.clone(), last: self.last.clone() }
    }
}

impl<E: Env> Version<E> {
    /// Of tables newest first, and of the last level's, ascending.
    pub fn new(upper: Vec<Rc<Member<E>>>, last: Vec<Rc<Member<E>>>) -> Version<E> {
        let is_ordered = last.windows(2).all(|pair| pair[0].meta().smallest < pair[1].meta().smallest);
        assert!(is_ordered, "the last level's tables ascend");
        Version { upper, last }
    }

    /// That of a tablet as the manifest knows it, whose tables are open.
    ///
    /// # Panics
    /// If one of its tables is not among `tables`.
    pub fn of(state: &TabletState, tables: &BTreeMap<FileId, Rc<Table<E>>>) -> Version<E> {
        let member = |table: &TableRef| {
            let open = tables.get(&table.file).expect("every table that the manifest names was opened");
            Rc::new(Member { table: open.clone(), clip: table.clip.clone() })
        };
        let (upper, last) = state.tables.split_at(state.upper());
        Version::new(upper.iter().map(member).collect(), last.iter().map(member).collect())
    }

    /// The tables that may overlap, newest first.
    pub fn upper(&self) -> &[Rc<Member<E>>] {
        &self.upper
    }

    /// The last level's, ascending.
    pub fn last(&self) -> &[Rc<Member<E>>] {
        &self.last
    }

    /// All of them, those above the last level newest first.
    pub fn members(&self) -> impl Iterator<Item = &Rc<Member<E>>> {
        self.upper.iter().chain(&self.last)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.upper.is_empty() && self.last.is_empty()
    }

    /// Those that may hold `key`, newest first: of the last level at most one.
    #[inline]
    pub fn candidates(&self, key: &[u8]) -> impl Iterator<Item = &Rc<Member<E>>> {
        let behind = self.last.partition_point(|member| member.smallest() <= key);
        let last = behind.checked_sub(1).map(|at| &self.last[at]);
        self.upper.iter().chain(last).filter(move |member| member.covers(key))
    }

    /// With each member replaced.
    #[must_use]
    pub fn map(&self, change: impl Fn(&Member<E>) -> Member<E>) -> Version<E> {
        let all = |members: &[Rc<Member<E>>]| members.iter().map(|member| Rc::new(change(member))).collect();
        Version::new(all(&self.upper), all(&self.last))
    }

    /// With a table more, newer than all others.
    #[must_use]
    pub fn with_newest(&self, member: Rc<Member<E>>) -> Version<E> {
        let mut changed = self.clone();
        changed.upper.insert(0, member);
        changed
    }
}
