"""What a race measured, in DIR/results.json after every measurement, so that it can go on where it was ended:

    { "machine", "versions", "command", "parameters", "runs": { load: { contestant: { round: figures } } } }
"""

import json
import statistics
from pathlib import Path

from harness import number, say

# Figures that the line about a measurement tells.
TOLD = {
    "ops_per_second": "ops/s",
    "cpu_micros_per_op": "CPU-us/op",
    "p50_us": "us p50",
    "p99_us": "us p99",
    "p99.9_us": "us p99.9",
    "bytes_per_key": "bytes/key",
    "bytes_per_second": "bytes/s",
    "write_amplification": "bytes written per byte",
    "seconds": "s",
}


class Kept:
    def __init__(self, directory):
        self.path = Path(directory) / "results.json"
        self.all = json.loads(self.path.read_text()) if self.path.exists() else {}

    def begin(self, parameters, about):
        """Makes this a race with these parameters, or one that goes on with them."""
        before = self.all.get("parameters", parameters)
        for name, value in parameters.items():
            if before.get(name) != value:
                raise SystemExit(
                    f"{self.path} is of a race with --{name.replace('_', '-')} {before.get(name)}, not {value}: "
                    "give the same, or another --dir"
                )
        commit = self.all.get("machine", about["machine"])["commit"]
        if commit != about["machine"]["commit"]:
            say(f"WARNING: {self.path} was begun with {commit}, this is {about['machine']['commit']}")
        self.all = {"runs": {}, **self.all, "parameters": parameters, **about}
        self.save()

    def save(self):
        # Beside it first: a race that is ended while it writes keeps what it had.
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(self.all, indent=1) + "\n")
        fresh.replace(self.path)

    def has(self, load, who, turn):
        return str(turn) in self.all["runs"].get(load, {}).get(who, {})

    def keep(self, load, who, turn, figures):
        self.all["runs"].setdefault(load, {}).setdefault(who, {})[str(turn)] = figures
        self.save()
        told = [f"{number(figures[name])} {unit}" for name, unit in TOLD.items() if figures.get(name) is not None]
        say(f"round {turn}, {load}, {who}: {', '.join(told)}")

    def rounds(self, load, who, figure):
        """The figure in each round in which there is one, by round."""
        rounds = self.all.get("runs", {}).get(load, {}).get(who, {})
        found = {turn: figures.get(figure) for turn, figures in rounds.items()}
        return {turn: value for turn, value in found.items() if value is not None}

    def spread(self, load, who, figure):
        return spread(self.rounds(load, who, figure).values())


def spread(values):
    """Median, least and most; `None` of nothing."""
    values = list(values)
    return (statistics.median(values), min(values), max(values)) if values else None
