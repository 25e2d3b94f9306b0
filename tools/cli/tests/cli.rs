//! The binary against a server of a few lines: what it prints, and how it exits.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};

use atlaskv::base::Lsn;
use atlaskv::error::{Code, Refusal};
use atlaskv::protocol::binary::{
    Cursor, HEADER_BYTES, PageEncoder, TOO_MANY_CONNECTIONS, VERSION, ValueListEncoder, decode_header,
    decode_request, encode_reply,
};
use atlaskv::protocol::{Action, Hello, Lifetime, Limits, Reply, Request, ScanEntry, ShardRange};
use atlaskv::slot::SlotRange;

type Store = BTreeMap<Vec<u8>, (Lsn, Vec<u8>)>;

/// What is left of every key that ends in `ttl`.
const LEFT: Lifetime = Lifetime { remaining_ms: 1500, expires_at_ms: 9 };

/// Serves one connection after another from one map.
fn start() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut store = Store::new();
        for stream in listener.incoming() {
            serve(stream.unwrap(), &mut store);
        }
    });
    address
}

fn serve(mut stream: TcpStream, store: &mut Store) {
    let limits = Limits::for_values(1 << 20);
    let (mut input, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        while let Some(header) = decode_header(&input, &limits).unwrap() {
            if input.len() < header.frame_bytes() {
                break;
            }
            let frame: Vec<u8> = input.drain(..header.frame_bytes()).collect();
            let request = decode_request(&header, &frame[HEADER_BYTES..], &limits).unwrap();
            let mut out = Vec::new();
            answer(&request, header.request_id, limits, store, &mut out);
            stream.write_all(&out).unwrap();
        }
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return,
            Ok(count) => input.extend_from_slice(&chunk[..count]),
        }
    }
}

