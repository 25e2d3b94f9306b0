"""RocksDB's db_bench as benches/rocksdb.py runs it: the same cache, memtables and compression as AtlasKV has, direct
I/O, all of its threads on the servers' core."""

import argparse

import rocksdb

# Of both sides: about half of a value is left of it by compression.
COMPRESSION_RATIO = 0.5
# AtlasKV's writes where db_bench leaves it to the kernel when they are on disk.
RELAXED = "interval=1000"


class RocksDb:
    def __init__(self, race, keys, compression_ratio=COMPRESSION_RATIO):
        args = argparse.Namespace(
            dir=str(race.dir), bin=str(race.bin), keys=keys, memory=race.args.memory_small, db_bench="db_bench",
            compression_ratio=compression_ratio, rocksdb_compression=None, rocksdb_flags="",
            server_cpu=race.args.server_cpu,
        )  # fmt: skip
        self.seconds = race.args.seconds
        self.runner = rocksdb.RocksDb(args, None)

    def fill(self):
        self.runner.clear()
        self.runner.db_bench("filluniquerandom", "--sync=0", "--threads=1")

    def reads(self, threads):
        flags = ["--use_existing_db=1", f"--threads={threads}", f"--duration={whole(self.seconds)}"]
        found, _ = self.runner.db_bench("readrandom", *flags, settle=False)
        return figures_of(found) | {"bytes_read_per_op": found["bytes_read_per_op"]}

    def writes(self, threads, seconds, *flags, sync=False):
        flags = ["--use_existing_db=1", f"--threads={threads}", f"--duration={whole(seconds)}", *flags]
        found, _ = self.runner.db_bench("overwrite", f"--sync={int(sync)}", *flags)
        settled = found["settle_seconds"]
        figures = figures_of(found) | {"write_amplification": found["write_amplification_settled"]}
        figures["settled_ops_per_second"] = found["ops"] / (found["seconds"] + settled)
        return figures | {"settle_seconds": settled}


def figures_of(found):
    figures = {name: found[name] for name in ["ops_per_second", "cpu_micros_per_op"]}
    return figures | {f"{name}_us": value for name, value in found["service_us"].items()}


def whole(seconds):
    return max(1, round(seconds))
