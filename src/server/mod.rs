//! Sockets, acceptor, signals, start and stop.

pub mod cpu;
pub mod lock;
pub mod logging;
pub mod notify;
pub mod preflight;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;

use crate::config::Config;
use preflight::Preflight;

/// Why the server stopped other than by being told to, in one line for a person.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A signal handler could not be installed.
    #[error("signals can't be handled ({0})")]
    Signals(io::Error),
}

/// Tells that clients are served: a line on standard output for whoever started the server, person or
/// script, and word to systemd.
pub fn announce(address: SocketAddr, shards: usize, data_dir: &Path) {
    let mut stdout = io::stdout().lock();
    let plural = if shards == 1 { "" } else { "s" };
    // A closed standard output is no reason not to serve.
    let _ =
        writeln!(stdout, "atlaskv ready: {address}, {shards} shard{plural}, data in {}", data_dir.display());
    let _ = stdout.flush();
    notify::notify(notify::State::Ready);
}

/// Serves until a signal ends it.
pub fn run(config: Config, preflight: Preflight) -> Result<(), ServerError> {
    let mut signals =
        signal_hook::iterator::Signals::new([libc::SIGTERM, libc::SIGINT]).map_err(ServerError::Signals)?;
    announce(preflight.address, preflight.cpus.len(), &config.data_dir);
    signals.forever().next();
    notify::notify(notify::State::Stopping);
    Ok(())
}
