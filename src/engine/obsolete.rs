//! Files that nobody needs go, one at a time and large ones piece by piece; free space is watched.

use std::rc::Rc;
use std::time::Duration;

use super::wal::remove_log;
use super::{Engine, EngineError};
use crate::disk::Disk;
use crate::env::Env;

/// How often free space is looked at, beside each time that a memtable is full: the reserve is a few memtables, and
/// small ones are filled more often than this.
const SPACE_CHECK: Duration = Duration::from_millis(500);

/// A table is removed in pieces of so many bytes, with a pause between two: freeing gigabytes at once takes the
/// file system long, and meanwhile it makes others wait.
pub(super) const REMOVE_STEP: u64 = 64 << 20;
pub(super) const REMOVE_PAUSE: Duration = Duration::from_millis(5);

impl<E: Env> Engine<E> {
    /// Closes and removes tables without readers, and logs without need. One file at a time.
    pub(super) async fn remove_obsolete(&self) {
        self.close_departed().await;
        loop {
            let table = {
                let mut obsolete = self.obsolete.borrow_mut();
                let free = obsolete.iter().position(|table| Rc::strong_count(table) == 1);
                free.and_then(|at| Rc::try_unwrap(obsolete.swap_remove(at)).ok())
            };
            let Some(table) = table else { break };
            let path = table.name().path();
            let removed: Result<(), EngineError> = async {
                table.close().await?;
                // What can't be cut can still be removed, and that is where an error counts.
                while let Ok(true) = self.env.disk().shrink(&path, REMOVE_STEP).await {
                    self.env.sleep(REMOVE_PAUSE).await;
                }
                Ok(self.env.disk().remove(&path).await?)
            }
            .await;
            if let Err(error) = removed {
                tracing::warn!("{path} is not needed any more, but stays until the next start: {error}");
            }
        }
        let logs = self.finished_logs.take();
        for log in logs {
            match remove_log(&self.env, log.segments()).await {
                Ok(()) => tracing::info!(log = log.id().0, "removed an old log: tables hold all of it"),
                Err(error) => tracing::warn!("an old log stays until the next start: {error}"),
            }
        }
    }

    /// Watches free space until the engine stops.
    pub(super) async fn space_loop(self: Rc<Self>) {
        let reserve = self.options.reserve_bytes;
        while !self.is_stopping.get() {
            match self.env.disk().space().await {
                Ok(space) if space.free < reserve => {
                    let shortage = format!(
                        "{} MiB are free, {} MiB are kept in reserve",
                        space.free >> 20,
                        reserve >> 20
                    );
                    if self.shortage.replace(Some(shortage.clone())).is_none() {
                        tracing::error!("puts are refused: {shortage}");
                        // The log may be much of what is there, and goes when tables have what is in it.
                        self.flush_remains();
                        self.changed.notify();
                    }
                }
                // Some more than the reserve, so that it does not flap.
                Ok(space) if space.free > reserve + reserve / 8 => {
                    if self.shortage.replace(None).is_some() {
                        tracing::info!("puts are taken again: {} MiB are free", space.free >> 20);
                        self.changed.notify();
                    }
                }
                Ok(_) => {}
                Err(error) => tracing::warn!("free space is unknown: {error}"),
            }
            let filled = self.active_number.get();
            let is_due = || self.is_stopping.get() || reserve > 0 && self.active_number.get() != filled;
            futures_lite::future::or(self.env.sleep(SPACE_CHECK), self.changed.until(is_due)).await;
        }
    }
}
