//! A connection that speaks RESP: commands as they are sent, and replies both as they came, byte for byte,
//! and as what they mean.

use std::fmt::{self, Display, Formatter};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

/// A server that says nothing for this long hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// What surely fits between two sockets of this machine, so that no thread is needed to write it.
const WRITTEN_AT_ONCE: usize = 32 << 10;

/// Characters of an argument or reply that a report shows.
const SHOWN: usize = 160;

/// A command: its name and arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Command(pub Vec<Vec<u8>>);

impl Command {
    /// Of words.
    pub fn of(words: &[&[u8]]) -> Command {
        Command(words.iter().map(|word| word.to_vec()).collect())
    }

    /// Of a line whose words are separated by one blank; two blanks are an empty word between them.
    pub fn line(line: &str) -> Command {
        Command(line.split(' ').map(|word| word.as_bytes().to_vec()).collect())
    }

    /// Its name in small letters.
    pub fn name(&self) -> String {
        self.word(0)
    }

    /// An argument in small letters, empty if there is none.
    pub fn word(&self, index: usize) -> String {
        self.0.get(index).map(|word| String::from_utf8_lossy(word).to_ascii_lowercase()).unwrap_or_default()
    }

    /// As an array of bulk strings.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("*{}\r\n", self.0.len()).as_bytes());
        for word in &self.0 {
            out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            out.extend_from_slice(word);
            out.extend_from_slice(b"\r\n");
        }
    }
}

impl Display for Command {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        for (index, word) in self.0.iter().enumerate() {
            let blank = if index == 0 { "" } else { " " };
            let plain = !word.is_empty() && word.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'"');
            let quote = if plain { "" } else { "\"" };
            write!(out, "{blank}{quote}{}{quote}", show(word))?;
        }
        Ok(())
    }
}

/// Bytes for people: escaped, and only the beginning of many.
pub fn show(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(SHOWN)];
    let more = bytes.len() - shown.len();
    let rest = if more > 0 { format!("…(and {more} bytes)") } else { String::new() };
    format!("{}{rest}", shown.escape_ascii())
}

/// What a reply is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Simple,
    Error,
    Integer,
    Bulk,
    Null,
    Array,
    Map,
    Set,
    Push,
    Double,
    Boolean,
    BigNumber,
    Verbatim,
}

/// A reply.
#[derive(Clone, Debug)]
pub struct Reply {
    /// As it came.
    pub bytes: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// The text of one that has no items.
    pub text: Vec<u8>,
    /// Elements; of a map, keys and values in turn.
    pub items: Vec<Reply>,
}

impl Reply {
    /// Whether it is an error.
    pub fn is_error(&self) -> bool {
        self.kind == Kind::Error
    }

    /// The number in it, if it is one.
    pub fn integer(&self) -> Option<i64> {
        let is_number = matches!(self.kind, Kind::Integer);
        std::str::from_utf8(&self.text).ok().filter(|_| is_number)?.parse().ok()
    }

    /// Its text, lossily, for messages and for what is known to be text.
    pub fn as_text(&self) -> String {
        String::from_utf8_lossy(&self.text).into_owned()
    }

    /// The value to a key of a map (or of the array that it is with RESP2).
    pub fn value_of(&self, key: &str) -> Option<&Reply> {
        let mut pairs = self.items.chunks_exact(2);
        pairs.find(|pair| pair[0].text == key.as_bytes()).map(|pair| &pair[1])
    }
}

impl Display for Reply {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        out.write_str(&show(&self.bytes))
    }
}

/// The reply that `bytes` begin with; `None` if it has not come wholly.
pub fn parse(bytes: &[u8]) -> Result<Option<Reply>, String> {
    let Some(line_len) = bytes.windows(2).position(|pair| pair == b"\r\n") else { return Ok(None) };
    let line = &bytes[1..line_len.max(1)];
    let head = line_len + 2;
    let kind = match bytes[0] {
        b'+' => Kind::Simple,
        b'-' => Kind::Error,
        b':' => Kind::Integer,
        b',' => Kind::Double,
        b'#' => Kind::Boolean,
        b'(' => Kind::BigNumber,
        b'_' => Kind::Null,
        b'$' => Kind::Bulk,
        b'=' => Kind::Verbatim,
        b'*' => Kind::Array,
        b'%' => Kind::Map,
        b'~' => Kind::Set,
        b'>' => Kind::Push,
        other => return Err(format!("a reply begins with {:?}: {}", char::from(other), show(bytes))),
    };
    match kind {
        Kind::Bulk | Kind::Verbatim => {
            let Some(len) = length(line)? else { return Ok(Some(leaf(&bytes[..head], Kind::Null, b""))) };
            let Some(whole) = bytes.get(..head + len + 2) else { return Ok(None) };
            if !whole.ends_with(b"\r\n") {
                return Err(format!("a bulk string of {len} bytes is longer: {}", show(bytes)));
            }
            // Verbatim text begins with its format and a colon.
            let format = if kind == Kind::Verbatim { len.min(4) } else { 0 };
            Ok(Some(leaf(whole, kind, &whole[head + format..head + len])))
        }
        Kind::Array | Kind::Map | Kind::Set | Kind::Push => {
            let Some(len) = length(line)? else { return Ok(Some(leaf(&bytes[..head], Kind::Null, b""))) };
            let (mut items, mut at) = (Vec::new(), head);
            for _ in 0..if kind == Kind::Map { len * 2 } else { len } {
                let Some(item) = parse(&bytes[at..])? else { return Ok(None) };
                at += item.bytes.len();
                items.push(item);
            }
            Ok(Some(Reply { bytes: bytes[..at].to_vec(), kind, text: Vec::new(), items }))
        }
        _ => Ok(Some(leaf(&bytes[..head], kind, line))),
    }
}

