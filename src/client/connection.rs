//! One socket: frames out, replies in. Knows no retries and no other connection.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::config::Config;
use super::error::Error;
use super::response::unexpected;
use crate::error::{Code, Refusal};
use crate::protocol::binary::{
    HEADER_BYTES, ReplyError, ReplyHeader, VERSION, decode_reply, decode_reply_header, encode_request,
};
use crate::protocol::{Hello, HelloRequest, Limits, Reply, Request};

/// Bytes asked of the socket at a time, unless a reply is longer.
const READ_BYTES: usize = 64 << 10;
/// A buffer that grew beyond this for one large reply or request is given back.
const BUFFER_BYTES_KEPT: usize = 2 << 20;

/// One connection, greeted. Requests are queued, then flushed together; replies come in any order and
/// carry the ids that the caller chose. After any error but a refusal it is of no more use.
pub struct Connection {
    stream: TcpStream,
    address: String,
    hello: Hello,
    read_timeout: Duration,
    write_timeout: Duration,
    /// Received bytes are `input[start..end]`.
    input: Vec<u8>,
    start: usize,
    end: usize,
    output: Vec<u8>,
    /// Bytes that the socket took, ever.
    sent_bytes: u64,
    last_used: Instant,
}

impl Connection {
    /// Connects and says HELLO, asking for `shard` if it is given.
    pub fn open(config: &Config, shard: Option<u16>) -> Result<Connection, Error> {
        let stream = connect(config)
            .map_err(|source| Error::Connect { address: config.address.clone(), source: Arc::new(source) })?;
        let mut connection = Connection {
            stream,
            address: config.address.clone(),
            hello: Hello {
                version: VERSION,
                shard_count: 1,
                shard: 0,
                epoch: 0,
                // Until HELLO is answered.
                limits: Limits { frame_bytes_max: Limits::FRAME_BYTES_LIMIT, ..Limits::for_values(0) },
                ranges: Vec::new(),
            },
            read_timeout: config.connect_timeout,
            write_timeout: config.write_timeout,
            input: Vec::new(),
            start: 0,
            end: 0,
            output: Vec::new(),
            sent_bytes: 0,
            last_used: Instant::now(),
        };
        connection.greet(1, shard)?;
        connection.read_timeout = config.read_timeout;
        connection.set_read_timeout(config.read_timeout)?;
        Ok(connection)
    }

    /// Says HELLO, perhaps once more, while no other request is without its reply.
    pub(super) fn greet(&mut self, request_id: u64, shard: Option<u16>) -> Result<&Hello, Error> {
        let hello = HelloRequest { version_min: VERSION, version_max: VERSION, shard };
        self.queue(request_id, &Request::Hello(hello));
        self.flush()?;
        let (header, reply) = self.receive()?;
        match reply {
            Reply::Hello(mut hello) if header.request_id == request_id => {
                let frame_bytes = &mut hello.limits.frame_bytes_max;
                *frame_bytes = (*frame_bytes).min(Limits::FRAME_BYTES_LIMIT);
                self.hello = hello;
                Ok(&self.hello)
            }
            Reply::Refused(refusal) => Err(Error::Refused(refusal)),
            _ => Err(unexpected(&self.address)),
        }
    }

    /// What the server said of itself.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Adds a request to those that the next [`Connection::flush`] sends. Id 0 is not for requests. It is
    /// for the caller to keep to the server's limits: neither larger requests than it takes, nor more
    /// bytes without a reply than its pipeline holds.
    ///
    /// # Panics
    /// If a length does not fit the frame: see [`encode_request`].
    pub fn queue(&mut self, request_id: u64, request: &Request<'_>) {
        encode_request(&mut self.output, request_id, request);
    }

    /// Adds frames that are encoded already.
    pub(super) fn queue_frames(&mut self, frames: &[u8]) {
        self.output.extend_from_slice(frames);
    }

