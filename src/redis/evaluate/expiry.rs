//! Commands that read and write expiries.

use super::{Halt, Outcome, Run};
use crate::redis::command::{Expire, Than, Time};
use crate::redis::fault::Fault;
use crate::redis::keyspace::Keyspace;

impl<K: Keyspace> Run<'_, K> {
    /// Milliseconds since 1970.
    pub(super) fn resolve(&self, time: Time, name: &'static str) -> Result<i64, Fault> {
        time.resolve(self.space.now_ms()).ok_or(Fault::ExpireTime(name))
    }

    /// Whether an expiry has come.
    pub(super) fn is_past(&self, ms: i64) -> bool {
        u64::try_from(ms).map_or(true, |ms| ms <= self.space.now_ms())
    }

    /// An expiry that has not come, as the store holds it.
    pub(super) fn storable(&self, ms: i64) -> u64 {
        u64::try_from(ms).unwrap_or(0).min(self.space.expiry_ms_max())
    }

    /// Gives a key that exists an expiry; if that is past, removes it.
    pub(super) fn expire_at(&mut self, key: &[u8], ms: i64) -> Outcome<(), K> {
        if self.is_past(ms) {
            self.space.delete(key);
            return Ok(());
        }
        let expiry_ms = self.storable(ms);
        self.set_expiry(key, expiry_ms)
    }

    pub(super) fn set_expiry(&mut self, key: &[u8], expiry_ms: u64) -> Outcome<(), K> {
        self.space.set_expiry(key, expiry_ms).map_err(Halt::Stop)
    }

    pub(super) fn expire(&mut self, expire: &Expire<'_>) -> Outcome<(), K> {
        let ms = self.resolve(expire.time, expire.name)?;
        let Some(meta) = self.peek(expire.key)? else { return self.integer(0) };
        let old = i64::try_from(meta.expiry_ms).unwrap_or(i64::MAX);
        let has_one = meta.expiry_ms != 0;
        let is_wanted = match expire.only {
            None => true,
            Some(Than::Later) => has_one && ms > old,
            Some(Than::Earlier) => !has_one || ms < old,
        };
        if !is_wanted || (expire.only_new && has_one) || (expire.only_existing && !has_one) {
            return self.integer(0);
        }
        self.expire_at(expire.key, ms)?;
        self.integer(1)
    }

    pub(super) fn ttl(&mut self, key: &[u8], in_ms: bool, is_absolute: bool) -> Outcome<(), K> {
        let Some(meta) = self.peek(key)? else { return self.integer(-2) };
        if meta.expiry_ms == 0 {
            return self.integer(-1);
        }
        let base_ms = if is_absolute { 0 } else { self.space.now_ms() };
        let ms = meta.expiry_ms.saturating_sub(base_ms);
        let number = if in_ms { ms } else { ms.saturating_add(500) / 1000 };
        self.integer(i64::try_from(number).unwrap_or(i64::MAX))
    }

    pub(super) fn persist(&mut self, key: &[u8]) -> Outcome<(), K> {
        let has_one = self.peek(key)?.is_some_and(|meta| meta.expiry_ms != 0);
        if has_one {
            self.set_expiry(key, 0)?;
        }
        self.integer(i64::from(has_one))
    }
}
