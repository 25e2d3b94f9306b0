mod fake;
mod overload;

use std::io::Write;
use std::net::{Shutdown, TcpListener};
use std::sync::atomic::Ordering;
use std::time::Duration;

use self::fake::{Fake, Fault};
use super::*;
use crate::base::Lsn;
use crate::error::Code;
use crate::protocol::binary::TOO_MANY_CONNECTIONS;

fn code(error: Error) -> Code {
    error.refusal().unwrap_or_else(|| panic!("not a refusal: {error}")).code
}

#[test]
fn every_operation_does_what_it_says() {
    let fake = Fake::start(2);
    let mut client = fake.client();
    assert_eq!(client.ping(b"\0\xff").unwrap(), b"\0\xff");
    assert_eq!(client.get(b"k").unwrap(), None);
    let first = client.set(b"k", b"v").unwrap();
    assert_eq!(client.get(b"k").unwrap(), Some(Versioned { value: b"v".to_vec(), version: first }));
    let with = |condition| Options { condition, durability: Durability::Always };
    assert_eq!(
        client.set_with(b"k", b"w", with(Condition::IfAbsent)).unwrap(),
        Outcome::ConditionFailed { current: Some(first) }
    );
    assert_eq!(
        client.set_with(b"other", b"w", with(Condition::IfPresent)).unwrap(),
        Outcome::ConditionFailed { current: None }
    );
    let second = client.set_with(b"k", b"w", with(Condition::IfVersion(first))).unwrap();
    assert!(matches!(second, Outcome::Written { version } if version > first));
    assert_eq!(client.incr(b"n", 5).unwrap().value, 5);
    assert_eq!(client.incr(b"n", -7).unwrap().value, -2);
    assert_eq!(code(client.incr(b"k", 1).unwrap_err()), Code::NotAnInteger);
    assert!(client.delete(b"k").unwrap());
    assert!(!client.delete(b"k").unwrap());
    assert_eq!(client.stats("wal").unwrap(), "section=wal\n");
    let mut batch = Batch::new();
    batch.put(b"{t}a", b"1").unwrap().put(b"{t}b", b"2").unwrap().delete(b"{t}a").unwrap();
    client.batch(&batch).unwrap();
    assert_eq!(client.get(b"{t}a").unwrap(), None);
    assert_eq!(client.get(b"{t}b").unwrap().unwrap().value, b"2");
}

#[test]
fn keys_are_given_a_time_to_live_in_every_way() {
    let fake = Fake::start(2);
    let mut client = fake.client();
    let left = |client: &mut Client| {
        let ttl = client.ttl(b"k").unwrap().expect("it is there");
        ttl.lifetime.map(|lifetime| (lifetime.remaining_ms, lifetime.expires_at_ms))
    };
    let with = |expiry| SetOptions { expiry, ..SetOptions::default() };
    assert_eq!(client.ttl(b"k").unwrap(), None);
    assert!(!client.expire(b"k", Deadline::In(5)).unwrap() && !client.persist(b"k").unwrap());
    client.set(b"k", b"v").unwrap();
    assert_eq!(left(&mut client), None);
    client.set_with(b"k", b"v", with(Expiry::after(Duration::from_secs(2)))).unwrap();
    assert_eq!(left(&mut client), Some((2_000, 1_002_000)));
    client.set_with(b"k", b"w", with(Expiry::Keep)).unwrap();
    assert_eq!(left(&mut client), Some((2_000, 1_002_000)));
    let at = std::time::UNIX_EPOCH + Duration::from_secs(1_003);
    client.set_with(b"k", b"w", with(Expiry::at(at))).unwrap();
    assert_eq!(left(&mut client), Some((3_000, 1_003_000)));
    assert!(client.expire(b"k", Deadline::after(Duration::from_millis(7))).unwrap());
    assert_eq!(left(&mut client), Some((7, 1_000_007)));
    assert!(client.persist(b"k").unwrap());
    assert_eq!(left(&mut client), None);
    let version = client.get(b"k").unwrap().unwrap().version;
    let never = Options { condition: Condition::IfVersion(Lsn(version.0 + 1)), ..Options::default() };
    assert_eq!(
        client.expire_with(b"k", Deadline::In(5), never).unwrap(),
        Outcome::ConditionFailed { current: Some(version) }
    );
    let mut pipeline = client.pipeline();
    pipeline.expire(b"k", Deadline::At(2_000_000)).ttl(b"k").persist(b"k").ttl(b"k").ttl(b"absent");
    let responses: Vec<_> = pipeline.run().into_iter().map(Result::unwrap).collect();
    assert!(matches!(responses[1], Response::Ttl(Some(Ttl { lifetime: Some(_), .. }))), "{responses:?}");
    assert!(matches!(responses[3], Response::Ttl(Some(Ttl { lifetime: None, .. }))), "{responses:?}");
    assert_eq!(responses[4], Response::Ttl(None));
}

