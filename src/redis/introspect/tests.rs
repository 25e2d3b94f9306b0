use super::*;

fn reply(words: &str, proto: Proto) -> String {
    let args: Vec<&[u8]> = words.split(' ').map(str::as_bytes).collect();
    let mut out = Vec::new();
    command(&mut out, &args, proto);
    String::from_utf8(out).expect("replies to these are text")
}

/// A reply, whose lines end with a semicolon here.
fn wire(text: &str) -> String {
    text.replace(';', "\r\n")
}

fn resp2(words: &str) -> String {
    reply(words, Proto::Resp2)
}

/// As a redis-server 7.0.15 answered, in both versions of the protocol.
#[test]
fn info_of_a_command_is_that_of_redis() {
    assert_eq!(
        resp2("COMMAND INFO set nosuch object|FREQ client|nosuch get|x"),
        wire(
            "*5;*10;$3;set;:-3;*2;+write;+denyoom;:1;:1;:1;*3;+@write;+@string;+@slow;*0;*1;*8;\
            $5;notes;$48;RW and ACCESS due to the optional `GET` argument;$5;flags;*4;+RW;\
            +access;+update;+variable_flags;$12;begin_search;*4;$4;type;$5;index;$4;spec;*2;$5;\
            index;:1;$9;find_keys;*4;$4;type;$5;range;$4;spec;*6;$7;lastkey;:0;$7;keystep;:1;$5;\
            limit;:0;*0;$-1;*10;$11;object|freq;:3;*1;+readonly;:2;:2;:1;*3;+@keyspace;+@read;\
            +@slow;*1;$23;nondeterministic_output;*1;*6;$5;flags;*1;+RO;$12;begin_search;*4;$4;\
            type;$5;index;$4;spec;*2;$5;index;:2;$9;find_keys;*4;$4;type;$5;range;$4;spec;*6;$7;\
            lastkey;:0;$7;keystep;:1;$5;limit;:0;*0;$-1;$-1;"
        )
    );
    assert_eq!(
        reply("command info mget nosuch", Proto::Resp3),
        wire(
            "*2;*10;$4;mget;:-2;~2;+readonly;+fast;:1;:-1;:1;~3;+@read;+@string;+@fast;~1;$26;\
            request_policy:multi_shard;~1;%3;$5;flags;~2;+RO;+access;$12;begin_search;%2;$4;\
            type;$5;index;$4;spec;%1;$5;index;:1;$9;find_keys;%2;$4;type;$5;range;$4;spec;%3;$7;\
            lastkey;:-1;$7;keystep;:1;$5;limit;:0;~0;_;"
        )
    );
}

#[test]
fn all_commands_are_counted_listed_and_told_of() {
    let count = table::supported().count();
    assert_eq!(resp2("COMMAND COUNT"), format!(":{count}\r\n"));
    assert!(resp2("COMMAND").starts_with(&format!("*{count}\r\n*10\r\n")));
    assert_eq!(resp2("COMMAND"), resp2("COMMAND INFO"));
    assert!(reply("COMMAND DOCS", Proto::Resp3).starts_with(&format!("%{count}\r\n")));
    let names = resp2("COMMAND LIST");
    assert!(names.contains("\r\nget\r\n") && names.contains("\r\nclient|id\r\n"));
    assert!(!names.contains("\r\neval\r\n"), "what is absent is not listed");
}

#[test]
fn names_are_listed_by_what_is_asked() {
    assert_eq!(resp2("COMMAND LIST FILTERBY PATTERN G[E]tB*"), "*1\r\n$6\r\ngetbit\r\n");
    assert_eq!(resp2("COMMAND LIST FILTERBY PATTERN *|ID"), "*1\r\n$9\r\nclient|id\r\n");
    assert_eq!(resp2("COMMAND LIST filterby module nosuch"), "*0\r\n");
    assert_eq!(resp2("COMMAND LIST filterby aclcat nosuch"), "*0\r\n");
    assert!(resp2("COMMAND LIST filterby aclcat BITMAP").starts_with("*7\r\n$6\r\nsetbit\r\n"));
    for wrong in ["FILTERBY", "FILTERBY PATTERN", "FILTERBY NOSUCH x", "a b c", "FILTERBY PATTERN a b"] {
        assert_eq!(resp2(&format!("COMMAND LIST {wrong}")), "-ERR syntax error\r\n");
    }
}

#[test]
fn keys_of_a_command_are_found() {
    assert_eq!(resp2("COMMAND GETKEYS mset a b c d"), "*2\r\n$1\r\na\r\n$1\r\nc\r\n");
    assert_eq!(resp2("COMMAND GETKEYS OBJECT Encoding k"), "*1\r\n$1\r\nk\r\n");
    assert_eq!(resp2("COMMAND GETKEYS bitop and d a"), "*2\r\n$1\r\nd\r\n$1\r\na\r\n");
    assert_eq!(
        reply("COMMAND GETKEYSANDFLAGS rename a b", Proto::Resp3),
        "*2\r\n*2\r\n$1\r\na\r\n~3\r\n+RW\r\n+access\r\n+delete\r\n*2\r\n$1\r\nb\r\n~2\r\n+OW\r\n+update\r\n"
    );
}

