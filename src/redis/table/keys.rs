//! Keys whatever their values are, and transactions.

use super::flags::*;
use super::{Categories, Flags, Group, KeySpec, Spec};

const fn generic(name: &'static str, arity: i32, flags: Flags) -> Spec {
    super::row(name, Group::Generic, arity, flags, Categories::KEYSPACE)
}

const fn keyspace(name: &'static str, arity: i32, flags: Flags) -> Spec {
    super::row(name, Group::Server, arity, flags, Categories::KEYSPACE)
}

const fn transaction(name: &'static str, arity: i32, flags: Flags) -> Spec {
    super::row(name, Group::Transactions, arity, flags, Categories::TRANSACTION)
}

const UPDATE_KEY: &[KeySpec] = &[KeySpec::one(1, UPDATE)];
const READ_KEY: &[KeySpec] = &[KeySpec::one(1, READ)];
const LOOK_KEYS: &[KeySpec] = &[KeySpec::rest(1, LOOK)];
const REMOVE_KEYS: &[KeySpec] = &[KeySpec::rest(1, REMOVE)];
const EVERY_KEY: &str = "O(N) in the number of keys";
const ONE_SLOT: &str = "both keys in one slot (`CROSSSLOT` otherwise)";

pub(super) static GENERIC: &[Spec] = &[
    generic("del", -2, Flags::WRITE).keys(REMOVE_KEYS).tips(&[BY_SHARD, SUM]).doc(
        "1.0.0",
        EVERY_KEY,
        "key...",
        "Removes keys.",
    ),
    generic("unlink", -2, WRITES_FAST).keys(REMOVE_KEYS).tips(&[BY_SHARD, SUM]).doc(
        "4.0.0",
        EVERY_KEY,
        "key...",
        "Removes keys; space is given back later.",
    ),
    generic("exists", -2, READS_FAST).keys(LOOK_KEYS).tips(&[BY_SHARD, SUM]).doc(
        "1.0.0",
        EVERY_KEY,
        "key...",
        "Counts those of the given keys that exist.",
    ),
    generic("touch", -2, READS_FAST).keys(LOOK_KEYS).tips(&[BY_SHARD, SUM]).doc(
        "3.2.1",
        EVERY_KEY,
        "key...",
        "Counts those of the given keys that exist, as if they had been used.",
    ),
    generic("type", 2, READS_FAST).keys(&[KeySpec::one(1, LOOK)]).doc(
        "1.0.0",
        "O(1)",
        "key",
        "Tells of what type the value of a key is.",
    ),
    generic("rename", 3, Flags::WRITE)
        .keys(&[KeySpec::one(1, TAKE), KeySpec::one(2, OVERWRITE)])
        .doc(
            "1.0.0",
            "O(1)",
            "key newkey",
            "Gives a key's value and expiry to another key, and removes the first.",
        )
        .differs(ONE_SLOT),
    generic("renamenx", 3, WRITES_FAST)
        .keys(&[KeySpec::one(1, TAKE), KeySpec::one(2, INSERT)])
        .doc("1.0.0", "O(1)", "key newkey", "Renames a key if the new name is free.")
        .differs(ONE_SLOT),
    generic("copy", -3, GROWS)
        .keys(&[KeySpec::one(1, READ), KeySpec::one(2, OVERWRITE)])
        .doc(
            "6.2.0",
            "O(N) in the length of the value",
            "source destination [DB destination-db] [REPLACE]",
            "Gives a key's value and expiry to another key as well.",
        )
        .differs("both keys in one slot (`CROSSSLOT` otherwise); `DB` 0 only"),
    generic("keys", 2, Flags::READONLY)
        .tips(&[ALL_SHARDS, ANY_ORDER])
        .also(Categories::DANGEROUS)
        .doc(
            "1.0.0",
            "O(N) in the number of keys of the store",
            "pattern",
            "Lists all keys that match a pattern.",
        )
        .differs(
            "reads the keys from disk if they are there; a pattern that begins with letters reads only those",
        ),
    generic("scan", -2, Flags::READONLY)
        .tips(&[VARIES, "request_policy:special"])
        .doc(
            "2.8.0",
            "O(1) for each call",
            "cursor [MATCH pattern] [COUNT count] [TYPE type]",
            "Lists keys, some with each call.",
        )
        .differs("in the order of keys; after a restart, or among thousands of scans, one may begin again"),
    generic("randomkey", 1, Flags::READONLY)
        .tips(&[ALL_SHARDS, VARIES])
        .doc("1.0.0", "O(1)", "", "Picks a key.")
        .differs("keys are not all equally likely"),
    generic("expire", -3, WRITES_FAST).keys(UPDATE_KEY).doc(
        "1.0.0",
        "O(1)",
        "key seconds [NX|XX|GT|LT]",
        "Lets a key expire after some seconds.",
    ),
    generic("pexpire", -3, WRITES_FAST).keys(UPDATE_KEY).doc(
        "2.6.0",
        "O(1)",
        "key milliseconds [NX|XX|GT|LT]",
        "Lets a key expire after some milliseconds.",
    ),
    generic("expireat", -3, WRITES_FAST).keys(UPDATE_KEY).doc(
        "1.2.0",
        "O(1)",
        "key unix-time-seconds [NX|XX|GT|LT]",
        "Lets a key expire at a time in seconds.",
    ),
    generic("pexpireat", -3, WRITES_FAST).keys(UPDATE_KEY).doc(
        "2.6.0",
        "O(1)",
        "key unix-time-milliseconds [NX|XX|GT|LT]",
        "Lets a key expire at a time in milliseconds.",
    ),
    generic("ttl", 2, READS_FAST).keys(READ_KEY).tips(&[VARIES]).doc(
        "1.0.0",
        "O(1)",
        "key",
        "Tells in how many seconds a key expires.",
    ),
    generic("pttl", 2, READS_FAST).keys(READ_KEY).tips(&[VARIES]).doc(
        "2.6.0",
        "O(1)",
        "key",
        "Tells in how many milliseconds a key expires.",
    ),
    generic("expiretime", 2, READS_FAST).keys(READ_KEY).doc(
        "7.0.0",
        "O(1)",
        "key",
        "Tells the time, in seconds, at which a key expires.",
    ),
    generic("pexpiretime", 2, READS_FAST).keys(READ_KEY).doc(
        "7.0.0",
        "O(1)",
        "key",
        "Tells the time, in milliseconds, at which a key expires.",
    ),
    generic("persist", 2, WRITES_FAST).keys(UPDATE_KEY).doc(
        "2.2.0",
        "O(1)",
        "key",
        "Lets a key expire no more.",
    ),
    super::row("object", Group::Generic, -2, Flags::NONE, Categories::NONE)
        .doc("2.2.3", "As its subcommands", "", "Tells how a value is kept.")
        .subcommands(OBJECT),
    super::row("wait", Group::Generic, 3, Flags::NOSCRIPT, Categories::CONNECTION)
        .tips(&[ALL_SHARDS, LEAST])
        .doc(
            "3.0.0",
            "O(1)",
            "numreplicas timeout",
            "Waits until this connection's writes are on so many replicas.",
        )
        .differs("there are no replicas: answers 0, behind the answers of all writes before it"),
    super::row("waitaof", Group::Generic, 4, Flags::BLOCKING, Categories::CONNECTION)
        .tips(&[ALL_SHARDS, LEAST])
        .doc(
            "7.2.0",
            "O(1)",
            "numlocal numreplicas timeout",
            "Waits until this connection's writes are on disk, here and on so many replicas.",
        )
        .differs(
            "the first number is 1 with `--sync always` and else 0, the second 0: there are no replicas",
        ),
];

