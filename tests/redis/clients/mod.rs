//! Clients that others wrote, unmodified: tours of what they offer for strings and keys.
//!
//! Those of other languages are in `tours/`, one program each, installed by `tours/install`, which `tests/run`
//! calls, into the build's directory; [`redis_rs`] is Rust's. [`handshakes`] replays what more clients send as they connect.
//! [`soak`] lets them all work at once for a while.
//!
//! Each tour is of a plain server, of a cluster, or of a cluster whose slots move. With `ATLASKV_REDIS_SUBJECT=redis-server` that is Redis
//! itself, alone and as a cluster of three, which shows that a tour asks for nothing that Redis does not do.

mod handshakes;
mod redis_rs;
mod soak;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use crate::servers::{Subject, SubjectCluster};
use crate::wire::Wire;

/// Of requests to a cluster, those that may have gone to the wrong node first: one in this many.
const HOPS_ONE_IN: u64 = 1000;

/// A client of another language.
#[derive(Clone, Copy, Debug)]
struct Tool {
    /// The program below `tours/`.
    program: &'static str,
    /// What runs it, below the directory of what is installed.
    runner: Option<&'static str>,
}

const REDIS_PY: Tool = Tool { program: "redis_py.py", runner: Some("venv/bin/python") };
const IOREDIS: Tool = Tool { program: "ioredis.mjs", runner: Some("node") };
const NODE_REDIS: Tool = Tool { program: "node_redis.mjs", runner: Some("node") };
const REDIS_CLI: Tool = Tool { program: "redis_cli", runner: None };

/// Where `tours/install` was told to put the clients: below the build's directory.
fn installed() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("redis-tours")
}

/// Whether the clients there are those that the tours are written for.
fn is_installed(directory: &Path) -> bool {
    let is_same = |file: &str, wanted: &str| {
        std::fs::read_to_string(directory.join(file)).is_ok_and(|installed| installed == wanted)
    };
    is_same("requirements.txt", include_str!("../tours/requirements.txt"))
        && is_same("node_modules/.installed", include_str!("../tours/package-lock.json"))
}

