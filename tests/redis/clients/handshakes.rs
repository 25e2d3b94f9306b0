//! What clients send as they connect, replayed: `tours/handshakes.txt` has it, and says how it is written.

use std::net::SocketAddr;

use crate::servers::{self, Subject, SubjectCluster};
use crate::wire::{Command, Kind, Reply, Wire};

const SCRIPT: &str = include_str!("../tours/handshakes.txt");

/// One client's part.
#[derive(Debug, Default)]
struct Handshake {
    client: String,
    is_cluster: bool,
    /// Commands that are sent at once, each with what its reply has to be.
    turns: Vec<Vec<(Command, &'static str)>>,
}

/// The words of a line; quotes keep blanks.
fn words(line: &str) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    for (index, part) in line.split('"').enumerate() {
        let quoted = index % 2 == 1;
        let found = if quoted { vec![part] } else { part.split_whitespace().collect() };
        words.extend(found.into_iter().map(|word| word.as_bytes().to_vec()));
    }
    words
}

fn parse(script: &'static str) -> Vec<Handshake> {
    let mut all: Vec<Handshake> = Vec::new();
    let mut sent = Vec::new();
    let mut wanted = Vec::new();
    let lines = script.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
    for (number, line) in lines.chain([(0, "client end")]) {
        let (mark, rest) = line.split_once(' ').unwrap_or((line, ""));
        if mark != "<" && !wanted.is_empty() {
            assert_eq!(sent.len(), wanted.len(), "handshakes.txt:{number}: as many replies as commands");
            let turn = sent.drain(..).zip(wanted.drain(..)).collect();
            all.last_mut().expect("a client comes first").turns.push(turn);
        }
        match mark {
            "client" => {
                assert!(sent.is_empty(), "handshakes.txt:{number}: commands without replies");
                let (client, is_cluster) = match rest.strip_suffix(" cluster") {
                    Some(client) => (client, true),
                    None => (rest, false),
                };
                all.push(Handshake { client: client.to_string(), is_cluster, ..Handshake::default() });
            }
            ">" => sent.push(Command(words(rest))),
            "<" => wanted.push(rest),
            _ => panic!("handshakes.txt:{number}: {line}"),
        }
    }
    all.pop();
    all
}

/// Why a reply is not what is wanted, if it is not.
fn unlike(wanted: &str, reply: &Reply, is_atlas: bool) -> Option<String> {
    let (what, rest) = wanted.split_once(' ').unwrap_or((wanted, ""));
    let text = reply.as_text();
    let is_text = matches!(reply.kind, Kind::Simple | Kind::Bulk | Kind::Verbatim);
    let fits = match what {
        "any" => true,
        "ok" => reply.bytes == b"+OK\r\n",
        "text" => is_text && rest.split_whitespace().all(|part| text.contains(part)),
        "integer" => reply.kind == Kind::Integer,
        "array" => matches!(reply.kind, Kind::Array | Kind::Set),
        "absent" => !is_atlas || reply.is_error() && text.contains("not supported"),
        "error" => reply.is_error() && text.contains(rest),
        "map" => {
            let has = |pair: &str| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                reply.value_of(key).is_some_and(|found| value.is_empty() || found.as_text() == value)
            };
            matches!(reply.kind, Kind::Map | Kind::Array) && rest.split_whitespace().all(has)
        }
        "slots" => return covers_all(slots_of_slots(reply)).err(),
        "nodes" => {
            if text.matches("myself").count() != 1 {
                return Some("not one node is \"myself\"".to_string());
            }
            return covers_all(slots_of_nodes(&text)).err();
        }
        other => panic!("handshakes.txt: want {other}"),
    };
    (!fits).then(|| wanted.to_string())
}