const OBJECT_KEY: &[KeySpec] = &[KeySpec::one(2, LOOK)];

static OBJECT: &[Spec] = &[
    generic("object|encoding", 3, Flags::READONLY).keys(OBJECT_KEY).tips(&[VARIES]).doc(
        "2.2.3",
        "O(1)",
        "key",
        "Tells how Redis would keep a value: int, embstr or raw.",
    ),
    generic("object|freq", 3, Flags::READONLY)
        .keys(OBJECT_KEY)
        .tips(&[VARIES])
        .doc("4.0.0", "O(1)", "key", "Tells how often a key is used.")
        .differs("not counted, so refused, as Redis does under most policies"),
    generic("object|idletime", 3, Flags::READONLY)
        .keys(OBJECT_KEY)
        .tips(&[VARIES])
        .doc("2.2.3", "O(1)", "key", "Tells for how many seconds a key was not used.")
        .differs("not recorded: always 0"),
    generic("object|refcount", 3, Flags::READONLY)
        .keys(OBJECT_KEY)
        .tips(&[VARIES])
        .doc("2.2.3", "O(1)", "key", "Tells how many references a value has.")
        .differs("what Redis says of the small integers that it shares, and 1 for all else"),
    generic("object|help", 2, ALWAYS).doc("6.2.0", "O(1)", "", "Lists the subcommands."),
];

