//! What Redis' protocol costs: nanoseconds to parse a command, and to write a reply.
//!
//! `cargo bench --bench resp [-- ROUNDS]`; 2,000 rounds unless told otherwise, each over a buffer of 1,000
//! commands, as a read of a client that pipelines brings them. Keys and values come from a fixed seed. Times
//! are CPU time of the thread.

#[allow(dead_code)] // other benchmarks use the rest
mod common;

use std::hint::black_box;

use atlaskv::protocol::resp::{self, Args, Limits, Parsed, Parser};

use self::common::Table;

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Commands of a buffer, and replies.
const COUNT: usize = 1_000;

fn main() {
    let table = &Table::begin(common::arguments().or(2_000, 2));
    let mut rng = fastrand::Rng::with_seed(1);
    let mut key = move || format!("user:{:011}", rng.u64(..100_000_000_000)).into_bytes();
    let value = [b'v'; 100];
    let mut buffer = |command: &dyn Fn(&mut Vec<u8>, Vec<u8>)| {
        let mut bytes = Vec::new();
        (0..COUNT).for_each(|_| command(&mut bytes, key()));
        bytes
    };
    let array = |args: &[&[u8]], bytes: &mut Vec<u8>| {
        resp::array(bytes, args.len());
        args.iter().for_each(|arg| resp::bulk(bytes, arg));
    };
    let ping = buffer(&|bytes, _| array(&[b"PING"], bytes));
    let get = buffer(&|bytes, key| array(&[b"GET", &key], bytes));
    let set = buffer(&|bytes, key| array(&[b"SET", &key, &value, b"PX", b"100000"], bytes));
    let mget = buffer(&|bytes, key| {
        let args: Vec<&[u8]> = std::iter::once(&b"MGET"[..]).chain([&key[..]; 10]).collect();
        array(&args, bytes);
    });
    let inline = buffer(&|bytes, key| bytes.extend_from_slice(&[b"GET ", &key[..], b"\r\n"].concat()));
    let quoted = buffer(&|bytes, key| bytes.extend_from_slice(&[b"GET \"", &key[..], b"\"\r\n"].concat()));
    parse(table, "parse PING", &ping);
    parse(table, "parse GET, key of 16", &get);
    parse(table, "parse SET … PX …, value of 100", &set);
    parse(table, "parse MGET of 10 keys", &mget);
    parse(table, "parse GET, inline", &inline);
    parse(table, "parse GET, inline with quotes", &quoted);
    parse_cut(table, "GET in two reads, each cut within", &get);
    write(table, "write +OK", |out, _| resp::simple(out, "OK"));
    write(table, "write an integer of one digit", |out, at| resp::integer(out, at as i64 % 10));
    write(table, "write an integer of ten", |out, at| resp::integer(out, at as i64 + 1_000_000_000));
    write(table, "write a string of 100", |out, _| resp::bulk(out, black_box(&value)));
}

/// Parses all commands of a buffer, again and again.
fn parse(table: &Table, name: &str, buffer: &[u8]) {
    let mut parser = Parser::new(Limits::default());
    table.row(name, COUNT, || {
        let (mut at, mut commands) = (0, 0);
        let buffer = black_box(buffer);
        let mut args = Args::new();
        while at < buffer.len() {
            match parser.parse(&buffer[at..], &mut args) {
                Ok(Parsed::Command { used } | Parsed::Quoted { used, .. }) => at += used,
                other => panic!("{other:?} of commands that are whole"),
            }
            black_box(&args);
            commands += 1;
        }
        assert_eq!(commands, COUNT);
    });
}

/// The same, but each command is seen in part before it is seen whole.
fn parse_cut(table: &Table, name: &str, buffer: &[u8]) {
    let mut parser = Parser::new(Limits::default());
    let len = buffer.len() / COUNT;
    table.row(name, COUNT, || {
        let mut args = Args::new();
        for command in black_box(buffer).chunks_exact(len) {
            let part = parser.parse(&command[..len / 2], &mut args);
            assert!(matches!(part, Ok(Parsed::NeedMore { .. })));
            let whole = parser.parse(command, &mut args);
            assert!(matches!(whole, Ok(Parsed::Command { .. })));
            black_box(&args);
        }
    });
}

/// Writes replies into a buffer that has been as large before.
fn write(table: &Table, name: &str, reply: impl Fn(&mut Vec<u8>, usize)) {
    let mut out = Vec::new();
    table.row(name, COUNT, || {
        out.clear();
        (0..COUNT).for_each(|at| reply(black_box(&mut out), at));
    });
}
