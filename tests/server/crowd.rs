//! Ten thousand idle connections and every kind of bad client, all at once. The server keeps within its memory, and
//! everyone else is served.
//!
//! How well they are served is measured on request, since other tests run beside this one: two paced clients, one of
//! GET and one of SET, ask 250 times a second each, and each time is measured from when it was due; in turns, the server
//! is left in peace and is crowded, by bad clients that have twenty turns a second each and by such that have as many as
//! they can, which is all of the server's core or of its disk. The server has one core for itself, the crowd has the
//! others, and of those the paced clients are the first to get one (as root: otherwise they wait for the crowd as well,
//! and the figures are worse).
//!
//! ```text
//! ATLASKV_CROWD_SECONDS=30 cargo test --release --test server a_crowd_slows -- --ignored --nocapture
//! ```
//!
//! With `ATLASKV_CROWD_ONLY=largest`, for one, only of the kinds whose names hold that. With `ATLASKV_CROWD_ELSEWHERE=1`
//! the bad clients talk to a stand-in that has their core and takes what they send: what the others then wait for is not
//! the server, but the work that the kernel does for the bad clients where the paced ones are.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use atlaskv::protocol::Request;
use hdrhistogram::Histogram;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use socket2::{Domain, SockRef, Socket, Type};

use crate::harness::{Server, command, disk_dir, eventually, open_sockets};
use crate::raw::{Raw, frame, set};

/// As many as this, unless the limit of open files allows fewer.
const IDLE_MAX: usize = 10_000;
/// With fewer the test shows nothing.
const IDLE_MIN: usize = 5_000;
/// Addresses that they come from, since one has only so many ports.
const SOURCES: usize = 4;
/// For the server, which wants two for each connection, as tables may take half.
const FILES: u64 = 24_000;
/// Connections of the other clients, and those of other tests beside this one.
const OTHERS: usize = 300;
const MEMORY_MIB: u64 = 128;
/// What is resident beyond `--memory` at most, for the process and for each shard: see "Bounds" in design.md.
const BEYOND_MIB: u64 = 32;
const BEYOND_SHARD_MIB: u64 = 24;
/// And for each idle connection.
const BEYOND_IDLE_KIB: u64 = 10;
const LARGEST: usize = 1 << 20;
/// A paced client's requests in a second.
const RATE: u32 = 250;
/// How long a moderate bad client pauses between one turn and the next.
const PAUSE: Duration = Duration::from_millis(50);

/// Whether bad clients are moderate.
static IS_MODERATE: AtomicBool = AtomicBool::new(false);

/// Whether a bad client is to have another turn.
fn goes_on(stop: &AtomicBool) -> bool {
    if IS_MODERATE.load(Ordering::Relaxed) {
        thread::sleep(PAUSE);
    }
    !stop.load(Ordering::Relaxed)
}

/// One bad client after another, until told to stop. Counts them.
type Abuse = fn(SocketAddr, &AtomicBool, &mut fastrand::Rng) -> u64;

const ABUSES: [(&str, Abuse); 7] = [
    ("a byte at a time", byte_by_byte),
    ("never reading", never_reading),
    ("half closed", half_closed),
    ("reset", reset),
    ("random bytes", random_bytes),
    ("largest frames", largest_frames),
    ("half a frame", half_a_frame),
];

fn connect(address: SocketAddr) -> Option<TcpStream> {
    let stream = TcpStream::connect(address).ok()?;
    // So that it notices when it is told to stop.
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.set_write_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.set_nodelay(true).ok()?;
    Some(stream)
}

