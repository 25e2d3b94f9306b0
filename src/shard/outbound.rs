//! Requests on their way to other shards: those of all connections that are served in one turn leave together, in one
//! message for each owner.
//!
//! Invariants:
//! - Whatever goes to a peer leaves behind the requests that were gathered for it before. So one connection's frames
//!   keep their order, and [`Message::Quiet`] and [`Message::Forget`] come behind what they are about.
//! - What is gathered is bounded: beyond [`BYTES_MAX`] for one owner it leaves at once.
//! - Who adds to it ends the turn, or has it ended.

use std::borrow::Cow;
use std::rc::Rc;

use super::{Message, Origin, Shard};
use crate::env::Env;

/// Bytes for one owner that wait for the end of the turn. With more the owner may begin while the rest is read; less
/// than that it would be woken for in vain.
const BYTES_MAX: usize = 16 << 10;

/// Whole frames for one owner, in the order in which they take effect.
#[derive(Default)]
pub struct Requests {
    parts: Vec<Part>,
    /// Of all parts, back to back.
    frames: Vec<u8>,
}

/// Frames of one line that follow each other.
struct Part {
    /// The sender's token for the connection: its frames take effect in the order sent.
    line: u64,
    /// The sender's token for the replies: the connection's, or that of a gathered answer.
    token: u64,
    bytes: usize,
}

impl Requests {
    fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    fn push(&mut self, line: u64, token: u64, frames: &[u8]) {
        match self.parts.last_mut() {
            Some(last) if (last.line, last.token) == (line, token) => last.bytes += frames.len(),
            _ => self.parts.push(Part { line, token, bytes: frames.len() }),
        }
        self.frames.extend_from_slice(frames);
    }

    /// Of one line alone, not copied.
    fn whole(line: u64, token: u64, frames: Vec<u8>) -> Requests {
        Requests { parts: vec![Part { line, token, bytes: frames.len() }], frames }
    }
}

impl<E: Env> Shard<E> {
    /// Sends a message behind the requests that were gathered for its receiver.
    pub(super) fn send(&self, target: usize, message: Message) {
        self.send_gathered(target);
        self.port.send(target, message);
    }

    /// Has `owner` execute whole frames of `line`, at the end of the turn at the latest. Its replies go to `token`.
    pub(super) fn forward(&self, owner: usize, line: u64, token: u64, frames: &[u8]) {
        let bytes = {
            let gathered = &mut self.outbound.borrow_mut()[owner];
            gathered.push(line, token, frames);
            gathered.frames.len()
        };
        if bytes >= BYTES_MAX {
            self.send_gathered(owner);
        }
    }

    /// The same at once, without a copy.
    pub(super) fn forward_whole(&self, owner: usize, line: u64, token: u64, frames: Vec<u8>) {
        self.send(owner, Message::Requests(Requests::whole(line, token, frames)));
    }

    /// Sends what was gathered for `owner`.
    fn send_gathered(&self, owner: usize) {
        let gathered = {
            let gathered = &mut self.outbound.borrow_mut()[owner];
            if gathered.is_empty() {
                return;
            }
            std::mem::take(gathered)
        };
        self.port.send(owner, Message::Requests(gathered));
    }

    /// Sends what was gathered for all owners.
    pub(super) fn send_all_gathered(&self) {
        (0..self.slots.shards).for_each(|owner| self.send_gathered(owner));
    }

    /// Executes what `source` has sent.
    pub(super) fn take_requests(self: &Rc<Self>, source: usize, requests: Requests) {
        let Requests { parts, mut frames } = requests;
        let at = |token| Origin { peer: source, token };
        if let [Part { line, token, .. }] = parts[..] {
            // It may be large, and have to be kept.
            return self.execute(at(line), at(token), Cow::Owned(std::mem::take(&mut frames)));
        }
        let mut rest = &frames[..];
        for Part { line, token, bytes } in parts {
            let (of_part, behind) = rest.split_at(bytes);
            self.execute(at(line), at(token), Cow::Borrowed(of_part));
            rest = behind;
        }
    }
}
