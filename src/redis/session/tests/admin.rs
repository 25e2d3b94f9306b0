//! What one client does to others and to the server.

use super::*;

/// Three clients beside the one that asks, whose number is 2.
const CLIENTS: &str = "id=2 addr=10.0.0.1:99 laddr=10.0.0.9:6379 name= db=0 multi=-1 user=default resp=2\n\
                       id=1 addr=10.0.0.2:1 laddr=10.0.0.9:6379 name=addr=10.0.0.3:1 db=0 multi=-1 user=default\n\
                       id=4 addr=10.0.0.3:1 laddr=10.0.0.8:6379 name= db=0 multi=-1 user=default resp=2\n\
                       id=7 addr=[::1]:5 laddr=10.0.0.9:6379 name= db=0 multi=-1 user=default resp=3\n";

fn client() -> Client {
    let mut client = Client::new(false);
    assert_eq!(client.session.id(), 2);
    client.clients = CLIENTS.to_owned();
    client
}

#[test]
fn clients_are_killed_by_what_is_known_of_them() {
    for (line, reply, told) in [
        ("client kill 10.0.0.2:1", "+OK\r\n", &["0: [1]"][..]),
        ("client kill 10.0.0.2", "-ERR No such client\r\n", &[]),
        ("client kill [::1]:5", "+OK\r\n", &["0: [7]"]),
        ("client kill id 4", ":1\r\n", &["1: [4]"]),
        ("client kill id 4 addr 10.0.0.2:1", ":0\r\n", &[]),
        ("client kill addr 10.0.0.3:1", ":1\r\n", &["1: [4]"]),
        ("client kill laddr 10.0.0.9:6379", ":2\r\n", &["0: [1, 7]"]),
        ("client kill type normal user default", ":3\r\n", &["0: [1, 7]", "1: [4]"]),
        ("client kill type pubsub", ":0\r\n", &[]),
        ("client kill id 2", ":0\r\n", &[]),
        ("client kill id 99", ":0\r\n", &["0: [99]"]),
        ("client kill id 4 id 1", ":1\r\n", &["0: [1]"]),
    ] {
        let mut client = client();
        assert_eq!(client.ask(line), reply, "{line}");
        assert_eq!(client.told, told, "{line}");
        assert_eq!(client.ask("ping"), "+PONG\r\n", "{line}: it stays");
    }
}

#[test]
fn who_kills_itself_is_answered_first() {
    for (line, reply, told) in [
        ("client kill 10.0.0.1:99", "+OK\r\n", &[][..]),
        ("client kill id 2 skipme no", ":1\r\n", &[]),
        ("client kill laddr 10.0.0.9:6379 SKIPME NO", ":3\r\n", &["0: [1, 7]"]),
    ] {
        let mut client = client();
        assert_eq!(client.ask(line), reply, "{line}");
        assert_eq!(client.told, told, "{line}");
        assert_eq!(client.send(b"PING\r\n"), (0, Taken::Close), "{line}");
        assert_eq!(client.session.take_out(), b"", "{line}");
    }
}

#[test]
fn nothing_behind_it_is_taken_in_before_it_is_answered() {
    let mut client = client();
    let input = b"CLIENT KILL ID 4 TYPE normal USER default ADDR 10.0.0.3:1\r\nGET k\r\n";
    assert_eq!(client.send(input), (input.len() - 7, Taken::Pause));
    assert!(client.session.is_waiting());
    assert_eq!(client.answer(0), b"");
    assert_eq!(client.answer(0), b":1\r\n");
    assert!(!client.session.is_waiting());
}

/// As a redis-server 7.0.15 answers.
#[test]
fn what_makes_no_sense_is_told_as_redis_does() {
    for (line, reply) in [
        ("client kill", "wrong number of arguments for 'client|kill' command"),
        ("client kill id 0", "client-id should be greater than 0"),
        ("client kill id x", "client-id should be greater than 0"),
        ("client kill id 9223372036854775808", "client-id should be greater than 0"),
        ("client kill type x", "Unknown client type 'x'"),
        ("client kill type normal skipme", "syntax error"),
        ("client kill user x", "No such user 'x'"),
        ("client kill skipme maybe", "syntax error"),
        ("client kill nope 1", "syntax error"),
        ("client kill maxage 5", "syntax error"),
        ("client pause", "wrong number of arguments for 'client|pause' command"),
        ("client pause x", "timeout is not an integer or out of range"),
        ("client pause -1", "timeout is negative"),
        ("client pause x x", "CLIENT PAUSE mode must be WRITE or ALL"),
        (
            "client pause 1 write x",
            "unknown subcommand or wrong number of arguments for 'pause'. Try CLIENT HELP.",
        ),
        ("client unpause x", "wrong number of arguments for 'client|unpause' command"),
        ("shutdown x", "syntax error"),
        ("shutdown abort", "No shutdown in progress."),
        ("shutdown abort now", "syntax error"),
        ("shutdown save nosave", "syntax error"),
        ("save x", "wrong number of arguments for 'save' command"),
        ("bgsave x", "syntax error"),
        ("bgsave schedule x", "syntax error"),
        ("config set save", "wrong number of arguments for 'config|set' command"),
        ("config set save \"\" x", "syntax error"),
        ("config set nope 1 save \"\"", "Unknown option or number of arguments for CONFIG SET - 'nope'"),
        (
            "config set save \"\" SAVE \"\"",
            "CONFIG SET failed (possibly related to argument 'SAVE') - duplicate parameter",
        ),
        (
            "config set save \"\" maxmemory 8",
            "CONFIG SET failed (possibly related to argument 'maxmemory') - settings are flags of the server, read at \
             its start",
        ),
    ] {
        let mut client = client();
        assert_eq!(client.ask(line), format!("-ERR {reply}\r\n"), "{line}");
        assert!(client.told.is_empty(), "{line}");
    }
    assert_eq!(client().ask("config set save \"\" MAXMEMORY 7"), "+OK\r\n", "as they are");
}

