//! The glommio implementation of `disk`.
