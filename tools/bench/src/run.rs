//! A whole run: connect, load, measure, sum up.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::args::{Order, Plan, Switch};
use crate::client::{Client, Pacing, Route, Workload};
use crate::cpu::{self, ProcessTime};
use crate::keys::Family;
use crate::lane::Lane;
use crate::mix::OpKind;
use crate::population::Population;
use crate::record::{Faults, OpRecord, Second, Totals, merge};
use crate::report::{Generator, Point, Progress, Report, ServerCpu};
use crate::timetable::{Arrivals, Timetable};
use crate::value::Values;
use crate::wire::{Connect, Topology};
use crate::worker::{Clock, Outcome, Phase, Worker};
use crate::zipf::Scramble;

/// Requests in flight per client while loading, if the pipeline is not deeper.
const LOAD_PIPELINE_MIN: usize = 64;
/// Between the decision to begin and the beginning, for the threads to start in.
const LEAD: u64 = 10_000_000;
/// A run without an end by the clock; far enough, and sums with it do not overflow.
const NEVER: u64 = i64::MAX as u64;

/// Runs the plan over connections that speak `W`.
pub fn run<W: Connect>(plan: &Plan, stop: &Arc<AtomicBool>) -> Result<Report> {
    let args = &plan.args;
    let topology = W::topology(args.target.address)?;
    let loads = args.preload || args.preload_only;
    let workload = Arc::new(Workload {
        mix: plan.mix.clone(),
        population: Population::new(args.keys),
        space: plan.space.clone(),
        values: Values::new(args.compression_ratio),
        value_size: plan.value_size,
        mget_keys: args.mget_keys,
        scan_limits: plan.scan_limits.clone(),
        verify: args.verify,
        read_family: if args.absent { Family::Absent } else { Family::Values },
        all_present: loads && !args.absent && !plan.mix.has(OpKind::Del),
    });
    let clock = Clock::start();
    if let Some(pid) = args.server_pid {
        cpu::of_process(pid)?;
    }
    let mut workers = connect::<W>(plan, &topology, &workload, clock)?;
    let mut report = Report::new(plan, &topology);
    if loads {
        report.load = Some(load(plan, &mut workers, clock, stop)?);
    }
    if !args.preload_only && !stop.load(Ordering::Relaxed) {
        measure(plan, &mut workers, clock, stop, &mut report)?;
    }
    Ok(report)
}

fn connect<W: Connect>(
    plan: &Plan,
    topology: &Topology,
    workload: &Arc<Workload>,
    clock: Clock,
) -> Result<Vec<Worker<W>>> {
    let args = &plan.args;
    let owners = topology.owners.clone().filter(|_| args.shard_aware == Switch::On);
    let lanes_each = if owners.is_some() { topology.shards } else { 1 };
    let mut workers: Vec<Worker<W>> = (0..args.threads)
        .map(|_| Worker::new(Arc::clone(workload), clock, lanes_each, args.spin, args.tick))
        .collect::<Result<_>>()?;
    for number in 0..args.clients {
        let (mut lanes, mut streams): (Vec<Lane<W>>, Vec<TcpStream>) = (Vec::new(), Vec::new());
        for shard in 0..lanes_each {
            let wanted = owners.as_ref().and_then(|_| u16::try_from(shard).ok());
            let (stream, wire) = W::open(args.target.address, wanted).with_context(|| {
                format!("connection {} of {}", number * lanes_each + shard + 1, args.clients * lanes_each)
            })?;
            lanes.push(Lane::new(wire, W::IN_ORDER, args.mget_keys));
            streams.push(stream);
        }
        let route = owners.clone().map_or(Route::Any, Route::BySlot);
        let client = Client::new(number as u64, lanes, route, plan.picker, args.seed);
        workers[number % args.threads].add(client, streams)?;
    }
    Ok(workers)
}

/// What loading the keys took.
pub struct Load {
    pub keys: u64,
    pub seconds: f64,
    pub record: OpRecord,
    pub server_cpu: Option<ServerCpu>,
    pub timeline: Vec<Point>,
}

