//! A server under clients, killed and started again; and what the checker says of all that was recorded.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use atlaskv::client::{Client, Error};

use crate::chain;
use crate::harness::{Server, command, disk_dir, try_connect};
use crate::history::{History, NEVER, Op};
use crate::record::{Recorder, keys};
use crate::reference;
use crate::zones;

const CLIENTS: u16 = 5;
/// Tablets are split until there are so many.
const TABLETS_MAX: usize = 40;
/// Operations after which a campaign is judged for the first time.
const FIRST_JUDGED: usize = 10_000;
/// Keys that the general checker judges as well, and how much of one it can.
const GENERAL_KEYS: usize = 200;
const GENERAL_OPS_MAX: usize = 300;
/// Keys asked for together when a start is looked at.
const LOOK_AT_ONCE: usize = 256;

/// How long a campaign is: until all of these are reached.
#[derive(Clone, Copy)]
pub struct Extent {
    pub time: Duration,
    pub ops: usize,
    pub kills: usize,
}

/// What a campaign met.
#[derive(Debug, Default)]
pub struct Met {
    kills: usize,
    kills_in_start: usize,
    stops: usize,
    moves: usize,
    flushes: usize,
    merges: usize,
    ops: usize,
    lost: usize,
    refused: BTreeMap<&'static str, u64>,
    slowest_start: Duration,
    /// From the kill or the signal to the end of the server and of all clients.
    slowest_end: Duration,
}

impl Met {
    /// Whether it met what it is for. A slow machine may need more rounds for it.
    fn is_enough(&self) -> bool {
        self.moves > 0 && self.lost > 0
    }
}

struct Campaign {
    seed: u64,
    clock: Instant,
    rng: fastrand::Rng,
    /// The last looks at what a start found; it is alone then.
    recorders: Vec<Recorder>,
    keys: Vec<Vec<Op>>,
    names: Vec<String>,
    /// What is lost and may still be done before the next start: by key and place.
    open: Vec<(u32, usize)>,
    starts: Vec<u64>,
    met: Met,
}

/// Records a history, and has it checked.
pub fn run(seed: u64, extent: Extent) {
    let mut campaign = Campaign::new(seed);
    let begin = Instant::now();
    let dir = disk_dir();
    let mut judged = 0;
    while begin.elapsed() < extent.time || campaign.met.ops < extent.ops || campaign.met.kills < extent.kills
    {
        campaign.round(dir.path());
        // A long campaign does not go on with what is wrong, and is not judged for longer than it is recorded.
        if campaign.met.ops > (2 * judged).max(FIRST_JUDGED) {
            judged = campaign.met.ops;
            unless_wrong(judge(&campaign.starts, campaign.names.iter().zip(&campaign.keys), seed));
        }
    }
    let server = campaign.start(dir.path());
    let (status, log) = server.stop();
    assert!(status.success(), "{log}");
    let recorded = begin.elapsed();
    let Campaign { names, keys, starts, met, .. } = campaign;
    let begin = Instant::now();
    unless_wrong(judge(&starts, names.iter().zip(&keys), seed));
    let decided = begin.elapsed();
    // What is short enough for the general checker is judged by it as well.
    let short = keys.iter().filter(|ops| ops.len() <= GENERAL_OPS_MAX).take(GENERAL_KEYS);
    let wrong = short.filter(|ops| !reference::is_linearizable(ops, &starts)).count();
    assert_eq!(wrong, 0, "seed {seed}: keys that only the general checker finds wrong");
    println!("{met:?}; recorded in {recorded:.1?}, decided in {decided:.1?}");
    assert!(met.is_enough(), "too little happened");
}