fn leaf(bytes: &[u8], kind: Kind, text: &[u8]) -> Reply {
    Reply { bytes: bytes.to_vec(), kind, text: text.to_vec(), items: Vec::new() }
}

/// A length; `None` is the one that means null.
fn length(line: &[u8]) -> Result<Option<usize>, String> {
    if line == b"-1" {
        return Ok(None);
    }
    let len = std::str::from_utf8(line).ok().and_then(|text| text.parse().ok());
    len.map(Some).ok_or_else(|| format!("{} is no length", show(line)))
}

/// A connection.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    received: Vec<u8>,
    /// Where in `received` what was not taken yet begins.
    start: usize,
}

impl Wire {
    /// Connects.
    pub fn connect(address: SocketAddr) -> io::Result<Wire> {
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Wire { stream, received: Vec::new(), start: 0 })
    }

    /// Sends a command and waits for its reply.
    pub fn ask(&mut self, command: &Command) -> io::Result<Reply> {
        let mut bytes = Vec::new();
        command.encode(&mut bytes);
        Ok(self.exchange(&bytes, 1)?.remove(0))
    }

    /// As [`Wire::ask`], of a line.
    pub fn say(&mut self, line: &str) -> io::Result<Reply> {
        self.ask(&Command::line(line))
    }

    /// Sends all commands at once, then waits for all replies.
    pub fn pipeline(&mut self, commands: &[Command]) -> io::Result<Vec<Reply>> {
        let mut bytes = Vec::new();
        commands.iter().for_each(|command| command.encode(&mut bytes));
        self.exchange(&bytes, commands.len())
    }

    /// Sends `bytes` and waits for that many replies. A server may stop reading while its replies are not
    /// read, so that of much to send, a thread does the sending.
    pub fn exchange(&mut self, bytes: &[u8], count: usize) -> io::Result<Vec<Reply>> {
        if bytes.len() <= WRITTEN_AT_ONCE {
            self.stream.write_all(bytes)?;
            return (0..count).map(|_| self.reply()).collect();
        }
        let mut writer = self.stream.try_clone()?;
        thread::scope(|scope| {
            let writing = scope.spawn(move || writer.write_all(bytes));
            let replies = (0..count).map(|_| self.reply()).collect();
            // What the server says counts more than that it took no more.
            writing.join().expect("writing does not panic").and(replies)
        })
    }

    /// The next reply.
    pub fn reply(&mut self) -> io::Result<Reply> {
        loop {
            if let Some(reply) = parse(&self.received[self.start..]).map_err(io::Error::other)? {
                self.start += reply.bytes.len();
                if self.start == self.received.len() {
                    self.received.clear();
                    self.start = 0;
                }
                return Ok(reply);
            }
            if self.read()? == 0 {
                let left = show(&self.received[self.start..]);
                let text = format!("the connection was closed, a reply being expected; left: \"{left}\"");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
        }
    }

    /// Sends bytes, whatever they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// All that comes until it ends with `end` or the server closes: which of them it was is the second.
    pub fn until(&mut self, end: &[u8]) -> io::Result<(Vec<u8>, bool)> {
        loop {
            let came = &self.received[self.start..];
            if came.ends_with(end) {
                let came = came.to_vec();
                (self.received, self.start) = (Vec::new(), 0);
                return Ok((came, false));
            }
            let closed = match self.read() {
                Ok(count) => count == 0,
                // It closed with something of ours unread.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => true,
                Err(error) => return Err(error),
            };
            if closed {
                return Ok((self.received[self.start..].to_vec(), true));
            }
        }
    }

    fn read(&mut self) -> io::Result<usize> {
        let mut piece = [0; 64 << 10];
        let count = self.stream.read(&mut piece).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "no whole reply within {PATIENCE:?}; came: \"{}\"",
                    show(&self.received[self.start..])
                ),
            ),
            _ => error,
        })?;
        self.received.extend_from_slice(&piece[..count]);
        Ok(count)
    }
}

#[test]
fn replies_of_both_protocols_are_read_to_their_last_byte() {
    let whole: [(&[u8], Kind, usize); 12] = [
        (b"+OK\r\n", Kind::Simple, 0),
        (b"-ERR no\r\n", Kind::Error, 0),
        (b":-7\r\n", Kind::Integer, 0),
        (b"$0\r\n\r\n", Kind::Bulk, 0),
        (b"$4\r\na\r\nb\r\n", Kind::Bulk, 0),
        (b"$-1\r\n", Kind::Null, 0),
        (b"*-1\r\n", Kind::Null, 0),
        (b"_\r\n", Kind::Null, 0),
        (b"*2\r\n*1\r\n:1\r\n$-1\r\n", Kind::Array, 2),
        (b"%1\r\n+a\r\n#t\r\n", Kind::Map, 2),
        (b"~1\r\n,1.5\r\n", Kind::Set, 1),
        (b"=6\r\ntxt:ab\r\n", Kind::Verbatim, 0),
    ];
    for (bytes, kind, items) in whole {
        for end in 0..bytes.len() {
            assert!(parse(&bytes[..end]).unwrap().is_none(), "{} is not whole at {end}", show(bytes));
        }
        let reply = parse(&[bytes, b"+next\r\n"].concat()).unwrap().unwrap();
        assert_eq!((reply.bytes.as_slice(), reply.kind, reply.items.len()), (bytes, kind, items));
    }
    for bytes in [&b"?\r\n"[..], b"$x\r\n", b"$-2\r\n", b"$1\r\nabc\r\n"] {
        assert!(parse(bytes).is_err(), "{}", show(bytes));
    }
}
