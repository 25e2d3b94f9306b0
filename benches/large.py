#!/usr/bin/env python3
"""How long small requests take beside large ones: GETs and SETs of large values, and MGETs of many keys.

    cargo build --release --workspace
    benches/large.py                                   about six minutes
    benches/large.py --sizes 16MiB --seconds 10

One shard on one core. Small requests, four GETs to a SET of 100 bytes, come by a timetable (--rate); their latency
counts from when they were due. Beside them one client at a time asks for something large, --large-rate times a second:
- get:  a value that was just written
- set:  a value
- mget: --mget-keys small keys in one request
The generator of large requests shares the other core with that of small ones and gives way to it (nice 19); what it
still takes of it is in the figures: so they are an upper bound of what the server does.
"""

import argparse
import shutil
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness
from harness import BackgroundBench, Results, Server, bench, table

SMALL_KEYS = 100_000


def arguments():
    parser = argparse.ArgumentParser(description="Small requests beside large ones; see the top of this file.")
    parser.add_argument("--sizes", default="256KiB,1MiB,4MiB,16MiB")
    parser.add_argument("--mget-keys", default="1000,10000,60000")
    parser.add_argument("--rate", type=int, default=5000, help="small requests a second")
    parser.add_argument("--large-rate", type=int, default=5, help="large requests a second")
    parser.add_argument("--seconds", type=int, default=15, help="length of each measurement")
    parser.add_argument("--memory", default="512MiB")
    parser.add_argument("--sync", default="always")
    parser.add_argument("--dir", help="where data and results are, and stay [a fresh one, removed at the end]")
    parser.add_argument("--bin", default=str(harness.ROOT / "target/release"))
    parser.add_argument("--server-cpu", default="0")
    parser.add_argument("--generator-cpu", default="1")
    return parser.parse_args()


class Load:
    """Small requests, measured, and large ones beside them."""

    def __init__(self, args, server):
        self.args, self.server, self.rows, self.figures = args, server, [], {}

    def small(self, *flags):
        keys = ["--key-prefix", "small:", "--keys", SMALL_KEYS, "--distribution", "uniform", *flags]
        return bench(self.server, self.args.generator_cpu, *keys)

    def measure(self, name, *large):
        flags = ["--mix", "get=4,set=1", "--rate", self.args.rate, "--clients", 8, "--warmup", "1s"]
        flags += ["--duration", f"{self.args.seconds}s"]
        beside = None
        if large:
            report = Path(self.args.dir) / "large.json"
            flags_of_large = ["--rate", self.args.large_rate, "--clients", 1, "--pipeline", 4, "--duration", "1h"]
            beside = BackgroundBench(self.server, self.args.generator_cpu, report, *flags_of_large, *large, nice=19)
            beside.wait_for(0)
        report = self.small(*flags)
        done = beside.finish()["total"] if beside else {"ops": 0, "response_us": {"p50": 0}}
        row = [name, done["ops"], done["response_us"]["p50"] / 1000]
        for kind in ["get", "set"]:
            response = report["per_op"][kind]["response_us"]
            row += [response[quantile] / 1000 for quantile in ["p50", "p99.9", "max"]]
        self.rows.append(row)
        self.figures[name] = row


def main():
    args = arguments()
    args.dir, keep = harness.workspace(args.dir, "large")
    harness.prepare(args.generator_cpu)
    results = Results(args.dir, "large", vars(args))
    try:
        with Server(args.bin, Path(args.dir) / "atlaskv", args.server_cpu, args.memory, "--sync", args.sync) as server:
            load = Load(args, server)
            load.small("--preload-only", "--clients", 16, "--pipeline", 64)
            load.measure("nothing")
            for size in args.sizes.split(","):
                few = ["--key-prefix", f"{size}:", "--value-size", size, "--keys", 4, "--distribution", "uniform"]
                bench(server, args.generator_cpu, *few, "--preload-only", "--clients", 1)
                load.measure(f"get {size}", *few, "--mix", "get=1")
                load.measure(f"set {size}", *few, "--mix", "set=1")
                server.settle()
            for count in args.mget_keys.split(","):
                keys = ["--key-prefix", "small:", "--keys", SMALL_KEYS, "--mget-keys", count]
                load.measure(f"mget {count}", *keys, "--mix", "mget=1")
            results.put("atlaskv", "large", load.figures)
        head = ["beside", "large, done", "p50, ms", "GET p50, ms", "p99.9", "max", "SET p50, ms", "p99.9", "max"]
        table(head, load.rows)
    finally:
        if not keep:
            shutil.rmtree(args.dir)


if __name__ == "__main__":
    main()
