use super::{NOW_MS, Redis};
use crate::base::EXPIRY_MS_MAX;

#[test]
fn the_four_of_expire_and_the_four_of_ttl_agree() {
    let mut redis = Redis::new();
    redis.tells(&[
        ("EXPIRE k 100", ":0"),
        ("TTL k", ":-2"),
        ("PEXPIRETIME k", ":-2"),
        ("SET k v", "+OK"),
        ("PTTL k", ":-1"),
        ("EXPIRETIME k", ":-1"),
        ("EXPIRE k 100", ":1"),
        ("PTTL k", ":100000"),
        ("PEXPIRE k 1500", ":1"),
        ("TTL k", ":2"),
        ("PTTL k", ":1500"),
        ("PEXPIRETIME k", ":1600000001500"),
        ("EXPIRETIME k", ":1600000002"),
        ("EXPIREAT k 1600000100", ":1"),
        ("TTL k", ":100"),
        ("PEXPIREAT k 1600000001499", ":1"),
        ("TTL k", ":1"),
    ]);
}

#[test]
fn an_expiry_that_is_past_removes_the_key() {
    for command in
        ["EXPIRE k 0", "EXPIRE k -1", "PEXPIRE k -9223372036854775808", "EXPIREAT k 1", "PEXPIREAT k 0"]
    {
        let mut redis = Redis::new();
        redis.writes(1, "SET k v", "+OK");
        redis.writes(1, command, ":1");
        redis.writes(0, "EXISTS k", ":0");
    }
}

#[test]
fn conditions_of_expire_take_no_expiry_for_the_latest() {
    let mut redis = Redis::new();
    redis.writes(1, "SET k v", "+OK");
    redis.writes(0, "EXPIRE k 100 XX", ":0");
    redis.writes(0, "EXPIRE k 100 GT", ":0");
    redis.writes(1, "EXPIRE k 100 LT", ":1");
    redis.writes(0, "EXPIRE k 200 NX", ":0");
    redis.writes(0, "EXPIRE k 200 LT", ":0");
    redis.writes(0, "EXPIRE k 100 LT", ":0");
    redis.writes(0, "EXPIRE k 100 GT", ":0");
    redis.writes(0, "EXPIRE k -1 GT XX", ":0");
    redis.writes(1, "EXPIRE k 200 GT", ":1");
    redis.writes(1, "EXPIRE k 150 lt xx", ":1");
    redis.writes(1, "PERSIST k", ":1");
    redis.writes(0, "PERSIST k", ":0");
    redis.writes(0, "EXPIRE k 100 LT XX", ":0");
    redis.writes(1, "EXPIRE k 100 NX", ":1");
    redis.writes(1, "EXPIRE k -1 LT", ":1");
    redis.writes(0, "PERSIST k", ":0");
}

#[test]
fn times_beyond_64_bits_are_refused() {
    let mut redis = Redis::new();
    redis.tells(&[
        ("EXPIRE k 9223372036854776", "-ERR invalid expire time in 'expire' command"),
        ("EXPIRE k -9223372036854776", "-ERR invalid expire time in 'expire' command"),
        ("EXPIREAT k 9223372036854776", "-ERR invalid expire time in 'expireat' command"),
        ("PEXPIRE k 9223372036854775807", "-ERR invalid expire time in 'pexpire' command"),
        ("PEXPIREAT k 9223372036854775807", ":0"),
        ("PEXPIREAT k 9223372036854775808", "-ERR value is not an integer or out of range"),
        ("SET k v EX 9223372036854775", "-ERR invalid expire time in 'set' command"),
        ("SET k v PX 0", "-ERR invalid expire time in 'set' command"),
        ("SET k v PXAT -5", "-ERR invalid expire time in 'set' command"),
        ("SETEX k 0 v", "-ERR invalid expire time in 'setex' command"),
        ("PSETEX k 9223372036854775807 v", "-ERR invalid expire time in 'psetex' command"),
    ]);
}

#[test]
fn times_beyond_the_stores_become_its_latest() {
    let mut redis = Redis::new();
    let latest = format!(":{EXPIRY_MS_MAX}");
    for command in [
        "SET k v PXAT 9223372036854775807",
        "GETEX k EX 9000000000000",
        "PEXPIREAT k 9223372036854775807",
        "EXPIRE k 9000000000000 NX",
    ] {
        redis.tells(&[("SET k v", "+OK")]);
        redis.ask(command);
        assert_eq!(redis.ask("PEXPIRETIME k"), latest, "{command}");
    }
    redis.space.now_ms = NOW_MS + 1;
    redis.tells(&[("EXISTS k", ":1")]);
}
