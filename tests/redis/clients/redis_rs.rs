//! A tour of what redis-rs offers for strings and keys.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use redis::cluster::{ClusterClientBuilder, ClusterConnection, cluster_pipe};
use redis::{
    Client, Commands, Connection, ConnectionLike, CopyOptions, ErrorKind, ExistenceCheck, Expiry,
    IntegerReplyOrNoOp, ProtocolVersion, RedisError, ServerErrorKind, SetExpiry, SetOptions, cmd, pipe,
};

/// What a command is answered with, converted to what is expected of it.
macro_rules! expect {
    ($what:expr, $answer:expr, $wanted:expr) => {{
        let wanted = $wanted;
        let answer = $answer.map(|answer| same_type(&wanted, answer));
        let answer = answer.unwrap_or_else(|error: RedisError| panic!("redis-rs: {}: {error}", $what));
        assert_eq!(answer, wanted, "redis-rs: {}", $what);
    }};
}

/// Makes the compiler ask for the type that is expected.
fn same_type<T>(_: &T, answer: T) -> T {
    answer
}

fn some(text: &str) -> Option<String> {
    Some(text.to_string())
}

/// The tour of a plain server, with both protocols.
pub fn single(address: SocketAddr) {
    for protocol in [2, 3] {
        let url = format!("redis://{address}/0?protocol=resp{protocol}");
        let client = Client::open(url).expect("a URL");
        let mut r = client.get_connection().expect("a connection");
        expect!("FLUSHALL", cmd("FLUSHALL").query(&mut r), "OK".to_string());
        strings(&mut r);
        keys(&mut r);
        server(&mut r);
        transactions(&client, &mut r);
        scans(&mut r);
    }
}

/// The tour of a cluster, from one of its nodes.
pub fn cluster(address: SocketAddr) {
    for protocol in [ProtocolVersion::RESP2, ProtocolVersion::RESP3] {
        let client = ClusterClientBuilder::new([format!("redis://{address}")]).use_protocol(protocol).build();
        let mut r = client.and_then(|client| client.get_connection()).expect("a connection to a cluster");
        // Of a cluster, each node is asked.
        expect!("FLUSHALL", cmd("FLUSHALL").query(&mut r), "OK".to_string());
        strings(&mut r);
        keys(&mut r);
        over_slots(&mut r);
    }
}

fn strings<C: ConnectionLike>(r: &mut C) {
    let options = SetOptions::default();
    expect!("SET", r.set("k", "v"), "OK".to_string());
    expect!("GET", r.get("k"), some("v"));
    expect!("GET of nothing", r.get("nothing"), None::<String>);
    let nx = options.clone().conditional_set(ExistenceCheck::NX);
    expect!("SET NX", r.set_options("k", "w", nx), None::<String>);
    let xx = options.clone().conditional_set(ExistenceCheck::XX).get(true);
    expect!("SET XX GET", r.set_options("k", "w", xx), some("v"));
    let ex = options.clone().with_expiration(SetExpiry::EX(1000));
    expect!("SET EX", r.set_options("k", "v", ex), some("OK"));
    let keep = options.clone().with_expiration(SetExpiry::KEEPTTL);
    expect!("SET KEEPTTL", r.set_options("k", "v", keep), some("OK"));
    let exat = options.with_expiration(SetExpiry::EXAT(4_102_444_800));
    expect!("SET EXAT", r.set_options("k", "v", exat), some("OK"));
    expect!("EXPIRETIME", r.expire_time("k"), 4_102_444_800i64);
    expect!("SETEX", r.set_ex("k", "v", 1000), "OK".to_string());
    expect!("PSETEX", r.pset_ex("k", "v", 1_000_000), "OK".to_string());
    expect!("SETNX", r.set_nx("k", "v"), false);
    expect!("GETSET", r.getset("k", "w"), some("v"));
    expect!("GETEX", r.get_ex("k", Expiry::PERSIST), some("w"));
    expect!("GETDEL", r.get_del("k"), some("w"));
    let bytes: Vec<u8> = (0..=255).collect();
    expect!("SET of bytes", r.set(&b"\0\xff\r\n"[..], &bytes[..]), "OK".to_string());
    expect!("GET of bytes", r.get(&b"\0\xff\r\n"[..]), bytes);
    let large = vec![b'x'; 1_000_000];
    expect!("SET of much", r.set("large", &large[..]), "OK".to_string());
    let got: Vec<u8> = r.get("large").expect("GET of much");
    assert!(got == large, "redis-rs: GET of much");
    expect!("MSET", r.mset(&[("{t}a", "1"), ("{t}b", "2")]), "OK".to_string());
    expect!("MGET", r.mget(&["{t}a", "{t}c"]), vec![some("1"), None]);
    expect!("MSETNX", r.mset_nx(&[("{t}b", "3"), ("{t}d", "4")]), false);
    expect!("APPEND", r.append("{t}a", "23"), 3);
    expect!("STRLEN", r.strlen("{t}a"), 3);
    expect!("GETRANGE", r.getrange("{t}a", 1, -1), "23".to_string());
    expect!("SETRANGE", r.setrange("{t}a", 4, "x"), 5);
    expect!("INCR", r.incr("n", 42), 42);
    expect!("DECR", r.decr("n", 41), 1);
    expect!("INCRBYFLOAT", r.incr("n", 0.5), "1.5".to_string());
    expect!("MSET", r.mset(&[("{t}x", "ohmytext"), ("{t}y", "mynewtext")]), "OK".to_string());
    expect!("LCS", cmd("LCS").arg(&["{t}x", "{t}y"]).query(r), "mytext".to_string());
    expect!("SETBIT", r.setbit("bits", 7, true), false);
    expect!("GETBIT", r.getbit("bits", 7), true);
    expect!("BITCOUNT", r.bitcount("bits"), 1);
    expect!("BITCOUNT of a range", r.bitcount_range("bits", 0, 0), 1);
    expect!("DEL", r.del(&["{t}x", "{t}y", "{t}nothing"]), 2);
    for key in ["n", "bits"] {
        expect!("DEL", r.del(key), 1);
    }
}

