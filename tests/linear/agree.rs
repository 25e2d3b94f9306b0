//! The checker against the general one, on random histories; and what must be called bad, by hand.

use std::time::{Duration, Instant};

use crate::chain;
use crate::generate::{CHANGES, Shape, change, good, nonsense};
use crate::history::{Answer, History, Op, Request};
use crate::reference;
use crate::zones;
use crate::{from_env, seed};

/// Whether the history is good, of which all checkers must say the same.
fn verdict(ops: &[Op], starts: &[u64], story: &str) -> bool {
    let ours = chain::check(ops);
    let theirs = reference::is_linearizable(ops, starts);
    let text = || {
        let (ops, starts) = shrunk(ops, starts, |ops, starts| {
            chain::check(ops).is_ok() != reference::is_linearizable(ops, starts)
        });
        History { starts, keys: vec![("key".into(), ops)] }.to_string()
    };
    assert_eq!(
        ours.is_ok(),
        theirs,
        "{story}: ours says {ours:?}, the general one {theirs}; in short:\n{}",
        text()
    );
    // Values alone allow more.
    assert!(!theirs || zones::check(ops).is_ok(), "{story}: {:?} though it is good", zones::check(ops));
    theirs
}

/// Leaves out what `still` does not need.
fn shrunk(ops: &[Op], starts: &[u64], still: impl Fn(&[Op], &[u64]) -> bool) -> (Vec<Op>, Vec<u64>) {
    let mut ops = ops.to_vec();
    let mut len = ops.len();
    while len > 0 {
        let mut at = 0;
        while at < ops.len() {
            let without = [&ops[..at], &ops[(at + len).min(ops.len())..]].concat();
            if still(&without, starts) { ops = without } else { at += len }
        }
        len /= 2;
    }
    (ops, starts.to_vec())
}

#[test]
fn good_histories_are_good_and_changed_ones_are_judged_alike() {
    let seed = seed("good_histories_are_good_and_changed_ones_are_judged_alike");
    let rounds = from_env("ATLASKV_LINEAR_HISTORIES").unwrap_or(300);
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut applied, mut bad) = ([0; CHANGES.len()], [0; CHANGES.len()]);
    let mut count = 0;
    for round in 0..rounds {
        let most = if round % 50 == 0 { 500 } else { 80 };
        let shape = Shape::random(&mut rng, 5..most);
        let (ops, starts) = good(&mut rng, shape);
        assert!(
            verdict(&ops, &starts, &format!("seed {seed}, history {round}")),
            "history {round} is good: {shape:?}"
        );
        for kind in 0..CHANGES.len() {
            let mut changed = ops.clone();
            // Now and then two things go wrong together.
            let mut is_changed = change(&mut changed, &starts, kind, &mut rng).is_some();
            if rng.u8(..4) == 0 {
                is_changed &= change(&mut changed, &starts, rng.usize(..CHANGES.len()), &mut rng).is_some();
            }
            if is_changed {
                let story = format!("seed {seed}, history {round}, {}", CHANGES[kind]);
                applied[kind] += 1;
                bad[kind] += usize::from(!verdict(&changed, &starts, &story));
                count += 1;
            }
        }
    }
    println!(
        "{} good histories and {count} changed ones, all judged alike; of the changed ones are bad:",
        rounds
    );
    for (kind, name) in CHANGES.iter().enumerate() {
        println!("{:>6} of {:>6}: {name}", bad[kind], applied[kind]);
        // An answer that is lost, or comes at once, makes nothing wrong by itself.
        assert!(rounds < 100 || bad[kind] > 0, "{name}: never bad");
    }
}

/// Short histories, in which much happens at once: what is possible there is found by trying.
#[test]
fn crowded_histories_are_judged_alike() {
    let seed = seed("crowded_histories_are_judged_alike");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut bad = 0;
    let rounds = 10 * from_env("ATLASKV_LINEAR_HISTORIES").unwrap_or(300);
    for round in 0..rounds {
        let shape =
            Shape { ops: rng.usize(3..14), clients: rng.u16(2..7), delay: 60, crash: rng.usize(2..8) };
        let (mut ops, starts) = good(&mut rng, shape);
        for _ in 0..rng.usize(1..5) {
            let kind = rng.usize(..CHANGES.len());
            change(&mut ops, &starts, kind, &mut rng);
        }
        bad += usize::from(!verdict(&ops, &starts, &format!("seed {seed}, crowded history {round}")));
    }
    println!("{rounds} crowded histories, {bad} of them bad, all judged alike");
    assert!(bad > rounds / 10 && bad < rounds);
}

