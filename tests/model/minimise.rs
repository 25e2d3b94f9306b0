//! Makes a storm that fails shorter: it is done again and again without some of its pieces, and what it still fails
//! without stays left out. First whole lives, then turns, troubles, parts of turns and power cuts, in chunks that
//! become smaller (as in Zeller's delta debugging), until nothing more can go or the time is over.
//!
//! A candidate counts if it fails in the same way, so that one bug does not become another on the way. What it did
//! until then, as its [`crate::script`] has noted it, is where the next one begins: that ends where it failed.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::Once;
use std::time::{Duration, Instant};

use crate::plan::{Grain, Piece, Plan};
use crate::report::Telling;
use crate::run::Run;

/// Words by which two differences are told apart. Behind them come values.
const WORDS: usize = 12;

thread_local! {
    /// Whether this thread's panics are caught and no news.
    static IS_HUSHED: Cell<bool> = const { Cell::new(false) };
    /// Where the last of those was, and what it said.
    static CAUGHT: RefCell<(String, String)> = RefCell::default();
}

/// Lets panics of threads that are hushed pass unseen. Other tests run beside this one, so the hook stays.
fn install_hook() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            if !IS_HUSHED.get() {
                return usual(info);
            }
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            CAUGHT.set((place, info.payload_as_str().unwrap_or_default().to_owned()));
        }));
    });
}

/// Runs something, and says where it panics and how.
fn caught<T>(what: impl FnOnce() -> T) -> Result<T, (String, String)> {
    install_hook();
    IS_HUSHED.set(true);
    let result = catch_unwind(AssertUnwindSafe(what));
    IS_HUSHED.set(false);
    result.map_err(|_| CAUGHT.take())
}

/// What a difference says but for numbers, values and what is quoted.
fn words(text: &str) -> String {
    let (mut kept, mut depth, mut is_quoted) = (String::new(), 0u32, false);
    for c in text.chars() {
        match c {
            '"' => is_quoted = !is_quoted,
            _ if is_quoted => {}
            '[' | '(' | '{' => depth += 1,
            ']' | ')' | '}' => depth = depth.saturating_sub(1),
            _ if depth == 0 => kept.push(if c.is_alphabetic() { c } else { ' ' }),
            _ => {}
        }
    }
    kept.split_whitespace().take(WORDS).collect::<Vec<_>>().join(" ")
}

/// A storm that failed.
#[derive(Debug)]
struct Failure {
    /// What it has in common with others of the same bug.
    kind: String,
    message: String,
    /// All that it did until then.
    plan: Plan,
}

/// A storm that may fail, of which nothing is told.
fn attempt(seed: u64, crashes: u64, plan: Option<Plan>) -> Option<Failure> {
    let mut run = Run::in_storm(seed);
    if let Some(plan) = plan {
        run = run.by_plan(plan);
    }
    run.log.telling = Telling::Nothing;
    let done = run.script.done.clone();
    let (place, message) = caught(|| run.storm(crashes)).err()?;
    let mut done = done.take();
    if let Some(world) = done.world.take() {
        // Else its tasks and what they own would keep each other. What ends amid its work may panic once more.
        let _ = caught(|| world.kill());
    }
    // An assertion is known by its place.
    let kind = done.difference.map_or(place, |what| words(&what));
    Some(Failure { kind, message, plan: done.plan })
}

/// Something that may be the same without some of its pieces.
trait Shrink {
    type Piece: Copy + PartialEq;

    fn pieces(&self) -> Vec<Self::Piece>;

    /// Leaves some out. `false`: it is not the same without them, so they stay.
    fn go_without(&mut self, pieces: &[Self::Piece]) -> bool;
}

/// Leaves out all that can be: all at once, halves, quarters, at last each by itself.
fn shrink(what: &mut impl Shrink) {
    let mut chunk = what.pieces().len();
    while chunk > 0 {
        let (pieces, mut is_shorter) = (what.pieces(), false);
        // What comes late is more rarely needed by the rest.
        for some in pieces.rchunks(chunk) {
            // Some may have gone with others.
            let left = what.pieces();
            let some: Vec<_> = some.iter().copied().filter(|piece| left.contains(piece)).collect();
            is_shorter |= !some.is_empty() && what.go_without(&some);
        }
        // Each may be needed only by one that went after it was tried.
        chunk = if chunk == 1 { usize::from(is_shorter) } else { chunk / 2 };
    }
}

/// A storm that fails, and becomes shorter.
struct Storm {
    seed: u64,
    crashes: u64,
    failure: Failure,
    grain: Grain,
    /// Plans that were tried.
    tried: HashSet<String>,
    runs: u32,
    end: Instant,
}

impl Shrink for Storm {
    type Piece = Piece;

    fn pieces(&self) -> Vec<Piece> {
        self.failure.plan.pieces(self.grain)
    }

