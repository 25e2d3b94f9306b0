//! Per-shard counters: plain cells, added to by their shard alone, copied when someone asks.

use std::cell::Cell;
use std::time::Duration;

/// What takes longer than this is counted as slow: some times what a disk, or a round of an executor, usually takes.
const SLOW: Duration = Duration::from_millis(10);

/// Counts in two counters what was slow, and the microseconds that it took.
#[inline]
pub fn note_slow(took: Duration, count: &Cell<u64>, micros: &Cell<u64>) {
    if took > SLOW {
        Metrics::add(count, 1);
        Metrics::add(micros, took.as_micros() as u64);
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])+ $name:ident,)+) => {
        /// A shard's counters since its start.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $($(#[$doc])+ pub $name: Cell<u64>,)+
        }

        /// A copy of [`Metrics`] at one moment, or the sum of several.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct MetricsSnapshot {
            $($(#[$doc])+ pub $name: u64,)+
        }

        impl Metrics {
            /// Their values now.
            pub fn snapshot(&self) -> MetricsSnapshot {
                MetricsSnapshot { $($name: self.$name.get(),)+ }
            }
        }

        impl MetricsSnapshot {
            /// Adds another shard's.
            pub fn merge(&mut self, other: &MetricsSnapshot) {
                let before = *self;
                $(self.$name += other.$name;)+
                // Those that do not add up.
                self.snapshot_age_ms = before.snapshot_age_ms.max(other.snapshot_age_ms);
                self.slowdown_permille = before.slowdown_permille.max(other.slowdown_permille);
                self.move_pause_micros_max = before.move_pause_micros_max.max(other.move_pause_micros_max);
            }

            /// Name and value of each, in the order of declaration.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)+].into_iter()
            }

            /// What follows from these, sums of several shards included, in thousandths: bytes written to disk for
            /// each byte of keys and values written; parts of tables read from disk for each key looked up; bytes of
            /// tables for each byte of the last level, which holds each key once; operations in a block of the log.
            pub fn ratios(&self) -> [(&'static str, u64); 4] {
                let written = self.wal_bytes + self.flush_bytes + self.compaction_bytes_out;
                let permille = |part: u64, whole: u64| part.saturating_mul(1000).checked_div(whole).unwrap_or(0);
                [
                    ("write_amplification_permille", permille(written, self.write_bytes)),
                    ("read_amplification_permille", permille(self.disk_reads, self.gets)),
                    ("space_amplification_permille", permille(self.table_bytes, self.last_bytes)),
                    ("wal_batch_permille", permille(self.wal_ops, self.wal_blocks)),
                ]
            }

            /// Sets the one with this name; `false` if there is none.
            pub fn set(&mut self, name: &str, value: u64) -> bool {
                match name {
                    $(stringify!($name) => self.$name = value,)+
                    _ => return false,
                }
                true
            }
        }
    };
}

