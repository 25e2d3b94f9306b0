//! Keys that expire, as a client meets them: by times that are past, far off, or near enough to wait for.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use atlaskv::base::EXPIRY_MS_MAX;
use atlaskv::client::{Client, Condition, Deadline, Expiry, Options, Outcome, Response, SetOptions, Ttl};
use atlaskv::error::Code;

use crate::harness::{Server, connect, disk_dir, eventually};

const DAY: Duration = Duration::from_secs(86_400);

fn key(number: usize) -> Vec<u8> {
    format!("key-{number}").into_bytes()
}

fn with(expiry: Expiry) -> SetOptions {
    SetOptions { expiry, ..SetOptions::default() }
}

/// What is left; `None` is for ever.
fn left(client: &mut Client, key: &[u8]) -> Option<Duration> {
    let ttl = client.ttl(key).expect("the server answers").expect("the key is there");
    ttl.lifetime.map(|lifetime| Duration::from_millis(lifetime.remaining_ms))
}

fn expires_at(client: &mut Client, key: &[u8]) -> u64 {
    let ttl = client.ttl(key).expect("the server answers").expect("the key is there");
    ttl.lifetime.expect("it expires").expires_at_ms
}

#[test]
fn keys_expire_are_kept_and_are_persisted() {
    for cores in ["1", "2"] {
        let dir = disk_dir();
        let server = Server::start(dir.path(), &["--cores", cores, "--oversubscribe"]);
        let mut client = connect(&server);
        for number in 0..20 {
            let key = &key(number)[..];
            assert_eq!(client.ttl(key).unwrap(), None);
            assert!(!client.expire(key, Deadline::after(DAY)).unwrap() && !client.persist(key).unwrap());
            client.set_with(key, b"1", with(Expiry::after(DAY))).unwrap();
            let at = expires_at(&mut client, key);
            assert!(left(&mut client, key).unwrap() <= DAY && left(&mut client, key).unwrap() > DAY / 2);
            client.incr(key, 41).unwrap();
            client.set_with(key, b"43", with(Expiry::Keep)).unwrap();
            assert_eq!(expires_at(&mut client, key), at);
            let before = client.get(key).unwrap().unwrap();
            assert!(client.persist(key).unwrap());
            let after = client.get(key).unwrap().unwrap();
            assert_eq!((left(&mut client, key), &after.value[..]), (None, &b"43"[..]));
            assert!(after.version > before.version);
            // A lease: only who has it can make it longer.
            let stale = Options { condition: Condition::IfVersion(before.version), ..Options::default() };
            let current = Some(after.version);
            let outcome = client.expire_with(key, Deadline::after(DAY), stale).unwrap();
            assert_eq!(outcome, Outcome::ConditionFailed { current });
            let held = Options { condition: Condition::IfVersion(after.version), ..Options::default() };
            let outcome = client.expire_with(key, Deadline::after(DAY), held).unwrap();
            assert!(matches!(outcome, Outcome::Written { version } if version > after.version));
            // The past: gone at once.
            let past = UNIX_EPOCH + DAY;
            assert!(client.expire(key, Deadline::at(past)).unwrap());
            assert_eq!(client.get(key).unwrap(), None);
            client.set_with(key, b"1", with(Expiry::at(past))).unwrap();
            assert_eq!((client.get(key).unwrap(), client.ttl(key).unwrap()), (None, None));
            assert!(!client.delete(key).unwrap());
            let absent = SetOptions { condition: Condition::IfAbsent, ..with(Expiry::after(DAY)) };
            assert!(matches!(client.set_with(key, b"1", absent).unwrap(), Outcome::Written { .. }));
        }
        let keys: Vec<Vec<u8>> = (0..20).map(key).collect();
        assert!(client.mget(&keys).unwrap().iter().all(Option::is_some));
        let mut pipeline = client.pipeline();
        for key in &keys {
            pipeline.expire(key, Deadline::At(1)).ttl(key);
        }
        for pair in pipeline.run().chunks(2) {
            assert!(matches!(pair[0], Ok(Response::Outcome(Outcome::Written { .. }))), "{pair:?}");
            assert!(matches!(pair[1], Ok(Response::Ttl(None))), "{pair:?}");
        }
        assert!(client.mget(&keys).unwrap().iter().all(Option::is_none));
        assert!(server.stop().0.success());
    }
}

#[test]
fn time_passes_by_itself() {
    for cores in ["1", "2"] {
        let dir = disk_dir();
        let server = Server::start(dir.path(), &["--cores", cores, "--oversubscribe"]);
        let mut client = connect(&server);
        let begin = SystemTime::now();
        for number in 0..10 {
            client.set_with(&key(number), b"v", with(Expiry::after(Duration::from_millis(200)))).unwrap();
        }
        for number in 0..10 {
            eventually("the key expires", || client.get(&key(number)).unwrap().is_none());
            assert_eq!(client.ttl(&key(number)).unwrap(), None);
        }
        // Not before its time, unless somebody set the clock back meanwhile.
        assert!(begin.elapsed().is_err() || begin.elapsed().unwrap() >= Duration::from_millis(200));
    }
}

#[test]
fn expiries_survive_a_stop_and_a_kill() {
    let dir = disk_dir();
    let mut wanted = Vec::new();
    for (round, cores) in ["1", "2", "1"].into_iter().enumerate() {
        let mut server = Server::start(dir.path(), &["--cores", cores, "--oversubscribe"]);
        let mut client = connect(&server);
        for (number, at) in &wanted {
            let ttl: Ttl = client.ttl(&key(*number)).unwrap().expect("it is there");
            assert_eq!(ttl.lifetime.map(|lifetime| lifetime.expires_at_ms), *at, "key {number}");
        }
        for number in round * 20..round * 20 + 20 {
            let expiry =
                [Expiry::Never, Expiry::after(DAY), Expiry::Set(Deadline::At(4_000_000_000_000))][number % 3];
            client.set_with(&key(number), b"v", with(expiry)).unwrap();
            let ttl = client.ttl(&key(number)).unwrap().expect("it is there");
            wanted.push((number, ttl.lifetime.map(|lifetime| lifetime.expires_at_ms)));
        }
        if round == 0 { server.kill() } else { assert!(server.stop().0.success()) }
    }
}

#[test]
fn nonsense_is_refused_with_a_code_and_a_sentence() {
    let dir = disk_dir();
    let server = Server::start(dir.path(), &["--cores", "1"]);
    let mut client = connect(&server);
    client.set(b"k", b"v").unwrap();
    let in_nanoseconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
    for deadline in [
        Deadline::In(0),
        Deadline::At(0),
        Deadline::In(u64::MAX),
        Deadline::In(EXPIRY_MS_MAX),
        Deadline::At(EXPIRY_MS_MAX + 1),
        Deadline::At(in_nanoseconds),
    ] {
        let errors = [
            client.expire(b"k", deadline).unwrap_err(),
            client.set_with(b"k", b"w", with(Expiry::Set(deadline))).unwrap_err(),
        ];
        for error in errors {
            let refusal = error.refusal().unwrap_or_else(|| panic!("{deadline:?}: {error}"));
            assert_eq!(refusal.code, Code::InvalidExpiry, "{refusal}");
            assert!(refusal.message.contains("ms"), "{refusal}");
        }
    }
    assert_eq!(client.get(b"k").unwrap().unwrap().value, b"v");
    assert_eq!(left(&mut client, b"k"), None);
}
