//! Connections that speak Redis' protocol: what is told of them, and what CLIENTS does to them.
//!
//! A pause is this shard's: its connections ask for it before they take in a command, and wait for
//! [`Shard::relieved`], of which they are told when it ends, in whatever way.

use std::cell::Cell;
use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

use super::Shard;
use crate::env::{Env, Notify, Queue};
use crate::error::{Code, Refusal};
use crate::protocol::{ClientsAction, ClientsRequest, Paused};

/// For so long at most the end of a pause is slept for at once: a clock may refuse to count centuries.
const SLEEP_MAX: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy)]
struct Pause {
    paused: Paused,
    until: Duration,
}

/// The pause of a shard's clients.
#[derive(Default)]
pub(super) struct Pauses {
    pause: Cell<Option<Pause>>,
    /// Notified when it is another.
    changed: Notify,
    /// A task waits for its end.
    is_watched: Cell<bool>,
}

impl<E: Env> Shard<E> {
    /// What clients of Redis' protocol may not do now.
    pub fn paused(&self) -> Option<Paused> {
        let pause = self.pauses.pause.get()?;
        (self.env.now() < pause.until).then_some(pause.paused)
    }

    /// A line about each client of this shard that is listed.
    pub(super) fn clients_text(&self) -> String {
        let outlets: Vec<_> = self.outlets.borrow().iter().map(|(_, (_, outlet))| outlet.clone()).collect();
        let (mut text, most) = (String::new(), self.limits.frame_bytes_max as usize);
        for line in outlets.iter().filter_map(|outlet| outlet.describe()) {
            text += &line;
            if text.len() > most {
                // Refused by whoever gathers it.
                break;
            }
        }
        text
    }

    /// Does what CLIENTS asks. What came of it, as text.
    pub(super) fn change_clients(self: &Rc<Self>, request: &ClientsRequest<'_>) -> Result<String, Refusal> {
        if usize::from(request.shard) != self.id {
            let last = self.slots.shards - 1;
            let message = format!("there is no shard {}: they are numbered 0 to {last}", request.shard);
            return Err(Refusal::new(Code::NoSuchShard, message));
        }
        let mut disconnected = 0;
        match request.action {
            ClientsAction::Disconnect(ids) => {
                let wanted: HashSet<u64> = ids.iter().collect();
                let outlets: Vec<_> =
                    self.outlets.borrow().iter().map(|(_, (_, outlet))| outlet.clone()).collect();
                for outlet in outlets {
                    if outlet.client().is_some_and(|id| wanted.contains(&id)) {
                        outlet.disconnect();
                        disconnected += 1;
                    }
                }
            }
            ClientsAction::Pause { paused, ms } => self.pause_clients(paused, Duration::from_millis(ms)),
            ClientsAction::Unpause => self.end_pause(),
        }
        Ok(format!("disconnected={disconnected}\n"))
    }

    fn pause_clients(self: &Rc<Self>, mut paused: Paused, time: Duration) {
        let now = self.env.now();
        let mut until = now.saturating_add(time);
        if let Some(known) = self.pauses.pause.get().filter(|known| now < known.until) {
            (paused, until) = (paused.max(known.paused), until.max(known.until));
        }
        self.pauses.pause.set(Some(Pause { paused, until }));
        self.pauses.changed.notify();
        if self.pauses.is_watched.replace(true) {
            return;
        }
        let (shard, changed, env) = (Rc::downgrade(self), self.pauses.changed.clone(), self.env.clone());
        self.env.spawn(Queue::Foreground, async move {
            loop {
                let next = changed.notified();
                let left = shard.upgrade().and_then(|shard| shard.pause_left());
                let Some(left) = left else { return };
                futures_lite::future::or(next, env.sleep(left.min(SLEEP_MAX))).await;
            }
        });
    }

    /// For how long clients are paused yet. If not at all, nobody looks any more, and those who wait go on.
    fn pause_left(&self) -> Option<Duration> {
        let until = self.pauses.pause.get().map_or(Duration::ZERO, |pause| pause.until);
        let left = until.saturating_sub(self.env.now());
        if !left.is_zero() {
            return Some(left);
        }
        self.pauses.is_watched.set(false);
        self.end_pause();
        None
    }

    /// Clients go on.
    pub(super) fn end_pause(&self) {
        self.pauses.pause.set(None);
        self.pauses.changed.notify();
        self.relieved.notify();
    }
}
