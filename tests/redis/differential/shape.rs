//! What a command concerns, told from its words alone: its keys, and whether its effect depends on the
//! moment.

use std::time::{SystemTime, UNIX_EPOCH};

use atlaskv::slot::Slot;

use crate::differential::arguments::Mood;
use crate::wire::Command;

/// Times to live that are positive and less than this are never sent: the key would be there on one side and
/// not on the other.
const SHORTEST_TTL_MILLIS: i128 = 3_600_000;

/// Where the keys of a command are: the first, the last (0: the last argument), and the step between them.
fn key_positions(command: &Command) -> Option<(usize, usize, usize)> {
    Some(match command.name().as_str() {
        "get" | "set" | "setnx" | "setex" | "psetex" | "getset" | "getdel" | "getex" | "append"
        | "strlen" | "getrange" | "setrange" | "substr" | "incr" | "decr" | "incrby" | "decrby"
        | "incrbyfloat" | "type" | "expire" | "pexpire" | "expireat" | "pexpireat" | "ttl" | "pttl"
        | "expiretime" | "pexpiretime" | "persist" | "setbit" | "getbit" | "bitcount" | "bitpos" => (1, 1, 1),
        "del" | "unlink" | "exists" | "touch" | "mget" | "watch" => (1, 0, 1),
        "mset" | "msetnx" => (1, 0, 2),
        "rename" | "renamenx" | "copy" | "lcs" => (1, 2, 1),
        "object" => (2, 2, 1),
        "memory" if command.word(1) == "usage" => (2, 2, 1),
        _ => return None,
    })
}

/// The keys that a command names.
pub fn keys(command: &Command) -> Vec<&[u8]> {
    let Some((first, last, step)) = key_positions(command) else { return Vec::new() };
    let last = if last == 0 { command.0.len().saturating_sub(1) } else { last };
    let words = command.0.iter().take(last + 1).skip(first).step_by(step);
    words.map(Vec::as_slice).collect()
}

/// The slots of its keys, each once.
pub fn slots(command: &Command) -> Vec<Slot> {
    let mut slots: Vec<Slot> = keys(command).into_iter().map(Slot::of_key).collect();
    slots.sort_unstable();
    slots.dedup();
    slots
}

/// When a command says that a key shall expire: a number of milliseconds, from now or since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expiry {
    FromNow(i128),
    At(i128),
}

/// The expiry times in a command, as far as they are numbers.
fn expiries(command: &Command) -> Vec<Expiry> {
    let from_now = |index, unit| number(command, index).map(|number| Expiry::FromNow(number * unit));
    let at = |index, unit| number(command, index).map(|number| Expiry::At(number * unit));
    let option = |index| match command.word(index).as_str() {
        "ex" => from_now(index + 1, 1000),
        "px" => from_now(index + 1, 1),
        "exat" => at(index + 1, 1000),
        "pxat" => at(index + 1, 1),
        _ => None,
    };
    match command.name().as_str() {
        "expire" | "setex" => from_now(2, 1000).into_iter().collect(),
        "pexpire" | "psetex" => from_now(2, 1).into_iter().collect(),
        "expireat" => at(2, 1000).into_iter().collect(),
        "pexpireat" => at(2, 1).into_iter().collect(),
        "set" => (3..command.0.len()).filter_map(option).collect(),
        "getex" => (2..command.0.len()).filter_map(option).collect(),
        _ => Vec::new(),
    }
}

/// Whether what it does depends on when it is done: a key would be there on one side and not on the other,
/// or expire at another time where times are to be compared exactly, or be counted although it has expired.
pub fn depends_on_the_moment(command: &Command, mood: Mood) -> bool {
    // Redis looks for it without asking whether it has expired.
    if mood.is_lapsed && command.name() == "memory" {
        return true;
    }
    let now = now_millis();
    let is_set = command.name() == "set";
    expiries(command).iter().any(|expiry| match *expiry {
        Expiry::FromNow(millis) => millis > 0 && (mood.is_absolute || millis < SHORTEST_TTL_MILLIS),
        Expiry::At(millis) => {
            let is_near = (millis - now).abs() < SHORTEST_TTL_MILLIS;
            // Redis stores it with SET, and counts it until it comes across it.
            is_near || (is_set && !mood.is_lapsed && (1..now).contains(&millis))
        }
    })
}

/// Whether it would end or hold up a server or a connection, or change what a server is: such are not sent at
/// random.
pub fn is_out_of_place(command: &Command) -> bool {
    match command.name().as_str() {
        // It waits for replicas that there are not.
        "wait" | "waitaof" => command.word(1) != "0",
        "shutdown" | "debug" | "monitor" | "subscribe" | "psubscribe" | "ssubscribe" | "sync" | "psync"
        | "replicaof" | "slaveof" | "failover" | "quit" | "save" | "bgsave" | "bgrewriteaof" => true,
        "client" => {
            matches!(
                command.word(1).as_str(),
                "reply" | "pause" | "kill" | "unblock" | "tracking" | "caching"
            )
        }
        "config" => command.word(1) == "rewrite" || is_config_set_of_something(command),
        _ => false,
    }
}

/// CONFIG SET with a name that there is, as far as words can tell.
fn is_config_set_of_something(command: &Command) -> bool {
    let stays = command.0.len() == 4 && command.word(2) == "save" && command.word(3).is_empty();
    command.word(1) == "set" && !command.word(2).starts_with("no-such") && command.0.len() > 3 && !stays
}

/// The argument at `index`, if it is a number.
fn number(command: &Command, index: usize) -> Option<i128> {
    let text = std::str::from_utf8(command.0.get(index)?).ok()?;
    text.parse::<i64>().ok().map(i128::from)
}

fn now_millis() -> i128 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is set");
    now.as_millis().cast_signed()
}

#[test]
fn keys_are_found_where_they_are() {
    let found = |line: &str| keys(&Command::line(line)).iter().map(|key| key.to_vec()).collect::<Vec<_>>();
    assert_eq!(found("GET a"), [b"a"]);
    assert_eq!(found("mset a 1 b 2"), [b"a", b"b"]);
    assert_eq!(found("DEL a b c"), [b"a", b"b", b"c"]);
    assert_eq!(found("RENAME a b"), [b"a", b"b"]);
    assert_eq!(found("OBJECT ENCODING a"), [b"a"]);
    assert_eq!(found("GET"), [b""; 0]);
    assert_eq!(found("PING a"), [b""; 0]);
}

#[test]
fn near_times_depend_on_the_moment_and_far_ones_do_not() {
    let depends = |line: &str, mood| depends_on_the_moment(&Command::line(line), mood);
    let (plain, absolute) = (Mood::default(), Mood { is_absolute: true, ..Mood::default() });
    let lapsed = Mood { is_lapsed: true, ..Mood::default() };
    for line in ["EXPIRE k 5", "SET k v px 100", "setex k 1 v", "GETEX k EX 3599", "SET k v NX EXAT 5"] {
        assert!(depends(line, plain), "{line}");
    }
    for line in ["EXPIRE k 3600", "EXPIRE k -1", "SET k 5", "EXPIRE k x", "EXPIREAT k 5", "SET ex 5"] {
        assert!(!depends(line, plain), "{line}");
    }
    assert!(depends("EXPIRE k 3600", absolute));
    assert!(!depends("EXPIREAT k 4102444800", absolute));
    assert!(!depends("SET k v PXAT 5", lapsed));
}
