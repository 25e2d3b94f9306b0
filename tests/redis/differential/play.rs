//! Plays a round to Redis and to the subject, side by side, and tells the first difference.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;

use atlaskv::slot::Slot;

use crate::differences::{self, Treatment};
use crate::differential::compare::{self, How};
use crate::differential::round::{CONNECTIONS, Round, Step};
use crate::differential::{scan, shape};
use crate::servers;
use crate::wire::{Command, Reply, Wire};

/// Whom a round is played to.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    pub redis: SocketAddr,
    pub subject: SocketAddr,
    /// Whether the subject is AtlasKV, and so differs as it is known to.
    pub is_atlas: bool,
}

/// A difference that is not known.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The step it was seen at; the number of steps, if only the look at the whole key space showed it.
    pub at: usize,
    pub command: Command,
    pub redis: String,
    pub subject: String,
}

impl Finding {
    /// What similar findings share.
    pub fn signature(&self) -> String {
        let begin = |text: &str| match text.as_bytes().first() {
            Some(b'-' | b'b') => text.split([' ', '\\']).take(3).collect::<Vec<_>>().join(" "),
            _ => text.chars().take(1).collect(),
        };
        // What may be queued is not a question of each command.
        let queued = self.redis.starts_with("+QUEUED");
        let name = if queued { "queued".to_string() } else { self.command.name() };
        format!("{name}: {} | {}", begin(&self.redis), begin(&self.subject))
    }
}

/// What a campaign did: for each command, how often it was compared and how often it was an error.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub compared: BTreeMap<String, [u64; 2]>,
    /// Sent to the subject only, whose difference is known.
    pub known: u64,
    /// Not sent: what it does depends on the moment, or a transaction would be of several slots.
    pub skipped: u64,
}

impl Tally {
    fn count(&mut self, command: &Command, reply: &Reply) {
        // Names that there are not would be many.
        let name =
            if reply.bytes.starts_with(b"-ERR unknown command") { String::new() } else { command.name() };
        self.compared.entry(name).or_default()[usize::from(reply.is_error())] += 1;
    }

    /// Commands sent to both.
    pub fn commands(&self) -> u64 {
        self.compared.values().flatten().sum()
    }
}

/// What is done with a step.
enum Plan {
    Skip,
    /// Sent to both.
    Both {
        redis: Command,
    },
    /// Sent to the subject only, whose reply begins with one of these.
    AtlasOnly(&'static [&'static str]),
    /// Both are asked by themselves, with nothing else under way.
    Alone,
}

/// A step under way.
struct Sent {
    at: usize,
    command: Command,
    atlas_only: Option<&'static [&'static str]>,
}

/// What a connection is in the middle of.
#[derive(Default)]
struct Transaction {
    /// As foretold when a command is sent: replies to those before may still be under way.
    is_open: bool,
    slots: Vec<Slot>,
    /// As told by Redis's replies.
    queued: Vec<(Command, How)>,
}

/// A connection on each side.
struct Link {
    redis: Wire,
    subject: Wire,
    transaction: Transaction,
}

struct Play<'a> {
    pair: Pair,
    round: &'a Round,
    links: Vec<Link>,
    tally: &'a mut Tally,
}

/// Plays a round; both servers are emptied first.
pub fn play(pair: Pair, round: &Round, tally: &mut Tally) -> Result<(), Box<Finding>> {
    let begin = Command::line("FLUSHALL");
    let mut control = connect(pair, &begin, 0)?;
    let ends = [servers::flush(&mut control.redis), servers::flush(&mut control.subject)];
    both(ends, &begin, 0)?;
    let mut links = Vec::new();
    for protocol in round.protocols {
        let hello = Command::line(&format!("HELLO {protocol}"));
        let mut link = connect(pair, &hello, 0)?;
        let (redis, subject) = both([link.redis.ask(&hello), link.subject.ask(&hello)], &hello, 0)?;
        alike(How::Hello.alike(&redis, &subject), 0, &hello, &redis, &subject)?;
        links.push(link);
    }
    assert_eq!(links.len(), CONNECTIONS);
    let mut play = Play { pair, round, links, tally };
    play.steps()?;
    look(&mut control, round)
}

