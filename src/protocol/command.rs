//! What a client can ask for.

use super::binary::{ClientIds, HEADER_BYTES, Keys, Ops, PAGE_OVERHEAD, Steps, Watches};
use super::expiry::{Deadline, Expiry};
use super::scan::ScanRequest;
use crate::base::{ENTRY_BYTES_MAX, ENTRY_OPS_MAX, KEY_BYTES_MAX, Lsn, VALUE_BYTES_LIMIT};
use crate::slot::Slot;

/// An operation's number on the wire. 0 is never an operation, so that blank bytes never pass for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OpCode {
    /// Version, limits, slot table, choice of shard.
    Hello = 1,
    /// Echo.
    Ping = 2,
    /// One key's value and version.
    Get = 3,
    /// Store a value, perhaps under a condition.
    Set = 4,
    /// Remove a key, perhaps under a condition.
    Delete = 5,
    /// Values and versions of several keys.
    Mget = 6,
    /// Several writes to the keys of one slot, all or none.
    Batch = 7,
    /// Add to a decimal number.
    Incr = 8,
    /// Figures as text.
    Stats = 9,
    /// Set the time when a key expires, perhaps under a condition.
    Expire = 10,
    /// Let a key live for ever, perhaps under a condition.
    Persist = 11,
    /// How long a key still lives.
    Ttl = 12,
    /// The keys of a range in order, page by page.
    Scan = 13,
    /// Remove the keys of a range, whatever their number.
    DeleteRange = 14,
    /// Remove all keys.
    Flush = 15,
    /// Commands of Redis on the keys of one slot, all at once.
    Transact = 16,
    /// Move, split or spread tablets.
    Tablets = 20,
    /// Make a consistent copy while serving.
    Checkpoint = 21,
    /// Disconnect or pause clients of Redis' protocol that one shard serves.
    Clients = 22,
}

/// Operations by number.
const BY_NUMBER: [Option<OpCode>; 256] = {
    let mut table = [None; 256];
    let mut at = 0;
    while at < OpCode::ALL.len() {
        table[OpCode::ALL[at] as usize] = Some(OpCode::ALL[at]);
        at += 1;
    }
    table
};

impl OpCode {
    /// Every operation there is, by number.
    pub const ALL: [OpCode; 19] = [
        OpCode::Hello,
        OpCode::Ping,
        OpCode::Get,
        OpCode::Set,
        OpCode::Delete,
        OpCode::Mget,
        OpCode::Batch,
        OpCode::Incr,
        OpCode::Stats,
        OpCode::Expire,
        OpCode::Persist,
        OpCode::Ttl,
        OpCode::Scan,
        OpCode::DeleteRange,
        OpCode::Flush,
        OpCode::Transact,
        OpCode::Tablets,
        OpCode::Checkpoint,
        OpCode::Clients,
    ];

    /// The operation with this number, if there is one.
    #[inline]
    pub fn from_u8(number: u8) -> Option<OpCode> {
        BY_NUMBER[usize::from(number)]
    }

    /// Whether it may change a key.
    #[inline]
    pub fn is_write(self) -> bool {
        match self {
            OpCode::Set | OpCode::Delete | OpCode::Batch | OpCode::Incr => true,
            OpCode::Expire | OpCode::Persist | OpCode::DeleteRange | OpCode::Flush => true,
            // It may be of reads alone, which is not looked into.
            OpCode::Transact => true,
            OpCode::Tablets | OpCode::Checkpoint | OpCode::Clients => false,
            OpCode::Hello | OpCode::Ping | OpCode::Get | OpCode::Mget | OpCode::Stats | OpCode::Ttl => false,
            OpCode::Scan => false,
        }
    }

    /// Its name as messages and metrics print it.
    pub fn name(self) -> &'static str {
        match self {
            OpCode::Hello => "HELLO",
            OpCode::Ping => "PING",
            OpCode::Get => "GET",
            OpCode::Set => "SET",
            OpCode::Delete => "DELETE",
            OpCode::Mget => "MGET",
            OpCode::Batch => "BATCH",
            OpCode::Incr => "INCR",
            OpCode::Stats => "STATS",
            OpCode::Expire => "EXPIRE",
            OpCode::Persist => "PERSIST",
            OpCode::Ttl => "TTL",
            OpCode::Scan => "SCAN",
            OpCode::DeleteRange => "DELRANGE",
            OpCode::Flush => "FLUSH",
            OpCode::Transact => "TRANSACT",
            OpCode::Tablets => "TABLETS",
            OpCode::Checkpoint => "CHECKPOINT",
            OpCode::Clients => "CLIENTS",
        }
    }
}