fn answer(request: &Request<'_>, id: u64, limits: Limits, store: &mut Store, out: &mut Vec<u8>) {
    let next = Lsn(store.values().map(|(version, _)| version.0).max().unwrap_or(65_536) + 1);
    let mut reply = |reply: Reply<'_>| encode_reply(out, request.opcode(), id, 1, &reply);
    match *request {
        Request::Hello(_) => {
            let ranges = vec![ShardRange { slots: SlotRange::ALL, shard: 0 }];
            reply(Reply::Hello(Hello {
                version: VERSION,
                shard_count: 1,
                shard: 0,
                epoch: 1,
                limits,
                ranges,
            }));
        }
        Request::Ping { payload } => reply(Reply::Pong(payload)),
        Request::Get { key } => match store.get(key) {
            Some((version, value)) => reply(Reply::Value { version: *version, value }),
            None => reply(Reply::Absent),
        },
        Request::Set { key, value, condition, .. } => {
            let current = store.get(key).map(|(version, _)| *version);
            if condition.holds(current) {
                store.insert(key.to_vec(), (next, value.to_vec()));
                reply(Reply::Written { version: next });
            } else {
                reply(Reply::ConditionFailed { current });
            }
        }
        Request::Delete { key, .. } => match store.remove(key) {
            Some(_) => reply(Reply::Written { version: next }),
            None => reply(Reply::Absent),
        },
        Request::Mget { keys } => {
            let mut encoder = ValueListEncoder::begin(out, id, 1);
            for key in keys {
                match store.get(key) {
                    Some((version, value)) => encoder.present(*version, value),
                    None => encoder.absent(),
                }
            }
            encoder.finish();
        }
        Request::Batch { ops, .. } => {
            let current = |key: &[u8]| store.get(key).map(|(version, _)| *version);
            if let Some((item, op)) = (0..).zip(ops).find(|(_, op)| !op.condition.holds(current(op.key))) {
                return reply(Reply::BatchFailed { item, current: current(op.key) });
            }
            for op in ops {
                if let Action::Put { value, .. } = op.action {
                    store.insert(op.key.to_vec(), (next, value.to_vec()));
                }
            }
            reply(Reply::Written { version: next });
        }
        Request::Incr { amount: 13, .. } => {
            reply(Reply::Refused(Refusal::new(Code::DiskFull, "no room\nfor \x1b[31mthirteen")));
        }
        Request::Incr { amount, .. } => reply(Reply::Counter { version: next, value: amount }),
        Request::Stats { .. } => reply(Reply::Stats("shards=1\n")),
        Request::Checkpoint { dir } => reply(Reply::Stats(&format!("dir={dir}\n"))),
        Request::DeleteRange(range) => {
            store.retain(|key, _| &key[..] < range.start || (!range.end.is_empty() && &key[..] >= range.end));
            reply(Reply::Done);
        }
        Request::Transact(_) | Request::Clients(_) => unreachable!("the tool has no way to ask for it"),
        Request::Tablets { command } => reply(Reply::Stats(&format!("command={command}\n"))),
        Request::Scan(scan) => {
            // Two entries a page, so that cursors are needed.
            let after = scan.cursor.map_or(&[][..], |cursor| cursor.key);
            let is_wanted = |key: &[u8]| {
                let is_after = after.is_empty() || if scan.is_reverse { key < after } else { key > after };
                is_after && key >= scan.start && (scan.end.is_empty() || key < scan.end)
            };
            let mut keys: Vec<_> = store.keys().filter(|key| is_wanted(key)).cloned().collect();
            if scan.is_reverse {
                keys.reverse();
            }
            let limit = if scan.limit == 0 { usize::MAX } else { scan.limit as usize };
            let is_end = keys.len() <= 2 || limit <= 2;
            let mut page = PageEncoder::new(id, 1);
            for key in keys.iter().take(limit.min(2)) {
                let (version, value) = &store[key];
                let value = if scan.is_keys_only { &[][..] } else { value };
                page.push(&ScanEntry { key, version: *version, expiry_ms: 0, value });
            }
            let mut cursor = Vec::new();
            if !is_end {
                Cursor { shard: 0, page: 1, session: 1, key: &keys[1] }.encode(&mut cursor);
            }
            out.extend_from_slice(&page.finish(false, (!is_end).then_some(&cursor[..])));
        }
        Request::Expire { key, .. } | Request::Persist { key, .. } => match store.contains_key(key) {
            true => reply(Reply::Written { version: next }),
            false => reply(Reply::Absent),
        },
        Request::Ttl { key } => match store.get(key) {
            Some((version, _)) => {
                let lifetime = key.ends_with(b"ttl").then_some(LEFT);
                reply(Reply::Lifetime { version: *version, lifetime });
            }
            None => reply(Reply::Absent),
        },
    }
}

fn cli(address: SocketAddr, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_atlaskv-cli"))
        .args(["-a", &address.to_string()])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that fails early does not read it.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// Runs a command, compares standard output and exit code, and gives standard error.
#[track_caller]
fn expect(address: SocketAddr, arguments: &[&str], wanted: &[u8], code: i32) -> String {
    let output = cli(address, arguments, b"");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.stdout, wanted, "{arguments:?}: {stderr}");
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    assert_eq!(stderr.is_empty(), code == 0, "{arguments:?}: {stderr}");
    assert!(stderr.is_empty() || stderr.starts_with("atlaskv-cli: "), "{stderr}");
    assert_eq!(stderr.lines().count(), usize::from(code != 0), "{stderr}");
    stderr
}

