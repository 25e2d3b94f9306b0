#!/usr/bin/env python3
"""Tablets between cores: restarts with other core counts; moves and splits under load.

For the record, on the data that rocksdb.py left (20 million keys), about ten minutes:
    cargo build --release --workspace
    benches/rocksdb.py --dir /var/tmp/record --phase load --systems atlaskv
    benches/moves.py --dir /var/tmp/record
To try it out, on keys of its own (about a minute):
    benches/moves.py --keys 100000 --memory 128MiB --rate 2000 --moves 20 --splits 2
Phases, of which --phase takes a list:
    restart  stops the server of one core, starts it with two, and with one again. Time until it is ready, bytes
             written until then, bytes of tables that are new, hash of a full scan before and after.
    moves    a server with two cores under an open loop of GET, SET and INCR on keys of its own, each value read
             verified, while tablets move from core to core and split. The longest pause is the longest time that a
             request took, counted from when it was due. Beside it the same for the seconds before the first move.
             Afterwards, and after a restart: the hash of a scan of the other keys is as before, no key of the load
             is missing, and the counters add up to the INCRs that were acknowledged.
The last line says whether all checks held; the exit code as well. With two CPUs the generator shares one of them with
a shard, so part of every pause is its own; with more CPUs give --server-cpus 0,1 --generator-cpu 2.
"""

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness
from harness import MIB, BackgroundBench, Results, Server, bench, digest, process_io, say, table

PHASES = ["restart", "moves"]
LOAD_PREFIX = "mov:"


def arguments():
    parser = argparse.ArgumentParser(description="Tablets between cores; see the top of this file.")
    parser.add_argument("--dir", help="where data is, or will be, and results [a fresh one, removed at the end]")
    parser.add_argument("--keys", type=int, default=20_000_000, help="keys to load if there is no data yet")
    parser.add_argument("--memory", default="256MiB")
    parser.add_argument("--phase", default=",".join(PHASES))
    parser.add_argument("--bin", default=str(harness.ROOT / "target/release"))
    parser.add_argument("--server-cpus", default="0,1")
    parser.add_argument("--generator-cpu", default="1")
    parser.add_argument("--sync", default="always")
    parser.add_argument("--rate", type=int, default=20_000, help="requests a second during moves")
    parser.add_argument("--load-keys", type=int, default=100_000, help="keys that those requests are for")
    parser.add_argument("--moves", type=int, default=100)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--tablets", type=int, default=16, help="tablets that the data directory has, numbered from 0")
    args = parser.parse_args()
    args.phase = args.phase.split(",")
    if unknown := set(args.phase) - set(PHASES):
        parser.error(f"there is no phase {unknown.pop()!r}")
    return args


class Checks:
    """What must hold, and whether it did."""

    def __init__(self):
        self.failed = []

    def that(self, holds, what):
        say(f"{'holds' if holds else 'FAILS'}: {what}")
        if not holds:
            self.failed.append(what)


def tables(data):
    """The inodes of all tables with their bytes."""
    found = {}
    for folder, _, names in os.walk(data):
        for name in (name for name in names if name.endswith(".sst")):
            stat = os.stat(os.path.join(folder, name))
            found[stat.st_ino] = stat.st_size
    return found


def start(args, data, shards):
    cpus = args.server_cpus if shards > 1 else args.server_cpus.split(",")[0]
    return Server(args.bin, data, cpus, args.memory, "--sync", args.sync, shards=shards)


def load(args, data):
    say(f"loading {args.keys} keys")
    with start(args, data, 1) as server:
        flags = ["--keys", args.keys, "--value-size", 100, "--compression-ratio", 0.5, "--clients", 16]
        bench(server, args.generator_cpu, *flags, "--pipeline", 64, "--preload-only", "--preload-order", "scattered")
        server.settle()


def restart(args, data, results, checks):
    with start(args, data, 1) as server:
        server.settle()
        before = digest(server)
        say(f"scanned {before['bytes'] / MIB:.0f} MiB in {before['seconds']:.1f} s")
    rows, figures = [], {"scan": before}
    for shards in [2, 1]:
        held = tables(data)
        with start(args, data, shards) as server:
            written = server.start_io["written"]
            server.settle()
            settled = process_io(server.pid)["written"]
            fresh = sum(size for inode, size in tables(data).items() if inode not in held)
            after = digest(server)
        same = (after["sha256"], after["bytes"]) == (before["sha256"], before["bytes"])
        checks.that(same, f"a scan with {shards} core(s) finds what it found before the restart")
        rows.append([f"{shards} core(s)", server.start_seconds, written / MIB, settled / MIB, fresh / MIB, same])
        keys = ["ready_seconds", "written_until_ready", "written_until_settled", "bytes_of_new_tables", "same"]
        figures[f"cores_{shards}"] = dict(
            zip(keys, [server.start_seconds, written, settled, fresh, same], strict=True)
        )
    results.put("atlaskv", "restart", figures)
    table(["restart with", "ready after, s", "written until ready, MiB", "until settled", "new tables", "same"], rows)