/// The ranges that CLUSTER SLOTS tells; a malformed one is an error.
fn slots_of_slots(reply: &Reply) -> Result<Vec<(i64, i64)>, String> {
    let range = |range: &Reply| {
        let [first, last, node, ..] = range.items.as_slice() else { return None };
        let [_, port, id, ..] = node.items.as_slice() else { return None };
        (port.integer()? > 0 && id.text.len() == 40).then_some((first.integer()?, last.integer()?))
    };
    let malformed = |item: &Reply| format!("a range is {item}");
    reply.items.iter().map(|item| range(item).ok_or_else(|| malformed(item))).collect()
}

/// The ranges that CLUSTER NODES tells.
fn slots_of_nodes(text: &str) -> Result<Vec<(i64, i64)>, String> {
    let mut ranges = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        // Id, address, flags, the node it follows, ping, pong, epoch, state of the link, then slots.
        let [id, address, _, _, ping, pong, epoch, "connected", slots @ ..] = fields.as_slice() else {
            return Err(format!("a node is \"{line}\""));
        };
        let numbers = [ping, pong, epoch].iter().all(|number| number.parse::<u64>().is_ok());
        if id.len() != 40 || !address.contains(':') || !numbers {
            return Err(format!("a node is \"{line}\""));
        }
        for slot in slots {
            let (first, last) = slot.split_once('-').unwrap_or((slot, slot));
            let ends = first.parse().ok().zip(last.parse().ok());
            ranges.push(ends.ok_or_else(|| format!("slots are \"{slot}\""))?);
        }
    }
    Ok(ranges)
}

/// Whether ranges are of every slot, and of each only once.
fn covers_all(ranges: Result<Vec<(i64, i64)>, String>) -> Result<(), String> {
    let mut ranges = ranges?;
    ranges.sort_unstable();
    let mut next = 0;
    for (first, last) in ranges {
        if first != next || last < first {
            return Err(format!("after slot {next} comes the range {first} to {last}"));
        }
        next = last + 1;
    }
    if next == 16_384 { Ok(()) } else { Err(format!("the slots end before {next}")) }
}

/// Replays those that are of a cluster, or of none; all that is wrong.
fn replay(address: SocketAddr, is_cluster: bool, is_atlas: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    for handshake in parse(SCRIPT).iter().filter(|handshake| handshake.is_cluster == is_cluster) {
        let mut wire = Wire::connect(address).expect("the server serves");
        for turn in &handshake.turns {
            let commands: Vec<Command> = turn.iter().map(|(command, _)| command.clone()).collect();
            let replies = match wire.pipeline(&commands) {
                Ok(replies) => replies,
                Err(error) => {
                    wrong.push(format!("{}: {}: {error}", handshake.client, commands[0]));
                    break;
                }
            };
            for ((command, wanted), reply) in turn.iter().zip(&replies) {
                if let Some(why) = unlike(wanted, reply, is_atlas) {
                    wrong.push(format!("{}: {command} is answered {reply}, wanted: {why}", handshake.client));
                }
            }
        }
    }
    wrong
}

#[test]
fn handshakes_are_answered_as_clients_need_it() {
    let subject = Subject::start("always");
    servers::flush(&mut Wire::connect(subject.address()).expect("it serves")).expect("FLUSHALL is answered");
    let wrong = replay(subject.address(), false, subject.is_atlas());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn handshakes_with_a_cluster_are_answered_as_clients_need_it() {
    let cluster = SubjectCluster::start();
    for node in cluster.nodes() {
        let wrong = replay(node, true, cluster.is_atlas());
        assert!(wrong.is_empty(), "{node}: {}", wrong.join("\n"));
    }
}

#[test]
fn the_script_is_well_formed() {
    let all = parse(SCRIPT);
    assert!(all.len() > 50);
    assert!(all.iter().all(|handshake| !handshake.turns.is_empty()));
    assert_eq!(words("a \"b c\" d"), [b"a".to_vec(), b"b c".to_vec(), b"d".to_vec()]);
    assert!(covers_all(Ok(vec![(5, 16_383), (0, 4)])).is_ok());
    assert!(covers_all(Ok(vec![(0, 4), (4, 16_383)])).is_err());
    assert!(covers_all(Ok(vec![(0, 4)])).is_err());
}
