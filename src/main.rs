//! The server: flags in, [`atlaskv::server::run`], exit code out.

use std::fmt;
use std::process::ExitCode;

use atlaskv::config::Config;
use atlaskv::server::{self, logging, preflight};

// Measured against the system's: connection buffers and replies cost a third of the time to allocate and
// free, a sixth across threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc 3, which its bindings do not name.
const PURGE_DELAY_OPTION: i32 = 15;
const PURGE_DELAY_DEFAULT_MS: i64 = 1000;
/// How long freed memory stays resident. Measured: a second costs tens of MiB beyond the budget, which
/// overload makes a hundred; 30 ms cost no CPU that can be told from noise, 10 ms up to a fifth where large
/// values come and go.
const PURGE_DELAY_MS: i64 = 30;

fn purge_delay_ms() -> i64 {
    // SAFETY: reads an entry of a static table; the number is below the table's length.
    unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY_OPTION) }
}

/// Has the allocator give memory back sooner, unless the environment has told it when.
fn set_purge_delay() {
    if purge_delay_ms() == PURGE_DELAY_DEFAULT_MS {
        // SAFETY: writes an entry of a static table; the number is below the table's length, and no other
        // thread runs yet.
        unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY_OPTION, PURGE_DELAY_MS) };
    }
}

/// Has memory come in small pages. The kernel clears a huge page, 2 MiB, when it is first touched, on the shard's time:
/// measured 0.2 ms, and 5 where a virtual machine gives back what is free and must fetch it again. Memory of memtables
/// comes and goes, so that is a wait in each tail, for some 2 % of CPU.
fn refuse_huge_pages() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::warn!(%error, "transparent huge pages can't be refused: some requests may wait for them");
    }
}

fn main() -> ExitCode {
    set_purge_delay();
    let result = start();
    logging::end();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("atlaskv: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<(), Box<dyn fmt::Display>> {
    let config = Config::from_command_line().map_err(boxed)?;
    logging::init(&config);
    refuse_huge_pages();
    let preflight = preflight::check(&config).map_err(boxed)?;
    server::run(config, preflight).map_err(boxed)
}

fn boxed<E: fmt::Display + 'static>(error: E) -> Box<dyn fmt::Display> {
    Box::new(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn huge_pages_are_refused() {
        refuse_huge_pages();
        assert!(rustix::thread::transparent_huge_pages_are_disabled().unwrap());
    }

    /// The bindings give the option no name, so that another version could make it another option.
    #[test]
    fn the_option_is_the_purge_delay() {
        let is_told = std::env::vars_os().any(|(name, _)| {
            let name = name.to_string_lossy().to_ascii_uppercase();
            matches!(&name[..], "MIMALLOC_PURGE_DELAY" | "MIMALLOC_RESET_DELAY")
        });
        assert!(!is_told, "run the tests without a purge delay in the environment");
        assert_eq!(purge_delay_ms(), PURGE_DELAY_DEFAULT_MS);
        set_purge_delay();
        assert_eq!(purge_delay_ms(), PURGE_DELAY_MS);
    }
}
