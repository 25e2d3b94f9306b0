//! What is known of saves: the same for all shards, and written by the one that makes them.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What is known of saves. Each part by itself: nobody draws conclusions from two of them.
#[derive(Debug)]
pub struct SaveStatus {
    is_running: AtomicBool,
    has_failed: AtomicBool,
    saved_at_ms: AtomicU64,
}

impl SaveStatus {
    /// None was made since the server started at this time, in milliseconds since 1970: as in Redis, that is the time
    /// of the last one.
    pub fn new(started_at_ms: u64) -> SaveStatus {
        SaveStatus {
            is_running: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            saved_at_ms: AtomicU64::new(started_at_ms),
        }
    }

    /// One begins.
    pub fn begins(&self) {
        self.is_running.store(true, Ordering::Release);
    }

    /// It has ended, at this time if it was made.
    pub fn ended(&self, saved_at_ms: Option<u64>) {
        if let Some(at) = saved_at_ms {
            self.saved_at_ms.store(at, Ordering::Release);
        }
        self.has_failed.store(saved_at_ms.is_none(), Ordering::Release);
        self.is_running.store(false, Ordering::Release);
    }

    /// Whether one is being made.
    pub fn is_running(&self) -> bool {
        self.is_running.load(Ordering::Acquire)
    }

    /// Whether the last one that ended failed.
    pub fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    /// When the last one was made, in seconds since 1970.
    pub fn saved_at_s(&self) -> u64 {
        self.saved_at_ms.load(Ordering::Acquire) / 1000
    }
}