#[test]
fn what_the_server_would_refuse_is_not_sent() {
    let fake = Fake::start(1);
    let mut client = fake.client();
    assert_eq!(code(client.get(b"").unwrap_err()), Code::InvalidKey);
    assert_eq!(code(client.set(&[0; 65_536], b"").unwrap_err()), Code::InvalidKey);
    assert_eq!(code(client.set(b"k", &vec![0; (1 << 20) + 1]).unwrap_err()), Code::ValueTooLarge);
    assert_eq!(code(client.batch(&Batch::new()).unwrap_err()), Code::Malformed);
    let mut batch = Batch::new();
    assert_eq!(code(batch.put(b"a", b"").unwrap().put(b"b", b"").unwrap_err()), Code::CrossSlot);
    batch.put(b"a", &vec![0; 1 << 20]).unwrap();
    assert_eq!(code(client.batch(&batch).unwrap_err()), Code::BatchTooLarge);
    assert_eq!(client.mget::<&[u8]>(&[]).unwrap(), []);
    assert!(fake.state.seen.lock().unwrap().is_empty());
    client.set(b"k", &vec![7; 1 << 20]).unwrap();
    assert_eq!(client.get(b"k").unwrap().unwrap().value.len(), 1 << 20);
}

#[test]
fn keys_go_to_their_owners_and_lists_come_back_in_order() {
    let fake = Fake::start(3);
    let mut client = fake.client();
    let keys: Vec<String> = (0..100).map(|i| format!("key{i}")).collect();
    for key in keys.iter().step_by(2) {
        client.set(key.as_bytes(), key.as_bytes()).unwrap();
    }
    let found = client.mget(&keys).unwrap();
    for (i, (key, found)) in keys.iter().zip(found).enumerate() {
        assert_eq!(found.map(|found| found.value), (i % 2 == 0).then(|| key.clone().into_bytes()), "{key}");
    }
    assert_eq!(fake.connections(), 3);
    let hello = fake.state.hello(0);
    for (shard, slot) in fake.state.seen.lock().unwrap().iter() {
        assert_eq!(hello.shard_of(*slot), Some(*shard));
    }
}

#[test]
fn a_client_that_is_not_shard_aware_keeps_one_connection() {
    let fake = Fake::start(3);
    let mut client = Client::connect(Config { is_shard_aware: false, ..fake.config() }).unwrap();
    for i in 0..50u8 {
        client.set(&[i], b"v").unwrap();
    }
    assert_eq!(client.mget(&[[1], [2], [99]]).unwrap().iter().flatten().count(), 2);
    assert_eq!(fake.connections(), 1);
}

#[test]
fn a_newer_epoch_brings_the_newer_table() {
    let fake = Fake::start(1);
    let mut client = fake.client();
    client.set(b"k", b"v").unwrap();
    fake.state.shard_count.store(4, Ordering::SeqCst);
    fake.state.epoch.store(2 << 32 | 2, Ordering::SeqCst);
    client.get(b"k").unwrap();
    assert_eq!(client.topology().shard_count, 1, "not asked for before the next request");
    client.get(b"k").unwrap();
    assert_eq!((client.topology().shard_count, client.topology().epoch), (4, 2 << 32 | 2));
    (0..50).for_each(|i| assert!(client.set(format!("key{i}").as_bytes(), b"v").is_ok()));
    assert_eq!(fake.connections(), 4);

    fake.state.shard_count.store(1, Ordering::SeqCst);
    fake.state.epoch.store(3, Ordering::SeqCst);
    (0..50).for_each(|i| assert!(client.get(format!("key{i}").as_bytes()).unwrap().is_some()));
    assert_eq!(client.topology().shard_count, 1);
}

