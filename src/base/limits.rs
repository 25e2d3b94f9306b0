//! Limits that formats and protocols share, each with its derivation.

/// Longest key in bytes. A key's length is a `u16` in every format.
pub const KEY_BYTES_MAX: usize = 65_535;

/// Default of `--max-value-size`.
pub const VALUE_BYTES_DEFAULT_MAX: usize = 16 << 20;

/// Largest value `--max-value-size` may allow. One value is one log entry, one entry is inside one
/// block, and a block must fit a log segment ([`SEGMENT_BYTES_DEFAULT`]) with room to spare.
pub const VALUE_BYTES_LIMIT: usize = 32 << 20;

/// Default size of a write-ahead log segment.
pub const SEGMENT_BYTES_DEFAULT: u64 = 64 << 20;

/// Operations in one log entry. The ordinal in the entry is the low 16 bits of the LSN.
pub const ENTRY_OPS_MAX: usize = 65_535;

/// Bytes of operations after which an entry is closed and the next one begun. A single larger
/// operation makes an entry of its own; a larger atomic batch is refused.
pub const ENTRY_BYTES_MAX: usize = 1 << 20;

/// Latest expiry time, in milliseconds since the epoch, and longest time to live: 48 bits reach into the year
/// 10889. A time in micro- or nanoseconds, the usual mistake, is beyond; and no sum of a time and a time to
/// live overflows.
pub const EXPIRY_MS_MAX: u64 = (1 << 48) - 1;

/// The unit of every O_DIRECT read and write, in offset, length and memory alignment. The device may
/// need less; trusting what it claims is not worth it.
pub const PAGE_SIZE: usize = 4096;

/// Whether there are only zeros. Looks at 64 bytes at a time, which the compiler makes a few instructions.
pub fn is_blank(bytes: &[u8]) -> bool {
    bytes.chunks(64).all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

/// Rounds `bytes` up to whole pages.
#[inline]
pub const fn page_align(bytes: usize) -> usize {
    (bytes + PAGE_SIZE - 1) & !(PAGE_SIZE - 1)
}
