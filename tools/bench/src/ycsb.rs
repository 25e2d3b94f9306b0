//! The core workloads of YCSB: Cooper et al., "Benchmarking Cloud Serving Systems with YCSB", SoCC 2010.
//!
//! | | operations | keys |
//! |---|---|---|
//! | a | half reads, half updates | zipfian |
//! | b | 95 % reads, 5 % updates | zipfian |
//! | c | reads | zipfian |
//! | d | 95 % reads, 5 % inserts | those that were inserted last |
//! | e | 95 % scans, 5 % inserts | scans begin at a key, zipfian; of 1 to 100 records, each length as often |
//! | f | half reads, half read-modify-writes | zipfian |
//!
//! As there, records are of 10 fields of 100 bytes, reads ask for whole records, and keys are numbers in an
//! order that has nothing to do with the one in which they are inserted. What differs:
//! - A record is one value of 1000 bytes, so that an update writes all of it; there it writes one field,
//!   which most bindings to stores of plain values turn into the same.
//! - A zipfian rank leads to a key of its own. There ranks are hashed, by which some meet and others are
//!   never drawn.
//! - In e, inserted keys are drawn as the least popular ones. There any of them may be popular, since the
//!   space of keys to draw from has places for all inserts of a run, whose number is known beforehand.
//! - In f, nothing stops another client between the read and the write; as there.

use std::fmt;

use clap::ValueEnum;

use crate::args::Distribution;
use crate::mix::{Mix, OpKind};

/// Bytes of a record.
pub const RECORD_BYTES: usize = 10 * 100;

/// One of the core workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Core {
    /// Half reads, half updates; zipfian
    A,
    /// 95 % reads, 5 % updates; zipfian
    B,
    /// Reads; zipfian
    C,
    /// 95 % reads, 5 % inserts; reads of what was inserted last
    D,
    /// 95 % scans of up to --scan-limit records, 5 % inserts; zipfian
    E,
    /// Half reads, half read-modify-writes; zipfian
    F,
}

impl Core {
    pub fn mix(self) -> Mix {
        use OpKind::{Get, Insert, ReadModifyWrite, Scan, Set};
        match self {
            Core::A => Mix::of(&[(Get, 50), (Set, 50)]),
            Core::B => Mix::of(&[(Get, 95), (Set, 5)]),
            Core::C => Mix::of(&[(Get, 100)]),
            Core::D => Mix::of(&[(Get, 95), (Insert, 5)]),
            Core::E => Mix::of(&[(Scan, 95), (Insert, 5)]),
            Core::F => Mix::of(&[(Get, 50), (ReadModifyWrite, 50)]),
        }
    }

    pub fn distribution(self) -> Distribution {
        match self {
            Core::D => Distribution::Latest,
            _ => Distribution::Zipfian,
        }
    }
}

impl fmt::Display for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", format!("{self:?}").to_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_percents() {
        for core in Core::value_variants() {
            let mix = core.mix();
            assert_eq!(OpKind::ALL.map(|kind| mix.weight(kind)).iter().sum::<u32>(), 100, "{core}");
        }
        assert_eq!(Core::E.mix().to_string(), "scan=95,insert=5");
        assert_eq!(Core::F.to_string(), "f");
    }
}