#[test]
fn a_shard_that_is_gone_is_not_insisted_on() {
    let fake = Fake::start(4);
    let mut client = fake.client();
    fake.state.shard_count.store(1, Ordering::SeqCst);
    (0..50).for_each(|i| assert!(client.set(format!("key{i}").as_bytes(), b"v").is_ok()));
    assert_eq!(client.topology().shard_count, 1);
}

#[test]
fn reads_are_repeated_and_writes_are_not() {
    let fake = Fake::start(1);
    let mut client = fake.client();
    client.set(b"k", b"1").unwrap();
    fake.fail_next(Fault::CloseBefore);
    fake.fail_next(Fault::CloseAfter);
    assert_eq!(client.get(b"k").unwrap().unwrap().value, b"1");

    for (fault, is_applied) in [(Fault::CloseBefore, false), (Fault::CloseAfter, true)] {
        fake.fail_next(fault);
        let error = client.incr(b"k", 1).unwrap_err();
        assert!(matches!(&error, Error::UnknownOutcome { .. }), "{error}");
        assert!(error.may_be_applied());
        let value = fake.store().values[&b"k"[..]].1.clone();
        assert_eq!(value == b"2", is_applied);
    }
    assert_eq!(client.get(b"k").unwrap().unwrap().value, b"2", "the client goes on");
}

#[test]
fn a_server_that_refuses_the_connection_says_why() {
    let fake = Fake::start(1);
    let mut client = fake.client();
    fake.fail_next(Fault::RefuseConnection);
    assert_eq!(code(client.get(b"k").unwrap_err()), Code::ShuttingDown);
    fake.fail_next(Fault::RefuseConnection);
    let error = client.set(b"k", b"v").unwrap_err();
    assert!(matches!(&error, Error::UnknownOutcome { cause } if cause.refusal().is_some()), "{error}");
    client.set(b"k", b"v").unwrap();
}

#[test]
fn a_server_with_too_many_connections_says_so_in_text() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (line, rest) = TOO_MANY_CONNECTIONS.split_at(5);
        for stream in listener.incoming().take(2) {
            let mut stream = stream.unwrap();
            stream.write_all(line).unwrap();
            stream.write_all(rest).unwrap();
            // Closed with bytes unread it would be reset, and the text lost if the client were slow to read.
            stream.shutdown(Shutdown::Write).unwrap();
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
    });
    let refused = Client::connect(Config::new(&address)).map(drop).unwrap_err();
    assert!(refused.to_string().contains("as many connections as it takes"), "{refused}");
    assert_eq!(code(refused), Code::TooManyConnections);
    let refused = Connection::open(&Config::new(&address), Some(1)).map(drop).unwrap_err();
    assert!(!refused.may_be_applied());
    assert_eq!(code(refused), Code::TooManyConnections);
}

#[test]
fn silence_is_a_timeout_and_takes_the_connection_with_it() {
    let fake = Fake::start(1);
    let mut client = fake.client();
    fake.fail_next(Fault::Silence);
    let error = client.get(b"k").unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }) && !error.may_be_applied(), "{error}");
    fake.fail_next(Fault::Silence);
    assert!(client.set(b"k", b"v").unwrap_err().may_be_applied());
    assert_eq!(client.get(b"k").unwrap(), None);
    assert_eq!(fake.connections(), 3);
}

#[test]
fn answers_that_make_no_sense_are_errors() {
    let fake = Fake::start(1);
    let mut client = fake.client();
    for fault in [Fault::WrongId, Fault::Noise] {
        fake.fail_next(fault);
        let error = client.get(b"k").unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
    }
    fake.fail_next(Fault::WrongId);
    let mut pipeline = client.pipeline();
    pipeline.get(b"k");
    assert!(matches!(pipeline.run()[..], [Err(Error::Protocol { .. })]));
    client.set(b"k", b"v").unwrap();
}

