//! What a run tells: a line a second, a table at the end, a JSON file.

use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::args::{Args, Distribution, Plan};
use crate::cpu::ProcessTime;
use crate::mix::{Mix, OpKind};
use crate::record::{Faults, OpRecord, Second, Totals};
use crate::run::{Gather, Load};
use crate::wire::Topology;

/// Share of a processor beyond which the generator rather than the server may set the figures.
const BUSY_MAX: f64 = 0.80;
/// Difference between offered and achieved rate beyond which an open-loop point says little.
const RATE_TOLERANCE: f64 = 0.01;

/// One second of the time line.
pub struct Point {
    pub second: i64,
    pub ops: u64,
    pub errors: u64,
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

/// Gathers the workers' seconds, prints each, keeps the measured ones.
pub struct Progress {
    label: &'static str,
    quiet: bool,
    workers: usize,
    gather: Gather,
    points: Vec<Point>,
}

impl Progress {
    pub fn new(label: &'static str, quiet: bool, workers: usize) -> Progress {
        Progress { label, quiet, workers, gather: Gather::default(), points: Vec::new() }
    }

    pub fn add(&mut self, second: Second) {
        if let Some(second) = self.gather.add(second, self.workers) {
            self.point(&second);
        }
    }

    /// The time line, after those seconds that not all workers lived to see the end of.
    pub fn finish(mut self) -> Vec<Point> {
        for second in self.gather.rest() {
            self.point(&second);
        }
        self.points
    }

    fn point(&mut self, second: &Second) {
        let (p50, p99) = (second.response.value_at_quantile(0.5), second.response.value_at_quantile(0.99));
        if !self.quiet {
            let label = if second.number < 0 { "warm-up" } else { self.label };
            eprintln!(
                "{label} {:>4} s  {:>11} ops/s  p50 {:>9} us  p99 {:>9} us  max {:>9} us  errors {}",
                second.number + 1,
                grouped(second.ops),
                micros(p50),
                micros(p99),
                micros(second.response.max()),
                second.errors,
            );
        }
        if second.number >= 0 {
            self.points.push(Point {
                second: second.number,
                ops: second.ops,
                errors: second.errors,
                p50,
                p99,
                max: second.response.max(),
            });
        }
    }
}

/// How busy one of the generator's threads was.
pub struct Generator {
    pub cpu: Duration,
    pub wall: Duration,
}

/// What the server used in the measured window.
pub struct ServerCpu {
    pub user_cores: f64,
    pub system_cores: f64,
    pub micros_per_op: f64,
}

impl ServerCpu {
    /// From two readings and the rate of operations between them. By rates and not by sums, so that it does
    /// not matter if the readings were taken a little beside the window's ends.
    pub fn between(before: &ProcessTime, after: &ProcessTime, ops_per_second: f64) -> Option<ServerCpu> {
        let wall = after.at.duration_since(before.at).as_secs_f64();
        if wall <= 0.0 || ops_per_second <= 0.0 {
            return None;
        }
        let user_cores = after.user.saturating_sub(before.user).as_secs_f64() / wall;
        let system_cores = after.system.saturating_sub(before.system).as_secs_f64() / wall;
        let micros_per_op = (user_cores + system_cores) * 1e6 / ops_per_second;
        Some(ServerCpu { user_cores, system_cores, micros_per_op })
    }

    fn json(&self) -> Value {
        json!({
            "micros_per_op": self.micros_per_op,
            "user_cores": self.user_cores,
            "system_cores": self.system_cores,
        })
    }
}

pub struct Report {
    args: Args,
    mix: Mix,
    value_size: usize,
    distribution: Distribution,
    pipeline: usize,
    duration: Option<Duration>,
    server: String,
    shards: usize,
    lanes_each: usize,
    pub load: Option<Load>,
    pub totals: Totals,
    pub seconds: f64,
    pub scheduled: u64,
    pub late: u64,
    pub unsent: u64,
    pub unanswered: u64,
    pub refusals: Faults,
    pub mismatches: Faults,
    pub generators: Vec<Generator>,
    pub server_cpu: Option<ServerCpu>,
    pub timeline: Vec<Point>,
    pub interrupted: bool,
    pub failure: Option<anyhow::Error>,
}

impl Report {
    pub fn new(plan: &Plan, topology: &Topology) -> Report {
        let aware = topology.owners.is_some() && plan.args.shard_aware == crate::args::Switch::On;
        Report {
            args: plan.args.clone(),
            mix: plan.mix.clone(),
            value_size: plan.value_size,
            distribution: plan.distribution,
            pipeline: plan.pipeline,
            duration: plan.duration,
            server: topology.server.clone(),
            shards: topology.shards,
            lanes_each: if aware { topology.shards } else { 1 },
            load: None,
            totals: Totals { ops: [const { None }; OpKind::COUNT] },
            seconds: 0.0,
            scheduled: 0,
            late: 0,
            unsent: 0,
            unanswered: 0,
            refusals: Faults::default(),
            mismatches: Faults::default(),
            generators: Vec::new(),
            server_cpu: None,
            timeline: Vec::new(),
            interrupted: false,
            failure: None,
        }
    }

