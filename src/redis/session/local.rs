//! Commands that concern the connection or the server: most are answered without asking any shard.

use super::answer::What;
use super::{REDIS_VERSION, Replies, Session, Step};
use crate::protocol::Request;
use crate::protocol::binary::encode_request;
use crate::protocol::resp::{self, Proto};
use crate::redis::fault::Fault;
use crate::redis::number::parse_i64;
use crate::redis::{introspect, table};

/// Longest name of a client, and of its library; a connection keeps three of them.
const NAME_BYTES_MAX: usize = 512;
const LONG_NAME: &str = "ERR a client's name has 512 bytes at most";

impl Session {
    /// A command that is none on keys that it names.
    pub(super) fn local(&mut self, args: &[&[u8]], frames: &mut Vec<u8>) -> Step {
        // A browser that was talked into it: what follows is not for us. Redis closes as well.
        if args[0].eq_ignore_ascii_case(b"post") || args[0].eq_ignore_ascii_case(b"host:") {
            self.is_closing = true;
            return Step::Taken;
        }
        let Some(spec) = table::find(args[0]) else {
            self.say_unknown(args);
            return Step::Taken;
        };
        if !spec.takes(args.len()) {
            if spec.name == "exec" {
                self.abort();
                return Step::Taken;
            }
            self.flag_fault();
            return self.fail(Fault::Arity(spec.name), args);
        }
        let mut name = spec.name;
        // COMMAND is one without a subcommand as well.
        if !spec.subcommands.is_empty() && args.len() > 1 {
            match table::find_sub(spec, args[1]) {
                Some(sub) if !sub.takes(args.len()) => {
                    self.flag_fault();
                    return self.fail(Fault::Arity(sub.name), args);
                }
                Some(_) if name == "command" => {}
                Some(sub) => name = sub.name,
                None => {
                    let whole = [spec.name.as_bytes(), b"|", args[1]].concat();
                    if table::find_absent(&whole).is_some() {
                        self.say_unknown(&[&whole]);
                        return Step::Taken;
                    }
                    self.flag_fault();
                    self.say(|out, _| introspect::unknown_subcommand(out, spec, args[1]));
                    return Step::Taken;
                }
            }
            if name.ends_with("|help") {
                self.say_or_queue(|out, _| introspect::help(out, spec));
                return Step::Taken;
            }
        }
        match name {
            "multi" => self.multi(),
            "exec" => return self.exec(frames),
            "discard" => self.discard(),
            "watch" => return self.watch(args, frames),
            "unwatch" => self.unwatch(),
            "quit" => {
                self.say_ok();
                self.is_closing = true;
            }
            "reset" => self.reset(),
            _ if self.queue.is_some() && !is_known_at_once(name) => {
                self.flag_fault();
                self.say_error("ERR Command not allowed inside a transaction");
            }
            "scan" => return self.scan(args, frames),
            "keys" => return self.keys(args, frames),
            "dbsize" => return self.count_keys(frames),
            "randomkey" => return self.random_key(frames),
            "flushall" | "flushdb" => return self.flush(args, frames),
            "info" => return self.ask_for_info(args, frames),
            "client|list" => return self.ask_for_clients(args, frames),
            "readonly" | "readwrite" | "asking" => return self.cluster(name, args, frames),
            _ if name.starts_with("cluster|") => return self.cluster(name, args, frames),
            "client|kill" => return self.client_kill(args, frames),
            "client|pause" => return self.client_pause(args, frames),
            "client|unpause" => return self.client_unpause(frames),
            "shutdown" => self.shut_down(args),
            "save" | "bgsave" => return self.save(args, frames),
            "hello" => self.hello(args),
            "client|reply" => self.client_reply(args),
            _ => self.at_once(name, args),
        }
        Step::Taken
    }

    /// A reply now, or within MULTI when the others are given.
    pub(super) fn say_or_queue(&mut self, encode: impl FnOnce(&mut Vec<u8>, Proto)) {
        match self.queue.is_some() {
            true => self.enqueue_reply(encode),
            false => self.say(encode),
        }
    }

