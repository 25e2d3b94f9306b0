//! Strings, and their bits.

use super::flags::*;
use super::{Categories, Flags, Group, KeySpec, Spec};

const fn string(name: &'static str, arity: i32, flags: Flags) -> Spec {
    super::row(name, Group::String, arity, flags, Categories::STRING)
}

const fn bitmap(name: &'static str, arity: i32, flags: Flags) -> Spec {
    super::row(name, Group::Bitmap, arity, flags, Categories::BITMAP)
}

const READ_KEY: &[KeySpec] = &[KeySpec::one(1, READ)];
const OVERWRITE_KEY: &[KeySpec] = &[KeySpec::one(1, OVERWRITE)];
const MODIFY_KEY: &[KeySpec] = &[KeySpec::one(1, MODIFY)];
const UPDATE_KEY: &[KeySpec] = &[KeySpec::one(1, UPDATE)];

/// Every other word from the second on.
const fn pairs(flags: KeyFlags) -> KeySpec {
    KeySpec { flags, first: 1, last: -1, step: 2, notes: None }
}

const AS_OPTIONS_SAY: KeyFlags = MODIFY.with(KeyFlags::VARIABLE_FLAGS);
const SET_SYNTAX: &str = "key value [NX|XX] [GET] [EX seconds|PX milliseconds|EXAT unix-time-seconds|\
                          PXAT unix-time-milliseconds|KEEPTTL] [SYNC|NOSYNC]";
const GETEX_SYNTAX: &str = "key [EX seconds|PX milliseconds|EXAT unix-time-seconds|\
                            PXAT unix-time-milliseconds|PERSIST]";
const BITFIELD_SYNTAX: &str = "key [GET encoding offset|[OVERFLOW (WRAP|SAT|FAIL)] \
                               (SET encoding offset value|INCRBY encoding offset increment)]...";

pub(super) static STRINGS: &[Spec] = &[
    string("get", 2, READS_FAST).keys(READ_KEY).doc("1.0.0", "O(1)", "key", "Reads the value of a key."),
    string("set", -3, GROWS)
        .keys(&[KeySpec::one(1, AS_OPTIONS_SAY).notes("RW and ACCESS due to the optional `GET` argument")])
        .doc("1.0.0", "O(1)", SET_SYNTAX, "Gives a key a value, if wanted with a condition and an expiry.")
        .differs(
            "two more options say when it is answered, whatever `--sync` says: `SYNC` once it is on disk, \
             `NOSYNC` at once",
        ),
    string("setnx", 3, GROWS_FAST).keys(&[KeySpec::one(1, INSERT)]).doc(
        "1.0.0",
        "O(1)",
        "key value",
        "Gives a key a value if it has none.",
    ),
    string("setex", 4, GROWS).keys(OVERWRITE_KEY).doc(
        "2.0.0",
        "O(1)",
        "key seconds value",
        "Gives a key a value that expires in seconds.",
    ),
    string("psetex", 4, GROWS).keys(OVERWRITE_KEY).doc(
        "2.6.0",
        "O(1)",
        "key milliseconds value",
        "Gives a key a value that expires in milliseconds.",
    ),
    string("getset", 3, GROWS_FAST)
        .keys(MODIFY_KEY)
        .doc("1.0.0", "O(1)", "key value", "Gives a key a value and answers the one before.")
        .replaced("6.2.0", "`SET` with the `GET` option"),
    string("getdel", 2, WRITES_FAST).keys(&[KeySpec::one(1, TAKE)]).doc(
        "6.2.0",
        "O(1)",
        "key",
        "Reads the value of a key and removes the key.",
    ),
    string("getex", -2, WRITES_FAST)
        .keys(&[KeySpec::one(1, MODIFY).notes("RW and UPDATE because it changes the TTL")])
        .doc("6.2.0", "O(1)", GETEX_SYNTAX, "Reads the value of a key and changes when it expires."),
    string("mget", -2, READS_FAST).keys(&[KeySpec::rest(1, READ)]).tips(&[BY_SHARD]).doc(
        "1.0.0",
        "O(N) in the number of keys",
        "key...",
        "Reads the values of several keys.",
    ),
    string("mset", -3, GROWS)
        .keys(&[pairs(OVERWRITE)])
        .tips(&[BY_SHARD, ALL_SUCCEED])
        .doc("1.0.1", "O(N) in the number of keys", "(key value)...", "Gives several keys their values.")
        .differs("atomic for the keys of each slot; pairs of one slot may be seen before those of another"),
    string("msetnx", -3, GROWS)
        .keys(&[pairs(INSERT)])
        .tips(&[BY_SHARD, LEAST])
        .doc(
            "1.0.1",
            "O(N) in the number of keys",
            "(key value)...",
            "Gives several keys their values if none of them has one.",
        )
        .differs("all keys in one slot (`CROSSSLOT` otherwise)"),
    string("append", 3, GROWS_FAST).keys(&[KeySpec::one(1, KeyFlags::RW.with(KeyFlags::INSERT))]).doc(
        "2.0.0",
        "O(N) in the length of the value",
        "key value",
        "Adds to the end of a key's value.",
    ),
    string("strlen", 2, READS_FAST).keys(&[KeySpec::one(1, LOOK)]).doc(
        "2.2.0",
        "O(1)",
        "key",
        "Tells how long the value of a key is.",
    ),
    string("getrange", 4, Flags::READONLY).keys(READ_KEY).doc(
        "2.4.0",
        "O(N) in the length of what is read",
        "key start end",
        "Reads a part of a key's value.",
    ),
    string("substr", 4, Flags::READONLY)
        .keys(READ_KEY)
        .doc("1.0.0", "O(N) in the length of what is read", "key start end", "Reads a part of a key's value.")
        .replaced("2.0.0", "`GETRANGE`"),
    string("setrange", 4, GROWS).keys(UPDATE_KEY).doc(
        "2.2.0",
        "O(N) in the length of the value",
        "key offset value",
        "Overwrites a part of a key's value.",
    ),
    string("incr", 2, GROWS_FAST).keys(MODIFY_KEY).doc("1.0.0", "O(1)", "key", "Adds one to a key's number."),
    string("decr", 2, GROWS_FAST).keys(MODIFY_KEY).doc(
        "1.0.0",
        "O(1)",
        "key",
        "Subtracts one from a key's number.",
    ),
    string("incrby", 3, GROWS_FAST).keys(MODIFY_KEY).doc(
        "1.0.0",
        "O(1)",
        "key increment",
        "Adds to a key's number.",
    ),
    string("decrby", 3, GROWS_FAST).keys(MODIFY_KEY).doc(
        "1.0.0",
        "O(1)",
        "key decrement",
        "Subtracts from a key's number.",
    ),
    string("incrbyfloat", 3, GROWS_FAST).keys(MODIFY_KEY).doc(
        "2.6.0",
        "O(1)",
        "key increment:double",
        "Adds to a key's number, which may have a fraction.",
    ),
    string("lcs", -3, Flags::READONLY)
        .keys(&[KeySpec { flags: READ, first: 1, last: 1, step: 1, notes: None }])
        .doc(
            "7.0.0",
            "O(N*M) in the lengths of the two values",
            "key1 key2 [LEN] [IDX] [MINMATCHLEN len] [WITHMATCHLEN]",
            "Finds the longest subsequence that two values have in common.",
        )
        .differs("both keys in one slot (`CROSSSLOT` otherwise)"),
];

