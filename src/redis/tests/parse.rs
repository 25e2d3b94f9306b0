use super::{Redis, words};
use crate::redis::{
    Command, Condition, Fault, ObjectQuestion, Set, SetExpiry, SyncWish, Time, unknown_command,
};

fn set(command: &str) -> Set<'_> {
    match Command::parse(&words(command)) {
        Ok(Command::Set(set)) => set,
        other => panic!("{command}: {other:?}"),
    }
}

#[test]
fn options_of_set_stand_in_any_order_and_case_and_more_than_once() {
    let plain = Set {
        key: b"k",
        value: b"v",
        condition: Condition::Always,
        expiry: SetExpiry::Clear,
        returns_old: false,
        durability: None,
        name: "set",
    };
    assert_eq!(set("SeT k v"), plain);
    assert_eq!(set("SET k v nx NX"), Set { condition: Condition::Absent, ..plain.clone() });
    assert_eq!(
        set("SET k v Get xx eX 5 EX 6"),
        Set {
            condition: Condition::Present,
            expiry: SetExpiry::To(Time::In(6000)),
            returns_old: true,
            ..plain.clone()
        }
    );
    assert_eq!(set("SET k v PXAT 5").expiry, SetExpiry::To(Time::At(5)));
    assert_eq!(set("SET k v KEEPTTL keepttl").expiry, SetExpiry::Keep);
    assert_eq!(set("SET k v sync").durability, Some(SyncWish::Sync));
    assert_eq!(set("SET k v PX 5 NOSYNC").durability, Some(SyncWish::NoSync));
    // As in Redis, whose strings end there.
    assert_eq!(set("SET k v NX\0x").condition, Condition::Absent);
}

#[test]
fn options_that_exclude_each_other_are_a_syntax_error() {
    for options in [
        "NX XX",
        "XX NX",
        "EX 5 PX 5",
        "EX 5 KEEPTTL",
        "KEEPTTL EXAT 5",
        "EXAT 5 PXAT 5",
        "EX",
        "GET PX",
        "PERSIST",
        "FOO",
        "''",
        "N",
        "NXX",
        "SYNC NOSYNC",
        "NOSYNC SYNC",
        // Found before the number that is none.
        "EX nonsense FOO",
    ] {
        let command = format!("SET k v {options}");
        assert_eq!(Command::parse(&words(&command)), Err(Fault::Syntax), "{command}");
    }
    for options in ["KEEPTTL", "NX", "GET", "EX 5 PERSIST", "PERSIST PX 5", "EX", "EX 5 PX 5"] {
        let command = format!("GETEX k {options}");
        assert_eq!(Command::parse(&words(&command)), Err(Fault::Syntax), "{command}");
    }
}

#[test]
fn options_of_expire_are_looked_at_before_its_number() {
    let mut redis = Redis::new();
    let exclusive = "-ERR NX and XX, GT or LT options at the same time are not compatible";
    redis.tells(&[
        ("EXPIRE k x FOO", "-ERR Unsupported option FOO"),
        ("EXPIRE k x NX bar\r\nbaz\r\n", "-ERR Unsupported option bar  baz"),
        ("EXPIRE k x NX XX", exclusive),
        ("EXPIRE k x GT NX", exclusive),
        ("EXPIRE k x NX LT GT", exclusive),
        ("EXPIRE k x GT LT", "-ERR GT and LT options at the same time are not compatible"),
        ("EXPIRE k x GT XX", "-ERR value is not an integer or out of range"),
    ]);
}

