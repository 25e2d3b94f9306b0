//! One process for each data directory.
//!
//! The file `LOCK` holds the owner's process id for whoever is refused. What counts is the `flock` on it,
//! which the kernel drops however the process ends; the file itself stays, because removing it would let
//! two processes hold locks on two files of one name.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::path::Path;

/// Name of the lock file in the data directory.
pub const LOCK_FILE: &str = "LOCK";

/// The data directory is this process's until it is dropped.
#[derive(Debug)]
pub struct DataDirLock {
    _file: File,
}

/// Why the lock was not to be had.
#[derive(Debug)]
pub enum LockError {
    /// Another process has it; its id, if the file tells.
    Held(Option<u32>),
    /// The file can't be made, opened or written.
    Io(io::Error),
}

impl From<io::Error> for LockError {
    fn from(error: io::Error) -> LockError {
        LockError::Io(error)
    }
}

impl DataDirLock {
    /// Takes the lock of `dir`, without waiting.
    pub fn take(dir: &Path) -> Result<DataDirLock, LockError> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join(LOCK_FILE))?;
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0)?;
                writeln!(file, "{}", std::process::id())?;
                Ok(DataDirLock { _file: file })
            }
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // Only for the message: without a readable id it is shorter.
                let _ = file.take(32).read_to_string(&mut text);
                Err(LockError::Held(text.trim().parse().ok()))
            }
            Err(TryLockError::Error(error)) => Err(LockError::Io(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_and_told_who_is_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDirLock::take(dir.path()).unwrap();
        let Err(LockError::Held(Some(pid))) = DataDirLock::take(dir.path()) else { panic!("not refused") };
        assert_eq!(pid, std::process::id());
        drop(first);
        DataDirLock::take(dir.path()).unwrap();
    }

    #[test]
    fn a_lock_file_left_behind_is_no_lock() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(LOCK_FILE), "4194304\nand more").unwrap();
        let _lock = DataDirLock::take(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join(LOCK_FILE)).unwrap();
        assert_eq!(text, format!("{}\n", std::process::id()));
    }
}
