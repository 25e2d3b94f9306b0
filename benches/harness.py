"""What the benchmark scripts beside this file share: a server pinned to its cores, its counters, the load generator,
the disk under a directory, results that are kept from phase to phase, Markdown tables.

Processes are ended by their own pid. Everything a run writes lies below one directory.
"""

import atexit
import hashlib
import json
import mmap
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20


def say(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


STARTED = []


def spawn(command, **options):
    """Starts a process that does not outlive this script."""
    process = subprocess.Popen(command, **options)
    STARTED.append(process)
    return process


@atexit.register
def end_all():
    for process in STARTED:
        if process.poll() is None:
            process.kill()
            process.wait()


def install(command, package):
    """Makes sure that `command` is there, from Debian's `package`."""
    if shutil.which(command):
        return
    say(f"installing {package} for {command}")
    root = [] if os.geteuid() == 0 else ["sudo"]
    subprocess.run(root + ["apt-get", "update", "-qq"], check=True, stdout=sys.stderr)
    line = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-y", "-qq", "--no-install-recommends"]
    subprocess.run(root + line + [package], check=True, stdout=sys.stderr)


def size(text):
    """256MiB, 1GiB, 4096 as bytes."""
    match = re.fullmatch(r"(\d+)\s*(|[KMG]iB)", text)
    if not match:
        raise SystemExit(f"{text!r} is no size; give bytes, or a number of KiB, MiB or GiB")
    return int(match[1]) << {"": 0, "KiB": 10, "MiB": 20, "GiB": 30}[match[2]]


def memory_shares(memory, shards=1, value_bytes_max=16 * MIB):
    """What one shard gets of `--memory`, as src/config/memory.rs splits it."""
    total = (memory - 32 * MIB) // shards
    io = min(max(total // 16, MIB), 8 * MIB)
    memtables, indexes = min(total // 100 * 35, 1024 * MIB), total // 100 * 20
    # At least the largest frame: a value of --max-value-size, and 128 KiB.
    connections = max(total // 10, value_bytes_max + 128 * 1024)
    return {
        "memtables": memtables,
        "indexes": indexes,
        "caches": total - io - memtables - indexes - connections,
    }


# What a process and the disk have done


def process_io(pid):
    """Bytes that the process caused to be read from and written to the device (all its threads, those that the
    kernel runs for its io_uring included)."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return {"read": int(fields["read_bytes"]), "written": int(fields["write_bytes"])}


def process_cpu(pid):
    """Seconds of processor time so far, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sample(pid):
    return {**process_io(pid), "cpu": process_cpu(pid), "at": time.monotonic()}


def difference(after, before):
    return {name: after[name] - before[name] for name in after}


def disk_bytes(directory):
    """Bytes allocated below a directory, each inode once: all, and by kind of file."""
    seen, sums = set(), {"all": 0, "tables": 0, "log": 0}
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                stat = os.stat(os.path.join(folder, name))
            except FileNotFoundError:
                continue  # removed by the server meanwhile
            if (stat.st_dev, stat.st_ino) in seen:
                continue
            seen.add((stat.st_dev, stat.st_ino))
            sums["all"] += stat.st_blocks * 512
            if name.endswith(".sst"):
                sums["tables"] += stat.st_blocks * 512
            elif name.endswith((".wal", ".log")):
                sums["log"] += stat.st_blocks * 512
    return sums


class DiskWatch:
    """The most that a directory took while something ran, looked at every few seconds."""

    def __init__(self, directory, seconds=3):
        self.peak, self.done = disk_bytes(directory), threading.Event()
        self.thread = threading.Thread(target=self.watch, args=(directory, seconds), daemon=True)

    def watch(self, directory, seconds):
        while not self.done.wait(seconds):
            now = disk_bytes(directory)
            if now["all"] > self.peak["all"]:
                self.peak = now

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()


class DiskProbe:
    """How long single reads of 4 KiB take while something else runs: what of a latency is the disk's."""

    def __init__(self, directory, cpu, every=0.003):
        self.path, self.cpu, self.every = Path(directory) / "probe", cpu, every
        self.millis, self.done = [], threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self):
        # Of this thread alone.
        os.sched_setaffinity(0, cores(self.cpu))
        file = os.open(self.path, os.O_RDONLY | os.O_DIRECT)
        page, pages = mmap.mmap(-1, 4096), os.fstat(file).st_size // 4096
        while not self.done.wait(self.every):
            begin = time.perf_counter()
            os.preadv(file, [page], random.randrange(pages) * 4096)
            took = (time.perf_counter() - begin) * 1000
            # One that takes long keeps those from being sent that would have met the same: they count as well.
            while took > 0:
                self.millis.append(took)
                took -= self.every * 1000
        os.close(file)

    def __enter__(self):
        with open(self.path, "wb") as file:
            for _ in range(256):
                file.write(os.urandom(MIB))
            os.fsync(file.fileno())
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()
        self.path.unlink()

    def figures(self):
        ordered = sorted(self.millis)
        at = lambda part: ordered[min(int(len(ordered) * part), len(ordered) - 1)]
        return {"reads": len(ordered), "p50": at(0.5), "p99": at(0.99), "p99.9": at(0.999), "max": ordered[-1]}


def stolen_millis():
    """Milliseconds that all CPUs together were not given though they had something to run, since the machine started."""
    stolen = int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8])
    return stolen * 1000 // os.sysconf("SC_CLK_TCK")


def disk_alone(directory, cpu, reads, written, seconds):
    """Latencies of `reads` random reads of 4 KiB a second beside `written` bytes of sequential writes a second, by fio
    on one core, in ms: what a store with that traffic can't get below."""
    file = Path(directory) / "alone"
    common = ["--ioengine=io_uring", "--direct=1", f"--filename={file}", "--size=2g", "--iodepth=64"]
    lay_out = ["fio", "--name=lay", *common, "--rw=write", "--bs=1m", "--output=/dev/null"]
    subprocess.run(lay_out, check=True, cwd=directory)
    timed = ["--time_based", f"--runtime={seconds}", f"--cpus_allowed={cpu}"]
    command = ["fio", "--output-format=json", *common, *timed]
    command += ["--name=reads", "--rw=randread", "--bs=4k", f"--rate_iops={max(1, int(reads))}"]
    command += ["--name=writes", *common, *timed, "--iodepth=4", "--rw=write", "--bs=256k", f"--rate={int(written)}"]
    try:
        said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=directory).stdout
    finally:
        file.unlink(missing_ok=True)
    # It may say something before its JSON.
    jobs = {job["jobname"]: job for job in json.loads(said[said.index("{") :])["jobs"]}
    read = jobs["reads"]["read"]
    quantiles = read["clat_ns"]["percentile"]
    of = lambda name: quantiles[name] / 1e6
    return {
        "reads_per_second": read["iops"],
        "written_per_second": jobs["writes"]["write"]["bw_bytes"],
        "p50": of("50.000000"), "p99": of("99.000000"), "p99.9": of("99.900000"), "max": read["clat_ns"]["max"] / 1e6,
    }  # fmt: skip


def device_of(path):
    """The block device that holds a path, as /dev/NAME, if it is one."""
    source = subprocess.run(["df", "--output=source", path], capture_output=True, text=True, check=True)
    return source.stdout.split()[-1]


def machine():
    """What a figure must be read with."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    commit = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    return {
        "cpu": cpu[1] if cpu else "unknown",
        "cpus": os.cpu_count(),
        "kernel": os.uname().release,
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }


def cores(text):
    return {int(part) for part in text.split(",")}


# AtlasKV


class Server:
    """An AtlasKV on a data directory, pinned to `cpus`, on a port of its own."""

    def __init__(self, bin_dir, data, cpus, memory, *flags, shards=None, log=None):
        self.bin, self.data = Path(bin_dir), Path(data)
        shards = shards or len(cores(cpus))
        command = ["taskset", "-c", cpus, self.bin / "atlaskv", "--cores", str(shards), "--data-dir", self.data]
        command += ["--listen", "127.0.0.1:0", "--memory", memory, *flags]
        if shards > len(cores(cpus)):
            command.append("--oversubscribe")
        self.data.parent.mkdir(parents=True, exist_ok=True)
        self.log = open(log or f"{self.data}.log", "a")
        begin = time.monotonic()
        self.process = spawn(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        line = self.process.stdout.readline()
        self.start_seconds = time.monotonic() - begin
        match = re.match(r"atlaskv ready: (\S+), ", line)
        if not match:
            self.process.wait()
            raise SystemExit(f"atlaskv did not start; it said {line!r}, and more in {self.log.name}")
        self.address, self.pid = match[1], self.process.pid
        # What the load generator is told; redis://ADDRESS is served on the same port.
        self.target = f"atlaskv://{self.address}"
        self.start_io = process_io(self.pid)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self, seconds=120):
        """Ends it in good order; returns how long that took."""
        begin = time.monotonic()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise SystemExit(f"atlaskv did not end within {seconds} s of SIGTERM") from None
        self.log.close()
        return time.monotonic() - begin

    def cli(self, *words, timeout=600, check=True):
        command = [self.bin / "atlaskv-cli", "-a", self.address, "--timeout", str(timeout), *words]
        result = subprocess.run(command, capture_output=True, text=True)
        if check and result.returncode != 0:
            raise SystemExit(f"atlaskv-cli {' '.join(words)}: {result.stderr.strip() or result.stdout.strip()}")
        return result.stdout

    def stats(self, section="total"):
        """The server's counters by name."""
        pairs = (line.split("=", 1) for line in self.cli("stats", section).splitlines() if "=" in line)
        return {name: int(value) for name, value in pairs if value.isdigit()}

    def settle(self, quiet=5, limit=900):
        """Waits until the server has written next to nothing for `quiet` seconds: no flush or merge is under way.
        Returns how long that took, or says that it did not come to rest."""
        begin = last = time.monotonic()
        before = process_io(self.pid)["written"]
        while time.monotonic() - begin < limit:
            time.sleep(0.5)
            now = process_io(self.pid)["written"]
            if now - before > MIB:
                before, last = now, time.monotonic()
            elif time.monotonic() - last >= quiet:
                return last - begin
        say(f"WARNING: the server was still writing after {limit} s")
        return None


def bench(server, cpus, *flags, check=True):
    """Runs atlaskv-bench against the server; returns its report. Progress goes to standard error."""
    command = ["taskset", "-c", cpus, server.bin / "atlaskv-bench", "--target", server.target]
    command += ["--server-pid", str(server.pid), "--json", "-", "--quiet", *map(str, flags)]
    result = subprocess.run(command, capture_output=True, text=True)
    if not result.stdout.strip():
        raise SystemExit(f"atlaskv-bench {' '.join(map(str, flags))}: {result.stderr.strip()}")
    report = json.loads(result.stdout)
    for warning in report["warnings"]:
        say(f"atlaskv-bench: WARNING: {warning}")
    if check and not report["good"]:
        raise SystemExit("atlaskv-bench found the server at fault")
    return report


def supports(binary, word, *flags):
    """Whether a program's help for these flags mentions a word: tools of another version are refused early."""
    text = subprocess.run([binary, *flags, "--help"], capture_output=True, text=True).stdout
    return word in text


def lasting(rates):
    """The mean of the second half of a series of rates: at first, memory and levels with room take in more than lasts."""
    later = rates[len(rates) // 2 :]
    return sum(later) / len(later)


def windows(rates):
    """Slowest and median one-second window of a series, and their ratio."""
    ordered = sorted(rates)
    if not ordered:
        return {"slowest": None, "median": None, "ratio": None}
    slowest, median = ordered[0], ordered[len(ordered) // 2]
    return {"slowest": slowest, "median": median, "ratio": slowest / median if median else None}


# Results


class Results:
    """What the phases found, in DIR/results.json, so that phases can run one at a time."""

    def __init__(self, directory, script, parameters):
        self.path = Path(directory) / "results.json"
        self.all = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.all["machine"] = machine()
        self.all.setdefault("parameters", {})[script] = {name: str(value) for name, value in parameters.items()}

    def put(self, system, phase, figures):
        self.all.setdefault(system, {})[phase] = figures
        self.path.write_text(json.dumps(self.all, indent=1) + "\n")
        short = {name: value for name, value in figures.items() if not isinstance(value, list)}
        print(json.dumps({"system": system, "phase": phase, **short}), flush=True)

    def get(self, system, phase, *names):
        value = self.all.get(system, {}).get(phase)
        for name in names:
            value = value.get(name) if isinstance(value, dict) else None
        return value


def number(value):
    """For a table: three figures that count."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def table(head, rows):
    """Prints rows as Markdown."""
    print("| " + " | ".join(head) + " |")
    print("|---" + "|---:" * (len(head) - 1) + "|")
    for row in rows:
        print("| " + " | ".join(number(cell) for cell in row) + " |")
    print(flush=True)


def ratio(ours, theirs):
    return ours / theirs if ours is not None and theirs else None


def workspace(given, name):
    """The directory of a run: the one given, which is kept, or a fresh one."""
    if given:
        Path(given).mkdir(parents=True, exist_ok=True)
        return Path(given), True
    base = os.environ.get("ATLASKV_BENCH_DIR", "/var/tmp")
    directory = Path(subprocess.check_output(["mktemp", "-d", f"{base}/atlaskv-{name}.XXXXXX"], text=True).strip())
    return directory, False


def prepare(generator_cpus):
    """Moves this script out of the server's way, lets servers open many files, and ends in order on SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.sched_setaffinity(0, cores(generator_cpus))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


# Scans and loads in the background


class BackgroundBench:
    """atlaskv-bench beside something else; knows in which second of its time line it is."""

    def __init__(self, server, cpus, report, *flags, nice=0):
        self.report, self.second = Path(report), -1
        command = ["nice", "-n", str(nice), "taskset", "-c", cpus]
        command += [server.bin / "atlaskv-bench", "--target", server.target]
        command += ["--server-pid", str(server.pid), "--json", self.report, *map(str, flags)]
        self.report.unlink(missing_ok=True)
        self.process = spawn(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.last_words = ""
        self.thread = threading.Thread(target=self.follow, daemon=True)
        self.thread.start()

    def follow(self):
        for line in self.process.stderr:
            self.last_words = line.strip()
            if match := re.match(r"run\s+(\d+) s", line):
                self.second = int(match[1])

    def wait_for(self, second, limit=120):
        begin = time.monotonic()
        while self.second < second:
            if self.process.poll() is not None:
                raise SystemExit(f"atlaskv-bench ended early: {self.last_words}")
            if time.monotonic() - begin > limit:
                raise SystemExit(f"atlaskv-bench came to no {second} s within {limit} s: {self.last_words}")
            time.sleep(0.05)

    def finish(self):
        """Ends it, if it has not ended; returns its report."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.thread.join()
        if not self.report.exists() or not self.report.read_text().strip():
            raise SystemExit(f"atlaskv-bench left no report: {self.last_words}")
        report = json.loads(self.report.read_text())
        for warning in report["warnings"]:
            say(f"atlaskv-bench: WARNING: {warning}")
        return report


def needs(binary, what, *command):
    """Ends the script if a program of this build lacks something that the script is about."""
    if not supports(binary, what, *command):
        raise SystemExit(f"{' '.join(map(str, [binary, *command]))} --help does not know {what}: this build is too old")


def digest(server, prefix=""):
    """Hash and size of all that a scan of the keys with this prefix prints, in order, and how long it took."""
    command = [server.bin / "atlaskv-cli", "-a", server.address, "--timeout", "600", "--raw", "scan"]
    command += ["--prefix", prefix] if prefix else []
    begin, sha, length = time.monotonic(), hashlib.sha256(), 0
    process = spawn(command, stdout=subprocess.PIPE)
    while chunk := process.stdout.read(MIB):
        sha.update(chunk)
        length += len(chunk)
    if process.wait() != 0:
        raise SystemExit(f"atlaskv-cli scan ended with {process.returncode}")
    return {"sha256": sha.hexdigest(), "bytes": length, "seconds": time.monotonic() - begin}
