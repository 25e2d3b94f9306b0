//! BATCH: all or nothing, by conditions about what it finds, whether that is in memory or on disk.

use super::store::{Answer, Store};
use crate::base::Lsn;
use crate::disk::sim::SimDisk;
use crate::env::sim::{SimEnv, SimWorld};
use crate::error::Code;
use crate::protocol::binary::OpList;
use crate::protocol::{Action, BatchOp, Condition, Deadline, Durability, Expiry, Request};

const HOUR: Deadline = Deadline::In(3_600_000);

async fn batch(store: &Store, items: &[(&str, Condition, Action<'_>)]) -> Answer {
    let mut list = OpList::default();
    for &(key, condition, action) in items {
        list.push(&BatchOp { key: key.as_bytes(), condition, action });
    }
    store.ask(&Request::Batch { ops: list.ops(), durability: Durability::Default }).await
}

fn put(value: &str) -> Action<'_> {
    Action::Put { value: value.as_bytes(), expiry: Expiry::Never }
}

fn put_until(value: &str, expiry: Expiry) -> Action<'_> {
    Action::Put { value: value.as_bytes(), expiry }
}

async fn value(store: &Store, key: &str) -> Option<String> {
    match store.get(key.as_bytes()).await {
        Answer::Value(value, _) => Some(String::from_utf8(value).unwrap()),
        Answer::Absent => None,
        other => panic!("{key}: {other:?}"),
    }
}

/// Runs `test` on a store that keeps all in memory, and on one that flushes whenever it is asked to.
pub(super) fn on_both(test: impl AsyncFn(&Store, bool)) {
    for is_flushed in [false, true] {
        let world = SimWorld::new(7);
        let env = SimEnv::new(&world, SimDisk::new(&world));
        world.run(async {
            let store = Store::open(&env, 2).await;
            test(&store, is_flushed).await;
            store.close().await;
        });
        world.kill();
    }
}

pub(super) async fn maybe_flush(store: &Store, is_flushed: bool) {
    if is_flushed {
        store.flush().await;
    }
}

#[test]
fn conditions_are_about_what_the_batch_finds() {
    use Condition::{IfAbsent, IfPresent, IfVersion};
    on_both(async |store, is_flushed| {
        let before = store.set(b"{t}a", b"1", Expiry::Never).await.version();
        maybe_flush(store, is_flushed).await;
        let items = [
            ("{t}a", IfVersion(before), Action::Check),
            ("{t}b", IfAbsent, put("2")),
            ("{t}a", IfVersion(before), put("3")),
            // Not of what the item before it leaves.
            ("{t}a", IfVersion(before), put("4")),
        ];
        let first = batch(store, &items).await.version();
        let last = Lsn(first.0 + 2);
        assert_eq!(store.get(b"{t}b").await, Answer::Value(b"2".to_vec(), first));
        assert_eq!(store.get(b"{t}a").await, Answer::Value(b"4".to_vec(), last), "checks have no version");
        maybe_flush(store, is_flushed).await;
        let gone = [("{t}c", Condition::None, put("9")), ("{t}b", IfPresent, Action::Delete)];
        let stale = [gone[0], gone[1], ("{t}a", IfVersion(before), put("9")), ("{t}d", IfPresent, put("9"))];
        assert_eq!(batch(store, &stale).await, Answer::BatchUnmet(2, Some(last)), "the first that fails");
        let absent = [gone[0], gone[1], ("{t}d", IfPresent, Action::Check)];
        assert_eq!(batch(store, &absent).await, Answer::BatchUnmet(2, None));
        assert_eq!(
            (value(store, "{t}c").await, value(store, "{t}b").await, value(store, "{t}a").await),
            (None, Some("2".to_owned()), Some("4".to_owned())),
            "nothing is done"
        );
        batch(store, &gone).await.version();
        assert_eq!((value(store, "{t}c").await.as_deref(), value(store, "{t}b").await), (Some("9"), None));
    });
}

#[test]
fn items_set_change_keep_and_end_expiries_in_their_order() {
    let none = Condition::None;
    on_both(async |store, is_flushed| {
        store.set(b"{t}a", b"1", Expiry::Never).await.version();
        store.set(b"{t}k", b"1", Expiry::Set(HOUR)).await.version();
        let kept = store.expires_at(b"{t}k").await;
        maybe_flush(store, is_flushed).await;
        let items = [
            ("{t}a", none, Action::Expire(HOUR)),
            ("{t}e", none, put_until("2", Expiry::Set(HOUR))),
            ("{t}f", none, put_until("3", Expiry::Set(HOUR))),
            // Of what items before them leave.
            ("{t}f", none, Action::Persist),
            ("{t}k", none, put_until("4", Expiry::Keep)),
            ("{t}absent", none, Action::Expire(HOUR)),
            ("{t}absent", none, Action::Persist),
        ];
        batch(store, &items).await.version();
        maybe_flush(store, is_flushed).await;
        assert_eq!(value(store, "{t}a").await.as_deref(), Some("1"));
        assert_ne!(store.expires_at(b"{t}a").await, 0);
        assert_ne!(store.expires_at(b"{t}e").await, 0);
        assert_eq!((value(store, "{t}f").await.as_deref(), store.expires_at(b"{t}f").await), (Some("3"), 0));
        assert_eq!(
            (value(store, "{t}k").await.as_deref(), store.expires_at(b"{t}k").await),
            (Some("4"), kept)
        );
        assert_eq!(value(store, "{t}absent").await, None);
        // A time that is past is a delete, and what is kept behind it is for ever.
        let items = [
            ("{t}e", none, Action::Expire(Deadline::At(1))),
            ("{t}k", none, put_until("5", Expiry::Set(Deadline::At(1)))),
            ("{t}k", none, put_until("6", Expiry::Keep)),
            ("{t}a", none, Action::Persist),
        ];
        batch(store, &items).await.version();
        assert_eq!(value(store, "{t}e").await, None);
        assert_eq!((value(store, "{t}k").await.as_deref(), store.expires_at(b"{t}k").await), (Some("6"), 0));
        assert_eq!(store.expires_at(b"{t}a").await, 0);
    });
}

#[test]
fn a_batch_that_stores_too_much_again_is_refused() {
    let none = Condition::None;
    on_both(async |store, is_flushed| {
        let large = "x".repeat(600 << 10);
        for key in ["{t}a", "{t}b"] {
            store.set(key.as_bytes(), large.as_bytes(), Expiry::Never).await.version();
        }
        maybe_flush(store, is_flushed).await;
        let (a, b) = (("{t}a", none, Action::Expire(HOUR)), ("{t}b", none, Action::Expire(HOUR)));
        assert_eq!(batch(store, &[a, b]).await, Answer::Refused(Code::BatchTooLarge));
        assert_eq!(batch(store, &[a, a]).await, Answer::Refused(Code::BatchTooLarge));
        assert_eq!((store.expires_at(b"{t}a").await, store.expires_at(b"{t}b").await), (0, 0));
        let check = ("{t}b", Condition::IfPresent, Action::Check);
        batch(store, &[a, check]).await.version();
        assert_eq!(value(store, "{t}a").await.as_deref(), Some(&large[..]));
    });
}
