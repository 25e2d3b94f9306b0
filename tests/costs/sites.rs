//! Where allocations are made, for whoever looks for one too many.

use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

/// Places of the crate that are told of each allocation: the innermost, and its callers.
const DEPTH: usize = 3;

thread_local! {
    static IS_ON: Cell<bool> = const { Cell::new(false) };
    static SITES: RefCell<HashMap<String, u64>> = RefCell::default();
}

/// Begins or ends to note them on this thread. It takes about a millisecond for each.
pub fn note(is_on: bool) {
    IS_ON.set(is_on);
}

/// Notes an allocation, if they are to be. Allocates, which must not count.
pub fn allocated() {
    if !IS_ON.replace(false) {
        return;
    }
    let trace = Backtrace::force_capture().to_string();
    let places = trace.lines().filter_map(|line| line.trim().strip_prefix("at ./src/"));
    let site = places.take(DEPTH).collect::<Vec<_>>().join(" < ");
    SITES.with_borrow_mut(|sites| *sites.entry(site).or_default() += 1);
    IS_ON.set(true);
}

/// What was noted since this was last asked, most first: how often, and where.
pub fn take() -> Vec<(u64, String)> {
    let sites = SITES.take();
    let mut sites: Vec<(u64, String)> = sites.into_iter().map(|(site, count)| (count, site)).collect();
    sites.sort_by(|a, b| b.cmp(a));
    sites
}
