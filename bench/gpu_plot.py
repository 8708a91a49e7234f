# SPDX-License-Identifier: Apache-2.0
"""`python -m bench.gpu_plot docs/results/gpu.csv gpu.svg`: how near each kernel came to the GPU's measured peaks, beside its peers."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import sys
from pathlib import Path


def bars(path: Path) -> dict[str, dict[str, float]]:
    """Microseconds by case, and by backend or peer, of the last run in the file."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] in ("time", "peer")]
    last = max((row["date"] for row in rows), default="")
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["date"] == last:
            name = row["peer"] if row["metric"] == "peer" else row["backend"]
            found.setdefault(row["case"], {})[name] = float(row["value"])
    return found


def main(arguments: list[str]) -> int:
    """Draw the file; exit code 1 where matplotlib is not installed."""
    if len(arguments) != 2:
        print("usage: python -m bench.gpu_plot FILE.csv FILE.svg", file=sys.stderr)
        return 2
    if importlib.util.find_spec("matplotlib") is None:
        print("error: gpu_plot: matplotlib must be installed", file=sys.stderr)
        return 1
    pyplot = importlib.import_module("matplotlib.pyplot")
    cases = bars(Path(arguments[0]))
    names = sorted({name for times in cases.values() for name in times})
    figure, axes = pyplot.subplots(figsize=(10, 1 + 0.3 * len(cases) * max(1, len(names)) / 2))
    for i, name in enumerate(names):
        at = [j + 0.8 * i / len(names) for j, times in enumerate(cases.values()) if name in times]
        axes.barh(
            at, [times[name] for times in cases.values() if name in times], 0.8 / len(names), label=name
        )
    axes.set_yticks(range(len(cases)), list(cases))
    axes.set_xscale("log")
    axes.set_xlabel("microseconds, cold L2")
    axes.legend()
    figure.tight_layout()
    figure.savefig(arguments[1])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
