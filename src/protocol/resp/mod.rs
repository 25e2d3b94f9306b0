//! Redis' protocol, RESP 2 and 3: bytes ↔ arguments of commands and replies. No I/O.
//!
//! # Commands
//! ```text
//! command  = array | inline
//! array    = "*" length EOL length × bulk       none to come (0 or less): nothing, and no reply
//! bulk     = "$" length EOL bytes EOL
//! length   = decimal, 64 bits, signed; one way to write each: no "+", no space, no leading zero, no "-0"
//! EOL      = CR and one more byte; behind the bytes of a bulk any two
//! inline   = anything whose first byte is not "*", up to LF, or CR LF; without words: nothing, and no reply
//! ```
//! That the second byte of an end of line is not looked at is Redis' way, and so is what a NUL does: in a
//! header or an inline command the search for the end of the line stops there, so that the command never ends
//! and is refused once the line is too long. The two protocols of a port are told apart by the first byte of
//! a connection, which is A7 for the other one.
//!
//! Words of an inline command stand between spaces, tabs and CRs. In front of a word, and behind a closing
//! quote, a vertical tab and a form feed are space as well.
//!
//! ```text
//! "…"    \n \r \t \b \a are those bytes, \xHH is one in hexadecimal, \ and any other byte is that byte
//! '…'    \' is a quote; all else stands for itself
//! ```
//! A quote may open within a word (`a"b c"` is one); behind one that closes a word has to end.
//!
//! # Refusals
//! After any of these the connection is of no use, since where the next command begins is not known. Lines
//! are an inline command or a header, up to what ends it.
//!
//! ```text
//! -ERR Protocol error: …
//!   too big inline request               line without LF within Limits::inline_bytes_max + 1
//!   too big mbulk count string           "*…", of a bulk: too big bulk count string; likewise, without CR
//!   unbalanced quotes in request         an inline command's
//!   invalid multibulk length             no length, or more than Limits::args_max
//!   invalid bulk length                  no length, negative, or more than Limits::bulk_bytes_max
//!   expected '$', got 'x'                the byte x; of CR and LF a space
//!   unauthenticated multibulk length     before AUTH: more than 10 arguments
//!   unauthenticated bulk length          before AUTH: an argument of more than 16384 bytes
//!   a command of more than N bytes       Limits::command_bytes_max; Redis has no sentence for its like
//! ```
//!
//! # Replies
//! ```text
//!                 RESP2                       RESP3, where it differs
//! simple string   "+" text EOL
//! error           "-" text EOL                                           text begins with a code word, as ERR
//! integer         ":" number EOL
//! bulk string     "$" length EOL bytes EOL
//! array           "*" count EOL items
//! null            "$-1" EOL, "*-1" EOL        "_" EOL
//! map             array of 2 × count          "%" count EOL pairs
//! set             array                       "~" count EOL items
//! push            array                       ">" count EOL items
//! boolean         ":1" EOL, ":0" EOL          "#t" EOL, "#f" EOL
//! double          bulk string                 "," text EOL
//! verbatim        bulk string                 "=" length EOL "txt:" bytes EOL     the length counts the "txt:"
//! ```
//! All of these end lines with CR LF. Three more of RESP3 are never sent and only understood: `(` a big
//! number, `!` an error as long as a bulk string, `|` a map of remarks in front of a reply.

mod decode;
mod encode;
mod inline;
mod plain;
mod reply;
#[cfg(test)]
mod tests;

pub use decode::{Args, Limits, Parsed, Parser, ProtocolError};
pub use encode::{
    Proto, array, boolean, bulk, double, error, error_bytes, integer, map, null, null_array, push, set,
    simple, verbatim,
};
pub use plain::plain_get;
pub use reply::{Reply, ReplyError, decode_reply};
