//! The open connections of one shard.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::connection::Connection;
use super::connection::kept::KeptBack;
use crate::env::{Env, Gate, GateGuard};

/// Connections that are looked at in one go; requests come in between.
const SWEPT_AT_ONCE: usize = 128;
/// No turn of a shard takes so long: nothing ran, since the process was stopped or the machine was elsewhere.
const ABSENT: Duration = Duration::from_millis(100);

/// The connections of one shard.
pub struct OpenConnections<E: Env> {
    connections: RefCell<BTreeMap<u64, Weak<Connection<E>>>>,
    is_draining: Cell<bool>,
    is_abandoning: Cell<bool>,
    /// Those whose replies wait for others.
    pub(super) kept_back: Rc<KeptBack<E>>,
    /// Counts the tasks that serve them.
    pub gate: Gate,
}

impl<E: Env> OpenConnections<E> {
    /// None.
    pub fn new() -> OpenConnections<E> {
        OpenConnections {
            connections: RefCell::default(),
            is_draining: Cell::new(false),
            is_abandoning: Cell::new(false),
            kept_back: KeptBack::new(),
            gate: Gate::new(),
        }
    }

    pub(super) fn insert(&self, token: u64, connection: &Rc<Connection<E>>) {
        self.connections.borrow_mut().insert(token, Rc::downgrade(connection));
        // Taken over before the server was told to stop, begun after.
        if self.is_draining.get() {
            connection.take_no_more();
        }
        if self.is_abandoning.get() {
            connection.abandon();
        }
    }

    pub(super) fn remove(&self, token: u64) {
        self.connections.borrow_mut().remove(&token);
    }

    /// Keeps the shard alive until dropped.
    pub fn enter(&self) -> GateGuard {
        self.gate.enter()
    }

    fn each(&self, visit: impl Fn(&Connection<E>)) {
        let all: Vec<_> = self.connections.borrow().values().filter_map(Weak::upgrade).collect();
        all.iter().for_each(|connection| visit(connection));
    }

    /// Disconnects those that were idle, or took no replies, for too long. `idle`: `None` is never. `stalled`: how
    /// long a client may leave its replies unread. `absent`: a time of this length before `now` in which the shard did
    /// nothing is counted against nobody: what a client sent or took meanwhile it has not seen yet. Some at a time,
    /// for there may be ten thousand. Returns for how long the shard did nothing meanwhile.
    pub async fn sweep(
        &self,
        env: &E,
        idle: Option<Duration>,
        stalled: Duration,
        absent: Duration,
    ) -> Duration {
        let now = env.now();
        let (mut from, mut missed) = (0, Duration::ZERO);
        loop {
            let some: Vec<_> = {
                let connections = self.connections.borrow();
                let some = connections.range(from..).take(SWEPT_AT_ONCE);
                some.map(|(token, connection)| (*token, connection.upgrade())).collect()
            };
            let Some((last, _)) = some.last() else { return missed };
            from = last + 1;
            for connection in some.iter().filter_map(|(_, connection)| connection.as_ref()) {
                if !absent.is_zero() {
                    connection.forgive(now, absent);
                }
                connection.sweep(now, idle, stalled);
            }
            drop(some);
            let paused = env.now();
            env.sleep(Duration::from_micros(1)).await; // for real: a mere yield does not look at the rings
            missed += Some(env.now() - paused).filter(|gap| *gap >= ABSENT).unwrap_or_default();
        }
    }

    /// Takes in no more requests; what is in flight is answered, then the connections end.
    pub fn drain(&self) {
        self.is_draining.set(true);
        self.each(Connection::take_no_more);
    }

    /// Ends all of them at once.
    pub fn abandon(&self) {
        self.is_abandoning.set(true);
        self.each(Connection::abandon);
    }
}

impl<E: Env> Default for OpenConnections<E> {
    fn default() -> Self {
        OpenConnections::new()
    }
}
