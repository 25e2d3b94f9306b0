//! Merge of sorted sources.