fn load<W: Connect>(
    plan: &Plan,
    workers: &mut [Worker<W>],
    clock: Clock,
    stop: &Arc<AtomicBool>,
) -> Result<Load> {
    let args = &plan.args;
    let scramble = (args.preload_order == Order::Scattered).then(|| Scramble::new(args.keys));
    for (number, client) in workers.iter_mut().flat_map(|worker| &mut worker.clients).enumerate() {
        let pacing =
            Pacing::Load { next: number as u64, step: args.clients as u64, end: args.keys, scramble };
        client.pace(pacing, plan.pipeline.max(LOAD_PIPELINE_MIN));
    }
    let server_time = || args.server_pid.map(cpu::of_process).transpose();
    let before = server_time()?;
    let begin = clock.now();
    let phase = Phase { begin, from: begin, until: NEVER, quota: u64::MAX, open_loop: false };
    let mut progress = Progress::new("load", args.quiet, args.threads);
    let outcomes = run_phase(workers, phase, stop, |seconds| {
        while let Ok(second) = seconds.recv() {
            progress.add(second);
        }
        Ok(())
    })?;
    let after = server_time()?;
    let timeline = progress.finish();
    let (mut keys, mut seconds, mut unanswered) = (0, 0f64, 0);
    let mut totals = Totals { ops: [const { None }; OpKind::COUNT] };
    for mut outcome in outcomes {
        if let Some(error) = outcome.error.take() {
            return Err(error.context("while loading the keys"));
        }
        let sum = outcome.totals.sum().ok_or_else(|| anyhow!("no key was loaded"))?;
        if let Some(reason) = outcome.recorder.refusals.samples.first() {
            bail!("{} of the keys could not be loaded; the server says: {reason}", sum.errors);
        }
        if let Some(fault) = outcome.recorder.mismatches.samples.first() {
            bail!("loading the keys failed: {fault}");
        }
        unanswered += outcome.recorder.unanswered;
        keys += sum.ops + sum.drained;
        seconds = seconds.max((outcome.recorder.last_reply.saturating_sub(begin)) as f64 / 1e9);
        totals.add(&outcome.totals);
    }
    if unanswered > 0 {
        bail!("loading was stopped, and {unanswered} requests were not answered within 10 s after that");
    }
    let record = totals.sum().context("no key was loaded")?;
    let rate = keys as f64 / seconds.max(1e-9);
    let server_cpu = before.zip(after).and_then(|(before, after)| ServerCpu::between(&before, &after, rate));
    Ok(Load { keys, seconds, record, server_cpu, timeline })
}

