//! Formats: golden bytes of everything that lasts. A change that breaks one of these breaks the data of
//! those who upgrade.

mod manifest;
mod sstable;
mod wal;
