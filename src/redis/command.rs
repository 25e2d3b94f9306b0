//! Commands on strings and keys, with their arguments understood.

use smallvec::SmallVec;

use super::extended::Extended;
use super::fault::Fault;
use super::parse;

/// Keys of a command, in the order of its arguments.
pub type Keys<'a> = SmallVec<[&'a [u8]; 4]>;

/// A command that reads or writes strings and keys. Every name that Redis has for the same thing is one
/// variant; [`Command::name`] tells which was used.
///
/// A field that is a `Result` holds an argument that Redis only looks at once it knows something of the key:
/// its fault may never be told.
#[derive(Clone, Debug, PartialEq)]
pub enum Command<'a> {
    /// GET.
    Get {
        /// Its key.
        key: &'a [u8],
    },
    /// SET, SETNX, SETEX, PSETEX, GETSET.
    Set(Set<'a>),
    /// GETDEL.
    GetDel {
        /// Its key.
        key: &'a [u8],
    },
    /// GETEX.
    GetEx {
        /// Its key.
        key: &'a [u8],
        /// What becomes of its expiry.
        change: ExpiryChange,
    },
    /// MGET.
    MGet {
        /// Its keys.
        keys: Keys<'a>,
    },
    /// MSET, MSETNX.
    MSet {
        /// Keys and their values.
        pairs: SmallVec<[(&'a [u8], &'a [u8]); 2]>,
        /// Only if none of the keys exists.
        only_new: bool,
    },
    /// APPEND.
    Append {
        /// Its key.
        key: &'a [u8],
        /// What is added at the end.
        tail: &'a [u8],
    },
    /// STRLEN.
    StrLen {
        /// Its key.
        key: &'a [u8],
    },
    /// GETRANGE, SUBSTR.
    GetRange {
        /// Its key.
        key: &'a [u8],
        /// First byte; negative counts from the end.
        start: i64,
        /// Last byte, included; negative counts from the end.
        end: i64,
        /// Which of the two.
        name: &'static str,
    },
    /// SETRANGE.
    SetRange {
        /// Its key.
        key: &'a [u8],
        /// Of the first byte that is overwritten.
        offset: u64,
        /// What is written there.
        bytes: &'a [u8],
    },
    /// INCR, DECR, INCRBY, DECRBY.
    Add {
        /// Its key.
        key: &'a [u8],
        /// What is added.
        delta: i64,
        /// Which of the four.
        name: &'static str,
    },
    /// INCRBYFLOAT.
    AddFloat {
        /// Its key.
        key: &'a [u8],
        /// What is added.
        delta: Extended,
    },
    /// LCS.
    Lcs(Lcs<'a>),
    /// DEL, UNLINK.
    Delete {
        /// Its keys.
        keys: Keys<'a>,
        /// Which of the two.
        name: &'static str,
    },
    /// EXISTS, TOUCH.
    Count {
        /// Its keys. One that stands twice counts twice.
        keys: Keys<'a>,
        /// Which of the two.
        name: &'static str,
    },
    /// TYPE.
    Type {
        /// Its key.
        key: &'a [u8],
    },
    /// RENAME, RENAMENX.
    Rename {
        /// The key that goes.
        source: &'a [u8],
        /// The key that it becomes.
        target: &'a [u8],
        /// Only if the target does not exist.
        only_new: bool,
    },
    /// COPY.
    Copy {
        /// The key that is copied.
        source: &'a [u8],
        /// The key that becomes its copy.
        target: &'a [u8],
        /// Also if the target exists.
        replaces: bool,
    },
    /// EXPIRE, PEXPIRE, EXPIREAT, PEXPIREAT.
    Expire(Expire<'a>),
    /// TTL, PTTL, EXPIRETIME, PEXPIRETIME.
    Ttl {
        /// Its key.
        key: &'a [u8],
        /// Milliseconds rather than seconds.
        in_ms: bool,
        /// The time itself rather than what is left until then.
        is_absolute: bool,
        /// Which of the four.
        name: &'static str,
    },
    /// PERSIST.
    Persist {
        /// Its key.
        key: &'a [u8],
    },
    /// SETBIT.
    SetBit {
        /// Its key.
        key: &'a [u8],
        /// Which bit, from the highest of the first byte.
        offset: u64,
        /// What it becomes.
        bit: Result<bool, Fault>,
    },
    /// GETBIT.
    GetBit {
        /// Its key.
        key: &'a [u8],
        /// Which bit, from the highest of the first byte.
        offset: u64,
    },
    /// BITCOUNT.
    BitCount {
        /// Its key.
        key: &'a [u8],
        /// Where. Nothing: everywhere.
        range: Result<Option<BitRange>, Fault>,
    },
    /// BITPOS.
    BitPos {
        /// Its key.
        key: &'a [u8],
        /// The bit that is sought.
        bit: bool,
        /// Where. Nothing: everywhere.
        range: Result<Option<BitRange>, Fault>,
    },
    /// BITOP.
    BitOp {
        /// What is done to the sources.
        operation: BitOperation,
        /// The key that becomes the result.
        target: &'a [u8],
        /// One for [`BitOperation::Not`], else one or more.
        sources: Keys<'a>,
    },
    /// BITFIELD, BITFIELD_RO.
    BitField(BitField<'a>),
    /// OBJECT with a key.
    Object {
        /// Its key.
        key: &'a [u8],
        /// What is asked.
        question: ObjectQuestion,
    },
    /// OBJECT HELP.
    ObjectHelp,
    /// MEMORY USAGE.
    MemoryUsage {
        /// Its key.
        key: &'a [u8],
    },
}

/// SET and its shorter forms.
#[derive(Clone, Debug, PartialEq)]
pub struct Set<'a> {
    /// Its key.
    pub key: &'a [u8],
    /// Its new value.
    pub value: &'a [u8],
    /// What must hold of the key.
    pub condition: Condition,
    /// What becomes of its expiry.
    pub expiry: SetExpiry,
    /// Whether the old value is the answer.
    pub returns_old: bool,
    /// Our own SYNC and NOSYNC; nothing: as the server is set.
    pub durability: Option<SyncWish>,
    /// Which of SET, SETNX, SETEX, PSETEX, GETSET: SETNX answers with a number.
    pub name: &'static str,
}

/// What must hold of the key that SET writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    #[default]
    Always,
    /// NX: it does not exist.
    Absent,
    /// XX: it exists.
    Present,
}

/// What SET does to the key's expiry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetExpiry {
    /// It has none from now on.
    #[default]
    Clear,
    /// KEEPTTL: it stays.
    Keep,
    /// It is this.
    To(Time),
}