impl Tool {
    /// The tour of that name, as a command.
    fn tour(self, tour: &str, address: SocketAddr) -> Command {
        let tours = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/redis/tours");
        let program = tours.join(self.program);
        let mut command = match self.runner {
            None => Command::new(&program),
            Some(runner) => {
                let installed = installed();
                assert!(
                    is_installed(&installed),
                    "the clients are not installed, or older ones; tests/run installs them, or: {} {}",
                    tours.join("install").display(),
                    installed.display()
                );
                let mut command = Command::new(installed.join(runner));
                command.arg(&program).env("ATLASKV_TOURS", &installed).env("PYTHONDONTWRITEBYTECODE", "1");
                command
            }
        };
        command.args([tour, &address.ip().to_string(), &address.port().to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Makes a tour; panics with what it says if it fails.
    fn run(self, tour: &str, address: SocketAddr) {
        let output = self.tour(tour, address).output();
        let output = output.unwrap_or_else(|error| {
            panic!("{}: {error}; tests/run installs what the tours need", self.program)
        });
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
        assert!(
            output.status.success(),
            "{} {tour}: {}\n{}\n{}",
            self.program,
            output.status,
            said(&output.stdout),
            said(&output.stderr)
        );
        println!("{}", said(&output.stdout));
    }
}

/// A tour of a plain server.
fn single(tour: impl FnOnce(SocketAddr)) {
    let subject = Subject::start("always");
    tour(subject.address());
}

/// A tour of a cluster, after which almost every request must have gone to the node that has the key.
fn cluster(tour: impl FnOnce(SocketAddr)) {
    let cluster = SubjectCluster::start();
    let nodes = cluster.nodes();
    // What was asked while the cluster was made counts for nothing.
    let before = Counted::of(&nodes);
    tour(nodes[0]);
    let after = Counted::of(&nodes);
    let (hops, calls) = (after.hops - before.hops, after.calls - before.calls);
    println!("{hops} of {calls} requests went to the wrong node first");
    assert!(calls > 1000, "too few to tell");
    assert!(hops * HOPS_ONE_IN <= calls, "{hops} of {calls} requests went to the wrong node first");
}

/// A client works while slots move: whatever it asks is answered, as somebody sends it to where the slot has gone.
/// `begin` begins and returns what ends it.
fn moving<End: FnOnce()>(begin: impl FnOnce(SocketAddr) -> End) {
    let cluster = SubjectCluster::start();
    let nodes = cluster.nodes();
    let end = begin(nodes[0]);
    let before = Counted::of(&nodes);
    cluster.move_slots();
    end();
    let after = Counted::of(&nodes);
    let (hops, calls) = (after.hops - before.hops, after.calls - before.calls);
    println!("{hops} of {calls} requests went to where the slot had been");
    // What is answered with MOVED is no call.
    assert!(calls + hops > 700, "too few to tell");
    assert!(hops > 0, "nobody has noticed that slots moved");
}

/// The same for a client of another language.
fn moving_tour(tool: Tool) {
    moving(|address| {
        let mut command = tool.tour("moving", address);
        let mut child = command.stdin(Stdio::piped()).spawn().expect("it was found before");
        let mut said = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let first = said.next().and_then(Result::ok);
        if first.as_deref() != Some("ready") {
            let output = child.wait_with_output().expect("our own child");
            let error = String::from_utf8_lossy(&output.stderr);
            panic!("{}: {first:?}, not ready: {}\n{error}", tool.program, output.status);
        }
        move || {
            drop(child.stdin.take());
            said.map_while(Result::ok).for_each(|line| println!("{line}"));
            let output = child.wait_with_output().expect("our own child");
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{} moving: {}\n{error}", tool.program, output.status);
        }
    });
}

/// What the nodes of a cluster counted.
#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    /// Requests that came to a node that has not their key: answered with MOVED, or passed on.
    hops: u64,
    /// Commands in all.
    calls: u64,
}

impl Counted {
    fn of(nodes: &[SocketAddr]) -> Counted {
        let mut counted = Counted::default();
        for node in nodes {
            let mut wire = Wire::connect(*node).expect("the node serves");
            let mut info = |section| wire.say(section).expect("INFO is answered").as_text();
            let (errors, stats) = (info("INFO errorstats"), info("INFO stats"));
            // Otherwise none would be counted, and none be missed.
            assert!(errors.contains("# Errorstats"), "INFO errorstats says nothing: {errors}");
            // The second is AtlasKV's alone.
            counted.hops += figure(&errors, "errorstat_MOVED:count=") + figure(&stats, "forwarded_requests:");
            counted.calls += figure(&stats, "total_commands_processed:");
        }
        counted
    }
}

/// The number that follows `name`; none is 0, since what never happened is not listed.
fn figure(info: &str, name: &str) -> u64 {
    let digits = info.split(name).nth(1).unwrap_or_default();
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().unwrap_or_default()
}

#[test]
fn redis_py_makes_its_tour() {
    single(|address| REDIS_PY.run("single", address));
}

#[test]
fn redis_py_makes_its_tour_of_a_cluster() {
    cluster(|address| REDIS_PY.run("cluster", address));
}

#[test]
fn ioredis_makes_its_tour() {
    single(|address| IOREDIS.run("single", address));
}

#[test]
fn ioredis_makes_its_tour_of_a_cluster() {
    cluster(|address| IOREDIS.run("cluster", address));
}

#[test]
fn node_redis_makes_its_tour() {
    single(|address| NODE_REDIS.run("single", address));
}

#[test]
fn node_redis_makes_its_tour_of_a_cluster() {
    cluster(|address| NODE_REDIS.run("cluster", address));
}

#[test]
fn redis_cli_and_redis_benchmark_make_their_tour() {
    single(|address| REDIS_CLI.run("single", address));
}

#[test]
fn redis_cli_and_redis_benchmark_make_their_tour_of_a_cluster() {
    cluster(|address| REDIS_CLI.run("cluster", address));
}

#[test]
fn redis_rs_makes_its_tour() {
    single(redis_rs::single);
}

#[test]
fn redis_rs_makes_its_tour_of_a_cluster() {
    cluster(redis_rs::cluster);
}

#[test]
fn redis_py_follows_the_slots_of_a_cluster() {
    moving_tour(REDIS_PY);
}

#[test]
fn ioredis_follows_the_slots_of_a_cluster() {
    moving_tour(IOREDIS);
}

#[test]
fn node_redis_follows_the_slots_of_a_cluster() {
    moving_tour(NODE_REDIS);
}

#[test]
fn redis_cli_follows_the_slots_of_a_cluster() {
    moving_tour(REDIS_CLI);
}

#[test]
fn redis_rs_follows_the_slots_of_a_cluster() {
    moving(|address| {
        let (sender, begun) = mpsc::channel();
        let end = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let end = end.clone();
            move || redis_rs::moving(address, &sender, &end)
        });
        let _ = begun.recv(); // an error means that it has failed, which its end tells
        move || {
            end.store(true, Ordering::Relaxed);
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}
