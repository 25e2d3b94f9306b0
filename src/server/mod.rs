//! Sockets, acceptor, signals, start and stop.

mod accept;
mod connection;
pub mod cpu;
mod device;
pub mod lock;
pub mod logging;
pub mod notify;
mod open;
mod outbuffer;
mod poller;
pub mod preflight;
mod redis;
mod run;
mod sends;
mod serve;
mod socket;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;

pub use self::run::{ServerError, run};

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
