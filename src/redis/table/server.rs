//! The server: what it knows of itself, and what can be changed while it runs.

use super::flags::*;
use super::{Categories, Flags, Group, KeySpec, Spec};

const fn server(name: &'static str, arity: i32, flags: Flags) -> Spec {
    super::row(name, Group::Server, arity, flags, Categories::NONE)
}

/// A command that contains others, and is none itself.
const fn container(name: &'static str) -> Spec {
    server(name, -2, Flags::NONE)
}

const SAVING: Flags = Flags::ADMIN.with(Flags::NOSCRIPT).with(Flags::NO_ASYNC_LOADING);
/// The server's own history of slow commands, which scripts may read.
const SLOW: Flags = ALWAYS.with(Flags::ADMIN);
/// What is for administrators although its flags don't say so.
const ABOUT_SERVER: Categories = Categories::ADMIN.with(Categories::DANGEROUS);
/// Of commands that save.
const SAVES: &str = "a checkpoint: a data directory of hard links below `--save-dir`, the newest one alone; others are \
                     served meanwhile; not within `MULTI`";
const SUBCOMMANDS: &str = "As its subcommands";
const EVERY_COMMAND: &str = "O(N) in the number of commands";

pub(super) static COMMANDS: &[Spec] = &[
    server("command", -1, ALWAYS)
        .also(Categories::CONNECTION)
        .tips(&[ANY_ORDER])
        .doc("2.8.13", EVERY_COMMAND, "", "Tells about all commands.")
        .subcommands(COMMAND),
    server("info", -1, ALWAYS)
        .also(Categories::DANGEROUS)
        .tips(&[VARIES, ALL_SHARDS, SPECIAL])
        .doc("1.0.0", "O(1)", "[section...]", "Tells how the server is.")
        .differs("the sections and fields that tools read, of keys that expire none; more with `atlaskv-cli stats`"),
    container("config").doc("2.0.0", SUBCOMMANDS, "", "Tells and changes settings.").subcommands(CONFIG),
    container("memory").doc("4.0.0", SUBCOMMANDS, "", "Tells what memory is used for.").subcommands(MEMORY),
    container("slowlog")
        .doc("2.2.12", SUBCOMMANDS, "", "Tells which commands were slow.")
        .subcommands(SLOWLOG),
    container("latency").doc("2.8.13", SUBCOMMANDS, "", "Tells what took long.").subcommands(LATENCY),
    container("acl").doc("6.0.0", SUBCOMMANDS, "", "Tells who may do what.").subcommands(ACL),
    server("time", 1, ALWAYS_FAST).tips(&[VARIES]).doc("2.6.0", "O(1)", "", "Tells the server's time."),
    server("role", 1, CONNECTION.with(Flags::FAST)).also(ABOUT_SERVER).doc(
        "2.8.12",
        "O(1)",
        "",
        "Tells the server's part in replication, which is master.",
    ),
    server("lastsave", 1, ALWAYS_FAST)
        .also(ABOUT_SERVER)
        .tips(&[VARIES])
        .doc("1.0.0", "O(1)", "", "Tells the time of the last save."),
    server("save", 1, SAVING.with(Flags::NO_MULTI))
        .doc("1.0.0", "O(N) in the number of tables", "", "Makes a copy of all data, and waits for it.")
        .differs(SAVES),
    server("bgsave", -1, SAVING)
        .doc("1.0.0", "O(1)", "[SCHEDULE]", "Begins to make a copy of all data.")
        .differs(SAVES),
    server("shutdown", -1, ADMIN.with(Flags::NO_MULTI).with(Flags::ALLOW_BUSY))
        .doc("1.0.0", "O(1)", "[(NOSAVE|SAVE)] [NOW] [FORCE] [ABORT]", "Stops the server.")
        .differs("as SIGTERM does: what is in flight is answered, and nothing is saved, since all is on disk"),
    server("bgrewriteaof", 1, SAVING)
        .doc("1.0.0", "O(1)", "", "Rewrites the log so that it is short.")
        .differs("changes nothing: the log is kept short all the time"),
];

/// Subcommands of COMMAND.
const fn command(name: &'static str, arity: i32) -> Spec {
    server(name, arity, ALWAYS).also(Categories::CONNECTION)
}

static COMMAND: &[Spec] = &[
    command("command|count", 2).doc("2.8.13", "O(1)", "", "Tells how many commands there are."),
    command("command|info", -2).tips(&[ANY_ORDER]).doc(
        "2.8.13",
        EVERY_COMMAND,
        "[command-name...]",
        "Tells about some commands, or all.",
    ),
    command("command|docs", -2).tips(&[ANY_ORDER]).doc(
        "7.0.0",
        EVERY_COMMAND,
        "[command-name...]",
        "Explains some commands, or all.",
    ),
    command("command|list", -2).tips(&[ANY_ORDER]).doc(
        "7.0.0",
        EVERY_COMMAND,
        "[FILTERBY (MODULE module-name|ACLCAT category|PATTERN pattern)]",
        "Lists the names of commands.",
    ),
    command("command|getkeys", -4).doc(
        "2.8.13",
        "O(N) in the number of words",
        "command arg...",
        "Finds the keys of a command.",
    ),
    command("command|getkeysandflags", -4).doc(
        "7.0.0",
        "O(N) in the number of words",
        "command arg...",
        "Finds the keys of a command, and what becomes of them.",
    ),
    command("command|help", 2).doc("5.0.0", "O(1)", "", "Lists the subcommands."),
];

