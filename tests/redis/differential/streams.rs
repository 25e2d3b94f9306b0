//! Bytes that no client library would send: inline commands, broken frames, and commands whose replies are
//! not one each. What comes back is compared as a stream, and whether the connection is closed.

use std::io;
use std::net::SocketAddr;

use crate::servers::{self, Redis, Subject};
use crate::wire::{Wire, show};

/// What ends every stream that the server does not end itself.
const LAST: &[u8] = b"*2\r\n$4\r\nECHO\r\n$8\r\nsentinel\r\n";
const LAST_REPLY: &[u8] = b"$8\r\nsentinel\r\n";

/// Streams, each on a connection of its own to an empty store.
const STREAMS: &[&str] = &[
    // Inline commands.
    "PING\r\n",
    "PING\n",
    "ping hello\r\n",
    "  PING   hello  \r\n",
    "SET k \"a b\\x41\\n\"\r\nGET k\r\n",
    "SET k 'it\\'s'\r\nGET k\r\n",
    "SET k \"\"\r\nGET k\r\n",
    "SET k \"open\r\n",
    "SET k 'open\r\n",
    "SET k \"a\"b\r\n",
    "\r\n\r\nPING\r\n",
    "\n",
    "   \r\nPING\r\n",
    "GET\tk\r\n",
    "nothing like it\r\n",
    "GET\r\n",
    // Arrays of bulk strings as they are, and as they are not.
    "*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r\n",
    "*0\r\nPING\r\n",
    "*-1\r\nPING\r\n",
    "*-10\r\nPING\r\n",
    "*x\r\n",
    "*\r\n",
    "*1x\r\n",
    "* 1\r\n",
    "*+1\r\n$4\r\nPING\r\n",
    "*01\r\n$4\r\nPING\r\n",
    "*2147483648\r\n",
    "*99999999999999999999\r\n",
    "*1\r\n:4\r\nPING\r\n",
    "*1\r\nPING\r\n",
    "*1\r\n$x\r\n",
    "*1\r\n$-1\r\n",
    "*1\r\n$\r\n",
    "*1\r\n$04\r\nPING\r\n",
    "*1\r\n$99999999999999999999\r\n",
    "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1048577\r\n",
    "*1\r\n$0\r\n\r\n",
    "*2\r\n$0\r\n\r\n$1\r\na\r\n",
    "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\na\r\nb\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n",
    // What was whole before a broken frame is answered.
    "*1\r\n$4\r\nPING\r\nSET k v\r\n*x\r\nPING\r\n",
    // Which of a pipeline's replies come.
    "CLIENT REPLY OFF\r\nPING\r\nSET k v\r\nCLIENT REPLY ON\r\nGET k\r\n",
    "CLIENT REPLY SKIP\r\nSET k v\r\nGET k\r\n",
    "CLIENT REPLY SKIP\r\nCLIENT REPLY SKIP\r\nPING 1\r\nPING 2\r\n",
    "CLIENT REPLY SKIP\r\nnothing\r\nPING\r\n",
    "CLIENT REPLY OFF\r\nMULTI\r\nSET k v\r\nEXEC\r\nCLIENT REPLY ON\r\nGET k\r\n",
    "CLIENT REPLY MAYBE\r\nCLIENT REPLY\r\n",
    "CLIENT REPLY OFF\r\nRESET\r\nPING\r\nCLIENT REPLY ON\r\n",
    // Ends.
    "QUIT\r\nPING\r\n",
    "PING\r\nQUIT\r\n",
    "MULTI\r\nQUIT\r\n",
    "SET k v\r\nQUIT now\r\n",
    // Transactions in one piece.
    "MULTI\r\nSET k v\r\nGET k\r\nEXEC\r\nGET k\r\n",
    "MULTI\r\nMULTI\r\nEXEC\r\n",
    "EXEC\r\nDISCARD\r\nUNWATCH\r\nWATCH\r\n",
    "MULTI\r\nSET k\r\nSET k v\r\nEXEC\r\nGET k\r\n",
    "MULTI\r\nnothing\r\nDISCARD\r\nPING\r\n",
    "MULTI\r\nWATCH k\r\nSET k v\r\nEXEC\r\n",
    "MULTI\r\nINCR k\r\nSET k x\r\nINCR k\r\nGET k\r\nEXEC\r\n",
    "MULTI\r\nEXEC\r\n",
    "MULTI\r\nRESET\r\nEXEC\r\n",
    "WATCH k\r\nSET k v\r\nMULTI\r\nGET k\r\nEXEC\r\nMULTI\r\nGET k\r\nEXEC\r\n",
    "WATCH k\r\nSET k v\r\nUNWATCH\r\nMULTI\r\nGET k\r\nEXEC\r\n",
    "WATCH k\r\nMULTI\r\nDISCARD\r\nSET k v\r\nMULTI\r\nGET k\r\nEXEC\r\n",
    "MULTI\r\nSELECT 0\r\nPING\r\nECHO x\r\nEXEC\r\n",
    "HELLO 9\r\nHELLO x\r\nHELLO 3 NOTHING\r\nHELLO 3 AUTH a\r\nHELLO 3 SETNAME\r\n",
    "AUTH\r\nAUTH x\r\nAUTH default x\r\nAUTH nobody x\r\nAUTH a b c\r\n",
    "SELECT 0\r\nSELECT 1\r\nSELECT x\r\nSELECT 99999999999\r\n",
    "CLIENT SETNAME a\r\nCLIENT GETNAME\r\nRESET\r\nCLIENT GETNAME\r\n",
    "CLIENT NOTHING\r\nCLIENT\r\nCLIENT ID x\r\n",
    "CLIENT KILL\r\nCLIENT KILL nobody\r\nCLIENT KILL ID 0\r\nCLIENT KILL ID x\r\nCLIENT KILL TYPE x\r\n",
    "CLIENT KILL USER x\r\nCLIENT KILL SKIPME x\r\nCLIENT KILL ID 1 ADDR\r\nCLIENT KILL a b\r\nCLIENT KILL ID\r\n",
    "CLIENT KILL ADDR nobody\r\nCLIENT KILL TYPE pubsub SKIPME no\r\nCLIENT KILL ID 999999999 USER default\r\n",
    "CLIENT PAUSE\r\nCLIENT PAUSE x\r\nCLIENT PAUSE -1\r\nCLIENT PAUSE x x\r\nCLIENT PAUSE 1 WRITE x\r\n",
    "CLIENT PAUSE 0\r\nCLIENT PAUSE 0 write\r\nCLIENT UNPAUSE\r\nCLIENT UNPAUSE x\r\nPING\r\n",
    "SHUTDOWN x\r\nSHUTDOWN ABORT\r\nSHUTDOWN ABORT NOW\r\nSHUTDOWN SAVE NOSAVE\r\n",
    "MULTI\r\nSHUTDOWN\r\nSAVE\r\nEXEC\r\nSAVE x\r\nBGSAVE x\r\nBGSAVE SCHEDULE x\r\n",
    "CONFIG SET save\r\nCONFIG SET save \"\"\r\nCONFIG SET save \"\" appendonly\r\nCONFIG SET save \"\" SAVE \"\"\r\n",
    "OBJECT FREQ k\r\nSET k v\r\nOBJECT FREQ k\r\nOBJECT\r\nOBJECT NOTHING k\r\n",
    "COMMAND GETKEYS MSET a 1 b 2\r\nCOMMAND GETKEYS\r\nCOMMAND GETKEYS PING\r\nCOMMAND NOTHING\r\n",
    "COMMAND LIST FILTERBY NOTHING x\r\nCOMMAND DOCS nothing\r\nCOMMAND INFO nothing\r\n",
    "CONFIG GET no-such-name\r\nCONFIG SET no-such-name 1\r\nCONFIG NOTHING\r\nCONFIG\r\n",
    "LASTSAVE x\r\nTIME x\r\n",
    "SLOWLOG NOTHING\r\nSLOWLOG GET x\r\nSLOWLOG RESET\r\nSLOWLOG GET -2\r\n",
    "LATENCY NOTHING\r\nLATENCY RESET\r\nLATENCY HISTORY nothing\r\nLATENCY LATEST\r\n",
    "MEMORY NOTHING\r\nMEMORY USAGE\r\nMEMORY USAGE k\r\nMEMORY USAGE k SAMPLES x\r\nMEMORY USAGE k NOTHING 1\r\n",
    "WAIT x 0\r\nWAIT 0 x\r\nWAIT 0 -1\r\nWAIT 0 0\r\n",
    "FLUSHALL NOW\r\nFLUSHALL SYNC ASYNC\r\nFLUSHDB ASYNC\r\n",
];

