//! Many requests on the wire at once, to all shards together.

use std::collections::BTreeMap;
use std::ops::Range;

use super::batch::Batch;
use super::config::Backoff;
use super::connection::Connection;
use super::error::Error;
use super::response::{Response, unexpected};
use super::session::{Client, Options, SetOptions, check};
use crate::error::{Code, Refusal};
use crate::protocol::binary::{KeyList, encode_request};
use crate::protocol::{Deadline, Durability, OpCode, Request, Route};
use crate::slot::Slot;

/// Requests that are sent together. Those of one key take effect in the order in which they were added;
/// others in any order. A request that fails takes none of the others with it, unless their connection
/// broke.
pub struct Pipeline<'c> {
    client: &'c mut Client,
    /// All frames, one after another.
    frames: Vec<u8>,
    items: Vec<Item>,
    /// Of the first item; the others' follow.
    first_id: u64,
    results: Vec<Option<Result<Response, Error>>>,
}

struct Item {
    frame: Range<usize>,
    opcode: OpCode,
    slot: Option<Slot>,
    /// The lane that has to bring the reply.
    sent_on: Option<usize>,
}

/// What one connection has to do.
struct Lane {
    /// Tells it from the others of its round.
    number: usize,
    connection: Connection,
    /// Items in their order.
    queue: Vec<usize>,
    /// Where each of the queued items' frames ends in the connection's stream.
    frame_ends: Vec<u64>,
    unanswered: usize,
    unanswered_bytes: usize,
}

