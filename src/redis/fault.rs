//! Why a command gets an error instead of an answer, and what the error says.
//!
//! The sentences are Redis' own, since clients and people look for them.

use crate::protocol::resp;

/// Bytes of a name, and of all arguments together, that the refusal of an unknown command repeats.
const REPEATED_BYTES_MAX: usize = 128;

/// Why a command is answered with an error.
///
/// Small and without owned bytes: what a sentence repeats of the command is found again in its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No command of this name is evaluated here. Whoever knows more commands looks further.
    #[error("ERR unknown command")]
    UnknownCommand,
    /// The container command in capitals has no such subcommand as the first argument says.
    #[error("ERR unknown subcommand. Try {0} HELP.")]
    UnknownSubcommand(&'static str),
    /// More or fewer arguments than the command takes.
    #[error("ERR wrong number of arguments for '{0}' command")]
    Arity(&'static str),
    /// An option that is not known here, stands twice in different forms, or lacks its value.
    #[error("ERR syntax error")]
    Syntax,
    /// No integer of 64 bits in its one accepted form.
    #[error("ERR value is not an integer or out of range")]
    NotInteger,
    /// An integer, but not of 32 bits.
    #[error("ERR value is out of range, value must between -2147483648 and 2147483647")]
    NotInteger32,
    /// No number that x87's extended precision can hold.
    #[error("ERR value is not a valid float")]
    NotFloat,
    /// The sum is no integer of 64 bits.
    #[error("ERR increment or decrement would overflow")]
    Overflow,
    /// The subtrahend has no negative counterpart.
    #[error("ERR decrement would overflow")]
    DecrementOverflow,
    /// The sum is beyond what x87's extended precision can hold.
    #[error("ERR increment would produce NaN or Infinity")]
    NotFinite,
    /// A time of the named command that is not positive or beyond 64 bits.
    #[error("ERR invalid expire time in '{0}' command")]
    ExpireTime(&'static str),
    /// The argument of this index is no option of EXPIRE.
    #[error("ERR Unsupported option")]
    UnsupportedOption(usize),
    /// Conditions of EXPIRE that exclude each other.
    #[error("ERR NX and XX, GT or LT options at the same time are not compatible")]
    ExpireNxAndOthers,
    /// Conditions of EXPIRE that exclude each other.
    #[error("ERR GT and LT options at the same time are not compatible")]
    ExpireGtAndLt,
    /// The key that is to be renamed is absent.
    #[error("ERR no such key")]
    NoSuchKey,
    /// A copy onto itself.
    #[error("ERR source and destination objects are the same")]
    SameObject,
    /// There is only database 0.
    #[error("ERR DB index is out of range")]
    DbIndex,
    /// The value would be longer than values may be.
    #[error("ERR string exceeds maximum allowed size (proto-max-bulk-len)")]
    TooLong,
    /// A negative offset of SETRANGE.
    #[error("ERR offset is out of range")]
    Offset,
    /// A bit's offset that is negative, no integer, or in a byte beyond the longest value.
    #[error("ERR bit offset is not an integer or out of range")]
    BitOffset,
    /// A bit to write that is neither 0 nor 1.
    #[error("ERR bit is not an integer or out of range")]
    Bit,
    /// A bit to look for that is neither 0 nor 1.
    #[error("ERR The bit argument must be 1 or 0.")]
    BitSought,
    /// BITOP NOT of more than one key.
    #[error("ERR BITOP NOT must be called with a single source key.")]
    BitOpNot,
    /// No type of a bit field.
    #[error(
        "ERR Invalid bitfield type. Use something like i16 u8. Note that u64 is not supported but i64 is."
    )]
    BitFieldType,
    /// No way to treat an overflow of a bit field.
    #[error("ERR Invalid OVERFLOW type specified")]
    BitFieldOverflow,
    /// BITFIELD_RO with a step that writes.
    #[error("ERR BITFIELD_RO only supports the GET subcommand")]
    BitFieldReadOnly,
    /// LCS can answer one of the two.
    #[error("ERR If you want both the length and indexes, please just use IDX.")]
    LcsLenAndIdx,
    /// The table of LCS would be larger than [`super::LCS_CELLS_MAX`].
    #[error("ERR Insufficient memory, transient memory for LCS exceeds proto-max-bulk-len")]
    LcsMemory,
    /// OBJECT FREQ, where no frequencies are kept.
    #[error(
        "ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please note that when \
         switching between policies at runtime LRU and LFU data will take some time to adjust."
    )]
    NoFrequency,
}

impl Fault {
    /// Whether the command is refused at once when MULTI would only queue it. Other faults are found when it
    /// is executed.
    pub fn is_found_when_queued(self) -> bool {
        matches!(self, Fault::UnknownCommand | Fault::UnknownSubcommand(_) | Fault::Arity(_))
    }

    /// Appends the reply. `args` are those of the command, its name the first: some sentences repeat of them.
    pub fn write(self, args: &[&[u8]], out: &mut Vec<u8>) {
        match self {
            Fault::UnknownCommand => resp::error_bytes(out, &unknown_command(args)),
            Fault::UnknownSubcommand(container) => {
                let mut text = b"ERR unknown subcommand '".to_vec();
                text.extend(repeated(args.get(1).copied().unwrap_or_default(), REPEATED_BYTES_MAX));
                text.extend(format!("'. Try {container} HELP.").bytes());
                resp::error_bytes(out, &text);
            }
            Fault::UnsupportedOption(index) => {
                let mut text = b"ERR Unsupported option ".to_vec();
                text.extend(repeated(args.get(index).copied().unwrap_or_default(), usize::MAX));
                // Redis takes line breaks off the end of this sentence, and not off the two above.
                while matches!(text.last(), Some(b'\r' | b'\n')) {
                    text.pop();
                }
                resp::error_bytes(out, &text);
            }
            _ => resp::error(out, &self.to_string()),
        }
    }
}

/// The refusal of a command whose name nobody knows; `args` begin with it. Bytes, since it repeats what was
/// sent: of the name and of all arguments together about 128 bytes each, and of each only up to a NUL.
pub fn unknown_command(args: &[&[u8]]) -> Vec<u8> {
    let name = args.first().copied().unwrap_or_default();
    let mut tail = Vec::new();
    for arg in args.iter().skip(1) {
        if tail.len() >= REPEATED_BYTES_MAX {
            break;
        }
        let room = REPEATED_BYTES_MAX - tail.len();
        tail.push(b'\'');
        tail.extend(repeated(arg, room));
        tail.extend(b"' ");
    }
    let mut text = b"ERR unknown command '".to_vec();
    text.extend(repeated(name, REPEATED_BYTES_MAX));
    text.extend(b"', with args beginning with: ");
    text.extend(tail);
    text
}

/// What Redis prints of an argument: up to a NUL, and no more than `len_max` bytes.
fn repeated(arg: &[u8], len_max: usize) -> &[u8] {
    let len = arg.iter().take(len_max).position(|&byte| byte == 0).unwrap_or(arg.len().min(len_max));
    &arg[..len]
}
