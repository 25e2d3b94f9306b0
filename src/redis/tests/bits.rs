use proptest::prelude::*;

use super::Redis;
use crate::protocol::resp::Proto;

#[test]
fn a_bit_is_set_from_the_highest_of_the_first_byte() {
    let mut redis = Redis::new();
    redis.writes(1, "SETBIT k 7 1", ":0");
    redis.writes(0, "SETBIT k 7 1", ":1");
    redis.writes(1, "SETBIT k 100 0", ":0");
    redis.writes(0, "SETBIT k 99 0", ":0");
    redis.writes(1, "SETBIT k 7 0", ":1");
    redis.tells(&[
        ("STRLEN k", ":13"),
        ("GETBIT k 7", ":0"),
        ("GETBIT k 1000", ":0"),
        ("GETBIT none 0", ":0"),
        ("SETBIT k -1 x", "-ERR bit offset is not an integer or out of range"),
        ("SETBIT k 1000000000000 x", "-ERR bit offset is not an integer or out of range"),
        ("SETBIT k 0 2", "-ERR bit is not an integer or out of range"),
        ("SETBIT k 0 01", "-ERR bit is not an integer or out of range"),
    ]);
}

#[test]
fn bitcount_looks_at_its_range_only_if_there_is_something_to_count() {
    let mut redis = Redis::new();
    redis.tells(&[
        ("BITCOUNT none 1", ":0"),
        ("BITCOUNT none x y z", ":0"),
        ("SET k foobar", "+OK"),
        ("BITCOUNT k", ":26"),
        ("BITCOUNT k 0 0", ":4"),
        ("BITCOUNT k 1 1 BYTE", ":6"),
        ("BITCOUNT k 5 30 BIT", ":17"),
        ("BITCOUNT k -30 -100", ":0"),
        ("BITCOUNT k -1 -2 FOO", ":0"),
        ("BITCOUNT k 1", "-ERR syntax error"),
        ("BITCOUNT k 0 1 FOO", "-ERR syntax error"),
        ("BITCOUNT k 0 x FOO", "-ERR value is not an integer or out of range"),
        ("BITCOUNT k 0 1 BIT x", "-ERR syntax error"),
    ]);
}

#[test]
fn bitpos_sees_zeros_behind_a_value_unless_its_end_was_named() {
    let mut redis = Redis::new();
    redis.tells(&[
        ("BITPOS none 0 x y z", ":0"),
        ("BITPOS none 1", ":-1"),
        ("BITPOS none 2", "-ERR The bit argument must be 1 or 0."),
        ("SETRANGE k 2 x", ":3"),
        ("SETBIT k 12 1", ":0"),
        ("BITPOS k 1", ":12"),
        ("BITPOS k 1 13 -1 BIT", ":17"),
        ("BITPOS k 1 1 1 BYTE", ":12"),
        ("BITPOS k 1 0 0", ":-1"),
        ("BITFIELD k SET i24 0 -1", "*1 :2168"),
        ("BITPOS k 0", ":24"),
        ("BITPOS k 0 1", ":24"),
        ("BITPOS k 0 0 -1", ":-1"),
        ("BITPOS k 0 5", ":-1"),
        ("BITPOS k 1 0 1 FOO", "-ERR syntax error"),
        ("BITPOS k 1 0 x FOO", "-ERR syntax error"),
        ("BITPOS k 1 0 1 BIT x", "-ERR syntax error"),
        ("SET e ''", "+OK"),
        ("BITPOS e 0", ":-1"),
        // Unlike other ranges: both ends are before the beginning, and so at it.
        ("BITPOS k 1 -30 -100", ":0"),
    ]);
}

#[test]
fn bitop_takes_what_a_key_lacks_for_zeros() {
    let mut redis = Redis::new();
    redis.tells(&[("MSET a abc b AB", "+OK"), ("SETEX t 100 x", "+OK")]);
    redis.writes(1, "BITOP AND t a b", ":3");
    redis.tells(&[("GET t", r"$3 AB\x00"), ("TTL t", ":-1")]);
    redis.tells(&[
        ("BITOP OR t b none a", ":3"),
        ("GET t", "$3 abc"),
        ("BITOP XOR t a b", ":3"),
        ("GET t", "$3   c"),
        ("BITOP NOT t b", ":2"),
        ("GET t", r"$2 \xbe\xbd"),
        ("BITOP NOT t a b", "-ERR BITOP NOT must be called with a single source key."),
        ("BITOP NAND t a b", "-ERR syntax error"),
    ]);
    redis.writes(1, "BITOP OR t none", ":0");
    redis.writes(0, "BITOP OR t none", ":0");
    redis.tells(&[("EXISTS t", ":0"), ("BITOP XOR a a a", ":3"), ("GET a", r"$3 \x00\x00\x00")]);
}

