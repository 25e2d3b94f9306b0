//! The one table of commands: what is checked, told by COMMAND and written in README.md comes from here.
//!
//! Facts about a command (arity, flags, positions of keys, categories, hints) are those of Redis 7.0, byte
//! for byte in what COMMAND INFO answers; of the few that came with 7.2 they are of that. Sentences are our
//! own.
//!
//! - Names are of small letters; a subcommand's is its container's, a bar and its own: `client|id`.
//! - [`find`] and [`find_sub`] know what is supported, wholly or with differences. What is absent stands in
//!   the table for the sake of documents and refusals, with a name and a reason and nothing else:
//!   [`find_absent`].
//! - Categories that follow from flags, and first and last key, are derived, never written.

mod absent;
mod cluster;
mod connection;
mod flags;
mod keys;
mod lookup;
mod server;
mod strings;

pub use flags::{Categories, Flags, KeyFlags};
pub use lookup::{find, find_absent, find_sub};

/// A command, or a subcommand.
#[derive(Debug)]
pub struct Spec {
    /// Its name, in small letters.
    pub name: &'static str,
    /// How many words it has, its name and that of its container included; negative: at least so many.
    pub arity: i32,
    /// What kind of command it is.
    pub flags: Flags,
    /// Index of the first key among its words; 0: it has none.
    pub first_key: i32,
    /// Index of the last key; negative: counted from the end, -1 is the last word.
    pub last_key: i32,
    /// Distance from one key to the next.
    pub step: i32,
    /// The same in detail: where keys are, and what becomes of them.
    pub keys: &'static [KeySpec],
    /// Hints for clients of clusters.
    pub tips: &'static [&'static str],
    /// The chapter of the documentation that it belongs to.
    pub group: Group,
    /// The version of Redis that had it first.
    pub since: &'static str,
    /// What it does.
    pub summary: &'static str,
    /// What it costs.
    pub complexity: &'static str,
    /// What access rules call it.
    pub categories: Categories,
    /// Its arguments, as `introspect` reads them.
    pub syntax: &'static str,
    /// Since when another should be used instead, and which.
    pub replaced: Option<(&'static str, &'static str)>,
    /// How far it is here what it is in Redis.
    pub support: Support,
    /// Of a container, what it contains.
    pub subcommands: &'static [Spec],
}

/// How far a command is what it is in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// In everything that a client can see.
    Full,
    /// But for this.
    Differs(&'static str),
    /// Not there, for this reason.
    Absent(&'static str),
}

/// Keys of a command that are treated alike.
#[derive(Clone, Copy, Debug)]
pub struct KeySpec {
    /// What becomes of them.
    pub flags: KeyFlags,
    /// Index of the first.
    pub first: i32,
    /// Index of the last, from the first; negative: counted from the end, -1 is the last word.
    pub last: i32,
    /// Distance from one to the next.
    pub step: i32,
    /// What else COMMAND INFO says of them.
    pub notes: Option<&'static str>,
}

/// The chapters of Redis' documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Strings.
    String,
    /// Bits of strings.
    Bitmap,
    /// Keys, whatever their values are.
    Generic,
    /// MULTI and what belongs to it.
    Transactions,
    /// The connection itself.
    Connection,
    /// The server.
    Server,
    /// Slots and nodes.
    Cluster,
    /// Hashes.
    Hash,
    /// Lists.
    List,
    /// Sets.
    Set,
    /// Sorted sets.
    SortedSet,
    /// Streams.
    Stream,
    /// Places on earth.
    Geo,
    /// Estimated counts.
    HyperLogLog,
    /// Messages.
    PubSub,
    /// Scripts and functions.
    Scripting,
}

impl Group {
    /// Its name in Redis.
    pub fn name(self) -> &'static str {
        match self {
            Group::String => "string",
            Group::Bitmap => "bitmap",
            Group::Generic => "generic",
            Group::Transactions => "transactions",
            Group::Connection => "connection",
            Group::Server => "server",
            Group::Cluster => "cluster",
            Group::Hash => "hash",
            Group::List => "list",
            Group::Set => "set",
            Group::SortedSet => "sorted-set",
            Group::Stream => "stream",
            Group::Geo => "geo",
            Group::HyperLogLog => "hyperloglog",
            Group::PubSub => "pubsub",
            Group::Scripting => "scripting",
        }
    }
}

