//! Batches with conditions and expiries, over TCP, on one shard and on two, and over a kill.

use std::time::Duration;

use atlaskv::base::Lsn;
use atlaskv::client::{Batch, Client, Condition, Deadline, Expiry, Outcome, Response};
use atlaskv::error::Code;

use crate::harness::{Server, connect, disk_dir};

const DAY: Duration = Duration::from_secs(86_400);

fn value(client: &mut Client, key: &[u8]) -> Option<Vec<u8>> {
    client.get(key).expect("the server answers").map(|found| found.value)
}

#[track_caller]
fn written(outcome: Outcome) -> Lsn {
    let Outcome::Written { version } = outcome else { panic!("{outcome:?}") };
    version
}

/// Moves an amount between two accounts, if nobody has touched them since they were read.
fn transfer(client: &mut Client, from: &[u8], to: &[u8], amount: u64) -> Outcome {
    let (a, b) = (client.get(from).unwrap().unwrap(), client.get(to).unwrap().unwrap());
    let number = |value: &[u8]| std::str::from_utf8(value).unwrap().parse::<u64>().unwrap();
    let mut batch = Batch::new();
    let (less, more) = (number(&a.value) - amount, number(&b.value) + amount);
    let (is_a, is_b) = (Condition::IfVersion(a.version), Condition::IfVersion(b.version));
    batch.put_with(from, less.to_string().as_bytes(), Expiry::Keep, is_a).unwrap();
    batch.put_with(to, more.to_string().as_bytes(), Expiry::Keep, is_b).unwrap();
    client.batch(&batch).unwrap()
}

#[test]
fn batches_hold_to_their_conditions_and_expiries() {
    for cores in ["1", "2"] {
        let dir = disk_dir();
        let arguments = ["--cores", cores, "--oversubscribe"];
        let mut server = Server::start(dir.path(), &arguments);
        let mut client = connect(&server);
        for tag in 0..16 {
            let key = |name: &str| format!("{{{tag}}}{name}").into_bytes();
            let (a, b, lease) = (key("a"), key("b"), key("lease"));
            let mut batch = Batch::new();
            batch.put_with(&a, b"100", Expiry::Never, Condition::IfAbsent).unwrap();
            batch.put_with(&b, b"100", Expiry::after(DAY), Condition::IfAbsent).unwrap();
            batch
                .put(&lease, b"mine")
                .unwrap()
                .expire(&lease, Deadline::after(DAY), Condition::None)
                .unwrap();
            let first = written(client.batch(&batch).unwrap());
            assert_eq!(client.get(&b).unwrap().unwrap().version, Lsn(first.0 + 1));
            // Twice it would be two accounts.
            let failed = Outcome::BatchFailed { item: 0, current: Some(first) };
            assert_eq!(client.batch(&batch).unwrap(), failed);
            written(transfer(&mut client, &a, &b, 30));
            assert_eq!(
                (value(&mut client, &a), value(&mut client, &b)),
                (Some(b"70".into()), Some(b"130".into()))
            );
            assert!(client.ttl(&a).unwrap().unwrap().lifetime.is_none());
            assert!(client.ttl(&b).unwrap().unwrap().lifetime.is_some(), "it is kept");
            // An item in the middle fails: nothing of what is before and behind it is done.
            let seen = client.get(&b).unwrap().unwrap().version;
            let mut batch = Batch::new();
            batch.put(&key("new"), b"1").unwrap().check(&lease, Condition::IfPresent).unwrap();
            batch.delete_with(&a, Condition::IfVersion(seen)).unwrap().delete(&b).unwrap();
            let current = client.get(&a).unwrap().map(|found| found.version);
            let mut pipeline = client.pipeline();
            pipeline.batch(&batch);
            let answer = pipeline.run().remove(0).unwrap();
            assert_eq!(answer, Response::Outcome(Outcome::BatchFailed { item: 2, current }));
            assert_eq!(
                (value(&mut client, &key("new")), value(&mut client, &b)),
                (None, Some(b"130".into()))
            );
            // And with a check that holds, all of it is.
            let mut batch = Batch::new();
            batch
                .check(&lease, Condition::IfPresent)
                .unwrap()
                .persist(&b, Condition::IfVersion(seen))
                .unwrap();
            batch.put(&key("new"), b"1").unwrap();
            let first = written(client.batch(&batch).unwrap());
            assert_eq!(
                client.get(&key("new")).unwrap().unwrap().version,
                Lsn(first.0 + 1),
                "checks count not"
            );
            assert!(client.ttl(&b).unwrap().unwrap().lifetime.is_none());
        }
        let mut checks = Batch::new();
        checks.check(b"k", Condition::IfAbsent).unwrap();
        let refused = client.batch(&checks).unwrap_err();
        assert_eq!(refused.refusal().map(|refusal| refusal.code), Some(Code::Malformed));
        server.kill();
        let server = Server::start(dir.path(), &arguments);
        let mut client = connect(&server);
        for tag in 0..16 {
            let key = |name: &str| format!("{{{tag}}}{name}").into_bytes();
            assert_eq!(value(&mut client, &key("a")), Some(b"70".into()));
            assert_eq!(value(&mut client, &key("new")), Some(b"1".into()));
            assert!(client.ttl(&key("lease")).unwrap().unwrap().lifetime.is_some());
            assert!(client.ttl(&key("b")).unwrap().unwrap().lifetime.is_none());
        }
        assert!(server.stop().0.success());
    }
}
