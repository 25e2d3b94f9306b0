//! The sim implementation of `disk`.
