"""What a second shard costs each operation: targets 10 and 11.

Server and generators share two cores, since there may be no more. So two shards on two cores are compared with two
servers of one shard, one on each of the same cores. All else is the same on both sides: four generators, two to a
core; as much memory a shard. The binary protocol, whose clients know the shards if they are told to.

- paced: a fixed rate, and what is due within a tick goes together. A server alone has two generators, each of two
  shards has four, of whose requests every other one is its own: so these have ticks twice as long. Then a shard is
  woken as often, for as many requests on as many connections, as a server alone, and what differs is what is asked
  for: the cost of a request.
- pipelined: closed loops, 16 in flight on each connection. Clients that know the shards have a connection to each,
  and are half as many.
"""

import shutil
from dataclasses import dataclass

from harness import BackgroundBench, bench, say, size

from .loads import figures_of, keys
from .peers import AtlasKv

GENERATORS = 4
CONNECTIONS = 12  # of each generator
TICK_MS = 1  # of a generator whose server is alone


@dataclass(frozen=True)
class Load:
    title: str
    mix: str
    paced: bool = False


LOADS = {
    "shards-set": Load("SET, pipeline 16, both cores", "set"),
    "shards-set-paced": Load("SET at a fixed rate, both cores", "set", paced=True),
    "shards-get": Load("GET, pipeline 16, both cores", "get"),
    "shards-get-paced": Load("GET at a fixed rate, both cores", "get", paced=True),
}


def together(race, servers, cpus, flags):
    """A generator for each of these servers, on these cores, all at once; their reports."""
    running = []
    for at, (server, cpu) in enumerate(zip(servers, cpus)):
        report = race.dir / f"generator-{at}.json"
        running.append(BackgroundBench(server, cpu, report, *flags, "--seed", at + 1))
    for one in running:
        one.process.wait(3 * race.args.seconds + 60)
    return [one.finish() for one in running]


def measure(race, load, servers, knows):
    flags = [*keys(race), "--mix", f"{load.mix}=1", "--warmup", "1s", "--duration", f"{race.args.seconds}s"]
    shards = 2 if knows else 1
    flags += ["--shard-aware", "on" if knows else "off"]
    if load.paced:
        flags += ["--clients", CONNECTIONS, "--tick", f"{TICK_MS * shards}ms"]
        flags += ["--rate", race.args.paced_rate // GENERATORS, "--pipeline", 1024]
    else:
        flags += ["--clients", CONNECTIONS // shards, "--pipeline", 16 * shards]
    cpus = [race.args.server_cpu, race.args.generator_cpu] * 2
    reports = together(race, servers, cpus, flags)
    parts = [figures_of(report, load.mix) for report in reports]
    ops = sum(part["ops_per_second"] for part in parts)
    # Each generator reads the processor time of its server, for the same time as the others.
    cores = {}
    for server, report in zip(servers, reports):
        used = report["server_cpu"]["user_cores"] + report["server_cpu"]["system_cores"]
        cores.setdefault(server.pid, []).append(used)
    cpu = sum(sum(readings) / len(readings) for readings in cores.values())
    share = sum(part["generator_share"] for part in parts)
    return {"ops_per_second": ops, "cpu_micros_per_op": cpu * 1e6 / ops, "generator_share": share}


def start(race, name, cpus, shards):
    memory = str(shards * size(race.args.memory) // 2)
    server = AtlasKv(race, name, "--sync", "always", cpus=cpus, shards=shards, memory=memory, binary=True)
    bench(server, race.args.generator_cpu, *keys(race), "--preload-only", "--clients", 50, "--pipeline", 16)
    return server


def run(race, wanted):
    first, second = race.args.server_cpu, race.args.generator_cpu
    say(f"starting servers on cores {first} and {second}")
    both = start(race, "two-shards", f"{first},{second}", 2)
    alone = [start(race, f"one-shard-{at}", cpu, 1) for at, cpu in enumerate([first, second])]
    # Half of the generators of each single server share its core, as half of the requests of the others do.
    servers = {"one-shard": [alone[0], alone[0], alone[1], alone[1]]}
    servers |= {name: [both] * GENERATORS for name in ["two-shards", "two-shards-unaware"]}
    for turn in race.turns():
        for mix in ["set", "get"]:
            settle(race, [both, *alone], mix == "get")
            for load, who in race.missing(wanted, turn, [name for name in LOADS if LOADS[name].mix == mix]):
                for server in [both, *alone]:
                    (server.go if server in servers[who] else server.hold)()
                race.kept.keep(load, who, turn, measure(race, LOADS[load], servers[who], who == "two-shards"))
    for server in [both, *alone]:
        server.stop()
        shutil.rmtree(server.data)


def settle(race, servers, reads):
    """Lets merges end; what reads finds what it reads in memory."""
    for server in servers:
        server.go()
    for server in servers:
        server.rest()
        if reads:
            warm = ["--mix", "get=1", "--clients", 50, "--pipeline", 64, "--duration", "2s"]
            bench(server, race.args.generator_cpu, *keys(race), *warm)
