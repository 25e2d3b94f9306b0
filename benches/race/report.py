"""What a race found: Markdown on standard output, and one HTML file that needs nothing else."""

import html as escape

from harness import number, table

from . import svg

NAMES = {
    "atlaskv": "AtlasKV",
    "atlaskv-as-rocksdb": "AtlasKV, at the rate of RocksDB",
    "redis-always": "Redis, always",
    "redis": "Redis",
    "memcached": "memcached",
    "rocksdb": "RocksDB",
    "rocksdb-1": "RocksDB, 1 thread",
    "fio": "fio",
    "one-shard": "AtlasKV, 1 shard on each core",
    "two-shards": "AtlasKV, 2 shards",
    "two-shards-unaware": "AtlasKV, 2 shards unknown",
}
# Figures of a measurement, in the order of their columns.
FIGURES = {
    "ops_per_second": "ops/s",
    "cpu_micros_per_op": "CPU-µs/op",
    "settled_ops_per_second": "ops/s with merges",
    "most_per_second": "maximum, ops/s",
    "p50_us": "p50, µs",
    "p99_us": "p99, µs",
    "p99.9_us": "p99.9, µs",
    "max_us": "max, µs",
    "write_amplification": "write amplification",
    "bytes_read_per_op": "bytes read/op",
    "generator_share": "generator",
    "bytes_per_key": "bytes a key",
    "bytes_per_second": "MB/s",
    "seconds": "seconds",
}
SCALE = {"bytes_per_second": 1e-6}
VERDICT = {True: "yes", False: "**no**", None: "–"}


def with_spread(value, scale=1, unit=""):
    """Median (least to most)."""
    if value is None:
        return "–"
    middle, least, most = (number(part * scale) for part in value)
    return f"{middle}{unit}" + (f" ({least}–{most})" if least != most else "")


def target_rows(kept, chosen):
    for target in chosen:
        value = target.value(kept)
        if value is not None:
            row = [target.id, target.load, target.against, with_spread(value, unit=target.unit)]
            yield [*row, target.wanted() or "–", VERDICT[target.met(kept)]]


TARGET_HEAD = ["#", "load", "against", "ratio: median (least–most)", "target", "met"]


def short_table(kept, chosen):
    rows = [TARGET_HEAD, ["---:", "---", "---", "---:", "---:", "---"], *target_rows(kept, chosen)]
    return "".join("| " + " | ".join(row) + " |\n" for row in rows)


def figure_rows(kept, titles):
    """All that was measured: a row for each load and contestant."""
    runs = kept.all.get("runs", {})
    columns = [name for name in FIGURES if any(kept.rounds(load, who, name) for load in runs for who in runs[load])]
    head = ["load", "of", "rounds", *(FIGURES[name] for name in columns)]
    rows = []
    for load in [*(name for name in titles if name in runs), *(name for name in runs if name not in titles)]:
        for who in [name for name in NAMES if name in runs[load]]:
            cells = [with_spread(kept.spread(load, who, name), SCALE.get(name, 1)) for name in columns]
            rows.append([titles.get(load, load), NAMES[who], str(len(runs[load][who])), *cells])
    return head, rows


def about(kept):
    machine = kept.all.get("machine", {})
    lines = [
        f"{machine.get('cpu')}, {machine.get('cpus')} CPUs, Linux {machine.get('kernel')}, {machine.get('date')}",
        f"commit {machine.get('commit')}; " + "; ".join(kept.all.get("versions", {}).values()),
        f"command: {kept.all.get('command')}",
    ]
    return lines


def show(kept, chosen, titles):
    for line in about(kept):
        print(line)
    print()
    print(short_table(kept, chosen))
    table(*figure_rows(kept, titles))


def charts(kept, titles):
    """A chart for each kind of figure, its loads grouped."""
    runs = kept.all.get("runs", {})
    order = [name for name in titles if name in runs]

    def bars(figure, heading, loads, scale=1):
        groups = []
        for load in loads:
            found = [(NAMES[who], kept.spread(load, who, figure)) for who in NAMES if who in runs[load]]
            found = [(name, tuple(part * scale for part in value)) for name, value in found if value]
            if found:
                groups.append((titles[load], found))
        return svg.bars(heading, groups) if groups else ""

    yield bars("ops_per_second", "Throughput, thousand operations a second", order, 1e-3)
    yield bars("cpu_micros_per_op", "Processor time of the server, µs an operation", order)
    yield bars("write_amplification", "Bytes written to disk for each byte of key and value", order)
    for load in order:
        whos = [who for who in NAMES if kept.rounds(load, who, "timeline_p99_us")]
        lines = [(NAMES[who], list(kept.rounds(load, who, "timeline_p99_us").values())[0]) for who in whos]
        if lines:
            yield svg.timeline(f"p99 of each second, µs: {titles[load]}", lines)
    groups = []
    for load in order:
        lines = []
        for who in [name for name in NAMES if name in runs[load]]:
            points = [(name, kept.spread(load, who, f"{name}_us")) for name in ["p50", "p90", "p99", "p99.9", "max"]]
            if all(value for _, value in points):
                lines.append((NAMES[who], points))
        if lines:
            groups.append((titles[load], lines))
    yield from (svg.percentiles(f"Latency, µs: {title}", lines) for title, lines in groups)


STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #d0d7de; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --line: #30363d; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 70rem;
  margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; display: block; overflow-x: auto; }
th, td { border: 1px solid var(--line); padding: .25rem .5rem; text-align: left; }
svg { max-width: 100%; height: auto; margin: 1rem 0; font: 12px system-ui, sans-serif; }
svg text { fill: var(--ink); } svg .grid { stroke: var(--line); } svg .whisker { stroke: var(--ink); }
.plots { display: flex; flex-wrap: wrap; gap: 1rem; }
.no { font-weight: bold; color: #c62828; } .yes { color: #2e7d32; }
"""


def html_table(head, rows):
    def cell(text, tag="td"):
        kind = {"yes": "yes", "**no**": "no"}.get(text)
        words = escape.escape(text.replace("**", ""))
        return f'<{tag} class="{kind}">{words}</{tag}>' if kind else f"<{tag}>{words}</{tag}>"

    body = "".join("<tr>" + "".join(map(cell, row)) + "</tr>\n" for row in rows)
    return "<table><tr>" + "".join(cell(text, "th") for text in head) + f"</tr>\n{body}</table>"


def html(kept, chosen, titles):
    lines = "<br>\n".join(escape.escape(line) for line in about(kept))
    plots = "\n".join(filter(None, charts(kept, titles)))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>AtlasKV and its peers</title>
<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body>
<h1>AtlasKV and its peers</h1>
<p>{lines}</p>
<p>One core for the server, another for the generator. Ratios are taken within a round; medians over the rounds, with
the least and the greatest. Whiskers in the plots are those as well.</p>
<h2>Targets</h2>
{html_table(TARGET_HEAD, target_rows(kept, chosen))}
<h2>Plots</h2>
<div class="plots">
{plots}
</div>
<h2>All figures</h2>
{html_table(*figure_rows(kept, titles))}
</body></html>
"""
