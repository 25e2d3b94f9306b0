//! Whether engines can go on from a state that was read: beyond what the manifest itself is, what they rely on. An
//! engine never leaves another; what was forged, or put together from several copies, is refused here instead of
//! ending in an assertion later.

use super::manifest::State;
use crate::base::{EntryIndex, LogId, TabletId};

/// Generations and epochs grow by one now and then: this many are never used up.
const COUNT_MAX: u64 = 1 << 62;
/// Ids of logs are the upper half of those of tables.
const LOG_MAX: LogId = LogId(1 << 31);
/// Tablets get ids one after the other, below that of what belongs to none.
const TABLET_MAX: TabletId = TabletId(1 << 31);
/// A table tells places by the number of a page, in 32 bits.
const TABLE_BYTES_MAX: u64 = 1 << 44;

/// Refuses numbers on from which nothing can be counted, and tables with what no log has given yet.
pub(super) fn check_startable(state: &State) -> Result<(), String> {
    let refuse = |what: String| Err(what);
    if state.generation > COUNT_MAX || state.store.next_log > LOG_MAX.0 {
        return refuse(format!("generation {}, next log {}", state.generation, state.store.next_log));
    }
    for (id, tablet) in &state.tablets {
        let flushed = tablet.flushed;
        if *id > TABLET_MAX || tablet.epoch > COUNT_MAX || flushed > EntryIndex::BELIEVED_MAX {
            return refuse(format!("tablet {id} has epoch {} and was flushed to {flushed}", tablet.epoch));
        }
        for table in &tablet.tables {
            let last = table.max_lsn.index().max(table.cleared.index());
            if last > flushed {
                return refuse(format!(
                    "tablet {id} was flushed to {flushed}, and table {} has {last}",
                    table.file
                ));
            }
            let counts = [table.bytes, table.entries, table.tombstones, table.expiring];
            if table.file.0 >> 32 > LOG_MAX.0 || counts.iter().any(|count| *count > TABLE_BYTES_MAX) {
                return refuse(format!("table {} of tablet {id} is larger than a table can be", table.file));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{FileId, Lsn};
    use crate::engine::manifest::{TableRef, UPPER};

    fn table(flushed: u64) -> TableRef {
        TableRef {
            file: FileId(1 << 32),
            level: UPPER,
            bytes: 1 << 14,
            entries: 1,
            tombstones: 0,
            expiring: 0,
            min_lsn: Lsn::new(EntryIndex(1), 0),
            max_lsn: Lsn::new(EntryIndex(flushed), 9),
            cleared: Lsn::ZERO,
            smallest: b"a".as_slice().into(),
            largest: b"b".as_slice().into(),
            clip: None,
        }
    }

    #[test]
    fn what_no_engine_leaves_is_refused() {
        let mut whole = State::create(1, 2, 4);
        let tablet = whole.tablets.get_mut(&TabletId(0)).expect("there are four");
        (tablet.flushed, tablet.tables) = (EntryIndex(7), vec![table(7)]);
        assert_eq!(check_startable(&whole), Ok(()));
        let refused = |forge: fn(&mut State)| {
            let mut state = whole.clone();
            forge(&mut state);
            check_startable(&state).is_err()
        };
        fn first(state: &mut State) -> &mut crate::engine::manifest::TabletState {
            state.tablets.get_mut(&TabletId(0)).expect("there are four")
        }
        assert!(refused(|state| first(state).flushed = EntryIndex(6)), "a table has what is not flushed");
        assert!(refused(|state| first(state).flushed = EntryIndex::MAX), "no index is left");
        assert!(refused(|state| first(state).tables[0].cleared = Lsn::new(EntryIndex(8), 0)));
        assert!(refused(|state| first(state).tables[0].entries = u64::MAX));
        assert!(refused(|state| first(state).epoch = u64::MAX));
        assert!(refused(|state| state.generation = u64::MAX));
        assert!(refused(|state| state.store.next_log = 1 << 32), "a table's id has room for less");
        assert!(refused(|state| {
            let tablet = first(state).clone();
            state.tablets.insert(TabletId(u32::MAX), tablet);
        }));
    }
}
