//! Slots and nodes: each core is a node to a client that asks.

use super::flags::*;
use super::{Categories, Flags, Group, Spec};

const fn connection(name: &'static str, flags: Flags) -> Spec {
    super::row(name, Group::Cluster, 1, flags, Categories::CONNECTION)
}

const fn cluster(name: &'static str, arity: i32) -> Spec {
    super::row(name, Group::Cluster, arity, Flags::STALE, Categories::NONE).differs(EMULATED)
}

/// About nodes as such, which clients leave to people.
const fn admin(name: &'static str, arity: i32) -> Spec {
    super::row(name, Group::Cluster, arity, Flags::ADMIN.with(Flags::STALE), Categories::NONE)
}

const NO_REPLICAS: &str = "there are no replicas: always none";

/// Of what tells of slots and nodes.
const EMULATED: &str = "with `--cluster-mode emulated`, where each core is a node; else refused as by a Redis that is no \
                        cluster";
/// Of what looks for the keys of a slot.
const LOOKS_AT_ALL: &str = "with `--cluster-mode emulated`; looks at all keys of the node, since they are in the order \
                            of their bytes";

pub(super) static COMMANDS: &[Spec] = &[
    super::row("cluster", Group::Cluster, -2, Flags::NONE, Categories::NONE)
        .doc("3.0.0", "As its subcommands", "", "Tells which node has which slots.")
        .differs(EMULATED)
        .subcommands(CLUSTER),
    connection("readonly", ALWAYS_FAST)
        .doc("3.0.0", "O(1)", "", "Allows reads of replicas.")
        .differs(EMULATED),
    connection("readwrite", ALWAYS_FAST)
        .doc("3.0.0", "O(1)", "", "Forbids reads of replicas.")
        .differs(EMULATED),
    connection("asking", Flags::FAST).doc("3.0.0", "O(1)", "", "Follows an ASK.").differs(EMULATED),
];

static CLUSTER: &[Spec] = &[
    cluster("cluster|info", 2).tips(&[VARIES]).doc("3.0.0", "O(1)", "", "Tells how the cluster is."),
    cluster("cluster|myid", 2).doc("3.0.0", "O(1)", "", "Tells the id of this node."),
    cluster("cluster|myshardid", 2).tips(&[VARIES]).doc(
        "7.2.0",
        "O(1)",
        "",
        "Tells the id of this node's shard.",
    ),
    cluster("cluster|nodes", 2).tips(&[VARIES]).doc(
        "3.0.0",
        "O(N) in the number of nodes",
        "",
        "Lists the nodes and their slots, as text.",
    ),
    cluster("cluster|shards", 2).tips(&[VARIES]).doc(
        "7.0.0",
        "O(N) in the number of nodes",
        "",
        "Lists the shards, their slots and nodes.",
    ),
    cluster("cluster|slots", 2)
        .tips(&[VARIES])
        .doc("3.0.0", "O(N) in the number of nodes", "", "Lists ranges of slots and their nodes.")
        .replaced("7.0.0", "`CLUSTER SHARDS`"),
    cluster("cluster|links", 2).tips(&[VARIES]).doc("7.0.0", "O(1)", "", "Lists connections between nodes."),
    cluster("cluster|keyslot", 3).doc(
        "3.0.0",
        "O(N) in the length of the key",
        "key:string",
        "Tells a key's slot.",
    ),
    cluster("cluster|countkeysinslot", 3)
        .doc("3.0.0", "O(N) in the number of keys", "slot", "Counts this node's keys of a slot.")
        .differs(LOOKS_AT_ALL),
    cluster("cluster|getkeysinslot", 4)
        .tips(&[VARIES])
        .doc("3.0.0", "O(N) in the number of keys", "slot count", "Lists some of this node's keys of a slot.")
        .differs(LOOKS_AT_ALL),
    admin("cluster|count-failure-reports", 3)
        .tips(&[VARIES])
        .doc("3.0.0", "O(1)", "node-id", "Counts reports that a node has failed.")
        .differs("nodes are cores of one process: always 0"),
    admin("cluster|replicas", 3)
        .tips(&[VARIES])
        .doc("5.0.0", "O(1)", "node-id", "Lists the replicas of a node.")
        .differs(NO_REPLICAS),
    admin("cluster|slaves", 3)
        .tips(&[VARIES])
        .doc("3.0.0", "O(1)", "node-id", "Lists the replicas of a node.")
        .replaced("5.0.0", "`CLUSTER REPLICAS`")
        .differs(NO_REPLICAS),
    super::row("cluster|help", Group::Cluster, 2, ALWAYS, Categories::NONE).doc(
        "5.0.0",
        "O(1)",
        "",
        "Lists the subcommands.",
    ),
];
