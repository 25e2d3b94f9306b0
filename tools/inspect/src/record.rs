//! What a backup says of itself: the file `BACKUP` in its directory, which no server and no restore needs.
//!
//! ```text
//! atlaskv backup 1      format version
//! checkpoint_ms=…       when its checkpoint was complete, ms since 1970 (UTC): the age of its data
//! made_ms=…             when the backup was
//! tables=…
//! bytes=…               of tables and manifest
//! crc32c=9f3c01aa       of all before this line
//! ```
//!
//! It is written when all else is there, before the mark of what is not complete goes: so it is never torn.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use atlaskv::base::crc32c;

use crate::{Failure, at};

/// Name of the file.
pub const RECORD: &str = "BACKUP";
const FIRST_LINE: &str = "atlaskv backup 1";
/// Longer is no record.
const BYTES_MAX: u64 = 4096;

/// What is recorded. Ordered by age, the oldest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Record {
    pub checkpoint_ms: u64,
    pub made_ms: u64,
    pub tables: u64,
    pub bytes: u64,
}

/// Milliseconds since 1970; 0 for what was before.
pub fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// For people, and without surprises in file names: 2026-11-24T19:30:00Z.
pub fn utc(ms: u64) -> String {
    // What no calendar has is shown as the last second that it has.
    const LAST: Duration = Duration::from_secs(253_402_300_799);
    let time = UNIX_EPOCH + Duration::from_millis(ms).min(LAST);
    humantime::format_rfc3339_seconds(time).to_string()
}

impl Record {
    /// Writes it into the backup at `dir`, and makes its bytes durable.
    pub fn write(&self, dir: &Path) -> Result<(), Failure> {
        let path = dir.join(RECORD);
        let mut text = self.lines();
        text.push_str(&format!("crc32c={:08x}\n", crc32c(text.as_bytes())));
        let written = File::create_new(&path).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        at(&path, written)
    }

    fn lines(&self) -> String {
        let Record { checkpoint_ms, made_ms, tables, bytes } = self;
        format!(
            "{FIRST_LINE}\ncheckpoint_ms={checkpoint_ms}\nmade_ms={made_ms}\ntables={tables}\nbytes={bytes}\n"
        )
    }

    /// That of the backup at `dir`; none if it has none.
    pub fn read(dir: &Path) -> Result<Option<Record>, Failure> {
        let path = dir.join(RECORD);
        let bytes = match fs::metadata(&path) {
            Ok(meta) if meta.len() > BYTES_MAX => Vec::new(),
            Ok(_) => at(&path, fs::read(&path))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return at(&path, Err(error)),
        };
        let record = std::str::from_utf8(&bytes).ok().and_then(Record::parse);
        record.map(Some).ok_or_else(|| {
            Failure::Refused(format!("{}: damaged, or of a later version than 1", path.display()))
        })
    }

    fn parse(text: &str) -> Option<Record> {
        let mut lines = text.lines();
        lines.next().filter(|line| *line == FIRST_LINE)?;
        let mut number = |name: &str| lines.next()?.strip_prefix(name)?.strip_prefix('=')?.parse().ok();
        let record = Record {
            checkpoint_ms: number("checkpoint_ms")?,
            made_ms: number("made_ms")?,
            tables: number("tables")?,
            bytes: number("bytes")?,
        };
        // Only what this code writes.
        let lines = record.lines();
        (text == format!("{lines}crc32c={:08x}\n", crc32c(lines.as_bytes()))).then_some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_and_any_changed_byte_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let record =
            Record { checkpoint_ms: 1_764_012_345_123, made_ms: u64::MAX, tables: 3, bytes: 1 << 40 };
        assert_eq!(Record::read(dir.path()).unwrap(), None);
        record.write(dir.path()).unwrap();
        assert_eq!(Record::read(dir.path()).unwrap(), Some(record));
        let whole = fs::read(dir.path().join(RECORD)).unwrap();
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            fs::write(dir.path().join(RECORD), changed).unwrap();
            assert!(Record::read(dir.path()).is_err(), "byte {at}");
        }
    }

    #[test]
    fn times_are_shown_in_utc() {
        assert_eq!(utc(1_764_012_345_123), "2025-11-24T19:25:45Z");
        assert_eq!(utc(u64::MAX), "9999-12-31T23:59:59Z");
    }
}
