"""Loads on servers that are in memory, as far as what is read goes: targets 1 to 5, 9 and 9b."""

import os
import shutil
from dataclasses import dataclass

from harness import BackgroundBench, bench, difference, sample, say

from . import peers

KEY, VALUE = 16, 100


@dataclass(frozen=True)
class Load:
    title: str
    mix: str
    clients: int
    pipeline: int
    # Clients that SET meanwhile, one request at a time each.
    writers: int = 0

    def flags(self):
        return ["--mix", f"{self.mix}=1", "--clients", self.clients, "--pipeline", self.pipeline]


# In this order: what reads comes when what wrote has come to rest, and what writes beside readers last.
LOADS = {
    "set-p64": Load("SET, 50 connections, pipeline 64", "set", 50, 64),
    "set-p16": Load("SET, 50 connections, pipeline 16", "set", 50, 16),
    "set-p1": Load("SET, 50 connections, pipeline 1", "set", 50, 1),
    "set-alone": Load("SET, one at a time", "set", 1, 1),
    "get-p64": Load("GET, 50 connections, pipeline 64", "get", 50, 64),
    "get-p16": Load("GET, 50 connections, pipeline 16", "get", 50, 16),
    "get-p1": Load("GET, 50 connections, pipeline 1", "get", 50, 1),
    "get-alone": Load("GET, one at a time", "get", 1, 1),
    "get-quiet": Load("GET, 50 connections, nobody writes", "get", 50, 1),
    "get-beside": Load("GET, 50 connections, beside 8 that SET", "get", 50, 1, writers=8),
}
# Beside those, of all SETs of a round.
WRITES = "set-all"


def figures_of(report, mix):
    """Of a report of the load generator what the race keeps."""
    if report["refusals"]["count"]:
        raise SystemExit(f"the server refused requests: {report['refusals']['samples'][:3]}")
    record = report["per_op"][mix]
    if record["missing"]:
        raise SystemExit(f"{record['missing']} keys were not there, of {record['ops']} asked for")
    latency = record["response_us"]
    figures = {"ops_per_second": record["ops_per_second"]}
    figures["cpu_micros_per_op"] = (report["server_cpu"] or {}).get("micros_per_op")
    figures |= {f"{name}_us": latency[name] for name in ["mean", "p50", "p90", "p99", "p99.9", "max"]}
    figures["generator_share"] = report["generator_cpu"]["busiest_share"]
    return figures


def keys(race):
    sizes = ["--keys", race.args.keys, "--key-size", KEY, "--value-size", VALUE]
    return [*sizes, "--distribution", "uniform", "--threads", 1]


def measure(race, peer, load):
    """One load on one server. Its writers, if it has some, are a process of their own on the generator's core."""
    timing = ["--warmup", "1s", "--duration", f"{race.args.seconds}s"]
    flags = [*keys(race), *load.flags(), *timing]
    if not load.writers:
        return figures_of(bench(peer, race.args.generator_cpu, *flags), load.mix)
    long = ["--duration", f"{2 * race.args.seconds + 30}s", "--seed", 2]
    writers = ["--mix", "set=1", "--clients", load.writers, "--pipeline", 1]
    report = race.dir / "writers.json"
    beside = BackgroundBench(peer, race.args.generator_cpu, report, *keys(race), *writers, *long)
    beside.wait_for(1)
    figures = figures_of(bench(peer, race.args.generator_cpu, *flags), load.mix)
    figures["writers"] = figures_of(beside.finish(), "set")
    # Processor time of what both asked for is no figure of either.
    figures["cpu_micros_per_op"] = None
    return figures


class Stage:
    """Rounds of these loads over the servers that were started for them."""

    def __init__(self, race, wanted):
        self.race, self.wanted, self.kept = race, wanted, race.kept
        names = [name for name in peers.START if any(who == name for _, who in wanted)]
        say(f"starting {', '.join(names)}, and setting {race.args.keys:,} keys in each")
        self.peers = {}
        for name in names:
            peer = self.peers[name] = peers.START[name](race)
            bench(peer, race.args.generator_cpu, *keys(race), "--preload-only", "--clients", 50, "--pipeline", 16)
            peer.rest()
            peer.hold()

    def run(self):
        for turn in self.race.turns():
            for mix in ["set", "get"]:
                its = [name for name, load in LOADS.items() if load.mix == mix]
                if pairs := self.race.missing(self.wanted, turn, its):
                    self.round(turn, pairs, mix)

    def round(self, turn, pairs, mix):
        """Each load on one server after the other, once all are at rest."""
        names = sorted({name for _, name in pairs})
        before = {name: self.ready(name, reads=mix == "get") for name in names}
        asked = dict.fromkeys(names, 0)
        for load, name in pairs:
            figures = self.turn_of(name, load)
            asked[name] += figures["ops_per_second"] * (1 + self.race.args.seconds) * (KEY + VALUE)
            self.kept.keep(load, name, turn, figures)
        if mix == "set":
            for name in names:
                self.account(turn, name, before[name], asked[name])

    def turn_of(self, name, load):
        # What others wrote and did not ask to have on disk is out of the way of who does.
        os.sync()
        peer = self.peers[name]
        peer.go()
        try:
            return measure(self.race, peer, LOADS[load])
        finally:
            peer.hold()

    def ready(self, name, reads=False):
        """Its counters once it has done what it had put off and, if it is to read, has read what it will hold."""
        peer = self.peers[name]
        peer.go()
        peer.rest()
        if reads:
            bench(peer, self.race.args.generator_cpu, *keys(self.race), *LOADS["get-p64"].flags(), "--duration", "2s")
        counters = sample(peer.pid)
        peer.hold()
        return counters

    def account(self, turn, name, before, asked):
        """What all SETs of the round caused to be written, merges and rewrites that they left due included."""
        written = difference(self.ready(name), before)["written"]
        self.kept.keep(WRITES, name, turn, {"write_amplification": written / asked})

    def end(self):
        for name, peer in self.peers.items():
            peer.stop()
            shutil.rmtree(self.race.dir / name, ignore_errors=True)


def run(race, wanted):
    stage = Stage(race, wanted)
    try:
        stage.run()
    finally:
        stage.end()