/// When a write is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Durability {
    /// As the server's `--sync` says.
    #[default]
    Default = 0,
    /// Only once it is on disk, whatever `--sync` says. If nothing is written, since a condition fails or
    /// the key is gone, what the answer tells of the key is on disk.
    Always = 1,
    /// At once, whatever `--sync` says: a crash may lose it. Of SET and TRANSACT only. What the answer tells of
    /// other writes waits for those.
    Relaxed = 2,
}

impl Durability {
    /// The choice with this number, if there is one.
    #[inline]
    pub fn from_u8(number: u8) -> Option<Durability> {
        match number {
            0 => Some(Durability::Default),
            1 => Some(Durability::Always),
            2 => Some(Durability::Relaxed),
            _ => None,
        }
    }
}

/// What must hold of the key at the moment of the write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Condition {
    /// Nothing.
    #[default]
    None,
    /// It has no value.
    IfAbsent,
    /// It has a value.
    IfPresent,
    /// Its value has this version, never [`Lsn::ZERO`]: absence is [`Condition::IfAbsent`].
    IfVersion(Lsn),
}

impl Condition {
    /// Its number on the wire.
    #[inline]
    pub fn number(self) -> u8 {
        match self {
            Condition::None => 0,
            Condition::IfAbsent => 1,
            Condition::IfPresent => 2,
            Condition::IfVersion(_) => 3,
        }
    }

    /// Whether it holds of a key whose value has the version `current`, or of an absent one.
    #[inline]
    pub fn holds(self, current: Option<Lsn>) -> bool {
        match self {
            Condition::None => true,
            Condition::IfAbsent => current.is_none(),
            Condition::IfPresent => current.is_some(),
            Condition::IfVersion(wanted) => current == Some(wanted),
        }
    }
}

/// What HELLO asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HelloRequest {
    /// Oldest protocol version that the client speaks.
    pub version_min: u8,
    /// Newest protocol version that the client speaks.
    pub version_max: u8,
    /// The shard that should serve this connection; `None` leaves it to the server.
    pub shard: Option<u16>,
}

/// The keys that DELRANGE and FLUSH remove.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeleteRange<'a> {
    /// The first key; empty: from the smallest one on.
    pub start: &'a [u8],
    /// The first key that stays; empty: up to the largest one.
    pub end: &'a [u8],
    /// Only keys of the shard that serves the connection.
    pub is_local: bool,
    /// Between shards: the epoch of the slot table by which every shard got its part. Clients send 0.
    pub epoch: u64,
    /// When to answer.
    pub durability: Durability,
}

impl DeleteRange<'_> {
    /// Whether no key stays.
    pub fn is_everything(&self) -> bool {
        self.start.is_empty() && self.end.is_empty()
    }
}

/// Commands of Redis for the owner of one slot, executed as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transaction<'a> {
    /// 1..=65535 bytes, of the slot that all its keys are of.
    pub key: &'a [u8],
    /// Whether replies are encoded as RESP3 has them.
    pub is_resp3: bool,
    /// Whether the reply is an array of the commands' replies.
    pub is_array: bool,
    /// Nothing is executed if one of these has another version.
    pub watches: Watches<'a>,
    /// What to execute.
    pub steps: Steps<'a>,
    /// When to answer.
    pub durability: Durability,
}

/// In place of CHECKPOINT's path: into the directory of the server's own saves, where it takes the place of the one
/// before. Answered when that is done.
pub const SAVE: &str = "save";
/// The same, answered when it begins.
pub const BGSAVE: &str = "bgsave";

/// What clients of Redis' protocol may not do for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Paused {
    /// Commands that may write.
    Writes = 1,
    /// All commands.
    All = 2,
}

impl Paused {
    /// That with this number, if there is one.
    pub fn from_u8(number: u8) -> Option<Paused> {
        match number {
            1 => Some(Paused::Writes),
            2 => Some(Paused::All),
            _ => None,
        }
    }
}

/// What is to be done to clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientsAction<'a> {
    /// Disconnect those with these numbers, at least one.
    Disconnect(ClientIds<'a>),
    /// Take in nothing of this kind for so long. A pause that is in force is not shortened by that, nor is there less
    /// that it holds back.
    Pause {
        /// What.
        paused: Paused,
        /// Milliseconds from now.
        ms: u64,
    },
    /// Go on at once.
    Unpause,
}