def moves(args, data, results, checks):
    common = ["--key-prefix", LOAD_PREFIX, "--keys", args.load_keys, "--clients", 16]
    with start(args, data, 2) as server:
        bench(server, args.generator_cpu, *common, "--pipeline", 16, "--preload-only")
        before, counted = digest(server, "key:"), counters(server)
        for tablet in range(args.tablets):  # from here on it is known who owns what
            server.cli("rebalance", "--move", str(tablet), str(tablet % 2))
        flags = ["--mix", "get=45,set=45,incr=10", "--rate", args.rate, "--distribution", "uniform", "--verify"]
        load = BackgroundBench(server, args.generator_cpu, Path(args.dir) / "moves-load.json", *common, *flags,
                               "--duration", "1h", "--pipeline", 1024)  # fmt: skip
        load.wait_for(10)
        began, move_times, split_times = load.second, [], []
        for number in range(args.moves):
            tablet = number % args.tablets
            shard = (tablet + 1 + number // args.tablets) % 2
            move_times.append(timed(server, "rebalance", "--move", str(tablet), str(shard)))
        for tablet in range(args.splits):
            split_times.append(timed(server, "rebalance", "--split", str(tablet)))
        ended = load.second + 1
        load.wait_for(ended + 3)
        report = load.finish()
        stats = server.stats()
        verify_load(args, server, report, checks, counted)
        checks.that(same_data(digest(server, "key:"), before), "a scan of the other keys finds what it found before")
    with start(args, data, 2) as server:
        checks.that(same_data(digest(server, "key:"), before), "and after a restart")
    pause = lambda points: max((point["max_us"] for point in points), default=0) / 1000
    line = report["timeline"]
    quiet = [point for point in line if point["second"] < began - 1]
    busy = [point for point in line if began - 1 <= point["second"] <= ended + 2]
    figures = {
        "moves": len(move_times),
        "splits": len(split_times),
        "longest_pause_ms": pause(busy),
        "longest_pause_before_ms": pause(quiet),
        "move_command_ms": [max(move_times) * 1000, sum(move_times) / len(move_times) * 1000],
        "split_command_ms": [max(split_times) * 1000] if split_times else None,
        "seconds": ended - began,
        "rate_achieved": report["open_loop"]["rate_achieved"],
        "per_op": report["per_op"],
        "stats": stats,
    }
    results.put("atlaskv", "moves", figures)
    head = ["", "longest pause, ms", "of the seconds before", "a move's command, at most, ms", "achieved, ops/s"]
    title = f"{args.moves} moves, {args.splits} splits"
    table(head, [[title, pause(busy), pause(quiet), max(move_times) * 1000, figures["rate_achieved"]]])


def timed(server, *words):
    begin = time.monotonic()
    server.cli(*words)
    return time.monotonic() - begin


def same_data(one, other):
    return (one["sha256"], one["bytes"]) == (other["sha256"], other["bytes"])


def counters(server):
    """The sum of all counters: their names have an n where those of values have a zero."""
    lines = server.cli("scan", "--prefix", f"{LOAD_PREFIX}n").splitlines()
    return sum(int(line.split()[-1]) for line in lines)


def verify_load(args, server, report, checks, counted):
    checks.that(report["mismatches"]["count"] == 0, "every value read was one written to its key")
    checks.that(report["refusals"]["count"] == 0, "no request was refused")
    checks.that(report["unanswered"] == 0, "every request was answered")
    missing = report["per_op"]["get"]["missing"]
    checks.that(missing == 0, f"no GET missed a key ({missing})")
    count = int(server.cli("scan", "--prefix", f"{LOAD_PREFIX}0", "--count-only").split()[0])
    checks.that(count == args.load_keys, f"{count} of {args.load_keys} keys of the load are there")
    incr = report["per_op"]["incr"]
    done = incr["ops"] + incr["drained"] - incr["errors"]
    total = counters(server) - counted
    checks.that(total == done, f"the counters add up to {total}, {done} INCRs were acknowledged")


def main():
    args = arguments()
    cli = Path(args.bin) / "atlaskv-cli"
    harness.needs(cli, "scan")
    harness.needs(cli, "--count-only", "scan")
    if "moves" in args.phase:
        harness.needs(cli, "--move", "rebalance")
        harness.needs(cli, "--split", "rebalance")
    args.dir, keep = harness.workspace(args.dir, "moves")
    harness.prepare(args.generator_cpu)
    results = Results(args.dir, "moves", vars(args))
    checks, data = Checks(), Path(args.dir) / "atlaskv"
    try:
        if not data.exists():
            load(args, data)
        for phase in args.phase:
            say(phase)
            {"restart": restart, "moves": moves}[phase](args, data, results, checks)
    finally:
        if not keep:
            shutil.rmtree(args.dir)
    print("all checks held" if not checks.failed else f"FAILED: {'; '.join(checks.failed)}")
    sys.exit(1 if checks.failed else 0)


if __name__ == "__main__":
    main()
