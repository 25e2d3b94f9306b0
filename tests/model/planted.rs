//! The model test tested: with each of the deliberate bugs of `atlaskv::base::Bug` it must fail.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use atlaskv::base::Bug;

use crate::ops_of;

/// Requests within which each must be found.
const OPS: u64 = 300_000;
/// One that makes the test hang is found as well, but says nothing.
const LONGEST: Duration = Duration::from_secs(900);

/// A number behind the last `before` in a text.
fn number(text: &str, before: &str) -> Option<u64> {
    let digits = &text[text.rfind(before)? + before.len()..];
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// How the test fails with a bug, and after how many requests; `Err`: it does not.
fn found(bug: Bug) -> Result<(u64, String), String> {
    let out = tempfile::NamedTempFile::new().expect("a file for what it says");
    let stderr = out.reopen().expect("the file");
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["every_answer_is_what_the_reference_says", "--exact", "--nocapture"])
        .env("ATLASKV_PLANTED", format!("{bug:?}"))
        .env("ATLASKV_MODEL_OPS", OPS.to_string())
        .env("ATLASKV_MODEL_SEED", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .expect("it starts");
    let begun = Instant::now();
    let status = loop {
        match child.try_wait().expect("it is a child") {
            Some(status) => break status,
            None if begun.elapsed() > LONGEST => {
                child.kill().expect("it runs");
                return Err(format!("nothing for {LONGEST:?}"));
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let said = String::from_utf8_lossy(&std::fs::read(out.path()).expect("what it said")).into_owned();
    let seed = number(&said, "ATLASKV_MODEL_SEED=").filter(|_| !status.success());
    let Some(seed) = seed else { return Err(format!("not within {OPS} requests")) };
    let before: u64 = (1..seed).map(ops_of).sum();
    let step = number(&said, &format!("seed {seed}, step "));
    let line = said.lines().skip_while(|line| !line.contains("panicked at")).nth(1).unwrap_or_default();
    let how = line.chars().take(160).collect();
    Ok((before + step.unwrap_or(0), how))
}

#[test]
fn planted_bugs_are_found() {
    let mut missed = Vec::new();
    for bug in Bug::ALL {
        match found(bug) {
            Ok((requests, how)) => println!("{bug:?}: after {requests} requests: {how}"),
            Err(why) => {
                println!("{bug:?}: {why}");
                missed.push(bug);
            }
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
