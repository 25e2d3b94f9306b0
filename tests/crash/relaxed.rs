//! Kills the server under `--sync interval` and `--sync none`. An answer then does not promise that a write
//! is on disk, but a kill takes back only the end of what a shard was given:
//!
//! - What is there of one client's writes to a shard is what the first so many of them made, in the order
//!   sent: nothing from before that was lost, nothing from after it is there, no batch in part, nothing that
//!   was deleted and nothing that an earlier kill took back.
//! - A write that asked for `always` and was answered is there, and so is all that its shard had answered,
//!   to anyone, before it was sent.
//! - The same holds of any write that is there: all that its shard had answered before it was sent is too.
//!
//! The order is that of the log, so it is a shard's. Requests on their way together keep it as long as none
//! of them has to look its key up, which may mean a read from disk: those here are unconditional puts and
//! batches; what looks up goes alone.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use atlaskv::client::{
    Batch, Client, Condition, Config, Durability, Error, Options, Outcome, Response, Versioned,
};
use atlaskv::slot::Slot;

use crate::harness::{Server, disk_dir};
use crate::model::show;
use crate::{CLIENTS, MEMORY, Met, from_env, kill_amid, rounds};

/// Groups of keys with one tag; a batch is of one group.
const GROUPS: usize = 150;
const GROUP_KEYS: usize = 4;
const PIPELINE_MAX: usize = 32;
const CHECK_AT_ONCE: usize = 200;
const VALUE_BYTES_MAX: usize = 64 << 10;

/// A write that was sent.
struct Write {
    /// The key, and its new value by number; `None` deletes. More than one are a batch.
    changes: Vec<(usize, Option<u64>)>,
    is_always: bool,
    /// On the clock that all clients share: not after it was sent.
    sent: u64,
    /// Not before it was answered.
    answered: Option<u64>,
}

/// One client's keys.
struct Writer {
    name: usize,
    rng: fastrand::Rng,
    keys: Vec<Vec<u8>>,
    /// Values by number, as the last start found them.
    base: Vec<Option<u64>>,
    /// As all that was sent since leaves them.
    state: Vec<Option<u64>>,
    /// Sent since then, by shard and in order.
    sent: Vec<Vec<Write>>,
    values: u64,
}

/// How far a client's writes to a shard have survived, as a number of them. What changes nothing makes
/// several numbers possible.
struct Survived {
    least: usize,
    most: usize,
}

impl Writer {
    fn new(name: usize, seed: u64) -> Writer {
        let key = |group, part| format!("{part}{{{name}:{group}}}").into_bytes();
        let keys: Vec<_> = (0..GROUPS).flat_map(|g| (0..GROUP_KEYS).map(move |part| key(g, part))).collect();
        let none = vec![None; keys.len()];
        let rng = fastrand::Rng::with_seed(seed ^ (name as u64 + 1) << 40);
        Writer { name, rng, keys, base: none.clone(), state: none, sent: Vec::new(), values: 0 }
    }

