//! Flags and defaults, validated once, then immutable.
