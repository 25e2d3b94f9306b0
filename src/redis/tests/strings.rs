use super::{NOW_MS, Redis};
use crate::protocol::resp::Proto;

#[test]
fn a_value_is_read_as_it_was_set() {
    let mut redis = Redis::new();
    redis.tells(&[
        ("GET k", "$-1"),
        ("SET k v", "+OK"),
        ("get k", "$1 v"),
        ("SET '' ''", "+OK"),
        ("GET ''", "$0 "),
        ("STRLEN k", ":1"),
        ("STRLEN none", ":0"),
        ("MGET k none ''", "*3 $1 v $-1 $0 "),
    ]);
    redis.proto = Proto::Resp3;
    redis.tells(&[("GET none", "_"), ("MGET k none", "*2 $1 v _")]);
    let binary = b"\0\r\n\xff";
    assert_eq!(redis.ask_bytes(&[b"SET", binary, binary]), "+OK");
    assert_eq!(redis.reply_to(&[b"GET", binary]), b"$4\r\n\0\r\n\xff\r\n");
}

#[test]
fn set_writes_only_if_its_condition_holds() {
    let mut redis = Redis::new();
    redis.writes(0, "SET k v XX", "$-1");
    redis.writes(1, "SET k v NX", "+OK");
    redis.writes(0, "SET k w NX", "$-1");
    redis.writes(0, "SETNX k w", ":0");
    redis.writes(1, "SETNX l w", ":1");
    redis.writes(1, "SET k w XX", "+OK");
    redis.tells(&[("GET k", "$1 w")]);
}

#[test]
fn set_with_get_answers_the_old_value_whether_it_writes_or_not() {
    let mut redis = Redis::new();
    redis.writes(1, "SET k a GET", "$-1");
    redis.writes(1, "SET k b GET", "$1 a");
    redis.writes(0, "SET k c NX GET", "$1 b");
    redis.writes(0, "SET l c XX GET", "$-1");
    redis.writes(1, "SET l c NX GET", "$-1");
    redis.writes(1, "GETSET k d", "$1 b");
    redis.tells(&[("GET k", "$1 d"), ("GET l", "$1 c")]);
}

#[test]
fn set_clears_the_expiry_unless_it_is_to_keep_it() {
    let mut redis = Redis::new();
    redis.tells(&[
        ("SETEX k 100 v", "+OK"),
        ("TTL k", ":100"),
        ("SET k w KEEPTTL", "+OK"),
        ("TTL k", ":100"),
        ("SET k w", "+OK"),
        ("TTL k", ":-1"),
        ("PSETEX k 1500 v", "+OK"),
        ("PTTL k", ":1500"),
        ("GETSET k w", "$1 v"),
        ("TTL k", ":-1"),
        ("SET k v EXAT 1600000100", "+OK"),
        ("PTTL k", ":100000"),
        ("SET k v PX 7 PX 8", "+OK"),
        ("PTTL k", ":8"),
        ("SET new v KEEPTTL", "+OK"),
        ("TTL new", ":-1"),
    ]);
}

#[test]
fn set_with_a_past_expiry_leaves_nothing() {
    let mut redis = Redis::new();
    redis.writes(0, "SET k v PXAT 1", "+OK");
    redis.writes(1, "SET k v", "+OK");
    redis.writes(1, "SET k w GET EXAT 1600000000", "$1 v");
    redis.tells(&[("EXISTS k", ":0")]);
}

#[test]
fn getex_changes_the_expiry_and_only_that() {
    let mut redis = Redis::new();
    redis.tells(&[("SET k v", "+OK"), ("GETEX none EX nonsense", "$-1")]);
    redis.writes(0, "GETEX k", "$1 v");
    redis.writes(0, "GETEX k PERSIST", "$1 v");
    redis.writes(0, "GETEX k EX nonsense", "-ERR value is not an integer or out of range");
    redis.writes(0, "GETEX k EX 0", "-ERR invalid expire time in 'getex' command");
    redis.writes(1, "GETEX k PX 1500", "$1 v");
    redis.tells(&[("PTTL k", ":1500")]);
    redis.writes(1, "GETEX k PERSIST", "$1 v");
    redis.tells(&[("PTTL k", ":-1")]);
    redis.writes(1, "GETEX k PXAT 1", "$1 v");
    redis.tells(&[("EXISTS k", ":0")]);
}

