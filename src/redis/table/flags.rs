//! Flags of commands and of their keys, and categories of access rules: sets of names.

/// A set of named bits, whose members are told in the order of their bits, which is Redis'.
macro_rules! bits {
    ($(#[$doc:meta])* $set:ident { $($constant:ident = $bit:literal, $name:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $set(u32);

        #[allow(missing_docs, reason = "the names are Redis' own")]
        impl $set {
            $(pub const $constant: $set = $set(1 << $bit);)*
            /// No member.
            pub const NONE: $set = $set(0);
            const NAMES: &[(u32, &str)] = &[$((1 << $bit, $name)),*];

            /// The members of both.
            pub const fn with(self, other: $set) -> $set {
                $set(self.0 | other.0)
            }

            /// Whether all members of `other` are members of it.
            pub const fn has(self, other: $set) -> bool {
                self.0 & other.0 == other.0
            }

            /// The names of its members.
            pub fn names(self) -> impl Iterator<Item = &'static str> {
                Self::NAMES.iter().filter(move |(bit, _)| self.0 & bit != 0).map(|(_, name)| *name)
            }

            /// How many members it has.
            pub fn count(self) -> usize {
                self.0.count_ones() as usize
            }

            /// The member of this name, in any case.
            pub fn named(name: &[u8]) -> Option<$set> {
                let found = Self::NAMES.iter().find(|(_, known)| known.as_bytes().eq_ignore_ascii_case(name));
                found.map(|(bit, _)| $set(*bit))
            }
        }
    };
}

bits! {
    /// What kind of command it is.
    Flags {
        WRITE = 0, "write";
        READONLY = 1, "readonly";
        DENYOOM = 2, "denyoom";
        ADMIN = 3, "admin";
        NOSCRIPT = 4, "noscript";
        BLOCKING = 5, "blocking";
        LOADING = 6, "loading";
        STALE = 7, "stale";
        SKIP_SLOWLOG = 8, "skip_slowlog";
        FAST = 9, "fast";
        NO_AUTH = 10, "no_auth";
        NO_ASYNC_LOADING = 11, "no_async_loading";
        NO_MULTI = 12, "no_multi";
        ALLOW_BUSY = 13, "allow_busy";
    }
}

bits! {
    /// What becomes of a key: what is done to its entry (one of the first four), and to its value.
    KeyFlags {
        RO = 0, "RO";
        RW = 1, "RW";
        OW = 2, "OW";
        RM = 3, "RM";
        ACCESS = 4, "access";
        UPDATE = 5, "update";
        INSERT = 6, "insert";
        DELETE = 7, "delete";
        VARIABLE_FLAGS = 8, "variable_flags";
    }
}

bits! {
    /// What access rules call a command.
    Categories {
        KEYSPACE = 0, "keyspace";
        READ = 1, "read";
        WRITE = 2, "write";
        STRING = 3, "string";
        BITMAP = 4, "bitmap";
        ADMIN = 5, "admin";
        FAST = 6, "fast";
        SLOW = 7, "slow";
        BLOCKING = 8, "blocking";
        DANGEROUS = 9, "dangerous";
        CONNECTION = 10, "connection";
        TRANSACTION = 11, "transaction";
    }
}

impl Categories {
    /// What follows from flags.
    pub(super) const fn implied_by(flags: Flags) -> Categories {
        let mut implied = if flags.has(Flags::FAST) { Categories::FAST } else { Categories::SLOW };
        if flags.has(Flags::WRITE) {
            implied = implied.with(Categories::WRITE);
        }
        if flags.has(Flags::READONLY) {
            implied = implied.with(Categories::READ);
        }
        if flags.has(Flags::ADMIN) {
            implied = implied.with(Categories::ADMIN).with(Categories::DANGEROUS);
        }
        if flags.has(Flags::BLOCKING) {
            implied = implied.with(Categories::BLOCKING);
        }
        implied
    }
}

// Flags that often go together.

/// Reads, in time that does not depend on how large a value is.
pub(super) const READS_FAST: Flags = Flags::READONLY.with(Flags::FAST);
/// Writes what may need memory.
pub(super) const GROWS: Flags = Flags::WRITE.with(Flags::DENYOOM);
/// Writes what may need memory, in short time.
pub(super) const GROWS_FAST: Flags = GROWS.with(Flags::FAST);
/// Writes in short time.
pub(super) const WRITES_FAST: Flags = Flags::WRITE.with(Flags::FAST);
/// Answered at any time.
pub(super) const ALWAYS: Flags = Flags::LOADING.with(Flags::STALE);
/// Answered at any time, in short time.
pub(super) const ALWAYS_FAST: Flags = ALWAYS.with(Flags::FAST);
/// About the connection, so of no use to a script.
pub(super) const CONNECTION: Flags = ALWAYS.with(Flags::NOSCRIPT);
/// About the server.
pub(super) const ADMIN: Flags = CONNECTION.with(Flags::ADMIN);

// What often becomes of keys.

/// Its value is read.
pub(super) const READ: KeyFlags = KeyFlags::RO.with(KeyFlags::ACCESS);
/// Something about it is read.
pub(super) const LOOK: KeyFlags = KeyFlags::RO;
/// It is overwritten.
pub(super) const OVERWRITE: KeyFlags = KeyFlags::OW.with(KeyFlags::UPDATE);
/// It is made if it is not there.
pub(super) const INSERT: KeyFlags = KeyFlags::OW.with(KeyFlags::INSERT);
/// It is changed.
pub(super) const UPDATE: KeyFlags = KeyFlags::RW.with(KeyFlags::UPDATE);
/// It is read and changed.
pub(super) const MODIFY: KeyFlags = UPDATE.with(KeyFlags::ACCESS);
/// It is read and removed.
pub(super) const TAKE: KeyFlags = KeyFlags::RW.with(KeyFlags::ACCESS).with(KeyFlags::DELETE);
/// It is removed.
pub(super) const REMOVE: KeyFlags = KeyFlags::RM.with(KeyFlags::DELETE);

// Hints that many commands give.

/// Its answer is not the same each time.
pub(super) const VARIES: &str = "nondeterministic_output";
/// Its answer comes in any order.
pub(super) const ANY_ORDER: &str = "nondeterministic_output_order";
/// It goes to all shards.
pub(super) const ALL_SHARDS: &str = "request_policy:all_shards";
/// It goes to all nodes.
pub(super) const ALL_NODES: &str = "request_policy:all_nodes";
/// It is divided by where its keys are.
pub(super) const BY_SHARD: &str = "request_policy:multi_shard";
/// Answers are to be added.
pub(super) const SUM: &str = "response_policy:agg_sum";
/// The least answer is the answer.
pub(super) const LEAST: &str = "response_policy:agg_min";
/// All have to succeed.
pub(super) const ALL_SUCCEED: &str = "response_policy:all_succeeded";
/// There is no rule for putting answers together.
pub(super) const SPECIAL: &str = "response_policy:special";