fn byte_by_byte(address: SocketAddr, stop: &AtomicBool, _: &mut fastrand::Rng) -> u64 {
    let mut sent = 0;
    while goes_on(stop) {
        let Some(mut stream) = connect(address) else { continue };
        let bytes = [frame(1, &set(b"slow", b"value")), frame(2, &Request::Get { key: b"slow" })].concat();
        for byte in bytes {
            if stream.write_all(&[byte]).is_err() {
                break;
            }
            sent += 1;
        }
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    sent
}

fn never_reading(address: SocketAddr, stop: &AtomicBool, _: &mut fastrand::Rng) -> u64 {
    let request = frame(1, &Request::Get { key: b"large" });
    let mut ended = 0;
    while goes_on(stop) {
        let mut all: Vec<TcpStream> = (0..8).filter_map(|_| connect(address)).collect();
        for stream in &mut all {
            let _ = stream.set_nonblocking(true);
            for _ in 0..200 {
                if stream.write(&request).is_err() {
                    break;
                }
            }
        }
        // Until the server has had enough of it, which it says by closing.
        for stream in &mut all {
            while !stop.load(Ordering::Relaxed) && stream.write(&request).is_ok() {
                thread::sleep(Duration::from_millis(20));
            }
            ended += 1;
        }
    }
    ended
}

fn half_closed(address: SocketAddr, stop: &AtomicBool, _: &mut fastrand::Rng) -> u64 {
    let mut ended = 0;
    while goes_on(stop) {
        let Some(mut stream) = connect(address) else { continue };
        let mut bytes: Vec<u8> = (0..50).flat_map(|id| frame(id, &set(b"half", b"value"))).collect();
        bytes.extend(&frame(9, &Request::Get { key: b"half" })[..20]);
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
        ended += 1;
    }
    ended
}

fn reset(address: SocketAddr, stop: &AtomicBool, rng: &mut fastrand::Rng) -> u64 {
    let value = vec![b'r'; 20_000];
    let mut ended = 0;
    while goes_on(stop) {
        let Some(mut stream) = connect(address) else { continue };
        let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        for id in 0..rng.u64(..10) {
            let _ = stream.write_all(&frame(id, &set(b"reset", &value)));
            let _ = stream.write_all(&frame(id, &Request::Get { key: b"large" }));
        }
        ended += 1;
    }
    ended
}

fn random_bytes(address: SocketAddr, stop: &AtomicBool, rng: &mut fastrand::Rng) -> u64 {
    let mut ended = 0;
    while goes_on(stop) {
        let Some(mut stream) = connect(address) else { continue };
        let mut bytes: Vec<u8> = (0..rng.usize(2..4_000)).map(|_| rng.u8(..)).collect();
        if rng.bool() {
            let mut good = frame(rng.u64(..), &set(b"random", &[b'x'; 500]));
            let at = rng.usize(..40);
            good[at] ^= 1 << rng.u8(..8);
            good.extend(bytes);
            bytes = good;
        }
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
        ended += 1;
    }
    ended
}

fn largest_frames(address: SocketAddr, stop: &AtomicBool, rng: &mut fastrand::Rng) -> u64 {
    let value = vec![b'l'; LARGEST];
    let mut ended = 0;
    while goes_on(stop) {
        // In parallel: each sends all it has before any reads.
        let all: Vec<TcpStream> = (0..4).filter_map(|_| connect(address)).collect();
        thread::scope(|scope| {
            for mut stream in all {
                let (value, number) = (&value, rng.u8(..8));
                scope.spawn(move || {
                    let key = [b'l', number];
                    let _ = stream.write_all(&frame(1, &set(&key, value)));
                    let _ = stream.write_all(&frame(2, &Request::Get { key: &key }));
                    let _ = stream.shutdown(Shutdown::Write);
                    let _ = stream.read_to_end(&mut Vec::with_capacity(LARGEST + 200));
                });
                ended += 1;
            }
        });
    }
    ended
}

fn half_a_frame(address: SocketAddr, stop: &AtomicBool, _: &mut fastrand::Rng) -> u64 {
    let whole = frame(1, &set(b"half a frame", &vec![b'h'; LARGEST]));
    let mut ended = 0;
    while goes_on(stop) {
        let mut all: Vec<TcpStream> = (0..4).filter_map(|_| connect(address)).collect();
        for stream in &mut all {
            let _ = stream.write_all(&whole[..LARGEST / 2]);
        }
        for stream in &mut all {
            // Until the server wants the room for somebody else, or for two seconds.
            let _ = stream.read(&mut [0; 64]);
            ended += 1;
        }
    }
    ended
}

/// Raises the limit of open files of this process, which the server inherits; how many idle connections that allows.
fn raise_files() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(FILES, |maximum| maximum.max(FILES));
    let raised = Rlimit { current: Some(wanted), maximum: Some(wanted) };
    // Only who may raise a hard limit can have more than that.
    let files = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => wanted,
        Err(_) => {
            setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("up to the hard limit");
            maximum.or(current).unwrap_or(wanted)
        }
    };
    let idle = (files as usize / 2).saturating_sub(OTHERS).min(IDLE_MAX);
    assert!(
        idle >= IDLE_MIN,
        "{files} open files are too few; run the tests after ulimit -n {FILES}, as root if need be"
    );
    if idle < IDLE_MAX {
        println!("the limit of open files, {files}, allows {idle} idle connections instead of {IDLE_MAX}");
    }
    idle
}