    /// What needs neither time nor any shard.
    fn at_once(&mut self, name: &'static str, args: &[&[u8]]) {
        match name {
            "ping" => self.ping(args),
            "echo" => self.say_or_queue(|out, _| resp::bulk(out, args[1])),
            "time" => {
                let wall_ms = self.context.host.wall_ms();
                self.say_or_queue(|out, _| {
                    resp::array(out, 2);
                    resp::bulk(out, (wall_ms / 1000).to_string().as_bytes());
                    resp::bulk(out, (wall_ms % 1000 * 1000).to_string().as_bytes());
                });
            }
            "select" => self.select(args),
            "auth" => self.auth(args),
            "command" => self.say_or_queue(|out, proto| introspect::command(out, args, proto)),
            "config|get" => self.config_get(args),
            "config|resetstat" => self.say_or_queue(|out, _| resp::simple(out, "OK")),
            "config|set" => self.config_set(args),
            "config|rewrite" => self.say_or_queue(|out, _| {
                resp::error(out, "ERR The server is running without a config file");
            }),
            "role" => self.say_or_queue(|out, _| {
                resp::array(out, 3);
                resp::bulk(out, b"master");
                resp::integer(out, 0);
                resp::array(out, 0);
            }),
            "lastsave" => {
                let seconds = self.context.saves.saved_at_s() as i64;
                self.say_or_queue(|out, _| resp::integer(out, seconds));
            }
            "wait" => self.wait(args),
            "slowlog|get" if args.len() > 2 && !matches!(parse_i64(args[2]), Some(-1..)) => {
                self.say_or_queue(|out, _| {
                    resp::error(out, "ERR count should be greater than or equal to -1");
                });
            }
            "slowlog|get" | "latency|latest" | "latency|history" => {
                self.say_or_queue(|out, _| resp::array(out, 0));
            }
            "slowlog|len" | "latency|reset" => self.say_or_queue(|out, _| resp::integer(out, 0)),
            "slowlog|reset" => self.say_or_queue(|out, _| resp::simple(out, "OK")),
            "latency|histogram" => self.say_or_queue(|out, proto| resp::map(out, 0, proto)),
            "acl|whoami" => self.say_or_queue(|out, _| resp::bulk(out, b"default")),
            "acl|users" => self.say_or_queue(|out, _| {
                resp::array(out, 1);
                resp::bulk(out, b"default");
            }),
            "acl|list" => self.say_or_queue(|out, _| {
                resp::array(out, 1);
                resp::bulk(out, b"user default on nopass ~* &* +@all");
            }),
            "client|id" => {
                let id = self.id as i64;
                self.say_or_queue(|out, _| resp::integer(out, id));
            }
            "client|getname" => {
                let name = self.name.clone();
                self.say_or_queue(|out, proto| match name.is_empty() {
                    true => resp::null(out, proto),
                    false => resp::bulk(out, &name),
                });
            }
            "client|setname" => self.set_name(args[2]),
            "client|setinfo" => self.set_info(args),
            "client|info" => {
                let line = self.describe();
                self.say_or_queue(|out, proto| resp::verbatim(out, "txt", line.as_bytes(), proto));
            }
            "client|no-evict" | "client|no-touch" => {
                let is_good = [&b"on"[..], b"off"].iter().any(|word| args[2].eq_ignore_ascii_case(word));
                match is_good {
                    true => self.say_or_queue(|out, _| resp::simple(out, "OK")),
                    false => self.say_or_queue(|out, _| resp::error(out, "ERR syntax error")),
                }
            }
            "waitaof" => self.wait_for_log(args),
            "bgrewriteaof" => self.say_or_queue(|out, _| {
                resp::simple(out, "Background append only file rewriting started");
            }),
            "latency|doctor" => self.say_or_queue(|out, _| resp::bulk(out, b"No events are recorded.")),
            _ => self.say_unknown(args),
        }
    }

    fn ping(&mut self, args: &[&[u8]]) {
        match args {
            [_] => self.say_or_queue(|out, _| resp::simple(out, "PONG")),
            [_, message] => self.say_or_queue(|out, _| resp::bulk(out, message)),
            _ => self.say_or_queue(|out, _| Fault::Arity("ping").write(args, out)),
        }
    }

    fn select(&mut self, args: &[&[u8]]) {
        match parse_i64(args[1]) {
            Some(0) => self.say_or_queue(|out, _| resp::simple(out, "OK")),
            Some(_) if self.context.cluster.is_some() => {
                self.say_or_queue(|out, _| resp::error(out, "ERR SELECT is not allowed in cluster mode"));
            }
            Some(number) if i32::try_from(number).is_err() => {
                self.say_or_queue(|out, _| Fault::NotInteger32.write(args, out));
            }
            Some(_) => self.say_or_queue(|out, _| resp::error(out, "ERR DB index is out of range")),
            None => self.say_or_queue(|out, _| {
                resp::error(out, "ERR value is not an integer or out of range");
            }),
        }
    }

    fn auth(&mut self, args: &[&[u8]]) {
        let text = match args.len() {
            2 => {
                "ERR AUTH <password> called without any password configured for the default user. Are you sure \
                 your configuration is correct?"
            }
            3 if args[1] == b"default" => return self.say_or_queue(|out, _| resp::simple(out, "OK")),
            3 => "WRONGPASS invalid username-password pair or user is disabled.",
            _ => "ERR syntax error",
        };
        self.say_or_queue(|out, _| resp::error(out, text));
    }