    /// Sends what is queued.
    pub fn flush(&mut self) -> Result<(), Error> {
        let mut written = 0;
        while written < self.output.len() {
            match self.stream.write(&self.output[written..]) {
                Ok(0) => return Err(self.lost(ErrorKind::WriteZero.into())),
                Ok(count) => {
                    written += count;
                    self.sent_bytes += count as u64;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if is_timeout(&error) => return Err(self.timeout(self.write_timeout)),
                Err(error) => return Err(self.lost(error)),
            }
        }
        self.output.clear();
        self.output.shrink_to(BUFFER_BYTES_KEPT);
        self.last_used = Instant::now();
        Ok(())
    }

    /// Bytes that the socket took and that the queue holds, ever: where in the stream the next queued
    /// frame begins.
    pub(super) fn queued_bytes(&self) -> u64 {
        self.sent_bytes + self.output.len() as u64
    }

    /// Bytes that the socket took, ever. A frame that ends beyond has not reached the server whole. Of
    /// use after a failed flush.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Waits for a reply to any of the requests. A refusal of the connection itself, which has id 0 or is a
    /// line of text, is an error.
    pub fn receive(&mut self) -> Result<(ReplyHeader, Reply<'_>), Error> {
        let asked_at = Instant::now();
        let header = loop {
            if let Some(header) = self.peek_header()? {
                break header;
            }
            self.fill(asked_at)?;
        };
        self.take(header)
    }

    /// Waits for a reply like [`Connection::receive`], and has `look` see each part of its body that has arrived
    /// meanwhile, until it has a request to be sent at once.
    pub(super) fn receive_ahead(
        &mut self,
        mut look: impl FnMut(&ReplyHeader, &[u8]) -> Option<Vec<u8>>,
    ) -> Result<(ReplyHeader, Reply<'_>), Error> {
        let asked_at = Instant::now();
        let mut is_looking = true;
        let header = loop {
            if let Some(header) = self.peek_header()? {
                break header;
            }
            let request = if is_looking {
                self.peek_part().and_then(|(header, part)| look(&header, part))
            } else {
                None
            };
            if let Some(frame) = request {
                is_looking = false;
                self.queue_frames(&frame);
                self.flush()?;
            }
            self.fill(asked_at)?;
        };
        self.take(header)
    }

    /// The header of a reply that is on its way, and what has arrived of its body.
    fn peek_part(&self) -> Option<(ReplyHeader, &[u8])> {
        let received = &self.input[self.start..self.end];
        let header = decode_reply_header(received, self.hello.limits.frame_bytes_max).ok()??;
        Some((header, received.get(HEADER_BYTES..)?))
    }

    /// A reply that has arrived already, if there is one.
    pub fn receive_buffered(&mut self) -> Result<Option<(ReplyHeader, Reply<'_>)>, Error> {
        match self.peek_header()? {
            Some(header) => self.take(header).map(Some),
            None => Ok(None),
        }
    }

    /// The header of a reply that is whole in the buffer.
    fn peek_header(&mut self) -> Result<Option<ReplyHeader>, Error> {
        let received = &self.input[self.start..self.end];
        let header = decode_reply_header(received, self.hello.limits.frame_bytes_max);
        let header = header.map_err(|error| self.not_understood(error))?;
        let missing = |header: &ReplyHeader| header.frame_bytes().saturating_sub(self.end - self.start);
        match header {
            Some(header) if missing(&header) == 0 => Ok(Some(header)),
            Some(header) => {
                let missing = missing(&header);
                self.make_room(missing);
                Ok(None)
            }
            None => Ok(None),
        }
    }

    fn take(&mut self, header: ReplyHeader) -> Result<(ReplyHeader, Reply<'_>), Error> {
        let body = self.start + HEADER_BYTES..self.start + header.frame_bytes();
        self.start = body.end;
        self.last_used = Instant::now();
        let address = &self.address;
        let reply = decode_reply(&header, &self.input[body])
            .map_err(|source| Error::Protocol { address: address.clone(), source })?;
        match reply {
            Reply::Refused(refusal) if header.request_id == 0 => Err(Error::Refused(refusal)),
            reply => Ok((header, reply)),
        }
    }

    /// Reads once.
    fn fill(&mut self, asked_at: Instant) -> Result<(), Error> {
        self.make_room(1);
        match self.stream.read(&mut self.input[self.end..]) {
            Ok(0) => Err(self.lost(io::Error::new(ErrorKind::UnexpectedEof, "the server closed it"))),
            Ok(count) => {
                self.end += count;
                Ok(())
            }
            Err(error)
                if error.kind() == ErrorKind::Interrupted && asked_at.elapsed() < self.read_timeout =>
            {
                Ok(())
            }
            Err(error) if is_timeout(&error) || error.kind() == ErrorKind::Interrupted => {
                Err(self.timeout(self.read_timeout))
            }
            Err(error) => Err(self.lost(error)),
        }
    }

    /// Makes room for `bytes` behind what was received. Bounded: the caller checked the frame's length.
    fn make_room(&mut self, bytes: usize) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.input.len() > BUFFER_BYTES_KEPT && bytes <= READ_BYTES {
                self.input.truncate(READ_BYTES);
                self.input.shrink_to_fit();
            }
        }
        if self.input.len() - self.end >= bytes {
            return;
        }
        self.input.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let wanted = self.end + bytes.max(READ_BYTES);
        if self.input.len() < wanted {
            self.input.resize(wanted, 0);
        }
    }

    /// Whether the connection stands, as far as can be told without a request. Worth asking before a
    /// write on a connection that was idle: a server that closed it takes the write's bytes no more, but
    /// the socket does, and then nobody knows what became of it.
    pub(super) fn is_alive(&self) -> bool {
        const IDLE: Duration = Duration::from_millis(100);
        if self.last_used.elapsed() < IDLE {
            return true;
        }
        if self.stream.set_nonblocking(true).is_err() {
            return false;
        }
        let peeked = self.stream.peek(&mut [0]);
        let is_restored = self.stream.set_nonblocking(false).is_ok();
        // Bytes that nobody asked for can only be the refusal that comes before the end.
        is_restored && matches!(peeked, Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    fn set_read_timeout(&self, timeout: Duration) -> Result<(), Error> {
        self.stream.set_read_timeout(Some(timeout)).map_err(|error| self.lost(error))
    }

    fn lost(&self, source: io::Error) -> Error {
        Error::Disconnected { address: self.address.clone(), source: Arc::new(source) }
    }

    fn timeout(&self, after: Duration) -> Error {
        Error::Timeout { address: self.address.clone(), after }
    }

    fn not_understood(&self, error: ReplyError) -> Error {
        match error {
            ReplyError::TooManyConnections => {
                Error::Refused(Refusal::new(Code::TooManyConnections, error.to_string()))
            }
            source => Error::Protocol { address: self.address.clone(), source },
        }
    }
}

/// What a read or write says when its time is up; which of the two depends on the system.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn connect(config: &Config) -> io::Result<TcpStream> {
    let mut failure = io::Error::new(ErrorKind::InvalidInput, "the name has no address; give host:port");
    for address in config.address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, config.connect_timeout) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(config.connect_timeout))?;
                stream.set_write_timeout(Some(config.write_timeout))?;
                return Ok(stream);
            }
            Err(error) => failure = error,
        }
    }
    Err(failure)
}