    /// Answers in the measured window.
    pub fn ops(&self) -> u64 {
        self.totals.ops.iter().flatten().map(|record| record.ops).sum()
    }

    pub fn ops_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.ops() as f64 / self.seconds } else { 0.0 }
    }

    fn offered(&self) -> f64 {
        if self.seconds > 0.0 { self.scheduled as f64 / self.seconds } else { 0.0 }
    }

    /// Whether an open-loop run achieved what it offered.
    fn rate_is_met(&self) -> bool {
        (self.offered() - self.ops_per_second()).abs() <= RATE_TOLERANCE * self.offered()
    }

    /// Whether the run found the server in order.
    pub fn is_good(&self) -> bool {
        let errors: u64 = self.totals.ops.iter().flatten().map(|record| record.errors).sum();
        let answers: u64 = self.totals.ops.iter().flatten().map(|record| record.ops + record.drained).sum();
        let nothing_succeeded = !self.args.preload_only && !self.interrupted && answers == errors;
        self.failure.is_none() && self.mismatches.count == 0 && self.unanswered == 0 && !nothing_succeeded
    }

    /// The highest share of a processor that one of the threads used.
    fn busiest(&self) -> f64 {
        self.generators
            .iter()
            .map(|generator| generator.cpu.as_secs_f64() / generator.wall.as_secs_f64().max(1e-9))
            .fold(0.0, f64::max)
    }

    fn generator_micros_per_op(&self) -> f64 {
        let cpu: f64 = self.generators.iter().map(|generator| generator.cpu.as_secs_f64()).sum();
        let answers: u64 = self.totals.ops.iter().flatten().map(|record| record.ops + record.drained).sum();
        cpu * 1e6 / answers.max(1) as f64
    }

    /// What makes the figures doubtful, a sentence each.
    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(error) = &self.failure {
            warnings.push(format!("the run ended early: {error:#}"));
        }
        if self.mismatches.count > 0 {
            warnings.push(format!("{} answers were WRONG, for example:", self.mismatches.count));
            warnings.extend(self.mismatches.samples.iter().map(|sample| format!("  {sample}")));
        }
        if self.refusals.count > 0 {
            warnings.push(format!("{} requests were refused, for example:", self.refusals.count));
            warnings.extend(self.refusals.samples.iter().map(|sample| format!("  {sample}")));
        }
        if self.unanswered > 0 {
            warnings.push(format!("{} requests were not answered; they count as that slow", self.unanswered));
        }
        if self.generators.is_empty() {
            return warnings;
        }
        if self.args.rate.is_some() && !self.rate_is_met() {
            warnings.push(format!(
                "offered and achieved rate differ by more than 1 %: this point is not valid ({:.0} and {:.0})",
                self.offered(),
                self.ops_per_second()
            ));
        }
        if self.busiest() > BUSY_MAX && !self.args.spin {
            warnings.push(format!(
                "a thread of the generator used {:.0} % of a processor: the generator may be what limits; \
                 give it more --threads or a deeper --pipeline",
                self.busiest() * 100.0
            ));
        }
        warnings
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write_table(&mut out);
        out
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        let args = &self.args;
        writeln!(
            out,
            "{} ({}, {} shard{}): {} clients of {} connection{}, pipeline {}, {} thread{}",
            args.target.text,
            self.server,
            self.shards,
            plural(self.shards),
            args.clients,
            self.lanes_each,
            plural(self.lanes_each),
            self.pipeline,
            args.threads,
            plural(args.threads),
        )?;
        if let Some(load) = &self.load {
            let rate = load.keys as f64 / load.seconds.max(1e-9);
            writeln!(
                out,
                "loaded {} keys of {} bytes with {}-byte values in {:.2} s, {} a second",
                grouped(load.keys),
                args.key_size,
                self.value_size,
                load.seconds,
                grouped(rate as u64)
            )?;
        }
        if let Some(sum) = self.totals.sum() {
            self.write_ops(out, &sum)?;
        }
        for warning in self.warnings() {
            writeln!(out, "WARNING: {warning}")?;
        }
        Ok(())
    }

    fn write_ops(&self, out: &mut String, sum: &OpRecord) -> std::fmt::Result {
        let args = &self.args;
        let skew = match self.distribution {
            Distribution::Uniform => "uniform".to_string(),
            skewed => format!("{} {}", skewed.name(), args.theta),
        };
        writeln!(
            out,
            "{}{} of {} keys, {skew}, {}-byte values; measured {:.2} s{}",
            args.workload.map_or(String::new(), |core| format!("YCSB {core}: ")),
            self.mix,
            grouped(args.keys),
            self.value_size,
            self.seconds,
            if self.interrupted { " (interrupted)" } else { "" },
        )?;
        let heads =
            ["ops", "ops/s", "errors", "missing", "mean us", "p50", "p90", "p99", "p99.9", "p99.99", "max"];
        write!(out, "\n{:<8}", "")?;
        for (head, width) in heads.iter().zip(WIDTHS) {
            write!(out, " {head:>width$}")?;
        }
        writeln!(out)?;
        for kind in OpKind::ALL {
            if let Some(record) = &self.totals.ops[kind as usize] {
                self.write_row(out, kind.name(), record, &record.response)?;
            }
        }
        self.write_row(out, "total", sum, &sum.response)?;
        if let Some(service) = &sum.service {
            self.write_row(out, "service", sum, service)?;
        }
        writeln!(out)?;
        for (kind, what) in [(OpKind::MGet, "keys"), (OpKind::Scan, "entries")] {
            if let Some(record) = &self.totals.ops[kind as usize] {
                let a_second = (record.keys as f64 / self.seconds.max(1e-9)) as u64;
                writeln!(out, "{}: {} {what} a second", kind.name(), grouped(a_second))?;
            }
        }
        if let Some(rate) = args.rate {
            writeln!(
                out,
                "open loop: asked for {} a second, offered {:.0}, achieved {:.0}; {} sent over 1 ms late, {} never",
                grouped(rate),
                self.offered(),
                self.ops_per_second(),
                grouped(self.late),
                grouped(self.unsent),
            )?;
        }
        if let Some(server) = &self.server_cpu {
            writeln!(
                out,
                "server: {:.3} CPU-us per operation; {:.2} processors, {:.2} user and {:.2} system",
                server.micros_per_op,
                server.user_cores + server.system_cores,
                server.user_cores,
                server.system_cores,
            )?;
        }
        writeln!(
            out,
            "generator: {:.3} CPU-us per operation; its busiest thread used {:.0} % of a processor",
            self.generator_micros_per_op(),
            self.busiest() * 100.0
        )?;
        if args.verify && self.mismatches.count == 0 {
            writeln!(out, "verified: every value read was one written to its key")?;
        }
        Ok(())
    }

    fn write_row(
        &self,
        out: &mut String,
        name: &str,
        record: &OpRecord,
        latency: &Histogram<u64>,
    ) -> std::fmt::Result {
        let mut cells = vec![
            grouped(record.ops),
            grouped((record.ops as f64 / self.seconds.max(1e-9)) as u64),
            grouped(record.errors),
            grouped(record.missing),
            format!("{:.1}", latency.mean() / 1e3),
        ];
        cells.extend(QUANTILES.iter().map(|(_, quantile)| micros(latency.value_at_quantile(*quantile))));
        cells.push(micros(latency.max()));
        write!(out, "{name:<8}")?;
        for (cell, width) in cells.iter().zip(WIDTHS) {
            write!(out, " {cell:>width$}")?;
        }
        writeln!(out)
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let args = &self.args;
        let sum = self.totals.sum();
        let per_op: serde_json::Map<String, Value> = OpKind::ALL
            .into_iter()
            .filter_map(|kind| {
                let record = self.totals.ops[kind as usize].as_ref()?;
                Some((kind.name().into(), self.record_json(record)))
            })
            .collect();
        let cpu: Vec<Value> = self
            .generators
            .iter()
            .map(|g| json!({ "cpu_seconds": g.cpu.as_secs_f64(), "wall_seconds": g.wall.as_secs_f64() }))
            .collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "parameters": self.parameters(),
            "server": { "name": self.server, "shards": self.shards, "connections": args.clients * self.lanes_each },
            "load": self.load.as_ref().map(|load| json!({
                "keys": load.keys,
                "seconds": load.seconds,
                "keys_per_second": load.keys as f64 / load.seconds.max(1e-9),
                "response_us": latency_json(&load.record.response),
                "server_cpu": load.server_cpu.as_ref().map(ServerCpu::json),
                "timeline": timeline_json(&load.timeline),
            })),
            "seconds": self.seconds,
            "total": sum.as_ref().map(|sum| self.record_json(sum)),
            "per_op": per_op,
            "open_loop": args.rate.map(|rate| json!({
                "rate_asked": rate,
                "rate_offered": self.offered(),
                "rate_achieved": self.ops_per_second(),
                "valid": self.rate_is_met(),
                "late": self.late,
                "unsent": self.unsent,
            })),
            "unanswered": self.unanswered,
            "refusals": { "count": self.refusals.count, "samples": self.refusals.samples },
            "mismatches": { "count": self.mismatches.count, "samples": self.mismatches.samples },
            "server_cpu": self.server_cpu.as_ref().map(ServerCpu::json),
            "generator_cpu": {
                "micros_per_op": self.generator_micros_per_op(),
                "busiest_share": self.busiest(),
                "threads": cpu,
            },
            "timeline": timeline_json(&self.timeline),
            "warnings": self.warnings(),
            "interrupted": self.interrupted,
            "good": self.is_good(),
        })
    }

    fn parameters(&self) -> Value {
        let args = &self.args;
        json!({
            "target": args.target.text,
            "clients": args.clients,
            "pipeline": self.pipeline,
            "threads": args.threads,
            "keys": args.keys,
            "key_size": args.key_size,
            "key_prefix": args.key_prefix,
            "tag_keys": args.tag_keys,
            "value_size": self.value_size,
            "compression_ratio": args.compression_ratio,
            "duration_seconds": self.duration.map(|duration| duration.as_secs_f64()),
            "requests": args.requests,
            "warmup_seconds": args.warmup.as_secs_f64(),
            "workload": args.workload.map(|core| core.to_string()),
            "mix": self.mix.to_string(),
            "mget_keys": args.mget_keys,
            "distribution": self.distribution.name(),
            "theta": args.theta,
            "rate": args.rate,
            "poisson": args.poisson,
            "spin": args.spin,
            "tick_seconds": args.tick.map(|tick| tick.as_secs_f64()),
            "preload": args.preload || args.preload_only,
            "preload_order": match args.preload_order {
                crate::args::Order::Sequential => "sequential",
                crate::args::Order::Scattered => "scattered",
            },
            "absent": args.absent,
            "verify": args.verify,
            "seed": args.seed,
            "shard_aware": args.shard_aware == crate::args::Switch::On,
            "server_pid": args.server_pid,
        })
    }

    fn record_json(&self, record: &OpRecord) -> Value {
        json!({
            "ops": record.ops,
            "ops_per_second": record.ops as f64 / self.seconds.max(1e-9),
            "drained": record.drained,
            "errors": record.errors,
            "missing": record.missing,
            "keys": record.keys,
            "response_us": latency_json(&record.response),
            "service_us": record.service.as_ref().map(latency_json),
        })
    }
}

const QUANTILES: [(&str, f64); 5] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999)];
const WIDTHS: [usize; 11] = [12, 11, 7, 9, 9, 9, 9, 9, 9, 9, 9];

fn latency_json(latency: &Histogram<u64>) -> Value {
    let mut figures = serde_json::Map::new();
    figures.insert("samples".into(), json!(latency.len()));
    figures.insert("min".into(), json!(us(latency.min())));
    figures.insert("mean".into(), json!(latency.mean() / 1e3));
    for (name, quantile) in QUANTILES {
        figures.insert(name.into(), json!(us(latency.value_at_quantile(quantile))));
    }
    figures.insert("max".into(), json!(us(latency.max())));
    Value::Object(figures)
}

fn timeline_json(points: &[Point]) -> Vec<Value> {
    let point = |point: &Point| {
        json!({
            "second": point.second,
            "ops": point.ops,
            "errors": point.errors,
            "p50_us": us(point.p50),
            "p99_us": us(point.p99),
            "max_us": us(point.max),
        })
    };
    points.iter().map(point).collect()
}

fn us(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

fn micros(nanos: u64) -> String {
    format!("{:.1}", us(nanos))
}

fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// With a comma at every thousand.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }
}
