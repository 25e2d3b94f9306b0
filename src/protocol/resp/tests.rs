use proptest::prelude::*;

use super::*;

/// What a stream of commands came to: the arguments of each, and what ended it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    commands: Vec<Vec<Vec<u8>>>,
    error: Option<ProtocolError>,
    /// Bytes at the end that are part of a command.
    left: usize,
}

/// Feeds `parser` with pieces as a server does, and looks after what it says about how much is missing.
fn feed<'a>(mut parser: Parser, pieces: impl IntoIterator<Item = &'a [u8]>) -> Seen {
    let mut seen = Seen::default();
    let mut buffer: Vec<u8> = Vec::new();
    for piece in pieces {
        buffer.extend_from_slice(piece);
        let mut at = 0;
        loop {
            let mut args = Args::new();
            let used = match parser.parse(&buffer[at..], &mut args) {
                Ok(Parsed::NeedMore { wanted }) => {
                    assert!(wanted > buffer.len() - at, "what is there was said not to be enough");
                    break;
                }
                Ok(Parsed::Nothing { used }) => used,
                Ok(Parsed::Command { used }) => {
                    assert!(!args.is_empty());
                    seen.commands.push(args.iter().map(|arg| arg.to_vec()).collect());
                    used
                }
                Ok(Parsed::Quoted { used, words }) => {
                    assert!(!words.is_empty());
                    seen.commands.push(words);
                    used
                }
                Err(error) => {
                    seen.error = Some(error);
                    return seen;
                }
            };
            assert!((1..=buffer.len() - at).contains(&used));
            assert!(!parser.is_within_command());
            at += used;
        }
        buffer.drain(..at);
    }
    seen.left = buffer.len();
    seen
}

/// All at once.
fn whole(stream: &[u8]) -> Seen {
    feed(Parser::new(Limits::default()), [stream])
}

/// The commands of a stream that has nothing else, a space between two arguments.
fn commands(stream: &[u8]) -> Vec<String> {
    let seen = whole(stream);
    assert_eq!((seen.error, seen.left), (None, 0), "{}", stream.escape_ascii());
    seen.commands.iter().map(|args| args.join(&b' ').escape_ascii().to_string()).collect()
}

/// The reply to a stream that ends in an error.
fn refusal(stream: &[u8]) -> String {
    let mut out = Vec::new();
    match whole(stream).error {
        Some(error) => error.encode(&mut out),
        None => panic!("{} was not refused", stream.escape_ascii()),
    }
    out.escape_ascii().to_string()
}

fn waits(stream: &[u8]) -> bool {
    let seen = whole(stream);
    seen.error.is_none() && seen.commands.is_empty() && seen.left == stream.len()
}

const STREAM: &[u8] = b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*0\r\nPING\r\n*-1\r\n\r\n  set 'a b' \"\\x00\\n\"  \n\
    *3\r\n$3\r\nSET\r\n$0\r\n\r\n$13\r\n\r\n$1\r\n*2\r\n\0\xff\r\r\n*1\r\n$4\r\nQUIT\r\n";

#[test]
fn a_stream_is_the_same_commands_however_it_is_cut() {
    let expected = whole(STREAM);
    let texts: Vec<Vec<String>> = (expected.commands.iter())
        .map(|args| args.iter().map(|arg| arg.escape_ascii().to_string()).collect())
        .collect();
    assert_eq!(
        texts,
        [
            &["GET", "k"][..],
            &["PING"],
            &["set", "a b", "\\x00\\n"],
            &["SET", "", "\\r\\n$1\\r\\n*2\\r\\n\\x00\\xff\\r"],
            &["QUIT"],
        ]
    );
    let parser = || Parser::new(Limits::default());
    for len in 1..STREAM.len() {
        assert_eq!(feed(parser(), STREAM.chunks(len)), expected, "in pieces of {len}");
        for second in len..STREAM.len() {
            let pieces = [&STREAM[..len], &STREAM[len..second], &STREAM[second..]];
            assert_eq!(feed(parser(), pieces), expected, "cut at {len} and {second}");
        }
    }
}

#[test]
fn ends_of_lines_are_not_looked_at_beyond_their_first_byte() {
    assert_eq!(commands(b"*1\rX$4\rYPINGab*1\r\n$4\r\nPING\r\n"), ["PING", "PING"]);
    assert_eq!(commands(b"PING\nPING\r\nPING\r\r\n\n\r\n"), ["PING", "PING", "PING"]);
    assert!(waits(b"*1\n$4\nPING\n"));
}

#[test]
fn a_nul_hides_the_end_of_its_line() {
    assert!(waits(b"PING\0\r\n"));
    assert!(waits(b"*1\0\r\n$4\r\nPING\r\n"));
    assert_eq!(whole(b"*1\r\n\0abc\r\n").error, None);
    let endless = [&b"PING\0\n"[..], &[b'\n'; 70_000]].concat();
    assert_eq!(refusal(&endless), "-ERR Protocol error: too big inline request\\r\\n");
}