#[test]
fn getdel_answers_and_removes() {
    let mut redis = Redis::new();
    redis.writes(0, "GETDEL k", "$-1");
    redis.tells(&[("SET k v", "+OK")]);
    redis.writes(1, "GETDEL k", "$1 v");
    redis.writes(0, "GETDEL k", "$-1");
}

#[test]
fn msetnx_writes_all_or_nothing() {
    let mut redis = Redis::new();
    redis.writes(2, "MSETNX a 1 b 2", ":1");
    redis.writes(0, "MSETNX c 3 b 4", ":0");
    redis.writes(2, "MSET a 5 a 6", "+OK");
    redis.tells(&[("MGET a b c", "*3 $1 6 $1 2 $-1")]);
}

#[test]
fn append_and_setrange_keep_the_expiry_and_fill_with_zeros() {
    let mut redis = Redis::new();
    redis.writes(1, "APPEND k ''", ":0");
    redis.tells(&[("EXISTS k", ":1")]);
    redis.writes(1, "APPEND k ab", ":2");
    redis.writes(0, "APPEND k ''", ":2");
    redis.writes(1, "EXPIRE k 100", ":1");
    redis.writes(1, "APPEND k cd", ":4");
    redis.writes(1, "SETRANGE k 1 XY", ":4");
    redis.writes(1, "SETRANGE k 6 !", ":7");
    redis.tells(&[("GET k", r"$7 aXYd\x00\x00!"), ("TTL k", ":100")]);
    redis.writes(0, "SETRANGE k 100 ''", ":7");
    redis.writes(0, "SETRANGE none 100 ''", ":0");
    redis.writes(0, "SETRANGE none -1 ''", "-ERR offset is out of range");
    redis.writes(1, "SETRANGE none 1 x", ":2");
}

#[test]
fn a_range_is_cut_at_both_ends_of_the_value() {
    let mut redis = Redis::new();
    redis.tells(&[
        ("SET k 0123456789", "+OK"),
        ("GETRANGE k 0 3", "$4 0123"),
        ("GETRANGE k -3 -1", "$3 789"),
        ("SUBSTR k 0 -1", "$10 0123456789"),
        ("GETRANGE k 8 100", "$2 89"),
        ("GETRANGE k -100 1", "$2 01"),
        ("GETRANGE k 5 4", "$0 "),
        ("GETRANGE k 10 20", "$0 "),
        ("GETRANGE k -100 -100", "$1 0"),
        ("GETRANGE k -30 -100", "$0 "),
        ("GETRANGE k -9223372036854775808 9223372036854775807", "$10 0123456789"),
        ("GETRANGE none 0 -1", "$0 "),
        ("SET k ''", "+OK"),
        ("GETRANGE k 0 -1", "$0 "),
    ]);
}

/// A server that was started anew with a smaller limit ended at the first of these.
#[test]
fn what_is_stored_and_longer_than_may_be_now_can_be_read_and_not_written_again() {
    let refusal = "-ERR string exceeds maximum allowed size (proto-max-bulk-len)";
    let mut redis = Redis::new();
    redis.writes(1, "SET k 123456", "+OK");
    redis.space.value_bytes_max = 4;
    for command in [
        "RENAME k other",
        "RENAMENX k other",
        "COPY k other",
        "SETRANGE k 0 9",
        "SETBIT k 7 0",
        "BITOP AND other k",
        "BITOP NOT other k",
        "BITFIELD k GET u8 0 SET u8 0 1",
        "APPEND k 7",
    ] {
        redis.writes(0, command, refusal);
    }
    redis.writes(0, "GET k", "$6 123456");
    redis.writes(0, "BITFIELD k GET u8 0", "*1 :49");
    redis.writes(0, "EXISTS other", ":0");
    redis.writes(1, "SET k 1234", "+OK");
}

