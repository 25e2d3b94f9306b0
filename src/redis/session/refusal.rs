//! What a client of Redis is told of our refusals.

use crate::error::{Code, Refusal};

/// The text of an error reply, with the code word that clients act on.
pub(super) fn text_of(refusal: &Refusal) -> String {
    let message = &refusal.message;
    match refusal.code {
        Code::NotAnInteger => "ERR value is not an integer or out of range".to_owned(),
        Code::IncrementOverflow => "ERR increment or decrement would overflow".to_owned(),
        Code::ValueTooLarge => "ERR string exceeds maximum allowed size (proto-max-bulk-len)".to_owned(),
        Code::CrossSlot => CROSS_SLOT.to_owned(),
        // Clients of clusters try these again, and those of single servers show them.
        Code::SlotMoving => format!("TRYAGAIN {message}"),
        Code::Overloaded => format!("OOM {message}"),
        // What Redis says when it can't write what it promised to keep.
        Code::DiskFull | Code::ShardFailed | Code::WriteFailed => format!("MISCONF {message}"),
        _ => format!("ERR {message}"),
    }
}

/// Keys of one command that are of several slots.
pub(super) const CROSS_SLOT: &str = "CROSSSLOT Keys in request don't hash to the same slot";