#[test]
fn commands_print_what_they_should_and_exit_as_they_should() {
    let server = start();
    expect(server, &["ping"], b"pong\n", 0);
    expect(server, &["ping", "hello"], b"hello\n", 0);
    expect(server, &["get", "k"], b"", 1);
    expect(server, &["del", "k"], b"", 1);
    expect(server, &["set", "k", "v"], b"ok\n", 0);
    expect(server, &["get", "k"], b"v\n", 0);
    expect(server, &["get", "k", "--raw"], b"v", 0);
    expect(server, &["get", "k", "--version-too"], b"1.1 v\n", 0);
    let stderr = expect(server, &["set", "k", "w", "--if-absent"], b"", 1);
    assert_eq!(stderr, "atlaskv-cli: k: condition failed: it has version 1.1\n");
    expect(server, &["set", "k", "w", "--if-version", "1.1", "--sync", "--version-too"], b"1.2 ok\n", 0);
    expect(server, &["set", "j", "w", "--if-present"], b"", 1);
    expect(server, &["mget", "k", "absent"], b"w\n(absent)\n", 1);
    expect(server, &["incr", "n"], b"1\n", 0);
    expect(server, &["incr", "n", "-8"], b"-8\n", 0);
    expect(server, &["stats"], b"shards=1\n", 0);
    expect(server, &["rebalance"], b"command=rebalance\n", 0);
    expect(server, &["rebalance", "--move", "3", "1"], b"command=move 3 1\n", 0);
    expect(server, &["rebalance", "--split", "3"], b"command=split 3\n", 0);
    expect(server, &["rebalance", "--split", "3", "4711"], b"command=split 3 4711\n", 0);
    expect(server, &["cores", "2"], b"command=cores 2\n", 0);
    expect(server, &["batch", "put", "{t}a", "1", "del", "{t}b"], b"ok\n", 0);
    expect(server, &["get", "{t}a"], b"1\n", 0);
    expect(server, &["batch", "put", "a", "1", "put", "b", "1"], b"", 3);
    let put =
        ["batch", "check", "{t}none", "--if-absent", "put", "{t}a", "-2", "--if-present", "--ttl", "9s"];
    expect(server, &put, b"ok\n", 0);
    let refused = expect(server, &["batch", "put", "{t}b", "1", "put", "{t}a", "3", "--if-absent"], b"", 1);
    let said = "{t}a: condition of item 2 failed: it has version";
    assert!(refused.contains(said), "{refused}");
    expect(server, &["get", "{t}a"], b"-2\n", 0);
    expect(server, &["batch", "put", "{t}a", "3", "--frob"], b"", 2);
    expect(server, &["del", "k"], b"ok\n", 0);
    expect(server, &["frob"], b"", 2);
    expect(server, &["set", "k"], b"", 2);
    expect(server, &["--timeout", "never", "ping"], b"", 2);
    let stderr = expect(server, &["incr", "n", "13"], b"", 3);
    assert_eq!(stderr, "atlaskv-cli: no room\\nfor \\x1b[31mthirteen (disk-full)\n");
}

#[test]
fn keys_are_given_times_to_live() {
    let server = start();
    expect(server, &["ttl", "k"], b"", 1);
    expect(server, &["expire", "k", "--ttl", "10s"], b"", 1);
    expect(server, &["set", "k", "v", "--ttl", "10s"], b"ok\n", 0);
    expect(server, &["ttl", "k"], b"for ever\n", 0);
    expect(server, &["set", "with-ttl", "v", "--keep-ttl"], b"ok\n", 0);
    expect(server, &["ttl", "with-ttl", "--version-too"], b"1.2 1500ms\n", 0);
    expect(server, &["expire", "k", "--ttl-ms", "9", "--version-too"], b"1.3 ok\n", 0);
    expect(server, &["persist", "k"], b"ok\n", 0);
    expect(server, &["expire", "k"], b"", 2);
    expect(server, &["set", "k", "v", "--ttl", "soon"], b"", 2);
}

#[test]
fn keys_are_scanned_in_order_page_by_page() {
    let server = start();
    for key in ["b:2", "a", "b:1", "c", "b:3", "tab\there"] {
        expect(server, &["set", key, key], b"ok\n", 0);
    }
    let all = b"a\ta\nb:1\tb:1\nb:2\tb:2\nb:3\tb:3\nc\tc\ntab\\there\ttab\\there\n";
    expect(server, &["scan"], all, 0);
    expect(server, &["scan", "--keys", "--prefix", "b:"], b"b:1\nb:2\nb:3\n", 0);
    expect(server, &["scan", "--keys", "--prefix", "b:", "--reverse"], b"b:3\nb:2\nb:1\n", 0);
    expect(server, &["scan", "--keys", "--start", "b:2", "--end", "c"], b"b:2\nb:3\n", 0);
    expect(server, &["scan", "--keys", "--limit", "3"], b"a\nb:1\nb:2\n", 0);
    expect(server, &["scan", "--limit", "0"], b"", 0);
    expect(server, &["scan", "--count-only"], b"6\n", 0);
    expect(server, &["--raw", "scan", "--start", "t"], b"tab\there\ttab\there\n", 0);
    expect(server, &["--version-too", "scan", "--prefix", "a"], b"1.2 a\ta\n", 0);
    expect(server, &["scan", "--prefix", "a", "--start", "b"], b"", 2);
}