    /// A value by its number: follows from it, and is like no other.
    fn value(&self, number: u64) -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(number);
        let len = match rng.u8(..40) {
            0..28 => rng.usize(..200),
            28..39 => rng.usize(200..8_000),
            _ => rng.usize(8_000..VALUE_BYTES_MAX - 40),
        };
        let mut value = format!("{}:{number}:", self.name).into_bytes();
        value.resize(value.len() + len, b'a' + (number % 26) as u8);
        value
    }

    fn new_value(&mut self) -> u64 {
        self.values += 1;
        self.values
    }

    /// Writes until the server is gone. `Err` is an answer that was wrong.
    fn run(&mut self, address: SocketAddr, clock: &AtomicU64, ready: Sender<()>) -> Result<(), String> {
        // One of them lets the server find the owners.
        let is_shard_aware = self.name > 0;
        let config = Config { retries: 0, is_shard_aware, ..Config::new(&address.to_string()) };
        let mut client = Client::connect(config).map_err(|error| error.to_string())?;
        self.sent.clear();
        self.sent.resize_with(usize::from(client.topology().shard_count), Vec::new);
        drop(ready);
        let mut is_up = true;
        while is_up {
            is_up = match self.rng.u8(..10) {
                0..7 => self.run_pipeline(&mut client, clock)?,
                7 => self.run_lookup(&mut client, clock)?,
                _ => self.run_reads(&mut client)?,
            };
        }
        Ok(())
    }

    /// Puts and batches that are on their way together.
    fn run_pipeline(&mut self, client: &mut Client, clock: &AtomicU64) -> Result<bool, String> {
        let sent = clock.fetch_add(1, Ordering::SeqCst);
        let mut writes = Vec::new();
        for _ in 0..self.rng.usize(1..=PIPELINE_MAX) {
            let first = self.rng.usize(..GROUPS) * GROUP_KEYS;
            let count = if self.rng.bool() { 1 } else { self.rng.usize(2..=GROUP_KEYS + 1) };
            let mut changes = Vec::new();
            for _ in 0..count {
                let is_put = count == 1 || self.rng.u8(..4) > 0;
                let value = is_put.then(|| self.new_value());
                changes.push((first + self.rng.usize(..GROUP_KEYS), value));
            }
            writes.push(Write { changes, is_always: self.rng.u8(..200) == 0, sent, answered: None });
        }
        let mut pipeline = client.pipeline();
        for write in &writes {
            let durability = if write.is_always { Durability::Always } else { Durability::Default };
            match write.changes[..] {
                [(key, Some(value))] => {
                    let options = Options { durability, ..Options::default() };
                    pipeline.set_with(&self.keys[key], &self.value(value), options)
                }
                _ => {
                    let mut batch = Batch::new();
                    for (key, value) in &write.changes {
                        let key = &self.keys[*key];
                        let added = match value {
                            Some(value) => batch.put(key, &self.value(*value)),
                            None => batch.delete(key),
                        };
                        added.expect("keys of one slot");
                    }
                    pipeline.batch(batch.durability(durability))
                }
            };
        }
        let answers = pipeline.run();
        let now = clock.fetch_add(1, Ordering::SeqCst);
        let mut is_up = true;
        for (mut write, answer) in writes.into_iter().zip(answers) {
            match answer {
                Ok(Response::Outcome(Outcome::Written { .. })) => write.answered = Some(now),
                Ok(other) => return Err(format!("a put was answered {other:?}")),
                Err(Error::Refused(refusal)) => return Err(format!("refused: {refusal}")),
                Err(error) if error.may_be_applied() => is_up = false,
                Err(_) => {
                    is_up = false;
                    continue;
                }
            }
            self.take_in(client, write);
        }
        Ok(is_up)
    }

    /// A delete, or a put under a condition.
    fn run_lookup(&mut self, client: &mut Client, clock: &AtomicU64) -> Result<bool, String> {
        let key = self.rng.usize(..self.keys.len());
        let is_always = self.rng.u8(..20) == 0;
        let durability = if is_always { Durability::Always } else { Durability::Default };
        let is_there = self.state[key].is_some();
        let sent = clock.fetch_add(1, Ordering::SeqCst);
        let (value, answer, holds) = if self.rng.bool() {
            let options = Options { durability, ..Options::default() };
            (None, client.delete_with(&self.keys[key], options), is_there)
        } else {
            let is_present = self.rng.bool();
            let condition = if is_present { Condition::IfPresent } else { Condition::IfAbsent };
            let value = self.new_value();
            let answer =
                client.set_with(&self.keys[key], &self.value(value), Options { condition, durability });
            (Some(value), answer, is_there == is_present)
        };
        let now = clock.fetch_add(1, Ordering::SeqCst);
        let mut write = Write { changes: vec![(key, value)], is_always, sent, answered: None };
        let is_up = match answer {
            Ok(Outcome::Written { .. }) if holds => {
                write.answered = Some(now);
                true
            }
            Ok(Outcome::Absent | Outcome::ConditionFailed { .. }) if !holds => return Ok(true),
            Ok(other) => return Err(format!("key {key}, there: {is_there}: answered {other:?}")),
            Err(Error::Refused(refusal)) => return Err(format!("refused: {refusal}")),
            Err(error) if error.may_be_applied() && holds => false,
            Err(_) => return Ok(false),
        };
        self.take_in(client, write);
        Ok(is_up)
    }

    fn run_reads(&mut self, client: &mut Client) -> Result<bool, String> {
        let keys: Vec<_> = (0..8).map(|_| self.rng.usize(..self.keys.len())).collect();
        let mut pipeline = client.pipeline();
        keys.iter().for_each(|key| {
            pipeline.get(&self.keys[*key]);
        });
        for (key, answer) in keys.into_iter().zip(pipeline.run()) {
            match answer {
                Ok(Response::Value(found)) => self.compare(key, self.state[key], found.as_ref())?,
                Ok(other) => return Err(format!("a read was answered {other:?}")),
                Err(Error::Refused(refusal)) => return Err(format!("refused: {refusal}")),
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    fn take_in(&mut self, client: &Client, write: Write) {
        let slot = Slot::of_key(&self.keys[write.changes[0].0]);
        let shard = client.topology().shard_of(slot).expect("every slot has an owner");
        for (key, value) in &write.changes {
            self.state[*key] = *value;
        }
        self.sent[usize::from(shard)].push(write);
    }

    fn compare(&self, key: usize, wanted: Option<u64>, found: Option<&Versioned>) -> Result<(), String> {
        let wanted = wanted.map(|number| self.value(number));
        if wanted.as_ref() == found.map(|found| &found.value) {
            return Ok(());
        }
        let (found, wanted) = (found.map(|found| show(&found.value)), wanted.as_deref().map(show));
        Err(format!("{}: found {found:?}, not {wanted:?}", String::from_utf8_lossy(&self.keys[key])))
    }

    /// What is there, by number. Every value must be whole and one that this client has sent.
    fn read_all(&self, client: &mut Client) -> Result<Vec<Option<u64>>, String> {
        let mut all = Vec::with_capacity(self.keys.len());
        for keys in self.keys.chunks(CHECK_AT_ONCE) {
            for found in client.mget(keys).map_err(|error| error.to_string())? {
                let Some(found) = found else {
                    all.push(None);
                    continue;
                };
                let number = found.value.split(|byte| *byte == b':').nth(1);
                let number = number.and_then(|text| std::str::from_utf8(text).ok()?.parse::<u64>().ok());
                let number = number.ok_or_else(|| format!("not a value: {}", show(&found.value)))?;
                self.compare(all.len(), Some(number), Some(&found))?;
                all.push(Some(number));
            }
        }
        Ok(all)
    }

    /// How far the writes to `shard` go that make what was `found`.
    fn survived(&self, shard: usize, found: &[Option<u64>]) -> Result<Survived, String> {
        let writes = &self.sent[shard];
        let mut state = self.base.clone();
        let is_concerned: Vec<bool> = {
            let mut concerned = vec![false; state.len()];
            writes.iter().flat_map(|write| &write.changes).for_each(|(key, _)| concerned[*key] = true);
            concerned
        };
        let differs = |state: &[Option<u64>], key: usize| is_concerned[key] && state[key] != found[key];
        let mut different = (0..state.len()).filter(|key| differs(&state, *key)).count();
        let (mut survived, mut nearest) = (None::<Survived>, (usize::MAX, 0));
        for count in 0..=writes.len() {
            if different == 0 {
                let least = survived.map_or(count, |survived| survived.least);
                survived = Some(Survived { least, most: count });
            }
            nearest = nearest.min((different, count));
            for (key, value) in writes.get(count).into_iter().flat_map(|write| &write.changes) {
                different -= usize::from(differs(&state, *key));
                state[*key] = *value;
                different += usize::from(differs(&state, *key));
            }
        }
        let promised = writes.iter().rposition(|write| write.is_always && write.answered.is_some());
        let promised = promised.map_or(0, |at| at + 1);
        match survived {
            Some(survived) if survived.most >= promised => {
                Ok(Survived { least: survived.least.max(promised), most: survived.most })
            }
            Some(survived) => Err(format!(
                "client {}, shard {shard}: {} of {} writes are there, but number {promised} was promised",
                self.name,
                survived.most,
                writes.len()
            )),
            None => Err(format!(
                "client {}, shard {shard}: no beginning of its {} writes makes what is there; that of {} \
                 comes nearest and leaves {} keys",
                self.name,
                writes.len(),
                nearest.1,
                nearest.0
            )),
        }
    }
}

/// What the campaign met beside what [`Met`] counts.
#[derive(Default)]
struct Counts {
    answered: usize,
    answered_and_lost: usize,
    promised: usize,
}

/// Compares what a start found with what was sent before it.
fn check(writers: &mut [Writer], client: &mut Client, counts: &mut Counts) -> Result<(), String> {
    let mut found = Vec::new();
    for writer in writers.iter() {
        found.push(writer.read_all(client)?);
    }
    for shard in 0..writers[0].sent.len() {
        let mut all = Vec::new();
        for (writer, found) in writers.iter().zip(&found) {
            all.push(writer.survived(shard, found)?);
        }
        let last_sent = writers.iter().zip(&all).filter_map(|(writer, survived)| {
            let last = survived.least.checked_sub(1)?;
            Some((writer.sent[shard][last].sent, writer.name))
        });
        let (last_sent, by) = last_sent.max().unwrap_or((0, 0));
        for (writer, survived) in writers.iter().zip(&all) {
            let lost = &writer.sent[shard][survived.most..];
            if lost.iter().any(|write| write.answered.is_some_and(|answered| answered < last_sent)) {
                return Err(format!(
                    "shard {shard}: a write of client {} is there, and not one of client {} that was \
                     answered before that was sent",
                    by, writer.name
                ));
            }
            let is_answered = |write: &&Write| write.answered.is_some();
            counts.answered += writer.sent[shard].iter().filter(is_answered).count();
            counts.answered_and_lost += lost.iter().filter(is_answered).count();
            counts.promised +=
                writer.sent[shard].iter().filter(is_answered).filter(|write| write.is_always).count();
        }
    }
    for (writer, found) in writers.iter_mut().zip(found) {
        // Those that no write since has concerned as well.
        let sent: Vec<usize> = writer
            .sent
            .iter()
            .flatten()
            .flat_map(|write| write.changes.iter().map(|(key, _)| *key))
            .collect();
        let mut expected = writer.base.clone();
        sent.into_iter().for_each(|key| expected[key] = found[key]);
        if let Some(key) = (0..found.len()).find(|key| expected[*key] != found[*key]) {
            let key = String::from_utf8_lossy(&writer.keys[key]);
            return Err(format!("{key} has changed though nobody wrote it"));
        }
        writer.sent.iter_mut().for_each(Vec::clear);
        (writer.base, writer.state) = (found.clone(), found);
    }
    Ok(())
}

fn campaign(name: &str, sync: &str, rounds: usize) {
    let seed = from_env("ATLASKV_CRASH_SEED").unwrap_or_else(|| fastrand::u64(..1 << 32));
    println!(
        "{name}: {rounds} rounds or more; to repeat: ATLASKV_CRASH_SEED={seed} cargo test --test crash {name}"
    );
    let begin = Instant::now();
    let dir = disk_dir();
    let mut kills = fastrand::Rng::with_seed(seed);
    let mut writers: Vec<_> = (0..CLIENTS).map(|client| Writer::new(client, seed)).collect();
    let (mut met, mut counts) = (Met::default(), Counts::default());
    let clock = AtomicU64::new(1);
    // A slow machine writes little before a kill: then there are more rounds.
    let mut round = 0;
    loop {
        let cores = (1 + kills.usize(..2)).to_string();
        let mut arguments =
            vec!["--cores", &cores, "--oversubscribe", "--memory", MEMORY, "--max-value-size", "64KiB"];
        arguments.extend(["--sync", sync]);
        let mut server = Server::start(dir.path(), &arguments);
        let told = |why: String| -> ! {
            panic!("round {round} of {name}, ATLASKV_CRASH_SEED={seed}: {why}");
        };
        let mut client = crate::workload::connect(server.address).expect("a server that said it is ready");
        if round > 0 {
            check(&mut writers, &mut client, &mut counts).unwrap_or_else(|why| told(why));
        }
        // The last round only compares.
        let is_enough = met.replays > 0
            && counts.promised > 0
            && counts.answered_and_lost > 0
            && (rounds < 6 || met.flushes > 0);
        let is_last = round >= rounds && is_enough || round == 10 * rounds;
        if !is_last {
            let after = Duration::from_micros(kills.u64(1_000..700_000));
            let results = kill_amid(&mut server, &mut writers, after, |writer, address, ready| {
                writer.run(address, &clock, ready)
            });
            results.into_iter().for_each(|result| result.unwrap_or_else(|why| told(why)));
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
        "{name}: {} writes answered, {} of them lost, {} promised and there, {} flushes, {} merges, {} \
         replays, {} torn tails; {:.1} s",
        counts.answered,
        counts.answered_and_lost,
        counts.promised,
        met.flushes,
        met.merges,
        met.replays,
        met.torn_tails,
        begin.elapsed().as_secs_f64()
    );
    assert!(met.replays > 0, "no log was ever replayed");
    assert!(counts.promised > 0, "no promise was ever made");
    assert!(counts.answered_and_lost > 0, "nothing was lost: every write was waited for");
    if rounds >= 6 {
        assert!(met.flushes > 0, "too little was written for a flush");
    }
}

#[test]
fn an_interval_loses_only_the_end() {
    campaign("an_interval_loses_only_the_end", "interval=50ms", rounds(8));
}

#[test]
fn no_sync_loses_only_the_end() {
    campaign("no_sync_loses_only_the_end", "none", rounds(8));
}