/// Whether all keys' histories are linearizable. `Err` says what is not, and in which file it is.
pub fn judge<'a>(
    starts: &[u64],
    keys: impl Iterator<Item = (&'a String, &'a Vec<Op>)>,
    seed: u64,
) -> Result<(), String> {
    let mut wrong = Vec::new();
    let mut text = String::new();
    for (key, ops) in keys {
        let Err(violation) = chain::check(ops) else {
            assert_eq!(zones::check(ops), Ok(()), "{key}: the chain is good, so values alone must be");
            continue;
        };
        text += &format!("\n{key}: {violation}\n");
        violation.ops.iter().for_each(|at| text += &format!("    {}\n", ops[*at]));
        text += &match zones::check(ops) {
            Ok(()) => "  values alone, without versions, conditions and deletes, are good\n".to_string(),
            Err(values) => format!("  of values alone: {values}\n"),
        };
        wrong.push((key.clone(), ops.clone()));
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let path = PathBuf::from(format!("/var/tmp/atlaskv-linear-{seed}-{}.txt", std::process::id()));
    let history = History { starts: starts.to_vec(), keys: wrong };
    std::fs::write(&path, history.to_string()).expect("/var/tmp is writable");
    let path = path.display();
    Err(format!(
        "not linearizable (seed {seed}):\n{text}\nto judge the keys concerned again: \
         ATLASKV_LINEAR_FILE={path} cargo test --test linear a_recorded_history -- --nocapture"
    ))
}

/// Ends the test if something is wrong.
pub fn unless_wrong(judgement: Result<(), String>) {
    judgement.unwrap_or_else(|why| panic!("{why}"));
}

#[test]
fn what_is_wrong_is_written_to_a_file_and_judged_again() {
    let text =
        "atlaskv-history 1\nkey good\n1 2 c0 set v1 > @1\nkey bad\n1 2 c0 set v1 > @1\n3 4 c1 get > absent\n";
    let judged = |history: &History| {
        judge(&history.starts, history.keys.iter().map(|(key, ops)| (key, ops)), 0)
            .expect_err("a write is lost")
    };
    let said = judged(&History::parse(text).expect("it is well-formed"));
    let path = said.split("ATLASKV_LINEAR_FILE=").nth(1).and_then(|rest| rest.split(' ').next());
    let path = path.unwrap_or_else(|| panic!("{said} names the file"));
    let written = std::fs::read_to_string(path).expect("it was written");
    assert!(written.contains("key bad") && !written.contains("key good"), "{written}");
    assert_eq!(judged(&History::parse(&written).expect("it is well-formed")), said);
    std::fs::remove_file(path).expect("our own file");
}

impl Campaign {
    fn new(seed: u64) -> Campaign {
        let (clock, keys) = (Instant::now(), keys());
        let names: Vec<_> = keys.iter().map(|key| String::from_utf8_lossy(key).into_owned()).collect();
        Campaign {
            seed,
            clock,
            rng: fastrand::Rng::with_seed(seed),
            recorders: (0..=CLIENTS).map(|at| Recorder::new(at, keys.clone(), clock, seed)).collect(),
            keys: vec![Vec::new(); names.len()],
            names,
            open: Vec::new(),
            starts: Vec::new(),
            met: Met::default(),
        }
    }

    /// A start, clients for some hundred milliseconds, and an end.
    fn round(&mut self, dir: &Path) {
        let mut server = self.start(dir);
        let after = Duration::from_micros(self.rng.u64(50_000..500_000));
        let is_kill = self.rng.u8(..8) > 0;
        let mover_seed = self.rng.u64(..);
        let (address, shards) = (server.address, server.shards);
        let (_, clients) = self.recorders.split_last_mut().expect("there are some");
        let (ready, readied) = mpsc::channel::<()>();
        let (results, moves, end) = thread::scope(|scope| {
            let threads: Vec<_> = clients
                .iter_mut()
                .map(|recorder| {
                    let ready = ready.clone();
                    scope.spawn(move || {
                        let mut client = try_connect(address).map_err(|error| error.to_string())?;
                        drop(ready);
                        recorder.run(&mut client)
                    })
                })
                .collect();
            let mover = scope.spawn(move || move_tablets(address, shards, mover_seed));
            drop(ready);
            // Ends when every client has connected, or failed to.
            readied.iter().for_each(drop);
            // Not a wait for anything: the moment of the end is what is random here.
            thread::sleep(after);
            let begin = Instant::now();
            if is_kill {
                server.kill();
            } else {
                server.signal(rustix::process::Signal::TERM);
                let status = server.wait();
                assert!(status.success(), "{status}: {}", server.log());
            }
            let results: Vec<_> = threads
                .into_iter()
                .map(|thread| thread.join().expect("clients report, they don't panic"))
                .collect();
            (results, mover.join().expect("it reports"), begin.elapsed())
        });
        self.met.slowest_end = self.met.slowest_end.max(end);
        for result in results {
            if let Err(why) = result {
                panic!("seed {}: {why}\n{}", self.seed, server.log());
            }
        }
        self.met.kills += usize::from(is_kill);
        self.met.stops += usize::from(!is_kill);
        self.met.moves += moves;
        self.take_in();
        let log = server.log();
        assert!(!log.contains("ERROR") && !log.contains("panicked"), "seed {}: {log}", self.seed);
        let count = |text: &str| log.lines().filter(|line| line.contains(text)).count();
        self.met.flushes += count("flushed a memtable");
        self.met.merges += count("merged tables");
    }

    /// Starts the server, perhaps after starts that are cut short, and reads all keys.
    fn start(&mut self, dir: &Path) -> Server {
        let cores = self.rng.usize(1..=3);
        let (cores, memory) = (cores.to_string(), format!("{}MiB", 32 * cores.max(2)));
        let arguments =
            ["--cores", &cores, "--oversubscribe", "--memory", &memory, "--max-value-size", "512KiB"];
        while !self.starts.is_empty() && self.rng.u8(..5) == 0 {
            let mut command = command(dir, &arguments);
            let mut child =
                command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("the server starts");
            thread::sleep(Duration::from_micros(self.rng.u64(..200_000)));
            child.kill().expect("our own child can be killed");
            child.wait().expect("our own child can be waited for");
            self.met.kills_in_start += 1;
        }
        let mut command = command(dir, &arguments);
        if let Ok(bug) = std::env::var("ATLASKV_LINEAR_PLANTED") {
            command.env("ATLASKV_PLANTED", bug);
        }
        let begin = Instant::now();
        let server = Server::start_command(command);
        self.met.slowest_start = self.met.slowest_start.max(begin.elapsed());
        let start = u64::try_from(self.clock.elapsed().as_nanos()).expect("centuries");
        self.starts.push(start);
        for (key, at) in self.open.drain(..) {
            self.keys[key as usize][at].end = start;
        }
        let mut client = try_connect(server.address).expect("a server that said it is ready");
        let reader = self.recorders.last_mut().expect("there are some");
        let all: Vec<u32> = (0..self.names.len() as u32).collect();
        for some in all.chunks(LOOK_AT_ONCE) {
            let mut look = |some: &[u32]| {
                let before = reader.ops.len();
                let is_up = reader.look(&mut client, some);
                assert!(is_up == Ok(true), "seed {}: {is_up:?}: {}", self.seed, server.log());
                reader.ops.len() > before
            };
            // Together they may be too much for one answer.
            if !look(some) {
                some.chunks(1).for_each(|one| assert!(look(one), "seed {}: a read is refused", self.seed));
            }
        }
        self.take_in();
        server
    }

    /// Takes over what the clients have recorded.
    fn take_in(&mut self) {
        for recorder in &mut self.recorders {
            for (code, count) in std::mem::take(&mut recorder.refused) {
                *self.met.refused.entry(code).or_default() += count;
            }
            for (key, op) in recorder.ops.drain(..) {
                let ops = &mut self.keys[key as usize];
                if op.end == NEVER {
                    self.open.push((key, ops.len()));
                    self.met.lost += 1;
                }
                ops.push(op);
                self.met.ops += 1;
            }
        }
    }
}

/// Moves and splits tablets until the server is gone. How often it did.
fn move_tablets(address: SocketAddr, shards: usize, seed: u64) -> usize {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut done = 0;
    let Ok(mut client) = try_connect(address) else { return done };
    while let Ok(is_done) = move_one(&mut client, shards, &mut rng) {
        done += usize::from(is_done);
    }
    done
}

fn move_one(client: &mut Client, shards: usize, rng: &mut fastrand::Rng) -> Result<bool, Error> {
    let text = client.stats("tablets")?;
    let count = text.lines().filter(|line| line.contains(".shard=")).count();
    let tablet = rng.usize(..count);
    let command = match rng.u8(..16) {
        0 if count < TABLETS_MAX => format!("split {tablet}"),
        1 => format!("cores {}", rng.usize(1..=shards)),
        2 => "rebalance".to_string(),
        _ => format!("move {tablet} {}", rng.usize(..shards)),
    };
    match client.tablets(&command) {
        // A tablet that is there already, or one that can't be split.
        Err(error) if error.refusal().is_some() => Ok(false),
        result => result.map(|_| true),
    }
}
