//! When a key expires, as a request says it. Only the owner's clock makes a time of it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::base::EXPIRY_MS_MAX;

/// A moment from which on a key is absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Deadline {
    /// So many milliseconds after the write is executed, by the clock of the key's owner: 1 to
    /// [`EXPIRY_MS_MAX`].
    In(u64),
    /// Milliseconds since the epoch: 1 to [`EXPIRY_MS_MAX`]. May be past.
    At(u64),
}

impl Deadline {
    /// That long after the write. Parts of a millisecond count as one.
    pub fn after(ttl: Duration) -> Deadline {
        let ms = ttl.as_nanos().div_ceil(1_000_000);
        Deadline::In(u64::try_from(ms).unwrap_or(u64::MAX))
    }

    /// At that time. Parts of a millisecond count as one, and all that was before 1970 is as past as
    /// anything.
    pub fn at(time: SystemTime) -> Deadline {
        let ms = time.duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos().div_ceil(1_000_000));
        Deadline::At(u64::try_from(ms.max(1)).unwrap_or(u64::MAX))
    }

    /// The number that goes over the wire.
    pub(super) fn ms(self) -> u64 {
        match self {
            Deadline::In(ms) | Deadline::At(ms) => ms,
        }
    }

    /// The absolute time, when it is `now_ms`. `None` if that is 0 or beyond [`EXPIRY_MS_MAX`].
    pub fn resolve(self, now_ms: u64) -> Option<u64> {
        let at_ms = match self {
            Deadline::In(0) => None,
            Deadline::In(ttl_ms) => now_ms.checked_add(ttl_ms),
            Deadline::At(at_ms) => Some(at_ms),
        };
        at_ms.filter(|at_ms| (1..=EXPIRY_MS_MAX).contains(at_ms))
    }
}

/// What a SET makes of a key's expiry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Expiry {
    /// The key never expires, whatever was before.
    #[default]
    Never,
    /// It expires then.
    Set(Deadline),
    /// It expires when it did before; an absent key is made to stay for ever.
    Keep,
}

impl Expiry {
    /// That long after the write. Parts of a millisecond count as one.
    pub fn after(ttl: Duration) -> Expiry {
        Expiry::Set(Deadline::after(ttl))
    }

    /// At that time.
    pub fn at(time: SystemTime) -> Expiry {
        Expiry::Set(Deadline::at(time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_become_times_within_bounds() {
        assert_eq!(Deadline::In(5).resolve(100), Some(105));
        assert_eq!(Deadline::At(5).resolve(100), Some(5), "the past is a time as any other");
        for nonsense in [
            Deadline::In(0),
            Deadline::At(0),
            Deadline::In(u64::MAX),
            Deadline::At(EXPIRY_MS_MAX + 1),
            Deadline::In(EXPIRY_MS_MAX),
        ] {
            assert_eq!(nonsense.resolve(100), None, "{nonsense:?}");
        }
        assert_eq!(Deadline::In(EXPIRY_MS_MAX - 100).resolve(100), Some(EXPIRY_MS_MAX));
    }

    #[test]
    fn durations_and_times_are_rounded_up() {
        assert_eq!(Deadline::after(Duration::ZERO), Deadline::In(0));
        assert_eq!(Deadline::after(Duration::from_micros(1)), Deadline::In(1));
        assert_eq!(Deadline::after(Duration::from_millis(7)), Deadline::In(7));
        assert_eq!(Deadline::after(Duration::MAX), Deadline::In(u64::MAX));
        assert_eq!(Deadline::at(UNIX_EPOCH), Deadline::At(1));
        assert_eq!(Deadline::at(UNIX_EPOCH - Duration::from_secs(9)), Deadline::At(1));
        assert_eq!(Deadline::at(UNIX_EPOCH + Duration::from_millis(77)), Deadline::At(77));
    }
}
