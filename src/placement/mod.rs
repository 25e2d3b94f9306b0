//! Slot → tablet → shard: the mapping of tablets to a number of shards, and the table that routes by it.
//! Pure.
//!
//! - Each shard gets a run of neighbouring tablets, and no two shards differ by more than one tablet.
//! - With the number of shards unchanged nothing moves, even if it was placed by hand.
//! - With another number the runs are cut anew. Fewer tablets would move if a shard could get several runs,
//!   but a move at start costs nothing (every old log is read anyway, by whoever), while runs keep the table
//!   that clients fetch at one line a shard.
//! - A tablet that moves gets a higher epoch, so of two descriptions of it the newer one is known.

use std::cell::Cell;

use crate::engine::manifest::{State, TabletState};
use crate::slot::{SLOT_COUNT, Slot, SlotRange};

/// Tablets of a new store: 8 a core, at least 16, a power of two, at most one a slot.
pub fn tablets_for(cores: usize) -> u16 {
    let wanted = (cores * 8).max(16).next_power_of_two();
    u16::try_from(wanted).unwrap_or(SLOT_COUNT).min(SLOT_COUNT)
}

/// Divides the tablets among `shards` shards, in the order of their slots and as evenly as may be. With
/// the number of shards that they were divided by last, each stays where it is.
///
/// # Panics
/// If `shards` is 0.
pub fn assign(state: &mut State, shards: u32) {
    assert!(shards > 0, "there is a shard");
    if state.shards == shards {
        return;
    }
    let mut order: Vec<&mut TabletState> = state.tablets.values_mut().collect();
    order.sort_by_key(|tablet| tablet.slots.first());
    let count = order.len() as u64;
    // Of a store that was never divided nothing moves: its tablets are where they are first put.
    let is_new = state.shards == 0;
    for (place, tablet) in (0u64..).zip(order) {
        let shard = (place * u64::from(shards) / count) as u32;
        if shard != tablet.shard {
            tablet.shard = shard;
            tablet.epoch += u64::from(!is_new);
        }
    }
    state.shards = shards;
}

/// Where each slot is served: an array, looked up once per request. Each shard has one of its own, and changes
/// it as tablets move and split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotTable {
    epoch: Cell<u64>,
    /// Number of shards.
    pub shards: usize,
    /// Slots whose requests wait at this shard, since their tablet moves.
    held: Cell<Option<SlotRange>>,
    /// By slot: owner, and the tablet's local number there.
    places: Box<[Cell<(u16, u16)>]>,
}

/// Local number of a tablet that its shard does not serve.
const NOWHERE: u16 = u16::MAX;

impl SlotTable {
    /// The table of `state`. A shard's tablets are numbered in the order of their ids.
    ///
    /// # Panics
    /// If the tablets do not cover every slot once, or one is on a shard that is not there; what
    /// [`load`](crate::engine::manifest::load) returns was checked for that.
    pub fn new(state: &State) -> SlotTable {
        let mut next_local = vec![0u16; state.shards as usize];
        let places = vec![Cell::new((u16::MAX, 0)); usize::from(SLOT_COUNT)].into_boxed_slice();
        for tablet in state.tablets.values() {
            let local = next_local[tablet.shard as usize];
            next_local[tablet.shard as usize] += 1;
            for slot in tablet.slots.first()..=tablet.slots.last() {
                let before = places[usize::from(slot)].replace((tablet.shard as u16, local));
                assert_eq!(before.0, u16::MAX, "slot {slot} is in one tablet only");
            }
        }
        assert!(places.iter().all(|place| place.get().0 != u16::MAX), "every slot is in a tablet");
        // Both terms only grow, the one with every start, the other with every move and split.
        let epoch = state.generation + state.tablets.values().map(|tablet| tablet.epoch).sum::<u64>();
        SlotTable { epoch: epoch.into(), shards: state.shards as usize, held: Cell::new(None), places }
    }

    /// Grows with every change.
    #[inline]
    pub fn epoch(&self) -> u64 {
        self.epoch.get()
    }

    /// From now on `shard` serves these slots, as its tablet `local`; the table's epoch is `epoch`.
    pub fn assign(&self, slots: SlotRange, shard: usize, local: usize, epoch: u64) {
        assert!(shard < self.shards && epoch >= self.epoch(), "the table goes forward");
        let place = (shard as u16, u16::try_from(local).expect("there are no more tablets than slots"));
        self.fill(slots, place);
        self.epoch.set(epoch);
    }

    /// From now on requests for these slots wait at this shard, and for no others.
    pub fn hold(&self, slots: Option<SlotRange>) {
        self.held.set(slots);
    }

    /// The slots whose requests wait at this shard.
    #[inline]
    pub fn held(&self) -> Option<SlotRange> {
        self.held.get()
    }