/// What GETEX does to the key's expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpiryChange {
    /// Nothing.
    Keep,
    /// It has none from now on.
    Clear,
    /// It is this.
    To(Result<Time, Fault>),
}

/// When a write is to be answered, where the command says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncWish {
    /// SYNC: once it is on disk.
    Sync,
    /// NOSYNC: at once.
    NoSync,
}

/// A time in milliseconds: from now, or since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// So long from now; negative is past.
    In(i64),
    /// Then.
    At(i64),
}

impl Time {
    /// Milliseconds since 1970, when it is `now_ms`. `None` beyond 64 bits.
    #[inline]
    pub fn resolve(self, now_ms: u64) -> Option<i64> {
        match self {
            Time::In(ms) => ms.checked_add_unsigned(now_ms),
            Time::At(ms) => Some(ms),
        }
    }
}

/// EXPIRE and its three relatives.
#[derive(Clone, Debug, PartialEq)]
pub struct Expire<'a> {
    /// Its key.
    pub key: &'a [u8],
    /// When it goes. Past: at once.
    pub time: Time,
    /// NX: only if the key has no expiry.
    pub only_new: bool,
    /// XX: only if it has one.
    pub only_existing: bool,
    /// GT, LT: only if the new one is later, earlier. A key without expiry counts as one that goes last of
    /// all.
    pub only: Option<Than>,
    /// Which of the four.
    pub name: &'static str,
}

