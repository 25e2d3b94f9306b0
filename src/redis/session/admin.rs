//! Commands by which one client acts on others, or on the server as a whole.
//!
//! The number of a session tells its shard, so CLIENT KILL is two questions: which clients there are, of all shards,
//! and that these be disconnected, of each shard that has some. Who goes meanwhile is not counted.

use super::answer::{Outcome, What};
use super::{Session, Step};
use crate::protocol::binary::{ClientIdList, encode_request};
use crate::protocol::resp;
use crate::protocol::{BGSAVE, ClientsAction, ClientsRequest, Paused, Request, SAVE};
use crate::redis::fault::Fault;
use crate::redis::number::parse_i64;
use crate::redis::table::{self, Flags};

/// Numbers of clients in one request to a shard.
const IDS_AT_ONCE: usize = 1_000;

/// A CLIENT KILL under way.
pub(super) struct Kill {
    addr: Option<Vec<u8>>,
    laddr: Option<Vec<u8>>,
    id: Option<i64>,
    /// Whether TYPE asks for something that no client is.
    is_of_other_type: bool,
    skips_me: bool,
    /// Of the form that names an address only and is not answered with a number.
    is_old: bool,
    killed: i64,
    /// Shards' answers that are to come.
    left: usize,
    /// The client that asks is one of them.
    is_me: bool,
}

/// A string as C ends it.
fn until_nul(text: &[u8]) -> &[u8] {
    text.split(|byte| *byte == 0).next().unwrap_or_default()
}

impl Kill {
    /// From the words behind `CLIENT KILL`, at least one.
    fn parse(words: &[&[u8]]) -> Result<Kill, Vec<u8>> {
        let mut kill = Kill {
            addr: None,
            laddr: None,
            id: None,
            is_of_other_type: false,
            skips_me: true,
            is_old: false,
            killed: 0,
            left: 0,
            is_me: false,
        };
        if let [address] = words {
            kill.addr = Some(until_nul(address).to_vec());
            (kill.is_old, kill.skips_me) = (true, false);
            return Ok(kill);
        }
        let syntax = || Err(b"ERR syntax error".to_vec());
        let mut rest = words;
        while let [option, tail @ ..] = rest {
            let [value, tail @ ..] = tail else { return syntax() };
            rest = tail;
            match option.to_ascii_lowercase().as_slice() {
                b"id" => match parse_i64(value) {
                    Some(id @ 1..) => kill.id = Some(id),
                    _ => return Err(b"ERR client-id should be greater than 0".to_vec()),
                },
                b"type" => match until_nul(value).to_ascii_lowercase().as_slice() {
                    b"normal" => kill.is_of_other_type = false,
                    b"master" | b"replica" | b"slave" | b"pubsub" => kill.is_of_other_type = true,
                    _ => return Err([b"ERR Unknown client type '", until_nul(value), b"'"].concat()),
                },
                b"addr" => kill.addr = Some(until_nul(value).to_vec()),
                b"laddr" => kill.laddr = Some(until_nul(value).to_vec()),
                b"user" if *value == b"default" => {}
                b"user" => return Err([b"ERR No such user '", until_nul(value), b"'"].concat()),
                b"skipme" if value.eq_ignore_ascii_case(b"yes") => kill.skips_me = true,
                b"skipme" if value.eq_ignore_ascii_case(b"no") => kill.skips_me = false,
                _ => return syntax(),
            }
        }
        Ok(kill)
    }

    /// Whether it is of one client, whose number is all that is asked for.
    fn is_by_id_alone(&self) -> bool {
        self.id.is_some() && self.addr.is_none() && self.laddr.is_none() && !self.is_of_other_type
    }

    /// The number of the client that a line of CLIENT LIST is about, if it is meant.
    fn meant(&self, line: &str) -> Option<u64> {
        let field = |name: &str| {
            let found = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            found.unwrap_or_default()
        };
        let is_at = |wanted: &Option<Vec<u8>>, name: &str| {
            wanted.as_ref().is_none_or(|wanted| field(name).as_bytes() == wanted)
        };
        let id: u64 = field("id").parse().ok()?;
        let is_meant = !self.is_of_other_type
            && self.id.is_none_or(|wanted| u64::try_from(wanted) == Ok(id))
            && is_at(&self.addr, "addr")
            && is_at(&self.laddr, "laddr");
        is_meant.then_some(id)
    }
}

