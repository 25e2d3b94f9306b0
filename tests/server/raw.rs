//! A connection that does what a client should not: frames by hand, and no care for replies.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use atlaskv::base::Lsn;
use atlaskv::error::Code;
use atlaskv::protocol::binary::{HEADER_BYTES, Status, decode_reply, decode_reply_header, encode_request};
use atlaskv::protocol::{Condition, Durability, Expiry, HelloRequest, Reply, Request};

/// Longer than anything takes: a server that leaves someone waiting must fail the test, not stop it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Replies are no longer than this.
const FRAME_BYTES_MAX: u32 = 64 << 20;

/// A connection.
pub struct Raw {
    pub stream: TcpStream,
    pub received: Vec<u8>,
}

/// A reply, as far as these tests look.
pub struct Answer {
    pub id: u64,
    pub status: u16,
    pub version: Lsn,
    /// Of a value; of a list of values all of them, absent ones empty.
    pub values: Vec<Vec<u8>>,
    /// Of HELLO: the shard.
    pub shard: Option<u16>,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lengths: Vec<_> = self.values.iter().map(Vec::len).collect();
        write!(f, "reply {} with status {} and values of {lengths:?} bytes", self.id, self.status)
    }
}

impl Answer {
    /// The code, if it is a refusal.
    pub fn refusal(&self) -> Option<Code> {
        Code::from_u16(self.status)
    }
}

/// A request's frame.
pub fn frame(id: u64, request: &Request<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_request(&mut bytes, id, request);
    bytes
}

/// A SET without a condition.
pub fn set<'a>(key: &'a [u8], value: &'a [u8]) -> Request<'a> {
    Request::Set {
        key,
        value,
        expiry: Expiry::Never,
        condition: Condition::None,
        durability: Durability::Default,
    }
}

impl Raw {
    pub fn connect(address: SocketAddr) -> Raw {
        let stream = TcpStream::connect(address).expect("the server listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout that is not zero");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout that is not zero");
        stream.set_nodelay(true).expect("a TCP socket");
        Raw { stream, received: Vec::new() }
    }

    /// Sends a request and waits for its reply.
    pub fn ask(&mut self, id: u64, request: &Request<'_>) -> io::Result<Answer> {
        self.stream.write_all(&frame(id, request))?;
        self.answer()
    }

    pub fn ping(&mut self, id: u64) -> io::Result<()> {
        let answer = self.ask(id, &Request::Ping { payload: b"ping" })?;
        assert_eq!((answer.id, answer.status), (id, 0));
        Ok(())
    }

    pub fn set(&mut self, id: u64, key: &[u8], value: &[u8]) -> io::Result<Answer> {
        self.ask(id, &set(key, value))
    }

    pub fn get(&mut self, id: u64, key: &[u8]) -> io::Result<Answer> {
        self.ask(id, &Request::Get { key })
    }

    /// Sends a PING and leaves its reply for later.
    pub fn ping_behind(&mut self, id: u64) {
        self.stream.write_all(&frame(id, &Request::Ping { payload: b"later" })).expect("the server reads");
    }

    /// Whether this connection is served rather than refused.
    pub fn ping_if_served(&mut self) -> bool {
        self.ask(1, &Request::Ping { payload: b"" }).is_ok_and(|answer| answer.status == 0)
    }

    /// A reply that has come already.
    pub fn answer_if_any(&mut self) -> io::Result<Answer> {
        self.stream.set_nonblocking(true)?;
        self.answer()
    }

    /// Asks for a shard.
    pub fn hello(&mut self, id: u64, shard: Option<u16>) -> io::Result<Answer> {
        self.ask(id, &Request::Hello(HelloRequest { version_min: 1, version_max: 1, shard }))
    }

    pub fn send_get(&mut self, id: u64, key: &[u8]) {
        self.stream.write_all(&frame(id, &Request::Get { key })).expect("the server reads");
    }

    /// The next reply.
    pub fn answer(&mut self) -> io::Result<Answer> {
        loop {
            let header = decode_reply_header(&self.received, FRAME_BYTES_MAX).map_err(io::Error::other)?;
            if let Some(header) = header
                && self.received.len() >= header.frame_bytes()
            {
                let body = self.received[HEADER_BYTES..header.frame_bytes()].to_vec();
                self.received.drain(..header.frame_bytes());
                let reply = decode_reply(&header, &body).map_err(io::Error::other)?;
                let values = match &reply {
                    Reply::Value { value, .. } => vec![value.to_vec()],
                    Reply::Values(values) => {
                        (*values).map(|value| value.map_or(Vec::new(), |v| v.value.to_vec())).collect()
                    }
                    _ => Vec::new(),
                };
                let shard = if let Reply::Hello(hello) = &reply { Some(hello.shard) } else { None };
                let status = Status::number(header.status);
                return Ok(Answer { id: header.request_id, status, version: header.version, values, shard });
            }
            let mut piece = [0; 64 << 10];
            match self.stream.read(&mut piece)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.received.extend_from_slice(&piece[..count]),
            }
        }
    }
}
