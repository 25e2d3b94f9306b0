//! Formats that last, against files of the versions that wrote them.

mod sstable;
