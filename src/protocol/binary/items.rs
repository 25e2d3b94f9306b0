//! Lists inside a frame: keys of MGET, operations of BATCH, values of MGET's reply, what a TRANSACT is made of. Each is checked whole
//! when it is decoded, so that walking over it later cannot fail.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::ops::split_op;
use super::transaction::{Step, Watch, split_step, split_watch};
use crate::base::Lsn;
use crate::protocol::BatchOp;
use crate::slot::Slot;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct WireValue {
    pub present: u8,
    pub reserved: [u8; 3],
    pub value_len: U32,
    pub version: U64,
}

const _: () = assert!(size_of::<WireValue>() == 16);

/// The first item of `bytes` and what follows it; `None` if it does not parse.
type Split<'a, T> = Option<(T, &'a [u8])>;

pub(super) fn split_key(bytes: &[u8]) -> Split<'_, &[u8]> {
    let (len, rest) = U16::ref_from_prefix(bytes).ok()?;
    let key = rest.split_at_checked(usize::from(len.get()))?;
    (len.get() > 0).then_some(key)
}

/// A present key's value in the reply to MGET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value<'a> {
    /// The value's version.
    pub version: Lsn,
    /// The value.
    pub value: &'a [u8],
}

pub(super) fn split_value(bytes: &[u8]) -> Split<'_, Option<Value<'_>>> {
    let (wire, rest) = WireValue::ref_from_prefix(bytes).ok()?;
    let (value, rest) = rest.split_at_checked(wire.value_len.get() as usize)?;
    let version = Lsn(wire.version.get());
    match wire.present {
        0 if value.is_empty() && version == Lsn::ZERO => Some((None, rest)),
        1 if version != Lsn::ZERO => Some((Some(Value { version, value }), rest)),
        _ => None,
    }
}

macro_rules! list {
    ($(#[$doc:meta])+ $name:ident, $item:ty, $split:ident) => {
        $(#[$doc])+
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name<'a> {
            /// Items that are left.
            count: usize,
            /// Their bytes; they parse.
            bytes: &'a [u8],
        }

        impl<'a> $name<'a> {
            /// Checks a list that starts with its count.
            pub(super) fn parse(
                list: &'a [u8],
                count_max: u32,
                mut check: impl FnMut(&$item) -> bool,
            ) -> Result<$name<'a>, ListError> {
                let (count, bytes) = U32::ref_from_prefix(list).map_err(|_| ListError::Broken(0))?;
                if count.get() > count_max {
                    return Err(ListError::TooMany(count.get()));
                }
                let mut rest = bytes;
                for index in 0..count.get() {
                    let (item, after) = $split(rest).ok_or(ListError::Broken(index))?;
                    if !check(&item) {
                        return Err(ListError::Refused(index));
                    }
                    rest = after;
                }
                if !rest.is_empty() {
                    return Err(ListError::Broken(count.get()));
                }
                Ok($name { count: count.get() as usize, bytes })
            }

            /// Items that the iterator has yet to give.
            #[inline]
            pub fn len(&self) -> usize {
                self.count
            }

            /// Whether none is left.
            #[inline]
            pub fn is_empty(&self) -> bool {
                self.count == 0
            }

            /// The items' bytes as they stand on the wire, without the count.
            #[inline]
            pub fn wire_bytes(&self) -> &'a [u8] {
                self.bytes
            }
        }

        impl<'a> Iterator for $name<'a> {
            type Item = $item;

            #[inline]
            fn next(&mut self) -> Option<$item> {
                self.count = self.count.checked_sub(1)?;
                let (item, rest) = $split(self.bytes).expect("checked when the list was decoded or written");
                self.bytes = rest;
                Some(item)
            }

            fn size_hint(&self) -> (usize, Option<usize>) {
                (self.count, Some(self.count))
            }
        }

        impl ExactSizeIterator for $name<'_> {}
    };
}

/// Why a list does not parse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ListError {
    /// The item of this index is cut short or has an unknown kind; or something follows the last one.
    Broken(u32),
    /// More items than allowed: how many.
    TooMany(u32),
    /// The caller's check refused the item of this index.
    Refused(u32),
}

list! {
    /// The keys of an MGET: an iterator that may be copied and started again.
    Keys, &'a [u8], split_key
}
list! {
    /// The items of a BATCH: an iterator that may be copied and started again.
    Ops, BatchOp<'a>, split_op
}
list! {
    /// The values in the reply to MGET, `None` for an absent key: an iterator that may be copied and
    /// started again.
    Values, Option<Value<'a>>, split_value
}

list! {
    /// The keys that a TRANSACT watches: an iterator that may be copied and started again.
    Watches, Watch<'a>, split_watch
}
list! {
    /// The steps of a TRANSACT: an iterator that may be copied and started again.
    Steps, Step<'a>, split_step
}

impl<'a> Watches<'a> {
    /// A list whose items were written by this process, one by one.
    pub(super) fn written(count: usize, bytes: &'a [u8]) -> Watches<'a> {
        Watches { count, bytes }
    }
}

impl<'a> Steps<'a> {
    /// A list whose items were written by this process, one by one.
    pub(super) fn written(count: usize, bytes: &'a [u8]) -> Steps<'a> {
        Steps { count, bytes }
    }
}

impl<'a> Keys<'a> {
    /// A list whose items were written by this process, one by one.
    pub(super) fn of_written(count: usize, bytes: &'a [u8]) -> Keys<'a> {
        Keys { count, bytes }
    }
}

impl<'a> Ops<'a> {
    /// A list whose items were written by this process, one by one.
    pub(super) fn of_written(count: usize, bytes: &'a [u8]) -> Ops<'a> {
        Ops { count, bytes }
    }

    /// The slot of all its keys.
    ///
    /// # Panics
    /// If it has been iterated to its end.
    pub fn slot(&self) -> Slot {
        let (first, _) = split_op(self.bytes).expect("a batch has at least one operation");
        Slot::of_key(first.key)
    }
}
