//! Slot → tablet → shard.