/// The number behind `disconnected=`.
fn disconnected(text: &str) -> i64 {
    let found = text.lines().find_map(|line| line.strip_prefix("disconnected="));
    found.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

impl Session {
    pub(super) fn client_kill(&mut self, args: &[&[u8]], frames: &mut Vec<u8>) -> Step {
        match Kill::parse(&args[2..]) {
            Ok(kill) => self.begin_to_kill(kill, frames),
            Err(text) => self.say(|out, _| resp::error_bytes(out, &text)),
        }
        Step::Taken
    }

    fn begin_to_kill(&mut self, mut kill: Kill, frames: &mut Vec<u8>) {
        let number = self.pending.next();
        match kill.id.filter(|_| kill.is_by_id_alone()).map(i64::unsigned_abs) {
            Some(id) if id == self.id => {
                kill.is_me = !kill.skips_me;
                kill.killed = i64::from(kill.is_me);
                if let Outcome::Reply(reply) = self.killed(&kill) {
                    self.say(|out, _| out.extend_from_slice(&reply));
                }
                return;
            }
            // Its shard is known, and need not be looked for among all clients, who may be many.
            Some(id) => {
                let mut list = ClientIdList::default();
                list.push(id);
                kill.left = 1;
                self.ask_to_disconnect(number, self.shard_of(id), &list, frames);
            }
            None => encode_request(frames, number, &Request::Stats { section: "clients" }),
        }
        self.expect(What::Kill(Box::new(kill)), None);
        self.is_exclusive = true;
    }

    /// The shard that the session of this number is at.
    fn shard_of(&self, id: u64) -> usize {
        (id.saturating_sub(1) % self.context.nodes.count() as u64) as usize
    }

    fn ask_to_disconnect(&self, number: u64, shard: usize, ids: &ClientIdList, frames: &mut Vec<u8>) {
        let action = ClientsAction::Disconnect(ids.ids());
        let request = ClientsRequest { shard: shard as u16, action };
        encode_request(frames, number, &Request::Clients(request));
    }

    /// Takes what shards tell of their clients, then what each has disconnected.
    pub(super) fn go_on_killing(&mut self, number: u64, kill: &mut Kill, text: &str) -> Outcome {
        if kill.left == 0 {
            return self.kill(number, kill, text);
        }
        kill.killed += disconnected(text);
        kill.left -= 1;
        if kill.left > 0 { Outcome::More } else { self.killed(kill) }
    }

    /// Has those disconnected of whom `text` tells and who are meant.
    fn kill(&mut self, number: u64, kill: &mut Kill, text: &str) -> Outcome {
        let shards = self.context.nodes.count();
        let mut ids: Vec<Vec<u64>> = vec![Vec::new(); shards];
        for line in text.lines() {
            let Some(id) = kill.meant(line) else { continue };
            match id == self.id {
                true => kill.is_me = !kill.skips_me,
                false => ids[self.shard_of(id)].push(id),
            }
        }
        kill.killed = i64::from(kill.is_me);
        let mut frames = Vec::new();
        for (shard, ids) in ids.iter().enumerate() {
            for part in ids.chunks(IDS_AT_ONCE) {
                let mut list = ClientIdList::default();
                part.iter().for_each(|id| list.push(*id));
                self.ask_to_disconnect(number, shard, &list, &mut frames);
                kill.left += 1;
            }
        }
        match frames.is_empty() {
            true => self.killed(kill),
            false => Outcome::Ask(frames),
        }
    }

    fn killed(&mut self, kill: &Kill) -> Outcome {
        // The reply leaves before.
        self.is_closing |= kill.is_me;
        let mut out = Vec::new();
        match kill.is_old {
            true if kill.killed == 0 => resp::error(&mut out, "ERR No such client"),
            true => resp::simple(&mut out, "OK"),
            false => resp::integer(&mut out, kill.killed),
        }
        Outcome::Reply(out)
    }

    pub(super) fn client_pause(&mut self, args: &[&[u8]], frames: &mut Vec<u8>) -> Step {
        let paused = match &args[3..] {
            [] => Paused::All,
            [mode] if mode.eq_ignore_ascii_case(b"all") => Paused::All,
            [mode] if mode.eq_ignore_ascii_case(b"write") => Paused::Writes,
            [_] => {
                self.say_error("ERR CLIENT PAUSE mode must be WRITE or ALL");
                return Step::Taken;
            }
            _ => {
                let begin = b"ERR unknown subcommand or wrong number of arguments for '";
                let text = [&begin[..], args[1], b"'. Try CLIENT HELP."].concat();
                self.say(|out, _| resp::error_bytes(out, &text));
                return Step::Taken;
            }
        };
        let now_ms = i64::try_from(self.context.host.wall_ms()).unwrap_or(i64::MAX);
        match parse_i64(args[2]) {
            None => self.say_error("ERR timeout is not an integer or out of range"),
            Some(..0) => self.say_error("ERR timeout is negative"),
            Some(ms) if now_ms.checked_add(ms).is_none() => self.say_error("ERR timeout is out of range"),
            Some(ms) => self.tell_shards(ClientsAction::Pause { paused, ms: ms.unsigned_abs() }, frames),
        }
        Step::Taken
    }

    pub(super) fn client_unpause(&mut self, frames: &mut Vec<u8>) -> Step {
        self.tell_shards(ClientsAction::Unpause, frames);
        Step::Taken
    }

    /// Has all shards do something to their clients; it is answered when all have.
    fn tell_shards(&mut self, action: ClientsAction<'_>, frames: &mut Vec<u8>) {
        let shards = self.context.nodes.count();
        for shard in 0..shards {
            let request = ClientsRequest { shard: shard as u16, action };
            encode_request(frames, self.pending.next(), &Request::Clients(request));
        }
        self.expect(What::All { left: shards }, None);
        // What comes behind it is already held back.
        self.is_exclusive = true;
    }

    /// The least pause that a command waits for, if the one that there is holds it back. As in Redis what is refused
    /// anyway is refused at once; and unlike there CLIENT UNPAUSE waits for nothing, or nobody could end what was to be
    /// short and became a year.
    pub(super) fn pause_for(&self, args: &[&[u8]], paused: Paused) -> Option<Paused> {
        let spec = table::find(args[0]).filter(|spec| spec.takes(args.len()))?;
        let is_known = |sub: &[u8]| table::find_sub(spec, sub).is_some_and(|sub| sub.takes(args.len()));
        if !spec.subcommands.is_empty() && args.get(1).is_some_and(|sub| !is_known(sub)) {
            return None;
        }
        if self.queue.is_some() && spec.flags.has(Flags::NO_MULTI) {
            return None;
        }
        let is_unpause = || spec.name == "client" && args[1].eq_ignore_ascii_case(b"unpause");
        let may_write = match &self.queue {
            Some(queue) if spec.name == "exec" => queue.may_write(),
            _ => spec.flags.has(Flags::WRITE),
        };
        match may_write {
            true => Some(Paused::Writes),
            false => (paused == Paused::All && !is_unpause()).then_some(Paused::All),
        }
    }

    /// SAVE, BGSAVE.
    pub(super) fn save(&mut self, args: &[&[u8]], frames: &mut Vec<u8>) -> Step {
        let is_background = args.len() > 1 || args[0].eq_ignore_ascii_case(b"bgsave");
        match args {
            [_] => {}
            // There is nothing that it would have to be scheduled behind.
            [_, option] if option.eq_ignore_ascii_case(b"schedule") => {}
            _ => return self.fail(Fault::Syntax, args),
        }
        // What this client has written is in it.
        if !self.pending.is_empty() {
            return Step::Wait;
        }
        let (dir, what) = if is_background { (BGSAVE, What::Begun) } else { (SAVE, What::Done) };
        encode_request(frames, self.pending.next(), &Request::Checkpoint { dir });
        self.expect(what, None);
        self.is_exclusive = true;
        Step::Taken
    }

    pub(super) fn shut_down(&mut self, args: &[&[u8]]) {
        let (mut is_abort, mut is_save, mut is_nosave, mut has_other) = (false, false, false, false);
        for word in &args[1..] {
            match word.to_ascii_lowercase().as_slice() {
                b"abort" => is_abort = true,
                b"save" => is_save = true,
                b"nosave" => is_nosave = true,
                b"now" | b"force" => has_other = true,
                _ => return self.say(|out, _| Fault::Syntax.write(args, out)),
            }
        }
        if (is_save && is_nosave) || (is_abort && (is_save || is_nosave || has_other)) {
            return self.say(|out, _| Fault::Syntax.write(args, out));
        }
        if is_abort {
            return self.say_error("ERR No shutdown in progress.");
        }
        // Nothing is said: that the connection closes is the answer.
        self.is_closing = true;
        self.context.host.stop();
    }
}