counters! {
    /// Connections served now.
    connections_open,
    /// Of those, clients of Redis with a command that a pause holds back.
    clients_paused,
    /// Connections ever taken on.
    connections_total,
    /// Bytes read from clients.
    bytes_in,
    /// Bytes written to clients.
    bytes_out,
    /// Reads from clients' sockets that brought something.
    receives,
    /// Writes to clients' sockets that took something.
    sends,
    /// Requests executed by this shard, whoever received them.
    requests,
    /// GETs, and keys of MGETs.
    gets,
    /// Of those, keys that were present.
    get_hits,
    /// SETs.
    sets,
    /// DELETEs.
    deletes,
    /// INCRs.
    incrs,
    /// Batches.
    batches,
    /// TRANSACTs that were executed.
    transactions,
    /// EXPIREs and PERSISTs.
    expires,
    /// TTLs.
    ttls,
    /// Requests refused.
    refusals,
    /// Errors that clients of Redis were told, by what they begin with.
    errors_err,
    /// See `errors_err`.
    errors_crossslot,
    /// See `errors_err`.
    errors_execabort,
    /// See `errors_err`.
    errors_misconf,
    /// See `errors_err`: requests for the keys of another node of the cluster.
    errors_moved,
    /// See `errors_err`.
    errors_noproto,
    /// See `errors_err`.
    errors_oom,
    /// See `errors_err`.
    errors_tryagain,
    /// See `errors_err`.
    errors_wrongpass,
    /// Requests that this shard received for others.
    forwarded,
    /// Messages sent to other shards.
    mesh_messages,
    /// Replies that waited for a commit.
    held_replies,
    /// Requests that waited for a disk read.
    disk_waits,
    /// Requests that waited for a memtable to be flushed.
    memory_waits,
    /// Rounds of an executor, from one look at its sockets to the next, that took longer than 10 ms: meanwhile nobody
    /// was answered.
    slow_rounds,
    /// Microseconds that these took.
    slow_round_micros,
    /// Blocks of the log whose write took longer than 10 ms.
    slow_commits,
    /// Microseconds that these took.
    slow_commit_micros,
    /// Waits of requests for a block or an index from disk that took longer than 10 ms, the wait for their turn included.
    slow_reads,
    /// Microseconds that these took.
    slow_read_micros,
    /// Microseconds in which writers waited because merges were behind.
    slowdown_micros,
    /// By how much writers are slowed now: 1000 is to the rate at which merges keep up.
    slowdown_permille,
    /// Bytes above the last level beyond what may be there.
    compaction_debt_bytes,
    /// Bytes of keys and values that were written.
    write_bytes,
    /// Operations logged.
    wal_ops,
    /// Blocks written to the log.
    wal_blocks,
    /// Bytes written to the log, padding included.
    wal_bytes,
    /// Bytes of live log segments.
    wal_live_bytes,
    /// Bytes of memtables.
    memtable_bytes,
    /// Entries in memtables, each key once.
    memtable_entries,
    /// About how many keys there are; more than there are if many were written anew since the last merges.
    keys_estimate,
    /// Memtables flushed.
    flushes,
    /// Bytes of tables that flushes wrote.
    flush_bytes,
    /// Microseconds that flushes took.
    flush_micros,
    /// Flushes that failed and were tried again.
    flush_failures,
    /// Merges of tables.
    compactions,
    /// Bytes that merges read.
    compaction_bytes_in,
    /// Bytes that merges wrote.
    compaction_bytes_out,
    /// Microseconds that merges took.
    compaction_micros,
    /// Merges that failed.
    compaction_failures,
    /// Entries whose time was past when a flush or merge came by.
    expired_entries,
    /// Tables that moved to the last level as they are.
    table_moves,
    /// Live tables above the last level.
    upper_tables,
    /// Bytes of their files that count.
    upper_bytes,
    /// Entries in them that count.
    upper_entries,
    /// Tombstones among them.
    upper_tombstones,
    /// Live tables of the last level.
    last_tables,
    /// Bytes of their files that count.
    last_bytes,
    /// Entries in them that count.
    last_entries,
    /// Tombstones among them.
    last_tombstones,
    /// Ranges deleted, of one tablet each.
    range_deletes,
    /// Ranges that deletes left, which may still hide entries of tables.
    range_fragments,
    /// Entries that flushes and merges dropped because their range was deleted.
    range_entries,
    /// Tables removed unread because all they held was in deleted ranges.
    range_tables,
    /// Live tables.
    tables,
    /// Bytes of live tables.
    table_bytes,
    /// Entries in live tables.
    table_entries,
    /// Bytes of blocks that flushes and merges wrote, before they were compressed.
    block_raw_bytes,
    /// Bytes that they took in the files.
    block_stored_bytes,
    /// Blocks that flushes and merges wrote.
    blocks_written,
    /// Of those, blocks that were not compressed.
    blocks_plain,
    /// Bytes of resident indexes and filters.
    index_bytes,
    /// Tables that were live at the start and whose indexes are still to be read into memory.
    index_pending,
    /// Parts of indexes and filters that are not resident and were found in the cache.
    partition_hits,
    /// Parts of indexes and filters that were not.
    partition_misses,
    /// Keys whose newest entry was in a memtable, tombstones included.
    memtable_hits,
    /// Keys whose newest entry is in a table, and that were in the row cache.
    row_hits,
    /// Keys whose newest entry was in a table above the last level.
    upper_hits,
    /// Keys whose newest entry was in the last level.
    last_hits,
    /// Filters asked.
    filter_checks,
    /// Of those, tables ruled out.
    filter_negatives,
    /// Tables that a filter let through and that lacked the key.
    filter_false_positives,
    /// Blocks found in the cache.
    cache_hits,
    /// Blocks not found in it.
    cache_misses,
    /// Bytes in the cache.
    cache_bytes,
    /// Bytes that the row cache has taken of those it may.
    row_bytes,
    /// Blocks, and parts of indexes and filters, that were read from disk into the cache.
    disk_reads,
    /// Snapshots that are open.
    snapshots,
    /// Milliseconds since the oldest of them was taken.
    snapshot_age_ms,
    /// Scans begun, of one shard's tablets.
    scans,
    /// Pages of scans that were made beside the turns: they read from disk, or took long.
    scan_tasks,
    /// Entries that scans gave.
    scan_entries,
    /// Entries that scans passed over: deleted, expired or older versions.
    scan_skipped,
    /// Bytes that scans read past the cache.
    scan_bytes,
    /// Bytes that scans hold, read ahead.
    scan_ahead_bytes,
    /// Checkpoints made; counted by the shard that coordinates.
    checkpoints,
    /// Microseconds for which writes waited for these.
    checkpoint_pause_micros,
    /// Tablets that moved to another shard; counted by the shard that coordinates.
    tablet_moves,
    /// Tablets that split.
    tablet_splits,
    /// Moves and splits that failed.
    move_failures,
    /// Microseconds for which requests were held back by moves and splits.
    move_pause_micros,
    /// The longest of those pauses.
    move_pause_micros_max,
    /// Rounds through all tables that the scrub has ended.
    scrub_rounds,
    /// Bytes that it has read.
    scrub_bytes,
    /// Damaged places that it has found, each once.
    scrub_damage,
    /// Damaged places that reads of keys met and were refused for, each at most once a minute.
    read_damage,
    /// Those that scans met, likewise.
    scan_damage,
    /// Those that merges met.
    merge_damage,
    /// Tables of which the start could read nothing; all it does without them is refuse what they may hold.
    start_damage,
    /// Bytes replayed from old logs at start.
    replay_bytes,
    /// Microseconds that took.
    replay_micros,
}

impl Metrics {
    /// Adds to a counter.
    #[inline]
    pub fn add(counter: &Cell<u64>, amount: u64) {
        counter.set(counter.get().wrapping_add(amount));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_add_up_and_are_named() {
        let metrics = Metrics::default();
        Metrics::add(&metrics.gets, 3);
        let mut sum = metrics.snapshot();
        sum.merge(&metrics.snapshot());
        assert_eq!(sum.gets, 6);
        assert!(sum.iter().any(|counter| counter == ("gets", 6)));
        let mut copy = MetricsSnapshot::default();
        assert!(sum.iter().all(|(name, value)| copy.set(name, value)));
        assert_eq!(copy, sum);
        assert!(!copy.set("nonsense", 1));
    }
}
