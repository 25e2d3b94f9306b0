//! The open connections of one shard.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

use super::connection::Connection;
use crate::env::{Env, Gate, GateGuard};

/// The connections of one shard.
pub struct OpenConnections<E: Env> {
    connections: RefCell<BTreeMap<u64, Weak<Connection<E>>>>,
    is_draining: Cell<bool>,
    is_abandoning: Cell<bool>,
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

    /// Disconnects those that were idle, or took no replies, for too long. `idle`: `None` is never.
    /// `stalled`: how long a client may leave its replies unread.
    pub fn sweep(&self, now: Duration, idle: Option<Duration>, stalled: Duration) {
        self.each(|connection| connection.sweep(now, idle, stalled));
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
