//! Deliberate bugs, to see that the model test finds them. They exist only with the feature `planted`, and then the
//! environment variable `ATLASKV_PLANTED` names the one that is there. Without the feature [`planted`] is `false` at
//! compile time, and nothing is left of it.

/// A bug that can be planted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A merge above the last level drops tombstones: what they hide comes back.
    TombstoneDropped,
    /// A merge writes entries without their times of expiry.
    ExpiryLost,
    /// A flush says that range deletes have been applied to its tables, and has not.
    RangeNotFlushed,
    /// A tablet that moves leaves its range deletes behind.
    RangeStaysBehind,
    /// A scan whose tablets have moved goes on one key too far.
    ScanSkips,
    /// The last operation of the last entry of a tablet's log is not replayed.
    EntryTorn,
    /// A flush keeps nothing for snapshots that see its memtable.
    SnapshotForgotten,
    /// The memtable gives up versions that snapshots see.
    VersionReplaced,
    /// A tablet that starts or moves gives its last index once more.
    VersionReused,
    /// Who walks tables after a split passes over no foreign keys.
    ClipIgnored,
    /// Of a tablet that moves the newest memtable is not written.
    MoveForgets,
    /// The block cache takes parts of a removed file for those of another.
    CacheStale,
    /// A flush leaves in the row cache what its table has in newer versions.
    RowStale,
    /// Only the first condition of a batch is looked at.
    ConditionIgnored,
    /// Writes are answered before they are durable.
    ReplyTooEarly,
    /// A filter says of one key in 256 that it is not there.
    FilterForgets,
    /// A table is not synced before the manifest names it.
    TableNotSynced,
    /// The directory of tables is not synced after a flush.
    TableNameForgotten,
    /// Writes of the log return before they are durable.
    LogNotDurable,
    /// The rename that makes a generation the live one is not synced.
    CurrentForgotten,
    /// The log gives up what a flush has written before the manifest names the tables.
    LogReleasedEarly,
    /// Blocks of the log behind a hole are replayed, as by one who applies what it reads at once.
    HolePassedOver,
    /// Blocks that an earlier life of a log segment left are taken for its own.
    StaleBlockTaken,
    /// Damage in the midst of a log is taken for its end.
    RotTakenForTorn,
    /// Parts of tables are not compared with their checksums.
    ChecksumIgnored,
    /// Reads don't look at times of expiry.
    ExpiredShown,
    /// Shards' clocks follow the wall clock back.
    ClockGoesBack,
}

impl Bug {
    /// All of them.
    pub const ALL: [Bug; 27] = [
        Bug::TombstoneDropped,
        Bug::ExpiryLost,
        Bug::RangeNotFlushed,
        Bug::RangeStaysBehind,
        Bug::ScanSkips,
        Bug::EntryTorn,
        Bug::SnapshotForgotten,
        Bug::VersionReplaced,
        Bug::VersionReused,
        Bug::ClipIgnored,
        Bug::MoveForgets,
        Bug::CacheStale,
        Bug::RowStale,
        Bug::ConditionIgnored,
        Bug::ReplyTooEarly,
        Bug::FilterForgets,
        Bug::TableNotSynced,
        Bug::TableNameForgotten,
        Bug::LogNotDurable,
        Bug::CurrentForgotten,
        Bug::LogReleasedEarly,
        Bug::HolePassedOver,
        Bug::StaleBlockTaken,
        Bug::RotTakenForTorn,
        Bug::ChecksumIgnored,
        Bug::ExpiredShown,
        Bug::ClockGoesBack,
    ];
}

/// Whether this bug is there.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn planted(_bug: Bug) -> bool {
    false
}

/// Whether this bug is there.
#[cfg(feature = "planted")]
pub fn planted(bug: Bug) -> bool {
    use std::sync::LazyLock;
    static CHOSEN: LazyLock<String> = LazyLock::new(|| std::env::var("ATLASKV_PLANTED").unwrap_or_default());
    !CHOSEN.is_empty() && *CHOSEN == format!("{bug:?}")
}
