//! The binary protocol, version 1, byte by byte. A client in any language can be written from this page.
//!
//! All numbers are little-endian. "Reserved" bytes are sent as 0; in a request anything else is refused,
//! in a reply a client ignores them. A connection is a TCP stream of frames; client and server each send
//! frames back to back, and replies may come in another order than their requests (a request id says
//! which is which). Requests on one connection that are in flight at the same time are not ordered
//! against each other unless they concern the same key, whose requests take effect in the order sent.
//!
//! # Frame
//! Header (40 bytes), then `key length` bytes of key, then `value length` bytes of value.
//!
//! ```text
//! offset bytes field            request                          reply
//!      0     2 magic            A7 51                            A7 52
//!      2     1 version          1                                1
//!      3     1 operation        see below                        that of the request
//!      4     2 flags            low 2 bits: what the expiry is,   reserved
//!                               see below; others reserved
//!      6     2 status           reserved                         outcome or refusal, see below
//!      8     8 request id       the client's choice, not 0       that of the request
//!     16     4 value length     see below                        see below
//!     20     2 key length       1..=65535, or 0 without a key    0
//!     22     1 durability       0 as the server is set up,       reserved
//!                               1 answer only once on disk,
//!                               2 answer at once
//!     23     1 condition        0 none, 1 if-absent,             reserved
//!                               2 if-present, 3 if-version
//!     24     8 version          that of condition 3, else 0      that of the value read or written, else 0
//!     32     8 expiry           milliseconds, see below          low 32 bits: topology epoch, low half
//!                                                                high 32 bits: reserved
//! ```
//! The first byte, A7, starts no RESP command and is neither ASCII nor valid UTF-8, so that one port can
//! tell protocols apart by it. A *version* is 64 bits, grows with every write of a key, and is never 0.
//! There is no checksum: TCP has one, and what is stored has its own from the server on.
//!
//! # When there are too many connections
//! A server that has as many connections as it takes closes one more before it knows which protocol that is to be
//! of. So what it says is no frame but a line that clients of either can read, and it says it before it was asked:
//!
//! ```text
//! -ERR max number of clients reached\r\n
//! ```
//! In place of the first reply it means code 67. Nothing that the client had sent was read.
//!
//! # Operations
//! Durability is taken by the writes (SET, DELETE, BATCH, INCR, EXPIRE, PERSIST, DELRANGE, FLUSH, TRANSACT), 2 by SET
//! and TRANSACT only: a crash may lose what was answered so. A condition is taken by SET, and by DELETE, EXPIRE and
//! PERSIST except if-absent; in a BATCH each item has its own. An option where it is not taken is refused (code 20).
//!
//! ```text
//! no. name    key      value in the request        reply with status 0: version, value
//!   1 HELLO   -        hello request               -         hello reply
//!   2 PING    -        anything                    -         the same bytes
//!   3 GET     key      -                           value's   value
//!   4 SET     key      value                       new       -
//!   5 DELETE  key      -                           new       -
//!   6 MGET    -        key list                    -         value list
//!   7 BATCH   -        item list                   first's   -           the n-th write after it has version + n
//!   8 INCR    key      i64, 8 bytes                new       sum, i64, 8 bytes
//!   9 STATS   section  -                           -         text, lines of key=value
//!  10 EXPIRE  key      -                           new       -
//!  11 PERSIST key      -                           new       -           the old version if it never expires
//!  12 TTL     key      -                           value's   lifetime, or nothing if it never expires
//!  13 SCAN    -        scan request                -         page
//!  14 DELRANGE -      range                       -         -
//!  15 FLUSH   -        range, of everything        -         -
//!  16 TRANSACT key     transaction                 -         RESP, one reply a step
//!  20 TABLETS command  -                           -         text, lines of key=value
//!  21 CHECKPOINT path  -                           -         text, lines of key=value
//!  22 CLIENTS -        clients                     -         text, lines of key=value
//! ```
//! STATS without a key is about everything; its sections are `total`, `shards`, and three that are not part of
//! everything: `local`, which is as `total` but of the shard that serves the connection, `tablets`, and `clients`, those
//! of Redis' protocol. INCR works on decimal text, as Redis does, an absent key
//! counting as 0.
//!
//! # Checkpoint
//! The path is absolute and of the server's machine, on the file system of its data; what is there must be an empty
//! directory or nothing. All that was answered before the request was sent is in the checkpoint, and of what was
//! sent later nothing that followed something that is not. The text says tables, bytes (both linked, not copied),
//! and pause_micros: how long writes waited. One that failed is refused with code 73.
//!
//! For a path there may be a word. `save` makes a checkpoint below the server's own directory for these, in a new
//! directory of which the text says the name (dir), and removes the one that was made so before. `bgsave` is the same,
//! and answered with an empty text when it begins. While one is under way another is refused (code 73).
//!
//! # Tablets
//! The commands of TABLETS are words with one space between them. Each changes where keys are served, while they
//! are, one change after the other; a client learns of it by the epoch of its replies.
//!
//! ```text
//! move TABLET SHARD    its owner is that shard from now on     pause_micros: how long requests for it waited
//! split TABLET [SLOT]  its slots from SLOT on, or the upper    tablet: the new one; pause_micros
//!                      half, are a new tablet's
//! rebalance            moves tablets until the shards are      moves, pause_micros: the longest
//!                      equally loaded, as far as may be
//! cores N              moves all tablets to the first N shards likewise
//! ```
//! One that can't be read is refused (code 20). A change that failed and left everything as it was is refused
//! with code 72; one of which only a restart shows whether it was made, with code 129.
//!
//! # Clients
//! CLIENTS is about connections that speak Redis' protocol, those that one shard serves: STATS `clients` tells their
//! numbers (`id`), of which the shard is the remainder of the number less one, divided by the count of shards. The text
//! says how many were disconnected. A pause holds back what they send from the moment of the answer on; it ends by
//! itself, and one that is in force is never shortened or weakened by another. Connections of this protocol are never
//! paused. Another shard than there are is refused (code 30).
//!
//! ```text
//! clients
//!  0  1  1 disconnect, 2 pause, 3 end the pause      4  4  count of numbers, 0 but to disconnect
//!  1  1  of a pause: 1 commands that may write,       8  8  of a pause: its ms, else 0
//!        2 all commands; else 0                      16  .. numbers, 8 bytes each
//!  2  2  shard
//! ```
//!
//! # Expiry
//! A key may have a time from which on it is absent: for reads, conditions and all else, as if it had been
//! deleted at that moment. Flags and expiry of a request say which:
//!
//! ```text
//! flags  expiry field                                   taken by
//!     0  0: the key never expires                       all but EXPIRE
//!     1  time to live: ms from the moment of the write  SET, EXPIRE
//!     2  time: ms since 1970-01-01 UTC                  SET, EXPIRE
//!     3  0: the key expires when it did before          SET
//! ```
//! Both are 1 to 2^48 − 1, and so is the time that a time to live leads to; all else is refused (code 21), as
//! is an expiry where none is taken. A time that is past removes the key: such a SET or EXPIRE is a DELETE,
//! and what it replies is that write's version. A SET without expiry takes the key's expiry away, INCR keeps it. EXPIRE and PERSIST are writes: the key keeps its value and gets a new version.
//! All times are by the clock of the shard that owns the key.
//!
//! ```text
//! lifetime (16 bytes)
//!  0  8  ms that are left, at least 1
//!  8  8  time when it expires, ms since 1970-01-01 UTC
//! ```
//!
//! # Status
//! ```text
//!       0  done
//!       1  absent: GET, DELETE, EXPIRE, PERSIST or TTL of a key that has no value; nothing changed
//!       2  condition failed: nothing changed; version is the key's current one, 0 if it is absent; of a
//!          BATCH the value is the number of the item whose condition it is (u32, counted from 0)
//!   3..15  not in use
//! 16..191  refused: the value is a sentence in UTF-8 (at most 1024 bytes); numbers: [`crate::error::Code`]
//! ```
//! A refused request was not carried out, except as that list says. A reply with request id 0 concerns
//! the connection: its status says why the server closes it, and all requests without a reply fail.
//!
//! # Hello
//! Optional: a client may start with any request in version 1. HELLO itself always has a version 1
//! header. May be sent again at any time, for instance to learn a newer slot table; asking for another
//! shard then moves the connection if nothing else is in flight on it, and is otherwise refused.
//!
//! ```text
//! request (8 bytes)                         reply (40 bytes, then 8 a range)
//!  0  1  oldest version spoken               0  1  version chosen: the newest that both speak
//!  1  1  newest version spoken               1  1  reserved
//!  2  2  shard wanted; FFFF: any             2  2  shard count
//!  4  4  reserved                            4  2  shard that serves this connection
//!                                            6  2  range count
//!                                            8  8  topology epoch
//!                                           16  4  longest key
//!                                           20  4  longest value, and PING payload
//!                                           24  4  longest item list, without its count
//!                                           28  4  most items in a BATCH and keys in an MGET
//!                                           32  4  longest frame with its header, both directions
//!                                           36  4  pipeline: see below
//!                                           40  .. ranges: first slot u16, last slot u16 (included),
//!                                                  shard u16, reserved u16; ascending, disjoint
//! ```
//! The server reads so many bytes of requests as *pipeline* says that are without a reply, even if no reply
//! is read; and one request of any length, if no other is without its reply. A client that keeps to either
//! may write before it reads. One that sends more must be ready to read replies at any time: what it sends is
//! read when there is memory for it, and that may be once its replies have left. A pipeline is 65,536 bytes
//! at least. A client that leaves replies unread, or ends in the middle of a request, while others wait for
//! the memory, is disconnected after a while.
//!
//! Any connection serves any key; one to the owner of the key's slot saves a hop. The slot is CRC16
//! (XMODEM) of the key, or of its `{tag}`, modulo 16384, as in Redis Cluster. A reply whose epoch differs
//! from the low half of the last HELLO's tells that the table has changed.
//!
//! # Lists
//! A count (u32), then that many items back to back, and nothing after them.
//!
//! ```text
//! key list           value list                        item list
//! 0  2  key length   0  1  0 absent, 1 present         0  1  1 put, 2 delete, 3 expire, 4 persist, 5 check
//! 2  .. key          1  3  reserved                    1  1  bits 0-1: what the expiry is, as in a header's flags
//!                    4  4  value length, 0 if absent         bits 2-3: the condition, as in a header; others 0
//!                    8  8  version, 0 if absent        2  2  key length
//!                   16  .. value                       4  4  value length, 0 but in a put
//!                                                      8  8  version (only with condition 3)
//!                                                     ..  8  expiry, ms (only with expiry 1 or 2)
//!                                                     ..  .. key, then value
//! ```
//! Key and item lists have at least one item. An MGET whose values don't fit a frame is refused (code 29).
//!
//! # Batches
//! The keys of a BATCH are all of one slot, and one may be named several times. First all conditions are compared
//! with the keys as the batch finds them: if one does not hold, nothing is done, and status 2 names the first such
//! item. Otherwise its items take effect in their order, and all at once for everyone else, for a log that is
//! cut, and for a tablet that splits or moves. Puts are SETs, deletes DELETEs, expire EXPIRE and persist PERSIST, with
//! the same expiries and conditions, but each has a version whether it changes anything or not: those of an absent key
//! leave it absent. A check is a condition alone; it has no version and is not counted, and there must be a write as
//! well.
//!
//! # Scans
//! SCAN gives the keys of a range in order, page by page: those of all shards in one order, of each shard as of
//! one moment. A page that is not the last has a cursor, which the next request repeats together with the same
//! range and flags. Nothing is sent that was not asked for, so the client sets the pace. The cursor stands before
//! the entries, so that a client may ask for the next page while this one arrives; the entries are the last bytes.
//!
//! ```text
//! request                                            page
//!  0  1  flags: 1 reverse, 2 keys only,               0  1  flags: 1 the last page, without a cursor;
//!        4 local: keys of the shard that                    2 new snapshot
//!        serves the connection                        1  3  reserved
//!  1  3  reserved                                     4  4  number of entries n
//!  4  4  most entries in the page, 0: any             8  4  bytes of entries
//!  8  4  most bytes of entries, 0: any               12  4  cursor length
//! 12  2  start length                                16  .. cursor, bytes without meaning, n entries
//! 14  2  end length
//! 16  4  cursor length                               entry
//! 20  4  reserved                                     0  2  key length
//! 24  8  entries wanted from here on, 0: all          2  1  flags: 1 an expiry follows the header
//! 32  .. start (included), end (not included;         3  1  reserved
//!        empty: none), cursor (empty: begin)          4  4  value length, 0 with keys only
//!                                                     8  8  version
//! cursor (a client need not look inside)             16  8  expiry, ms since 1970-01-01 UTC (only with flag 1)
//!  0  1  version 1                                    .. .. key, then value
//!  1  1  reserved
//!  2  2  shard that keeps the session
//!  4  4  number of the page that comes next
//!  8  8  session, 0: none
//! 16  .. last key given or passed over
//! ```
//! The keys with a prefix are those from it on up to the shortest string above all of them: the prefix without
//! the FF bytes at its end, its last byte one more. If all keys of a range share one hash tag, only its shard is
//! asked. A page holds at least one entry, unless it is the last or much that was deleted lay in between, and is
//! never longer than a frame; an entry that does not fit one is refused (code 29), and keys only gets past it.
//! The server keeps a session for a scan: its snapshot, and where it is. One that is not asked for some time,
//! pushed out by others, or lost with a restart is replaced by a new snapshot, which goes on behind the
//! cursor's key; flag 2 says so. The same cursor may be sent again.
//!
//! # Ranges
//! DELRANGE removes the keys of a range, and FLUSH all keys, each in time that does not depend on how many they
//! are. Both concern every key: requests sent earlier on the connection take effect before, later ones after, but
//! for pages of scans. Every shard does its part at once and by itself, so others may see it done on some shards
//! and not yet on others; the reply comes when all have. If some have and others refuse, code 133 says so.
//!
//! ```text
//! range
//!  0  2  start length        4  4  flags: 1 only keys of the shard that serves the connection; others reserved
//!  2  2  end length          8  8  epoch: 0 (used between shards)
//! 16  .. start (included), end (not included; empty: none)
//! ```
//! Both bounds are empty in a FLUSH and only there, so that no mistake in a DELRANGE removes everything. An empty
//! range is refused (code 16). So many ranges deleted in a row that not even merges of tables keep up are refused
//! for a while (code 64), as is a range whose bounds, logged once for each tablet, take too much (code 25).
//!
//! # Transactions
//! TRANSACT has the owner of the key's slot execute commands of Redis, by their names and with their arguments, one
//! after the other and all at once for everyone else, as a BATCH is. All their keys, and those that are watched, are
//! of that slot, else nothing is done (code 24). The reply is what a Redis would answer, encoded in RESP: that of one
//! step after the other, or with flag 2 an array of them. A command that fails answers its error, and the others are
//! executed. If a watched key has not the version that is given, nothing is executed, and the reply is the null of
//! an array. All that is written together is one entry of the log: more than a BATCH may hold is refused (code 25).
//!
//! ```text
//! transaction                                       watch
//!  0  4  flags: 1 RESP3, 2 array                     0  2  key length
//!  4  4  bytes of the list of watches                2  2  reserved
//!  8  .. list of watches, list of steps              4  8  version, 0 for a key that had no value
//!                                                   12  .. key
//! step
//!  0  4  bytes of what follows the count             argument
//!  4  4  count of arguments, with the name           0  4  length
//!  8  .. arguments; with a count of 0 bytes          4  .. bytes
//!        that take this step's place in the reply
//! ```
//!
//! # When frames are wrong
//! As long as the header has the right magic and version and the frame is not longer than the server's
//! limit, the stream is in step: the frame gets a refusal and the connection goes on with the next.
//! Otherwise the server sends one refusal (request id 0 for a wrong magic) and closes. A connection that
//! ends inside a frame was cut; the part is dropped.

mod clients;
mod decode;
mod encode;
mod header;
mod items;
mod ops;
mod range;
mod scan;
#[cfg(test)]
mod tests;
mod transaction;

pub use clients::{ClientIdList, ClientIds};
pub use decode::{FrameError, ReplyError, decode_header, decode_reply, decode_reply_header, decode_request};
pub use encode::{KeyList, ValueListEncoder, begin_value, encode_refusal, encode_reply, encode_request};
pub use header::{
    FrameHeader, HEADER_BYTES, MAGIC_BYTE, REPLY_MAGIC, REQUEST_MAGIC, ReplyHeader, Status,
    TOO_MANY_CONNECTIONS, VERSION,
};
pub use items::{Keys, Ops, Steps, Value, Values, Watches};
pub use ops::OpList;
pub use scan::{CURSOR_BYTES_MAX, Cursor, PAGE_OVERHEAD, PageEncoder, ScanEntries, entry_len, page_ahead};
pub use transaction::{Arguments, Step, StepList, Watch, WatchList};
