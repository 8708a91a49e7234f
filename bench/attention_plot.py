# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.attention_plot docs/results/tree_attention.csv FILE.svg`: attention against context and nodes, with the floors.

The picture is written as SVG text: no drawing package is needed.
"""

from __future__ import annotations

import csv
import math
import re
import sys
from pathlib import Path

NAME = re.compile(r"growth-L(\d+)-q(\d+)-(\w+)")
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728")
WIDTH, HEIGHT, MARGIN = 400, 300, 50  # of one panel, and around it, in pixels
Points = dict[tuple[str, int, int], tuple[float, float]]


def points(path: Path) -> Points:
    """(page type, context, nodes): microseconds and floor, each the latest of the file."""
    found: Points = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["metric"] == "time" and (match := NAME.match(row["case"])):
                time = float(row["value"])
                floor = time * float(row["peak_pct"]) / 100
                found[match[3], int(match[1]), int(match[2])] = time, floor
    return found


def panel(left: int, label: str, lines: dict[str, list[tuple[int, float, float]]]) -> list[str]:
    """One panel with logarithmic axes: measured lines drawn through, floors dotted."""
    xs = [x for line in lines.values() for x, *_ in line]
    ys = [y for line in lines.values() for _, *both in line for y in both]
    low, high = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    begin, end = math.log2(min(xs)), math.log2(max(xs))
    at_x = lambda x: left + WIDTH * (math.log2(x) - begin) / (end - begin)
    at_y = lambda y: MARGIN + HEIGHT * (high - math.log10(y)) / (high - low)
    svg = [
        f'<rect x="{left}" y="{MARGIN}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#888"/>',
        f'<text x="{left + WIDTH / 2}" y="{MARGIN + HEIGHT + 38}" text-anchor="middle">{label}</text>',
    ]
    for power in range(low, high + 1):
        y = at_y(10.0**power)
        svg += [
            f'<line x1="{left}" x2="{left + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>',
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{10**power:,}</text>',
        ]
    for x in sorted(set(xs)):
        svg.append(f'<text x="{at_x(x):.1f}" y="{MARGIN + HEIGHT + 18}" text-anchor="middle">{x:,}</text>')
    for i, (name, line) in enumerate(lines.items()):
        for which, dashes in ((1, ""), (2, ' stroke-dasharray="2 4"')):
            path = " ".join(f"{at_x(point[0]):.1f},{at_y(point[which]):.1f}" for point in line)
            svg.append(f'<polyline points="{path}" fill="none" stroke="{COLOURS[i]}"{dashes}/>')
        svg.append(f'<text x="{left + 10}" y="{MARGIN + 18 + 16 * i}" fill="{COLOURS[i]}">{name}</text>')
    return svg


def main(arguments: list[str]) -> int:
    """Draw the file; exit code 2 for wrong arguments."""
    if len(arguments) != 2:
        print("usage: python -m bench.attention_plot FILE.csv FILE.svg", file=sys.stderr)
        return 2
    found = points(Path(arguments[0]))
    by_context, by_nodes = {}, {}
    for dtype in ("bf16", "i8"):
        for n in (1, 16):
            by_context[f"{dtype}, {n} node{'s' * (n > 1)}"] = sorted(
                (L, *times) for (kind, L, nodes), times in found.items() if (kind, nodes) == (dtype, n)
            )
        by_nodes[f"{dtype}, context 2048"] = sorted(
            (nodes, *times) for (kind, L, nodes), times in found.items() if (kind, L) == (dtype, 2048)
        )
    second = 2 * MARGIN + WIDTH + 30
    body = panel(MARGIN + 20, "committed tokens (us; dotted: floor)", by_context)
    body += panel(second + MARGIN, "nodes (us; dotted: floor)", by_nodes)
    size = f'width="{second + WIDTH + 2 * MARGIN}" height="{HEIGHT + 2 * MARGIN}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    background = '<rect width="100%" height="100%" fill="white"/>'
    Path(arguments[1]).write_text("\n".join([head, background, *body, "</svg>"]) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