/// What Redis counts as commands of the server although they are about keys.
pub(super) static KEYSPACE: &[Spec] = &[
    keyspace("dbsize", 1, READS_FAST)
        .tips(&[ALL_SHARDS, SUM])
        .doc("1.0.0", "O(1)", "", "Tells how many keys there are.")
        .differs("an estimate once the store is too large to count at once"),
    keyspace("flushdb", -1, Flags::WRITE)
        .tips(&[ALL_SHARDS, ALL_SUCCEED])
        .also(Categories::DANGEROUS)
        .doc("1.0.0", "O(1)", "[ASYNC|SYNC]", "Removes all keys.")
        .differs(
            "the same as `FLUSHALL`; takes the same time however many keys there are; atomic for each tablet",
        ),
    keyspace("flushall", -1, Flags::WRITE)
        .tips(&[ALL_SHARDS, ALL_SUCCEED])
        .also(Categories::DANGEROUS)
        .doc("1.0.0", "O(1)", "[ASYNC|SYNC]", "Removes all keys.")
        .differs("takes the same time however many keys there are; atomic for each tablet"),
];

const TRANSACTION: Flags = CONNECTION;
const TRANSACTION_FAST: Flags = CONNECTION.with(Flags::FAST).with(Flags::ALLOW_BUSY);

pub(super) static TRANSACTIONS: &[Spec] = &[
    transaction("multi", 1, TRANSACTION_FAST)
        .doc("1.2.0", "O(1)", "", "Begins a transaction.")
        .differs("keys of a transaction in one slot, those watched included (`CROSSSLOT` otherwise)"),
    transaction("exec", 1, TRANSACTION.with(Flags::SKIP_SLOWLOG))
        .doc("1.2.0", "As its commands", "", "Executes the commands since MULTI as one.")
        .differs("atomic on disk as well: after a crash all of its writes are there or none"),
    transaction("discard", 1, TRANSACTION_FAST).doc(
        "2.0.0",
        "O(N) in the number of commands",
        "",
        "Forgets the commands since MULTI.",
    ),
    transaction("watch", -2, TRANSACTION_FAST)
        .keys(LOOK_KEYS)
        .doc(
            "2.2.0",
            "O(1) for each key",
            "key...",
            "Lets EXEC do nothing if one of these keys changes before.",
        )
        .differs("keys in the slot of the transaction (`CROSSSLOT` otherwise); one that was absent and is again has not changed"),
    transaction("unwatch", 1, TRANSACTION_FAST).doc(
        "2.2.0",
        "O(1)",
        "",
        "Forgets the keys that are watched.",
    ),
];