#[test]
fn all_shards_know_of_a_pause_before_it_is_answered() {
    let mut client = client();
    client.send(b"CLIENT PAUSE 70 WRITE\r\n");
    assert_eq!(client.answer(1), b"");
    assert_eq!(client.answer(0), b"+OK\r\n");
    assert_eq!(client.told, ["1: Pause { paused: Writes, ms: 70 }", "0: Pause { paused: Writes, ms: 70 }"]);
    client.told.clear();
    assert_eq!(client.ask("client pause 0"), "+OK\r\n");
    assert_eq!(client.told, ["0: Pause { paused: All, ms: 0 }", "1: Pause { paused: All, ms: 0 }"]);
    client.told.clear();
    assert_eq!(client.ask("client unpause"), "+OK\r\n");
    assert_eq!(client.told, ["0: Unpause", "1: Unpause"]);
}

/// As a redis-server 7.0.15 holds back, but for CLIENT UNPAUSE.
#[test]
fn a_pause_holds_back_what_it_should() {
    use Paused::{All, Writes};
    for (before, line, held_by) in [
        ("", "get k", Some(All)),
        ("", "set k v", Some(Writes)),
        ("", "flushall", Some(Writes)),
        ("", "getex k", Some(Writes)),
        ("", "bitfield k get u8 0", Some(Writes)),
        ("", "bitfield_ro k get u8 0", Some(All)),
        ("", "ping", Some(All)),
        ("", "quit", Some(All)),
        ("", "client pause 1", Some(All)),
        ("", "client unpause", None),
        ("", "shutdown abort", Some(All)),
        ("", "bgsave", Some(All)),
        ("", "get", None),
        ("", "set k", None),
        ("", "nope", None),
        ("", "client nope", None),
        ("", "client id x", None),
        ("", "post x", None),
        ("", "exec", Some(All)),
        ("multi", "get k", Some(All)),
        ("multi", "set k v", Some(Writes)),
        ("multi", "shutdown", None),
        ("multi;get k", "exec", Some(All)),
        ("multi;get k;set k v", "exec", Some(Writes)),
        ("multi;set x;set k v", "exec", Some(All)),
        ("multi;set k v", "discard", Some(All)),
    ] {
        for paused in [Writes, All] {
            let mut client = client();
            before.split(';').filter(|line| !line.is_empty()).for_each(|line| drop(client.ask(line)));
            client.paused = Some(paused);
            let input = format!("{line}\r\n");
            let (mut used, taken) = client.send(input.as_bytes());
            if held_by.is_some_and(|least| least <= paused) {
                assert_eq!((used, taken), (0, Taken::Pause), "{line}, {paused:?}");
                assert_eq!(client.session.held_by(), held_by, "{line}, {paused:?}");
                client.paused = None;
                used = client.send(input.as_bytes()).0;
            }
            assert_eq!(used, input.len(), "{line}, {paused:?}");
            assert_eq!(client.session.held_by(), None, "{line}");
        }
    }
}

#[test]
fn what_needs_no_command_is_not_held_back() {
    for (input, used, taken) in [
        (&b"*1\r\n$4\r\nPI"[..], 0, Taken::NeedMore { wanted: 14 }),
        (b"\r\n", 2, Taken::NeedMore { wanted: 1 }),
        (b"*x\r\n", 0, Taken::Close),
    ] {
        let mut client = client();
        client.paused = Some(Paused::All);
        assert_eq!(client.send(input), (used, taken), "{}", input.escape_ascii());
    }
}

#[test]
fn a_shutdown_is_not_answered() {
    STOPS.set(0);
    for line in ["shutdown", "SHUTDOWN NOSAVE NOW FORCE", "shutdown save"] {
        let mut client = client();
        let input = format!("{line}\r\nPING\r\n");
        assert_eq!(client.send(input.as_bytes()).1, Taken::Close, "{line}");
        assert_eq!(client.session.take_out(), b"", "{line}");
    }
    assert_eq!(STOPS.get(), 3);
    let mut client = client();
    client.ask("multi");
    assert_eq!(client.ask("shutdown"), "-ERR Command not allowed inside a transaction\r\n");
    assert_eq!(STOPS.get(), 3);
}

#[test]
fn saves_come_after_what_was_written_before() {
    let mut client = client();
    let input = b"SET k v\r\nSAVE\r\nBGSAVE schedule\r\n";
    assert_eq!(client.send(input), (9, Taken::Pause), "SET is under way");
    assert_eq!(client.answer(0), b"+OK\r\n");
    assert_eq!(client.send(&input[9..]), (6, Taken::Pause));
    assert_eq!(client.answer(0), b"+OK\r\n");
    client.send(&input[15..]);
    assert_eq!(client.answer(0), b"+Background saving started\r\n");
    assert_eq!(client.told, ["save", "bgsave"]);
    assert_eq!(client.ask("lastsave"), ":1\r\n");
    let saves = client.session.context.saves.clone();
    saves.begins();
    assert!(saves.is_running());
    saves.ended(None);
    assert!(saves.has_failed() && !saves.is_running());
    assert_eq!(client.ask("lastsave"), ":1\r\n", "that one was not made");
    saves.ended(Some(7_999));
    assert_eq!(client.ask("lastsave"), ":7\r\n");
    assert!(client.ask("info persistence").contains("\r\nrdb_last_bgsave_status:ok\r\n"));
}