/// Random answers at random times: what no server would say, and what it says once in a year.
#[test]
fn nonsense_is_judged_alike() {
    let seed = seed("nonsense_is_judged_alike");
    let mut rng = fastrand::Rng::with_seed(seed);
    let rounds = 100 * from_env("ATLASKV_LINEAR_HISTORIES").unwrap_or(300);
    let mut good = 0;
    for round in 0..rounds {
        let (ops, starts) = nonsense(&mut rng);
        good += usize::from(verdict(&ops, &starts, &format!("seed {seed}, nonsense {round}")));
    }
    println!("{rounds} histories of nonsense, {good} of them good, all judged alike");
    assert!(good > rounds / 50 && good < rounds);
}

/// What values alone say, against the general checker with histories that have nothing else.
#[test]
fn zones_decide_plain_registers() {
    let seed = seed("zones_decide_plain_registers");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut bad = 0;
    for round in 0..600 {
        let shape = Shape { ops: rng.usize(3..40), clients: rng.u16(2..6), delay: 40, crash: 0 };
        let (mut ops, starts) = good(&mut rng, shape);
        for _ in 0..rng.usize(..3) {
            let kind = [0, 1, 4, 7, 12][rng.usize(..5)];
            change(&mut ops, &starts, kind, &mut rng);
        }
        // Sets and what they made readers find.
        ops.retain(|op| {
            let is_set = matches!((op.request, op.answer), (Request::Set(..), Answer::Written(_)));
            is_set || matches!(op.answer, Answer::Found { .. })
        });
        let (ours, theirs) = (zones::check(&ops), reference::is_plain_linearizable(&ops));
        assert_eq!(
            ours.is_ok(),
            theirs,
            "seed {seed}, history {round}: ours says {ours:?}:\n{}",
            History { starts, keys: vec![("key".into(), ops)] }
        );
        bad += usize::from(!theirs);
    }
    assert!(bad > 30, "only {bad} were bad");
}

/// A history of one key by its lines.
fn key(lines: &str) -> Vec<Op> {
    let text = format!("atlaskv-history 1\nkey k\n{lines}");
    History::parse(&text).unwrap_or_else(|error| panic!("{error}")).keys.remove(0).1
}

#[test]
fn what_is_wrong_is_called_so() {
    let cases = [
        ("an answered write is lost", "1 2 c0 set v1 > @1\n3 4 c0 get > absent", "absent"),
        (
            "an answered write is lost, the one before shows",
            "1 2 c0 set v1 > @1\n3 4 c0 set v2 > @2\n5 6 c0 get > v1@1",
            "ended before",
        ),
        ("a read from the future", "1 2 c0 get > v1@1\n3 4 c0 set v1 > @1", "ended before"),
        ("a value from nowhere", "1 2 c0 get > v1@1", "no write of it"),
        (
            "a removed key is back",
            "1 2 c0 set v1 > @1\n3 4 c0 delete > @2\n5 6 c0 get > v1@1",
            "ended before",
        ),
        (
            "two reads go back",
            "1 9 c0 set v1 > @1\n1 9 c1 set v2 > @2\n3 4 c2 get > v2@2\n5 6 c2 get > v1@1",
            "ended before",
        ),
        ("versions against time", "1 2 c0 set v1 > @2\n3 4 c1 set v2 > @1", "ended before"),
        ("a version given twice", "1 2 c0 set v1 > @2\n3 4 c1 set v2 > @2", "two writes"),
        ("a value at another version", "1 2 c0 set v1 > @2\n3 4 c1 get > v1@3", "that it has not"),
        (
            "two writes replace the same version",
            "1 2 c0 set v1 > @1\n3 9 c0 set v2 if @1 > @2\n3 9 c1 set v3 if @1 > @3",
            "replaced 1",
        ),
        (
            "a swap with what is gone",
            "1 2 c0 set v1 > @1\n3 4 c0 delete > @2\n5 6 c0 set v2 if @1 > @3",
            "replaced 1",
        ),
        ("if-absent where a value is", "1 2 c0 set v1 > @1\n3 4 c0 set v2 if absent > @2", "found no key"),
        (
            "a condition fails that holds",
            "1 2 c0 set v1 > @1\n3 4 c0 set v2 if @1 > failed @1",
            "does not belong",
        ),
        ("a condition fails for nothing", "1 2 c0 set v1 > @1\n3 4 c0 delete if @5 > failed -", "absent"),
        ("a condition fails for what never was", "1 2 c0 set v2 if @5 > failed @4", "no write can have made"),
        ("nothing is removed", "1 2 c0 delete > @1", "removed nothing"),
        (
            "what a start found is gone",
            "1 5 c0 set v1 > lost\n6 7 c1 get > v1@1\n8 9 c1 get > absent",
            "can't have been",
        ),
        (
            "a lost write comes after the start",
            "1 5 c0 set v1 > lost\n6 7 c1 get > absent\n8 9 c1 get > v1@1",
            "can't have been",
        ),
        (
            "a lost delete comes after the start",
            "1 2 c0 set v1 > @1\n3 5 c0 delete > lost\n6 7 c1 get > v1@1\n8 9 c1 get > absent",
            "can't have been",
        ),
        (
            "a lost conditional delete comes after another write",
            "1 2 c0 set v1 > @1\n3 99 c0 delete if @1 > lost\n4 5 c1 set v2 > @2\n6 7 c1 get > absent",
            "can't have been",
        ),
        (
            "a lost write has two versions",
            "1 - c0 set v1 > lost\n6 7 c1 get > v1@1\n8 9 c1 get > v1@2",
            "two versions",
        ),
        (
            "a refused write shows",
            "1 2 c0 set v1 > @1\n3 4 c0 set v2 if absent > failed @1\n5 6 c0 get > v2@2",
            "that it",
        ),
    ];
    for (name, lines, why) in cases {
        let ops = key(lines);
        let found = chain::check(&ops).expect_err(name);
        assert!(found.why.contains(why), "{name}: {found}");
        assert!(
            !found.ops.is_empty() && found.ops.iter().all(|at| *at < ops.len()),
            "{name}: {:?}",
            found.ops
        );
    }
}

