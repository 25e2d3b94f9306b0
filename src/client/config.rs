//! How a client reaches its server, and how patient it is.

use std::time::{Duration, Instant};

/// How a client reaches its server, and how patient it is. The defaults suit a local network.
#[derive(Clone, Debug)]
pub struct Config {
    /// `host:port`.
    pub address: String,
    /// For making one connection, HELLO included.
    pub connect_timeout: Duration,
    /// Without a byte of the reply that is waited for.
    pub read_timeout: Duration,
    /// Without the server taking a byte of what is sent.
    pub write_timeout: Duration,
    /// How often a failed connection attempt, or a read on a connection that broke, is tried again.
    pub retries: u32,
    /// Pause before the first retry; each further one is twice as long, give or take a half.
    pub backoff_min: Duration,
    /// Longest pause between retries.
    pub backoff_max: Duration,
    /// How long a request of a [`super::Client`] that is refused as overloaded, or a range delete that is done in part,
    /// is tried again, with the same pauses; zero: not at all. Those of a pipeline are not tried again.
    pub overload_patience: Duration,
    /// Bytes of a pipeline's requests that are on their way to one shard at a time. The server's own
    /// limit holds in any case; a single larger request goes alone.
    pub window_bytes: usize,
    /// Whether to keep a connection to each shard. Otherwise there is one, to any shard, and the server
    /// passes on what concerns another.
    pub is_shard_aware: bool,
}

impl Config {
    /// Where a server listens if it is not told otherwise.
    pub const DEFAULT_ADDRESS: &'static str = "127.0.0.1:7379";

    /// The server at `host:port`, perhaps with `atlaskv://` before it, and defaults for all else.
    pub fn new(address: &str) -> Config {
        let address = address.strip_prefix("atlaskv://").unwrap_or(address);
        Config {
            address: address.strip_suffix('/').unwrap_or(address).to_owned(),
            connect_timeout: Duration::from_secs(3),
            read_timeout: Duration::from_secs(10),
            write_timeout: Duration::from_secs(10),
            retries: 3,
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_secs(1),
            overload_patience: Duration::from_secs(5),
            // What a server has taken in is acknowledged long before its replies are due, so a window of
            // the size of the usual socket buffer keeps both sides busy.
            window_bytes: 256 << 10,
            is_shard_aware: true,
        }
    }
}

impl Default for Config {
    fn default() -> Config {
        Config::new(Config::DEFAULT_ADDRESS)
    }
}

/// The pauses between the attempts of one call.
pub(super) struct Backoff {
    retries_left: u32,
    pause: Duration,
    pause_max: Duration,
}

impl Backoff {
    pub(super) fn new(config: &Config) -> Backoff {
        Backoff { retries_left: config.retries, pause: config.backoff_min, pause_max: config.backoff_max }
    }

    /// Waits before another attempt; false when there is to be none.
    pub(super) fn wait(&mut self) -> bool {
        let Some(left) = self.retries_left.checked_sub(1) else { return false };
        self.retries_left = left;
        std::thread::sleep(next_pause(&mut self.pause, self.pause_max));
        true
    }
}

/// The pause before the next attempt. Clients that were turned away at the same moment come back at different ones.
fn next_pause(pause: &mut Duration, pause_max: Duration) -> Duration {
    let this = (*pause).min(pause_max).mul_f64(0.5 + fastrand::f64());
    *pause = pause.saturating_mul(2);
    this.min(pause_max)
}

/// The pauses of a call that is refused for now.
pub(super) struct Patience {
    pause: Duration,
    pause_max: Duration,
    /// `None`: no time ends it.
    until: Option<Instant>,
}

impl Patience {
    pub(super) fn new(config: &Config) -> Patience {
        let until = Instant::now().checked_add(config.overload_patience);
        Patience { pause: config.backoff_min, pause_max: config.backoff_max, until }
    }

    /// Waits before another attempt; false when there is to be none.
    pub(super) fn wait(&mut self) -> bool {
        let pause = next_pause(&mut self.pause, self.pause_max);
        if self.until.is_some_and(|until| Instant::now() + pause >= until) {
            return false;
        }
        std::thread::sleep(pause);
        true
    }
}
