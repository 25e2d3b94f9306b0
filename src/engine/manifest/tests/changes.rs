//! Which changes fit a state, and what becomes of it.

use super::*;
use crate::engine::ranges::RangeDelete;

/// A merge names no position. It did once: computed before its commit had its turn, while the edit of a
/// flush was on its way. After the next start the merge's output stood in front of that flush's table, and
/// its old values hid the new ones.
#[test]
fn a_merge_stays_behind_tables_that_came_meanwhile() {
    let (world, env) = SimEnv::fresh(1);
    world.run(async {
        install(&env, &state(1)).await.unwrap();
        let manifest = ShardManifest::open(&env, 1, 1, 0).await.unwrap();
        for number in 1..=3 {
            manifest.commit(edit(number)).await.unwrap();
        }
        let tablet = TabletId(0);
        let merge = |table| Edit {
            changes: vec![Change::ReplaceTables { tablet, files: vec![FileId(3), FileId(2)], table }],
        };
        let flush = Edit { changes: vec![Change::AddTable { tablet, position: 0, table: table(9) }] };
        let merged = merge(Some(spanning(50, 2, 3)));
        let (a, b) = futures_lite::future::zip(manifest.commit(flush), manifest.commit(merged)).await;
        a.unwrap();
        b.unwrap();
        let found = load(&env).await.unwrap().unwrap();
        let files: Vec<u64> = found.tables(tablet).iter().map(|table| table.file.0).collect();
        assert_eq!(files, [9, 50, 1]);
        let nothing = Change::ReplaceTables { tablet, files: vec![FileId(50), FileId(1)], table: None };
        manifest.commit(Edit { changes: vec![nothing] }).await.unwrap();
        let found = load(&env).await.unwrap().unwrap();
        assert_eq!(found.tables(tablet).len(), 1);
    });
}

#[test]
fn changes_that_do_not_fit_are_refused() {
    let tablet = TabletId(0);
    let state = with(&with(&state(1), &edit(1)), &edit(3));
    let add = |position, table| Change::AddTable { tablet, position, table };
    let replace = |files: &[u64], table| Change::ReplaceTables {
        tablet,
        files: files.iter().copied().map(FileId).collect(),
        table,
    };
    let unfit = [
        add(0, table(2)),                       // older than what stands behind it
        add(1, table(4)),                       // newer than what stands before it
        add(1, spanning(7, 2, 3)),              // overlaps
        add(3, table(0)),                       // leaves a gap
        add(0, table(3)),                       // twice
        add(0, spanning(9, 9, 8)),              // ends before it begins
        replace(&[], None),                     // of nothing
        replace(&[1, 3], None),                 // in the wrong order
        replace(&[1, 0], None),                 // beyond the end
        replace(&[3], Some(spanning(9, 1, 2))), // overlaps what stays
        Change::RemoveTables { tablet, files: vec![FileId(2)] },
        Change::Flushed { tablet, index: EntryIndex(2), term: 1 },
        Change::Flushed { tablet: TabletId(99), index: EntryIndex(2), term: 1 },
        Change::Unpin { file: FileId(99), holder: 6 },
    ];
    for change in unfit {
        assert!(state.clone().apply(&change).is_err(), "{change}");
    }
    let mut state = state;
    state.apply(&add(1, table(2))).unwrap();
    let mut moved = state.tablets[&tablet].clone();
    moved.epoch += 1;
    moved.tables.clear();
    state.apply(&Change::Tablet(moved)).unwrap();
    assert_eq!(state.tables(tablet).len(), 3, "a new description of a tablet keeps its tables");
}

/// A table without clip over these keys, with the LSNs of entries `first` to `last`.
fn over(keys: (&str, &str), level: u8, file: u64, first: u64, last: u64) -> TableRef {
    let (smallest, largest) = (keys.0.as_bytes().into(), keys.1.as_bytes().into());
    TableRef { smallest, largest, level, clip: None, ..spanning(file, first, last) }
}

fn descend(removed: &[u64], advanced: &[u64], from: &str, added: Vec<TableRef>) -> Change {
    let files = |numbers: &[u64]| numbers.iter().copied().map(FileId).collect();
    let from = from.as_bytes().into();
    Change::Descend { tablet: TabletId(0), removed: files(removed), advanced: files(advanced), from, added }
}

/// Two tables of the upper level and three of the last, which all of the upper ones are newer than.
fn leveled() -> State {
    let mut state = state(1);
    let tablet = TabletId(0);
    let tables = [
        over(("b", "y"), UPPER, 5, 50, 59),
        over(("a", "z"), UPPER, 4, 40, 49),
        over(("c", "f"), LAST, 1, 1, 30),
        over(("g", "k"), LAST, 2, 1, 39),
        over(("m", "p"), LAST, 3, 7, 9),
    ];
    for (position, table) in (0..).zip(tables) {
        state.apply(&Change::AddTable { tablet, position, table }).unwrap();
    }
    state
}

