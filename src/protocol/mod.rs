//! Bytes ↔ requests and replies. No I/O.