/// How the new expiry must compare with the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Than {
    /// GT.
    Later,
    /// LT.
    Earlier,
}

/// LCS: the longest subsequence that two strings share.
#[derive(Clone, Debug, PartialEq)]
pub struct Lcs<'a> {
    /// The two keys. An absent one counts as empty.
    pub keys: [&'a [u8]; 2],
    /// What is answered.
    pub answer: LcsAnswer,
}

/// What LCS answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LcsAnswer {
    /// The subsequence.
    Text,
    /// LEN: its length.
    Len,
    /// IDX: where it is found, and its length.
    Matches {
        /// MINMATCHLEN: shorter pieces are left out.
        len_min: u64,
        /// WITHMATCHLEN: each piece's length as well.
        with_len: bool,
    },
}

/// A part of a string, as BITCOUNT and BITPOS take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitRange {
    /// First; negative counts from the end.
    pub start: i64,
    /// Last, included; negative counts from the end. Nothing: the end, and beyond it zeros.
    pub end: Option<i64>,
    /// BIT: both count bits, not bytes.
    pub in_bits: bool,
}

/// What BITOP does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitOperation {
    /// Bits that all have.
    And,
    /// Bits that one has.
    Or,
    /// Bits that an odd number has.
    Xor,
    /// Bits that it has not.
    Not,
}

/// BITFIELD: integers of any width in a string.
#[derive(Clone, Debug, PartialEq)]
pub struct BitField<'a> {
    /// Its key.
    pub key: &'a [u8],
    /// What is done, in order.
    pub steps: Vec<FieldStep>,
    /// What is wrong behind the last step, if anything is. Looked at after the steps' offsets.
    pub rest: Result<(), Fault>,
    /// Which of the two.
    pub name: &'static str,
}

/// A step of BITFIELD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FieldStep {
    /// Of its first, highest bit.
    pub offset: u64,
    /// 1 to 64.
    pub bits: u8,
    /// Whether the highest bit is a sign.
    pub is_signed: bool,
    /// What is done.
    pub action: FieldAction,
}

/// What a step of BITFIELD does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldAction {
    /// Answers it.
    Get,
    /// Sets it and answers what it was.
    Set(i64, FieldOverflow),
    /// Adds to it and answers the sum.
    Add(i64, FieldOverflow),
}

/// What happens to a number that a field does not hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FieldOverflow {
    /// Its lower bits stay.
    #[default]
    Wrap,
    /// It becomes the nearest that the field holds.
    Saturate,
    /// Nothing is written.
    Fail,
}

/// What OBJECT is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectQuestion {
    /// How Redis would hold the value.
    Encoding,
    /// How often it was used, which nobody counts.
    Freq,
    /// How long it was not used, which nobody measures.
    IdleTime,
    /// How many share it.
    RefCount,
}