#[test]
fn tables_of_the_last_level_share_no_keys_and_are_older_where_they_share_them_with_others() {
    let tablet = TabletId(0);
    let add = |position, table| Change::AddTable { tablet, position, table };
    let unfit = [
        (add(5, over(("p", "q"), LAST, 9, 1, 2)), "share keys"),
        (add(3, over(("f", "fz"), LAST, 9, 1, 2)), "share keys"),
        (add(2, over(("l", "l"), LAST, 9, 1, 2)), "descend"),
        (add(1, over(("l", "l"), LAST, 9, 1, 2)), "of levels 1 and 0"),
        (add(5, over(("x", "x"), UPPER, 9, 60, 61)), "of levels 1 and 0"),
        (add(0, over(("q", "q"), 2, 9, 60, 61)), "of level 2"),
        (add(4, over(("l", "l"), LAST, 9, 1, 45)), "share keys between levels"),
        (add(2, over(("e", "e"), UPPER, 9, 20, 25)), "share keys between levels"),
        (add(0, over(("b", "a"), UPPER, 9, 60, 61)), "nothing that counts"),
    ];
    for (change, what) in unfit {
        let error = leveled().apply(&change).unwrap_err();
        assert!(error.contains(what), "{change}: {error}");
    }
    // Between others, or where nothing above reaches, age does not matter.
    for change in [
        add(4, over(("l", "l"), LAST, 9, 1, 39)),
        add(5, over(("zz", "zz"), LAST, 9, 1, 99)),
        add(2, over(("l", "l"), UPPER, 9, 20, 25)),
    ] {
        leveled().apply(&change).unwrap();
    }
    let state = leveled();
    let mut again = state.clone();
    again.tablets.clear();
    state.snapshot().iter().for_each(|change| again.apply(change).unwrap());
    assert_eq!(again, state, "a snapshot builds it anew");
}

#[test]
fn a_descent_goes_down_the_keys_and_never_back() {
    let mut state = leveled();
    let out = |keys, file| over(keys, LAST, file, 1, 59);
    // The first step: keys below g.
    state.apply(&descend(&[1], &[5, 4], "g", vec![out(("a", "d"), 11), out(("e", "fz"), 12)])).unwrap();
    let files = |state: &State| state.tables(TabletId(0)).iter().map(|t| t.file.0).collect::<Vec<_>>();
    assert_eq!(files(&state), [5, 4, 11, 12, 2, 3]);
    let unfit = [
        (descend(&[2], &[5, 4], "c", vec![]), "has come further"),
        (descend(&[2], &[5, 4], "g", vec![]), "has come further"),
        (descend(&[2], &[5, 4], "yy", vec![]), "nothing of it counts"),
        (descend(&[2], &[5, 3], "m", vec![]), "does not descend"),
        (descend(&[2], &[5, 4], "h", vec![out(("g", "k"), 13)]), "share keys between levels"),
        (descend(&[], &[5, 4], "l", vec![out(("g", "k"), 13)]), "share keys or descend"),
        (descend(&[2], &[5, 4], "l", vec![over(("g", "k"), UPPER, 13, 1, 59)]), "descends to level 0"),
        (descend(&[99], &[5, 4], "l", vec![]), "is not there"),
    ];
    for (change, what) in unfit {
        let error = state.clone().apply(&change).unwrap_err();
        assert!(error.contains(what), "{change}: {error}");
    }
    // A flush comes in between; the last step, with which the upper tables go.
    let flush = over(("a", "z"), UPPER, 6, 60, 69);
    state.apply(&Change::AddTable { tablet: TabletId(0), position: 0, table: flush }).unwrap();
    state.apply(&descend(&[2, 3, 5, 4], &[], "", vec![out(("g", "z"), 13)])).unwrap();
    assert_eq!(files(&state), [6, 11, 12, 13]);
    // A table that shares keys with none moves as it is.
    let lonely = over(("zz", "zzz"), UPPER, 7, 70, 79);
    state.apply(&Change::AddTable { tablet: TabletId(0), position: 0, table: lonely.clone() }).unwrap();
    state.apply(&descend(&[7], &[], "", vec![lonely.placed(LAST, None)])).unwrap();
    assert_eq!(files(&state), [6, 11, 12, 13, 7]);
}

/// Found by `tests/fuzz`: a state that was accepted, of which the next start would have refused the snapshot.
#[test]
fn a_tablet_is_not_taken_back_behind_its_range_deletes_nor_split_in_the_last_epoch() {
    let tablet = TabletId(0);
    let mut state = state(1);
    let described = |flushed, epoch| {
        Change::Tablet(TabletState { flushed: EntryIndex(flushed), epoch, ..state.tablets[&tablet].clone() })
    };
    let (newer, older, last) = (described(30, 7), described(19, 8), described(30, u64::MAX));
    state.apply(&newer).unwrap();
    let range = RangeDelete::new(b"a", b"b", Lsn::new(EntryIndex(20), 0)).unwrap();
    state.apply(&Change::AddRange { tablet, range }).unwrap();
    assert!(state.clone().apply(&older).unwrap_err().contains("range deletes behind 19"));
    state.apply(&last).unwrap();
    let slots = state.tablets[&tablet].slots;
    let split = Change::SplitTablet { tablet, at: slots.first() + 1, into: TabletId(999) };
    assert!(state.apply(&split).unwrap_err().contains("last epoch"));
}
