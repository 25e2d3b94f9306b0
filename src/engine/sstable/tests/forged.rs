//! Tables whose checksums fit, and whose contents can't be: found by `tests/fuzz`. A merge took them, and its outcome
//! did not fit the tables that stay.

use super::*;
use crate::engine::sstable::format::{BLOCK_HEADER_BYTES, RECORD_HEADER_BYTES, seal_part};

/// LSNs 4, 6 and 8: with even ones nothing expires, so all records are equally long.
fn three() -> Model {
    let keys = [b"bb", b"cc", b"dd"].into_iter().zip((4..).step_by(2));
    keys.map(|(key, lsn)| (key.to_vec(), (lsn, OpKind::Put, vec![7]))).collect()
}

/// Where the key of a record of that table's only block stands.
fn key_at(record: usize) -> usize {
    BLOCK_HEADER_BYTES + 3 * 3 + record * (RECORD_HEADER_BYTES + 3) + RECORD_HEADER_BYTES
}

#[test]
fn a_walk_refuses_a_block_with_entries_that_its_table_can_not_have() {
    let forgeries: [(&str, usize, u8); 6] = [
        ("out of order", key_at(0), b'e'),
        ("a key twice", key_at(1), b'b'),
        ("before the first", key_at(0), b'a'),
        ("behind the last", key_at(2), b'z'),
        ("older than all", key_at(1) - 8, 3),
        ("newer than all", key_at(1) - 8, 9),
    ];
    for (what, at, byte) in forgeries {
        let (world, env) = SimEnv::fresh(80);
        world.run(async {
            let whole = build(&env, 1, &three()).await;
            assert!(TableIter::seek(&whole, b"").await.is_ok());
            let mut bytes = env.disk().peek(&name(1).path()).unwrap();
            bytes[at] = byte;
            if what == "a key twice" {
                bytes[at + 1] = byte;
                // The same version as well: a newer one of the same key may stand in front of it.
                bytes[at - 8] = 4;
            }
            seal_part(FileId(1), 0, &mut bytes[..PAGE_SIZE]);
            env.disk().poke(&name(1).path(), bytes);
            let table = open(&env, 1).await.unwrap();
            match TableIter::seek(&table, b"").await.map(drop) {
                Err(TableError::Corrupt { part: "block", offset: 0, .. }) => {}
                other => panic!("{what}: {other:?}"),
            }
        });
    }
}

#[test]
fn a_table_that_says_other_than_what_is_known_of_it_is_not_read() {
    let (world, env) = SimEnv::fresh(81);
    world.run(async {
        let meta = build(&env, 1, &three()).await.meta().clone();
        let budget = IndexBudget::new(1 << 20);
        let fault = async |known: TableMeta| {
            let table = Table::open_known(&env, name(1), &budget, || known).await.unwrap();
            table.has_fault()
        };
        // Another tablet's, after a split, and what only the footer knows.
        let split = TableMeta { tablet: TabletId(9), expiries: Expiries::default(), ..meta.clone() };
        assert!(!fault(meta.clone()).await && !fault(split).await);
        assert!(fault(TableMeta { largest: b"cc".as_slice().into(), ..meta.clone() }).await);
        assert!(fault(TableMeta { max_lsn: Lsn(9), ..meta.clone() }).await);
        assert!(fault(TableMeta { entries: 4, ..meta }).await);
    });
}