static CONFIG: &[Spec] = &[
    server("config|get", -3, ADMIN)
        .doc("2.0.0", "O(N) in the number of patterns", "parameter...", "Reads settings.")
        .differs("settings that tools ask for; those of AtlasKV are its flags"),
    server("config|set", -4, ADMIN)
        .tips(&[ALL_NODES, ALL_SUCCEED])
        .doc("2.0.0", "O(N) in the number of settings", "(parameter value)...", "Changes settings.")
        .differs("to what it is already; nothing can be changed while the server runs, and is refused"),
    server("config|resetstat", 2, ADMIN)
        .doc("2.0.0", "O(1)", "", "Lets counters begin anew.")
        .differs("answered, and changes nothing: counters are since the start"),
    server("config|rewrite", 2, ADMIN)
        .doc("2.8.0", "O(1)", "", "Writes settings into the configuration file.")
        .differs("refused as by a Redis that was started without a file"),
    server("config|help", 2, ALWAYS).doc("5.0.0", "O(1)", "", "Lists the subcommands."),
];

static MEMORY: &[Spec] = &[
    server("memory|usage", -3, Flags::READONLY)
        .keys(&[KeySpec::one(2, LOOK)])
        .doc("4.0.0", "O(1)", "key [SAMPLES count]", "Tells what a key and its value take.")
        .differs("bytes of the entry before compression, in memory or on disk"),
    server("memory|help", 2, ALWAYS).doc("4.0.0", "O(1)", "", "Lists the subcommands."),
];

const NEVER_SLOW: &str = "always empty";

static SLOWLOG: &[Spec] = &[
    server("slowlog|get", -2, SLOW)
        .tips(&[ALL_NODES, VARIES])
        .doc("2.2.12", "O(N) in the number of entries", "[count]", "Lists commands that were slow.")
        .differs(NEVER_SLOW),
    server("slowlog|len", 2, SLOW)
        .tips(&[ALL_NODES, SUM, VARIES])
        .doc("2.2.12", "O(1)", "", "Counts commands that were slow.")
        .differs(NEVER_SLOW),
    server("slowlog|reset", 2, SLOW)
        .tips(&[ALL_NODES, ALL_SUCCEED])
        .doc("2.2.12", "O(1)", "", "Forgets which commands were slow.")
        .differs(NEVER_SLOW),
    server("slowlog|help", 2, ALWAYS).doc("6.2.0", "O(1)", "", "Lists the subcommands."),
];

const EVENTS: &[&str] = &[VARIES, ALL_NODES, SPECIAL];
const NO_EVENTS: &str = "no events are recorded";

static LATENCY: &[Spec] = &[
    server("latency|latest", 2, ADMIN)
        .tips(EVENTS)
        .doc("2.8.13", "O(1)", "", "Lists the last sample of each event.")
        .differs(NO_EVENTS),
    server("latency|history", 3, ADMIN)
        .tips(EVENTS)
        .doc("2.8.13", "O(1)", "event", "Lists the samples of an event.")
        .differs(NO_EVENTS),
    server("latency|histogram", -2, ADMIN)
        .tips(EVENTS)
        .doc(
            "7.0.0",
            "O(N) in the number of commands",
            "[command...]",
            "Tells how the durations of commands are distributed.",
        )
        .differs("always empty"),
    server("latency|reset", -2, ADMIN)
        .tips(&[ALL_NODES, ALL_SUCCEED])
        .doc("2.8.13", "O(1)", "[event...]", "Forgets the samples of events.")
        .differs(NO_EVENTS),
    server("latency|doctor", 2, ADMIN)
        .tips(EVENTS)
        .doc("2.8.13", "O(1)", "", "Says in words what took long.")
        .differs(NO_EVENTS),
    server("latency|help", 2, ALWAYS).doc("2.8.13", "O(1)", "", "Lists the subcommands."),
];

static ACL: &[Spec] = &[
    server("acl|whoami", 2, CONNECTION)
        .doc("6.0.0", "O(1)", "", "Tells the name of this connection's user.")
        .differs("always `default`"),
    server("acl|list", 2, ADMIN)
        .doc("6.0.0", "O(1)", "", "Lists the rules of all users.")
        .differs("one user, `default`, who may do everything"),
    server("acl|users", 2, ADMIN)
        .doc("6.0.0", "O(1)", "", "Lists the names of all users.")
        .differs("one user, `default`"),
    server("acl|help", 2, ALWAYS).doc("6.0.0", "O(1)", "", "Lists the subcommands."),
];
