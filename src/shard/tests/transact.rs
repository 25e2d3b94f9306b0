//! TRANSACT: commands of Redis in one step, by what is in memory and on disk.

use super::batch::{maybe_flush, on_both};
use super::store::{Answer, Store};
use crate::base::Lsn;
use crate::error::Code;
use crate::protocol::binary::{StepList, Watch, WatchList};
use crate::protocol::{Durability, Expiry, Request, Transaction};

/// Has commands, words between spaces, executed under watches.
async fn transact(store: &Store, watches: &[(&str, Option<Lsn>)], commands: &[&str]) -> Answer {
    let (mut watch_list, mut steps) = (WatchList::default(), StepList::default());
    for (key, version) in watches {
        watch_list.push(Watch { key: key.as_bytes(), version: *version });
    }
    for command in commands {
        let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        steps.command(&words);
    }
    let transaction = Transaction {
        key: b"{t}",
        is_resp3: false,
        is_array: true,
        watches: watch_list.watches(),
        steps: steps.steps(),
        durability: Durability::Default,
    };
    store.ask(&Request::Transact(transaction)).await
}

fn resp(text: &str) -> Answer {
    Answer::Resp(text.replace(' ', "\r\n") + "\r\n")
}

#[test]
fn commands_see_what_those_before_them_did() {
    on_both(async |store, is_flushed| {
        store.set(b"{t}a", b"1", Expiry::Never).await.version();
        store.set(b"{t}b", b"x", Expiry::Never).await.version();
        maybe_flush(store, is_flushed).await;
        let commands =
            ["incr {t}a", "append {t}b yz", "get {t}b", "rename {t}b {t}c", "exists {t}b {t}c", "incr {t}c"];
        let wrong = "-ERR value is not an integer or out of range";
        let said = transact(store, &[], &commands).await;
        let Answer::Resp(text) = said else { panic!("{said:?}") };
        assert_eq!(text, format!("*6\r\n:2\r\n:3\r\n$3\r\nxyz\r\n+OK\r\n:1\r\n{wrong}\r\n"));
        maybe_flush(store, is_flushed).await;
        assert_eq!(transact(store, &[], &["mget {t}a {t}b {t}c"]).await, resp("*1 *3 $1 2 $-1 $3 xyz"));
    });
}

#[test]
fn nothing_is_done_if_a_watched_key_has_another_version() {
    on_both(async |store, is_flushed| {
        let version = store.set(b"{t}a", b"1", Expiry::Never).await.version();
        maybe_flush(store, is_flushed).await;
        let watches = [("{t}a", Some(version)), ("{t}b", None)];
        assert_eq!(transact(store, &watches, &["incr {t}a", "set {t}b 5"]).await, resp("*2 :2 +OK"));
        maybe_flush(store, is_flushed).await;
        assert_eq!(transact(store, &watches[..1], &["incr {t}a"]).await, resp("*-1"));
        assert_eq!(transact(store, &watches[1..], &["incr {t}a"]).await, resp("*-1"));
        assert_eq!(transact(store, &[], &["get {t}a"]).await, resp("*1 $1 2"));
    });
}

#[test]
fn keys_of_another_slot_and_too_much_at_once_are_refused() {
    on_both(async |store, is_flushed| {
        assert_eq!(transact(store, &[], &["get {t}a", "get b"]).await, Answer::Refused(Code::CrossSlot));
        assert_eq!(transact(store, &[("b", None)], &["get {t}a"]).await, Answer::Refused(Code::CrossSlot));
        let long = "x".repeat(600 << 10);
        for key in [&b"{t}a"[..], b"{t}b"] {
            store.set(key, long.as_bytes(), Expiry::Never).await.version();
        }
        maybe_flush(store, is_flushed).await;
        let both = ["append {t}a z", "append {t}b z"];
        assert_eq!(transact(store, &[], &both).await, Answer::Refused(Code::BatchTooLarge));
        assert_eq!(
            transact(store, &[], &["append {t}a z", "set {t}b y"]).await,
            Answer::Resp(format!("*2\r\n:{}\r\n+OK\r\n", long.len() + 1))
        );
        maybe_flush(store, is_flushed).await;
        let lens = ["strlen {t}a", "strlen {t}b", "append {t}a z"];
        let (one, two) = (long.len() + 1, long.len() + 2);
        assert_eq!(transact(store, &[], &lens).await, resp(&format!("*3 :{one} :1 :{two}")));
    });
}
