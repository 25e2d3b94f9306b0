//! Tables that merges go around: those of which the start or a merge met a part that can't be read.
//!
//! - Such a table stays what it is and where it is: whatever newer has not answered is asked of it, so that nothing
//!   older shows in the place of what it holds. It goes only when range deletes have left nothing of it.
//! - What is newer is merged among itself, and what is older is, too; so there are never more tables than those
//!   merges leave, in front of it and behind it.
//! - No descent reads it: one is begun or gone on with only if none of its tables is such, and none of the last level
//!   between its first key and its last. What is newer than such a table therefore stays above the last level.
//! - It may move down as a whole: that reads nothing, and whatever is above it stays newer.
//! - Damage stays until the next start, which meets it again. What the device does not give is tried again after a
//!   while, and after twice as long each time.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::damage;
use super::version::{Member, Version};
use super::{Engine, EngineError, Tablet};
use crate::base::FileId;
use crate::env::Env;

/// What the device did not give is tried again after this, and after twice as long each time up to [`RETRY_MAX`].
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// See the module. Of one tablet.
#[derive(Default)]
pub(super) struct Avoided {
    tables: RefCell<BTreeMap<FileId, Rest>>,
}

/// How long a table is left alone.
#[derive(Clone, Copy)]
struct Rest {
    /// By [`Env::now`].
    until: Duration,
    /// How long it was the last time.
    time: Duration,
}

impl Avoided {
    /// From now on merges go around this table: for a while, or for good.
    fn add(&self, file: FileId, is_for_good: bool, now: Duration) {
        let mut tables = self.tables.borrow_mut();
        let before = tables.get(&file).map_or(Duration::ZERO, |rest| rest.time);
        let time = (before * 2).clamp(RETRY, RETRY_MAX);
        let until = if is_for_good { Duration::MAX } else { now + time };
        tables.insert(file, Rest { until, time });
    }

    /// Whether merges go around this table.
    pub fn has(&self, file: FileId, now: Duration) -> bool {
        self.tables.borrow().get(&file).is_some_and(|rest| rest.until > now)
    }

    /// Whether there is no such table. The usual case, and asked often.
    pub fn is_empty(&self, now: Duration) -> bool {
        self.tables.borrow().values().all(|rest| rest.until <= now)
    }

    /// When one of them may be tried again, if that is still to come.
    pub fn next_try(&self, now: Duration) -> Option<Duration> {
        self.tables.borrow().values().map(|rest| rest.until).filter(|until| *until > now).min()
    }
}

impl<E: Env> Engine<E> {
    /// The time by which a tablet's tables are avoided; if none ever was, nobody asks the clock for it.
    pub(super) fn avoided_at(&self, tablet: &Tablet<E>) -> Duration {
        if tablet.avoided.tables.borrow().is_empty() { Duration::ZERO } else { self.env.now() }
    }
}

impl<E: Env> Tablet<E> {
    /// Has merges go around tables of which it is known that nothing can be read.
    pub(super) fn avoid_faulty(&self) {
        for member in self.version().members().filter(|member| member.table.has_fault()) {
            self.avoided.add(member.table.file(), true, Duration::ZERO);
        }
    }

    /// Of tables that are gone nothing needs to be known.
    pub(super) fn forget_avoided(&self) {
        let mut tables = self.avoided.tables.borrow_mut();
        if !tables.is_empty() {
            let version = self.version();
            tables.retain(|file, _| version.members().any(|member| member.table.file() == *file));
        }
    }

    /// Has merges go around the table that `error` is about. `None`: it is about none of this tablet's, or merges
    /// went around it already. Otherwise whether that is for good.
    pub(super) fn avoid(&self, error: &EngineError, now: Duration) -> Option<bool> {
        let (path, _) = damage::place(error)?;
        let version = self.version();
        let member = version.members().find(|member| member.table.name().path() == path)?;
        let file = member.table.file();
        if self.avoided.has(file, now) {
            return None;
        }
        let is_for_good = error.is_damage();
        self.avoided.add(file, is_for_good, now);
        Some(is_for_good)
    }

    /// The tables above the last level of which the next step of a descent is to be, or which may begin one: those
    /// under way; if none are, those behind the last that can't be read. None, if the descent would read what can't
    /// be read.
    pub(super) fn descending<'a>(&self, version: &'a Version<E>, now: Duration) -> &'a [Rc<Member<E>>] {
        let upper = version.upper();
        let sinking = &upper[version.front()..];
        let is_avoided = |member: &Rc<Member<E>>| self.avoided.has(member.table.file(), now);
        if self.avoided.is_empty(now) {
            return if sinking.is_empty() { upper } else { sinking };
        }
        let behind = upper.iter().rposition(is_avoided).map_or(0, |at| at + 1);
        let oldest = match sinking.is_empty() {
            true => &upper[behind..],
            false if sinking.iter().any(is_avoided) => &[],
            false => sinking,
        };
        // A step takes all that stands between two keys, whether or not it shares some.
        let Some(first) = oldest.iter().map(|member| member.smallest()).min() else { return &[] };
        let is_between = |member: &&Rc<Member<E>>| {
            !member.bounds().ends_before(first)
                && oldest.iter().any(|upper| !upper.bounds().ends_before(member.smallest()))
        };
        match version.last().iter().filter(is_between).any(is_avoided) {
            true => &[],
            false => oldest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_avoided_for_good_and_what_the_device_refuses_for_longer_each_time() {
        let (avoided, second) = (Avoided::default(), Duration::from_secs(1));
        assert!(avoided.is_empty(second) && avoided.next_try(second).is_none());
        avoided.add(FileId(1), false, second);
        assert!(avoided.has(FileId(1), second) && !avoided.has(FileId(2), second));
        assert_eq!(avoided.next_try(second), Some(2 * second));
        assert!(!avoided.has(FileId(1), 2 * second) && avoided.is_empty(2 * second));
        for round in 1..10 {
            avoided.add(FileId(1), false, Duration::ZERO);
            assert_eq!(avoided.next_try(Duration::ZERO), Some((second * (1 << round)).min(RETRY_MAX)));
        }
        avoided.add(FileId(2), true, second);
        assert!(avoided.has(FileId(2), 1_000_000 * second) && !avoided.has(FileId(1), 1_000_000 * second));
    }
}
