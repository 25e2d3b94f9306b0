//! All clients at once, for a while: nothing fails, and the server's memory stays what it is.

use std::io::Read;
use std::net::SocketAddr;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use super::{IOREDIS, NODE_REDIS, REDIS_CLI, REDIS_PY, Tool};
use crate::from_env;
use crate::servers::{Subject, resident_bytes};

/// Seconds of an ordinary run; an hour is what it is made for.
const SECONDS: u64 = 10;

/// How often memory is looked at.
const LOOKS: u32 = 30;

/// How much more memory the last third of the looks may see than the middle one: what is left of it in a
/// server that loses none is the noise of caches and allocators.
const GROWTH_PERCENT: u64 = 10;

/// Each with the number that work at once.
const CROWD: [(Tool, usize); 4] = [(REDIS_PY, 2), (IOREDIS, 2), (NODE_REDIS, 2), (REDIS_CLI, 1)];

/// A client at work. Killed when dropped.
struct Worker {
    tool: Tool,
    child: Child,
}

impl Worker {
    fn start(tool: Tool, address: SocketAddr, seconds: u64) -> Worker {
        let mut command: Command = tool.tour("soak", address);
        command.arg(seconds.to_string());
        let child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", tool.program));
        Worker { tool, child }
    }

    /// How it ended, if it did, with all that it said if that was not well.
    fn failure(&mut self) -> Option<String> {
        let status = self.child.try_wait().expect("our own child can be waited for")?;
        let mut said = String::new();
        let pipes: [Option<Box<dyn Read>>; 2] = [
            self.child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read>),
            self.child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read>),
        ];
        for mut pipe in pipes.into_iter().flatten() {
            // What can't be read is not shown.
            let _ = pipe.read_to_string(&mut said);
        }
        println!("{}: {}", self.tool.program, said.trim());
        (!status.success()).then(|| format!("{}: {status}\n{said}", self.tool.program))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `ATLASKV_REDIS_SOAK_SECONDS=3600` is the soak of an hour.
#[test]
fn a_mixed_crowd_meets_no_error_and_no_growing_memory() {
    let seconds: u64 = from_env("ATLASKV_REDIS_SOAK_SECONDS").unwrap_or(SECONDS);
    let subject = Subject::start("always");
    let mut workers: Vec<Worker> = CROWD
        .iter()
        .flat_map(|(tool, count)| vec![*tool; *count])
        .map(|tool| Worker::start(tool, subject.address(), seconds))
        .collect();
    let begin = Instant::now();
    let mut looks = Vec::new();
    while !workers.is_empty() {
        // Looking at another process's memory is no event that could be awaited.
        thread::sleep(Duration::from_secs(seconds) / LOOKS);
        let resident = subject.pid().and_then(resident_bytes);
        if begin.elapsed() < Duration::from_secs(seconds) {
            looks.extend(resident);
        }
        let mut failures = Vec::new();
        workers.retain_mut(|worker| {
            let ended = worker.child.try_wait().is_ok_and(|status| status.is_some());
            failures.extend(worker.failure());
            !ended
        });
        assert!(failures.is_empty(), "after {:?}: {}", begin.elapsed(), failures.join("\n"));
        assert!(begin.elapsed() < Duration::from_secs(seconds * 2 + 60), "clients do not end");
    }
    judge_memory(&looks, seconds);
}

/// Whether memory is steady; a short soak only shows what it was.
fn judge_memory(looks: &[u64], seconds: u64) {
    let third = looks.len() / 3;
    let Some(last) = looks[looks.len() - third..].iter().max() else { return };
    let middle = looks[third..2 * third].iter().max().expect("as many as in the last third");
    println!("resident memory: {} MiB in the middle, {} MiB at the end", middle >> 20, last >> 20);
    let most = middle + middle * GROWTH_PERCENT / 100;
    assert!(seconds < 600 || *last <= most, "memory grows: from {middle} to {last} bytes");
}
