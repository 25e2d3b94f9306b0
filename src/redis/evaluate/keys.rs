//! Commands that concern keys, whatever their values.

use super::{Outcome, Run};
use crate::protocol::resp;
use crate::redis::command::ObjectQuestion;
use crate::redis::fault::Fault;
use crate::redis::keyspace::Keyspace;
use crate::redis::number::parse_i64;

/// Bytes of the longest value that Redis holds in one piece with its head.
const EMBEDDED_BYTES_MAX: usize = 44;
/// Redis has one object for each number below this, and says that so many use it.
const SHARED_NUMBERS: std::ops::Range<i64> = 0..10_000;
const SHARED_COUNT: i64 = i32::MAX as i64;
/// What a key costs in memory beside its bytes and its value's: an entry's header and place in the index,
/// about.
const ENTRY_BYTES: usize = 48;

/// What OBJECT HELP answers, a line each.
const OBJECT_HELP: [&str; 11] = [
    "OBJECT <subcommand> [<key>]. Subcommands are:",
    "ENCODING <key>",
    "    How Redis would hold the value: int, embstr or raw.",
    "FREQ <key>",
    "    An error: how often keys are used is not counted.",
    "IDLETIME <key>",
    "    Always 0: when keys were used is not recorded.",
    "REFCOUNT <key>",
    "    How many keys share the value in Redis: more than one for small numbers.",
    "HELP",
    "    This text.",
];

impl<K: Keyspace> Run<'_, K> {
    pub(super) fn delete_keys(&mut self, keys: &[&[u8]]) -> Outcome<(), K> {
        let mut count = 0;
        for key in keys {
            if self.exists(key)? {
                self.space.delete(key);
                count += 1;
            }
        }
        self.integer(count)
    }

    pub(super) fn count(&mut self, keys: &[&[u8]]) -> Outcome<(), K> {
        let mut count = 0;
        for key in keys {
            count += i64::from(self.exists(key)?);
        }
        self.integer(count)
    }

    pub(super) fn type_of(&mut self, key: &[u8]) -> Outcome<(), K> {
        let name = if self.exists(key)? { "string" } else { "none" };
        resp::simple(self.out, name);
        Ok(())
    }

    pub(super) fn rename(&mut self, source: &[u8], target: &[u8], only_new: bool) -> Outcome<(), K> {
        if !self.exists(source)? {
            return Err(Fault::NoSuchKey.into());
        }
        // Onto itself there is nothing to do; and then the target exists, which RENAMENX answers with 0.
        let is_refused = only_new && self.exists(target)?;
        if !is_refused && source != target {
            let (value, expiry_ms) = self.take(source, 0)?;
            self.put(target, value, expiry_ms)?;
            self.space.delete(source);
        }
        if only_new { self.integer(i64::from(!is_refused)) } else { self.ok() }
    }

    pub(super) fn copy(&mut self, source: &[u8], target: &[u8], replaces: bool) -> Outcome<(), K> {
        let is_done = self.exists(source)? && (replaces || !self.exists(target)?);
        if is_done {
            let (value, expiry_ms) = self.take(source, 0)?;
            self.put(target, value, expiry_ms)?;
        }
        self.integer(i64::from(is_done))
    }

    pub(super) fn object(&mut self, key: &[u8], question: ObjectQuestion) -> Outcome<(), K> {
        if !self.exists(key)? {
            return self.null();
        }
        match question {
            ObjectQuestion::Freq => Err(Fault::NoFrequency.into()),
            ObjectQuestion::IdleTime => self.integer(0),
            ObjectQuestion::Encoding => {
                let (number, len) = self.number_of(key)?;
                let name = match number {
                    Some(_) => "int",
                    None if len <= EMBEDDED_BYTES_MAX => "embstr",
                    None => "raw",
                };
                resp::bulk(self.out, name.as_bytes());
                Ok(())
            }
            ObjectQuestion::RefCount => {
                let is_shared = self.number_of(key)?.0.is_some_and(|n| SHARED_NUMBERS.contains(&n));
                self.integer(if is_shared { SHARED_COUNT } else { 1 })
            }
        }
    }

    /// The number that a value is, if it is one, and its bytes.
    fn number_of(&mut self, key: &[u8]) -> Outcome<(Option<i64>, usize), K> {
        Ok(self.get(key)?.map_or((None, 0), |cell| (parse_i64(&cell.value), cell.value.len())))
    }

    pub(super) fn object_help(&mut self) -> Outcome<(), K> {
        resp::array(self.out, OBJECT_HELP.len());
        for line in OBJECT_HELP {
            resp::simple(self.out, line);
        }
        Ok(())
    }

    /// An estimate: what the key and its value take in memory while they are there. On disk they are
    /// compressed.
    pub(super) fn memory_usage(&mut self, key: &[u8]) -> Outcome<(), K> {
        match self.peek(key)? {
            Some(meta) => self.len(ENTRY_BYTES + key.len() + meta.len),
            None => self.null(),
        }
    }
}
