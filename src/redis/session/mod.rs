//! A connection that speaks Redis' protocol, without its socket: commands become requests of the binary protocol, and
//! their replies become Redis' again, in the order of the commands.
//!
//! ```text
//! bytes read ── take_in_from ──► frames, to be dispatched          answer ◄── frames of replies
//!                      └─► replies that need nobody ─► Pending ◄──┘
//!                                                          └─► out, in order
//! ```
//! A command is one request (GET), one for each key or slot whose replies are added up (DEL, MSET), or several one
//! after the other (KEYS), of which each is made of the reply to the one before. What the binary protocol has no
//! request for goes to the owner of its keys as a transaction ([`super::evaluate()`]).
//!
//! Invariants:
//! - Each command has one reply, and no reply leaves before those of the commands in front of it.
//! - Nothing is taken in while [`PENDING_MAX`] commands are without their reply, [`BACKLOG_BYTES`] of replies wait to
//!   leave, or [`FRAMES_BYTES`] of frames to be dispatched; one command more may pass these.
//! - A command about all keys is taken in when all before it are answered, and nothing behind it before it is. So a
//!   client sees in it what it has written before.

mod admin;
mod answer;
mod cluster;
mod config;
mod context;
mod cursors;
mod errors;
mod info;
mod local;
mod multi;
mod pending;
mod refusal;
mod saves;
mod scan;
#[cfg(test)]
mod tests;
mod translate;

use std::rc::Rc;

use smallvec::SmallVec;

use self::answer::What;
use self::multi::{Queue, Watched};
use self::pending::{Expected, Pending};
use self::refusal::CROSS_SLOT;
use super::command::Command;
use super::fault::{Fault, unknown_command};
use super::table;
use crate::protocol::Paused;
use crate::protocol::resp::{self, Args, Parsed, Parser, Proto};
use crate::slot::Slot;

pub use context::{Client, Cluster, Context, ContextParts, Host, Nodes, REDIS_VERSION, Reader};
pub use saves::SaveStatus;

/// Commands of a connection that may be without a reply.
pub const PENDING_MAX: usize = 16_384;
/// Bytes of frames after which no further command becomes one before these are dispatched.
pub const FRAMES_BYTES: usize = 64 << 10;
/// Bytes of replies that wait to leave beyond which nothing is taken in.
pub const BACKLOG_BYTES: usize = 128 << 10;
/// GETs that are looked at together.
const READ_AHEAD: usize = 16;
/// Commands that are taken in at once.
const AT_ONCE_MAX: u32 = 1_024;

/// How far bytes were taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// All whole commands were. The one that began needs so many bytes in all, as far as can be told.
    NeedMore {
        /// That many.
        wanted: usize,
    },
    /// Replies must come or leave first, or frames be dispatched.
    Pause,
    /// The connection is to be closed once all its replies have left.
    Close,
}

/// How things are around a session.
#[derive(Clone, Copy, Debug, Default)]
pub struct Now {
    /// What clients may not do.
    pub paused: Option<Paused>,
    /// Nothing that was dispatched for it is under way: what is answered at once overtakes nothing.
    pub is_idle: bool,
}

/// Which replies a client wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Replies {
    #[default]
    On,
    Off,
    /// Not that of the next command.
    Skip,
}

/// A connection's state.
pub struct Session {
    context: Rc<Context>,
    parser: Parser,
    proto: Proto,
    id: u64,
    client: Client,
    random: u64,
    /// By CLIENT SETNAME.
    name: Vec<u8>,
    /// By CLIENT SETINFO: the library and its version.
    library: [Vec<u8>; 2],
    replies: Replies,
    pending: Pending,
    /// Commands since MULTI.
    queue: Option<Queue>,
    watched: Watched,
    /// A command about all keys is under way: nothing is taken in before it is answered.
    is_exclusive: bool,
    /// The next command waits until all before it are answered.
    is_held: bool,
    /// The least pause that the next command waits for, if it does.
    held_by: Option<Paused>,
    /// Nothing is taken in any more.
    is_closing: bool,
    /// Replies that may leave.
    out: Vec<u8>,
    /// Frames that the reply to another one has led to.
    frames: Vec<u8>,
    now: Now,
}