fn keys<C: ConnectionLike>(r: &mut C) {
    expect!("SET", r.set("{t}k", "v"), "OK".to_string());
    expect!("EXISTS", r.exists("{t}k"), true);
    expect!("TYPE", r.key_type("{t}k"), "string".to_string());
    expect!("TOUCH", cmd("TOUCH").arg("{t}k").query(r), 1);
    expect!("EXPIRE", r.expire("{t}k", 1000), true);
    expect!("EXPIRE NX", cmd("EXPIRE").arg("{t}k").arg(1).arg("NX").query(r), false);
    expect!("PEXPIRE", r.pexpire("{t}k", 1_000_000), true);
    let left: IntegerReplyOrNoOp = r.pttl("{t}k").expect("PTTL");
    assert!(
        matches!(left, IntegerReplyOrNoOp::IntegerReply(900_001..=1_000_000)),
        "redis-rs: PTTL: {left:?}"
    );
    expect!("EXPIREAT", r.expire_at("{t}k", 4_102_444_800), true);
    expect!("PEXPIREAT", r.pexpire_at("{t}k", 4_102_444_800_123), true);
    expect!("PEXPIRETIME", r.pexpire_time("{t}k"), 4_102_444_800_123i64);
    expect!("PERSIST", r.persist("{t}k"), true);
    expect!("TTL", r.ttl("{t}k"), -1);
    expect!("COPY", r.copy("{t}k", "{t}copy", CopyOptions::<&str>::default()), true);
    expect!("COPY REPLACE", r.copy("{t}k", "{t}copy", CopyOptions::<&str>::default().replace(true)), true);
    expect!("RENAME", r.rename("{t}copy", "{t}named"), "OK".to_string());
    expect!("RENAMENX", r.rename_nx("{t}named", "{t}k"), false);
    let error = r.rename::<_, _, ()>("{t}nothing", "{t}k").expect_err("RENAME of nothing");
    assert!(error.to_string().contains("no such key"), "redis-rs: RENAME of nothing: {error}");
    expect!("UNLINK", r.unlink("{t}named"), 1);
    expect!("OBJECT ENCODING", r.object_encoding("{t}k"), some("embstr"));
    expect!("OBJECT REFCOUNT", r.object_refcount("{t}k"), Some(1));
}

fn server(r: &mut Connection) {
    expect!("PING", r.ping(), "PONG".to_string());
    expect!("ECHO", cmd("ECHO").arg("hello").query(r), "hello".to_string());
    expect!("CLIENT SETNAME", r.client_setname("tour"), "OK".to_string());
    expect!("CLIENT GETNAME", r.client_getname(), some("tour"));
    let id: i64 = r.client_id().expect("CLIENT ID");
    assert!(id > 0, "redis-rs: CLIENT ID {id}");
    let info: redis::InfoDict = cmd("INFO").query(r).expect("INFO");
    expect!("INFO", Ok(info.get::<String>("loading")), some("0"));
    let error = cmd("NOTHING").exec(r).expect_err("an unknown command");
    assert_eq!(error.kind(), ErrorKind::Server(ServerErrorKind::ResponseError), "redis-rs: {error}");
    assert!(r.is_open(), "redis-rs: after an error");
}

