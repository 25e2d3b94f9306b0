//! What the evaluator asks of a store: [`Keyspace`], and one in memory.

use std::borrow::Cow;
use std::collections::HashMap;
use std::convert::Infallible;

use crate::base::{EXPIRY_MS_MAX, VALUE_BYTES_DEFAULT_MAX};

/// A key's value and expiry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell<'a> {
    /// Its value. Owned if that costs the store nothing: some commands write it elsewhere as it is.
    pub value: Cow<'a, [u8]>,
    /// Milliseconds since 1970; 0 is never.
    pub expiry_ms: u64,
}

/// What is known of a key without its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Bytes of its value.
    pub len: usize,
    /// Milliseconds since 1970; 0 is never.
    pub expiry_ms: u64,
}

/// Keys and values, as one evaluation sees them: at one moment, and with what it has written itself.
///
/// Keys whose expiry is past do not exist. A lookup may stop the evaluation, for instance because a block has
/// to be read first; everything that was written and answered is then thrown away, and the command evaluated
/// again.
pub trait Keyspace {
    /// Why a lookup stops the evaluation.
    type Stop;

    /// Now, in milliseconds since 1970. The same during an evaluation.
    fn now_ms(&self) -> u64;

    /// Longest value in bytes. Longer ones are refused before they are written.
    fn value_bytes_max(&self) -> usize;

    /// Latest expiry, in milliseconds since 1970. Later ones become this.
    fn expiry_ms_max(&self) -> u64 {
        EXPIRY_MS_MAX
    }

    /// The key's value.
    fn get(&mut self, key: &[u8]) -> Result<Option<Cell<'_>>, Self::Stop>;

    /// Whether the key exists, without a look at its value.
    fn peek(&mut self, key: &[u8]) -> Result<Option<Meta>, Self::Stop>;

    /// Gives the key this value and expiry, 0 being none. What changes nothing is not put.
    fn put(&mut self, key: &[u8], value: Vec<u8>, expiry_ms: u64);

    /// Removes the key, which exists.
    fn delete(&mut self, key: &[u8]);

    /// Gives the key, which exists, another expiry, 0 being none.
    fn set_expiry(&mut self, key: &[u8], expiry_ms: u64) -> Result<(), Self::Stop> {
        if let Some(cell) = self.get(key)? {
            let value = cell.value.into_owned();
            self.put(key, value, expiry_ms);
        }
        Ok(())
    }
}

/// A keyspace in memory: for tests, and as the model that others are compared with.
#[derive(Clone, Debug)]
pub struct MemoryKeyspace {
    /// Now, in milliseconds since 1970.
    pub now_ms: u64,
    /// Longest value in bytes.
    pub value_bytes_max: usize,
    /// Latest expiry, in milliseconds since 1970.
    pub expiry_ms_max: u64,
    /// Puts and deletes so far.
    pub writes: usize,
    /// Values and expiries. Those that are past stay until they are overwritten.
    cells: HashMap<Vec<u8>, (Vec<u8>, u64)>,
}

impl MemoryKeyspace {
    /// Without keys, at this time.
    pub fn new(now_ms: u64) -> MemoryKeyspace {
        MemoryKeyspace {
            now_ms,
            value_bytes_max: VALUE_BYTES_DEFAULT_MAX,
            expiry_ms_max: EXPIRY_MS_MAX,
            writes: 0,
            cells: HashMap::new(),
        }
    }

    /// How many keys exist.
    pub fn len(&self) -> usize {
        self.cells.values().filter(|(_, expiry_ms)| !self.is_past(*expiry_ms)).count()
    }

    /// Whether no key exists.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn find(&self, key: &[u8]) -> Option<(&Vec<u8>, u64)> {
        let (value, expiry_ms) = self.cells.get(key)?;
        (!self.is_past(*expiry_ms)).then_some((value, *expiry_ms))
    }

    fn is_past(&self, expiry_ms: u64) -> bool {
        expiry_ms != 0 && expiry_ms <= self.now_ms
    }
}

impl Keyspace for MemoryKeyspace {
    type Stop = Infallible;

    fn now_ms(&self) -> u64 {
        self.now_ms
    }

    fn value_bytes_max(&self) -> usize {
        self.value_bytes_max
    }

    fn expiry_ms_max(&self) -> u64 {
        self.expiry_ms_max
    }

    fn get(&mut self, key: &[u8]) -> Result<Option<Cell<'_>>, Infallible> {
        Ok(self.find(key).map(|(value, expiry_ms)| Cell { value: Cow::Borrowed(value), expiry_ms }))
    }

    fn peek(&mut self, key: &[u8]) -> Result<Option<Meta>, Infallible> {
        Ok(self.find(key).map(|(value, expiry_ms)| Meta { len: value.len(), expiry_ms }))
    }

    fn put(&mut self, key: &[u8], value: Vec<u8>, expiry_ms: u64) {
        assert!(value.len() <= self.value_bytes_max, "longer values are refused before");
        assert!(expiry_ms <= self.expiry_ms_max, "later times are brought down before");
        assert!(!self.is_past(expiry_ms), "what would be past at once is deleted");
        self.writes += 1;
        self.cells.insert(key.to_vec(), (value, expiry_ms));
    }

    fn delete(&mut self, key: &[u8]) {
        assert!(self.find(key).is_some(), "what does not exist is not deleted");
        self.writes += 1;
        self.cells.remove(key);
    }
}
