//! The connection itself.

use super::flags::*;
use super::{Categories, Flags, Group, Spec};

const fn connection(name: &'static str, arity: i32, flags: Flags) -> Spec {
    super::row(name, Group::Connection, arity, flags, Categories::CONNECTION)
}

/// Commands with which a connection begins: answered before AUTH, and whatever the server is busy with.
const HANDSHAKE: Flags = CONNECTION.with(Flags::FAST).with(Flags::NO_AUTH).with(Flags::ALLOW_BUSY);

pub(super) static COMMANDS: &[Spec] = &[
    connection("ping", -1, Flags::FAST).tips(&[ALL_SHARDS, ALL_SUCCEED]).doc(
        "1.0.0",
        "O(1)",
        "[message]",
        "Answers PONG, or the message.",
    ),
    connection("echo", 2, ALWAYS_FAST).doc("1.0.0", "O(1)", "message", "Answers the message."),
    connection("hello", -1, HANDSHAKE)
        .doc(
            "6.0.0",
            "O(1)",
            "[protover [AUTH (username password)] [SETNAME clientname]]",
            "Chooses the version of the protocol and tells about the server.",
        )
        .differs("`version` is that of the Redis that is spoken; `modules` is empty"),
    connection("auth", -2, HANDSHAKE)
        .doc("1.0.0", "O(1)", "[username] password", "Shows who the client is.")
        .differs("there are no passwords yet: refused as by a Redis that has none"),
    connection("select", 2, ALWAYS_FAST)
        .doc("1.0.0", "O(1)", "index", "Chooses a database.")
        .differs("there is one database, 0"),
    connection("quit", -1, HANDSHAKE).doc("1.0.0", "O(1)", "", "Answers OK and closes the connection."),
    connection("reset", 1, HANDSHAKE).doc(
        "6.2.0",
        "O(1)",
        "",
        "Makes the connection as it was when it was new.",
    ),
    super::row("client", Group::Connection, -2, Flags::NONE, Categories::NONE)
        .doc("2.4.0", "As its subcommands", "", "Tells and changes what concerns connections.")
        .subcommands(CLIENT),
];

static CLIENT: &[Spec] = &[
    connection("client|id", 2, CONNECTION).doc("5.0.0", "O(1)", "", "Tells the number of this connection."),
    connection("client|getname", 2, CONNECTION).doc(
        "2.6.9",
        "O(1)",
        "",
        "Tells the name of this connection.",
    ),
    connection("client|setname", 3, CONNECTION).doc(
        "2.6.9",
        "O(1)",
        "connection-name",
        "Gives this connection a name.",
    ),
    connection("client|setinfo", 4, CONNECTION.with(Flags::ALLOW_BUSY)).tips(&[ALL_NODES, ALL_SUCCEED]).doc(
        "7.2.0",
        "O(1)",
        "(LIB-NAME libname|LIB-VER libver)",
        "Tells the server which library the client uses.",
    ),
    connection("client|info", 2, CONNECTION)
        .tips(&[VARIES])
        .doc("6.2.0", "O(1)", "", "Tells about this connection.")
        .differs("fewer fields: id, addr, laddr, name, db, multi, user, resp and the library"),
    connection("client|list", -2, ADMIN)
        .tips(&[VARIES])
        .doc(
            "2.4.0",
            "O(N) in the number of connections",
            "[TYPE (NORMAL|MASTER|REPLICA|PUBSUB)] [ID client-id...]",
            "Tells about all connections.",
        )
        .differs("those that speak Redis' protocol; fewer fields"),
    connection("client|kill", -3, ADMIN)
        .doc(
            "2.4.0",
            "O(N) in the number of connections",
            "(ip:port|([ID client-id]|[TYPE (NORMAL|MASTER|SLAVE|REPLICA|PUBSUB)]|[USER username]|[ADDR ip:port]|\
             [LADDR ip:port]|[SKIPME yes/no])...)",
            "Closes connections.",
        )
        .differs("those that speak Redis' protocol, and not one that has not sent anything yet; not within `MULTI`"),
    connection("client|pause", -3, ADMIN)
        .doc("2.9.50", "O(1)", "timeout [(WRITE|ALL)]", "Holds back the commands of all clients for a while.")
        .differs(
            "clients of the binary protocol go on; keys expire; what was taken in before is done, maybe after the answer; \
             whoever closes meanwhile, or is cut off by a stop, has what was held back not done; not within `MULTI`",
        ),
    connection("client|unpause", 2, ADMIN)
        .doc("6.2.0", "O(N) in the number of paused clients", "", "Lets clients go on.")
        .differs("never held back itself, as it is in Redis by a pause of everything; not within `MULTI`"),
    connection("client|reply", 3, CONNECTION).doc(
        "3.2.0",
        "O(1)",
        "(ON|OFF|SKIP)",
        "Chooses whether commands are answered.",
    ),
    connection("client|no-evict", 3, ADMIN)
        .doc("7.0.0", "O(1)", "(ON|OFF)", "Spares this connection when memory is scarce.")
        .differs("changes nothing: no connection is closed for the sake of memory"),
    connection("client|no-touch", 3, CONNECTION)
        .doc("7.2.0", "O(1)", "(ON|OFF)", "Lets this connection's reads not count as use of a key.")
        .differs("changes nothing: use is not recorded"),
    connection("client|help", 2, ALWAYS).doc("5.0.0", "O(1)", "", "Lists the subcommands."),
];