/// Whether a command was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Taken,
    /// Others must be answered first.
    Wait,
    /// A pause must end first, which is at least this.
    Paused(Paused),
}

impl Session {
    /// A new connection's. `random` is any number.
    pub fn new(context: Rc<Context>, client: Client, random: u64) -> Session {
        let mut parser = Parser::new(context.command_limits);
        parser.set_authenticated(true);
        Session {
            id: context.next_id(),
            client,
            random,
            parser,
            context,
            proto: Proto::Resp2,
            name: Vec::new(),
            library: Default::default(),
            replies: Replies::On,
            pending: Pending::default(),
            queue: None,
            watched: Watched::default(),
            is_exclusive: false,
            is_held: false,
            held_by: None,
            is_closing: false,
            out: Vec::new(),
            frames: Vec::new(),
            now: Now::default(),
        }
    }

    /// Takes in the commands at the start of `input`, of which `used` bytes were: what they ask of shards is appended
    /// to `frames`.
    pub fn take_in_from(&mut self, input: &[u8], used: &mut usize, frames: &mut Vec<u8>, now: Now) -> Taken {
        self.now = now;
        self.is_held = false;
        self.held_by = None;
        let mut taken = 0;
        loop {
            if self.is_closing {
                return Taken::Close;
            }
            if self.is_exclusive
                || self.pending.len() >= PENDING_MAX
                || self.backlog() >= BACKLOG_BYTES
                || frames.len() >= FRAMES_BYTES
                || taken >= AT_ONCE_MAX
            {
                return Taken::Pause;
            }
            if frames.is_empty() {
                let read = self.read_at_once(input, used);
                if read > 0 {
                    taken += read;
                    continue;
                }
            }
            taken += 1;
            let mut args = Args::new();
            let (step, len) = match self.parser.parse(&input[*used..], &mut args) {
                Ok(Parsed::NeedMore { wanted }) => return Taken::NeedMore { wanted },
                Ok(Parsed::Nothing { used: len }) => (Step::Taken, len),
                Ok(Parsed::Command { used: len }) => (self.command(&args, frames), len),
                Ok(Parsed::Quoted { used: len, words }) => {
                    let words: Args<'_> = words.iter().map(Vec::as_slice).collect();
                    (self.command(&words, frames), len)
                }
                Err(error) => {
                    self.is_closing = true;
                    self.say(|out, _| error.encode(out));
                    return Taken::Close;
                }
            };
            match step {
                Step::Taken => *used += len,
                Step::Wait => {
                    self.is_held = true;
                    return Taken::Pause;
                }
                Step::Paused(least) => {
                    self.held_by = Some(least);
                    return Taken::Pause;
                }
            }
        }
    }

    /// Answers the GETs that `input` goes on with, if nothing is before them, as far as this shard has what they ask for
    /// in memory. How many that were. So in a pipeline of GETs the memory that they need is fetched for some at
    /// once, and no request is made, routed, answered and translated back.
    fn read_at_once(&mut self, input: &[u8], used: &mut usize) -> u32 {
        let is_plain = self.now.is_idle && self.now.paused.is_none() && self.replies == Replies::On;
        if !is_plain || !self.pending.is_empty() || self.queue.is_some() || self.parser.is_amid() {
            return 0;
        }
        let most = self.context.limits.key_bytes_max as usize;
        let mut keys = SmallVec::<[&[u8]; READ_AHEAD]>::new();
        let mut ends = [0; READ_AHEAD];
        let mut at = *used;
        while keys.len() < READ_AHEAD
            && let Some((key, len)) = resp::plain_get(&input[at..])
            && (1..=most).contains(&key.len())
        {
            at += len;
            ends[keys.len()] = at;
            keys.push(key);
        }
        if keys.is_empty() {
            return 0;
        }
        let (out, proto) = (&mut self.out, self.proto);
        let read = self.context.reader.read(&keys, &mut |value| match value {
            Some(value) => resp::bulk(out, value),
            None => resp::null(out, proto),
        });
        if read > 0 {
            *used = ends[read - 1];
        }
        read as u32
    }