/// Connections that say nothing, every tenth apart, which has said something once.
fn idle(address: SocketAddr, count: usize) -> Vec<Raw> {
    let mut all: Vec<Raw> = (0..count)
        .map(|at| {
            let source = SocketAddr::from(([127, 0, 0, 2 + (at % SOURCES) as u8], 0));
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("files were made enough");
            socket.bind(&source.into()).expect("all of 127.0.0.0/8 is this machine");
            socket.connect(&address.into()).expect("the server listens");
            Raw { stream: socket.into(), received: Vec::new() }
        })
        .collect();
    all.iter_mut().step_by(10).for_each(|raw| raw.ping(1).expect("it is served"));
    all
}

struct Crowded {
    server: Server,
    cores: u64,
    /// Idle connections that there can be beside the others.
    idle: usize,
    _dir: tempfile::TempDir,
}

impl Crowded {
    /// A server whose memory is in use: what it may hold of data it holds.
    fn start(
        cores: u64,
        before_exec: impl FnMut() -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Crowded {
        let idle = raise_files();
        let dir = disk_dir();
        let (memory, cores_text) = (format!("{MEMORY_MIB}MiB"), cores.to_string());
        let arguments = [
            "--cores",
            &cores_text,
            "--oversubscribe",
            "--memory",
            &memory,
            "--max-value-size",
            "1MiB",
            "--max-connections",
            "12000",
            "--stall-timeout",
            "1s",
        ];
        let mut command = command(dir.path(), &arguments);
        // SAFETY: the closure makes system calls only.
        unsafe { command.pre_exec(before_exec) };
        let server = Server::start_command(command);
        let mut raw = Raw::connect(server.address);
        raw.set(1, b"large", &vec![b'v'; 256 << 10]).expect("a write");
        let value = vec![b'f'; 8_000];
        for first in (0..10_000u64).step_by(100) {
            let frames =
                (first..first + 100).flat_map(|n| frame(n, &set(format!("fill {n}").as_bytes(), &value)));
            raw.stream.write_all(&frames.collect::<Vec<_>>()).expect("the server reads");
            (0..100).for_each(|_| assert_eq!(raw.answer().expect("an answer").status, 0));
        }
        for n in (0..10_000).step_by(2) {
            raw.get(n, format!("fill {n}").as_bytes()).expect("a read");
        }
        Crowded { server, cores, idle, _dir: dir }
    }

    fn mib(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.server.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of this name");
        line.trim().strip_suffix(" kB").expect("KiB").parse::<u64>().expect("a number") >> 10
    }

    /// Its most is within what it was given and what is said to be beyond that; then it stops well.
    fn end(self) {
        let idle_mib = (self.idle as u64 * BEYOND_IDLE_KIB) >> 10;
        let bound = MEMORY_MIB + BEYOND_MIB + self.cores * BEYOND_SHARD_MIB + idle_mib;
        let most = self.mib("VmHWM:");
        assert!(most <= bound, "{most} MiB resident, more than {bound}");
        let (pid, sockets) = (self.server.pid(), self.server.sockets);
        eventually("all clients are gone", || open_sockets(pid) == Some(sockets));
        let (status, log) = self.server.stop();
        assert_eq!(status.code(), Some(0), "{log}");
        assert!(!log.contains("ERROR") && !log.contains("panicked"), "{log}");
    }
}

/// Has every kind of bad client at work while `work` is done; how many there were of each.
fn amid_abuse<R>(address: SocketAddr, prepare: impl Fn() + Sync, work: impl FnOnce() -> R) -> (R, String) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let threads: Vec<_> = ABUSES
            .iter()
            .map(|(name, abuse)| {
                let (stop, prepare) = (&stop, &prepare);
                let thread = scope.spawn(move || {
                    prepare();
                    abuse(address, stop, &mut fastrand::Rng::new())
                });
                (name, thread)
            })
            .collect();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, Ordering::Relaxed);
        let told: Vec<_> = threads
            .into_iter()
            .map(|(name, thread)| format!("{} {name}", thread.join().expect("an abuser")))
            .collect();
        (result.unwrap_or_else(|panic| std::panic::resume_unwind(panic)), told.join(", "))
    })
}