#[test]
fn fields_wrap_saturate_or_fail() {
    let mut redis = Redis::new();
    redis.tells(&[
        ("BITFIELD k", "*0"),
        ("BITFIELD k INCRBY i5 100 1 GET u4 0", "*2 :1 :0"),
        ("BITFIELD u SET u8 0 255 INCRBY u8 0 10 OVERFLOW SAT INCRBY u8 0 -100", "*3 :0 :9 :0"),
        ("BITFIELD u SET u8 #1 -1 GET i8 8 GET u8 8", "*3 :0 :-1 :255"),
        (
            "BITFIELD i OVERFLOW SAT SET i8 0 1000 INCRBY i8 0 -1000 OVERFLOW WRAP INCRBY i8 0 -1",
            "*3 :0 :-128 :127",
        ),
        (
            "BITFIELD j OVERFLOW SAT SET i16 0 -9223372036854775808 SET i16 0 -9223372036854742016 GET i16 0",
            "*3 :0 :32767 :-32768",
        ),
        ("BITFIELD l SET i64 3 9223372036854775807 INCRBY i64 3 1", "*2 :0 :-9223372036854775808"),
    ]);
    redis.writes(1, "BITFIELD f OVERFLOW FAIL SET u8 0 300", "*1 $-1");
    redis.writes(0, "BITFIELD f OVERFLOW FAIL SET u8 0 300", "*1 $-1");
    redis.writes(0, "BITFIELD f SET u8 0 0 INCRBY u8 0 0", "*2 :0 :0");
    redis.tells(&[("STRLEN f", ":1")]);
    redis.proto = Proto::Resp3;
    redis.tells(&[("BITFIELD f OVERFLOW FAIL INCRBY i1 0 5", "*1 _")]);
}

#[test]
fn the_first_fault_of_bitfield_is_told_and_nothing_done() {
    let kind =
        "-ERR Invalid bitfield type. Use something like i16 u8. Note that u64 is not supported but i64 is.";
    let offset = "-ERR bit offset is not an integer or out of range";
    let mut redis = Redis::new();
    for (command, expected) in [
        ("BITFIELD k SET u8 0 1 FOO", "-ERR syntax error"),
        ("BITFIELD k SET u8 0", "-ERR syntax error"),
        ("BITFIELD k GET u64 0", kind),
        ("BITFIELD k GET i65 0", kind),
        ("BITFIELD k GET x8 -1", kind),
        ("BITFIELD k GET u8 -1 FOO", offset),
        ("BITFIELD k GET u8 100000000000 FOO", offset),
        ("BITFIELD k SET u8 100000000000 x", offset),
        ("BITFIELD k SET u8 0 x", "-ERR value is not an integer or out of range"),
        ("BITFIELD k OVERFLOW FOO", "-ERR Invalid OVERFLOW type specified"),
        ("BITFIELD_RO k GET u8 0 SET u8 0 1", "-ERR BITFIELD_RO only supports the GET subcommand"),
        ("BITFIELD_RO k SET u8 0 1 FOO", "-ERR syntax error"),
    ] {
        redis.writes(0, command, expected);
    }
    redis.writes(0, "BITFIELD_RO k GET u8 0 OVERFLOW SAT", "*1 :0");
}

/// The bits of a value, one by one.
fn bits(value: &[u8]) -> Vec<bool> {
    value.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1)).collect()
}

proptest! {
    #[test]
    fn counts_and_places_are_those_of_the_bits_one_by_one(
        value in prop_oneof![
            prop::collection::vec(any::<u8>(), 1..40),
            prop::collection::vec(prop_oneof![9 => Just(0u8), 1 => Just(1)], 1..60),
            prop::collection::vec(prop_oneof![9 => Just(255u8), 1 => Just(127)], 1..60),
        ],
        (a, b) in (any::<prop::sample::Index>(), any::<prop::sample::Index>()),
        bit in any::<bool>(),
    ) {
        let bits = bits(&value);
        let (a, b) = (a.index(bits.len()), b.index(bits.len()));
        let (first, last) = (a.min(b), a.max(b));
        let mut redis = Redis::new();
        redis.ask_bytes(&[b"SET", b"k", &value]);
        let count = bits[first..=last].iter().filter(|bit| **bit).count();
        prop_assert_eq!(redis.ask(&format!("BITCOUNT k {first} {last} BIT")), format!(":{count}"));
        let place = bits[first..=last].iter().position(|other| *other == bit);
        let place = place.map_or(-1, |place| (first + place) as i64);
        let command = format!("BITPOS k {} {first} {last} BIT", u8::from(bit));
        prop_assert_eq!(redis.ask(&command), format!(":{place}"));
    }

    #[test]
    fn a_field_is_read_as_it_was_set_and_its_neighbours_stay(
        value in prop::collection::vec(any::<u8>(), 30),
        offset in 0usize..160,
        width in 1usize..=64,
        number in any::<i64>(),
    ) {
        let number = number >> (64 - width);
        let mut redis = Redis::new();
        redis.ask_bytes(&[b"SET", b"k", &value]);
        redis.ask(&format!("BITFIELD k SET i{width} {offset} {number}"));
        prop_assert_eq!(redis.ask(&format!("BITFIELD k GET i{width} {offset}")), format!("*1 :{number}"));
        let reply = redis.reply_to(&[b"GET", b"k"]);
        let after = bits(&reply[b"$30\r\n".len()..][..30]);
        let before = bits(&value);
        prop_assert_eq!(&after[..offset], &before[..offset]);
        prop_assert_eq!(&after[offset + width..], &before[offset + width..]);
    }
}