fn transactions(client: &Client, r: &mut Connection) {
    let mut pipeline = pipe();
    pipeline.set("one", 1).ignore().get("one").mget(&["one", "two"]);
    expect!("a pipeline", pipeline.query(r), (1, vec![Some(1), None]));
    expect!("DEL", cmd("DEL").arg(&["{t}n", "{t}m"]).exec(r), ());
    let mut transaction = pipe();
    transaction.atomic().incr("{t}n", 1).append("{t}m", "x").get("{t}n");
    expect!("MULTI", transaction.query(r), (1, 1, "1".to_string()));
    // The first attempt is disturbed, and so is made again.
    let mut other = client.get_connection().expect("a second connection");
    let mut attempts = 0;
    let answer = redis::transaction(r, &["{t}n"], |r, pipe| {
        attempts += 1;
        let before: i64 = r.get("{t}n")?;
        if attempts == 1 {
            other.set::<_, _, ()>("{t}n", 7)?;
        }
        pipe.set("{t}n", before + 1).ignore().get("{t}n").query(r)
    });
    expect!("WATCH", answer, (8,));
    assert_eq!(attempts, 2, "redis-rs: WATCH notices a change");
    let mut long = pipe();
    (0..3000).for_each(|number| {
        long.set(format!("p:{number}"), number).ignore();
    });
    (0..3000).for_each(|number| {
        long.get(format!("p:{number}"));
    });
    expect!("a long pipeline", long.query(r), (0..3000).collect::<Vec<i64>>());
}

fn scans(r: &mut Connection) {
    let names: BTreeSet<String> = (0..1000).map(|number| format!("key:{number}")).collect();
    let pairs: Vec<_> = names.iter().map(|name| (name, "v")).collect();
    expect!("FLUSHDB", cmd("FLUSHDB").query(r), "OK".to_string());
    expect!("MSET over slots", r.mset(&pairs), "OK".to_string());
    let found = r.scan_match::<_, String>("key:*").and_then(|all| all.collect::<Result<BTreeSet<_>, _>>());
    expect!("SCAN", found, names.clone());
    expect!("KEYS", r.keys("key:99?").map(|keys: Vec<String>| keys.len()), 10);
    expect!("DBSIZE", cmd("DBSIZE").query(r), 1000);
    let random: String = cmd("RANDOMKEY").query(r).expect("RANDOMKEY");
    assert!(names.contains(&random), "redis-rs: RANDOMKEY {random}");
    expect!("DEL over slots", r.del(names), 1000);
}

fn over_slots(r: &mut ClusterConnection) {
    let numbers = 0..2000;
    for number in numbers.clone() {
        expect!("SET", r.set(format!("key:{number}"), number), "OK".to_string());
    }
    let failed = numbers.clone().try_for_each(|number| match r.get::<_, i64>(format!("key:{number}")) {
        Ok(got) if got == number => ControlFlow::Continue(()),
        other => ControlFlow::Break((number, other)),
    });
    assert!(failed.is_continue(), "redis-rs: every key: {failed:?}");
    let mut long = cluster_pipe();
    numbers.clone().for_each(|number| {
        long.get(format!("key:{number}"));
    });
    expect!("a pipeline over nodes", long.query(r), numbers.collect::<Vec<i64>>());
    let names = ["key:1", "key:2", "key:3"];
    expect!("MGET over slots", r.mget(&names), vec![1, 2, 3]);
    for number in 0..300 {
        let [one, other, none] = ["one", "other", "none"].map(|name| format!("{{tag{number}}}{name}"));
        expect!("MSET of a tag", r.mset(&[(&one, number), (&other, -number)]), "OK".to_string());
        expect!("MGET of a tag", r.mget(&[&one, &none, &other]), vec![Some(number), None, Some(-number)]);
        let mut pipeline = cluster_pipe();
        pipeline.incr(&one, 1).del(&[&one, &other]);
        expect!("a pipeline of a tag", pipeline.query(r), (number + 1, 2));
    }
    let error = cmd("MSETNX").arg(&["{a}1", "1", "{b}1", "2"]).exec(r).expect_err("keys of several slots");
    assert!(error.to_string().contains("slot"), "redis-rs: keys of several slots: {error}");
    let slot = cmd("CLUSTER").arg("KEYSLOT").arg("foo").query(r);
    expect!("CLUSTER KEYSLOT", slot, 12182);
}

/// Counts on a thousand keys while slots move, until there is an `end`. Says when it has begun.
pub fn moving(address: SocketAddr, begun: &Sender<()>, end: &AtomicBool) {
    let client = ClusterClientBuilder::new([format!("redis://{address}")]).build();
    let mut r = client.and_then(|client| client.get_connection()).expect("a connection to a cluster");
    let mut counts = vec![0i64; 1000];
    let key = |number: usize| format!("move:{number}");
    for number in 0..counts.len() {
        expect!("SET", r.set(key(number), 0), "OK".to_string());
    }
    begun.send(()).expect("somebody waits for it");
    while !end.load(Ordering::Relaxed) {
        let (number, other) = (fastrand::usize(..counts.len()), fastrand::usize(..counts.len()));
        counts[number] += 1;
        expect!("INCR", r.incr(key(number), 1), counts[number]);
        expect!("GET", r.get(key(other)), counts[other]);
    }
    for (number, count) in counts.into_iter().enumerate() {
        expect!("GET at the end", r.get(key(number)), count);
    }
}
