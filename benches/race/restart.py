"""Memory of data that nobody asks for, and how long starts take: targets 12 and 13."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from harness import MIB, BackgroundBench, bench, memory_shares, say, size

from . import disk
from .loads import KEY, VALUE
from .peers import AtlasKv


@dataclass(frozen=True)
class Load:
    title: str


LOADS = {
    "resident": Load("memory of data on disk, cache empty"),
    "recover": Load("recovery of the log after kill -9"),
    "read-through": Load("sequential read of a file"),
    "clean-start": Load("start after SIGTERM"),
}
# Memtables are bounded at 1 GiB a shard, which 35 % of this is.
RECOVER_MEMORY = "3GiB"


def keys_of(count):
    return ["--keys", count, "--key-size", KEY, "--value-size", VALUE, "--distribution", "uniform"]


def load(race, server, count, order):
    say(f"setting {count:,} keys")
    preload = ["--preload-only", "--preload-order", order, "--clients", 16, "--pipeline", 64]
    bench(server, race.args.generator_cpu, *keys_of(count), *preload)
    server.settle(quiet=3)


def resident_bytes(server):
    """Of a server that has its indexes in memory, and was left alone for a moment."""
    while server.stats()["index_pending"]:
        time.sleep(0.1)
    time.sleep(3)
    status = dict(line.split(":", 1) for line in Path(f"/proc/{server.pid}/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) * 1024


def resident(race, turns):
    """Resident bytes more than a server without data has, by the number of keys."""
    count, flags = race.args.keys_resident, ["--sync", "always"]
    with AtlasKv(race, "resident", *flags) as server:
        load(race, server, count, "scattered")
        # A checkpoint flushes what is in memory.
        server.cli("checkpoint", str(race.dir / "checkpoint"))
        server.settle(quiet=3)
    shutil.rmtree(race.dir / "checkpoint")
    for turn in turns:
        with AtlasKv(race, "resident", *flags, fresh=False) as server:
            full, stats = resident_bytes(server), server.stats()
        if stats["memtable_entries"] or stats["table_entries"] < count:
            raise SystemExit(f"not all of {count} keys are on disk: {stats['table_entries']} are")
        with AtlasKv(race, "empty", *flags) as server:
            empty = resident_bytes(server)
        figures = {"bytes_per_key": (full - empty) / count, "resident_bytes": full, "empty_bytes": empty}
        race.kept.keep("resident", "atlaskv", turn, figures | {"index_bytes": stats["index_bytes"]})
    for name in ["resident", "empty"]:
        shutil.rmtree(race.dir / name)


def fill_log(race, server):
    """Writes until memtables are nearly full, or the log has what was asked for, and kills the server: none of it was
    flushed. Returns the bytes of the log, or none if a flush came first."""
    memtables = memory_shares(size(RECOVER_MEMORY))["memtables"]
    flags = [*keys_of(20_000_000), "--mix", "set=1", "--clients", 50, "--pipeline", 64, "--duration", "300s"]
    writers = BackgroundBench(server, race.args.generator_cpu, race.dir / "writers.json", *flags)
    writers.wait_for(0)
    while True:
        stats = server.stats()
        if stats["memtable_bytes"] > 0.93 * memtables or stats["wal_bytes"] >= race.args.log_mib * MIB:
            break
        if writers.process.poll() is not None:
            raise SystemExit(f"the writers ended early: {writers.last_words}")
    server.kill()
    writers.process.wait(60)
    return stats["wal_bytes"] if stats["flushes"] == 0 else None


def recover(race, turns):
    """Bytes of the log by the time that a start takes longer than one without data."""
    for turn in turns:
        for _ in range(3):
            server = AtlasKv(race, "recover", "--sync", "always", memory=RECOVER_MEMORY)
            if log := fill_log(race, server):
                break
        else:
            raise SystemExit("a flush came before the log was long, three times")
        with AtlasKv(race, "recover", "--sync", "always", memory=RECOVER_MEMORY, fresh=False) as server:
            seconds = server.start_seconds
        with AtlasKv(race, "empty", "--sync", "always", memory=RECOVER_MEMORY) as server:
            empty = server.start_seconds
        figures = {"bytes_per_second": log / (seconds - empty), "seconds": seconds, "empty_seconds": empty}
        race.kept.keep("recover", "atlaskv", turn, figures | {"log_bytes": log})
        for name in ["recover", "empty"]:
            shutil.rmtree(race.dir / name)


def read_through(race, turns):
    """What the disk gives to one who reads a file from its beginning."""
    with disk.FioFile(race, 1 << 30) as file:
        for turn in turns:
            job = file.run("read", "--bs=1M", "--iodepth=8", f"--runtime={race.args.seconds}", "--time_based")
            race.kept.keep("read-through", "fio", turn, {"bytes_per_second": job["read"]["bw_bytes"]})


def clean_start(race, turns):
    """To the line that says ready, of a store in which much was just overwritten, ended in good order."""
    count = race.args.keys_huge
    with AtlasKv(race, "clean", "--sync", "interval=1000") as server:
        load(race, server, count, "sequential")
    for turn in turns:
        with AtlasKv(race, "clean", "--sync", "always", fresh=False) as server:
            flags = ["--mix", "set=1", "--clients", 50, "--pipeline", 16, "--duration", f"{race.args.seconds}s"]
            bench(server, race.args.generator_cpu, *keys_of(count), *flags)
            stop_seconds = server.stop()
        with AtlasKv(race, "clean", "--sync", "always", fresh=False) as server:
            figures = {"seconds": server.start_seconds, "stop_seconds": stop_seconds}
            figures["bytes_on_disk"] = disk.disk_bytes(server.data)["all"]
        race.kept.keep("clean-start", "atlaskv", turn, figures)
    shutil.rmtree(race.dir / "clean")


def run(race, wanted):
    for name, measure in [
        ("resident", resident),
        ("recover", recover),
        ("read-through", read_through),
        ("clean-start", clean_start),
    ]:
        turns = [turn for turn in race.turns() if race.missing(wanted, turn, [name])]
        if turns:
            say(LOADS[name].title)
            measure(race, turns)