#[test]
fn ranges_of_keys_are_removed() {
    let server = start();
    for key in ["a", "b:1", "b:2", "c:1", "c:2", "d"] {
        expect(server, &["set", key, key], b"ok\n", 0);
    }
    expect(server, &["delrange", "b:2", "c:2"], b"ok\n", 0);
    expect(server, &["scan", "--keys"], b"a\nb:1\nc:2\nd\n", 0);
    expect(server, &["delrange", "--prefix", "c:", "--sync"], b"ok\n", 0);
    expect(server, &["scan", "--keys"], b"a\nb:1\nd\n", 0);
    expect(server, &["delrange", "c", ""], b"ok\n", 0);
    expect(server, &["scan", "--keys"], b"a\nb:1\n", 0);
    for wrong in [&["delrange"][..], &["delrange", "a"]] {
        expect(server, wrong, b"", 2);
    }
    for refused in [&["delrange", "b", "a"], &["delrange", "", ""]] {
        expect(server, refused, b"", 3);
    }
    expect(server, &["scan", "--keys"], b"a\nb:1\n", 0);
    expect(server, &["flush"], b"ok\n", 0);
    expect(server, &["scan", "--count-only"], b"0\n", 0);
}

#[test]
fn values_are_any_bytes_both_ways() {
    let server = start();
    let value: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    assert!(cli(server, &["set", "k", "-"], &value).status.success());
    assert_eq!(cli(server, &["get", "k", "--raw"], b"").stdout, value);
    // A line a value: those that would break the line are escaped.
    assert!(cli(server, &["set", "k", "-"], b"a\nb").status.success());
    expect(server, &["mget", "k", "k"], b"a\\nb\na\\nb\n", 0);
    expect(server, &["get", "k"], b"a\nb\n", 0);
}

#[test]
fn commands_may_stand_in_standard_input() {
    let server = start();
    let output = cli(server, &[], b"set \"a b\" 'it''s'\n\nget \"a b\"\nget c\nfrob\nincr n 2\nquit\nping\n");
    assert_eq!(output.stdout, b"ok\nits\n2\n");
    assert_eq!(output.status.code(), Some(2), "the worst of them");
    assert_eq!(String::from_utf8(output.stderr).unwrap().lines().count(), 2);
    let output = cli(server, &[], b"help\nping");
    assert!(output.stdout.ends_with(b"pong\n") && output.status.success());
}

#[test]
fn no_server_is_said_in_one_line() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let stderr = expect(address, &["get", "k"], b"", 4);
    assert!(stderr.starts_with(&format!("atlaskv-cli: cannot connect to {address}: ")), "{stderr}");
}

#[test]
fn a_server_with_too_many_connections_is_said_in_one_line() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            stream.unwrap().write_all(TOO_MANY_CONNECTIONS).unwrap();
        }
    });
    let stderr = expect(address, &["get", "k"], b"", 3);
    assert!(stderr.ends_with("(too-many-connections)\n"), "{stderr}");
}

#[test]
fn help_and_version_are_no_errors() {
    let nowhere = "127.0.0.1:1".parse().unwrap();
    let help = cli(nowhere, &["--help"], b"");
    assert!(help.status.success() && String::from_utf8(help.stdout).unwrap().contains("Exit codes"));
    assert!(cli(nowhere, &["--version"], b"").status.success());
}
