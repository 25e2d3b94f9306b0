//! Kills the real server with SIGKILL at random moments, starts it again on the same data, and compares
//! every key with what was acknowledged: nothing lost, nothing resurrected, nothing half-written.
//!
//! Several clients write at once, each keys of its own whose states are known exactly ([`model::Unit`]),
//! and all of them a few keys together ([`model::Contended`]). Little memory makes flushes and merges of
//! a few megabytes, so that a kill meets them as well. Now and then the server is killed once more while
//! it recovers. In one of the campaigns an [`operator`] moves and splits tablets, makes checkpoints and removes
//! everything meanwhile.
//!
//! [`relaxed`] does the same under `--sync interval` and `none`, where an answer promises less.
//!
//! The seed decides what is written and when to kill; what a kill meets, the machine decides as well. So
//! a failure comes back with its seed often, but not always.
//!
//! ```text
//! ATLASKV_CRASH_ROUNDS=200 cargo test --test crash -- --nocapture    the full campaign
//! ATLASKV_CRASH_SEED=17 cargo test --test crash                      one that failed
//! ```

mod model;
mod operator;
mod relaxed;
mod workload;

#[allow(dead_code)] // the tests of the server use the rest
#[path = "../server/harness.rs"]
mod harness;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::str::FromStr;
use std::sync::RwLock;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Server, command, disk_dir};
use crate::operator::Operator;
use crate::workload::{Flushes, Owned, Shared, Tally, connect, find_all};

const CLIENTS: usize = 4;
/// Little enough that each shard flushes every few megabytes.
const MEMORY: &str = "64MiB";
/// The least for three shards.
const MEMORY_OF_THREE: &str = "80MiB";

fn from_env<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text}: not a number")))
}

/// What the campaign met, to be sure that it meets what it is for.
#[derive(Default)]
struct Met {
    answered: u64,
    lost: u64,
    flushes: usize,
    merges: usize,
    replays: usize,
    torn_tails: usize,
    kills_in_start: usize,
}

impl Met {
    /// Whether so many rounds have met what they are to meet.
    fn is_enough(&self, rounds: usize) -> bool {
        let is_written = rounds < 6 || self.flushes > 0 && self.merges > 0;
        self.replays > 0 && self.lost > 0 && is_written
    }

    fn read_log(&mut self, log: &str) {
        let count = |text: &str| log.lines().filter(|line| line.contains(text)).count();
        self.flushes += count("flushed a memtable");
        self.merges += count("merged tables");
        self.replays += count("replayed old logs");
        self.torn_tails += count("before a torn tail");
    }
}

/// `rounds` rounds on one data directory, the n-th of them with `cores(n)`, perhaps with an operator at work.
fn campaign(name: &str, rounds: usize, cores: impl Fn(usize) -> usize, has_operator: bool) {
    let seed = from_env("ATLASKV_CRASH_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!(
        "{name}: {rounds} rounds or more; to repeat: ATLASKV_CRASH_SEED={seed} cargo test --test crash {name}"
    );
    let begin = Instant::now();
    let dir = disk_dir();
    let data = dir.path().join("data");
    let mut operator = has_operator.then(|| Operator::new(dir.path(), seed ^ 1 << 60));
    let mut kills = fastrand::Rng::with_seed(seed);
    let mut rngs: Vec<_> =
        (0..CLIENTS as u64).map(|client| fastrand::Rng::with_seed(seed ^ (client + 1) << 40)).collect();
    let mut owned: Vec<_> = (0..CLIENTS).map(Owned::new).collect();
    let mut shared = Shared::new();
    let mut met = Met::default();
    // A slow machine writes little before a kill: then there are more rounds.
    let mut round = 0;
    loop {
        let cores = cores(round).to_string();
        // The last round only compares.
        let is_enough = met.is_enough(rounds) && operator.as_ref().is_none_or(Operator::has_done_enough);
        let is_last = round >= rounds && is_enough || round == 10 * rounds;
        let memory = if cores == "3" { MEMORY_OF_THREE } else { MEMORY };
        let arguments =
            ["--cores", &cores, "--oversubscribe", "--memory", memory, "--max-value-size", "64KiB"];
        while round > 0 && kills.u8(..3) == 0 {
            kill_in_start(&data, &arguments, Duration::from_micros(kills.u64(..300_000)));
            met.kills_in_start += 1;
        }
        let mut server = Server::start(&data, &arguments);
        let told = |why: String| -> ! {
            panic!("round {round} of {name}, ATLASKV_CRASH_SEED={seed}: {why}");
        };
        let mut client = connect(server.address).expect("a server that said it is ready");
        let found = find_all(&mut client).unwrap_or_else(|why| told(why));
        for owned in &mut owned {
            owned.check(&mut client, &found).unwrap_or_else(|why| told(why));
        }
        let is_shared = |key: &[u8]| key.starts_with(b"contended:") || key.starts_with(b"counter:");
        if let Some(key) = found.keys().find(|key| !is_shared(key) && !owned.iter().any(|o| o.owns(key))) {
            told(format!("{:?} was never written", String::from_utf8_lossy(key)));
        }
        shared.check(&mut client).unwrap_or_else(|why| told(why));
        if !is_last {
            let after = Duration::from_micros(kills.u64(1_000..900_000));
            let flushes = Flushes::default();
            let results = write_and_kill(
                &mut server,
                &mut owned,
                &mut rngs,
                operator.as_mut().map(|operator| (operator, &flushes)),
                after,
            );
            if flushes.into_inner().expect("who writes it does not panic").contains(&true) {
                // What clients know from before is forgotten by them as well.
                shared = Shared::new();
            }
            for result in results {
                let (part, tally) = result.unwrap_or_else(|why| told(why));
                shared.merge(part);
                met.answered += tally.answered;
                met.lost += tally.lost;
            }
        }
        let log = server.log();
        assert!(!log.contains("ERROR") && !log.contains("panicked"), "round {round} of {name}: {log}");
        met.read_log(&log);
        if is_last {
            break;
        }
        if let Some(operator) = &mut operator {
            operator.check(&arguments).unwrap_or_else(|why| told(why));
        }
        round += 1;
    }
    if let Some(operator) = &operator {
        let deeds = &operator.deeds;
        println!(
            "{name}: {} moves, {} splits, {} checkpoints, {} flushes; {} more met by a kill",
            deeds.moves, deeds.splits, deeds.checkpoints, deeds.flushes, deeds.lost
        );
        assert!(operator.has_done_enough(), "too little was done to tablets");
    }
    println!(
        "{name}: {} writes and reads answered, {} answers lost, {} flushes, {} merges, {} replays, {} torn \
         tails, {} kills in a start; {:.1} s",
        met.answered,
        met.lost,
        met.flushes,
        met.merges,
        met.replays,
        met.torn_tails,
        met.kills_in_start,
        begin.elapsed().as_secs_f64()
    );
    assert!(met.replays > 0, "no log was ever replayed");
    assert!(met.lost > 0, "no kill met a request");
    assert!(met.is_enough(rounds), "too little was written for flushes and merges");
}