/// Something that one shard is to do to its clients of Redis' protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientsRequest<'a> {
    /// Which shard.
    pub shard: u16,
    /// What.
    pub action: ClientsAction<'a>,
}

/// One request, borrowed from the bytes it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request<'a> {
    /// See [`OpCode::Hello`].
    Hello(HelloRequest),
    /// See [`OpCode::Ping`].
    Ping {
        /// Comes back as it is.
        payload: &'a [u8],
    },
    /// See [`OpCode::Get`].
    Get {
        /// 1..=65535 bytes.
        key: &'a [u8],
    },
    /// See [`OpCode::Set`].
    Set {
        /// 1..=65535 bytes.
        key: &'a [u8],
        /// Within the server's limit.
        value: &'a [u8],
        /// When the key expires.
        expiry: Expiry,
        /// What must hold of the key.
        condition: Condition,
        /// When to answer.
        durability: Durability,
    },
    /// See [`OpCode::Delete`].
    Delete {
        /// 1..=65535 bytes.
        key: &'a [u8],
        /// Never [`Condition::IfAbsent`].
        condition: Condition,
        /// When to answer.
        durability: Durability,
    },
    /// See [`OpCode::Mget`].
    Mget {
        /// At least one; of any slots, in any order, repeats allowed.
        keys: Keys<'a>,
    },
    /// See [`OpCode::Batch`].
    Batch {
        /// At least one of them a write, all of one slot. They take effect in this order.
        ops: Ops<'a>,
        /// When to answer.
        durability: Durability,
    },
    /// See [`OpCode::Incr`].
    Incr {
        /// 1..=65535 bytes.
        key: &'a [u8],
        /// Added to the number that the key holds; an absent key counts as 0.
        amount: i64,
        /// When to answer.
        durability: Durability,
    },
    /// See [`OpCode::Stats`].
    Stats {
        /// Only this part; empty is all of it.
        section: &'a str,
    },
    /// See [`OpCode::Expire`].
    Expire {
        /// 1..=65535 bytes.
        key: &'a [u8],
        /// When it expires. A time that is past removes it.
        deadline: Deadline,
        /// Never [`Condition::IfAbsent`].
        condition: Condition,
        /// When to answer.
        durability: Durability,
    },
    /// See [`OpCode::Persist`].
    Persist {
        /// 1..=65535 bytes.
        key: &'a [u8],
        /// Never [`Condition::IfAbsent`].
        condition: Condition,
        /// When to answer.
        durability: Durability,
    },
    /// See [`OpCode::Ttl`].
    Ttl {
        /// 1..=65535 bytes.
        key: &'a [u8],
    },
    /// See [`OpCode::Scan`].
    Scan(ScanRequest<'a>),
    /// See [`OpCode::DeleteRange`] and [`OpCode::Flush`].
    DeleteRange(DeleteRange<'a>),
    /// See [`OpCode::Transact`].
    Transact(Transaction<'a>),
    /// See [`OpCode::Checkpoint`].
    Checkpoint {
        /// An absolute path on the server's machine, or [`SAVE`] or [`BGSAVE`].
        dir: &'a str,
    },
    /// See [`OpCode::Clients`].
    Clients(ClientsRequest<'a>),
    /// See [`OpCode::Tablets`].
    Tablets {
        /// In words: see [`crate::protocol::binary`].
        command: &'a str,
    },
}

/// Which keys decide where a request is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// None: any shard will do.
    Anywhere,
    /// This shard has what is asked for; if there is none with this number, any will do.
    Shard(usize),
    /// The owner of this slot executes all of it.
    Slot(Slot),
    /// Each key goes to the owner of its slot.
    Keys(Keys<'a>),
    /// Every shard does its part.
    Everywhere,
}

impl<'a> Request<'a> {
    /// Its operation.
    #[inline]
    pub fn opcode(&self) -> OpCode {
        match self {
            Request::Hello(_) => OpCode::Hello,
            Request::Ping { .. } => OpCode::Ping,
            Request::Get { .. } => OpCode::Get,
            Request::Set { .. } => OpCode::Set,
            Request::Delete { .. } => OpCode::Delete,
            Request::Mget { .. } => OpCode::Mget,
            Request::Batch { .. } => OpCode::Batch,
            Request::Incr { .. } => OpCode::Incr,
            Request::Stats { .. } => OpCode::Stats,
            Request::Expire { .. } => OpCode::Expire,
            Request::Persist { .. } => OpCode::Persist,
            Request::Ttl { .. } => OpCode::Ttl,
            Request::Scan(_) => OpCode::Scan,
            Request::DeleteRange(range) if range.is_everything() => OpCode::Flush,
            Request::DeleteRange(_) => OpCode::DeleteRange,
            Request::Transact(_) => OpCode::Transact,
            Request::Tablets { .. } => OpCode::Tablets,
            Request::Checkpoint { .. } => OpCode::Checkpoint,
            Request::Clients(_) => OpCode::Clients,
        }
    }

    /// Whether it may change a key.
    #[inline]
    pub fn is_write(&self) -> bool {
        self.opcode().is_write()
    }

    /// Which keys decide where it is executed.
    #[inline]
    pub fn route(&self) -> Route<'a> {
        match *self {
            Request::Hello(_) | Request::Ping { .. } | Request::Stats { .. } => Route::Anywhere,
            Request::Tablets { .. } | Request::Checkpoint { .. } => Route::Anywhere,
            Request::Clients(clients) => Route::Shard(usize::from(clients.shard)),
            Request::DeleteRange(_) => Route::Everywhere,
            Request::Get { key }
            | Request::Set { key, .. }
            | Request::Delete { key, .. }
            | Request::Incr { key, .. }
            | Request::Expire { key, .. }
            | Request::Persist { key, .. }
            | Request::Ttl { key }
            | Request::Transact(Transaction { key, .. }) => Route::Slot(Slot::of_key(key)),
            Request::Mget { keys } => Route::Keys(keys),
            Request::Batch { ops, .. } => Route::Slot(ops.slot()),
            Request::Scan(scan) => match (scan.slot(), scan.cursor) {
                _ if scan.is_local => Route::Anywhere,
                (Some(slot), _) => Route::Slot(slot),
                (None, Some(cursor)) if cursor.session != 0 => Route::Shard(usize::from(cursor.shard)),
                (None, _) => Route::Anywhere,
            },
        }
    }
}

/// What a server accepts. HELLO tells it to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest key.
    pub key_bytes_max: u32,
    /// Longest value, and longest payload of PING.
    pub value_bytes_max: u32,
    /// All items of a batch together, as they stand on the wire.
    pub batch_bytes_max: u32,
    /// Operations in a batch, keys in an MGET.
    pub items_max: u32,
    /// Longest frame, header included, in either direction.
    pub frame_bytes_max: u32,
    /// Bytes of requests without a reply that the server reads from one connection even if the client
    /// reads nothing. A client that keeps within it, or has one request without a reply, however large, never
    /// blocks against a server that blocks against it.
    pub pipeline_bytes_max: u32,
}

impl Limits {
    /// Frames longer than this are refused by every server, whatever its settings.
    pub const FRAME_BYTES_LIMIT: u32 =
        (HEADER_BYTES + PAGE_OVERHEAD + 2 * KEY_BYTES_MAX + VALUE_BYTES_LIMIT) as u32;

    /// The limits that follow from the largest value: a batch is one log entry, and a frame holds the
    /// largest value or batch with the longest key, and a cursor with another one, as a page of a scan may.
    ///
    /// # Panics
    /// If `value_bytes_max` is above [`VALUE_BYTES_LIMIT`], which the configuration refuses.
    pub fn for_values(value_bytes_max: usize) -> Limits {
        assert!(value_bytes_max <= VALUE_BYTES_LIMIT, "checked with the configuration");
        let frame_bytes_max =
            HEADER_BYTES + PAGE_OVERHEAD + 2 * KEY_BYTES_MAX + value_bytes_max.max(ENTRY_BYTES_MAX + 4);
        Limits {
            key_bytes_max: KEY_BYTES_MAX as u32,
            value_bytes_max: value_bytes_max as u32,
            batch_bytes_max: ENTRY_BYTES_MAX as u32,
            items_max: ENTRY_OPS_MAX as u32,
            frame_bytes_max: frame_bytes_max as u32,
            pipeline_bytes_max: 64 << 10,
        }
    }

    /// With another pipeline, for a server with memory for it.
    pub fn with_pipeline(self, pipeline_bytes_max: u32) -> Limits {
        Limits { pipeline_bytes_max, ..self }
    }
}

const _: () = assert!(ENTRY_BYTES_MAX + 4 <= VALUE_BYTES_LIMIT);
