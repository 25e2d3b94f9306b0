//! Many rounds, and a report of the differences that they showed.

use std::collections::BTreeSet;
use std::fmt::Write;

use crate::differential::minimise::minimise;
use crate::differential::play::{Finding, Pair, Tally, play};
use crate::differential::round::Round;
use crate::differential::shape;
use crate::servers::{Redis, Subject};

/// Commands that a pair of servers is sent before it makes room for a new one.
const COMMANDS_OF_PAIR: u64 = 250_000;

/// Commands that are shown from before a difference.
const SHOWN: usize = 20;

/// The commands that are compared; a campaign must have seen each of them succeed. WATCH is compared in
/// streams: see `differences`.
const COMMANDS: &str = "get set setnx setex psetex getset getdel getex mget mset msetnx append strlen getrange setrange \
    substr incr decr incrby decrby incrbyfloat lcs del unlink exists touch type rename renamenx copy \
    keys scan randomkey dbsize flushdb flushall expire pexpire expireat pexpireat ttl pttl \
    expiretime pexpiretime persist multi exec discard unwatch setbit getbit bitcount bitpos \
    ping echo hello auth select reset client command info config object memory slowlog latency time \
    lastsave wait";

/// How much is played, and where it begins.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    pub seed: u64,
    /// Commands that are compared, at least.
    pub commands: u64,
    /// The only round, if only one is to be played.
    pub round: Option<u64>,
    /// Different differences after which it is enough.
    pub findings: usize,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Outcome {
    pub tally: Tally,
    /// One text for each difference.
    pub reports: Vec<String>,
}

/// Plays rounds to pairs of servers: one after the other, since every other one acknowledges writes before
/// they are on disk, and every other one after.
pub fn run(extent: Extent) -> Outcome {
    let mut outcome = Outcome::default();
    let mut seen = BTreeSet::new();
    let mut number = extent.round.unwrap_or(0);
    let of_pair = COMMANDS_OF_PAIR.min(extent.commands.div_ceil(2));
    let mut goal = 0;
    while outcome.tally.commands() < extent.commands && outcome.reports.len() < extent.findings {
        goal += of_pair;
        // By the round, so that one that is repeated finds the mode that it had.
        let sync = if number.is_multiple_of(2) { "none" } else { "always" };
        let (redis, subject) = (Redis::start(&[]), Subject::start(sync));
        let pair = Pair { redis: redis.address, subject: subject.address(), is_atlas: subject.is_atlas() };
        loop {
            let round = Round::draw(extent.seed, number);
            let played = play(pair, &round, &mut outcome.tally);
            if let Err(finding) = played {
                report(extent, pair, &subject, (number, &round), &finding, &mut seen, &mut outcome);
            }
            number += 1;
            let enough = outcome.tally.commands() >= goal || outcome.reports.len() >= extent.findings;
            if enough || extent.round.is_some() || is_gone(pair) {
                break;
            }
        }
        if extent.round.is_some() {
            break;
        }
        // The next pair's first round is of the other mode.
        let same = number.is_multiple_of(2) == (sync == "none");
        number += u64::from(same);
    }
    outcome
}

/// Whether the subject serves no more; a new one takes its place.
fn is_gone(pair: Pair) -> bool {
    crate::wire::Wire::connect(pair.subject).is_err()
}

/// Adds a report of a finding, unless there is one like it.
fn report(
    extent: Extent,
    pair: Pair,
    subject: &Subject,
    (number, round): (u64, &Round),
    finding: &Finding,
    seen: &mut BTreeSet<String>,
    outcome: &mut Outcome,
) {
    if !seen.insert(finding.signature()) {
        return;
    }
    let mut text = String::new();
    let out = &mut text;
    told(out, format_args!("seed {}, round {number}, step {}: {}", extent.seed, finding.at, finding.command));
    told(out, format_args!("  redis:   {}\n  subject: {}", finding.redis, finding.subject));
    told(out, format_args!("  protocols {:?}, {:?}", round.protocols, round.mood));
    if is_gone(pair) {
        told(out, format_args!("the subject serves no more; it logged:\n{}", subject.log()));
        before(out, round, finding);
    } else {
        let (short, at_last) = minimise(pair, round, finding, seen);
        seen.insert(at_last.signature());
        if short.steps.len() >= round.steps.len() {
            told(out, format_args!("it did not come again; before it, on the same keys or connection:"));
            before(out, round, finding);
        } else {
            told(out, format_args!("the least that shows it (connection.batch):"));
            for step in &short.steps {
                told(out, format_args!("  {}.{} {}", step.connection, step.batch, step.command));
            }
            let (redis, subject) = (&at_last.redis, &at_last.subject);
            told(out, format_args!("then {}\n  redis:   {redis}\n  subject: {subject}", at_last.command));
        }
    }
    let seed = extent.seed;
    told(
        out,
        format_args!(
            "to repeat: ATLASKV_REDIS_SEED={seed} ATLASKV_REDIS_ROUND={number} cargo test --test redis \
             random_commands -- --nocapture"
        ),
    );
    println!("{text}");
    outcome.reports.push(text);
}

/// The commands before a finding that had to do with its keys, or its connection.
fn before(out: &mut String, round: &Round, finding: &Finding) {
    let keys = shape::keys(&finding.command);
    let connection = round.steps.get(finding.at).map(|step| step.connection);
    let concerns = |step: &crate::differential::round::Step| {
        let shares = shape::keys(&step.command).iter().any(|key| keys.contains(key));
        shares || (keys.is_empty() && Some(step.connection) == connection)
    };
    let steps: Vec<_> = round.steps.iter().take(finding.at + 1).filter(|step| concerns(step)).collect();
    for step in &steps[steps.len().saturating_sub(SHOWN)..] {
        told(out, format_args!("  {}.{} {}", step.connection, step.batch, step.command));
    }
}

fn told(out: &mut String, what: std::fmt::Arguments<'_>) {
    writeln!(out, "{what}").expect("a string takes all");
}

impl Outcome {
    /// Panics with all differences, if there are any; and if a command was never seen to succeed.
    pub fn judge(&self, extent: Extent) {
        let tally = &self.tally;
        let errors: u64 = tally.compared.values().map(|[_, errors]| errors).sum();
        println!(
            "{} commands compared, of which {errors} were errors; {} of a known difference, {} not sent",
            tally.commands(),
            tally.known,
            tally.skipped
        );
        let count = self.reports.len();
        assert!(self.reports.is_empty(), "{count} differences:\n\n{}", self.reports.join("\n"));
        if extent.round.is_none() && tally.commands() >= 20_000 {
            let succeeded = |name: &str| tally.compared.get(name).is_some_and(|[fine, _]| *fine > 0);
            let dull: Vec<_> = COMMANDS.split_whitespace().filter(|name| !succeeded(name)).collect();
            assert!(dull.is_empty(), "never seen to succeed, so not compared: {dull:?}");
        }
    }
}