    fn go_without(&mut self, pieces: &[Piece]) -> bool {
        let plan = self.failure.plan.without(&pieces.iter().copied().collect());
        if Instant::now() > self.end || !self.tried.insert(plan.to_string()) {
            return false;
        }
        self.runs += 1;
        let failed = attempt(self.seed, self.crashes, Some(plan));
        let Some(failure) = failed.filter(|failure| failure.kind == self.failure.kind) else { return false };
        self.failure = failure;
        true
    }
}

/// The shortest plan found within some time by which a storm fails as it does by `plan`, or by none. `None`: it does
/// not fail.
pub fn minimise(seed: u64, crashes: u64, plan: Option<Plan>, longest: Duration) -> Option<Plan> {
    let failure = attempt(seed, crashes, plan)?;
    let before = failure.plan.size();
    println!("storm {seed}: {before}\n  {}", failure.message);
    let (grain, tried, end) = (Grain::Lives, HashSet::new(), Instant::now() + longest);
    let mut storm = Storm { seed, crashes, failure, grain, tried, runs: 0, end };
    loop {
        let last = storm.failure.plan.clone();
        for grain in Grain::ALL {
            storm.grain = grain;
            shrink(&mut storm);
            println!("  {} runs: {}", storm.runs, storm.failure.plan.size());
        }
        if storm.failure.plan == last {
            break;
        }
    }
    let is_over = if Instant::now() > end { ", and more might go" } else { "" };
    println!("from {before} to {}{is_over}", storm.failure.plan.size());
    Some(storm.failure.plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of which some are needed; one only while another is there.
    struct Numbers {
        all: Vec<u32>,
        needed: Vec<u32>,
        tries: u32,
    }

    impl Shrink for Numbers {
        type Piece = u32;

        fn pieces(&self) -> Vec<u32> {
            self.all.clone()
        }

        fn go_without(&mut self, pieces: &[u32]) -> bool {
            self.tries += 1;
            let rest: Vec<u32> = self.all.iter().copied().filter(|number| !pieces.contains(number)).collect();
            let has = |number: &u32| rest.contains(number);
            let is_same = self.needed.iter().all(has) && (!has(&100) || has(&900));
            if is_same {
                self.all = rest;
            }
            is_same
        }
    }

    #[test]
    fn only_what_is_needed_is_left_after_few_tries() {
        for needed in [vec![], vec![0], vec![999], vec![17, 18, 640], (300..320).collect()] {
            let mut numbers = Numbers { all: (0..1000).collect(), needed, tries: 0 };
            shrink(&mut numbers);
            assert_eq!(numbers.all, numbers.needed);
            assert!(numbers.tries < 400, "{} tries for {:?}", numbers.tries, numbers.needed);
        }
    }

    #[test]
    fn failures_of_one_kind_have_the_same_words() {
        let one = "scan 12: version 5.3, expiry 0, value Some([1, 2]); not [(None, Some(Live { value: [1";
        let other = "scan 3: version 17.0, expiry 99, value Some([]); not [(Some(3), None)]";
        assert_eq!(words(one), "scan version expiry value Some not");
        assert_eq!(words(one), words(other));
        assert_ne!(words(one), words("scan 12: the key is missing"));
        assert_eq!(words("no start: \"a [ b\" is lost"), "no start is lost");
    }

    #[test]
    fn a_panic_is_caught_with_its_place() {
        let (place, message) = caught(|| assert!(place_of_nothing().is_some(), "number {}", 7)).unwrap_err();
        assert!(place.starts_with(file!()), "{place}");
        assert_eq!(message, "number 7");
        assert_eq!(caught(|| 5).unwrap(), 5);
    }

    fn place_of_nothing() -> Option<u32> {
        None
    }

    /// What a storm did, what it met, and a number that depends on all of its choices.
    fn lived(seed: u64, plan: Option<Plan>) -> (Plan, String, u64) {
        let run = Run::in_storm(seed);
        let run = match plan {
            Some(plan) => run.by_plan(plan),
            None => run,
        };
        let done = run.script.done.clone();
        let met = run.storm(crate::CRASHES_OF_STORM);
        let done = done.take();
        (done.plan, format!("{met:?}"), done.trace)
    }

    #[test]
    fn what_a_storm_has_noted_does_the_same_again() {
        for seed in 1..=4 {
            let first = lived(seed, None);
            let again = lived(seed, Some(first.0.to_string().parse().unwrap()));
            assert_eq!(first, again, "seed {seed}");
        }
    }

    /// Else what a storm fails by would be the plan.
    #[test]
    fn a_storm_without_some_of_its_pieces_is_a_storm() {
        for seed in 11..=14 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (whole, ..) = lived(seed, None);
            for grain in Grain::ALL {
                let some = whole.pieces(grain).into_iter().filter(|_| rng.bool()).collect();
                let plan = whole.without(&some);
                let (done, met, trace) = lived(seed, Some(plan.clone()));
                assert!(done.size().turns <= plan.size().turns, "seed {seed}, {grain:?}");
                // What it has left out in addition was not met.
                assert_eq!((done.clone(), met, trace), lived(seed, Some(done)), "seed {seed}, {grain:?}");
            }
        }
    }
}
