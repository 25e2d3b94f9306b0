"""Data ten times larger than memory: targets 6 and 7, and what fio measures of the disk."""

import contextlib
import json
import shutil
import subprocess
from dataclasses import dataclass

from harness import bench, difference, disk_bytes, sample, say

from .loads import KEY, VALUE, figures_of
from .peers import AtlasKv
from .rocks import COMPRESSION_RATIO, RELAXED, RocksDb


@dataclass(frozen=True)
class Load:
    title: str


LOADS = {
    "disk-get": Load("random GET from disk, 64 in flight"),
    "disk-set": Load("overwrite of data on disk"),
}
DATA = "larger-than-memory"
# Threads of db_bench, on one core.
THREADS = 16


class FioFile:
    """A file of this size, written once, which fio reads past the page cache, on the servers' core."""

    def __init__(self, race, bytes_):
        self.race, self.bytes, self.path = race, bytes_ // 4096 * 4096, race.dir / "fio.file"

    def __enter__(self):
        self.path.unlink(missing_ok=True)
        self.run("write", "--bs=1M", "--iodepth=8", "--refill_buffers")
        return self

    def __exit__(self, *_):
        self.path.unlink(missing_ok=True)

    def run(self, kind, *flags):
        command = ["taskset", "-c", self.race.args.server_cpu, "fio", f"--name={kind}", f"--rw={kind}"]
        command += [f"--filename={self.path}", f"--size={self.bytes}", "--direct=1", "--ioengine=io_uring"]
        command += ["--output-format=json", *map(str, flags)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise SystemExit(f"fio {kind} ended with {result.returncode}: {result.stderr.strip()}")
        # Notes may come before the JSON.
        return json.loads(result.stdout[result.stdout.index("{") :])["jobs"][0]


class Stage:
    """AtlasKV and RocksDB, each with all keys loaded and at rest; a file as large as AtlasKV's tables for fio."""

    def __init__(self, race, wanted):
        self.race, self.wanted, self.kept = race, wanted, race.kept
        self.names = {who for _, who in wanted}
        self.rocksdb = RocksDb(race, race.args.keys_large)

    def server(self):
        flags = ["--sync", RELAXED]
        return AtlasKv(self.race, DATA, *flags, memory=self.race.args.memory_small, fresh=False)

    def keys(self):
        sizes = ["--keys", self.race.args.keys_large, "--key-size", KEY, "--value-size", VALUE]
        return [*sizes, "--distribution", "uniform", "--compression-ratio", COMPRESSION_RATIO]

    def bench(self, server, *flags):
        return bench(server, self.race.args.generator_cpu, *self.keys(), *flags)

    def load(self):
        """Loads each, unless an earlier try has."""
        for name, way in [("rocksdb", self.rocksdb.fill), (DATA, self.load_atlaskv)]:
            loaded = self.race.dir / f"{name}.loaded"
            if not loaded.exists() and (name == DATA or "rocksdb" in self.names):
                say(f"{name}: loading {self.race.args.keys_large:,} keys")
                way()
                loaded.touch()

    def load_atlaskv(self):
        shutil.rmtree(self.race.dir / DATA, ignore_errors=True)
        with self.server() as server:
            self.bench(server, "--preload-only", "--preload-order", "scattered", "--clients", 16, "--pipeline", 64)
            server.settle(quiet=3)

    def clear(self):
        for name in ["rocksdb", DATA]:
            (self.race.dir / f"{name}.loaded").unlink(missing_ok=True)
            shutil.rmtree(self.race.dir / name, ignore_errors=True)

    def atlaskv_reads(self):
        """64 in flight: 2 connections with 32 each, which spare the server system calls that db_bench has not."""
        with self.server() as server:
            server.settle(quiet=1)
            before, counted = sample(server.pid), server.stats()
            flags = ["--mix", "get=1", "--clients", 2, "--pipeline", 32, "--warmup", "1s"]
            figures = figures_of(self.bench(server, *flags, "--duration", f"{self.race.args.seconds}s"), "get")
            read = difference(sample(server.pid), before)["read"]
            gets = server.stats()["gets"] - counted["gets"]
        return figures | {"bytes_read_per_op": read / gets}

    def fio_reads(self, file):
        flags = ["--bs=4k", "--iodepth=64", f"--runtime={self.race.args.seconds}", "--time_based"]
        job = file.run("randread", *flags)
        quantiles = job["read"]["clat_ns"]["percentile"]
        figures = {"ops_per_second": job["read"]["iops"], "bytes_read_per_op": 4096}
        figures["cpu_micros_per_op"] = (job["usr_cpu"] + job["sys_cpu"]) * 1e4 / job["read"]["iops"]
        figures |= {f"p{at:g}_us": quantiles[f"{at:.6f}"] / 1e3 for at in [50, 90, 99, 99.9]}
        return figures | {"max_us": job["read"]["clat_ns"]["max"] / 1e3}

    def rounds_of_reads(self):
        if not any(self.race.missing(self.wanted, turn, ["disk-get"]) for turn in self.race.turns()):
            return
        ways = {"atlaskv": self.atlaskv_reads, "rocksdb": lambda: self.rocksdb.reads(THREADS)}
        size = disk_bytes(self.race.dir / DATA)["tables"]
        with FioFile(self.race, size) if "fio" in self.names else contextlib.nullcontext() as file:
            ways["fio"] = lambda: self.fio_reads(file)
            for turn in self.race.turns():
                for load, who in self.race.missing(self.wanted, turn, ["disk-get"]):
                    self.kept.keep(load, who, turn, ways[who]())

    def atlaskv_writes(self, seconds):
        with self.server() as server:
            server.settle(quiet=1)
            before = sample(server.pid)
            flags = ["--mix", "set=1", "--clients", 16, "--pipeline", 64, "--duration", f"{seconds}s"]
            figures = figures_of(self.bench(server, *flags), "set")
            settled = server.settle(quiet=3) or 0
            written = difference(sample(server.pid), before)["written"]
        return figures | after_merges(figures["ops_per_second"], seconds, settled, written)

    def rounds_of_writes(self):
        """Longer ones, since merges come in waves."""
        seconds = round(max(1, self.race.args.seconds * 4))
        ways = {
            "atlaskv": lambda: self.atlaskv_writes(seconds),
            "rocksdb": lambda: self.rocksdb.writes(THREADS, seconds),
            "rocksdb-1": lambda: self.rocksdb.writes(1, seconds),
        }
        for turn in self.race.turns():
            for load, who in self.race.missing(self.wanted, turn, ["disk-set"]):
                self.kept.keep(load, who, turn, ways[who]())


def after_merges(rate, seconds, settled, written):
    """What writes cost in the end: with the merges that they left to do."""
    ops = rate * seconds
    figures = {"write_amplification": written / (ops * (KEY + VALUE))}
    return figures | {"settle_seconds": settled, "settled_ops_per_second": ops / (seconds + settled)}


def run(race, wanted):
    stage = Stage(race, wanted)
    stage.load()
    stage.rounds_of_reads()
    stage.rounds_of_writes()
    stage.clear()