impl Play<'_> {
    fn steps(&mut self) -> Result<(), Box<Finding>> {
        let mut steps = self.round.steps.iter().enumerate().peekable();
        let mut sent = Vec::new();
        let (mut to_redis, mut to_subject) = (Vec::new(), Vec::new());
        while let Some((at, step)) = steps.next() {
            let plan = self.plan(step);
            match &plan {
                Plan::Skip => self.tally.skipped += 1,
                Plan::Both { redis } => {
                    redis.encode(&mut to_redis);
                    step.command.encode(&mut to_subject);
                    sent.push(Sent { at, command: step.command.clone(), atlas_only: None });
                }
                Plan::AtlasOnly(answers) => {
                    step.command.encode(&mut to_subject);
                    sent.push(Sent { at, command: step.command.clone(), atlas_only: Some(answers) });
                }
                Plan::Alone => {}
            }
            let goes_on = steps
                .peek()
                .is_some_and(|(_, next)| (next.batch, next.connection) == (step.batch, step.connection));
            let alone = matches!(plan, Plan::Alone);
            if !goes_on || alone {
                self.exchange(step.connection, &mut sent, [&mut to_redis, &mut to_subject])?;
            }
            if alone {
                self.alone(at, step)?;
            }
        }
        Ok(())
    }

    /// Decides on a step, and foretells the state of its connection after it.
    fn plan(&mut self, step: &Step) -> Plan {
        let command = &step.command;
        let name = command.name();
        if shape::is_out_of_place(command) || shape::depends_on_the_moment(command, self.round.mood) {
            return Plan::Skip;
        }
        let known = differences::known(command).filter(|_| self.pair.is_atlas).map(|known| known.treatment);
        let transaction = &mut self.links[step.connection].transaction;
        match known {
            Some(Treatment::LeftOut) => return Plan::Skip,
            Some(Treatment::NotInTransactions) if transaction.is_open => return Plan::Skip,
            _ => {}
        }
        match name.as_str() {
            "multi" if command.0.len() == 1 => transaction.is_open = true,
            // Outside of a transaction, EXEC and DISCARD are errors and leave what is watched.
            "exec" | "discard" if command.0.len() == 1 && !transaction.is_open => {}
            _ if ends_transaction(command) => {
                *transaction =
                    Transaction { queued: std::mem::take(&mut transaction.queued), ..Default::default() };
            }
            "unwatch" if command.0.len() == 1 && !transaction.is_open => transaction.slots.clear(),
            _ => {}
        }
        // Of the others, both are asked.
        let known =
            known.filter(|treatment| matches!(treatment, Treatment::AtlasOnly(_) | Treatment::RedisGets(_)));
        if transaction.is_open || name == "watch" {
            let mut slots = [transaction.slots.as_slice(), &shape::slots(command)].concat();
            slots.sort_unstable();
            slots.dedup();
            if slots.len() > 1 || known.is_some() {
                return Plan::Skip;
            }
            transaction.slots = slots;
        }
        match known {
            Some(Treatment::AtlasOnly(answers)) => Plan::AtlasOnly(answers),
            Some(Treatment::RedisGets(instead)) => Plan::Both { redis: instead(command) },
            _ if !transaction.is_open && (scan::is_scan(command) || is_randomkey(command)) => Plan::Alone,
            _ => Plan::Both { redis: command.clone() },
        }
    }

    /// Sends what is to be sent on a connection, and compares the replies.
    fn exchange(
        &mut self,
        connection: usize,
        sent: &mut Vec<Sent>,
        [to_redis, to_subject]: [&mut Vec<u8>; 2],
    ) -> Result<(), Box<Finding>> {
        let Some(last) = sent.last() else { return Ok(()) };
        let (at, command) = (last.at, last.command.clone());
        let of_redis = sent.iter().filter(|sent| sent.atlas_only.is_none()).count();
        let link = &mut self.links[connection];
        let ends = [link.redis.exchange(to_redis, of_redis), link.subject.exchange(to_subject, sent.len())];
        to_redis.clear();
        to_subject.clear();
        let (redis, subject) = both(ends, &command, at)?;
        let mut redis = redis.into_iter();
        for (sent, subject) in sent.drain(..).zip(subject) {
            if let Some(answers) = sent.atlas_only {
                let fits = answers.iter().any(|answer| subject.bytes.starts_with(answer.as_bytes()));
                if !fits {
                    return Err(finding(sent.at, &sent.command, "(known to differ)", &subject.to_string()));
                }
                self.tally.known += 1;
                continue;
            }
            let redis = redis.next().expect("as many replies as commands");
            self.compare(connection, &sent, &redis, &subject)?;
        }
        Ok(())
    }

    fn compare(
        &mut self,
        connection: usize,
        sent: &Sent,
        redis: &Reply,
        subject: &Reply,
    ) -> Result<(), Box<Finding>> {
        let how = compare::how(&sent.command, self.round.mood);
        let transaction = &mut self.links[connection].transaction;
        self.tally.count(&sent.command, redis);
        if redis.bytes == b"+QUEUED\r\n" {
            transaction.queued.push((sent.command.clone(), how));
        } else if ends_transaction(&sent.command) {
            let queued = std::mem::take(&mut transaction.queued);
            if sent.command.name() == "exec" {
                return executed(&queued, sent, redis, subject);
            }
        }
        alike(how.alike(redis, subject), sent.at, &sent.command, redis, subject)
    }

    /// SCAN and RANDOMKEY, which may answer in many ways.
    fn alone(&mut self, at: usize, step: &Step) -> Result<(), Box<Finding>> {
        let command = &step.command;
        let link = &mut self.links[step.connection];
        if is_randomkey(command) {
            let (redis, subject) = both([link.redis.ask(command), link.subject.ask(command)], command, at)?;
            self.tally.count(command, &redis);
            alike(redis.kind == subject.kind, at, command, &redis, &subject)?;
            let exists = Command(vec![b"EXISTS".to_vec(), subject.text.clone()]);
            let there = link.redis.ask(&exists).map_err(|error| broken(at, command, "redis", &error))?;
            let is_there =
                subject.items.is_empty() && (subject.text.is_empty() || there.integer() == Some(1));
            return alike(is_there, at, command, &redis, &subject);
        }
        let ends = [scan::all(&mut link.redis, command), scan::all(&mut link.subject, command)];
        let (redis, subject) = both(ends, command, at)?;
        self.tally.count(command, &redis.last);
        if redis.keys == subject.keys && (!redis.last.is_error() || redis.last.bytes == subject.last.bytes) {
            return Ok(());
        }
        Err(finding(at, command, &redis.to_string(), &subject.to_string()))
    }
}

