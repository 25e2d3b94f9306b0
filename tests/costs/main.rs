//! What requests cost, counted and not timed: so that a slip shows on any machine, however busy it is.
//!
//! Counted are allocations and their bytes, tasks, messages between shards, and reads and writes of files, of shards and
//! of sessions of Redis' protocol as the server runs them, in a simulated world: [`kinds`] says of which requests,
//! [`limits`] what each may cost and what that consists of. All counts follow from the code and a seed. What sockets
//! cost is counted by `tests/server/costs.rs`.
//!
//! ```text
//! cargo test --test costs                                            all of it, seconds
//! cargo test --test costs -- --nocapture --test-threads 1            with all figures
//! ATLASKV_COSTS_WHERE='GetCold Redis other of 2' cargo test --test costs with_two -- --nocapture
//!                                                                    where that allocates, by number
//! ```

mod allocator;
mod cost;
mod kinds;
mod limits;
mod shards;
mod sites;
mod store;
mod wire;
mod world;

#[global_allocator]
static ALLOCATOR: allocator::Counting = allocator::Counting;
