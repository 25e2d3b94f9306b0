"""What the race is about: loads, against whom, and what is to be reached. A ratio is AtlasKV's figure by the other's
of the same round; what is judged is the median of the rounds."""

from dataclasses import dataclass

from .kept import spread


@dataclass(frozen=True)
class Target:
    """`ours` and each of `theirs` are load, contestant and figure. Of several of `theirs` the best counts. Without
    any the figure itself is judged. Without a bound there is nothing to meet: for information."""

    id: str
    load: str
    against: str
    ours: tuple
    theirs: tuple = ()
    bound: float | None = None
    least: bool = True
    unit: str = "×"

    def pairs(self):
        return [(load, who) for load, who, _ in (self.ours, *self.theirs)]

    def rounds(self, kept):
        """What is judged, for each round that has all it takes."""
        ours = kept.rounds(*self.ours)
        if not self.theirs:
            return list(ours.values())
        theirs = [kept.rounds(*one) for one in self.theirs]
        best = max if self.least else min
        common = [turn for turn in ours if all(rounds.get(turn) for rounds in theirs)]
        return [ours[turn] / best(rounds[turn] for rounds in theirs) for turn in common]

    def value(self, kept):
        return spread(self.rounds(kept))

    def wanted(self):
        if self.bound is None:
            return None
        return f"{'≥' if self.least else '≤'} {self.bound:g}{self.unit}"

    def met(self, kept):
        value = self.value(kept)
        if value is None or self.bound is None:
            return None
        return value[0] >= self.bound if self.least else value[0] <= self.bound


def against(target, load, title, who, name, bound=None, figure="ops_per_second", least=True):
    return Target(target, title, name, (load, "atlaskv", figure), ((load, who, figure),), bound, least)


def shards(target, what, load, who, bound):
    clients = {"two-shards": "clients that know them", "two-shards-unaware": "clients that don't know, pipeline 16"}
    title = f"CPU time per {what} with 2 shards, {clients[who]}"
    figure = "cpu_micros_per_op"
    return Target(target, title, "1 shard", (load, who, figure), ((load, "one-shard", figure),), bound, least=False)


def overwrite(title, figure, bound=None):
    # db_bench writes faster with one thread than with many on one core.
    theirs = tuple(("disk-set", who, figure) for who in ["rocksdb", "rocksdb-1"])
    return Target("7", title, "RocksDB, 16 threads or 1", ("disk-set", "atlaskv", figure), theirs, bound)


ALWAYS, MEMORY = "Redis, appendfsync always", "Redis, persistence off"
CPU = {"figure": "cpu_micros_per_op", "least": False}
P50 = {"figure": "p50_us", "least": False}

TARGETS = [
    against("1", "set-p16", "SET, pipeline 16", "redis-always", ALWAYS, 4),
    against("1", "set-p64", "SET, pipeline 64", "redis-always", ALWAYS, 4),
    against("2", "set-p16", "SET, pipeline 16", "redis", MEMORY, 1),
    against("2", "set-p64", "SET, pipeline 64", "redis", MEMORY, 1),
    against("2", "set-p16", "SET, pipeline 16", "memcached", "memcached"),
    against("2", "set-p64", "SET, pipeline 64", "memcached", "memcached"),
    against("3", "get-p16", "GET in memory, pipeline 16", "redis", "Redis", 1.5),
    against("3", "get-p64", "GET in memory, pipeline 64", "redis", "Redis", 1.5),
    against("3", "get-p16", "GET in memory, pipeline 16", "memcached", "memcached"),
    against("3", "get-p64", "GET in memory, pipeline 64", "memcached", "memcached"),
    against("4", "get-p1", "GET, pipeline 1", "redis", "Redis", 1.1),
    against("4", "set-p1", "SET, pipeline 1", "redis-always", ALWAYS, 1.5),
    against("4", "get-p1", "GET, pipeline 1", "memcached", "memcached"),
    against("5", "get-p64", "server CPU time per GET, pipeline 64", "redis", "Redis", 0.6, **CPU),
    against("5", "get-p1", "server CPU time per GET, pipeline 1", "redis", "Redis", 0.95, **CPU),
    Target(
        "6", "random GET from disk, 64 in flight", "fio, 4 KiB reads, 64 in flight",
        ("disk-get", "atlaskv", "ops_per_second"), (("disk-get", "fio", "ops_per_second"),), 0.7,
    ),
    against("7", "disk-get", "random GET from disk, 64 in flight", "rocksdb", "RocksDB, 16 threads", 2.5),
    overwrite("overwrite of data on disk", "ops_per_second", 1.2),
    overwrite("the same, with the merges after it", "settled_ops_per_second"),
    Target(
        "8", "p99.9 of SET at 70 % of the maximum", "the better of Redis, always, and RocksDB, synced",
        ("paced-set", "atlaskv", "p99.9_us"),
        (("paced-set", "redis-always", "p99.9_us"), ("paced-set", "rocksdb", "p99.9_us")), 0.5, least=False,
    ),
    Target(
        "8", "the same with as many SETs a second as RocksDB", "RocksDB, synced",
        ("paced-set", "atlaskv-as-rocksdb", "p99.9_us"), (("paced-set", "rocksdb", "p99.9_us"),), least=False,
    ),
    against("9", "get-alone", "p50 of GET, one at a time", "redis", "Redis", 1, **P50),
    against("9", "set-alone", "p50 of SET, one at a time", "redis-always", ALWAYS, 1, **P50),
    against("9b", "get-beside", "50 that GET beside 8 that SET: GETs", "redis-always", ALWAYS, 5),
    Target(
        "9b", "p50 of these GETs", "the same when nobody writes",
        ("get-beside", "atlaskv", "p50_us"), (("get-quiet", "atlaskv", "p50_us"),), 1.2, least=False,
    ),
    shards("10", "GET", "shards-get-paced", "two-shards", 1.05),
    shards("10", "SET", "shards-set-paced", "two-shards", 1.05),
    shards("11", "GET", "shards-get", "two-shards-unaware", 1.6),
    shards("11", "SET", "shards-set", "two-shards-unaware", 1.6),
    Target(
        "12", "resident bytes a key on disk, cache empty", "a server without data",
        ("resident", "atlaskv", "bytes_per_key"), (), 2, least=False, unit=" B",
    ),
    Target(
        "13", "recovery of the log", "sequential reads of fio",
        ("recover", "atlaskv", "bytes_per_second"), (("read-through", "fio", "bytes_per_second"),), 0.5,
    ),
    Target(
        "13", "start of 10 GB after SIGTERM", "–",
        ("clean-start", "atlaskv", "seconds"), (), 1, least=False, unit=" s",
    ),
]  # fmt: skip


def chosen(only):
    """The targets with these numbers, all if none are given."""
    known = list(dict.fromkeys(target.id for target in TARGETS))
    for name in only:
        if name not in known:
            raise SystemExit(f"there is no target {name!r}; there are {', '.join(known)}")
    return [target for target in TARGETS if not only or target.id in only]


def pairs(targets):
    """Loads and contestants that these targets take, each once."""
    return list(dict.fromkeys(pair for target in targets for pair in target.pairs()))