    fn hello(&mut self, args: &[&[u8]]) {
        let mut proto = self.proto;
        let mut rest = &args[1..];
        if let [version, tail @ ..] = rest {
            proto = match parse_i64(version) {
                Some(2) => Proto::Resp2,
                Some(3) => Proto::Resp3,
                Some(_) => return self.say_error("NOPROTO unsupported protocol version"),
                None => {
                    return self.say_error("ERR Protocol version is not an integer or out of range");
                }
            };
            rest = tail;
        }
        while let [option, tail @ ..] = rest {
            match (option.to_ascii_lowercase().as_slice(), tail) {
                (b"auth", [user, _, tail @ ..]) => {
                    if *user != b"default" {
                        return self
                            .say_error("WRONGPASS invalid username-password pair or user is disabled.");
                    }
                    rest = tail;
                }
                (b"setname", [wanted, tail @ ..]) => {
                    if let Some(error) = fault_of_name(wanted) {
                        return self.say_error(error);
                    }
                    // Stays, whatever is wrong with what follows.
                    self.name = wanted.to_vec();
                    rest = tail;
                }
                _ => {
                    // Redis takes it for a string of C.
                    let option = option.split(|byte| *byte == 0).next().unwrap_or_default();
                    let text = [b"ERR Syntax error in HELLO option '", option, b"'"].concat();
                    return self.say(|out, _| resp::error_bytes(out, &text));
                }
            }
        }
        self.proto = proto;
        let (id, is_cluster) = (self.id as i64, self.context.cluster.is_some());
        self.say(|out, proto| {
            resp::map(out, 7, proto);
            let mut pair = |name: &str, value: &str| {
                resp::bulk(out, name.as_bytes());
                resp::bulk(out, value.as_bytes());
            };
            pair("server", "redis");
            pair("version", REDIS_VERSION);
            resp::bulk(out, b"proto");
            resp::integer(out, if proto == Proto::Resp3 { 3 } else { 2 });
            resp::bulk(out, b"id");
            resp::integer(out, id);
            let mut pair = |name: &str, value: &str| {
                resp::bulk(out, name.as_bytes());
                resp::bulk(out, value.as_bytes());
            };
            pair("mode", if is_cluster { "cluster" } else { "standalone" });
            pair("role", "master");
            resp::bulk(out, b"modules");
            resp::array(out, 0);
        });
    }

    fn reset(&mut self) {
        self.queue = None;
        self.forget_watched();
        self.replies = Replies::On;
        self.proto = Proto::Resp2;
        self.name.clear();
        self.say(|out, _| resp::simple(out, "RESET"));
    }

    fn client_reply(&mut self, args: &[&[u8]]) {
        match args[2].to_ascii_lowercase().as_slice() {
            b"on" => {
                self.replies = Replies::On;
                self.say_ok();
            }
            b"off" => self.replies = Replies::Off,
            b"skip" if self.replies == Replies::Off => {}
            b"skip" => self.replies = Replies::Skip,
            _ => self.say_error("ERR syntax error"),
        }
    }

    fn set_name(&mut self, name: &[u8]) {
        if let Some(error) = fault_of_name(name) {
            return self.say_or_queue(|out, _| resp::error(out, error));
        }
        self.name = name.to_vec();
        self.say_or_queue(|out, _| resp::simple(out, "OK"));
    }

    fn set_info(&mut self, args: &[&[u8]]) {
        let which = match args[2].to_ascii_lowercase().as_slice() {
            b"lib-name" => 0,
            b"lib-ver" => 1,
            _ => {
                let option = String::from_utf8_lossy(args[2]).into_owned();
                let text = format!("ERR Unrecognized option '{option}'");
                return self.say_or_queue(|out, _| resp::error(out, &text));
            }
        };
        if !is_name(args[3]) || args[3].len() > NAME_BYTES_MAX {
            let option = ["lib-name", "lib-ver"][which];
            let text = format!("ERR {option} cannot contain spaces, newlines or special characters.");
            return self.say_or_queue(|out, _| resp::error(out, &text));
        }
        self.library[which] = args[3].to_vec();
        self.say_or_queue(|out, _| resp::simple(out, "OK"));
    }

