"""Data ten times larger than memory: targets 6 and 7, and what fio measures of the disk."""

import argparse
import json
import subprocess

from harness import disk_bytes, say


class FioFile:
    """A file of this size, written once, which fio reads past the page cache, on the servers' core."""

    def __init__(self, race, bytes_):
        self.race, self.bytes, self.path = race, bytes_ // 4096 * 4096, race.dir / "fio.file"

    def __enter__(self):
        self.path.unlink(missing_ok=True)
        self.run("write", "--bs=1M", "--iodepth=8", "--refill_buffers")
        return self

    def __exit__(self, *_):
        self.path.unlink(missing_ok=True)

    def run(self, kind, *flags):
        command = ["taskset", "-c", self.race.args.server_cpu, "fio", f"--name={kind}", f"--rw={kind}"]
        command += [f"--filename={self.path}", f"--size={self.bytes}", "--direct=1", "--ioengine=io_uring"]
        command += ["--output-format=json", *map(str, flags)]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise SystemExit(f"fio {kind} ended with {result.returncode}: {result.stderr.strip()}")
        # Notes may come before the JSON.
        return json.loads(result.stdout[result.stdout.index("{") :])["jobs"][0]
