//! The client: which connection a request takes, and what happens when one breaks.

use super::batch::Batch;
use super::config::{Backoff, Config, Patience};
use super::connection::Connection;
use super::error::Error;
use super::pipeline::Pipeline;
use super::response::{Counter, Outcome, Response, Ttl, Versioned, unexpected};
use super::scan::{KeyRange, Scan};
use crate::base::Lsn;
use crate::error::{Code, Refusal};
use crate::protocol::binary::{HEADER_BYTES, KeyList};
use crate::protocol::{
    ClientsAction, Condition, Deadline, DeleteRange, Durability, Expiry, Hello, Limits, Request, Route,
};
use crate::slot::Slot;

/// How a write is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// What must hold of the key.
    pub condition: Condition,
    /// When the write is answered.
    pub durability: Durability,
}

/// How a SET is to be done. Made from [`Options`], it takes the key's expiry away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetOptions {
    /// When the key expires.
    pub expiry: Expiry,
    /// What must hold of the key.
    pub condition: Condition,
    /// When the write is answered.
    pub durability: Durability,
}

impl From<Options> for SetOptions {
    fn from(options: Options) -> SetOptions {
        let Options { condition, durability } = options;
        SetOptions { expiry: Expiry::Never, condition, durability }
    }
}

/// A client of one server. See the module's documentation.
pub struct Client {
    config: Config,
    /// As the server told it last.
    topology: Hello,
    /// A reply named another slot table than `topology`.
    is_stale: bool,
    /// By shard; only the first is used when the client is not shard-aware.
    connections: Vec<Option<Connection>>,
    last_id: u64,
}

impl Client {
    /// Connects to any shard and learns the slot table; the other shards' connections are made when
    /// needed.
    ///
    /// # Errors
    /// [`Error::Connect`] and what the server says to HELLO.
    pub fn connect(config: Config) -> Result<Client, Error> {
        let mut backoff = Backoff::new(&config);
        let first = loop {
            match Connection::open(&config, None) {
                Err(error) if error.is_transport() && backoff.wait() => {}
                result => break result?,
            }
        };
        let topology = first.hello().clone();
        let mut client = Client { config, topology, is_stale: false, connections: Vec::new(), last_id: 0 };
        client.resize();
        let at = client.place(first.hello().shard);
        client.connections[at] = Some(first);
        Ok(client)
    }

    /// What the server said of itself last: its limits, its shards and their slots.
    pub fn topology(&self) -> &Hello {
        &self.topology
    }

    /// How it was set up.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Sends `payload` to the server and back.
    pub fn ping(&mut self, payload: &[u8]) -> Result<Vec<u8>, Error> {
        match self.call(&Request::Ping { payload })? {
            Response::Pong(payload) => Ok(payload),
            _ => Err(self.unexpected()),
        }
    }