    /// From now on nobody serves these slots, and their owner says so.
    pub fn close(&self, slots: SlotRange) {
        let (owner, _) = self.places[usize::from(slots.first())].get();
        self.fill(slots, (owner, NOWHERE));
    }

    fn fill(&self, slots: SlotRange, place: (u16, u16)) {
        let range = usize::from(slots.first())..=usize::from(slots.last());
        self.places[range].iter().for_each(|slot| slot.set(place));
    }

    /// The shard that owns a slot.
    #[inline]
    pub fn shard(&self, slot: Slot) -> usize {
        usize::from(self.places[usize::from(slot.number())].get().0)
    }

    /// The tablet's number on its owner.
    #[inline]
    pub fn local(&self, slot: Slot) -> usize {
        usize::from(self.places[usize::from(slot.number())].get().1)
    }

    /// The tablet's number on `shard`, if that serves it.
    #[inline]
    pub fn local_on(&self, shard: usize, slot: Slot) -> Option<usize> {
        let (owner, local) = self.places[usize::from(slot.number())].get();
        (usize::from(owner) == shard && local != NOWHERE).then_some(usize::from(local))
    }

    /// Runs of slots with one owner: first, last, shard.
    pub fn ranges(&self) -> Vec<(u16, u16, u16)> {
        let mut ranges: Vec<(u16, u16, u16)> = Vec::new();
        for (slot, place) in (0u16..).zip(&self.places) {
            let (shard, _) = place.get();
            match ranges.last_mut() {
                Some((_, last, owner)) if *owner == shard => *last = slot,
                _ => ranges.push((slot, slot, shard)),
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::TabletId;

    #[test]
    fn tablets_spread_evenly_and_stay_when_nothing_changed() {
        assert_eq!(
            (tablets_for(1), tablets_for(2), tablets_for(3), tablets_for(5000)),
            (16, 16, 32, SLOT_COUNT)
        );
        for shards in 1..=7 {
            let mut state = State::create(1, 1, 16);
            assign(&mut state, shards);
            let of = |shard: u32| state.tablets.values().filter(|t| t.shard == shard).count() as u32;
            assert!((0..shards).all(|shard| (16 / shards..=16 / shards + 1).contains(&of(shard))));
            let table = SlotTable::new(&state);
            assert_eq!(table.ranges().len(), shards as usize, "neighbours share a shard");
            for number in 0..SLOT_COUNT {
                let slot = Slot::new(number).unwrap();
                let mine: Vec<_> =
                    state.tablets.values().filter(|t| t.shard as usize == table.shard(slot)).collect();
                assert!(mine[table.local(slot)].slots.contains(slot));
            }
        }
        let mut state = State::create(1, 1, 16);
        assign(&mut state, 2);
        // A tablet that was moved by hand stays there.
        state.tablets.get_mut(&TabletId(0)).unwrap().shard = 1;
        assign(&mut state, 2);
        assert_eq!(state.tablets[&TabletId(0)].shard, 1);
    }

    #[test]
    fn any_sequence_of_shard_counts_stays_even_and_moves_are_marked() {
        let seed = 5;
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..40 {
            let tablets = 1 << rng.u32(4..10);
            let mut state = State::create(1, 1, tablets);
            for _ in 0..6 {
                let shards = rng.u32(1..40);
                let before = state.clone();
                assign(&mut state, shards);
                state.check().unwrap();
                let mut sizes = vec![0u32; shards as usize];
                state.tablets.values().for_each(|tablet| sizes[tablet.shard as usize] += 1);
                let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
                assert!(most - least <= 1, "seed {seed}: {sizes:?}");
                let used = sizes.iter().filter(|size| **size > 0).count();
                assert_eq!(SlotTable::new(&state).ranges().len(), used, "one run a shard");
                for (old, new) in before.tablets.values().zip(state.tablets.values()) {
                    let has_moved = before.shards != 0 && old.shard != new.shard;
                    assert_eq!(new.epoch, old.epoch + u64::from(has_moved), "seed {seed}");
                }
            }
        }
    }

    #[test]
    fn tablets_of_a_shard_are_numbered_without_gaps() {
        let mut state = State::create(1, 1, 64);
        assign(&mut state, 3);
        let table = SlotTable::new(&state);
        for shard in 0..3 {
            let slots = (0..SLOT_COUNT).map(|number| Slot::new(number).unwrap());
            let locals: std::collections::BTreeSet<usize> =
                slots.filter(|slot| table.shard(*slot) == shard).map(|slot| table.local(slot)).collect();
            assert!(locals.iter().copied().eq(0..locals.len()));
            assert!((21..=22).contains(&locals.len()));
        }
    }
}
