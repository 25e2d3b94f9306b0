//! Commands that read and write values.

use super::{Halt, Outcome, Run, clamp_range, is_reversed, signed};
use crate::protocol::resp;
use crate::redis::command::{Condition, ExpiryChange, Set, SetExpiry};
use crate::redis::extended::Extended;
use crate::redis::fault::Fault;
use crate::redis::keyspace::{Keyspace, Meta};
use crate::redis::number::parse_i64;

impl<K: Keyspace> Run<'_, K> {
    pub(super) fn set(&mut self, set: &Set<'_>) -> Outcome<(), K> {
        let expiry = match set.expiry {
            SetExpiry::To(time) => Some(self.resolve(time, set.name)?),
            SetExpiry::Clear | SetExpiry::Keep => None,
        };
        self.check_len(set.value.len())?;
        let old = self.look_before_set(set, expiry.is_some_and(|ms| self.is_past(ms)))?;
        let is_done = match set.condition {
            Condition::Always => true,
            Condition::Absent => old.is_none(),
            Condition::Present => old.is_some(),
        };
        if is_done {
            self.write_set(set, expiry, old)?;
        }
        match (set.name, set.returns_old, is_done) {
            // The old value was the reply.
            (_, true, _) => Ok(()),
            ("setnx", ..) => self.integer(i64::from(is_done)),
            (.., true) => self.ok(),
            (.., false) => self.null(),
        }
    }

    /// What SET has to know of the key, or has to answer of it. A plain one wants nothing, and may be spared
    /// a read from disk.
    fn look_before_set(&mut self, set: &Set<'_>, is_past: bool) -> Outcome<Option<Meta>, K> {
        if set.returns_old {
            let meta = self.space.get(set.key).map_err(Halt::Stop)?.map(|cell| {
                resp::bulk(self.out, &cell.value);
                Meta { len: cell.value.len(), expiry_ms: cell.expiry_ms }
            });
            if meta.is_none() {
                resp::null(self.out, self.proto);
            }
            return Ok(meta);
        }
        if set.condition == Condition::Always && set.expiry != SetExpiry::Keep && !is_past {
            return Ok(None);
        }
        self.peek(set.key)
    }

    fn write_set(&mut self, set: &Set<'_>, expiry: Option<i64>, old: Option<Meta>) -> Outcome<(), K> {
        match expiry {
            // It would be gone for whoever looks next; Redis keeps it until then.
            Some(ms) if self.is_past(ms) => {
                if old.is_some() {
                    self.space.delete(set.key);
                }
                Ok(())
            }
            Some(ms) => {
                let expiry_ms = self.storable(ms);
                self.put(set.key, set.value.to_vec(), expiry_ms)
            }
            None => {
                let kept = old.filter(|_| set.expiry == SetExpiry::Keep);
                self.put(set.key, set.value.to_vec(), kept.map_or(0, |meta| meta.expiry_ms))
            }
        }
    }

    pub(super) fn getdel(&mut self, key: &[u8]) -> Outcome<(), K> {
        self.reply_value(key)?;
        if self.exists(key)? {
            self.space.delete(key);
        }
        Ok(())
    }

    pub(super) fn getex(&mut self, key: &[u8], change: ExpiryChange) -> Outcome<(), K> {
        let Some(meta) = self.peek(key)? else { return self.null() };
        let ms = match change {
            ExpiryChange::To(time) => Some(self.resolve(time?, "getex")?),
            ExpiryChange::Keep | ExpiryChange::Clear => None,
        };
        self.reply_value(key)?;
        match (change, ms) {
            (_, Some(ms)) => self.expire_at(key, ms),
            (ExpiryChange::Clear, _) if meta.expiry_ms != 0 => self.set_expiry(key, 0),
            _ => Ok(()),
        }
    }

    pub(super) fn mget(&mut self, keys: &[&[u8]]) -> Outcome<(), K> {
        resp::array(self.out, keys.len());
        keys.iter().try_for_each(|key| self.reply_value(key))
    }

    pub(super) fn mset(&mut self, pairs: &[(&[u8], &[u8])], only_new: bool) -> Outcome<(), K> {
        for (_, value) in pairs {
            self.check_len(value.len())?;
        }
        if only_new {
            for (key, _) in pairs {
                if self.exists(key)? {
                    return self.integer(0);
                }
            }
        }
        for (key, value) in pairs {
            self.put(key, value.to_vec(), 0)?;
        }
        if only_new { self.integer(1) } else { self.ok() }
    }

    pub(super) fn append(&mut self, key: &[u8], tail: &[u8]) -> Outcome<(), K> {
        let old = self.peek(key)?;
        let len = old.map_or(0, |meta| meta.len).saturating_add(tail.len());
        self.check_len(len)?;
        // Nothing behind an old value leaves it as it is; nothing alone is a new, empty one.
        if old.is_none() || !tail.is_empty() {
            let (mut value, expiry_ms) = self.take(key, len)?;
            value.extend_from_slice(tail);
            self.put(key, value, expiry_ms)?;
        }
        self.len(len)
    }

    pub(super) fn strlen(&mut self, key: &[u8]) -> Outcome<(), K> {
        let len = self.peek(key)?.map_or(0, |meta| meta.len);
        self.len(len)
    }

    pub(super) fn getrange(&mut self, key: &[u8], start: i64, end: i64) -> Outcome<(), K> {
        let cell = self.space.get(key).map_err(Halt::Stop)?;
        let value = cell.as_ref().map_or(&[][..], |cell| &cell.value);
        let part = clamp_range(start, end, signed(value.len()))
            .filter(|_| !is_reversed(start, end))
            .and_then(|(start, end)| value.get(usize::try_from(start).ok()?..=usize::try_from(end).ok()?));
        resp::bulk(self.out, part.unwrap_or_default());
        Ok(())
    }

    pub(super) fn setrange(&mut self, key: &[u8], offset: u64, bytes: &[u8]) -> Outcome<(), K> {
        if bytes.is_empty() {
            return self.strlen(key);
        }
        let offset = usize::try_from(offset).map_err(|_| Fault::TooLong)?;
        let end = offset.checked_add(bytes.len()).ok_or(Fault::TooLong)?;
        self.check_len(end)?;
        let (mut value, expiry_ms) = self.take(key, end)?;
        if value.len() < end {
            value.resize(end, 0);
        }
        value[offset..end].copy_from_slice(bytes);
        let len = value.len();
        self.put(key, value, expiry_ms)?;
        self.len(len)
    }

    pub(super) fn add(&mut self, key: &[u8], delta: i64) -> Outcome<(), K> {
        let (old, expiry_ms) = match self.get(key)? {
            Some(cell) => (parse_i64(&cell.value).ok_or(Fault::NotInteger)?, cell.expiry_ms),
            None => (0, 0),
        };
        let sum = old.checked_add(delta).ok_or(Fault::Overflow)?;
        let text = sum.to_string().into_bytes();
        self.put(key, text, expiry_ms)?;
        self.integer(sum)
    }

    pub(super) fn add_float(&mut self, key: &[u8], delta: Extended) -> Outcome<(), K> {
        let (old, expiry_ms) = match self.get(key)? {
            Some(cell) => (Extended::parse(&cell.value).ok_or(Fault::NotFloat)?, cell.expiry_ms),
            None => (Extended::ZERO, 0),
        };
        let sum = old.checked_add(delta).and_then(Extended::to_text).ok_or(Fault::NotFinite)?;
        resp::bulk(self.out, sum.as_bytes());
        self.put(key, sum.into_bytes(), expiry_ms)
    }

    /// The key's value to change, with room for `capacity` bytes, and its expiry. Empty if it does not exist.
    pub(super) fn take(&mut self, key: &[u8], capacity: usize) -> Outcome<(Vec<u8>, u64), K> {
        let Some(cell) = self.get(key)? else { return Ok((Vec::with_capacity(capacity), 0)) };
        let mut value = match cell.value {
            std::borrow::Cow::Owned(value) => value,
            // With its room from the start, so that growing it does not copy it again.
            std::borrow::Cow::Borrowed(bytes) => {
                let mut value = Vec::with_capacity(capacity.max(bytes.len()));
                value.extend_from_slice(bytes);
                value
            }
        };
        value.reserve_exact(capacity.saturating_sub(value.len()));
        Ok((value, cell.expiry_ms))
    }
}
