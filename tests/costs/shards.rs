//! Costs of requests to shards in a simulated world.

use atlaskv::env::sim::SimEnv;

use crate::cost::{HEAD, Measured};
use crate::kinds::{Kind, Way, measure, measure_spread};
use crate::limits::limit;
use crate::wire::Protocol;

/// What all kinds of requests cost that go this way.
fn run(way: Way) -> Vec<(Kind, Measured)> {
    let (world, env) = SimEnv::fresh(1);
    world.run(measure(&env, way))
}

/// Whatever costs more than it may, of requests that go this way.
fn excess(way: Way) -> Vec<String> {
    let check = |(kind, measured): (Kind, Measured)| {
        println!("{measured}");
        measured.excess(limit(kind, way))
    };
    run(way).into_iter().flat_map(check).collect()
}

/// Each with the same limits, however many shards there are: what a request costs does not grow with them.
fn check(shards: usize) {
    println!("{HEAD}");
    let owners = || 0..shards.min(2);
    let ways = [Protocol::Binary, Protocol::Redis]
        .into_iter()
        .flat_map(|protocol| owners().map(move |owner| Way { protocol, shards, owner }));
    let excess: Vec<String> = ways.flat_map(excess).collect();
    assert!(
        excess.is_empty(),
        "{} counts are higher than they may be (tests/costs/limits.rs):\n{}\nWhere something is allocated tells \
         ATLASKV_COSTS_WHERE='Set Binary own' cargo test --test costs -- --nocapture",
        excess.len(),
        excess.join("\n")
    );
}

#[test]
fn with_one_shard() {
    check(1);
}

#[test]
fn with_two_shards() {
    check(2);
}

#[test]
fn with_four_shards() {
    check(4);
}

#[test]
fn with_eight_shards() {
    check(8);
}

/// Requests for keys of all shards cost one message to each other owner, and one back.
#[test]
fn what_is_spread_over_shards_costs_two_messages_for_each_other_one() {
    for shards in [1, 2, 4, 8] {
        let (world, env) = SimEnv::fresh(1);
        for measured in world.run(measure_spread(&env, shards)) {
            println!("{measured}");
            let (messages, most) = (measured.cost.messages, 2 * (shards as u64 - 1) * measured.turns);
            assert!(messages <= most, "{}: {messages} messages, and {most} are allowed", measured.name);
        }
    }
}

/// What the limits rest on.
#[test]
fn the_same_run_costs_the_same() {
    let way = Way { protocol: Protocol::Redis, shards: 2, owner: 1 };
    let costs = || run(way).into_iter().map(|(_, measured)| measured.cost).collect::<Vec<_>>();
    assert_eq!(costs(), costs());
}