/// Someone who works on a thread of its own.
enum Worker<'a> {
    Writer(&'a mut Owned, &'a mut fastrand::Rng),
    Operator(&'a mut Operator),
}

/// Lets the clients write, and the operator work, and kills the server `after` that.
fn write_and_kill(
    server: &mut Server,
    owned: &mut [Owned],
    rngs: &mut [fastrand::Rng],
    operator: Option<(&mut Operator, &Flushes)>,
    after: Duration,
) -> Vec<Result<(Shared, Tally), String>> {
    let none = RwLock::default();
    let (operator, flushes) = operator.map_or((None, &none), |(operator, flushes)| (Some(operator), flushes));
    let writers = owned.iter_mut().zip(rngs).map(|(owned, rng)| Worker::Writer(owned, rng));
    let mut workers: Vec<_> = writers.chain(operator.map(Worker::Operator)).collect();
    kill_amid(server, &mut workers, after, |worker, address, ready| {
        let mut client = connect(address).map_err(|error| error.to_string())?;
        drop(ready);
        match worker {
            Worker::Writer(owned, rng) => owned.run(&mut client, rng, flushes),
            Worker::Operator(operator) => {
                operator.run(&mut client, flushes).map(|tally| (Shared::new(), tally))
            }
        }
    })
}

/// Runs `write` for each writer on a thread of its own, and kills the server `after` all have connected,
/// which a writer tells by dropping what it is given for that.
fn kill_amid<W: Send, R: Send>(
    server: &mut Server,
    writers: &mut [W],
    after: Duration,
    write: impl Fn(&mut W, SocketAddr, Sender<()>) -> R + Sync,
) -> Vec<R> {
    let address = server.address;
    thread::scope(|scope| {
        let (ready, readied) = mpsc::channel::<()>();
        let mut threads = Vec::new();
        for writer in writers {
            let (ready, write) = (ready.clone(), &write);
            threads.push(scope.spawn(move || write(writer, address, ready)));
        }
        drop(ready);
        // Ends when every client has connected, or failed to.
        readied.iter().for_each(drop);
        // Not a wait for anything: the moment of the kill is what is random here.
        thread::sleep(after);
        server.kill();
        threads.into_iter().map(|thread| thread.join().expect("clients report, they don't panic")).collect()
    })
}

/// Starts the server and kills it `after` that, wherever it is then.
fn kill_in_start(data_dir: &Path, arguments: &[&str], after: Duration) {
    let mut command = command(data_dir, arguments);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the server starts");
    thread::sleep(after);
    // It may have ended by itself.
    let _ = child.kill();
    let end = child.wait_with_output().expect("our own child can be waited for");
    let log = String::from_utf8_lossy(&end.stderr);
    assert!(end.status.code().is_none(), "the server ended by itself, {}:\n{log}", end.status);
}

fn rounds(default: usize) -> usize {
    from_env("ATLASKV_CRASH_ROUNDS").unwrap_or(default)
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    campaign("what_was_acknowledged_survives_kill_9", rounds(6), |_| 2, false);
}

#[test]
fn what_was_acknowledged_survives_kill_9_and_another_number_of_cores() {
    let name = "what_was_acknowledged_survives_kill_9_and_another_number_of_cores";
    campaign(name, rounds(6), |n| 1 + n % 2, false);
}

#[test]
fn what_was_acknowledged_survives_kill_9_amid_moves_splits_checkpoints_and_flushes() {
    let name = "what_was_acknowledged_survives_kill_9_amid_moves_splits_checkpoints_and_flushes";
    campaign(name, rounds(6), |n| 2 + n % 2, true);
}