/// Every command that is supported, in the order in which COMMAND lists them.
pub fn supported() -> impl Iterator<Item = &'static Spec> {
    lookup::CHAPTERS.iter().copied().flatten()
}

/// Every command that is not, and every subcommand of those that are.
pub fn absent() -> impl Iterator<Item = &'static Spec> {
    absent::CHAPTERS.iter().copied().flatten()
}

impl Spec {
    /// Whether a command of so many words, its name included, has as many as it takes.
    #[inline]
    pub fn takes(&self, words: usize) -> bool {
        let bound = self.arity.unsigned_abs() as usize;
        if self.arity < 0 { words >= bound } else { words == bound }
    }

    /// Its name without that of its container.
    pub fn own_name(&self) -> &'static str {
        self.name.split_once('|').map_or(self.name, |(_, own)| own)
    }

    /// Whether it is there at all.
    pub fn is_supported(&self) -> bool {
        !matches!(self.support, Support::Absent(_))
    }

    /// Indexes of the keys of a command of so many words, in the order of the table, with what becomes of
    /// each. A command with fewer words than it takes may have none.
    pub fn key_indexes(&self, words: usize) -> impl Iterator<Item = (usize, KeyFlags)> {
        self.keys.iter().flat_map(move |spec| spec.indexes(words).map(|index| (index, spec.flags)))
    }
}

impl KeySpec {
    fn indexes(&self, words: usize) -> impl Iterator<Item = usize> + use<> {
        let first = self.first as usize;
        let last = match usize::try_from(self.last) {
            Ok(last) => first + last,
            Err(_) => words.saturating_sub(self.last.unsigned_abs() as usize),
        };
        (first..=last).take_while(move |index| *index < words).step_by(self.step as usize)
    }
}

// How rows of the table are written. All of it runs at compile time.

/// A row of a chapter. Whatever is not said is as in most: no keys, no hints, wholly supported.
const fn row(name: &'static str, group: Group, arity: i32, flags: Flags, categories: Categories) -> Spec {
    Spec {
        name,
        arity,
        flags,
        first_key: 0,
        last_key: 0,
        step: 0,
        keys: &[],
        tips: &[],
        group,
        since: "",
        summary: "",
        complexity: "",
        categories: categories.with(Categories::implied_by(flags)),
        syntax: "",
        replaced: None,
        support: Support::Full,
        subcommands: &[],
    }
}

impl Spec {
    const fn doc(
        mut self,
        since: &'static str,
        complexity: &'static str,
        syntax: &'static str,
        summary: &'static str,
    ) -> Spec {
        self.since = since;
        self.complexity = complexity;
        self.syntax = syntax;
        self.summary = summary;
        self
    }

    /// Its keys. Redis tells the range of all of them as well, which is the first one's begin and the last
    /// one's end.
    const fn keys(mut self, keys: &'static [KeySpec]) -> Spec {
        let (first, last) = (keys[0], keys[keys.len() - 1]);
        self.keys = keys;
        self.first_key = first.first;
        self.last_key = if last.last < 0 { last.last } else { last.first + last.last };
        self.step = first.step;
        self
    }

    const fn tips(mut self, tips: &'static [&'static str]) -> Spec {
        self.tips = tips;
        self
    }

    const fn also(mut self, categories: Categories) -> Spec {
        self.categories = self.categories.with(categories);
        self
    }

    const fn replaced(mut self, since: &'static str, by: &'static str) -> Spec {
        self.replaced = Some((since, by));
        self
    }

    const fn differs(mut self, how: &'static str) -> Spec {
        self.support = Support::Differs(how);
        self
    }

    const fn subcommands(mut self, subcommands: &'static [Spec]) -> Spec {
        self.subcommands = subcommands;
        self
    }
}

impl KeySpec {
    /// One key, the word of this index.
    const fn one(first: i32, flags: KeyFlags) -> KeySpec {
        KeySpec { flags, first, last: 0, step: 1, notes: None }
    }

    /// From the word of this index to the last.
    const fn rest(first: i32, flags: KeyFlags) -> KeySpec {
        KeySpec { flags, first, last: -1, step: 1, notes: None }
    }

    const fn notes(mut self, notes: &'static str) -> KeySpec {
        self.notes = Some(notes);
        self
    }
}

#[cfg(test)]
mod tests;
