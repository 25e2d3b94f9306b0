#!/usr/bin/env python3
"""Short scans by number of tablets, beside RocksDB's; a full scan beside the disk, and what it does to a hot set.

For the record, about half an hour:
    cargo build --release --workspace
    benches/scans.py --dir /var/tmp/scans
    benches/scans.py --dir /var/tmp/record --phase full         (the 20 million keys that rocksdb.py left)
To try it out (about three minutes):
    benches/scans.py --keys 100000 --cached-keys 20000 --seconds 2 --tablets 1,16 --memory 128MiB
Phases, of which --phase takes a list:
    short  scans of 100 entries from random keys on, one core: of a data set that fits the block cache (cached, after
           every block was read) and of one many times as large (cold), of keys without a hash tag, whose order runs
           through all tablets, and of keys of which 1,000 neighbours share one, so that a scan asks one tablet.
           A store is loaded for each, with --tablets 1, 16, 64. RocksDB: seekrandom with 100 nexts, same data sizes,
           flags as in rocksdb.py, the same number of scans in flight (--readers).
    full   the disk's sequential rate (fio, 1 MiB direct reads, 8 in flight), then a scan of every key on one core
           while a hot set, half as large as the block cache, is read at a fixed rate. Its hit rate is the share of
           GETs that needed no disk: in the seconds before the scan, during it, and after it.
Needs Python 3 and taskset; installs Debian's rocksdb-tools and fio if they are missing.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness
import rocksdb
from harness import MIB, BackgroundBench, Results, Server, bench, difference, process_io, ratio, sample, say, table

PHASES = ["short", "full"]
ENTRIES = 100
TAG_KEYS = 1000
KEY, VALUE = 16, 100


def arguments():
    parser = argparse.ArgumentParser(description="Short and full scans; see the top of this file.")
    parser.add_argument("--dir", help="where data and results are, and stay [a fresh one, removed at the end]")
    parser.add_argument("--keys", type=int, default=5_000_000, help="of the cold data sets; many times the cache")
    parser.add_argument("--cached-keys", type=int, default=400_000, help="of those that fit the block cache")
    parser.add_argument("--memory", default="256MiB")
    parser.add_argument("--tablets", default="1,16,64")
    parser.add_argument("--seconds", type=int, default=20, help="length of each measurement")
    parser.add_argument("--readers", type=int, default=16, help="scans in flight")
    parser.add_argument("--hot-rate", type=int, default=5000, help="GETs a second beside the full scan")
    parser.add_argument("--phase", default=",".join(PHASES))
    parser.add_argument("--systems", default="atlaskv,rocksdb")
    parser.add_argument("--bin", default=str(harness.ROOT / "target/release"))
    parser.add_argument("--db-bench", default="db_bench")
    parser.add_argument("--server-cpu", default="0")
    parser.add_argument("--generator-cpu", default="1")
    parser.add_argument("--compression-ratio", type=float, default=0.5)
    parser.add_argument("--rocksdb-compression")
    parser.add_argument("--rocksdb-flags", default="")
    args = parser.parse_args()
    args.phase, args.systems = args.phase.split(","), args.systems.split(",")
    args.tablets = [int(count) for count in args.tablets.split(",")]
    if unknown := set(args.phase) - set(PHASES):
        parser.error(f"there is no phase {unknown.pop()!r}")
    return args


def load(args, server, keys, *flags):
    common = ["--keys", keys, "--key-size", KEY, "--value-size", VALUE, "--compression-ratio", args.compression_ratio]
    order = ["--preload-only", "--preload-order", "scattered", "--clients", 16, "--pipeline", 64]
    bench(server, args.generator_cpu, *common, *flags, *order)
    server.settle()


# Short scans


def short_of_atlaskv(args, tablets, keys, tagged, warm):
    """Loads a store and scans it."""
    name = f"scans-{tablets}-{'tagged' if tagged else 'untagged'}-{keys}"
    data = Path(args.dir) / name
    tags = ["--tag-keys", TAG_KEYS] if tagged else []
    flags = ["--tablets", str(tablets), "--sync", "interval=1000"]
    if not data.exists():
        say(f"loading {name}")
        with Server(args.bin, data, args.server_cpu, args.memory, *flags) as server:
            load(args, server, keys, *tags)
    # Without --tablets: the store has its number.
    with Server(args.bin, data, args.server_cpu, args.memory, *flags[2:]) as server:
        server.settle()
        load_flags = ["--keys", keys, "--key-size", KEY, *tags, "--distribution", "uniform"]
        load_flags += ["--mix", "scan=1", "--scan-limit", ENTRIES, "--clients", args.readers, "--pipeline", 1]
        if warm:
            server.cli("scan", "--count-only")
            load_flags += ["--warmup", f"{args.seconds}s"]
        before = sample(server.pid)
        report = bench(server, args.generator_cpu, *load_flags, "--duration", f"{args.seconds}s")
        read = difference(sample(server.pid), before)["read"]
    scans = report["per_op"]["scan"]
    figures = {"scans_per_second": scans["ops_per_second"], "response_us": scans["response_us"]}
    figures["cpu_micros_per_scan"] = (report["server_cpu"] or {}).get("micros_per_op")
    return figures | {"bytes_read_per_scan": read / max(1, scans["ops"] + scans["drained"])}


def short_of_rocksdb(args, keys, warm):
    one = argparse.Namespace(**vars(args))
    one.keys, one.dir = keys, Path(args.dir) / f"scans-rocksdb-{keys}"
    fresh = not one.dir.exists()
    one.dir.mkdir(exist_ok=True)
    store = rocksdb.RocksDb(one, None)
    if fresh:
        say(f"loading RocksDB with {keys} keys")
        store.db_bench("filluniquerandom", "--sync=0", "--threads=1")
    flags = ["--use_existing_db=1", f"--threads={args.readers}", f"--seek_nexts={ENTRIES}"]
    flags.append(f"--duration={args.seconds}")
    before = ["readseq"] if warm else []
    figures, _ = store.db_bench("seekrandom", *flags, settle=False, before=before)
    return {
        "scans_per_second": figures["ops_per_second"],
        "cpu_micros_per_scan": figures["cpu_micros_per_op"],
        "bytes_read_per_scan": figures["bytes_read_per_op"],
    }


def short(args, results):
    rows = []
    for heat, keys in [("cached", args.cached_keys), ("cold", args.keys)]:
        theirs = {}
        if "rocksdb" in args.systems:
            theirs = short_of_rocksdb(args, keys, heat == "cached")
            results.put("rocksdb", f"short-{heat}", theirs)
            cells = [theirs["scans_per_second"], theirs["cpu_micros_per_scan"], theirs["bytes_read_per_scan"]]
            rows.append(["RocksDB", heat, "", *cells, 1.0, None])
        for tablets in args.tablets if "atlaskv" in args.systems else []:
            for tagged in [False, True]:
                figures = short_of_atlaskv(args, tablets, keys, tagged, heat == "cached")
                tag = "one tag" if tagged else "untagged"
                results.put("atlaskv", f"short-{heat}-{tablets}-{tag}", figures)
                share = ratio(figures["scans_per_second"], theirs.get("scans_per_second"))
                cells = [figures["scans_per_second"], figures["cpu_micros_per_scan"], figures["bytes_read_per_scan"]]
                rows.append([f"AtlasKV, {tablets} tablet(s)", heat, tag, *cells, share, figures["response_us"]["p99"]])
    head = [f"scans of {ENTRIES}", "", "", "scans/s", "CPU-us/scan", "disk bytes/scan", "of RocksDB's", "p99, us"]
    table(head, rows)


# The full scan


def sequential_rate(directory, seconds):
    """Bytes a second that the disk delivers to large direct reads in order."""
    file = Path(directory) / "fio.tmp"
    command = ["fio", "--name=sequential", f"--filename={file}", "--size=2G", "--rw=read", "--bs=1M", "--direct=1"]
    command += ["--ioengine=libaio", "--iodepth=8", "--time_based", f"--runtime={seconds}", "--output-format=json"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    finally:
        file.unlink(missing_ok=True)
    return json.loads(output[output.index("{") :])["jobs"][0]["read"]["bw_bytes"]


def full(args, results):
    harness.install("fio", "fio")
    rate = sequential_rate(args.dir, args.seconds)
    say(f"the disk delivers {rate / MIB:.0f} MiB/s")
    data = Path(args.dir) / "atlaskv"
    if not data.exists():
        with Server(args.bin, data, args.server_cpu, args.memory, "--sync", "interval=1000") as server:
            load(args, server, args.keys)
    hot_keys = harness.memory_shares(harness.size(args.memory))["caches"] * 3 // 8 // (KEY + VALUE)
    with Server(args.bin, data, args.server_cpu, args.memory) as server:
        server.settle()
        alone = scan(server)
        say(f"{alone['entries']} entries alone in {alone['seconds']:.1f} s; now beside a hot set of {hot_keys} keys")
        flags = ["--keys", min(hot_keys, alone["entries"]), "--key-size", KEY, "--distribution", "uniform"]
        # What is hot has been read some times before it is measured.
        bench(server, args.generator_cpu, *flags, "--mix", "get=1", "--requests", hot_keys * 4, "--clients", 16,
              "--pipeline", 16)  # fmt: skip
        flags += ["--mix", "get=1", "--rate", args.hot_rate, "--clients", 16, "--duration", "1h"]
        hot = BackgroundBench(server, args.generator_cpu, Path(args.dir) / "hot.json", *flags)
        hot.wait_for(2)
        before = hit_rate(server, args.seconds)
        stats, began = server.stats(), hot.second
        beside = scan(server)
        during, ended = hits(difference(server.stats(), stats)), hot.second
        after = hit_rate(server, args.seconds)
        timeline = hot.finish()["timeline"]
    worst = max((point["max_us"] for point in timeline if began <= point["second"] <= ended + 1), default=None)
    shares = [alone["disk_bytes_per_second"] / rate, beside["disk_bytes_per_second"] / rate]
    figures = {"sequential_bytes_per_second": rate, "alone": alone, "beside": beside, "share_of_sequential": shares}
    figures |= {"hit_rate": {"before": before, "during": during, "after": after}, "max_get_us_during": worst}
    results.put("atlaskv", "full", figures)
    head = ["full scan", "entries/s", "disk, MiB/s", "of sequential", "hot set's hits before", "during", "after"]
    cells = lambda one, share: [one["entries"] / one["seconds"], one["disk_bytes_per_second"] / MIB, share]
    hits_cells = [f"{100 * value:.2f} %" for value in (before, during, after)]
    rows = [["alone", *cells(alone, shares[0]), None, None, None]]
    table(head, rows + [["beside a hot set", *cells(beside, shares[1]), *hits_cells]])


def scan(server):
    """A scan of everything: entries, time, what the process read from the disk for it and beside it."""
    before, begin = process_io(server.pid)["read"], time.monotonic()
    entries = int(server.cli("scan", "--count-only", timeout=3600).split()[0])
    seconds = time.monotonic() - begin
    read = process_io(server.pid)["read"] - before
    return {"entries": entries, "seconds": seconds, "disk_bytes": read, "disk_bytes_per_second": read / seconds}


def hits(change):
    """Share of the GETs between two copies of the counters that needed no disk."""
    return 1 - change["disk_waits"] / max(1, change["gets"])


def hit_rate(server, seconds):
    before = server.stats()
    time.sleep(seconds)  # a window of measurement, not a wait for something
    return hits(difference(server.stats(), before))


def main():
    args = arguments()
    if "atlaskv" in args.systems:
        cli, generator = Path(args.bin) / "atlaskv-cli", Path(args.bin) / "atlaskv-bench"
        harness.needs(cli, "scan")
        harness.needs(cli, "--count-only", "scan")
        if "short" in args.phase:
            harness.needs(generator, "--scan-limit")
            harness.needs(Path(args.bin) / "atlaskv", "--tablets")
    if "rocksdb" in args.systems and args.db_bench == "db_bench":
        harness.install("db_bench", "rocksdb-tools")
    args.dir, keep = harness.workspace(args.dir, "scans")
    harness.prepare(args.generator_cpu)
    results = Results(args.dir, "scans", vars(args))
    try:
        for phase in args.phase:
            say(phase)
            {"short": short, "full": full}[phase](args, results)
    finally:
        if not keep:
            shutil.rmtree(args.dir)


if __name__ == "__main__":
    main()