#[test]
fn a_pipeline_answers_in_its_own_order_beyond_any_window() {
    let fake = Fake::start(3);
    let mut client = fake.client();
    // 3000 requests of about 150 bytes through windows of 4096 bytes, replies in disorder.
    let mut pipeline = client.pipeline();
    for i in 0..1000 {
        let key = format!("key{i}");
        pipeline.set(key.as_bytes(), &[i as u8; 100]).get(key.as_bytes()).incr(b"n", 1);
    }
    pipeline.get(b"").ping(b"end").mget(&["key1", "absent"]).stats("");
    pipeline.set(b"large", &vec![1; 1 << 20]);
    let mut responses = pipeline.run().into_iter();
    for i in 0..1000 {
        assert!(matches!(responses.next(), Some(Ok(Response::Outcome(Outcome::Written { .. })))));
        let wanted = vec![i as u8; 100];
        assert!(matches!(responses.next(), Some(Ok(Response::Value(Some(found)))) if found.value == wanted));
        assert!(matches!(responses.next(), Some(Ok(Response::Counter(c))) if c.value == i + 1));
    }
    assert_eq!(code(responses.next().unwrap().unwrap_err()), Code::InvalidKey);
    assert_eq!(responses.next().unwrap().unwrap(), Response::Pong(b"end".to_vec()));
    assert!(matches!(responses.next(), Some(Ok(Response::Values(v))) if v[0].is_some() && v[1].is_none()));
    assert!(matches!(responses.next(), Some(Ok(Response::Stats(_)))));
    assert!(responses.next().unwrap().is_ok());
    assert!(responses.next().is_none());
    assert!(client.pipeline().run().is_empty());
}

#[test]
fn a_broken_pipeline_repeats_reads_and_owns_up_about_writes() {
    let fake = Fake::start(1);
    let mut client = fake.client();
    fake.fail_next(Fault::CloseAfter);
    let mut pipeline = client.pipeline();
    pipeline.set(b"a", b"1").get(b"a");
    // More than the window: these are not on their way when the connection breaks.
    for _ in 0..100 {
        pipeline.set(b"b", &[0; 100]);
    }
    let results = pipeline.run();
    assert!(results[0].as_ref().unwrap_err().may_be_applied());
    assert!(matches!(&results[1], Ok(Response::Value(Some(found))) if found.value == b"1"));
    let last = results[101].as_ref().unwrap_err();
    assert!(matches!(last, Error::Disconnected { .. }) && !last.may_be_applied(), "{last}");
}

#[test]
fn a_server_that_is_not_there_is_told_after_a_few_attempts() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let config = Config { backoff_min: Duration::from_millis(1), ..Config::new(&address) };
    let error = Client::connect(config).err().unwrap();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
    assert!(error.to_string().starts_with(&format!("cannot connect to {address}: ")), "{error}");
}

#[test]
fn clients_may_move_between_threads_and_errors_be_shared() {
    fn is_send<T: Send>() {}
    fn is_send_and_sync<T: Send + Sync>() {}
    is_send::<Client>();
    is_send_and_sync::<Error>();
}

#[test]
fn a_scan_gives_each_key_once_whatever_happens_to_its_connection() {
    let fake = Fake::start(1);
    let mut client = fake.client();
    let keys: Vec<Vec<u8>> = (0..20u8).map(|n| vec![b'k', n]).collect();
    for key in &keys {
        client.set(key, key).unwrap();
    }
    for faults in [
        vec![],
        vec![Fault::CloseBefore],
        vec![Fault::CloseAfter],
        vec![Fault::CloseAfter, Fault::CloseBefore],
    ] {
        let is_repeated = faults.iter().any(|fault| matches!(fault, Fault::CloseAfter));
        fake.state.faults.lock().unwrap().extend(faults);
        let mut scan = client.scan(KeyRange::all());
        let found: Vec<Vec<u8>> = (&mut scan).map(|entry| entry.unwrap().key).collect();
        assert_eq!(found, keys);
        // The server had given the first page, and knows nothing of it any more.
        assert!(!scan.was_renewed() || is_repeated);
    }
    let some: Vec<_> =
        client.scan(KeyRange::from(&keys[3])).limit(5).map(|entry| entry.unwrap().value).collect();
    assert_eq!(some, keys[3..8]);
    assert_eq!(client.scan(KeyRange::all()).limit(0).count(), 0);
    fake.state.faults.lock().unwrap().push_back(Fault::Noise);
    let mut scan = client.scan(KeyRange::all());
    assert!(scan.next().unwrap().is_err() && scan.next().is_none());
}
