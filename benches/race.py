#!/usr/bin/env python3
"""A race: AtlasKV beside Redis, memcached, RocksDB's db_bench and fio, one core each, against targets set before.

For the record (an hour, and half an hour for target 8; 30 GiB of disk), on a machine with nothing else to do:
    cargo build --release --workspace
    benches/race.py --dir /var/tmp/race
To try it out (some minutes):
    benches/race.py --rounds 1 --seconds 1 --slow-minutes 0.1 --keys 100000 --keys-large 500000 --keys-huge 1000000
Some targets only, and what was kept:
    benches/race.py --dir /var/tmp/race --only 1,3,9b
    benches/race.py --dir /var/tmp/race --table --markdown table.md
Prints a Markdown table, with all figures, and leaves DIR/report.html. Every measurement is kept in DIR/results.json:
the same command goes on where a race was ended. Needs Python 3.11 and taskset; installs Debian's redis-server,
memcached, rocksdb-tools and fio where they are missing.

What makes it a comparison of like with like:
- One core (--server-cpu) for the server, with all that it does in the background; another for the generator. While
  one server is measured the others are stopped (SIGSTOP), so that none pays for another one's merges or rewrites.
- Rounds: each load on one server, then on the next, and all again. A ratio is taken within a round; its median over
  the rounds is judged, and shown with the least and the greatest.
- The same generator, atlaskv-bench with one thread, over Redis' protocol for AtlasKV too. Keys of 16 bytes, drawn
  uniformly, values of 100. Where the generator is what limits (its share of its core is in the report), both sides
  are faster than shown, and ratios are closer to 1 than they would be.
- `always`: every SET is answered when it is on disk, on both sides. All else as each server has it by default:
  Redis rewrites its log when it has doubled. The processor time of that, in a process of its own, is not counted for
  Redis; what it writes is.
Where a target needs more than that, its file in benches/race says how: shards.py (10, 11), disk.py (6, 7), restart.py
(12, 13), paced.py (8). What is measured for which target, and what is to be reached, is in targets.py.
"""

import argparse
import shutil
import sys
from pathlib import Path

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))
import harness
from harness import say

from race import disk, loads, paced, peers, report, restart, shards, targets
from race.kept import Kept

# What measures the loads of each, in the order of a race.
STAGES = [
    ("in memory", loads.LOADS, loads.run),
    ("shards", shards.LOADS, shards.run),
    ("disk", disk.LOADS, disk.run),
    ("restart", restart.LOADS, restart.run),
    ("paced", paced.LOADS, paced.run),
]
TITLES = {name: load.title for _, its_loads, _ in STAGES for name, load in its_loads.items()}
TITLES[loads.WRITES] = "all SETs of a round, and what they leave to do"
# Arguments that results depend on: a race goes on with the same ones only.
PARAMETERS = ["seconds", "keys", "keys_resident", "keys_huge", "log_mib", "paced_rate"]
PARAMETERS += ["keys_large", "slow_minutes", "memory", "memory_small", "server_cpu", "generator_cpu"]


