//! Which tables keep their partitions in memory: as many as fit a budget, those of upper levels before those
//! of the last.
//!
//! A table that is opened pins its partitions if the budget has room for them. If it has not, and the table
//! is one of an upper level, tables of the last level give up theirs, longest open first: nearly every lookup
//! asks the filters of upper levels, each of which is small. Whoever holds no pins reads partitions through
//! the block cache, as blocks are read.
//!
//! Tops of indexes are always resident and counted as well; they displace pins like an upper table. Alone
//! they take about a thousandth of what is stored.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use super::partition::Partition;

/// What resident parts of a shard's tables may take.
pub struct IndexBudget {
    limit: usize,
    used: Cell<usize>,
    /// Pins of the last level, longest open first.
    displaceable: RefCell<Vec<Weak<Pins>>>,
}

/// A part of the budget, given back when dropped.
pub(super) struct Charge {
    budget: Rc<IndexBudget>,
    bytes: usize,
}

impl Charge {
    /// Gives back what is more than `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        let excess = self.bytes.saturating_sub(bytes);
        self.budget.used.set(self.budget.used.get() - excess);
        self.bytes -= excess;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let used = self.budget.used.get();
        assert!(used >= self.bytes, "what is given back was taken");
        self.budget.used.set(used - self.bytes);
    }
}

/// The partitions of a table, as long as they are pinned.
pub(super) struct Pins {
    held: RefCell<Option<Held>>,
}

struct Held {
    partitions: Box<[Rc<Partition>]>,
    charge: Charge,
}

impl Pins {
    /// The partition with this number, if it is pinned.
    #[inline]
    pub fn get(&self, number: usize) -> Option<Rc<Partition>> {
        self.held.borrow().as_ref().and_then(|held| held.partitions.get(number).cloned())
    }

    fn bytes(&self) -> usize {
        self.held.borrow().as_ref().map_or(0, |held| held.charge.bytes)
    }
}

impl IndexBudget {
    /// Of `limit` bytes.
    pub fn new(limit: usize) -> Rc<IndexBudget> {
        Rc::new(IndexBudget { limit, used: Cell::new(0), displaceable: RefCell::default() })
    }

    /// Bytes that are resident.
    pub fn used(&self) -> usize {
        self.used.get()
    }

    /// Takes what must be resident, whether there is room or not.
    pub(super) fn charge(self: &Rc<Self>, bytes: usize) -> Charge {
        self.displace(bytes);
        self.take(bytes)
    }

    /// Takes room for the partitions of a table, if there is some or can be made.
    pub(super) fn reserve(self: &Rc<Self>, bytes: usize, is_last: bool) -> Option<Charge> {
        if self.free() < bytes && !is_last {
            let displaceable: usize =
                self.displaceable.borrow().iter().filter_map(Weak::upgrade).map(|pins| pins.bytes()).sum();
            if self.free() + displaceable >= bytes {
                self.displace(bytes);
            }
        }
        (self.free() >= bytes).then(|| self.take(bytes))
    }

    /// Pins partitions on what was reserved for them.
    pub(super) fn pin(
        self: &Rc<Self>,
        partitions: Vec<Rc<Partition>>,
        charge: Charge,
        is_last: bool,
    ) -> Rc<Pins> {
        let held = Held { partitions: partitions.into(), charge };
        let pins = Rc::new(Pins { held: RefCell::new(Some(held)) });
        if is_last {
            let mut displaceable = self.displaceable.borrow_mut();
            displaceable.retain(|pins| pins.strong_count() > 0);
            displaceable.push(Rc::downgrade(&pins));
        }
        pins
    }

    fn free(&self) -> usize {
        self.limit.saturating_sub(self.used.get())
    }

    fn take(self: &Rc<Self>, bytes: usize) -> Charge {
        self.used.set(self.used.get() + bytes);
        Charge { budget: self.clone(), bytes }
    }

    /// Displaces pins of the last level until `bytes` are free or none are left.
    fn displace(&self, bytes: usize) {
        let mut displaceable = self.displaceable.borrow_mut();
        let mut count = 0;
        while self.free() < bytes && count < displaceable.len() {
            if let Some(pins) = displaceable[count].upgrade() {
                pins.held.take();
            }
            count += 1;
        }
        displaceable.drain(..count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(budget: &Rc<IndexBudget>, bytes: usize, is_last: bool) -> Option<Rc<Pins>> {
        let charge = budget.reserve(bytes, is_last)?;
        Some(budget.pin(Vec::new(), charge, is_last))
    }

    #[test]
    fn the_last_level_gives_way_to_upper_ones_and_nobody_to_the_last() {
        let budget = IndexBudget::new(100);
        let old = pin(&budget, 40, true).unwrap();
        let young = pin(&budget, 40, true).unwrap();
        assert!(pin(&budget, 21, true).is_none(), "full");
        let upper = pin(&budget, 50, false).unwrap();
        assert_eq!((old.bytes(), young.bytes(), upper.bytes(), budget.used()), (0, 40, 50, 90));
        assert!(pin(&budget, 51, false).is_none(), "there is no such room");
        assert_eq!(young.bytes(), 40, "so nobody was displaced in vain");
        let top = budget.charge(15);
        assert_eq!((young.bytes(), budget.used()), (0, 65));
        drop((top, upper));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn what_must_be_resident_is_counted_even_beyond_the_limit() {
        let budget = IndexBudget::new(10);
        let top = budget.charge(25);
        assert_eq!(budget.used(), 25);
        assert!(pin(&budget, 1, false).is_none());
        drop(top);
        assert!(pin(&budget, 1, false).is_some());
    }
}
