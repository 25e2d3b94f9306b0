//! The model test tested: with each of the deliberate bugs of `atlaskv::base::Bug` a storm must fail, or the calm test.
//! `ATLASKV_PLANTED_ONLY` names a single one.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use atlaskv::base::Bug;

use crate::ops_of;

/// Storms within which most are found, and requests of the calm test, and storms within which all others must be.
const FEW_STORMS: u64 = 300;
const OPS: u64 = 300_000;
const STORMS: u64 = 4_000;
/// One that makes a test hang is found as well, but says nothing.
const LONGEST: Duration = Duration::from_secs(1_800);

/// A number behind the first `before` in a text: of several threads that fail, the first one's.
fn number(text: &str, before: &str) -> Option<u64> {
    let digits = &text[text.find(before)? + before.len()..];
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// One of the tests, and how far it goes.
#[derive(Clone, Copy)]
enum Search {
    Storms(u64),
    Calm(u64),
}

impl Search {
    fn test(self) -> &'static str {
        match self {
            Search::Storms(_) => "storms_lose_nothing_that_was_answered_or_shown",
            Search::Calm(_) => "every_answer_is_what_the_reference_says",
        }
    }

    fn settings(self) -> [(&'static str, String); 2] {
        match self {
            Search::Storms(seeds) => [
                ("ATLASKV_STORM_SEED", "1".to_owned()),
                ("ATLASKV_STORM_CRASHES", (seeds * crate::CRASHES_OF_STORM).to_string()),
            ],
            Search::Calm(ops) => {
                [("ATLASKV_MODEL_SEED", "1".to_owned()), ("ATLASKV_MODEL_OPS", ops.to_string())]
            }
        }
    }
}

/// What a test says that fails with a bug; `None`: it does not.
fn said_by(test: &str, bug: Bug, settings: &[(&str, String)]) -> Option<String> {
    let out = tempfile::NamedTempFile::new().expect("a file for what it says");
    let stderr = out.reopen().expect("the file");
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args([test, "--exact", "--nocapture"])
        .env("ATLASKV_PLANTED", format!("{bug:?}"))
        .envs(settings.iter().map(|(name, value)| (*name, value)))
        .stdin(Stdio::null())
        .stdout(stderr.try_clone().expect("the same file"))
        .stderr(stderr)
        .spawn()
        .expect("it starts");
    let begun = Instant::now();
    let status = loop {
        match child.try_wait().expect("it is a child") {
            Some(status) => break status,
            None if begun.elapsed() > LONGEST => {
                child.kill().expect("it runs");
                child.wait().expect("it ends");
                return None;
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let said = std::fs::read(out.path()).expect("what it said");
    (!status.success()).then(|| String::from_utf8_lossy(&said).into_owned())
}

/// How it panicked.
fn message(said: &str) -> &str {
    said.lines().skip_while(|line| !line.contains("panicked at")).nth(1).unwrap_or_default()
}

/// How a test fails with a bug, and at which of the seeds from 1 on; `None`: it does not.
fn found_by(search: Search, bug: Bug) -> Option<String> {
    let said = said_by(search.test(), bug, &search.settings())?;
    let seed = number(&said, "_SEED=")?;
    let how: String = message(&said).chars().take(160).collect();
    Some(match search {
        Search::Storms(_) => format!("storm {seed}: {how}"),
        Search::Calm(_) => {
            let before: u64 = (1..seed).map(ops_of).sum();
            let step = number(&said, &format!("seed {seed}, step ")).unwrap_or(0);
            format!("after {} requests: {how}", before + step)
        }
    })
}

#[test]
fn planted_bugs_are_found() {
    let only = std::env::var("ATLASKV_PLANTED_ONLY").unwrap_or_default();
    let mut missed = Vec::new();
    for bug in Bug::ALL.into_iter().filter(|bug| only.is_empty() || format!("{bug:?}") == only) {
        let searches = [Search::Storms(FEW_STORMS), Search::Calm(OPS), Search::Storms(STORMS)];
        match searches.into_iter().find_map(|search| found_by(search, bug)) {
            Some(how) => println!("{bug:?}: {how}"),
            None => {
                println!("{bug:?}: not found");
                missed.push(bug);
            }
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// All numbers in a text.
fn counts(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

/// Storms that fail, and the most turns and requests that may be left of them. The seeds are fixed: how short one becomes
/// is a matter of luck. Much stays of the last one: it takes several files to meet, and whatever is left out moves the rest
/// in time.
const SHORTENED: [(Bug, u64, u64, u64); 3] =
    [(Bug::TombstoneDropped, 18, 12, 24), (Bug::ReplyTooEarly, 7, 12, 24), (Bug::CacheStale, 44, 60, 100)];

#[test]
fn a_storm_that_fails_is_made_short_and_fails_the_same_way_by_its_plan() {
    let storms = Search::Storms(FEW_STORMS);
    for (bug, seed, turns_max, requests_max) in SHORTENED {
        let seed = ("ATLASKV_STORM_SEED", seed.to_string());
        let minutes = ("ATLASKV_STORM_MINIMISE", "3".to_owned());
        let said = said_by(storms.test(), bug, &[seed.clone(), minutes]).expect("it fails");
        let sizes = said.lines().rfind(|line| line.starts_with("from ")).expect("how short it became");
        println!("{bug:?}, storm {}: {sizes}", seed.1);
        let [lives, turns, requests, lives_left, turns_left, requests_left] = counts(sizes)[..] else {
            panic!("six numbers: {sizes}");
        };
        assert!(lives_left <= lives, "{sizes}");
        assert!(turns_left < turns && turns_left <= turns_max, "{sizes}");
        assert!(requests_left * 4 < requests && requests_left <= requests_max, "{sizes}");
        let plan = said.rsplit_once("_PLAN=").and_then(|(_, rest)| rest.split_whitespace().next());
        let plan = ("ATLASKV_STORM_PLAN", plan.expect("its plan").to_owned());
        println!("  {}: {}", plan.1, message(&said));
        for _ in 0..2 {
            let again = said_by(storms.test(), bug, &[seed.clone(), plan.clone()]).expect("it fails");
            assert_eq!(message(&again), message(&said), "by the plan {}", plan.1);
            assert!(again.contains("all that was done:"), "its story");
        }
    }
}