#[test]
fn a_value_that_would_be_too_long_is_refused_and_nothing_written() {
    let refusal = "-ERR string exceeds maximum allowed size (proto-max-bulk-len)";
    let mut redis = Redis::new();
    redis.space.value_bytes_max = 4;
    redis.writes(1, "SET k 1234", "+OK");
    for command in [
        "SET k 12345",
        "SET k 12345 GET",
        "SETNX k 12345",
        "MSET a 1 b 12345",
        "MSETNX a 1 b 12345",
        "APPEND k 5",
        "SETRANGE k 4 5",
        "SETRANGE k 9223372036854775807 5",
        "SETRANGE none 4 5",
        "INCRBYFLOAT f 1.2345",
        "INCRBY n 12345",
        "BITFIELD k SET u8 31 1",
    ] {
        redis.writes(0, command, refusal);
    }
    redis.writes(0, "SETBIT k 32 1", "-ERR bit offset is not an integer or out of range");
    redis.writes(0, "GETBIT k 32", "-ERR bit offset is not an integer or out of range");
    redis.writes(1, "SETRANGE k 3 5", ":4");
}

#[test]
fn integers_are_added_within_64_bits() {
    let mut redis = Redis::new();
    redis.tells(&[
        ("INCR n", ":1"),
        ("DECR n", ":0"),
        ("INCRBY n 9223372036854775807", ":9223372036854775807"),
        ("INCR n", "-ERR increment or decrement would overflow"),
        ("DECRBY n 9223372036854775807", ":0"),
        ("DECRBY n -9223372036854775808", "-ERR decrement would overflow"),
        ("DECRBY n -9223372036854775807", ":9223372036854775807"),
        ("INCRBY n +1", "-ERR value is not an integer or out of range"),
        ("EXPIRE n 100", ":1"),
        ("DECR n", ":9223372036854775806"),
        ("TTL n", ":100"),
        ("SET n 01", "+OK"),
        ("INCR n", "-ERR value is not an integer or out of range"),
        ("SET n ''", "+OK"),
        ("INCR n", "-ERR value is not an integer or out of range"),
        ("SET n -9223372036854775808", "+OK"),
        ("DECR n", "-ERR increment or decrement would overflow"),
    ]);
}

#[test]
fn floats_are_added_with_the_digits_of_redis() {
    let mut redis = Redis::new();
    redis.proto = Proto::Resp3;
    redis.tells(&[
        ("INCRBYFLOAT f 10.50", "$4 10.5"),
        ("INCRBYFLOAT f 0.1", "$4 10.6"),
        ("INCRBYFLOAT f -5", "$3 5.6"),
        ("SET f 5.0e3", "+OK"),
        ("INCRBYFLOAT f 2.0e2", "$4 5200"),
        ("INCRBYFLOAT f x", "-ERR value is not a valid float"),
        ("INCRBYFLOAT f inf", "-ERR increment would produce NaN or Infinity"),
        ("SET f inf", "+OK"),
        ("INCRBYFLOAT f -inf", "-ERR increment would produce NaN or Infinity"),
        ("SETEX f 100 1", "+OK"),
        ("INCRBYFLOAT f -1", "$1 0"),
        ("TTL f", ":100"),
        ("GET f", "$1 0"),
    ]);
}

#[test]
fn expired_keys_do_not_exist() {
    let mut redis = Redis::new();
    redis.tells(&[("SETEX k 1 v", "+OK")]);
    redis.space.now_ms = NOW_MS + 1000;
    redis.tells(&[("GET k", "$-1"), ("SET k w KEEPTTL", "+OK"), ("TTL k", ":-1")]);
}