#[test]
fn what_becomes_of_a_key_depends_on_options() {
    let flags = |words: &str| {
        let text = resp2(&format!("COMMAND GETKEYSANDFLAGS {words}"));
        text.lines().filter_map(|line| line.strip_prefix('+')).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(flags("set k get"), "OW update");
    assert_eq!(flags("set k v xx GET ex 5"), "RW access update");
    assert_eq!(flags("set k v nosuch"), "OW update");
    assert_eq!(flags("bitfield k"), "RO access");
    assert_eq!(flags("bitfield k GET u8 0 overflow sat"), "RO access");
    assert_eq!(flags("bitfield k get u8"), "RW access update");
    assert_eq!(flags("bitfield k get u8 0 set u8 0 1"), "RW access update");
    assert_eq!(flags("bitfield k nosuch"), "RW access update");
}

#[test]
fn what_is_wrong_is_said_as_redis_does() {
    for (words, error) in [
        ("COUNT x", "wrong number of arguments for 'command|count' command"),
        ("GETKEYS get", "wrong number of arguments for 'command|getkeys' command"),
        ("GETKEYS nosuch k", "Invalid command specified"),
        ("GETKEYS eval x 1 k", "Invalid command specified"),
        ("GETKEYS object nosuch k", "Invalid command specified"),
        ("GETKEYS object|encoding k", "Invalid command specified"),
        ("GETKEYS ping x", "The command has no key arguments"),
        ("GETKEYS client id", "The command has no key arguments"),
        ("GETKEYS get k x", "Invalid number of arguments specified for command"),
        ("GETKEYS object encoding", "Invalid number of arguments specified for command"),
        ("NOSUCH", "unknown subcommand 'NOSUCH'. Try COMMAND HELP."),
    ] {
        assert_eq!(resp2(&format!("COMMAND {words}")), format!("-ERR {error}\r\n"));
    }
}

#[test]
fn docs_have_the_shape_that_clients_read() {
    assert_eq!(resp2("COMMAND DOCS nosuch"), "*0\r\n");
    assert_eq!(reply("COMMAND DOCS nosuch client|nosuch", Proto::Resp3), "%0\r\n");
    assert_eq!(
        reply("COMMAND DOCS substr quit", Proto::Resp3),
        wire(
            "%2;$6;substr;%8;$7;summary;$30;Reads a part of a key's value.;$5;since;$5;1.0.0;$5;\
            group;$6;string;$10;complexity;$34;O(N) in the length of what is read;$9;doc_flags;\
            ~1;+deprecated;$16;deprecated_since;$5;2.0.0;$11;replaced_by;$10;`GETRANGE`;$9;\
            arguments;*3;%3;$4;name;$3;key;$4;type;$3;key;$14;key_spec_index;:0;%2;$4;name;$5;\
            start;$4;type;$7;integer;%2;$4;name;$3;end;$4;type;$7;integer;$4;quit;%4;$7;summary;\
            $37;Answers OK and closes the connection.;$5;since;$5;1.0.0;$5;group;$10;connection;\
            $10;complexity;$4;O(1);"
        )
    );
}

/// Lines of a reply that are whole, one of each value in it: a count of a reply that is wrong leaves some
/// over.
#[test]
fn replies_have_as_many_items_as_they_say() {
    fn skip(text: &str) -> &str {
        let (head, rest) = text.split_once("\r\n").expect("a head has an end");
        let number = || head[1..].parse::<usize>().expect("a count");
        match head.as_bytes()[0] {
            b'+' | b'-' | b':' | b'_' => rest,
            b'$' if head == "$-1" => rest,
            b'$' => rest[number()..].strip_prefix("\r\n").expect("a string has an end"),
            b'*' | b'~' => (0..number()).fold(rest, |rest, _| skip(rest)),
            b'%' => (0..2 * number()).fold(rest, |rest, _| skip(rest)),
            other => panic!("no type: {other}"),
        }
    }
    for words in
        ["COMMAND", "COMMAND DOCS", "COMMAND LIST", "COMMAND HELP", "COMMAND GETKEYSANDFLAGS mset a b c d"]
    {
        for proto in [Proto::Resp2, Proto::Resp3] {
            assert_eq!(skip(&reply(words, proto)), "", "{words}");
        }
    }
}

#[test]
fn a_name_that_is_refused_is_cut_and_keeps_to_one_line() {
    let container = table::find(b"client").expect("it is supported");
    let mut out = Vec::new();
    unknown_subcommand(&mut out, container, &[&b"a\r\nb"[..], &[b'x'; 200]].concat());
    let text = String::from_utf8(out).expect("text");
    assert_eq!(text, format!("-ERR unknown subcommand 'a  b{}'. Try CLIENT HELP.\r\n", "x".repeat(124)));
}