    /// CLIENT LIST: all of them, or those of these numbers.
    fn ask_for_clients(&mut self, args: &[&[u8]], frames: &mut Vec<u8>) -> Step {
        let mut ids = None;
        match &args[2..] {
            [] => {}
            [option, kind] if option.eq_ignore_ascii_case(b"type") => {
                match kind.to_ascii_lowercase().as_slice() {
                    b"normal" => {}
                    b"master" | b"replica" | b"slave" | b"pubsub" => ids = Some(Vec::new()),
                    _ => {
                        let text = [b"ERR Unknown client type '", *kind, b"'"].concat();
                        self.say(|out, _| resp::error_bytes(out, &text));
                        return Step::Taken;
                    }
                }
            }
            [option, numbers @ ..] if option.eq_ignore_ascii_case(b"id") && !numbers.is_empty() => {
                let numbers: Option<Vec<i64>> = numbers.iter().map(|number| parse_i64(number)).collect();
                let Some(numbers) = numbers.filter(|all| all.iter().all(|number| *number > 0)) else {
                    self.say_error("ERR Invalid client ID");
                    return Step::Taken;
                };
                ids = Some(numbers);
            }
            _ => return self.fail(Fault::Syntax, args),
        }
        encode_request(frames, self.pending.next(), &Request::Stats { section: "clients" });
        self.expect(What::Clients { ids }, None);
        Step::Taken
    }

    /// A line about this client, as CLIENT INFO has it.
    pub fn describe(&self) -> String {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        format!(
            "id={} addr={} laddr={} name={} db=0 multi={} user=default resp={} lib-name={} lib-ver={}\n",
            self.id,
            self.client.peer,
            self.client.local,
            text(&self.name),
            self.queue.as_ref().map_or(-1, |queue| queue.len() as i64),
            if self.proto == Proto::Resp3 { 3 } else { 2 },
            text(&self.library[0]),
            text(&self.library[1]),
        )
    }

    /// WAIT: there are no replicas.
    fn wait(&mut self, args: &[&[u8]]) {
        let numbers = (parse_i64(args[1]), parse_i64(args[2]));
        self.say_or_queue(|out, _| match numbers {
            (Some(_), Some(0..)) => resp::integer(out, 0),
            (Some(_), Some(_)) => resp::error(out, "ERR timeout is negative"),
            (Some(_), None) => resp::error(out, "ERR timeout is not an integer or out of range"),
            (None, _) => resp::error(out, "ERR value is not an integer or out of range"),
        });
    }

    /// WAITAOF: what was answered before is on disk, if the server waits for that at all.
    fn wait_for_log(&mut self, args: &[&[u8]]) {
        let numbers = (parse_i64(args[1]), parse_i64(args[2]), parse_i64(args[3]));
        let is_durable = self.context.config_value("appendfsync") == "always";
        self.say_or_queue(|out, _| match numbers {
            (Some(0..=1), Some(_), Some(0..)) => {
                resp::array(out, 2);
                resp::integer(out, i64::from(is_durable));
                resp::integer(out, 0);
            }
            (Some(0..=1), Some(_), Some(_)) => resp::error(out, "ERR timeout is negative"),
            (Some(0..=1), Some(_), None) => resp::error(out, "ERR timeout is not an integer or out of range"),
            (Some(_), _, _) => resp::error(out, "ERR value is out of range, must be between 0 and 1"),
            (None, _, _) => resp::error(out, "ERR value is not an integer or out of range"),
        });
    }

    fn ask_for_info(&mut self, args: &[&[u8]], frames: &mut Vec<u8>) -> Step {
        if !self.pending.is_empty() {
            return Step::Wait;
        }
        let text = |arg: &&[u8]| String::from_utf8_lossy(arg).to_ascii_lowercase();
        let sections = args[1..].iter().map(text).collect();
        let section = if self.is_node() { "local" } else { "total" };
        encode_request(frames, self.pending.next(), &Request::Stats { section });
        self.expect(What::Info { sections }, None);
        self.is_exclusive = true;
        Step::Taken
    }
}

/// Commands that a transaction may have though they name no keys.
fn is_known_at_once(name: &str) -> bool {
    let is_other = matches!(
        name,
        "scan"
            | "keys"
            | "dbsize"
            | "randomkey"
            | "flushall"
            | "flushdb"
            | "info"
            | "client|list"
            | "cluster|countkeysinslot"
            | "cluster|getkeysinslot"
            | "client|kill"
            | "client|pause"
            | "client|unpause"
            | "shutdown"
            | "save"
            | "bgsave"
    );
    let changes_connection =
        matches!(name, "quit" | "reset" | "hello" | "client|reply" | "client|setname" | "client|setinfo");
    !is_other && !changes_connection
}

/// That a client can't be called so.
const BAD_NAME: &str = "ERR Client names cannot contain spaces, newlines or special characters.";

/// Why a client can't be called that.
fn fault_of_name(name: &[u8]) -> Option<&'static str> {
    if !is_name(name) { Some(BAD_NAME) } else { (name.len() > NAME_BYTES_MAX).then_some(LONG_NAME) }
}

fn is_name(name: &[u8]) -> bool {
    name.iter().all(|byte| (b'!'..=b'~').contains(byte))
}
