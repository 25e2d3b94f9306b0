//! The whole of it tested: with deliberate bugs of `atlaskv::base::Bug` in the server it must fail, and say so by
//! a history that is not linearizable.
//!
//! Not for it are those of expiry, range deletes, scans, snapshots and batches, which nobody asks for here; foreign
//! keys after a split (`ClipIgnored`), which only scans meet; and an index that is given again (`VersionReused`),
//! which the engine notices itself, so that the server is gone before anybody reads anything wrong.

use std::process::{Command, Stdio};
use std::time::Instant;

use atlaskv::base::Bug;

const BUGS: [Bug; 7] = [
    Bug::TombstoneDropped,
    Bug::EntryTorn,
    Bug::MoveForgets,
    Bug::CacheStale,
    Bug::RowStale,
    Bug::ReplyTooEarly,
    Bug::FilterForgets,
];
/// Within which each must be found.
const SECONDS: u64 = 60;

/// How the test fails with a bug; `Err`: it does not, or not by a history.
fn found(bug: Bug) -> Result<String, String> {
    let out = tempfile::NamedTempFile::new().expect("a file for what it says");
    let status = Command::new(std::env::current_exe().expect("this test"))
        .args(["a_server_that_is_killed_again_and_again_is_linearizable", "--exact", "--nocapture"])
        .env("ATLASKV_LINEAR_PLANTED", format!("{bug:?}"))
        .env("ATLASKV_LINEAR_SECONDS", SECONDS.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(out.reopen().expect("the file"))
        .status()
        .expect("it starts");
    let said = String::from_utf8_lossy(&std::fs::read(out.path()).expect("what it said")).into_owned();
    let tail = said.lines().skip_while(|line| !line.contains("panicked at")).skip(1);
    let lines: Vec<&str> = tail.filter(|line| !line.trim().is_empty()).take(6).collect();
    match lines.first() {
        Some(first) if !status.success() && first.contains("not linearizable") => {
            Ok(lines[1..].join("\n    "))
        }
        _ => Err(format!("{status}: {}", lines.join("\n    "))),
    }
}

#[test]
fn planted_bugs_are_found() {
    let mut missed = Vec::new();
    for bug in BUGS {
        let begin = Instant::now();
        match found(bug) {
            Ok(how) => println!("{bug:?}: within {:.0?}:\n    {how}", begin.elapsed()),
            Err(why) => {
                println!("{bug:?} is missed: {why}");
                missed.push(bug);
            }
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
