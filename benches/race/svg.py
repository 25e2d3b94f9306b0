"""Plots as inline SVG: bars with whiskers; percentiles, and what changes with time, on a logarithmic axis."""

import html
import math

from harness import number

# Of contestants, in the order in which they come up; the first are told apart by people who see colours differently.
COLOURS = ["#0072b2", "#d55e00", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#8c6d31", "#7f7f7f", "#6b6ecf"]
WIDTH, LABELS, VALUES, BAR, GAP = 880, 320, 130, 14, 12


def bars(heading, groups):
    """`groups`: (title, [(who, (median, least, most))]). One axis for all of them."""
    names = list(dict.fromkeys(who for _, found in groups for who, _ in found))
    top = max(most for _, found in groups for _, (_, _, most) in found) or 1
    room = WIDTH - LABELS - VALUES

    def across(value):
        return LABELS + room * value / top

    parts, y = legend(names, 44), 62
    for title, found in groups:
        middle = y + len(found) * BAR / 2 + 4
        parts.append(text(LABELS - 8, middle, title, "end"))
        for who, (median, least, most) in found:
            width = across(median) - LABELS
            parts.append(f'<rect x="{LABELS}" y="{y}" width="{width:.1f}" height="{BAR - 2}" fill="{colour(who)}"/>')
            parts.append(whisker(across(least), across(most), y + BAR / 2 - 1))
            parts.append(text(across(most) + 6, y + BAR - 4, number(median)))
            y += BAR
        y += GAP
    return figure(WIDTH, y, heading, parts)


def logarithmic(values, left, right, top, bottom):
    """An axis for these values: what turns a value into a height, and its lines and numbers."""
    values = [value for value in values if value > 0] or [1]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    high = max(high, low + 1)

    def down(value):
        share = (math.log10(max(value, 10**low)) - low) / (high - low)
        return bottom - (bottom - top) * share

    parts = []
    for power in range(low, high + 1):
        y = down(10**power)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(text(left - 6, y + 4, f"{10**power:,}", "end"))
    return down, parts


def timeline(heading, lines):
    """`lines`: (who, values), a value for each second."""
    width, height, left, top, bottom = WIDTH, 320, 76, 64, 286
    down, parts = logarithmic([value for _, values in lines for value in values], left, width - 10, top, bottom)
    seconds = max(len(values) for _, values in lines)
    step = (width - left - 10) / max(1, seconds - 1)
    for who, values in lines:
        path = " ".join(f"{left + step * second:.1f},{down(value):.1f}" for second, value in enumerate(values))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour(who)}" stroke-width="1.2"/>')
    parts.append(text(left, bottom + 20, "0 s"))
    parts.append(text(width - 10, bottom + 20, f"{seconds - 1} s", "end"))
    return figure(width, height, heading, legend([who for who, _ in lines], 44) + parts)


def percentiles(heading, lines):
    """`lines`: (who, [(percentile, (median, least, most))]), in microseconds."""
    width, height, left, top, bottom = 420, 300, 76, 64, 270
    values = [part for _, points in lines for _, spread in points for part in spread]
    down, axis = logarithmic(values, left, width - 10, top, bottom)
    parts = legend([who for who, _ in lines], 44) + axis
    step = (width - left - 44) / (len(lines[0][1]) - 1)
    for who, points in lines:
        places = [(left + 20 + step * index, down(spread[0])) for index, (_, spread) in enumerate(points)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour(who)}" stroke-width="2"/>')
        for (x, _), (_, (_, least, most)) in zip(places, points):
            ends = f'x1="{x:.1f}" x2="{x:.1f}" y1="{down(least):.1f}" y2="{down(most):.1f}"'
            parts.append(f'<line {ends} stroke="{colour(who)}" stroke-width="5" opacity=".4"/>')
    for index, (name, _) in enumerate(lines[0][1]):
        parts.append(text(left + 20 + step * index, bottom + 18, name, "middle"))
    return figure(width, height, heading, parts)


def colour(who, assigned={}):
    return assigned.setdefault(who, COLOURS[len(assigned) % len(COLOURS)])


def legend(names, y):
    parts, x = [], 10
    for name in names:
        parts.append(f'<rect x="{x}" y="{y - 10}" width="11" height="11" fill="{colour(name)}"/>')
        parts.append(text(x + 16, y, name))
        x += 34 + 7 * len(name)
    return parts


def whisker(least, most, y):
    ends = "".join(f"M{x:.1f} {y - 3}v6" for x in (least, most))
    return f'<path class="whisker" d="M{least:.1f} {y}H{most:.1f}{ends}" fill="none"/>'


def text(x, y, words, anchor="start"):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'


def figure(width, height, heading, parts):
    title = f'<text x="10" y="20" font-weight="bold" font-size="14">{html.escape(heading)}</text>'
    label = html.escape(heading, quote=True)
    head = f'<svg viewBox="0 0 {width} {height:.0f}" width="{width}" role="img" aria-label="{label}">'
    return "\n".join([head, title, *parts, "</svg>"])