#[test]
fn lengths_have_one_way_to_be_written() {
    let bad = "-ERR Protocol error: invalid multibulk length\\r\\n";
    for count in ["", "01", "-0", "+1", " 1", "1 ", "00", "1x", "0x1", "99999999999999999999", "-01", "-"] {
        assert_eq!(refusal(format!("*{count}\r\n").as_bytes()), bad, "{count}");
    }
    assert_eq!(refusal(b"*-99999999999999999999\r\n"), bad);
    assert_eq!(commands(b"*-9223372036854775808\r\nPING\r\n"), ["PING"]);
    let bad = "-ERR Protocol error: invalid bulk length\\r\\n";
    for len in ["", "-1", "00", "04", "-0", "4 ", "536870913", "1000000000000", "9223372036854775808"] {
        assert_eq!(refusal(format!("*1\r\n${len}\r\n").as_bytes()), bad, "{len}");
    }
    assert_eq!(whole(b"*1\r\n$536870912\r\n").error, None);
    assert_eq!(whole(b"*1048576\r\n").error, None);
    assert!(whole(b"*1048577\r\n").error.is_some());
}

#[test]
fn what_stands_for_an_argument_is_named() {
    let got = |byte: &str| format!("-ERR Protocol error: expected \\'$\\', got \\'{byte}\\'\\r\\n");
    for (byte, shown) in
        [(b':', ":"), (b'\r', " "), (b'\n', " "), (0xff, "\\xff"), (1, "\\x01"), (b'\t', "\\t")]
    {
        assert_eq!(refusal(&[b"*1\r\n", &[byte][..], b"4\r\n"].concat()), got(shown));
    }
    // It takes a whole line to be told.
    assert_eq!(whole(b"*1\r\n:4").error, None);
}

#[test]
fn lines_end_within_64_kib_and_a_byte() {
    let line = |start: &str, len: usize, end: &str| {
        [start.as_bytes(), &vec![b'1'; len - start.len()], end.as_bytes()].concat()
    };
    let max = 64 << 10;
    assert!(waits(&line("*", max, "")));
    assert!(refusal(&line("*", max + 1, "")).contains("too big mbulk count string"));
    assert!(refusal(&line("*", max, "\r\n")).contains("invalid multibulk length"));
    assert!(refusal(&line("*", max + 1, "\r\n")).contains("too big mbulk count string"));
    assert_eq!(whole(&[b"*1\r\n", &line("$", max, "")[..]].concat()).error, None);
    assert!(
        refusal(&[b"*1\r\n", &line("$", max + 1, "")[..]].concat()).contains("too big bulk count string")
    );
    assert!(waits(&line("x", max, "")));
    assert_eq!(commands(&line("x", max, "\n")).len(), 1);
    assert!(refusal(&line("x", max + 1, "")).contains("too big inline request"));
    assert!(refusal(&line("x", max + 1, "\n")).contains("too big inline request"));
}