    /// A key's value and version; `None` when it is absent.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<Versioned>, Error> {
        match self.call(&Request::Get { key })? {
            Response::Value(value) => Ok(value),
            _ => Err(self.unexpected()),
        }
    }

    /// Stores a value whatever was there, for ever; its version.
    pub fn set(&mut self, key: &[u8], value: &[u8]) -> Result<Lsn, Error> {
        match self.set_with(key, value, SetOptions::default())? {
            Outcome::Written { version } => Ok(version),
            _ => Err(self.unexpected()),
        }
    }

    /// Stores a value, perhaps under a condition or for some time only. Takes [`Options`] as well, which say
    /// nothing of an expiry.
    pub fn set_with(
        &mut self,
        key: &[u8],
        value: &[u8],
        options: impl Into<SetOptions>,
    ) -> Result<Outcome, Error> {
        self.write(&options.into().request(key, value))
    }

    /// Sets the time when a key expires, whether it had one or not; whether the key was there. A time that
    /// is past removes it.
    pub fn expire(&mut self, key: &[u8], deadline: Deadline) -> Result<bool, Error> {
        let outcome = self.expire_with(key, deadline, Options::default())?;
        self.was_present(outcome)
    }

    /// Sets the time when a key expires, perhaps under a condition; [`Condition::IfAbsent`] is refused. The
    /// key keeps its value and gets a new version.
    pub fn expire_with(
        &mut self,
        key: &[u8],
        deadline: Deadline,
        options: Options,
    ) -> Result<Outcome, Error> {
        let Options { condition, durability } = options;
        self.write(&Request::Expire { key, deadline, condition, durability })
    }

    /// Lets a key live for ever; whether it was there.
    pub fn persist(&mut self, key: &[u8]) -> Result<bool, Error> {
        let outcome = self.persist_with(key, Options::default())?;
        self.was_present(outcome)
    }

    /// Lets a key live for ever, perhaps under a condition; [`Condition::IfAbsent`] is refused. The key keeps
    /// its value and gets a new version, unless it had no expiry: then nothing changes, and the outcome has
    /// the version that is there.
    pub fn persist_with(&mut self, key: &[u8], options: Options) -> Result<Outcome, Error> {
        let Options { condition, durability } = options;
        self.write(&Request::Persist { key, condition, durability })
    }

    /// How long a key still lives; `None` when it is absent.
    pub fn ttl(&mut self, key: &[u8]) -> Result<Option<Ttl>, Error> {
        match self.call(&Request::Ttl { key })? {
            Response::Ttl(ttl) => Ok(ttl),
            _ => Err(self.unexpected()),
        }
    }

    /// What a write of an existing key without a condition tells.
    fn was_present(&self, outcome: Outcome) -> Result<bool, Error> {
        match outcome {
            Outcome::Written { .. } => Ok(true),
            Outcome::Absent => Ok(false),
            Outcome::ConditionFailed { .. } | Outcome::BatchFailed { .. } => Err(self.unexpected()),
        }
    }

    /// Removes a key; whether it was there.
    pub fn delete(&mut self, key: &[u8]) -> Result<bool, Error> {
        let outcome = self.delete_with(key, Options::default())?;
        self.was_present(outcome)
    }

    /// Removes a key, perhaps under a condition; [`Condition::IfAbsent`] is refused.
    pub fn delete_with(&mut self, key: &[u8], options: Options) -> Result<Outcome, Error> {
        let Options { condition, durability } = options;
        self.write(&Request::Delete { key, condition, durability })
    }

    /// Applies all of a batch or nothing: [`Outcome::Written`] with the version of its first write, or
    /// [`Outcome::BatchFailed`], which no batch without conditions is.
    pub fn batch(&mut self, batch: &Batch) -> Result<Outcome, Error> {
        self.write(&Request::Batch { ops: batch.ops.ops(), durability: batch.durability })
    }

    /// Adds to the decimal number that the key holds, an absent key counting as 0.
    pub fn incr(&mut self, key: &[u8], amount: i64) -> Result<Counter, Error> {
        self.incr_with(key, amount, Durability::Default)
    }

    /// Adds to the decimal number that the key holds, with a say in when that is answered.
    pub fn incr_with(&mut self, key: &[u8], amount: i64, durability: Durability) -> Result<Counter, Error> {
        match self.call(&Request::Incr { key, amount, durability })? {
            Response::Counter(counter) => Ok(counter),
            _ => Err(self.unexpected()),
        }
    }

    /// Values and versions of several keys, in their order. Each value is current when it is read; they
    /// are not read at one moment.
    pub fn mget<K: AsRef<[u8]>>(&mut self, keys: &[K]) -> Result<Vec<Option<Versioned>>, Error> {
        // One request per shard, on their way together, and no shard reads for another.
        let mut lists: Vec<(KeyList, Vec<usize>)> = Vec::new();
        lists.resize_with(self.connections.len(), Default::default);
        for (position, key) in keys.iter().enumerate() {
            let key = key.as_ref();
            check_key(key, &self.topology.limits)?;
            let (list, positions) = &mut lists[self.place_of(Some(Slot::of_key(key)))];
            list.push(key);
            positions.push(position);
        }
        lists.retain(|(list, _)| !list.is_empty());
        let mut pipeline = self.pipeline();
        for (list, _) in &lists {
            pipeline.request(&Request::Mget { keys: list.keys() });
        }
        let mut found = vec![None; keys.len()];
        let responses = pipeline.run();
        for (response, (_, positions)) in responses.into_iter().zip(lists) {
            match response? {
                Response::Values(values) if values.len() == positions.len() => {
                    for (value, position) in values.into_iter().zip(positions) {
                        found[position] = value;
                    }
                }
                _ => return Err(self.unexpected()),
            }
        }
        Ok(found)
    }

    /// Figures as lines of `key=value`: all of them, or one section.
    pub fn stats(&mut self, section: &str) -> Result<String, Error> {
        match self.call(&Request::Stats { section })? {
            Response::Stats(text) => Ok(text),
            _ => Err(self.unexpected()),
        }
    }

    /// Moves, splits or spreads tablets, as the command says in words (see [`crate::protocol::binary`]); what
    /// came of it as lines of `key=value`. May take as long as writing what is in memory to disk.
    pub fn tablets(&mut self, command: &str) -> Result<String, Error> {
        match self.call(&Request::Tablets { command })? {
            Response::Stats(text) => Ok(text),
            _ => Err(self.unexpected()),
        }
    }

    /// Has the server make a checkpoint in `dir`, an absolute path on its machine; what came of it as lines of
    /// `key=value`. Takes as long as writing what is in memory to disk.
    pub fn checkpoint(&mut self, dir: &str) -> Result<String, Error> {
        match self.call(&Request::Checkpoint { dir })? {
            Response::Stats(text) => Ok(text),
            _ => Err(self.unexpected()),
        }
    }

    /// Requests that are sent together.
    pub fn pipeline(&mut self) -> Pipeline<'_> {
        Pipeline::new(self)
    }

    /// The keys of a range in order, page by page. See [`Scan`].
    pub fn scan(&mut self, range: KeyRange) -> Scan<'_> {
        Scan::new(self, range)
    }

    /// Removes the keys of a range, in time that does not depend on how many they are. A range of everything is
    /// refused: that is what [`Client::flush_all`] is for.
    ///
    /// Every shard does its part by itself. After [`Code::PartlyDone`] some have and others have not, and repeating it
    /// does the rest; the client has done that for as long as [`Config::overload_patience`] says.
    pub fn delete_range(&mut self, range: &KeyRange) -> Result<(), Error> {
        self.delete_range_with(range, Durability::Default)
    }

    /// As [`Client::delete_range`], with a say in when that is answered.
    pub fn delete_range_with(&mut self, range: &KeyRange, durability: Durability) -> Result<(), Error> {
        let (start, end) = range.bounds();
        let range = DeleteRange { start, end, is_local: false, epoch: 0, durability };
        if range.is_everything() {
            let message = "this range is everything; flush_all removes that";
            return Err(Refusal::new(Code::Malformed, message).into());
        }
        self.remove(range)
    }

    /// Removes all keys.
    pub fn flush_all(&mut self) -> Result<(), Error> {
        self.flush_all_with(Durability::Default)
    }

    /// As [`Client::flush_all`], with a say in when that is answered.
    pub fn flush_all_with(&mut self, durability: Durability) -> Result<(), Error> {
        self.remove(DeleteRange { durability, ..DeleteRange::default() })
    }

    fn remove(&mut self, range: DeleteRange<'_>) -> Result<(), Error> {
        match self.call(&Request::DeleteRange(range))? {
            Response::Done => Ok(()),
            _ => Err(self.unexpected()),
        }
    }

    fn write(&mut self, request: &Request<'_>) -> Result<Outcome, Error> {
        match self.call(request)? {
            Response::Outcome(outcome) => Ok(outcome),
            _ => Err(self.unexpected()),
        }
    }

    /// One request, repeated on a broken connection if that is harmless, and while the server is overloaded.
    fn call(&mut self, request: &Request<'_>) -> Result<Response, Error> {
        check(request, &self.topology.limits)?;
        let mut backoff = Backoff::new(&self.config);
        let mut patience = Patience::new(&self.config);
        loop {
            let mut was_sent = false;
            match self.call_once(request, &mut was_sent) {
                // Of the first nothing was done; the second does what is left.
                Err(Error::Refused(Refusal { code: Code::Overloaded | Code::PartlyDone, .. }))
                    if patience.wait() => {}
                Err(error) if error.is_transport() && !(was_sent && request.is_write()) && backoff.wait() => {
                }
                result => return result.map_err(|error| error.of_request(request.is_write(), was_sent)),
            }
        }
    }

    /// One request on one connection. `was_sent` becomes true as soon as the server may have it whole,
    /// and false again when its reply is there, which tells what became of it.
    fn call_once(&mut self, request: &Request<'_>, was_sent: &mut bool) -> Result<Response, Error> {
        let slot = match request.route() {
            Route::Slot(slot) => Some(slot),
            Route::Anywhere | Route::Shard(_) | Route::Keys(_) | Route::Everywhere => None,
        };
        let id = self.next_id();
        let mut connection = self.checkout(slot)?;
        connection.queue(id, request);
        let frame_end = connection.queued_bytes();
        let flushed = connection.flush();
        *was_sent = connection.sent_bytes() >= frame_end;
        flushed?;
        let (header, reply) = connection.receive()?;
        if header.request_id != id || header.opcode != Some(request.opcode()) {
            return Err(self.unexpected());
        }
        *was_sent = false;
        let response = Response::of_reply(request.opcode(), reply, &self.config.address);
        self.see_epoch(header.epoch);
        self.checkin(connection);
        response
    }

    /// Takes a connection for a key of `slot`, or any; made anew if it is not there or broke while idle.
    /// The slot table is brought up to date first. Who is done with it and found it sound returns it with
    /// [`Client::checkin`].
    pub(super) fn checkout(&mut self, slot: Option<Slot>) -> Result<Connection, Error> {
        if self.is_stale {
            self.refresh()?;
        }
        let place = self.place_of(slot);
        let idle = self.connections[place].take().filter(Connection::is_alive);
        let connection = match idle {
            Some(connection) => connection,
            None => self.open(place)?,
        };
        Ok(connection)
    }

    /// Makes the connection for a place.
    fn open(&mut self, place: usize) -> Result<Connection, Error> {
        let wanted = u16::try_from(place).ok().filter(|_| self.config.is_shard_aware);
        let connection = match Connection::open(&self.config, wanted) {
            // The server came back with fewer shards.
            Err(Error::Refused(refusal)) if refusal.code == Code::NoSuchShard => {
                Connection::open(&self.config, None)?
            }
            result => result?,
        };
        self.adopt(connection.hello().clone());
        Ok(connection)
    }

    /// Puts a connection back for the next request. A place that is taken or gone drops it.
    pub(super) fn checkin(&mut self, connection: Connection) {
        let place = self.place(connection.hello().shard);
        self.connections[place].get_or_insert(connection);
    }

    /// Asks for the slot table. A connection that fails in this is dropped; the next one that is made
    /// brings the table.
    fn refresh(&mut self) -> Result<(), Error> {
        let id = self.next_id();
        let Some(mut connection) = self.connections.iter_mut().find_map(Option::take) else { return Ok(()) };
        match connection.greet(id, None) {
            Ok(hello) => {
                let hello = hello.clone();
                self.adopt(hello);
                self.checkin(connection);
                Ok(())
            }
            Err(error) if error.is_transport() => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn adopt(&mut self, hello: Hello) {
        self.is_stale = false;
        self.topology = hello;
        self.resize();
    }

    fn resize(&mut self) {
        let count = if self.config.is_shard_aware { self.topology.shard_count.max(1) } else { 1 };
        self.connections.resize_with(usize::from(count), || None);
    }

    /// Marks the slot table as outdated if a reply names another.
    pub(super) fn see_epoch(&mut self, epoch: u32) {
        self.is_stale |= epoch != self.topology.epoch as u32;
    }

    /// The place of the connection to a shard.
    fn place(&self, shard: u16) -> usize {
        usize::from(shard).min(self.connections.len() - 1)
    }

    /// The place of the connection for a key of `slot`; of one that stands, if any will do.
    pub(super) fn place_of(&self, slot: Option<Slot>) -> usize {
        match slot.and_then(|slot| self.topology.shard_of(slot)) {
            Some(shard) => self.place(shard),
            None => self.connections.iter().position(Option::is_some).unwrap_or(0),
        }
    }

    /// An id that was not used before. Never 0.
    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    fn unexpected(&self) -> Error {
        unexpected(&self.config.address)
    }
}

impl SetOptions {
    pub(super) fn request<'a>(self, key: &'a [u8], value: &'a [u8]) -> Request<'a> {
        let SetOptions { expiry, condition, durability } = self;
        Request::Set { key, value, expiry, condition, durability }
    }
}

pub(super) fn check_key(key: &[u8], limits: &Limits) -> Result<(), Refusal> {
    if key.is_empty() || key.len() > limits.key_bytes_max as usize {
        let message = format!("a key has 1 to {} bytes, not {}", limits.key_bytes_max, key.len());
        return Err(Refusal::new(Code::InvalidKey, message));
    }
    Ok(())
}

/// Refuses what the server would refuse for its length, without sending it: a frame that is too long
/// would cost the connection.
pub(super) fn check(request: &Request<'_>, limits: &Limits) -> Result<(), Refusal> {
    let too_large = |len: usize, limit: u32, code, what: &str| {
        let message = format!("{what} of {len} bytes is more than the {limit} allowed by the server");
        if len > limit as usize { Err(Refusal::new(code, message)) } else { Ok(()) }
    };
    let too_many = |len: usize| {
        let message = format!("{len} items in one request are more than the {} allowed", limits.items_max);
        if len > limits.items_max as usize { Err(Refusal::new(Code::BatchTooLarge, message)) } else { Ok(()) }
    };
    match *request {
        Request::Get { key }
        | Request::Delete { key, .. }
        | Request::Incr { key, .. }
        | Request::Expire { key, .. }
        | Request::Persist { key, .. }
        | Request::Ttl { key } => check_key(key, limits),
        Request::Set { key, value, .. } => {
            check_key(key, limits)?;
            too_large(value.len(), limits.value_bytes_max, Code::ValueTooLarge, "a value")
        }
        Request::Ping { payload } => {
            too_large(payload.len(), limits.value_bytes_max, Code::ValueTooLarge, "a payload")
        }
        Request::Stats { section } => {
            too_large(section.len(), limits.key_bytes_max, Code::UnknownSection, "a section name")
        }
        Request::Checkpoint { dir } => {
            too_large(dir.len(), limits.key_bytes_max, Code::InvalidOption, "a path")
        }
        Request::Tablets { command } => {
            too_large(command.len(), limits.key_bytes_max, Code::InvalidOption, "a command")
        }
        Request::Mget { keys } => {
            too_many(keys.len())?;
            let frame_bytes = HEADER_BYTES + 4 + keys.wire_bytes().len();
            too_large(frame_bytes, limits.frame_bytes_max, Code::BatchTooLarge, "a request")
        }
        Request::Batch { ops, .. } => {
            if ops.is_empty() {
                return Err(Refusal::new(Code::Malformed, "the batch is empty"));
            }
            too_many(ops.len())?;
            too_large(ops.wire_bytes().len(), limits.batch_bytes_max, Code::BatchTooLarge, "a batch")
        }
        Request::Scan(scan) => {
            let longest = scan.start.len().max(scan.end.len());
            too_large(longest, limits.key_bytes_max, Code::InvalidKey, "a bound of a scan")
        }
        Request::DeleteRange(range) => {
            let longest = range.start.len().max(range.end.len());
            too_large(longest, limits.key_bytes_max, Code::InvalidKey, "a bound of a range")?;
            if !range.end.is_empty() && range.start >= range.end {
                return Err(Refusal::new(Code::Malformed, "the range ends where it starts, or before"));
            }
            Ok(())
        }
        Request::Transact(transaction) => check_key(transaction.key, limits),
        Request::Clients(clients) => match clients.action {
            ClientsAction::Disconnect(ids) => too_many(ids.len()),
            ClientsAction::Pause { .. } | ClientsAction::Unpause => Ok(()),
        },
        Request::Hello(_) => Ok(()),
    }
}
