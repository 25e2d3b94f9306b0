//! What ends a connection from outside: others, the server, or time.

use std::net::Shutdown;
use std::time::Duration;

use super::{Connection, READ_BYTES};
use crate::env::Env;

/// How long, and for how many bytes, a connection that is closed for a fault takes no notice of what comes.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 16 << 20;

impl<E: Env> Connection<E> {
    /// Ends the connection at once, from outside its own task.
    pub(in crate::server) fn abandon(&self) {
        self.is_broken.set(true);
        self.give_up();
        self.socket.shutdown(Shutdown::Both);
        self.moved.notify();
    }

    /// Takes in no more requests; what is in flight is answered.
    pub(in crate::server) fn take_no_more(&self) {
        self.takes_no_more.set(true);
        self.socket.shutdown(Shutdown::Read);
        self.moved.notify();
    }

    /// Does not count a time `absent` before `now`, of which [`sweep`](crate::server::open::OpenConnections::sweep) tells.
    pub(in crate::server) fn forgive(&self, now: Duration, absent: Duration) {
        let active_at = self.active_at.get();
        self.active_at.set((active_at + absent).min(now).max(active_at));
    }

    /// The client did something at `at`, which may be before what is known: what is read now came when the poller last
    /// looked, and it may not have looked since a pause, say, began.
    pub(super) fn is_active(&self, at: Duration) {
        self.active_at.set(self.active_at.get().max(at));
    }

    /// Whether the client has taken any of its replies since this was last asked: whether its side has acknowledged
    /// some. That the socket has room for more is told only when a third of its buffer is free, which of a few MiB may
    /// be minutes of a slow client.
    pub(super) fn has_taken(&self) -> bool {
        // Before this shard served it, another may have sent what is still on its way: then it begins below zero.
        let sent = self.out.borrow().sent_total().cast_signed();
        let Ok(untaken) = self.socket.untaken() else { return false };
        let taken = sent - i64::from(untaken);
        taken > self.taken.replace(taken)
    }

    /// Disconnects it if it was idle, or held up others, for too long: see
    /// [`OpenConnections::sweep`](crate::server::open::OpenConnections::sweep).
    pub(in crate::server) fn sweep(&self, now: Duration, idle: Option<Duration>, stalled: Duration) {
        if (self.is_writing.get() || self.speech.has_early()) && self.has_taken() {
            self.is_active(now);
            self.speech.advances(now);
        }
        let quiet = now.saturating_sub(self.active_at.get());
        if quiet >= stalled && self.is_silent() && self.shard.request_budget.is_short() {
            tracing::debug!(
                token = self.token.get(),
                "disconnected: its request does not come, and others wait for the memory it holds"
            );
            self.abandon();
        } else if self.speech.is_stuck(now, stalled) {
            tracing::debug!(
                token = self.token.get(),
                "disconnected: a large reply came before others that don't come, and holds the memory of others"
            );
            self.abandon();
        } else if self.waits_for_pause.get() && self.socket.is_left() {
            // It may be full of what it sent, and then reads no more, so that it does not see the end.
            tracing::debug!(token = self.token.get(), "disconnected: its client left while it was paused");
            self.abandon();
        } else if self.is_writing.get() {
            if quiet >= stalled {
                tracing::debug!(token = self.token.get(), "disconnected: it does not read its replies");
                self.abandon();
            }
        } else if idle.is_some_and(|idle| quiet >= idle)
            && self.in_flight.get() == 0
            && !self.waits_for_pause.get()
        {
            tracing::debug!(token = self.token.get(), "disconnected: idle");
            self.socket.shutdown(Shutdown::Read);
        }
    }

    /// Takes no notice of what still comes for a moment: to close with bytes unread would reset the
    /// connection, and the client might never see why.
    pub(super) async fn linger(&self) {
        self.socket.shutdown(Shutdown::Write);
        let mut left = LINGER_BYTES;
        let drain = async {
            let mut sink = Vec::new();
            while let Ok(len) = self.read_more(&mut sink, READ_BYTES).await {
                left = left.saturating_sub(len);
                if len == 0 || left == 0 {
                    break;
                }
                sink.clear();
            }
        };
        futures_lite::future::or(drain, self.shard.env.sleep(LINGER)).await;
    }
}