fn measure<W: Connect>(
    plan: &Plan,
    workers: &mut [Worker<W>],
    clock: Clock,
    stop: &Arc<AtomicBool>,
    report: &mut Report,
) -> Result<()> {
    let args = &plan.args;
    let begin = clock.now() + LEAD;
    let from = begin + args.warmup.as_nanos() as u64;
    let until = plan.duration.map_or(NEVER, |duration| from + duration.as_nanos() as u64);
    for (number, client) in workers.iter_mut().flat_map(|worker| &mut worker.clients).enumerate() {
        client.pace(pacing(plan, begin, number), plan.pipeline);
    }
    let mut progress = Progress::new("run", args.quiet, args.threads);
    let mut samples: Vec<ProcessTime> = Vec::new();
    let open_loop = args.rate.is_some();
    let phase = Phase { begin, from, until, quota: u64::MAX, open_loop };
    let outcomes = run_phase_with_quota(workers, phase, args.requests, stop, |seconds| {
        let mut marks = [from, until].into_iter().peekable();
        loop {
            let now = clock.now();
            if marks.next_if(|&mark| mark <= now).is_some() {
                samples.extend(args.server_pid.map(cpu::of_process).transpose()?);
                continue;
            }
            let wait = marks.peek().map_or(u64::MAX, |mark| mark - now);
            match seconds.recv_timeout(Duration::from_nanos(wait.min(100_000_000))) {
                Ok(second) => progress.add(second),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if samples.len() == 1 {
            // Ended before its time; and a server that is gone has no figures.
            samples.extend(args.server_pid.and_then(|pid| cpu::of_process(pid).ok()));
        }
        Ok(())
    })?;
    report.timeline = progress.finish();
    sum_up(outcomes, from, report);
    if let [before, after] = samples[..] {
        report.server_cpu = ServerCpu::between(&before, &after, report.ops_per_second());
    }
    report.interrupted = stop.load(Ordering::Relaxed);
    Ok(())
}

fn pacing(plan: &Plan, begin: u64, number: usize) -> Pacing {
    let Some(rate) = plan.args.rate else { return Pacing::Closed };
    let clients = plan.args.clients as f64;
    let arrivals = if plan.args.poisson { Arrivals::Poisson } else { Arrivals::Fixed };
    let seed = plan.args.seed.wrapping_mul(0xD6E8_FEB8_6659_FD93) ^ number as u64;
    Pacing::Open(Timetable::new(arrivals, begin, rate as f64 / clients, number as f64 / clients, seed))
}

fn run_phase<W: Connect>(
    workers: &mut [Worker<W>],
    phase: Phase,
    stop: &Arc<AtomicBool>,
    watch: impl FnOnce(&Receiver<Second>) -> Result<()>,
) -> Result<Vec<Outcome>> {
    run_phase_with_quota(workers, phase, None, stop, watch)
}

/// Runs all workers through a phase, `requests` divided among them, while `watch` receives their seconds
/// until the last of them is done.
fn run_phase_with_quota<W: Connect>(
    workers: &mut [Worker<W>],
    phase: Phase,
    requests: Option<u64>,
    stop: &Arc<AtomicBool>,
    watch: impl FnOnce(&Receiver<Second>) -> Result<()>,
) -> Result<Vec<Outcome>> {
    let (sender, receiver) = channel();
    let count = workers.len() as u64;
    // A worker that fails ends the others too; the user's own stop is told apart by this.
    let halt = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (number, worker) in workers.iter_mut().enumerate() {
            let number = number as u64;
            let quota = requests.map_or(u64::MAX, |n| n / count + u64::from(number < n % count));
            let (sender, halt) = (sender.clone(), &halt);
            threads.push(scope.spawn(move || {
                let outcome = worker.run(Phase { quota, ..phase }, &[stop, halt], &sender);
                if outcome.error.is_some() {
                    halt.store(true, Ordering::Relaxed);
                }
                outcome
            }));
        }
        drop(sender);
        let watched = watch(&receiver);
        if watched.is_err() {
            halt.store(true, Ordering::Relaxed);
        }
        let mut outcomes = Vec::new();
        for thread in threads {
            outcomes.push(thread.join().map_err(|_| anyhow!("a thread of the generator panicked"))?);
        }
        watched.map(|()| outcomes)
    })
}

fn sum_up(outcomes: Vec<Outcome>, from: u64, report: &mut Report) {
    let mut totals = Totals { ops: [const { None }; OpKind::COUNT] };
    let mut mismatches = Faults::default();
    let mut refusals = Faults::default();
    for outcome in outcomes {
        totals.add(&outcome.totals);
        report.seconds = report.seconds.max((outcome.end - from) as f64 / 1e9);
        report.scheduled += outcome.recorder.scheduled + outcome.unsent;
        report.late += outcome.recorder.late;
        report.unsent += outcome.unsent;
        report.unanswered += outcome.recorder.unanswered;
        mismatches.add(outcome.recorder.mismatches);
        refusals.add(outcome.recorder.refusals);
        report.generators.push(Generator { cpu: outcome.cpu, wall: outcome.wall });
        if let Some(error) = outcome.error {
            report.failure.get_or_insert(error);
        }
    }
    report.totals = totals;
    report.mismatches = mismatches;
    report.refusals = refusals;
}

/// Seconds of several workers, put together as they come.
#[derive(Default)]
pub struct Gather {
    waiting: BTreeMap<i64, (usize, Second)>,
}

impl Gather {
    /// Adds one; returns those that all `workers` have now reported.
    pub fn add(&mut self, second: Second, workers: usize) -> Option<Second> {
        let number = second.number;
        let count = match self.waiting.get_mut(&number) {
            None => {
                self.waiting.insert(number, (1, second));
                1
            }
            Some((count, sum)) => {
                *count += 1;
                sum.ops += second.ops;
                sum.errors += second.errors;
                sum.missing += second.missing;
                merge(&mut sum.response, &second.response);
                *count
            }
        };
        if count < workers { None } else { self.waiting.remove(&number).map(|(_, second)| second) }
    }

    /// What some have not reported, because they had ended.
    pub fn rest(&mut self) -> Vec<Second> {
        std::mem::take(&mut self.waiting).into_values().map(|(_, second)| second).collect()
    }
}
