//! Single bits flipped in every kind of file of stores of many shapes. Each flip is found by `verify`, or it is
//! harmless: it hits a byte that by its format no reader looks at (`places`), and the store starts and answers as
//! if nothing had happened. And a part of the copies, found or not, is opened and read: no answer is wrong, nothing
//! panics.
//!
//! In the suite there is a short run, with other stores each time. A long one, and one store of it again:
//!
//! ```text
//! ATLASKV_FLIPS=100000 cargo test --release -p atlaskv-inspect --test flips -- --nocapture
//! ATLASKV_FLIP_SEED=17 ATLASKV_FLIPS=1 cargo test -p atlaskv-inspect --test flips
//! ```

#[path = "../common/mod.rs"]
mod common;
mod look;
mod places;
mod stores;
mod table;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use atlaskv_inspect::{Failure, verify};

use stores::{Specimen, Specimens};
use table::{Kind, Tally};

const PAGE: usize = 4096;
/// Flips in the files of one store and of its backup.
const FLIPS_A_STORE: u64 = 500;
/// In the suite.
const FLIPS: u64 = 600;
/// Of the flips that `verify` names one in so many is looked at as well.
const LOOK_ONE_IN: u32 = 4;
/// Beyond so many nothing new is learnt.
const FAILURES_MAX: usize = 20;

/// A bit to be flipped.
struct Flip<'a> {
    kind: Kind,
    specimen: &'a Specimen,
    path: &'a str,
    at: usize,
    bit: u8,
}

