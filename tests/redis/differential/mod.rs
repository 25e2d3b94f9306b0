//! Random commands to AtlasKV and to a real redis-server, side by side.
//!
//! A campaign ([`campaign`]) is made of rounds ([`round`]): some hundred commands ([`recipes`],
//! [`arguments`]) on two connections, in batches, to servers that are empty before. [`play`] sends them and
//! compares reply by reply ([`compare`]), and at the end the whole key space. [`minimise`] makes a round
//! that shows a difference short.
//!
//! [`streams`] are bytes that no client library sends, [`known`] asks for the differences that are known,
//! and the [`liar`] shows that others would be found.

mod arguments;
mod campaign;
mod compare;
mod known;
mod liar;
mod minimise;
mod play;
mod recipes;
mod round;
mod scan;
pub mod shape;
mod streams;

use crate::differential::campaign::Extent;
use crate::from_env;

/// Commands of an ordinary run.
const COMMANDS: u64 = 30_000;

/// Differences after which a run ends.
const FINDINGS: usize = 10;

#[test]
fn random_commands_are_answered_as_by_redis() {
    let extent = Extent {
        seed: crate::seed("random_commands"),
        commands: from_env("ATLASKV_REDIS_COMMANDS").unwrap_or(COMMANDS),
        round: from_env("ATLASKV_REDIS_ROUND"),
        findings: from_env("ATLASKV_REDIS_FINDINGS").unwrap_or(FINDINGS),
    };
    campaign::run(extent).judge(extent);
}
