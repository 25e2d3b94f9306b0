//! Whether differences are found: a server between the test and a real redis-server tells one lie, and a
//! campaign has to notice, and to show it with few commands.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;

use crate::differential::minimise::minimise;
use crate::differential::play::{Pair, Tally, play};
use crate::differential::round::Round;
use crate::servers::Redis;
use crate::wire::{Command, Reply, Wire, parse};

/// Rounds within which a lie has to be noticed.
const ROUNDS: u64 = 60;

/// Commands that are enough to show any of the lies.
const FEW: usize = 8;

/// What is wrong about a server: what it does instead of a command, and what it says instead of a reply.
#[derive(Clone, Copy)]
struct Lie {
    name: &'static str,
    does: fn(Command) -> Command,
    says: fn(&Command, Reply) -> Vec<u8>,
}

const LIES: &[Lie] = &[
    Lie { name: "an APPEND of nothing is not done", does: not_done, says: truth },
    Lie { name: "seconds are taken for milliseconds", does: wrong_unit, says: truth },
    Lie { name: "SCAN leaves out a key", does: as_told, says: short_scan },
    Lie { name: "an error has another text", does: as_told, says: other_error },
    Lie { name: "a null is that of RESP2", does: as_told, says: old_null },
    Lie { name: "WATCH watches nothing", does: no_watch, says: truth },
    Lie { name: "KEEPTTL keeps none", does: no_keepttl, says: truth },
    Lie { name: "a float has a digit less", does: as_told, says: short_float },
];

fn as_told(command: Command) -> Command {
    command
}

fn truth(_: &Command, reply: Reply) -> Vec<u8> {
    reply.bytes
}

fn not_done(command: Command) -> Command {
    let is_it = command.name() == "append" && command.0.len() == 3 && command.0[2].is_empty();
    if is_it { Command(vec![b"STRLEN".to_vec(), command.0[1].clone()]) } else { command }
}

fn wrong_unit(mut command: Command) -> Command {
    if command.name() == "expire" {
        command.0[0] = b"PEXPIRE".to_vec();
    }
    command
}

fn short_scan(command: &Command, reply: Reply) -> Vec<u8> {
    match reply.items.as_slice() {
        // With a single key as well: how many a page has is a matter of luck, and of many commands.
        [cursor, page] if command.name() == "scan" && !page.items.is_empty() => {
            let kept = page.items[1..].iter().flat_map(|item| item.bytes.clone());
            let head = format!("*{}\r\n", page.items.len() - 1).into_bytes();
            [b"*2\r\n".to_vec(), cursor.bytes.clone(), head, kept.collect()].concat()
        }
        _ => reply.bytes,
    }
}

fn other_error(_: &Command, reply: Reply) -> Vec<u8> {
    if reply.bytes == b"-ERR syntax error\r\n" { b"-ERR Syntax error\r\n".to_vec() } else { reply.bytes }
}

fn old_null(_: &Command, reply: Reply) -> Vec<u8> {
    if reply.bytes == b"_\r\n" { b"$-1\r\n".to_vec() } else { reply.bytes }
}

fn no_watch(command: Command) -> Command {
    let is_it = command.name() == "watch" && command.0.len() > 1;
    if is_it { Command::line("UNWATCH") } else { command }
}

fn no_keepttl(mut command: Command) -> Command {
    command.0.retain(|word| !word.eq_ignore_ascii_case(b"KEEPTTL"));
    command
}

fn short_float(command: &Command, reply: Reply) -> Vec<u8> {
    let is_it = command.name() == "incrbyfloat" && reply.text.len() > 18;
    if !is_it {
        return reply.bytes;
    }
    let text = &reply.text[..reply.text.len() - 1];
    [format!("${}\r\n", text.len()).as_bytes(), text, b"\r\n"].concat()
}

/// A server that passes everything on to Redis, but for one lie.
fn liar(redis: SocketAddr, lie: Lie) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    // Lives as long as the test.
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || stream.and_then(|stream| pass_on(stream, redis, lie)));
        }
    });
    address
}

fn pass_on(mut client: TcpStream, redis: SocketAddr, lie: Lie) -> io::Result<()> {
    client.set_nodelay(true)?;
    let mut redis = Wire::connect(redis)?;
    let (mut received, mut piece) = (Vec::new(), [0; 16 << 10]);
    loop {
        let count = client.read(&mut piece)?;
        if count == 0 {
            return Ok(());
        }
        received.extend_from_slice(&piece[..count]);
        // A command is an array of bulk strings, as some replies are.
        while let Some(command) = parse(&received).map_err(io::Error::other)? {
            received.drain(..command.bytes.len());
            let command = Command(command.items.into_iter().map(|item| item.text).collect());
            let reply = redis.ask(&(lie.does)(command.clone()))?;
            client.write_all(&(lie.says)(&command, reply))?;
        }
    }
}

#[test]
fn every_lie_is_noticed_and_shown_with_few_commands() {
    let seed = crate::seed("every_lie");
    let redis = [Redis::start(&[]), Redis::start(&[])];
    for lie in LIES {
        let subject = liar(redis[1].address, *lie);
        let pair = Pair { redis: redis[0].address, subject, is_atlas: false };
        let noticed = (0..ROUNDS).find_map(|number| {
            let round = Round::draw(seed, number);
            let finding = play(pair, &round, &mut Tally::default()).err()?;
            Some((number, minimise(pair, &round, &finding, &BTreeSet::new())))
        });
        let (number, (short, finding)) = noticed.unwrap_or_else(|| panic!("not noticed: {}", lie.name));
        println!("{}: round {number}, {} commands, at {}", lie.name, short.steps.len(), finding.command);
        let shown: Vec<_> = short.steps.iter().map(|step| step.command.to_string()).collect();
        assert!(short.steps.len() <= FEW, "{}: not made short: {shown:#?}", lie.name);
    }
}
