"""Servers that race: AtlasKV, Redis with and without its log, memcached. Each is pinned to the servers' core, on a
port of its own, and is stopped (SIGSTOP) while another one is measured: what it does in the background (merges,
rewrites of a log) takes of its own time alone.
"""

import atexit
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import harness
from harness import Server, say, spawn

START_SECONDS = 30


class Redis:
    """A redis-server with these settings; what is not given is as Redis has it."""

    def __init__(self, race, name, *settings):
        self.name, self.bin = name, race.bin
        directory = race.dir / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        self.port = free_port()
        command = ["taskset", "-c", race.args.server_cpu, "redis-server", "--bind", "127.0.0.1"]
        command += ["--port", str(self.port), "--dir", directory, "--save", "", *settings]
        self.start(command, race.dir / f"{name}.log")

    def start(self, command, log, scheme="redis"):
        # In a process group of its own, with the children that Redis makes to rewrite its log.
        with open(log, "a") as out:
            self.process = spawn(command, stdout=out, stderr=out, start_new_session=True)
        # Its children would outlive this script else.
        atexit.register(self.stop)
        self.pid, self.log = self.process.pid, log
        self.target = f"{scheme}://127.0.0.1:{self.port}"
        begin = time.monotonic()
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() - begin > START_SECONDS:
                raise SystemExit(f"{self.name} did not start within {START_SECONDS} s; see {log}")
            time.sleep(0.05)

    def answers(self):
        try:
            return self.ask("PING").startswith("+PONG")
        except OSError:
            return False

    def ask(self, line):
        """One command, without spaces in its arguments; what the first reply begins with."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=START_SECONDS) as connection:
            connection.sendall(f"{line}\r\n".encode())
            return connection.recv(1 << 16).decode(errors="replace")

    def is_rewriting(self):
        info = self.ask("INFO persistence")
        return "aof_rewrite_in_progress:1" in info or "aof_rewrite_scheduled:1" in info

    def rest(self, limit=300):
        """Waits until nothing goes on in the background."""
        begin = time.monotonic()
        while self.is_rewriting():
            if time.monotonic() - begin > limit:
                say(f"WARNING: {self.name} was still rewriting its log after {limit} s")
                return
            time.sleep(0.2)

    def hold(self):
        os.killpg(self.pid, signal.SIGSTOP)

    def go(self):
        os.killpg(self.pid, signal.SIGCONT)

    def stop(self):
        """Ends it with its children. Nobody needs its data any more."""
        if self.process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self.process.wait()


class Memcached(Redis):
    def __init__(self, race, name):
        self.name, self.bin, self.port = name, race.bin, free_port()
        command = ["taskset", "-c", race.args.server_cpu, "memcached", "-l", "127.0.0.1", "-p", str(self.port)]
        # One thread, memory for all keys, and as root it wants to be told who to be.
        command += ["-U", "0", "-t", "1", "-m", "1024"] + (["-u", "root"] if os.geteuid() == 0 else [])
        self.start(command, race.dir / f"{name}.log", "memcached")

    def answers(self):
        try:
            return self.ask("version").startswith("VERSION")
        except OSError:
            return False

    def rest(self):
        pass


class AtlasKv(Server):
    """AtlasKV, which is spoken to as Redis is unless `binary`."""

    def __init__(self, race, name, *flags, memory=None, cpus=None, shards=1, fresh=True, binary=False):
        self.name = name
        if fresh:
            shutil.rmtree(race.dir / name, ignore_errors=True)
        cpus, memory = cpus or race.args.server_cpu, memory or race.args.memory
        super().__init__(race.bin, race.dir / name, cpus, memory, *flags, shards=shards)
        if not binary:
            self.target = f"redis://{self.address}"

    def rest(self):
        self.settle(quiet=2, limit=300)

    def hold(self):
        os.kill(self.pid, signal.SIGSTOP)

    def go(self):
        os.kill(self.pid, signal.SIGCONT)

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.log.close()

    def stop(self, seconds=120):
        if self.process.poll() is None:
            self.go()
        return super().stop(seconds)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


REDIS_ALWAYS = ["--appendonly", "yes", "--appendfsync", "always"]
REDIS_MEMORY = ["--appendonly", "no"]

START = {
    "atlaskv": lambda race: AtlasKv(race, "atlaskv", "--sync", "always"),
    "redis-always": lambda race: Redis(race, "redis-always", *REDIS_ALWAYS),
    "redis": lambda race: Redis(race, "redis", *REDIS_MEMORY),
    "memcached": lambda race: Memcached(race, "memcached"),
}


def install(names):
    """What the contestants need, from Debian."""
    needs = {
        "redis": ("redis-server", "redis-server"),
        "redis-always": ("redis-server", "redis-server"),
        "memcached": ("memcached", "memcached"),
        "rocksdb": ("db_bench", "rocksdb-tools"),
        "rocksdb-1": ("db_bench", "rocksdb-tools"),
        "fio": ("fio", "fio"),
    }
    for name in sorted(names & needs.keys()):
        harness.install(*needs[name])


def versions(race):
    """What each program calls itself."""
    found = {}
    for name, command in {
        "AtlasKV": [race.bin / "atlaskv", "--version"],
        "Redis": ["redis-server", "--version"],
        "memcached": ["memcached", "--version"],
        "RocksDB": ["db_bench", "--version"],
        "fio": ["fio", "--version"],
    }.items():
        if Path(command[0]).exists() or shutil.which(command[0]):
            said = subprocess.run(command, capture_output=True, text=True)
            found[name] = (said.stdout or said.stderr).strip().split("\n")[0]
    return found