/// Streams that are too long to be written down.
fn long_streams() -> Vec<(String, Vec<u8>)> {
    let long = |head: &[u8], len: usize, tail: &[u8]| [head, &vec![b'x'; len], tail].concat();
    vec![
        ("an inline command without an end".to_string(), long(b"", 70_000, b"")),
        ("an array length without an end".to_string(), long(b"*", 70_000, b"")),
        ("a bulk length without an end".to_string(), long(b"*1\r\n$", 70_000, b"")),
        ("an unknown command with a long name".to_string(), long(b"", 300, b"\r\n")),
        ("an unknown command with long arguments".to_string(), long(b"nothing ", 300, b" more and more\r\n")),
    ]
}

/// What comes back for `bytes`, and whether the server closed.
fn answer(address: SocketAddr, bytes: &[u8]) -> io::Result<(Vec<u8>, bool)> {
    let mut wire = Wire::connect(address)?;
    servers::flush(&mut wire)?;
    // One that is never whole must be refused: nothing follows.
    let last = if bytes.ends_with(b"\n") { LAST } else { b"" };
    wire.send(&[bytes, last].concat())?;
    wire.until(LAST_REPLY)
}

#[test]
fn streams_of_bytes_are_answered_as_by_redis() {
    let (redis, subject) = (Redis::start(&[]), Subject::start("none"));
    let short = STREAMS.iter().map(|text| (text.escape_default().to_string(), text.as_bytes().to_vec()));
    let mut wrong = Vec::new();
    for (name, bytes) in short.chain(long_streams()) {
        let said = [redis.address, subject.address()].map(|address| match answer(address, &bytes) {
            Ok((came, closed)) => (came, if closed { " (closed)" } else { "" }),
            Err(error) => (error.to_string().into_bytes(), " (broken)"),
        });
        if said[0] != said[1] {
            let [redis, subject] = said.map(|(came, end)| format!("{}{end}", show(&came)));
            wrong.push(format!("{name}\n  redis:   {redis}\n  subject: {subject}"));
        }
    }
    let count = wrong.len();
    assert!(wrong.is_empty(), "{count} streams are answered otherwise:\n{}", wrong.join("\n"));
}