#[test]
fn words_are_split_as_redis_splits_them() {
    let words = |line: &str| {
        let seen = whole(format!("{line}\r\n").as_bytes());
        match (seen.error, &seen.commands[..]) {
            (None, [words]) => words.iter().map(|word| word.escape_ascii().to_string()).collect(),
            (Some(ProtocolError::UnbalancedQuotes), []) => vec!["unbalanced".to_string()],
            other => panic!("{line}: {other:?}"),
        }
    };
    assert_eq!(words("  a\tb\r c "), ["a", "b", "c"]);
    assert_eq!(words(r#""a\x41\n\r\t\b\a\q\"" x"#), [r#"aA\n\r\t\x08\x07q\""#, "x"]);
    assert_eq!(words(r#""\xg1\x4""#), ["xg1x4"]);
    assert_eq!(words(r#"'a\'b\n"'"#), [r#"a\'b\\n\""#]);
    assert_eq!(words(r#"foo"bar" a\x41"#), ["foobar", r"a\\x41"]);
    assert_eq!(words(r#""" '' x''"#), ["", "", "x"]);
    assert_eq!(words("a\x0bb"), [r"a\x0bb"]);
    assert_eq!(words("\x0b\x0ca\x0b\x0c b"), [r"a\x0b\x0c", "b"]);
    assert_eq!(words("\"a\"\x0bb"), ["a", "b"]);
    assert_eq!(words("\x0b \"a\"\x0c"), ["a"]);
    for unbalanced in
        [r#""a"b"#, "'a'b", "'a''b'", r#""a"#, "'a", r#""a\"#, r#"a""b"#, r#"x ""#, r#""a\""#, r"'a\'"]
    {
        assert_eq!(words(unbalanced), ["unbalanced"], "{unbalanced}");
    }
}

#[test]
fn who_is_not_authenticated_sends_little() {
    let parse = |stream: &[u8]| {
        let mut parser = Parser::new(Limits::default());
        parser.set_authenticated(false);
        feed(parser, [stream])
    };
    let mut out = Vec::new();
    assert_eq!(parse(b"*10\r\n$16384\r\n").error, None);
    parse(b"*11\r\n").error.unwrap().encode(&mut out);
    parse(b"*1\r\n$16385\r\n").error.unwrap().encode(&mut out);
    let expected = "-ERR Protocol error: unauthenticated multibulk length\r\n\
        -ERR Protocol error: unauthenticated bulk length\r\n";
    assert_eq!(out, expected.as_bytes());
}

#[test]
fn all_arguments_together_have_a_limit() {
    let limits = Limits { command_bytes_max: 10, ..Limits::default() };
    let parse = |stream: &[u8]| feed(Parser::new(limits), [stream]);
    assert_eq!(parse(b"*3\r\n$3\r\nSET\r\n$3\r\nabc\r\n$4\r\n0123\r\n").commands.len(), 1);
    let error = parse(b"*3\r\n$3\r\nSET\r\n$3\r\nabc\r\n$5\r\n").error;
    assert_eq!(error, Some(ProtocolError::CommandTooLarge { bytes_max: 10 }));
}

#[test]
fn a_long_argument_is_asked_for_as_a_whole() {
    let mut parser = Parser::new(Limits::default());
    let head = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1000000\r\nvalue";
    let wanted = head.len() - b"value".len() + 1_000_000 + 2;
    assert_eq!(parser.parse(head, &mut Args::new()), Ok(Parsed::NeedMore { wanted }));
    assert!(parser.is_within_command());
    let whole = [&head[..], &vec![b'.'; wanted - head.len()]].concat();
    let mut args = Args::new();
    assert_eq!(parser.parse(&whole[..wanted - 1], &mut args), Ok(Parsed::NeedMore { wanted }));
    assert_eq!(parser.parse(&whole, &mut args), Ok(Parsed::Command { used: wanted }));
    assert_eq!(args.iter().map(|arg| arg.len()).collect::<Vec<_>>(), [3, 1, 1_000_000]);
    assert!(!parser.is_within_command());
}

/// Once each read parsed such a command from its start, which took minutes.
#[test]
fn a_command_of_a_million_arguments_comes_in_pieces() {
    let count = Limits::default().args_max;
    let mut stream = format!("*{count}\r\n").into_bytes();
    for number in 0..count {
        bulk(&mut stream, &(number as u16).to_le_bytes());
    }
    // Pieces of a packet's size: 5000 of them.
    let seen = feed(Parser::new(Limits::default()), stream.chunks(1700));
    assert_eq!((seen.error, seen.left, seen.commands.len()), (None, 0, 1));
    let args = &seen.commands[0];
    assert_eq!(args.len(), count);
    assert!(args.iter().enumerate().all(|(number, arg)| arg[..] == (number as u16).to_le_bytes()));
}

#[test]
fn replies_look_as_redis_writes_them() {
    use Proto::{Resp2, Resp3};
    let mut out = Vec::new();
    simple(&mut out, "OK");
    error(&mut out, "ERR a\r\nb");
    error_bytes(&mut out, b"ERR '\xff\n'");
    for number in [0, 9, 10, -1, -10, i64::MAX, i64::MIN] {
        integer(&mut out, number);
    }
    bulk(&mut out, b"");
    bulk(&mut out, b"0123456789\r\n");
    array(&mut out, 1_234_567);
    let common: &[u8] = b"+OK\r\n-ERR a  b\r\n-ERR '\xff '\r\n:0\r\n:9\r\n:10\r\n:-1\r\n:-10\r\n\
        :9223372036854775807\r\n:-9223372036854775808\r\n$0\r\n\r\n$12\r\n0123456789\r\n\r\n*1234567\r\n";
    assert_eq!(out.escape_ascii().to_string(), common.escape_ascii().to_string());
    let typed = |proto| {
        let mut out = Vec::new();
        null(&mut out, proto);
        null_array(&mut out, proto);
        map(&mut out, 7, proto);
        set(&mut out, 11, proto);
        push(&mut out, 3, proto);
        boolean(&mut out, true, proto);
        boolean(&mut out, false, proto);
        double(&mut out, "1.5", proto);
        verbatim(&mut out, "txt", b"a\nb", proto);
        String::from_utf8(out).unwrap()
    };
    assert_eq!(typed(Resp2), "$-1\r\n*-1\r\n*14\r\n*11\r\n*3\r\n:1\r\n:0\r\n$3\r\n1.5\r\n$3\r\na\nb\r\n");
    assert_eq!(typed(Resp3), "_\r\n_\r\n%7\r\n~11\r\n>3\r\n#t\r\n#f\r\n,1.5\r\n=7\r\ntxt:a\nb\r\n");
}

#[test]
fn replies_are_decoded_to_what_they_say() {
    let all =
        b"*14\r\n+OK\r\n-ERR x\r\n!5\r\nERR y\r\n:-7\r\n$2\r\n\r\n\r\n$-1\r\n*-1\r\n_\r\n#t\r\n,inf\r\n\
        (12345678901234567890\r\n=5\r\ntxt:a\r\n%1\r\n+k\r\n~1\r\n:1\r\n|1\r\n+ttl\r\n:1\r\n>0\r\n";
    let expected = Reply::Array(vec![
        Reply::Simple(b"OK"),
        Reply::Error(b"ERR x"),
        Reply::Error(b"ERR y"),
        Reply::Integer(-7),
        Reply::Bulk(b"\r\n"),
        Reply::Null,
        Reply::NullArray,
        Reply::Null,
        Reply::Boolean(true),
        Reply::Double(b"inf"),
        Reply::BigNumber(b"12345678901234567890"),
        Reply::Verbatim { format: *b"txt", text: b"a" },
        Reply::Map(vec![(Reply::Simple(b"k"), Reply::Set(vec![Reply::Integer(1)]))]),
        Reply::Push(vec![]),
    ]);
    assert_eq!(decode_reply(all), Ok(Some((expected, all.len()))));
    for len in 0..all.len() {
        assert_eq!(decode_reply(&all[..len]), Ok(None), "{len} bytes");
    }
    for wrong in [
        &b"HTTP/1.1\r\n"[..],
        b"\r\n",
        b":x\r\n",
        b"$-2\r\n",
        b"$1\r\nabc",
        b"#x\r\n",
        b"_x\r\n",
        b"=3\r\ntxt\r\n",
        b"+a\rb",
        b"*-2\r\n",
        b"%-1\r\n",
    ] {
        assert!(decode_reply(wrong).is_err(), "{}", wrong.escape_ascii());
    }
    assert!(decode_reply(&b"*1\r\n".repeat(100)).is_err());
}

/// Arguments with what could be taken for something else.
fn argument() -> impl Strategy<Value = Vec<u8>> {
    let letters = prop::sample::select(b"*$0123\r\n\0'\"a\xff".as_slice());
    prop_oneof![prop::collection::vec(letters, 0..12), prop::collection::vec(any::<u8>(), 0..300)]
}

fn quoted(arg: &[u8]) -> Vec<u8> {
    let mut text = vec![b'"'];
    arg.iter().for_each(|byte| text.extend_from_slice(format!("\\x{byte:02x}").as_bytes()));
    text.push(b'"');
    text
}

proptest! {
    #[test]
    fn arguments_come_back(
        commands in prop::collection::vec((prop::collection::vec(argument(), 1..20), any::<bool>()), 0..10),
        cuts in prop::collection::vec(1..40usize, 1..40),
    ) {
        let mut stream = Vec::new();
        for (args, is_inline) in &commands {
            if *is_inline {
                let words: Vec<Vec<u8>> = args.iter().map(|arg| quoted(arg)).collect();
                stream.extend_from_slice(&words.join(&b' '));
                stream.push(b'\n');
            } else {
                array(&mut stream, args.len());
                args.iter().for_each(|arg| bulk(&mut stream, arg));
            }
        }
        let mut pieces = Vec::new();
        let (mut rest, mut cuts) = (&stream[..], cuts.iter().cycle());
        while let (false, Some(cut)) = (rest.is_empty(), cuts.next()) {
            let (piece, tail) = rest.split_at(rest.len().min(*cut));
            pieces.push(piece);
            rest = tail;
        }
        let seen = feed(Parser::new(Limits::default()), pieces);
        prop_assert_eq!((seen.error, seen.left), (None, 0));
        prop_assert_eq!(seen.commands, commands.into_iter().map(|(args, _)| args).collect::<Vec<_>>());
    }

    #[test]
    fn bytes_of_any_kind_mean_the_same_however_they_are_cut(
        stream in prop::collection::vec(prop::sample::select(b"**$$00112\r\r\r\n\n\n\0'\"\\xa -".as_slice()), 0..60),
        cut in 1..8usize,
    ) {
        let limits = Limits { bulk_bytes_max: 11, args_max: 12, inline_bytes_max: 8, command_bytes_max: 14 };
        let parser = || Parser::new(limits);
        prop_assert_eq!(feed(parser(), [&stream[..]]), feed(parser(), stream.chunks(cut)));
    }
}
