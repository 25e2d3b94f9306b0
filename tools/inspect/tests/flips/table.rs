//! What is counted, and how it is shown.

use std::collections::BTreeMap;
use std::fmt;

use crate::places::Harmless;

/// Kinds of files of a data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Current,
    Manifest,
    Log,
    Table,
    Record,
    Lock,
    Marker,
}

impl Kind {
    pub const ALL: [Kind; 7] =
        [Kind::Current, Kind::Manifest, Kind::Log, Kind::Table, Kind::Record, Kind::Lock, Kind::Marker];

    pub fn of(path: &str) -> Kind {
        match path.split_once('/') {
            Some(("manifest", _)) => Kind::Manifest,
            Some(("wal", _)) => Kind::Log,
            Some(("sst", _)) => Kind::Table,
            _ if path.starts_with("CURRENT") => Kind::Current,
            _ if path == "BACKUP" => Kind::Record,
            _ if path == "LOCK" => Kind::Lock,
            _ if path == "INCOMPLETE" => Kind::Marker,
            _ => panic!("{path} is a file of no kind"),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Current => "CURRENT",
            Kind::Manifest => "manifest",
            Kind::Log => "log segment",
            Kind::Table => "table",
            Kind::Record => "BACKUP",
            Kind::Lock => "LOCK",
            Kind::Marker => "INCOMPLETE",
        })
    }
}

/// What became of the flips in one kind of file.
#[derive(Default)]
pub struct Row {
    pub flips: u64,
    /// By `verify`; and those of them for which it does not name the file.
    pub found: u64,
    pub unnamed: u64,
    /// Of these copies were opened, and how they showed it.
    pub looked: u64,
    pub at_start: u64,
    pub on_read: u64,
    pub by_scrub: u64,
    /// Found by `verify`, but by nothing else.
    pub not_seen: u64,
    /// Not found, and why that is so.
    pub harmless: BTreeMap<Harmless, u64>,
}

/// What became of all.
#[derive(Default)]
pub struct Tally {
    pub stores: u64,
    rows: BTreeMap<Kind, Row>,
}

impl Tally {
    pub fn row(&mut self, kind: Kind) -> &mut Row {
        self.rows.entry(kind).or_default()
    }

    pub fn add(&mut self, other: Tally) {
        self.stores += other.stores;
        for (kind, from) in other.rows {
            let row = self.row(kind);
            row.flips += from.flips;
            row.found += from.found;
            row.unnamed += from.unnamed;
            row.looked += from.looked;
            row.at_start += from.at_start;
            row.on_read += from.on_read;
            row.by_scrub += from.by_scrub;
            row.not_seen += from.not_seen;
            for (class, count) in from.harmless {
                *row.harmless.entry(class).or_default() += count;
            }
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |count: fn(&Row) -> u64| self.rows.values().map(count).sum::<u64>();
        let (flips, looked) = (sum(|row| row.flips), sum(|row| row.looked));
        writeln!(
            f,
            "{flips} flips in {} stores and their backups; {looked} copies were opened and read",
            self.stores
        )?;
        writeln!(f, "| file | flips | by verify | opened | at start | on read | by scrub | harmless |")?;
        writeln!(f, "|---|---|---|---|---|---|---|---|")?;
        for (kind, row) in &self.rows {
            let Row { flips, found, looked, at_start, on_read, by_scrub, .. } = row;
            let classes: Vec<_> =
                row.harmless.iter().map(|(class, count)| format!("{class} {count}")).collect();
            writeln!(
                f,
                "| {kind} | {flips} | {found} | {looked} | {at_start} | {on_read} | {by_scrub} | {} |",
                classes.join(", ")
            )?;
        }
        let (unnamed, not_seen) = (sum(|row| row.unnamed), sum(|row| row.not_seen));
        write!(f, "verify names another file than the damaged one: {unnamed}; it alone shows: {not_seen}")
    }
}