#[test]
fn every_name_says_its_own_when_the_count_of_arguments_is_wrong() {
    let too_few = [
        "GET",
        "SET k",
        "SETNX k",
        "SETEX k 1",
        "PSETEX k 1",
        "GETSET k",
        "GETDEL",
        "GETEX",
        "MGET",
        "MSET",
        "MSETNX k",
        "APPEND k",
        "STRLEN",
        "GETRANGE k 0",
        "SUBSTR k 0",
        "SETRANGE k 0",
        "INCR",
        "DECR",
        "INCRBY k",
        "DECRBY k",
        "INCRBYFLOAT k",
        "LCS a",
        "DEL",
        "UNLINK",
        "EXISTS",
        "TOUCH",
        "TYPE",
        "RENAME a",
        "RENAMENX a",
        "COPY a",
        "EXPIRE k",
        "PEXPIRE k",
        "EXPIREAT k",
        "PEXPIREAT k",
        "TTL",
        "PTTL",
        "EXPIRETIME",
        "PEXPIRETIME",
        "PERSIST",
        "SETBIT k 0",
        "GETBIT k",
        "BITCOUNT",
        "BITPOS k",
        "BITOP AND a",
        "BITFIELD",
        "BITFIELD_RO",
        "OBJECT",
        "MEMORY",
    ];
    let mut redis = Redis::new();
    for command in too_few {
        let name = command.split(' ').next().unwrap_or_default().to_lowercase();
        let expected = format!("-ERR wrong number of arguments for '{name}' command");
        assert_eq!(redis.ask(command), expected, "{command}");
        assert!(Command::parse(&words(command)).is_err_and(Fault::is_found_when_queued));
    }
    redis.tells(&[
        ("GET k l", "-ERR wrong number of arguments for 'get' command"),
        ("MSET a 1 b", "-ERR wrong number of arguments for 'mset' command"),
        ("OBJECT ENCODING", "-ERR wrong number of arguments for 'object|encoding' command"),
        ("OBJECT HELP me", "-ERR wrong number of arguments for 'object|help' command"),
        ("MEMORY USAGE", "-ERR wrong number of arguments for 'memory|usage' command"),
    ]);
}

#[test]
fn an_unknown_name_is_repeated_with_the_beginning_of_its_arguments() {
    let text = |command: &str| String::from_utf8(unknown_command(&words(command))).unwrap();
    assert_eq!(text("foo"), "ERR unknown command 'foo', with args beginning with: ");
    assert_eq!(text("foo a ''"), "ERR unknown command 'foo', with args beginning with: 'a' '' ");
    assert_eq!(text("fo\0o a\0b"), "ERR unknown command 'fo', with args beginning with: 'a' ");
    let long = "x".repeat(200);
    let beginning = |len| &long[..len];
    assert_eq!(
        text(&format!("{long} ab {long} c")),
        format!(
            "ERR unknown command '{}', with args beginning with: 'ab' '{}' ",
            beginning(128),
            beginning(123)
        )
    );
    for args in [&words("foo")[..], &words("GETTT k"), &words("incrbyfloats"), &[]] {
        assert_eq!(Command::parse(args), Err(Fault::UnknownCommand));
    }
    let mut redis = Redis::new();
    redis.tells(&[
        ("foo a\r\nb", "-ERR unknown command 'foo', with args beginning with: 'a  b' "),
        ("OBJECT FOO k", "-ERR unknown subcommand 'FOO'. Try OBJECT HELP."),
        ("memory doctor", "-ERR unknown subcommand 'doctor'. Try MEMORY HELP."),
    ]);
}

#[test]
fn a_command_tells_its_keys_its_name_and_whether_it_writes() {
    let facts = [
        ("GET a", "get", "a", false),
        ("SETNX a v", "setnx", "a", true),
        ("MSET a 1 b 2 a 3", "mset", "a b a", true),
        ("MGET a b a", "mget", "a b a", false),
        ("LCS a b LEN", "lcs", "a b", false),
        ("COPY a b", "copy", "a b", true),
        ("BITOP AND t a b", "bitop", "t a b", true),
        ("BITFIELD a GET u8 0", "bitfield", "a", true),
        ("BITFIELD_RO a GET u8 0", "bitfield_ro", "a", false),
        ("GETEX a", "getex", "a", true),
        ("TOUCH a b", "touch", "a b", false),
        ("OBJECT FREQ a", "object|freq", "a", false),
        ("MEMORY USAGE a", "memory|usage", "a", false),
    ];
    for (text, name, keys, is_write) in facts {
        let args = words(text);
        let command = Command::parse(&args).unwrap();
        assert_eq!((command.name(), command.is_write()), (name, is_write), "{text}");
        assert_eq!(command.keys().as_slice(), words(keys), "{text}");
    }
    let object = Command::Object { key: b"k", question: ObjectQuestion::IdleTime };
    assert_eq!(Command::parse(&words("Object IdleTime k")), Ok(object));
    assert!(Command::ObjectHelp.keys().is_empty());
}
