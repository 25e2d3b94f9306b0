//! What `atlaskv-inspect` does, without its command line: for that, and for tests that ask more often than
//! processes can be started.

pub mod backup;
pub mod dump;
mod fresh;
pub mod readonly;
mod record;
pub mod salvage;
pub mod verify;

use std::io;
use std::path::Path;

/// Why nothing could be said.
#[derive(Debug)]
pub enum Failure {
    /// What was given can't be read, or is nothing of ours.
    Refused(String),
    /// Nobody reads what is printed.
    Output(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Output(error)
    }
}

/// Whether damage was found.
pub type Outcome = Result<bool, Failure>;

/// Attaches the path to an error.
fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, Failure> {
    result.map_err(|error| Failure::Refused(format!("{}: {error}", path.display())))
}
