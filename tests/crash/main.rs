//! Kills the real server with SIGKILL at random moments, starts it again on the same data, and compares
//! every key with what was acknowledged: nothing lost, nothing resurrected, nothing half-written.
//!
//! Several clients write at once, each keys of its own whose states are known exactly ([`model::Unit`]),
//! and all of them a few keys together ([`model::Contended`]). Little memory makes flushes and merges of
//! a few megabytes, so that a kill meets them as well. Now and then the server is killed once more while
//! it recovers.
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
mod relaxed;
mod workload;

#[allow(dead_code)] // the tests of the server use the rest
#[path = "../server/harness.rs"]
mod harness;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::str::FromStr;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::{Server, command, disk_dir};
use crate::workload::{Owned, Shared, Tally, connect};

const CLIENTS: usize = 4;
/// Little enough that each shard flushes every few megabytes.
const MEMORY: &str = "64MiB";

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

/// `rounds` rounds on one data directory, the n-th of them with `cores(n)`.
fn campaign(name: &str, rounds: usize, cores: impl Fn(usize) -> usize) {
    let seed = from_env("ATLASKV_CRASH_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!(
        "{name}: {rounds} rounds or more; to repeat: ATLASKV_CRASH_SEED={seed} cargo test --test crash {name}"
    );
    let begin = Instant::now();
    let dir = disk_dir();
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
        let is_last = round >= rounds && met.is_enough(rounds) || round == 10 * rounds;
        let arguments =
            ["--cores", &cores, "--oversubscribe", "--memory", MEMORY, "--max-value-size", "64KiB"];
        while round > 0 && kills.u8(..3) == 0 {
            kill_in_start(dir.path(), &arguments, Duration::from_micros(kills.u64(..300_000)));
            met.kills_in_start += 1;
        }
        let mut server = Server::start(dir.path(), &arguments);
        let told = |why: String| -> ! {
            panic!("round {round} of {name}, ATLASKV_CRASH_SEED={seed}: {why}");
        };
        let mut client = connect(server.address).expect("a server that said it is ready");
        for owned in &mut owned {
            owned.check(&mut client).unwrap_or_else(|why| told(why));
        }
        shared.check(&mut client).unwrap_or_else(|why| told(why));
        if !is_last {
            let after = Duration::from_micros(kills.u64(1_000..900_000));
            let results = write_and_kill(&mut server, &mut owned, &mut rngs, after);
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
        round += 1;
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

/// Lets the clients write, and kills the server `after` that.
fn write_and_kill(
    server: &mut Server,
    owned: &mut [Owned],
    rngs: &mut [fastrand::Rng],
    after: Duration,
) -> Vec<Result<(Shared, Tally), String>> {
    let mut writers: Vec<_> = owned.iter_mut().zip(rngs).collect();
    kill_amid(server, &mut writers, after, |(owned, rng), address, ready| {
        let mut client = connect(address).map_err(|error| error.to_string())?;
        drop(ready);
        owned.run(&mut client, rng)
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
    campaign("what_was_acknowledged_survives_kill_9", rounds(6), |_| 2);
}

#[test]
fn what_was_acknowledged_survives_kill_9_and_another_number_of_cores() {
    campaign("what_was_acknowledged_survives_kill_9_and_another_number_of_cores", rounds(6), |n| 1 + n % 2);
}
