# SPDX-License-Identifier: Apache-2.0
"""The log of a training run, a CSV file that a resumed run goes on with, and its curves as a picture."""

from __future__ import annotations

import csv
import importlib
import importlib.util
from pathlib import Path
from typing import Any

from pyspec.training.trainer import Tally


class Log:
    """Rows (step, split, seconds, learning_rate, rows, loss and acceptance by draft step, mean_accepted_length) in a CSV file."""

    def __init__(self, path: Path, unroll: int, step: int) -> None:
        """Keeps the rows that the file has up to optimiser step `step`; a run that starts at 0 starts a new file."""
        by_step = [f"{name}_{k}" for name in ("loss", "accept") for k in range(1, unroll + 1)]
        self._columns = [
            "step",
            "split",
            "seconds",
            "learning_rate",
            "rows",
            *by_step,
            "mean_accepted_length",
        ]
        self._path = path
        kept = [row for row in read_log(path) if int(row["step"]) <= step] if step and path.exists() else []
        self.seconds = float(kept[-1]["seconds"]) if kept else 0.0
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows({name: row.get(name, "") for name in self._columns} for row in kept)

    def write(self, step: int, split: str, seconds: float, learning_rate: float, tally: Tally) -> None:
        """One row; `seconds` of training before this run are added. Draft steps without rows, not trained yet, are left empty."""
        known = [rows > 0 for rows in tally.rows]
        figures = [*tally.mean_loss(), *tally.acceptance(), tally.mean_accepted_length()]
        shown = [
            f"{x:.4f}" if there else ""
            for x, there in zip(figures, [*known, *known, all(known)], strict=True)
        ]
        row = [step, split, f"{self.seconds + seconds:.1f}", f"{learning_rate:.3g}", tally.rows[0]]
        with self._path.open("a", encoding="utf-8", newline="") as file:
            csv.writer(file).writerow([*row, *shown])


def read_log(path: Path) -> list[dict[str, str]]:
    """The rows of a log."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def draw_curves(log: Path, picture: Path) -> bool:
    """Loss and acceptance over optimiser steps as a PNG; False where matplotlib is not installed (extra `train`)."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    importlib.import_module("matplotlib").use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    rows = read_log(log)
    figure, (losses, accepted, length) = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    drafts = [name for name in rows[0] if name.startswith("loss_")] if rows else []

    def plot(axes: Any, column: str, split: str, **how: Any) -> None:
        part = [row for row in rows if row["split"] == split and row[column]]
        axes.plot([int(row["step"]) for row in part], [float(row[column]) for row in part], **how)

    for split, style in (("training", ":"), ("validation", "-")):
        for k in range(1, len(drafts) + 1):
            label = f"draft {k}" if split == "validation" else None
            plot(losses, f"loss_{k}", split, linestyle=style, color=f"C{k - 1}", label=label)
            plot(accepted, f"accept_{k}", split, linestyle=style, color=f"C{k - 1}", label=label)
        plot(length, "mean_accepted_length", split, linestyle=style, color="k", label=split)
    for axes, title in (
        (losses, "cross-entropy with the target"),
        (accepted, "chains accepted up to this draft"),
        (length, "mean accepted length of a chain"),
    ):
        axes.set_title(title)
        axes.set_xlabel("optimiser step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle("solid: validation, dotted: training", fontsize="small")
    figure.savefig(picture, dpi=80)
    pyplot.close(figure)
    return True
