//! Commands and their replies as text.
//!
//! A command is words between spaces; `''` is an empty one. In a reply each end of line is shown as a space.

mod any;
mod bits;
mod expiry;
mod keys;
mod lcs;
mod parse;
mod strings;

use super::{Command, MemoryKeyspace, evaluate};
use crate::protocol::resp::Proto;

/// 2020-09-13, so that what is past and what is to come are far away from each other.
const NOW_MS: u64 = 1_600_000_000_000;

/// A keyspace that is spoken to, in one version of the protocol.
struct Redis {
    space: MemoryKeyspace,
    proto: Proto,
}

impl Redis {
    fn new() -> Redis {
        Redis { space: MemoryKeyspace::new(NOW_MS), proto: Proto::Resp2 }
    }

    fn reply_to(&mut self, args: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        match Command::parse(args) {
            Ok(command) => evaluate(&command, &mut self.space, self.proto, &mut out).unwrap(),
            Err(fault) => fault.write(args, &mut out),
        }
        out
    }

    /// What a command, given as its arguments, is answered.
    fn ask_bytes(&mut self, args: &[&[u8]]) -> String {
        shown(&self.reply_to(args))
    }

    /// What a command is answered.
    fn ask(&mut self, command: &str) -> String {
        let args: Vec<&[u8]> = words(command);
        self.ask_bytes(&args)
    }

    /// Sends commands and compares their replies, in order.
    #[track_caller]
    fn tells(&mut self, dialogue: &[(&str, &str)]) {
        for (command, expected) in dialogue {
            assert_eq!(self.ask(command), *expected, "{command:?}");
        }
    }

    /// That the command is answered so and that it writes so often.
    #[track_caller]
    fn writes(&mut self, count: usize, command: &str, expected: &str) {
        let before = self.space.writes;
        assert_eq!(self.ask(command), expected, "{command:?}");
        assert_eq!(self.space.writes - before, count, "writes of {command:?}");
    }
}

fn words(command: &str) -> Vec<&[u8]> {
    command.split(' ').map(|word| if word == "''" { &[] } else { word.as_bytes() }).collect()
}

fn shown(reply: &[u8]) -> String {
    let text = reply.strip_suffix(b"\r\n").expect("a reply ends its line");
    text.escape_ascii().to_string().replace("\\r\\n", " ").replace("\\'", "'")
}