def arguments():
    parser = argparse.ArgumentParser(description="AtlasKV and its peers, raced; see the top of this file.")
    parser.add_argument("--only", default="", help="targets, such as 1,3,9b [all]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10, help="length of each measurement")
    parser.add_argument("--keys", type=int, default=1_000_000, help="of data in memory")
    parser.add_argument("--slow-minutes", type=float, default=10, help="length of each run of target 8")
    parser.add_argument("--slow-rounds", type=int, default=1, help="of target 8")
    parser.add_argument("--keys-large", type=int, default=20_000_000, help="of data larger than --memory-small")
    parser.add_argument("--keys-resident", type=int, default=10_000_000, help="of target 12")
    parser.add_argument("--keys-huge", type=int, default=86_000_000, help="of the clean start: 10 GB")
    parser.add_argument("--log-mib", type=int, default=1024, help="of the log to recover, if memtables hold as much")
    parser.add_argument("--paced-rate", type=int, default=300_000, help="operations a second of target 10")
    parser.add_argument("--memory", default="2GiB", help="of AtlasKV with data in memory")
    parser.add_argument("--memory-small", default="256MiB", help="of AtlasKV, and of RocksDB, where data is on disk")
    parser.add_argument("--dir", help="where data and results are; results stay [a fresh one, removed at the end]")
    parser.add_argument("--bin", default=str(harness.ROOT / "target/release"))
    parser.add_argument("--server-cpu", default="0")
    parser.add_argument("--generator-cpu", default="1")
    parser.add_argument("--table", action="store_true", help="measure nothing, print what --dir has")
    parser.add_argument("--markdown", help="also write the short table to this file")
    parser.add_argument("--html", help="the report [DIR/report.html]")
    args = parser.parse_args()
    if args.table and not args.dir:
        parser.error("--table is of a race that was kept: give its --dir")
    if args.table and not (Path(args.dir) / "results.json").exists():
        parser.error(f"--table: there is no results.json in {args.dir}")
    if args.rounds < 1 or args.seconds <= 0:
        parser.error("--rounds and --seconds must be more than nothing")
    # As anyone would give it: not where things are here.
    places = ["dir", "bin", "table", "markdown", "html"]
    given = {name: value for name, value in vars(args).items() if value != parser.get_default(name)}
    words = [f"--{name.replace('_', '-')} {value}" for name, value in given.items() if name not in places]
    args.command = " ".join(["benches/race.py", *words])
    args.only = [name for name in args.only.split(",") if name]
    return args


class Race:
    """What all stages share."""

    def __init__(self, args, directory, kept):
        self.args, self.dir, self.kept, self.bin = args, directory, kept, Path(args.bin)
        # Of loads that take long there are fewer rounds.
        self.rounds_max = {"disk-set": 3, "paced-set": args.slow_rounds}

    def turns(self):
        return range(1, self.args.rounds + 1)

    def missing(self, wanted, turn, names):
        """What of these loads was not measured yet in this round, in order; who is first changes with the round."""
        pairs = []
        for name in names:
            if turn > self.rounds_max.get(name, turn):
                continue
            whos = [who for load, who in wanted if load == name]
            first = turn % len(whos) if whos else 0
            pairs += [(name, who) for who in whos[first:] + whos[:first] if not self.kept.has(name, who, turn)]
        return pairs


def measure(race, chosen):
    wanted = targets.pairs(chosen)
    names = {who for _, who in wanted}
    if "memcached" in names:
        harness.needs(race.bin / "atlaskv-bench", "memcached://")
    peers.install(names)
    about = {"machine": harness.machine(), "versions": peers.versions(race), "command": race.args.command}
    race.kept.begin({name: getattr(race.args, name) for name in PARAMETERS}, about)
    for title, its_loads, run in STAGES:
        its = [(load, who) for load, who in wanted if load in its_loads]
        todo = sum(len(race.missing(its, turn, its_loads)) for turn in race.turns())
        if todo:
            say(f"{title}: {todo} measurements to do")
            run(race, its)


def main():
    args = arguments()
    chosen = targets.chosen(args.only)
    directory, keep = harness.workspace(args.dir, "race")
    kept = Kept(directory)
    try:
        if not args.table:
            harness.prepare(args.generator_cpu)
            measure(Race(args, directory, kept), chosen)
        report.show(kept, chosen, TITLES)
        if args.markdown:
            Path(args.markdown).write_text(report.short_table(kept, chosen))
        html = Path(args.html) if args.html else directory / "report.html"
        html.write_text(report.html(kept, chosen, TITLES))
        if keep or args.html:
            say(f"report: {html}")
    finally:
        if not keep:
            shutil.rmtree(directory)


if __name__ == "__main__":
    main()
