//! Asks the processor for a cache line ahead of need.

/// Starts to fetch the line that `value` begins on. Where the architecture has no such hint, nothing.
#[inline(always)]
pub fn prefetch<T>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch has no effect on memory, and the address is that of a live value.
        unsafe { _mm_prefetch::<{ _MM_HINT_T0 }>(core::ptr::from_ref(value).cast()) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_prefetch_changes_nothing() {
        let value = [7u64; 8];
        super::prefetch(&value);
        assert_eq!(value, [7; 8]);
    }
}
