//! The codes and sentences that a client sees.
