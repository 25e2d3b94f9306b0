"""The slowest SETs at 70 % of what a server can do, while it merges: target 8.

Each contestant's maximum comes first, for a few seconds, in closed loops with the same background work; then 70 % of
it for --slow-minutes, by a timetable, where latency counts from the time at which a request was due. Requests that
are due within 100 us go together: four connections, or each would be a send and a receive of its own.

- AtlasKV has so little memory that it flushes every other second and merges all the time.
- Redis is told to rewrite its log (BGREWRITEAOF) again as soon as it has done so.
- AtlasKV is also given as many SETs a second as RocksDB, for two minutes at most: nothing to be reached, to compare.
- RocksDB, in process, has as much memory as AtlasKV. db_bench knows no timetable: its rate limit hides what waits,
  so its latencies are those of the writes themselves, which is to its advantage.
"""

import shutil
import threading
from dataclasses import dataclass

from harness import bench, difference, sample, say

from .loads import KEY, VALUE, figures_of, keys
from .peers import REDIS_ALWAYS, AtlasKv, Redis
from .rocks import RocksDb


@dataclass(frozen=True)
class Load:
    title: str


LOADS = {"paced-set": Load("SET at 70 % of the maximum, for long")}
SHARE = 0.7
# AtlasKV, given as much as RocksDB is.
AS_ROCKSDB = "atlaskv-as-rocksdb"
COMPARED_MINUTES = 2
CLIENTS = ["--mix", "set=1", "--clients", 4]
# db_bench's writers, each with one write in flight.
WRITERS = 50


class Rewrites:
    """Has Redis rewrite its log again and again."""

    def __init__(self, redis):
        self.redis, self.count, self.done = redis, 0, threading.Event()
        self.thread = threading.Thread(target=self.repeat, daemon=True)

    def repeat(self):
        while not self.done.wait(0.2):
            if not self.redis.is_rewriting():
                self.redis.ask("BGREWRITEAOF")
                self.count += 1

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()


def over_tcp(race, server, most=None):
    """Maximum, and then the long run; the figures of that. With a given maximum the run is for comparison, and need
    not be as long."""
    minutes = race.args.slow_minutes
    load = [*keys(race), *CLIENTS]
    loaded = [*keys(race), "--preload-only", "--clients", 50, "--pipeline", 16]
    bench(server, race.args.generator_cpu, *loaded)
    if most is not None:
        minutes = min(minutes, COMPARED_MINUTES)
    else:
        closed = ["--pipeline", 256, "--warmup", "1s", "--duration", f"{race.args.seconds}s"]
        most = figures_of(bench(server, race.args.generator_cpu, *load, *closed), "set")["ops_per_second"]
    rate = int(SHARE * most)
    say(f"{server.name}: {rate:,} a second, {SHARE:.0%} of {most:,.0f}, for {minutes} minutes")
    paced = ["--rate", rate, "--tick", "100us", "--pipeline", 4096, "--warmup", "2s"]
    seconds = 60 * minutes
    before = sample(server.pid)
    report = bench(server, race.args.generator_cpu, *load, *paced, "--duration", f"{seconds}s", check=False)
    written = difference(sample(server.pid), before)["written"]
    figures = figures_of(report, "set") | {"most_per_second": most, "rate_held": report["open_loop"]["valid"]}
    figures["write_amplification"] = written / (rate * (seconds + 2) * (KEY + VALUE))
    figures["timeline_p99_us"] = [point["p99_us"] for point in report["timeline"]]
    figures["timeline_max_us"] = [point["max_us"] for point in report["timeline"]]
    return figures


def atlaskv(race, most=None):
    with AtlasKv(race, "paced", "--sync", "always", memory=race.args.memory_small) as server:
        before = server.stats()
        figures = over_tcp(race, server, most)
        after = server.stats()
    shutil.rmtree(race.dir / "paced")
    counted = {name: after[name] - before[name] for name in ["flushes", "compactions", "compaction_bytes_out"]}
    say(f"atlaskv: {counted['flushes']} flushes, {counted['compactions']} merges")
    return figures | counted


def redis(race):
    server = Redis(race, "redis-always", *REDIS_ALWAYS)
    try:
        with Rewrites(server) as rewrites:
            figures = over_tcp(race, server)
    finally:
        server.stop()
        shutil.rmtree(race.dir / "redis-always", ignore_errors=True)
    say(f"redis-always: {rewrites.count} rewrites of its log")
    return figures | {"rewrites": rewrites.count}


def rocksdb(race):
    store = RocksDb(race, race.args.keys, compression_ratio=1)
    store.fill()
    most = store.writes(WRITERS, race.args.seconds, sync=True)["ops_per_second"]
    rate = int(SHARE * most)
    say(f"rocksdb: {rate:,} a second, {SHARE:.0%} of {most:,.0f}, for {race.args.slow_minutes} minutes")
    limit = f"--benchmark_write_rate_limit={rate * (KEY + VALUE)}"
    figures = store.writes(WRITERS, 60 * race.args.slow_minutes, limit, sync=True)
    shutil.rmtree(race.dir / "rocksdb")
    return figures | {"most_per_second": most, "rate_held": abs(figures["ops_per_second"] / rate - 1) < 0.02}


def run(race, wanted):
    ways = {"atlaskv": atlaskv, "redis-always": redis, "rocksdb": rocksdb}
    for turn in race.turns():
        # Whose rate depends on another's comes last.
        for load, who in sorted(race.missing(wanted, turn, LOADS), key=lambda pair: pair[1] == AS_ROCKSDB):
            if who == AS_ROCKSDB:
                figures = atlaskv(race, race.kept.rounds(load, "rocksdb", "most_per_second")[str(turn)])
            else:
                figures = ways[who](race)
            if not figures["rate_held"]:
                say(f"WARNING: {who} did not hold {SHARE:.0%} of its maximum")
            race.kept.keep(load, who, turn, figures)