impl<'a> Flip<'a> {
    fn random(specimens: &'a Specimens, rng: &mut fastrand::Rng) -> Flip<'a> {
        loop {
            let kind = Kind::ALL[rng.usize(..Kind::ALL.len())];
            let specimen = match kind {
                Kind::Log | Kind::Lock => &specimens.live,
                Kind::Record => &specimens.backup,
                Kind::Marker => &specimens.marked,
                _ if rng.u8(..4) == 0 => &specimens.backup,
                _ => &specimens.live,
            };
            // What nothing names is of less interest.
            let is_named = rng.u8(..8) > 0;
            let files = specimen.files.iter().filter(|(path, bytes)| {
                Kind::of(path) == kind && !bytes.is_empty() && (!is_named || specimen.places.is_named(path))
            });
            let Some((path, bytes)) = rng.choice(files.collect::<Vec<_>>()) else { continue };
            return Flip { kind, specimen, path, at: place(bytes, rng), bit: rng.u8(..8) };
        }
    }
}

/// A byte of a file. Most of a log or a manifest is still empty, so mostly one of a page that is not; and most of such
/// a page may be padding.
fn place(bytes: &[u8], rng: &mut fastrand::Rng) -> usize {
    let pages = bytes.chunks(PAGE).enumerate().filter(|(_, page)| page.iter().any(|byte| *byte != 0));
    let Some((number, page)) = rng.choice(pages.collect::<Vec<_>>()).filter(|_| rng.u8(..16) > 0) else {
        return rng.usize(..bytes.len());
    };
    let used = page.iter().rposition(|byte| *byte != 0).map_or(page.len(), |last| last + 1);
    let end = if rng.u8(..4) > 0 { used } else { page.len() };
    number * PAGE + rng.usize(..end)
}

/// Flips a bit of a file, asks `verify`, and flips it back. Whether that is damage to it, and what it says.
fn ask_verify(flip: &Flip<'_>, byte: u8) -> (bool, String) {
    let dir = flip.specimen.dir.path();
    let file = File::options().write(true).open(dir.join(flip.path)).unwrap();
    file.write_all_at(&[byte ^ 1 << flip.bit], flip.at as u64).unwrap();
    let mut out = Vec::new();
    let outcome = verify::verify(dir, &mut out);
    file.write_all_at(&[byte], flip.at as u64).unwrap();
    let said = String::from_utf8(out).expect("what is printed is text, whatever stands in the files");
    match outcome {
        Ok(is_damaged) => (is_damaged, said),
        Err(Failure::Refused(what)) => (true, said + &what),
        Err(Failure::Output(error)) => panic!("{error}"),
    }
}

/// One flip. `Err`: it is neither found nor harmless, or an answer was wrong.
fn try_flip(flip: &Flip<'_>, rng: &mut fastrand::Rng, tally: &mut Tally) -> Result<(), String> {
    let Flip { specimen, path, at, bit, .. } = flip;
    let mut bytes = specimen.files[*path].clone();
    let harmless = specimen.places.at(path, *at);
    let (is_found, said) = ask_verify(flip, bytes[*at]);
    bytes[*at] ^= 1 << bit;
    let row = tally.row(flip.kind);
    row.flips += 1;
    row.found += u64::from(is_found);
    let name = path.rsplit('/').next().unwrap_or(path);
    row.unnamed += u64::from(is_found && !said.contains(name));
    if is_found && rng.u32(..LOOK_ONE_IN) > 0 {
        return Ok(());
    }
    let seen = specimen.look(path, bytes)?;
    row.looked += 1;
    row.at_start += u64::from(seen.refusal.is_some() || seen.at_start > 0);
    row.on_read += u64::from(seen.on_read > 0);
    row.by_scrub += u64::from(seen.by_scrub > 0);
    if is_found {
        row.not_seen += u64::from(seen.is_nothing());
        return Ok(());
    }
    let Some(harmless) = harmless else { return Err(format!("verify says only: {said}")) };
    if !seen.is_nothing() {
        let (read, scrub) = (seen.on_read, seen.by_scrub);
        let start = seen.refusal.unwrap_or_else(|| format!("{} places", seen.at_start));
        return Err(format!(
            "{harmless}, but at start: {start}; {read} reads refused, {scrub} places scrubbed; verify: {said}"
        ));
    }
    *row.harmless.entry(harmless).or_default() += 1;
    Ok(())
}

/// Flips bits of one store; adds what fails to `failures`.
fn try_store(seed: u64, flips: u64, tally: &mut Tally, failures: &Mutex<Vec<String>>) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let Ok(specimens) = catch_unwind(AssertUnwindSafe(|| stores::make(&mut rng))) else {
        failures
            .lock()
            .unwrap()
            .push(format!("ATLASKV_FLIP_SEED={seed}: the store can't be made or is not sound"));
        return;
    };
    tally.stores += 1;
    for number in 0..flips {
        let flip = Flip::random(&specimens, &mut rng);
        let tried = catch_unwind(AssertUnwindSafe(|| try_flip(&flip, &mut rng, tally)));
        if let Err(what) = tried.unwrap_or_else(|_| Err("it panics".to_owned())) {
            let Flip { specimen, path, at, bit, .. } = &flip;
            let story = &specimen.what;
            failures.lock().unwrap().push(format!(
                "ATLASKV_FLIP_SEED={seed}, flip {number} ({story}): bit {bit} of byte {at} of {path}: {what}"
            ));
        }
        if failures.lock().unwrap().len() >= FAILURES_MAX {
            return;
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn every_flipped_bit_is_found_or_harmless_and_no_answer_is_wrong() {
    let flips = number("ATLASKV_FLIPS").unwrap_or(FLIPS);
    let seed = number("ATLASKV_FLIP_SEED").unwrap_or_else(|| fastrand::u64(..1 << 40));
    println!("to repeat: ATLASKV_FLIP_SEED={seed} ATLASKV_FLIPS={flips}");
    let stores = flips.div_ceil(FLIPS_A_STORE).max(if flips > 1 { 4 } else { 1 });
    let (next, failures, sum) = (AtomicU64::new(0), Mutex::new(Vec::new()), Mutex::new(Tally::default()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                let mut tally = Tally::default();
                loop {
                    let store = next.fetch_add(1, Ordering::Relaxed);
                    if store >= stores || failures.lock().unwrap().len() >= FAILURES_MAX {
                        break;
                    }
                    try_store(seed + store, flips.div_ceil(stores), &mut tally, &failures);
                }
                sum.lock().unwrap().add(tally);
            });
        }
    });
    println!("{}", sum.into_inner().unwrap());
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} flips:\n{}", failures.len(), failures.join("\n"));
}