    /// The least bytes that more of the command at the start of `input` needs; `input` was taken in as far as it can
    /// be.
    pub fn wanted(&self, input: &[u8]) -> usize {
        let mut parser = self.parser.clone();
        match parser.parse(input, &mut Args::new()) {
            Ok(Parsed::NeedMore { wanted }) => wanted,
            _ => 0,
        }
    }

    /// Whether it takes in nothing before replies have come.
    pub fn is_waiting(&self) -> bool {
        let is_held = self.is_held && !self.pending.is_empty();
        let is_full = self.pending.len() >= PENDING_MAX || self.pending.bytes() >= BACKLOG_BYTES;
        is_held || is_full || self.is_exclusive
    }

    /// The least pause that its next command waits for, if it does.
    pub fn held_by(&self) -> Option<Paused> {
        self.held_by
    }

    /// Its number among all sessions.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Bytes of replies that wait to leave.
    pub fn backlog(&self) -> usize {
        self.out.len() + self.pending.bytes()
    }

    /// Whether more than `bytes` of replies wait for others before them.
    pub fn is_crowded(&self, bytes: usize) -> bool {
        self.pending.bytes() > bytes
    }

    /// The shard that the first missing reply comes from, if it is one alone.
    pub fn awaited(&self) -> Option<usize> {
        self.pending.first_slot().map(|slot| self.context.nodes.owner(slot))
    }

    /// The number of the first command whose reply has not left.
    pub fn first(&self) -> u64 {
        self.pending.first()
    }

    /// Whether no reply is missing.
    pub fn is_answered(&self) -> bool {
        self.pending.is_empty()
    }

    /// Bytes that it keeps of commands whose replies are to come.
    pub fn pending_bytes(&self) -> usize {
        self.pending.own_bytes()
    }

    /// Bytes that it keeps for EXEC.
    pub fn held_bytes(&self) -> usize {
        self.queue.as_ref().map_or(0, Queue::bytes) + self.watched.bytes()
    }

    /// Replies that may leave.
    pub fn take_out(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Whether replies have led to frames. While [`Session::needs_room`] they are not to be dispatched.
    pub fn has_frames(&self) -> bool {
        !self.frames.is_empty()
    }

    /// Whether it gathers an answer (of KEYS) that needs room for what it may come to, a frame at most.
    pub fn needs_room(&self) -> bool {
        self.is_exclusive
            && self.pending.front().is_some_and(|what| matches!(what, What::Keys(keys) if keys.needs_room()))
    }

    /// Frames to be dispatched that replies have led to.
    pub fn take_frames(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.frames)
    }

    fn command(&mut self, args: &[&[u8]], frames: &mut Vec<u8>) -> Step {
        if let Some(paused) = self.now.paused
            && let Some(least) = self.pause_for(args, paused)
        {
            return Step::Paused(least);
        }
        let step = match Command::parse(args) {
            // MEMORY has others beside USAGE.
            Err(Fault::UnknownCommand | Fault::UnknownSubcommand("MEMORY")) => self.local(args, frames),
            Err(fault) if self.queue.is_some() && !is_refused_when_queued(args, fault) => {
                self.enqueue(args, &[]);
                Step::Taken
            }
            Err(fault) => {
                self.flag_fault();
                self.say(|out, _| fault.write(args, out));
                Step::Taken
            }
            Ok(command) => {
                if let Some(error) = self.bad_key(&command) {
                    self.flag_fault();
                    self.say_error(&error);
                    Step::Taken
                } else if let Some(error) = self.misrouted(&command) {
                    self.flag_fault();
                    self.say_error(&error);
                    Step::Taken
                } else if self.queue.is_some() {
                    self.enqueue(args, &command.keys());
                    Step::Taken
                } else {
                    self.translate(args, command, frames)
                }
            }
        };
        if step == Step::Taken && self.replies == Replies::Skip && !is_reply_skip(args) {
            self.replies = Replies::On;
        }
        step
    }

    /// Why a key can't be one.
    fn bad_key(&self, command: &Command<'_>) -> Option<String> {
        let most = self.context.limits.key_bytes_max as usize;
        let is_good = |key: &&[u8]| (1..=most).contains(&key.len());
        if let Command::Get { key } | Command::Set(super::Set { key, .. }) = command
            && is_good(key)
        {
            return None;
        }
        let bad = command.keys().into_iter().find(|key| !is_good(key))?;
        Some(format!("ERR a key has 1 to {most} bytes, and this one {}", bad.len()))
    }

