//! Numbers, names and limits that every layer shares. No I/O, no state.

mod checksum;
mod codec;
mod id;
mod limits;
mod lsn;
mod op;
mod planted;
mod prefetch;

pub use checksum::{crc32c, crc32c_append};
pub use codec::{Codec, Compression};
pub use id::{BlockSeq, FileId, LogId, TableName, TabletId};
pub use limits::*;
pub use lsn::{EntryIndex, Lsn};
pub use op::{Entry, Op, OpDecodeError, OpIter, OpKind};
pub use planted::{Bug, planted};
pub use prefetch::prefetch;