/// Compares what EXEC says; a difference is told of the command that was queued.
fn executed(
    queued: &[(Command, How)],
    sent: &Sent,
    redis: &Reply,
    subject: &Reply,
) -> Result<(), Box<Finding>> {
    let hows: Vec<How> = queued.iter().map(|(_, how)| *how).collect();
    if let Some(index) = compare::unlike_in_transaction(&hows, redis, subject) {
        let [redis, subject] = [redis, subject].map(|reply| &reply.items[index]);
        return alike(false, sent.at, &queued[index].0, redis, subject);
    }
    alike(compare::transactions_alike(&hows, redis, subject), sent.at, &sent.command, redis, subject)
}

/// Whether no transaction is open after it. EXEC ends one even if it is refused for its arguments.
fn ends_transaction(command: &Command) -> bool {
    match command.name().as_str() {
        "exec" => true,
        "discard" | "reset" => command.0.len() == 1,
        _ => false,
    }
}

fn is_randomkey(command: &Command) -> bool {
    command.name() == "randomkey" && command.0.len() == 1
}

/// Compares all keys with their values and expiry times, as connections that did nothing else see them.
fn look(control: &mut Link, round: &Round) -> Result<(), Box<Finding>> {
    let at = round.steps.len();
    let all = Command::line("KEYS *");
    let (redis, subject) = both([control.redis.ask(&all), control.subject.ask(&all)], &all, at)?;
    alike(How::Unordered.alike(&redis, &subject), at, &all, &redis, &subject)?;
    let keys: BTreeSet<&[u8]> = redis.items.iter().map(|key| key.text.as_slice()).collect();
    let ask = |name: &[u8], key: &[u8]| Command::of(&[name, key]);
    let commands: Vec<Command> =
        keys.iter().flat_map(|key| [ask(b"GET", key), ask(b"PEXPIRETIME", key)]).collect();
    let ends = [control.redis.pipeline(&commands), control.subject.pipeline(&commands)];
    let (redis, subject) = both(ends, &all, at)?;
    for (command, (redis, subject)) in commands.iter().zip(redis.iter().zip(&subject)) {
        alike(compare::how(command, round.mood).alike(redis, subject), at, command, redis, subject)?;
    }
    let size = Command::line("DBSIZE");
    let (redis, subject) = both([control.redis.ask(&size), control.subject.ask(&size)], &size, at)?;
    alike(compare::how(&size, round.mood).alike(&redis, &subject), at, &size, &redis, &subject)
}

fn connect(pair: Pair, command: &Command, at: usize) -> Result<Link, Box<Finding>> {
    let (redis, subject) = both([Wire::connect(pair.redis), Wire::connect(pair.subject)], command, at)?;
    Ok(Link { redis, subject, transaction: Transaction::default() })
}

/// What both said; a finding if one did not.
fn both<T>(ends: [io::Result<T>; 2], command: &Command, at: usize) -> Result<(T, T), Box<Finding>> {
    let [redis, subject] = ends;
    let redis = redis.map_err(|error| broken(at, command, "redis", &error))?;
    let subject = subject.map_err(|error| broken(at, command, "subject", &error))?;
    Ok((redis, subject))
}

fn broken(at: usize, command: &Command, side: &str, error: &io::Error) -> Box<Finding> {
    let text = format!("broken: {error}");
    if side == "redis" { finding(at, command, &text, "") } else { finding(at, command, "", &text) }
}

fn alike(
    same: bool,
    at: usize,
    command: &Command,
    redis: &Reply,
    subject: &Reply,
) -> Result<(), Box<Finding>> {
    if same { Ok(()) } else { Err(finding(at, command, &redis.to_string(), &subject.to_string())) }
}

fn finding(at: usize, command: &Command, redis: &str, subject: &str) -> Box<Finding> {
    let (redis, subject) = (redis.to_string(), subject.to_string());
    Box::new(Finding { at, command: command.clone(), redis, subject })
}