impl<'a> Command<'a> {
    /// Understands a command; `args` begin with its name, in any case.
    ///
    /// Faults are those that Redis finds first, in its order, whatever the keys hold. Names of other commands
    /// than these are [`Fault::UnknownCommand`].
    #[inline]
    pub fn parse(args: &[&'a [u8]]) -> Result<Command<'a>, Fault> {
        parse::parse(args)
    }

    /// The keys that it reads or writes, as often as they are named.
    pub fn keys(&self) -> Keys<'a> {
        let mut keys = Keys::new();
        match self {
            Command::Get { key }
            | Command::Set(Set { key, .. })
            | Command::GetDel { key }
            | Command::GetEx { key, .. }
            | Command::Append { key, .. }
            | Command::StrLen { key }
            | Command::GetRange { key, .. }
            | Command::SetRange { key, .. }
            | Command::Add { key, .. }
            | Command::AddFloat { key, .. }
            | Command::Type { key }
            | Command::Expire(Expire { key, .. })
            | Command::Ttl { key, .. }
            | Command::Persist { key }
            | Command::SetBit { key, .. }
            | Command::GetBit { key, .. }
            | Command::BitCount { key, .. }
            | Command::BitPos { key, .. }
            | Command::BitField(BitField { key, .. })
            | Command::Object { key, .. }
            | Command::MemoryUsage { key } => keys.push(key),
            Command::MGet { keys: all }
            | Command::Delete { keys: all, .. }
            | Command::Count { keys: all, .. } => {
                keys.extend_from_slice(all);
            }
            Command::MSet { pairs, .. } => keys.extend(pairs.iter().map(|(key, _)| *key)),
            Command::Lcs(lcs) => keys.extend_from_slice(&lcs.keys),
            Command::Rename { source, target, .. } | Command::Copy { source, target, .. } => {
                keys.extend_from_slice(&[source, target]);
            }
            Command::BitOp { target, sources, .. } => {
                keys.push(target);
                keys.extend_from_slice(sources);
            }
            Command::ObjectHelp => {}
        }
        keys
    }

    /// Whether it can change anything, as Redis' table of commands says.
    pub fn is_write(&self) -> bool {
        match self {
            Command::Set(_)
            | Command::GetDel { .. }
            | Command::GetEx { .. }
            | Command::MSet { .. }
            | Command::Append { .. }
            | Command::SetRange { .. }
            | Command::Add { .. }
            | Command::AddFloat { .. }
            | Command::Delete { .. }
            | Command::Rename { .. }
            | Command::Copy { .. }
            | Command::Expire(_)
            | Command::Persist { .. }
            | Command::SetBit { .. }
            | Command::BitOp { .. } => true,
            Command::BitField(field) => field.name == "bitfield",
            Command::Get { .. }
            | Command::MGet { .. }
            | Command::StrLen { .. }
            | Command::GetRange { .. }
            | Command::Lcs(_)
            | Command::Count { .. }
            | Command::Type { .. }
            | Command::Ttl { .. }
            | Command::GetBit { .. }
            | Command::BitCount { .. }
            | Command::BitPos { .. }
            | Command::Object { .. }
            | Command::ObjectHelp
            | Command::MemoryUsage { .. } => false,
        }
    }

    /// Its name as errors and statistics write it: in small letters, a subcommand behind a bar.
    pub fn name(&self) -> &'static str {
        match self {
            Command::Get { .. } => "get",
            Command::Set(set) => set.name,
            Command::GetDel { .. } => "getdel",
            Command::GetEx { .. } => "getex",
            Command::MGet { .. } => "mget",
            Command::MSet { only_new, .. } => {
                if *only_new {
                    "msetnx"
                } else {
                    "mset"
                }
            }
            Command::Append { .. } => "append",
            Command::StrLen { .. } => "strlen",
            Command::GetRange { name, .. }
            | Command::Add { name, .. }
            | Command::Delete { name, .. }
            | Command::Count { name, .. }
            | Command::Ttl { name, .. } => name,
            Command::SetRange { .. } => "setrange",
            Command::AddFloat { .. } => "incrbyfloat",
            Command::Lcs(_) => "lcs",
            Command::Type { .. } => "type",
            Command::Rename { only_new, .. } => {
                if *only_new {
                    "renamenx"
                } else {
                    "rename"
                }
            }
            Command::Copy { .. } => "copy",
            Command::Expire(expire) => expire.name,
            Command::Persist { .. } => "persist",
            Command::SetBit { .. } => "setbit",
            Command::GetBit { .. } => "getbit",
            Command::BitCount { .. } => "bitcount",
            Command::BitPos { .. } => "bitpos",
            Command::BitOp { .. } => "bitop",
            Command::BitField(field) => field.name,
            Command::Object { question, .. } => match question {
                ObjectQuestion::Encoding => "object|encoding",
                ObjectQuestion::Freq => "object|freq",
                ObjectQuestion::IdleTime => "object|idletime",
                ObjectQuestion::RefCount => "object|refcount",
            },
            Command::ObjectHelp => "object|help",
            Command::MemoryUsage { .. } => "memory|usage",
        }
    }
}
