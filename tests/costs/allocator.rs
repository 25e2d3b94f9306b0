//! An allocator that counts, thread by thread, what code under measure asks of it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use crate::sites;

thread_local! {
    // Without destructors, so that they can be reached at any time, and made without allocating.
    static IS_COUNTING: Cell<bool> = const { Cell::new(false) };
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, observed.
pub struct Counting;

fn note(bytes: usize) {
    if IS_COUNTING.get() {
        COUNT.set(COUNT.get() + 1);
        BYTES.set(BYTES.get() + bytes as u64);
        outside(sites::allocated);
    }
}

// SAFETY: every call is handed to the system's allocator as it is. What is done beside that reads and writes numbers of
// this thread, which neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller keeps to the contract of this very function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // What is there may have to be copied, so all of it counts again.
        note(bytes);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, bytes) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

/// Sets back what [`inside`] and [`outside`] have set, also if what they run panics.
struct Restore(bool);

impl Drop for Restore {
    fn drop(&mut self) {
        IS_COUNTING.set(self.0);
    }
}

/// Runs code under measure: what it allocates on this thread counts.
pub fn inside<T>(work: impl FnOnce() -> T) -> T {
    let _restore = Restore(IS_COUNTING.replace(true));
    work()
}

/// Runs what stands in for the world around that: what it allocates does not count.
pub fn outside<T>(work: impl FnOnce() -> T) -> T {
    let _restore = Restore(IS_COUNTING.replace(false));
    work()
}

/// Allocations of this thread that counted so far, and their bytes.
pub fn so_far() -> (u64, u64) {
    (COUNT.get(), BYTES.get())
}

#[test]
fn only_what_is_under_measure_counts() {
    let before = so_far();
    drop(vec![0u8; 100]);
    inside(|| {
        let mut bytes = Vec::with_capacity(100);
        outside(|| drop(vec![0u8; 7]));
        bytes.resize(150, 1u8);
    });
    let (count, bytes) = so_far();
    assert_eq!(count - before.0, 2, "the vector, and its growth");
    assert!((250..=300).contains(&(bytes - before.1)), "{}", bytes - before.1);
}
