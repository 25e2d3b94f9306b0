//! The blocking, pipelined, shard-aware client library.
