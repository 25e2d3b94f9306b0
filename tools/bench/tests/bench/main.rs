//! The real binary against small servers of our own on loopback.

mod redis;
mod support;
