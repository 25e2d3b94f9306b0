//! Slot → tablet → shard: the mapping of tablets to a number of shards, and the table that routes by it.
//! Pure.

use crate::base::TabletId;
use crate::engine::manifest::State;
use crate::slot::{SLOT_COUNT, Slot};

/// Tablets of a new store: 8 a core, at least 16, a power of two, at most one a slot.
pub fn tablets_for(cores: usize) -> u16 {
    let wanted = (cores * 8).max(16).next_power_of_two();
    u16::try_from(wanted).unwrap_or(SLOT_COUNT).min(SLOT_COUNT)
}

/// Divides the tablets among `shards` shards, in the order of their slots and as evenly as may be. With
/// the number of shards that they were divided by last, each stays where it is.
pub fn assign(state: &mut State, shards: u32) {
    assert!(shards > 0, "there is a shard");
    let is_same = state.shards == shards;
    let mut order: Vec<TabletId> = state.tablets.keys().copied().collect();
    order.sort_by_key(|id| state.tablets[id].slots.first());
    let count = order.len() as u64;
    for (place, id) in (0u64..).zip(order) {
        if let Some(tablet) = state.tablets.get_mut(&id)
            && !is_same
        {
            tablet.shard = (place * u64::from(shards) / count) as u32;
        }
    }
    state.shards = shards;
}

/// Where each slot is served: an array, looked up once per request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotTable {
    /// Grows with every change.
    pub epoch: u64,
    /// Number of shards.
    pub shards: usize,
    /// By slot: owner, and the tablet's local number there.
    places: Box<[(u16, u16)]>,
}

impl SlotTable {
    /// The table of `state`, whose tablets cover every slot once. A shard's tablets are numbered in the
    /// order of their ids.
    pub fn new(state: &State) -> SlotTable {
        let mut next_local = vec![0u16; state.shards as usize];
        let mut places = vec![(u16::MAX, 0); usize::from(SLOT_COUNT)].into_boxed_slice();
        for tablet in state.tablets.values() {
            let local = next_local[tablet.shard as usize];
            next_local[tablet.shard as usize] += 1;
            for slot in tablet.slots.first()..=tablet.slots.last() {
                assert_eq!(places[usize::from(slot)].0, u16::MAX, "slot {slot} is in one tablet only");
                places[usize::from(slot)] = (tablet.shard as u16, local);
            }
        }
        assert!(places.iter().all(|(shard, _)| *shard != u16::MAX), "every slot is in a tablet");
        SlotTable { epoch: state.generation, shards: state.shards as usize, places }
    }

    /// The shard that owns a slot.
    #[inline]
    pub fn shard(&self, slot: Slot) -> usize {
        usize::from(self.places[usize::from(slot.number())].0)
    }

    /// The tablet's number on its owner.
    #[inline]
    pub fn local(&self, slot: Slot) -> usize {
        usize::from(self.places[usize::from(slot.number())].1)
    }

    /// Runs of slots with one owner: first, last, shard.
    pub fn ranges(&self) -> Vec<(u16, u16, u16)> {
        let mut ranges: Vec<(u16, u16, u16)> = Vec::new();
        for (slot, (shard, _)) in (0u16..).zip(&self.places) {
            match ranges.last_mut() {
                Some((_, last, owner)) if owner == shard => *last = slot,
                _ => ranges.push((slot, slot, *shard)),
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
