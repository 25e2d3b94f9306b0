use super::Redis;
use crate::protocol::resp::Proto;

#[test]
fn del_counts_a_key_once_and_exists_as_often_as_it_is_named() {
    let mut redis = Redis::new();
    redis.tells(&[("MSET a 1 b 2 c 3", "+OK"), ("EXISTS a a none b", ":3"), ("TOUCH a none", ":1")]);
    redis.writes(1, "DEL a a none", ":1");
    redis.writes(2, "UNLINK a b c", ":2");
    redis.writes(0, "DEL a", ":0");
}

#[test]
fn type_is_string_or_none() {
    let mut redis = Redis::new();
    redis.tells(&[("TYPE k", "+none"), ("SET k v", "+OK"), ("TYPE k", "+string")]);
}

#[test]
fn rename_takes_value_and_expiry_along() {
    let mut redis = Redis::new();
    redis.tells(&[("RENAME a b", "-ERR no such key"), ("RENAMENX a a", "-ERR no such key")]);
    redis.tells(&[("SETEX a 100 v", "+OK"), ("SET b w", "+OK")]);
    redis.writes(0, "RENAME a a", "+OK");
    redis.writes(0, "RENAMENX a a", ":0");
    redis.writes(0, "RENAMENX a b", ":0");
    redis.writes(2, "RENAME a b", "+OK");
    redis.tells(&[("EXISTS a", ":0"), ("GET b", "$1 v"), ("TTL b", ":100")]);
    redis.writes(2, "RENAMENX b a", ":1");
    redis.tells(&[("EXISTS b", ":0"), ("TTL a", ":100")]);
}

#[test]
fn copy_replaces_only_if_told_and_knows_one_database() {
    let mut redis = Redis::new();
    redis.tells(&[("COPY a b", ":0"), ("SETEX a 100 v", "+OK"), ("SET b w", "+OK")]);
    redis.writes(0, "COPY a b", ":0");
    redis.writes(1, "COPY a b DB 0 REPLACE", ":1");
    redis.tells(&[
        ("GET b", "$1 v"),
        ("TTL b", ":100"),
        ("COPY a a", "-ERR source and destination objects are the same"),
        ("COPY none none", "-ERR source and destination objects are the same"),
        ("COPY a c DB 1", "-ERR DB index is out of range"),
        ("COPY a c DB", "-ERR syntax error"),
        ("COPY a c DB x", "-ERR value is not an integer or out of range"),
        (
            "COPY a c DB 2147483648",
            "-ERR value is out of range, value must between -2147483648 and 2147483647",
        ),
        ("COPY a c FOO", "-ERR syntax error"),
    ]);
}

#[test]
fn object_tells_what_redis_would_hold() {
    let mut redis = Redis::new();
    redis.tells(&[
        ("OBJECT ENCODING k", "$-1"),
        ("SET k 9223372036854775807", "+OK"),
        ("OBJECT ENCODING k", "$3 int"),
        ("OBJECT REFCOUNT k", ":1"),
        ("SET k 9999", "+OK"),
        ("OBJECT refcount k", ":2147483647"),
        ("SET k 09999", "+OK"),
        ("OBJECT ENCODING k", "$6 embstr"),
        ("SET k 12345678901234567890123456789012345678901234", "+OK"),
        ("OBJECT ENCODING k", "$6 embstr"),
        ("APPEND k 5", ":45"),
        ("OBJECT ENCODING k", "$3 raw"),
        ("OBJECT IDLETIME k", ":0"),
    ]);
    assert!(redis.ask("OBJECT FREQ k").starts_with("-ERR An LFU maxmemory policy is not selected"));
    assert!(redis.ask("OBJECT HELP").starts_with("*11 +OBJECT "));
}

#[test]
fn memory_usage_is_more_than_key_and_value() {
    let mut redis = Redis::new();
    redis.proto = Proto::Resp3;
    redis.tells(&[
        ("MEMORY USAGE k", "_"),
        ("SET k v", "+OK"),
        ("MEMORY USAGE k SAMPLES 5", ":50"),
        ("MEMORY USAGE k SAMPLES -1", "-ERR syntax error"),
        ("MEMORY USAGE k SAMPLES", "-ERR syntax error"),
        ("MEMORY USAGE k FOO 1", "-ERR syntax error"),
    ]);
}
