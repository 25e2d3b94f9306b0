//! One executor: executes requests, knows who waits for which block, speaks to the mesh.

pub mod held;
pub mod mesh;

/// Where a request came from and its replies go to: a token that peer `peer` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Number in the mesh: a shard, or the acceptor behind the last shard.
    pub peer: usize,
    /// What that peer registered for it. Never reused while something is in flight.
    pub token: u64,
}
