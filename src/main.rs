//! The server: flags in, [`atlaskv::server::run`], exit code out.

use std::fmt;
use std::process::ExitCode;

use atlaskv::config::Config;
use atlaskv::server::{self, logging, preflight};

// Measured against the system's: connection buffers and replies cost a third of the time to allocate and
// free, a sixth across threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
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
