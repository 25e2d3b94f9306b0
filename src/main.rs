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

/// Has the allocator give memory back sooner, unless the environment says when.
fn set_purge_delay() {
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_some() {
        return;
    }
    // SAFETY: reads an entry of a static table; the number is below the table's length.
    let found = unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY_OPTION) };
    assert!(found == PURGE_DELAY_DEFAULT_MS, "option {PURGE_DELAY_OPTION} of the allocator is another");
    // SAFETY: as above, and no other thread runs yet.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY_OPTION, PURGE_DELAY_MS) };
}

fn main() -> ExitCode {
    set_purge_delay();
    let result = start();
    logging::flush();
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
    let preflight = preflight::check(&config).map_err(boxed)?;
    server::run(config, preflight).map_err(boxed)
}

fn boxed<E: fmt::Display + 'static>(error: E) -> Box<dyn fmt::Display> {
    Box::new(error)
}