impl<'c> Pipeline<'c> {
    pub(super) fn new(client: &'c mut Client) -> Pipeline<'c> {
        Pipeline { client, frames: Vec::new(), items: Vec::new(), first_id: 0, results: Vec::new() }
    }

    /// How many requests were added.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether none was added.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Adds [`Client::ping`].
    pub fn ping(&mut self, payload: &[u8]) -> &mut Self {
        self.request(&Request::Ping { payload })
    }

    /// Adds [`Client::get`].
    pub fn get(&mut self, key: &[u8]) -> &mut Self {
        self.request(&Request::Get { key })
    }

    /// Adds [`Client::set`].
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> &mut Self {
        self.set_with(key, value, SetOptions::default())
    }

    /// Adds [`Client::set_with`].
    pub fn set_with(&mut self, key: &[u8], value: &[u8], options: impl Into<SetOptions>) -> &mut Self {
        self.request(&options.into().request(key, value))
    }

    /// Adds [`Client::expire`].
    pub fn expire(&mut self, key: &[u8], deadline: Deadline) -> &mut Self {
        self.expire_with(key, deadline, Options::default())
    }

    /// Adds [`Client::expire_with`].
    pub fn expire_with(&mut self, key: &[u8], deadline: Deadline, options: Options) -> &mut Self {
        let Options { condition, durability } = options;
        self.request(&Request::Expire { key, deadline, condition, durability })
    }

    /// Adds [`Client::persist`].
    pub fn persist(&mut self, key: &[u8]) -> &mut Self {
        self.persist_with(key, Options::default())
    }

    /// Adds [`Client::persist_with`].
    pub fn persist_with(&mut self, key: &[u8], options: Options) -> &mut Self {
        let Options { condition, durability } = options;
        self.request(&Request::Persist { key, condition, durability })
    }

    /// Adds [`Client::ttl`].
    pub fn ttl(&mut self, key: &[u8]) -> &mut Self {
        self.request(&Request::Ttl { key })
    }

    /// Adds [`Client::delete`].
    pub fn delete(&mut self, key: &[u8]) -> &mut Self {
        self.delete_with(key, Options::default())
    }

    /// Adds [`Client::delete_with`].
    pub fn delete_with(&mut self, key: &[u8], options: Options) -> &mut Self {
        let Options { condition, durability } = options;
        self.request(&Request::Delete { key, condition, durability })
    }

    /// Adds one MGET, which any one shard answers.
    pub fn mget<K: AsRef<[u8]>>(&mut self, keys: &[K]) -> &mut Self {
        let longest = self.client.topology().limits.key_bytes_max as usize;
        let mut list = KeyList::default();
        for key in keys.iter().map(K::as_ref) {
            if key.is_empty() || key.len() > longest {
                let message = format!("a key has 1 to {longest} bytes, not {}", key.len());
                return self.refused(OpCode::Mget, Refusal::new(Code::InvalidKey, message));
            }
            list.push(key);
        }
        self.request(&Request::Mget { keys: list.keys() })
    }

    /// Adds [`Client::incr`].
    pub fn incr(&mut self, key: &[u8], amount: i64) -> &mut Self {
        self.incr_with(key, amount, Durability::Default)
    }

    /// Adds [`Client::incr_with`].
    pub fn incr_with(&mut self, key: &[u8], amount: i64, durability: Durability) -> &mut Self {
        self.request(&Request::Incr { key, amount, durability })
    }

    /// Adds [`Client::batch`].
    pub fn batch(&mut self, batch: &Batch) -> &mut Self {
        self.request(&Request::Batch { ops: batch.ops.ops(), durability: batch.durability })
    }

    /// Adds [`Client::stats`].
    pub fn stats(&mut self, section: &str) -> &mut Self {
        self.request(&Request::Stats { section })
    }

    /// Adds a request. One that the server would refuse for its length is not sent.
    pub(super) fn request(&mut self, request: &Request<'_>) -> &mut Self {
        if let Err(refusal) = check(request, &self.client.topology().limits) {
            return self.refused(request.opcode(), refusal);
        }
        let slot = match request.route() {
            Route::Slot(slot) => Some(slot),
            // The list of one shard's keys, or of nobody's in particular: the first tells as much.
            Route::Keys(mut keys) => keys.next().map(Slot::of_key),
            Route::Anywhere | Route::Shard(_) | Route::Everywhere => None,
        };
        let id = self.next_id();
        let start = self.frames.len();
        encode_request(&mut self.frames, id, request);
        let frame = start..self.frames.len();
        self.items.push(Item { frame, opcode: request.opcode(), slot, sent_on: None });
        self.results.push(None);
        self
    }

    fn refused(&mut self, opcode: OpCode, refusal: Refusal) -> &mut Self {
        // It takes an id all the same, so that ids and items keep in step.
        self.next_id();
        self.items.push(Item { frame: 0..0, opcode, slot: None, sent_on: None });
        self.results.push(Some(Err(refusal.into())));
        self
    }

    fn next_id(&mut self) -> u64 {
        let id = self.client.next_id();
        if self.items.is_empty() {
            self.first_id = id;
        }
        id
    }

    /// Sends all requests and waits for all replies: a result for each request, in the order in which
    /// they were added. Reads are repeated if their connection breaks, writes never: one that may have
    /// arrived is an [`Error::UnknownOutcome`], and later ones of the same connection that did not
    /// arrive are [`Error::Disconnected`].
    pub fn run(mut self) -> Vec<Result<Response, Error>> {
        let mut backoff = Backoff::new(self.client.config());
        let mut todo: Vec<usize> = (0..self.items.len()).filter(|&at| self.results[at].is_none()).collect();
        while !todo.is_empty() {
            let mut lanes = self.open_lanes(&todo);
            while !lanes.is_empty() {
                lanes = self.advance(lanes);
            }
            // A read whose connection broke is worth another try, and so is all that never had one.
            todo.retain(|&at| match &self.results[at] {
                Some(Err(Error::Connect { .. })) => true,
                Some(Err(error)) => error.is_transport() && !self.items[at].opcode.is_write(),
                _ => false,
            });
            if todo.is_empty() || !backoff.wait() {
                break;
            }
            for &at in &todo {
                self.results[at] = None;
                self.items[at].sent_on = None;
            }
        }
        self.results.into_iter().map(|result| result.expect("each item was answered or failed")).collect()
    }

    /// Gives each item to the connection of its shard. Those whose connection cannot be made fail.
    fn open_lanes(&mut self, todo: &[usize]) -> Vec<Lane> {
        let mut places: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for &at in todo {
            places.entry(self.client.place_of(self.items[at].slot)).or_default().push(at);
        }
        let mut lanes = Vec::with_capacity(places.len());
        for queue in places.into_values() {
            let slot = queue.iter().find_map(|&at| self.items[at].slot);
            match self.client.checkout(slot) {
                Ok(connection) => lanes.push(Lane {
                    number: lanes.len(),
                    connection,
                    queue,
                    frame_ends: Vec::new(),
                    unanswered: 0,
                    unanswered_bytes: 0,
                }),
                Err(error) => queue.iter().for_each(|&at| self.results[at] = Some(Err(error.clone()))),
            }
        }
        lanes
    }

    /// Sends to each lane what its window takes, then takes in from each lane what has come. The lanes
    /// that have still something to do.
    fn advance(&mut self, mut lanes: Vec<Lane>) -> Vec<Lane> {
        let mut failed = Vec::new();
        for (at, lane) in lanes.iter_mut().enumerate() {
            if let Err(error) = self.send(lane) {
                failed.push((at, error));
            }
        }
        for (at, lane) in lanes.iter_mut().enumerate() {
            if !failed.iter().any(|&(failed, _)| failed == at)
                && let Err(error) = self.receive(lane)
            {
                failed.push((at, error));
            }
        }
        let mut unfinished = Vec::with_capacity(lanes.len());
        for (at, lane) in lanes.into_iter().enumerate() {
            match failed.iter().find(|&&(failed, _)| failed == at) {
                Some((_, error)) => self.fail(&lane, error),
                None if lane.is_done() => self.client.checkin(lane.connection),
                None => unfinished.push(lane),
            }
        }
        unfinished
    }

    /// Sends what the window takes. What is on its way to a server never exceeds what the server takes
    /// in without being read from, so neither waits for the other for ever.
    fn send(&mut self, lane: &mut Lane) -> Result<(), Error> {
        let limits = lane.connection.hello().limits;
        let window = self.client.config().window_bytes.min(limits.pipeline_bytes_max as usize);
        // Small steps would cost a system call each: wait until half of the window is free.
        if lane.unanswered_bytes > window / 2 {
            return Ok(());
        }
        while let Some(&at) = lane.queue.get(lane.frame_ends.len()) {
            let frame = self.items[at].frame.clone();
            if lane.unanswered > 0 && lane.unanswered_bytes + frame.len() > window {
                break;
            }
            self.items[at].sent_on = Some(lane.number);
            lane.unanswered += 1;
            lane.unanswered_bytes += frame.len();
            lane.connection.queue_frames(&self.frames[frame]);
            lane.frame_ends.push(lane.connection.queued_bytes());
        }
        lane.connection.flush()
    }

    /// Waits for a reply, then takes all that are there.
    fn receive(&mut self, lane: &mut Lane) -> Result<(), Error> {
        if lane.unanswered == 0 {
            return Ok(());
        }
        let mut next = Some(lane.connection.receive()?);
        while let Some((header, reply)) = next {
            let address = &self.client.config().address;
            let at = usize::try_from(header.request_id.wrapping_sub(self.first_id)).unwrap_or(usize::MAX);
            let item = self.items.get_mut(at).filter(|item| item.sent_on == Some(lane.number));
            let Some(item) = item.filter(|item| header.opcode == Some(item.opcode)) else {
                return Err(unexpected(address));
            };
            item.sent_on = None;
            lane.unanswered -= 1;
            lane.unanswered_bytes -= item.frame.len();
            self.results[at] = Some(Response::of_reply(item.opcode, reply, address));
            self.client.see_epoch(header.epoch);
            next = if lane.unanswered > 0 { lane.connection.receive_buffered()? } else { None };
        }
        Ok(())
    }

    /// Gives the cause to all that a broken connection left without an answer.
    fn fail(&mut self, lane: &Lane, error: &Error) {
        let sent_bytes = lane.connection.sent_bytes();
        for (position, &at) in lane.queue.iter().enumerate() {
            if self.results[at].is_none() {
                let was_sent = lane.frame_ends.get(position).is_some_and(|&end| end <= sent_bytes);
                let is_write = self.items[at].opcode.is_write();
                self.results[at] = Some(Err(error.clone().of_request(is_write, was_sent)));
            }
        }
    }
}

impl Lane {
    fn is_done(&self) -> bool {
        self.unanswered == 0 && self.frame_ends.len() == self.queue.len()
    }
}