#[test]
fn a_crowd_of_idle_and_bad_clients_leaves_everyone_else_served() {
    let crowded = Crowded::start(2, || Ok(()));
    let address = crowded.server.address;
    let before = crowded.mib("VmRSS:");
    let mut witness = Raw::connect(address);
    witness.ping(1).expect("it is served");
    let mut idle = idle(address, crowded.idle);
    let (pid, all) = (crowded.server.pid(), crowded.server.sockets + 1 + crowded.idle);
    eventually("all are accepted", || open_sockets(pid) == Some(all));
    let with_idle = crowded.mib("VmRSS:");
    let served = AtomicU64::new(0);
    let ((), abuses) = amid_abuse(
        address,
        || (),
        || {
            let begin = Instant::now();
            // As long as it takes to be cut off twice for reading nothing.
            while begin.elapsed() < Duration::from_secs(3) || served.load(Ordering::Relaxed) < 50 {
                let id = served.fetch_add(1, Ordering::Relaxed);
                let key = format!("witness {}", id % 8);
                let asked = Instant::now();
                assert_eq!(
                    witness.set(id, key.as_bytes(), &id.to_le_bytes()).expect("it is served").status,
                    0
                );
                assert_eq!(witness.get(id, key.as_bytes()).expect("it is served").values, [id.to_le_bytes()]);
                // On a machine that does many other things. How long it takes otherwise is measured below.
                assert!(asked.elapsed() < Duration::from_secs(20), "it took {:?}", asked.elapsed());
            }
        },
    );
    println!(
        "{} asked; {abuses}; {before} MiB, with {} idle {with_idle} MiB, at most {} MiB",
        served.load(Ordering::Relaxed),
        crowded.idle,
        crowded.mib("VmHWM:")
    );
    // Who did nothing is still there, and is served as well.
    idle.iter_mut().step_by(7).for_each(|raw| raw.ping(3).expect("it is still there"));
    drop((idle, witness));
    crowded.end();
}

/// A connection that has written `key`. A flood of others may take all that there may be: then it tries again.
fn admitted(address: SocketAddr, key: &[u8]) -> Raw {
    let begin = Instant::now();
    loop {
        let mut raw = Raw::connect(address);
        match raw.set(0, key, &[b'p'; 100]) {
            Ok(reply) if reply.status == 0 => return raw,
            refused => {
                assert!(begin.elapsed() < Duration::from_secs(60), "not admitted: {:?}", refused.err())
            }
        }
    }
}

/// Asks at the set pace for so long, by GET or by SET alone: who reads waits for nobody's disk, and is not to be made
/// late by who writes. Times in microseconds.
fn ask_paced(address: SocketAddr, duration: Duration, is_get: bool) -> Histogram<u64> {
    let mut times = Histogram::new(3).expect("three digits");
    let key: &[u8] = if is_get { b"paced, to read" } else { b"paced, to write" };
    let mut raw = admitted(address, key);
    let (begin, gap) = (Instant::now(), Duration::from_secs(1) / RATE);
    for turn in 0.. {
        let due = begin + gap * turn;
        if due > begin + duration {
            return times;
        }
        // Late because of the request before it, this one waits since it was due.
        let since = match due.checked_duration_since(Instant::now()) {
            Some(early) => {
                thread::sleep(early);
                Instant::now()
            }
            None => due,
        };
        let id = u64::from(turn);
        let answer = if is_get { raw.get(id, key) } else { raw.set(id, key, &[b'p'; 100]) };
        assert_eq!(answer.expect("it is served").status, 0);
        times.record(since.elapsed().as_micros() as u64).expect("a time that fits");
    }
    unreachable!("time passes")
}

/// Takes what is sent, and answers each connection with as much as one of the largest frames, on the crowd's CPUs.
fn stand_in(listener: &std::net::TcpListener) {
    let answer = vec![b'a'; LARGEST];
    thread::scope(|scope| {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let answer = &answer;
            scope.spawn(move || {
                let mut buffer = vec![0; 128 << 10];
                // It ends when its client does, whatever becomes of the answer.
                while stream.read(&mut buffer).is_ok_and(|len| len > 0) {}
                let _ = stream.write_all(answer);
            });
        }
    });
}

