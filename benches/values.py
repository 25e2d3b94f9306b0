#!/usr/bin/env python3
"""What values of each size cost in writing and in space, beside RocksDB without and with blob files, and beside what
blob files cost at best.

    cargo build --release --workspace
    benches/values.py                         some 20 minutes, 5 GB of disk below /var/tmp
    benches/values.py --sizes 64KiB --data 256MiB --memory 96MiB
    benches/values.py --sizes 4KiB --systems atlaskv --distribution zipfian
    benches/values.py --sizes 64KiB --data 256MiB --memory 96MiB --mib-per-second 8     so slow that merges keep up

For each size a store of --data is loaded, settles, and has its values written again --times times over, drawn
uniformly; then it settles again. Nothing is compressed, on either side. Of the second part:
- written: bytes that the process had written to disk, by the bytes of keys and values that it was given, log and
  settling included; for AtlasKV also by what: log, flushes, merges
- space: bytes on disk by the bytes of live keys and values, settled, without the log; peak: the most meanwhile, with it
Bytes need no quiet machine; rates (ops/s) do, and are there to see that nothing was slow for another reason.

RocksDB as in rocksdb.py, which says what makes it comparable; with blob files of 32 MiB for all values from 1 KiB on,
collected once a fifth of the oldest ones is garbage: which bounds their space to 1.25, the bound that AtlasKV's last
level keeps. Its overwrites are always uniform.

The column "blob files, by formula" is log and blob files alone, without the index that finds them. Files are filled in
order and collected oldest first. Values are drawn uniformly, so of a file that is collected when all of them take s
times the live data, there lives the share l with (1 - l) / -ln(l) = 1 / s, and each byte that is reclaimed has
l / (1 - l) copied: in all 1 / (1 - l) written for each that is given, and once more for the log.
"""

import argparse
import math
import shutil
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness
import rocksdb
from harness import MIB, Results, difference, say, table

BLOBS = (
    "--enable_blob_files=1 --min_blob_size=1024 --enable_blob_garbage_collection=1 "
    "--blob_garbage_collection_age_cutoff=1 --blob_garbage_collection_force_threshold=0.2 "
    f"--blob_file_size={32 * MIB} --blob_compaction_readahead_size={2 * MIB}"
)
SPACE_BOUND = 1.25


def arguments():
    parser = argparse.ArgumentParser(description="Values of each size; see the top of this file.")
    parser.add_argument("--sizes", default="100,4KiB,64KiB,1MiB")
    parser.add_argument("--data", default="1GiB", help="live keys and values")
    parser.add_argument("--times", type=float, default=3, help="how often each is written again")
    parser.add_argument("--memory", default="256MiB")
    parser.add_argument("--systems", default="atlaskv,rocksdb,blobs")
    parser.add_argument("--mib-per-second", type=float, help="of overwrites [as fast as it goes]")
    parser.add_argument("--distribution", default="uniform", help="of AtlasKV's overwrites; or zipfian")
    parser.add_argument("--dir", help="where data and results are, and stay [a fresh one, removed at the end]")
    parser.add_argument("--bin", default=str(harness.ROOT / "target/release"))
    parser.add_argument("--db-bench", default="db_bench")
    parser.add_argument("--server-cpu", default="0")
    parser.add_argument("--generator-cpu", default="1")
    args = parser.parse_args()
    # What the classes of rocksdb.py ask for beside these.
    args.relaxed_sync, args.compression_ratio = "none", 1.0
    args.atlaskv_flags, args.rocksdb_compression = "--compression none", "none"
    return args


def live_share(space):
    """l with (1 - l) / -ln(l) = 1 / space, by halving."""
    low, high = 1e-9, 1 - 1e-9
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if (1 - middle) / -math.log(middle) < 1 / space else (low, middle)
    return low


def atlaskv(args, results):
    system = rocksdb.AtlasKv(args, results)
    system.common[system.common.index("--distribution") + 1] = args.distribution
    shutil.rmtree(system.data, ignore_errors=True)
    many = max(1, min(64, 4 * MIB // rocksdb.VALUE))
    speed = ["--clients", 8, "--pipeline", many]
    with system.server(args.relaxed_sync) as server:
        system.run(server, "--preload-only", "--preload-order", "scattered", *speed)
        server.settle()
        before = server.stats()
        flags = ["--mix", "set=1", "--requests", int(args.keys * args.times), *speed]
        if args.mib_per_second:
            flags += ["--rate", max(1, round(args.mib_per_second * MIB / (rocksdb.KEY + rocksdb.VALUE)))]
        report, figures, after = system.writes(server, lambda report: report["total"]["ops"], *flags)
    user = figures["ops"] * (rocksdb.KEY + rocksdb.VALUE)
    counted = difference(after, before)
    figures["ops_per_second"] = report["total"]["ops_per_second"]
    for part, counter in [("log", "wal_bytes"), ("flushes", "flush_bytes"), ("merges", "compaction_bytes_out")]:
        figures[part] = counted[counter] / user
    shutil.rmtree(system.data)
    return figures


def rocks(args, results, flags=""):
    args.rocksdb_flags = flags
    system = rocksdb.RocksDb(args, results)
    shutil.rmtree(system.data, ignore_errors=True)
    system.db_bench("filluniquerandom", "--sync=0", "--threads=1")
    flags = ["--use_existing_db=1", f"--writes={int(args.keys * args.times)}", "--sync=0", "--threads=1"]
    if args.mib_per_second:
        flags.append(f"--benchmark_write_rate_limit={round(args.mib_per_second * MIB)}")
    figures, _ = system.db_bench("overwrite", *flags)
    shutil.rmtree(system.data)
    return figures


def report(results, sizes):
    rows = []
    formula = 1 + 1 / (1 - live_share(SPACE_BOUND))
    for size in sizes:
        for system in ["atlaskv", "rocksdb", "blobs"]:
            figures = results.get(system, size)
            if figures:
                live = figures["live_bytes"]
                space = (figures["bytes_on_disk"] - figures["bytes_of_log"]) / live
                parts = [figures.get(part) for part in ["log", "flushes", "merges"]]
                cells = [figures["write_amplification_settled"], *parts, space, figures["peak_bytes_on_disk"] / live]
                rows.append([f"{size}, {system}", *cells, figures["ops_per_second"]])
        rows.append([f"{size}, blob files, by formula", formula, 1, None, None, SPACE_BOUND, None, None])
    table(["", "written", "log", "flushes", "merges", "space", "peak", "ops/s"], rows)


def main():
    args = arguments()
    args.dir, keep = harness.workspace(args.dir, "values")
    harness.prepare(args.generator_cpu)
    systems = args.systems.split(",")
    if set(systems) - {"atlaskv"} and args.db_bench == "db_bench":
        harness.install("db_bench", "rocksdb-tools")
    results = Results(args.dir, "values", vars(args))
    actions = {"atlaskv": atlaskv, "rocksdb": rocks, "blobs": lambda *both: rocks(*both, flags=BLOBS)}
    sizes = args.sizes.split(",")
    try:
        for size in sizes:
            rocksdb.VALUE = harness.size(size)
            args.keys = harness.size(args.data) // (rocksdb.KEY + rocksdb.VALUE)
            live = args.keys * (rocksdb.KEY + rocksdb.VALUE)
            for system in systems:
                say(f"{system}: {args.keys} values of {size}")
                results.put(system, size, actions[system](args, results) | {"live_bytes": live})
        report(results, sizes)
    finally:
        if not keep:
            shutil.rmtree(args.dir)


if __name__ == "__main__":
    main()