    /// On a connection to a node, why a command can't be executed there.
    fn misrouted(&self, command: &Command<'_>) -> Option<String> {
        if !self.is_strict() {
            return None;
        }
        let keys = command.keys();
        let slot = Slot::of_key(keys.first()?);
        if keys.iter().any(|key| Slot::of_key(key) != slot) {
            return Some(CROSS_SLOT.to_owned());
        }
        self.elsewhere(slot)
    }

    /// On a connection to a node, that another one has the slot.
    fn elsewhere(&self, slot: Slot) -> Option<String> {
        let nodes = &self.context.nodes;
        let owner = nodes.owner(slot);
        // While a tablet moves, shards do not learn at one moment who has it: a client would be sent to and fro. Its
        // request waits with all others.
        let is_elsewhere = self.is_strict() && owner != nodes.local() && !nodes.is_moving(slot);
        is_elsewhere.then(|| self.moved_to(slot, owner))
    }

    /// Whether it is a connection to one shard, as a node of a cluster: then all keys are those of this shard.
    fn is_node(&self) -> bool {
        self.client.is_node
    }

    /// Whether only keys of this shard may be named.
    fn is_strict(&self) -> bool {
        self.client.is_node && self.context.cluster.as_ref().is_some_and(|cluster| !cluster.serves_all)
    }

    /// Another number each time.
    fn random(&mut self) -> u64 {
        // Steele, Lea, Flood: SplitMix64.
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// The next command's reply, which shards are asked for.
    fn expect(&mut self, what: What, slot: Option<Slot>) {
        let is_silent = self.replies != Replies::On;
        self.pending.push(Expected { what, slot, proto: self.proto, is_silent, reply: None });
    }

    /// The next command's reply, which is known.
    fn say(&mut self, encode: impl FnOnce(&mut Vec<u8>, Proto)) {
        if self.replies != Replies::On {
            return;
        }
        if self.pending.is_empty() {
            let before = self.out.len();
            encode(&mut self.out, self.proto);
            errors::count(&self.context.metrics, &self.out[before..]);
            return;
        }
        let mut reply = Vec::new();
        encode(&mut reply, self.proto);
        self.pending.push(Expected {
            what: What::Known,
            slot: None,
            proto: self.proto,
            is_silent: false,
            reply: Some(reply),
        });
    }

    fn say_error(&mut self, text: &str) {
        self.say(|out, _| resp::error(out, text));
    }

    fn say_ok(&mut self) {
        self.say(|out, _| resp::simple(out, "OK"));
    }

    /// The reply to a command that nobody knows, or that is known and not there.
    fn say_unknown(&mut self, args: &[&[u8]]) {
        self.flag_fault();
        match args.first().and_then(|name| table::find_absent(name)) {
            Some(spec) => {
                let table::Support::Absent(reason) = spec.support else { return };
                let text = format!("ERR {} is not supported: {reason}", spec.name.to_ascii_uppercase());
                self.say_error(&text);
            }
            None => self.say(|out, _| resp::error_bytes(out, &unknown_command(args))),
        }
    }
}

/// Whether a command is refused at once that MULTI would only queue. Other faults are told when it is executed.
fn is_refused_when_queued(args: &[&[u8]], fault: Fault) -> bool {
    // MSET refuses an odd number of arguments by itself, and late.
    let spec = table::find(args[0]);
    let sub = spec.zip(args.get(1)).and_then(|(spec, name)| table::find_sub(spec, name));
    let is_late = matches!(fault, Fault::Arity(_)) && sub.or(spec).is_some_and(|spec| spec.takes(args.len()));
    fault.is_found_when_queued() && !is_late
}

/// Whether this is the command that asks for the next one's reply to be left out.
fn is_reply_skip(args: &[&[u8]]) -> bool {
    args.len() == 3 && args[0].eq_ignore_ascii_case(b"client") && args[1].eq_ignore_ascii_case(b"reply")
}