pub(super) static BITMAPS: &[Spec] = &[
    bitmap("setbit", 4, GROWS).keys(MODIFY_KEY).doc(
        "2.2.0",
        "O(N) in the length of the value",
        "key offset value",
        "Sets or clears one bit of a key's value.",
    ),
    bitmap("getbit", 3, READS_FAST).keys(READ_KEY).doc(
        "2.2.0",
        "O(1)",
        "key offset",
        "Reads one bit of a key's value.",
    ),
    bitmap("bitcount", -2, Flags::READONLY).keys(READ_KEY).doc(
        "2.6.0",
        "O(N) in the length of the range",
        "key [start end [BYTE|BIT]]",
        "Counts the bits that are set in a key's value.",
    ),
    bitmap("bitpos", -3, Flags::READONLY).keys(READ_KEY).doc(
        "2.8.7",
        "O(N) in the length of the range",
        "key bit [start [end [BYTE|BIT]]]",
        "Finds the first bit of a key's value that is set, or clear.",
    ),
    bitmap("bitop", -4, GROWS)
        .keys(&[KeySpec::one(2, OVERWRITE), KeySpec::rest(3, READ)])
        .doc(
            "2.6.0",
            "O(N) in the length of the longest value",
            "operation destkey key...",
            "Joins the bits of several values and stores what comes of it.",
        )
        .differs("all keys in one slot (`CROSSSLOT` otherwise)"),
    bitmap("bitfield", -2, GROWS)
        .keys(&[KeySpec::one(1, AS_OPTIONS_SAY)
            .notes("This command allows both access and modification of the key")])
        .doc(
            "3.2.0",
            "O(1) for each of its operations",
            BITFIELD_SYNTAX,
            "Reads and changes integers of any width within a key's value.",
        ),
    bitmap("bitfield_ro", -2, READS_FAST).keys(READ_KEY).doc(
        "6.0.0",
        "O(1) for each of its operations",
        "key [GET (encoding offset)]...",
        "Reads integers of any width within a key's value.",
    ),
];
