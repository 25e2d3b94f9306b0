//! The sim implementation of `env`.