#[test]
fn what_is_possible_is_called_so() {
    let cases = [
        ("nothing", ""),
        ("a lost write shows, or not", "1 9 c0 set v1 > lost\n2 3 c1 get > absent\n10 11 c1 get > v1@4"),
        ("a lost write shows late", "1 - c0 set v1 > lost\n20 30 c1 get > absent\n50 60 c1 get > v1@4"),
        (
            "a lost delete",
            "1 2 c0 set v1 > @1\n3 9 c0 delete > lost\n4 5 c1 get > v1@1\n10 11 c1 get > absent",
        ),
        ("a lost swap", "1 2 c0 set v1 > @1\n3 9 c0 set v2 if @1 > lost\n10 11 c1 get > v2@3"),
        ("a lost set that only a delete met", "1 9 c0 set v1 > lost\n10 11 c1 delete > @2"),
        (
            "a lost set that only a condition met",
            "1 9 c0 set v1 > lost\n10 11 c1 set v2 if absent > failed @7",
        ),
        ("writes that overlap, in any order", "1 9 c0 set v1 > @2\n1 9 c1 set v2 > @1\n10 11 c2 get > v1@2"),
        (
            "absent between two values",
            "1 9 c0 set v1 > @1\n1 9 c1 delete > @2\n1 9 c2 set v2 > @3\n2 3 c3 get > absent",
        ),
        (
            "if-absent after a lost delete",
            "1 2 c0 set v1 > @1\n3 9 c0 delete > lost\n10 11 c0 set v2 if absent > @4",
        ),
    ];
    for (name, lines) in cases {
        let ops = if lines.is_empty() { Vec::new() } else { key(lines) };
        assert_eq!(chain::check(&ops), Ok(()), "{name}");
    }
}

/// Ten times the operations take about ten times as long, and a million are no matter.
#[test]
fn a_million_operations_of_one_key_are_decided_at_once() {
    let mut rng = fastrand::Rng::with_seed(1);
    let shape = Shape { ops: 1_000_000, clients: 5, delay: 60, crash: 10_000 };
    let (mut ops, starts) = good(&mut rng, shape);
    let begin = Instant::now();
    assert_eq!(chain::check(&ops), Ok(()));
    assert_eq!(zones::check(&ops), Ok(()));
    let took = begin.elapsed();
    println!("{} operations with {} starts: {took:?}", ops.len(), starts.len());
    // What is quadratic takes hours.
    assert!(took < Duration::from_secs(300), "{took:?}");
    // One read in a million is wrong.
    let is_found = |op: &Op| matches!(op.answer, Answer::Found { .. });
    let at = (0..ops.len()).rev().find(|at| is_found(&ops[*at])).expect("a read");
    ops[at].answer = ops.iter().find(|op| is_found(op)).expect("a read").answer;
    assert!(chain::check(&ops).is_err());
    assert!(zones::check(&ops).is_err());
}
