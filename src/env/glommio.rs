//! The glommio implementation of `env`.
