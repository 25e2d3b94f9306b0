#!/usr/bin/env python3
"""AtlasKV beside RocksDB's db_bench: fill, overwrite, read, read absent keys, latencies at 70 % of the maximum rate.

For the record (20 million keys, about an hour, 20 GiB of disk), on a machine with nothing else to do:
    cargo build --release --workspace
    benches/rocksdb.py --dir /var/tmp/record
To try it out (about two minutes):
    benches/rocksdb.py --keys 200000 --minutes 0.1 --memory 128MiB
One phase at a time, on the data that earlier phases left in --dir:
    benches/rocksdb.py --dir /var/tmp/record --phase load,overwrite
    benches/rocksdb.py --dir /var/tmp/record --phase read,absent --systems atlaskv
    benches/rocksdb.py --dir /var/tmp/record --phase table
Each phase prints a line of JSON; all are kept in DIR/results.json; a Markdown table comes last. Needs Python 3 and
taskset; installs Debian's rocksdb-tools if db_bench is missing.

What makes it a comparison of like with like:
- One core (--server-cpu) for all of the store: AtlasKV with its one shard and all other threads; db_bench with its
  benchmark threads, flushes and compactions. db_bench makes its keys and values on that core too; AtlasKV takes
  them over TCP from a generator on another (--generator-cpu). The phase `tcp` says what that costs AtlasKV: CPU time
  per request of a server that has nothing to look up.
- Keys of 16 bytes, values of 100 that compress to about half, on both sides, each key loaded once in random order.
- Direct I/O for reads, flushes and compactions on both sides. RocksDB's log goes through the page cache, as it only
  can; the bytes are counted when pages are dirtied, and for AtlasKV when written: /proc/PID/io.
- RocksDB gets a block cache of what AtlasKV gets for its caches, and two write buffers that are together AtlasKV's
  memtables. Its indexes and filters are resident beside that, as AtlasKV's are. Bloom filters of 10 bits a key.
- Compression as AtlasKV has it by default: none but in the last level, and there LZ4 (none at all for an AtlasKV
  without compression). With dynamic level sizes RocksDB counts levels for that from the first one in use: the second
  of them is the last one up to some 2.5 GB. RocksDB with dynamic level sizes, its better setting for space, and default since 8.4.
- Durability: in `load`, `overwrite` and `open`, writes are acknowledged before they are on disk. AtlasKV's
  --sync interval (--relaxed-sync) promises more than db_bench's --sync=0, which leaves it to the kernel. AtlasKV
  gets its load by pipelining from several connections, db_bench from one thread, which is its fastest on one core.
  `sync-overwrite` and `sync-open` wait for the disk on both sides, with the same number of writers, each with one
  write in flight (--writers): what counts there is group commit.
- Reads: the same number in flight (--readers): threads of db_bench, connections of AtlasKV with one request each;
  and once more AtlasKV alone with as many requests in flight on two connections, which spares it system calls.
- Debian builds RocksDB with assertions (db_bench says so at its start). For a build without: --db-bench PATH.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness
from harness import MIB, Results, Server, bench, difference, disk_bytes, ratio, sample, say, table

PHASES = ["load", "overwrite", "read", "absent", "open", "sync-overwrite", "sync-open", "tcp"]
KEY, VALUE = 16, 100


def arguments():
    parser = argparse.ArgumentParser(description="AtlasKV beside RocksDB's db_bench; see the top of this file.")
    parser.add_argument("--keys", type=int, default=20_000_000)
    parser.add_argument("--minutes", type=float, default=10, help="length of the overwrite phase")
    parser.add_argument("--other-minutes", type=float, help="length of each other timed phase [a fifth of --minutes]")
    parser.add_argument("--memory", default="256MiB")
    parser.add_argument("--phase", default=",".join(PHASES), help="some of: " + ",".join(PHASES) + ",table")
    parser.add_argument("--systems", default="atlaskv,rocksdb")
    parser.add_argument("--dir", help="where data and results are, and stay [a fresh one, removed at the end]")
    parser.add_argument("--bin", default=str(harness.ROOT / "target/release"))
    parser.add_argument("--db-bench", default="db_bench")
    parser.add_argument("--server-cpu", default="0")
    parser.add_argument("--generator-cpu", default="1")
    parser.add_argument("--relaxed-sync", default="interval=1000")
    parser.add_argument("--clients", type=int, default=16, help="connections at full speed")
    parser.add_argument("--pipeline", type=int, default=64, help="requests in flight on each of them")
    parser.add_argument("--paced-clients", type=int, default=4, help="connections of the open loops")
    parser.add_argument("--paced-tick", default="100us", help="how often these send what is due")
    parser.add_argument("--writers", type=int, default=64, help="concurrent writers that wait for the disk")
    parser.add_argument("--readers", type=int, default=32, help="reads in flight")
    parser.add_argument("--compression-ratio", type=float, default=0.5)
    parser.add_argument("--rocksdb-compression", help="of its last level [lz4 if AtlasKV compresses, else none]")
    parser.add_argument("--atlaskv-flags", default="", help="more flags for the server")
    parser.add_argument("--rocksdb-flags", default="", help="more flags for db_bench")
    args = parser.parse_args()
    args.phase, args.systems = args.phase.split(","), args.systems.split(",")
    for phase in args.phase:
        if phase not in PHASES + ["table"]:
            parser.error(f"there is no phase {phase!r}")
    if args.other_minutes is None:
        args.other_minutes = args.minutes / 5
    return args


def per_op(change, ops):
    """Figures of a phase from what the process did in it."""
    user = ops * (KEY + VALUE)
    return {
        "cpu_micros_per_op": change["cpu"] * 1e6 / ops if ops else None,
        "bytes_written": change["written"],
        "bytes_read_per_op": change["read"] / ops if ops else None,
        "write_amplification": change["written"] / user if ops else None,
    }


def space(directory, keys):
    held = disk_bytes(directory)
    live = keys * (KEY + VALUE)
    return {
        "bytes_on_disk": held["all"],
        "bytes_of_tables": held["tables"],
        "bytes_of_log": held["log"],
        "space_amplification": held["all"] / live,
        "space_amplification_of_tables": held["tables"] / live,
    }


# Of the server's counters, those that tell what requests waited for.
WAITS = ["slow_rounds", "slow_round_micros", "slow_commits", "slow_commit_micros", "slow_reads", "slow_read_micros"]
WAITS += ["slowdown_micros", "memory_waits"]


class AtlasKv:
    name = "atlaskv"

    def __init__(self, args, results):
        self.args, self.results = args, results
        self.data = Path(args.dir) / "atlaskv"
        self.common = ["--keys", args.keys, "--key-size", KEY, "--value-size", VALUE, "--distribution", "uniform"]
        self.common += ["--compression-ratio", args.compression_ratio]

    def server(self, sync, data=None):
        flags = ["--sync", sync, *self.args.atlaskv_flags.split()]
        return Server(self.args.bin, data or self.data, self.args.server_cpu, self.args.memory, *flags)

    def run(self, server, *flags):
        return bench(server, self.args.generator_cpu, *self.common, *flags)

    def writes(self, server, ops_of, *flags):
        """A phase of writes, with what it and the merges after it cost; the report and the figures."""
        before = sample(server.pid)
        with harness.DiskWatch(self.data) as watch:
            report = self.run(server, *flags)
        after = sample(server.pid)
        settle = server.settle()
        rested = sample(server.pid)
        ops = ops_of(report)
        figures = {"ops": ops, **per_op(difference(after, before), ops)}
        figures["write_amplification_settled"] = (rested["written"] - before["written"]) / (ops * (KEY + VALUE))
        figures |= {"settle_seconds": settle, "peak_bytes_on_disk": watch.peak["all"]}
        return report, figures | space(self.data, self.args.keys), server.stats()

    def load(self):
        if self.data.exists():
            shutil.rmtree(self.data)
        with self.server(self.args.relaxed_sync) as server:
            flags = ["--preload-only", "--preload-order", "scattered", *self.full_speed()]
            report, figures, stats = self.writes(server, lambda report: report["load"]["keys"], *flags)
        load = report["load"]
        figures |= {"ops_per_second": load["keys_per_second"], "seconds": load["seconds"]}
        rates = [point["ops"] for point in load["timeline"][:-1]]
        self.results.put(self.name, "load", figures | {"window": harness.windows(rates), "stats": stats, "rates": rates})

    def full_speed(self):
        return ["--clients", self.args.clients, "--pipeline", self.args.pipeline]

    def overwrite(self, phase="overwrite", sync=None, minutes=None, load=None):
        with self.server(sync or self.args.relaxed_sync) as server:
            server.settle()
            flags = ["--mix", "set=1", "--duration", seconds_flag(minutes or self.args.minutes)]
            flags += load or self.full_speed()
            count = lambda report: report["total"]["ops"] + report["total"]["drained"]
            report, figures, stats = self.writes(server, count, *flags)
        rates = [point["ops"] for point in report["timeline"]][: int(report["seconds"])]
        figures |= {"ops_per_second": report["total"]["ops_per_second"], "window": harness.windows(rates)}
        figures |= {"response_us": report["total"]["response_us"], "generator_cpu": report["generator_cpu"]}
        self.results.put(self.name, phase, figures | {"stats": stats, "rates": rates, "timeline": report["timeline"]})

    def sync_overwrite(self):
        load = ["--clients", self.args.writers, "--pipeline", 1]
        self.overwrite("sync-overwrite", "always", self.args.other_minutes, load)

    def reads(self, phase, *flags):
        with self.server(self.args.relaxed_sync) as server:
            server.settle()
            spread = ["--clients", self.args.readers, "--pipeline", 1]
            figures = self.reads_of(server, *spread, *flags)
            two = ["--clients", 2, "--pipeline", max(1, self.args.readers // 2)]
            figures["pipelined"] = self.reads_of(server, *two, *flags)
        self.results.put(self.name, phase, figures)

    def reads_of(self, server, *flags):
        stats, before = server.stats(), sample(server.pid)
        report = self.run(server, "--mix", "get=1", "--duration", seconds_flag(self.args.other_minutes), *flags)
        change, counted = difference(sample(server.pid), before), difference(server.stats(), stats)
        total = report["total"]
        ops = total["ops"] + total["drained"]
        figures = {"ops": ops, "ops_per_second": total["ops_per_second"], **per_op(change, ops)}
        del figures["write_amplification"]
        figures |= {"missing": total["missing"], "response_us": total["response_us"]}
        figures["disk_reads_per_op"] = counted["disk_reads"] / ops
        figures["filter_checks_per_op"] = counted["filter_checks"] / ops
        lookups = counted["cache_hits"] + counted["cache_misses"]
        figures["cache_hit_rate"] = counted["cache_hits"] / lookups if lookups else None
        return figures

    def read(self):
        self.reads("read", "--verify")

    def absent(self):
        self.reads("absent", "--absent", "--verify")

    def open(self, phase="open", sync=None, of="overwrite"):
        """Latencies at 70 % of the highest rate: SETs with a few GETs among them, then half and half. The highest rate
        of each is measured first, for as long, by closed loops: that of the second half, as what they begin with does
        not last. Beside it stands what the disk does: to single reads meanwhile, and to fio with as much to read and to
        write afterwards. A GET of what is on disk can't be faster than these. Few connections, and what is due within a
        tick goes together: else each request is a send and a receive, which cost more than it does, and at 70 % of a rate that
        pipelines reached both the server and the generator, which has a core of its own, are at their end."""
        if not self.results.get(self.name, of, "ops_per_second"):
            raise SystemExit(f"phase {phase} is of the data that phase {of} leaves; run that first")
        figures = {}
        length = ["--duration", seconds_flag(self.args.other_minutes)]
        # The closed loops that find the highest rates must fill the same pipelines.
        closed = ["--clients", self.args.writers, "--pipeline", 1] if sync else self.full_speed()
        paced = ["--clients", self.args.paced_clients, "--pipeline", 16_384 // self.args.paced_clients]
        paced += ["--tick", self.args.paced_tick]
        with self.server(sync or self.args.relaxed_sync) as server:
            for name, mix in [("writes", "set=20,get=1"), ("mixed", "set=1,get=1")]:
                server.settle()
                fastest = self.run(server, "--mix", mix, *length, *closed)
                most = harness.lasting([point["ops"] for point in fastest["timeline"]][: int(fastest["seconds"])])
                # What the closed loop left for merges to do is not this load's.
                server.settle()
                before, counted, stolen = sample(server.pid), server.stats(), harness.stolen_millis()
                with harness.DiskProbe(self.args.dir, self.args.generator_cpu) as probe:
                    paced_run = self.run(server, "--mix", mix, "--rate", int(0.7 * most), *length, *paced)
                change, after = difference(sample(server.pid), before), server.stats()
                figures[name] = self.open_point(paced_run, most) | {"disk_beside_ms": probe.figures()}
                waits = {of: after[of] - counted[of] for of in WAITS} | {"stolen_ms": harness.stolen_millis() - stolen}
                figures[name]["waits"] = waits
                say(f"atlaskv: {phase}, {name}: " + ", ".join(f"{of} {count:,}" for of, count in waits.items()))
                traffic = [(after["disk_reads"] - counted["disk_reads"]), change["written"]]
                traffic = [total / paced_run["seconds"] for total in traffic]
                figures[name]["traffic_per_second"] = traffic
        seconds = max(1, round(self.args.other_minutes * 60))
        for point in figures.values():
            traffic = point["traffic_per_second"]
            point["disk_alone_ms"] = harness.disk_alone(self.args.dir, self.args.server_cpu, *traffic, seconds)
        self.results.put(self.name, phase, figures)

    @staticmethod
    def open_point(report, most):
        latencies = {kind: record["response_us"] for kind, record in report["per_op"].items()}
        return {"most": most, **report["open_loop"], **latencies, "server_cpu": report["server_cpu"]}

    def sync_open(self):
        self.open("sync-open", "always", "sync-overwrite")

    def tcp(self):
        """What a request costs that has nothing to find."""
        figures = {}
        empty = Path(self.args.dir) / "empty"
        with self.server(self.args.relaxed_sync, empty) as server:
            for name, load in [("pipelined", self.full_speed()), ("readers", ["--clients", self.args.readers])]:
                flags = ["--mix", "get=1", "--duration", seconds_flag(min(self.args.other_minutes, 0.5))]
                report = self.run(server, *flags, *load)
                figures[name] = {"ops_per_second": report["total"]["ops_per_second"]}
                figures[name] |= {"cpu_micros_per_op": (report["server_cpu"] or {}).get("micros_per_op")}
        shutil.rmtree(empty)
        self.results.put(self.name, "tcp", figures)


def seconds_flag(minutes):
    return f"{max(1, round(minutes * 60))}s"


class RocksDb:
    name = "rocksdb"

    def __init__(self, args, results):
        self.args, self.results = args, results
        self.data = Path(args.dir) / "rocksdb"
        shares = harness.memory_shares(harness.size(args.memory))
        codec = args.rocksdb_compression or default_compression(args)
        self.flags = [
            f"--db={self.data}", f"--num={args.keys}", f"--key_size={KEY}", f"--value_size={VALUE}",
            f"--compression_ratio={args.compression_ratio}", "--seed=1",
            "--use_direct_reads=1", "--use_direct_io_for_flush_and_compaction=1",
            f"--cache_size={shares['caches']}", "--cache_index_and_filter_blocks=0",
            f"--write_buffer_size={shares['memtables'] // 2}", "--max_write_buffer_number=2",
            "--bloom_bits=10", f"--compression_type={codec}", "--min_level_to_compress=2", "--num_levels=7",
            "--level_compaction_dynamic_level_bytes=1", "--disable_wal=0", "--histogram=1",
            "--report_interval_seconds=1", f"--report_file={args.dir}/rocksdb-report.csv",
            *args.rocksdb_flags.split(),
        ]  # fmt: skip

    def db_bench(self, benchmark, *flags, settle=True, before=()):
        """Runs one benchmark, after those in `before`. Figures of it alone, and with the compactions after it."""
        report = Path(self.args.dir) / "rocksdb-report.csv"
        report.unlink(missing_ok=True)
        # What an earlier process left in the log is flushed and compacted first. What follows keeps the process
        # alive while its counters are read at the end of the benchmark.
        first = [*before, "waitforcompaction"] if "--use_existing_db=1" in flags else []
        command = ["stdbuf", "-oL", "taskset", "-c", self.args.server_cpu, self.args.db_bench]
        command += ["--benchmarks=" + ",".join([*first, benchmark, "waitforcompaction"]), *self.flags, *flags]
        marks, line, latency = {}, None, {}
        with open(Path(self.args.dir) / "rocksdb.log", "a") as log, harness.DiskWatch(self.data.parent) as watch:
            process = harness.spawn(command, stdout=subprocess.PIPE, stderr=log, text=True)
            for text in process.stdout:
                log.write(text)
                if text.startswith("DB path"):
                    # Printed before a benchmark begins; for an existing database after compactions came to rest.
                    marks.setdefault("before", sample(process.pid))
                elif text.startswith(benchmark):
                    line, marks["after"] = text, sample(process.pid)
                elif text.startswith("Percentiles:"):
                    # Of the benchmark that ended last.
                    latency = {name.lower(): float(value) for name, value in re.findall(r"(P[\d.]+): ([\d.]+)", text)}
                elif text.startswith("waitforcompaction") and "finished" in text:
                    marks["rested"] = sample(process.pid)
                    if line is None:
                        marks["before"] = marks["rested"]
            # Written so far counts in rusage as well, to the end: in units of 512 bytes.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        match = re.search(r"([\d.]+) micros/op (\d+) ops/sec ([\d.]+) seconds (\d+) operations", line or "")
        if process.returncode != 0 or not match:
            raise SystemExit(f"db_bench {benchmark} ended with {process.returncode}; see {self.args.dir}/rocksdb.log")
        ops, seconds = int(match[4]), float(match[3])
        rates = [int(row.split(",")[1]) for row in report.read_text().splitlines()[1:]][: int(seconds)]
        figures = {"ops": ops, "ops_per_second": ops / seconds, "seconds": seconds, "service_us": latency}
        figures |= per_op(difference(marks["after"], marks["before"]), ops)
        found = re.search(r"\((\d+) of (\d+) found\)", line)
        if found:
            figures["found_share"] = int(found[1]) / max(1, int(found[2]))
        if settle:
            whole = usage.ru_oublock * 512 - marks["before"]["written"]
            figures["write_amplification_settled"] = whole / (ops * (KEY + VALUE))
            figures["settle_seconds"] = marks["rested"]["at"] - marks["after"]["at"]
            figures["peak_bytes_on_disk"] = watch.peak["all"] - self.others_bytes()
            figures |= space(self.data, self.args.keys)
        return figures, rates

    def others_bytes(self):
        return disk_bytes(self.data.parent)["all"] - disk_bytes(self.data)["all"]

    def clear(self):
        if self.data.exists():
            shutil.rmtree(self.data)

    def load(self):
        self.clear()
        figures, rates = self.db_bench("filluniquerandom", "--sync=0", "--threads=1")
        # It shuffles all key numbers before it writes the first: seconds without a write at the beginning.
        idle = next((at for at, rate in enumerate(rates) if rate), 0)
        seconds = figures["seconds"] - idle
        figures |= {"ops_per_second": figures["ops"] / seconds, "window": harness.windows(rates[idle:])}
        self.results.put(self.name, "load", figures | {"rates": rates})

    def overwrite(self, phase="overwrite", minutes=None, *flags):
        flags = flags or ["--sync=0", "--threads=1"]
        duration = seconds_flag(minutes or self.args.minutes)[:-1]
        figures, rates = self.db_bench("overwrite", "--use_existing_db=1", f"--duration={duration}", *flags)
        self.results.put(self.name, phase, figures | {"window": harness.windows(rates), "rates": rates})

    def sync_overwrite(self):
        self.overwrite("sync-overwrite", self.args.other_minutes, "--sync=1", f"--threads={self.args.writers}")

    def reads(self, phase, benchmark):
        flags = ["--use_existing_db=1", f"--threads={self.args.readers}"]
        flags.append(f"--duration={seconds_flag(self.args.other_minutes)[:-1]}")
        figures, _ = self.db_bench(benchmark, *flags, settle=False)
        del figures["write_amplification"]
        self.results.put(self.name, phase, figures)

    def read(self):
        self.reads("read", "readrandom")

    def absent(self):
        self.reads("absent", "readmissing")

    # An open loop is asked of AtlasKV alone, and db_bench has none: its rate limit hides what waits.
    open = sync_open = tcp = None


def default_compression(args):
    return "lz4" if harness.supports(f"{args.bin}/atlaskv", "compression") else "none"


def report(results):
    get = results.get
    rows = []

    def row(title, phase, *names, scale=1):
        ours, theirs = get("atlaskv", phase, *names), get("rocksdb", phase, *names)
        ours, theirs = (value * scale if value is not None else None for value in (ours, theirs))
        if ours is not None or theirs is not None:
            rows.append([title, ours, theirs, ratio(ours, theirs)])

    row("fill, keys/s", "load", "ops_per_second")
    row("fill, CPU-us/key", "load", "cpu_micros_per_op")
    row("fill, write amplification, settled", "load", "write_amplification_settled")
    row("after fill, settled: bytes on disk, MiB", "load", "bytes_on_disk", scale=1 / MIB)
    row("after fill, settled: space amplification", "load", "space_amplification")
    row("after fill, settled: of tables alone", "load", "space_amplification_of_tables")
    for phase, title in [("overwrite", "overwrite"), ("sync-overwrite", "overwrite, synced")]:
        row(f"{title}, ops/s", phase, "ops_per_second")
        row(f"{title}, slowest second, ops/s", phase, "window", "slowest")
        row(f"{title}, median second, ops/s", phase, "window", "median")
        row(f"{title}, slowest / median", phase, "window", "ratio")
        row(f"{title}, CPU-us/op", phase, "cpu_micros_per_op")
        row(f"{title}, write amplification at its end", phase, "write_amplification")
        row(f"{title}, write amplification, settled", phase, "write_amplification_settled")
        row(f"{title}, most bytes on disk, MiB", phase, "peak_bytes_on_disk", scale=1 / MIB)
        row(f"{title}, bytes on disk settled, MiB", phase, "bytes_on_disk", scale=1 / MIB)
        row(f"{title}, space amplification, settled", phase, "space_amplification")
        row(f"{title}, space amplification of tables", phase, "space_amplification_of_tables")
    for phase, title in [("read", "read"), ("absent", "read absent")]:
        row(f"{title}, ops/s", phase, "ops_per_second")
        row(f"{title}, CPU-us/op", phase, "cpu_micros_per_op")
        row(f"{title}, pipelined, ops/s", phase, "pipelined", "ops_per_second")
        row(f"{title}, pipelined, CPU-us/op", phase, "pipelined", "cpu_micros_per_op")
        row(f"{title}, bytes read from disk/op", phase, "bytes_read_per_op")
        row(f"{title}, disk reads/op", phase, "disk_reads_per_op")
    row("TCP and protocol, pipelined, CPU-us/request", "tcp", "pipelined", "cpu_micros_per_op")
    row("TCP and protocol, one in flight, CPU-us/request", "tcp", "readers", "cpu_micros_per_op")
    table(["", "AtlasKV", "RocksDB", "AtlasKV / RocksDB"], rows)
    points = []
    for phase in ["open", "sync-open"]:
        for load in ["writes", "mixed"]:
            for kind in ["set", "get"]:
                figures = get("atlaskv", phase, load)
                if figures:
                    quantiles = [figures[kind][name] / 1000 for name in ["p50", "p99", "p99.9", "max"]]
                    title = f"{phase}, {load}, {kind.upper()}"
                    points.append([title, figures["rate_asked"], figures["rate_achieved"], *quantiles])
            for name, title in [("disk_beside_ms", "single reads of the disk"), ("disk_alone_ms", "fio with as much")]:
                disk = (get("atlaskv", phase, load) or {}).get(name)
                if disk:
                    quantiles = [disk[name] for name in ["p50", "p99", "p99.9", "max"]]
                    points.append([f"{phase}, {load}: {title}", None, None, *quantiles])
    if points:
        table(["at 70 % of the most, ms", "asked, ops/s", "achieved", "p50", "p99", "p99.9", "max"], points)


def main():
    args = arguments()
    args.dir, keep = harness.workspace(args.dir, "rocksdb")
    harness.prepare(args.generator_cpu)
    if any(phase.endswith("open") for phase in args.phase):
        harness.install("fio", "fio")
    if "rocksdb" in args.systems and args.db_bench == "db_bench":
        harness.install("db_bench", "rocksdb-tools")
    results = Results(args.dir, "rocksdb", vars(args))
    systems = [system for system in (AtlasKv, RocksDb) if system.name in args.systems]
    if "rocksdb" in args.systems:
        results.all["rocksdb_flags"] = RocksDb(args, results).flags
    try:
        for phase in args.phase:
            for system in systems:
                action = getattr(system(args, results), phase.replace("-", "_"), None)
                if action:
                    say(f"{system.name}: {phase}")
                    action()
        report(results)
    finally:
        if not keep:
            shutil.rmtree(args.dir)


if __name__ == "__main__":
    main()
