//! What Redis' protocol costs: nanoseconds to parse a command, and to write a reply.
//!
//! `cargo bench --bench resp [-- ROUNDS]`; 2,000 rounds unless told otherwise, each over a buffer of 1,000
//! commands, as a read of a client that pipelines brings them. Keys and values come from a fixed seed. Times
//! are CPU time of the thread.

use std::hint::black_box;
use std::time::Duration;

use atlaskv::protocol::resp::{self, Args, Limits, Parsed, Parser};

/// The server's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Commands of a buffer, and replies.
const COUNT: usize = 1_000;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // Without cargo's flag this is `cargo test --all-targets`: show that it runs.
    let is_bench = args.iter().any(|arg| arg == "--bench");
    let given = args.iter().find_map(|arg| arg.replace('_', "").parse().ok());
    let rounds = given.unwrap_or(if is_bench { 2_000 } else { 2 });
    println!("{rounds} rounds of {COUNT} commands; ns each");
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
    let show = |name: &str, nanos: f64| println!("  {name:34} {nanos:6.1}");
    show("parse PING", parse(rounds, &ping));
    show("parse GET, key of 16", parse(rounds, &get));
    show("parse SET … PX …, value of 100", parse(rounds, &set));
    show("parse MGET of 10 keys", parse(rounds, &mget));
    show("parse GET, inline", parse(rounds, &inline));
    show("parse GET, inline with quotes", parse(rounds, &quoted));
    show("GET in two reads, each cut within", parse_cut(rounds, &get));
    show("write +OK", write(rounds, |out, _| resp::simple(out, "OK")));
    show("write an integer of one digit", write(rounds, |out, at| resp::integer(out, at as i64 % 10)));
    show("write an integer of ten", write(rounds, |out, at| resp::integer(out, at as i64 + 1_000_000_000)));
    show("write a string of 100", write(rounds, |out, _| resp::bulk(out, black_box(&value))));
}

/// Parses all commands of a buffer, again and again.
fn parse(rounds: usize, buffer: &[u8]) -> f64 {
    let mut parser = Parser::new(Limits::default());
    timed(rounds, || {
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
    })
}

/// The same, but each command is seen in part before it is seen whole.
fn parse_cut(rounds: usize, buffer: &[u8]) -> f64 {
    let mut parser = Parser::new(Limits::default());
    let len = buffer.len() / COUNT;
    timed(rounds, || {
        let mut args = Args::new();
        for command in black_box(buffer).chunks_exact(len) {
            let part = parser.parse(&command[..len / 2], &mut args);
            assert!(matches!(part, Ok(Parsed::NeedMore { .. })));
            let whole = parser.parse(command, &mut args);
            assert!(matches!(whole, Ok(Parsed::Command { .. })));
            black_box(&args);
        }
    })
}

/// Writes replies into a buffer that has been as large before.
fn write(rounds: usize, reply: impl Fn(&mut Vec<u8>, usize)) -> f64 {
    let mut out = Vec::new();
    timed(rounds, || {
        out.clear();
        (0..COUNT).for_each(|at| reply(black_box(&mut out), at));
    })
}

/// Nanoseconds of one of the things that a round does [`COUNT`] of.
fn timed(rounds: usize, mut round: impl FnMut()) -> f64 {
    round();
    let started = cpu_time();
    (0..rounds).for_each(|_| round());
    (cpu_time() - started).as_nanos() as f64 / (rounds * COUNT) as f64
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call fills the timespec it is given and keeps no pointer to it.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(result, 0, "every Linux has this clock");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
