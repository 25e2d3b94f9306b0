//! The real binary against small servers of our own on loopback, and against memcached.

mod atlas;
mod memcached;
mod redis;
mod support;