/// Puts this thread on all CPUs but the server's.
fn leave_cpu(cpu: usize, all: &CpuSet) {
    let mut others = *all;
    others.unset(cpu);
    sched_setaffinity(None, &others).expect("there is another CPU");
}

#[test]
#[ignore = "a measurement, which wants the machine for itself: see the head of the file"]
fn a_crowd_slows_others_little() {
    let seconds = std::env::var("ATLASKV_CROWD_SECONDS").map(|text| text.parse().expect("a number"));
    let duration = Duration::from_secs(seconds.unwrap_or(10));
    let all = sched_getaffinity(None).expect("every thread has CPUs");
    assert!(all.count() > 1, "one CPU for the server and one for the crowd are needed");
    let cpu = (0..CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)).expect("there is one");
    let crowded = Crowded::start(1, move || {
        let mut only = CpuSet::new();
        only.set(cpu);
        Ok(sched_setaffinity(None, &only)?)
    });
    let address = crowded.server.address;
    let measure = |what: &str| {
        let show = |times: &Histogram<u64>| {
            let at = |part| times.value_at_quantile(part);
            format!(
                "{} requests, p50 {} p99 {} p99.9 {} max {} us",
                times.len(),
                at(0.5),
                at(0.99),
                at(0.999),
                times.max()
            )
        };
        let times = thread::scope(|scope| {
            let paced = [true, false].map(|is_get| {
                scope.spawn(move || {
                    leave_cpu(cpu, &all);
                    // SAFETY: changes the priority of this thread only; where it may not, the figures are worse.
                    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -15) };
                    ask_paced(address, duration, is_get)
                })
            });
            paced.map(|thread| thread.join().expect("a paced client"))
        });
        println!("{what}: GET {}; SET {}; {} MiB", show(&times[0]), show(&times[1]), crowded.mib("VmRSS:"));
        times
    };
    // Slower than in peace by how much, at the 99th percentile.
    let beside = |times: &[Histogram<u64>; 2], peace: &[Histogram<u64>; 2]| {
        let p99 = |times: &Histogram<u64>| times.value_at_quantile(0.99) as f64;
        let [get, set] = [0, 1].map(|kind| p99(&times[kind]) / p99(&peace[kind]));
        println!("    p99 in parts of what it is in peace: GET {get:.2}, SET {set:.2}");
    };
    let only = std::env::var("ATLASKV_CROWD_ONLY").unwrap_or_default();
    let mut target = address;
    if std::env::var_os("ATLASKV_CROWD_ELSEWHERE").is_some() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("there is a free port");
        target = listener.local_addr().expect("it is bound");
        // It ends with the process.
        thread::spawn(move || {
            leave_cpu(cpu, &all);
            stand_in(&listener);
        });
    }
    for (round, is_moderate) in [(1, true), (2, true), (3, true), (4, false)] {
        if target != address && !is_moderate {
            break;
        }
        IS_MODERATE.store(is_moderate, Ordering::Relaxed);
        println!("round {round}: {}", if is_moderate { "moderate" } else { "as fast as they can" });
        let peace = measure(&format!("{round}, in peace"));
        let idle = idle(address, crowded.idle);
        beside(&measure(&format!("{round}, with {} idle connections", crowded.idle)), &peace);
        for abuse in ABUSES.iter().filter(|(name, _)| name.contains(&only)) {
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                let thread = scope.spawn(|| {
                    leave_cpu(cpu, &all);
                    abuse.1(target, &stop, &mut fastrand::Rng::new())
                });
                beside(&measure(&format!("{round}, and {}", abuse.0)), &peace);
                stop.store(true, Ordering::Relaxed);
                println!("    {} of them", thread.join().expect("an abuser"));
            });
        }
        let ((), abuses) = amid_abuse(
            target,
            || leave_cpu(cpu, &all),
            || beside(&measure(&format!("{round}, and all of that")), &peace),
        );
        println!("    {abuses}; at most {} MiB", crowded.mib("VmHWM:"));
        drop(idle);
    }
    crowded.end();
}
