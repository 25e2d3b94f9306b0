//! A request that asks for `always` of a server that is set up to promise less. The server waits a minute
//! before it writes of its own accord, and is killed at once: what is there afterwards, the request has
//! brought there.

use atlaskv::client::{Batch, Client, Condition, Durability, Error, Options, Outcome};
use atlaskv::error::Code;

use crate::harness::{Server, connect, disk_dir};

const ALWAYS: Options = Options { condition: Condition::None, durability: Durability::Always };

/// One tag, so one slot: all keys are one shard's.
fn key(name: &str) -> Vec<u8> {
    format!("{{tag}}{name}").into_bytes()
}

/// Has `act` done by a client, kills the server, and has `look` see what is there after that.
fn survives(what: &str, act: impl Fn(&mut Client), look: impl Fn(&mut Client)) {
    for (cores, sync) in [("1", "interval=60000"), ("2", "interval=60000"), ("2", "none")] {
        println!("{what}, --cores {cores} --sync {sync}");
        let dir = disk_dir();
        let arguments = ["--cores", cores, "--oversubscribe", "--memory", "128MiB", "--sync", sync];
        let mut server = Server::start(dir.path(), &arguments);
        let mut client = connect(&server);
        act(&mut client);
        server.kill();
        let server = Server::start(dir.path(), &arguments);
        look(&mut connect(&server));
    }
}

fn value(client: &mut Client, name: &str) -> Option<Vec<u8>> {
    client.get(&key(name)).expect("a read").map(|found| found.value)
}

#[test]
fn a_set_that_asks_for_it_is_there_and_all_before_it() {
    survives(
        "SET",
        |client| {
            client.set(&key("before"), b"1").unwrap();
            client.set_with(&key("asked"), b"2", ALWAYS).unwrap();
        },
        |client| {
            assert_eq!(value(client, "asked"), Some(b"2".to_vec()));
            assert_eq!(value(client, "before"), Some(b"1".to_vec()));
        },
    );
}

#[test]
fn a_delete_that_asks_for_it_is_done() {
    survives(
        "DELETE",
        |client| {
            client.set_with(&key("gone"), b"1", ALWAYS).unwrap();
            assert!(matches!(client.delete_with(&key("gone"), ALWAYS).unwrap(), Outcome::Written { .. }));
        },
        |client| assert_eq!(value(client, "gone"), None),
    );
}

#[test]
fn a_sum_that_asks_for_it_is_there() {
    survives(
        "INCR",
        |client| {
            client.incr(&key("sum"), 40).unwrap();
            assert_eq!(client.incr_with(&key("sum"), 2, Durability::Always).unwrap().value, 42);
        },
        |client| assert_eq!(value(client, "sum"), Some(b"42".to_vec())),
    );
}

#[test]
fn a_batch_that_asks_for_it_is_there_whole() {
    survives(
        "BATCH",
        |client| {
            let mut batch = Batch::new();
            for at in 0..100 {
                batch.put(&key(&at.to_string()), b"value").unwrap();
            }
            client.batch(batch.durability(Durability::Always)).unwrap();
            // As many operations as there can be, the last of which counts.
            let mut batch = Batch::new();
            for _ in 1..65_535 {
                batch.delete(&key("n")).unwrap();
            }
            batch.put(&key("n"), b"last").unwrap();
            client.batch(batch.durability(Durability::Always)).unwrap();
        },
        |client| {
            (0..100).for_each(|at| assert!(value(client, &at.to_string()).is_some(), "{at}"));
            assert_eq!(value(client, "n"), Some(b"last".to_vec()));
        },
    );
}

/// Whoever repeats a write whose answer was lost learns from a condition that fails, or from a key that is
/// gone, that it was applied. That was answered at once, whatever the request asked for, and a crash could
/// take back what it had told.
#[test]
fn what_a_refused_write_tells_is_there_if_it_asked_for_it() {
    survives(
        "a condition that fails",
        |client| {
            let version = client.set(&key("taken"), b"1").unwrap();
            let options = Options { condition: Condition::IfAbsent, ..ALWAYS };
            let outcome = client.set_with(&key("taken"), b"2", options).unwrap();
            assert_eq!(outcome, Outcome::ConditionFailed { current: Some(version) });
        },
        |client| assert_eq!(value(client, "taken"), Some(b"1".to_vec())),
    );
    survives(
        "DELETE of an absent key",
        |client| {
            client.set_with(&key("gone"), b"1", ALWAYS).unwrap();
            client.delete(&key("gone")).unwrap();
            assert_eq!(client.delete_with(&key("gone"), ALWAYS).unwrap(), Outcome::Absent);
        },
        |client| assert_eq!(value(client, "gone"), None),
    );
    survives(
        "a condition on a key that is gone",
        |client| {
            client.set_with(&key("gone"), b"1", ALWAYS).unwrap();
            client.delete(&key("gone")).unwrap();
            let options = Options { condition: Condition::IfPresent, ..ALWAYS };
            let outcome = client.delete_with(&key("gone"), options).unwrap();
            assert_eq!(outcome, Outcome::ConditionFailed { current: None });
        },
        |client| assert_eq!(value(client, "gone"), None),
    );
    survives(
        "INCR of no number",
        |client| {
            client.set(&key("text"), b"many").unwrap();
            let error = client.incr_with(&key("text"), 1, Durability::Always).unwrap_err();
            assert!(matches!(error, Error::Refused(refusal) if refusal.code == Code::NotAnInteger));
        },
        |client| assert_eq!(value(client, "text"), Some(b"many".to_vec())),
    );
}
