//! The real binary against small servers of our own on loopback.

mod atlas;
mod redis;
mod support;
